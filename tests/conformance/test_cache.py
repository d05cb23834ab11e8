"""What is promised of Valkey and Redis beyond the common contract: scripts that decide as `rules` do, and the value of a key."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS, FakeClock
from stores import by_id
from verbs import AwaitedVerbs, Verbs

from persistence import rules
from persistence._cache_scripts import CLAIM, KEPT_LONGER_MS, TextFormat, kept_ms
from persistence.cache import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
)
from persistence.memory import InMemoryPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores import Made

KEY = "orders.handler#1"

pytestmark = pytest.mark.parametrize("made", by_id("valkey", "redis"), indirect=True)

NOW_S = START_MS // 1000
VERBS = ["claim", "complete", "renew", "release"]
SEEDS = 150


def texts_of(made: Made) -> TextFormat:
    texts: TextFormat = made.store._texts
    return texts


def keys(made: Made) -> list[bytes]:
    """Every key of the server, sorted."""
    found: list[bytes] = sorted(made.store.client.keys())
    return found


# The scripts and the rules


def offer(now_ms: int, owner_token: str = "a", **fields: Any) -> DataRecord:
    """A claim, which is a renewal, too, where the owner has the record."""
    fields = {"generation": 1, "holder": f"request of {owner_token}", **fields}
    return DataRecord(KEY, "INPROGRESS", now_ms // 1000 + 60, now_ms + 5_000, owner_token=owner_token, **fields)


def outcome(store: Any, verb: str, record: DataRecord) -> tuple[Any, ...]:
    """What a store answers, in values that can be compared."""
    try:
        answer = getattr(store, verb)(record)
    except IdempotencyItemAlreadyExistsError as refused:
        return "refused", refused.old_data_record
    except IdempotencyLeaseLostError as fenced:
        return "fenced", fenced.record
    except IdempotencyPersistenceLayerError as error:
        return "failed", type(error.__cause__), str(error)
    return "done", answer, isinstance(answer, DataRecord) and answer.took_over


def reference(record: DataRecord | None, clock: FakeClock) -> InMemoryPersistenceLayer:
    """`rules`, executed."""
    store = InMemoryPersistenceLayer(clock_ms=clock)
    if record is not None:
        store._records[KEY] = record
    return store


def keep(made: Made, record: DataRecord | None) -> None:
    """Have the server hold this record and nothing else."""
    made.store.client.flushdb()
    if record is not None:
        made.store.client.set(KEY, texts_of(made).text(record))


def sent(verb: str, record: DataRecord) -> DataRecord:
    """The record as the verb wants it."""
    return record.replace(status="COMPLETED", response_data='"A"') if verb == "complete" else record


def boundary_records() -> list[DataRecord | None]:
    """Every combination of what a script looks at; the ends are those of `STORIES`' times."""
    return [
        None,
        *(
            DataRecord(
                KEY,
                status,
                expiry_s,
                lease_end_ms,
                '"old"' if status == "COMPLETED" else "",
                "hash",
                owner_token=token,
                generation=generation,
                holder=f"request of {token}" if token else "",
            )
            for status, expiry_s, lease_end_ms, (token, generation) in product(
                ("INPROGRESS", "COMPLETED", "PAUSED"), (None, NOW_S), (None, START_MS), (("a", 3), ("b", 1), ("", 0))
            )
        ),
    ]


#: The last millisecond before, at, and the first after the end of a lease and of a second.
TIMES = [START_MS - 1, START_MS, START_MS + 1, (NOW_S + 1) * 1000 - 1, (NOW_S + 1) * 1000, (NOW_S + 1) * 1000 + 1]


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_decides_and_writes_as_the_rules_do(made: Made, clock: FakeClock, verb: str) -> None:
    abilities = tuple(product((True, False), (None, 0))) if verb == "claim" else ((True, None),)
    for existing, now_ms, (takes_over, fresh_until_ms) in product(boundary_records(), TIMES, abilities):
        clock.now_ms = now_ms
        # A request that is too old gets to the script only after an orphan was seen.
        has_seen = fresh_until_ms is not None
        ours = offer(now_ms, takes_over_orphans=takes_over, fresh_until_ms=fresh_until_ms, took_over=has_seen)
        ours = sent(verb, ours)
        memory = reference(existing, clock)
        keep(made, existing)
        story = (
            f"{verb} by a at {now_ms} over {existing} of {existing and existing.owner_token!r}, {takes_over=}, {fresh_until_ms=}"
        )

        answer = outcome(made.store, verb, ours)

        assert answer == outcome(memory, verb, ours), story
        assert made.store.fetch(KEY) == memory.fetch(KEY), story
        assert keys(made) == ([KEY.encode()] if memory._records else []), story
        permitted = {
            "claim": rules.is_claimable(existing, now_ms, takes_over_orphans=takes_over, fresh_until_ms=fresh_until_ms),
            "complete": rules.may_complete(existing, "a"),
            "renew": existing is not None and rules.may_release(existing, "a"),
            "release": existing is None or rules.may_release(existing, "a"),
        }[verb]
        assert (answer[0] == "done") == permitted, story


