"""Where a call finds its deadline: its own context, the invocation's around it, or none."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, Mock

import pytest
from doubles import LambdaContext

from idempotency import IdempotencyConfig, current_attempt, idempotent, idempotent_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from behaviour.kit import CountingStore
    from doubles import FakeClock

LEASE_MS, MARGIN_MS = 60_000, 1_000


@pytest.fixture
def lease_of(store: CountingStore, clock: FakeClock) -> Callable[..., int]:
    """An idempotent function that returns how long its own lease is."""

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def lease_ms(order: Any) -> int:
        return lease(clock)

    return lease_ms


def lease(clock: FakeClock) -> int:
    """How long the running attempt's lease is, from now."""
    lease_end_ms = current_attempt().lease_end_ms
    assert lease_end_ms is not None
    return lease_end_ms - clock.now_ms


def test_the_deadline_of_a_handler_reaches_the_functions_that_it_calls(
    store: CountingStore, clock: FakeClock, lease_of: Callable[..., int]
) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> list[int]:
        return [lease(clock), lease_of(order=1)]

    assert handler({"id": 1}, LambdaContext(30_000)) == [30_000 + MARGIN_MS] * 2


def test_a_sandbox_that_freezes_while_the_deadline_is_asked_for_makes_it_early_and_never_late(
    store: CountingStore, clock: FakeClock
) -> None:
    began_ms = clock.now_ms

    class Freezing(LambdaContext):
        def get_remaining_time_in_millis(self) -> int:
            remaining_ms = super().get_remaining_time_in_millis()
            clock.now_ms += 5_000
            return remaining_ms

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> int | None:
        return current_attempt().lease_end_ms

    assert handler({"id": 1}, Freezing(30_000)) == began_ms + 30_000 + MARGIN_MS


def test_the_deadline_of_an_async_handler_reaches_the_tasks_that_it_starts(store: CountingStore, clock: FakeClock) -> None:
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def lease_ms(order: Any) -> int:
        return lease(clock)

    @idempotent(persistence_store=store)
    async def handler(event: Any, context: Any) -> list[int]:
        return await asyncio.gather(*[lease_ms(order) for order in range(3)])

    assert asyncio.run(handler({"id": 1}, LambdaContext(30_000))) == [30_000 + MARGIN_MS] * 3


def test_the_deadline_of_a_handler_ends_with_its_call(store: CountingStore, lease_of: Callable[..., int]) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None: ...

    handler({"id": 1}, LambdaContext(30_000))

    assert lease_of(order=1) == LEASE_MS


def test_the_inner_of_two_handlers_has_its_own_deadline_and_the_outer_keeps_its(
    store: CountingStore, clock: FakeClock, lease_of: Callable[..., int]
) -> None:
    @idempotent(persistence_store=store)
    def inner(event: Any, context: Any) -> int:
        return lease_of(order=1)

    @idempotent(persistence_store=store)
    def outer(event: Any, context: Any) -> list[int]:
        return [inner(event, LambdaContext(5_000)), lease_of(order=2)]

    assert outer({"id": 1}, LambdaContext(30_000)) == [5_000 + MARGIN_MS, 30_000 + MARGIN_MS]


