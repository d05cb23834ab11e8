"""From JSON data to the value that an annotation describes: what `plain.json_data` did, undone as far as types say how.

Data that does not fit its annotation stays as it is.  Nothing marks a type in the data, so that Powertools reads it, too.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain, repeat
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NewType,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from idempotency.serialization.functions import all_subclasses, resolved
from idempotency.serialization.plain import json_data, json_key
from idempotency.serialization.round_trip import is_equal
from idempotency.serialization.scalars import scalar

#: Annotations that only say something about the type inside of them.
_WRAPPERS: Final = (Annotated, Required, NotRequired)
_PLAIN: Final = frozenset({str, int, float, bool})


class MissingFieldError(Exception):
    """The data lacks a field that its dataclass needs.  The text names it."""


def rebuilt(annotation: Any, data: Any) -> Any:
    """*data* as the annotation describes it.

    Raises:
        MissingFieldError: a dataclass needs a field that the data lacks.
        IdempotencyResultNotKeptError: the data does not fit a model.
    """
    if data is None or annotation is Any or (type(annotation) is type and annotation in _PLAIN):
        return data
    annotation = _opened(annotation)
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _member([member for member in members if member is not NoneType], data)
    if origin is Literal:
        return next((member for member in members if _is_stored_as(member, data)), data)
    kind = annotation if origin is None else origin
    return _of_kind(kind, members, data) if isinstance(kind, type) else data


def _of_kind(kind: Any, members: tuple[Any, ...], data: Any) -> Any:
    """*data* as the class describes it, *members* being the arguments that its annotation has."""
    if is_dataclass(kind):
        return _dataclass(kind, members, data) if isinstance(data, dict) else data
    if issubclass(kind, Enum):
        return _enum_member(kind, data)
    if hasattr(kind, "__pydantic_validator__"):
        from idempotency.serialization.pydantic import PydanticSerializer  # here: it needs pydantic

        return PydanticSerializer(kind).from_dict(data)
    if isinstance(data, list):
        return _collection(kind, members, data)
    if isinstance(data, dict) and is_typeddict(kind):
        types = _hints(kind)
        return {key: rebuilt(types.get(key, Any), item) for key, item in data.items()}
    if isinstance(data, dict) and issubclass(kind, Mapping):
        of_keys, of_items = (*members, Any, Any)[:2]
        return {_key(of_keys, key): rebuilt(of_items, item) for key, item in data.items()}
    return _value(kind, data)


def _opened(annotation: Any) -> Any:
    """The type inside of an annotation that only names or describes it."""
    while True:
        if get_origin(annotation) in _WRAPPERS:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__
        elif type(annotation).__name__ == "TypeAliasType":  # since Python 3.12
            annotation = annotation.__value__
        else:
            return annotation


def _value(kind: type, data: Any) -> Any:
    """A single value, of a type that does not contain others."""
    found = None if kind in _PLAIN else scalar(kind)
    if found is None:
        return data
    try:
        return found[1](kind, data)
    except Exception:  # noqa: BLE001 - whatever it is, the data does not fit
        return data


def _enum_member(kind: type[Enum], data: Any) -> Any:
    for member in kind:
        if _is_stored_as(member, data):
            return member
    try:
        return kind(data)  # flags in combination
    except ValueError:
        return data


def _is_stored_as(value: Any, data: Any) -> bool:
    try:
        stored = json_data(value)
    except Exception:  # noqa: BLE001 - whatever it is, it was not stored
        return False
    return type(stored) is type(data) and is_equal(stored, data)


def _collection(kind: Any, members: tuple[Any, ...], data: list[Any]) -> Any:
    if hasattr(kind, "_fields") and issubclass(kind, tuple):
        hints = _hints(kind)
        types: Any = chain((hints.get(name, Any) for name in kind._fields), repeat(Any))
    elif issubclass(kind, tuple) and members and members[-1] is not Ellipsis:
        types = chain(members, repeat(Any))
    else:
        types = repeat(members[0] if members else Any)
    items = [rebuilt(of_item, item) for of_item, item in zip(types, data, strict=False)]
    try:
        if hasattr(kind, "_fields"):
            return kind(*items)
        if issubclass(kind, AbstractSet) and not issubclass(kind, (set, frozenset)):
            return set(items)
        return kind(items) if issubclass(kind, (list, tuple, set, frozenset, deque)) else items
    except Exception:  # noqa: BLE001 - whatever it is, the data does not fit
        return data


def _key(annotation: Any, text: str) -> Any:
    """A mapping's key from its text."""
    annotation = _opened(annotation)
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = () if str in members else members
    elif origin is Literal:
        return next((member for member in members if json_key(member) == text), text)
    else:
        kinds = (annotation,)
    for kind in kinds:
        try:
            key = _of_key(kind, text)
            if json_key(key) == text:
                return key
        except Exception:  # noqa: BLE001, S112 - the text is of another type
            continue
    return text


