"""Leases that are renewed while a function runs, worker threads, forks and exit.

The heartbeat is beaten by hand where time matters; the threads are real where threads matter.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS, FakeClock

from persistence import background
from persistence.background import CALL_WORKERS, Heartbeat, Lease, ThreadUnavailableError, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEASE_MS = 9_000
REAL_WORKERS = background.renewal_workers  # which the fixture `heart` replaces


class Renewals:
    """Notes when a lease was renewed, and fails or loses the lease as told."""

    def __init__(self, clock: FakeClock, *, takes_ms: int = 0) -> None:
        self.clock = clock
        self.takes_ms = takes_ms
        self.at_ms: list[int] = []
        self.fails_with: BaseException | None = None
        self.is_lost = False

    def __call__(self) -> bool:
        self.at_ms.append(self.clock.now_ms - START_MS)
        self.clock.advance(ms=self.takes_ms)
        if self.fails_with is not None:
            raise self.fails_with
        return not self.is_lost


def lease_of(renew: Callable[[], bool], clock: FakeClock, lease_ms: int = LEASE_MS, end_ms: int | None = None) -> Lease:
    """A lease whose renewals are made in the thread that begins them."""
    return Lease("fn#1", lambda lease: lease.run(renew), clock, lease_ms, end_ms)


@pytest.fixture
def renewals(clock: FakeClock) -> Renewals:
    return Renewals(clock)


def keep(heart: Heartbeat, *leases: Lease) -> None:
    for lease in leases:
        heart.keep(lease)


@pytest.mark.parametrize(("after_ms", "renewed"), [(0, False), (2_999, False), (3_000, True), (3_001, True), (60_000, True)])
def test_a_lease_is_renewed_when_a_third_of_it_has_passed(
    after_ms: int, renewed: bool, heart: Heartbeat, renewals: Renewals, clock: FakeClock
) -> None:
    lease = lease_of(renewals, clock)
    heart.keep(lease)

    clock.advance(ms=after_ms)
    heart.beat()

    assert bool(renewals.at_ms) is renewed


@pytest.mark.parametrize(("begun_ms_ago", "due_in_ms"), [(0, 3_000), (1, 2_999), (2_999, 1), (3_000, 0), (8_000, -5_000)])
def test_a_lease_that_has_run_for_a_while_is_due_so_much_sooner(
    begun_ms_ago: int, due_in_ms: int, heart: Heartbeat, renewals: Renewals, clock: FakeClock
) -> None:
    """A claim may have waited for its answer, and a recovered one for its next attempt."""
    lease = lease_of(renewals, clock, end_ms=clock.now_ms - begun_ms_ago + LEASE_MS)
    heart.keep(lease)

    if due_in_ms > 0:
        assert heart.beat() == due_in_ms
        assert renewals.at_ms == []
    else:
        heart.beat()
        assert renewals.at_ms == [0]


def test_a_lease_is_renewed_each_third_until_it_ends(heart: Heartbeat, renewals: Renewals, clock: FakeClock) -> None:
    lease = lease_of(renewals, clock)
    heart.keep(lease)
    for _ in range(10):
        clock.advance(ms=1_000)
        heart.beat()

    lease.end()
    clock.advance(ms=100_000)

    assert heart.beat() == math.inf
    assert renewals.at_ms == [3_000, 6_000, 9_000]


def test_the_next_third_counts_from_the_end_of_a_slow_renewal(heart: Heartbeat, clock: FakeClock) -> None:
    renewals = Renewals(clock, takes_ms=1_000)
    lease = lease_of(renewals, clock)
    heart.keep(lease)
    for ms in (3_000, 2_999, 1):
        clock.advance(ms=ms)
        heart.beat()

    assert renewals.at_ms == [3_000, 7_000]


@pytest.mark.parametrize(("lease_ms", "every_ms"), [(9_000, 3_000), (10_000, 3_333), (3, 1), (2, 1), (1, 1), (0, 1)])
def test_even_the_shortest_lease_is_renewed_at_intervals(
    lease_ms: int, every_ms: int, heart: Heartbeat, renewals: Renewals, clock: FakeClock
) -> None:
    lease = lease_of(renewals, clock, lease_ms)
    heart.keep(lease)

    assert heart.beat() == every_ms
    clock.advance(ms=every_ms)
    heart.beat()
    assert renewals.at_ms == [every_ms]


def test_a_lost_lease_is_renewed_no_more_and_logged_once(
    heart: Heartbeat, renewals: Renewals, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    renewals.is_lost = True
    lease = lease_of(renewals, clock)
    heart.keep(lease)

    for _ in range(3):
        clock.advance(ms=3_000)
        assert heart.beat() == (math.inf if lease.is_over else 3_000)

    assert renewals.at_ms == [3_000]
    assert [(record.levelno, "fn#1" in record.getMessage()) for record in caplog.records] == [(logging.WARNING, True)]


def test_a_failed_renewal_is_tried_again_some_ten_times_before_the_lease_ends(
    heart: Heartbeat, renewals: Renewals, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="persistence.background")
    renewals.fails_with = ConnectionError("reset")
    lease = lease_of(renewals, clock)
    heart.keep(lease)
    while clock.now_ms < START_MS + LEASE_MS:
        clock.advance(ms=round(heart.beat()))

    renewals.fails_with = None
    heart.beat()
    clock.advance(ms=round(heart.beat()))
    heart.beat()

    assert renewals.at_ms == [*range(3_000, 9_000, 600), 9_000, 12_000]
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING] + [logging.DEBUG] * 9


@pytest.mark.parametrize(
    "trouble", [ConnectionError("reset"), KeyboardInterrupt(), SystemExit(), GeneratorExit(), MemoryError()], ids=repr
)
def test_one_renewals_trouble_is_no_other_leases(trouble: BaseException, heart: Heartbeat, clock: FakeClock) -> None:
    every = [Renewals(clock) for _ in range(8)]
    leases = [lease_of(renewals, clock) for renewals in every]
    keep(heart, *leases)
    every[3].fails_with = trouble

    for _ in range(2):
        clock.advance(ms=3_000)
        heart.beat()

    assert [renewals.at_ms for renewals in every if renewals is not every[3]] == [[3_000, 6_000]] * 7


def test_a_clock_that_fails_is_the_trouble_of_its_lease(heart: Heartbeat, renewals: Renewals, clock: FakeClock) -> None:
    is_broken = False

    def broken() -> int:
        if is_broken:
            raise OSError("no clock")
        return clock()

    odd = Lease("fn#odd", lambda _: None, broken, LEASE_MS)
    lease = lease_of(renewals, clock)
    keep(heart, odd, lease)
    is_broken = True
    clock.advance(ms=3_000)

    assert heart.beat() == background.RECOVERY_MS
    assert renewals.at_ms == [3_000]


def test_leases_may_come_and_go_during_a_beat(heart: Heartbeat, clock: FakeClock) -> None:
    """A renewal may run the garbage collector, which closes coroutines, and a signal's handler, which makes calls."""
    others: list[Lease] = []

    def renew() -> bool:
        for lease in others:
            lease.end()
        others[:] = [lease_of(lambda: True, clock) for _ in range(20)]
        keep(heart, *others)
        return True

    leases = [lease_of(renew, clock) for _ in range(20)]
    keep(heart, *leases)

    clock.advance(ms=3_000)

    assert heart.beat() == 3_000


