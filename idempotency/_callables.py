"""What is known of a callable without a call: its name, and whether it is async or a generator function."""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any, Final

#: Flags of a function's code.  https://docs.python.org/3/library/inspect.html#code-objects-bit-flags
GENERATOR: Final = 0x20
COROUTINE: Final = 0x80
ASYNC_GENERATOR: Final = 0x200
#: What `inspect.markcoroutinefunction` leaves on a function.
MARKER: Final = "_is_coroutine_marker"
#: What this library's decorators leave on a function: the function itself, because others copy attributes, and the one that it
#: passes all its arguments to.
CALLS: Final = "_calls"


def has_flag(function: Any, flags: int) -> bool:
    """Whether calling it makes a coroutine or a generator, as inspect would say."""
    if type(function) is FunctionType and MARKER not in function.__dict__:
        return bool(function.__code__.co_flags & flags)
    from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

    if flags == COROUTINE:
        return iscoroutinefunction(function)
    return isgeneratorfunction(function) or isasyncgenfunction(function)


def is_async_function(function: object) -> bool:
    """Whether calling it makes a coroutine."""
    return has_flag(function, COROUTINE) or has_flag(called(function), COROUTINE)


def has_async_code(function: object) -> bool:
    """As `is_async_function`, but does not import inspect, which is too slow for a cold start."""
    flags = getattr(getattr(called(function), "__code__", None), "co_flags", 0)
    return bool(flags & COROUTINE)


def called(function: object) -> object:
    """What runs when a callable that is no function is called."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type) or hasattr(function, "__code__"):
        return function
    return getattr(function, "__func__", type(function).__call__)


def name_of(function: object) -> str:
    """The callable's part of the key: its module and qualified name, or those of its type."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
