"""Many attempts in threads under random faults, and a checker of what happened that knows nothing of the library's rules.

Time is one clock for all: retries and, now and then, a run move it on, so that leases end under attempts at work.
"""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any

from doubles import FakeClock
from faults import UNKNOWN_OUTCOMES, FaultyClient, Suspended, key_of, keyed, lost, refused, throttle

from idempotency import BaseError, current_attempt, make_idempotent

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Fault, Send

    from idempotency import DynamoDBPersistenceLayer

LEASE_SECONDS = 60
#: What a run does, and how often.
DEEDS = {"return": 5, "raise": 2, "crash": 2, "outlive its lease": 3, "outlive its lease and raise": 1}


@dataclass
class SharedClock(FakeClock):
    """A fake clock that threads may move at once."""

    lock: RLock = field(default_factory=RLock)

    def advance(self, *, ms: int = 0, seconds: int = 0) -> None:
        with self.lock:
            super().advance(ms=ms, seconds=seconds)

    def sleep_ms(self, ms: float) -> None:
        self.advance(ms=round(ms))


@dataclass
class Run:
    """One run of the function: until `lease_end_ms`, or until it failed, no other run of its key may begin."""

    lease_end_ms: int
    failed: bool = False


@dataclass
class History:
    """What was seen of each key.  `violations` says what must never happen."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock)

    def begin(self, key: str, now_ms: int, lease_end_ms: int) -> Run:
        run = Run(lease_end_ms)
        with self.lock:
            # A thread that was held up between its claim and its run may begin it after its lease; no store can prevent that.
            for other in self.runs[key] if now_ms <= lease_end_ms else ():
                if not other.failed and now_ms <= other.lease_end_ms:
                    self.violations.append(
                        f"{key}: a run began at {now_ms}, while another's lease lasted until {other.lease_end_ms}"
                    )
            if self.seen[key] and now_ms <= lease_end_ms:
                self.violations.append(f"{key}: a run began after a caller had got {self.seen[key]}")
            self.runs[key].append(run)
        return run

    def saw(self, key: str, result: str) -> None:
        with self.lock:
            self.seen[key].add(result)
            if len(self.seen[key]) > 1:
                self.violations.append(f"{key}: callers got different results: {sorted(self.seen[key])}")

    def must_be(self, key: str, stored: Any, replayed: str) -> None:
        """At the end: what the table holds is what everybody got, now and before."""
        if stored != f'"{replayed}"' or self.seen[key] != {replayed}:
            self.violations.append(
                f"{key}: {stored} is stored, {replayed} was replayed, and callers got {sorted(self.seen[key])}"
            )


class Chaos:
    """*attempts* attempts at a tenth as many keys.  `play` and then `settle`; the history tells."""

    def __init__(self, store: DynamoDBPersistenceLayer, seed: int, attempts: int = 400, threads: int = 8) -> None:
        self.history = History()
        self.clock = SharedClock()
        self._store, self._seed, self._attempts, self._threads = store, seed, attempts, threads
        self._faulty = FaultyClient(store.client)
        self._random = random.Random(seed)
        for operation in ("put_item", "update_item", "delete_item", "get_item"):
            self._faulty.always(operation, self._perhaps)
        store.client, store.clock_ms, store.sleep_ms = self._faulty, self.clock, self.clock.sleep_ms
        self._call = make_idempotent(
            self._work, persistence_store=store, config=keyed(lease_seconds=LEASE_SECONDS), key_prefix="job"
        )
        self.keys = [f"key-{number}" for number in range(attempts // 10)]

    def play(self) -> None:
        """Deliver each key ten times, near each other, and stop at the first violation."""
        deliveries = [(key, self._random.random()) for key in self.keys for _ in range(10)]
        deliveries = [key for _, key in sorted((self.keys.index(key) + 3 * jitter, key) for key, jitter in deliveries)]
        with ThreadPoolExecutor(self._threads) as pool:
            for future in [pool.submit(self._deliver, key, attempt) for attempt, key in enumerate(deliveries)]:
                future.result()

    def settle(self, peek: Callable[[str], dict[str, Any] | None]) -> None:
        """After the last fault and the last lease, each key gives one result: no key is stuck."""
        self._faulty.heal()
        self.clock.advance(seconds=2 * LEASE_SECONDS)
        for key in self.keys:
            results = [self._call({"id": key, "attempt": "last", "does": "return"}) for _ in range(2)]
            for result in results:
                self.history.saw(key, result)
            self.history.must_be(key, (peek(key_of(key)) or {}).get("data"), results[1])

    def _deliver(self, key: str, attempt: int, does: str = "") -> None:
        if self.history.violations:
            return
        if not does:
            [does] = random.Random(f"{self._seed} {attempt}").choices(list(DEEDS), list(DEEDS.values()))
        try:
            result = self._call({"id": key, "attempt": attempt, "does": does})
        except (OSError, Suspended, BaseError) as error:
            self.history.errors.append(type(error).__name__)
        else:
            self.history.saw(key, result)

    def _work(self, event: Any) -> str:
        attempt = current_attempt()
        key, does = event["id"], event["does"]
        run = self.history.begin(key, self.clock(), attempt.lease_end_ms or 0)
        if does.startswith("outlive"):
            self.clock.advance(ms=LEASE_SECONDS * 1000 + 1)
            self._deliver(key, event["attempt"], "return")
        if does.endswith("raise"):
            run.failed = True
            raise OSError("as told")
        if does == "crash":
            raise Suspended
        return f"{key} by {event['attempt']}, generation {attempt.generation}"

    def _perhaps(self, send: Send) -> Any:
        """One request in eight is struck."""
        with self.history.lock:
            is_struck = self._random.random() < 1 / 8
            error = self._random.choice([*UNKNOWN_OUTCOMES, throttle])
            is_applied = self._random.random() < 1 / 2
        if not is_struck:
            return send()
        fault: Fault = lost(error()) if is_applied and error is not throttle else refused(error())
        return fault(send)
