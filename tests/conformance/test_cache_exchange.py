"""Records that this library and Powertools for Python 3.37 write into one cache serve both, in both directions.

Each story has a *writer*, which is first at the key, and a *reader*; either library plays either part.  What Powertools promises
less than this library is shown on its side of the story, never repaired.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
from doubles import LambdaContext
from engines.caches import free_port
from powertools_side import Effects, Killed, Library, ours_on_cache, powertools_on_cache, set_powertools_clock
from stores import shared_cache_client
from verbs import Verbs, at_once

from idempotency import IdempotencyConfig, idempotent
from persistence import _cache_clients
from persistence.cache import CachePersistenceLayer
from persistence.datarecord import DataRecord, Status
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
)
from persistence.redis import RedisCachePersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

NAMES = {
    "default names": {},
    "own names": {
        "in_progress_expiry_attr": "lease.end",
        "expiry_attr": "ttl",
        "status_attr": "state",
        "data_attr": "0data",
        "validation_key_attr": "hash",
    },
}
VALIDATED = {"payload_validation_jmespath": "amount"}
EVENT = {"id": "order-1", "amount": 10}
RESULT = {"text": "日本 🧾", "n": 1.5, "list": [1, None, True], "nested": {"b": 1, "a": ""}}
FALSY = [{}, [], "", 0, 0.0, False, None]


@dataclass
class Cache:
    """One server, and both libraries on it."""

    client: Any
    names: dict[str, str]
    powertools: Library
    ours: Library

    @property
    def key(self) -> str:
        """The only key but for Powertools' locks."""
        (key,) = (key.decode() for key in self.client.scan_iter() if not key.endswith(b":lock"))
        return key

    @property
    def text(self) -> bytes:
        text: bytes = self.client.get(self.key)
        return text

    @property
    def record(self) -> dict[str, Any]:
        """The only record, under Powertools' names."""
        theirs = {
            self.names.get(option, default): default
            for option, default in {
                "in_progress_expiry_attr": "in_progress_expiration",
                "expiry_attr": "expiration",
                "status_attr": "status",
                "data_attr": "data",
                "validation_key_attr": "validation",
            }.items()
        }
        return {theirs.get(name, name): value for name, value in json.loads(self.text).items()}

    @property
    def is_empty(self) -> bool:
        return not self.client.keys()

    @property
    def lease_end_ms(self) -> int:
        end_ms: int = self.record["in_progress_expiration"]
        return end_ms


@pytest.fixture(params=NAMES)
def cache(request: pytest.FixtureRequest, valkey_server: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Cache:
    names = NAMES[request.param]
    set_powertools_clock(monkeypatch, clock)
    client = shared_cache_client(redis.Redis.from_url, valkey_server)
    client.flushall()
    return Cache(client, names, powertools_on_cache(client, **names), ours_on_cache(client, clock, **names))


with_default_names = pytest.mark.parametrize("cache", ["default names"], indirect=True)


@pytest.fixture(params=["powertools-then-ours", "ours-then-powertools"])
def parts(request: pytest.FixtureRequest, cache: Cache) -> tuple[Library, Library]:
    """The writer and the reader."""
    if request.param == "powertools-then-ours":
        return cache.powertools, cache.ours
    return cache.ours, cache.powertools


@pytest.fixture
def writer(parts: tuple[Library, Library]) -> Library:
    return parts[0]


@pytest.fixture
def reader(parts: tuple[Library, Library]) -> Library:
    return parts[1]


def crash(effects: Effects, library: Library, context: LambdaContext, **settings: Any) -> None:
    """An attempt that ends without a word, its record in progress."""
    with pytest.raises(Killed):
        effects.handler(library, **settings)(EVENT, context)


# Either reads what the other wrote


@pytest.mark.parametrize("result", [RESULT, *FALSY], ids=repr)
def test_a_result_is_replayed_and_its_text_left_alone(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock, result: Any
) -> None:
    effects = Effects([result, "ran twice"])
    effects.handler(writer)(EVENT, LambdaContext(clock=clock))
    before = cache.text

    replayed = effects.handler(reader)(EVENT, LambdaContext(clock=clock))

    # Powertools replays what is falsy as None, its own records included.
    assert replayed == (result if reader is cache.ours or result else None)
    assert type(replayed) is type(result) or reader is cache.powertools
    assert effects.runs == 1
    assert cache.text == before


@pytest.mark.parametrize("settings", [{}, VALIDATED], ids=["plain", "validated"])
def test_a_running_attempt_refuses(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock, settings: dict[str, str]
) -> None:
    effects = Effects([Killed(), "ran twice"])
    crash(effects, writer, LambdaContext(clock=clock), **settings)
    # At the very end of its lease, Powertools takes a record over, and this library does not.
    clock.now_ms = cache.lease_end_ms - (125 if reader is cache.powertools else 0)
    before = cache.text

    with pytest.raises(reader.exceptions.IdempotencyAlreadyInProgressError):
        effects.handler(reader, **settings)(EVENT, LambdaContext(clock=clock))

    assert (cache.text, effects.runs) == (before, 1)


@pytest.mark.parametrize("settings", [{}, VALIDATED], ids=["plain", "validated"])
def test_an_orphan_is_taken_over_after_its_lease(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock, settings: dict[str, str]
) -> None:
    effects = Effects([Killed(), RESULT, "ran thrice"])
    crash(effects, writer, LambdaContext(clock=clock), **settings)
    clock.now_ms = cache.lease_end_ms + 125

    result = effects.handler(reader, **settings)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)
    assert cache.record["status"] == "COMPLETED"
    assert effects.handler(writer)(EVENT, LambdaContext(clock=clock)) == RESULT


