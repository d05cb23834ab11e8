"""The errors that users catch: their names, texts and pickles."""

from __future__ import annotations

import copy
import pickle
import traceback
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError

import idempotency.exceptions
from persistence import exceptions
from persistence._lean_errors import ServiceError
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyBulkIncompleteError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyOrphanedError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyPersistenceLayerError,
    IdempotencyRequestTooOldError,
    IdempotencyResultNotKeptError,
    IdempotencyTransactionCanceledError,
    IdempotencyUnreachableError,
    IdempotencyValidationError,
)
from persistence.transaction import CancellationReason

POWERTOOLS_NAMES = [
    "IdempotencyAlreadyInProgressError",
    "IdempotencyInconsistentStateError",
    "IdempotencyInvalidStatusError",
    "IdempotencyItemAlreadyExistsError",
    "IdempotencyItemNotFoundError",
    "IdempotencyKeyError",
    "IdempotencyModelTypeError",
    "IdempotencyNoSerializationModelError",
    "IdempotencyPersistenceConfigError",
    "IdempotencyPersistenceConnectionError",
    "IdempotencyPersistenceConsistencyError",
    "IdempotencyPersistenceLayerError",
    "IdempotencyValidationError",
]
OWN: dict[type[BaseError], tuple[type[BaseError], ...]] = {
    IdempotencyBulkIncompleteError: (IdempotencyPersistenceLayerError,),
    IdempotencyLeaseLostError: (IdempotencyPersistenceLayerError,),
    IdempotencyResultNotKeptError: (IdempotencyPersistenceLayerError,),
    IdempotencyTransactionCanceledError: (IdempotencyPersistenceLayerError,),
    IdempotencyOrphanedError: (IdempotencyAlreadyInProgressError,),
    IdempotencyRequestTooOldError: (IdempotencyValidationError,),
    IdempotencyUnreachableError: (IdempotencyPersistenceConnectionError, IdempotencyPersistenceConfigError),
}
EVERY_ERROR: list[type[BaseError]] = [BaseError, *(getattr(exceptions, name) for name in POWERTOOLS_NAMES), *OWN]
RECORD = DataRecord("fn#1", "INPROGRESS", 1_800_000_000, 1_800_000_000_250, '"secret"', "hash", holder="request-1", generation=2)
WITH_RECORD: list[tuple[type[BaseError], str]] = [
    (IdempotencyItemAlreadyExistsError, "old_data_record"),
    (IdempotencyAlreadyInProgressError, "record"),
    (IdempotencyLeaseLostError, "record"),
    (IdempotencyOrphanedError, "record"),
]


@pytest.mark.parametrize("name", POWERTOOLS_NAMES)
def test_each_of_the_thirteen_known_errors_is_a_direct_child_of_the_root(name: str) -> None:
    assert getattr(exceptions, name).__bases__ == (BaseError,)


def test_there_are_thirteen_known_errors_and_seven_of_our_own() -> None:
    defined = {
        name for name, value in vars(exceptions).items() if isinstance(value, type) and value.__module__ == exceptions.__name__
    }

    assert defined == {"BaseError", *POWERTOOLS_NAMES, *(own.__name__ for own in OWN)}


@pytest.mark.parametrize(("own", "known"), OWN.items())
def test_our_own_errors_are_caught_by_who_catches_the_known_ones(
    own: type[BaseError], known: tuple[type[BaseError], ...]
) -> None:
    assert own.__bases__ == known


def test_the_root_is_an_exception_and_nothing_else() -> None:
    assert BaseError.__bases__ == (Exception,)


def test_users_find_every_error_in_the_package_that_they_import() -> None:
    assert set(idempotency.exceptions.__all__) == {error.__name__ for error in EVERY_ERROR}
    for error in EVERY_ERROR:
        assert getattr(idempotency.exceptions, error.__name__) is error


