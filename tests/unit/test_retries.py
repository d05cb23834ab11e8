"""When a request is sent again, and for how long."""

from __future__ import annotations

import random
from typing import Any

import pytest
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from doubles import START_MS, FakeClock

from persistence._retries import (
    BASE_MS,
    BUSY,
    CAP_MS,
    LEAST_MS,
    RESERVE_MS,
    UNKNOWN,
    Retries,
    UnreadableAnswerError,
    error_code,
    hides_tries,
    is_busy,
    is_refusal,
    is_unknown,
    is_unreadable,
)


def answered(code: str, status: int = 400, retries: int = 0) -> sdk.ClientError:
    """An error as botocore raises it for an answer of the service."""
    metadata: Any = {"HTTPStatusCode": status, "RetryAttempts": retries}
    return sdk.ClientError({"Error": {"Code": code, "Message": "..."}, "ResponseMetadata": metadata}, "UpdateItem")


URL = "https://dynamodb.eu-central-1.amazonaws.com/"

#: The service refused the request for now, and did not apply it.
REFUSED_FOR_NOW: list[Exception] = [
    answered("ProvisionedThroughputExceededException"),
    answered("ProvisionedThroughputExceeded"),
    answered("Throttling"),
    answered("ThrottlingException"),
    answered("RequestLimitExceeded"),
    answered("TransactionConflictException"),
    answered("ReplicatedWriteConflictException"),
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


def retrying(clock: FakeClock, at_most_ms: int | None = 60_000, deadline_ms: int | None = None) -> Retries:
    return Retries(clock, clock.sleep_ms, at_most_ms=at_most_ms, deadline_ms=deadline_ms)


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


def test_every_try_sends_the_same_request(clock: FakeClock) -> None:
    sent: list[dict[str, object]] = []

    def operation(**request: object) -> str:
        sent.append(request)
        if len(sent) < 3:
            raise answered("ThrottlingException")
        return "done"

    assert retrying(clock).call(operation, TableName="t", Key={"id": {"S": "fn#1"}}) == "done"
    assert sent == [{"TableName": "t", "Key": {"id": {"S": "fn#1"}}}] * 3
