"""Tables full of records, and a client between them and the library that can be told to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faults import FaultyClient

from idempotency import DataRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

    from idempotency import DynamoDBPersistenceLayer
    from persistence._dynamodb_items import Item

    NewStore = Callable[..., DynamoDBPersistenceLayer]

#: A request holds 16 MB: so many of the largest items, each of whose bytes may take six in JSON.
AT_ONCE = 6

#: Every kind of layout, as arguments of a store.
LAYOUTS: dict[str, dict[str, Any]] = {
    "simple": {},
    "odd names": {
        "key_attr": "key",
        "expiry_attr": "ttl",
        "status_attr": "state",
        "data_attr": "0data",
        "generation_attr": "a.b",
    },
    "composite": {"sort_key_attr": "sk", "static_pk_value": "idempotency#payments"},
}


class BulkClient(FaultyClient):
    """As `FaultyClient`, with the operations of bulk work; *direct* is boto3's client, whatever this one is."""

    def __init__(self, client: Any, direct: Any) -> None:
        super().__init__(client)
        self.direct = direct

    @property
    def meta(self) -> Any:
        return self.client.meta

    def scan(self, **request: Any) -> Any:
        return self._call("scan", request)

    def query(self, **request: Any) -> Any:
        return self._call("query", request)

    def batch_write_item(self, **request: Any) -> Any:
        return self._call("batch_write_item", request)


def faulty(store: DynamoDBPersistenceLayer) -> BulkClient:
    """The store's client, as what it is."""
    assert isinstance(store.client, BulkClient)
    return store.client


def completed(clock: FakeClock, key: str = "k", *, expires_s: int = 60, **options: Any) -> DataRecord:
    """A completed record that expires in so many seconds."""
    options = {"response_data": f'"{key}"', "owner_token": f"token of {key}", "generation": 1, **options}
    return DataRecord(key, "COMPLETED", clock() // 1000 + expires_s, clock() - 5_000, **options)


def in_progress(
    clock: FakeClock, key: str = "k", *, lease_ms: int | None = 10_000, expires_s: int = 60, **options: Any
) -> DataRecord:
    """A claim whose lease ends in so many milliseconds."""
    options = {"owner_token": f"token of {key}", "generation": 1, **options}
    lease_end_ms = None if lease_ms is None else clock() + lease_ms
    return DataRecord(key, "INPROGRESS", clock() // 1000 + expires_s, lease_end_ms, **options)


def put(store: DynamoDBPersistenceLayer, *records: DataRecord, **extra: Any) -> None:
    """Write records as they are, past the store and its faults; *extra* are attributes that are not the library's."""
    puts = [{"PutRequest": {"Item": store._items.item(record) | extra}} for record in records]
    for start in range(0, len(puts), AT_ONCE):
        answer = faulty(store).direct.batch_write_item(RequestItems={store.table_name: puts[start : start + AT_ONCE]})
        assert answer["UnprocessedItems"] == {}


def put_item(store: DynamoDBPersistenceLayer, item: Item) -> None:
    faulty(store).direct.put_item(TableName=store.table_name, Item=item)


def items(store: DynamoDBPersistenceLayer) -> list[Item]:
    """All that is in the table, whatever it is."""
    pages = faulty(store).direct.get_paginator("scan").paginate(TableName=store.table_name, ConsistentRead=True)
    return [item for page in pages for item in page["Items"]]


def records(store: DynamoDBPersistenceLayer) -> dict[str, DataRecord]:
    """The records of a table that holds nothing else."""
    found = [store._items.record(item) for item in items(store)]
    return {record.key: record for record in found}


def keys(store: DynamoDBPersistenceLayer) -> list[str]:
    return sorted(records(store))


def filled(store: DynamoDBPersistenceLayer, clock: FakeClock, count: int, **options: Any) -> list[str]:
    """Write so many completed records, and return their keys."""
    names = [f"key-{number:03}" for number in range(count)]
    put(store, *(completed(clock, name, **options) for name in names))
    return names
