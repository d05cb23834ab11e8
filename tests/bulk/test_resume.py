"""How bulk work ends early, and goes on: whatever stops it, nothing is lost, and a page per segment is done again at most."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections import defaultdict
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any

import pytest
from bulk.kit import LAYOUTS, completed, faulty, filled, items, keys, put
from faults import access_denied, refused, throttle

from idempotency import (
    BulkProgress,
    DynamoDBPersistenceLayer,
    IdempotencyBulkIncompleteError,
    IdempotencyPersistenceLayerError,
    copy_records,
    sweep_expired,
)
from persistence import bulk
from persistence._retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulk.kit import NewStore
    from doubles import FakeClock

COUNT = 11
PAGE = 3
#: Items per page: 3, 3, 3, 2; DynamoDB then may show an empty page, for it looks for the end when it is asked.
PAGES = 4


class Work:
    """One kind of bulk work on fresh tables: `run` does it, and `is_done` says whether all of it is."""

    def __init__(self, kind: str, source: DynamoDBPersistenceLayer, target: DynamoDBPersistenceLayer, clock: FakeClock) -> None:
        self.kind = kind
        self.source = source
        self.target = target
        self.names = filled(source, clock, COUNT, expires_s=-1 if kind == "sweep" else 3_600)
        self.written_store = source if kind == "sweep" else target
        self.writes = {"sweep": "delete_item", "copy": "put_item", "batch": "batch_write_item"}[kind]

    @property
    def read(self) -> str:
        return "scan" if self.source._items.sort_key_attr is None else "query"

    def run(self, **options: Any) -> BulkProgress:
        options = {"segments": 1, "page_size": PAGE, **options}
        if self.kind == "sweep":
            return sweep_expired(self.source, **options)
        return copy_records(self.source, self.target, target_in_use=self.kind == "copy", **options)

    @property
    def is_done(self) -> bool:
        return items(self.source) == [] if self.kind == "sweep" else keys(self.target) == self.names

    def fail(self, operation: str, call: int) -> Exception:
        error = access_denied()
        store = self.source if operation == self.read else self.written_store
        faulty(store).at(operation, call, refused(error))
        return error


@pytest.fixture(params=["sweep", "copy", "batch"])
def work(request: pytest.FixtureRequest, new_store: NewStore, clock: FakeClock) -> Work:
    return Work(request.param, new_store(), new_store(), clock)


@pytest.fixture(params=["sweep", "copy", "batch"])
def work_on_a_partition(request: pytest.FixtureRequest, new_store: NewStore, clock: FakeClock) -> Work:
    return Work(request.param, new_store(**LAYOUTS["composite"]), new_store(), clock)


def through_a_file(checkpoint: dict[str, Any]) -> dict[str, Any]:
    restored: dict[str, Any] = json.loads(json.dumps(checkpoint))
    return restored


def stopped(work: Work, **options: Any) -> IdempotencyBulkIncompleteError:
    with pytest.raises(IdempotencyBulkIncompleteError) as caught:
        work.run(**options)
    assert caught.value.progress is not None
    assert not caught.value.progress.done
    return caught.value


@pytest.mark.parametrize("page", range(1, PAGES + 1))
def test_work_goes_on_after_a_page_that_could_not_be_read(work: Work, page: int) -> None:
    work.fail(work.read, page)
    error = stopped(work)
    rest = work.run(resume_from=through_a_file(error.progress.checkpoint))

    assert work.is_done
    assert rest.done
    assert (error.progress.written, rest.written) == (PAGE * (page - 1), COUNT - PAGE * (page - 1))


@pytest.mark.parametrize("write", [1, 3, 4, 11])
def test_work_goes_on_after_a_write_that_failed(work: Work, write: int) -> None:
    """And repeats no more than the page of that write."""
    if work.kind == "batch":
        write = (write - 1) // PAGE + 1  # a batch is a page here
    work.fail(work.writes, write)
    error = stopped(work)
    rest = work.run(resume_from=through_a_file(error.progress.checkpoint))

    assert work.is_done
    assert error.progress.written + rest.written == COUNT
    assert error.progress.scanned + rest.scanned <= COUNT + PAGE


@pytest.mark.parametrize("write", [1, 4, 11])
def test_work_on_a_partition_goes_on_after_a_write_that_failed(work_on_a_partition: Work, write: int) -> None:
    work = work_on_a_partition
    if work.kind == "batch":
        write = (write - 1) // PAGE + 1
    work.fail(work.writes, write)
    error = stopped(work, segments=4)
    work.run(segments=4, resume_from=through_a_file(error.progress.checkpoint))

    assert work.is_done


def test_work_in_segments_goes_on_where_each_of_them_was(work: Work) -> None:
    checkpoint = None
    scanned = written = failures = 0
    for failing in (2, 4, 6):
        work.fail(work.read, failing)
        error = stopped(work, segments=3, page_size=1, resume_from=checkpoint)
        checkpoint = through_a_file(error.progress.checkpoint)
        scanned, written, failures = scanned + error.progress.scanned, written + error.progress.written, failures + 1
    rest = work.run(segments=3, page_size=1, resume_from=checkpoint)

    assert work.is_done
    assert written + rest.written == COUNT
    assert scanned + rest.scanned <= COUNT + 3 * failures


def test_work_that_is_done_is_not_begun_again(work: Work) -> None:
    done = work.run()
    requests = len(faulty(work.source).requests)

    again = work.run(resume_from=through_a_file(done.checkpoint))

    assert again == BulkProgress(done=True, checkpoint=done.checkpoint)
    assert len(faulty(work.source).requests) == requests


def test_a_record_that_appears_meanwhile_is_left_to_the_next_run(work: Work, clock: FakeClock) -> None:
    """A checkpoint is a place, not a list."""
    done = work.run()
    put(work.source, completed(clock, "late", expires_s=-1 if work.kind == "sweep" else 60))

    assert work.run(resume_from=done.checkpoint).written == 0
    assert work.run().written == (1 if work.kind in ("sweep", "copy") else COUNT + 1)


# Whose checkpoint


def test_a_checkpoint_of_other_work_is_refused(work: Work, new_store: NewStore) -> None:
    checkpoint = work.run().checkpoint
    other_table = {**checkpoint, "source": {"table": "another", "partition": None}}
    other_partition = {**checkpoint, "source": {**checkpoint["source"], "partition": "another"}}
    other_operation = {**checkpoint, "operation": "another"}
    other_segments = {**checkpoint, "segments": 2}
    too_many = {**checkpoint, "positions": ["done", "done"]}
    none = {name: value for name, value in checkpoint.items() if name != "positions"}
    for other in (other_table, other_partition, other_operation, other_segments, too_many, none, {}):
        with pytest.raises(ValueError, match=r"^resume_from is the checkpoint of other work: \{.*\}, and this is \{"):
            work.run(resume_from=other)


def test_a_checkpoint_of_a_copy_to_another_table_is_refused(new_store: NewStore) -> None:
    source = new_store()
    checkpoint = copy_records(source, new_store()).checkpoint

    with pytest.raises(ValueError, match="^resume_from is the checkpoint of other work"):
        copy_records(source, new_store(), resume_from=checkpoint)


def test_a_checkpoint_is_for_as_many_segments(new_store: NewStore) -> None:
    store = new_store()
    checkpoint = sweep_expired(store, segments=3).checkpoint

    with pytest.raises(ValueError, match="^resume_from is the checkpoint of other work"):
        sweep_expired(store, resume_from=checkpoint)


# The error


def test_the_error_says_what_failed_and_survives_pickling(work: Work) -> None:
    cause = work.fail(work.read, 2)
    error = stopped(work)

    assert isinstance(error, IdempotencyPersistenceLayerError)
    assert error.__cause__ is cause
    assert error.details == str(cause)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.progress) == (str(error), error.progress)


def test_an_error_made_by_hand_has_no_progress() -> None:
    assert IdempotencyBulkIncompleteError("m").progress is None


# Progress


def test_progress_is_told_after_each_page(work: Work) -> None:
    told: list[BulkProgress] = []

    done = work.run(progress=told.append)

    assert [each.scanned for each in told[:PAGES]] == [3, 6, 9, 11]
    assert [each.written for each in told[:PAGES]] == [3, 6, 9, 11]
    assert told[-1] == done
    assert [each.done for each in told] == [False] * (len(told) - 1) + [True]


def test_each_checkpoint_that_was_told_is_a_place_to_go_on(work: Work) -> None:
    told: list[BulkProgress] = []
    work.run(progress=told.append)
    before = len(faulty(work.source).requests)

    for each in told:
        rest = work.run(resume_from=each.checkpoint)
        assert rest.done
        assert work.is_done
    assert len(faulty(work.source).requests) > before


def test_progress_is_told_by_one_thread_at_a_time(work: Work) -> None:
    """The first call takes until the other segment has written a page, too."""
    guard, both_have_written = threading.Lock(), threading.Barrier(2)
    told: list[BulkProgress] = []

    def strike(send: Callable[[], Any]) -> Any:
        answer = send()
        both_have_written.wait(20)
        return answer

    def tell(progress: BulkProgress) -> None:
        assert guard.acquire(blocking=False)
        told.append(progress)
        guard.release()

    faulty(work.written_store).at(work.writes, 1, strike)
    faulty(work.written_store).at(work.writes, 2, strike)
    work.run(segments=2, page_size=1, progress=tell)

    assert [each.written for each in told] == sorted(each.written for each in told)
    assert told[-1].written == COUNT


class ClosedError(Exception):
    """Of the user's own callback."""


