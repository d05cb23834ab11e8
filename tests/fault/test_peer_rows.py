"""The defects that were reproduced with Powertools for Python 3.37.0, one story or more for each; here none of them happens.

Rows 16 and 17 are told as far as they concern DynamoDB.  Row 21 is about where a decorator is put, which no test can show here.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext, incompressible
from faults import (
    KEY,
    ORDER,
    UNKNOWN_OUTCOMES,
    Bench,
    Form,
    Suspended,
    access_denied,
    after,
    connection_closed,
    key_of,
    keyed,
    lost,
    lost_then,
    raise_boom,
    raise_suspended,
    refused,
    repeated_by_the_sdk,
    throttle,
    throttled_until,
)
from stores import dynamodb_composite

from idempotency import (
    DataclassSerializer,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyInconsistentStateError,
    IdempotencyKeyError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    InMemoryPersistenceLayer,
    idempotent,
    idempotent_function,
    make_idempotent,
)
from idempotency.events import LeaseLost, RecoveredOwnWrite, Released

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_row_1_a_claim_whose_answer_is_lost_runs_the_function_once(
    bench: Bench, form: Form, error: Callable[[], Exception]
) -> None:
    """Row 1."""
    runs: list[Any] = []
    events: list[Any] = []
    pay = form.handler(lambda event: runs.append(event) or "paid", bench.store, keyed(observers=[events.append]))
    bench.client.at("put_item", 1, lost(error()))

    assert pay(ORDER, LambdaContext(clock=bench.clock)) == "paid"
    assert pay(ORDER, LambdaContext(clock=bench.clock)) == "paid"
    assert len(runs) == 1
    assert [event for event in events if isinstance(event, RecoveredOwnWrite)]


def test_row_1_a_claim_that_the_sdk_repeated_unseen_runs_the_function_once(bench: Bench, form: Form) -> None:
    """Row 1: the store sees only the condition failure that its own record caused."""
    runs: list[Any] = []
    pay = form.function(lambda event: runs.append(event) or "paid", bench.store)
    bench.client.at("put_item", 1, repeated_by_the_sdk)

    assert pay(ORDER) == "paid"
    assert len(runs) == 1


def zombie(
    bench: Bench, form: Form, late: Callable[[], Any], meanwhile: Callable[[Callable[..., Any]], None], **options: Any
) -> tuple[Callable[[], Any], list[str]]:
    """A handler whose first run outlives its lease and lets *meanwhile* happen before it ends as *late* says.

    Every further run is the winner's.  Returns a call of the handler, and what ran.
    """
    runs: list[str] = []

    def body(_event: Any) -> Any:
        if runs:
            runs.append("winner")
            return "winner's"
        runs.append("zombie")
        bench.clock.advance(seconds=32)
        meanwhile(deliver)
        return late()

    pay = form.handler(body, bench.store, keyed(**options))

    def deliver() -> Any:
        return pay(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock))

    return deliver, runs


def test_row_2_a_late_completion_cannot_overwrite_the_winners_result(bench: Bench, form: Form) -> None:
    """Row 2: every caller gets the winner's result, the late one included."""
    seen: list[Any] = []
    events: list[Any] = []
    deliver, runs = zombie(bench, form, lambda: "zombie's", lambda again: seen.append(again()), observers=[events.append])

    seen.append(deliver())
    seen.append(deliver())

    assert seen == ["winner's"] * 3
    assert runs == ["zombie", "winner"]
    assert bench.peek(KEY)["data"] == '"winner\'s"'
    assert [type(event) for event in events].count(LeaseLost) == 1


def test_row_2_a_late_failure_cannot_delete_the_winners_result(bench: Bench, form: Form) -> None:
    """Row 2: the late caller gets its function's own error, and nothing runs a third time."""
    deliver, runs = zombie(bench, form, raise_boom, lambda again: again())
    with pytest.raises(OSError, match="boom"):
        deliver()

    assert deliver() == "winner's"
    assert runs == ["zombie", "winner"]


