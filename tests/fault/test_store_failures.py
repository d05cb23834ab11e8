"""A store that fails at each verb: what the caller hears, and what nobody may hear: the payload, the result."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext, Shelf, incompressible
from faults import (
    KEY,
    ORDER,
    Bench,
    Form,
    Suspended,
    access_denied,
    client_error,
    internal_error,
    keyed,
    lost,
    raise_boom,
    raise_suspended,
    refused,
    throttle,
)
from stores import large_results

from idempotency import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    InMemoryPersistenceLayer,
    idempotent_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from idempotency import DataRecord
    from persistence.background import Heartbeat

SECRET = "tops3cret"
PAYLOAD = {**ORDER, "card": SECRET}


def call(bench: Bench, form: Form, end: Callable[[], Any] = lambda: "paid", payload: Any = PAYLOAD, **options: Any) -> Any:
    context = LambdaContext(remaining_ms=30_000, clock=bench.clock)
    return form.handler(lambda _event: end(), bench.store, keyed(**options))(payload, context)


def explained(bench: Bench, cause: Exception) -> str:
    """The cause and what the store knows about it: the table, the service's reasons or the missing permission."""
    told = f"({cause}). Table {bench.store.table_name}."
    if "Throughput" in str(cause):
        reason = "TableWriteKeyRangeThroughputExceeded of arn:aws:dynamodb:::table/t"
        return f"{told} Throttled for {reason}: one key is hot; a partition serves 1,000 write and 3,000 read units a second."
    if "AccessDenied" in str(cause):
        return f"{told} PutItem was denied: the role needs dynamodb:PutItem on the table, and may need its KMS key."
    return told


@pytest.mark.parametrize("error", [access_denied, throttle, internal_error])
def test_a_failed_claim_says_that_nothing_was_run(bench: Bench, form: Form, error: Callable[[], Exception]) -> None:
    cause = error()
    bench.client.always("put_item", refused(cause))
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        call(bench, form)

    helps = error is not access_denied
    assert str(caught.value) == (
        f"Failed to save in progress record to idempotency store - {explained(bench, cause)} Idempotency key: {KEY}. "
        f"The function was not run; {'retry the call' if helps else 'a retry does not help until this is corrected'}."
    )
    assert (caught.value.idempotency_key, caught.value.function_ran, caught.value.is_retryable) == (KEY, False, helps)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [access_denied, throttle, internal_error])
def test_a_failed_completion_says_that_the_function_ran(bench: Bench, form: Form, error: Callable[[], Exception]) -> None:
    cause = error()
    bench.client.always("update_item", refused(cause))
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        call(bench, form)

    assert str(caught.value).startswith(
        f"Failed to update record state to success in idempotency store - {explained(bench, cause)} Idempotency key: {KEY}. "
        "The function ran, but its result is not known to be stored; "
    )
    assert (caught.value.idempotency_key, caught.value.function_ran) == (KEY, True)
    assert caught.value.is_retryable is (error is not access_denied)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [access_denied, throttle, internal_error])
