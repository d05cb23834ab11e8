"""The demo, run as users run it, and its ability to fail."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from engines.repository import ROOT

from sample.report import Report


@pytest.mark.usefixtures("moto_server")  # for the sake of machines without moto; the demo starts its own
def test_the_demo_shows_each_promise_kept_and_exits_with_0() -> None:
    command = [sys.executable, "-W", "error", "-m", "sample.demo"]

    demo = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "WRONG" not in demo.stdout
    assert "\x1b" not in demo.stdout  # colour is for terminals
    assert max(map(len, demo.stdout.splitlines())) <= 100
    lines = [line.strip() for line in demo.stdout.splitlines()]
    for statement in (
        "ok     idempotent-replayed: true",
        "ok     answers: [201, 409, 409, 409, 409]",
        "ok     answers: [201, 201, 201, 201, 201]",
        "ok     answer: 422",
        "ok     exit code of the process, which killed itself: -9",
        "ok     generation: 2",
        "ok     charges for o-1004: 1, from 1 request to the provider",
        "ok     charges for o-1005: 1, from 2 requests to the provider",
        "ok     messages reported as failed: []",
        "ok     charges for b-7/carol: 1, from 1 request to the provider",
        "ok     the replay is the same: True",
        "ok     records copied: 6",
        "ok     balances: {'alice': 2500, 'bob': 7500}",
        "ok     cents moved, as the answer says: 7500",
        "ok     the answer's reason: lacks funds",
        "ok     answers: ['mail-1', 'mail-1', 'mail-1', 'mail-1', 'mail-1']",
        "34 calls, messages and shares led to 11 charges.",
    ):
        assert statement in lines


def test_a_statement_that_does_not_hold_is_shown_with_what_was_found_and_fails_the_demo() -> None:
    report = Report(out := io.StringIO())

    report.expect("charges", 1, 1)
    report.expect("charges", 2, 1)
    report.expect("charges", 1, 1)
    report.sum_up()

    assert report.exit_code == 1
    assert "WRONG  charges: expected 1, found 2" in out.getvalue()
    assert out.getvalue().endswith("1 of 3 statements were WRONG\n")


def test_a_step_that_breaks_off_fails_the_demo_and_the_next_one_is_told() -> None:
    report = Report(out := io.StringIO())

    with report.step("A step that breaks off"):
        raise LookupError("no such table")
    with report.step("The next one"):
        report.expect("charges", 1, 1)

    assert report.exit_code == 1
    assert "LookupError: no such table" in out.getvalue()
    assert "2. The next one\n  ok     charges: 1\n" in out.getvalue()


def test_a_demo_that_checked_nothing_has_not_succeeded() -> None:
    report = Report(io.StringIO())

    report.say("nothing")

    assert report.exit_code == 1


def test_a_demo_whose_statements_all_hold_succeeds() -> None:
    report = Report(out := io.StringIO())

    report.expect("charges", 1, 1)
    report.sum_up()

    assert report.exit_code == 0
    assert out.getvalue() == "  ok     charges: 1\n\nAll 1 statements were ok\n"
