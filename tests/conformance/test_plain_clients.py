"""A client that has only `get`, `set` and `delete`, before a real server: the contract, and what the lock of a takeover does.

There are no scripts, so between a read and a write another attempt may write.  What holds nevertheless is here.
"""

from __future__ import annotations

import asyncio
import json
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from conformance.test_contract import TestClaim, TestComplete, TestFetch, TestPayloads, TestRelease, TestRenew
from doubles import LambdaContext
from stores import Made, shared_cache_client
from verbs import Verbs

from idempotency import IdempotencyConfig, idempotent
from persistence import cache
from persistence._cache_errors import LockedError
from persistence._cache_scripts import kept_ms
from persistence.cache import LOCK_SECONDS, AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

__all__ = ["TestClaim", "TestComplete", "TestFetch", "TestPayloads", "TestRelease", "TestRenew"]

KEY = "orders.handler#1"
LOCK = f"{KEY}:lock"


class Plain:
    """The least that a client may have.  *before* is called with the name and the key of each request."""

    def __init__(self, client: Any, before: Callable[[str, str], object] = lambda name, key: None) -> None:
        self._client = client
        self.before = before

    def get(self, name: str) -> Any:
        self.before("get", name)
        return self._client.get(name)

    def set(self, name: str, value: str, ex: int | None = None, nx: bool = False) -> Any:
        self.before("set nx" if nx else "set", name)
        return self._client.set(name, value, ex=ex, nx=nx)

    def delete(self, name: str) -> Any:
        self.before("delete", name)
        return self._client.delete(name)


class AwaitedPlain:
    """The same, awaited."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def get(self, name: str) -> Any:
        return await self._client.get(name)

    async def set(self, name: str, value: str, ex: int | None = None, nx: bool = False) -> Any:
        return await self._client.set(name, value, ex=ex, nx=nx)

    async def delete(self, name: str) -> Any:
        return await self._client.delete(name)

    async def aclose(self) -> None:
        await self._client.connection_pool.disconnect()


@pytest.fixture
def server(valkey_server: str) -> redis.Redis:
    """A client that can do everything, on an emptied server."""
    client: redis.Redis = shared_cache_client(redis.Redis.from_url, valkey_server)
    client.flushall()
    return client


@pytest.fixture
def made(server: redis.Redis, valkey_server: str, clock: FakeClock) -> Made:
    """A plain store, whose pauses are long enough for any lock to expire: by the server's clock, which no test moves."""

    def expire_locks(ms: float = 0) -> None:
        clock.slept_ms.append(ms)
        for lock in server.scan_iter("*:lock"):
            server.delete(lock)

    async def awaited_pause(ms: float) -> None:
        expire_locks(ms)

    store = CachePersistenceLayer(client=Plain(server))
    store.clock_ms, store.sleep_ms = clock, expire_locks

    def peek(key: str) -> dict[str, Any] | None:
        text = server.get(key)
        return None if text is None else {"id": key, **json.loads(text)}

    def new_awaited() -> AsyncCachePersistenceLayer:
        awaited = AsyncCachePersistenceLayer(client=AwaitedPlain(redis.asyncio.Redis.from_url(valkey_server)))
        awaited.clock_ms, awaited.sleep_ms = clock, awaited_pause
        return awaited

    return Made(store, peek, new_awaited)


def plain(clock: FakeClock, client: Any) -> CachePersistenceLayer:
    """A store whose pauses pass on the test's clock only."""
    store = CachePersistenceLayer(client=client)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


def orphan(server: redis.Redis, clock: FakeClock, *, expires_s: int = 60) -> DataRecord:
    """The record of an attempt whose lease has just ended."""
    verbs = Verbs(plain(clock, Plain(server)), clock)
    claimed = verbs.claim(verbs.offer(KEY, "owner", lease_ms=1_000, expires_s=expires_s))
    clock.advance(ms=1_001)
    return claimed


