"""The state machine, with the test for a driver: each effect, its reply, and how the call ends."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from doubles import START_MS

from idempotency import events
from idempotency.execution import (
    CLOCK_DIFFERENCE_MS,
    MAX_CLAIMS,
    NEVER_SECONDS,
    STORED,
    Claim,
    Commit,
    Complete,
    Executed,
    Failed,
    Fenced,
    Fetch,
    Found,
    Granted,
    Load,
    Loaded,
    Notify,
    Plan,
    Raised,
    Refused,
    Rejected,
    Release,
    Renew,
    Replayed,
    Returned,
    Run,
    Slept,
    Unanswered,
    Uncommitted,
    Unloadable,
    Unstorable,
    Verdict,
    Wait,
    execution,
    judge,
    usual,
)
from idempotency.execution import GONE as NO_RECORD
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyInconsistentStateError,
    IdempotencyLeaseLostError,
    IdempotencyOrphanedError,
    IdempotencyPersistenceLayerError,
    IdempotencyRequestTooOldError,
    IdempotencyResultNotKeptError,
    IdempotencyTransactionCanceledError,
    IdempotencyValidationError,
)
from persistence.transaction import CancellationReason

if TYPE_CHECKING:
    from idempotency.execution import Effect, Outcome, Reply, Steps

NOW_MS = START_MS
LEASE_END_MS = NOW_MS + 60_000
EXPIRY_S = NOW_MS // 1000 + 3_600
EXPIRED_MS = (EXPIRY_S + 1) * 1000
DEADLINE_MS = NOW_MS + 30_000

PLAN = Plan(
    key="fn#1",
    payload_hash="",
    owner_token="ours",
    lease_ms=None,
    lease_end_ms=LEASE_END_MS,
    lease_margin_ms=0,
    deadline_ms=DEADLINE_MS,
    expires_after_ms=3_600_000,
    wait_until_ms=None,
    wait_ms=None,
    takes_over_orphans=True,
    resumes=False,
    holder="request-ours",
    key_expression="body.id",
    is_observed=False,
)
OBSERVED = PLAN.replace(is_observed=True)
#: Of a request that is too old.
LATE = PLAN.replace(fresh_until_ms=NOW_MS - 1)

GRANTED = DataRecord(
    "fn#1",
    "INPROGRESS",
    EXPIRY_S,
    LEASE_END_MS,
    owner_token="ours",
    generation=3,
    holder="request-ours",
    deadline_ms=DEADLINE_MS,
)
#: As stored by another attempt, and by our own whose answer was lost.
RUNNING = DataRecord("fn#1", "INPROGRESS", EXPIRY_S, LEASE_END_MS, owner_token="theirs", generation=4, holder="request-theirs")
DONE = RUNNING.replace(status="COMPLETED", response_data='"their result"')
OURS = RUNNING.replace(owner_token="ours", holder="request-ours")
#: Of Powertools: no token, no lease.
FOREIGN = DataRecord("fn#1", "INPROGRESS", EXPIRY_S)

GRANT = (Claim(None), Granted(GRANTED, NOW_MS))
RETURNED = Returned("value", '"value"', NOW_MS + 500)
COMPLETED = GRANTED.replace(status="COMPLETED", expiry_timestamp=(NOW_MS + 500 + 3_600_000) // 1000, response_data='"value"')
NOT_KEPT = COMPLETED.replace(response_data="", result_kept=False)


def play(steps: Steps[Outcome], *script: tuple[Effect, Reply]) -> Outcome:
    """Perform the script: each effect must be the expected one, and gets its reply.  Returns how the call ends.

    So must `usual`, unless it leaves the rest to the machine.
    """
    plan, cached = (steps.gi_frame.f_locals[name] for name in ("plan", "cached"))  # type: ignore[attr-defined]
    short, performed = usual_way(plan, cached, script)
    reply: Reply = None
    for expected, answer in script:
        assert steps.send(reply) == expected
        reply = answer
    with pytest.raises(StopIteration) as end:
        steps.send(reply)
    outcome: Outcome = end.value.value
    if isinstance(short, list):
        assert [answer for _, answer in performed] == short
    else:
        assert (short, performed) == (outcome, list(script))
    return outcome


class Script:
    """A performer that is told what happens."""

    def __init__(self, script: tuple[tuple[Effect, Reply], ...]) -> None:
        self.script = script
        self.performed: list[tuple[Effect, Reply]] = []

    def _perform(self, effect: Effect) -> Any:
        expected, answer = self.script[len(self.performed)]
        assert effect == expected
        self.performed.append((effect, answer))
        return answer

    def claim(self, supersedes: DataRecord | None) -> Any:
        return self._perform(Claim(supersedes))

    def run(self, granted: DataRecord) -> Any:
        return self._perform(Run(granted))

    def complete(self, record: DataRecord) -> Any:
        return self._perform(Complete(record))


def usual_way(
    plan: Plan, cached: Refused | None, script: tuple[tuple[Effect, Reply], ...]
) -> tuple[Outcome | list[Reply], list[tuple[Effect, Reply]]]:
    """What `usual` makes of the script, and how much of it.  It is not asked where somebody is told of each step."""
    if plan.is_observed:
        return [], []
    performer = Script(script)
    return usual(plan, performer, cached), performer.performed


def told(event: events.Event) -> tuple[Effect, Reply]:
    return Notify(event), None


def rejection(outcome: Outcome, kind: type[BaseError]) -> Any:
    """The error with which the call was rejected."""
    assert isinstance(outcome, Rejected)
    assert type(outcome.error) is kind
    return outcome.error


# The plan: offers, renewals, completions


def test_an_offer_carries_all_that_the_plan_fixes() -> None:
    plan = PLAN.replace(payload_hash="hash")

    assert plan.offer(None, NOW_MS) == DataRecord(
        "fn#1",
        "INPROGRESS",
        EXPIRY_S,
        LEASE_END_MS,
        payload_hash="hash",
        owner_token="ours",
        generation=1,
        holder="request-ours",
        deadline_ms=DEADLINE_MS,
        takes_over_orphans=True,
    )


@pytest.mark.parametrize(("superseded", "generation"), [(0, 1), (1, 2), (41, 42)])
def test_an_offer_that_saw_a_claimable_record_names_it_and_comes_after_it(superseded: int, generation: int) -> None:
    offer = PLAN.offer(DONE.replace(generation=superseded), NOW_MS)

    assert (offer.supersedes, offer.generation) == (superseded, generation)


@pytest.mark.parametrize(("seen", "takes_over"), [(RUNNING, True), (FOREIGN, True), (DONE, False), (None, False)])
def test_an_offer_that_supersedes_an_unfinished_attempt_says_so(seen: DataRecord | None, takes_over: bool) -> None:
    """A store that grants it in one conditional write cannot tell afterwards; without it the takeover is never observed."""
    assert PLAN.offer(seen, NOW_MS).took_over is takes_over


def test_a_renewed_lease_counts_from_the_offer_and_from_each_renewal() -> None:
    plan = PLAN.replace(lease_ms=5_000, lease_end_ms=None)

    offer = plan.offer(None, NOW_MS)
    renewed = plan.renewed(offer, NOW_MS + 4_000)

    assert offer.in_progress_expiry_timestamp == NOW_MS + 5_000
    assert renewed == offer.replace(
        in_progress_expiry_timestamp=NOW_MS + 9_000, expiry_timestamp=(NOW_MS + 4_000 + 3_600_000) // 1000
    )


def test_a_renewed_lease_ends_a_margin_later_in_its_record_than_its_attempt_counts_on() -> None:
    plan = PLAN.replace(lease_ms=5_000, lease_end_ms=None, lease_margin_ms=1_000)

    offer = plan.offer(None, NOW_MS)
    renewed = plan.renewed(offer, NOW_MS + 4_000)

    assert [each.in_progress_expiry_timestamp for each in (offer, renewed)] == [NOW_MS + 6_000, NOW_MS + 10_000]
    assert [plan.believed_end_ms(each) for each in (offer, renewed)] == [NOW_MS + 5_000, NOW_MS + 9_000]


def test_a_claim_expires_not_before_the_margin_of_its_renewed_lease() -> None:
    plan = PLAN.replace(lease_ms=60_000, lease_end_ms=None, lease_margin_ms=1_500, expires_after_ms=1_000)

    assert plan.offer(None, NOW_MS).expiry_timestamp == -(-(NOW_MS + 61_500) // 1000)


def test_the_margin_of_a_fixed_lease_is_part_of_its_end() -> None:
    plan = PLAN.replace(lease_margin_ms=1_000)

    assert plan.offer(None, NOW_MS).in_progress_expiry_timestamp == LEASE_END_MS
    assert plan.believed_end_ms(GRANTED) == LEASE_END_MS
    assert plan.believed_end_ms(FOREIGN) is None


def test_a_fixed_lease_ends_when_it_ends_whenever_it_is_offered() -> None:
    assert PLAN.offer(None, NOW_MS + 7_000).in_progress_expiry_timestamp == LEASE_END_MS


def test_without_a_lease_a_claim_holds_until_its_expiry() -> None:
    offer = PLAN.replace(lease_end_ms=None).offer(None, NOW_MS)

    assert (offer.in_progress_expiry_timestamp, offer.expiry_timestamp) == (None, EXPIRY_S)


@pytest.mark.parametrize(
    ("lease_end_ms", "expiry"),
    [
        (1_800_000_003_000, 1_800_000_003),
        (1_800_000_003_001, 1_800_000_004),
        (1_800_000_003_999, 1_800_000_004),
        (1_800_000_004_000, 1_800_000_004),
        (1_800_000_002_000, 1_800_000_002),
        (1_800_000_001_000, 1_800_000_002),
        (0, 1_800_000_002),
    ],
)
def test_a_claim_never_expires_before_its_lease_ends_because_a_tables_ttl_deletes_what_has_expired(
    lease_end_ms: int, expiry: int
) -> None:
    plan = PLAN.replace(lease_end_ms=lease_end_ms, expires_after_ms=2_000)

    assert plan.offer(None, NOW_MS).expiry_timestamp == expiry


@pytest.mark.parametrize("expires_after_ms", [0, 1, 1_000])
def test_a_renewal_moves_the_expiry_past_the_lease_too(expires_after_ms: int) -> None:
    plan = PLAN.replace(lease_ms=60_000, expires_after_ms=expires_after_ms)

    renewed = plan.renewed(GRANTED, NOW_MS + 1_000_000)

    assert renewed.in_progress_expiry_timestamp == NOW_MS + 1_060_000
    assert renewed.expiry_timestamp == -(-(NOW_MS + 1_060_000) // 1000)


def test_a_claim_that_nobody_may_take_over_expires_in_years() -> None:
    plan = PLAN.replace(takes_over_orphans=False, lease_ms=60_000)

    assert plan.offer(None, NOW_MS).expiry_timestamp == NOW_MS // 1000 + NEVER_SECONDS
    assert plan.renewed(GRANTED, NOW_MS).expiry_timestamp == NOW_MS // 1000 + NEVER_SECONDS
    assert plan.offer(None, NOW_MS).takes_over_orphans is False


@pytest.mark.parametrize("seen", [None, RUNNING, DONE], ids=["nothing", "an orphan", "an expired result"])
def test_an_offer_says_when_its_request_becomes_too_old(seen: DataRecord | None) -> None:
    assert PLAN.offer(seen, NOW_MS).fresh_until_ms is None
    assert LATE.offer(seen, NOW_MS).fresh_until_ms == NOW_MS - 1


def test_a_result_is_replayed_for_its_time_counted_from_completion() -> None:
    record = PLAN.replace(expires_after_ms=1_500).completed(GRANTED, "[]", NOW_MS + 10_000)

    assert record == GRANTED.replace(status="COMPLETED", response_data="[]", expiry_timestamp=(NOW_MS + 11_500) // 1000)


def test_values_are_not_shown_in_the_text_of_effects_and_outcomes() -> None:
    assert "secret" not in repr(Returned("secret", '"secret"', 0))
    assert "secret" not in repr(Executed("secret", COMPLETED.replace(response_data="secret")))
    assert "secret" not in repr(Replayed("secret", COMPLETED.replace(response_data="secret")))


def test_outcomes_are_immutable() -> None:
    executed = Executed(1, None)

    with pytest.raises(AttributeError, match="^an outcome is immutable; its value cannot be set$"):
        executed.value = 2
    with pytest.raises(AttributeError, match="^an outcome is immutable; its value cannot be deleted$"):
        del executed.value
    assert executed == Executed(1, None)
    assert executed != Executed(2, None)
    assert hash(executed) == hash(Executed(1, None))
    assert copy.copy(executed) == executed


# The judge

HASHED = PLAN.replace(payload_hash="hash")
STRICT = PLAN.replace(takes_over_orphans=False)
RESUMING = PLAN.replace(resumes=True)


@pytest.mark.parametrize(
    ("existing", "now_ms", "plan", "verdict"),
    [
        # vanished
        (None, NOW_MS, PLAN, Verdict.RETRY),
        (None, NOW_MS, STRICT, Verdict.RETRY),
        (None, NOW_MS, RESUMING, Verdict.RETRY),
        # another attempt's, in progress
        (RUNNING, LEASE_END_MS - 1, PLAN, Verdict.IN_PROGRESS),
        (RUNNING, LEASE_END_MS, PLAN, Verdict.IN_PROGRESS),
        (RUNNING, LEASE_END_MS + 1, PLAN, Verdict.RETRY),
        (RUNNING.replace(expiry_timestamp=0), LEASE_END_MS, PLAN, Verdict.IN_PROGRESS),
        (RUNNING.replace(owner_token=""), LEASE_END_MS, PLAN, Verdict.IN_PROGRESS),
        (FOREIGN, EXPIRED_MS - 1, PLAN, Verdict.IN_PROGRESS),
        (FOREIGN, EXPIRED_MS, PLAN, Verdict.RETRY),
        # ... which nobody may take over
        (RUNNING, LEASE_END_MS, STRICT, Verdict.IN_PROGRESS),
        (RUNNING, LEASE_END_MS + 1, STRICT, Verdict.ORPHANED),
        (RUNNING, EXPIRED_MS + 1, STRICT, Verdict.ORPHANED),
        (FOREIGN, EXPIRED_MS - 1, STRICT, Verdict.IN_PROGRESS),
        (FOREIGN, EXPIRED_MS, STRICT, Verdict.ORPHANED),
        # our own, its answer lost
        (OURS, NOW_MS, PLAN, Verdict.RUN),
        (OURS, LEASE_END_MS, PLAN, Verdict.RUN),
        (OURS, LEASE_END_MS + 1, PLAN, Verdict.RETRY),
        (OURS, LEASE_END_MS + 1, STRICT, Verdict.RUN),
        (OURS.replace(in_progress_expiry_timestamp=None), EXPIRED_MS - 1, PLAN, Verdict.RUN),
        (OURS.replace(in_progress_expiry_timestamp=None), EXPIRED_MS, PLAN, Verdict.RETRY),
        # this very execution's, whoever wrote it
        (RUNNING, NOW_MS, RESUMING, Verdict.RUN),
        (RUNNING, LEASE_END_MS + 1, RESUMING, Verdict.RUN),
        (FOREIGN, NOW_MS, RESUMING, Verdict.RUN),
        (FOREIGN, EXPIRED_MS, RESUMING, Verdict.RUN),
        (RUNNING, LEASE_END_MS + 1, RESUMING.replace(takes_over_orphans=False), Verdict.RUN),
        (RUNNING, NOW_MS, RESUMING.replace(payload_hash="other"), Verdict.RUN),
        (DONE, NOW_MS, RESUMING, Verdict.REPLAY),
        (DONE, EXPIRED_MS, RESUMING, Verdict.RETRY),
        # completed
        (DONE, NOW_MS, PLAN, Verdict.REPLAY),
        (DONE, EXPIRED_MS - 1, PLAN, Verdict.REPLAY),
        (DONE, EXPIRED_MS, PLAN, Verdict.RETRY),
        (DONE, EXPIRED_MS, STRICT, Verdict.RETRY),
        (DONE.replace(expiry_timestamp=None), 2 * EXPIRED_MS, PLAN, Verdict.REPLAY),
        (DONE.replace(owner_token="ours"), NOW_MS, PLAN, Verdict.REPLAY),
        (DONE.replace(result_kept=False), NOW_MS, PLAN, Verdict.REPLAY),
        # the payload is compared before anything is given away
        (RUNNING.replace(payload_hash="hash"), NOW_MS, HASHED, Verdict.IN_PROGRESS),
        (RUNNING.replace(payload_hash="other"), NOW_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        (RUNNING, NOW_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        (RUNNING.replace(payload_hash="other"), LEASE_END_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        (RUNNING.replace(payload_hash="other"), LEASE_END_MS + 1, HASHED, Verdict.RETRY),
        (
            RUNNING.replace(payload_hash="other"),
            LEASE_END_MS + 1,
            HASHED.replace(takes_over_orphans=False),
            Verdict.PAYLOAD_MISMATCH,
        ),
        (RUNNING.replace(payload_hash="hash"), LEASE_END_MS + 1, HASHED.replace(takes_over_orphans=False), Verdict.ORPHANED),
        (DONE.replace(payload_hash="hash"), NOW_MS, HASHED, Verdict.REPLAY),
        (DONE.replace(payload_hash="other"), NOW_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        (DONE, NOW_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        (DONE.replace(payload_hash="other"), EXPIRED_MS, HASHED, Verdict.RETRY),
        (DONE.replace(payload_hash="other", result_kept=False), NOW_MS, HASHED, Verdict.PAYLOAD_MISMATCH),
        # ... and only where it is configured
        (DONE.replace(payload_hash="other"), NOW_MS, PLAN, Verdict.REPLAY),
        (RUNNING.replace(payload_hash="other"), NOW_MS, PLAN, Verdict.IN_PROGRESS),
        # a request that is too old runs only if an orphan shows that it never completed
        (None, NOW_MS, LATE, Verdict.TOO_OLD),
        (None, NOW_MS, PLAN.replace(fresh_until_ms=NOW_MS), Verdict.RETRY),
        (DONE, EXPIRED_MS - 1, LATE, Verdict.REPLAY),
        (DONE, EXPIRED_MS, LATE, Verdict.TOO_OLD),
        (DONE, EXPIRED_MS, PLAN.replace(fresh_until_ms=EXPIRED_MS), Verdict.RETRY),
        (DONE.replace(status="PAUSED"), EXPIRED_MS, LATE, Verdict.TOO_OLD),
        (RUNNING, LEASE_END_MS, LATE, Verdict.IN_PROGRESS),
        (RUNNING, LEASE_END_MS + 1, LATE, Verdict.RETRY),
        (RUNNING, LEASE_END_MS + 1, LATE.replace(takes_over_orphans=False), Verdict.ORPHANED),
        (RUNNING, LEASE_END_MS + 1, LATE.replace(takes_over_late=False), Verdict.TOO_OLD),
        (RUNNING, LEASE_END_MS + 1, PLAN.replace(takes_over_late=False), Verdict.RETRY),
        (OURS, NOW_MS, LATE, Verdict.RUN),
        (OURS, LEASE_END_MS + 1, LATE, Verdict.RETRY),
        (RUNNING, NOW_MS, LATE.replace(payload_hash="hash"), Verdict.PAYLOAD_MISMATCH),
    ],
)
def test_the_judges_table(existing: DataRecord | None, now_ms: int, plan: Plan, verdict: Verdict) -> None:
    assert judge(existing, now_ms, plan) is verdict


# Claim, run, complete


def test_a_call_claims_runs_and_completes() -> None:
    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
    )

    assert outcome == Executed("value", COMPLETED)


def test_an_observed_call_tells_of_its_claim_and_its_completion() -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
        told(events.Completed(key="fn#1", at_ms=NOW_MS + 500, generation=3)),
    )

    assert outcome == Executed("value", COMPLETED)


def test_a_takeover_is_told_before_the_claim() -> None:
    granted = GRANTED.replace(took_over=True)

    play(
        execution(OBSERVED),
        (Claim(None), Granted(granted, NOW_MS)),
        told(events.TakenOver(key="fn#1", at_ms=NOW_MS, generation=3)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(granted), Raised(SuspendExecution(), NOW_MS)),
    )


# The claim's answer was lost


def test_our_own_record_that_refuses_us_means_that_the_key_is_ours() -> None:
    """Powertools takes its own record for another's, and blocks the key for the lease."""
    recovered = OURS.replace(deadline_ms=DEADLINE_MS)
    done = COMPLETED.replace(generation=4)

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Refused(OURS, NOW_MS)),
        told(events.RecoveredOwnWrite(key="fn#1", at_ms=NOW_MS, generation=4)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=4)),
        (Run(recovered), RETURNED),
        (Complete(done), STORED),
        told(events.Completed(key="fn#1", at_ms=NOW_MS + 500, generation=4)),
    )

    assert outcome == Executed("value", done)


