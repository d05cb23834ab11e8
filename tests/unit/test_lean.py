"""The lean client beside boto3's, on a service that answers as it is told."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import botocore.auth
import pytest
from boto3.dynamodb.types import Binary
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import ClientError

import idempotency
from persistence._lean_errors import CredentialsError, LostAnswerError, NotSentError, ServiceError
from persistence._sigv4 import Credentials, Signer
from persistence.exceptions import IdempotencyPersistenceConfigError
from persistence.lean import MORE, SIGNATURE_REFUSED, SKEW_SECONDS, USER_AGENT, VERSION, LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC)
CREDENTIALS = Credentials("AKID", "top-secret", "token/+=")
#: In answers and requests; no error may show it.
SECRET = "stored-result"
OPERATIONS = {
    "put_item": "PutItem",
    "get_item": "GetItem",
    "update_item": "UpdateItem",
    "delete_item": "DeleteItem",
    "transact_write_items": "TransactWriteItems",
    "batch_write_item": "BatchWriteItem",
    "scan": "Scan",
    "query": "Query",
}


class Service(ThreadingHTTPServer):
    """Answers each request as *answers* says: by status, headers and body."""

    block_on_close = False
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.request_id = {"x-amzn-RequestId": "ID1"}
        self.answers: Callable[[dict[str, str], bytes], tuple[int, dict[str, str], bytes]] = lambda headers, body: (
            200,
            {},
            b"{}",
        )

    def will_answer(self, body: object = b"{}", status: int = 200, **headers: str) -> None:
        told = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers = lambda headers, body: (status, named, told)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), body))
        status, headers, told = self.server.answers(dict(self.headers), body)
        self.send_response_only(status)
        for name, value in {**self.server.request_id, "Content-Length": str(len(told)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(told)


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as made:
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def lean(service: Service) -> Iterator[LeanClient]:
    made = LeanClient("eu-west-1", endpoint_url=service.url, credentials=lambda: CREDENTIALS, clock=NOW.timestamp)
    yield made
    made.close()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(CREDENTIALS.access_key, CREDENTIALS.secret_key, CREDENTIALS.token)


@pytest.fixture
def boto(service: Service, session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))
    config = Config(parameter_validation=False)
    made = session.client("dynamodb", region_name="eu-west-1", endpoint_url=service.url, config=config)
    # Told to try once, it says with each answer that it must not try again.
    made.meta.events.unregister("needs-retry.dynamodb", unique_id="retry-config-dynamodb")
    yield made
    made.close()


# Requests

ITEM = {
    "id": {"S": 'é\u2028😀"\\\x00'},
    "n": {"N": "1.5"},
    "b": {"B": b"\x00\xff"},
    "bs": {"BS": [b"a", bytearray(b"bb"), b""]},
    "m": {"M": {"B": {"L": [{"B": b"deep"}, {"NULL": True}, {"BOOL": False}]}}},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "put_item": {"TableName": "t", "Item": ITEM, "ConditionExpression": "attribute_not_exists(#id)"},
    "get_item": {"TableName": "t", "Key": {"id": {"S": "k"}}, "ConsistentRead": True},
    "update_item": {"TableName": "t", "Key": {"id": {"B": b"k"}}, "ExpressionAttributeValues": {":a": ITEM["m"]}},
    "delete_item": {"TableName": "t", "Key": {"id": {"S": "k"}}},
    "transact_write_items": {"TransactItems": ({"Put": {"TableName": "t", "Item": ITEM}},), "ClientRequestToken": "c"},
    "batch_write_item": {"RequestItems": {"t": [{"PutRequest": {"Item": ITEM}}]}},
    "scan": {"TableName": "t", "Segment": 0, "TotalSegments": 4},
    "query": {"TableName": "t", "Limit": 3, "ExclusiveStartKey": {"id": {"S": "k"}}},
}


@pytest.mark.parametrize("method", OPERATIONS)
def test_a_request_is_boto3s_but_for_the_user_agent_and_the_count_of_tries(
    service: Service, lean: LeanClient, boto: Any, method: str
) -> None:
    getattr(boto, method)(**REQUESTS[method])
    getattr(lean, method)(**REQUESTS[method])

    (theirs, their_body), (ours, our_body) = service.requests
    assert our_body == their_body
    assert ours.pop("User-Agent") == USER_AGENT != theirs.pop("User-Agent")
    assert {name for name in theirs if name not in ours} == {"amz-sdk-invocation-id", "amz-sdk-request"}
    assert {name: theirs[name] for name in ours} == ours
    assert ours["X-Amz-Target"] == f"DynamoDB_20120810.{OPERATIONS[method]}"


def test_any_kind_of_bytes_is_a_binary(service: Service, lean: LeanClient) -> None:
    kinds = [b"\x00\x01", bytearray(b"\x00\x01"), memoryview(b"\x00\x01"), memoryview(b"\x00-\x01")[::2], Binary(b"\x00\x01")]

    lean.put_item(Item={"b": {"BS": kinds}})

    assert json.loads(service.requests[0][1]) == {"Item": {"b": {"BS": ["AAE="] * 5}}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"S": SECRET}
    for _ in range(depth):
        value = {"M": {"a": value}}
    return value


class Named:
    """Something that only its name makes like boto3's wrapper."""

    def __init__(self) -> None:
        self.value = SECRET


