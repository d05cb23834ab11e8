"""Hundreds of attempts at one key of a cache at the same moment, over many connections: one winner, always.

`test_races` plays sixteen on every store.  Here the server is asked by so many that its own queue is the race.
"""

from __future__ import annotations

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from conformance.test_races import BEFORE, absent, expired_result, orphan
from verbs import Verbs

from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence import cache
from persistence.datarecord import DataRecord
from persistence.exceptions import BaseError, IdempotencyItemAlreadyExistsError, IdempotencyLeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from doubles import FakeClock

RACERS = 300
#: Where the race is run again and again.
FEWER_RACERS = 60
ROUNDS = 3
#: Against how many another kind of call races, round by round: against so few it is often the first, against so many hardly ever.
RIVALS = [1] * 6 + [2] * 3 + [FEWER_RACERS]
#: Each of them has connections of its own, as processes have.
CLIENTS = 4
#: Of a client without scripts.
PLAIN_RACERS = 50
SEED = 20261121


@dataclass(frozen=True)
class Crowd:
    """Stores on one server, and how their calls are made at the same moment."""

    stores: Sequence[CachePersistenceLayer]
    pool: ThreadPoolExecutor
    verbs: Verbs
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))

    def at_once(self, verb: str, records: Sequence[DataRecord], first: Callable[[], object] | None = None) -> list[Any]:
        """One verb for each record, in the clients in turn; what each returned or raised.  That of *first* is at the end.

        The call that is named *first* begins somewhere among the others, as the seed has it.
        """
        calls: list[Callable[[], Any]] = [
            partial(getattr(store, verb), record) for store, record in zip(cycle(self.stores), records, strict=False)
        ]
        if first is not None:
            calls.append(first)
        order = list(range(len(calls)))
        self.chance.shuffle(order)
        start = Barrier(len(calls))

        def make(number: int) -> Any:
            start.wait()
            try:
                return calls[number]()
            except BaseError as error:
                return error

        answers = dict(zip(order, self.pool.map(make, order), strict=True))
        return [answers[number] for number in range(len(calls))]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """The racers, started once."""
    with ThreadPoolExecutor(RACERS + 1) as made:
        yield made


KINDS = [
    pytest.param(("valkey_server", valkey.Valkey.from_url), id="valkey", marks=pytest.mark.valkey),
    pytest.param(("valkey_cluster", redis.RedisCluster.from_url), id="valkey-cluster", marks=pytest.mark.valkey_cluster),
    pytest.param(("redis_server", redis.Redis.from_url), id="redis", marks=pytest.mark.redis),
]


