"""What a failed DynamoDB request means, and what is told about it: the place, and what is probably wrong."""

from __future__ import annotations

from typing import Any

import botocore.exceptions as sdk
import pytest
from botocore.exceptions import ClientError

from persistence import _dynamodb_errors as errors
from persistence._lean_errors import LostAnswerError, NotSentError, ServiceError
from persistence._retries import UnreadableAnswerError
from persistence.dynamodb import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyPersistenceLayerError

PLAIN = DynamoDBPersistenceLayer("payments")._items
COMPOSITE = DynamoDBPersistenceLayer("payments", key_attr="pk", sort_key_attr="sk")._items


def answer(code: str, message: str = "", operation: str = "PutItem", status: int = 400, **more: Any) -> dict[str, Any]:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return {"boto3": ClientError(response, operation), "lean": ServiceError(response, operation)}


BOTH = pytest.mark.parametrize("client", ["boto3", "lean"])


@BOTH
@pytest.mark.parametrize(
    ("code", "status", "lasting"),
    [
        ("ResourceNotFoundException", 400, True),
        ("AccessDeniedException", 400, True),
        ("ValidationException", 400, True),
        ("UnrecognizedClientException", 400, True),
        ("InvalidSignatureException", 400, True),
        ("MissingAuthenticationTokenException", 400, True),
        ("IdempotentParameterMismatchException", 400, True),
        ("ExpiredTokenException", 400, False),
        ("ProvisionedThroughputExceededException", 400, False),
        ("ThrottlingException", 400, False),
        ("RequestLimitExceeded", 400, False),
        ("TransactionConflictException", 400, False),
        ("InternalServerError", 500, False),
        ("ServiceUnavailable", 503, False),
        ("SomethingNew", 500, False),
        ("TransactionInProgressException", 400, False),
    ],
)
def test_an_answer_is_lasting_unless_it_speaks_of_the_moment(client: str, code: str, status: int, lasting: bool) -> None:
    assert errors.is_lasting(answer(code, status=status)[client]) is lasting


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (sdk.NoRegionError(), True),
        (sdk.NoCredentialsError(), True),
        (sdk.PartialCredentialsError(provider="env", cred_var="x"), True),
        (sdk.ProfileNotFound(profile="x"), True),
        (sdk.CredentialRetrievalError(provider="web", error_msg="x"), False),
        (sdk.MetadataRetrievalError(error_msg="x"), False),
        (sdk.EndpointConnectionError(endpoint_url="x"), False),
        (sdk.ConnectTimeoutError(endpoint_url="x"), False),
        (sdk.ReadTimeoutError(endpoint_url="x"), False),
        (NotSentError("x"), False),
        (LostAnswerError("x"), False),
        (UnreadableAnswerError("x"), False),
        (OSError("x"), False),
        (ValueError("The item is no idempotency record"), True),
    ],
    ids=repr,
)
def test_an_error_without_an_answer_is_lasting_if_the_configuration_is_to_blame(error: Exception, lasting: bool) -> None:
    assert errors.is_lasting(error) is lasting


def test_nothing_is_asked_of_an_sdk_that_nobody_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(errors.sys.modules, "botocore.exceptions")

    assert not errors.is_lasting(sdk.NoRegionError())


@pytest.mark.parametrize(
    ("table", "region", "place"),
    [
        ("payments", "eu-west-1", "Table payments in eu-west-1."),
        ("payments", "", "Table payments."),
        ("arn:aws:dynamodb:eu-west-1:1:table/p", "eu-west-1", "Table arn:aws:dynamodb:eu-west-1:1:table/p."),
    ],
)
def test_the_table_and_its_region_are_named(table: str, region: str, place: str) -> None:
    assert errors.explanation(OSError("reset"), PLAIN, table, region) == place


@BOTH
def test_a_table_that_is_not_there_is_named_as_such(client: str) -> None:
    error = answer("ResourceNotFoundException", "Requested resource not found")[client]

    assert errors.explanation(error, PLAIN, "payments", "eu-west-1") == (
        "Table payments in eu-west-1. There is no such table: check table_name, the account and the Region."
    )


