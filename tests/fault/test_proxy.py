"""The proxy itself: each harm does what it says, seen with a client that tries once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, IncompleteRead
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ReadTimeoutError
from engines.tables import client_for, create_table
from fault.proxy import HELD, SLOW, FaultProxy, Harm, Request, Strike

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEM = {"id": {"S": "a"}}


@dataclass
class Place:
    """A table, *client* through the proxy, *direct* past it.

    Only the *hasty* client gives up soon: on a slow machine it may do so before its request has reached the proxy.
    """

    proxy: FaultProxy
    client: Any
    hasty: Any
    direct: Any
    table: str

    def put(self, name: str = "a", *, harm: Harm | None = None) -> Any:
        client = self.hasty if harm in SLOW else self.client
        return client.put_item(TableName=self.table, Item={"id": {"S": name}})

    def transact(self, *names: str) -> Any:
        """Count at each item, all in one transaction, always under the same client token."""
        update = {"UpdateExpression": "ADD times :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
        actions = [{"Update": {"TableName": self.table, "Key": {"id": {"S": name}}, **update}} for name in names]
        return self.client.transact_write_items(TransactItems=actions, ClientRequestToken=self.table)

    def times(self, name: str) -> int:
        """How often it was counted at the item."""
        item = self.direct.get_item(TableName=self.table, Key={"id": {"S": name}}, ConsistentRead=True).get("Item")
        return int(item["times"]["N"]) if item else 0

    def get(self) -> Any:
        return self.client.get_item(TableName=self.table, Key=ITEM, ConsistentRead=True)

    @property
    def items(self) -> set[str]:
        return {item["id"]["S"] for item in self.direct.scan(TableName=self.table, ConsistentRead=True)["Items"]}


@pytest.fixture
def place(dynamodb_local: str) -> Iterator[Place]:
    direct = client_for(dynamodb_local)
    proxy = FaultProxy(dynamodb_local)
    client, hasty = client_for(proxy.url), client_for(proxy.url, Config(read_timeout=0.25))
    yield Place(proxy, client, hasty, direct, create_table(direct))
    client.close()
    hasty.close()
    proxy.stop()


@pytest.mark.parametrize(
    ("harm", "error", "is_applied"),
    [
        (Harm.LOSE_ANSWER, ConnectionClosedError, True),
        (Harm.LOSE_REQUEST, ConnectionClosedError, False),
        (Harm.HANG, ReadTimeoutError, True),
        (Harm.ERROR_AFTER, ClientError, True),
        (Harm.ERROR_BEFORE, ClientError, False),
        (Harm.THROTTLE, ClientError, False),
        (Harm.DELAY, ConnectionClosedError, False),
        (Harm.HOLD, ReadTimeoutError, False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_harm_shows_its_error_and_is_applied_or_not(place: Place, harm: Harm, error: type[Exception], is_applied: bool) -> None:
    struck = Event()
    place.proxy.harm("PutItem", 1, harm, then=struck.set)
    with pytest.raises(error):
        place.put(harm=harm)

    assert struck.wait(10)
    assert place.items == ({"a"} if is_applied else set())
    assert place.proxy.struck == {harm: 1}


def test_a_cut_answer_lacks_the_end_of_its_body_and_its_request_is_applied(place: Place) -> None:
    """Seen without the SDK, which would take what is left for the whole."""
    sent: list[Request] = []
    place.proxy.watch = lambda request, *_: sent.append(request)
    place.put()
    place.get()
    place.proxy.harm("GetItem", 1, Harm.CUT)
    place.proxy.harm("PutItem", 1, Harm.CUT)
    for request in tuple(sent):
        connection = HTTPConnection(urlsplit(place.proxy.url).netloc)
        connection.request("POST", request.path, request.body, request.headers)
        with connection.getresponse() as answer, pytest.raises(IncompleteRead):
            answer.read()
        connection.close()

    assert place.items == {"a"}
    assert place.proxy.struck == {Harm.CUT: 2}


def test_only_the_named_call_of_the_named_operation_is_harmed(place: Place) -> None:
    place.proxy.harm("PutItem", 2, Harm.LOSE_REQUEST)
    place.put("first")
    place.get()
    with pytest.raises(HTTPClientError):
        place.put("second")
    place.put("third")

    assert place.items == {"first", "third"}


@pytest.mark.parametrize("harm", [Harm.ERROR_AFTER, Harm.ERROR_BEFORE])
def test_a_server_error_has_the_status_500(place: Place, harm: Harm) -> None:
    place.proxy.harm("PutItem", 1, harm)
    with pytest.raises(ClientError) as caught:
        place.put()

    assert caught.value.response["Error"]["Code"] == "InternalServerError"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500


@pytest.mark.parametrize(("operation", "kind"), [("PutItem", "Write"), ("GetItem", "Read")])
def test_a_throttle_tells_its_reasons_and_what_to_wait(place: Place, operation: str, kind: str) -> None:
    place.proxy.harm(operation, 1, Harm.THROTTLE, retry_after_ms=250)
    with pytest.raises(ClientError) as caught:
        place.put() if operation == "PutItem" else place.get()

    response = caught.value.response
    assert response["Error"]["Code"] == "ProvisionedThroughputExceededException"
    assert [reason["reason"] for reason in response["ThrottlingReasons"]] == [f"Table{kind}KeyRangeThroughputExceeded"]
    assert response["ResponseMetadata"]["HTTPHeaders"]["x-amz-retry-after"] == "250"


@pytest.mark.parametrize("harm", sorted(HELD, key=lambda harm: harm.name), ids=lambda harm: harm.name)
def test_a_held_request_is_applied_when_it_is_released(place: Place, harm: Harm) -> None:
    struck = Event()
    place.proxy.harm("PutItem", 1, harm, then=struck.set)
    with pytest.raises(HTTPClientError):
        place.put(harm=harm)
    assert struck.wait(10)
    place.put("meanwhile")

    assert place.items == {"meanwhile"}
    assert place.proxy.release() == 1
    assert place.items == {"meanwhile", "a"}
    assert place.proxy.release() == 0


def test_a_held_request_is_applied_before_the_last_of_those_that_it_waits_for(place: Place) -> None:
    place.proxy.harm("PutItem", 1, Harm.DELAY, held_for=2)
    with pytest.raises(HTTPClientError):
        place.put()

    assert "Item" not in place.get()
    assert place.get()["Item"] == ITEM


def test_a_client_that_still_waits_gets_the_answer_of_its_released_request(place: Place) -> None:
    is_held = Event()
    place.proxy.harm("PutItem", 1, Harm.HOLD, then=is_held.set)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.put)
        assert is_held.wait(10)
        assert place.proxy.release() == 1
        assert answer.result(10)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_what_follows_a_harm_comes_after_the_write_and_before_the_client_notices(place: Place) -> None:
    seen: list[set[str]] = []
    place.proxy.harm("PutItem", 1, Harm.LOSE_ANSWER, then=lambda: seen.append(place.items))
    with pytest.raises(HTTPClientError):
        place.put()

    assert seen == [{"a"}]


def test_a_duplicate_is_answered_and_applied_once_more_when_its_copy_is_released(place: Place) -> None:
    place.proxy.harm("PutItem", 1, Harm.DUPLICATE)
    place.put()
    place.direct.delete_item(TableName=place.table, Key=ITEM)

    assert place.proxy.release() == 1
    assert place.items == {"a"}


@pytest.mark.parametrize("harm", [Harm.DUPLICATE, Harm.LOSE_ANSWER], ids=lambda harm: harm.name)
def test_dynamodb_knows_a_transaction_that_comes_again_at_once_and_not_one_that_is_released(place: Place, harm: Harm) -> None:
    """It remembers a client token for ten minutes; what is held here is late by more than that."""
    place.proxy.harm("TransactWriteItems", 1, harm)
    if harm is Harm.LOSE_ANSWER:
        with pytest.raises(ConnectionClosedError):
            place.transact("a")
    place.transact("a")
    place.proxy.release()

    assert place.times("a") == (2 if harm is Harm.DUPLICATE else 1)


@pytest.mark.parametrize(("harm", "is_applied"), [(Harm.IN_PROGRESS_AFTER, True), (Harm.IN_PROGRESS_BEFORE, False)])
def test_a_transaction_in_progress_is_applied_or_not(place: Place, harm: Harm, *, is_applied: bool) -> None:
    place.proxy.harm("TransactWriteItems", 1, harm)
    with pytest.raises(place.client.exceptions.TransactionInProgressException):
        place.transact("a")

    assert place.times("a") == is_applied


@pytest.mark.parametrize(("harm", "code"), [(Harm.CONFLICT, "TransactionConflict"), (Harm.THROTTLE, "ThrottlingError")], ids=str)
def test_a_transaction_is_canceled_for_the_named_action_in_the_table_s_own_form(place: Place, harm: Harm, code: str) -> None:
    """Compared with a cancellation of DynamoDB's, which names a condition."""
    place.put("b")
    check = {"TableName": place.table, "Key": {"id": {"S": "b"}}, "ConditionExpression": "attribute_not_exists(id)"}
    update = {"TableName": place.table, "Key": ITEM, "UpdateExpression": "REMOVE times"}
    with pytest.raises(place.direct.exceptions.TransactionCanceledException) as real:
        place.direct.transact_write_items(TransactItems=[{"Update": update}, {"ConditionCheck": check}])
    place.proxy.harm("TransactWriteItems", 1, harm, action=1, retry_after_ms=250)
    with pytest.raises(place.client.exceptions.TransactionCanceledException) as caught:
        place.transact("a", "b")

    found, expected = caught.value.response, real.value.response
    assert [reason["Code"] for reason in found["CancellationReasons"]] == ["None", code]
    assert [reason.keys() for reason in found["CancellationReasons"]] == [
        reason.keys() for reason in expected["CancellationReasons"]
    ]
    assert str(caught.value) == str(real.value).replace("ConditionalCheckFailed", code)
    assert ("x-amz-retry-after" in found["ResponseMetadata"]["HTTPHeaders"]) == (harm is Harm.THROTTLE)
    assert place.items == {"b"}


