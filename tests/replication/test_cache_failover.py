"""A Valkey master dies or is demoted: what its replica has is honoured, and what it lacks is lost.

`min_replicas_ack` waits until the replica has it.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio.sentinel
import redis.sentinel
from engines.caches import HOST
from engines.plugin import entered
from faults import KEY, ORDER, PREFIX, Form, keyed
from replication.cache_replicas import MASTER, Address, Pair, address, is_known_to, pair, sentinel, until
from verbs import AwaitedVerbs, Verbs

from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer, IdempotencyPersistenceLayerError, idempotent_function
from persistence._cache_errors import UnacknowledgedError
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock

pytestmark = pytest.mark.valkey

#: What a server answers that has no such key.
NOTHING = "$-1\r\n"
#: How many calls at once leave as many connections open.
CONNECTIONS = 4


def paired() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield entered(stack, pair(), "Valkey")


@pytest.fixture
def servers() -> Iterator[Pair]:
    """A master and a replica of this test's own, of which one may die."""
    yield from paired()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    yield from paired()


@pytest.fixture
def waiting(lasting: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A master and a replica that stay what they are; the replica may be stopped.  The master waits for it only shortly."""
    monkeypatch.setattr("persistence._cache_clients.REPLICATION_MS", 20)
    lasting.master.says("FLUSHALL")
    yield lasting
    lasting.wake_replica()


class Desk:
    """Stores of a test, sync or async, and what happens in their pauses.

    Attributes:
        pauses: What is to happen in the pauses to come, one in each; time passes in all of them.
        slept: How many pauses there were.
    """

    def __init__(self, stack: ExitStack, clock: FakeClock, form: Form) -> None:
        self.clock = clock
        self.form = form
        self.pauses: list[Callable[[], object]] = []
        self.slept = 0
        self._stack = stack

    def store(self, url: str, **options: Any) -> Any:
        if self.form.is_async:
            made: Any = AsyncCachePersistenceLayer(url=url, **options)
            made.sleep_ms = self._asleep_ms
        else:
            made = CachePersistenceLayer(url=url, **options)
            self._stack.callback(made.client.close)
            made.sleep_ms = self._sleep_ms
        made.clock_ms = self.clock
        return made

    def verbs(self, url: str, **options: Any) -> Verbs:
        store = self.store(url, **options)
        made = AwaitedVerbs(store, self.clock, store) if self.form.is_async else Verbs(store, self.clock)
        self._stack.callback(made.close)
        return made

    def call(self, body: Callable[[Any], Any], store: Any) -> Any:
        """Call an idempotent function with that body, and leave no connection behind."""
        options: Any = {"persistence_store": store, "config": keyed(lease_seconds=60), "key_prefix": PREFIX}
        if not self.form.is_async:
            return idempotent_function(body, data_keyword_argument="event", **options)(event=ORDER)

        @idempotent_function(data_keyword_argument="event", **options)
        async def work(event: Any) -> Any:
            return body(event)

        async def called() -> Any:
            try:
                return await work(event=ORDER)
            finally:
                await store.aclose()

        return asyncio.run(called())

    def _sleep_ms(self, ms: float) -> None:
        self.slept += 1
        self.clock.advance(ms=round(ms))
        if self.pauses:
            self.pauses.pop(0)()

    async def _asleep_ms(self, ms: float) -> None:
        self._sleep_ms(ms)


@pytest.fixture
def desk(clock: FakeClock, form: Form) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(stack, clock, form)


@pytest.fixture
def door(servers: Pair) -> Iterator[Address]:
    """The address under which clients know the master."""
    with address(servers.master.port) as made:
        yield made


def fail_over(servers: Pair, door: Address) -> None:
    servers.promote()
    door.leads_to = servers.replica.port


# The master dies


def test_a_replicated_claim_is_honoured_after_a_failover_and_its_owner_completes(
    servers: Pair, door: Address, desk: Desk
) -> None:
    verbs = desk.verbs(door.url)
    owned = verbs.claim(verbs.offer("k", "owner", lease_ms=60_000))
    servers.replicate("k")

    servers.master.kill()
    desk.pauses = [partial(fail_over, servers, door)]
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer("k", "other"))
    verbs.complete(verbs.completed(owned, '"result"'))

    assert refused.value.old_data_record == owned
    assert desk.slept == 1
    assert verbs.fetch("k") == verbs.completed(owned, '"result"')


def test_a_claim_that_was_not_replicated_is_lost_in_a_failover_and_its_owner_is_fenced(
    servers: Pair, door: Address, desk: Desk
) -> None:
    """The limit of asynchronous replication: both attempts run the function.  The second one's result is kept."""
    verbs = desk.verbs(door.url)
    servers.promote()
    lost = verbs.claim(verbs.offer("k", "first", lease_ms=60_000))

    servers.master.kill()
    desk.pauses = [partial(fail_over, servers, door)]
    second = verbs.claim(verbs.offer("k", "second", lease_ms=60_000))
    with pytest.raises(IdempotencyLeaseLostError) as fenced:
        verbs.complete(verbs.completed(lost, '"first"'))

    assert (lost.generation, second.generation) == (1, 1)
    assert fenced.value.record == second


# The master is demoted, and lives on


def test_connections_to_a_demoted_master_are_left_for_the_new_one(servers: Pair, door: Address, desk: Desk) -> None:
    verbs = desk.verbs(door.url)
    owned = verbs.claim(verbs.offer("owned", "owner", lease_ms=60_000))
    verbs.claim_at_once([verbs.offer(f"before-{number}", "a") for number in range(CONNECTIONS)])
    servers.replicate(f"before-{CONNECTIONS - 1}")

    fail_over(servers, door)
    servers.demote()
    claimed = verbs.claim(verbs.offer("after", "a"))
    verbs.complete(verbs.completed(owned, '"result"'))
    answers = verbs.claim_at_once([verbs.offer(f"after-{number}", "a") for number in range(CONNECTIONS)])

    assert desk.slept == 1
    assert [type(answer) for answer in answers] == [DataRecord] * CONNECTIONS
    assert servers.replica.says("EXISTS", "after", "owned", *[f"after-{number}" for number in range(CONNECTIONS)]) == ":6\r\n"
    assert verbs.fetch("after") == claimed


def test_a_store_asks_a_demoted_master_until_its_address_leads_to_the_new_one(servers: Pair, door: Address, desk: Desk) -> None:
    verbs = desk.verbs(door.url)
    owned = verbs.claim(verbs.offer("k", "owner", lease_ms=60_000))
    servers.replicate("k")
    servers.promote()
    servers.demote()

    nothing: Callable[[], object] = lambda: None  # noqa: E731 - what happens
    desk.pauses = [nothing, nothing, partial(fail_over, servers, door)]
    verbs.complete(verbs.completed(owned, '"result"'))

    assert desk.slept == 3
    assert '\\"result\\"' in servers.replica.says("GET", "k")


def test_a_demoted_master_that_the_address_still_leads_to_is_named_in_the_error(servers: Pair, door: Address, desk: Desk) -> None:
    verbs = desk.verbs(door.url)
    began_ms = desk.clock()
    servers.promote()
    servers.demote()

    with pytest.raises(IdempotencyPersistenceLayerError, match="use the address of the master"):
        verbs.claim(verbs.offer("k", "a"))

    assert desk.clock() - began_ms <= 10_000


# Sentinel


def wait(ms: float) -> None:
    Event().wait(ms / 1000)


def test_stores_with_clients_of_sentinel_complete_after_a_failover(servers: Pair, clock: FakeClock) -> None:
    """The first pause of each lasts until there is a new master; the others are real, because clients take time to follow it."""
    with ExitStack() as stack:
        watcher = stack.enter_context(sentinel(servers))
        place, is_over = [(HOST, watcher.port)], partial(is_known_to, watcher, servers)
        patience = {"socket_timeout": 2, "retry": None}
        watching = redis.sentinel.Sentinel(place)
        store = CachePersistenceLayer(client=watching.master_for(MASTER, **patience))
        store.clock_ms, store.sleep_ms = clock, lambda ms: until(is_over) or wait(ms)
        verbs = Verbs(store, clock)
        awatching = redis.asyncio.sentinel.Sentinel(place)
        astore = AsyncCachePersistenceLayer(client=awatching.master_for(MASTER, **patience))
        astore.clock_ms, astore.sleep_ms = clock, lambda ms: asyncio.to_thread(store.sleep_ms, ms)
        awaited = AwaitedVerbs(store, clock, astore)
        for each in (store.client, *watching.sentinels):
            stack.callback(each.close)
        stack.callback(awaited.close)
        for asked in awatching.sentinels:
            stack.callback(lambda asked=asked: awaited._runner.run(asked.aclose()))
        owned, aowned = verbs.claim(verbs.offer("k", "sync")), awaited.claim(verbs.offer("ak", "async"))
        servers.replicate("ak")

        servers.master.kill()
        verbs.complete(verbs.completed(owned, '"result"'))
        awaited.complete(verbs.completed(aowned, '"result"'))

        assert [verbs.fetch(key) for key in ("k", "ak")] == [verbs.completed(each, '"result"') for each in (owned, aowned)]
        assert "COMPLETED" in servers.replica.says("GET", "k")


# Replicas that must confirm


def test_without_a_replica_that_confirms_the_claim_the_function_is_not_run(waiting: Pair, desk: Desk) -> None:
    """The claim is there none the less, and may count: the key is free again when its lease ends."""
    runs: list[Any] = []

    def body(event: Any) -> None:
        runs.append(event)

    store = desk.store(waiting.master.endpoint, min_replicas_ack=1)
    waiting.stop_replica()

    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        desk.call(body, store)

    assert isinstance(failed.value.__cause__, UnacknowledgedError)
    assert "0 of 1 replicas have confirmed the write" in str(failed.value)
    assert runs == []
    waiting.wake_replica()
    desk.clock.advance(seconds=61)
    desk.call(body, store)
    assert runs == [ORDER]


def test_when_the_function_runs_the_replica_has_the_claim_and_when_it_has_returned_the_result(waiting: Pair, desk: Desk) -> None:
    """The replica neither hears nor says anything when either is written, and is awake from the second pause on."""
    seen: list[str] = []

    def body(event: Any) -> str:
        seen.append(waiting.replica.says("GET", KEY))
        waiting.stop_replica()
        desk.pauses = [lambda: None, waiting.wake_replica]
        return "result"

    store = desk.store(waiting.master.endpoint, min_replicas_ack=1)
    waiting.stop_replica()
    desk.pauses = [lambda: None, waiting.wake_replica]
    desk.call(body, store)
    seen.append(waiting.replica.says("GET", KEY))

    assert [("INPROGRESS" in text, "COMPLETED" in text) for text in seen] == [(True, False), (False, True)]
    assert desk.slept == 4


def test_a_claim_is_refused_and_a_result_found_without_any_replica(waiting: Pair, desk: Desk) -> None:
    """They write nothing that could be lost."""
    verbs = desk.verbs(waiting.master.endpoint, min_replicas_ack=1)
    done = verbs.completed(verbs.claim(verbs.offer("k", "a")), '"result"')
    verbs.complete(done)
    waiting.promote()

    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer("k", "b"))
    found = verbs.fetch("k")
    waiting.follow()

    assert refused.value.old_data_record == found == done
    assert desk.slept == 0