def test_a_recovered_claim_is_run_under_its_key_with_this_calls_deadline_and_payload() -> None:
    plan = HASHED.replace(deadline_ms=DEADLINE_MS + 7)
    stored = OURS.replace(idempotency_key="payments", sort_key="fn#1", payload_hash="stale")
    steps = execution(plan)
    steps.send(None)

    run = steps.send(Refused(stored, NOW_MS))

    assert run == Run(stored.replace(idempotency_key="fn#1", sort_key=None, payload_hash="hash", deadline_ms=DEADLINE_MS + 7))


def test_our_own_record_past_its_lease_is_claimed_again_because_it_can_be_taken_at_any_moment() -> None:
    steps = execution(PLAN)
    steps.send(None)

    assert steps.send(Refused(OURS, LEASE_END_MS + 1)) == Claim(OURS)


def test_a_resumed_execution_adopts_the_record_and_its_token() -> None:
    adopted = RUNNING.replace(deadline_ms=DEADLINE_MS)

    outcome = play(
        execution(RESUMING),
        (Claim(None), Refused(RUNNING, LEASE_END_MS + 1)),
        (Run(adopted), Raised(SuspendExecution(), NOW_MS)),
    )

    assert adopted.owner_token == "theirs"
    assert isinstance(outcome, Failed)


