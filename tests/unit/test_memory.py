"""What only the in-memory store has: its bound, its sweeping, its atomic changes.  Its decisions are the conformance suite's."""

from __future__ import annotations

import os
import random
import signal
import warnings
from itertools import permutations
from threading import Barrier, Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS, FakeClock
from lines import AtLine, at_each_line

from persistence import memory
from persistence.base import wall_clock_ms
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
)
from persistence.memory import FIRST_SWEEP, InMemoryPersistenceLayer
from persistence.rules import is_claimable, is_waste, waste_from_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the records that a store has looked at, to see whether they have expired."""
    keys: list[str] = []

    def counting(record: DataRecord, now_ms: int) -> bool:
        keys.append(record.key)
        return is_waste(record, now_ms)

    monkeypatch.setattr(memory, "is_waste", counting)
    return keys


def full_of_live_records(size: int, clock: FakeClock, *, expires_in_s: Callable[[int], int] = lambda _number: 60) -> Any:
    store = InMemoryPersistenceLayer(max_records=size, clock_ms=clock)
    for number in range(size):
        complete_at(store, f"old-{number}", clock, expires_in_s=expires_in_s(number))
    return store


def test_a_claim_in_a_store_full_of_live_records_looks_at_none_of_them(clock: FakeClock, looked_at: list[str]) -> None:
    store = full_of_live_records(4 * FIRST_SWEEP, clock)
    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))
    looked_at.clear()

    for number in range(1_000):
        with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
            store.claim(offer(f"new-{number}", clock))

    assert looked_at == []


def test_claims_in_a_full_store_whose_records_expire_one_by_one_look_at_few_each(clock: FakeClock, looked_at: list[str]) -> None:
    """At each record once when it expires, and once before if its completion has moved its end."""
    size = 2 * FIRST_SWEEP
    store = full_of_live_records(size, clock, expires_in_s=lambda number: 10 + number)
    clock.advance(seconds=10)
    looked_at.clear()

    for number in range(size):
        clock.advance(seconds=1)
        store.claim(offer(f"new-{number}", clock, expires_in_s=10**6))

    assert size <= len(looked_at) <= 2 * size
    assert list(store._records) == [f"new-{number}" for number in range(size)]


def test_a_growing_store_looks_at_few_records_per_claim(clock: FakeClock, looked_at: list[str]) -> None:
    store = InMemoryPersistenceLayer(clock_ms=clock)

    for number in range(8 * FIRST_SWEEP):
        complete_at(store, f"k-{number}", clock, expires_in_s=number % 50)
        clock.advance(ms=20)

    assert len(looked_at) < FIRST_SWEEP + 2 * 8 * FIRST_SWEEP
    live = [key for key, record in store._records.items() if not is_waste(record, clock.now_ms)]
    assert len(store._records) < FIRST_SWEEP + len(live)


def test_renewals_cost_no_later_claim_more_than_a_few_looks(clock: FakeClock, looked_at: list[str]) -> None:
    """An entry that has become too early is corrected when it is due, and no claim corrects all of them."""
    store = InMemoryPersistenceLayer(clock_ms=clock)
    granted = [store.claim(offer(f"k-{number}", clock, expires_in_s=1)) for number in range(2 * FIRST_SWEEP)]
    ends = {"in_progress_expiry_timestamp": clock.now_ms + 10**7, "expiry_timestamp": clock.now_ms // 1000 + 10**5}
    for each in granted:
        store.renew(each.replace(**ends))
    clock.advance(seconds=100)
    looked_at.clear()

    store.claim(offer("new", clock))

    assert len(looked_at) == 2


def test_what_is_remembered_for_the_sweeping_is_bounded_whatever_is_claimed_and_released(clock: FakeClock) -> None:
    store = full_of_live_records(FIRST_SWEEP + 10, clock)
    store._records.pop("old-0")

    longest = 0
    for number in range(10 * FIRST_SWEEP):
        store.release(store.claim(offer(f"k-{number}", clock)))
        longest = max(longest, len(store._ends or ()))

    assert longest <= 2 * (FIRST_SWEEP + 10) + FIRST_SWEEP


def test_an_end_that_moves_earlier_is_noticed(clock: FakeClock) -> None:
    """A claim that nobody may take over expires in years, and its result within the hour."""
    store = full_of_live_records(FIRST_SWEEP, clock, expires_in_s=lambda _number: 10**8)
    granted = store._records["old-7"]
    store._records["old-7"] = running = granted.replace(status="INPROGRESS")
    with pytest.raises(IdempotencyPersistenceLayerError, match="full"):
        store.claim(offer("new", clock))

    store.complete(done(running, clock, expires_in_s=1))
    clock.advance(seconds=2)
    store.claim(offer("new", clock))

    assert store.fetch("old-7") is None


def test_an_expired_record_is_found_although_the_collection_of_ends_was_interrupted(clock: FakeClock) -> None:
    store = full_of_live_records(5, clock, expires_in_s=lambda number: 1 + number)
    clock.advance(seconds=3)
    store._ends = [(waste_from_ms(store._records["old-4"]), "old-4")]

    store.claim(offer("new", clock))

    assert list(store._records) == ["old-2", "old-3", "old-4", "new"]


class Sweeping:
    """The store as it was once: a claim of a new key looks at all records.  Only what is not waste is compared."""

    def __init__(self, max_records: int, clock: FakeClock) -> None:
        self.max_records = max_records
        self.clock = clock
        self.records: dict[str, DataRecord] = {}

    def claim(self, wanted: DataRecord) -> str:
        existing, now_ms = self.records.get(wanted.key), self.clock()
        if existing is not None and not is_claimable(existing, now_ms):
            return "refused"
        if existing is None:
            self.records = self.live()
            if len(self.records) >= self.max_records:
                return "full"
        self.records[wanted.key] = wanted
        return "granted"

    def live(self) -> dict[str, DataRecord]:
        return {key: record for key, record in self.records.items() if not is_waste(record, self.clock())}


@pytest.mark.parametrize("seed", range(12))
def test_a_store_decides_as_if_it_looked_at_all_its_records(seed: int, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(memory, "FIRST_SWEEP", rng.choice([1, 3, 8]))
    size = rng.choice([1, 2, 5, 12])
    store, model = InMemoryPersistenceLayer(max_records=size, clock_ms=clock), Sweeping(size, clock)
    granted: dict[str, DataRecord] = {}
    for _ in range(4_000):
        key = f"k-{rng.randrange(2 * size + 2)}"
        existing = model.records.get(key)
        if existing is not None and existing.stored_status == "INPROGRESS" and rng.random() < 0.5:
            held = granted[key]
            match rng.randrange(3):
                case 0:
                    model.records[key] = finished = done(held, clock, expires_in_s=rng.choice([0, 1, 5, 30]))
                    store.complete(finished)
                case 1:
                    del model.records[key]
                    store.release(held)
                case _:
                    later = max(existing.in_progress_expiry_timestamp or 0, clock.now_ms + rng.choice([500, 3_000]))
                    ends = {"in_progress_expiry_timestamp": later, "expiry_timestamp": later // 1000 + rng.choice([1, 40])}
                    model.records[key] = existing.replace(**ends)
                    store.renew(held.replace(**ends))
        else:
            wanted = offer(
                key, clock, owner=str(rng.random()), lease_ms=rng.choice([100, 2_000]), expires_in_s=rng.choice([1, 9])
            )
            expected, said = model.claim(wanted), claimed(store, wanted)
            assert said[0] == expected, seed
            if expected == "granted":
                granted[key] = wanted
        clock.advance(ms=rng.choice([0, 1, 50, 400, 2_500]))
        live = {key: record for key, record in store._records.items() if not is_waste(record, clock.now_ms)}
        assert {key: record.owner_token for key, record in live.items()} == {
            key: record.owner_token for key, record in model.live().items()
        }, seed
        assert len(store._records) <= size + 1  # a result is stored although its claim was dropped meanwhile


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


# What happens in the middle of a verb, as by a signal's handler


def claimed(store: InMemoryPersistenceLayer, wanted: DataRecord) -> tuple[object, ...]:
    try:
        return "granted", wanted.owner_token, store.claim(wanted).generation
    except IdempotencyItemAlreadyExistsError as refused:
        holder: Any = refused.old_data_record
        return "refused", holder.owner_token, holder.stored_status
    except IdempotencyPersistenceLayerError as failed:
        return ("full" if "The in-memory store is full" in str(failed) else str(failed),)


def written(verb: Callable[[DataRecord], None], record: DataRecord) -> tuple[object, ...]:
    try:
        verb(record)
    except IdempotencyLeaseLostError as lost:
        return "fenced", lost.record and lost.record.owner_token
    return ("written",)


class Scene:
    """A store with a key in some state, and what may be done with it."""

    def __init__(self, state: str) -> None:
        self.clock = clock = FakeClock()
        self.store = store = InMemoryPersistenceLayer(max_records=3, clock_ms=clock)
        self.held = offer("k", clock, owner="holder")
        complete_at(store, "waste", clock, expires_in_s=1)
        if state != "absent":
            store.claim(self.held)
        if state == "completed":
            store.complete(done(self.held, clock))
        clock.advance(ms=1_001 if state in ("orphan", "completed") else 0)
        if state == "expired":
            store.complete(done(self.held, clock, expires_in_s=1))
            clock.advance(seconds=2)
        if state == "full of waste":
            complete_at(store, "more", clock, expires_in_s=100)
            clock.advance(seconds=3)
        self.verbs: dict[str, Callable[[], tuple[object, ...]]] = {
            "claim": lambda: claimed(store, offer("k", clock, owner="a")),
            "claim again": lambda: claimed(store, offer("k", clock, owner="b")),
            "claim another": lambda: claimed(store, offer("other", clock, owner="c")),
            "claim a third": lambda: claimed(store, offer("third", clock, owner="d")),
            "complete": lambda: written(store.complete, done(self.held, clock)),
            "renew": lambda: written(store.renew, self.held.replace(in_progress_expiry_timestamp=clock.now_ms + 9_000)),
            "release": lambda: written(store.release, self.held),
            "fetch": lambda: (getattr(store.fetch("k"), "owner_token", None),),
        }

    def left(self) -> dict[str, tuple[str, str, int]]:
        """What can still be read of the records that are not waste."""
        live = {key: record for key, record in self.store._records.items() if not is_waste(record, self.clock.now_ms)}
        return {key: (each.owner_token, each.stored_status, each.generation) for key, each in live.items()}


STATES = ["absent", "running", "orphan", "completed", "expired", "full of waste"]


@pytest.mark.parametrize("threshold", [1, 2, 1024])
@pytest.mark.parametrize("state", STATES)
def test_a_verb_within_another_ends_as_if_one_had_come_after_the_other(
    state: str, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each line of the outer one.  So of two claims one is granted, and nothing waits for itself."""
    monkeypatch.setattr(memory, "FIRST_SWEEP", threshold)
    lines = 0
    for outer, inner in permutations(Scene(state).verbs, 2):
        expected = []
        for order in ((outer, inner), (inner, outer)):
            scene = Scene(state)
            said = {name: scene.verbs[name]() for name in order}
            expected.append((said, scene.left()))

        scenes: list[Scene] = []
        told: list[dict[str, object]] = []

        def begin(
            _number: int, outer: str = outer, inner: str = inner, scenes: list[Scene] = scenes, told: list[Any] = told
        ) -> tuple[Callable[[], object], Callable[[], object]]:
            scene, said = Scene(state), dict[str, object]()
            scenes.append(scene)
            told.append(said)
            return (
                lambda: said.update({outer: scene.verbs[outer]()}),
                lambda: said.update({inner: scene.verbs[inner]()}),
            )

        lines += at_each_line(memory, begin)
        for scene, said in zip(scenes[:-1], told, strict=False):
            assert (said, scene.left()) in expected, (outer, inner)
            assert len(scene.store._records) <= 3
    assert lines > 500


