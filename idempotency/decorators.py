"""The public decorators: `@idempotent`, `@idempotent_function` and `make_idempotent`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine
from functools import _lru_cache_wrapper, partial, update_wrapper
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from idempotency._callables import (
    ASYNC_GENERATOR,
    CALLS,
    GENERATOR,
    called,
    has_flag,
    is_async_function,
    name_of,
)
from idempotency._environment import Variable
from idempotency.config import IdempotencyConfig  # noqa: TC001 - users of Powertools import it from beside the decorators
from idempotency.handler import IdempotencyHandler, Invocation
from idempotency.serialization.base import (
    BaseIdempotencyModelSerializer,
    BaseIdempotencySerializer,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from idempotency.execution import Executed, Replayed
    from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer

    Store = BasePersistenceLayer | AsyncBasePersistenceLayer

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
OutputSerializer = BaseIdempotencySerializer | type[BaseIdempotencyModelSerializer] | None

DISABLED: Final = Variable("POWERTOOLS_IDEMPOTENCY_DISABLED")

_YES: Final = frozenset({"1", "y", "yes", "t", "true", "on"})
_NO: Final = frozenset({"0", "n", "no", "f", "false", "off"})


class Idempotent(Protocol[P, R_co]):
    """A decorated function: called as before, with two further abilities."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The function's result, or the stored one."""

    def with_outcome(self, *args: P.args, **kwargs: P.kwargs) -> Executed | Replayed:
        """As a call, but tells a run from a replay.  On a method, through its class, with the object as first argument."""

    def override(
        self, *, persistence_store: BasePersistenceLayer | None = None, config: IdempotencyConfig | None = None
    ) -> AbstractContextManager[None]:
        """Another store or configuration inside a `with` block, in all threads.  For tests."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Idempotent[P, R_co]: ...
    @overload
    def __get__(self: Idempotent[Concatenate[S, Q], R_co], instance: S, owner: type | None = None, /) -> Callable[Q, R_co]: ...


class AsyncIdempotent(Protocol[P, R_co]):
    """A decorated async function: called as before, with two further abilities."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """The function's result, or the stored one."""

    def with_outcome(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Executed | Replayed]:
        """As a call, but tells a run from a replay.  On a method, through its class, with the object as first argument."""

    def override(
        self, *, persistence_store: Store | None = None, config: IdempotencyConfig | None = None
    ) -> AbstractContextManager[None]:
        """Another store or configuration inside a `with` block, in all threads.  For tests."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> AsyncIdempotent[P, R_co]: ...
    @overload
    def __get__(
        self: AsyncIdempotent[Concatenate[S, Q], R_co], instance: S, owner: type | None = None, /
    ) -> Callable[Q, Coroutine[Any, Any, R_co]]: ...


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncIdempotent[P, R]: ...  # type: ignore[overload-overlap]  # the narrower comes first
    @overload
    def __call__(self, function: Callable[P, R], /) -> Idempotent[P, R]: ...


@overload
def idempotent(
    function: None = None, /, *, persistence_store: Store, config: IdempotencyConfig | None = None, key_prefix: str | None = None
) -> _Decorator: ...
@overload
def idempotent(  # type: ignore[overload-overlap]  # the narrower comes first
    function: Callable[P, Coroutine[Any, Any, R]],
    /,
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    key_prefix: str | None = None,
) -> AsyncIdempotent[P, R]: ...
@overload
def idempotent(
    function: Callable[P, R],
    /,
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    key_prefix: str | None = None,
) -> Idempotent[P, R]: ...
def idempotent(
    function: Callable[..., Any] | None = None,
    /,
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    key_prefix: str | None = None,
) -> Any:
    """Run a Lambda handler `(event, context)` once per event, and answer each retry with the stored result.

    The lease lasts until the invocation's deadline, so an attempt that was stopped half-way is taken over after it.  A durable
    execution's context is recognised: its replays continue its own claim.

    Args:
        function: The handler, if this is called and not used as a decorator.
        persistence_store: Where the records are kept.
        config: The settings; the defaults take the whole event for the key.
        key_prefix: Replaces `{Lambda function}.{module}.{qualified name}` at the head of the key.

    Raises:
        TypeError: the handler is no function, or a generator function; the store is none.
        ValueError, jmespath.exceptions.ParseError: the configuration is wrong.
    """
    if function is None:
        return partial(idempotent, persistence_store=persistence_store, config=config, key_prefix=key_prefix)
    if not isinstance(function, FunctionType):
        raise TypeError(f"@idempotent takes keyword arguments and decorates a handler function, not {type(function).__name__}")
    handler, is_async = _handler(function, persistence_store, config, None, key_prefix)

    def prepared(event: Any, context: Any = None, **kwargs: Any) -> _Prepared:
        return event, partial(function, event, context, **kwargs), _invocation(context)

    return _decorated(function, handler, prepared, is_async=is_async)


@overload
def idempotent_function(
    function: None = None,
    *,
    data_keyword_argument: str,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
    **kwargs: Any,
) -> _Decorator: ...
@overload
def idempotent_function(
    function: Callable[P, Coroutine[Any, Any, R]],
    *,
    data_keyword_argument: str,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
    **kwargs: Any,
) -> AsyncIdempotent[P, R]: ...
@overload
def idempotent_function(
    function: Callable[P, R],
    *,
    data_keyword_argument: str,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
    **kwargs: Any,
) -> Idempotent[P, R]: ...
def idempotent_function(
    function: Callable[..., Any] | None = None,
    *,
    data_keyword_argument: str,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
    **kwargs: Any,  # noqa: ARG001 - tolerated
) -> Any:
    """Run any function or method, sync or async, once per payload, and answer each retry with the stored result.

    Args:
        function: The function, if this is called and not used as a decorator.
        data_keyword_argument: The parameter that holds the payload.  Callers may pass it by keyword, and by position where the
            function itself proves the position.  Below another decorator it must be passed by keyword: that may add or take away
            arguments.  See docs/keys.md.
        persistence_store: Where the records are kept.
        config: The settings; the defaults take the whole payload for the key.
        output_serializer: Turns results into JSON data and back; a model serializer's class reads the return annotation.
        key_prefix: Replaces `{Lambda function}.{module}.{qualified name}` at the head of the key.
        **kwargs: Tolerated and ignored, as by Powertools.

    Raises:
        TypeError: the function is not callable, a generator function, or has no such parameter; the store is none.
        ValueError, jmespath.exceptions.ParseError: the configuration is wrong.
        IdempotencyNoSerializationModelError, IdempotencyModelTypeError: the serializer does not fit the annotation.
        RuntimeError: at a call, the payload was not passed.
    """
    if function is None:
        return partial(
            idempotent_function,
            data_keyword_argument=data_keyword_argument,
            persistence_store=persistence_store,
            config=config,
            output_serializer=output_serializer,
            key_prefix=key_prefix,
        )
    handler, is_async = _handler(function, persistence_store, config, output_serializer, key_prefix)
    position, is_keyword = _place_of(data_keyword_argument, function)

    def prepared(*args: Any, **kwargs: Any) -> _Prepared:
        if data_keyword_argument in kwargs and is_keyword:
            payload = kwargs[data_keyword_argument]
        elif position is not None and position < len(args):
            payload = args[position]
        else:
            raise RuntimeError(
                f"Unable to extract '{data_keyword_argument}' from keyword arguments."
                " Ensure this exists in your function's signature as well as the caller used it as a keyword argument"
            )
        return payload, partial(function, *args, **kwargs), None

    return _decorated(function, handler, prepared, is_async=is_async)


@overload
def make_idempotent(  # type: ignore[overload-overlap]  # the narrower comes first
    function: Callable[P, Coroutine[Any, Any, R]],
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    data_index_argument: int = 0,
    data_keyword_argument: str | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
) -> AsyncIdempotent[P, R]: ...
@overload
def make_idempotent(
    function: Callable[P, R],
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    data_index_argument: int = 0,
    data_keyword_argument: str | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
) -> Idempotent[P, R]: ...
def make_idempotent(
    function: Callable[..., Any],
    *,
    persistence_store: Store,
    config: IdempotencyConfig | None = None,
    data_index_argument: int = 0,
    data_keyword_argument: str | None = None,
    output_serializer: OutputSerializer = None,
    key_prefix: str | None = None,
) -> Any:
    """An idempotent version of any callable: a lambda, partial, builtin, bound method or callable object.  It stays unchanged.

    An argument that offers `get_remaining_time_in_millis` is taken for the Lambda context.

    Args:
        function: The callable.  An async one gives an async version.
        persistence_store: Where the records are kept.
        config: The settings; the defaults take the whole payload for the key.
        data_index_argument: The position of the payload among the positional arguments.
        data_keyword_argument: The payload's keyword; where it is passed by keyword, it counts.
        output_serializer: As for `idempotent_function`.
        key_prefix: As for `idempotent_function`.  Without one, callables of the same name share their keys: two lambdas of one
            module do, so give them prefixes.

    Raises:
        TypeError, ValueError, jmespath.exceptions.ParseError: as for `idempotent_function`.
        RuntimeError: at a call, the payload was not passed.
    """
    if data_index_argument < 0:
        raise ValueError(f"data_index_argument counts from 0, and {data_index_argument} is less")
    handler, is_async = _handler(function, persistence_store, config, output_serializer, key_prefix)
    is_keyword = data_keyword_argument is not None and _place_of(data_keyword_argument, function)[1]

    def prepared(*args: Any, **kwargs: Any) -> _Prepared:
        if data_keyword_argument in kwargs and is_keyword:
            payload = kwargs[data_keyword_argument]
        elif data_index_argument < len(args):
            payload = args[data_index_argument]
        else:
            raise RuntimeError(
                f"Unable to extract the payload: it is neither positional argument {data_index_argument}"
                f" nor keyword argument {data_keyword_argument!r}"
            )
        context = _lambda_context_in((*args, *kwargs.values()), payload)
        return payload, partial(function, *args, **kwargs), None if context is None else Invocation(context)

    return _decorated(function, handler, prepared, is_async=is_async)


#: A call's payload, the call itself, and its invocation where its arguments tell.
_Prepared = tuple[Any, Callable[[], Any], Invocation | None]


def _handler(
    function: object,
    persistence_store: Store,
    config: IdempotencyConfig | None,
    output_serializer: OutputSerializer,
    key_prefix: str | None,
) -> tuple[IdempotencyHandler, bool]:
    """The wiring of a function, and whether the function is async."""
    if not callable(function) and not isinstance(function, classmethod):
        raise TypeError(f"Only callables can be made idempotent, and {type(function).__name__} is none")
    if isinstance(function, (classmethod, staticmethod)):
        raise TypeError(f"Put @{type(function).__name__} above the idempotent decorator, not below it")
    below = called(function)
    if has_flag(function, GENERATOR | ASYNC_GENERATOR) or has_flag(below, GENERATOR | ASYNC_GENERATOR):
        raise TypeError(
            f"{name_of(function)} is a generator function: what it yields cannot be stored. Return the result instead"
        )
    if isinstance(function, _lru_cache_wrapper) and is_async_function(function.__wrapped__):
        raise TypeError(
            f"{name_of(function)} is cached, and a coroutine cannot be awaited twice: decorate the async function itself"
        )
    is_async = is_async_function(function)
    if isinstance(output_serializer, type) and issubclass(output_serializer, BaseIdempotencyModelSerializer):
        from idempotency.serialization.functions import return_type  # here: it needs inspect, which costs more than all of this

        output_serializer = output_serializer.instantiate(return_type(function))
    if output_serializer is not None and not isinstance(output_serializer, BaseIdempotencySerializer):
        raise TypeError(f"output_serializer must be a BaseIdempotencySerializer, not {output_serializer!r}")
    handler = IdempotencyHandler(
        function_name=name_of(function),
        is_async=is_async,
        persistence_store=persistence_store,
        config=config,
        output_serializer=output_serializer,
        key_prefix=key_prefix,
    )
    return handler, is_async


def _decorated(
    function: Callable[..., Any], handler: IdempotencyHandler, prepared: Callable[..., _Prepared], *, is_async: bool
) -> Any:
    """A function that calls *function* through its handler, and looks like it."""
    with_outcome: Callable[..., Any]
    decorated: Callable[..., Any]
    if is_async:

        async def decorated(*args: Any, **kwargs: Any) -> Any:
            if _is_disabled():
                return (await handler.aunprotected(partial(function, *args, **kwargs))).value
            return (await handler.aexecute(*prepared(*args, **kwargs))).value

        async def with_outcome(*args: Any, **kwargs: Any) -> Executed | Replayed:
            if _is_disabled():
                return await handler.aunprotected(partial(function, *args, **kwargs))
            return await handler.aexecute(*prepared(*args, **kwargs))

    else:

        def decorated(*args: Any, **kwargs: Any) -> Any:
            if _is_disabled():
                return handler.unprotected(partial(function, *args, **kwargs)).value
            return handler.execute(*prepared(*args, **kwargs)).value

        def with_outcome(*args: Any, **kwargs: Any) -> Executed | Replayed:
            if _is_disabled():
                return handler.unprotected(partial(function, *args, **kwargs))
            return handler.execute(*prepared(*args, **kwargs))

    update_wrapper(decorated, function)
    vars(decorated).update({"with_outcome": with_outcome, "override": handler.override, CALLS: (decorated, function)})
    return decorated


def _is_disabled() -> bool:
    """Whether the environment switches idempotency off, which it may from call to call."""
    if DISABLED.raw() is None:
        return False
    value = DISABLED.value() or ""
    if value.lower() in _NO:
        return False
    if value.lower() not in _YES:
        raise ValueError(f"invalid truth value {value.lower()!r}")
    from aws_lambda_powertools.warnings import PowertoolsUserWarning

    warnings.warn(
        PowertoolsUserWarning(  # type: ignore[no-untyped-call]
            "Disabling idempotency is intended for development environments only and should not be used in production."
        ),
        stacklevel=3,
    )
    return True


def _invocation(context: Any) -> Invocation:
    """The invocation behind a handler's context argument, which is Lambda's own or a durable execution's."""
    if not (_has(context, "state") and _has(context, "lambda_context")):
        return Invocation(context)
    arn = getattr(context.state, "durable_execution_arn", "")
    # More than the operation with which every execution begins: this is a replay.
    is_replay = len(context.state.operations) > 1
    return Invocation(context.lambda_context, durable_arn=arn if isinstance(arn, str) else "", is_replay=is_replay)


def _lambda_context_in(arguments: tuple[Any, ...], payload: Any) -> Any:
    for argument in arguments:
        if argument is not payload and _has(argument, "get_remaining_time_in_millis"):
            return argument
    return None


def _has(value: Any, name: str) -> bool:
    """Whether the object or its class has the attribute; a mock of a class has what that class has."""
    if not hasattr(value, name):
        return False
    try:
        object.__getattribute__(value, name)  # which does not ask `__getattr__`, where a mock answers every name
    except AttributeError:
        return hasattr(value.__class__, name)
    return True


def _place_of(name: str, function: Any) -> tuple[int | None, bool]:
    """The payload's position, None if only keywords are sure to find it; and whether it can be passed by keyword.

    Raises:
        TypeError: the function has no such parameter.
    """
    if type(function) is FunctionType and CALLS not in function.__dict__:
        code = function.__code__
        names = code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]
        if name in names:
            position = code.co_posonlyargcount + names.index(name)
            return position if position < code.co_argcount else None, True
    from idempotency._parameters import place_of  # here: most payloads are parameters of plain functions

    return place_of(name, function)
