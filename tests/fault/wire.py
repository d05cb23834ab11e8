"""A server in front of DynamoDB Local that writes its answers by hand: what a client sees that reads them by hand, too.

`FaultProxy` harms whole requests; this one cuts, garbles, repeats and delays single bytes, and ends connections when it is told.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import suppress
from http.client import HTTPConnection
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zlib import crc32

from fault.proxy import Answer, Request, forward

if TYPE_CHECKING:
    from collections.abc import Callable

    #: What is done with a request: on its connection, with a way to have it applied and answered.
    Deed = Callable[["Peer", Request, Callable[[], Answer]], object]


class Wire:
    """Serves `url` until `stop`, and passes each request on unless a deed is named for it.

    Attributes:
        calls: How many requests of each operation came.
        log: The connection of each request, counted from 1, and its body's parameters.
        peers: The connections, in their order.
        judge: Names the deed for a request that `at` does not name; None passes it on.
    """

    def __init__(self, endpoint: str) -> None:
        self.calls: Counter[str] = Counter()
        self.log: list[tuple[int, dict[str, Any]]] = []
        self.peers: list[Peer] = []
        self.stopped = Event()
        self.judge: Callable[[Request], Deed | None] = lambda _: None
        self._deeds: dict[tuple[str, int], Deed] = {}
        self._lock = Lock()
        self._target = urlsplit(endpoint).netloc
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def at(self, operation: str, call: int, deed: Deed) -> None:
        """Name the deed for a call of an operation (its API name), counted from 1 from now on."""
        self._deeds[operation, self.calls[operation] + call] = deed

    def end(self, *, reset: bool = False) -> None:
        """End every connection; when this returns, its client can know."""
        for peer in self.peers:
            peer.end(reset=reset)

    def stop(self) -> None:
        """Close all that is open."""
        self.stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.end()

    def _accept(self) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                connection, _ = self._listener.accept()
                self.peers.append(Peer(self, len(self.peers) + 1, connection))
                self.peers[-1].start()

    def received(self, peer: Peer, operation: str, path: str, headers: dict[str, str], body: bytes) -> tuple[Request, Deed]:
        """Count a request, and say what is to be done with it."""
        with self._lock:
            self.calls[operation] += 1
            request = Request(operation, self.calls[operation], path, headers, body)
            self.log.append((peer.number, request.parameters))
            return request, self._deeds.get((operation, request.number)) or self.judge(request) or answered

    def upstream(self) -> HTTPConnection:
        return HTTPConnection(self._target)


class Peer:
    """One connection.  *owed* are bytes that go before its next answer, as of a server that comes to them late."""

    def __init__(self, wire: Wire, number: int, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.owed = b""
        self.is_over = False
        self._wire = wire
        self._socket = connection
        self._upstream = wire.upstream()
        self._thread = Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def end(self, *, reset: bool = False) -> None:
        """End it; on *reset* at once, as by a server that has gone, and not after what was sent."""
        with suppress(OSError):  # the client has closed it
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
        self._thread.join()

    def break_off(self) -> None:
        """Reset it from within a deed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_over = True

    def _serve(self) -> None:
        with self._socket, suppress(OSError), self._socket.makefile("rb") as stream:
            while not self.is_over and (start := stream.readline()):
                lines = iter(lambda: stream.readline().decode().strip(), "")
                headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
                body = stream.read(int(headers["Content-Length"]))
                path, operation = start.decode().split(" ")[1], headers["X-Amz-Target"].partition(".")[2]
                request, deed = self._wire.received(self, operation, path, headers, body)
                deed(self, request, lambda request=request: forward(self._upstream, request))
        self._upstream.close()


def written(answer: Answer, **changed: str) -> bytes:
    """The answer as it goes over the wire; *changed* headers are named with `_` for `-`, and come last."""
    replaced = {name.replace("_", "-"): value for name, value in changed.items()}
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in replaced}
    headers = {**headers, "Content-Length": str(len(answer.content)), **replaced}
    lines = [f"HTTP/1.1 {answer.status} Told", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
    return "\r\n".join(lines).encode() + answer.content


# Deeds


def answered(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """As it should be, after what is owed."""
    data = written(send())
    peer.send(peer.owed + data)
    peer.owed = b""


def dripped(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """One byte at a time."""
    for byte in written(send()):
        peer.send(bytes([byte]))


def twice(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """With all of it once more after its end."""
    peer.send(2 * written(send()))


def answered_for_the_last_time(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """The connection ends after the answer, which does not say so."""
    peer.send(written(send()))
    peer.is_over = True


def broken_off_in_the_head(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    peer.send(written(send())[:20])
    peer.break_off()


def broken_off_in_the_body(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    peer.send(written(send())[:-1])
    peer.break_off()


def broken_off_unread(peer: Peer, _request: Request, _send: Callable[[], Answer]) -> None:
    """The request is not applied."""
    peer.break_off()


def with_another_checksum(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    answer = send()
    peer.send(written(answer, x_amz_crc32=str(crc32(answer.content) ^ 1)))


def with_another_byte(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """A bit of the body has flipped, and it is JSON nevertheless.

    The checksum is added here, because DynamoDB Local, unlike DynamoDB, sends none with an error.
    """
    answer = send()
    content = answer.content.replace(b"paid", b"pAid") if b"paid" in answer.content else b" " + answer.content[:-1] + b" "
    peer.send(written(Answer(answer.status, answer.headers, content), x_amz_crc32=str(crc32(answer.content))))


def late(peer: Peer, _request: Request, send: Callable[[], Answer]) -> None:
    """Not until the next request comes on this connection, if one does."""
    peer.owed = written(send())
