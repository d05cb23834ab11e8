"""The store in Valkey when requests, answers, connections and the server itself fail, below the client."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
import valkey
from doubles import LambdaContext
from engines.caches import free_port, node
from engines.plugin import entered
from fault.proxy import Harm
from fault.resp_proxy import NOT_NOW, RespProxy, Strike, packed
from fault.test_store_failures import told
from faults import KEY, ORDER, PREFIX, SYNC, Suspended, awaited, keyed, raise_boom, raise_suspended
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from verbs import AwaitedVerbs, Verbs

from idempotency import (
    AsyncCachePersistenceLayer,
    BaseError,
    CachePersistenceLayer,
    IdempotencyAlreadyInProgressError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
    idempotent,
    idempotent_function,
)
from idempotency.events import Claimed, RecoveredOwnWrite, Released
from persistence import _cache_clients
from persistence._cache_scripts import CLAIM, COMPLETE, READ, RELEASE, RENEW
from persistence.exceptions import IdempotencyPersistenceConsistencyError
from persistence.rules import is_completed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from engines.caches import Node
    from fault.resp_proxy import Request

    from persistence.background import Heartbeat

KINDS = ["redis-py", "valkey-py", "asyncio"]
SECRET = "tops3cret"
PASSWORD = "swordf1sh"

#: After each of these, the client has no answer; of some requests the server has heard nothing, or will only later.
LOST = [Harm.LOSE_ANSWER, Harm.LOSE_REQUEST, Harm.CUT, Harm.DELAY]
each_loss = pytest.mark.parametrize("harm", LOST, ids=lambda harm: harm.name)
each_applied = pytest.mark.parametrize("harm", [Harm.LOSE_ANSWER, Harm.CUT], ids=lambda harm: harm.name)
each_not_now = pytest.mark.parametrize("error", NOT_NOW, ids=lambda error: error.partition(" ")[0])
each_phase = pytest.mark.parametrize("operation", ["claim", "complete"])


class Place:
    """A store of one kind behind a proxy, on a server that knows its scripts; *direct* goes past the proxy.

    Attributes:
        runs: How often the function was run.
    """

    def __init__(self, kind: str, endpoint: str, clock: FakeClock, **options: Any) -> None:
        self.clock = clock
        self.runs = 0
        self.is_async = kind == "asyncio"
        self.proxy = RespProxy(endpoint)
        self.direct = Redis.from_url(endpoint)
        self.direct.flushall()
        for script in (CLAIM, COMPLETE, RENEW, RELEASE, READ):
            self.direct.script_load(script.text)
        self.store = self._new_store(kind, **options)
        self.store.clock_ms = clock
        self.sleeping(lambda: None)

    def _new_store(self, kind: str, **options: Any) -> Any:
        address = {"host": self.proxy.host, "port": self.proxy.port}
        if kind == "valkey-py":
            timeout = _cache_clients.READ_TIMEOUT
            given = {name: options.pop(name) for name in ("username", "password") if name in options}
            return CachePersistenceLayer(client=valkey.Valkey(**address, **given, socket_timeout=timeout), **options)
        new_store = AsyncCachePersistenceLayer if self.is_async else CachePersistenceLayer
        return new_store(**address, ssl=False, **options)

    def sleeping(self, meanwhile: Callable[[], object]) -> None:
        """Let something happen during each pause of the store."""

        def sleep_ms(ms: float) -> None:
            self.clock.sleep_ms(ms)
            meanwhile()

        async def asleep_ms(ms: float) -> None:
            sleep_ms(ms)

        self.store.sleep_ms = asleep_ms if self.is_async else sleep_ms

    def close(self) -> None:
        if "verbs" in self.__dict__:
            self.verbs.close()
        if not self.is_async:
            self.store.client.close()
        self.direct.close()
        self.proxy.stop()

    @cached_property
    def verbs(self) -> Verbs:
        """Those of the store, all on one event loop."""
        return AwaitedVerbs(self.store, self.clock, self.store) if self.is_async else Verbs(self.store, self.clock)

    def call(
        self,
        end: Callable[[], Any] = lambda: "paid",
        *,
        remaining_ms: int | None = 30_000,
        request_id: str = "request-1",
        **options: Any,
    ) -> Any:
        """One delivery, whose function ends so; without *remaining_ms* it knows no deadline, and has a lease of 60 s.

        Each call of an async function has an event loop, and connections, of its own.
        """

        def run(_event: Any) -> Any:
            self.runs += 1
            return end()

        payload = {**ORDER, "card": SECRET}
        if remaining_ms is None:
            if not self.is_async:
                return SYNC.function(run, self.store, keyed(**options))(payload)
        elif not self.is_async:
            return SYNC.handler(run, self.store, keyed(**options))(payload, LambdaContext(remaining_ms, request_id, self.clock))

        async def arun(event: Any, _context: Any = None) -> Any:
            return run(event)

        async def calling() -> Any:
            try:
                if remaining_ms is None:
                    return await idempotent_function(arun, data_keyword_argument="event", **shared)(event=payload)
                return await idempotent(arun, **shared)(payload, LambdaContext(remaining_ms, request_id, self.clock))
            finally:
                await self.store.aclose()

        shared: Any = {"persistence_store": self.store, "config": keyed(**options), "key_prefix": PREFIX}
        return awaited(calling())

    def abandon(self, request_id: str = "request-1") -> None:
        """A delivery that leaves its claim as a crash does."""
        with suppress(Suspended):
            self.call(raise_suspended, request_id=request_id)

    def outlive(self) -> None:
        """The lease of whoever has just begun is over."""
        self.clock.advance(ms=61_001)

    def refuse(self, operation: str, error: str, until_ms: float = float("inf")) -> list[int]:
        """Answer each request with an error until some time; returns when they come."""
        sent_ms: list[int] = []

        def judge(request: Request) -> Strike | None:
            if request.operation != operation:
                return None
            sent_ms.append(self.clock())
            if error == "":
                return Strike(Harm.LOSE_REQUEST)
            return Strike(Harm.ERROR_BEFORE, error) if self.clock() < until_ms else None

        self.proxy.judge = judge
        return sent_ms

    @property
    def text(self) -> bytes | None:
        """What is stored, to the byte."""
        found: Any = self.direct.get(KEY)
        return found

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text or b"{}")
        return found


@contextmanager
def placed(kind: str, endpoint: str, clock: FakeClock, **options: Any) -> Iterator[Place]:
    place = Place(kind, endpoint, clock, **options)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, valkey_server: str, clock: FakeClock) -> Iterator[Place]:
    with placed(request.param, valkey_server, clock) as made:
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that give up soon.  Only for what hangs: on a slow machine any answer may take so long."""
    monkeypatch.setattr(_cache_clients, "READ_TIMEOUT", 0.1)


