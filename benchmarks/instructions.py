"""What runs under valgrind: each contender of some scenarios a few times, and many times, in a forked process of its own.

Valgrind tells the instructions of each process when it ends.  The processes of a contender differ in the number of calls alone,
so what they did before cancels out, and is done once for all.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.measure import UNCOUNTED
from benchmarks.places import Place
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable


def main(endpoint: str, fewer: int, names: list[str]) -> None:
    """Call each contender of the scenarios; valgrind counts."""
    place = Place("stub", endpoint)
    for scenario in SCENARIOS:
        if scenario.name not in names:
            continue
        with ExitStack() as stack:
            for contender, call in scenario.prepare(place, stack).items():
                for calls in (UNCOUNTED, UNCOUNTED + max(scenario.counted // fewer, 1)):
                    process = _forked(call.make, calls)
                    sys.stdout.write(f"counted\t{process}\t{calls}\t{scenario.name}\t{contender}\n")
                    sys.stdout.flush()


def _forked(call: Callable[[], object], calls: int) -> int:
    """Call so often in a child; its process id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"a child ended with {status}")
        return child
    try:
        for _ in range(calls):
            call()
            if os.getppid() != parent:  # killed: nobody waits for the figures
                os._exit(1)
    except BaseException:  # noqa: BLE001 - told, and the child must not go on as its parent
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
