"""Results as JSON data and back."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, MutableMapping  # noqa: TC003 - read at run time
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import pytest
from pydantic import BaseModel

import idempotency.serialization
from idempotency._json import result_json
from idempotency.serialization import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
    CustomDictSerializer,
    DataclassSerializer,
    NoOpSerializer,
    PydanticSerializer,
)
from idempotency.serialization.functions import get_actual_type, return_type
from persistence.exceptions import (
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
    IdempotencyResultNotKeptError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nowhere import Unheard  # type: ignore[import-not-found]


class Receipt(BaseModel):
    id: int
    total: Decimal = Decimal("1.50")


@dataclass
class Line:
    sku: str
    count: int = 1


@dataclass
class Discount:
    percent: int


@dataclass
class Order:
    """Holds lines in every way that a field may."""

    id: int
    first: Line
    maybe: Optional[Line] = None  # noqa: UP045 - the old spelling, too
    or_none: Line | None = None
    listed: list[Line] = field(default_factory=list)
    maybe_listed: list[Line] | None = None
    pair: tuple[Line, int] | None = None
    all_of: tuple[Line, ...] = ()
    by_name: dict[str, Line] = field(default_factory=dict)
    mapping: Mapping[str, list[Line]] = field(default_factory=dict)
    mutable: MutableMapping[str, Line | None] = field(default_factory=dict)
    nested: list[list[Line]] = field(default_factory=list)
    annotated: Annotated[Line | None, "note"] = None
    price: Decimal = Decimal(0)
    anything: Any = None
    plain_list: list = field(default_factory=list)  # type: ignore[type-arg]
    plain_dict: dict = field(default_factory=dict)  # type: ignore[type-arg]
    plain_tuple: tuple = ()  # type: ignore[type-arg]
    either: Line | Discount | None = None
    union: Union[Line, int] = 0  # noqa: UP007


def replayed(serializer: BaseIdempotencySerializer, result: Any) -> Any:
    """The result after its way through the store."""
    return serializer.from_dict(json.loads(result_json(serializer.to_dict(result))))


# The serializers


@pytest.mark.parametrize("result", [{"a": 1}, [1], "x", 0, None])
def test_the_default_serializer_changes_nothing(result: object) -> None:
    serializer = NoOpSerializer()

    assert serializer.to_dict(result) is result
    assert serializer.from_dict(result) is result


def test_a_serializer_of_two_functions_calls_each_where_it_belongs() -> None:
    serializer = CustomDictSerializer(to_dict=lambda line: {"s": line.sku}, from_dict=lambda data: Line(data["s"], 0))

    assert serializer.to_dict(Line("a")) == {"s": "a"}
    assert serializer.from_dict({"s": "b"}) == Line("b", 0)


def test_a_pydantic_model_is_replayed_as_an_equal_one() -> None:
    result = Receipt(id=1, total=Decimal("2.75"))

    assert PydanticSerializer(Receipt).to_dict(result) == {"id": 1, "total": "2.75"}
    assert replayed(PydanticSerializer(Receipt), result) == result


def test_a_dataclass_is_replayed_as_an_equal_one_with_the_dataclasses_in_its_fields() -> None:
    a, b = Line("a"), Line("b", 2)
    result = Order(
        1,
        a,
        maybe=b,
        or_none=a,
        listed=[a, b],
        maybe_listed=[b],
        pair=(a, 5),
        all_of=(a, b, a),
        by_name={"x": a},
        mapping={"y": [a, b]},
        mutable={"z": b, "none": None},
        nested=[[a], [], [b, a]],
        annotated=b,
        anything={"free": [1]},
        plain_list=[1],
        plain_dict={"k": 1},
    )

    assert replayed(DataclassSerializer(Order), result) == result


def test_a_dataclass_of_nothing_but_defaults_is_replayed_with_its_nones_and_empty_collections() -> None:
    again = replayed(DataclassSerializer(Order), Order(1, Line("a")))

    assert (again.maybe, again.or_none, again.maybe_listed, again.pair, again.annotated) == (None,) * 5
    assert (again.listed, again.all_of, again.by_name, again.nested) == ([], (), {}, [])


@pytest.mark.parametrize(
    ("name", "stored", "value"),
    [
        ("either", {"sku": "a", "count": 1}, Line("a")),
        ("either", {"percent": 5}, Discount(5)),
        ("union", {"sku": "a", "count": 1}, Line("a")),
        ("union", 5, 5),
    ],
)
def test_a_field_of_several_types_comes_back_as_the_one_that_fits(name: str, stored: object, value: object) -> None:
    again = DataclassSerializer(Order).from_dict({"id": 1, "first": {"sku": "a"}, name: stored})

    assert getattr(again, name) == value


@pytest.mark.parametrize(
    ("name", "stored"), [("either", {"colour": "red"}), ("either", 5), ("anything", {"sku": "a", "count": 1})]
)
def test_a_field_that_names_no_fitting_type_comes_back_as_json_has_it(name: str, stored: object) -> None:
    again = DataclassSerializer(Order).from_dict({"id": 1, "first": {"sku": "a"}, name: stored})

    assert getattr(again, name) == stored


@pytest.mark.parametrize(
    ("name", "stored"),
    [("first", "no object"), ("listed", {"not": "a list"}), ("listed", None), ("by_name", [1]), ("pair", "ab"), ("all_of", 5)],
)
def test_a_field_that_holds_something_else_than_it_declares_comes_back_as_it_is(name: str, stored: object) -> None:
    again = DataclassSerializer(Order).from_dict({"id": 1, "first": {"sku": "a"}, name: stored})

    assert getattr(again, name) == stored


def test_a_tuple_that_declares_fewer_elements_than_it_holds_keeps_them_all() -> None:
    @dataclass
    class Route:
        stops: tuple[str]  # meant: tuple[str, ...]

    assert replayed(DataclassSerializer(Route), Route(("a", "b", "c"))) == Route(("a", "b", "c"))


@dataclass
class Stamped:
    name: str
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.name)


def test_a_field_that_its_constructor_does_not_take_comes_back_as_it_was() -> None:
    assert replayed(DataclassSerializer(Stamped), Stamped("abc")) == Stamped("abc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strict:
    line: Line


def test_a_frozen_slotted_keyword_only_dataclass_is_replayed_too() -> None:
    assert replayed(DataclassSerializer(Strict), Strict(line=Line("a"))) == Strict(line=Line("a"))


def test_a_field_added_since_the_result_was_stored_gets_its_default() -> None:
    assert DataclassSerializer(Line).from_dict({"sku": "a"}) == Line("a", 1)


def test_a_field_removed_since_the_result_was_stored_is_ignored() -> None:
    assert DataclassSerializer(Line).from_dict({"sku": "a", "colour": "red"}) == Line("a", 1)


def test_a_field_without_default_added_since_the_result_was_stored_is_an_error_that_names_it() -> None:
    with pytest.raises(
        IdempotencyResultNotKeptError, match="^the stored result cannot be read as Line: Line needs the field sku$"
    ):
        DataclassSerializer(Line).from_dict({"count": 1})


def test_a_result_that_is_no_object_is_replayed_as_it_is() -> None:
    assert DataclassSerializer(Line).from_dict([1]) == [1]


@dataclass
class PartlyUnheard:
    line: Line
    other: Unheard | None = None


def test_an_annotation_that_names_nothing_at_run_time_concerns_its_own_field_only() -> None:
    """Imports under TYPE_CHECKING are common, and the other fields are as good as ever."""
    assert replayed(DataclassSerializer(PartlyUnheard), PartlyUnheard(Line("a"))) == PartlyUnheard(Line("a"))


def test_a_dataclass_is_not_kept_if_the_types_of_its_fields_cannot_be_found() -> None:
    """Annotations are text here, and nobody finds the names of a function later."""

    @dataclass
    class Inner:
        x: int

    @dataclass
    class Outer:
        inner: Inner

    with pytest.raises(IdempotencyResultNotKeptError, match="would come back with other values in: inner$"):
        DataclassSerializer(Outer).to_dict(Outer(Inner(1)))
    assert DataclassSerializer(Outer).from_dict({"inner": {"x": 1}}) == Outer({"x": 1})  # type: ignore[arg-type]


@dataclass
class Node:
    """Refers to itself, as text inside of types."""

    name: str
    parent: Optional["Node"] = None  # noqa: UP037, UP045
    children: list["Node"] = field(default_factory=list)  # noqa: UP037
    by_name: dict[str, "Node"] | None = None  # noqa: UP037


def test_a_dataclass_that_refers_to_itself_is_rebuilt_to_its_leaves() -> None:
    leaf = Node("leaf", parent=Node("other"))
    result = Node("root", children=[leaf, Node("twig", children=[leaf])], by_name={"leaf": leaf})

    assert replayed(DataclassSerializer(Node), result) == result


Made = make_dataclass("Made", [("line", Line), ("maybe", Optional[Line], None), ("listed", list[Line], ())])  # noqa: UP045


def test_a_dataclass_whose_annotations_are_types_and_no_text_is_rebuilt_alike() -> None:
    result = Made(Line("a"), Line("b"), [Line("c")])

    assert replayed(DataclassSerializer(Made), result) == result


@dataclass
class LargerOrder(Order):
    second: Line | None = None


def test_fields_that_are_inherited_are_rebuilt_as_well() -> None:
    result = LargerOrder(1, Line("a"), second=Line("b"))

    assert replayed(DataclassSerializer(LargerOrder), result) == result


# From an annotation

MODELS: list[Any] = [
    pytest.param(DataclassSerializer, Order, "Model type is not inherited of dataclass type", id="dataclass"),
    pytest.param(PydanticSerializer, Receipt, "Model type is not inherited from pydantic BaseModel", id="pydantic"),
]


@pytest.mark.parametrize(("kind", "model", "_"), MODELS)
def test_a_model_serializer_takes_its_model_from_the_annotation_optional_or_not(kind: Any, model: Any, _: str) -> None:
    for annotation in (model, Optional[model], Union[model, None], model | None):  # noqa: UP007, UP045
        serializer = kind.instantiate(annotation)
        assert isinstance(serializer, kind)
        assert serializer._model is model


@pytest.mark.parametrize(("kind", "model", "_"), MODELS)
def test_without_an_annotation_there_is_no_model(kind: Any, model: Any, _: str) -> None:
    with pytest.raises(IdempotencyNoSerializationModelError, match="^No serialization model was supplied$"):
        kind.instantiate(None)


@pytest.mark.parametrize(("kind", "model", "message"), MODELS)
@pytest.mark.parametrize("other", [int, dict, list[Line], dict[str, Receipt], "Order", Any, object()], ids=repr)
def test_a_type_that_does_not_fit_is_refused_in_powertools_words(kind: Any, model: Any, message: str, other: Any) -> None:
    with pytest.raises(IdempotencyModelTypeError, match=f"^{message}$"):
        kind.instantiate(other)


def test_a_models_kind_must_be_the_serializers() -> None:
    with pytest.raises(IdempotencyModelTypeError):
        DataclassSerializer.instantiate(Receipt)
    with pytest.raises(IdempotencyModelTypeError):
        PydanticSerializer.instantiate(Order)
    with pytest.raises(IdempotencyModelTypeError):
        DataclassSerializer.instantiate(Order(1, Line("a")))


@pytest.mark.parametrize("annotation", [Union[Line, Order], Line | Order | None, Optional[Union[int, str]]])  # noqa: UP007, UP045
@pytest.mark.parametrize("kind", [DataclassSerializer, PydanticSerializer])
def test_a_union_of_several_types_is_refused_in_powertools_words(kind: Any, annotation: Any) -> None:
    message = "^Invalid type: expected a single type, optionally wrapped in Optional or Union with None.$"

    with pytest.raises(IdempotencyModelTypeError, match=message):
        kind.instantiate(annotation)


@pytest.mark.parametrize(
    ("annotation", "actual"),
    [(int, int), (Optional[int], int), (int | None, int), (list[int], list[int]), (None, None), (Any, Any)],  # noqa: UP045
)
def test_the_actual_type_is_the_one_beside_none(annotation: Any, actual: Any) -> None:
    assert get_actual_type(annotation) == actual


# The annotation of a function


def by_text(order: Unheard) -> Order:
    """Its parameter names what does not exist at run time."""
    raise NotImplementedError


def not_at_all(order):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    raise NotImplementedError


def of_nothing(order: int) -> None:
    raise NotImplementedError


def of_the_unheard(order: int) -> Unheard:
    raise NotImplementedError


async def awaited(order: int) -> Order | None:
    raise NotImplementedError


class Service:
    def method(self, order: int) -> Order:
        raise NotImplementedError

    @classmethod
    def of_the_class(cls, order: int) -> Order:
        raise NotImplementedError

    @staticmethod
    def static(order: Unheard) -> Line:
        raise NotImplementedError


def optional_by_text(order: int) -> Optional["Order"]:  # noqa: UP037, UP045
    raise NotImplementedError


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Decorates from another module: its wrapper's globals are not the function's."""
    yield


