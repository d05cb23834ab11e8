"""Answers lost on the wire, under real clients: both that the library makes, and a user's own with the SDK's hidden retries."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError
from doubles import LambdaContext
from engines.tables import client_for
from fault.proxy import APPLIED, FaultProxy, Harm
from faults import KEY, ORDER, Form, raise_boom
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer, IdempotencyPersistenceLayerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import FakeClock
    from stores import Peek

EVERY_HARM = [harm for harm in Harm if harm is not Harm.HANG]


@cache
def session() -> boto3.Session:
    """One for all: it reads the service's model once."""
    return boto3.Session()


@pytest.fixture
def proxy(dynamodb_local: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(dynamodb_local)
    yield proxy
    proxy.stop()


@pytest.fixture(autouse=True)
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own pauses between its retries, up to a second when throttled, are left out."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)


@pytest.fixture(params=["the library's", "the user's", "lean"])
def store(
    request: pytest.FixtureRequest, proxy: FaultProxy, clock: FakeClock, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[DynamoDBPersistenceLayer, Peek]]:
    """A store whose client speaks through the proxy, and a look at its table past the proxy."""
    made = dynamodb(clock, dynamodb_local)
    table: str = made.store.table_name
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    monkeypatch.setattr("persistence.dynamodb.READ_TIMEOUT", 0.25)
    if request.param == "lean":
        store = DynamoDBPersistenceLayer(table, client="lean")
    elif request.param == "the user's":
        store = DynamoDBPersistenceLayer(table, boto3_client=session().client("dynamodb", config=Config(read_timeout=0.25)))
    else:
        store = DynamoDBPersistenceLayer(table, boto3_session=session())
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    yield store, made.peek
    store.client.close()


@pytest.mark.parametrize("harm", EVERY_HARM, ids=lambda harm: harm.name)
@pytest.mark.parametrize("operation", ["PutItem", "UpdateItem"])
def test_the_function_runs_once_and_its_result_is_stored(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock, operation: str, harm: Harm
) -> None:
    layer, peek = store
    runs: list[Any] = []
    pay = Form(is_async=False).handler(lambda event: runs.append(event) or "paid", layer)
    proxy.harm(operation, 1, harm)
    proxy.harm(operation, 2, harm)

    assert [pay(ORDER, LambdaContext(clock=clock)) for _ in range(2)] == ["paid", "paid"]
    assert len(runs) == 1
    assert peek(KEY)["data"] == '"paid"'


@pytest.mark.parametrize("operation", ["PutItem", "UpdateItem"])
def test_an_answer_that_never_comes_is_no_second_run(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock, operation: str
) -> None:
    """The client's own read timeout ends the wait."""
    layer, _ = store
    runs: list[Any] = []
    pay = Form(is_async=False).handler(lambda event: runs.append(event) or "paid", layer)
    proxy.harm(operation, 1, Harm.HANG)

    assert pay(ORDER, LambdaContext(clock=clock)) == "paid"
    assert len(runs) == 1


@pytest.mark.parametrize("harm", EVERY_HARM, ids=lambda harm: harm.name)
def test_a_release_frees_the_key(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock, harm: Harm
) -> None:
    layer, peek = store
    proxy.harm("DeleteItem", 1, harm)
    with pytest.raises(OSError, match="boom"):
        Form(is_async=False).handler(lambda _event: raise_boom(), layer)(ORDER, LambdaContext(clock=clock))

    assert peek(KEY) is None


@pytest.mark.parametrize("harm", APPLIED, ids=lambda harm: harm.name)
def test_a_replay_whose_answer_is_lost_is_asked_for_again(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock, harm: Harm
) -> None:
    layer, _ = store
    pay = Form(is_async=False).handler(lambda _event: "paid", layer)
    pay(ORDER, LambdaContext(clock=clock))
    proxy.harm("PutItem", 1, harm)

    assert pay(ORDER, LambdaContext(clock=clock)) == "paid"


def test_a_cut_answer_does_not_leak_the_stored_result(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock
) -> None:
    """Botocore puts a body that it cannot read into its error's text, the record included."""
    layer, _ = store
    pay = Form(is_async=False).handler(lambda _event: "SECRET" * 100, layer)
    pay(ORDER, LambdaContext(clock=clock))
    for call in range(1, 100):
        proxy.harm("PutItem", call, Harm.CUT)

    with pytest.raises(Exception, match="Failed to save in progress record") as caught:
        pay(ORDER, LambdaContext(remaining_ms=1_000, clock=clock))
    assert "SECRET" not in str(caught.value)


def test_a_throttled_claim_is_given_up_before_the_deadline_without_the_sdks_own_pauses(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the client: the SDK's standard mode would have waited for seconds, whatever is left of the invocation."""
    layer, peek = store
    sdk_slept: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", sdk_slept.append)
    for call in range(1, 200):
        proxy.harm("PutItem", call, Harm.THROTTLE)
    deadline_ms = clock() + 1_000

    with pytest.raises(IdempotencyPersistenceLayerError, match="ProvisionedThroughputExceededException"):
        Form(is_async=False).handler(lambda _event: "paid", layer)(ORDER, LambdaContext(remaining_ms=1_000, clock=clock))
    assert deadline_ms - 200 < clock() < deadline_ms
    assert sdk_slept == []
    assert peek(KEY) is None


def test_a_cut_read_is_not_taken_for_a_missing_record(
    store: tuple[DynamoDBPersistenceLayer, Peek], proxy: FaultProxy, clock: FakeClock
) -> None:
    """Each completion's answer is lost, and the end of the read's that would show it."""
    layer, _ = store
    for call in range(1, 200):
        proxy.harm("UpdateItem", call, Harm.LOSE_ANSWER)
    proxy.harm("GetItem", 1, Harm.CUT)

    assert Form(is_async=False).function(lambda _event: "done", layer)(ORDER) == "done"


def test_the_proxy_itself_changes_nothing(
    proxy: FaultProxy, clock: FakeClock, dynamodb_local: str, client_kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a store that nobody gave a client, a session or a configuration."""
    made = dynamodb(clock, dynamodb_local)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    store = DynamoDBPersistenceLayer(made.store.table_name, client=client_kind)
    store.clock_ms = clock

    assert Form(is_async=False).handler(lambda _event: "paid", store)(ORDER, LambdaContext(clock=clock)) == "paid"
    assert dict(proxy.calls) == {"PutItem": 1, "UpdateItem": 1}
    assert made.peek(KEY)["data"] == '"paid"'
    store.client.close()


def test_the_proxy_loses_what_it_says(proxy: FaultProxy, dynamodb_local: str, clock: FakeClock) -> None:
    """Applied harms leave the item, the others do not."""
    table = dynamodb(clock, dynamodb_local).store.table_name
    once = Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=1)
    client = session().client("dynamodb", endpoint_url=proxy.url, config=once)
    for harm in Harm:
        proxy.harm("PutItem", 1, harm)
        with suppress(ClientError, HTTPClientError):
            client.put_item(TableName=table, Item={"id": {"S": harm.name}})
    client.close()

    items = client_for(dynamodb_local).scan(TableName=table, ConsistentRead=True)["Items"]
    assert {item["id"]["S"] for item in items} == {"HANG", "DUPLICATE", "IN_PROGRESS_AFTER", *[harm.name for harm in APPLIED]}