@pytest.mark.parametrize("error", [ClosedError, KeyboardInterrupt])
def test_what_the_callback_raises_stops_the_work_and_is_raised(work: Work, error: type[BaseException]) -> None:
    raised = error()
    told: list[BulkProgress] = []

    def tell(progress: BulkProgress) -> None:
        told.append(progress)
        if len(told) == 2:
            raise raised

    with pytest.raises(error) as caught:
        work.run(segments=3, page_size=1, progress=tell)

    assert caught.value is raised
    assert caught.value.__cause__ is None
    assert len(told) == 2
    rest = work.run(segments=3, page_size=1, resume_from=through_a_file(told[-1].checkpoint))
    assert work.is_done
    assert rest.scanned <= COUNT - 2 + 3


# Stopping


def test_a_page_is_read_when_the_writes_of_the_one_before_are_through(work: Work) -> None:
    """So that memory holds a page per segment, and the checkpoint is never ahead."""
    lock = threading.Lock()
    story: dict[int, list[str]] = defaultdict(list)

    def told(word: str) -> Callable[[Callable[[], Any]], Any]:
        def strike(send: Callable[[], Any]) -> Any:
            with lock:
                story[threading.get_ident()].append(f"{word}...")
            answer = send()
            with lock:
                story[threading.get_ident()].append(word)
            return answer

        return strike

    faulty(work.source).always("scan", told("read"))
    faulty(work.written_store).always(work.writes, told("write"))

    work.run(segments=2, page_size=2)

    assert len(story) <= 2
    for words in story.values():
        assert words[::2] == [f"{word}..." for word in words[1::2]]  # nothing begins before the last has ended
    assert sum(words.count("read") for words in story.values()) >= COUNT // 2


