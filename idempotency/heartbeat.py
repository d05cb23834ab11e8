"""One heartbeat per process: renews the leases of running attempts that know no deadline, so that a crash frees their keys soon.

A daemon thread, started with the first such attempt.  On Lambda it freezes and thaws with the sandbox.
"""

from __future__ import annotations

import os
from math import inf
from threading import Condition, RLock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Final

from persistence.exceptions import IdempotencyLeaseLostError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

#: A lease is renewed when a third of it has passed.
BEATS_PER_LEASE: Final = 3
#: A renewal that failed is tried again after a fifth of that, so some ten times before the lease ends.
TRIES_PER_BEAT: Final = 5
#: The most that the thread sleeps, so that a changed wall clock is noticed.
LONGEST_WAIT_MS: Final = 60_000


class Watch:
    """A lease under renewal, until `Heartbeat.forget`."""

    __slots__ = ("clock_ms", "due_ms", "every_ms", "key", "renew")

    def __init__(self, key: str, renew: Callable[[], None], clock_ms: Callable[[], int], every_ms: int, due_ms: int) -> None:
        self.key = key
        self.renew = renew
        self.clock_ms = clock_ms
        self.every_ms = every_ms
        self.due_ms = due_ms


class Heartbeat:
    """Renews the leases that it watches.  `beat` does the work and can be called by hand; the thread only calls it in time."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Watch nothing, without a thread.  For a forked child, which has the parent's watches and none of its threads."""
        self._watches: set[Watch] = set()
        #: Reentrant: a signal's handler may make a call of its own while the main thread is in here.
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._thread: Thread | None = None
        #: When the thread wakes by itself, by the monotonic clock: most calls end before, and need not wake it.
        self._wakes_at = 0.0

    def watch(
        self, key: str, renew: Callable[[], None], clock_ms: Callable[[], int], lease_ms: int, lease_end_ms: int | None = None
    ) -> Watch:
        """Call *renew* each third of the lease.

        A lease that begins now needs no *lease_end_ms*; one that has run for a third already is renewed at once.
        """
        every_ms = max(1, lease_ms // BEATS_PER_LEASE)
        started_ms = clock_ms() if lease_end_ms is None else lease_end_ms - lease_ms
        watch = Watch(key, renew, clock_ms, every_ms, started_ms + every_ms)
        with self._lock:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="idempotency-heartbeat", daemon=True)
                self._thread.start()
            elif monotonic() + (watch.due_ms - clock_ms()) / 1000 < self._wakes_at:
                self._changed.notify()
        return watch

    def forget(self, watch: Watch) -> None:
        """Renew this lease no more.  A renewal under way may still land: the store's fence makes that harmless."""
        with self._lock:
            self._watches.discard(watch)

    def beat(self) -> float:
        """Renew what is due.  Returns the milliseconds until the next lease is due, `inf` if none is watched."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            if watch.clock_ms() >= watch.due_ms:
                self._renew(watch)
        with self._lock:
            return self._until_due_ms()

    def _until_due_ms(self) -> float:
        return min((watch.due_ms - watch.clock_ms() for watch in self._watches), default=inf)

    def _renew(self, watch: Watch) -> None:
        try:
            watch.renew()
        except IdempotencyLeaseLostError:
            _logger().debug("The lease of key %s is lost; its attempt will learn it when it completes", watch.key)
            self.forget(watch)
        except Exception:  # noqa: BLE001 - logged
            _logger().debug("The lease of key %s was not renewed; it is tried again soon", watch.key, exc_info=True)
            watch.due_ms = watch.clock_ms() + watch.every_ms // TRIES_PER_BEAT
        else:
            watch.due_ms = watch.clock_ms() + watch.every_ms

    def _run(self) -> None:
        while True:
            self.beat()
            with self._lock:
                # Asked again under the lock, under which it then sleeps: a lease added since the beat is not missed.
                wait_ms = self._until_due_ms()
                wait_seconds = None if wait_ms == inf else min(max(wait_ms, 1), LONGEST_WAIT_MS) / 1000
                self._wakes_at = inf if wait_seconds is None else monotonic() + wait_seconds
                self._changed.wait(wait_seconds)


def _logger() -> logging.Logger:
    import logging  # here: a cold start is the quicker without

    return logging.getLogger(__name__)


heartbeat = Heartbeat()
os.register_at_fork(after_in_child=heartbeat.begin_anew)
