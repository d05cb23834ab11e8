"""A Lambda context counts during its invocation, and no longer: a later call would take its last milliseconds for a deadline."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextvars import Context, copy_context
from threading import Thread
from typing import Any

import pytest
from behaviour.kit import PREFIX, CountingStore, key_of
from doubles import START_MS, FakeClock, LambdaContext

from idempotency import IdempotencyConfig, current_attempt, idempotent, idempotent_function

LEASE_SECONDS = 60


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock_ms=clock)


def lease_ms(store: CountingStore, config: IdempotencyConfig, order: str) -> int | None:
    """For how long a plain function holds its key: for 60 s and more where no deadline is known."""
    ends: list[int | None] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, key_prefix=PREFIX)
    def function(order: str) -> None:
        ends.append(store._records[key_of(order)].in_progress_expiry_timestamp)

    function(order=order)
    (end_ms,) = ends
    return None if end_ms is None else end_ms - START_MS


def is_renewed(ms: int | None) -> bool:
    return ms is not None and ms >= LEASE_SECONDS * 1000


def handle(store: CountingStore, config: IdempotencyConfig, context: LambdaContext, work: Any = lambda: None) -> None:
    @idempotent(persistence_store=store, config=config, key_prefix="handler")
    def handler(event: Any, context: Any) -> Any:
        return work()

    handler({"id": context.aws_request_id}, context)


def test_a_context_ends_with_its_handler(store: CountingStore) -> None:
    config = IdempotencyConfig()

    handle(store, config, LambdaContext(remaining_ms=200))

    assert config.lambda_context is None
    assert is_renewed(lease_ms(store, config, "later"))


def test_a_context_ends_with_a_handler_that_fails(store: CountingStore) -> None:
    config = IdempotencyConfig()

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        handle(store, config, LambdaContext(remaining_ms=200), fail)

    assert config.lambda_context is None


def test_a_context_counts_in_the_calls_and_threads_of_its_handler(store: CountingStore) -> None:
    config, found = IdempotencyConfig(), []

    def work() -> None:
        found.append(lease_ms(store, config, "called"))
        # Without the caller's context, as threads have it before Python 3.14.
        thread = Thread(target=Context().run, args=(lambda: found.append(lease_ms(store, config, "in a thread")),))
        thread.start()
        thread.join()

    handle(store, config, LambdaContext(remaining_ms=20_000), work)

    assert [ms is not None and ms < 30_000 for ms in found] == [True, True]


def test_a_registered_context_counts_until_another_invocation_registers_its_own(store: CountingStore) -> None:
    first, second = IdempotencyConfig(), IdempotencyConfig()
    first.register_lambda_context(LambdaContext(remaining_ms=20_000, aws_request_id="1"))
    assert not is_renewed(lease_ms(store, first, "same invocation"))

    second.register_lambda_context(LambdaContext(remaining_ms=20_000, aws_request_id="2"))

    assert is_renewed(lease_ms(store, first, "next invocation"))
    assert not is_renewed(lease_ms(store, second, "own"))


def test_a_registered_context_counts_until_another_invocations_handler_begins(store: CountingStore) -> None:
    config = IdempotencyConfig()
    config.register_lambda_context(LambdaContext(remaining_ms=20_000, aws_request_id="1"))

    handle(store, IdempotencyConfig(), LambdaContext(aws_request_id="2"))

    assert is_renewed(lease_ms(store, config, "later"))


def test_configurations_of_one_invocation_share_no_context_but_keep_their_own(store: CountingStore) -> None:
    context = LambdaContext(remaining_ms=20_000)
    first, second, third = IdempotencyConfig(), IdempotencyConfig(), IdempotencyConfig()
    first.register_lambda_context(context)
    second.register_lambda_context(context)

    leases = [lease_ms(store, config, f"of {number}") for number, config in enumerate((first, second, third))]

    assert [is_renewed(ms) for ms in leases] == [False, False, True]


def test_a_registered_context_ends_with_its_deadline(store: CountingStore, clock: FakeClock) -> None:
    config = IdempotencyConfig()
    config.register_lambda_context(LambdaContext(remaining_ms=1_000, clock=clock))

    clock.advance(ms=1_000)

    assert is_renewed(lease_ms(store, config, "later"))


def test_a_context_that_a_configuration_was_made_with_counts_like_a_registered_one(store: CountingStore) -> None:
    config = IdempotencyConfig(lambda_context=LambdaContext(remaining_ms=20_000, aws_request_id="1"))
    assert not is_renewed(lease_ms(store, config, "same invocation"))

    IdempotencyConfig().register_lambda_context(LambdaContext(aws_request_id="2"))

    assert is_renewed(lease_ms(store, config, "next invocation"))


def test_contexts_without_a_request_id_are_told_apart(store: CountingStore) -> None:
    class Bare:
        def get_remaining_time_in_millis(self) -> int:
            return 20_000

    config, contexts = IdempotencyConfig(), [Bare(), Bare()]
    config.register_lambda_context(contexts[0])
    assert not is_renewed(lease_ms(store, config, "same invocation"))

    IdempotencyConfig().register_lambda_context(contexts[1])

    assert is_renewed(lease_ms(store, config, "next invocation"))


def test_a_configuration_per_invocation_leaves_nothing_behind() -> None:
    kept = [sys.getrefcount(LambdaContext)]
    for round_ in range(2):
        for number in range(100):
            IdempotencyConfig().register_lambda_context(LambdaContext(aws_request_id=f"{round_} {number}"))
        gc.collect()
        kept.append(sum(isinstance(each, LambdaContext) for each in gc.get_objects()))

    assert kept[1] == kept[2]


def test_the_deadline_of_an_ended_call_is_no_deadline_of_what_it_left_behind(store: CountingStore) -> None:
    """A task or thread that goes on with a copy of the context of its caller, whose invocation has ended."""
    left: list[Context] = []
    config = IdempotencyConfig()

    handle(store, config, LambdaContext(remaining_ms=200), lambda: left.append(copy_context()))

    with pytest.raises(RuntimeError, match=r"^current_attempt\(\) was called after its idempotent call had ended$"):
        left[0].run(current_attempt)
    assert is_renewed(left[0].run(lease_ms, store, config, "left behind"))


# Overrides


def test_overrides_may_be_left_in_any_order(store: CountingStore, clock: FakeClock) -> None:
    first, second = CountingStore(clock_ms=clock), CountingStore(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    def function(order: int) -> int:
        return order

    one, two = function.override(persistence_store=first), function.override(persistence_store=second)
    one.__enter__()
    two.__enter__()
    function(order=1)
    one.__exit__(None, None, None)
    function(order=2)
    two.__exit__(None, None, None)
    function(order=3)

    assert (len(first._records), len(second._records), len(store._records)) == (0, 2, 1)


def test_an_override_can_be_entered_again_and_used_as_a_decorator(store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    def function(order: int) -> int:
        return order

    override: Any = function.override(persistence_store=other)
    with override:
        with override:
            function(order=1)
        function(order=2)
    override(function)(order=3)
    function(order=4)

    assert (len(other._records), len(store._records)) == (3, 1)


def test_an_override_that_is_entered_twice_is_left_where_it_was_entered_last(store: CountingStore, clock: FakeClock) -> None:
    first, second = CountingStore(clock_ms=clock), CountingStore(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    def function(order: int) -> int:
        return order

    one, two = function.override(persistence_store=first), function.override(persistence_store=second)
    with one, two:
        with one:
            function(order=1)
        function(order=2)

    assert (len(first._records), len(second._records)) == (1, 1)


def test_an_override_decorates_async_functions_and_refuses_generators(store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    def function(order: int) -> int:
        return order

    override: Any = function.override(persistence_store=other)

    @override
    async def story() -> None:
        function(order=1)

    asyncio.run(story())
    assert (len(other._records), len(store._records)) == (1, 0)

    with pytest.raises(TypeError, match="does not decorate generator functions"):

        @override
        def generate() -> Any:
            yield function(order=2)
