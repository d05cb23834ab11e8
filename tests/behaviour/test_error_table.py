"""What each error tells its caller: which key, whether the function ran, whether a retry helps, what to do.

The rows are those of docs/errors.md, which this module writes: `python tests/behaviour/test_error_table.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doubles import FakeClock, LambdaContext

from idempotency import (
    IdempotencyConfig,
    InMemoryPersistenceLayer,
    make_idempotent,
    transaction,
)
from idempotency.serialization.pydantic import PydanticSerializer
from persistence import exceptions
from persistence.base import BasePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyTransactionCanceledError,
)
from persistence.transaction import CancellationReason, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

ORDER = {"id": 7, "amount": 10}
KEY_OF_ORDER = "p#8f14e45fceea167a5a36dedd4bea2543"
HOLDER = "request-9"
TROUBLE = ConnectionError("reset")
LASTING = IdempotencyPersistenceConfigError("no such table")


class Store(InMemoryPersistenceLayer):
    """A store whose hooks raise what a row needs, and that has transactions."""

    def __init__(self, clock: FakeClock, **raised: BaseException) -> None:
        super().__init__(clock_ms=clock)
        self.clock = clock
        self.raised = raised

    def _raise(self, hook: str) -> None:
        if hook in self.raised:
            raise self.raised[hook]

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        self._raise("put")
        return super()._put_record(data_record)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        self._raise("get")
        return super()._get_record(idempotency_key)

    def _update_record(self, data_record: DataRecord) -> None:
        self._raise("update")
        super()._update_record(data_record)

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        self._raise("delete")
        return super()._delete_orphan(data_record, now_ms)

    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        return Transaction(idempotency_key=idempotency_key, own_table="t", own_key={"id": {"S": idempotency_key}}, region="")

    def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        self._raise("commit")

    def _load_result(self, data_record: DataRecord) -> str:
        self._raise("load")
        return "null"


class FourHooks(BasePersistenceLayer):
    def _put_record(self, data_record: DataRecord) -> None: ...

    def _get_record(self, idempotency_key: str) -> DataRecord: ...

    def _update_record(self, data_record: DataRecord) -> None: ...

    def _delete_record(self, data_record: DataRecord) -> None: ...


def call(
    store: BasePersistenceLayer, work: Callable[[Any], Any] = lambda _event: "paid", event: Any = ORDER, **options: Any
) -> Any:
    """One call with 30 s left, of the request request-1."""
    config = IdempotencyConfig("id", **options)
    clock = store.clock_ms if isinstance(store.clock_ms, FakeClock) else FakeClock()
    handler = make_idempotent(work, persistence_store=store, config=config, key_prefix="p")
    config.register_lambda_context(LambdaContext(remaining_ms=30_000, clock=clock))
    return handler(event)


def holding(store: Store, **changes: Any) -> Store:
    """The store with another attempt's record of the order."""
    clock = store.clock
    fields = {
        "idempotency_key": KEY_OF_ORDER,
        "status": "INPROGRESS",
        "expiry_timestamp": clock.now_ms // 1000 + 3_600,
        "in_progress_expiry_timestamp": clock.now_ms + 5_000,
        "owner_token": "theirs",
        "generation": 1,
        "holder": HOLDER,
        **changes,
    }
    store._records[KEY_OF_ORDER] = DataRecord(**fields)
    return store


def written(_event: Any) -> str:
    transaction().put(TableName="orders", Item={"id": "7"})
    return "paid"


def refused(*codes: str, **options: Any) -> IdempotencyTransactionCanceledError:
    reasons = tuple(CancellationReason("put", "orders", code) for code in codes)
    error = IdempotencyTransactionCanceledError("The transaction was canceled", reasons=reasons, **options)
    error.is_retryable = codes == ("ConditionalCheckFailed",)
    return error


def taken_over(store: Store) -> Callable[[Any], str]:
    """A function during which its lease ends and another attempt claims the key."""

    def work(_event: Any) -> str:
        store.clock.advance(seconds=60)
        holding(store)
        return "paid"

    return work


def without_a_record(store: Store) -> Callable[[Any], str]:
    """A function with a transaction during which its record is deleted."""

    def work(event: Any) -> str:
        store._records.clear()
        return written(event)

    return work


