"""A proxy in front of Valkey that loses, holds, cuts and replaces, below the client and whatever it repeats by itself.

It reads requests as arrays of bulk strings, and of answers as much as tells where one ends, in RESP2 and RESP3:
https://valkey.io/topics/protocol/.  Harms are those of `fault.proxy`; what a server has no words for is not among them.
Nothing here waits for time to pass: a request that is held goes on when the test says so, or when a number of others have come.
"""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from hashlib import sha1
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

from fault.proxy import HELD, LATE, Harm

from persistence._cache_scripts import CLAIM, COMPLETE, READ, RELEASE, RENEW

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

#: What the store's scripts are called here, by their digests.
OPERATIONS: Final = {
    CLAIM.sha1: "claim",
    COMPLETE.sha1: "complete",
    RENEW.sha1: "renew",
    RELEASE.sha1: "release",
    READ.sha1: "read",
}

#: Errors by which a server says "not now", in its own words: https://github.com/valkey-io/valkey, src/server.c and src/cluster.c.
NOT_NOW: Final = (
    "LOADING Valkey is loading the dataset in memory",
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
)

_SCRIPTED: Final = frozenset({"EVALSHA", "EVAL"})
#: What chance may strike: a connection's first words are left alone.
_HARMED_BY_CHANCE: Final = _SCRIPTED | {"GET", "SET", "DEL", "WAIT"}
_CLOSING: Final = frozenset({Harm.LOSE_ANSWER, Harm.LOSE_REQUEST, Harm.CUT, Harm.DELAY})
_KEPT_FROM_THE_SERVER: Final = HELD | {Harm.LOSE_REQUEST, Harm.ERROR_BEFORE}
#: What a connection says to be let in, and to be understood; a copy that travels alone says it, too.
_PREAMBLE: Final = frozenset({"AUTH", "HELLO", "SELECT"})


