"""The type that a model serializer works on, from a return annotation."""

from __future__ import annotations

from functools import partial
from inspect import unwrap
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from persistence.exceptions import IdempotencyModelTypeError

T = TypeVar("T")


def return_type(function: Any) -> Any:
    """The function's return annotation, resolved where it is text; None if there is none, or it is None.

    Raises:
        IdempotencyModelTypeError: the annotation is text that names nothing.
    """
    while isinstance(function, partial):
        function = function.func
    target = getattr(function, "__func__", function)
    if not hasattr(target, "__qualname__"):  # an object that can be called
        target = type(target).__call__
    annotation = getattr(target, "__annotations__", {}).get("return")
    source = unwrap(target)
    try:
        return resolved(annotation, getattr(source, "__globals__", {}), _enclosed(source))
    except Exception as error:
        raise IdempotencyModelTypeError(f"The return annotation {annotation!r} cannot be resolved", error) from error


def resolved(annotation: Any, global_names: dict[str, Any], local_names: dict[str, Any]) -> Any:
    """The annotation with all text in it replaced by what it names, which is an error where it names nothing."""
    if annotation is None:
        return None

    def annotated() -> None: ...

    annotated.__annotations__ = {"annotation": annotation}
    found = get_type_hints(annotated, global_names, local_names, include_extras=True)["annotation"]
    return None if found is type(None) else found


def _enclosed(function: Any) -> dict[str, Any]:
    """The names of enclosing functions that this one uses, as far as they are bound."""
    found = {}
    names = function.__code__.co_freevars if hasattr(function, "__code__") else ()
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # bound later: the function itself, for example
            continue
    return found


def get_actual_type(model_type: Any) -> Any:
    """The type inside `Optional[T]`, `T | None` or `Union[T, None]`; any other type as it is.

    Raises:
        IdempotencyModelTypeError: a union of several types.
    """
    if get_origin(model_type) not in (Union, UnionType):
        return model_type
    types = [member for member in get_args(model_type) if member is not type(None)]
    if len(types) != 1:
        raise IdempotencyModelTypeError(
            "Invalid type: expected a single type, optionally wrapped in Optional or Union with None."
        )
    return types[0]


def all_subclasses(kind: type[T]) -> list[type[T]]:
    """The class's subclasses and theirs.  Of a class that was defined anew under its name, the latest."""
    found: dict[tuple[str, str], type[T]] = {}
    for subclass in type.__subclasses__(kind):
        for each in (subclass, *all_subclasses(subclass)):
            found[each.__module__, each.__qualname__] = each
    return list(found.values())
