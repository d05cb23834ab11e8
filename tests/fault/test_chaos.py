"""Thousands of attempts under random faults; a checker that first shows that it finds broken stores.

More of them: `pytest tests/fault/test_chaos.py --chaos-attempts=10000 --chaos-seed=1`.  See docs/faults.md.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from doubles import FakeClock
from fault.broken import BROKEN
from fault.chaos import RATES, SDK_TIME, Chaos
from fault.proxy import SLOW, FaultProxy
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistence.background import Heartbeat

#: How many attempts are made in one go.
ROUND = 250
#: Many times what it took to find each broken store with any seed that was tried; it ends with the first violation.
FEW = 1500


def library_client(table: str, session: boto3.Session) -> Any:
    """As the library makes it, but for the read timeout: a hung answer costs a quarter of a second here."""
    return DynamoDBPersistenceLayer(table, boto3_session=session, boto_config=Config(read_timeout=0.25)).client


def users_client(_table: str, session: boto3.Session) -> Any:
    """One that is given, with the SDK's usual retries."""
    retries = {"mode": "standard", "total_max_attempts": 4}
    return session.client("dynamodb", config=Config(read_timeout=0.25, max_pool_connections=50, retries=retries))


def hiding_client(table: str, session: boto3.Session) -> Any:
    """The same inside an object of the user's own, where nobody else can tell that it sends a request again."""
    client = users_client(table, session)
    methods = ("put_item", "get_item", "update_item", "delete_item", "close")
    return SimpleNamespace(**{name: getattr(client, name) for name in methods})


def lean_client(_table: str, _session: boto3.Session) -> Any:
    """As the library makes it, but for the same."""
    return LeanClient(read_timeout=0.25)


#: In this order they take their turns, from seed to seed.
CLIENTS = {
    "the lean client": lean_client,
    "the library's client": library_client,
    "the user's client": users_client,
    "a hiding client": hiding_client,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"seed", "new_client"} <= set(metafunc.fixturenames):
        first, attempts = metafunc.config.getoption("chaos_seed"), metafunc.config.getoption("chaos_attempts")
        rounds = range(first, first + -(-attempts // ROUND))
        cases = list(zip(rounds, cycle(CLIENTS.items()), strict=False))
        metafunc.parametrize(
            ("seed", "new_client"),
            [(seed, client) for seed, (_, client) in cases],
            ids=[f"{seed}-{name}" for seed, (name, _) in cases],
        )


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: it reads the service's model once."""
    return boto3.Session()


@pytest.fixture
def proxy(dynamodb_local: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(dynamodb_local)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    monkeypatch.setattr("botocore.endpoint.time", SDK_TIME)
    yield proxy
    proxy.stop()


@pytest.fixture
def play(dynamodb_local: str, proxy: FaultProxy, session: boto3.Session, heart: Heartbeat) -> Iterator[Callable[..., Chaos]]:
    """Plays a story to its end, or to its first violation."""
    clients: list[Any] = []

    def play(new_client: Callable[..., Any], kind: type[DynamoDBPersistenceLayer], seed: int, attempts: int) -> Chaos:
        made = dynamodb(FakeClock(), dynamodb_local)
        table: str = made.store.table_name
        clients.append(new_client(table, session))
        new_store = partial(kind, table, boto3_client=clients[0])
        story = Chaos(new_store, proxy, made.peek, heart, seed=seed, attempts=attempts)
        story.play()
        if not story.violations:
            story.settle()
        print(story.report())  # noqa: T201 - pytest shows it if the test fails
        return story

    yield play
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("own_client", [library_client, lean_client])
def test_the_checker_finds_a_broken_store(
    pytestconfig: pytest.Config,
    play: Callable[..., Chaos],
    own_client: Callable[..., Any],
    kind: type[DynamoDBPersistenceLayer],
) -> None:
    assert play(own_client, kind, pytestconfig.getoption("chaos_seed"), FEW).violations


def test_in_chaos_no_caller_is_deceived_no_effect_duplicated_and_no_key_stuck(
    play: Callable[..., Chaos], proxy: FaultProxy, seed: int, new_client: Callable[..., Any]
) -> None:
    story = play(new_client, DynamoDBPersistenceLayer, seed, ROUND)

    assert story.violations == []
    assert RATES.keys() - SLOW <= proxy.struck.keys()
    assert proxy.repetitions or new_client is not hiding_client
