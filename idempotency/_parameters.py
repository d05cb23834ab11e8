"""Where callers pass a parameter: as the callable that really runs proves, whatever another decorator says of it.

`functools.wraps` copies the signature of the function below, and `__signature__` can say anything; what happens to the arguments
in between is not known.  So only code counts, and wrappers that are known to pass all arguments on as they are.
Imported for what is not a plain function with this parameter.
"""

from __future__ import annotations

import functools
from functools import _lru_cache_wrapper, partial
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any, Final, NamedTuple

from idempotency._callables import CALLS, name_of

#: The flag of a function's code that says that it has `**kwargs`.
VAR_KEYWORDS: Final = 0x08
_BUILTIN: Final = (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
#: Marks a gap among the arguments of a `partial`, from Python 3.14 on.
PLACEHOLDER: Final = getattr(functools, "Placeholder", object())


class Parameters(NamedTuple):
    """The parameters of a callable.

    Attributes:
        positional: Those that can be passed by position, in their order.
        positional_only: How many of the first ones cannot be passed by keyword.
        by_keyword: Those that can only be passed by keyword.
        takes_any_keyword: Whether there may be others.
    """

    positional: tuple[str, ...] = ()
    positional_only: int = 0
    by_keyword: tuple[str, ...] = ()
    takes_any_keyword: bool = True

    def without_first(self, count: int = 1) -> Parameters:
        """Those that are left if the first ones are given."""
        return self._replace(positional=self.positional[count:], positional_only=max(self.positional_only - count, 0))

    def names(self) -> list[str]:
        """All names."""
        return [*self.positional, *self.by_keyword]


UNKNOWN: Final = Parameters()


def place_of(name: Any, function: Any) -> tuple[int | None, bool]:
    """The parameter's position, None if it has none for sure; and whether it can be passed by keyword.

    Raises:
        TypeError: the callable has no such parameter.
    """
    if not isinstance(name, str):
        raise TypeError(f"data_keyword_argument must be the name of a parameter, not {name!r}")
    parameters = parameters_of(function)
    if name in parameters.positional:
        position = parameters.positional.index(name)
        return position, position >= parameters.positional_only
    if name in parameters.by_keyword or parameters.takes_any_keyword:
        return None, True
    names = " or ".join(map(repr, parameters.names()))
    raise TypeError(
        f"{name_of(function)} has no parameter {name!r}: pass "
        + (f"data_keyword_argument={names}" if names else "a function that takes the payload")
    )


def parameters_of(function: Any) -> Parameters:
    """The parameters of the callable, as far as they are proven."""
    kind = type(function)
    if kind is FunctionType:
        itself, below = function.__dict__.get(CALLS, (None, None))
        return parameters_of(below) if itself is function else _of_code(function.__code__)
    if kind is MethodType:
        return parameters_of(function.__func__).without_first()
    if kind is partial:
        return _of_partial(function)
    if kind is _lru_cache_wrapper:
        return parameters_of(function.__wrapped__)
    if kind in _BUILTIN:
        return _of_builtin(function)
    return _of_class(function) if isinstance(function, type) else _of_object(function)


def _of_code(code: Any) -> Parameters:
    names = code.co_varnames
    count = code.co_argcount
    return Parameters(
        names[:count],
        code.co_posonlyargcount,
        names[count : count + code.co_kwonlyargcount],
        bool(code.co_flags & VAR_KEYWORDS),
    )


def _of_partial(function: partial[Any]) -> Parameters:
    if any(argument is PLACEHOLDER for argument in function.args):
        return UNKNOWN
    left = parameters_of(function.func).without_first(len(function.args))
    # Behind a parameter that is bound by keyword, nothing can be passed by position.
    count = next((number for number, name in enumerate(left.positional) if name in function.keywords), len(left.positional))
    return left._replace(positional=left.positional[:count], by_keyword=left.positional[count:] + left.by_keyword)


def _of_builtin(function: Any) -> Parameters:
    from inspect import Parameter, signature

    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):  # some have no signature
        return UNKNOWN
    positional = [each for each in parameters if each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    return Parameters(
        tuple(each.name for each in positional),
        sum(each.kind is Parameter.POSITIONAL_ONLY for each in positional),
        tuple(each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY),
        any(each.kind is Parameter.VAR_KEYWORD for each in parameters),
    )


def _of_class(made: Any) -> Parameters:
    """A class with either `__init__` or `__new__`: the two may take different arguments."""
    if type(made).__call__ is not type.__call__:
        return UNKNOWN
    if made.__new__ is object.__new__ and type(made.__init__) is FunctionType:
        return parameters_of(made.__init__).without_first()
    if made.__init__ is object.__init__ and type(made.__new__) is FunctionType:
        return parameters_of(made.__new__).without_first()
    return UNKNOWN


def _of_object(function: Any) -> Parameters:
    call = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
    if type(call) is FunctionType:
        return parameters_of(call).without_first()
    return parameters_of(call.__func__) if type(call) is staticmethod else UNKNOWN
