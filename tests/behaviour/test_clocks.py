"""Durations under a wall clock that stands still, or that is set back an hour: nothing lasts longer than it should."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Work
from botocore.exceptions import ClientError
from doubles import FakeClock

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    make_idempotent,
)
from persistence.bulk import GIVE_UP_MS, copy_records
from persistence.cache import CachePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.exceptions import IdempotencyBulkIncompleteError

if TYPE_CHECKING:
    from collections.abc import Callable


class StrangeClock(FakeClock):
    """Its time does not pass while somebody sleeps; *step_ms* is what it does instead."""

    def __init__(self, step_ms: int = 0) -> None:
        super().__init__()
        self.step_ms = step_ms

    def sleep_ms(self, ms: float) -> None:
        self.slept_ms.append(ms)
        self.now_ms += self.step_ms


@pytest.fixture(params=[0, -3_600_000], ids=["stands still", "is set back"])
def clock(request: pytest.FixtureRequest) -> StrangeClock:
    return StrangeClock(request.param)


def throttled(**_request: Any) -> Any:
    raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "..."}}, "PutItem")


class Throttled:
    put_item = get_item = update_item = delete_item = transact_write_items = staticmethod(throttled)


class Disconnected:
    """A cache's client without scripts, and without a connection."""

    @staticmethod
    def get(*_arguments: Any, **_options: Any) -> Any:
        raise type("ConnectionError", (Exception,), {})("reset")

    set = delete = get


def using(store: Any, clock: FakeClock) -> Any:
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


RUNNING = DataRecord("k", "INPROGRESS", 1_900_000_000, 1_900_000_000_000, owner_token="a", generation=1)
DONE = RUNNING.replace(status="COMPLETED", response_data="1")


@pytest.mark.parametrize(
    "make",
    [lambda: DynamoDBPersistenceLayer("table", boto3_client=Throttled()), lambda: CachePersistenceLayer(client=Disconnected())],
    ids=["dynamodb", "cache"],
)
@pytest.mark.parametrize(
    ("use", "seconds"),
    [
        (lambda store: store.claim(RUNNING), 10),
        (lambda store: store.fetch("k"), 5),
        (lambda store: store.complete(DONE), 20),
        (lambda store: store.release(RUNNING), 3),
        (lambda store: store.complete(DONE.replace(deadline_ms=store.clock_ms() + 7_000)), 7),
    ],
    ids=["claim", "fetch", "complete", "release", "complete by a deadline"],
)
def test_a_store_in_trouble_is_given_up_in_time(
    make: Callable[[], Any], use: Callable[[Any], Any], seconds: int, clock: StrangeClock
) -> None:
    store = using(make(), clock)

    with pytest.raises(IdempotencyPersistenceLayerError):
        use(store)

    assert 1000 * seconds - 300 < sum(clock.slept_ms) < 1000 * seconds + 300


@pytest.mark.parametrize(
    "make",
    [
        lambda step: DynamoDBPersistenceLayer("table", boto3_client=SteppingBack(step, throttled)),
        lambda step: CachePersistenceLayer(client=SteppingBack(step, Disconnected.get)),
    ],
    ids=["dynamodb", "cache"],
)
def test_a_clock_that_is_set_back_during_the_first_request_prolongs_nothing(make: Callable[..., Any]) -> None:
    clock = FakeClock()
    store = using(make(lambda: clock.advance(seconds=-3_600)), clock)

    with pytest.raises(IdempotencyPersistenceLayerError):
        store.complete(DONE.replace(deadline_ms=clock() + 5_000))

    assert sum(clock.slept_ms) == pytest.approx(4_900, abs=50)


class SteppingBack:
    """A client in trouble, at whose first call something happens."""

    def __init__(self, step: Callable[[], object], trouble: Callable[..., Any]) -> None:
        self.steps = [step]
        self.trouble = trouble

    def update_item(self, *_arguments: Any, **_options: Any) -> Any:
        if self.steps:
            self.steps.pop()()
        self.trouble()

    put_item = get_item = delete_item = get = set = delete = update_item


@pytest.mark.parametrize("is_async", [False, True])
def test_another_attempt_is_waited_for_no_longer_than_configured(is_async: bool, clock: StrangeClock) -> None:
    store = using(CountingStore(clock_ms=clock), clock)
    store.claim(RUNNING.replace(idempotency_key="same#8f14e45fceea167a5a36dedd4bea2543"))
    work = Work()
    config = IdempotencyConfig(wait_for_in_progress_seconds=5)

    async def awork(event: object) -> object:
        return work(event)

    safe: Any = make_idempotent(awork if is_async else work, persistence_store=store, config=config, key_prefix="same")
    with pytest.raises(IdempotencyAlreadyInProgressError):
        asyncio.run(safe(7)) if is_async else safe(7)

    assert work.runs == []
    assert sum(clock.slept_ms) == pytest.approx(5_000, abs=50)


def test_a_copy_into_a_table_that_takes_nothing_ends_after_a_minute(clock: StrangeClock) -> None:
    item = {"id": {"S": "k"}, "status": {"S": "COMPLETED"}, "expiration": {"N": "1900000000"}, "data": {"S": "1"}}

    class Source(Throttled):
        @staticmethod
        def scan(**_request: Any) -> Any:
            return {"Items": [item], "ScannedCount": 1}

    class Full(Throttled):
        @staticmethod
        def batch_write_item(**request: Any) -> Any:
            return {"UnprocessedItems": request["RequestItems"]}

    source = using(DynamoDBPersistenceLayer("old", boto3_client=Source()), clock)  # type: ignore[arg-type]
    target = using(DynamoDBPersistenceLayer("new", boto3_client=Full()), clock)  # type: ignore[arg-type]

    with pytest.raises(IdempotencyBulkIncompleteError, match="unprocessed for 60 seconds"):
        copy_records(source, target, segments=1, target_in_use=False)

    assert sum(clock.slept_ms) == pytest.approx(GIVE_UP_MS, abs=2_100)
