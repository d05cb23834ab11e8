"""Completed records remembered in this process: the least recently used are forgotten first.

Never a record in progress: another process may finish it unseen.  A hit is judged like any refusal by the store, so there is
one path of decision; an expired hit is therefore no hit.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord


class LocalCache:
    """At most *max_items* records, for any number of threads."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._records: OrderedDict[str, DataRecord] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> DataRecord | None:
        """The record of the key, which thereby becomes the most recently used."""
        with self._lock:
            record = self._records.get(key)
            if record is not None:
                self._records.move_to_end(key)
            return record

    def put(self, key: str, record: DataRecord) -> None:
        """Remember a completed record."""
        with self._lock:
            self._records[key] = record
            self._records.move_to_end(key)
            if len(self._records) > self._max_items:
                self._records.popitem(last=False)
