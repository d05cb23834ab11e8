"""A process killed at each step of a call, and the redelivery in another: one effect, and no key stuck beyond its lease."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from doubles import START_MS, FakeClock
from fault import worker as worker_module
from fault.worker import STEPS, worker
from faults import KEY, ORDER
from stores import Made, dynamodb

from idempotency import IdempotencyAlreadyInProgressError


@pytest.fixture(scope="module")
def killed(dynamodb_local: str) -> dict[str, Made]:
    """By step: the store of a worker that was killed there.  All of them die at the same time, to save some."""
    processes, places = {}, {}
    environment_path = [path for path in sys.path if path]
    for step in STEPS:
        places[step] = dynamodb(FakeClock(), dynamodb_local)
        table = places[step].store.table_name
        program = [sys.executable, "-P", "-c", _PROGRAM, *environment_path, "--", dynamodb_local, table, step, str(START_MS)]
        processes[step] = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for step, process in processes.items():
        said, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, (step, said.decode())
    return places


#: Gives the worker this process's import path: the packages under test may be installed, or not.
_PROGRAM = f"""
import runpy, sys
end = sys.argv.index("--")
sys.path[:] = sys.argv[1:end]
sys.argv[1:] = sys.argv[end + 1:]
runpy.run_path({str(Path(worker_module.__file__))!r}, run_name="__main__")
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_redelivery_after_a_kill_leaves_one_completed_effect(killed: dict[str, Made], step: str) -> None:
    """Refused while the dead worker's lease lasts, unless it had completed; run in the first millisecond after it."""
    place = killed[step]
    clock = FakeClock()
    place.store.clock_ms = clock
    work = worker(place.store.client, place.store)

    clock.advance(seconds=60)
    if step == "after the completion":
        assert work(event=ORDER) == "done"
    else:
        with pytest.raises(IdempotencyAlreadyInProgressError):
            work(event=ORDER)
        clock.advance(ms=1)
    assert work(event=ORDER) == "done"
    assert work(event=ORDER) == "done"

    items = place.store.client.scan(TableName=place.store.table_name, ConsistentRead=True)["Items"]
    assert len([item for item in items if item["id"]["S"].startswith("effect ")]) == 1
    assert place.peek(KEY)["status"] == "COMPLETED"
    assert place.peek(KEY)["generation"] == (1 if step == "after the completion" else 2)
