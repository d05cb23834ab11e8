"""Stores for idempotency records.  Users import from `idempotency`; this package is for who writes a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer
from persistence.datarecord import DataRecord, Status

if TYPE_CHECKING:
    from persistence.cache import AsyncCachePersistenceLayer, CachePersistenceLayer
    from persistence.dynamodb import DynamoDBPersistenceLayer
    from persistence.memory import InMemoryPersistenceLayer

__all__ = [
    "AsyncBasePersistenceLayer",
    "AsyncCachePersistenceLayer",
    "BasePersistenceLayer",
    "CachePersistenceLayer",
    "DataRecord",
    "DynamoDBPersistenceLayer",
    "InMemoryPersistenceLayer",
    "Status",
]

_LAZY = {
    "AsyncCachePersistenceLayer": "persistence.cache",
    "CachePersistenceLayer": "persistence.cache",
    "DynamoDBPersistenceLayer": "persistence.dynamodb",
    "InMemoryPersistenceLayer": "persistence.memory",
}


def __getattr__(name: str) -> Any:
    """Import a store when it is named, so that who uses another never imports this one's SDK."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
