"""A process killed at each step of a call, and the redelivery in another: one effect, and no key stuck beyond its lease."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doubles import FakeClock
from fault import worker as worker_module
from fault.worker import LEASE_SECONDS, MARGIN_MS, STEPS, worker
from faults import KEY, ORDER, SYNC, Suspended, keyed, raise_suspended
from stores import CLIENTS, Made, dynamodb

from idempotency import IdempotencyAlreadyInProgressError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Expected:
    """What follows a kill.

    Attributes:
        next: What a redelivery gets while the dead worker's lease lasts: "refused", "runs" or "replayed".
        attempts: How many attempts have asked for the effect in the end.
        generation: That of the completed record.
    """

    next: str
    attempts: int
    generation: int


EXPECTED = {
    "before the claim": Expected("runs", attempts=1, generation=1),
    "after the claim, its answer unread": Expected("refused", attempts=1, generation=2),
    "after the claim": Expected("refused", attempts=1, generation=2),
    "before the takeover": Expected("runs", attempts=1, generation=2),
    "after the takeover, its answer unread": Expected("refused", attempts=1, generation=3),
    "before the effect": Expected("refused", attempts=1, generation=2),
    "after the effect": Expected("refused", attempts=2, generation=2),
    "before the completion": Expected("refused", attempts=2, generation=2),
    "after the completion, its answer unread": Expected("replayed", attempts=1, generation=1),
    "after the completion": Expected("replayed", attempts=1, generation=1),
    "before the release": Expected("refused", attempts=2, generation=2),
    "after the release, its answer unread": Expected("runs", attempts=2, generation=1),
}


@dataclass
class Scene:
    """The table of a worker that was killed, and the time at which that was."""

    place: Made
    killed_ms: int

    @property
    def effects(self) -> list[dict[str, Any]]:
        items = self.place.client.scan(TableName=self.place.store.table_name, ConsistentRead=True)["Items"]
        return [item for item in items if item["id"]["S"].startswith("effect ")]


@pytest.fixture(scope="module", params=CLIENTS)
def killed(request: pytest.FixtureRequest, dynamodb_local: str) -> dict[str, Scene]:
    """By step: what a worker left that was killed there.  All of them die at the same time, to save some."""
    scenes = {}
    for step in STEPS:
        clock = FakeClock()
        place = dynamodb(clock, dynamodb_local, request.param)
        if "takeover" in step:
            leave_an_orphan(place, clock)
        scenes[step] = Scene(place, clock())
    tables = {step: (scene.place.store.table_name, scene.killed_ms) for step, scene in scenes.items()}
    path = [path for path in sys.path if path]
    program = [sys.executable, "-P", "-c", _PROGRAM, *path, "--", dynamodb_local, request.param, json.dumps(tables)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(STEPS, signal.SIGKILL), done.stderr
    return scenes


def leave_an_orphan(place: Made, clock: FakeClock) -> None:
    """An attempt that crashed before its effect, and whose lease has ended."""
    with pytest.raises(Suspended):
        SYNC.function(lambda _event: raise_suspended(), place.store, keyed(lease_seconds=LEASE_SECONDS))(ORDER)
    clock.advance(ms=1000 * LEASE_SECONDS + MARGIN_MS + 1)


#: Gives the worker this process's import path: the packages under test may be installed, or not.
_PROGRAM = f"""
import runpy, sys
end = sys.argv.index("--")
sys.path[:] = sys.argv[1:end]
sys.argv[1:] = sys.argv[end + 1:]
runpy.run_path({str(Path(worker_module.__file__))!r}, run_name="__main__")
"""


def test_every_step_has_its_expectation() -> None:
    assert set(EXPECTED) == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_every_caller_gets_one_result_and_no_key_is_stuck_beyond_its_lease(
    killed: dict[str, Scene], step: str
) -> None:
    """In the last millisecond of the dead worker's lease, in the first after it, and once more."""
    scene, expected = killed[step], EXPECTED[step]
    clock = FakeClock(scene.killed_ms)
    store = scene.place.store
    store.clock_ms = clock
    work: Callable[..., str] = worker(store.client, store)
    runs_before = len(attempts_of(scene))

    clock.advance(ms=1000 * LEASE_SECONDS + MARGIN_MS)
    results = []
    if expected.next == "refused":
        with pytest.raises(IdempotencyAlreadyInProgressError):
            work(event=ORDER)
    else:
        results.append(work(event=ORDER))
        assert len(attempts_of(scene)) - runs_before == (expected.next == "runs")
    clock.advance(ms=1)
    results += [work(event=ORDER), work(event=ORDER)]

    record = scene.place.peek(KEY)
    assert {f'"{result}"' for result in results} == {record["data"]}
    assert (record["status"], record["generation"]) == ("COMPLETED", expected.generation)
    assert len(scene.effects) == 1
    assert len(attempts_of(scene)) == expected.attempts


def attempts_of(scene: Scene) -> list[str]:
    """The attempts that asked for the effect."""
    return [token for effect in scene.effects for token in effect["by"]["SS"]]