Named.__name__ = "Binary"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({SECRET}, TypeError),
        (type(SECRET, (), {})(), TypeError),
        ({b"stored-result": 1}, TypeError),
        (Named(), TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (nested(100_000), TypeError),
    ],
    ids=["set", "object", "key", "name", "nan", "infinity", "depth"],
)
def test_what_json_cannot_hold_is_refused_before_anything_is_sent_and_not_shown(
    service: Service, lean: LeanClient, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match="PutItem") as refused:
        lean.put_item(TableName="t", Item={"id": value})

    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__
    assert refused.value.__cause__ is None
    assert service.requests == []


def test_a_request_that_contains_itself_is_refused(service: Service, lean: LeanClient) -> None:
    item: dict[str, Any] = {}
    item["itself"] = item

    with pytest.raises(ValueError, match="PutItem"):
        lean.put_item(TableName="t", Item=item)

    assert service.requests == []


def test_the_user_agent_names_the_library_its_version_and_python() -> None:
    assert idempotency.__version__ == VERSION
    assert f"lambda-idempotency/{VERSION} lang/python#{sys.version_info[0]}.{sys.version_info[1]} md/lean" == USER_AGENT


# Answers

ANSWERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "item": {"Item": {"id": {"S": "é"}, "n": {"N": "1"}, "l": {"L": [{"NULL": True}, {"BOOL": True}]}}},
    "binaries": {"Item": {"b": {"B": "AP8="}, "bs": {"BS": ["YQ==", ""]}, "m": {"M": {"x": {"L": [{"B": "ZGVlcA=="}]}}}}},
    "names like types": {
        "Item": {"B": {"S": "eA=="}, "BS": {"L": [{"S": "eA=="}]}, "M": {"M": {"B": {"B": ""}, "BS": {"SS": ["eA=="]}}}}
    },
    "capacity": {"ConsumedCapacity": {"TableName": "t", "CapacityUnits": 1.5}},
}


@pytest.mark.parametrize("told", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_what_boto3_makes_of_it(service: Service, lean: LeanClient, boto: Any, told: dict[str, Any]) -> None:
    service.will_answer(told, X_Odd="1, 2")

    theirs = boto.get_item(**REQUESTS["get_item"])
    ours = lean.get_item(**REQUESTS["get_item"])

    assert ours == theirs


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("scan", {"Items": [{"b": {"B": "AP8="}}], "Count": 1, "ScannedCount": 2, "LastEvaluatedKey": {"b": {"B": "AP8="}}}),
        ("query", {"Items": [], "Count": 0, "ScannedCount": 0}),
        ("put_item", {"Attributes": {"b": {"BS": ["AP8="]}}}),
        (
            "update_item",
            {"Attributes": {"b": {"B": "AP8="}}, "ItemCollectionMetrics": {"ItemCollectionKey": {"b": {"B": "AP8="}}}},
        ),
        ("delete_item", {"Attributes": {"b": {"B": "AP8="}}}),
        ("batch_write_item", {"UnprocessedItems": {"t": [{"PutRequest": {"Item": {"b": {"B": "AP8="}}}}]}}),
        ("transact_write_items", {"ConsumedCapacity": [{"TableName": "t", "CapacityUnits": 2.0}]}),
    ],
)
def test_the_answers_of_other_operations_are_boto3s_too(
    service: Service, lean: LeanClient, boto: Any, method: str, told: dict[str, Any]
) -> None:
    service.will_answer(told)

    theirs = getattr(boto, method)(**REQUESTS[method])
    ours = getattr(lean, method)(**REQUESTS[method])

    assert ours == theirs