@pytest.fixture(scope="module", params=KINDS)
def clients(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    fixture, new_client = request.param
    url = request.getfixturevalue(fixture)
    made = [new_client(url) for _ in range(CLIENTS)]
    yield made
    for client in made:
        client.close()


@pytest.fixture
def crowd(clients: list[Any], pool: ThreadPoolExecutor, clock: FakeClock) -> Crowd:
    clients[0].flushall()
    stores = [on_clock(CachePersistenceLayer(client=client), clock) for client in clients]
    return Crowd(stores, pool, Verbs(stores[0], clock))


def on_clock(store: CachePersistenceLayer, clock: FakeClock) -> CachePersistenceLayer:
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


def racers(before: Callable[[Verbs, FakeClock, str], int]) -> int:
    """Hundreds where something is there to be taken over."""
    return RACERS if before is orphan else FEWER_RACERS


def offers(verbs: Verbs, key: str, count: int) -> list[DataRecord]:
    return [verbs.offer(key, f"racer-{number}", lease_ms=60_000) for number in range(count)]


def granted(answers: Sequence[Any]) -> list[DataRecord]:
    return [answer for answer in answers if isinstance(answer, DataRecord)]


def refused_with(answers: Sequence[Any]) -> set[DataRecord | None]:
    """The records that refused the others; each of the others was refused, or this fails."""
    others = [answer for answer in answers if not isinstance(answer, DataRecord)]
    assert {type(other) for other in others} <= {IdempotencyItemAlreadyExistsError}, others
    return {other.old_data_record for other in others}


def assert_one_winner(answers: Sequence[Any], generation: int, fetched: DataRecord | None) -> None:
    (winner,) = granted(answers)
    assert winner.generation == generation
    assert refused_with(answers) <= {winner}
    assert fetched == winner


@pytest.mark.parametrize("before", BEFORE)
def test_of_up_to_hundreds_of_claims_at_once_one_is_granted_and_refuses_all_others(
    crowd: Crowd, clock: FakeClock, before: Callable[[Verbs, FakeClock, str], int]
) -> None:
    generation = before(crowd.verbs, clock, "race")

    answers = crowd.at_once("claim", offers(crowd.verbs, "race", racers(before)))

    assert_one_winner(answers, generation + 1, crowd.verbs.fetch("race"))


def test_a_late_completion_among_the_claims_is_before_all_of_them_or_fenced(crowd: Crowd, clock: FakeClock) -> None:
    for number, rivals in enumerate(RIVALS):
        key = f"race#{number}"
        late = crowd.verbs.claim(crowd.verbs.offer(key, "late"))
        clock.advance(ms=1_001)
        done = crowd.verbs.completed(late, '"late"')

        *answers, completed = crowd.at_once("claim", offers(crowd.verbs, key, rivals), partial(crowd.stores[-1].complete, done))

        found = crowd.verbs.fetch(key)
        if completed is None:
            assert (granted(answers), refused_with(answers), found) == ([], {done}, done)
        else:
            assert isinstance(completed, IdempotencyLeaseLostError)
            assert completed.record == found
            assert_one_winner(answers, 2, found)


def test_a_late_release_among_the_claims_leaves_one_winner(crowd: Crowd, clock: FakeClock) -> None:
    """Released before, the key is new; released after, it is another's."""
    for number, rivals in enumerate(RIVALS):
        key = f"race#{number}"
        late = crowd.verbs.claim(crowd.verbs.offer(key, "late"))
        clock.advance(ms=1_001)

        *answers, released = crowd.at_once("claim", offers(crowd.verbs, key, rivals), partial(crowd.stores[-1].release, late))

        assert released is None or isinstance(released, IdempotencyLeaseLostError)
        assert_one_winner(answers, 1 if released is None else 2, crowd.verbs.fetch(key))


def test_a_late_renewal_among_the_claims_is_before_all_of_them_or_fenced(crowd: Crowd, clock: FakeClock) -> None:
    for number, rivals in enumerate(RIVALS):
        key = f"race#{number}"
        late = crowd.verbs.claim(crowd.verbs.offer(key, "late"))
        clock.advance(ms=1_001)
        longer = crowd.verbs.renewed(late, lease_ms=60_000)

        *answers, renewed = crowd.at_once("claim", offers(crowd.verbs, key, rivals), partial(crowd.stores[-1].renew, longer))

        found = crowd.verbs.fetch(key)
        if renewed is None:
            assert (granted(answers), refused_with(answers), found) == ([], {longer}, found)
            assert found == longer
        else:
            assert isinstance(renewed, IdempotencyLeaseLostError)
            assert_one_winner(answers, 2, found)


def test_of_many_completions_at_once_only_the_owners_is_stored(crowd: Crowd) -> None:
    """All but one come from attempts that never owned the record."""
    verbs = crowd.verbs
    owner = verbs.claim(verbs.offer("race", "owner"))
    strangers = [verbs.completed(offer, f'"{offer.owner_token}"') for offer in offers(verbs, "race", FEWER_RACERS)]
    done = verbs.completed(owner, '"owner"')

    *answers, completed = crowd.at_once("complete", strangers, partial(crowd.stores[-1].complete, done))

    assert {type(answer) for answer in answers} == {IdempotencyLeaseLostError}
    assert completed is None
    assert verbs.fetch("race") == done


# Awaited: each client on one loop, and so many tasks


ASYNC_KINDS = [
    pytest.param(("valkey_server", valkey.asyncio.Valkey.from_url), id="valkey", marks=pytest.mark.valkey),
    pytest.param(("valkey_cluster", redis.asyncio.RedisCluster.from_url), id="valkey-cluster", marks=pytest.mark.valkey_cluster),
    pytest.param(("redis_server", redis.asyncio.Redis.from_url), id="redis", marks=pytest.mark.redis),
]


async def in_crowd(
    url: str, new_client: Callable[..., Any], clock: FakeClock, story: Callable[[list[AsyncCachePersistenceLayer]], Any]
) -> None:
    """Tell the story with a few stores on an emptied server."""
    stores = [AsyncCachePersistenceLayer(client=new_client(url)) for _ in range(CLIENTS)]
    for store in stores:
        store.clock_ms = clock
        await store.client.initialize()
    await stores[0].client.flushall()
    try:
        await story(stores)
    finally:
        for store in stores:
            await store.aclose()


async def gathered(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What each call returned or raised."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    strange = [answer for answer in answers if isinstance(answer, BaseException) and not isinstance(answer, BaseError)]
    assert not strange, strange
    return answers


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_of_up_to_hundreds_of_awaited_claims_one_is_granted_and_refuses_all_others(
    request: pytest.FixtureRequest, kind: tuple[str, Callable[..., Any]], clock: FakeClock, crowd_of: Callable[[str], Verbs]
) -> None:
    fixture, new_client = kind
    url = request.getfixturevalue(fixture)
    verbs = crowd_of(fixture)

    async def story(stores: list[AsyncCachePersistenceLayer]) -> None:
        for before in BEFORE:
            key = f"race#{before.__name__}"
            generation = before(verbs, clock, key)
            racing = zip(cycle(stores), offers(verbs, key, racers(before)), strict=False)

            answers = await gathered([store.claim(offer) for store, offer in racing])

            assert_one_winner(answers, generation + 1, await stores[0].fetch(key))

    asyncio.run(in_crowd(url, new_client, clock, story))


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_late_awaited_completion_among_the_claims_is_before_all_of_them_or_fenced(
    request: pytest.FixtureRequest, kind: tuple[str, Callable[..., Any]], clock: FakeClock, crowd_of: Callable[[str], Verbs]
) -> None:
    fixture, new_client = kind
    url = request.getfixturevalue(fixture)
    verbs = crowd_of(fixture)
    chance = random.Random(SEED)

    async def story(stores: list[AsyncCachePersistenceLayer]) -> None:
        for number, rivals in enumerate(RIVALS):
            key = f"race#{number}"
            late = await stores[0].claim(verbs.offer(key, "late"))
            clock.advance(ms=1_001)
            done = verbs.completed(late, '"late"')
            calls = [store.claim(offer) for store, offer in zip(cycle(stores), offers(verbs, key, rivals), strict=False)]
            place = chance.randint(0, rivals)
            calls.insert(place, stores[-1].complete(done))

            answers = await gathered(calls)

            completed = answers.pop(place)
            found = await stores[0].fetch(key)
            if completed is None:
                assert (granted(answers), refused_with(answers), found) == ([], {done}, done)
            else:
                assert isinstance(completed, IdempotencyLeaseLostError)
                assert_one_winner(answers, 2, found)

    asyncio.run(in_crowd(url, new_client, clock, story))


@pytest.fixture
def crowd_of(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Callable[[str], Verbs]]:
    """The verbs of a sync store on the server of that fixture, by which a story is prepared."""
    made: list[Any] = []

    def make(fixture: str) -> Verbs:
        new_client = redis.RedisCluster.from_url if fixture == "valkey_cluster" else redis.Redis.from_url
        made.append(new_client(request.getfixturevalue(fixture)))
        return Verbs(on_clock(CachePersistenceLayer(client=made[-1]), clock), clock)

    yield make
    for client in made:
        client.close()


# Without scripts


class Plain:
    """A client with the least that the store needs."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def get(self, name: str) -> Any:
        return self._client.get(name)

    def set(self, name: str, value: str, ex: Any = None, px: Any = None, nx: bool = False) -> Any:
        return self._client.set(name, value, ex=ex, px=px, nx=nx)

    def delete(self, name: str) -> Any:
        return self._client.delete(name)


class AwaitedPlain(Plain):
    """The same, awaited."""

    async def get(self, name: str) -> Any:
        return await super().get(name)

    async def set(self, name: str, value: str, ex: Any = None, px: Any = None, nx: bool = False) -> Any:
        return await super().set(name, value, ex, px, nx)

    async def delete(self, name: str) -> Any:
        return await super().delete(name)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up, however many wait for the lock."""
    monkeypatch.setattr(cache, "CLAIM_RETRY_MS", 3_600_000)


@pytest.fixture
def plain_crowd(valkey_server: str, pool: ThreadPoolExecutor, clock: FakeClock, patience: None) -> Iterator[Crowd]:
    made = [redis.Redis.from_url(valkey_server) for _ in range(CLIENTS)]
    made[0].flushall()
    stores = [CachePersistenceLayer(client=Plain(client)) for client in made]
    for store in stores:
        # Time stands still: a lease must not end because so many wait for the lock.
        store.clock_ms, store.sleep_ms = clock, lambda _ms: os.sched_yield()
    yield Crowd(stores, pool, Verbs(stores[0], clock))
    for client in made:
        client.close()


@pytest.mark.parametrize("before", BEFORE)
def test_without_scripts_of_many_claims_at_once_one_is_granted(
    plain_crowd: Crowd, clock: FakeClock, before: Callable[[Verbs, FakeClock, str], int]
) -> None:
    for number in range(ROUNDS):
        key = f"race#{number}"
        generation = before(plain_crowd.verbs, clock, key)

        answers = plain_crowd.at_once("claim", offers(plain_crowd.verbs, key, PLAIN_RACERS))

        assert_one_winner(answers, generation + 1, plain_crowd.verbs.fetch(key))


class Outrun(Plain):
    """A client whose next lock comes late: *first* happens before it, and the lock of others has run out."""

    def __init__(self, client: redis.Redis, first: Callable[[], object]) -> None:
        super().__init__(client)
        self._first: list[Callable[[], object]] = [first]

    def set(self, name: str, value: str, ex: Any = None, px: Any = None, nx: bool = False) -> Any:
        if name.endswith(":lock") and self._first:
            self._first.pop()()
            self._client.delete(name)
        return super().set(name, value, ex, px, nx)


def test_without_scripts_a_lock_that_comes_too_late_takes_nothing_over(valkey_server: str, clock: FakeClock) -> None:
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
        verbs = Verbs(on_clock(CachePersistenceLayer(client=Plain(client)), clock), clock)
        orphan(verbs, clock, "k")
        taken: list[DataRecord] = []
        slow = Outrun(client, lambda: taken.append(verbs.claim(verbs.offer("k", "first"))))

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            on_clock(CachePersistenceLayer(client=slow), clock).claim(verbs.offer("k", "second"))

        assert [refused.value.old_data_record] == taken == [verbs.fetch("k")]


@pytest.mark.parametrize("before", [absent, orphan, expired_result])
def test_without_scripts_of_many_awaited_claims_one_is_granted(
    valkey_server: str,
    clock: FakeClock,
    before: Callable[[Verbs, FakeClock, str], int],
    crowd_of: Callable[[str], Verbs],
    patience: None,
) -> None:
    verbs = crowd_of("valkey_server")

    async def story(stores: list[AsyncCachePersistenceLayer]) -> None:
        for store in stores:
            store.client = AwaitedPlain(store.client)
            store.sleep_ms = lambda _ms: asyncio.sleep(0)
        for number in range(ROUNDS):
            key = f"race#{number}"
            generation = before(verbs, clock, key)
            racing = zip(cycle(stores), offers(verbs, key, PLAIN_RACERS), strict=False)

            answers = await gathered([store.claim(offer) for store, offer in racing])

            assert_one_winner(answers, generation + 1, await stores[0].fetch(key))

    async def told() -> None:
        clients = [redis.asyncio.Redis.from_url(valkey_server) for _ in range(CLIENTS)]
        await clients[0].flushall()
        stores = [AsyncCachePersistenceLayer(client=client) for client in clients]
        for store in stores:
            store.clock_ms = clock
        try:
            await story(stores)
        finally:
            for client in clients:
                await AsyncCachePersistenceLayer(client=client).aclose()  # redis-py 5.0 has another name for it

    asyncio.run(told())
