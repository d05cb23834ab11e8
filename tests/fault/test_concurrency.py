"""Many calls at once: on one event loop, and in threads that share a store, a configuration and a function."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, key_of, keyed
from stores import Made, by_id

from idempotency import IdempotencyAlreadyInProgressError, current_attempt, idempotent, idempotent_function, make_idempotent

if TYPE_CHECKING:
    from doubles import FakeClock

CALLS = 100


@pytest.fixture(params=by_id("memory", "dynamodb", "dynamodb-lean"))
def place(request: pytest.FixtureRequest, clock: FakeClock) -> Made:
    factory, endpoint_fixture = request.param
    made: Made = factory(clock, request.getfixturevalue(endpoint_fixture) if endpoint_fixture else "")
    return made


def test_a_hundred_async_calls_of_distinct_keys_are_all_at_work_at_once(place: Made) -> None:
    async def story() -> list[Any]:
        all_run = asyncio.Barrier(CALLS)

        @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="job")
        async def work(event: Any) -> list[Any]:
            async with asyncio.timeout(30):
                await all_run.wait()
            return [event["id"], current_attempt().key]

        return await asyncio.gather(*[work(event={"id": number}) for number in range(CALLS)])

    results = asyncio.run(story())

    assert results == [[number, key_of(number)] for number in range(CALLS)]
    assert {place.peek(key_of(number))["status"] for number in range(CALLS)} == {"COMPLETED"}


def test_of_a_hundred_async_calls_of_one_key_one_runs(place: Made) -> None:
    async def story() -> list[Any]:
        others_done = asyncio.Event()
        ended: list[Any] = []

        @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="job")
        async def work(event: Any) -> str:
            async with asyncio.timeout(30):
                await others_done.wait()
            return "done"

        async def call() -> None:
            try:
                ended.append(await work(event=ORDER))
            except IdempotencyAlreadyInProgressError as error:
                ended.append(type(error))
            if len(ended) == CALLS - 1:
                others_done.set()

        await asyncio.gather(*[call() for _ in range(CALLS)])
        return ended

    assert asyncio.run(story()) == [IdempotencyAlreadyInProgressError] * (CALLS - 1) + ["done"]


def test_of_racing_threads_with_one_key_one_runs(place: Made) -> None:
    racers, rounds = 8, 10
    start = threading.Barrier(racers)
    others_refused = threading.Barrier(racers)
    runs: list[int] = []

    @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="job")
    def work(event: Any) -> str:
        runs.append(event["id"])
        others_refused.wait(30)
        return "done"

    def race() -> None:
        for number in range(rounds):
            start.wait(30)
            try:
                work(event={"id": number})
            except IdempotencyAlreadyInProgressError:
                others_refused.wait(30)

    with ThreadPoolExecutor(racers) as pool:
        for future in [pool.submit(race) for _ in range(racers)]:
            future.result()
    assert runs == list(range(rounds))


def test_threads_with_different_functions_and_configurations_share_a_store(place: Made, clock: FakeClock) -> None:
    """Each thread calls all functions; each call gets its own function's result under its own function's key."""
    functions = [
        make_idempotent(
            lambda event, _name=name: f"{_name} {event['id']}",
            persistence_store=place.store,
            key_prefix=name,
            config=keyed(expires_after_seconds=100 + index, payload_validation_jmespath="amount" if index % 2 else ""),
        )
        for index, name in enumerate(["book", "ship", "bill", "tell"])
    ]
    start = threading.Barrier(8)

    def calls(thread: int) -> list[Any]:
        start.wait(30)
        return [function({"id": thread, "amount": 1}) for function in functions for _ in range(2)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(calls, range(8)))

    assert results == [[f"{name} {thread}" for name in ("book", "ship", "bill", "tell") for _ in range(2)] for thread in range(8)]
    for index, name in enumerate(["book", "ship", "bill", "tell"]):
        record = place.peek(key_of(3).replace("job", name))
        assert record["expiration"] == clock() // 1000 + 100 + index
        assert ("validation" in record) == bool(index % 2)


def test_threads_that_share_a_handler_keep_their_own_deadlines(place: Made, clock: FakeClock) -> None:
    """One configuration, two invocations at once: a nested call finds the deadline of its own."""
    both_inside = threading.Barrier(2)
    config = keyed()

    @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=config, key_prefix="inner")
    def inner(event: Any) -> Any:
        return current_attempt().lease_end_ms

    @idempotent(persistence_store=place.store, config=config, key_prefix="outer")
    def handler(event: Any, context: Any) -> Any:
        both_inside.wait(30)
        return [current_attempt().lease_end_ms, inner(event=event)]

    contexts = [LambdaContext(remaining_ms=ms, clock=clock) for ms in (5_000, 20_000)]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(handler, [{"id": "a"}, {"id": "b"}], contexts))

    assert ends == [[clock() + 6_000] * 2, [clock() + 21_000] * 2]


def test_a_nested_call_of_the_same_key_is_refused_and_harms_nobody(place: Made) -> None:
    @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="job")
    def work(event: Any, *, is_inner: bool = False) -> str:
        with pytest.raises(IdempotencyAlreadyInProgressError):
            work(event=event, is_inner=True)
        return "done"

    assert work(event=ORDER) == "done"
    assert place.peek(KEY)["data"] == '"done"'


def test_a_failing_nested_call_releases_its_own_key_only(place: Made) -> None:
    @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="inner")
    def inner(event: Any) -> None:
        raise OSError("boom")

    @idempotent_function(data_keyword_argument="event", persistence_store=place.store, config=keyed(), key_prefix="job")
    def outer(event: Any) -> str:
        with pytest.raises(OSError, match="boom"):
            inner(event=event)
        return "done without"

    assert outer(event=ORDER) == "done without"
    assert place.peek(KEY)["data"] == '"done without"'
    assert place.peek(KEY.replace("job", "inner")) is None
