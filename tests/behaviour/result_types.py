"""Some fifty types of results: what the matrix of results and serializers is made of.

Annotations stay objects here (no `from __future__ import annotations`), so that each case can name its own.
"""

import datetime as dt
import enum
import uuid
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import pydantic
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    RootModel,
    SecretStr,
    SerializeAsAny,
    computed_field,
    field_serializer,
    model_validator,
)

try:
    import attrs
except ImportError:  # it is not among the lowest versions of the dependencies
    attrs = None  # type: ignore[assignment]

T = TypeVar("T")
NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NAN = float("nan")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind


class Point(NamedTuple):
    x: int
    at: dt.date


class Address(TypedDict):
    city: str
    since: dt.date


# Models of pydantic


class Plain(BaseModel):
    id: int
    due: dt.date
    price: Decimal = Decimal("1.50")


class Larger(Plain):
    note: str = ""


class Same(Plain):
    pass


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")
    note: str | None = Field(None, alias="n")


class Chosen(BaseModel):
    id: int = Field(validation_alias=AliasChoices("ID", AliasPath("ids", 0)), serialization_alias="Id")


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=lambda name: name.upper(), extra="forbid")
    id: int


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> int:
        return self.net * 2


class Excluded(BaseModel):
    id: int
    internal: int = Field(exclude=True)


class ExcludedByDefault(BaseModel):
    id: int
    internal: int = Field(5, exclude=True)


class Parsed(BaseModel):
    body: Json[Any]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    due: dt.date
    id: uuid.UUID
    price: Decimal
    colour: Colour
    raw: bytes
    pair: tuple[int, int]


class Secret(BaseModel):
    token: SecretStr


class Box(BaseModel, Generic[T]):
    item: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    breed: str = ""


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Numbers(RootModel[list[int]]):
    pass


class Nothing(RootModel[int | None]):
    pass


class Holder(BaseModel):
    item: Plain


class AnyHolder(BaseModel):
    item: SerializeAsAny[Plain]


