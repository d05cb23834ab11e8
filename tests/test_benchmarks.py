"""The benchmarks can be run, and compare what they say.  How fast anything is, is never asserted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from engines.tables import client_for, create_table

from benchmarks import IMPORTED_FROM, cold_start, measure, places, report, scenarios
from benchmarks.measure import Figure
from benchmarks.scenarios import SCENARIOS
from benchmarks.stub import GRANTING, REFUSING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.places import Place
    from benchmarks.scenarios import Scenario

KEY = {"id": {"S": "orders#1"}}
STORED = {**KEY, "status": {"S": "COMPLETED"}, "expiration": {"N": "4102444800"}, "data": {"S": "1"}}
PUT = {
    "Item": {**KEY, "status": {"S": "INPROGRESS"}, "expiration": {"N": "1900000000"}},
    "ConditionExpression": "attribute_not_exists(id)",
    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
}
UPDATE = {"Key": KEY, "UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": "1"}}}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("put_item", GRANTING, PUT),
    ("put_item", REFUSING, PUT),
    ("update_item", GRANTING, UPDATE),
    ("delete_item", GRANTING, {"Key": KEY}),
    ("get_item", GRANTING, {"Key": KEY}),
    ("get_item", REFUSING, {"Key": KEY}),
]
BY_NAME = [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS]
RECORDS = 3
#: Two requests of a new key, headers included, with an event of 1 KB.
MOST_BYTES = 6_000


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A stub without delay, and the environment that leads to it."""
    with places.stubbed(is_secure=True) as place, places.environment(AWS_ENDPOINT_URL=place.endpoint):
        yield place


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "RECORDS", RECORDS)
    monkeypatch.setattr(scenarios, "POOLS", (2,))


def runs_of_one_call(scenario: Scenario) -> int:
    if scenario.name.startswith(("duplicate", "cached")):
        return 0
    return RECORDS if scenario.name == "100 records" else 1


def shape(value: Any) -> Any:
    """The members of an answer and the types of what they hold.

    DynamoDB Local tells of a deletion what it consumed, which nobody asked for, and writes "Message" where DynamoDB's service
    model has "message"; boto3 gives that out once more.
    """
    beside_the_point = ("HTTPHeaders", "ConsumedCapacity", "message")
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items() if name not in beside_the_point}
    return type(value).__name__


def answer(client: Any, operation: str, request: dict[str, Any]) -> Any:
    try:
        return shape(getattr(client, operation)(**request))
    except ClientError as refused:
        return shape(refused.response), refused.response["Error"], type(refused).__name__


@pytest.mark.parametrize(("operation", "table", "request_"), REQUESTS, ids=[f"{name} {table}" for name, table, _ in REQUESTS])
def test_the_stub_answers_as_dynamodb_does(
    operation: str, table: str, request_: dict[str, Any], place: Place, dynamodb_local: str
) -> None:
    with ExitStack() as stack:
        local, stub = client_for(dynamodb_local), client_for(place.endpoint)
        stack.callback(local.close)
        stack.callback(stub.close)
        real_table = create_table(local)
        if table == REFUSING:
            local.put_item(TableName=real_table, Item=STORED)

        answers = (
            answer(stub, operation, {"TableName": table, **request_}),
            answer(local, operation, {"TableName": real_table, **request_}),
        )

    assert answers[0] == answers[1]


def test_the_stub_has_the_headers_that_clients_look_at(place: Place, dynamodb_local: str) -> None:
    looked_at = {"x-amz-crc32", "x-amzn-requestid", "date", "content-type", "content-length"}
    client = client_for(place.endpoint)

    headers = client.put_item(TableName=GRANTING, **PUT)["ResponseMetadata"]["HTTPHeaders"]
    client.close()

    assert looked_at <= set(headers)
    assert headers["content-type"] == "application/x-amz-json-1.0"


def test_the_stub_reads_a_request_that_comes_in_pieces(place: Place) -> None:
    body = json.dumps({"TableName": GRANTING, **PUT}).encode()
    head = f"POST / HTTP/1.1\r\nX-Amz-Target: DynamoDB_20120810.PutItem\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    place.counts()
    parts = urlsplit(place.endpoint)

    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (head[:10], head[10:], body[:-1]):
            connection.sendall(piece)
        early = place.counts()
        connection.sendall(body[-1:])
        answered = connection.recv(1024)

    assert "PutItem" not in early
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert place.counts() | {"connections": 0} == {"PutItem": 1, "bytes": len(head) + len(body), "connections": 0}


def test_the_stub_ends_with_a_process_that_is_killed() -> None:
    script = "from benchmarks.places import stubbed\nwith stubbed() as place: print(place.endpoint, flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(IMPORTED_FROM)}, text=True
    ) as process:
        assert process.stdout is not None
        endpoint = urlsplit(process.stdout.readline().strip())
        answers(endpoint.port)

        process.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 10
    while answers(endpoint.port) and time.monotonic() < deadline:
        pass
    assert not answers(endpoint.port)


def answers(port: int | None) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port or 0), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("scenario", BY_NAME)
def test_each_contender_does_what_it_is_measured_for(scenario: Scenario, place: Place) -> None:
    with ExitStack() as stack:
        for name, call in scenario.prepare(place, stack).items():
            before = call.effect.runs

            call.make()
            call.make()

            assert call.effect.runs - before == 2 * runs_of_one_call(scenario), name


