"""Which DynamoDB requests to send again.  How long, and after which pauses, is in `_schedule`."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from persistence._lean_errors import CredentialsError, LostAnswerError, NotSentError
from persistence._procedures import Pause, Request, note_outcome
from persistence._schedule import Schedule
from persistence.notices import Throttling, call_notices

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._procedures import Procedure

#: The server's wish, in milliseconds; botocore's standard mode obeys the same header.
RETRY_AFTER: Final = "x-amz-retry-after"

#: Whether a request of this library is being sent, in this thread or task; see `_sdk`.
is_sending: ContextVar[bool] = ContextVar("is_sending", default=False)

#: Answers that mean "too much".  https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
THROTTLED: Final = frozenset(
    {
        "LimitExceededException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: Answers that mean "not now": besides, the item is being written by another request, in this Region or in another.
BUSY: Final = THROTTLED | {"ReplicatedWriteConflictException", "TransactionConflictException"}
#: A transaction of which nothing was applied; its reasons say why, action by action.
CANCELED: Final = "TransactionCanceledException"
#: The reason of an action that was not to blame.
BLAMELESS: Final = "None"
#: Reasons that mean "not now", and those of them that mean "too much".
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html#API_TransactWriteItems_Errors
THROTTLED_ACTION: Final = frozenset({"ProvisionedThroughputExceeded", "ThrottlingError"})
BUSY_ACTION: Final = THROTTLED_ACTION | {"TransactionConflict"}
#: The condition of the request did not hold: every duplicate's answer.
REFUSED: Final = "ConditionalCheckFailedException"
#: Where botocore asks for credentials: a request was not signed yet if its error comes from there.
SOURCES: Final = frozenset({"botocore.credentials", "botocore.tokens"})
#: AWS's security token service could not reach the provider of a web identity.
#: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
IDENTITY_UNREACHABLE: Final = "IDPCommunicationError"
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
    try:
        return bool(error.response["Error"]["Code"] == REFUSED)  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError):  # it is no client error
        return False


def is_item_too_large(error: Exception) -> bool:
    """Whether the service refused the write for the item's size.  It has no code of its own for that."""
    return error_code(error) == "ValidationException" and "item size" in str(error).lower()


def refusing_item(error: Exception) -> dict[str, Any] | None:
    """The old item that a failed condition returned, {} if it returned none; None if the error is another."""
    if not is_refusal(error):
        return None
    response: dict[str, Any] = getattr(error, "response", {})
    return response.get("Item") or {}


def cancellation_reasons(error: BaseException) -> list[dict[str, Any]]:
    """Why a transaction was canceled, action by action, in the service's words; empty if the error is another."""
    if error_code(error) != CANCELED:
        return []
    response: dict[str, Any] = getattr(error, "response", {})
    return list(response.get("CancellationReasons") or [])


def _reasons_to_blame(error: BaseException) -> set[str]:
    return {reason.get("Code", BLAMELESS) for reason in cancellation_reasons(error)} - {BLAMELESS}


def is_busy(error: Exception) -> bool:
    """Whether the service refused the request for now, without having applied it."""
    code = error_code(error)
    if code != CANCELED:
        return code in BUSY
    reasons = _reasons_to_blame(error)
    return bool(reasons) and reasons <= BUSY_ACTION


def is_throttle(error: BaseException) -> bool:
    """Whether the service refused the request because there are too many."""
    code = error_code(error)
    return code in THROTTLED or (code == CANCELED and not _reasons_to_blame(error).isdisjoint(THROTTLED_ACTION))


def throttling_reasons(error: BaseException) -> list[tuple[str, str]]:
    """Why a request was throttled, as (reason, resource) in the service's words; empty if it did not say.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_ThrottlingReason.html
    """
    if not is_throttle(error):
        return []
    response: dict[str, Any] = getattr(error, "response", {})
    # ThrottlingException writes the name with a small letter.
    reasons = response.get("ThrottlingReasons") or response.get("throttlingReasons") or []
    return [(reason.get("reason", ""), reason.get("resource", "")) for reason in reasons if isinstance(reason, dict)]


def is_unsent(error: Exception) -> bool:
    """Whether no connection came about, so that nothing was sent."""
    if isinstance(getattr(error, "response", None), dict):
        return False
    if isinstance(error, NotSentError):
        return True
    sdk = sys.modules.get("botocore.exceptions")  # where nobody has imported it, the error is not the SDK's
    return sdk is not None and isinstance(error, (sdk.ConnectTimeoutError, sdk.EndpointConnectionError, sdk.ProxyConnectionError))


def is_unsigned(error: Exception) -> bool:
    """Whether there were no credentials to sign the request with, so that nothing was sent.

    Their source may raise anything, an answer of another service included, so what counts is where the error comes from.
    """
    if isinstance(error, CredentialsError):
        return True
    sdk = sys.modules.get("botocore.exceptions")
    if sdk is None:
        return False
    if isinstance(error, (sdk.NoCredentialsError, sdk.CredentialRetrievalError)):
        return True
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in SOURCES:
            return True
        trace = trace.tb_next
    return False


def may_be_signed(error: Exception) -> bool:
    """Whether the source of the credentials, which has failed, is known to fail now and then.

    Not where nothing is configured, or where it refuses: that needs a person.
    """
    reason = error.__cause__ if isinstance(error, CredentialsError) else error
    sdk = sys.modules.get("botocore.exceptions")
    if sdk is None or not isinstance(reason, Exception):
        return False
    if isinstance(reason, (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError, sdk.TokenRetrievalError)):
        return True
    return is_unsent(reason) or is_busy(reason) or is_unknown(reason) or error_code(reason) == IDENTITY_UNREACHABLE


