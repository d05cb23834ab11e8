"""Keys of payloads that hold objects: what they stand for is seen wherever they are, and their classes say what they are."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import types
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from unittest.mock import AsyncMock, MagicMock, Mock, NonCallableMagicMock, create_autospec

import attrs
import pytest
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent, DynamoDBStreamEvent
from pydantic import BaseModel, ConfigDict, RootModel, computed_field, create_model
from pydantic import dataclasses as pydantic_dataclasses
from unit.test_key import digests, outcome, their_digests

from idempotency._json import canonical_json, result_json
from idempotency._objects import data_of
from idempotency.key import SelectionError

# Objects below the top level


@dataclasses.dataclass
class Buyer:
    name: str
    tags: tuple[str, ...] = ("x", "y")


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: int
    buyer: Any = None
    lines: Any = None


class OrderModel(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    id: int
    buyer: Any = None
    lines: Any = None


class Lines(RootModel[list[OrderModel]]):
    pass


class OldModel:
    """Has the shape of a model of pydantic 1."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def json(self) -> str:
        raise AssertionError("asked for text")

    def dict(self) -> Any:
        return self.fields


class Envelope:
    """An event object, which Powertools converts at the top level."""

    def __init__(self, raw_event: Any) -> None:
        self._data = raw_event

    @property
    def raw_event(self) -> Any:
        return self._data


class OwnEvent:
    """An event object whose event is an attribute of its own."""

    def __init__(self, raw_event: Any) -> None:
        self.raw_event = raw_event


class Pair(NamedTuple):
    id: int
    buyer: Any


class Typed(TypedDict):
    id: int


class Status(enum.Enum):
    PAID = "paid"
    DETAILED = {"code": 7, "steps": [1, 2]}  # noqa: RUF012 - a member


@pydantic_dataclasses.dataclass
class ValidatedOrder:
    id: int


#: Objects that stand for `{"id": 1, "buyer": {"name": "ann"}, ...}`.
STAND_INS: dict[str, Any] = {
    "dataclass": Order(1, Buyer("ann")),
    "model": OrderModel(id=1, buyer=Buyer("ann")),
    "model of pydantic 1": OldModel(id=1, buyer=OrderedDict(name="ann")),
    "event object": Envelope({"id": 1, "buyer": {"name": "ann"}}),
    "event object with an attribute": OwnEvent({"id": 1, "buyer": {"name": "ann"}}),
    "Powertools' event object": APIGatewayProxyEvent({"id": 1, "buyer": {"name": "ann"}}),
    "named tuple": Pair(1, {"name": "ann"}),
    "UserDict": UserDict(id=1, buyer=UserDict(name="ann")),
    "mapping proxy": types.MappingProxyType({"id": 1, "buyer": types.MappingProxyType({"name": "ann"})}),
    "ChainMap": ChainMap({"id": 1}, {"id": 2, "buyer": {"name": "ann"}}),
    "defaultdict": defaultdict(dict, id=1, buyer=defaultdict(dict, name="ann")),
    "typed dict": Typed(id=1, buyer={"name": "ann"}),  # type: ignore[typeddict-unknown-key]
    "dataclass with a model": Order(1, create_model("Buyer", name=(str, ...))(name="ann")),
    "model in a model": OrderModel(id=1, buyer=create_model("Buyer", name=(str, ...))(name="ann")),
}
IN_PLACES: list[tuple[str, Any]] = [
    ("order.id", lambda order: {"order": order}),
    ("a.b.order.id", lambda order: {"a": {"b": {"order": order}}}),
    ("orders[0].id", lambda order: {"orders": [order]}),
    ("orders[-1].id", lambda order: {"orders": (None, order)}),
    ("orders[:1].id | [0]", lambda order: {"orders": [order]}),
    ("orders[*].id | [0]", lambda order: {"orders": (order,)}),
    ("orders[].id | [0]", lambda order: {"orders": [[order]]}),
    ("orders[?id == `1`].id | [0]", lambda order: {"orders": [order]}),
    ("orders[?buyer.name == 'ann'].id | [0]", lambda order: {"orders": (order,)}),
    ("by_id.*.id | [0]", lambda order: {"by_id": {"x": order}}),
    ("not_null(missing, order).id", lambda order: {"order": order}),
    ("(missing || order).id", lambda order: {"order": order}),
    ("{x: order}.x.id", lambda order: {"order": order}),
    ("map(&id, orders) | [0]", lambda order: {"orders": [order]}),
    ("sort_by(orders, &id)[0].id", lambda order: {"orders": [order, order]}),
    ("inner.order.id", lambda order: Order(0, lines=order) and {"inner": {"order": order}}),
    ("lines.id", lambda order: Order(0, lines=order)),
    ("order.lines[0].id", lambda order: {"order": Order(0, lines=[order])}),
    ("order.lines.x[0].id", lambda order: {"order": UserDict(lines={"x": (order,)})}),
    ("[0].id", lambda order: [order]),
    ("[1].order.id", lambda order: [None, {"order": order}]),
]


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize(("expression", "place"), IN_PLACES)
def test_an_object_is_seen_wherever_the_expression_walks(name: str, expression: str, place: Any) -> None:
    assert digests(place(STAND_INS[name]), event_key_jmespath=expression) == digests(1)


