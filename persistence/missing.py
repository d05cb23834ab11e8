"""What is no idempotency key.  Beside the stores, because Powertools users ask their store."""

from __future__ import annotations

from typing import Any


def is_missing_idempotency_key(data: Any) -> bool:
    """Whether a selection is no key: nothing, something empty, or a list or object of nothing.  0, 0.0 and False are keys."""
    if isinstance(data, dict):
        return all(value is None for value in data.values())
    if isinstance(data, (list, tuple)):
        return all(value is None for value in data)
    return not isinstance(data, (int, float)) and not data
