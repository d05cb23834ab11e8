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
from fault.proxy import HELD, SLOW, FaultProxy, Harm, Request

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


RATES = {harm: 0.1 for harm in Harm if harm not in SLOW}


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
