"""The story of `test_chaos.py` told to the store in Valkey, and to broken ones that the checker must find.

More of it: `pytest tests/fault/test_cache_chaos.py --chaos-attempts=10000 --chaos-seed=1`.  See docs/faults.md.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
import redis
import valkey
from doubles import FakeClock
from fault.chaos import RATES, Chaos
from fault.proxy import SLOW, Harm
from fault.resp_proxy import RespProxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from stores import cached

from idempotency import CachePersistenceLayer
from persistence._cache_scripts import CLAIM, COMPLETE, RELEASE, Script
from persistence.exceptions import IdempotencyItemAlreadyExistsError, IdempotencyItemNotFoundError
from persistence.rules import is_claimable, is_in_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idempotency import DataRecord
    from persistence.background import Heartbeat

#: How many attempts are made in one go, and of how many that are asked for one is made here.
ROUND: Final = 250
SHARE: Final = 3
#: Many times what it took to find each broken store with any seed that was tried; it ends with the first violation.
FEW: Final = 1_500
#: A server that cannot for now is one harm here, whatever it says.
HARMS: Final = {harm: rate for harm, rate in RATES.items() if harm not in (Harm.ERROR_AFTER, Harm.THROTTLE)} | {
    Harm.ERROR_BEFORE: 0.06,
    Harm.DUPLICATE: 0.02,
}
OPTIONS: Final[dict[str, Any]] = {"socket_timeout": 0.25, "decode_responses": True}


def patient_client(proxy: RespProxy) -> Any:
    """One that leaves retries to the store."""
    return redis.Redis(host=proxy.host, port=proxy.port, **OPTIONS, retry=Retry(NoBackoff(), 0))


def hiding_client(proxy: RespProxy) -> Any:
    """One that repeats requests by itself, which nobody can see."""
    return redis.Redis(host=proxy.host, port=proxy.port, **OPTIONS, retry=Retry(NoBackoff(), 2))


def valkey_client(proxy: RespProxy) -> Any:
    return valkey.Valkey(host=proxy.host, port=proxy.port, **OPTIONS)


CLIENTS = {"redis-py": patient_client, "redis-py with retries": hiding_client, "valkey-py": valkey_client}


class CacheChaos(Chaos):
    """The story, of scripts instead of API calls."""

    @staticmethod
    def _about(request: Any) -> tuple[str, str]:
        return request.key, request.owner_token


# Broken on purpose, each in one way


def without(script: Script, condition: str, taken_for: str = "false") -> Script:
    """The script, careless of a condition."""
    assert script.text.count(condition) == 1
    text = script.text.replace(condition, taken_for)
    return Script(text, hashlib.sha1(text.encode()).hexdigest())


class Careless(CachePersistenceLayer):
    """Runs other scripts in the place of the store's own."""

    instead: ClassVar[dict[Script, Script]]

    def _scripted(self, port: Any, request: tuple[Script, list[str]], *arguments: Any, **options: Any) -> Any:
        script, words = request
        return super()._scripted(port, (self.instead.get(script, script), words), *arguments, **options)


class IgnoresTheTokenOnCompletion(Careless):
    """Whoever completes last wins."""

    instead: ClassVar = {COMPLETE: without(COMPLETE, "record and record[owner] ~= token")}


class IgnoresTheTokenOnRelease(Careless):
    """A late failure deletes the claim of its successor."""

    instead: ClassVar = {RELEASE: without(RELEASE, "record[owner] ~= token or not is_in_progress()")}


class TakesOverLiveLeases(Careless):
    """A claim that does not ask when the other one's lease ends."""

    instead: ClassVar = {CLAIM: without(CLAIM, "record[lease] < now_ms", "true")}


class ReadsThenWrites(CachePersistenceLayer):
    """Claims by GET and then SET: of two attempts that have found the same orphan, both win."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        generation = 0
        with suppress(IdempotencyItemNotFoundError):
            existing = self._get_record(data_record.key)
            if not is_claimable(existing, self.clock_ms()):
                raise IdempotencyItemAlreadyExistsError(old_data_record=existing)
            generation = existing.generation
        granted = data_record.replace(generation=generation + 1)
        self.client.set(data_record.key, self._texts.text(granted))
        return granted


class TakesAnyRecordForItsOwn(CachePersistenceLayer):
    """A refusal by a record in progress is taken for a claim of ours whose answer was lost."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        try:
            return super()._put_record(data_record)
        except IdempotencyItemAlreadyExistsError as refused:
            existing = refused.old_data_record
            if existing is None or not is_in_progress(existing):
                raise
            return existing.replace(owner_token=data_record.owner_token)


BROKEN = [
    IgnoresTheTokenOnCompletion,
    IgnoresTheTokenOnRelease,
    TakesOverLiveLeases,
    ReadsThenWrites,
    TakesAnyRecordForItsOwn,
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"seed", "new_client"} <= set(metafunc.fixturenames):
        first, attempts = metafunc.config.getoption("chaos_seed"), metafunc.config.getoption("chaos_attempts")
        names = list(CLIENTS)
        rounds = [(first + number, names[number % len(names)]) for number in range(-(-attempts // (ROUND * SHARE)))]
        cases = [(seed, CLIENTS[name]) for seed, name in rounds]
        metafunc.parametrize(("seed", "new_client"), cases, ids=[f"{seed}-{name}" for seed, name in rounds])


@pytest.fixture
def proxy(valkey_server: str) -> Iterator[RespProxy]:
    proxy = RespProxy(valkey_server)
    yield proxy
    proxy.stop()


@pytest.fixture
def play(valkey_server: str, proxy: RespProxy, heart: Heartbeat) -> Iterator[Callable[..., Chaos]]:
    """Plays a story to its end, or to its first violation."""
    clients: list[Any] = []

    def play(new_client: Callable[..., Any], kind: type[CachePersistenceLayer], seed: int, attempts: int) -> Chaos:
        made = cached(FakeClock(), valkey_server)
        clients.append(new_client(proxy))
        story = CacheChaos(partial(kind, client=clients[0]), proxy, made.peek, heart, seed=seed, attempts=attempts, rates=HARMS)
        story.play()
        if not story.violations:
            story.settle()
        print(story.report())  # noqa: T201 - pytest shows it if the test fails
        return story

    yield play
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", BROKEN)
def test_the_checker_finds_a_broken_store(
    pytestconfig: pytest.Config, play: Callable[..., Chaos], kind: type[CachePersistenceLayer]
) -> None:
    assert play(patient_client, kind, pytestconfig.getoption("chaos_seed"), FEW).violations


def test_in_chaos_no_caller_is_deceived_no_effect_duplicated_and_no_key_stuck(
    play: Callable[..., Chaos], proxy: RespProxy, seed: int, new_client: Callable[..., Any]
) -> None:
    story = play(new_client, CachePersistenceLayer, seed, ROUND)

    assert story.violations == []
    assert HARMS.keys() - SLOW <= proxy.struck.keys()
