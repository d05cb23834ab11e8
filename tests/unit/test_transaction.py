"""What a transaction takes, and what it refuses before anything is sent."""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from decimal import Decimal
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from boto3.dynamodb.conditions import Attr
from boto3.dynamodb.types import Binary
from verbs import at_once

from idempotency import CancellationReason, Transaction
from persistence._dynamodb_items import MAX_ITEM_BYTES
from persistence._user_requests import low_level
from persistence.transaction import MAX_ACTIONS, MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

REGION = "eu-west-1"
ARN = f"arn:aws:dynamodb:{REGION}:000000000000:table/"
OWN_KEY = {"id": {"S": "fn#1"}}

#: The method, and the service's name of what it adds.
KINDS = {"put": "Put", "update": "Update", "delete": "Delete", "check": "ConditionCheck"}
METHODS = [*KINDS]
#: What each needs besides the table and the item.
NEEDED: dict[str, dict[str, Any]] = {
    "put": {},
    "update": {"UpdateExpression": "SET a = b"},
    "delete": {},
    "check": {"ConditionExpression": "attribute_exists(a)"},
}


def transaction(own_table: str = "records", own_key: Any = OWN_KEY, region: str = REGION) -> Transaction:
    return Transaction(idempotency_key="fn#1", own_table=own_table, own_key=own_key, region=region)


def add(tx: Transaction, method: str, key: dict[str, Any], table: str = "orders", **more: Any) -> None:
    """An action on the item of this key, by whichever method."""
    identity = {"Item": {"other": 1, **key}} if method == "put" else {"Key": key}
    if key and all(isinstance(value, dict) for value in key.values()) and method == "put":
        identity = {"Item": {"other": {"N": "1"}, **key}}
    getattr(tx, method)(TableName=table, **identity, **NEEDED[method], **more)


def state(tx: Transaction) -> tuple[Any, ...]:
    """All that a refused action must leave as it was."""
    return tx.actions, tx._bytes, {**tx._seen}, {**tx._key_names}, tx._is_closed


def has_bytes(tx: Transaction, size: int) -> bool:
    """Whether just so many bytes are taken of the 4 MB."""
    tx.check_size(MAX_BYTES - size)
    with pytest.raises(ValueError, match=rf", the record's included, and this one has {MAX_BYTES + 1}$"):
        tx.check_size(MAX_BYTES - size + 1)
    return True


# Actions


EVERY_ARGUMENT: dict[str, Any] = {
    "TableName": "orders",
    "ConditionExpression": Attr("n").gte(Decimal("1.5")),
    "ExpressionAttributeNames": {"#a": "a"},
    "ExpressionAttributeValues": {":a": {"x", "y"}},
    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
}


@pytest.mark.parametrize("method", METHODS)
def test_an_action_is_the_low_level_request_under_the_services_name(method: str) -> None:
    tx = transaction()
    request = {**EVERY_ARGUMENT, "Item" if method == "put" else "Key": {"id": "a"}}
    if method == "update":
        request["UpdateExpression"] = "SET #a = :a"

    getattr(tx, method)(**request)

    assert tx.actions == ({KINDS[method]: low_level(request)},)


@pytest.mark.parametrize("method", METHODS)
def test_an_argument_that_is_left_out_is_not_sent(method: str) -> None:
    tx = transaction()

    add(tx, method, {"id": "a"})

    identity = {"Item": {"other": {"N": "1"}, "id": {"S": "a"}}} if method == "put" else {"Key": {"id": {"S": "a"}}}
    assert tx.actions == ({KINDS[method]: {"TableName": "orders", **identity, **NEEDED[method]}},)


