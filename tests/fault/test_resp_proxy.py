"""The proxy in front of Valkey itself: each harm does what it says, seen with a client that tries once."""

from __future__ import annotations

import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from fault.proxy import HELD, SLOW, Harm
from fault.resp_proxy import NOT_NOW, RespProxy, packed, read_answer, read_request
from redis import ConnectionError as Unreachable
from redis import Redis, ResponseError
from redis import TimeoutError as TooSlow
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from persistence._cache_scripts import CLAIM, READ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault.resp_proxy import Answer, Request


@dataclass
class Place:
    """*client* speaks through the proxy, *direct* past it, both with texts.

    Only the *hasty* client gives up soon: on a slow machine it may do so before its request has reached the proxy.
    """

    proxy: RespProxy
    client: Redis
    hasty: Redis
    direct: Redis

    def put(self, name: str = "a", *, harm: Harm | None = None) -> Any:
        return (self.hasty if harm in SLOW else self.client).set(name, "1")

    @property
    def keys(self) -> set[Any]:
        return set(self.direct.keys())


def client_of(url: str, timeout: float, protocol: int = 3) -> Redis:
    options: Any = {"retry": Retry(NoBackoff(), 0), "decode_responses": True, "socket_timeout": timeout, "protocol": protocol}
    return Redis.from_url(url, **options)


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def place(valkey_server: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    proxy = RespProxy(valkey_server)
    clients = [
        client_of(proxy.url, 10, request.param),
        client_of(proxy.url, 0.1, request.param),
        client_of(valkey_server, 10, request.param),
    ]
    clients[2].flushall()
    yield Place(proxy, *clients)
    for client in clients:
        client.close()
    proxy.stop()


@pytest.mark.parametrize(
    ("harm", "error", "is_applied"),
    [
        (Harm.LOSE_ANSWER, Unreachable, True),
        (Harm.LOSE_REQUEST, Unreachable, False),
        (Harm.CUT, Unreachable, True),
        (Harm.HANG, TooSlow, True),
        (Harm.ERROR_BEFORE, Unreachable, False),  # which redis-py makes of LOADING
        (Harm.DELAY, Unreachable, False),
        (Harm.HOLD, TooSlow, False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_harm_shows_its_error_and_is_applied_or_not(place: Place, harm: Harm, error: type[Exception], is_applied: bool) -> None:
    struck = Event()
    place.proxy.harm("SET", 1, harm, then=struck.set)
    with pytest.raises(error):
        place.put(harm=harm)

    assert struck.wait(10)
    assert place.keys == ({"a"} if is_applied else set())
    assert place.proxy.struck == {harm: 1}


def test_only_the_named_request_of_the_named_command_is_harmed(place: Place) -> None:
    place.proxy.harm("SET", 2, Harm.LOSE_REQUEST)
    place.put("first")
    place.client.get("first")
    with pytest.raises(Unreachable):
        place.put("second")
    place.put("third")

    assert place.keys == {"first", "third"}
    assert (place.proxy.calls["SET"], place.proxy.calls["GET"]) == (3, 1)


@pytest.mark.parametrize("error", NOT_NOW, ids=lambda error: error.partition(" ")[0])
def test_an_error_is_told_in_the_servers_words(place: Place, error: str) -> None:
    place.proxy.harm("SET", 1, Harm.ERROR_BEFORE, error=error)
    with pytest.raises((ResponseError, Unreachable)) as caught:
        place.put()

    # redis-py cuts the codes that it has classes for.
    assert str(caught.value) in (error, error.partition(" ")[2])
    assert place.keys == set()


@pytest.mark.parametrize("harm", sorted(HELD, key=lambda harm: harm.name), ids=lambda harm: harm.name)
def test_a_held_request_is_applied_when_it_is_released(place: Place, harm: Harm) -> None:
    struck = Event()
    place.proxy.harm("SET", 1, harm, then=struck.set)
    with pytest.raises((Unreachable, TooSlow)):
        place.put(harm=harm)
    assert struck.wait(10)
    place.put("meanwhile")

    assert place.keys == {"meanwhile"}
    assert place.proxy.release() == 1
    assert place.keys == {"meanwhile", "a"}


def test_a_client_that_waits_gets_the_answer_of_its_held_request(place: Place) -> None:
    struck = Event()
    place.proxy.harm("INCRBY", 1, Harm.HOLD, then=struck.set)
    with ThreadPoolExecutor(1) as thread:
        counting = thread.submit(place.client.incr, "count")
        assert struck.wait(10)
        place.direct.set("count", 41)
        place.proxy.release()

        assert counting.result() == 42


def test_a_copy_is_applied_once_more_when_it_is_released(place: Place) -> None:
    place.proxy.harm("INCRBY", 1, Harm.DUPLICATE)

    assert place.client.incr("count") == 1
    assert place.proxy.release() == 1
    assert place.direct.get("count") == "2"


def test_what_is_held_is_released_by_the_requests_that_follow(place: Place) -> None:
    place.proxy.harm("INCRBY", 1, Harm.DUPLICATE, held_for=2)
    counts = [place.client.incr("count"), place.client.incr("count"), place.client.incr("count")]

    assert counts == [1, 2, 4]


def test_requests_that_come_in_one_go_are_answered_one_by_one_and_harmed_each_for_itself(place: Place) -> None:
    place.proxy.harm("WAIT", 1, Harm.ERROR_BEFORE, error="ERR no such luck")
    pipeline = place.client.pipeline(transaction=False)
    pipeline.set("a", "1").execute_command("WAIT", 0, 10).mget("a", "none")
    stored, waited, read = pipeline.execute(raise_on_error=False)

    assert (stored, read) == (True, ["1", None])
    assert isinstance(waited, ResponseError)


def test_the_scripts_of_the_store_are_counted_by_what_they_do(place: Place) -> None:
    place.direct.script_flush()
    with pytest.raises(NoScriptError):
        place.client.evalsha(READ.sha1, 1, "key", *"abcde")
    place.client.eval(READ.text, 1, "key", *"abcde")
    place.proxy.harm("read", 1, Harm.LOSE_ANSWER)
    with pytest.raises(Unreachable):
        place.client.evalsha(READ.sha1, 1, "key", *"abcde")

    assert place.proxy.operations == {"read": 3}
    assert (place.proxy.calls["EVALSHA"], place.proxy.calls["EVAL"]) == (2, 1)


def test_a_watcher_sees_key_token_and_answer_of_a_script(place: Place) -> None:
    seen: list[tuple[str, str, str, str]] = []

    def watch(request: Request, _harm: Harm | None, answer: Answer | None) -> None:
        if request.key and answer is not None:
            seen.append((request.operation, request.key, request.owner_token, answer.status))

    place.proxy.watch = watch
    names = ["status", "expiration", "lease", "owner_token", "generation"]
    place.client.eval(CLAIM.text, 1, "key", *names, 0, "1", "token", '{"status":"INPROGRESS"}', 1, "")

    assert seen == [("claim", "key", "token", "granted")]


def test_chance_is_repeatable_by_its_seed_and_spares_a_connections_first_words(valkey_server: str) -> None:
    def harms(seed: int) -> list[Harm | None]:
        found: list[Harm | None] = []
        proxy = RespProxy(valkey_server)
        proxy.watch = lambda request, harm, _: found.append(harm) if request.command == "SET" else None
        proxy.harm_by_chance(random.Random(seed), {Harm.LOSE_ANSWER: 0.5, Harm.ERROR_BEFORE: 0.2})
        client = client_of(proxy.url, 10)
        for _ in range(20):
            try:
                client.set("a", "1")
            except (Unreachable, ResponseError):
                continue
        client.close()
        proxy.stop()
        return found

    first = harms(1)

    assert len(first) == 20
    assert set(first) == {None, Harm.LOSE_ANSWER, Harm.ERROR_BEFORE}
    assert harms(1) == first
    assert harms(2) != first


def test_a_proxy_that_stops_leaves_no_thread_and_lets_nobody_wait(valkey_server: str) -> None:
    before = threading.active_count()
    proxy = RespProxy(valkey_server)
    client = client_of(proxy.url, 10)
    struck = [Event(), Event()]
    proxy.harm("GET", 1, Harm.HANG, then=struck[0].set)
    proxy.harm("GET", 2, Harm.HOLD, then=struck[1].set)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.get, "a"), threads.submit(client.get, "b")]
        assert all(each.wait(10) for each in struck)
        proxy.stop()
        for each in waiting:
            each.exception()
    client.close()

    assert threading.active_count() == before


ANSWERS = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":1\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(12345678901234567890\r\n",
    b"!5\r\nERR x\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"%1\r\n+a\r\n*1\r\n_\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    b">2\r\n+invalidate\r\n_\r\n+OK\r\n",
    b"|1\r\n+ttl\r\n:3600\r\n$1\r\na\r\n",
]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_the_end_of_an_answer_is_found_whatever_its_type(answer: bytes) -> None:
    source = io.BytesIO(answer + b"+next\r\n")

    assert read_answer(source) == answer
    assert source.read() == b"+next\r\n"
    with pytest.raises(EOFError):
        read_answer(io.BytesIO(answer[:-1]))


def test_a_request_is_read_as_it_was_packed_and_half_of_one_is_none() -> None:
    request = packed(b"SET", b"a", b"\r\n$1\r\n")

    assert read_request(io.BytesIO(request)) == (b"SET", b"a", b"\r\n$1\r\n")
    assert read_request(io.BytesIO(request[:-1])) == ()
    assert read_request(io.BytesIO(b"")) == ()
