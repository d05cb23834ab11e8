"""Faults at a chosen call of a real DynamoDB client, and what the stories told with them share.

`FaultyClient` stands between a store and its client.  A *fault* is given the real request as `send` and decides what the store
sees of it: an answer, an error, or an answer before or after which something else happens.  Errors are those of boto3's client,
or of the lean one, as `speak_as` was told last.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)

from idempotency import IdempotencyConfig, idempotent, idempotent_function
from persistence._lean_errors import LostAnswerError, NotSentError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from doubles import FakeClock, LambdaContext
    from stores import Peek

    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer
    from persistence.dynamodb import DynamoDBPersistenceLayer

    Store = BasePersistenceLayer | AsyncBasePersistenceLayer

Send = Callable[[], Any]
Fault = Callable[[Send], Any]

#: The service's errors, as either client raises them; with `response`, whose shape is the same.
ServiceFailure = ClientError | ServiceError
SERVICE_ERRORS: Final = (ClientError, ServiceError)
_is_lean = False

#: The prefix of every key here, so that a test can name its record.
PREFIX = "job"


def key_of(selected: Any) -> str:
    """The idempotency key of what `event_key_jmespath` selected, computed without the library."""
    return f"{PREFIX}#{hashlib.md5(json.dumps(selected, sort_keys=True).encode()).hexdigest()}"


@dataclass
class Bench:
    """A DynamoDB store on a table of its own, with a fake clock and a client that can be told to fail.

    *direct* is boto3's client, past the faults, whatever the store's is.
    """

    store: DynamoDBPersistenceLayer
    client: FaultyClient
    clock: FakeClock
    peek: Peek
    direct: Any


@dataclass(frozen=True)
class Form:
    """Makes *body*, a function of one payload, idempotent: as it is, or as an async function that is awaited here."""

    is_async: bool

    def __str__(self) -> str:
        return "async" if self.is_async else "sync"

    def handler(
        self, body: Callable[[Any], Any], store: Store, config: IdempotencyConfig | None = None
    ) -> Callable[[Any, LambdaContext | None], Any]:
        """A Lambda handler, whose lease ends with its context's deadline and is not renewed."""
        options: Any = {"persistence_store": store, "config": config or keyed(), "key_prefix": PREFIX}
        if self.is_async:

            async def arun(event: Any, context: Any) -> Any:
                return body(event)

            decorated: Any = idempotent(arun, **options)
            return lambda event, context: awaited(decorated(event, context))

        def run(event: Any, context: Any) -> Any:
            return body(event)

        return idempotent(run, **options)

    def function(self, body: Callable[[Any], Any], store: Store, config: IdempotencyConfig | None = None) -> Callable[[Any], Any]:
        """A function that knows no deadline, whose lease the heartbeat renews."""
        options: Any = {"persistence_store": store, "config": config or keyed(), "key_prefix": PREFIX}
        if self.is_async:

            async def arun(event: Any) -> Any:
                return body(event)

            decorated: Any = idempotent_function(arun, data_keyword_argument="event", **options)
            return lambda event: awaited(decorated(event=event))

        def run(event: Any) -> Any:
            return body(event)

        return idempotent_function(run, data_keyword_argument="event", **options)


#: What every story is about unless it needs more, and its idempotency key.
ORDER = {"id": "order-1"}
KEY = key_of("order-1")


class Suspended(BaseException):
    """Stands for the exception by which the durable SDK leaves a function, and for any crash: the claim is kept."""


def raise_suspended() -> None:
    raise Suspended


def raise_boom() -> None:
    raise OSError("boom")


SYNC, ASYNC = Form(is_async=False), Form(is_async=True)


def keyed(**options: Any) -> IdempotencyConfig:
    """A configuration that takes the payload's `id` for the key."""
    return IdempotencyConfig(event_key_jmespath="id", **options)


