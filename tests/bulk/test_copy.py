"""What a copy brings to its target, and what it leaves alone there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bulk.kit import LAYOUTS, completed, faulty, filled, in_progress, items, keys, put, put_item, records
from doubles import LambdaContext
from engines.tables import client_for
from faults import (
    UNKNOWN_OUTCOMES,
    Form,
    access_denied,
    before,
    lost,
    lost_then,
    raise_suspended,
    read_timeout,
    refused,
    repeated_by_the_sdk,
    throttle,
    throttled_until,
)
from powertools_side import ours_on, powertools_on, set_powertools_clock

from idempotency import DynamoDBPersistenceLayer, IdempotencyBulkIncompleteError, InMemoryPersistenceLayer, copy_records
from persistence.datarecord import OffloadedResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulk.kit import NewStore
    from doubles import FakeClock

    from idempotency import DataRecord
    from persistence._dynamodb_items import Item

BOTH = pytest.mark.parametrize("in_use", [True, False], ids=["in use", "not in use"])


@pytest.fixture
def source(new_store: NewStore) -> DynamoDBPersistenceLayer:
    return new_store()


@pytest.fixture
def target(new_store: NewStore) -> DynamoDBPersistenceLayer:
    return new_store()


def every_kind(clock: FakeClock) -> list[DataRecord]:
    """Records that must not get lost, each under its own key."""
    return [
        completed(clock, "text"),
        completed(clock, "compressed", response_data="", packed_result=b"\x1f\x8b\x00\xff"),
        completed(clock, "offloaded", response_data="", packed_result=OffloadedResult("s3://b/k", "a" * 64, 2_000_000)),
        completed(clock, "not kept", response_data="", result_kept=False),
        completed(clock, "validated", payload_hash="hash", holder="request-1", region="eu-west-1", generation=7),
        completed(clock, "in its last second", expires_s=0),
        completed(clock, "endless").replace(expiry_timestamp=None),
        completed(clock, "another library's", owner_token="", generation=0),
        in_progress(clock, "at work"),
        in_progress(clock, "at work longer than expected", expires_s=-1),
        in_progress(clock, "orphan", lease_ms=-50_000),
        in_progress(clock, "another library's at work", owner_token="", generation=0),
        in_progress(clock, "another library's without lease", lease_ms=None, owner_token="", generation=0),
        in_progress(clock, "without lease", lease_ms=None),
    ]


@BOTH
@pytest.mark.parametrize("to_layout", LAYOUTS)
@pytest.mark.parametrize("from_layout", LAYOUTS)
def test_a_record_is_the_same_under_any_names_and_any_key(
    new_store: NewStore, clock: FakeClock, from_layout: str, to_layout: str, in_use: bool
) -> None:
    source, target = new_store(**LAYOUTS[from_layout]), new_store(**LAYOUTS[to_layout])
    originals = every_kind(clock)
    put(source, *originals)
    before_copy = items(source)

    copied = copy_records(source, target, target_in_use=in_use)

    assert {key: stripped(record) for key, record in records(target).items()} == {
        record.key: stripped(record) for record in originals
    }
    assert (copied.scanned, copied.written, copied.done) == (len(originals), len(originals), True)
    assert items(source) == before_copy


def stripped(record: DataRecord) -> DataRecord:
    """The record without what depends on the key's layout."""
    return record.replace(idempotency_key=record.key, sort_key=None)


@BOTH
@pytest.mark.parametrize(
    "waste",
    [
        lambda clock: completed(clock, expires_s=-1),
        lambda clock: in_progress(clock, expires_s=-1, lease_ms=-1),
        lambda clock: in_progress(clock, expires_s=-1, lease_ms=None),
    ],
)
def test_what_nobody_can_miss_is_not_copied(
    source: DynamoDBPersistenceLayer,
    target: DynamoDBPersistenceLayer,
    clock: FakeClock,
    waste: Callable[[FakeClock], DataRecord],
    in_use: bool,
) -> None:
    put(source, waste(clock))

    copied = copy_records(source, target, target_in_use=in_use)

    assert items(target) == []
    assert (copied.written, copied.skipped) == (0, 1)


