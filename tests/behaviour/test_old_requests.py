"""`issued_at_jmespath`: a request that is older than results are kept is never run a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import PREFIX, CountingStore, Form, Work, key_of
from behaviour.test_custom_stores import AsyncDictStore, DictStore
from behaviour.test_durable import Suspended, continued, first
from doubles import START_MS, LambdaContext

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyKeyError,
    IdempotencyOrphanedError,
    IdempotencyPersistenceLayerError,
    IdempotencyRequestTooOldError,
    IdempotencyValidationError,
    idempotent,
    make_idempotent,
)
from idempotency.events import Claimed, Completed, Refused, Replayed, TakenOver

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

    from persistence.datarecord import DataRecord

KEPT_SECONDS = 60
#: A request is too old one margin (a second) before its result can have expired.
FRESH_MS = 59_000


def request(age_ms: int, now_ms: int = START_MS) -> dict[str, Any]:
    """One request, by its age: as an SQS record has it."""
    return {"id": 7, "attributes": {"SentTimestamp": str(now_ms - age_ms)}}


def config(**options: Any) -> IdempotencyConfig:
    options = {"expires_after_seconds": KEPT_SECONDS, "issued_at_jmespath": "attributes.SentTimestamp", **options}
    return IdempotencyConfig("id", **options)


@pytest.fixture
def work() -> Work:
    return Work(result="paid")


OLD = request(FRESH_MS + 1)


def test_a_request_that_is_too_old_is_refused_without_its_record_and_nothing_is_written(
    form: Form, store: CountingStore, work: Work
) -> None:
    events: list[Any] = []
    call = form.decorate(work, store, config(observers=[events.append]))

    with pytest.raises(
        IdempotencyRequestTooOldError, match=rf"^The request of idempotency key {key_of(7)} was issued longer ago "
    ):
        call(OLD, LambdaContext())

    assert (work.runs, store.asked, store._records) == ([], ["get"], {})
    assert events == [Refused(key=key_of(7), at_ms=START_MS, reason="request too old", holder="")]


def test_the_last_fresh_millisecond_is_run(form: Form, store: CountingStore, work: Work) -> None:
    call = form.decorate(work, store, config())

    assert call(request(FRESH_MS), LambdaContext()) == "paid"
    assert store.asked == ["put", "update"]


@pytest.mark.parametrize("margin_seconds", [0, 1, 5.5])
def test_the_margin_for_clocks_makes_a_request_too_old_earlier(
    store: CountingStore, work: Work, clock: FakeClock, margin_seconds: float
) -> None:
    """A machine whose clock is ahead by less may have let the record expire already."""
    call = make_idempotent(work, persistence_store=store, config=config(lease_margin_seconds=margin_seconds))
    last_ms = int((KEPT_SECONDS - margin_seconds) * 1000)

    with pytest.raises(IdempotencyRequestTooOldError):
        call(request(last_ms + 1))
    assert call(request(last_ms)) == "paid"


def test_a_request_runs_once_however_late_it_is_repeated(form: Form, store: CountingStore, work: Work, clock: FakeClock) -> None:
    """Before, a repetition after the result had expired ran again."""
    call = form.decorate(work, store, config())
    sent = request(0)
    answers: list[Any] = []
    for _ in range(150):
        try:
            answers.append(call(sent, LambdaContext()))
        except IdempotencyRequestTooOldError as error:
            answers.append(type(error))
        clock.advance(seconds=1)

    assert work.runs == [sent]
    assert answers == ["paid"] * 61 + [IdempotencyRequestTooOldError] * 89


def test_an_expired_record_that_was_not_deleted_yet_refuses_too_and_stays(
    store: CountingStore, work: Work, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    call = make_idempotent(work, persistence_store=store, config=config(), key_prefix=PREFIX)
    sent = request(0)
    call(sent)
    before = stored(7)
    clock.now_ms = (before.expiry_timestamp + 1) * 1000

    with pytest.raises(IdempotencyRequestTooOldError):
        call(sent)
    assert (stored(7), len(work.runs)) == (before, 1)


def test_a_new_request_for_the_same_key_runs_when_the_old_result_has_expired(
    store: CountingStore, work: Work, clock: FakeClock
) -> None:
    call = make_idempotent(work, persistence_store=store, config=config())
    call(request(0))
    clock.advance(seconds=KEPT_SECONDS + 1)

    call(request(0, clock.now_ms))

    assert len(work.runs) == 2


def test_a_result_that_is_there_is_replayed_however_old_the_request(form: Form, store: CountingStore, work: Work) -> None:
    events: list[Any] = []
    call = form.decorate(work, store, config(observers=[events.append]))
    call(request(0), LambdaContext())
    store.asked.clear()

    assert call(OLD, LambdaContext()) == "paid"
    assert (len(work.runs), store.asked) == (1, ["get"])
    assert isinstance(events[-1], Replayed)


def test_another_payload_of_an_old_request_is_a_mismatch(form: Form, store: CountingStore, work: Work) -> None:
    call = form.decorate(work, store, config(payload_validation_jmespath="amount"))
    call({**request(0), "amount": 1}, LambdaContext())

    with pytest.raises(IdempotencyValidationError) as raised:
        call({**OLD, "amount": 2}, LambdaContext())
    assert not isinstance(raised.value, IdempotencyRequestTooOldError)


def leave_unfinished(store: CountingStore, context: LambdaContext | None = None) -> None:
    """An attempt that says nothing more."""

    @idempotent(persistence_store=store, config=config(), key_prefix=PREFIX)
    def handler(_event: Any, _context: Any) -> None:
        raise Suspended

    with pytest.raises(Suspended):
        handler(request(0), context or LambdaContext(1_000))


def test_an_attempt_in_progress_refuses_an_old_request_as_any_other(form: Form, store: CountingStore, work: Work) -> None:
    leave_unfinished(store)
    call = form.decorate(work, store, config())

    with pytest.raises(IdempotencyAlreadyInProgressError):
        call(OLD, LambdaContext())
    assert work.runs == []


def test_an_orphan_is_taken_over_by_an_old_request_because_it_proves_that_it_never_completed(
    form: Form, store: CountingStore, work: Work, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    events: list[Any] = []
    leave_unfinished(store)
    clock.advance(ms=2_001)
    store.asked.clear()
    call = form.decorate(work, store, config(observers=[events.append]))

    assert call(OLD, LambdaContext()) == "paid"
    assert store.asked == ["get", "put", "update"]
    assert [type(event) for event in events] == [TakenOver, Claimed, Completed]
    assert (stored(7).stored_status, stored(7).generation) == ("COMPLETED", 2)


def test_an_orphan_that_nobody_may_take_over_is_not_taken_over_by_an_old_request(
    form: Form, store: CountingStore, work: Work, clock: FakeClock
) -> None:
    leave_unfinished(store)
    clock.advance(ms=2_001)
    call = form.decorate(work, store, config(orphan_takeover=False))

    with pytest.raises(IdempotencyOrphanedError):
        call(OLD, LambdaContext())
    assert work.runs == []


class VanishingStore(CountingStore):
    """What a read has shown is gone before anything else is asked."""

    def _get_record(self, idempotency_key: str) -> DataRecord:
        record = super()._get_record(idempotency_key)
        del self._records[idempotency_key]
        return record


def test_an_orphan_that_vanishes_between_the_read_and_the_claim_is_refused_and_nothing_is_written(
    form: Form, work: Work, clock: FakeClock
) -> None:
    store = VanishingStore(clock_ms=clock)
    leave_unfinished(store)
    clock.advance(ms=2_001)
    store.asked.clear()
    call = form.decorate(work, store, config())

    with pytest.raises(IdempotencyRequestTooOldError):
        call(OLD, LambdaContext())

    assert (work.runs, store.asked, store._records) == ([], ["get", "put", "get"], {})


def test_a_request_that_fails_when_it_is_too_old_has_had_its_last_run(store: CountingStore, work: Work, clock: FakeClock) -> None:
    """Its release deletes the only proof that it never completed."""
    leave_unfinished(store)
    clock.advance(ms=2_001)
    work.error = ValueError("broken")
    call = make_idempotent(work, persistence_store=store, config=config(), key_prefix=PREFIX)
    with pytest.raises(ValueError, match="broken"):
        call(OLD)

    with pytest.raises(IdempotencyRequestTooOldError):
        call(OLD)
    assert len(work.runs) == 1


@pytest.mark.parametrize("is_result", [True, False], ids=["a result", "a failure"])
def test_a_request_that_becomes_too_old_while_it_waits_gets_the_result_or_is_refused(
    store: CountingStore, work: Work, clock: FakeClock, is_result: bool
) -> None:
    def finish(_ms: float) -> None:
        clock.advance(ms=1_000)
        record = store._records[key_of(7)]
        if is_result:
            store.complete(record.replace(status="COMPLETED", response_data='"theirs"', expiry_timestamp=START_MS))
        else:
            store.release(record)

    leave_unfinished(store)
    store.sleep_ms = finish  # type: ignore[method-assign]
    call = make_idempotent(work, persistence_store=store, config=config(wait_for_in_progress_seconds=5), key_prefix=PREFIX)

    if is_result:
        assert call(request(FRESH_MS)) == "theirs"
    else:
        with pytest.raises(IdempotencyRequestTooOldError):
            call(request(FRESH_MS))
    assert work.runs == []


# Times that cannot be read


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"id": 7}, "no time of issue"),
        ({"id": 7, "attributes": {"SentTimestamp": None}}, "no time of issue"),
        ({"id": 7, "attributes": {"SentTimestamp": "secret"}}, "no readable time of issue (found str)"),
        ({"id": 7, "attributes": {"SentTimestamp": True}}, "no readable time of issue (found bool)"),
    ],
    ids=["missing", "null", "text", "bool"],
)
def test_a_request_without_a_readable_time_is_an_error_before_any_effect(
    form: Form, store: CountingStore, work: Work, payload: dict[str, Any], problem: str
) -> None:
    call = form.decorate(work, store, config())

    with pytest.raises(IdempotencyKeyError) as raised:
        call(payload, LambdaContext())

    assert str(raised.value).startswith(f"The payload has {problem} at 'attributes.SentTimestamp': ")
    assert (work.runs, store.asked) == ([], [])


def test_an_expression_that_fails_is_a_failed_claim_before_any_effect(form: Form, store: CountingStore, work: Work) -> None:
    call = form.decorate(work, store, config(issued_at_jmespath="powertools_json(body).time"))

    with pytest.raises(
        IdempotencyPersistenceLayerError, match="^Failed to save in progress record to idempotency store"
    ) as raised:
        call({"id": 7, "body": "{secret"}, LambdaContext())

    assert "The time of issue could not be read. The function was not run;" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert (work.runs, store.asked) == ([], [])


def test_a_call_without_a_key_has_no_record_and_needs_no_time(form: Form, store: CountingStore, work: Work) -> None:
    call = form.decorate(work, store, config())

    with pytest.warns(UserWarning, match="No idempotency key value found"):
        assert call({"attributes": {}}, LambdaContext()) == "paid"


@pytest.mark.parametrize("time", [START_MS + 3_600_000, START_MS // 1000 + 3_600, "2060-01-01T00:00:00Z"])
def test_a_time_in_the_future_is_that_of_a_new_request(form: Form, store: CountingStore, work: Work, time: Any) -> None:
    call = form.decorate(work, store, config(issued_at_jmespath="time"))

    assert call({"id": 7, "time": time}, LambdaContext()) == "paid"


# The local cache


def test_a_remembered_result_is_replayed_to_an_old_request_without_the_store(
    form: Form, store: CountingStore, work: Work
) -> None:
    call = form.decorate(work, store, config(use_local_cache=True))
    call(request(0), LambdaContext())
    store.asked.clear()

    assert call(OLD, LambdaContext()) == "paid"
    assert store.asked == []


def test_a_remembered_result_that_has_expired_gives_way_to_what_the_store_has(
    form: Form, store: CountingStore, work: Work, clock: FakeClock
) -> None:
    """Another process has run a later request for the key."""
    call, elsewhere = form.decorate(work, store, config(use_local_cache=True)), form.decorate(work, store, config())
    sent = request(0)
    call(sent, LambdaContext())
    clock.advance(seconds=KEPT_SECONDS + 1)
    with pytest.raises(IdempotencyRequestTooOldError):
        call(sent, LambdaContext())
    work.result = "later"
    elsewhere(request(0, clock.now_ms), LambdaContext())
    store.asked.clear()

    assert call(sent, LambdaContext()) == "later"
    assert (store.asked, len(work.runs)) == (["get"], 2)


# Durable executions


def durable(store: CountingStore, steps: list[str]) -> Any:
    @idempotent(persistence_store=store, config=config(lease_seconds=3_600), key_prefix=PREFIX)
    def handler(_event: Any, context: Any) -> str:
        steps.append(f"invocation with {len(context.state.operations)}")
        if len(context.state.operations) == 1:
            raise Suspended
        return "done"

    return handler


@pytest.mark.parametrize("is_there", [True, False], ids=["claim there", "claim gone"])
def test_a_replay_of_a_durable_execution_goes_on_however_old_its_request_is_by_then(
    store: CountingStore, clock: FakeClock, is_there: bool
) -> None:
    steps: list[str] = []
    handler = durable(store, steps)
    sent = request(0)
    with pytest.raises(Suspended):
        handler(sent, first())
    clock.advance(seconds=3_000)
    if not is_there:
        store._records.clear()

    assert handler(sent, continued()) == "done"
    assert len(steps) == 2


def test_a_durable_execution_does_not_begin_with_a_request_that_is_too_old(store: CountingStore) -> None:
    steps: list[str] = []

    with pytest.raises(IdempotencyRequestTooOldError):
        durable(store, steps)(OLD, first())
    assert (steps, store._records) == ([], {})


# Stores of users


@pytest.mark.parametrize("kind", [DictStore, AsyncDictStore])
def test_a_store_of_four_hooks_replays_to_an_old_request_and_refuses_it_without_a_result(
    kind: Any, work: Work, clock: FakeClock
) -> None:
    """It does not know `fresh_until_ms`, and might create the record of an orphan that has vanished: so nothing is claimed."""
    store = kind(clock)
    items = getattr(store, "inner", store).items
    call = Form("make_idempotent", is_async=kind is AsyncDictStore).decorate(work, store, config())
    with pytest.raises(IdempotencyRequestTooOldError):
        call(OLD)
    assert items == {}

    call(request(0))
    assert (call(OLD), len(work.runs)) == ("paid", 1)

    items[key_of(7)] |= {"status": "INPROGRESS", "in_progress_expiration": clock.now_ms}
    with pytest.raises(IdempotencyAlreadyInProgressError):
        call(OLD)
    clock.advance(ms=1)
    before = dict(items[key_of(7)])
    with pytest.raises(IdempotencyRequestTooOldError):
        call(OLD)
    assert items == {key_of(7): before}
    assert call(request(0)) == "paid"
