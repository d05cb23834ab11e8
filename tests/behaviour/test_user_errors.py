"""What the function raises reaches the caller exactly as it would without the decorator."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Form, Work

from idempotency import IdempotencyInconsistentStateError, make_idempotent

if TYPE_CHECKING:
    from collections.abc import Callable

ORDER = {"id": 7}
DECORATORS = ["idempotent", "idempotent_function", "make_idempotent"]


class DeclinedError(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


def raised_by(call: Callable[..., Any], *arguments: Any) -> BaseException:
    try:
        call(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "error",
    [
        DeclinedError(51, reason="funds"),
        KeyError("missing"),
        StopIteration("a value"),
        StopAsyncIteration(),
        RuntimeError("generator raised StopIteration"),
        IdempotencyInconsistentStateError("raised by the function itself"),
        TimeoutError(),
        AssertionError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_the_functions_own_error_is_raised_unchanged_and_only_once(store: CountingStore, error: BaseException) -> None:
    """Powertools runs a function that raises its inconsistent-state error three times in one call."""
    arguments, work = error.args, Work(error=error)

    raised = raised_by(make_idempotent(work, persistence_store=store), ORDER)

    assert raised is error
    assert (raised.args, raised.__context__, raised.__cause__) == (arguments, None, None)
    assert not hasattr(raised, "__notes__")
    assert work.runs == [ORDER]
    assert store._records == {}


@pytest.mark.parametrize("error", [DeclinedError(51, reason="funds"), KeyError("missing"), StopAsyncIteration()], ids=repr)
def test_the_functions_own_error_is_raised_unchanged_by_every_decorator(
    form: Form, store: CountingStore, error: Exception
) -> None:
    raised = raised_by(form.decorate(Work(error=error), store), ORDER)

    assert raised is error
    assert (raised.__context__, raised.__cause__, raised.__suppress_context__) == (None, None, False)


def fail_with_a_cause(event: Any) -> None:
    try:
        {}["missing"]
    except KeyError as cause:
        raise DeclinedError(51, reason="funds") from cause


def fail_while_handling(event: Any) -> None:
    try:
        {}["missing"]
    except KeyError:
        raise DeclinedError(51, reason="funds")  # noqa: B904 - the implicit chain is what is tested


def test_the_cause_of_an_error_stays_its_cause(form: Form, store: CountingStore) -> None:
    raised = raised_by(form.decorate(fail_with_a_cause, store), ORDER)

    assert isinstance(raised.__cause__, KeyError)
    assert raised.__context__ is raised.__cause__
    assert raised.__cause__.__context__ is None


def test_the_context_of_an_error_stays_its_context(form: Form, store: CountingStore) -> None:
    raised = raised_by(form.decorate(fail_while_handling, store), ORDER)

    assert isinstance(raised.__context__, KeyError)
    assert (raised.__cause__, raised.__context__.__context__) == (None, None)


def chain(error: BaseException | None) -> list[str]:
    return [] if error is None else [repr(error), *chain(error.__context__)]


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("fail", [fail_with_a_cause, fail_while_handling])
def test_inside_an_except_block_an_error_has_the_same_chain_as_without_the_decorator(
    store: CountingStore, decorator: Any, fail: Callable[[Any], None]
) -> None:
    decorated = Form(decorator, is_async=False).decorate(fail, store)
    try:
        raise OSError("being handled by the caller")  # noqa: TRY301 - of a caller
    except OSError:
        plain_error, error = raised_by(fail, ORDER), raised_by(decorated, ORDER)

    assert chain(error) == chain(plain_error)
    assert chain(error)[-2:] == ["KeyError('missing')", "OSError('being handled by the caller')"]


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("fail", [fail_with_a_cause, fail_while_handling])
def test_inside_an_except_block_an_async_error_has_the_same_chain_as_without_the_decorator(
    store: CountingStore, decorator: Any, fail: Callable[[Any], None]
) -> None:
    form = Form(decorator, is_async=True)

    async def araised_by(call: Callable[..., Any]) -> BaseException:
        try:
            await call(event=ORDER) if decorator != "make_idempotent" else await call(ORDER)
        except DeclinedError as error:
            return error
        raise AssertionError("nothing was raised")

    async def story() -> list[list[str]]:
        try:
            raise OSError("being handled by the caller")  # noqa: TRY301 - of a caller
        except OSError:
            return [chain(await araised_by(call)) for call in (form.function(fail), form.decorate(fail, store).function)]

    plain, decorated = asyncio.run(story())

    assert decorated == plain
    assert plain[-2:] == ["KeyError('missing')", "OSError('being handled by the caller')"]


def test_the_traceback_shows_the_functions_frame(form: Form, store: CountingStore) -> None:
    raised = raised_by(form.decorate(fail_with_a_cause, store), ORDER)

    frames = traceback.extract_tb(raised.__traceback__)
    assert frames[-1].name == "fail_with_a_cause"
    assert frames[-1].filename == __file__
    assert frames[-1].line == 'raise DeclinedError(51, reason="funds") from cause'


def test_an_error_that_is_raised_by_many_calls_does_not_grow_a_context_of_itself(form: Form, store: CountingStore) -> None:
    error = DeclinedError(51, reason="funds")
    call = form.decorate(Work(error=error), store)

    for _ in range(3):
        assert raised_by(call, ORDER) is error

    assert error.__context__ is None


def test_the_same_function_may_call_itself_with_other_keys(store: CountingStore) -> None:
    runs: list[int] = []

    def factorial(n: int) -> int:
        runs.append(n)
        return 1 if n == 0 else n * safe(n - 1)

    safe = make_idempotent(factorial, persistence_store=store)

    assert [safe(4), safe(5), safe(4)] == [24, 120, 24]
    assert runs == [4, 3, 2, 1, 0, 5]


def test_an_error_from_deep_recursion_is_raised_unchanged_through_all_its_levels(store: CountingStore) -> None:
    error = DeclinedError(51, reason="funds")

    def descend(n: int) -> None:
        if n == 0:
            raise error
        safe(n - 1)

    safe = make_idempotent(descend, persistence_store=store)

    assert raised_by(safe, 5) is error
    assert error.__context__ is None
    assert store._records == {}