def is_unknown(error: Exception) -> bool:
    """Whether the request may have been applied although an error came back, or nothing did."""
    if isinstance(getattr(error, "response", None), dict):
        server_error = 500
        return is_unreadable(error) or error_code(error) in UNKNOWN or _metadata(error, "HTTPStatusCode") >= server_error
    if isinstance(error, LostAnswerError):
        return True
    sdk = sys.modules.get("botocore.exceptions")
    if sdk is None:
        return False
    lost = (
        sdk.HTTPClientError,
        sdk.IncompleteReadError,
        sdk.ResponseStreamingError,
        sdk.ChecksumError,
        sdk.SSLError,
    )
    return isinstance(error, lost) or _is_unparsable(error)


def _is_unparsable(error: Exception) -> bool:
    parsers = sys.modules.get("botocore.parsers")
    return parsers is not None and isinstance(error, parsers.ResponseParserError)


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


def retry_after_ms(error: Exception) -> int:
    """How long the server asks to wait, 0 if it does not."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    wish = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(RETRY_AFTER, "")
    try:
        return max(0, int(wish))
    except ValueError:  # a wish that is no number is none
        return 0


def asking(operation: Callable[..., Any], request: dict[str, Any]) -> Any:
    """The client's answer to one request.

    The error that says that the request's condition did not hold is returned: it is what every duplicate gets, and raising it
    through each frame would cost as much as the rest of this.
    """
    try:
        return operation(**request)
    except Exception as error:
        if is_refusal(error):
            return error.with_traceback(None)  # whose frames would keep the caller's, and it the error
        raise


def sending(operation: Callable[..., Any], request: dict[str, Any]) -> Any:
    """As `asking`, with a client that may be boto3's: it is to try once, see `_sdk`.  Call it in the thread that sends."""
    try:
        try:
            is_sending.set(True)
            return asking(operation, request)
        finally:
            is_sending.set(False)
    finally:
        is_sending.set(False)  # again, for a signal whose handler raised inside the first one


class Retries(Request):
    """Has one request sent until it is answered for good, or until time is up.  It is itself the request that is asked for.

    Time is up *at_most_ms* after the first failure (None: no such limit), and just before *deadline_ms* (None: no deadline).  No
    request but the first is sent after that, and no pause reaches beyond it.  A server's wish for a pause is obeyed within that
    time.

    Credentials that cannot be had at the moment are such a trouble, and after the function *has_run*, credentials that cannot be
    had at all are, too: as long as its caller waits, nothing is better than to try on.

    Attributes:
        outcome_unknown: Whether any request so far may have been applied without our knowing.
    """

    __slots__ = ("_at_most_ms", "_begun_ms", "_clock_ms", "_has_run", "outcome_unknown")

    def __init__(
        self,
        clock_ms: Callable[[], int],
        at_most_ms: int | None,
        deadline_ms: int | None = None,
        now_ms: int | None = None,
        has_run: bool = False,
    ) -> None:
        self.deadline_ms = deadline_ms
        self._has_run = has_run
        self._clock_ms = clock_ms
        self._at_most_ms = at_most_ms
        # Before the first request, during which the clock may be set back.
        self._begun_ms = clock_ms() if now_ms is None and deadline_ms is not None else now_ms or 0
        self.outcome_unknown = False

    def answer(self, call: Callable[..., Any], *arguments: Any) -> Procedure[Any]:
        """What `call(*arguments)` answers.  Raises its last error, at once if that is no trouble of the moment."""
        answer = yield from self.outcome(call, *arguments)
        if not isinstance(answer, Exception):
            return answer
        try:
            raise answer
        finally:
            del answer  # it refers to this frame

    def outcome(self, call: Callable[..., Any], *arguments: Any) -> Procedure[Any]:
        """As `answer`, but the error that says that the request's condition did not hold is returned, as by `asking`."""
        self.call = call
        self.arguments = arguments
        schedule: Schedule | None = None
        throttles: list[Exception] = []
        try:
            while True:
                try:
                    return (yield self)
                except Exception as error:
                    unsigned = is_unsigned(error)
                    is_passing = (self._has_run or may_be_signed(error)) if unsigned else self._is_passing(error)
                    note_outcome(error, is_unknown=self.outcome_unknown)
                    if not is_passing:
                        raise
                    now_ms = self._clock_ms()
                    if not unsigned and is_throttle(error):
                        throttles.append(error)
                    if schedule is None:
                        begun_ms = max(now_ms, self._begun_ms)
                        schedule = Schedule(begun_ms, at_most_ms=self._at_most_ms, deadline_ms=self.deadline_ms)
                    pause_ms = schedule.pause_ms(now_ms, retry_after_ms(error))
                    if pause_ms is None:
                        if is_unreadable(error):
                            raise UnreadableAnswerError(f"The answer, of HTTP status {error_code(error)}, was cut off") from None
                        raise
                yield Pause(pause_ms)
        finally:
            if throttles:
                _tell_of(throttles)
                throttles.clear()  # each refers to this frame, and the frame to them

    def _is_passing(self, error: Exception) -> bool:
        """Whether the request may be answered when it is sent again; remembers whether it may have been applied."""
        unknown = is_unknown(error)
        self.outcome_unknown = self.outcome_unknown or unknown or hides_tries(error)
        return unknown or is_busy(error) or is_unsent(error)


def _tell_of(throttles: list[Exception]) -> None:
    """Leave a notice of the throttled requests of one call to whoever collects such."""
    notices = call_notices()
    if notices is not None:
        reasons = dict.fromkeys(reason for error in throttles for reason, _ in throttling_reasons(error))
        operation = getattr(throttles[0], "operation_name", "")
        notices.append(Throttling(operation, len(throttles), tuple(reasons)))
