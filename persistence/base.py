"""The store contract: four hooks that a backend supplies, and the verbs through which the library uses them.

A store holds no state of any function: one store object serves any number of functions, configurations and threads.  What a
backend must decide is in `rules`, what it may raise in `exceptions`.  Whatever else a hook raises, the verbs turn into
`IdempotencyPersistenceLayerError`, once, here.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from persistence._values import Value
from persistence.background import ThreadUnavailableError
from persistence.datarecord import COMPLETED, INPROGRESS, STATUS_CONSTANTS, DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyInvalidStatusError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyKeyError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyTransactionCanceledError,
    IdempotencyValidationError,
)
from persistence.missing import is_missing_idempotency_key
from persistence.rules import is_expired, is_too_old, may_release_orphan
from persistence.scope import innermost_scope

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Awaitable, Callable

    from persistence.transaction import Transaction

__all__ = [
    "STATUS_CONSTANTS",
    "AsyncBasePersistenceLayer",
    "BasePersistenceLayer",
    "CallSettings",
    "DataRecord",
    "Refusal",
]

T = TypeVar("T")

#: What a failed verb says: Powertools' words; whether the function ran; what the caller should know if a retry may help, and if
#: it cannot, because the configuration or the permissions are wrong.
Failed: TypeAlias = tuple[str, bool | None, str, str]
_NOT_RUN: Final = (
    False,
    "The function was not run; retry the call.",
    "The function was not run; a retry does not help until this is corrected.",
)
CLAIM_FAILED: Final[Failed] = ("Failed to save in progress record to idempotency store", *_NOT_RUN)
FETCH_FAILED: Final[Failed] = ("Failed to get record from idempotency store", *_NOT_RUN)
COMPLETE_FAILED: Final[Failed] = (
    "Failed to update record state to success in idempotency store",
    True,
    "The function ran, but its result is not known to be stored; once its lease has ended, a retry may run it again.",
    "The function ran, but its result is not known to be stored; a retry, which may run it again, fails until this is corrected.",
)
RELEASE_FAILED: Final[Failed] = (
    "Failed to delete record from idempotency store",
    None,
    "The key stays claimed until the lease ends; a retry before that is refused.",
    "The key stays claimed until the lease ends; a retry before that is refused.",
)
RELEASE_ORPHAN_FAILED: Final[Failed] = (
    RELEASE_FAILED[0],
    None,
    "The orphan is not known to be released; a retry of release_orphan is safe.",
    "The orphan was not released; a retry does not help until this is corrected.",
)
COMMIT_FAILED: Final[Failed] = (
    "Failed to commit the transaction in the idempotency store",
    True,
    (
        "The function ran. Retry the call: it returns the stored result if the transaction was written, and runs the function "
        "again if not."
    ),
    "The function ran; a retry does not help until this is corrected.",
)
_WRITTEN_OR_NOT: Final = (
    "The function ran. The call has no record: whether its transaction was written is not known; a retry would write it again."
)
UNPROTECTED_COMMIT_FAILED: Final[Failed] = (COMMIT_FAILED[0], True, _WRITTEN_OR_NOT, _WRITTEN_OR_NOT)
LOAD_FAILED: Final[Failed] = (
    "Failed to load the stored result",
    True,
    "The function ran before and was not run again; retry the call.",
    "The function ran before and was not run again; a retry does not help until this is corrected.",
)
RENEW_FAILED: Final[Failed] = (
    "Failed to renew the lease in the idempotency store",
    None,
    "The renewal is tried again before the lease ends.",
    "The renewal is tried again before the lease ends, but a retry does not help until this is corrected.",
)

#: Failures that the same request meets again: wrong configuration, foreign data under the key, or a mistake in a hook.
LASTING: Final = (
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyInvalidStatusError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    TypeError,
)

#: What a hook may say to the library, besides refusing a claim.  Everything else is a failure of the store.
CLAIM_ANSWERS: Final = (IdempotencyKeyError, IdempotencyValidationError)
WRITE_ANSWERS: Final = (IdempotencyLeaseLostError, IdempotencyResultNotKeptError)
COMMIT_ANSWERS: Final = (IdempotencyLeaseLostError, IdempotencyTransactionCanceledError)

#: A set of plain strings, because a record's status is one.
KNOWN_STATUSES: Final = frozenset({INPROGRESS, COMPLETED})


class CallSettings(Value):
    """The configuration of the running call, for hooks written for Powertools, which read it from their store."""

    __slots__ = __match_args__ = (
        "function_name",
        "event_key_jmespath",
        "payload_validation_enabled",
        "raise_on_no_idempotency_key",
        "expires_after_seconds",
        "use_local_cache",
        "hash_function",
    )

    def __init__(
        self,
        function_name: str = "",
        event_key_jmespath: str = "",
        payload_validation_enabled: bool = False,
        raise_on_no_idempotency_key: bool = False,
        expires_after_seconds: int = 60 * 60,
        use_local_cache: bool = False,
        hash_function: Callable[..., Any] = hashlib.md5,
    ) -> None:
        self.function_name = function_name
        self.event_key_jmespath = event_key_jmespath
        self.payload_validation_enabled = payload_validation_enabled
        self.raise_on_no_idempotency_key = raise_on_no_idempotency_key
        self.expires_after_seconds = expires_after_seconds
        self.use_local_cache = use_local_cache
        self.hash_function = hash_function


class Refusal:
    """A claim was refused.

    Attributes:
        existing: The record that holds the key; None if the answer did not show it.
    """

    __slots__ = ("existing",)

    def __init__(self, existing: DataRecord | None) -> None:
        self.existing = existing


_DEFAULTS: Final = CallSettings()


class _FromCall(Generic[T]):
    """A store attribute that reads the running call's configuration.  A subclass may assign its own instead."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, store: object, owner: type | None = None) -> T:
        scope = innermost_scope()
        settings = None if scope is None else scope.settings
        value: T = getattr(_DEFAULTS if settings is None else settings, self._name)
        return value


