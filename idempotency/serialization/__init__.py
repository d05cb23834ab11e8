"""Output serializers: how a function's result becomes JSON data, and how a replay turns it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)

if TYPE_CHECKING:
    from idempotency.serialization.custom_dict import CustomDictSerializer
    from idempotency.serialization.dataclass import DataclassSerializer
    from idempotency.serialization.no_op import NoOpSerializer
    from idempotency.serialization.pydantic import PydanticSerializer

__all__ = [
    "BaseIdempotencyModelSerializer",
    "BaseIdempotencySerializer",
    "CustomDictSerializer",
    "DataclassSerializer",
    "NoOpSerializer",
    "PydanticSerializer",
]

_LAZY = {
    "CustomDictSerializer": "idempotency.serialization.custom_dict",
    "DataclassSerializer": "idempotency.serialization.dataclass",
    "NoOpSerializer": "idempotency.serialization.no_op",
    "PydanticSerializer": "idempotency.serialization.pydantic",
}


def __getattr__(name: str) -> Any:
    """Import a serializer when it is named: pydantic is an extra, and dataclasses are costly to import."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
