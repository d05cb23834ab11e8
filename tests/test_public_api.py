"""The names that users import, and how they compare with those of Powertools, which many of them know."""

from __future__ import annotations

import importlib
import inspect
import pickle
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aws_lambda_powertools.utilities.idempotency as powertools
import pytest
from aws_lambda_powertools.utilities.idempotency import exceptions as their_exceptions
from aws_lambda_powertools.utilities.idempotency.persistence import base as their_base
from aws_lambda_powertools.utilities.idempotency.persistence import redis as their_redis

import idempotency
import idempotency.exceptions
import persistence
from persistence import exceptions as our_exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

THEIRS = "aws_lambda_powertools.utilities.idempotency"

#: Everything that users import, and its home.
DOCUMENTED = {
    "AsyncBasePersistenceLayer": "persistence.base",
    "AsyncCachePersistenceLayer": "persistence.cache",
    "AsyncIdempotent": "idempotency.decorators",
    "Attempt": "idempotency.attempt",
    "BaseError": "persistence.exceptions",
    "BaseIdempotencyModelSerializer": "idempotency.serialization.base",
    "BaseIdempotencySerializer": "idempotency.serialization.base",
    "BasePersistenceLayer": "persistence.base",
    "BulkProgress": "persistence.progress",
    "CachePersistenceLayer": "persistence.cache",
    "CancellationReason": "persistence.transaction",
    "CustomDictSerializer": "idempotency.serialization.custom_dict",
    "DataRecord": "persistence.datarecord",
    "DataclassSerializer": "idempotency.serialization.dataclass",
    "DynamoDBPersistenceLayer": "persistence.dynamodb",
    "Event": "idempotency.events",
    "Executed": "idempotency.execution",
    "IdempotencyAlreadyInProgressError": "persistence.exceptions",
    "IdempotencyBulkIncompleteError": "persistence.exceptions",
    "IdempotencyConfig": "idempotency.config",
    "IdempotencyInconsistentStateError": "persistence.exceptions",
    "IdempotencyInvalidStatusError": "persistence.exceptions",
    "IdempotencyItemAlreadyExistsError": "persistence.exceptions",
    "IdempotencyItemNotFoundError": "persistence.exceptions",
    "IdempotencyKeyError": "persistence.exceptions",
    "IdempotencyLeaseLostError": "persistence.exceptions",
    "IdempotencyModelTypeError": "persistence.exceptions",
    "IdempotencyNoSerializationModelError": "persistence.exceptions",
    "IdempotencyOrphanedError": "persistence.exceptions",
    "IdempotencyPersistenceConfigError": "persistence.exceptions",
    "IdempotencyPersistenceConnectionError": "persistence.exceptions",
    "IdempotencyPersistenceConsistencyError": "persistence.exceptions",
    "IdempotencyPersistenceLayerError": "persistence.exceptions",
    "IdempotencyRequestTooOldError": "persistence.exceptions",
    "IdempotencyResultNotKeptError": "persistence.exceptions",
    "IdempotencyTransactionCanceledError": "persistence.exceptions",
    "IdempotencyUnreachableError": "persistence.exceptions",
    "IdempotencyValidationError": "persistence.exceptions",
    "Idempotent": "idempotency.decorators",
    "IdempotentHookFunction": "idempotency.hook",
    "InMemoryPersistenceLayer": "persistence.memory",
    "NoOpSerializer": "idempotency.serialization.no_op",
    "Observer": "idempotency.events",
    "PydanticSerializer": "idempotency.serialization.pydantic",
    "RedisCachePersistenceLayer": "persistence.redis",
    "Replayed": "idempotency.execution",
    "ResultOffload": "persistence.offload",
    "S3ResultOffload": "persistence.offload",
    "Transaction": "persistence.transaction",
    "apply_once": "idempotency.changes",
    "copy_records": "persistence.bulk",
    "current_attempt": "idempotency.attempt",
    "idempotent": "idempotency.decorators",
    "idempotent_function": "idempotency.decorators",
    "make_idempotent": "idempotency.decorators",
    "sweep_expired": "persistence.bulk",
    "transaction": "idempotency.attempt",
}

#: Names of classes that have another name at home.
ALIASES = {"RedisCachePersistenceLayer": "CachePersistenceLayer"}

