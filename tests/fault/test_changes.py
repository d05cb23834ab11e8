"""`apply_once` on a table that evaluates it: once per change, whatever happens to the answers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from boto3.dynamodb.conditions import Attr
from boto3.dynamodb.types import TypeDeserializer
from botocore.config import Config
from engines.tables import lean_client_for, shared_client
from fault.proxy import FaultProxy, Harm
from faults import (
    SERVICE_ERRORS,
    UNKNOWN_OUTCOMES,
    Bench,
    Fault,
    Send,
    client_error,
    lost,
    read_timeout,
    refused,
    repeated_by_the_sdk,
    throttle,
    throttled_after_a_lost_answer,
    throttled_until,
)

from idempotency import IdempotencyConfig, IdempotencyPersistenceLayerError, apply_once, idempotent_function
from persistence.changes import apply_change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADD_ONE: dict[str, Any] = {"UpdateExpression": "ADD n :one", "ExpressionAttributeValues": {":one": 1}}


@dataclass
class Counter:
    """An item, and `apply_once` to it on the bench's clock."""

    bench: Bench
    #: Past all faults.
    table: Any
    key: dict[str, Any] = field(default_factory=lambda: {"id": "counter"})

    def apply(
        self,
        change_id: str = "c",
        *,
        changes_attr: str = "applied_changes",
        max_changes: int = 1_000,
        deadline_ms: int | None = None,
        **arguments: Any,
    ) -> bool:
        clock = self.bench.clock
        return apply_change(
            self.bench.client,
            {"TableName": self.bench.store.table_name, "Key": self.key, **(arguments or ADD_ONE)},
            change_id=change_id,
            changes_attr=changes_attr,
            max_changes=max_changes,
            clock_ms=clock,
            sleep_ms=clock.sleep_ms,
            deadline_ms=deadline_ms,
        )

    def put(self, **attributes: Any) -> None:
        self.table.put_item(TableName=self.bench.store.table_name, Item={"id": {"S": "counter"}, **attributes})

    def item(self) -> dict[str, Any]:
        """What the item is now, without its key; {} if there is none."""
        found = self.table.get_item(TableName=self.bench.store.table_name, Key={"id": {"S": "counter"}}, ConsistentRead=True)
        item: dict[str, Any] = TypeDeserializer().deserialize({"M": found.get("Item", {})})
        item.pop("id", None)
        return item


@pytest.fixture
def counter(bench: Bench) -> Counter:
    return Counter(bench, bench.direct)


# Now or before


def test_a_change_is_applied_now_and_after_that_was_applied_before(counter: Counter) -> None:
    assert [counter.apply("a"), counter.apply("a"), counter.apply("b"), counter.apply("a")] == [True, False, True, False]
    assert counter.item() == {"n": 2, "applied_changes": {"a", "b"}}


@pytest.mark.parametrize(
    ("update", "changed"),
    [
        ("SET n = n + :one", {"n": 6, "old": 1, "tags": {"x", "y"}}),
        ("REMOVE #old", {"n": 5, "tags": {"x", "y"}}),
        ("DELETE tags :x", {"n": 5, "old": 1, "tags": {"y"}}),
        ("ADD n :one", {"n": 6, "old": 1, "tags": {"x", "y"}}),
        ("add n :one, #old :one", {"n": 6, "old": 2, "tags": {"x", "y"}}),
        ("SET n = :one ADD #old :one REMOVE tags", {"n": 1, "old": 2}),
        ("ADD #old :one SET n = :one", {"n": 1, "old": 2, "tags": {"x", "y"}}),
        ("DELETE tags :x ADD n :one REMOVE #old", {"n": 6, "tags": {"y"}}),
    ],
)
def test_every_clause_is_applied_once_beside_the_set(counter: Counter, update: str, changed: dict[str, Any]) -> None:
    counter.put(n={"N": "5"}, old={"N": "1"}, tags={"SS": ["x", "y"]})
    values = {placeholder: value for placeholder, value in {":one": 1, ":x": {"x"}}.items() if placeholder in update}
    arguments: dict[str, Any] = {"UpdateExpression": update, "ExpressionAttributeValues": values}
    if "#old" in update:
        arguments["ExpressionAttributeNames"] = {"#old": "old"}

    assert [counter.apply(**arguments) for _ in range(2)] == [True, False]
    assert counter.item() == {**changed, "applied_changes": {"c"}}


def test_names_and_placeholders_may_contain_the_keyword(counter: Counter) -> None:
    """`add` is a reserved word, so it stands in placeholders or in longer names."""
    counter.put(add_on={"M": {}})

    counter.apply(
        UpdateExpression="SET #add = :add, ADDRESS = :add, add_on.#add = :add",
        ExpressionAttributeNames={"#add": "add"},
        ExpressionAttributeValues={":add": "x"},
    )

    assert counter.item() == {"add": "x", "ADDRESS": "x", "add_on": {"add": "x"}, "applied_changes": {"c"}}


