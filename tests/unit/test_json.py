"""Canonical JSON: byte for byte what Powertools hashes and stores."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import pathlib
import random
import uuid
from collections import Counter, OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from typing import Any

import pytest
from aws_lambda_powertools.shared.json_encoder import Encoder
from aws_lambda_powertools.utilities.idempotency.persistence.base import _IdempotencyKeyEncoder
from pydantic import BaseModel

from idempotency._json import _plain_in_key, canonical_json, encoder, result_json


class Colour(enum.Enum):
    RED = "red"


class Nested(enum.Enum):
    POINT = (1, 2)


class Text(enum.StrEnum):
    A = "a"


class Mixed(str, enum.Enum):  # noqa: UP042 - the old spelling, too
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Ratio(float, enum.Enum):
    HALF = 0.5


class Price(Decimal, enum.Enum):
    LOW = "1.50"


class Model(BaseModel):
    id: int
    at: dt.datetime = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    price: Decimal = Decimal("1.50")


@dataclasses.dataclass
class Order:
    id: int
    lines: list[Any] = dataclasses.field(default_factory=list)
    price: Decimal = Decimal("1.50")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    inner: Order


class OldModel:
    """Has the shape of a model of pydantic 1."""

    def json(self) -> str:
        return "{}"

    def dict(self) -> Any:
        return {"old": True}


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind, too


def theirs_in_key(value: object) -> str:
    return json.dumps(value, cls=_IdempotencyKeyEncoder, sort_keys=True)


def theirs_as_result(value: object) -> str:
    return json.dumps(value, cls=Encoder, sort_keys=True)


PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -0.0,
    1e300,
    1.0,
    10**30,
    math.nan,
    math.inf,
    -math.inf,
    "",
    'ünï\u2028 \ud800 \U0001f600 \x00 / " \\',
    [],
    {},
    (),
    (1, (2, 3)),
    {"b": 1, "a": [{"d": 1, "c": None}]},
    {1: "a", 2: "b"},
    {True: 1},
    {False: 1, True: 2},
    {None: 1},
    {1.5: 1},
    {math.inf: 1},
    OrderedDict([("z", 1), ("a", 2)]),
    defaultdict(int, {"a": 1}),
    Counter("aab"),
    Pair(1, 2),
    Text.A,
    Mixed.A,
    Number.ONE,
    Ratio.HALF,
    Bits.ONE | Bits.TWO,
    {Text.A: 1},
    {Number.ONE: 1},
]
RICH: list[Any] = [
    Decimal("1.50"),
    Decimal("1E+3"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("-0"),
    Price.LOW,
    Model(id=1),
    [Model(id=1), {"m": Model(id=2)}],
    Order(1),
    Order(1, [Order(2), (Order(3),), {"o": Order(4)}]),
    Frozen(Order(1)),
]
IN_KEYS_ONLY: list[Any] = [
    Colour.RED,
    Nested.POINT,
    dt.datetime(2026, 11, 21, 12, 30, 15, 250),
    dt.datetime(2026, 11, 21, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    dt.date(2026, 11, 21),
    dt.time(1, 2, 3),
    uuid.UUID(int=5),
    pathlib.PurePosixPath("/a/b"),
    pathlib.PureWindowsPath("c:\\a"),
    pathlib.Path("a"),
    Order(1, [uuid.UUID(int=5), Colour.RED]),
    {"at": [dt.date(2026, 11, 21)]},
]
REFUSED: list[Any] = [
    b"bytes",
    bytearray(b"x"),
    {1, 2},
    frozenset({1}),
    1j,
    object(),
    dt.timedelta(1),
    range(3),
    iter([]),
    Order,
    Model,
    Colour,
    Decimal,
    {"a": object()},
    {("tuple", "key"): 1},
    {b"bytes": 1},
    {"text": 1, 2: "number"},
    Order(1, [b"x"]),
]


@pytest.mark.parametrize("value", [*PLAIN, *RICH, *IN_KEYS_ONLY], ids=repr)
def test_a_key_is_hashed_from_the_very_text_of_powertools(value: object) -> None:
    assert canonical_json(value) == theirs_in_key(value)


@pytest.mark.parametrize("value", [*PLAIN, *RICH], ids=repr)
def test_a_result_is_stored_as_the_very_text_of_powertools(value: object) -> None:
    assert result_json(value) == theirs_as_result(value)


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_what_powertools_cannot_hash_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        theirs_in_key(value)
    with pytest.raises(TypeError):
        canonical_json(value)


@pytest.mark.parametrize("value", [b"x", 1j, {1}, object()], ids=lambda value: type(value).__name__)
def test_a_refusal_names_the_type_and_never_the_value(value: object) -> None:
    with pytest.raises(TypeError, match=f"^Object of type {type(value).__name__} is not JSON serializable$"):
        canonical_json({"a": value})


@pytest.mark.parametrize("value", IN_KEYS_ONLY, ids=repr)
def test_a_result_that_a_replay_could_not_restore_is_no_json(value: object) -> None:
    with pytest.raises(TypeError):
        result_json(value)


def test_a_result_with_keys_of_several_types_is_json_all_the_same() -> None:
    assert result_json({"b": 1, 2: Decimal("1.5"), "a": 0}) == '{"b": 1, "2": "1.5", "a": 0}'


def test_a_model_of_pydantic_1_is_hashed_and_stored_as_its_dict() -> None:
    assert canonical_json(OldModel()) == '{"old": true}'
    assert result_json([OldModel()]) == '[{"old": true}]'


@pytest.mark.parametrize("value", [OldModel, Model, Order], ids=lambda value: value.__name__)
def test_a_class_is_no_json_although_its_objects_are(value: type) -> None:
    with pytest.raises(TypeError, match="^Object of type .* is not JSON serializable$"):
        result_json(value)


@pytest.mark.parametrize("encode", [canonical_json, result_json])
def test_circular_data_is_an_error_and_no_endless_loop(encode: Any) -> None:
    circular: list[Any] = []
    circular.append(circular)

    with pytest.raises(ValueError, match="Circular reference"):
        encode(circular)


def test_data_nested_beyond_all_measure_is_an_error() -> None:
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]

    with pytest.raises(RecursionError):
        result_json(deep)
    while deep:  # taken apart by hand: some interpreters recurse when they free it
        deep = deep[0]


def random_value(rng: random.Random, depth: int, *, exotic: bool) -> Any:
    leaves: list[Any] = [
        None,
        rng.random() < 0.5,
        rng.randrange(-(10**20), 10**20),
        rng.uniform(-1e6, 1e6),
        math.nan,
        -math.inf,
        "".join(chr(rng.choice([rng.randrange(1, 128), rng.randrange(0x80, 0xD7FF), 0x1F600])) for _ in range(rng.randrange(6))),
        Decimal(rng.randrange(10**6)) / 100,
        Text.A,
        Number.ONE,
    ]
    if exotic:
        leaves += [
            Colour.RED,
            uuid.UUID(int=rng.getrandbits(128)),
            dt.datetime.fromtimestamp(rng.randrange(2**31), tz=dt.UTC),
            dt.date.fromordinal(rng.randrange(1, 700_000)),
            dt.time(rng.randrange(24)),
            pathlib.PurePosixPath("/", str(rng.random())),
        ]
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(leaves)
    size = rng.randrange(4)
    children = [random_value(rng, depth - 1, exotic=exotic) for _ in range(size)]
    kind = rng.randrange(7)
    if kind == 0:
        return children
    if kind == 1:
        return tuple(children)
    if kind == 2:
        return Order(rng.randrange(5), children)
    if kind == 3:
        return Model(id=rng.randrange(5), price=Decimal(rng.randrange(100)))
    if kind == 4:
        return {rng.randrange(100): child for child in children}
    return {f"{rng.choice('abcé')}{rng.randrange(9)}": child for child in children}


@pytest.mark.parametrize("seed", range(20))
def test_random_data_is_hashed_and_stored_from_powertools_very_text(seed: int) -> None:
    rng = random.Random(seed)

    for number in range(200):
        in_key = random_value(rng, 4, exotic=True)
        result = random_value(rng, 4, exotic=False)
        assert canonical_json(in_key) == theirs_in_key(in_key), (seed, number)
        assert result_json(result) == theirs_as_result(result), (seed, number)


def takes_other_arguments(markers: object) -> None:
    """As another Python's maker of encoders might."""


@pytest.mark.parametrize("make", [None, takes_other_arguments])
def test_without_cpythons_own_maker_of_encoders_the_text_is_the_same(make: Any) -> None:
    value = {"b": [1, Decimal("1.5"), None], "a": {"\u00e9": math.inf}, "c": uuid.UUID(int=7)}

    assert (
        encoder(_plain_in_key, make)(value) == canonical_json(value) == json.dumps(value, sort_keys=True, default=_plain_in_key)
    )
    assert encoder(_plain_in_key, make, sort_keys=False)({2: 1, "a": 2}) == '{"2": 1, "a": 2}'


def test_threads_may_encode_one_object_at_once() -> None:
    """Each looks for circles by itself: an object that another is in the middle of is none."""
    inner: list[object] = []
    begun: list[bool] = []

    class Inside:
        def model_dump(self, mode: str) -> str:
            if not begun:
                begun.append(True)
                inner.append(canonical_json(outer))
            return "inside"

    outer = {"it": Inside()}

    assert canonical_json(outer) == '{"it": "inside"}'
    assert inner == ['{"it": "inside"}']
