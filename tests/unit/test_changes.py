"""What `apply_once` asks of DynamoDB, and which arguments it refuses.  What comes of it: `tests/fault/test_changes.py`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.conditions import Attr
from doubles import FakeClock, LambdaContext
from faults import access_denied, client_error, throttle

from idempotency import (
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    InMemoryPersistenceLayer,
    apply_once,
    current_attempt,
    idempotent,
    idempotent_function,
)

ADDED = "ADD #idempotency_changes :idempotency_changes"
NEW = (
    "NOT contains(#idempotency_changes, :idempotency_change) AND (attribute_not_exists(#idempotency_changes) OR "
    "(attribute_type(#idempotency_changes, :idempotency_string_set) AND size(#idempotency_changes) < :idempotency_max_changes))"
)
KNOWN = "numbers are int or Decimal with at most 38 digits, and sets are not empty"


class Recorder:
    """A client that remembers what it is asked, and answers that it was done or raises *error*."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.requests: list[dict[str, Any]] = []

    def update_item(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return {}


def asked(**arguments: Any) -> dict[str, Any]:
    """The one request of an `apply_once` with these arguments, and with others that suffice."""
    client = Recorder()
    apply_once(client, **{"TableName": "t", "Key": {"id": "i"}, "UpdateExpression": "SET q = :q", "change_id": "c", **arguments})
    (request,) = client.requests
    return request


# The request


def test_the_change_is_added_and_demanded_to_be_new_in_one_request() -> None:
    request = asked(ExpressionAttributeNames={"#q": "q"}, ExpressionAttributeValues={":q": Decimal("1.5")}, max_changes=7)

    assert request == {
        "TableName": "t",
        "Key": {"id": {"S": "i"}},
        "UpdateExpression": f"SET q = :q {ADDED}",
        "ConditionExpression": NEW,
        "ExpressionAttributeNames": {"#q": "q", "#idempotency_changes": "applied_changes"},
        "ExpressionAttributeValues": {
            ":q": {"N": "1.5"},
            ":idempotency_change": {"S": "c"},
            ":idempotency_changes": {"SS": ["c"]},
            ":idempotency_max_changes": {"N": "7"},
            ":idempotency_string_set": {"S": "SS"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


@pytest.mark.parametrize(
    ("update", "made"),
    [
        ("SET a = :a", f"SET a = :a {ADDED}"),
        ("REMOVE a", f"REMOVE a {ADDED}"),
        ("DELETE tags :t", f"DELETE tags :t {ADDED}"),
        ("ADD a :a", f"{ADDED}, a :a"),
        ("add a :a, b :b", f"{ADDED}, a :a, b :b"),
        ("Add\n\ta :a", f"{ADDED},\n\ta :a"),
        ("ADD#a :a", f"{ADDED},#a :a"),
        ("SET a = :a ADD b :b REMOVE c", f"SET a = :a {ADDED}, b :b REMOVE c"),
        ("SET a = if_not_exists(a, :a)ADD b :b", f"SET a = if_not_exists(a, :a){ADDED}, b :b"),
        ("SET #add = :add", f"SET #add = :add {ADDED}"),
        ("SET ADDRESS = :ADD", f"SET ADDRESS = :ADD {ADDED}"),
        ("SET my_add = :a, add_on = :b, a.add.b = :c", f"SET my_add = :a, add_on = :b, a.add.b = :c {ADDED}"),
        ("SET a.add = :c", f"SET a.add = :c {ADDED}"),
        ("REMOVE #add ADD add_on :add", f"REMOVE #add {ADDED}, add_on :add"),
    ],
)
def test_an_add_clause_is_shared_and_nothing_else_is_taken_for_one(update: str, made: str) -> None:
    assert asked(UpdateExpression=update)["UpdateExpression"] == made


@pytest.mark.parametrize(
    ("condition", "made"),
    [
        ("a = :a OR b = :b", f"(a = :a OR b = :b) AND {NEW}"),
        ("(a = :a) OR (b = :b)", f"((a = :a) OR (b = :b)) AND {NEW}"),
        ("size(a) < :a AND (b = :b OR (NOT c = :c))", f"(size(a) < :a AND (b = :b OR (NOT c = :c))) AND {NEW}"),
        (Attr("a").exists() | Attr("b").exists(), f"(attribute_exists(#n0) OR attribute_exists(#n1)) AND {NEW}"),
        (" (a = :a OR b = :b)\n", f"(a = :a OR b = :b) AND {NEW}"),
        ("attribute_exists(a)", f"(attribute_exists(a)) AND {NEW}"),
    ],
)
def test_a_condition_of_the_callers_stands_in_one_pair_of_brackets(condition: Any, made: str) -> None:
    assert asked(ConditionExpression=condition)["ConditionExpression"] == made


@pytest.mark.parametrize("condition", ["a = :a) OR (b = :b", "(a = :a", "a = :a)", ")(", "(a) OR b) OR (c"])
def test_a_condition_whose_brackets_do_not_match_is_refused(condition: str) -> None:
    """In our own brackets it could make sense again, and let a change be applied twice."""
    with pytest.raises(ValueError, match=r"^ConditionExpression has brackets that do not match$"):
        asked(ConditionExpression=condition)


def test_values_are_taken_in_the_low_level_clients_form_where_the_key_is() -> None:
    plain = asked(ExpressionAttributeValues={":q": 1})
    typed = asked(Key={"id": {"S": "i"}}, ExpressionAttributeValues={":q": {"N": "1"}})

    assert plain == typed


def test_another_attribute_can_be_the_set() -> None:
    assert asked(changes_attr="seen.by")["ExpressionAttributeNames"] == {"#idempotency_changes": "seen.by"}


# Arguments


@pytest.mark.parametrize("change_id", ["c", "c" * 128, "é" * 64, " "])
def test_an_id_has_1_to_128_bytes(change_id: str) -> None:
    assert asked(change_id=change_id)["ExpressionAttributeValues"][":idempotency_changes"] == {"SS": [change_id]}


@pytest.mark.parametrize(("change_id", "size"), [("", 0), ("c" * 129, 129), ("é" * 65, 130)])
def test_an_id_that_is_empty_or_too_long_is_refused(change_id: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"^change_id must have 1 to 128 bytes, not {size}$"):
        asked(change_id=change_id)


@pytest.mark.parametrize("max_changes", [1, 10_000])
def test_an_item_sees_1_to_10000_changes(max_changes: int) -> None:
    made = asked(max_changes=max_changes)

    assert made["ExpressionAttributeValues"][":idempotency_max_changes"] == {"N": str(max_changes)}


@pytest.mark.parametrize("max_changes", [-1, 0, 10_001])
def test_another_number_of_changes_is_refused(max_changes: int) -> None:
    with pytest.raises(ValueError, match=f"^max_changes must be from 1 to 10000, not {max_changes}$"):
        asked(max_changes=max_changes)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"change_id": 7}, TypeError, "change_id must be a text, not int"),
        ({"change_id": "SECRET\ud800"}, ValueError, "change_id is no valid Unicode"),
        ({"changes_attr": ""}, ValueError, "changes_attr is empty; it names an attribute"),
        ({"changes_attr": {"SECRET": 1}}, TypeError, "changes_attr must be a text, not dict"),
        ({"UpdateExpression": ""}, ValueError, "UpdateExpression is empty"),
        ({"UpdateExpression": " \n"}, ValueError, "UpdateExpression is empty"),
        ({"UpdateExpression": None}, ValueError, "UpdateExpression is empty"),
        ({"ConditionExpression": ""}, ValueError, "ConditionExpression is empty"),
        ({"Key": {}}, ValueError, "Key is empty; it needs the key of an item of t"),
        (
            {"ExpressionAttributeNames": {"#idempotency_changes": "q"}},
            ValueError,
            "#idempotency_changes are placeholders of apply_once; use others",
        ),
        *(
            (
                {"ExpressionAttributeValues": {placeholder: "SECRET"}},
                ValueError,
                f"{placeholder} are placeholders of apply_once; use others",
            )
            for placeholder in asked()["ExpressionAttributeValues"]
        ),
        (
            {"ExpressionAttributeValues": {":q": 1.25}},
            TypeError,
            f"ExpressionAttributeValues of t: :q is, or holds, a value that DynamoDB does not know (a float); {KNOWN}",
        ),
    ],
)
def test_a_wrong_argument_is_refused_without_repeating_a_value(arguments: Any, error: type[Exception], text: str) -> None:
    client = Recorder()
    given = {"TableName": "t", "Key": {"id": "i"}, "UpdateExpression": "SET q = :q", "change_id": "c"}

    with pytest.raises(error) as refused:
        apply_once(client, **{**given, **arguments})
    assert str(refused.value) == text
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    assert client.requests == []