#: The errors that Powertools has, too.
SHARED_ERRORS = [
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
OWN_ERRORS = {
    "IdempotencyBulkIncompleteError": ["IdempotencyPersistenceLayerError"],
    "IdempotencyLeaseLostError": ["IdempotencyPersistenceLayerError"],
    "IdempotencyResultNotKeptError": ["IdempotencyPersistenceLayerError"],
    "IdempotencyTransactionCanceledError": ["IdempotencyPersistenceLayerError"],
    "IdempotencyOrphanedError": ["IdempotencyAlreadyInProgressError"],
    "IdempotencyRequestTooOldError": ["IdempotencyValidationError"],
    "IdempotencyUnreachableError": ["IdempotencyPersistenceConnectionError", "IdempotencyPersistenceConfigError"],
}


def test_the_public_names_are_the_documented_ones() -> None:
    assert sorted(idempotency.__all__) == sorted(DOCUMENTED)


@pytest.mark.parametrize("module", ["idempotency", "idempotency.exceptions", "idempotency.serialization", "persistence"])
def test_the_names_of_a_package_are_sorted_and_all_there(module: str) -> None:
    package = importlib.import_module(module)

    assert list(package.__all__) == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize(("name", "home"), DOCUMENTED.items())
def test_a_public_name_is_the_very_object_of_its_home(name: str, home: str) -> None:
    found = getattr(idempotency, name)

    assert found is getattr(importlib.import_module(home), name)
    if name in ALIASES:
        assert found is getattr(idempotency, ALIASES[name])
    elif inspect.isclass(found) or inspect.isfunction(found):
        assert (found.__module__, found.__qualname__) == (home, name)


def test_the_public_names_show_in_dir_before_they_are_loaded() -> None:
    assert set(DOCUMENTED) <= set(dir(idempotency))


@pytest.mark.parametrize("name", persistence.__all__)
def test_both_packages_show_the_same_objects(name: str) -> None:
    if name == "Status":  # for authors of stores
        assert name not in DOCUMENTED
    else:
        assert getattr(persistence, name) is getattr(idempotency, name)


def test_everything_that_powertools_offers_is_offered_here() -> None:
    assert set(powertools.__all__) <= set(idempotency.__all__)


@pytest.mark.parametrize(
    ("theirs", "ours", "names"),
    [
        ("exceptions", "idempotency.exceptions", ["BaseError", *SHARED_ERRORS]),
        ("serialization.base", "idempotency.serialization.base", ["BaseIdempotencySerializer", "BaseIdempotencyModelSerializer"]),
        ("serialization.custom_dict", "idempotency.serialization.custom_dict", ["CustomDictSerializer"]),
        ("serialization.dataclass", "idempotency.serialization.dataclass", ["DataclassSerializer"]),
        ("serialization.functions", "idempotency.serialization.functions", ["get_actual_type"]),
        ("serialization.no_op", "idempotency.serialization.no_op", ["NoOpSerializer"]),
        ("serialization.pydantic", "idempotency.serialization.pydantic", ["PydanticSerializer"]),
        ("persistence.base", "persistence.base", ["BasePersistenceLayer", "DataRecord"]),
        ("persistence.datarecord", "persistence.datarecord", ["DataRecord", "STATUS_CONSTANTS"]),
        ("persistence.dynamodb", "persistence.dynamodb", ["DynamoDBPersistenceLayer"]),
        (
            "persistence.cache",
            "persistence.cache",
            ["CacheClientProtocol", "CacheConnection", "CachePersistenceLayer"],
        ),
        (
            "persistence.redis",
            "persistence.redis",
            ["CachePersistenceLayer", "RedisCachePersistenceLayer", "RedisClientProtocol", "RedisConnection"],
        ),
        ("config", "idempotency.config", ["IdempotencyConfig"]),
        ("hook", "idempotency.hook", ["IdempotentHookFunction"]),
    ],
)
def test_the_dotted_tail_of_a_powertools_name_leads_to_ours(theirs: str, ours: str, names: list[str]) -> None:
    their_module, our_module = importlib.import_module(f"{THEIRS}.{theirs}"), importlib.import_module(ours)

    for name in names:
        assert hasattr(their_module, name), f"Powertools has no {theirs}.{name} any more"
        assert hasattr(our_module, name)


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (powertools.IdempotencyConfig, idempotency.IdempotencyConfig),
        (powertools.DynamoDBPersistenceLayer, idempotency.DynamoDBPersistenceLayer),
        (their_redis.CachePersistenceLayer, idempotency.CachePersistenceLayer),
        (their_redis.CachePersistenceLayer, idempotency.AsyncCachePersistenceLayer),
        (their_base.DataRecord, idempotency.DataRecord),
        (powertools.BasePersistenceLayer, idempotency.BasePersistenceLayer),
    ],
    ids=lambda each: each.__name__,
)
def test_a_constructor_begins_with_powertools_parameters(theirs: type, ours: type) -> None:
    """So that a call with any arguments of theirs, by position too, means the same here."""
    known, found = parameters(theirs.__init__), parameters(ours.__init__)  # a class marked as deprecated hides its own

    assert found[: len(known)] == known
    assert all(default is not inspect.Parameter.empty for _, _, default in found[len(known) :])


