"""Transactions under crashes and random faults: every payment is made once, whatever happens; Powertools beside it.

More of them: `pytest tests/fault/test_transfers.py --chaos-attempts=10000 --chaos-seed=1`.  See docs/faults.md.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from doubles import FakeClock, LambdaContext
from engines.tables import create_table, shared_client
from fault import worker
from fault.chaos import SDK_TIME, SharedClock, here
from fault.proxy import SLOW, TRANSACT, FaultProxy, Harm, Strike
from fault.transfers import (
    BROKEN,
    HARSH,
    NOTHING_WRITTEN,
    RATES,
    Bank,
    Mortal,
    OurStory,
    Payment,
    PeerStory,
    doubles,
    errors_in_the_books,
    errors_in_the_tallies,
    payments,
)
from fault.worker import AT_RANDOM, LEASE_SECONDS, MARGIN_MS, PAY_STEPS, PAYMENT, PER_PAYMENT, payer, store_at
from faults import PREFIX, Suspended, key_of, keyed
from powertools_side import powertools_on, set_powertools_clock
from stores import CLIENTS, dynamodb

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyAlreadyInProgressError,
    IdempotencyTransactionCanceledError,
    current_attempt,
    idempotent,
    transaction,
)
from persistence._sdk import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fault.proxy import Request
    from fault.transfers import Story
    from stores import Made

    from persistence.background import Heartbeat

#: Of how many deliveries at most workers are killed, with each client, whatever --chaos-attempts says: each costs a process.
MOST_KILLS = 500
#: What it means that the first assertion of a test fails.
REPAIRED = "Powertools no longer does this: update docs/faults.md"
#: Harms that may be missing in one round.
RARE = SLOW | {Harm.ERROR_BEFORE, Harm.IN_PROGRESS_AFTER, Harm.IN_PROGRESS_BEFORE}
#: How many deliveries are made in one go.
ROUND = 375
#: Many times what it took to find each broken store with any seed that was tried; it ends with the first violation.
FEW = 1500
#: How many deliveries Powertools gets.
PEERS = 300


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first, attempts = metafunc.config.getoption("chaos_seed"), metafunc.config.getoption("chaos_attempts")
        rounds = range(-(-attempts // (ROUND * len(CLIENTS))))
        cases = [(first + number, HARSH if number % 2 else None) for number in rounds]
        ids = [f"{seed}{'' if weights is None else '-harsh'}" for seed, weights in cases]
        metafunc.parametrize(("seed", "weights"), cases, ids=ids)


class _Here:
    """The clock of whatever payment this thread is busy with."""

    @property
    def now_ms(self) -> int:
        return here.get()()

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: it reads the service's model once."""
    return boto3.Session()


