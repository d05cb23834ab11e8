"""What tests put in the place of the world: a clock that moves when told, and Lambda contexts."""

from __future__ import annotations

from dataclasses import dataclass, field

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
