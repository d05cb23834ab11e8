"""What is a whole answer, and which connection carries the next request: against a scripted server on real sockets."""

from __future__ import annotations

import io
import json
import os
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from engines.tls import certificates

from persistence import _lean_transport
from persistence._lean_errors import LostAnswerError, NotSentError
from persistence._lean_settings import Endpoint
from persistence._lean_transport import MAX_BODY, MAX_HEAD, MAX_IDLE_SECONDS, Pool, _Connection, _Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
BODY = b"{}"
#: In every garbled answer; no error may show it.
SECRET = b"stored-result"


def answer(body: bytes = b"{}", *more: str, version: str = "1.1", status: int = 200) -> bytes:
    lines = [f"HTTP/{version} {status} Whatever", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Reads requests, and answers the n-th of a connection with the n-th of *answers*; or, with none, with the request's body.

    Then it ends the connection, or, if it *holds*, waits until the client has.
    """

    def __init__(self, answers: tuple[bytes, ...] = (), *, holds: bool = True, context: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.holds = holds
        self.context = context
        #: Called in the connection's thread after each request.
        self.on_request: Callable[[], object] = lambda: None
        self.requests: list[bytes] = []
        self.connections = 0
        #: One per connection that has ended, on either side.
        self.ended = threading.Semaphore(0)
        #: The server's ends of all connections.
        self.open: list[socket.socket] = []
        #: The hosts that clients of TLS have named.
        self.names: list[str | None] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):  # it is closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def endpoint(self, host: str = "127.0.0.1") -> Endpoint:
        return Endpoint(self.context is not None, host, self.port, f"{host}:{self.port}", "/")

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self.open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket, own_number: int) -> None:
        with suppress(OSError), connection:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                self._converse(connection, own_number)
        self.ended.release()

    def _converse(self, connection: socket.socket, own_number: int) -> None:
        for number in count():
            if self.answers and number == len(self.answers):
                break
            request = read_request(connection)
            if not request:
                return
            self.requests.append(request)
            self.on_request()
            echo = answer(request.partition(b"\r\n\r\n")[2], f"Connection-Number: {own_number}")
            connection.sendall(self.answers[number] if self.answers else echo)
        while self.holds and connection.recv(65_536):
            pass


def read_request(connection: socket.socket) -> bytes:
    request = b""
    while True:
        head, mark, body = request.partition(b"\r\n\r\n")
        if mark and len(body) == int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
            return request
        received = connection.recv(65_536)
        if not received:
            return b""
        request += received


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Server, Pool]]]:
    """Makes a server of a script, and a pool of connections to it."""
    with ExitStack() as stack:

        def made(
            *answers: bytes, connect_timeout: float = 5, read_timeout: float = 5, max_idle: int = 50, **options: Any
        ) -> tuple[Server, Pool]:
            server = Server(answers, **options)
            stack.callback(server.close)
            pool = Pool(server.endpoint(), connect_timeout, read_timeout, max_idle)
            stack.callback(pool.close)
            return server, pool

        yield made


class Clocks:
    """Both clocks of the transport, which stand still."""

    def __init__(self) -> None:
        self.now = self.wall_now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall_now


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(_lean_transport, "time", made)
    return made


def until_readable(pool: Pool) -> None:
    """Wait for what the server has sent, or for its end."""
    readable, _, _ = select.select([pool._idle[-1]._socket], [], [], 10)
    assert readable


# What is an answer


@pytest.mark.parametrize("chunk", [*range(1, 90), 65_536])
@pytest.mark.parametrize("framing", ["length", "chunked", "end"])
def test_an_answer_is_read_whatever_pieces_it_comes_in(
    serve: Callable[..., tuple[Server, Pool]], monkeypatch: pytest.MonkeyPatch, chunk: int, framing: str
) -> None:
    monkeypatch.setattr(_lean_transport, "CHUNK", chunk)
    whole = {
        "length": answer(b"0123456789"),
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n012\r\n7\r\n3456789\r\n0\r\nA: b\r\n\r\n",
        "end": b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n0123456789",
    }[framing]
    _, pool = serve(b"HTTP/1.1 100 Continue\r\n\r\n" + whole, holds=framing != "end")

    read = pool.exchange(HEAD, BODY)

    assert (read.status, read.body) == (200, b"0123456789")


@pytest.mark.parametrize(
    "whole",
    [
        answer(b'{"a":1}'),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n01\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Amz-Crc32: %d\r\n\r\n{}" % zlib.crc32(b"{}"),
    ],
)
def test_an_answer_that_is_cut_off_anywhere_is_lost(serve: Callable[..., tuple[Server, Pool]], whole: bytes) -> None:
    server, pool = serve(b"", holds=False)

    for end in range(len(whole)):
        server.answers = (whole[:end],)
        with pytest.raises(LostAnswerError):
            pool.exchange(HEAD, BODY)

    assert server.connections == len(whole)


GARBLED = {
    "nothing like HTTP": SECRET + b"\r\n\r\n",
    "an empty head": b"\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "no digits": b"HTTP/1.1 abc OK\r\n\r\n",
    "other digits": "HTTP/1.1 ²²² OK\r\n\r\n".encode("latin-1"),
    "status 0": b"HTTP/1.1 099 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\n" + SECRET + b"\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n:" + SECRET + b"\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}",
    "a folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\nContent-Length: 2\r\n\r\n{}",
    "a tab in a name": b"HTTP/1.1 200 OK\r\nA\tB: b\r\nContent-Length: 2\r\n\r\n{}",
    "a bare line feed": b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\n{}",
    "a bare carriage return": b"HTTP/1.1 200 OK\r\nA: b\rContent-Length: 2\r\n\r\n{}",
    "a length of words": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "other digits in the length": "HTTP/1.1 200 OK\r\nContent-Length: ²\r\n\r\n{}".encode("latin-1"),
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a length of too many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    "a length beyond the limit": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another transfer encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    "a chunk of a wrong size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n012\r\n0\r\n\r\n",
    "a chunk with another end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n01xx0\r\n\r\n",
    "a chunk's size that int() takes": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0_2\r\n01\r\n0\r\n\r\n",
    "a chunk of too many digits": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000002\r\n01\r\n0\r\n\r\n",
    "a chunk beyond the limit": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (MAX_BODY + 1),
    "another checksum": answer(SECRET, "x-amz-crc32: 1"),
    "a checksum of words": answer(SECRET, "x-amz-crc32: one"),
}


@pytest.mark.parametrize("garbled", GARBLED.values(), ids=GARBLED)
def test_a_garbled_answer_is_lost_and_its_connection_is_not_used_again(
    serve: Callable[..., tuple[Server, Pool]], garbled: bytes
) -> None:
    server, pool = serve(garbled)

    with pytest.raises(LostAnswerError) as lost:
        pool.exchange(HEAD, BODY)
    server.answers = (answer(b"{}"),)
    after = pool.exchange(HEAD, BODY)

    assert str(lost.value).startswith(f"No whole answer came from 127.0.0.1:{server.port}: ")
    assert SECRET.decode() not in str(lost.value)
    assert "timed out" not in str(lost.value)
    assert after.body == b"{}"
    assert server.connections == 2
    assert server.ended.acquire(timeout=10)


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: "])
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_head_and_trailers_have_a_limit(serve: Callable[..., tuple[Server, Pool]], start: bytes, end: bytes) -> None:
    _, pool = serve(start + b"x" * MAX_HEAD + end)

    with pytest.raises(LostAnswerError, match="too long"):
        pool.exchange(HEAD, BODY)


def test_many_trailers_have_a_limit(serve: Callable[..., tuple[Server, Pool]]) -> None:
    trailers = b"A: b\r\n" * (MAX_HEAD // 4 + 1)
    _, pool = serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + trailers + b"\r\n")

    with pytest.raises(LostAnswerError, match="trailers are too long"):
        pool.exchange(HEAD, BODY)


def test_a_head_as_long_as_the_limit_is_read(serve: Callable[..., tuple[Server, Pool]]) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: "
    _, pool = serve(start + b"x" * (MAX_HEAD - len(start)) + b"\r\n\r\n")

    read = pool.exchange(HEAD, BODY)

    assert len(read.headers["a"]) == MAX_HEAD - len(start)


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n60\r\n" + b"x" * 96 + b"\r\n60\r\n"],
)
def test_a_body_of_unknown_length_has_a_limit(
    serve: Callable[..., tuple[Server, Pool]], monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(_lean_transport, "MAX_BODY", 100)
    monkeypatch.setattr(_lean_transport, "CHUNK", 40)
    _, pool = serve(start + b"x" * 1_000)

    with pytest.raises(LostAnswerError, match="too long"):
        pool.exchange(HEAD, BODY)


def test_a_large_answer_to_a_large_request_is_whole(serve: Callable[..., tuple[Server, Pool]]) -> None:
    body = random.Random(1).randbytes(6_000_000)
    _, pool = serve()

    read = pool.exchange(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    assert read.body == body


def test_headers_are_named_in_small_letters_and_repeated_ones_joined(serve: Callable[..., tuple[Server, Pool]]) -> None:
    _, pool = serve(answer(b"{}", "X-Amzn-RequestId: \t Id1 ", "Via: a", "via: b"))

    read = pool.exchange(HEAD, BODY)

    assert read.headers == {"content-length": "2", "x-amzn-requestid": "Id1", "via": "a, b"}


def test_an_answer_does_not_show_its_body_or_headers(serve: Callable[..., tuple[Server, Pool]]) -> None:
    _, pool = serve(answer(SECRET, "A: b"))

    read = pool.exchange(HEAD, BODY)

    assert repr(read) == "Answer(200, ...)"


class Pieces:
    """A connection that yields what it is given, piece by piece."""

    def __init__(self, data: bytes, randoms: random.Random) -> None:
        self.data = data
        self.randoms = randoms

    def receive(self) -> bytes:
        size = self.randoms.choice([1, 2, 10, 100, 10_000])
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    def limit(self, give_up: float) -> None:
        """There is no hurry."""


def well_formed(randoms: random.Random) -> bytes:
    """An answer as a server may send it."""
    body = randoms.randbytes(randoms.choice([0, 1, 2, 50, 3_000]))
    names = ["Server", "Date", "x-amzn-RequestId", "X-Odd!#$%&'*+.^_`|~", "connection"]
    values = ["", "a", "  b", "c, d:e", "close", "keep-alive", '"quoted"; q=1', "\xe4\xff"]
    headers = [(name, randoms.choice(values)) for name in randoms.sample(names, randoms.randint(0, len(names)))]
    status, framing = randoms.choice([200, 200, 400, 503, 204, 304]), randoms.choice(["length", "chunked", "end"])
    content = body
    if status in (204, 304):
        content, framing = b"", "none"
    if framing == "length":
        headers.append((randoms.choice(["Content-Length", "content-length"]), str(len(body))))
    elif framing == "chunked":
        headers.append(("Transfer-Encoding", randoms.choice(["chunked", "Chunked"])))
        content = b""
        while body:
            size = randoms.randint(1, len(body))
            content += f"{size:{randoms.choice('xX')}}{randoms.choice(['', ';a=b', ' '])}\r\n".encode() + body[:size] + b"\r\n"
            body = body[size:]
        content += b"0\r\n" + randoms.choice([b"", b"Trailer: x\r\n"]) + b"\r\n"
    randoms.shuffle(headers)
    lines = "".join(f"{name}:{randoms.choice(['', ' '])}{value}\r\n" for name, value in headers)
    version = "1.1" if framing == "chunked" else randoms.choice(["1.1", "1.1", "1.0"])
    interim = randoms.choice(["", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"])
    first = f"HTTP/{version} {status}{randoms.choice(['', ' ', ' OK', ' Not quite: so'])}\r\n"
    return f"{interim}{first}{lines}\r\n".encode("latin-1") + content


@pytest.mark.parametrize("seed", [20_261_122])
def test_well_formed_answers_are_read_as_the_standard_library_reads_them(seed: int) -> None:
    randoms = random.Random(seed)

    for _ in range(3_000):
        data = well_formed(randoms)
        theirs = HTTPResponse(SimpleNamespace(makefile=lambda mode, data=data: io.BytesIO(data)), method="POST")  # type: ignore[arg-type]
        theirs.begin()

        ours, is_reusable = _Reader(Pieces(data, randoms), 0).answer()  # type: ignore[arg-type]

        assert (ours.status, ours.body) == (theirs.status, theirs.read())
        assert ours.headers == {name.lower(): value.strip(" \t") for name, value in theirs.getheaders()}
        assert is_reusable == (theirs.version == 11 and not theirs.will_close)


# Which connection carries the next request


def test_a_connection_is_used_again(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, pool = serve()

    bodies = [pool.exchange(HEAD, body).body for body in (b"11", b"22", b"33")]

    assert bodies == [b"11", b"22", b"33"]
    assert server.requests == [HEAD + body for body in bodies]
    assert server.connections == 1


@pytest.mark.parametrize(
    "last",
    [
        answer(b"{}", "Connection: close"),
        answer(b"{}", "Connection: Keep-Alive, Close"),
        answer(b"{}", version="1.0"),
        answer(b"{}", "Connection: keep-alive", version="1.0"),
        answer(b"{}") + b"more",
        answer(b"{}") + b"\r\n",
        answer(b"", status=204).replace(b"Content-Length: 0\r\n", b"") + b"x",
    ],
)
def test_a_connection_is_not_used_again_if_the_server_says_so_or_sends_too_much(
    serve: Callable[..., tuple[Server, Pool]], last: bytes
) -> None:
    server, pool = serve(last)

    first = pool.exchange(HEAD, BODY)
    pool.exchange(HEAD, BODY)

    assert first.body in (b"{}", b"")
    assert server.connections == 2
    assert server.ended.acquire(timeout=10)


def test_a_connection_that_the_server_has_ended_is_noticed_before_a_request_is_sent(
    serve: Callable[..., tuple[Server, Pool]],
) -> None:
    server, pool = serve(answer(), holds=False)
    pool.exchange(HEAD, BODY)
    until_readable(pool)

    again = pool.exchange(HEAD, BODY)

    assert again.body == b"{}"
    assert server.connections == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("unasked", [answer(b"of another"), b"\r\n"])
def test_what_a_server_sends_unasked_is_no_answer_to_the_next_request(
    serve: Callable[..., tuple[Server, Pool]], unasked: bytes
) -> None:
    server, pool = serve()
    pool.exchange(HEAD, BODY)
    server.open[0].sendall(unasked)
    until_readable(pool)

    again = pool.exchange(HEAD, b"me")

    assert again.body == b"me"
    assert server.connections == 2


@pytest.mark.parametrize("clock", ["now", "wall_now"])
@pytest.mark.parametrize(("idle_seconds", "connections"), [(MAX_IDLE_SECONDS - 0.001, 1), (MAX_IDLE_SECONDS, 2), (-1e9, 1)])
def test_a_connection_that_was_idle_for_long_by_either_clock_is_not_used_again(
    serve: Callable[..., tuple[Server, Pool]], clocks: Clocks, clock: str, idle_seconds: float, connections: int
) -> None:
    """In a frozen sandbox a connection may have died without any news of it."""
    server, pool = serve()
    pool.exchange(HEAD, BODY)
    setattr(clocks, clock, getattr(clocks, clock) + idle_seconds)

    pool.exchange(HEAD, BODY)

    assert server.connections == connections


def test_a_request_that_a_dead_connection_did_not_take_is_lost_and_not_unsent(
    serve: Callable[..., tuple[Server, Pool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pool = serve(answer(), holds=False)
    pool.exchange(HEAD, BODY)
    until_readable(pool)
    monkeypatch.setattr(_Connection, "is_usable", lambda self: True)  # as if the end had come between look and use

    with pytest.raises(LostAnswerError):
        pool.exchange(HEAD, BODY)
    pool.exchange(HEAD, BODY)

    assert server.connections == 2


def test_the_connection_that_was_used_last_is_used_first(serve: Callable[..., tuple[Server, Pool]]) -> None:
    """So that the others become idle for long, and few are kept warm."""
    server, pool = serve()
    both = threading.Barrier(2, timeout=10)
    server.on_request = both.wait
    in_threads(2, lambda number: pool.exchange(HEAD, BODY))
    server.on_request = lambda: None
    last = pool._idle[-1]

    pool.exchange(HEAD, BODY)

    assert server.connections == 2
    assert [*pool._idle][-1] is last


def test_threads_get_their_own_answers_and_share_connections(serve: Callable[..., tuple[Server, Pool]]) -> None:
    threads, calls = 16, 50
    server, pool = serve(max_idle=4)

    def call(number: int) -> None:
        for turn in range(calls):
            body = f"{number:02}-{turn:03}".encode()
            assert pool.exchange(b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\n", body).body == body

    in_threads(threads, call)

    assert len(server.requests) == threads * calls
    assert len(pool._idle) <= 4


def test_no_more_connections_are_kept_than_wanted(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, pool = serve(max_idle=2)
    all_at_once = threading.Barrier(5, timeout=10)
    server.on_request = all_at_once.wait

    in_threads(5, lambda number: pool.exchange(HEAD, BODY))

    assert server.connections == 5
    assert len(pool._idle) == 2
    assert all(server.ended.acquire(timeout=10) for _ in range(3))


def test_a_closed_pool_closes_its_connections_and_keeps_none(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, pool = serve()
    pool.exchange(HEAD, BODY)

    pool.close()
    late = pool.exchange(HEAD, BODY)

    assert late.body == BODY
    assert not pool._idle
    assert all(server.ended.acquire(timeout=10) for _ in range(2))


def test_a_connection_in_use_is_closed_after_its_exchange_if_the_pool_was_closed_meanwhile(
    serve: Callable[..., tuple[Server, Pool]],
) -> None:
    server, pool = serve()
    server.on_request = pool.close

    read = pool.exchange(HEAD, BODY)

    assert read.body == BODY
    assert server.ended.acquire(timeout=10)


def test_a_pool_that_is_forgotten_leaves_no_connection(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, _ = serve()
    forgotten = Pool(server.endpoint(), 5, 5)
    forgotten.exchange(HEAD, BODY)

    del forgotten

    assert server.ended.acquire(timeout=10)


def test_trimming_copes_with_another_thread_that_was_first(serve: Callable[..., tuple[Server, Pool]]) -> None:
    _, pool = serve()

    class Vanished(deque[Any]):
        def __len__(self) -> int:
            return 1

    pool._idle = Vanished()

    pool.close()

    assert [*pool._idle] == []
    pool._idle = deque()


def in_threads(threads: int, work: Callable[[int], object]) -> None:
    """Raises what the first of them raised."""
    with ThreadPoolExecutor(threads) as executor:
        for each in [executor.submit(work, number) for number in range(threads)]:
            each.result()


FORKING = """
import json, os, sys
from persistence._lean_settings import Endpoint
from persistence._lean_transport import Pool

port = int(sys.argv[1])
pool = Pool(Endpoint(False, "127.0.0.1", port, "127.0.0.1", "/"), 5, 5)

def ask(body):
    return pool.exchange(b"POST / HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\n", body).headers["connection-number"]

before = ask(b"p1")
child = os.fork()
if not child:
    again = [ask(b"c1"), ask(b"c2")]
    os.write(1, json.dumps({"child": again}).encode() + b"\\n")
    os._exit(0)
os.waitpid(child, 0)
os.write(1, json.dumps({"parent": [before, ask(b"p2")]}).encode() + b"\\n")
pool.close()
"""


def test_a_forked_child_uses_connections_of_its_own_and_leaves_its_parents_alone(
    serve: Callable[..., tuple[Server, Pool]],
) -> None:
    server, _ = serve()

    # A process of its own: one that has threads must not be forked.
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(server.port)],
        check=True,
        capture_output=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    child, parent = (json.loads(line) for line in done.stdout.splitlines())
    assert parent == {"parent": ["1", "1"]}
    assert child == {"child": ["2", "2"]}


# What goes wrong


def test_a_refused_connection_is_unsent(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, pool = serve()
    server.close()

    with pytest.raises(NotSentError, match=f"^Could not connect to 127.0.0.1:{server.port}: .*refused"):
        pool.exchange(HEAD, BODY)


def test_a_host_without_an_address_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    pool = Pool(Endpoint(False, "db.invalid", 80, "db.invalid", "/"), 5, 5)

    with pytest.raises(NotSentError, match="db.invalid: .*not known"):
        pool.exchange(HEAD, BODY)


def test_what_can_be_no_hosts_name_is_unsent() -> None:
    pool = Pool(Endpoint(False, "a..b", 80, "a..b", "/"), 5, 5)

    with pytest.raises(NotSentError, match="Could not connect to a..b"):
        pool.exchange(HEAD, BODY)


def test_an_answer_that_does_not_come_is_lost(serve: Callable[..., tuple[Server, Pool]]) -> None:
    server, pool = serve(b"", read_timeout=0.05)

    with pytest.raises(LostAnswerError, match="timed out"):
        pool.exchange(HEAD, BODY)

    assert server.ended.acquire(timeout=10)
    assert not pool._idle


@pytest.mark.parametrize("dripped", [answer(b"x" * 100), b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100])
@pytest.mark.parametrize("turn", [0.5, 0.2])
def test_an_answer_that_drips_is_lost_when_three_timeouts_are_over(
    serve: Callable[..., tuple[Server, Pool]], clocks: Clocks, monkeypatch: pytest.MonkeyPatch, dripped: bytes, turn: float
) -> None:
    receive = _Connection.receive
    pieces = []

    def dripping(self: _Connection) -> bytes:
        clocks.now += turn
        pieces.append(receive(self))
        return pieces[-1]

    monkeypatch.setattr(_lean_transport, "CHUNK", 1)
    monkeypatch.setattr(_Connection, "receive", dripping)
    _, pool = serve(dripped, read_timeout=2)

    with pytest.raises(LostAnswerError, match="too long"):
        pool.exchange(HEAD, BODY)

    assert len(pieces) == pytest.approx(3 * 2 / turn, abs=1)


def test_the_last_wait_of_a_slow_answer_is_as_long_as_what_is_left(
    serve: Callable[..., tuple[Server, Pool]], clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = _Connection.receive
    waits = []

    def slow(self: _Connection) -> bytes:
        waits.append(self._socket.gettimeout())
        clocks.now += 1.5
        return receive(self)

    monkeypatch.setattr(_lean_transport, "CHUNK", 20)
    monkeypatch.setattr(_Connection, "receive", slow)
    server, pool = serve(answer(b"0123456789012345678"), read_timeout=2)

    read = pool.exchange(HEAD, BODY)

    assert read.body == b"0123456789012345678"
    assert waits == [2, 2, 2, 1.5]
    assert server.ended.acquire(timeout=10)  # its timeout is another now


def test_a_request_that_drips_is_lost_when_three_timeouts_are_over(clocks: Clocks) -> None:
    sent = []

    class Slow:
        """Takes a byte at a time."""

        def send(self, data: bytes) -> int:
            clocks.now += 0.5
            sent.append(data[:1])
            return 1

        def settimeout(self, seconds: float) -> None:
            """It does not wait."""

    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = _Connection(ours, 2)
        connection._socket = Slow()  # type: ignore[assignment]

        with pytest.raises(TimeoutError):
            connection.exchange(HEAD)

    assert b"".join(sent) == HEAD[: len(sent)]
    assert len(sent) == 3 * 2 / 0.5


@pytest.mark.parametrize("size", [64_000_000])
def test_a_request_that_nobody_reads_is_lost(size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = Pool(Endpoint(False, "127.0.0.1", listener.getsockname()[1], "127.0.0.1", "/"), 5, 0.05)

        with pytest.raises(LostAnswerError, match="timed out"):
            pool.exchange(HEAD, bytes(size))


class InterruptionError(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread by a signal, whose handler raises."""

    def handler(*_: Any) -> None:
        raise InterruptionError

    before = signal.signal(signal.SIGUSR1, handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_a_connection_whose_exchange_was_interrupted_is_not_used_again(
    serve: Callable[..., tuple[Server, Pool]], interrupt: Callable[[], None]
) -> None:
    """Else the next request would get the answer to this one."""
    server, pool = serve()
    pool.exchange(HEAD, BODY)
    server.on_request = interrupt

    with pytest.raises(InterruptionError):
        pool.exchange(HEAD, b"11")
    server.on_request = lambda: None
    after = pool.exchange(HEAD, b"22")

    assert after.body == b"22"
    assert server.connections == 2


# TLS


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The authority's certificate, and the one of `localhost` with its key."""
    return certificates(tmp_path_factory.mktemp("tls"), ("localhost",))


@pytest.fixture
def tls_server(tls_files: tuple[Path, Path]) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_files[1])
    server = Server(context=context)
    context.sni_callback = lambda connection, name, context: server.names.append(name)
    yield server
    server.close()


@pytest.fixture
def trust(tls_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_files[0]))


