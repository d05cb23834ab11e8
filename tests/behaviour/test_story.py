"""The story of an idempotent call, as every decorator tells it, sync and async."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import FORMS, PREFIX, CountingStore, Form, Work, key_of
from doubles import LambdaContext

from idempotency import (
    DataRecord,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyLeaseLostError,
    IdempotencyOrphanedError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    Replayed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

ORDER = {"id": 7, "amount": 10}
BY_ID = IdempotencyConfig(event_key_jmespath="id")


def held_by_another(store: CountingStore, clock: FakeClock, *, lease_ms: int = 5_000, payload_hash: str = "") -> DataRecord:
    """Another attempt's claim of ORDER's key."""
    granted = store.claim(
        DataRecord(
            key_of(7),
            "INPROGRESS",
            clock.now_ms // 1000 + 3600,
            clock.now_ms + lease_ms,
            payload_hash=payload_hash,
            owner_token="another",
            generation=1,
            holder="request-9",
        )
    )
    store.asked.clear()
    return granted


def test_the_first_call_returns_the_very_object_of_the_function(form: Form, store: CountingStore) -> None:
    work = Work(result={"items": [1, 2]})

    assert form.decorate(work, store)(ORDER) is work.result


def test_a_retry_gets_the_stored_result_and_the_function_runs_once(form: Form, store: CountingStore) -> None:
    work = Work(result={"items": [1, 2], "3": None})
    call = form.decorate(work, store)
    call(ORDER)

    assert call(ORDER) == {"items": [1, 2], "3": None}
    assert work.runs == [ORDER]


def test_another_payload_is_another_request(form: Form, store: CountingStore) -> None:
    work = Work(result=1)
    call = form.decorate(work, store, BY_ID)
    call(ORDER)
    call({"id": 8})

    assert work.runs == [ORDER, {"id": 8}]


@pytest.mark.parametrize("result", [{}, [], "", 0, 0.0, False, None], ids=repr)
def test_an_empty_result_replays_as_itself(form: Form, store: CountingStore, result: Any) -> None:
    """Powertools replays each of these as None."""
    work = Work(result=result)
    call = form.decorate(work, store)
    call(ORDER)

    replayed = call(ORDER)

    assert (replayed, type(replayed)) == (result, type(result))
    assert len(work.runs) == 1


def test_a_failed_call_frees_the_key_for_the_retry(form: Form, store: CountingStore, stored: Callable[[Any], Any]) -> None:
    work = Work(result="paid", error=ConnectionError("bank"))
    call = form.decorate(work, store)
    with pytest.raises(ConnectionError, match="^bank$"):
        call(ORDER)
    assert stored(ORDER) is None

    work.error = None

    assert call(ORDER) == "paid"


def test_a_call_is_refused_while_another_attempt_runs(form: Form, store: CountingStore, clock: FakeClock) -> None:
    existing = held_by_another(store, clock)
    work = Work()

    with pytest.raises(IdempotencyAlreadyInProgressError) as refused:
        form.decorate(work, store, BY_ID)(ORDER)

    assert str(refused.value) == (
        f"Execution already in progress with idempotency key: id={key_of(7)}. Held by request request-9. The function was not "
        "run; retry the call to get the result of the attempt in progress."
    )
    assert refused.value.record == existing
    assert work.runs == []


def test_a_key_can_be_taken_over_the_millisecond_after_the_lease(form: Form, store: CountingStore, clock: FakeClock) -> None:
    held_by_another(store, clock, lease_ms=5_000)
    work = Work(result="mine")
    call = form.decorate(work, store, BY_ID)

    clock.advance(ms=5_000)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        call(ORDER)
    clock.advance(ms=1)

    assert call(ORDER) == "mine"


def test_an_orphan_is_not_run_again_where_that_is_forbidden(form: Form, store: CountingStore, clock: FakeClock) -> None:
    held_by_another(store, clock, lease_ms=5_000)
    clock.advance(ms=5_001)
    work = Work()

    with pytest.raises(IdempotencyOrphanedError):
        form.decorate(work, store, IdempotencyConfig("id", orphan_takeover=False))(ORDER)

    assert work.runs == []


def test_a_result_is_replayed_until_its_expiry_and_not_beyond(form: Form, store: CountingStore, clock: FakeClock) -> None:
    work = Work(result=1)
    call = form.decorate(work, store, IdempotencyConfig(expires_after_seconds=10))
    call(ORDER)

    clock.advance(ms=10_749)  # the last millisecond of the second in which it expires
    call(ORDER)
    assert len(work.runs) == 1
    clock.advance(ms=1)
    call(ORDER)

    assert len(work.runs) == 2


def test_the_record_of_a_result_says_when_a_table_may_delete_it(
    form: Form, store: CountingStore, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    form.decorate(Work(result={"b": 1, "a": "é"}), store, IdempotencyConfig(expires_after_seconds=10))(ORDER)

    record = stored(ORDER)

    assert record.stored_status == "COMPLETED"
    assert record.expiry_timestamp == clock.now_ms // 1000 + 10
    assert record.response_data == json.dumps({"a": "é", "b": 1})


VALIDATED = IdempotencyConfig(event_key_jmespath="id", payload_validation_jmespath="amount")


def test_another_payload_under_a_completed_key_is_refused(form: Form, store: CountingStore) -> None:
    work = Work(result="paid")
    call = form.decorate(work, store, VALIDATED)
    call(ORDER)

    with pytest.raises(
        IdempotencyValidationError, match="^Payload does not match stored record for this event key[.] Idempotency key: "
    ):
        call({"id": 7, "amount": 11})

    assert call({"id": 7, "amount": 10, "trace": "x"}) == "paid"
    assert len(work.runs) == 1


def test_another_payload_under_a_running_key_is_refused_as_such(form: Form, store: CountingStore, clock: FakeClock) -> None:
    """The caller's mistake is reported first: waiting for the other attempt would not help."""
    held_by_another(store, clock, payload_hash="of-another-amount")

    with pytest.raises(IdempotencyValidationError):
        form.decorate(Work(), store, VALIDATED)(ORDER)


