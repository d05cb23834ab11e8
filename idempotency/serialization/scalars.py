"""Single values that JSON does not have, as text or numbers and back: decimals, dates and times, UUIDs, paths, bytes, enums.

None of their modules is imported here: where one has not been imported, nothing has its type.
"""

from __future__ import annotations

import math
import sys
from base64 import b64decode, b64encode
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    #: From a value to JSON data, and from a type and data to its value.
    Scalar = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]


def _of_text(kind: Any, data: Any) -> Any:
    return kind(data) if isinstance(data, str) else data


def _of_number(kind: Any, data: Any) -> Any:
    return kind(data) if isinstance(data, str) or data != data else data  # noqa: PLR0124 - a Decimal's NaN is stored as a number


def _of_iso_text(kind: Any, data: Any) -> Any:
    return kind.fromisoformat(data) if isinstance(data, str) else data


def _of_seconds(kind: Any, data: Any) -> Any:
    return kind(seconds=data) if isinstance(data, (int, float)) else data


def _of_base64(kind: Any, data: Any) -> Any:
    return kind(b64decode(data, validate=True)) if isinstance(data, str) else data


def _isoformat(value: Any) -> Any:
    return value.isoformat()


#: Module and name of a type, how its values and those of its subclasses (a datetime is a date) are stored, and how they are read.
_SCALARS: Final[tuple[tuple[str, str, Any, Any], ...]] = (
    ("decimal", "Decimal", lambda value: math.nan if value.is_nan() else str(value), _of_number),  # as Powertools stores it
    ("datetime", "date", _isoformat, _of_iso_text),
    ("datetime", "time", _isoformat, _of_iso_text),
    ("datetime", "timedelta", lambda value: value.total_seconds(), _of_seconds),
    ("uuid", "UUID", str, _of_text),
    ("pathlib", "PurePath", str, _of_text),
    ("builtins", "bytes", lambda value: b64encode(value).decode(), _of_base64),
    ("builtins", "bytearray", lambda value: b64encode(value).decode(), _of_base64),
)


@lru_cache(maxsize=256)
def scalar(kind: type) -> Scalar | None:
    """How the type's values are stored and read; None for any other type."""
    for module, name, write, read in _SCALARS:
        if issubclass(kind, getattr(sys.modules.get(module), name, ())):
            return write, read
    return None
