"""AWS's own emulator of the Runtime API, for one execution environment: the program that `sam local` puts into containers.

Lambda does more than it: it runs as many environments as there are invocations, and freezes them between two.

https://github.com/aws/aws-lambda-runtime-interface-emulator
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

from engines import EngineUnavailableError
from engines.caches import free_port
from engines.lifeline import tied

from stack.emulator import HOST, find_python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import Popen

    from stack.local_lambda import Settings

INVOCATIONS: Final = "/2015-03-31/functions/function/invocations"
PROGRAMS: Final = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
#: Less than a test's timeout, so that the reason is heard.
START_SECONDS: Final = 45
ANSWER_SECONDS: Final = 50
#: Another process may take a port between our choice and the program's start.
STARTS: Final = 3


class EmulatedEnvironment:
    """One execution environment behind AWS's emulator.  Two invocations at once end it."""

    def __init__(self, port: int, log: Path) -> None:
        self._port = port
        self._log = log

    def invoke(self, event: Any) -> Any:
        """What the function returned, or its error as `errorType` and `errorMessage`; a text if it ran out of time."""
        connection = HTTPConnection(HOST, self._port, timeout=ANSWER_SECONDS)
        try:
            connection.request("POST", INVOCATIONS, json.dumps(event), {"Content-Type": "application/json"})
            said = connection.getresponse().read().decode()
        finally:
            connection.close()
        try:
            return json.loads(said)
        except ValueError:
            return said

    def log(self) -> str:
        """What the emulator and the function have written."""
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def environment(settings: Settings, log: Path) -> Iterator[EmulatedEnvironment]:
    """Start an environment that writes to *log*; it ends with the block, also if this process is killed.

    Its function starts with the first invocation, or with the first after it has ended, and the time limit includes that.  The
    limit is in whole seconds.

    Raises:
        EngineUnavailableError: the emulator, or the runtime client, is not on this machine or does not start.
    """
    program, python = find_program(), find_python("runtime")
    for _ in range(STARTS):
        port, api_port = free_port(), free_port()
        command = _command(program, python, settings, port, api_port)
        with log.open("a+", encoding="utf-8") as written, tied(command, cwd=settings.task_root, output=written) as process:
            if _listens(process, port):
                yield EmulatedEnvironment(port, log)
                return
    raise EngineUnavailableError(f"it does not start, its last words are: {log.read_text(encoding='utf-8')[-1000:]}")


def find_program() -> Path:
    """The emulator, which comes with the wheel of sam.

    Raises:
        EngineUnavailableError: it does not, or not for this machine.
    """
    home = find_python("sam").parents[1]
    name = f"aws-lambda-rie-{PROGRAMS.get(platform.machine(), platform.machine())}"
    for program in home.glob(f"lib/python*/site-packages/samcli/local/rapid/{name}"):
        if platform.system() == "Linux":
            return program
    raise EngineUnavailableError(f"there is no {name} for {platform.system()} in {home}")


def _command(program: Path, python: Path, settings: Settings, port: int, api_port: int) -> list[str]:
    api = f"{HOST}:{api_port}"
    variables = settings.environment(api, "emulated") | {"AWS_LAMBDA_FUNCTION_TIMEOUT": f"{settings.timeout_seconds:.0f}"}
    addresses = ["--runtime-interface-emulator-address", f"{HOST}:{port}", "--runtime-api-address", api]
    client = [str(python), "-s", "-m", "awslambdaric", settings.handler]
    # `env -i`: nothing of our environment reaches the function.
    return ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), str(program), *addresses, *client]


def _listens(process: Popen[bytes], port: int) -> bool:
    """Wait until the emulator takes connections.  False if it ended, or does not after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = HTTPConnection(HOST, port, timeout=5)
        try:
            connection.connect()
        except OSError:
            time.sleep(0.01)  # noqa: TID251 - it has no other way to say that it is ready
        else:
            return True
        finally:
            connection.close()
    return False
