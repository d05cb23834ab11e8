"""When a request is sent again, and for how long."""

from __future__ import annotations

import gc
import random
import sys
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from doubles import START_MS, FakeClock

from persistence._lean_errors import CredentialsError, LostAnswerError, NotSentError
from persistence._procedures import run
from persistence._retries import (
    BUSY,
    THROTTLED,
    UNKNOWN,
    Retries,
    UnreadableAnswerError,
    cancellation_reasons,
    error_code,
    hides_tries,
    is_busy,
    is_refusal,
    is_sending,
    is_throttle,
    is_unknown,
    is_unreadable,
    is_unsent,
    is_unsigned,
    may_be_signed,
    refusing_item,
    retry_after_ms,
    sending,
    throttling_reasons,
)
from persistence._schedule import BASE_MS, CAP_MS, LEAST_MS, RESERVE_MS, WISH_CAP_MS
from persistence.notices import Throttling, call_notices
from persistence.scope import CallScope

if TYPE_CHECKING:
    from collections.abc import Callable


def answered(code: str, status: int = 400, retries: int = 0) -> sdk.ClientError:
    """An error as botocore raises it for an answer of the service."""
    metadata: Any = {"HTTPStatusCode": status, "RetryAttempts": retries}
    return sdk.ClientError({"Error": {"Code": code, "Message": "..."}, "ResponseMetadata": metadata}, "UpdateItem")


URL = "https://dynamodb.eu-central-1.amazonaws.com/"


def canceled(*codes: str | None, retries: int = 0) -> sdk.ClientError:
    """A transaction of which nothing was applied, with the reason of each action."""
    error = answered("TransactionCanceledException", retries=retries)
    error.response["CancellationReasons"] = [{} if code is None else {"Code": code} for code in codes]
    return error


#: The service refused the request for now, and did not apply it.
REFUSED_FOR_NOW: list[Exception] = [
    answered("ProvisionedThroughputExceededException"),
    answered("ProvisionedThroughputExceeded"),
    answered("Throttling"),
    answered("ThrottlingException"),
    answered("RequestLimitExceeded"),
    answered("TransactionConflictException"),
    answered("ReplicatedWriteConflictException"),
    canceled("TransactionConflict"),
    canceled("None", "TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"),
]
#: The request never left: no connection came about.
NOT_SENT: list[Exception] = [
    sdk.ConnectTimeoutError(endpoint_url=URL),
    sdk.EndpointConnectionError(endpoint_url=URL),
    sdk.ProxyConnectionError(proxy_url=URL),
]
#: Nobody knows whether the request was applied.
OUTCOME_UNKNOWN: list[Exception] = [
    answered("InternalServerError", 500),
    answered("InternalFailure", 500),
    answered("ServiceUnavailable", 503),
    answered("RequestTimeout", 408),
    answered("RequestTimeoutException", 400),
    answered("500", 500),
    answered("502", 502),
    answered("503", 503),
    answered("504", 504),
    answered("", 500),
    answered("400"),  # an answer of status 400 that was cut off
    answered("SomethingNew", 500),
    answered("SomethingNew", 599),
    answered("TransactionInProgressException"),
    sdk.ReadTimeoutError(endpoint_url=URL),
    sdk.ConnectionClosedError(endpoint_url=URL),
    sdk.HTTPClientError(error="reset"),
    # Not of the handshake alone: a peer that goes away after the request was sent shows as an unexpected end of TLS, too.
    sdk.SSLError(endpoint_url=URL, error="EOF occurred in violation of protocol"),
    sdk.ResponseStreamingError(error="reset"),
    sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    sdk.ChecksumError(checksum_type="crc32", expected_checksum="1", actual_checksum="2"),
    ResponseParserError("not JSON"),
]
#: Definite: sending the request again would get the same answer.
DEFINITE: list[Exception] = [
    answered("ConditionalCheckFailedException"),
    answered("ValidationException"),
    answered("ResourceNotFoundException"),
    answered("AccessDeniedException"),
    answered("ExpiredTokenException"),
    answered("UnrecognizedClientException"),
    answered("TransactionCanceledException"),
    canceled(),
    canceled("None"),
    canceled("ConditionalCheckFailed"),
    canceled("TransactionConflict", "ConditionalCheckFailed"),
    answered("IdempotentParameterMismatchException"),
    answered("ItemCollectionSizeLimitExceededException"),
    answered("SomethingNew", 499),
    answered("", 400),
    sdk.ParamValidationError(report="..."),
    sdk.NoCredentialsError(),
    sdk.NoRegionError(),
    ValueError("a fault of the caller"),
]


