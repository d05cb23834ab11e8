"""The record as a value."""

from __future__ import annotations

import copy
import datetime as dt
import inspect
import json
import pickle
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from persistence.datarecord import STATUS_CONSTANTS, DataRecord, OffloadedResult, Status
from persistence.exceptions import IdempotencyInvalidStatusError

EXPIRY_S = 1_800_000_000

#: Every field with a value that is not its default, under the constructor's names.
ALL_FIELDS: dict[str, Any] = {
    "idempotency_key": "static",
    "status": "COMPLETED",
    "expiry_timestamp": EXPIRY_S,
    "in_progress_expiry_timestamp": 1_800_000_000_250,
    "response_data": '{"secret": 42}',
    "payload_hash": "5ebe2294ecd0e0f08eab7690d2a6ee69",
    "sort_key": "fn#1",
    "owner_token": "token-a",
    "generation": 7,
    "holder": "request-1",
    "result_kept": False,
    "deadline_ms": 1_800_000_000_000,
    "takes_over_orphans": False,
    "supersedes": 6,
    "took_over": True,
    "fresh_until_ms": 1_800_000_000_000,
}
ATTRIBUTES = ["stored_status" if name == "status" else name for name in ALL_FIELDS]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the wall clock that a record's own properties read."""

    def set_to(now: dt.datetime) -> None:
        monkeypatch.setattr("time.time", now.timestamp)

    return set_to


def second(epoch_s: int, microsecond: int = 0) -> dt.datetime:
    return dt.datetime.fromtimestamp(epoch_s, tz=dt.UTC).replace(microsecond=microsecond)


def test_the_first_seven_arguments_are_those_of_powertools_in_its_order() -> None:
    record = DataRecord("k", "COMPLETED", 1, 2, "3", "4", "5")

    assert record.idempotency_key == "k"
    assert record.stored_status == "COMPLETED"
    assert record.expiry_timestamp == 1
    assert record.in_progress_expiry_timestamp == 2
    assert record.response_data == "3"
    assert record.payload_hash == "4"
    assert record.sort_key == "5"


def test_everything_beyond_powertools_arguments_is_by_keyword_only() -> None:
    parameters = inspect.signature(DataRecord).parameters.values()

    by_keyword = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]

    assert by_keyword == [
        "owner_token",
        "generation",
        "holder",
        "result_kept",
        "packed_result",
        "region",
        "deadline_ms",
        "takes_over_orphans",
        "supersedes",
        "took_over",
        "fresh_until_ms",
    ]


def test_a_record_of_a_key_alone_has_powertools_defaults() -> None:
    record = DataRecord("k")

    assert (record.stored_status, record.response_data, record.payload_hash) == ("", "", "")
    assert (record.expiry_timestamp, record.in_progress_expiry_timestamp, record.sort_key) == (None, None, None)
    assert (record.owner_token, record.generation, record.holder, record.result_kept) == ("", 0, "", True)
    assert (record.packed_result, record.region) == (None, "")
    assert (record.deadline_ms, record.takes_over_orphans, record.supersedes, record.took_over) == (None, True, None, False)
    assert record.fresh_until_ms is None


@pytest.mark.parametrize("packed", [b"\x1f\x8bsecret", OffloadedResult("s3://bucket/place", "digest", 7)])
def test_a_packed_result_is_neither_shown_nor_taken_for_none(packed: Any) -> None:
    record = DataRecord("k", "COMPLETED", packed_result=packed)

    assert "secret" not in repr(record)
    assert "place" not in repr(record)
    with pytest.raises(ValueError, match="^The result of idempotency key k is packed; the store's `load` unpacks it$"):
        record.response_json_as_dict()


@pytest.mark.parametrize(("sort_key", "key"), [(None, "pk"), ("sk", "sk"), ("", "")])
def test_the_key_is_in_the_sort_key_where_there_is_one(sort_key: str | None, key: str) -> None:
    assert DataRecord("pk", sort_key=sort_key).key == key


@pytest.mark.parametrize(
    ("now", "expired"),
    [
        (second(EXPIRY_S - 1, 999_999), False),
        (second(EXPIRY_S), False),
        (second(EXPIRY_S, 999_999), False),
        (second(EXPIRY_S + 1), True),
    ],
)
@pytest.mark.parametrize("expiry", [EXPIRY_S, Decimal(EXPIRY_S)], ids=["int", "Decimal"])
def test_a_record_reads_as_expired_from_the_second_after_its_expiry(
    at: Any, now: dt.datetime, expired: bool, expiry: Any
) -> None:
    at(now)
    record = DataRecord("k", "COMPLETED", expiry)

    assert record.is_expired is expired
    assert record.status == ("EXPIRED" if expired else "COMPLETED")


@pytest.mark.parametrize("expiry", [None, 0])
def test_a_record_without_an_expiry_never_reads_as_expired(expiry: int | None) -> None:
    record = DataRecord("k", "INPROGRESS", expiry)

    assert record.is_expired is False
    assert record.status == "INPROGRESS"


@pytest.mark.parametrize("status", ["", "completed", "PAUSED"])
def test_a_status_that_nobody_knows_is_an_error_that_names_it(status: str) -> None:
    record = DataRecord("k", status)

    with pytest.raises(IdempotencyInvalidStatusError) as raised:
        _ = record.status
    assert raised.value.args == (status,)


def test_an_expired_record_reads_as_expired_whatever_its_status() -> None:
    assert DataRecord("k", "PAUSED", expiry_timestamp=1).status == "EXPIRED"


