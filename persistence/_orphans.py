"""Why an orphan's key was not freed, in words.  Imported lazily: few processes ever release an orphan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistence.exceptions import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyInvalidStatusError,
    IdempotencyItemNotFoundError,
    IdempotencyLeaseLostError,
)
from persistence.rules import is_held_by, is_in_progress

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord

UNCHANGED = "The record was not changed."


def lease_end(record: DataRecord) -> str:
    """When the record's attempt ends at the latest, in ISO 8601; a record without a lease ends with its expiry."""
    end_ms, expiry = record.in_progress_expiry_timestamp, record.expiry_timestamp
    if end_ms is None and expiry is None:
        return "never"
    seconds = expiry or 0 if end_ms is None else end_ms / 1000
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):  # another writer's number, beyond the year 9999
        return f"{seconds} seconds of the epoch"


def not_released(orphan: DataRecord, existing: DataRecord | None) -> BaseError:
    """The error of a `release_orphan` that was refused because of *existing*; None if there is no record."""
    key = orphan.key
    if existing is None:
        return IdempotencyItemNotFoundError(f"There is no record of idempotency key {key}: the key is free").about(key, "")
    if not is_in_progress(existing):
        return IdempotencyInvalidStatusError(
            f"The record of idempotency key {key} is not an orphan: its status is {existing.stored_status}"
        ).about(key, UNCHANGED)
    if not is_held_by(existing, orphan.owner_token):
        lost = IdempotencyLeaseLostError(f"Another attempt holds idempotency key {key}", record=existing)
        lost.function_ran = None
        return lost.about(
            key, f"{UNCHANGED} owner_token names an attempt that does not hold the key any more.", is_retryable=False
        )
    held = IdempotencyAlreadyInProgressError(
        f"The lease of the attempt at idempotency key {key} lasts until {lease_end(existing)}", record=existing
    )
    held.function_ran = None
    return held.about(key, f"{UNCHANGED} Retry after that time, or pass even_if_leased=True if the attempt has certainly ended.")
