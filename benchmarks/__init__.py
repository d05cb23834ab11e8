"""Measures this library, Powertools and the floor side by side: `python -m benchmarks`.

A scenario is a small function in `scenarios` that makes the calls to be compared.  `measure` makes them in turns, `instructions`
counts them under valgrind, `cold_start` is what fresh interpreters run, and `report` tells what came out.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Where children find this package.  Not the repository's root, when what is measured is an installed wheel.
IMPORTED_FROM = Path(__file__).absolute().parents[1]

# The engines that the tests use.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
