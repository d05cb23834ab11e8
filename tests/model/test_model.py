"""Attempts interleaved effect by effect: the machine plays the driver, an independent oracle says what each answer must be.

The machine sends each request of `execution` to a real store, loses answers, lets attempts crash, sleep and overtake each other,
and moves the clock to the edges of leases and records.  Examples are the same in every run.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import pytest
from doubles import START_MS, FakeClock
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from oracle import Entry, Meaning, Oracle
from stores import cached, clustered, dynamodb, memory

from idempotency import events
from idempotency.execution import (
    MAX_CLAIMS,
    Claim,
    Complete,
    Effect,
    Executed,
    Failed,
    Fenced,
    Fetch,
    Found,
    Granted,
    Notify,
    Outcome,
    Plan,
    Raised,
    Refused,
    Rejected,
    Release,
    Renew,
    Replayed,
    Reply,
    Returned,
    Run,
    Slept,
    Steps,
    Stored,
    Unanswered,
    Unstorable,
    Wait,
    execution,
)
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyInconsistentStateError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyOrphanedError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores import Made

KEYS = 2
ATTEMPTS_AT_ONCE = 4
REJECTIONS = {
    Meaning.MISMATCH: IdempotencyValidationError,
    Meaning.LOST_RESULT: IdempotencyResultNotKeptError,
    Meaning.ABANDONED: IdempotencyOrphanedError,
    Meaning.BUSY: IdempotencyAlreadyInProgressError,
}

#: When an attempt hears of the store's decision: at once, or so many milliseconds from the next edge.
DELAYS = [None, None, None, None, None, -1, 0, 1]
ENDINGS = ["returns", "returns", "returns", "raises", "too large", "not JSON", "exits", "is cancelled", "suspends"]
T = TypeVar("T")


class Suspended(BaseException):
    """A durable execution's way out; its replay goes on with the claim."""


class LostAnswerError(Exception):
    """The store's answer, which never came."""


@dataclass(eq=False)
class Attempt:
    """One call, between two effects."""

    plan: Plan
    steps: Steps[Outcome]
    effect: Effect | None = None
    offer: DataRecord | None = None
    claims: int = 0
    ending: str = ""
    response_data: str = ""
    error: BaseException | None = None
    lease_end_ms: int = 0
    is_sent: bool = False
    seen: list[events.Event] = field(default_factory=list)

    def believes_to_hold(self, now_ms: int) -> bool:
        """Whether it would say so: granted, its last write not yet sent, and its lease not over."""
        return isinstance(self.effect, Run | Complete | Release) and not self.is_sent and now_ms <= self.lease_end_ms


