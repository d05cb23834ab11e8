"""What is promised of the DynamoDB stores beyond the common contract: the item, its limits, and the service's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from boto3.dynamodb.types import Binary
from faults import SERVICE_ERRORS
from stores import ODD_NAMES, by_id, large_results

from idempotency import make_idempotent
from persistence.dynamodb import DynamoDBPersistenceLayer
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
)

if TYPE_CHECKING:
    from doubles import FakeClock
    from stores import Made
    from verbs import Verbs

    from persistence.datarecord import DataRecord

KEY = "orders.handler#1"

TABLES = by_id("dynamodb", "dynamodb-lean", "dynamodb-odd-names", "moto")
on_every_table = pytest.mark.parametrize("made", TABLES, indirect=True)

DEFAULT_NAMES = {
    "id", "expiration", "in_progress_expiration", "status", "data", "validation", "owner_token", "generation", "holder",
}  # fmt: skip
NAMES = {
    "dynamodb": DEFAULT_NAMES,
    "dynamodb-lean": DEFAULT_NAMES,
    "dynamodb-odd-names": set(ODD_NAMES.values()) - {ODD_NAMES["result_not_kept_attr"], ODD_NAMES["region_attr"]},
    "moto": DEFAULT_NAMES,
}


def raw_items(made: Made) -> list[dict[str, Any]]:
    """The table's items, as the service has them."""
    items: list[dict[str, Any]] = made.client.scan(TableName=made.store.table_name, ConsistentRead=True)["Items"]
    return items


def add_attribute(made: Made, name: str, value: dict[str, Any]) -> None:
    """What an operator, or a newer version of this library, might add to the only item."""
    (item,) = raw_items(made)
    described = made.client.describe_table(TableName=made.store.table_name)
    key_names = [key["AttributeName"] for key in described["Table"]["KeySchema"]]
    made.client.update_item(
        TableName=made.store.table_name,
        Key={name: item[name] for name in key_names},
        UpdateExpression="SET #name = :value",
        ExpressionAttributeNames={"#name": name},
        ExpressionAttributeValues={":value": value},
    )


@on_every_table
def test_unknown_attributes_survive_renewal_and_completion(verbs: Verbs, made: Made) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a"))
    add_attribute(made, "note", {"S": "looked at by ops"})

    verbs.renew(verbs.renewed(granted, lease_ms=2_000))
    verbs.complete(verbs.completed(granted, '"A"'))

    (item,) = raw_items(made)
    assert item["note"] == {"S": "looked at by ops"}
    assert verbs.fetch(KEY).response_data == '"A"'


@on_every_table
def test_unknown_attributes_go_with_the_next_claim(verbs: Verbs, made: Made, clock: FakeClock) -> None:
    verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
    add_attribute(made, "note", {"S": "looked at by ops"})
    clock.advance(ms=1_001)

    verbs.claim(verbs.offer(KEY, "b"))

    (item,) = raw_items(made)
    assert "note" not in item


@on_every_table
def test_a_renewal_that_comes_after_a_later_one_is_refused_by_the_service_and_no_lost_lease(verbs: Verbs, made: Made) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
    verbs.renew(verbs.renewed(granted, lease_ms=60_000))
    before = raw_items(made)

    verbs.renew(verbs.renewed(granted, lease_ms=59_999))

    assert raw_items(made) == before


@pytest.mark.parametrize(
    ("made", "names"),
    [pytest.param(*param.values, NAMES[param.id], id=param.id, marks=param.marks) for param in TABLES],
    indirect=["made"],
)
def test_each_of_the_stores_names_is_used_and_no_other(verbs: Verbs, made: Made, names: set[str]) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h", holder="request-1"))
    verbs.complete(verbs.completed(granted, '"A"'))

    (item,) = raw_items(made)

    assert item.keys() == names


@on_every_table
@pytest.mark.parametrize("size", [400 * 1024 + 1, 400 * 1024 - 20], ids=["result alone", "with the other attributes"])
def test_a_result_that_exceeds_an_item_leaves_the_claim_as_it_is(verbs: Verbs, made: Made, size: int) -> None:
    large_results(made, compression=None)
    granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h"))
    before = made.peek(KEY)

    with pytest.raises(IdempotencyResultNotKeptError, match="a DynamoDB item holds 409600. Give the store a result_offload$"):
        verbs.complete(verbs.completed(granted, '"' + "x" * (size - 2) + '"'))

    assert made.peek(KEY) == before
    verbs.complete(verbs.without_result(granted))
    assert made.peek(KEY)["result_not_kept"] is True


@on_every_table
def test_a_result_that_exceeds_an_item_with_attributes_of_others_leaves_the_claim_as_it_is(verbs: Verbs, made: Made) -> None:
    large_results(made, compression=None)
    granted = verbs.claim(verbs.offer(KEY, "a"))
    add_attribute(made, "someone_elses", {"B": bytes(20_000)})
    before = made.peek(KEY)

    with pytest.raises(IdempotencyResultNotKeptError, match="exceeds what a DynamoDB item holds$"):
        verbs.complete(verbs.completed(granted, '"' + "x" * 400_000 + '"'))

    assert made.peek(KEY) == before


@on_every_table
def test_a_result_of_many_bytes_per_character_that_exceeds_an_item_leaves_the_claim_as_it_is(verbs: Verbs, made: Made) -> None:
    large_results(made, compression=None)
    granted = verbs.claim(verbs.offer(KEY, "a"))
    before = made.peek(KEY)

    with pytest.raises(IdempotencyResultNotKeptError):
        verbs.complete(verbs.completed(granted, '"' + "日" * 200_000 + '"'))

    assert made.peek(KEY) == before