def random_record(rng: random.Random) -> DataRecord | None:
    """What may be under the key when a story begins, a record of Powertools or of another version included."""
    if rng.random() < 0.2:
        return None
    token = rng.choice(["a", "b", "c", ""])
    status = rng.choice(["INPROGRESS", "INPROGRESS", "COMPLETED", "PAUSED"])
    return DataRecord(
        KEY,
        status,
        rng.choice([None, NOW_S + rng.randint(-3, 3)]),
        rng.choice([None, START_MS + rng.randint(-2_000, 2_000)]),
        rng.choice(["", "null", '{"n": 1}']) if status == "COMPLETED" else "",
        rng.choice(["", "hash"]),
        owner_token=token,
        generation=rng.choice([0, 1, 7, 10**9]),
        holder=f"request of {token}" if token else "",
        result_kept=rng.random() < 0.8,
    )


def next_instant(rng: random.Random, clock: FakeClock, record: DataRecord | None) -> int:
    """Now, a little later, or at an end of the record, or beside it."""
    ends = [clock.now_ms + rng.randint(0, 1_500)]
    if record is not None and record.in_progress_expiry_timestamp is not None:
        ends.append(record.in_progress_expiry_timestamp + rng.choice([-1, 0, 1]))
    if record is not None and record.expiry_timestamp is not None:
        ends.append((record.expiry_timestamp + 1) * 1000 + rng.choice([-1, 0, 1]))
    return max(clock.now_ms, rng.choice(ends))


@pytest.mark.parametrize("first_seed", [20_261_121])
def test_random_stories_end_alike_on_the_server_and_by_the_rules(made: Made, clock: FakeClock, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS):
        rng = random.Random(seed)
        clock.now_ms = START_MS
        existing = random_record(rng)
        memory = reference(existing, clock)
        keep(made, existing)
        story = [f"seed {seed}: {existing}"]

        for _ in range(rng.randint(1, 8)):
            clock.now_ms = next_instant(rng, clock, memory._records.get(KEY))
            verb, token = rng.choice(VERBS), rng.choice("abc")
            generation = rng.choice([1, 2, memory._records[KEY].generation if KEY in memory._records else 1])
            ours = offer(clock.now_ms, token, generation=generation, takes_over_orphans=rng.random() < 0.7)
            ours = sent(verb, ours.replace(in_progress_expiry_timestamp=clock.now_ms + rng.choice([1, 1_000, 60_000])))
            if verb == "complete" and rng.random() < 0.2:
                ours = ours.replace(response_data="", result_kept=False)
            story.append(f"{verb} by {token} at {clock.now_ms}: {ours}")

            assert outcome(made.store, verb, ours) == outcome(memory, verb, ours), story
            assert made.store.fetch(KEY) == memory._records.get(KEY), story


@pytest.mark.parametrize(
    ("text", "generation"),
    [
        (
            b'{"status": "INPROGRESS", "expiration": 1, "in_progress_expiration": null, "owner_token": null, "generation": null}',
            1,
        ),
        (b'{"status": "INPROGRESS", "expiration": 1.9, "in_progress_expiration": 1e3, "generation": 2.5}', 3),
        (b'{"status": "INPROGRESS", "expiration": 1, "generation": 99999999999999}', 100_000_000_000_000),
        (b'{"status": "COMPLETED", "expiration": 1, "data": null, "validation": null, "holder": null}', 1),
    ],
    ids=["nulls", "fractions", "many digits", "nulls in texts"],
)
def test_numbers_and_nulls_that_other_writers_write_are_understood(
    made: Made, verbs: Verbs, text: bytes, generation: int
) -> None:
    made.store.client.set(KEY, text)
    assert verbs.fetch(KEY).owner_token == ""

    assert verbs.claim(verbs.offer(KEY, "a")).generation == generation

    assert f'"generation":{generation}}}'.encode() in made.store.client.get(KEY)


