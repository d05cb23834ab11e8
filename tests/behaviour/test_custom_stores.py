"""A store of four hooks, as users wrote it for Powertools, and its async sibling."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import Work, key_of
from doubles import LambdaContext

from idempotency import (
    AsyncBasePersistenceLayer,
    BasePersistenceLayer,
    DataRecord,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceLayerError,
    IdempotencyValidationError,
    current_attempt,
    make_idempotent,
)
from idempotency.exceptions import IdempotencyItemAlreadyExistsError

if TYPE_CHECKING:
    from doubles import FakeClock

    from idempotency import Event

SETTINGS = (
    "function_name",
    "event_key_jmespath",
    "payload_validation_enabled",
    "raise_on_no_idempotency_key",
    "expires_after_seconds",
    "use_local_cache",
)


class DictStore(BasePersistenceLayer):
    """The example of Powertools' documentation, on a dict: it knows no owner tokens and sets itself up after `super()`."""

    def __init__(self, clock: FakeClock, *, answer: Any = None, shows_the_holder: bool = True) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.answer = answer
        self.shows_the_holder = shows_the_holder
        self.read: list[dict[str, Any]] = []
        super().__init__()
        self.clock_ms = clock

    def _note_settings(self) -> None:
        self.read.append({name: getattr(self, name) for name in SETTINGS})

    def _record(self, item: dict[str, Any]) -> DataRecord:
        return DataRecord(
            idempotency_key=item["id"],
            status=item["status"],
            expiry_timestamp=item["expiration"],
            in_progress_expiry_timestamp=item.get("in_progress_expiration"),
            response_data=item.get("data"),  # type: ignore[arg-type]  # as users write it
            payload_hash=item.get("validation"),  # type: ignore[arg-type]  # as users write it
        )

    def _get_record(self, idempotency_key: str) -> DataRecord:
        self._note_settings()
        try:
            return self._record(self.items[idempotency_key])
        except KeyError:
            raise IdempotencyItemNotFoundError from None

    def _put_record(self, data_record: DataRecord) -> Any:
        self._note_settings()
        now_ms = self.clock_ms()
        existing = self.items.get(data_record.idempotency_key)
        if existing is not None and not self._is_free(existing, now_ms):
            if self.shows_the_holder:
                raise IdempotencyItemAlreadyExistsError(old_data_record=self._record(existing))
            raise IdempotencyItemAlreadyExistsError
        item = {"id": data_record.idempotency_key, "status": data_record.status, "expiration": data_record.expiry_timestamp}
        if data_record.in_progress_expiry_timestamp is not None:
            item["in_progress_expiration"] = data_record.in_progress_expiry_timestamp
        if self.payload_validation_enabled:
            item["validation"] = data_record.payload_hash
        self.items[data_record.idempotency_key] = item
        return self.answer

    @staticmethod
    def _is_free(item: dict[str, Any], now_ms: int) -> bool:
        if item["expiration"] < now_ms // 1000:
            return True
        lease_end_ms = item.get("in_progress_expiration")
        return item["status"] == "INPROGRESS" and lease_end_ms is not None and lease_end_ms < now_ms

    def _update_record(self, data_record: DataRecord) -> None:
        self._note_settings()
        item = self.items[data_record.idempotency_key]
        item.update(data=data_record.response_data, expiration=data_record.expiry_timestamp, status=data_record.status)
        if self.payload_validation_enabled:
            item["validation"] = data_record.payload_hash

    def _delete_record(self, data_record: DataRecord) -> None:
        self._note_settings()
        del self.items[data_record.idempotency_key]


class AsyncDictStore(AsyncBasePersistenceLayer):
    """The same, for an asyncio client."""

    def __init__(self, clock: FakeClock, **options: Any) -> None:
        self.inner = DictStore(clock, **options)
        self.clock_ms = clock

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        await asyncio.sleep(0)
        return self.inner._get_record(idempotency_key)

    async def _put_record(self, data_record: DataRecord) -> Any:
        await asyncio.sleep(0)
        return self.inner._put_record(data_record)

    async def _update_record(self, data_record: DataRecord) -> None:
        await asyncio.sleep(0)
        self.inner._update_record(data_record)

    async def _delete_record(self, data_record: DataRecord) -> None:
        await asyncio.sleep(0)
        self.inner._delete_record(data_record)