@pytest.mark.parametrize("scenario", BY_NAME)
def test_each_scenario_has_a_ratio_for_each_contender(scenario: Scenario, place: Place) -> None:
    figures = measure.in_turns(scenario, place, turns=2, turn_seconds=0)

    with ExitStack() as stack:
        assert [figure.contender for figure in figures] == list(scenario.prepare(place, stack))
    assert {figure.contender.split(",")[0] for figure in figures} >= {scenarios.POWERTOOLS, scenarios.OURS}
    assert all(figure.low <= figure.ratio <= figure.high for figure in figures)
    assert all(figure.value > 0 and figure.ratio > 0 for figure in figures)
    assert [figure.ratio for figure in figures if figure.contender == scenario.base] == [1]


@pytest.mark.parametrize(
    ("prepare", "requests"),
    [(scenarios.new_key, {"PutItem": 1, "UpdateItem": 1}), (scenarios.duplicate, {"PutItem": 1})],
    ids=["new key", "duplicate"],
)
def test_a_new_key_takes_two_round_trips_and_a_duplicate_one(
    prepare: Callable[[Place, ExitStack], dict[str, scenarios.Call]], requests: dict[str, int], place: Place
) -> None:
    with ExitStack() as stack:
        for name, call in prepare(place, stack).items():
            call.make()
            place.counts()

            call.make()

            counts = place.counts()
            assert counts.pop("bytes") <= MOST_BYTES, name
            counts.pop("connections")  # the one that asks for the counts
            assert counts == requests, name


def test_dynamodb_local_grants_and_refuses_as_the_stub_does(dynamodb_local: str) -> None:
    with places.environment(AWS_ENDPOINT_URL=dynamodb_local), ExitStack() as stack:
        client = stack.enter_context(closing(boto3.client("dynamodb")))  # with the environment's key: each has its own database
        place = places.Place("DynamoDB Local", dynamodb_local, granting=create_table(client), refusing=create_table(client))
        for scenario in SCENARIOS[:2]:
            for name, call in scenario.prepare(place, stack).items():
                before = call.effect.runs

                call.make()
                call.make()

                assert call.effect.runs - before == 2 * runs_of_one_call(scenario), name


@pytest.mark.parametrize("name", cold_start.CONTENDERS)
def test_a_cold_start_makes_one_call_over_https(name: str, place: Place) -> None:
    expected = {} if name == cold_start.NOTHING else {"PutItem": 1, "UpdateItem": 1}
    place.counts()

    with places.environment(AWS_ENDPOINT_URL=place.secure, AWS_CA_BUNDLE=place.authority, PYTHONPATH=str(IMPORTED_FROM)):
        cpu, peak = measure._cold_start("alone", name)

    counts = place.counts()
    assert {operation: counts.get(operation, 0) for operation in expected} == expected
    assert cpu > 0
    assert peak > 2**20


def test_instructions_are_those_of_many_calls_minus_those_of_a_few(place: Place) -> None:
    scenario = SCENARIOS[0]
    environment = {"AWS_ENDPOINT_URL": place.endpoint, "PYTHONPATH": str(IMPORTED_FROM)}
    with places.environment(**environment):
        said = measure.output_of([sys.executable, "-P", "-m", "benchmarks.instructions", place.endpoint, "25", scenario.name])
    lines = [line.split("\t") for line in said.splitlines()]
    # What valgrind would say of these processes: a million for what is made before, a thousand for each call.
    valgrind = "".join(f"=={process}== I   refs:      {1_000_000 + 1000 * int(calls):,}\n" for _, process, calls, *_ in lines)

    counted = measure.per_call(valgrind + said)

    with ExitStack() as stack:
        contenders = scenario.prepare(place, stack)
    assert counted == {scenario.name: dict.fromkeys(contenders, 1000)}


def test_a_ratio_is_the_median_of_the_turns() -> None:
    measured = [{"base": 1.0, "other": 2.0}, {"base": 10.0, "other": 30.0}, {"base": 2.0, "other": 10.0}]

    *_, other = measure.figures("stub", "a scenario", "base", "cpu", measured)

    assert (other.value, other.low, other.ratio, other.high, other.turns) == (10, 2.5, 3, 4, 3)


def test_goals_are_about_scenarios_that_there_are() -> None:
    named = {goal.scenario for goal in report.GOALS}

    assert named <= {scenario.name for scenario in SCENARIOS} | {"cold start"}


def test_the_page_shows_which_goals_are_met() -> None:
    goal = report.GOALS[0]
    figures = [
        Figure("stub", goal.scenario, contender, scenarios.RAW, "instructions", 1e6, ratio, ratio, ratio, 1)
        for contender, ratio in ((scenarios.RAW, 1), (scenarios.POWERTOOLS, 1.09), (goal.contender, goal.at_most))
    ]
    machine = dict.fromkeys(
        ("date", "python", "boto3", "powertools", "pydantic", "valgrind", "cpu", "cores", "system", "load"), "x"
    )
    before = f"# Page\n{report.BEGIN}\nold\n{report.END}\nprose\n"

    once = report.page(before, machine, figures)

    assert f"| {goal.text} | instructions | 1.090 | {goal.at_most:.3f} | <= {goal.at_most:.3f} | yes |" in once
    assert "old" not in once
    assert once.startswith("# Page\n")
    assert once.endswith("\nprose\n")
    assert report.page(once, machine, figures) == once


def test_a_goal_just_missed_is_not_met() -> None:
    goal = report.GOALS[0]
    missed = Figure("stub", goal.scenario, goal.contender, scenarios.RAW, "cpu", 1.0, goal.at_most + 0.001, 1, 1, 1)

    row = report.rows([missed])[0]

    assert row.goal == goal
    assert not row.is_met
