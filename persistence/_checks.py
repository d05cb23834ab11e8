"""Options that cannot be what they must be: refused when they are given, in one sentence that says what to pass.

No text shows the value of an option that may be a secret.
"""

from __future__ import annotations

from math import inf
from typing import Any

#: The longest time that an option may be, in seconds: some 3,000 years.  A longer one has no date, and no store takes it.
LONGEST_SECONDS = 10**11


def check_seconds(name: str, value: Any, *, is_positive: bool = False) -> None:
    """Raise if the value is not a number of seconds that can be added to the present."""
    _check_number(name, value, "a number of seconds")
    at_least = "a positive number of seconds" if is_positive else "0 seconds or more"
    if not 0 <= value < inf or (is_positive and value == 0):
        raise ValueError(f"{name} must be {at_least}, not {value}")
    if value > LONGEST_SECONDS:
        raise ValueError(f"{name} must be at most {LONGEST_SECONDS} seconds, not {value}")


def whole_number(name: str, value: Any, at_least: int, at_most: int | None = None) -> int:
    """The value as an int.  A text of digits is one, because settings often come from the environment."""
    number = int(value) if isinstance(value, str) and value.isdecimal() and value.isascii() else value
    check_whole_number(name, number, at_least, at_most)
    return int(number)


def check_whole_number(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    """Raise if the value is not an integer, or out of bounds."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number, not {_shown(value)}")
    if at_most is None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {value}")
    if at_most is not None and not at_least <= value <= at_most:
        raise ValueError(f"{name} must be from {at_least} to {at_most}, not {value}")


def check_text(name: str, value: Any) -> None:
    """Raise if the value is not a text.  None is taken for an empty one, as everywhere in Powertools."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {_shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Raise if the value is not True or False.  The text "false", for example, would count as True."""
    if value is not None and not isinstance(value, (bool, int)):
        raise TypeError(f"{name} must be True or False, not {_shown(value)}")


def check_callable(name: str, value: Any) -> None:
    """Raise if the value cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function or another callable, not {_shown(value)}")


def check_mapping(name: str, value: Any) -> None:
    """Raise if the value is not a dictionary with texts for keys, or None."""
    from collections.abc import Mapping

    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise TypeError(f"{name} must be a dictionary whose keys are texts, not {_shown(value)}")


def check_object(name: str, value: Any, what: str, methods: tuple[str, ...] = ()) -> None:
    """Raise if the value is a class in the place of an object, or lacks one of the methods."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be {what}, not the class {value.__name__}: create an object of it")
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise TypeError(f"{name} must be {what}, not {_shown(value)}, which has no {' and no '.join(missing)}")


def _check_number(name: str, value: Any, what: str) -> None:
    if hasattr(value, "total_seconds"):
        raise TypeError(f"{name} must be {what}, not {_shown(value)}: pass its total_seconds()")
    kind = type(value)
    if isinstance(value, bool) or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError(f"{name} must be {what}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """The kind of value, never the value itself."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    article = "an" if type(value).__name__[0] in "aeiouAEIOU" else "a"
    return f"{article} {type(value).__name__}"
