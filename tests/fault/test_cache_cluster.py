"""A Valkey cluster whose slots move and whose nodes die: records are found where they went, and errors come in bounded time."""

from __future__ import annotations

from contextlib import ExitStack, closing
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis
import valkey
from engines.caches import HOST, START_SECONDS, Node, _within, cluster_nodes, is_joined
from engines.plugin import entered
from verbs import AwaitedVerbs, Verbs

from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer, IdempotencyPersistenceLayerError
from persistence.exceptions import IdempotencyItemAlreadyExistsError, IdempotencyPersistenceConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import FakeClock

pytestmark = pytest.mark.valkey_cluster

KEYS = 30


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """A cluster of this module's own."""
    with ExitStack() as stack:
        yield entered(stack, cluster_nodes(), "Valkey")


def verbs_on(stack: ExitStack, url: str, clock: FakeClock, kind: str) -> Verbs:
    """Those of a store with a client that it has made itself, or with valkey-py's, or of an async one."""
    if kind == "async":
        store: Any = AsyncCachePersistenceLayer(url=url, mode="cluster")

        async def asleep_ms(ms: float) -> None:
            clock.sleep_ms(ms)

        store.clock_ms, store.sleep_ms = clock, asleep_ms
        awaited = AwaitedVerbs(store, clock, store)
        stack.callback(awaited.close)
        return awaited
    if kind == "valkey-py":
        store = CachePersistenceLayer(client=valkey.ValkeyCluster.from_url(url))
    else:
        store = CachePersistenceLayer(url=url, mode="cluster")
    stack.callback(store.client.close)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return Verbs(store, clock)


STORES = ["redis-py", "valkey-py", "async"]


@pytest.fixture(params=STORES)
def verbs(request: pytest.FixtureRequest, nodes: list[Node], clock: FakeClock) -> Iterator[Verbs]:
    for each in nodes:
        each.says("FLUSHALL")
    with ExitStack() as stack:
        yield verbs_on(stack, nodes[0].endpoint, clock, request.param)


class Move(NamedTuple):
    """A slot on its way from one node to another, by the steps of https://valkey.io/commands/cluster-setslot/."""

    slot: str
    source: Node
    target: Node
    others: list[Node]

    def begin(self) -> None:
        """New keys go to the target; the source answers ASK for those that it has no more."""
        self.target.says("CLUSTER", "SETSLOT", self.slot, "IMPORTING", name_of(self.source))
        self.source.says("CLUSTER", "SETSLOT", self.slot, "MIGRATING", name_of(self.target))

    def carry(self, key: str) -> None:
        said = self.source.says("MIGRATE", HOST, str(self.target.port), key, "0", "5000")
        assert said == "+OK\r\n", said

    def end(self) -> None:
        """The others answer MOVED, and this source, too."""
        for each in (self.target, self.source, *self.others):
            said = each.says("CLUSTER", "SETSLOT", self.slot, "NODE", name_of(self.target))
            assert said == "+OK\r\n", said


def name_of(server: Node) -> str:
    return server.says("CLUSTER", "MYID").split()[1]


def move_of(nodes: list[Node], key: str) -> Move:
    """The move of the key's slot to the next node."""
    slot = nodes[0].says("CLUSTER", "KEYSLOT", key).strip().removeprefix(":")
    source = next(each for each in nodes if is_at(each, key))
    target = nodes[(nodes.index(source) + 1) % len(nodes)]
    return Move(slot, source, target, [each for each in nodes if each not in (source, target)])


def is_at(server: Node, key: str) -> bool:
    """Whether the node has the key; one that does not serve it says where to go."""
    return server.says("EXISTS", key) == ":1\r\n"


def test_keys_without_hash_tags_live_on_all_nodes(nodes: list[Node], verbs: Verbs) -> None:
    offers = [verbs.offer(f"spread-{number}", "a") for number in range(KEYS)]

    granted = [verbs.claim(offer) for offer in offers]

    places = [[each.port for each in nodes if is_at(each, offer.key)] for offer in offers]
    assert granted == offers
    assert {len(place) for place in places} == {1}
    assert {place[0] for place in places} == {each.port for each in nodes}


