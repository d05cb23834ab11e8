"""What the runtime's tests take for granted of the Lambda that they run on."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from engines import EngineUnavailableError
from engines.plugin import entered
from engines.repository import ROOT
from stack import emulator
from stack.local_lambda import Function, Invocation, Settings, function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: It does what the event says.
HANDLER = """
import os, signal, sys, time

def handler(event, context):
    match event:
        case "raise":
            raise ValueError("as told")
        case "exit":
            os._exit(3)
        case "hang":
            signal.pause()
        case {"wait for": path}:
            while not os.path.exists(path):
                time.sleep(0.01)  # another process makes the file, and has no other way to say so here
        case "path":
            return sys.path
        case "remaining":
            return context.get_remaining_time_in_millis()
    return {"pid": os.getpid(), "variables": sorted(os.environ)}
"""


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Function]]:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "told.py").write_text(HANDLER, encoding="utf-8")
    with ExitStack() as stack:

        def deploy(handler: str = "told.handler", *, concurrency: int = 1, timeout_seconds: float = 30) -> Function:
            settings = Settings("told", handler, tmp_path / "task", {"OWN": "1"}, timeout_seconds, concurrency)
            return entered(stack, function(settings, tmp_path / "log"), "Lambda's runtime")

        yield deploy


def state(pid: int) -> str:
    """The process's state, as ps tells it: T of one that is stopped; nothing of one that has ended."""
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()[:1]


def test_an_environment_is_used_again_and_frozen_in_between(deploy: Callable[..., Function]) -> None:
    deployed = deploy()

    first, second = deployed.invoke({}), deployed.invoke({})

    assert first.payload["pid"] == second.payload["pid"]
    assert state(first.payload["pid"]) == "T"


def test_a_function_sees_lambdas_variables_and_its_own_and_none_of_this_process(
    deploy: Callable[..., Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    seen = deploy().invoke({}).payload["variables"]

    assert {"OWN", "AWS_LAMBDA_FUNCTION_NAME", "AWS_REGION"} <= set(seen)
    assert "PYTHONPATH" not in seen
    assert "HOME" not in seen


def test_a_function_finds_no_module_of_the_repository(deploy: Callable[..., Function], tmp_path: Path) -> None:
    found = deploy().invoke("path").payload

    assert found[0] == str(tmp_path / "task")
    assert str(ROOT) not in found
    assert str(ROOT / "tests") not in found


def test_an_error_of_the_function_is_an_answer(deploy: Callable[..., Function]) -> None:
    answer = deploy().invoke("raise")

    assert (answer.status, answer.error_type, answer.payload["errorMessage"]) == (200, "ValueError", "as told")


def test_a_function_that_cannot_be_imported_is_an_answer(deploy: Callable[..., Function]) -> None:
    deployed = deploy("untold.handler")

    assert [deployed.invoke({}).error_type for _ in range(2)] == ["Runtime.ExitError"] * 2
    assert "No module named 'untold'" in deployed.log()


def test_a_process_that_ends_is_replaced_at_the_next_invocation(deploy: Callable[..., Function]) -> None:
    deployed = deploy()
    before = deployed.invoke({}).payload["pid"]

    ended = deployed.invoke("exit")

    assert ended.payload["errorMessage"].endswith("Runtime exited with error: exit status 3")
    assert state(before) == ""
    assert deployed.invoke({}).payload["pid"] != before


def test_an_invocation_is_killed_at_its_deadline(deploy: Callable[..., Function]) -> None:
    deployed = deploy(timeout_seconds=0.5)
    deployed.warm()
    [pid] = deployed.pids

    answer = deployed.invoke("hang")

    assert answer.payload["errorMessage"].endswith("Task timed out after 0.50 seconds")
    assert state(pid) == ""


def test_a_function_knows_its_deadline(deploy: Callable[..., Function]) -> None:
    remaining_ms = deploy(timeout_seconds=30).invoke("remaining").payload

    assert 0 < remaining_ms <= 30_000


def test_an_invocation_is_refused_while_all_environments_are_busy(deploy: Callable[..., Function], tmp_path: Path) -> None:
    deployed, gate = deploy(concurrency=2), tmp_path / "gate"
    deployed.warm()
    with ThreadPoolExecutor(2) as threads:
        busy = [Invocation({"wait for": str(gate)}) for _ in range(2)]
        answers = [threads.submit(deployed.run, invocation) for invocation in busy]
        for invocation in busy:
            assert invocation.begun.wait(30)

        refused = deployed.invoke({})

        gate.touch()
    assert refused.status == 429
    assert {answer.result().payload["pid"] for answer in answers} == deployed.pids


def test_an_invocation_may_be_killed_at_any_moment(deploy: Callable[..., Function]) -> None:
    deployed, invocation = deploy(), Invocation("hang")
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(deployed.run, invocation)
        assert invocation.begun.wait(30)
        assert invocation.environment is not None

        invocation.environment.kill()

        assert answer.result().payload["errorMessage"].endswith("Runtime exited with error: signal: SIGKILL")


def test_an_invocation_that_is_frozen_outlives_its_deadline_until_it_thaws(
    deploy: Callable[..., Function], tmp_path: Path
) -> None:
    deployed, gate = deploy(timeout_seconds=0.5), tmp_path / "gate"
    deployed.warm()
    invocation = Invocation({"wait for": str(gate)})
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(deployed.run, invocation)
        assert invocation.begun.wait(30)
        assert invocation.environment is not None
        invocation.environment.freeze()
        with pytest.raises(TimeoutError):
            answer.result(timeout=1)
        gate.touch()

        invocation.environment.thaw()

        assert not answer.result().is_error


def test_environments_frozen_or_busy_end_with_the_process_that_deployed_them_even_if_that_is_killed(
    deploy: Callable[..., Function], tmp_path: Path
) -> None:
    deploy()  # or there is no runtime to deploy with
    program = f"""
import sys
from pathlib import Path
from threading import Thread
from stack.local_lambda import Invocation, Settings, function
here = Path({str(tmp_path)!r})
with function(Settings("told", "told.handler", here / "task", {{}}, concurrency=2), here / "log") as deployed:
    deployed.warm()
    busy = Invocation("hang")
    Thread(target=deployed.run, args=[busy], daemon=True).start()
    busy.begun.wait()
    print(*deployed.pids, flush=True)
    sys.stdin.read()
"""
    command, variables = [sys.executable, "-P", "-c", program], os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as deployer:
        assert deployer.stdout is not None
        pids = [int(pid) for pid in deployer.stdout.readline().split()]
        assert len([pid for pid in pids if state(pid) == "T"]) == 1

        deployer.kill()

        while any(state(pid) not in {"", "Z"} for pid in pids):
            pass  # they have no other way to say that they have ended


def test_without_the_runtime_client_there_is_a_reason(
    deploy: Callable[..., Function], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emulator, "ENVIRONMENTS", tmp_path)

    with pytest.raises(EngineUnavailableError, match=r"there is no .*runtime/bin/python; `make e2e` makes it"):
        function(Settings("told", "told.handler", tmp_path, {}), tmp_path / "log").__enter__()