@pytest.mark.usefixtures("trust")
def test_tls_connections_name_the_host_and_are_used_again(tls_server: Server) -> None:
    pool = Pool(tls_server.endpoint("localhost"), 5, 5)

    bodies = [pool.exchange(HEAD, body).body for body in (b"11", b"22", b"33")]
    pool.close()

    assert bodies == [b"11", b"22", b"33"]
    assert tls_server.connections == 1
    assert tls_server.names == ["localhost"]


@pytest.mark.usefixtures("trust")
def test_a_large_exchange_over_tls_is_whole(tls_server: Server) -> None:
    body = random.Random(1).randbytes(4_000_000)
    pool = Pool(tls_server.endpoint("localhost"), 5, 5)

    read = pool.exchange(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    pool.close()

    assert read.body == body


@pytest.mark.usefixtures("trust")
def test_a_certificate_for_another_host_is_unsent(tls_server: Server) -> None:
    pool = Pool(tls_server.endpoint("127.0.0.1"), 5, 5)

    with pytest.raises(NotSentError, match="certificate"):
        pool.exchange(HEAD, BODY)

    assert tls_server.requests == []


def test_a_certificate_of_an_unknown_authority_is_unsent(tls_server: Server) -> None:
    pool = Pool(tls_server.endpoint("localhost"), 5, 5)

    with pytest.raises(NotSentError, match="certificate verify failed"):
        pool.exchange(HEAD, BODY)

    assert tls_server.requests == []


@pytest.mark.usefixtures("trust")
def test_a_handshake_that_does_not_end_is_unsent_after_the_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # answers nothing
        port = listener.getsockname()[1]
        pool = Pool(Endpoint(True, "localhost", port, f"localhost:{port}", "/"), 0.05, 60)

        with pytest.raises(NotSentError, match="timed out"):
            pool.exchange(HEAD, BODY)


@pytest.mark.usefixtures("trust")
def test_a_handshake_has_what_is_left_of_the_connect_timeout(clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    create_connection = socket.create_connection

    def slow(*args: Any) -> socket.socket:
        clocks.now += 60
        return create_connection(*args)

    monkeypatch.setattr(socket, "create_connection", slow)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # answers nothing
        port = listener.getsockname()[1]
        pool = Pool(Endpoint(True, "localhost", port, f"localhost:{port}", "/"), 60, 60)

        with pytest.raises(NotSentError, match="timed out"):
            pool.exchange(HEAD, BODY)


@pytest.mark.usefixtures("trust")
def test_a_handshake_that_is_interrupted_leaves_no_connection(interrupt: Callable[[], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pool = Pool(Endpoint(True, "localhost", port, f"localhost:{port}", "/"), 30, 30)

        def interrupt_handshake() -> bytes:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)  # the client's hello
                interrupt()
                return connection.recv(65_536)  # its end

        with ThreadPoolExecutor(1) as threads:
            after = threads.submit(interrupt_handshake)
            with pytest.raises(InterruptionError):
                pool.exchange(HEAD, BODY)

            assert after.result(timeout=10) == b""


@pytest.mark.usefixtures("trust")
def test_an_answer_that_ends_with_the_connection_but_not_with_tls_is_lost(tls_server: Server) -> None:
    """Anybody on the way can end a connection; the end of TLS only the server."""
    tls_server.answers = (b"HTTP/1.1 200 OK\r\n\r\n{}",)
    tls_server.holds = False
    pool = Pool(tls_server.endpoint("localhost"), 5, 5)

    with pytest.raises(LostAnswerError):
        pool.exchange(HEAD, BODY)