def test_a_lease_whose_call_is_gone_is_renewed_no_more(heart: Heartbeat, renewals: Renewals, clock: FakeClock) -> None:
    """Nobody ended it: its call was torn away in its very last line."""
    heart.keep(lease_of(renewals, clock))
    gc.collect()

    clock.advance(ms=3_000)

    assert heart.beat() == math.inf
    assert renewals.at_ms == []


def test_leases_are_due_by_the_clocks_of_their_own_stores(heart: Heartbeat) -> None:
    early, late = FakeClock(), FakeClock(START_MS + 10**9)
    first, second = Renewals(early), Renewals(late)
    leases = [lease_of(first, early), lease_of(second, late)]
    keep(heart, *leases)

    late.advance(ms=3_000)
    heart.beat()

    assert (len(first.at_ms), len(second.at_ms)) == (0, 1)


def test_a_wall_clock_that_is_set_back_delays_no_renewal(renewals: Renewals, clock: FakeClock) -> None:
    now_at = 100.0
    heart = Heartbeat(monotonic=lambda: now_at)
    heart._thread = threading.current_thread()
    lease = lease_of(renewals, clock)
    heart.keep(lease)

    clock.advance(ms=-3_600_000)
    now_at = 102.999
    heart.beat()
    now_at = 103.0
    heart.beat()
    now_at = 106.0
    heart.beat()

    assert len(renewals.at_ms) == 2


