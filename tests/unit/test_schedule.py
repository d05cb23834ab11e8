"""The pauses before further tries: drawn with full jitter, within the limits, to the millisecond."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from persistence._schedule import BASE_MS, CAP_MS, LEAST_MS, RESERVE_MS, WISH_CAP_MS, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_MS = 1_800_000_000_250
LONG_MS = 3_600_000


def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each pause be its ceiling."""
    monkeypatch.setattr(random, "uniform", lambda low, high: float(high))


def test_without_limits_there_is_no_second_try() -> None:
    assert Schedule(NOW_MS, at_most_ms=None, deadline_ms=None).pause_ms(NOW_MS) is None


@pytest.mark.parametrize(
    ("at_most_ms", "deadline_ms", "give_up_ms"),
    [
        (1_000, None, NOW_MS + 1_000),
        (None, NOW_MS + 1_000, NOW_MS + 1_000 - RESERVE_MS),
        (1_000, NOW_MS + 1_000 + RESERVE_MS, NOW_MS + 1_000),
        (1_000, NOW_MS + 1_099 + RESERVE_MS, NOW_MS + 1_000),
        (1_001, NOW_MS + 1_000 + RESERVE_MS, NOW_MS + 1_000),
    ],
    ids=["a limit", "a deadline", "both alike", "the limit is sooner", "the deadline is sooner"],
)
def test_time_is_up_when_too_little_is_left_for_a_further_try(
    at_most_ms: int | None, deadline_ms: int | None, give_up_ms: int
) -> None:
    schedule = Schedule(NOW_MS, at_most_ms=at_most_ms, deadline_ms=deadline_ms)

    assert schedule.pause_ms(give_up_ms - LEAST_MS) is not None
    assert schedule.pause_ms(give_up_ms - LEAST_MS + 1) is None
    assert schedule.pause_ms(give_up_ms) is None
    assert schedule.pause_ms(give_up_ms + 1) is None


@pytest.mark.parametrize("at_most_ms", [-1, 0, LEAST_MS - 1])
def test_a_limit_that_is_too_small_allows_nothing(at_most_ms: int) -> None:
    assert Schedule(NOW_MS, at_most_ms=at_most_ms, deadline_ms=None).pause_ms(NOW_MS) is None


@pytest.mark.parametrize("deadline_ms", [0, NOW_MS - 1, NOW_MS, NOW_MS + RESERVE_MS + LEAST_MS - 1])
def test_a_deadline_that_is_near_or_past_allows_nothing_however_generous_the_limit(deadline_ms: int) -> None:
    assert Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=deadline_ms).pause_ms(NOW_MS) is None


def test_the_ceiling_doubles_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    longest(monkeypatch)
    schedule = Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None)

    pauses = [schedule.pause_ms(NOW_MS) for _ in range(8)]

    assert pauses == [BASE_MS, 2 * BASE_MS, 4 * BASE_MS, 8 * BASE_MS, 16 * BASE_MS, 32 * BASE_MS, CAP_MS, CAP_MS]


@pytest.mark.parametrize("seed", range(20))
def test_a_pause_lies_anywhere_between_nothing_and_its_ceiling(seed: int) -> None:
    random.seed(seed)
    schedule = Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None)

    pauses = [schedule.pause_ms(NOW_MS) for _ in range(6)]

    expected = random.Random(seed)
    assert pauses == [expected.uniform(0, BASE_MS * 2**n) for n in range(6)], seed


def test_pauses_spread_over_the_whole_range() -> None:
    random.seed(20_261_121)

    pauses = [Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None).pause_ms(NOW_MS) for _ in range(400)]

    drawn = [pause for pause in pauses if pause is not None]
    assert len(drawn) == 400
    assert all(0 <= pause <= BASE_MS for pause in drawn)
    assert {int(pause / BASE_MS * 10) for pause in drawn} == set(range(10))


@pytest.mark.parametrize("left_ms", [LEAST_MS, BASE_MS - 1, BASE_MS, BASE_MS + 1])
def test_no_pause_reaches_beyond_the_end(left_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    longest(monkeypatch)
    schedule = Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None)

    assert schedule.pause_ms(NOW_MS + LONG_MS - left_ms) == min(left_ms, BASE_MS)


@pytest.mark.parametrize(
    ("wish_ms", "pause_ms"),
    [
        (-1, BASE_MS),
        (0, BASE_MS),
        (BASE_MS, BASE_MS),
        (BASE_MS + 1, BASE_MS + 1),
        (BASE_MS + WISH_CAP_MS - 1, BASE_MS + WISH_CAP_MS - 1),
        (BASE_MS + WISH_CAP_MS, BASE_MS + WISH_CAP_MS),
        (BASE_MS + WISH_CAP_MS + 1, BASE_MS + WISH_CAP_MS),
        (LONG_MS, BASE_MS + WISH_CAP_MS),
    ],
)
def test_a_wish_for_a_longer_pause_is_obeyed_up_to_its_cap(wish_ms: int, pause_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    longest(monkeypatch)

    assert Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None).pause_ms(NOW_MS, wish_ms) == pause_ms


def test_a_wish_does_not_reach_beyond_the_end() -> None:
    schedule = Schedule(NOW_MS, at_most_ms=1_000, deadline_ms=None)

    assert schedule.pause_ms(NOW_MS, 4_000) == 1_000


def test_a_wish_leaves_the_ceiling_of_the_next_pause_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    longest(monkeypatch)
    schedule = Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None)
    schedule.pause_ms(NOW_MS, 4_000)

    assert schedule.pause_ms(NOW_MS) == 2 * BASE_MS


def test_two_schedules_do_not_share_their_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    longest(monkeypatch)
    first, second = (Schedule(NOW_MS, at_most_ms=LONG_MS, deadline_ms=None) for _ in range(2))
    first.pause_ms(NOW_MS)

    assert second.pause_ms(NOW_MS) == BASE_MS


def pauses(schedule: Schedule, now_ms: Callable[[float], int]) -> list[float]:
    """All pauses to the end, by a clock that shows *now_ms* of what was slept."""
    made: list[float] = []
    while (pause_ms := schedule.pause_ms(now_ms(sum(made)))) is not None:
        made.append(pause_ms)
    return made


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "limits", [{"at_most_ms": 5_000, "deadline_ms": None}, {"at_most_ms": None, "deadline_ms": NOW_MS + 5_000}]
)
@pytest.mark.parametrize(
    "now_ms",
    [lambda _: NOW_MS, lambda _: NOW_MS - LONG_MS, lambda slept_ms: NOW_MS + int(slept_ms) // 2],
    ids=["stands still", "is set back", "is slow"],
)
def test_pauses_count_with_their_length_where_the_clock_shows_less(
    now_ms: Callable[[float], int], limits: dict[str, Any], seed: int
) -> None:
    """A frozen clock would make the tries endless, and one that is set back an hour would prolong them by that."""
    random.seed(seed)

    made = pauses(Schedule(NOW_MS, **limits), now_ms)

    assert 4_900 - LEAST_MS - len(made) <= sum(made) <= 5_000 + len(made)


def test_what_passed_between_two_steps_back_counts() -> None:
    """Each pause takes its own length, or what the clock shows of it, and what else the clock shows is not forgotten."""
    schedule = Schedule(NOW_MS, at_most_ms=5_000, deadline_ms=None)
    schedule.pause_ms(NOW_MS)
    schedule.pause_ms(NOW_MS - LONG_MS)

    assert schedule.pause_ms(NOW_MS - LONG_MS + 4_991) is None
