"""Perform what `execution` asks for, against a store and a function: the only loops, sync and async.

No decision is taken here.  A driver adds two things.  A call that ends after its claim and before its function begins, by a
signal, a cancelled task or a failure of the store, gives the claim up, so that the next attempt need not wait for its lease.
And where the function forks, the record is the parent's: the child writes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from idempotency.attempt import Attempt
from idempotency.events import Throttled, notify
from idempotency.execution import (
    GONE,
    STORED,
    Claim,
    Commit,
    Complete,
    Effect,
    Executed,
    Failed,
    Fenced,
    Fetch,
    Found,
    Granted,
    Load,
    Loaded,
    Notify,
    Outcome,
    Plan,
    Raised,
    Refused,
    Release,
    Renew,
    Reply,
    Returned,
    Run,
    Slept,
    Unanswered,
    Uncommitted,
    Unloadable,
    Unstorable,
    Wait,
    execution,
    is_exit,
    usual,
)
from persistence import background
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    own_text,
)

if TYPE_CHECKING:
    import asyncio
    import logging
    from collections.abc import Callable, Coroutine, Sequence

    from idempotency.events import Observer
    from persistence.background import Lease
    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer, Refusal
    from persistence.scope import CallScope
    from persistence.transaction import Transaction

    T = TypeVar("T")
    AsyncWrite = Callable[[DataRecord], Coroutine[Any, Any, T]]

#: The pauses between reads while waiting for another attempt: short at first, since most functions are, then longer.
FIRST_PAUSE_MS: Final = 50
LONGEST_PAUSE_MS: Final = 1_000

#: How long an interrupted call tries to give its claim up: a shutdown must not hang on it.
GIVE_UP_MS: Final = 3_000


#: How often a write is made that is cancelled each time.
MAX_WRITES: Final = 3


#: What a function has returned that has not returned yet.
_NOTHING: Final[Any] = object()


class Call:
    """One call of one function, ready to be driven.

    Attributes:
        plan: What is fixed for the call.
        invoke: Calls the function with its arguments; for an async function, returns what is to be awaited.
        serialize: Turns the function's result into JSON text, or raises.
        observers: Who is told of events.
        scope: What the call makes known while it runs.  Whoever made it leaves it, which ends the renewal of the lease.
    """

    __slots__ = ("invoke", "observers", "plan", "scope", "serialize")

    def __init__(
        self,
        plan: Plan,
        invoke: Callable[[], Any],
        serialize: Callable[[Any], str],
        observers: Sequence[Observer],
        scope: CallScope,
    ) -> None:
        self.plan = plan
        self.invoke = invoke
        self.serialize = serialize
        self.observers = observers
        self.scope = scope


class _RanInChildError(BaseException):
    """The function forked, and this is the child: the claim, and with it the record, belong to the parent."""

    def __init__(self, outcome: Executed | Failed) -> None:
        self.outcome = outcome


def drive(call: Call, store: BasePersistenceLayer, cached: Refused | None = None) -> Outcome:
    """Carry one call out, from its claim to its outcome.  Errors of the store propagate."""
    performer = _Performer(call, store)
    perform = performer.perform_observed if call.plan.is_observed else performer.perform
    happened: list[Reply] = []
    try:
        if not call.plan.is_observed:
            ended = usual(call.plan, performer, cached)
            if not isinstance(ended, list):
                return ended
            happened = ended
        steps = execution(call.plan, cached)
        reply: Reply = None
        while True:
            try:
                effect = steps.send(reply)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            reply = happened.pop(0) if happened else perform(effect)
    except _RanInChildError as ran:
        return ran.outcome
    except BaseException as error:
        performer.wind_up(error)
        raise


async def adrive(call: Call, store: AsyncBasePersistenceLayer, cached: Refused | None = None) -> Outcome:
    """As `drive`, for an async function.  Always by `execution`'s steps: compared with asyncio's own they cost little."""
    performer = _AsyncPerformer(call, store)
    perform = performer.perform_observed if call.plan.is_observed else performer.perform
    steps = execution(call.plan, cached)
    reply: Reply = None
    try:
        while True:
            try:
                effect = steps.send(reply)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            reply = await perform(effect)
    except _RanInChildError as ran:
        return ran.outcome
    except GeneratorExit:  # this coroutine is being closed, perhaps by the garbage collector, and may not await any more
        performer.give_up_unawaited()
        raise
    except BaseException as error:
        if performer.held is not None and _is_closing(error):
            performer.give_up_unawaited()
        elif performer.must_wind_up(error):
            await _to_its_end(performer.wind_up)
        raise


class _PerformerBase:
    """What both performers know of the running call."""

    def __init__(self, call: Call, store: Any) -> None:
        self.call = call
        self.store = store
        self.clock_ms: Callable[[], int] = store.clock_ms
        #: The claim that was offered and perhaps granted, as long as the function has not run: nobody else would release it.
        self.held: DataRecord | None = None
        #: Whether the store has said that the claim is ours.
        self.is_granted = False
        self._fork_count = background.fork_count

    def collect_notices(self) -> None:
        """Have the store leave notices, until `report_notices`."""
        self.call.scope.notices = []

    def report_notices(self) -> None:
        """Pass the store's notices on to the observers, in the thread of the call."""
        scope = self.call.scope
        notices, scope.notices = scope.notices, None
        for notice in notices or ():
            event = Throttled(
                key=self.call.plan.key,
                at_ms=self.clock_ms(),
                operation=notice.operation,
                requests=notice.requests,
                reasons=notice.reasons,
            )
            notify(self.call.observers, event)

    def must_give_up(self, error: BaseException) -> bool:
        """Whether the call ends by *error* with a claim that may be stored, and for which nothing was or will be run."""
        if self.held is None or not self.may_give_up():
            return False
        return not (isinstance(error, Exception) and self.store.is_claim_unsent(error))

    def may_give_up(self) -> bool:
        """Whether the claim is this process's own, and a release cannot meet another attempt's record.

        A store that ignores owner tokens deletes whatever is there, so that it is asked only for a claim that it has granted.
        """
        is_fenced = self.store.supports_leases or self.is_granted
        return is_fenced and self.is_own_process() and not self.call.plan.outlives_call

    def is_own_process(self) -> bool:
        """Whether the claim was made here, and not by a parent that has forked since."""
        return background.fork_count == self._fork_count

    def attempt(self, granted: DataRecord) -> Attempt:
        plan = self.call.plan
        return Attempt(plan.key, granted.owner_token, granted.generation, plan.believed_end_ms(granted), self.store.begin)

    def keep_lease(self, granted: DataRecord, begin: Callable[[Lease], None]) -> None:
        """Have the lease, which is one that is renewed, renewed until the call ends.

        Raises:
            ThreadUnavailableError: there is no thread for that.
        """
        plan = self.call.plan
        assert plan.lease_ms is not None
        lease = background.Lease(plan.key, begin, self.clock_ms, plan.lease_ms, plan.believed_end_ms(granted))
        self.call.scope.lease = lease  # first: from here on, the end of the scope ends the lease
        background.heartbeat.keep(lease)

    def unrenewable(self, error: Exception) -> Raised:
        """No thread can renew the lease: the function is not run, and the claim is released as if it had failed."""
        failure = IdempotencyPersistenceLayerError("Failed to start the renewal of the lease", error)
        failure.__cause__ = error
        advice = "The function was not run; retry the call."
        return Raised(failure.about(self.call.plan.key, advice, function_ran=False, is_retryable=True), self.clock_ms())

    def lease_to_settle(self) -> Lease | None:
        """The lease whose last renewal must have ended before the record is written: it could overwrite a result."""
        lease = self.call.scope.lease
        if lease is None:
            return None
        lease.is_ending = True
        if self.store.renews_atomically:
            return None
        lease.end()
        return lease

    def raised(self, error: BaseException) -> Reply:
        if background.fork_count != self._fork_count:
            raise _RanInChildError(Failed(error))
        return Raised(error, self.clock_ms())

    def returned(self, value: Any, transaction: Transaction | None) -> Reply:
        if background.fork_count != self._fork_count:
            raise _RanInChildError(Executed(value, None))
        now_ms = self.clock_ms()
        try:
            response_data = self.call.serialize(value)
        except Exception as error:  # noqa: BLE001 - of the user's serializer; the function has run, so nothing may be raised
            _close_unstarted(value)
            return Unstorable(error, now_ms, transaction)
        return Returned(value, response_data, now_ms, transaction)

    def failed(self, effect: Effect, error: Exception) -> Reply:
        """What the store's error means as a reply; any other is raised again."""
        now_ms = self.clock_ms()
        if isinstance(error, IdempotencyLeaseLostError):
            return Fenced(error.record, now_ms)
        if isinstance(effect, Complete) and isinstance(error, IdempotencyResultNotKeptError) and effect.record.result_kept:
            return Unstorable(error, now_ms)
        if isinstance(effect, Commit) and isinstance(error, BaseError):
            return Uncommitted(error, now_ms)
        if isinstance(effect, (Release, Renew)):
            # The caller gets the function's own error, or none, so that nothing else shows this one.
            what = "claim was not released" if isinstance(effect, Release) else "lease was not renewed"
            _logger().warning("The %s: %s", what, error)
            return Unanswered(error, now_ms)
        if isinstance(effect, Fetch) and effect.has_run:
            return Found(None, now_ms)
        if isinstance(effect, Load) and isinstance(error, BaseError):
            return Unloadable(error)
        raise error


