"""From a value to JSON data that shows its fields: what `rebuild` undoes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from idempotency._json import merged_keys, result_part
from idempotency.serialization.scalars import scalar


def json_data(value: Any) -> Any:
    """The value as nothing but objects with text keys, lists, text, numbers, booleans and None.

    Where Powertools stores a value at all, it is stored alike.

    Raises:
        TypeError: the value, or a part of it, has no form as JSON.
        IdempotencyResultNotKeptError: two keys of a mapping have the same text.
    """
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if isinstance(value, type):
        return result_part(value)
    if isinstance(value, Enum):
        return json_data(value.value)
    if is_dataclass(value):
        return {field.name: json_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, (list, tuple, deque)):
        return [json_data(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(json_data, value), key=json.dumps)  # sorted: the same set gives the same text
    return _leaf(kind, value)


def json_key(key: Any) -> str:
    """The text of a mapping's key, as JSON writes it.

    Raises:
        TypeError: the key has none.
    """
    data = json_data(key)
    if isinstance(data, (dict, list)):
        raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")
    return data if isinstance(data, str) else json.dumps(data)


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    data = {json_key(key): json_data(item) for key, item in value.items()}
    if len(data) < len(value):
        raise merged_keys()
    return data


def _leaf(kind: type, value: Any) -> Any:
    for plain in (str, int, float):
        if issubclass(kind, plain):
            return plain.__getnewargs__(value)[0]  # a subclass's value, whatever its `str()` says
    found = scalar(kind)
    if found is not None:
        return found[0](value)
    if hasattr(kind, "__pydantic_serializer__"):
        from idempotency.serialization.pydantic import PydanticSerializer

        return PydanticSerializer(kind).to_dict(value)
    return json_data(result_part(value))