@pytest.mark.parametrize("name", STAND_INS)
def test_an_object_in_an_object_is_seen(name: str) -> None:
    assert digests({"order": STAND_INS[name]}, event_key_jmespath="order.buyer.name") == digests("ann")


@pytest.mark.parametrize("name", STAND_INS)
def test_requests_that_differ_in_an_objects_field_have_different_keys(name: str) -> None:
    """They shared `[t, null]`."""
    expression = "[t, order.id, order.buyer.name]"

    assert digests({"t": 0, "order": STAND_INS[name]}, event_key_jmespath=expression) == digests([0, 1, "ann"])


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("expression", ["order.missing", "order.id.x", "order[0].x", "order.id[0]", "order.id.*"])
def test_what_an_object_does_not_have_is_missing_as_in_json(name: str, expression: str) -> None:
    order = STAND_INS[name]
    if isinstance(order, tuple) and "[0]" in expression:
        order = list(order)

    assert digests({"order": order}, event_key_jmespath=expression) == (None, "")


@pytest.mark.parametrize("name", STAND_INS)
def test_the_validated_part_sees_objects_too(name: str) -> None:
    options = {"event_key_jmespath": "t", "payload_validation_jmespath": "order.buyer.name"}

    assert digests({"t": 0, "order": STAND_INS[name]}, **options)[1] == digests("ann")[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("keys(order) | sort(@)", ["buyer", "id", "lines"]),
        ("length(order)", 3),
        ("type(order)", "object"),
        ("type(order.buyer.tags)", "array"),
        ("values(order) | [?@ == `1`]", [1]),
        ("merge(order, {id: `2`}).id", 2),
        ("order.*", [1, {"name": "ann", "tags": ["x", "y"]}]),
        ("order.buyer.tags[0]", "x"),
        ("order.buyer.tags[1:]", ["y"]),
        ("order.buyer.tags[*]", ["x", "y"]),
        ("order.buyer.tags[]", ["x", "y"]),
        ("length(order.buyer.tags)", 2),
        ("order.buyer", {"name": "ann", "tags": ["x", "y"]}),
        ("to_array(order.buyer)", [{"name": "ann", "tags": ["x", "y"]}]),
    ],
)
@pytest.mark.parametrize("order", [Order(1, Buyer("ann")), OrderModel(id=1, buyer=Buyer("ann"))], ids=["dataclass", "model"])
def test_functions_take_an_object_for_the_data_that_it_stands_for(order: Any, expression: str, expected: Any) -> None:
    assert digests({"order": order}, event_key_jmespath=expression) == digests(expected)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("[0].id", 1), ("[].id", [1, 2]), ("[1:].id", [2]), ("[?id == `2`].id", [2]), ("length(@)", 2), ("[*].id", [1, 2])],
)
def test_a_model_of_a_list_is_a_list_wherever_it_is(expression: str, expected: Any) -> None:
    lines = Lines([OrderModel(id=1), OrderModel(id=2)])

    for payload, prefix in (({"lines": lines}, "lines | "), (lines, "")):
        assert digests(payload, event_key_jmespath=prefix + expression) == digests(expected)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("status", "paid"), ("details.code", 7), ("details.steps[1]", 2), ("details.*.x", None), ("keys(details)[0]", "code")],
)
def test_an_enum_is_its_value(expression: str, expected: Any) -> None:
    payload = {"status": Status.PAID, "details": Status.DETAILED}

    assert digests(payload, event_key_jmespath=expression)[0] == (None if expected is None else digests(expected)[0])


