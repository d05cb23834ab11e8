"""The checker of histories, told short ones: it finds each thing that must not happen, and nothing in what may."""

from __future__ import annotations

import pytest
from doubles import START_MS, FakeClock
from fault.history import LAST_MS, PATIENCE_MS, History, Run

LEASE_MS = 60_000


class Story:
    """A key whose leases last a minute."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.history = History("k", self.clock)

    def run(self, caller: str, stopped_ms: int | None = None) -> Run:
        lease_end_ms = self.clock() + LEASE_MS
        return self.history.begin(caller, lambda: lease_end_ms, stopped_ms)

    def returns(self, run: Run) -> None:
        self.history.end(run, "returned", f"by {run.caller}")

    def gets(self, caller: str, of: str) -> None:
        self.history.leave(caller, f"by {of}")

    def fails(self, caller: str) -> None:
        self.history.leave(caller, None, OSError("told so"))

    @property
    def violation(self) -> str:
        [violation] = self.history.violations
        return violation


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_run_and_its_replays_are_fine(story: Story) -> None:
    story.returns(story.run("a"))
    story.gets("a", of="a")
    story.clock.advance(seconds=3600)
    story.gets("b", of="a")
    story.history.settle(["by a", "by a"], "by a")

    assert story.history.violations == []


@pytest.mark.parametrize("end", ["", "returned", "crashed"])
def test_a_run_during_anothers_lease_is_found(story: Story, end: str) -> None:
    run = story.run("a")
    if end:
        story.history.end(run, end, "by a")
    story.clock.advance(ms=LEASE_MS)
    story.run("b")

    assert story.violation == "b runs during the lease of a"


@pytest.mark.parametrize("end", ["", "crashed"])
def test_a_run_after_anothers_lease_is_fine(story: Story, end: str) -> None:
    run = story.run("a")
    if end:
        story.history.end(run, end)
    story.clock.advance(ms=LEASE_MS + 1)
    story.run("b")

    assert story.history.violations == []


def test_a_run_after_a_failed_one_is_fine(story: Story) -> None:
    story.history.end(story.run("a"), "raised")
    story.run("b")

    assert story.history.violations == []


def test_a_run_after_a_caller_has_got_a_result_is_found(story: Story) -> None:
    story.returns(story.run("a"))
    story.clock.advance(ms=LEASE_MS + 1)
    story.gets("a", of="a")
    story.run("b")

    assert story.violation == "b runs although callers have got ['by a']"


def test_a_second_effect_without_a_crash_or_an_outlived_lease_is_found(story: Story) -> None:
    story.returns(story.run("a"))
    story.clock.advance(ms=PATIENCE_MS - 1)
    story.fails("a")
    story.clock.advance(ms=LEASE_MS)
    story.run("b")

    assert story.violation == "b runs although a ended within its lease, and its caller was let go"


def test_a_second_effect_after_an_outlived_lease_is_fine(story: Story) -> None:
    run = story.run("a")
    story.clock.advance(ms=LEASE_MS + 1)
    story.returns(run)
    story.fails("a")
    story.run("b")

    assert story.history.violations == []


def test_a_second_effect_after_long_tries_to_store_the_first_is_fine(story: Story) -> None:
    story.returns(story.run("a"))
    story.clock.advance(ms=PATIENCE_MS)
    story.fails("a")
    story.clock.advance(ms=LEASE_MS)
    story.run("b")

    assert story.history.violations == []


@pytest.mark.parametrize(("before_ms", "violations"), [(LAST_MS, 0), (LAST_MS + 1, 1)])
def test_a_second_effect_is_fine_if_the_first_was_stopped_by_its_invocation(
    story: Story, before_ms: int, violations: int
) -> None:
    story.returns(story.run("a", stopped_ms=START_MS + 10_000))
    story.clock.advance(ms=10_000 - before_ms)
    story.fails("a")
    story.clock.advance(ms=LEASE_MS)
    story.run("b")

    assert len(story.history.violations) == violations


def test_two_results_are_found(story: Story) -> None:
    run = story.run("a")
    story.clock.advance(ms=LEASE_MS + 1)
    story.returns(story.run("b"))
    story.gets("b", of="b")
    story.returns(run)
    story.gets("a", of="a")

    assert story.violation == "callers get different results: {'by b': ['b'], 'by a': ['a']}"


def test_a_result_that_no_run_returned_is_found(story: Story) -> None:
    story.gets("a", of="nobody")

    assert story.violation == "a gets by nobody, which no run returned"


@pytest.mark.parametrize("stored", ["by b", None])
def test_another_stored_result_than_callers_get_is_found(story: Story, stored: str | None) -> None:
    story.returns(story.run("a"))
    story.gets("a", of="a")
    story.history.settle(["by a", "by a"], stored)

    assert story.violation == f"{stored} is stored, and callers get ['by a', 'by a']"


def test_a_stuck_key_is_found(story: Story) -> None:
    story.history.stuck(OSError("in progress"))

    assert story.violation == "the key is stuck: OSError('in progress')"


def test_a_run_that_was_held_up_past_its_own_lease_is_only_counted(story: Story) -> None:
    lease_end_ms = story.clock() + LEASE_MS
    story.clock.advance(ms=LEASE_MS + 1)
    story.returns(story.run("b"))
    story.gets("b", of="b")
    story.history.begin("a", lambda: lease_end_ms)

    assert story.history.violations == []
    assert story.history.late_runs == 1


def test_a_report_tells_the_violations_and_the_story(story: Story) -> None:
    story.run("a")
    story.clock.advance(ms=5)
    story.run("b")

    assert story.history.report().splitlines() == [
        "k:",
        "  ! b runs during the lease of a",
        "          0 ms  a runs, with a lease until 60000 ms",
        "          5 ms  b runs, with a lease until 60005 ms",
        "          5 ms  VIOLATED: b runs during the lease of a",
    ]
