"""`current_attempt()`: the attempt that runs here, and the key that it gives to downstream services."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from behaviour.kit import PREFIX, CountingStore, Form, key_of
from doubles import LambdaContext

from idempotency import (
    Attempt,
    DataRecord,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    current_attempt,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

    from persistence.background import Heartbeat

ORDER = {"id": 7}
OUTSIDE = r"^current_attempt\(\) was called outside a running idempotent call$"


def test_a_function_sees_the_attempt_that_runs_it(
    form: Form, store: CountingStore, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    seen: list[tuple[Attempt, Any]] = []
    form.decorate(lambda event: seen.append((current_attempt(), stored(event))), store)({"id": 7})

    ((attempt, record),) = seen
    assert attempt.key == key_of({"id": 7})
    assert attempt.generation == 1
    assert attempt.lease_end_ms == clock.now_ms + 60_000
    assert attempt.owner_token == record.owner_token


def test_the_attempt_does_not_show_its_owner_token_in_logs(form: Form, store: CountingStore) -> None:
    seen: list[Attempt] = []
    form.decorate(lambda event: seen.append(current_attempt()), store)({"id": 7})

    assert seen[0].owner_token
    assert seen[0].owner_token not in repr(seen[0])
    assert repr(seen[0]).startswith(f"Attempt(key='{PREFIX}#")


def test_a_takeover_has_the_next_generation(form: Form, store: CountingStore, clock: FakeClock) -> None:
    store.claim(DataRecord(key_of(7), "INPROGRESS", 2**40, clock.now_ms - 1, owner_token="gone", generation=1))
    call = form.decorate(lambda event: current_attempt().generation, store, IdempotencyConfig("id"))

    assert call({"id": 7}) == 2


def test_outside_a_call_there_is_no_attempt(form: Form, store: CountingStore) -> None:
    form.decorate(lambda event: None, store)({"id": 7})

    with pytest.raises(RuntimeError, match=OUTSIDE):
        current_attempt()


def test_after_a_failed_call_there_is_no_attempt(form: Form, store: CountingStore) -> None:
    def fail(event: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        form.decorate(fail, store)({"id": 7})
    with pytest.raises(RuntimeError, match=OUTSIDE):
        current_attempt()


def test_a_nested_call_has_its_own_attempt_and_the_outer_gets_its_back(store: CountingStore) -> None:
    keys: list[str] = []

    def note(_: Any) -> None:
        keys.append(current_attempt().key.partition("#")[0])

    inner = make_idempotent(note, persistence_store=store, key_prefix="inner")

    def outer(order: int) -> None:
        note(order)
        inner(order)
        note(order)

    make_idempotent(outer, persistence_store=store, key_prefix="outer")(7)

    assert keys == ["outer", "inner", "outer"]


def test_an_unprotected_call_inside_another_does_not_show_the_outer_attempt(store: CountingStore) -> None:
    """An attempt fences the resources of the call that it belongs to; the outer call's would fence the wrong ones."""
    keys: list[str] = []
    inner = make_idempotent(lambda order: keys.append(current_attempt().key), persistence_store=store)

    def outer(order: int) -> None:
        with pytest.warns(UserWarning, match="^No idempotency key value found"):
            inner({})
        keys.append(current_attempt().key)

    make_idempotent(outer, persistence_store=store, key_prefix=PREFIX)(7)

    assert keys[0].startswith("unprotected#")
    assert keys[1] == key_of(7)


def test_a_thread_of_its_own_has_no_attempt(store: CountingStore) -> None:
    def work(order: int) -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=OUTSIDE):
            pool.submit(current_attempt).result()

    make_idempotent(work, persistence_store=store)(7)


def test_concurrent_tasks_have_each_their_own_attempt(store: CountingStore) -> None:
    async def work(order: int, barrier: asyncio.Barrier) -> list[str]:
        before = current_attempt().key
        await barrier.wait()
        return [before, current_attempt().key]

    safe = idempotent_function(work, data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)

    async def story() -> list[list[str]]:
        barrier = asyncio.Barrier(3)
        return await asyncio.gather(*[safe(order, barrier) for order in range(3)])

    assert asyncio.run(story()) == [[key_of(order)] * 2 for order in range(3)]


def test_a_task_started_by_the_function_has_its_attempt(store: CountingStore) -> None:
    async def key() -> str:
        return current_attempt().key

    async def work(order: int) -> str:
        return await asyncio.create_task(key())

    safe = make_idempotent(work, persistence_store=store, key_prefix=PREFIX)

    assert asyncio.run(safe(7)) == key_of(7)


