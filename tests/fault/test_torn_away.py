"""Nothing of an ended call is left behind, wherever its end came: see `fault.torn_away`, which runs in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


def story(*arguments: str, timeout: int = 55) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fault.torn_away", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_call_that_is_torn_away_at_any_line_leaves_nothing_behind() -> None:
    counts = re.match(r"(\d+) lines, (\d+) different", story("lines", "0", "0"))

    assert counts is not None
    assert int(counts[2]) > 400


@pytest.mark.parametrize("seed", [1, 2])
def test_calls_that_are_torn_away_by_real_signals_leave_nothing_behind(seed: int) -> None:
    counts = re.match(r"seed \d+: (\d+) of 3000 calls were torn away", story("signals", str(seed), "3000"))

    assert counts is not None
    assert int(counts[1]) > 0