@pytest.mark.parametrize("method", METHODS)
def test_an_action_takes_boto3s_names_as_keywords_and_nothing_else(method: str) -> None:
    """So that a request can be copied from a call of boto3's, and a misspelt argument is not lost."""
    parameters = inspect.signature(getattr(transaction(), method)).parameters

    identity = {"Item"} if method == "put" else {"Key"}
    expressions = {"UpdateExpression"} if method == "update" else set()
    assert set(parameters) == {*EVERY_ARGUMENT, *identity, *expressions}
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters.values())
    needed = {name for name, each in parameters.items() if each.default is each.empty}
    assert needed == {"TableName", *identity, *NEEDED[method]}


def test_actions_are_kept_in_the_order_in_which_they_were_added() -> None:
    tx = transaction()

    for number, method in enumerate(METHODS * 2):
        add(tx, method, {"id": str(number)})

    assert [kind for action in tx.actions for kind in action] == [*KINDS.values()] * 2


@pytest.mark.parametrize("answer", ["ALL_OLD", "NONE", None])
def test_the_old_item_is_asked_for_in_the_services_words(answer: Any) -> None:
    tx = transaction()

    add(tx, "delete", {"id": "a"}, ReturnValuesOnConditionCheckFailure=answer)

    assert tx.actions[0]["Delete"].get("ReturnValuesOnConditionCheckFailure") == answer


@pytest.mark.parametrize("number", range(98, 101))
def test_ninety_nine_actions_are_taken_and_the_hundredth_is_refused(number: int) -> None:
    """DynamoDB takes a hundred, and one is the record's."""
    tx = transaction()
    for each in range(min(number, MAX_ACTIONS)):
        add(tx, METHODS[each % 4], {"id": str(each)})
    assert len(tx.actions) == min(number, 99)

    if number < 100:
        return
    for method in METHODS:
        with pytest.raises(ValueError) as raised:
            add(tx, method, {"id": "one more"})
        assert str(raised.value) == f"transaction().{method}(): a transaction holds 99 actions, besides the record's own"
    assert len(tx.actions) == 99


# Sizes


def item_of(size: int, key: str = "a") -> dict[str, Any]:
    """An item of just so many bytes, names included."""
    return {"id": key, "d": "x" * (size - len("id") - len(key) - len("d"))}


@pytest.mark.parametrize("size", [MAX_ITEM_BYTES - 1, MAX_ITEM_BYTES])
def test_an_item_of_400_kb_is_taken(size: int) -> None:
    tx = transaction()

    tx.put(TableName="orders", Item=item_of(size))

    assert has_bytes(tx, size)


def test_an_item_of_a_byte_more_than_400_kb_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        transaction().put(TableName=ARN + "orders", Item=item_of(MAX_ITEM_BYTES + 1))
    assert str(raised.value) == "transaction().put(): the item of orders has 409601 bytes; DynamoDB holds 409600"


def test_characters_of_many_bytes_count_as_bytes() -> None:
    with pytest.raises(ValueError, match="has 409602 bytes"):
        transaction().put(TableName="orders", Item={**item_of(MAX_ITEM_BYTES - 7), "é": "日éxx"})


@pytest.mark.parametrize("values", [{":d": "x"}, {":d": "x" * 300_000}])
def test_the_values_of_a_condition_are_no_part_of_the_item(values: dict[str, str]) -> None:
    tx = transaction()

    tx.put(
        TableName="orders",
        Item=item_of(MAX_ITEM_BYTES),
        ConditionExpression="d <> :d",
        ExpressionAttributeValues=values,
    )

    assert len(tx.actions) == 1


def test_an_item_that_dynamodb_holds_is_not_refused_for_its_many_numbers() -> None:
    """DynamoDB Local takes this very item; with a byte for each digit it would be too large."""
    tx = transaction()

    tx.put(TableName="orders", Item={"id": "a", "d": [1] * 136_000})

    assert has_bytes(tx, 2 + 1 + 1 + 3 + 3 * 136_000)


def test_an_update_that_is_larger_than_an_item_is_left_to_the_service() -> None:
    """What it makes of the item is not known here."""
    tx = transaction()

    add(tx, "update", {"id": "a"}, ExpressionAttributeValues={":d": "x" * MAX_ITEM_BYTES})

    assert has_bytes(tx, 3 + 2 + MAX_ITEM_BYTES)


