"""Users' own requests: boto3's argument names and plain Python values, as the low-level client takes them."""

from __future__ import annotations

import json
import traceback
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from boto3.dynamodb.conditions import Attr, Key
from boto3.dynamodb.types import Binary, TypeSerializer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistence._user_requests import comparable, low_level, plain

if TYPE_CHECKING:
    from collections.abc import Callable

serialize = TypeSerializer().serialize

#: Examples are the same in every run.
in_general = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
#: For what has few cases.
briefly = settings(in_general, max_examples=50)


# What boto3's own resources make of a request


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    """A set's elements have no order, and boto3 sends those of a copy."""
    return {
        name: sorted(value) if name in {"SS", "NS", "BS"} and isinstance(value, list) else value for name, value in found.items()
    }


OPERATIONS = {"put": "PutItem", "update": "UpdateItem", "delete": "DeleteItem"}


class Wire:
    """The bodies that a client of boto3's would send.  Nothing is sent."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.bodies: list[dict[str, Any]] = []
        client.meta.events.register("before-call.dynamodb", self.answer)

    def answer(self, params: dict[str, Any], **_rest: Any) -> tuple[Any, dict[str, Any]]:
        self.bodies.append(json.loads(params["body"], object_hook=in_order))
        return SimpleNamespace(status_code=200), {}

    def body(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        getattr(self.client, f"{method}_item")(**request)
        return self.bodies.pop()


CREDENTIALS = {"region_name": "eu-west-1", "aws_access_key_id": "a", "aws_secret_access_key": "s"}


@pytest.fixture(scope="module")
def resource() -> Wire:
    """As boto3's resources send a request: plain values and condition objects are transformed."""
    return Wire(boto3.resource("dynamodb", **CREDENTIALS).meta.client)


@pytest.fixture(scope="module")
def client() -> Wire:
    """As the low-level client sends a request: just as it is."""
    return Wire(boto3.client("dynamodb", **CREDENTIALS))


names = st.text(min_size=1, max_size=8)
integers = st.integers(min_value=-(10**38) + 1, max_value=10**38 - 1)
decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, tuple(digits), exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=38),
    st.integers(-90, 80),
)
numbers = integers | decimals
binaries = st.binary(max_size=8) | st.binary(max_size=8).map(bytearray) | st.binary(max_size=8).map(Binary)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | binaries
sets = (
    st.sets(numbers, min_size=1, max_size=4)
    | st.sets(st.text(max_size=4), min_size=1, max_size=4)
    | st.frozensets(st.binary(max_size=4), min_size=1, max_size=4)
)
values = st.recursive(
    scalars | sets,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
attributes = st.dictionaries(names, values, max_size=5)
keys = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=8)}, optional={"sk": numbers | st.binary(min_size=1, max_size=8)}
)
placeholders = st.text("abcxyz0123456789_", min_size=1, max_size=4)
named = st.dictionaries(placeholders.map("#u{}".format), names, min_size=1, max_size=3)
valued = st.dictionaries(placeholders.map(":u{}".format), values, min_size=1, max_size=3)
attribute_names = st.text("abc", min_size=1, max_size=3) | st.sampled_from(["a.b", "a[0]", "a.b[1].c"])