def test_the_decorator_of_functions_has_powertools_parameters() -> None:
    assert parameters(idempotency.idempotent_function) == parameters(powertools.idempotent_function)


def test_the_decorator_of_handlers_has_powertools_keywords() -> None:
    keywords = {"persistence_store", "config", "key_prefix"}
    theirs, ours = (inspect.signature(each).parameters for each in (powertools.idempotent, idempotency.idempotent))

    assert keywords <= set(theirs)
    assert {name for name, each in ours.items() if each.kind is each.KEYWORD_ONLY} == keywords


@pytest.mark.parametrize("hook", ["_put_record", "_get_record", "_update_record", "_delete_record"])
def test_the_hooks_of_a_store_take_powertools_keywords(hook: str) -> None:
    theirs = getattr(powertools.BasePersistenceLayer, hook)

    assert parameters(getattr(idempotency.BasePersistenceLayer, hook)) == parameters(theirs)


@pytest.mark.parametrize("serializer", ["CustomDictSerializer", "DataclassSerializer", "NoOpSerializer", "PydanticSerializer"])
def test_a_serializer_is_made_as_powertools_makes_it(serializer: str) -> None:
    home = DOCUMENTED[serializer].removeprefix("idempotency.")
    theirs = getattr(importlib.import_module(f"{THEIRS}.{home}"), serializer)

    assert parameters(getattr(idempotency, serializer)) == parameters(theirs)


def test_powertools_has_the_errors_that_we_believe_it_has() -> None:
    found = {name for name, each in vars(their_exceptions).items() if inspect.isclass(each) and issubclass(each, Exception)}

    assert found == {"BaseError", *SHARED_ERRORS}


@pytest.mark.parametrize("name", SHARED_ERRORS)
def test_an_error_that_powertools_has_is_a_direct_child_of_the_base_error(name: str) -> None:
    assert getattr(our_exceptions, name).__bases__ == (our_exceptions.BaseError,)
    assert getattr(their_exceptions, name).__bases__ == (their_exceptions.BaseError,)


@pytest.mark.parametrize(("name", "parents"), OWN_ERRORS.items())
def test_an_error_of_our_own_is_caught_by_a_clause_written_for_powertools(name: str, parents: list[str]) -> None:
    assert getattr(our_exceptions, name).__bases__ == tuple(getattr(our_exceptions, parent) for parent in parents)


def test_there_are_no_other_errors() -> None:
    ours = {name for name, each in vars(our_exceptions).items() if inspect.isclass(each) and issubclass(each, Exception)}

    assert ours == {"BaseError", *SHARED_ERRORS, *OWN_ERRORS} == set(idempotency.exceptions.__all__)


ARGUMENTS: list[tuple[Any, ...]] = [
    (),
    ("message",),
    ("message", ValueError("detail")),
    ("message", "one", "two"),
    ("", "detail"),
    (None,),
    (ValueError("as message"),),
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=repr)
@pytest.mark.parametrize("name", ["BaseError", *SHARED_ERRORS])
def test_an_error_says_what_powertools_says(name: str, arguments: tuple[Any, ...]) -> None:
    theirs, ours = getattr(their_exceptions, name)(*arguments), getattr(our_exceptions, name)(*arguments)

    assert (str(ours), ours.message, ours.details, ours.args) == (str(theirs), theirs.message, theirs.details, theirs.args)


@pytest.mark.parametrize("name", ["BaseError", *SHARED_ERRORS])
def test_an_error_without_details_does_not_say_none(name: str) -> None:
    """Powertools says "message - (None)"."""
    error = getattr(our_exceptions, name)("message", None)

    assert (str(error), error.message, error.details, error.args) == ("message", "message", None, ("message", None))


def test_the_error_of_a_refused_claim_names_the_record() -> None:
    record = idempotency.DataRecord("k", "COMPLETED", response_data="secret")
    error = our_exceptions.IdempotencyItemAlreadyExistsError("refused", old_data_record=record)

    assert error.old_data_record is record
    assert str(error) == f"refused from [{record}]"
    assert "secret" not in str(error)


@pytest.mark.parametrize("name", ["BaseError", *SHARED_ERRORS, *OWN_ERRORS])
def test_an_error_survives_pickling(name: str) -> None:
    """Errors cross processes: multiprocessing, Celery, durable executions."""
    error = getattr(our_exceptions, name)("message", "detail")
    record = idempotency.DataRecord("k", "INPROGRESS", 1, owner_token="t")
    for attribute in ("record", "old_data_record"):
        if hasattr(error, attribute):
            setattr(error, attribute, record)
    if hasattr(error, "reasons"):
        error.reasons = (idempotency.CancellationReason("put", "orders", "ConditionalCheckFailed", "failed", {"id": "a"}),)
    error.add_note("a note")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

    assert idempotency.__version__ == project["version"]
