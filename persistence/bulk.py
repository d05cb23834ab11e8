"""Bulk work on DynamoDB tables: deleting expired records where no TTL does, and copying records to another table or layout.

A table is read in segments, each by a thread of its own, a page at a time.  A page is read after every write of the one before
it is through, and only then the checkpoint moves on: work that is resumed repeats a page per segment at most, and loses nothing.
What a record permits is asked of `rules`; because a record may change after it was read, every write to a table in use names what
was seen and is refused if that is no longer so.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from persistence._bulk_requests import (
    converted,
    deletion,
    expired,
    merged,
    put_unless_taken,
    reading,
    record_in,
)
from persistence._checks import check_callable, check_flag, check_mapping
from persistence._dynamodb_errors import is_lasting
from persistence._procedures import run
from persistence._retries import Retries, hides_tries, refusing_item, sending
from persistence._schedule import BASE_MS, CAP_MS
from persistence.dynamodb import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyBulkIncompleteError, IdempotencyPersistenceLayerError
from persistence.progress import BulkProgress
from persistence.rules import is_waste

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from persistence._bulk_requests import Position
    from persistence._dynamodb_items import Item, ItemFormat, Request
    from persistence.datarecord import DataRecord

Progress: TypeAlias = "Callable[[BulkProgress], object]"

DONE: Final = "done"
#: How long a request is repeated, and how long BatchWriteItem may leave everything undone: nobody waits for bulk work, but a
#: table that takes nothing for a minute needs its operator.
GIVE_UP_MS: Final = 60_000
#: The other limit, 16 MB as sent, is out of reach: a batch is part of a page, which is 1 MB as stored, and JSON makes six bytes
#: of one at most.  https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchWriteItem.html
MAX_BATCH_ITEMS: Final = 25


def sweep_expired(
    store: DynamoDBPersistenceLayer,
    *,
    segments: int = 4,
    page_size: int | None = None,
    progress: Progress | None = None,
    resume_from: Mapping[str, Any] | None = None,
) -> BulkProgress:
    """Delete the expired records of a table without TTL, or before its TTL does.

    Deletes what is expired and claimable: completed records, and unfinished ones whose lease has ended.  An orphan that has not
    expired stays: it is evidence.  A record that is claimed anew between being read and being deleted stays, too.  As with TTL,
    an attempt that outlived its lease and its record may still write its result afterwards.

    Needs `dynamodb:Scan` (`dynamodb:Query` on a table with a sort key) and `dynamodb:DeleteItem`.

    Args:
        store: The table.  With a sort key, only the partition of its `static_pk_value` is swept.
        segments: Into how many parts the table is split, each worked on by a thread; a partition is never split.
        page_size: Items read at a time, per segment; as many as make 1 MB if left out.
        progress: Called after each page with the totals so far, by one thread at a time.  What it raises ends the work and is
            raised here.
        resume_from: The checkpoint of an earlier, unfinished sweep of this table, with as many segments.

    Raises:
        TypeError: *store* is no DynamoDB store.
        ValueError: an argument makes no sense, *resume_from* is of other work, or the table is replicated eventually and its keys
            have no home Regions: the local replica does not know whether a record is live in another.
        IdempotencyBulkIncompleteError: not all was done; `progress` says how much, and where to go on.
    """
    _check_store("store", store)
    if store._tells_region and store._home_of is None:
        raise ValueError(
            "A global table with eventual replication is swept with home_region only: a record that is expired in this Region "
            "may have been claimed anew in another. Use the table's TTL"
        )
    sweep = _Sweep(store)
    return _Run(sweep, segments, page_size, progress, resume_from).run()


def copy_records(
    source: DynamoDBPersistenceLayer,
    target: DynamoDBPersistenceLayer,
    *,
    segments: int = 4,
    page_size: int | None = None,
    target_in_use: bool = True,
    progress: Progress | None = None,
    resume_from: Mapping[str, Any] | None = None,
) -> BulkProgress:
    """Copy all records that have not expired, orphans included, to another table, key layout or set of attribute names.

    Idempotency keys stay as they are, and *source* stays untouched.  Attributes that are no part of a record come along, unless
    *target* uses their name itself.  Calls that use *source* meanwhile may be missed or copied unfinished: copy again when they
    have moved to *target*.  A record that has vanished from *source* since an earlier copy stays in *target*.

    Needs `dynamodb:Scan` (`dynamodb:Query` on a table with a sort key) on *source*; on *target* `dynamodb:PutItem`, or
    `dynamodb:BatchWriteItem` if it is not in use.

    Args:
        source: Where the records are: a table of this library or of Powertools.
        target: Where they shall be.
        segments: Into how many parts *source* is split, each worked on by a thread; a partition is never split.
        page_size: Items read at a time, per segment; as many as make 1 MB if left out.
        target_in_use: Whether calls use *target* already.  If so, a record is written where *target* has none, the same attempt's
            unfinished copy, or one that any new attempt might supersede; all others win over it.  If not, records are written in
            batches and replace whatever is there.
        progress: Called after each page with the totals so far, by one thread at a time.  What it raises ends the work and is
            raised here.
        resume_from: The checkpoint of an earlier, unfinished copy between these tables, with as many segments.

    Raises:
        TypeError: *source* or *target* is no DynamoDB store.
        ValueError: an argument makes no sense, both stores keep a key's record in the same item, or *resume_from* is of other
            work.
        IdempotencyBulkIncompleteError: not all was done; `progress` says how much, and where to go on.
    """
    _check_store("source", source)
    _check_store("target", target)
    check_flag("target_in_use", target_in_use)
    if _is_same_place(source, target):
        raise ValueError(
            f"source and target keep their records in the same items of table {source.table_name}. "
            "If these are tables of two accounts, name one by its ARN"
        )
    copy = (_Copy if target_in_use else _BatchCopy)(source, target)
    return _Run(copy, segments, page_size, progress, resume_from).run()


# The work: what becomes of a page


class _Work(Protocol):
    """What is done with the items of a page."""

    operation: str
    #: What happens to a record.
    written: str
    source: DynamoDBPersistenceLayer
    #: What a checkpoint belongs to.
    identity: dict[str, Any]

    def reading(self, items: ItemFormat) -> Request:
        """What is asked for beyond the place to read."""

    def work_off(self, page: Iterable[Item], tally: _Tally, halt: _Halt) -> None:
        """Decide on each item, and return when all writes are through.  Raises what a write raises for good."""


class _Sweep:
    operation = "sweep_expired"
    written = "deleted"

    def __init__(self, store: DynamoDBPersistenceLayer) -> None:
        self.source = store
        self.identity = {"operation": self.operation, "source": _place(store)}

    def reading(self, items: ItemFormat) -> Request:
        return expired(items, self.source.clock_ms())

    def work_off(self, page: Iterable[Item], tally: _Tally, halt: _Halt) -> None:
        for item in page:
            record = record_in(self.source._items, item)
            if record is None:
                tally.foreign += 1
            elif not is_waste(record, self.source.clock_ms()):
                tally.skipped += 1
            else:
                self._delete(record.key, item, tally, halt)

    def _delete(self, key: str, item: Item, tally: _Tally, halt: _Halt) -> None:
        request = deletion(self.source._items, key, item)
        _write(self.source, self.source._client_of(key).delete_item, key, request, tally, halt, lambda found: not found)


class _Copy:
    """To a table in use: one conditional write per record."""

    operation = "copy_records"
    written = "copied"

    def __init__(self, source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer) -> None:
        self.source = source
        self.target = target
        self.identity = {"operation": self.operation, "source": _place(source), "target": _place(target)}

    def reading(self, items: ItemFormat) -> Request:  # noqa: ARG002 - whole items, whatever their names
        # An answered completion must not be missed: its copy would let the function run again.
        return {"ConsistentRead": True}

    def work_off(self, page: Iterable[Item], tally: _Tally, halt: _Halt) -> None:
        for record, item in self._copies(page, tally):
            self._put(record, item, tally, halt)

    def _copies(self, page: Iterable[Item], tally: _Tally) -> Iterator[tuple[DataRecord, Item]]:
        """Each record that is to be copied, and its item in the target."""
        for item in page:
            record = record_in(self.source._items, item)
            if record is None:
                tally.foreign += 1
            elif is_waste(record, self.source.clock_ms()):
                tally.skipped += 1
            else:
                yield record, converted(record, item, self.source._items, self.target._items)

    def _put(self, record: DataRecord, item: Item, tally: _Tally, halt: _Halt) -> None:
        items = self.target._items

        def is_there(found: Item) -> bool:
            return record_in(items, found) == record_in(items, item)

        request = put_unless_taken(items, record, item, self.target.clock_ms())
        _write(self.target, self.target._client_of(record.key).put_item, record.key, request, tally, halt, is_there)


class _BatchCopy(_Copy):
    """To a table that nobody uses yet: many records per request, unconditionally."""

    def work_off(self, page: Iterable[Item], tally: _Tally, halt: _Halt) -> None:
        for batch in _batches(item for _, item in self._copies(page, tally)):
            self._put_batch(batch, tally, halt)

    def _put_batch(self, batch: list[Item], tally: _Tally, halt: _Halt) -> None:
        """Write a batch, and what DynamoDB left of it, until all is written.

        Raises:
            IdempotencyPersistenceLayerError: it wrote nothing for a minute.
        """
        store, client = self.target, _client(self.target)
        requests: list[Request] = [{"PutRequest": {"Item": item}} for item in batch]
        last_ms, ceiling_ms = store.clock_ms(), BASE_MS
        undone_ms = pause_ms = 0.0
        while True:
            request = {"RequestItems": {store.table_name: requests}, "ReturnConsumedCapacity": "TOTAL"}
            answer = halt.answer(store, Retries(store.clock_ms, GIVE_UP_MS), client.batch_write_item, request)
            left = [request for each in answer.get("UnprocessedItems", {}).values() for request in each]
            tally.written += len(requests) - len(left)
            tally.write_units += sum(each["CapacityUnits"] for each in answer.get("ConsumedCapacity", []))
            if not left:
                return
            now_ms = store.clock_ms()
            # A pause counts with its length at least: the clock may stand still, or be set back.
            undone_ms = 0.0 if len(left) < len(requests) else undone_ms + max(now_ms - last_ms, pause_ms)
            if undone_ms >= GIVE_UP_MS:
                raise IdempotencyPersistenceLayerError(
                    f"BatchWriteItem has left {len(left)} items unprocessed for {GIVE_UP_MS // 1000} seconds"
                )
            requests, last_ms = left, now_ms
            pause_ms = random.uniform(0, ceiling_ms)  # noqa: S311 - jitter, not a secret
            halt.sleep_ms(store, pause_ms)
            ceiling_ms = min(CAP_MS, 2 * ceiling_ms)


def _write(
    store: DynamoDBPersistenceLayer,
    operation: Callable[..., Any],
    key: str,
    request: Request,
    tally: _Tally,
    halt: _Halt,
    is_done: Callable[[Item], bool],
) -> None:
    """Make a conditional write, and count what came of it.  *is_done* tells it of the item that refused: {} if there was none."""
    retries = Retries(store.clock_ms, GIVE_UP_MS)
    try:
        answer = halt.answer(store, retries, operation, {"TableName": store.table_name, **request})
    except Exception as error:
        found = refusing_item(error)
        if found is None:
            halt.failed_keys[id(error)] = key
            raise
        if not is_done(found):
            tally.kept += 1
        elif retries.outcome_unknown or hides_tries(error):  # by an earlier try, whose answer was lost
            tally.written += 1
        else:
            tally.unchanged += 1
        return
    tally.written += 1
    tally.write_units += _units(answer)


# The run: threads, totals, the checkpoint


@dataclass(slots=True)
class _Tally:
    """The counts of `BulkProgress`, while they are counted."""

    scanned: int = 0
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    skipped: int = 0
    foreign: int = 0
    read_units: float = 0.0
    write_units: float = 0.0

    def add(self, other: _Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class _HaltedError(Exception):
    """Another segment has failed, or the work was interrupted."""


class _Halt:
    """Ends the work of all threads at their next write, read or pause."""

    def __init__(self) -> None:
        self._called = Event()
        #: The key of the record at which a write failed, by the identity of its error.
        self.failed_keys: dict[int, str] = {}

    def call(self) -> None:
        self._called.set()

    def check(self) -> None:
        if self._called.is_set():
            raise _HaltedError

    def sleep_ms(self, store: DynamoDBPersistenceLayer, ms: float) -> None:
        store.sleep_ms(ms)
        self.check()

    def answer(
        self, store: DynamoDBPersistenceLayer, retries: Retries, operation: Callable[..., Any], request: dict[str, Any]
    ) -> Any:
        """The answer to one request."""
        return run(retries.answer(sending, operation, request), partial(self.sleep_ms, store))


class _Run:
    def __init__(
        self,
        work: _Work,
        segments: int,
        page_size: int | None,
        progress: Progress | None,
        resume_from: Mapping[str, Any] | None,
    ) -> None:
        _check_at_least_one("segments", segments)
        if progress is not None:
            check_callable("progress", progress)
        check_mapping("resume_from", resume_from)
        if page_size is not None:
            _check_at_least_one("page_size", page_size)
        if work.source._items.sort_key_attr is not None:
            segments = 1  # a partition is read by Query, which knows no segments
        self._work = work
        self._identity = {**work.identity, "segments": segments}
        self._positions = _positions(self._identity, resume_from)
        self._page_size = page_size
        self._progress = progress
        self._progress_error: BaseException | None = None
        self._totals = _Tally()
        self._lock = Lock()
        self._halt = _Halt()

    def run(self) -> BulkProgress:
        try:
            self._work_off_segments()
        except Exception as error:
            if error is self._progress_error:
                raise
            failed_key = self._halt.failed_keys.get(id(error))
            raise IdempotencyBulkIncompleteError(
                f"{self._work.operation} is incomplete on table {self._work.source.table_name}: {self._totals.written} records "
                f"were {self._work.written}; resume_from=error.progress.checkpoint goes on",
                error,
                progress=self._so_far(),
            ).about(failed_key, "What was written stays written.", is_retryable=not is_lasting(error)) from error
        return self._so_far()

    def _work_off_segments(self) -> None:
        """Returns when all segments are through, or raises what the first of them raised when all have come to an end."""
        pending = [number for number, position in enumerate(self._positions) if position != DONE]
        with ThreadPoolExecutor(max(1, len(pending)), "idempotency-bulk") as threads:
            try:
                for segment in as_completed([threads.submit(self._work_off_segment, number) for number in pending]):
                    segment.result()
            except BaseException:  # of the first segment that failed, or an interruption of this thread
                self._halt.call()
                raise

    def _work_off_segment(self, number: int) -> None:
        try:
            while self._positions[number] != DONE:
                self._halt.check()
                self._work_off_page(number)
        except _HaltedError:
            return

    def _work_off_page(self, number: int) -> None:
        tally = _Tally()
        try:
            answer = self._read(number)
            tally.scanned = answer["ScannedCount"]
            tally.read_units = _units(answer)
            self._work.work_off(self._until_halted(answer["Items"]), tally, self._halt)
        finally:
            with self._lock:
                self._totals.add(tally)
        with self._lock:
            self._positions[number] = answer.get("LastEvaluatedKey") or DONE
            self._report()

    def _read(self, number: int) -> dict[str, Any]:
        """The segment's next page."""
        store = self._work.source
        place = reading(store._items, number, len(self._positions), self._positions[number], self._page_size)
        request = merged(place, self._work.reading(store._items))
        client = _client(store)
        operation = client.scan if store._items.sort_key_attr is None else client.query
        retries = Retries(store.clock_ms, GIVE_UP_MS)
        answer: dict[str, Any] = self._halt.answer(store, retries, operation, {"TableName": store.table_name, **request})
        return answer

    def _until_halted(self, page: list[Item]) -> Iterator[Item]:
        for item in page:
            self._halt.check()
            yield item

    def _report(self) -> None:
        """Called with the lock held."""
        if self._progress is None or self._progress_error is not None:
            return
        try:
            self._progress(self._so_far())
        except BaseException as error:
            self._progress_error = error
            raise

    def _so_far(self) -> BulkProgress:
        positions = list(self._positions)
        done = all(position == DONE for position in positions)
        return BulkProgress(**asdict(self._totals), done=done, checkpoint={**self._identity, "positions": positions})


