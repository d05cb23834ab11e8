"""Any sync store, awaited: each request, or each hook, runs in a worker thread.  This is how boto3 serves async callers."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import ref

from persistence._driven import procedure_behind
from persistence._procedures import TooLateError, arun
from persistence.background import call_workers
from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from persistence._procedures import Request
    from persistence.base import Refusal
    from persistence.datarecord import DataRecord
    from persistence.transaction import Transaction

P = ParamSpec("P")
T = TypeVar("T")


class ThreadedPersistenceLayer(AsyncBasePersistenceLayer):
    """Wraps a sync store.  A cancelled caller does not stop a call that has begun: its thread finishes it.

    Where the store's hooks are made of requests and pauses, as DynamoDB's and the cache's are, only a request takes a worker, and
    one whose deadline passes before a worker is free is not sent.  A hook of the user's own keeps its worker to its end.
    """

    def __init__(self, store: BasePersistenceLayer) -> None:
        self.store = store
        self.supports_leases = store.supports_leases
        self.supports_fresh_until = store.supports_fresh_until

    def clock_ms(self) -> int:
        """The wrapped store's clock."""
        return self.store.clock_ms()

    async def sleep_ms(self, ms: float) -> None:
        """Wait, without a thread; in one where the wrapped store's `sleep_ms` was replaced."""
        if self.store.sleep_ms is BasePersistenceLayer.sleep_ms:
            await super().sleep_ms(ms)
        else:
            await self._in_thread(self.store.sleep_ms, ms)

    @property
    def renews_atomically(self) -> bool:  # type: ignore[override]  # it is the wrapped store's
        """As the wrapped store."""
        return self.store.renews_atomically

    def is_claim_unsent(self, error: Exception) -> bool:
        """As the wrapped store."""
        return super().is_claim_unsent(error) or self.store.is_claim_unsent(error)

    def release_unawaited(self, record: DataRecord, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ARG002
        """As `AsyncBasePersistenceLayer.release_unawaited`, by a worker thread: it needs no loop."""
        call_workers(self.store).submit_in_finalizer(partial(self.store.release, record))

    async def _offer_record(self, offer: DataRecord) -> DataRecord | Refusal | None:
        answer: DataRecord | Refusal | None = await self._done("_offer_record", offer)
        return answer

    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        return await self._in_thread(self.store._put_record, data_record=data_record)

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        record: DataRecord = await self._done("_get_record", idempotency_key=idempotency_key)
        return record

    async def _update_record(self, data_record: DataRecord) -> None:
        await self._done("_update_record", data_record=data_record)

    async def _delete_record(self, data_record: DataRecord) -> bool | None:
        was_there: bool | None = await self._done("_delete_record", data_record=data_record)
        return was_there

    async def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        was_there: bool = await self._done("_delete_orphan", data_record=data_record, now_ms=now_ms)
        return was_there

    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        return self.store._begin_transaction(idempotency_key)

    async def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        await self._done("_commit_record", data_record=data_record, transaction=transaction)

    async def _load_result(self, data_record: DataRecord) -> str:
        result: str = await self._done("_load_result", data_record=data_record)
        return result

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:
        return self.store._diagnose(error, idempotency_key)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* in a worker thread, in a copy of the caller's context; not at all if the caller is cancelled before.

        Raises:
            ThreadUnavailableError: there is no thread.  Nothing was called.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = partial(function, *args, **kwargs)
        call_workers(self.store).submit(partial(_work, [future], _answers_for(loop), copy_context(), call))
        try:
            return await future
        finally:
            del future  # its error refers to this frame

    async def _done(self, hook: str, *places: Any, **arguments: Any) -> Any:
        """What the hook answers.  It runs in a worker thread, or its requests do where it is made of such: pauses need none."""
        procedure = procedure_behind(self.store, hook)
        if procedure is None:
            return await self._in_thread(getattr(self.store, hook), *places, **arguments)
        return await arun(procedure(*places, *arguments.values()), partial(self._perform, self.clock_ms()), self.sleep_ms)

    async def _perform(self, begun_ms: int, request: Request) -> Any:
        return await self._in_thread(self._send_in_time, begun_ms, request)

    def _send_in_time(self, begun_ms: int, request: Request) -> Any:
        """In a worker thread: perform the request, unless its deadline has passed since the operation began.

        Raises:
            TooLateError: it has.
        """
        deadline_ms = request.deadline_ms
        if deadline_ms is not None and begun_ms <= deadline_ms < self.clock_ms():
            raise TooLateError("Nothing was sent: the deadline passed while the request waited for a worker thread")
        return request.call(*request.arguments)


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
