"""Calls that are torn away at each of their lines, in a process of its own: `python -m fault.torn_away MODE SEED NUMBER`.

A call is torn away by an exception that a signal's handler would raise.  `lines` raises it at each line of the library in turn,
by a trace function; `signals` sends real signals at random moments.  After each call, nothing of it may be left behind.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from idempotency import IdempotencyConfig, InMemoryPersistenceLayer, current_attempt, idempotent, idempotent_function
from persistence import background
from persistence.scope import innermost_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

#: Modules whose lines are torn at.
OURS = ("/idempotency/", "/persistence/")


class TornAwayError(KeyboardInterrupt):
    """What the signal's handler raises."""


class Context:
    aws_request_id = "request"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


class World:
    """Functions in all forms, on one store, and how often they ran."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000
        self.store = InMemoryPersistenceLayer(clock_ms=lambda: self.now_ms)
        self.runs: Counter[str] = Counter()
        self.config = IdempotencyConfig("id", use_local_cache=True)
        options: dict[str, Any] = {"persistence_store": self.store, "config": self.config}

        @idempotent(**options)
        def handler(event: Any, context: Any) -> str:
            nested(order=event)
            return self.ran("handler", event)

        @idempotent_function(data_keyword_argument="order", **options)
        def nested(order: Any) -> str:
            return self.ran("nested", order)

        self.handler, self.nested = handler, nested

    def ran(self, name: str, event: Any) -> str:
        current_attempt()
        self.runs[f"{name} {event['id']}"] += 1
        return "done"

    def calls(self) -> dict[str, Callable[[str], object]]:
        return {
            "handler": lambda key: self.handler({"id": key}, Context()),
            "nested": lambda key: self.nested(order={"id": key}),
        }


def check(world: World, where: str) -> None:
    """Nothing of an ended call is left."""
    assert innermost_scope() is None, f"a scope is left after {where}"
    assert not [variable for variable, value in copy_context().items() if "idempotency" in variable.name and value], where
    assert world.config.lambda_context is None, f"a Lambda context is left after {where}"
    gc.collect(0)
    leases = [kept() for kept in background.heartbeat._leases]
    assert not [lease for lease in leases if lease is not None and not lease.is_over], f"a lease is left after {where}"


def tear_at_each_line() -> Iterator[tuple[str, str]]:
    """Each call, torn away at one line more each time, until it gets through.  Yields the call and the line."""
    world = World()
    for name, call in world.calls().items():
        for number in range(1, 10_000):
            key = f"{name}-{number}"
            torn_at = tear_at(number, lambda key=key, call=call: call(key))
            if torn_at is None:
                break
            yield name, torn_at
            check(world, f"{name} at line {torn_at}")
            # Free, or completed, or, after its function ran, in progress until the lease ends; never renewed, never stuck.
            ran = world.runs[f"{name} {key}"]
            world.now_ms += 90_000
            call(key)
            # A handler that was torn away inside a call that it makes has failed, and runs again.
            most = 1 if name == "nested" else 2
            assert 1 <= world.runs[f"{name} {key}"] <= most, f"{name} at line {torn_at}, where it had run {ran} times"
        else:
            raise AssertionError(f"{name} has no end")


def tear_at(number: int, call: Callable[[], object]) -> str | None:
    """Tear the call away at the *number*-th line of the library.  Returns the line, or None if the call had fewer."""
    seen = 0
    torn_at: str | None = None

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal seen, torn_at
        if not any(part in frame.f_code.co_filename for part in OURS):
            return None
        if event == "line":
            seen += 1
            if seen == number:
                torn_at = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
                sys.settrace(None)
                raise TornAwayError
        return trace

    sys.settrace(trace)
    try:
        with suppress(TornAwayError):
            call()
    finally:
        sys.settrace(None)
    return torn_at


def tear_by_signals(seed: int, number: int) -> int:
    """So many calls, each with a real signal at a random moment.  Returns how many were torn away."""
    world, chance = World(), random.Random(seed)
    calls = list(world.calls().items())
    torn = 0

    def tear(_number: int, _frame: FrameType | None) -> None:
        raise TornAwayError

    signal.signal(signal.SIGALRM, tear)
    for index in range(number):
        name, call = chance.choice(calls)
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 6e-4))
            call(f"{name}-{index}")
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TornAwayError:
            torn += 1
        check(world, f"call {index}, seed {seed}")
    return torn


def main(mode: str, seed: int, number: int) -> None:
    background.heartbeat._thread = threading.main_thread()  # alive, so that no thread is started, which would be traced
    if mode == "lines":
        lines = list(tear_at_each_line())
        sys.stdout.write(f"{len(lines)} lines, {len(set(lines))} different\n")
    else:
        sys.stdout.write(f"seed {seed}: {tear_by_signals(seed, number)} of {number} calls were torn away\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