def test_plain_and_typed_values_are_one_change(counter: Counter) -> None:
    counter.apply()
    counter.key = {"id": {"S": "counter"}}

    typed: dict[str, Any] = {**ADD_ONE, "ExpressionAttributeValues": {":one": {"N": "1"}}}
    assert not counter.apply(**typed)
    assert counter.apply("d", **typed)
    assert counter.item()["n"] == 2


def test_two_attributes_remember_changes_apart(counter: Counter) -> None:
    counter.apply(changes_attr="likes.seen")

    assert counter.apply(changes_attr="views.seen")
    assert not counter.apply(changes_attr="likes.seen")
    assert counter.item() == {"n": 2, "likes.seen": {"c"}, "views.seen": {"c"}}


def test_an_update_of_the_set_itself_is_refused(counter: Counter) -> None:
    counter.apply("a")

    with pytest.raises(IdempotencyPersistenceLayerError, match="paths overlap"):
        counter.apply("b", UpdateExpression="REMOVE applied_changes")
    assert counter.item() == {"n": 1, "applied_changes": {"a"}}


# The caller's own condition


@pytest.mark.parametrize(
    "condition",
    ["attribute_exists(n)", "attribute_exists(n) AND n < :one", Attr("n").exists(), Attr("n").exists() & Attr("n").lt(1)],
)
def test_a_condition_that_does_not_hold_is_the_clients_error_and_changes_nothing(counter: Counter, condition: Any) -> None:
    """Nor is an item made that was not there."""
    with pytest.raises(SERVICE_ERRORS) as refused_:
        counter.apply(**ADD_ONE, ConditionExpression=condition)

    assert refused_.value.response["Error"]["Code"] == "ConditionalCheckFailedException"
    assert counter.item() == {}


@pytest.mark.parametrize(
    "condition",
    [
        "attribute_not_exists(n) OR n > :one",
        "(attribute_not_exists(n) OR n > :one)",
        "(attribute_not_exists(n)) OR (n > :one)",
        Attr("n").not_exists() | Attr("n").gt(1),
    ],
)
def test_an_or_of_the_callers_does_not_let_a_change_pass_twice(counter: Counter, condition: Any) -> None:
    counter.put(n={"N": "2"})

    assert [counter.apply(**ADD_ONE, ConditionExpression=condition) for _ in range(2)] == [True, False]
    assert counter.item()["n"] == 3


def test_a_change_that_was_seen_is_no_refusal_although_it_made_the_condition_false(counter: Counter) -> None:
    counter.put(n={"N": "0"})

    assert [counter.apply(**ADD_ONE, ConditionExpression="n < :one") for _ in range(2)] == [True, False]
    with pytest.raises(SERVICE_ERRORS):
        counter.apply("another", **ADD_ONE, ConditionExpression="n < :one")
    assert counter.item()["n"] == 1


# A bounded life


def test_the_last_change_that_there_is_room_for_is_applied_and_the_next_is_refused(counter: Counter) -> None:
    assert [counter.apply(change, max_changes=2) for change in "ab"] == [True, True]

    with pytest.raises(IdempotencyPersistenceLayerError) as full:
        counter.apply("SECRET", max_changes=2)
    assert str(full.value) == (
        f"The change was not applied: an item of {counter.bench.store.table_name} has seen 2 changes, and max_changes is 2. "
        "apply_once is for items with a bounded life; use transaction() for others"
    )
    assert counter.item() == {"n": 2, "applied_changes": {"a", "b"}}
    assert [counter.apply(change, max_changes=2) for change in "ab"] == [False, False]
    assert counter.apply("c", max_changes=3)


def test_a_bound_below_what_an_item_has_seen_refuses_new_changes_only(counter: Counter) -> None:
    counter.put(applied_changes={"SS": ["a", "b", "c"]})

    assert not counter.apply("b", max_changes=1)
    with pytest.raises(IdempotencyPersistenceLayerError, match="has seen 3 changes, and max_changes is 1"):
        counter.apply("d", max_changes=1)


def test_a_thousand_of_the_longest_ids_fit_in_an_item(counter: Counter) -> None:
    counter.put(applied_changes={"SS": [f"{number:0128}" for number in range(999)]})

    assert counter.apply(f"{999:0128}")
    with pytest.raises(IdempotencyPersistenceLayerError, match="has seen 1000 changes"):
        counter.apply("one more")


