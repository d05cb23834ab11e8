"""Durable executions, told with contexts of the SDK's shape: suspended by a BaseException, continued in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, Mock

import pytest
from behaviour.kit import PREFIX, CountingStore, key_of
from doubles import FakeClock, LambdaContext
from engines.tables import client_for
from stores import dynamodb

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    current_attempt,
    idempotent,
    idempotent_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from idempotency.heartbeat import Heartbeat

ORDER = {"id": 7}
LEASE_SECONDS = 3600


class Suspended(BaseException):
    """As the SDK's `SuspendExecution`: no `Exception`, so that user code does not catch it."""


@dataclass
class State:
    operations: dict[str, object]


@dataclass
class StateWithArn(State):
    durable_execution_arn: str


@dataclass
class DurableContext:
    """What the SDK passes to a handler: one operation at the start of an execution, more in each replay."""

    state: State
    lambda_context: LambdaContext = field(default_factory=LambdaContext)


def first(arn: str | None = "execution-1", context: LambdaContext | None = None) -> DurableContext:
    return continued(arn, context, operations=1)


def continued(arn: str | None = "execution-1", context: LambdaContext | None = None, operations: int = 3) -> DurableContext:
    found: dict[str, object] = {str(number): object() for number in range(operations)}
    state = State(found) if arn is None else StateWithArn(found, arn)
    return DurableContext(state, context or LambdaContext())


class Story:
    """A durable handler that is suspended in its first invocation and finishes in its second."""

    def __init__(self, store: CountingStore, **settings: Any) -> None:
        self.steps: list[str] = []
        settings = {"lease_seconds": LEASE_SECONDS, **settings}

        @idempotent(persistence_store=store, config=IdempotencyConfig("id", **settings), key_prefix=PREFIX)
        def handler(event: Any, context: DurableContext) -> str:
            if len(context.state.operations) == 1:
                self.steps.append("charged")
                raise Suspended
            self.steps.append("finished")
            return "done"

        self.call = handler

    def suspend(self, context: DurableContext) -> None:
        with pytest.raises(Suspended):
            self.call(ORDER, context)