@pytest.mark.parametrize(
    ("method", "size"),
    [("put", len("id") + 1 + len("v") + 2), ("update", len("id") + 1), ("delete", len("id") + 1), ("check", len("id") + 1)],
)
@pytest.mark.parametrize(("values", "more"), [({}, 0), ({":n": "four"}, 6), ({":n": b"12", ":m": [True, None]}, 4 + 2 + 3 + 4)])
def test_what_counts_of_an_action_is_its_item_or_key_and_its_values(
    method: str, size: int, values: dict[str, Any], more: int
) -> None:
    tx = transaction()
    identity = {"Item": {"id": "a", "v": "xy"}} if method == "put" else {"Key": {"id": "a"}}

    getattr(tx, method)(TableName="orders", **identity, **NEEDED[method], ExpressionAttributeValues=values)

    assert has_bytes(tx, size + more)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_four_megabytes_are_taken_and_not_a_byte_more(excess: int) -> None:
    tx = transaction()
    for number in range(10):
        tx.put(TableName="orders", Item=item_of(MAX_ITEM_BYTES, str(number)))
    last = item_of(MAX_BYTES - 10 * MAX_ITEM_BYTES + excess, "last")
    before = state(tx)

    if excess <= 0:
        tx.put(TableName="orders", Item=last)
        assert has_bytes(tx, MAX_BYTES + excess)
        return
    with pytest.raises(ValueError) as raised:
        tx.put(TableName="orders", Item=last)
    assert str(raised.value) == (
        "transaction().put(): a transaction holds 4194304 bytes, the record's included, and this one has 4194305"
    )
    assert state(tx) == before


def test_the_record_shares_the_four_megabytes() -> None:
    tx = transaction()
    tx.check_size(MAX_BYTES)
    with pytest.raises(ValueError) as raised:
        tx.check_size(MAX_BYTES + 1)

    assert str(raised.value) == "a transaction holds 4194304 bytes, the record's included, and this one has 4194305"
    assert has_bytes(tx, 0)


# One action for each item


SAME = "a transaction has one action for each item, and orders has another for this one"


def forbidden(tx: Transaction, method: str, key: dict[str, Any], message: str, table: str = "orders") -> None:
    """The action is refused, and nothing has changed."""
    before = state(tx)
    with pytest.raises(ValueError) as raised:
        add(tx, method, key, table)
    assert str(raised.value) == f"transaction().{method}(): {message}"
    assert state(tx) == before


#: Two keys of one item.
ONE_ITEM: dict[str, tuple[Any, Any]] = {
    "text": ({"id": "a"}, {"id": "a"}),
    "plain and typed": ({"id": "a"}, {"id": {"S": "a"}}),
    "typed and plain": ({"id": {"S": "a"}}, {"id": "a"}),
    "numbers": ({"id": 1}, {"id": Decimal("1.0")}),
    "large numbers": ({"id": 10**20}, {"id": Decimal("1E+20")}),
    "typed numbers": ({"id": {"N": "1"}}, {"id": {"N": "01.00"}}),
    "bytes": ({"id": b"a"}, {"id": b"a"}),
    "wrapped bytes": ({"id": Binary(b"a")}, {"id": b"a"}),
    "bytes that can change": ({"id": bytearray(b"a")}, {"id": b"a"}),
    "typed bytes that can change": ({"id": {"B": b"a"}}, {"id": {"B": bytearray(b"a")}}),
    "composite": ({"pk": "a", "sk": 1}, {"sk": Decimal("1.00"), "pk": "a"}),
    "composite of bytes": ({"pk": b"a", "sk": "1"}, {"pk": b"a", "sk": "1"}),
}
#: Two keys of one table, but of different items.
TWO_ITEMS: dict[str, tuple[Any, Any]] = {
    "texts": ({"id": "a"}, {"id": "b"}),
    "case": ({"id": "a"}, {"id": "A"}),
    "numbers": ({"id": 1}, {"id": Decimal("1.01")}),
    "bytes": ({"id": b"a"}, {"id": b"b"}),
    "sort keys": ({"pk": "a", "sk": 1}, {"pk": "a", "sk": 2}),
    "partition keys": ({"pk": "a", "sk": 1}, {"pk": "b", "sk": 1}),
    "types": ({"id": "1"}, {"id": 1}),
    "text and bytes": ({"id": "a"}, {"id": b"a"}),
}
PAIRS = [(one, other) for one, other in product(METHODS, METHODS) if (one, other) != ("put", "put")]


