"""Strong replication (MRSC): each replica sees every claim, and a write that meets another Region's is refused for now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, FaultyClient, Form, client_error, keyed, raise_boom, refused
from stores import dynamodb

from idempotency import IdempotencyPersistenceLayerError
from idempotency.events import Completed, ReplicationConflict, Throttled

if TYPE_CHECKING:
    from doubles import FakeClock


def conflict() -> Exception:
    """https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_ReplicatedWriteConflictException.html."""
    return client_error(
        "ReplicatedWriteConflictException",
        400,
        "The request was rejected because one or more items in the request are being modified by a request in another Region.",
    )


class Bench:
    """A store of a strong table and its faulty client, and what observers were told."""

    def __init__(self, endpoint: str, clock: FakeClock, client_kind: str) -> None:
        made = dynamodb(clock, endpoint, client_kind, replication="strong")
        self.clock, self.peek, self.store = clock, made.peek, made.store
        self.client = FaultyClient(made.store.client)
        made.store.client = self.client
        self.events: list[Any] = []

    def call(self, form: Form, work: Any = lambda: "paid", remaining_ms: int = 30_000) -> Any:
        handler = form.handler(lambda _event: work(), self.store, keyed(observers=[self.events.append]))
        return handler(ORDER, LambdaContext(remaining_ms=remaining_ms, clock=self.clock))


@pytest.fixture
def bench(dynamodb_local: str, clock: FakeClock, client_kind: str) -> Bench:
    return Bench(dynamodb_local, clock, client_kind)


@pytest.mark.parametrize("operation", ["put_item", "update_item"])
def test_a_conflict_with_another_regions_write_is_waited_out(bench: Bench, form: Form, operation: str) -> None:
    for number in (1, 2, 3):
        bench.client.at(operation, number, refused(conflict()))

    assert bench.call(form) == "paid"
    assert bench.client.count(operation) == 4
    assert len(bench.clock.slept_ms) == 3


def test_a_conflict_at_the_release_is_waited_out(bench: Bench, form: Form) -> None:
    bench.client.at("delete_item", 1, refused(conflict()))
    with pytest.raises(OSError, match="boom"):
        bench.call(form, raise_boom)

    assert bench.peek(KEY) is None
    assert len(bench.clock.slept_ms) == 1


def test_the_pauses_are_jittered_so_that_two_regions_do_not_meet_again(bench: Bench, form: Form) -> None:
    for number in range(1, 9):
        bench.client.at("put_item", number, refused(conflict()))
    bench.call(form)

    assert len(set(bench.clock.slept_ms)) == 8
    assert all(pause <= 50 * 2**number for number, pause in enumerate(bench.clock.slept_ms))


@pytest.mark.parametrize("remaining_ms", [1_000, 5_000])
def test_conflicts_without_end_are_an_error_before_the_deadline_and_nothing_was_run(
    bench: Bench, form: Form, remaining_ms: int
) -> None:
    bench.client.always("put_item", refused(conflict()))
    start_ms, runs = bench.clock(), []
    with pytest.raises(IdempotencyPersistenceLayerError, match="ReplicatedWriteConflictException"):
        bench.call(form, lambda: runs.append(1), remaining_ms)

    assert bench.clock() <= start_ms + remaining_ms - 100
    assert runs == []


def test_a_conflict_is_neither_a_throttle_nor_a_conflict_of_records(bench: Bench, form: Form) -> None:
    bench.client.at("put_item", 1, refused(conflict()))
    bench.client.at("update_item", 1, refused(conflict()))
    bench.call(form)

    assert [event for event in bench.events if isinstance(event, Throttled | ReplicationConflict)] == []
    assert isinstance(bench.events[-1], Completed)


def test_records_carry_no_region_because_every_region_sees_the_same(bench: Bench, form: Form) -> None:
    bench.call(form)

    assert "region" not in (bench.peek(KEY) or {})
