"""Transactions under faults: whatever gets lost, delayed or torn away, the writes are applied once, or not at all.

Every story counts in the caller's own table: each commit that is applied adds 1 to `count`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from threading import Event
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from doubles import LambdaContext
from engines.tables import create_table, shared_client
from fault.proxy import APPLIED, FaultProxy, Harm
from fault.test_interruptions import Gate
from fault.test_peer_rows import durable
from faults import (
    ASYNC,
    KEY,
    ORDER,
    SYNC,
    UNKNOWN_OUTCOMES,
    Bench,
    Form,
    Suspended,
    access_denied,
    after,
    before,
    canceled,
    conflict,
    connection_closed,
    delayed,
    forgotten_by,
    internal_error,
    keyed,
    lost,
    parameter_mismatch,
    raise_boom,
    read_timeout,
    refused,
    table_not_found,
    throttle,
    throttled_after_a_lost_answer,
    transaction_in_progress,
)
from stores import dynamodb

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyAlreadyInProgressError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
    IdempotencyTransactionCanceledError,
    idempotent_function,
    transaction,
)
from idempotency.events import Claimed, Completed, LeaseLost, Released, Throttled, Uncommitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from faults import Fault, Send

    from persistence.background import Heartbeat

COMMIT = "transact_write_items"

#: What a note says after a release that was done.
SETTLED = "The claim was released: nothing of the transaction was written."
NOT_KNOWN = "Whether the transaction was written is not known"

UNKNOWN = [*UNKNOWN_OUTCOMES, transaction_in_progress]
each_unknown_outcome = pytest.mark.parametrize(
    ("form", "error"),
    [*[(SYNC, error) for error in UNKNOWN], (ASYNC, read_timeout)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
applied_or_not = pytest.mark.parametrize("struck", [lost, refused], ids=["applied", "not applied"])


@dataclass
class Orders:
    """A handler that counts its runs, returns a result of its own in each, and writes twice to the caller's own table.

    *meanwhile* happens in each run, before it returns.
    """

    bench: Bench
    form: Form = SYNC
    meanwhile: Callable[[], object] = lambda: None
    options: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    runs: Any = None
    results: list[str] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = self.table or create_table(self.bench.direct)
        self.runs = self.runs or count(1)
        self.handler = self.form.handler(self.place, self.bench.store, keyed(observers=[self.events.append], **self.options))

    def place(self, _event: Any) -> str:
        run = next(self.runs)
        collected = transaction()
        collected.update(
            TableName=self.table,
            Key={"id": "count"},
            UpdateExpression="ADD #n :one",
            ExpressionAttributeNames={"#n": "n"},
            ExpressionAttributeValues={":one": 1},
        )
        collected.put(TableName=self.table, Item={"id": f"order of run {run}"}, ConditionExpression="attribute_not_exists(id)")
        self.meanwhile()
        self.results.append(f"run {run}")
        return f"run {run}"

    def __call__(self, context: Any = None) -> Any:
        """One invocation, with 30 s to go."""
        return self.handler(ORDER, context or LambdaContext(remaining_ms=30_000, clock=self.bench.clock))

    def rival(self, form: Form = SYNC, meanwhile: Callable[[], object] = lambda: None) -> Orders:
        """Another process with the same function: its runs and writes count together with ours."""
        return Orders(self.bench, form, meanwhile, table=self.table, runs=self.runs, results=self.results)

    @property
    def applied(self) -> int:
        """How many commits were applied."""
        return counted(self.bench.direct, self.table)

    @property
    def told(self) -> list[type]:
        return [type(event) for event in self.events]

    def commits(self) -> list[dict[str, Any]]:
        return [request for operation, request in self.bench.client.requests if operation == COMMIT]


def counted(client: Any, table: str) -> int:
    """How many commits were applied; each has left an order, too."""
    items = client.scan(TableName=table, ConsistentRead=True)["Items"]
    found = [int(item["n"]["N"]) for item in items if item["id"]["S"] == "count"]
    assert sum(found) == len(items) - len(found)
    return sum(found)


def take_over(orders: Orders, meanwhile: Callable[[], object] = lambda: None) -> Callable[[], Any]:
    """The lease ends, and another process calls the function; it may stay at work."""

    def happen() -> None:
        orders.bench.client.heal()
        orders.bench.clock.advance(ms=31_001)
        try:
            orders.rival(meanwhile=meanwhile)()
        except Suspended:
            return

    return happen


def once(happens: Callable[[], object]) -> Callable[[], None]:
    """It happens in the first run, and in no later one."""
    left = [happens]

    def meanwhile() -> None:
        if left:
            left.pop()()

    return meanwhile


def land(on_their_way: list[Send]) -> None:
    for send in on_their_way:
        send()


def stay_at_work() -> None:
    raise Suspended


def vanish(bench: Bench) -> None:
    bench.direct.delete_item(TableName=bench.store.table_name, Key={"id": {"S": KEY}})


# An answer that is lost


@each_unknown_outcome
@applied_or_not
@pytest.mark.parametrize("times", [1, 4])
def test_a_commit_whose_answer_is_lost_is_applied_once_and_returns_the_result(
    bench: Bench, form: Form, error: Callable[[], Exception], struck: Callable[[Exception], Fault], times: int
) -> None:
    orders = Orders(bench, form)
    for call in range(1, times + 1):
        bench.client.at(COMMIT, call, struck(error()))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1
    assert bench.client.count(COMMIT) == times + 1


def test_a_commit_is_repeated_as_it_is_however_much_time_has_passed(bench: Bench, form: Form) -> None:
    """With another expiry, or another client token, it would be another transaction to DynamoDB."""
    orders = Orders(bench, form)

    def lose_and_wait(send: Send) -> Any:
        bench.clock.advance(seconds=4)
        raise read_timeout()

    for call in (1, 2, 3):
        bench.client.at(COMMIT, call, lose_and_wait)
    due = bench.clock.now_ms // 1000 + 3600
    orders()

    assert len(orders.commits()) == 4
    assert all(request == orders.commits()[0] for request in orders.commits())
    assert bench.peek(KEY)["expiration"] == due


def test_another_attempt_has_another_client_token(bench: Bench, form: Form) -> None:
    """Else DynamoDB would take its transaction for a repetition of this one, or refuse it for not being one."""
    orders = Orders(bench, form)
    for _ in range(2):
        orders()
        vanish(bench)

    tokens = [request["ClientRequestToken"] for request in orders.commits()]
    assert tokens[0] != tokens[1]
    assert orders.applied == 2


@each_unknown_outcome
def test_a_commit_that_is_repeated_after_its_client_token_was_forgotten_is_applied_once(
    bench: Bench, form: Form, error: Callable[[], Exception]
) -> None:
    """The record's condition settles it: our owner token and COMPLETED means that the first request was applied."""
    orders = Orders(bench, form)
    bench.client.at(COMMIT, 1, lost(error()))
    bench.client.at(COMMIT, 2, forgotten_by(bench.client))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1
    assert orders.told[:2] == [Claimed, Completed]
    assert bench.client.count("delete_item") == 0