def test_an_answer_without_a_request_id_has_none(service: Service, lean: LeanClient, boto: Any) -> None:
    service.request_id = {}
    service.will_answer({})

    theirs = boto.get_item(**REQUESTS["get_item"])
    ours = lean.get_item(**REQUESTS["get_item"])

    assert ours == theirs
    assert "RequestId" not in ours["ResponseMetadata"]


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"Item": {"a": {"S": "stored-result',
        b'{"Item": {"a": {"S": "\xff"}}}',
        b'{"Item": {"a": {"B": "stored-results"}}}',
        b'{"Item": {"a": {"B": "\xc3\xa9"}}}',
        b'{"Item": {"a": {"BS": [1]}}}',
        b"<html>stored-result</html>",
        b'{"a":' * 100_000,
    ],
)
def test_a_success_that_cannot_be_read_is_a_lost_answer(service: Service, lean: LeanClient, told: bytes) -> None:
    service.will_answer(told)

    with pytest.raises(LostAnswerError, match="PutItem") as lost:
        lean.put_item()

    assert SECRET not in str(lost.value)
    assert len(service.requests) == 1


# Errors

PREFIX = "com.amazonaws.dynamodb.v20120810#"
ERRORS: dict[str, tuple[int, dict[str, str], dict[str, Any]]] = {
    "condition": (400, {}, {"__type": f"{PREFIX}ConditionalCheckFailedException", "message": "no", "Item": {"b": {"B": "AP8="}}}),
    "condition, no item": (400, {}, {"__type": f"{PREFIX}ConditionalCheckFailedException", "message": "no"}),
    "capital message": (400, {}, {"__type": f"{PREFIX}ResourceNotFoundException", "Message": "no table"}),
    "both messages": (400, {}, {"__type": "ResourceNotFoundException", "Message": "A", "message": "b"}),
    "no message": (400, {}, {"__type": f"{PREFIX}InternalServerError"}),
    "not modeled": (400, {}, {"__type": "com.amazon.coral.validate#ValidationException", "message": "bad", "Item": {}}),
    "a tail": (400, {}, {"__type": "a#ThrottlingException:http://x.example/y#z", "message": "slow"}),
    "no type": (400, {}, {"message": "what"}),
    "an empty object": (400, {}, {}),
    "throttled": (
        400,
        {"x-amz-retry-after": "50"},
        {
            "__type": f"{PREFIX}ProvisionedThroughputExceededException",
            "message": "slow",
            "ThrottlingReasons": [{"reason": "TableReadProvisionedThroughputExceeded", "resource": "arn:t"}],
        },
    ),
    "throttled, small letters": (
        400,
        {},
        {"__type": "ThrottlingException", "message": "slow", "throttlingReasons": [{"reason": "r", "resource": "arn:t"}]},
    ),
    "canceled": (
        400,
        {},
        {
            "__type": f"{PREFIX}TransactionCanceledException",
            "Message": "Transaction cancelled",
            "CancellationReasons": [
                {"Code": "None"},
                {"Code": "ConditionalCheckFailed", "Message": "no", "Item": {"b": {"BS": ["AP8="]}}},
            ],
        },
    ),
    "server": (500, {}, {"__type": f"{PREFIX}InternalServerError", "message": "oops"}),
    "query error": (400, {"x-amzn-query-error": "Other.Code;Sender"}, {"__type": "a#ResourceNotFoundException", "message": "m"}),
    "odd query error": (400, {"x-amzn-query-error": "Other"}, {"__type": "a#ResourceNotFoundException", "message": "m"}),
    "longer query error": (400, {"x-amzn-query-error": "a;b;c"}, {"__type": "a#ResourceNotFoundException", "message": "m"}),
    "empty query error": (400, {"x-amzn-query-error": ";b"}, {"__type": "a#ResourceNotFoundException", "message": "m"}),
    "redirect": (307, {"Location": "http://127.0.0.1:1/"}, {"message": "elsewhere"}),
}


