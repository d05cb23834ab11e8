"""What the library asks of a boto3 client: one try for its own requests, and whole answers; nothing for anybody else's."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ChecksumError, ClientError, ConnectionClosedError

from persistence._retries import is_sending
from persistence._sdk import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = {"id": {"S": "k"}}


class Body:
    """The content of an HTTP answer, as botocore reads it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> Iterator[bytes]:
        yield self._content


def answer(status: int, content: bytes, **headers: str) -> AWSResponse:
    return AWSResponse(
        "https://dynamodb", status, {name.replace("_", "-"): value for name, value in headers.items()}, Body(content)
    )


def error(code: str, status: int = 400) -> AWSResponse:
    return answer(status, json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"}).encode())


class Wire:
    """A client in one of the SDK's retry modes, and what it is answered, the last thing for ever."""

    def __init__(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept: list[float] = []
        monkeypatch.setattr("botocore.endpoint.time.sleep", self.slept.append)
        # Where the adaptive mode waits after a throttle, by a clock of its own.
        monkeypatch.setattr("botocore.retries.bucket.TokenBucket.acquire", lambda bucket, amount=1, block=True: True)
        config = Config(retries={"mode": mode, "total_max_attempts": 4})
        self.client: Any = boto3.client("dynamodb", endpoint_url="http://127.0.0.1:1", config=config)
        self.tries = 0
        self.answers: list[Any] = []
        self.client.meta.events.register("before-send.dynamodb", self._answer)
        prepare(self.client)

    def _answer(self, **_: Any) -> AWSResponse:
        self.tries += 1
        answered = self.answers[min(self.tries, len(self.answers)) - 1]
        if isinstance(answered, Exception):
            raise answered
        found: AWSResponse = answered
        return found

    def get(self, *, is_ours: bool) -> Any:
        token = is_sending.set(is_ours)
        try:
            return self.client.get_item(TableName="t", Key=KEY)
        finally:
            is_sending.reset(token)


@pytest.fixture(params=["standard", "legacy", "adaptive"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(request.param, monkeypatch)


TROUBLES = [
    ("ProvisionedThroughputExceededException", 400),
    ("ThrottlingException", 400),
    ("RequestLimitExceeded", 400),
    ("InternalServerError", 500),
    ("ServiceUnavailable", 503),
]


@pytest.mark.parametrize(("code", "status"), TROUBLES)
def test_the_librarys_request_is_tried_once_and_raises_what_the_sdk_would(wire: Wire, code: str, status: int) -> None:
    wire.answers = [error(code, status)]

    with pytest.raises(ClientError) as caught:
        wire.get(is_ours=True)
    assert wire.tries == 1
    assert wire.slept == []
    assert caught.value.response["Error"] == {"Code": code, "Message": "no"}
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.operation_name == "GetItem"
    assert type(caught.value) is wire.client.exceptions.from_code(code)


@pytest.mark.parametrize(("code", "status"), [trouble for trouble in TROUBLES if trouble[0] != "RequestLimitExceeded"])
def test_another_request_of_the_same_client_is_retried_as_the_client_is_configured(wire: Wire, code: str, status: int) -> None:
    wire.answers = [error(code, status), answer(200, b"{}")]

    assert wire.get(is_ours=False)["ResponseMetadata"]["RetryAttempts"] == 1
    assert wire.tries == 2


def test_a_lost_answer_to_the_librarys_request_is_raised_as_it_is(wire: Wire) -> None:
    lost = ConnectionClosedError(endpoint_url="https://dynamodb")
    wire.answers = [lost]

    with pytest.raises(ConnectionClosedError) as caught:
        wire.get(is_ours=True)
    assert caught.value is lost
    assert wire.tries == 1


@pytest.mark.parametrize("code", ["ConditionalCheckFailedException", "ValidationException", "AccessDeniedException"])
def test_an_answer_that_the_sdk_does_not_retry_goes_its_usual_way(wire: Wire, code: str) -> None:
    """Whoever listens to the client's events hears of it."""
    heard: list[Any] = []
    wire.client.meta.events.register("after-call.dynamodb", lambda parsed, **_: heard.append(parsed["Error"]["Code"]))
    wire.answers = [error(code)]

    with pytest.raises(ClientError):
        wire.get(is_ours=True)
    assert heard == [code]


def test_a_good_answer_goes_its_usual_way(wire: Wire) -> None:
    content = b'{"Item": {"id": {"S": "k"}}}'
    wire.answers = [answer(200, content, x_amz_crc32=str(zlib.crc32(content)))]

    assert wire.get(is_ours=True)["Item"] == KEY


def test_a_cut_answer_to_the_librarys_request_is_no_missing_item(wire: Wire) -> None:
    """`{}` with the checksum of the whole."""
    wire.answers = [answer(200, b"{}", x_amz_crc32=str(zlib.crc32(b'{"Item": {}}')))]

    with pytest.raises(ChecksumError):
        wire.get(is_ours=True)
    assert wire.tries == 1


def test_a_client_that_is_prepared_again_judges_each_answer_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each store that uses it."""
    prepare(wire.client)
    judged: list[str] = []
    from_code = wire.client.exceptions.from_code
    monkeypatch.setattr(wire.client.exceptions, "from_code", lambda code: judged.append(code) or from_code(code))
    wire.answers = [error("ValidationException")]

    with pytest.raises(ClientError):
        wire.get(is_ours=True)
    assert judged == ["ValidationException"] * 2  # here, and by the SDK when it raises


def test_the_librarys_failures_do_not_use_up_the_retries_of_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard mode has tokens for a hundred throttles in a row."""
    wire = Wire("standard", monkeypatch)
    wire.answers = [*[error("ThrottlingException")] * 121, answer(200, b"{}")]
    for _ in range(120):
        with pytest.raises(ClientError):
            wire.get(is_ours=True)

    assert wire.get(is_ours=False)["ResponseMetadata"]["RetryAttempts"] == 1


def test_what_is_no_boto3_client_is_left_alone() -> None:
    prepare(object())


def test_without_botocore_no_client_is_boto3s(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "botocore.client")

    prepare(object())