#: Each condition on an attribute that boto3 has.
CONDITIONS: dict[str, Callable[[str, Any, Any], Any]] = {
    "eq": lambda name, one, _: Attr(name).eq(one),
    "ne": lambda name, one, _: Attr(name).ne(one),
    "lt": lambda name, one, _: Attr(name).lt(one),
    "lte": lambda name, one, _: Attr(name).lte(one),
    "gt": lambda name, one, _: Attr(name).gt(one),
    "gte": lambda name, one, _: Attr(name).gte(one),
    "between": lambda name, one, other: Attr(name).between(one, other),
    "is_in": lambda name, one, other: Attr(name).is_in([one, other]),
    "begins_with": lambda name, one, _: Attr(name).begins_with(one),
    "contains": lambda name, one, _: Attr(name).contains(one),
    "exists": lambda name, _, __: Attr(name).exists(),
    "not_exists": lambda name, _, __: Attr(name).not_exists(),
    "attribute_type": lambda name, _, __: Attr(name).attribute_type("S"),
    "size": lambda name, _, other: Attr(name).size().gte(other),
    "other attribute": lambda name, _, __: Attr(name).eq(Attr("other")),
    "key": lambda name, one, _: Key(name).eq(one),
}
conditions = st.recursive(
    st.builds(
        lambda kind, name, one, other: CONDITIONS[kind](name, one, other),
        st.sampled_from([*CONDITIONS]),
        attribute_names,
        values,
        values,
    ),
    lambda inner: (
        st.builds(lambda a, b: a & b, inner, inner) | st.builds(lambda a, b: a | b, inner, inner) | inner.map(lambda a: ~a)
    ),
    max_leaves=6,
)
requests = st.builds(
    lambda method, key, item, rest: (
        method,
        {"TableName": "orders"}
        | ({"Item": {**item, **key}} if method == "put" else {"Key": key})
        | ({"UpdateExpression": "SET #x = :x"} if method == "update" else {})
        | rest,
    ),
    st.sampled_from([*OPERATIONS]),
    keys,
    attributes,
    st.fixed_dictionaries(
        {},
        optional={
            "ConditionExpression": st.text(min_size=1, max_size=8) | conditions,
            "ExpressionAttributeNames": named,
            "ExpressionAttributeValues": valued,
            "ReturnValuesOnConditionCheckFailure": st.sampled_from(["ALL_OLD", "NONE"]),
        },
    ),
)