def both_errors(lean: LeanClient, boto: Any) -> tuple[ServiceError, ClientError]:
    with pytest.raises(ServiceError) as ours:
        lean.put_item(**REQUESTS["put_item"])
    with pytest.raises(ClientError) as theirs:
        boto.put_item(**REQUESTS["put_item"])
    return ours.value, theirs.value


@pytest.mark.parametrize("told", ERRORS.values(), ids=ERRORS)
def test_an_error_is_what_boto3_makes_of_it(
    service: Service, lean: LeanClient, boto: Any, told: tuple[int, dict[str, str], dict[str, Any]]
) -> None:
    service.answers = lambda headers, body: (told[0], told[1], json.dumps(told[2]).encode())

    ours, theirs = both_errors(lean, boto)

    assert ours.response == theirs.response
    assert str(ours) == str(theirs)
    assert ours.operation_name == theirs.operation_name
    assert len(service.requests) == 2


def test_an_error_without_a_body_is_what_boto3_makes_of_it(service: Service, lean: LeanClient, boto: Any) -> None:
    service.will_answer(b"", 413)

    ours, theirs = both_errors(lean, boto)

    assert ours.response == theirs.response
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("status", [500, 503, 599])
@pytest.mark.parametrize("told", [b"", b" \r\n", b" <html>Service Unavailable</html>"])
def test_an_error_of_a_server_without_a_word_is_what_boto3_makes_of_it(
    service: Service, lean: LeanClient, boto: Any, status: int, told: bytes
) -> None:
    service.will_answer(told, status)

    ours, theirs = both_errors(lean, boto)
    theirs.response["ResponseMetadata"]["RequestId"] = "ID1"  # which it leaves out here

    assert ours.response == theirs.response
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("told", [b'{"Item": {"a": {"S": "stored-result', b"stored-result", b"<html>stored-result</html>"])
def test_an_error_that_cannot_be_read_has_its_status_for_a_code_and_shows_nothing(
    service: Service, lean: LeanClient, boto: Any, status: int, told: bytes
) -> None:
    service.will_answer(told, status)

    ours, theirs = both_errors(lean, boto)

    assert ours.response["Error"]["Code"] == theirs.response["Error"]["Code"] == str(status)
    assert ours.response["ResponseMetadata"] == theirs.response["ResponseMetadata"]
    assert SECRET not in f"{ours} {ours.response}"


@pytest.mark.parametrize("told", [b"[]", b'"stored-result"', b'{"__type": "a#B", "message": "\xff"}'])
def test_an_error_that_botocore_stumbles_over_has_its_status_for_a_code(service: Service, lean: LeanClient, told: bytes) -> None:
    service.will_answer(told, 400)

    with pytest.raises(ServiceError) as failed:
        lean.put_item()

    assert failed.value.response["Error"] == {"Code": "400", "Message": "The answer cannot be read"}


def test_what_an_error_tells_more_is_as_in_botocores_service_model(boto: Any) -> None:
    model = boto.meta.service_model
    shapes = {shape.name: shape for name in OPERATIONS.values() for shape in model.operation_model(name).error_shapes}
    # Any request may be throttled.
    shapes["ThrottlingException"] = model.shape_for("ThrottlingException")

    told = {name: set(shape.members) for name, shape in shapes.items()}

    assert {name: set(members) for name, members in MORE.items()} == told


@pytest.mark.parametrize("status", [500, 503])
def test_nothing_is_retried(service: Service, lean: LeanClient, status: int) -> None:
    service.will_answer({"__type": "a#InternalServerError"}, status)

    with pytest.raises(ServiceError):
        lean.put_item()

    assert len(service.requests) == 1


def test_without_a_connection_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = LeanClient("eu-west-1", endpoint_url=f"http://127.0.0.1:{port}", credentials=lambda: CREDENTIALS)

    with pytest.raises(NotSentError, match=f"127.0.0.1:{port}"):
        client.put_item()


# Credentials


