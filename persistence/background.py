"""Work behind a call: threads that use stores, the renewal of leases, and what a fork and the interpreter's exit do to both.

This is the only module that starts threads, hooks into forks or runs at exit.  It imports nothing of this library.  Its rules:

What runs where.  The heartbeat is one thread for the whole process.  It only decides which leases are due, and never calls a
store.  Each store has two groups of worker threads of its own: one makes the calls of async callers, the other renews leases.  A
native async store needs no workers: the loop of the call renews its lease.  All threads are daemons, and are started when they
are needed.

A store's trouble delays no other store.  A renewal or call that hangs keeps one worker of its own store busy, and nothing else.
One renewal that fails in any way, by a `BaseException` too, is the trouble of its lease alone.

No lock is held while other code runs, and none is taken in a finalizer.  The garbage collector may close a coroutine, and a
signal handler may make a call, at any line of this module, so everything here is one atomic step of CPython: `SimpleQueue.put`,
an append to a deque, an assignment.  The exception is `ForkLock`, under which stores make their clients.

A thread that cannot be started is a `ThreadUnavailableError`, and then nothing is queued.  The next call tries again.  The next
lease replaces a heartbeat thread that has died.

A forked child has none of its parent's threads.  It begins with no leases, no workers and new locks; `fork_count` changes, by
which a call learns that its claim belongs to the parent.

At interpreter exit, calls that were begun or queued have `EXIT_SECONDS` to end.  A lease that nobody renews any more ends by
itself.

A sandbox that was frozen and thaws renews its leases as soon as the heartbeat thread runs again.  If a lease ended meanwhile and
another attempt took its key over, the store's fence refuses the renewal, and the attempt learns of it when it completes.
"""

from __future__ import annotations

import atexit
import os
from _queue import Empty, SimpleQueue  # of which `queue` makes its own, at the price of the import of threading
from _thread import RLock
from collections import deque
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread

#: Store calls of async callers under way at once, per store.  Fewer than the connections of a client made by this library, so
#: that none waits for one.
CALL_WORKERS: Final = 40
#: Renewals under way at once, per store.  They keep alive as many leases as they can renew within two thirds of a lease: 3,200
#: leases of 3 s at a round trip of 10 ms.  `python -m benchmarks.leases` measures it; docs/performance.md has the figures.
RENEWAL_WORKERS: Final = 16

#: A lease is renewed when a third of it has passed.
BEATS_PER_LEASE: Final = 3
#: A renewal that failed is tried again after a fifth of that, so some ten times before the lease ends.
TRIES_PER_BEAT: Final = 5
#: The most that the heartbeat sleeps, so that a changed wall clock is noticed.
MAX_WAIT_MS: Final = 60_000
#: The least that the heartbeat sleeps: it looks at all leases each time.
MIN_WAIT_MS: Final = 5
#: How long the heartbeat waits after an error that nobody foresaw.
RECOVERY_MS: Final = 1_000

#: Levels of logging, which is imported only where something is logged.
DEBUG: Final = 10
WARNING: Final = 30

#: How long the interpreter's exit waits for calls that are under way.
EXIT_SECONDS: Final = 3.0
#: How long a fork waits for a client that another thread is making.
FORK_SECONDS: Final = 5.0

#: How many forks lie between this process and the one that imported the module.
fork_count: int = 0


class ThreadUnavailableError(RuntimeError):
    """No thread can be started at the moment, and nothing was queued for one."""