def name_of(error: Exception) -> str:
    status = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return f"{error_code(error) or type(error).__name__}-{status}"


def sender(*outcomes: object) -> Any:
    """A request that is answered by each of the outcomes in turn, then always by the last."""
    remaining = list(outcomes)

    def send() -> object:
        outcome = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return send


class Retrying(Retries):
    """Carried out in this thread, as by a sync store."""

    def __init__(
        self, clock: FakeClock, sleep_ms: Callable[[float], object], at_most_ms: int | None, deadline_ms: int | None
    ) -> None:
        super().__init__(clock, at_most_ms, deadline_ms)
        self.sleep_ms = sleep_ms

    def call(self, operation: Callable[..., Any], **request: Any) -> Any:
        return run(self.answer(sending, operation, request), self.sleep_ms)


def retrying(clock: FakeClock, at_most_ms: int | None = 60_000, deadline_ms: int | None = None) -> Retrying:
    return Retrying(clock, clock.sleep_ms, at_most_ms, deadline_ms)


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(20_261_121)


# What an error means


@pytest.mark.parametrize("error", REFUSED_FOR_NOW, ids=name_of)
def test_a_throttle_or_a_conflict_is_an_answer_for_now_that_applied_nothing(error: Exception) -> None:
    assert is_busy(error)
    assert not is_unknown(error)


@pytest.mark.parametrize("error", OUTCOME_UNKNOWN, ids=name_of)
def test_a_server_error_or_a_lost_answer_leaves_the_outcome_unknown(error: Exception) -> None:
    assert is_unknown(error)


@pytest.mark.parametrize("error", NOT_SENT, ids=name_of)
def test_a_connection_that_did_not_come_about_applied_nothing(error: Exception) -> None:
    assert not is_unknown(error)


@pytest.mark.parametrize("error", DEFINITE, ids=name_of)
def test_a_definite_answer_is_neither_for_now_nor_unknown(error: Exception) -> None:
    assert not is_busy(error)
    assert not is_unknown(error)


@pytest.mark.parametrize("error", [*REFUSED_FOR_NOW, *OUTCOME_UNKNOWN, *NOT_SENT], ids=name_of)
def test_a_trouble_of_the_moment_is_tried_again(error: Exception, clock: FakeClock) -> None:
    answer = retrying(clock).call(sender(error, "done"))

    assert answer == "done"
    assert len(clock.slept_ms) == 1


@pytest.mark.parametrize("error", DEFINITE, ids=name_of)
def test_a_definite_answer_is_raised_at_once(error: Exception, clock: FakeClock) -> None:
    retries = retrying(clock)

    with pytest.raises(type(error)) as raised:
        retries.call(sender(error))
    assert raised.value is error
    assert clock.slept_ms == []


def test_a_failed_condition_is_told_from_every_other_error() -> None:
    others = [*REFUSED_FOR_NOW, *NOT_SENT, *OUTCOME_UNKNOWN, *DEFINITE[1:]]

    assert is_refusal(answered("ConditionalCheckFailedException"))
    assert not any(is_refusal(error) for error in others)


@pytest.mark.parametrize(
    ("code", "response", "item"),
    [
        ("ConditionalCheckFailedException", {"Item": {"id": {"S": "a"}}}, {"id": {"S": "a"}}),
        ("ConditionalCheckFailedException", {"Item": {}}, {}),
        ("ConditionalCheckFailedException", {"Item": None}, {}),
        ("ConditionalCheckFailedException", {}, {}),
        ("ValidationException", {"Item": {"id": {"S": "a"}}}, None),
    ],
)
def test_a_failed_condition_is_known_by_its_item_even_if_there_is_none(code: str, response: Any, item: Any) -> None:
    error = answered(code)
    error.response.update(response)

    assert refusing_item(error) == item


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_an_interruption_is_never_held_back(error: BaseException, clock: FakeClock) -> None:
    def send() -> None:
        raise error

    retries = retrying(clock)

    with pytest.raises(type(error)):
        retries.call(send)
    assert clock.slept_ms == []