def _of_key(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text]
    if kind in (None, NoneType):
        return {"null": None}[text]
    if kind in (int, float):
        return kind(text)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(member for member in kind if json_key(member) == text)
    return rebuilt(kind, text)


def _member(kinds: list[Any], data: Any) -> Any:
    """Of a union, the first type that has exactly this data; JSON's own types before the others."""
    if len(kinds) == 1:
        return rebuilt(kinds[0], data)
    if type(data) in kinds:
        return data
    for kind in kinds:
        try:
            value = rebuilt(kind, data)
            if value is not data and _is_stored_as(value, data):
                return value
        except Exception:  # noqa: BLE001, S112 - the data is of another type
            continue
    return data


def _dataclass(model: Any, arguments: tuple[Any, ...], data: dict[str, Any]) -> Any:
    """An object whose fields have what the data says, whatever its constructor makes of them."""
    model = _class_for(model, data)
    values = {name: rebuilt(of_field, data[name]) for name, of_field in _field_types(model, arguments).items() if name in data}
    computed = _computed(model)
    try:
        made = model(**{name: value for name, value in values.items() if name not in computed} if computed else values)
    except Exception:  # noqa: BLE001 - it needs more than the fields, or refuses what it accepted before
        made = _unconstructed(model, values)
    for name, value in values.items():
        found = getattr(made, name, MISSING)
        if found is not value and (found is MISSING or not _is_stored_as(found, data[name])):
            object.__setattr__(made, name, value)
    return made


def _unconstructed(model: Any, values: dict[str, Any]) -> Any:
    made = model.__new__(model)
    for field in fields(model):
        if field.name not in values:
            object.__setattr__(made, field.name, _default(model, field))
    return made


def _default(model: type[Any], field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    if field.default is MISSING:
        raise MissingFieldError(f"{model.__qualname__} needs the field {field.name}")
    return field.default


def _class_for(model: Any, data: dict[str, Any]) -> Any:
    """The only subclass that has exactly the data's fields, if the model itself lacks some of them."""
    if data.keys() <= _names(model):
        return model
    fitting = [sub for sub in all_subclasses(model) if is_dataclass(sub) and data.keys() == _names(sub)]
    return fitting[0] if len(fitting) == 1 else model


@lru_cache(maxsize=256)
def _names(model: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(model))


@lru_cache(maxsize=256)
def _computed(model: Any) -> frozenset[str]:
    """The fields that the constructor does not take."""
    return frozenset(field.name for field in fields(model) if not field.init)


def _field_types(model: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The types of the fields, with a generic class's arguments in them."""
    types = _declared(model)
    if not issubclass(model, Generic):
        return types
    bound = _bound(model, arguments)
    return {name: _with(bound.get(_owner(model, name), {}), annotation) for name, annotation in types.items()}


def _bound(model: Any, arguments: tuple[Any, ...]) -> dict[Any, dict[Any, Any]]:
    """What stands for the type variables of the class and of each of its bases, which may have the same ones."""
    of_model = dict(zip(getattr(model, "__parameters__", ()), arguments, strict=False))
    bound = {model: of_model}
    for base in vars(model).get("__orig_bases__", model.__bases__):
        origin = get_origin(base) or base
        if origin is not Generic and issubclass(origin, Generic):
            bound |= _bound(origin, tuple(_with(of_model, argument) for argument in get_args(base)))
    return bound


def _with(bound: dict[Any, Any], annotation: Any) -> Any:
    if isinstance(annotation, TypeVar):
        return bound.get(annotation, annotation)
    variables = () if isinstance(annotation, type) else getattr(annotation, "__parameters__", ())
    return annotation[tuple(bound.get(variable, variable) for variable in variables)] if variables else annotation


@lru_cache(maxsize=256)
def _declared(model: type[Any]) -> dict[str, Any]:
    return {field.name: _type_of(model, field) for field in fields(model)}


def _type_of(model: type[Any], field: Field[Any]) -> Any:
    """The field's type; Any if it names what is not there at run time, as with imports for type checkers only."""
    owner = _owner(model, field.name)
    try:
        # A module's names before the class's: a field may have the name of its type, as `date: date = ...`.
        return resolved(field.type, dict(vars(owner)), vars(sys.modules[owner.__module__]))
    except Exception:  # noqa: BLE001 - whatever it is, the field stays as JSON has it
        return Any


def _owner(model: type[Any], name: str) -> Any:
    """The class whose body declares the field: the others have the very same one from it."""
    declared = model.__dataclass_fields__[name]
    return [base for base in model.__mro__ if vars(base).get("__dataclass_fields__", {}).get(name) is declared][-1]


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a TypedDict's or NamedTuple's parts, as far as they can be found."""
    try:
        return get_type_hints(kind)
    except Exception:  # noqa: BLE001 - as with a dataclass's
        return {}
