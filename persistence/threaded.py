"""Any sync store, awaited: each hook runs in a worker thread.  This is how boto3 serves async callers."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

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

    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        return await _in_thread(partial(self.store._put_record, data_record=data_record))

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return await _in_thread(partial(self.store._get_record, idempotency_key=idempotency_key))

    async def _update_record(self, data_record: DataRecord) -> None:
        await _in_thread(partial(self.store._update_record, data_record=data_record))

    async def _delete_record(self, data_record: DataRecord) -> None:
        await _in_thread(partial(self.store._delete_record, data_record=data_record))

    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        return self.store._begin_transaction(idempotency_key)

    async def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        await _in_thread(partial(self.store._commit_record, data_record=data_record, transaction=transaction))

    async def _load_result(self, data_record: DataRecord) -> str:
        return await _in_thread(partial(self.store._load_result, data_record=data_record))

    def _explain(self, error: Exception) -> str:
        return self.store._explain(error)


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call *function* in a worker thread, in a copy of the caller's context."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_workers(), call)
