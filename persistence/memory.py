"""The in-memory store: `rules`, executed literally.  The reference that every other store is compared with.

For tests, local runs and single-process workers.  It promises nothing across processes.

It has no lock, so nothing can stay locked: not while a signal's handler makes a call of its own, not after the handler raises,
not in a forked child.  A verb reads a record, decides, and writes only if the key still has the very record that it has read; if
not, it begins anew.  That last step is atomic, so the store is consistent between any two lines.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from persistence._checks import check_callable, check_whole_number
from persistence.base import BasePersistenceLayer, fenced
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceLayerError,
)
from persistence.rules import is_claimable, is_in_progress, is_waste, may_complete, may_release, may_release_orphan, waste_from_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence.datarecord import DataRecord

    #: A heap of (from when on the record may be dropped, its key).
    Ends: TypeAlias = list[tuple[float, str]]

#: From so many records on, a claim drops expired ones.  Smaller stores do not spend time on it.
FIRST_SWEEP: Final = 1024
#: How many expired records a claim drops while there is room: more than the one that it adds, so they become fewer.
DROPPED_PER_CLAIM: Final = 2


class InMemoryPersistenceLayer(BasePersistenceLayer):
    """Keeps records in this process, at most *max_records* of them.

    Expired records are dropped when room is needed, as a table's TTL would.  Any other is never dropped: when *max_records* are
    held, a further claim fails with `IdempotencyPersistenceLayerError`, before its function runs.  A claim does not search for
    expired records: it looks at those that expire first, so it is as fast in a full store.

    Args:
        max_records: The most records held at once.
        clock_ms: The present in epoch milliseconds; the wall clock if left out.

    Raises:
        TypeError: *max_records* is not a whole number, or *clock_ms* is not callable.
        ValueError: *max_records* is less than 1.
    """

    supports_leases = True
    renews_atomically = True
    supports_fresh_until = True

    def __init__(self, *, max_records: int = 100_000, clock_ms: Callable[[], int] | None = None) -> None:
        check_whole_number("max_records", max_records, 1)
        super().__init__()
        self.max_records = max_records
        if clock_ms is not None:
            check_callable("clock_ms", clock_ms)
            self.clock_ms = clock_ms
        self._records: dict[str, DataRecord] = {}
        self._sweep_at = min(FIRST_SWEEP, max_records)
        #: None before there are `_sweep_at` records.  A record's entry is never later than its end, but may be earlier, because
        #: an end that moves later is corrected only when its entry is due; entries of removed records stay until then.
        self._ends: Ends | None = None

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        offer, key, records = data_record, data_record.key, self._records
        while True:
            now_ms = self.clock_ms()
            existing = records.get(key)
            if not is_claimable(
                existing, now_ms, takes_over_orphans=offer.takes_over_orphans, fresh_until_ms=offer.fresh_until_ms
            ):
                raise IdempotencyItemAlreadyExistsError(old_data_record=existing)
            if existing is None:
                if len(records) >= self._sweep_at:
                    self._make_room(now_ms)
                stored = offer.stored()
                # One record too many, if another claim came at the same time, is removed; and claimed again if there is room.
                if self._write(key, None, stored) and (len(records) <= self.max_records or not _removed(records, key, stored)):
                    return offer
                continue
            granted = offer.replace(generation=existing.generation + 1, took_over=is_in_progress(existing))
            if self._write(key, existing, granted.stored()):
                return granted

    def _get_record(self, idempotency_key: str) -> DataRecord:
        try:
            return self._records[idempotency_key]
        except KeyError:
            raise IdempotencyItemNotFoundError from None

    def _update_record(self, data_record: DataRecord) -> None:
        key, changed = data_record.key, _renewed if is_in_progress(data_record) else _completed
        while True:
            existing = self._records.get(key)
            record = changed(existing, data_record)
            if record is existing or self._write(key, existing, record):
                return

    def _delete_record(self, data_record: DataRecord) -> bool:
        return self._delete_orphan(data_record, None)

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        key = data_record.key
        while True:
            existing = self._records.get(key)
            if existing is None:
                return False
            if not may_release_orphan(existing, data_record.owner_token, now_ms):
                raise fenced(data_record, existing)
            if _removed(self._records, key, existing):
                return True

    def _write(self, key: str, existing: DataRecord | None, record: DataRecord) -> bool:
        """Write the record if the key has *existing*.  Returns whether it was written."""
        ends = self._ends
        if ends is not None:  # first, because a record without an entry would never be dropped
            self._note_end(ends, key, existing, record)
        written = _added(self._records, key, record) if existing is None else _replaced(self._records, key, existing, record)
        if written and self._ends is not ends and self._ends is not None:  # begun anew meanwhile, perhaps without this record
            self._note_end(self._ends, key, None, record)
        return written

    def _note_end(self, ends: Ends, key: str, existing: DataRecord | None, record: DataRecord) -> None:
        if existing is None or waste_from_ms(record) < waste_from_ms(existing):
            heappush(ends, (waste_from_ms(record), key))
            if len(ends) > 2 * len(self._records) + FIRST_SWEEP:  # mostly of removed records: it is begun anew when needed
                self._ends = None

    def _make_room(self, now_ms: int) -> None:
        """Drop expired records: a few, or as many as needed if the store is full.

        Raises:
            IdempotencyPersistenceLayerError: it is full, and no record has expired.
        """
        ends = self._ends
        if ends is None:
            ends = self._collect_ends(now_ms)
        self._drop_expired(ends, now_ms)
        if len(self._records) >= self.max_records:
            if len(ends) < len(self._records):  # an exception has interrupted whoever held the missing entries
                self._drop_expired(self._collect_ends(now_ms), now_ms)
            if len(self._records) >= self.max_records:
                raise IdempotencyPersistenceLayerError(
                    f"The in-memory store is full: {self.max_records} records. Raise max_records or shorten expires_after_seconds"
                )

    def _collect_ends(self, now_ms: int) -> Ends:
        """Begin the heap anew, and drop all that has expired."""
        ends: Ends = []
        self._ends = ends  # before the records are listed: a record that is written from now on is noted by its writer
        for key, record in list(self._records.items()):
            if is_waste(record, now_ms):
                _removed(self._records, key, record)
            else:
                heappush(ends, (waste_from_ms(record), key))
        return ends

    def _drop_expired(self, ends: Ends, now_ms: int) -> None:
        looked_at = 0
        while looked_at < DROPPED_PER_CLAIM or len(self._records) >= self.max_records:
            key = _next_due(ends, now_ms)
            if key is None:
                return
            looked_at += 1
            record = self._records.get(key)
            if record is None:
                continue
            if not is_waste(record, now_ms):
                heappush(ends, (waste_from_ms(record), key))
            else:
                _removed(self._records, key, record)


def _renewed(existing: DataRecord | None, renewal: DataRecord) -> DataRecord:
    if existing is None or not may_release(existing, renewal.owner_token):
        raise fenced(renewal, existing)
    if (existing.in_progress_expiry_timestamp or 0) > (renewal.in_progress_expiry_timestamp or 0):
        return existing  # renewed since by a later request
    return existing.replace(
        in_progress_expiry_timestamp=renewal.in_progress_expiry_timestamp, expiry_timestamp=renewal.expiry_timestamp
    )


def _completed(existing: DataRecord | None, result: DataRecord) -> DataRecord:
    if not may_complete(existing, result.owner_token):
        raise fenced(result, existing)
    kept = "" if existing is None else existing.payload_hash
    return result.stored().replace(payload_hash=result.payload_hash or kept)


# Atomic changes of one key.  Python switches threads, and runs a signal's handler, only where a function is entered, when a call
# returns, and when a loop begins again: not between the comparison and the store, or the call, of one of these expressions.


def _added(records: dict[str, DataRecord], key: str, record: DataRecord) -> bool:
    """Add the record if the key has none."""
    return records.setdefault(key, record) is record


def _replaced(records: dict[str, DataRecord], key: str, existing: DataRecord, record: DataRecord) -> bool:
    """Put the record in the place of *existing*, if that is there."""
    try:
        records[key] = held = record if records[key] is existing else records[key]
    except KeyError:
        return False
    return held is record


def _removed(records: dict[str, DataRecord], key: str, existing: DataRecord) -> bool:
    """Remove *existing*, if it is there."""
    try:
        return (records.pop(key) if records[key] is existing else None) is existing
    except KeyError:
        return False


def _next_due(ends: Ends, now_ms: int) -> str | None:
    """Take the key out whose entry is due first; None if none is due."""
    try:
        return heappop(ends)[1] if ends[0][0] <= now_ms else None
    except IndexError:
        return None