def test_credentials_are_asked_for_at_each_call(service: Service) -> None:
    given = [Credentials("FIRST", "a"), Credentials("SECOND", "b", "token")]
    client = LeanClient("eu-west-1", endpoint_url=service.url, credentials=lambda: given.pop(0))

    client.get_item()
    client.get_item()
    client.close()

    first, second = (headers for headers, _ in service.requests)
    assert "Credential=FIRST/" in first["Authorization"]
    assert "X-Amz-Security-Token" not in first
    assert "Credential=SECOND/" in second["Authorization"]
    assert second["X-Amz-Security-Token"] == "token"


def test_a_source_that_fails_fails_the_call_before_anything_is_sent(service: Service) -> None:
    class ExpiredError(Exception):
        pass

    def source() -> Credentials:
        raise ExpiredError("a part of a secret")

    client = LeanClient("eu-west-1", endpoint_url=service.url, credentials=source)

    with pytest.raises(CredentialsError, match="^The source of the credentials failed with ExpiredError$") as raised:
        client.put_item()

    assert isinstance(raised.value.__cause__, ExpiredError)
    assert service.requests == []


def test_credentials_that_no_request_can_carry_are_told_of_as_they_are(service: Service) -> None:
    refusal = IdempotencyPersistenceConfigError("a character in the credentials")

    def source() -> Credentials:
        raise refusal

    client = LeanClient("eu-west-1", endpoint_url=service.url, credentials=source)

    with pytest.raises(IdempotencyPersistenceConfigError) as raised:
        client.put_item()

    assert raised.value is refusal


def test_credentials_and_region_are_boto3s_if_none_are_given(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    client = LeanClient(endpoint_url=service.url)

    client.get_item()
    client.close()

    assert "Credential=FROMENVIRONMENT/" in service.requests[0][0]["Authorization"]
    assert "/ap-south-1/dynamodb/" in service.requests[0][0]["Authorization"]


def test_a_client_shows_where_it_sends_and_not_in_whose_name(service: Service, lean: LeanClient) -> None:
    lean.get_item()

    shown = f"{lean!r} {lean.meta!r}"

    assert service.url in shown
    assert (lean.meta.region_name, lean.meta.endpoint_url) == ("eu-west-1", service.url)
    assert not any(part and part in shown for part in (CREDENTIALS.access_key, CREDENTIALS.secret_key, CREDENTIALS.token))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "https://dynamodb.eu-west-1.amazonaws.com"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("https://h.example/a", "https://h.example/a"),
    ],
)
def test_the_endpoint_is_told(given: str | None, told: str) -> None:
    client = LeanClient("eu-west-1", endpoint_url=given)

    assert client.meta.endpoint_url == told


# The clock


class Clock:
    """Ours, which is off, and the service's, which is right and refuses what was signed five minutes before or after."""

    def __init__(self, service: Service, code: str = "InvalidSignatureException") -> None:
        self.skew = timedelta()
        self.code = code
        self.date: str | None = format_datetime(NOW, usegmt=True)
        self.refused = 0
        service.answers = self.answer

    def __call__(self) -> float:
        return (NOW + self.skew).timestamp()

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        signed = datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        date = {} if self.date is None else {"Date": self.date}
        if abs(signed - NOW) <= timedelta(minutes=5):
            return 200, date, b"{}"
        self.refused += 1
        return 400, date, json.dumps({"__type": f"a#{self.code}", "message": "Signature expired: ..."}).encode()


@pytest.fixture
def clock(service: Service) -> Clock:
    return Clock(service)


@pytest.fixture
def skewed(service: Service, clock: Clock) -> Iterator[LeanClient]:
    made = LeanClient("eu-west-1", endpoint_url=service.url, credentials=lambda: CREDENTIALS, clock=clock)
    yield made
    made.close()