def test_a_plain_write_conflicts_with_a_transaction_under_way_and_is_not_applied(place: Place) -> None:
    place.proxy.harm("PutItem", 1, Harm.CONFLICT)
    with pytest.raises(place.client.exceptions.TransactionConflictException):
        place.put()

    assert place.items == set()


def test_chance_harms_no_call_in_a_way_that_it_cannot_meet(place: Place) -> None:
    rates = {Harm.CONFLICT: 0.4, Harm.IN_PROGRESS_AFTER: 0.3, Harm.IN_PROGRESS_BEFORE: 0.3}
    place.proxy.harm_by_chance(random.Random(1), rates)
    place.get()
    with pytest.raises(ClientError):
        place.transact("a")

    assert place.proxy.struck.total() == 1


def test_a_judge_decides_before_chance_and_after_a_name(place: Place) -> None:
    place.proxy.harm_by_chance(random.Random(1), {Harm.LOSE_REQUEST: 1})
    place.proxy.judge = lambda request: Strike(Harm.THROTTLE) if request.number < 3 else None
    place.proxy.harm("PutItem", 1, Harm.ERROR_BEFORE)
    for _ in range(3):
        with pytest.raises((ClientError, HTTPClientError)):
            place.put()

    assert place.proxy.struck == {Harm.ERROR_BEFORE: 1, Harm.THROTTLE: 1, Harm.LOSE_REQUEST: 1}


