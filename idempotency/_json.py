"""JSON as Powertools writes it: what keys are hashed from, and what results are stored as.  Pure.

Byte for byte the output of `json.dumps(value, sort_keys=True, cls=...)` with Powertools' encoders, since keys and records are
shared with it: default separators, ASCII escapes, NaN allowed.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any


def _plain(value: Any) -> Any:
    """A Decimal, model or dataclass as plain data.

    Raises:
        TypeError: the value is none of these.
    """
    # By shape and not by type: neither decimal nor pydantic is imported for users who have neither.
    if hasattr(value, "is_nan") and hasattr(value, "as_tuple"):
        return math.nan if value.is_nan() else str(value)
    if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):
        return value.model_dump(mode="json")
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return asdict(value)
    if callable(getattr(value, "json", None)) and callable(getattr(value, "dict", None)) and not isinstance(value, type):
        return value.dict()  # a model of pydantic 1
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _plain_in_key(value: Any) -> Any:
    """As `_plain`, and the further types that a key may hold: enums, dates and times, UUIDs, paths.

    Raises:
        TypeError: the value is none of these.
    """
    try:
        return _plain(value)
    except TypeError:
        import datetime as dt  # here: JSON payloads never come this far
        from enum import Enum
        from pathlib import PurePath
        from uuid import UUID

        if isinstance(value, Enum):
            return value.value
        if isinstance(value, (dt.date, dt.time)):
            return value.isoformat()
        if isinstance(value, (UUID, PurePath)):
            return str(value)
        raise


#: The canonical text of a key or of a validated payload.
canonical_json = json.JSONEncoder(sort_keys=True, default=_plain_in_key).encode

_sorted_result = json.JSONEncoder(sort_keys=True, default=_plain).encode
_unsorted_result = json.JSONEncoder(default=_plain).encode


def result_json(value: Any) -> str:
    """A function's result as JSON text.

    Raises:
        TypeError, ValueError, RecursionError: the result is not JSON.  Dates and UUIDs are not: a replay could not restore them.
    """
    try:
        return _sorted_result(value)
    except TypeError:
        # Perhaps only the sorting failed: keys of several types, which are fine as JSON.
        return _unsorted_result(value)
