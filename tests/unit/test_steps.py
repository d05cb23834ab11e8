"""Procedures as generators of calls, driven by calls and by awaited calls alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from persistence._steps import arun, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._steps import Steps

    Driver = Callable[[Steps[Any]], Any]

TROUBLE = ConnectionError("trouble")


def awaited(steps: Steps[Any]) -> Any:
    """Drive the procedure with its calls made awaitable."""

    def awaitable(call: Callable[[], Any]) -> Callable[[], Any]:
        async def made() -> Any:
            await asyncio.sleep(0)
            return call()

        return made

    def with_awaitable_calls() -> Steps[Any]:
        answer, error = None, None
        while True:
            try:
                call = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            answer, error = None, None
            try:
                answer = yield awaitable(call)
            except Exception as raised:
                error = raised

    return asyncio.run(arun(with_awaitable_calls()))


@pytest.fixture(params=["called", "awaited"])
def drive(request: pytest.FixtureRequest) -> Driver:
    return run if request.param == "called" else awaited


def failing(error: BaseException) -> Callable[[], Any]:
    """A call that raises."""

    def call() -> Any:
        raise error

    return call


def test_a_procedure_gets_the_answer_of_each_call_in_turn(drive: Driver) -> None:
    def procedure() -> Steps[list[int]]:
        first = yield lambda: 1
        second = yield lambda: first + 1
        return [first, second]

    assert drive(procedure()) == [1, 2]


def test_a_procedure_may_end_without_a_call(drive: Driver) -> None:
    def procedure() -> Steps[str]:
        yield from ()
        return "done"

    assert drive(procedure()) == "done"


def test_a_procedure_may_end_without_a_result(drive: Driver) -> None:
    def procedure() -> Steps[None]:
        yield lambda: 1

    assert drive(procedure()) is None


def test_an_answer_may_be_none_or_an_error_as_a_value(drive: Driver) -> None:
    def procedure() -> Steps[list[Any]]:
        return [(yield lambda: None), (yield lambda: TROUBLE)]

    assert drive(procedure()) == [None, TROUBLE]


def test_the_error_of_a_call_is_raised_in_the_procedure_which_may_go_on(drive: Driver) -> None:
    def procedure() -> Steps[tuple[Any, Any]]:
        try:
            yield failing(TROUBLE)
        except ConnectionError as error:
            return error, (yield lambda: "again")
        return ()

    assert drive(procedure()) == (TROUBLE, "again")


def test_a_procedure_may_end_where_a_call_fails(drive: Driver) -> None:
    def procedure() -> Steps[str]:
        try:
            yield failing(TROUBLE)
        except ConnectionError:
            return "given up"
        return ""

    assert drive(procedure()) == "given up"


def test_an_error_that_the_procedure_does_not_catch_reaches_the_caller_as_it_is(drive: Driver) -> None:
    def procedure() -> Steps[None]:
        yield failing(TROUBLE)

    with pytest.raises(ConnectionError) as error:
        drive(procedure())

    assert error.value is TROUBLE


def test_an_error_of_the_procedure_itself_reaches_the_caller_and_its_context_is_kept(drive: Driver) -> None:
    def procedure() -> Steps[None]:
        try:
            yield failing(TROUBLE)
        except ConnectionError as error:
            raise LookupError("told") from error

    with pytest.raises(LookupError, match="^told$") as error:
        drive(procedure())

    assert error.value.__cause__ is TROUBLE


def test_a_procedure_fails_before_its_first_call(drive: Driver) -> None:
    def procedure() -> Steps[None]:
        yield from ()
        raise LookupError("at once")

    with pytest.raises(LookupError, match="^at once$"):
        drive(procedure())


def test_the_calls_of_a_procedure_within_another_are_made_in_order(drive: Driver) -> None:
    made: list[str] = []

    def inner() -> Steps[int]:
        yield lambda: made.append("inner")
        return 2

    def outer() -> Steps[int]:
        yield lambda: made.append("outer")
        return 1 + (yield from inner())

    assert drive(outer()) == 3
    assert made == ["outer", "inner"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_the_process_passes_by_the_procedure(end: type[BaseException]) -> None:
    """It may not be taken for a trouble of the store, nor retried."""
    seen: list[BaseException] = []

    def procedure() -> Steps[None]:
        try:
            yield failing(end())
        except Exception as error:
            seen.append(error)

    with pytest.raises(end):
        run(procedure())

    assert seen == []


def test_a_cancellation_ends_the_procedure_where_it_is() -> None:
    calls: list[str] = []

    async def story() -> None:
        entered = asyncio.Event()

        async def hang() -> None:
            calls.append("hanging")
            entered.set()
            await asyncio.Event().wait()

        def procedure() -> Steps[None]:
            try:
                yield hang
            except Exception:
                calls.append("caught")
            yield hang

        task = asyncio.create_task(arun(procedure()))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())

    assert calls == ["hanging"]


def test_an_awaited_procedure_gets_the_answer_and_the_error_of_what_it_awaits() -> None:
    async def answer() -> int:
        return 1

    async def fail() -> int:
        raise TROUBLE

    def procedure() -> Steps[tuple[int, Exception]]:
        first = yield answer
        try:
            yield fail
        except ConnectionError as error:
            return first, error
        return 0, TROUBLE

    assert asyncio.run(arun(procedure())) == (1, TROUBLE)


def test_a_call_that_raises_before_it_is_awaited_is_an_error_of_the_call() -> None:
    def procedure() -> Steps[str]:
        try:
            yield failing(TROUBLE)
        except ConnectionError:
            return "caught"
        return ""

    assert asyncio.run(arun(procedure())) == "caught"


@pytest.mark.parametrize("end", [StopIteration, StopAsyncIteration])
def test_a_call_that_raises_stop_iteration_does_not_end_the_procedure_unseen(end: type[Exception]) -> None:
    def procedure() -> Steps[str]:
        try:
            yield failing(end("mine"))
        except end:
            return "caught"
        return "not seen"

    assert run(procedure()) == "caught"