def wall_clock_ms() -> int:
    """The present in epoch milliseconds by this machine's clock, which conditions compare with other machines' timestamps."""
    return time.time_ns() // 1_000_000


class _Layer:
    """What sync and async stores share.  Nothing here needs `__init__` to have run: subclasses call it late, or not at all."""

    #: The store honours owner tokens: it fences late writes, renews leases and obeys `takes_over_orphans`.
    supports_leases: bool = False

    #: A renewal never overwrites a completion or release that it meets on its way.  If it might, the library sends these only
    #: after the last renewal has ended.
    renews_atomically: bool = False

    #: Claims obey `fresh_until_ms`.  Without it, a request that is too old is refused by an orphan, too.
    supports_fresh_until: bool = False

    #: Injectable: the present in epoch milliseconds.
    clock_ms: Callable[[], int] = staticmethod(wall_clock_ms)

    function_name: _FromCall[str] = _FromCall()
    event_key_jmespath: _FromCall[str] = _FromCall()
    payload_validation_enabled: _FromCall[bool] = _FromCall()
    raise_on_no_idempotency_key: _FromCall[bool] = _FromCall()
    expires_after_seconds: _FromCall[int] = _FromCall()
    use_local_cache: _FromCall[bool] = _FromCall()
    hash_function: _FromCall[Callable[..., Any]] = _FromCall()

    is_missing_idempotency_key = staticmethod(is_missing_idempotency_key)

    def begin(self, idempotency_key: str) -> Transaction:
        """An empty transaction, to be committed with the record of this key.  Nothing is sent.

        Raises:
            IdempotencyPersistenceConfigError: the store has no transactions.
        """
        return self._begin_transaction(idempotency_key)

    def _begin_transaction(self, idempotency_key: str) -> Transaction:  # noqa: ARG002 - for stores that have transactions
        """As `begin`; only for stores that commit a record together with their users' own writes."""
        raise IdempotencyPersistenceConfigError(
            f"{type(self).__name__} has no transactions; DynamoDBPersistenceLayer commits a record together with other writes"
        )

    def is_claim_unsent(self, error: Exception) -> bool:
        """Whether the failure of a claim proves that the claim was not written.  If in doubt, False."""
        return isinstance(error, CLAIM_ANSWERS) or isinstance(error.__cause__, ThreadUnavailableError)

    def _check_status(self, offer: DataRecord, existing: DataRecord) -> None:
        """Raise if the refusing record, whose status is unknown, cannot be judged.  An expired one can, whatever it says."""
        if is_expired(existing, self.clock_ms()):
            return
        unknown = IdempotencyInvalidStatusError(existing.stored_status)
        raise self._failure(CLAIM_FAILED, offer.key, unknown) from unknown

    def _only_reads(self, offer: DataRecord) -> bool:
        """Whether the request is too old, and no orphan was seen that it could take over: nothing is written for it."""
        return not offer.took_over and is_too_old(offer.fresh_until_ms, self.clock_ms())

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:  # noqa: ARG002 - for stores that know more
        """What the store knows about a failure: sentences beyond the error's own text, or "", and whether a retry may help."""
        if isinstance(error, IdempotencyPersistenceConnectionError):
            return "", error.is_retryable
        return "", not isinstance(error, LASTING)

    def _failure(self, failed: Failed, idempotency_key: str, error: Exception) -> IdempotencyPersistenceLayerError:
        message, function_ran, advice, lasting_advice = failed
        explanation, is_retryable = self._diagnose(error, idempotency_key)
        return IdempotencyPersistenceLayerError(message, error).about(
            idempotency_key,
            advice if is_retryable else lasting_advice,
            explanation=explanation,
            function_ran=function_ran,
            is_retryable=is_retryable and failed is not UNPROTECTED_COMMIT_FAILED,
        )


