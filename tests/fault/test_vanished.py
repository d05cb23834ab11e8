"""A claim that vanishes while its function runs: deleted by hand, or by a table's TTL that was set to another attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, UNKNOWN_OUTCOMES, Bench, Form, Suspended, before, keyed, lost, raise_suspended, read_timeout

from idempotency import IdempotencyLeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

SYNC = Form(is_async=False)


def vanish(bench: Bench) -> None:
    bench.client.delete_item(TableName=bench.store.table_name, Key={"id": {"S": KEY}})


def pay(bench: Bench, meanwhile: Callable[[], object]) -> str:
    """One invocation, in whose run something happens."""

    def run(_event: object) -> str:
        meanwhile()
        return "paid"

    result: str = SYNC.handler(run, bench.store)(ORDER, LambdaContext(clock=bench.clock))
    return result


def test_its_result_is_stored_in_a_whole_record(bench: Bench) -> None:
    assert pay(bench, lambda: vanish(bench)) == "paid"

    record = bench.peek(KEY)
    assert (record["status"], record["data"], record["generation"], record["holder"]) == ("COMPLETED", '"paid"', 1, "request-1")
    assert pay(bench, lambda: pytest.fail("ran twice")) == "paid"


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_lost_answer_to_the_writing_of_that_record_is_made_good(bench: Bench, error: Callable[[], Exception]) -> None:
    bench.client.at("put_item", 2, lost(error()))

    assert pay(bench, lambda: vanish(bench)) == "paid"
    assert bench.peek(KEY)["data"] == '"paid"'


def test_a_record_that_was_written_although_every_answer_was_lost_is_found_by_a_read(bench: Bench) -> None:
    def meanwhile() -> None:
        vanish(bench)
        bench.client.always("put_item", lost(read_timeout()))

    assert pay(bench, meanwhile) == "paid"


@pytest.mark.parametrize("error", [None, *UNKNOWN_OUTCOMES])
def test_a_late_copy_of_its_own_claim_is_completed_after_all(bench: Bench, error: Callable[[], Exception] | None) -> None:
    """The network held a copy back; it arrives between the vanishing and the writing of the whole record, which it refuses."""

    def arrive() -> None:
        [(_, claim), *_] = bench.client.requests
        bench.direct.put_item(**claim)

    def meanwhile() -> None:
        vanish(bench)
        bench.client.at("put_item", 1, before(arrive))
        if error is not None:
            bench.client.at("update_item", 2, lost(error()))

    assert pay(bench, meanwhile) == "paid"
    assert (bench.peek(KEY)["status"], bench.peek(KEY)["data"]) == ("COMPLETED", '"paid"')


def test_another_attempt_that_claims_the_free_key_first_is_the_winner(bench: Bench) -> None:
    def claim() -> None:
        bench.client.heal()
        with pytest.raises(Suspended):
            SYNC.function(lambda _event: raise_suspended(), bench.store, keyed(lease_seconds=60))(ORDER)

    def meanwhile() -> None:
        vanish(bench)
        bench.client.at("put_item", 1, before(claim))

    with pytest.raises(IdempotencyLeaseLostError):
        pay(bench, meanwhile)
    assert bench.peek(KEY)["status"] == "INPROGRESS"
