"""What a sweep deletes, and what it never does: a record that could be live, or that is nobody's to delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bulk.kit import LAYOUTS, BulkClient, completed, faulty, filled, in_progress, items, keys, put, put_item
from doubles import LambdaContext
from engines.tables import shared_client
from faults import (
    UNKNOWN_OUTCOMES,
    Form,
    access_denied,
    before,
    key_of,
    lost,
    lost_then,
    read_timeout,
    refused,
    repeated_by_the_sdk,
    throttle,
    throttled_until,
)
from powertools_side import powertools_on, set_powertools_clock

from idempotency import (
    DataRecord,
    DynamoDBPersistenceLayer,
    IdempotencyBulkIncompleteError,
    InMemoryPersistenceLayer,
    sweep_expired,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulk.kit import NewStore
    from doubles import FakeClock


@pytest.fixture
def store(new_store: NewStore) -> DynamoDBPersistenceLayer:
    return new_store()


WASTE: dict[str, Callable[[FakeClock], DataRecord]] = {
    "completed": lambda clock: completed(clock, expires_s=-1),
    "completed, with a lease that lasts": lambda clock: completed(clock, expires_s=-1).replace(
        in_progress_expiry_timestamp=clock() + 9_000
    ),
    "completed, result not kept": lambda clock: completed(clock, expires_s=-1, response_data="", result_kept=False),
    "unfinished, its lease over": lambda clock: in_progress(clock, expires_s=-1, lease_ms=-1),
    "unfinished, by another library without lease": lambda clock: in_progress(
        clock, expires_s=-1, lease_ms=None, owner_token="", generation=0
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", WASTE)
def test_an_expired_record_is_deleted(new_store: NewStore, clock: FakeClock, kind: str, layout: str) -> None:
    store = new_store(**LAYOUTS[layout])
    put(store, WASTE[kind](clock))

    swept = sweep_expired(store)

    assert items(store) == []
    assert (swept.scanned, swept.written, swept.done) == (1, 1, True)


KEPT: dict[str, tuple[Callable[[FakeClock], DataRecord], int]] = {
    "completed, in its last second": (lambda clock: completed(clock, expires_s=0), 0),
    "completed, without an end": (lambda clock: completed(clock).replace(expiry_timestamp=None), 0),
    "unfinished, in the last millisecond of its lease": (lambda clock: in_progress(clock, expires_s=-1, lease_ms=0), 1),
    "an orphan that has not expired": (lambda clock: in_progress(clock, expires_s=0, lease_ms=-100_000), 0),
    "unfinished, by another library without lease": (lambda clock: in_progress(clock, expires_s=0, lease_ms=None), 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KEPT)
def test_a_record_that_may_be_missed_stays(new_store: NewStore, clock: FakeClock, kind: str, layout: str) -> None:
    make, skipped = KEPT[kind]
    store = new_store(**LAYOUTS[layout])
    put(store, make(clock))

    swept = sweep_expired(store)

    assert keys(store) == ["k"]
    assert (swept.scanned, swept.written, swept.skipped) == (1, 0, skipped)
    assert faulty(store).count("delete_item") == 0


@pytest.mark.parametrize(
    "stranger",
    [
        {"status": {"S": "SHIPPED"}, "expiration": {"N": "1"}},
        {"expiration": {"N": "1"}},
        {"status": {"N": "1"}, "expiration": {"N": "1"}},
    ],
)
def test_another_applications_item_is_left_alone(store: DynamoDBPersistenceLayer, stranger: dict[str, Any]) -> None:
    put_item(store, {"id": {"S": "order"}, **stranger})

    swept = sweep_expired(store)

    assert len(items(store)) == 1
    assert (swept.foreign, swept.written) == (1, 0)


def test_only_the_partition_of_the_store_is_swept(new_store: NewStore, clock: FakeClock) -> None:
    ours = new_store(sort_key_attr="sk", static_pk_value="ours")
    theirs = DynamoDBPersistenceLayer(ours.table_name, sort_key_attr="sk", static_pk_value="theirs", boto3_client=ours.client)
    for store in (ours, theirs):
        put(store, completed(clock, expires_s=-1))

    swept = sweep_expired(ours)

    assert [item["id"]["S"] for item in items(ours)] == ["theirs"]
    assert swept.scanned == 1


def test_a_partition_is_read_by_query_which_a_policy_can_confine(new_store: NewStore, clock: FakeClock) -> None:
    store = new_store(**LAYOUTS["composite"])
    filled(store, clock, 7, expires_s=-1)

    sweep_expired(store, page_size=2)

    assert (faulty(store).count("scan"), faulty(store).count("query")) == (0, 4)


def test_segments_share_a_table_without_overlap(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    filled(store, clock, 60, expires_s=-1)

    swept = sweep_expired(store, segments=7, page_size=3)

    assert (swept.scanned, swept.written) == (60, 60)
    assert items(store) == []


def test_results_are_not_read(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    """They may be 400 KB each."""
    put(store, completed(clock, expires_s=-1, response_data='"large"'))
    answers: list[Any] = []

    def remember(send: Callable[[], Any]) -> Any:
        answers.append(send())
        return answers[-1]

    faulty(store).always("scan", remember)
    sweep_expired(store, segments=1)

    assert [item.keys() for item in answers[0]["Items"]] == [
        {"id", "status", "expiration", "in_progress_expiration", "owner_token", "generation"}
    ]


def test_reads_are_eventually_consistent_for_half_the_price(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    """The delete's condition sees what the read did not."""
    put(store, completed(clock, expires_s=60, response_data="x" * 8_000))

    assert sweep_expired(store, segments=1).read_units == 1.0


