"""When a request was issued: which forms are read, and which are errors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock

import jmespath.exceptions
import pydantic
import pytest

from idempotency.issue_time import IssueTime
from idempotency.key import SelectionError
from persistence.exceptions import IdempotencyKeyError

ISSUED_MS = 1_800_000_000_250
AT = IssueTime("time", None)


@pytest.mark.parametrize(
    "time",
    [
        1_800_000_000_250,
        1_800_000_000.25,
        1_800_000_000_250.9,
        Decimal("1800000000.25"),
        "1800000000250",
        " 1800000000.250 ",
        "2027-01-15T08:00:00.250Z",
        "2027-01-15t08:00:00.250z",
        "2027-01-15T08:00:00,2509+00:00",
        "2027-01-15 10:00:00.250+02:00",
        "2027-01-15T08:00:00.250",
        "20270115T080000.250Z",
        datetime(2027, 1, 15, 8, 0, 0, 250_999, tzinfo=UTC),
        datetime(2027, 1, 15, 3, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=-5))),
        datetime(2027, 1, 15, 8, 0, 0, 250_000),
    ],
    ids=repr,
)
def test_seconds_milliseconds_and_iso_8601_are_read(time: Any) -> None:
    assert AT.ms({"time": time}) == ISSUED_MS


@pytest.mark.parametrize(
    ("time", "issued_ms"),
    [
        (0, 0),
        ("0", 0),
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        ("100000000000", 100_000_000_000),
        (99_999_999_999_999, 99_999_999_999_999),
        ("20270115", 20_270_115_000),
        ("2027-01-15", 1_799_971_200_000),
        ("1970-01-01T00:00:00Z", 0),
        ("5138-11-16T09:46:39.999Z", 99_999_999_999_999),
    ],
)
def test_a_number_is_seconds_below_a_hundred_thousand_millions_and_milliseconds_from_there(time: Any, issued_ms: int) -> None:
    assert AT.ms({"time": time}) == issued_ms


UNREADABLE = [
    True,
    False,
    "",
    " ",
    "yesterday",
    "secret",
    "12:00",
    "1.8e9",
    "1_800_000_000",
    "+1800000000",
    "-1",
    -1,
    -0.5,
    "\N{FULLWIDTH DIGIT ONE}800000000",
    "nan",
    "Infinity",
    float("nan"),
    float("inf"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    100_000_000_000_000,
    "1800000000250000",
    1_800_000_000_250_000_000,
    "9" * 10_000,
    10**400,
    1e300,
    "2027-13-01T00:00:00Z",
    "2027-01-15T24:61:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "1969-12-31T23:59:59.999Z",
    "9999-12-31T23:59:59Z",
    "Fri, 15 Jan 2027 08:00:00 GMT",
    b"1800000000",
    1j,
    [],
    [1_800_000_000],
    {},
    {"seconds": 1_800_000_000},
    date(2027, 1, 15),
    MagicMock(),
    object(),
]


@pytest.mark.parametrize("time", UNREADABLE, ids=[f"{number}-{type(time).__name__}" for number, time in enumerate(UNREADABLE)])
def test_an_unreadable_time_is_an_error_that_names_the_expression_and_not_the_value(time: Any) -> None:
    with pytest.raises(IdempotencyKeyError) as raised:
        AT.ms({"time": time})

    assert str(raised.value) == (
        f"The payload has no readable time of issue (found {type(time).__name__}) at 'time': it must be epoch seconds, epoch "
        "milliseconds or ISO 8601. The function was not run"
    )
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("payload", [{}, {"time": None}, {"detail": {"time": 1}}, [], "text", None, 5])
def test_a_payload_without_a_time_is_an_error(payload: Any) -> None:
    with pytest.raises(IdempotencyKeyError, match=r"^The payload has no time of issue at 'time': it must be epoch seconds, "):
        AT.ms(payload)


@dataclass
class Order:
    id: int
    issued: datetime


@dataclass
class Envelope:
    order: Order
    secret: Any


class Model(pydantic.BaseModel):
    id: int
    issued: datetime


class Event:
    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw_event = raw


WHEN = datetime(2027, 1, 15, 8, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "payload"),
    [
        ("attributes.SentTimestamp", {"attributes": {"SentTimestamp": "1800000000250"}}),
        ("attributes.SentTimestamp", Event({"attributes": {"SentTimestamp": "1800000000250"}})),
        ('headers."x-issued-at"', {"headers": {"x-issued-at": "2027-01-15T08:00:00.250Z"}}),
        ("powertools_json(body).issued", {"body": '{"issued": 1800000000.25}'}),
        ("issued || time", {"time": "1800000000250"}),
        ("issued", Order(1, WHEN)),
        ("order.issued", Envelope(Order(1, WHEN), object())),
        ("issued", Model(id=1, issued=WHEN)),
    ],
)
def test_the_time_is_found_wherever_the_expression_leads(expression: str, payload: Any) -> None:
    assert IssueTime(expression, None).ms(payload) == ISSUED_MS


def test_an_expression_that_fails_says_so_without_the_value() -> None:
    with pytest.raises(SelectionError) as raised:
        IssueTime("powertools_json(body)", None).ms({"body": "{secret"})

    assert "secret" not in str(raised.value)


def test_an_expression_that_is_no_jmespath_is_refused_when_it_is_made() -> None:
    with pytest.raises(jmespath.exceptions.ParseError):
        IssueTime("a..b", None)


def test_options_of_jmespath_count_here_too() -> None:
    class Functions(jmespath.functions.Functions):
        @jmespath.functions.signature({"types": ["string"]})
        def _func_half(self, text: str) -> int:
            return int(text) // 2

    at = IssueTime("half(time)", {"custom_functions": Functions()})

    assert at.ms({"time": "3600000000500"}) == ISSUED_MS