@pytest.fixture
def halted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the work is told to halt."""
    event = threading.Event()
    call = bulk._Halt.call

    def tell(halt: bulk._Halt) -> None:
        call(halt)
        event.set()

    monkeypatch.setattr(bulk._Halt, "call", tell)
    return event


def test_a_segment_that_fails_stops_the_others_at_their_next_write(work: Work, halted: threading.Event) -> None:
    """One segment is in the midst of a write when the other fails."""
    writing = threading.Event()
    error = access_denied()

    def strike(send: Callable[[], Any]) -> Any:
        if writing.is_set():
            raise error
        writing.set()
        assert halted.wait(20)
        return send()

    faulty(work.written_store).always(work.writes, strike)

    assert stopped(work, segments=2).__cause__ is error
    assert halted.is_set()
    assert faulty(work.written_store).count(work.writes) == 2


def test_an_interruption_stops_all_segments_and_is_raised(
    work: Work, halted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the thread that waits for the others."""
    writing = threading.Event()

    def strike(send: Callable[[], Any]) -> Any:
        writing.set()
        assert halted.wait(20)
        return send()

    def interrupted(_segments: Any) -> Any:
        assert writing.wait(20)
        raise KeyboardInterrupt

    faulty(work.written_store).always(work.writes, strike)
    monkeypatch.setattr(bulk, "as_completed", interrupted)

    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert halted.is_set()
    assert faulty(work.written_store).count(work.writes) == 1
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("idempotency-bulk")] == []

    monkeypatch.setattr(bulk, "as_completed", as_completed)
    work.run()
    assert work.is_done


def test_a_segment_that_waits_between_two_tries_does_not_try_again_after_a_halt(new_store: NewStore) -> None:
    """Else an interruption would take up to a minute on a throttled table."""
    store = new_store()
    halt = bulk._Halt()
    tries: list[str] = []

    def send() -> None:
        tries.append("try")
        raise throttle()

    store.sleep_ms = lambda _ms: halt.call()

    with pytest.raises(bulk._HaltedError):
        halt.answer(store, Retries(store.clock_ms, bulk.GIVE_UP_MS), send, {})
    assert tries == ["try"]