def test_a_change_with_which_the_item_would_be_too_large_is_told_and_one_that_it_has_seen_is_still_known(
    counter: Counter,
) -> None:
    counter.put(applied_changes={"SS": ["seen"]}, note={"S": "x" * (400 * 1024 - 50)})
    before = counter.item()

    with pytest.raises(IdempotencyPersistenceLayerError, match="would be larger than DynamoDB holds") as full:
        counter.apply("SECRET" * 10)
    assert "SECRET" not in str(full.value)
    assert not counter.apply("seen")
    assert counter.item() == before


@pytest.mark.parametrize(
    "value",
    [{"S": "c"}, {"S": "x" * 2_000}, {"N": "5"}, {"L": [{"S": "c"}]}, {"L": []}, {"M": {}}, {"NS": ["1"]}, {"NULL": True}],
    ids=str,
)
@pytest.mark.parametrize("max_changes", [1, 1_000])
def test_an_attribute_that_is_no_set_of_texts_is_told_and_nothing_is_applied(
    counter: Counter, value: dict[str, Any], max_changes: int
) -> None:
    """And not taken for a set that has, or has not, seen the change, nor for a condition of the caller's."""
    counter.put(applied_changes=value)
    before = counter.item()

    with pytest.raises(IdempotencyPersistenceLayerError) as wrong:
        counter.apply(max_changes=max_changes)
    assert str(wrong.value) == (
        f"The change was not applied: applied_changes of an item of {counter.bench.store.table_name} is no set of texts. "
        "Give apply_once an attribute of its own by changes_attr"
    )
    assert counter.item() == before


# Lost answers


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
@pytest.mark.parametrize("times", [1, 3])
def test_a_change_whose_answer_is_lost_was_applied_before(counter: Counter, error: Callable[[], Exception], times: int) -> None:
    """Although no caller saw True."""
    for call in range(times):
        counter.bench.client.at("update_item", call + 1, lost(error()))

    assert not counter.apply()
    assert counter.item() == {"n": 1, "applied_changes": {"c"}}