def test_row_3_a_repeated_delete_cannot_remove_the_successors_claim(bench: Bench, form: Form) -> None:
    """Row 3: the first delete is applied, its answer lost; another attempt claims before it is repeated."""
    failing = form.handler(lambda _event: raise_boom(), bench.store)
    suspending = form.handler(lambda _event: raise_suspended(), bench.store)

    def a_successor_claims() -> None:
        with pytest.raises(Suspended):
            suspending(ORDER, LambdaContext(clock=bench.clock))

    bench.client.at("delete_item", 1, lost_then(a_successor_claims, connection_closed()))
    with pytest.raises(OSError, match="boom"):
        failing(ORDER, LambdaContext(clock=bench.clock))

    assert bench.client.count("delete_item") == 2
    assert bench.peek(KEY)["status"] == "INPROGRESS"
    with pytest.raises(IdempotencyAlreadyInProgressError):
        failing(ORDER, LambdaContext(clock=bench.clock))


def test_row_4_functions_that_share_a_store_keep_their_own_configuration(bench: Bench, form: Form) -> None:
    """Row 4: a second payment with another key expression is executed and gets its own result."""
    orders = form.function(lambda event: f"order {event['id']}", bench.store, IdempotencyConfig(event_key_jmespath="id"))
    payments = form.function(
        lambda event: f"payment {event['payment']}",
        bench.store,
        IdempotencyConfig(event_key_jmespath="payment", expires_after_seconds=60),
    )

    assert orders({"id": "o-1", "payment": "p-1"}) == "order o-1"
    assert payments({"id": "o-1", "payment": "p-1"}) == "payment p-1"
    assert payments({"id": "o-1", "payment": "p-2"}) == "payment p-2"
    assert bench.peek(key_of("p-2"))["expiration"] == bench.clock() // 1000 + 60
    assert bench.peek(key_of("o-1"))["expiration"] == bench.clock() // 1000 + 3600


def test_row_5_nested_calls_complete_under_their_own_keys(bench: Bench, form: Form) -> None:
    """Row 5."""
    options: dict[str, Any] = {"data_keyword_argument": "event", "persistence_store": bench.store}

    if form.is_async:

        @idempotent_function(**options, key_prefix="inner")
        async def ainner(event: Any) -> str:
            return f"inner {event}"

        @idempotent_function(**options, key_prefix="outer")
        async def aouter(event: Any) -> list[str]:
            return ["outer", await ainner(event=event)]

        calls: list[Any] = [lambda: asyncio.run(aouter(event="x")), lambda: asyncio.run(ainner(event="x"))]
    else:

        @idempotent_function(**options, key_prefix="inner")
        def inner(event: Any) -> str:
            return f"inner {event}"

        @idempotent_function(**options, key_prefix="outer")
        def outer(event: Any) -> list[str]:
            return ["outer", inner(event=event)]

        calls = [lambda: outer(event="x"), lambda: inner(event="x")]

    first = [call() for call in calls]

    assert first == [["outer", "inner x"], "inner x"]
    assert [call() for call in calls] == first
    assert bench.client.count("update_item") == 2