@pytest.mark.parametrize("keys", ONE_ITEM)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_second_action_on_an_item_is_refused_whichever_two_they_are(one: str, other: str, keys: str) -> None:
    first, second = ONE_ITEM[keys]
    tx = transaction()
    add(tx, one, first)

    forbidden(tx, other, second, SAME)


@pytest.mark.parametrize("keys", TWO_ITEMS)
@pytest.mark.parametrize(("one", "other"), [*PAIRS, ("put", "put")])
def test_actions_on_two_items_of_one_table_are_taken(one: str, other: str, keys: str) -> None:
    first, second = TWO_ITEMS[keys]
    tx = transaction()

    add(tx, one, first)
    add(tx, other, second)
    add(tx, "check", dict.fromkeys(first, "third"))

    assert len(tx.actions) == 3


@pytest.mark.parametrize("keys", ONE_ITEM)
def test_two_puts_of_one_item_are_left_to_the_service_where_nothing_tells_the_tables_key(keys: str) -> None:
    """Two items with the same key may differ in everything else, and the other way round."""
    tx = transaction()

    for key in ONE_ITEM[keys]:
        add(tx, "put", key)

    assert len(tx.actions) == 2


@pytest.mark.parametrize("keys", ONE_ITEM)
@pytest.mark.parametrize("teacher", ["update", "delete", "check"])
def test_two_puts_of_one_item_are_refused_once_another_action_has_told_the_key(teacher: str, keys: str) -> None:
    first, second = ONE_ITEM[keys]
    tx = transaction()
    add(tx, teacher, dict.fromkeys(first, "another item"))
    add(tx, "put", first)

    forbidden(tx, "put", second, SAME)


@pytest.mark.parametrize("keys", ONE_ITEM)
@pytest.mark.parametrize("teacher", ["update", "delete", "check"])
def test_two_puts_of_one_item_are_found_when_a_later_action_tells_the_key(teacher: str, keys: str) -> None:
    first, second = ONE_ITEM[keys]
    tx = transaction()
    add(tx, "put", first)
    add(tx, "put", second)

    forbidden(tx, teacher, dict.fromkeys(first, "another item"), SAME)


@pytest.mark.parametrize(
    ("one", "other"), [("orders", ARN + "orders"), (ARN + "orders", "orders"), (ARN + "orders", ARN + "orders")]
)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_table_is_the_same_by_its_name_and_by_its_arn(first: str, second: str, one: str, other: str) -> None:
    tx = transaction()
    add(tx, first, {"id": "a"}, one)

    forbidden(tx, second, {"id": "a"}, SAME, other)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("other", ["orders2", "order", ARN + "orders2", "Orders"])
def test_items_of_different_tables_may_have_one_key(first: str, second: str, other: str) -> None:
    tx = transaction()

    add(tx, first, {"id": "a"})
    add(tx, second, {"id": "a"}, other)

    assert [action[kind]["TableName"] for action in tx.actions for kind in action] == ["orders", other]


def test_a_refused_action_tells_no_key() -> None:
    """Its key may be what was wrong with it."""
    tx = transaction()
    add(tx, "put", {"id": "a", "sk": 1})
    with pytest.raises(ValueError):
        add(tx, "update", {"id": "b"}, ExpressionAttributeValues={":d": "x" * MAX_BYTES})

    add(tx, "put", {"id": "a", "sk": 2})
    add(tx, "update", {"id": "c", "sk": 1})

    assert len(tx.actions) == 3


