"""Leases that are renewed while a function runs, beaten by hand; and the one thread that beats in real life."""

from __future__ import annotations

import logging
import math
import os
import queue
import subprocess
import sys
import threading

import pytest
from doubles import START_MS, FakeClock

from idempotency.heartbeat import Heartbeat
from persistence.exceptions import IdempotencyLeaseLostError

LEASE_MS = 9_000


class ByHand(Heartbeat):
    """A heart without a thread: the test beats."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.current_thread()


class Renewals:
    """Notes when a lease was renewed, and fails as told."""

    def __init__(self, clock: FakeClock, *, takes_ms: int = 0) -> None:
        self.clock = clock
        self.takes_ms = takes_ms
        self.at_ms: list[int] = []
        self.fails_with: Exception | None = None

    def __call__(self) -> None:
        self.at_ms.append(self.clock.now_ms - START_MS)
        self.clock.advance(ms=self.takes_ms)
        if self.fails_with is not None:
            raise self.fails_with


@pytest.fixture
def heart() -> ByHand:
    return ByHand()


@pytest.fixture
def renewals(clock: FakeClock) -> Renewals:
    return Renewals(clock)


@pytest.mark.parametrize(("after_ms", "renewed"), [(0, False), (2_999, False), (3_000, True), (3_001, True), (60_000, True)])
def test_a_lease_is_renewed_when_a_third_of_it_has_passed(
    after_ms: int, renewed: bool, heart: ByHand, renewals: Renewals, clock: FakeClock
) -> None:
    heart.watch("k", renewals, clock, LEASE_MS)

    clock.advance(ms=after_ms)
    heart.beat()

    assert bool(renewals.at_ms) is renewed


@pytest.mark.parametrize(("begun_ms_ago", "due_in_ms"), [(0, 3_000), (1, 2_999), (2_999, 1), (3_000, 0), (8_000, -5_000)])
def test_a_lease_that_has_run_for_a_while_is_due_so_much_sooner(
    begun_ms_ago: int, due_in_ms: int, heart: ByHand, renewals: Renewals, clock: FakeClock
) -> None:
    """A claim may have waited for its answer, and a recovered one for its next attempt."""
    heart.watch("k", renewals, clock, LEASE_MS, clock.now_ms - begun_ms_ago + LEASE_MS)

    if due_in_ms > 0:
        assert heart.beat() == due_in_ms
        assert renewals.at_ms == []
    else:
        heart.beat()
        assert renewals.at_ms == [0]


def test_a_lease_is_renewed_each_third_until_it_is_forgotten(heart: ByHand, renewals: Renewals, clock: FakeClock) -> None:
    watch = heart.watch("k", renewals, clock, LEASE_MS)
    for _ in range(10):
        clock.advance(ms=1_000)
        heart.beat()

    heart.forget(watch)
    clock.advance(ms=100_000)
    heart.beat()

    assert renewals.at_ms == [3_000, 6_000, 9_000]


def test_the_next_third_counts_from_the_end_of_a_slow_renewal(heart: ByHand, clock: FakeClock) -> None:
    renewals = Renewals(clock, takes_ms=1_000)
    heart.watch("k", renewals, clock, LEASE_MS)
    clock.advance(ms=3_000)
    heart.beat()

    clock.advance(ms=2_999)
    heart.beat()
    clock.advance(ms=1)
    heart.beat()

    assert renewals.at_ms == [3_000, 7_000]


@pytest.mark.parametrize(("lease_ms", "every_ms"), [(9_000, 3_000), (10_000, 3_333), (3, 1), (2, 1), (1, 1), (0, 1)])
def test_even_the_shortest_lease_is_renewed_at_intervals(
    lease_ms: int, every_ms: int, heart: ByHand, renewals: Renewals, clock: FakeClock
) -> None:
    heart.watch("k", renewals, clock, lease_ms)

    assert heart.beat() == every_ms
    clock.advance(ms=every_ms)
    heart.beat()
    assert renewals.at_ms == [every_ms]


def test_a_lease_is_forgotten_once_it_is_another_attempts(heart: ByHand, renewals: Renewals, clock: FakeClock) -> None:
    renewals.fails_with = IdempotencyLeaseLostError("taken over")
    heart.watch("k", renewals, clock, LEASE_MS)

    for _ in range(3):
        clock.advance(ms=3_000)
        heart.beat()

    assert renewals.at_ms == [3_000]


def test_a_renewal_that_fails_is_tried_again_soon_and_some_ten_times_before_the_lease_ends(
    heart: ByHand, renewals: Renewals, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="idempotency.heartbeat")
    renewals.fails_with = ConnectionError("reset")
    heart.watch("fn#1", renewals, clock, LEASE_MS)
    while clock.now_ms < START_MS + LEASE_MS:
        clock.advance(ms=round(heart.beat()))

    renewals.fails_with = None
    heart.beat()
    clock.advance(ms=round(heart.beat()))
    heart.beat()

    assert renewals.at_ms == [*range(3_000, 9_000, 600), 9_000, 12_000]
    assert {record.getMessage() for record in caplog.records} == {"The lease of key fn#1 was not renewed; it is tried again soon"}


def test_a_short_lease_whose_renewal_fails_is_tried_again_at_the_next_beat(
    heart: ByHand, renewals: Renewals, clock: FakeClock
) -> None:
    renewals.fails_with = ConnectionError("reset")
    heart.watch("k", renewals, clock, 3)
    clock.advance(ms=1)

    heart.beat()
    heart.beat()

    assert renewals.at_ms == [1, 1]


@pytest.mark.parametrize("trouble", [ConnectionError("reset"), IdempotencyLeaseLostError("taken over")], ids=repr)
def test_one_leases_trouble_does_not_stop_the_others(trouble: Exception, heart: ByHand, clock: FakeClock) -> None:
    leases = [Renewals(clock) for _ in range(8)]
    for lease in leases:
        heart.watch("k", lease, clock, LEASE_MS)
    leases[3].fails_with = trouble

    for _ in range(2):
        clock.advance(ms=3_000)
        heart.beat()

    assert [lease.at_ms for lease in leases if lease is not leases[3]] == [[3_000, 6_000]] * 7


def test_a_beat_tells_when_the_next_lease_is_due(heart: ByHand, clock: FakeClock) -> None:
    long, short = Renewals(clock), Renewals(clock)
    heart.watch("long", long, clock, 90_000)
    heart.watch("short", short, clock, 9_000)

    assert heart.beat() == 3_000
    clock.advance(ms=1_000)
    assert heart.beat() == 2_000
    clock.advance(ms=2_000)
    assert heart.beat() == 3_000
    assert (long.at_ms, short.at_ms) == ([], [3_000])


def test_a_beat_without_leases_has_nothing_due(heart: ByHand) -> None:
    assert heart.beat() == math.inf


def test_a_lease_that_is_lost_in_a_beat_is_due_no_more(heart: ByHand, renewals: Renewals, clock: FakeClock) -> None:
    renewals.fails_with = IdempotencyLeaseLostError("taken over")
    heart.watch("k", renewals, clock, LEASE_MS)
    clock.advance(ms=3_000)

    assert heart.beat() == math.inf


def test_leases_of_stores_with_different_clocks_are_due_by_their_own(heart: ByHand) -> None:
    early, late = FakeClock(), FakeClock(START_MS + 10**9)
    first, second = Renewals(early), Renewals(late)
    heart.watch("k1", first, early, LEASE_MS)
    heart.watch("k2", second, late, LEASE_MS)

    late.advance(ms=3_000)
    heart.beat()

    assert (len(first.at_ms), len(second.at_ms)) == (0, 1)


def test_forgetting_twice_is_no_error(heart: ByHand, renewals: Renewals, clock: FakeClock) -> None:
    watch = heart.watch("k", renewals, clock, LEASE_MS)

    heart.forget(watch)
    heart.forget(watch)

    assert heart.beat() == math.inf


def test_two_leases_of_one_key_are_two_leases(heart: ByHand, clock: FakeClock) -> None:
    """An attempt and its successor in the same process."""
    old, new = Renewals(clock), Renewals(clock)
    watch = heart.watch("k", old, clock, LEASE_MS)
    heart.watch("k", new, clock, LEASE_MS)

    heart.forget(watch)
    clock.advance(ms=3_000)
    heart.beat()

    assert (old.at_ms, new.at_ms) == ([], [3_000])


# The thread


class Pauses(threading.Condition):
    """The thread's bed: tells each time that it lies down, and for how long."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: queue.Queue[float | None] = queue.Queue()

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.put(timeout)
        return super().wait(timeout)


