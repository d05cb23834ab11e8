"""`with_outcome` tells a run from a replay; `override` swaps store and configuration for a while."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Form, Work, key_of
from doubles import LambdaContext

from idempotency import (
    Executed,
    IdempotencyConfig,
    IdempotencyPersistenceConfigError,
    InMemoryPersistenceLayer,
    Replayed,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from doubles import FakeClock

ORDER = {"id": 7}


def test_the_outcome_of_a_run_and_of_its_replay(form: Form, store: CountingStore) -> None:
    work = Work(result={"items": [1]})
    call = form.decorate(work, store)

    ran = call.outcome(ORDER, LambdaContext(aws_request_id="request-1"))
    replayed = call.outcome(ORDER, LambdaContext(aws_request_id="request-2"))

    assert isinstance(ran, Executed)
    assert ran.value is work.result
    assert isinstance(replayed, Replayed)
    assert replayed.value == {"items": [1]}
    assert (ran.ran_now, replayed.ran_now) == (True, False)
    assert replayed.record == ran.record
    assert replayed.record.key == key_of(ORDER)
    if form.decorator != "idempotent_function":
        assert replayed.record.holder == "request-1"


def test_an_outcome_does_not_show_the_result_in_logs(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(result="secret"), store)

    assert "secret" not in f"{call.outcome(ORDER)!r} {call.outcome(ORDER)!r}"


def test_asking_for_the_outcome_raises_what_a_call_raises(form: Form, store: CountingStore) -> None:
    error = LookupError("no")

    with pytest.raises(LookupError) as raised:
        form.decorate(Work(error=error), store).outcome(ORDER)

    assert raised.value is error


def test_the_outcome_of_a_cached_result_is_a_replay_with_the_hooks_answer(form: Form, store: CountingStore) -> None:
    config = IdempotencyConfig(use_local_cache=True, response_hook=lambda response, record: [response, record.generation])
    call = form.decorate(Work(result="a"), store, config)
    call(ORDER)

    assert call.outcome(ORDER).value == ["a", 1]


class Shop:
    store = InMemoryPersistenceLayer()

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def charge(self, order: int) -> list[int]:
        return [order]

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def acharge(self, order: int) -> list[int]:
        return [order]


def test_the_outcome_of_a_method_is_asked_through_its_class() -> None:
    shop = Shop()

    ran, replayed = Shop.charge.with_outcome(shop, 7), Shop.charge.with_outcome(shop, order=7)

    assert (type(ran), ran.value) == (Executed, [7])
    assert (type(replayed), replayed.value) == (Replayed, [7])


def test_the_outcome_of_an_async_method_is_asked_through_its_class() -> None:
    async def story() -> list[Any]:
        return [await Shop.acharge.with_outcome(Shop(), 7), await Shop.acharge.with_outcome(Shop(), order=7)]

    ran, replayed = asyncio.run(story())

    assert (type(ran), ran.value) == (Executed, [7])
    assert (type(replayed), replayed.value) == (Replayed, [7])


def test_an_override_uses_another_store_inside_its_block_only(form: Form, store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)
    work = Work(result=1)
    call = form.decorate(work, store)

    call(ORDER)
    with call.function.override(persistence_store=other):
        call(ORDER)
        call(ORDER)
    call(ORDER)

    assert work.runs == [ORDER, ORDER]
    assert len(store._records) == len(other._records) == 1
    assert store.asked.count("put") == 2


def test_an_override_uses_another_configuration_with_the_same_store(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store, IdempotencyConfig("id"))

    with call.function.override(config=IdempotencyConfig("user")):
        call({"id": 7, "user": "ann"})
    call({"id": 7, "user": "ann"})

    assert list(store._records) == [key_of("ann"), key_of(7)]


def test_overrides_nest(form: Form, store: CountingStore, clock: FakeClock) -> None:
    one, two = CountingStore(clock_ms=clock), CountingStore(clock_ms=clock)
    call = form.decorate(Work(), store, IdempotencyConfig("id"))

    with call.function.override(persistence_store=one):
        with call.function.override(persistence_store=two, config=IdempotencyConfig("user")):
            call({"id": 7, "user": "ann"})
        call({"id": 7, "user": "ann"})
    call({"id": 7, "user": "ann"})

    assert [list(each._records) for each in (two, one, store)] == [[key_of("ann")], [key_of(7)], [key_of(7)]]


def test_an_override_ends_when_its_block_raises(form: Form, store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)
    call = form.decorate(Work(error=LookupError()), store)

    with pytest.raises(LookupError), call.function.override(persistence_store=other):
        call(ORDER)
    with pytest.raises(LookupError):
        call(ORDER)

    assert (other.asked, store.asked) == (["put", "delete"], ["put", "delete"])


def test_an_override_holds_in_all_threads(store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)
    call = make_idempotent(Work(), persistence_store=store)

    with call.override(persistence_store=other), ThreadPoolExecutor(1) as pool:
        pool.submit(call, 7).result()

    assert (len(other._records), store.asked) == (1, [])


def test_a_call_finishes_on_the_store_that_it_started_on(store: CountingStore, clock: FakeClock) -> None:
    other = CountingStore(clock_ms=clock)
    block: list[Any] = []

    def work(order: int) -> None:
        if order:
            block.append(call.override(persistence_store=other))
            block[0].__enter__()

    call = make_idempotent(work, persistence_store=store)
    call(7)

    assert (store.asked, other.asked) == (["put", "update"], [])
    call(0)
    block[0].__exit__(None, None, None)
    assert other.asked == ["put", "update"]


def test_an_override_that_makes_no_sense_changes_nothing(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store)
    unfit: Any = object()

    with pytest.raises(TypeError, match="^persistence_store must be"), call.function.override(persistence_store=unfit):
        pytest.fail("the block ran")
    with pytest.raises(TypeError, match="^config must be"), call.function.override(config=unfit):
        pytest.fail("the block ran")
    no_hash = IdempotencyConfig(hash_function="x")
    with pytest.raises(ValueError, match="is no hash of hashlib"), call.function.override(config=no_hash):
        pytest.fail("the block ran")
    call(ORDER)

    assert store.asked == ["put", "update"]


def test_an_override_checks_the_store_against_the_configuration(form: Form, store: CountingStore) -> None:
    class Plain(InMemoryPersistenceLayer):
        supports_leases = False

    call = form.decorate(Work(), store, IdempotencyConfig(orphan_takeover=False))

    with pytest.raises(IdempotencyPersistenceConfigError), call.function.override(persistence_store=Plain()):
        pytest.fail("the block ran")
