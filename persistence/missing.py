"""What counts as a missing idempotency key.  Among the stores, because Powertools users ask their store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_missing_idempotency_key(data: Any) -> bool:
    """Whether a selection is no key: nothing, something empty, or a list or object of nothing.  0, 0.0 and False are keys."""
    kind = type(data)  # `isinstance` would believe a mock
    if issubclass(kind, dict):
        data = data.values()
    elif issubclass(kind, (str, int, float)):
        return not data and issubclass(kind, str)
    elif issubclass(kind, Mapping):
        data = list(data.values())
    elif not issubclass(kind, (list, tuple)):
        return not data
    for value in data:  # noqa: SIM110 - a generator costs three times as much, in every call
        if value is not None:
            return False
    return True