class Caller:
    """A function behind a four-hook store, sync or async, called the same way."""

    def __init__(self, kind: str, clock: FakeClock, **options: Any) -> None:
        self.kind = kind
        self.store: Any = AsyncDictStore(clock, **options) if kind == "async store" else DictStore(clock, **options)
        self.items: DictStore = getattr(self.store, "inner", self.store)

    def decorate(self, work: Work, config: IdempotencyConfig | None = None, key_prefix: str = "p") -> Any:
        options: dict[str, Any] = {"persistence_store": self.store, "config": config, "key_prefix": key_prefix}
        if self.kind == "sync":
            return make_idempotent(lambda event, context=None: work(event), **options)

        async def awork(event: Any, context: Any = None) -> Any:
            return work(event)

        safe: Any = make_idempotent(awork, **options)
        return lambda *arguments: asyncio.run(safe(*arguments))


KINDS = ["sync", "async function", "async store"]
ORDER = {"id": 7, "amount": 10}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("answer", [None, {"ResponseMetadata": {}}, True, "OK"], ids=repr)
def test_a_store_of_four_hooks_works_whatever_its_put_returns(kind: str, clock: FakeClock, answer: Any) -> None:
    caller, work = Caller(kind, clock, answer=answer), Work(result={"items": [1]})
    call = caller.decorate(work)

    assert call(ORDER) is work.result
    assert call(ORDER) == {"items": [1]}
    assert work.runs == [ORDER]


@pytest.mark.parametrize("shows_the_holder", [False, True])
def test_a_running_attempt_refuses_with_or_without_its_record_in_the_error(
    kind: str, clock: FakeClock, shows_the_holder: bool
) -> None:
    caller, work = Caller(kind, clock, shows_the_holder=shows_the_holder), Work()
    caller.items.items[key_of(7)] = {
        "id": key_of(7),
        "status": "INPROGRESS",
        "expiration": clock.now_ms // 1000 + 3600,
        "in_progress_expiration": clock.now_ms + 1_000,
    }
    call = caller.decorate(work, IdempotencyConfig("id"))

    clock.advance(ms=1_000)
    with pytest.raises(
        IdempotencyAlreadyInProgressError, match=f"in progress with idempotency key: id={key_of(7)}[.] The function was not run; "
    ):
        call(ORDER)
    assert work.runs == []
    clock.advance(ms=1)
    call(ORDER)

    assert work.runs == [ORDER]


def test_a_failed_run_deletes_the_record(kind: str, clock: FakeClock) -> None:
    caller, work = Caller(kind, clock), Work(result=1, error=LookupError("no"))
    call = caller.decorate(work)
    with pytest.raises(LookupError, match="^no$"):
        call(ORDER)
    assert caller.items.items == {}
    work.error = None

    assert call(ORDER) == 1


def test_the_payload_is_validated_where_the_store_keeps_the_hash(kind: str, clock: FakeClock) -> None:
    caller = Caller(kind, clock)
    call = caller.decorate(Work(result=1), IdempotencyConfig("id", payload_validation_jmespath="amount"))
    call(ORDER)

    assert call(ORDER) == 1
    with pytest.raises(IdempotencyValidationError):
        call({"id": 7, "amount": 11})


def test_the_lease_of_an_invocation_reaches_the_store(kind: str, clock: FakeClock) -> None:
    caller = Caller(kind, clock)
    caller.decorate(Work())(ORDER, LambdaContext(5_000))

    assert caller.items.items[key_of(ORDER)]["in_progress_expiration"] == clock.now_ms + 6_000