# The id that is left out


def test_the_id_is_by_default_the_calls_downstream_key() -> None:
    client = Recorder()
    keys: list[str] = []

    @idempotent_function(
        data_keyword_argument="event", persistence_store=InMemoryPersistenceLayer(), config=IdempotencyConfig("id")
    )
    def count(event: dict[str, str]) -> None:
        keys.append(current_attempt().downstream_key)
        apply_once(client, TableName="t", Key={"id": "i"}, UpdateExpression="SET q = :q")

    count(event={"id": "a"})
    count(event={"id": "b"})

    assert [request["ExpressionAttributeValues"][":idempotency_change"] for request in client.requests] == [
        {"S": key} for key in keys
    ]
    assert len(set(keys)) == 2


def test_outside_an_idempotent_call_an_id_must_be_given() -> None:
    client = Recorder()

    with pytest.raises(RuntimeError, match="outside a running idempotent call"):
        apply_once(client, TableName="t", Key={"id": "i"}, UpdateExpression="SET q = :q")
    assert client.requests == []


# Failures


def test_inside_an_idempotent_call_it_is_repeated_until_just_before_that_calls_deadline(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idempotency.changes.wall_clock_ms", clock)
    monkeypatch.setattr("time.sleep", lambda seconds: clock.sleep_ms(1000 * seconds))
    client = Recorder(throttle())

    @idempotent(persistence_store=InMemoryPersistenceLayer(clock_ms=clock))
    def count(event: dict[str, str], context: LambdaContext) -> None:
        apply_once(client, TableName="t", Key={"id": "i"}, UpdateExpression="REMOVE q")

    deadline_ms = clock() + 2_000
    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to apply a change"):
        count({"id": "a"}, LambdaContext(remaining_ms=2_000, clock=clock))
    assert deadline_ms - 110 <= clock() <= deadline_ms - 100
    assert len(client.requests) > 3


def test_a_definite_failure_is_told_with_its_cause_and_the_table_and_not_repeated() -> None:
    client = Recorder(denied := access_denied())

    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        apply_once(client, TableName="t", Key={"id": "SECRET"}, UpdateExpression="REMOVE q", change_id="SECRET")
    assert str(failed.value) == (
        f"Failed to apply a change to an item of t - ({denied}). Repeat it with the same change_id: it is applied at most once."
    )
    assert failed.value.__cause__ is denied
    assert not failed.value.is_retryable
    assert len(client.requests) == 1


def test_the_callers_own_condition_raises_the_clients_own_error() -> None:
    """The very object; its answer has the item, as the low-level client gives it, and its text does not."""
    refusal = client_error("ConditionalCheckFailedException", 400, "The conditional request failed", Item={"id": {"S": "SECRET"}})

    with pytest.raises(type(refusal)) as raised:
        apply_once(
            Recorder(refusal),
            TableName="t",
            Key={"id": "SECRET"},
            UpdateExpression="REMOVE q",
            ConditionExpression="attribute_exists(q)",
            change_id="SECRET",
        )
    assert raised.value is refusal
    assert "SECRET" not in f"{refusal!s}{refusal!r}"
