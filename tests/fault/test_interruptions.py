"""Callers torn away, by a signal or a cancelled task, at each step: nothing is left claimed, and no result is lost."""

from __future__ import annotations

import asyncio
import signal
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import (
    ASYNC,
    KEY,
    ORDER,
    SYNC,
    Bench,
    Suspended,
    access_denied,
    after,
    before,
    keyed,
    lost,
    raise_boom,
    raise_suspended,
    read_timeout,
    refused,
)

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyResultNotKeptError,
    idempotent,
    idempotent_function,
)
from idempotency.drivers import _Performer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from faults import Fault

EXITS = [KeyboardInterrupt, SystemExit, GeneratorExit]


def deliver(bench: Bench, end: Callable[[], Any] = lambda: "paid") -> Any:
    return SYNC.handler(lambda _event: end(), bench.store)(ORDER, LambdaContext(clock=bench.clock))


@pytest.mark.parametrize("leaves", EXITS)
@pytest.mark.parametrize("struck", [lost, refused], ids=["applied", "not applied"])
def test_a_claim_that_is_interrupted_is_given_up(
    bench: Bench, leaves: type[BaseException], struck: Callable[[BaseException], Fault]
) -> None:
    bench.client.at("put_item", 1, struck(leaves()))
    with pytest.raises(leaves):
        deliver(bench)

    assert bench.peek(KEY) is None
    assert deliver(bench) == "paid"