def as_given(request: dict[str, Any]) -> dict[str, Any]:
    """A copy for boto3, which writes into the request's own dictionaries."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in request.items()}


@in_general
@given(case=requests)
def test_a_request_is_the_one_that_boto3s_resources_would_send(resource: Wire, client: Wire, case: Any) -> None:
    method, request = case

    assert client.body(method, low_level(request)) == resource.body(method, as_given(request))


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("method", OPERATIONS)
def test_every_condition_of_boto3s_is_taken_beside_the_users_own_placeholders(
    resource: Wire, client: Wire, method: str, kind: str
) -> None:
    condition = CONDITIONS[kind]("a.b[0]", 1, "two") & ~(Attr("n").gte(Decimal("1.50")) | Key("id").eq("x"))
    request: dict[str, Any] = {
        "TableName": "orders",
        "Item" if method == "put" else "Key": {"id": "a"},
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#n": "n"},
        "ExpressionAttributeValues": {":v": 5},
    }
    if method == "update":
        request["UpdateExpression"] = "SET #n = #n + :v"

    assert client.body(method, low_level(request)) == resource.body(method, as_given(request))


@briefly
@given(case=requests)
def test_the_users_own_arguments_are_left_as_they_were(case: Any) -> None:
    _, request = case
    before = as_given(request)

    low_level(request)

    assert request == before


# The low-level client's own form


def normal(value: Any) -> Any:
    """The typed value with its sets in one order."""
    [(kind, content)] = value.items()
    if kind in {"SS", "NS", "BS"}:
        return {kind: sorted(map(bytes, content) if kind == "BS" else content)}
    if kind == "L":
        return {kind: [normal(element) for element in content]}
    if kind == "M":
        return {kind: {name: normal(element) for name, element in content.items()}}
    return {kind: bytes(content)} if kind == "B" else value


def typed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: serialize(value) for name, value in values.items()}


def normalised(values: dict[str, Any]) -> dict[str, Any]:
    return {name: normal(value) for name, value in values.items()}


@briefly
@given(key=keys, others=attributes, arguments=valued)
def test_typed_values_mean_what_plain_ones_mean(key: dict[str, Any], others: dict[str, Any], arguments: dict[str, Any]) -> None:
    item = {**others, **key}
    made = low_level({"TableName": "t", "Item": typed(item), "ExpressionAttributeValues": typed(arguments)})

    assert normalised(made["Item"]) == normalised(typed(item))
    assert normalised(made["ExpressionAttributeValues"]) == normalised(typed(arguments))
    assert low_level({"TableName": "t", "Key": typed(key)}) == low_level({"TableName": "t", "Key": key})


@briefly
@given(item=attributes.filter(bool))
def test_what_was_made_once_is_made_again_of_itself(item: dict[str, Any]) -> None:
    made = low_level({"TableName": "t", "Item": {**item, "id": "x"}})

    again = low_level(made)

    assert again.keys() == made.keys()
    assert normalised(again["Item"]) == normalised(made["Item"])


@pytest.mark.parametrize(
    ("given_value", "canonical"),
    [
        ({"N": "1.0"}, {"N": "1.0"}),
        ({"N": "007"}, {"N": "7"}),
        ({"N": "+5"}, {"N": "5"}),
        ({"N": "1e3"}, {"N": "1E+3"}),
        ({"S": ""}, {"S": ""}),
        ({"B": b""}, {"B": b""}),
        ({"NULL": True}, {"NULL": True}),
        ({"BOOL": False}, {"BOOL": False}),
        ({"L": []}, {"L": []}),
        ({"M": {}}, {"M": {}}),
        ({"M": {"S": {"N": "1"}}}, {"M": {"S": {"N": "1"}}}),
        ({"SS": ["a"]}, {"SS": ["a"]}),
        ({"NS": ["01"]}, {"NS": ["1"]}),
        ({"BS": [b"a"]}, {"BS": [b"a"]}),
    ],
    ids=repr,
)
def test_a_typed_value_is_brought_into_one_form(given_value: Any, canonical: Any) -> None:
    made = low_level({"TableName": "t", "Key": {"id": {"S": "a"}}, "ExpressionAttributeValues": {":v": given_value}})

    assert made["ExpressionAttributeValues"] == {":v": canonical}


@pytest.mark.parametrize("kind", ["S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"])
@pytest.mark.parametrize("identity", ["Item", "Key"])
def test_one_attribute_that_is_no_typed_value_makes_all_of_them_plain(identity: str, kind: str) -> None:
    """A map with one such name is a value, too.  An attribute of a key is none, so a key decides."""
    made = low_level(
        {"TableName": "t", identity: {"id": "a", "map": {kind: "x"}}, "ExpressionAttributeValues": {":v": {"S": "x"}}}
    )

    assert made[identity] == {"id": {"S": "a"}, "map": {"M": {kind: {"S": "x"}}}}
    assert made["ExpressionAttributeValues"] == {":v": {"M": {"S": {"S": "x"}}}}


@pytest.mark.parametrize("value", ["S", "N", "B", "L", "M"])
def test_a_text_that_reads_like_a_type_is_a_plain_value(value: str) -> None:
    made = low_level({"TableName": "t", "Key": {"id": value}, "ExpressionAttributeValues": {":v": [value]}})

    assert made["Key"] == {"id": {"S": value}}
    assert made["ExpressionAttributeValues"] == {":v": {"L": [{"S": value}]}}


@pytest.mark.parametrize("map_", [{}, {"S": "x", "N": "1"}, {"Q": "x"}, {"s": "x"}], ids=repr)
def test_a_map_that_names_no_single_type_is_a_plain_one(map_: dict[str, str]) -> None:
    assert low_level({"TableName": "t", "Item": {"map": map_}})["Item"] == {"map": serialize(map_)}


# What is wrong is refused before anything is sent, and no value is repeated


SECRET = "4111-1111"


class Secretive:
    """A value of a type that DynamoDB does not know, and whose texts are all secret."""

    def __repr__(self) -> str:
        return SECRET

    def __format__(self, spec: str) -> str:
        return SECRET


#: Values that DynamoDB does not know, each with the secret in it.
BAD_PLAIN: dict[str, Any] = {
    "object": Secretive(),
    "float": 41111111.5,
    "nan": Decimal("NaN"),
    "infinity": Decimal("Infinity"),
    "39 digits": int("41111111" + "1" * 31),
    "39 digits of a fraction": Decimal("0.41111111" + "1" * 31),
    "too large": Decimal("4.1111111E+127"),
    "too small": Decimal("4.1111111E-170"),
    "complex": 41111111j,
    "date": SimpleNamespace(secret=SECRET),
    "mixed set": {SECRET, 5},
    "set with a float": {41111111.5},
    "set of nothing known": {None, SECRET},
    "list": [SECRET, Secretive()],
    "tuple": (SECRET, 41111111.5),
    "map": {"a": SECRET, "b": {"c": [Secretive()]}},
    "range": range(41111111),
    "memory": memoryview(SECRET.encode()),
    "generator": (SECRET for _ in "x"),
    "minus infinity": Decimal("-Infinity"),
    "nan with a payload": Decimal("NaN41111111"),
    "signaling nan": Decimal("sNaN41111111"),
    "nested minus infinity": [{"a": Decimal("-Infinity")}],
    "empty set": set(),
    "nested empty set": [{"a": frozenset()}],
    "map with a number for a name": {SECRET: {41111111: "x"}},
    "map with bytes for a name": {SECRET.encode(): "x"},
    "map with none for a name": {None: SECRET},
}
#: The same in the low-level client's form.
BAD_TYPED: dict[str, Any] = {
    "text": SECRET,
    "number": 41111111,
    "none": None,
    "list": [{"S": SECRET}],
    "empty": {},
    "unknown type": {"Q": SECRET},
    "small letter": {"s": SECRET},
    "number in S": {"S": 41111111},
    "bytes in S": {"S": SECRET.encode()},
    "none in S": {"S": None},
    "text in N": {"N": SECRET},
    "empty N": {"N": ""},
    "39 digits in N": {"N": "41111111" + "1" * 31},
    "infinity in N": {"N": "Infinity"},
    "list in N": {"N": [SECRET]},
    "text in B": {"B": SECRET},
    "number in B": {"B": 41111111},
    "text in BOOL": {"BOOL": SECRET},
    "number in BOOL": {"BOOL": 1},
    "text in M": {"M": SECRET},
    "list in M": {"M": [SECRET]},
    "text in L": {"L": SECRET},
    "number in L": {"L": 41111111},
    "plain text in L": {"L": [SECRET]},
    "plain text in M": {"M": {"a": SECRET}},
    "unknown type in L": {"L": [{"Q": SECRET}]},
    "numbers in SS": {"SS": [41111111]},
    "number in SS": {"SS": 41111111},
    "texts in NS": {"NS": [SECRET]},
    "texts in BS": {"BS": [SECRET]},
    "mixed SS": {"SS": [SECRET, 5]},
    "unhashable in SS": {"SS": [[SECRET]]},
    "empty SS": {"SS": []},
    "empty BS": {"BS": []},
    "empty NS": {"NS": []},
    "text for SS": {"SS": SECRET},
    "digits for NS": {"NS": "41111111"},
    "map for SS": {"SS": {SECRET: 1}},
    "map for L": {"L": {}},
    "two types": {"S": SECRET, "N": "1"},
    "two types in L": {"L": [{"S": SECRET, "N": "1"}]},
    "number in S in L": {"L": [{"S": 41111111}]},
    "text in BOOL in M": {"M": {"a": {"BOOL": SECRET}}},
    "number for a name in M": {"M": {41111111: {"S": SECRET}}},
    "bytes for a name in M": {"M": {SECRET.encode(): {"S": "x"}}},
    "minus infinity in N": {"N": "-Infinity"},
    "float in N": {"N": 41111111.5},
    "number in N": {"N": 41111111},
    "bool in N": {"N": True},
    "false in NULL": {"NULL": False},
    "text in NULL": {"NULL": SECRET},
}
cyclic: list[Any] = [SECRET]
cyclic.append(cyclic)
BAD_PLAIN["cyclic"] = cyclic
BAD_TYPED["cyclic"] = {"L": cyclic}

CONDITION = {
    "condition": Attr("a").eq(1) & ~Attr("b").between(Secretive(), 2),
    "nested": Attr("a").is_in([1, {"x": Secretive()}]),
}


def told(error: BaseException) -> str:
    """Everything that a log would show of an error: texts, notes, and those of the errors that it shows besides."""
    shown = "".join(traceback.format_exception(error))  # honours suppressed contexts
    return "\n".join([shown, str(error), repr(error), *map(repr, error.args), *getattr(error, "__notes__", [])])


def assert_secret(error: BaseException) -> None:
    text = told(error).replace("test_user_requests", "")
    assert SECRET not in text
    assert "41111111" not in text
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
        assert SECRET not in repr(error)


@pytest.mark.parametrize("where", ["Key", "Item", "ExpressionAttributeValues"])
@pytest.mark.parametrize("bad", BAD_PLAIN)
def test_a_plain_value_that_dynamodb_does_not_know_is_refused_and_not_repeated(bad: str, where: str) -> None:
    request: dict[str, Any] = {"TableName": "t", "Key": {"id": SECRET}}
    if where == "Item":
        del request["Key"]
        request["Item"] = {"id": SECRET}
    request.setdefault(where, {})[":v"] = BAD_PLAIN[bad]

    with pytest.raises(TypeError, match=rf"^{where} of t: :v is, or holds, a value that DynamoDB does not know") as raised:
        low_level(request)
    assert type(BAD_PLAIN[bad]).__name__ in str(raised.value)
    assert_secret(raised.value)


@pytest.mark.parametrize("where", ["Key", "Item", "ExpressionAttributeValues"])
@pytest.mark.parametrize("bad", BAD_TYPED)
def test_a_malformed_typed_value_is_refused_and_not_repeated(bad: str, where: str) -> None:
    value = BAD_TYPED[bad]
    if where != "ExpressionAttributeValues" and not (
        isinstance(value, dict) and len(value) == 1 and bad not in {"unknown type", "small letter"}
    ):
        value = {"S": 41111111}  # any other would make all attributes plain ones
    request: dict[str, Any] = {"TableName": "t", "Item" if where == "Item" else "Key": {"id": {"S": SECRET}}}
    request.setdefault(where, {})[":v"] = value

    with pytest.raises(TypeError, match=rf"^{where} of t: :v is, or holds, a value that DynamoDB does not know") as raised:
        low_level(request)
    assert_secret(raised.value)


@pytest.mark.parametrize("condition", CONDITION)
def test_a_value_in_a_condition_object_that_dynamodb_does_not_know_is_refused_and_not_repeated(condition: str) -> None:
    with pytest.raises(TypeError, match=r"^ConditionExpression of t: :v1 is, or holds, a value") as raised:
        low_level({"TableName": "t", "Key": {"id": SECRET}, "ConditionExpression": CONDITION[condition]})
    assert_secret(raised.value)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"TableName": ""}, ValueError, "TableName is empty"),
        ({"TableName": None}, TypeError, "TableName must be a text, not NoneType"),
        ({"TableName": b"t"}, TypeError, "TableName must be a text, not bytes"),
        ({"Key": {}}, ValueError, "Key is empty; it needs the key of an item of t"),
        ({"Item": {}}, ValueError, "Item is empty; it needs the key of an item of t"),
        ({"Key": None}, TypeError, "Key must be a mapping with texts for keys"),
        ({"Key": [("id", SECRET)]}, TypeError, "Key must be a mapping with texts for keys"),
        ({"Key": {5: SECRET}}, TypeError, "Key must be a mapping with texts for keys"),
        ({"Item": {"id": SECRET, None: SECRET}}, TypeError, "Item must be a mapping with texts for keys"),
        ({"ExpressionAttributeNames": ["#a"]}, TypeError, "ExpressionAttributeNames must be a mapping with texts for keys"),
        ({"ExpressionAttributeNames": {1: "a"}}, TypeError, "ExpressionAttributeNames must be a mapping with texts for keys"),
        ({"ExpressionAttributeNames": {"#a": 5}}, TypeError, "A name in ExpressionAttributeNames must be a text, not int"),
        ({"ExpressionAttributeNames": {"#a": ""}}, ValueError, "A name in ExpressionAttributeNames is empty"),
        ({"ExpressionAttributeValues": [SECRET]}, TypeError, "ExpressionAttributeValues must be a mapping with texts for keys"),
        ({"ExpressionAttributeValues": {1: 1}}, TypeError, "ExpressionAttributeValues must be a mapping with texts for keys"),
        ({"ConditionExpression": ""}, ValueError, "ConditionExpression is empty"),
        ({"UpdateExpression": ""}, ValueError, "UpdateExpression is empty"),
        ({"UpdateExpression": 5}, TypeError, "UpdateExpression must be a text, not int"),
        ({"UpdateExpression": Attr("a").eq(SECRET)}, TypeError, "UpdateExpression must be a text, not Equals"),
        (
            {"ConditionExpression": 0},
            TypeError,
            "ConditionExpression must be a text or a condition of boto3's, not int",
        ),
        (
            {"ConditionExpression": 5},
            TypeError,
            "ConditionExpression must be a text or a condition of boto3's, not int",
        ),
        (
            {"ConditionExpression": Attr("a")},
            TypeError,
            "ConditionExpression must be a text or a condition of boto3's, not Attr",
        ),
    ],
)
def test_a_wrong_argument_is_named_and_not_repeated(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    request = {"TableName": "t", **({} if "Item" in changes else {"Key": {"id": SECRET}}), **changes}

    with pytest.raises(kind) as raised:
        low_level(request)
    assert type(raised.value) is kind
    assert str(raised.value) == message
    assert_secret(raised.value)


@pytest.mark.parametrize(
    ("taken_names", "taken_values", "listed"),
    [
        ({"#n0": "x"}, {}, "#n0"),
        ({"#n1": "x", "#n0": "y", "#mine": "z"}, {}, "#n0, #n1"),
        ({}, {":v0": SECRET}, ":v0"),
        ({"#n1": "x"}, {":v1": SECRET, ":mine": 1}, "#n1, :v1"),
    ],
)
def test_placeholders_that_the_condition_object_needs_are_a_clear_error(
    taken_names: dict[str, str], taken_values: dict[str, Any], listed: str
) -> None:
    """boto3 replaces the user's own in silence."""
    request = {
        "TableName": "t",
        "Key": {"id": SECRET},
        "ConditionExpression": Attr("a").eq(1) & Attr("b").eq(2),
        "ExpressionAttributeNames": taken_names,
        "ExpressionAttributeValues": taken_values,
    }

    with pytest.raises(ValueError) as raised:
        low_level(request)
    assert str(raised.value) == f"{listed} are placeholders of the condition object; use others in the expressions"
    assert_secret(raised.value)


