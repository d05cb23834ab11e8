"""An HTTP proxy in front of DynamoDB Local that loses, holds, cuts and replaces, below the SDK and its hidden retries.

A harm strikes a call that was named beforehand, or any call by seeded chance.  Nothing here waits for time to pass: a request
that is held goes on when the test says so, or when a number of other requests have come.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from hashlib import md5
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping


class Harm(Enum):
    """What happens to a request."""

    LOSE_ANSWER = auto()  # applied; the connection closes without an answer
    LOSE_REQUEST = auto()  # not applied; the connection closes without an answer
    HANG = auto()  # applied; the answer comes only when the proxy closes
    CUT = auto()  # applied; the connection closes before the last byte of the answer's body
    ERROR_AFTER = auto()  # applied; answered 500
    ERROR_BEFORE = auto()  # not applied; answered 500
    THROTTLE = auto()  # not applied; answered 400
    DELAY = auto()  # the connection closes without an answer; applied when it is released
    HOLD = auto()  # neither answered nor closed; applied and answered when it is released
    DUPLICATE = auto()  # applied and answered; applied once more when its copy is released
    CONFLICT = auto()  # not applied; answered 400, because a transaction on the item is under way
    IN_PROGRESS_AFTER = auto()  # a transaction, applied; answered 400, because another copy of it is under way
    IN_PROGRESS_BEFORE = auto()  # the same, not applied


#: Harms after which the client does not know that its request was applied.
APPLIED: Final = [Harm.LOSE_ANSWER, Harm.CUT, Harm.ERROR_AFTER]
#: Harms that the client's own read timeout ends.
SLOW: Final = frozenset({Harm.HANG, Harm.HOLD})
#: Harms after which the request is applied when it is released.
HELD: Final = frozenset({Harm.DELAY, Harm.HOLD})

_CLOSING: Final = frozenset({Harm.LOSE_ANSWER, Harm.LOSE_REQUEST, Harm.CUT, Harm.DELAY})
#: Besides those that are held, which never reach the table at once.
_KEPT_FROM_THE_TABLE: Final = frozenset(
    {Harm.LOSE_REQUEST, Harm.ERROR_BEFORE, Harm.THROTTLE, Harm.CONFLICT, Harm.IN_PROGRESS_BEFORE}
)
#: Harms by which a request reaches the table late, or once more.
LATE: Final = HELD | {Harm.DUPLICATE}
_IN_PROGRESS: Final = frozenset({Harm.IN_PROGRESS_AFTER, Harm.IN_PROGRESS_BEFORE})
TRANSACT: Final = "TransactWriteItems"
_OF_THE_CONNECTION: Final = frozenset({"content-length", "transfer-encoding"})


@dataclass(frozen=True)
class Strike:
    """A harm, and what belongs to it.

    Attributes:
        held_for: After how many further requests a held one, or a copy, is released by itself; None for only when told.
        retry_after_ms: What a throttled client is told to wait, in a header that the SDK knows; None for nothing.
        action: Of a transaction that is canceled, the action to blame, counted from 0 and round and round.
        then: Called when the request was applied, or would have been, and before the client can notice.
    """

    harm: Harm
    held_for: int | None = None
    retry_after_ms: int | None = None
    action: int = 0
    then: Callable[[], object] | None = None


@dataclass(frozen=True)
class Request:
    """A request as it came: *operation* is its API name, *number* counts the operation's calls from 1."""

    operation: str
    number: int
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def parameters(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    @property
    def is_repetition(self) -> bool:
        """Whether the SDK sends it again by itself, which its caller does not see."""
        return not self.headers.get("amz-sdk-request", "attempt=1").startswith("attempt=1")

    @property
    def actions(self) -> int:
        """How many actions a transaction has; 0 of any other request."""
        return len(self.parameters["TransactItems"]) if self.operation == TRANSACT else 0

    def forgotten(self) -> Request:
        """As it is to DynamoDB more than ten minutes later: it no longer knows a transaction's client token."""
        if self.operation != TRANSACT:
            return self
        another = md5(f"{self.parameters['ClientRequestToken']} {self.number}".encode()).hexdigest()
        body = json.dumps({**self.parameters, "ClientRequestToken": another}).encode()
        return replace(self, body=body, headers={**self.headers, "Content-Length": str(len(body))})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes


@dataclass
class _Held:
    request: Request
    harm: Harm
    #: When the proxy has seen so many requests in all; None for only when told.
    due: int | None
    answer: Future[Answer] = field(default_factory=Future)


class FaultProxy:
    """Serves `url` until `stop`.

    Attributes:
        calls: How many requests of each operation came.
        struck: How often each harm struck.
        repetitions: How many requests the SDK sent again by itself.
        watch: Called with each request, the harm that strikes it or None, and the table's answer or None if it is kept from the
            table.  Called once more for a held request, or a copy, with its harm, when it has been released and answered.
        judge: Says what strikes a request that is not named; None leaves it to chance.
    """

    def __init__(self, endpoint: str) -> None:
        self.calls: Counter[str] = Counter()
        self.struck: Counter[Harm] = Counter()
        self.repetitions = 0
        self.released = Event()
        self.watch: Callable[[Request, Harm | None, Answer | None], object] = lambda *_: None
        self.judge: Callable[[Request], Strike | None] = lambda _: None
        self._strikes: dict[tuple[str, int], Strike] = {}
        self._chance: random.Random | None = None
        self._rates: dict[Harm, float] = {}
        self._longest_hold = 0
        self._held: list[_Held] = []
        self._lock = RLock()
        self._target = urlsplit(endpoint).netloc

        class Handler(_Handler):
            proxy = self
            target = self._target

        self._server = _Server(("127.0.0.1", 0), Handler)
        # A daemon, so that a proxy which a failing test has not stopped does not keep the run from its end.
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def harm(
        self,
        operation: str,
        call: int,
        harm: Harm,
        *,
        held_for: int | None = None,
        retry_after_ms: int | None = None,
        action: int = 0,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Harm a call of an operation (its API name, such as PutItem), counted from 1 from now on.  See `Strike`."""
        with self._lock:
            self._strikes[operation, self.calls[operation] + call] = Strike(harm, held_for, retry_after_ms, action, then)

    def harm_by_chance(self, chance: random.Random, rates: Mapping[Harm, float], *, longest_hold: int = 100) -> None:
        """Harm any call that is not named, each harm with its own probability; a harm that the call cannot meet is none.

        A held request goes on after 1 to *longest_hold* further ones, as does a copy.  With one client and one thread, a seed
        decides everything; with more, they decide who comes first.
        """
        with self._lock:
            self._chance, self._rates, self._longest_hold = chance, dict(rates), longest_hold

    def heal(self) -> None:
        """From now on nothing is harmed.  What is held stays held."""
        with self._lock:
            self._strikes.clear()
            self._rates = {}
            self.judge = lambda _: None

    def release(self) -> int:
        """Let every held request, and copy, go on to the table, the first one first.  Returns how many that were.

        It comes so late that a transaction's client token is forgotten by then.
        """
        with self._lock:
            held, self._held = self._held, []
        self._apply(held)
        return len(held)

    def stop(self) -> None:
        """Close every connection.  What is held is lost."""
        self.released.set()
        with self._lock:
            held, self._held = self._held, []
        for each in held:
            each.answer.cancel()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self, operation: str, path: str, headers: dict[str, str], body: bytes) -> tuple[Request, Strike | None]:
        """Count a request, let those go on that it was awaited by, and say what is to strike it."""
        with self._lock:
            self.calls[operation] += 1
            request = Request(operation, self.calls[operation], path, headers, body)
            self.repetitions += request.is_repetition
            seen = self.calls.total()
            due = [held for held in self._held if held.due is not None and held.due <= seen]
            self._held = [held for held in self._held if held not in due]
            strike = self._strikes.get((operation, request.number)) or self.judge(request) or self._by_chance(request)
            if strike is not None:
                self.struck[strike.harm] += 1
        self._apply(due)
        return request, strike

    def hold(self, request: Request, strike: Strike) -> Future[Answer]:
        """Keep a request until it is released.  Its answer comes then."""
        with self._lock:
            due = None if strike.held_for is None else self.calls.total() + strike.held_for
            held = _Held(request, strike.harm, due)
            self._held.append(held)
        return held.answer

    def _by_chance(self, request: Request) -> Strike | None:
        if self._chance is None or not self._rates:
            return None
        kinds: list[Harm | None] = [*self._rates, None]
        weights = [*self._rates.values(), 1 - sum(self._rates.values())]
        [harm] = self._chance.choices(kinds, weights)
        if harm is None or not _fits(harm, request.operation):
            return None
        held_for = self._chance.randint(1, self._longest_hold) if harm in LATE else None
        retry_after_ms = self._chance.choice([None, 50, 1000]) if harm is Harm.THROTTLE else None
        return Strike(harm, held_for, retry_after_ms, self._chance.randrange(request.actions) if request.actions else 0)

    def _apply(self, held: list[_Held]) -> None:
        for each in held:
            connection = HTTPConnection(self._target)
            try:
                answer = forward(connection, each.request.forgotten())
            finally:
                connection.close()
            self.watch(each.request, each.harm, answer)
            each.answer.set_result(answer)


def _fits(harm: Harm, operation: str) -> bool:
    """Whether DynamoDB would answer so: no reader conflicts, and only a transaction can be in progress."""
    if harm in _IN_PROGRESS:
        return operation == TRANSACT
    return harm is not Harm.CONFLICT or operation != "GetItem"


def forward(connection: HTTPConnection, request: Request) -> Answer:
    connection.request("POST", request.path, request.body, request.headers)
    answer = connection.getresponse()
    content = answer.read()
    headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_THE_CONNECTION}
    return Answer(answer.status, headers, content)


def internal_error() -> Answer:
    return _error(500, "InternalServerError", {"message": "Internal server error"})


def throttle(request: Request, strike: Strike) -> Answer:
    """What a hot partition answers, with its reasons; a transaction is canceled by it.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_ThrottlingReason.html
    """
    if request.operation == TRANSACT:
        answer = canceled(request, strike, "ThrottlingError", "Throughput exceeds the current capacity of your table or index.")
    else:
        kind = "Read" if request.operation == "GetItem" else "Write"
        reason = {
            "reason": f"Table{kind}KeyRangeThroughputExceeded",
            "resource": "arn:aws:dynamodb:us-east-1:000000000000:table/throttled",
        }
        details = {
            "message": "The level of configured provisioned throughput for the table was exceeded.",
            "ThrottlingReasons": [reason],
        }
        answer = _error(400, "ProvisionedThroughputExceededException", details)
    if strike.retry_after_ms is not None:
        answer.headers["x-amz-retry-after"] = str(strike.retry_after_ms)
    return answer


def conflict(request: Request, strike: Strike) -> Answer:
    """What is answered while another transaction on the item is under way.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html#transaction-conflict-handling
    """
    message = "Transaction is ongoing for the item"
    if request.operation == TRANSACT:
        return canceled(request, strike, "TransactionConflict", message)
    return _error(400, "TransactionConflictException", {"message": message})


def canceled(request: Request, strike: Strike, code: str, message: str) -> Answer:
    """The cancellation of a transaction for one of its actions.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html#API_TransactWriteItems_Errors
    """
    reasons: list[dict[str, str]] = [{"Code": "None"} for _ in range(request.actions)]
    reasons[strike.action % request.actions] = {"Code": code, "Message": message}
    codes = ", ".join(reason["Code"] for reason in reasons)
    told = f"Transaction cancelled, please refer cancellation reasons for specific reasons [{codes}]"
    return _error(400, "TransactionCanceledException", {"CancellationReasons": reasons, "Message": told})


def in_progress() -> Answer:
    """What a repeated transaction is answered while an earlier copy of it is under way."""
    message = "The transaction with the given request token is already in progress."
    return _error(400, "TransactionInProgressException", {"Message": message})


def _error(status: int, kind: str, details: dict[str, Any]) -> Answer:
    content = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{kind}", **details}).encode()
    headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-requestid": "0AFAKEREQUESTIDOFDYNAMODB"}
    return Answer(status, headers, content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that were closed on them come back all at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: FaultProxy
    target: str

    def setup(self) -> None:
        super().setup()
        self.upstream = HTTPConnection(self.target)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def finish(self) -> None:
        self.upstream.close()
        try:
            super().finish()
        except ConnectionError:
            return

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        request, strike = self.proxy.received(operation, self.path, dict(self.headers), body)
        if strike is None:
            answer = forward(self.upstream, request)
            self.proxy.watch(request, None, answer)
            self.answer(answer)
            return
        self.close_connection = strike.harm in _CLOSING
        told = self.struck(request, strike)
        if told is not None:
            self.answer(told, sent=len(told.content) - (strike.harm is Harm.CUT))

    def struck(self, request: Request, strike: Strike) -> Answer | None:
        """The answer that the client gets, None if it gets none."""
        answer = None if strike.harm in HELD | _KEPT_FROM_THE_TABLE else forward(self.upstream, request)
        self.proxy.watch(request, strike.harm, answer)
        coming = self.proxy.hold(request, strike) if strike.harm in LATE else None
        if strike.then is not None:
            strike.then()
        match strike.harm:
            case Harm.LOSE_ANSWER | Harm.LOSE_REQUEST | Harm.DELAY:
                return None
            case Harm.ERROR_AFTER | Harm.ERROR_BEFORE:
                return internal_error()
            case Harm.THROTTLE:
                return throttle(request, strike)
            case Harm.CONFLICT:
                return conflict(request, strike)
            case Harm.IN_PROGRESS_AFTER | Harm.IN_PROGRESS_BEFORE:
                return in_progress()
            case Harm.HANG:
                self.proxy.released.wait()
        try:
            return answer if answer is not None or coming is None else coming.result()
        except CancelledError:  # the proxy stops
            self.close_connection = True
            return None

    def answer(self, answer: Answer, sent: int | None = None) -> None:
        self.send_response_only(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content[:sent])

    def log_message(self, *_: object) -> None:
        """The tests' output is theirs."""
