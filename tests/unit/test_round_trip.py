"""What is stored is read back equal: each type that a field can declare, and what records of earlier versions look like."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Self, TypedDict, TypeVar, Union

import pydantic
import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, RootModel, computed_field, model_validator
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from idempotency._json import ResultEncoder, result_json
from idempotency.serialization import DataclassSerializer, PydanticSerializer
from idempotency.serialization.functions import all_subclasses
from idempotency.serialization.round_trip import first_equal, is_equal
from persistence.exceptions import IdempotencyResultNotKeptError

NAN = float("nan")
NOON = dt.datetime(2026, 11, 21, 12, 30, 15, 250, tzinfo=dt.UTC)
DAY = NOON.date()
BY_NAME = tuple(map(int, pydantic.VERSION.split(".")[:2])) >= (2, 11)
needs_names = pytest.mark.skipif(not BY_NAME, reason="pydantic reads fields by name since 2.11")

T = TypeVar("T")
Number = TypeVar("Number", bound=Decimal)
OrderId = NewType("OrderId", uuid.UUID)


class Colour(Enum):
    RED = "red"
    POINT = (1, 2)


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


class Bits(IntFlag):
    ONE = 1
    TWO = 2


class Access(Flag):
    READ = 1
    WRITE = 2


class Text(str):
    """Says something else than it is."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Point(NamedTuple):
    x: int
    at: dt.date


class Untyped(NamedTuple):
    x: Missing  # type: ignore[name-defined]  # noqa: F821 - it cannot be found


class Address(TypedDict):
    city: str
    since: dt.date


class Nowhere(TypedDict):
    city: Missing  # type: ignore[name-defined]  # noqa: F821 - it cannot be found


class Model(BaseModel):
    id: int
    due: dt.date = DAY


class Numbers(RootModel[list[int]]):
    pass


@dataclass
class Line:
    sku: str
    count: int = 1


@dataclass
class Part:
    sku: str
    price: Decimal


@dataclass
class LargePart(Part):
    size: int


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class LineBox(Box[Line]):
    more: list[Line] = field(default_factory=list)


@dataclass
class Two(Box[Decimal], Generic[T]):
    other: T


@dataclass
class SmallLineBox(LineBox):
    pass


class Strange(list[Any]):
    """Cannot be made from its items."""

    def __init__(self, *, size: int = 0) -> None:
        super().__init__([0] * size)


def holder(annotation: Any) -> Any:
    return make_dataclass("Holder", [("value", annotation)])


def stored(serializer: Any, result: Any) -> Any:
    """The data as a replay finds it."""
    return json.loads(result_json(serializer.to_dict(result)))


