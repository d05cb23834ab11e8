"""What is no idempotency key.  Beside the stores, because Powertools users ask their store."""

from __future__ import annotations

from typing import Any


def is_missing_idempotency_key(data: Any) -> bool:
    """Whether a selection is no key: nothing, something empty, or a list or object of nothing.  0, 0.0 and False are keys."""
    if isinstance(data, dict):
        data = data.values()
    elif not isinstance(data, (list, tuple)):
        return not isinstance(data, (int, float)) and not data
    for value in data:  # noqa: SIM110 - a generator costs three times as much, in every call
        if value is not None:
            return False
    return True