def test_row_5_threads_that_share_a_store_get_their_own_results(bench: Bench) -> None:
    """Row 5: both functions are at work at the same time before either completes."""
    both_run = threading.Barrier(2)
    results: dict[str, list[Any]] = {}

    def made(name: str) -> Callable[..., Any]:
        def work(order: Any) -> str:
            both_run.wait(10)
            return f"{name} {order}"

        return make_idempotent(work, persistence_store=bench.store, key_prefix=name)

    def calls(name: str) -> None:
        function = made(name)
        results[name] = [function(f"{number}") for number in range(10)]

    threads = [threading.Thread(target=calls, args=(name,)) for name in ("ship", "bill")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {name: [f"{name} {number}" for number in range(10)] for name in ("ship", "bill")}


@pytest.mark.parametrize("result", [{}, [], "", 0, 0.0, False, None], ids=repr)
@pytest.mark.parametrize("where", ["memory", "dynamodb"])
def test_row_6_falsy_results_replay_as_themselves(bench: Bench, form: Form, where: str, result: Any) -> None:
    """Row 6."""
    runs: list[Any] = []
    store = bench.store if where == "dynamodb" else InMemoryPersistenceLayer(clock_ms=bench.clock)
    work = form.function(lambda event: runs.append(event) or result, store, keyed(use_local_cache=True))

    replays = [work(ORDER) for _ in range(3)]

    assert replays == [result] * 3
    assert {type(replay) for replay in replays} == {type(result)}
    assert len(runs) == 1


@pytest.mark.parametrize("result", [object(), {1, 2}, incompressible(600_000)], ids=["an object", "a set", "600 KB"])
def test_row_7_a_result_that_cannot_be_stored_is_never_executed_again(bench: Bench, form: Form, result: Any) -> None:
    """Row 7: also not after the lease has ended."""
    runs: list[Any] = []
    work = form.handler(lambda event: runs.append(event) or result, bench.store)
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER, LambdaContext(clock=bench.clock))

    bench.clock.advance(seconds=600)
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER, LambdaContext(clock=bench.clock))
    assert len(runs) == 1


def test_row_8_a_completion_is_retried_until_just_before_the_deadline(bench: Bench, form: Form) -> None:
    """Row 8: throttled until 200 ms before the end of the invocation's 15 s."""
    deadline_ms = bench.clock() + 15_000
    bench.client.always("update_item", throttled_until(bench.clock, deadline_ms - 200))
    runs: list[Any] = []
    pay = form.handler(lambda event: runs.append(event) or "paid", bench.store)

    assert pay(ORDER, LambdaContext(remaining_ms=15_000, clock=bench.clock)) == "paid"
    assert deadline_ms - 200 <= bench.clock() < deadline_ms
    assert pay(ORDER, LambdaContext(clock=bench.clock)) == "paid"
    assert len(runs) == 1


def test_row_9_a_throttled_claim_fails_clearly_before_the_deadline(bench: Bench, form: Form) -> None:
    """Row 9: no sleep reaches beyond the 1 s that is left."""
    deadline_ms = bench.clock() + 1_000
    bench.client.always("put_item", refused(throttle()))
    runs: list[Any] = []
    pay = form.handler(lambda event: runs.append(event) or "paid", bench.store)

    with pytest.raises(IdempotencyPersistenceLayerError, match="ProvisionedThroughputExceededException") as caught:
        pay(ORDER, LambdaContext(remaining_ms=1_000, clock=bench.clock))
    assert "The function was not run" in str(caught.value)
    assert deadline_ms - 200 < bench.clock() < deadline_ms
    assert bench.client.count("put_item") > 3
    assert runs == []


def test_row_10_a_failed_release_does_not_replace_the_functions_own_error(bench: Bench, form: Form) -> None:
    """Row 10: the release's failure is a note on it, and an event."""
    own = OSError("boom")
    events: list[Any] = []

    def fail(_event: Any) -> None:
        raise own

    pay = form.handler(fail, bench.store, keyed(observers=[events.append]))
    bench.client.always("delete_item", refused(access_denied()))
    with pytest.raises(OSError, match="boom") as caught:
        pay(ORDER, LambdaContext(clock=bench.clock))

    assert caught.value is own
    assert caught.value.__context__ is None
    assert KEY in caught.value.__notes__[0]
    assert events[-1] == Released(key=KEY, at_ms=bench.clock(), generation=1, error="IdempotencyPersistenceLayerError")


