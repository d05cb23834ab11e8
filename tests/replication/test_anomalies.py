"""Two Regions claim one key within the replication's delay: what goes wrong, how it is detected, and what nobody can promise.

The first tests show both anomalies on a bare conditional put, which is what other libraries do.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, SERVICE_ERRORS, Form, Suspended, keyed, raise_boom, raise_suspended
from replication.replicas import HERE, THERE, GlobalTable

from idempotency import IdempotencyLeaseLostError
from idempotency.events import Completed, LeaseLost, Released, ReplicationConflict, TakenOver

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock


# The anomalies, bare


def bare_call(table: GlobalTable, region: str, work: Callable[[], str]) -> str:
    """Claim by a conditional put, run, store the result; a duplicate gets what is stored."""
    client, key = table.replicas[region], {"id": {"S": "bare"}}
    try:
        client.put_item(
            TableName=table.name, Item={**key, "status": {"S": "INPROGRESS"}}, ConditionExpression="attribute_not_exists(id)"
        )
    except SERVICE_ERRORS:
        return client.get_item(TableName=table.name, Key=key)["Item"]["data"]["S"]
    result = work()
    client.update_item(
        TableName=table.name,
        Key=key,
        UpdateExpression="SET #d = :d, #s = :s",
        ExpressionAttributeNames={"#d": "data", "#s": "status"},
        ExpressionAttributeValues={":d": {"S": result}, ":s": {"S": "COMPLETED"}},
    )
    return result


def test_anomaly_both_regions_claim_one_key_within_the_delay_and_the_function_runs_twice(table: GlobalTable) -> None:
    runs: list[str] = []

    def run(region: str) -> str:
        runs.append(region)
        return f"paid in {region}"

    results = [bare_call(table, region, lambda region=region: run(region)) for region in (HERE, THERE)]

    assert runs == [HERE, THERE]
    assert results == ["paid in us-east-1", "paid in eu-west-1"]


def test_anomaly_one_of_the_two_records_vanishes_and_nobody_is_told(table: GlobalTable) -> None:
    given = bare_call(table, HERE, lambda: "receipt 1")
    bare_call(table, THERE, lambda: "receipt 2")

    table.replicate()

    replayed = {bare_call(table, region, lambda: "unreachable") for region in (HERE, THERE)}
    assert given == "receipt 1"
    assert replayed == {"receipt 2"}


# Detected


class Caller:
    """The function as one Region has it.

    Attributes:
        runs: How many times it ran there.
        events: What its observers were told.
    """

    def __init__(self, table: GlobalTable, form: Form, region: str, work: Callable[[], Any], **options: Any) -> None:
        self.runs = 0
        self.events: list[Any] = []
        self._work, self._table, self._region = work, table, region
        store = table.store(region, **options)
        self._handler = form.handler(lambda _event: self._run(), store, keyed(observers=[self.events.append]))

    def __call__(self, remaining_ms: int = 30_000) -> Any:
        return self._handler(
            ORDER, LambdaContext(remaining_ms=remaining_ms, aws_request_id=f"in {self._region}", clock=self._table.clock)
        )

    def _run(self) -> Any:
        self.runs += 1
        return self._work()

    def told(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]


class Running:
    """A call at work in a thread, inside its function until told to end."""

    def __init__(self, table: GlobalTable, form: Form, region: str, result: str) -> None:
        self._inside, self._end, self._result = Event(), Event(), result
        self.caller = Caller(table, form, region, self._work)
        self._answer: list[Any] = []
        self._thread = Thread(target=self._call)
        self._thread.start()
        assert self._inside.wait(10)

    def _work(self) -> str:
        self._inside.set()
        assert self._end.wait(10)
        return self._result

    def _call(self) -> None:
        self._answer.append(self.caller())

    def finish(self) -> Any:
        """Its answer."""
        self._end.set()
        self._thread.join()
        return self._answer[0]


def there_and_back(table: GlobalTable, other: Callable[[], Any], end: Callable[[], Any]) -> Callable[[], Any]:
    """A function during whose run the other Region is called, and everything is replicated."""

    def work() -> Any:
        with suppress(Suspended):  # the other one stays at work
            other()
        table.replicate()
        return end()

    return work


def test_the_loser_gets_the_result_of_the_winner_that_has_completed(table: GlobalTable, form: Form) -> None:
    winner = Caller(table, form, THERE, lambda: "receipt there")
    loser = Caller(table, form, HERE, there_and_back(table, winner, lambda: "receipt here"))

    assert loser() == "receipt there"
    table.replicate()

    assert (loser(), winner()) == ("receipt there", "receipt there")
    assert (loser.runs, winner.runs) == (1, 1)


def test_the_loser_is_told_to_retry_while_the_winner_still_runs_and_then_gets_its_result(table: GlobalTable, form: Form) -> None:
    attempts: list[Running] = []

    def work() -> str:
        attempts.append(Running(table, form, THERE, "receipt there"))
        table.replicate()
        return "receipt here"

    loser = Caller(table, form, HERE, work)
    with pytest.raises(IdempotencyLeaseLostError) as lost:
        loser()
    assert lost.value.record is not None
    assert lost.value.record.region == THERE
    assert str(lost.value).startswith("The function ran, but its claim in us-east-1 was replaced by one in eu-west-1 and another")
    assert attempts[0].finish() == "receipt there"
    table.replicate()

    assert loser() == "receipt there"
    assert loser.runs == 1


def test_the_winner_notices_nothing(table: GlobalTable, form: Form) -> None:
    winner = Caller(table, form, THERE, lambda: "receipt there")
    Caller(table, form, HERE, there_and_back(table, winner, lambda: "receipt here"))()

    assert winner.told(LeaseLost, ReplicationConflict) == []
    assert len(winner.told(Completed)) == 1


@pytest.mark.parametrize("end", [lambda: "receipt there", raise_suspended], ids=["completed", "still running"])
def test_the_winners_record_stays_as_it_is_in_both_regions(table: GlobalTable, form: Form, end: Callable[[], Any]) -> None:
    winner = Caller(table, form, THERE, end)
    seen: list[Any] = []
    loser = Caller(table, form, HERE, there_and_back(table, winner, lambda: seen.append(table.peek(THERE, KEY))))
    with suppress(IdempotencyLeaseLostError):
        loser()
    table.replicate()

    assert seen[0]["holder"] == "in eu-west-1"
    assert table.peek(HERE, KEY) == table.peek(THERE, KEY) == seen[0]


@pytest.mark.parametrize("end", [lambda: "receipt there", raise_suspended], ids=["completed", "still running"])
def test_the_conflict_is_told_with_both_regions_besides_the_lost_lease(
    table: GlobalTable, form: Form, end: Callable[[], Any], clock: FakeClock
) -> None:
    winner = Caller(table, form, THERE, end)
    loser = Caller(table, form, HERE, there_and_back(table, winner, lambda: "receipt here"))
    with suppress(IdempotencyLeaseLostError):
        loser()

    assert loser.told(LeaseLost, ReplicationConflict) == [
        LeaseLost(key=KEY, at_ms=clock.now_ms, generation=1, winner_holder="in eu-west-1"),
        ReplicationConflict(key=KEY, at_ms=clock.now_ms, region=HERE, winner_region=THERE),
    ]


def test_a_completion_is_a_later_write_too_and_wins_over_the_claim_that_was_made_after_its_own(
    table: GlobalTable, form: Form
) -> None:
    """The first claim completes before the second one has arrived: now the second is the loser, and learns it."""
    first = Running(table, form, HERE, "receipt here")

    def work() -> str:
        assert first.finish() == "receipt here"
        table.replicate()
        return "receipt there"

    second = Caller(table, form, THERE, work)

    assert second() == "receipt here"
    assert second.told(ReplicationConflict)[0].winner_region == HERE
    assert first.caller() == "receipt here"


def test_a_lease_that_is_lost_within_one_region_is_no_replication_conflict(
    table: GlobalTable, form: Form, clock: FakeClock
) -> None:
    successor = Caller(table, form, HERE, lambda: "second")

    def late() -> str:
        clock.advance(ms=31_001)
        assert successor() == "second"
        return "first"

    late_one = Caller(table, form, HERE, late)

    assert late_one() == "second"
    assert len(late_one.told(LeaseLost)) == 1
    assert late_one.told(ReplicationConflict) == []


# The Region in the record


@pytest.mark.parametrize("region", [HERE, THERE])
def test_each_record_carries_the_region_that_wrote_it(table: GlobalTable, form: Form, region: str) -> None:
    seen: list[Any] = []
    Caller(table, form, region, lambda: seen.append(table.peek(region, KEY)))()
    table.replicate()

    assert [seen[0]["region"], table.peek(HERE, KEY)["region"], table.peek(THERE, KEY)["region"]] == [region] * 3


def test_the_regions_attribute_can_have_another_name(table: GlobalTable, form: Form) -> None:
    winner = Caller(table, form, THERE, lambda: "receipt there", region_attr="aws.region")
    loser = Caller(table, form, HERE, there_and_back(table, winner, lambda: "receipt here"), region_attr="aws.region")
    loser()
    item = table.peek(HERE, KEY)

    assert item is not None
    assert (item["aws.region"], "region" in item) == (THERE, False)
    assert loser.told(ReplicationConflict)[0].winner_region == THERE


def test_a_table_in_one_region_has_no_region_in_its_records(table: GlobalTable, form: Form) -> None:
    Caller(table, form, HERE, lambda: "receipt", replication=None)()

    assert "region" not in (table.peek(HERE, KEY) or {})


def test_a_client_that_does_not_tell_its_region_is_detected_all_the_same_but_its_region_is_unknown(
    table: GlobalTable, form: Form
) -> None:
    class Wrapped:
        def __init__(self, client: Any) -> None:
            self.put_item, self.get_item = client.put_item, client.get_item
            self.update_item, self.delete_item = client.update_item, client.delete_item

    winner = Caller(table, form, THERE, lambda: "receipt there")
    work = there_and_back(table, winner, lambda: "receipt here")
    loser = Caller(table, form, HERE, work, boto3_client=Wrapped(table.replicas[HERE]))

    assert loser() == "receipt there"
    assert [type(event) for event in loser.told(LeaseLost, ReplicationConflict)] == [LeaseLost]


# Functions that fail


def test_a_failed_loser_leaves_the_winners_record_alone_and_raises_its_own_error(table: GlobalTable, form: Form) -> None:
    winner = Caller(table, form, THERE, lambda: "receipt there")
    loser = Caller(table, form, HERE, there_and_back(table, winner, raise_boom))
    with pytest.raises(OSError, match="boom"):
        loser()
    table.replicate()

    assert loser() == winner() == "receipt there"
    assert loser.told(ReplicationConflict)[0].winner_region == THERE
    assert loser.told(Released) == []


def test_a_release_is_replicated_and_frees_the_key_in_the_other_region(table: GlobalTable, form: Form) -> None:
    with pytest.raises(OSError, match="boom"):
        Caller(table, form, HERE, lambda: table.replicate() or raise_boom())()
    assert table.peek(THERE, KEY) is not None
    table.replicate()
    assert table.peek(THERE, KEY) is None

    assert Caller(table, form, THERE, lambda: "receipt there")() == "receipt there"


def test_a_record_that_vanishes_by_another_regions_release_is_written_whole_at_completion(table: GlobalTable, form: Form) -> None:
    """The release came before the winner's claim had arrived, and deletes that claim as the later write."""

    def fail() -> None:
        raise_boom()

    def work() -> str:
        with pytest.raises(OSError, match="boom"):
            failing()
        table.replicate()
        assert table.peek(THERE, KEY) is None
        return "receipt there"

    failing = Caller(table, form, HERE, fail)
    winner = Caller(table, form, THERE, work)

    assert winner() == "receipt there"
    table.replicate()

    item = table.peek(HERE, KEY)
    assert item is not None
    assert (item["status"], item["region"], item["holder"]) == ("COMPLETED", THERE, "in eu-west-1")
    assert winner() == "receipt there"
    assert winner.runs == 1


