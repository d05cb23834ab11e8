"""What type checkers know of the public names.  Checked by mypy in strict mode, never run.

A line with `type: ignore[code]` is a mistake that the checker must find: mypy complains if it does not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, assert_type

from idempotency import (
    AsyncBasePersistenceLayer,
    AsyncCachePersistenceLayer,
    AsyncIdempotent,
    Attempt,
    BaseIdempotencySerializer,
    BasePersistenceLayer,
    BulkProgress,
    CachePersistenceLayer,
    CancellationReason,
    CustomDictSerializer,
    DataclassSerializer,
    DataRecord,
    DynamoDBPersistenceLayer,
    Event,
    Executed,
    IdempotencyAlreadyInProgressError,
    IdempotencyBulkIncompleteError,
    IdempotencyConfig,
    IdempotencyLeaseLostError,
    IdempotencyTransactionCanceledError,
    IdempotencyUnreachableError,
    Idempotent,
    IdempotentHookFunction,
    InMemoryPersistenceLayer,
    NoOpSerializer,
    Observer,
    PydanticSerializer,
    RedisCachePersistenceLayer,
    Replayed,
    ResultOffload,
    S3ResultOffload,
    Transaction,
    apply_once,
    copy_records,
    current_attempt,
    idempotent,
    idempotent_function,
    make_idempotent,
    sweep_expired,
    transaction,
)
from idempotency.events import Completed, LeaseLost, Uncommitted

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

store = InMemoryPersistenceLayer()


# Stores


class MyStore(BasePersistenceLayer):
    """As written for Powertools, with its annotations."""

    def _get_record(self, idempotency_key: str) -> DataRecord:
        return DataRecord(idempotency_key, "COMPLETED", 1, 2, "{}", "hash")

    def _put_record(self, data_record: DataRecord) -> None:
        assert_type(data_record.idempotency_key, str)
        assert_type(data_record.status, str)
        assert_type(data_record.expiry_timestamp, int | None)
        assert_type(data_record.in_progress_expiry_timestamp, int | None)
        assert_type(data_record.response_data, str)
        assert_type(data_record.payload_hash, str)
        assert_type(data_record.get_expiration_datetime(), dt.datetime | None)

    def _update_record(self, data_record: DataRecord) -> None:
        assert_type(self.payload_validation_enabled, bool)
        assert_type(self.expires_after_seconds, int)
        assert_type(self.use_local_cache, bool)
        assert_type(self.event_key_jmespath, str)
        assert_type(self.raise_on_no_idempotency_key, bool)
        assert_type(self.function_name, str)
        assert_type(self.hash_function, Callable[..., Any])

    def _delete_record(self, data_record: DataRecord) -> None: ...


class MyGrantingStore(MyStore):
    """With the record as granted."""

    supports_leases = True

    def _put_record(self, data_record: DataRecord) -> DataRecord:  # type: ignore[override]  # of MyStore, not of the base
        return data_record.replace(generation=2)


class MyAsyncStore(AsyncBasePersistenceLayer):
    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return DataRecord(idempotency_key)

    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        return None

    async def _update_record(self, data_record: DataRecord) -> None: ...

    async def _delete_record(self, data_record: DataRecord) -> None: ...


my_store, my_async_store = MyStore(), MyAsyncStore()
store.clock_ms = lambda: 1_800_000_000_000
store.sleep_ms = lambda ms: None
InMemoryPersistenceLayer(max_records=10, clock_ms=lambda: 0)
InMemoryPersistenceLayer(10)  # type: ignore[call-arg]


def dynamodb(client: Any) -> None:
    import boto3
    from botocore.config import Config

    DynamoDBPersistenceLayer("table", "pk", "static", "sk", boto_config=Config(), boto3_client=client)
    DynamoDBPersistenceLayer("table", boto3_session=boto3.Session())
    layer = DynamoDBPersistenceLayer(table_name="table", owner_token_attr="owner")
    layer.client = client
    layer.table_name = "another"
    layer.client.put_item(TableName=layer.table_name)
    DynamoDBPersistenceLayer()  # type: ignore[call-arg]


# Configuration, observers, hooks


class Counter:
    def __call__(self, event: Event, /) -> None:
        match event:
            case Completed(key=key, generation=generation):
                assert_type(key, str)
                assert_type(generation, int)
            case LeaseLost(winner_holder=holder):
                assert_type(holder, str)
            case Uncommitted(reasons=reasons):
                assert_type(reasons, tuple[str, ...])
            case _:
                assert_type(event.at_ms, int)


def observe(event: Event) -> bool:
    return True


async def observe_later(event: Event) -> None: ...


def hook(response: Any, idempotent_data: DataRecord) -> Any:
    assert_type(idempotent_data.response_json_as_dict(), Any)
    return response


def other_hook(response: dict[str, Any], idempotent_data: DataRecord) -> dict[str, Any]:
    return response


seen: list[Event] = []
anything: list[object] = []
observers: list[Observer] = [seen.append, anything.append, print, observe, Counter(), lambda event: None]
hooks: list[IdempotentHookFunction] = [hook, other_hook, lambda response, idempotent_data: response]
config = IdempotencyConfig("id", "amount", observers=[seen.append], response_hook=hook, lease_seconds=0.5)
IdempotencyConfig(observers=(seen.append, observe))
IdempotencyConfig(event_key_jmespath="id", jmespath_options={}, expires_after_seconds=1, use_local_cache=True)
IdempotencyConfig(observers=[hook])  # type: ignore[list-item]
IdempotencyConfig(lease_seconds="1")  # type: ignore[arg-type]
IdempotencyConfig("", "", None, False, 1, False, 1, "md5", None, None, 60)  # type: ignore[call-arg]


def register(context: LambdaContext) -> None:
    config.register_lambda_context(context)
    IdempotencyConfig(lambda_context=context)
    config.register_lambda_context(object())  # type: ignore[arg-type]


# Handlers


@idempotent(persistence_store=store, config=config, key_prefix="p")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    return {"a": 1}


@idempotent(persistence_store=store)
async def async_handler(event: dict[str, Any], context: LambdaContext | None = None) -> list[str]:
    return []


def call_handlers(event: dict[str, Any], context: LambdaContext) -> None:
    assert_type(handler(event, context), dict[str, int])
    assert_type(handler(event=event, context=context), dict[str, int])
    assert_type(handler.with_outcome(event, context), Executed | Replayed)
    assert_type(handler.override(persistence_store=my_store), AbstractContextManager[None])
    assert_type(handler.override(config=config), AbstractContextManager[None])
    handler(event)  # type: ignore[call-arg]
    handler("event", context)  # type: ignore[arg-type]
    handler.with_outcome(event)  # type: ignore[call-arg]
    handler.override(store)  # type: ignore[call-arg]


async def await_handlers(event: dict[str, Any]) -> None:
    _ = assert_type(async_handler(event), Coroutine[Any, Any, list[str]])
    assert_type(await async_handler(event), list[str])
    assert_type(await async_handler.with_outcome(event, None), Executed | Replayed)
    async_handler.override(persistence_store=my_async_store, config=config)
    await async_handler(1)  # type: ignore[arg-type]


direct_handler = idempotent(lambda event, context: [event], persistence_store=store)
idempotent(persistence_store=store, data_keyword_argument="x")  # type: ignore[call-overload]
idempotent(config=config)  # type: ignore[call-overload]


# Functions


@dataclass
class Receipt:
    id: int


@idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, output_serializer=DataclassSerializer)
def charge(order: dict[str, int], *, currency: str = "EUR") -> Receipt:
    return Receipt(order["id"])


@idempotent_function(data_keyword_argument="order", persistence_store=my_async_store)
async def async_charge(order: dict[str, int], times: int = 1) -> Receipt | None:
    return None


assert_type(charge({"id": 1}, currency="USD"), Receipt)
assert_type(charge.with_outcome(order={"id": 1}), Executed | Replayed)
charge()  # type: ignore[call-arg]
charge({"id": 1}, "USD")  # type: ignore[call-arg]
charge(order={"id": "1"})  # type: ignore[dict-item]


async def await_functions() -> None:
    assert_type(await async_charge({"id": 1}, times=2), Receipt | None)
    assert_type(await async_charge.with_outcome(order={"id": 1}), Executed | Replayed)
    waiting: Awaitable[Receipt | None] = async_charge({"id": 1})
    await waiting


def plain(order: int) -> str:
    return ""


async def later(order: int) -> str:
    return ""


direct = idempotent_function(plain, data_keyword_argument="order", persistence_store=store, another_option=1)
assert_type(direct(order=1), str)
async_direct = idempotent_function(later, data_keyword_argument="order", persistence_store=store)
_ = assert_type(async_direct(order=1), Coroutine[Any, Any, str])
__ = assert_type(async_direct.with_outcome(order=1), Coroutine[Any, Any, Executed | Replayed])
takes_a_function: Callable[[int], str] = direct
takes_an_async_function: Callable[[int], Awaitable[str]] = async_direct
idempotent_function(plain, persistence_store=store)  # type: ignore[call-overload]

idempotent_function(plain, data_keyword_argument="order", persistence_store=store, output_serializer=PydanticSerializer)
idempotent_function(plain, data_keyword_argument="order", persistence_store=store, output_serializer=NoOpSerializer())
idempotent_function(
    plain, data_keyword_argument="order", persistence_store=store, output_serializer=CustomDictSerializer(str, lambda data: data)
)


class MySerializer(BaseIdempotencySerializer):
    def to_dict(self, data: Receipt) -> Any:
        return data.id

    def from_dict(self, data: Any) -> Receipt:
        return Receipt(data)


idempotent_function(plain, data_keyword_argument="order", persistence_store=store, output_serializer=MySerializer())


# Methods


class Shop:
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def charge(self, order: int, *, note: str = "") -> str:
        return note

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def async_charge(self, order: int) -> str:
        return ""

    @staticmethod
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def quote(order: int) -> float:
        return 0.0

    @classmethod
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def named(cls, order: int) -> bytes:
        return b""

    def inside(self) -> None:
        assert_type(self.charge(order=1), str)


def call_methods(shop: Shop) -> None:
    assert_type(shop.charge(1, note="x"), str)
    assert_type(Shop.charge(shop, order=1), str)
    assert_type(Shop.charge.with_outcome(shop, 1), Executed | Replayed)
    # A static method through an object, a class method through its class: checkers ask a descriptor, not the decorator above it.
    assert_type(shop.quote(1), float)  # type: ignore[call-arg]
    assert_type(Shop.quote(order=1), float)
    assert_type(shop.named(1), bytes)
    assert_type(Shop.named(order=1), bytes)  # type: ignore[call-arg]
    bound: Callable[[int], str] = shop.charge
    bound(1)
    Shop.charge.override(persistence_store=store)
    shop.charge("1")  # type: ignore[arg-type]
    shop.charge(1, "x")  # type: ignore[call-arg]


async def await_methods(shop: Shop) -> None:
    assert_type(await shop.async_charge(order=1), str)
    assert_type(await Shop.async_charge.with_outcome(shop, 1), Executed | Replayed)


# make_idempotent


class CallableObject:
    def __call__(self, order: int) -> str:
        return ""


class AsyncCallableObject:
    async def __call__(self, order: int) -> str:
        return ""


made = make_idempotent(plain, persistence_store=store, data_keyword_argument="order", config=config)
assert_type(made(1), str)
assert_type(made.with_outcome(order=1), Executed | Replayed)
assert_type(make_idempotent(CallableObject(), persistence_store=store)(1), str)
assert_type(make_idempotent(partial(plain, 1), persistence_store=store)(), str)
assert_type(make_idempotent(Shop().charge, persistence_store=store)(1), str)
assert_type(make_idempotent(len, persistence_store=store)([1]), int)
made("1")  # type: ignore[arg-type]

async_made = make_idempotent(later, persistence_store=my_async_store)
also_async_made = make_idempotent(AsyncCallableObject(), persistence_store=store)


async def await_made() -> None:
    assert_type(await async_made(1), str)
    assert_type(await async_made.with_outcome(1), Executed | Replayed)
    assert_type(await also_async_made(1), str)
    async_made.override(persistence_store=my_async_store)


# DynamoDB in production


class MyOffload:
    def put(self, name: str, body: bytes) -> str:
        return name

    def get(self, location: str, at_most: int) -> bytes:
        return b""


my_offload: ResultOffload = MyOffload()
table = DynamoDBPersistenceLayer("t", result_offload=S3ResultOffload("bucket"), compression="zstd", read_first=True)
DynamoDBPersistenceLayer("t", result_offload=my_offload, compression=None, item_size_threshold=4096, max_result_bytes=10_000_000)
DynamoDBPersistenceLayer("t", replication="strong")
DynamoDBPersistenceLayer("t", replication="eventual", home_region="eu-west-1", region_clients={"eu-west-1": table.client})
DynamoDBPersistenceLayer("t", replication="eventual", home_region=["eu-west-1", "us-east-1"])
DynamoDBPersistenceLayer("t", replication="eventual", home_region=str.upper)
DynamoDBPersistenceLayer("t", replication="eventual", home_region=len)  # type: ignore[arg-type]
DynamoDBPersistenceLayer("t", client="lean")
DynamoDBPersistenceLayer("t", client="aiobotocore")  # type: ignore[arg-type]
DynamoDBPersistenceLayer("t", compression="brotli")  # type: ignore[arg-type]
DynamoDBPersistenceLayer("t", replication="global")  # type: ignore[arg-type]
DynamoDBPersistenceLayer("t", result_offload=store)  # type: ignore[arg-type]


def print_progress(progress: BulkProgress) -> None:
    assert_type(progress.written, int)
    assert_type(progress.checkpoint, dict[str, Any])


try:
    assert_type(sweep_expired(table, progress=print_progress), BulkProgress)
    copy_records(table, table, target_in_use=False, resume_from={"operation": "copy_records"})
    sweep_expired(store)  # type: ignore[arg-type]
except IdempotencyBulkIncompleteError as incomplete:
    assert_type(incomplete.progress, BulkProgress | None)


# Attempts, outcomes, errors


def inside() -> None:
    attempt = current_attempt()
    assert_type(attempt, Attempt)
    assert_type(attempt.key, str)
    assert_type(attempt.owner_token, str)
    assert_type(attempt.generation, int)
    assert_type(attempt.lease_end_ms, int | None)
    assert_type(attempt.downstream_key, str)


# Transactions


def collect() -> None:
    tx = transaction()
    assert_type(tx, Transaction)
    assert_type(current_attempt().transaction(), Transaction)
    assert_type(tx.idempotency_key, str)
    assert_type(tx.actions, tuple[dict[str, Any], ...])
    from boto3.dynamodb.conditions import Attr

    tx.put(TableName="orders", Item={"id": "a", "total": Decimal("1.5")}, ConditionExpression=Attr("id").not_exists())
    tx.update(
        TableName="stock",
        Key={"sku": b"a"},
        UpdateExpression="SET #q = #q - :n",
        ConditionExpression="#q >= :n",
        ExpressionAttributeNames={"#q": "quantity"},
        ExpressionAttributeValues={":n": 1},
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    )
    tx.delete(TableName="carts", Key={"id": {"S": "a"}}, ReturnValuesOnConditionCheckFailure="NONE")
    tx.check(TableName="users", Key={"id": 1}, ConditionExpression="attribute_exists(id)", ExpressionAttributeNames=None)
    tx.put("orders", {"id": "a"})  # type: ignore[call-arg]
    tx.put(TableName="orders")  # type: ignore[call-arg]
    tx.put(TableName="orders", Key={"id": "a"})  # type: ignore[call-arg]
    tx.put(TableName="orders", Item=[("id", "a")])  # type: ignore[arg-type]
    tx.put(TableName=1, Item={"id": "a"})  # type: ignore[arg-type]
    tx.update(TableName="stock", Key={"sku": "a"})  # type: ignore[call-arg]
    tx.delete(TableName="carts", Key={"id": "a"}, ReturnValuesOnConditionCheckFailure="ALL_NEW")  # type: ignore[arg-type]
    tx.delete(TableName="carts", Key={"id": "a"}, ReturnValues="ALL_OLD")  # type: ignore[call-arg]
    tx.delete(TableName="carts", Key={"id": "a"}, ExpressionAttributeNames={"#a": 1})  # type: ignore[dict-item]
    tx.check(TableName="users", Key={"id": 1})  # type: ignore[call-arg]
    tx.check(TableName="users", Key={"id": 1}, ConditionExpression=None)  # mypy knows nothing of boto3's conditions
    transaction("key")  # type: ignore[call-arg]


def count_once(client: Any) -> None:
    applied = apply_once(
        client,
        TableName="counters",
        Key={"day": "2026-11-21"},
        UpdateExpression="ADD #n :one",
        ConditionExpression="attribute_exists(#n)",
        ExpressionAttributeNames={"#n": "orders"},
        ExpressionAttributeValues={":one": 1},
        change_id="order-1",
        changes_attr="seen",
        max_changes=100,
    )
    assert_type(applied, bool)
    apply_once(client, TableName="counters", Key={"day": "1"}, UpdateExpression="ADD n :n", change_id=None)
    apply_once(client, TableName="counters", Key={"day": "1"})  # type: ignore[call-arg]
    apply_once(client, "counters", {"day": "1"}, "ADD n :n")  # type: ignore[call-arg]
    apply_once(client, TableName="counters", Key={"day": "1"}, UpdateExpression="ADD n :n", change_id=1)  # type: ignore[arg-type]
    apply_once(client, TableName="counters", Key={"day": "1"}, UpdateExpression="ADD n :n", max_changes="1")  # type: ignore[arg-type]


def explain(canceled: IdempotencyTransactionCanceledError) -> None:
    assert_type(canceled.reasons, tuple[CancellationReason, ...])
    for reason in canceled.reasons:
        assert_type(reason.action, str)
        assert_type(reason.table_name, str)
        assert_type(reason.code, str | None)
        assert_type(reason.message, str)
        assert_type(reason.item, dict[str, Any] | None)
        reason.code = None  # type: ignore[misc]
    IdempotencyTransactionCanceledError("m", "d", reasons=canceled.reasons)
    IdempotencyTransactionCanceledError("m", reasons=["x"])  # type: ignore[arg-type]


match charge.with_outcome({"id": 1}):
    case Executed(value, record):
        assert_type(value, Any)
        assert_type(record, DataRecord | None)
    case Replayed(value, stored):
        assert_type(stored, DataRecord)

try:
    charge({"id": 1})
except IdempotencyAlreadyInProgressError as in_progress:
    assert_type(in_progress.record, DataRecord | None)
    assert_type(in_progress.message, str)
    assert_type(in_progress.details, str | None)
except IdempotencyLeaseLostError as lost:
    assert_type(lost.record, DataRecord | None)
except IdempotencyTransactionCanceledError as not_written:
    assert_type(not_written.message, str)
    explain(not_written)


def annotated(function: Idempotent[[int], str], async_function: AsyncIdempotent[[int], str]) -> None:
    """Both protocols can be written in a user's own annotations."""
    assert_type(function(1), str)
    _ = assert_type(async_function(1), Coroutine[Any, Any, str])


annotated(direct, async_direct)
annotated(made, async_made)


# Caches

cache = CachePersistenceLayer("", "localhost", 6379, "user", "password", 0, "standalone", ssl=False)
CachePersistenceLayer(url="rediss://localhost:6379/0", min_replicas_ack=1)
CachePersistenceLayer(client=object(), expiry_attr="ttl", owner_token_attr="owner")
CachePersistenceLayer(host="localhost", mode="sentinel")  # type: ignore[arg-type]
assert_type(RedisCachePersistenceLayer(host="localhost"), CachePersistenceLayer)
awaited_cache = AsyncCachePersistenceLayer(host="localhost", mode="cluster")
sync_layer: BasePersistenceLayer = cache
async_layer: AsyncBasePersistenceLayer = awaited_cache


async def close_cache() -> None:
    assert_type(await awaited_cache.aclose(), None)


def unreachable(error: IdempotencyUnreachableError) -> str:
    return error.message