@dataclass(frozen=True)
class Strike:
    """A harm, and what belongs to it.

    Attributes:
        harm: What happens to the request.
        error: What `ERROR_BEFORE` answers.
        held_for: After how many further requests a held one, or a copy, is released by itself; None for only when told.
        then: Called when the request was applied, or would have been, and before the client can notice.
    """

    harm: Harm
    error: str = NOT_NOW[0]
    held_for: int | None = None
    then: Callable[[], object] | None = None


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        command: Its first word, in capital letters.
        operation: What the store's script does that it runs, as "claim"; the command again if it runs none.
        number: Counts the operation's requests from 1.
        words: All of it, with the command.
    """

    command: str
    operation: str
    number: int
    words: tuple[bytes, ...] = field(repr=False)
    preamble: tuple[bytes, ...] = field(repr=False, default=())

    @property
    def wire(self) -> bytes:
        return packed(*self.words)

    #: A request that a client repeats by itself looks as one that its store repeats.
    is_repetition: ClassVar[bool] = False

    @property
    def key(self) -> str:
        """Of a script, the key that it is given; "" of any other command."""
        return self.words[3].decode() if self.command in _SCRIPTED else ""

    @property
    def owner_token(self) -> str:
        """Of a script of the store that writes, whose request it is; else ""."""
        place = {"claim": 11, "complete": 9, "renew": 9, "release": 9}.get(self.operation)
        return "" if place is None else self.words[place].decode()


@dataclass(frozen=True)
class Answer:
    """What the server said, as it came over the wire."""

    content: bytes

    @property
    def status(self) -> str:
        """Its first word, or that of the first element: "granted", "-NOSCRIPT"."""
        lines = self.content.split(b"\r\n")
        first = lines[2] if lines[0][:1] == b"*" and len(lines) > 2 else lines[0]
        return first.decode(errors="replace").partition(" ")[0]


@dataclass
class _Held:
    request: Request
    harm: Harm
    #: When the proxy has seen so many requests in all; None for only when told.
    due: int | None
    answer: Future[Answer] = field(default_factory=Future)


class RespProxy:
    """Serves `host`:`port` until `stop`.

    Attributes:
        calls: How many requests of each command came.
        operations: How many requests of each of the store's scripts came, by EVALSHA or EVAL.
        struck: How often each harm struck.
        repetitions: Always 0, see `Request.is_repetition`.
        watch: Called with each request, the harm that strikes it or None, and the server's answer or None if it is kept from the
            server.  Called once more for a held request, or a copy, with its harm, when it has been released and answered.
        judge: Says what strikes a request that is not named, None leaves it to chance.  It may first do something: the request
            has not gone on yet.
    """

    host: Final = "127.0.0.1"

    def __init__(self, endpoint: str) -> None:
        self.calls: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
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
        self._open: set[socket.socket] = set()
        self._lock = RLock()
        target = urlsplit(endpoint)
        self._target = target.hostname, target.port
        self._server = _Server((self.host, 0), type("Handler", (_Handler,), {"proxy": self}))
        # A daemon, so that a proxy which a failing test has not stopped does not keep the run from its end.
        self._thread = Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()
        self.port: int = self._server.server_address[1]
        self.url = f"redis://{self.host}:{self.port}"

    def harm(
        self,
        name: str,
        call: int,
        harm: Harm,
        *,
        error: str = NOT_NOW[0],
        held_for: int | None = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Harm a request of a command ("EVALSHA") or of a script ("claim"), counted from 1 from now on.  See `Strike`."""
        with self._lock:
            counts = self.operations if name in OPERATIONS.values() else self.calls
            self._strikes[name, counts[name] + call] = Strike(harm, error, held_for, then)

    def harm_by_chance(self, chance: random.Random, rates: Mapping[Harm, float], *, longest_hold: int = 100) -> None:
        """Harm any request for a key that is not named, each harm with its own probability.

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
        """Let every held request, and copy, go on to the server, the first one first.  Returns how many that were."""
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
        with self._lock:
            for each in self._open:
                _shut(each)
        self._server.server_close()  # joins the connections' threads
        self._thread.join()

    def connect(self, client: socket.socket | None = None) -> socket.socket:
        """A connection to the server, which ends, and the client's with it, when the proxy stops."""
        upstream = socket.create_connection(self._target)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {upstream} if client is None else {upstream, client}
            if self.released.is_set():
                _shut(upstream)
        return upstream

    def forget(self, *connections: socket.socket) -> None:
        """Close the connections."""
        with self._lock:
            self._open.difference_update(connections)
        for each in connections:
            each.close()

    def received(self, words: tuple[bytes, ...], preamble: tuple[bytes, ...]) -> tuple[Request, Strike | None]:
        """Count a request, let those go on that it was awaited by, and say what is to strike it."""
        command = words[0].decode().upper()
        operation = _operation(command, words)
        with self._lock:
            self.calls[command] += 1
            if operation != command:
                self.operations[operation] += 1
            counts = self.operations if operation != command else self.calls
            request = Request(command, operation, counts[operation], words, preamble)
            seen = self.calls.total()
            due = [held for held in self._held if held.due is not None and held.due <= seen]
            self._held = [held for held in self._held if held not in due]
            names = {(operation, request.number), (command, self.calls[command])}
            named = next((self._strikes[name] for name in names if name in self._strikes), None)
        strike = named or self.judge(request)
        with self._lock:
            strike = strike or self._by_chance(request)
            if strike is not None:
                self.struck[strike.harm] += 1
        self._apply(due)
        return request, strike

    def hold(self, request: Request, strike: Strike) -> Future[Answer]:
        """Keep a request until it is released.  Its answer comes then."""
        with self._lock:
            due = None if strike.held_for is None else self.calls.total() + strike.held_for
            held = _Held(request, strike.harm, due)
            if self.released.is_set():
                held.answer.cancel()
            else:
                self._held.append(held)
        return held.answer

    def _by_chance(self, request: Request) -> Strike | None:
        if self._chance is None or not self._rates or request.command not in _HARMED_BY_CHANCE:
            return None
        kinds: list[Harm | None] = [*self._rates, None]
        weights = [*self._rates.values(), 1 - sum(self._rates.values())]
        [harm] = self._chance.choices(kinds, weights)
        if harm is None:
            return None
        held_for = self._chance.randint(1, self._longest_hold) if harm in LATE else None
        return Strike(harm, self._chance.choice(NOT_NOW), held_for)

    def _apply(self, held: list[_Held]) -> None:
        for each in held:
            upstream = self.connect()
            try:
                with upstream.makefile("rb") as answers:
                    for said in (*each.request.preamble, each.request.wire):
                        upstream.sendall(said)
                        answer = Answer(read_answer(answers))
            finally:
                self.forget(upstream)
            self.watch(each.request, each.harm, answer)
            each.answer.set_result(answer)