class Torn(BaseException):
    """What a signal's handler raises."""


def tear() -> None:
    raise Torn


@pytest.mark.parametrize("threshold", [1, 1024])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", ["claim", "claim another", "complete", "renew", "release"])
def test_a_verb_that_is_torn_away_has_been_done_or_has_not(
    verb: str, state: str, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each line.  The store goes on, and drops what expires."""
    monkeypatch.setattr(memory, "FIRST_SWEEP", threshold)
    before, after = Scene(state), Scene(state)
    after.verbs[verb]()
    for number in range(1_000):
        scene = Scene(state)
        try:
            with AtLine(memory, number, tear) as line:
                scene.verbs[verb]()
        except Torn:
            pass
        if not line.happened:
            break
        assert scene.left() in (before.left(), after.left())
        scene.clock.advance(seconds=200)
        for key in ("x", "y", "z"):
            assert claimed(scene.store, offer(key, scene.clock))[0] == "granted"
        assert claimed(scene.store, offer("k", scene.clock)) == ("full",)
    assert number >= 5


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has something called in the main thread, wherever that is, time and again."""
    before = signal.getsignal(signal.SIGALRM)

    def set_alarm(rings: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: rings())
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_of_a_call_and_a_signals_call_one_is_granted_each_key(alarm: Callable[..., None]) -> None:
    store = InMemoryPersistenceLayer(max_records=50)
    granted: list[str] = []
    number = 0

    def claim(owner: str) -> None:
        wanted = DataRecord(f"k-{number}", "INPROGRESS", 2**40, 2**50, owner_token=owner, generation=1)
        if claimed(store, wanted)[0] == "granted":
            granted.append(f"k-{number}")

    alarm(lambda: claim("signal"))
    while len(granted) < 3_000:
        claim("main")
        store._records.pop(f"k-{number - 40}", None)
        number += 1

    assert len(granted) == len(set(granted))


def test_a_forked_child_goes_on_although_another_thread_was_in_the_middle_of_a_claim(clock: FakeClock) -> None:
    inside, may_go_on = Event(), Event()

    def clock_ms() -> int:
        if not inside.is_set():
            inside.set()
            assert may_go_on.wait(10)
        return clock()

    store = InMemoryPersistenceLayer(clock_ms=clock_ms)
    thread = Thread(target=lambda: store.claim(offer("k", clock, owner="thread")))
    thread.start()
    assert inside.wait(10)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the story
        child = os.fork()
    if child == 0:
        os._exit(claimed(store, offer("k", clock, owner="child")) != ("granted", "child", 1))
    _, status = os.waitpid(child, 0)
    may_go_on.set()
    thread.join()

    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def just_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Has something happen once, just before an atomic change, as another thread's call may."""

    def happens(change: str, what: Callable[[], object]) -> None:
        original = getattr(memory, change)

        def after_that(*arguments: Any) -> bool:
            monkeypatch.setattr(memory, change, original)
            what()
            changed: bool = original(*arguments)
            return changed

        monkeypatch.setattr(memory, change, after_that)

    return happens


@pytest.mark.parametrize(
    ("state", "verb", "change", "meanwhile", "said"),
    [
        ("absent", "claim", "_added", "claim again", ("refused", "b", "INPROGRESS")),
        ("orphan", "claim", "_replaced", "claim again", ("refused", "b", "INPROGRESS")),
        ("orphan", "claim", "_replaced", "release", ("granted", "a", 1)),
        ("running", "complete", "_replaced", "renew", ("written",)),
        ("running", "complete", "_replaced", "release", ("written",)),
        ("orphan", "complete", "_replaced", "claim", ("fenced", "a")),
        ("running", "renew", "_replaced", "complete", ("fenced", "holder")),
        ("absent", "complete", "_added", "claim", ("fenced", "a")),
        ("running", "release", "_removed", "complete", ("fenced", "holder")),
        ("running", "release", "_removed", "renew", ("written",)),
        ("running", "release", "_removed", "release", ("written",)),
    ],
)
def test_a_record_that_changes_before_it_is_written_is_read_again(
    just_before: Callable[..., None], state: str, verb: str, change: str, meanwhile: str, said: tuple[object, ...]
) -> None:
    scene = Scene(state)
    just_before(change, scene.verbs[meanwhile])

    assert scene.verbs[verb]() == said


def test_claims_that_come_at_once_do_not_outgrow_the_store(clock: FakeClock, just_before: Callable[..., None]) -> None:
    """The second is granted while the first looks for room, and the first takes its claim back."""
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    just_before("_added", lambda: store.claim(offer("second", clock)))

    assert claimed(store, offer("first", clock)) == ("full",)
    assert list(store._records) == ["second"]


def test_a_record_that_is_written_while_the_ends_are_collected_is_dropped_when_it_has_expired(
    clock: FakeClock, just_before: Callable[..., None]
) -> None:
    store = InMemoryPersistenceLayer(max_records=1, clock_ms=clock)
    just_before("_added", lambda: store._collect_ends(clock.now_ms))

    store.claim(offer("old", clock))

    assert store._ends == [(waste_from_ms(store._records["old"]), "old")]


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