@on_every_table
def test_a_result_just_within_an_item_is_kept_as_it_is_without_compression(verbs: Verbs, made: Made) -> None:
    large_results(made, compression=None)
    data = '"' + "x" * 400_000 + '"'

    verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a")), data))

    assert made.peek(KEY)["data"] == data


@on_every_table
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_result_over_the_threshold_is_stored_compressed_and_loads_as_it_was(verbs: Verbs, made: Made, compression: Any) -> None:
    """The largest plain item is as large as the threshold, to the byte."""
    large_results(made, compression=compression)
    granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h"))
    room = 350 * 1024 - made.store._items.size(verbs.completed(granted, '""'))
    most = verbs.completed(granted, '"' + "x" * room + '"')
    verbs.complete(most)
    assert made.peek(KEY)["data"] == most.response_data
    assert verbs.fetch(KEY).packed_result is None

    more = verbs.completed(granted, '"' + "x" * (room + 1) + '"')
    verbs.complete(more)

    stored = verbs.fetch(KEY)
    assert isinstance(made.peek(KEY)["data"], Binary)
    assert len(stored.packed_result) < 1024
    assert stored.response_data == ""
    assert verbs.load(stored).response_data == more.response_data
    assert verbs.load(stored).payload_hash == "h"


@on_every_table
def test_only_a_packed_result_is_loaded(verbs: Verbs, made: Made) -> None:
    verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a")), '"A"'))
    stored = verbs.fetch(KEY)

    assert verbs.load(stored) is stored


@on_every_table
@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("claim", "Failed to save in progress record to idempotency store"),
        ("fetch", "Failed to get record from idempotency store"),
        ("complete", "Failed to update record state to success in idempotency store"),
        ("release", "Failed to delete record from idempotency store"),
        ("renew", "Failed to renew the lease in the idempotency store"),
    ],
)
def test_the_services_error_is_named_and_chained(verbs: Verbs, made: Made, verb: str, message: str) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a"))
    arguments = {
        "claim": granted,
        "fetch": KEY,
        "complete": verbs.completed(granted, '"A"'),
        "release": granted,
        "renew": granted,
    }
    made.store.table_name = "no-such-table"

    with pytest.raises(IdempotencyPersistenceLayerError) as failure:
        getattr(verbs, verb)(arguments[verb])

    cause = failure.value.__cause__
    assert isinstance(cause, SERVICE_ERRORS)
    assert cause.response["Error"]["Code"] == "ResourceNotFoundException"
    assert str(failure.value).startswith(
        f"{message} - ({cause}). Table no-such-table in us-east-1. There is no such table: check table_name, the account and the "
        f"Region. Idempotency key: {KEY}. "
    )
    assert not failure.value.is_retryable


@on_every_table
def test_an_item_that_is_no_record_fails_the_claim_and_stays(verbs: Verbs, made: Made) -> None:
    verbs.claim(verbs.offer(KEY, "a"))
    status_attr = ODD_NAMES["status_attr"] if ODD_NAMES["status_attr"] in raw_items(made)[0] else "status"
    add_attribute(made, status_attr, {"N": "7"})
    before = raw_items(made)

    with pytest.raises(IdempotencyPersistenceLayerError, match="no idempotency record"):
        verbs.claim(verbs.offer(KEY, "b"))

    assert raw_items(made) == before


@on_every_table
def test_a_fraction_of_a_second_in_another_writers_expiry_is_read(verbs: Verbs, made: Made, clock: FakeClock) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a"))
    verbs.complete(verbs.completed(granted, '"A"'))
    expiry_attr = "ttl" if "ttl" in raw_items(made)[0] else "expiration"
    end_s = clock.now_ms // 1000 + 5
    add_attribute(made, expiry_attr, {"N": f"{end_s}.75"})

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer(KEY, "b"))

    assert refused.value.old_data_record.expiry_timestamp == end_s
    clock.now_ms = (end_s + 1) * 1000
    assert verbs.claim(verbs.offer(KEY, "b")).generation == 2


@pytest.mark.parametrize("made", by_id("dynamodb-odd-names"), indirect=True)
def test_stores_of_different_static_partitions_share_a_table(verbs: Verbs, made: Made) -> None:
    table, client = made.store.table_name, made.client
    other = DynamoDBPersistenceLayer(table, boto3_client=client, static_pk_value="idempotency#refunds", **ODD_NAMES)
    other.clock_ms = made.store.clock_ms
    verbs.claim(verbs.offer(KEY, "a"))

    other.claim(verbs.offer(KEY, "b"))

    assert {item[ODD_NAMES["owner_token_attr"]]["S"] for item in raw_items(made)} == {"a", "b"}


class Watching(DynamoDBPersistenceLayer):
    """A user's own layer around the hook of a claim, as it may have been written for Powertools."""

    told: list[str]

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        try:
            granted = super()._put_record(data_record=data_record)
        except IdempotencyItemAlreadyExistsError as refused:
            holder = refused.old_data_record
            self.told.append(f"refused by {holder.stored_status if holder else 'nobody'}")
            raise
        self.told.append("granted")
        return granted


@pytest.mark.parametrize("made", by_id("dynamodb", "dynamodb-lean"), indirect=True)
def test_a_subclasses_hook_of_a_claim_is_called_and_sees_the_refusals_error(made: Made) -> None:
    store = Watching(made.store.table_name, boto3_client=made.store.client)
    store.told = []
    pay = make_idempotent(lambda event: {"paid": event}, persistence_store=store)

    assert [pay(7), pay(7)] == [{"paid": 7}] * 2
    assert store.told == ["granted", "refused by COMPLETED"]
