"""When to send a DynamoDB request again, and for how long.  Decides by values; the store supplies clock and sleep.

Delays are drawn with full jitter (uniform from 0 to a ceiling that doubles), so that many throttled callers spread out:
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: The first ceiling of a delay, about ten round trips to a healthy table.
BASE_MS: Final = 50
#: The last ceiling: a throttled partition recovers within seconds, and each caller should notice soon.
CAP_MS: Final = 2_000
#: Left of a deadline when the last request is sent, for its answer and for the error to reach the caller.
RESERVE_MS: Final = 100
#: Below this much time a further request would only be cut off.
LEAST_MS: Final = 10

#: Answers that mean "not now".  https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
BUSY: Final = frozenset(
    {
        "LimitExceededException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionConflictException",
    }
)
#: Answers after which nobody knows whether the request was applied, besides any of HTTP status 5xx.
UNKNOWN: Final = frozenset(
    {
        "InternalServerError",
        "InternalFailure",
        "ServiceUnavailable",
        "TransactionInProgressException",
        "RequestTimeout",
        "RequestTimeoutException",
    }
)


def error_code(error: BaseException) -> str:
    """The service's code of a client error, "" for anything else.  By its shape, so that botocore need not be imported."""
    response = getattr(error, "response", None)
    code: str = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return code


def is_refusal(error: Exception) -> bool:
    """Whether the request's condition did not hold: nothing was written."""
    return error_code(error) == "ConditionalCheckFailedException"


def is_busy(error: Exception) -> bool:
    """Whether the service refused the request for now, without having applied it."""
    return error_code(error) in BUSY


def is_unsent(error: Exception) -> bool:
    """Whether no connection came about, so that nothing was sent."""
    if isinstance(getattr(error, "response", None), dict):
        return False
    from botocore import exceptions as sdk  # here: only a failed call needs it, and another client may do without

    return isinstance(error, (sdk.ConnectTimeoutError, sdk.EndpointConnectionError, sdk.ProxyConnectionError))


def is_unknown(error: Exception) -> bool:
    """Whether the request may have been applied although an error came back, or nothing did."""
    if isinstance(getattr(error, "response", None), dict):
        server_error = 500
        return is_unreadable(error) or error_code(error) in UNKNOWN or _metadata(error, "HTTPStatusCode") >= server_error
    from botocore import exceptions as sdk
    from botocore.parsers import ResponseParserError

    lost = (
        sdk.HTTPClientError,
        sdk.IncompleteReadError,
        sdk.ResponseStreamingError,
        sdk.ChecksumError,
        sdk.SSLError,
        ResponseParserError,
    )
    return isinstance(error, lost)


def is_unreadable(error: Exception) -> bool:
    """Whether the error's answer was cut off: botocore then takes the HTTP status for a code, and the raw body for a message."""
    return error_code(error).isdecimal()


class UnreadableAnswerError(Exception):
    """An answer was cut off.  Raised in place of the client's error, whose text repeats the answer and thus a stored result."""


def hides_tries(error: Exception) -> bool:
    """Whether the client had tried before by itself: this definite answer then says nothing of the first request."""
    return _metadata(error, "RetryAttempts") > 0


def _metadata(error: Exception, name: str) -> int:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    value = response.get("ResponseMetadata", {}).get(name, 0)
    return value if isinstance(value, int) else 0


class Retries:
    """Sends one request until it is answered for good, or until time is up.

    Time is up *at_most_ms* after the first failure (None: no such limit), and just before *deadline_ms* (None: no deadline).  No
    request but the first is sent after that, and no sleep reaches beyond it.

    Attributes:
        outcome_unknown: Whether any request so far may have been applied without our knowing.
    """

    __slots__ = ("_at_most_ms", "_clock_ms", "_deadline_ms", "_sleep_ms", "outcome_unknown")

    def __init__(
        self,
        clock_ms: Callable[[], int],
        sleep_ms: Callable[[float], None],
        *,
        at_most_ms: int | None,
        deadline_ms: int | None = None,
    ) -> None:
        self._clock_ms = clock_ms
        self._sleep_ms = sleep_ms
        self._at_most_ms = at_most_ms
        self._deadline_ms = deadline_ms
        self.outcome_unknown = False

    def call(self, operation: Callable[..., Any], /, **request: Any) -> Any:
        """The answer to the request.  Raises its last error, at once if that is an answer and not a trouble of the moment."""
        give_up_ms: int | None = None
        ceiling_ms = BASE_MS
        while True:
            try:
                return operation(**request)
            except Exception as error:
                if is_refusal(error):  # first, because duplicates are the most common failure by far
                    raise
                unknown = is_unknown(error)
                self.outcome_unknown = self.outcome_unknown or unknown or hides_tries(error)
                if not (unknown or is_busy(error) or is_unsent(error)):
                    raise
                now_ms = self._clock_ms()
                if give_up_ms is None:
                    give_up_ms = self._time_is_up_ms(now_ms)
                left_ms = give_up_ms - now_ms
                if left_ms < LEAST_MS:
                    if is_unreadable(error):
                        raise UnreadableAnswerError(f"The answer, of HTTP status {error_code(error)}, was cut off") from None
                    raise
            self._sleep_ms(min(random.uniform(0, ceiling_ms), left_ms))  # noqa: S311 - jitter, not a secret
            ceiling_ms = min(CAP_MS, 2 * ceiling_ms)

    def _time_is_up_ms(self, now_ms: int) -> int:
        limits = [] if self._at_most_ms is None else [now_ms + self._at_most_ms]
        if self._deadline_ms is not None:
            limits.append(self._deadline_ms - RESERVE_MS)
        return min(limits, default=now_ms)
