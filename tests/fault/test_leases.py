"""Leases without a known deadline: renewed by the heartbeat, waited for, freed by a crash, or held for ever on demand."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import (
    KEY,
    ORDER,
    Bench,
    Form,
    Suspended,
    access_denied,
    before,
    keyed,
    lost,
    raise_boom,
    raise_suspended,
    read_timeout,
    refused,
)

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyOrphanedError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    current_attempt,
)
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Store

    from persistence.background import Heartbeat


def test_the_heartbeat_keeps_the_key_of_a_long_run(bench: Bench, form: Form, heart: Heartbeat) -> None:
    """Ten leases long; the function sees its lease grow."""
    ends: list[int | None] = []

    def slow(_event: Any) -> str:
        for _ in range(30):
            bench.clock.advance(seconds=20)
            heart.beat()
            ends.append(current_attempt().lease_end_ms)
            with pytest.raises(IdempotencyAlreadyInProgressError):
                work(ORDER)
        return "done"

    work = form.function(slow, bench.store, keyed(lease_seconds=60))
    start_ms = bench.clock()

    assert work(ORDER) == "done"
    assert ends == [start_ms + 60_000 + 20_000 * beat for beat in range(1, 31)]
    assert bench.peek(KEY)["generation"] == 1


def test_the_heartbeat_beats_at_a_third_of_the_lease_and_not_before(bench: Bench, form: Form, heart: Heartbeat) -> None:
    renewals: list[int] = []

    def slow(_event: Any) -> str:
        for ms in (19_999, 1, 19_999, 1):
            bench.clock.advance(ms=ms)
            heart.beat()
            renewals.append(bench.client.count("update_item"))
        return "done"

    form.function(slow, bench.store, keyed(lease_seconds=60))(ORDER)

    assert renewals == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "end", [lambda: "done", raise_boom, raise_suspended, object], ids=["done", "failed", "suspended", "not kept"]
)
def test_the_heartbeat_stops_when_the_run_ends(bench: Bench, form: Form, heart: Heartbeat, end: Callable[[], Any]) -> None:
    with suppress(OSError, Suspended, IdempotencyResultNotKeptError):
        form.function(lambda _event: end(), bench.store)(ORDER)
    record, requests = bench.peek(KEY), len(bench.client.requests)

    bench.clock.advance(seconds=59)
    heart.beat()

    assert len(bench.client.requests) == requests
    assert bench.peek(KEY) == record


def test_a_lease_with_a_known_deadline_is_not_renewed(bench: Bench, form: Form, heart: Heartbeat) -> None:
    def slow(_event: Any) -> str:
        bench.clock.advance(seconds=29)
        heart.beat()
        return "paid"

    form.handler(slow, bench.store)(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock))

    assert bench.client.count("update_item") == 1


@pytest.mark.parametrize(
    "trouble", [lambda: refused(access_denied()), lambda: lost(read_timeout())], ids=["denied", "answer lost"]
)
def test_two_renewals_in_a_row_may_fail(bench: Bench, form: Form, heart: Heartbeat, trouble: Any) -> None:
    def slow(_event: Any) -> str:
        for _ in range(6):
            bench.clock.advance(seconds=19)
            heart.beat()
            bench.clock.advance(seconds=1)
            heart.beat()
        return "done"

    bench.client.at("update_item", 1, trouble())
    bench.client.at("update_item", 2, trouble())

    assert form.function(slow, bench.store, keyed(lease_seconds=60))(ORDER) == "done"
    assert bench.peek(KEY)["generation"] == 1


def test_a_heartbeat_that_comes_too_late_does_not_touch_the_successors_lease(bench: Bench, form: Form, heart: Heartbeat) -> None:
    """As in a process that was frozen: nothing is renewed any more, and the caller gets the winner's result."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        if len(runs) > 1:
            return "won"
        bench.clock.advance(ms=60_000 + MARGIN_MS + 1)
        assert function(ORDER) == "won"
        held = bench.peek(KEY)
        heart.beat()
        requests = len(bench.client.requests)
        bench.clock.advance(seconds=30)
        heart.beat()
        assert len(bench.client.requests) == requests
        assert bench.peek(KEY) == held
        return "late"

    function = form.function(work, bench.store, keyed(lease_seconds=60))

    assert function(ORDER) == "won"


