"""The test bed itself: its engines decide conditions, it ends what it starts, and it does not pass for want of an engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import ReadTimeoutError
from engines.tables import client_for, create_table

if TYPE_CHECKING:
    from typing import Any

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent
RACERS = 8
ROUNDS = 20

#: A suite whose one test needs DynamoDB Local.
SUITE = """
    def test_needs_an_engine(dynamodb_local):
        pass
"""


@pytest.fixture(
    params=[
        pytest.param("dynamodb_local", marks=pytest.mark.dynamodb_local),
        pytest.param("moto_server", marks=pytest.mark.moto),
    ]
)
def client(request: pytest.FixtureRequest) -> Any:
    return client_for(request.getfixturevalue(request.param))


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The suite with the plugin, on a machine where no engine was fetched."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("IDEMPOTENCY_TEST_ENGINES", str(pytester.path))
    for switch in ("IDEMPOTENCY_TEST_STRICT", "IDEMPOTENCY_TEST_INSTALLED"):
        monkeypatch.delenv(switch, raising=False)
    pytester.makeconftest('pytest_plugins = ["engines.plugin"]')
    pytester.makepyfile(SUITE)
    return pytester


def claim(client: Any, table: str, owner: str) -> dict[str, Any] | None:
    """Put the owner's item unless there is one; return the one that there is."""
    try:
        client.put_item(
            TableName=table,
            Item={"id": {"S": "k"}, "owner": {"S": owner}},
            ConditionExpression="attribute_not_exists(id)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except client.exceptions.ConditionalCheckFailedException as refusal:
        holder: dict[str, Any] = refusal.response["Item"]
        return holder
    return None


def test_an_engine_evaluates_conditions_and_returns_the_item_that_failed_them(client: Any) -> None:
    table = create_table(client)

    assert claim(client, table, "a") is None
    assert claim(client, table, "b") == {"id": {"S": "k"}, "owner": {"S": "a"}}


def test_an_engine_lets_one_of_many_concurrent_puts_win(client: Any) -> None:
    ready = Barrier(RACERS)

    def race(table: str, owner: str) -> bool:
        ready.wait()
        return claim(client, table, owner) is None

    with ThreadPoolExecutor(RACERS) as threads:
        for _ in range(ROUNDS):
            table = create_table(client)
            winners = threads.map(race, [table] * RACERS, map(str, range(RACERS)))
            assert sum(winners) == 1


@pytest.mark.moto
def test_moto_serves_one_request_after_another(moto_server: str) -> None:
    """Its conditions are not atomic between threads, and a race that shows it is rare."""
    table = create_table(client_for(moto_server))
    impatient = client_for(moto_server, Config(read_timeout=0.5))
    address = urlsplit(moto_server)
    with socket.create_connection((address.hostname, address.port)) as unfinished:
        unfinished.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")

        with pytest.raises(ReadTimeoutError):
            impatient.describe_table(TableName=table)


def test_a_table_with_a_sort_key_holds_one_item_for_each_pair(client: Any) -> None:
    table = create_table(client, key_attr="pk", sort_key_attr="sk")
    client.put_item(TableName=table, Item={"pk": {"S": "p"}, "sk": {"S": "1"}})
    client.put_item(TableName=table, Item={"pk": {"S": "p"}, "sk": {"S": "2"}})

    assert client.scan(TableName=table)["Count"] == 2


def test_no_test_sees_the_machines_credentials() -> None:
    read = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    assert read == {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def test_without_its_engine_a_test_is_skipped_and_the_summary_says_why(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess()

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["DynamoDB Local: SKIPPED: it is not here; `make engines` fetches it", "moto: no test needed it"])


def test_the_summary_gives_the_reason_why_an_engine_could_not_be_fetched(suite: pytest.Pytester) -> None:
    (suite.path / "dynamodb-local.failure").write_text("there is no network\n")

    result = suite.runpytest_subprocess()

    result.stdout.fnmatch_lines(["DynamoDB Local: SKIPPED: there is no network"])


def test_in_strict_mode_a_test_without_its_engine_does_not_pass(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEMPOTENCY_TEST_STRICT", "1")

    result = suite.runpytest_subprocess()

    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["DynamoDB Local: FAILED: it is not here*"])


def test_a_test_that_asks_for_an_engine_has_its_marker(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-m", "dynamodb_local")

    result.assert_outcomes(skipped=1)


def test_the_packages_folders_are_not_taken_for_the_wheel(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    monkeypatch.setenv("IDEMPOTENCY_TEST_INSTALLED", "1")

    result = suite.runpytest_subprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*The tests are for the installed wheel, but idempotency is at * and persistence is at *"])


def test_a_server_ends_with_the_process_that_started_it_even_if_that_is_killed() -> None:
    server = "import signal; print('up', flush=True); signal.pause()"
    starter = f"""
import sys
from pathlib import Path
from engines.lifeline import tied
with tied([sys.executable, "-c", {server!r}], cwd=Path.cwd(), output=sys.stdout):
    sys.stdin.read()
"""
    command, environment = [sys.executable, "-c", starter], os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"

        parent.kill()

        assert parent.stdout.read() == b""  # at its end: nobody is left who could write
