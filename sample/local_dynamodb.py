"""An embedded DynamoDB and S3: moto's server in a process of its own, on a random port of the loopback interface.

It serves one request after another.  moto's conditional writes are not atomic between threads; behind a server without
threads they are, and concurrent callers see what the real service would show them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"


@contextmanager
def running() -> Iterator[str]:
    """Start a DynamoDB without tables, yield its endpoint's URL, and stop it.  It also stops when this process dies."""
    # -P: started as a script, this file's folder would otherwise come first on sys.path.
    command = [sys.executable, "-P", __file__]
    # A session of its own: Ctrl-C is for this process, which then stops the server.
    with subprocess.Popen(  # noqa: S603 - our own
        command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        if server.stdin is None or server.stdout is None:
            raise AssertionError(server)
        try:
            port = server.stdout.readline().strip()
            if not port:
                raise RuntimeError("The embedded DynamoDB did not start: are tests/requirements-demo.txt installed?")
            yield f"http://{HOST}:{port}"
        finally:
            server.stdin.close()  # what it waits for, see `_stop_with_parent`


def _environment() -> dict[str, str]:
    """Our environment without its AWS settings: moto asks boto3 for the regions, and a bad profile would stop it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
    return {**kept, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


def serve() -> None:
    """Serve DynamoDB in this process until standard input ends; the port is the first line of standard output."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class QuietRequestHandler(MotoRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Not a line per request."""

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server(HOST, 0, application, threaded=False, request_handler=QuietRequestHandler)
    Thread(target=_stop_with_parent, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


def _stop_with_parent() -> None:
    """End this process when the other end of standard input is closed, as it is by the death of the parent, too."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve()
