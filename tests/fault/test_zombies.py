"""An attempt that outlives its lease: whatever it does late, the winner's record stays as it is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import (
    KEY,
    ORDER,
    Bench,
    Form,
    Suspended,
    connection_closed,
    keyed,
    lost,
    raise_boom,
    raise_suspended,
)
from stores import Made, by_id

from idempotency import IdempotencyAlreadyInProgressError, IdempotencyLeaseLostError, IdempotencyResultNotKeptError
from idempotency.events import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock


@pytest.fixture(params=by_id("memory", "dynamodb", "dynamodb-lean"))
def place(request: pytest.FixtureRequest, clock: FakeClock) -> Made:
    factory, endpoint_fixture = request.param
    made: Made = factory(clock, request.getfixturevalue(endpoint_fixture) if endpoint_fixture else "")
    return made


class Story:
    """The zombie's invocation lasts 30 s; in its run 31,001 ms pass, the winner comes, and then the zombie ends."""

    def __init__(
        self,
        place: Made,
        form: Form,
        clock: FakeClock,
        *,
        zombie: Callable[[], Any],
        winner: Callable[[], Any],
        late_ms: int = 31_001,
    ) -> None:
        self.events: list[Any] = []
        self.winners_record: Any = None
        self._place, self._clock, self._late_ms = place, clock, late_ms
        config = keyed(observers=[self.events.append])
        self._winner = form.handler(lambda _event: winner(), place.store)
        self._zombie = form.handler(lambda _event: self._run(zombie), place.store, config)

    def _run(self, zombie: Callable[[], Any]) -> Any:
        self._clock.advance(ms=self._late_ms)
        with suppress(OSError, Suspended, IdempotencyResultNotKeptError):  # the winner may fail, or stay at work
            self.winner()
        self.winners_record = self._place.peek(KEY)
        return zombie()

    def winner(self) -> Any:
        return self._winner(ORDER, LambdaContext(remaining_ms=30_000, aws_request_id="winner", clock=self._clock))

    def zombie(self) -> Any:
        return self._zombie(ORDER, LambdaContext(remaining_ms=30_000, aws_request_id="zombie", clock=self._clock))

    def lost(self) -> list[str]:
        return [event.winner_holder for event in self.events if isinstance(event, LeaseLost)]


def test_a_late_success_gets_the_result_of_the_winner_that_completed(place: Made, form: Form, clock: FakeClock) -> None:
    story = Story(place, form, clock, zombie=lambda: "late", winner=lambda: "won")

    assert story.zombie() == "won"
    assert place.peek(KEY) == story.winners_record
    assert story.lost() == ["winner"]


def test_a_late_success_is_an_error_while_the_winner_is_at_work(place: Made, form: Form, clock: FakeClock) -> None:
    story = Story(place, form, clock, zombie=lambda: "late", winner=raise_suspended)
    with pytest.raises(IdempotencyLeaseLostError, match="The function ran") as caught:
        story.zombie()

    assert caught.value.record is not None
    assert caught.value.record.holder == "winner"
    assert place.peek(KEY) == story.winners_record
    assert story.lost() == ["winner"]


def test_a_late_success_is_kept_if_the_winner_failed(place: Made, form: Form, clock: FakeClock) -> None:
    """The winner's release left no record, so the late result is the only one."""
    story = Story(place, form, clock, zombie=lambda: "late", winner=raise_boom)

    assert story.zombie() == "late"
    assert story.winners_record is None
    assert story.winner() == "late"
    assert story.lost() == []


def test_a_late_success_is_an_error_if_the_winners_result_was_not_kept(place: Made, form: Form, clock: FakeClock) -> None:
    story = Story(place, form, clock, zombie=lambda: "late", winner=object)
    with pytest.raises(IdempotencyLeaseLostError):
        story.zombie()

    assert place.peek(KEY) == story.winners_record


@pytest.mark.parametrize("winner", [lambda: "won", raise_suspended, raise_boom], ids=["completed", "in progress", "failed"])
def test_a_late_failure_leaves_the_record_as_the_winner_left_it(
    place: Made, form: Form, clock: FakeClock, winner: Callable[[], Any]
) -> None:
    story = Story(place, form, clock, zombie=raise_boom, winner=winner)
    with pytest.raises(OSError, match="boom"):
        story.zombie()

    assert place.peek(KEY) == story.winners_record


def test_a_late_result_that_cannot_be_stored_is_replaced_by_the_winners(place: Made, form: Form, clock: FakeClock) -> None:
    story = Story(place, form, clock, zombie=object, winner=lambda: "won")

    assert story.zombie() == "won"
    assert place.peek(KEY) == story.winners_record


def test_a_late_result_that_cannot_be_stored_marks_no_record_at_work(place: Made, form: Form, clock: FakeClock) -> None:
    story = Story(place, form, clock, zombie=object, winner=raise_suspended)
    with pytest.raises(IdempotencyLeaseLostError):
        story.zombie()

    assert place.peek(KEY) == story.winners_record


def test_in_the_last_millisecond_of_its_lease_an_attempt_cannot_be_superseded(place: Made, form: Form, clock: FakeClock) -> None:
    """The lease ends with the deadline and its margin of 1 s; one more millisecond is what the other stories take."""
    runs: list[str] = []
    story = Story(place, form, clock, zombie=lambda: "late", winner=lambda: runs.append("winner"), late_ms=31_000)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        story.zombie()

    assert runs == []


def test_a_fenced_completion_whose_every_answer_is_lost_gets_the_winners_result(bench: Bench, form: Form) -> None:
    """A read shows that the record is the winner's, so the outcome is known after all."""
    story = Story(Made(bench.store, bench.peek), form, bench.clock, zombie=lambda: "late", winner=lambda: "won")
    bench.client.always("update_item", lost(connection_closed()))
    bench.client.at("update_item", 1, lambda send: send())  # the winner's own

    assert story.zombie() == "won"
    assert bench.peek(KEY) == story.winners_record