@pytest.mark.parametrize("teacher", ["update", "delete", "check"])
def test_the_first_action_that_tells_a_key_is_believed(teacher: str) -> None:
    """A later one with other names is wrong, and DynamoDB will say so; it hides no second action on an item."""
    tx = transaction()
    add(tx, teacher, {"id": "a"})
    add(tx, teacher, {"wrong": "name"})

    forbidden(tx, "put", {"id": "a"}, SAME)


@pytest.mark.parametrize("teacher", ["update", "delete", "check"])
def test_a_put_without_the_tables_key_is_left_to_the_service(teacher: str) -> None:
    tx = transaction()
    add(tx, teacher, {"pk": "a", "sk": 1})

    add(tx, "put", {"pk": "a"})

    assert len(tx.actions) == 2


# The call's own record


OWN_KEYS: dict[str, dict[str, Any]] = {
    "plain": {"id": "fn#1"},
    "composite": {"pk": "idempotency#fn", "sort": "fn#1"},
    "odd names": {"the key": "fn#1"},
}
OWN = "the item is this call's own idempotency record"


def typed(key: dict[str, str]) -> dict[str, Any]:
    return {name: {"S": value} for name, value in key.items()}


@pytest.mark.parametrize("layout", OWN_KEYS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("table", ["records", ARN + "records"])
@pytest.mark.parametrize("own_table", ["records", ARN + "records"])
@pytest.mark.parametrize("form", [dict, typed])
def test_the_calls_own_record_is_refused_in_every_form(
    own_table: str, table: str, method: str, layout: str, form: Callable[[Any], Any]
) -> None:
    tx = transaction(own_table, typed(OWN_KEYS[layout]))

    forbidden(tx, method, form(OWN_KEYS[layout]), OWN, table)


@pytest.mark.parametrize("method", METHODS)
def test_the_calls_own_record_is_refused_after_an_action_with_a_wrong_key_for_its_table(method: str) -> None:
    tx = transaction()
    add(tx, "delete", {"wrong": "name"}, "records")

    forbidden(tx, method, OWN_KEYS["plain"], OWN, "records")


@pytest.mark.parametrize("layout", OWN_KEYS)
@pytest.mark.parametrize("method", METHODS)
def test_another_item_of_the_records_table_is_taken(method: str, layout: str) -> None:
    """One table may hold the records and the users' items."""
    tx = transaction(own_key=typed(OWN_KEYS[layout]))
    other = {**OWN_KEYS[layout], [*OWN_KEYS[layout]][-1]: "fn#2"}

    add(tx, method, other, "records")

    assert len(tx.actions) == 1


@pytest.mark.parametrize(("one", "other"), [*PAIRS, ("put", "put")])
def test_the_key_of_the_records_table_is_known_so_two_puts_of_one_item_are_found(one: str, other: str) -> None:
    tx = transaction()
    add(tx, one, {"id": "a"}, "records")

    forbidden(tx, other, {"id": "a"}, SAME.replace("orders", "records"), "records")


@pytest.mark.parametrize("method", METHODS)
def test_an_item_of_another_table_may_have_the_records_key(method: str) -> None:
    tx = transaction()

    add(tx, method, {"id": "fn#1"}, "orders")

    assert len(tx.actions) == 1


# Regions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("region", "table"),
    [
        (REGION, "orders"),
        (REGION, ARN + "orders"),
        ("", ARN + "orders"),
        ("", "orders"),
        ("cn-north-1", "arn:aws-cn:dynamodb:cn-north-1:000000000000:table/orders"),
        (REGION, "arn:not.an:arn"),
        (REGION, "arn:a:b:us-east-1:too-short"),
        (REGION, "arnica:a:b:us-east-1:c:table/d"),
    ],
)
def test_a_table_of_our_region_is_taken_and_any_where_the_clients_is_unknown(region: str, table: str, method: str) -> None:
    tx = transaction(region=region)

    add(tx, method, {"id": "a"}, table)

    [(_, request)] = tx.actions[0].items()
    assert request["TableName"] == table


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("other", ["us-east-1", "eu-west-2", "eu-west-10", "EU-WEST-1"])
def test_a_table_of_another_region_is_refused(other: str, method: str) -> None:
    table = f"arn:aws:dynamodb:{other}:000000000000:table/orders"
    message = f"{table} is in another Region than eu-west-1, where the record is; a transaction has one Region"

    forbidden(transaction(), method, {"id": "a"}, message, table)


