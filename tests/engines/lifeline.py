"""A server that never outlives the tests: `python lifeline.py COMMAND...` kills the command when standard input ends.

Standard input is a pipe from the test process.  It ends when that process closes it, and also when it is interrupted or killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from threading import Thread
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def tied(command: list[str], *, cwd: Path, output: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command in *cwd*, with everything it says going to *output*; it has ended when this block, or this process, has.

    The process that is yielded ends with the command's exit code when the command ends.
    """
    # A session of its own: Ctrl-C is for the tests, which end the server when they are done with it.
    with subprocess.Popen(
        [sys.executable, "-P", __file__, *command],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        yield process  # leaving `with` closes standard input, and waits


def main(command: list[str]) -> int:
    """Run the command until it ends or standard input does.  Returns its exit code."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    Thread(target=_kill_at_end_of_input, args=(server,), daemon=True).start()
    return server.wait()


def _kill_at_end_of_input(server: subprocess.Popen[bytes]) -> None:
    # Not `sys.stdin`, whose lock a thread that still reads holds when the interpreter ends: that takes a second, and aborts.
    while os.read(0, 1):
        pass
    server.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