class FaultyClient:
    """A DynamoDB client with faults; *requests* remembers (operation, request) of each call, faulty or not."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._faults: dict[tuple[str, int], Fault] = {}
        self._standing: dict[str, Fault] = {}
        self._calls: Counter[str] = Counter()
        self._lock = Lock()

    def at(self, operation: str, call: int, fault: Fault) -> None:
        """Let *fault* strike at the *call*-th call of the operation from now on, counted from 1."""
        self._faults[operation, self._calls[operation] + call] = fault

    def always(self, operation: str, fault: Fault) -> None:
        """Let *fault* strike at every call of the operation that has no other."""
        self._standing[operation] = fault

    def heal(self) -> None:
        """No fault strikes any more."""
        self._faults.clear()
        self._standing.clear()

    def count(self, operation: str) -> int:
        """How many calls of the operation there were."""
        return self._calls[operation]

    def put_item(self, **request: Any) -> Any:
        return self._call("put_item", request)

    def get_item(self, **request: Any) -> Any:
        return self._call("get_item", request)

    def update_item(self, **request: Any) -> Any:
        return self._call("update_item", request)

    def delete_item(self, **request: Any) -> Any:
        return self._call("delete_item", request)

    def transact_write_items(self, **request: Any) -> Any:
        return self._call("transact_write_items", request)

    def _call(self, operation: str, request: dict[str, Any]) -> Any:
        with self._lock:
            self._calls[operation] += 1
            self.requests.append((operation, request))
            fault = self._faults.get((operation, self._calls[operation]), self._standing.get(operation))

        def send() -> Any:
            return getattr(self.client, operation)(**request)

        return send() if fault is None else fault(send)


# Faults


def lost(error: BaseException) -> Fault:
    """The request reaches the table, and instead of its answer, whatever that is, comes *error*."""

    def strike(send: Send) -> Any:
        with suppress(*SERVICE_ERRORS):  # a refusal is an answer, too, and gets lost like any other
            send()
        raise error

    return strike


def refused(error: BaseException) -> Fault:
    """The request never reaches the table."""

    def strike(_send: Send) -> Any:
        raise error

    return strike


def before(happens: Callable[[], object]) -> Fault:
    """Something happens just before the request."""

    def strike(send: Send) -> Any:
        happens()
        return send()

    return strike


def after(happens: Callable[[], object]) -> Fault:
    """Something happens between the request's effect and its answer."""

    def strike(send: Send) -> Any:
        answer = send()
        happens()
        return answer

    return strike


def lost_then(happens: Callable[[], object], error: BaseException) -> Fault:
    """The answer is lost, and something happens before the caller notices."""

    def strike(send: Send) -> Any:
        with suppress(*SERVICE_ERRORS):
            send()
        happens()
        raise error

    return strike


def throttled_until(clock: FakeClock, end_ms: int) -> Fault:
    """Throttled before *end_ms*, answered from then on."""

    def strike(send: Send) -> Any:
        if clock() < end_ms:
            raise throttle()
        return send()

    return strike


def repeated_by_the_sdk(send: Send) -> Any:
    """The client loses its first answer and repeats the request by itself, as its own retry modes do."""
    with suppress(*SERVICE_ERRORS):
        send()
    try:
        return send()
    except SERVICE_ERRORS as error:
        error.response["ResponseMetadata"]["RetryAttempts"] = 1
        raise


def throttled_after_a_lost_answer(send: Send) -> Any:
    """The client loses its first answer, repeats the request by itself, and tells only of the throttle that it met then."""
    with suppress(*SERVICE_ERRORS):
        send()
    raise throttle(retry_attempts=1)


def delayed(on_their_way: list[Send]) -> Fault:
    """The client gives up, and the request lands when it is sent on; nobody reads its answer."""

    def strike(send: Send) -> Any:
        def land() -> None:
            with suppress(*SERVICE_ERRORS):
                send()

        on_their_way.append(land)
        raise read_timeout()

    return strike


def forgotten_by(client: FaultyClient) -> Fault:
    """DynamoDB has forgotten the client token of a transaction, as it does after ten minutes: this request is a new one to it."""

    def strike(send: Send) -> Any:
        request = client.requests[-1][1]
        request["ClientRequestToken"] = hashlib.md5(f"{request['ClientRequestToken']} forgotten".encode()).hexdigest()
        return send()

    return strike


# Errors


def speak_as(client_kind: str) -> None:
    """From now on, the errors below are those of a client of that kind."""
    global _is_lean  # noqa: PLW0603 - threads and event loops that a test starts must hear it, too
    _is_lean = client_kind == "lean"