def test_no_code_is_both_busy_and_unknown_by_the_tables() -> None:
    assert not BUSY & UNKNOWN


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no response"),
        type("Odd", (Exception,), {"response": "text"})(),
        type("Odd", (Exception,), {"response": {}})(),
        type("Odd", (Exception,), {"response": {"Error": {}}})(),
    ],
    ids=["none", "text", "empty", "no-code"],
)
def test_an_error_without_a_code_has_an_empty_one(error: Exception) -> None:
    assert error_code(error) == ""


@pytest.mark.parametrize(
    ("error", "hidden"),
    [
        (answered("ConditionalCheckFailedException", retries=0), False),
        (answered("ConditionalCheckFailedException", retries=1), True),
        (answered("ProvisionedThroughputExceededException", retries=3), True),
        (sdk.ClientError({"Error": {"Code": "X"}}, "UpdateItem"), False),
        (sdk.ReadTimeoutError(endpoint_url=URL), False),
        (ValueError(), False),
        (answered("X", retries="many"), False),  # type: ignore[arg-type]
    ],
)
def test_a_definite_answer_to_a_repetition_by_the_client_itself_is_told_from_a_first_one(error: Exception, hidden: bool) -> None:
    assert hides_tries(error) is hidden


# Canceled transactions


#: The service's words for why an action was canceled: whether "not now", and whether "too much".
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html
ACTION_CODES: dict[str | None, tuple[bool, bool]] = {
    "TransactionConflict": (True, False),
    "ProvisionedThroughputExceeded": (True, True),
    "ThrottlingError": (True, True),
    "ConditionalCheckFailed": (False, False),
    "ItemCollectionSizeLimitExceeded": (False, False),
    "ValidationError": (False, False),
    "DuplicateItem": (False, False),
    "AccessDenied": (False, False),
    "SomethingNew": (False, False),
}
BLAMELESS_CODES: list[str | None] = ["None", None]


@pytest.mark.parametrize("blameless", BLAMELESS_CODES)
@pytest.mark.parametrize(("one", "other"), [*product(ACTION_CODES, ACTION_CODES)])
def test_a_canceled_transaction_is_for_now_if_every_action_to_blame_is(one: str, other: str, blameless: str | None) -> None:
    """One definite reason is enough: the repetition would fail for it."""
    error = canceled(blameless, one, blameless, other)

    assert is_busy(error) is (ACTION_CODES[one][0] and ACTION_CODES[other][0])
    assert not is_unknown(error)
    assert not is_refusal(error)


@pytest.mark.parametrize("blameless", BLAMELESS_CODES)
@pytest.mark.parametrize(("one", "other"), [*product(ACTION_CODES, ACTION_CODES)])
def test_a_canceled_transaction_is_throttled_if_any_action_is(one: str, other: str, blameless: str | None) -> None:
    assert is_throttle(canceled(one, blameless, other)) is (ACTION_CODES[one][1] or ACTION_CODES[other][1])


@pytest.mark.parametrize("codes", [[], ["None"], [None], ["None", None]])
def test_a_canceled_transaction_that_blames_nothing_is_a_definite_answer(codes: list[str | None]) -> None:
    """Nobody knows what a repetition would be good for."""
    assert not is_busy(canceled(*codes))
    assert not is_throttle(canceled(*codes))


def test_the_words_for_an_action_are_none_for_a_request_and_the_other_way_round() -> None:
    assert not is_busy(answered("ThrottlingError"))
    assert not is_throttle(answered("ThrottlingError"))
    assert not is_busy(answered("TransactionConflict"))
    assert not is_busy(canceled("ThrottlingException"))
    assert not is_throttle(canceled("ThrottlingException"))


def test_the_reasons_of_a_canceled_transaction_are_the_services_in_its_order() -> None:
    reasons = [{"Code": "None"}, {"Code": "ConditionalCheckFailed", "Message": "m", "Item": {"id": {"S": "a"}}}]
    error = answered("TransactionCanceledException")
    error.response["CancellationReasons"] = reasons

    assert cancellation_reasons(error) == reasons