@BOTH
def test_what_is_no_record_is_counted_and_stays_where_it_is(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock, in_use: bool
) -> None:
    put(source, completed(clock))
    strangers: list[Item] = [
        {"id": {"S": "1"}},
        {"id": {"S": "2"}, "status": {"S": "SHIPPED"}},
        {"id": {"S": "3"}, "status": {"S": "COMPLETED"}, "data": {"M": {}}},
        {"id": {"S": "4"}, "status": {"S": "COMPLETED"}, "expiration": {"S": "tomorrow"}},
    ]
    for stranger in strangers:
        put_item(source, stranger)

    copied = copy_records(source, target, target_in_use=in_use)

    assert keys(target) == ["k"]
    assert (copied.written, copied.foreign) == (1, 4)


@BOTH
def test_attributes_of_others_come_along_unless_the_target_uses_their_name(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, in_use: bool
) -> None:
    target = new_store(data_attr="result")
    extra = {"tags": {"SS": ["a"]}, "blobs": {"BS": [b"\xff"]}, "nested": {"M": {"n": {"N": "1.5"}}}}
    put(source, completed(clock), **extra, result={"S": "theirs"})

    copy_records(source, target, target_in_use=in_use)

    [item] = items(target)
    assert item == target._items.item(completed(clock)) | extra


@BOTH
def test_an_attribute_of_others_is_not_taken_for_a_result(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, in_use: bool
) -> None:
    target = new_store(data_attr="result")
    put(source, in_progress(clock), result={"S": "theirs"})

    copy_records(source, target, target_in_use=in_use)

    assert items(target) == [target._items.item(in_progress(clock))]


