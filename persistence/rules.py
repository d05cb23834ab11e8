"""What a stored record permits at an instant: the only definition, which each store translates and one suite checks.

Pure functions of a record and a time in epoch milliseconds.  Every comparison is strict: at the very millisecond (second) at
which a lease (a record) ends, it still holds.

Two machines' clocks are compared here: the end that one wrote with the present of another.  The margin for their difference is
in the lease that is written (`IdempotencyConfig.lease_margin_seconds`), never in these comparisons.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from persistence.datarecord import COMPLETED, INPROGRESS

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord


def is_in_progress(record: DataRecord) -> bool:
    """Whether the record was written by a claim and not yet completed."""
    return record.stored_status == INPROGRESS


def is_completed(record: DataRecord) -> bool:
    """Whether the function ran to its end, its result kept or not."""
    return record.stored_status == COMPLETED


def is_expired(record: DataRecord, now_ms: int) -> bool:
    """Whether the record's end, in whole seconds, has passed.  A record without an end never expires."""
    return record.expiry_timestamp is not None and record.expiry_timestamp < now_ms // 1000


def is_orphaned(record: DataRecord, now_ms: int) -> bool:
    """Whether the record is INPROGRESS although its attempt can no longer be at work.

    The lease's end decides alone where there is one: a live lease is never broken, whatever the record's expiry says.  A record
    without a lease's end (another library's) is an orphan when the record has expired.
    """
    if not is_in_progress(record):
        return False
    lease_end_ms = record.in_progress_expiry_timestamp
    return is_expired(record, now_ms) if lease_end_ms is None else lease_end_ms < now_ms


def is_too_old(fresh_until_ms: int | None, now_ms: int) -> bool:
    """Whether the request is so old that its result may have expired: without a record, nobody knows if it ran before."""
    return fresh_until_ms is not None and fresh_until_ms < now_ms


def is_claimable(
    record: DataRecord | None, now_ms: int, *, takes_over_orphans: bool = True, fresh_until_ms: int | None = None
) -> bool:
    """Whether a new attempt may have the key: no record, an expired one, or, where orphans may be taken over, an orphan.

    A request that is too old may only have an orphan's key, because only an orphan proves that the request never completed.
    """
    if record is None:
        return not is_too_old(fresh_until_ms, now_ms)
    if is_in_progress(record):
        return takes_over_orphans and is_orphaned(record, now_ms)
    return is_expired(record, now_ms) and not is_too_old(fresh_until_ms, now_ms)


def is_waste(record: DataRecord, now_ms: int) -> bool:
    """Whether nobody can miss the record: expired, and not kept alive by a lease."""
    return is_expired(record, now_ms) and is_claimable(record, now_ms)


def waste_from_ms(record: DataRecord) -> float:
    """Since when, in epoch milliseconds, `is_waste` is true of the record; infinity for a record that never expires."""
    if record.expiry_timestamp is None:
        return inf
    expired_ms = (record.expiry_timestamp + 1) * 1000
    lease_end_ms = record.in_progress_expiry_timestamp if is_in_progress(record) else None
    return expired_ms if lease_end_ms is None else max(expired_ms, lease_end_ms + 1)


def is_held_by(record: DataRecord, owner_token: str) -> bool:
    """Whether the attempt with this token owns the record, be it in progress or completed."""
    return record.owner_token == owner_token


def may_complete(record: DataRecord | None, owner_token: str) -> bool:
    """Whether the attempt may write its result: the record is its own (a repetition included), or gone."""
    return record is None or is_held_by(record, owner_token)


def may_release(record: DataRecord, owner_token: str) -> bool:
    """Whether the attempt may delete the record: its own and unfinished, so a completion whose answer was lost survives."""
    return is_held_by(record, owner_token) and is_in_progress(record)


def may_release_orphan(record: DataRecord, owner_token: str, now_ms: int | None) -> bool:
    """Whether an operator may free the key of the attempt with this token.  *now_ms* is None if its lease may still be live."""
    return may_release(record, owner_token) and (now_ms is None or is_orphaned(record, now_ms))