def test_ending_twice_is_no_error(heart: Heartbeat, renewals: Renewals, clock: FakeClock) -> None:
    lease = lease_of(renewals, clock)
    heart.keep(lease)

    lease.end()
    lease.end()

    assert heart.beat() == math.inf


def test_a_lease_ends_before_it_was_ever_kept(renewals: Renewals, clock: FakeClock) -> None:
    lease = lease_of(renewals, clock)

    lease.end()
    lease.run(renewals)

    assert renewals.at_ms == []
    assert not lease.is_under_way


def test_a_renewal_that_cannot_be_begun_is_tried_again_soon(heart: Heartbeat, clock: FakeClock) -> None:
    """There is no thread for it at the moment, or its loop is closed."""
    begun: list[int] = []

    def begin(_lease: Lease) -> None:
        begun.append(clock.now_ms - START_MS)
        raise ThreadUnavailableError

    lease = Lease("fn#1", begin, clock, LEASE_MS)
    heart.keep(lease)
    clock.advance(ms=3_000)

    assert heart.beat() == 600
    clock.advance(ms=600)
    heart.beat()
    assert begun == [3_000, 3_600]


# No renewal is under way when a result is written


def test_whoever_ends_a_lease_can_wait_for_the_renewal_that_is_under_way(clock: FakeClock) -> None:
    under_way, may_end = threading.Event(), threading.Event()

    def renew() -> bool:
        under_way.set()
        return may_end.wait(10)

    lease = Lease("fn#1", lambda _: None, clock, LEASE_MS)
    lease.kept_by(Heartbeat())
    renewing = threading.Thread(target=lease.run, args=(renew,))
    renewing.start()
    assert under_way.wait(10)
    lease.end()

    assert lease.is_under_way
    assert not lease.wait_until_idle(0.001)
    may_end.set()
    assert lease.wait_until_idle(10)
    assert not lease.is_under_way
    renewing.join(10)


def test_an_idle_lease_is_waited_for_no_time(renewals: Renewals, clock: FakeClock) -> None:
    called: list[str] = []
    lease = lease_of(renewals, clock)

    lease.when_idle(lambda: called.append("idle"))

    assert lease.wait_until_idle(0)
    assert called == ["idle"]


# The thread


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heartbeat]:
    """A heartbeat with a thread, by real clocks."""
    heart = Heartbeat()
    monkeypatch.setattr(background, "renewal_workers", REAL_WORKERS)
    yield heart
    heart._thread = None  # which ends the thread
    heart._wake.put(None)


def short(renew: Callable[[], bool], lease_ms: int = 30) -> Lease:
    """A lease that is due after a hundredth of a second."""
    return Lease("fn#1", lambda lease: lease.run(renew), background_clock, lease_ms)


def background_clock() -> int:
    return int(background.monotonic() * 1000)


def test_the_thread_starts_with_the_first_lease_and_there_is_one(real: Heartbeat) -> None:
    before = set(threading.enumerate())
    leases = [short(lambda: True, 3_600_000) for _ in range(2)]

    assert real._thread is None
    keep(real, leases[0])
    while real._thread is None:
        threading.Event().wait(0.001)
    keep(real, leases[1])

    started = [thread for thread in threading.enumerate() if thread not in before]
    assert [(thread.name, thread.daemon) for thread in started] == [("idempotency-heartbeat", True)]