KEPT: list[tuple[Any, Any]] = [
    (int, 1),
    (float, 1),
    (float, NAN),
    (str, Text("a")),
    (bool, True),
    (Any, [1, {"a": None}]),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("NaN")),
    (Decimal, Decimal("-Infinity")),
    (Decimal | None, None),
    (Decimal | None, Decimal(1)),
    (Decimal | int, Decimal(1)),
    (Decimal | int, 1),
    (Decimal | Line, Decimal(1)),
    (Line | dict[str, int], {"a": 1}),
    (Line | Part, Part("a", Decimal(1))),
    (Line | None, Line("a")),
    (Union[Line, Box[Line], None], Box(Line("a"))),  # noqa: UP007 - the old spelling, too
    (Box[Decimal] | Line, Box(Decimal("NaN"))),
    (dt.datetime, NOON),
    (dt.datetime, NOON.replace(tzinfo=None)),
    (dt.datetime | dt.date, NOON),
    (dt.date | dt.datetime, NOON),
    (dt.date | dt.datetime, DAY),
    (dt.time, NOON.timetz()),
    (dt.timedelta, dt.timedelta(days=400, microseconds=1)),
    (uuid.UUID, uuid.UUID(int=5)),
    (OrderId, OrderId(uuid.UUID(int=5))),
    (Annotated[uuid.UUID, "note"], uuid.UUID(int=5)),
    (Optional[uuid.UUID], uuid.UUID(int=5)),  # noqa: UP045 - the old spelling, too
    (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"\x00\xff")),
    (Colour, Colour.RED),
    (Colour, Colour.POINT),
    (Level, Level.HIGH),
    (Word, Word.YES),
    (Bits, Bits.ONE | Bits.TWO),
    (Access, Access.READ | Access.WRITE),
    (Literal["fast", 2, True], 2),
    (Literal["fast", 2, True], True),
    (Literal[Colour.RED], Colour.RED),
    (tuple, (1, 2)),
    (tuple[int, ...], (1, 2)),
    (tuple[int, Decimal], (1, Decimal(2))),
    (tuple[()], ()),
    (list[tuple[Decimal, ...]], [(Decimal(1),), ()]),
    (list, [1]),
    (set[Decimal], {Decimal(1), Decimal(2)}),
    (frozenset, frozenset({1})),
    (AbstractSet[int], {1}),
    (AbstractSet[int], frozenset({1})),
    (deque[int], deque([1], maxlen=3)),
    (Sequence[Decimal], [Decimal(1)]),
    (MutableSequence[Line], [Line("a")]),
    (Iterable[Line], [Line("a")]),
    (Point, Point(1, DAY)),
    (Address, {"city": "Ulm", "since": DAY}),
    (dict[int, Decimal], {1: Decimal(1)}),
    (dict[float, int], {1.5: 1, float("inf"): 2}),
    (dict[bool, int], {True: 1, False: 0}),
    (dict[str | None, int], {"a": 1}),
    (dict[None, int], {None: 1}),
    (dict[int, int], {"01": 1}),
    (dict[int | str, int], {"1": 1}),
    (dict[int | None, int], {None: 1, 2: 3}),
    (dict[dt.date, list[Line]], {DAY: [Line("a")]}),
    (dict[Decimal, int], {Decimal("1.10"): 1}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Level, int], {Level.HIGH: 1}),
    (dict[Word, int], {Word.YES: 1}),
    (dict[Literal[1, "a"], int], {1: 1, "a": 2}),
    (dict, {"a": 1}),
    (Mapping[uuid.UUID, int], {uuid.UUID(int=5): 1}),
    (Mapping[str, int], MappingProxyType({"a": 1})),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (defaultdict[str, int], defaultdict(int, a=1)),
    (Counter[str], Counter("aab")),
    (Model, Model(id=1)),
    (list[Model], [Model(id=1)]),
    (Numbers, Numbers([1])),
    (Line, Line("a")),
    (Part, LargePart("a", Decimal(1), 2)),
    (list[Part], [LargePart("a", Decimal(1), 2), Part("b", Decimal(2))]),
    (Box[Decimal], Box(Decimal(1))),
    (Box[list[Line]], Box([Line("a")])),
    (Box, Box(1)),
    (LineBox, LineBox(Line("a"), [Line("b")])),
    (Two[Line], Two(Decimal(1), Line("a"))),
    (SmallLineBox, SmallLineBox(Line("a"))),
    (Number, Decimal(1)),
    (Strange, Strange(size=2)),
]
NOT_KEPT: list[tuple[Any, Any]] = [
    (Any, (1, 2)),
    (Any, Decimal(1)),
    (Any, {1: 2}),
    (list, [Decimal(1)]),
    (Sequence[int], (1, 2)),
    (str | Decimal, Decimal(1)),
    (int, Decimal(1)),
    (dt.date, NOON),
    (dt.datetime, DAY),
    (dict[str | int, int], {1: 1}),
    (dict[int, int], {"01": 1, 2: 2, None: 3}),
    (dict[bool, int], {"yes": 1, None: 2}),
    (dict[Level, int], {4: 1, Level.HIGH: 2}),
    (Literal["fast"], Decimal(1)),
    (dict[Literal[1], int], {2: 1}),
    (Colour, Decimal(1)),
    (set[int], {1: 2}.keys() | {(3, 4)}),
    (Untyped, Untyped(Decimal(1))),
    (Nowhere, {"city": Decimal(1)}),
    (tuple[int, int], (1, Decimal(2))),
    (Line | Part, Model(id=1)),
    (Model, {"id": "x"}),
    (Box, Box(Decimal(1))),
    (Box[Line], Box(Part("a", Decimal(1)))),
    (Text, Fraction(1)),
]


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=repr)
def test_a_field_comes_back_as_its_annotation_says(annotation: Any, value: Any) -> None:
    model = holder(annotation)
    serializer = DataclassSerializer(model)

    again = serializer.from_dict(stored(serializer, model(value)))

    assert type(again) is model
    assert is_equal(again.value, value)


