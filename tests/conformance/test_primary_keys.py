"""A table whose primary key is not the store's: refused before the function runs, by an error that names the attributes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engines.tables import create_table
from stores import by_id

from idempotency import make_idempotent
from persistence.datarecord import DataRecord
from persistence.dynamodb import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyPersistenceConfigError, IdempotencyPersistenceLayerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock
    from stores import Made

on_every_engine = pytest.mark.parametrize("made", by_id("dynamodb", "dynamodb-lean", "moto"), indirect=True)


class Asked:
    """A client that notes what it is asked for, and may answer in the place of the service."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[], Any]] = {}

    def __getattr__(self, operation: str) -> Any:
        def ask(**request: Any) -> Any:
            self.asked.append(operation)
            answer = self.answers.get(operation)
            return getattr(self.client, operation)(**request) if answer is None else answer()

        return ask


def called(store: DynamoDBPersistenceLayer, *events: str, is_async: bool = False) -> tuple[list[str], Exception | None]:
    """For which events a function ran that is called with each, and with what the last one failed."""
    runs: list[str] = []

    def work(event: str) -> str:
        runs.append(event)
        return event

    async def awork(event: str) -> str:
        return work(event)

    failure = None
    for event in events:
        try:
            if is_async:
                asyncio.run(make_idempotent(awork, persistence_store=store)(event))
            else:
                make_idempotent(work, persistence_store=store)(event)
        except IdempotencyPersistenceLayerError as error:
            failure = error
    assert failure is None or isinstance(failure.__cause__, IdempotencyPersistenceConfigError)
    return runs, failure


@on_every_engine
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("sort_key_attr", ["sk", "id"], ids=["no sort key", "the sort key is the partition key"])
def test_a_table_without_the_sort_key_is_refused_before_the_function_runs(
    made: Made, clock: FakeClock, sort_key_attr: str, is_async: bool
) -> None:
    """It takes the put, as an item with one more attribute."""
    key_attr = "pk" if sort_key_attr == "id" else "id"
    client = made.store.client  # of a table with the partition key "id" alone
    store = DynamoDBPersistenceLayer(
        made.store.table_name, boto3_client=client, key_attr=key_attr, sort_key_attr=sort_key_attr, static_pk_value="payments"
    )
    store.clock_ms = clock

    runs, error = called(store, "one", is_async=is_async)

    assert runs == []
    assert f"key_attr='{key_attr}', a string, and sort_key_attr='{sort_key_attr}', a string" in str(error)
    assert made.client.scan(TableName=store.table_name)["Items"] == []


def composite(made: Made, clock: FakeClock, table: str | None = None) -> tuple[DynamoDBPersistenceLayer, Asked]:
    """A new store on a composite table, and its client."""
    client = Asked(made.store.client)
    table = table or create_table(made.client, key_attr="id", sort_key_attr="sk")
    store = DynamoDBPersistenceLayer(table, boto3_client=client, sort_key_attr="sk", static_pk_value="payments")
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store, client


@on_every_engine
def test_a_store_with_a_sort_key_reads_before_its_first_claim_and_not_again(made: Made, clock: FakeClock) -> None:
    store, client = composite(made, clock)

    assert called(store, "one", "two") == (["one", "two"], None)
    assert client.asked == ["get_item", "put_item", "update_item", "put_item", "update_item"]


@on_every_engine
def test_a_table_that_is_put_in_the_place_of_another_is_checked_as_well(made: Made, clock: FakeClock) -> None:
    store, _ = composite(made, clock)
    called(store, "one")
    good, store.table_name = store.table_name, made.store.table_name

    runs, error = called(store, "two")

    assert runs == []
    assert made.store.table_name in str(error)
    store.table_name = good
    assert called(store, "two") == (["two"], None)


@on_every_engine
def test_a_duplicate_that_comes_first_is_answered_by_that_read(made: Made, clock: FakeClock) -> None:
    store, _ = composite(made, clock)
    called(store, "one")
    again, client = composite(made, clock, store.table_name)

    assert called(again, "one") == ([], None)
    assert client.asked == ["get_item"]