# The value under the key


def test_a_record_is_one_json_text_under_its_key_and_nothing_else(made: Made, verbs: Verbs, clock: FakeClock) -> None:
    """Throughout a life of all verbs: no lock, no index, so a cluster needs no hash tags."""
    first = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
    verbs.renew(verbs.renewed(first, lease_ms=2_000))
    clock.advance(ms=2_001)
    second = verbs.claim(verbs.offer(KEY, "b", lease_ms=1_000))
    assert (second.took_over, keys(made)) == (True, [KEY.encode()])
    verbs.complete(verbs.completed(second, '"B"', expires_s=1))
    clock.advance(seconds=2)
    third = verbs.claim(verbs.offer(KEY, "c"))

    assert keys(made) == [KEY.encode()]
    assert made.store.client.type(KEY) == b"string"
    verbs.release(third)
    assert keys(made) == []


@pytest.mark.parametrize(
    "key",
    [
        "a key with spaces",
        "line\nbreak\r\n\ttab",
        "{tag}.handler#1",
        "{}{}}{",
        '"quoted" \\ %s %d',
        "NUL \0 inside",
        "注文 🧾",
        "k" * 1_024,
    ],
    ids=repr,
)
def test_a_key_is_used_as_it_is(made: Made, verbs: Verbs, clock: FakeClock, key: str) -> None:
    verbs.claim(verbs.offer(key, "a", lease_ms=1_000))
    clock.advance(ms=1_001)
    granted = verbs.claim(verbs.offer(key, "b"))
    verbs.complete(verbs.completed(granted, '"B"'))

    assert keys(made) == [key.encode()]
    assert (verbs.fetch(key).key, verbs.fetch(key).response_data) == (key, '"B"')


RESULTS = {
    "300 KB": json.dumps("x" * 300_000),
    "5 MB": json.dumps("日" * 1_700_000, ensure_ascii=False),
    "nested beyond what cjson reads": "[" * 5_000 + "]" * 5_000,
    "a NUL, escaped": '"\\u0000"',
    "a NUL, raw": '"\0"',
    "a lone surrogate, escaped": '"\\ud800"',
    "control characters": "".join(map(chr, range(32))) + "\x7f",
    "line separators": '"\u2028\u2029"',
    "no characters": '"\ufffe\uffff"',
    "JSON in JSON in JSON": json.dumps(json.dumps(json.dumps({"a": '"\\'}))),
    "an empty list": "[]",
    "an empty object": "{}",
    "a long number": "12345678901234567890.12345678901234567890",
    "null": "null",
    "a slash": '"</script>"',
    "patterns": '"%d %1 %% $1 \\\\1"',
    "the end of a record": '"}","status":"INPROGRESS',
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_result_reads_back_as_it_was_given_after_every_script_that_touches_its_record(
    made: Made, verbs: Verbs, result: str
) -> None:
    completed = verbs.completed(verbs.claim(verbs.offer(KEY, "a", payload_hash="hash")), result)
    verbs.complete(completed)
    verbs.complete(completed)

    assert verbs.fetch(KEY) == completed
    assert made.peek(KEY)["data"] == result


def test_a_result_that_no_server_can_hold_is_an_answer_before_anything_is_sent(
    made: Made, verbs: Verbs, clock: FakeClock
) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a"))
    before = made.store.client.get(KEY)
    commands = made.store.client.info("commandstats")

    with pytest.raises(
        IdempotencyResultNotKeptError, match=f"^The result of idempotency key {KEY} has characters that UTF-8"
    ) as no:
        verbs.complete(verbs.completed(granted, '"secret \ud800"'))

    assert sent_since(made, commands) <= {"get", "info"}
    assert made.store.client.get(KEY) == before
    assert (no.value.__cause__, "secret" in str(no.value)) == (None, False)
    verbs.complete(verbs.without_result(granted))
    assert (verbs.fetch(KEY).stored_status, verbs.fetch(KEY).result_kept) == ("COMPLETED", False)


def test_a_result_of_too_many_bytes_is_an_answer(made: Made, verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, not characters; by a smaller limit, because half a gigabyte takes its time."""
    monkeypatch.setattr("persistence.cache.MAX_RESULT_BYTES", 8)
    granted = verbs.claim(verbs.offer(KEY, "a"))

    with pytest.raises(IdempotencyResultNotKeptError, match="has 9 bytes, more than the 8 that a key holds$"):
        verbs.complete(verbs.completed(granted, '"日本x"'))

    verbs.complete(verbs.completed(granted, '"日本"'))
    assert verbs.fetch(KEY).response_data == '"日本"'


def sent_since(made: Made, commands: dict[str, Any]) -> set[str]:
    """The names of the commands that the server has seen since."""
    now = made.store.client.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in now if now[name]["calls"] > commands.get(name, {"calls": 0})["calls"]}


OTHERS = {
    "text": "日本 \0 \x7f / \\ \" '",
    "empty": "",
    "zero": 0,
    "milliseconds": 1_800_000_000_250,
    "fourteen digits": 99_999_999_999_999,
    "negative": -17,
    "fraction": 0.125,
    "null": None,
    "true": True,
    "false": False,
    "list": [1, None, "x", [True]],
    "list of nulls": [None, None],
    "nested": {"a": {"b": [{"c": None}]}, "1": "one"},
    "1": "a name that looks like a place in a list",
    "": "a name that is empty",
}


@pytest.mark.parametrize("verb", ["complete", "renew"])
def test_attributes_of_others_survive(made: Made, verbs: Verbs, verb: str) -> None:
    """Of an operator's, or of a newer version of this library."""
    granted = verbs.claim(verbs.offer(KEY, "a"))
    kept = {**json.loads(made.store.client.get(KEY)), **OTHERS}
    made.store.client.set(KEY, json.dumps(kept))

    if verb == "complete":
        verbs.complete(verbs.completed(granted, '"A"'))
        verbs.complete(verbs.completed(granted, '"A"'))
    else:
        verbs.renew(verbs.renewed(granted, lease_ms=2_000))
        verbs.renew(verbs.renewed(granted, lease_ms=3_000))

    found = json.loads(made.store.client.get(KEY))
    assert {name: found[name] for name in OTHERS} == OTHERS


def test_milliseconds_keep_all_their_digits_through_every_script(made: Made, verbs: Verbs, clock: FakeClock) -> None:
    clock.now_ms = 9_999_999_990_123
    granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_111))
    assert made.peek(KEY)["in_progress_expiration"] == 9_999_999_991_234

    renewed = verbs.renewed(granted, lease_ms=7_666)
    verbs.renew(renewed)
    assert b":9999999997789" in made.store.client.get(KEY)

    verbs.complete(verbs.completed(renewed, '"A"'))
    assert b":9999999997789" in made.store.client.get(KEY)