# Leases that are renewed: what matters is what is left of them when the function begins

RENEWING = PLAN.replace(lease_ms=60_000, lease_end_ms=None)


@pytest.mark.parametrize(("now_ms", "left"), [(LEASE_END_MS - 1, True), (LEASE_END_MS, True), (LEASE_END_MS + 1, False)])
def test_a_claim_whose_answer_took_longer_than_its_lease_is_made_again(now_ms: int, left: bool) -> None:
    """It can be taken over at any moment, and the function would run beside its successor."""
    steps = execution(RENEWING)
    steps.send(None)

    assert steps.send(Granted(GRANTED, now_ms)) == (Run(GRANTED) if left else Claim(GRANTED))


@pytest.mark.parametrize(("now_ms", "left"), [(LEASE_END_MS - 1_000, True), (LEASE_END_MS - 999, False)])
def test_an_answer_that_comes_within_the_margin_of_the_lease_comes_too_late(now_ms: int, left: bool) -> None:
    """An attempt whose clock is ahead may take the claim over already."""
    plan = RENEWING.replace(lease_margin_ms=1_000)
    way = [(Claim(None), Granted(GRANTED, now_ms))]
    if not left:
        way.append((Claim(GRANTED), Granted(GRANTED, NOW_MS)))

    outcome = play(execution(plan), *way, (Run(GRANTED), RETURNED), (Complete(COMPLETED), STORED))

    assert outcome == Executed("value", COMPLETED)


def test_a_lease_that_is_not_renewed_ends_with_its_invocation_however_late_the_answer() -> None:
    steps = execution(PLAN)
    steps.send(None)

    assert steps.send(Granted(GRANTED, LEASE_END_MS + 1)) == Run(GRANTED)


def test_answers_that_always_take_longer_than_the_lease_are_an_error_in_the_end() -> None:
    late = Granted(GRANTED, LEASE_END_MS + 1)

    outcome = play(execution(RENEWING), (Claim(None), late), *[(Claim(GRANTED), late)] * (MAX_CLAIMS - 1))

    rejection(outcome, IdempotencyInconsistentStateError)


@pytest.mark.parametrize(
    ("plan", "stored", "now_ms"),
    [(RENEWING, OURS, NOW_MS + 7_000), (RENEWING.replace(resumes=True), RUNNING, EXPIRED_MS)],
    ids=["answer lost", "resumed"],
)
def test_a_recovered_claim_is_renewed_before_the_function_runs(plan: Plan, stored: DataRecord, now_ms: int) -> None:
    renewed = stored.replace(
        deadline_ms=DEADLINE_MS,
        in_progress_expiry_timestamp=now_ms + 60_000,
        expiry_timestamp=(now_ms + 3_600_000) // 1000,
    )

    play(
        execution(plan.replace(is_observed=True)),
        (Claim(None), Refused(stored, now_ms)),
        (Renew(renewed), STORED),
        told(events.RecoveredOwnWrite(key="fn#1", at_ms=now_ms, generation=4)),
        told(events.Claimed(key="fn#1", at_ms=now_ms, generation=4)),
        (Run(renewed), Raised(SuspendExecution(), now_ms)),
    )


def test_a_resumed_claim_that_has_no_lease_is_run_as_it_is() -> None:
    """Another library's, without a Lambda context: it holds until it expires."""
    stored = RUNNING.replace(in_progress_expiry_timestamp=None)
    resumed = stored.replace(deadline_ms=DEADLINE_MS)

    play(
        execution(RENEWING.replace(resumes=True)),
        (Claim(None), Refused(stored, NOW_MS)),
        (Run(resumed), Raised(SuspendExecution(), NOW_MS)),
    )


UNRENEWED = IdempotencyPersistenceLayerError("Failed to renew the lease in the idempotency store", "reset")


@pytest.mark.parametrize(
    ("plan", "stored", "now_ms"),
    [
        (RENEWING, OURS, LEASE_END_MS),
        (RENEWING.replace(resumes=True), RUNNING, LEASE_END_MS),
        (RENEWING.replace(takes_over_orphans=False), OURS, LEASE_END_MS + 1),
    ],
    ids=["answer lost", "resumed", "nobody may take over"],
)
def test_a_recovered_claim_that_cannot_be_renewed_runs_on_the_lease_that_it_has(
    plan: Plan, stored: DataRecord, now_ms: int
) -> None:
    """Up to its last millisecond; the heartbeat renews it as soon as it can."""
    play(
        execution(plan),
        (Claim(None), Refused(stored, NOW_MS)),
        (Renew(plan.renewed(plan.recovered(stored), NOW_MS)), Unanswered(UNRENEWED, now_ms)),
        (Run(plan.recovered(stored)), Raised(SuspendExecution(), now_ms)),
    )


def test_a_recovered_claim_whose_lease_is_over_and_cannot_be_renewed_is_not_run() -> None:
    """Anybody may take it over at any moment."""
    plan = RENEWING.replace(resumes=True)
    late_ms = LEASE_END_MS + 1

    outcome = play(
        execution(plan),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Renew(plan.renewed(plan.recovered(RUNNING), NOW_MS)), Unanswered(UNRENEWED, late_ms)),
    )

    assert rejection(outcome, IdempotencyPersistenceLayerError) is UNRENEWED


def test_a_recovered_claim_that_cannot_be_renewed_is_not_run_within_the_margin_of_its_lease() -> None:
    plan = RENEWING.replace(lease_margin_ms=1_000)
    finding = [(Claim(None), Refused(OURS, NOW_MS))]
    renewal = Renew(plan.renewed(plan.recovered(OURS), NOW_MS))

    outcome = play(execution(plan), *finding, (renewal, Unanswered(UNRENEWED, LEASE_END_MS - 999)))

    assert rejection(outcome, IdempotencyPersistenceLayerError) is UNRENEWED
    last = (Run(plan.recovered(OURS)), Raised(SuspendExecution(), NOW_MS))
    play(execution(plan), *finding, (renewal, Unanswered(UNRENEWED, LEASE_END_MS - 1_000)), last)


def recovering_and_fenced_by(found: DataRecord | None) -> list[tuple[Effect, Reply]]:
    """The script of a call that finds its own claim, and loses it before it can renew it."""
    renewed = RENEWING.renewed(RENEWING.recovered(OURS), NOW_MS)
    return [(Claim(None), Refused(OURS, NOW_MS)), (Renew(renewed), Fenced(found, NOW_MS + 5))]


def test_a_recovered_claim_that_is_completed_meanwhile_is_replayed_and_not_run() -> None:
    assert play(execution(RENEWING), *recovering_and_fenced_by(DONE)) == Replayed(None, DONE)


def test_a_recovered_claim_that_is_taken_over_meanwhile_is_not_run() -> None:
    outcome = play(execution(RENEWING), *recovering_and_fenced_by(RUNNING))

    assert rejection(outcome, IdempotencyAlreadyInProgressError).record is RUNNING


def test_a_recovered_claim_that_vanishes_meanwhile_is_made_again() -> None:
    suspended = SuspendExecution()

    outcome = play(execution(RENEWING), *recovering_and_fenced_by(None), GRANT, (Run(GRANTED), Raised(suspended, NOW_MS)))

    assert outcome == Failed(suspended)


# Refused