def test_a_record_without_a_payload_hash_does_not_match(form: Form, store: CountingStore) -> None:
    form.decorate(Work(result=1), store, BY_ID)(ORDER)

    with pytest.raises(IdempotencyValidationError):
        form.decorate(Work(), store, VALIDATED)(ORDER)


def test_a_result_that_cannot_be_stored_is_said_so_and_never_run_again(form: Form, store: CountingStore) -> None:
    work = Work(result=object())
    call = form.decorate(work, store)

    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError, match="its result could not be stored; it will not be run again"):
            call(ORDER)

    assert len(work.runs) == 1


def test_a_payload_that_cannot_be_a_key_fails_before_anything_happens(form: Form, store: CountingStore) -> None:
    work = Work()

    with pytest.raises(
        IdempotencyPersistenceLayerError, match="^Failed to save in progress record to idempotency store"
    ) as failed:
        form.decorate(work, store)({"id": b"bytes"})

    assert isinstance(failed.value.__cause__, TypeError)
    assert (work.runs, store.asked) == ([], [])


def test_a_function_that_changes_its_payload_keeps_its_key(form: Form, store: CountingStore) -> None:
    runs: list[int] = []

    def consume(event: dict[str, Any]) -> str:
        runs.append(event.pop("id"))
        return "done"

    call = form.decorate(consume, store)

    assert [call({"id": 7}), call({"id": 7})] == ["done", "done"]
    assert runs == [7]


def test_the_result_of_a_call_outlives_the_mutation_of_what_it_returned(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(result={"items": [1]}), store)
    call(ORDER)["items"].append(2)

    assert call(ORDER) == {"items": [1]}


