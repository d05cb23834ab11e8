"""Transactions of global tables: strong ones have none, and eventual ones have them in the record's home Region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from engines.tables import create_table, shared_client
from faults import KEY, ORDER, FaultyClient, Form, keyed
from replication.replicas import HERE, THERE
from stores import CLIENTS, dynamodb

from idempotency import DynamoDBPersistenceLayer, IdempotencyPersistenceConfigError, transaction

if TYPE_CHECKING:
    from doubles import FakeClock


class RegionsClient(FaultyClient):
    """A client that tells its Region, as boto3's do, and what was sent with it."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.meta = client.meta

    @property
    def sent(self) -> list[str]:
        return [operation for operation, _ in self.requests]


class Regions:
    """The record's table and one of the caller's own, in both Regions; nothing is replicated here."""

    def __init__(self, endpoint: str, clock: FakeClock, client_kind: str) -> None:
        self.clock = clock
        self.direct = {region: shared_client(endpoint, region) for region in (HERE, THERE)}
        self.clients = {region: RegionsClient(CLIENTS[client_kind](endpoint, region)) for region in (HERE, THERE)}
        self.name, self.orders = (create_table(self.direct[HERE]) for _ in range(2))
        for table in (self.name, self.orders):
            create_table(self.direct[THERE], table)

    def store(self, **options: Any) -> DynamoDBPersistenceLayer:
        """The store of the function in the first Region."""
        store = DynamoDBPersistenceLayer(
            self.name, replication="eventual", boto3_client=self.clients[HERE], region_clients=self.clients, **options
        )
        store.clock_ms, store.sleep_ms = self.clock, self.clock.sleep_ms
        return store

    def call(self, form: Form, store: DynamoDBPersistenceLayer, table: str) -> Any:
        def place(_event: Any) -> str:
            transaction().put(TableName=table, Item={"id": "order"})
            return "placed"

        return form.handler(place, store, keyed())(ORDER, LambdaContext(clock=self.clock))

    def has_order(self, region: str) -> bool:
        return "Item" in self.direct[region].get_item(TableName=self.orders, Key={"id": {"S": "order"}})


@pytest.fixture
def regions(dynamodb_local: str, clock: FakeClock, client_kind: str) -> Regions:
    return Regions(dynamodb_local, clock, client_kind)


def arn(region: str, table: str) -> str:
    return f"arn:aws:dynamodb:{region}:000000000000:table/{table}"


def test_a_strong_table_has_no_transactions_and_its_key_is_freed(dynamodb_local: str, clock: FakeClock, form: Form) -> None:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/multi-region-strong-consistency-gt.html."""
    made = dynamodb(clock, dynamodb_local, replication="strong")
    call = form.handler(lambda _event: transaction(), made.store)
    with pytest.raises(IdempotencyPersistenceConfigError, match="is a global table with strong consistency, which has no trans"):
        call(ORDER, LambdaContext(clock=clock))

    assert made.peek(KEY) is None


@pytest.mark.parametrize("home", [HERE, THERE])
def test_a_transaction_is_sent_to_the_home_region_of_its_key(regions: Regions, form: Form, home: str) -> None:
    other = THERE if home == HERE else HERE

    assert regions.call(form, regions.store(home_region=home), regions.orders) == "placed"
    assert regions.clients[home].sent == ["put_item", "transact_write_items"]
    assert regions.clients[other].sent == []
    assert regions.has_order(home)
    assert not regions.has_order(other)


@pytest.mark.parametrize("home", [HERE, THERE])
def test_a_table_of_another_region_than_the_keys_home_is_refused_before_anything_is_sent(
    regions: Regions, form: Form, home: str
) -> None:
    """Wherever the function itself runs."""
    other = THERE if home == HERE else HERE
    with pytest.raises(ValueError, match=f"is in another Region than {home}, where the record is; a transaction has one Region"):
        regions.call(form, regions.store(home_region=home), arn(other, regions.orders))

    assert regions.clients[home].sent == ["put_item", "delete_item"]
    assert regions.clients[other].sent == []


@pytest.mark.parametrize("home", [HERE, THERE])
def test_a_table_may_be_named_by_its_arn_in_the_keys_home(regions: Regions, form: Form, home: str) -> None:
    """DynamoDB Local's own tables are all of the Region `ddblocal`, so the request is answered here."""
    regions.clients[home].always("transact_write_items", lambda _send: {})

    assert regions.call(form, regions.store(home_region=home), arn(home, regions.orders)) == "placed"
    [_, (_, request)] = regions.clients[home].requests
    assert [action["TableName"] for each in request["TransactItems"] for action in each.values()] == [
        regions.name,
        arn(home, regions.orders),
    ]


def test_without_home_regions_a_transaction_is_sent_where_the_function_runs(regions: Regions, form: Form) -> None:
    store = DynamoDBPersistenceLayer(regions.name, replication="eventual", boto3_client=regions.clients[THERE])
    store.clock_ms, store.sleep_ms = regions.clock, regions.clock.sleep_ms

    assert regions.call(form, store, regions.orders) == "placed"
    assert regions.has_order(THERE)


def test_a_record_that_another_region_replaced_fences_the_transaction_off(regions: Regions, form: Form) -> None:
    """Both Regions had claimed the key; the other one's later claim has arrived, and nothing of ours is written."""
    store = DynamoDBPersistenceLayer(regions.name, replication="eventual", boto3_client=regions.clients[HERE])
    store.clock_ms, store.sleep_ms = regions.clock, regions.clock.sleep_ms
    here = regions.clients[HERE].client

    def place(_event: Any) -> str:
        transaction().put(TableName=regions.orders, Item={"id": "order"})
        arrived = {
            "id": {"S": KEY},
            "status": {"S": "COMPLETED"},
            "expiration": {"N": str(regions.clock.now_ms // 1000 + 3600)},
            "data": {"S": '"placed there"'},
            "owner_token": {"S": "theirs"},
            "generation": {"N": "1"},
            "region": {"S": THERE},
        }
        here.put_item(TableName=regions.name, Item=arrived)
        return "placed here"

    call = form.handler(place, store, keyed())

    assert call(ORDER, LambdaContext(clock=regions.clock)) == "placed there"
    assert not regions.has_order(HERE)