def test_a_deletion_costs_what_the_item_costs(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(store, completed(clock, expires_s=-1, response_data="x" * 8_500))

    assert sweep_expired(store, segments=1).write_units == 9.0


def test_powertools_own_records_are_swept(
    store: DynamoDBPersistenceLayer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_powertools_clock(monkeypatch, clock)
    raw = faulty(store).client
    pay = powertools_on(store.table_name, raw).decorate(lambda event, context: "paid", expires_after_seconds=60)
    for number in range(3):
        pay({"id": number}, LambdaContext(clock=clock))
    clock.advance(seconds=61)
    pay({"id": 3}, LambdaContext(clock=clock))
    assert len(items(store)) == 4

    swept = sweep_expired(store)

    assert (swept.written, len(items(store))) == (3, 1)


# Between reading and deleting


def test_a_key_that_is_claimed_anew_before_its_deletion_is_not_deleted(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    pay = Form(is_async=False).handler(lambda _event: "paid", store)
    order = {"id": "order-1"}
    pay(order, LambdaContext(clock=clock))
    clock.advance(seconds=3_601)
    faulty(store).at("delete_item", 1, before(lambda: pay(order, LambdaContext(clock=clock))))

    swept = sweep_expired(store)

    assert keys(store) == [key_of("order-1")]
    assert (swept.written, swept.kept) == (0, 1)


CHANGES = {
    "status": {"status": {"S": "COMPLETED"}},
    "expiry": {"expiration": {"N": "1700000001"}},
    "lease": {"in_progress_expiration": {"N": "1700000000001"}},
    "lease gone": {"in_progress_expiration": None},
    "owner": {"owner_token": {"S": "another"}},
    "owner gone": {"owner_token": None},
    "generation": {"generation": {"N": "2"}},
    "generation gone": {"generation": None},
}
SEEN = {
    "id": {"S": "k"},
    "status": {"S": "INPROGRESS"},
    "expiration": {"N": "1700000000"},
    "in_progress_expiration": {"N": "1700000000000"},
    "owner_token": {"S": "one"},
    "generation": {"N": "1"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_record_that_changed_in_any_way_that_matters_is_not_deleted(
    store: DynamoDBPersistenceLayer, change: str, direction: str
) -> None:
    changed = {name: value for name, value in (SEEN | CHANGES[change]).items() if value is not None}
    seen, found = (SEEN, changed) if direction == "to" else (changed, SEEN)
    put_item(store, seen)
    faulty(store).at("delete_item", 1, before(lambda: put_item(store, found)))

    swept = sweep_expired(store)

    assert items(store) == [found]
    assert (swept.written, swept.kept) == (0, 1)


def test_what_another_has_deleted_is_not_counted_as_deleted(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(store, completed(clock, expires_s=-1))
    raw = faulty(store).client
    gone = before(lambda: raw.delete_item(TableName=store.table_name, Key={"id": {"S": "k"}}))
    faulty(store).at("delete_item", 1, gone)

    swept = sweep_expired(store)

    assert (swept.written, swept.kept, swept.unchanged) == (0, 0, 1)


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_deletion_whose_answer_is_lost_is_a_deletion(
    store: DynamoDBPersistenceLayer, clock: FakeClock, error: Callable[[], Exception]
) -> None:
    put(store, completed(clock, expires_s=-1))
    faulty(store).at("delete_item", 1, lost(error()))

    swept = sweep_expired(store)

    assert items(store) == []
    assert (swept.written, swept.unchanged) == (1, 0)


def test_a_deletion_that_the_client_itself_repeats_is_a_deletion(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(store, completed(clock, expires_s=-1))
    faulty(store).at("delete_item", 1, repeated_by_the_sdk)

    swept = sweep_expired(store)

    assert (swept.written, swept.unchanged) == (1, 0)


def test_a_repeated_deletion_spares_the_record_that_came_meanwhile(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(store, completed(clock, expires_s=-1))
    new = in_progress(clock, owner_token="new")
    faulty(store).at("delete_item", 1, lost_then(lambda: put(store, new), read_timeout()))

    swept = sweep_expired(store)

    assert items(store) == [store._items.item(new)]
    assert swept.kept == 1


# Trouble


@pytest.mark.parametrize("operation", ["scan", "delete_item"])
def test_a_throttled_table_is_waited_for(store: DynamoDBPersistenceLayer, clock: FakeClock, operation: str) -> None:
    filled(store, clock, 5, expires_s=-1)
    faulty(store).always(operation, throttled_until(clock, clock() + 30_000))

    assert sweep_expired(store, segments=1).written == 5
    assert max(clock.slept_ms) <= 2_000


def test_a_table_that_is_throttled_for_a_minute_is_an_error(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    filled(store, clock, 5, expires_s=-1)
    faulty(store).always("delete_item", refused(throttle()))
    start_ms = clock()

    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        sweep_expired(store, segments=1)

    assert clock() - start_ms == pytest.approx(60_000, abs=50)
    assert str(caught.value).startswith(
        f"sweep_expired is incomplete on table {store.table_name}: 0 records were deleted; "
        "resume_from=error.progress.checkpoint goes on - (An error occurred (ProvisionedThroughputExceededException)"
    )


def test_the_error_of_a_deletion_names_the_key(store: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
    put(store, completed(clock, "order", expires_s=-1))
    error = access_denied()
    faulty(store).always("delete_item", refused(error))

    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        sweep_expired(store)

    assert caught.value.__cause__ is error
    assert "Idempotency key: order. " in str(caught.value)
    assert (caught.value.idempotency_key, caught.value.is_retryable) == ("order", False)


# Global tables


def test_a_record_is_deleted_in_its_home_region(
    new_store: NewStore, clock: FakeClock, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every claim of the key is decided, so that the condition sees the last of them."""
    home = BulkClient(shared_client(dynamodb_local), shared_client(dynamodb_local))
    store = new_store(replication="eventual", home_region="eu-west-1", region_clients={"eu-west-1": home})
    put(store, completed(clock, expires_s=-1))

    assert sweep_expired(store).written == 1
    assert (home.count("delete_item"), faulty(store).count("delete_item")) == (1, 0)


def test_a_global_table_whose_keys_have_no_home_is_not_swept(new_store: NewStore) -> None:
    with pytest.raises(ValueError, match=r"swept with home_region only.*Use the table's TTL"):
        sweep_expired(new_store(replication="eventual"))


def test_a_strongly_replicated_table_is_swept(new_store: NewStore, clock: FakeClock) -> None:
    """It has no TTL, and its conditions see the last write of every Region."""
    store = new_store(replication="strong")
    put(store, completed(clock, expires_s=-1))

    assert sweep_expired(store).written == 1


# Arguments


def test_only_a_dynamodb_table_is_swept() -> None:
    with pytest.raises(TypeError, match=r"^store must be a DynamoDBPersistenceLayer, not InMemoryPersistenceLayer$"):
        sweep_expired(InMemoryPersistenceLayer())  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1, 1.5, "4"])
@pytest.mark.parametrize("name", ["segments", "page_size"])
def test_a_number_that_makes_no_sense_is_refused(store: DynamoDBPersistenceLayer, name: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, not {number!r}$"):
        sweep_expired(store, **{name: number})
    assert faulty(store).requests == []
