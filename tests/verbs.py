"""A store's verbs as plain functions, whether the store is awaited or not, so that each promise is tested by one body."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, Any, TypeVar

from idempotency import AsyncCachePersistenceLayer
from persistence.datarecord import DataRecord, Status
from persistence.exceptions import BaseError
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from doubles import FakeClock

    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer

T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | BaseError]:
    """Make all calls at the same moment, each in a thread of its own; what each returned or raised."""
    barrier = Barrier(len(calls))

    def make(call: Callable[[], T]) -> T | BaseError:
        barrier.wait()
        try:
            return call()
        except BaseError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


class Verbs:
    """The verbs of a sync store, and the records that tests hand to them."""

    def __init__(self, store: BasePersistenceLayer, clock: FakeClock) -> None:
        self._store = store
        self._clock = clock

    def close(self) -> None:
        """Nothing was opened here."""

    def claim(self, offer: DataRecord) -> DataRecord:
        return self._store.claim(offer)

    def fetch(self, key: str) -> DataRecord | None:
        return self._store.fetch(key)

    def complete(self, record: DataRecord) -> None:
        self._store.complete(record)

    def release(self, record: DataRecord) -> bool:
        return self._store.release(record)

    def release_orphan(self, key: str, **options: Any) -> None:
        self._store.release_orphan(key, **options)

    def renew(self, record: DataRecord) -> None:
        self._store.renew(record)

    def load(self, record: DataRecord) -> DataRecord:
        return self._store.load(record)

    def claim_at_once(self, offers: Sequence[DataRecord]) -> list[DataRecord | BaseError]:
        """All offers at the same moment; what each was answered."""
        return at_once([partial(self.claim, offer) for offer in offers])

    def offer(
        self, key: str, owner_token: str, *, lease_ms: int | None = 1_000, expires_s: int = 60, **fields: Any
    ) -> DataRecord:
        """A claim by the clock of now; its fields as `DataRecord` names them."""
        lease_end_ms = None if lease_ms is None else self._clock.now_ms + lease_ms
        expiry_s = self._clock.now_ms // 1000 + expires_s
        fields = {"generation": 1, **fields}
        return DataRecord(key, Status.INPROGRESS.value, expiry_s, lease_end_ms, owner_token=owner_token, **fields)

    def superseding(self, seen: DataRecord, offer: DataRecord) -> DataRecord:
        """The offer of an attempt that has seen this record to be claimable."""
        took_over = seen.stored_status == Status.INPROGRESS
        return offer.replace(generation=seen.generation + 1, supersedes=seen.generation, took_over=took_over)

    def completed(self, granted: DataRecord, data: str, *, expires_s: int = 60) -> DataRecord:
        """The granted record with a result, by the clock of now."""
        expiry_s = self._clock.now_ms // 1000 + expires_s
        return granted.replace(status=Status.COMPLETED.value, expiry_timestamp=expiry_s, response_data=data)

    def without_result(self, granted: DataRecord, *, expires_s: int = 60) -> DataRecord:
        """The granted record, executed, its result not kept."""
        return self.completed(granted, "", expires_s=expires_s).replace(result_kept=False)

    def renewed(self, granted: DataRecord, *, lease_ms: int, expires_s: int = 60) -> DataRecord:
        """The granted record with a lease counted from now."""
        now_ms = self._clock.now_ms
        return granted.replace(in_progress_expiry_timestamp=now_ms + lease_ms, expiry_timestamp=now_ms // 1000 + expires_s)


class AwaitedVerbs(Verbs):
    """The same of a store that is awaited: the backend's own, or the sync one behind `ThreadedPersistenceLayer`."""

    def __init__(self, store: BasePersistenceLayer, clock: FakeClock, awaited: AsyncBasePersistenceLayer | None = None) -> None:
        super().__init__(store, clock)
        self._awaited = awaited or ThreadedPersistenceLayer(store)
        # One loop for all calls, because the connections of an async client belong to theirs.
        self._runner = asyncio.Runner()

    def close(self) -> None:
        if isinstance(self._awaited, AsyncCachePersistenceLayer):
            self._runner.run(self._awaited.aclose())
        self._runner.close()

    def claim(self, offer: DataRecord) -> DataRecord:
        return self._runner.run(self._awaited.claim(offer))

    def fetch(self, key: str) -> DataRecord | None:
        return self._runner.run(self._awaited.fetch(key))

    def complete(self, record: DataRecord) -> None:
        self._runner.run(self._awaited.complete(record))

    def release(self, record: DataRecord) -> bool:
        return self._runner.run(self._awaited.release(record))

    def release_orphan(self, key: str, **options: Any) -> None:
        self._runner.run(self._awaited.release_orphan(key, **options))

    def renew(self, record: DataRecord) -> None:
        self._runner.run(self._awaited.renew(record))

    def load(self, record: DataRecord) -> DataRecord:
        return self._runner.run(self._awaited.load(record))

    def claim_at_once(self, offers: Sequence[DataRecord]) -> list[DataRecord | BaseError]:
        return self._runner.run(self._gathered([self._awaited.claim(offer) for offer in offers]))

    @staticmethod
    async def _gathered(claiming: Sequence[Coroutine[Any, Any, DataRecord]]) -> list[DataRecord | BaseError]:
        answers = await asyncio.gather(*claiming, return_exceptions=True)
        for answer in answers:
            if not isinstance(answer, DataRecord | BaseError):
                raise answer
        return answers  # type: ignore[return-value]  # checked above