@with_default_names
def test_an_expired_result_is_executed_again_and_leaves_nothing_behind(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects(["old", RESULT, "ran thrice"])
    effects.handler(writer, expires_after_seconds=60)(EVENT, LambdaContext(clock=clock))
    clock.now_ms = cache.record["expiration"] * 1000 + 875
    assert effects.handler(reader)(EVENT, LambdaContext(clock=clock)) == "old"

    clock.advance(ms=125)
    result = effects.handler(reader)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)
    assert effects.handler(writer)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_a_failure_frees_the_key(cache: Cache, writer: Library, reader: Library, clock: FakeClock) -> None:
    effects = Effects([ZeroDivisionError(), RESULT])
    failing = effects.handler(writer)
    with pytest.raises(ZeroDivisionError):
        failing(EVENT, LambdaContext(clock=clock))
    assert cache.is_empty

    result = effects.handler(reader)(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs) == (RESULT, 2)


def test_an_attempt_in_flight_when_the_import_changes_is_waited_out_and_its_result_replayed(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects([RESULT, "ran twice"])
    changed = effects.handler(reader)

    def refused() -> None:
        with pytest.raises(reader.exceptions.IdempotencyAlreadyInProgressError):
            changed(EVENT, LambdaContext(clock=clock))

    effects.meanwhile = refused
    effects.handler(writer)(EVENT, LambdaContext(clock=clock))

    assert changed(EVENT, LambdaContext(clock=clock)) == RESULT
    assert effects.runs == 1


# The payload's hash


def test_another_payload_is_refused_while_the_attempt_runs(
    cache: Cache, writer: Library, reader: Library, clock: FakeClock
) -> None:
    effects = Effects([Killed(), "ran twice"])
    crash(effects, writer, LambdaContext(clock=clock), **VALIDATED)
    validated = effects.handler(reader, **VALIDATED)
    before = cache.text

    with pytest.raises(reader.exceptions.IdempotencyValidationError, match="^Payload does not match stored record"):
        validated({**EVENT, "amount": 11}, LambdaContext(clock=clock))

    assert (cache.text, effects.runs) == (before, 1)


@pytest.mark.parametrize("reading", ["ours", "powertools"])
def test_the_hash_survives_our_completion_so_the_same_payload_replays_and_another_is_refused(
    cache: Cache, clock: FakeClock, reading: str
) -> None:
    """Powertools drops it, and then refuses the identical retry."""
    reader = cache.ours if reading == "ours" else cache.powertools
    effects = Effects([RESULT, "ran twice"])
    effects.handler(cache.ours, **VALIDATED)(EVENT, LambdaContext(clock=clock))
    validated = effects.handler(reader, **VALIDATED)

    assert validated(EVENT, LambdaContext(clock=clock)) == RESULT
    with pytest.raises(reader.exceptions.IdempotencyValidationError, match="^Payload does not match stored record"):
        validated({**EVENT, "amount": 11}, LambdaContext(clock=clock))
    assert effects.runs == 1


def test_a_result_that_lost_its_hash_to_powertools_is_not_replayed_to_a_validated_payload(cache: Cache, clock: FakeClock) -> None:
    """Nobody knows whether the payload is the same: refused, as by Powertools itself, and never run again."""
    effects = Effects([RESULT, "ran twice"])
    effects.handler(cache.powertools, **VALIDATED)(EVENT, LambdaContext(clock=clock))
    assert "validation" not in cache.record

    for library in (cache.powertools, cache.ours):
        validated = effects.handler(library, **VALIDATED)
        with pytest.raises(library.exceptions.IdempotencyValidationError):
            validated(EVENT, LambdaContext(clock=clock))

    assert effects.runs == 1
    assert effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_our_takeover_of_a_validated_orphan_keeps_the_hash_of_the_payload_that_ran(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([Killed(), RESULT])
    crash(effects, cache.powertools, LambdaContext(clock=clock), **VALIDATED)
    orphan = cache.record
    clock.now_ms = cache.lease_end_ms + 125

    effects.handler(cache.ours, **VALIDATED)(EVENT, LambdaContext(clock=clock))

    assert (cache.record["status"], cache.record["validation"]) == ("COMPLETED", orphan["validation"])


# Expiries


def test_an_own_name_of_the_expiry_is_honoured_when_a_record_is_read(cache: Cache, clock: FakeClock) -> None:
    """Powertools writes it under that name and reads `expiration`: what has expired replays for ever."""
    effects = Effects(["old", RESULT])
    effects.handler(cache.powertools, expires_after_seconds=60)(EVENT, LambdaContext(clock=clock))
    clock.now_ms = (cache.record["expiration"] + 1) * 1000
    if cache.names:
        assert effects.handler(cache.powertools)(EVENT, LambdaContext(clock=clock)) == "old"

    assert effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock)) == RESULT