def test_only_what_the_expression_walks_through_is_converted() -> None:
    class Guarded(BaseModel):
        id: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def costly(self) -> int:
            raise AssertionError("computed")

    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("touched")

    payload = {"orders": [Guarded(id=1), Order(2, Untouchable())], "other": Untouchable()}

    assert digests(payload, event_key_jmespath="orders[].id") == digests([1, 2])
    assert digests(payload, event_key_jmespath="orders[1].id") == digests(2)


# What has no JSON form


@attrs.define
class Defined:
    id: int = 1


class Plain:
    def __init__(self) -> None:
        self.id = 1


class Answering:
    """Has an answer for every name."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: {"id": 1}


FORMLESS: dict[str, Any] = {
    "attrs": Defined(),
    "plain object": Plain(),
    "answers every name": Answering(),
    "namespace": types.SimpleNamespace(id=1),
    "set": {1},
    "bytes": b"id",
    "class": Order,
    "model class": OrderModel,
    "deque": deque([1]),
    "UserList": UserList([1]),
    "generator": iter([1]),
    "mock": Mock(),
    "magic mock": MagicMock(),
    "async mock": AsyncMock(),
    "object mock": NonCallableMagicMock(),
    "mock of a dict": MagicMock(spec=dict),
    "mock of a list": MagicMock(spec=list),
    "mock of a Decimal": MagicMock(spec=Decimal),
    "mock of a time": MagicMock(spec=dt.datetime),
    "mock of a model": MagicMock(spec=OrderModel),
    "mock of a dataclass": create_autospec(Order),
    "mock of an event": MagicMock(spec=APIGatewayProxyEvent),
}


@pytest.mark.parametrize("name", FORMLESS)
@pytest.mark.parametrize(
    "expression",
    [
        "x.id",
        "x[0]",
        "x[:1]",
        "x[]",
        "x[*].id",
        "x[?id]",
        "x.*",
        "[t, x.id]",
        "t && x.id",
        "x.id || t",
        "keys(x)",
        "to_string(x)",
    ],
)
def test_an_expression_that_leads_into_an_object_without_data_fails(name: str, expression: str) -> None:
    kind = type(FORMLESS[name]).__name__

    with pytest.raises(SelectionError) as raised:
        digests({"t": 1, "x": FORMLESS[name]}, event_key_jmespath=expression)
    assert str(raised.value) == (
        f"Object of type {kind} is not JSON serializable, and the JMESPath expression {expression!r} needs its data"
    )


@pytest.mark.parametrize("name", FORMLESS)
@pytest.mark.parametrize("expression", ["", "x", "[t, x]", "{a: x}", "x || t", "not_null(x)", "@", "[x][0]"])
def test_a_key_that_holds_an_object_without_data_is_an_error(name: str, expression: str) -> None:
    with pytest.raises(TypeError, match=f"^Object of type {type(FORMLESS[name]).__name__} is not JSON serializable$"):
        digests({"t": 1, "x": FORMLESS[name]}, event_key_jmespath=expression)


@pytest.mark.parametrize("name", FORMLESS)
def test_a_payload_without_data_is_an_error_and_not_a_payload_without_a_key(name: str) -> None:
    with pytest.raises(TypeError, match=r"^Object of type \w+ is not JSON serializable$"):
        digests(FORMLESS[name])
    with pytest.raises(SelectionError):
        digests(FORMLESS[name], event_key_jmespath="id")
    with pytest.raises(SelectionError):
        digests(FORMLESS[name], event_key_jmespath="[id, id]")


@pytest.mark.parametrize("name", [name for name in FORMLESS if "mock" in name])
def test_a_mock_in_a_result_is_not_taken_for_anything(name: str) -> None:
    with pytest.raises(TypeError, match="is not JSON serializable$"):
        result_json({"a": FORMLESS[name]})


def test_a_decimal_is_known_before_and_after_its_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    assert canonical_json([Decimal("1.50"), Decimal("NaN")]) == '["1.50", NaN]'
    monkeypatch.delitem(sys.modules, "decimal")
    with pytest.raises(TypeError):
        canonical_json(object())


# Mappings


class GetIsGetattr(dict[str, Any]):
    """Answers every attribute, with None if it has none."""

    __getattr__ = dict.get


class Growing(dict[str, Any]):
    """As addict's: answers every attribute with another mapping."""

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else type(self)()


