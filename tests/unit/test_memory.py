"""What only the in-memory store has: its bound, its sweeping, its lock.  Its decisions are the conformance suite's."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import Any

import pytest
from doubles import START_MS, FakeClock

from persistence import memory
from persistence.base import wall_clock_ms
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
)
from persistence.memory import FIRST_SWEEP, InMemoryPersistenceLayer


def offer(key: str, clock: FakeClock, *, owner: str = "a", lease_ms: int | None = 1_000, expires_in_s: int = 60) -> DataRecord:
    lease_end_ms = None if lease_ms is None else clock.now_ms + lease_ms
    return DataRecord(
        key,
        "INPROGRESS",
        clock.now_ms // 1000 + expires_in_s,
        lease_end_ms,
        owner_token=owner,
        generation=1,
        holder=f"request-{owner}",
    )


def done(granted: DataRecord, clock: FakeClock, *, expires_in_s: int = 60, data: str = '"result"') -> DataRecord:
    return granted.replace(status="COMPLETED", expiry_timestamp=clock.now_ms // 1000 + expires_in_s, response_data=data)


def complete_at(store: InMemoryPersistenceLayer, key: str, clock: FakeClock, *, expires_in_s: int = 60) -> None:
    store.complete(done(store.claim(offer(key, clock)), clock, expires_in_s=expires_in_s))


@pytest.mark.parametrize("max_records", [0, -1])
def test_a_store_for_no_record_is_refused(max_records: int) -> None:
    with pytest.raises(ValueError, match=f"^max_records must be at least 1, not {max_records}$"):
        InMemoryPersistenceLayer(max_records=max_records)


def test_a_store_keeps_the_wall_clocks_time_unless_told_otherwise() -> None:
    assert InMemoryPersistenceLayer().clock_ms is wall_clock_ms


def test_the_wall_clock_counts_milliseconds_since_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.base.time.time_ns", lambda: 1_800_000_000_250_999_999)

    assert wall_clock_ms() == 1_800_000_000_250


def test_a_full_store_refuses_a_new_key_before_its_function_runs(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=2, clock_ms=clock)
    complete_at(store, "k1", clock)
    complete_at(store, "k2", clock)

    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to save in progress record") as raised:
        store.claim(offer("k3", clock))
    assert "The in-memory store is full: 2 records. Raise max_records or shorten expires_after_seconds" in str(raised.value)
    assert store.fetch("k3") is None


def test_a_full_store_still_serves_the_keys_that_it_holds(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    store.claim(offer("k", clock, owner="crashed"))
    clock.advance(ms=1_001)

    granted = store.claim(offer("k", clock, owner="next"))
    store.complete(done(granted, clock))

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        store.claim(offer("k", clock, owner="late"))
    held = refused.value.old_data_record
    assert held is not None
    assert (held.stored_status, held.owner_token, held.generation) == ("COMPLETED", "next", 2)


def test_room_is_made_the_second_after_a_result_expires(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    complete_at(store, "old", clock, expires_in_s=60)
    expired_ms = (START_MS // 1000 + 61) * 1000

    clock.now_ms = expired_ms - 1
    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))
    clock.now_ms = expired_ms
    store.claim(offer("new", clock))

    assert store.fetch("old") is None
    assert store.fetch("new") is not None


def test_a_live_lease_is_never_swept_although_its_record_has_expired(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    store.claim(offer("running", clock, lease_ms=100_000, expires_in_s=60))

    clock.advance(ms=100_000)
    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))
    clock.advance(ms=1)
    store.claim(offer("new", clock))

    assert store.fetch("running") is None


def test_an_orphan_is_kept_until_its_record_expires(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    store.claim(offer("orphan", clock, lease_ms=1_000, expires_in_s=60))
    clock.advance(ms=1_001)

    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))
    assert store.fetch("orphan") is not None


def test_records_that_never_expire_are_never_swept(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    store.claim(offer("k", clock).replace(expiry_timestamp=None))
    clock.advance(seconds=10**9)

    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))


def test_expired_records_are_dropped_long_before_the_store_is_full(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    for number in range(FIRST_SWEEP):
        complete_at(store, f"old-{number}", clock)
    clock.advance(seconds=100)

    store.claim(offer("new", clock))

    assert list(store._records) == ["new"]


def test_the_store_is_swept_again_only_when_it_has_doubled(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a claim among many live records costs amortised constant time."""
    asked: list[str] = []
    is_waste = memory.is_waste

    def counting(record: DataRecord, now_ms: int) -> bool:
        asked.append(record.key)
        return is_waste(record, now_ms)

    monkeypatch.setattr(memory, "is_waste", counting)
    store = InMemoryPersistenceLayer(clock_ms=clock)

    for number in range(4 * FIRST_SWEEP):
        store.claim(offer(f"k-{number}", clock))

    assert len(asked) == FIRST_SWEEP + 2 * FIRST_SWEEP
    assert len(store._records) == 4 * FIRST_SWEEP


def test_a_store_grows_to_its_bound_whatever_the_sweeping_does(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=FIRST_SWEEP + 7, clock_ms=clock)

    for number in range(FIRST_SWEEP + 7):
        store.claim(offer(f"k-{number}", clock))

    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("one too many", clock))
    assert len(store._records) == FIRST_SWEEP + 7


