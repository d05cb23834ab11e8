"""Requests that are delayed on their way and land after what was sent later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, SYNC, Bench, Form, before, delayed, keyed, lost, read_timeout, refused, throttle

from idempotency import IdempotencyAlreadyInProgressError

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Fault, Send

    from persistence.background import Heartbeat


def test_a_delayed_renewal_does_not_shorten_a_lease_that_was_renewed_since(bench: Bench, form: Form, heart: Heartbeat) -> None:
    """The holder believes in the later end, so nobody else may run before it."""
    on_their_way: list[Send] = []
    bench.client.at("update_item", 1, delayed(on_their_way))

    def slow(_event: Any) -> str:
        for _ in range(2):
            bench.clock.advance(seconds=25)
            heart.beat()
        on_their_way[0]()
        bench.clock.advance(seconds=36)  # 1 s after the end that the delayed renewal had set
        with pytest.raises(IdempotencyAlreadyInProgressError):
            form.function(lambda _event: pytest.fail("ran twice"), bench.store)(ORDER)
        return "done"

    assert form.function(slow, bench.store, keyed(lease_seconds=60))(ORDER) == "done"


@pytest.mark.parametrize("struck", [lost, refused], ids=["applied", "not applied"])
def test_a_recovered_claim_runs_although_its_renewal_fails(
    bench: Bench, form: Form, struck: Callable[[Exception], Fault]
) -> None:
    """Its lease has just begun, and the heartbeat renews it again soon."""
    bench.client.at("put_item", 1, lost(read_timeout()))
    bench.client.at("update_item", 1, struck(read_timeout() if struck is lost else throttle()))

    assert form.function(lambda _event: "done", bench.store)(ORDER) == "done"


def test_a_delayed_claim_that_lands_after_its_record_has_vanished_does_not_cost_the_result(bench: Bench) -> None:
    """The record is gone when the result is to be stored, and our own claim is in the way when it is written anew."""
    on_their_way: list[Send] = []
    bench.client.at("put_item", 1, delayed(on_their_way))
    bench.client.at("put_item", 3, before(lambda: [land() for land in on_their_way]))

    def run(_event: Any) -> str:
        bench.client.delete_item(TableName=bench.store.table_name, Key={"id": {"S": KEY}})
        return "paid"

    assert SYNC.handler(run, bench.store)(ORDER, LambdaContext(clock=bench.clock)) == "paid"
    assert bench.peek(KEY)["data"] == '"paid"'
