"""The recipes of docs/batches.md, run as they are in the document, on DynamoDB Local."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from base64 import b64encode
from collections import Counter
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from aws_lambda_powertools.utilities.batch.exceptions import BatchProcessingError
from doubles import FakeClock, LambdaContext
from engines.repository import ROOT
from engines.tables import create_table

from idempotency import IdempotencyConfig, current_attempt
from persistence.background import CALL_WORKERS
from persistence.dynamodb import MAX_POOL_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCUMENT = (ROOT / "docs/batches.md").read_text(encoding="utf-8")
#: DynamoDB Local keeps a database for each Region, and in this one the table has the name of the examples.
REGION = "eu-south-2"
#: Records of one batch that must be on their way at the same time.
MANY = 20

invocation: ContextVar[str] = ContextVar("invocation", default="none")


class World:
    """What the examples act upon: it counts the effects, and tells who caused them."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.callers: set[str] = set()
        self.lease_ends: set[int | None] = set()
        self.broken: set[str] = set()
        self.before: Callable[[str], object] = lambda _: None

    def act(self, name: str) -> str:
        self.before(name)
        self.callers.add(invocation.get())
        self.lease_ends.add(current_attempt().lease_end_ms)
        if name in self.broken:
            raise ValueError("broken")
        self.effects.append(name)
        return name

    def charge(self, order_id: str, *, idempotency_key: str) -> str:
        assert idempotency_key
        return self.act(order_id)

    async def ship(self, order_id: str, *, idempotency_key: str) -> str:
        assert idempotency_key
        return await asyncio.to_thread(self.act, order_id)  # so that it can wait for others

    def index(self, item: dict[str, Any]) -> None:
        self.act(item["order_id"])


class Recipes(SimpleNamespace):
    """What the document defines."""

    store: Any
    world: World


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: it reads the service's model once."""
    return boto3.Session(region_name=REGION)


