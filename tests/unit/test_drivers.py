"""The drivers' small parts: pauses of a call that waits, errors that came too late, and who is told what a store met."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS, FakeClock

from idempotency import IdempotencyConfig, events, idempotent_function
from idempotency.drivers import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, MAX_WRITES, _retrieved, _to_its_end, pause_ms
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
)
from persistence.memory import InMemoryPersistenceLayer
from persistence.notices import Throttling, call_notices

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence.base import BasePersistenceLayer
    from persistence.datarecord import DataRecord


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tries", [0, 1, 2, 3, 4, 5, 9, 10, 11, 1_000])
def test_pauses_double_up_to_their_longest_and_are_jittered_by_half(seed: int, tries: int) -> None:
    random.seed(seed)
    ceiling = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2**tries)

    assert ceiling / 2 <= pause_ms(tries, 60_000) <= ceiling, seed


def test_pauses_use_the_whole_of_their_range() -> None:
    random.seed(20_261_121)

    shares = [pause_ms(0, 60_000) / FIRST_PAUSE_MS for _ in range(500)]

    assert 0.5 <= min(shares) < 0.51
    assert 0.99 < max(shares) <= 1


@pytest.mark.parametrize("at_most_ms", [0, 1, 24])
def test_no_pause_is_longer_than_what_is_left(at_most_ms: int) -> None:
    assert pause_ms(0, at_most_ms) == at_most_ms
    assert pause_ms(1_000, at_most_ms) == at_most_ms


def test_the_error_of_a_task_that_came_too_late_is_looked_at_and_a_cancelled_one_has_none() -> None:
    """Otherwise asyncio reports it as never retrieved, when the task is collected."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        failed, cancelled = loop.create_future(), loop.create_future()
        failed.set_exception(ValueError("late"))
        cancelled.cancel()

        _retrieved(failed)
        _retrieved(cancelled)

        assert not failed._log_traceback

    asyncio.run(story())


def test_a_write_that_is_cancelled_each_time_ends_as_a_cancellation() -> None:
    writes: list[str] = []

    async def write() -> None:
        writes.append("write")
        raise asyncio.CancelledError

    async def story() -> None:
        with pytest.raises(asyncio.CancelledError):
            await _to_its_end(write)

    asyncio.run(story())

    assert writes == ["write"] * MAX_WRITES


# What a store met on its way is told to the observers of its call


