"""What key expressions see of objects: models, dataclasses, event objects and mappings as the JSON data that they stand for.

The class of an object decides what it is.  Attributes are not asked: some objects answer every name.
Imported when a payload has the first such object.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: JSON values without fields.  Every other type is asked for its JSON form.
_FIELDLESS: Final = (str, int, float, list, type(None))


class NotSerializableError(TypeError):
    """A value has no JSON form.  The text names its type and never the value."""

    def __init__(self, value: object) -> None:
        super().__init__(f"Object of type {type(value).__name__} is not JSON serializable")


def defines(value: object, name: str) -> bool:
    """Whether the value's class defines the attribute.

    `hasattr` would also ask the object's `__getattr__`, and a mock or a dict with attribute access answers every name.
    """
    return any(name in vars(base) for base in type(value).__mro__)


def has_method(value: object, name: str) -> bool:
    """Whether the value is an object whose class defines the method."""
    return defines(value, name) and callable(getattr(value, name, None)) and not isinstance(value, type)


def is_dataclass(value: object) -> bool:
    """Whether the value is an instance of a dataclass, found out without the import of `dataclasses`."""
    return defines(value, "__dataclass_fields__")


def plain(value: Any) -> Any:
    """A Decimal, model or dataclass as plain data.

    Raises:
        NotSerializableError: the value is something else.
    """
    if "decimal" in sys.modules:
        from decimal import Decimal  # here: whoever made a Decimal has imported it already

        if issubclass(type(value), Decimal):  # `isinstance` would believe a mock
            return math.nan if value.is_nan() else str(value)
    if has_method(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        from dataclasses import asdict  # here: whoever made a dataclass has imported it already

        return asdict(value)
    if has_method(value, "json") and has_method(value, "dict"):
        return value.dict()  # a model of pydantic 1
    raise NotSerializableError(value)


def plain_in_key(value: Any) -> Any:
    """As `plain`, and what else a key may hold: event objects, mappings, enums, dates and times, UUIDs, paths.

    Raises:
        NotSerializableError: the value is something else.
    """
    try:
        return plain(value)
    except NotSerializableError:
        import datetime as dt  # here: JSON payloads never come this far
        from enum import Enum
        from pathlib import PurePath
        from uuid import UUID

        kind = type(value)
        if issubclass(kind, Enum):
            return value.value
        if issubclass(kind, (dt.date, dt.time)):
            return value.isoformat()
        if issubclass(kind, (UUID, PurePath)):
            return str(value)
        data = data_of(value)
        if data is value:
            raise
        return data


def data_of(value: Any, roots: frozenset[str] | None = None) -> Any:
    """A dataclass, model, event object or mapping as the data that expressions see; anything else as it is.

    Only the *roots*, the fields that matter, are converted; all of them if None.

    Raises:
        TypeError: a mapping has several values for one key.
    """
    kind = type(value)
    if issubclass(kind, _FIELDLESS) or isinstance(value, type):
        return value
    if is_dataclass(value):
        return {name: _as_data(getattr(value, name)) for name in _field_names(value) if roots is None or name in roots}
    if has_method(value, "model_dump"):
        return value.model_dump(mode="json") if roots is None else _dump_fields(value, roots)
    if has_method(value, "dict"):
        return value.dict()
    if defines(value, "raw_event"):
        return value.raw_event
    if issubclass(kind, Mapping):
        return value if issubclass(kind, dict) else _items(value, roots)
    return _own_event(value)


def field_of(value: Any, name: str) -> Any:
    """The field of the value's JSON form; None if that has no such field.

    Raises:
        NotSerializableError: the value has no JSON form.
    """
    kind = type(value)
    if issubclass(kind, _FIELDLESS):
        return None
    if issubclass(kind, tuple):
        names: Any = getattr(kind, "_fields", ())  # of a named tuple
        return value[names.index(name)] if name in names else None
    if defines(value, "get") and defines(value, "__getitem__"):  # a mapping, or used like one
        return kind.get(value, name)
    data = data_of(value, frozenset((name,)))
    return field_of(plain_in_key(value) if data is value else data, name)


def values_of(value: Any) -> Iterable[Any] | None:
    """The values of all fields of the value's JSON form; None if that is not an object.

    Raises:
        NotSerializableError: the value has no JSON form.
    """
    form = _form(value)
    return dict.values(form) if issubclass(type(form), dict) else None


def elements_of(value: Any) -> list[Any] | None:
    """The elements of the value's JSON form; None if that is not a list.

    Raises:
        NotSerializableError: the value has no JSON form.
    """
    form = _form(value)
    return list(form) if issubclass(type(form), (list, tuple)) else None


def container_of(value: Any) -> Any:
    """A dict or list for what has this JSON form, for functions that take nothing else; any other value as it is."""
    if type(value) in (dict, list, str):
        return value
    form = _form(value)
    if issubclass(type(form), dict):
        return dict(form)
    return list(form) if issubclass(type(form), (list, tuple)) else value


def _form(value: Any) -> Any:
    """The value as a dict, list, tuple or scalar.  What is in it stays as it is."""
    if issubclass(type(value), (dict, tuple, *_FIELDLESS)):
        return value
    data = data_of(value)
    return _form(plain_in_key(value) if data is value else data)


def _items(mapping: Any, roots: frozenset[str] | None) -> dict[Any, Any]:
    if roots is not None:
        return {name: mapping.get(name) for name in roots}
    items = list(mapping.items())
    data = dict(items)
    if len(data) < len(items):
        raise TypeError(f"Object of type {type(mapping).__name__} has several values for one key, and JSON has one")
    return data


def _own_event(value: Any) -> Any:
    """The event that an object keeps in an attribute of its own."""
    try:
        return object.__getattribute__(value, "raw_event")  # which does not ask `__getattr__`
    except AttributeError:
        return value


def _field_names(value: Any) -> list[str]:
    from dataclasses import fields  # here: whoever made a dataclass has imported it already

    return [field.name for field in fields(value)]


def _as_data(value: Any) -> Any:
    """`dataclasses.asdict` for any value, without its deep copies."""
    if is_dataclass(value):
        return {name: _as_data(getattr(value, name)) for name in _field_names(value)}
    kind = type(value)
    if issubclass(kind, tuple) and defines(value, "_fields"):
        return kind(*[_as_data(item) for item in value])
    if issubclass(kind, (list, tuple)):
        return kind(_as_data(item) for item in value)
    if issubclass(kind, dict):
        return {_as_data(key): _as_data(item) for key, item in value.items()}
    return value


def _dump_fields(model: Any, roots: frozenset[str]) -> Any:
    """A pydantic model's fields named in *roots*; the whole model where its own serialization decides what a field is."""
    decorators = getattr(type(model), "__pydantic_decorators__", None)
    if decorators is None or type(model).model_dump.__module__ != "pydantic.main":  # its own idea of a dump
        return model.model_dump(mode="json")
    if decorators.model_serializers or getattr(type(model), "__pydantic_root_model__", False):
        return model.model_dump(mode="json")
    if type(model).model_config.get("serialize_by_alias"):
        return model.model_dump(mode="json")
    return model.model_dump(mode="json", include=set(roots))