@pytest.mark.parametrize("free", [{"#n2": "x"}, {"#N0": "x"}, {"#n00": "x"}])
def test_placeholders_that_the_condition_object_does_not_need_are_free(free: dict[str, str]) -> None:
    request = {"TableName": "t", "Key": {"id": "a"}, "ConditionExpression": Attr("a").eq(1) & Attr("b").eq(2)}

    made = low_level({**request, "ExpressionAttributeNames": free})

    assert made["ExpressionAttributeNames"] == {"#n0": "a", "#n1": "b", **free}


@pytest.mark.parametrize("absent", [None, {}])
def test_arguments_that_are_none_or_empty_are_left_out(absent: Any) -> None:
    """DynamoDB refuses an empty map."""
    request = {
        "TableName": "t",
        "Key": {"id": "a"},
        "ConditionExpression": None,
        "ExpressionAttributeNames": absent,
        "ExpressionAttributeValues": absent,
        "ReturnValuesOnConditionCheckFailure": None,
    }

    assert low_level(request) == {"TableName": "t", "Key": {"id": {"S": "a"}}}


def test_a_typed_key_may_go_with_a_condition_object_of_plain_values() -> None:
    made = low_level({"TableName": "t", "Key": {"id": {"S": "a"}}, "ConditionExpression": Attr("n").gte(5)})

    assert made["ConditionExpression"] == "#n0 >= :v0"
    assert made["ExpressionAttributeValues"] == {":v0": {"N": "5"}}


