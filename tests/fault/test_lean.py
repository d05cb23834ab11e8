"""Faults that only a client written by hand can have: of connections that are kept, of bytes that are read, of signatures."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

import pytest
from doubles import LambdaContext
from engines.tables import create_table, lean_client_for, shared_client
from fault import wire as deeds
from fault.proxy import SLOW, Answer, FaultProxy, Harm
from fault.wire import Wire, written
from faults import KEY, ORDER, SYNC, key_of, raise_boom
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer
from persistence._lean_errors import LostAnswerError, ServiceError
from persistence._lean_transport import _Connection
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from fault.proxy import Request
    from fault.wire import Deed, Peer
    from stores import Peek

#: More seconds than anything here takes.
PATIENT: Final = 60


@dataclass
class Scene:
    """A store with the client that the library makes, and a handler that counts its runs."""

    wire: Wire
    store: DynamoDBPersistenceLayer
    peek: Peek
    clock: FakeClock
    runs: list[Any] = field(default_factory=list)

    def pay(self, order: str = ORDER["id"]) -> Any:
        handler = SYNC.handler(lambda event: self.runs.append(event["id"]) or "paid", self.store)
        return handler({"id": order}, LambdaContext(clock=self.clock))

    def fail(self) -> None:
        with pytest.raises(OSError, match="boom"):
            SYNC.handler(lambda _event: raise_boom(), self.store)(ORDER, LambdaContext(clock=self.clock))


@pytest.fixture
def wire(dynamodb_local: str) -> Iterator[Wire]:
    made = Wire(dynamodb_local)
    yield made
    made.stop()


@pytest.fixture
def scene(wire: Wire, clock: FakeClock, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = dynamodb(clock, dynamodb_local)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", wire.url)
    monkeypatch.setattr("persistence.dynamodb.CONNECT_TIMEOUT", PATIENT)
    monkeypatch.setattr("persistence.dynamodb.READ_TIMEOUT", PATIENT)
    store = DynamoDBPersistenceLayer(made.store.table_name, client="lean")
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    yield Scene(wire, store, made.peek, clock)
    store.client.close()


@dataclass
class Items:
    """Items that are named by their keys, and a client over the wire."""

    table: str
    wire: Wire
    client: LeanClient

    def get(self, name: str) -> str:
        """The name of the item that is told for this key."""
        item = self.client.get_item(TableName=self.table, Key={"id": {"S": name}}, ConsistentRead=True)["Item"]
        found: str = item["id"]["S"]
        return found

    @property
    def connections(self) -> dict[str, int]:
        """By name: the connection of its last request."""
        return {request["Key"]["id"]["S"]: number for number, request in self.wire.log}


@pytest.fixture
def items(dynamodb_local: str, wire: Wire) -> Iterator[Items]:
    direct = shared_client(dynamodb_local)
    table = create_table(direct)
    for name in ("a", "b", "held", "idle", "child 1", "child 2", "after"):
        direct.put_item(TableName=table, Item={"id": {"S": name}})
    client = lean_client_for(wire.url)
    yield Items(table, wire, client)
    client.close()


# Answers that are none


def tell(scene: Scene, operation: str, deed: Deed) -> None:
    """A story whose first request of the operation meets the deed, and which must end as if it had not."""
    match operation:
        case "DeleteItem":
            scene.wire.at(operation, 1, deed)
            scene.fail()
            assert scene.peek(KEY) is None
        case "GetItem":
            scene.pay()
            scene.wire.at(operation, 1, deed)
            assert scene.store.fetch(KEY).response_data == '"paid"'
        case "replay":
            scene.pay()
            scene.wire.at("PutItem", 1, deed)
            assert scene.pay() == "paid"
            assert scene.runs == [ORDER["id"]]
        case _:
            scene.wire.at(operation, 1, deed)
            assert [scene.pay(), scene.pay()] == ["paid", "paid"]
            assert scene.runs == [ORDER["id"]]


#: By operation: how many requests of it the story takes, where one of them is repeated.
REPEATED = {"PutItem": 3, "UpdateItem": 2, "DeleteItem": 2, "GetItem": 2, "replay": 3}
each_operation = pytest.mark.parametrize("operation", REPEATED)


@each_operation
@pytest.mark.parametrize(
    "deed",
    [
        deeds.broken_off_in_the_head,
        deeds.broken_off_in_the_body,
        deeds.broken_off_unread,
        deeds.with_another_checksum,
        deeds.with_another_byte,
    ],
)
def test_an_answer_that_is_not_whole_is_none_and_its_request_is_repeated(scene: Scene, operation: str, deed: Deed) -> None:
    tell(scene, operation, deed)

    api_name = "PutItem" if operation == "replay" else operation
    # A claim whose answer was lost is renewed before the function runs.
    assert scene.wire.calls[api_name] == REPEATED[operation]


@each_operation
def test_an_answer_that_comes_byte_by_byte_is_read(scene: Scene, operation: str) -> None:
    tell(scene, operation, deeds.dripped)

    api_name = "PutItem" if operation == "replay" else operation
    assert scene.wire.calls[api_name] == REPEATED[operation] - 1


# Connections that are kept


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_the_server_ends_between_two_calls_costs_no_request(scene: Scene, *, reset: bool) -> None:
    scene.pay("order-1")

    scene.wire.end(reset=reset)
    scene.pay("order-2")

    assert scene.runs == ["order-1", "order-2"]
    assert scene.wire.calls == {"PutItem": 2, "UpdateItem": 2}
    assert [number for number, _ in scene.wire.log] == [1, 1, 2, 2]
    assert scene.clock.slept_ms == []  # none was lost, and none repeated


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("operation", "taken"), [("PutItem", 1), ("UpdateItem", 2), ("DeleteItem", 2), ("replay", 1)])
def test_a_connection_that_the_server_ends_in_the_moment_of_a_request_is_no_second_run(
    scene: Scene, operation: str, taken: int, monkeypatch: pytest.MonkeyPatch, *, reset: bool
) -> None:
    """After the client has found it usable.  *taken* says for which request it is taken, from the story's first one on."""
    scene.pay(ORDER["id"] if operation == "replay" else "before")
    scene.runs.clear()
    checks = 0
    is_usable = _Connection.is_usable

    def is_usable_just_now(connection: _Connection) -> bool:
        nonlocal checks
        checks += 1
        found = is_usable(connection)
        if checks == taken:
            scene.wire.end(reset=reset)
        return found

    monkeypatch.setattr(_Connection, "is_usable", is_usable_just_now)
    if operation == "DeleteItem":
        scene.fail()
    else:
        assert scene.pay() == "paid"

    assert scene.runs == ([ORDER["id"]] if operation in ("PutItem", "UpdateItem") else [])
    assert (scene.peek(KEY) is None) is (operation == "DeleteItem")
    assert len(scene.wire.peers) == 2
    assert len(scene.clock.slept_ms) == 1  # nobody could know whether it was applied, and so it was repeated


