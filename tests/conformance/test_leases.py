"""The ends that a call writes, by deadline or by renewed lease, on every store: a table's TTL must never free a live claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext

from idempotency import IdempotencyConfig, current_attempt, idempotent

if TYPE_CHECKING:
    from doubles import FakeClock
    from stores import Made, Peek

EVENT = {"id": "order-1"}


class Stopped(BaseException):
    """The sandbox ends here; the claim stays."""


def claim_of(made: Made, context: LambdaContext | None, **settings: Any) -> tuple[dict[str, Any], str]:
    """The raw record while the function runs, and its key."""
    seen: list[str] = []

    @idempotent(persistence_store=made.store, config=IdempotencyConfig(event_key_jmespath="id", **settings))
    def handler(event: dict[str, Any], context: LambdaContext | None) -> None:
        seen.append(current_attempt().key)
        raise Stopped

    with pytest.raises(Stopped):
        handler(EVENT, context)
    return made.peek(seen[0]), seen[0]


@pytest.mark.parametrize("remaining_ms", [0, 1, 749, 750, 751, 899_999])
@pytest.mark.parametrize("expires_after_seconds", [1, 60, 3_600])
def test_a_claim_expires_in_whole_seconds_and_not_before_the_lease_of_its_deadline(
    made: Made, clock: FakeClock, remaining_ms: int, expires_after_seconds: int
) -> None:
    context = LambdaContext(remaining_ms, clock=clock)

    record, _ = claim_of(made, context, expires_after_seconds=expires_after_seconds, lease_margin_seconds=1)

    lease_end_ms = clock.now_ms + remaining_ms + 1_000
    assert record["in_progress_expiration"] == lease_end_ms
    assert isinstance(record["expiration"], int)
    assert record["expiration"] * 1000 >= lease_end_ms
    latest_ms = max(lease_end_ms + 999, clock.now_ms + expires_after_seconds * 1000)
    assert record["expiration"] * 1000 <= latest_ms


def test_a_claim_without_a_deadline_expires_not_before_its_renewed_lease(made: Made, clock: FakeClock) -> None:
    record, _ = claim_of(made, None, expires_after_seconds=1, lease_seconds=60.5)

    assert record["in_progress_expiration"] == clock.now_ms + 61_500
    assert record["expiration"] == (clock.now_ms + 61_500) // 1000 + 1


def test_a_claim_that_nobody_may_take_over_outlives_years(made: Made, clock: FakeClock) -> None:
    """Else a table's TTL would delete it, and the function would run again after all."""
    record, _ = claim_of(made, LambdaContext(1_000, clock=clock), expires_after_seconds=1, orphan_takeover=False)

    assert record["expiration"] > clock.now_ms // 1000 + 9 * 365 * 24 * 3600


def test_a_result_expires_by_its_completion_and_not_by_its_claim(made: Made, clock: FakeClock, peek: Peek) -> None:
    seen: list[str] = []

    @idempotent(persistence_store=made.store, config=IdempotencyConfig(event_key_jmespath="id", expires_after_seconds=60))
    def handler(event: dict[str, Any], context: LambdaContext) -> str:
        seen.append(current_attempt().key)
        clock.advance(seconds=25, ms=800)
        return "done"

    handler(EVENT, LambdaContext(clock=clock))

    assert peek(seen[0])["expiration"] == clock.now_ms // 1000 + 60
