"""The in-memory store: `rules`, executed literally under a lock.  The reference that every other store is compared with.

For tests, local runs and single-process workers.  It promises nothing across processes.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

from persistence.base import BasePersistenceLayer, fenced
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceLayerError,
)
from persistence.rules import is_claimable, is_in_progress, is_waste, may_complete, may_release, may_release_orphan

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence.datarecord import DataRecord

#: Expired records are swept when the store has doubled since the last sweep, so a claim costs amortised constant time.
FIRST_SWEEP: Final = 1024


class InMemoryPersistenceLayer(BasePersistenceLayer):
    """Keeps records in this process, at most *max_records* of them.

    Expired records are dropped when room is needed, as a table's TTL would.  Any other is never dropped: when *max_records* are
    held, a further claim fails with `IdempotencyPersistenceLayerError`, before its function runs.

    Args:
        max_records: The most records held at once.
        clock_ms: The present in epoch milliseconds; the wall clock if left out.
    """

    supports_leases = True

    def __init__(self, *, max_records: int = 100_000, clock_ms: Callable[[], int] | None = None) -> None:
        if max_records < 1:
            raise ValueError(f"max_records must be at least 1, not {max_records}")
        super().__init__()
        self.max_records = max_records
        if clock_ms is not None:
            self.clock_ms = clock_ms
        self._records: dict[str, DataRecord] = {}
        self._lock = Lock()
        self._sweep_at = min(FIRST_SWEEP, max_records)

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        offer, key = data_record, data_record.key
        with self._lock:
            now_ms = self.clock_ms()
            existing = self._records.get(key)
            if existing is not None and not is_claimable(existing, now_ms, takes_over_orphans=offer.takes_over_orphans):
                raise IdempotencyItemAlreadyExistsError(old_data_record=existing)
            if existing is None:
                self._make_room(now_ms)
                granted = offer
            else:
                granted = offer.replace(generation=existing.generation + 1, took_over=is_in_progress(existing))
            self._records[key] = granted.stored()
            return granted

    def _get_record(self, idempotency_key: str) -> DataRecord:
        with self._lock:
            try:
                return self._records[idempotency_key]
            except KeyError:
                raise IdempotencyItemNotFoundError from None

    def _update_record(self, data_record: DataRecord) -> None:
        record, key = data_record, data_record.key
        with self._lock:
            existing = self._records.get(key)
            if is_in_progress(record):  # a renewal
                if existing is None or not may_release(existing, record.owner_token):
                    raise fenced(record, existing)
                if (existing.in_progress_expiry_timestamp or 0) > (record.in_progress_expiry_timestamp or 0):
                    return  # renewed since by a later request
                self._records[key] = existing.replace(
                    in_progress_expiry_timestamp=record.in_progress_expiry_timestamp, expiry_timestamp=record.expiry_timestamp
                )
                return
            if not may_complete(existing, record.owner_token):
                raise fenced(record, existing)
            kept = "" if existing is None else existing.payload_hash
            self._records[key] = record.stored().replace(payload_hash=record.payload_hash or kept)

    def _delete_record(self, data_record: DataRecord) -> bool:
        return self._delete_orphan(data_record, None)

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        with self._lock:
            existing = self._records.get(data_record.key)
            if existing is None:
                return False
            if not may_release_orphan(existing, data_record.owner_token, now_ms):
                raise fenced(data_record, existing)
            del self._records[data_record.key]
            return True

    def _make_room(self, now_ms: int) -> None:
        """Drop what has expired; refuse the claim if nothing has.  Called with the lock held."""
        if len(self._records) < self._sweep_at:
            return
        self._records = {key: record for key, record in self._records.items() if not is_waste(record, now_ms)}
        self._sweep_at = min(self.max_records, max(FIRST_SWEEP, 2 * len(self._records)))
        if len(self._records) >= self.max_records:
            raise IdempotencyPersistenceLayerError(
                f"The in-memory store is full: {self.max_records} records. Raise max_records or shorten expires_after_seconds"
            )