@pytest.mark.parametrize(("annotation", "value"), NOT_KEPT, ids=repr)
def test_what_an_annotation_does_not_say_is_not_stored(annotation: Any, value: Any) -> None:
    model = holder(annotation)

    with pytest.raises((IdempotencyResultNotKeptError, TypeError)):
        DataclassSerializer(model).to_dict(model(value))


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (Decimal, "many"),
        (Decimal, 5),
        (dt.date, "today"),
        (dt.datetime, 5),
        (dt.timedelta, "long"),
        (uuid.UUID, 5),
        (bytes, "%"),
        (bytes, 5),
        (Colour, "green"),
        (Bits, "one"),
        (Literal["fast"], "slow"),
        (set[list], [[1]]),  # type: ignore[type-arg]
        (Point, [1, 2, 3]),
        (Line, [1]),
        (list[int], {"a": 1}),
        (dict[str, int], [1]),
        (Address, [1]),
        (str, [1]),
    ],
    ids=repr,
)
def test_data_that_does_not_fit_its_annotation_comes_back_as_it_is(annotation: Any, data: Any) -> None:
    assert DataclassSerializer(holder(annotation)).from_dict({"value": data}).value == data


def test_a_type_with_a_name_of_its_own_is_the_type_that_it_names() -> None:
    """As Python 3.12 has it: `type Price = Decimal`."""
    model = holder(TypeAliasType("Price", Decimal))

    assert DataclassSerializer(model).from_dict({"value": "1.10"}) == model(Decimal("1.10"))


def test_a_number_is_not_taken_for_a_boolean() -> None:
    model = holder(Literal[True, 1])

    assert DataclassSerializer(model).from_dict({"value": 1}).value is not True


def test_a_set_is_stored_in_one_order() -> None:
    model = holder(set)

    assert stored(DataclassSerializer(model), model({"b", "c", "a", "d"})) == {"value": ["a", "b", "c", "d"]}


def test_two_keys_with_the_same_text_are_refused_below_a_dataclass() -> None:
    with pytest.raises(IdempotencyResultNotKeptError, match="^Two keys of a dict are the same text in JSON"):
        DataclassSerializer(holder(dict)).to_dict(holder(dict)({1: "a", "1": "b"}))


@pytest.mark.parametrize("value", [object(), 1j, Fraction(1), UserDict, Line, {(1, 2): 3}, {Line: 1}], ids=repr)
def test_a_value_without_a_form_as_json_is_a_type_error_as_without_a_serializer(value: Any) -> None:
    with pytest.raises(TypeError):
        DataclassSerializer(holder(Any)).to_dict(holder(Any)(value))


class OldModel:
    """Has the shape of a model of pydantic 1."""

    def json(self) -> str:
        return "{}"

    def dict(self) -> Any:
        return {"old": True}


def test_a_model_of_pydantic_1_in_a_field_is_not_kept_as_it_would_come_back_as_a_dict() -> None:
    model = holder(Any)

    with pytest.raises(IdempotencyResultNotKeptError, match="other values in: value$"):
        DataclassSerializer(model).to_dict(model(OldModel()))


# How a dataclass is made


@dataclass
class Salted:
    name: str
    salt: InitVar[str]
    salted: str = field(init=False)
    size: int = 0
    tags: list[str] = field(default_factory=list)

    def __post_init__(self, salt: str) -> None:
        self.salted = self.name + salt


def test_a_dataclass_that_its_constructor_cannot_make_again_gets_its_fields_all_the_same() -> None:
    serializer = DataclassSerializer(Salted)

    assert serializer.from_dict(stored(serializer, Salted("a", "b", 2))) == Salted("a", "b", 2)
    assert serializer.from_dict({"name": "a", "salted": "ab"}) == Salted("a", "b")


@dataclass
class Prefixed:
    name: str
    seen: Sequence[int]

    def __post_init__(self) -> None:
        self.name = f"new {self.name}"
        self.seen = tuple(self.seen)
        self.cache: list[int] = []


def test_a_field_gets_its_stored_value_whatever_the_constructor_makes_of_it() -> None:
    serializer = DataclassSerializer(Prefixed)

    again = serializer.from_dict(stored(serializer, Prefixed("a", (1,))))

    assert again == Prefixed("a", (1,))
    assert again.cache == []


@dataclass
class Parsing:
    ratio: Any

    def __post_init__(self) -> None:
        self.ratio = Fraction(self.ratio)