@pytest.fixture(params=["execution-1", None], ids=["arn", "no arn"])
def arn(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def story(store: CountingStore) -> Story:
    return Story(store)


def test_a_suspended_execution_keeps_its_claim(
    story: Story, store: CountingStore, stored: Callable[[Any], Any], arn: Any
) -> None:
    story.suspend(first(arn))

    assert stored(7).stored_status == "INPROGRESS"
    assert "delete" not in store.asked


def test_a_continued_execution_goes_on_with_its_claim_and_completes_it(
    story: Story, stored: Callable[[Any], Any], arn: Any
) -> None:
    story.suspend(first(arn))
    claimed = stored(7)

    assert story.call(ORDER, continued(arn)) == "done"
    assert story.steps == ["charged", "finished"]
    assert (stored(7).stored_status, stored(7).owner_token, stored(7).generation) == ("COMPLETED", claimed.owner_token, 1)


@pytest.mark.parametrize("kind", [Mock, MagicMock])
def test_a_mock_is_not_taken_for_a_durable_context(store: CountingStore, stored: Callable[[Any], Any], kind: Any) -> None:
    """It answers every name; as a durable execution's, its claim would outlive a failed call."""
    context = kind()
    context.get_remaining_time_in_millis.return_value = 30_000

    @idempotent(persistence_store=store, config=IdempotencyConfig("id"), key_prefix=PREFIX)
    def handler(event: Any, context: Any) -> str:
        assert stored(7).in_progress_expiry_timestamp == store.clock_ms() + 31_000
        raise Suspended

    with pytest.raises(Suspended):
        handler(ORDER, context)


def test_another_process_adopts_the_claim_of_an_execution(store: CountingStore, stored: Callable[[Any], Any], arn: Any) -> None:
    """Nothing of the first decorated function is left there; with an ARN the owner token is derived from it."""
    Story(store).suspend(first(arn))
    claimed = stored(7)
    elsewhere = Story(store)

    assert elsewhere.call(ORDER, continued(arn)) == "done"
    assert stored(7).owner_token == claimed.owner_token


def test_a_completed_execution_replays_to_others_and_to_itself(story: Story, arn: Any) -> None:
    story.suspend(first(arn))
    story.call(ORDER, continued(arn))

    assert story.call(ORDER, continued(arn)) == "done"
    assert story.call(ORDER, first("execution-2")) == "done"
    assert story.steps == ["charged", "finished"]


def test_another_execution_is_refused_beyond_the_deadline_of_the_first_ones_invocation(
    story: Story, clock: FakeClock, arn: Any
) -> None:
    """Powertools' lease ended with the invocation, so a second execution of the key ran (row 22 of what we do better)."""
    story.suspend(first(arn, LambdaContext(30_000, clock=clock)))

    for ms in (30_000, 1_001, 1_000 * LEASE_SECONDS - 31_001):
        clock.advance(ms=ms)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            story.call(ORDER, first("execution-2"))
    clock.advance(ms=1)
    story.suspend(first("execution-2"))

    assert story.steps == ["charged", "charged"]


def test_a_plain_invocation_is_refused_while_an_execution_is_suspended(story: Story, clock: FakeClock) -> None:
    story.suspend(first())
    clock.advance(seconds=LEASE_SECONDS)

    with pytest.raises(IdempotencyAlreadyInProgressError):
        story.call(ORDER, LambdaContext())  # type: ignore[arg-type]


def test_an_execution_with_an_arn_does_not_adopt_another_executions_claim(story: Story) -> None:
    story.suspend(first("execution-1"))

    with pytest.raises(IdempotencyAlreadyInProgressError):
        story.call(ORDER, continued("execution-2"))

    assert story.steps == ["charged"]


def test_without_an_arn_every_replay_adopts_the_claim_in_progress(story: Story) -> None:
    """As in Powertools: a context that does not tell which execution it is of leaves no other choice."""
    story.suspend(first(None))

    assert story.call(ORDER, continued(None)) == "done"


def test_without_an_arn_a_first_invocation_adopts_nothing(story: Story) -> None:
    story.suspend(first(None))

    with pytest.raises(IdempotencyAlreadyInProgressError):
        story.call(ORDER, first(None))


def test_an_invocation_that_is_repeated_before_its_first_checkpoint_finds_its_own_claim(story: Story) -> None:
    """The service repeats an invocation that crashed; with one operation it looks like a new execution."""
    story.suspend(first("execution-1"))
    story.suspend(first("execution-1"))

    assert story.steps == ["charged", "charged"]


def test_an_execution_whose_lease_ended_while_nobody_came_claims_its_key_again(
    story: Story, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    story.suspend(first())
    clock.advance(ms=1000 * LEASE_SECONDS + 1)

    assert story.call(ORDER, continued()) == "done"
    assert stored(7).generation == 2


def test_an_execution_that_was_superseded_gets_the_winners_result(story: Story, clock: FakeClock) -> None:
    story.suspend(first("execution-1"))
    clock.advance(ms=1000 * LEASE_SECONDS + 1)
    story.suspend(first("execution-2"))
    story.call(ORDER, continued("execution-2"))

    assert story.call(ORDER, continued("execution-1")) == "done"
    assert story.steps == ["charged", "charged", "finished"]


def test_a_claim_that_is_adopted_in_its_last_moment_is_renewed_before_it_ends(
    store: CountingStore, clock: FakeClock, heart: Heartbeat
) -> None:
    """Otherwise the next heartbeat, a third of a lease later, would come too late for it."""
    refused: list[str] = []

    @idempotent(persistence_store=store, config=IdempotencyConfig("id", lease_seconds=LEASE_SECONDS), key_prefix=PREFIX)
    def handler(event: Any, context: DurableContext) -> str:
        if context.state.durable_execution_arn == "execution-2":  # type: ignore[attr-defined]
            return "ran twice"
        if len(context.state.operations) == 1:
            raise Suspended
        heart.beat()
        clock.advance(ms=1)
        try:
            handler(event, first("execution-2"))
        except IdempotencyAlreadyInProgressError as error:
            refused.append(str(error))
        return "done"

    with pytest.raises(Suspended):
        handler(ORDER, first("execution-1"))
    clock.advance(ms=1000 * LEASE_SECONDS)

    assert handler(ORDER, continued("execution-1")) == "done"
    assert len(refused) == 1


def test_the_deadline_of_an_invocation_reaches_the_functions_that_a_durable_handler_calls(
    store: CountingStore, clock: FakeClock, arn: Any
) -> None:
    """A step is over with its invocation: its lease is the invocation's."""

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def step(order: Any) -> int:
        lease_end_ms = current_attempt().lease_end_ms
        assert lease_end_ms is not None
        return lease_end_ms - clock.now_ms

    @idempotent(persistence_store=store)
    def handler(event: Any, context: DurableContext) -> int:
        return step(order=1)

    assert handler(ORDER, first(arn, LambdaContext(5_000))) == 6_000


def test_a_failed_execution_frees_its_key(store: CountingStore, stored: Callable[[Any], Any], arn: Any) -> None:
    @idempotent(persistence_store=store, config=IdempotencyConfig("id"), key_prefix=PREFIX)
    def handler(event: Any, context: DurableContext) -> None:
        raise LookupError("declined")

    with pytest.raises(LookupError, match="^declined$"):
        handler(ORDER, first(arn))

    assert stored(7) is None


def test_a_claim_names_the_invocation_that_made_it(story: Story, stored: Callable[[Any], Any], arn: Any) -> None:
    story.suspend(first(arn, LambdaContext(aws_request_id="request-3")))

    assert stored(7).holder == "request-3"


def test_two_functions_of_one_execution_have_owner_tokens_of_their_own(store: CountingStore) -> None:
    tokens: list[str] = []

    def noting(event: Any, context: DurableContext) -> None:
        tokens.append(current_attempt().owner_token)

    for prefix in ("a", "b", "a"):
        idempotent(noting, persistence_store=store, key_prefix=prefix)(len(tokens) + 1, first())

    assert len(tokens) == 3
    assert tokens[0] == tokens[2] != tokens[1]


OTHER_PROCESS = """
import sys, json
sys.path[:0] = json.loads(sys.argv[1])
from behaviour.test_durable import Story, first, Suspended
from doubles import FakeClock
from engines.tables import client_for
from idempotency import DynamoDBPersistenceLayer
store = DynamoDBPersistenceLayer(sys.argv[3], boto3_client=client_for(sys.argv[2]))
store.clock_ms = FakeClock()
Story(store).suspend(first("execution-1"))
"""


def test_an_execution_suspended_in_one_process_is_finished_by_another(dynamodb_local: str, clock: FakeClock) -> None:
    made = dynamodb(clock, dynamodb_local)
    table: str = made.store.table_name  # type: ignore[attr-defined]
    paths = json.dumps([path for path in sys.path if path])
    subprocess.run([sys.executable, "-P", "-c", OTHER_PROCESS, paths, dynamodb_local, table], check=True)
    suspended = made.peek(key_of(7))
    here = Story(made.store)  # type: ignore[arg-type]
    clock.advance(seconds=LEASE_SECONDS)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        here.call(ORDER, first("execution-2"))

    assert here.call(ORDER, continued("execution-1")) == "done"
    finished = made.peek(key_of(7))
    assert suspended is not None
    assert finished is not None
    assert (suspended["status"], finished["status"]) == ("INPROGRESS", "COMPLETED")
    assert (finished["owner_token"], finished["generation"]) == (suspended["owner_token"], 1)
    assert here.call(ORDER, first("execution-2")) == "done"
    assert here.steps == ["finished"]
    client_for(dynamodb_local).delete_table(TableName=table)