# What is wrong with an action


@pytest.mark.parametrize(("method", "argument"), [("update", "UpdateExpression"), ("check", "ConditionExpression")])
def test_an_expression_that_an_action_is_for_must_be_there(method: str, argument: str) -> None:
    tx = transaction()

    with pytest.raises(TypeError) as raised:
        getattr(tx, method)(TableName="orders", Key={"id": "a"}, **{argument: None})
    assert str(raised.value) == f"transaction().{method}(): {argument} is missing"
    assert tx.actions == ()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("word", ["all_old", "ALL_NEW", "UPDATED_OLD", 5, True, ["ALL_OLD"]])
def test_no_other_word_asks_for_the_old_item(method: str, word: Any) -> None:
    with pytest.raises(ValueError) as raised:
        add(transaction(), method, {"id": "a"}, ReturnValuesOnConditionCheckFailure=word)
    assert str(raised.value) == f"transaction().{method}(): ReturnValuesOnConditionCheckFailure must be 'ALL_OLD' or 'NONE'"


SECRET = "4111-1111"
SURROGATE = f"{SECRET}\ud800"

#: Wrong arguments, each with the secret in some value; by what is wrong, and whether the type or the value is.
WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "float": (TypeError, {"ExpressionAttributeValues": {":v": [SECRET, 1.5]}}),
    "malformed": (TypeError, {"ExpressionAttributeValues": {":v": {1, SECRET}}}),
    "values": (TypeError, {"ExpressionAttributeValues": SECRET}),
    "names": (TypeError, {"ExpressionAttributeNames": {"#a": SECRET.encode()}}),
    "condition": (TypeError, {"ConditionExpression": SECRET.encode()}),
    "condition object": (TypeError, {"ConditionExpression": Attr("a").eq([SECRET, 1.5])}),
    "empty condition": (ValueError, {"ConditionExpression": "", "ExpressionAttributeValues": {":v": SECRET}}),
    "placeholder": (
        ValueError,
        {"ConditionExpression": Attr("a").eq(SECRET), "ExpressionAttributeValues": {":v0": SECRET}},
    ),
    "word": (ValueError, {"ReturnValuesOnConditionCheckFailure": SECRET}),
    "text": (ValueError, {"ExpressionAttributeValues": {":v": SURROGATE}}),
    "text in a list": (ValueError, {"ExpressionAttributeValues": {":v": ["x", SURROGATE]}}),
    "text in a set": (ValueError, {"ExpressionAttributeValues": {":v": {SURROGATE}}}),
    "name in a map": (ValueError, {"ExpressionAttributeValues": {":v": {SURROGATE: 1}}}),
    "text in the condition": (ValueError, {"ConditionExpression": Attr("a").eq(SURROGATE)}),
    "size": (ValueError, {"ExpressionAttributeValues": {":v": SECRET + "x" * MAX_BYTES}}),
    "region": (ValueError, {"TableName": "arn:aws:dynamodb:us-east-1:0:table/orders"}),
    "table": (TypeError, {"TableName": 5}),
    "key": (TypeError, {"identity": {"id": SECRET, "n": 1.5}}),
    "text in the key": (ValueError, {"identity": {"id": SURROGATE}}),
    "name in the key": (TypeError, {"identity": {"id": SECRET, 5: SECRET}}),
    "no key": (ValueError, {"identity": {}}),
    "key of a list": (TypeError, {"identity": [SECRET]}),
    "same item": (ValueError, {"identity": {"id": SECRET}}),
    "own record": (ValueError, {"TableName": "records", "identity": {"id": "fn#1", "s": SECRET}}),
    "minus infinity in the key": (TypeError, {"identity": {"id": SECRET, "n": Decimal("-Infinity")}}),
    "signaling nan in the key": (TypeError, {"identity": {"id": SECRET, "n": Decimal("sNaN")}}),
    "name of a map": (TypeError, {"ExpressionAttributeValues": {":v": {5: SECRET}}}),
    "name of bytes": (TypeError, {"ExpressionAttributeValues": {":v": {SECRET.encode(): 1}}}),
    "empty set": (TypeError, {"ExpressionAttributeValues": {":v": [SECRET, set()]}}),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_action_is_refused_leaves_the_transaction_as_it_was_and_repeats_no_value(method: str, wrong: str) -> None:
    kind, changes = WRONG[wrong]
    tx = transaction()
    tx.check(TableName="orders", Key={"id": SECRET}, ConditionExpression="a = b")
    before = state(tx)
    identity = {"Item" if method == "put" else "Key": changes.get("identity", {"id": "a"})}
    if wrong == "own record" and method != "put":
        identity = {"Key": {"id": "fn#1"}}
    request = {"TableName": "orders", **identity, **NEEDED[method], **{k: v for k, v in changes.items() if k != "identity"}}

    with pytest.raises(kind) as raised:
        getattr(tx, method)(**request)

    error = raised.value
    assert type(error) is kind
    assert str(error).startswith(f"transaction().{method}(): ")
    assert state(tx) == before
    logged = "".join(traceback.format_exception(error))  # with its notes, and the errors that it shows besides
    for text in (logged, str(error), repr(error), str(error.__cause__), str(error.__context__)):
        assert SECRET not in text
    assert "ud800" not in ascii(logged)
    assert error.__suppress_context__
    add(tx, method, {"id": "good"})
    assert len(tx.actions) == 2


