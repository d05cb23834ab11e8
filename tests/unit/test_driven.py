"""Stores made of procedures, for async callers: only requests take worker threads, and none is sent after its deadline."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from doubles import START_MS, FakeClock, incompressible

from persistence import _large_results, threaded
from persistence._procedures import TooLateError
from persistence._retries import is_sending
from persistence.background import CALL_WORKERS, Workers
from persistence.base import Refusal
from persistence.cache import CachePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.dynamodb import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyItemAlreadyExistsError, IdempotencyPersistenceLayerError
from persistence.lean import LeanClient
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

OFFER = DataRecord("fn#1", "INPROGRESS", START_MS // 1000 + 60, START_MS + 1_000, owner_token="a", generation=1)
DONE = OFFER.replace(status="COMPLETED", response_data='"result"')


class Client:
    """Answers as *answering* says, whatever it is asked, and remembers by which thread."""

    def __init__(self, answering: Callable[[], Any] = dict) -> None:
        self.answering = answering
        self.threads: list[str] = []
        self.are_sending: list[bool] = []

    def put_item(self, **_request: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.are_sending.append(is_sending.get())
        return self.answering()

    get_item = update_item = delete_item = transact_write_items = put_item


class Cache(Client):
    """A cache's client without scripts: its `set` always succeeds, and nothing is found."""

    def set(self, **_request: Any) -> bool:
        self.put_item()
        return True

    def get(self, _key: str) -> None:
        self.put_item()

    def delete(self, _key: str) -> None:
        self.put_item()


def throttled() -> Any:
    raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "..."}}, "PutItem")


def refused() -> Any:
    raise ClientError({"Error": {"Code": "ConditionalCheckFailedException", "Message": "..."}}, "PutItem")


def disconnected() -> Any:
    raise type("ConnectionError", (Exception,), {})("reset")


def dynamodb(client: Any, clock: FakeClock) -> DynamoDBPersistenceLayer:
    store = DynamoDBPersistenceLayer("table", boto3_client=client)
    store.clock_ms = clock
    return store


def cache(client: Any, clock: FakeClock) -> CachePersistenceLayer:
    store = CachePersistenceLayer(client=client)
    store.clock_ms = clock
    return store


