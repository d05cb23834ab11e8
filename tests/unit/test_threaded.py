"""A sync store, awaited."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from doubles import START_MS, FakeClock

from persistence import background, threaded
from persistence.background import CALL_WORKERS
from persistence.base import BasePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
    IdempotencyTransactionCanceledError,
)
from persistence.memory import InMemoryPersistenceLayer
from persistence.threaded import ThreadedPersistenceLayer, _Answers
from persistence.transaction import Transaction

OFFER = DataRecord("fn#1", "INPROGRESS", START_MS // 1000 + 60, START_MS + 1_000, owner_token="a", generation=1)
DONE = OFFER.replace(status="COMPLETED", response_data='"result"')

caller: ContextVar[str] = ContextVar("caller", default="nobody")


class Recording(BasePersistenceLayer):
    """Notes with what, where and in whose context its hooks are called."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.threads: set[str] = set()
        self.callers: set[str] = set()

    def note(self, hook: str, **keywords: Any) -> None:
        self.seen.append((hook, keywords))
        self.threads.add(threading.current_thread().name)
        self.callers.add(caller.get())

    def _put_record(self, data_record: DataRecord) -> None:
        self.note("_put_record", data_record=data_record)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        self.note("_get_record", idempotency_key=idempotency_key)
        return DONE

    def _update_record(self, data_record: DataRecord) -> None:
        self.note("_update_record", data_record=data_record)

    def _delete_record(self, data_record: DataRecord) -> None:
        self.note("_delete_record", data_record=data_record)


def test_the_awaited_verbs_do_what_the_wrapped_store_does(clock: FakeClock) -> None:
    wrapped = InMemoryPersistenceLayer(clock_ms=clock)
    store = ThreadedPersistenceLayer(wrapped)

    async def story() -> None:
        granted = await store.claim(OFFER)
        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            await store.claim(OFFER.replace(owner_token="b"))
        assert refused.value.old_data_record == granted
        await store.renew(granted.replace(in_progress_expiry_timestamp=START_MS + 2_000))
        await store.complete(DONE)
        with pytest.raises(IdempotencyLeaseLostError):
            await store.release(granted)
        assert await store.fetch("fn#1") == DONE
        assert await store.fetch("fn#2") is None

    asyncio.run(story())


def test_an_orphan_is_released_in_a_thread_as_by_the_wrapped_store(clock: FakeClock) -> None:
    wrapped = InMemoryPersistenceLayer(clock_ms=clock)
    wrapped.claim(OFFER)
    clock.advance(ms=1_001)

    asyncio.run(ThreadedPersistenceLayer(wrapped).release_orphan("fn#1", owner_token="a"))

    assert wrapped.fetch("fn#1") is None


def test_the_hook_of_a_claim_says_in_a_thread_what_the_wrapped_stores_says(clock: FakeClock) -> None:
    store = ThreadedPersistenceLayer(InMemoryPersistenceLayer(clock_ms=clock))

    async def story() -> None:
        granted = await store._put_record(data_record=OFFER)
        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            await store._put_record(data_record=OFFER.replace(owner_token="b"))
        assert refused.value.old_data_record == (granted or OFFER)

    asyncio.run(story())


def test_each_hook_runs_in_a_worker_thread_in_the_callers_context() -> None:
    wrapped = Recording()
    store = ThreadedPersistenceLayer(wrapped)

    async def story() -> None:
        caller.set("story")
        assert await store.claim(OFFER) is OFFER
        assert await store.fetch("fn#1") is DONE
        await store.complete(DONE)
        await store.release(OFFER)

    asyncio.run(story())

    assert wrapped.seen == [
        ("_put_record", {"data_record": OFFER}),
        ("_get_record", {"idempotency_key": "fn#1"}),
        ("_update_record", {"data_record": DONE}),
        ("_delete_record", {"data_record": OFFER}),
    ]
    assert all(name.startswith("idempotency-store") for name in wrapped.threads)
    assert wrapped.callers == {"story"}


def test_a_failure_in_the_thread_is_translated_once() -> None:
    trouble = ConnectionError("reset")

    class Failing(Recording):
        def _put_record(self, data_record: DataRecord) -> None:
            raise trouble

    store = ThreadedPersistenceLayer(Failing())

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        asyncio.run(store.claim(OFFER))
    assert str(raised.value).startswith("Failed to save in progress record to idempotency store - (reset). ")
    assert raised.value.__cause__ is trouble