@pytest.mark.parametrize(
    ("refused", "source"), [(Refused(DONE, NOW_MS), "store"), (Refused(DONE, NOW_MS, from_cache=True), "cache")]
)
def test_a_completed_record_is_replayed_and_the_function_is_not_run(refused: Refused, source: Any) -> None:
    replayed = told(events.Replayed(key="fn#1", at_ms=NOW_MS, source=source, holder="request-theirs"))

    outcome = play(execution(OBSERVED), (Claim(None), refused), replayed)

    assert outcome == Replayed(None, DONE)


def test_an_unobserved_replay_asks_for_nothing_but_the_claim() -> None:
    assert play(execution(PLAN), (Claim(None), Refused(DONE, NOW_MS))) == Replayed(None, DONE)


def test_a_cached_result_is_replayed_without_a_claim() -> None:
    assert play(execution(PLAN, Refused(DONE, NOW_MS, from_cache=True))) == Replayed(None, DONE)


def test_a_cached_result_that_has_expired_is_claimed_anew_as_the_generation_after_it() -> None:
    outcome = play(
        execution(PLAN, Refused(DONE, EXPIRED_MS, from_cache=True)),
        (Claim(DONE), Refused(RUNNING.replace(in_progress_expiry_timestamp=EXPIRED_MS), EXPIRED_MS)),
    )

    rejection(outcome, IdempotencyAlreadyInProgressError)


def test_a_cached_result_of_another_payload_is_a_mismatch() -> None:
    rejection(play(execution(HASHED, Refused(DONE, NOW_MS, from_cache=True))), IdempotencyValidationError)


def test_a_result_that_was_not_kept_is_an_error_and_never_a_second_run() -> None:
    outcome = play(execution(PLAN), (Claim(None), Refused(DONE.replace(result_kept=False), NOW_MS)))

    assert str(rejection(outcome, IdempotencyResultNotKeptError)) == (
        "The function ran for idempotency key fn#1, but its result could not be stored; it will not be run again. "
        "A retry does not help: it gets this error until the record expires."
    )


def test_another_payload_is_refused_in_powertools_words() -> None:
    outcome = play(
        execution(HASHED.replace(is_observed=True)),
        (Claim(None), Refused(DONE.replace(payload_hash="other"), NOW_MS)),
        told(events.Refused(key="fn#1", at_ms=NOW_MS, reason="payload mismatch", holder="request-theirs")),
    )

    assert str(rejection(outcome, IdempotencyValidationError)) == (
        "Payload does not match stored record for this event key. Idempotency key: fn#1. Held by request request-theirs. "
        "The function was not run; a retry does not help: the key was used with another payload."
    )


def test_an_attempt_in_progress_refuses_in_powertools_words_and_says_who_holds_the_key() -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        told(events.Refused(key="fn#1", at_ms=NOW_MS, reason="in progress", holder="request-theirs")),
    )

    error = rejection(outcome, IdempotencyAlreadyInProgressError)
    assert str(error) == (
        "Execution already in progress with idempotency key: body.id=fn#1. Held by request request-theirs. "
        "The function was not run; retry the call to get the result of the attempt in progress."
    )
    assert error.record is RUNNING


def test_an_attempt_in_a_composite_table_is_named_with_its_sort_key() -> None:
    existing = RUNNING.replace(idempotency_key="payments", sort_key="fn#1", holder="")

    outcome = play(execution(PLAN), (Claim(None), Refused(existing, NOW_MS)))

    error = rejection(outcome, IdempotencyAlreadyInProgressError)
    assert str(error) == (
        "Execution already in progress with idempotency key: body.id=payments and sort key: fn#1. "
        "The function was not run; retry the call to get the result of the attempt in progress."
    )


@pytest.mark.parametrize(
    ("existing", "ended"),
    [(RUNNING, "2027-01-15T08:01:00.250+00:00"), (FOREIGN, "2027-01-15T09:00:00.000+00:00")],
)
def test_an_orphan_that_nobody_may_take_over_is_refused_with_the_end_of_its_lease(existing: DataRecord, ended: str) -> None:
    outcome = play(
        execution(STRICT.replace(is_observed=True)),
        (Claim(None), Refused(existing, EXPIRED_MS)),
        told(events.Refused(key="fn#1", at_ms=EXPIRED_MS, reason="orphaned", holder=existing.holder)),
    )

    error = rejection(outcome, IdempotencyOrphanedError)
    assert f"its lease ended at {ended}; it is not run again by itself (orphan_takeover=False)" in str(error)
    assert "idempotency key fn#1" in str(error)
    assert "It is not known whether the function ran; a retry does not help." in str(error)
    assert str(error).endswith(f"store.release_orphan('fn#1', owner_token='{existing.owner_token}')")
    assert ("Held by request request-theirs." in str(error)) is bool(existing.holder)
    assert error.record is existing


# A request that is too old


REFUSED_AS_TOO_OLD = (
    "The request of idempotency key fn#1 was issued longer ago than a result is kept (expires_after_seconds=3600), and it has no "
    "result. It was not run, because it may have run before. Find out whether its effect happened; if not, send it again with a "
    "new time of issue. A retry does not help."
)


@pytest.mark.parametrize(("existing", "holder"), [(None, ""), (DONE, "request-theirs")], ids=["absent", "expired"])
def test_a_request_that_is_too_old_is_refused_without_its_result_and_not_claimed_again(
    existing: DataRecord | None, holder: str
) -> None:
    outcome = play(
        execution(LATE.replace(is_observed=True)),
        (Claim(None), Refused(existing, EXPIRED_MS)),
        told(events.Refused(key="fn#1", at_ms=EXPIRED_MS, reason="request too old", holder=holder)),
    )

    assert str(rejection(outcome, IdempotencyRequestTooOldError)) == REFUSED_AS_TOO_OLD
    outcome = play(execution(LATE), (Claim(None), Refused(existing, EXPIRED_MS)))
    assert isinstance(rejection(outcome, IdempotencyRequestTooOldError), IdempotencyValidationError)


def test_a_request_that_is_too_old_is_answered_by_the_result_that_is_there() -> None:
    assert play(execution(LATE), (Claim(None), Refused(DONE, NOW_MS))) == Replayed(None, DONE)
    rejection(play(execution(LATE), (Claim(None), Refused(RUNNING, NOW_MS))), IdempotencyAlreadyInProgressError)


def test_a_request_that_is_too_old_takes_an_orphan_over() -> None:
    outcome = play(
        execution(LATE),
        (Claim(None), Refused(RUNNING, LEASE_END_MS + 1)),
        (Claim(RUNNING), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
    )

    assert outcome == Executed("value", COMPLETED)


@pytest.mark.parametrize("found", [None, DONE], ids=["vanished", "completed and expired"])
def test_a_request_that_is_too_old_is_refused_if_the_orphan_is_no_longer_there(found: DataRecord | None) -> None:
    outcome = play(
        execution(LATE), (Claim(None), Refused(RUNNING, LEASE_END_MS + 1)), (Claim(RUNNING), Refused(found, EXPIRED_MS))
    )

    rejection(outcome, IdempotencyRequestTooOldError)


def test_a_request_that_becomes_too_old_while_it_waits_is_refused_once_the_key_is_free() -> None:
    waiting = PLAN.replace(wait_until_ms=NOW_MS + 20_000, wait_ms=20_000, fresh_until_ms=NOW_MS + 10_000)
    outcome = play(
        execution(waiting),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 20_000), Slept(9_000)),
        (Fetch(), Found(RUNNING, NOW_MS + 9_000)),
        (Wait(1, 11_000), Slept(1_001)),
        (Fetch(), Found(None, NOW_MS + 10_001)),
    )

    rejection(outcome, IdempotencyRequestTooOldError)


def test_a_result_that_this_process_remembers_is_replayed_to_a_request_that_is_too_old() -> None:
    assert play(execution(LATE, Refused(DONE, NOW_MS, from_cache=True))) == Replayed(None, DONE)


@pytest.mark.parametrize("stored", [None, DONE.replace(expiry_timestamp=2 * EXPIRY_S, generation=5)], ids=["gone", "a later one"])
def test_a_remembered_result_that_has_expired_does_not_decide_for_the_store(stored: DataRecord | None) -> None:
    outcome = play(execution(LATE, Refused(DONE, EXPIRED_MS, from_cache=True)), (Claim(DONE), Refused(stored, EXPIRED_MS)))

    if stored is None:
        rejection(outcome, IdempotencyRequestTooOldError)
    else:
        assert outcome == Replayed(None, stored)


# Claiming again