def with_objects(order: int) -> Any:
    raise NotImplementedError


with_objects.__annotations__ = {"order": "Unheard", "return": Order}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (by_text, Order),
        (awaited, Order | None),
        (Service.method, Order),
        (Service().method, Order),
        (Service.of_the_class, Order),
        (Service.__dict__["of_the_class"], Order),
        (Service.static, Line),
        (functools.partial(by_text, order=1), Order),
        (functools.partial(Service().method, 1), Order),
        (with_objects, Order),
        (optional_by_text, Order | None),
        (scope()(by_text), Order),
        (functools.lru_cache(by_text), Order),
        (not_at_all, None),
        (lambda order: order, None),
        (len, None),
        (Service, None),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_the_return_annotation_is_resolved_where_it_is_text(function: Any, expected: Any) -> None:
    assert return_type(function) == expected


@pytest.mark.parametrize("kind", [DataclassSerializer, PydanticSerializer])
def test_a_function_annotated_to_return_nothing_has_no_model_as_in_powertools(kind: Any) -> None:
    with pytest.raises(IdempotencyNoSerializationModelError, match="^No serialization model was supplied$"):
        kind.instantiate(return_type(of_nothing))


def test_a_callable_object_has_the_annotation_of_its_call() -> None:
    class Caller:
        def __call__(self, order: int) -> Order:
            raise NotImplementedError

    assert return_type(Caller()) is Order