@pytest.mark.parametrize("error", EVERY_ERROR)
@pytest.mark.parametrize(
    ("args", "message", "details", "text"),
    [
        ((), "", None, ""),
        (("m",), "m", None, "m"),
        (("m", "d"), "m", "d", "m - (d)"),
        (("m", "d", "e"), "m", "de", "m - (de)"),
        (("m", ValueError("v")), "m", "v", "m - (v)"),
        (("m", ""), "m", "", "m"),
        (("m", None), "m", None, "m"),
        (("m", None, "d"), "m", "d", "m - (d)"),
        (("m", ValueError()), "m", "ValueError", "m - (ValueError)"),
        (("m", ValueError(None)), "m", "ValueError", "m - (ValueError)"),
        (("m", IdempotencyPersistenceLayerError("n", "d").about("k", "a")), "m", "n - (d)", "m - (n - (d))"),
        (("", "d"), "", "d", ""),
        ((ValueError("v"),), "v", None, "v"),
        ((None,), "None", None, "None"),
    ],
)
def test_the_first_argument_is_the_message_and_the_others_are_details(
    error: type[BaseError], args: tuple[Any, ...], message: str, details: str | None, text: str
) -> None:
    raised = error(*args)

    assert (raised.message, raised.details, str(raised)) == (message, details, text)
    assert raised.args == args


@pytest.mark.parametrize("error", EVERY_ERROR)
@pytest.mark.parametrize("args", [(), ("m",), ("m", "d"), ("m", ValueError("v"))])
def test_every_error_survives_pickling(error: type[BaseError], args: tuple[Any, ...]) -> None:
    raised = error(*args)
    raised.add_note("Idempotency key: fn#1")

    loaded = pickle.loads(pickle.dumps(raised))

    assert type(loaded) is error
    assert (loaded.message, loaded.details, str(loaded)) == (raised.message, raised.details, str(raised))
    assert [repr(arg) for arg in loaded.args] == [repr(arg) for arg in args]
    assert loaded.__notes__ == ["Idempotency key: fn#1"]


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_what_an_error_says_about_its_call_survives_pickling_and_copies(error: type[BaseError]) -> None:
    raised = error("m", "d").about("fn#1", "Advice.", explanation="Explained.", function_ran=True, is_retryable=True)

    for twin in (pickle.loads(pickle.dumps(raised)), copy.copy(raised), copy.deepcopy(raised)):
        assert type(twin) is error
        assert (twin.args, vars(twin)) == (raised.args, vars(raised))
        assert str(twin) == str(raised) == "m - (d). Explained. Idempotency key: fn#1. Advice."


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_whose_cause_cannot_be_pickled_carries_its_text() -> None:
    raised = IdempotencyPersistenceLayerError("failed", UnpicklableError("disk", "full")).about("fn#1", "Advice.")

    loaded = pickle.loads(pickle.dumps(raised))

    assert loaded.args == ("failed", "disk full")
    assert (str(loaded), loaded.details, loaded.idempotency_key) == (str(raised), "disk full", "fn#1")


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_an_error_of_which_nothing_is_known_says_nothing_more(error: type[BaseError]) -> None:
    raised = error("m")

    assert (str(raised), raised.idempotency_key, raised.advice, raised.explanation) == ("m", None, "", "")


@pytest.mark.parametrize(
    ("args", "key", "advice", "text"),
    [
        (("m",), "k1", "Retry.", "m. Idempotency key: k1. Retry."),
        (("m.",), "k1", "Retry.", "m. Idempotency key: k1. Retry."),
        (("m?",), "k1", "Retry.", "m? Idempotency key: k1. Retry."),
        (("m of k1",), "k1", "Retry.", "m of k1. Retry."),
        (("m",), "k1", "Retry k1.", "m. Retry k1."),
        (("m",), "k1", "", "m. Idempotency key: k1."),
        (("m",), None, "Retry.", "m. Retry."),
        (("m", "d"), "k1", "Retry.", "m - (d). Idempotency key: k1. Retry."),
        ((), "k1", "Retry.", "Idempotency key: k1. Retry."),
        (("m",), None, "", "m"),
    ],
)
def test_the_advice_follows_the_text_and_the_key_is_named_once(
    args: tuple[str, ...], key: str | None, advice: str, text: str
) -> None:
    assert str(BaseError(*args).about(key, advice)) == text


