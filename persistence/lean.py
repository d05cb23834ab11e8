"""A DynamoDB client without boto3, for what this library asks of one: boto3's method names, arguments, results and error shapes.

One call is one signed HTTP request; retries are the store's.  Requests are not validated here: that is left to DynamoDB.  The
settings come from where boto3 takes them (`_lean_settings`).

Clocks: botocore does not correct a wrong clock; this client does, as AWS's other SDKs do.  If a request is refused for its
signature and the answer's date is more than four minutes off, the difference is remembered, and the request is signed with it and
sent once more.  The first one was refused before it was looked at, so this is no retry of a write.
"""

from __future__ import annotations

import sys
import time
from binascii import a2b_base64, b2a_base64
from json import JSONEncoder, loads
from typing import TYPE_CHECKING, Any, Final

from persistence._lean_errors import CredentialsError, LostAnswerError, ServiceError
from persistence._lean_settings import credentials_source, resolve
from persistence._lean_transport import Answer, Pool
from persistence._sigv4 import CONTENT_TYPE, Signer
from persistence._values import Value
from persistence.exceptions import IdempotencyPersistenceConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._sigv4 import Credentials

#: A test holds it equal to the package's.
VERSION: Final = "0.1.0"
USER_AGENT: Final = f"lambda-idempotency/{VERSION} lang/python#{sys.version_info.major}.{sys.version_info.minor} md/lean"