def test_the_same_record_is_unchanged_whatever_others_have_added(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    put(source, completed(clock), tags={"SS": ["a", "b"]})
    put(target, completed(clock), tags={"SS": ["c"]})

    copied = copy_records(source, target)

    assert (copied.unchanged, copied.kept) == (1, 0)


def test_only_the_partition_of_the_store_is_copied(
    new_store: NewStore, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    ours = new_store(sort_key_attr="sk", static_pk_value="ours")
    theirs = DynamoDBPersistenceLayer(ours.table_name, sort_key_attr="sk", static_pk_value="theirs", boto3_client=ours.client)
    put(ours, completed(clock, "a"))
    put(theirs, completed(clock, "b"))

    copy_records(ours, target)

    assert keys(target) == ["a"]
    assert faulty(ours).count("scan") == 0


def test_one_partition_is_copied_to_another_of_the_same_table(new_store: NewStore, clock: FakeClock) -> None:
    ours = new_store(sort_key_attr="sk", static_pk_value="ours")
    theirs = DynamoDBPersistenceLayer(ours.table_name, sort_key_attr="sk", static_pk_value="theirs", boto3_client=ours.client)
    theirs.clock_ms = clock
    put(ours, completed(clock, "a"))

    copy_records(ours, theirs)

    assert sorted(item["id"]["S"] for item in items(ours)) == ["ours", "theirs"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_are_consistent(new_store: NewStore, target: DynamoDBPersistenceLayer, layout: str) -> None:
    source = new_store(**LAYOUTS[layout])

    copy_records(source, target)

    assert all(request["ConsistentRead"] for _, request in faulty(source).requests)


def test_a_copy_tells_what_it_cost(source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(source, completed(clock, response_data="x" * 8_500))

    copied = copy_records(source, target, segments=1)

    assert (copied.read_units, copied.write_units) == (3.0, 9.0)


def test_a_batch_tells_what_it_cost(source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(source, completed(clock, response_data="x" * 8_500))

    copied = copy_records(source, target, segments=1, target_in_use=False)

    assert (copied.read_units, copied.write_units) == (3.0, 9.0)


# Into a table that is in use


def another(clock: FakeClock) -> dict[str, Any]:
    """Of another attempt at the same key."""
    return {"owner_token": "another", "generation": 2}


NO_TOKEN: dict[str, Any] = {"owner_token": "", "generation": 0}
#: (the source's record, the target's, what becomes of it)
MEETINGS: dict[str, tuple[Callable[[FakeClock], DataRecord], Callable[[FakeClock], DataRecord], str]] = {
    # The same attempt
    "the same result": (completed, completed, "unchanged"),
    "the same claim": (in_progress, in_progress, "unchanged"),
    "the same orphan": (lambda c: in_progress(c, lease_ms=-1), lambda c: in_progress(c, lease_ms=-1), "unchanged"),
    "a result, copied unfinished": (completed, in_progress, "written"),
    "a result, its lease renewed before": (completed, lambda c: in_progress(c, lease_ms=1), "written"),
    "a renewed lease": (lambda c: in_progress(c, lease_ms=9), lambda c: in_progress(c, lease_ms=8), "written"),
    "a lease renewed in the target": (lambda c: in_progress(c, lease_ms=8), lambda c: in_progress(c, lease_ms=9), "kept"),
    "a claim that is completed in the target": (in_progress, completed, "kept"),
    "a claim without lease": (lambda c: in_progress(c, lease_ms=None), in_progress, "kept"),
    # The same attempt of a library without tokens
    "a tokenless result": (
        lambda c: completed(c, **NO_TOKEN),
        lambda c: in_progress(c, lease_ms=-5_000, expires_s=59, **NO_TOKEN),
        "written",
    ),
    "a tokenless result without lease": (
        lambda c: completed(c, **NO_TOKEN).replace(in_progress_expiry_timestamp=None),
        lambda c: in_progress(c, lease_ms=None, **NO_TOKEN),
        "written",
    ),
    "a tokenless result without end": (
        lambda c: completed(c, **NO_TOKEN).replace(in_progress_expiry_timestamp=c() + 5, expiry_timestamp=None),
        lambda c: in_progress(c, lease_ms=5, **NO_TOKEN),
        "written",
    ),
    "a tokenless claim": (lambda c: in_progress(c, **NO_TOKEN), lambda c: in_progress(c, lease_ms=1, **NO_TOKEN), "kept"),
    # Another attempt, alive
    "another's claim": (completed, lambda c: in_progress(c, **another(c)), "kept"),
    "another's result": (completed, lambda c: completed(c, **another(c)), "kept"),
    "a later claim of the same durable execution": (completed, lambda c: in_progress(c, generation=3), "kept"),
    "a tokenless claim against a token": (completed, lambda c: in_progress(c, **NO_TOKEN), "kept"),
    "a token against a tokenless claim": (
        lambda c: completed(c, **NO_TOKEN).replace(in_progress_expiry_timestamp=c() + 5),
        lambda c: in_progress(c, lease_ms=5),
        "kept",
    ),
    "another tokenless claim": (
        lambda c: completed(c, **NO_TOKEN).replace(in_progress_expiry_timestamp=c() + 5),
        lambda c: in_progress(c, lease_ms=6, **NO_TOKEN),
        "kept",
    ),
    "a later tokenless claim without lease": (
        lambda c: completed(c, **NO_TOKEN).replace(in_progress_expiry_timestamp=None),
        lambda c: in_progress(c, lease_ms=None, expires_s=61, **NO_TOKEN),
        "kept",
    ),
    # Another attempt, whose record a new attempt might supersede
    "another's orphan": (completed, lambda c: in_progress(c, lease_ms=-1, **another(c)), "written"),
    "another's expired result": (completed, lambda c: completed(c, expires_s=-1, **another(c)), "written"),
    "another's orphan, against a claim": (
        in_progress,
        lambda c: in_progress(c, lease_ms=-1, **another(c)),
        "written",
    ),
    "another's orphan, against an orphan": (
        lambda c: in_progress(c, lease_ms=-9),
        lambda c: in_progress(c, lease_ms=-1, **another(c)),
        "kept",
    ),
    "another's expired result, against an orphan": (
        lambda c: in_progress(c, lease_ms=-9),
        lambda c: completed(c, expires_s=-1, **another(c)),
        "kept",
    ),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_record_replaces_its_own_past_and_what_any_attempt_might_supersede(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, meeting: str
) -> None:
    ours, theirs, becomes = MEETINGS[meeting]
    target = new_store(**LAYOUTS["odd names"])
    put(source, ours(clock))
    put(target, theirs(clock))

    copied = copy_records(source, target)

    assert records(target) == {"k": theirs(clock) if becomes == "kept" else ours(clock)}
    assert {name: getattr(copied, name) for name in ("written", "unchanged", "kept")} == {
        "written": 0,
        "unchanged": 0,
        "kept": 0,
        becomes: 1,
    }


def test_an_item_of_another_application_is_kept(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    put(source, completed(clock))
    put_item(target, {"id": {"S": "k"}, "name": {"S": "theirs"}})

    copied = copy_records(source, target)

    assert items(target) == [{"id": {"S": "k"}, "name": {"S": "theirs"}}]
    assert copied.kept == 1


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_write_whose_answer_is_lost_is_a_write(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock, error: Callable[[], Exception]
) -> None:
    put(source, completed(clock))
    faulty(target).at("put_item", 1, lost(error()))

    copied = copy_records(source, target)

    assert keys(target) == ["k"]
    assert (copied.written, copied.unchanged, copied.kept) == (1, 0, 0)


def test_a_write_that_the_client_itself_repeats_is_a_write(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    put(source, completed(clock))
    faulty(target).at("put_item", 1, repeated_by_the_sdk)

    copied = copy_records(source, target)

    assert (copied.written, copied.unchanged) == (1, 0)


def test_a_repeated_write_spares_what_came_meanwhile(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    """The claim was copied, its answer lost, and its attempt completed in the target before the repetition."""
    meanwhile = completed(clock)
    put(source, in_progress(clock))
    faulty(target).at("put_item", 1, lost_then(lambda: put(target, meanwhile), read_timeout()))

    copied = copy_records(source, target)

    assert records(target) == {"k": meanwhile}
    assert copied.kept == 1


def test_a_key_that_is_claimed_in_the_target_before_the_write_is_kept(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    new = in_progress(clock, owner_token="new")
    put(source, completed(clock))
    faulty(target).at("put_item", 1, before(lambda: put(target, new)))

    copied = copy_records(source, target)

    assert records(target) == {"k": new}
    assert copied.kept == 1


@pytest.mark.parametrize("in_use", [True, False], ids=["put_item", "batch_write_item"])
def test_a_throttled_target_is_waited_for(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock, in_use: bool
) -> None:
    names = filled(source, clock, 5, expires_s=3_600)
    operation = "put_item" if in_use else "batch_write_item"
    faulty(target).always(operation, throttled_until(clock, clock() + 30_000))

    copied = copy_records(source, target, segments=1, target_in_use=in_use)

    assert (keys(target), copied.written) == (names, 5)


def test_the_error_of_a_write_names_the_key(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    put(source, completed(clock, "order"))
    error = access_denied()
    faulty(target).always("put_item", refused(error))

    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        copy_records(source, target)

    assert caught.value.__cause__ is error
    assert "Idempotency key: order. " in str(caught.value)
    assert (caught.value.idempotency_key, caught.value.is_retryable) == ("order", False)


# Into a table that is not


def test_a_target_that_is_not_in_use_becomes_what_the_source_is(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    put(source, completed(clock, "a"), in_progress(clock, "b"))
    put(target, in_progress(clock, "a"), completed(clock, "b", **another(clock)))

    copied = copy_records(source, target, target_in_use=False)

    assert records(target) == records(source)
    assert copied.written == 2


def batches(store: DynamoDBPersistenceLayer) -> list[list[Any]]:
    """What was sent, request by request."""
    return [request["RequestItems"][store.table_name] for name, request in faulty(store).requests if name == "batch_write_item"]


def test_a_request_has_25_records_at_most(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    names = filled(source, clock, 60)

    copy_records(source, target, segments=1, target_in_use=False)

    assert [len(batch) for batch in batches(target)] == [25, 25, 10]
    assert keys(target) == names


def test_a_request_of_the_largest_records_is_far_from_16_mb(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    """A page is 1 MB as stored, and JSON writes the worst of characters in six bytes."""
    names = filled(source, clock, 9, response_data="\x01" * 350_000)
    sizes: list[int] = []
    faulty(target).client = client_for(faulty(target).client.meta.endpoint_url)  # one of its own, to listen to
    faulty(target).client.meta.events.register(
        "before-send.dynamodb.BatchWriteItem", lambda request, **_: sizes.append(len(request.body))
    )

    copy_records(source, target, segments=1, target_in_use=False)

    assert keys(target) == names
    assert 6_000_000 < max(sizes) < 8_000_000


def test_what_a_batch_leaves_is_sent_again_after_a_pause(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    names = filled(source, clock, 10)
    undo = batch_that_leaves(target, 4)
    faulty(target).at("batch_write_item", 1, undo)

    copied = copy_records(source, target, segments=1, target_in_use=False)

    assert keys(target) == names
    assert (copied.written, [len(batch) for batch in batches(target)]) == (10, [10, 4])
    assert len(clock.slept_ms) == 1
    assert 0 <= clock.slept_ms[0] <= 50


def batch_that_leaves(store: DynamoDBPersistenceLayer, left: int) -> Callable[[Callable[[], Any]], Any]:
    """DynamoDB writes all of a batch but the last *left*, as far as there are so many, and returns those."""

    def strike(_send: Callable[[], Any]) -> Any:
        requests = batches(store)[-1]
        cut = max(0, len(requests) - left)
        answer: dict[str, Any] = {"ConsumedCapacity": []}
        if cut:
            answer = faulty(store).client.batch_write_item(RequestItems={store.table_name: requests[:cut]})
        return answer | {"UnprocessedItems": {store.table_name: requests[cut:]}}

    return strike


def test_a_batch_that_moves_is_never_given_up(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    """However slow: each request writes one record, and takes 50 seconds."""
    names = filled(source, clock, 5, expires_s=3_600)
    client = faulty(target).client

    def strike(_send: Callable[[], Any]) -> Any:
        clock.advance(seconds=50)
        first, *others = batches(target)[-1]
        answer = client.batch_write_item(RequestItems={target.table_name: [first]})
        return answer | {"UnprocessedItems": {target.table_name: others} if others else {}}

    faulty(target).always("batch_write_item", strike)

    assert copy_records(source, target, segments=1, target_in_use=False).written == 5
    assert keys(target) == names


def test_a_batch_that_does_not_move_for_a_minute_is_an_error(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    filled(source, clock, 10, expires_s=3_600)
    faulty(target).always("batch_write_item", batch_that_leaves(target, 3))
    start_ms = clock()

    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        copy_records(source, target, segments=1, target_in_use=False)

    assert 60_000 <= clock() - start_ms <= 62_050
    assert str(caught.value) == (
        f"copy_records is incomplete on table {source.table_name}: 7 records were copied; "
        "resume_from=error.progress.checkpoint goes on - (BatchWriteItem has left 3 items unprocessed for 60 seconds). "
        "What was written stays written."
    )
    assert max(clock.slept_ms) <= 2_000


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_batch_whose_answer_is_lost_is_sent_again(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock, error: Callable[[], Exception]
) -> None:
    names = filled(source, clock, 10)
    faulty(target).at("batch_write_item", 1, lost(error()))

    copied = copy_records(source, target, segments=1, target_in_use=False)

    assert (keys(target), copied.written) == (names, 10)


def test_a_batch_that_is_throttled_for_a_minute_is_an_error(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock
) -> None:
    filled(source, clock, 10, expires_s=3_600)
    error = throttle()
    faulty(target).always("batch_write_item", refused(error))

    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        copy_records(source, target, segments=1, target_in_use=False)

    assert caught.value.__cause__ is error


# Moving with live traffic


@pytest.fixture
def pay(clock: FakeClock) -> Callable[..., Any]:
    """Calls a function on a store; *end* is what it does, and *runs* of the fixture's tests count it."""

    def call(store: DynamoDBPersistenceLayer, end: Callable[[], Any], remaining_ms: int = 30_000) -> Any:
        context = LambdaContext(remaining_ms=remaining_ms, clock=clock)
        return Form(is_async=False).handler(lambda _event: end(), store)({"id": "order-1"}, context)

    return call


def never() -> None:
    raise AssertionError("the function was run again")


def test_a_function_that_ran_before_the_move_is_not_run_after_it(
    source: DynamoDBPersistenceLayer, new_store: NewStore, pay: Callable[..., Any]
) -> None:
    target = new_store(**LAYOUTS["composite"])
    pay(source, lambda: "paid")

    copy_records(source, target)

    assert pay(target, never) == "paid"


def test_the_second_copy_brings_the_result_of_an_attempt_that_was_at_work_in_the_first(
    source: DynamoDBPersistenceLayer, new_store: NewStore, pay: Callable[..., Any]
) -> None:
    target = new_store(**LAYOUTS["composite"])
    pay(source, lambda: copy_records(source, target) and "paid")

    copied = copy_records(source, target)

    assert copied.written == 1
    assert pay(target, never) == "paid"


def test_the_second_copy_brings_the_result_of_an_attempt_that_took_over_from_a_copied_orphan(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, pay: Callable[..., Any]
) -> None:
    target = new_store(**LAYOUTS["composite"])
    with pytest.raises(BaseException, match=r"^$"):
        pay(source, raise_suspended)
    clock.advance(seconds=40)
    copy_records(source, target)
    pay(source, lambda: "paid")

    copy_records(source, target)

    assert pay(target, never) == "paid"


def test_the_second_copy_brings_the_result_of_a_call_after_a_copied_result_had_expired(
    source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock, pay: Callable[..., Any]
) -> None:
    pay(source, lambda: "paid first")
    copy_records(source, target)
    clock.advance(seconds=3_601)
    pay(source, lambda: "paid again")

    copy_records(source, target)

    assert pay(target, never) == "paid again"


@BOTH
def test_powertools_table_moves_to_one_of_ours(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    set_powertools_clock(monkeypatch, clock)
    target = new_store(**LAYOUTS["composite"])
    event = {"id": "order-1", "amount": 10}
    validated = {"payload_validation_jmespath": "amount"}
    theirs = powertools_on(source.table_name, faulty(source).client)
    theirs.decorate(lambda event, context: {"paid": event["amount"]}, **validated)(event, LambdaContext(clock=clock))

    copy_records(source, target, target_in_use=in_use)

    ours = ours_on(target.table_name, target.client, clock, **LAYOUTS["composite"])
    replay = ours.decorate(lambda event, context: never(), **validated)
    assert replay(event, LambdaContext(clock=clock)) == {"paid": 10}
    with pytest.raises(ours.exceptions.IdempotencyValidationError):
        replay({**event, "amount": 11}, LambdaContext(clock=clock))


@pytest.mark.parametrize("lambda_context", [True, False], ids=["with a lease", "without a lease"])
def test_a_result_of_powertools_that_was_in_flight_comes_with_the_second_copy(
    source: DynamoDBPersistenceLayer,
    target: DynamoDBPersistenceLayer,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    lambda_context: bool,
) -> None:
    set_powertools_clock(monkeypatch, clock)
    theirs = powertools_on(source.table_name, faulty(source).client)

    def body(event: Any, context: Any) -> str:
        clock.advance(seconds=2)
        assert copy_records(source, target).written == 1
        clock.advance(seconds=2)
        return "paid"

    # Without a context Powertools warns, and stores no lease.
    context = LambdaContext(clock=clock) if lambda_context else None
    call = theirs.decorate(body)
    if lambda_context:
        call({"id": 1}, context)
    else:
        with pytest.warns(UserWarning, match="remaining"):
            call({"id": 1}, context)

    copied = copy_records(source, target)

    assert copied.written == 1
    assert [record.response_data for record in records(target).values()] == [json.dumps("paid")]


# Arguments


def test_only_dynamodb_tables_are_copied(source: DynamoDBPersistenceLayer) -> None:
    memory: Any = InMemoryPersistenceLayer()
    with pytest.raises(TypeError, match=r"^source must be a DynamoDBPersistenceLayer, not InMemoryPersistenceLayer$"):
        copy_records(memory, source)
    with pytest.raises(TypeError, match=r"^target must be a DynamoDBPersistenceLayer, not InMemoryPersistenceLayer$"):
        copy_records(source, memory)


@pytest.mark.parametrize("layout", [{}, {"data_attr": "result"}])
@pytest.mark.parametrize("same_client", [True, False])
def test_a_table_is_not_copied_onto_itself(
    source: DynamoDBPersistenceLayer, new_store: NewStore, layout: dict[str, Any], same_client: bool
) -> None:
    """Not even under other attribute names: work that is resumed would not recognise what it has renamed."""
    client = source.client if same_client else new_store().client
    again = DynamoDBPersistenceLayer(source.table_name, boto3_client=client, **layout)

    with pytest.raises(ValueError, match=f"^source and target keep their records in the same items of table {source.table_name}"):
        copy_records(source, again)
    assert faulty(source).requests == []


def test_a_table_of_the_same_name_in_another_region_is_another_table(
    source: DynamoDBPersistenceLayer, new_store: NewStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = new_store()
    name = elsewhere.table_name
    twin = DynamoDBPersistenceLayer(source.table_name, boto3_client=Elsewhere(elsewhere.client, name))
    twin.clock_ms = clock
    put(source, completed(clock))

    copy_records(source, twin)

    assert keys(elsewhere) == ["k"]


class Elsewhere:
    """A client of another Region, where another table bears the same name."""

    class meta:  # noqa: N801 - boto3's name
        endpoint_url = "https://dynamodb.eu-west-1.amazonaws.com"

    def __init__(self, client: Any, table_name: str) -> None:
        self.client = client
        self.table_name = table_name

    def put_item(self, **request: Any) -> Any:
        return self.client.put_item(**request | {"TableName": self.table_name})