def dropped(waiting: Pair) -> None:
    """Cut all connections of clients, so that the next request is made on a new one."""
    waiting.master.says("CLIENT", "KILL", "TYPE", "normal")


@pytest.mark.parametrize("operation", ["claim", "complete"])
def test_a_repeated_write_waits_for_its_own_copies_on_whatever_connection_it_is_made(
    waiting: Pair, desk: Desk, operation: str
) -> None:
    """WAIT counts the copies of what its own connection has written, so the repetition writes its record again."""
    verbs = desk.verbs(waiting.master.endpoint, min_replicas_ack=1)
    offer = verbs.offer("k", "a", lease_ms=60_000)
    done = verbs.completed(offer if operation == "claim" else verbs.claim(offer), '"result"')
    waiting.stop_replica()
    desk.pauses = [partial(dropped, waiting), partial(dropped, waiting), waiting.wake_replica]

    if operation == "claim":
        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(offer)
        assert refused.value.old_data_record == offer
    else:
        verbs.complete(done)

    assert desk.slept == 3
    assert waiting.replica.says("GET", "k") == waiting.master.says("GET", "k") != NOTHING


def test_a_result_that_no_replica_confirms_is_an_error_in_the_end_and_replayed_later(waiting: Pair, desk: Desk) -> None:
    """The master has it, which is not what was asked for."""
    runs: list[Any] = []

    def body(event: Any) -> str:
        runs.append(event)
        waiting.stop_replica()
        return "result"

    store = desk.store(waiting.master.endpoint, min_replicas_ack=1)
    with pytest.raises(IdempotencyPersistenceLayerError, match="0 of 1 replicas have confirmed the write"):
        desk.call(body, store)
    waiting.wake_replica()

    assert desk.call(body, store) == "result"
    assert runs == [ORDER]


def test_a_renewal_that_no_replica_confirms_is_tried_again_at_the_next_beat(waiting: Pair, desk: Desk) -> None:
    verbs = desk.verbs(waiting.master.endpoint, min_replicas_ack=1)
    longer = verbs.renewed(verbs.claim(verbs.offer("k", "a")), lease_ms=60_000)
    waiting.stop_replica()

    for _ in range(2):
        with pytest.raises(IdempotencyPersistenceLayerError):
            verbs.renew(longer)
        dropped(waiting)
    waiting.wake_replica()
    verbs.renew(longer)

    assert desk.slept == 0
    assert waiting.replica.says("GET", "k") == waiting.master.says("GET", "k") != NOTHING
