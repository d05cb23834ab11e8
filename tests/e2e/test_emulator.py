"""What the deployment's tests take for granted of the emulator: it enforces IAM as AWS documents it."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engines import EngineUnavailableError
from engines.tables import create_table
from stack import emulator as stack_emulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stack.emulator import Emulator

    Request = Callable[[Any, str], object]

numbers = count(1)

ACTIONS = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"]
OWN_PARTITION = {"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": ["own"]}}
KEYS_ARE_THERE = {"Null": {"dynamodb:LeadingKeys": "false"}}
OWN_ATTRIBUTES = {"ForAllValues:StringEquals": {"dynamodb:Attributes": ["id", "sort", "status"]}}


def key(partition: str) -> dict[str, Any]:
    return {"id": {"S": partition}, "sort": {"S": "1"}}


def get(partition: str) -> Request:
    return lambda client, table: client.get_item(TableName=table, Key=key(partition))


def put(partition: str, **attributes: dict[str, str]) -> Request:
    return lambda client, table: client.put_item(TableName=table, Item={**key(partition), **attributes})


def delete(partition: str) -> Request:
    return lambda client, table: client.delete_item(TableName=table, Key=key(partition))


def scan(client: Any, table: str) -> object:
    return client.scan(TableName=table)


def read_both(client: Any, table: str) -> object:
    return client.batch_get_item(RequestItems={table: {"Keys": [key("own"), key("other")]}})


def write_both(client: Any, table: str) -> object:
    items = [{"Put": {"TableName": table, "Item": key(partition)}} for partition in ("own", "other")]
    return client.transact_write_items(TransactItems=items)


def update(expression: str, condition: str = "attribute_not_exists(#s)") -> Request:
    return lambda client, table: client.update_item(
        TableName=table,
        Key=key("updated"),
        UpdateExpression=expression,
        ConditionExpression=condition,
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":v": {"S": "DONE"}},
    )


def allow(*actions: str, **condition: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": "*", "Condition": condition}


CONFINED = [allow(*ACTIONS, "dynamodb:Scan", "dynamodb:BatchGetItem", **OWN_PARTITION, **KEYS_ARE_THERE)]
NOT_QUITE_CONFINED = [allow(*ACTIONS, "dynamodb:Scan", **OWN_PARTITION)]
DENIED = [allow(*ACTIONS), {"Effect": "Deny", "Action": "dynamodb:PutItem", "Resource": "*"}]
RESTRICTED = [allow(*ACTIONS, **OWN_ATTRIBUTES)]


@pytest.fixture(scope="module")
def table(emulator: Emulator) -> Iterator[str]:
    with closing(emulator.client("dynamodb")) as client:
        yield create_table(client, sort_key_attr="sort")


@pytest.fixture
def client(emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of DynamoDB in a role with the parameter's statements."""
    name = f"role-{next(numbers)}"
    trust = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "sts:AssumeRole"}
    with closing(emulator.client("iam")) as iam, closing(emulator.client("sts")) as sts:
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy(trust))["Role"]
        if request.param:
            iam.put_role_policy(RoleName=name, PolicyName="tested", PolicyDocument=policy(*request.param))
        credentials = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    with closing(emulator.client("dynamodb", credentials)) as client:
        yield client


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@pytest.mark.parametrize(
    ("client", "request_"),
    [
        pytest.param([allow("dynamodb:GetItem")], get("any"), id="an action"),
        pytest.param(CONFINED, get("own"), id="reading in the partition"),
        pytest.param(CONFINED, put("own"), id="writing in the partition"),
        pytest.param(CONFINED, delete("own"), id="deleting in the partition"),
        pytest.param(NOT_QUITE_CONFINED, scan, id="scanning where nobody asks whether there are keys"),
        pytest.param(DENIED, get("any"), id="what is beside a denial"),
        pytest.param(RESTRICTED, put("any", status={"S": "DONE"}), id="putting a listed attribute"),
        pytest.param(RESTRICTED, update("SET #s = :v"), id="setting a listed attribute"),
    ],
    indirect=["client"],
)
def test_what_a_role_allows_is_done(client: Any, table: str, request_: Request) -> None:
    request_(client, table)


@pytest.mark.parametrize(
    ("client", "request_"),
    [
        pytest.param([], get("any"), id="anything without a policy"),
        pytest.param([allow("dynamodb:GetItem")], put("any"), id="another action"),
        pytest.param(CONFINED, get("other"), id="reading in another partition"),
        pytest.param(CONFINED, put("other"), id="writing in another partition"),
        pytest.param(CONFINED, delete("other"), id="deleting in another partition"),
        pytest.param(CONFINED, scan, id="scanning"),
        pytest.param(CONFINED, read_both, id="a batch that reads in another partition, too"),
        pytest.param(CONFINED, write_both, id="a transaction that writes in another partition, too"),
        pytest.param(DENIED, put("any"), id="what is denied"),
        pytest.param(RESTRICTED, put("any", secret={"S": "DONE"}), id="putting another attribute"),
        pytest.param(RESTRICTED, update("SET secret = :v"), id="setting another attribute"),
        pytest.param(
            RESTRICTED, update("SET #s = :v", "attribute_not_exists(#s) OR secret > :v"), id="asking for another attribute"
        ),
    ],
    indirect=["client"],
)
def test_what_a_role_does_not_allow_is_refused(client: Any, table: str, request_: Request) -> None:
    with pytest.raises(ClientError) as refused:
        request_(client, table)

    assert refused.value.response["Error"]["Code"] == "AccessDeniedException"


def test_a_request_that_is_signed_with_another_secret_is_refused(emulator: Emulator) -> None:
    forged = {**emulator.user("forged", "dynamodb:*"), "SecretAccessKey": "another"}

    with closing(emulator.client("dynamodb", forged)) as client, pytest.raises(ClientError) as refused:
        client.list_tables()

    assert refused.value.response["Error"]["Code"] == "InvalidSignatureException"


def test_a_machine_without_the_environments_is_told_how_to_make_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stack_emulator, "ENVIRONMENTS", tmp_path)

    with pytest.raises(EngineUnavailableError, match="make e2e"), stack_emulator.running():
        pass