@pytest.fixture(scope="module")
def own_node() -> Iterator[Node]:
    """A server of these tests' own, whose configuration may change."""
    with ExitStack() as stack:
        yield entered(stack, node(), "Valkey")


@pytest.fixture(params=KINDS)
def own_place(request: pytest.FixtureRequest, valkey_server: str, own_node: Node, clock: FakeClock) -> Iterator[Place]:
    with placed(request.param, own_node.endpoint, clock) as made:
        yield made


# Answers that are lost


@each_loss
def test_a_claim_is_granted_once_and_its_function_runs_in_this_call(place: Place, harm: Harm) -> None:
    place.proxy.harm("claim", 1, harm)

    assert place.call() == "paid"
    assert place.runs == 1
    assert place.record["generation"] == 1
    assert place.proxy.operations == {"claim": 2, "complete": 1}


@each_loss
def test_a_takeover_is_granted_once(place: Place, harm: Harm) -> None:
    place.abandon()
    place.outlive()
    place.proxy.harm("claim", 1, harm)

    assert place.call() == "paid"
    assert place.runs == 2
    assert (place.record["generation"], place.record["status"]) == (2, "COMPLETED")


@each_loss
def test_a_completion_is_stored_once_and_replayed(place: Place, harm: Harm) -> None:
    place.proxy.harm("complete", 1, harm)

    assert [place.call(), place.call()] == ["paid", "paid"]
    assert place.runs == 1
    assert place.proxy.operations["complete"] == 2


@each_loss
def test_a_release_frees_the_key_and_adds_nothing_to_the_functions_error(place: Place, harm: Harm) -> None:
    events: list[Any] = []
    place.proxy.harm("release", 1, harm)
    with pytest.raises(OSError, match="boom") as caught:
        place.call(raise_boom, observers=[events.append])

    assert not hasattr(caught.value, "__notes__")
    assert [type(event) for event in events] == [Claimed, Released]
    assert place.text is None
    assert place.call() == "paid"