@pytest.mark.parametrize(
    "error", [*UNKNOWN_OUTCOMES, throttle, lambda: client_error("TransactionConflictException", 400, "busy")]
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_change_that_is_lost_on_its_way_is_sent_again(counter: Counter, error: Callable[[], Exception], times: int) -> None:
    for call in range(times):
        counter.bench.client.at("update_item", call + 1, refused(error()))

    assert counter.apply()
    assert counter.item() == {"n": 1, "applied_changes": {"c"}}


@pytest.mark.parametrize("fault", [repeated_by_the_sdk, throttled_after_a_lost_answer])
def test_a_repetition_that_the_client_hides_is_no_second_change(counter: Counter, fault: Fault) -> None:
    counter.bench.client.at("update_item", 1, fault)

    assert not counter.apply()
    assert counter.item()["n"] == 1


def test_a_lost_answer_is_no_refusal_although_the_change_made_the_condition_false(counter: Counter) -> None:
    counter.bench.client.at("update_item", 1, lost(read_timeout()))

    assert not counter.apply(**ADD_ONE, ConditionExpression="attribute_not_exists(n)")


def test_a_throttle_is_waited_for(counter: Counter) -> None:
    clock = counter.bench.clock
    counter.bench.client.always("update_item", throttled_until(clock, clock() + 5_000))

    assert counter.apply()
    assert counter.item()["n"] == 1


@pytest.mark.parametrize("fault", [lost, refused])
@pytest.mark.parametrize("error", [*UNKNOWN_OUTCOMES, throttle])
@pytest.mark.parametrize("limit_ms", [700, 30_000, None], ids=lambda limit_ms: f"limit {limit_ms}")
def test_it_is_repeated_until_just_before_the_deadline_and_can_be_repeated_after_it(
    counter: Counter, fault: Callable[[Exception], Fault], error: Callable[[], Exception], limit_ms: int | None
) -> None:
    """For 10 s where there is no deadline."""
    clock, client = counter.bench.clock, counter.bench.client
    start_ms = clock()
    client.always("update_item", fault(error()))

    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to apply a change to an item of ") as failed:
        counter.apply(deadline_ms=None if limit_ms is None else start_ms + limit_ms)
    until_ms = start_ms + (10_000 if limit_ms is None else limit_ms - 100)
    assert until_ms - 10 <= clock() <= until_ms
    assert client.count("update_item") > 3
    assert str(failed.value).endswith("Repeat it with the same change_id: it is applied at most once.")
    assert failed.value.is_retryable

    client.heal()
    assert counter.apply() is (fault is refused)
    assert counter.item() == {"n": 1, "applied_changes": {"c"}}


def test_every_attempt_at_an_idempotent_call_applies_the_same_change(counter: Counter) -> None:
    """The first attempt dies with its record still in progress, as an attempt that is killed leaves it."""
    bench = counter.bench

    @idempotent_function(data_keyword_argument="event", persistence_store=bench.store, config=IdempotencyConfig("id"))
    def count(event: dict[str, Any]) -> bool:
        applied = apply_once(bench.client.client, TableName=bench.store.table_name, Key={"id": "counter"}, **ADD_ONE)
        if event["dies"]:
            raise SuspendedError
        return applied

    with pytest.raises(SuspendedError):
        count(event={"id": 1, "dies": True})
    bench.clock.advance(seconds=3_601)

    assert count(event={"id": 1, "dies": False}) is False
    assert count(event={"id": 2, "dies": False}) is True
    assert counter.item()["n"] == 2


class SuspendedError(BaseException):
    """Leaves the claim as it is."""


# A client as users have it


@pytest.fixture
def proxy(dynamodb_local: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(dynamodb_local)
    yield proxy
    proxy.stop()


@pytest.mark.parametrize("harm", [Harm.LOSE_ANSWER, Harm.CUT, Harm.ERROR_AFTER, Harm.LOSE_REQUEST, Harm.THROTTLE])
def test_a_given_clients_own_retries_are_off_for_this_request(
    counter: Counter, proxy: FaultProxy, harm: Harm, client_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lean client has none.  Of boto3's answer to a write nothing need be read but that it is one: a cut one may do."""
    sdk_slept: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", sdk_slept.append)
    own = Config(retries={"mode": "standard", "total_max_attempts": 5})
    given: Any = lean_client_for(proxy.url)
    if client_kind == "boto3":
        given = boto3.Session().client("dynamodb", endpoint_url=proxy.url, config=own)
    counter.bench.client = given
    for call in (1, 2):
        proxy.harm("UpdateItem", call, harm)

    applied = counter.apply()
    may_do = harm is Harm.CUT and client_kind == "boto3"
    assert proxy.calls["UpdateItem"] in ({1, 3} if may_do else {3})
    assert len(counter.bench.clock.slept_ms) == proxy.calls["UpdateItem"] - 1  # ours, between them
    assert sdk_slept == []
    assert applied is (harm in {Harm.LOSE_REQUEST, Harm.THROTTLE})
    assert counter.item()["n"] == 1
    given.close()


def test_an_answer_that_is_cut_off_does_not_repeat_the_item_that_it_held(counter: Counter) -> None:
    """Botocore takes the HTTP status for a code then, and the raw body for a message."""
    cut = client_error("400", 400, '{"__type":"ConditionalCheckFailedException","Item":{"n":{"S":"SECRET"')
    counter.bench.client.always("update_item", refused(cut))

    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        counter.apply()
    assert "SECRET" not in str(failed.value)


# Many at once


def test_of_many_that_race_with_one_change_one_applies_it(dynamodb_local: str, counter: Counter) -> None:
    client, table, racers = shared_client(dynamodb_local), counter.bench.store.table_name, 16
    start = Barrier(racers)

    def race(_: int) -> bool:
        start.wait()
        return apply_once(client, TableName=table, Key={"id": "counter"}, change_id="c", **ADD_ONE)

    with ThreadPoolExecutor(racers) as threads:
        answers = list(threads.map(race, range(racers)))

    assert sorted(answers) == [False] * (racers - 1) + [True]
    assert counter.item() == {"n": 1, "applied_changes": {"c"}}


def test_a_counter_equals_the_number_of_its_changes_whatever_is_lost(counter: Counter, pytestconfig: pytest.Config) -> None:
    """Each change is delivered one to three times, in any order, and again until it is answered."""
    seed = pytestconfig.getoption("--chaos-seed")
    dice = random.Random(seed)
    changes, struck = [f"change-{number}" for number in range(200)], 0

    def chance(send: Send) -> Any:
        nonlocal struck
        if dice.random() < 0.5:
            return send()
        struck += 1
        error = dice.choice([*UNKNOWN_OUTCOMES, throttle])()
        return dice.choice([lost(error), refused(error), repeated_by_the_sdk, throttled_after_a_lost_answer])(send)

    counter.bench.client.always("update_item", chance)
    deliveries = [change for change in changes for _ in range(dice.randint(1, 3))]
    dice.shuffle(deliveries)
    applied: list[str] = []
    gave_up = 0
    while deliveries:
        change = deliveries.pop()
        try:
            if counter.apply(change, deadline_ms=counter.bench.clock() + dice.choice([110, 150, 1_000])):
                applied.append(change)
        except IdempotencyPersistenceLayerError:
            gave_up += 1
            deliveries.insert(dice.randint(0, len(deliveries)), change)

    assert counter.item() == {"n": len(changes), "applied_changes": set(changes)}, f"seed {seed}"
    assert len(applied) == len(set(applied)) < len(changes)  # some were applied although nobody saw True
    assert struck > 150
    assert gave_up > 5
