"""What a store met on its way to an answer, for whoever counts such things.  Nothing here decides anything."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Throttling(NamedTuple):
    """The service refused a request for now, at least once.

    Attributes:
        operation: The service's name of the request, such as `PutItem`.
        requests: How many times it was refused.
        reasons: Why, in the service's words, such as `TableWriteKeyRangeThroughputExceeded`; each once.
    """

    operation: str
    requests: int
    reasons: tuple[str, ...]


#: Where the running call's notices are collected; None if nobody asked for them.
call_notices: ContextVar[list[Throttling] | None] = ContextVar("call_notices", default=None)