def test_nothing_of_an_actions_values_is_in_the_transactions_text() -> None:
    tx = transaction()
    add(tx, "put", {"id": SECRET})

    assert repr(tx) == "Transaction(idempotency_key='fn#1', actions=1)"


# The end of the call


@pytest.mark.parametrize("actions", [0, 1, 2])
def test_closing_tells_whether_there_is_anything_to_write(actions: int) -> None:
    tx = transaction()
    for number in range(actions):
        add(tx, "put", {"id": str(number)})

    assert tx.close() is (actions > 0)
    assert tx.close() is (actions > 0)


@pytest.mark.parametrize("method", METHODS)
def test_after_the_end_of_the_call_an_action_is_an_error_and_is_not_added(method: str) -> None:
    tx = transaction()
    add(tx, "put", {"id": "a"})
    tx.close()
    before = state(tx)

    with pytest.raises(RuntimeError) as raised:
        add(tx, method, {"id": "b"})
    assert type(raised.value) is RuntimeError
    assert str(raised.value) == "The idempotent call of this transaction has ended; its writes were sent, or dropped, by then"
    assert state(tx) == before


def test_after_the_end_a_hundredth_action_is_told_of_the_end_and_not_of_the_limit() -> None:
    tx = transaction()
    for number in range(99):
        add(tx, "put", {"id": str(number)})
    tx.close()

    with pytest.raises(RuntimeError, match="has ended"):
        add(tx, "put", {"id": "b"})


# Threads


