"""Defects of Powertools for Python 3.37 on DynamoDB, and this library beside it: one story, one proxy, told to both.

The rows are those of `test_peer_rows.py`.  Powertools speaks through a client with boto3's own retries, whose pauses are made in
fake time, and this library through the clients that it makes: boto3's, and its own lean one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from doubles import FakeClock, LambdaContext
from fault.proxy import FaultProxy, Harm
from faults import Suspended
from powertools_side import Library, ours_on, powertools_on, set_powertools_clock
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Told = tuple[list[Any], list[str]]

#: What it means that the first assertion of a test fails.
REPAIRED = "Powertools no longer does this: update the table in README"
EVENT = {"id": "order-1"}
#: More than the SDK tries in any of its modes.
MANY = 10


@dataclass
class Side:
    """One library, through the proxy, on a table and a clock of its own.

    Attributes:
        runs: The runs of every story's function, by name.
        got: What callers got: a result, or the name of an error.
    """

    library: Library
    proxy: FaultProxy
    clock: FakeClock
    runs: list[str] = field(default_factory=list)
    got: list[Any] = field(default_factory=list)

    def handler(self, name: str, end: Callable[[], Any], **settings: Any) -> Callable[[], Any]:
        """A call of a handler whose run ends as told, with 15 s to go."""

        def run(event: dict[str, Any], context: Any) -> Any:
            self.runs.append(name)
            return end()

        decorated = self.library.decorate(run, **settings)
        return lambda: decorated(EVENT, LambdaContext(remaining_ms=15_000, clock=self.clock))

    def call(self, handler: Callable[[], Any]) -> None:
        """Call it and remember what its caller gets."""
        try:
            self.got.append(handler())
        except (Exception, Suspended) as error:
            self.got.append(type(error).__name__)

    def harm_many(self, operation: str, **strike: Any) -> None:
        for call in range(1, MANY + 1):
            self.proxy.harm(operation, call, Harm.THROTTLE, **strike)

    def outlive_the_lease(self) -> None:
        """Powertools' ends with the deadline, this library's a second later."""
        self.clock.advance(ms=16_125)

    @property
    def told(self) -> Told:
        return self.got, self.runs


@dataclass
class Sides:
    powertools: Side
    #: With boto3's client, and with the lean one.
    ours: list[Side]


@pytest.fixture
def sides(dynamodb_local: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sides]:
    clock = FakeClock()
    set_powertools_clock(monkeypatch, clock)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: clock.sleep_ms(1000 * seconds)))
    tables = [dynamodb(clock, dynamodb_local).store.table_name for _ in range(3)]
    proxy = FaultProxy(dynamodb_local)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    session = boto3.Session()
    monkeypatch.setattr("persistence.dynamodb.READ_TIMEOUT", 1)
    clients = [
        session.client("dynamodb", config=Config(read_timeout=1)),
        DynamoDBPersistenceLayer(tables[1], boto3_session=session).client,
        DynamoDBPersistenceLayer(tables[2], client="lean").client,
    ]
    powertools, *ours = (
        Side(library, proxy, clock)
        for library in (
            powertools_on(tables[0], clients[0]),
            ours_on(tables[1], clients[1], clock),
            ours_on(tables[2], clients[2], clock),
        )
    )
    yield Sides(powertools, ours)
    for client in clients:
        client.close()
    proxy.stop()


def boom() -> None:
    raise OSError("boom")


def suspend() -> None:
    raise Suspended


@pytest.mark.parametrize("harm", [Harm.LOSE_ANSWER, Harm.ERROR_AFTER, Harm.HANG], ids=lambda harm: harm.name)
def test_row_1_a_claim_whose_answer_is_lost(sides: Sides, harm: Harm) -> None:
    """Powertools takes its own claim for another's and does not run the function."""

    def story(side: Side) -> Told:
        pay = side.handler("pay", lambda: "paid")
        side.proxy.harm("PutItem", 1, harm)
        side.call(pay)
        side.call(pay)
        return side.told

    assert story(sides.powertools) == (["IdempotencyAlreadyInProgressError"] * 2, []), REPAIRED
    for ours in sides.ours:
        assert story(ours) == (["paid"] * 2, ["pay"])