# The server's own expiry


def time_to_live_ms(made: Made, write: Callable[[], object]) -> tuple[int, int]:
    """The least and the most that the key's time to live was set to by *write*, by the server's own clock."""

    def server_ms() -> int:
        seconds, microseconds = made.store.client.time()
        now_ms: int = seconds * 1000 + microseconds // 1000
        return now_ms

    before_ms = server_ms()
    write()
    left_ms = made.store.client.pttl(KEY)
    return left_ms, left_ms + server_ms() - before_ms + 2  # two roundings


@pytest.mark.parametrize("lease_ms", [1_000, 7_200_000], ids=["the expiry is later", "the lease is later"])
def test_the_servers_own_expiry_is_a_minute_after_the_record_has_ended_whatever_wrote_it(
    made: Made, verbs: Verbs, clock: FakeClock, lease_ms: int
) -> None:
    def is_kept_for(record: DataRecord, write: Callable[[DataRecord], object]) -> None:
        least, most = time_to_live_ms(made, lambda: write(record))
        kept = kept_ms(record, clock.now_ms)
        assert kept is not None
        assert least <= kept <= most
        assert kept >= lease_ms + KEPT_LONGER_MS

    first = verbs.offer(KEY, "a", lease_ms=lease_ms, expires_s=3_600)
    is_kept_for(first, verbs.claim)
    assert outcome(verbs, "claim", first)[0] == "refused"  # made again after a lost answer
    assert made.store.client.pttl(KEY) > lease_ms
    renewed = verbs.renewed(first, lease_ms=lease_ms + 10_000, expires_s=3_700)
    is_kept_for(renewed, verbs.renew)
    clock.advance(ms=lease_ms + 10_001)
    second = verbs.offer(KEY, "b", lease_ms=lease_ms, expires_s=3_600)
    is_kept_for(second, verbs.claim)
    clock.advance(ms=500)
    completed = verbs.completed(second.replace(generation=2), '"B"', expires_s=9_000)
    is_kept_for(completed, verbs.complete)
    made.store.client.delete(KEY)
    is_kept_for(completed, verbs.complete)