def downstream_key(store: CountingStore, order: Any, *, fail: bool = False) -> str:
    seen: list[str] = []

    def work(event: Any) -> None:
        seen.append(current_attempt().downstream_key)
        if fail:
            raise ConnectionError

    safe = make_idempotent(work, persistence_store=store, key_prefix=PREFIX)
    if fail:
        with pytest.raises(ConnectionError):
            safe(order)
    else:
        safe(order)
    return seen[0]


def test_the_downstream_key_is_the_same_uuid_in_every_attempt(store: CountingStore) -> None:
    first = downstream_key(store, 7, fail=True)

    assert str(UUID(first)) == first
    assert downstream_key(store, 7) == first


def test_the_downstream_key_differs_between_keys(store: CountingStore) -> None:
    assert downstream_key(store, 7) != downstream_key(store, 8)


def test_the_downstream_key_is_the_same_in_every_process_and_every_version(store: CountingStore) -> None:
    """Other services take it for a repetition of the same request: it must never change."""
    program = (
        "from idempotency import *\n"
        "work = make_idempotent(lambda e: current_attempt().downstream_key, persistence_store=InMemoryPersistenceLayer(),"
        f" key_prefix={PREFIX!r})\n"
        "print(work(7))"
    )
    other = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )

    assert downstream_key(store, 7) == "370842d2-2b1b-549e-a846-822928ddfa16"
    assert other.stdout.strip() == "370842d2-2b1b-549e-a846-822928ddfa16"


def test_the_lease_end_grows_with_each_renewal_and_leaves_the_margin_out(
    store: CountingStore, clock: FakeClock, heart: Heartbeat
) -> None:
    ends: list[int | None] = []

    def work(order: int) -> None:
        ends.append(current_attempt().lease_end_ms)
        clock.advance(ms=20_000)
        heart.beat()
        ends.append(current_attempt().lease_end_ms)
        (record,) = store._records.values()
        ends.append(record.in_progress_expiry_timestamp)

    start_ms = clock.now_ms
    make_idempotent(work, persistence_store=store)(7)

    assert ends == [start_ms + 60_000, start_ms + 80_000, start_ms + 81_000]


@pytest.mark.parametrize("margin_ms", [0, 1_000, 2_500])
def test_an_attempt_whose_clock_is_ahead_by_the_margin_takes_no_lease_over_that_its_holder_counts_on(
    form: Form, store: CountingStore, clock: FakeClock, margin_ms: int
) -> None:
    config = IdempotencyConfig("id", lease_seconds=5, lease_margin_seconds=margin_ms / 1000)
    other = make_idempotent(lambda event: "the other's", persistence_store=store, config=config, key_prefix=PREFIX)
    taken: list[str] = []

    def work(event: Any) -> None:
        clock.now_ms = (current_attempt().lease_end_ms or 0) + margin_ms  # as the other machine's clock shows the last moment
        with pytest.raises(IdempotencyAlreadyInProgressError):
            other(event)
        clock.advance(ms=1)
        taken.append(other(event))

    form.decorate(work, store, config)(ORDER)

    assert taken == ["the other's"]


@pytest.mark.parametrize(("late_ms", "ahead_ms"), [(700, 300), (0, 1_000), (1_000, 0)])
def test_the_margin_of_an_invocation_bears_the_late_stop_and_the_difference_of_clocks_together(
    store: CountingStore, clock: FakeClock, late_ms: int, ahead_ms: int
) -> None:
    """0.7 s is how late Lambda was seen to stop a function, so 0.3 s of the default are left for the clocks."""
    runs: list[int] = []

    def work(order: int, context: Any) -> None:
        runs.append(order)
        if len(runs) == 1:
            clock.advance(ms=30_000 + late_ms + ahead_ms)
            with pytest.raises(IdempotencyAlreadyInProgressError):
                call(order, LambdaContext(30_000))
            clock.advance(ms=1)
            call(order, LambdaContext(30_000))

    call = make_idempotent(work, persistence_store=store)
    call(7, LambdaContext(30_000))

    assert runs == [7, 7]


def test_an_invocations_lease_is_not_renewed(store: CountingStore, clock: FakeClock, heart: Heartbeat) -> None:
    """It ends when nobody can be at work any more."""
    ends: list[int | None] = []

    def work(order: int, context: Any) -> None:
        clock.advance(ms=25_000)
        heart.beat()
        ends.append(current_attempt().lease_end_ms)

    start_ms = clock.now_ms
    make_idempotent(work, persistence_store=store)(7, LambdaContext(30_000))

    assert ends == [start_ms + 31_000]