# Arguments


def _check_store(name: str, store: object) -> None:
    if not isinstance(store, DynamoDBPersistenceLayer):
        what = f"the class {store.__name__}" if isinstance(store, type) else type(store).__name__
        raise TypeError(f"{name} must be a DynamoDBPersistenceLayer, not {what}")


def _check_at_least_one(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")


def _is_same_place(source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer) -> bool:
    """Whether a key's record would be copied onto itself.  Tables of the same name may be in two Regions."""
    if source.table_name != target.table_name or source._items.key("") != target._items.key(""):
        return False
    return source.client is target.client or _client(source).meta.endpoint_url == _client(target).meta.endpoint_url


def _place(store: DynamoDBPersistenceLayer) -> dict[str, Any]:
    """The table, and the partition if it is only one."""
    return {"table": store.table_name, "partition": store._items.static_pk_value if store._items.sort_key_attr else None}


def _positions(identity: dict[str, Any], resume_from: Mapping[str, Any] | None) -> list[Position]:
    """Where each segment begins.

    Raises:
        ValueError: the checkpoint is of other work.
    """
    segments: int = identity["segments"]
    if resume_from is None:
        return [None] * segments
    known = {name: value for name, value in resume_from.items() if name != "positions"}
    positions = resume_from.get("positions")
    if known != identity or not isinstance(positions, list) or len(positions) != segments:
        raise ValueError(f"resume_from is the checkpoint of other work: {known}, and this is {identity}")
    return list(positions)


def _client(store: DynamoDBPersistenceLayer) -> Any:
    """The store's client, of which more is used here than by the store."""
    return store._own_client()


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, as many to a request as DynamoDB takes."""
    remaining = iter(items)
    while batch := list(islice(remaining, MAX_BATCH_ITEMS)):
        yield batch


def _units(answer: dict[str, Any]) -> float:
    """The capacity units that DynamoDB reports; not every engine does."""
    units: float = answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
    return units