def test_the_lease_of_a_call_without_a_deadline_is_the_configured_one_and_its_margin(
    form: Form, store: CountingStore, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    seen: list[int] = []
    config = IdempotencyConfig(lease_seconds=90, lease_margin_seconds=2.5)
    form.decorate(lambda event: seen.append(stored(event).in_progress_expiry_timestamp), store, config)(ORDER)

    assert seen == [clock.now_ms + 92_500]


@pytest.mark.parametrize("form", [Form("idempotent", False), Form("make_idempotent", False), Form("idempotent", True)], ids=str)
@pytest.mark.parametrize("remaining_ms", [0, 1, 30_000])
@pytest.mark.parametrize("margin_seconds", [0, 1, 2.5])
def test_the_lease_of_an_invocation_ends_a_margin_after_its_deadline(
    form: Form,
    store: CountingStore,
    clock: FakeClock,
    stored: Callable[[Any], Any],
    remaining_ms: int,
    margin_seconds: float,
) -> None:
    """0 ms are left when the sandbox is about to be stopped: an answer, not an absence (Powertools issue 4759)."""
    seen: list[DataRecord] = []
    call = form.decorate(lambda event: seen.append(stored(event)), store, IdempotencyConfig(lease_margin_seconds=margin_seconds))
    call(ORDER, LambdaContext(remaining_ms, aws_request_id="request-5"))

    assert seen[0].in_progress_expiry_timestamp == clock.now_ms + remaining_ms + int(margin_seconds * 1000)
    assert seen[0].holder == "request-5"


def test_the_expiry_of_a_claim_is_never_before_the_end_of_its_lease(
    form: Form, store: CountingStore, stored: Callable[[Any], Any]
) -> None:
    """A table's TTL deletes what has expired and asks for no lease."""
    seen: list[DataRecord] = []
    config = IdempotencyConfig(lease_seconds=90, expires_after_seconds=1)
    form.decorate(lambda event: seen.append(stored(event)), store, config)(ORDER)

    assert seen[0].expiry_timestamp * 1000 >= seen[0].in_progress_expiry_timestamp


def test_a_key_is_the_prefix_and_the_digest_of_what_was_selected(form: Form, store: CountingStore) -> None:
    form.decorate(Work(), store, BY_ID)(ORDER)

    assert list(store._records) == [key_of(7)]
    assert key_of(7).startswith(f"{PREFIX}#")


def test_without_a_prefix_the_key_names_the_lambda_function_at_the_time_of_the_call(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = form.decorate(Work(), store, BY_ID, key_prefix=None)
    call(ORDER)
    for name in ("payments", "refunds"):
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", name)
        call(ORDER)
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME")
    call(ORDER)

    name = f"{call.function.__module__}.{call.function.__qualname__}"
    digest = key_of(7).partition("#")[2]
    assert sorted(store._records) == sorted(f"{prefix}.{name}#{digest}" for prefix in ("test-func", "payments", "refunds"))


def test_two_functions_of_one_store_keep_their_own_configuration(form: Form, store: CountingStore) -> None:
    """Powertools used the first function's configuration for both."""
    paid, sent = Work(result="paid"), Work(result="sent")
    pay = form.decorate(paid, store, IdempotencyConfig("order"), key_prefix="pay")
    send = form.decorate(sent, store, IdempotencyConfig("parcel"), key_prefix="send")

    event = {"order": 1, "parcel": 1}
    other = {"order": 1, "parcel": 2}

    assert [pay(event), send(event), pay(other), send(other)] == ["paid", "sent", "paid", "sent"]
    assert (len(paid.runs), len(sent.runs)) == (1, 2)


def test_observers_hear_of_a_run_and_of_its_replay(form: Form, store: CountingStore) -> None:
    heard: list[str] = []

    def observer(event: object) -> None:
        heard.append(type(event).__name__)

    call = form.decorate(Work(), store, IdempotencyConfig(observers=[observer]))
    call(ORDER)
    call(ORDER)

    assert heard == ["Claimed", "Completed", "Replayed"]


@pytest.mark.parametrize("form", [form for form in FORMS if not form.is_async], ids=str)
def test_a_call_can_wait_for_the_result_of_another_attempt(form: Form, store: CountingStore, clock: FakeClock) -> None:
    theirs = held_by_another(store, clock, lease_ms=60_000)
    pauses: list[float] = []

    def finish_meanwhile(ms: float) -> None:
        pauses.append(ms)
        clock.advance(ms=round(ms))
        if len(pauses) == 2:
            store.complete(theirs.replace(status="COMPLETED", response_data='"theirs"'))

    store.sleep_ms = finish_meanwhile
    work = Work()

    assert form.decorate(work, store, IdempotencyConfig("id", wait_for_in_progress_seconds=5))(ORDER) == "theirs"
    assert (len(pauses), work.runs) == (2, [])


WITH_CONTEXT = [form for form in FORMS if form.decorator != "idempotent_function"]


def overtaken(store: CountingStore, clock: FakeClock, then: Callable[[DataRecord], None]) -> Callable[[Any], str]:
    """A function that outlives its lease of 2 s; *then* is what the attempt does that takes its key over."""

    def work(event: Any) -> str:
        clock.advance(ms=2_001)
        then(held_by_another(store, clock))
        return "mine"

    return work


@pytest.mark.parametrize("form", WITH_CONTEXT, ids=str)
def test_an_attempt_that_was_overtaken_gives_its_caller_the_winners_result(
    form: Form, store: CountingStore, clock: FakeClock
) -> None:
    """So that every caller of a key gets one and the same result."""

    def then(theirs: DataRecord) -> None:
        store.complete(theirs.replace(status="COMPLETED", response_data='"theirs"'))

    call = form.decorate(overtaken(store, clock, then), store, BY_ID)

    outcome = call.outcome(ORDER, LambdaContext(1_000))

    assert isinstance(outcome, Replayed)
    assert (outcome.value, outcome.record.owner_token) == ("theirs", "another")


@pytest.mark.parametrize("form", WITH_CONTEXT, ids=str)
@pytest.mark.parametrize("is_kept", [True, False])
def test_an_attempt_that_was_overtaken_says_so_where_the_winner_has_no_result(
    form: Form, store: CountingStore, clock: FakeClock, stored: Callable[[Any], Any], is_kept: bool
) -> None:
    def then(theirs: DataRecord) -> None:
        if not is_kept:
            store.complete(theirs.replace(status="COMPLETED", result_kept=False))

    call = form.decorate(overtaken(store, clock, then), store, BY_ID)

    with pytest.raises(IdempotencyLeaseLostError, match="its lease had ended and another attempt owns idempotency key") as lost:
        call(ORDER, LambdaContext(1_000))

    assert lost.value.record == stored(7)
    assert (stored(7).owner_token, stored(7).generation) == ("another", 2)


@pytest.mark.parametrize("form", WITH_CONTEXT, ids=str)
def test_a_late_failure_is_the_callers_and_leaves_the_winners_record(
    form: Form, store: CountingStore, clock: FakeClock, stored: Callable[[Any], Any]
) -> None:
    """Powertools deleted it, and the function ran a third time."""

    def then(theirs: DataRecord) -> None:
        raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="^mine$"):
        form.decorate(overtaken(store, clock, then), store, BY_ID)(ORDER, LambdaContext(1_000))

    assert (stored(7).owner_token, stored(7).stored_status) == ("another", "INPROGRESS")
