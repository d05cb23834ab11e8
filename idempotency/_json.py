"""JSON as Powertools writes it: what keys are hashed from, and what results are stored as.  Pure.

Byte for byte the output of `json.dumps(value, sort_keys=True, cls=...)` with Powertools' encoders, since keys and records are
shared with it: default separators, ASCII escapes, NaN allowed.
"""

from __future__ import annotations

import json.encoder
from typing import TYPE_CHECKING, Any, Final

from persistence.exceptions import IdempotencyResultNotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable


def _plain(value: Any) -> Any:
    """A Decimal, model or dataclass as plain data.

    Raises:
        TypeError: the value is something else.
    """
    from idempotency._objects import NotSerializableError, plain  # here: most payloads and results are JSON already

    try:
        return plain(value)
    except NotSerializableError as error:
        raise TypeError(str(error)) from None  # a result's error shows the name of its class


def _plain_in_key(value: Any) -> Any:
    """As `_plain`, and what else a key may hold.

    Raises:
        NotSerializableError: the value is something else.
    """
    from idempotency._objects import plain_in_key  # here: most payloads are JSON already

    return plain_in_key(value)


def encoder(default: Callable[[Any], Any], make: Callable[..., Any] | None, *, sort_keys: bool = True) -> Callable[[Any], str]:
    """What `json.JSONEncoder(default=default, sort_keys=sort_keys).encode` does.

    *make* is CPython's own maker of encoders, if there is one.  Called directly, it saves for each text what a small one costs.
    """
    if make is None:
        return json.JSONEncoder(default=default, sort_keys=sort_keys).encode
    escape = json.encoder.encode_basestring_ascii

    def encode(value: Any) -> str:
        """The value as JSON text."""
        # With containers of its own in which it looks for circles, as threads may encode one object at once.
        return "".join(make({}, default, escape, None, ": ", ", ", sort_keys, False, True)(value, 0))

    try:
        encode({"": [None]})
    except TypeError:  # another Python's takes other arguments
        return encoder(default, None, sort_keys=sort_keys)
    return encode


_make = getattr(json.encoder, "c_make_encoder", None)

#: The canonical text of a key or of a validated payload.
canonical_json = encoder(_plain_in_key, _make)
#: The same without an order, which not all keys of a dict have: whether data has a JSON form at all.
key_text = encoder(_plain_in_key, _make, sort_keys=False)

#: So many of a function's first results are looked through for what JSON changes, and then each time that their number has
#: doubled: a look costs a third of what the encoding costs.
FIRST_LOOKS: Final = 8
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def result_part(value: Any) -> Any:
    """What JSON does not have, as plain data: for results, where nothing may be lost.

    Raises:
        TypeError: the value has no form as plain data.
        IdempotencyResultNotKeptError: two keys of a dict in a model have the same text.
    """
    plain = _plain(value)
    if hasattr(type(value), "model_fields") and not _is_flat(plain, value):
        _refuse_merged_keys(value)
    return plain


def _is_flat(dump: Any, model: Any) -> bool:
    """Whether the model has no dict in it, so that no key can be lost."""
    is_of_fields = isinstance(dump, dict) and dump.keys() <= type(model).model_fields.keys()
    return is_of_fields and not any(isinstance(part, (dict, list)) for part in dump.values())


def _refuse_merged_keys(model: Any) -> None:
    """The dump has only one of two keys with the same text, and the model's own JSON has both."""
    try:
        text = model.model_dump_json(warnings=False)
    except Exception:  # noqa: BLE001 - the dump counts, which succeeded
        return
    _with_distinct_keys(text)


_unsorted_result = encoder(result_part, _make, sort_keys=False)


def merged_keys() -> IdempotencyResultNotKeptError:
    """The error of a dict of which JSON would lose a part: `{1: "a", "1": "b"}`."""
    return IdempotencyResultNotKeptError("Two keys of a dict are the same text in JSON: a part of the result would be lost")


def _with_distinct_keys(text: str) -> str:
    """The text, if no object in it has a key twice."""
    json.loads(text, object_pairs_hook=_distinct)
    return text


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        raise merged_keys()


class ResultEncoder:
    """The results of one function as JSON text, with an eye on what JSON changes: a replay of that is not equal.

    What JSON does not have at all is always noticed.  Tuples and keys that are not text look like lists and text to the encoder:
    they are looked for in a function's first results, and then more and more seldom.

    Attributes:
        change: What JSON changed in a result, once it was noticed; "" before, and None if it is not watched for.
    """

    __slots__ = ("_encode", "_looks", "_until_look", "change")

    def __init__(self, *, is_watching: bool = True) -> None:
        self.change: str | None = "" if is_watching else None
        self._encode = encoder(self._part, _make)
        self._looks = 0
        self._until_look = 1 if is_watching else -1

    def text(self, value: Any) -> str:
        """A function's result as JSON text.

        Raises:
            TypeError, ValueError, RecursionError: the result is not JSON.  Dates and UUIDs are not: a replay could not restore
                them.
            IdempotencyResultNotKeptError: two keys of a dict have the same text.
        """
        try:
            text = self._encode(value)
        except TypeError:
            # Perhaps only the sorting failed: keys of several types, which are fine as JSON.
            text = _with_distinct_keys(_unsorted_result(value))
        if "N" in text and '"NaN"' in text:  # equal texts of unequal keys; to look for one letter first is ten times faster
            _with_distinct_keys(text)
        self._until_look -= 1
        if not self._until_look:
            self._look(value)
        return text

    def _part(self, value: Any) -> Any:
        plain = result_part(value)
        if self.change == "":
            self.change = type(value).__name__
        return plain

    def _look(self, value: Any) -> None:
        if self.change is None:
            return  # and never again
        self._looks += 1
        self._until_look = 1 if self._looks < FIRST_LOOKS else FIRST_LOOKS << (self._looks - FIRST_LOOKS)
        try:
            self.change = _changed(value)
        except RecursionError:  # the encoder can go deeper
            return


#: A function's result as JSON text, as `ResultEncoder.text`, without watching for what changes.
result_json = ResultEncoder(is_watching=False).text


def _changed(value: Any) -> str:
    """What in an encoded result is not equal to its JSON; "" if all of it is."""
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str and not isinstance(key, str):
                return f"dict with keys of type {type(key).__name__}"
        parts: Any = value.values()
    elif isinstance(value, list):
        parts = value
    else:
        return "" if value is None or isinstance(value, (str, int, float)) else type(value).__name__
    for part in parts:
        if type(part) not in _PLAIN:
            found = _changed(part)
            if found:
                return found
    return ""
