"""What a running call makes known to its store, to its function and to the calls that its function makes.

One context variable holds all of it, so that all of it goes at once when the call ends.  A scope that has ended is ignored
wherever it is still seen: in a thread or task that the function left behind with a copy of its context, or in a context that a
closed coroutine could not restore.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persistence.background import Lease
    from persistence.base import CallSettings
    from persistence.notices import Throttling


class CallScope:
    """One call's part in the context.  Enter it before anything that may raise, and leave it in two nested `finally` clauses.

    Two, because the exception of a signal's handler may come inside the first one.

    Attributes:
        settings: The configuration of the call, for hooks that were written for Powertools.
        deadline_ms: When the caller is stopped, in epoch milliseconds; None if unknown.  Without one of its own, a call has the
            deadline of the call that it runs inside.
        lambda_context: The Lambda context that the call, or the call that it runs inside, was given; None if there is none.
        attempt: The running attempt, while its function runs.
        lease: The lease that is renewed while the call runs; None if none is.
        notices: Where the store leaves notices of what it meets; None if nobody asked for them.
        is_over: Whether the call has ended.
        is_left: Whether `leave` has come to its end.
        outer: The scope of the call that this one runs inside; None if there is none, or if this one has ended.
    """

    __slots__ = ("attempt", "deadline_ms", "is_left", "is_over", "lambda_context", "lease", "notices", "outer", "settings")

    def __init__(self, settings: CallSettings | None = None, deadline_ms: int | None = None, lambda_context: Any = None) -> None:
        outer = _scope.get()
        if outer is not None:
            outer = innermost_scope()
        if outer is not None:
            settings = outer.settings if settings is None else settings
            deadline_ms = outer.deadline_ms if deadline_ms is None else deadline_ms
            lambda_context = outer.lambda_context if lambda_context is None else lambda_context
        self.settings: CallSettings | None = settings
        self.deadline_ms: int | None = deadline_ms
        self.lambda_context: Any = lambda_context
        self.attempt: Any = None
        self.lease: Lease | None = None
        self.notices: list[Throttling] | None = None
        self.is_over = self.is_left = False
        self.outer = outer

    def enter(self) -> None:
        """Make this the innermost scope."""
        _scope.set(self)

    def leave(self) -> None:
        """End the scope, unless it has been left already."""
        self.is_over = True
        if self.lease is not None:
            self.lease.end()
            self.lease = None
        # Not in another context, as where the garbage collector closes a coroutine: the coroutine's own context is gone.
        if _scope.get() is self:
            _scope.set(self.outer)
        self.outer = None
        self.is_left = True

    def running_attempt(self) -> Any:
        """The attempt of this call, or of the innermost call around it that has one."""
        scope: CallScope | None = self
        while scope is not None and (scope.is_over or scope.attempt is None):
            scope = scope.outer
        return None if scope is None else scope.attempt


_scope: ContextVar[CallScope | None] = ContextVar("idempotency_scope", default=None)


def innermost_scope() -> CallScope | None:
    """The scope of the innermost call that runs here; None if none does."""
    scope = _scope.get()
    while scope is not None and scope.is_over:
        scope = scope.outer
    return scope


def has_ended_here() -> bool:
    """Whether a call ran here, such as in the context that a thread took along, and has ended."""
    scope = _scope.get()
    return scope is not None and scope.is_over


def call_deadline_ms() -> int | None:
    """When the running call's caller is stopped, in epoch milliseconds; None if unknown.

    A read, which carries no record, is not retried beyond it.
    """
    scope = innermost_scope()
    return None if scope is None else scope.deadline_ms
