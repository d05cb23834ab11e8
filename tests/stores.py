"""Every store that the library ships, as the suites see it.  A new backend is one more factory here and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from boto3.dynamodb.types import TypeDeserializer
from engines.tables import create_table, shared_client, shared_lean_client

from idempotency import (
    AsyncCachePersistenceLayer,
    CachePersistenceLayer,
    DynamoDBPersistenceLayer,
    InMemoryPersistenceLayer,
)
from persistence._large_results import ITEM_SIZE_THRESHOLD, MAX_RESULT_BYTES, LargeResults

if TYPE_CHECKING:
    from doubles import FakeClock

    from persistence.base import BasePersistenceLayer

Peek = Callable[[str], dict[str, Any] | None]


@dataclass
class Made:
    """A fresh store on a fake clock, and *peek*: the raw record by the idempotency key, read without the store.

    What `peek` returns has Powertools' default attribute names, whatever those of the store; None if there is no record.
    *new_awaited* makes an async store on the same records, where the backend has one of its own.  *client* is boto3's for the
    table, past the store's own, where there is one.
    """

    store: BasePersistenceLayer
    peek: Peek
    new_awaited: Callable[[], AsyncCachePersistenceLayer] | None = None
    client: Any = None


def memory(clock: FakeClock, _endpoint: str) -> Made:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    store.sleep_ms = clock.sleep_ms

    def peek(key: str) -> dict[str, Any] | None:
        record = store._records.get(key)
        if record is None:
            return None
        raw = {
            "id": record.idempotency_key,
            "status": record.stored_status,
            "expiration": record.expiry_timestamp,
            "in_progress_expiration": record.in_progress_expiry_timestamp,
            "data": record.response_data or None,
            "validation": record.payload_hash or None,
            "owner_token": record.owner_token or None,
            "generation": record.generation,
            "holder": record.holder or None,
            "result_not_kept": None if record.result_kept else True,
        }
        return {name: value for name, value in raw.items() if value is not None}

    return Made(store, peek)


#: Names that need placeholders: a reserved word, a dot, a leading digit.
ODD_NAMES = {
    "key_attr": "key",
    "sort_key_attr": "sort.key",
    "expiry_attr": "ttl",
    "in_progress_expiry_attr": "lease.end",
    "status_attr": "state",
    "data_attr": "0data",
    "validation_key_attr": "hash",
    "owner_token_attr": "owner",
    "generation_attr": "counter",
    "holder_attr": "by",
    "result_not_kept_attr": "lost",
    "region_attr": "at",
}
DEFAULT_NAMES = {
    "key_attr": "id",
    "sort_key_attr": "sk",
    "expiry_attr": "expiration",
    "in_progress_expiry_attr": "in_progress_expiration",
    "status_attr": "status",
    "data_attr": "data",
    "validation_key_attr": "validation",
    "owner_token_attr": "owner_token",
    "generation_attr": "generation",
    "holder_attr": "holder",
    "result_not_kept_attr": "result_not_kept",
    "region_attr": "region",
}


#: The clients that a DynamoDB store may have: boto3's, and the library's own.
CLIENTS: dict[str, Callable[..., Any]] = {"boto3": shared_client, "lean": shared_lean_client}


def dynamodb(clock: FakeClock, endpoint: str, client_kind: str = "boto3", **options: Any) -> Made:
    """A DynamoDB store on a table of its own; whatever its client, the table is made and looked at with boto3's."""
    client = shared_client(endpoint)
    key_attr, sort_key_attr = options.get("key_attr", "id"), options.get("sort_key_attr")
    table = create_table(client, key_attr=key_attr, sort_key_attr=sort_key_attr)
    store = DynamoDBPersistenceLayer(table, boto3_client=CLIENTS[client_kind](endpoint), **options)
    store.clock_ms = clock
    store.sleep_ms = clock.sleep_ms
    store._checked_table = table  # so that the first claim of a test is one request, as all later ones are

    def peek(key: str) -> dict[str, Any] | None:
        primary = {key_attr: {"S": key}}
        if sort_key_attr:
            primary = {key_attr: {"S": options["static_pk_value"]}, sort_key_attr: {"S": key}}
        item = client.get_item(TableName=table, Key=primary, ConsistentRead=True).get("Item")
        if item is None:
            return None
        plain = TypeDeserializer().deserialize({"M": item})
        names = {options.get(option, default): default for option, default in DEFAULT_NAMES.items()}
        return {names.get(name, name): int(value) if hasattr(value, "as_tuple") else value for name, value in plain.items()}

    return Made(store, peek, client=client)