def test_row_2_a_late_completion(sides: Sides) -> None:
    """Powertools lets it overwrite the winner's result, so callers of one key get two."""

    def story(side: Side) -> Told:
        def late() -> str:
            side.outlive_the_lease()
            side.call(winner)
            return "zombie's"

        winner = side.handler("winner", lambda: "winner's")
        side.call(side.handler("zombie", late))
        side.call(winner)
        return side.told

    assert story(sides.powertools) == (["winner's", "zombie's", "zombie's"], ["zombie", "winner"]), REPAIRED
    for ours in sides.ours:
        assert story(ours) == (["winner's"] * 3, ["zombie", "winner"])


def test_row_2_a_late_failure(sides: Sides) -> None:
    """Powertools lets it delete the winner's result, so the function runs a third time."""

    def story(side: Side) -> Told:
        def late() -> None:
            side.outlive_the_lease()
            side.call(winner)
            boom()

        winner = side.handler("winner", lambda: "winner's")
        side.call(side.handler("zombie", late))
        side.call(winner)
        return side.told

    assert story(sides.powertools) == (["winner's", "OSError", "winner's"], ["zombie", "winner", "winner"]), REPAIRED
    for ours in sides.ours:
        assert story(ours) == (["winner's", "OSError", "winner's"], ["zombie", "winner"])


def test_row_3_a_delete_that_is_repeated_after_a_lost_answer(sides: Sides) -> None:
    """Powertools removes the claim of the successor that came in between, so two run at once."""

    def story(side: Side) -> Told:
        successor = side.handler("successor", suspend)  # it stays at work, as far as the record tells
        side.proxy.harm("DeleteItem", 1, Harm.LOSE_ANSWER, then=lambda: side.call(successor))
        side.call(side.handler("failing", boom))
        side.call(side.handler("third", lambda: "paid"))
        return side.told

    assert story(sides.powertools) == (["Suspended", "OSError", "paid"], ["failing", "successor", "third"]), REPAIRED
    refused = "IdempotencyAlreadyInProgressError"
    for ours in sides.ours:
        assert story(ours) == (["Suspended", "OSError", refused], ["failing", "successor"])


@pytest.mark.parametrize("result", [object(), "x" * 500_000], ids=["no JSON", "500 KB"])
def test_row_7_a_result_that_cannot_be_stored(sides: Sides, result: Any) -> None:
    """Powertools runs the function again at each redelivery after the lease."""

    def story(side: Side) -> list[str]:
        pay = side.handler("pay", lambda: result)
        for _ in range(3):
            side.call(pay)
            side.outlive_the_lease()
        return side.runs

    assert story(sides.powertools) == ["pay"] * 3, REPAIRED
    for ours in sides.ours:
        assert story(ours) == ["pay"]


def test_row_8_a_completion_that_is_throttled_for_longer_than_the_sdk_tries(sides: Sides) -> None:
    """Powertools gives up while seconds of its lease remain, and the function runs again after it."""

    def story(side: Side) -> tuple[Told, bool]:
        deadline_ms = side.clock() + 15_000
        pay = side.handler("pay", lambda: "paid")
        side.harm_many("UpdateItem")
        side.call(pay)
        is_in_time = side.clock() < deadline_ms
        side.proxy.heal()
        side.outlive_the_lease()
        side.call(pay)
        return side.told, is_in_time

    assert story(sides.powertools) == ((["IdempotencyPersistenceLayerError", "paid"], ["pay", "pay"]), True), REPAIRED
    for ours in sides.ours:
        assert story(ours) == ((["paid", "paid"], ["pay"]), True)


def test_row_9_a_throttled_claim_with_a_second_to_go(sides: Sides) -> None:
    """Powertools' caller is stopped before it hears of it.  The service asks for pauses of a second; by chance, they vary."""

    def story(side: Side) -> tuple[Told, bool]:
        decorated = side.library.decorate(lambda _event, _context: side.runs.append("pay"))
        deadline_ms = side.clock() + 1_000
        side.harm_many("PutItem", retry_after_ms=1_000)
        side.call(lambda: decorated(EVENT, LambdaContext(remaining_ms=1_000, clock=side.clock)))
        side.proxy.heal()
        return side.told, side.clock() < deadline_ms

    assert story(sides.powertools) == ((["IdempotencyPersistenceLayerError"], []), False), REPAIRED
    for ours in sides.ours:
        assert story(ours) == ((["IdempotencyPersistenceLayerError"], []), True)
