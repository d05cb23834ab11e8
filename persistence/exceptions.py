"""Every error that a store, or the library above it, may raise.

The thirteen names that Powertools users catch are direct children of `BaseError`, none of them a child of another.  The
errors below them are this library's own and refine one of the thirteen, so an existing `except` clause still catches them.
No error carries a payload, a stored result or a credential in its text.

AWS Lambda logs `str(error)` and the traceback, and never the notes of an exception.  So everything that an operator must know
is in `str(error)`: it begins with Powertools' text, and `BaseError.about` adds the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    from persistence.datarecord import DataRecord
    from persistence.progress import BulkProgress
    from persistence.transaction import CancellationReason


class BaseError(Exception):
    """Root of all idempotency errors: the first argument is the message, the others are its details.

    `str()` is "message - (details)", as in Powertools, followed by the advice.

    Attributes:
        message: The first argument as text.
        details: The other arguments as text; None if there are none.
        idempotency_key: The key of the call; None if the call has no key, or the error belongs to no call.
        function_ran: True if the function ran, in this call or in an earlier one that completed the record; False if it did not;
            None if this is not known, or the error belongs to no call.
        is_retryable: Whether the same call can succeed if it is made again, without a change of payload, configuration or
            permissions.
        explanation: What is known about the cause besides the details, "" if nothing is.
        advice: What `str()` says after the message and the details, the explanation included; "" if `about` was never called.
    """

    message: str = ""
    details: str | None = None
    idempotency_key: str | None = None
    function_ran: bool | None = None
    is_retryable: bool = False
    explanation: str = ""
    advice: str = ""

    def __init__(self, *args: str | Exception | None) -> None:
        super().__init__(*args)
        if args:
            self.message = str(args[0])
            details = [own_text(arg) for arg in args[1:] if arg is not None]
            self.details = "".join(details) if details else None

    def about(
        self,
        idempotency_key: str | None,
        advice: str,
        *,
        explanation: str | None = None,
        function_ran: bool | None = None,
        is_retryable: bool | None = None,
    ) -> Self:
        """Say which key the error concerns and what follows for the caller; an earlier advice is replaced.

        Args:
            idempotency_key: The key, or None.
            advice: Sentences that say whether the function ran and whether a retry helps.
            explanation: Sentences about the cause that the details do not contain.  This one and the others, if they are None,
                stay as the error's class, or an earlier call, has set them.
            function_ran: As the attribute.
            is_retryable: As the attribute.
        """
        self.idempotency_key = idempotency_key
        if explanation is not None:
            self.explanation = explanation
        if function_ran is not None:
            self.function_ran = function_ran
        if is_retryable is not None:
            self.is_retryable = is_retryable
        is_named = not idempotency_key or idempotency_key in f"{self._own_text()} {advice}"
        key = "" if is_named else f"Idempotency key: {idempotency_key}."
        self.advice = " ".join(filter(None, (self.explanation, key, advice)))
        return self

    def _own_text(self) -> str:
        """The text without the advice: Powertools' own."""
        if self.message and self.details:
            return f"{self.message} - ({self.details})"
        return self.message

    def __str__(self) -> str:
        text = self._own_text()
        if not text or not self.advice:
            return text or self.advice
        return f"{text}{' ' if text.endswith(('.', '?', '!')) else '. '}{self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        """All attributes included.  A driver's error among the arguments that cannot be pickled is replaced by its text."""
        args = tuple(arg if _survives_pickling(arg) else own_text(arg) for arg in self.args)
        return type(self), args, self.__dict__


def own_text(detail: str | Exception) -> str:
    """A detail as text: of this library's errors without the advice, which is for another caller; never empty for an error."""
    text = detail._own_text() if isinstance(detail, BaseError) else str(detail)  # noqa: SLF001 - of the class above
    has_no_text = isinstance(detail, BaseException) and text in ("", "None")
    return type(detail).__name__ if has_no_text else text


def _survives_pickling(arg: object) -> bool:
    if not isinstance(arg, BaseException):
        return True
    import pickle  # imported lazily: few errors are pickled

    try:
        pickle.loads(pickle.dumps(arg))  # noqa: S301 - made in this line
    except Exception:  # noqa: BLE001 - whatever a class that was not made for it raises
        return False
    return True