TX = Transaction(idempotency_key="fn#1", own_table="t", own_key={"id": {"S": "fn#1"}}, region="")


class Committing(Recording):
    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        self.note("_begin_transaction", idempotency_key=idempotency_key)
        return TX

    def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        self.note("_commit_record", data_record=data_record, transaction=transaction)


@pytest.mark.parametrize("record", [DONE, None])
def test_a_transaction_is_committed_in_a_worker_thread_in_the_callers_context(record: DataRecord | None) -> None:
    wrapped = Committing()
    store = ThreadedPersistenceLayer(wrapped)

    async def story() -> None:
        caller.set("story")
        await store.commit(record, TX)

    asyncio.run(story())

    assert wrapped.seen == [("_commit_record", {"data_record": record, "transaction": TX})]
    assert all(name.startswith("idempotency-store") for name in wrapped.threads)
    assert wrapped.callers == {"story"}


def test_a_transaction_is_begun_where_it_is_asked_for_because_nothing_is_sent() -> None:
    wrapped = Committing()

    assert ThreadedPersistenceLayer(wrapped).begin("fn#1") is TX
    assert wrapped.seen == [("_begin_transaction", {"idempotency_key": "fn#1"})]
    assert wrapped.threads == {threading.current_thread().name}


def test_a_wrapped_store_without_transactions_says_so_under_its_own_name() -> None:
    store = ThreadedPersistenceLayer(InMemoryPersistenceLayer())

    with pytest.raises(IdempotencyPersistenceConfigError, match="^InMemoryPersistenceLayer has no transactions; "):
        store.begin("fn#1")


@pytest.mark.parametrize(
    "answer", [IdempotencyTransactionCanceledError("canceled"), IdempotencyLeaseLostError("lost", record=OFFER)], ids=repr
)
def test_a_commits_answer_comes_out_of_the_thread_as_it_is(answer: Exception) -> None:
    class Answering(Recording):
        def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
            raise answer

    committing = ThreadedPersistenceLayer(Answering()).commit(DONE, TX)

    with pytest.raises(type(answer)) as raised:
        asyncio.run(committing)
    assert raised.value is answer


@pytest.mark.parametrize("supports_leases", [True, False])
def test_it_has_the_abilities_and_the_clock_of_the_wrapped_store(supports_leases: bool, clock: FakeClock) -> None:
    wrapped = Recording()
    wrapped.supports_leases = supports_leases
    wrapped.clock_ms = clock

    store = ThreadedPersistenceLayer(wrapped)
    clock.advance(ms=5)

    assert store.supports_leases is supports_leases
    assert store.clock_ms() == START_MS + 5
    assert store.store is wrapped


def test_a_hook_that_has_begun_is_finished_although_its_caller_was_cancelled() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(Recording):
        def _update_record(self, data_record: DataRecord) -> None:
            begun.set()
            may_end.wait(timeout=10)
            ended.set()

    store = ThreadedPersistenceLayer(Slow())

    async def story() -> None:
        completing = asyncio.ensure_future(store.complete(DONE))
        await asyncio.to_thread(begun.wait, 10)
        completing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await completing
        may_end.set()

    asyncio.run(story())

    assert ended.wait(timeout=10)


def test_a_hook_whose_caller_was_cancelled_before_a_thread_was_free_is_not_run() -> None:
    all_busy, may_end = threading.Barrier(CALL_WORKERS + 1), threading.Event()

    class Slow(Recording):
        def _update_record(self, data_record: DataRecord) -> None:
            all_busy.wait(timeout=10)
            may_end.wait(timeout=10)

    wrapped = Slow()
    store = ThreadedPersistenceLayer(wrapped)

    async def story() -> None:
        busy = [asyncio.ensure_future(store.complete(DONE)) for _ in range(CALL_WORKERS)]
        await asyncio.to_thread(all_busy.wait, 10)
        fetching = asyncio.ensure_future(store.fetch("fn#1"))
        await asyncio.sleep(0)  # it begins, and waits for a thread
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        may_end.set()
        await asyncio.gather(*busy)
        await store.release(OFFER)

    asyncio.run(story())

    assert wrapped.seen == [("_delete_record", {"data_record": OFFER})]