def test_a_registered_context_gives_the_deadline(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        return lease(clock)

    config.register_lambda_context(LambdaContext(30_000))

    assert charge(order=1) == 30_000 + MARGIN_MS


def test_a_context_in_the_configuration_gives_the_deadline(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig(lambda_context=LambdaContext(30_000))

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        return lease(clock)

    assert charge(order=1) == 30_000 + MARGIN_MS


def test_a_registered_context_is_its_configurations_alone(lease_of: Callable[..., int]) -> None:
    """It outlives the call that registers it; one that another part of the program left behind must shorten no lease."""
    IdempotencyConfig().register_lambda_context(LambdaContext(30_000))

    assert lease_of(order=1) == 60_000


def test_a_registered_context_of_a_finished_invocation_is_none(store: CountingStore, clock: FakeClock) -> None:
    """Its deadline has passed: a lease until then could be taken over at once."""
    config = IdempotencyConfig()
    context = LambdaContext(30_000, clock=clock)
    config.register_lambda_context(context)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        return lease(clock)

    clock.advance(ms=29_999)
    assert charge(order=1) == 1 + MARGIN_MS
    clock.advance(ms=1)
    assert charge(order=2) == LEASE_MS


def test_the_threads_of_one_configuration_have_each_their_own_context(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()
    both_registered, both_running = Barrier(2, timeout=10), Barrier(2, timeout=10)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        both_running.wait()
        return lease(clock)

    def invocation(remaining_ms: int) -> int:
        config.register_lambda_context(LambdaContext(remaining_ms))
        both_registered.wait()
        return charge(order=remaining_ms)

    with ThreadPoolExecutor(2) as pool:
        leases = list(pool.map(invocation, [10_000, 20_000]))

    assert leases == [10_000 + MARGIN_MS, 20_000 + MARGIN_MS]


def test_the_tasks_of_one_configuration_have_each_their_own_context(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    async def charge(order: Any) -> int:
        return lease(clock)

    async def invocation(remaining_ms: int, barrier: asyncio.Barrier) -> int:
        config.register_lambda_context(LambdaContext(remaining_ms))
        await barrier.wait()
        return await charge(order=remaining_ms)

    async def story() -> list[int]:
        barrier = asyncio.Barrier(2)
        return await asyncio.gather(invocation(10_000, barrier), invocation(20_000, barrier))

    assert asyncio.run(story()) == [10_000 + MARGIN_MS, 20_000 + MARGIN_MS]


def test_two_handlers_in_two_threads_do_not_mix_their_deadlines(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()
    both_running = Barrier(2, timeout=10)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        return lease(clock)

    @idempotent(persistence_store=store, config=config)
    def handler(event: Any, context: Any) -> int:
        both_running.wait()
        return charge(order=event)

    with ThreadPoolExecutor(2) as pool:
        leases = list(pool.map(lambda ms: handler({"ms": ms}, LambdaContext(ms)), [10_000, 20_000]))

    assert leases == [10_000 + MARGIN_MS, 20_000 + MARGIN_MS]


def test_a_thread_started_with_the_callers_context_knows_the_deadline(store: CountingStore, lease_of: Callable[..., int]) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, lease_of, order=1).result()

    assert handler({"id": 1}, LambdaContext(30_000)) == 30_000 + MARGIN_MS


def test_a_bare_thread_falls_back_on_the_context_registered_last(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config)
    def charge(order: Any) -> int:
        return lease(clock)

    @idempotent(persistence_store=store, config=config)
    def handler(event: Any, context: Any) -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(charge, order=1).result()

    assert handler({"id": 1}, LambdaContext(30_000)) == 30_000 + MARGIN_MS
    config.register_lambda_context(LambdaContext(7_000))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(charge, order=2).result() == 7_000 + MARGIN_MS


def test_a_finished_attempt_leaves_no_deadline_to_a_call_of_its_own_context_with_none(
    store: CountingStore, clock: FakeClock
) -> None:
    """`context=None` is no invocation: the ambient one of an outer handler is not taken for its own."""

    @idempotent(persistence_store=store)
    def inner(event: Any, context: Any) -> int:
        return lease(clock)

    assert inner({"id": 1}, None) == LEASE_MS


class Unsure:
    """A context of another provider, which answers with a float."""

    def get_remaining_time_in_millis(self) -> float:
        return 2_000.7


def test_a_context_may_answer_in_fractions(store: CountingStore, clock: FakeClock) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> int:
        return lease(clock)

    assert handler({"id": 1}, Unsure()) == 2_000 + MARGIN_MS


@pytest.mark.parametrize("kind", [Mock, MagicMock])
def test_a_mock_of_a_context_gives_the_deadline_that_it_was_told(store: CountingStore, clock: FakeClock, kind: Any) -> None:
    handler = idempotent(lambda event, context: lease(clock), persistence_store=store)
    context = kind()
    context.get_remaining_time_in_millis.return_value = 30_000

    assert handler({"id": 1}, context) == 30_000 + MARGIN_MS


@pytest.mark.parametrize("kind", [Mock, MagicMock])
def test_a_mock_of_a_context_that_was_told_nothing_gives_no_deadline(store: CountingStore, clock: FakeClock, kind: Any) -> None:
    """What it answers is another mock, and `int()` of some is 1: the deadline would be over."""
    handler = idempotent(lambda event, context: lease(clock), persistence_store=store)

    assert handler({"id": 1}, kind()) == LEASE_MS
