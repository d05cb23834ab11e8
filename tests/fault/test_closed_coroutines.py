"""A coroutine that is closed while it waits, as at the end of an event loop: it may not await any more, not even a release."""

from __future__ import annotations

import asyncio
from threading import Event
from typing import Any

import pytest
from faults import keyed

from idempotency import AsyncBasePersistenceLayer, DataRecord, InMemoryPersistenceLayer, current_attempt, idempotent_function

KEY = "job#c4ca4238a0b923820dcc509a6f75849b"


class Memory(InMemoryPersistenceLayer):
    """Tells when a record was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted = Event()

    def _delete_record(self, data_record: DataRecord) -> None:
        super()._delete_record(data_record)
        self.deleted.set()


class AsyncMemory(AsyncBasePersistenceLayer):
    """A store with an async client of its own."""

    supports_leases = True

    def __init__(self, records: Memory) -> None:
        self.records = records

    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        return self.records._put_record(data_record)

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return self.records._get_record(idempotency_key)

    async def _update_record(self, data_record: DataRecord) -> None:
        self.records._update_record(data_record)

    async def _delete_record(self, data_record: DataRecord) -> None:
        self.records._delete_record(data_record)


def close_while_it_runs(store: Memory | AsyncMemory) -> None:
    """Start a call, and close its coroutine, from another context, while its function waits."""
    loop = asyncio.new_event_loop()
    running, never = asyncio.Event(), asyncio.Event()

    @idempotent_function(data_keyword_argument="event", persistence_store=store, config=keyed(), key_prefix="job")
    async def work(event: Any) -> None:
        running.set()
        await never.wait()

    async def started() -> None:
        async with asyncio.timeout(10):
            await running.wait()

    try:
        task: Any = loop.create_task(work(event={"id": 1}))
        loop.run_until_complete(started())
        task._log_destroy_pending = False  # the loop is not told: the coroutine is simply gone
        task.get_coro().close()
    finally:
        loop.close()


def test_the_claim_is_given_up_in_the_background() -> None:
    store = Memory()

    close_while_it_runs(store)

    assert store.deleted.wait(10)
    assert store.fetch(KEY) is None


def test_the_claim_in_a_store_that_must_be_awaited_ends_with_its_lease() -> None:
    records = Memory()

    close_while_it_runs(AsyncMemory(records))

    held = records.fetch(KEY)
    assert held is not None
    assert held.stored_status == "INPROGRESS"


def test_the_closers_own_context_stays_as_it_was() -> None:
    close_while_it_runs(Memory())

    with pytest.raises(RuntimeError, match="outside a running idempotent call"):
        current_attempt()
