"""Idempotency for AWS Lambda and any Python function: one effect per request, the same answer for every retry.

Everything that users need is imported from here.  A name is loaded when it is first used, so that importing this package
imports neither boto3 nor Powertools, and who uses one store never imports another's SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idempotency.attempt import Attempt, current_attempt, transaction
    from idempotency.changes import apply_once
    from idempotency.config import IdempotencyConfig
    from idempotency.decorators import (
        AsyncIdempotent,
        Idempotent,
        idempotent,
        idempotent_function,
        make_idempotent,
    )
    from idempotency.events import Event, Observer
    from idempotency.execution import Executed, Replayed
    from idempotency.hook import IdempotentHookFunction
    from idempotency.serialization.base import (
        BaseIdempotencyModelSerializer,
        BaseIdempotencySerializer,
    )
    from idempotency.serialization.custom_dict import CustomDictSerializer
    from idempotency.serialization.dataclass import DataclassSerializer
    from idempotency.serialization.no_op import NoOpSerializer
    from idempotency.serialization.pydantic import PydanticSerializer
    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer
    from persistence.bulk import copy_records, sweep_expired
    from persistence.cache import AsyncCachePersistenceLayer, CachePersistenceLayer
    from persistence.datarecord import DataRecord
    from persistence.dynamodb import DynamoDBPersistenceLayer
    from persistence.exceptions import (
        BaseError,
        IdempotencyAlreadyInProgressError,
        IdempotencyBulkIncompleteError,
        IdempotencyInconsistentStateError,
        IdempotencyInvalidStatusError,
        IdempotencyItemAlreadyExistsError,
        IdempotencyItemNotFoundError,
        IdempotencyKeyError,
        IdempotencyLeaseLostError,
        IdempotencyModelTypeError,
        IdempotencyNoSerializationModelError,
        IdempotencyOrphanedError,
        IdempotencyPersistenceConfigError,
        IdempotencyPersistenceConnectionError,
        IdempotencyPersistenceConsistencyError,
        IdempotencyPersistenceLayerError,
        IdempotencyRequestTooOldError,
        IdempotencyResultNotKeptError,
        IdempotencyTransactionCanceledError,
        IdempotencyUnreachableError,
        IdempotencyValidationError,
    )
    from persistence.memory import InMemoryPersistenceLayer
    from persistence.offload import ResultOffload, S3ResultOffload
    from persistence.progress import BulkProgress
    from persistence.redis import RedisCachePersistenceLayer
    from persistence.transaction import CancellationReason, Transaction

__version__ = "0.1.0"

__all__ = [
    "AsyncBasePersistenceLayer",
    "AsyncCachePersistenceLayer",
    "AsyncIdempotent",
    "Attempt",
    "BaseError",
    "BaseIdempotencyModelSerializer",
    "BaseIdempotencySerializer",
    "BasePersistenceLayer",
    "BulkProgress",
    "CachePersistenceLayer",
    "CancellationReason",
    "CustomDictSerializer",
    "DataRecord",
    "DataclassSerializer",
    "DynamoDBPersistenceLayer",
    "Event",
    "Executed",
    "IdempotencyAlreadyInProgressError",
    "IdempotencyBulkIncompleteError",
    "IdempotencyConfig",
    "IdempotencyInconsistentStateError",
    "IdempotencyInvalidStatusError",
    "IdempotencyItemAlreadyExistsError",
    "IdempotencyItemNotFoundError",
    "IdempotencyKeyError",
    "IdempotencyLeaseLostError",
    "IdempotencyModelTypeError",
    "IdempotencyNoSerializationModelError",
    "IdempotencyOrphanedError",
    "IdempotencyPersistenceConfigError",
    "IdempotencyPersistenceConnectionError",
    "IdempotencyPersistenceConsistencyError",
    "IdempotencyPersistenceLayerError",
    "IdempotencyRequestTooOldError",
    "IdempotencyResultNotKeptError",
    "IdempotencyTransactionCanceledError",
    "IdempotencyUnreachableError",
    "IdempotencyValidationError",
    "Idempotent",
    "IdempotentHookFunction",
    "InMemoryPersistenceLayer",
    "NoOpSerializer",
    "Observer",
    "PydanticSerializer",
    "RedisCachePersistenceLayer",
    "Replayed",
    "ResultOffload",
    "S3ResultOffload",
    "Transaction",
    "apply_once",
    "copy_records",
    "current_attempt",
    "idempotent",
    "idempotent_function",
    "make_idempotent",
    "sweep_expired",
    "transaction",
]

#: Where each name lives.
_HOMES = {
    "Attempt": "idempotency.attempt",
    "current_attempt": "idempotency.attempt",
    "transaction": "idempotency.attempt",
    "apply_once": "idempotency.changes",
    "IdempotencyConfig": "idempotency.config",
    "AsyncIdempotent": "idempotency.decorators",
    "Idempotent": "idempotency.decorators",
    "idempotent": "idempotency.decorators",
    "idempotent_function": "idempotency.decorators",
    "make_idempotent": "idempotency.decorators",
    "Event": "idempotency.events",
    "Observer": "idempotency.events",
    "Executed": "idempotency.execution",
    "Replayed": "idempotency.execution",
    "IdempotentHookFunction": "idempotency.hook",
    "BaseIdempotencyModelSerializer": "idempotency.serialization.base",
    "BaseIdempotencySerializer": "idempotency.serialization.base",
    "CustomDictSerializer": "idempotency.serialization.custom_dict",
    "DataclassSerializer": "idempotency.serialization.dataclass",
    "NoOpSerializer": "idempotency.serialization.no_op",
    "PydanticSerializer": "idempotency.serialization.pydantic",
    "AsyncBasePersistenceLayer": "persistence.base",
    "BasePersistenceLayer": "persistence.base",
    "BulkProgress": "persistence.progress",
    "AsyncCachePersistenceLayer": "persistence.cache",
    "CachePersistenceLayer": "persistence.cache",
    "RedisCachePersistenceLayer": "persistence.redis",
    "copy_records": "persistence.bulk",
    "sweep_expired": "persistence.bulk",
    "CancellationReason": "persistence.transaction",
    "Transaction": "persistence.transaction",
    "DataRecord": "persistence.datarecord",
    "DynamoDBPersistenceLayer": "persistence.dynamodb",
    "ResultOffload": "persistence.offload",
    "S3ResultOffload": "persistence.offload",
    "InMemoryPersistenceLayer": "persistence.memory",
    "BaseError": "persistence.exceptions",
    "IdempotencyAlreadyInProgressError": "persistence.exceptions",
    "IdempotencyBulkIncompleteError": "persistence.exceptions",
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
}


def __getattr__(name: str) -> Any:
    """Load a name from its home module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
