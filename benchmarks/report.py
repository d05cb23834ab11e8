"""What came out: the table of goals, all figures, a plot for the terminal and one as PNG, and the page that shows them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.scenarios import GIVEN, LEAN, OURS, OWN, POWERTOOLS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.measure import Figure

BAR: Final = 40
MIB: Final = 2**20
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


class Goal(NamedTuple):
    """What this library is to reach.

    Attributes:
        contender: A pattern; of the contenders whose names it matches, the best counts.
        metrics: The first one that was measured counts.
        at_most: The ratio to the base; where the metric is `peak`, bytes.
    """

    text: str
    scenario: str
    contender: str
    metrics: tuple[str, ...]
    at_most: float


_COUNTS: Final = ("instructions", "cpu")
_NEW, _REPEAT, _PURE, _CACHED = "new key", "duplicate", "pure 1 KB, key `order`", "cached 1 KB, key `order`"
_LARGE, _VALIDATED = "pure 200 KB, key `order`", "pure 200 KB, key `order`, whole event validated"

GOALS: Final = [
    Goal("new key, client given / raw boto3", _NEW, GIVEN, _COUNTS, 1.03),
    Goal("duplicate, client given / raw boto3", _REPEAT, GIVEN, _COUNTS, 1.04),
    Goal("new key, own boto3 client / raw boto3", _NEW, OWN, ("cpu",), 0.82),
    Goal("new key, lean client / raw boto3", _NEW, LEAN, _COUNTS, 0.18),
    Goal("duplicate, lean client / raw boto3", _REPEAT, LEAN, _COUNTS, 0.20),
    Goal("1 KB event, new key / unavoidable work", _PURE, OURS, _COUNTS, 2.2),
    Goal("1 KB event, local cache / unavoidable work", _CACHED, OURS, _COUNTS, 2.2),
    Goal("200 KB event / unavoidable work", _LARGE, OURS, _COUNTS, 1.05),
    Goal("200 KB event, validated / unavoidable work", _VALIDATED, OURS, _COUNTS, 1.05),
    Goal("200 KB of dataclasses, key `id` / Powertools", "parsed 200 KB, dataclasses", OURS, _COUNTS, 0.003),
    Goal("200 KB of pydantic models, key `id` / Powertools", "parsed 200 KB, pydantic", OURS, _COUNTS, 0.003),
    Goal("cold start, own boto3 client / raw boto3", "cold start", OWN, ("cpu",), 0.95),
    Goal("cold start, lean client / raw boto3", "cold start", LEAN, ("cpu",), 0.18),
    Goal("cold start, peak memory, lean client", "cold start", LEAN, ("peak",), 24 * MIB),
    Goal("100 records at 5 ms, lean client, threads / Powertools", "100 records", f"{LEAN}, * threads", ("wall",), 1 / 18),
]


class Row(NamedTuple):
    """A goal, and what was measured of it: by Powertools and by this library."""

    goal: Goal
    theirs: Figure | None
    ours: Figure | None

    @property
    def is_met(self) -> bool:
        """Whether this library reached it."""
        return self.ours is not None and _judged(self.ours) <= self.goal.at_most


def rows(figures: list[Figure]) -> list[Row]:
    """The goals whose scenario was measured."""
    found = []
    for goal in GOALS:
        of_scenario = [figure for figure in figures if figure.scenario == goal.scenario and figure.place == "stub"]
        measured = {figure.metric for figure in of_scenario}
        metric = next((metric for metric in goal.metrics if metric in measured), None)
        if metric is not None:
            of_metric = [figure for figure in of_scenario if figure.metric == metric]
            found.append(Row(goal, _best(of_metric, f"{POWERTOOLS}*"), _best(of_metric, goal.contender)))
    return found


def _best(figures: list[Figure], contender: str) -> Figure | None:
    return min((figure for figure in figures if fnmatchcase(figure.contender, contender)), key=_judged, default=None)


def _judged(figure: Figure) -> float:
    return figure.value if figure.metric == "peak" else figure.ratio


def _shown(value: float, metric: str) -> str:
    if metric == "peak":
        return f"{value / MIB:.1f} MiB"
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 2 else f"{value:.2f}"  # noqa: PLR2004


def _measured(figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    shown = _shown(_judged(figure), figure.metric)
    if figure.turns == 1 or figure.metric == "peak" or figure.contender == figure.base:
        return shown
    return f"{shown} ({_shown(figure.low, '')}–{_shown(figure.high, '')})"  # noqa: RUF001 - a range


def _metric(figure: Figure | None) -> str:
    return "" if figure is None else {"cpu": "CPU", "wall": "wall time", "peak": "memory"}.get(figure.metric, figure.metric)


def goals_table(figures: list[Figure]) -> str:
    """What was to be reached, in Markdown."""
    lines = ["| scenario | by | Powertools | this library | goal | met |", "|---|---|---|---|---|---|"]
    for row in rows(figures):
        goal = _shown(row.goal.at_most, row.goal.metrics[-1])
        met = "yes" if row.is_met else "**no**"
        which = (
            "" if row.ours is None or row.ours.contender == row.goal.contender else f", {row.ours.contender.rpartition(', ')[2]}"
        )
        parts = (row.goal.text, _metric(row.theirs), _measured(row.theirs), f"{_measured(row.ours)}{which}", f"<= {goal}", met)
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def all_figures(figures: list[Figure]) -> str:
    """Everything, in Markdown."""
    lines = ["| endpoint | scenario | contender | by | one call | ratio (quartiles) |", "|---|---|---|---|---|---|"]
    for figure in figures:
        ratio = _measured(figure._replace(metric="")) if figure.metric == "peak" else _measured(figure)
        parts = (figure.place, figure.scenario, figure.contender, _metric(figure), _one_call(figure), ratio)
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def _one_call(figure: Figure) -> str:
    if figure.metric == "peak":
        return _shown(figure.value, "peak")
    if figure.metric == "instructions":
        return f"{figure.value / 1e6:.3f} M"
    return f"{figure.value * 1e3:.1f} ms" if figure.value >= 0.01 else f"{figure.value * 1e6:.1f} µs"  # noqa: PLR2004


def terminal_plot(figures: list[Figure]) -> str:
    """Two bars for each goal, the longer one as wide as the plot."""
    lines = []
    for row in rows(figures):
        if row.theirs is None:
            continue
        lines.append(f"{row.goal.text}, by {_metric(row.theirs)}")
        longest = max(_judged(figure) for figure in (row.theirs, row.ours) if figure is not None)
        for name, figure in ((POWERTOOLS, row.theirs), (OURS, row.ours)):
            bar = "" if figure is None else "█" * max(round(_judged(figure) / longest * BAR), 1)
            value = "not measured" if figure is None else _shown(_judged(figure), figure.metric)
            lines.append(f"  {name:12} {bar:{BAR}} {value}")
    return "\n".join(lines)


def write_png(figures: list[Figure], path: Path) -> None:
    """The ratios as bars, on a logarithmic axis; white behind dark, so that a dark page shows it, too."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in reversed(rows(figures)) if row.theirs and row.ours and row.ours.metric != "peak"]
    drawing, axes = plt.subplots(figsize=(9, 0.55 * len(shown) + 1.2), facecolor="white", layout="constrained")
    for offset, name, colour in ((0.2, POWERTOOLS, "#b0b0b0"), (-0.2, OURS, "#2f6fab")):
        values = [_judged(row[1] if name == POWERTOOLS else row[2]) for row in shown]  # type: ignore[arg-type]  # see above
        bars = axes.barh([number + offset for number in range(len(shown))], values, 0.38, label=name, color=colour)
        axes.bar_label(bars, [_shown(value, "") for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(shown)), [row.goal.text for row in shown], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel("ratio, less is better")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(drawing)


def page(text: str, machine: dict[str, Any], figures: list[Figure]) -> str:
    """The page with these figures between its marks.

    Raises:
        ValueError: it lacks the marks.
    """
    if BEGIN not in text or END not in text:
        raise ValueError("the page has no place for figures")
    found = f"""{BEGIN}

{conditions(machine)}

{goals_table(figures)}

![Powertools and this library, ratio to the floor](performance.png)

```text
{terminal_plot(figures)}
```

<details><summary>All figures</summary>

{all_figures(figures)}

</details>

{END}"""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: found, text, flags=re.DOTALL)


def conditions(machine: dict[str, Any]) -> str:
    """When, with what and on what the figures were measured."""
    counted = f", {machine['valgrind']}" if machine["valgrind"] else ""
    return (
        f"Measured on {machine['date']} with Python {machine['python']}, boto3 {machine['boto3']}, Powertools "
        f"{machine['powertools']}, pydantic {machine['pydantic']}{counted}; on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['system']}, with a load of {machine['load']} at the start."
    )