def test_powertools_claims_without_a_context_hold_until_their_expiry(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([Killed(), RESULT])
    claiming = effects.handler(cache.powertools, expires_after_seconds=60)
    with pytest.warns(UserWarning, match="Couldn't determine the remaining time left"), pytest.raises(Killed):
        claiming(EVENT, None)
    assert "in_progress_expiration" not in cache.record
    ours = effects.handler(cache.ours)
    clock.now_ms = cache.record["expiration"] * 1000 + 999
    with pytest.raises(cache.ours.exceptions.IdempotencyAlreadyInProgressError):
        ours(EVENT, LambdaContext(clock=clock))

    clock.advance(ms=1)

    assert ours(EVENT, LambdaContext(clock=clock)) == RESULT


# Late writes


def test_our_late_success_cannot_replace_the_result_of_a_powertools_takeover(cache: Cache, clock: FakeClock) -> None:
    effects = Effects(["late", "winner"])
    theirs = effects.handler(cache.powertools)

    def lose_the_lease() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = cache.lease_end_ms + 125
        assert theirs(EVENT, LambdaContext(clock=clock)) == "winner"

    effects.meanwhile = lose_the_lease

    assert effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock, remaining_ms=1_000)) == "winner"
    assert cache.record["data"] == '"winner"'
    assert not {"owner_token", "generation"} & cache.record.keys()


def test_our_late_failure_cannot_free_the_key_of_a_powertools_takeover(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([ZeroDivisionError(), Killed()])
    theirs = effects.handler(cache.powertools)

    def lose_the_lease() -> None:
        effects.meanwhile = lambda: None
        clock.now_ms = cache.lease_end_ms + 125
        with pytest.raises(Killed):
            theirs(EVENT, LambdaContext(clock=clock))

    effects.meanwhile = lose_the_lease
    late = effects.handler(cache.ours)
    with pytest.raises(ZeroDivisionError):
        late(EVENT, LambdaContext(clock=clock, remaining_ms=1_000))

    assert cache.record["status"] == "INPROGRESS"
    assert "owner_token" not in cache.record


def superseding(effects: Effects, cache: Cache, clock: FakeClock, finish_late: Callable[[DataRecord], object]) -> Any:
    """What our attempt returns that has taken over from one of Powertools, which finishes while ours still runs."""
    crash(effects, cache.powertools, LambdaContext(clock=clock))
    clock.now_ms = cache.lease_end_ms + 125
    theirs = DataRecord(cache.key, Status.COMPLETED.value, clock.now_ms // 1000 + 60, response_data='"late"')
    effects.meanwhile = lambda: finish_late(theirs)
    return effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock))


