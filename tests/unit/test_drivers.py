"""The drivers' small parts: how long a call that waits for another attempt pauses, and errors that came too late."""

from __future__ import annotations

import asyncio
import random

import pytest

from idempotency.drivers import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, _retrieved, pause_ms


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tries", [0, 1, 2, 3, 4, 5, 9, 10, 11, 1_000])
def test_pauses_double_up_to_their_longest_and_are_jittered_by_half(seed: int, tries: int) -> None:
    random.seed(seed)
    ceiling = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2**tries)

    assert ceiling / 2 <= pause_ms(tries, 60_000) <= ceiling, seed


def test_pauses_use_the_whole_of_their_range() -> None:
    random.seed(20_261_121)

    shares = [pause_ms(0, 60_000) / FIRST_PAUSE_MS for _ in range(500)]

    assert 0.5 <= min(shares) < 0.51
    assert 0.99 < max(shares) <= 1


@pytest.mark.parametrize("at_most_ms", [0, 1, 24])
def test_no_pause_is_longer_than_what_is_left(at_most_ms: int) -> None:
    assert pause_ms(0, at_most_ms) == at_most_ms
    assert pause_ms(1_000, at_most_ms) == at_most_ms


def test_the_error_of_a_task_that_came_too_late_is_looked_at_and_a_cancelled_one_has_none() -> None:
    """Otherwise asyncio reports it as never retrieved, when the task is collected."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        failed, cancelled = loop.create_future(), loop.create_future()
        failed.set_exception(ValueError("late"))
        cancelled.cancel()

        _retrieved(failed)
        _retrieved(cancelled)

        assert not failed._log_traceback

    asyncio.run(story())
