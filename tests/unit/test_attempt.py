"""What a running function can learn of its attempt."""

from __future__ import annotations

import uuid
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest
from verbs import at_once

from idempotency import IdempotencyPersistenceConfigError, Transaction, current_attempt, transaction
from idempotency.attempt import Attempt
from persistence.scope import CallScope

if TYPE_CHECKING:
    from collections.abc import Callable


def begin(key: str) -> Transaction:
    return Transaction(idempotency_key=key, own_table="records", own_key={"id": {"S": key}}, region="")


def attempt_at(
    key: str,
    owner_token: str = "token",
    generation: int = 2,
    lease_end_ms: int | None = 1_800_000_000_250,
    begin: Callable[[str], Transaction] = begin,
) -> Attempt:
    return Attempt(key, owner_token, generation, lease_end_ms, begin)


ATTEMPT = attempt_at("fn#1")


def running(attempt: Attempt) -> CallScope:
    """The scope of a call whose attempt runs here."""
    scope = CallScope()
    scope.attempt = attempt
    scope.enter()
    return scope


def test_the_running_attempt_is_the_one_of_this_thread_or_task() -> None:
    def run() -> Attempt:
        running(ATTEMPT)
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


@pytest.mark.parametrize("other", [attempt_at("fn#1", "another token", 3, None), attempt_at("fn#1", "", 0, 0)], ids=repr)
def test_every_attempt_at_a_key_has_the_same_key_for_other_services(other: Attempt) -> None:
    assert other.downstream_key == ATTEMPT.downstream_key


def test_attempts_at_different_keys_have_different_keys_for_other_services() -> None:
    assert attempt_at("fn#2").downstream_key != ATTEMPT.downstream_key


def test_an_attempts_text_does_not_show_its_token() -> None:
    assert repr(ATTEMPT) == "Attempt(key='fn#1', generation=2, lease_end_ms=1800000000250)"


def test_an_attempt_has_room_for_nothing_else() -> None:
    attempt = attempt_at("fn#1")

    attempt.lease_end_ms = 5
    with pytest.raises(AttributeError):
        attempt.note = "x"  # type: ignore[attr-defined]
    assert attempt.lease_end_ms == 5


def test_a_call_without_a_record_has_an_attempt_with_a_random_key_of_its_own() -> None:
    one, other = Attempt.unprotected(begin), Attempt.unprotected(begin)

    assert one.key.startswith("unprotected#")
    assert one.downstream_key != other.downstream_key
    assert (one.owner_token, one.generation, one.lease_end_ms) == ("", 0, None)


# Its transaction


def put(tx: Transaction) -> None:
    tx.put(TableName="orders", Item={"id": "a"})


def test_a_transaction_is_begun_for_the_attempts_key_when_it_is_first_asked_for() -> None:
    begun: list[Transaction] = []

    def noting(key: str) -> Transaction:
        begun.append(begin(key))
        return begun[-1]

    attempt = attempt_at("fn#1", begin=noting)
    assert begun == []

    assert [attempt.transaction(), attempt.transaction()] == begun * 2
    assert begun[0].idempotency_key == "fn#1"


def test_the_transaction_is_the_one_of_the_attempt_that_runs_here() -> None:
    outer, inner = attempt_at("fn#1"), attempt_at("fn#2")

    def run() -> list[Transaction]:
        running(outer)
        first = transaction()
        nested = running(inner)
        second = transaction()
        nested.leave()
        return [first, second, transaction()]

    assert copy_context().run(run) == [outer.transaction(), inner.transaction(), outer.transaction()]
    assert outer.transaction() is not inner.transaction()


def test_outside_a_running_call_there_is_no_transaction() -> None:
    with pytest.raises(RuntimeError, match=r"^transaction\(\) was called outside a running idempotent call$"):
        transaction()


def test_a_call_without_a_record_has_a_transaction_of_its_own_random_key() -> None:
    attempt = Attempt.unprotected(begin)

    assert attempt.transaction().idempotency_key == attempt.key


def test_a_store_without_transactions_says_so_at_each_call_and_the_attempt_goes_on() -> None:
    def refuse(key: str) -> Transaction:
        raise IdempotencyPersistenceConfigError("none")

    attempt = attempt_at("fn#1", begin=refuse)

    for _ in range(2):
        with pytest.raises(IdempotencyPersistenceConfigError):
            attempt.transaction()
    assert attempt.close() is None


def test_an_attempt_that_never_asked_for_a_transaction_has_nothing_to_write() -> None:
    def never(key: str) -> Transaction:
        raise AssertionError(key)

    assert attempt_at("fn#1", begin=never).close() is None


def test_an_attempt_that_collected_nothing_has_nothing_to_write() -> None:
    attempt = attempt_at("fn#1")
    begun = attempt.transaction()

    assert attempt.close() is None
    with pytest.raises(RuntimeError, match="has ended"):
        put(begun)


def test_an_attempt_that_collected_something_hands_it_over_and_takes_no_more() -> None:
    attempt = attempt_at("fn#1")
    begun = attempt.transaction()
    put(begun)

    assert attempt.close() is begun
    with pytest.raises(RuntimeError, match="has ended"):
        put(begun)
    with pytest.raises(RuntimeError, match="after its idempotent call had ended"):
        attempt.transaction()
    assert len(begun.actions) == 1


def test_after_the_end_no_transaction_is_begun() -> None:
    attempt = attempt_at("fn#1")
    attempt.close()

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^transaction\(\) was called after its idempotent call had ended$"):
            attempt.transaction()
    assert attempt.close() is None


def test_a_thread_that_comes_too_late_gets_no_transaction_whose_writes_would_be_lost() -> None:
    """It was left behind, and asks while the attempt ends."""

    def slowly(key: str) -> Transaction:
        assert attempt.close() is None  # just now, in the function's own thread
        return begin(key)

    attempt = attempt_at("fn#1", begin=slowly)

    with pytest.raises(RuntimeError, match="after its idempotent call had ended"):
        attempt.transaction()


def test_a_thread_that_was_just_in_time_has_its_writes_committed() -> None:
    """Whatever it has been given before the end is part of the attempt: it is handed over, or the action is refused."""
    attempt = attempt_at("fn#1")
    begun = attempt.transaction()

    def late() -> bool:
        try:
            put(begun)
        except RuntimeError:
            return False
        return True

    taken, handed_over = at_once([late, attempt.close])

    assert (handed_over is begun) is taken


def test_threads_that_ask_at_once_get_one_transaction() -> None:
    """Both begin one, and the second is dropped unused: nobody has it."""
    attempt: Attempt

    def begun_meanwhile(key: str) -> Transaction:
        if not others:
            others.append(begin("placeholder"))
            others[0] = attempt.transaction()  # another thread is faster
        return begin(key)

    others: list[Transaction] = []
    attempt = attempt_at("fn#1", begin=begun_meanwhile)

    assert attempt.transaction() is others[0] is attempt.transaction()


def test_of_many_threads_each_gets_the_same_transaction() -> None:
    attempt = attempt_at("fn#1")

    assert len({id(each) for each in at_once([attempt.transaction] * 8)}) == 1
