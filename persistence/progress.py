"""How far bulk work has come: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far bulk work has come, in records unless said otherwise.  All counts are of this run, also if it was resumed.

    Attributes:
        scanned: Items that DynamoDB read.
        written: Records deleted or copied.
        unchanged: Records that were deleted already, or that the target had as they are.
        kept: Expired records that came alive before they were deleted, or keys of which the target has another record.
        skipped: Expired records that were not copied, or not deleted because of their lease.
        foreign: Items that are no idempotency records under the attribute names of their store.
        read_units: Capacity units consumed by reading, as DynamoDB reported them.
        write_units: The same of writing.  Refused writes consume units, too, but DynamoDB does not report them.
        done: Whether the whole table is through.
        checkpoint: Where to go on: pass it as `resume_from`.  JSON-serialisable; contains idempotency keys.
    """

    scanned: int = 0
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    skipped: int = 0
    foreign: int = 0
    read_units: float = 0.0
    write_units: float = 0.0
    done: bool = False
    checkpoint: dict[str, Any] = field(default_factory=dict)
