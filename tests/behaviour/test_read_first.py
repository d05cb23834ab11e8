"""`read_first`: a duplicate costs one cheap read, and nothing else changes, however old what is read may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import Form, Work, key_of
from doubles import LambdaContext
from faults import (
    FaultyClient,
    Suspended,
    access_denied,
    client_error,
    connection_closed,
    incomplete_read,
    internal_error,
    read_timeout,
    refused,
    throttle,
)
from stores import Made, dynamodb, dynamodb_odd_names, large_results

from idempotency import (
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    make_idempotent,
)
from idempotency.events import Claimed, Completed, Replayed, Throttled

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock
    from faults import Send
    from stores import Peek

    from persistence.dynamodb import DynamoDBPersistenceLayer

ORDER = {"id": 7, "amount": 10}
KEY = key_of(7)


class Bench:
    """A store that reads first, its client, and what it asked of it."""

    def __init__(self, made: Made, clock: FakeClock) -> None:
        self.store: DynamoDBPersistenceLayer = made.store  # type: ignore[assignment]
        self.client = FaultyClient(self.store.client)
        self.store.client = self.client
        self.store.read_first = True
        self.peek: Peek = made.peek
        self.clock = clock
        self.work = Work(result="paid")
        self.events: list[Any] = []

    def call(self, payload: Any = ORDER, **options: Any) -> Any:
        """Handled within an invocation of 30 s."""
        config = IdempotencyConfig("id", observers=[self.events.append], **options)
        decorated = Form("idempotent", is_async=False).decorate(self.work, self.store, config)
        return decorated(payload, LambdaContext(30_000, clock=self.clock))

    def asked(self) -> list[str]:
        """The operations since the last question."""
        operations = [operation for operation, _ in self.client.requests]
        self.client.requests.clear()
        return operations

    def item(self) -> dict[str, Any]:
        """What the table holds under the key, as the service answers it."""
        request = self.store._items.get(KEY)
        item: dict[str, Any] = self.client.client.get_item(TableName=self.store.table_name, **request)["Item"]
        return item

    def reads_show(self, item: dict[str, Any] | None) -> None:
        """From now on, reads are answered from an earlier time."""
        self.client.always("get_item", lambda _send: {"Item": item} if item else {})


@pytest.fixture(params=[dynamodb, dynamodb_odd_names], ids=["plain", "odd-names"])
def bench(request: pytest.FixtureRequest, clock: FakeClock, dynamodb_local: str) -> Bench:
    return Bench(request.param(clock, dynamodb_local), clock)


def in_progress(bench: Bench) -> None:
    """Let an attempt of 30 s begin and stay at work."""
    bench.work.error = Suspended()
    with pytest.raises(Suspended):
        bench.call()
    bench.work.error = None
    bench.asked()


# The saving


def test_a_duplicate_of_a_completed_call_is_one_eventually_consistent_read_and_no_write(bench: Bench) -> None:
    bench.call()
    bench.asked()

    assert bench.call() == "paid"
    [(operation, request)] = bench.client.requests
    assert (operation, request["ConsistentRead"]) == ("get_item", False)
    assert len(bench.work.runs) == 1
    assert isinstance(bench.events[-1], Replayed)
    assert bench.events[-1].source == "store"


def test_every_form_of_function_reads_first(form: Form, bench: Bench) -> None:
    call = form.decorate(bench.work, bench.store, IdempotencyConfig("id"))
    call(ORDER)
    bench.asked()

    assert call(ORDER) == "paid"
    assert bench.asked() == ["get_item"]
    assert len(bench.work.runs) == 1


def test_a_new_key_costs_one_read_more_and_is_claimed_by_the_conditional_write(bench: Bench) -> None:
    bench.call()

    assert bench.asked() == ["get_item", "put_item", "update_item"]


def test_the_option_is_off_unless_it_is_given(clock: FakeClock, dynamodb_local: str) -> None:
    for options, requests in (({}, ["put_item", "update_item"]), ({"read_first": True}, ["get_item", "put_item", "update_item"])):
        made = dynamodb(clock, dynamodb_local, **options)
        client = made.store.client = FaultyClient(made.store.client)  # type: ignore[attr-defined]
        make_idempotent(Work(), persistence_store=made.store)(7)

        assert [operation for operation, _ in client.requests] == requests


def test_a_large_result_is_replayed_from_the_read(bench: Bench) -> None:
    bench.work.result = "x" * 390_000
    bench.call()
    bench.asked()

    assert bench.call() == bench.work.result
    assert bench.asked() == ["get_item"]


def test_a_result_that_was_not_kept_is_told_from_the_read_and_not_run_again(bench: Bench) -> None:
    bench.work.result = object()
    with pytest.raises(IdempotencyResultNotKeptError):
        bench.call()
    bench.asked()
    with pytest.raises(IdempotencyResultNotKeptError):
        bench.call()

    assert bench.asked() == ["get_item"]
    assert len(bench.work.runs) == 1


def test_another_payload_is_refused_from_the_read(bench: Bench) -> None:
    bench.call(payload_validation_jmespath="amount")
    bench.asked()
    with pytest.raises(IdempotencyValidationError):
        bench.call({"id": 7, "amount": 11}, payload_validation_jmespath="amount")

    assert bench.asked() == ["get_item"]


# Everything else is for the conditional write


def test_an_attempt_in_progress_refuses_by_the_conditional_write(bench: Bench) -> None:
    in_progress(bench)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        bench.call()

    assert bench.asked() == ["get_item", "put_item"]


def test_an_orphan_is_taken_over(bench: Bench) -> None:
    in_progress(bench)
    bench.clock.advance(ms=31_001)

    assert bench.call() == "paid"
    assert bench.asked() == ["get_item", "put_item", "put_item", "update_item"]
    item = bench.peek(KEY)
    assert item is not None
    assert item["generation"] == 2


@pytest.mark.parametrize(("late_ms", "requests"), [(0, ["get_item"]), (1, ["get_item", "put_item", "put_item", "update_item"])])
def test_an_expired_result_is_run_again_from_the_first_millisecond_on(bench: Bench, late_ms: int, requests: list[str]) -> None:
    bench.call(expires_after_seconds=60)
    bench.asked()
    last_ms = bench.clock() // 1000 * 1000 + 60_999
    bench.clock.advance(ms=last_ms - bench.clock() + late_ms)
    bench.call()

    assert bench.asked() == requests


@pytest.mark.parametrize(
    "error", [throttle, access_denied, internal_error, read_timeout, connection_closed, incomplete_read, lambda: OSError("odd")]
)
@pytest.mark.parametrize("is_done", [False, True], ids=["new", "completed"])
def test_a_read_that_fails_costs_nothing_but_itself(bench: Bench, error: Callable[[], Exception], is_done: bool) -> None:
    """It is not repeated, because the conditional write decides as well."""
    if is_done:
        bench.call()
        bench.asked()
    bench.client.always("get_item", refused(error()))

    assert bench.call() == "paid"
    assert bench.asked() == ["get_item", "put_item"] + ([] if is_done else ["update_item"])
    assert bench.clock.slept_ms == []
    assert len(bench.work.runs) == 1


def test_a_throttled_read_is_told_to_observers_before_the_claim(bench: Bench) -> None:
    bench.client.at("get_item", 1, refused(throttle()))
    bench.call()

    assert [type(event) for event in bench.events] == [Throttled, Claimed, Completed]


def test_an_interruption_of_the_read_is_an_interruption(bench: Bench) -> None:
    bench.client.at("get_item", 1, refused(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        bench.call()

    assert bench.work.runs == []


def test_an_item_that_is_no_record_is_an_error_of_the_conditional_write(bench: Bench) -> None:
    bench.call()
    strange = {name: {"BOOL": True} for name in bench.item() if name not in bench.store._items.key(KEY)}
    bench.client.client.put_item(TableName=bench.store.table_name, Item={**bench.store._items.key(KEY), **strange})
    bench.asked()
    with pytest.raises(IdempotencyPersistenceLayerError, match="The item is no idempotency record"):
        bench.call()

    assert bench.asked() == ["get_item", "put_item"]


def test_a_claim_that_supersedes_a_record_does_not_read_it_again(bench: Bench) -> None:
    """It was seen a moment ago, to be claimable."""
    in_progress(bench)
    bench.clock.advance(ms=31_001)
    stored = bench.store._items.record(bench.item())
    bench.store.claim(stored.replace(owner_token="ours", generation=2, supersedes=1, in_progress_expiry_timestamp=bench.clock()))

    assert bench.asked() == ["put_item"]


# What is read may be old


def test_a_read_from_before_the_claim_does_not_let_a_second_attempt_in(bench: Bench) -> None:
    in_progress(bench)
    bench.reads_show(None)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        bench.call()

    assert len(bench.work.runs) == 1


@pytest.mark.parametrize("seen", ["absent", "in progress"])
def test_a_read_from_before_the_completion_still_replays_the_result(bench: Bench, seen: str) -> None:
    stale: list[dict[str, Any] | None] = [None]

    def work(_event: Any) -> str:
        if seen == "in progress":
            stale[0] = bench.item()
        return "paid"

    call = Form("idempotent", is_async=False).decorate(work, bench.store, IdempotencyConfig("id"))
    call(ORDER, LambdaContext(30_000, clock=bench.clock))
    bench.reads_show(stale[0])
    bench.clock.advance(ms=31_001)  # by the stale record, the attempt is an orphan

    assert bench.call() == "paid"
    assert bench.work.runs == []


def test_a_read_from_before_a_takeover_does_not_let_a_third_attempt_in(bench: Bench) -> None:
    in_progress(bench)
    stale = bench.item()
    bench.clock.advance(ms=31_001)
    in_progress(bench)  # taken over, and at work
    bench.reads_show(stale)
    with pytest.raises(IdempotencyAlreadyInProgressError):
        bench.call()

    assert len(bench.work.runs) == 2


def test_a_read_from_before_a_release_claims_the_free_key(bench: Bench) -> None:
    in_progress(bench)
    stale = bench.item()
    bench.client.client.delete_item(TableName=bench.store.table_name, Key=bench.store._items.key(KEY))
    bench.reads_show(stale)

    assert bench.call() == "paid"


def test_a_completed_record_that_is_read_late_is_the_answer_until_it_expires(bench: Bench) -> None:
    """Nothing replaces it before that, so an old reading of it is as good as a new one."""
    bench.call(expires_after_seconds=60)
    stale = bench.item()
    bench.clock.advance(seconds=62)
    bench.work.result = "paid again"
    assert bench.call() == "paid again"
    bench.reads_show(stale)

    assert bench.call() == "paid again"
    assert len(bench.work.runs) == 2


def test_a_refusal_without_the_item_is_read_consistently_after_a_stale_first_read(bench: Bench) -> None:
    """As old SDKs and some emulators refuse."""
    bench.call()
    bench.asked()
    bench.client.at("get_item", 1, lambda _send: {})
    bench.client.at(
        "put_item", 1, refused(client_error("ConditionalCheckFailedException", 400, "The conditional request failed"))
    )

    assert bench.call() == "paid"
    reads = [request["ConsistentRead"] for operation, request in bench.client.requests if operation == "get_item"]
    assert reads == [False, True]


def test_a_result_that_expires_while_it_is_read_is_superseded_by_one_write(bench: Bench) -> None:
    bench.call(expires_after_seconds=60)
    bench.clock.advance(seconds=60)
    bench.asked()

    def slow(send: Send) -> Any:
        bench.clock.advance(seconds=2)
        return send()

    bench.client.at("get_item", 1, slow)
    bench.call()

    assert bench.asked() == ["get_item", "put_item", "update_item"]
    assert len(bench.work.runs) == 2


# What it costs


def units(bench: Bench, operation: str, **request: Any) -> float:
    """The capacity that the service says it used."""
    answer = getattr(bench.client.client, operation)(TableName=bench.store.table_name, ReturnConsumedCapacity="TOTAL", **request)
    consumed: float = answer["ConsumedCapacity"]["CapacityUnits"]
    return consumed


@pytest.mark.parametrize(
    ("size", "eventual", "consistent", "write"),
    [(300, 0.5, 1, 1), (4_000, 0.5, 1, 4), (51_000, 6.5, 13, 50), (358_000, 44, 88, 350)],
)
def test_the_table_of_units_in_the_documents_is_what_the_engine_counts(
    clock: FakeClock, dynamodb_local: str, size: int, eventual: float, consistent: float, write: float
) -> None:
    """What a refused claim uses, no client is told; the documents cite the service for it."""
    made = dynamodb(clock, dynamodb_local)
    large_results(made, compression=None, item_size_threshold=400 * 1024)
    bench = Bench(made, clock)
    bench.work.result = "x" * (size - 230)
    used: dict[str, float] = {}

    def counted(operation: str) -> Callable[[Send], Any]:
        def strike(_send: Send) -> Any:
            _, request = bench.client.requests[-1]
            request = {name: value for name, value in request.items() if name != "TableName"}
            used[operation] = units(bench, operation, **request)
            return {}

        return strike

    bench.client.at("put_item", 1, counted("put_item"))
    bench.client.at("update_item", 1, counted("update_item"))
    bench.call()
    get, absent = bench.store._items.get, bench.store._items.get("no such key", is_consistent=False)

    assert size - 100 < bench.store._items.size(bench.store._items.record(bench.item())) <= size
    assert used == {"put_item": 1, "update_item": write}
    assert units(bench, "get_item", **get(KEY, is_consistent=False)) == eventual
    assert units(bench, "get_item", **get(KEY)) == consistent
    assert units(bench, "get_item", **absent) == 0.5
    with pytest.raises(Exception, match="ConditionalCheckFailed") as refusal:
        units(bench, "put_item", **bench.store._items.claim(bench.store._items.record(bench.item()), clock()))
    assert "ConsumedCapacity" not in refusal.value.response  # type: ignore[attr-defined]