@pytest.mark.usefixtures("hasty")
@each_phase
def test_an_answer_that_never_comes_is_a_lost_one(place: Place, operation: str) -> None:
    place.proxy.harm(operation, 1, Harm.HANG)

    assert [place.call(), place.call()] == ["paid", "paid"]
    assert place.runs == 1


@each_applied
def test_several_lost_answers_in_one_call_cost_nothing_but_requests(place: Place, harm: Harm) -> None:
    for operation in ("claim", "complete"):
        for request in (1, 2, 3):
            place.proxy.harm(operation, request, harm)

    assert place.call() == "paid"
    assert place.runs == 1
    assert place.proxy.operations == {"claim": 4, "complete": 4}


def test_a_claim_whose_answer_was_lost_is_told_as_such(place: Place) -> None:
    events: list[Any] = []
    place.proxy.harm("claim", 1, Harm.LOSE_ANSWER)

    place.call(observers=[events.append])

    assert [type(event) for event in events if isinstance(event, RecoveredOwnWrite | Claimed)] == [RecoveredOwnWrite, Claimed]


@each_applied
def test_a_refusal_whose_answer_is_lost_is_a_refusal(place: Place, harm: Harm) -> None:
    place.abandon("first")
    place.proxy.harm("claim", 1, harm)
    with pytest.raises(IdempotencyAlreadyInProgressError) as caught:
        place.call()

    assert "Held by request first. The function was not run; " in str(caught.value)
    assert place.runs == 1


def test_a_client_that_repeats_requests_by_itself_hides_nothing_that_matters(valkey_server: str, clock: FakeClock) -> None:
    """As a given one of redis-py does by default; its repetition of an applied claim is refused by that claim."""
    with placed("redis-py", valkey_server, clock) as place:
        place.store.client.close()
        address = {"host": place.proxy.host, "port": place.proxy.port}
        place.store.client = Redis(**address, socket_timeout=2, retry=Retry(NoBackoff(), 3))
        for operation in ("claim", "complete"):
            place.proxy.harm(operation, 1, Harm.LOSE_ANSWER)
            place.proxy.harm(operation, 2, Harm.LOSE_REQUEST)

        assert place.call() == "paid"
        assert (place.runs, clock.slept_ms) == (1, [])
        assert place.proxy.operations == {"claim": 3, "complete": 3}


@each_loss
def test_a_renewal_is_made_again_at_the_next_beat(valkey_server: str, clock: FakeClock, heart: Heartbeat, harm: Harm) -> None:
    ends: list[int] = []

    def slow(_event: Any) -> str:
        for _ in range(3):
            clock.advance(seconds=25)
            heart.beat()
            ends.append(place.record["in_progress_expiration"] - start_ms)
        return "done"

    with placed("redis-py", valkey_server, clock) as place:
        place.proxy.harm("renew", 2, harm)
        start_ms = clock()

        assert SYNC.function(slow, place.store, keyed(lease_seconds=60))(ORDER) == "done"

    assert [ends[0], ends[2]] == [86_000, 136_000]
    assert ends[1] == (111_000 if harm in (Harm.LOSE_ANSWER, Harm.CUT) else 86_000)
    assert place.proxy.operations["renew"] == 3


# Successors


@each_applied
def test_a_release_that_is_repeated_does_not_remove_a_successors_claim(place: Place, harm: Harm) -> None:
    """The first was applied, its answer was lost, and the successor came before the repetition."""
    successors: list[bytes | None] = []

    def succeed() -> None:
        place.abandon("successor")
        successors.append(place.text)

    place.proxy.harm("release", 1, harm, then=succeed)
    with pytest.raises(OSError, match="boom") as caught:
        place.call(raise_boom)

    assert [place.text] == successors
    assert place.record["holder"] == "successor"
    assert place.proxy.operations["release"] == 2
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("harm", [Harm.DELAY, Harm.DUPLICATE], ids=lambda harm: harm.name)
def test_a_release_that_lands_late_does_not_remove_a_successors_claim(place: Place, harm: Harm) -> None:
    place.proxy.harm("release", 1, harm)
    with pytest.raises(OSError, match="boom"):
        place.call(raise_boom)
    place.abandon("successor")
    successors = place.text

    assert place.proxy.release() == 1
    assert place.text == successors
    assert place.record["holder"] == "successor"


