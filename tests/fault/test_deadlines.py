"""How long a request is repeated: never beyond the deadline, and each operation only as long as somebody gains by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import (
    KEY,
    ORDER,
    Bench,
    Form,
    Suspended,
    keyed,
    raise_boom,
    raise_suspended,
    refused,
    throttle,
    throttled_until,
)

from idempotency import IdempotencyAlreadyInProgressError, IdempotencyPersistenceLayerError
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from faults import Store


def throttled_for_ever(bench: Bench, operation: str, sent_ms: list[int]) -> None:
    """Throttle each call of the operation, and note when it was sent."""

    def strike(_send: Any) -> Any:
        sent_ms.append(bench.clock())
        raise throttle()

    bench.client.always(operation, strike)


@pytest.mark.parametrize("remaining_ms", [0, 1, 109, 110, 1_000, 30_000])
def test_a_throttled_claim_ends_before_the_deadline_or_after_its_own_patience(
    bench: Bench, form: Form, remaining_ms: int
) -> None:
    """One request is always sent, also when there is no time for a second; patience is 10 s."""
    sent_ms: list[int] = []
    throttled_for_ever(bench, "put_item", sent_ms)
    start_ms = bench.clock()
    with pytest.raises(IdempotencyPersistenceLayerError):
        form.handler(lambda _event: "paid", bench.store)(ORDER, LambdaContext(remaining_ms=remaining_ms, clock=bench.clock))

    assert len(sent_ms) == 1 if remaining_ms < 110 else len(sent_ms) > 1
    assert sent_ms[-1] <= start_ms + max(0, min(remaining_ms - 100, 10_000))
    assert bench.clock() == sent_ms[-1]


def test_a_throttled_completion_without_a_deadline_is_repeated_for_twenty_seconds(bench: Bench, form: Form) -> None:
    sent_ms: list[int] = []
    throttled_for_ever(bench, "update_item", sent_ms)
    start_ms = bench.clock()
    with pytest.raises(IdempotencyPersistenceLayerError, match="update record state to success"):
        form.function(lambda _event: "done", bench.store)(ORDER)

    assert start_ms + 18_000 < sent_ms[-1] <= start_ms + 20_000
    assert bench.clock() == sent_ms[-1]


def test_a_throttled_completion_is_sent_once_more_just_before_the_deadline(bench: Bench, form: Form) -> None:
    """It succeeds in the last request that is sent: 100 ms are left for its answer."""
    deadline_ms = bench.clock() + 15_000
    bench.client.always("update_item", throttled_until(bench.clock, deadline_ms - 110))

    assert (
        form.handler(lambda _event: "paid", bench.store)(ORDER, LambdaContext(remaining_ms=15_000, clock=bench.clock)) == "paid"
    )
    assert deadline_ms - 110 <= bench.clock() <= deadline_ms - 100


def test_a_completion_after_the_deadline_is_tried_once(bench: Bench, form: Form) -> None:
    """The clocks may disagree, and the effect has happened."""

    def slow(_event: Any) -> str:
        bench.clock.advance(ms=30_500)
        return "paid"

    pay = form.handler(slow, bench.store)

    assert pay(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock)) == "paid"
    assert bench.peek(KEY)["status"] == "COMPLETED"


@pytest.mark.parametrize("remaining_ms", [0, 1_000, 30_000])
def test_a_throttled_release_ends_before_the_deadline_or_after_three_seconds(bench: Bench, form: Form, remaining_ms: int) -> None:
    sent_ms: list[int] = []
    throttled_for_ever(bench, "delete_item", sent_ms)
    start_ms = bench.clock()
    with pytest.raises(OSError, match="boom"):
        form.handler(lambda _event: raise_boom(), bench.store)(ORDER, LambdaContext(remaining_ms=remaining_ms, clock=bench.clock))

    assert sent_ms[-1] <= start_ms + max(0, min(remaining_ms - 100, 3_000))
    assert bench.clock() == sent_ms[-1]


def fake_sleeper(bench: Bench, form: Form) -> Store:
    """The bench's store; for async functions awaited in such a way that its sleeps are the fake clock's."""
    if not form.is_async:
        return bench.store

    class Awaited(ThreadedPersistenceLayer):
        async def sleep_ms(self, ms: float) -> None:
            bench.clock.sleep_ms(ms)

    return Awaited(bench.store)


def test_a_wait_whose_reads_are_throttled_ends_before_the_deadline(bench: Bench, form: Form) -> None:
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=3600))(ORDER)
    bench.client.always("get_item", refused(throttle()))
    deadline_ms = bench.clock() + 2_000
    waiting = form.handler(lambda _event: "paid", fake_sleeper(bench, form), keyed(wait_for_in_progress_seconds=60))
    with pytest.raises((IdempotencyAlreadyInProgressError, IdempotencyPersistenceLayerError)):
        waiting(ORDER, LambdaContext(remaining_ms=2_000, clock=bench.clock))

    assert bench.clock() < deadline_ms
