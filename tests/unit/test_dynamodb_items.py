"""Records as items, and the exact request of each operation."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from persistence._dynamodb_items import ItemFormat, item_bytes, value_bytes
from persistence.datarecord import DataRecord, OffloadedResult

NOW_MS = 1_800_000_000_250
DEFAULTS: dict[str, Any] = {
    "key_attr": "id",
    "sort_key_attr": None,
    "static_pk_value": "idempotency#fn",
    "expiry_attr": "expiration",
    "in_progress_expiry_attr": "in_progress_expiration",
    "status_attr": "status",
    "data_attr": "data",
    "validation_key_attr": "validation",
    "owner_token_attr": "owner_token",
    "generation_attr": "generation",
    "holder_attr": "holder",
    "result_not_kept_attr": "result_not_kept",
    "region_attr": "region",
}
#: Names that DynamoDB takes in no expression: a reserved word, a dot, a leading digit, a space.
ODD: dict[str, Any] = {
    "key_attr": "key",
    "sort_key_attr": "range",
    "static_pk_value": "payments",
    "expiry_attr": "ttl",
    "in_progress_expiry_attr": "lease.end",
    "status_attr": "state",
    "data_attr": "0data",
    "validation_key_attr": "hash",
    "owner_token_attr": "the owner",
    "generation_attr": "counter",
    "holder_attr": "by",
    "result_not_kept_attr": "lost",
    "region_attr": "at",
}
NAME_OPTIONS = [option for option in DEFAULTS if option != "static_pk_value"]
PLAIN = ItemFormat(**DEFAULTS)
COMPOSITE = ItemFormat(**ODD)

OFFER = DataRecord(
    "fn#1",
    "INPROGRESS",
    1_800_003_600,
    1_800_000_060_250,
    payload_hash="hash",
    owner_token="token",
    generation=1,
    holder="request-1",
)
DONE = DataRecord("fn#1", "COMPLETED", 1_800_003_600, 1_800_000_060_250, '{"a": 1}', "hash", owner_token="token", generation=1)
#: As Powertools writes and claims: no token, no generation, no holder, no lease.
FOREIGN = DataRecord("fn#1", "INPROGRESS", 1_800_003_600)


def used(request: dict[str, Any], sign: str) -> set[str]:
    expressions = (value for name, value in request.items() if name.endswith("Expression"))
    return {found for expression in expressions for found in re.findall(rf"{sign}\w+", expression)}


# Keys and items


def test_a_plain_table_keeps_the_key_under_its_partition_key() -> None:
    assert PLAIN.key("fn#1") == {"id": {"S": "fn#1"}}


def test_a_composite_table_keeps_the_key_under_its_sort_key() -> None:
    assert COMPOSITE.key("fn#1") == {"key": {"S": "payments"}, "range": {"S": "fn#1"}}


def test_an_item_of_this_library_reads_as_its_record() -> None:
    item = {
        "id": {"S": "fn#1"},
        "expiration": {"N": "1800003600"},
        "in_progress_expiration": {"N": "1800000060250"},
        "status": {"S": "COMPLETED"},
        "data": {"S": '{"a": 1}'},
        "validation": {"S": "hash"},
        "owner_token": {"S": "token"},
        "generation": {"N": "3"},
        "holder": {"S": "request-1"},
        "result_not_kept": {"BOOL": True},
        "someone_elses": {"M": {}},
    }

    record = PLAIN.record(item)

    assert record == DataRecord(
        "fn#1",
        "COMPLETED",
        1_800_003_600,
        1_800_000_060_250,
        '{"a": 1}',
        "hash",
        owner_token="token",
        generation=3,
        holder="request-1",
        result_kept=False,
    )


def test_an_item_of_a_composite_table_reads_with_both_its_keys() -> None:
    item = {"key": {"S": "payments"}, "range": {"S": "fn#1"}, "state": {"S": "INPROGRESS"}, "lease.end": {"N": "0"}}

    record = COMPOSITE.record(item)

    assert (record.idempotency_key, record.sort_key, record.key) == ("payments", "fn#1", "fn#1")
    assert record.in_progress_expiry_timestamp == 0


def test_an_item_of_powertools_reads_with_defaults_for_what_it_lacks() -> None:
    item = {"id": {"S": "fn#1"}, "status": {"S": "INPROGRESS"}, "expiration": {"N": "1800003600"}}

    assert PLAIN.record(item) == DataRecord("fn#1", "INPROGRESS", 1_800_003_600)


def test_an_item_without_an_expiry_reads_as_one_that_never_expires() -> None:
    assert PLAIN.record({"id": {"S": "fn#1"}, "status": {"S": "COMPLETED"}}) == DataRecord("fn#1", "COMPLETED")


@pytest.mark.parametrize(
    "name",
    ["data", "validation", "owner_token", "holder", "expiration", "in_progress_expiration", "generation"],
)
def test_a_null_reads_as_an_absent_attribute(name: str) -> None:
    item = {"id": {"S": "fn#1"}, "status": {"S": "COMPLETED"}, name: {"NULL": True}}

    assert PLAIN.record(item) == DataRecord("fn#1", "COMPLETED")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("0", 0),
        ("1800003600", 1_800_003_600),
        ("1800003600.75", 1_800_003_600),
        ("1.8000036E+9", 1_800_003_600),
        ("-1", -1),
        ("-0.5", 0),
        ("12345678901234567890123456789012345678", 12345678901234567890123456789012345678),
    ],
)
def test_a_number_of_any_writer_reads_as_whole(stored: str, expected: int) -> None:
    item = {
        "id": {"S": "fn#1"},
        "status": {"S": "COMPLETED"},
        "expiration": {"N": stored},
        "in_progress_expiration": {"N": stored},
        "generation": {"N": stored},
    }

    record = PLAIN.record(item)

    assert (record.expiry_timestamp, record.in_progress_expiry_timestamp, record.generation) == (expected,) * 3
    assert type(record.expiry_timestamp) is int


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"id": None}, "'id' of type S"),
        ({"id": {"N": "1"}}, "'id' of type S"),
        ({"status": None}, "'status' of type S"),
        ({"status": {"BOOL": True}}, "'status' of type S"),
        ({"expiration": {"S": "1800003600"}}, "'expiration' of type N"),
        ({"expiration": {"N": "soon"}}, "'expiration' of type N"),
        ({"expiration": {"N": "Infinity"}}, "'expiration' of type N"),
        ({"expiration": {"N": "NaN"}}, "'expiration' of type N"),
        ({"in_progress_expiration": {"BOOL": True}}, "'in_progress_expiration' of type N"),
        ({"generation": {"S": "1"}}, "'generation' of type N"),
        ({"owner_token": {"N": "1"}}, "'owner_token' of type S"),
    ],
)
def test_an_item_that_is_no_record_is_refused_by_the_attribute_that_does_not_fit(change: dict[str, Any], culprit: str) -> None:
    item = {"id": {"S": "fn#1"}, "status": {"S": "COMPLETED"}, "expiration": {"N": "1800003600"}, **change}
    item = {name: value for name, value in item.items() if value is not None}

    with pytest.raises(ValueError, match=f"^The item is no idempotency record: it has no {culprit}$"):
        PLAIN.record(item)


@pytest.mark.parametrize("data", [{"M": {"secret": {"S": "x"}}}, {"N": "0"}, {"SS": ["secret"]}, {"BOOL": False}])
def test_a_result_of_another_kind_is_refused_and_never_replayed_as_none(data: dict[str, Any]) -> None:
    item = {"id": {"S": "fn#1"}, "status": {"S": "COMPLETED"}, "data": data}

    with pytest.raises(ValueError, match="^The item is no idempotency record: it has no 'data' of type S$"):
        PLAIN.record(item)


PLACE = OffloadedResult("s3://bucket/results/1", "0f" * 32, 77)
#: A result as a record has it, and as its item has it.
RESULTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"response_data": '{"a": 1}'}, {"data": {"S": '{"a": 1}'}}),
    ({"packed_result": b"\x1f\x8b..."}, {"data": {"B": b"\x1f\x8b..."}}),
    (
        {"packed_result": PLACE},
        {"data": {"M": {"location": {"S": PLACE.location}, "sha256": {"S": "0f" * 32}, "size": {"N": "77"}}}},
    ),
    ({"result_kept": False}, {"result_not_kept": {"BOOL": True}}),
    ({}, {}),
]
FORMS = ["text", "compressed", "offloaded", "not kept", "none"]
IN_EVERY_FORM = pytest.mark.parametrize(("result", "attribute"), RESULTS, ids=FORMS)


@IN_EVERY_FORM
def test_a_result_in_every_form_is_written_and_read(result: Any, attribute: Any) -> None:
    record = DONE.replace(**{"response_data": "", **result}, region="eu-west-1", holder="request-1")

    item = PLAIN.item(record)

    assert {name: item[name] for name in attribute} == attribute
    assert item["region"] == {"S": "eu-west-1"}
    assert PLAIN.record(item) == record


@IN_EVERY_FORM
def test_a_completion_writes_a_result_in_every_form(result: Any, attribute: Any) -> None:
    request = PLAIN.complete(DONE.replace(**{"response_data": "", **result}))

    names, values = request["ExpressionAttributeNames"], request["ExpressionAttributeValues"]
    placeholder = "result_not_kept" if "result_not_kept" in attribute else "response_data"
    assert {names[f"#{placeholder}"]: values[f":{placeholder}"]} == (attribute or {"data": {"S": ""}})


def test_a_record_of_another_library_is_written_as_it_was_read() -> None:
    item = {"id": {"S": "fn#1"}, "status": {"S": "COMPLETED"}, "data": {"S": "1"}}

    assert PLAIN.item(PLAIN.record(item)) == item


NUMBER_77 = 2


@pytest.mark.parametrize(
    ("result", "size"),
    [
        (RESULTS[0][0], len("data") + 8),
        (RESULTS[1][0], len("data") + 5),
        (RESULTS[2][0], len("data") + 3 + (1 + 8 + 21) + (1 + 6 + 64) + (1 + 4 + NUMBER_77)),
        (RESULTS[3][0], len("result_not_kept") + 1),
        (RESULTS[4][0], 0),
    ],
    ids=FORMS,
)
def test_the_size_of_an_item_counts_names_and_values(result: Any, size: int) -> None:
    """By hand: of strings and binaries their bytes, of numbers a byte for two significant digits and one more, of maps 3."""
    record = DataRecord("fn#é", "COMPLETED", 1_800_003_600, **result)
    rest = len("id") + 5 + len("status") + len("COMPLETED") + len("expiration") + 5

    assert PLAIN.size(record) == rest + size


def test_the_size_of_a_text_of_many_bytes_per_character_is_that_of_its_bytes() -> None:
    assert PLAIN.size(DONE.replace(response_data="é日")) - PLAIN.size(DONE.replace(response_data="é")) == 3


#: Values and the bytes of each, by the rules that AWS documents, and as DynamoDB Local counts.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
SIZES: list[tuple[dict[str, Any], int]] = [
    ({"S": ""}, 0),
    ({"S": "ab"}, 2),
    ({"S": "é"}, 2),
    ({"S": "日"}, 3),
    ({"S": "a😀"}, 5),
    ({"B": b""}, 0),
    ({"B": b"\x00\xff"}, 2),
    ({"B": bytearray(b"abc")}, 3),
    ({"BOOL": True}, 1),
    ({"BOOL": False}, 1),
    ({"NULL": True}, 1),
    ({"SS": ["a", "bc", "é"]}, 5),
    ({"BS": [b"a", b"bc"]}, 3),
    ({"L": []}, 3),
    ({"L": [{"S": "ab"}]}, 3 + 1 + 2),
    ({"L": [{"S": "ab"}, {"NULL": True}, {"BOOL": True}]}, 3 + 3 + 2 + 1 + 1),
    ({"L": [{"L": [{"L": []}]}]}, 3 + 1 + 3 + 1 + 3),
    ({"M": {}}, 3),
    ({"M": {"ab": {"S": "c"}}}, 3 + 1 + 2 + 1),
    ({"M": {"é": {"B": b"c"}, "": {"NULL": True}}}, 3 + 2 + 2 + 1 + 0 + 1),
    ({"M": {"a": {"L": [{"M": {"b": {"SS": ["c"]}}}]}}}, 3 + (1 + 1) + 3 + 1 + 3 + (1 + 1) + 1),
]


@pytest.mark.parametrize(("value", "size"), SIZES, ids=repr)
def test_the_size_of_a_value_of_every_type_is_the_documented_one(value: dict[str, Any], size: int) -> None:
    assert value_bytes(value) == size


@pytest.mark.parametrize(("value", "size"), SIZES, ids=repr)
def test_an_attribute_has_the_bytes_of_its_name_besides(value: dict[str, Any], size: int) -> None:
    assert item_bytes({"name": value}) == 4 + size
    assert item_bytes({"é日": value, "": {"BOOL": True}, "n": value}) == 5 + size + 0 + 1 + 1 + size


def test_no_attributes_have_no_bytes() -> None:
    assert item_bytes({}) == 0


#: Numbers and the bytes that DynamoDB Local counts for them, measured by the largest item that it takes.
NUMBER_SIZES = {
    "0": 1,
    "1": 2,
    "12": 2,
    "123": 3,
    "1234": 3,
    "-1": 3,
    "-12": 3,
    "-123": 4,
    "100": 2,
    "101": 3,
    "1000": 2,
    "1010": 3,
    "1.2": 3,
    "1.23": 3,
    "12.3": 3,
    "0.1": 2,
    "0.01": 2,
    "1E+125": 2,
    "1E-120": 2,
    "9" * 38: 20,
    "-" + "9" * 38: 21,
}


@pytest.mark.parametrize(("number", "size"), NUMBER_SIZES.items())
def test_a_number_is_never_taken_for_smaller_than_it_is(number: str, size: int) -> None:
    """A record that is believed to fit must fit."""
    assert value_bytes({"N": number}) >= size
    assert value_bytes({"NS": [number, number]}) == 2 * value_bytes({"N": number})


def test_numbers_have_at_least_the_documented_bytes() -> None:
    """A byte for two significant digits, without the zeros before and behind them, and one more."""
    numbers = random.Random(20_261_121)
    for _ in range(2_000):
        digits = tuple(numbers.randrange(10) for _ in range(numbers.randint(1, 38)))
        number = Decimal((numbers.randint(0, 1), digits, numbers.randint(-90, 80)))
        significant = "".join(map(str, digits)).strip("0")

        assert value_bytes({"N": str(number)}) >= 1 + (len(significant) + 1) // 2, number


@pytest.mark.parametrize(("number", "size"), NUMBER_SIZES.items())
def test_a_number_has_the_bytes_that_the_engine_counts(number: str, size: int) -> None:
    """However it is written: a larger count would refuse items that DynamoDB takes."""
    assert value_bytes({"N": number}) == size
    assert value_bytes({"N": f"{number}0" if "." in number else number}) == size
    assert value_bytes({"N": f"{Decimal(number):E}"}) == size


@pytest.mark.parametrize("zero", ["0", "-0", "0.00", "0E+5", "000"])
def test_zero_has_one_byte(zero: str) -> None:
    assert value_bytes({"N": zero}) == 1


def test_the_names_of_all_attributes_are_known() -> None:
    assert PLAIN.attributes == {name for option, name in DEFAULTS.items() if option not in {"static_pk_value", "sort_key_attr"}}
    assert COMPOSITE.attributes == {name for option, name in ODD.items() if option != "static_pk_value"}


def test_an_item_of_a_composite_table_needs_its_sort_key() -> None:
    with pytest.raises(ValueError, match="it has no 'range' of type S"):
        COMPOSITE.record({"key": {"S": "payments"}, "state": {"S": "COMPLETED"}})


# Names


@pytest.mark.parametrize("option", [option for option in NAME_OPTIONS if option != "sort_key_attr"])
@pytest.mark.parametrize("name", ["", None, 5])
def test_an_attribute_needs_a_name(option: str, name: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be an attribute's name, not {name!r}$"):
        ItemFormat(**{**ODD, option: name})


@pytest.mark.parametrize("name", ["", 5])
def test_a_sort_key_needs_a_name_or_is_left_out(name: Any) -> None:
    with pytest.raises(ValueError, match=f"^sort_key_attr must be an attribute's name, not {name!r}$"):
        ItemFormat(**{**DEFAULTS, "sort_key_attr": name})


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for a, b in product(NAME_OPTIONS, NAME_OPTIONS) if NAME_OPTIONS.index(a) < NAME_OPTIONS.index(b)],
)
def test_no_name_serves_two_attributes(first: str, second: str) -> None:
    with pytest.raises(ValueError, match=r"cannot (both )?be "):
        ItemFormat(**{**ODD, first: "same", second: "same"})


def test_a_name_that_serves_two_attributes_is_named_with_both() -> None:
    with pytest.raises(ValueError, match=r"^status_attr and data_attr cannot both be \[x\]$"):
        ItemFormat(**{**DEFAULTS, "status_attr": "x", "data_attr": "x"})


def test_equal_key_names_are_refused_in_powertools_words() -> None:
    with pytest.raises(ValueError, match=r"^key_attr \[id\] and sort_key_attr \[id\] cannot be the same!$"):
        ItemFormat(**{**DEFAULTS, "sort_key_attr": "id"})


def test_the_static_partition_value_may_equal_any_name() -> None:
    assert ItemFormat(**{**ODD, "static_pk_value": "key"}).key("fn#1")["key"] == {"S": "key"}


# Requests


def test_a_first_claim_is_written_only_where_there_is_no_record() -> None:
    assert PLAIN.claim(OFFER, NOW_MS) == {
        "Item": {
            "id": {"S": "fn#1"},
            "expiration": {"N": "1800003600"},
            "status": {"S": "INPROGRESS"},
            "in_progress_expiration": {"N": "1800000060250"},
            "owner_token": {"S": "token"},
            "generation": {"N": "1"},
            "holder": {"S": "request-1"},
            "validation": {"S": "hash"},
        },
        "ConditionExpression": "attribute_not_exists(#id)",
        "ExpressionAttributeNames": {"#id": "id"},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_claim_writes_no_attribute_that_it_has_no_value_for() -> None:
    bare = DataRecord("fn#1", "INPROGRESS", 1_800_003_600, generation=1)

    assert PLAIN.claim(bare, NOW_MS)["Item"] == {
        "id": {"S": "fn#1"},
        "expiration": {"N": "1800003600"},
        "status": {"S": "INPROGRESS"},
        "generation": {"N": "1"},
    }


def test_a_lease_that_ends_at_the_epoch_is_written() -> None:
    offer = OFFER.replace(in_progress_expiry_timestamp=0)

    assert PLAIN.claim(offer, NOW_MS)["Item"]["in_progress_expiration"] == {"N": "0"}


def test_a_takeover_names_the_generation_that_it_supersedes() -> None:
    request = PLAIN.claim(OFFER.replace(generation=8, supersedes=7), NOW_MS)

    assert request["Item"]["generation"] == {"N": "8"}
    assert request["ConditionExpression"] == (
        "attribute_not_exists(#id) OR (#generation = :previous_generation AND "
        "((#status = :inprogress AND attribute_exists(#in_progress_expiry) AND #in_progress_expiry < :now_in_millis) OR "
        "(#expiry < :now AND (#status <> :inprogress OR attribute_not_exists(#in_progress_expiry)))))"
    )
    assert request["ExpressionAttributeNames"] == {
        "#id": "id",
        "#generation": "generation",
        "#expiry": "expiration",
        "#status": "status",
        "#in_progress_expiry": "in_progress_expiration",
    }
    assert request["ExpressionAttributeValues"] == {
        ":now": {"N": "1800000000"},
        ":now_in_millis": {"N": "1800000000250"},
        ":inprogress": {"S": "INPROGRESS"},
        ":previous_generation": {"N": "7"},
    }


def test_a_takeover_of_another_librarys_record_demands_that_it_still_has_no_generation() -> None:
    request = PLAIN.claim(OFFER.replace(generation=1, supersedes=0), NOW_MS)

    assert request["ConditionExpression"].startswith("attribute_not_exists(#id) OR (attribute_not_exists(#generation) AND ((")
    assert ":previous_generation" not in request["ExpressionAttributeValues"]
    assert request["Item"]["generation"] == {"N": "1"}


def test_a_claim_that_may_take_over_no_orphan_asks_only_for_an_expired_result() -> None:
    request = PLAIN.claim(OFFER.replace(generation=3, supersedes=2, takes_over_orphans=False), NOW_MS)

    assert request["ConditionExpression"] == (
        "attribute_not_exists(#id) OR (#generation = :previous_generation AND (#expiry < :now AND #status <> :inprogress))"
    )
    assert set(request["ExpressionAttributeValues"]) == {":now", ":inprogress", ":previous_generation"}


LATE = OFFER.replace(fresh_until_ms=NOW_MS - 1)


@pytest.mark.parametrize("late", [LATE, LATE.replace(supersedes=2, takes_over_orphans=False)])
def test_a_claim_that_is_too_old_and_has_no_orphan_to_take_over_is_never_granted(late: DataRecord) -> None:
    request = PLAIN.claim(late, NOW_MS)

    assert request["ConditionExpression"] == "attribute_exists(#id) AND attribute_not_exists(#id)"
    assert request["ExpressionAttributeNames"] == {"#id": "id"}


@pytest.mark.parametrize(
    ("supersedes", "seen"), [(2, "#generation = :previous_generation"), (0, "attribute_not_exists(#generation)")]
)
def test_a_claim_that_is_too_old_demands_that_the_orphan_is_still_there(supersedes: int, seen: str) -> None:
    request = PLAIN.claim(LATE.replace(supersedes=supersedes), NOW_MS)

    assert request["ConditionExpression"] == (
        f"{seen} AND ((#status = :inprogress AND attribute_exists(#in_progress_expiry) "
        "AND #in_progress_expiry < :now_in_millis) OR (#expiry < :now AND (#status <> :inprogress "
        "OR attribute_not_exists(#in_progress_expiry)))) AND #status = :inprogress"
    )


@pytest.mark.parametrize("supersedes", [None, 2])
def test_a_claim_that_is_not_too_old_yet_is_as_any_other(supersedes: int | None) -> None:
    offer = OFFER.replace(supersedes=supersedes)

    assert PLAIN.claim(offer.replace(fresh_until_ms=NOW_MS), NOW_MS) == PLAIN.claim(offer, NOW_MS)


def test_a_record_is_read_consistently() -> None:
    assert PLAIN.get("fn#1") == {"Key": {"id": {"S": "fn#1"}}, "ConsistentRead": True}


def test_a_completion_is_the_owners() -> None:
    assert PLAIN.complete(DONE) == {
        "Key": {"id": {"S": "fn#1"}},
        "UpdateExpression": "SET #response_data = :response_data, #expiry = :expiry, #status = :status, "
        "#validation_key = :validation_key",
        "ConditionExpression": "#owner_token = :owner_token",
        "ExpressionAttributeNames": {
            "#response_data": "data",
            "#expiry": "expiration",
            "#status": "status",
            "#validation_key": "validation",
            "#owner_token": "owner_token",
        },
        "ExpressionAttributeValues": {
            ":response_data": {"S": '{"a": 1}'},
            ":expiry": {"N": "1800003600"},
            ":status": {"S": "COMPLETED"},
            ":validation_key": {"S": "hash"},
            ":owner_token": {"S": "token"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_commit_is_the_owners_and_of_an_unfinished_record() -> None:
    assert PLAIN.commit(DONE) == {
        "Key": {"id": {"S": "fn#1"}},
        "UpdateExpression": "SET #response_data = :response_data, #expiry = :expiry, #status = :status, "
        "#validation_key = :validation_key",
        "ConditionExpression": "#owner_token = :owner_token AND #status = :inprogress",
        "ExpressionAttributeNames": {
            "#response_data": "data",
            "#expiry": "expiration",
            "#status": "status",
            "#validation_key": "validation",
            "#owner_token": "owner_token",
        },
        "ExpressionAttributeValues": {
            ":response_data": {"S": '{"a": 1}'},
            ":expiry": {"N": "1800003600"},
            ":status": {"S": "COMPLETED"},
            ":validation_key": {"S": "hash"},
            ":owner_token": {"S": "token"},
            ":inprogress": {"S": "INPROGRESS"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


@IN_EVERY_FORM
@pytest.mark.parametrize("layout", [PLAIN, COMPOSITE], ids=["plain", "composite"])
def test_a_commit_writes_what_a_completion_writes_and_demands_more(layout: ItemFormat, result: Any, attribute: Any) -> None:
    """The very condition of a release, so that of a commit and a release one is refused."""
    record = DONE.replace(**{"response_data": "", **result})

    commit, complete = layout.commit(record), layout.complete(record)

    inprogress = commit["ExpressionAttributeValues"].pop(":inprogress")
    assert inprogress == {"S": "INPROGRESS"}
    condition = commit.pop("ConditionExpression")
    assert condition == f"{complete.pop('ConditionExpression')} AND #status = :inprogress"
    assert commit == complete
    assert condition == layout.release(record)["ConditionExpression"]


def test_a_commit_without_a_token_leaves_every_record_alone_that_has_one_and_every_finished_one() -> None:
    request = PLAIN.commit(DONE.replace(owner_token="", payload_hash=""))

    assert request["ConditionExpression"] == "attribute_not_exists(#owner_token) AND #status = :inprogress"
    assert set(request["ExpressionAttributeValues"]) == {":response_data", ":expiry", ":status", ":inprogress"}


@pytest.mark.parametrize(
    ("changes", "result"),
    [({}, {"data": {"S": '{"a": 1}'}}), ({"result_kept": False, "response_data": ""}, {"result_not_kept": {"BOOL": True}})],
)
def test_a_completed_record_that_vanished_is_written_whole_if_there_is_none(changes: Any, result: Any) -> None:
    request = PLAIN.restore(DONE.replace(**changes))

    claimed = PLAIN.claim(DONE, NOW_MS)["Item"]
    assert request == {
        "Item": {**claimed, **result},
        "ConditionExpression": "attribute_not_exists(#id)",
        "ExpressionAttributeNames": {"#id": "id"},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_completion_without_a_token_leaves_every_record_alone_that_has_one() -> None:
    request = PLAIN.complete(DONE.replace(owner_token="", payload_hash=""))

    assert request["UpdateExpression"] == "SET #response_data = :response_data, #expiry = :expiry, #status = :status"
    assert request["ConditionExpression"] == "attribute_not_exists(#owner_token)"


def test_a_completion_without_its_result_says_so_and_writes_no_data() -> None:
    request = PLAIN.complete(DONE.replace(result_kept=False, response_data=""))

    assert request["UpdateExpression"] == (
        "SET #result_not_kept = :result_not_kept, #expiry = :expiry, #status = :status, #validation_key = :validation_key"
    )
    assert request["ExpressionAttributeValues"][":result_not_kept"] == {"BOOL": True}
    assert request["ExpressionAttributeNames"]["#result_not_kept"] == "result_not_kept"


def test_a_renewal_moves_both_ends_of_the_owners_unfinished_record() -> None:
    assert PLAIN.renew(OFFER) == {
        "Key": {"id": {"S": "fn#1"}},
        "UpdateExpression": "SET #in_progress_expiry = :in_progress_expiry, #expiry = :expiry",
        "ConditionExpression": "#owner_token = :owner_token AND #status = :inprogress "
        "AND #in_progress_expiry <= :in_progress_expiry",
        "ExpressionAttributeNames": {
            "#owner_token": "owner_token",
            "#status": "status",
            "#in_progress_expiry": "in_progress_expiration",
            "#expiry": "expiration",
        },
        "ExpressionAttributeValues": {
            ":owner_token": {"S": "token"},
            ":inprogress": {"S": "INPROGRESS"},
            ":in_progress_expiry": {"N": "1800000060250"},
            ":expiry": {"N": "1800003600"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_release_deletes_the_owners_unfinished_record() -> None:
    assert PLAIN.release(OFFER) == {
        "Key": {"id": {"S": "fn#1"}},
        "ConditionExpression": "#owner_token = :owner_token AND #status = :inprogress",
        "ExpressionAttributeNames": {"#owner_token": "owner_token", "#status": "status"},
        "ExpressionAttributeValues": {":owner_token": {"S": "token"}, ":inprogress": {"S": "INPROGRESS"}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_a_release_without_a_token_leaves_every_record_alone_that_has_one() -> None:
    request = PLAIN.release(FOREIGN)

    assert request["ConditionExpression"] == "attribute_not_exists(#owner_token) AND #status = :inprogress"
    assert request["ExpressionAttributeValues"] == {":inprogress": {"S": "INPROGRESS"}}


@pytest.mark.parametrize(
    ("record", "held"), [(OFFER, "#owner_token = :owner_token"), (FOREIGN, "attribute_not_exists(#owner_token)")]
)
def test_a_release_of_an_orphan_demands_that_its_lease_or_without_one_its_record_has_ended(record: DataRecord, held: str) -> None:
    request = PLAIN.release(record, 1_800_000_000_999)

    assert request["ConditionExpression"] == (
        f"{held} AND #status = :inprogress AND ((attribute_exists(#in_progress_expiry) AND #in_progress_expiry < :now_in_millis) "
        "OR (attribute_not_exists(#in_progress_expiry) AND #expiry < :now))"
    )
    names = {"#in_progress_expiry": "in_progress_expiration", "#expiry": "expiration"}
    assert names.items() <= request["ExpressionAttributeNames"].items()
    values = {":now_in_millis": {"N": "1800000000999"}, ":now": {"N": "1800000000"}}
    assert values.items() <= request["ExpressionAttributeValues"].items()


def test_a_record_read_from_a_composite_table_is_written_back_under_its_own_keys() -> None:
    record = DONE.replace(idempotency_key="payments", sort_key="fn#1")

    assert COMPOSITE.complete(record)["Key"] == {"key": {"S": "payments"}, "range": {"S": "fn#1"}}
    assert COMPOSITE.release(record)["Key"] == {"key": {"S": "payments"}, "range": {"S": "fn#1"}}


EVERY_REQUEST = [
    pytest.param(layout, operation, record, id=f"{name}-{operation}-{number}")
    for name, layout in [("plain", PLAIN), ("odd-names", COMPOSITE)]
    for operation, records in {
        "claim": [
            OFFER.replace(
                generation=(supersedes or 0) + 1,
                supersedes=supersedes,
                takes_over_orphans=takes_over,
                fresh_until_ms=fresh_until_ms,
            )
            for supersedes, takes_over, fresh_until_ms in product([None, 0, 1, 7], [True, False], [None, NOW_MS - 1])
        ],
        "complete": [
            DONE.replace(owner_token=token, payload_hash=payload_hash, result_kept=kept)
            for token, payload_hash, kept in product(["token", ""], ["hash", ""], [True, False])
        ],
        "commit": [
            DONE.replace(owner_token=token, payload_hash=payload_hash, packed_result=packed)
            for token, payload_hash, packed in product(["token", ""], ["hash", ""], [None, b"packed"])
        ],
        "renew": [OFFER, OFFER.replace(owner_token="")],
        "release": [OFFER, FOREIGN],
    }.items()
    for number, record in enumerate(records)
]


@pytest.mark.parametrize(("layout", "operation", "record"), EVERY_REQUEST)
def test_every_request_carries_just_the_names_and_values_that_it_uses(
    layout: ItemFormat, operation: str, record: DataRecord
) -> None:
    """DynamoDB refuses a request with a name or a value that no expression uses."""
    request = layout.claim(record, NOW_MS) if operation == "claim" else getattr(layout, operation)(record)

    assert set(request["ExpressionAttributeNames"]) == used(request, "#")
    assert set(request.get("ExpressionAttributeValues", {})) == used(request, ":")
    assert request.get("ExpressionAttributeValues") != {}


@pytest.mark.parametrize(("layout", "operation", "record"), EVERY_REQUEST)
def test_no_attributes_name_stands_in_an_expression(layout: ItemFormat, operation: str, record: DataRecord) -> None:
    request = layout.claim(record, NOW_MS) if operation == "claim" else getattr(layout, operation)(record)

    operators = {"SET", "AND", "OR", "attribute_exists", "attribute_not_exists"}
    for expression in (value for name, value in request.items() if name.endswith("Expression")):
        assert set(re.findall(r"(?<![#:\w])\w+", expression)) <= operators


@pytest.mark.parametrize(("layout", "operation", "record"), EVERY_REQUEST)
def test_every_write_asks_for_the_old_item_that_refuses_it(layout: ItemFormat, operation: str, record: DataRecord) -> None:
    request = layout.claim(record, NOW_MS) if operation == "claim" else getattr(layout, operation)(record)

    assert request["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD"