@pytest.mark.parametrize("aged", [None, RUNNING, DONE], ids=["vanished", "orphan", "expired"])
def test_a_record_that_aged_between_refusal_and_judgement_is_claimed_again(aged: DataRecord | None) -> None:
    outcome = play(
        execution(PLAN),
        (Claim(None), Refused(aged, EXPIRED_MS)),
        (Claim(aged), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
    )

    assert outcome == Executed("value", COMPLETED)


def test_each_claim_names_the_record_that_was_seen_last() -> None:
    steps = execution(PLAN)

    assert steps.send(None) == Claim(None)
    assert steps.send(Refused(RUNNING, EXPIRED_MS)) == Claim(RUNNING)
    assert steps.send(Refused(None, EXPIRED_MS)) == Claim(None)


def test_a_store_that_contradicts_itself_is_not_asked_a_fourth_time() -> None:
    outcome = play(
        execution(OBSERVED),
        *[(Claim(DONE if number else None), Refused(DONE, EXPIRED_MS)) for number in range(MAX_CLAIMS)],
        told(events.Refused(key="fn#1", at_ms=EXPIRED_MS, reason="inconsistent state", holder="")),
    )

    error = rejection(outcome, IdempotencyInconsistentStateError)
    assert MAX_CLAIMS == 3
    assert str(error) == (
        "The store refused idempotency key fn#1 3 times and showed it free each time: do the clocks agree? "
        "The function was not run; retry the call."
    )


def test_the_third_claim_may_still_be_granted() -> None:
    outcome = play(
        execution(PLAN),
        (Claim(None), Refused(None, NOW_MS)),
        (Claim(None), Refused(None, NOW_MS)),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
    )

    assert outcome == Executed("value", COMPLETED)


def test_a_cached_result_costs_no_claim() -> None:
    outcome = play(
        execution(PLAN, Refused(DONE, EXPIRED_MS, from_cache=True)),
        *[(Claim(DONE), Refused(DONE, EXPIRED_MS))] * MAX_CLAIMS,
    )

    rejection(outcome, IdempotencyInconsistentStateError)


# Waiting

UNTIL_MS = NOW_MS + 5_000
WAITING = PLAN.replace(wait_until_ms=UNTIL_MS, wait_ms=5_000)


@pytest.mark.parametrize(
    ("now_ms", "first"), [(UNTIL_MS - 1, Wait(0, 1)), (NOW_MS, Wait(0, 5_000))], ids=["last millisecond", "from the start"]
)
def test_a_refused_call_waits_while_there_is_time(now_ms: int, first: Wait) -> None:
    steps = execution(WAITING)
    steps.send(None)

    assert steps.send(Refused(RUNNING, now_ms)) == first


@pytest.mark.parametrize("now_ms", [UNTIL_MS, UNTIL_MS + 1])
def test_a_call_without_time_to_wait_is_refused_at_once(now_ms: int) -> None:
    rejection(play(execution(WAITING), (Claim(None), Refused(RUNNING, now_ms))), IdempotencyAlreadyInProgressError)


def test_a_call_that_waits_reads_until_it_finds_the_result() -> None:
    outcome = play(
        execution(WAITING.replace(is_observed=True)),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(RUNNING, NOW_MS + 40)),
        (Wait(1, 4_960), Slept(40)),
        (Fetch(), Found(DONE, NOW_MS + 140)),
        told(events.Waited(key="fn#1", at_ms=NOW_MS + 140, waited_ms=140)),
        told(events.Replayed(key="fn#1", at_ms=NOW_MS + 140, source="store", holder="request-theirs")),
    )

    assert outcome == Replayed(None, DONE)


def test_a_call_that_waits_in_vain_is_refused_when_its_time_is_up() -> None:
    later = RUNNING.replace(holder="request-third")

    outcome = play(
        execution(WAITING.replace(is_observed=True)),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(RUNNING, UNTIL_MS - 1)),
        (Wait(1, 1), Slept(1)),
        (Fetch(), Found(later, UNTIL_MS)),
        told(events.Waited(key="fn#1", at_ms=UNTIL_MS, waited_ms=5_000)),
        told(events.Refused(key="fn#1", at_ms=UNTIL_MS, reason="in progress", holder="request-third")),
    )

    assert rejection(outcome, IdempotencyAlreadyInProgressError).record is later


def test_a_result_found_at_the_very_end_of_the_time_counts() -> None:
    outcome = play(
        execution(WAITING),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(DONE, UNTIL_MS + 300)),
    )

    assert outcome == Replayed(None, DONE)


@pytest.mark.parametrize("step_ms", [0, -3_600_000], ids=["stands still", "is set back"])
def test_what_was_slept_counts_where_the_clock_does_not_move_on(step_ms: int) -> None:
    """Under a frozen clock a wait would never end, and under one that was set back an hour it would last an hour more."""
    now_ms = NOW_MS + step_ms
    outcome = play(
        execution(WAITING),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(3_000.9)),
        (Fetch(), Found(RUNNING, now_ms)),
        (Wait(1, 2_000), Slept(1_999)),
        (Fetch(), Found(RUNNING, now_ms)),
        (Wait(2, 1), Slept(1)),
        (Fetch(), Found(RUNNING, now_ms)),
    )

    rejection(outcome, IdempotencyAlreadyInProgressError)


def test_what_was_slept_before_the_key_was_free_for_a_moment_counts_too() -> None:
    outcome = play(
        execution(WAITING),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(4_000)),
        (Fetch(), Found(None, NOW_MS)),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 1_000), Slept(1_000)),
        (Fetch(), Found(RUNNING, NOW_MS)),
    )

    rejection(outcome, IdempotencyAlreadyInProgressError)


@pytest.mark.parametrize(
    ("found", "now_ms"),
    [(None, NOW_MS + 50), (RUNNING.replace(in_progress_expiry_timestamp=NOW_MS), NOW_MS + 1)],
    ids=["released", "orphaned"],
)
def test_when_the_other_attempt_failed_or_died_its_key_is_claimed(found: DataRecord | None, now_ms: int) -> None:
    outcome = play(
        execution(WAITING),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(found, now_ms)),
        (Claim(found), Granted(GRANTED, now_ms)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), STORED),
    )

    assert outcome == Executed("value", COMPLETED)


def test_of_many_that_wait_those_who_lose_the_next_claim_wait_on() -> None:
    """Losing a claim after a wait is no contradiction of the store, however often it happens."""
    rounds: list[tuple[Effect, Reply]] = []
    for number in range(5):
        now_ms = NOW_MS + 100 * number
        rounds += [
            (Claim(None), Refused(RUNNING, now_ms)),
            (Wait(0, UNTIL_MS - now_ms), Slept(40)),
            (Fetch(), Found(None, now_ms + 50)),
        ]

    outcome = play(execution(WAITING), *rounds, (Claim(None), Refused(DONE, NOW_MS + 900)))

    assert outcome == Replayed(None, DONE)


@pytest.mark.parametrize(
    ("plan", "found", "kind"),
    [
        (WAITING.replace(payload_hash="hash"), DONE.replace(payload_hash="other"), IdempotencyValidationError),
        (WAITING.replace(takes_over_orphans=False), RUNNING.replace(in_progress_expiry_timestamp=0), IdempotencyOrphanedError),
        (WAITING, DONE.replace(result_kept=False), IdempotencyResultNotKeptError),
    ],
    ids=["other payload", "orphaned", "not kept"],
)
def test_waiting_ends_with_whatever_ends_a_call(plan: Plan, found: DataRecord, kind: type[BaseError]) -> None:
    refusing = RUNNING.replace(payload_hash=plan.payload_hash)

    outcome = play(
        execution(plan),
        (Claim(None), Refused(refusing, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(found, NOW_MS + 50)),
    )

    rejection(outcome, kind)


@pytest.mark.parametrize(
    ("plan", "existing", "kind"),
    [
        (HASHED.replace(wait_until_ms=UNTIL_MS, wait_ms=5_000), RUNNING, IdempotencyValidationError),
        (WAITING.replace(takes_over_orphans=False), RUNNING.replace(in_progress_expiry_timestamp=0), IdempotencyOrphanedError),
    ],
    ids=["other payload", "orphaned"],
)
def test_what_no_waiting_can_change_is_not_waited_for(plan: Plan, existing: DataRecord, kind: type[BaseError]) -> None:
    rejection(play(execution(plan), (Claim(None), Refused(existing, NOW_MS))), kind)


# The lease was lost


@pytest.mark.parametrize("fetched", [False, True], ids=["shown by the refusal", "fetched"])
def test_a_late_success_gives_its_caller_the_winners_result(fetched: bool) -> None:
    found: list[tuple[Effect, Reply]] = [(Fetch(has_run=True), Found(DONE, NOW_MS + 900))] if fetched else []
    at_ms = NOW_MS + 900 if fetched else NOW_MS + 600

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), Fenced(None if fetched else DONE, NOW_MS + 600)),
        *found,
        told(events.LeaseLost(key="fn#1", at_ms=at_ms, generation=3, winner_holder="request-theirs")),
    )

    assert outcome == Replayed(None, DONE)


@pytest.mark.parametrize(
    ("plan", "winner", "now_ms"),
    [
        (PLAN, RUNNING, NOW_MS),
        (PLAN, RUNNING, LEASE_END_MS + 1),
        (PLAN, DONE, EXPIRED_MS),
        (PLAN, DONE.replace(result_kept=False), NOW_MS),
        (HASHED, DONE.replace(payload_hash="other"), NOW_MS),
        (STRICT, RUNNING, LEASE_END_MS + 1),
        (RESUMING, RUNNING, NOW_MS),
    ],
    ids=["running", "orphaned", "expired", "not kept", "other payload", "orphaned for good", "running, of a resumed execution"],
)
def test_a_late_success_without_a_winners_result_to_give_is_an_error(plan: Plan, winner: DataRecord, now_ms: int) -> None:
    granted = GRANTED.replace(payload_hash=plan.payload_hash)
    done = COMPLETED.replace(payload_hash=plan.payload_hash)

    outcome = play(
        execution(plan),
        (Claim(None), Granted(granted, NOW_MS)),
        (Run(granted), RETURNED),
        (Complete(done), Fenced(winner, now_ms)),
    )

    error = rejection(outcome, IdempotencyLeaseLostError)
    assert error.record is winner
    assert str(error) == (
        "The function ran, but its lease had ended and another attempt owns idempotency key fn#1. "
        "Retry the call to get that attempt's result. Held by request request-theirs."
    )


def test_a_late_success_whose_winner_has_vanished_is_an_error_without_a_record() -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), Fenced(None, NOW_MS + 600)),
        (Fetch(has_run=True), Found(None, NOW_MS + 700)),
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 700, generation=3, winner_holder="")),
    )

    assert rejection(outcome, IdempotencyLeaseLostError).record is None


# The result is packed: compressed, or kept elsewhere

PACKED = DONE.replace(response_data="", packed_result=b"packed")
GONE = IdempotencyResultNotKeptError("its result is gone")
DOWN = IdempotencyPersistenceLayerError("Failed to load the stored result", "reset")
DOWN.__cause__ = OSError("reset")


