"""The promise of a model serializer: a result is stored only in a form that a replay reads back as an equal one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from persistence.exceptions import IdempotencyResultNotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: How a serializer fails at a result; the error's text adds the reason.
NOT_EQUAL: Final = "a replay could not return an equal result"
NOT_READ: Final = "the stored result cannot be read as"


def first_equal(result: Any, forms: Iterable[Callable[[], Any]], read: Callable[[Any], Any]) -> Any:
    """The JSON data of the first of *forms* that *read* turns into an equal result.

    Raises:
        IdempotencyResultNotKeptError: *read* makes an equal result of none of them.  The text names types and fields.
        Exception: no form could be made; this is the last one's error.
    """
    reason: str | None = None
    failure: Exception | None = None
    for form in forms:
        try:
            data = form()
        except Exception as error:  # noqa: BLE001 - a custom serializer's; another form may avoid it
            failure = error
            continue
        if data is None:  # a stored null is replayed as None, without a serializer
            reason = reason or f"{type(result).__qualname__} would be stored as null"
            continue
        try:
            again = read(data)
        except Exception:  # noqa: BLE001 - its text may show values of the result
            reason = reason or f"{type(result).__qualname__} is not valid input for itself"
            continue
        if is_equal(result, again):
            return data
        reason = _difference(result, again)
    if reason is None and failure is not None:
        raise failure
    raise IdempotencyResultNotKeptError(f"{NOT_EQUAL}: {reason}")


def is_equal(first: Any, again: Any) -> bool:
    """Whether the two are equal, where NaN equals NaN, and objects without an `==` of their own are equal if their parts are."""
    if _says_equal(first, again):
        return True
    if type(first) is not type(again):
        return False
    if isinstance(first, dict):
        return first.keys() == again.keys() and all(is_equal(value, again[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(again) and all(map(is_equal, first, again))
    if isinstance(first, float) or hasattr(type(first), "is_nan"):
        return str(first) == str(again)  # float and Decimal: NaN is not equal to itself
    parts = _parts(first)
    return parts is not None and is_equal(parts, _parts(again))


def _says_equal(first: Any, again: Any) -> bool:
    try:
        return bool(first == again)
    except Exception:  # noqa: BLE001 - some types refuse to be compared: then their parts are
        return False


def _parts(value: Any) -> dict[str, Any] | None:
    """What an object is made of: its fields and, where its class compares nothing itself, its attributes."""
    if hasattr(type(value), "model_fields"):
        names = ("__dict__", "__pydantic_extra__", "__pydantic_private__")
        return {name: getattr(value, name, None) for name in names}
    if hasattr(type(value), "__dataclass_fields__"):
        from dataclasses import fields  # here: whoever made a dataclass has imported it already

        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    kind: Any = type(value)
    if kind.__eq__ is object.__eq__ and hasattr(value, "__dict__"):
        return dict(vars(value))
    return None


def _difference(result: Any, again: Any) -> str:
    """Where the two differ, in the names of types and fields."""
    name = type(result).__qualname__
    if type(result) is not type(again):
        return f"{name} would come back as {type(again).__qualname__}"
    model_fields = getattr(type(result), "model_fields", None)
    names = getattr(type(result), "__dataclass_fields__", ()) if model_fields is None else model_fields
    changed = [field for field in names if not is_equal(getattr(result, field, None), getattr(again, field, None))]
    if not changed:
        return f"{name} would change outside of its fields"
    return f"{name} would come back with other values in: {', '.join(changed)}"
