"""Options of a wrong type or value: refused when they are given, in one sentence that says what to pass.

No text shows the value of an option that may be a secret.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any, Final

#: The longest time that an option may be, in seconds: some 3,000 years.  No calendar has a date for a later end.
LONGEST_SECONDS: Final = 10**11
#: Of a function's code, where it is an `async def`; `inspect.CO_COROUTINE`, which is not imported because it slows a cold start.
CO_COROUTINE: Final = 0x80
#: The homes of what makes clients.
SESSIONS: Final = frozenset({"boto3.session", "botocore.session"})


def check_seconds(name: str, value: Any, *, is_positive: bool = False) -> None:
    """Raise if the value is not a number of seconds that can be added to the present."""
    if hasattr(value, "total_seconds"):
        raise TypeError(f"{name} must be a number of seconds, not {kind_of(value)}: pass its total_seconds()")
    kind = type(value)
    if isinstance(value, bool) or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError(f"{name} must be a number of seconds, not {kind_of(value)}")
    if not 0 <= float(value) < inf or (is_positive and value == 0):
        raise ValueError(f"{name} must be {'a positive number' if is_positive else '0 or more'}, not {value}")
    if value > LONGEST_SECONDS:
        raise ValueError(f"{name} must be at most {LONGEST_SECONDS} seconds, not {value}")


def whole_number(name: str, value: Any, at_least: int, at_most: int) -> int:
    """The value as an int.  A text of digits is one, because settings often come from the environment."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    check_whole_number(name, number, at_least, at_most)
    return int(number)


def check_whole_number(name: str, value: Any, at_least: int, at_most: int | None = None, unit: str = "") -> None:
    """Raise if the value is not an integer, or out of bounds."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number, not {kind_of(value)}")
    if at_most is None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {value}")
    if at_most is not None and not at_least <= value <= at_most:
        limits = f"from {at_least} to {at_most} {unit}".rstrip()
        raise ValueError(f"{name} must be {limits}, not {value}")


def check_text(name: str, value: Any, *, is_optional: bool = True) -> None:
    """Raise if the value is not a text.  An optional one may be None, which counts as empty, as in Powertools."""
    if not isinstance(value, str) and not (is_optional and value is None):
        raise TypeError(f"{name} must be a text, not {kind_of(value)}")


def check_flag(name: str, value: Any) -> None:
    """Raise if the value is not True or False.  The text "false", for example, would count as True."""
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{name} must be True or False, not {kind_of(value)}")


def check_callable(name: str, value: Any) -> None:
    """Raise if the value cannot be called, or only awaited: then its calls would do nothing."""
    if not callable(value):
        raise TypeError(f"{name} must be a function or another callable, not {kind_of(value)}")
    if is_awaited_function(value):
        raise TypeError(f"{name} must be a plain function: it is not awaited, and an async one would not run")


def check_mapping(name: str, value: Any) -> None:
    """Raise if the value is not a dictionary with texts for keys, or None."""
    if value is None or (type(value) is dict and all(type(key) is str for key in value)):
        return
    from collections.abc import Mapping

    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a dictionary whose keys are texts, not {kind_of(value)}")


def check_object(name: str, value: Any, what: str, methods: tuple[str, ...]) -> None:
    """Raise if the value is a class in the place of an object, or lacks one of the methods."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be {what}, not the class {value.__name__}: create an object of it")
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise TypeError(f"{name} must be {what}, not {kind_of(value)}, which has no {' and no '.join(missing)}")


def check_client(name: str, client: Any, what: str, methods: tuple[str, ...]) -> None:
    """Raise if the value is not a boto3 client with these methods, or something like one.

    A double of a test may have some of the methods only.  boto3's own objects are told by their types, because a mock has every
    attribute.
    """
    homes = {base.__module__ for base in type(client).__mro__}
    if "boto3.resources.base" in homes:
        raise TypeError(f"{name} must be {what}, not a boto3 resource: pass the resource's meta.client")
    if not homes.isdisjoint(SESSIONS):
        raise TypeError(f"{name} must be {what}, not a session: pass it as boto3_session")
    found = [method for method in methods if callable(getattr(client, method, None))]
    if len(found) < len(methods) and (not found or "botocore.client" in homes) and type(client) is not object:
        check_object(name, client, what, methods)
    if isinstance(client, type):
        raise TypeError(f"{name} must be {what}, not the class {client.__name__}: create an object of it")
    if found and is_awaited_function(getattr(client, found[0])):
        raise TypeError(f"{name} must be {what} that answers at once, and the methods of {kind_of(client)} are awaited")


def check_sdk(boto3_session: Any, boto_config: Any) -> None:
    """Raise if these cannot be what boto3 makes clients with.  Both may be None."""
    if boto3_session is not None:
        check_object("boto3_session", boto3_session, "a boto3 session", ("client",))
    if boto_config is not None:
        check_object("boto_config", boto_config, "a botocore.config.Config", ("merge",))


def is_awaited_function(value: Any) -> bool:
    """Whether the value is an `async def`, or an object that is called like one."""
    while isinstance(value, partial):
        value = value.func
    for function in (value, getattr(type(value), "__call__", None)):  # noqa: B004 - its code is wanted
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if isinstance(flags, int) and flags & CO_COROUTINE:
            return True
    return False


def kind_of(value: Any) -> str:
    """What kind of value it is; never the value itself."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
