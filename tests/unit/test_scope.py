"""What a running call makes known, and how it goes when the call ends."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest

from persistence.background import Lease
from persistence.scope import CallScope, call_deadline_ms, has_ended_here, innermost_scope

if TYPE_CHECKING:
    from doubles import FakeClock

    from persistence.background import Heartbeat


def entered(deadline_ms: int | None = None) -> CallScope:
    scope = CallScope(deadline_ms=deadline_ms)
    scope.enter()
    return scope


def test_a_nested_scope_has_what_it_lacks_from_the_one_around_it() -> None:
    outer = entered(7)
    inner = entered()

    assert innermost_scope() is inner
    assert call_deadline_ms() == 7
    inner.leave()
    assert innermost_scope() is outer
    outer.leave()
    assert innermost_scope() is None
    assert call_deadline_ms() is None


def test_leaving_twice_changes_nothing() -> None:
    outer = entered()
    inner = entered()
    inner.leave()
    again = entered()
    inner.leave()

    assert innermost_scope() is again
    again.leave()
    outer.leave()


def test_a_scope_that_is_left_in_another_context_leaves_that_alone() -> None:
    scope = entered()
    elsewhere = copy_context()
    scope.leave()
    other = entered()
    stale = elsewhere.run(innermost_scope)

    assert stale is None
    assert elsewhere.run(has_ended_here)

    def leave_in_another_calls_context() -> CallScope | None:
        own = entered()
        other.leave()
        return innermost_scope() if innermost_scope() is own else None

    assert elsewhere.run(leave_in_another_calls_context) is not None
    assert innermost_scope() is None


def test_a_scope_that_has_ended_is_ignored_where_it_could_not_be_taken_back() -> None:
    outer = entered(7)
    inner = entered(5)
    inner.is_over = True  # a signal's exception came right after this line of `leave`

    assert innermost_scope() is outer
    assert call_deadline_ms() == 7
    inner.leave()
    outer.leave()


def test_leaving_a_scope_ends_its_lease(clock: FakeClock, heart: Heartbeat) -> None:
    scope = entered()
    lease = scope.lease = Lease("fn#1", lambda _: None, clock, 9_000)
    heart.keep(lease)

    scope.leave()

    assert lease.is_over


def test_a_left_scope_keeps_nothing_of_the_calls_around_it() -> None:
    outer = entered()
    inner = entered()
    inner.leave()
    outer.leave()

    assert inner.outer is None


@pytest.mark.parametrize("names", [("outer",), ("outer", "inner")])
def test_the_running_attempt_is_the_innermost_one(names: tuple[str, ...]) -> None:
    scopes = [entered() for _ in range(2)]
    for scope, name in zip(scopes, names, strict=False):
        scope.attempt = name

    assert scopes[1].running_attempt() == names[-1]
    for scope in reversed(scopes):
        scope.leave()
    assert scopes[1].running_attempt() is None