class _Performer(_PerformerBase):
    store: BasePersistenceLayer
    #: The claim, and what the function returned, until that is stored.
    unstored: tuple[DataRecord, Any] | None = None

    def perform_observed(self, effect: Effect) -> Reply:
        """As `perform`; observers hear what the store meets.  Not what stores meet that the function uses, or an observer."""
        if isinstance(effect, (Run, Notify)):
            return self.perform(effect)
        self.collect_notices()
        try:
            return self.perform(effect)
        finally:
            self.report_notices()

    def perform(self, effect: Effect) -> Reply:
        if isinstance(effect, Claim):
            return self.claim(effect.supersedes)
        if isinstance(effect, Run):
            return self.run(effect.granted)
        if isinstance(effect, Complete):
            return self.complete(effect.record)
        try:
            match effect:
                case Commit() | Release() | Renew():
                    return self._write(effect)
                case Notify(event):
                    notify(self.call.observers, event)
                case Wait(tries, at_most_ms):
                    slept = Slept(pause_ms(tries, at_most_ms))
                    self.store.sleep_ms(slept.ms)
                    return slept
                case Fetch() | Load():
                    return self._read(effect)
                case _:
                    assert_never(effect)
        except Exception as error:  # noqa: BLE001 - sorted out there
            return self.failed(effect, error)
        return None

    def _write(self, effect: Commit | Release | Renew) -> Reply:
        match effect:
            case Commit(record, transaction):
                self.store.commit(record, transaction)
            case Release(record):
                self._settle_lease()
                return STORED if self.store.release(record) else GONE
            case _:
                self.store.renew(effect.record)
        return STORED

    def _read(self, effect: Fetch | Load) -> Reply:
        if isinstance(effect, Load):
            return Loaded(self.store.load(effect.record))
        return Found(self.store.fetch(self.call.plan.key), self.clock_ms())

    def claim(self, supersedes: DataRecord | None) -> Granted | Refused:
        """Offer a claim."""
        offer = self.held = self.call.plan.offer(supersedes, self.clock_ms())
        granted = self.store.try_claim(offer)
        now_ms = self.clock_ms()
        if isinstance(granted, DataRecord):
            self.is_granted = True
            return Granted(granted, now_ms)
        self.held = None
        return Refused(granted.existing, now_ms)

    def wind_up(self, error: BaseException) -> None:
        """Leave the record as it should be after a call that ends by *error*, within `GIVE_UP_MS`.

        Before the function runs, the claim is released, whether it was stored or not.  If a signal's handler raises between the
        return of the function and the completion, the result is stored first.
        """
        try:
            if self.must_give_up(error):
                assert self.held is not None
                self.store.release(self.held.replace(deadline_ms=self.clock_ms() + GIVE_UP_MS))
            elif self.unstored is not None and self.is_own_process() and (is_exit(error) or isinstance(error, Exception)):
                record = self._completed_late(*self.unstored)
                self.store.complete(record.replace(deadline_ms=self.clock_ms() + GIVE_UP_MS))
        except Exception as trouble:  # noqa: BLE001 - logged
            _log_not_wound_up(self.call.plan.key, trouble)

    def run(self, granted: DataRecord) -> Reply:
        """Run the function, its lease renewed meanwhile where it is one that is."""
        attempt = self.attempt(granted)
        if self.call.plan.lease_ms is not None:
            try:
                self.keep_lease(granted, self._renewal(granted, attempt))
            except background.ThreadUnavailableError as error:
                return self.unrenewable(error)
        scope, value = self.call.scope, _NOTHING
        try:
            scope.attempt = attempt
            self.held = None
            value = self.call.invoke()
            self.unstored = granted, value
        except BaseException as error:  # every way in which a function can end is a reply
            if value is not _NOTHING:  # a signal's, after the function has returned
                self.unstored = granted, value
                raise
            return self.raised(error)
        finally:
            scope.attempt = None
            transaction = attempt.close()
        if transaction is not None:
            self.unstored = None  # the result goes with the transaction, or not at all
        return self.returned(value, transaction)

    def _completed_late(self, granted: DataRecord, value: Any) -> DataRecord:
        """The record of a call that was interrupted after its function had returned *value*."""
        reply = self.returned(value, None)
        if isinstance(reply, Returned):
            return self.call.plan.completed(granted, reply.response_data, reply.now_ms)
        return self.call.plan.completed(granted, "", self.clock_ms()).replace(result_kept=False)

    def _renewal(self, granted: DataRecord, attempt: Attempt) -> Callable[[Lease], None]:
        return background.by_workers(self.store, _renewing(self, granted, attempt, self.store.renew))

    def complete(self, record: DataRecord) -> Reply:
        """Store the result."""
        try:
            if self.call.scope.lease is not None:
                self._settle_lease()
            self.store.complete(record)
        except Exception as error:  # noqa: BLE001 - sorted out there
            self.unstored = None
            return self.failed(Complete(record), error)
        self.unstored = None
        return STORED

    def _settle_lease(self) -> None:
        lease = self.lease_to_settle()
        if lease is not None and not lease.wait_until_idle(GIVE_UP_MS / 1000):
            _log_unsettled(lease)


