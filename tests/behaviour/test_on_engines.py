"""A few of the decorators' stories on DynamoDB and on caches, which evaluate the conditions."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import PREFIX, Form, Work, key_of
from doubles import LambdaContext, incompressible
from stores import OTHER_WAYS, STORES, Made, cached, dynamodb, dynamodb_composite

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyPersistenceConfigError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    idempotent,
    make_idempotent,
    transaction,
)

if TYPE_CHECKING:
    from doubles import FakeClock

ORDER = {"id": 7, "amount": 10}


@pytest.fixture(params=[each for each in STORES + OTHER_WAYS if each.id not in ("memory", "moto")])
def made(request: pytest.FixtureRequest, clock: FakeClock) -> Made:
    factory, endpoint_fixture = request.param
    made: Made = factory(clock, request.getfixturevalue(endpoint_fixture))
    return made


def test_a_retry_gets_the_stored_result_and_the_function_runs_once(form: Form, made: Made) -> None:
    work = Work(result={"items": [1, 2], "none": None})
    call = form.decorate(work, made.store, IdempotencyConfig("id"))

    assert call(ORDER) is work.result
    assert call(ORDER) == {"items": [1, 2], "none": None}
    assert work.runs == [ORDER]


@pytest.mark.parametrize("result", [{}, [], "", 0, False, None], ids=repr)
def test_an_empty_result_replays_as_itself(made: Made, result: Any) -> None:
    work = Work(result=result)
    call = make_idempotent(work, persistence_store=made.store)
    call(ORDER)

    assert call(ORDER) == result
    assert len(work.runs) == 1


def test_a_failed_call_frees_the_key_for_the_retry(form: Form, made: Made) -> None:
    work = Work(result="paid", error=ConnectionError("bank"))
    call = form.decorate(work, made.store, IdempotencyConfig("id"))
    with pytest.raises(ConnectionError, match="^bank$"):
        call(ORDER)
    assert made.peek(key_of(7)) is None
    work.error = None

    assert call(ORDER) == "paid"


def test_the_lease_of_an_invocation_is_in_the_item_even_with_no_time_left(made: Made, clock: FakeClock) -> None:
    seen: list[Any] = []

    @idempotent(persistence_store=made.store, config=IdempotencyConfig("id"), key_prefix=PREFIX)
    def handler(event: Any, context: Any) -> None:
        seen.append(made.peek(key_of(7)))

    handler(ORDER, LambdaContext(0, aws_request_id="request-5"))

    assert seen[0]["in_progress_expiration"] == clock.now_ms + 1_000
    assert (seen[0]["status"], seen[0]["holder"]) == ("INPROGRESS", "request-5")


def test_a_changed_payload_is_refused_before_and_after_completion(made: Made) -> None:
    config = IdempotencyConfig("id", payload_validation_jmespath="amount")
    refused: list[str] = []

    def work(event: dict[str, int]) -> str:
        try:
            call({"id": 7, "amount": 11})
        except IdempotencyValidationError as error:
            refused.append(error.message)
        return "paid"

    call = make_idempotent(work, persistence_store=made.store, config=config)
    call(ORDER)

    with pytest.raises(IdempotencyValidationError):
        call({"id": 7, "amount": 11})

    assert call(ORDER) == "paid"
    assert refused == ["Payload does not match stored record for this event key"]


def test_a_result_beyond_the_size_of_an_item_is_not_kept_and_not_run_again(clock: FakeClock, dynamodb_local: str) -> None:
    made = dynamodb(clock, dynamodb_local)
    work = Work(result=incompressible(800 * 1024))
    call = make_idempotent(work, persistence_store=made.store, key_prefix=PREFIX)

    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError):
            call(7)

    record = made.peek(key_of(7))
    assert len(work.runs) == 1
    assert record is not None
    assert (record["status"], record["result_not_kept"]) == ("COMPLETED", True)


def test_of_racing_threads_one_runs_and_the_others_are_refused(made: Made) -> None:
    all_ready, work = Barrier(8, timeout=30), Work(result="paid")
    hold = Barrier(8, timeout=30)

    def charge(order: int) -> Any:
        work(order)
        hold.wait()  # until every other thread has been refused
        return work.result

    call = make_idempotent(charge, persistence_store=made.store)

    def racer(_: int) -> str:
        all_ready.wait()
        try:
            return str(call(7))
        except IdempotencyAlreadyInProgressError:
            hold.wait()
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(racer, range(8)))

    assert answers == ["paid"] + ["refused"] * 7
    assert work.runs == [7]


def test_of_racing_tasks_one_runs_and_the_others_are_refused(made: Made) -> None:
    runs: list[int] = []

    async def story() -> list[Any]:
        others_are_refused = asyncio.Event()
        refused: list[int] = []

        async def charge(order: int) -> str:
            runs.append(order)
            await others_are_refused.wait()
            return "paid"

        call: Any = make_idempotent(charge, persistence_store=made.store, key_prefix=PREFIX)

        async def racer() -> str:
            try:
                return str(await call(7))
            except IdempotencyAlreadyInProgressError:
                refused.append(1)
                if len(refused) == 7:
                    others_are_refused.set()
                return "refused"

        async with asyncio.timeout(30):
            return await asyncio.gather(*[racer() for _ in range(8)])

    assert sorted(asyncio.run(story())) == ["paid"] + ["refused"] * 7
    assert runs == [7]


def test_a_cache_with_an_asyncio_client_serves_async_functions(clock: FakeClock, valkey_server: str) -> None:
    made = cached(clock, valkey_server)
    runs: list[int] = []

    async def charge(order: int) -> str:
        runs.append(order)
        return "paid"

    async def story() -> list[str]:
        store = made.new_awaited()
        call: Any = make_idempotent(charge, persistence_store=store, key_prefix=PREFIX)
        answers = [await call(7), await call(7)]
        await store.aclose()
        return answers

    assert asyncio.run(story()) == ["paid", "paid"]
    assert (runs, made.peek(key_of(7))["data"]) == ([7], '"paid"')


def test_a_text_that_utf_8_cannot_encode_is_replayed_all_the_same(made: Made) -> None:
    """A lone surrogate, which JSON can name."""
    work = Work(result="\ud800")
    call = make_idempotent(work, persistence_store=made.store)
    call(7)

    assert call(7) == "\ud800"
    assert work.runs == [7]


def test_a_cache_has_no_transactions(clock: FakeClock, valkey_server: str) -> None:
    made = cached(clock, valkey_server)
    call = make_idempotent(lambda order: transaction(), persistence_store=made.store)

    with pytest.raises(IdempotencyPersistenceConfigError, match="^CachePersistenceLayer has no transactions"):
        call(7)


@pytest.fixture
def composite(clock: FakeClock, dynamodb_local: str) -> Made:
    return dynamodb_composite(clock, dynamodb_local)


def test_on_a_composite_table_a_refusal_names_partition_and_key(composite: Made) -> None:
    messages: list[str] = []

    def work(event: dict[str, int]) -> None:
        try:
            call(event)
        except IdempotencyAlreadyInProgressError as error:
            messages.append(error.message)

    call = make_idempotent(work, persistence_store=composite.store, config=IdempotencyConfig("id"), key_prefix=PREFIX)
    call(ORDER)

    assert messages == [f"Execution already in progress with idempotency key: id=idempotency#payments and sort key: {key_of(7)}"]


def test_on_a_composite_table_the_local_cache_keeps_keys_apart(composite: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powertools files its records under the partition key, which they all share."""
    work = Work()

    def echo(event: dict[str, int]) -> int:
        work(event)
        return event["id"]

    call = make_idempotent(echo, persistence_store=composite.store, config=IdempotencyConfig("id", use_local_cache=True))
    call({"id": 1})
    call({"id": 2})
    monkeypatch.setattr(composite.store, "client", None)

    assert [call({"id": 1}), call({"id": 2})] == [1, 2]
    assert len(work.runs) == 2
