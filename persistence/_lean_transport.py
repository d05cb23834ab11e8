"""One HTTP/1.1 exchange at a time over connections that are kept: a small client for one endpoint, by hand.

`http.client` would cost more to import than all the rest of the lean client, and more per request than a signature.  This decides
what is a whole answer, and which connection may carry another request.  It never sends a request twice, and no error shows a part
of a request or of an answer.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final
from zlib import crc32

from persistence._lean_errors import LostAnswerError, NotSentError

if TYPE_CHECKING:
    import ssl

    from persistence._lean_settings import Endpoint

#: Seconds that a connection may have been idle when it is used again, the default of AWS's SDK for Java.  DynamoDB documents no
#: limit of its own.  What it ends earlier is noticed, unless the sandbox was frozen when the news came; a sandbox that was frozen
#: for long thus connects anew.
#: https://docs.aws.amazon.com/AWSJavaSDK/latest/javadoc/com/amazonaws/ClientConfiguration.html
MAX_IDLE_SECONDS: Final = 60
#: The shortest timeout: 0 would mean not to wait, and less is refused.
LEAST_SECONDS: Final = 0.001
#: An exchange ends within this many read timeouts, however steadily the server drips.
WAITS_PER_EXCHANGE: Final = 3
#: Bytes of an answer's status line and headers, and of a chunk's size or the trailers.
MAX_HEAD: Final = 65_536
#: A page is 1 MB as stored, and a BatchGetItem 16 MB.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
MAX_BODY: Final = 17_000_000
#: Bytes read at a time; most answers come in one.
CHUNK: Final = 65_536

_HEX: Final = frozenset("0123456789abcdefABCDEF")
_BODILESS: Final = frozenset({204, 304})


class Answer:
    """A whole answer.  The names of headers are in small letters."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Answer({self.status}, ...)"


class _BrokenError(Exception):
    """An answer that is none, and why."""