class Calls(RuleBasedStateMachine):
    """Set `made` to the store under test, `clock` to its clock, and `visited` to count what came to pass."""

    made: Made
    clock: FakeClock
    visited: Counter[str]
    examples = count()

    def __init__(self) -> None:
        super().__init__()
        self.clock.now_ms = START_MS
        prefix = next(self.examples)
        self.keys = [f"model-{prefix}#{n}" for n in range(KEYS)]
        self.oracle = Oracle()
        self.attempts: list[Attempt] = []
        self.suspended: list[Plan] = []
        self.numbers = count()
        #: Until when, by the results that were stored, no function may run.
        self.settled_until_ms = dict.fromkeys(self.keys, 0)

    @initialize(data=st.data())
    def two_calls_arrive(self, data: st.DataObject) -> None:
        for _ in range(2):
            self.a_call_arrives(data)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        # One rule, because Hypothesis leaves rules out of whole examples, and most of these need each other.
        data.draw(st.sampled_from(list(self.moves())), label="move")(self, data)

    def moves(self) -> Iterator[Callable[[Calls, st.DataObject], None]]:
        """What may happen now; the likelier, the more often."""
        yield Calls.time_passes
        if self.waiting():
            yield from [Calls.the_store_answers] * 4
            yield from [Calls.an_answer_is_lost_and_the_request_will_be_repeated, Calls.the_store_fails_for_good]
        if self.claiming():
            yield Calls.a_signal_interrupts_a_claim
        if self.running():
            yield from [Calls.the_function_ends] * 3
        if self.beating():
            yield Calls.the_heart_beats
        if len(self.attempts) < ATTEMPTS_AT_ONCE:
            yield from [Calls.a_call_arrives] * 2
            if self.suspended:
                yield from [Calls.a_suspended_call_is_replayed] * 2
        if self.attempts:
            yield Calls.an_attempt_crashes
        if self.swept():
            yield Calls.the_tables_ttl_deletes_an_orphan

    # What happens

    def a_call_arrives(self, data: st.DataObject) -> None:
        now_ms = self.clock.now_ms
        number = next(self.numbers)
        lease_ms = data.draw(st.sampled_from([200, 1_000, 2_750]), label="lease_ms")
        margin_ms = data.draw(st.sampled_from([0, 40]), label="margin_ms")
        is_renewed = data.draw(st.booleans(), label="is_renewed")
        wait_ms = data.draw(st.sampled_from([None, 1_500]), label="wait_ms")
        plan = Plan(
            key=self.keys[data.draw(st.sampled_from([0, 0, 0, 1]), label="key")],
            payload_hash=data.draw(st.sampled_from(["h", "h", "h", "", "other"]), label="payload_hash"),
            owner_token=f"token-{number}",
            lease_ms=lease_ms if is_renewed else None,
            lease_end_ms=None if is_renewed else now_ms + lease_ms + margin_ms,
            lease_margin_ms=margin_ms,
            deadline_ms=None,
            expires_after_ms=data.draw(st.sampled_from([1_000, 1_000, 5_000]), label="expires_after_ms"),
            wait_until_ms=None if wait_ms is None else now_ms + wait_ms,
            wait_ms=wait_ms,
            takes_over_orphans=data.draw(st.sampled_from([True, True, True, False]), label="takes_over"),
            resumes=False,
            holder=f"request-{number}",
            key_expression="id",
            is_observed=True,
        )
        self.begin(plan)

    def a_suspended_call_is_replayed(self, _data: st.DataObject) -> None:
        self.begin(self.suspended.pop())

    def the_store_answers(self, data: st.DataObject) -> None:
        attempt = self.one_of(data, self.waiting())
        reply = self.perform(attempt)
        self.pass_time(data.draw(st.sampled_from(DELAYS), label="delay"))
        self.answer(attempt, reply)

    def an_answer_is_lost_and_the_request_will_be_repeated(self, data: st.DataObject) -> None:
        self.perform(self.one_of(data, self.waiting()))

    def the_store_fails_for_good(self, data: st.DataObject) -> None:
        attempt = self.one_of(data, self.waiting())
        if data.draw(st.booleans(), label="applied"):
            self.perform(attempt)
        if isinstance(attempt.effect, Release):
            self.answer(attempt, Unanswered(LostAnswerError(), self.clock.now_ms))
        else:
            self.attempts.remove(attempt)  # the driver lets the error through

    def a_signal_interrupts_a_claim(self, data: st.DataObject) -> None:
        attempt = self.one_of(data, self.claiming())
        if data.draw(st.booleans(), label="applied"):
            self.perform(attempt)
        if attempt.offer is not None:
            self.release(attempt, attempt.offer)
        self.attempts.remove(attempt)

    def an_attempt_crashes(self, data: st.DataObject) -> None:
        self.attempts.remove(self.one_of(data, self.attempts))

    def the_function_ends(self, data: st.DataObject) -> None:
        attempt = self.one_of(data, self.running())
        now_ms = self.clock.now_ms
        attempt.ending = data.draw(st.sampled_from(ENDINGS), label="ending")
        value = next(self.numbers)
        match attempt.ending:
            case "returns" | "too large":
                attempt.response_data = json.dumps(value)
                self.answer(attempt, Returned(value, attempt.response_data, now_ms))
            case "not JSON":
                self.answer(attempt, Unstorable(TypeError(), now_ms))
            case "raises":
                self.fail(attempt, ZeroDivisionError())
            case "exits":
                self.fail(attempt, SystemExit())
            case "is cancelled":
                self.fail(attempt, asyncio.CancelledError())
            case "suspends":
                self.suspended.append(attempt.plan)
                self.fail(attempt, Suspended())
                assert attempt not in self.attempts, "a suspension writes nothing"

    def the_heart_beats(self, data: st.DataObject) -> None:
        attempt = self.one_of(data, self.beating())
        plan, now_ms = attempt.plan, self.clock.now_ms
        record = plan.renewed(attempt.effect.granted, now_ms)
        self.check_ends(plan, record, now_ms)
        if self.fenced(self.made.store.renew, record):
            assert not self.oracle.may_renew(plan.key, plan.owner_token)
        else:
            assert self.oracle.may_renew(plan.key, plan.owner_token)
            self.oracle.renew(plan.key, now_ms + plan.lease_ms + plan.lease_margin_ms + 1, (record.expiry_timestamp + 1) * 1000)
            attempt.lease_end_ms = now_ms + plan.lease_ms
            self.visited["renewed"] += 1
        self.check_stored(plan.key)

    def time_passes(self, data: st.DataObject) -> None:
        ms = data.draw(st.sampled_from([0, 0, 1, 30, 400]), label="ms, or 0 for a jump")
        self.clock.advance(ms=ms)
        if not ms:
            self.pass_time(data.draw(st.sampled_from([-1, 0, 1]), label="from the edge"))

    def the_tables_ttl_deletes_an_orphan(self, data: st.DataObject) -> None:
        key = self.one_of(data, self.swept())
        self.made.store.release(DataRecord(key, "INPROGRESS", owner_token=self.oracle.entries.pop(key).token))
        self.visited["swept"] += 1

    # What must always hold

    @invariant()
    def no_two_attempts_believe_to_hold_one_key(self) -> None:
        believers = [a.plan.key for a in self.attempts if a.believes_to_hold(self.clock.now_ms)]
        assert len(believers) == len(set(believers))

    def teardown(self) -> None:
        """No request touched another key's record."""
        for key in self.keys:
            self.check_stored(key)

    # The driver's part

    def begin(self, plan: Plan) -> None:
        attempt = Attempt(plan, execution(plan))
        self.attempts.append(attempt)
        self.answer(attempt, None)

    def fail(self, attempt: Attempt, error: BaseException) -> None:
        attempt.error = error
        self.answer(attempt, Raised(error, self.clock.now_ms))

    def perform(self, attempt: Attempt) -> Reply:
        """Carry the attempt's effect out, check the store's answer, and translate it as the drivers do."""
        store = self.made.store
        attempt.is_sent = True
        match attempt.effect:
            case Claim():
                return self.claim(attempt)
            case Complete(record):
                if attempt.ending == "too large" and record.result_kept:
                    return Unstorable(IdempotencyResultNotKeptError("too large"), self.clock.now_ms)
                return self.complete(attempt, record)
            case Release(record):
                return self.release(attempt, record)
            case Renew(record):
                return self.renew(attempt, record)
            case Wait(_, at_most_ms):
                self.clock.advance(ms=min(at_most_ms, 40))
                return Slept(min(at_most_ms, 40))
            case Fetch():
                found = store.fetch(attempt.plan.key)
                self.check_read(attempt.plan.key, found)
                return Found(found, self.clock.now_ms)
            case _:
                raise AssertionError(attempt.effect)

    def claim(self, attempt: Attempt) -> Reply:
        plan, key, now_ms = attempt.plan, attempt.plan.key, self.clock.now_ms
        if attempt.offer is None:
            attempt.claims += 1
            attempt.offer = plan.offer(attempt.effect.supersedes, now_ms)
            self.check_ends(plan, attempt.offer, now_ms)
        offer, before = attempt.offer, self.oracle.entries.get(key)
        must_be_granted = self.oracle.is_free(key, now_ms, takes_over=plan.takes_over_orphans)
        try:
            granted = self.made.store.claim(offer)
        except IdempotencyItemAlreadyExistsError as refused:
            assert not must_be_granted
            self.check_read(key, refused.old_data_record)
            return Refused(refused.old_data_record, now_ms)
        assert must_be_granted
        is_takeover = before is not None and not before.is_done
        # A second claim goes by the record that the first was shown, which may have changed since.
        assert granted.took_over == is_takeover or (offer.supersedes is not None and granted.took_over == offer.took_over)
        assert granted.owner_token == plan.owner_token
        if before is not None:
            assert granted.generation == before.generation + 1
        elif offer.supersedes is None:
            assert granted.generation == 1
        self.oracle.entries[key] = Entry(
            token=plan.owner_token,
            generation=granted.generation,
            lease_over_ms=offer.in_progress_expiry_timestamp + 1,
            gone_ms=(offer.expiry_timestamp + 1) * 1000,
            payload_hash=plan.payload_hash,
            holder=plan.holder,
        )
        self.check_stored(key)
        return Granted(granted, now_ms)

    def complete(self, attempt: Attempt, record: DataRecord) -> Reply:
        plan, key = attempt.plan, attempt.plan.key
        if fence := self.fenced(self.made.store.complete, record):
            assert not self.oracle.may_complete(key, plan.owner_token)
            self.check_stored(key)
            return fence
        assert self.oracle.may_complete(key, plan.owner_token)
        data = attempt.response_data if attempt.ending == "returns" else None
        gone_ms = (record.expiry_timestamp + 1) * 1000
        generation = self.oracle.entries[key].generation if key in self.oracle.entries else record.generation
        self.oracle.entries[key] = Entry(
            plan.owner_token, generation, 0, gone_ms, plan.payload_hash, plan.holder, is_done=True, data=data
        )
        self.settled_until_ms[key] = gone_ms
        self.check_stored(key)
        return Stored()

    def release(self, attempt: Attempt, record: DataRecord) -> Reply:
        key, token = attempt.plan.key, attempt.plan.owner_token
        if fence := self.fenced(self.made.store.release, record):
            assert not self.oracle.may_release(key, token)
        else:
            assert self.oracle.may_release(key, token)
            self.oracle.entries.pop(key, None)
        self.check_stored(key)
        return fence or Stored()

    def renew(self, attempt: Attempt, record: DataRecord) -> Reply:
        key, token = attempt.plan.key, attempt.plan.owner_token
        if fence := self.fenced(self.made.store.renew, record):
            assert not self.oracle.may_renew(key, token)
            self.check_stored(key)
            return fence
        assert self.oracle.may_renew(key, token)
        self.oracle.renew(key, record.in_progress_expiry_timestamp + 1, (record.expiry_timestamp + 1) * 1000)
        self.check_stored(key)
        return Stored()

    def fenced(self, write: Callable[[DataRecord], None], record: DataRecord) -> Fenced | None:
        try:
            write(record)
        except IdempotencyLeaseLostError as lost:
            self.check_read(record.key, lost.record)
            return Fenced(lost.record, self.clock.now_ms)
        return None

    def answer(self, attempt: Attempt, reply: Reply) -> None:
        """Send the reply, collect what observers are told, and check that the attempt goes on as it must."""
        if isinstance(reply, Refused | Found | Fenced):
            reply = type(reply)(reply.existing, self.clock.now_ms)
        answered, attempt.offer, attempt.is_sent = attempt.effect, None, False
        try:
            effect = attempt.steps.send(reply)
            while isinstance(effect, Notify):
                attempt.seen.append(effect.event)
                effect = attempt.steps.send(None)
        except StopIteration as end:
            self.attempts.remove(attempt)
            attempt.effect = None
            self.check_next(attempt, answered, reply, end.value)
            self.check_outcome(attempt, end.value)
            self.visited.update(type(event).__name__ for event in attempt.seen)
            self.visited[type(getattr(end.value, "error", end.value)).__name__] += 1
            return
        attempt.effect = effect
        self.check_next(attempt, answered, reply, effect)
        if isinstance(effect, Run):
            self.check_run(attempt, effect)

    # The checks

    def check_next(self, attempt: Attempt, answered: Effect | None, reply: Reply, step: object) -> None:
        plan, now_ms = attempt.plan, self.clock.now_ms
        if not isinstance(reply, Refused | Found | Fenced):
            return
        meaning = self.oracle.meaning(plan.key, now_ms, plan.owner_token, plan.payload_hash, takes_over=plan.takes_over_orphans)
        if isinstance(answered, Release):
            assert isinstance(step, Failed)
        elif isinstance(answered, Complete):
            assert isinstance(step, Replayed) if meaning is Meaning.RESULT else isinstance(step.error, IdempotencyLeaseLostError)
        elif meaning is Meaning.OURS:
            assert isinstance(step, Run if plan.lease_ms is None else Renew)
        elif meaning is Meaning.FREE and isinstance(step, Rejected):
            assert isinstance(step.error, IdempotencyInconsistentStateError)
            assert attempt.claims >= MAX_CLAIMS
        elif meaning is Meaning.FREE:
            assert isinstance(step, Claim)
            self.visited["claimed again"] += 1
        elif meaning is Meaning.RESULT:
            assert isinstance(step, Replayed)
        elif meaning is Meaning.BUSY and plan.wait_until_ms is not None and now_ms < plan.wait_until_ms:
            assert isinstance(step, Wait)
            assert step.at_most_ms == plan.wait_until_ms - now_ms
        else:
            assert type(step.error) is REJECTIONS[meaning]

    def check_run(self, attempt: Attempt, run: Run) -> None:
        entry, now_ms = self.oracle.entries[attempt.plan.key], self.clock.now_ms
        assert now_ms >= self.settled_until_ms[attempt.plan.key], "a result was there to be replayed"
        assert (entry.token, entry.is_done) == (attempt.plan.owner_token, False)
        assert run.granted.generation == entry.generation
        attempt.lease_end_ms = attempt.plan.believed_end_ms(run.granted)
        assert attempt.lease_end_ms < entry.lease_over_ms
        assert sum(isinstance(event, events.Claimed) for event in attempt.seen) == 1

    def check_outcome(self, attempt: Attempt, outcome: Outcome) -> None:
        entry = self.oracle.entries.get(attempt.plan.key)
        match outcome:
            case Executed(value, record):
                assert json.dumps(value) == attempt.response_data == record.response_data
                assert (entry.token, entry.data) == (attempt.plan.owner_token, attempt.response_data)
            case Replayed(_, record):
                assert entry.is_done
                assert entry.data is not None
                assert record.response_data == entry.data
                assert self.clock.now_ms < entry.gone_ms
                assert attempt.plan.payload_hash in ("", entry.payload_hash)
            case Failed(error):
                assert error is attempt.error
            case Rejected(error):
                ran = isinstance(error, IdempotencyPersistenceLayerError) and attempt.ending
                assert bool(ran) == bool(attempt.ending)

    def check_ends(self, plan: Plan, record: DataRecord, now_ms: int) -> None:
        """The lease ends when it was promised to, and no TTL deletes the record before."""
        end_ms = record.in_progress_expiry_timestamp
        assert end_ms == (plan.lease_end_ms if plan.lease_ms is None else now_ms + plan.lease_ms + plan.lease_margin_ms)
        assert record.expiry_timestamp * 1000 >= end_ms
        assert plan.takes_over_orphans or record.expiry_timestamp * 1000 > now_ms + 1e11, "an orphan must outlive the question"

    def check_read(self, key: str, record: DataRecord | None) -> None:
        """What a store shows of a record is what is there."""
        entry = self.oracle.entries.get(key)
        if entry is None or record is None:
            assert record is entry is None
            return
        shown = (
            record.key,
            record.stored_status,
            record.owner_token,
            record.generation,
            record.response_data,
            record.payload_hash,
        )
        status = "COMPLETED" if entry.is_done else "INPROGRESS"
        assert shown == (key, status, entry.token, entry.generation, entry.data or "", entry.payload_hash)
        assert record.expiry_timestamp == entry.gone_ms // 1000 - 1
        assert entry.is_done or record.in_progress_expiry_timestamp == entry.lease_over_ms - 1
        assert record.result_kept == (not entry.is_done or entry.data is not None)

    def check_stored(self, key: str) -> None:
        raw, entry = self.made.peek(key), self.oracle.entries.get(key)
        if raw is None or entry is None:
            assert raw is entry is None
            return
        if entry.is_done:
            raw.pop("in_progress_expiration", None)
        assert raw == {"id": key, **entry.raw()}

    # Choices

    @staticmethod
    def one_of(data: st.DataObject, choices: list[T]) -> T:
        return choices[data.draw(st.integers(0, len(choices) - 1), label="which")]

    def running(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if isinstance(attempt.effect, Run)]

    def beating(self) -> list[Attempt]:
        return [attempt for attempt in self.running() if attempt.plan.lease_ms is not None]

    def waiting(self) -> list[Attempt]:
        """Attempts that have asked the store something, or are about to."""
        return [attempt for attempt in self.attempts if not isinstance(attempt.effect, Run)]

    def claiming(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if isinstance(attempt.effect, Claim)]

    def swept(self) -> list[str]:
        """Keys of orphans that a table's TTL may delete."""
        return [key for key, entry in self.oracle.entries.items() if not entry.is_done and self.clock.now_ms >= entry.gone_ms]

    def pass_time(self, edge: int | None) -> None:
        """Move on to the next edge, give or take a millisecond; None stays."""
        if edge is None:
            return
        ahead = [at_ms for ms in self.oracle.edges_ms() if (at_ms := ms + edge) > self.clock.now_ms]
        if ahead:
            self.clock.now_ms = min(ahead)