def test_an_annotation_that_names_nothing_is_an_error_that_says_so() -> None:
    with pytest.raises(IdempotencyModelTypeError, match="^The return annotation 'Unheard' cannot be resolved") as raised:
        return_type(of_the_unheard)
    assert isinstance(raised.value.__cause__, NameError)


def test_a_type_of_the_enclosing_function_is_found_where_the_function_uses_it() -> None:
    @dataclass
    class Local:
        x: int

    def function(order: int) -> Local:
        return Local(order)

    assert return_type(function) is Local


def test_a_function_that_calls_itself_has_its_annotation_found_before_it_is_bound_to_its_name() -> None:
    @dataclass
    class Local:
        x: int

    seen: list[Any] = []

    def decorator(function: Any) -> Any:
        seen.append(return_type(function))
        return function

    @decorator
    def recursive(order: int) -> Local:
        return Local(order) if order else recursive(order - 1)  # type: ignore[no-any-return]

    assert seen == [Local]


def test_a_local_type_that_the_function_does_not_use_cannot_be_found() -> None:
    @dataclass
    class Local:
        x: int

    def function(order: int) -> Local:
        raise NotImplementedError

    with pytest.raises(IdempotencyModelTypeError, match="^The return annotation 'Local' cannot be resolved"):
        return_type(function)


# What is offered


def test_a_serializer_of_ones_own_needs_both_directions() -> None:
    class Half(BaseIdempotencySerializer):
        def to_dict(self, data: Any) -> Any:
            return data

    with pytest.raises(TypeError, match="from_dict"):
        Half()  # type: ignore[abstract]


def test_a_model_serializer_of_ones_own_needs_to_say_how_it_is_made() -> None:
    class Half(BaseIdempotencyModelSerializer):
        def to_dict(self, data: Any) -> Any:
            return data

        def from_dict(self, data: Any) -> Any:
            return data

    with pytest.raises(TypeError, match="instantiate"):
        Half()  # type: ignore[abstract]


def test_the_package_offers_its_serializers_and_nothing_that_it_lacks() -> None:
    assert all(getattr(idempotency.serialization, name) for name in idempotency.serialization.__all__)
    with pytest.raises(AttributeError, match="^module 'idempotency.serialization' has no attribute 'XmlSerializer'$"):
        idempotency.serialization.XmlSerializer  # noqa: B018