class Checked(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _in_order(self) -> "Checked":
        if self.low > self.high:
            raise ValueError("low > high")
        return self


class Growing(BaseModel):
    name: str

    @model_validator(mode="before")
    @classmethod
    def _prefixed(cls, data: Any) -> Any:
        return {"name": "new " + data["name"]}


class Shown(BaseModel):
    at: dt.datetime

    @field_serializer("at")
    def _year(self, at: dt.datetime) -> int:
        return at.year


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int


class Private(BaseModel):
    id: int
    _seen: int = PrivateAttr(0)


def with_private(seen: int) -> Private:
    result = Private(id=1)
    result._seen = seen
    return result


class Temperature:
    """Somebody's own type, without an `==`."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class Own(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    now: Annotated[Temperature, PlainValidator(Temperature), PlainSerializer(lambda now: now.degrees)]


class Many(BaseModel):
    raw: bytes
    ratio: float
    seen: set[int]
    pair: tuple[int, str]
    path: PurePosixPath
    lasting: dt.timedelta
    by_id: dict[int, str]
    either: int | str


class Mixed(BaseModel):
    by_key: dict[int | str, str]


@pydantic.dataclasses.dataclass
class Validated:
    due: dt.date
    id: int


# Dataclasses


@dataclass
class Line:
    sku: str
    count: int = 1


@dataclass
class Order:
    id: int
    lines: list[Line]
    best: Line | None = None


@dataclass
class RushOrder(Order):
    hours: int = 24


@dataclass
class TwinOrder(Order):
    pass


@dataclass
class Salted:
    name: str
    salt: InitVar[str]
    salted: str = field(init=False)

    def __post_init__(self, salt: str) -> None:
        self.salted = self.name + salt


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    id: int
    when: dt.datetime


@dataclass
class Crate(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)


@dataclass(eq=False)
class Unequal:
    id: int


@dataclass
class Rich:
    price: Decimal
    at: dt.datetime
    day: dt.date
    id: uuid.UUID
    colour: Colour
    level: Level
    raw: bytes
    lasting: dt.timedelta
    where: PurePosixPath
    seen: set[int]
    frozen: frozenset[int]
    last: deque[int]
    point: Point
    address: Address
    pairs: tuple[tuple[int, Decimal], ...]
    by_id: dict[int, Line]
    by_day: Mapping[dt.date, list[Line]]
    either: Line | Plain | None
    model: Plain
    mode: Literal["fast", 2]


@dataclass
class Loose:
    anything: Any


@dataclass
class Listed:
    items: Sequence[int]


def rich() -> Rich:
    return Rich(
        price=Decimal("1.10"),
        at=NOON,
        day=NOON.date(),
        id=uuid.UUID(int=1),
        colour=Colour.RED,
        level=Level.HIGH,
        raw=b"\xff",
        lasting=dt.timedelta(seconds=1.5),
        where=PurePosixPath("/a"),
        seen={1, 2},
        frozen=frozenset({3}),
        last=deque([4]),
        point=Point(5, NOON.date()),
        address={"city": "Ulm", "since": NOON.date()},
        pairs=((6, Decimal("0.1")),),
        by_id={7: Line("a")},
        by_day={NOON.date(): [Line("b")]},
        either=Line("c"),
        model=Plain(id=8, due=NOON.date()),
        mode=2,
    )


#: What is returned, as source text; the annotation of the function; and how the result is made.
CASES: list[tuple[str, Any, Callable[[], Any]]] = [
    ('{"id": 1, "tags": ["a", None, 1.5, True]}', dict, lambda: {"id": 1, "tags": ["a", None, 1.5, True]}),
    ("None", None, lambda: None),
    ('float("nan")', float, lambda: NAN),
    ("(1, 2)", tuple, lambda: (1, 2)),
    ('{"pair": (1, 2)}', dict, lambda: {"pair": (1, 2)}),
    ('{1: "a"}', dict, lambda: {1: "a"}),
    ('{1: "a", "1": "b"}', dict, lambda: {1: "a", "1": "b"}),
    ('[{None: "a", "null": "b"}]', list, lambda: [{None: "a", "null": "b"}]),
    ("OrderedDict(b=1, a=2)", OrderedDict, lambda: OrderedDict(b=1, a=2)),
    ('Decimal("1.10")', Decimal, lambda: Decimal("1.10")),
    ("Colour.RED (Enum)", Colour, lambda: Colour.RED),
    ("Level.HIGH (IntEnum)", Level, lambda: Level.HIGH),
    ("Word.YES (StrEnum)", Word, lambda: Word.YES),
    ("datetime", dt.datetime, lambda: NOON),
    ("UUID", uuid.UUID, lambda: uuid.UUID(int=1)),
    ("bytes", bytes, lambda: b"a"),
    ("set", set, lambda: {1}),
    ("namedtuple", Pair, lambda: Pair(1, 2)),
    ("NamedTuple with a date", Point, lambda: Point(1, NOON.date())),
    ("TypedDict with text", Address, lambda: {"city": "Ulm", "since": "2026-11-21"}),
    ("complex", complex, lambda: 1j),
    ("pydantic: dates, decimals", Plain, lambda: Plain(id=1, due=NOON.date())),
    ("pydantic: a subclass with more fields", Plain, lambda: Larger(id=1, due=NOON.date(), note="n")),
    ("pydantic: a subclass with the same fields", Plain, lambda: Same(id=1, due=NOON.date())),
    ("pydantic: a subclass in a field", Holder, lambda: Holder(item=Larger(id=1, due=NOON.date(), note="n"))),
    ("pydantic: `SerializeAsAny`", AnyHolder, lambda: AnyHolder(item=Larger(id=1, due=NOON.date(), note="n"))),
    ("pydantic: `alias`, required and optional", Aliased, lambda: Aliased(orderId=1, n="n")),
    ("pydantic: `AliasChoices`, `serialization_alias`", Chosen, lambda: Chosen(ID=1)),
    ('pydantic: `alias_generator`, `extra="forbid"`', Generated, lambda: Generated(ID=1)),
    ("pydantic: aliases that are other fields' names", Swapped, lambda: Swapped(a=1, b=2)),
    ('pydantic: computed field, `extra="forbid"`', Computed, lambda: Computed(net=1)),
    ("pydantic: excluded field", Excluded, lambda: Excluded(id=1, internal=2)),
    ("pydantic: excluded field with its default", ExcludedByDefault, lambda: ExcludedByDefault(id=1)),
    ("pydantic: excluded field with another value", ExcludedByDefault, lambda: ExcludedByDefault(id=1, internal=2)),
    ("pydantic: `Json`", Parsed, lambda: Parsed(body='{"a": 1}')),
    (
        "pydantic: `strict=True`",
        Strict,
        lambda: Strict(due=NOON.date(), id=uuid.UUID(int=1), price=Decimal("1.10"), colour=Colour.RED, raw=b"a", pair=(1, 2)),
    ),
    ("pydantic: `SecretStr`", Secret, lambda: Secret(token=SecretStr("hidden"))),
    ("pydantic: generic", Box[Plain], lambda: Box[Plain](item=Plain(id=1, due=NOON.date()))),
    ("pydantic: discriminated union", Owner, lambda: Owner(pet=Dog(breed="pug"))),
    ("pydantic: `RootModel`", Numbers, lambda: Numbers([1, 2])),
    ("pydantic: `RootModel` of None", Nothing, lambda: Nothing(None)),
    ('pydantic: `model_validator(mode="after")`', Checked, lambda: Checked(low=1, high=2)),
    ("pydantic: never validated, and invalid", Checked, lambda: Checked.model_construct(low=2, high=1)),
    ("pydantic: a validator that changes its own output", Growing, lambda: Growing(name="a")),
    ("pydantic: `field_serializer` that loses a part", Shown, lambda: Shown(at=NOON)),
    ('pydantic: `extra="allow"`', Extra, lambda: Extra(id=1, more=[1])),
    ("pydantic: private attribute as in a new model", Private, lambda: with_private(0)),
    ("pydantic: private attribute with another value", Private, lambda: with_private(1)),
    ("pydantic: a type of one's own", Own, lambda: Own(now=20.5)),
    (
        "pydantic: bytes, NaN, set, tuple, path, timedelta, int keys",
        Many,
        lambda: Many(
            raw=b"a", ratio=NAN, seen={1}, pair=(1, "a"), path="/a", lasting=dt.timedelta(seconds=1.5), by_id={1: "a"}, either="1"
        ),
    ),
    ('pydantic: `{1: "a", "1": "b"}`', Mixed, lambda: Mixed(by_key={1: "a", "1": "b"})),
    ("dataclass of pydantic", Validated, lambda: Validated(due=NOON.date(), id=1)),
    ("dataclass with dataclasses inside", Order, lambda: Order(1, [Line("a")], Line("b", 2))),
    ("dataclass: a subclass with more fields", Order, lambda: RushOrder(1, [Line("a")], hours=2)),
    ("dataclass: a subclass with the same fields", Order, lambda: TwinOrder(1, [])),
    ("dataclass: a subclass in a field", Crate[Order], lambda: Crate(RushOrder(1, []), [Order(2, [])])),
    ("dataclass: `InitVar`, `init=False`", Salted, lambda: Salted("a", "b")),
    ("dataclass: frozen, slots, kw_only", Frozen, lambda: Frozen(id=1, when=NOON)),
    ("dataclass: generic", Crate[Decimal], lambda: Crate(Decimal("1.10"), [Decimal(2)])),
    ("dataclass: `eq=False`", Unequal, lambda: Unequal(1)),
    ("dataclass: every type that its fields can declare", Rich, rich),
    ("dataclass: a tuple in `Any`", Loose, lambda: Loose((1, 2))),
    ("dataclass: a list in `Any`", Loose, lambda: Loose([1, {"a": None}])),
    ("dataclass: a tuple in `Sequence[int]`", Listed, lambda: Listed((1, 2))),
    ('dataclass: `{1: "a", "1": "b"}`', Loose, lambda: Loose({1: "a", "1": "b"})),
]

if attrs is not None:
    Parcel = attrs.make_class("Parcel", ["weight"])
    CASES.insert(21, ("a class of attrs", Parcel, lambda: Parcel(1)))
