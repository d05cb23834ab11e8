"""The serializer for pydantic models.  Needs the extra `pydantic`."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final

from pydantic import VERSION, BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)
from idempotency.serialization.functions import all_subclasses, get_actual_type
from idempotency.serialization.round_trip import NOT_READ, first_equal
from persistence.exceptions import (
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
    IdempotencyResultNotKeptError,
)

#: The ways to dump a model, tried in this order.  The first is Powertools' own, and what most models need.  `round_trip` gives
#: `Json` fields as text and leaves computed fields out; an alias may be the only name that is accepted.
_FORMS: Final[tuple[dict[str, bool], ...]] = (
    {},
    {"round_trip": True},
    {"by_alias": True, "round_trip": True},
    {"by_alias": False, "round_trip": True},
)

#: Fields are read by name and by alias, whatever the model's own configuration: records have both.
_BY_ANY_NAME: Final[dict[str, Any]] = (
    {"by_alias": True, "by_name": True} if tuple(map(int, VERSION.split(".")[:2])) >= (2, 11) else {}
)


class PydanticSerializer(BaseIdempotencyModelSerializer):
    """Stores a model as its JSON-mode dump and replays an equal model.

    Equal is what the model's `==` says, and NaN equals NaN.  Before a result is stored, it is read back and compared, so the
    model's validators run once more.  A result of which no dump is read back as an equal one is not kept: secrets that the dump
    masks, fields that it excludes, private attributes with another value than a new model's.

    A returned subclass replays as one if its fields show which of the subclasses it is.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def to_dict(self, data: BaseModel) -> Any:
        """The model's dump, in the first form that is read back as an equal model.

        Raises:
            IdempotencyResultNotKeptError: there is no such form.
        """
        dump: Any = data.model_dump  # `warnings`: what does not fit the model's types is found by comparing
        forms = [partial(dump, mode="json", warnings=False, **options) for options in _FORMS]
        return first_equal(data, forms, self._read)

    def from_dict(self, data: Any) -> BaseModel:
        """The model that was stored.  Records of Powertools and of earlier versions are read as well, by name or by alias.

        Raises:
            IdempotencyResultNotKeptError: the data does not fit the model, which may have changed since.
        """
        try:
            return self._read(data)
        except ValidationError as error:
            reason = _reason(self._model, error)
        except Exception as error:
            raise IdempotencyResultNotKeptError(f"{NOT_READ} {self._model.__qualname__}: {type(error).__name__}") from error
        raise IdempotencyResultNotKeptError(f"{NOT_READ} {self._model.__qualname__}: {reason}")

    @classmethod
    def instantiate(cls, model_type: Any) -> BaseIdempotencySerializer:
        model = get_actual_type(model_type)
        if model is None:
            raise IdempotencyNoSerializationModelError("No serialization model was supplied")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise IdempotencyModelTypeError("Model type is not inherited from pydantic BaseModel")
        return cls(model)

    def _read(self, data: Any) -> BaseModel:
        as_subclasses = [_validated(model, data) for model in _subclasses_for(self._model, data)]
        found = [result for result in as_subclasses if not isinstance(result, ValidationError)]
        result = found[0] if len(found) == 1 else _validated(self._model, data)
        if isinstance(result, ValidationError):
            raise result
        return result


def _validated(model: type[BaseModel], data: Any) -> BaseModel | ValidationError:
    """The model, from data as JSON: the inverse of a JSON-mode dump, for strict models, too."""
    try:
        return model.model_validate_json(to_json(data, inf_nan_mode="constants"), **_BY_ANY_NAME)
    except ValidationError as error:
        failed = error
    except PydanticSerializationError:  # half a surrogate pair, which only Python's text can have
        return model.model_validate(data, **_BY_ANY_NAME)
    with suppress(ValidationError):
        return model.model_validate_json(to_json(_repaired(data, failed), inf_nan_mode="constants"), **_BY_ANY_NAME)
    with suppress(ValidationError):
        return model.model_validate(data, **_BY_ANY_NAME)  # as versions before did
    return failed


def _repaired(data: Any, error: ValidationError) -> Any:
    """A copy of *data* that the model accepts: without computed fields, and with the values of `Json` fields as text."""
    repaired = json.loads(json.dumps(data))
    for detail in error.errors(include_url=False):
        path = [part for part in detail["loc"] if isinstance(part, (str, int))]
        holder, last = _found(repaired, path)
        if holder is None:
            continue
        if detail["type"] == "extra_forbidden":
            del holder[last]
        elif detail["type"] in ("json_type", "json_invalid"):
            holder[last] = json.dumps(holder[last])
    return repaired


def _found(data: Any, path: list[str | int]) -> tuple[Any, Any]:
    """The container and the key that the path of an error leads to; None if they do not exist.

    Some parts of a path are not keys of the data: the names of a union's members, for example.
    """
    holder, last, is_there = None, None, False
    for part in path:
        inner = data if holder is None else holder[last]
        is_there = (isinstance(inner, dict) and part in inner) or (isinstance(inner, list) and part in range(len(inner)))
        if is_there:
            holder, last = inner, part
    return (holder, last) if is_there else (None, None)


def _subclasses_for(model: type[BaseModel], data: Any) -> list[type[BaseModel]]:
    """The subclasses that fit the names in the data best, if it has names that the model itself lacks."""
    if model is BaseModel or not isinstance(data, dict) or model.model_config.get("extra") == "allow":
        return []
    if data.keys() <= _names(model):
        return []
    knowing = [sub for sub in all_subclasses(model) if data.keys() <= _names(sub)]
    fewest = min((len(_names(sub)) for sub in knowing), default=0)
    return [sub for sub in knowing if len(_names(sub)) == fewest]


@lru_cache(maxsize=256)
def _names(model: type[BaseModel]) -> frozenset[str]:
    """All names that a model's dumps have for its fields."""
    computed = {name: decorator.info for name, decorator in model.__pydantic_decorators__.computed_fields.items()}
    fields: dict[str, Any] = {**model.model_fields, **computed}
    aliases = (getattr(field, alias, None) for field in fields.values() for alias in ("alias", "serialization_alias"))
    return frozenset({*fields, *filter(None, aliases)})


def _reason(model: type[BaseModel], error: ValidationError) -> str:
    """What did not fit, in words that contain no stored value: a path may have keys of the data in it."""
    found = {(detail["loc"][0] if detail["loc"] else "", detail["type"]) for detail in error.errors(include_url=False)}
    known = _names(model)
    return ", ".join(sorted(f"{name}: {kind}" if name in known else kind for name, kind in found))
