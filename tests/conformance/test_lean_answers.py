"""The same requests through boto3 and through the lean client, on two fresh tables of a real engine: equal answers, equal errors.

Here the engine decides what it answers; the shapes that it never sends are in `tests/unit/test_lean.py`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engines.tables import client_for, create_table

from persistence._lean_errors import ServiceError
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.dynamodb_local

KEY = {"id": {"S": "k"}}
#: Every type, at every depth, with names and texts that an encoding could spoil.
ITEM: dict[str, Any] = {
    **KEY,
    "s": {"S": 'é\u2028😀"\\\x00\x7f'},
    "empty": {"S": ""},
    "n": {"N": "-1.5"},
    "b": {"B": bytes(range(256))},
    "nothing": {"B": b""},
    "ss": {"SS": ["a", "ß"]},
    "ns": {"NS": ["1", "2.5"]},
    "bs": {"BS": [b"\x00", b"\xff\xfe"]},
    "m": {
        "M": {
            "B": {"B": b"named like a type"},
            "BS": {"L": [{"B": b"1"}, {"M": {"B": {"S": "eA=="}}}, {"BS": [b"2"]}]},
            "é": {"M": {}},
        }
    },
    "l": {"L": [{"NULL": True}, {"BOOL": False}, {"L": []}, {"S": '{"B": "eA=="}'}]},
    "B": {"S": "eA=="},
    "BS": {"SS": ["eA=="]},
}
ABSENT = {"ConditionExpression": "attribute_not_exists(id)"}
ALL_OLD = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
TOTAL = {"ReturnConsumedCapacity": "INDEXES", "ReturnItemCollectionMetrics": "SIZE"}
UPDATE = {"UpdateExpression": "SET x = :x REMOVE s", "ExpressionAttributeValues": {":x": {"BS": [b"new", b"\x00"]}}}


class Side:
    """A client and a table of its own, whose name no answer may show."""

    def __init__(self, client: Any, table: str) -> None:
        self.client = client
        self.table = table

    def ask(self, method: str, request: dict[str, Any]) -> Any:
        """The answer, or the error, without what differs between any two requests."""
        try:
            told = response = getattr(self.client, method)(**self._put_in(copy.deepcopy(request), "TABLE", self.table))
        except (ServiceError, ClientError) as error:
            told = {"text": str(error), "operation": error.operation_name, "response": error.response}
            response = error.response
        metadata = response["ResponseMetadata"]
        headers = metadata["HTTPHeaders"]
        assert metadata["RequestId"] == headers["x-amzn-requestid"]
        response["ResponseMetadata"] = {**metadata, "RequestId": "any", "HTTPHeaders": sorted(headers)}
        return self._put_in(told, self.table, "TABLE")

    def _put_in(self, value: Any, old: str, new: str) -> Any:
        match value:
            case dict():
                return {self._put_in(name, old, new): self._put_in(each, old, new) for name, each in value.items()}
            case list():
                return [self._put_in(each, old, new) for each in value]
            case str():
                return value.replace(old, new)
            case _:
                return value


@pytest.fixture(scope="module")
def lean_client(dynamodb_local: str) -> Iterator[LeanClient]:
    client = LeanClient("us-east-1", endpoint_url=dynamodb_local)
    yield client
    client.close()


@pytest.fixture(scope="module")
def boto_client(dynamodb_local: str) -> Iterator[Any]:
    """Tries once.  Told to do so, it would say with each error that it must not try again."""
    client = client_for(dynamodb_local)
    client.meta.events.unregister("needs-retry.dynamodb", unique_id="retry-config-dynamodb")
    yield client
    client.close()


@pytest.fixture
def sides(boto_client: Any, lean_client: LeanClient) -> tuple[Side, Side]:
    """boto3's and ours."""
    return Side(boto_client, create_table(boto_client)), Side(lean_client, create_table(boto_client))


def same(sides: tuple[Side, Side], method: str, **request: Any) -> Any:
    """What both say, which is checked to be the same."""
    theirs, ours = (side.ask(method, request) for side in sides)
    assert ours == theirs
    return ours


def put(sides: tuple[Side, Side], item: dict[str, Any] = ITEM, **more: Any) -> Any:
    return same(sides, "put_item", TableName="TABLE", Item=item, **more)


# Answers


