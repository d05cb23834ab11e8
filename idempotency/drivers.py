"""Perform what `execution` asks for, against a store and a function: the only loops, sync and async.

No decision is taken here.  The one thing that a driver adds: when the caller is torn away (a signal, a cancelled task) while a
claim is under way, the claim is given up again, so that the next attempt need not wait for its lease.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from idempotency.attempt import Attempt, restore, running_attempt
from idempotency.events import Throttled, notify
from idempotency.execution import (
    GONE,
    STORED,
    Claim,
    Commit,
    Complete,
    Effect,
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
    Unanswered,
    Uncommitted,
    Unloadable,
    Unstorable,
    Wait,
    execution,
    usual,
)
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyLeaseLostError,
    IdempotencyResultNotKeptError,
    own_text,
)
from persistence.notices import call_notices

if TYPE_CHECKING:
    import asyncio
    import logging
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from idempotency.events import Observer
    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer, Refusal
    from persistence.notices import Throttling
    from persistence.transaction import Transaction

T = TypeVar("T")

#: The pauses between reads while waiting for another attempt: short at first, since most functions are, then longer.
FIRST_PAUSE_MS: Final = 50
LONGEST_PAUSE_MS: Final = 1_000

#: How long an interrupted call tries to give its claim up: a shutdown must not hang on it.
GIVE_UP_MS: Final = 3_000


class Call:
    """One call of one function, ready to be driven.

    Attributes:
        plan: What is fixed for the call.
        invoke: Calls the function with its arguments; for an async function, returns what is to be awaited.
        serialize: Turns the function's result into JSON text, or raises.
        observers: Who is told of events.
    """

    __slots__ = ("invoke", "observers", "plan", "serialize")

    def __init__(
        self, plan: Plan, invoke: Callable[[], Any], serialize: Callable[[Any], str], observers: Sequence[Observer]
    ) -> None:
        self.plan = plan
        self.invoke = invoke
        self.serialize = serialize
        self.observers = observers


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
    finally:
        if performer.end_renewal is not None:
            performer.end_renewal()


async def adrive(call: Call, store: AsyncBasePersistenceLayer, cached: Refused | None = None) -> Outcome:
    """As `drive`, for an async function.  Always by `execution`'s steps: beside asyncio's own they cost little."""
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
    finally:
        if performer.end_renewal is not None:
            performer.end_renewal()


class _Watched:
    """What both performers know of the running call."""

    def __init__(self, call: Call, store: Any) -> None:
        self.call = call
        self.store = store
        self.clock_ms: Callable[[], int] = store.clock_ms
        #: Ends the renewal of the lease, if it is one that is renewed.
        self.end_renewal: Callable[[], None] | None = None

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Collect the store's notices, and tell the observers of them in the thread of the call."""
        notices: list[Throttling] = []
        token = call_notices.set(notices)
        try:
            yield
        finally:
            restore(call_notices, token)
            for notice in notices:
                event = Throttled(
                    key=self.call.plan.key,
                    at_ms=self.clock_ms(),
                    operation=notice.operation,
                    requests=notice.requests,
                    reasons=notice.reasons,
                )
                notify(self.call.observers, event)

    def attempt(self, granted: DataRecord) -> Attempt:
        lease_end_ms = granted.in_progress_expiry_timestamp
        return Attempt(self.call.plan.key, granted.owner_token, granted.generation, lease_end_ms, self.store.begin)

    def renew_with(self, granted: DataRecord, attempt: Attempt, write: Callable[[DataRecord], object]) -> None:
        """Have the lease, which is one that is renewed, renewed until the call ends."""
        plan, clock_ms = self.call.plan, self.clock_ms
        assert plan.lease_ms is not None
        from idempotency.heartbeat import heartbeat  # here: a Lambda handler's lease ends with its deadline, and is not renewed

        def renew() -> None:
            renewed = plan.renewed(granted, clock_ms())
            write(renewed)
            attempt.lease_end_ms = renewed.in_progress_expiry_timestamp

        watch = heartbeat.watch(plan.key, renew, clock_ms, plan.lease_ms, granted.in_progress_expiry_timestamp)
        self.end_renewal = partial(heartbeat.forget, watch)

    def returned(self, value: Any, transaction: Transaction | None) -> Reply:
        now_ms = self.clock_ms()
        try:
            response_data = self.call.serialize(value)
        except Exception as error:  # noqa: BLE001 - of the user's serializer; the function has run, so nothing may be raised
            if _has_not_begun(value):
                return Raised(_misdeclared(value), now_ms)
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


