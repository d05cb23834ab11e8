"""A Valkey server that is killed and started again while many calls are under way: one effect per key, and one result.

The server writes each change to disk before it answers (`appendonly`, `appendfsync always`), so what it has confirmed survives.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from threading import Condition, Event
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from engines.caches import Node, find_valkey, node
from engines.plugin import entered
from faults import PREFIX, Suspended, keyed
from verbs import Verbs

from idempotency import (
    AsyncCachePersistenceLayer,
    CachePersistenceLayer,
    IdempotencyAlreadyInProgressError,
    current_attempt,
    idempotent_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock

pytestmark = pytest.mark.valkey

LEASE_SECONDS = 60
#: How much later than that a lease ends in its record.
MARGIN_MS = 1_000
KEYS = 200
#: How often each key is delivered while the server dies.
DELIVERIES = 3
#: One of so many deliveries ends like a process that is killed before its effect.
ONE_CRASHES_OF = 6
KILLS = 5
#: The most effects from one kill to the next: with those under way at a kill, fewer in all than there are keys.
MOST_BETWEEN_KILLS = 8
THREADS = 6
TASKS = 12


@pytest.fixture(scope="module")
def durable() -> Iterator[Node]:
    """A server of this module's own, which keeps what it has confirmed."""
    yield from started("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def forgetful() -> Iterator[Node]:
    """A server that keeps nothing on disk."""
    yield from started()


def started(*options: str) -> Iterator[Node]:
    with ExitStack() as stack:
        yield entered(stack, node(find_valkey, *options), "Valkey")


@dataclass
class World:
    """What the calls do outside, seen by an observer who knows nothing of records.

    Attributes:
        effects: How often each key's effect has happened.
        results: What the deliveries of each key returned.
        strange: Whatever else came of a delivery.
        is_up: Set while the server is there, as far as its killer knows.
    """

    clock: FakeClock
    chance: random.Random
    effects: Counter[str] = field(default_factory=Counter)
    results: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    strange: list[BaseException] = field(default_factory=list)
    is_up: Event = field(default_factory=Event)
    changed: Condition = field(default_factory=Condition)

    def happens(self, key: str) -> None:
        with self.changed:
            self.effects[key] += 1
            self.changed.notify_all()

    def returned(self, key: str, result: str) -> None:
        with self.changed:
            self.results[key].append(result)

    def pause(self, _ms: float) -> None:
        """Instead of time that passes: no caller gives up while its server is started again."""
        self.is_up.wait()

    async def apause(self, _ms: float) -> None:
        await asyncio.to_thread(self.is_up.wait)

    def crash_at(self, number: int) -> None:
        if number % ONE_CRASHES_OF == 0:
            raise Suspended


def test_no_effect_is_lost_or_repeated_while_the_server_is_killed_and_started_again(
    durable: Node, clock: FakeClock, heart: object, request: pytest.FixtureRequest
) -> None:
    """Called from threads and awaited on a loop, in turn.  In the end every key is delivered once more, after all leases."""
    seed: int = request.config.getoption("--chaos-seed")
    print("seed", seed)  # noqa: T201 - with which a failure can be told again
    world = World(clock, random.Random(seed))
    deliveries = [(str(number % KEYS), number) for number in range(KEYS * DELIVERIES)]
    world.chance.shuffle(deliveries)
    half = len(deliveries) // 2
    world.is_up.set()

    with ThreadPoolExecutor(2) as pool:
        threads = pool.submit(deliver_in_threads, durable.endpoint, world, deliveries[:half])
        tasks = pool.submit(asyncio.run, deliver_in_tasks(durable.endpoint, world, deliveries[half:]))
        killed = kill_under_load(durable, world, lambda: threads.done() and tasks.done())
        threads.result()
        tasks.result()

    under_load = sum(world.effects.values())
    clock.advance(ms=1000 * LEASE_SECONDS + MARGIN_MS + 1)
    deliver_in_threads(durable.endpoint, world, [(str(number), -1) for number in range(KEYS)])

    assert killed == KILLS
    assert world.strange == []
    assert under_load < KEYS  # or no crash has left a key to be taken over
    assert world.effects == dict.fromkeys(map(str, range(KEYS)), 1)
    assert {key: len(set(results)) for key, results in world.results.items()} == dict.fromkeys(map(str, range(KEYS)), 1)


def test_a_server_that_was_killed_still_has_what_it_has_confirmed(durable: Node, clock: FakeClock) -> None:
    with closing(redis.Redis.from_url(durable.endpoint)) as client:
        verbs = Verbs(on_clock(CachePersistenceLayer(client=client), clock), clock)
        running = verbs.claim(verbs.offer("running", "a"))
        done = verbs.completed(verbs.claim(verbs.offer("done", "a")), '"result"')
        verbs.complete(done)

        durable.kill()
        durable.start()

        assert (verbs.fetch("running"), verbs.fetch("done")) == (running, done)
        verbs.complete(verbs.completed(running, '"result"'))
        assert verbs.fetch("running") == verbs.completed(running, '"result"')


def test_a_server_that_forgets_everything_still_keeps_the_result_of_a_running_call(forgetful: Node, clock: FakeClock) -> None:
    """What a cache without a disk cannot promise: between the two, the key was free, and nobody would have known."""
    with closing(redis.Redis.from_url(forgetful.endpoint)) as client:
        verbs = Verbs(on_clock(CachePersistenceLayer(client=client), clock), clock)
        done = verbs.completed(verbs.claim(verbs.offer("k", "a")), '"result"')

        forgetful.kill()
        forgetful.start()

        assert verbs.fetch("k") is None
        verbs.complete(done)
        assert verbs.fetch("k") == done


def on_clock(store: CachePersistenceLayer, clock: FakeClock) -> CachePersistenceLayer:
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


def deliver_in_threads(url: str, world: World, deliveries: list[tuple[str, int]]) -> None:
    """Deliver in a few threads, which share a store."""
    client = redis.Redis.from_url(url, retry=None)
    store = CachePersistenceLayer(client=client)
    store.clock_ms, store.sleep_ms = world.clock, world.pause

    @idempotent_function(
        data_keyword_argument="event", persistence_store=store, config=keyed(lease_seconds=LEASE_SECONDS), key_prefix=PREFIX
    )
    def work(event: Any) -> str:
        world.crash_at(event["number"])
        world.happens(event["id"])
        return f"by {current_attempt().owner_token}"

    def deliver(delivery: tuple[str, int]) -> None:
        key, number = delivery
        try:
            world.returned(key, work(event={"id": key, "number": number}))
        except (Suspended, IdempotencyAlreadyInProgressError):
            pass
        except BaseException as error:
            world.strange.append(error)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(deliver, deliveries))
    client.close()