class Boxed(dict[str, Any]):
    """As Box: attributes are keys."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class OwnDict(dict[str, Any]):
    """Its attributes are its items."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Custom(Mapping[str, Any]):
    """The least that a mapping needs, and an answer to every attribute."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


MAPPINGS: list[Any] = [
    GetIsGetattr,
    Growing,
    Boxed,
    OwnDict,
    Custom,
    UserDict,
    OrderedDict,
    Counter,
    ChainMap,
    types.MappingProxyType,
    lambda data: defaultdict(lambda: None, data),
]
#: Every name that is asked of objects, as a key.
TRAPS = {"raw_event": 1, "model_dump": 2, "dict": 3, "json": 4, "_fields": 5, "is_nan": 6, "as_tuple": 7, "get": 8, "id": 9}


@pytest.mark.parametrize("make", MAPPINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("expression", ["", "id", "[id, raw_event]", "@", "raw_event", "dict", "missing", "length(keys(@))"])
def test_a_mapping_has_the_key_of_the_dict_with_its_items(make: Any, expression: str) -> None:
    data = TRAPS

    assert digests(make(data), event_key_jmespath=expression) == digests(data, event_key_jmespath=expression)


@pytest.mark.parametrize("make", MAPPINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "expression", ["", "x", "x.id", "[x.id, x.raw_event]", "x.*.a", "keys(x) | sort(@)", "merge(x, {id: `1`})", "to_array(x)"]
)
def test_a_mapping_below_the_top_level_is_one_too(make: Any, expression: str) -> None:
    assert digests({"x": make(TRAPS)}, event_key_jmespath=expression) == digests({"x": TRAPS}, event_key_jmespath=expression)


@pytest.mark.parametrize("make", MAPPINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("data", [{}, {"a": None}])
def test_an_empty_mapping_is_no_key_as_an_empty_dict(make: Any, data: Any) -> None:
    assert digests(make(data)) == (None, "")
    assert digests({"x": make(data)}, event_key_jmespath="x") == (None, "")


def test_a_dict_may_hold_a_key_that_is_the_name_of_its_method() -> None:
    payload = {"x": OwnDict({"get": 1, "values": 2, "id": 3})}

    assert digests(payload, event_key_jmespath="x.id") == digests(3)
    assert digests(payload, event_key_jmespath="x.* | sort(@)") == digests([1, 2, 3])


class Multi(Custom):
    """Has two values for one key."""

    def items(self) -> Any:
        return [*super().items(), ("id", 2)]


def test_a_mapping_with_two_values_for_one_key_is_no_json() -> None:
    """Requests that differ in the second value only would share a key."""
    multi = Multi({"id": 1})

    assert digests(multi, event_key_jmespath="id") == digests(1)
    for payload in (multi, [multi]):
        with pytest.raises(TypeError, match="^Object of type Multi has several values for one key, and JSON has one$"):
            digests(payload)


class Duck:
    """Used like a mapping, and not registered as one."""

    def get(self, key: str) -> Any:
        return self[key]

    def __getitem__(self, key: str) -> Any:
        return {"id": 7}.get(key)


def test_an_object_that_is_used_like_a_mapping_is_asked_for_its_fields_as_in_powertools() -> None:
    for payload, expression in ((Duck(), "id"), ({"x": Duck()}, "x.id"), ({"x": Duck()}, "[x.id]")):
        assert digests(payload, event_key_jmespath=expression) == their_digests(payload, event_key_jmespath=expression)


class Waiting:
    """Has a `get` that is not a mapping's, as queues and context variables have."""

    def get(self, key: str) -> Any:
        raise AssertionError("asked")


def test_an_object_that_only_has_a_method_of_that_name_is_not_asked() -> None:
    with pytest.raises(SelectionError, match="^Object of type Waiting is not JSON serializable"):
        digests({"x": Waiting()}, event_key_jmespath="x.id")


def test_a_class_is_not_taken_for_one_of_its_objects() -> None:
    class Sample:
        raw_event: Any = {"id": 1}  # noqa: RUF012 - as an instance has it

    assert data_of(Sample()) == {"id": 1}
    assert data_of(Sample) is Sample