@pytest.mark.parametrize("leaves", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_row_11_an_exit_releases_the_key(bench: Bench, form: Form, leaves: type[BaseException]) -> None:
    """Row 11: at once, so that the next attempt need not wait for the lease."""

    def leave(_event: Any) -> None:
        raise leaves

    released = threading.Event()  # a coroutine that is being closed may not await: there the release is made in the background
    bench.client.at("delete_item", 1, after(released.set))
    with pytest.raises(leaves):
        form.handler(leave, bench.store)(ORDER, LambdaContext(clock=bench.clock))

    assert released.wait(10)
    assert bench.peek(KEY) is None
    assert form.handler(lambda _event: "paid", bench.store)(ORDER, LambdaContext(clock=bench.clock)) == "paid"


def test_row_11_a_foreign_base_exception_keeps_the_claim(bench: Bench, form: Form) -> None:
    """Row 11: the durable SDK suspends a function by one, and its replay goes on with the claim."""
    with pytest.raises(Suspended):
        form.handler(lambda _event: raise_suspended(), bench.store)(ORDER, LambdaContext(clock=bench.clock))

    assert bench.peek(KEY)["status"] == "INPROGRESS"


def test_row_12_async_functions_are_executed_once(bench: Bench) -> None:
    """Row 12: `async def` is awaited by the decorator."""
    runs: list[Any] = []

    @idempotent(persistence_store=bench.store, config=keyed())
    async def handler(event: Any, context: Any) -> str:
        await asyncio.sleep(0)
        runs.append(event)
        return "paid"

    assert [asyncio.run(handler(ORDER, LambdaContext(clock=bench.clock))) for _ in range(2)] == ["paid", "paid"]
    assert len(runs) == 1


def test_row_12_generator_functions_are_refused_when_decorated(bench: Bench) -> None:
    """Row 12: before anything can be left in progress."""

    def generate(event: Any) -> Any:
        yield event

    async def agenerate(event: Any) -> Any:
        yield event

    for function in (generate, agenerate):
        with pytest.raises(TypeError, match="generator function"):
            idempotent_function(function, data_keyword_argument="event", persistence_store=bench.store)


def test_row_13_without_a_deadline_a_crash_frees_the_key_after_the_lease(bench: Bench, form: Form) -> None:
    """Row 13: and not after `expires_after_seconds`.  Refused in the last millisecond of lease and margin, then granted."""
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=60))(ORDER)
    work = form.function(lambda _event: "done", bench.store)

    bench.clock.advance(seconds=61)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        work(ORDER)
    bench.clock.advance(ms=1)
    assert work(ORDER) == "done"


def test_row_14_a_live_lease_outlives_a_short_expiry(bench: Bench, form: Form) -> None:
    """Row 14: `expires_after_seconds` is over before the run is, and still no second run starts."""
    seen: list[Any] = []
    config = keyed(expires_after_seconds=1)

    def slow(_event: Any) -> str:
        bench.clock.advance(seconds=29)
        record = bench.peek(KEY)
        assert record["expiration"] * 1000 >= record["in_progress_expiration"]  # or a table's TTL would free the key
        with pytest.raises(IdempotencyAlreadyInProgressError):
            pay(ORDER, LambdaContext(clock=bench.clock))
        seen.append("ran")
        return "paid"

    pay = form.handler(slow, bench.store, config)

    assert pay(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock)) == "paid"
    assert seen == ["ran"]


def test_row_15_the_functions_own_inconsistent_state_error_does_not_run_it_again(bench: Bench, form: Form) -> None:
    """Row 15: a nested idempotent function can raise one."""
    runs: list[Any] = []

    def work(event: Any) -> None:
        runs.append(event)
        raise IdempotencyInconsistentStateError("of a nested call")

    with pytest.raises(IdempotencyInconsistentStateError, match="of a nested call"):
        form.function(work, bench.store)(ORDER)
    assert len(runs) == 1
    assert bench.peek(KEY) is None


