"""Lambda on this machine: AWS's own runtime client, one process per execution environment, and the service around it.

An environment takes one invocation at a time, is frozen between two of them, and is killed at the deadline.  A function has as
many environments as it may; further invocations are refused.  A test may kill or freeze an environment at any moment.

What Lambda has and this has not: limits of memory and CPU, extensions, SnapStart, retries of asynchronous invocations, and the
`/tmp` that a restarted environment finds again.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import IO, TYPE_CHECKING, Any, Final

from stack.emulator import HOST, REGION, find_python

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

API: Final = "/2018-06-01/runtime/"
ACCOUNT: Final = "123456789012"
MEMORY_MB: Final = 512
#: Lambda allows ten: https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html#runtimes-lifecycle-ib
#: A busy machine may need more, and what a slow start leads to is not tested here.
INIT_SECONDS: Final = 50


@dataclass(frozen=True)
class Answer:
    """What the caller of an invocation gets.

    Attributes:
        status: 200, also if the function failed; 429 if no environment was free.
        payload: What the function returned, or its error as `errorType` and `errorMessage`.
        is_error: Whether the function failed.
    """

    status: int
    payload: Any
    is_error: bool = False

    @property
    def error_type(self) -> str | None:
        return self.payload["errorType"] if self.is_error else None


@dataclass(eq=False)
class Invocation:
    """One delivery of an event.

    Attributes:
        trace_id: The SDK sends it along with the function's requests: https://docs.aws.amazon.com/lambda/latest/dg/invocation-recursion.html
        environment: Where it runs; None until it does.
        deadline_ms: When it is stopped; 0 until it runs.
        begun: Set when the runtime is given it, or has ended before.
    """

    event: Any
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))  # noqa: TID251 - nobody's key
    environment: Environment | None = field(default=None, repr=False)
    deadline_ms: int = 0
    begun: Event = field(default_factory=Event, repr=False)
    answer: Future[Answer] = field(default_factory=Future, repr=False)

    @property
    def trace_id(self) -> str:
        digits = self.request_id.replace("-", "")
        return f"Root=1-{digits[:8]}-{digits[8:]};Parent={digits[:16]};Sampled=0"

    def settle(self, answer: Answer) -> None:
        """Answer the caller, who takes the first answer.  Only the environment's own lock keeps two from coming at once."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def failed(self, error_type: str, message: str) -> Answer:
        """The answer when Lambda, and not the function, says what went wrong."""
        return Answer(
            200, {"errorType": error_type, "errorMessage": f"RequestId: {self.request_id} Error: {message}"}, is_error=True
        )


@dataclass(frozen=True)
class Settings:
    """What a template says of a function.

    Attributes:
        task_root: The folder with the built function, and all that it can import.
        variables: Its environment variables.
        concurrency: How many environments it may have.
    """

    name: str
    handler: str
    task_root: Path
    variables: Mapping[str, str]
    timeout_seconds: float = 3
    concurrency: int = 1

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.name}"

    def environment(self, api: str, stream: str) -> dict[str, str]:
        """All that a runtime finds in its environment.

        https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
        """
        return {
            "PATH": os.defpath,
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "AWS_LAMBDA_RUNTIME_API": api,
            "_HANDLER": self.handler,
            "LAMBDA_TASK_ROOT": str(self.task_root),
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(MEMORY_MB),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": stream,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            **self.variables,
        }