def test_an_event_object_is_its_event_although_it_is_a_mapping() -> None:
    event = DynamoDBStreamEvent({"Records": [{"dynamodb": {"Keys": {"id": {"N": "1"}}}}]})
    (record,) = event.records

    assert digests(event) == their_digests(event)
    assert data_of(record.dynamodb) == {"Keys": {"id": {"N": "1"}}}
    assert digests({"x": record.dynamodb}) == digests({"x": {"Keys": {"id": {"N": "1"}}}})


# What changes for those who come from Powertools

Point = namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind, too

#: Payload, expression, and what Powertools selects; what is selected here.
CHANGED: list[tuple[Any, str, Any, Any]] = [
    ({"order": OrderModel(id=1)}, "order.id", None, 1),
    ({"order": Order(1)}, "order.id", None, 1),
    ({"order": Envelope({"id": 1})}, "order.id", None, 1),
    ({"t": 0, "order": OrderModel(id=1)}, "[t, order.id]", [0, None], [0, 1]),
    ({"t": 0, "order": Order(1)}, "{t: t, id: order.id}", {"t": 0, "id": None}, {"t": 0, "id": 1}),
    ({"orders": [OrderModel(id=1), Order(2)]}, "orders[].id", [], [1, 2]),
    ({"t": 0, "orders": [Order(2)]}, "[t, orders[?id == `2`].id]", [0, []], [0, [2]]),
    ({"t": 0, "items": ("a", "b")}, "[t, items[0]]", [0, None], [0, "a"]),
    ({"t": 0, "items": ("a", "b")}, "[t, items[*]]", [0, None], [0, ["a", "b"]]),
    ({"t": 0, "point": Point(1, 2)}, "[t, point.x]", [0, None], [0, 1]),
    (Order(1, OrderModel(id=2)), "buyer.id", None, 2),
    ({"t": 0, "status": Status.DETAILED}, "[t, status.code]", [0, None], [0, 7]),
]


@pytest.mark.parametrize(("payload", "expression", "theirs", "ours"), CHANGED)
def test_a_key_changes_only_where_powertools_sees_nothing(payload: Any, expression: str, theirs: Any, ours: Any) -> None:
    found = outcome(their_digests, payload, expression)

    assert found == ("no key" if theirs in (None, []) else their_digests(theirs))
    assert digests(payload, event_key_jmespath=expression) == digests(ours)


#: Objects below the top level whose keys Powertools computes.
UNCHANGED: list[tuple[Any, str]] = [
    ({"order": OrderModel(id=1)}, ""),
    ({"order": OrderModel(id=1)}, "order"),
    ({"order": Order(1)}, ""),
    ({"order": Order(1)}, "[order, order]"),
    ([OrderModel(id=1), {"x": Order(2)}], ""),
    ({"order": OrderModel(id=1)}, "to_string(order)"),
    ({"order": Order(1)}, "to_string(order)"),
    ({"order": Order(1)}, "to_array(order)"),
    ({"order": Order(1), "b": 1}, "order && b"),
    ({"order": Order(1)}, "order || `1`"),
    ({"order": Order(1), "other": Order(1)}, "order == other"),
    ({"items": (1, 2)}, "items"),
    ({"items": (1, 2)}, "to_string(items)"),
    ({"items": (1, 2), "more": [3]}, "[items, more][]"),
    ({"items": (), "more": [3]}, "[`1`, items || more]"),
    ({"at": dt.datetime(2026, 11, 21), "price": Decimal("1.50"), "s": Status.PAID}, "[at, price, s]"),
    ({"s": Status.PAID, "t": 1}, "[t, s == 'paid']"),
    ({"items": [{"s": Status.PAID, "id": 1}], "t": 1}, "[t, items[?s == 'paid'].id]"),
    ({"event": APIGatewayProxyEvent({"body": "b"})}, "event.body"),
    ({"x": GetIsGetattr(id=1)}, "x.id"),
    ({"x": UserDict(id=1)}, "x.id"),
    ({"x": OrderedDict(id=1)}, "keys(x)"),
    ({1: "a"}, "to_string(@)"),
    ({1: "a", "b": Decimal(1)}, "to_string(@)"),
]


@pytest.mark.parametrize(("payload", "expression"), UNCHANGED)
def test_a_key_that_powertools_computes_stays_as_it_is(payload: Any, expression: str) -> None:
    assert digests(payload, event_key_jmespath=expression) == their_digests(payload, event_key_jmespath=expression)