class Pool:
    """Connections to one endpoint, made when they are needed and kept for the next request.

    Threads may share it, and a forked child may go on with it: it never uses its parent's connections.

    Args:
        endpoint: Where requests go.
        connect_timeout: Seconds for each address of the host, and again for all of the connection, TLS included.  Resolving the
            host's name has no limit.
        read_timeout: Seconds that each wait for the server may take.  An exchange takes three times as long at most.
        max_idle: Connections that are kept at most.  There is no limit to those in use.
    """

    def __init__(self, endpoint: Endpoint, connect_timeout: float, read_timeout: float, max_idle: int = 50) -> None:
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._max_idle = max_idle
        # Without a lock, which a forked child could find locked for ever: each method of a deque is atomic.
        self._idle: deque[_Connection] = deque()

    def exchange(self, head: bytes, body: bytes) -> Answer:
        """Send a request, and return the answer to it.

        Raises:
            NotSentError: no connection came about.
            LostAnswerError: there is no whole answer.  Even a request that could not be sent on a connection from before may have
                reached the server in part, and the client cannot tell which part.
        """
        connection = self._take() or self._connect()
        try:
            answer, is_reusable = connection.exchange(head + body)
        except (OSError, _BrokenError) as error:
            connection.close()
            raise LostAnswerError(f"No whole answer came from {self._endpoint.host_header}: {error}") from error
        except BaseException:  # an interruption: the rest of the answer must not be the next request's
            connection.close()
            raise
        if is_reusable:
            self._keep(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the connections, those in use when they are free.  The pool then keeps none."""
        self._max_idle = 0
        self._trim()

    def __del__(self) -> None:
        self.close()

    def _take(self) -> _Connection | None:
        """The connection that was used last, if it can still be used."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable():
                return connection
            connection.close()

    def _keep(self, connection: _Connection) -> None:
        connection.rest()
        self._idle.append(connection)
        self._trim()

    def _trim(self) -> None:
        while len(self._idle) > self._max_idle:
            try:
                self._idle.popleft().close()
            except IndexError:  # another thread was first
                return

    def _connect(self) -> _Connection:
        context = _tls_context() if self._endpoint.is_tls else None
        give_up = time.monotonic() + self._connect_timeout
        made: socket.socket | None = None
        try:
            made = socket.create_connection((self._endpoint.host, self._endpoint.port), self._connect_timeout)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                made = context.wrap_socket(
                    made, server_hostname=self._endpoint.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
                )
                made.settimeout(max(give_up - time.monotonic(), LEAST_SECONDS))
                made.do_handshake()
            return _Connection(made, self._read_timeout)
        except (OSError, UnicodeError) as error:  # what can be no host's name is a UnicodeError
            _close(made)
            raise NotSentError(f"Could not connect to {self._endpoint.host_header}: {error}") from error
        except BaseException:
            _close(made)
            raise


def _tls_context() -> ssl.SSLContext:
    from persistence._lean_settings import tls_context  # here: a plain connection needs no TLS

    return tls_context()


def _close(made: socket.socket | None) -> None:
    if made is not None:
        made.close()


class _Connection:
    """A connection, of the process that made it."""

    __slots__ = ("_idle_since", "_is_slow", "_pid", "_poll", "_read_timeout", "_socket")

    def __init__(self, connected: socket.socket, read_timeout: float) -> None:
        connected.settimeout(read_timeout)
        self._socket = connected
        self._read_timeout = read_timeout
        self._pid = os.getpid()
        poll = select.poll()
        poll.register(connected, select.POLLIN)
        self._poll = poll.poll
        self._is_slow = False

    def close(self) -> None:
        """Close it.  In a forked child, that is the child's own end: nothing is sent, and the parent's stays open."""
        self._socket.close()

    def rest(self) -> None:
        """From now on it is idle."""
        self._idle_since = time.monotonic(), time.time()  # noqa: TID251 - see `is_usable`

    def is_usable(self) -> bool:
        """Whether a request may be written on it.

        Not if the server has ended it, or has sent what nobody asked for.  Not if it was idle for long, by either clock: in a
        frozen sandbox the monotonic one may stand still, and the other may be set.
        """
        since, wall_since = self._idle_since
        return (
            self._pid == os.getpid()
            and time.monotonic() - since < MAX_IDLE_SECONDS
            and time.time() - wall_since < MAX_IDLE_SECONDS  # noqa: TID251 - decides on a connection, not on a record
            and not self._poll(0)
        )

    def exchange(self, request: bytes) -> tuple[Answer, bool]:
        """Send the request and return the answer, and whether the connection may be used again."""
        give_up = time.monotonic() + WAITS_PER_EXCHANGE * self._read_timeout
        sent = self._socket.send(request)
        while sent < len(request):
            self.limit(give_up)
            sent += self._socket.send(memoryview(request)[sent:])
        answer, is_reusable = _Reader(self, give_up).answer()
        return answer, is_reusable and not self._is_slow

    def receive(self) -> bytes:
        """What comes next, b"" at the end."""
        return self._socket.recv(CHUNK)

    def limit(self, give_up: float) -> None:
        """Let the next wait end by then.  Raises `TimeoutError` if that is over."""
        left = give_up - time.monotonic()
        if left < self._read_timeout:
            self._is_slow = True  # its timeout is another now
            if left <= 0:
                raise TimeoutError("it took too long")
            self._socket.settimeout(left)


class _Reader:
    """Reads one answer."""

    __slots__ = ("_at", "_connection", "_data", "_give_up", "_has_waited")

    def __init__(self, connection: _Connection, give_up: float) -> None:
        self._connection = connection
        self._give_up = give_up
        self._has_waited = False
        self._data = b""
        self._at = 0  # all before is used up

    def answer(self) -> tuple[Answer, bool]:
        """The answer, and whether it ended where it should and leaves the connection open.

        Raises:
            OSError, _BrokenError: there is no whole answer.
        """
        is_kept, status, headers = _parse_head(self._until(b"\r\n\r\n"))
        while status < 200:  # noqa: PLR2004 - 1xx: the answer is still to come
            is_kept, status, headers = _parse_head(self._until(b"\r\n\r\n"))
        length = headers.get("content-length")
        if status in _BODILESS:
            body = b""
        elif "transfer-encoding" in headers:
            if length is not None or headers["transfer-encoding"].lower() != "chunked":
                raise _BrokenError("its length is told in a strange way")
            body = self._chunks()
        elif length is not None:
            body = self._exactly(_length(length))
        else:
            body, is_kept = self._rest(), False
        crc = headers.get("x-amz-crc32")
        if crc is not None and crc != str(crc32(body)):
            raise _BrokenError("its checksum is another")
        return Answer(status, headers, body), is_kept and self._at == len(self._data)

    def _more(self) -> None:
        """Wait for more."""
        if self._has_waited:
            self._connection.limit(self._give_up)
        self._has_waited = True
        received = self._connection.receive()
        if not received:
            raise _BrokenError("the connection ended")
        self._data = self._data[self._at :] + received
        self._at = 0

    def _until(self, mark: bytes) -> bytes:
        """What comes before the mark, which is used up, too."""
        searched = self._at
        while (end := self._data.find(mark, searched)) < 0 and len(self._data) - self._at < MAX_HEAD + len(mark):
            searched = max(0, len(self._data) - self._at - len(mark) + 1)
            self._more()
        if not 0 <= end - self._at <= MAX_HEAD:
            raise _BrokenError("its head is too long")
        found = self._data[self._at : end]
        self._at = end + len(mark)
        return found

    def _exactly(self, count: int) -> bytes:
        """So many bytes."""
        part = self._data[self._at : self._at + count]
        self._at += len(part)
        if len(part) == count:  # the usual case
            return part
        parts, missing = [part], count - len(part)
        while missing:
            self._more()
            part = self._data[:missing]
            self._at = len(part)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _chunks(self) -> bytes:
        """A body in chunks.  What its trailers say does not matter here."""
        chunks: list[bytes] = []
        total = 0
        while size := _chunk_size(self._until(b"\r\n")):
            total += size
            _check_body(total)
            chunks.append(self._exactly(size))
            if self._exactly(2) != b"\r\n":
                raise _BrokenError("a chunk is garbled")
        trailers = 0
        while trailer := self._until(b"\r\n"):
            trailers += len(trailer)
            if trailers > MAX_HEAD:
                raise _BrokenError("its trailers are too long")
        return b"".join(chunks)

    def _rest(self) -> bytes:
        """A body that ends with the connection."""
        parts = [self._data[self._at :]]
        self._at = len(self._data)
        total = len(parts[0])
        while True:
            self._connection.limit(self._give_up)
            received = self._connection.receive()
            if not received:
                return b"".join(parts)
            parts.append(received)
            total += len(received)
            _check_body(total)


def _parse_head(head: bytes) -> tuple[bool, int, dict[str, str]]:
    """Whether the connection stays open, the status, and the headers by their names in small letters."""
    text = head.decode("latin-1")
    first, *lines = text.split("\r\n")
    version, _, reason = first.partition(" ")
    status = reason[:3]
    is_status = len(status) == 3 and status.isascii() and status.isdigit() and reason[3:4] in ("", " ")  # noqa: PLR2004
    if version not in ("HTTP/1.1", "HTTP/1.0") or not is_status or status < "100" or status == "101":
        raise _BrokenError("it does not begin as an HTTP answer")
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        raise _BrokenError("a header is garbled")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or " " in name or "\t" in name:
            raise _BrokenError("a header is garbled")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower(), int(status), headers


def _length(text: str) -> int:
    most_digits = 8  # of MAX_BODY
    if not text.isascii() or not text.isdigit() or len(text) > most_digits:
        raise _BrokenError("its length is no number, or too large")
    length = int(text)
    _check_body(length)
    return length


def _chunk_size(line: bytes) -> int:
    """Of a chunk's first line.  What comes after a semicolon does not matter here."""
    most_digits = 7  # of MAX_BODY, in hexadecimal
    text = line.decode("latin-1").partition(";")[0].rstrip(" \t")
    if not text or len(text) > most_digits or not _HEX.issuperset(text):
        raise _BrokenError("a chunk's size is garbled")
    return int(text, 16)


def _check_body(size: int) -> None:
    if size > MAX_BODY:
        raise _BrokenError("it is too long")