class _AsyncPerformer(_PerformerBase):
    store: AsyncBasePersistenceLayer
    #: The claim that is under way, or was.
    _claiming: asyncio.Task[DataRecord | Refusal] | None = None

    async def perform_observed(self, effect: Effect) -> Reply:
        """As `_Performer.perform_observed`."""
        if isinstance(effect, (Run, Notify)):
            return await self.perform(effect)
        self.collect_notices()
        try:
            return await self.perform(effect)
        finally:
            self.report_notices()

    async def perform(self, effect: Effect) -> Reply:
        if isinstance(effect, Claim):
            return await self.claim(effect.supersedes)
        if isinstance(effect, Run):
            return await self.run(effect.granted)
        if isinstance(effect, Complete):
            return await self.complete(effect.record)
        try:
            match effect:
                case Commit() | Release() | Renew():
                    return await self._write(effect)
                case Notify(event):
                    notify(self.call.observers, event)
                case Wait(tries, at_most_ms):
                    slept = Slept(pause_ms(tries, at_most_ms))
                    await self.store.sleep_ms(slept.ms)
                    return slept
                case Fetch() | Load():
                    return await self._read(effect)
                case _:
                    assert_never(effect)
        except Exception as error:  # noqa: BLE001 - sorted out there
            return self.failed(effect, error)
        return None

    async def _write(self, effect: Commit | Release | Renew) -> Reply:
        match effect:
            case Commit(record, transaction):
                await _to_its_end(partial(self.store.commit, record, transaction))
            case Release(record):
                return STORED if await _to_its_end(partial(self._after_renewals, self.store.release, record)) else GONE
            case _:
                await self.store.renew(effect.record)
        return STORED

    async def _read(self, effect: Fetch | Load) -> Reply:
        if isinstance(effect, Load):
            return Loaded(await self.store.load(effect.record))
        return Found(await self.store.fetch(self.call.plan.key), self.clock_ms())

    async def claim(self, supersedes: DataRecord | None) -> Granted | Refused:
        """Offer a claim."""
        import asyncio

        offer = self.held = self.call.plan.offer(supersedes, self.clock_ms())
        claiming = self._claiming = asyncio.ensure_future(self.store.try_claim(offer))
        claiming.add_done_callback(_retrieved)
        granted = await asyncio.shield(claiming)
        now_ms = self.clock_ms()
        if isinstance(granted, DataRecord):
            self.is_granted = True
            return Granted(granted, now_ms)
        self.held = None
        return Refused(granted.existing, now_ms)

    def must_wind_up(self, error: BaseException) -> bool:
        """As `must_give_up`; whether a claim that is under way will be granted is seen later."""
        is_unanswered = self._claiming is not None and not self._claiming.done()
        return self.must_give_up(error) or (is_unanswered and self.held is not None and not self.call.plan.outlives_call)

    async def wind_up(self) -> None:
        """As `_Performer.wind_up`, for a claim that must be given up.  A completion is shielded from cancellation already."""
        import asyncio

        held, claiming = self.held, self._claiming
        assert held is not None
        assert claiming is not None
        try:
            async with asyncio.timeout(GIVE_UP_MS / 1000):
                # Whatever came of it: a refusal may be by our own record, and a failure may have been applied.
                await asyncio.wait({claiming})
                self.is_granted = self.is_granted or _has_granted(claiming)
                if self.may_give_up():
                    await self.store.release(held)
        except Exception as error:  # noqa: BLE001 - logged
            if not claiming.done():  # it takes longer than this caller can wait
                self.give_up_unawaited()
            _log_not_wound_up(held.key, error)

    def give_up_unawaited(self) -> None:
        """Release the claim later, in a call that can no longer wait for anything.  Takes no lock."""
        held, claiming = self.held, self._claiming
        if held is None or claiming is None:
            return
        if claiming.done() or claiming.get_loop().is_closed():
            self._release_unawaited(held, claiming)
        else:  # called by the loop, if that runs on
            claiming.add_done_callback(lambda done: self._release_unawaited(held, done))

    def _release_unawaited(self, held: DataRecord, claiming: asyncio.Task[DataRecord | Refusal]) -> None:
        self.is_granted = self.is_granted or (claiming.done() and _has_granted(claiming))
        if self.may_give_up():
            self.store.release_unawaited(held, claiming.get_loop())

    async def run(self, granted: DataRecord) -> Reply:
        """Run the function, its lease renewed meanwhile where it is one that is."""
        attempt = self.attempt(granted)
        if self.call.plan.lease_ms is not None:
            try:
                self.keep_lease(granted, self._renewal(granted, attempt))
            except background.ThreadUnavailableError as error:
                return self.unrenewable(error)
        scope = self.call.scope
        try:
            scope.attempt = attempt
            value = await self.call.invoke()
        except BaseException as error:  # every way in which a function can end is a reply
            if _is_closing(error):
                raise  # the claim is still held: see `give_up_unawaited`
            self.held = None
            return self.raised(error)
        finally:
            scope.attempt = None
            transaction = attempt.close()
        self.held = None
        return self.returned(value, transaction)

    def _renewal(self, granted: DataRecord, attempt: Attempt) -> Callable[[Lease], None]:
        from persistence.threaded import ThreadedPersistenceLayer

        if isinstance(self.store, ThreadedPersistenceLayer):
            wrapped = self.store.store
            return background.by_workers(wrapped, _renewing(self, granted, attempt, wrapped.renew))
        return self._renewal_by_loop(granted, attempt)

    def _renewal_by_loop(self, granted: DataRecord, attempt: Attempt) -> Callable[[Lease], None]:
        """The loop of the call renews the lease, so a function that blocks its loop for longer than the lease loses it."""
        import asyncio

        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        async def renew(lease: Lease) -> None:
            if not lease.enter():
                return
            renewed = self.call.plan.renewed(granted, self.clock_ms())
            try:
                await self.store.renew(renewed)
            except IdempotencyLeaseLostError:
                lease.renewed(is_ours=False)
            except BaseException as error:  # noqa: BLE001 - logged there, and nobody awaits this task
                lease.failed(error)
            else:
                attempt.lease_end_ms = self.call.plan.believed_end_ms(renewed)
                lease.renewed(is_ours=True)

        def start(lease: Lease) -> None:
            task = loop.create_task(renew(lease))
            tasks.add(task)
            task.add_done_callback(partial(end, lease))

        def end(lease: Lease, task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if task.cancelled():  # before it began
                lease.failed(asyncio.CancelledError())

        return lambda lease: _call_soon(loop, start, lease)

    async def complete(self, record: DataRecord) -> Reply:
        """Store the result."""
        try:
            await _to_its_end(partial(self._after_renewals, self.store.complete, record))
        except Exception as error:  # noqa: BLE001 - sorted out there
            return self.failed(Complete(record), error)
        return STORED

    def _after_renewals(
        self, write: Callable[[DataRecord], Coroutine[Any, Any, T]], record: DataRecord
    ) -> Coroutine[Any, Any, T]:
        lease = self.lease_to_settle()
        return write(record) if lease is None else _when_settled(lease, write, record)


async def _when_settled(lease: Lease, write: AsyncWrite[T], record: DataRecord) -> T:
    """Write the record as soon as no renewal of the lease is under way."""
    import asyncio

    settled = asyncio.Event()
    lease.when_idle(partial(_call_soon, asyncio.get_running_loop(), settled.set))
    try:
        async with asyncio.timeout(GIVE_UP_MS / 1000):
            await settled.wait()
    except TimeoutError:
        _log_unsettled(lease)
    return await write(record)


def _renewing(
    performer: _PerformerBase, granted: DataRecord, attempt: Attempt, write: Callable[[DataRecord], None]
) -> Callable[[], bool]:
    """What renews the lease once, by a store that is called."""

    def renew() -> bool:
        renewed = performer.call.plan.renewed(granted, performer.clock_ms())
        try:
            write(renewed)
        except IdempotencyLeaseLostError:
            return False
        attempt.lease_end_ms = performer.call.plan.believed_end_ms(renewed)
        return True

    return renew


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Have the loop make the call, from any thread; nothing if the loop has been closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def pause_ms(tries: int, at_most_ms: int) -> float:
    """How long to wait before the next read: doubling, jittered by half so that waiters spread out, within the limit."""
    import random  # here: few calls wait

    ceiling = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** min(tries, 10))
    return min(random.uniform(ceiling / 2, ceiling), at_most_ms)  # noqa: S311 - jitter, not a secret


