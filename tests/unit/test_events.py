"""Events are values, and observers cannot break a call."""

from __future__ import annotations

import logging
import pickle
from typing import get_args

import pytest

from idempotency.events import Claimed, Completed, Event, Released, Uncommitted, notify

EVENT = Claimed(key="fn#1", at_ms=5, generation=1)


def test_every_observer_is_told_in_order() -> None:
    told: list[tuple[str, Event]] = []

    notify([lambda event: told.append(("first", event)), lambda event: told.append(("second", event))], EVENT)

    assert told == [("first", EVENT), ("second", EVENT)]


def test_without_observers_nothing_happens() -> None:
    notify([], EVENT)


def test_an_observer_that_raises_is_logged_and_keeps_the_event_from_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("the observer's own")

    notify([broken, told.append, broken], EVENT)

    assert told == [EVENT]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "An observer failed at Claimed of key fn#1")
    ] * 2
    assert all(record.exc_info is not None for record in caplog.records)


def test_an_interruption_in_an_observer_is_an_interruption() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        notify([interrupted], EVENT)


@pytest.mark.parametrize("kind", get_args(Event))
def test_every_event_names_its_key_and_its_time_and_cannot_be_changed(kind: type) -> None:
    names = kind.__match_args__
    event = kind(**dict.fromkeys(names, "x"))

    assert names[:2] == ("key", "at_ms")
    with pytest.raises(AttributeError, match="^an event is immutable; its key cannot be set$"):
        event.key = "other"
    with pytest.raises(AttributeError, match="^an event is immutable; its key cannot be deleted$"):
        del event.key
    assert vars(event) == dict.fromkeys(names, "x")
    assert event == kind(**dict.fromkeys(names, "x"))
    assert event != kind(**{**dict.fromkeys(names, "x"), names[-1]: "y"})
    assert hash(event) == hash(kind(**dict.fromkeys(names, "x")))
    assert pickle.loads(pickle.dumps(event)) == event
    assert "payload" not in names


def test_a_canceled_transaction_is_told_by_its_generation_and_the_services_reasons_and_no_item() -> None:
    event = Uncommitted(key="fn#1", at_ms=5, generation=2, reasons=("ConditionalCheckFailed",))

    assert vars(event) == {"key": "fn#1", "at_ms": 5, "generation": 2, "reasons": ("ConditionalCheckFailed",)}
    assert repr(event) == "Uncommitted(key='fn#1', at_ms=5, generation=2, reasons=('ConditionalCheckFailed',))"
    assert Uncommitted in get_args(Event)


def test_a_field_that_is_left_out_has_its_default_and_one_that_has_none_is_missed() -> None:
    released = Released(key="fn#1", at_ms=5, generation=2)

    assert released == Released(key="fn#1", at_ms=5, generation=2, error=None)
    assert vars(released)["error"] is None
    with pytest.raises(TypeError, match="^Claimed lacks generation$"):
        Claimed(key="fn#1", at_ms=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="^Claimed has no payload$"):
        Claimed(key="fn#1", at_ms=5, generation=1, payload="secret")  # type: ignore[call-arg]


def test_events_of_two_kinds_differ_and_are_matched_by_their_fields() -> None:
    claimed = Claimed(key="fn#1", at_ms=5, generation=1)

    assert claimed != Completed(key="fn#1", at_ms=5, generation=1)
    match claimed:
        case Claimed(key, at_ms, generation):
            assert (key, at_ms, generation) == ("fn#1", 5, 1)