def test_a_superseded_powertools_attempt_that_overwrites_our_record_is_who_everyone_hears(cache: Cache, clock: FakeClock) -> None:
    """Powertools completes unconditionally, and with the whole text: our token is gone, and its result is the stored one."""
    effects = Effects([Killed(), "ours", "ran thrice"])

    returned = superseding(effects, cache, clock, cache.powertools.new_store()._update_record)

    assert returned == "late"
    for library in (cache.ours, cache.powertools):
        assert effects.handler(library)(EVENT, LambdaContext(clock=clock)) == "late"


def test_a_superseded_powertools_attempt_that_deletes_our_claim_does_not_lose_our_result(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([Killed(), "ours", "ran thrice"])

    returned = superseding(effects, cache, clock, cache.powertools.new_store()._delete_record)

    assert (returned, cache.record["data"], cache.record["status"]) == ("ours", '"ours"', "COMPLETED")
    assert effects.handler(cache.powertools)(EVENT, LambdaContext(clock=clock)) == "ours"


def test_a_record_of_powertools_is_held_by_no_token_of_ours(cache: Cache, clock: FakeClock) -> None:
    crash(Effects([Killed()]), cache.powertools, LambdaContext(clock=clock))
    before = cache.text
    verbs = Verbs(cache.ours.new_store(), clock)
    stranger = verbs.offer(cache.key, "a")

    for write in (
        lambda: verbs.complete(verbs.completed(stranger, '"A"')),
        lambda: verbs.release(stranger),
        lambda: verbs.renew(verbs.renewed(stranger, lease_ms=60_000)),
    ):
        with pytest.raises(IdempotencyLeaseLostError):
            write()

    assert cache.text == before


def test_a_result_that_was_not_kept_is_no_second_execution_in_powertools(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([object(), "ran twice"])
    ours = effects.handler(cache.ours)
    with pytest.raises(cache.ours.exceptions.IdempotencyResultNotKeptError):
        ours(EVENT, LambdaContext(clock=clock))

    assert effects.handler(cache.powertools)(EVENT, LambdaContext(clock=clock)) is None
    assert effects.runs == 1


# Takeovers


def test_a_generation_starts_at_one_after_powertools_and_counts_on(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([Killed(), Killed(), Killed()])
    generations = []
    crash(effects, cache.powertools, LambdaContext(clock=clock))
    for _ in range(2):
        clock.now_ms = cache.lease_end_ms + 125
        crash(effects, cache.ours, LambdaContext(clock=clock))
        generations.append(cache.record["generation"])

    assert generations == [1, 2]


@with_default_names
def test_of_many_claims_at_once_of_a_powertools_orphan_one_is_granted(cache: Cache, clock: FakeClock) -> None:
    for _ in range(5):
        cache.client.flushall()
        crash(Effects([Killed()]), cache.powertools, LambdaContext(clock=clock))
        clock.now_ms = cache.lease_end_ms + 1
        verbs = Verbs(cache.ours.new_store(), clock)

        answers = verbs.claim_at_once([verbs.offer(cache.key, f"racer-{i}") for i in range(16)])

        (granted,) = [answer for answer in answers if isinstance(answer, DataRecord)]
        assert (granted.generation, granted.took_over) == (1, True)
        assert sum(isinstance(answer, IdempotencyItemAlreadyExistsError) for answer in answers) == 15


@with_default_names
def test_an_owner_that_completes_while_another_takes_over_is_either_first_or_fenced(cache: Cache, clock: FakeClock) -> None:
    """Decided by the server at once: in Powertools, the taker decides by what it has read, and overwrites the result."""
    verbs = Verbs(cache.ours.new_store(), clock)
    for n in range(30):
        late = verbs.claim(verbs.offer(f"order-{n}", "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        taker = verbs.offer(f"order-{n}", "b")

        completing, claiming = at_once(
            [partial(verbs.complete, verbs.completed(late, '"A"')), partial(verbs.claim, taker)]  # type: ignore[list-item]
        )

        kept = verbs.fetch(f"order-{n}")
        assert kept is not None
        if isinstance(completing, IdempotencyLeaseLostError):
            assert (claiming, kept.owner_token, kept.stored_status) == (kept, "b", "INPROGRESS")
        else:
            assert isinstance(claiming, IdempotencyItemAlreadyExistsError)
            assert (kept.owner_token, kept.response_data) == ("a", '"A"')


@with_default_names
def test_a_taker_that_dies_blocks_the_key_to_the_end_of_its_own_lease_and_no_longer(cache: Cache, clock: FakeClock) -> None:
    """There is no lock that could outlive it."""
    effects = Effects([Killed(), Killed(), RESULT])
    crash(effects, cache.ours, LambdaContext(clock=clock))
    clock.now_ms = cache.lease_end_ms + 1
    crash(effects, cache.ours, LambdaContext(clock=clock, remaining_ms=1_000))
    assert cache.client.keys() == [cache.key.encode()]
    clock.now_ms = cache.lease_end_ms + 1

    assert effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock)) == RESULT


@with_default_names
def test_a_lock_that_powertools_left_behind_does_not_hold_us_up(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([Killed(), Killed(), RESULT])
    crash(effects, cache.powertools, LambdaContext(clock=clock))
    clock.now_ms = cache.lease_end_ms + 125
    crash(effects, cache.powertools, LambdaContext(clock=clock, remaining_ms=1_000))
    assert cache.client.get(f"{cache.key}:lock") == b"True"
    clock.now_ms = cache.lease_end_ms + 125

    assert effects.handler(cache.ours)(EVENT, LambdaContext(clock=clock)) == RESULT
    assert clock.slept_ms == []


# Lost answers


class Deaf:
    """A client that does not hear the answer to one request: it was applied."""

    def __init__(self, client: Any, lost: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._client = client
        self._lost = lost
        self._meanwhile = meanwhile
        self.eval = client.eval

    def evalsha(self, *request: Any) -> Any:
        answer = self._client.evalsha(*request)
        self._lost -= 1
        if self._lost == 0:
            self._meanwhile()
            raise redis.ConnectionError("Connection reset by peer")
        return answer


@with_default_names
def test_a_claim_whose_answer_was_lost_is_recognised_and_its_function_runs(cache: Cache, clock: FakeClock) -> None:
    effects = Effects([RESULT, "ran twice"])
    cache.ours.new_store().fetch("any")  # the server now knows the scripts that it is asked to run
    effects.handler(ours_on_cache(cache.client, clock))({"id": "another"}, LambdaContext(clock=clock))
    cache.client.delete(cache.key)
    effects.runs = 0

    result = effects.handler(ours_on_cache(Deaf(cache.client, lost=1), clock))(EVENT, LambdaContext(clock=clock))

    assert (result, effects.runs, len(clock.slept_ms)) == (RESULT, 1, 1)
    assert effects.handler(cache.powertools)(EVENT, LambdaContext(clock=clock)) == RESULT


@with_default_names
def test_a_release_whose_answer_was_lost_does_not_remove_a_successors_claim(cache: Cache, clock: FakeClock) -> None:
    verbs = Verbs(cache.ours.new_store(), clock)
    verbs.release(verbs.claim(verbs.offer("order-1", "warm")))
    first = verbs.claim(verbs.offer("order-1", "a"))
    deaf = Deaf(cache.client, lost=1, meanwhile=lambda: verbs.claim(verbs.offer("order-1", "b")))
    failing = ours_on_cache(deaf, clock).new_store()

    with pytest.raises(IdempotencyLeaseLostError) as fenced:
        failing.release(first)

    assert fenced.value.record == verbs.fetch("order-1")
    assert fenced.value.record.owner_token == "b"


# Values that are no record


@with_default_names
@pytest.mark.parametrize("text", [b"not JSON", b"[]", b"", b"\xff"], ids=repr)
def test_a_text_that_is_no_record_is_neither_run_over_nor_overwritten(cache: Cache, clock: FakeClock, text: bytes) -> None:
    effects = Effects(["first", "ran twice"])
    ours = effects.handler(cache.ours)
    ours(EVENT, LambdaContext(clock=clock))
    key = cache.key
    cache.client.set(key, text)

    with pytest.raises(IdempotencyPersistenceLayerError) as failure:
        ours(EVENT, LambdaContext(clock=clock))

    assert isinstance(failure.value.__cause__, IdempotencyPersistenceConsistencyError)
    assert key in str(failure.value)
    assert (cache.client.get(key), effects.runs) == (text, 1)


# Servers that cannot be reached


def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    port = free_port()

    with pytest.raises(IdempotencyPersistenceConnectionError, match=f"^Could not connect to the cache at 127.0.0.1:{port}"):
        CachePersistenceLayer(host="127.0.0.1", port=port, password="secret", ssl=False).prime()


@pytest.mark.parametrize(
    "url", ["redis://user:secret/x@127.0.0.1:6379", "http://user:secret@127.0.0.1", "secret@127.0.0.1", "redis://u:secret@h:port"]
)
def test_a_url_that_is_none_is_a_configuration_error_that_does_not_show_the_password(url: str) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError) as error:
        CachePersistenceLayer(url=url)

    shown, cause = str(error.value), error.value.__cause__ or error.value.__context__
    assert "secret" not in shown + str(cause)


def test_tls_that_meets_a_plain_port_is_a_connection_error_that_says_so(
    valkey_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_clients, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(_cache_clients, "READ_TIMEOUT", 0.2)
    port = int(valkey_server.rpartition(":")[2])

    with pytest.raises(IdempotencyPersistenceConnectionError, match="If it has no TLS, say ssl=False"):
        CachePersistenceLayer(host="127.0.0.1", port=port).prime()


@with_default_names
def test_an_unknown_mode_is_a_configuration_error_in_powertools_words(cache: Cache) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^Mode sentinel not supported$"):
        CachePersistenceLayer(host="127.0.0.1", mode="sentinel")  # type: ignore[arg-type]


# The import


def test_the_store_has_powertools_parameters_in_its_order_and_both_its_names(cache: Cache) -> None:
    """Only what Powertools does not have stands behind."""
    theirs = list(inspect.signature(type(cache.powertools.new_store()).__init__).parameters.values())
    ours = list(inspect.signature(CachePersistenceLayer.__init__).parameters.values())

    assert [(each.name, each.default) for each in ours[: len(theirs)]] == [(each.name, each.default) for each in theirs]


def test_neither_import_warns_nor_does_their_use() -> None:
    using = "from persistence.{0} import {1}Layer; {1}Layer(client=type('Client', (), dict.fromkeys(('get', 'set', 'delete'))))"
    script = "; ".join(using.format(*each) for each in (("redis", "RedisCachePersistence"), ("cache", "CachePersistence")))

    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert RedisCachePersistenceLayer is CachePersistenceLayer


# Clients with no more than Powertools needs


@dataclass
class Mock:
    """A user's client in the tests of a function, as Powertools' own tests have one: it knows `ex` and `nx` and nothing else."""

    texts: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def get(self, name: str) -> bytes | None:
        self.calls.append(("get", {}))
        return self.texts[name].encode() if name in self.texts else None

    def set(self, name: str, value: str, ex: int = 0, nx: bool = False) -> bool | None:
        self.calls.append(("set", {"ex": ex, "nx": nx}))
        if nx and name in self.texts:
            return None
        self.texts[name] = value
        return True

    def delete(self, name: str) -> None:
        self.calls.append(("delete", {}))
        del self.texts[name]


def test_powertools_mock_is_called_as_powertools_calls_it(clock: FakeClock) -> None:
    mock = Mock()
    effects = Effects([RESULT, ZeroDivisionError(), "ran thrice"])
    handler = effects.handler(ours_on_cache(mock, clock), expires_after_seconds=60)

    assert handler(EVENT, LambdaContext(clock=clock, remaining_ms=5_000)) == RESULT
    claimed = ("set", {"ex": 121, "nx": True})
    assert mock.calls == [claimed, ("get", {}), ("set", {"ex": 121, "nx": False})]
    mock.calls.clear()
    assert handler(EVENT, LambdaContext(clock=clock)) == RESULT
    assert mock.calls == [claimed, ("get", {})]
    mock.calls.clear()
    with pytest.raises(ZeroDivisionError):
        handler({"id": "order-2"}, LambdaContext(clock=clock))
    assert mock.calls == [claimed, ("get", {}), ("delete", {})]


def test_either_library_reads_what_the_other_wrote_through_a_mock(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    set_powertools_clock(monkeypatch, clock)
    for writing, reading in ((powertools_on_cache, ours_on_cache), (ours_on_cache, powertools_on_cache)):
        mock = Mock()
        effects = Effects([RESULT, "ran twice"])
        library = {powertools_on_cache: partial(powertools_on_cache, mock), ours_on_cache: partial(ours_on_cache, mock, clock)}

        effects.handler(library[writing]())(EVENT, LambdaContext(clock=clock))

        assert effects.handler(library[reading]())(EVENT, LambdaContext(clock=clock)) == RESULT


def test_a_store_given_a_mock_needs_neither_package_nor_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache_clients, "import_module", lambda name: pytest.fail(f"imports {name}"))
    config = IdempotencyConfig(event_key_jmespath="id")

    handler = idempotent(persistence_store=CachePersistenceLayer(client=Mock()), config=config)(
        lambda event, context: event["id"]
    )

    assert handler(EVENT, LambdaContext()) == "order-1"