@pytest.mark.parametrize("minutes", [-100_000, -6, 6, 100_000])
@pytest.mark.parametrize("code", sorted(SIGNATURE_REFUSED))
def test_a_wrong_clock_is_corrected_once_and_for_all(
    service: Service, skewed: LeanClient, clock: Clock, minutes: int, code: str
) -> None:
    clock.skew, clock.code = timedelta(minutes=minutes), code

    first = skewed.put_item(Item={"id": {"S": "k"}})
    second = skewed.put_item(Item={"id": {"S": "k"}})

    assert first["ResponseMetadata"]["RetryAttempts"] == second["ResponseMetadata"]["RetryAttempts"] == 0
    assert clock.refused == 1
    assert [body for _, body in service.requests] == [b'{"Item": {"id": {"S": "k"}}}'] * 3
    expected = Signer("eu-west-1", service.url[7:]).headers(
        CREDENTIALS, NOW.timestamp(), "DynamoDB_20120810.PutItem", service.requests[0][1]
    )
    assert service.requests[1][0]["Authorization"] in expected


def test_a_clock_that_is_put_right_later_is_corrected_again(skewed: LeanClient, clock: Clock) -> None:
    clock.skew = timedelta(hours=1)
    skewed.put_item()
    clock.skew = timedelta()

    skewed.put_item()
    skewed.put_item()

    assert clock.refused == 2


def refuse_everything(service: Service, clock: Clock, code: str = "InvalidSignatureException") -> None:
    def answers(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 400, {} if clock.date is None else {"Date": clock.date}, json.dumps({"__type": code, "message": "m"}).encode()

    service.answers = answers


@pytest.mark.parametrize(
    ("seconds", "requests"), [(SKEW_SECONDS, 1), (SKEW_SECONDS + 1, 2), (-SKEW_SECONDS, 1), (-SKEW_SECONDS - 1, 2)]
)
def test_a_request_is_sent_again_once_and_only_for_a_clock_that_is_off_by_more_than_four_minutes(
    service: Service, skewed: LeanClient, clock: Clock, seconds: int, requests: int
) -> None:
    refuse_everything(service, clock)
    clock.skew = timedelta(seconds=seconds)

    with pytest.raises(ServiceError, match="InvalidSignatureException"):
        skewed.put_item()

    assert len(service.requests) == requests


@pytest.mark.parametrize("code", ["ConditionalCheckFailedException", "AccessDeniedException", "400"])
def test_another_error_is_not_blamed_on_the_clock(service: Service, skewed: LeanClient, clock: Clock, code: str) -> None:
    refuse_everything(service, clock, code)
    clock.skew = timedelta(hours=1)

    with pytest.raises(ServiceError):
        skewed.put_item()

    assert len(service.requests) == 1


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_corrects_nothing(service: Service, skewed: LeanClient, clock: Clock, date: str | None) -> None:
    clock.date, clock.skew = date, timedelta(hours=1)

    with pytest.raises(ServiceError, match="InvalidSignatureException"):
        skewed.put_item()

    assert len(service.requests) == 1


@pytest.mark.parametrize("minutes", [0, 60])
def test_a_sandbox_that_was_frozen_during_the_exchange_has_no_wrong_clock(
    service: Service, skewed: LeanClient, clock: Clock, minutes: int
) -> None:
    """The answer's date lies between our times before and after."""
    refuse_everything(service, clock)
    clock.date = format_datetime(NOW + timedelta(minutes=minutes), usegmt=True)
    answers = service.answers

    def frozen_for_an_hour(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        clock.skew += timedelta(hours=1)
        return answers(headers, body)

    service.answers = frozen_for_an_hour

    with pytest.raises(ServiceError, match="InvalidSignatureException"):
        skewed.put_item()

    assert len(service.requests) == 1


def test_a_correction_by_another_thread_does_not_hide_that_this_request_was_signed_too_early(
    service: Service, skewed: LeanClient, clock: Clock
) -> None:
    clock.skew = timedelta(hours=-1)
    answers = service.answers

    def corrected_meanwhile(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        skewed._skew_seconds = 3_600.0
        return answers(headers, body)

    service.answers = corrected_meanwhile

    skewed.put_item()

    assert clock.refused == 1


# What it costs to import


def test_the_client_imports_no_sdk_and_no_http_library() -> None:
    heavy = ["boto3", "botocore", "http.client", "email", "urllib.request", "urllib.parse", "ssl", "asyncio"]
    program = f"import sys; import persistence.lean; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd="/", env=environment())

    assert done.stdout == "[]\n"


def environment() -> dict[str, str]:
    """In which the same packages are found."""
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}