def test_a_record_without_expiry_is_never_collected(made: Made, verbs: Verbs) -> None:
    offered = verbs.offer(KEY, "a").replace(expiry_timestamp=None)
    granted = verbs.claim(offered)
    assert made.store.client.pttl(KEY) == -1

    made.store.client.pexpire(KEY, 10_000)
    verbs.complete(granted.replace(status="COMPLETED", response_data='"A"'))

    assert made.store.client.pttl(KEY) == -1


def test_a_refused_claim_leaves_the_value_and_its_expiry_alone(made: Made, verbs: Verbs) -> None:
    verbs.claim(verbs.offer(KEY, "a"))
    made.store.client.pexpire(KEY, 500_000)
    before = made.store.client.get(KEY)

    with pytest.raises(IdempotencyItemAlreadyExistsError):
        verbs.claim(verbs.offer(KEY, "b", expires_s=3_600))

    assert made.store.client.get(KEY) == before
    assert made.store.client.pttl(KEY) <= 500_000


# Values that are no record

VALUES: dict[str, Callable[[Any], object]] = {
    "list": lambda client: client.rpush(KEY, "secret"),
    "hash": lambda client: client.hset(KEY, "status", "INPROGRESS"),
    "sorted set": lambda client: client.zadd(KEY, {"secret": 1}),
    "set": lambda client: client.sadd(KEY, "secret"),
    "stream": lambda client: client.xadd(KEY, {"secret": "1"}),
    **{
        repr(text): lambda client, text=text: client.set(KEY, text)  # type: ignore[misc]  # bound here
        for text in (
            b"",
            b"secret",
            b"\xff\xfe",
            b"17",
            b"null",
            b"[]",
            b"{}",
            b'[{"status": "COMPLETED", "expiration": 1}]',
            b'{"status": 1, "expiration": 1}',
            b'{"status": null, "expiration": 1}',
            b'{"status": "COMPLETED", "expiration": "1"}',
            b'{"status": "COMPLETED", "expiration": true}',
            b'{"status": "INPROGRESS", "expiration": 1, "in_progress_expiration": "1"}',
            b'{"status": "INPROGRESS", "expiration": 1, "generation": "1"}',
            b'{"status": "INPROGRESS", "expiration": 1, "owner_token": ["a"]}',
            b'{"status": "COMPLETED", "expiration": 1} secret',
            b'{"status": "COMPLETED", "expiration": 1, "data": 17}',
            b'{"status": "COMPLETED", "expiration": 1, "validation": ["secret"]}',
            b'{"status": "COMPLETED", "expiration": 1, "holder": false}',
            b'{"status": "INPROGRESS", "expiration": NaN}',
            b'{"status": "INPROGRESS", "expiration": 1e999}',
            b'{"status": "INPROGRESS", "in_progress_expiration": -1e999}',
            b'{"status": "COMPLETED", "expiration": 1800000000, "data": "\xff"}',
        )
    },
}


@pytest.mark.parametrize("put", VALUES.values(), ids=VALUES)
def test_a_value_that_is_no_record_is_a_clear_error_and_stays_as_it_is(
    made: Made, verbs: Verbs, clock: FakeClock, put: Callable[[Any], object]
) -> None:
    put(made.store.client)
    before = made.store.client.dump(KEY)

    for verb in (*VERBS, "fetch"):
        with pytest.raises(IdempotencyPersistenceLayerError) as failure:
            getattr(verbs, verb)(KEY if verb == "fetch" else sent(verb, offer(clock.now_ms)))
        cause = failure.value.__cause__
        assert isinstance(cause, IdempotencyPersistenceConsistencyError), verb
        assert str(cause).startswith(f"The value under {KEY} is no idempotency record. It was left as it is; delete it"), verb
        assert "secret" not in str(failure.value), verb
        assert made.store.client.dump(KEY) == before, verb

    assert clock.slept_ms == []


def test_values_under_other_keys_do_not_matter(made: Made, verbs: Verbs) -> None:
    made.store.client.rpush(f"{KEY}:lock", "secret")

    granted = verbs.claim(verbs.offer(KEY, "a"))
    verbs.complete(verbs.completed(granted, '"A"'))

    assert verbs.fetch(KEY).response_data == '"A"'


# Scripts


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(made: Made, verbs: Verbs) -> None:
    made.store.client.script_flush()

    granted = verbs.claim(verbs.offer(KEY, "a"))

    assert made.store.client.script_exists(CLAIM.sha1) == [True]
    made.store.client.script_flush()
    verbs.release(granted)
    assert keys(made) == []