def test_row_16_the_payload_hash_survives_completion(bench: Bench, form: Form) -> None:
    """Row 16: an identical retry is replayed, and a changed payload is still noticed."""
    pay = form.function(lambda _event: "paid", bench.store, keyed(payload_validation_jmespath="amount"))
    pay({"id": "o-1", "amount": 5})

    assert pay({"id": "o-1", "amount": 5}) == "paid"
    with pytest.raises(IdempotencyValidationError):
        pay({"id": "o-1", "amount": 6})


def test_row_16_the_payload_hash_survives_even_if_the_record_vanishes_meanwhile(bench: Bench, form: Form) -> None:
    """Row 16: somebody deletes the record while the function runs; the completion writes all of it again."""

    def work(_event: Any) -> str:
        bench.direct.delete_item(TableName=bench.store.table_name, Key={"id": {"S": key_of("o-1")}})
        return "paid"

    pay = form.function(work, bench.store, keyed(payload_validation_jmespath="amount"))

    assert [pay({"id": "o-1", "amount": 5}) for _ in range(2)] == ["paid", "paid"]


def test_row_17_on_a_composite_table_the_key_is_the_key(dynamodb_local: str, clock: FakeClock, form: Form) -> None:
    """Row 17: the local cache hits, each request under its own key, and an error names the key that is in progress."""
    composite = dynamodb_composite(clock, dynamodb_local)
    work = form.function(lambda event: event["id"], composite.store, keyed(use_local_cache=True))
    assert [work({"id": "a"}), work({"id": "b"})] == ["a", "b"]

    composite.store.table_name = "no-such-table"
    assert [work({"id": "a"}), work({"id": "b"})] == ["a", "b"]


def test_row_17_on_a_composite_table_an_error_names_the_key(dynamodb_local: str, clock: FakeClock, form: Form) -> None:
    """Row 17."""
    composite = dynamodb_composite(clock, dynamodb_local)
    calls: list[Any] = []

    def again(event: Any) -> None:
        calls.append(event)
        work(event)

    work = form.function(again, composite.store)
    with pytest.raises(IdempotencyAlreadyInProgressError, match=f"sort key: {KEY}"):
        work(ORDER)
    assert len(calls) == 1


def test_row_18_a_partial_key_is_refused_where_all_fields_are_required(bench: Bench, form: Form) -> None:
    """Row 18: `[user, order]` without an order would make all orders of a user collide."""
    config = IdempotencyConfig(event_key_jmespath="[user, order]", require_all_key_fields=True)
    runs: list[Any] = []
    work = form.function(lambda event: runs.append(event) or "done", bench.store, config)

    with pytest.raises(IdempotencyKeyError):
        work({"user": "u"})
    assert runs == []
    assert work({"user": "u", "order": 0}) == "done"


@dataclass
class Line:
    name: str
    price: Decimal


@dataclass
class Receipt:
    lines: list[Line]


def test_row_19_string_annotations_and_nested_dataclasses_are_rebuilt(bench: Bench) -> None:
    """Row 19: this module's annotations are strings.  A bare Decimal replays as text, which the docs and a warning say."""

    @idempotent_function(data_keyword_argument="event", persistence_store=bench.store, output_serializer=DataclassSerializer)
    def receipt(event: Any) -> Receipt:
        return Receipt([Line("tea", Decimal("1.50"))])

    @idempotent_function(data_keyword_argument="event", persistence_store=bench.store)
    def price(event: Any) -> Decimal:
        return Decimal("1.50")

    receipt(event=ORDER)
    with pytest.warns(UserWarning, match="^JSON changes the result of"):
        price(event=ORDER)

    assert receipt(event=ORDER) == Receipt([Line("tea", Decimal("1.50"))])
    assert price(event=ORDER) == "1.50"


def test_row_20_a_missing_key_warns_once_a_call(bench: Bench, form: Form) -> None:
    """Row 20."""
    work = form.function(lambda _event: "done", bench.store)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert work({"other": 1}) == "done"

    assert [str(warning.message) for warning in caught] == [
        "No idempotency key value found. Skipping persistence layer and validation operations. jmespath: id"
    ]
    assert bench.client.requests == []