def test_the_thread_renews_each_lease_again_and_again(real: Heartbeat) -> None:
    counts = {"long": 0, "short": 0}
    enough = threading.Event()

    def renew(name: str) -> bool:
        counts[name] += 1
        if min(counts.values()) >= 3:
            enough.set()
        return True

    leases = [short(lambda: renew("long"), 300), short(lambda: renew("short"))]
    keep(real, *leases)

    assert enough.wait(30)


def test_the_thread_sees_a_lease_that_comes_while_it_sleeps_for_long(real: Heartbeat) -> None:
    renewed = threading.Event()
    long = short(lambda: True, 3_600_000)
    real.keep(long)
    while real._wakes_at == 0.0 or real._wakes_at == math.inf:  # noqa: PLR1714 - until it sleeps
        threading.Event().wait(0.001)

    def renew() -> bool:
        renewed.set()
        return True

    lease = short(renew)
    real.keep(lease)

    assert renewed.wait(30)


def test_the_thread_sleeps_without_end_where_no_lease_is_kept(real: Heartbeat) -> None:
    lease = short(lambda: True, 3_600_000)
    real.keep(lease)
    lease.end()
    while (thread := real._thread) is None:
        threading.Event().wait(0.001)
    real._wake.put(None)

    thread.join(0.05)

    assert thread.is_alive()
    assert real._wakes_at == math.inf


@pytest.mark.parametrize("trouble", [RuntimeError("odd"), KeyboardInterrupt(), SystemExit(), MemoryError()], ids=repr)
def test_no_error_ends_the_thread(real: Heartbeat, monkeypatch: pytest.MonkeyPatch, trouble: BaseException) -> None:
    monkeypatch.setattr(background, "RECOVERY_MS", 1)
    renewed = threading.Event()
    beats = 0
    beat = real.beat

    def stumbling() -> float:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise trouble
        return beat()

    def renew() -> bool:
        renewed.set()
        return True

    real.beat = stumbling  # type: ignore[method-assign]
    lease = short(renew)
    real.keep(lease)

    assert renewed.wait(30)