def test_a_value_that_the_constructor_makes_and_json_does_not_have_gives_way_to_the_stored_one() -> None:
    assert DataclassSerializer(Parsing).from_dict({"ratio": "1/2"}).ratio == "1/2"


@dataclass
class Refusing:
    day: dt.date
    is_open: bool = True

    def __post_init__(self) -> None:
        if not self.is_open:
            raise ValueError("closed")


def test_a_value_that_the_constructor_refuses_by_now_is_replayed() -> None:
    """As one that may not be in the past."""
    result = Refusing(DAY)
    result.is_open = False
    serializer = DataclassSerializer(Refusing)

    assert serializer.from_dict(stored(serializer, result)) == result


@dataclass
class Dated:
    date: dt.date | None = None
    Decimal: Decimal | None = None


def test_a_field_may_have_the_name_of_its_type() -> None:
    serializer = DataclassSerializer(Dated)
    result = Dated(DAY, Decimal(1))

    assert serializer.from_dict(stored(serializer, result)) == result


@dataclass
class Base:
    a: int


@dataclass
class First(Base):
    b: int


@dataclass
class Second(Base):
    b: int


def test_a_result_of_one_of_two_subclasses_with_the_same_fields_is_not_kept() -> None:
    with pytest.raises(IdempotencyResultNotKeptError, match="First would come back as Base$"):
        DataclassSerializer(Base).to_dict(First(1, 2))
    assert DataclassSerializer(Base).from_dict({"a": 1, "b": 2}) == Base(1)


def test_a_subclass_that_was_defined_anew_counts_once() -> None:
    class Root:
        pass

    def define() -> Any:
        class Leaf(Root):
            pass

        return Leaf

    first, second = define(), define()

    assert all_subclasses(Root) == [second]
    assert first is not second


def test_a_generic_dataclass_is_a_return_type() -> None:
    serializer = DataclassSerializer.instantiate(Box[Decimal])

    assert serializer.from_dict(stored(serializer, Box(Decimal(1)))) == Box(Decimal(1))
    with pytest.raises(IdempotencyResultNotKeptError, match=r"cannot be read as Box: Box needs the field item$"):
        serializer.from_dict({})


def test_what_fails_in_a_field_while_a_record_is_read_is_an_error_that_names_its_type() -> None:
    class Failing(BaseModel):
        id: Annotated[int, AfterValidator(lambda value: {}[value])]

    with pytest.raises(IdempotencyResultNotKeptError, match="^the stored result cannot be read as .*Failing: KeyError$"):
        DataclassSerializer(holder(Failing)).from_dict({"value": {"id": 1}})
    with pytest.raises(IdempotencyResultNotKeptError, match="^the stored result cannot be read as Broken: RuntimeError$"):
        DataclassSerializer(Broken).from_dict({"value": 1})


@dataclass
class Broken:
    value: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        raise RuntimeError


# Models: records of earlier versions, by field name, and what validation makes of them


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")
    note: str | None = Field(None, validation_alias="n", serialization_alias="N")


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: int
    inner: Optional[Forbidding] = None  # noqa: UP045 - pydantic 2.6 reads it
    body: Json[Any] = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> int:
        return self.net * 2


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    due: dt.date
    raw: bytes = b""


@needs_names
@pytest.mark.parametrize("data", [{"order_id": 1, "note": "n"}, {"orderId": 1, "n": "n"}, {"orderId": 1, "note": "n"}], ids=repr)
def test_a_record_is_read_by_names_and_aliases(data: Any) -> None:
    assert PydanticSerializer(Aliased).from_dict(data) == Aliased(orderId=1, n="n")


@pytest.mark.parametrize(
    ("model", "data", "result"),
    [
        (Forbidding, {"net": 1, "gross": 2, "inner": None, "body": None}, Forbidding(net=1)),
        (
            Forbidding,
            {"net": 1, "gross": 2, "inner": {"net": 2, "gross": 4, "inner": None, "body": [1]}, "body": {"a": 1}},
            Forbidding(net=1, inner=Forbidding(net=2, body="[1]"), body='{"a": 1}'),
        ),
        (Forbidding, {"net": 1, "body": "text"}, Forbidding(net=1, body='"text"')),
        (Strict, {"due": "2026-11-21", "raw": "a"}, Strict(due=DAY, raw=b"a")),
        (Numbers, [1, 2], Numbers([1, 2])),
    ],
    ids=["computed", "computed and Json inside", "Json of a text", "strict", "root"],
)
def test_a_record_of_a_dump_by_default_is_read(model: Any, data: Any, result: Any) -> None:
    assert PydanticSerializer(model).from_dict(data) == result