class _Performer(_Watched):
    store: BasePersistenceLayer

    def perform_observed(self, effect: Effect) -> Reply:
        """As `perform`; observers hear what the store meets.  Not what stores meet that the function uses, or an observer."""
        if isinstance(effect, (Run, Notify)):
            return self.perform(effect)
        with self.noticing():
            return self.perform(effect)

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
                    self.store.sleep_ms(pause_ms(tries, at_most_ms))
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
        offer = self.call.plan.offer(supersedes, self.clock_ms())
        try:
            granted = self.store.try_claim(offer)
        except Exception:
            raise
        except BaseException:  # a signal's; whether the claim was written is unknown
            if not self.call.plan.outlives_call:
                self._give_up(offer)
            raise
        now_ms = self.clock_ms()
        return Granted(granted, now_ms) if isinstance(granted, DataRecord) else Refused(granted.existing, now_ms)

    def _give_up(self, offer: DataRecord) -> None:
        try:
            self.store.release(offer.replace(deadline_ms=self.clock_ms() + GIVE_UP_MS))
        except Exception as error:  # noqa: BLE001 - logged
            _warn_not_given_up(offer, error)

    def run(self, granted: DataRecord) -> Reply:
        """Run the function, its lease renewed meanwhile where it is one that is."""
        attempt = self.attempt(granted)
        if self.call.plan.lease_ms is not None:
            self.renew_with(granted, attempt, self.store.renew)
        token = running_attempt.set(attempt)
        try:
            value = self.call.invoke()
        except BaseException as error:  # noqa: BLE001 - every way in which a function can end is a reply
            return Raised(error, self.clock_ms())
        finally:
            running_attempt.reset(token)
            transaction = attempt.close()
        return self.returned(value, transaction)

    def complete(self, record: DataRecord) -> Reply:
        """Store the result."""
        try:
            self.store.complete(record)
        except Exception as error:  # noqa: BLE001 - sorted out there
            return self.failed(Complete(record), error)
        return STORED