def test_a_hook_that_raises_stop_iteration_has_failed_and_leaves_nobody_waiting() -> None:
    class Exhausted(Recording):
        def _put_record(self, data_record: DataRecord) -> None:
            next(iter([]))

    claiming = ThreadedPersistenceLayer(Exhausted()).claim(OFFER)

    with pytest.raises(IdempotencyPersistenceLayerError, match="a store raised StopIteration"):
        asyncio.run(asyncio.wait_for(claiming, timeout=10))


def test_an_error_goes_with_its_last_user_and_needs_no_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfTheStoreError(Exception):
        pass

    class Failing(Recording):
        def _get_record(self, idempotency_key: str) -> DataRecord:
            raise OfTheStoreError

    worker = ThreadPoolExecutor(1)
    monkeypatch.setattr(threaded, "call_workers", lambda _store: worker)

    async def story() -> weakref.ref[BaseException]:
        try:  # `pytest.raises` would keep it
            await ThreadedPersistenceLayer(Failing())._get_record(idempotency_key="fn#1")
        except OfTheStoreError as error:
            return weakref.ref(error)
        pytest.fail("nothing was raised")

    gc.disable()
    try:
        error = asyncio.run(story())
        worker.shutdown()
        assert error() is None
    finally:
        gc.enable()


def _put_elsewhere(answers: _Answers, futures: list[asyncio.Future[int]]) -> None:
    """Answer from another thread, with each future's number, while this one does nothing else."""
    thread = threading.Thread(target=lambda: [answers.put(future, number, None) for number, future in enumerate(futures)])
    thread.start()
    thread.join(timeout=10)


def test_answers_that_come_while_the_loop_is_busy_wake_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[object] = []

    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(3)]
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: woken.append(call) or wake(*call))

        _put_elsewhere(_Answers(loop), futures)

        return await asyncio.wait_for(asyncio.gather(*futures), timeout=10)

    assert asyncio.run(story()) == [0, 1, 2]
    assert len(woken) == 1


def test_a_loop_is_woken_again_for_what_comes_after_it_has_looked() -> None:
    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        answers, results = _Answers(loop), []
        for _ in range(2):
            future = loop.create_future()
            _put_elsewhere(answers, [future])
            results.append(await asyncio.wait_for(future, timeout=10))
        return results

    assert asyncio.run(story()) == [0, 0]


def test_a_signal_amid_the_answers_loses_none_of_them() -> None:
    class Interrupted(asyncio.Future[int]):
        signals = 1

        def set_result(self, result: int) -> None:
            if self.signals:
                self.signals = 0
                raise KeyboardInterrupt
            super().set_result(result)

    loop = asyncio.new_event_loop()
    futures = [loop.create_future(), Interrupted(loop=loop), loop.create_future()]
    _put_elsewhere(_Answers(loop), futures)

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(futures[2])
    last = loop.run_until_complete(asyncio.wait_for(futures[2], timeout=10))
    loop.close()

    assert [future.result() for future in futures] == [0, 1, last] == [0, 1, 2]


def test_an_answer_that_comes_after_its_caller_was_cancelled_keeps_nobody_elses_back() -> None:
    async def story() -> int:
        loop = asyncio.get_running_loop()
        cancelled, future = loop.create_future(), loop.create_future()
        cancelled.cancel()
        _put_elsewhere(_Answers(loop), [cancelled, future])
        return await asyncio.wait_for(future, timeout=10)

    assert asyncio.run(story()) == 1


def test_an_answer_that_a_loop_left_behind_does_not_concern_the_next_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
    monkeypatch.setattr(threaded, "call_workers", lambda _store: workers[-1])
    may_end = threading.Event()

    class Slow(Recording):
        def _update_record(self, data_record: DataRecord) -> None:
            may_end.wait(timeout=10)

    store = ThreadedPersistenceLayer(Slow())
    left = asyncio.new_event_loop()

    completing = left.create_task(store.complete(DONE))
    left.run_until_complete(asyncio.sleep(0))  # it begins, and the loop does not run again
    may_end.set()
    workers.pop().shutdown()
    asyncio.run(asyncio.wait_for(store.complete(DONE), timeout=10))
    left.run_until_complete(completing)
    left.close()
    workers.pop().shutdown()

    assert completing.exception() is None