def test_what_was_made_does_not_change_with_the_users_own_values() -> None:
    """A request is repeated as it was, so it holds nothing that the user may change meanwhile."""
    binary, elements, inner = bytearray(b"before"), [1], {"a": "before"}
    typed_inner = {"M": {"a": {"L": [{"B": bytearray(b"before")}]}}}
    made = low_level({"TableName": "t", "Item": {"id": "x", "b": binary, "l": elements, "m": inner, "s": {b"a"}}})
    made_of_typed = low_level({"TableName": "t", "Item": {"id": {"S": "x"}, "m": typed_inner}})
    before, before_of_typed = repr(made), repr(made_of_typed)

    binary[:] = b"after"
    elements.append(2)
    inner["a"] = "after"
    typed_inner["M"]["a"]["L"][0]["B"][:] = b"after"
    typed_inner["M"]["a"]["L"].append({"NULL": True})

    assert (repr(made), repr(made_of_typed)) == (before, before_of_typed)


# Reading


@briefly
@given(item=st.dictionaries(names, values, max_size=5))
def test_an_item_is_read_as_boto3s_resources_read_it(item: dict[str, Any]) -> None:
    read = plain(typed(item))

    assert read.keys() == item.keys()
    assert normalised(typed(read)) == normalised(typed(item))