async def deliver_in_tasks(url: str, world: World, deliveries: list[tuple[str, int]]) -> None:
    """The same in a few tasks of one loop."""
    client = redis.asyncio.Redis.from_url(url)
    store = AsyncCachePersistenceLayer(client=client)
    store.clock_ms, store.sleep_ms = world.clock, world.apause

    @idempotent_function(
        data_keyword_argument="event", persistence_store=store, config=keyed(lease_seconds=LEASE_SECONDS), key_prefix=PREFIX
    )
    async def work(event: Any) -> str:
        world.crash_at(event["number"])
        world.happens(event["id"])
        return f"by {current_attempt().owner_token}"

    todo = iter(deliveries)

    async def deliver() -> None:
        for key, number in todo:
            try:
                world.returned(key, await work(event={"id": key, "number": number}))
            except (Suspended, IdempotencyAlreadyInProgressError):
                pass
            except BaseException as error:
                world.strange.append(error)

    await asyncio.gather(*[deliver() for _ in range(TASKS)])
    await client.aclose()


def kill_under_load(server: Node, world: World, is_over: Callable[[], bool]) -> int:
    """Kill the server each time that some more effects have happened, and start it again.  Returns how often."""
    killed = 0
    for _ in range(KILLS):
        more = world.chance.randint(1, MOST_BETWEEN_KILLS)
        with world.changed:
            wanted = sum(world.effects.values()) + more
            while sum(world.effects.values()) < wanted and not is_over():
                world.changed.wait(0.1)
        if is_over():
            break
        world.is_up.clear()
        server.kill()
        server.start()
        world.is_up.set()
        killed += 1
    return killed