@pytest.mark.parametrize("lease_seconds", [0.5, 60, 3600])
def test_a_crash_frees_the_key_after_the_lease(bench: Bench, form: Form, lease_seconds: float) -> None:
    config = keyed(lease_seconds=lease_seconds)
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, config)(ORDER)
    work = form.function(lambda _event: "done", bench.store, config)

    bench.clock.advance(ms=int(lease_seconds * 1000) + MARGIN_MS)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        work(ORDER)
    bench.clock.advance(ms=1)
    assert work(ORDER) == "done"


def test_a_claim_that_took_longer_than_its_lease_does_not_run_without_one(bench: Bench, form: Form) -> None:
    """The lease is counted from before the request, and a slow or throttled one can outlast it."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        with pytest.raises(IdempotencyAlreadyInProgressError):
            function(ORDER)
        return "done"

    function = form.function(work, bench.store, keyed(lease_seconds=2))
    bench.client.at("put_item", 1, before(lambda: bench.clock.advance(ms=5_000)))

    assert function(ORDER) == "done"
    assert runs == ["run"]


def test_a_lease_that_the_claim_used_up_is_renewed_at_the_first_beat(bench: Bench, form: Form, heart: Heartbeat) -> None:
    """Which the heartbeat makes at once, and not a third of a lease after the run began."""
    runs: list[str] = []

    def work(_event: Any) -> str:
        runs.append("run")
        heart.beat()
        bench.clock.advance(ms=1_999)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            function(ORDER)
        return "done"

    function = form.function(work, bench.store, keyed(lease_seconds=2))
    bench.client.at("put_item", 1, before(lambda: bench.clock.advance(ms=1_500)))

    assert function(ORDER) == "done"
    assert runs == ["run"]


# Waiting for another attempt


def slept_by(bench: Bench, form: Form, meanwhile: Callable[[], object] = lambda: None) -> Store:
    """The bench's store, whose sleeps take the fake clock's time and let something happen."""

    def sleep_ms(ms: float) -> None:
        bench.clock.sleep_ms(ms)
        meanwhile()

    if not form.is_async:
        bench.store.sleep_ms = sleep_ms
        return bench.store

    class Awaited(ThreadedPersistenceLayer):
        async def sleep_ms(self, ms: float) -> None:
            sleep_ms(ms)

    return Awaited(bench.store)


class Other:
    """Another attempt at the key, at work in a thread until it is told to end."""

    def __init__(self, bench: Bench, end: Callable[[], Any], config: Any = None) -> None:
        self._inside, self._end = Event(), Event()
        self._thread = Thread(target=self._call, args=(bench, end, config or keyed()))
        self._thread.start()
        assert self._inside.wait(10)

    def _call(self, bench: Bench, end: Callable[[], Any], config: Any) -> None:
        def work(_event: Any) -> Any:
            self._inside.set()
            assert self._end.wait(10)
            return end()

        try:
            Form(is_async=False).function(work, bench.store, config)({**ORDER, "amount": 1})
        except (OSError, IdempotencyResultNotKeptError):
            return  # as told

    def finish(self) -> None:
        self._end.set()
        self._thread.join()


#: How much later than the attempt counts on a renewed lease ends in its record.
MARGIN_MS = 1_000
WAIT = {"wait_for_in_progress_seconds": 600}


def test_a_waiting_call_gets_the_other_attempts_result(bench: Bench, form: Form) -> None:
    other = Other(bench, lambda: "the other's")
    store = slept_by(bench, form, other.finish)

    assert form.function(lambda _event: "mine", store, keyed(**WAIT))(ORDER) == "the other's"
    assert bench.client.count("put_item") == 2


def test_a_waiting_call_runs_when_the_other_attempt_fails(bench: Bench, form: Form) -> None:
    other = Other(bench, raise_boom)
    store = slept_by(bench, form, other.finish)

    assert form.function(lambda _event: "mine", store, keyed(**WAIT))(ORDER) == "mine"


def test_a_waiting_call_hears_that_the_other_attempts_result_was_not_kept(bench: Bench, form: Form) -> None:
    other = Other(bench, object)
    store = slept_by(bench, form, other.finish)
    with pytest.raises(IdempotencyResultNotKeptError):
        form.function(lambda _event: "mine", store, keyed(**WAIT))(ORDER)


def test_a_waiting_call_takes_over_when_the_other_attempt_has_died(bench: Bench, form: Form) -> None:
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=60))(ORDER)
    start_ms = bench.clock()

    assert form.function(lambda _event: "mine", slept_by(bench, form), keyed(**WAIT))(ORDER) == "mine"
    assert start_ms + 60_000 + MARGIN_MS < bench.clock() <= start_ms + 61_001 + MARGIN_MS
    assert bench.peek(KEY)["generation"] == 2


@pytest.mark.parametrize(("wait_seconds", "remaining_ms", "waited_ms"), [(2, 30_000, 2_000), (60, 2_000, 1_900), (60, 50, 0)])
def test_a_waiting_call_gives_up_in_time(bench: Bench, form: Form, wait_seconds: int, remaining_ms: int, waited_ms: int) -> None:
    """After the configured time, or just before its own deadline."""
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=3600))(ORDER)
    start_ms = bench.clock()
    waiting = form.handler(lambda _event: "mine", slept_by(bench, form), keyed(wait_for_in_progress_seconds=wait_seconds))
    with pytest.raises(IdempotencyAlreadyInProgressError):
        waiting(ORDER, LambdaContext(remaining_ms=remaining_ms, clock=bench.clock))

    assert bench.clock() - start_ms == waited_ms


def test_a_changed_payload_is_not_waited_for(bench: Bench, form: Form) -> None:
    config = keyed(payload_validation_jmespath="amount", **WAIT)
    other = Other(bench, lambda: "the other's", config)
    with pytest.raises(IdempotencyValidationError):
        form.function(lambda _event: "mine", bench.store, config)({**ORDER, "amount": 2})
    other.finish()

    assert bench.clock.slept_ms == []


# Without takeover


def test_an_orphan_is_never_run_again_by_itself(bench: Bench, form: Form) -> None:
    """Neither after its lease nor after its expiry, until somebody deletes the record."""
    config = keyed(orphan_takeover=False, expires_after_seconds=60, lease_seconds=60)
    runs: list[str] = []
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, config)(ORDER)
    work = form.function(lambda _event: runs.append("run") or "done", bench.store, config)

    bench.clock.advance(ms=60_000 + MARGIN_MS)
    with pytest.raises(IdempotencyAlreadyInProgressError) as live:
        work(ORDER)
    assert not isinstance(live.value, IdempotencyOrphanedError)
    for seconds in (1, 3600, 365 * 24 * 3600):
        bench.clock.advance(seconds=seconds)
        with pytest.raises(IdempotencyOrphanedError):
            work(ORDER)
    assert runs == []

    bench.direct.delete_item(TableName=bench.store.table_name, Key={"id": {"S": KEY}})
    assert work(ORDER) == "done"
    bench.clock.advance(seconds=62)
    assert work(ORDER) == "done"
    assert runs == ["run", "run"]


def test_without_takeover_a_claim_whose_answer_is_lost_still_runs(bench: Bench, form: Form) -> None:
    bench.client.at("put_item", 1, lost(read_timeout()))

    assert form.function(lambda _event: "done", bench.store, keyed(orphan_takeover=False))(ORDER) == "done"


def test_without_takeover_a_waiting_call_stops_when_the_other_attempt_has_died(bench: Bench, form: Form) -> None:
    config = keyed(orphan_takeover=False, lease_seconds=60, **WAIT)
    with pytest.raises(Suspended):
        form.function(lambda _event: raise_suspended(), bench.store, config)(ORDER)
    start_ms = bench.clock()
    with pytest.raises(IdempotencyOrphanedError):
        form.function(lambda _event: "mine", slept_by(bench, form), config)(ORDER)

    assert start_ms + 60_000 + MARGIN_MS < bench.clock() <= start_ms + 61_001 + MARGIN_MS
