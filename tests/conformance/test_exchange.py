"""Records that this library and Powertools for Python 3.37 write on one table serve both, in both directions.

Each story has a *writer*, which is first at the key, and a *reader*; either library plays either part.  On one of the layouts,
this library speaks through its lean client.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext, Shelf, incompressible
from engines.tables import create_table, shared_client, shared_lean_client
from powertools_side import Effects, Killed, Library, ours_on, powertools_on, set_powertools_clock
from stores import Made, large_results
from verbs import Verbs, at_once

from idempotency import transaction
from persistence.datarecord import DataRecord, Status
from persistence.exceptions import IdempotencyItemAlreadyExistsError, IdempotencyLeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

LAYOUTS = {"simple": {}, "composite": {"sort_key_attr": "sk", "static_pk_value": "idempotency#payments"}}
VALIDATED = {"payload_validation_jmespath": "amount"}
EVENT = {"id": "order-1", "amount": 10}
RESULT = {"text": "日本 🧾", "n": 1.5, "list": [1, None, True], "nested": {"b": 1, "a": ""}}


@dataclass
class Table:
    """One table, and both libraries on it."""

    client: Any
    name: str
    powertools: Library
    ours: Library
    orders: str = ""

    @property
    def item(self) -> dict[str, Any]:
        """The only record."""
        (item,) = self.client.scan(TableName=self.name, ConsistentRead=True)["Items"]
        return item

    @property
    def is_empty(self) -> bool:
        return not self.client.scan(TableName=self.name, ConsistentRead=True)["Items"]


@pytest.fixture(params=LAYOUTS)
def table(request: pytest.FixtureRequest, dynamodb_local: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Table:
    layout = LAYOUTS[request.param]
    set_powertools_clock(monkeypatch, clock)
    client = shared_client(dynamodb_local)
    own_client = shared_lean_client(dynamodb_local) if request.param == "composite" else client
    name = create_table(client, key_attr="id", sort_key_attr=layout.get("sort_key_attr"))
    return Table(client, name, powertools_on(name, client, **layout), ours_on(name, own_client, clock, **layout))


@pytest.fixture(params=["powertools-then-ours", "ours-then-powertools"])
def parts(request: pytest.FixtureRequest, table: Table) -> tuple[Library, Library]:
    """The writer and the reader."""
    if request.param == "powertools-then-ours":
        return table.powertools, table.ours
    return table.ours, table.powertools


@pytest.fixture
def writer(parts: tuple[Library, Library]) -> Library:
    return parts[0]


@pytest.fixture
def reader(parts: tuple[Library, Library]) -> Library:
    return parts[1]


def lease_end_ms(table: Table) -> int:
    return int(table.item["in_progress_expiration"]["N"])


def crash(effects: Effects, library: Library, context: LambdaContext, **settings: Any) -> None:
    """An attempt that ends without a word, its record in progress."""
    with pytest.raises(Killed):
        effects.handler(library, **settings)(EVENT, context)


@pytest.mark.parametrize("settings", [{}, VALIDATED], ids=["plain", "validated"])
def test_a_result_is_replayed_and_its_item_left_alone(
    table: Table, writer: Library, reader: Library, clock: FakeClock, settings: dict[str, str]
) -> None:
    effects = Effects([RESULT, "ran twice"])
    effects.handler(writer, **settings)(EVENT, LambdaContext(clock=clock))
    before = table.item

    replayed = effects.handler(reader, **settings)(EVENT, LambdaContext(clock=clock))

    assert (replayed, effects.runs) == (RESULT, 1)
    assert table.item == before


@pytest.mark.parametrize("settings", [{}, VALIDATED], ids=["plain", "validated"])
def test_a_running_attempt_refuses_with_the_same_words(
    table: Table, writer: Library, reader: Library, clock: FakeClock, settings: dict[str, str]
) -> None:
    effects = Effects([Killed(), "ran twice"])
    crash(effects, writer, LambdaContext(clock=clock), **settings)
    clock.now_ms = lease_end_ms(table)
    before = table.item

    with pytest.raises(reader.exceptions.IdempotencyAlreadyInProgressError) as refused:
        effects.handler(reader, **settings)(EVENT, LambdaContext(clock=clock))

    keys = f"id={table.item['id']['S']}" + (f" and sort key: {table.item['sk']['S']}" if "sk" in table.item else "")
    assert refused.value.message == f"Execution already in progress with idempotency key: {keys}"
    assert str(refused.value).startswith(refused.value.message)
    assert (table.item, effects.runs) == (before, 1)


@pytest.mark.parametrize("settings", [{}, VALIDATED], ids=["plain", "validated"])
def test_an_orphan_is_taken_over_after_its_lease(
    table: Table, writer: Library, reader: Library, clock: FakeClock, settings: dict[str, str]
) -> None:
    effects = Effects([Killed(), RESULT, "ran thrice"])
    crash(effects, writer, LambdaContext(clock=clock), **settings)
    clock.now_ms = lease_end_ms(table) + 125

    result = effects.handler(reader, **settings)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)
    assert table.item["status"] == {"S": "COMPLETED"}
    assert effects.handler(writer, **settings)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_an_expired_result_is_executed_again_and_leaves_nothing_behind(
    table: Table, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects(["old", RESULT, "ran thrice"])
    effects.handler(writer, expires_after_seconds=60, **VALIDATED)(EVENT, LambdaContext(clock=clock))
    clock.now_ms = int(table.item["expiration"]["N"]) * 1000 + 875
    assert effects.handler(reader, **VALIDATED)(EVENT, LambdaContext(clock=clock)) == "old"

    clock.advance(ms=125)
    result = effects.handler(reader)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)
    assert "validation" not in table.item
    assert effects.handler(writer)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_a_failure_frees_the_key(table: Table, writer: Library, reader: Library, clock: FakeClock) -> None:
    effects = Effects([ZeroDivisionError(), RESULT])
    failing = effects.handler(writer)
    with pytest.raises(ZeroDivisionError):
        failing(EVENT, LambdaContext(clock=clock))
    assert table.is_empty

    result = effects.handler(reader)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)


def test_another_payload_is_refused_whether_the_attempt_runs_or_has_completed(
    table: Table, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects([RESULT, "ran twice"])
    validated = effects.handler(reader, **VALIDATED)
    seen: list[str] = []

    def another_payload_is_refused() -> None:
        before = table.item
        with pytest.raises(reader.exceptions.IdempotencyValidationError) as refused:
            validated({**EVENT, "amount": 11}, LambdaContext(clock=clock))
        seen.append(refused.value.message)
        assert table.item == before

    effects.meanwhile = another_payload_is_refused
    effects.handler(writer, **VALIDATED)(EVENT, LambdaContext(clock=clock))
    another_payload_is_refused()

    assert seen == ["Payload does not match stored record for this event key"] * 2
    assert effects.runs == 1


def test_a_result_without_a_hash_does_not_match_a_validated_payload(
    table: Table, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects([RESULT, "ran twice"])
    effects.handler(writer)(EVENT, LambdaContext(clock=clock))
    validated = effects.handler(reader, **VALIDATED)

    with pytest.raises(reader.exceptions.IdempotencyValidationError):
        validated(EVENT, LambdaContext(clock=clock))

    assert effects.runs == 1


def test_powertools_claims_without_a_context_hold_until_their_expiry(table: Table, clock: FakeClock) -> None:
    effects = Effects([Killed(), RESULT])
    claiming = effects.handler(table.powertools, expires_after_seconds=60)
    with pytest.warns(UserWarning, match="Couldn't determine the remaining time left"), pytest.raises(Killed):
        claiming(EVENT, None)
    assert "in_progress_expiration" not in table.item
    ours = effects.handler(table.ours)
    clock.now_ms = int(table.item["expiration"]["N"]) * 1000 + 999
    with pytest.raises(table.ours.exceptions.IdempotencyAlreadyInProgressError):
        ours(EVENT, LambdaContext(clock=clock))

    clock.advance(ms=1)

    assert ours(EVENT, LambdaContext(clock=clock)) == RESULT


def test_a_claim_without_a_deadline_is_live_to_powertools_for_its_lease(table: Table, clock: FakeClock) -> None:
    effects = Effects([Killed(), RESULT])
    crash(effects, table.ours, None, lease_seconds=10, expires_after_seconds=1)
    theirs = effects.handler(table.powertools)
    clock.now_ms = lease_end_ms(table)
    assert int(table.item["expiration"]["N"]) * 1000 >= clock.now_ms
    with pytest.raises(table.powertools.exceptions.IdempotencyAlreadyInProgressError):
        theirs(EVENT, LambdaContext(clock=clock))

    clock.advance(ms=125)

    assert theirs(EVENT, LambdaContext(clock=clock)) == RESULT


def test_our_late_success_cannot_replace_the_result_of_a_powertools_takeover(table: Table, clock: FakeClock) -> None:
    effects = Effects(["late", "winner"])
    theirs = effects.handler(table.powertools)

    def lose_the_lease() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = lease_end_ms(table) + 125
        assert theirs(EVENT, LambdaContext(clock=clock)) == "winner"

    effects.meanwhile = lose_the_lease

    assert effects.handler(table.ours)(EVENT, LambdaContext(clock=clock, remaining_ms=1_000)) == "winner"
    assert table.item["data"] == {"S": '"winner"'}
    assert not {"owner_token", "generation"} & table.item.keys()


def test_our_late_failure_cannot_free_the_key_of_a_powertools_takeover(table: Table, clock: FakeClock) -> None:
    effects = Effects([ZeroDivisionError(), Killed()])
    theirs = effects.handler(table.powertools)

    def lose_the_lease() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = lease_end_ms(table) + 125
        with pytest.raises(Killed):
            theirs(EVENT, LambdaContext(clock=clock))

    effects.meanwhile = lose_the_lease
    late = effects.handler(table.ours)
    with pytest.raises(ZeroDivisionError):
        late(EVENT, LambdaContext(clock=clock, remaining_ms=1_000))

    assert table.item["status"] == {"S": "INPROGRESS"}
    assert "owner_token" not in table.item


def test_our_result_stands_although_a_superseded_powertools_attempt_overwrote_the_record(table: Table, clock: FakeClock) -> None:
    """Powertools completes unconditionally; our completion follows and is, by the token that it left in place, the holder's."""
    effects = Effects(["late", "winner"])
    ours = effects.handler(table.ours)
    theirs = effects.handler(table.powertools)

    def take_over_and_let_the_late_one_finish() -> None:
        effects.meanwhile = finish_late
        clock.now_ms = lease_end_ms(table) + 125
        raise Killed

    def finish_late() -> None:
        hashed = table.item["sk" if "sk" in table.item else "id"]["S"]
        table.powertools.new_store()._update_record(
            DataRecord(hashed, Status.COMPLETED.value, clock.now_ms // 1000 + 60, response_data='"late"')
        )

    effects.meanwhile = take_over_and_let_the_late_one_finish
    with pytest.raises(Killed):
        theirs(EVENT, LambdaContext(clock=clock))

    assert ours(EVENT, LambdaContext(clock=clock)) == "winner"
    assert theirs(EVENT, LambdaContext(clock=clock)) == "winner"


def test_a_result_that_was_not_kept_is_no_second_execution_in_powertools(table: Table, clock: FakeClock) -> None:
    effects = Effects([object(), "ran twice"])
    ours = effects.handler(table.ours)
    with pytest.raises(table.ours.exceptions.IdempotencyResultNotKeptError):
        ours(EVENT, LambdaContext(clock=clock))

    assert effects.handler(table.powertools)(EVENT, LambdaContext(clock=clock)) is None
    assert effects.runs == 1


@pytest.mark.parametrize("offload", [None, Shelf()], ids=["compressed", "offloaded"])
def test_a_packed_result_fails_loudly_in_powertools_and_never_replays_as_none(
    table: Table, clock: FakeClock, offload: Shelf | None
) -> None:
    large = {"text": "x" * 500_000} if offload is None else {"text": incompressible(600_000)}
    effects = Effects([large, "ran twice"])
    ours = replace(table.ours, new_store=lambda: _with(table.ours.new_store(), offload))
    effects.handler(ours)(EVENT, LambdaContext(clock=clock))

    with pytest.raises(TypeError, match="JSON object must be str"):
        effects.handler(table.powertools)(EVENT, LambdaContext(clock=clock))
    assert effects.handler(ours)(EVENT, LambdaContext(clock=clock)) == large
    assert effects.runs == 1


def _with(store: Any, offload: Shelf | None) -> Any:
    large_results(Made(store, lambda _key: None), offload=offload)
    return store


def test_a_result_of_350_kb_is_read_by_both(table: Table, clock: FakeClock) -> None:
    effects = Effects([{"text": "x" * 350_000}, "ran twice"])
    effects.handler(table.ours)(EVENT, LambdaContext(clock=clock))

    for library in (table.powertools, table.ours):
        assert effects.handler(library)(EVENT, LambdaContext(clock=clock)) == effects.results[0]


def test_a_generation_starts_at_one_after_powertools_and_counts_on(table: Table, clock: FakeClock) -> None:
    effects = Effects([Killed(), Killed(), Killed()])
    generations = []
    crash(effects, table.powertools, LambdaContext(clock=clock))
    for _ in range(2):
        clock.now_ms = lease_end_ms(table) + 125
        crash(effects, table.ours, LambdaContext(clock=clock))
        generations.append(int(table.item["generation"]["N"]))

    assert generations == [1, 2]


def test_of_many_claims_at_once_of_a_powertools_orphan_one_is_granted(table: Table, clock: FakeClock) -> None:
    """Its record has no generation, so there is no counter to compare."""
    for n in range(5):
        crash_key = {"id": f"order-{n}"}
        claiming = Effects([Killed()]).handler(table.powertools)
        with pytest.raises(Killed):
            claiming(crash_key, LambdaContext(clock=clock))
        (item,) = table.client.scan(TableName=table.name, ConsistentRead=True)["Items"]
        key = item["sk" if "sk" in item else "id"]["S"]
        clock.now_ms = int(item["in_progress_expiration"]["N"]) + 1
        verbs = Verbs(table.ours.new_store(), clock)

        answers = verbs.claim_at_once([verbs.offer(key, f"racer-{i}") for i in range(16)])

        (granted,) = [answer for answer in answers if isinstance(answer, DataRecord)]
        assert (granted.generation, granted.took_over) == (1, True)
        assert sum(isinstance(answer, IdempotencyItemAlreadyExistsError) for answer in answers) == 15
        verbs.release(granted)


def test_a_record_of_powertools_is_held_by_no_token_of_ours(table: Table, clock: FakeClock) -> None:
    crash(Effects([Killed()]), table.powertools, LambdaContext(clock=clock))
    before = table.item
    key = before["sk" if "sk" in before else "id"]["S"]
    verbs = Verbs(table.ours.new_store(), clock)
    stranger = verbs.offer(key, "a")

    for write in (
        lambda: verbs.complete(verbs.completed(stranger, '"A"')),
        lambda: verbs.release(stranger),
        lambda: verbs.renew(verbs.renewed(stranger, lease_ms=60_000)),
    ):
        with pytest.raises(IdempotencyLeaseLostError):
            write()

    assert table.item == before


# A result that was committed together with writes


@pytest.fixture
def paid(table: Table) -> Callable[[], bool]:
    """Whether the write was applied that goes with the record in the two stories below."""
    table.orders = create_table(table.client)
    return lambda: bool(table.client.scan(TableName=table.orders, ConsistentRead=True)["Items"])


def test_powertools_replays_what_a_transaction_completed(table: Table, paid: Callable[[], bool]) -> None:
    effects = Effects([RESULT], meanwhile=lambda: transaction().put(TableName=table.orders, Item={"id": "paid"}))

    assert effects.handler(table.ours)(EVENT, LambdaContext()) == RESULT
    assert effects.handler(table.powertools)(EVENT, LambdaContext()) == RESULT
    assert effects.runs == 1
    assert paid()


def test_powertools_refuses_a_key_whose_transaction_is_under_way(table: Table, paid: Callable[[], bool]) -> None:
    def meanwhile() -> None:
        transaction().put(TableName=table.orders, Item={"id": "paid"})
        with pytest.raises(table.powertools.exceptions.IdempotencyAlreadyInProgressError):
            effects.handler(table.powertools)(EVENT, LambdaContext())
        assert not paid()

    effects = Effects([RESULT], meanwhile=meanwhile)

    assert effects.handler(table.ours)(EVENT, LambdaContext()) == RESULT
    assert effects.runs == 1
    assert paid()


# A rollout: workers of both libraries at once


class Racing:
    """One handler for many requests, delivered to workers of both libraries at the same time."""

    def __init__(self, table: Table, clock: FakeClock) -> None:
        self.table = table
        self.clock = clock
        self.runs: Counter[str] = Counter()
        self._lock = Lock()

    def deliver(self, library: Library, event: dict[str, Any]) -> str:
        """Until there is a result, as a queue does."""

        def run(event: dict[str, Any], _context: Any) -> str:
            with self._lock:
                self.runs[event["id"]] += 1
                return f"{event['id']}, run {self.runs[event['id']]}"

        handler = library.decorate(run)
        while True:
            try:
                result: str = handler(event, LambdaContext(clock=self.clock))
            except library.exceptions.IdempotencyAlreadyInProgressError:
                continue
            return result


def test_each_request_runs_once_while_both_libraries_serve_it(table: Table, clock: FakeClock) -> None:
    racing = Racing(table, clock)
    libraries = [table.powertools, table.ours] * 3

    for number in range(8):
        event = {"id": f"order-{number}"}
        answers = at_once([partial(racing.deliver, library, event) for library in libraries])
        assert answers == [f"order-{number}, run 1"] * len(libraries)

    assert set(racing.runs.values()) == {1}


def outlive_the_lease(effects: Effects, table: Table, clock: FakeClock, library: Library) -> None:
    """While the function runs, let its lease end and another attempt take over, as often as there are results."""

    def meanwhile() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = lease_end_ms(table) + 125
        effects.handler(library)(EVENT, LambdaContext(clock=clock))

    effects.meanwhile = meanwhile


def test_fencing_holds_among_our_own_workers_also_after_an_orphan_of_powertools(table: Table, clock: FakeClock) -> None:
    effects = Effects([Killed(), "late", "winner"])
    crash(effects, table.powertools, LambdaContext(clock=clock))
    clock.now_ms = lease_end_ms(table) + 125
    outlive_the_lease(effects, table, clock, table.ours)

    assert effects.handler(table.ours)(EVENT, LambdaContext(clock=clock)) == "winner"
    assert effects.handler(table.powertools)(EVENT, LambdaContext(clock=clock)) == "winner"


def test_a_late_success_of_powertools_replaces_our_result(table: Table, clock: FakeClock) -> None:
    """Not held: it completes unconditionally.  So its last invocation must have ended before results are relied on."""
    effects = Effects(["late", "winner"])
    outlive_the_lease(effects, table, clock, table.ours)

    assert effects.handler(table.powertools)(EVENT, LambdaContext(clock=clock)) == "late"
    assert effects.handler(table.ours)(EVENT, LambdaContext(clock=clock)) == "late"
    assert effects.runs == 2


def test_a_late_failure_of_powertools_deletes_our_result_and_the_request_runs_again(table: Table, clock: FakeClock) -> None:
    """Not held, for the same reason."""
    effects = Effects([ZeroDivisionError(), "winner", "third"])
    outlive_the_lease(effects, table, clock, table.ours)
    late = effects.handler(table.powertools)
    with pytest.raises(ZeroDivisionError):
        late(EVENT, LambdaContext(clock=clock))

    assert table.is_empty
    assert effects.handler(table.ours)(EVENT, LambdaContext(clock=clock)) == "third"


def test_a_late_failure_of_powertools_deletes_our_claim_and_two_of_ours_run_at_once(table: Table, clock: FakeClock) -> None:
    """Not held.  The result of the one that completes first is everybody's."""
    effects = Effects([ZeroDivisionError(), "second", "third"])

    def take_over() -> None:
        effects.meanwhile = delete_it
        clock.now_ms = lease_end_ms(table) + 125
        answers.append(effects.handler(table.ours)(EVENT, LambdaContext(clock=clock)))

    def delete_it() -> None:
        effects.meanwhile = lambda: None
        hashed = table.item["sk" if "sk" in table.item else "id"]["S"]
        table.powertools.new_store()._delete_record(DataRecord(hashed))
        answers.append(effects.handler(table.ours)(EVENT, LambdaContext(clock=clock)))

    answers: list[Any] = []
    effects.meanwhile = take_over
    late = effects.handler(table.powertools)
    with pytest.raises(ZeroDivisionError):
        late(EVENT, LambdaContext(clock=clock))

    assert effects.runs == 3
    assert answers == ["third", "third"]


def test_powertools_takes_over_an_orphan_that_ours_must_not(table: Table, clock: FakeClock) -> None:
    """Not held: it knows no `orphan_takeover=False`."""
    effects = Effects([Killed(), RESULT])
    crash(effects, table.ours, LambdaContext(clock=clock), orphan_takeover=False)
    clock.now_ms = lease_end_ms(table) + 125
    ours = effects.handler(table.ours, orphan_takeover=False)
    with pytest.raises(table.ours.exceptions.IdempotencyOrphanedError):
        ours(EVENT, LambdaContext(clock=clock))

    assert effects.handler(table.powertools)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_powertools_runs_a_request_that_ours_finds_too_old(table: Table, clock: FakeClock) -> None:
    """Not held: it does not ask when a request was issued."""
    effects = Effects(["first", "second"])
    event = {**EVENT, "issued": clock.now_ms}
    effects.handler(table.powertools, expires_after_seconds=60)(event, LambdaContext(clock=clock))
    clock.advance(seconds=120)
    ours = effects.handler(table.ours, expires_after_seconds=60, issued_at_jmespath="issued")
    with pytest.raises(table.ours.exceptions.IdempotencyRequestTooOldError):
        ours(event, LambdaContext(clock=clock))

    theirs = effects.handler(table.powertools, expires_after_seconds=60)
    assert theirs(event, LambdaContext(clock=clock)) == "second"


def test_after_a_rollback_our_late_attempt_leaves_the_claim_of_powertools_alone(table: Table, clock: FakeClock) -> None:
    """So the rollback need not wait for our last invocation."""
    effects = Effects(["late", Killed()])

    def lose_the_lease() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = lease_end_ms(table) + 125
        crash(effects, table.powertools, LambdaContext(clock=clock))
        held.append(table.item)

    held: list[Any] = []
    effects.meanwhile = lose_the_lease
    late = effects.handler(table.ours)
    with pytest.raises(IdempotencyLeaseLostError):
        late(EVENT, LambdaContext(clock=clock))

    assert [table.item] == held
