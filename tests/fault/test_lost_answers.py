"""A request whose outcome is unknown, at each operation: applied or not, and then answered for good or never."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import (
    ASYNC,
    KEY,
    ORDER,
    SYNC,
    UNKNOWN_OUTCOMES,
    Bench,
    Form,
    Suspended,
    access_denied,
    connection_closed,
    internal_error,
    keyed,
    lost,
    no_connection,
    raise_boom,
    raise_suspended,
    read_timeout,
    refused,
    throttle,
    throttled_after_a_lost_answer,
)

from idempotency import IdempotencyAlreadyInProgressError, IdempotencyPersistenceLayerError
from idempotency.events import Claimed, TakenOver

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Fault

    from persistence.background import Heartbeat

each_unknown_outcome = pytest.mark.parametrize(
    ("form", "error"),
    [*[(SYNC, error) for error in UNKNOWN_OUTCOMES], (ASYNC, read_timeout)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
applied_or_not = pytest.mark.parametrize("struck", [lost, refused], ids=["applied", "not applied"])


class Payments:
    """A handler that counts its runs, called with 30 s to go."""

    def __init__(self, bench: Bench, form: Form, end: Callable[[], Any] = lambda: "paid", **options: Any) -> None:
        self.runs = 0
        self._clock = bench.clock
        self._end = end
        self._pay = form.handler(self._body, bench.store, keyed(**options))

    def _body(self, _event: Any) -> Any:
        self.runs += 1
        return self._end()

    def __call__(self) -> Any:
        return self._pay(ORDER, LambdaContext(remaining_ms=30_000, clock=self._clock))


@each_unknown_outcome
@applied_or_not
def test_a_claim_is_granted_once(
    bench: Bench, form: Form, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    pay = Payments(bench, form)
    bench.client.at("put_item", 1, struck(error()))

    assert pay() == "paid"
    assert pay.runs == 1
    assert bench.peek(KEY)["generation"] == 1


@each_unknown_outcome
@applied_or_not
@pytest.mark.parametrize("put", [1, 2])
def test_a_takeover_is_granted_once(
    bench: Bench, form: Form, put: int, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    """Whichever of its two puts is struck: the one that finds the orphan, or the one that supersedes it."""
    with pytest.raises(Suspended):
        Payments(bench, form, raise_suspended)()
    bench.clock.advance(ms=31_001)
    pay = Payments(bench, form)
    bench.client.at("put_item", put, struck(error()))

    assert pay() == "paid"
    assert pay.runs == 1
    assert bench.peek(KEY)["generation"] == 2
    assert bench.peek(KEY)["status"] == "COMPLETED"


def test_a_takeover_whose_answer_is_lost_is_still_told_as_one(bench: Bench, form: Form) -> None:
    events: list[Any] = []
    with pytest.raises(Suspended):
        Payments(bench, form, raise_suspended)()
    bench.clock.advance(ms=31_001)
    bench.client.at("put_item", 2, lost(read_timeout()))

    Payments(bench, form, observers=[events.append])()

    assert [type(event) for event in events if isinstance(event, TakenOver | Claimed)] == [TakenOver, Claimed]


@each_unknown_outcome
@applied_or_not
def test_a_completion_is_stored_once(
    bench: Bench, form: Form, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    pay = Payments(bench, form)
    bench.client.at("update_item", 1, struck(error()))

    assert [pay(), pay()] == ["paid", "paid"]
    assert pay.runs == 1
    assert bench.client.count("update_item") == 2


@each_unknown_outcome
@applied_or_not
def test_a_release_frees_the_key(
    bench: Bench, form: Form, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    bench.client.at("delete_item", 1, struck(error()))
    with pytest.raises(OSError, match="boom") as caught:
        Payments(bench, form, raise_boom)()

    assert not hasattr(caught.value, "__notes__")
    assert Payments(bench, form)() == "paid"


@each_unknown_outcome
@applied_or_not
def test_a_renewal_is_made_again_at_the_next_beat(
    bench: Bench, form: Form, heart: Heartbeat, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    def slow(_event: Any) -> str:
        for _ in range(3):
            bench.clock.advance(seconds=25)
            heart.beat()
        return "done"

    work = form.function(slow, bench.store, keyed(lease_seconds=60))
    start_ms = bench.clock()
    bench.client.at("update_item", 1, struck(error()))

    assert work(ORDER) == "done"
    renewals = [request for operation, request in bench.client.requests if operation == "update_item"][:-1]
    ends = [int(request["ExpressionAttributeValues"][":in_progress_expiry"]["N"]) for request in renewals]
    assert ends == [start_ms + 86_000, start_ms + 111_000, start_ms + 136_000]


@pytest.mark.parametrize("operation", ["put_item", "update_item"])
def test_a_request_that_found_no_connection_is_sent_again(bench: Bench, form: Form, operation: str) -> None:
    pay = Payments(bench, form)
    bench.client.at(operation, 1, refused(no_connection()))

    assert [pay(), pay()] == ["paid", "paid"]
    assert pay.runs == 1
    assert len(bench.clock.slept_ms) == 1


def test_a_completion_that_never_found_a_connection_is_not_looked_for(bench: Bench, form: Form) -> None:
    """Nothing was sent, so nothing can have been stored: no read would tell more."""
    pay = Payments(bench, form)
    bench.client.always("update_item", refused(no_connection()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="update record state to success"):
        pay()

    assert bench.client.count("get_item") == 0


def test_a_claim_with_a_lost_answer_and_then_throttles_is_granted_once(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.at("put_item", 1, lost(connection_closed()))
    bench.client.at("put_item", 2, refused(throttle()))
    bench.client.at("put_item", 3, throttled_after_a_lost_answer)

    assert pay() == "paid"
    assert pay.runs == 1


@pytest.mark.parametrize("last", [access_denied, throttle])
def test_a_claim_of_unknown_outcome_blocks_the_key_no_longer_than_its_lease(
    bench: Bench, form: Form, last: Callable[[], Exception]
) -> None:
    """The last word was a definite error, and yet the claim had been written."""
    pay = Payments(bench, form)
    bench.client.always("put_item", refused(last()))
    bench.client.at("put_item", 1, lost(connection_closed()))
    lease_end_ms = bench.clock() + 31_000
    with pytest.raises(IdempotencyPersistenceLayerError):
        pay()
    bench.client.heal()

    bench.clock.now_ms = lease_end_ms + 1

    assert pay() == "paid"
    assert pay.runs == 1


def test_a_completion_with_a_lost_answer_and_then_a_definite_error_returns_the_result(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.at("update_item", 1, lost(internal_error()))
    bench.client.at("update_item", 2, refused(access_denied()))

    assert [pay(), pay()] == ["paid", "paid"]
    assert pay.runs == 1


def test_a_completion_whose_every_answer_is_lost_returns_the_result(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.always("update_item", lost(read_timeout()))

    assert [pay(), pay()] == ["paid", "paid"]
    assert pay.runs == 1


def test_a_completion_that_the_sdk_applied_and_then_called_throttled_returns_the_result(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.always("update_item", throttled_after_a_lost_answer)

    assert [pay(), pay()] == ["paid", "paid"]
    assert pay.runs == 1


def test_a_completion_that_nobody_can_confirm_is_an_error_and_replays_later(bench: Bench, form: Form) -> None:
    """Every answer is lost, and the read that would tell fails, too."""
    pay = Payments(bench, form)
    bench.client.always("update_item", lost(connection_closed()))
    bench.client.always("get_item", refused(internal_error()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="update record state to success") as caught:
        pay()
    bench.client.heal()

    assert "once its lease has ended, a retry may run it again" in str(caught.value)
    assert pay() == "paid"
    assert pay.runs == 1


def test_a_completion_that_was_not_applied_is_an_error_and_blocks_the_key_for_its_lease(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.at("update_item", 1, refused(internal_error()))
    bench.client.at("update_item", 2, refused(access_denied()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="update record state to success"):
        pay()
    with pytest.raises(IdempotencyAlreadyInProgressError):
        pay()

    bench.clock.advance(seconds=32)

    assert pay() == "paid"
    assert pay.runs == 2


def test_a_release_with_a_lost_answer_and_then_a_definite_error_is_only_a_note(bench: Bench, form: Form) -> None:
    bench.client.at("delete_item", 1, lost(internal_error()))
    bench.client.at("delete_item", 2, refused(access_denied()))
    with pytest.raises(OSError, match="boom") as caught:
        Payments(bench, form, raise_boom)()

    assert "AccessDeniedException" in caught.value.__notes__[0]
    assert Payments(bench, form)() == "paid"


@pytest.mark.parametrize("options", [{}, {"orphan_takeover": False}], ids=["with takeover", "without"])
def test_a_claim_whose_answers_were_all_lost_is_given_up(bench: Bench, form: Form, options: dict[str, Any]) -> None:
    """It knows that it ran nothing.  Without takeover, its key would be held for ten years."""
    pay = Payments(bench, form, **options)
    bench.client.always("put_item", lost(read_timeout()))
    with pytest.raises(IdempotencyPersistenceLayerError):
        pay()
    assert (pay.runs, bench.peek(KEY)) == (0, None)

    bench.client.heal()
    assert pay() == "paid"


def test_a_claim_that_was_surely_not_written_costs_no_release(bench: Bench, form: Form) -> None:
    pay = Payments(bench, form)
    bench.client.always("put_item", refused(throttle()))
    with pytest.raises(IdempotencyPersistenceLayerError):
        pay()

    assert bench.client.count("delete_item") == 0


def test_a_claim_that_cannot_be_given_up_is_logged_and_its_own_error_is_raised(
    bench: Bench, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    pay = Payments(bench, form)
    bench.client.always("put_item", lost(read_timeout()))
    bench.client.always("delete_item", refused(access_denied()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to save in progress record"):
        pay()

    assert [KEY in record.getMessage() for record in caplog.records] == [True]