#: What refuses a signature, because of its time among other reasons.
#: https://github.com/aws/aws-sdk-js-v3/blob/main/packages/service-error-classification/src/constants.ts
SIGNATURE_REFUSED: Final = frozenset(
    {
        "AuthFailure",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
#: Seconds, as in AWS's SDK for Java: less than the five minutes that a signature is valid, because dates are whole seconds.
SKEW_SECONDS: Final = 240

#: What botocore repeats of an error's answer beside `Error`, by the error's code.  From its service model.
MORE: Final = {
    "ConditionalCheckFailedException": ("message", "Item"),
    "IdempotentParameterMismatchException": ("Message",),
    "InternalServerError": ("message",),
    "ItemCollectionSizeLimitExceededException": ("message",),
    "ProvisionedThroughputExceededException": ("message", "ThrottlingReasons"),
    "ReplicatedWriteConflictException": ("message",),
    "RequestLimitExceeded": ("message", "ThrottlingReasons"),
    "ResourceNotFoundException": ("message",),
    "ThrottlingException": ("message", "throttlingReasons"),
    "TransactionCanceledException": ("Message", "CancellationReasons"),
    "TransactionConflictException": ("message",),
    "TransactionInProgressException": ("Message",),
}


class Meta(Value):
    """What a boto3 client tells of itself under the same names."""

    __slots__ = __match_args__ = ("region_name", "endpoint_url")

    def __init__(self, region_name: str, endpoint_url: str) -> None:
        self.region_name = region_name
        self.endpoint_url = endpoint_url


class LeanClient:
    """A DynamoDB client.  Threads may share it; a forked child may go on with it.

    Each method takes boto3's keyword arguments for the low-level client, returns what boto3 returns, and raises:

    - `ServiceError`: the service answered with an error; its `response` and text are as of botocore's `ClientError`.
    - `NotSentError`: no connection came about, nothing was sent.
    - `LostAnswerError`: the request was sent, or part of it, and no whole answer came back.
    - `TypeError`, `ValueError`: the request holds what JSON cannot; nothing was sent.
    - `CredentialsError`, which is a `NotSentError`: the source of the credentials failed, see its cause.
    - `IdempotencyPersistenceConfigError`: the credentials are none that a request can carry; nothing was sent.

    A binary is given as bytes, and only so: boto3 takes text for one, too.  A transaction gets no client token of its own.

    Args:
        region_name: As of `boto3.client`.
        endpoint_url: As of `boto3.client`.
        connect_timeout: Seconds for a connection to come about, TLS included.
        read_timeout: Seconds that each wait for an answer may take; the whole takes three times as long at most.
        max_pool_connections: Connections that are kept for later calls at most.
        credentials: Gives the credentials of the moment; asked at each call.  As boto3 finds them if left out.
        clock: Epoch seconds.

    Raises:
        IdempotencyPersistenceConfigError: this client cannot do what the settings ask for.
    """

    #: Each call is one request, whoever calls.
    tries_once: Final = True

    def __init__(
        self,
        region_name: str | None = None,
        *,
        endpoint_url: str | None = None,
        connect_timeout: float = 1,
        read_timeout: float = 2,
        max_pool_connections: int = 50,
        credentials: Callable[[], Credentials] | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the edge: signatures have a time
    ) -> None:
        region, endpoint = resolve(region_name, endpoint_url)
        scheme, path = "https" if endpoint.is_tls else "http", endpoint.path
        self.meta = Meta(region, f"{scheme}://{endpoint.host_header}{path if path != '/' else ''}")
        self._credentials = credentials_source(region) if credentials is None else credentials
        self._clock = clock
        self._skew_seconds = 0.0
        self._signer = Signer(region, endpoint.host_header, path)
        self._pool = Pool(endpoint, connect_timeout, read_timeout, max_pool_connections)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {endpoint.host_header}\r\nUser-Agent: {USER_AGENT}\r\nAccept-Encoding: identity\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\n"
        )

    def __repr__(self) -> str:
        return f"LeanClient({self.meta.endpoint_url})"

    def close(self) -> None:
        """Close the connections.  A later call makes one for itself."""
        self._pool.close()

    def put_item(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("PutItem", request)

    def get_item(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("GetItem", request)

    def update_item(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("UpdateItem", request)

    def delete_item(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("DeleteItem", request)

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        """As boto3's, but for a client token, which is not made up."""
        return self._call("TransactWriteItems", request)

    def batch_write_item(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("BatchWriteItem", request)

    def scan(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("Scan", request)

    def query(self, **request: Any) -> dict[str, Any]:
        """As boto3's."""
        return self._call("Query", request)

    def _call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        body = _encoded(operation, request)
        skew_seconds = self._skew_seconds
        signed_at = self._clock() + skew_seconds
        answer = self._exchange(operation, body, signed_at)
        if answer.status < 300:  # noqa: PLR2004 - all below is a success
            return _result(operation, answer)
        error = _error(operation, answer)
        if error.response["Error"]["Code"] not in SIGNATURE_REFUSED:
            raise error
        now = self._clock()
        date = _date(answer)
        # The exchange took from one to the other, and longer if the sandbox was frozen meanwhile.
        if date is None or signed_at - SKEW_SECONDS <= date <= now + skew_seconds + SKEW_SECONDS:
            raise error
        self._skew_seconds = date - now
        answer = self._exchange(operation, body, date)
        if answer.status < 300:  # noqa: PLR2004
            return _result(operation, answer)
        raise _error(operation, answer)

    def _exchange(self, operation: str, body: bytes, now: float) -> Answer:
        target = f"DynamoDB_20120810.{operation}"
        try:
            credentials = self._credentials()
        except IdempotencyPersistenceConfigError:
            raise
        except Exception as error:
            raise CredentialsError(f"The source of the credentials failed with {type(error).__name__}") from error
        signature = self._signer.headers(credentials, now, target, body)
        head = f"{self._head}X-Amz-Target: {target}\r\n{signature}Content-Length: {len(body)}\r\n\r\n"
        return self._pool.exchange(head.encode("ascii"), body)


def _date(answer: Answer) -> float | None:
    """The server's clock, epoch seconds."""
    from email.utils import parsedate_to_datetime  # here: clocks are right almost always

    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return None


def _plain(value: object) -> str:
    """For a binary, base64, for which JSON has strings."""
    if type(value).__name__ == "Binary":  # boto3's wrapper, which is not imported for this
        value = getattr(value, "value", None)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b2a_base64(bytes(value), newline=False).decode("ascii")
    raise TypeError


_encode: Final = JSONEncoder(default=_plain, allow_nan=False).encode


def _encoded(operation: str, request: dict[str, Any]) -> bytes:
    """The request's body, as botocore writes it."""
    try:
        return _encode(request).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        # What the JSON module says may show the value.
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"The request of {operation} holds a value that JSON cannot") from None


def _decoded(answer: Answer) -> dict[str, Any] | None:
    """The answer's JSON object, with binaries as bytes; None if it has none.

    An attribute's name may be B or BS as well, but what it names is a map and not a string or a list.
    """
    hook = _with_binaries if b'"B"' in answer.body or b'"BS"' in answer.body else None
    try:
        value = loads(answer.body.decode(), object_hook=hook)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _with_binaries(value: dict[str, Any]) -> dict[str, Any]:
    binary = value.get("B")
    if isinstance(binary, str):
        value["B"] = a2b_base64(binary)
    binaries = value.get("BS")
    if isinstance(binaries, list):
        value["BS"] = [a2b_base64(each) for each in binaries]
    return value


def _result(operation: str, answer: Answer) -> dict[str, Any]:
    result = _decoded(answer)
    if result is None:
        raise LostAnswerError(f"The answer to {operation}, of HTTP status {answer.status}, is no JSON object")
    result["ResponseMetadata"] = _metadata(answer)
    return result


def _metadata(answer: Answer) -> dict[str, Any]:
    headers = answer.headers
    metadata = {"HTTPStatusCode": answer.status, "HTTPHeaders": headers, "RetryAttempts": 0}
    request_id = headers.get("x-amzn-requestid")
    if request_id is not None:
        metadata["RequestId"] = request_id
    return metadata


def _error(operation: str, answer: Answer) -> ServiceError:
    """The error that the answer tells of, as botocore words it."""
    if answer.status >= 500 and (not answer.body.strip() or answer.body.strip().startswith(b"<html>")):  # noqa: PLR2004
        return ServiceError(_unreadable(answer, _phrase(answer.status)), operation)
    body = _decoded(answer) if answer.body else {}
    if body is None:  # botocore makes the body its message, but that may be part of a stored result
        return ServiceError(_unreadable(answer, "The answer cannot be read"), operation)
    code = str(body.get("__type", answer.status)).partition(":")[0].rpartition("#")[2]
    error = {"Message": body.get("message", body.get("Message", "")), "Code": code}
    code_before, separator, kind = answer.headers.get("x-amzn-query-error", "").partition(";")
    if code_before and separator and ";" not in kind:
        error |= {"Code": code_before, "QueryErrorCode": code, "Type": kind}
    more = {name: body[name] for name in MORE.get(error["Code"], ()) if body.get(name) is not None}
    return ServiceError({"Error": error, "ResponseMetadata": _metadata(answer), **more}, operation)


def _unreadable(answer: Answer, message: str) -> dict[str, Any]:
    return {"Error": {"Code": str(answer.status), "Message": message}, "ResponseMetadata": _metadata(answer)}


def _phrase(status: int) -> str:
    from http import HTTPStatus  # here: an answer without a word is rare

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