@pytest.mark.parametrize("refused", [Refused(PACKED, NOW_MS), Refused(PACKED.replace(payload_hash="hash"), NOW_MS)])
def test_a_packed_result_is_loaded_before_it_is_replayed_and_told(refused: Refused) -> None:
    plan = OBSERVED.replace(payload_hash=refused.existing.payload_hash if refused.existing else "")

    outcome = play(
        execution(plan),
        (Claim(None), refused),
        (Load(refused.existing), Loaded(DONE)),  # type: ignore[arg-type]
        told(events.Replayed(key="fn#1", at_ms=NOW_MS, source="store", holder="request-theirs")),
    )

    assert outcome == Replayed(None, DONE)


def test_an_unobserved_replay_of_a_packed_result_asks_for_nothing_but_that() -> None:
    outcome = play(execution(PLAN), (Claim(None), Refused(PACKED, NOW_MS)), (Load(PACKED), Loaded(DONE)))

    assert outcome == Replayed(None, DONE)


def test_a_packed_result_that_a_waiting_call_finds_is_loaded() -> None:
    outcome = play(
        execution(WAITING),
        (Claim(None), Refused(RUNNING, NOW_MS)),
        (Wait(0, 5_000), Slept(40)),
        (Fetch(), Found(PACKED, NOW_MS + 50)),
        (Load(PACKED), Loaded(DONE)),
    )

    assert outcome == Replayed(None, DONE)


@pytest.mark.parametrize(
    ("plan", "existing", "kind"),
    [
        (HASHED, PACKED.replace(payload_hash="other"), IdempotencyValidationError),
        (PLAN, PACKED.replace(result_kept=False), IdempotencyResultNotKeptError),
    ],
    ids=["other payload", "not kept"],
)
def test_a_result_that_is_not_to_be_given_away_is_not_loaded(plan: Plan, existing: DataRecord, kind: type[BaseError]) -> None:
    rejection(play(execution(plan), (Claim(None), Refused(existing, NOW_MS))), kind)


@pytest.mark.parametrize("error", [GONE, DOWN], ids=["gone", "store failed"])
def test_a_result_that_cannot_be_loaded_is_its_error_with_its_cause_and_never_a_second_run(error: BaseError) -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Refused(PACKED, NOW_MS)),
        (Load(PACKED), Unloadable(error)),
        told(events.Refused(key="fn#1", at_ms=NOW_MS, reason="result not loaded", holder="request-theirs")),
    )

    assert outcome == Rejected(error, error.__cause__)


def test_an_unobserved_call_whose_result_cannot_be_loaded_is_rejected_without_a_word() -> None:
    outcome = play(execution(PLAN), (Claim(None), Refused(PACKED, NOW_MS)), (Load(PACKED), Unloadable(GONE)))

    assert outcome == Rejected(GONE, None)


def test_the_winners_packed_result_is_loaded_for_a_late_success() -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), Fenced(PACKED, NOW_MS + 600)),
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 600, generation=3, winner_holder="request-theirs")),
        (Load(PACKED), Loaded(DONE)),
    )

    assert outcome == Replayed(None, DONE)


@pytest.mark.parametrize("error", [GONE, DOWN], ids=["gone", "store failed"])
def test_a_late_success_whose_winners_result_cannot_be_loaded_is_told_of_the_lost_lease(error: BaseError) -> None:
    """Its own function ran: that is what its caller must hear."""
    outcome = play(
        execution(PLAN),
        GRANT,
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), Fenced(PACKED, NOW_MS)),
        (Load(PACKED), Unloadable(error)),
    )

    assert rejection(outcome, IdempotencyLeaseLostError).record is PACKED


# The function has writes of its own

#: The state machine only hands it on.
WRITES: Any = "the transaction"
RETURNED_WITH_WRITES = Returned("value", '"value"', NOW_MS + 500, WRITES)
COMMIT = Commit(COMPLETED, WRITES)
OUR_RESULT = COMPLETED.replace(deadline_ms=None)
NOTHING_WRITTEN = "The claim was released: nothing of the transaction was written."
ENDED = Granted(GRANTED, NOW_MS), RETURNED_WITH_WRITES


def canceled(*codes: str | None) -> IdempotencyTransactionCanceledError:
    reasons = tuple(CancellationReason("put", "orders", code) for code in codes)
    error = IdempotencyTransactionCanceledError("canceled", reasons=reasons)
    error.__cause__ = OSError("the service's")
    return error


def unanswered() -> IdempotencyPersistenceLayerError:
    return IdempotencyPersistenceLayerError("Failed to commit the transaction", "timeout")


def withdrawing(error: BaseError, *reasons: str) -> list[tuple[Effect, Reply]]:
    """An observed call up to the release of a claim whose transaction is not known to be written."""
    return [
        (Claim(None), ENDED[0]),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), ENDED[1]),
        (COMMIT, Uncommitted(error, NOW_MS + 600)),
        told(events.Uncommitted(key="fn#1", at_ms=NOW_MS + 600, generation=3, reasons=reasons)),
    ]


def test_a_result_with_writes_is_committed_together_with_them() -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), ENDED[0]),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), ENDED[1]),
        (COMMIT, STORED),
        told(events.Completed(key="fn#1", at_ms=NOW_MS + 500, generation=3)),
    )

    assert outcome == Executed("value", COMPLETED)


def test_an_unobserved_commit_asks_for_nothing_else() -> None:
    outcome = play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, STORED))

    assert outcome == Executed("value", COMPLETED)


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (canceled(None, "ConditionalCheckFailed", "TransactionConflict"), ("ConditionalCheckFailed", "TransactionConflict")),
        (canceled(), ()),
        (unanswered(), ()),
    ],
    ids=["canceled", "not sent", "unanswered"],
)
def test_what_is_not_known_to_be_committed_is_withdrawn_and_its_error_is_the_callers(
    error: BaseError, reasons: tuple[str, ...]
) -> None:
    outcome = play(
        execution(OBSERVED),
        *withdrawing(error, *reasons),
        (Release(GRANTED), STORED),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 600, generation=3)),
    )

    assert outcome == Rejected(error, error.__cause__)
    assert NOTHING_WRITTEN in str(error)
    assert getattr(error, "nothing_written", True)


@pytest.mark.parametrize("error", [canceled("ConditionalCheckFailed"), unanswered()], ids=["canceled", "unanswered"])
def test_a_record_that_is_gone_proves_nothing_about_a_commit_without_an_answer(error: BaseError) -> None:
    """The commit may have been applied, and its completed record deleted by the table's TTL."""
    outcome = play(
        execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Uncommitted(error, NOW_MS)), (Release(GRANTED), NO_RECORD)
    )

    assert outcome == Rejected(error, error.__cause__)
    assert "nothing of the transaction was written" not in str(error)
    assert "The function ran. Whether the transaction was written is not known" in str(error)
    assert (error.idempotency_key, error.function_ran, error.is_retryable) == ("fn#1", True, False)
    assert not getattr(error, "nothing_written", False)


def test_a_record_that_is_gone_takes_nothing_from_an_answer_that_nothing_was_written() -> None:
    error = canceled("ConditionalCheckFailed")
    error.nothing_written = True

    play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Uncommitted(error, NOW_MS)), (Release(GRANTED), NO_RECORD))

    assert NOTHING_WRITTEN in str(error)


#: The last and the first millisecond at which the completed record could have been deleted, or claimed, by a machine whose clock
#: is ahead.
REMEMBERED_MS = COMPLETED.expiry_timestamp * 1000 - CLOCK_DIFFERENCE_MS - 1


@pytest.mark.parametrize(("now_ms", "is_proof"), [(REMEMBERED_MS, True), (REMEMBERED_MS + 1, False)])
def test_a_release_proves_nothing_once_a_completed_record_could_have_expired(now_ms: int, is_proof: bool) -> None:
    error = unanswered()

    play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Uncommitted(error, now_ms)), (Release(GRANTED), STORED))

    assert (NOTHING_WRITTEN in str(error)) is is_proof
    assert ("Whether the transaction was written is not known" in str(error)) is not is_proof


@pytest.mark.parametrize("withdrawn", [False, True], ids=["at the commit", "at the release"])
@pytest.mark.parametrize(("now_ms", "is_proof"), [(REMEMBERED_MS, True), (REMEMBERED_MS + 1, False)])
def test_another_attempts_record_proves_nothing_once_ours_could_have_expired_before(
    withdrawn: bool, now_ms: int, is_proof: bool
) -> None:
    taken = RUNNING.replace(in_progress_expiry_timestamp=now_ms + 1_000, expiry_timestamp=now_ms // 1000 + 60)
    fenced = Fenced(taken, now_ms)
    ways = {False: [(COMMIT, fenced)], True: [(COMMIT, Uncommitted(unanswered(), NOW_MS)), (Release(GRANTED), fenced)]}

    outcome = play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), *ways[withdrawn])

    error = rejection(outcome, IdempotencyLeaseLostError)
    assert ("Nothing of its transaction was written" in str(error)) is is_proof
    assert ("Whether its transaction was written is not known" in str(error)) is not is_proof
    assert error.is_retryable


def test_another_regions_record_proves_nothing_about_ours_which_it_may_have_replaced() -> None:
    granted = GRANTED.replace(region="eu-west-1")
    winner = RUNNING.replace(region="us-east-1")
    commit = Commit(PLAN.completed(granted, '"value"', NOW_MS + 500), WRITES)

    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(granted, NOW_MS)),
        (Run(granted), ENDED[1]),
        (commit, Fenced(winner, NOW_MS + 600)),
    )

    assert "Whether its transaction was written is not known" in str(rejection(outcome, IdempotencyLeaseLostError))


def test_an_answer_that_nothing_was_written_holds_whatever_the_record_says() -> None:
    error = canceled("ConditionalCheckFailed")
    error.nothing_written = True
    fenced = Fenced(RUNNING, REMEMBERED_MS + 1)

    outcome = play(
        execution(PLAN.replace(takes_over_orphans=False)),
        GRANT,
        (Run(GRANTED), ENDED[1]),
        (COMMIT, Uncommitted(error, NOW_MS)),
        (Release(GRANTED), fenced),
    )

    assert "Nothing of its transaction was written" in str(rejection(outcome, IdempotencyLeaseLostError))


