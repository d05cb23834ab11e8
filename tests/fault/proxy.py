"""An HTTP proxy in front of DynamoDB Local that loses, cuts and replaces answers, below the SDK and its hidden retries."""

from __future__ import annotations

import json
from collections import Counter
from enum import Enum, auto
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from urllib.parse import urlsplit


class Harm(Enum):
    """What happens to a request."""

    LOSE_ANSWER = auto()  # applied; the connection closes without an answer
    LOSE_REQUEST = auto()  # not applied; the connection closes without an answer
    HANG = auto()  # applied; the answer comes only when the proxy closes
    CUT = auto()  # applied; the connection closes before the last byte of the answer's body
    ERROR_AFTER = auto()  # applied; answered 500
    ERROR_BEFORE = auto()  # not applied; answered 500
    THROTTLE = auto()  # not applied; answered 400


#: Harms after which the client does not know that its request was applied.
APPLIED = [Harm.LOSE_ANSWER, Harm.CUT, Harm.ERROR_AFTER]

_ERROR = ("InternalServerError", "Internal server error", 500)
_THROTTLE = ("ProvisionedThroughputExceededException", "The level of configured provisioned throughput was exceeded.", 400)
_OF_THE_CONNECTION = ("content-length", "transfer-encoding")
_INSTEAD = {Harm.ERROR_BEFORE: _ERROR, Harm.THROTTLE: _THROTTLE}


class FaultProxy:
    """Serves `url` until `stop`.  *harm* a call of an operation (its API name, such as PutItem), counted from 1."""

    def __init__(self, endpoint: str) -> None:
        self.calls: Counter[str] = Counter()
        self.released = Event()
        self._harms: dict[tuple[str, int], Harm] = {}
        self._lock = Lock()
        upstream = urlsplit(endpoint).netloc

        class Handler(_Handler):
            proxy = self
            target = upstream

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def harm(self, operation: str, call: int, harm: Harm) -> None:
        self._harms[operation, self.calls[operation] + call] = harm

    def counted(self, operation: str) -> Harm | None:
        with self._lock:
            self.calls[operation] += 1
            return self._harms.get((operation, self.calls[operation]))

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: FaultProxy
    target: str

    def setup(self) -> None:
        super().setup()
        self.upstream = HTTPConnection(self.target)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        harm = self.proxy.counted(self.headers["X-Amz-Target"].partition(".")[2])
        self.close_connection = harm in (Harm.LOSE_ANSWER, Harm.LOSE_REQUEST, Harm.CUT)
        if harm is Harm.LOSE_REQUEST:
            return
        if harm in _INSTEAD:
            self.fail(*_INSTEAD[harm])
            return
        self.upstream.request("POST", self.path, body, dict(self.headers))
        answer = self.upstream.getresponse()
        content = answer.read()
        if harm is Harm.LOSE_ANSWER:
            return
        if harm is Harm.ERROR_AFTER:
            self.fail(*_ERROR)
            return
        if harm is Harm.HANG:
            self.proxy.released.wait()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_THE_CONNECTION}
        self.answer(answer.status, headers, content, sent=len(content) - (harm is Harm.CUT))

    def fail(self, kind: str, message: str, status: int) -> None:
        headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-requestid": "0AFAKEREQUESTIDOFDYNAMODB"}
        content = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{kind}", "message": message}).encode()
        self.answer(status, headers, content, sent=len(content))

    def answer(self, status: int, headers: dict[str, str], content: bytes, sent: int) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        """The tests' output is theirs."""