def test_without_a_deadline_a_store_of_four_hooks_gets_no_lease(kind: str, clock: FakeClock) -> None:
    """Nobody could renew it there, and an attempt that outlives it would be run twice: the expiry ends the claim."""
    caller = Caller(kind, clock)
    caller.decorate(Work())(ORDER)

    assert "in_progress_expiration" not in caller.items.items[key_of(ORDER)]


def test_the_hooks_read_the_settings_of_the_function_that_is_being_called(kind: str, clock: FakeClock) -> None:
    """Powertools configured a shared store with the first function's settings."""
    caller = Caller(kind, clock)
    pay = caller.decorate(
        Work(),
        IdempotencyConfig("id", "amount", raise_on_no_idempotency_key=True, expires_after_seconds=10),
        key_prefix="pay",
    )
    send = caller.decorate(Work(), IdempotencyConfig("amount", use_local_cache=True), key_prefix="send")

    pay(ORDER)
    send(ORDER)
    pay({"id": 8, "amount": 10})

    of_pay = dict(zip(SETTINGS, ("pay", "id", True, True, 10, False), strict=True))
    of_send = dict(zip(SETTINGS, ("send", "amount", False, False, 3600, True), strict=True))
    assert caller.items.read == [of_pay] * 2 + [of_send] * 2 + [of_pay] * 2
    has_hash = {key.partition("#")[0]: "validation" in item for key, item in caller.items.items.items()}
    assert has_hash == {"pay": True, "send": False}


def test_the_hooks_read_the_name_that_the_lambda_function_has_now(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    store, work = DictStore(clock), Work()
    safe = make_idempotent(work, persistence_store=store)

    safe(7)
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "payments")
    safe(7)

    names = [read["function_name"].partition(".")[0] for read in store.read]
    assert names == ["test-func"] * 2 + ["payments"] * 2


def test_concurrent_functions_of_one_store_read_each_their_own_settings(clock: FakeClock) -> None:
    store, both_running = DictStore(clock), Barrier(2, timeout=10)

    def work(event: Any) -> None:
        both_running.wait()

    functions = [
        make_idempotent(work, persistence_store=store, key_prefix=prefix, config=config)
        for prefix, config in (("a", IdempotencyConfig(expires_after_seconds=10)), ("b", IdempotencyConfig(use_local_cache=True)))
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda function: function(7), functions))

    read = sorted((read["function_name"], read["expires_after_seconds"], read["use_local_cache"]) for read in store.read)
    assert read == [("a", 10, False)] * 2 + [("b", 3600, True)] * 2


def test_a_nested_call_of_the_same_store_leaves_the_settings_of_the_outer_one(clock: FakeClock) -> None:
    store = DictStore(clock)
    inner = make_idempotent(lambda event: None, persistence_store=store, key_prefix="inner")
    outer = make_idempotent(lambda event: [inner(event)], persistence_store=store, key_prefix="outer")

    outer(7)

    assert [read["function_name"] for read in store.read] == ["outer", "inner", "inner", "outer"]


def test_outside_a_call_a_store_reads_the_defaults(clock: FakeClock) -> None:
    store = DictStore(clock)

    assert [getattr(store, name) for name in SETTINGS] == ["", "", False, False, 3600, False]
    assert store.hash_function(b"7").hexdigest() == key_of(7).partition("#")[2]


def test_a_store_may_keep_settings_of_its_own(clock: FakeClock) -> None:
    store = DictStore(clock)
    store.expires_after_seconds = 5
    make_idempotent(lambda event: None, persistence_store=store)(7)

    assert {read["expires_after_seconds"] for read in store.read} == {5}


def test_a_store_whose_constructor_never_calls_its_parents_works(clock: FakeClock) -> None:
    class Careless(DictStore):
        def __init__(self) -> None:
            self.items, self.answer, self.shows_the_holder, self.read = {}, None, True, []

    store = Careless()
    store.clock_ms = clock
    work = Work(result=1)
    safe = make_idempotent(work, persistence_store=store)

    assert [safe(7), safe(7)] == [1, 1]
    assert work.runs == [7]