@pytest.fixture
def proxy(dynamodb_local: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr("botocore.endpoint.time", SDK_TIME)
    sleeping = SimpleNamespace(sleep_ms=lambda ms: SDK_TIME.sleep(ms / 1000))
    monkeypatch.setattr("idempotency.changes.BasePersistenceLayer", sleeping)
    monkeypatch.setattr("idempotency.changes.wall_clock_ms", _Here())
    proxy = FaultProxy(dynamodb_local)
    yield proxy
    proxy.stop()


@pytest.fixture
def read_timeout() -> float:
    """Seconds.  A hung answer costs as much."""
    return 0.25


@pytest.fixture
def client(
    proxy: FaultProxy, session: boto3.Session, client_kind: Any, read_timeout: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """As the library makes it, but for the read timeout."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    monkeypatch.setattr("persistence.dynamodb.READ_TIMEOUT", read_timeout)
    own_session = session if client_kind == "boto3" else None
    client = DynamoDBPersistenceLayer("any", boto3_session=own_session, client=client_kind).client
    prepare(client)  # a store does not see through `Mortal`
    yield client
    client.close()


@pytest.fixture
def new_story(dynamodb_local: str, proxy: FaultProxy, client: Any) -> Callable[..., Any]:
    """Makes a story of a kind on tables of its own."""

    def new_story(story: type[Story], client: Any = client, /, **options: Any) -> Story:
        direct = shared_client(dynamodb_local)
        return story(Bank(direct), create_table(direct), client, proxy, **options)

    return new_story


def test_every_payment_is_made_once_and_every_caller_is_told_so(
    new_story: Callable[..., OurStory],
    heart: Heartbeat,
    proxy: FaultProxy,
    seed: int,
    weights: dict[str, dict[Any, int]] | None,
) -> None:
    story = new_story(OurStory, heartbeat=heart, seed=seed, weights=weights, attempts=ROUND)
    story.play()
    if not story.violations:
        story.settle()
    print(story.report())  # noqa: T201 - pytest shows it if the test fails

    assert story.violations == []
    assert RATES.keys() - RARE <= proxy.struck.keys()
    assert story.told_nothing


@pytest.mark.parametrize("kind", BROKEN)
def test_the_checker_finds_a_broken_store(
    pytestconfig: pytest.Config, new_story: Callable[..., OurStory], heart: Heartbeat, kind: type[DynamoDBPersistenceLayer]
) -> None:
    seed = pytestconfig.getoption("chaos_seed")
    story = new_story(OurStory, heartbeat=heart, kind=kind, seed=seed, weights=HARSH, attempts=FEW)
    story.play()
    print(story.report())  # noqa: T201 - pytest shows it if the test fails

    assert story.violations


@pytest.mark.parametrize("client_kind", ["boto3"], indirect=True)
@pytest.mark.parametrize("is_atomic", [False, True], ids=["plain writes", "a transaction of its own"])
def test_powertools_makes_some_payments_twice(
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
    new_story: Callable[..., PeerStory],
    proxy: FaultProxy,
    session: boto3.Session,
    *,
    is_atomic: bool,
) -> None:
    """Its store and its function share a client with boto3's own retries."""
    set_powertools_clock(monkeypatch, _Here())
    client = session.client("dynamodb", endpoint_url=proxy.url, config=Config(read_timeout=0.25, max_pool_connections=50))
    seed = pytestconfig.getoption("chaos_seed")
    story = new_story(PeerStory, client, library=powertools_on, is_atomic=is_atomic, seed=seed, attempts=PEERS)
    story.play()
    story.settle()
    client.close()
    items = story.bank.items()
    print(f"{story.report()}\n{doubles(items)} doubles, {story.bank.money()} in all accounts")  # noqa: T201 - the same

    assert doubles(items), REPAIRED


# Killed processes


@dataclass(frozen=True)
class Expected:
    """What follows a kill.

    Attributes:
        next: What a redelivery gets while the dead worker's lease lasts: "refused", "runs" or "replayed".
        is_made: Whether the dead worker's transaction is written.
        generation: That of the completed record.
    """

    next: str
    generation: int
    is_made: bool = False


EXPECTED = {
    "before the claim": Expected("runs", 1),
    "after the claim, its answer unread": Expected("refused", 2),
    "after the claim": Expected("refused", 2),
    "before the takeover": Expected("runs", 2),
    "after the takeover, its answer unread": Expected("refused", 3),
    "before the first write": Expected("refused", 2),
    "between the writes": Expected("refused", 2),
    "after the last write": Expected("refused", 2),
    "before the change": Expected("refused", 2),
    "after the change, its answer unread": Expected("refused", 2),
    "before the commit": Expected("refused", 2),
    "after the commit, its answer unread": Expected("replayed", 1, is_made=True),
    "before the repeated commit": Expected("replayed", 1, is_made=True),
    "after the repeated commit, its answer unread": Expected("replayed", 1, is_made=True),
    "after the commit": Expected("replayed", 1, is_made=True),
    "before the release": Expected("refused", 2),
    "after the release, its answer unread": Expected("runs", 1),
    "before the settling release": Expected("replayed", 1, is_made=True),
    "after the settling release, its answer unread": Expected("replayed", 1, is_made=True),
}


@dataclass
class Scene:
    """The tables of a worker that was killed, and the time at which that was."""

    place: Made
    bank: Bank
    killed_ms: int

    def payer(self, now_ms: int, payment: Payment = PAYMENT) -> Callable[[], Any]:
        client = self.bank.client
        return payer(client, store_at(client, self.place.store.table_name, now_ms), self.bank.table, payment)


def run_workers(endpoint: str, kind: str, scenes: dict[str, list[Any]]) -> Any:
    """Start `worker.py` with this process's import path: the packages under test may be installed, or not."""
    program = f"""
import runpy, sys
end = sys.argv.index("--")
sys.path[:] = sys.argv[1:end]
sys.argv[1:] = sys.argv[end + 1:]
runpy.run_path({str(Path(worker.__file__))!r}, run_name="__main__")
"""
    path = [path for path in sys.path if path]
    command = [sys.executable, "-P", "-c", program, *path, "--", endpoint, kind, json.dumps(scenes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=CLIENTS)
def killed(request: pytest.FixtureRequest, dynamodb_local: str) -> dict[str, Scene]:
    """By step: what a worker left that was killed there.  All of them die at the same time, to save some."""
    scenes = {}
    for step in PAY_STEPS:
        clock = FakeClock()
        place = dynamodb(clock, dynamodb_local)
        scenes[step] = Scene(place, Bank(place.client), clock())
        if "takeover" in step:
            with pytest.raises(Suspended):
                payer(Mortal(place.client, (1, False)), place.store, scenes[step].bank.table)()
            scenes[step].killed_ms += 1000 * LEASE_SECONDS + MARGIN_MS + 1
    tables = {step: [scene.place.store.table_name, scene.killed_ms, scene.bank.table] for step, scene in scenes.items()}
    assert run_workers(dynamodb_local, request.param, tables) == dict.fromkeys(PAY_STEPS, signal.SIGKILL)
    return scenes


def test_every_step_has_its_expectation() -> None:
    assert set(EXPECTED) == set(PAY_STEPS)


@pytest.mark.parametrize("step", PAY_STEPS)
def test_after_a_kill_the_payment_is_made_once_and_every_caller_gets_the_result_of_the_attempt_that_made_it(
    killed: dict[str, Scene], step: str
) -> None:
    """In the last millisecond of the dead worker's lease, in the first after it, and once more."""
    scene, expected = killed[step], EXPECTED[step]
    lease_end_ms = scene.killed_ms + 1000 * LEASE_SECONDS + MARGIN_MS
    made = [PAYMENT] if expected.is_made else []
    assert list(errors_in_the_books(scene.bank.items(), made)) == []

    results = []
    if expected.next == "refused":
        with pytest.raises(IdempotencyAlreadyInProgressError):
            scene.payer(lease_end_ms)()
    else:
        results.append(scene.payer(lease_end_ms)())
    results += [scene.payer(lease_end_ms + 1)(), scene.payer(lease_end_ms + 1)()]

    record, items = scene.place.peek(key_of(PAYMENT.id)), scene.bank.items()
    assert [result["by"] for result in results] == [record["owner_token"]] * len(results)
    assert items[PAYMENT.id]["made_by"] == {record["owner_token"]}
    assert (record["status"], record["generation"]) == ("COMPLETED", expected.generation)
    assert list(errors_in_the_books(items, [PAYMENT])) == []
    assert list(errors_in_the_tallies(items, [PAYMENT])) == []


def test_workers_that_are_killed_at_any_moment_make_every_payment_once(
    dynamodb_local: str, client_kind: str, pytestconfig: pytest.Config
) -> None:
    clock = FakeClock()
    place = dynamodb(clock, dynamodb_local)
    scene = Scene(place, Bank(place.client), clock())
    seed, deliveries = pytestconfig.getoption("chaos_seed"), min(pytestconfig.getoption("chaos_attempts") // 20, MOST_KILLS)
    work = [place.store.table_name, scene.killed_ms, scene.bank.table, seed, deliveries]
    told = run_workers(dynamodb_local, client_kind, {AT_RANDOM: work})
    todo = payments(seed, -(-deliveries // PER_PAYMENT), {"transfer": 1, "order": 1})
    before = scene.bank.items()
    unmade = [payment for payment in todo if payment.id not in before]
    killed = told["killed"]
    print(f"seed {seed}: {PER_PAYMENT * len(todo)} deliveries, {killed} killed, {len(unmade)} of {len(todo)} payments unmade")  # noqa: T201 - the same

    assert killed > deliveries // 10
    assert list(errors_in_the_books(before, [payment for payment in todo if payment not in unmade])) == []
    end_ms = scene.killed_ms + 1000 * (LEASE_SECONDS + 2) * (deliveries + 100)
    results = [scene.payer(end_ms, payment)() for payment in todo]
    assert all(result in results for result in told["results"])
    items = scene.bank.items()
    assert [items[payment.id]["made_by"] for payment in todo] == [{result["by"]} for result in results]
    assert list(errors_in_the_books(items, todo)) == []
    assert list(errors_in_the_tallies(items, todo)) == []


# One hot item


@pytest.mark.parametrize("read_timeout", [60])  # nothing hangs here, and a busy machine may be slow
@pytest.mark.parametrize(("rate", "is_hopeless"), [(0.5, False), (0.97, True)], ids=["often", "almost always"])
def test_ten_workers_on_one_hot_item_get_through_or_fail_clearly_before_their_deadlines(
    dynamodb_local: str, pytestconfig: pytest.Config, proxy: FaultProxy, client: Any, rate: float, *, is_hopeless: bool
) -> None:
    """DynamoDB Local lets transactions wait for each other; DynamoDB lets them conflict, and so does the proxy."""
    direct = shared_client(dynamodb_local)
    bank, records = Bank(direct), create_table(direct)
    hot = [Payment(number, "transfer", 0, 1, 1) for number in range(100)]
    proxy.judge = _conflicts(pytestconfig.getoption("chaos_seed"), rate)
    late: list[int] = []

    def work(payment: Payment) -> Any:
        clock = SharedClock()
        here.set(clock)
        store = DynamoDBPersistenceLayer(records, boto3_client=client)
        store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
        context = LambdaContext(remaining_ms=15_000, clock=clock)

        @idempotent(persistence_store=store, config=keyed(), key_prefix=PREFIX)
        def pay(event: Any, context: Any) -> dict[str, int]:
            for method, request in payment.writes(bank.table, current_attempt().owner_token):
                getattr(transaction(), method)(**request)
            return {"paid": payment.amount}

        try:
            return pay({"id": payment.id}, context)
        except IdempotencyTransactionCanceledError as error:
            return error
        finally:
            if not context.get_remaining_time_in_millis():
                late.append(payment.number)

    with ThreadPoolExecutor(10) as pool:
        got = list(pool.map(work, hot))
    made = [payment for payment, result in zip(hot, got, strict=True) if result == {"paid": 1}]
    errors = [result for result in got if isinstance(result, Exception)]
    print(f"{len(made)} got through with {proxy.calls['TransactWriteItems']} requests, {len(errors)} failed")  # noqa: T201 - the same

    assert late == []
    assert len(made) + len(errors) == len(hot)
    assert bool(errors) == is_hopeless
    assert {reason.code for error in errors for reason in error.reasons} <= {None, "TransactionConflict"}
    assert all(NOTHING_WRITTEN in str(error) for error in errors)
    assert list(errors_in_the_books(bank.items(), made)) == []


def _conflicts(seed: int, rate: float) -> Callable[[Request], Strike | None]:
    """Every so many transactions meet another one on the hot account, or on their record."""

    def judge(request: Request) -> Strike | None:
        chance = random.Random(f"{seed} {request.operation} {request.number}")
        if request.operation != TRANSACT or chance.random() > rate:
            return None
        return Strike(Harm.CONFLICT, action=chance.randrange(3))

    return judge