@pytest.fixture
def recipes(dynamodb_local: str, session: boto3.Session, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[Recipes]:
    """The document's blocks, run in their order in one namespace, and an empty table."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb_local)
    client = boto3.client("dynamodb")
    create_table(client, "idempotency")
    world = World()
    names: dict[str, Any] = {"__name__": "batches", "charge": world.charge, "ship": world.ship, "index": world.index}
    for block in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/batches.md", "exec"), names)
    made = Recipes(**names, world=world)
    made.store.clock_ms = clock
    made.store.sleep_ms = lambda ms: None
    yield made
    made.pool.shutdown()
    made.store.client.close()
    client.delete_table(TableName="idempotency")


# Events, as Lambda sends them


def sqs(*orders: str, groups: tuple[str, ...] = ()) -> dict[str, Any]:
    """A message for each order, whose id is its place."""
    return {
        "Records": [
            {
                "messageId": str(place),
                "eventSource": "aws:sqs",
                "body": json.dumps({"order_id": order}),
                "attributes": {"MessageGroupId": groups[place]} if groups else {},
            }
            for place, order in enumerate(orders)
        ]
    }


def kinesis(*orders: str, groups: tuple[str, ...] = ()) -> dict[str, Any]:
    def data(order: str) -> str:
        return b64encode(json.dumps({"order_id": order}).encode()).decode()

    return {
        "Records": [
            {"kinesis": {"sequenceNumber": str(place), "partitionKey": groups[place] if groups else order, "data": data(order)}}
            for place, order in enumerate(orders)
        ]
    }


def dynamodb(*orders: str, groups: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "Records": [
            {
                "eventID": f"event-{order}",
                "dynamodb": {
                    "SequenceNumber": str(place),
                    "Keys": {"id": {"S": groups[place] if groups else order}},
                    "NewImage": {"order_id": {"S": order}},
                },
            }
            for place, order in enumerate(orders)
        ]
    }


def failed(answer: dict[str, Any]) -> list[str]:
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


ALL = [
    pytest.param("async_handler", sqs, id="async"),
    pytest.param("handler", sqs, id="sync"),
    pytest.param("fifo_handler", sqs, id="fifo"),
    pytest.param("kinesis_handler", kinesis, id="kinesis"),
    pytest.param("dynamodb_handler", dynamodb, id="dynamodb"),
]
recipe = pytest.mark.parametrize(("name", "batch"), ALL)
#: Without groups.
unordered = pytest.mark.parametrize("name", ["async_handler", "handler"])


@pytest.fixture
def deliver(recipes: Recipes) -> Callable[..., list[str]]:
    """Invoke a recipe, and return what it has reported."""

    def invoke(name: str, event: dict[str, Any], context: LambdaContext | None = None) -> list[str]:
        handler = getattr(recipes, name)
        return failed(handler(event, context or LambdaContext()))

    return invoke


class Meeting:
    """Requests that go on when so many of them are on their way, in as many threads."""

    def __init__(self, recipes: Recipes, operation: str, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self.problem = ""
        self._size, self._operation = size, operation
        recipes.store.client.meta.events.register(f"before-call.dynamodb.{operation}", self._come)

    def _come(self, **_: Any) -> None:
        try:
            self._barrier.wait(timeout=10)
        except threading.BrokenBarrierError:
            self.problem = f"fewer than {self._size} {self._operation} were on their way at once"
            raise


# What every recipe promises


@recipe
def test_all_records_are_on_their_way_at_once(recipes: Recipes, deliver: Any, name: str, batch: Any) -> None:
    orders = [f"o-{number}" for number in range(MANY)]
    groups = {"groups": tuple(orders)} if name == "fifo_handler" else {}
    meetings = [Meeting(recipes, operation, MANY) for operation in ("PutItem", "UpdateItem")]

    reported = deliver(name, batch(*orders, **groups))

    assert [meeting.problem for meeting in meetings] == ["", ""]
    assert reported == []
    assert Counter(recipes.world.effects) == Counter(orders)


@recipe
def test_what_fails_is_reported_and_only_that_runs_again(recipes: Recipes, deliver: Any, name: str, batch: Any) -> None:
    event = batch("a", "b", "c", "d", **({"groups": ("a", "b", "c", "d")} if name == "fifo_handler" else {}))
    recipes.world.broken = {"b", "d"}

    reported = deliver(name, event)
    recipes.world.broken = set()
    again = deliver(name, event)

    assert (sorted(reported), again) == (["1", "3"], [])
    assert sorted(recipes.world.effects) == ["a", "b", "c", "d"]


@recipe
def test_each_record_runs_in_the_invocations_context_and_its_lease_ends_with_it(
    recipes: Recipes, deliver: Any, clock: FakeClock, name: str, batch: Any
) -> None:
    invocation.set("this one")
    event = batch("a", "b", **({"groups": ("a", "b")} if name == "fifo_handler" else {}))

    deliver(name, event, LambdaContext(7_000))

    assert recipes.world.callers == {"this one"}
    assert recipes.world.lease_ends == {clock.now_ms + 7_000 + 1_000}


# Duplicates in one batch


@unordered
def test_the_second_of_two_equal_records_waits_for_the_first_and_replays_it(recipes: Recipes, deliver: Any, name: str) -> None:
    is_waiting = threading.Event()
    recipes.store.client.meta.events.register("before-call.dynamodb.GetItem", lambda **_: is_waiting.set())
    recipes.world.before = lambda _: is_waiting.wait(timeout=10)

    reported = deliver(name, sqs("a", "a"))

    assert is_waiting.is_set()
    assert reported == []
    assert recipes.world.effects == ["a"]


@unordered
def test_without_waiting_the_second_of_two_equal_records_is_reported_and_replays_when_it_comes_again(
    recipes: Recipes, deliver: Any, name: str
) -> None:
    refused = threading.Event()

    def see(http_response: Any, **_: Any) -> None:
        if http_response.status_code == 400:
            refused.set()

    recipes.store.client.meta.events.register("after-call.dynamodb.PutItem", see)
    recipes.world.before = lambda _: refused.wait(timeout=10)
    function = recipes.ship_order if name == "async_handler" else recipes.charge_order
    event = sqs("a", "a")

    with function.override(config=IdempotencyConfig(event_key_jmespath="order_id")):
        [reported] = deliver(name, event)
        again = deliver(name, {"Records": [event["Records"][int(reported)]]})

    assert refused.is_set()
    assert again == []
    assert recipes.world.effects == ["a"]


def test_if_the_first_of_two_equal_records_fails_the_second_runs_in_the_same_batch(recipes: Recipes, deliver: Any) -> None:
    is_waiting = threading.Event()
    recipes.store.client.meta.events.register("before-call.dynamodb.GetItem", lambda **_: is_waiting.set())
    attempts: list[str] = []

    def fail_once(order: str) -> None:
        attempts.append(order)
        if len(attempts) == 1:
            is_waiting.wait(timeout=10)
            raise ValueError("broken")

    recipes.world.before = fail_once

    reported = deliver("handler", sqs("a", "a"))

    assert len(reported) == 1
    assert recipes.world.effects == ["a"]


# What else the document says of the processor of five lines


@pytest.mark.parametrize(("event_type", "batch"), [("KinesisDataStreams", kinesis), ("DynamoDBStreams", dynamodb), ("SQS", sqs)])
def test_the_concurrent_processor_reports_the_failures_of_each_kind_of_event(
    recipes: Recipes, event_type: str, batch: Any
) -> None:
    processor = recipes.ConcurrentBatchProcessor(recipes.EventType[event_type])
    handled: list[str] = []

    def handle(record: Any) -> None:
        handled.append(threading.current_thread().name)
        if len(handled) == 1:
            raise ValueError("broken")

    answer = recipes.process_partial_response(batch("a", "b", "c"), handle, processor)

    assert len(failed(answer)) == 1
    assert len(handled) == 3
    assert threading.current_thread().name not in handled


def test_nothing_runs_on_after_the_handler_even_if_a_record_ends_its_process(recipes: Recipes, deliver: Any) -> None:
    is_waited_for = threading.Event()
    names = recipes.handler.__globals__
    wait = names["wait"]
    names["wait"] = lambda futures: is_waited_for.set() or wait(futures)

    def exit_at_first(order: str) -> None:
        if order == "a":
            raise SystemExit
        is_waited_for.wait(timeout=10)

    recipes.world.before = exit_at_first

    with pytest.raises(SystemExit):
        deliver("handler", sqs("a", "b"))
    [record] = boto3.client("dynamodb").scan(TableName="idempotency", ConsistentRead=True)["Items"]
    assert record["status"] == {"S": "COMPLETED"}


# Powertools' own rule


@unordered
def test_a_batch_of_which_every_record_fails_is_an_error_of_the_invocation(recipes: Recipes, deliver: Any, name: str) -> None:
    recipes.world.broken = {"a", "b"}

    with pytest.raises(BatchProcessingError):
        deliver(name, sqs("a", "b"))


# Order within a group

in_order = pytest.mark.parametrize(("name", "batch"), ALL[2:])


@in_order
def test_the_records_of_a_group_run_in_their_order_while_other_groups_run(
    recipes: Recipes, deliver: Any, name: str, batch: Any
) -> None:
    """Each record meets its like of the other group, so neither group waits for the other one to end."""
    meeting = Meeting(recipes, "PutItem", 2)

    reported = deliver(name, batch("x1", "y1", "x2", "y2", "x3", "y3", groups=("x", "y") * 3))

    assert (meeting.problem, reported) == ("", [])
    assert [order for order in recipes.world.effects if order[0] == "x"] == ["x1", "x2", "x3"]
    assert [order for order in recipes.world.effects if order[0] == "y"] == ["y1", "y2", "y3"]


@in_order
def test_a_group_stops_at_its_first_failure_and_the_others_do_not(recipes: Recipes, deliver: Any, name: str, batch: Any) -> None:
    event = batch("x1", "y1", "x2", "y2", "x3", groups=("x", "y", "x", "y", "x"))
    recipes.world.broken = {"x2"}

    reported = deliver(name, event)
    effects = sorted(recipes.world.effects)
    recipes.world.broken = set()
    again = deliver(name, event)

    assert effects == ["x1", "y1", "y2"]
    # A queue is told of all that is left; a stream goes on from the first failure.
    assert sorted(reported) == (["2", "4"] if name == "fifo_handler" else ["2"])
    assert again == []
    assert Counter(recipes.world.effects) == Counter(["x1", "x2", "x3", "y1", "y2"])


@in_order
def test_a_group_of_which_all_fails_is_no_error_of_the_invocation(recipes: Recipes, deliver: Any, name: str, batch: Any) -> None:
    recipes.world.broken = {"x1", "x2"}

    reported = deliver(name, batch("x1", "x2", "y1", groups=("x", "x", "y")))

    assert sorted(reported) == (["0", "1"] if name == "fifo_handler" else ["0"])
    assert recipes.world.effects == ["y1"]


# Figures


def test_the_threads_of_the_document_are_no_more_than_the_connections(recipes: Recipes) -> None:
    assert recipes.pool._max_workers <= MAX_POOL_CONNECTIONS
    assert f"A client made by this library has {MAX_POOL_CONNECTIONS};" in DOCUMENT
    assert f"{CALL_WORKERS} requests to DynamoDB are under way at once" in DOCUMENT