def test_the_status_is_plain_text_for_code_that_serializes_it() -> None:
    assert type(DataRecord("k", "COMPLETED").status) is str
    assert type(DataRecord("k", "COMPLETED", 1).status) is str


def test_the_words_of_powertools_are_all_there() -> None:
    assert dict(STATUS_CONSTANTS) == {"INPROGRESS": "INPROGRESS", "COMPLETED": "COMPLETED", "EXPIRED": "EXPIRED"}
    assert [str(status) for status in Status] == list(STATUS_CONSTANTS)


@pytest.mark.parametrize(
    ("response_data", "expected"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("[]", []),
        ("0", 0),
        ("false", False),
        ('""', ""),
        ("null", None),
        ("", None),
        (None, None),
    ],
)
def test_the_stored_result_reads_as_any_json_value(response_data: Any, expected: object) -> None:
    result = DataRecord("k", response_data=response_data).response_json_as_dict()

    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("expiry", [EXPIRY_S, Decimal(EXPIRY_S)], ids=["int", "Decimal"])
def test_the_expiry_reads_as_naive_local_time(expiry: Any) -> None:
    moment = DataRecord("k", expiry_timestamp=expiry).get_expiration_datetime()

    assert moment == dt.datetime.fromtimestamp(EXPIRY_S)
    assert moment is not None
    assert moment.tzinfo is None


@pytest.mark.parametrize("expiry", [None, 0])
def test_a_record_without_an_expiry_has_no_expiration_date(expiry: int | None) -> None:
    assert DataRecord("k", expiry_timestamp=expiry).get_expiration_datetime() is None


@pytest.mark.parametrize("name", [*ATTRIBUTES, "new"])
def test_a_record_cannot_be_changed_and_says_what_to_do_instead(name: str) -> None:
    record = DataRecord(**ALL_FIELDS)
    before = record.replace()

    with pytest.raises(AttributeError, match=f"immutable; use replace\\({name}="):
        setattr(record, name, "x")
    with pytest.raises(AttributeError, match=f"immutable; {name} cannot be deleted"):
        delattr(record, name)
    assert record == before


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_replace_changes_the_named_field_in_a_copy_and_no_other(name: str) -> None:
    record = DataRecord(**ALL_FIELDS)

    changed = record.replace(**{name: "changed"})

    attribute = "stored_status" if name == "status" else name
    assert getattr(changed, attribute) == "changed"
    others = set(ATTRIBUTES) - {attribute}
    assert {n: getattr(changed, n) for n in others} == {n: getattr(record, n) for n in others}
    assert record == DataRecord(**ALL_FIELDS)


def test_replace_refuses_fields_that_do_not_exist_and_names_them() -> None:
    record = DataRecord("k")

    with pytest.raises(TypeError, match="a DataRecord has no colour, size$"):
        record.replace(size=1, generation=2, colour="red")
    assert record == DataRecord("k")


def test_replace_keeps_the_class_of_a_subclass() -> None:
    class Mine(DataRecord):
        pass

    assert type(Mine("k").replace(generation=2)) is Mine


def test_records_with_equal_fields_are_equal_and_hash_alike() -> None:
    one, other = DataRecord(**ALL_FIELDS), DataRecord(**ALL_FIELDS)

    assert one == other
    assert hash(one) == hash(other)
    assert {one} == {other}


NEVER_STORED = {"deadline_ms", "takes_over_orphans", "supersedes", "took_over", "fresh_until_ms"}


@pytest.mark.parametrize("name", [name for name in ALL_FIELDS if name not in NEVER_STORED])
def test_records_that_differ_in_a_stored_field_are_not_equal(name: str) -> None:
    record = DataRecord(**ALL_FIELDS)

    assert record != record.replace(**{name: None})


@pytest.mark.parametrize("name", sorted(NEVER_STORED))
def test_records_that_differ_in_what_is_never_stored_are_equal(name: str) -> None:
    """An offer equals the record that a store keeps of it."""
    record = DataRecord(**ALL_FIELDS)

    assert record == record.replace(**{name: None})


def test_a_record_equals_nothing_that_is_no_record() -> None:
    assert DataRecord("k") != "k"
    assert DataRecord("k") != SimpleNamespace(**{name: getattr(DataRecord("k"), name) for name in ATTRIBUTES})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_survives_pickling_with_every_field(protocol: int) -> None:
    record = DataRecord(**ALL_FIELDS)

    assert pickle.loads(pickle.dumps(record, protocol)) == record


def test_a_record_can_be_copied() -> None:
    record = DataRecord(**ALL_FIELDS)

    assert copy.copy(record) == record
    assert copy.deepcopy(record) == record


def test_a_records_text_shows_neither_its_result_nor_its_payload_hash_nor_its_token() -> None:
    text = repr(DataRecord(**ALL_FIELDS))

    assert "secret" not in text
    assert ALL_FIELDS["payload_hash"] not in text
    assert ALL_FIELDS["owner_token"] not in text
    for shown in ("static", "fn#1", "COMPLETED", str(EXPIRY_S), "1800000000250", "generation=7", "request-1"):
        assert shown in text
    assert str(DataRecord(**ALL_FIELDS)) == text


@pytest.mark.parametrize("text", [' {"a": 1}', '{"a": 1} ', "\n7", '"x"', "null", "[1, 2]", "NaN"])
def test_a_stored_result_is_read_as_json_whatever_is_around_it(text: str) -> None:
    found = DataRecord("k", response_data=text).response_json_as_dict()

    assert repr(found) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["garbage", '{"a": 1} x', "{", " "])
def test_a_stored_result_that_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        DataRecord("k", response_data=text).response_json_as_dict()
