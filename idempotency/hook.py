"""What a response hook looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord


class IdempotentHookFunction(Protocol):
    """Called with each replayed response, after the output serializer; what it returns, the caller gets.

    A hook that only looks at the response must return it: without `return`, each replay is None, and the first one is warned of.
    Not called when the function runs.  What it raises reaches the caller.
    """

    def __call__(self, response: Any, idempotent_data: DataRecord, /) -> Any:
        """What the caller gets instead of *response*, which was stored in the record *idempotent_data*."""