def test_row_20_a_payload_that_cannot_be_copied_has_a_key(bench: Bench, form: Form) -> None:
    """Row 20: only what the expression selects matters, and a function that changes its payload keeps its key."""
    runs: list[Any] = []

    def work(event: Any) -> str:
        runs.append(event)
        event["id"] = "changed"
        return "done"

    function = form.function(work, bench.store)

    assert [function({"id": "order-1", "lock": threading.Lock()}) for _ in range(2)] == ["done", "done"]
    assert len(runs) == 1
    assert bench.peek(KEY)["status"] == "COMPLETED"


@dataclass
class DurableState:
    operations: list[str]
    durable_execution_arn: str


@dataclass
class DurableContext:
    """What a durable execution's context shows of itself."""

    lambda_context: LambdaContext
    state: DurableState


def durable(clock: FakeClock, execution: str, *, replay: bool = False) -> Any:
    operations = ["execution", "wait"] if replay else ["execution"]
    return DurableContext(LambdaContext(remaining_ms=3_000, clock=clock), DurableState(operations, f"arn:{execution}"))


def test_row_22_a_durable_execution_keeps_its_key_while_it_waits(bench: Bench, form: Form) -> None:
    """Row 22: longer than an invocation lasts; a second execution is refused, and the replay goes on with its own claim."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        if len(runs) == 1:
            raise Suspended
        return "paid"

    pay: Any = form.handler(work, bench.store, keyed(lease_seconds=3600))
    with pytest.raises(Suspended):
        pay(ORDER, durable(bench.clock, "a"))
    bench.clock.advance(seconds=1800)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        pay(ORDER, durable(bench.clock, "b"))

    assert pay(ORDER, durable(bench.clock, "a", replay=True)) == "paid"
    assert pay(ORDER, durable(bench.clock, "b")) == "paid"
    assert runs == ["run", "run"]


def test_row_22_the_lease_must_outlast_the_longest_wait_and_not_their_sum(bench: Bench, form: Form) -> None:
    """Row 22: each replay starts the lease anew, as `lease_seconds` promises."""
    pay: Any = form.handler(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=3600))
    with pytest.raises(Suspended):
        pay(ORDER, durable(bench.clock, "a"))
    bench.clock.advance(seconds=2400)
    with pytest.raises(Suspended):
        pay(ORDER, durable(bench.clock, "a", replay=True))

    bench.clock.advance(seconds=2400)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        pay(ORDER, durable(bench.clock, "b"))


def test_row_22_a_durable_execution_that_lost_its_lease_cannot_touch_the_winners(bench: Bench, form: Form) -> None:
    """Row 22: after the lease a second execution may run, and the first one's replay gets its result."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        if len(runs) == 1:
            raise Suspended
        return f"paid by run {len(runs)}"

    pay: Any = form.handler(work, bench.store, keyed(lease_seconds=60))
    with pytest.raises(Suspended):
        pay(ORDER, durable(bench.clock, "a"))
    bench.clock.advance(ms=61_001)

    assert pay(ORDER, durable(bench.clock, "b")) == "paid by run 2"
    assert pay(ORDER, durable(bench.clock, "a", replay=True)) == "paid by run 2"
    assert runs == ["run", "run"]


def test_row_22_a_late_failure_of_a_durable_execution_cannot_delete_its_own_result(bench: Bench, form: Form) -> None:
    """Row 22: the service may run a step twice; both runs bear the execution's token, and one has completed."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        if len(runs) == 1:
            assert pay(ORDER, durable(bench.clock, "a", replay=True)) == "paid"
            raise_boom()
        return "paid"

    pay: Any = form.handler(work, bench.store)
    with pytest.raises(OSError, match="boom"):
        pay(ORDER, durable(bench.clock, "a"))

    assert pay(ORDER, durable(bench.clock, "b")) == "paid"
    assert runs == ["run", "run"]
