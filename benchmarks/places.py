"""Where calls go: the stub endpoint, or DynamoDB Local; and the environment that leads there, with made-up credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import stub
from benchmarks.workload import RESULT_JSON

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As in Lambda, and nothing of this machine's.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_SESSION_TOKEN": "benchmark" * 40,  # of Lambda's length
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_LAMBDA_FUNCTION_NAME": "orders",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": stub.HOST,
    "no_proxy": stub.HOST,
}


class Place(NamedTuple):
    """An endpoint with two tables.  `secure` is the same over HTTPS, `authority` the file to trust, where there are such."""

    name: str
    endpoint: str
    secure: str = ""
    authority: str = ""
    granting: str = stub.GRANTING
    refusing: str = stub.REFUSING

    def counts(self) -> dict[str, int]:
        """What the stub has received since the last time: connections, bytes, and requests by operation."""
        connection = HTTPConnection(self.endpoint.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/counts")
            counted: dict[str, int] = json.loads(connection.getresponse().read())
            return counted
        finally:
            connection.close()


@contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Have only this in the environment of what concerns AWS and proxies, inside the block."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(ENVIRONMENT | changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def stubbed(delay_ms: float = 0, *, is_secure: bool = False) -> Iterator[Place]:
    """The stub, in a process of its own that ends with this one."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        authority = ""
        command = [sys.executable, "-P", stub.__file__, "--delay-ms", str(delay_ms), "--result", RESULT_JSON]
        if is_secure:
            from engines.tls import certificates

            trusted, chain = certificates(Path(folder), (stub.HOST,))
            authority, command = str(trusted), [*command, "--certificate", str(chain)]
        with subprocess.Popen(  # noqa: S603 - our own script
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout is not None
            ports = process.stdout.readline().split()
            secure = f"https://{stub.HOST}:{ports[1]}" if is_secure else ""
            try:
                yield Place("stub", f"http://{stub.HOST}:{ports[0]}", secure, authority)
            finally:
                process.kill()


@contextmanager
def dynamodb_local() -> Iterator[Place]:
    """DynamoDB Local with two tables.

    Raises:
        EngineUnavailableError: it is not on this machine.
    """
    import boto3
    from engines import dynamodb_local as engine
    from engines.tables import create_table

    with engine.running() as server, environment():
        client = boto3.client("dynamodb", endpoint_url=server.endpoint)
        try:
            for table in (stub.GRANTING, stub.REFUSING):
                create_table(client, table)
            yield Place(f"DynamoDB Local {server.version}", server.endpoint)
        finally:
            client.close()
