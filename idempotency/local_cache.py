"""Completed records remembered in this process: the least recently used are forgotten first.

Never a record in progress: another process may finish it unseen.  A hit is judged like any refusal by the store, so there is
one path of decision; an expired hit is therefore no hit.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord


class LocalCache:
    """At most *max_items* records, for any number of threads.

    Without a lock, so a signal's handler or a forked child may use it at any moment: each change of the dictionary is atomic, and
    what happens between two of them forgets a record at worst.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._records: OrderedDict[str, DataRecord] = OrderedDict()

    def get(self, key: str) -> DataRecord | None:
        """The record of the key, which thereby becomes the most recently used."""
        record = self._records.get(key)
        if record is not None:
            self._mark_used(key)
        return record

    def put(self, key: str, record: DataRecord) -> None:
        """Remember a completed record."""
        self._records[key] = record
        self._mark_used(key)
        while len(self._records) > self._max_items:
            try:
                self._records.popitem(last=False)
            except KeyError:
                return

    def _mark_used(self, key: str) -> None:
        try:
            self._records.move_to_end(key)
        except KeyError:
            return  # forgotten meanwhile, to make room for another
