"""The serializer for dataclasses."""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import partial
from typing import Any, get_origin

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)
from idempotency.serialization.functions import get_actual_type
from idempotency.serialization.plain import json_data
from idempotency.serialization.rebuild import MissingFieldError, rebuilt
from idempotency.serialization.round_trip import NOT_READ, first_equal
from persistence.exceptions import (
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
    IdempotencyResultNotKeptError,
)


class DataclassSerializer(BaseIdempotencyModelSerializer):
    """Stores a dataclass as an object of its fields and replays an equal one.

    Fields are rebuilt as their types say: dataclasses, models, enums, decimals, dates and times, UUIDs, paths and bytes,
    directly, optional, in unions, or as elements of collections.  A field gets the value that was stored, whatever the
    constructor makes of it.

    Before a result is stored, it is read back and compared, so its constructor runs once more.  What does not come back equal is
    not kept: a tuple in a field that is declared as `Any`, for example.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def to_dict(self, data: Any) -> Any:
        """The fields as JSON data.

        Raises:
            IdempotencyResultNotKeptError: a replay would not be equal.
            TypeError, ValueError: a field has no form as JSON.
        """
        return first_equal(data, [partial(json_data, data)], self.from_dict)

    def from_dict(self, data: Any) -> Any:
        """The dataclass that was stored.  Fields that it has no more are ignored; new ones get their defaults.

        Raises:
            IdempotencyResultNotKeptError: the data lacks a field that has no default.
        """
        try:
            return rebuilt(self._model, data)
        except MissingFieldError as error:
            raise IdempotencyResultNotKeptError(f"{NOT_READ} {_name(self._model)}: {error}") from error
        except IdempotencyResultNotKeptError:
            raise  # of a model in a field
        except Exception as error:
            raise IdempotencyResultNotKeptError(f"{NOT_READ} {_name(self._model)}: {type(error).__name__}") from error

    @classmethod
    def instantiate(cls, model_type: Any) -> BaseIdempotencySerializer:
        model = get_actual_type(model_type)
        if model is None:
            raise IdempotencyNoSerializationModelError("No serialization model was supplied")
        kind = get_origin(model) or model
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise IdempotencyModelTypeError("Model type is not inherited of dataclass type")
        return cls(model)


def _name(model: Any) -> str:
    return getattr(model, "__qualname__", str(model))
