"""The sync and the async half have the same names, signatures and words, so that what is learnt of one is true of the other."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from idempotency import AsyncIdempotent, Idempotent
from idempotency.drivers import _AsyncPerformer, _Performer, adrive, drive
from idempotency.handler import IdempotencyHandler
from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

VERBS = ["claim", "fetch", "complete", "commit", "release", "renew", "load"]
HOOKS = ["_put_record", "_get_record", "_update_record", "_delete_record"]
#: What only some stores can: pack results, commit transactions.
OPTIONAL_HOOKS = ["_commit_record", "_load_result"]


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def public_names(owner: type) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def test_sync_and_async_stores_have_the_same_public_names() -> None:
    only_async = {"release_unawaited"}  # only a coroutine can be closed by the garbage collector

    assert public_names(BasePersistenceLayer) | only_async == public_names(AsyncBasePersistenceLayer)


def test_sync_and_async_stores_ask_for_the_same_hooks() -> None:
    assert BasePersistenceLayer.__abstractmethods__ == AsyncBasePersistenceLayer.__abstractmethods__ == frozenset(HOOKS)


@pytest.mark.parametrize("name", [*VERBS, *HOOKS, *OPTIONAL_HOOKS])
def test_a_method_of_a_store_has_one_signature(name: str) -> None:
    sync, asynchronous = getattr(BasePersistenceLayer, name), getattr(AsyncBasePersistenceLayer, name)

    assert parameters(sync) == parameters(asynchronous)
    assert sync.__annotations__ == asynchronous.__annotations__
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.iscoroutinefunction(asynchronous)


@pytest.mark.parametrize("name", [*VERBS, *HOOKS, *OPTIONAL_HOOKS])
def test_an_async_method_refers_to_its_sync_sibling(name: str) -> None:
    """The promise is written once."""
    docstring = inspect.getdoc(AsyncBasePersistenceLayer.__dict__[name]) or ""

    assert docstring == f"As `BasePersistenceLayer.{name}`."


@pytest.mark.parametrize("name", ["begin", "_begin_transaction"])
def test_a_transaction_is_begun_without_waiting_by_both(name: str) -> None:
    """Nothing is sent, and `transaction()` is called inside sync functions, too."""
    assert getattr(BasePersistenceLayer, name) is getattr(AsyncBasePersistenceLayer, name)
    assert not inspect.iscoroutinefunction(getattr(ThreadedPersistenceLayer, name))


@pytest.mark.parametrize("name", [*HOOKS, *OPTIONAL_HOOKS, "_begin_transaction"])
def test_a_sync_store_behind_threads_has_the_hooks_of_an_async_one(name: str) -> None:
    assert parameters(getattr(ThreadedPersistenceLayer, name)) == parameters(getattr(AsyncBasePersistenceLayer, name))


def test_the_sleep_of_a_store_takes_the_same_argument() -> None:
    assert list(inspect.signature(BasePersistenceLayer.sleep_ms).parameters) == ["ms"]
    assert list(inspect.signature(AsyncBasePersistenceLayer.sleep_ms).parameters) == ["self", "ms"]


def test_both_drivers_have_one_signature() -> None:
    assert parameters(drive) == parameters(adrive)
    assert inspect.iscoroutinefunction(adrive)
    assert not inspect.iscoroutinefunction(drive)


@pytest.mark.parametrize("name", ["perform", "claim", "run", "complete", "_write", "_read", "wind_up"])
def test_both_performers_have_the_same_moves(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(_AsyncPerformer, name))
    assert not inspect.iscoroutinefunction(getattr(_Performer, name))


def test_a_handler_executes_both_ways_with_one_signature() -> None:
    execute, aexecute = IdempotencyHandler.execute, IdempotencyHandler.aexecute

    assert parameters(execute) == parameters(aexecute)
    assert execute.__annotations__ == aexecute.__annotations__
    assert inspect.iscoroutinefunction(aexecute)


def test_an_unprotected_call_is_made_both_ways_with_one_signature() -> None:
    unprotected, aunprotected = IdempotencyHandler.unprotected, IdempotencyHandler.aunprotected

    assert parameters(unprotected) == parameters(aunprotected)
    assert inspect.iscoroutinefunction(aunprotected)
    assert not inspect.iscoroutinefunction(unprotected)


def test_decorated_functions_have_the_same_abilities() -> None:
    assert public_names(Idempotent) == public_names(AsyncIdempotent) == {"override", "with_outcome"}
    for name in ("__call__", "with_outcome", "override"):
        sync, asynchronous = getattr(Idempotent, name), getattr(AsyncIdempotent, name)
        assert parameters(sync) == parameters(asynchronous)
        assert inspect.getdoc(sync) == inspect.getdoc(asynchronous)