def _lost(reason: str, of_botocore: Exception) -> Exception:
    """A request that was sent and not answered."""
    return LostAnswerError(f"No whole answer came from dynamodb: {reason}") if _is_lean else of_botocore


def client_error(
    code: str, status: int, message: str, retry_attempts: int = 0, operation: str = "PutItem", **more: Any
) -> ServiceFailure:
    """An answer of the service that is an error."""
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {
            "RequestId": "0AFAKEREQUESTIDOFDYNAMODB",
            "HTTPStatusCode": status,
            "HTTPHeaders": {"x-amzn-requestid": "0AFAKEREQUESTIDOFDYNAMODB", "content-type": "application/x-amz-json-1.0"},
            "RetryAttempts": retry_attempts,
        },
        **more,
    }
    return ServiceError(response, operation) if _is_lean else ClientError(response, operation)


def throttle(retry_attempts: int = 0) -> ServiceFailure:
    """What a hot partition of a provisioned table answers."""
    return client_error(
        "ProvisionedThroughputExceededException",
        400,
        "The level of configured provisioned throughput for the table was exceeded. "
        "Consider increasing your provisioning level with the UpdateTable API.",
        retry_attempts,
        ThrottlingReasons=[{"reason": "TableWriteKeyRangeThroughputExceeded", "resource": "arn:aws:dynamodb:::table/t"}],
    )


def internal_error() -> ServiceFailure:
    return client_error("InternalServerError", 500, "Internal server error")


def unavailable() -> ServiceFailure:
    return client_error("ServiceUnavailable", 503, "Service unavailable")


def access_denied() -> ServiceFailure:
    return client_error("AccessDeniedException", 400, "User is not authorized to perform this operation")


def table_not_found() -> ServiceFailure:
    return client_error("ResourceNotFoundException", 400, "Requested resource not found")


def conflict() -> ServiceFailure:
    """What a request for one item is answered while a transaction on it is under way."""
    return client_error("TransactionConflictException", 400, "Transaction is ongoing for the item")


def transaction_in_progress() -> ServiceFailure:
    """What a repeated transaction is answered while the first one is under way: nobody knows yet how that ends."""
    return client_error(
        "TransactionInProgressException",
        400,
        "The transaction with the given request token is already in progress.",
        operation="TransactWriteItems",
    )


def parameter_mismatch() -> ServiceFailure:
    return client_error(
        "IdempotentParameterMismatchException",
        400,
        "The request uses the same client token as a previous, but non-identical request.",
        operation="TransactWriteItems",
    )


def canceled(*codes: str | None) -> ServiceFailure:
    """A transaction of which nothing was applied; *codes* are the reasons of its actions, None for one that is not to blame."""
    reasons = [{"Code": "None"} if code is None else {"Code": code, "Message": f"Because of {code}"} for code in codes]
    named = ", ".join(reason["Code"] for reason in reasons)
    return client_error(
        "TransactionCanceledException",
        400,
        f"Transaction cancelled, please refer cancellation reasons for specific reasons [{named}]",
        operation="TransactWriteItems",
        CancellationReasons=reasons,
    )


def read_timeout() -> Exception:
    return _lost("timed out", ReadTimeoutError(endpoint_url="https://dynamodb"))


def connection_closed() -> Exception:
    return _lost("the connection ended", ConnectionClosedError(endpoint_url="https://dynamodb"))


def incomplete_read() -> Exception:
    return _lost("its checksum is another", IncompleteReadError(actual_bytes=1, expected_bytes=2))


def http_client_error() -> Exception:
    return _lost("[Errno 104] Connection reset by peer", HTTPClientError(error=OSError("reset")))


def no_connection() -> Exception:
    """Nothing was sent."""
    if _is_lean:
        return NotSentError("Could not connect to dynamodb: [Errno 111] Connection refused")
    return EndpointConnectionError(endpoint_url="https://dynamodb")


#: After each of these, nobody knows whether the request was applied.
UNKNOWN_OUTCOMES = [read_timeout, connection_closed, incomplete_read, http_client_error, internal_error, unavailable]


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, run on a loop of its own, so that this also works while another loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
