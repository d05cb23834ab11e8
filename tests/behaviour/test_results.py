"""What a replay returns: the JSON round trip of the result, or what an output serializer makes of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum, StrEnum
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Optional, Union

import pytest
from behaviour.kit import CountingStore, Form, Work, key_of
from pydantic import BaseModel, RootModel, SecretStr

from idempotency import (
    BaseIdempotencySerializer,
    CustomDictSerializer,
    DataclassSerializer,
    IdempotencyConfig,
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
    IdempotencyResultNotKeptError,
    NoOpSerializer,
    PydanticSerializer,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Line:
    article: str
    amount: int = 1


@dataclass
class Receipt:
    id: int
    lines: list[Line] = field(default_factory=list)
    best: Line | None = None


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


class Invoice(BaseModel):
    id: int
    due: dt.date


@pytest.mark.filterwarnings("ignore:JSON changes the result of")
@pytest.mark.parametrize(
    ("result", "replayed"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({1: "a", None: "b", 1.5: "c", False: "d"}, {"1": "a", "null": "b", "1.5": "c", "false": "d"}),
        ({"b": 1, 2: "mixed"}, {"b": 1, "2": "mixed"}),
        (Decimal("1.10"), "1.10"),
        ({"price": Decimal("0.1")}, {"price": "0.1"}),
        (Receipt(7, [Line("tea")]), {"id": 7, "lines": [{"article": "tea", "amount": 1}], "best": None}),
        (Invoice(id=7, due=dt.date(2026, 11, 21)), {"id": 7, "due": "2026-11-21"}),
        ("\u00e9\U0001f600\ud800", "\u00e9\U0001f600\ud800"),
        (float("inf"), float("inf")),
        ([2**64, -1.5e300], [2**64, -1.5e300]),
    ],
    ids=["tuple", "odd keys", "mixed keys", "Decimal", "Decimal inside", "dataclass", "pydantic", "text", "inf", "numbers"],
)
def test_a_replay_is_the_json_round_trip_of_the_result(form: Form, store: CountingStore, result: Any, replayed: Any) -> None:
    work = Work(result=result)
    call = form.decorate(work, store)
    call({"id": 1})

    assert call({"id": 1}) == replayed
    assert len(work.runs) == 1


CHANGED = "JSON changes the result of .*, which contains a {}: replays return what JSON makes of it"


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ((1, 2), "tuple"),
        ([[{"a": ()}]], "tuple"),
        ({"a": {1: "b"}}, "dict with keys of type int"),
        ([{None: 1}], "dict with keys of type NoneType"),
        ({"price": Decimal("0.1")}, "Decimal"),
        ([Receipt(7)], "Receipt"),
        (Invoice(id=7, due=dt.date(2026, 11, 21)), "Invoice"),
    ],
    ids=["tuple", "tuple inside", "int key", "None key", "Decimal", "dataclass", "model"],
)
def test_the_first_result_that_json_changes_is_warned_of_once(form: Form, store: CountingStore, result: Any, what: str) -> None:
    call = form.decorate(Work(result=result), store)

    with pytest.warns(UserWarning, match=CHANGED.format(what)) as warned:
        call({"id": 1})
    for number in range(20):
        call({"id": number})

    assert len(warned) == 1
    assert "tea" not in str(warned[0].message)


@pytest.mark.parametrize(
    "result",
    [
        [{"a": 1, "b": [None, True, 1.5]}],
        Level.HIGH,
        {Word.YES: Word.YES},
        OrderedDict(a=[1]),
        float("nan"),
    ],
    ids=["JSON", "IntEnum", "StrEnum", "OrderedDict", "NaN"],
)
def test_a_result_that_replays_equal_is_not_warned_of(store: CountingStore, result: Any) -> None:
    work = Work(result=result)
    call = make_idempotent(work, persistence_store=store)
    call(1)
    call(1)

    assert len(work.runs) == 1


def test_a_warning_that_is_an_error_comes_after_the_result_was_stored(form: Form, store: CountingStore) -> None:
    work = Work(result=(1,))
    call = form.decorate(work, store)

    with pytest.raises(UserWarning, match="^JSON changes the result of"):
        call({"id": 1})

    assert call({"id": 1}) == [1]
    assert len(work.runs) == 1


@pytest.mark.parametrize(("plain", "noticed"), [(0, 1), (1, 2), (7, 8), (8, 16), (16, 32), (32, 64), (64, 128)])
def test_tuples_and_keys_are_looked_for_in_the_first_results_and_then_each_time_their_number_has_doubled(
    store: CountingStore, plain: int, noticed: int
) -> None:
    work = Work(result=[1])
    call = make_idempotent(work, persistence_store=store)
    for number in range(plain):
        call(number)

    work.result = (1,)
    for number in range(plain, noticed - 1):
        call(number)
    with pytest.warns(UserWarning, match=CHANGED.format("tuple")):
        call(noticed - 1)
    for number in range(noticed, 130):
        call(number)


def test_what_json_does_not_have_is_noticed_in_every_result(store: CountingStore) -> None:
    work = Work(result=[1])
    call = make_idempotent(work, persistence_store=store)
    for number in range(9):
        call(number)

    work.result = Decimal(1)
    with pytest.warns(UserWarning, match=CHANGED.format("Decimal")):
        call(9)


class Keyed(BaseModel):
    by_key: dict[int | str, str]


class Listed(RootModel[list[Keyed]]):
    pass


class Flat(RootModel[dict[int | str, str]]):
    pass


@pytest.mark.parametrize(
    "result",
    [
        {1: "a", "1": "b"},
        [{"x": [{1: "a", "1": "b"}]}],
        {True: "a", "true": "b"},
        {None: "a", "null": "b"},
        {1.5: "a", "1.5": "b"},
        {float("nan"): "a", float("nan"): "b"},
        {"a": Line("a", {1: "a", "1": "b"})},  # type: ignore[arg-type]
        Keyed(by_key={1: "a", "1": "b"}),
        Listed([Keyed(by_key={1: "a", "1": "b"})]),
        Flat({1: "a", "1": "b"}),
    ],
    ids=["int", "inside", "True", "None", "float", "NaN", "dataclass", "model", "models", "root"],
)
@pytest.mark.parametrize("serializer", [None, CustomDictSerializer(lambda result: result, lambda data: data)])
def test_a_result_of_which_json_would_lose_a_part_is_not_kept(store: CountingStore, result: Any, serializer: Any) -> None:
    work = Work(result=result)
    call = make_idempotent(work, persistence_store=store, output_serializer=serializer)

    with pytest.raises(IdempotencyResultNotKeptError, match="Two keys of a dict are the same text in JSON"):
        call(1)
    with pytest.raises(IdempotencyResultNotKeptError):
        call(1)

    assert len(work.runs) == 1


@pytest.mark.parametrize("text", ["NaN", "N", '"NaN"'])
def test_a_text_that_looks_like_such_a_key_is_kept(store: CountingStore, text: str) -> None:
    call = make_idempotent(Work(result={text: text}), persistence_store=store)

    assert [call(1), call(1)] == [{text: text}] * 2


@pytest.mark.parametrize(
    "result",
    [object(), dt.datetime(2026, 11, 21, tzinfo=dt.UTC), uuid.UUID(int=1), b"x", {1, 2}, {(1, 2): 3}],
    ids=["object", "datetime", "UUID", "bytes", "set", "tuple key"],
)
def test_what_is_not_json_is_not_kept(form: Form, store: CountingStore, result: Any) -> None:
    """Dates and UUIDs are refused although keys accept them: a replay could not give them back."""
    with pytest.raises(IdempotencyResultNotKeptError) as failed:
        form.decorate(Work(result=result), store)({"id": 1})

    assert isinstance(failed.value.__cause__, TypeError)
    (record,) = store._records.values()
    assert (record.stored_status, record.response_data, record.result_kept) == ("COMPLETED", "", False)


def test_a_result_that_contains_itself_is_not_kept(form: Form, store: CountingStore) -> None:
    endless: list[Any] = []
    endless.append(endless)
    work = Work(result=endless)
    call = form.decorate(work, store)

    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError):
            call({"id": 1})

    assert len(work.runs) == 1


def receipt(order: int) -> Receipt:
    return Receipt(order, [Line("tea", 2)], Line("milk"))


def receipt_or_none(order: int) -> Receipt | None:
    return receipt(order) if order else None


def receipt_optional(order: int) -> Optional[Receipt]:  # noqa: UP045 - the older spelling is what is tested
    return receipt(order)


def receipt_union(order: int) -> Union[Receipt, None]:  # noqa: UP007 - the older spelling is what is tested
    return receipt(order)


async def areceipt(order: int) -> Receipt:
    return receipt(order)


def invoice(order: int) -> Invoice:
    return Invoice(id=order, due=dt.date(2026, 11, 21))


async def ainvoice(order: int) -> Invoice | None:
    return invoice(order)


def broken(data: Any) -> Any:
    raise KeyError("broken serializer")


def called(function: Any, order: int) -> Any:
    result = function(order=order)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("function", [receipt, receipt_or_none, receipt_optional, receipt_union, areceipt])
@pytest.mark.parametrize("serializer", [DataclassSerializer, DataclassSerializer(Receipt)], ids=["from annotation", "given"])
def test_a_dataclass_replays_as_an_equal_one_with_the_dataclasses_inside(
    store: CountingStore, function: Callable[..., Any], serializer: Any
) -> None:
    safe: Any = idempotent_function(
        function, data_keyword_argument="order", persistence_store=store, output_serializer=serializer
    )
    called(safe, 7)

    replayed = called(safe, 7)

    assert replayed == receipt(7)
    assert type(replayed.lines[0]) is Line
    assert store.asked.count("update") == 1


@pytest.mark.parametrize("function", [invoice, ainvoice])
@pytest.mark.parametrize("serializer", [PydanticSerializer, PydanticSerializer(Invoice)], ids=["from annotation", "given"])
def test_a_model_replays_as_an_equal_one(store: CountingStore, function: Callable[..., Any], serializer: Any) -> None:
    safe: Any = idempotent_function(
        function, data_keyword_argument="order", persistence_store=store, output_serializer=serializer
    )
    called(safe, 7)

    assert called(safe, 7) == invoice(7)
    assert store.asked.count("update") == 1


def test_the_first_call_returns_the_object_itself_despite_a_serializer(store: CountingStore) -> None:
    result = receipt(7)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, output_serializer=DataclassSerializer)
    def function(order: int) -> Receipt:
        return result

    assert function(order=7) is result
    assert function(order=7) is not result


def test_none_is_neither_given_to_a_serializer_nor_asked_of_it(store: CountingStore) -> None:
    safe = make_idempotent(Work(), persistence_store=store, output_serializer=CustomDictSerializer(broken, broken))

    assert [safe(7), safe(7)] == [None, None]


def test_an_annotation_kept_as_text_is_resolved_even_inside_a_function(store: CountingStore) -> None:
    """`from __future__ import annotations` keeps all of this module's as text."""

    @dataclass
    class Local:
        x: int

    def function(order: NoSuchName) -> Local | None:  # type: ignore[name-defined]  # noqa: F821 - only the return type matters
        return Local(order)

    safe = make_idempotent(function, persistence_store=store, output_serializer=DataclassSerializer)

    assert [safe(7), safe(7)] == [Local(7), Local(7)]