def dynamodb_lean(clock: FakeClock, endpoint: str) -> Made:
    return dynamodb(clock, endpoint, "lean")


def large_results(made: Made, **options: Any) -> None:
    """Give the DynamoDB store other options for large results; as in its constructor, `offload` for `result_offload`."""
    defaults = {"compression": "gzip", "item_size_threshold": ITEM_SIZE_THRESHOLD, "max_result_bytes": MAX_RESULT_BYTES}
    made.store._results = LargeResults(made.store._items, **{**defaults, "offload": None, **options})


def dynamodb_composite(clock: FakeClock, endpoint: str) -> Made:
    return dynamodb(clock, endpoint, sort_key_attr="sk", static_pk_value="idempotency#payments")


def dynamodb_odd_names(clock: FakeClock, endpoint: str) -> Made:
    """On a composite table, too: the layout that has nothing in common with the default one."""
    return dynamodb(clock, endpoint, static_pk_value="idempotency#payments", **ODD_NAMES)


@cache
def shared_cache_client(new_client: Callable[..., Any], url: str, **options: Any) -> Any:
    """One client for all tests, because each has a pool of connections."""
    return new_client(url, **options)


def cached(
    clock: FakeClock,
    url: str,
    new_client: Callable[..., Any] = redis.Redis.from_url,
    new_async_client: Callable[..., Any] = redis.asyncio.Redis.from_url,
    client_options: tuple[tuple[str, Any], ...] = (),
    **options: Any,
) -> Made:
    """A store on an emptied server."""
    client = shared_cache_client(new_client, url, **dict(client_options))
    client.flushall()
    store = CachePersistenceLayer(client=client, **options)
    store.clock_ms = clock
    store.sleep_ms = clock.sleep_ms

    def peek(key: str) -> dict[str, Any] | None:
        text = client.get(key)
        if text is None:
            return None
        names = {options.get(option, default): default for option, default in DEFAULT_NAMES.items()}
        return {"id": key, **{names.get(name, name): value for name, value in json.loads(text).items()}}

    def new_awaited() -> AsyncCachePersistenceLayer:
        awaited = AsyncCachePersistenceLayer(client=new_async_client(url, **dict(client_options)), **options)
        awaited.clock_ms = clock
        return awaited

    return Made(store, peek, new_awaited)


def cached_odd_names(clock: FakeClock, url: str) -> Made:
    """With valkey-py, and a client whose answers are texts."""
    names = {option: name for option, name in ODD_NAMES.items() if option not in ("key_attr", "sort_key_attr", "region_attr")}
    clients = valkey.Valkey.from_url, valkey.asyncio.Valkey.from_url
    return cached(clock, url, *clients, (("decode_responses", True),), **names)


def clustered(clock: FakeClock, url: str) -> Made:
    return cached(clock, url, redis.RedisCluster.from_url, redis.asyncio.RedisCluster.from_url)


#: The stores that decide by code, scripts or expressions of their own; the whole contract is told on each of them.
#: (factory, the fixture that gives its endpoint)
STORES = [
    pytest.param((memory, None), id="memory"),
    pytest.param((dynamodb, "dynamodb_local"), id="dynamodb", marks=pytest.mark.dynamodb_local),
    pytest.param((dynamodb_lean, "dynamodb_local"), id="dynamodb-lean", marks=pytest.mark.dynamodb_local),
    pytest.param((dynamodb_odd_names, "dynamodb_local"), id="dynamodb-odd-names", marks=pytest.mark.dynamodb_local),
    pytest.param((cached, "valkey_server"), id="valkey", marks=pytest.mark.valkey),
    pytest.param((cached_odd_names, "valkey_server"), id="valkey-odd-names", marks=pytest.mark.valkey),
    pytest.param((cached, "redis_server"), id="redis", marks=pytest.mark.redis),
]

#: Other ways to the same decisions: a server for demos, a cluster, TLS.  Some of the contract is told there.
OTHER_WAYS = [
    pytest.param((dynamodb, "moto_server"), id="moto", marks=pytest.mark.moto),
    pytest.param((clustered, "valkey_cluster"), id="valkey-cluster", marks=pytest.mark.valkey_cluster),
    pytest.param((cached, "valkey_tls"), id="valkey-tls", marks=pytest.mark.valkey_tls),
]


def by_id(*ids: str) -> list[Any]:
    """Some of the stores."""
    found = {param.id: param for param in STORES + OTHER_WAYS}
    return [found[each] for each in ids]