class IdempotencyItemAlreadyExistsError(BaseError):
    """A claim was refused; `old_data_record` is the record that holds the key, where the store knows it."""

    def __init__(self, *args: str | Exception | None, old_data_record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.old_data_record = old_data_record

    def _own_text(self) -> str:
        found = f" from [{self.old_data_record}]" if self.old_data_record else ""
        return f"{super()._own_text()}{found}"


class IdempotencyItemNotFoundError(BaseError):
    """The store has no record of the key.  `store.release_orphan` raises it if there is nothing to release."""


class IdempotencyAlreadyInProgressError(BaseError):
    """Another attempt holds the key: nothing was run, and a later retry gets its result.

    `record` is the record that refused us; its `holder` is the request id of the attempt behind it, where that is known.
    """

    function_ran: bool | None = False
    is_retryable = True

    def __init__(self, *args: str | Exception | None, record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.record = record


class IdempotencyInvalidStatusError(BaseError):
    """A record has a status that is neither INPROGRESS nor COMPLETED, or, for `store.release_orphan`, is not INPROGRESS."""


class IdempotencyValidationError(BaseError):
    """The key is known, but with another payload: nothing was run."""

    function_ran: bool | None = False


class IdempotencyInconsistentStateError(BaseError):
    """The store refused the key and showed it free at once, several times in one call: do the clocks agree?"""

    function_ran: bool | None = False
    is_retryable = True


class IdempotencyPersistenceLayerError(BaseError):
    """The store failed, or the key could not be computed; the details say why."""


class IdempotencyKeyError(BaseError):
    """The payload has no idempotency key, or not all of it, and the configuration demands one."""

    function_ran: bool | None = False


class IdempotencyModelTypeError(BaseError):
    """The function's return type does not fit the output serializer."""

    function_ran: bool | None = False


class IdempotencyNoSerializationModelError(BaseError):
    """The output serializer needs a return type, and the function declares none."""

    function_ran: bool | None = False


class IdempotencyPersistenceConfigError(BaseError):
    """The store cannot do what the configuration asks of it."""

    function_ran: bool | None = False

    #: Whether our own claim may be what is stored: what is misconfigured has not written it.
    outcome_is_unknown = False


class IdempotencyPersistenceConnectionError(BaseError):
    """The store could not be reached at its first use, or refused the credentials."""

    function_ran: bool | None = False
    is_retryable = True


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

    function_ran: bool | None = True
    is_retryable = True

    def __init__(self, *args: str | Exception | None, record: DataRecord | None = None) -> None:
        super().__init__(*args)
        self.record = record


class IdempotencyResultNotKeptError(IdempotencyPersistenceLayerError):
    """The function ran once, but its result could not be stored (it is not JSON, or too large), or is no longer readable.

    The key stays completed, so no retry runs the function again; each gets this error until the record expires.
    """

    function_ran: bool | None = True


class IdempotencyTransactionCanceledError(IdempotencyPersistenceLayerError):
    """The function ran, and its transaction was canceled: a condition did not hold, or the service refused it.

    The claim is released, so that a retry runs the function again; the text says so, or says what went wrong with the release.

    Attributes:
        reasons: One for each of the caller's actions, in the order in which they were added.  Empty if no single action is to
            blame: the request is invalid, or was not sent because the function's result cannot be stored with it.
        nothing_written: Whether it is certain that nothing of the transaction was written.
    """

    function_ran: bool | None = True

    def __init__(
        self, *args: str | Exception | None, reasons: tuple[CancellationReason, ...] = (), nothing_written: bool = False
    ) -> None:
        super().__init__(*args)
        self.reasons = reasons
        self.nothing_written = nothing_written


class IdempotencyOrphanedError(IdempotencyAlreadyInProgressError):
    """An earlier attempt never finished, and `orphan_takeover=False` forbids running the function again by itself.

    Find out whether the effect happened.  If the function is to run again, free the key with the store's `release_orphan`.
    """

    function_ran: bool | None = None
    is_retryable = False


class IdempotencyRequestTooOldError(IdempotencyValidationError):
    """The request was issued so long ago that its result may have expired, and it has no record: nothing was run or written.

    Whether it ran before is not known.  A retry gets the same error, so a queue moves the message to its dead-letter queue.
    """

    function_ran: bool | None = None


class IdempotencyBulkIncompleteError(IdempotencyPersistenceLayerError):
    """Bulk work on a table came to an end before it was done; what was written stays written.

    `progress` says how much, and `progress.checkpoint` is where to go on.
    """

    def __init__(self, *args: str | Exception | None, progress: BulkProgress | None = None) -> None:
        super().__init__(*args)
        self.progress = progress
