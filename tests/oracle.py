"""What must be true of idempotency records, worked out a second time: own arithmetic, own words, nothing imported.

The model asks it before each request what the answer has to be, and compares the stored record with it afterwards.  Times are the
first instants at which something is over: a lease that ends at millisecond e is over from e + 1, a record of second s from s + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Meaning(StrEnum):
    """What a refusing record means for the attempt that it refused."""

    OURS = "ours: run"
    FREE = "free: claim again"
    MISMATCH = "another payload"
    RESULT = "replay"
    LOST_RESULT = "executed, result not kept"
    ABANDONED = "orphan that nobody may take over"
    BUSY = "in progress"


@dataclass
class Entry:
    """One key's record, as it ought to be."""

    token: str
    generation: int
    lease_over_ms: int
    gone_ms: int
    payload_hash: str
    holder: str
    is_done: bool = False
    data: str | None = None

    def raw(self) -> dict[str, object]:
        """The stored attributes, but for the key and the lease's end, which a result has no use for."""
        attributes = {
            "status": "COMPLETED" if self.is_done else "INPROGRESS",
            "expiration": self.gone_ms // 1000 - 1,
            "in_progress_expiration": None if self.is_done else self.lease_over_ms - 1,
            "data": self.data,
            "validation": self.payload_hash or None,
            "owner_token": self.token,
            "generation": self.generation,
            "holder": self.holder or None,
            "result_not_kept": True if self.is_done and self.data is None else None,
        }
        return {name: value for name, value in attributes.items() if value is not None}


class Oracle:
    """The truth about all keys."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def is_free(self, key: str, now_ms: int, *, takes_over: bool) -> bool:
        entry = self.entries.get(key)
        if entry is None:
            return True
        if entry.is_done:
            return now_ms >= entry.gone_ms
        return takes_over and now_ms >= entry.lease_over_ms

    def meaning(self, key: str, now_ms: int, token: str, payload_hash: str, *, takes_over: bool) -> Meaning:
        entry = self.entries.get(key)
        if entry is not None and not entry.is_done and entry.token == token and (now_ms < entry.lease_over_ms or not takes_over):
            return Meaning.OURS
        if entry is None or self.is_free(key, now_ms, takes_over=takes_over):
            return Meaning.FREE
        if payload_hash and payload_hash != entry.payload_hash:
            return Meaning.MISMATCH
        if entry.is_done:
            return Meaning.LOST_RESULT if entry.data is None else Meaning.RESULT
        return Meaning.BUSY if now_ms < entry.lease_over_ms else Meaning.ABANDONED

    def may_complete(self, key: str, token: str) -> bool:
        entry = self.entries.get(key)
        return entry is None or entry.token == token

    def may_release(self, key: str, token: str) -> bool:
        entry = self.entries.get(key)
        return entry is None or (entry.token == token and not entry.is_done)

    def may_renew(self, key: str, token: str) -> bool:
        return key in self.entries and self.may_release(key, token)

    def renew(self, key: str, lease_over_ms: int, gone_ms: int) -> None:
        """The lease of the entry is over at this instant, unless it is over later."""
        entry = self.entries[key]
        if lease_over_ms >= entry.lease_over_ms:
            entry.lease_over_ms, entry.gone_ms = lease_over_ms, gone_ms

    def edges_ms(self) -> list[int]:
        """The first instants at which a lease or a record is over."""
        return [edge for entry in self.entries.values() for edge in (entry.lease_over_ms, entry.gone_ms)]