def _started(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> Thread:
    """A daemon thread that runs *target*.

    Raises:
        ThreadUnavailableError: there is no memory or no permission for one, or the interpreter is exiting.
    """
    try:
        thread = _new_thread(target, arguments, name)
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise _unavailable(error) from error
    return thread


def _new_thread(target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> Thread:
    from threading import Thread  # imported lazily: a Lambda handler starts no thread

    return Thread(target=target, args=arguments, name=name, daemon=True)


def _unavailable(error: BaseException) -> ThreadUnavailableError:
    return ThreadUnavailableError(
        f"No thread could be started ({error}); give the process more memory or a higher limit of threads"
    )


# Workers


class Workers:
    """Threads that do the jobs of one store, at most *limit* of them.  A job is called without arguments and may not raise."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        #: A job is a list of one callable, which whoever pops it calls: a worker, or a caller that withdraws it.
        self._jobs: SimpleQueue[list[Callable[[], object]] | None] = SimpleQueue()
        #: An entry for each job that is queued or under way.
        self._unfinished: deque[None] = deque()
        self._threads: list[Thread] = []

    def submit(self, call: Callable[[], object]) -> None:
        """Have a worker make the call.

        Raises:
            ThreadUnavailableError: there is no worker, and none can be started.  The call is not made.
        """
        job = [call]
        self._unfinished.append(None)
        self._jobs.put(job)
        try:
            self._start_if_needed()
        except ThreadUnavailableError:
            if not self._threads and self._withdrawn(job):
                raise
            # Else one of the workers makes the call, sooner or later.

    def submit_in_finalizer(self, call: Callable[[], object]) -> None:
        """Have one of the workers that exist make the call.  Starts no thread and takes no lock."""
        if not self._threads:
            return  # the store and its workers are being collected, too
        self._unfinished.append(None)
        self._jobs.put([call])

    @property
    def is_idle(self) -> bool:
        """Whether every job has been done."""
        return not self._unfinished

    def _start_if_needed(self) -> None:
        if len(self._threads) >= min(len(self._unfinished), self._limit):
            return
        arguments = (self._jobs, self._unfinished)  # and not self, so that the threads end when their store is collected
        # Counted after the start: an exception of a signal's handler in between costs a thread too many, and never one too few.
        self._threads.append(_started(_work, arguments, self._name))

    def _withdrawn(self, job: list[Callable[[], object]]) -> bool:
        try:
            job.pop()
        except IndexError:
            return False
        self._unfinished.pop()
        return True

    def __del__(self) -> None:
        self._jobs.put(None)


def _work(jobs: SimpleQueue[list[Callable[[], object]] | None], unfinished: deque[None]) -> None:
    """Do jobs until there is a None, which ends all workers of the queue."""
    while (job := jobs.get()) is not None:
        try:
            call = job.pop()
        except IndexError:
            continue  # withdrawn
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - nothing ends a worker
            _log(WARNING, "A call of a store failed in the background: %s", error)
        unfinished.pop()
        del call  # it may keep an error, and the frames of its caller
    jobs.put(None)


class _Lane:
    """The workers of one store."""

    __slots__ = ("calls", "owner", "renewals")

    def __init__(self, store: object, forget: Callable[[object], object]) -> None:
        self.owner = ref(store, forget)
        self.calls = Workers("idempotency-store", CALL_WORKERS)
        self.renewals = Workers("idempotency-renewal", RENEWAL_WORKERS)


#: By the identity of the store, which need not be hashable.
_lanes: dict[int, _Lane] = {}


def _lane_of(store: object) -> _Lane:
    key = id(store)
    lane = _lanes.get(key)
    if lane is None or lane.owner() is not store:
        lanes = _lanes
        lane = lanes[key] = _Lane(store, lambda _: lanes.pop(key, None))
    return lane


def call_workers(store: object) -> Workers:
    """The threads that call *store* for async callers."""
    return _lane_of(store).calls


def renewal_workers(store: object) -> Workers:
    """The threads that renew leases in *store*."""
    return _lane_of(store).renewals


# Leases


class Lease:
    """A lease to be renewed until `end`, or until nobody but the heartbeat refers to it any more.

    Args:
        key: The idempotency key, for the log.
        begin: Begins a renewal without waiting for it; see `by_workers`.
        clock_ms: The store's clock.
        lease_ms: The length of the lease.
        lease_end_ms: When it ends; None if it begins now.
    """

    __slots__ = (
        "__weakref__",
        "_begin",
        "_clock_ms",
        "_due_ms",
        "_every_ms",
        "_heartbeat",
        "_is_under_way",
        "_waiting",
        "due_at",
        "has_failed",
        "is_ending",
        "is_over",
        "key",
    )

    def __init__(
        self,
        key: str,
        begin: Callable[[Lease], None],
        clock_ms: Callable[[], int],
        lease_ms: int,
        lease_end_ms: int | None = None,
    ) -> None:
        self.key = key
        self._begin = begin
        self._clock_ms = clock_ms
        self._every_ms = max(1, lease_ms // BEATS_PER_LEASE)
        started_ms = clock_ms() if lease_end_ms is None else lease_end_ms - lease_ms
        self._due_ms: float = started_ms + self._every_ms
        #: The same by the monotonic clock, in seconds, set by `kept_by`: a wall clock that is set back delays no renewal.
        self.due_at = inf
        self._heartbeat: Heartbeat | None = None
        self._is_under_way = False
        self._waiting: deque[Callable[[], object]] = deque()
        self.is_over = False
        #: Whether the attempt is about to write the end of its record, which a renewal under way may meet.
        self.is_ending = False
        self.has_failed = False

    def end(self) -> None:
        """Begin no further renewal.  One that is under way goes on; `when_idle` says when it has ended."""
        self.is_over = True
        if self._heartbeat is not None:
            self._heartbeat.forget(self)

    @property
    def is_under_way(self) -> bool:
        """Whether a renewal is being made."""
        return self._is_under_way

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call *call*, from any thread, as soon as no renewal is under way."""
        self._waiting.append(call)
        if not self._is_under_way:
            self._wake()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for the renewal that is under way, if there is one.  Returns whether it ended in time."""
        if not self._is_under_way:
            return True
        ended: SimpleQueue[None] = SimpleQueue()
        self.when_idle(lambda: ended.put(None))
        try:
            ended.get(timeout=seconds)
        except Empty:
            return False
        return True

    def until_due_ms(self, now_at: float) -> float:
        """Milliseconds until the next renewal is due, by whichever clock says so first; *now_at* is the monotonic one's time."""
        return min(self._due_ms - self._clock_ms(), (self.due_at - now_at) * 1000)

    def kept_by(self, heart: Heartbeat) -> None:
        """Note who begins the renewals, and when the first is due by the monotonic clock."""
        self._heartbeat = heart
        self.due_at = heart.monotonic() + (self._due_ms - self._clock_ms()) / 1000

    def begin(self) -> None:
        """Begin a renewal.  The next is due after its end."""
        self._due_ms, self.due_at = inf, inf
        try:
            self._begin(self)
        except Exception as error:  # noqa: BLE001 - logged
            self.failed(error)

    def run(self, renew: Callable[[], bool]) -> None:
        """Make a renewal in this thread, unless the lease has ended.  *renew* is as for `by_workers`."""
        if not self.enter():
            return
        try:
            is_ours = renew()
        except BaseException as error:  # noqa: BLE001 - one lease's trouble is no other's
            self.failed(error)
        else:
            self.renewed(is_ours=is_ours)

    def enter(self) -> bool:
        """Say that a renewal is under way; False if none may be made any more."""
        # In this order, as `end` comes before a look at `is_under_way`: one of the two sees the other.
        self._is_under_way = True
        if self.is_over:
            self._leave()
            return False
        return True

    def renewed(self, *, is_ours: bool) -> None:
        """The renewal has ended, and the lease is still ours, or lost."""
        if is_ours:
            self.has_failed = False
            self._due_in(self._every_ms)
        else:
            if not self.is_ending and not self.is_over:
                _log(WARNING, "The lease of idempotency key %s is lost: its record is another attempt's, or gone", self.key)
            self.end()
        self._leave()

    def failed(self, error: BaseException) -> None:
        """The renewal has failed, and is tried again soon."""
        # Once at WARNING: the tries that follow rarely fail for another reason.
        _log(
            DEBUG if self.has_failed else WARNING,
            "The lease of idempotency key %s was not renewed; it is tried again soon: %s",
            self.key,
            str(error) or type(error).__name__,
        )
        self.has_failed = True
        self._due_in(self._every_ms // TRIES_PER_BEAT)
        self._leave()

    def _due_in(self, ms: int) -> None:
        heart = self._heartbeat
        assert heart is not None  # which began the renewal
        self.due_at = heart.monotonic() + ms / 1000
        self._due_ms = self._clock_ms() + ms
        heart.wake_for(self)

    def _leave(self) -> None:
        self._is_under_way = False
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            try:
                call = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            call()


def by_workers(store: object, renew: Callable[[], bool]) -> Callable[[Lease], None]:
    """What begins a renewal in a sync store, by one of its workers.

    *renew* makes one.  It returns False if the lease is lost, and raises if the renewal failed and may be tried again.
    """
    return lambda lease: renewal_workers(store).submit(partial(lease.run, renew))


class Heartbeat:
    """Begins the renewals of the leases that it keeps when they are due.  Its thread only calls `beat` in time."""

    def __init__(self, monotonic: Callable[[], float] = monotonic) -> None:
        self.monotonic = monotonic
        self.reset()

    def reset(self) -> None:
        """Keep nothing, without a thread."""
        #: Weak, so that a lease whose call was torn away at its very last line is renewed no more.
        self._leases: set[ref[Lease]] = set()
        self._thread: Thread | None = None
        #: When the thread wakes by itself, by the monotonic clock: most calls end before, and need not wake it.
        self._wakes_at = 0.0
        self._wake: SimpleQueue[None] = SimpleQueue()

    def keep(self, lease: Lease) -> None:
        """Renew the lease at each third of it.  The caller must keep a reference to the lease, and end it.

        Raises:
            ThreadUnavailableError: there is no thread that could renew it.
        """
        lease.kept_by(self)
        self._leases.add(ref(lease))
        if self._thread is not None:
            self.wake_for(lease)
            return
        try:
            _started(self._run, (self._wake,), "idempotency-heartbeat")
        except ThreadUnavailableError:
            lease.end()
            raise

    def forget(self, lease: Lease) -> None:
        """Keep the lease no more."""
        self._leases.discard(ref(lease))

    def wake_for(self, lease: Lease) -> None:
        """Wake the thread if it would sleep for longer than until the lease is due."""
        if lease.due_at < self._wakes_at:
            self._wake.put(None)

    def beat(self) -> float:
        """Begin the renewals that are due.  Returns the milliseconds until the next is due, `inf` if none will be."""
        next_ms = inf
        for kept in list(self._leases):
            lease = kept()
            if lease is None or lease.is_over:
                self._leases.discard(kept)
            else:
                next_ms = min(next_ms, self._begin_if_due(lease))
        return next_ms

    def _begin_if_due(self, lease: Lease) -> float:
        """Milliseconds until the next renewal of the lease."""
        try:
            if lease.until_due_ms(self.monotonic()) <= 0:
                self._begin(lease)
            return inf if lease.is_over else lease.until_due_ms(self.monotonic())
        except Exception:  # noqa: BLE001 - of a clock that the user has given: it is asked again
            _log(WARNING, "The lease of idempotency key %s was not renewed: its clock failed", lease.key)
            return RECOVERY_MS

    def _begin(self, lease: Lease) -> None:
        lease.begin()

    def _run(self, wake: SimpleQueue[None]) -> None:
        from threading import current_thread

        thread = self._thread = current_thread()
        try:
            self._beat_in_time(thread, wake)
        finally:
            if self._thread is thread:
                self._thread = None  # the next lease starts another
            wake.put(None)  # it may have been for a thread that goes on

    def _beat_in_time(self, thread: Thread, wake: SimpleQueue[None]) -> None:
        """Beat until another thread does: two calls at once may have started one each."""
        while self._thread is thread:
            try:
                self._wakes_at = inf  # a lease that comes during the beat, and may be missed by it, leaves a wake
                wait_ms = self.beat()
                wait_seconds = None if wait_ms == inf else max(MIN_WAIT_MS, min(wait_ms, MAX_WAIT_MS)) / 1000
                if wait_seconds is not None:
                    self._wakes_at = self.monotonic() + wait_seconds
                wake.get(timeout=wait_seconds)
            except Empty:
                continue
            except BaseException as error:  # noqa: BLE001 - nothing ends the heartbeat
                _log(WARNING, "The heartbeat goes on after an error: %s", error)
                _pause(RECOVERY_MS / 1000)


def _pause(seconds: float) -> None:
    with suppress(Empty):
        SimpleQueue[None]().get(timeout=seconds)


heartbeat = Heartbeat()


# Forks


class ForkLock:
    """A lock for code that must not run twice at once.  Reentrant, for a signal's handler that comes to the same code.

    A fork waits for the thread that holds it, for `FORK_SECONDS` at most: code under it imports modules and makes clients, and a
    child that was forked half-way would wait for ever for the import locks of a thread that it does not have.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._is_held_by_fork = False
        _fork_locks.append(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def before_fork(self, seconds: float) -> None:
        """Take the lock for the fork, if that is possible within so many seconds."""
        self._is_held_by_fork = self._lock.acquire(timeout=seconds)

    def after_fork_in_parent(self) -> None:
        """Give the lock back."""
        if self._is_held_by_fork:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: a thread that the child does not have may hold the lock."""
        self._lock = RLock()


#: Locks live as long as the process: they belong to modules.
_fork_locks: list[ForkLock] = []
#: What stores want done in a forked child, such as to drop a client whose connections are the parent's.
_child_hooks: list[ref[Any]] = []


def in_forked_child(store: Any) -> None:
    """Have `store.after_fork()` called in each forked child, as long as the store lives."""
    _child_hooks.append(ref(store, _child_hooks.remove))


def _before_fork() -> None:
    end_at = monotonic() + FORK_SECONDS
    for lock in _fork_locks:
        lock.before_fork(max(0.0, end_at - monotonic()))


def _after_fork_in_parent() -> None:
    for lock in _fork_locks:
        lock.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global fork_count  # noqa: PLW0603 - the process itself has changed
    fork_count += 1
    for lock in _fork_locks:
        lock.after_fork_in_child()
    heartbeat.reset()
    _lanes.clear()
    for hooked in _child_hooks:
        store = hooked()
        if store is not None:
            store.after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no forks, and no test runs there
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


# Exit


def _end_calls() -> None:
    """Let calls that were begun or queued end, as long as that does not hold the interpreter's exit up."""
    end_at = monotonic() + EXIT_SECONDS
    for lane in list(_lanes.values()):
        while not lane.calls.is_idle and monotonic() < end_at:
            _pause(0.005)


atexit.register(_end_calls)


def _log(level: int, message: str, *arguments: object) -> None:
    """Log, whatever handlers and filters raise: they must not end a thread."""
    import logging  # imported lazily: speeds up cold start

    with suppress(Exception):
        logging.getLogger(__name__).log(level, message, *arguments)