def test_a_release_makes_room(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    store.release(store.claim(offer("k1", clock)))

    store.claim(offer("k2", clock))

    assert list(store._records) == ["k2"]


def test_what_is_never_stored_is_not_found_again(clock: FakeClock) -> None:
    """`DataRecord` says so of three fields, and another store could not give them back."""
    store = InMemoryPersistenceLayer(clock_ms=clock)
    store.claim(offer("k", clock, owner="crashed"))
    clock.advance(ms=1_001)
    hurried = offer("k", clock, owner="b").replace(deadline_ms=clock.now_ms + 500, takes_over_orphans=True, supersedes=1)

    granted = store.claim(hurried)

    found = store.fetch("k")
    assert found is not None
    assert (found.deadline_ms, found.takes_over_orphans, found.supersedes, found.took_over) == (None, True, None, False)
    assert (granted.deadline_ms, granted.took_over) == (hurried.deadline_ms, True)


def test_a_completion_keeps_the_payload_hash_that_the_claim_wrote(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock).replace(payload_hash="hash"))

    store.complete(done(granted, clock).replace(payload_hash=""))

    found = store.fetch("k")
    assert found is not None
    assert found.payload_hash == "hash"


def test_a_renewal_moves_the_ends_and_nothing_else(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))
    before = store.fetch("k")
    assert before is not None

    ends = {"in_progress_expiry_timestamp": 1_900_000_000_000, "expiry_timestamp": 1_900_000_001}
    store.renew(granted.replace(**ends, payload_hash="other", holder="other"))

    assert store.fetch("k") == before.replace(**ends)


def test_a_renewal_that_was_delayed_on_its_way_does_not_set_the_lease_back(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))
    store.renew(granted.replace(in_progress_expiry_timestamp=clock.now_ms + 9_000))
    before = store.fetch("k")

    store.renew(granted.replace(in_progress_expiry_timestamp=clock.now_ms + 8_999))

    assert store.fetch("k") == before


@pytest.mark.parametrize("state", ["absent", "completed", "another's"])
def test_a_renewal_that_comes_too_late_writes_nothing_and_shows_what_it_found(state: str, clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))
    if state == "absent":
        store.release(granted)
    elif state == "completed":
        store.complete(done(granted, clock))
    else:
        clock.advance(ms=1_001)
        store.claim(offer("k", clock, owner="b"))
    before = store.fetch("k")

    with pytest.raises(IdempotencyLeaseLostError) as lost:
        store.renew(granted.replace(in_progress_expiry_timestamp=clock.now_ms + 9_000))
    assert lost.value.record == before
    assert store.fetch("k") == before


def test_a_completion_after_a_takeover_writes_nothing_and_shows_the_winner(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    late = store.claim(offer("k", clock))
    clock.advance(ms=1_001)
    store.claim(offer("k", clock, owner="b"))
    before = store.fetch("k")

    with pytest.raises(IdempotencyLeaseLostError) as lost:
        store.complete(done(late, clock))
    assert lost.value.record == before
    assert store.fetch("k") == before


def test_a_completion_whose_record_is_gone_is_stored(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))
    store.release(granted)

    store.complete(done(granted, clock))

    found = store.fetch("k")
    assert found is not None
    assert (found.stored_status, found.response_data) == ("COMPLETED", '"result"')


@pytest.mark.parametrize("state", ["completed", "another's"])
def test_a_release_of_what_is_finished_or_anothers_is_refused_and_shows_what_it_found(state: str, clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))
    if state == "completed":
        store.complete(done(granted, clock))
    else:
        clock.advance(ms=1_001)
        store.claim(offer("k", clock, owner="b"))
    before = store.fetch("k")

    with pytest.raises(IdempotencyLeaseLostError) as lost:
        store.release(granted)
    assert lost.value.record == before
    assert store.fetch("k") == before


def test_a_second_release_is_no_error(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = store.claim(offer("k", clock))

    store.release(granted)
    store.release(granted)

    assert store.fetch("k") is None


class Guarded(dict[str, DataRecord]):
    """Records that may be looked at and changed only while the store's lock is held."""

    def __init__(self, store: InMemoryPersistenceLayer) -> None:
        super().__init__()
        self.store = store
        self.touched: list[str] = []

    def check(self, how: str) -> None:
        assert self.store._lock.locked()
        self.touched.append(how)

    def get(self, key: str, default: Any = None) -> Any:
        self.check("get")
        return super().get(key, default)

    def __getitem__(self, key: str) -> DataRecord:
        self.check("read")
        return super().__getitem__(key)

    def __setitem__(self, key: str, record: DataRecord) -> None:
        self.check("write")
        super().__setitem__(key, record)

    def __delitem__(self, key: str) -> None:
        self.check("delete")
        super().__delitem__(key)


def test_every_verb_decides_and_writes_under_one_lock(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    records = store._records = Guarded(store)

    granted = store.claim(offer("k", clock))
    store.renew(granted)
    store.fetch("k")
    store.release(granted)
    store.complete(done(store.claim(offer("k", clock)), clock))

    assert records.touched == ["get", "write", "get", "write", "read", "get", "delete", "get", "write", "get", "write"]


def test_of_many_threads_that_claim_one_key_at_once_one_is_granted(clock: FakeClock) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)
    racers = 8
    barrier = Barrier(racers)
    granted: list[str] = []
    refused: list[str] = []

    def race(owner: str) -> None:
        barrier.wait(timeout=10)
        for number in range(200):
            try:
                granted.append(store.claim(offer(f"k-{number}", clock, owner=owner)).key)
            except IdempotencyItemAlreadyExistsError:
                refused.append(f"k-{number}")

    threads = [Thread(target=race, args=(str(number),)) for number in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(granted) == sorted(f"k-{number}" for number in range(200))
    assert len(refused) == 200 * (racers - 1)