def throttled() -> Any:
    raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "..."}}, "GetItem")


@pytest.mark.parametrize("made", by_id("dynamodb"), indirect=True)
def test_a_read_that_fails_for_another_reason_stops_no_claim_and_is_made_again(made: Made, clock: FakeClock) -> None:
    store, client = composite(made, clock)
    client.answers["get_item"] = throttled

    assert called(store, "one") == (["one"], None)
    del client.answers["get_item"]
    assert called(store, "two", "three") == (["two", "three"], None)
    assert client.asked.count("get_item") == 2


@on_every_engine
def test_the_record_of_another_key_refuses_nobody(made: Made, clock: FakeClock) -> None:
    """Should the read have failed: all records of such a table are one item."""
    store, client = composite(made, clock, made.store.table_name)
    client.answers["get_item"] = throttled
    store.claim(offer("first"))

    runs, error = called(store, "one")

    assert runs == []
    assert "key_attr='id', a string, and sort_key_attr='sk', a string" in str(error)
    assert "with the record of another key" in str(error)


def offer(key: str, **changes: Any) -> DataRecord:
    return DataRecord(key, "INPROGRESS", 1_900_000_000, 1_900_000_000_000, owner_token="a", generation=1).replace(**changes)


@pytest.mark.parametrize(
    "item",
    [
        {"id": {"S": "payments"}, "sk": {"S": "another"}, "status": {"S": "INPROGRESS"}},
        {"id": {"S": "receipts"}, "sk": {"S": "key"}, "status": {"S": "INPROGRESS"}},
        {"sk": {"S": "key"}, "status": {"S": "INPROGRESS"}},
        {"id": {"S": "payments"}, "status": {"S": "INPROGRESS"}},
        {"id": {"S": "payments"}, "sk": {"S": "key"}},
        {"id": {"S": "payments"}, "sk": {"S": "key"}, "status": {"S": "INPROGRESS"}, "expiration": {"S": "tomorrow"}},
    ],
    ids=["another key", "another partition", "no partition key", "no sort key", "no status", "an expiry of another type"],
)
@pytest.mark.parametrize("made", by_id("dynamodb"), indirect=True)
def test_an_item_that_is_not_the_keys_record_is_told_of_whatever_brings_it(
    made: Made, clock: FakeClock, item: dict[str, Any]
) -> None:
    """The attributes that do not fit are named, and the item's other content is not."""
    store, client = composite(made, clock)

    def refused() -> Any:
        response: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "..."}, "Item": item}
        raise ClientError(response, "PutItem")

    client.answers = {"get_item": lambda: {"Item": item}, "put_item": refused, "update_item": refused, "delete_item": refused}
    uses: list[Callable[[], Any]] = [
        lambda: store.claim(offer("key")),
        lambda: store.fetch("key"),
        lambda: store.complete(offer("key", status="COMPLETED")),
        lambda: store.renew(offer("key")),
        lambda: store.release(offer("key")),
    ]
    for use in uses:
        with pytest.raises(IdempotencyPersistenceLayerError) as raised:
            use()
        assert isinstance(raised.value.__cause__, IdempotencyPersistenceConfigError)
        assert store.table_name in str(raised.value)
        assert "correct the store's attribute names, or give it another table" in str(raised.value)
        assert "tomorrow" not in str(raised.value)
        assert "receipts" not in str(raised.value)


@pytest.mark.parametrize("made", by_id("dynamodb"), indirect=True)
def test_without_a_sort_key_the_record_must_be_the_keys_too(made: Made, clock: FakeClock) -> None:
    """A proxy or a cache in front of the table may answer with another's."""
    client = Asked(made.store.client)
    client.answers["get_item"] = lambda: {"Item": {"id": {"S": "another"}, "status": {"S": "COMPLETED"}}}
    store = DynamoDBPersistenceLayer(made.store.table_name, boto3_client=client)  # type: ignore[arg-type]
    store.clock_ms = clock

    with pytest.raises(IdempotencyPersistenceLayerError, match="key_attr='id', a string, and no sort key"):
        store.fetch("key")
