"""`python -m benchmarks`: run the scenarios, say what came out, and keep all figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from engines import EngineUnavailableError

from benchmarks import ROOT, measure, places, report
from benchmarks.scenarios import SCENARIOS, Scenario

ROUND_TRIP_MS: Final = 5
COLD_START: Final = "cold start"
#: Turns of a quick run and of a full one.  What sends requests is disturbed more often, and has more of them.
PURE_TURNS, SENDING_TURNS, WALL_TURNS, COLD_TURNS = (11, 31), (15, 81), (2, 5), (3, 11)
PAGE: Final = ROOT / "docs" / "performance.md"


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns, and no instructions")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only scenarios whose names begin so")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", metavar="DIR", help="where results.json goes")
    parser.add_argument("--no-run", action="store_true", help="show what the last run has left in results.json")
    parser.add_argument("--write-docs", action="store_true", help="write the figures and the plot into docs/performance.md")
    options = parser.parse_args()
    results = options.out / "results.json"
    if not options.no_run:
        machine = measure.machine()
        found = run(options.only or [""], is_quick=options.quick)
        options.out.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({"machine": machine, "figures": [figure._asdict() for figure in found]}, indent=1) + "\n")
    kept: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    figures = [measure.Figure(**figure) for figure in kept["figures"]]
    for part in (report.conditions(kept["machine"]), report.goals_table(figures), report.terminal_plot(figures)):
        sys.stdout.write(f"{part}\n\n")
    if options.write_docs:
        PAGE.write_text(report.page(PAGE.read_text(encoding="utf-8"), kept["machine"], figures), encoding="utf-8")
        report.write_png(figures, PAGE.with_suffix(".png"))


def run(only: list[str], *, is_quick: bool) -> list[measure.Figure]:
    """Measure what is asked for."""
    turn = 0 if is_quick else 1
    chosen = [scenario for scenario in SCENARIOS if scenario.name.startswith(tuple(only))]
    counts = bool(measure.VALGRIND) and not is_quick
    figures: list[measure.Figure] = []
    with ExitStack() as stack:
        stub = stack.enter_context(places.stubbed(is_secure=True))
        distant = stack.enter_context(places.stubbed(ROUND_TRIP_MS))
        for scenario in chosen:
            turns = (SENDING_TURNS if scenario.sends else PURE_TURNS) if scenario.counted else WALL_TURNS
            figures += _in_turns(scenario, stub if scenario.counted else distant, turns[turn])
        figures += _on_dynamodb_local([scenario for scenario in chosen if scenario.sends and scenario.counted], PURE_TURNS[turn])
        if counts and any(scenario.counted for scenario in chosen):
            _say("counting instructions")
            figures += measure.instructions(chosen, stub)
        if COLD_START.startswith(tuple(only)):
            _say(COLD_START)
            figures += measure.cold_starts(stub, COLD_TURNS[turn], counts=counts)
    return figures


def _on_dynamodb_local(scenarios: list[Scenario], turns: int) -> list[measure.Figure]:
    if not scenarios:
        return []
    try:
        with places.dynamodb_local() as place:
            return [figure for scenario in scenarios for figure in _in_turns(scenario, place, turns)]
    except EngineUnavailableError as error:
        _say(f"without DynamoDB Local: {error}")
        return []


def _in_turns(scenario: Scenario, place: places.Place, turns: int) -> list[measure.Figure]:
    _say(f"{scenario.name}, on {place.name}")
    with places.environment(AWS_ENDPOINT_URL=place.endpoint):
        return measure.in_turns(scenario, place, turns)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