def test_a_commit_whose_every_answer_is_lost_is_settled_by_its_release(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, lost(read_timeout()))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1
    assert orders.told[:3] == [Claimed, Uncommitted, Completed]
    assert bench.client.count("delete_item") == 1


def test_a_commit_that_never_arrives_is_an_error_and_frees_the_key(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(read_timeout()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to commit the transaction") as caught:
        orders()
    assert not isinstance(caught.value, IdempotencyTransactionCanceledError)
    assert SETTLED in str(caught.value)
    assert (orders.applied, bench.peek(KEY)) == (0, None)
    assert orders.told == [Claimed, Uncommitted, Released]
    bench.client.heal()

    assert orders() == "run 2"
    assert orders.applied == 1


def test_a_lost_answer_and_then_a_definite_error_is_settled_by_the_release(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.at(COMMIT, 1, lost(connection_closed()))
    bench.client.at(COMMIT, 2, refused(access_denied()))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1


def test_a_commit_that_the_client_applied_and_then_called_throttled_returns_the_result(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, throttled_after_a_lost_answer)

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1


def test_a_lost_answer_and_then_the_callers_own_condition_is_settled_by_the_release(bench: Bench, form: Form) -> None:
    """Its own first request made the condition fail, and the answer blames only that action."""
    orders = Orders(bench, form)
    bench.client.at(COMMIT, 1, lost(connection_closed()))
    bench.client.at(COMMIT, 2, refused(canceled(None, None, "ConditionalCheckFailed")))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1


# Time is up


@pytest.mark.parametrize("error", [read_timeout, transaction_in_progress, lambda: canceled("TransactionConflict", None, None)])
def test_the_last_commit_before_a_deadline_leaves_half_a_second_for_the_release(
    bench: Bench, form: Form, error: Callable[[], Exception]
) -> None:
    orders = Orders(bench, form)
    sent: list[int] = []

    def strike(_send: Send) -> Any:
        sent.append(bench.clock.now_ms)
        raise error()

    bench.client.always(COMMIT, strike)
    bench.client.always("delete_item", before(lambda: sent.append(bench.clock.now_ms)))
    deadline_ms = bench.clock.now_ms + 30_000
    with pytest.raises(IdempotencyPersistenceLayerError):
        orders()

    *_, last_commit, release = sent
    assert last_commit <= release <= deadline_ms - 500
    assert last_commit > deadline_ms - 500 - 2_000 - 10  # it did use the time
    assert bench.peek(KEY) is None


def test_without_a_deadline_a_commit_is_given_up_after_twenty_seconds(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(read_timeout()))
    start_ms = bench.clock.now_ms
    with pytest.raises(IdempotencyPersistenceLayerError):
        form.function(orders.place, bench.store)(ORDER)

    assert 18_000 - 10 <= bench.clock.now_ms - start_ms <= 20_000
    assert bench.peek(KEY) is None


def test_a_commit_is_sent_once_however_little_time_is_left(bench: Bench, form: Form) -> None:
    """The function has run: nothing is better than trying."""
    orders = Orders(bench, form)

    assert orders(LambdaContext(remaining_ms=0, clock=bench.clock)) == "run 1"
    assert orders.applied == 1


# The release settles


def test_a_delayed_commit_that_lands_before_the_release_returns_the_result(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    on_their_way: list[Send] = []
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.at(COMMIT, 1, delayed(on_their_way))
    bench.client.at("delete_item", 1, before(lambda: land(on_their_way)))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1


def landed_after(bench: Bench, orders: Orders, happens: Callable[[], object]) -> None:
    """A commit is given up, its claim is released, something happens, and then the commit lands."""
    on_their_way: list[Send] = []
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.at(COMMIT, 1, delayed(on_their_way))
    with pytest.raises(IdempotencyPersistenceLayerError):
        orders()
    bench.client.heal()
    happens()
    on_their_way[0]()


def test_a_delayed_commit_that_lands_after_the_release_writes_nothing(bench: Bench, form: Form) -> None:
    """An absent record must refuse it: its caller was told that nothing will be written."""
    orders = Orders(bench, form)
    landed_after(bench, orders, lambda: None)

    assert (orders.applied, bench.peek(KEY)) == (0, None)
    assert orders() == "run 2"
    assert orders.applied == 1


def test_a_delayed_commit_that_lands_while_the_next_attempt_runs_writes_nothing(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    on_their_way: list[Send] = []
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.at(COMMIT, 1, delayed(on_their_way))
    with pytest.raises(IdempotencyPersistenceLayerError):
        orders()
    bench.client.heal()

    assert orders.rival(form, meanwhile=lambda: land(on_their_way))() == "run 2"
    assert orders.applied == 1
    assert bench.peek(KEY)["data"] == '"run 2"'


def test_a_delayed_commit_that_lands_after_the_next_attempts_completion_writes_nothing(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    landed_after(bench, orders, orders.rival())

    assert orders.applied == 1
    assert bench.peek(KEY)["data"] == '"run 2"'


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["token known", "token forgotten"])
def test_a_delayed_copy_that_lands_after_its_own_commit_writes_nothing(bench: Bench, form: Form, is_forgotten: bool) -> None:
    """The owner token alone would let it: the record must be unfinished, too."""
    orders = Orders(bench, form)
    on_their_way: list[Send] = []
    bench.client.at(COMMIT, 1, delayed(on_their_way))
    assert orders() == "run 1"
    if is_forgotten:
        orders.commits()[0]["ClientRequestToken"] = "another"

    on_their_way[0]()

    assert orders.applied == 1


def test_a_release_refused_by_the_winner_that_has_completed_gives_its_result(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.at("delete_item", 1, before(take_over(orders)))

    assert [orders(), orders()] == ["run 2", "run 2"]
    assert orders.applied == 1
    assert orders.told == [Claimed, Uncommitted, LeaseLost, *orders.told[3:]]


def test_a_release_refused_by_the_winner_that_still_runs_is_an_error(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.at("delete_item", 1, before(take_over(orders, stay_at_work)))
    with pytest.raises(IdempotencyLeaseLostError, match="Nothing of its transaction was written"):
        orders()

    assert orders.applied == 0
    assert bench.peek(KEY)["generation"] == 2


@each_unknown_outcome
@applied_or_not
def test_a_release_whose_answer_is_lost_settles_all_the_same(
    bench: Bench, form: Form, error: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(access_denied()))
    bench.client.at("delete_item", 1, struck(error()))
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        orders()

    # If the record is gone, it cannot prove anything: perhaps a completed one has expired and was deleted by the table's TTL.
    assert (SETTLED in str(caught.value)) is (struck is refused)
    assert (NOT_KNOWN in str(caught.value)) is (struck is lost)
    assert (orders.applied, bench.peek(KEY)) == (0, None)


@applied_or_not
@pytest.mark.parametrize("trouble", [access_denied, read_timeout])
def test_a_commit_and_a_release_without_an_answer_are_an_error_that_says_what_is_known(
    bench: Bench, form: Form, trouble: Callable[[], Exception], struck: Callable[[Exception], Fault]
) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, struck(read_timeout()))
    bench.client.always("delete_item", refused(trouble()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to commit the transaction") as caught:
        orders()

    told = str(caught.value)
    assert f"Besides, the claim of idempotency key {KEY} could not be released: " in told
    assert "Whether the transaction was written is not known. If it was, a retry returns the stored result; " in told
    assert orders.told == [Claimed, Uncommitted, Released]
    assert orders.events[-1].error == "IdempotencyPersistenceLayerError"


def test_a_commit_that_was_applied_without_any_answer_is_replayed_by_the_next_call(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, lost(read_timeout()))
    bench.client.always("delete_item", refused(read_timeout()))
    with pytest.raises(IdempotencyPersistenceLayerError):
        orders()
    bench.client.heal()

    assert orders() == "run 1"
    assert orders.applied == 1


def test_a_commit_that_was_not_applied_and_not_released_holds_the_key_until_its_lease_ends(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    lease_end_ms = bench.clock.now_ms + 31_000
    bench.client.always(COMMIT, refused(read_timeout()))
    bench.client.always("delete_item", refused(read_timeout()))
    with pytest.raises(IdempotencyPersistenceLayerError):
        orders()
    bench.client.heal()
    bench.clock.now_ms = lease_end_ms
    with pytest.raises(IdempotencyAlreadyInProgressError):
        orders()

    bench.clock.advance(ms=1)

    assert orders() == "run 2"
    assert orders.applied == 1


# The fence


def test_an_attempt_that_was_superseded_writes_nothing_and_gets_the_winners_result(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    orders.meanwhile = once(take_over(orders))

    assert [orders(), orders()] == ["run 2", "run 2"]
    assert orders.results == ["run 2", "run 1"]
    assert orders.applied == 1
    assert orders.told[:2] == [Claimed, LeaseLost]
    assert bench.client.count("delete_item") == 0


def test_an_attempt_that_was_superseded_by_one_still_at_work_writes_nothing_and_is_told(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    orders.meanwhile = take_over(orders, stay_at_work)
    with pytest.raises(IdempotencyLeaseLostError) as caught:
        orders()

    assert str(caught.value) == (
        f"The function ran, but its lease had ended and another attempt owns idempotency key {KEY}. "
        "Nothing of its transaction was written. Retry the call to get that attempt's result. Held by request request-1."
    )
    assert orders.applied == 0
    assert bench.peek(KEY)["generation"] == 2


def test_a_winner_without_a_transaction_is_replayed_too(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)

    def other() -> None:
        bench.clock.advance(ms=31_001)
        SYNC.handler(lambda _event: "plain", bench.store)(ORDER, LambdaContext(clock=bench.clock))

    orders.meanwhile = other

    assert orders() == "plain"
    assert orders.applied == 0


def test_an_attempt_whose_lease_ended_unnoticed_still_commits(bench: Bench, form: Form) -> None:
    """Nobody has claimed the key since, so nobody else has run, or will."""
    orders = Orders(bench, form, lambda: bench.clock.advance(seconds=40))

    assert orders() == "run 1"
    assert orders.applied == 1


def test_a_commit_without_its_record_writes_nothing(bench: Bench, form: Form) -> None:
    """Deleted by hand: whoever did it may have told somebody that nothing happened."""
    orders = Orders(bench, form)
    orders.meanwhile = lambda: vanish(bench)
    with pytest.raises(
        IdempotencyLeaseLostError,
        match=f"no longer holds idempotency key {KEY}. Whether its transaction was written is not known. A retry",
    ):
        orders()
    assert (orders.applied, bench.peek(KEY)) == (0, None)
    orders.meanwhile = lambda: None

    assert orders() == "run 2"
    assert orders.applied == 1


def test_a_commit_whose_record_was_replaced_by_an_equal_generation_writes_nothing(bench: Bench, form: Form) -> None:
    """Deleted by hand and claimed anew, it is another's, though it is a first generation, too."""
    orders = Orders(bench, form)

    def replace() -> None:
        vanish(bench)
        orders.rival()()

    orders.meanwhile = once(replace)

    assert orders() == "run 2"
    assert orders.applied == 1
    assert bench.peek(KEY)["generation"] == 1


def test_a_commit_whose_record_was_restored_meanwhile_is_applied(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)

    def restore() -> None:
        table, client = bench.store.table_name, bench.direct
        item = client.get_item(TableName=table, Key={"id": {"S": KEY}}, ConsistentRead=True)["Item"]
        vanish(bench)
        client.put_item(TableName=table, Item=item)

    orders.meanwhile = restore

    assert orders() == "run 1"
    assert orders.applied == 1


def test_a_record_that_vanishes_after_a_commit_whose_answer_was_lost_does_not_cost_the_result(bench: Bench, form: Form) -> None:
    """Here the client token knows what the record no longer tells."""
    orders = Orders(bench, form)
    bench.client.at(COMMIT, 1, lost(read_timeout()))
    bench.client.at(COMMIT, 2, before(lambda: vanish(bench)))

    assert orders() == "run 1"
    assert orders.applied == 1


# Trouble of the moment, and what is final

CONFLICTS = [
    ("TransactionConflict", None, None),
    (None, "TransactionConflict", None),
    (None, "TransactionConflict", "TransactionConflict"),
]
THROTTLES = [
    (None, None, "ThrottlingError"),
    ("ProvisionedThroughputExceeded", None, None),
    ("TransactionConflict", "ThrottlingError", None),
]


@pytest.mark.parametrize("codes", CONFLICTS + THROTTLES, ids=str)
def test_a_transaction_canceled_by_trouble_of_the_moment_is_sent_again(bench: Bench, form: Form, codes: tuple[Any, ...]) -> None:
    orders = Orders(bench, form)
    for call in (1, 2, 3):
        bench.client.at(COMMIT, call, refused(canceled(*codes)))

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1
    assert bench.client.count(COMMIT) == 4
    assert all(request == orders.commits()[0] for request in orders.commits())


def test_the_pauses_between_tries_of_a_commit_are_jittered_and_grow(bench: Bench) -> None:
    ceilings = [50, 100, 200, 400, 800, 1600, 2000, 2000]
    pauses: list[list[float]] = []
    for _ in range(2):
        orders = Orders(bench)
        for call in range(1, len(ceilings) + 1):
            bench.client.at(COMMIT, call, refused(canceled("TransactionConflict", None, None)))
        del bench.clock.slept_ms[:]
        orders()
        vanish(bench)
        pauses.append(list(bench.clock.slept_ms))

    for slept in pauses:
        assert [0 <= pause <= ceiling for pause, ceiling in zip(slept, ceilings, strict=True)] == [True] * len(ceilings)
    assert pauses[0] != pauses[1]


@pytest.mark.parametrize(("codes", "is_told"), [*[(each, False) for each in CONFLICTS], *[(each, True) for each in THROTTLES]])
def test_observers_hear_of_throttled_commits_and_not_of_conflicts(
    bench: Bench, form: Form, codes: tuple[Any, ...], is_told: bool
) -> None:
    orders = Orders(bench, form)
    for call in (1, 2, 3):
        bench.client.at(COMMIT, call, refused(canceled(*codes)))
    orders()

    throttled = [(event.operation, event.requests) for event in orders.events if isinstance(event, Throttled)]
    assert throttled == [("TransactWriteItems", 3)] * is_told


def test_a_throttled_commit_is_sent_again(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)
    for call in (1, 2, 3):
        bench.client.at(COMMIT, call, refused(throttle()))

    assert orders() == "run 1"
    assert orders.applied == 1


@pytest.mark.parametrize("codes", CONFLICTS + THROTTLES, ids=str)
def test_conflicts_without_end_are_an_error_with_their_reasons_and_the_key_is_free(
    bench: Bench, form: Form, codes: tuple[Any, ...]
) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(canceled(*codes)))
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        orders()
    own, *others = codes

    assert [(reason.action, reason.code) for reason in caught.value.reasons] == list(zip(["update", "put"], others, strict=True))
    assert (f"its record: {own}" in str(caught.value)) == (own is not None)
    assert all(code in str(caught.value) for code in codes if code)
    assert SETTLED in str(caught.value)
    assert [event.reasons for event in orders.events if isinstance(event, Uncommitted)] == [
        tuple(code for code in others if code)
    ]
    assert (orders.applied, bench.peek(KEY)) == (0, None)
    bench.client.heal()
    assert orders() == "run 2"


@pytest.mark.parametrize(
    "codes",
    [
        (None, "TransactionConflict", "ConditionalCheckFailed"),
        ("TransactionConflict", None, "ConditionalCheckFailed"),
        (None, "ThrottlingError", "ValidationError"),
        (None, None, "ItemCollectionSizeLimitExceeded"),
    ],
    ids=str,
)
def test_a_final_reason_beside_trouble_of_the_moment_is_final(bench: Bench, form: Form, codes: tuple[Any, ...]) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, refused(canceled(*codes)))
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        orders()

    assert [reason.code for reason in caught.value.reasons] == list(codes[1:])
    assert bench.client.count(COMMIT) == 1
    assert bench.clock.slept_ms == []
    assert bench.peek(KEY) is None


@pytest.mark.parametrize("codes", [(), (None, "ConditionalCheckFailed")], ids=["none", "too few"])
def test_a_canceled_transaction_without_reasons_for_its_actions_is_the_stores_failure(
    bench: Bench, form: Form, codes: tuple[Any, ...]
) -> None:
    """A proxy, or another engine, that leaves them out: nobody is blamed, and the key is freed."""
    orders, cancellation = Orders(bench, form), canceled(*codes)
    bench.client.always(COMMIT, refused(cancellation))
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to commit the transaction") as caught:
        orders()

    assert not isinstance(caught.value, IdempotencyTransactionCanceledError)
    assert caught.value.__cause__ is cancellation
    assert bench.client.count(COMMIT) == 1
    assert bench.peek(KEY) is None


@pytest.mark.parametrize("error", [access_denied, table_not_found, parameter_mismatch])
def test_a_refusal_of_the_service_is_an_error_at_once_and_frees_the_key(
    bench: Bench, form: Form, error: Callable[[], Exception]
) -> None:
    orders = Orders(bench, form)
    refusal = error()
    bench.client.always(COMMIT, refused(refusal))
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to commit the transaction") as caught:
        orders()

    assert caught.value.__cause__ is refusal
    assert SETTLED in str(caught.value)
    assert (bench.client.count(COMMIT), bench.clock.slept_ms) == (1, [])
    assert (orders.applied, bench.peek(KEY)) == (0, None)


@pytest.mark.parametrize("operation", ["put_item", "update_item"])
def test_a_claim_and_a_plain_completion_that_meet_a_transaction_on_their_item_are_sent_again(
    bench: Bench, form: Form, operation: str
) -> None:
    """A delayed commit of an earlier attempt, or a user's own transaction, may be at work on the record."""
    pay = form.handler(lambda _event: "paid", bench.store)
    for call in (1, 2, 3):
        bench.client.at(operation, call, refused(conflict()))

    assert pay(ORDER, LambdaContext(clock=bench.clock)) == "paid"
    assert bench.peek(KEY)["status"] == "COMPLETED"


def test_a_release_that_meets_a_transaction_on_its_item_is_sent_again(bench: Bench, form: Form) -> None:
    pay = form.handler(lambda _event: raise_boom(), bench.store)
    for call in (1, 2, 3):
        bench.client.at("delete_item", call, refused(conflict()))
    with pytest.raises(OSError, match="boom") as caught:
        pay(ORDER, LambdaContext(clock=bench.clock))

    assert not hasattr(caught.value, "__notes__")
    assert bench.peek(KEY) is None


def test_a_lease_is_renewed_while_its_commit_is_repeated(bench: Bench, heart: Heartbeat) -> None:
    """Else another attempt could take the key over in the twenty seconds; the commit does not name the lease's end."""
    orders = Orders(bench)
    start_ms = bench.clock.now_ms

    def beat(_send: Send) -> Any:
        bench.clock.advance(seconds=4)
        heart.beat()
        raise read_timeout()

    ends: list[int] = []
    for call in (1, 2, 3):
        bench.client.at(COMMIT, call, beat)
    bench.client.at(COMMIT, 4, before(lambda: ends.append(bench.peek(KEY)["in_progress_expiration"])))

    assert SYNC.function(orders.place, bench.store, keyed(lease_seconds=10))(ORDER) == "run 1"
    assert ends[0] >= start_ms + 12_000 + 10_000 - 4_000
    assert orders.applied == 1


# Callers torn away


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_commit_that_was_applied_is_replayed(bench: Bench, leaves: type[BaseException]) -> None:
    orders = Orders(bench)
    bench.client.at(COMMIT, 1, lost(leaves()))
    with pytest.raises(leaves):
        orders()

    assert orders() == "run 1"
    assert orders.applied == 1


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_commit_that_was_not_applied_is_made_by_the_next_attempt(
    bench: Bench, leaves: type[BaseException]
) -> None:
    orders = Orders(bench)
    bench.client.at(COMMIT, 1, refused(leaves()))
    with pytest.raises(leaves):
        orders()
    with pytest.raises(IdempotencyAlreadyInProgressError):
        orders()
    bench.clock.advance(ms=31_001)

    assert orders() == "run 2"
    assert orders.applied == 1


def asynchronous(orders: Orders) -> Any:
    @idempotent_function(data_keyword_argument="event", persistence_store=orders.bench.store, config=keyed(), key_prefix="job")
    async def work(event: Any) -> Any:
        return orders.place(event)

    return work


@pytest.mark.parametrize("at", [before, after])
@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_is_finished_before_its_cancellation_follows(
    bench: Bench, times: int, at: Callable[[Callable[[], object]], Fault]
) -> None:
    orders = Orders(bench)

    async def story() -> None:
        gate = Gate()
        bench.client.at(COMMIT, 1, at(gate.hold))
        task = asyncio.create_task(asynchronous(orders)(event=ORDER))
        await gate.entered()
        for _ in range(times):
            task.cancel()
            for _ in range(10):  # passes of the event loop
                await asyncio.sleep(0)
            assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert bench.peek(KEY)["data"] == '"run 1"'
    assert orders.applied == 1
    assert orders() == "run 1"


def test_a_run_that_is_cancelled_writes_nothing_and_frees_the_key(bench: Bench) -> None:
    orders = Orders(bench)

    async def story() -> None:
        running = asyncio.Event()

        @idempotent_function(data_keyword_argument="event", persistence_store=bench.store, config=keyed(), key_prefix="job")
        async def work(event: Any) -> None:
            orders.place(event)
            running.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work(event=ORDER))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert (bench.client.count(COMMIT), orders.applied, bench.peek(KEY)) == (0, 0, None)


def test_a_coroutine_that_is_closed_during_its_commit_leaves_the_commit_to_its_end(bench: Bench) -> None:
    """As an abandoned event loop closes its tasks' coroutines: nothing can be awaited any more."""
    orders, landed = Orders(bench), Event()

    async def story() -> None:
        gate = Gate()

        def strike(send: Send) -> Any:
            gate.hold()
            answer = send()
            landed.set()
            return answer

        bench.client.at(COMMIT, 1, strike)
        entering = asyncio.ensure_future(gate.entered())
        call = asynchronous(orders)(event=ORDER)
        while not entering.done():
            awaited: asyncio.Future[Any] = call.send(None)
            awaited._asyncio_future_blocking = False
            await asyncio.wait([awaited, entering], return_when=asyncio.FIRST_COMPLETED)
        call.close()
        gate.open.set()

    asyncio.run(story())

    assert landed.wait(10)
    assert orders.applied == 1
    assert bench.client.count("delete_item") == 0
    assert orders() == "run 1"


# Durable executions: the same owner token in every process


def elsewhere(orders: Orders, meanwhile: Callable[[], object] = lambda: None) -> Callable[[], Any]:
    """The same durable execution is continued by another process."""
    return lambda: orders.rival(meanwhile=meanwhile)(durable(orders.bench.clock, orders.table, replay=True))


def test_of_two_processes_of_one_execution_the_first_commit_counts(bench: Bench, form: Form) -> None:
    """The second has another result, and so another client token: the record refuses it."""
    orders = Orders(bench, form, options={"lease_seconds": 3600})
    orders.meanwhile = once(elsewhere(orders))

    assert orders(durable(bench.clock, orders.table)) == "run 2"
    assert orders.results == ["run 2", "run 1"]
    assert orders.applied == 1
    assert bench.peek(KEY)["data"] == '"run 2"'


def test_transactions_of_one_execution_on_two_tables_are_no_repetition_of_each_other(
    bench: Bench, clock: FakeClock, dynamodb_local: str
) -> None:
    """DynamoDB compares client tokens over all tables, and those of one execution have one owner token."""
    orders = Orders(bench)
    orders(durable(clock, orders.table))
    other = SYNC.handler(orders.place, dynamodb(clock, dynamodb_local).store)

    assert other(ORDER, durable(clock, orders.table)) == "run 2"
    assert orders.applied == 2


def test_a_mismatch_of_client_tokens_is_settled_by_the_record(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form, options={"lease_seconds": 3600})
    bench.client.at(COMMIT, 1, refused(parameter_mismatch()))
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        orders(durable(bench.clock, orders.table))

    assert SETTLED in str(caught.value)
    assert (orders.applied, bench.peek(KEY)) == (0, None)


def test_an_execution_that_is_suspended_drops_its_writes_and_collects_them_again(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form, stay_at_work, options={"lease_seconds": 3600})
    with pytest.raises(Suspended):
        orders(durable(bench.clock, orders.table))
    assert (bench.client.count(COMMIT), orders.applied) == (0, 0)
    orders.meanwhile = lambda: None

    assert orders(durable(bench.clock, orders.table, replay=True)) == "run 2"
    assert orders.applied == 1


def test_an_execution_whose_commit_was_lost_with_its_process_gets_the_stored_result(bench: Bench) -> None:
    orders = Orders(bench, options={"lease_seconds": 3600})
    bench.client.at(COMMIT, 1, lost(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        orders(durable(bench.clock, orders.table))

    assert orders(durable(bench.clock, orders.table, replay=True)) == "run 1"
    assert orders.applied == 1


# Below the SDK

HARMS = [
    Harm.LOSE_ANSWER,
    Harm.LOSE_REQUEST,
    Harm.HANG,
    Harm.CUT,
    Harm.ERROR_AFTER,
    Harm.ERROR_BEFORE,
    Harm.THROTTLE,
    Harm.DELAY,
]


@dataclass
class Wired:
    """A store whose own client speaks through a proxy, and the bodies of the commits that came by."""

    proxy: FaultProxy
    bench: Bench
    bodies: list[bytes]


@pytest.fixture
def wired(bench: Bench, dynamodb_local: str, client_kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    proxy = FaultProxy(dynamodb_local)
    made = dynamodb(bench.clock, dynamodb_local)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    monkeypatch.setattr("persistence.dynamodb.READ_TIMEOUT", 0.25)
    session = boto3.Session() if client_kind == "boto3" else None
    store = DynamoDBPersistenceLayer(made.store.table_name, boto3_session=session, client=client_kind)
    store.clock_ms, store.sleep_ms = bench.clock, bench.clock.sleep_ms
    wired = Wired(proxy, Bench(store, bench.client, bench.clock, made.peek, made.client), [])

    def watch(request: Any, *_: object) -> None:
        if request.operation == "TransactWriteItems":
            wired.bodies.append(request.body)

    proxy.watch = watch
    yield wired
    proxy.stop()
    store.client.close()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
def test_a_harm_on_the_wire_is_no_second_write_and_its_repetition_is_the_same_to_the_byte(
    wired: Wired, client_kind: str, harm: Harm
) -> None:
    """Of boto3's answer to a write nothing need be read but that it is one: a cut one may do."""
    orders = Orders(wired.bench)
    wired.proxy.harm("TransactWriteItems", 1, harm)
    if harm is not Harm.HANG:
        wired.proxy.harm("TransactWriteItems", 2, harm)

    assert [orders(), orders()] == ["run 1", "run 1"]
    assert orders.applied == 1
    may_do = harm is Harm.CUT and client_kind == "boto3"
    assert len(wired.bodies) in ({1, 3} if may_do else {2} if harm is Harm.HANG else {3})
    assert set(wired.bodies) == {wired.bodies[0]}
    assert wired.proxy.repetitions == 0


@pytest.mark.parametrize("harm", APPLIED, ids=lambda harm: harm.name)
def test_a_wire_that_loses_every_answer_to_a_commit_returns_the_result(wired: Wired, harm: Harm) -> None:
    orders = Orders(wired.bench)
    for call in range(1, 200):
        wired.proxy.harm("TransactWriteItems", call, harm)

    assert orders() == "run 1"
    assert orders.applied == 1


@pytest.mark.parametrize("released", ["before the next call", "in the next run"])
def test_a_commit_that_the_network_kept_until_its_claim_was_released_writes_nothing(wired: Wired, released: str) -> None:
    orders = Orders(wired.bench)
    wired.proxy.harm("TransactWriteItems", 1, Harm.DELAY)
    for call in range(2, 200):
        wired.proxy.harm("TransactWriteItems", call, Harm.LOSE_REQUEST)
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        orders()
    assert SETTLED in str(caught.value)
    wired.proxy.heal()

    if released == "in the next run":
        orders.meanwhile = wired.proxy.release
    else:
        assert wired.proxy.release() == 1
    assert orders.applied == 0

    assert orders() == "run 2"
    assert orders.applied == 1


def test_ten_calls_that_write_one_item_at_the_same_time_all_get_through(bench: Bench, dynamodb_local: str) -> None:
    """Whatever DynamoDB makes of it: an order, or a conflict that is waited out."""
    orders = Orders(bench)
    client = shared_client(dynamodb_local)

    async def story() -> None:
        work = idempotent_function(
            _awaiting(orders), data_keyword_argument="event", persistence_store=bench.store, config=keyed(), key_prefix="job"
        )
        async with asyncio.timeout(30):
            await asyncio.gather(*[work(event={"id": number}) for number in range(10)])

    asyncio.run(story())

    assert counted(client, orders.table) == 10


def _awaiting(orders: Orders) -> Any:
    async def work(event: Any) -> Any:
        return orders.place(event)

    return work


# What nobody knows is not said


def test_a_commit_without_its_record_is_told_as_such_even_if_the_record_cannot_be_read(bench: Bench, form: Form) -> None:
    orders = Orders(bench, form)

    def meanwhile() -> None:
        vanish(bench)
        bench.client.always("get_item", refused(internal_error()))

    orders.meanwhile = meanwhile
    with pytest.raises(IdempotencyLeaseLostError, match="Whether its transaction was written is not known"):
        orders()


KEPT_SECONDS = 60


def live_out(orders: Orders, happens: Callable[[], object]) -> Fault:
    """The commit is applied and its answer lost; the completed record expires, and something happens to it."""

    def strike(send: Send) -> Any:
        send()
        orders.bench.clock.advance(seconds=KEPT_SECONDS + 2)
        happens()
        raise read_timeout()

    return strike


@pytest.mark.parametrize("released", [False, True], ids=["its client token forgotten", "released"])
def test_a_commit_whose_record_was_deleted_when_it_had_expired_is_not_said_to_have_written_nothing(
    bench: Bench, form: Form, released: bool
) -> None:
    """By the table's TTL, between a commit whose answer was lost and the next request, or an invocation that was frozen."""
    orders = Orders(bench, form, options={"expires_after_seconds": KEPT_SECONDS})
    bench.client.at(COMMIT, 1, live_out(orders, lambda: vanish(bench)))
    second = read_timeout() if released else canceled("ConditionalCheckFailed", None, None)
    bench.client.at(COMMIT, 2, refused(second))
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        orders(LambdaContext(remaining_ms=30_000 if released else 600_000, clock=bench.clock))

    assert orders.applied == 1
    assert "was written is not known" in str(caught.value)
    assert "othing of" not in str(caught.value)
    assert (caught.value.function_ran, caught.value.is_retryable) == (True, False)


@pytest.mark.parametrize("released", [False, True], ids=["its client token forgotten", "released"])
def test_a_commit_whose_record_was_taken_over_when_it_had_expired_is_not_said_to_have_written_nothing(
    bench: Bench, form: Form, released: bool
) -> None:
    orders = Orders(bench, form, options={"expires_after_seconds": KEPT_SECONDS})

    def take() -> None:
        with suppress(Suspended):
            orders.rival(meanwhile=stay_at_work)()

    bench.client.at(COMMIT, 1, live_out(orders, take))
    second = read_timeout() if released else canceled("ConditionalCheckFailed", None, None)
    bench.client.at(COMMIT, 2, refused(second))
    with pytest.raises(IdempotencyLeaseLostError) as caught:
        orders(LambdaContext(remaining_ms=30_000 if released else 600_000, clock=bench.clock))

    assert orders.applied == 1
    assert "Whether its transaction was written is not known" in str(caught.value)
    assert caught.value.is_retryable


def test_it_is_not_said_that_nothing_was_written_where_nobody_knows(bench: Bench, form: Form) -> None:
    """The first request was applied and its answer lost; the repetition blames the condition that it made fail itself."""
    orders = Orders(bench, form)
    bench.client.at(COMMIT, 1, lost(connection_closed()))
    bench.client.at(COMMIT, 2, refused(canceled(None, None, "ConditionalCheckFailed")))
    bench.client.always("delete_item", refused(access_denied()))
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        orders()

    assert orders.applied == 1
    assert "nothing of it was written" not in str(caught.value)


def test_an_unprotected_commit_without_an_answer_does_not_promise_a_stored_result(
    bench: Bench, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders(bench, form)
    bench.client.always(COMMIT, lost(read_timeout()))
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "1")
    with pytest.warns(Warning), pytest.raises(IdempotencyPersistenceLayerError) as caught:
        orders()

    assert "stored result" not in str(caught.value)
    assert not caught.value.is_retryable


def test_an_unprotected_commit_inside_a_call_is_given_up_before_that_calls_deadline(bench: Bench, form: Form) -> None:
    """It has no record that would carry the deadline."""
    orders = Orders(bench)
    without_a_key = SYNC.function(orders.place, bench.store)
    sent: list[int] = []

    def strike(_send: Send) -> Any:
        sent.append(bench.clock.now_ms)
        raise read_timeout()

    bench.client.always(COMMIT, strike)
    deadline_ms = bench.clock.now_ms + 10_000
    with pytest.warns(UserWarning, match="No idempotency key"), pytest.raises(IdempotencyPersistenceLayerError):
        form.handler(lambda _event: without_a_key({}), bench.store)(ORDER, LambdaContext(remaining_ms=10_000, clock=bench.clock))

    assert deadline_ms - 500 - 2_000 - 10 < sent[-1] <= deadline_ms - 500
