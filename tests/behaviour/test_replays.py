"""The response hook and the local cache: what else happens to a stored result on its way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Form, Work, key_of

from idempotency import DataRecord, IdempotencyConfig, IdempotencyResultNotKeptError, IdempotencyValidationError

if TYPE_CHECKING:
    from doubles import FakeClock

ORDER = {"id": 7, "amount": 10}


class Hook:
    """Marks a replay, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, DataRecord]] = []

    def __call__(self, response: Any, idempotent_data: DataRecord) -> Any:
        self.calls.append((response, idempotent_data))
        return {**response, "replayed": True}


def test_a_hook_sees_replays_only_and_its_answer_is_the_callers(form: Form, store: CountingStore, clock: FakeClock) -> None:
    hook = Hook()
    call = form.decorate(Work(result={"paid": 1}), store, IdempotencyConfig("id", response_hook=hook))

    assert call(ORDER) == {"paid": 1}
    assert hook.calls == []
    assert call(ORDER) == {"paid": 1, "replayed": True}
    ((response, record),) = hook.calls
    assert response == {"paid": 1}
    assert (record.key, record.stored_status) == (key_of(7), "COMPLETED")
    assert record.expiry_timestamp == clock.now_ms // 1000 + 3600
    assert record.response_json_as_dict() == {"paid": 1}


def test_a_hook_is_called_for_a_result_of_none(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store, IdempotencyConfig(response_hook=lambda response, record: ["none", response]))
    call(ORDER)

    assert call(ORDER) == ["none", None]


def test_a_hook_that_returns_none_is_warned_of_once(form: Form, store: CountingStore) -> None:
    seen: list[Any] = []
    call = form.decorate(Work(result=1), store, IdempotencyConfig(response_hook=lambda response, record: seen.append(response)))
    call(ORDER)

    with pytest.warns(UserWarning, match="^The response_hook of .* returned None, so this replay returns None") as warned:
        assert call(ORDER) is None
    assert call(ORDER) is None

    assert len(warned) == 1
    assert seen == [1, 1]


def test_a_hook_may_return_none_for_a_result_of_none(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store, IdempotencyConfig(response_hook=lambda response, record: response))
    call(ORDER)

    assert call(ORDER) is None


def test_what_a_hook_raises_reaches_the_caller_and_spares_the_record(form: Form, store: CountingStore) -> None:
    def stale(response: Any, idempotent_data: DataRecord) -> Any:
        raise LookupError("stale")

    work = Work(result=1)
    call = form.decorate(work, store, IdempotencyConfig(response_hook=stale))
    call(ORDER)

    for _ in range(2):
        with pytest.raises(LookupError, match="^stale$"):
            call(ORDER)

    assert work.runs == [ORDER]


def test_what_a_hook_does_to_a_response_does_not_reach_the_next_replay(form: Form, store: CountingStore) -> None:
    def append(response: Any, idempotent_data: DataRecord) -> Any:
        response.append("x")
        return response

    call = form.decorate(Work(result=[1]), store, IdempotencyConfig(response_hook=append, use_local_cache=True))
    call(ORDER)

    assert [call(ORDER), call(ORDER)] == [[1, "x"], [1, "x"]]


def test_a_result_in_the_local_cache_is_replayed_without_asking_the_store(form: Form, store: CountingStore) -> None:
    work = Work(result={"items": [1]})
    call = form.decorate(work, store, IdempotencyConfig(use_local_cache=True))
    call(ORDER)
    store.asked.clear()

    assert call(ORDER) == {"items": [1]}
    assert (store.asked, work.runs) == ([], [ORDER])


def test_there_is_no_local_cache_by_default(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store)
    call(ORDER)
    store.asked.clear()
    call(ORDER)

    assert store.asked == ["put"]


def test_a_result_leaves_the_local_cache_when_it_expires(form: Form, store: CountingStore, clock: FakeClock) -> None:
    work = Work(result=1)
    call = form.decorate(work, store, IdempotencyConfig(use_local_cache=True, expires_after_seconds=10))
    call(ORDER)
    store.asked.clear()

    clock.advance(ms=10_749)
    call(ORDER)
    assert (store.asked, len(work.runs)) == ([], 1)
    clock.advance(ms=1)
    call(ORDER)

    assert len(work.runs) == 2


def test_the_payload_is_validated_against_the_local_cache_too(form: Form, store: CountingStore) -> None:
    config = IdempotencyConfig("id", payload_validation_jmespath="amount", use_local_cache=True)
    call = form.decorate(Work(result=1), store, config)
    call(ORDER)
    store.asked.clear()

    with pytest.raises(IdempotencyValidationError):
        call({"id": 7, "amount": 11})

    assert call(ORDER) == 1
    assert store.asked == []


def test_a_hook_sees_replays_from_the_local_cache(form: Form, store: CountingStore) -> None:
    hook = Hook()
    call = form.decorate(Work(result={}), store, IdempotencyConfig(use_local_cache=True, response_hook=hook))
    call(ORDER)

    assert call(ORDER) == {"replayed": True}
    assert len(hook.calls) == 1


def test_a_replay_from_the_store_is_remembered(form: Form, store: CountingStore) -> None:
    form.decorate(Work(result=1), store)(ORDER)
    call = form.decorate(Work(), store, IdempotencyConfig(use_local_cache=True))
    call(ORDER)
    store.asked.clear()

    assert call(ORDER) == 1
    assert store.asked == []


def test_the_least_recently_used_result_is_forgotten_first(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store, IdempotencyConfig(use_local_cache=True, local_cache_max_items=2))
    call({"id": 1})
    call({"id": 2})
    call({"id": 1})
    call({"id": 3})
    store.asked.clear()

    call({"id": 1})
    call({"id": 3})
    assert store.asked == []
    call({"id": 2})
    assert store.asked == ["put"]


def test_an_attempt_in_progress_is_never_remembered(form: Form, store: CountingStore, clock: FakeClock) -> None:
    """Another process may finish it unseen."""
    theirs = store.claim(DataRecord(key_of(7), "INPROGRESS", 2**40, clock.now_ms + 1_000, owner_token="another", generation=1))
    call = form.decorate(Work(), store, IdempotencyConfig("id", use_local_cache=True))
    with pytest.raises(Exception, match="^Execution already in progress"):
        call(ORDER)
    store.complete(theirs.replace(status="COMPLETED", response_data='"theirs"'))

    assert call(ORDER) == "theirs"


def test_a_failed_call_is_not_remembered(form: Form, store: CountingStore) -> None:
    work = Work(result="paid", error=ConnectionError())
    call = form.decorate(work, store, IdempotencyConfig(use_local_cache=True))
    with pytest.raises(ConnectionError):
        call(ORDER)
    work.error = None

    assert call(ORDER) == "paid"


def test_a_result_that_was_not_kept_stays_refused_with_a_local_cache(form: Form, store: CountingStore) -> None:
    work = Work(result=object())
    call = form.decorate(work, store, IdempotencyConfig(use_local_cache=True))

    for _ in range(3):
        with pytest.raises(IdempotencyResultNotKeptError):
            call(ORDER)

    assert len(work.runs) == 1


def test_each_function_has_a_local_cache_of_its_own(form: Form, store: CountingStore) -> None:
    config = IdempotencyConfig(use_local_cache=True)
    one = form.decorate(Work(result="one"), store, config, key_prefix="one")
    two = form.decorate(Work(result="two"), store, config, key_prefix="two")

    assert [one(ORDER), two(ORDER), one(ORDER), two(ORDER)] == ["one", "two", "one", "two"]