# Takeover


def test_an_orphan_of_the_other_region_is_taken_over_and_its_late_attempt_gets_the_takers_result(
    table: GlobalTable, form: Form, clock: FakeClock
) -> None:
    taker = Caller(table, form, THERE, lambda: "receipt there")

    def late() -> str:
        table.replicate()
        clock.advance(ms=31_001)
        assert taker() == "receipt there"
        table.replicate()
        return "receipt here"

    orphan = Caller(table, form, HERE, late)

    assert orphan() == "receipt there"
    item = table.peek(HERE, KEY)
    assert item is not None
    assert (item["generation"], item["region"]) == (2, THERE)
    assert len(taker.told(TakenOver)) == 1
    assert orphan.told(ReplicationConflict)[0].winner_region == THERE


def test_a_live_lease_of_the_other_region_is_respected_as_soon_as_its_claim_has_arrived(table: GlobalTable, form: Form) -> None:
    with pytest.raises(Suspended):
        Caller(table, form, HERE, raise_suspended)()
    table.replicate()
    other = Caller(table, form, THERE, lambda: "receipt there")
    with pytest.raises(Exception, match="Execution already in progress"):
        other()

    assert other.runs == 0


# What is not promised


def test_not_promised_each_caller_keeps_its_own_result_if_both_complete_before_anything_arrives(
    table: GlobalTable, form: Form
) -> None:
    """Neither replica has shown the other's claim.  The function ran twice, nobody was told; only home Regions prevent it."""
    here = Caller(table, form, HERE, lambda: "receipt here")
    there = Caller(table, form, THERE, lambda: "receipt there")

    assert (here(), there()) == ("receipt here", "receipt there")
    assert here.told(LeaseLost, ReplicationConflict) == there.told(LeaseLost, ReplicationConflict) == []
    table.replicate()

    assert (here(), there()) == ("receipt there", "receipt there")


def test_not_promised_a_release_by_the_loser_lets_a_third_call_in_while_the_winner_runs(table: GlobalTable, form: Form) -> None:
    third = Caller(table, form, THERE, lambda: "third")
    running = Running(table, form, HERE, "second")  # claimed here, and not yet known there
    first = Caller(table, form, THERE, raise_boom)
    with pytest.raises(OSError, match="boom"):
        first()
    table.replicate()

    assert table.peek(HERE, KEY) is None
    assert third() == "third"
    table.replicate()

    assert running.finish() == "third"  # which the winner learns when it completes
    assert running.caller.told(ReplicationConflict)[0].winner_region == THERE
