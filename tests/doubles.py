"""What tests put in the place of the world: a clock that moves when told, Lambda contexts, a shelf for large results."""

from __future__ import annotations

import random
from base64 import b85encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: An arbitrary present with milliseconds that are not a whole second, so that truncation shows.
START_MS = 1_800_000_000_250


@dataclass
class FakeClock:
    """Epoch milliseconds that pass only when a test says so.  `sleep_ms` passes them, too, and remembers."""

    now_ms: int = START_MS
    slept_ms: list[float] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, *, ms: int = 0, seconds: int = 0) -> None:
        self.now_ms += ms + 1000 * seconds

    def sleep_ms(self, ms: float) -> None:
        self.slept_ms.append(ms)
        self.now_ms += round(ms)


@dataclass
class LambdaContext:
    """The part of a Lambda context that the library reads: the deadline of an invocation, by a test's clock or fixed."""

    remaining_ms: int = 30_000
    aws_request_id: str = "request-1"
    clock: FakeClock | None = None

    def __post_init__(self) -> None:
        self._deadline_ms = None if self.clock is None else self.clock.now_ms + self.remaining_ms

    def get_remaining_time_in_millis(self) -> int:
        if self.clock is None or self._deadline_ms is None:
            return self.remaining_ms
        return max(0, self._deadline_ms - self.clock.now_ms)


def incompressible(size: int) -> str:
    """A text of so many characters that no compression makes smaller than four fifths; the same each time."""
    return b85encode(random.Random(size).randbytes(size)).decode()[:size]


@dataclass
class Shelf:
    """A `ResultOffload` in memory.  *before_put* and *before_get* may raise, or look at the world."""

    objects: dict[str, bytes] = field(default_factory=dict)
    before_put: Callable[[], object] = lambda: None
    before_get: Callable[[], object] = lambda: None
    puts: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    def put(self, name: str, body: bytes) -> str:
        self.puts.append(name)
        self.before_put()
        self.objects[f"shelf://{name}"] = body
        return f"shelf://{name}"

    def get(self, location: str, at_most: int) -> bytes:
        self.gets.append(location)
        self.limits.append(at_most)
        self.before_get()
        return self.objects[location][: at_most + 1]  # a KeyError is a LookupError
