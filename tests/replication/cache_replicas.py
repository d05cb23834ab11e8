"""A Valkey master with a replica, and an address that leads to the one that is master: what a failover is made of."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import TYPE_CHECKING

from engines.caches import HOST, START_SECONDS, Node, _within, find_valkey, free_port, node
from engines.lifeline import tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The shortest way to a replica in step, a fifth of a second.  By the others either end looks once a second for what has come.
AT_ONCE = ("--repl-diskless-sync", "no", "--repl-diskless-load", "swapdb", "--hz", "100")


def until(happens: Callable[[], bool]) -> None:
    """Wait until something has happened at a server.

    Raises:
        TimeoutError: it does not.
    """
    if not _within(START_SECONDS, happens):
        raise TimeoutError("What was to happen at the server does not")


@dataclass
class Pair:
    """A master and its replica."""

    master: Node
    replica: Node

    def follow(self) -> None:
        """Have the replica follow the master, and wait until it does."""
        self.replica.says("REPLICAOF", HOST, str(self.master.port))
        until(lambda: "master_link_status:up" in self.replica.says("INFO", "replication"))

    def replicate(self, key: str) -> None:
        """Wait until the replica has the key's present value."""
        until(lambda: self.replica.says("GET", key) == self.master.says("GET", key))

    def promote(self) -> None:
        """Make the replica a master, which takes what it has for the truth."""
        self.replica.says("REPLICAOF", "NO", "ONE")

    def demote(self) -> None:
        """Have the old master follow the new one, as Sentinel and managed services do when it is back."""
        self.master.says("REPLICAOF", HOST, str(self.replica.port))

    def stop_replica(self) -> None:
        """The replica neither receives nor acknowledges anything, and nobody is told."""
        _signal(self.replica, signal.SIGSTOP)

    def wake_replica(self) -> None:
        """It goes on where it was stopped."""
        _signal(self.replica, signal.SIGCONT)


def _signal(server: Node, number: signal.Signals) -> None:
    os.kill(int(server._pid_file.read_text(encoding="utf-8")), number)


@contextmanager
def pair() -> Iterator[Pair]:
    """Start both, in step with each other."""
    with node(find_valkey, *AT_ONCE) as master, node(find_valkey, *AT_ONCE) as replica:
        made = Pair(master, replica)
        made.follow()
        yield made


#: Under which Sentinel's clients ask for the master.
MASTER = "main"


@contextmanager
def sentinel(servers: Pair) -> Iterator[Node]:
    """A Sentinel that makes the replica a master soon after the master has died.

    It decides alone, which is for tests only: https://valkey.io/topics/sentinel/.
    """
    port = free_port()
    with TemporaryDirectory(prefix="sentinel-") as home:
        file, log = Path(home, "conf"), Path(home, "log")
        settings = {"bind": HOST, "port": port, "dir": home, "sentinel monitor": f"{MASTER} {HOST} {servers.master.port} 1"}
        # A busy machine is silent for some tenths of a second, and a failover that fails is tried again after twice its timeout.
        settings["sentinel down-after-milliseconds"] = f"{MASTER} 500"
        settings["sentinel failover-timeout"] = f"{MASTER} 3000"
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
        with log.open("w") as output, tied([find_valkey(), str(file), "--sentinel"], cwd=Path(home), output=output):
            made = Node("", port, Path(home), (), ExitStack())
            until(lambda: str(servers.replica.port) in made.says("SENTINEL", "REPLICAS", MASTER))
            yield made


def is_known_to(watching: Node, servers: Pair) -> bool:
    """Whether Sentinel has made the replica a master, and says so to clients."""
    return str(servers.replica.port) in watching.says("SENTINEL", "GET-PRIMARY-ADDR-BY-NAME", MASTER)


class Address:
    """A port that leads to a server, and to another one after a failover.  Connections that are open stay where they lead.

    Attributes:
        leads_to: The server's port, for the connections to come.
    """

    def __init__(self, leads_to: int) -> None:
        self.leads_to = leads_to
        self._door = socket.create_server((HOST, 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._start(self._open)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self._door.getsockname()[1]}"

    def close(self) -> None:
        """Cut all connections, and wait until nothing is under way."""
        for each in (self._door, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._door, *self._sockets):
            each.close()

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open(self) -> None:
        while True:
            try:
                inner, _ = self._door.accept()
            except OSError:
                return
            self._sockets.append(inner)
            try:
                outer = socket.create_connection((HOST, self.leads_to))
            except OSError:
                inner.shutdown(socket.SHUT_RDWR)
                continue
            self._sockets.append(outer)
            self._start(self._pass_on, inner, outer)
            self._start(self._pass_on, outer, inner)

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def address(leads_to: int) -> Iterator[Address]:
    """An address, until the block ends."""
    with ExitStack() as stack:
        made = Address(leads_to)
        stack.callback(made.close)
        yield made