def test_empty_answers(sides: tuple[Side, Side]) -> None:
    assert set(put(sides)) == {"ResponseMetadata"}
    assert set(same(sides, "get_item", TableName="TABLE", Key={"id": {"S": "other"}})) == {"ResponseMetadata"}
    assert set(same(sides, "delete_item", TableName="TABLE", Key=KEY)) == {"ResponseMetadata"}


def test_an_item_of_all_types_is_read_as_it_was_written(sides: tuple[Side, Side]) -> None:
    put(sides)

    answer = same(sides, "get_item", TableName="TABLE", Key=KEY, ConsistentRead=True, ReturnConsumedCapacity="TOTAL")

    assert sorted_sets(answer["Item"]) == sorted_sets(ITEM)
    assert answer["ConsumedCapacity"]["CapacityUnits"] > 0


def sorted_sets(item: dict[str, Any]) -> dict[str, Any]:
    """DynamoDB keeps no order in a set."""
    return {
        name: {kind: sorted(part) if kind in ("SS", "NS", "BS") else part}
        for name, value in item.items()
        for kind, part in value.items()
    }


def test_old_and_new_values_and_what_was_consumed(sides: tuple[Side, Side]) -> None:
    put(sides)

    replaced = put(sides, {**KEY, "n": {"N": "1"}}, ReturnValues="ALL_OLD", **TOTAL)
    updated = same(sides, "update_item", TableName="TABLE", Key=KEY, **UPDATE, ReturnValues="ALL_NEW", **TOTAL)
    deleted = same(sides, "delete_item", TableName="TABLE", Key=KEY, ReturnValues="ALL_OLD", **TOTAL)

    assert replaced["Attributes"]["b"] == ITEM["b"]
    assert deleted["Attributes"] == updated["Attributes"]
    assert all(answer["ConsumedCapacity"] for answer in (replaced, updated, deleted))


def test_pages_of_a_scan_and_of_a_query(sides: tuple[Side, Side]) -> None:
    for number in range(3):
        put(sides, {**ITEM, "id": {"S": f"k{number}"}})

    page = same(sides, "scan", TableName="TABLE", Limit=2, ReturnConsumedCapacity="TOTAL")
    rest = same(sides, "scan", TableName="TABLE", ExclusiveStartKey=page["LastEvaluatedKey"], Segment=0, TotalSegments=1)
    values = {":id": {"S": "k1"}}
    query = same(sides, "query", TableName="TABLE", KeyConditionExpression="id = :id", ExpressionAttributeValues=values)
    nothing = same(
        sides, "query", TableName="TABLE", KeyConditionExpression="id = :id", ExpressionAttributeValues={":id": {"S": "x"}}
    )

    assert (page["Count"], rest["Count"], query["Count"], nothing["Items"]) == (2, 1, 1, [])
    assert query["Items"][0]["b"] == ITEM["b"]


def test_a_batch(sides: tuple[Side, Side]) -> None:
    requests = [{"PutRequest": {"Item": {**ITEM, "id": {"S": f"k{number}"}}}} for number in range(25)]

    answer = same(sides, "batch_write_item", RequestItems={"TABLE": requests}, **TOTAL)

    assert answer["UnprocessedItems"] == {}
    assert answer["ConsumedCapacity"]


def transaction(sides: tuple[Side, Side], *actions: dict[str, Any], **more: Any) -> Any:
    return same(sides, "transact_write_items", TransactItems=list(actions), **more)


def action(kind: str, key: str = "k", **more: Any) -> dict[str, Any]:
    place = {"Item": {**ITEM, "id": {"S": key}}} if kind == "Put" else {"Key": {"id": {"S": key}}}
    return {kind: {"TableName": "TABLE", **place, **more}}


def test_a_transaction(sides: tuple[Side, Side]) -> None:
    answer = transaction(sides, action("Put"), action("Update", "other", **UPDATE), **TOTAL)

    assert answer["ConsumedCapacity"]


def test_a_large_item(sides: tuple[Side, Side]) -> None:
    large = {**KEY, "b": {"B": b"\x00\xff" * 150_000}}
    put(sides, large)

    answer = same(sides, "get_item", TableName="TABLE", Key=KEY)

    assert answer["Item"] == large


# Errors


def failed(told: Any, code: str) -> dict[str, Any]:
    response: dict[str, Any] = told["response"]
    assert response["Error"]["Code"] == code
    assert f"({code})" in told["text"]
    return response


