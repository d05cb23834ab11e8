"""Durable executions with AWS's own SDK and its local runner: `@durable_execution` goes above `@idempotent`.

The runner skips the time of waits, so nothing here sleeps through one; it polls for a callback each 10 ms.
"""

from __future__ import annotations

import json
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from aws_durable_execution_sdk_python import DurableContext, durable_execution
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.exceptions import BotoClientError, DurableApiErrorCategory, InvocationError
from aws_durable_execution_sdk_python_testing import DurableFunctionTestRunner
from behaviour.kit import PREFIX, CountingStore, key_of
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, current_attempt, idempotent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock

    from persistence.base import BasePersistenceLayer

ORDER = json.dumps({"id": 7})
#: The lease of an execution must exceed its longest wait.
CONFIG = IdempotencyConfig("id", lease_seconds=24 * 3600)
#: What the runner's Lambda context says.
INVOCATION_MS = 900_000


class Payments:
    """A durable handler: charges a card in a step, waits for an approval and a second, ships in another step."""

    def __init__(self, new_store: Callable[[], BasePersistenceLayer]) -> None:
        self.invocations = 0
        self.effects: list[str] = []
        self.tokens: list[str] = []
        self.handler = durable_execution(self._handle)
        self.new_store = new_store

    def _handle(self, event: Any, context: DurableContext) -> Any:
        """Decorated anew for each invocation, as if each ran in a process of its own."""
        self.invocations += 1
        return idempotent(persistence_store=self.new_store(), config=CONFIG, key_prefix=PREFIX)(self._pay)(event, context)

    @property
    def _pay(self) -> Any:
        def pay(event: Any, context: DurableContext) -> Any:
            self.tokens.append(current_attempt().owner_token)
            charged = context.step(lambda _: self.effect("charged"), name="charge")
            approval = context.create_callback(name="approval").result()
            context.wait(Duration.from_seconds(1))
            shipped = context.step(lambda _: self.effect("shipped"), name="ship")
            return {"steps": [charged, shipped], "approval": approval}

        return pay

    def effect(self, name: str) -> str:
        self.effects.append(name)
        return name


class Runner:
    """AWS's local runner of durable executions, closed to the last socket."""

    def __init__(self, handler: Any) -> None:
        self.sdk = DurableFunctionTestRunner(handler=handler, poll_interval=0.01)

    def start(self, name: str) -> str:
        """Start an execution; returns its ARN once it waits for its approval."""
        arn = self.sdk.run_async(input=ORDER, execution_name=name, execution_timeout=60)
        self.callback_id = self.sdk.wait_for_callback(arn, name="approval", timeout=30)
        return arn

    def approve(self, arn: str) -> Any:
        self.sdk.send_callback_success(self.callback_id, b"yes")
        return self.sdk.wait_for_result(arn, timeout=30)

    def run(self, name: str) -> Any:
        return self.sdk.run(input=ORDER, execution_name=name, execution_timeout=30)

    def close(self) -> None:
        self.sdk.close()
        self.sdk._scheduler._loop.close()  # the runner leaves its event loop open


@pytest.fixture
def payments(store: CountingStore) -> Payments:
    return Payments(lambda: store)


@pytest.fixture
def runner(payments: Payments) -> Iterator[Runner]:
    made = Runner(payments.handler)
    yield made
    made.close()


DONE = {"steps": ["charged", "shipped"], "approval": "yes"}


def test_each_step_of_an_execution_happens_once_and_its_result_is_stored(
    runner: Runner, payments: Payments, stored: Callable[[Any], Any]
) -> None:
    done = runner.approve(runner.start("one"))

    assert (done.status.value, json.loads(done.result)) == ("SUCCEEDED", DONE)
    assert payments.effects == ["charged", "shipped"]
    assert payments.invocations >= 3  # suspended by the callback and by the wait
    assert stored(7).response_json_as_dict() == DONE