def test_a_failed_withdrawal_of_a_canceled_transaction_says_that_nothing_was_written() -> None:
    error = canceled("ConditionalCheckFailed")
    error.nothing_written = True

    play(
        execution(PLAN),
        GRANT,
        (Run(GRANTED), ENDED[1]),
        (COMMIT, Uncommitted(error, NOW_MS)),
        (Release(GRANTED), Unanswered(OSError("timeout"), NOW_MS)),
    )

    assert "could not be released: timeout. Nothing of the transaction was written. A retry is refused until" in str(error)


def test_an_unobserved_withdrawal_asks_for_nothing_but_the_release() -> None:
    error = canceled()

    outcome = play(
        execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Uncommitted(error, NOW_MS)), (Release(GRANTED), STORED)
    )

    assert outcome == Rejected(error, error.__cause__)


def test_a_withdrawal_that_is_not_answered_leaves_it_to_the_lease_and_says_so() -> None:
    error = unanswered()

    outcome = play(
        execution(OBSERVED),
        *withdrawing(error),
        (Release(GRANTED), Unanswered(OSError("timeout"), NOW_MS + 700)),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 700, generation=3, error="OSError")),
    )

    assert outcome == Rejected(error, None)
    assert str(error) == (
        "Failed to commit the transaction - (timeout). The function ran. Besides, the claim of idempotency key fn#1 could not be "
        "released: timeout. Whether the transaction was written is not known. If it was, a retry returns the stored result; if "
        "not, it is refused until the lease ends, and then runs the function again."
    )


@pytest.mark.parametrize("error", [unanswered(), canceled("ConditionalCheckFailed")], ids=["unanswered", "canceled"])
def test_a_release_that_meets_our_own_result_means_that_the_transaction_was_committed(error: BaseError) -> None:
    reasons = [reason.code for reason in getattr(error, "reasons", ())]

    outcome = play(
        execution(OBSERVED),
        *withdrawing(error, *reasons),
        (Release(GRANTED), Fenced(OUR_RESULT, NOW_MS + 700)),
        told(events.Completed(key="fn#1", at_ms=NOW_MS + 700, generation=3)),
    )

    assert outcome == Executed("value", COMPLETED)


def test_a_commit_that_is_refused_by_our_own_result_was_made_by_an_earlier_try() -> None:
    outcome = play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Fenced(OUR_RESULT, NOW_MS + 700)))

    assert outcome == Executed("value", COMPLETED)


@pytest.mark.parametrize("withdrawn", [False, True], ids=["at the commit", "at the release"])
@pytest.mark.parametrize(
    ("stored", "script"),
    [
        (OUR_RESULT, []),
        (OUR_RESULT.replace(packed_result=b"packed"), [(Load(OUR_RESULT.replace(packed_result=b"packed")), Loaded(OUR_RESULT))]),
    ],
    ids=["plain", "packed"],
)
def test_an_execution_that_outlives_its_call_gives_what_is_stored_perhaps_by_another_process(
    withdrawn: bool, stored: DataRecord, script: list[tuple[Effect, Reply]]
) -> None:
    fenced = Fenced(stored, NOW_MS + 700)
    ways = {False: [(COMMIT, fenced)], True: [(COMMIT, Uncommitted(unanswered(), NOW_MS)), (Release(GRANTED), fenced)]}

    outcome = play(execution(PLAN.replace(outlives_call=True)), GRANT, (Run(GRANTED), ENDED[1]), *ways[withdrawn], *script)

    assert outcome == Replayed(None, OUR_RESULT)


def test_a_stored_result_of_another_process_that_cannot_be_loaded_is_its_error() -> None:
    stored = OUR_RESULT.replace(packed_result=b"packed")

    outcome = play(
        execution(PLAN.replace(outlives_call=True)),
        GRANT,
        (Run(GRANTED), ENDED[1]),
        (COMMIT, Fenced(stored, NOW_MS)),
        (Load(stored), Unloadable(DOWN)),
    )

    assert outcome == Rejected(DOWN, DOWN.__cause__)


@pytest.mark.parametrize("withdrawn", [False, True], ids=["at the commit", "at the release"])
@pytest.mark.parametrize("fetched", [False, True], ids=["shown", "fetched"])
def test_a_commit_that_comes_too_late_gives_its_caller_the_winners_result(withdrawn: bool, fetched: bool) -> None:
    fenced = Fenced(None if fetched else DONE, NOW_MS + 700)
    ways = {False: [(COMMIT, fenced)], True: [(COMMIT, Uncommitted(unanswered(), NOW_MS)), (Release(GRANTED), fenced)]}

    outcome = play(
        execution(PLAN),
        GRANT,
        (Run(GRANTED), ENDED[1]),
        *ways[withdrawn],
        *([(Fetch(has_run=True), Found(DONE, NOW_MS + 800))] if fetched else []),
    )

    assert outcome == Replayed(None, DONE)


LOST = "its lease had ended and another attempt owns idempotency key fn#1"


@pytest.mark.parametrize(
    ("existing", "winner", "says"),
    [
        (
            RUNNING,
            "request-theirs",
            (
                f"The function ran, but {LOST}. Nothing of its transaction was written. Retry the call to get that attempt's "
                "result. Held by request request-theirs."
            ),
        ),
        (
            None,
            "",
            (
                "The function ran, but it no longer holds idempotency key fn#1. Whether its transaction was written is not "
                "known. A retry runs the function again, and may write it a second time"
            ),
        ),
    ],
    ids=["running", "gone"],
)
def test_a_commit_that_comes_too_late_for_a_result_says_what_the_record_proves(
    existing: DataRecord | None, winner: str, says: str
) -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), ENDED[0]),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), ENDED[1]),
        (COMMIT, Fenced(None, NOW_MS + 600)),
        (Fetch(has_run=True), Found(existing, NOW_MS + 700)),
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 700, generation=3, winner_holder=winner)),
    )

    error = rejection(outcome, IdempotencyLeaseLostError)
    assert str(error) == says
    assert error.is_retryable is (existing is not None)
    assert error.record is existing


@pytest.mark.parametrize(
    "existing", [OURS, OUR_RESULT.replace(owner_token="theirs")], ids=["ours, unfinished", "another's result"]
)
def test_only_our_own_completed_record_means_that_our_transaction_was_committed(existing: DataRecord) -> None:
    outcome = play(execution(PLAN), GRANT, (Run(GRANTED), ENDED[1]), (COMMIT, Fenced(existing, NOW_MS + 700)))

    assert not isinstance(outcome, Executed)


def test_a_result_that_cannot_be_serialized_cancels_the_transaction_and_frees_the_key() -> None:
    """Unlike without one: no effect has happened yet, as far as the transaction goes."""
    error = TypeError("a set")

    outcome = play(
        execution(OBSERVED),
        (Claim(None), ENDED[0]),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Unstorable(error, NOW_MS + 500, WRITES)),
        told(events.Uncommitted(key="fn#1", at_ms=NOW_MS + 500, generation=3, reasons=())),
        (Release(GRANTED), STORED),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 500, generation=3)),
    )

    raised = rejection(outcome, IdempotencyTransactionCanceledError)
    assert str(raised) == (
        "The result of idempotency key fn#1 cannot be stored, so its transaction was not sent - (TypeError). The function ran. "
        f"{NOTHING_WRITTEN} A retry runs it again, and does not help before a correction."
    )
    assert outcome == Rejected(raised, error)


def test_our_own_result_cannot_excuse_a_transaction_that_was_never_sent() -> None:
    """Nobody else can have written it, except another process of a durable execution: its result is what stands."""
    outcome = play(
        execution(PLAN),
        GRANT,
        (Run(GRANTED), Unstorable(TypeError("a set"), NOW_MS + 500, WRITES)),
        (Release(GRANTED), Fenced(OUR_RESULT, NOW_MS + 700)),
    )

    assert outcome == Replayed(None, OUR_RESULT)


# Another Region's write

HERE = GRANTED.replace(region="us-east-1")
CONFLICT = events.ReplicationConflict(key="fn#1", at_ms=NOW_MS + 600, region="us-east-1", winner_region="eu-west-1")


@pytest.mark.parametrize(
    ("region", "winner", "conflict"),
    [
        ("us-east-1", DONE.replace(region="eu-west-1"), [CONFLICT]),
        ("us-east-1", RUNNING.replace(region="eu-west-1"), [CONFLICT]),
        ("us-east-1", DONE.replace(region="us-east-1"), []),
        ("us-east-1", DONE, []),  # of another library, or of a version that recorded no Region
        ("", DONE.replace(region="eu-west-1"), []),
        ("", DONE, []),
        ("us-east-1", None, []),
    ],
    ids=[
        "completed there",
        "running there",
        "completed here",
        "nobody knows where",
        "we do not know where",
        "neither",
        "vanished",
    ],
)
@pytest.mark.parametrize("ending", ["success", "failure"])
def test_a_lost_lease_is_a_replication_conflict_if_both_regions_are_known_and_differ(
    region: str, winner: DataRecord | None, conflict: list[events.Event], ending: str
) -> None:
    granted, error = GRANTED.replace(region=region), ValueError("late")
    fenced = Fenced(winner, NOW_MS + 600)
    end: list[tuple[Effect, Reply]] = [(Run(granted), Raised(error, NOW_MS + 500)), (Release(granted), fenced)]
    if ending == "success":
        end = [(Run(granted), RETURNED), (Complete(COMPLETED.replace(region=region)), fenced)]
        end += [] if winner else [(Fetch(has_run=True), Found(None, NOW_MS + 600))]
    holder = winner.holder if winner else ""

    play(
        execution(OBSERVED),
        (Claim(None), Granted(granted, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        *end,
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 600, generation=3, winner_holder=holder)),
        *[told(event) for event in conflict],
    )


