"""The clocks: contenders in turns, ratios within each turn, and what is told of them."""

from __future__ import annotations

import gc
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engines.lifeline import tied

from benchmarks import IMPORTED_FROM, cold_start
from benchmarks.places import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.places import Place
    from benchmarks.scenarios import Scenario

#: Seconds of each contender in each turn: long beside the clock's steps, short beside what disturbs a machine.
TURN_SECONDS: Final = 0.02
#: Calls of which the instructions are not counted: what is made at the first call, and what the first ones still warm up.
UNCOUNTED: Final = 5

VALGRIND: Final = which("valgrind")
#: https://valgrind.org/docs/manual/cg-manual.html
COUNTING: Final = [VALGRIND or "", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
_COUNTED: Final = re.compile(r"==(\d+)== I\s+refs:\s+([\d,]+)")


class Figure(NamedTuple):
    """What was measured of one contender.

    Attributes:
        metric: `cpu` and `wall` are seconds, `instructions` and `peak` (bytes of memory) what their names say.
        value: Of one call, the median.
        ratio: To the base in the same turn, the median; `low` and `high` are the quartiles.
        turns: How many there were.
    """

    place: str
    scenario: str
    contender: str
    base: str
    metric: str
    value: float
    ratio: float
    low: float
    high: float
    turns: int


def in_turns(scenario: Scenario, place: Place, turns: int, turn_seconds: float = TURN_SECONDS) -> list[Figure]:
    """CPU seconds of this process for one call of each contender; wall seconds where the waiting is what matters."""
    metric = "cpu" if scenario.counted else "wall"
    clock = time.process_time if scenario.counted else time.perf_counter
    with ExitStack() as stack:
        calls = {name: call.make for name, call in scenario.prepare(place, stack).items()}
        repeats = {name: _repeats(call, clock, turn_seconds) for name, call in calls.items()}
        gc.collect()
        order = list(calls)
        measured = []
        for turn in range(turns):  # each contender begins in turn, so that none always follows the same other
            first = turn % len(order)
            seconds = {name: _seconds(calls[name], clock, repeats[name]) for name in order[first:] + order[:first]}
            measured.append({name: seconds[name] for name in order})
    return figures(place.name, scenario.name, scenario.base, metric, measured)


def _repeats(call: Callable[[], object], clock: Callable[[], float], turn_seconds: float) -> int:
    first = _seconds(call, clock, 1)
    again = min(first, _seconds(call, clock, 1 if first > turn_seconds else 3))
    return max(1, round(turn_seconds / again))


def _seconds(call: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    begin = clock()
    for _ in range(repeats):
        call()
    return (clock() - begin) / repeats


def figures(place: str, scenario: str, base: str, metric: str, measured: list[dict[str, float]]) -> list[Figure]:
    """Medians of what was measured in each turn, by contender."""
    found = []
    for name in measured[0]:
        ratios = [turn[name] / turn[base] for turn in measured]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        value = median(turn[name] for turn in measured)
        found.append(Figure(place, scenario, name, base, metric, value, median(ratios), low, high, len(measured)))
    return found


# --- Instructions -----------------------------------------------------------------------------------------------------------


def instructions(scenarios: Iterable[Scenario], place: Place, fewer: int = 1) -> list[Figure]:
    """Instructions of one call of each contender, by valgrind: those of many calls minus those of a few, by the difference.

    *fewer* divides the number of calls.  As many processes as there are processors count side by side, which no count notices.
    """
    counted = [scenario for scenario in scenarios if scenario.counted]
    workers = min(os.cpu_count() or 1, len(counted))
    shares = [counted[start::workers] for start in range(workers)]
    with environment(AWS_ENDPOINT_URL=place.endpoint, **_children()), ThreadPoolExecutor(max(workers, 1)) as pool:
        return [figure for found in pool.map(lambda share: _count(share, place, fewer), shares) for figure in found]


def _count(scenarios: list[Scenario], place: Place, fewer: int) -> list[Figure]:
    names = [scenario.name for scenario in scenarios]
    said = output_of([*COUNTING, sys.executable, "-P", "-m", "benchmarks.instructions", place.endpoint, str(fewer), *names])
    runs = per_call(said)
    return [
        figure
        for scenario in scenarios
        for figure in figures(place.name, scenario.name, scenario.base, "instructions", [runs[scenario.name]])
    ]


def per_call(said: str) -> dict[str, dict[str, float]]:
    """Instructions of one call, by scenario and contender, from what valgrind and `instructions` have said."""
    by_process = {process: int(count.replace(",", "")) for process, count in _COUNTED.findall(said)}
    found: dict[str, dict[str, float]] = {}
    pairs = re.findall(r"^counted\t(\d+)\t(\d+)\t(.+)\t(.+)\ncounted\t(\d+)\t(\d+)\t\3\t\4$", _own_lines(said), re.MULTILINE)
    for least, few, scenario, contender, most, many in pairs:
        count = (by_process[most] - by_process[least]) / (int(many) - int(few))
        found.setdefault(scenario, {})[contender] = count
    return found


def _own_lines(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.startswith("counted"))


def _children() -> dict[str, str]:
    """The environment of child processes: they find this package, keep compiled modules, and have one order of sets."""
    return {"PYTHONPATH": str(IMPORTED_FROM), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}


def output_of(command: list[str]) -> str:
    """What a command says.  It ends when this process does.

    Raises:
        RuntimeError: it failed; the text is its last words.
    """
    with TemporaryFile("w+") as output:
        with tied(command, cwd=Path.cwd(), output=output) as process:
            code = process.wait()
        output.seek(0)
        said = output.read()
    if code:
        raise RuntimeError(f"{command} ended with {code}: {said[-2000:]}")
    return said


# --- Cold starts ------------------------------------------------------------------------------------------------------------


def cold_starts(place: Place, turns: int, *, counts: bool) -> list[Figure]:
    """Fresh interpreters over HTTPS: CPU seconds and instructions above one that does nothing, and peak memory in bytes."""
    found = []
    changes = {"AWS_ENDPOINT_URL": place.secure, "AWS_CA_BUNDLE": place.authority, **_children()}
    with environment(**changes), ThreadPoolExecutor(os.cpu_count()) as pool:
        for scenario, kind in (("cold start", "alone"), ("cold start after a boto3 client", "after-client")):
            names = list(cold_start.CONTENDERS)
            measured = [{name: _cold_start(kind, name) for name in names} for _ in range(turns + 1)][1:]  # the first one compiles
            total = [{name: turn[name][0] for name in names} for turn in measured]
            above = [_above(turn) for turn in total]
            peaks = [{name: turn[name][1] for name in names} for turn in measured]
            found += figures(place.name, scenario, cold_start.RAW, "cpu", above)
            found += figures(place.name, scenario, cold_start.RAW, "cpu with interpreter", total)
            found += figures(place.name, scenario, cold_start.RAW, "peak", peaks)
            if counts:
                said = pool.map(lambda name, kind=kind: output_of([*COUNTING, *_cold_command(kind, name)]), names)
                counted = [int(_COUNTED.findall(each)[-1][1].replace(",", "")) for each in said]
                counts_above = _above(dict(zip(names, map(float, counted), strict=True)))
                found += figures(place.name, scenario, cold_start.RAW, "instructions", [counts_above])
    return found


def _above(turn: dict[str, float]) -> dict[str, float]:
    return {name: value - turn[cold_start.NOTHING] for name, value in turn.items() if name != cold_start.NOTHING}


def _cold_command(kind: str, name: str) -> list[str]:
    return [sys.executable, "-P", cold_start.__file__, kind, name]


def _cold_start(kind: str, name: str) -> tuple[float, float]:
    cpu, peak = output_of(_cold_command(kind, name)).split()[-2:]
    return float(cpu), float(peak)


def machine() -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    from importlib.metadata import version
    from platform import machine as architecture
    from platform import platform, python_version

    cpu = re.search(r"^model name\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": python_version(),
        "boto3": version("boto3"),
        "powertools": version("aws-lambda-powertools"),
        "pydantic": version("pydantic"),
        "valgrind": output_of([VALGRIND, "--version"]).strip() if VALGRIND else "",
        "cpu": cpu[1] if cpu else architecture(),
        "cores": os.cpu_count(),
        "system": platform(terse=True),
        "load": round(os.getloadavg()[0], 2),
    }


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.exists() else ""