#: What the examples must include, or they prove little.
PLACES = {
    *(error.__name__ for error in REJECTIONS.values()),
    *("Claimed", "Completed", "LeaseLost", "RecoveredOwnWrite", "Refused"),
    *("Released", "Replayed", "ResultNotKept", "TakenOver", "Waited"),
    *("Executed", "Suspended", "SystemExit", "CancelledError", "ZeroDivisionError", "IdempotencyLeaseLostError"),
    *("claimed again", "renewed", "swept"),
}


def play(name: str, made: Made, clock: FakeClock, *, examples: int, steps: int, phases: list[Phase]) -> Counter[str]:
    """Let the machine run; how often it came where."""
    visited: Counter[str] = Counter()
    machine = type(name, (Calls,), {"made": made, "clock": clock, "visited": visited})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return visited


@pytest.mark.timeout(400)  # a failure is shrunk first, for at most five minutes
def test_interleaved_attempts_keep_every_promise_in_memory() -> None:
    clock = FakeClock()

    visited = play("InMemory", memory(clock, ""), clock, examples=350, steps=40, phases=[Phase.generate, Phase.shrink])
    assert visited.keys() >= PLACES


@pytest.mark.parametrize(("client_kind", "examples"), [("boto3", 10), ("lean", 20)])
def test_interleaved_attempts_keep_every_promise_on_dynamodb(dynamodb_local: str, client_kind: str, examples: int) -> None:
    clock = FakeClock()

    # Shrinking takes minutes there, and what fails there alone is seldom subtle.
    made = dynamodb(clock, dynamodb_local, client_kind)
    visited = play("OnDynamoDB", made, clock, examples=examples, steps=30, phases=[Phase.generate])

    assert visited["Executed"] + visited["Replayed"] > 0


@pytest.mark.parametrize(
    ("made", "examples"),
    [
        pytest.param(
            lambda clock, request: cached(clock, request.getfixturevalue("valkey_server")),
            100,
            id="valkey",
            marks=pytest.mark.valkey,
        ),
        pytest.param(
            lambda clock, request: clustered(clock, request.getfixturevalue("valkey_cluster")),
            15,
            id="valkey-cluster",
            marks=pytest.mark.valkey_cluster,
        ),
        pytest.param(
            lambda clock, request: cached(clock, request.getfixturevalue("redis_server")), 15, id="redis", marks=pytest.mark.redis
        ),
    ],
)
def test_interleaved_attempts_keep_every_promise_in_a_cache(
    request: pytest.FixtureRequest, made: Callable[[FakeClock, pytest.FixtureRequest], Made], examples: int
) -> None:
    clock = FakeClock()

    visited = play("InACache", made(clock, request), clock, examples=examples, steps=40, phases=[Phase.generate])

    assert visited["Executed"] + visited["Replayed"] > 0