def test_a_verb_is_one_command(made: Made, verbs: Verbs) -> None:
    granted = verbs.claim(verbs.offer(KEY, "a"))
    verbs.renew(verbs.renewed(granted, lease_ms=2_000))
    verbs.complete(verbs.completed(granted, '"A"'))
    verbs.fetch(KEY)
    made.store.client.config_resetstat()

    other = verbs.claim(verbs.offer(f"{KEY}0", "a"))
    verbs.renew(verbs.renewed(other, lease_ms=2_000))
    verbs.complete(verbs.completed(other, '"A"'))
    verbs.fetch(f"{KEY}0")

    calls = {name: stats["calls"] for name, stats in made.store.client.info("commandstats").items()}
    assert calls["cmdstat_evalsha"] == 4
    assert calls.keys() <= {f"cmdstat_{name}" for name in ("evalsha", "get", "set", "info", "config", "config|resetstat")}


# Servers that cannot answer for the moment

NOT_NOW: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "out of memory": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "short of replicas": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    "a replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


@pytest.mark.parametrize("verb", ["claim", "complete"])
@pytest.mark.parametrize("trouble", NOT_NOW)
def test_a_server_that_cannot_write_for_the_moment_is_asked_again(made: Made, clock: FakeClock, trouble: str, verb: str) -> None:
    """Redis before 7 wraps the error of a script's command into another: https://github.com/redis/redis/pull/10329."""
    begins, ends = NOT_NOW[trouble]
    store, client = made.store, made.store.client
    waits: list[float] = []

    def wait(ms: float) -> None:
        waits.append(ms)
        client.execute_command(*ends)

    store.sleep_ms = wait
    keep(made, None if verb == "claim" else offer(clock.now_ms))
    client.execute_command(*begins)
    try:
        answer = outcome(store, verb, sent(verb, offer(clock.now_ms)))
    finally:
        client.execute_command(*ends)

    assert (answer[0], len(waits)) == ("done", 1)
    assert store.fetch(KEY).owner_token == "a"


# How a store is made


def test_a_client_may_be_replaced(made: Made, clock: FakeClock) -> None:
    """Also in a store that connected by itself."""
    client = made.store.client
    address = client.connection_pool.connection_kwargs
    store = CachePersistenceLayer(host=address["host"], port=address["port"], ssl=False)
    store.clock_ms = clock
    store.client.close()

    store.client = client

    assert store.client is client
    assert store.claim(offer(clock.now_ms)) == made.store.fetch(KEY)


def test_an_awaited_client_is_not_for_the_sync_store_nor_a_sync_one_for_the_awaited_store(made: Made) -> None:
    sync_client, awaited_client = made.store.client, made.new_awaited().client

    with pytest.raises(
        IdempotencyPersistenceConfigError, match="^CachePersistenceLayer cannot use .* AsyncCachePersistenceLayer"
    ):
        CachePersistenceLayer(client=awaited_client)
    with pytest.raises(
        IdempotencyPersistenceConfigError, match="^AsyncCachePersistenceLayer cannot use .*; CachePersistenceLayer"
    ):
        AsyncCachePersistenceLayer(client=sync_client)


def test_an_awaited_store_without_a_client_has_one_for_each_loop_and_closes_it(made: Made, clock: FakeClock) -> None:
    address = made.store.client.connection_pool.connection_kwargs
    store = AsyncCachePersistenceLayer(host=address["host"], port=address["port"], ssl=False)
    store.clock_ms = clock
    first, second = AwaitedVerbs(made.store, clock, store), AwaitedVerbs(made.store, clock, store)

    granted = first.claim(first.offer(KEY, "a"))
    one = store.client
    second.complete(second.completed(granted, '"A"'))
    other = store.client
    first.fetch(KEY)
    first.close()
    second.close()

    assert one is not other
    assert made.store.fetch(KEY).response_data == '"A"'


@pytest.mark.parametrize("replicas", [-1, 1.5, "1"])
def test_a_number_of_replicas_that_is_none_is_refused(made: Made, replicas: Any) -> None:
    with pytest.raises(ValueError, match="^min_replicas_ack must be a number of replicas, not "):
        CachePersistenceLayer(client=made.store.client, min_replicas_ack=replicas)


def test_a_store_has_no_transactions(made: Made) -> None:
    with pytest.raises(BaseError, match="CachePersistenceLayer has no transactions"):
        made.store.begin(KEY)