@pytest.mark.parametrize(
    "error",
    [
        answered("TransactionCanceledException"),
        type(
            "Odd", (Exception,), {"response": {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": None}}
        )(),
        ValueError("no response"),
    ],
    ids=["absent", "none", "another"],
)
def test_an_error_without_reasons_has_none(error: Exception) -> None:
    assert cancellation_reasons(error) == []


def test_the_reasons_of_another_error_are_no_cancellation() -> None:
    error = canceled("TransactionConflict")
    error.response["Error"]["Code"] = "ValidationException"

    assert cancellation_reasons(error) == []
    assert not is_busy(error)


def test_a_cancellation_after_a_hidden_try_leaves_the_outcome_unknown(clock: FakeClock) -> None:
    """The first try may have been applied, and the second refused because of it."""
    retries = retrying(clock)

    with pytest.raises(sdk.ClientError):
        retries.call(sender(canceled("ConditionalCheckFailed", retries=1)))
    assert retries.outcome_unknown


# What is remembered of it


@pytest.mark.parametrize(
    ("errors", "unknown"),
    [
        ([], False),
        ([REFUSED_FOR_NOW[0]], False),
        ([OUTCOME_UNKNOWN[0]], True),
        ([OUTCOME_UNKNOWN[0], REFUSED_FOR_NOW[0]], True),
        ([REFUSED_FOR_NOW[0], OUTCOME_UNKNOWN[0]], True),
        ([answered("ThrottlingException", retries=1)], True),
    ],
)
def test_one_unknown_outcome_makes_the_whole_request_unknown(errors: list[Exception], unknown: bool, clock: FakeClock) -> None:
    retries = retrying(clock)

    retries.call(sender(*errors, "done"))

    assert retries.outcome_unknown is unknown


@pytest.mark.parametrize(
    ("first", "last", "unknown"),
    [
        (None, answered("ValidationException"), False),
        (None, answered("ValidationException", retries=1), True),
        (None, answered("ConditionalCheckFailedException"), False),
        (OUTCOME_UNKNOWN[0], answered("ConditionalCheckFailedException"), True),
        (REFUSED_FOR_NOW[0], answered("ConditionalCheckFailedException"), False),
    ],
)
def test_a_definite_last_answer_tells_whether_an_earlier_try_may_have_been_applied(
    first: Exception | None, last: Exception, unknown: bool, clock: FakeClock
) -> None:
    retries = retrying(clock)

    with pytest.raises(sdk.ClientError):
        retries.call(sender(*([first] if first else []), last))
    assert retries.outcome_unknown is unknown


# For how long


def run_to_the_end(clock: FakeClock, at_most_ms: int | None, deadline_ms: int | None = None) -> list[int]:
    """When an ever throttled request was sent, in milliseconds from now."""
    start_ms = clock.now_ms
    sent_at: list[int] = []

    def send() -> None:
        sent_at.append(clock.now_ms - start_ms)
        raise answered("ThrottlingException")

    with pytest.raises(sdk.ClientError):
        retrying(clock, at_most_ms, deadline_ms).call(send)
    return sent_at


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize(
    ("at_most_ms", "deadline_ms", "end_ms"),
    [
        (100, None, 100),
        (15_000, None, 15_000),
        (None, START_MS + 15_000, 15_000 - RESERVE_MS),
        (10_000, START_MS + 5_000, 5_000 - RESERVE_MS),
        (5_000, START_MS + 10_000, 5_000),
    ],
)
def test_the_request_is_sent_until_just_before_the_end_and_never_after_it(
    seed: int, at_most_ms: int | None, deadline_ms: int | None, end_ms: int, clock: FakeClock
) -> None:
    random.seed(seed)

    sent_at = run_to_the_end(clock, at_most_ms, deadline_ms)

    assert sent_at[0] == 0, seed
    assert end_ms - LEAST_MS < sent_at[-1] <= end_ms, seed


@pytest.mark.parametrize("seed", range(50))
def test_delays_are_jittered_from_nothing_to_a_ceiling_that_doubles_up_to_its_cap(seed: int, clock: FakeClock) -> None:
    random.seed(seed)

    run_to_the_end(clock, 30_000)

    ceilings = [min(CAP_MS, BASE_MS * 2**number) for number in range(len(clock.slept_ms))]
    assert all(0 <= slept <= ceiling for slept, ceiling in zip(clock.slept_ms, ceilings, strict=True)), seed


def test_delays_use_the_whole_of_their_range() -> None:
    """Full jitter: neither equal delays nor half of one."""
    shares: list[list[float]] = [[] for _ in range(8)]
    for _ in range(400):
        trial = FakeClock()
        retrying(trial, 600_000).call(sender(*[answered("ThrottlingException")] * 8, "done"))
        for number, slept in enumerate(trial.slept_ms):
            shares[number].append(slept / min(CAP_MS, BASE_MS * 2**number))

    for share in shares:
        assert min(share) < 0.05
        assert max(share) > 0.95
        assert 0.4 < sum(share) / len(share) < 0.6


@pytest.mark.parametrize("left_ms", [LEAST_MS, LEAST_MS + 1, 1_000])
def test_a_request_is_repeated_while_there_is_time_for_it(left_ms: int) -> None:
    for limits in ({"at_most_ms": left_ms}, {"at_most_ms": None, "deadline_ms": START_MS + RESERVE_MS + left_ms}):
        assert retrying(FakeClock(), **limits).call(sender(answered("ThrottlingException"), "done")) == "done"


@pytest.mark.parametrize("left_ms", [LEAST_MS - 1, 0, -1, -10_000])
def test_a_request_without_time_for_a_repetition_is_sent_once(left_ms: int, clock: FakeClock) -> None:
    assert run_to_the_end(clock, left_ms) == [0]
    assert run_to_the_end(clock, None, START_MS + RESERVE_MS + left_ms) == [0]
    assert run_to_the_end(clock, 60_000, START_MS + RESERVE_MS + left_ms) == [0]
    assert clock.slept_ms == []


def test_a_request_without_any_limit_is_sent_once(clock: FakeClock) -> None:
    assert run_to_the_end(clock, None) == [0]


def test_the_time_that_each_request_itself_takes_counts(clock: FakeClock) -> None:
    """Toward the deadline all of it; toward the limit, what comes after the first failure."""

    def seconds_spent(at_most_ms: int | None, deadline_ms: int | None) -> int:
        tries = 0

        def send() -> None:
            nonlocal tries
            tries += 1
            clock.advance(ms=2_000)
            raise sdk.ReadTimeoutError(endpoint_url=URL)

        with pytest.raises(sdk.ReadTimeoutError):
            retrying(clock, at_most_ms, deadline_ms).call(send)
        return 2 * tries

    assert seconds_spent(None, clock.now_ms + 3_000) == 4
    assert seconds_spent(1_000, None) == 4
    assert seconds_spent(None, clock.now_ms + 2_000) == 2


@pytest.mark.parametrize("deadline_ms", [None, START_MS + 5_000])
def test_a_clock_that_stands_still_does_not_make_the_tries_endless(deadline_ms: int | None, clock: FakeClock) -> None:
    """As a test's own clock does, frozen by freezegun or time-machine."""
    slept_ms: list[float] = []

    with pytest.raises(sdk.ClientError):
        Retrying(clock, slept_ms.append, None if deadline_ms else 5_000, deadline_ms).call(sender(throttled(HOT)))

    assert 4_800 < sum(slept_ms) < 5_100


@pytest.mark.parametrize("when", ["before the first answer", "in a pause", "at each answer"])
@pytest.mark.parametrize("deadline_ms", [None, START_MS + 5_000])
def test_a_clock_that_is_set_back_prolongs_no_tries(deadline_ms: int | None, when: str, clock: FakeClock) -> None:
    slept_ms: list[float] = []

    def send() -> None:
        if when == "at each answer" or (when == "before the first answer" and not slept_ms):
            clock.advance(seconds=-3_600)
        raise throttled(HOT)

    def sleep_ms(ms: float) -> None:
        if when == "in a pause" and not slept_ms:
            clock.advance(seconds=-3_600)
        clock.sleep_ms(ms)
        slept_ms.append(ms)

    with pytest.raises(sdk.ClientError):
        Retrying(clock, sleep_ms, None if deadline_ms else 5_000, deadline_ms).call(send)

    assert 4_700 < sum(slept_ms) < 5_100


def test_the_last_error_is_the_one_that_is_raised(clock: FakeClock) -> None:
    last = answered("AccessDeniedException")

    with pytest.raises(sdk.ClientError) as raised:
        retrying(clock).call(sender(OUTCOME_UNKNOWN[0], REFUSED_FOR_NOW[0], last))
    assert raised.value is last


@pytest.mark.parametrize("status", [400, 503])
def test_an_answer_that_was_cut_off_is_not_repeated_in_the_error(status: int, clock: FakeClock) -> None:
    """Its text would be that of a stored result: the refusing item comes with the answer."""
    cut_off: Any = {
        "Error": {"Code": str(status), "Message": '{"Item": {"data": {"S": "4111-1111'},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = sdk.ClientError(cut_off, "PutItem")

    with pytest.raises(UnreadableAnswerError) as raised:
        retrying(clock, 100).call(sender(error))
    assert is_unreadable(error)
    assert str(raised.value) == f"The answer, of HTTP status {status}, was cut off"
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("last", ["answer", ValueError("definite"), KeyboardInterrupt()], ids=repr)
def test_a_request_is_marked_as_the_librarys_as_long_as_it_is_under_way(clock: FakeClock, last: Any) -> None:
    """The SDK then leaves the retrying to this library, and does its own for everything else."""
    seen: list[bool] = []

    def send() -> Any:
        seen.append(is_sending.get())
        if isinstance(last, BaseException):
            raise last
        return last

    with suppress(ValueError, KeyboardInterrupt):
        retrying(clock).call(send)

    assert seen == [True]
    assert not is_sending.get()


def test_every_try_sends_the_same_request(clock: FakeClock) -> None:
    sent: list[dict[str, object]] = []

    def operation(**request: object) -> str:
        sent.append(request)
        if len(sent) < 3:
            raise answered("ThrottlingException")
        return "done"

    assert retrying(clock).call(operation, TableName="t", Key={"id": {"S": "fn#1"}}) == "done"
    assert sent == [{"TableName": "t", "Key": {"id": {"S": "fn#1"}}}] * 3


# Throttles


ARN = "arn:aws:dynamodb:us-east-1:000000000000:table/idempotency"
HOT, ACCOUNT = "TableWriteKeyRangeThroughputExceeded", "TableWriteAccountLimitExceeded"


def throttled(
    *reasons: Any,
    code: str = "ProvisionedThroughputExceededException",
    name: str = "ThrottlingReasons",
    operation: str = "PutItem",
) -> sdk.ClientError:
    """A throttle as botocore raises it, for each of these reasons."""
    response: Any = {"Error": {"Code": code, "Message": "..."}, "ResponseMetadata": {"HTTPStatusCode": 400, "RetryAttempts": 0}}
    if reasons:
        response[name] = [{"reason": reason, "resource": ARN} if isinstance(reason, str) else reason for reason in reasons]
    return sdk.ClientError(response, operation)


@pytest.mark.parametrize("code", sorted(THROTTLED))
def test_a_throttle_is_a_refusal_for_now(code: str) -> None:
    assert is_throttle(answered(code))
    assert is_busy(answered(code))


@pytest.mark.parametrize(
    "error",
    [
        answered("ReplicatedWriteConflictException"),
        answered("TransactionConflictException"),
        answered("ConditionalCheckFailedException"),
        *NOT_SENT,
        *OUTCOME_UNKNOWN,
        ValueError(),
    ],
    ids=name_of,
)
def test_a_conflict_or_a_failure_is_no_throttle(error: Exception) -> None:
    assert not is_throttle(error)
    assert throttling_reasons(error) == []


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (throttled(HOT), [(HOT, ARN)]),
        (throttled(HOT, ACCOUNT), [(HOT, ARN), (ACCOUNT, ARN)]),
        (throttled(HOT, code="ThrottlingException", name="throttlingReasons"), [(HOT, ARN)]),
        (throttled(HOT, code="RequestLimitExceeded"), [(HOT, ARN)]),
        (throttled({"reason": HOT}), [(HOT, "")]),
        (throttled({"resource": ARN}), [("", ARN)]),
        (throttled({}), [("", "")]),
        (throttled(7), []),
        (throttled(), []),
        (throttled(HOT, code="ValidationException"), []),
    ],
)
def test_the_reasons_of_a_throttle_are_read_in_both_spellings(error: Exception, reasons: list[tuple[str, str]]) -> None:
    assert throttling_reasons(error) == reasons


@pytest.fixture
def notices() -> Any:
    """What the requests of the running call left behind."""
    collected: list[Throttling] = []
    scope = CallScope()
    scope.notices = collected
    scope.enter()
    yield collected
    scope.leave()


def test_throttles_leave_one_notice_with_their_number_and_each_reason_once(clock: FakeClock, notices: list[Throttling]) -> None:
    errors = [throttled(HOT), throttled(), throttled(ACCOUNT, HOT), throttled(HOT)]

    retrying(clock).call(sender(*errors, "done"))

    assert notices == [Throttling("PutItem", 4, (HOT, ACCOUNT))]


def test_a_transaction_that_was_throttled_leaves_a_notice_and_one_in_conflict_does_not(
    clock: FakeClock, notices: list[Throttling]
) -> None:
    busy = [canceled("ThrottlingError"), canceled("TransactionConflict"), canceled("None", "ProvisionedThroughputExceeded")]

    retrying(clock).call(sender(*busy, "done"))

    assert notices == [Throttling("UpdateItem", 2, ())]


@pytest.mark.parametrize(
    "last", ["done", answered("ConditionalCheckFailedException"), throttled(HOT), OUTCOME_UNKNOWN[0]], ids=str
)
def test_throttles_are_told_of_however_the_request_ends(clock: FakeClock, notices: list[Throttling], last: Any) -> None:
    with suppress(sdk.ClientError):
        retrying(clock, at_most_ms=LEAST_MS).call(sender(throttled(HOT, operation="UpdateItem"), last))

    assert [(notice.operation, notice.reasons) for notice in notices] == [("UpdateItem", (HOT,))]


def test_an_interruption_after_a_throttle_tells_of_the_throttle(clock: FakeClock, notices: list[Throttling]) -> None:
    def interrupted(ms: float) -> None:
        raise KeyboardInterrupt

    retries = Retrying(clock, interrupted, 1_000, None)
    with pytest.raises(KeyboardInterrupt):
        retries.call(sender(throttled(HOT)))

    assert notices == [Throttling("PutItem", 1, (HOT,))]


@pytest.mark.parametrize(
    "error",
    [
        answered("ReplicatedWriteConflictException"),
        answered("TransactionConflictException"),
        canceled("TransactionConflict"),
        *NOT_SENT[:1],
        *OUTCOME_UNKNOWN[:1],
    ],
    ids=name_of,
)
def test_a_trouble_that_is_no_throttle_leaves_no_notice(clock: FakeClock, notices: list[Throttling], error: Exception) -> None:
    retrying(clock).call(sender(error, "done"))

    assert notices == []


def test_a_throttle_of_a_client_that_names_no_operation_leaves_a_notice_too(clock: FakeClock, notices: list[Throttling]) -> None:
    error = type("Odd", (Exception,), {"response": {"Error": {"Code": "ThrottlingException"}}})()

    retrying(clock).call(sender(error, "done"))

    assert notices == [Throttling("", 1, ())]


def test_without_anybody_who_collects_notices_there_are_none(clock: FakeClock) -> None:
    assert call_notices() is None

    assert retrying(clock).call(sender(throttled(HOT), "done")) == "done"


def test_a_throttled_request_leaves_no_garbage_that_only_the_collector_finds(clock: FakeClock) -> None:
    """An error refers to the frames that it passed through, and with them to a result that was to be stored."""

    class Request:
        pass

    def operation(**_request: object) -> str:
        if not clock.slept_ms:
            raise throttled(HOT)
        return "done"

    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            retrying(clock).call(operation, Item=Request())
            clock.slept_ms.clear()
        left = [found for found in gc.get_objects() if isinstance(found, Request)]
    finally:
        gc.enable()

    assert left == []


# A pause that the server asks for


def asking(wish: Any) -> sdk.ClientError:
    """A throttle with the header x-amz-retry-after."""
    error = throttled(HOT)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"x-amz-retry-after": wish}
    return error


