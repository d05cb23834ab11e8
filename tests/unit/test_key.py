"""From a payload to its digests: the same as Powertools', whatever of the payload was converted."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import gzip
import hashlib
import json
import random
from collections import OrderedDict, namedtuple
from decimal import Decimal
from typing import Any

import jmespath
import pytest
from aws_lambda_powertools.utilities.idempotency.base import _prepare_data
from aws_lambda_powertools.utilities.idempotency.config import IdempotencyConfig as TheirConfig
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer as TheirLayer
from jmespath.exceptions import ParseError
from jmespath.functions import Functions, signature
from pydantic import (
    AliasGenerator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SerializerFunctionWrapHandler,
    computed_field,
    field_serializer,
    model_serializer,
)
from pydantic import dataclasses as pydantic_dataclasses

from idempotency import key
from idempotency.key import KeyExtractor, Selection, SelectionError, payload_data
from persistence.base import BasePersistenceLayer
from persistence.exceptions import IdempotencyKeyError
from persistence.missing import is_missing_idempotency_key as is_missing


class TheirStore(TheirLayer):
    """Computes keys and stores nothing."""

    _get_record = _put_record = _update_record = _delete_record = None  # type: ignore[assignment]


def their_digests(payload: Any, **options: Any) -> tuple[str | None, str]:
    """What Powertools computes for the payload."""
    store = TheirStore()
    store.configure(TheirConfig(**options, raise_on_no_idempotency_key=True), key_prefix="p")
    data = _prepare_data(payload)
    key = store._get_hashed_idempotency_key(data)
    assert key is not None
    return key.removeprefix("p#"), store._get_hashed_payload(data)


def digests(payload: Any, **options: Any) -> tuple[str | None, str]:
    return KeyExtractor(**options).digests(payload)[:2]


# What is a key

Point = namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind, too

MISSING: list[Any] = [
    None,
    "",
    [],
    (),
    {},
    [None],
    [None, None],
    (None,),
    {"a": None},
    {"a": None, "b": None},
    OrderedDict(a=None),
    Point(None, None),
    b"",
    set(),
]
PRESENT: list[Any] = [
    0,
    0.0,
    False,
    True,
    float("nan"),
    " ",
    "0",
    [0],
    [None, 0],
    [False],
    [""],
    [[]],
    [[None]],
    [{}],
    {"a": 0},
    {"a": None, "b": ""},
    {"a": {}},
    Point(None, 0),
    Decimal("1.0"),
    object(),
]


@pytest.mark.parametrize("selected", [*MISSING, *PRESENT, Decimal(0)], ids=repr)
def test_what_counts_as_a_key_is_what_powertools_counts(selected: object) -> None:
    assert is_missing(selected) is TheirLayer.is_missing_idempotency_key(selected)


@pytest.mark.parametrize("selected", MISSING, ids=repr)
def test_nothing_and_lists_or_objects_of_nothing_are_no_key(selected: object) -> None:
    assert is_missing(selected)


def test_a_store_can_be_asked_what_is_no_key_as_in_powertools() -> None:
    assert BasePersistenceLayer.is_missing_idempotency_key({"a": None})
    assert not BasePersistenceLayer.is_missing_idempotency_key({"a": 0})


@pytest.mark.parametrize("selected", PRESENT, ids=repr)
def test_zero_false_and_partly_filled_selections_are_keys(selected: object) -> None:
    assert not is_missing(selected)


@pytest.mark.parametrize("payload", [{}, {"a": None}, [], None, "", [None]], ids=repr)
def test_without_an_expression_an_empty_payload_has_no_key(payload: Any) -> None:
    assert digests(payload) == (None, "")


@pytest.mark.parametrize("expression", ["id", "[id, user]", "{a: id}", "items[*].id", "missing.deeper"])
def test_a_payload_without_what_is_selected_has_no_key_and_no_validated_part(expression: str) -> None:
    assert digests({"amount": 1}, event_key_jmespath=expression, payload_validation_jmespath="amount") == (None, "")


# Digests

PAYLOADS: list[Any] = [
    {"id": 1},
    {"id": "ü", "nested": {"b": [1, 2.5, None], "a": True}},
    {"id": Decimal("1.10"), "at": dt.datetime(2026, 11, 21)},
    [1, 2],
    "text",
    0,
    False,
    1.5,
    (1, 2),
    {1: 2},
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
@pytest.mark.parametrize("hash_function", ["md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256"])
def test_the_digest_of_a_payload_is_powertools(payload: Any, hash_function: str) -> None:
    assert digests(payload, hash_function=hash_function) == their_digests(payload, hash_function=hash_function)


def test_the_digest_is_the_hash_of_the_canonical_text() -> None:
    expected = hashlib.sha256(b'{"a": [1, "\\u00fc"], "b": null}').hexdigest()

    assert digests({"b": None, "a": (1, "ü")}, hash_function="sha256") == (expected, "")


def test_the_order_of_fields_does_not_matter_and_the_order_of_elements_does() -> None:
    assert digests({"a": 1, "b": 2}) == digests({"b": 2, "a": 1})
    assert digests([1, 2]) != digests([2, 1])


@pytest.mark.parametrize(("one", "other"), [(0, "0"), (1, "1"), (None, [None]), (True, 1), (1, 1.0), ("None", [None, 1])])
def test_values_that_differ_as_json_have_different_digests(one: Any, other: Any) -> None:
    assert digests({"k": one}) != digests({"k": other})


@pytest.mark.parametrize(
    ("payload", "key", "validation"),
    [
        ({"id": 1, "amount": 5}, "id", "amount"),
        ({"id": 1, "amount": 5}, "id", "[amount, currency]"),
        ({"id": 1}, "id", "amount"),
        ({"id": 1, "amount": None}, "[id, amount]", "@"),
        ({"id": 1, "amount": 5}, "", "amount"),
    ],
)
def test_the_digest_of_the_validated_part_is_powertools_and_a_missing_part_has_one(
    payload: Any, key: str, validation: str
) -> None:
    options = {"event_key_jmespath": key, "payload_validation_jmespath": validation}

    found = digests(payload, **options)

    assert found == their_digests(payload, **options)
    assert found[1] != ""


def test_without_validation_there_is_no_validated_part() -> None:
    assert digests({"id": 1}, event_key_jmespath="id")[1] == ""


def test_computing_the_digests_leaves_the_payload_as_it_was() -> None:
    payload = {"id": [3, 1, 2], "body": '{"b": 1}'}
    before = json.dumps(payload)

    digests(payload, event_key_jmespath="[sort(id), powertools_json(body)]", payload_validation_jmespath="@")

    assert json.dumps(payload) == before


def test_a_payload_that_cannot_be_copied_has_a_key_where_its_selection_can_be_hashed() -> None:
    payload = {"id": 1, "generator": (n for n in [1])}

    assert digests(payload, event_key_jmespath="id") == their_digests({"id": 1}, event_key_jmespath="id")


@pytest.mark.parametrize("value", [b"x", {1}, 1j, object()], ids=lambda value: type(value).__name__)
def test_a_selection_that_cannot_be_hashed_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        digests({"id": value}, event_key_jmespath="id")
    with pytest.raises(TypeError):
        digests({"id": 1, "v": value}, event_key_jmespath="id", payload_validation_jmespath="v")


# Hash functions


@pytest.mark.parametrize(
    "name",
    [
        "",
        "md6",
        "MD5 ",
        "new",
        "shake_128",
        "pbkdf2_hmac",
        "file_digest",
        "algorithms_available",
        "__name__",
        "_hashlib",
        None,
        5,
    ],
)
def test_a_hash_function_that_is_none_is_refused_with_ones_that_are(name: Any) -> None:
    with pytest.raises(ValueError, match=r"is no hash of hashlib; 'md5' and 'sha256' are$") as raised:
        KeyExtractor(hash_function=name)
    assert repr(name) in str(raised.value)


def test_the_hash_function_in_use_can_be_read() -> None:
    assert KeyExtractor(hash_function="sha256").hash_function is hashlib.sha256


class RestrictedHashlib:
    """As hashlib on a host that is restricted to the algorithms of FIPS 140, with OpenSSL's words."""

    algorithms_guaranteed = hashlib.algorithms_guaranteed
    sha256 = hashlib.sha256

    @staticmethod
    def md5(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return hashlib.md5(data, usedforsecurity=False)

    @staticmethod
    def sha1(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        raise ValueError("[digital envelope routines] unsupported")


@pytest.fixture
def _restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "hashlib", RestrictedHashlib)


@pytest.mark.usefixtures("_restricted")
@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_a_host_that_refuses_md5_for_security_computes_the_same_digests(name: str) -> None:
    extractor = KeyExtractor(hash_function=name)

    assert extractor.digests({"id": 1})[:2] == their_digests({"id": 1}, hash_function=name)
    assert extractor.hash_function(b"x").hexdigest() == getattr(hashlib, name)(b"x").hexdigest()


@pytest.mark.usefixtures("_restricted")
@pytest.mark.parametrize("name", ["sha1", "blake2b"])
def test_a_hash_that_the_host_refuses_altogether_is_refused_with_another_one_to_pass(name: str) -> None:
    """`sha1` is refused for all purposes, and this hashlib was built without `blake2b`."""
    with pytest.raises(ValueError, match=f"^This host refuses the hash_function '{name}'; pass another one, such as 'sha256'$"):
        KeyExtractor(hash_function=name)


# Expressions


@pytest.mark.parametrize("option", ["event_key_jmespath", "payload_validation_jmespath"])
@pytest.mark.parametrize("expression", ["[", "a.", "a b", "foo(", "{a}"])
def test_what_is_no_jmespath_is_refused_when_configured_and_named(option: str, expression: str) -> None:
    with pytest.raises(ParseError) as raised:
        KeyExtractor(**{option: expression})
    assert raised.value.__notes__ == [f"in the JMESPath expression {expression!r}"]


BODY = {"id": 1, "items": ["a"]}
PACKED = base64.b64encode(gzip.compress(json.dumps(BODY).encode())).decode()


@pytest.mark.parametrize(
    ("payload", "expression"),
    [
        ({"body": json.dumps(BODY)}, "powertools_json(body).id"),
        ({"body": json.dumps(BODY)}, "powertools_json(body).[id, items[0]]"),
        ({"body": base64.b64encode(json.dumps(BODY).encode()).decode()}, "powertools_json(powertools_base64(body)).id"),
        ({"body": PACKED}, "powertools_json(powertools_base64_gzip(body)).items"),
        ({"Records": [{"body": json.dumps(BODY)}]}, "Records[].powertools_json(body).id"),
    ],
)
def test_powertools_functions_select_what_they_select_there(payload: Any, expression: str) -> None:
    assert digests(payload, event_key_jmespath=expression) == their_digests(payload, event_key_jmespath=expression)


class Shouting(Functions):
    @signature({"types": ["string"]})  # type: ignore[misc]
    def _func_shout(self, value: str) -> str:
        return value.upper() + "!"

    @signature({"types": ["string"]})  # type: ignore[misc]
    def _func_leak(self, value: str) -> str:
        raise ValueError(value)


SHOUTING = {"custom_functions": Shouting()}


def test_functions_of_ones_own_replace_those_of_powertools_altogether() -> None:
    payload = {"id": "a", "body": "{}"}

    assert digests(payload, event_key_jmespath="shout(id)", jmespath_options=SHOUTING) == digests("A!")
    with pytest.raises(SelectionError, match="UnknownFunctionError"):
        digests(payload, event_key_jmespath="powertools_json(body)", jmespath_options=SHOUTING)


def test_other_options_of_jmespath_replace_powertools_functions_too() -> None:
    with pytest.raises(SelectionError, match="UnknownFunctionError"):
        digests({"body": "{}"}, event_key_jmespath="powertools_json(body)", jmespath_options={"dict_cls": OrderedDict})


def test_options_apply_to_the_validated_part_as_well() -> None:
    options: dict[str, Any] = {
        "event_key_jmespath": "id",
        "payload_validation_jmespath": "shout(id)",
        "jmespath_options": SHOUTING,
    }

    assert digests({"id": "a"}, **options)[1] == digests("A!")[0]


@pytest.mark.parametrize(
    ("expression", "options", "kind", "detail"),
    [
        ("powertools_json(secret)", None, "JSONDecodeError", ""),
        ("powertools_base64(secret)", None, "UnicodeDecodeError", ""),
        ("powertools_base64_gzip(packed)", None, "BadGzipFile", ""),
        ("powertools_json(number)", None, "JMESPathTypeError", " (powertools_json() expects string, not number)"),
        ("length(number)", None, "JMESPathTypeError", " (length() expects string or array or object, not number)"),
        ("sum(list)", None, "JMESPathTypeError", " (sum() expects array-number, not str)"),
        ("join('-', [secret, missing])", None, "JMESPathTypeError", " (join() expects array-string, not NoneType)"),
        ("nonsense(secret)", None, "UnknownFunctionError", " (Unknown function: nonsense())"),
        ("length()", None, "ArityError", " (Expected 1 argument for function length(), received 0)"),
        ("merge()", None, "VariadictArityError", " (Expected at least 1 argument for function merge(), received 0)"),
        ("leak(secret)", SHOUTING, "ValueError", ""),
    ],
)
def test_a_failed_selection_names_its_expression_and_never_a_value(
    expression: str, options: dict[str, Any] | None, kind: str, detail: str
) -> None:
    payload = {
        "secret": "4111-1111",
        "number": 41111111,
        "list": ["4111-1111"],
        "packed": base64.b64encode(b"4111-1111").decode(),
    }
    extractor = KeyExtractor(event_key_jmespath=expression, jmespath_options=options)

    with pytest.raises(SelectionError) as raised:
        extractor.digests(payload)
    assert str(raised.value) == f"{kind} in the JMESPath expression {expression!r}{detail}"
    assert "4111" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


# Incomplete keys

COMPLETE: list[tuple[str, Any]] = [
    ("[user, order]", {"user": 1, "order": 2}),
    ("[user, order]", {"user": 0, "order": False}),
    ("[user, order]", {"user": "", "order": []}),
    ("{u: user, o: order}", {"user": 1, "order": 2}),
    ("body.[user, order]", {"body": {"user": 1, "order": 2}}),
    ("[user, body.[a, b]]", {"user": 1, "body": {"a": 1, "b": 2}}),
    ("{u: user, b: [a, b]}", {"user": 1, "a": 1, "b": 2}),
    ("[user, items]", {"user": 1, "items": [None]}),
    ("powertools_json(body).[user, order]", {"body": '{"user": 1, "order": 2}'}),
    ("user", {"user": 1}),
    ("user.name", {"user": {"name": "a"}}),
    ("[user || 'nobody', order]", {"order": 1}),
    ("items[*].[id, kind]", {"items": [{"id": 1, "kind": 2}, {"id": 3, "kind": 4}]}),
    # An alternative that is not taken, a condition and an element that is dropped are not in the key.
    ("body.[user, order] || id", {"id": 1}),
    ("id || [user, order]", {"id": 1}),
    ("[user, order] && id", {"id": 1}),
    ("![user, order] || id", {"id": 1}),
    ("[user == [a, b], id]", {"id": 1}),
    ("items[?[id, kind]].id", {"items": [{"id": 1}]}),
    ("items[*].body.[id, kind]", {"items": [{"body": {"id": 1, "kind": 2}}, {}]}),
    ("not_null(user, order)", {"order": 1}),
    ("not_null(id, [user, order])", {"id": 1}),
    ("not_null(body.[user, order], id)", {"id": 1}),
    ("to_string(user)", {"user": 1}),
    ("map(&id, items)", {"items": [{"id": 1}]}),
    ("[id, ![user, order]]", {"id": 1}),
    ("not_null([user, order][5], id)", {"id": 1}),
    ("[id, items[*].to_number([id, kind])]", {"id": 1, "items": [{"id": 1}]}),
]


@pytest.mark.parametrize(("expression", "payload"), COMPLETE)
def test_a_complete_key_passes_where_all_of_it_is_required(expression: str, payload: Any) -> None:
    demanding = KeyExtractor(event_key_jmespath=expression, require_all_key_fields=True)

    assert demanding.digests(payload) == (*digests(payload, event_key_jmespath=expression), None)


INCOMPLETE: list[tuple[str, Any, str]] = [
    ("[user, order]", {"user": 1}, "order"),
    ("[user, order]", {"user": 1, "order": None}, "order"),
    ("{u: user, o: order}", {"user": 1}, "order"),
    ("body.[user, order]", {"body": {"user": 1}}, "order"),
    ("body | {u: user, o: order}", {"body": {"user": 1}}, "order"),
    ("[user, body.[a, b]]", {"user": 1, "body": {"a": 1}}, "b"),
    ("[user, body.[a, b]]", {"user": 1}, "body.[a, b]"),
    ("{u: user, b: body.{a: a, b: b}}", {"user": 1, "body": {"b": 1}}, "a"),
    ("[user, items[0]]", {"user": 1, "items": []}, "items[0]"),
    ("powertools_json(body).[user, order]", {"body": '{"user": 1}'}, "order"),
    ("[user, order]", {"amount": 1}, "user"),
    ("items[*].[id, kind]", {"items": [{"id": 1, "kind": 2}, {"id": 3}]}, "kind"),
    ("items[].{i: id, k: kind}", {"items": [{"id": 1}]}, "kind"),
    ("items[?id].[id, kind]", {"items": [{"id": 1}]}, "kind"),
    ("by_id.*.[id, kind]", {"by_id": {"x": {"id": 1}}}, "kind"),
    # Wherever the multi-select stands
    ("[user, order] || id", {"user": 1, "id": 2}, "order"),
    ("id || [user, order]", {"user": 1}, "order"),
    ("user && [user, order]", {"user": 1}, "order"),
    ("to_string([user, order])", {"user": 1}, "order"),
    ("[user, order][:2]", {"user": 1}, "order"),
    ("[[user, order]][0]", {"user": 1}, "order"),
    ("[[user, order]][]", {"user": 1}, "order"),
    ("[user, order] | [0]", {"user": 1}, "order"),
    ("[user, order] | @", {"user": 1}, "order"),
    ("[user, order] | to_string(@)", {"user": 1}, "order"),
    ("merge({a: user}, {b: order})", {"user": 1}, "order"),
    ("values({a: user, b: order})", {"user": 1}, "order"),
    ("reverse([user, order])", {"user": "a"}, "order"),
    ("not_null([user, order], id)", {"user": 1}, "order"),
    ("not_null(id, [user, order])", {"user": 1}, "order"),
    ("map(&[id, kind], items)", {"items": [{"id": 1}]}, "kind"),
    ("items[*].to_string([id, kind])", {"items": [{"id": 1}]}, "kind"),
    ("@.[user, order]", {"user": 1}, "order"),
    ("([user, order])", {"user": 1}, "order"),
    # Functions that make a value of nothing
    ("to_string(order)", {"user": 1}, "order"),
    ("join('-', [to_string(user), to_string(order.id)])", {"user": 1}, "order.id"),
    ("[user, to_array(order)]", {"user": 1}, "order"),
    ("map(&id, items)", {"items": [{"id": 1}, {}]}, "&id"),
]


@pytest.mark.parametrize(("expression", "payload", "lacking"), INCOMPLETE)
def test_an_incomplete_key_is_refused_where_all_of_it_is_required(expression: str, payload: Any, lacking: str) -> None:
    demanding = KeyExtractor(event_key_jmespath=expression, require_all_key_fields=True)

    with pytest.raises(IdempotencyKeyError) as raised:
        demanding.digests(payload)
    assert str(raised.value) == (
        f"The idempotency key is incomplete: the payload lacks {lacking!r} of {expression!r}, and all of it is required"
    )


@pytest.mark.parametrize(("expression", "payload", "lacking"), INCOMPLETE)
def test_a_gap_is_reported_with_an_unchanged_key(expression: str, payload: Any, lacking: str) -> None:
    key, _, gap = KeyExtractor(event_key_jmespath=expression, finds_gaps=True).digests(payload)

    assert (key, gap) == (digests(payload, event_key_jmespath=expression)[0], lacking)


def test_a_gap_is_one_calls_own() -> None:
    """Also of a call inside another one, of the call after it, and of one after a call that failed."""
    gaps: list[Any] = []

    class Nesting(Functions):
        @signature({"types": ["object"]})  # type: ignore[misc]
        def _func_nested(self, payload: Any) -> Any:
            gaps.append(extractor.digests(payload)[2] if "inner" in payload else None)
            return 1

    extractor = KeyExtractor(
        event_key_jmespath="[[user, order], nested(inner)]",
        jmespath_options={"custom_functions": Nesting()},
        finds_gaps=True,
    )
    complete: Any = {"user": 1, "order": 2, "inner": {}}
    lacking: Any = {"user": 1, "inner": {}}

    assert extractor.digests(complete | {"inner": lacking})[2] is None
    assert extractor.digests(lacking | {"inner": complete})[2] == "order"
    assert extractor.digests(complete)[2] is None
    with pytest.raises(SelectionError):
        extractor.digests(lacking | {"inner": "no object"})
    assert extractor.digests(complete)[2] is None
    assert gaps == [None, "order", None, None, None, None]


def test_a_failure_of_the_expression_stays_one_where_all_of_it_is_required() -> None:
    """An alternative is evaluated although it is not taken, as without the option."""
    demanding = KeyExtractor(event_key_jmespath="not_null(id, [length(id)])", require_all_key_fields=True)

    with pytest.raises(SelectionError, match=r"^JMESPathTypeError in .* \(length\(\) expects"):
        demanding.digests({"id": 1})


@pytest.mark.parametrize("expression", ["id", "a.b", "body.[user, order]", "[missing][0].x"])
def test_a_key_that_is_missing_altogether_is_refused_with_its_expression(expression: str) -> None:
    demanding = KeyExtractor(event_key_jmespath=expression, require_all_key_fields=True)

    with pytest.raises(
        IdempotencyKeyError, match=r"^The idempotency key is incomplete: the payload lacks '.*', and all of it is"
    ):
        demanding.digests({"amount": 1})


def test_an_incomplete_key_is_a_key_unless_all_of_it_is_required() -> None:
    expression = "[user, order]"

    assert digests({"user": 1}, event_key_jmespath=expression) == their_digests({"user": 1}, event_key_jmespath=expression)


@pytest.mark.parametrize(
    "payload", [{}, {"id": None}, {"id": ""}, {"id": []}, {"id": {}}, {"id": [None]}, {"id": {"a": None}}], ids=repr
)
def test_a_key_that_is_missing_altogether_is_refused_where_all_of_it_is_required(payload: Any) -> None:
    demanding = KeyExtractor(event_key_jmespath="id", require_all_key_fields=True)

    with pytest.raises(IdempotencyKeyError, match="^The idempotency key is incomplete: "):
        demanding.digests(payload)


def test_a_whole_payload_for_a_key_is_never_incomplete() -> None:
    assert KeyExtractor(require_all_key_fields=True).digests({"a": None, "b": 1})[:2] == digests({"a": None, "b": 1})


# Payloads that are objects


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Order:
    id: Any
    user: Any
    lines: list[Line] = dataclasses.field(default_factory=list)
    by_sku: dict[str, Line] = dataclasses.field(default_factory=dict)
    at: dt.datetime = dt.datetime(2026, 11, 21)
    point: Any = Point(1, 2)  # noqa: RUF009 - immutable
    note: str = "n"
    secret: Any = dataclasses.field(default=None, repr=False)


@pydantic_dataclasses.dataclass
class ValidatedOrder:
    id: int
    user: str


class LineModel(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(alias=str.upper), populate_by_name=True)

    sku: str
    price: Decimal


class OrderModel(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    id: int = Field(alias="orderId")
    user: str = Field(serialization_alias="userName")
    lines: list[LineModel] = []
    at: dt.datetime = dt.datetime(2026, 11, 21)
    hidden: str = Field(default="h", exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> str:
        return str(sum(line.price for line in self.lines))

    @field_serializer("user")
    def lower(self, user: str) -> str:
        return user.lower()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: int


class ByAlias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)

    id: int = Field(serialization_alias="orderId")
    user: str = "u"


class Whole(BaseModel):
    id: int
    user: str

    @model_serializer
    def as_pairs(self) -> dict[str, Any]:
        return {"key": f"{self.id}-{self.user}", "id": -self.id}


class Wrapped(Whole):
    """Inherits its serializer."""

    note: str = "n"


class Around(BaseModel):
    """Needs all of its fields for any of what it shows."""

    id: int
    user: str

    @model_serializer(mode="wrap")
    def with_key(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        return {"key": f"{data['id']}-{data['user']}", "id": -data["id"]}


class RootAround(RootModel[Around]):
    pass


class Renaming(BaseModel):
    """Overrides the dump itself, without any options."""

    order: int
    user: str = "u"

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:  # type: ignore[override]
        data = super().model_dump(mode=mode)
        return {"id": data["order"], **data}


class Root(RootModel[dict[str, Any]]):
    pass


class RootList(RootModel[list[int]]):
    pass


class HasDict:
    def dict(self) -> Any:
        return {"id": 1, "user": "u"}


class HasRawEvent:
    raw_event = {"id": 1, "user": "u"}  # noqa: RUF012 - as an instance has it


class NotAModel:
    """Offers the method only."""

    def model_dump(self, mode: str) -> Any:
        return {"id": 1, "mode": mode}


LINES = [Line("a", Decimal("1.50"), ("x", "y")), Line("b", Decimal("2.0"))]
OBJECTS: dict[str, Any] = {
    "dataclass": Order(1, "u", LINES, {"a": LINES[0]}),
    "dataclass of models": Order(OrderModel(id=1, user="U"), "u"),
    "dataclass in a dataclass": Order(Order(1, "v"), Order(2, "w", LINES)),
    "pydantic dataclass": ValidatedOrder(1, "u"),
    "model": OrderModel(id=1, user="U", lines=[LineModel(sku="a", price=Decimal("1.50"))]),
    "open model": Open(id=1, user="u", lines=[1, 2]),  # type: ignore[call-arg]
    "model by alias": ByAlias(id=1),
    "model with a serializer": Whole(id=1, user="u"),
    "model with an inherited serializer": Wrapped(id=1, user="u"),
    "model with a serializer around": Around(id=1, user="u"),
    "root model with a serializer around": RootAround(Around(id=1, user="u")),
    "root model": Root({"id": 1, "user": {"name": "u"}}),
    "root list": RootList([3, 1]),
    "dict method": HasDict(),
    "raw event": HasRawEvent(),
    "model_dump method": NotAModel(),
    "dict subclass": OrderedDict(user="u", id=1),
    "dict": {"id": 1, "user": "u", "lines": [{"sku": "a"}]},
    "list": [{"id": 1}],
    "text": "id",
}
EXPRESSIONS = [
    "id",
    "orderId",
    "user",
    "userName",
    "key",
    "total",
    "hidden",
    "mode",
    "@",
    "*",
    "[id, user]",
    "{a: id, b: user.name}",
    "lines[0].sku",
    "lines[*].[sku, price]",
    "lines[?sku=='a'].price | [0]",
    "by_sku.a.tags[0]",
    "by_sku.*.sku",
    "id || user",
    "missing || user",
    "!missing && user",
    "id.id",
    "user.lines[].price",
    "[0]",
    "[0].id",
    "[id, [0], @]",
    "length(user)",
    "keys(@)",
    "values(@) | length(@)",
    "type(lines)",
    "`1`",
    "'literal'",
    "[id, 'literal']",
    "id == `1`",
    "lines[1:]",
    "at",
    "[at, note]",
    "point",
    "not_null(missing, user)",
    "map(&sku, lines)",
    "sort_by(lines, &sku)[0].sku",
    "@.id",
    "(id)",
    "id | @",
    "[*].id",
]


#: What Powertools sees nothing of: an object below the top level, and the elements of a tuple.
UNSEEN = {("dataclass of models", "id.id"), ("dataclass", "by_sku.a.tags[0]")}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_object_has_the_digests_that_it_has_in_powertools(name: str, expression: str) -> None:
    ours, theirs = [outcome(compute, OBJECTS[name], expression) for compute in (digests, their_digests)]

    if (name, expression) in UNSEEN:
        assert (type(ours), theirs) == (tuple, "no key")
    else:
        assert ours == theirs


def outcome(compute: Any, payload: Any, expression: str, validation: str = "") -> Any:
    """The digests; that there is no key; or that they cannot be computed."""
    try:
        found = compute(payload, event_key_jmespath=expression, payload_validation_jmespath=validation)
    except IdempotencyKeyError:
        raise
    except Exception as error:
        return "no key" if type(error).__name__ == "IdempotencyKeyError" else "not computable"
    return "no key" if found[0] is None else found


@pytest.mark.parametrize("payload", [pytest.param(payload, id=name) for name, payload in OBJECTS.items()])
def test_an_object_without_an_expression_has_the_digest_that_it_has_in_powertools(payload: Any) -> None:
    assert outcome(digests, payload, "") == outcome(their_digests, payload, "")


FIELDS = ["id", "user", "lines", "sku", "price", "by_sku", "total", "orderId", "key", "missing", "note", "a"]


def random_expression(rng: random.Random, depth: int = 3) -> str:
    if depth == 0:
        return rng.choice(FIELDS)

    def sub() -> str:
        return random_expression(rng, depth - 1)

    return rng.choice(
        [
            lambda: random_path(rng, depth),
            lambda: f"{rng.choice(FIELDS)}.{random_path(rng, depth)}",
            lambda: f"*.{random_path(rng, depth)}",
            lambda: f"[0].{random_path(rng, depth)}",
            lambda: f"({sub()} || {sub()})",
            lambda: f"({sub()} && {sub()})",
            lambda: f"!{sub()}",
            lambda: f"({sub()} == {sub()})",
            lambda: f"({sub()} | {sub()})",
            lambda: "@",
            lambda: f"[@, {sub()}]",
            lambda: "'literal'",
        ]
    )()


def random_path(rng: random.Random, depth: int) -> str:
    """What may follow a dot."""
    field = rng.choice(FIELDS)
    if depth == 0:
        return field

    def sub() -> str:
        return random_expression(rng, depth - 1)

    def deeper() -> str:
        return random_path(rng, depth - 1)

    return rng.choice(
        [
            lambda: field,
            lambda: f"{field}.{deeper()}",
            lambda: f"[{sub()}, {sub()}]",
            lambda: f"{{x: {sub()}, y: {sub()}}}",
            lambda: f"{field}[0]",
            lambda: f"{field}[:1]",
            lambda: f"{field}[*].{deeper()}",
            lambda: f"{field}[].{deeper()}",
            lambda: f"{field}.*.{deeper()}",
            lambda: f"{field}[?{sub()}].{deeper()}",
            lambda: f"not_null({sub()}, {sub()})",
            lambda: f"type({sub()})",
            lambda: f"to_string({sub()})",
            lambda: f"length(to_array({sub()}))",
            lambda: "keys(@)",
            lambda: f"map(&{deeper()}, {field})",
        ]
    )()


@pytest.mark.parametrize("seed", range(40))
def test_converting_only_what_an_expression_can_see_changes_no_digest(seed: int) -> None:
    rng = random.Random(seed)

    for _ in range(25):
        expression = random_expression(rng)
        validation = random_expression(rng) if rng.random() < 0.5 else ""
        for name, payload in OBJECTS.items():
            if name == "dataclass of models":
                continue  # which Powertools does not see
            ours = outcome(digests, payload, expression, validation)
            assert ours == outcome(their_digests, payload, expression, validation), (seed, expression, validation, name)


@pytest.mark.parametrize(
    ("expression", "roots"),
    [
        ("id", {"id"}),
        ("id.deep.er", {"id"}),
        ("[a, b.c, d[0], e[*].f, g[?h].i, j[].k, l.*.m]", {"a", "b", "d", "e", "g", "j", "l"}),
        ("{x: a, y: b}", {"a", "b"}),
        ("a || b && !c", {"a", "b", "c"}),
        ("a == b", {"a", "b"}),
        ("a | b", {"a"}),
        ("a.[b, c]", {"a"}),
        ("powertools_json(body).id", {"body"}),
        ("not_null(a, b)", {"a", "b"}),
        ("'literal'", set()),
        ("[a, `1`]", {"a"}),
        ("a[1:2]", {"a"}),
        ("@", None),
        ("*", None),
        ("keys(@)", None),
        ("[0]", None),
        ("[*].id", None),
        ("[]", None),
        ("[?a]", None),
        ("[a, @]", None),
        ("map(&a, b)", None),
        ("@.a", None),
        ("@ | a", None),
    ],
)
def test_an_expression_tells_which_top_level_fields_it_can_see(expression: str, roots: set[str] | None) -> None:
    found = Selection(expression, None).roots

    assert found == (None if roots is None else frozenset(roots))


@pytest.mark.parametrize("expression", ["id", "order", "[id, user]", "missing", "@", "*"])
def test_a_model_that_overrides_its_dump_is_asked_for_all_of_it(expression: str) -> None:
    payload = Renaming(order=1)

    assert outcome(digests, payload, expression) == outcome(their_digests, payload, expression)


class Tripwire:
    """A field that must not be looked at."""

    def __deepcopy__(self, memo: object) -> None:
        raise AssertionError("copied")


def test_what_no_expression_can_see_is_not_even_read() -> None:
    class Guarded(BaseModel):
        id: int
        amount: int = 5

        @computed_field  # type: ignore[prop-decorator]
        @property
        def costly(self) -> int:
            raise AssertionError("computed")

    options = {"event_key_jmespath": "id", "payload_validation_jmespath": "amount"}

    assert digests(Guarded(id=1), **options) == digests({"id": 1, "amount": 5}, **options)
    assert digests(Order(1, "u", secret=Tripwire()), event_key_jmespath="id") == digests(1)


@pytest.mark.parametrize(("key", "validation"), [("id", "@"), ("@", "id"), ("", "id")])
def test_where_one_expression_sees_everything_everything_is_converted(key: str, validation: str) -> None:
    payload = OBJECTS["dataclass"]
    options = {"event_key_jmespath": key, "payload_validation_jmespath": validation}

    assert digests(payload, **options) == their_digests(payload, **options)


def test_a_conversion_makes_plain_data_of_everything_inside_a_dataclass() -> None:
    payload = Order([LINES[0]], (LINES[1],), point=Point(LINES[0], {LINES[0].sku: LINES[1]}))

    assert payload_data(payload) == dataclasses.asdict(payload)
    assert type(payload_data(payload)["point"]) is Point


def test_a_class_and_a_plain_object_are_payloads_as_they_are() -> None:
    plain = object()

    assert payload_data(plain) is plain
    assert payload_data(Order) is Order


def test_what_is_both_the_key_and_validated_is_hashed_once() -> None:
    hashed: list[bytes] = []
    extractor = KeyExtractor(event_key_jmespath="order", payload_validation_jmespath="order")
    extractor.hash_function = lambda data: (hashed.append(data), hashlib.md5(data))[1]

    digest, validated, _ = extractor.digests({"order": {"id": 7}})

    assert digest == validated == hashlib.md5(b'{"id": 7}').hexdigest()
    assert hashed == [b'{"id": 7}']


@pytest.mark.parametrize("expression", ["a", "a.b", "_x9.Y_", "true", "null.false"])
def test_a_plain_path_selects_what_jmespath_selects(expression: str) -> None:
    payloads: list[Any] = [
        {"a": {"b": 1}, "_x9": {"Y_": [2]}, "true": 3, "null": {"false": 4}},
        {"a": [{"b": 1}], "_x9": None, "true": False},
        {},
        [],
        "a",
        None,
    ]

    for payload in payloads:
        assert Selection(expression, None).of(payload) == jmespath.search(expression, payload)
        assert Selection(expression, None).with_gap(payload) == (jmespath.search(expression, payload), None)


@pytest.mark.parametrize("expression", ["a-b", "1a", "a..b", "a b", ".a", "a."])
def test_what_only_looks_like_a_plain_path_is_still_refused(expression: str) -> None:
    with pytest.raises(ParseError):
        Selection(expression, None)
