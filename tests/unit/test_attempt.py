"""What a running function can learn of its attempt."""

from __future__ import annotations

import uuid
from contextvars import ContextVar, copy_context

import pytest

from idempotency import current_attempt
from idempotency.attempt import Attempt, restore, running_attempt

ATTEMPT = Attempt("fn#1", "token", 2, 1_800_000_000_250)


def test_the_running_attempt_is_the_one_of_this_thread_or_task() -> None:
    def run() -> Attempt:
        running_attempt.set(ATTEMPT)
        return current_attempt()

    assert copy_context().run(run) is ATTEMPT


def test_outside_a_running_call_there_is_none() -> None:
    with pytest.raises(RuntimeError, match=r"^current_attempt\(\) was called outside a running idempotent call$"):
        current_attempt()


def test_the_key_for_other_services_is_a_uuid_that_never_changes() -> None:
    """A literal: a release that changed it would make other services execute every running request twice."""
    assert ATTEMPT.downstream_key == "55f77e04-aea4-5df3-8273-b82b94d2af74"


def test_the_key_for_other_services_comes_from_a_published_namespace() -> None:
    namespace = uuid.uuid5(uuid.NAMESPACE_DNS, "lambda-idempotency.downstream")

    assert ATTEMPT.downstream_key == str(uuid.uuid5(namespace, "fn#1"))


@pytest.mark.parametrize("other", [Attempt("fn#1", "another token", 3, None), Attempt("fn#1", "", 0, 0)], ids=repr)
def test_every_attempt_at_a_key_has_the_same_key_for_other_services(other: Attempt) -> None:
    assert other.downstream_key == ATTEMPT.downstream_key


def test_attempts_at_different_keys_have_different_keys_for_other_services() -> None:
    assert Attempt("fn#2", "token", 2, None).downstream_key != ATTEMPT.downstream_key


def test_an_attempts_text_does_not_show_its_token() -> None:
    assert repr(ATTEMPT) == "Attempt(key='fn#1', generation=2, lease_end_ms=1800000000250)"


def test_an_attempt_has_room_for_nothing_else() -> None:
    attempt = Attempt("fn#1", "token", 2, None)

    attempt.lease_end_ms = 5
    with pytest.raises(AttributeError):
        attempt.note = "x"  # type: ignore[attr-defined]
    assert attempt.lease_end_ms == 5


def test_a_call_without_a_record_has_an_attempt_with_a_random_key_of_its_own() -> None:
    one, other = Attempt.unprotected(), Attempt.unprotected()

    assert one.key.startswith("unprotected#")
    assert one.downstream_key != other.downstream_key
    assert (one.owner_token, one.generation, one.lease_end_ms) == ("", 0, None)


def test_a_context_variable_is_restored_where_it_was_set_and_left_alone_elsewhere() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outer")
    here = variable.set("inner")
    elsewhere = copy_context().run(variable.set, "foreign")

    restore(variable, elsewhere)
    assert variable.get() == "inner"
    restore(variable, here)
    assert variable.get() == "outer"