@pytest.mark.parametrize(
    ("wish", "milliseconds"), [("0", 0), ("1", 1), ("250", 250), ("00250", 250), ("5000", 5_000), (250, 250)]
)
def test_the_wish_is_read_in_milliseconds(wish: Any, milliseconds: int) -> None:
    assert retry_after_ms(asking(wish)) == milliseconds


@pytest.mark.parametrize(
    "wish", ["", "soon", "1.5", "-1", "-5000", "1e3", "0x10", "\u00b2", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 5_000]
)
def test_a_wish_that_is_no_number_of_milliseconds_is_ignored(wish: str) -> None:
    """The last one is a number, but none that Python reads: it would replace the service's own error."""
    assert retry_after_ms(asking(wish)) == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        *NOT_SENT[:1],
        answered("ThrottlingException"),
        type("Odd", (Exception,), {"response": None})(),
        type("Odd", (Exception,), {"response": {}})(),
        type("Odd", (Exception,), {"response": {"ResponseMetadata": {}}})(),
        type("Odd", (Exception,), {"response": {"ResponseMetadata": {"HTTPHeaders": {}}}})(),
    ],
)
def test_an_error_without_the_header_asks_for_nothing(error: Exception) -> None:
    assert retry_after_ms(error) == 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("wish_ms", [BASE_MS, 1_000, WISH_CAP_MS])