def test_a_text_that_json_of_others_does_not_have_is_replayed() -> None:
    class Free(BaseModel):
        text: Any

    serializer = PydanticSerializer(Free)

    assert serializer.from_dict(stored(serializer, Free(text="\ud800"))) == Free(text="\ud800")


class OnlyOfPython(str):
    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.json_or_python_schema(core_schema.none_schema(), core_schema.str_schema())


def test_a_model_that_only_python_data_fits_is_read_as_before() -> None:
    class Unlike(BaseModel):
        name: OnlyOfPython

    assert PydanticSerializer(Unlike).from_dict({"name": "a"}) == Unlike(name="a")


def test_a_record_that_fits_no_more_is_an_error_that_names_fields_and_no_keys_of_the_data() -> None:
    class Narrow(BaseModel):
        by_key: dict[str, int]
        id: int

        @model_validator(mode="after")
        def _checked(self) -> Any:
            raise ValueError("hidden")

    with pytest.raises(IdempotencyResultNotKeptError) as raised:
        PydanticSerializer(Narrow).from_dict({"by_key": {"hidden": "secret"}, "other": 1})
    assert str(raised.value).endswith("Narrow: by_key: int_parsing, id: missing")
    with pytest.raises(IdempotencyResultNotKeptError) as raised:
        PydanticSerializer(Narrow).from_dict({"by_key": {}, "id": 1})
    assert str(raised.value).endswith("Narrow: value_error")


def test_an_error_of_a_validator_is_the_cause_of_the_serializers() -> None:
    class Failing(BaseModel):
        id: Annotated[int, AfterValidator(lambda value: {}[value])]

    with pytest.raises(IdempotencyResultNotKeptError, match="Failing: KeyError$") as raised:
        PydanticSerializer(Failing).from_dict({"id": 1})

    assert isinstance(raised.value.__cause__, KeyError)


class Animal(BaseModel):
    name: str


class Cat(Animal):
    kind: Literal["cat"] = "cat"


class Dog(Animal):
    kind: Literal["dog"] = "dog"


class Puppy(Dog):
    weeks: int = 1


class Fox(BaseModel):
    a: int


class RedFox(Fox):
    b: int


class GreyFox(Fox):
    b: int


@pytest.mark.parametrize("result", [Animal(name="a"), Cat(name="a"), Dog(name="a"), Puppy(name="a")], ids=repr)
def test_a_subclass_is_replayed_as_one_if_its_fields_show_which(result: Animal) -> None:
    serializer = PydanticSerializer(Animal)

    assert serializer.from_dict(stored(serializer, result)) == result


def test_a_result_of_one_of_two_model_classes_with_the_same_fields_is_not_kept() -> None:
    with pytest.raises(IdempotencyResultNotKeptError, match="RedFox would come back as Fox$"):
        PydanticSerializer(Fox).to_dict(RedFox(a=1, b=2))
    assert PydanticSerializer(Fox).from_dict({"a": 1, "b": 2}) == Fox(a=1)


class OnlyOne(BaseModel):
    only_field_with_this_name: int


def test_the_base_class_of_all_models_says_nothing_of_a_result() -> None:
    """Another process may have imported other models."""
    with pytest.raises(IdempotencyResultNotKeptError, match="^a replay could not return an equal result: OnlyOne"):
        PydanticSerializer(BaseModel).to_dict(OnlyOne(only_field_with_this_name=1))