@each_applied
def test_a_completion_that_is_repeated_does_not_overwrite_a_successors_claim(place: Place, harm: Harm) -> None:
    """The result had expired by then, so the successor was right to come."""
    successors: list[bytes | None] = []

    def succeed() -> None:
        place.clock.advance(seconds=3_602)
        place.abandon("successor")
        successors.append(place.text)

    place.proxy.harm("complete", 1, harm, then=succeed)
    with pytest.raises(IdempotencyLeaseLostError):
        place.call(remaining_ms=None)

    assert [place.text] == successors
    assert place.record["holder"] == "successor"


@pytest.mark.parametrize("late", ["complete", "complete without result", "release", "renew"])
@pytest.mark.parametrize("winner", ["in progress", "completed"])
def test_a_late_write_leaves_the_winners_record_to_the_byte(place: Place, late: str, winner: str) -> None:
    verbs = place.verbs
    zombie = verbs.claim(verbs.offer(KEY, "zombie"))
    place.clock.advance(ms=1_001)
    winning = verbs.claim(verbs.offer(KEY, "winner"))
    if winner == "completed":
        verbs.complete(verbs.completed(winning, '"won"'))
    stored = place.text
    writes: dict[str, Callable[[], None]] = {
        "complete": lambda: verbs.complete(verbs.completed(zombie, '"late"')),
        "complete without result": lambda: verbs.complete(verbs.without_result(zombie)),
        "release": lambda: verbs.release(zombie),
        "renew": lambda: verbs.renew(verbs.renewed(zombie, lease_ms=60_000)),
    }
    with pytest.raises(IdempotencyLeaseLostError) as caught:
        writes[late]()

    assert caught.value.record is not None
    assert caught.value.record.owner_token == "winner"
    assert place.text == stored


@each_applied
def test_a_late_success_gets_the_winners_result_whatever_is_lost(place: Place, harm: Harm) -> None:
    def late() -> str:
        place.outlive()
        place.proxy.harm("claim", 1, harm)
        place.proxy.harm("complete", 1, harm)
        assert place.call(lambda: "won", request_id="winner") == "won"
        stored.append(place.text)
        place.proxy.harm("complete", 1, harm)
        return "late"

    stored: list[bytes | None] = []

    assert place.call(late, remaining_ms=None) == "won"
    assert [place.text] == stored
    assert place.runs == 2


def test_a_late_failure_leaves_the_winners_result(place: Place) -> None:
    def late() -> None:
        place.outlive()
        place.call(lambda: "won")
        stored.append(place.text)
        raise_boom()

    stored: list[bytes | None] = []
    with pytest.raises(OSError, match="boom"):
        place.call(late)

    assert [place.text] == stored


def test_an_owner_that_completes_while_another_finds_it_an_orphan_is_never_overwritten_nor_overwrites(place: Place) -> None:
    """Each order of the owner's completion, the other's claim, a repetition of both, and the other's completion if it may."""
    verbs = place.verbs

    def told_of(request: Callable[[], Any]) -> bool:
        try:
            request()
        except BaseError:
            return False
        return True

    for number, order in enumerate(sorted(set(permutations("CCKKT")))):
        key = f"{KEY}-{number}"
        owner = verbs.claim(verbs.offer(key, "owner"))
        place.clock.advance(ms=1_001)
        offer = verbs.offer(key, "taker", lease_ms=60_000)
        completing = partial(verbs.complete, verbs.completed(owner, '"by owner"'))
        requests = {
            "C": completing,
            "K": partial(verbs.claim, offer),
            "T": partial(verbs.complete, verbs.completed(offer, '"by taker"')),
        }
        stored: list[Any] = []
        is_granted = False
        for step in order:
            if step == "T" and not is_granted:
                continue
            is_done = told_of(requests[step])
            is_granted |= step == "K" and is_done
            record = verbs.fetch(key)
            assert record is not None
            if stored:
                assert record == stored[0], order
            elif is_completed(record):
                stored.append(record)
                assert record.response_data == ('"by taker"' if is_granted else '"by owner"'), order
        assert bool(stored) or is_granted, order
        assert is_granted == (order.index("K") < order.index("C")), order


# Copies that land late