def test_a_failed_release_is_logged_once_and_noted_on_the_functions_own_error(
    bench: Bench, form: Form, error: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    cause = error()
    bench.client.always("delete_item", refused(cause))
    with pytest.raises(OSError, match="boom") as caught:
        call(bench, form, raise_boom)

    failed = "Failed to delete record from idempotency store - "
    assert caught.value.__notes__ == [f"Besides, the claim of idempotency key {KEY} could not be released: {failed}({cause})"]
    [logged] = caplog.records
    assert logged.levelname == "WARNING"
    assert logged.message == (
        f"The claim was not released: {failed}{explained(bench, cause)} Idempotency key: {KEY}. "
        "The key stays claimed until the lease ends; a retry before that is refused."
    )


def test_a_refusal_without_its_record_is_read_and_a_failed_read_is_an_error(bench: Bench, form: Form) -> None:
    """As old SDKs and some emulators refuse: without the item."""
    call(bench, form)
    conditional = client_error("ConditionalCheckFailedException", 400, "The conditional request failed")
    bench.client.always("put_item", refused(conditional))

    assert call(bench, form, raise_boom) == "paid"
    bench.client.always("get_item", refused(access_denied()))
    with pytest.raises(IdempotencyPersistenceLayerError, match="Failed to get record from idempotency store"):
        call(bench, form, raise_boom)


def test_a_missing_table_is_the_stores_failure_before_the_function_runs(bench: Bench, form: Form) -> None:
    runs: list[str] = []
    bench.store.table_name = "no-such-table"
    with pytest.raises(IdempotencyPersistenceLayerError, match="ResourceNotFoundException"):
        call(bench, form, lambda: runs.append("run"))

    assert runs == []


class Broken(InMemoryPersistenceLayer):
    """A user's own store, one of whose hooks raises what no contract foresees."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def _fail(self, hook: str) -> None:
        if hook == self.hook:
            raise ZeroDivisionError(hook)

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        self._fail("put")
        return super()._put_record(data_record)

    def _update_record(self, data_record: DataRecord) -> None:
        self._fail("update")
        super()._update_record(data_record)

    def _delete_record(self, data_record: DataRecord) -> None:
        self._fail("delete")
        super()._delete_record(data_record)


@pytest.mark.parametrize(("hook", "text"), [("put", "save in progress record"), ("update", "update record state to success")])
def test_whatever_a_users_store_raises_is_one_kind_of_error(form: Form, hook: str, text: str) -> None:
    with pytest.raises(IdempotencyPersistenceLayerError, match=text) as caught:
        form.function(lambda _event: "done", Broken(hook))(ORDER)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_whatever_a_users_store_raises_at_release_is_a_note(form: Form) -> None:
    with pytest.raises(OSError, match="boom") as caught:
        form.function(lambda _event: raise_boom(), Broken("delete"))(ORDER)

    assert "could not be released" in caught.value.__notes__[0]


# Hooks and observers


def test_a_response_hook_that_raises_reaches_the_caller_and_harms_nothing(bench: Bench, form: Form) -> None:
    def explode(_response: Any, _record: DataRecord) -> Any:
        raise ZeroDivisionError

    assert call(bench, form, response_hook=explode) == "paid"
    record = bench.peek(KEY)
    with pytest.raises(ZeroDivisionError):
        call(bench, form, raise_boom, response_hook=explode)

    assert bench.peek(KEY) == record
    assert call(bench, form, raise_boom) == "paid"


def test_observers_that_raise_break_no_call(bench: Bench, form: Form, caplog: pytest.LogCaptureFixture) -> None:
    """At any event; the observers after them hear of it all the same."""
    heard: list[str] = []

    def explode(_event: Any) -> None:
        raise ZeroDivisionError

    options: Any = {"observers": [explode, lambda event: heard.append(type(event).__name__)]}

    assert call(bench, form, **options) == "paid"
    assert call(bench, form, raise_boom, **options) == "paid"
    with pytest.raises(OSError, match="boom"):
        call(bench, form, raise_boom, {**PAYLOAD, "id": "other"}, **options)
    assert heard == ["Claimed", "Completed", "Replayed", "Claimed", "Released"]
    assert caplog.text.count("An observer failed") == 5


# Nothing leaks


def told(error: BaseException) -> str:
    """Everything that an error says of itself and of its causes, as a log would show it; not the source lines."""
    said = "".join(traceback.TracebackException.from_exception(error).format_exception_only())
    said += repr(error) + str(getattr(error, "__notes__", ""))
    said += repr(getattr(error, "record", None))
    context = None if error.__suppress_context__ else error.__context__
    return said + "".join(told(other) for other in (error.__cause__, context) if other is not None)


def failing_claim(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    bench.client.always("put_item", refused(access_denied()))
    call(bench, form)


def failing_completion(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    bench.client.always("update_item", refused(access_denied()))
    call(bench, form, lambda: SECRET)


def failing_release(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    bench.client.always("delete_item", refused(access_denied()))
    call(bench, form, raise_boom)


def failing_read(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, lambda: SECRET)
    bench.client.always(
        "put_item", refused(client_error("ConditionalCheckFailedException", 400, "The conditional request failed"))
    )
    bench.client.always("get_item", refused(access_denied()))
    call(bench, form)


def failing_renewal(bench: Bench, form: Form, heart: Heartbeat) -> None:
    bench.client.at("update_item", 1, refused(access_denied()))

    def slow(_event: Any) -> str:
        bench.clock.advance(seconds=20)
        heart.beat()
        raise OSError

    form.function(slow, bench.store)(PAYLOAD)


def in_progress(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    with pytest.raises(Suspended):
        call(bench, form, raise_suspended)
    call(bench, form)


def orphaned(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    with pytest.raises(Suspended):
        call(bench, form, raise_suspended)
    bench.clock.advance(seconds=60)
    call(bench, form, orphan_takeover=False)


def payload_mismatch(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, lambda: SECRET, payload_validation_jmespath="card")
    call(bench, form, payload={**PAYLOAD, "card": f"{SECRET} too"}, payload_validation_jmespath="card")


def not_json(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, lambda: {"a": SECRET, "b": object()})


def too_large(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, lambda: [SECRET, incompressible(600_000)])


def no_longer_kept(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    shelf = Shelf()
    large_results(bench, compression=None, offload=shelf)
    call(bench, form, lambda: SECRET * 100_000)
    shelf.objects.update(dict.fromkeys(shelf.objects, SECRET.encode()))
    call(bench, form)


def not_loaded(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    large_results(bench, compression=None, offload=Shelf())
    call(bench, form, lambda: SECRET * 100_000)
    large_results(bench)
    call(bench, form)


def lease_lost(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    def late() -> str:
        bench.clock.advance(seconds=60)
        with pytest.raises(Suspended):
            call(bench, form, raise_suspended)
        return SECRET

    call(bench, form, late)


def no_key(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, payload={"card": SECRET}, raise_on_no_idempotency_key=True)


def no_json_in_the_key(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    call(bench, form, payload={"id": {SECRET, "in a set"}})


def wrong_type_in_the_key(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    config = IdempotencyConfig(event_key_jmespath="sum(@)")
    form.function(lambda _event: "done", bench.store, config)([SECRET])


def stored_by_another_program(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    item = {"id": {"S": KEY}, "status": {"S": "UNKNOWN"}, "data": {"S": SECRET}, "expiration": {"N": str(bench.clock())}}
    bench.direct.put_item(TableName=bench.store.table_name, Item=item)
    call(bench, form)


def failing_observer(bench: Bench, form: Form, _heart: Heartbeat) -> None:
    def explode(_event: Any) -> None:
        raise ZeroDivisionError

    bench.client.at("put_item", 1, lost(internal_error()))
    call(bench, form, lambda: SECRET, observers=[explode])
    raise OSError


TROUBLES = [
    failing_claim,
    failing_completion,
    failing_release,
    failing_read,
    failing_renewal,
    in_progress,
    orphaned,
    payload_mismatch,
    not_json,
    too_large,
    no_longer_kept,
    not_loaded,
    lease_lost,
    no_key,
    no_json_in_the_key,
    wrong_type_in_the_key,
    stored_by_another_program,
    failing_observer,
]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_payload_and_no_result_is_in_an_error_or_a_log(
    bench: Bench, form: Form, heart: Heartbeat, caplog: pytest.LogCaptureFixture, trouble: Callable[..., None]
) -> None:
    for name in ("idempotency", "persistence"):
        caplog.set_level(logging.DEBUG, name)
    with pytest.raises((BaseError, OSError)) as caught:
        trouble(bench, form, heart)

    assert SECRET not in told(caught.value)
    ours = [line for line in caplog.records if line.name.split(".")[0] in ("idempotency", "persistence")]
    assert SECRET not in "".join(logging.Formatter().format(line) for line in ours)


def test_no_payload_and_no_result_is_in_the_representation_of_an_outcome(bench: Bench) -> None:
    @idempotent_function(data_keyword_argument="event", persistence_store=bench.store, config=keyed())
    def work(event: Any) -> str:
        return SECRET

    outcomes = [work.with_outcome(event=PAYLOAD) for _ in range(2)]

    assert [outcome.value for outcome in outcomes] == [SECRET, SECRET]
    assert SECRET not in repr(outcomes)


def test_the_search_for_leaks_finds_one() -> None:
    """In the text, the representation, a note or a cause."""
    inner = OSError(SECRET)
    outer, noted = OSError("fine"), OSError("fine")
    outer.__cause__ = inner
    noted.add_note(SECRET)

    assert all(SECRET in told(error) for error in (inner, outer, noted))
    assert SECRET not in told(IdempotencyAlreadyInProgressError("fine"))
