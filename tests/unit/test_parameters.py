"""Where a payload may be passed: only what runs proves a position."""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from unittest.mock import MagicMock

import pytest
from pydantic import BaseModel

from idempotency import InMemoryPersistenceLayer, _parameters, idempotent, idempotent_function, make_idempotent
from idempotency._parameters import place_of
from idempotency.decorators import _place_of

if TYPE_CHECKING:
    from collections.abc import Callable

STORE = InMemoryPersistenceLayer()


def plain(customer: str, order: int, *, note: str = "") -> None: ...
def first(order: int, customer: str) -> None: ...
def only_positional(order: int, /, customer: str) -> None: ...
def only_keyword(customer: str, *, order: int) -> None: ...
def any_keyword(customer: str, **fields: Any) -> None: ...
def swallows(order: int, /, **fields: Any) -> None: ...
def with_rest(order: int, *rest: Any, **fields: Any) -> None: ...
async def later(customer: str, order: int) -> None: ...


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another decorator's version, which may inject or consume arguments."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("EUR", *args, **kwargs)

    return wrapper


def with_own_names(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(order: int, *args: Any, **kwargs: Any) -> Any:
        return function("EUR", order, *args, **kwargs)

    return wrapper


def signed(function: Callable[..., Any], model: Callable[..., Any]) -> Callable[..., Any]:
    """Says of itself that it takes what the model takes."""
    function.__signature__ = inspect.signature(model)  # type: ignore[attr-defined]
    return function


def any_arguments(*args: Any, **kwargs: Any) -> None: ...


class Timed(ContextDecorator):
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class Shop:
    def charge(self, order: int) -> None: ...

    @classmethod
    def named(cls, order: int) -> None: ...

    @staticmethod
    def quote(order: int) -> None: ...

    @functools.singledispatchmethod
    def dispatched(self, order: int) -> None: ...

    cached = functools.lru_cache(charge)
    partly = functools.partialmethod(charge, 7)

    @idempotent_function(data_keyword_argument="order", persistence_store=STORE)
    def safe(self, order: int) -> None: ...


class Called:
    def __call__(self, customer: str, order: int) -> None: ...


class StaticallyCalled:
    @staticmethod
    def __call__(customer: str, order: int) -> None: ...


class ClassCalled:
    @classmethod
    def __call__(cls, customer: str, order: int) -> None: ...


class SignedCalled(Called):
    __signature__ = inspect.signature(first)


class ByInit:
    def __init__(self, customer: str, order: int) -> None: ...


class ByNew:
    def __new__(cls, customer: str, order: int) -> Self:
        return super().__new__(cls)


class ByBoth(ByNew):
    def __init__(self, *arguments: Any) -> None: ...


class Meta(type):
    def __call__(cls, order: int, customer: str) -> Any:
        return super().__call__(customer, order)


class ByMeta(ByInit, metaclass=Meta): ...


@dataclass
class Data:
    customer: str
    order: int


class Model(BaseModel):
    customer: str
    order: int


class Tuple(NamedTuple):
    customer: str
    order: int


class PartialOfItsOwn(functools.partial):  # type: ignore[type-arg]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func("EUR", *args, **kwargs)


def safe(function: Callable[..., Any]) -> Callable[..., Any]:
    return idempotent_function(function, data_keyword_argument="customer", persistence_store=STORE)


def dispatched() -> Callable[..., Any]:
    return functools.singledispatch(first)


PLACES: dict[str, tuple[Any, int | None, bool]] = {
    "plain": (plain, 1, True),
    "first": (first, 0, True),
    "async": (later, 1, True),
    "lambda": (lambda customer, order=7: None, 1, True),
    "positional only": (only_positional, 0, False),
    "keyword only": (only_keyword, None, True),
    "any keyword": (any_keyword, None, True),
    "positional only, and any keyword": (swallows, 0, False),
    "with *args": (with_rest, 0, True),
    "any arguments": (any_arguments, None, True),
    # Other decorators
    "wrapped": (wrapped(plain), None, True),
    "wrapped with own names": (with_own_names(plain), 0, True),
    "wrapped twice": (wrapped(wrapped(plain)), None, True),
    "with a signature": (signed(any_arguments, plain), None, True),
    "with another's signature": (signed(lambda customer, order: None, first), 1, True),
    "context decorator": (Timed()(plain), None, True),
    "single dispatch": (dispatched(), None, True),
    # What passes all arguments on
    "cached": (functools.lru_cache(plain), 1, True),
    "cached without bounds": (functools.cache(only_positional), 0, False),
    "cached and wrapped": (functools.cache(wrapped(plain)), None, True),
    "wrapped and cached": (wrapped(functools.cache(plain)), None, True),
    "ours": (safe(plain), 1, True),
    "ours twice": (safe(safe(plain)), 1, True),
    "ours, positional only": (safe(only_positional), 0, False),
    "ours, made": (make_idempotent(plain, persistence_store=STORE), 1, True),
    "ours, a handler": (idempotent(lambda event, order: None, persistence_store=STORE), 1, True),
    "ours, wrapped": (safe(wrapped(plain)), None, True),
    "wrapped ours": (wrapped(safe(plain)), None, True),
    "ours, cached": (safe(functools.cache(plain)), 1, True),
    # Partials
    "partial": (functools.partial(plain), 1, True),
    "partial with a first argument": (functools.partial(plain, "ann"), 0, True),
    "partial with a keyword": (functools.partial(plain, note="n"), 1, True),
    "partial with a keyword before": (functools.partial(plain, customer="ann"), None, True),
    "partial with the payload": (functools.partial(plain, order=7), None, True),
    "partial of a partial": (functools.partial(functools.partial(plain, "ann"), note="n"), 0, True),
    "partial of positional only": (functools.partial(lambda customer, order, /: None, "ann"), 0, False),
    "partial with all positional only": (functools.partial(lambda customer, /, order: None, "ann"), 0, True),
    "partial of wrapped": (functools.partial(wrapped(plain), "ann"), None, True),
    "partial of ours": (functools.partial(safe(plain), "ann"), 0, True),
    "partial of its own": (PartialOfItsOwn(first), None, True),
    # Methods
    "bound method": (Shop().charge, 0, True),
    "function of a class": (Shop.charge, 1, True),
    "class method": (Shop.named, 0, True),
    "static method": (Shop.quote, 0, True),
    "single dispatch method": (Shop().dispatched, None, True),
    "cached method": (Shop().cached, 0, True),
    "our method": (Shop().safe, 0, True),
    # Objects
    "object": (Called(), 1, True),
    "object with a static call": (StaticallyCalled(), 1, True),
    "object with a class call": (ClassCalled(), None, True),
    "object with a signature": (SignedCalled(), 1, True),
    "mock": (MagicMock(), None, True),
    # Classes
    "class with __init__": (ByInit, 1, True),
    "class with __new__": (ByNew, 1, True),
    "class with both": (ByBoth, None, True),
    "class with a metaclass": (ByMeta, None, True),
    "dataclass": (Data, 1, True),
    "model": (Model, None, True),
    "named tuple": (Tuple, 1, True),
    "old named tuple": (namedtuple("Old", "customer order"), 1, True),  # noqa: PYI024 - the untyped kind, too
    "builtin class": (dict, None, True),
}


@pytest.mark.parametrize("name", PLACES)
def test_only_what_runs_proves_a_position(name: str) -> None:
    function, position, by_keyword = PLACES[name]

    assert place_of("order", function) == _place_of("order", function) == (position, by_keyword)


def test_a_builtins_parameters_are_its_own() -> None:
    assert place_of("sep", "".split) == (0, True)
    assert place_of("iterable", sorted) == (0, False)
    assert place_of("reverse", sorted) == (None, True)
    assert place_of("anything", max) == (None, True)  # has no signature
    assert place_of("value", [].index) == (0, False)


def test_a_gap_among_the_arguments_of_a_partial_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`functools.Placeholder`, from Python 3.14 on: the first argument of a call goes there."""
    placeholder = object()
    monkeypatch.setattr(_parameters, "PLACEHOLDER", placeholder)

    assert place_of("order", functools.partial(plain, placeholder, "x")) == (None, True)


WRONG: list[tuple[Any, str]] = [
    (plain, "plain has no parameter 'ordr': pass data_keyword_argument='customer' or 'order' or 'note'"),
    (only_positional, "only_positional has no parameter 'ordr': pass data_keyword_argument='order' or 'customer'"),
    (Shop().charge, "Shop.charge has no parameter 'ordr': pass data_keyword_argument='order'"),
    (Called(), "Called has no parameter 'ordr': pass data_keyword_argument='customer' or 'order'"),
    (ByInit, "ByInit has no parameter 'ordr': pass data_keyword_argument='customer' or 'order'"),
    (functools.partial(plain, "ann"), "plain has no parameter 'ordr': pass data_keyword_argument='order' or 'note'"),
    (functools.cache(first), "first has no parameter 'ordr': pass data_keyword_argument='order' or 'customer'"),
    (safe(plain), "plain has no parameter 'ordr': pass data_keyword_argument='customer' or 'order' or 'note'"),
    (lambda: None, "<lambda> has no parameter 'ordr': pass a function that takes the payload"),
    (lambda *ordr: None, "<lambda> has no parameter 'ordr': pass a function that takes the payload"),
]


@pytest.mark.parametrize(("function", "sentence"), WRONG)
def test_a_parameter_that_does_not_exist_is_refused_with_those_that_do(function: Any, sentence: str) -> None:
    for decorate in (idempotent_function, functools.partial(make_idempotent, data_index_argument=0)):
        with pytest.raises(TypeError) as refused:
            decorate(function, data_keyword_argument="ordr", persistence_store=STORE)
        assert str(refused.value) == f"{__name__}.{sentence}"


def test_a_parameter_that_a_partial_has_bound_by_position_is_refused() -> None:
    with pytest.raises(TypeError, match="has no parameter 'customer'"):
        place_of("customer", functools.partial(plain, "ann"))


@pytest.mark.parametrize("name", [None, 7, b"order"])
def test_a_parameter_needs_a_name(name: Any) -> None:
    with pytest.raises(TypeError) as refused:
        idempotent_function(any_arguments, data_keyword_argument=name, persistence_store=STORE)
    assert str(refused.value) == f"data_keyword_argument must be the name of a parameter, not {name!r}"


UNKNOWN = [
    "any keyword",
    "any arguments",
    "wrapped",
    "with a signature",
    "context decorator",
    "single dispatch",
    "ours, wrapped",
    "partial of wrapped",
    "partial of its own",
    "single dispatch method",
    "object with a class call",
    "mock",
    "class with both",
    "class with a metaclass",
    "model",
    "builtin class",
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_function_whose_parameters_are_not_known_is_not_refused(name: str) -> None:
    assert place_of("anything", PLACES[name][0]) == (None, True)