def test_an_answer_for_a_loop_that_is_closed_is_nobodys() -> None:
    loop = asyncio.new_event_loop()
    future, answers = loop.create_future(), _Answers(loop)
    loop.close()

    answers.put(future, 1, None)

    assert not future.done()


@pytest.mark.parametrize("trouble", [None, ConnectionError("reset")], ids=["well", "badly"])
def test_a_release_in_the_background_tells_nobody_how_it_went(trouble: Exception | None, clock: FakeClock) -> None:
    """For a caller that can no longer wait, not even for a loop."""
    released = threading.Event()

    class Deleting(InMemoryPersistenceLayer):
        def _delete_record(self, data_record: DataRecord) -> None:
            try:
                if trouble is not None:
                    raise trouble
                super()._delete_record(data_record)
            finally:
                released.set()

    wrapped = Deleting(clock_ms=clock)
    store = ThreadedPersistenceLayer(wrapped)

    async def story() -> None:
        store.release_unawaited(await store.claim(OFFER), asyncio.get_running_loop())

    asyncio.run(story())

    assert released.wait(timeout=10)
    assert (wrapped.fetch("fn#1") is None) is (trouble is None)


def test_a_release_in_the_background_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may ask for it while this very thread starts one."""

    def unstartable(*_: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    store = ThreadedPersistenceLayer(Recording())
    monkeypatch.setattr(background, "_new_thread", unstartable)

    async def story() -> None:
        store.release_unawaited(OFFER, asyncio.get_running_loop())

    asyncio.run(story())

    assert background.call_workers(store.store).is_idle


def test_store_calls_do_not_wait_for_the_users_own_blocking_calls() -> None:
    """The loop's default executor has a handful of workers, and they are the user's."""
    wrapped = Recording()
    store = ThreadedPersistenceLayer(wrapped)
    release = threading.Event()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        blocking = [loop.run_in_executor(None, release.wait, 10) for _ in range(64)]
        await store.complete(DONE)
        release.set()
        await asyncio.gather(*blocking)

    asyncio.run(story())

    assert wrapped.seen == [("_update_record", {"data_record": DONE})]


def test_as_many_store_calls_run_at_once_as_there_are_workers() -> None:
    barrier = threading.Barrier(CALL_WORKERS)

    class Meeting(Recording):
        def _update_record(self, data_record: DataRecord) -> None:
            barrier.wait(timeout=10)

    store = ThreadedPersistenceLayer(Meeting())

    async def story() -> None:
        await asyncio.gather(*[store.complete(DONE) for _ in range(CALL_WORKERS)])

    asyncio.run(story())

    assert not barrier.broken


def test_a_wait_takes_the_event_loops_time_and_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(BasePersistenceLayer, "sleep_ms", staticmethod(slept.append))

    asyncio.run(ThreadedPersistenceLayer(InMemoryPersistenceLayer()).sleep_ms(0))

    assert slept == []


def test_a_wait_that_the_store_was_given_is_used_in_a_thread_of_its_own() -> None:
    store, slept = InMemoryPersistenceLayer(), []
    store.sleep_ms = lambda ms: slept.append((ms, threading.current_thread() is threading.main_thread()))

    asyncio.run(ThreadedPersistenceLayer(store).sleep_ms(7))

    assert slept == [(7, False)]


def test_a_forked_child_has_threads_of_its_own() -> None:
    """In a process of its own, because forking one that has threads is what is tested."""
    story = """
import asyncio, os, warnings
from persistence.datarecord import DataRecord
from persistence.memory import InMemoryPersistenceLayer
from persistence.threaded import ThreadedPersistenceLayer

store = ThreadedPersistenceLayer(InMemoryPersistenceLayer())
asyncio.run(store.claim(DataRecord("parent", "INPROGRESS", generation=1)))
warnings.simplefilter("ignore")  # of forking with threads
child = os.fork()
if child == 0:
    asyncio.run(asyncio.wait_for(store.claim(DataRecord("child", "INPROGRESS", generation=1)), 10))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", story], env=environment, capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
