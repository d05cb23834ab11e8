"""AWS's services on this machine: ministack with IAM enforced, on a random port of the loopback, for as long as a test needs it.

It is not AWS.  What it lacks is partly made up for (see `strict_ministack`); what it cannot show is told in docs/deploy.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engines import EngineUnavailableError
from engines.caches import free_port
from engines.lifeline import tied
from engines.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"
#: Whoever has these may do everything, as the root user of an account.
ROOT_KEY: Final = "testing"
ENVIRONMENTS: Final = Path(os.environ.get("IDEMPOTENCY_TEST_ENVIRONMENTS", ROOT / ".venvs"))
PROGRAM: Final = Path(__file__).with_name("strict_ministack.py")
#: It takes about 1 s on a quiet machine with two cores.  Less than a test's timeout, so that the reason is heard.
START_SECONDS: Final = 45
#: Another process may take the port between our choice and the server's start.
STARTS: Final = 3


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    port: int
    version: str
    log: Path

    @property
    def endpoint(self) -> str:
        """Where the services are, and the HTTP APIs under the host names that AWS gives them."""
        return f"http://{HOST}:{self.port}"

    @property
    def address(self) -> str:
        """The same as HOST:PORT."""
        return f"{HOST}:{self.port}"

    def client(self, service: str, credentials: dict[str, Any] | None = None) -> Any:
        """A client of its own for the caller, who closes it.  It has all rights, or those of the *credentials*."""
        return _session().client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=credentials["AccessKeyId"] if credentials else ROOT_KEY,
            aws_secret_access_key=credentials["SecretAccessKey"] if credentials else ROOT_KEY,
            aws_session_token=credentials.get("SessionToken") if credentials else None,
        )

    def user(self, name: str, *actions: str) -> dict[str, Any]:
        """The credentials of a new user, who may do this and nothing else."""
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": statement})
        with closing(self.client("iam")) as iam:
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document)
            credentials: dict[str, Any] = iam.create_access_key(UserName=name)["AccessKey"]
            return credentials

    def last_words(self, characters: int = 20_000) -> str:
        """The end of what the emulator has logged, the output of functions included."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]


@contextmanager
def running() -> Iterator[Emulator]:
    """Start an emulator without resources, and kill it afterwards, also if this process is killed.

    Raises:
        EngineUnavailableError: it is not on this machine, or does not start.
    """
    server, function = find_python("ministack"), find_python("runtime")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ministack-")))
        log = stack.enter_context((scratch / "log").open("w+", encoding="utf-8"))
        for _ in range(STARTS):
            port = free_port()
            process = stack.enter_context(tied(_command(server, function, scratch, port), cwd=scratch, output=log))
            if _answers(process, port):
                yield Emulator(port, _version(server), scratch / "log")
                return
            if process.poll() is None:
                break  # it hangs, and it is not for want of a port
        log.seek(0)
        raise EngineUnavailableError(f"it does not start, its last words are: {log.read().strip()[-1000:]}")


def find_python(environment: str) -> Path:
    """The interpreter of one of the virtual environments.

    Raises:
        EngineUnavailableError: the environment was not made.
    """
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        raise EngineUnavailableError(f"there is no {python}; `make e2e` makes it")
    return python


def _command(server: Path, function: Path, scratch: Path, port: int) -> list[str]:
    environment = {
        "PATH": os.defpath,
        "TMPDIR": scratch,  # functions are unpacked here
        "HOME": scratch,
        "PYTHONUNBUFFERED": "1",
        "BIND_HOST": HOST,
        "GATEWAY_PORT": port,
        "AUTH": "true",
        "LOG_LEVEL": "INFO",  # a function's output is logged at this level
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": f"unix://{scratch}/no-docker",  # it would remove containers that it takes for its own
        "MINISTACK_REGION": REGION,
        "AWS_ACCESS_KEY_ID": ROOT_KEY,
        "AWS_SECRET_ACCESS_KEY": ROOT_KEY,
        "FUNCTION_PYTHON": function,
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    # `env -i`: nothing of our environment reaches the functions.
    return ["env", "-i", *settings, str(server), "-I", str(PROGRAM)]


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the emulator is ready.  False if it ended, or is not after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _is_ready(port):
            return True
        time.sleep(0.05)  # noqa: TID251 - the server has no other way to say that it is ready
    return False


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/_ministack/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@cache
def _version(python: Path) -> str:
    command = [str(python), "-c", "import importlib.metadata as m; print(m.version('ministack'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@cache
def _session() -> Any:
    """One for all: it caches the service descriptions, which take longer to read than a client to make."""
    from boto3.session import Session

    return Session()
