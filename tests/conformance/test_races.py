"""Sixteen attempts at one key at the same moment: one grant, and fifteen refusals that show the winner."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from stores import by_id
from verbs import Verbs, at_once

from persistence.datarecord import DataRecord
from persistence.exceptions import IdempotencyItemAlreadyExistsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from stores import Made, Peek

RACERS = 16
ROUNDS = 4
#: Where it is decided who wins; under other names, behind TLS and for moto, which serves one after another, it is decided alike.
JUDGES = by_id("memory", "dynamodb", "dynamodb-lean", "valkey", "valkey-cluster", "redis")
ENDURANCE = {"memory": 100, "dynamodb": 5, "dynamodb-lean": 10}

on_every_judge = pytest.mark.parametrize("made", JUDGES, indirect=True)


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    """Let threads interleave within a few bytecodes, as they seldom do by themselves."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def absent(_verbs: Verbs, _clock: FakeClock, _key: str) -> int:
    return 0


def orphan(verbs: Verbs, clock: FakeClock, key: str) -> int:
    verbs.claim(verbs.offer(key, "crashed", lease_ms=1_000))
    clock.advance(ms=1_001)
    return 1


def orphan_without_lease(verbs: Verbs, clock: FakeClock, key: str) -> int:
    verbs.claim(verbs.offer(key, "crashed", lease_ms=None, expires_s=1))
    clock.advance(seconds=2)
    return 1


def expired_result(verbs: Verbs, clock: FakeClock, key: str) -> int:
    verbs.complete(verbs.completed(verbs.claim(verbs.offer(key, "earlier")), '"old"', expires_s=1))
    clock.advance(seconds=2)
    return 1


BEFORE = [absent, orphan, orphan_without_lease, expired_result]


def race(verbs: Verbs, key: str) -> tuple[DataRecord, list[DataRecord | None]]:
    """The one record that was granted, and the records that the others were refused with."""
    answers = verbs.claim_at_once([verbs.offer(key, f"racer-{n}") for n in range(RACERS)])
    grants = [answer for answer in answers if isinstance(answer, DataRecord)]
    refusals = [answer.old_data_record for answer in answers if isinstance(answer, IdempotencyItemAlreadyExistsError)]
    assert (len(grants), len(refusals)) == (1, RACERS - 1), answers
    return grants[0], refusals


def check(verbs: Verbs, clock: FakeClock, peek: Peek, before: Callable[[Verbs, FakeClock, str], int], key: str) -> None:
    generation = before(verbs, clock, key)

    granted, refused_with = race(verbs, key)

    assert granted.generation == generation + 1
    assert {record.owner_token for record in refused_with} == {granted.owner_token}
    assert (peek(key)["owner_token"], peek(key)["generation"]) == (granted.owner_token, granted.generation)


@on_every_judge
@pytest.mark.parametrize("before", BEFORE)
def test_of_many_claims_at_once_one_is_granted(
    verbs: Verbs, clock: FakeClock, peek: Peek, before: Callable[[Verbs, FakeClock, str], int]
) -> None:
    for n in range(ROUNDS):
        check(verbs, clock, peek, before, f"race#{n}")


@pytest.mark.parametrize(
    ("made", "rounds"),
    [pytest.param(*param.values, ENDURANCE[param.id], id=param.id, marks=param.marks) for param in by_id(*ENDURANCE)],
    indirect=["made"],
)
@pytest.mark.parametrize("before", [absent, orphan, expired_result])
def test_one_is_granted_however_often_it_is_tried(
    made: Made, rounds: int, clock: FakeClock, before: Callable[[Verbs, FakeClock, str], int]
) -> None:
    verbs = Verbs(made.store, clock)
    for n in range(rounds):
        check(verbs, clock, made.peek, before, f"race#{n}")


@on_every_judge
def test_a_release_and_many_claims_at_once_leave_at_most_one_holder(made: Made, clock: FakeClock) -> None:
    """The vanishing of a record between a refusal and a second look must not admit two."""
    verbs = Verbs(made.store, clock)
    for n in range(ROUNDS):
        key = f"race#{n}"
        holder = verbs.claim(verbs.offer(key, "holder"))
        claims = [partial(verbs.claim, verbs.offer(key, f"racer-{i}")) for i in range(RACERS - 1)]

        released, *answers = at_once([partial(verbs.release, holder), *claims])

        tokens = [answer.owner_token for answer in answers if isinstance(answer, DataRecord)]
        found = verbs.fetch(key)
        assert released is True
        assert tokens == ([] if found is None else [found.owner_token])
