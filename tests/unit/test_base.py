"""The verbs over the hooks, for sync and async stores alike."""

from __future__ import annotations

import asyncio
import copy
import hashlib
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS, FakeClock

from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer, CallSettings
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyInvalidStatusError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyKeyError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyTransactionCanceledError,
    IdempotencyUnreachableError,
    IdempotencyValidationError,
)
from persistence.memory import InMemoryPersistenceLayer
from persistence.scope import CallScope
from persistence.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

EXPIRY_S = START_MS // 1000 + 60
EXPIRED_MS = (EXPIRY_S + 1) * 1000
OFFER = DataRecord("fn#1", "INPROGRESS", EXPIRY_S, START_MS + 1_000, owner_token="a", generation=1)
HELD = OFFER.replace(owner_token="b")
DONE = OFFER.replace(status="COMPLETED", response_data='"result"')

NOT_RUN = "The function was not run; retry the call."
#: verb -> its argument, what it says when its hook fails, and what the note adds.
VERBS: dict[str, tuple[Any, str, str]] = {
    "claim": (OFFER, "Failed to save in progress record to idempotency store", NOT_RUN),
    "fetch": ("fn#1", "Failed to get record from idempotency store", NOT_RUN),
    "complete": (
        DONE,
        "Failed to update record state to success in idempotency store",
        "The function ran, but its result is not known to be stored; once its lease has ended, a retry may run it again.",
    ),
    "release": (
        OFFER,
        "Failed to delete record from idempotency store",
        "The key stays claimed until the lease ends; a retry before that is refused.",
    ),
    "renew": (
        OFFER,
        "Failed to renew the lease in the idempotency store",
        "The renewal is tried again before the lease ends.",
    ),
}
HOOKS = {
    "claim": "_put_record",
    "fetch": "_get_record",
    "complete": "_update_record",
    "release": "_delete_record",
    "renew": "_update_record",
}