def failing() -> float:
    raise ValueError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced_by_the_next_lease(real: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RECOVERY_MS", None)  # so that the heartbeat fails where it cannot fail
    beat = real.beat
    real.beat = failing  # type: ignore[method-assign]
    first = short(lambda: True)
    real.keep(first)
    while real._thread is not None:
        threading.Event().wait(0.001)
    real.beat = beat  # type: ignore[method-assign]
    renewed = threading.Event()

    def renew() -> bool:
        renewed.set()
        return True

    lease = short(renew)
    real.keep(lease)

    assert renewed.wait(30)


def test_of_two_threads_that_were_started_at_once_one_ends(real: Heartbeat) -> None:
    renewed = threading.Event()
    first = background._started(real._run, (real._wake,), "first")
    second = background._started(real._run, (real._wake,), "second")
    while real._thread is not second:
        threading.Event().wait(0.001)

    def renew() -> bool:
        renewed.set()
        return True

    while first.is_alive():
        real._wake.put(None)  # which either of them may take
        first.join(0.01)
    lease = short(renew)
    real.keep(lease)

    assert renewed.wait(30)


def test_a_thread_that_ends_leaves_its_wake_to_the_one_that_goes_on() -> None:
    heart = Heartbeat()

    def end() -> float:
        heart._thread = None
        return 0

    heart.beat = end  # type: ignore[method-assign]
    heart._wake.put(None)
    heart._run(heart._wake)

    assert heart._wake.qsize() == 1


# A thread that cannot be started


class Unstartable(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def unstartable(*_: object) -> threading.Thread:
    return Unstartable()


def forbidden(*_: object) -> threading.Thread:
    """As `Thread(daemon=True)` in a sub-interpreter that forbids them."""
    raise RuntimeError("daemon threads are disabled in this (sub)interpreter")


@pytest.fixture(params=[unstartable, forbidden])
def no_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """No thread can be started, until this is called."""
    new_thread = background._new_thread
    monkeypatch.setattr(background, "_new_thread", request.param)
    return lambda: monkeypatch.setattr(background, "_new_thread", new_thread)


def test_a_lease_that_no_thread_can_renew_is_refused_and_the_next_one_is_tried_again(
    no_threads: Callable[[], None], real: Heartbeat
) -> None:
    first, renewed = short(lambda: True), threading.Event()

    with pytest.raises(ThreadUnavailableError, match="^No thread could be started"):
        real.keep(first)
    assert first.is_over

    def renew() -> bool:
        renewed.set()
        return True

    no_threads()
    lease = short(renew)
    real.keep(lease)
    assert renewed.wait(30)


def test_a_job_without_any_worker_is_refused_and_not_queued(no_threads: Callable[[], None]) -> None:
    done: list[str] = []
    workers, ended = Workers("test", 2), threading.Event()

    with pytest.raises(ThreadUnavailableError, match="^No thread could be started"):
        workers.submit(lambda: done.append("first"))
    assert workers.is_idle

    no_threads()
    workers.submit(lambda: done.append("second"))
    workers.submit(ended.set)
    assert ended.wait(30)
    assert done == ["second"]


def test_a_job_waits_for_a_worker_that_exists_if_no_further_one_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, may_end, done = Workers("test", 2), threading.Event(), threading.Event()
    workers.submit(lambda: may_end.wait(30))
    monkeypatch.setattr(background, "_new_thread", unstartable)

    workers.submit(done.set)
    assert not done.is_set()
    may_end.set()

    assert done.wait(30)


def test_a_job_that_a_worker_took_in_the_last_moment_is_not_withdrawn() -> None:
    workers = Workers("test", 1)

    assert not workers._withdrawn([])


# Workers


def test_workers_are_started_as_needed_up_to_their_limit() -> None:
    workers = Workers("test-limit", 3)
    barrier, may_end, done = threading.Barrier(4), threading.Event(), threading.Event()

    def job() -> None:
        barrier.wait(30)
        may_end.wait(30)

    for _ in range(3):
        workers.submit(job)
    barrier.wait(30)
    workers.submit(done.set)
    assert [thread.name for thread in threading.enumerate()].count("test-limit") == 3
    assert not done.is_set()
    may_end.set()

    assert done.wait(30)


def test_one_worker_does_what_comes_one_after_another() -> None:
    workers = Workers("test-one", 3)
    for _ in range(10):
        done = threading.Event()
        workers.submit(done.set)
        assert done.wait(30)
        while not workers.is_idle:
            threading.Event().wait(0.001)

    assert [thread.name for thread in threading.enumerate()].count("test-one") == 1


@pytest.mark.parametrize("trouble", [ValueError("odd"), SystemExit(), KeyboardInterrupt()], ids=repr)
def test_no_job_ends_a_worker(trouble: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    workers, done = Workers("test", 1), threading.Event()

    def fail() -> None:
        raise trouble

    workers.submit(fail)
    workers.submit(done.set)

    assert done.wait(30)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_workers_of_a_store_end_with_it() -> None:
    class Store:
        pass

    store: object = Store()
    workers = background.call_workers(store)
    assert background.call_workers(store) is workers
    meeting = threading.Barrier(3)
    for _ in range(2):
        workers.submit(lambda: meeting.wait(30))
    meeting.wait(30)
    threads = [*workers._threads]

    del workers, store
    gc.collect()
    for thread in threads:
        thread.join(30)

    assert [thread.is_alive() for thread in threads] == [False, False]


def test_a_stores_calls_and_renewals_have_workers_of_their_own() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

    one, other = Unhashable(), Unhashable()
    lane = background._lane_of(one)

    assert len({id(each) for each in (lane.calls, lane.renewals, background.call_workers(other))}) == 3


def test_a_store_that_was_made_where_another_was_has_workers_of_its_own() -> None:
    class Store:
        pass

    old, new = Store(), Store()
    background._lanes[id(new)] = stale = background._Lane(old, lambda _: None)

    assert background.call_workers(new) is not stale.calls


def test_a_finalizers_job_is_done_by_a_worker_that_exists() -> None:
    workers, done = Workers("test", 1), threading.Event()
    workers.submit(lambda: None)

    workers.submit_in_finalizer(done.set)

    assert done.wait(30)


def test_a_hanging_store_and_a_dying_renewal_leave_another_stores_leases_intact(
    real: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real threads: one store hangs at each of its leases, one renewal dies, and a healthy store's lease is renewed on."""

    class Store:
        pass

    hanging, dying, healthy = Store(), Store(), Store()
    may_end, enough = threading.Event(), threading.Event()
    renewed: list[str] = []

    def hang() -> bool:
        return may_end.wait(60)

    def die() -> bool:
        raise SystemExit

    def renew() -> bool:
        renewed.append("healthy")
        if len(renewed) == 5:
            enough.set()
        return True

    leases = [Lease("fn#1", background.by_workers(hanging, hang), background_clock, 30) for _ in range(CALL_WORKERS)]
    leases.append(Lease("fn#2", background.by_workers(dying, die), background_clock, 30))
    leases.append(Lease("fn#3", background.by_workers(healthy, renew), background_clock, 30))
    keep(real, *leases)

    assert enough.wait(60)
    may_end.set()
    for lease in leases:
        lease.end()


@pytest.fixture
def broken_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of the user's that raises: its pipe is full, say."""

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(logging.getLogger("persistence.background"), "log", fail)


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_fails_ends_no_renewals(heart: Heartbeat, renewals: Renewals, clock: FakeClock) -> None:
    renewals.fails_with = ConnectionError("reset")
    lease = lease_of(renewals, clock)
    heart.keep(lease)
    clock.advance(ms=3_000)
    heart.beat()
    renewals.fails_with = None
    clock.advance(ms=3_000)
    heart.beat()

    assert renewals.at_ms == [3_000, 6_000]


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_fails_ends_no_worker() -> None:
    workers, done = Workers("test", 1), threading.Event()

    def fail() -> None:
        raise ValueError

    workers.submit(fail)
    workers.submit(done.set)

    assert done.wait(30)


@pytest.mark.parametrize("ends", ["is_ending", "is_over"])
def test_a_renewal_that_its_own_attempts_end_overtook_is_no_lost_lease(
    heart: Heartbeat, renewals: Renewals, clock: FakeClock, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    renewals.is_lost = True
    lease = lease_of(lambda: setattr(lease, ends, True) or renewals(), clock)
    heart.keep(lease)
    clock.advance(ms=3_000)
    heart.beat()

    assert caplog.records == []


# The hooks of forks and of the exit, called as Python calls them


def test_the_hooks_of_a_fork_hold_the_locks_give_them_back_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        forks = 0

        def after_fork(self) -> None:
            self.forks += 1

    monkeypatch.setattr(background, "_fork_locks", [])
    monkeypatch.setattr(background, "_child_hooks", [])
    monkeypatch.setattr(background, "_lanes", {})
    monkeypatch.setattr(background, "fork_count", 0)
    lock, store, gone = background.ForkLock(), Store(), Store()
    background.in_forked_child(store)
    background.in_forked_child(gone)
    hooks = [*background._child_hooks]
    del gone
    assert len(background._child_hooks) == 1
    background._child_hooks[:] = hooks  # as if it were collected in this very moment
    background.call_workers(store)

    background._before_fork()
    assert not other_thread_gets(lock)
    background._after_fork_in_parent()
    assert other_thread_gets(lock)
    background._before_fork()
    background._after_fork_in_child()

    assert other_thread_gets(lock)
    assert (background.fork_count, store.forks, background._lanes) == (1, 1, {})


def other_thread_gets(lock: background.ForkLock) -> bool:
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(lock._lock.acquire(timeout=0.01)) or (got[0] and lock._lock.release()))
    thread.start()
    thread.join()
    return got[0]


def test_a_fork_gives_no_lock_back_that_it_did_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_fork_locks", [])
    monkeypatch.setattr(background, "FORK_SECONDS", 0.01)
    lock = background.ForkLock()
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)

    background._before_fork()
    background._after_fork_in_parent()

    may_end.set()
    holder.join()
    assert other_thread_gets(lock)


def test_the_exit_waits_for_calls_that_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        pass

    monkeypatch.setattr(background, "_lanes", {})
    store, may_end = Store(), threading.Event()
    workers = background.call_workers(store)
    workers.submit(lambda: may_end.wait(30))
    pause = background._pause

    def pausing(seconds: float) -> None:
        may_end.set()
        pause(seconds)

    monkeypatch.setattr(background, "_pause", pausing)
    background._end_calls()

    assert workers.is_idle


def test_a_wait_for_a_renewal_that_another_thread_has_answered_already_is_answered_once(clock: FakeClock) -> None:
    lease = lease_of(lambda: True, clock)
    called: list[str] = []

    class Emptied(deque[Any]):
        def popleft(self) -> Any:
            raise IndexError

    lease._waiting = Emptied([lambda: called.append("idle")])
    lease._wake()

    assert called == []


# Processes


def run(story: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, because it forks, or exits."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", story],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_forked_child_begins_with_nothing_of_its_parents() -> None:
    done = run("""
import os, sys, threading
from persistence import background
from persistence.background import Lease, heartbeat, call_workers
from time import time_ns
clock = lambda: time_ns() // 10**6

class Store:
    forked = 0
    def after_fork(self):
        self.forked += 1

store, gone = Store(), Store()
background.in_forked_child(store)
background.in_forked_child(gone)
del gone
lock = background.ForkLock()
parents = Lease("parent", lambda lease: None, clock, 9_000)
heartbeat.keep(parents)
call_workers(store).submit(lambda: None)
child = os.fork()
if child == 0:
    assert heartbeat._leases == set() and heartbeat._thread is None
    assert store.forked == 1 and background.fork_count == 1
    with lock:
        own = Lease("child", lambda lease: renewed.set(), clock, 30)
    renewed, done = threading.Event(), threading.Event()
    heartbeat.keep(own)
    call_workers(store).submit(done.set)
    os._exit(0 if renewed.wait(20) and done.wait(20) else 1)
_, status = os.waitpid(child, 0)
assert len(heartbeat._leases) == 1 and heartbeat._thread.is_alive()
assert store.forked == 0 and background.fork_count == 0
sys.exit(os.waitstatus_to_exitcode(status))
""")

    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_waits_for_a_lock_and_goes_on_without_it_in_the_end() -> None:
    done = run("""
import os, sys, threading
from persistence import background
background.FORK_SECONDS = 0.05
short, long = background.ForkLock(), background.ForkLock()
held, may_end = threading.Event(), threading.Event()

def hold():
    with long:
        held.set()
        may_end.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait(30)
with short:  # reentrant: the thread that forks may hold it
    child = os.fork()
    if child == 0:
        with short, long:
            os._exit(0)
_, status = os.waitpid(child, 0)
assert not may_end.is_set() and holder.is_alive()
may_end.set()
holder.join()
with short, long:
    sys.exit(os.waitstatus_to_exitcode(status))
""")

    assert (done.returncode, done.stderr) == (0, "")


def test_the_exit_of_the_interpreter_waits_for_calls_that_are_under_way_but_not_for_ever() -> None:
    done = run("""
import sys, threading
from persistence import background
background.EXIT_SECONDS = 1.0

class Store:
    pass

store, hanging = Store(), Store()
may_begin = threading.Event()

def release():
    may_begin.wait(30)
    sys.stdout.write("released")
    sys.stdout.flush()

background.call_workers(store).submit(release)
background.call_workers(hanging).submit(threading.Event().wait)
wait = background._pause

def pause(seconds):
    may_begin.set()
    wait(seconds)

background._pause = pause
""")

    assert (done.returncode, done.stdout, done.stderr) == (0, "released", "")