FAILURES = [
    ("_put_record", "Failed to save in progress record to idempotency store", []),
    ("_update_record", "Failed to update record state to success in idempotency store", [ORDER]),
]


@pytest.mark.parametrize(("hook", "message", "runs"), FAILURES)
def test_a_hook_that_fails_is_reported_in_powertools_words(
    kind: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, hook: str, message: str, runs: list[Any]
) -> None:
    trouble = OSError("disk full")

    def fail(*_: Any, **__: Any) -> None:
        raise trouble

    caller, work = Caller(kind, clock), Work(result=1)
    monkeypatch.setattr(caller.items, hook, fail)

    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        caller.decorate(work)(ORDER)

    assert str(failed.value).startswith(f"{message} - (disk full). Idempotency key: {key_of(ORDER)}. The function ")
    assert (failed.value.idempotency_key, failed.value.function_ran) == (key_of(ORDER), bool(runs))
    assert failed.value.is_retryable
    assert failed.value.__cause__ is trouble
    assert work.runs == runs


def test_a_delete_that_fails_does_not_replace_the_functions_own_error(
    kind: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Powertools raised the store's error, and a caller who retries on the function's never heard of it."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    caller, error, heard = Caller(kind, clock), LookupError("no"), list[Any]()

    def observer(event: Event) -> None:
        heard.append(event)

    monkeypatch.setattr(caller.items, "_delete_record", fail)

    with pytest.raises(LookupError) as raised:
        caller.decorate(Work(error=error), IdempotencyConfig(observers=[observer]))(ORDER)

    assert raised.value is error
    (note,) = error.__notes__
    failed = "The claim was not released: Failed to delete record from idempotency store - (disk full)"
    said = f"{failed}. Idempotency key: {key_of(ORDER)}."
    assert [message[: len(said)] for message in caplog.messages] == [said]
    assert [logged.levelname for logged in caplog.records] == ["WARNING"]
    assert note.startswith(f"Besides, the claim of idempotency key {key_of(ORDER)} could not be released: Failed to delete")
    assert heard[-1].error == "IdempotencyPersistenceLayerError"


def test_a_read_that_fails_after_a_refusal_is_reported(kind: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    caller, work = Caller(kind, clock, shows_the_holder=False), Work(result=1)
    call = caller.decorate(work)
    call(ORDER)
    monkeypatch.setattr(caller.items, "_get_record", fail)

    with pytest.raises(IdempotencyPersistenceLayerError, match=r"^Failed to get record from idempotency store - \(disk full\)"):
        call(ORDER)

    assert len(work.runs) == 1


def test_a_status_that_nobody_knows_is_an_error_and_no_permission(kind: str, clock: FakeClock) -> None:
    caller, work = Caller(kind, clock), Work()
    caller.items.items[key_of(ORDER)] = {"id": key_of(ORDER), "status": "PAUSED", "expiration": clock.now_ms // 1000}

    with pytest.raises(IdempotencyPersistenceLayerError, match="PAUSED"):
        caller.decorate(work)(ORDER)

    assert work.runs == []


def test_the_attempt_of_a_store_of_four_hooks_knows_its_key(clock: FakeClock) -> None:
    attempts: list[Any] = []
    make_idempotent(lambda event: attempts.append(current_attempt()), persistence_store=DictStore(clock), key_prefix="p")(7)

    assert (attempts[0].key, attempts[0].generation, attempts[0].lease_end_ms) == (key_of(7), 1, None)


def test_a_status_constant_lets_a_powertools_store_recognise_its_records(clock: FakeClock) -> None:
    """Stores written for Powertools compare `data_record.status` with its `STATUS_CONSTANTS`."""
    from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import STATUS_CONSTANTS as THEIRS

    from persistence.datarecord import STATUS_CONSTANTS as OURS

    assert dict(OURS) == dict(THEIRS)
