"""The Lambda context of an invocation that is not Lambda's."""

from __future__ import annotations

import time

from aws_lambda_powertools.utilities.typing import LambdaContext


class Invocation(LambdaContext):
    """An invocation that is stopped *timeout_ms* after its context was made."""

    def __init__(self, request_id: str, timeout_ms: int = 30_000) -> None:
        self._aws_request_id = request_id
        self._deadline = time.monotonic() + timeout_ms / 1000

    def get_remaining_time_in_millis(self) -> int:  # type: ignore[override]  # Powertools declares it static, Lambda does not
        """Milliseconds until the invocation is stopped."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))
