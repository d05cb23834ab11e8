"""Results that cannot be stored: the function ran, so it never runs again, and every caller hears why there is no result."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext, incompressible
from faults import KEY, ORDER, Bench, Form, keyed, lost, read_timeout, refused, throttle

from idempotency import (
    CustomDictSerializer,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    idempotent_function,
    make_idempotent,
)
from idempotency.events import ResultNotKept

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 400 * 1024


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "TypeError"),
        (dt.datetime(2026, 1, 1), "TypeError"),
        ({(1, 2): "tuple key"}, "TypeError"),
        (b"bytes", "TypeError"),
        (incompressible(2 * LIMIT), "IdempotencyResultNotKeptError"),
    ],
    ids=["object", "datetime", "tuple key", "bytes", "more than an item"],
)
def test_its_duplicates_get_the_same_error_and_no_second_run(bench: Bench, form: Form, result: Any, reason: str) -> None:
    runs: list[Any] = []
    events: list[Any] = []
    work = form.function(lambda event: runs.append(event) or result, bench.store, keyed(observers=[events.append]))
    for _ in range(3):
        with pytest.raises(IdempotencyResultNotKeptError, match=f"The function ran for idempotency key {KEY}"):
            work(ORDER)

    assert len(runs) == 1
    assert [event.reason for event in events if isinstance(event, ResultNotKept)] == [reason]
    assert bench.peek(KEY)["status"] == "COMPLETED"
    assert "data" not in bench.peek(KEY)


def test_the_largest_result_that_fits_is_stored(bench: Bench, form: Form) -> None:
    work = form.function(lambda _event: "x" * (LIMIT - 1000), bench.store)

    assert work(ORDER) == work(ORDER) == "x" * (LIMIT - 1000)


def test_after_its_expiry_the_key_is_free_again(bench: Bench, form: Form) -> None:
    results: list[Any] = [object(), "fine"]
    work = form.function(lambda _event: results.pop(0), bench.store, keyed(expires_after_seconds=60))
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER)

    bench.clock.advance(seconds=60)
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER)
    bench.clock.advance(seconds=1)
    assert work(ORDER) == "fine"
    assert work(ORDER) == "fine"


def test_a_serializer_that_raises_is_no_second_run(bench: Bench) -> None:
    runs: list[Any] = []

    def explode(_result: Any) -> Any:
        raise ZeroDivisionError

    @idempotent_function(
        data_keyword_argument="event",
        persistence_store=bench.store,
        output_serializer=CustomDictSerializer(to_dict=explode, from_dict=dict),
    )
    def work(event: Any) -> dict[str, int]:
        runs.append(event)
        return {"n": 1}

    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError):
            work(event=ORDER)
    assert len(runs) == 1


@pytest.mark.parametrize("trouble", [lambda: lost(read_timeout()), lambda: refused(throttle())], ids=["answer lost", "throttled"])
def test_the_mark_is_written_as_stubbornly_as_a_result(bench: Bench, form: Form, trouble: Any) -> None:
    for call in (1, 2, 3):
        bench.client.at("update_item", call, trouble())
    with pytest.raises(IdempotencyResultNotKeptError):
        form.handler(lambda _event: object(), bench.store)(ORDER, LambdaContext(clock=bench.clock))

    assert bench.peek(KEY)["status"] == "COMPLETED"


def test_a_mark_that_cannot_be_written_is_the_stores_failure(bench: Bench, form: Form) -> None:
    bench.client.always("update_item", refused(throttle()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="update record state") as caught:
        form.handler(lambda _event: object(), bench.store)(ORDER, LambdaContext(clock=bench.clock))

    assert not isinstance(caught.value, IdempotencyResultNotKeptError)
    assert bench.peek(KEY)["status"] == "INPROGRESS"


async def _coroutine() -> str:
    return "never awaited"


def _generator() -> Any:
    yield "never begun"


async def _async_generator() -> Any:
    yield "never begun"


@pytest.mark.parametrize("begin", [_coroutine, _generator, _async_generator])
def test_a_plain_function_that_returns_unfinished_work_has_run_and_its_result_is_not_kept(
    bench: Bench, begin: Callable[[], Any]
) -> None:
    """Its effect may have happened before it made what it returned."""
    wrong = make_idempotent(lambda _event: begin(), persistence_store=bench.store, config=keyed(), key_prefix="job")
    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError):
            wrong(ORDER)

    assert bench.peek(KEY)["status"] == "COMPLETED"