def test_a_record_is_followed_while_its_slot_moves_and_when_it_has_moved(nodes: list[Node], verbs: Verbs) -> None:
    """ASK on the way, MOVED afterwards."""
    owned = verbs.claim(verbs.offer("k", "owner", lease_ms=60_000))
    move = move_of(nodes, "k")

    move.begin()
    move.carry("k")
    longer = verbs.renewed(owned, lease_ms=90_000)
    verbs.renew(longer)
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer("k", "other"))
    move.end()
    done = verbs.completed(longer, '"result"')
    verbs.complete(done)

    assert refused.value.old_data_record == longer
    assert is_at(move.target, "k")
    assert verbs.fetch("k") == done


def test_a_key_that_is_new_while_its_slot_moves_is_claimed_once(nodes: list[Node], verbs: Verbs) -> None:
    """It is made at the target, to which the source sends everybody."""
    first = verbs.claim(verbs.offer("there{slot}", "a"))
    move = move_of(nodes, first.key)
    move.begin()
    move.carry(first.key)

    granted = verbs.claim(verbs.offer("new{slot}", "winner", lease_ms=60_000))
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer("new{slot}", "loser"))
    move.end()
    done = verbs.completed(granted, '"result"')
    verbs.complete(done)

    assert refused.value.old_data_record == granted
    assert verbs.fetch("new{slot}") == done


def test_a_node_that_is_down_is_an_error_in_bounded_time_and_its_keys_are_back_with_it(
    nodes: list[Node], clock: FakeClock
) -> None:
    """The first node, which clients take for the one that answers what concerns no key."""
    dead, other = nodes[:2]
    with ExitStack() as stack:
        everyone = [verbs_on(stack, other.endpoint, clock, kind) for kind in STORES]
        there = next(key for key in map(str, count()) if "MOVED" not in dead.says("GET", key))
        elsewhere = next(key for key in map(str, count()) if "MOVED" not in other.says("GET", key))
        for verbs in everyone:
            verbs.claim(verbs.offer(there, "before"))
            verbs.release(verbs.offer(there, "before"))

        dead.kill()
        for verbs in everyone:
            began_ms = clock()
            with pytest.raises(IdempotencyPersistenceLayerError):
                verbs.claim(verbs.offer(there, "in vain", deadline_ms=clock() + 300))
            assert clock() - began_ms <= 200
        # A store can be made, for the sake of the other nodes.  (redis-py's asyncio client cannot: it asks the first one.)
        verbs = verbs_on(stack, other.endpoint, clock, "redis-py")
        verbs.release(verbs.claim(verbs.offer(elsewhere, "a")))

        dead.start()
        assert _within(START_SECONDS, lambda: all(is_joined(each) for each in nodes))
        for verbs in everyone:
            assert verbs.claim(verbs.offer(there, "after")).generation == 1
            verbs.release(verbs.offer(there, "after"))


def test_a_client_for_one_server_says_on_a_cluster_what_it_should_have_been(nodes: list[Node], clock: FakeClock) -> None:
    with closing(redis.Redis.from_url(nodes[0].endpoint)) as client:
        store = CachePersistenceLayer(client=client)
        store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
        verbs = Verbs(store, clock)
        elsewhere = next(key for key in map(str, count()) if "MOVED" in nodes[0].says("GET", key))

        with pytest.raises(IdempotencyPersistenceLayerError, match='use mode="cluster"'):
            verbs.claim(verbs.offer(elsewhere, "a"))


def test_replicas_cannot_be_waited_for_in_a_cluster(nodes: list[Node]) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="not for a cluster"):
        CachePersistenceLayer(url=nodes[0].endpoint, mode="cluster", min_replicas_ack=1)
    with pytest.raises(IdempotencyPersistenceConfigError, match="not for a cluster"):
        AsyncCachePersistenceLayer(url=nodes[0].endpoint, mode="cluster", min_replicas_ack=1)
