"""What a store met on its way to an answer, for whoever counts such things.  Nothing here decides anything."""

from __future__ import annotations

from persistence._values import Value
from persistence.scope import innermost_scope


class Throttling(Value):
    """The service refused a request for now, at least once.

    Attributes:
        operation: The service's name of the request, such as `PutItem`.
        requests: How many times it was refused.
        reasons: Why, in the service's words, such as `TableWriteKeyRangeThroughputExceeded`; each once.
    """

    __slots__ = __match_args__ = ("operation", "requests", "reasons")

    def __init__(self, operation: str, requests: int, reasons: tuple[str, ...]) -> None:
        self.operation = operation
        self.requests = requests
        self.reasons = reasons


def call_notices() -> list[Throttling] | None:
    """Where the running call's notices are collected; None if nobody asked for them."""
    scope = innermost_scope()
    return None if scope is None else scope.notices