def test_a_serializer_of_two_functions_translates_both_ways(store: CountingStore) -> None:
    serializer = CustomDictSerializer(lambda found: {"iso": found.isoformat()}, lambda data: dt.date.fromisoformat(data["iso"]))
    safe = make_idempotent(lambda order: dt.date(2026, 11, 21), persistence_store=store, output_serializer=serializer)

    assert [safe(7), safe(7)] == [dt.date(2026, 11, 21)] * 2


def test_the_serializer_that_does_nothing_gives_the_round_trip_and_the_warning(store: CountingStore) -> None:
    safe = make_idempotent(lambda order: (order,), persistence_store=store, output_serializer=NoOpSerializer())

    with pytest.warns(UserWarning, match=CHANGED.format("tuple")):
        assert safe(7) == (7,)
    assert safe(7) == [7]


def test_a_serializer_written_for_one_purpose_is_an_instance_of_the_base_class(store: CountingStore) -> None:
    class Reversed(BaseIdempotencySerializer):
        def to_dict(self, data: str) -> str:
            return data[::-1]

        def from_dict(self, data: str) -> str:
            return data[::-1]

    safe = make_idempotent(lambda order: "abc", persistence_store=store, output_serializer=Reversed())
    safe(7)
    (record,) = store._records.values()

    assert safe(7) == "abc"
    assert record.response_data == '"cba"'