#: What a read may meet.
RATES = {harm: 0.1 for harm in Harm if harm not in SLOW | {Harm.CONFLICT, Harm.IN_PROGRESS_AFTER, Harm.IN_PROGRESS_BEFORE}}


def harmed(place: Place, seed: int) -> list[Harm | None]:
    """What struck each of a hundred reads."""
    found: list[Harm | None] = []
    place.proxy.release()
    place.proxy.watch = lambda _request, harm, _answer: found.append(harm)
    place.proxy.harm_by_chance(random.Random(seed), RATES)
    for _ in range(100):
        try:
            place.get()
        except (ClientError, HTTPClientError):
            continue
    return found


def test_by_chance_each_harm_strikes_and_the_same_seed_harms_the_same_calls(place: Place) -> None:
    first, second, third = (harmed(place, seed) for seed in (1, 1, 2))

    assert first == second != third
    assert set(first) == {*RATES, None}


def test_who_watches_is_told_of_each_request_its_harm_and_its_answer(place: Place) -> None:
    seen: list[tuple[str, int, Harm | None, int | None]] = []
    place.proxy.watch = lambda request, harm, answer: seen.append(
        (request.operation, request.number, harm, None if answer is None else answer.status)
    )
    place.put()
    for harm in (Harm.THROTTLE, Harm.LOSE_ANSWER, Harm.DELAY):
        place.proxy.harm("PutItem", 1, harm)
        with pytest.raises((ClientError, HTTPClientError)):
            place.put()
    place.proxy.release()

    assert seen == [
        ("PutItem", 1, None, 200),
        ("PutItem", 2, Harm.THROTTLE, None),
        ("PutItem", 3, Harm.LOSE_ANSWER, 200),
        ("PutItem", 4, Harm.DELAY, None),
        ("PutItem", 4, Harm.DELAY, 200),
    ]


def test_a_healed_proxy_harms_nothing_and_still_holds_what_it_held(place: Place) -> None:
    place.proxy.harm("PutItem", 1, Harm.DELAY)
    with pytest.raises(HTTPClientError):
        place.put()
    place.proxy.harm("PutItem", 1, Harm.THROTTLE)
    place.proxy.harm_by_chance(random.Random(1), {Harm.LOSE_REQUEST: 1})
    place.proxy.judge = lambda _: Strike(Harm.THROTTLE)

    place.proxy.heal()

    place.put("healed")
    assert place.items == {"healed"}
    assert place.proxy.release() == 1


def test_repetitions_by_the_sdk_are_counted(place: Place) -> None:
    client = client_for(place.proxy.url, Config(retries={"mode": "standard", "total_max_attempts": 4}))
    place.proxy.harm("PutItem", 1, Harm.LOSE_REQUEST)
    place.proxy.harm("PutItem", 2, Harm.ERROR_BEFORE)
    client.put_item(TableName=place.table, Item=ITEM)
    client.close()

    assert (place.proxy.calls["PutItem"], place.proxy.repetitions) == (3, 2)