def test_a_later_advice_replaces_the_earlier_one_and_keeps_the_explanation() -> None:
    error = BaseError("m").about("k1", "First.", explanation="Why.", function_ran=False, is_retryable=True)

    error.about("k1", "Second.")

    assert str(error) == "m. Why. Idempotency key: k1. Second."
    assert (error.function_ran, error.is_retryable) == (False, True)


def test_an_error_is_printed_once_with_its_advice() -> None:
    error = BaseError("m").about("k1", "Advice.")

    assert "".join(traceback.format_exception(error)).count("Advice.") == 1


def test_an_error_with_the_services_error_for_its_details_survives_pickling() -> None:
    cause = ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "PutItem")

    loaded = pickle.loads(pickle.dumps(IdempotencyPersistenceLayerError("failed", cause)))

    assert loaded.details == str(cause)
    assert loaded.args[1].response == cause.response


@pytest.mark.parametrize(("error", "attribute"), WITH_RECORD)
@pytest.mark.parametrize("args", [(), ("m",), ("m", "d")])
def test_an_error_keeps_its_record_when_pickled_and_copied(error: type[BaseError], attribute: str, args: tuple[str, ...]) -> None:
    raised = error(*args, **{attribute: RECORD})

    for twin in (pickle.loads(pickle.dumps(raised)), copy.copy(raised), copy.deepcopy(raised)):
        assert getattr(twin, attribute) == RECORD
        assert str(twin) == str(raised)
        assert twin.args == args


@pytest.mark.parametrize(("error", "attribute"), WITH_RECORD)
def test_an_error_without_a_record_says_none(error: type[BaseError], attribute: str) -> None:
    assert getattr(error("m"), attribute) is None


@pytest.mark.parametrize(
    ("args", "text"), [((), f" from [{RECORD}]"), (("m",), f"m from [{RECORD}]"), (("m", "d"), f"m - (d) from [{RECORD}]")]
)
def test_a_refusal_shows_the_record_that_holds_the_key_but_not_its_result(args: tuple[str, ...], text: str) -> None:
    error = IdempotencyItemAlreadyExistsError(*args, old_data_record=RECORD)

    assert str(error) == text
    assert "secret" not in str(error)


REASONS = (
    CancellationReason("put", "orders", None),
    CancellationReason("update", "stock", "ConditionalCheckFailed", "failed", {"id": "secret", "n": Decimal("1.5")}),
)


@pytest.mark.parametrize("args", [(), ("m",), ("m", "d"), ("m", ValueError("v"))])
def test_a_canceled_transaction_keeps_its_reasons_when_pickled_and_copied(args: tuple[Any, ...]) -> None:
    raised = IdempotencyTransactionCanceledError(*args, reasons=REASONS)

    for twin in (pickle.loads(pickle.dumps(raised)), copy.copy(raised), copy.deepcopy(raised)):
        assert twin.reasons == REASONS
        assert str(twin) == str(raised)
        assert [repr(arg) for arg in twin.args] == [repr(arg) for arg in args]


def test_a_canceled_transaction_of_which_no_action_is_to_blame_has_no_reasons() -> None:
    assert IdempotencyTransactionCanceledError("m").reasons == ()


def test_a_canceled_transactions_texts_do_not_show_the_items_of_its_reasons() -> None:
    raised = IdempotencyTransactionCanceledError("m", "d", reasons=REASONS)

    assert "secret" not in f"{raised} {raised!r} {raised.reasons}"


def test_a_service_error_of_the_lean_client_survives_pickling() -> None:
    error = ServiceError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "PutItem")

    again = pickle.loads(pickle.dumps(error))

    assert (str(again), again.response, again.operation_name) == (str(error), error.response, "PutItem")
    assert str(error) == "An error occurred (ThrottlingException) when calling the PutItem operation: slow down"