def test_a_wish_within_the_cap_is_obeyed_to_the_millisecond_if_it_is_longer_than_the_jitter(
    wish_ms: int, seed: int, clock: FakeClock
) -> None:
    random.seed(seed)

    retrying(clock).call(sender(asking(str(wish_ms)), "done"))

    assert clock.slept_ms == [wish_ms], seed


@pytest.mark.parametrize("seed", range(20))
def test_a_wish_that_is_shorter_than_the_jitter_shortens_nothing(seed: int, clock: FakeClock) -> None:
    random.seed(seed)
    plain = FakeClock()
    retrying(plain).call(sender(throttled(HOT), "done"))
    random.seed(seed)

    retrying(clock).call(sender(asking("0"), "done"))

    assert clock.slept_ms == plain.slept_ms, seed


@pytest.mark.parametrize("seed", range(20))
def test_a_wish_adds_five_seconds_to_the_jitter_at_most(seed: int, clock: FakeClock) -> None:
    """As the SDK caps it: a wish may be wrong."""
    random.seed(seed)
    jitter_ms = random.uniform(0, BASE_MS)
    random.seed(seed)

    retrying(clock).call(sender(asking("3600000"), "done"))

    assert clock.slept_ms == [jitter_ms + WISH_CAP_MS], seed