class Function:
    """A deployed function.  `function()` makes one, and ends it."""

    def __init__(self, settings: Settings, python: Path, log: IO[str]) -> None:
        self.settings = settings
        self._python = python
        self._log = log
        self._will = _Will()
        self._idle: list[Environment] = []
        self._all: set[Environment] = set()
        self._lock = Lock()

    def invoke(self, event: Any) -> Answer:
        """Run the function, and wait for its answer.  A refusal is an answer, too."""
        return self.run(Invocation(event))

    def run(self, invocation: Invocation) -> Answer:
        """The same, for a caller who wants to know the invocation while it runs."""
        environment = self._acquire()
        if environment is None:
            return Answer(429, {"errorType": "TooManyRequestsException", "errorMessage": "Rate Exceeded."}, is_error=True)
        try:
            return environment.run(invocation)
        finally:
            self._release(environment)

    def warm(self) -> None:
        """Start as many environments as there may be, and wait until all are ready.  A cold start takes most of a second."""
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            starting = [each for _ in range(self.settings.concurrency) if (each := self._acquire()) is not None]
            for environment in threads.map(_started, starting):
                self._release(environment)

    @property
    def pids(self) -> set[int]:
        """The processes that there are."""
        with self._lock:
            return {environment.pid for environment in self._all}

    def log(self) -> str:
        """What the environments have written."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        """End all environments."""
        for environment in self._all:
            environment.close()
        self._will.close()

    def _acquire(self) -> Environment | None:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if len(self._all) == self.settings.concurrency:
                return None
            environment = Environment(self.settings, self._python, self._log, self._will)
            self._all.add(environment)
            return environment

    def _release(self, environment: Environment) -> None:
        """One that has ended makes room for another, as Lambda restarts the runtime for the next invocation."""
        if environment.has_ended.is_set():
            environment.close()
        with self._lock:
            if environment.has_ended.is_set():
                self._all.remove(environment)
            else:
                self._idle.append(environment)


@contextmanager
def function(settings: Settings, log: Path) -> Iterator[Function]:
    """Deploy a function whose environments write to *log*; they end with the block, also if this process is killed.

    Raises:
        EngineUnavailableError: the runtime client is not on this machine.
    """
    python = find_python("runtime")
    with log.open("a+", encoding="utf-8", errors="replace") as written:
        made = Function(settings, python, written)
        try:
            yield made
        finally:
            made.close()


class Environment:
    """One execution environment: a runtime's process, and the API that it asks for work.

    Attributes:
        has_ended: Set when the process has.
    """

    def __init__(self, settings: Settings, python: Path, log: IO[str], will: _Will) -> None:
        self._settings = settings
        self._will = will
        self._work: SimpleQueue[Invocation | None] = SimpleQueue()
        self._current: Invocation | None = None
        self._is_timed_out = False
        self._waits = Event()  # for work, or has ended
        self._runs = Event()  # is not stopped by a test
        self._runs.set()
        self.has_ended = Event()
        self._lock = Lock()

        class Handler(_Handler):
            environment = self

        self._server = _Server((HOST, 0), Handler)
        api = f"{HOST}:{self._server.server_port}"
        self._serving = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._serving.start()
        self._process = subprocess.Popen(
            # The task's root comes first on `sys.path`, as on Lambda, because it is the current folder.
            [str(python), "-s", "-m", "awslambdaric", settings.handler],
            cwd=settings.task_root,
            env=settings.environment(api, f"2026/11/21/[$LATEST]{self._server.server_port:032x}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the tests
        )
        self.pid = self._process.pid
        will.names(self.pid)
        self._watching = Thread(target=self._watch, daemon=True)
        self._watching.start()

    def started(self) -> None:
        """Wait until the runtime asks for work, or has ended.

        Raises:
            TimeoutError: it does neither.
        """
        if not self._waits.wait(INIT_SECONDS):
            raise TimeoutError(f"The runtime of {self._settings.name} neither starts nor ends")

    def run(self, invocation: Invocation) -> Answer:
        """Run one invocation, and wait until its answer is there and the runtime asks for more, or has ended."""
        self.started()
        with self._lock:
            self._current = invocation
            if self.has_ended.is_set():
                self._settle_as_ended(invocation)
            else:
                self._waits.clear()
                invocation.environment = self
                invocation.deadline_ms = int((time.time() + self._settings.timeout_seconds) * 1000)  # noqa: TID251 - Lambda's
                self._signal(signal.SIGCONT)
                self._work.put(invocation)
            invocation.begun.set()
        self._wait_for(invocation)
        return invocation.answer.result(timeout=0)  # it is there

    def kill(self) -> None:
        """End the process at once, as Lambda does, and wait until it has ended."""
        with self._lock:
            self._signal(signal.SIGKILL)
        self.has_ended.wait()

    def freeze(self) -> None:
        """Stop the process where it is, in the middle of an invocation, too.  Its time limit is suspended."""
        with self._lock:
            self._runs.clear()
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on, with a new time limit.  The deadline that it knows is the old one."""
        with self._lock:
            self._signal(signal.SIGCONT)
            self._runs.set()

    def close(self) -> None:
        """End the process and its API."""
        self.kill()
        self._watching.join()
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()

    def next(self) -> Invocation | None:
        """The next invocation for the runtime, which is frozen until there is one; None if it has ended meanwhile."""
        with self._lock:
            self._current = None
            if not self.has_ended.is_set():
                self._signal(signal.SIGSTOP)
        self._waits.set()
        return self._work.get()

    def answered(self, request_id: str, answer: Answer) -> None:
        """The runtime has answered.  Whether anybody waits for it is not its business."""
        with self._lock:
            if self._current is not None and self._current.request_id == request_id:
                self._current.settle(answer)

    def _wait_for(self, invocation: Invocation) -> None:
        """Stop the invocation when its time is over, but not while the test has stopped it."""
        while not self._is_done_in_time():
            if not self._runs.is_set():
                self._runs.wait()
                continue
            self._is_timed_out = True
            self.kill()

    def _is_done_in_time(self) -> bool:
        return self._waits.wait(self._settings.timeout_seconds)

    def _signal(self, number: signal.Signals) -> None:
        """Under the lock, and not to a process that somebody has waited for: its number may be another's by now."""
        if self._process.returncode is None:
            os.kill(self.pid, number)

    def _watch(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._will.forgets(self.pid)
        with self._lock:
            self._process.wait()
            self.has_ended.set()
            if self._current is not None:
                self._settle_as_ended(self._current)
        self._work.put(None)
        self._waits.set()
        self._runs.set()

    def _settle_as_ended(self, invocation: Invocation) -> None:
        if self._is_timed_out:
            seconds = self._settings.timeout_seconds
            answer = invocation.failed("Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds")
        else:
            code = self._process.returncode
            how = f"exit status {code}" if code >= 0 else f"signal: {signal.Signals(-code).name}"
            answer = invocation.failed("Runtime.ExitError", f"Runtime exited with error: {how}")
        invocation.settle(answer)


def _started(environment: Environment) -> Environment:
    environment.started()
    return environment


class _Handler(BaseHTTPRequestHandler):
    """The Runtime API.

    https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
    """

    protocol_version = "HTTP/1.1"
    # Else a call costs 40 ms more, by Nagle's algorithm and the delayed acknowledgement of the other side.
    disable_nagle_algorithm = True
    wbufsize = -1
    environment: Environment

    def do_GET(self) -> None:
        if self.path != f"{API}invocation/next":
            self.answer(404, b"")
            return
        invocation = self.environment.next()
        if invocation is None:
            self.close_connection = True
            return
        self.answer(
            200,
            json.dumps(invocation.event).encode(),
            {
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": self.environment._settings.arn,
                "Lambda-Runtime-Trace-Id": invocation.trace_id,
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.path.removeprefix(API).split("/"):
            case ["invocation", request_id, "response"]:
                self.environment.answered(request_id, Answer(200, json.loads(body)))
            case ["invocation", request_id, "error"]:
                self.environment.answered(request_id, Answer(200, json.loads(body), is_error=True))
            case _:  # an error of its start, after which it ends
                pass
        self.answer(202, b'{"status": "OK"}')

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the runtime was killed
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except ConnectionError:
            return

    def log_message(self, *_: object) -> None:
        """The tests' output is theirs."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Will:
    """Has the processes killed that are left when this one dies, even if it is killed, and even if they are stopped."""

    #: It lives until its standard input ends, which happens by our death, too.
    _EXECUTOR: Final = """
import os, signal, sys
names = set()
for line in sys.stdin:
    (names.add if line[0] == "+" else names.discard)(int(line[1:]))
for name in names:
    os.kill(name, signal.SIGKILL)
"""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-c", self._EXECUTOR]
        # A session of its own: Ctrl-C is for the tests.
        self._executor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._lock = Lock()

    def names(self, pid: int) -> None:
        """The process is to be killed."""
        self._write(f"+{pid}\n")

    def forgets(self, pid: int) -> None:
        """The process has ended, and its number will be another's."""
        self._write(f"-{pid}\n")

    def close(self) -> None:
        self._executor.communicate()

    def _write(self, line: str) -> None:
        with self._lock:
            assert self._executor.stdin is not None
            self._executor.stdin.write(line.encode())
            self._executor.stdin.flush()