class Pausing(ThreadedPersistenceLayer):
    """Pauses until a test lets it go on."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.paused = 0
        self.all_paused, self.go_on = asyncio.Event(), asyncio.Event()
        self.expected = 0

    async def sleep_ms(self, ms: float) -> None:
        self.paused += 1
        if self.paused == self.expected:
            self.all_paused.set()
        await self.go_on.wait()


@pytest.mark.parametrize(("make", "client_class", "trouble"), [(dynamodb, Client, throttled), (cache, Cache, disconnected)])
@pytest.mark.parametrize("verb", ["claim", "complete", "release"])
def test_pauses_hold_no_worker(make: Any, client_class: Any, trouble: Any, verb: str, clock: FakeClock) -> None:
    """Twice as many calls as there are workers wait for a store in trouble; a healthy one answers meanwhile."""
    client, healthy = client_class(trouble), Client()

    async def story() -> None:
        troubled = Pausing(make(client, clock))
        troubled.expected = 2 * CALL_WORKERS
        record = DONE if verb == "complete" else OFFER
        waiting = [asyncio.ensure_future(getattr(troubled, verb)(record)) for _ in range(2 * CALL_WORKERS)]
        await asyncio.wait_for(troubled.all_paused.wait(), 10)

        await ThreadedPersistenceLayer(dynamodb(healthy, clock)).complete(DONE)
        assert not any(each.done() for each in waiting)

        client.answering = dict
        troubled.go_on.set()
        await asyncio.gather(*waiting)

    asyncio.run(story())

    assert len(healthy.threads) == 1
    assert len(client.threads) >= 4 * CALL_WORKERS


def test_the_pauses_of_an_upload_hold_no_worker(clock: FakeClock) -> None:
    class Busy:
        def __init__(self) -> None:
            self.is_busy = True

        def put(self, name: str, body: bytes) -> str:
            if self.is_busy:
                throttled()
            return name

        def get(self, location: str, max_bytes: int) -> bytes:
            raise AssertionError(location)

    offload: Any = Busy()
    store = DynamoDBPersistenceLayer("table", boto3_client=Client(), result_offload=offload)
    store.clock_ms = clock
    large = DONE.replace(response_data=incompressible(600_000))

    async def story() -> None:
        troubled = Pausing(store)
        troubled.expected = CALL_WORKERS + 1
        waiting = [asyncio.ensure_future(troubled.complete(large)) for _ in range(CALL_WORKERS + 1)]
        await asyncio.wait_for(troubled.all_paused.wait(), 10)
        await ThreadedPersistenceLayer(dynamodb(Client(), clock)).complete(DONE)
        offload.is_busy = False
        troubled.go_on.set()
        await asyncio.gather(*waiting)

    asyncio.run(story())


def in_the_queue(store: Any, calling: Callable[[ThreadedPersistenceLayer], Any], meanwhile: Callable[[], object]) -> Any:
    """What comes of a call for which there is no worker until something has happened *meanwhile*."""
    release = threading.Event()
    all_busy = threading.Barrier(CALL_WORKERS + 1)

    def block() -> dict[str, Any]:
        all_busy.wait(timeout=10)
        release.wait(timeout=10)
        return {}

    async def story() -> Any:
        blocked = ThreadedPersistenceLayer(dynamodb(Client(block), FakeClock()))
        blocking = [asyncio.ensure_future(blocked.complete(DONE)) for _ in range(CALL_WORKERS)]
        await asyncio.to_thread(all_busy.wait, 10)
        call = asyncio.ensure_future(calling(ThreadedPersistenceLayer(store)))
        await asyncio.sleep(0)
        meanwhile()
        release.set()
        [outcome] = await asyncio.gather(call, return_exceptions=True)
        await asyncio.gather(*blocking)
        return outcome

    workers = Workers("test", CALL_WORKERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threaded, "call_workers", lambda _store: workers)  # those of one store, whatever the stores
        return asyncio.run(story())


@pytest.mark.parametrize(("make", "client_class"), [(dynamodb, Client), (cache, Cache)])
@pytest.mark.parametrize(("late_ms", "is_sent"), [(0, True), (1, False)])
@pytest.mark.parametrize("verb", ["claim", "complete", "release"])
def test_a_request_is_not_sent_if_its_deadline_passes_while_it_waits_for_a_worker(
    make: Any, client_class: Any, late_ms: int, is_sent: bool, verb: str, clock: FakeClock
) -> None:
    client = client_class()
    record = (DONE if verb == "complete" else OFFER).replace(deadline_ms=clock() + 3_000)

    outcome = in_the_queue(
        make(client, clock), lambda store: getattr(store, verb)(record), lambda: clock.advance(ms=3_000 + late_ms)
    )

    assert bool(client.threads) is is_sent
    if not is_sent:
        assert isinstance(outcome, IdempotencyPersistenceLayerError)
        assert isinstance(outcome.__cause__, TooLateError)
        assert "(Nothing was sent: the deadline passed while the request waited for a worker thread)" in str(outcome)


def test_a_request_that_comes_too_late_after_an_unknown_outcome_sends_no_read_either(clock: FakeClock) -> None:
    def lost() -> Any:
        clock.advance(ms=200)
        raise ClientError({"Error": {"Code": "InternalServerError", "Message": "..."}}, "UpdateItem")

    client = Client(lost)
    store = dynamodb(client, clock)

    class Oversleeping(ThreadedPersistenceLayer):
        async def sleep_ms(self, ms: float) -> None:
            clock.advance(seconds=10)

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        asyncio.run(Oversleeping(store).complete(DONE.replace(deadline_ms=clock() + 3_000)))

    assert isinstance(raised.value.__cause__, TooLateError)
    assert len(client.threads) == 1


def test_an_operation_that_begins_after_its_deadline_is_tried_once_as_in_sync_code(clock: FakeClock) -> None:
    """Whoever is still alive may store its result: the record decides whether it is too late."""
    client = Client()

    asyncio.run(ThreadedPersistenceLayer(dynamodb(client, clock)).complete(DONE.replace(deadline_ms=clock() - 1)))

    assert len(client.threads) == 1


def test_the_client_is_made_and_called_in_a_worker_which_alone_is_marked_as_sending(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """To make one may take long, and even ask a service for credentials."""
    client = Client()
    makers: list[str] = []

    def new_client(_store: object, _region: str | None) -> Any:
        makers.append(threading.current_thread().name)
        return client

    monkeypatch.setattr(DynamoDBPersistenceLayer, "_new_client", new_client)
    for replication in ({}, {"replication": "eventual"}):
        store = DynamoDBPersistenceLayer("table", **replication)
        store.clock_ms = clock

        async def story(store: Any = store) -> bool:
            await ThreadedPersistenceLayer(store).claim(OFFER)
            return is_sending.get()

        assert asyncio.run(story()) is False

    assert len(makers) == 2
    assert client.are_sending == [True, True]
    assert all(name.startswith("idempotency-store") for name in makers + client.threads)


def test_a_client_that_tries_once_by_itself_needs_no_mark(clock: FakeClock) -> None:
    """The mark is for botocore, and costs a tenth of this library's part of a request."""

    class Once(Client):
        tries_once = True

    client = Once()
    dynamodb(client, clock).complete(DONE)

    assert client.are_sending == [False]
    assert LeanClient.tries_once is True