def test_a_claim_that_is_interrupted_does_not_give_up_anothers(bench: Bench) -> None:
    with pytest.raises(Suspended):
        deliver(bench, raise_suspended)
    held = bench.peek(KEY)
    bench.client.at("put_item", 1, lost(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        deliver(bench)

    assert bench.peek(KEY) == held


def is_logged_as_not_given_up(caplog: pytest.LogCaptureFixture) -> bool:
    """Once, with the key and the store's error, and without its traceback, which may have what a client has sent."""
    [logged] = caplog.records
    said = (
        f"The record of idempotency key {KEY} was not settled after its call was interrupted or failed; its lease frees the key: "
    )
    return logged.levelname == "WARNING" and logged.message.startswith(f"{said}Failed to delete") and logged.exc_info is None


def test_an_interruption_is_heard_even_if_the_claim_cannot_be_given_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.client.at("put_item", 1, lost(KeyboardInterrupt()))
    bench.client.always("delete_item", refused(access_denied()))
    with pytest.raises(KeyboardInterrupt):
        deliver(bench)

    assert is_logged_as_not_given_up(caplog)
    assert bench.peek(KEY)["status"] == "INPROGRESS"


@pytest.mark.parametrize("leaves", EXITS)
def test_an_interrupted_completion_that_was_applied_is_replayed(bench: Bench, leaves: type[BaseException]) -> None:
    bench.client.at("update_item", 1, lost(leaves()))
    with pytest.raises(leaves):
        deliver(bench)

    assert bench.client.count("delete_item") == 0
    assert deliver(bench, raise_boom) == "paid"


@pytest.mark.parametrize("leaves", EXITS)
def test_an_interrupted_completion_that_was_not_applied_is_made_once_more(bench: Bench, leaves: type[BaseException]) -> None:
    """The function ran: without its result it would run again after its lease."""
    bench.client.at("update_item", 1, refused(leaves()))
    with pytest.raises(leaves):
        deliver(bench)

    assert deliver(bench, raise_boom) == "paid"


def test_an_interrupted_completion_that_fails_the_second_time_keeps_the_key(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """To free the key would be to run the function again at once."""
    bench.client.at("update_item", 1, refused(KeyboardInterrupt()))
    bench.client.at("update_item", 2, refused(access_denied()))
    with pytest.raises(KeyboardInterrupt):
        deliver(bench)

    with pytest.raises(IdempotencyAlreadyInProgressError):
        deliver(bench)
    assert [KEY in record.getMessage() for record in caplog.records] == [True]


class Gate:
    """Holds a store's thread inside a request, until the test opens it."""

    def __init__(self) -> None:
        self.open = Event()
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self._entered.set)
        self.open.wait(10)

    async def entered(self) -> None:
        async with asyncio.timeout(10):
            await self._entered.wait()


def asynchronous(bench: Bench, body: Callable[[], Awaitable[Any]]) -> Any:
    @idempotent_function(data_keyword_argument="event", persistence_store=bench.store, config=keyed(), key_prefix="job")
    async def work(event: Any) -> Any:
        return await body()

    return work


async def paid() -> str:
    return "paid"


async def boom() -> None:
    raise_boom()


async def cancelled_in(
    bench: Bench, operation: str, at: Callable[[Callable[[], object]], Fault], body: Any, times: int = 1
) -> None:
    """Cancel a call while the request of its first *operation* is under way; the request then goes on to its end."""
    gate = Gate()
    bench.client.at(operation, 1, at(gate.hold))
    task = asyncio.create_task(asynchronous(bench, body)(event=ORDER))
    await gate.entered()
    for _ in range(times):
        task.cancel()
        for _ in range(10):  # passes of the event loop
            await asyncio.sleep(0)
        assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("at", [before, after])
def test_a_claim_that_is_cancelled_is_given_up(bench: Bench, at: Callable[[Callable[[], object]], Fault]) -> None:
    runs: list[str] = []

    async def work() -> None:
        runs.append("run")

    asyncio.run(cancelled_in(bench, "put_item", at, work))

    assert runs == []
    assert bench.peek(KEY) is None


def test_a_claim_that_is_cancelled_does_not_give_up_anothers(bench: Bench) -> None:
    with pytest.raises(Suspended):
        deliver(bench, raise_suspended)
    held = bench.peek(KEY)

    asyncio.run(cancelled_in(bench, "put_item", before, paid))

    assert bench.peek(KEY) == held


@pytest.mark.parametrize("times", [2, 3])
def test_a_claim_that_is_cancelled_again_is_still_given_up(bench: Bench, times: int) -> None:
    """As when a task group or a web server loses patience with its tasks."""
    released = Event()
    bench.client.at("delete_item", 1, after(released.set))

    asyncio.run(cancelled_in(bench, "put_item", before, paid, times))

    assert released.wait(5)
    assert bench.peek(KEY) is None


def test_a_claim_that_is_cancelled_after_a_lost_answer_is_given_up(bench: Bench) -> None:
    """Its repetition is refused by the record that it has itself written."""
    released = Event()
    bench.client.at("delete_item", 1, after(released.set))

    async def story() -> None:
        gate = Gate()
        bench.client.at("put_item", 1, lost(read_timeout()))
        bench.client.at("put_item", 2, before(gate.hold))
        task = asyncio.create_task(asynchronous(bench, paid)(event=ORDER))
        await gate.entered()
        task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert released.wait(5)
    assert bench.peek(KEY) is None


@pytest.mark.parametrize("at", [before, after])
@pytest.mark.parametrize("times", [1, 3])
def test_a_completion_is_finished_before_its_cancellation_follows(
    bench: Bench, times: int, at: Callable[[Callable[[], object]], Fault]
) -> None:
    asyncio.run(cancelled_in(bench, "update_item", at, paid, times))

    assert bench.peek(KEY)["data"] == '"paid"'
    assert ASYNC.function(lambda _event: "again", bench.store)(ORDER) == "paid"


@pytest.mark.parametrize("at", [before, after])
@pytest.mark.parametrize("times", [1, 3])
def test_a_release_is_finished_before_its_cancellation_follows(
    bench: Bench, times: int, at: Callable[[Callable[[], object]], Fault]
) -> None:
    asyncio.run(cancelled_in(bench, "delete_item", at, boom, times))

    assert bench.peek(KEY) is None


def test_a_completion_that_fails_after_its_cancellation_reports_the_cancellation(bench: Bench) -> None:
    def held_then_denied(hold: Callable[[], object]) -> Fault:
        return before(lambda: (hold(), refused(access_denied())(lambda: None)))

    asyncio.run(cancelled_in(bench, "update_item", held_then_denied, paid))

    assert bench.peek(KEY)["status"] == "INPROGRESS"


def test_a_run_that_is_cancelled_is_released(bench: Bench) -> None:
    async def story() -> None:
        running = asyncio.Event()

        async def work() -> None:
            running.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(asynchronous(bench, work)(event=ORDER))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert bench.peek(KEY) is None


def test_a_run_that_times_out_is_released_and_the_timeout_is_the_callers(bench: Bench) -> None:
    async def story() -> None:
        async def work() -> None:
            limit.reschedule(0)
            await asyncio.Event().wait()

        async with asyncio.timeout(None) as limit:
            await asynchronous(bench, work)(event=ORDER)

    with pytest.raises(TimeoutError):
        asyncio.run(story())
    assert bench.peek(KEY) is None


def test_a_function_that_survives_its_cancellation_is_completed(bench: Bench) -> None:
    async def story() -> Any:
        running = asyncio.Event()

        async def work() -> str:
            running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "paid all the same"

        task = asyncio.create_task(asynchronous(bench, work)(event=ORDER))
        await running.wait()
        task.cancel()
        return await task

    assert asyncio.run(story()) == "paid all the same"
    assert bench.peek(KEY)["status"] == "COMPLETED"


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C interrupts this process.  It does not where a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_releases_an_async_run(bench: Bench) -> None:
    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(asynchronous(bench, work)(event=ORDER))
    assert bench.peek(KEY) is None


@pytest.mark.usefixtures("listening")
def test_ctrl_c_releases_a_sync_run(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        deliver(bench, lambda: signal.raise_signal(signal.SIGINT))
    assert bench.peek(KEY) is None


def test_a_coroutine_that_is_closed_while_it_runs_releases_its_key(bench: Bench) -> None:
    """As an abandoned event loop closes its tasks' coroutines: nothing can be awaited any more."""
    released = Event()
    bench.client.at("delete_item", 1, after(released.set))

    async def story() -> None:
        inside = asyncio.get_running_loop().create_future()

        async def work() -> None:
            inside.set_result(None)
            await asyncio.get_running_loop().create_future()

        call = asynchronous(bench, work)(event=ORDER)
        while not inside.done():
            awaited: asyncio.Future[Any] = call.send(None)
            if not inside.done():
                awaited._asyncio_future_blocking = False
                await asyncio.wait([awaited])
        call.close()

    asyncio.run(story())

    assert released.wait(10)
    assert bench.peek(KEY) is None


def durable(bench: Bench) -> Any:
    """The context of a durable execution, in the form in which the library reads it."""
    state = SimpleNamespace(durable_execution_arn="arn:a", operations=("execution", "step"))
    return SimpleNamespace(lambda_context=LambdaContext(clock=bench.clock), state=state)


def test_an_interrupted_replay_of_a_durable_execution_keeps_the_executions_claim(bench: Bench) -> None:
    """The claim is older than the replay: given up, a second execution could begin between this one's steps."""
    pay: Any = SYNC.handler(lambda _event: raise_suspended(), bench.store)
    with pytest.raises(Suspended):
        pay(ORDER, durable(bench))
    bench.client.at("put_item", 1, lost(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        pay(ORDER, durable(bench))

    assert bench.peek(KEY)["status"] == "INPROGRESS"


def test_a_cancelled_replay_of_a_durable_execution_keeps_the_executions_claim(bench: Bench) -> None:
    """As `test_an_interrupted_replay_of_a_durable_execution_keeps_the_executions_claim`, for an async handler."""

    async def story() -> None:
        gate = Gate()

        @idempotent(persistence_store=bench.store, config=keyed(), key_prefix="job")
        async def pay(event: Any, context: Any) -> None:
            raise_suspended()

        with pytest.raises(Suspended):
            await pay(ORDER, durable(bench))
        bench.client.at("put_item", 1, before(gate.hold))
        task = asyncio.create_task(pay(ORDER, durable(bench)))
        await gate.entered()
        task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert bench.peek(KEY)["status"] == "INPROGRESS"


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_durable_execution_whose_process_ends_keeps_its_claim(bench: Bench, exit_: type[BaseException]) -> None:
    """Lambda repeats the invocation, and the execution goes on with the steps that it has done."""

    def end(_event: Any) -> None:
        raise exit_

    pay: Any = SYNC.handler(end, bench.store)
    with pytest.raises(exit_):
        pay(ORDER, durable(bench))

    assert bench.peek(KEY)["status"] == "INPROGRESS"


@pytest.mark.parametrize("leaves", [*EXITS, TimeoutError])
@pytest.mark.parametrize("result", ["paid", object()], ids=["stored", "not kept"])
def test_a_result_whose_serialization_is_interrupted_is_stored_before_the_call_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, leaves: type[BaseException], result: Any
) -> None:
    """A signal's handler raises after the function has returned, and before the completion is sent."""
    returned = _Performer.returned
    interruptions = iter([leaves()])

    def interrupted(performer: Any, value: Any, transaction: Any) -> Any:
        for interruption in interruptions:
            raise interruption
        return returned(performer, value, transaction)

    monkeypatch.setattr(_Performer, "returned", interrupted)
    runs: list[str] = []

    def pay() -> Any:
        runs.append("paid")
        return result

    with pytest.raises(leaves):
        deliver(bench, pay)
    if result == "paid":
        assert deliver(bench, pay) == "paid"
    else:
        with pytest.raises(IdempotencyResultNotKeptError):
            deliver(bench, pay)
    assert runs == ["paid"]


def test_a_result_is_stored_if_a_signal_comes_right_after_the_return(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very line that remembers what the function returned."""
    remembered: list[Any] = []

    def remember(_performer: Any, unstored: Any) -> None:
        remembered.append(unstored)
        if len(remembered) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Performer, "unstored", property(lambda _performer: remembered[-1], remember))
    with pytest.raises(KeyboardInterrupt):
        deliver(bench)
    monkeypatch.undo()

    assert deliver(bench, raise_boom) == "paid"