def test_a_copy_of_a_claim_that_lands_after_its_completion_changes_nothing(place: Place) -> None:
    place.proxy.harm("claim", 1, Harm.DUPLICATE)
    place.call()
    stored = place.text

    assert place.proxy.release() == 1
    assert place.text == stored
    assert place.call() == "paid"
    assert place.runs == 1


@pytest.mark.parametrize("operation", ["claim", "complete", "renew", "release"])
def test_a_copy_that_lands_after_a_takeover_changes_nothing(place: Place, operation: str) -> None:
    verbs = place.verbs
    place.proxy.harm(operation, 1, Harm.DELAY)
    zombie = verbs.claim(verbs.offer(KEY, "zombie", expires_s=1))
    if operation == "complete":
        verbs.complete(verbs.completed(zombie, '"late"', expires_s=1))
    if operation == "release":
        verbs.release(zombie)
    if operation == "renew":
        with suppress(IdempotencyPersistenceLayerError):  # tried once
            verbs.renew(verbs.renewed(zombie, lease_ms=2_000, expires_s=1))
    place.clock.advance(seconds=61)
    winning = verbs.claim(verbs.offer(KEY, "winner"))
    stored = place.text

    assert place.proxy.release() == 1
    assert place.text == stored
    verbs.complete(verbs.completed(winning, '"won"'))
    assert place.record["data"] == '"won"'


def test_a_renewal_that_lands_late_does_not_shorten_the_lease(place: Place) -> None:
    verbs = place.verbs
    held = verbs.claim(verbs.offer(KEY, "holder"))
    place.proxy.harm("renew", 1, Harm.DELAY)
    with suppress(IdempotencyPersistenceLayerError):
        verbs.renew(verbs.renewed(held, lease_ms=2_000))
    place.clock.advance(ms=900)
    verbs.renew(verbs.renewed(held, lease_ms=2_000))
    stored = place.text

    assert place.proxy.release() == 1
    assert place.text == stored


def test_a_copy_of_a_claim_that_lands_after_its_release_blocks_the_key_no_longer_than_its_lease(place: Place) -> None:
    """That nobody can tell it from a claim is not promised away; that it ends is."""
    place.proxy.harm("claim", 1, Harm.DUPLICATE)
    with pytest.raises(OSError, match="boom"):
        place.call(raise_boom)
    place.proxy.release()
    with pytest.raises(IdempotencyAlreadyInProgressError):
        place.call()

    place.outlive()

    assert place.call() == "paid"


# Servers that cannot, for now


@each_not_now
def test_a_refusal_for_now_is_asked_again_until_just_before_the_deadline(place: Place, error: str) -> None:
    """At the claim, then at the completion, which succeeds in the last request that is sent: 100 ms are left for its answer."""
    start_ms = place.clock()
    claims_ms = place.refuse("claim", error, until_ms=start_ms + 4_000)

    def paid() -> str:
        place.refuse("complete", error, until_ms=start_ms + 14_890)
        return "paid"

    assert place.call(paid, remaining_ms=15_000) == "paid"
    assert place.runs == 1
    assert start_ms + 4_000 <= claims_ms[-1]
    assert start_ms + 14_890 <= place.clock() <= start_ms + 14_900


@each_phase
@pytest.mark.parametrize("error", ["", NOT_NOW[0], NOT_NOW[2]], ids=["lost", "LOADING", "READONLY"])
def test_a_refusal_that_lasts_is_an_error_in_time(place: Place, operation: str, error: str) -> None:
    deadline_ms = place.clock() + 2_000
    sent_ms = place.refuse(operation, error)
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        place.call(remaining_ms=2_000)

    assert place.runs == (operation == "complete")
    assert sent_ms[-1] <= place.clock() <= deadline_ms - 100
    assert len(sent_ms) == len(place.clock.slept_ms) + 1 > 2
    assert caught.value.__cause__ is not None
    assert error.partition(" ")[2][:20] in str(caught.value)


def test_the_pauses_between_repetitions_are_drawn(place: Place) -> None:
    place.refuse("claim", NOT_NOW[0])
    for _ in range(2):
        with pytest.raises(IdempotencyPersistenceLayerError):
            place.call(remaining_ms=5_000)

    pauses_ms = place.clock.slept_ms
    assert len(set(pauses_ms)) > len(pauses_ms) - 3  # but for the last ones of each call, which end at the deadline