@pytest.fixture
def _hasty_threads() -> Any:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_hasty_threads")
def test_of_many_threads_actions_just_99_get_in() -> None:
    tx = transaction()

    def hammer(thread: int) -> Callable[[], int]:
        def run() -> int:
            taken = 0
            for number in range(30):
                try:
                    tx.put(TableName=f"t{thread}", Item={"id": str(number)})
                except ValueError:
                    continue
                taken += 1
            return taken

        return run

    taken = at_once([hammer(thread) for thread in range(8)])

    assert sum(taken) == len(tx.actions) == 99
    assert has_bytes(tx, sum(2 + len(action["Put"]["Item"]["id"]["S"]) for action in tx.actions))


@pytest.mark.usefixtures("_hasty_threads")
@pytest.mark.parametrize("key", range(10))
def test_of_many_threads_actions_on_one_item_one_gets_in(key: int) -> None:
    tx = transaction()

    def try_it() -> bool:
        try:
            tx.delete(TableName="orders", Key={"id": key})
        except ValueError:
            return False
        return True

    assert sorted(at_once([try_it] * 8)) == [False] * 7 + [True]
    assert len(tx.actions) == 1


def test_what_is_being_added_while_the_call_ends_is_either_in_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits for an action that was admitted already; so what it says of the transaction stays true."""
    tx = transaction()
    answers: list[bool] = []
    closing = threading.Thread(target=lambda: answers.append(tx.close()))

    def meanwhile(_size: int) -> None:
        closing.start()
        closing.join(timeout=0.1)  # in vain, as long as the action is not added

    monkeypatch.setattr("persistence.transaction._check_total", meanwhile)
    add(tx, "put", {"id": "a"})
    closing.join()

    assert answers == [True]
    assert len(tx.actions) == 1


# Why it was canceled


def test_reasons_are_in_the_order_of_the_actions_and_say_which_is_to_blame() -> None:
    tx = transaction()
    add(tx, "put", {"id": "a"}, ARN + "orders")
    add(tx, "update", {"id": "b"}, "stock")
    add(tx, "delete", {"id": "c"}, "carts")
    add(tx, "check", {"id": "d"}, "users")

    reasons = tx.reasons(
        [
            {"Code": "None"},
            {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed", "Item": {"n": {"N": "1.5"}}},
            {"Code": "TransactionConflict", "Message": None},
            {},
        ]
    )

    assert reasons == (
        CancellationReason("put", ARN + "orders", None, "", None),
        CancellationReason("update", "stock", "ConditionalCheckFailed", "The conditional request failed", {"n": Decimal("1.5")}),
        CancellationReason("delete", "carts", "TransactionConflict", "", None),
        CancellationReason("check", "users", None, "", None),
    )


@pytest.mark.parametrize(
    ("item", "read"),
    [
        ({"id": {"S": "a"}, "n": {"N": "7"}, "b": {"B": b"x"}}, {"id": "a", "n": Decimal(7), "b": Binary(b"x")}),
        ({"l": {"L": [{"NULL": True}, {"BOOL": True}]}, "s": {"SS": ["x"]}}, {"l": [None, True], "s": {"x"}}),
        ({}, None),
        (None, None),
    ],
)
def test_the_old_item_of_a_reason_is_in_plain_values(item: Any, read: Any) -> None:
    tx = transaction()
    add(tx, "put", {"id": "a"})

    [reason] = tx.reasons([{"Code": "ConditionalCheckFailed", "Item": item}])

    assert reason.item == read


def test_a_reasons_text_does_not_show_the_item() -> None:
    reason = CancellationReason("put", "orders", "ConditionalCheckFailed", "failed", {"id": SECRET})

    assert repr(reason) == (
        "CancellationReason(action='put', table_name='orders', code='ConditionalCheckFailed', message='failed')"
    )


@pytest.mark.parametrize("number", [0, 2])
def test_reasons_that_are_not_of_these_actions_are_an_error(number: int) -> None:
    tx = transaction()
    add(tx, "put", {"id": "a"})

    with pytest.raises(ValueError):
        tx.reasons([{"Code": "None"}] * number)


def test_without_actions_there_are_no_reasons() -> None:
    assert transaction().reasons([]) == ()