class BasePersistenceLayer(_Layer, ABC):
    """A store, as the library uses it.  Subclass it and supply the four hooks to write your own.

    The hooks are called with exactly the keywords shown.  A hook that ignores `owner_token` works as with Powertools: claims are
    atomic if `_put_record` is, but an attempt that outlives its lease can overwrite its successor's result.
    """

    #: Injectable: wait for so many milliseconds.  Between tries of a request, and while another attempt is waited for.
    sleep_ms: Callable[[float], None] = staticmethod(lambda ms: time.sleep(ms / 1000))

    def __init__(self) -> None:
        """Nothing to set up; present because subclasses written for Powertools call it."""

    def claim(self, offer: DataRecord) -> DataRecord:
        """Give *offer*'s owner the key, until the lease in the offer ends.

        An offer for a request that is too old, by its `fresh_until_ms`, is granted only in the place of an orphan.  If it has not
        seen one (`took_over`), the record is read, and nothing is written.

        Returns:
            The granted record.

        Raises:
            IdempotencyItemAlreadyExistsError: refused; `old_data_record` is the holder, None if it vanished meanwhile.
            IdempotencyPersistenceLayerError: the store failed; the claim may or may not have been written.
        """
        granted = self.try_claim(offer)
        if isinstance(granted, Refusal):
            raise IdempotencyItemAlreadyExistsError(old_data_record=granted.existing).about(offer.key, "")
        return granted

    def try_claim(self, offer: DataRecord) -> DataRecord | Refusal:
        """As `claim`, but a refusal is returned: it is the answer to every duplicate, and an exception would be dearer."""
        try:
            only_reads = offer.fresh_until_ms is not None and self._only_reads(offer)
            granted = Refusal(None) if only_reads else self._offer_record(offer)
        except CLAIM_ANSWERS as answer:
            _name_answer(answer, offer.key, CLAIM_FAILED)
            raise
        except Exception as error:
            raise self._failure(CLAIM_FAILED, offer.key, error) from error
        if isinstance(granted, Refusal):
            if granted.existing is None:
                granted = Refusal(self.fetch(offer.key))
            if granted.existing is not None and granted.existing.stored_status not in KNOWN_STATUSES:
                self._check_status(offer, granted.existing)
            return granted
        return granted if isinstance(granted, DataRecord) else offer  # a hook written for Powertools may return anything

    def fetch(self, idempotency_key: str) -> DataRecord | None:
        """Read the record of the key, at least as new as any answer given before; None if there is none."""
        try:
            return self._get_record(idempotency_key=idempotency_key)
        except IdempotencyItemNotFoundError:
            return None
        except Exception as error:
            raise self._failure(FETCH_FAILED, idempotency_key, error) from error

    def complete(self, record: DataRecord) -> None:
        """Store the holder's result.  Repeatable: a second time by the same owner changes nothing.

        Raises:
            IdempotencyLeaseLostError: another attempt owns the record, which is unchanged.
            IdempotencyResultNotKeptError: the store cannot hold this result; nothing was written.
        """
        try:  # as `_translated` does, without the call: every new key comes here
            self._update_record(data_record=record)
        except WRITE_ANSWERS as answer:
            _name_answer(answer, record.key, COMPLETE_FAILED)
            raise
        except Exception as error:
            raise self._failure(COMPLETE_FAILED, record.key, error) from error

    def commit(self, record: DataRecord | None, transaction: Transaction) -> None:
        """Store the holder's result together with the transaction's writes, or neither.

        *record* is None for a call without a record, whose writes are committed by themselves.  Repeatable: of two commits by one
        owner, the second is refused, and shown the record that the first has completed.

        Raises:
            IdempotencyLeaseLostError: the record is not an unfinished one of this owner; this request has written nothing.
            IdempotencyTransactionCanceledError: nothing was written, for a reason of the caller's own.
            IdempotencyPersistenceLayerError: the store failed; both or neither were written.
        """
        try:
            self._commit_record(data_record=record, transaction=transaction)
        except COMMIT_ANSWERS as answer:
            _name_answer(answer, transaction.idempotency_key, COMMIT_FAILED)
            raise
        except Exception as error:
            failed = UNPROTECTED_COMMIT_FAILED if record is None else COMMIT_FAILED
            raise self._failure(failed, transaction.idempotency_key, error) from error

    def release(self, record: DataRecord) -> bool:
        """Give the key up unused.  Repeatable; a completed record survives it.

        Returns:
            False if the store says that there was no record any more; the key is free then, too.

        Raises:
            IdempotencyLeaseLostError: the record is not an unfinished one of this owner, and is unchanged.
        """
        return self._translated(self._delete_record, RELEASE_FAILED, record) is not False

    def release_orphan(self, idempotency_key: str, *, owner_token: str, even_if_leased: bool = False) -> None:
        """Free the key of an attempt that never finished, so that the next call runs the function again.

        The record is deleted only if it is still the unfinished one of the attempt with *owner_token*, which the `record` of an
        `IdempotencyOrphanedError` has; "" for an attempt of Powertools.  The store decides and deletes in one step; only a store
        of your own, and a cache's client without scripts, read first.

        It does not undo anything: find out before whether the attempt's effect happened.

        Args:
            idempotency_key: The key, as in `idempotency_key` of the error.
            owner_token: The attempt that was seen to hold the key.
            even_if_leased: Release it although its lease has not ended.  The attempt may then still be running: its effect can
                happen beside that of the next attempt, and only its result is fenced off.

        Raises:
            IdempotencyItemNotFoundError: there is no record; the key is free.
            IdempotencyInvalidStatusError: the record is completed; it is replayed until it expires.
            IdempotencyLeaseLostError: another attempt holds the key; `record` is that attempt's.
            IdempotencyAlreadyInProgressError: the lease has not ended.
            IdempotencyPersistenceLayerError: the store failed.
        """
        now_ms = None if even_if_leased else self.clock_ms()
        orphan = DataRecord(idempotency_key, INPROGRESS, owner_token=owner_token)
        try:
            is_deleted = self._delete_orphan(data_record=orphan, now_ms=now_ms)
        except IdempotencyLeaseLostError as refused:
            raise _not_released(orphan, refused.record) from None
        except Exception as error:
            raise self._failure(RELEASE_ORPHAN_FAILED, idempotency_key, error) from error
        if not is_deleted:
            raise _not_released(orphan, None)

    def renew(self, record: DataRecord) -> None:
        """Move the holder's lease end and expiry to those of *record*, unless the lease ends later already.

        A request that was delayed on its way must not set a lease back.  Only for stores that support leases.

        Raises:
            IdempotencyLeaseLostError: the record is not an unfinished one of this owner, and is unchanged.
        """
        self._translated(self._update_record, RENEW_FAILED, record)

    def load(self, record: DataRecord) -> DataRecord:
        """The completed record with its result, wherever the store keeps that.

        Raises:
            IdempotencyResultNotKeptError: the result was stored, and is gone or altered now; the function ran, once.
            IdempotencyPersistenceLayerError: the result cannot be read at the moment.
        """
        if record.packed_result is None:
            return record
        try:
            return record.replace(response_data=self._load_result(data_record=record), packed_result=None)
        except IdempotencyResultNotKeptError as answer:
            _name_answer(answer, record.key, LOAD_FAILED)
            raise
        except Exception as error:
            raise self._failure(LOAD_FAILED, record.key, error) from error

    def _translated(self, hook: Callable[..., T], failed: Failed, record: DataRecord) -> T:
        try:
            return hook(data_record=record)
        except WRITE_ANSWERS as answer:
            _name_answer(answer, record.key, failed)
            raise
        except Exception as error:
            raise self._failure(failed, record.key, error) from error

    @abstractmethod
    def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        """Claim the key for *data_record*'s owner if `rules.is_claimable`, atomically against every other claim.

        A store that also obeys `fresh_until_ms` declares it: `supports_fresh_until = True`.

        Returns:
            The granted record with its generation; None if granted exactly as offered.

        Raises:
            IdempotencyItemAlreadyExistsError: refused, if possible with `old_data_record`.
        """

    @abstractmethod
    def _get_record(self, idempotency_key: str) -> DataRecord:
        """Read the record, consistently with earlier writes.

        Raises:
            IdempotencyItemNotFoundError: there is none.
        """

    @abstractmethod
    def _update_record(self, data_record: DataRecord) -> None:
        """Complete the record if `rules.may_complete`, keeping its payload hash; renew it if *data_record* is INPROGRESS.

        A renewal never makes a lease end earlier.

        Raises:
            IdempotencyLeaseLostError: another attempt owns it; `record` is what was found.
        """

    @abstractmethod
    def _delete_record(self, data_record: DataRecord) -> bool | None:
        """Delete the record if `rules.may_release`; a record that is gone already is no error.

        Returns:
            False if there was no record; anything else if there was one, or if this is not known.

        Raises:
            IdempotencyLeaseLostError: it may not be deleted; `record` is what was found.
        """

    def _offer_record(self, offer: DataRecord) -> DataRecord | Refusal | None:
        """As `_put_record`, which it calls, but a refusal is returned."""
        try:
            return self._put_record(data_record=offer)
        except IdempotencyItemAlreadyExistsError as refused:
            return Refusal(refused.old_data_record)

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        """Delete the record if `rules.may_release_orphan`; False if there is none.

        A store whose conditions travel with its writes overrides it, so that the decision and the deletion are one step.

        Raises:
            IdempotencyLeaseLostError: it may not be deleted; `record` is what was found.
        """
        try:
            existing = self._get_record(idempotency_key=data_record.key)
        except IdempotencyItemNotFoundError:
            return False
        if not may_release_orphan(existing, data_record.owner_token, now_ms):
            raise fenced(data_record, existing)
        return self._delete_record(data_record=existing) is not False

    def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        """As `commit`.  Only for stores whose `_begin_transaction` gives transactions.

        Raises:
            IdempotencyLeaseLostError: `rules.may_release` does not hold of the record; `record` is what was found.
            IdempotencyTransactionCanceledError: nothing was written, for a reason of the caller's own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no transactions")

    def _load_result(self, data_record: DataRecord) -> str:
        """The result behind `packed_result`.  Only for stores that pack large results.

        Raises:
            IdempotencyResultNotKeptError: it is gone, or was altered.
        """
        raise NotImplementedError(f"{type(self).__name__} packs no results")


#: Kept until they are done: a loop keeps no tasks.
_releases: set[Task[bool]] = set()


def _released(task: Task[bool]) -> None:
    _releases.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        import logging  # imported lazily: speeds up cold start

        logging.getLogger(__name__).warning("The claim of a closed coroutine was not released; it ends with its lease: %s", error)


class AsyncBasePersistenceLayer(_Layer, ABC):
    """A store with a native asyncio client: the contract of `BasePersistenceLayer`, awaited.  For async functions only."""

    async def sleep_ms(self, ms: float) -> None:
        """Wait for so many milliseconds.  Injectable."""
        import asyncio  # here, so that sync users do not pay for its import

        await asyncio.sleep(ms / 1000)

    def release_unawaited(self, record: DataRecord, loop: AbstractEventLoop) -> None:
        """Release the record later, by the loop, for a caller that can no longer wait.  Takes no lock.

        Called while the garbage collector closes a coroutine, in any thread and at any line.  If the loop does not run any more,
        the claim ends with its lease.
        """
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._begin_release, record, loop)

    def _begin_release(self, record: DataRecord, loop: AbstractEventLoop) -> None:
        task = loop.create_task(self.release(record))
        _releases.add(task)
        task.add_done_callback(_released)

    async def claim(self, offer: DataRecord) -> DataRecord:
        """As `BasePersistenceLayer.claim`."""
        granted = await self.try_claim(offer)
        if isinstance(granted, Refusal):
            raise IdempotencyItemAlreadyExistsError(old_data_record=granted.existing).about(offer.key, "")
        return granted

    async def try_claim(self, offer: DataRecord) -> DataRecord | Refusal:
        """As `BasePersistenceLayer.try_claim`."""
        try:
            only_reads = offer.fresh_until_ms is not None and self._only_reads(offer)
            granted = Refusal(None) if only_reads else await self._offer_record(offer)
        except CLAIM_ANSWERS as answer:
            _name_answer(answer, offer.key, CLAIM_FAILED)
            raise
        except Exception as error:
            raise self._failure(CLAIM_FAILED, offer.key, error) from error
        if isinstance(granted, Refusal):
            if granted.existing is None:
                granted = Refusal(await self.fetch(offer.key))
            if granted.existing is not None and granted.existing.stored_status not in KNOWN_STATUSES:
                self._check_status(offer, granted.existing)
            return granted
        return granted if isinstance(granted, DataRecord) else offer

    async def fetch(self, idempotency_key: str) -> DataRecord | None:
        """As `BasePersistenceLayer.fetch`."""
        try:
            return await self._get_record(idempotency_key=idempotency_key)
        except IdempotencyItemNotFoundError:
            return None
        except Exception as error:
            raise self._failure(FETCH_FAILED, idempotency_key, error) from error

    async def complete(self, record: DataRecord) -> None:
        """As `BasePersistenceLayer.complete`."""
        await self._translated(self._update_record, COMPLETE_FAILED, record)

    async def commit(self, record: DataRecord | None, transaction: Transaction) -> None:
        """As `BasePersistenceLayer.commit`."""
        try:
            await self._commit_record(data_record=record, transaction=transaction)
        except COMMIT_ANSWERS as answer:
            _name_answer(answer, transaction.idempotency_key, COMMIT_FAILED)
            raise
        except Exception as error:
            failed = UNPROTECTED_COMMIT_FAILED if record is None else COMMIT_FAILED
            raise self._failure(failed, transaction.idempotency_key, error) from error

    async def release(self, record: DataRecord) -> bool:
        """As `BasePersistenceLayer.release`."""
        return await self._translated(self._delete_record, RELEASE_FAILED, record) is not False

    async def release_orphan(self, idempotency_key: str, *, owner_token: str, even_if_leased: bool = False) -> None:
        """As `BasePersistenceLayer.release_orphan`."""
        now_ms = None if even_if_leased else self.clock_ms()
        orphan = DataRecord(idempotency_key, INPROGRESS, owner_token=owner_token)
        try:
            is_deleted = await self._delete_orphan(data_record=orphan, now_ms=now_ms)
        except IdempotencyLeaseLostError as refused:
            raise _not_released(orphan, refused.record) from None
        except Exception as error:
            raise self._failure(RELEASE_ORPHAN_FAILED, idempotency_key, error) from error
        if not is_deleted:
            raise _not_released(orphan, None)

    async def renew(self, record: DataRecord) -> None:
        """As `BasePersistenceLayer.renew`."""
        await self._translated(self._update_record, RENEW_FAILED, record)

    async def load(self, record: DataRecord) -> DataRecord:
        """As `BasePersistenceLayer.load`."""
        if record.packed_result is None:
            return record
        try:
            return record.replace(response_data=await self._load_result(data_record=record), packed_result=None)
        except IdempotencyResultNotKeptError as answer:
            _name_answer(answer, record.key, LOAD_FAILED)
            raise
        except Exception as error:
            raise self._failure(LOAD_FAILED, record.key, error) from error

    async def _translated(self, hook: Callable[..., Awaitable[T]], failed: Failed, record: DataRecord) -> T:
        try:
            return await hook(data_record=record)
        except WRITE_ANSWERS as answer:
            _name_answer(answer, record.key, failed)
            raise
        except Exception as error:
            raise self._failure(failed, record.key, error) from error

    @abstractmethod
    async def _put_record(self, data_record: DataRecord) -> DataRecord | None:
        """As `BasePersistenceLayer._put_record`."""

    @abstractmethod
    async def _get_record(self, idempotency_key: str) -> DataRecord:
        """As `BasePersistenceLayer._get_record`."""

    @abstractmethod
    async def _update_record(self, data_record: DataRecord) -> None:
        """As `BasePersistenceLayer._update_record`."""

    @abstractmethod
    async def _delete_record(self, data_record: DataRecord) -> bool | None:
        """As `BasePersistenceLayer._delete_record`."""

    async def _offer_record(self, offer: DataRecord) -> DataRecord | Refusal | None:
        """As `BasePersistenceLayer._offer_record`."""
        try:
            return await self._put_record(data_record=offer)
        except IdempotencyItemAlreadyExistsError as refused:
            return Refusal(refused.old_data_record)

    async def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        """As `BasePersistenceLayer._delete_orphan`."""
        try:
            existing = await self._get_record(idempotency_key=data_record.key)
        except IdempotencyItemNotFoundError:
            return False
        if not may_release_orphan(existing, data_record.owner_token, now_ms):
            raise fenced(data_record, existing)
        return await self._delete_record(data_record=existing) is not False

    async def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        """As `BasePersistenceLayer._commit_record`."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions")

    async def _load_result(self, data_record: DataRecord) -> str:
        """As `BasePersistenceLayer._load_result`."""
        raise NotImplementedError(f"{type(self).__name__} packs no results")


def fenced(record: DataRecord, existing: DataRecord | None) -> IdempotencyLeaseLostError:
    """The error of a write by the owner of *record* that the store refused because of *existing*."""
    return IdempotencyLeaseLostError(f"Another attempt owns the record of idempotency key {record.key}", record=existing)


def _name_answer(answer: BaseError, idempotency_key: str, failed: Failed) -> None:
    """Say in an answer of a hook which key it concerns, and whether the function ran, unless it says so itself."""
    if answer.advice:
        return
    function_ran = failed[1]
    if isinstance(answer, IdempotencyLeaseLostError):
        answer.function_ran, answer.is_retryable = function_ran, bool(function_ran)
    if isinstance(answer, IdempotencyResultNotKeptError) and failed is not LOAD_FAILED:
        answer.about(idempotency_key, "")  # the caller completes the record without the result, and gets another error
        return
    ran = "" if function_ran is None else "The function ran. " if function_ran else "The function was not run. "
    answer.about(idempotency_key, f"{ran}A retry {'may help' if answer.is_retryable else 'does not help'}.")


def _not_released(orphan: DataRecord, existing: DataRecord | None) -> BaseError:
    from persistence._orphans import not_released  # imported lazily: few processes ever release an orphan

    return not_released(orphan, existing)