class Scripted:
    """What the hooks of a custom store do, and with what they were called."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.clock_ms: Callable[[], int] = FakeClock()

    def play(self, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append((hook, args, kwargs))
        answer = self.answers.get(hook)
        if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
            raise answer
        return answer


class SyncStore(Scripted, BasePersistenceLayer):
    def _put_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_put_record", args, kwargs)

    def _get_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_get_record", args, kwargs)

    def _update_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_update_record", args, kwargs)

    def _delete_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_delete_record", args, kwargs)


class AsyncStore(Scripted, AsyncBasePersistenceLayer):
    async def _put_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_put_record", args, kwargs)

    async def _get_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_get_record", args, kwargs)

    async def _update_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_update_record", args, kwargs)

    async def _delete_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_delete_record", args, kwargs)


KINDS: list[Any] = [pytest.param(SyncStore, id="sync"), pytest.param(AsyncStore, id="async")]


def use(store: Any, verb: str, argument: Any = None) -> Any:
    """Call the verb as the drivers do, and wait for it."""
    answer = getattr(store, verb)(VERBS[verb][0] if argument is None else argument)
    return asyncio.run(answer) if isinstance(store, AsyncBasePersistenceLayer) else answer


# The hooks are called as documented


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("verb", "hook", "keywords"),
    [
        ("claim", "_put_record", {"data_record": OFFER}),
        ("fetch", "_get_record", {"idempotency_key": "fn#1"}),
        ("complete", "_update_record", {"data_record": DONE}),
        ("release", "_delete_record", {"data_record": OFFER}),
        ("renew", "_update_record", {"data_record": OFFER}),
    ],
)
def test_each_verb_calls_one_hook_once_with_just_the_documented_keyword(
    kind: Any, verb: str, hook: str, keywords: dict[str, Any]
) -> None:
    store = kind()

    use(store, verb)

    assert store.calls == [(hook, (), keywords)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_without_all_four_hooks_cannot_be_made(kind: Any) -> None:
    base = BasePersistenceLayer if kind is SyncStore else AsyncBasePersistenceLayer
    incomplete = type("Incomplete", (base,), {"_put_record": lambda *_: None})

    with pytest.raises(TypeError, match="abstract"):
        incomplete()


# Large results


class PackingStore(SyncStore):
    def _load_result(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_load_result", args, kwargs)


class AsyncPackingStore(AsyncStore):
    async def _load_result(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_load_result", args, kwargs)


PACKED = DONE.replace(response_data="", packed_result=b"packed")
PACKING_KINDS: list[Any] = [pytest.param(PackingStore, id="sync"), pytest.param(AsyncPackingStore, id="async")]


@pytest.mark.parametrize("kind", PACKING_KINDS)
def test_a_packed_result_is_loaded_by_its_hook(kind: Any) -> None:
    store = kind(_load_result='"result"')

    assert use(store, "load", PACKED) == DONE
    assert store.calls == [("_load_result", (), {"data_record": PACKED})]


@pytest.mark.parametrize("kind", PACKING_KINDS)
def test_a_result_that_is_not_packed_needs_no_hook(kind: Any) -> None:
    store = kind()

    assert use(store, "load", DONE) is DONE
    assert store.calls == []


@pytest.mark.parametrize("kind", PACKING_KINDS)
def test_a_result_that_is_gone_is_said_so_as_it_is(kind: Any) -> None:
    gone = IdempotencyResultNotKeptError("gone")

    with pytest.raises(IdempotencyResultNotKeptError) as caught:
        use(kind(_load_result=gone), "load", PACKED)
    assert caught.value is gone


@pytest.mark.parametrize("kind", PACKING_KINDS)
def test_a_result_that_cannot_be_loaded_now_is_a_failure_that_says_that_the_function_ran(kind: Any) -> None:
    trouble = OSError("unreachable")

    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        use(kind(_load_result=trouble), "load", PACKED)
    assert str(caught.value) == (
        "Failed to load the stored result - (unreachable). Idempotency key: fn#1. "
        "The function ran before and was not run again; retry the call."
    )
    assert caught.value.__cause__ is trouble


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_packs_nothing_cannot_load_what_another_has_packed(kind: Any) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to load the stored result - .*Store packs no results"):
        use(kind(), "load", PACKED)


# Transactions


class CommittingStore(SyncStore):
    def _begin_transaction(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_begin_transaction", args, kwargs)

    def _commit_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_commit_record", args, kwargs)


class AsyncCommittingStore(AsyncStore):
    def _begin_transaction(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_begin_transaction", args, kwargs)

    async def _commit_record(self, *args: Any, **kwargs: Any) -> Any:
        return self.play("_commit_record", args, kwargs)


COMMITTING_KINDS: list[Any] = [pytest.param(CommittingStore, id="sync"), pytest.param(AsyncCommittingStore, id="async")]
WITH_AND_WITHOUT_RECORD = pytest.mark.parametrize("record", [DONE, None], ids=["with its record", "without a record"])
#: Its key is not the record's, to show which of them is told.
TX = Transaction(idempotency_key="fn#tx", own_table="t", own_key={"id": {"S": "fn#tx"}}, region="")


def commit(store: Any, record: DataRecord | None) -> Any:
    answer = store.commit(record, TX)
    return asyncio.run(answer) if isinstance(store, AsyncBasePersistenceLayer) else answer


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
def test_a_transaction_is_begun_by_its_hook_at_once(kind: Any) -> None:
    """Even of an async store: nothing is sent."""
    store = kind(_begin_transaction=TX)

    assert store.begin("fn#1") is TX
    assert store.calls == [("_begin_transaction", ("fn#1",), {})]


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
def test_a_hook_that_cannot_begin_a_transaction_says_why_as_it_is(kind: Any) -> None:
    why = IdempotencyPersistenceConfigError("strong")

    with pytest.raises(IdempotencyPersistenceConfigError) as raised:
        kind(_begin_transaction=why).begin("fn#1")
    assert raised.value is why


@pytest.mark.parametrize("kind", [*KINDS, pytest.param(InMemoryPersistenceLayer, id="memory")])
def test_a_store_without_transactions_says_so_and_names_itself_and_one_that_has_them(kind: Any) -> None:
    store = kind()

    with pytest.raises(IdempotencyPersistenceConfigError) as raised:
        store.begin("fn#1")
    assert str(raised.value) == (
        f"{kind.__name__} has no transactions; DynamoDBPersistenceLayer commits a record together with other writes"
    )


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
@pytest.mark.parametrize("answer", [None, {"ConsumedCapacity": []}])
@WITH_AND_WITHOUT_RECORD
def test_a_commit_calls_its_hook_once_with_the_documented_keywords_and_returns_nothing(
    kind: Any, answer: object, record: DataRecord | None
) -> None:
    store = kind(_commit_record=answer)

    assert commit(store, record) is None
    assert store.calls == [("_commit_record", (), {"data_record": record, "transaction": TX})]


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
@pytest.mark.parametrize(
    "answer", [IdempotencyLeaseLostError("m", record=HELD), IdempotencyTransactionCanceledError("m")], ids=repr
)
@WITH_AND_WITHOUT_RECORD
def test_a_commits_answer_to_the_library_is_passed_on_as_it_is(kind: Any, answer: Exception, record: DataRecord | None) -> None:
    store = kind(_commit_record=answer)

    with pytest.raises(type(answer)) as raised:
        commit(store, record)
    assert raised.value is answer
    assert not hasattr(answer, "__notes__")


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionError("reset"),
        KeyError("x"),
        IdempotencyPersistenceLayerError("m", "d"),
        IdempotencyItemAlreadyExistsError("m"),
        IdempotencyResultNotKeptError("m"),
    ],
    ids=repr,
)
@WITH_AND_WITHOUT_RECORD
def test_a_failed_commit_is_translated_once_with_its_cause_and_the_key(
    kind: Any, trouble: Exception, record: DataRecord | None
) -> None:
    store = kind(_commit_record=trouble)

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        commit(store, record)
    error = raised.value
    assert type(error) is IdempotencyPersistenceLayerError
    assert error.args == ("Failed to commit the transaction in the idempotency store", trouble)
    assert error.__cause__ is trouble
    assert "). Idempotency key: fn#tx. " in str(error)
    assert (error.idempotency_key, error.function_ran) == ("fn#tx", True)


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
def test_who_gets_a_failed_commit_is_told_that_the_record_knows_what_became_of_it(kind: Any) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        commit(kind(_commit_record=ConnectionError("reset")), DONE)
    assert str(raised.value).endswith(
        " - (reset). Idempotency key: fn#tx. The function ran. Retry the call: it returns the stored result if the transaction "
        "was written, and runs the function again if not."
    )


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
def test_who_gets_a_failed_commit_without_a_record_is_told_that_nothing_knows_what_became_of_it(kind: Any) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        commit(kind(_commit_record=ConnectionError("reset")), None)
    assert str(raised.value).endswith(
        " - (reset). Idempotency key: fn#tx. The function ran. The call has no record: whether its transaction was written is "
        "not known; a retry would write it again."
    )
    assert not raised.value.is_retryable


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
def test_what_the_store_knows_of_a_failed_commit_is_said(kind: Any) -> None:
    store = kind(_commit_record=ConnectionError("reset"))
    store._diagnose = lambda error, key: (f"It was {error} of {key}.", True)

    with pytest.raises(
        IdempotencyPersistenceLayerError,
        match=r" - \(reset\)\. It was reset of fn#tx\. Idempotency key: fn#tx\. The function ran",
    ):
        commit(store, DONE)


@pytest.mark.parametrize("kind", COMMITTING_KINDS)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, type("Suspended", (BaseException,), {})])
def test_an_interruption_of_a_commit_is_no_failure_of_the_store(kind: Any, interruption: type[BaseException]) -> None:
    store = kind(_commit_record=interruption)

    with pytest.raises(interruption):
        commit(store, DONE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_has_no_transactions_cannot_commit_another_stores(kind: Any) -> None:
    with pytest.raises(
        IdempotencyPersistenceLayerError,
        match=r"^Failed to commit .*Store has no transactions\)\. Idem.* until this is corrected",
    ):
        commit(kind(), DONE)


# Orphans

LEASE_END_MS = START_MS + 1_000


def release_orphan(store: Any, owner_token: str = "b", **options: Any) -> Any:
    answer = store.release_orphan("fn#1", owner_token=owner_token, **options)
    return asyncio.run(answer) if isinstance(store, AsyncBasePersistenceLayer) else answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("now_ms", "options"), [(LEASE_END_MS + 1, {}), (LEASE_END_MS, {"even_if_leased": True})])
def test_an_orphan_in_a_store_of_four_hooks_is_read_and_then_deleted(kind: Any, now_ms: int, options: dict[str, bool]) -> None:
    store = kind(_get_record=HELD)
    store.clock_ms = FakeClock(now_ms)

    release_orphan(store, **options)

    assert store.calls == [("_get_record", (), {"idempotency_key": "fn#1"}), ("_delete_record", (), {"data_record": HELD})]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("found", "owner_token", "error"),
    [
        (HELD, "b", IdempotencyAlreadyInProgressError),
        (HELD, "a", IdempotencyLeaseLostError),
        (HELD, "", IdempotencyLeaseLostError),
        (DONE, "a", IdempotencyInvalidStatusError),
        (IdempotencyItemNotFoundError, "b", IdempotencyItemNotFoundError),
    ],
    ids=["leased", "another's", "not of Powertools", "completed", "nothing"],
)
def test_what_is_not_that_orphan_is_left_alone(kind: Any, found: Any, owner_token: str, error: type[BaseError]) -> None:
    store = kind(_get_record=found)
    store.clock_ms = FakeClock(LEASE_END_MS)

    with pytest.raises(error) as raised:
        release_orphan(store, owner_token)
    assert type(raised.value) is error
    assert raised.value.idempotency_key == "fn#1"
    assert raised.value.__cause__ is None
    assert [hook for hook, _, _ in store.calls] == ["_get_record"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_orphan_that_another_caller_deletes_first_is_not_there(kind: Any) -> None:
    with pytest.raises(IdempotencyItemNotFoundError, match="There is no record of idempotency key fn#1: the key is free"):
        release_orphan(kind(_get_record=HELD, _delete_record=False), even_if_leased=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        (ConnectionError("reset"), "The orphan is not known to be released; a retry of release_orphan is safe."),
        (TypeError("no"), "The orphan was not released; a retry does not help until this is corrected."),
    ],
)
@pytest.mark.parametrize("hook", ["_get_record", "_delete_record"])
def test_a_release_of_an_orphan_that_fails_is_the_stores_failure(kind: Any, hook: str, trouble: Exception, advice: str) -> None:
    store = kind(**{"_get_record": HELD, hook: trouble})

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        release_orphan(store, even_if_leased=True)
    assert str(raised.value) == (f"Failed to delete record from idempotency store - ({trouble}). Idempotency key: fn#1. {advice}")
    assert (raised.value.function_ran, raised.value.is_retryable) == (None, isinstance(trouble, ConnectionError))
    assert raised.value.__cause__ is trouble


@pytest.mark.parametrize(
    ("lease_end_ms", "expiry_s", "until"),
    [
        (None, 1_800_000_000, "2027-01-15T08:00:00.000+00:00"),
        (1_800_000_000_250, 1, "2027-01-15T08:00:00.250+00:00"),
        (10**18, None, "1000000000000000.0 seconds of the epoch"),
        (None, None, "never"),
    ],
)
def test_the_end_of_a_lease_is_told_whatever_another_writer_has_stored(
    lease_end_ms: int | None, expiry_s: int | None, until: str
) -> None:
    held = HELD.replace(in_progress_expiry_timestamp=lease_end_ms, expiry_timestamp=expiry_s)
    store = SyncStore(_get_record=held)
    store.clock_ms = FakeClock(0)

    with pytest.raises(IdempotencyAlreadyInProgressError) as raised:
        release_orphan(store)
    assert f"lasts until {until}. The record was not changed." in str(raised.value)


# What an answer of a hook says to its caller

NAMED = "Idempotency key: fn#1."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("verb", "answer", "says", "facts"),
    [
        (
            "claim",
            IdempotencyKeyError("m"),
            f"m. {NAMED} The function was not run. A retry does not help.",
            (False, False),
        ),
        (
            "complete",
            IdempotencyLeaseLostError("m"),
            f"m. {NAMED} The function ran. A retry may help.",
            (True, True),
        ),
        ("release", IdempotencyLeaseLostError(), f"{NAMED} A retry does not help.", (None, False)),
        ("renew", IdempotencyLeaseLostError("m"), f"m. {NAMED} A retry does not help.", (None, False)),
        ("complete", IdempotencyResultNotKeptError("of fn#1"), "of fn#1", (True, False)),
        ("complete", IdempotencyLeaseLostError("m").about("k", "a"), "m. Idempotency key: k. a", (True, True)),
    ],
)
def test_an_answer_of_a_hook_says_which_key_it_concerns_and_whether_the_function_ran(
    kind: Any, verb: str, answer: BaseError, says: str, facts: tuple[bool | None, bool]
) -> None:
    with pytest.raises(type(answer)) as raised:
        use(kind(**{HOOKS[verb]: copy.copy(answer)}), verb)
    assert str(raised.value) == says
    assert (raised.value.function_ran, raised.value.is_retryable) == facts


@pytest.mark.parametrize(
    ("trouble", "helps"),
    [
        (OSError("reset"), True),
        (IdempotencyPersistenceConnectionError("down"), True),
        (IdempotencyUnreachableError("refused").about(None, "a", is_retryable=False), False),
        (IdempotencyPersistenceConfigError("no offload"), False),
        (IdempotencyPersistenceConsistencyError("foreign"), False),
        (NotImplementedError(), False),
        (NameError("x"), False),
        (AttributeError("x"), False),
        (ImportError("x"), False),
    ],
    ids=repr,
)
def test_a_retry_is_advised_only_where_it_can_help(trouble: Exception, helps: bool) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        use(SyncStore(_put_record=trouble), "claim")
    assert raised.value.is_retryable is helps
    assert ("retry the call" in str(raised.value)) is helps


# Answers


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_returns_the_record_that_the_hook_granted(kind: Any) -> None:
    granted = OFFER.replace(generation=4, took_over=True)

    assert use(kind(_put_record=granted), "claim") is granted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [None, {"Attributes": {}}, True])
def test_a_hook_that_returns_no_record_grants_what_was_offered(kind: Any, answer: object) -> None:
    assert use(kind(_put_record=answer), "claim") is OFFER


@pytest.mark.parametrize("kind", KINDS)
def test_a_fetch_returns_the_record_that_the_hook_found(kind: Any) -> None:
    assert use(kind(_get_record=HELD), "fetch") is HELD


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [IdempotencyItemNotFoundError, IdempotencyItemNotFoundError("gone"), None], ids=repr)
def test_a_fetch_of_no_record_returns_none(kind: Any, answer: object) -> None:
    assert use(kind(_get_record=answer), "fetch") is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["complete", "release", "renew"])
def test_a_hooks_answer_is_not_a_writes(kind: Any, verb: str) -> None:
    answer = use(kind(_update_record={"Attributes": {}}, _delete_record={"Attributes": {}}), verb)

    if verb == "release":
        assert answer is True


# Refusals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("existing", [HELD, DONE], ids=["in progress", "completed"])
def test_a_refusal_with_its_record_is_passed_on_without_another_request(kind: Any, existing: DataRecord) -> None:
    store = kind(_put_record=IdempotencyItemAlreadyExistsError(old_data_record=existing))

    with pytest.raises(IdempotencyItemAlreadyExistsError) as raised:
        use(store, "claim")
    assert raised.value.old_data_record is existing
    assert [hook for hook, _, _ in store.calls] == ["_put_record"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refusal", [IdempotencyItemAlreadyExistsError, IdempotencyItemAlreadyExistsError("m")], ids=repr)
def test_a_refusal_without_a_record_be_it_a_class_or_an_instance_has_it_fetched(kind: Any, refusal: Any) -> None:
    store = kind(_put_record=refusal, _get_record=HELD)

    with pytest.raises(IdempotencyItemAlreadyExistsError) as raised:
        use(store, "claim")
    assert raised.value.old_data_record is HELD
    assert store.calls[1:] == [("_get_record", (), {"idempotency_key": "fn#1"})]


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_whose_record_has_vanished_says_so_by_none(kind: Any) -> None:
    store = kind(_put_record=IdempotencyItemAlreadyExistsError, _get_record=IdempotencyItemNotFoundError)

    with pytest.raises(IdempotencyItemAlreadyExistsError) as raised:
        use(store, "claim")
    assert raised.value.old_data_record is None


LATE = OFFER.replace(fresh_until_ms=START_MS - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("existing", [None, DONE, HELD], ids=["absent", "completed", "in progress"])
def test_a_claim_for_a_request_that_is_too_old_only_reads(kind: Any, existing: DataRecord | None) -> None:
    store = kind(_get_record=IdempotencyItemNotFoundError if existing is None else existing)

    with pytest.raises(IdempotencyItemAlreadyExistsError) as raised:
        use(store, "claim", LATE)
    assert raised.value.old_data_record is existing
    assert store.calls == [("_get_record", (), {"idempotency_key": "fn#1"})]


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_for_a_request_that_is_too_old_fails_if_the_record_cannot_be_read_or_judged(kind: Any) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to get record from idempotency store"):
        use(kind(_get_record=TimeoutError("slow")), "claim", LATE)
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to save in progress record"):
        use(kind(_get_record=HELD.replace(status="PAUSED")), "claim", LATE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "offer",
    [OFFER.replace(fresh_until_ms=START_MS), LATE.replace(supersedes=1, took_over=True)],
    ids=["fresh", "takes an orphan over"],
)
def test_a_claim_that_its_request_permits_is_the_hooks(kind: Any, offer: DataRecord) -> None:
    store = kind()

    assert use(store, "claim", offer) is offer
    assert [hook for hook, _, _ in store.calls] == ["_put_record"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_completed_record_that_was_seen_is_nothing_to_take_over_for_a_request_that_is_too_old(kind: Any) -> None:
    store = kind(_get_record=IdempotencyItemNotFoundError)

    with pytest.raises(IdempotencyItemAlreadyExistsError):
        use(store, "claim", LATE.replace(supersedes=1))
    assert [hook for hook, _, _ in store.calls] == ["_get_record"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_whose_record_cannot_be_read_is_a_failed_read(kind: Any) -> None:
    trouble = ConnectionError("reset")
    store = kind(_put_record=IdempotencyItemAlreadyExistsError, _get_record=trouble)

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        use(store, "claim")
    assert str(raised.value).startswith("Failed to get record from idempotency store - (reset). Idempotency key: fn#1. ")
    assert raised.value.__cause__ is trouble


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", ["", "PAUSED", "EXPIRED", "completed"])
def test_a_refusal_by_a_record_of_an_unknown_status_is_a_failed_claim(kind: Any, status: str) -> None:
    store = kind(_put_record=IdempotencyItemAlreadyExistsError(old_data_record=HELD.replace(status=status)))

    with pytest.raises(
        IdempotencyPersistenceLayerError, match="^Failed to save in progress record to idempotency store"
    ) as raised:
        use(store, "claim")
    assert raised.value.details == (status or "IdempotencyInvalidStatusError")
    assert isinstance(raised.value.args[1], IdempotencyInvalidStatusError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("now_ms", "known"), [(EXPIRED_MS - 1, False), (EXPIRED_MS, True)])
def test_an_expired_record_refuses_whatever_its_status_so_that_it_can_be_claimed_anew(
    kind: Any, now_ms: int, known: bool
) -> None:
    store = kind(_put_record=IdempotencyItemAlreadyExistsError(old_data_record=HELD.replace(status="PAUSED")))
    store.clock_ms = FakeClock(now_ms)

    with pytest.raises(IdempotencyItemAlreadyExistsError if known else IdempotencyPersistenceLayerError):
        use(store, "claim")


# Failures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "trouble", [ConnectionError("reset"), KeyError("x"), IdempotencyPersistenceLayerError("m", "d")], ids=repr
)
def test_a_failed_hook_is_translated_once_with_its_cause_and_the_key(kind: Any, verb: str, trouble: Exception) -> None:
    _, message, advice = VERBS[verb]
    store = kind(**{HOOKS[verb]: trouble})

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        use(store, verb)
    error = raised.value
    assert type(error) is IdempotencyPersistenceLayerError
    assert str(error) == f"{message} - ({trouble}). Idempotency key: fn#1. {advice}"
    assert error.args == (message, trouble)
    assert error.__cause__ is trouble


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["claim", "complete", "release", "renew"])
def test_the_error_names_the_key_and_not_the_partition_of_a_composite_table(kind: Any, verb: str) -> None:
    store = kind(**{HOOKS[verb]: ConnectionError("reset")})
    record = VERBS[verb][0].replace(idempotency_key="payments", sort_key="fn#1")

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        use(store, verb, record)
    assert " - (reset). Idempotency key: fn#1. " in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, type("Suspended", (BaseException,), {})])
def test_an_interruption_is_no_failure_of_the_store(kind: Any, verb: str, interruption: type[BaseException]) -> None:
    store = kind(**{HOOKS[verb]: interruption})

    with pytest.raises(interruption):
        use(store, verb)


#: What a hook may say to the library, by the verb that it may say it to.
ANSWERS: list[Any] = [
    ("claim", IdempotencyKeyError("m")),
    ("claim", IdempotencyValidationError("m")),
    ("complete", IdempotencyLeaseLostError("m", record=HELD)),
    ("complete", IdempotencyResultNotKeptError("m")),
    ("release", IdempotencyLeaseLostError("m", record=HELD)),
    ("renew", IdempotencyLeaseLostError("m", record=HELD)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("verb", "answer"), ANSWERS)
def test_a_hooks_answer_to_the_library_is_passed_on_as_it_is(kind: Any, verb: str, answer: Exception) -> None:
    store = kind(**{HOOKS[verb]: answer})

    with pytest.raises(type(answer)) as raised:
        use(store, verb)
    assert raised.value is answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("verb", "stray"),
    [
        ("claim", IdempotencyLeaseLostError("m")),
        ("fetch", IdempotencyItemAlreadyExistsError("m")),
        ("fetch", IdempotencyLeaseLostError("m")),
        ("complete", IdempotencyItemAlreadyExistsError("m")),
        ("release", IdempotencyItemAlreadyExistsError("m")),
        ("renew", IdempotencyItemAlreadyExistsError("m")),
    ],
)
def test_an_answer_that_makes_no_sense_for_the_verb_is_a_failure_of_the_store(kind: Any, verb: str, stray: Exception) -> None:
    """A custom layer's conditional update may refuse with the claim's error; Powertools wraps that, too."""
    store = kind(**{HOOKS[verb]: stray})

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        use(store, verb)
    assert raised.value.__cause__ is stray
    assert raised.value.message == VERBS[verb][1]


# The running call's configuration, for hooks that read it from their store

SETTINGS = CallSettings("fn", "body.id", True, True, 120, True, hashlib.sha256)
DEFAULTS = {
    "function_name": "",
    "event_key_jmespath": "",
    "payload_validation_enabled": False,
    "raise_on_no_idempotency_key": False,
    "expires_after_seconds": 3600,
    "use_local_cache": False,
    "hash_function": hashlib.md5,
}


class LateStore(SyncStore):
    """Never calls the constructor of its base."""

    def __init__(self) -> None:
        pass


class LateAsyncStore(AsyncStore):
    def __init__(self) -> None:
        pass


LATE_KINDS: list[Any] = [*KINDS, pytest.param(LateStore, id="late-sync"), pytest.param(LateAsyncStore, id="late-async")]


@pytest.mark.parametrize("kind", LATE_KINDS)
def test_outside_a_call_a_store_reads_powertools_defaults(kind: Any) -> None:
    store = kind()

    assert {name: getattr(store, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("kind", LATE_KINDS)
def test_inside_a_call_a_store_reads_the_calls_configuration(kind: Any) -> None:
    store = kind()

    def call() -> dict[str, object]:
        CallScope(SETTINGS).enter()
        return {name: getattr(store, name) for name in DEFAULTS}

    assert copy_context().run(call) == {name: getattr(SETTINGS, name) for name in SETTINGS.__match_args__}
    assert store.function_name == ""


@pytest.mark.parametrize("kind", LATE_KINDS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_subclass_may_assign_its_own_setting_without_touching_another_stores(kind: Any, name: str) -> None:
    store, other = kind(), kind()

    setattr(store, name, "mine")

    assert getattr(store, name) == "mine"
    assert getattr(other, name) == DEFAULTS[name]


def test_the_hash_function_of_the_call_is_a_function_and_no_method() -> None:
    assert SyncStore().hash_function(b"x").hexdigest() == hashlib.md5(b"x").hexdigest()


@pytest.mark.parametrize("kind", LATE_KINDS)
def test_a_custom_store_claims_no_abilities_and_has_a_clock(kind: Any) -> None:
    store = kind()

    assert (store.supports_leases, store.supports_fresh_until) == (False, False)
    assert isinstance(store.clock_ms(), int)


def test_a_verb_works_in_a_store_that_never_called_its_bases_constructor() -> None:
    class Minimal(BasePersistenceLayer):
        def __init__(self) -> None:
            self.records: dict[str, DataRecord] = {}

        def _put_record(self, data_record: DataRecord) -> None:
            if data_record.idempotency_key in self.records:
                raise IdempotencyItemAlreadyExistsError
            self.records[data_record.idempotency_key] = data_record

        def _get_record(self, idempotency_key: str) -> DataRecord:
            return self.records[idempotency_key]

        def _update_record(self, data_record: DataRecord) -> None:
            self.records[data_record.idempotency_key] = data_record

        def _delete_record(self, data_record: DataRecord) -> None:
            del self.records[data_record.idempotency_key]

    store = Minimal()
    granted = store.claim(OFFER)

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        store.claim(HELD)
    assert refused.value.old_data_record is granted
    store.complete(DONE)
    assert store.fetch("fn#1") == DONE
    store.release(DONE)
    assert store.records == {}


# Sleeping


def test_a_sync_store_sleeps_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("persistence.base.time.sleep", slept.append)

    SyncStore().sleep_ms(250)

    assert slept == [0.25]


def test_an_async_store_sleeps_milliseconds_without_holding_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)

    asyncio.run(AsyncStore().sleep_ms(250))

    assert slept == [0.25]
