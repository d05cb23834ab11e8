"""Procedures as generators of calls, driven by calls and by awaited calls alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from persistence._procedures import Pause, Request, Work, arun, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._procedures import Procedure

    Driver = Callable[..., Any]

TROUBLE = ConnectionError("trouble")


def called(procedure: Procedure[Any], slept_ms: list[float] | None = None) -> Any:
    """Drive the procedure in this thread."""
    slept_ms = [] if slept_ms is None else slept_ms
    return run(procedure, slept_ms.append)


def awaited(procedure: Procedure[Any], slept_ms: list[float] | None = None) -> Any:
    """Drive the procedure with its calls made awaitable."""

    async def perform(request: Request) -> Any:
        await asyncio.sleep(0)
        return request.call(*request.arguments)

    async def sleep_ms(ms: float) -> None:
        await asyncio.sleep(0)
        if slept_ms is not None:
            slept_ms.append(ms)

    return asyncio.run(arun(procedure, perform, sleep_ms))


async def awaiting(procedure: Procedure[Any]) -> Any:
    """Drive a procedure whose calls are to be awaited."""
    return await arun(procedure, lambda request: request.call(*request.arguments), lambda ms: asyncio.sleep(ms / 1000))


@pytest.fixture(params=["called", "awaited"])
def drive(request: pytest.FixtureRequest) -> Driver:
    return called if request.param == "called" else awaited


def failing(error: BaseException) -> Callable[[], Any]:
    """A call that raises."""

    def call() -> Any:
        raise error

    return call


def test_a_procedure_gets_the_answer_of_each_call_in_turn(drive: Driver) -> None:
    def procedure() -> Procedure[list[int]]:
        first = yield Request(lambda: 1)
        second = yield Request(lambda: first + 1)
        return [first, second]

    assert drive(procedure()) == [1, 2]


def test_a_procedure_may_end_without_a_call(drive: Driver) -> None:
    def procedure() -> Procedure[str]:
        yield from ()
        return "done"

    assert drive(procedure()) == "done"


def test_a_procedure_may_end_without_a_result(drive: Driver) -> None:
    def procedure() -> Procedure[None]:
        yield Request(lambda: 1)

    assert drive(procedure()) is None


def test_an_answer_may_be_none_or_an_error_as_a_value(drive: Driver) -> None:
    def procedure() -> Procedure[list[Any]]:
        return [(yield Request(lambda: None)), (yield Request(lambda: TROUBLE))]

    assert drive(procedure()) == [None, TROUBLE]


def test_the_error_of_a_call_is_raised_in_the_procedure_which_may_go_on(drive: Driver) -> None:
    def procedure() -> Procedure[tuple[Any, Any]]:
        try:
            yield Request(failing(TROUBLE))
        except ConnectionError as error:
            return error, (yield Request(lambda: "again"))
        return ()

    assert drive(procedure()) == (TROUBLE, "again")


def test_a_procedure_may_end_where_a_call_fails(drive: Driver) -> None:
    def procedure() -> Procedure[str]:
        try:
            yield Request(failing(TROUBLE))
        except ConnectionError:
            return "given up"
        return ""

    assert drive(procedure()) == "given up"


def test_an_error_that_the_procedure_does_not_catch_reaches_the_caller_as_it_is(drive: Driver) -> None:
    def procedure() -> Procedure[None]:
        yield Request(failing(TROUBLE))

    with pytest.raises(ConnectionError) as error:
        drive(procedure())

    assert error.value is TROUBLE


def test_an_error_of_the_procedure_itself_reaches_the_caller_and_its_context_is_kept(drive: Driver) -> None:
    def procedure() -> Procedure[None]:
        try:
            yield Request(failing(TROUBLE))
        except ConnectionError as error:
            raise LookupError("told") from error

    with pytest.raises(LookupError, match="^told$") as error:
        drive(procedure())

    assert error.value.__cause__ is TROUBLE


def test_a_procedure_fails_before_its_first_call(drive: Driver) -> None:
    def procedure() -> Procedure[None]:
        yield from ()
        raise LookupError("at once")

    with pytest.raises(LookupError, match="^at once$"):
        drive(procedure())


def test_the_calls_of_a_procedure_within_another_are_made_in_order(drive: Driver) -> None:
    made: list[str] = []

    def inner() -> Procedure[int]:
        yield Request(lambda: made.append("inner"))
        return 2

    def outer() -> Procedure[int]:
        yield Request(lambda: made.append("outer"))
        return 1 + (yield from inner())

    assert drive(outer()) == 3
    assert made == ["outer", "inner"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_the_process_passes_by_the_procedure(end: type[BaseException]) -> None:
    """It may not be taken for a trouble of the store, nor retried."""
    seen: list[BaseException] = []

    def procedure() -> Procedure[None]:
        try:
            yield Request(failing(end()))
        except Exception as error:
            seen.append(error)

    with pytest.raises(end):
        called(procedure())

    assert seen == []


def test_a_cancellation_ends_the_procedure_where_it_is() -> None:
    calls: list[str] = []

    async def story() -> None:
        entered = asyncio.Event()

        async def hang() -> None:
            calls.append("hanging")
            entered.set()
            await asyncio.Event().wait()

        def procedure() -> Procedure[None]:
            try:
                yield Request(hang)
            except Exception:
                calls.append("caught")
            yield Request(hang)

        task = asyncio.create_task(awaiting(procedure()))
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

    def procedure() -> Procedure[tuple[int, Exception]]:
        first = yield Request(answer)
        try:
            yield Request(fail)
        except ConnectionError as error:
            return first, error
        return 0, TROUBLE

    assert asyncio.run(awaiting(procedure())) == (1, TROUBLE)


def test_a_call_that_raises_before_it_is_awaited_is_an_error_of_the_call() -> None:
    def procedure() -> Procedure[str]:
        try:
            yield Request(failing(TROUBLE))
        except ConnectionError:
            return "caught"
        return ""

    assert asyncio.run(awaiting(procedure())) == "caught"


@pytest.mark.parametrize("end", [StopIteration, StopAsyncIteration])
def test_a_call_that_raises_stop_iteration_does_not_end_the_procedure_unseen(end: type[Exception]) -> None:
    def procedure() -> Procedure[str]:
        try:
            yield Request(failing(end("mine")))
        except end:
            return "caught"
        return "not seen"

    assert called(procedure()) == "caught"


def test_a_call_gets_its_arguments(drive: Driver) -> None:
    def procedure() -> Procedure[int]:
        return (yield Request(divmod, (7, 2))), (yield Work(max, (1, 5, 3)))

    assert drive(procedure()) == ((3, 1), 5)


def test_a_procedure_pauses_for_as_long_as_it_asks_and_is_told_nothing(drive: Driver) -> None:
    slept_ms: list[float] = []

    def procedure() -> Procedure[list[Any]]:
        return [(yield Pause(5)), (yield Request(lambda: "answer")), (yield Pause(0.5))]

    assert drive(procedure(), slept_ms) == [None, "answer", None]
    assert slept_ms == [5, 0.5]


def test_a_pause_that_fails_is_an_error_in_the_procedure() -> None:
    def sleep_ms(_ms: float) -> None:
        raise TROUBLE

    def procedure() -> Procedure[Any]:
        try:
            yield Pause(1)
        except ConnectionError as error:
            return error

    assert run(procedure(), sleep_ms) is TROUBLE


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_the_process_has_the_procedure_clean_up_before_the_caller_hears_of_it(end: type[BaseException]) -> None:
    """And not when the collector finds it, which may be in the middle of another call."""
    cleaned: list[str] = []

    def procedure() -> Procedure[None]:
        try:
            yield Request(failing(end()))
        finally:
            cleaned.append("up")

    paused = procedure()
    with pytest.raises(end):
        called(paused)

    assert cleaned == ["up"]
    assert paused.gi_frame is None