class Free(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Bound(Free):
    b: int


def test_a_model_that_takes_any_field_is_not_taken_for_its_subclass() -> None:
    serializer = PydanticSerializer(Free)

    assert serializer.from_dict(stored(serializer, Free(a=1, b=2))) == Free(a=1, b=2)


@needs_names
def test_a_subclass_is_found_by_its_aliases() -> None:
    class Shouting(BaseModel):
        model_config = ConfigDict(alias_generator=str.upper, serialize_by_alias=True)
        a: int

    class Louder(Shouting):
        b: int

    serializer = PydanticSerializer(Shouting)
    data = stored(serializer, Louder(A=1, B=2))

    assert data == {"A": 1, "B": 2}
    assert serializer.from_dict(data) == Louder(A=1, B=2)


def test_a_json_field_is_stored_as_text_where_its_value_could_be_read_as_json() -> None:
    class Body(BaseModel):
        body: Json[Any]

    serializer = PydanticSerializer(Body)
    data = stored(serializer, Body(body='"1"'))

    assert data == {"body": '"1"'}
    assert serializer.from_dict(data) == Body(body='"1"')


@needs_names
def test_a_model_that_is_dumped_by_names_which_it_does_not_accept_is_stored_by_field_name() -> None:
    class Renaming(BaseModel):
        model_config = ConfigDict(serialize_by_alias=True)
        id: int = Field(validation_alias="in", serialization_alias="out")

    serializer = PydanticSerializer(Renaming)
    data = stored(serializer, Renaming.model_validate({"in": 1}))

    assert data == {"id": 1}
    assert serializer.from_dict(data) == Renaming.model_validate({"in": 1})


def test_a_model_that_was_never_validated_is_stored_without_a_warning_if_it_is_read_back_equal() -> None:
    class Priced(BaseModel):
        price: Decimal

    serializer = PydanticSerializer(Priced)
    result = Priced.model_construct(price=1)

    assert serializer.from_dict(stored(serializer, result)) == result


def test_a_result_that_is_not_a_model_is_not_kept() -> None:
    with pytest.raises(AttributeError):
        PydanticSerializer(Animal).to_dict({"name": "a"})  # type: ignore[arg-type]


# What counts as equal


class Bare:
    def __init__(self, value: Any) -> None:
        self.value = value


class Incomparable:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


@dataclass(eq=False)
class Unequal:
    value: Any


@pytest.mark.parametrize(
    ("first", "again", "expected"),
    [
        (1, 1, True),
        (1, 2, False),
        (1, "1", False),
        (NAN, float("nan"), True),
        (NAN, 1.0, False),
        (Decimal("NaN"), Decimal("NaN"), True),
        (Decimal("sNaN"), Decimal("sNaN"), True),
        (Decimal("sNaN"), Decimal("NaN"), False),
        ([NAN], [float("nan")], True),
        ([NAN], [NAN, NAN], False),
        ((1, [NAN]), (1, [float("nan")]), True),
        ((1, NAN), [1, float("nan")], False),
        ({"a": NAN}, {"a": float("nan")}, True),
        ({"a": NAN}, {"b": NAN}, False),
        ({"a": NAN, "b": 1}, {"a": float("nan"), "b": 2}, False),
        (Box(NAN), Box(float("nan")), True),
        (Box([NAN, 1]), Box([float("nan"), 2]), False),
        (Unequal(1), Unequal(1), True),
        (Unequal(1), Unequal(2), False),
        (Bare([NAN]), Bare([float("nan")]), True),
        (Bare(1), Bare(2), False),
        (Incomparable(1), Incomparable(1), False),
        (object(), object(), False),
        ({1}, {2}, False),
        (Model(id=1), Model(id=1), True),
        (Model(id=1), Model(id=2), False),
    ],
    ids=repr,
)
def test_equal_is_what_python_says_and_nan_equals_nan(first: Any, again: Any, expected: bool) -> None:
    assert is_equal(first, again) is expected


def test_the_first_form_that_is_read_back_equal_is_stored() -> None:
    assert first_equal(2, [lambda: 1 / 0, lambda: None, lambda: 1, lambda: 2, lambda: 3], lambda data: data) == 2


def test_the_error_of_forms_that_cannot_be_made_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        first_equal(2, [lambda: 1 / 0], lambda data: data)


# Results without a serializer


class Stubborn(BaseModel):
    by_key: dict[str, int]

    def model_dump_json(self, **options: Any) -> str:
        raise NotImplementedError


def test_a_model_without_json_of_its_own_is_stored_by_its_dump() -> None:
    assert result_json(Stubborn(by_key={"a": 1})) == '{"by_key": {"a": 1}}'


def test_a_result_that_the_encoder_reaches_the_end_of_and_a_look_does_not_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(value: Any) -> str:
        raise RecursionError

    monkeypatch.setattr("idempotency._json._changed", too_deep)
    encoder = ResultEncoder()

    assert encoder.text((1,)) == "[1]"
    assert encoder.change == ""