@pytest.mark.parametrize("more", [{}, ALL_OLD, TOTAL])
def test_a_condition_that_does_not_hold(sides: tuple[Side, Side], more: dict[str, Any]) -> None:
    put(sides)

    told = [
        put(sides, **ABSENT, **more),
        same(sides, "update_item", TableName="TABLE", Key=KEY, **UPDATE, **ABSENT, **more),
        same(sides, "delete_item", TableName="TABLE", Key=KEY, **ABSENT, **more),
    ]

    for each in told:
        response = failed(each, "ConditionalCheckFailedException")
        assert ("Item" in response) == (more == ALL_OLD)
        assert more != ALL_OLD or sorted_sets(response["Item"]) == sorted_sets(ITEM)


def test_a_condition_on_an_item_that_is_not_there(sides: tuple[Side, Side]) -> None:
    told = same(sides, "delete_item", TableName="TABLE", Key=KEY, ConditionExpression="attribute_exists(id)", **ALL_OLD)

    assert "Item" not in failed(told, "ConditionalCheckFailedException")


def test_a_transaction_that_is_canceled_with_items(sides: tuple[Side, Side]) -> None:
    put(sides)

    told = transaction(sides, action("Put", "new"), action("Put", **ABSENT, **ALL_OLD), action("Delete", "gone"))

    reasons = failed(told, "TransactionCanceledException")["CancellationReasons"]
    assert [reason["Code"] for reason in reasons] == ["None", "ConditionalCheckFailed", "None"]
    assert sorted_sets(reasons[1]["Item"]) == sorted_sets(ITEM)


def test_a_client_token_of_another_transaction(sides: tuple[Side, Side]) -> None:
    for side in sides:
        token = {"ClientRequestToken": f"{side.table}"[-36:]}
        side.ask("transact_write_items", {"TransactItems": [action("Put")], **token})

    theirs, ours = (
        side.ask("transact_write_items", {"TransactItems": [action("Put", "other")], "ClientRequestToken": f"{side.table}"[-36:]})
        for side in sides
    )

    assert ours == theirs
    failed(ours, "IdempotentParameterMismatchException")


@pytest.mark.parametrize("method", ["put_item", "get_item", "update_item", "delete_item", "scan", "query"])
def test_a_table_that_is_not_there(sides: tuple[Side, Side], method: str) -> None:
    more: dict[str, dict[str, Any]] = {
        "put_item": {"Item": ITEM},
        "scan": {},
        "query": {"KeyConditionExpression": "id = :id", "ExpressionAttributeValues": {":id": {"S": "k"}}},
    }

    told = same(sides, method, TableName="TABLE-of-nobody", **more.get(method, {"Key": KEY}))

    failed(told, "ResourceNotFoundException")


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("put_item", {"TableName": "TABLE", "Item": {"other": {"S": "k"}}}),
        ("put_item", {"TableName": "TABLE", "Item": {**KEY, "b": {"B": b"x" * 410_000}}}),
        ("put_item", {"TableName": "TABLE", "Item": {**KEY, "n": {"N": "no number"}}}),
        ("put_item", {"TableName": "TABLE", "Item": {**KEY, "ss": {"SS": ["a", "a"]}}}),
        ("put_item", {"TableName": "TABLE", "Item": ITEM, "ConditionExpression": "syntax ((é"}),
        ("put_item", {"TableName": "TABLE", "Item": ITEM, "ExpressionAttributeNames": {"#unused": "x"}}),
        ("get_item", {"TableName": "TABLE", "Key": {"id": {"B": b"k"}}}),
        ("get_item", {"TableName": "T", "Key": KEY}),
        (
            "update_item",
            {
                "TableName": "TABLE",
                "Key": KEY,
                "UpdateExpression": "SET id = :x",
                "ExpressionAttributeValues": {":x": {"B": b"k"}},
            },
        ),
        ("delete_item", {"TableName": "TABLE", "Key": {"id": {"S": ""}}}),
        ("scan", {"TableName": "TABLE", "Segment": 5, "TotalSegments": 4}),
        ("query", {"TableName": "TABLE"}),
        ("batch_write_item", {"RequestItems": {"TABLE": [{"DeleteRequest": {"Key": KEY}}] * 26}}),
        ("transact_write_items", {"TransactItems": [action("Delete"), action("Delete")]}),
    ],
)
def test_a_request_that_makes_no_sense(sides: tuple[Side, Side], method: str, request_: dict[str, Any]) -> None:
    failed(same(sides, method, **request_), "ValidationException")