@BOTH
@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        ("GetItem", "dynamodb:GetItem"),
        ("DeleteItem", "dynamodb:DeleteItem"),
        ("TransactWriteItems", "dynamodb:UpdateItem, and for each action its own permission"),
    ],
)
def test_a_missing_permission_is_named(client: str, operation: str, permission: str) -> None:
    error = answer("AccessDeniedException", "not authorized", operation)[client]

    assert errors.explanation(error, PLAIN, "payments", "") == (
        f"Table payments. {operation} was denied: the role needs {permission} on the table, and may need its KMS key."
    )


@pytest.mark.parametrize("operation", ["AssumeRole", "GetObject", ""])
def test_another_services_answer_is_not_taken_for_the_tables(operation: str) -> None:
    error = answer("AccessDenied", "not authorized", operation)["boto3"]

    assert errors.explanation(error, PLAIN, "payments", "") == "Table payments."


@BOTH
@pytest.mark.parametrize(
    "message",
    [
        "The provided key element does not match the schema",
        "One or more parameter values were invalid: Missing the key sk in the item",
        "One or more parameter values were invalid: Type mismatch for key id expected: N actual: S",
        "One or more parameter values are not valid. The key attribute id is empty",
    ],
)
def test_a_key_that_does_not_fit_the_table_names_the_attributes_that_it_must_have(client: str, message: str) -> None:
    error = answer("ValidationException", message)[client]

    assert errors.explanation(error, PLAIN, "t", "") == (
        "Table t. The table's primary key must be key_attr='id', a string, and no sort key."
    )
    assert errors.explanation(error, COMPOSITE, "t", "") == (
        "Table t. The table's primary key must be key_attr='pk', a string, and sort_key_attr='sk', a string."
    )


def test_any_other_invalid_request_is_left_to_the_services_words() -> None:
    error = answer("ValidationException", "Invalid UpdateExpression")["boto3"]

    assert errors.explanation(error, PLAIN, "t", "") == "Table t."


class Client:
    """A client of the user's own, which tells its Region or does not."""

    def __init__(self, error: Exception, region: object) -> None:
        self.error = error
        self.meta = type("Meta", (), {"region_name": region})

    def _fail(self, **_: Any) -> None:
        raise self.error

    put_item = get_item = update_item = delete_item = _fail


@pytest.mark.parametrize(("region", "place"), [("eu-west-1", "in eu-west-1."), (object(), ""), (None, "")])
def test_a_stores_error_names_the_region_that_its_client_tells(region: object, place: str) -> None:
    client = Client(answer("ResourceNotFoundException")["lean"], region)
    store = DynamoDBPersistenceLayer("payments", boto3_client=client)

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        store.fetch("fn#1")

    assert f"Table payments {place}".strip() in str(raised.value)
    assert not raised.value.is_retryable


def test_an_error_while_the_client_is_made_is_explained_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    store = DynamoDBPersistenceLayer("payments")
    monkeypatch.setattr(store, "_new_client", lambda _region: (_ for _ in ()).throw(sdk.NoRegionError()))

    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        store.fetch("fn#1")

    assert (
        "(You must specify a region.). Table payments. Idempotency key: fn#1. The function was not run; a retry does not"
        in str(raised.value)
    )


def test_an_error_of_a_home_region_that_fails_names_no_region() -> None:
    def home_of(_key: str) -> str:
        raise LookupError("no home")

    store = DynamoDBPersistenceLayer("payments", replication="eventual", home_region=home_of)

    with pytest.raises(IdempotencyPersistenceLayerError, match=r"\(no home\)\. Table payments\. Idempotency key: fn#1\. "):
        store.fetch("fn#1")


def test_an_error_names_the_keys_home_region() -> None:
    client = Client(answer("InternalServerError", status=500)["lean"], "us-east-1")
    store = DynamoDBPersistenceLayer(
        "payments", replication="eventual", home_region="eu-central-1", region_clients={"eu-central-1": client}
    )
    store.sleep_ms = lambda _ms: None
    store.clock_ms = iter(range(0, 10**9, 1_000)).__next__

    with pytest.raises(IdempotencyPersistenceLayerError, match=r"Table payments in eu-central-1\. "):
        store.fetch("fn#1")