def test_a_serializer_that_fails_on_the_result_does_not_run_the_function_again(store: CountingStore) -> None:
    work = Work(result=1)
    safe = make_idempotent(work, persistence_store=store, output_serializer=CustomDictSerializer(broken, broken))

    for _ in range(2):
        with pytest.raises(IdempotencyResultNotKeptError):
            safe(7)

    assert work.runs == [7]


def test_a_serializer_that_fails_on_the_replay_tells_the_caller_and_spares_the_record(store: CountingStore) -> None:
    serializer = CustomDictSerializer(lambda data: data, broken)
    safe = make_idempotent(Work(result=1), persistence_store=store, output_serializer=serializer)
    safe(7)
    before = dict(store._records)

    with pytest.raises(KeyError, match="broken serializer"):
        safe(7)

    assert store._records == before


def test_a_serializer_of_ones_own_gets_what_json_makes_of_its_data(store: CountingStore) -> None:
    got: list[Any] = []
    safe = make_idempotent(
        Work(result="x"), persistence_store=store, output_serializer=CustomDictSerializer(lambda data: {1: (data,)}, got.append)
    )
    safe(7)
    safe(7)

    assert got == [{"1": ["x"]}]


class Grown(BaseModel):
    id: int
    colour: str
    due: dt.date