async def _to_its_end(write: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await a write of the record even if the caller is cancelled meanwhile; the cancellation then follows.

    The end of `asyncio.run` cancels the write, too, which is then made anew: every write is repeatable.
    """
    import asyncio

    cancelled: asyncio.CancelledError | None = None
    for _ in range(MAX_WRITES):
        task = asyncio.ensure_future(write())
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:  # noqa: BLE001 - task.result() below raises it
                break
        if not task.cancelled():
            break
    if cancelled is not None:
        _retrieved(task)
        raise cancelled
    return task.result()


def _retrieved(task: asyncio.Future[Any]) -> None:
    """Look at a task's error, so that asyncio does not report it as lost when a cancellation came first."""
    if not task.cancelled():
        task.exception()


def _has_granted(claiming: asyncio.Task[DataRecord | Refusal]) -> bool:
    return not claiming.cancelled() and claiming.exception() is None and isinstance(claiming.result(), DataRecord)


def _is_closing(error: BaseException | None) -> bool:
    """Whether the error ends a coroutine that is being closed: GeneratorExit, or a function's own error in its place."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, GeneratorExit):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _log_not_wound_up(key: str, error: Exception) -> None:
    _logger().warning(
        "The record of idempotency key %s was not settled after its call was interrupted or failed; its lease frees the key: %s",
        key,
        own_text(error),
    )


def _log_unsettled(lease: Lease) -> None:
    _logger().warning("A renewal of the lease of idempotency key %s hangs; the record is written all the same", lease.key)


def _logger() -> logging.Logger:
    import logging  # imported lazily: speeds up cold start

    return logging.getLogger(__name__)


def _close_unstarted(value: Any) -> None:
    """Close a coroutine that cannot be stored: Python would warn that it was never awaited, which the error says already."""
    from inspect import CORO_CREATED, getcoroutinestate, iscoroutine

    if iscoroutine(value) and getcoroutinestate(value) == CORO_CREATED:
        value.close()