class _AsyncPerformer(_Watched):
    store: AsyncBasePersistenceLayer

    async def perform_observed(self, effect: Effect) -> Reply:
        """As `_Performer.perform_observed`."""
        if isinstance(effect, (Run, Notify)):
            return await self.perform(effect)
        with self.noticing():
            return await self.perform(effect)

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
                    await self.store.sleep_ms(pause_ms(tries, at_most_ms))
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
                await _to_its_end(self.store.commit(record, transaction))
            case Release(record):
                return STORED if await _to_its_end(self.store.release(record)) else GONE
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

        offer = self.call.plan.offer(supersedes, self.clock_ms())
        claiming = asyncio.ensure_future(self.store.try_claim(offer))
        claiming.add_done_callback(_retrieved)
        try:
            granted = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            if not self.call.plan.outlives_call:
                await _to_its_end(self._give_up(claiming, offer))
            raise
        now_ms = self.clock_ms()
        return Granted(granted, now_ms) if isinstance(granted, DataRecord) else Refused(granted.existing, now_ms)

    async def _give_up(self, claiming: asyncio.Task[DataRecord | Refusal], offer: DataRecord) -> None:
        import asyncio

        try:
            async with asyncio.timeout(GIVE_UP_MS / 1000):
                # Whatever came of it: a refusal may be by our own record, and a failure may have been applied.
                await asyncio.wait({claiming})
                await self.store.release(offer)
        except Exception as error:  # noqa: BLE001 - logged
            _warn_not_given_up(offer, error)

    async def run(self, granted: DataRecord) -> Reply:
        """Run the function, its lease renewed meanwhile where it is one that is."""
        attempt = self.attempt(granted)
        if self.call.plan.lease_ms is not None:
            self.renew_with(granted, attempt, _writer(self.store))
        token = running_attempt.set(attempt)
        try:
            value = await self.call.invoke()
        except GeneratorExit:  # this coroutine is being closed, and may not await any more
            self._release_unawaited(granted)
            raise
        except BaseException as error:  # noqa: BLE001 - every way in which a function can end is a reply
            return Raised(error, self.clock_ms())
        finally:
            restore(running_attempt, token)
            transaction = attempt.close()
        return self.returned(value, transaction)

    async def complete(self, record: DataRecord) -> Reply:
        """Store the result."""
        try:
            await _to_its_end(self.store.complete(record))
        except Exception as error:  # noqa: BLE001 - sorted out there
            return self.failed(Complete(record), error)
        return STORED

    def _release_unawaited(self, granted: DataRecord) -> None:
        """Give the claim up in the background, where the store can; else it ends with its lease."""
        from persistence.threaded import ThreadedPersistenceLayer

        if isinstance(self.store, ThreadedPersistenceLayer):
            self.store.release_in_background(granted)


def pause_ms(tries: int, at_most_ms: int) -> float:
    """How long to wait before the next read: doubling, jittered by half so that waiters spread out, within the limit."""
    import random  # here: few calls wait

    ceiling = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** min(tries, 10))
    return min(random.uniform(ceiling / 2, ceiling), at_most_ms)  # noqa: S311 - jitter, not a secret


def _writer(store: AsyncBasePersistenceLayer) -> Callable[[DataRecord], object]:
    """Renews a lease from the heartbeat's thread."""
    import asyncio

    from persistence.threaded import ThreadedPersistenceLayer

    if isinstance(store, ThreadedPersistenceLayer):
        return store.store.renew

    loop = asyncio.get_running_loop()
    return lambda record: asyncio.run_coroutine_threadsafe(store.renew(record), loop).result(GIVE_UP_MS / 1000)


async def _to_its_end(writing: Coroutine[Any, Any, T]) -> T:
    """Await a write of the record even if the caller is cancelled meanwhile; the cancellation then follows."""
    import asyncio

    task = asyncio.ensure_future(writing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - task.result() below raises it
            break
    if cancelled is not None:
        _retrieved(task)
        raise cancelled
    return task.result()


def _retrieved(task: asyncio.Future[Any]) -> None:
    """Look at a task's error, so that asyncio does not report it as lost when a cancellation came first."""
    if not task.cancelled():
        task.exception()


def _warn_not_given_up(offer: DataRecord, error: Exception) -> None:
    _logger().warning("The claim of idempotency key %s was not given up, and ends with its lease: %s", offer.key, own_text(error))


def _logger() -> logging.Logger:
    import logging  # here: a cold start is the quicker without

    return logging.getLogger(__name__)


def _has_not_begun(value: Any) -> bool:
    """Whether the result is a coroutine or generator: the body of the function has not run."""
    from inspect import isasyncgen, isawaitable, isgenerator

    return isawaitable(value) or isgenerator(value) or isasyncgen(value)


def _misdeclared(value: Any) -> TypeError:
    close = getattr(value, "close", None)
    if close is not None:
        close()  # it would otherwise warn that it was never awaited
    return TypeError(
        f"The function returned a {type(value).__name__} that has not run yet. Only `async def` functions are awaited: "
        "decorate the function that does the work"
    )
