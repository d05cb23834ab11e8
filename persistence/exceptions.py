"""Every error that a store, or the library above it, may raise.

The thirteen names that Powertools users catch are direct children of `BaseError`, none of them a child of another.  The
errors below them are this library's own and refine one of the thirteen, so an existing `except` clause still catches them.
No error carries a payload, a stored result or a credential in its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord
    from persistence.progress import BulkProgress
    from persistence.transaction import CancellationReason


class BaseError(Exception):
    """Root of all idempotency errors: the first argument is the message, the others are its details."""

    message: str = ""
    details: str | None = None

    def __init__(self, *args: str | Exception | None) -> None:
        super().__init__(*args)
        if args:
            self.message = str(args[0])
            self.details = "".join(str(arg) for arg in args[1:]) if args[1:] else None

    def __str__(self) -> str:
        if self.message and self.details:
            return f"{self.message} - ({self.details})"
        return self.message


class IdempotencyItemAlreadyExistsError(BaseError):
    """A claim was refused; `old_data_record` is the record that holds the key, where the store knows it."""

    def __init__(self, *args: str | Exception | None, old_data_record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.old_data_record = old_data_record

    def __str__(self) -> str:
        found = f" from [{self.old_data_record}]" if self.old_data_record else ""
        return f"{super().__str__()}{found}"


class IdempotencyItemNotFoundError(BaseError):
    """The store has no record of the key."""


class IdempotencyAlreadyInProgressError(BaseError):
    """Another attempt holds the key: nothing was run, and a later retry gets its result.

    `record` is the record that refused us; its `holder` is the request id of the attempt behind it, where that is known.
    """

    def __init__(self, *args: str | Exception | None, record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.record = record


class IdempotencyInvalidStatusError(BaseError):
    """A record bears a status that is neither INPROGRESS nor COMPLETED."""


class IdempotencyValidationError(BaseError):
    """The key is known, but with another payload: nothing was run."""


class IdempotencyInconsistentStateError(BaseError):
    """The store refused the key and showed it free at once, several times in one call: do the clocks agree?"""


class IdempotencyPersistenceLayerError(BaseError):
    """The store failed, or the key could not be computed; the details say why."""


class IdempotencyKeyError(BaseError):
    """The payload has no idempotency key, or not all of it, and the configuration demands one."""


class IdempotencyModelTypeError(BaseError):
    """The function's return type does not fit the output serializer."""


class IdempotencyNoSerializationModelError(BaseError):
    """The output serializer needs a return type, and the function declares none."""


class IdempotencyPersistenceConfigError(BaseError):
    """The store cannot do what the configuration asks of it."""


class IdempotencyPersistenceConnectionError(BaseError):
    """The store could not be reached at its first use, or refused the credentials."""


class IdempotencyPersistenceConsistencyError(BaseError):
    """What a cache holds under the key is no idempotency record; it is the cause of an `IdempotencyPersistenceLayerError`."""

    #: Whether our own claim may be what is stored.
    outcome_is_unknown = False


class IdempotencyUnreachableError(IdempotencyPersistenceConnectionError, IdempotencyPersistenceConfigError):
    """The cache has never answered this store, or refused its credentials: at the first call, or when `prime` was called.

    The error of a call is an `IdempotencyPersistenceLayerError`, too, as that of any other failure of the store.
    """


class IdempotencyLeaseLostError(IdempotencyPersistenceLayerError):
    """The attempt's lease had ended and another attempt owns the record, which was left untouched.

    Raised to a caller, it means that the function ran and that the stored result, if any, will be the other attempt's: effects
    may have happened twice, and retrying the call replays that result.  `record` is the other attempt's, where it is known.
    """

    def __init__(self, *args: str | Exception | None, record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.record = record


class IdempotencyResultNotKeptError(IdempotencyPersistenceLayerError):
    """The function ran once, but its result could not be stored (it is not JSON, or too large), or is no longer readable.

    The key stays completed, so no retry runs the function again; each gets this error until the record expires.
    """


class IdempotencyTransactionCanceledError(IdempotencyPersistenceLayerError):
    """The function ran, and its transaction was canceled: a condition did not hold, or the service refused it.

    Nothing of it was written, and the claim is released, so that a retry runs the function again; a note says so, or says what
    went wrong with the release.  `reasons` has one entry for each action of the caller's, in the order in which they were added.
    It is empty where no single action is to blame: the request is invalid, or was not sent because the function's result cannot
    be stored with it.
    """

    def __init__(self, *args: str | Exception | None, reasons: tuple[CancellationReason, ...] = ()) -> None:
        super().__init__(*args)
        self.reasons = reasons


class IdempotencyOrphanedError(IdempotencyAlreadyInProgressError):
    """An earlier attempt never finished, and `orphan_takeover=False` forbids running the function again by itself.

    Find out whether the effect happened; then delete the record to allow a new run, or leave it.
    """


class IdempotencyRequestTooOldError(IdempotencyValidationError):
    """The request was issued so long ago that its result may have expired, and it has no record: nothing was run or written.

    Whether it ran before is not known.  A retry gets the same error, so a queue moves the message to its dead-letter queue.
    """


class IdempotencyBulkIncompleteError(IdempotencyPersistenceLayerError):
    """Bulk work on a table came to an end before it was done; what was written stays written.

    `progress` says how much, and `progress.checkpoint` is where to go on.
    """

    def __init__(self, *args: str | Exception | None, progress: BulkProgress | None = None) -> None:
        super().__init__(*args)
        self.progress = progress