@pytest.mark.parametrize(
    ("at_most_ms", "deadline_ms", "end_ms"),
    [(1_000, None, 1_000), (None, START_MS + 1_000, 1_000 - RESERVE_MS), (60_000, START_MS + 700, 700 - RESERVE_MS)],
)
def test_a_wish_never_leads_beyond_the_end(
    at_most_ms: int | None, deadline_ms: int | None, end_ms: int, clock: FakeClock
) -> None:
    """The last request is sent when time is up, whatever the server wishes, and no sleep follows it."""
    start_ms = clock.now_ms
    retries = retrying(clock, at_most_ms, deadline_ms)
    with pytest.raises(sdk.ClientError):
        retries.call(sender(asking("4000")))

    assert clock.now_ms - start_ms == end_ms
    assert clock.slept_ms == [end_ms]


def test_a_server_error_may_ask_for_a_pause_too(clock: FakeClock) -> None:
    error = answered("ServiceUnavailable", 503)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"x-amz-retry-after": "3000"}

    retrying(clock).call(sender(error, "done"))

    assert clock.slept_ms == [3_000]


def test_the_ceiling_of_the_jitter_keeps_doubling_under_wishes(clock: FakeClock) -> None:
    """A server that stops asking is then not met by a crowd."""
    retrying(clock).call(sender(*[asking("100")] * 5, *[throttled(HOT)] * 20, "done"))

    assert max(clock.slept_ms[5:]) > CAP_MS / 2


@pytest.mark.parametrize("error", [OSError("of another client"), ValueError("of nobody's")])
def test_where_nobody_has_imported_botocore_no_error_is_the_sdks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.delitem(sys.modules, "botocore.exceptions")
    monkeypatch.delitem(sys.modules, "botocore.parsers")

    assert not is_unknown(error)
    assert not is_unsent(error)
    assert not is_unsigned(error)
    assert is_unknown(LostAnswerError("cut off"))
    assert is_unsent(NotSentError("no connection"))
    assert is_unsigned(CredentialsError("no credentials"))
    assert not may_be_signed(CredentialsError("no credentials"))
    assert "botocore.exceptions" not in sys.modules


def test_a_refusal_is_returned_without_the_frames_that_would_keep_it(clock: FakeClock) -> None:
    def refused(**_: Any) -> None:
        raise sdk.ClientError({"Error": {"Code": "ConditionalCheckFailedException"}, "Item": {"id": {"S": "k"}}}, "PutItem")

    refusal = run(Retries(clock, 1_000).outcome(sending, refused, {"TableName": "t"}), clock.sleep_ms)

    assert refusal.response["Item"] == {"id": {"S": "k"}}
    assert refusal.__traceback__ is None
