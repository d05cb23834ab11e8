"""The state machine of an idempotent call.

Rule 1: whatever decides how a call goes on is here, and nothing here touches the world.

`execution(plan)` is a generator: it yields an *effect*, what it wants done, and is sent a *reply*, what happened.  It returns an
*outcome*.  A driver performs the effects; a test can play the driver by hand.

    claim the key ── granted ──> run ── returned ──> complete ──> Executed
        │                         │        └── with a transaction ──> commit ──> Executed, or release ──> Rejected
        │                         └── raised ────> release ───> Failed
        └── refused ──> judge ──> Replayed, Rejected, or wait and claim again

The claim of a request that is too old is granted only in the place of an orphan; until one was seen, the store only reads.

`usual(plan, performer)` goes the ways of almost every call in one piece, and hands over to `execution` where a call leaves them.

Replies are values and never thrown in: an exception thrown into a generator becomes a RuntimeError when it is a user's
StopIteration, and values make the table testable.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, TypeVar

from idempotency import events
from persistence._values import Value
from persistence.datarecord import COMPLETED, INPROGRESS, DataRecord
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
    own_text,
)
from persistence.rules import (
    is_claimable,
    is_completed,
    is_held_by,
    is_in_progress,
    is_orphaned,
    is_too_old,
)

if TYPE_CHECKING:
    from typing import Protocol

    from persistence.transaction import Transaction

    class Performer(Protocol):
        """Performs the effects of the usual ways."""

        def claim(self, supersedes: DataRecord | None) -> Granted | Refused:
            """Perform `Claim`."""

        def run(self, granted: DataRecord) -> Reply:
            """Perform `Run`."""

        def complete(self, record: DataRecord) -> Reply:
            """Perform `Complete`."""


#: A claim is repeated when the refusing record aged out before it was judged.  A third time in one call means that the clocks
#: disagree or the store contradicts itself, and the caller should hear of it.
MAX_CLAIMS: Final = 3

#: How far the clocks of two machines may differ, the time of a release included, before a record stops proving anything.
CLOCK_DIFFERENCE_MS: Final = 60_000

#: The expiry of a claim that no other attempt may take over, in seconds: a table's TTL must not free the key either.
NEVER_SECONDS: Final = 10 * 365 * 24 * 60 * 60


def _is_foreign(error: BaseException) -> bool:
    """Whether the error is neither a failure nor an exit: the durable SDK suspends a run by a BaseException of its own.

    A group is what is in it.  One exit in it decides: the function did not finish, and will not.
    """
    if isinstance(error, Exception):
        return False
    if not isinstance(error, BaseExceptionGroup):
        return not is_exit(error)
    errors = _ungrouped(error)
    return not any(map(is_exit, errors)) and any(not isinstance(each, Exception) for each in errors)


def is_exit(error: BaseException) -> bool:
    """Whether the error ends the thread, task or process: the function did not finish and will not."""
    if isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)):
        return True
    from asyncio import (
        CancelledError,  # here: whoever raised one has imported it already
    )

    return isinstance(error, CancelledError)


def _ungrouped(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors in the group, and in the groups in it, however deep they are nested."""
    errors: list[BaseException] = []
    groups = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, BaseExceptionGroup):
                groups.append(error)
            else:
                errors.append(error)
    return errors