def mismatch(clock: FakeClock) -> None:
    store = Store(clock)
    call(store, payload_validation_jmespath="amount")
    call(store, event={"id": 7, "amount": 11}, payload_validation_jmespath="amount")


def orphaned(clock: FakeClock) -> None:
    store = holding(Store(clock))
    clock.advance(ms=5_001)
    call(store, orphan_takeover=False)


def contradicting(clock: FakeClock) -> None:
    expired = DataRecord(KEY_OF_ORDER, "COMPLETED", clock.now_ms // 1000 - 10)
    call(Store(clock, put=IdempotencyItemAlreadyExistsError(old_data_record=expired)))


def lost(clock: FakeClock) -> None:
    store = Store(clock)
    call(store, taken_over(store))


def lost_with_a_transaction(clock: FakeClock) -> None:
    store = Store(clock)
    store.raised["commit"] = IdempotencyLeaseLostError()
    call(store, without_a_record(store))


def gone(clock: FakeClock) -> None:
    store = Store(clock, commit=TROUBLE)
    call(store, without_a_record(store))


def loaded(clock: FakeClock, error: Exception) -> None:
    call(holding(Store(clock, load=error), status="COMPLETED", packed_result=b"x"))


@dataclass
class Row:
    """One error as a caller meets it.  *function_ran* and *is_retryable* are its attributes."""

    name: str
    when: str
    function_ran: bool | None
    is_retryable: bool
    what_to_do: str
    happens: Callable[[FakeClock], object]
    has_key: bool = True


ROWS = [
    Row(
        "IdempotencyAlreadyInProgressError",
        "another attempt holds the key",
        False,
        True,
        "retry later; the text names the request that holds the key",
        lambda clock: call(holding(Store(clock))),
    ),
    Row(
        "IdempotencyOrphanedError",
        "an attempt never finished, and `orphan_takeover=False`",
        None,
        False,
        "find out whether its effect happened; then `store.release_orphan`, or leave it",
        orphaned,
    ),
    Row(
        "IdempotencyValidationError",
        "the key was used with another payload",
        False,
        False,
        "correct the sender: one key, one payload",
        mismatch,
    ),
    Row(
        "IdempotencyKeyError",
        "the payload has no key, or not all of it",
        False,
        False,
        "correct the sender or `event_key_jmespath`",
        lambda clock: call(Store(clock), event={}, raise_on_no_idempotency_key=True),
        has_key=False,
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "the key could not be computed from the payload",
        False,
        False,
        "correct the sender or `event_key_jmespath`; the cause says why",
        lambda clock: call(Store(clock), event={"id": object()}),
        has_key=False,
    ),
    Row(
        "IdempotencyInconsistentStateError",
        "the store refused the key and showed it free, three times",
        False,
        True,
        "retry; compare the clocks of the machines",
        contradicting,
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "claim or read: no answer, throttled, an error of the service",
        False,
        True,
        "retry",
        lambda clock: call(Store(clock, put=TROUBLE)),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "claim or read: no such table, no permission, a wrong key schema, data that is no record",
        False,
        False,
        "correct the table, the role or the options; the text names them",
        lambda clock: call(Store(clock, put=LASTING)),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "completion: no answer, throttled, an error of the service",
        True,
        True,
        "a retry replays the result if it was stored; if not, it may run the function again once the lease has ended",
        lambda clock: call(Store(clock, update=TROUBLE)),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "completion: no permission, a wrong configuration",
        True,
        False,
        "correct it before the lease ends, or make sure that a second run is harmless",
        lambda clock: call(Store(clock, update=LASTING)),
    ),
    Row(
        "IdempotencyLeaseLostError",
        "the lease ended while the function ran, and another attempt took the key over",
        True,
        True,
        "retry to get that attempt's result; give the function a longer lease",
        lost,
    ),
    Row(
        "IdempotencyResultNotKeptError",
        "the result is not JSON, or too large",
        True,
        False,
        "do not retry; every duplicate gets this error until the record expires",
        lambda clock: call(Store(clock), lambda _event: object()),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "replay: a large result cannot be read now",
        True,
        True,
        "retry",
        lambda clock: loaded(clock, TROUBLE),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "replay: the store is not configured to read a large result",
        True,
        False,
        "give the store the `result_offload` that stored it",
        lambda clock: loaded(clock, LASTING),
    ),
    Row(
        "IdempotencyTransactionCanceledError",
        "a condition of the transaction did not hold",
        True,
        True,
        "nothing was written; a retry runs the function again",
        lambda clock: call(Store(clock, commit=refused("ConditionalCheckFailed", nothing_written=True)), written),
    ),
    Row(
        "IdempotencyTransactionCanceledError",
        "the transaction is invalid, or not permitted",
        True,
        False,
        "nothing was written; correct the function or its role",
        lambda clock: call(Store(clock, commit=refused("ValidationError", nothing_written=True)), written),
    ),
    Row(
        "IdempotencyTransactionCanceledError",
        "the result cannot be stored together with the transaction",
        True,
        False,
        "nothing was written; correct the result",
        lambda clock: call(Store(clock), lambda event: (written(event), object())[1]),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "commit: no answer, and the claim was released",
        True,
        True,
        "nothing was written; retry",
        lambda clock: call(Store(clock, commit=TROUBLE), written),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "commit: no answer, and the release failed, too",
        True,
        True,
        "retry: it replays the result, or, if the transaction was not written, runs the function again when the lease has ended",
        lambda clock: call(Store(clock, commit=TROUBLE, delete=TROUBLE), written),
    ),
    Row(
        "IdempotencyPersistenceLayerError",
        "commit: no answer, and the record is gone or has expired",
        True,
        False,
        "find out whether the transaction was written: nothing proves it, and a retry would run it again",
        gone,
    ),
    Row(
        "IdempotencyLeaseLostError",
        "commit: refused, and the record is gone",
        True,
        False,
        "as above",
        lost_with_a_transaction,
    ),
    Row(
        "IdempotencyPersistenceConfigError",
        "decoration: the store cannot do what the configuration asks",
        False,
        False,
        "correct the configuration",
        lambda _clock: call(FourHooks(), orphan_takeover=False),
        has_key=False,
    ),
    Row(
        "IdempotencyModelTypeError",
        "decoration: the return type does not fit the serializer",
        False,
        False,
        "correct the annotation, or choose another serializer",
        lambda _clock: PydanticSerializer.instantiate(int),
        has_key=False,
    ),
    Row(
        "IdempotencyNoSerializationModelError",
        "decoration: the function has no return type",
        False,
        False,
        "annotate it",
        lambda _clock: PydanticSerializer.instantiate(None),
        has_key=False,
    ),
]


def table() -> str:
    """The rows in Markdown."""
    ran = {True: "yes", False: "no", None: "not known"}
    head = "| error | when | function ran? | retry helps? | what to do |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{row.name}` | {row.when} | {ran[row.function_ran]} | {ran[row.is_retryable]} | {row.what_to_do} |\n" for row in ROWS
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}: {row.when}")
def test_an_error_says_whether_the_function_ran_and_whether_a_retry_helps(row: Row, clock: FakeClock) -> None:
    with pytest.raises(getattr(exceptions, row.name)) as caught:
        row.happens(clock)

    error: BaseError = caught.value
    assert type(error).__name__ == row.name
    assert (error.function_ran, error.is_retryable) == (row.function_ran, row.is_retryable)
    assert error.idempotency_key == (KEY_OF_ORDER if row.has_key else None)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("row", [row for row in ROWS if not row.when.startswith("decoration")], ids=lambda row: row.when)
def test_the_text_says_the_same_as_the_attributes(row: Row, clock: FakeClock) -> None:
    with pytest.raises(BaseError) as caught:
        row.happens(clock)

    text = str(caught.value)
    ran = {True: "The function ran", False: "The function was not run", None: "It is not known whether the function ran"}
    assert ran[row.function_ran] in text
    assert "retry" in text.lower()
    assert text.count(KEY_OF_ORDER) >= row.has_key
    assert "- (None)" not in text
    assert ". ." not in text
    assert ".." not in text


def test_the_page_has_every_row() -> None:
    page = PAGE.read_text()

    assert page[page.index(BEGIN) + len(BEGIN) : page.index(END)] == table()


def write_page() -> None:
    """Put the rows into the page."""
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(BEGIN) + len(BEGIN)] + table() + page[page.index(END) :])


if __name__ == "__main__":
    write_page()