@pytest.mark.parametrize("remaining_ms", [0, 109])
def test_without_time_for_a_second_request_one_is_sent(place: Place, remaining_ms: int) -> None:
    sent_ms = place.refuse("claim", NOT_NOW[0])
    with pytest.raises(IdempotencyPersistenceLayerError):
        place.call(remaining_ms=remaining_ms)

    assert len(sent_ms) == 1
    assert place.clock.slept_ms == []


def test_a_release_is_given_up_after_three_seconds_and_is_a_note_on_the_functions_error(place: Place) -> None:
    sent_ms = place.refuse("release", NOT_NOW[0])
    with pytest.raises(OSError, match="boom") as caught:
        place.call(raise_boom)

    assert sent_ms[0] < sent_ms[-1] <= sent_ms[0] + 3_000
    assert caught.value.__notes__[0].startswith(f"Besides, the claim of idempotency key {KEY} could not be released")


CONDITIONS = {
    "OOM": (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"]),
    "NOREPLICAS": (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]),
    "READONLY": ([f"REPLICAOF 127.0.0.1 {free_port()}"], ["REPLICAOF NO ONE"]),
    "MASTERDOWN": (
        ["CONFIG SET replica-serve-stale-data no", f"REPLICAOF 127.0.0.1 {free_port()}"],
        ["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
    ),
}


def says(own_node: Node, commands: list[str]) -> None:
    assert all(own_node.says(*command.split()).startswith("+OK") for command in commands)


@each_phase
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_servers_own_refusal_for_now_is_asked_again(own_node: Node, own_place: Place, operation: str, condition: str) -> None:
    begin, end = CONDITIONS[condition]

    def paid() -> str:
        if operation == "complete":
            says(own_node, begin)
        return "paid"

    if operation == "claim":
        says(own_node, begin)
    own_place.sleeping(lambda: says(own_node, end))

    assert [own_place.call(paid), own_place.call()] == ["paid", "paid"]
    assert own_place.runs == 1
    assert own_place.proxy.operations[operation] == {"claim": 3, "complete": 2}[operation]


def test_a_server_that_is_busy_with_a_script_is_asked_again(own_node: Node, own_place: Place) -> None:
    says(own_node, ["CONFIG SET busy-reply-threshold 1"])
    with socket.create_connection((own_place.proxy.host, own_node.port)) as busy:
        busy.sendall(packed(b"EVAL", b"while true do end", b"0"))
        while not own_node.says("PING").startswith("-BUSY"):  # the server's own word that it has begun
            pass
        own_place.sleeping(lambda: own_node.says("SCRIPT", "KILL"))

        assert own_place.call() == "paid"

    assert own_place.runs == 1
    assert own_place.proxy.operations["claim"] > 1


def test_a_server_that_takes_no_more_clients_is_asked_again(own_place: Place) -> None:
    """It says so instead of a greeting, and closes the connection."""
    if not own_place.is_async:
        own_place.store.client.close()
    own_place.direct.config_set("maxclients", 1)  # this one
    own_place.sleeping(lambda: own_place.direct.config_set("maxclients", 100))

    assert own_place.call() == "paid"
    assert own_place.clock.slept_ms != []
    assert (own_place.runs, own_place.proxy.operations["claim"]) == (1, 1)


# Answers that no repetition changes


@pytest.fixture
def guarded(own_node: Node) -> Iterator[dict[str, str]]:
    """A user with a password, and with all commands."""
    says(own_node, [f"ACL SETUSER app reset on >{PASSWORD} ~* &* +@all"])
    yield {"username": "app", "password": PASSWORD}
    own_node.says("ACL", "DELUSER", "app")


@pytest.mark.parametrize("kind", KINDS)
@each_phase
@pytest.mark.usefixtures("valkey_server")
def test_a_missing_permission_is_an_error_at_once(
    own_node: Node, clock: FakeClock, guarded: dict[str, str], kind: str, operation: str
) -> None:
    def forbid() -> str:
        says(own_node, ["ACL SETUSER app -evalsha"])
        return SECRET

    with placed(kind, own_node.endpoint, clock, **guarded) as place:
        if operation == "claim":
            forbid()
        with pytest.raises(IdempotencyPersistenceLayerError, match="needs the commands EVALSHA, EVAL") as caught:
            place.call(forbid)

        assert place.runs == (operation == "complete")
        assert place.proxy.operations[operation] == 1
        assert clock.slept_ms == []
        assert PASSWORD not in told(caught.value)
        assert SECRET not in told(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("valkey_server")
def test_a_password_that_is_no_longer_right_is_an_error_at_once(
    own_node: Node, clock: FakeClock, guarded: dict[str, str], kind: str
) -> None:
    with placed(kind, own_node.endpoint, clock, **guarded) as place:
        says(own_node, ["ACL SETUSER app resetpass >another"])
        if not place.is_async:
            place.store.client.close()
        with pytest.raises(IdempotencyPersistenceLayerError) as caught:
            place.call()

        assert place.runs == 0
        assert clock.slept_ms == []
        assert place.proxy.operations["claim"] == 0
        assert PASSWORD not in told(caught.value) + repr(place.store)


FOREIGN: dict[str, Callable[[Redis], object]] = {
    "a list": lambda direct: direct.rpush(KEY, SECRET),
    "no JSON": lambda direct: direct.set(KEY, SECRET),
    "no text": lambda direct: direct.set(KEY, b"\xff" + SECRET.encode()),
    "no record": lambda direct: direct.set(KEY, json.dumps({"status": 1, "data": SECRET})),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_value_that_is_no_record_is_an_error_at_once_and_stays(place: Place, foreign: str) -> None:
    FOREIGN[foreign](place.direct)
    stored = place.direct.dump(KEY)
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        place.call()

    assert isinstance(caught.value.__cause__, IdempotencyPersistenceConsistencyError)
    assert place.proxy.operations == {"claim": 1}
    assert place.direct.dump(KEY) == stored
    assert SECRET not in told(caught.value)


# What it costs


def test_a_claim_a_duplicate_a_completion_and_a_release_are_one_request_each(place: Place) -> None:
    verbs = place.verbs
    verbs.fetch("to connect")

    def costs(request: Callable[[], Any]) -> dict[str, int]:
        before = place.proxy.calls.copy()
        with suppress(BaseError):
            request()
        return dict(place.proxy.calls - before)

    offer = verbs.offer(KEY, "owner")
    other = verbs.offer("other", "owner")

    assert costs(lambda: verbs.claim(offer)) == {"EVALSHA": 1}
    assert costs(lambda: verbs.claim(verbs.offer(KEY, "duplicate"))) == {"EVALSHA": 1}
    assert costs(lambda: verbs.complete(verbs.completed(offer, '"done"'))) == {"EVALSHA": 1}
    assert costs(lambda: verbs.claim(verbs.offer(KEY, "duplicate"))) == {"EVALSHA": 1}
    assert costs(lambda: verbs.claim(other)) == {"EVALSHA": 1}
    assert costs(lambda: verbs.release(other)) == {"EVALSHA": 1}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_server_that_has_forgotten_the_scripts_is_told_them_in_one_more_request(place: Place, lost: int) -> None:
    """Also if answers are lost on the way: the first that says so, and the first to the whole script."""
    for command in ["EVALSHA", "EVAL"][:lost]:
        place.proxy.harm(command, 1, Harm.LOSE_ANSWER)
    place.direct.script_flush()

    assert [place.call(), place.call()] == ["paid", "paid"]
    assert place.runs == 1
    assert place.proxy.calls["EVALSHA"] == 3 + lost
    assert place.proxy.calls["EVAL"] == 2


def test_scripts_that_are_forgotten_between_claim_and_completion_cost_no_result(place: Place) -> None:
    def paid() -> str:
        place.direct.script_flush()
        return "paid"

    assert [place.call(paid), place.call(paid)] == ["paid", "paid"]
    assert place.runs == 1


# Nothing leaks


@pytest.fixture(scope="module")
def old_node(own_node: Node) -> Iterator[Node]:
    """A server whose operator has taken EVALSHA away."""
    with node(lambda: own_node.program, "--rename-command", "EVALSHA", "") as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("valkey_server")
def test_a_server_without_the_command_is_an_error_that_repeats_no_argument(old_node: Node, clock: FakeClock, kind: str) -> None:
    with placed(kind, old_node.endpoint, clock) as place:
        with pytest.raises(IdempotencyPersistenceLayerError, match="unknown command 'EVALSHA'") as caught:
            place.call()

        assert "args beginning with" not in told(caught.value)
        assert "in_progress_expiration" not in told(caught.value)
        assert place.runs == 0


@pytest.mark.parametrize("error", ["ERR unknown command 'EVALSHA', with args beginning with: ", NOT_NOW[0], ""])
@pytest.mark.parametrize("operation", ["claim", "complete", "release"])
def test_no_error_no_note_and_no_log_shows_payload_or_result(
    place: Place, caplog: pytest.LogCaptureFixture, operation: str, error: str
) -> None:
    """Even of a server that repeats every argument."""
    for name in ("idempotency", "persistence"):
        caplog.set_level(logging.DEBUG, name)

    def judge(request: Request) -> Strike | None:
        if request.operation != operation:
            return None
        words = b" ".join(b"'%s'" % word for word in request.words[1:]).decode() if error.endswith(": ") else ""
        return Strike(Harm.ERROR_BEFORE, error + words) if error else Strike(Harm.LOSE_REQUEST)

    place.proxy.judge = judge
    with pytest.raises((IdempotencyPersistenceLayerError, OSError)) as caught:
        place.call(raise_boom if operation == "release" else lambda: SECRET, remaining_ms=2_000)

    assert SECRET not in told(caught.value)
    assert "in_progress_expiration" not in told(caught.value)
    ours = [line for line in caplog.records if line.name.split(".")[0] in ("idempotency", "persistence")]
    assert SECRET not in "".join(logging.Formatter().format(line) for line in ours)


# Replicas that confirm


@pytest.fixture(scope="module")
def replicated(own_node: Node) -> Iterator[Node]:
    """A server with a replica."""
    with (
        node(lambda: own_node.program, "--repl-diskless-sync-delay", "0") as master,
        node(lambda: own_node.program, "--replicaof", "127.0.0.1", str(master.port)),
    ):
        with Redis.from_url(master.endpoint) as direct:
            direct.set("to be", "confirmed")
            while direct.execute_command("WAIT", 1, 1000) < 1:  # pytest's own limit ends it
                pass
        yield master


@pytest.mark.usefixtures("valkey_server")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("command", "harm"), [("EVALSHA", Harm.LOSE_ANSWER), ("WAIT", Harm.LOSE_ANSWER), ("WAIT", Harm.LOSE_REQUEST)]
)
def test_a_write_that_was_not_known_to_be_confirmed_is_confirmed_again(
    replicated: Node, clock: FakeClock, kind: str, command: str, harm: Harm
) -> None:
    with placed(kind, replicated.endpoint, clock, min_replicas_ack=1) as place:
        place.proxy.harm(command, 1, harm)
        place.proxy.harm(command, 3, harm)

        assert [place.call(), place.call()] == ["paid", "paid"]
        assert place.runs == 1
        assert place.proxy.calls["WAIT"] >= 3  # more if the replica is slow: it is waited for half a second


def test_a_completion_whose_every_answer_is_lost_returns_the_result(place: Place) -> None:
    """A read at the end shows that it was stored."""
    place.proxy.judge = lambda request: Strike(Harm.LOSE_ANSWER) if request.operation == "complete" else None

    assert [place.call(), place.call()] == ["paid", "paid"]
    assert place.runs == 1


def test_a_late_success_whose_only_answer_is_lost_gets_the_winners_result(place: Place) -> None:
    """After its deadline a completion is sent once; a read then shows whose the record is."""

    def late() -> str:
        place.outlive()
        place.call(lambda: "won")
        stored.append(place.text)
        place.proxy.harm("complete", 1, Harm.LOSE_ANSWER)
        return "late"

    stored: list[bytes | None] = []

    assert place.call(late) == "won"
    assert [place.text] == stored


@pytest.mark.parametrize("read", ["is lost, too", "finds it undone"])
def test_a_completion_that_is_not_known_to_be_stored_is_its_own_error(place: Place, read: str) -> None:
    """The last request is the read, and the error that of the completion."""
    harm = Harm.LOSE_ANSWER if read == "is lost, too" else Harm.LOSE_REQUEST
    struck = ("complete", "read") if read == "is lost, too" else ("complete",)
    place.proxy.judge = lambda request: Strike(harm) if request.operation in struck else None

    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to update record state to success"):
        place.call()

    assert place.proxy.operations["read"] == 1
    assert place.runs == 1