def test_the_claim_survives_each_suspension_under_one_owner_token(
    runner: Runner, payments: Payments, stored: Callable[[Any], Any]
) -> None:
    arn = runner.start("one")
    suspended = stored(7)
    runner.approve(arn)

    assert suspended.stored_status == "INPROGRESS"
    assert len(payments.tokens) == payments.invocations
    assert set(payments.tokens) == {suspended.owner_token} == {stored(7).owner_token}
    assert stored(7).generation == 1


def test_a_second_execution_is_refused_while_the_first_waits_beyond_its_invocations_deadline(
    runner: Runner, payments: Payments, clock: FakeClock
) -> None:
    arn = runner.start("one")
    clock.advance(ms=INVOCATION_MS + 60_000)

    second = runner.run("two")
    first = runner.approve(arn)

    assert second.status.value == "FAILED"
    assert second.error.message.startswith(
        f"Execution already in progress with idempotency key: id={key_of(7)}. Held by request "
    )
    assert json.loads(first.result) == DONE
    assert payments.effects == ["charged", "shipped"]


def test_a_second_execution_gets_the_stored_result_of_the_first(runner: Runner, payments: Payments) -> None:
    runner.approve(runner.start("one"))

    second = runner.run("two")

    assert (second.status.value, json.loads(second.result)) == ("SUCCEEDED", DONE)
    assert payments.effects == ["charged", "shipped"]


def test_invocations_that_share_nothing_but_a_table_continue_one_execution(dynamodb_local: str, clock: FakeClock) -> None:
    made = dynamodb(clock, dynamodb_local)
    table: str = made.store.table_name  # type: ignore[attr-defined]
    client: Any = made.store.client  # type: ignore[attr-defined]

    def new_store() -> DynamoDBPersistenceLayer:
        store = DynamoDBPersistenceLayer(table, boto3_client=client)
        store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
        return store

    payments = Payments(new_store)
    runner = Runner(payments.handler)
    try:
        arn = runner.start("one")
        clock.advance(ms=INVOCATION_MS + 60_000)
        refused = runner.run("two")
        done = runner.approve(arn)
        replayed = runner.run("three")
    finally:
        runner.close()

    record = made.peek(key_of(7))
    assert [refused.status.value, done.status.value, replayed.status.value] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    assert json.loads(done.result) == json.loads(replayed.result) == DONE
    assert payments.effects == ["charged", "shipped"]
    assert record is not None
    assert (record["status"], record["generation"]) == ("COMPLETED", 1)


def test_an_invocation_that_the_sdk_will_repeat_keeps_the_claim(store: CountingStore, stored: Callable[[Any], Any]) -> None:
    """Its execution goes on: freed, the key could go to another execution, after this one's first steps have happened."""
    has_failed, records = Event(), []

    @durable_execution
    @idempotent(persistence_store=store, config=CONFIG, key_prefix=PREFIX)
    def handler(event: Any, context: DurableContext) -> None:
        raise InvocationError("a checkpoint could not be written; Lambda repeats the invocation")

    def watched(event: Any, context: Any) -> Any:
        try:
            return handler(event, context)
        finally:
            records.append(stored(7))
            has_failed.set()

    runner = Runner(watched)
    try:
        runner.sdk.run_async(input=ORDER, execution_timeout=30)
        assert has_failed.wait(timeout=30)
    finally:
        runner.close()

    assert [record and record.stored_status for record in records] == ["INPROGRESS"]


def test_an_error_by_which_the_sdk_ends_the_execution_frees_the_key(store: CountingStore, stored: Callable[[Any], Any]) -> None:
    """An `InvocationError` as well, told apart by `is_retryable()`: nobody would come back for the claim."""

    @durable_execution
    @idempotent(persistence_store=store, config=CONFIG, key_prefix=PREFIX)
    def handler(event: Any, context: DurableContext) -> None:
        raise BotoClientError("the function may not write checkpoints", DurableApiErrorCategory.EXECUTION)

    runner = Runner(handler)
    try:
        failed = runner.run("one")
    finally:
        runner.close()

    assert (failed.status.value, failed.error.message) == ("FAILED", "the function may not write checkpoints")
    assert stored(7) is None