class Threaded(Heartbeat):
    """The real thing, with a bed that can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = Pauses()
        self._lock = self._changed = self.pauses

    def next_pause(self) -> float | None:
        return self.pauses.timeouts.get(timeout=10)


def never() -> None:
    raise AssertionError("not due")


def test_the_thread_starts_with_the_first_lease_and_there_is_one(clock: FakeClock) -> None:
    heart = Threaded()
    before = {thread.ident for thread in threading.enumerate()}

    assert heart._thread is None
    heart.watch("k1", never, clock, 3_600_000)
    heart.watch("k2", never, clock, 3_600_000)

    started = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert [thread.name for thread in started] == ["idempotency-heartbeat"]
    assert started[0].daemon


def test_the_thread_sleeps_until_the_next_lease_is_due_and_never_much_longer_than_a_minute(clock: FakeClock) -> None:
    heart = Threaded()

    heart.watch("k", never, clock, 90_000)
    assert heart.next_pause() == 30

    other = Threaded()
    other.watch("k", never, clock, 3_600_000)
    assert other.next_pause() == 60


def test_the_thread_sleeps_for_as_long_as_there_are_no_leases(clock: FakeClock) -> None:
    heart = Threaded()
    watch = heart.watch("k", never, clock, 3_600_000)
    heart.next_pause()

    heart.forget(watch)
    with heart.pauses:
        heart.pauses.notify()

    assert heart.next_pause() is None


def test_the_thread_is_woken_by_a_lease_that_is_due_sooner(clock: FakeClock) -> None:
    heart = Threaded()
    heart.watch("long", never, clock, 3_600_000)
    heart.next_pause()

    heart.watch("short", never, clock, 9_000)

    assert heart.next_pause() == 3


def test_the_thread_is_woken_by_a_lease_that_has_run_for_long(clock: FakeClock) -> None:
    heart = Threaded()
    heart.watch("long", never, clock, 3_600_000)
    assert heart.next_pause() == 60
    renewed = threading.Event()

    heart.watch("old", renewed.set, clock, 300_000, clock.now_ms + 1)

    assert heart.next_pause() == 60
    assert renewed.is_set()


def test_the_thread_renews_what_is_due(clock: FakeClock) -> None:
    heart = Threaded()
    renewed = threading.Event()
    heart.watch("k", renewed.set, clock, LEASE_MS)
    heart.next_pause()

    clock.advance(ms=3_000)
    with heart.pauses:
        heart.pauses.notify()

    assert renewed.wait(timeout=10)
    assert heart.next_pause() == 3


@pytest.mark.parametrize("notice", [False, True], ids=["unnoticed", "noticed"])
def test_a_lease_that_begins_while_another_is_being_renewed_is_renewed_in_time(notice: bool, clock: FakeClock) -> None:
    """Nobody sleeps on the condition meanwhile, so its notification reaches no one."""
    heart = Threaded()
    renewing, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        renewing.set()
        may_end.wait(timeout=10)

    heart.watch("slow", slow, clock, 180_000)
    heart.next_pause()
    clock.advance(ms=60_000)
    with heart.pauses:
        heart.pauses.notify()
    assert renewing.wait(timeout=10)

    heart.watch("short", never, clock, 9_000)
    if notice:
        with heart.pauses:
            heart.pauses.notify_all()
    may_end.set()

    assert heart.next_pause() == 3


def test_a_forked_child_beats_with_a_heart_of_its_own() -> None:
    """A fork copies no thread: a child that inherited the parent's would wait for renewals that never come."""
    story = """
import os, sys, warnings
from idempotency.heartbeat import heartbeat
warnings.simplefilter("ignore")  # forking with threads is what this is about
first = heartbeat.watch("parent", lambda: None, lambda: 0, 9_000)
heartbeat._changed.acquire()  # the parent's thread may hold the lock at the fork
child = os.fork()
if child == 0:
    inherited = (heartbeat._thread, set(heartbeat._watches))
    watch = heartbeat.watch("child", lambda: None, lambda: 0, 9_000)
    own = heartbeat._thread.is_alive() and heartbeat._watches == {watch}
    os._exit(0 if inherited == (None, set()) and own else 1)
heartbeat._changed.release()
_, status = os.waitpid(child, 0)
assert heartbeat._watches == {first}
sys.exit(os.waitstatus_to_exitcode(status))
"""

    done = subprocess.run(
        [sys.executable, "-P", "-c", story], env=inherited_path(), capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def inherited_path() -> dict[str, str]:
    """The environment of a child that imports what this process imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def test_a_signal_may_come_amid_the_heartbeats_own_work_and_make_a_call() -> None:
    """Its handler runs in the main thread, which holds the lock at that moment."""
    still = ByHand()
    watch = still.watch("k", lambda: None, lambda: START_MS, 60_000)

    with still._lock:
        assert still._lock.acquire(blocking=False), "it would wait for itself, for ever"
        still._lock.release()
        other = still.watch("of the handler", lambda: None, lambda: START_MS, 60_000)
        still.forget(other)

    assert still._watches == {watch}