class Noticing(InMemoryPersistenceLayer):
    """A store that is throttled at each request, and then answers.

    Attributes:
        was_collected: Whether anybody wanted notices, at each request.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock_ms=clock)
        self.sleep_ms = clock.sleep_ms
        self.was_collected: list[bool] = []

    def _throttled(self, operation: str) -> None:
        notices = call_notices()
        self.was_collected.append(notices is not None)
        if notices is not None:
            notices.append(Throttling(operation, 2, ("Hot",)))

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        self._throttled("put")
        return super()._put_record(data_record)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        self._throttled("get")
        return super()._get_record(idempotency_key)

    def _update_record(self, data_record: DataRecord) -> None:
        self._throttled("update")
        super()._update_record(data_record)

    def _delete_record(self, data_record: DataRecord) -> None:
        self._throttled("delete")
        super()._delete_record(data_record)

    def _load_result(self, data_record: DataRecord) -> str:
        self._throttled("load")
        return '"loaded"'


@pytest.fixture
def noticing(clock: FakeClock) -> Noticing:
    return Noticing(clock)


def function(store: BasePersistenceLayer, work: Callable[[], Any], is_async: bool, **options: Any) -> Callable[[], Any]:
    """*work* as an idempotent function, always of the same key; an async one is awaited here."""
    config = IdempotencyConfig(**options)
    if is_async:

        @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, key_prefix="fn")
        async def afunction(order: Any) -> Any:
            return work()

        return lambda: asyncio.run(afunction(order=1))

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, key_prefix="fn")
    def sfunction(order: Any) -> Any:
        return work()

    return lambda: sfunction(order=1)


def told(events_: list[Any]) -> list[str]:
    """The kinds of the events in order, a throttle with its operation."""
    return [f"throttled {event.operation}" if isinstance(event, events.Throttled) else type(event).__name__ for event in events_]


ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@ASYNC
def test_a_throttle_is_told_before_what_became_of_its_request(noticing: Noticing, is_async: bool) -> None:
    seen: list[Any] = []
    call = function(noticing, lambda: "done", is_async, observers=[seen.append])
    call()
    call()

    assert told(seen) == ["throttled put", "Claimed", "throttled update", "Completed", "throttled put", "Replayed"]


@ASYNC
def test_a_throttle_is_told_with_key_time_number_and_reasons(noticing: Noticing, is_async: bool) -> None:
    seen: list[Any] = []
    function(noticing, lambda: "done", is_async, observers=[seen.append])()

    assert seen[0] == events.Throttled(key=seen[1].key, at_ms=START_MS, operation="put", requests=2, reasons=("Hot",))


@ASYNC
def test_a_throttled_release_is_told_before_the_release(noticing: Noticing, is_async: bool) -> None:
    seen: list[Any] = []

    def fail() -> None:
        raise OSError("boom")

    with pytest.raises(OSError, match="boom"):
        function(noticing, fail, is_async, observers=[seen.append])()

    assert told(seen)[2:] == ["throttled delete", "Released"]


@ASYNC
def test_a_throttled_read_of_a_waiting_call_is_told_before_the_wait(noticing: Noticing, is_async: bool, clock: FakeClock) -> None:
    seen: list[Any] = []
    options = {"wait_for_in_progress_seconds": 60, "observers": [seen.append]}

    def work() -> str:
        waiting = function(noticing, lambda: "late", False, **options)
        with pytest.raises(Exception, match="already in progress"):
            waiting()
        return "done"

    function(noticing, work, is_async)()

    reads = told(seen)[1:-2]
    assert set(reads) == {"throttled get"}
    assert told(seen)[0] == "throttled put"
    assert told(seen)[-2:] == ["Waited", "Refused"]


@ASYNC
def test_a_throttled_load_is_told_before_the_replay(noticing: Noticing, is_async: bool) -> None:
    seen: list[Any] = []
    call = function(noticing, lambda: "done", is_async, observers=[seen.append])
    call()
    [(key, record)] = noticing._records.items()
    noticing._records[key] = record.replace(response_data="", packed_result=b"packed")
    seen.clear()

    assert call() == "loaded"
    assert told(seen) == ["throttled put", "throttled load", "Replayed"]


@ASYNC
@pytest.mark.parametrize(
    ("failure", "kinds"),
    [
        (ValueError("the store is down"), ["throttled put"]),
        (IdempotencyItemAlreadyExistsError(), ["throttled put", "throttled get"] * 3 + ["Refused"]),
    ],
    ids=["failed", "refused"],
)
def test_a_throttle_is_told_even_if_the_request_fails_in_the_end(
    noticing: Noticing, is_async: bool, failure: Exception, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def refuse(self: Any, data_record: DataRecord) -> DataRecord:
        raise failure

    monkeypatch.setattr(InMemoryPersistenceLayer, "_put_record", refuse)
    with pytest.raises(Exception, match="store"):
        function(noticing, lambda: "done", is_async, observers=[seen.append])()

    assert told(seen) == kinds


@ASYNC
def test_observers_are_told_in_the_thread_of_the_call(noticing: Noticing, is_async: bool) -> None:
    threads: set[str] = set()
    function(noticing, lambda: "done", is_async, observers=[lambda _event: threads.add(threading.current_thread().name)])()

    assert threads == {threading.current_thread().name}


@ASYNC
def test_without_observers_nothing_is_collected(noticing: Noticing, is_async: bool) -> None:
    call = function(noticing, lambda: "done", is_async)
    call()
    call()

    assert noticing.was_collected == [False, False, False]


@ASYNC
def test_what_the_function_does_with_stores_itself_is_not_told_to_the_observers_of_its_call(
    noticing: Noticing, is_async: bool, clock: FakeClock
) -> None:
    seen: list[Any] = []
    own = Noticing(clock)

    def work() -> str:
        own.fetch("mine")
        return "done"

    function(noticing, work, is_async, observers=[seen.append])()

    assert own.was_collected == [False]
    assert told(seen) == ["throttled put", "Claimed", "throttled update", "Completed"]


@ASYNC
def test_a_nested_call_tells_its_own_observers_and_nobody_elses(noticing: Noticing, is_async: bool, clock: FakeClock) -> None:
    outer: list[Any] = []
    inner: list[Any] = []
    silent = Noticing(clock)

    def work() -> str:
        function(Noticing(clock), lambda: "inner", False, observers=[inner.append])()
        function(silent, lambda: "silent", False)()
        return "outer"

    function(noticing, work, is_async, observers=[outer.append])()

    assert told(outer) == told(inner) == ["throttled put", "Claimed", "throttled update", "Completed"]
    assert silent.was_collected == [False, False]


def test_an_observer_that_uses_a_store_itself_is_not_told_of_that(noticing: Noticing, clock: FakeClock) -> None:
    seen: list[Any] = []
    own = Noticing(clock)

    def observe(event: Any) -> None:
        seen.append(event)
        own.fetch("mine")

    function(noticing, lambda: "done", False, observers=[observe])()

    assert told(seen) == ["throttled put", "Claimed", "throttled update", "Completed"]
    assert own.was_collected == [False] * 4


def test_an_interruption_of_the_request_tells_of_its_throttles(noticing: Noticing, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def interrupt(self: Any, data_record: DataRecord) -> DataRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(InMemoryPersistenceLayer, "_put_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        function(noticing, lambda: "done", False, observers=[seen.append])()

    assert told(seen)[0] == "throttled put"
    assert call_notices() is None


# Calls that were fenced off


@ASYNC
def test_a_call_without_its_record_is_told_so_even_if_the_record_cannot_be_read(
    noticing: Noticing, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fence(data_record: DataRecord) -> None:
        raise IdempotencyLeaseLostError("another attempt")

    def fail(idempotency_key: str) -> DataRecord:
        raise OSError("reset")

    monkeypatch.setattr(noticing, "_update_record", fence)
    monkeypatch.setattr(noticing, "_get_record", fail)

    with pytest.raises(IdempotencyLeaseLostError, match="^The function ran, but "):
        function(noticing, lambda: "late", is_async)()


# Results that are kept elsewhere


@ASYNC
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (IdempotencyResultNotKeptError("gone"), IdempotencyResultNotKeptError),
        (OSError("reset"), IdempotencyPersistenceLayerError),
    ],
    ids=["gone", "failed"],
)
def test_a_result_that_cannot_be_loaded_is_an_error_of_the_caller_and_an_event(
    noticing: Noticing, is_async: bool, failure: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    runs: list[int] = []
    call = function(noticing, lambda: runs.append(1), is_async, observers=[seen.append])
    call()
    [(key, record)] = noticing._records.items()
    noticing._records[key] = record.replace(response_data="", packed_result=b"packed")

    def fail(data_record: DataRecord) -> str:
        raise failure

    monkeypatch.setattr(noticing, "_load_result", fail)
    with pytest.raises(kind) as failed:
        call()

    assert runs == [1]
    assert type(failed.value) is kind
    assert seen[-1].reason == "result not loaded"
    if kind is IdempotencyPersistenceLayerError:
        assert failed.value.__cause__ is failure


@ASYNC
def test_a_late_success_gets_the_winners_packed_result(
    noticing: Noticing, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fence(data_record: DataRecord) -> None:
        packed = data_record.replace(owner_token="theirs", response_data="", packed_result=b"packed")
        raise IdempotencyLeaseLostError("another attempt", record=packed)

    monkeypatch.setattr(noticing, "_update_record", fence)

    assert function(noticing, lambda: "late", is_async)() == "loaded"
