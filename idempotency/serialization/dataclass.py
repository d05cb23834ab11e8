"""The serializer for dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, is_dataclass
from itertools import chain, repeat
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)
from idempotency.serialization.functions import get_actual_type, resolved
from persistence.exceptions import (
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
)


class DataclassSerializer(BaseIdempotencyModelSerializer):
    """Stores a dataclass as an object of its fields and replays an equal one, dataclasses in its fields included.

    Dataclasses are rebuilt where a field's type says so: directly, optional, or as elements of a list, tuple or dict.  Other
    values come back as JSON has them: a Decimal as text.
    """

    def __init__(self, model: type[Any]) -> None:
        self._model = model

    def to_dict(self, data: Any) -> Any:
        return asdict(data)

    def from_dict(self, data: Any) -> Any:
        return _rebuilt(self._model, data)

    @classmethod
    def instantiate(cls, model_type: Any) -> BaseIdempotencySerializer:
        model = get_actual_type(model_type)
        if model is None:
            raise IdempotencyNoSerializationModelError("No serialization model was supplied")
        if not (isinstance(model, type) and is_dataclass(model)):
            raise IdempotencyModelTypeError("Model type is not inherited of dataclass type")
        return cls(model)


def _rebuilt(annotation: Any, data: Any) -> Any:
    """*data* as the annotation wants it, as far as dataclasses are concerned."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _dataclass(annotation, data)
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _rebuilt(members[0], data)
    if origin in (Union, UnionType):
        return _member(members, data)
    if isinstance(data, list) and origin in (list, tuple) and members:
        variadic = origin is list or members[-1] is Ellipsis
        types = repeat(members[0]) if variadic else chain(members, repeat(Any))
        return origin(_rebuilt(member, item) for member, item in zip(types, data, strict=False))
    if isinstance(data, dict) and isinstance(origin, type) and issubclass(origin, Mapping) and members:
        return {key: _rebuilt(members[1], item) for key, item in data.items()}
    return data


def _member(members: tuple[Any, ...], data: Any) -> Any:
    """Of a union, the one dataclass that it may hold; ambiguous data stays as it is."""
    models = [member for member in members if member is not type(None)]
    return _rebuilt(models[0], data) if data is not None and len(models) == 1 else data


def _dataclass(model: type[Any], data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    names = {field.name for field in fields(model)}
    given = {
        field.name: _rebuilt(_type_of(model, field), data[field.name])
        for field in fields(model)
        if field.init and field.name in data
    }
    return model(**given, **{name: value for name, value in data.items() if name not in names})


def _type_of(model: type[Any], field: Field[Any]) -> Any:
    """The field's type; Any if it names what is not there at run time, as with imports for type checkers only."""
    owner = next((base for base in model.__mro__ if field.name in vars(base).get("__annotations__", {})), model)
    try:
        return resolved(field.type, vars(sys.modules[owner.__module__]), dict(vars(owner)))
    except Exception:  # noqa: BLE001 - whatever it is, the field stays as JSON has it
        return Any