@dataclass
class GrownReceipt:
    id: int
    colour: str


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (PydanticSerializer(Invoice), PydanticSerializer(Grown), "cannot be read as Grown: colour: missing"),
        (
            DataclassSerializer(Receipt),
            DataclassSerializer(GrownReceipt),
            "cannot be read as GrownReceipt: .* needs the field colour",
        ),
    ],
    ids=["pydantic", "dataclass"],
)
def test_a_record_that_its_type_no_longer_accepts_is_an_error_that_names_the_key_and_no_value(
    store: CountingStore, before: Any, after: Any, reason: str
) -> None:
    work = Work(result=invoice(7) if isinstance(before, PydanticSerializer) else receipt(7))
    make_idempotent(work, persistence_store=store, output_serializer=before, key_prefix="p")(7)
    call = make_idempotent(work, persistence_store=store, output_serializer=after, key_prefix="p")

    with pytest.raises(IdempotencyResultNotKeptError, match=f"ran for idempotency key {key_of(7)}, but .*{reason}") as raised:
        call(7)

    assert "tea" not in str(raised.value)
    assert "2026" not in "".join(format_exception(raised.value))
    assert work.runs == [7]


def test_a_secret_is_not_stored_in_clear(store: CountingStore) -> None:
    class Login(BaseModel):
        token: SecretStr

    call = make_idempotent(
        Work(result=Login(token=SecretStr("hidden"))), persistence_store=store, output_serializer=PydanticSerializer(Login)
    )

    with pytest.raises(IdempotencyResultNotKeptError, match="would come back with other values in: token") as raised:
        call(7)

    assert "hidden" not in "".join(format_exception(raised.value)) + repr(store._records)


def unannotated(order):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - that is the point
    return order


def of_two(order: int) -> Receipt | Line:
    return receipt(order)


def of_int(order: int) -> int:
    return order


def unresolvable(order: int) -> NoSuchName:  # type: ignore[name-defined]  # noqa: F821 - that is the point
    return order


UNION = "Invalid type: expected a single type, optionally wrapped in Optional or Union with None."
REFUSED = [
    (DataclassSerializer, unannotated, IdempotencyNoSerializationModelError, "No serialization model was supplied"),
    (PydanticSerializer, unannotated, IdempotencyNoSerializationModelError, "No serialization model was supplied"),
    (DataclassSerializer, of_int, IdempotencyModelTypeError, "Model type is not inherited of dataclass type"),
    (DataclassSerializer, invoice, IdempotencyModelTypeError, "Model type is not inherited of dataclass type"),
    (PydanticSerializer, of_int, IdempotencyModelTypeError, "Model type is not inherited from pydantic BaseModel"),
    (PydanticSerializer, receipt, IdempotencyModelTypeError, "Model type is not inherited from pydantic BaseModel"),
    (DataclassSerializer, of_two, IdempotencyModelTypeError, UNION),
    (PydanticSerializer, of_two, IdempotencyModelTypeError, UNION),
    (DataclassSerializer, unresolvable, IdempotencyModelTypeError, "The return annotation 'NoSuchName' cannot be resolved"),
]


@pytest.mark.parametrize(("serializer", "function", "error", "message"), REFUSED)
def test_a_serializer_that_does_not_fit_is_refused_when_the_function_is_decorated(
    store: CountingStore, serializer: Any, function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        idempotent_function(function, data_keyword_argument="order", persistence_store=store, output_serializer=serializer)

    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("serializer", [NoOpSerializer, "text", CustomDictSerializer], ids=repr)
def test_what_is_no_serializer_is_refused_when_the_function_is_decorated(store: CountingStore, serializer: Any) -> None:
    with pytest.raises(TypeError, match="^output_serializer must be a BaseIdempotencySerializer, not"):
        make_idempotent(of_int, persistence_store=store, output_serializer=serializer)


def doubled(response: Any, _record: object) -> Any:
    return [response, response]


def test_a_hook_gets_what_the_serializer_made(store: CountingStore) -> None:
    safe: Any = make_idempotent(
        receipt, persistence_store=store, output_serializer=DataclassSerializer, config=IdempotencyConfig(response_hook=doubled)
    )
    safe(7)

    assert safe(7) == [receipt(7), receipt(7)]