def test_a_large_result_is_compressed_in_a_worker(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """It would keep the event loop busy."""
    threads: list[str] = []
    compress = _large_results.compress

    def watched(*arguments: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return compress(*arguments)

    monkeypatch.setattr(_large_results, "compress", watched)

    asyncio.run(ThreadedPersistenceLayer(dynamodb(Client(), clock)).complete(DONE.replace(response_data="x" * 500_000)))

    assert [name.startswith("idempotency-store") for name in threads] == [True]


# Hooks of the user's own


class OwnPut(DynamoDBPersistenceLayer):
    def _put_record(self, data_record: DataRecord) -> DataRecord:
        self.put_by = threading.current_thread().name
        return super()._put_record(data_record)


class OwnUpdate(DynamoDBPersistenceLayer):
    def _update_record(self, data_record: DataRecord) -> None:
        self.put_by = threading.current_thread().name
        super()._update_record(data_record)


def test_a_completion_whose_claim_has_vanished_and_that_may_not_be_written_anew_tells_why(clock: FakeClock) -> None:
    class Denying(Client):
        def update_item(self, **_request: Any) -> Any:
            return refused()

        def put_item(self, **_request: Any) -> Any:
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no PutItem"}}, "PutItem")

    with pytest.raises(IdempotencyPersistenceLayerError, match="no PutItem"):
        dynamodb(Denying(), clock).complete(DONE)


@pytest.mark.parametrize(("own", "verb"), [(OwnPut, "claim"), (OwnUpdate, "complete")])
def test_a_hook_that_a_subclass_overrides_is_called_whole_and_in_a_worker(own: Any, verb: str, clock: FakeClock) -> None:
    client = Client()
    store = own("table", boto3_client=client)
    store.clock_ms = clock

    asyncio.run(getattr(ThreadedPersistenceLayer(store), verb)(OFFER if verb == "claim" else DONE))

    assert client.threads == [store.put_by]
    assert store.put_by.startswith("idempotency-store")


def test_a_hook_that_is_patched_on_the_store_or_its_class_is_called(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """By a tracer, say, which takes care to look like what it wraps."""
    seen: list[str] = []

    def traced(hook: Any, where: str) -> Any:
        @functools.wraps(hook)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            seen.append(where)
            return hook(*arguments, **keywords)

        return wrapper

    store: Any = dynamodb(Client(), clock)
    store._update_record = traced(store._update_record, "store")
    monkeypatch.setattr(
        DynamoDBPersistenceLayer, "_put_record", traced(DynamoDBPersistenceLayer._put_record, "class"), raising=False
    )

    async def story() -> None:
        await ThreadedPersistenceLayer(store).claim(OFFER)
        await ThreadedPersistenceLayer(store).complete(DONE)

    asyncio.run(story())
    store.claim(OFFER)
    store.complete(DONE)

    assert seen == ["class", "store", "class", "store"]


def test_the_hook_of_a_claim_raises_where_its_procedure_returns_a_refusal(clock: FakeClock) -> None:
    store = dynamodb(Client(refused), clock)

    for hook in (store._put_record, lambda record: asyncio.run(ThreadedPersistenceLayer(store)._put_record(record))):
        with pytest.raises(IdempotencyItemAlreadyExistsError) as raised:
            hook(OFFER)
        assert raised.value.old_data_record is None

    refusal = store._offer_record(OFFER)
    assert isinstance(refusal, Refusal)
    assert refusal.existing is None


def test_a_store_without_transactions_or_packed_results_says_so(clock: FakeClock) -> None:
    store: Any = cache(Cache(), clock)

    with pytest.raises(NotImplementedError, match="^CachePersistenceLayer has no transactions$"):
        store._commit_record(data_record=DONE, transaction=None)
    with pytest.raises(NotImplementedError, match="^CachePersistenceLayer packs no results$"):
        store._load_result(data_record=DONE)
