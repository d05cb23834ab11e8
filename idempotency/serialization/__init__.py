"""Output serializers: how a function's result becomes JSON data, and how a replay turns it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)
from idempotency.serialization.custom_dict import CustomDictSerializer
from idempotency.serialization.dataclass import DataclassSerializer
from idempotency.serialization.no_op import NoOpSerializer

if TYPE_CHECKING:
    from idempotency.serialization.pydantic import PydanticSerializer

__all__ = [
    "BaseIdempotencyModelSerializer",
    "BaseIdempotencySerializer",
    "CustomDictSerializer",
    "DataclassSerializer",
    "NoOpSerializer",
    "PydanticSerializer",
]


def __getattr__(name: str) -> Any:
    """Import the pydantic serializer when it is named: pydantic is an extra."""
    if name != "PydanticSerializer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from idempotency.serialization.pydantic import PydanticSerializer

    return PydanticSerializer
