"""Any sync store, awaited: each hook runs in a worker thread.  This is how boto3 serves async callers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import ref

from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from persistence.base import Refusal
    from persistence.datarecord import DataRecord
    from persistence.transaction import Transaction

P = ParamSpec("P")
T = TypeVar("T")

#: Store calls under way at once.  Fewer than the connections of a client made by this library, so that none waits for one.
WORKERS: Final = 40


@cache
def _workers() -> ThreadPoolExecutor:
    """The process's own pool: the event loop's default one may be full of the user's blocking calls."""
    return ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="idempotency-store")


# A forked child has the pool but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_workers.cache_clear)


class ThreadedPersistenceLayer(AsyncBasePersistenceLayer):
    """Wraps a sync store.  A cancelled caller does not stop a hook that has begun: its thread finishes it."""

    def __init__(self, store: BasePersistenceLayer) -> None:
        self.store = store
        self.supports_leases = store.supports_leases

    def clock_ms(self) -> int:
        """The wrapped store's clock."""
        return self.store.clock_ms()

    async def sleep_ms(self, ms: float) -> None:
        """Wait, without a thread; in one where the wrapped store's `sleep_ms` was replaced."""
        if self.store.sleep_ms is BasePersistenceLayer.sleep_ms:
            await super().sleep_ms(ms)
        else:
            await _in_thread(self.store.sleep_ms, ms)

    def release_in_background(self, record: DataRecord) -> None:
        """Release the record without telling how that went, for a caller that can no longer wait."""
        _workers().submit(self.store.release, record)

    async def _offer_record(self, offer: DataRecord) -> DataRecord | Refusal | None:
        return await _in_thread(partial(self.store._offer_record, offer))

    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        return await _in_thread(self.store._put_record, data_record=data_record)

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return await _in_thread(self.store._get_record, idempotency_key=idempotency_key)

    async def _update_record(self, data_record: DataRecord) -> None:
        await _in_thread(self.store._update_record, data_record=data_record)

    async def _delete_record(self, data_record: DataRecord) -> bool | None:
        return await _in_thread(self.store._delete_record, data_record=data_record)

    async def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        return await _in_thread(self.store._delete_orphan, data_record=data_record, now_ms=now_ms)

    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        return self.store._begin_transaction(idempotency_key)

    async def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        await _in_thread(self.store._commit_record, data_record=data_record, transaction=transaction)

    async def _load_result(self, data_record: DataRecord) -> str:
        return await _in_thread(self.store._load_result, data_record=data_record)

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:
        return self.store._diagnose(error, idempotency_key)


class _Answers:
    """What worker threads have found out for one event loop, which is woken once for all that has come meanwhile.

    Waking a loop takes a system call and as long as a thread's whole part in a hop, and when many calls are under way, answers
    come together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = ref(loop)
        self._came: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_woken = False

    def put(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """From any thread: have the loop settle the future, unless its caller has been cancelled or the loop has been closed."""
        self._came.append((future, value, error))
        # Asked after the answer was left, as `_take` looks for answers after it has said that it will: none stays behind.
        if not self._is_woken:
            self._wake(future.get_loop())

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_woken = True
        try:
            loop.call_soon_threadsafe(self._take, loop)
        except RuntimeError:  # it is closed, and nobody waits any more
            self._came.clear()

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_woken = False
        try:
            while self._came:
                future, value, error = self._came[0]
                if not future.done():
                    _settle(future, value, error)
                self._came.popleft()
        finally:
            if self._came:  # a signal's handler has raised; the loop may still run once more, to end what is under way
                self._wake(loop)


class _Mine(threading.local):
    #: Of the loop that ran last in this thread.
    answers: _Answers | None = None


_mine = _Mine()


def _answers_for(loop: asyncio.AbstractEventLoop) -> _Answers:
    answers = _mine.answers
    if answers is None or answers.loop() is not loop:
        answers = _mine.answers = _Answers(loop)
    return answers


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # which a future refuses, because it would end the coroutine that awaits it
        future.set_exception(RuntimeError("a store raised StopIteration"))
    else:
        future.set_exception(error)


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call *function* in a worker thread, in a copy of the caller's context; not at all if the caller is cancelled before."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    _workers().submit(_work, [future], _answers_for(loop), copy_context(), partial(function, *args, **kwargs))
    try:
        return await future
    finally:
        del future  # its error refers to this frame


def _work(waiting: list[asyncio.Future[T]], answers: _Answers, context: Context, call: Callable[[], T]) -> None:
    """Call, and answer who is waiting.

    An error refers to this frame and its callers', so none of them may keep the future, which refers to the error: without that
    circle, an error and the answer in it go when their last user does.
    """
    future = waiting.pop()
    if not future.cancelled():
        answers.put(future, *_outcome(context, call))
    del future


def _outcome(context: Context, call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What the call returned, and what it raised."""
    try:
        return context.run(call), None
    except BaseException as error:  # noqa: BLE001 - raised again where the call is awaited
        return None, error