# Whose answer is it?


@pytest.mark.parametrize("comes", ["before the next request", "after the next request"])
def test_a_late_answer_is_not_taken_for_the_next_requests(items: Items, comes: str) -> None:
    items.client.close()
    items.client = hasty = lean_client_for(items.wire.url, read_timeout=0.25)
    is_kept_back = threading.Event()

    def keep_back(peer: Peer, request: Request, send: Callable[[], Answer]) -> None:
        deeds.late(peer, request, send)
        is_kept_back.set()

    items.wire.at("GetItem", 1, keep_back)
    with pytest.raises(LostAnswerError, match="timed out"):
        items.get("a")
    assert is_kept_back.wait(PATIENT)
    if comes == "before the next request":
        with suppress(OSError):  # the client has closed the connection
            items.wire.peers[0].send(items.wire.peers[0].owed)

    hasty._pool._read_timeout = PATIENT
    assert [items.get("b"), items.get("a")] == ["b", "a"]
    assert items.connections == {"b": 2, "a": 2}
    hasty.close()


def test_an_answer_that_comes_twice_is_not_taken_for_the_next_requests(items: Items) -> None:
    items.wire.at("GetItem", 1, deeds.twice)

    assert [items.get("a"), items.get("b")] == ["a", "b"]


def test_after_ctrl_c_during_an_exchange_the_next_request_gets_its_own_answer(items: Items) -> None:
    """Also where Ctrl-C was switched off for this process, as for jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(peer: Peer, request: Request, send: Callable[[], Answer]) -> None:
        deeds.late(peer, request, send)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    items.get("idle")
    items.wire.at("GetItem", 1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            items.get("a")
    finally:
        signal.signal(signal.SIGINT, before)

    assert [items.get("b"), items.get("a")] == ["b", "a"]
    assert items.connections == {"idle": 1, "b": 2, "a": 2}


FORKING: Final = """
import json, os, sys
from threading import Thread
from persistence.lean import LeanClient