def test_numbers_are_read_as_decimals_and_binaries_as_boto3s() -> None:
    read = plain({"n": {"N": "1.50"}, "b": {"B": b"x"}, "l": {"L": [{"NULL": True}, {"N": "2"}]}})

    assert read == {"n": Decimal("1.50"), "b": Binary(b"x"), "l": [None, Decimal(2)]}
    assert isinstance(read["n"], Decimal)


# Which keys name one item


KEY = {"id": {"S": "a"}, "sk": {"N": "1"}}


@pytest.mark.parametrize(
    "other",
    [
        {"id": {"S": "a"}, "sk": {"N": "1"}},
        {"sk": {"N": "1"}, "id": {"S": "a"}},
        {"id": {"S": "a"}, "sk": {"N": "1.0"}},
        {"id": {"S": "a"}, "sk": {"N": "1E+0"}},
        {"id": {"S": "a"}, "sk": {"N": "10E-1"}},
        {"id": {"S": "a"}, "sk": {"N": "0.01E+2"}},
    ],
    ids=repr,
)
def test_keys_of_one_item_are_equal_however_their_numbers_are_written(other: Any) -> None:
    assert comparable(other) == comparable(KEY)
    assert hash(comparable(other)) == hash(comparable(KEY))


@pytest.mark.parametrize(
    "other",
    [
        {"id": {"S": "a"}},
        {"id": {"S": "a"}, "sk": {"N": "2"}},
        {"id": {"S": "b"}, "sk": {"N": "1"}},
        {"id": {"S": "a"}, "sk": {"S": "1"}},
        {"id": {"B": b"a"}, "sk": {"N": "1"}},
        {"id": {"S": "a"}, "SK": {"N": "1"}},
        {"id": {"N": "1"}, "sk": {"S": "a"}},
        {},
    ],
    ids=repr,
)
def test_keys_of_different_items_differ(other: Any) -> None:
    assert comparable(other) != comparable(KEY)


@pytest.mark.parametrize("kind", ["L", "M", "SS", "BOOL", "NULL"])
def test_what_no_key_can_be_is_comparable_all_the_same(kind: str) -> None:
    """DynamoDB refuses it, in its own words."""
    assert comparable({"id": {kind: ["a"]}}) == comparable({"id": {kind: ["a"]}}) != comparable({"id": {kind: ["b"]}})
