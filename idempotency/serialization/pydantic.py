"""The serializer for pydantic models.  Needs the extra `pydantic`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)
from idempotency.serialization.functions import get_actual_type
from persistence.exceptions import (
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
)


class PydanticSerializer(BaseIdempotencyModelSerializer):
    """Stores a model as its JSON-mode dump and replays a model validated from it."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def to_dict(self, data: BaseModel) -> Any:
        return data.model_dump(mode="json")

    def from_dict(self, data: Any) -> BaseModel:
        return self._model.model_validate(data)

    @classmethod
    def instantiate(cls, model_type: Any) -> BaseIdempotencySerializer:
        model = get_actual_type(model_type)
        if model is None:
            raise IdempotencyNoSerializationModelError("No serialization model was supplied")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise IdempotencyModelTypeError("Model type is not inherited from pydantic BaseModel")
        return cls(model)