url, table = sys.argv[1:]
client = LeanClient("us-east-1", endpoint_url=url, connect_timeout=60, read_timeout=60)

def get(name):
    return client.get_item(TableName=table, Key={"id": {"S": name}})["Item"]["id"]["S"]

told = []
thread = Thread(target=lambda: told.append(get("held")))
thread.start()
sys.stdin.readline()  # it is on its way
told.append(get("idle"))
child = os.fork()
if not child:
    os.write(1, json.dumps([get("child 1"), get("child 2")]).encode() + b"\\n")
    os._exit(0)
os.waitpid(child, 0)
told.append(get("after"))
thread.join()
os.write(1, json.dumps(told).encode())
client.close()
"""


def test_a_fork_in_the_middle_of_an_exchange_gives_neither_process_the_others_answer(items: Items) -> None:
    """The parent has an exchange under way and an idle connection; the child makes its calls, and ends."""
    is_under_way, may_be_answered = threading.Event(), threading.Event()

    def hold(peer: Peer, request: Request, send: Callable[[], Answer]) -> None:
        is_under_way.set()
        may_be_answered.wait(PATIENT)
        deeds.answered(peer, request, send)

    def release(peer: Peer, request: Request, send: Callable[[], Answer]) -> None:
        may_be_answered.set()
        deeds.answered(peer, request, send)

    items.wire.at("GetItem", 1, hold)
    items.wire.at("GetItem", 5, release)
    # A process of its own: one that has pytest's threads must not be forked.  It ends with its standard input.
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, items.wire.url, items.table],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert is_under_way.wait(PATIENT)
        said, _ = process.communicate(b"go\n", timeout=PATIENT)

    of_the_child, of_the_parent = (json.loads(line) for line in said.splitlines())
    assert of_the_child == ["child 1", "child 2"]
    assert sorted(of_the_parent) == ["after", "held", "idle"]
    assert items.connections == {"held": 1, "idle": 2, "child 1": 3, "child 2": 3, "after": 2}


#: What a request meets by chance; the others are answered.
CHANCES: dict[Any, float] = {
    deeds.broken_off_in_the_head: 0.05,
    deeds.broken_off_in_the_body: 0.05,
    deeds.broken_off_unread: 0.05,
    deeds.with_another_checksum: 0.05,
    deeds.answered_for_the_last_time: 0.05,
    deeds.twice: 0.05,
    deeds.late: 0.02,
    deeds.dripped: 0.02,
}
THREADS: Final = 50
EACH: Final = 12


def test_answers_never_cross_between_threads_whatever_happens_to_their_connections(
    items: Items, dynamodb_local: str, pytestconfig: pytest.Config
) -> None:
    seed = pytestconfig.getoption("chaos_seed")
    chance, struck, outcomes = random.Random(seed), Counter[Any](), Counter[str]()
    direct = shared_client(dynamodb_local)
    for thread in range(THREADS):
        direct.put_item(TableName=items.table, Item={"id": {"S": f"thread {thread}"}})
    items.client.close()
    items.client = LeanClient(endpoint_url=items.wire.url, connect_timeout=PATIENT, read_timeout=1)

    def judge(_request: Request) -> Deed | None:
        [deed] = chance.choices([*CHANCES, None], [*CHANCES.values(), 1 - sum(CHANCES.values())])
        struck[deed] += 1
        return deed

    items.wire.judge = judge

    def read(thread: int) -> list[str]:
        told = []
        for _ in range(EACH):
            try:
                told.append(items.get(f"thread {thread}"))
                outcomes["told"] += 1
            except LostAnswerError:
                outcomes["lost"] += 1
        return told

    with ThreadPoolExecutor(THREADS) as pool:
        told = list(pool.map(read, range(THREADS)))
    items.client.close()
    print(f"seed {seed}: {dict(outcomes)}, {len(items.wire.peers)} connections")  # noqa: T201 - pytest shows it if the test fails

    assert [set(names) for names in told] == [{f"thread {thread}"} for thread in range(THREADS)]
    assert struck.keys() == {*CHANCES, None}
    assert outcomes["lost"]


# What a harm looks like


@pytest.mark.parametrize(
    ("harm", "error", "is_applied"),
    [
        (Harm.LOSE_ANSWER, LostAnswerError, True),
        (Harm.LOSE_REQUEST, LostAnswerError, False),
        (Harm.CUT, LostAnswerError, True),
        (Harm.HANG, LostAnswerError, True),
        (Harm.ERROR_AFTER, ServiceError, True),
        (Harm.ERROR_BEFORE, ServiceError, False),
        (Harm.THROTTLE, ServiceError, False),
        (Harm.CONFLICT, ServiceError, False),
        (Harm.DELAY, LostAnswerError, False),
        (Harm.HOLD, LostAnswerError, False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_harm_shows_its_error_and_its_request_was_applied_or_not(
    dynamodb_local: str, harm: Harm, error: type[Exception], *, is_applied: bool
) -> None:
    """The twin of the story that `test_proxy.py` tells with boto3's client."""
    direct, proxy, struck = shared_client(dynamodb_local), FaultProxy(dynamodb_local), threading.Event()
    table = create_table(direct)
    client = lean_client_for(proxy.url, read_timeout=0.25 if harm in SLOW else PATIENT)
    proxy.harm("PutItem", 1, harm, then=struck.set)
    with pytest.raises(error):
        client.put_item(TableName=table, Item={"id": {"S": "a"}})

    assert struck.wait(PATIENT)
    assert direct.scan(TableName=table, ConsistentRead=True)["Count"] == is_applied
    assert proxy.calls["PutItem"] == 1
    client.close()
    proxy.stop()