def test_a_winner_of_another_region_that_is_only_fetched_is_a_replication_conflict_too() -> None:
    winner = DONE.replace(region="eu-west-1")

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(HERE, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(HERE), RETURNED),
        (Complete(COMPLETED.replace(region="us-east-1")), Fenced(None, NOW_MS + 500)),
        (Fetch(has_run=True), Found(winner, NOW_MS + 600)),
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 600, generation=3, winner_holder="request-theirs")),
        told(CONFLICT),
    )

    assert outcome == Replayed(None, winner)


def test_an_unobserved_conflict_changes_nothing() -> None:
    winner = DONE.replace(region="eu-west-1")

    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(HERE, NOW_MS)),
        (Run(HERE), RETURNED),
        (Complete(COMPLETED.replace(region="us-east-1")), Fenced(winner, NOW_MS + 600)),
    )

    assert outcome == Replayed(None, winner)


# The result cannot be stored


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TypeError("Object of type Secret is not JSON serializable"), " - (TypeError)"),
        (
            IdempotencyResultNotKeptError("The result of idempotency key fn#1 has 409601 bytes"),
            " - (The result of idempotency key fn#1 has 409601 bytes)",
        ),
    ],
)
def test_a_result_that_cannot_be_serialized_completes_the_record_without_it(error: Exception, text: str) -> None:
    """The effect has happened: a released record would be run again."""
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Unstorable(error, NOW_MS + 500)),
        (Complete(NOT_KEPT), STORED),
        told(events.ResultNotKept(key="fn#1", at_ms=NOW_MS + 500, generation=3, reason=type(error).__name__)),
    )

    assert str(rejection(outcome, IdempotencyResultNotKeptError)) == (
        f"The function ran for idempotency key fn#1, but its result could not be stored; it will not be run again{text}. "
        "A retry does not help: it gets this error until the record expires."
    )
    assert isinstance(outcome, Rejected)
    assert outcome.cause is error


def test_a_result_that_the_store_cannot_hold_completes_the_record_without_it() -> None:
    error = IdempotencyResultNotKeptError("too large")

    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), RETURNED),
        (Complete(COMPLETED), Unstorable(error, NOW_MS + 500)),
        (Complete(NOT_KEPT), STORED),
    )

    rejection(outcome, IdempotencyResultNotKeptError)


def test_a_result_not_kept_of_a_lost_lease_gives_the_winners() -> None:
    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), Unstorable(TypeError(), NOW_MS + 500)),
        (Complete(NOT_KEPT), Fenced(DONE, NOW_MS + 600)),
    )

    assert outcome == Replayed(None, DONE)


# The function failed


class SuspendExecution(BaseException):
    """As the durable SDK suspends by a BaseException of its own."""


EXITS: list[BaseException] = [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]


def named(error: BaseException) -> str:
    return str(error) if isinstance(error, BaseExceptionGroup) else repr(error)


class Group(BaseExceptionGroup[BaseException]):
    """A group of its own kind, which is no `Exception` although it may hold nothing else."""


def nested(error: BaseException, depth: int) -> BaseException:
    for _ in range(depth):
        error = BaseExceptionGroup("nested", [ValueError(), error])
    return error


#: What counts as an exit, or as a failure, because of what is in it.
GROUPS: list[BaseException] = [
    *(BaseExceptionGroup("one", [error]) for error in EXITS),
    *(BaseExceptionGroup("mixed", [SuspendExecution(), ValueError(), error]) for error in EXITS),
    nested(KeyboardInterrupt(), 3),
    nested(SystemExit(), 5_000),
    BaseExceptionGroup("suspended inside", [KeyboardInterrupt(), BaseExceptionGroup("inner", [SuspendExecution()])]),
    ExceptionGroup("failures", [ValueError()]),
    Group("failures", [ValueError(), ExceptionGroup("inner", [KeyError()])]),
]
#: What counts as a suspension.
SUSPENSIONS: list[BaseException] = [
    SuspendExecution(),
    BaseException(),
    BaseExceptionGroup("one", [SuspendExecution()]),
    BaseExceptionGroup("with a failure", [ValueError(), SuspendExecution()]),
    nested(SuspendExecution(), 5_000),
]


@pytest.mark.parametrize(
    "error", [ValueError("x"), StopIteration("x"), IdempotencyInconsistentStateError("nested"), *EXITS, *GROUPS], ids=named
)
def test_a_failed_or_interrupted_function_frees_its_key_and_its_error_is_the_callers(error: BaseException) -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Raised(error, NOW_MS + 500)),
        (Release(GRANTED), STORED),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 500, generation=3)),
    )

    assert outcome == Failed(error)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("error", SUSPENSIONS, ids=named)
def test_a_suspended_function_keeps_its_claim(error: BaseException) -> None:
    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Raised(error, NOW_MS + 500)),
    )

    assert outcome == Failed(error)


class ContinuedLaterError(Exception):
    """As a durable execution may suspend by an ordinary exception."""


def test_an_error_by_which_a_plan_suspends_keeps_the_claim_and_every_other_frees_the_key() -> None:
    plan = PLAN.replace(is_suspension=lambda error: isinstance(error, ContinuedLaterError | SystemExit))

    for suspension in (ContinuedLaterError(), SystemExit()):
        assert play(execution(plan), GRANT, (Run(GRANTED), Raised(suspension, NOW_MS))) == Failed(suspension)
    for error in (ValueError(), KeyboardInterrupt()):
        outcome = play(execution(plan), GRANT, (Run(GRANTED), Raised(error, NOW_MS)), (Release(GRANTED), STORED))
        assert outcome == Failed(error)


@pytest.mark.parametrize(("winner", "holder"), [(RUNNING, "request-theirs"), (DONE, "request-theirs"), (None, "")])
def test_a_late_failure_leaves_the_winners_record_alone(winner: DataRecord | None, holder: str) -> None:
    error = ValueError("late")

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Raised(error, NOW_MS + 500)),
        (Release(GRANTED), Fenced(winner, NOW_MS + 600)),
        told(events.LeaseLost(key="fn#1", at_ms=NOW_MS + 600, generation=3, winner_holder=holder)),
    )

    assert outcome == Failed(error)


@pytest.mark.parametrize("error", [ValueError("the function's own"), KeyboardInterrupt()], ids=repr)
def test_a_failed_release_never_replaces_the_functions_own_error_but_is_noted_on_it(error: BaseException) -> None:
    trouble = IdempotencyPersistenceLayerError("Failed to delete record from idempotency store", "reset")

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Raised(error, NOW_MS + 500)),
        (Release(GRANTED), Unanswered(trouble, NOW_MS + 700)),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 700, generation=3, error="IdempotencyPersistenceLayerError")),
    )

    assert outcome == Failed(error)
    besides = "Besides, the claim of idempotency key fn#1 could not be released: "
    assert error.__notes__ == [besides + "Failed to delete record from idempotency store - (reset)"]


def test_an_error_that_takes_no_note_goes_to_the_caller_without_one() -> None:
    @dataclass(frozen=True)
    class DeclinedError(Exception):
        code: int

    declined = DeclinedError(51)

    outcome = play(
        execution(PLAN),
        GRANT,
        (Run(GRANTED), Raised(declined, NOW_MS)),
        (Release(GRANTED), Unanswered(OSError("timeout"), NOW_MS)),
    )

    assert outcome == Failed(declined)
    assert not hasattr(declined, "__notes__")


def test_a_record_that_is_gone_at_the_release_is_a_free_key() -> None:
    error = ValueError("x")

    outcome = play(
        execution(OBSERVED),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        told(events.Claimed(key="fn#1", at_ms=NOW_MS, generation=3)),
        (Run(GRANTED), Raised(error, NOW_MS + 500)),
        (Release(GRANTED), NO_RECORD),
        told(events.Released(key="fn#1", at_ms=NOW_MS + 500, generation=3)),
    )

    assert outcome == Failed(error)


def test_an_unobserved_failure_asks_for_nothing_but_the_release() -> None:
    error = ValueError("x")

    outcome = play(
        execution(PLAN),
        (Claim(None), Granted(GRANTED, NOW_MS)),
        (Run(GRANTED), Raised(error, NOW_MS)),
        (Release(GRANTED), STORED),
    )

    assert outcome == Failed(error)


# A driver that breaks the protocol


RAN = (Run(GRANTED), RETURNED)


@pytest.mark.parametrize(
    ("script", "nonsense"),
    [
        ([], STORED),
        ([GRANT], STORED),
        ([GRANT, RAN], Refused(DONE, NOW_MS)),
        ([GRANT, RAN, (Complete(COMPLETED), Fenced(None, NOW_MS))], STORED),
        ([GRANT, (Run(GRANTED), Unstorable(TypeError(), NOW_MS + 500))], Unstorable(TypeError(), NOW_MS)),
        ([GRANT, (Run(GRANTED), Raised(ValueError(), NOW_MS))], Refused(DONE, NOW_MS)),
        ([(Claim(None), Refused(PACKED, NOW_MS))], STORED),
        ([GRANT, RAN, (Complete(COMPLETED), Fenced(PACKED, NOW_MS))], Found(DONE, NOW_MS)),
        ([GRANT, (Run(GRANTED), RETURNED_WITH_WRITES)], Found(DONE, NOW_MS)),
        ([GRANT, (Run(GRANTED), Unstorable(TypeError(), NOW_MS, WRITES))], Found(DONE, NOW_MS)),
    ],
    ids=["claim", "run", "complete", "fetch", "not kept", "release", "load", "load the winner's", "commit", "withdraw"],
)
def test_a_reply_that_does_not_belong_to_the_effect_is_a_mistake_of_the_driver(
    script: list[tuple[Effect, Reply]], nonsense: Reply
) -> None:
    steps = execution(PLAN)
    reply: Reply = None
    for effect, answer in script:
        assert steps.send(reply) == effect
        reply = answer
    steps.send(reply)

    with pytest.raises(AssertionError):
        steps.send(nonsense)