class Plan(Value):
    """Everything that is fixed for one call.

    Attributes:
        key: The idempotency key.
        payload_hash: Digest of the validated payload, "" without payload validation.
        owner_token: This attempt's name.
        lease_ms: The length of a lease that is renewed while the function runs; None if the lease is not renewed.
        lease_end_ms: When a lease that is not renewed ends, margin included; None, without a renewed lease either, for a store
            that knows no leases: the key is then held until the claim's expiry.
        lease_margin_ms: How much later than this attempt counts on a renewed lease ends in its record, so that an attempt whose
            clock is ahead by less does not take it over too early.
        deadline_ms: When the caller is stopped; None if unknown.
        expires_after_ms: How long the result is replayed.
        wait_until_ms: Until when another attempt's result is waited for; None to reject at once.
        wait_ms: How long the pauses of that may be together, because a clock may stand still, or be set back; None as above.
        takes_over_orphans: Whether an orphan may be run again.
        resumes: Whether an INPROGRESS record, whoever wrote it, is this very execution's (a durable execution's replay).
        holder: Request id of the invocation, "" if unknown.
        key_expression: The JMESPath of the key, for messages.
        is_observed: Whether events are wanted.
        outlives_call: Whether the attempt goes on after this call, as a durable execution does: the claim may be older than it.
        is_suspension: Tells the errors that end the run without ending the attempt, which then keeps its claim.
        fresh_until_ms: When the request becomes too old: from then on the key is not claimed unless an orphan holds it.  None if
            it is not known when the request was issued.
        takes_over_late: Whether the store can take an orphan over for a request that is too old, and only an orphan.
    """

    __slots__ = __match_args__ = (
        "key",
        "payload_hash",
        "owner_token",
        "lease_ms",
        "lease_end_ms",
        "lease_margin_ms",
        "deadline_ms",
        "expires_after_ms",
        "wait_until_ms",
        "wait_ms",
        "takes_over_orphans",
        "resumes",
        "holder",
        "key_expression",
        "is_observed",
        "outlives_call",
        "is_suspension",
        "fresh_until_ms",
        "takes_over_late",
    )

    def __init__(
        self,
        key: str,
        payload_hash: str,
        owner_token: str,
        lease_ms: int | None,
        lease_end_ms: int | None,
        lease_margin_ms: int,
        deadline_ms: int | None,
        expires_after_ms: int,
        wait_until_ms: int | None,
        wait_ms: int | None,
        takes_over_orphans: bool,
        resumes: bool,
        holder: str,
        key_expression: str,
        is_observed: bool,
        outlives_call: bool = False,
        is_suspension: Callable[[BaseException], bool] = _is_foreign,
        fresh_until_ms: int | None = None,
        takes_over_late: bool = True,
    ) -> None:
        self.key = key
        self.payload_hash = payload_hash
        self.owner_token = owner_token
        self.lease_ms = lease_ms
        self.lease_end_ms = lease_end_ms
        self.lease_margin_ms = lease_margin_ms
        self.deadline_ms = deadline_ms
        self.expires_after_ms = expires_after_ms
        self.wait_until_ms = wait_until_ms
        self.wait_ms = wait_ms
        self.takes_over_orphans = takes_over_orphans
        self.resumes = resumes
        self.holder = holder
        self.key_expression = key_expression
        self.is_observed = is_observed
        self.outlives_call = outlives_call
        self.is_suspension = is_suspension
        self.fresh_until_ms = fresh_until_ms
        self.takes_over_late = takes_over_late

    def replace(self, **changes: Any) -> Plan:
        """A copy with *changes*."""
        return Plan(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    def offer(self, supersedes: DataRecord | None, now_ms: int) -> DataRecord:
        """The record that claims the key from *now_ms* on, superseding the record that was seen to be claimable, if any."""
        lease_end_ms = self.lease_end_ms if self.lease_ms is None else now_ms + self.lease_ms + self.lease_margin_ms
        fields = {
            "idempotency_key": self.key,
            "stored_status": INPROGRESS,
            "expiry_timestamp": self._claim_expiry(now_ms, lease_end_ms),
            "in_progress_expiry_timestamp": lease_end_ms,
            "payload_hash": self.payload_hash,
            "owner_token": self.owner_token,
            "generation": 1,
            "holder": self.holder,
            "deadline_ms": self.deadline_ms,
            "takes_over_orphans": self.takes_over_orphans,
        }
        if supersedes is not None:
            fields["generation"] = supersedes.generation + 1
            fields["supersedes"] = supersedes.generation
            fields["took_over"] = is_in_progress(supersedes)
        if self.fresh_until_ms is not None:
            fields["fresh_until_ms"] = self.fresh_until_ms
        return DataRecord.of(fields)

    def renewed(self, granted: DataRecord, now_ms: int) -> DataRecord:
        """The claim with a lease counted from *now_ms*."""
        lease_end_ms = self.lease_end_ms if self.lease_ms is None else now_ms + self.lease_ms + self.lease_margin_ms
        expiry = self._claim_expiry(now_ms, lease_end_ms)
        return granted.replace(in_progress_expiry_timestamp=lease_end_ms, expiry_timestamp=expiry)

    def believed_end_ms(self, record: DataRecord) -> int | None:
        """Until when the attempt counts on its lease: a renewed one without its margin.  None for a claim without a lease."""
        lease_end_ms = record.in_progress_expiry_timestamp
        return lease_end_ms if lease_end_ms is None or self.lease_ms is None else lease_end_ms - self.lease_margin_ms

    def recovered(self, record: DataRecord) -> DataRecord:
        """A stored claim that turned out to be ours, as if it had been granted just now."""
        return record.replace(
            idempotency_key=self.key, sort_key=None, deadline_ms=self.deadline_ms, payload_hash=self.payload_hash
        )

    def completed(self, granted: DataRecord, response_data: str, now_ms: int) -> DataRecord:
        """The record with the result, replayed from *now_ms* until its expiry."""
        fields = {
            **granted.__dict__,
            "stored_status": COMPLETED,
            "expiry_timestamp": (now_ms + self.expires_after_ms) // 1000,
            "response_data": response_data,
        }
        return DataRecord.of(fields)

    def _claim_expiry(self, now_ms: int, lease_end_ms: int | None) -> int:
        """When a claim's record may be deleted, in seconds: never before its lease ends, because a table's TTL does not ask."""
        if not self.takes_over_orphans:
            return now_ms // 1000 + NEVER_SECONDS
        expiry = (now_ms + self.expires_after_ms) // 1000
        if lease_end_ms is None:
            return expiry
        lease_end = -(-lease_end_ms // 1000)
        return lease_end if lease_end > expiry else expiry  # noqa: FURB136 - in every call, and max() takes four times as long


# Effects


class Claim(Value):
    """Offer the store a claim; its lease is counted from before the request is sent, so we believe it ends early, never late.

    *supersedes* is the claimable record that refused an earlier claim of this call.
    """

    __slots__ = __match_args__ = ("supersedes",)

    def __init__(self, supersedes: DataRecord | None) -> None:
        self.supersedes = supersedes


class Run(Value):
    """Run the function, and serialize what it returns."""

    __slots__ = __match_args__ = ("granted",)

    def __init__(self, granted: DataRecord) -> None:
        self.granted = granted


class Complete(Value):
    """Store the result."""

    __slots__ = __match_args__ = ("record",)

    def __init__(self, record: DataRecord) -> None:
        self.record = record


class Commit(Value):
    """Store the result together with the function's own writes, or neither."""

    __slots__ = __match_args__ = ("record", "transaction")

    def __init__(self, record: DataRecord, transaction: Transaction) -> None:
        self.record = record
        self.transaction = transaction


class Release(Value):
    """Give the key up."""

    __slots__ = __match_args__ = ("record",)

    def __init__(self, record: DataRecord) -> None:
        self.record = record


class Renew(Value):
    """Move the lease's end."""

    __slots__ = __match_args__ = ("record",)

    def __init__(self, record: DataRecord) -> None:
        self.record = record


class Wait(Value):
    """Sleep a little, with jitter, at most *at_most_ms*; *tries* were made before."""

    __slots__ = __match_args__ = ("tries", "at_most_ms")

    def __init__(self, tries: int, at_most_ms: int) -> None:
        self.tries = tries
        self.at_most_ms = at_most_ms


class Fetch(Value):
    """Read the key's record.  A failure is the caller's error; once the function *has_run*, it is an answer: nothing found."""

    __slots__ = __match_args__ = ("has_run",)

    def __init__(self, has_run: bool = False) -> None:
        self.has_run = has_run


class Load(Value):
    """Get the result of a completed record that keeps it in another form, or elsewhere."""

    __slots__ = __match_args__ = ("record",)

    def __init__(self, record: DataRecord) -> None:
        self.record = record


class Notify(Value):
    """Tell the observers."""

    __slots__ = __match_args__ = ("event",)

    def __init__(self, event: events.Event) -> None:
        self.event = event


Effect: TypeAlias = Claim | Run | Complete | Commit | Release | Renew | Wait | Fetch | Load | Notify


# Replies


class Granted(Value):
    """To `Claim`: the key is ours; *now_ms* is the present after the answer, not that of the offer."""

    __slots__ = __match_args__ = ("record", "now_ms")

    def __init__(self, record: DataRecord, now_ms: int) -> None:
        self.record = record
        self.now_ms = now_ms


class Refused(Value):
    """To `Claim`: *existing* holds the key; None if it has vanished since."""

    __slots__ = __match_args__ = ("existing", "now_ms", "from_cache")

    def __init__(self, existing: DataRecord | None, now_ms: int, from_cache: bool = False) -> None:
        self.existing = existing
        self.now_ms = now_ms
        self.from_cache = from_cache


class Returned(Value):
    """To `Run`: the function returned *value*, stored as *response_data*; *transaction* has writes, or is None."""

    __slots__ = __match_args__ = ("value", "response_data", "now_ms", "transaction")
    unshown = frozenset({"value", "response_data"})

    def __init__(self, value: Any, response_data: str, now_ms: int, transaction: Transaction | None = None) -> None:
        self.value = value
        self.response_data = response_data
        self.now_ms = now_ms
        self.transaction = transaction


class Raised(Value):
    """To `Run`: the function raised."""

    __slots__ = __match_args__ = ("error", "now_ms")

    def __init__(self, error: BaseException, now_ms: int) -> None:
        self.error = error
        self.now_ms = now_ms


class Unstorable(Value):
    """To `Run` and `Complete`: the function ran, and its result cannot be stored; *transaction* as in `Returned`."""

    __slots__ = __match_args__ = ("error", "now_ms", "transaction")

    def __init__(self, error: Exception, now_ms: int, transaction: Transaction | None = None) -> None:
        self.error = error
        self.now_ms = now_ms
        self.transaction = transaction


class Stored(Value):
    """To `Complete`, `Commit`, `Release` and `Renew`: done."""

    __slots__ = ()


STORED: Final = Stored()


class Gone(Value):
    """To `Release`: there was no record to delete.  The key is free, but nobody knows what the record said when it went."""

    __slots__ = ()


GONE: Final = Gone()


class Fenced(Value):
    """To `Complete`, `Commit`, `Release` and `Renew`: not done.  The record is not ours to write; *existing* is what was found.

    It is None where the record is gone, or the store does not say.
    """

    __slots__ = __match_args__ = ("existing", "now_ms")

    def __init__(self, existing: DataRecord | None, now_ms: int) -> None:
        self.existing = existing
        self.now_ms = now_ms


class Uncommitted(Value):
    """To `Commit`: canceled, or the store failed: nothing was written, or both the record and the writes, unnoticed."""

    __slots__ = __match_args__ = ("error", "now_ms")

    def __init__(self, error: BaseError, now_ms: int) -> None:
        self.error = error
        self.now_ms = now_ms


class Unanswered(Value):
    """To `Release` and `Renew`: the store failed."""

    __slots__ = __match_args__ = ("error", "now_ms")

    def __init__(self, error: Exception, now_ms: int) -> None:
        self.error = error
        self.now_ms = now_ms


class Found(Value):
    """To `Fetch`: the record now, None if there is none."""

    __slots__ = __match_args__ = ("existing", "now_ms")

    def __init__(self, existing: DataRecord | None, now_ms: int) -> None:
        self.existing = existing
        self.now_ms = now_ms


class Loaded(Value):
    """To `Load`: the record with its result."""

    __slots__ = __match_args__ = ("record",)

    def __init__(self, record: DataRecord) -> None:
        self.record = record


class Unloadable(Value):
    """To `Load`: the result is gone, or the store failed."""

    __slots__ = __match_args__ = ("error",)

    def __init__(self, error: BaseError) -> None:
        self.error = error


class Slept(Value):
    """To `Wait`: the pause, as long as it was to be."""

    __slots__ = __match_args__ = ("ms",)

    def __init__(self, ms: float) -> None:
        self.ms = ms


Reply: TypeAlias = (
    Granted
    | Refused
    | Returned
    | Raised
    | Unstorable
    | Stored
    | Gone
    | Fenced
    | Uncommitted
    | Unanswered
    | Found
    | Loaded
    | Unloadable
    | Slept
    | None
)


# Outcomes


class _Outcome(Value):
    """An end of a call.  Users get some of them, so they are immutable."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an outcome is immutable; its {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an outcome is immutable; its {name} cannot be deleted")

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), self._fields()


#: Sets a field of an outcome that is being made.
_set: Final = object.__setattr__


class Executed(_Outcome):
    """The function ran now.

    Attributes:
        value: What it returned.
        record: The completed record; None if the call ran unprotected.
        ran_now: True.
    """

    __slots__ = __match_args__ = ("value", "record")
    unshown = frozenset({"value"})
    ran_now: ClassVar[bool] = True

    value: Any
    record: DataRecord | None

    def __init__(self, value: Any, record: DataRecord | None) -> None:
        _set(self, "value", value)
        _set(self, "record", record)


class Replayed(_Outcome):
    """The result is a stored one: the function did not run now, or it ran and another attempt's result stands.

    Attributes:
        value: The result.
        record: The record that it comes from.
        ran_now: False: whoever counts results has counted this one.
    """

    __slots__ = __match_args__ = ("value", "record")
    unshown = frozenset({"value"})
    ran_now: ClassVar[bool] = False

    value: Any
    record: DataRecord

    def __init__(self, value: Any, record: DataRecord) -> None:
        _set(self, "value", value)
        _set(self, "record", record)

    def with_value(self, value: Any) -> Replayed:
        """For the library: the outcome, whose value was not known when it was made, with it."""
        _set(self, "value", value)
        return self


class Failed(_Outcome):
    """The function raised *error*, which the caller gets unchanged."""

    __slots__ = __match_args__ = ("error",)

    error: BaseException

    def __init__(self, error: BaseException) -> None:
        _set(self, "error", error)


class Rejected(_Outcome):
    """The caller gets *error* instead of a result, because of *cause*, where there is one."""

    __slots__ = __match_args__ = ("error", "cause")

    error: BaseError
    cause: BaseException | None

    def __init__(self, error: BaseError, cause: BaseException | None = None) -> None:
        _set(self, "error", error)
        _set(self, "cause", cause)


Outcome: TypeAlias = Executed | Replayed | Failed | Rejected
T = TypeVar("T")
Steps: TypeAlias = Generator[Effect, Reply, T]


class Verdict(Enum):
    """What a refusing record means for us."""

    RUN = auto()
    RETRY = auto()
    TOO_OLD = auto()
    ORPHANED = auto()
    PAYLOAD_MISMATCH = auto()
    REPLAY = auto()
    IN_PROGRESS = auto()


def judge(existing: DataRecord | None, now_ms: int, plan: Plan) -> Verdict:
    """What the record that refused our claim means; the first rule that matches.

    Our own record, in progress: our claim landed and its answer was lost, so the key is ours.  Claimable: it aged since the
    refusal; claim again.  For a request that is too old, only an orphan is claimable, because only an orphan proves that the
    request never completed.  Everything else is another attempt's, and the payload is compared before anything is given away.
    """
    if existing is None:
        return Verdict.TOO_OLD if is_too_old(plan.fresh_until_ms, now_ms) else Verdict.RETRY
    if is_in_progress(existing):
        # Ours but past its lease, it can be taken from us at any moment: claim it again, unless nobody may take it over.
        is_safe = not plan.takes_over_orphans or not is_orphaned(existing, now_ms)
        if plan.resumes or (is_held_by(existing, plan.owner_token) and is_safe):
            return Verdict.RUN
    if is_claimable(existing, now_ms, takes_over_orphans=plan.takes_over_orphans):
        may_claim = is_in_progress(existing) and plan.takes_over_late
        return Verdict.RETRY if may_claim or not is_too_old(plan.fresh_until_ms, now_ms) else Verdict.TOO_OLD
    if plan.payload_hash and existing.payload_hash != plan.payload_hash:
        return Verdict.PAYLOAD_MISMATCH
    if is_completed(existing):
        return Verdict.REPLAY
    return Verdict.ORPHANED if is_orphaned(existing, now_ms) else Verdict.IN_PROGRESS


def execution(plan: Plan, cached: Refused | None = None) -> Steps[Outcome]:
    """One idempotent call.  *cached* is a completed record of the local cache, in the form of a refusal."""
    granted = yield from _claimed(plan, cached)
    if not isinstance(granted, DataRecord):
        return granted
    ran = yield Run(granted)
    if isinstance(ran, Returned) and ran.transaction is None:
        record = plan.completed(granted, ran.response_data, ran.now_ms)
        reply = yield Complete(record)
        if isinstance(reply, Stored):
            if plan.is_observed:
                yield Notify(events.Completed(key=plan.key, at_ms=ran.now_ms, generation=granted.generation))
            return Executed(ran.value, record)
        return (yield from _not_completed(plan, granted, reply))
    match ran:
        case Returned():
            return (yield from _committed(plan, granted, ran))
        case Unstorable(error, now_ms, None):
            return (yield from _kept_without_result(plan, granted, error, now_ms))
        case Unstorable(error, now_ms):
            return (yield from _withdrawn(plan, granted, None, Uncommitted(_result_unfit(plan.key, error), now_ms)))
        case Raised(error, now_ms):
            return (yield from _failed(plan, granted, error, now_ms))
        case _:
            raise AssertionError(ran)


def usual(plan: Plan, performer: Performer, cached: Refused | None = None) -> Outcome | list[Reply]:
    """The ways that almost every call goes: claimed, run and completed; or answered by a result that is there.

    They are those of `execution`, without its price: effects and a generator's steps are a seventh of what this library takes for
    a new key.  Nobody is told of events.

    Returns:
        The outcome; or, where the call goes another way, the replies until there: sent them, `execution` goes on from there.
    """
    claimed = performer.claim(None) if cached is None else cached
    if isinstance(claimed, Refused):
        existing = claimed.existing
        if (
            existing is not None
            and existing.result_kept
            and existing.packed_result is None
            and judge(existing, claimed.now_ms, plan) is Verdict.REPLAY
        ):
            return Replayed(None, existing)
        return [claimed] if cached is None else []
    granted = claimed.record
    if plan.lease_ms is not None and is_orphaned(granted, claimed.now_ms + plan.lease_margin_ms):
        return [claimed]
    ran = performer.run(granted)
    if not isinstance(ran, Returned) or ran.transaction is not None:
        return [claimed, ran]
    record = plan.completed(granted, ran.response_data, ran.now_ms)
    reply = performer.complete(record)
    return Executed(ran.value, record) if isinstance(reply, Stored) else [claimed, ran, reply]


def _claimed(plan: Plan, refused: Refused | None) -> Steps[DataRecord | Outcome]:  # noqa: C901 - one loop, in one place
    """Claim the key, waiting for another attempt if that is configured.  Returns the granted record, or how the call ends."""
    claims = now_ms = slept_ms = 0
    supersedes: DataRecord | None = None
    while True:
        if refused is None:
            if claims == MAX_CLAIMS:
                return (yield from _inconsistent(plan, now_ms))
            claims += 1
            reply = yield Claim(supersedes)
            if isinstance(reply, Granted):
                if plan.lease_ms is not None and is_orphaned(reply.record, reply.now_ms + plan.lease_margin_ms):
                    supersedes, now_ms = reply.record, reply.now_ms  # the answer took longer than the lease
                    continue
                if plan.is_observed:
                    yield from _tell_claimed(plan, reply.record, reply.now_ms)
                return reply.record
            refused = _expect(Refused, reply)
        existing, now_ms = refused.existing, refused.now_ms
        verdict = judge(existing, now_ms, plan)
        if verdict is Verdict.TOO_OLD and not refused.from_cache:  # the store may have a later result than this process remembers
            return (yield from _too_old(plan, existing, now_ms))
        if existing is None or verdict in (Verdict.RETRY, Verdict.TOO_OLD):
            supersedes, refused = existing, None
        elif verdict is Verdict.RUN:
            granted = yield from _recovered(plan, existing, now_ms)
            if not isinstance(granted, Refused):
                return granted
            refused = granted
        elif verdict is Verdict.IN_PROGRESS and _wait_left_ms(plan, now_ms, slept_ms) > 0:
            found, slept_ms = yield from _waited(plan, now_ms, slept_ms)
            refused = Refused(found.existing, found.now_ms)
            claims = 0  # the other attempt ended; claiming again is no sign of a contradiction
        else:
            return (yield from _answered(plan, existing, verdict, refused))


def _recovered(plan: Plan, existing: DataRecord, now_ms: int) -> Steps[DataRecord | Refused | Rejected]:
    """Go on with a claim of ours that is stored already.

    Refused if it is lost in this very moment; rejected if its lease is over and could not be renewed.
    """
    granted = plan.recovered(existing)
    # Its lease may have run for long: a durable execution's, or that of a slow answer.  A claim without one holds as it is.
    if plan.lease_ms is not None and existing.in_progress_expiry_timestamp is not None:
        renewed = plan.renewed(granted, now_ms)
        reply = yield Renew(renewed)
        if isinstance(reply, Fenced):
            return Refused(reply.existing, reply.now_ms)
        if isinstance(reply, Stored):
            granted = renewed
        else:
            unanswered = _expect(Unanswered, reply)
            if plan.takes_over_orphans and is_orphaned(existing, unanswered.now_ms + plan.lease_margin_ms):
                error = _expect(BaseError, unanswered.error)
                error.about(plan.key, "Its own lease has ended. The function was not run; retry the call.", function_ran=False)
                return Rejected(error, error.__cause__)
            # Else the lease lasts as it did, and the heartbeat renews it as soon as it can.
    if plan.is_observed:
        yield Notify(events.RecoveredOwnWrite(key=plan.key, at_ms=now_ms, generation=granted.generation))
        yield from _tell_claimed(plan, granted, now_ms)
    return granted


def _wait_left_ms(plan: Plan, now_ms: int, slept_ms: int) -> int:
    """How long another attempt is still waited for; 0 or less if not."""
    if plan.wait_until_ms is None or plan.wait_ms is None:
        return 0
    return min(plan.wait_until_ms - now_ms, plan.wait_ms - slept_ms)


def _waited(plan: Plan, start_ms: int, slept_ms: int) -> Steps[tuple[Found, int]]:
    """Read the record now and then, until it is no longer another attempt in progress or time is up.

    Returns what was found, and how long the call has slept by then; *slept_ms* is how long it had before.
    """
    found = Found(None, start_ms)
    tries = 0
    while (left_ms := _wait_left_ms(plan, found.now_ms, slept_ms)) > 0:
        slept = _expect(Slept, (yield Wait(tries, left_ms)))
        slept_ms += int(slept.ms)
        found = _expect(Found, (yield Fetch()))
        tries += 1
        if judge(found.existing, found.now_ms, plan) is not Verdict.IN_PROGRESS:
            break
    if plan.is_observed:
        yield Notify(events.Waited(key=plan.key, at_ms=found.now_ms, waited_ms=found.now_ms - start_ms))
    return found, slept_ms


def _answered(plan: Plan, existing: DataRecord, verdict: Verdict, refused: Refused) -> Steps[Outcome]:
    """How the call ends without running the function."""
    if verdict is Verdict.REPLAY and existing.result_kept:
        loaded = yield from _loaded(existing)
        if isinstance(loaded, Loaded):
            if plan.is_observed:
                source: Literal["cache", "store"] = "cache" if refused.from_cache else "store"
                yield Notify(events.Replayed(key=plan.key, at_ms=refused.now_ms, source=source, holder=existing.holder))
            return Replayed(None, loaded.record)
        reason: events.Reason = "result not loaded"
        error, cause = loaded.error, loaded.error.__cause__
    else:
        reason, error = _refusal(plan, existing, verdict)
        cause = None
    if plan.is_observed:
        yield Notify(events.Refused(key=plan.key, at_ms=refused.now_ms, reason=reason, holder=existing.holder))
    return Rejected(error, cause)


def _loaded(record: DataRecord) -> Steps[Loaded | Unloadable]:
    """The completed record with its result.  Almost every record has it already."""
    if record.packed_result is None:
        return Loaded(record)
    reply = yield Load(record)
    return reply if isinstance(reply, Unloadable) else _expect(Loaded, reply)


def _refusal(plan: Plan, existing: DataRecord, verdict: Verdict) -> tuple[events.Reason, BaseError]:
    """Why the call is turned away, and what it is told."""
    if verdict is Verdict.PAYLOAD_MISMATCH:
        return "payload mismatch", _payload_mismatch(plan.key, existing)
    if verdict is Verdict.REPLAY:
        return "result not kept", _result_not_kept(plan.key)
    if verdict is Verdict.ORPHANED:
        return "orphaned", _orphaned(plan.key, existing)
    return "in progress", _in_progress(plan, existing)


def _too_old(plan: Plan, existing: DataRecord | None, now_ms: int) -> Steps[Outcome]:
    """The request may have run before, and its result is gone: nothing is run, and nothing is written."""
    if plan.is_observed:
        holder = "" if existing is None else existing.holder
        yield Notify(events.Refused(key=plan.key, at_ms=now_ms, reason="request too old", holder=holder))
    return Rejected(
        IdempotencyRequestTooOldError(
            f"The request of idempotency key {plan.key} was issued longer ago than a result is kept ("
            f"expires_after_seconds={plan.expires_after_ms / 1000:g}), and it has no result. It was not run, because it may have "
            "run before. Find out whether its effect happened; if not, send it again with a new time of issue"
        ).about(plan.key, "A retry does not help.")
    )


def _inconsistent(plan: Plan, now_ms: int) -> Steps[Outcome]:
    if plan.is_observed:
        yield Notify(events.Refused(key=plan.key, at_ms=now_ms, reason="inconsistent state", holder=""))
    return Rejected(
        IdempotencyInconsistentStateError(
            f"The store refused idempotency key {plan.key} {MAX_CLAIMS} times and showed it free each time: do the clocks agree?"
        ).about(plan.key, "The function was not run; retry the call.")
    )


def _not_completed(plan: Plan, granted: DataRecord, reply: Reply) -> Steps[Outcome]:
    """The function ran, and its result was not stored."""
    match reply:
        case Fenced():
            return (yield from _lost(plan, granted, reply))
        case Unstorable(error, now_ms):
            return (yield from _kept_without_result(plan, granted, error, now_ms))
        case _:
            raise AssertionError(reply)


def _kept_without_result(plan: Plan, granted: DataRecord, error: Exception, now_ms: int) -> Steps[Outcome]:
    """The effect has happened: complete the record without a result, so that no retry runs the function again."""
    record = plan.completed(granted, "", now_ms).replace(result_kept=False)
    reply = yield Complete(record)
    if isinstance(reply, Fenced):
        return (yield from _lost(plan, granted, reply))
    _expect(Stored, reply)
    if plan.is_observed:
        yield Notify(events.ResultNotKept(key=plan.key, at_ms=now_ms, generation=granted.generation, reason=type(error).__name__))
    return Rejected(_result_not_kept(plan.key, error), error)


def _committed(plan: Plan, granted: DataRecord, ran: Returned) -> Steps[Outcome]:
    """Store the result together with the function's own writes, or neither."""
    executed = Executed(ran.value, plan.completed(granted, ran.response_data, ran.now_ms))
    assert executed.record is not None
    assert ran.transaction is not None
    reply = yield Commit(executed.record, ran.transaction)
    match reply:
        case Stored():
            if plan.is_observed:
                yield Notify(events.Completed(key=plan.key, at_ms=ran.now_ms, generation=granted.generation))
            return executed
        case Fenced():
            return (yield from _not_committed(plan, granted, executed, reply))
        case Uncommitted():
            return (yield from _withdrawn(plan, granted, executed, reply))
        case _:
            raise AssertionError(reply)


def _withdrawn(plan: Plan, granted: DataRecord, executed: Executed | None, uncommitted: Uncommitted) -> Steps[Outcome]:
    """Free the key of an attempt whose transaction is not known to be written.

    The release settles that: it demands the very record that the commit demands.  If it deletes that record, the commit was not
    applied, and one that is still on its way will be refused; if it is refused itself, the record shows who was first; if the
    record is gone, nothing is proven.  *executed* is how the call ends if the transaction was written after all.
    """
    error = uncommitted.error
    if plan.is_observed:
        codes = tuple(reason.code for reason in getattr(error, "reasons", ()) if reason.code)
        generation = granted.generation
        yield Notify(events.Uncommitted(key=plan.key, at_ms=uncommitted.now_ms, generation=generation, reasons=codes))
    reply = yield Release(granted)
    is_unwritten = executed is None or (isinstance(error, IdempotencyTransactionCanceledError) and error.nothing_written)
    if isinstance(reply, Fenced):
        return (yield from _not_committed(plan, granted, executed, reply, is_unwritten=is_unwritten))
    at_ms, trouble = uncommitted.now_ms, None
    if isinstance(reply, Unanswered):
        at_ms, trouble = reply.now_ms, type(reply.error).__name__
        _tell_unreleased(plan.key, error, reply.error, is_unwritten=is_unwritten)
    elif isinstance(reply, Gone):
        _tell_released(plan.key, error, is_unwritten=is_unwritten)
    else:
        _expect(Stored, reply)
        _tell_released(plan.key, error, is_unwritten=is_unwritten or _is_remembered(executed, at_ms))
    if plan.is_observed:
        yield Notify(events.Released(key=plan.key, at_ms=at_ms, generation=granted.generation, error=trouble))
    return Rejected(error, error.__cause__)


def _is_remembered(executed: Executed | None, now_ms: int) -> bool:
    """Whether the record would still show that the transaction was written: its completion expires later, by every clock."""
    assert executed is not None  # else it was never sent, and nobody asks
    assert executed.record is not None
    return now_ms + CLOCK_DIFFERENCE_MS < (executed.record.expiry_timestamp or 0) * 1000


def _tell_released(key: str, error: BaseError, *, is_unwritten: bool) -> None:
    """Say in the error of a commit that the key is free, and whether the transaction was written, if that is certain."""
    if not is_unwritten:
        written = "Whether the transaction was written is not known, because its record is gone or has expired."
        again = "A retry runs the function again, and may write it a second time."
        error.about(key, f"The function ran. {written} {again}", function_ran=True, is_retryable=False)
        return
    if isinstance(error, IdempotencyTransactionCanceledError):
        error.nothing_written = True
    again = "A retry runs it again." if error.is_retryable else "A retry runs it again, and does not help before a correction."
    advice = f"The function ran. The claim was released: nothing of the transaction was written. {again}"
    error.about(key, advice, function_ran=True)


def _tell_unreleased(key: str, error: BaseError, trouble: Exception, *, is_unwritten: bool) -> None:
    """Say in the error of a commit that the key stays claimed."""
    if is_unwritten:
        then = "Nothing of the transaction was written. A retry is refused until the lease ends, and then runs it again."
    else:
        then = (
            "Whether the transaction was written is not known. If it was, a retry returns the stored result; if not, it is "
            "refused until the lease ends, and then runs the function again."
        )
    besides = f"Besides, the claim of idempotency key {key} could not be released: {own_text(trouble)}."
    error.about(key, f"The function ran. {besides} {then}", function_ran=True)


def _not_committed(
    plan: Plan, granted: DataRecord, executed: Executed | None, fenced: Fenced, *, is_unwritten: bool = False
) -> Steps[Outcome]:
    """The record was not there for us to write: because an earlier try of our own had completed it, or it is another's."""
    existing = fenced.existing
    if executed is None or existing is None or not (is_completed(existing) and is_held_by(existing, granted.owner_token)):
        return (yield from _lost(plan, granted, fenced, _Commit(executed, is_unwritten)))
    if plan.is_observed:
        yield Notify(events.Completed(key=plan.key, at_ms=fenced.now_ms, generation=granted.generation))
    if not plan.outlives_call:
        return executed
    # Perhaps another process of this durable execution: what it stored is what every caller gets.
    loaded = yield from _loaded(existing)
    return Replayed(None, loaded.record) if isinstance(loaded, Loaded) else Rejected(loaded.error, loaded.error.__cause__)


def _lost(plan: Plan, granted: DataRecord, fenced: Fenced, commit: _Commit | None = None) -> Steps[Outcome]:
    """Our function ran, and the record is another attempt's: its result is what every caller gets."""
    existing, now_ms = fenced.existing, fenced.now_ms
    if existing is None:
        found = _expect(Found, (yield Fetch(has_run=True)))
        existing, now_ms = found.existing, found.now_ms
    yield from _tell_lost(plan, granted, existing, now_ms)
    if existing is not None and existing.result_kept and judge(existing, now_ms, plan) is Verdict.REPLAY:
        loaded = yield from _loaded(existing)
        if isinstance(loaded, Loaded):
            return Replayed(None, loaded.record)
    return Rejected(_lease_lost(plan, granted, existing, now_ms, commit))


class _Commit(Value):
    """A transaction of an attempt that does not hold the record any more.

    Attributes:
        executed: How the call would have ended with it; None if it was never sent.
        is_unwritten: Whether an answer says that nothing of it was written.
    """

    __slots__ = __match_args__ = ("executed", "is_unwritten")

    def __init__(self, executed: Executed | None, is_unwritten: bool) -> None:
        self.executed = executed
        self.is_unwritten = is_unwritten

    def is_refuted(self, granted: DataRecord, existing: DataRecord | None, now_ms: int) -> bool:
        """Whether the record of another attempt proves that nothing was written.

        A completed record of ours would still refuse every claim, unless it was replaced by another Region's write.
        """
        if self.is_unwritten:
            return True
        return existing is not None and not _is_of_another_region(granted, existing) and _is_remembered(self.executed, now_ms)


def _lease_lost(
    plan: Plan, granted: DataRecord, existing: DataRecord | None, now_ms: int, commit: _Commit | None
) -> IdempotencyLeaseLostError:
    written, is_retryable = "", True
    if commit is not None and commit.is_refuted(granted, existing, now_ms):
        written = "Nothing of its transaction was written. "
    elif commit is not None:
        written = "Whether its transaction was written is not known. "
        is_retryable = existing is not None  # else a retry runs the function again, and may write it a second time
    if existing is not None:
        again = "Retry the call to get that attempt's result"
    else:
        again = "Retry the call" if is_retryable else "A retry runs the function again, and may write it a second time"
    lost = IdempotencyLeaseLostError(f"The function ran, but {_loss(plan, granted, existing)}. {written}{again}", record=existing)
    return lost.about(plan.key, _held_by(existing), is_retryable=is_retryable)


def _held_by(existing: DataRecord | None) -> str:
    return f"Held by request {existing.holder}." if existing is not None and existing.holder else ""


def _loss(plan: Plan, granted: DataRecord, existing: DataRecord | None) -> str:
    """How the attempt lost its key, as far as it can know."""
    if existing is None:
        return f"it no longer holds idempotency key {plan.key}"
    loss = "its lease had ended"
    if _is_of_another_region(granted, existing):
        loss = f"its claim in {granted.region} was replaced by one in {existing.region}"
    return f"{loss} and another attempt owns idempotency key {plan.key}"


def _is_of_another_region(granted: DataRecord, existing: DataRecord) -> bool:
    return bool(granted.region and existing.region and granted.region != existing.region)


def _failed(plan: Plan, granted: DataRecord, error: BaseException, now_ms: int) -> Steps[Outcome]:
    """The function raised: free the key for the next attempt, unless the run is only suspended."""
    if plan.is_suspension(error):
        return Failed(error)
    reply = yield Release(granted)
    match reply:
        case Stored() | Gone():
            event: events.Event = events.Released(key=plan.key, at_ms=now_ms, generation=granted.generation)
        case Fenced(existing, now_ms):
            yield from _tell_lost(plan, granted, existing, now_ms)
            return Failed(error)
        case Unanswered(trouble, now_ms):
            _note(error, f"Besides, the claim of idempotency key {plan.key} could not be released: {own_text(trouble)}")
            event = events.Released(key=plan.key, at_ms=now_ms, generation=granted.generation, error=type(trouble).__name__)
        case _:
            raise AssertionError(reply)
    if plan.is_observed:
        yield Notify(event)
    return Failed(error)


def _tell_claimed(plan: Plan, granted: DataRecord, now_ms: int) -> Steps[None]:
    if granted.took_over:
        yield Notify(events.TakenOver(key=plan.key, at_ms=now_ms, generation=granted.generation))
    yield Notify(events.Claimed(key=plan.key, at_ms=now_ms, generation=granted.generation))


def _tell_lost(plan: Plan, granted: DataRecord, existing: DataRecord | None, now_ms: int) -> Steps[None]:
    if not plan.is_observed:
        return
    winner = "" if existing is None else existing.holder
    yield Notify(events.LeaseLost(key=plan.key, at_ms=now_ms, generation=granted.generation, winner_holder=winner))
    if existing is not None and _is_of_another_region(granted, existing):
        conflict = events.ReplicationConflict(key=plan.key, at_ms=now_ms, region=granted.region, winner_region=existing.region)
        yield Notify(conflict)


def _note(error: BaseException, text: str) -> None:
    """Note a failure on the function's own error, if its class allows that.  The performer has logged it."""
    try:
        error.add_note(text)
    except Exception:  # noqa: BLE001 - an immutable error, for example a frozen dataclass
        return


def _in_progress(plan: Plan, existing: DataRecord) -> IdempotencyAlreadyInProgressError:
    message = f"Execution already in progress with idempotency key: {plan.key_expression}={existing.idempotency_key}"
    if existing.sort_key is not None:
        message += f" and sort key: {existing.sort_key}"
    advice = f"{_held_by(existing)} The function was not run; retry the call to get the result of the attempt in progress."
    return IdempotencyAlreadyInProgressError(message, record=existing).about(plan.key, advice.lstrip())


def _payload_mismatch(key: str, existing: DataRecord) -> IdempotencyValidationError:
    advice = f"{_held_by(existing)} The function was not run; a retry does not help: the key was used with another payload."
    return IdempotencyValidationError("Payload does not match stored record for this event key").about(key, advice.lstrip())


def _orphaned(key: str, existing: DataRecord) -> IdempotencyOrphanedError:
    from persistence._orphans import lease_end  # imported lazily: few calls end so

    held_by = f" Held by request {existing.holder}." if existing.holder else ""
    return IdempotencyOrphanedError(
        f"The attempt at idempotency key {key} has not finished, and its lease ended at {lease_end(existing)}; it is not run "
        "again by itself (orphan_takeover=False)",
        record=existing,
    ).about(
        key,
        f"It is not known whether the function ran; a retry does not help.{held_by} Find out whether its effect happened. To run "
        f"the function again, free the key: store.release_orphan({key!r}, owner_token={existing.owner_token!r})",
    )


def _result_unfit(key: str, error: Exception) -> IdempotencyTransactionCanceledError:
    unfit = IdempotencyTransactionCanceledError(
        f"The result of idempotency key {key} cannot be stored, so its transaction was not sent",
        type(error).__name__,
        nothing_written=True,
    )
    unfit.__cause__ = error
    return unfit


def _result_not_kept(key: str, error: Exception | None = None) -> IdempotencyResultNotKeptError:
    message = f"The function ran for idempotency key {key}, but its result could not be stored; it will not be run again"
    if isinstance(error, IdempotencyPersistenceLayerError):
        not_kept = IdempotencyResultNotKeptError(message, error)
    else:
        not_kept = IdempotencyResultNotKeptError(message, *([type(error).__name__] if error else []))
    return not_kept.about(key, "A retry does not help: it gets this error until the record expires.")


def _expect(kind: type[T], reply: object) -> T:
    """The reply, which only a driver that breaks the protocol could make another kind."""
    assert isinstance(reply, kind), reply
    return reply