# A wrong clock

#: Seconds that a signature is valid, before and after its time.
VALID: Final = 5 * 60
#: Epoch seconds, by the service's clock.
NOW: Final = 1_800_000_000


def checked(peer: Peer, request: Request, send: Callable[[], Answer]) -> None:
    """By a service that reads the signature's time, as DynamoDB does and DynamoDB Local does not."""
    signed = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    date = formatdate(NOW, usegmt=True)
    if abs(signed - NOW) <= VALID:
        peer.send(written(send(), date=date))
        return
    expired = f"Signature expired: {_stamp(signed)} is now earlier than {_stamp(NOW - VALID)} ({_stamp(NOW)} - 5 min.)"
    early = f"Signature not yet current: {_stamp(signed)} is still later than {_stamp(NOW + VALID)} ({_stamp(NOW)} + 5 min.)"
    kind = "com.amazon.coral.service#InvalidSignatureException"
    content = {"__type": kind, "message": expired if signed < NOW else early}
    peer.send(written(Answer(400, {}, json.dumps(content).encode()), date=date))


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")


@pytest.mark.parametrize("off_seconds", [-600, 600, -86_400], ids=["slow", "fast", "a day slow"])
def test_with_a_wrong_clock_a_claim_is_signed_again_and_the_function_runs_once(scene: Scene, off_seconds: int) -> None:
    scene.wire.judge = lambda _request: checked
    client = LeanClient(
        endpoint_url=scene.wire.url, connect_timeout=PATIENT, read_timeout=PATIENT, clock=lambda: NOW + off_seconds
    )
    scene.store.client = client

    assert [scene.pay(), scene.pay()] == ["paid", "paid"]

    assert scene.runs == [ORDER["id"]]
    assert scene.wire.calls == {"PutItem": 3, "UpdateItem": 1}  # one was refused for its time, and no other ever after
    assert scene.clock.slept_ms == []
    assert scene.peek(key_of(ORDER["id"]))["status"] == "COMPLETED"
    client.close()


def test_a_clock_that_is_right_within_the_limit_is_left_alone(scene: Scene) -> None:
    scene.wire.judge = lambda _request: checked
    client = LeanClient(endpoint_url=scene.wire.url, connect_timeout=PATIENT, read_timeout=PATIENT, clock=lambda: NOW - 200)
    scene.store.client = client

    assert scene.pay() == "paid"

    assert scene.wire.calls == {"PutItem": 1, "UpdateItem": 1}
    client.close()