def _operation(command: str, words: tuple[bytes, ...]) -> str:
    if command == "EVALSHA":
        return OPERATIONS.get(words[1].decode(), command)
    if command == "EVAL":
        return OPERATIONS.get(sha1(words[1], usedforsecurity=False).hexdigest(), command)
    return command


def packed(*words: bytes) -> bytes:
    """The words as a request."""
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%s\r\n" % (len(word), word) for word in words]])


def read_request(source: BinaryIO) -> tuple[bytes, ...]:
    """The words of the next request; none if the client has gone, or is cut off in the middle of it."""
    try:
        head = _line(source)
        if head[:1] != b"*":
            raise ValueError(f"no array: {head[:20]!r}")
        return tuple(_text(source, _line(source)) for _ in range(int(head[1:])))
    except EOFError:
        return ()


def read_answer(source: BinaryIO) -> bytes:
    """One answer, as it comes; with what is pushed before it.

    Raises:
        EOFError: the server has gone.
    """
    line = _line(source)
    kind, rest = line[:1], line[1:]
    content = line + b"\r\n"
    match kind:
        case b"$" | b"=" | b"!":
            return content if rest == b"-1" else content + _text(source, line) + b"\r\n"
        case b"*" | b"~" | b">":
            content += b"".join(read_answer(source) for _ in range(max(0, int(rest))))
        case b"%" | b"|":
            content += b"".join(read_answer(source) for _ in range(2 * int(rest)))
    return content + read_answer(source) if kind in (b">", b"|") else content


def _line(source: BinaryIO) -> bytes:
    line = source.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line[:-2]


def _text(source: BinaryIO, head: bytes) -> bytes:
    size = int(head[1:])
    text = source.read(size + 2)
    if len(text) < size + 2:
        raise EOFError
    return text[:-2]


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other end has gone already
        return


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128  # connections that were closed on them come back all at once


class _Handler(StreamRequestHandler):
    disable_nagle_algorithm = True
    proxy: RespProxy
    request: socket.socket

    def handle(self) -> None:
        try:
            upstream = self.proxy.connect(self.request)
        except OSError:  # no server: the client's connection closes, too
            return
        self.answers: Any = upstream.makefile("rb")
        self.preamble: tuple[bytes, ...] = ()
        try:
            while self.served(upstream):
                pass
        except (OSError, EOFError):  # the client has gone, or the server
            return
        finally:
            self.answers.close()
            self.proxy.forget(upstream, self.request)

    def served(self, upstream: socket.socket) -> bool:
        """Whether the connection goes on, after one more request."""
        words = read_request(self.rfile)
        if not words:
            return False
        request, strike = self.proxy.received(words, self.preamble)
        if request.command in _PREAMBLE:
            self.preamble += (request.wire,)
        is_kept = strike is not None and strike.harm in _KEPT_FROM_THE_SERVER
        answer = None if is_kept else self.forwarded(upstream, request)
        self.proxy.watch(request, None if strike is None else strike.harm, answer)
        told = answer.content if answer is not None else b""
        if strike is not None:
            told = self.struck(request, strike, answer)
        if told:
            self.request.sendall(told)
        return strike is None or strike.harm not in _CLOSING

    def forwarded(self, upstream: socket.socket, request: Request) -> Answer:
        upstream.sendall(request.wire)
        return Answer(read_answer(self.answers))

    def struck(self, request: Request, strike: Strike, answer: Answer | None) -> bytes:
        """What the client is told; nothing if it gets no answer."""
        coming = self.proxy.hold(request, strike) if strike.harm in LATE else None
        if strike.then is not None:
            strike.then()
        match strike.harm:
            case Harm.ERROR_BEFORE:
                return f"-{strike.error}\r\n".encode()
            case Harm.HANG:
                self.proxy.released.wait()
            case Harm.HOLD:
                assert coming is not None
                try:
                    return coming.result().content
                except CancelledError:  # the proxy stops
                    return b""
        if answer is None or strike.harm is Harm.LOSE_ANSWER:
            return b""
        return answer.content[: len(answer.content) // 2] if strike.harm is Harm.CUT else answer.content