def offer(clock: FakeClock, owner_token: str, **fields: Any) -> DataRecord:
    fields = {"generation": 1, **fields}
    return DataRecord(KEY, "INPROGRESS", clock.now_ms // 1000 + 60, clock.now_ms + 5_000, owner_token=owner_token, **fields)


def done(record: DataRecord) -> DataRecord:
    return record.replace(status="COMPLETED", response_data='"result"')


# The lock


def test_only_a_takeover_locks(server: redis.Redis, clock: FakeClock) -> None:
    requests: list[tuple[str, str]] = []
    store = plain(clock, Plain(server, before=lambda *request: requests.append(request)))
    first = store.claim(offer(clock, "a"))
    assert requests == [("set nx", KEY)]
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        store.claim(offer(clock, "b"))
    clock.advance(seconds=6)
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        store.claim(offer(clock, "b", takes_over_orphans=False))
    assert server.keys() == [KEY.encode()]
    requests.clear()

    taken = store.claim(offer(clock, "b"))

    assert (taken.generation, taken.took_over) == (first.generation + 1, True)
    assert requests == [("set nx", KEY), ("get", KEY), ("set nx", LOCK), ("get", KEY), ("set", KEY)]


def test_the_lock_names_its_owner_and_expires_after_ten_seconds_by_the_servers_clock(
    server: redis.Redis, clock: FakeClock
) -> None:
    """Under Powertools' name, and left behind as by Powertools: both respect the other's."""
    orphan(server, clock)

    plain(clock, Plain(server)).claim(offer(clock, "taker"))

    assert server.get(LOCK) == b"taker"
    assert LOCK_SECONDS == 10
    assert 0 < server.pttl(LOCK) <= 10_000


class Deaf(Plain):
    """A client that does not hear the first answer to a request to set this key, or to set it if it is not there."""

    def __init__(self, client: Any, key: str, *, nx: bool) -> None:
        super().__init__(client)
        self._lost = (key, nx)

    def set(self, name: str, value: str, ex: int | None = None, nx: bool = False) -> Any:
        answer = super().set(name, value, ex, nx)
        if (name, nx) == self._lost:
            self._lost = ("", nx)
            raise redis.ConnectionError("Connection reset by peer")
        return answer


@pytest.mark.parametrize("decodes", [False, True], ids=["bytes", "texts"])
def test_a_lock_whose_answer_was_lost_is_recognised(
    server: redis.Redis, valkey_server: str, clock: FakeClock, decodes: bool
) -> None:
    orphan(server, clock)
    client = shared_cache_client(redis.Redis.from_url, valkey_server, decode_responses=decodes)

    taken = plain(clock, Deaf(client, LOCK, nx=True)).claim(offer(clock, "taker"))

    assert (taken.owner_token, taken.generation, taken.took_over) == ("taker", 2, True)
    assert len(clock.slept_ms) == 1


@pytest.mark.parametrize("nx", [True, False], ids=["a new key", "a takeover"])
def test_a_claim_whose_answer_was_lost_is_refused_with_its_own_record(server: redis.Redis, clock: FakeClock, nx: bool) -> None:
    """By which the caller recognises it, and runs."""
    if not nx:
        orphan(server, clock)
    claimed = offer(clock, "taker")

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        plain(clock, Deaf(server, KEY, nx=nx)).claim(claimed)

    assert refused.value.old_data_record == claimed.replace(generation=1 if nx else 2)
    assert len(clock.slept_ms) == 1


@pytest.mark.parametrize("holder", ["another", "True"], ids=["ours", "powertools"])
def test_a_claim_that_finds_the_key_locked_waits_until_the_record_shows_who_took_it(
    server: redis.Redis, clock: FakeClock, holder: str
) -> None:
    late = orphan(server, clock)
    store = plain(clock, Plain(server))
    server.set(LOCK, holder, ex=10)
    winner = offer(clock, holder, generation=2)

    def pause(ms: float) -> None:
        clock.slept_ms.append(ms)
        if len(clock.slept_ms) == 3:
            server.set(KEY, store._texts.text(winner))

    store.sleep_ms = pause

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        store.claim(offer(clock, "late"))

    assert refused.value.old_data_record == winner
    assert (len(clock.slept_ms), late.owner_token) == (3, "owner")


def test_the_lock_of_a_taker_that_died_frees_the_key_when_the_server_expires_it(server: redis.Redis, clock: FakeClock) -> None:
    orphan(server, clock)
    server.set(LOCK, "dead", ex=LOCK_SECONDS)
    store = plain(clock, Plain(server))
    store.sleep_ms = lambda ms: server.pexpire(LOCK, 0)

    taken = store.claim(offer(clock, "taker"))

    assert (taken.owner_token, taken.generation) == ("taker", 2)


@pytest.mark.parametrize(("deadline_ms", "waits_ms"), [(None, 10_000), (2_000, 1_900)], ids=["10 s", "to the deadline"])
def test_a_lock_that_stays_is_waited_for_no_longer_than_a_claim_is_retried(
    server: redis.Redis, clock: FakeClock, deadline_ms: int | None, waits_ms: int
) -> None:
    orphan(server, clock)
    before = server.get(KEY)
    server.set(LOCK, "dead", ex=LOCK_SECONDS)
    begun_ms = clock.now_ms
    claiming = offer(clock, "taker", deadline_ms=None if deadline_ms is None else begun_ms + deadline_ms)

    with pytest.raises(IdempotencyPersistenceLayerError, match="Another attempt is taking the key over") as failure:
        plain(clock, Plain(server)).claim(claiming)

    assert isinstance(failure.value.__cause__, LockedError)
    assert waits_ms - 10 < clock.now_ms - begun_ms <= waits_ms
    assert (server.get(KEY), server.get(LOCK)) == (before, b"dead")


@pytest.mark.parametrize("step", [("get", KEY), ("set nx", LOCK)], ids=["before the first read", "before the lock"])
@pytest.mark.parametrize("verb", ["complete", "renew", "release"])
def test_what_the_owner_writes_before_the_lock_is_seen_under_it(
    server: redis.Redis, clock: FakeClock, step: tuple[str, str], verb: str
) -> None:
    """Powertools decides by what it has read before it locks, and overwrites a result."""
    late = orphan(server, clock)
    theirs = plain(clock, Plain(server))
    write = {
        "complete": partial(theirs.complete, done(late)),
        "renew": partial(theirs.renew, late.replace(in_progress_expiry_timestamp=clock.now_ms)),
        "release": partial(theirs.release, late),
    }[verb]
    written: list[bytes | None] = []

    def before(*request: str) -> None:
        if request == step and not written:
            write()
            written.append(server.get(KEY))

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        plain(clock, Plain(server, before)).claim(offer(clock, "taker"))

    assert [server.get(KEY)] == written
    existing = refused.value.old_data_record
    if verb == "release":
        assert existing is None  # gone: the caller claims again
    else:
        assert existing.owner_token == "owner"


def test_of_many_claims_at_once_of_one_orphan_one_is_granted(
    server: redis.Redis, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CLAIM_RETRY_MS", 3_600_000)  # so that nobody gives up
    store = plain(clock, Plain(server))
    store.sleep_ms = lambda ms: None
    verbs = Verbs(store, clock)
    for _ in range(10):
        server.flushall()
        orphan(server, clock)

        answers = verbs.claim_at_once([offer(clock, f"racer-{n}") for n in range(12)])

        (granted,) = [answer for answer in answers if isinstance(answer, DataRecord)]
        assert sum(isinstance(answer, IdempotencyItemAlreadyExistsError) for answer in answers) == 11
        assert store.fetch(KEY) == granted


# What is kept


def test_a_key_is_kept_at_least_as_long_as_with_scripts(server: redis.Redis, clock: FakeClock) -> None:
    """In whole seconds, because nothing else is certain to be known to the client."""
    store = plain(clock, Plain(server))

    def is_kept_for(record: DataRecord, write: Callable[[DataRecord], object]) -> None:
        write(record)
        kept = kept_ms(record, clock.now_ms)
        assert kept is not None
        # A slow machine may take the rest of a minute for this.
        assert kept - 59_000 < server.pttl(KEY) <= kept + 999

    claimed = offer(clock, "a")
    is_kept_for(claimed, store.claim)
    is_kept_for(claimed.replace(in_progress_expiry_timestamp=clock.now_ms + 7_200_000), store.renew)
    is_kept_for(done(claimed).replace(expiry_timestamp=clock.now_ms // 1000 + 9_000), store.complete)


def test_a_record_without_expiry_is_never_collected(server: redis.Redis, clock: FakeClock) -> None:
    store = plain(clock, Plain(server))
    endless = offer(clock, "a").replace(expiry_timestamp=None)
    store.claim(endless)
    assert server.pttl(KEY) == -1
    server.pexpire(KEY, 10_000)

    store.complete(done(endless))

    assert server.pttl(KEY) == -1


VALUES: dict[str, Callable[[Any], object]] = {
    "list": lambda server: server.rpush(KEY, "secret"),
    "hash": lambda server: server.hset(KEY, "status", "INPROGRESS"),
    "empty": lambda server: server.set(KEY, ""),
    "no JSON": lambda server: server.set(KEY, "secret"),
    "no UTF-8": lambda server: server.set(KEY, b'{"status": "COMPLETED", "data": "\xff"}'),
    "UTF-16": lambda server: server.set(KEY, '{"status": "COMPLETED"}'.encode("utf-16")),
    "too deep": lambda server: server.set(KEY, "[" * 100_000),
    "a list of JSON": lambda server: server.set(KEY, '[{"status": "COMPLETED"}]'),
    "a token that is no text": lambda server: server.set(KEY, '{"status": "COMPLETED", "expiration": 1, "owner_token": []}'),
}


@pytest.mark.parametrize("decodes", [False, True], ids=["bytes", "texts"])
@pytest.mark.parametrize("put", VALUES.values(), ids=VALUES)
def test_a_value_that_is_no_record_is_a_clear_error_and_stays_as_it_is(
    server: redis.Redis, valkey_server: str, clock: FakeClock, put: Callable[[Any], object], decodes: bool
) -> None:
    store = plain(clock, Plain(shared_cache_client(redis.Redis.from_url, valkey_server, decode_responses=decodes)))
    put(server)
    before = server.dump(KEY)
    mine = offer(clock, "a")

    for verb in (
        partial(store.claim, mine),
        partial(store.fetch, KEY),
        partial(store.complete, done(mine)),
        partial(store.renew, mine),
        partial(store.release, mine),
    ):
        with pytest.raises(IdempotencyPersistenceLayerError) as failure:
            verb()
        assert isinstance(failure.value.__cause__, IdempotencyPersistenceConsistencyError)
        assert KEY in str(failure.value)
        assert "secret" not in str(failure.value)

    assert server.dump(KEY) == before
    assert server.keys() == [KEY.encode()]


def test_a_result_that_no_server_can_hold_is_an_answer_before_anything_is_sent(server: redis.Redis, clock: FakeClock) -> None:
    requests: list[tuple[str, str]] = []
    store = plain(clock, Plain(server, before=lambda *request: requests.append(request)))
    claimed = store.claim(offer(clock, "a"))
    requests.clear()

    with pytest.raises(IdempotencyResultNotKeptError):
        store.complete(done(claimed).replace(response_data='"\ud800"'))

    assert requests == []


def test_a_late_owner_is_fenced_off_by_what_its_read_shows(server: redis.Redis, clock: FakeClock) -> None:
    late = orphan(server, clock)
    store = plain(clock, Plain(server))
    winner = store.claim(offer(clock, "winner"))
    before = server.get(KEY)

    for write in (
        partial(store.complete, done(late)),
        partial(store.renew, late.replace(in_progress_expiry_timestamp=clock.now_ms + 60_000)),
        partial(store.release, late),
    ):
        with pytest.raises(IdempotencyLeaseLostError) as fenced:
            write()
        assert fenced.value.record == winner

    assert server.get(KEY) == before


# Through the decorator


@pytest.mark.parametrize("seed", [20_261_121])
def test_a_function_runs_once_for_each_key(server: redis.Redis, seed: int) -> None:
    rng, runs = random.Random(seed), []

    @idempotent(persistence_store=CachePersistenceLayer(client=Plain(server)), config=IdempotencyConfig(event_key_jmespath="id"))
    def handler(event: dict[str, Any], context: Any) -> Any:
        runs.append(event["id"])
        return {"n": event["id"]}

    for _ in range(30):
        number = rng.randrange(5)
        assert handler({"id": number}, LambdaContext()) == {"n": number}

    assert sorted(runs) == sorted(set(runs))


def test_an_awaited_function_runs_once(server: redis.Redis, valkey_server: str) -> None:
    runs = []

    async def story() -> list[Any]:
        client = redis.asyncio.Redis.from_url(valkey_server)
        store = AsyncCachePersistenceLayer(client=AwaitedPlain(client))

        @idempotent(persistence_store=store, config=IdempotencyConfig(event_key_jmespath="id"))
        async def handler(event: dict[str, Any], context: Any) -> Any:
            runs.append(event)
            return len(runs)

        try:
            return [await handler({"id": 1}, LambdaContext()) for _ in range(2)]
        finally:
            await store.aclose()

    assert asyncio.run(story()) == [1, 1]
    assert len(runs) == 1


# Clients that have less


@pytest.mark.parametrize("missing", ["get", "set", "delete"])
def test_a_client_without_one_of_the_three_is_refused(missing: str) -> None:
    names = {"get", "set", "delete"} - {missing}
    client = type("Client", (), dict.fromkeys(names))()

    with pytest.raises(IdempotencyPersistenceConfigError, match=f"^client has no {missing}: Client$"):
        CachePersistenceLayer(client=client)


def test_replicas_cannot_be_waited_for(server: redis.Redis) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^min_replicas_ack needs a client of redis-py or valkey-py$"):
        CachePersistenceLayer(client=Plain(server), min_replicas_ack=1)
