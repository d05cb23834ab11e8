"""JSON as Powertools writes it: what keys are hashed from, and what results are stored as.  Pure.

Byte for byte the output of `json.dumps(value, sort_keys=True, cls=...)` with Powertools' encoders, since keys and records are
shared with it: default separators, ASCII escapes, NaN allowed.
"""

from __future__ import annotations

import json.encoder
from typing import TYPE_CHECKING, Any

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

_sorted_result = encoder(_plain, _make)
_unsorted_result = encoder(_plain, _make, sort_keys=False)


def result_json(value: Any) -> str:
    """A function's result as JSON text.

    Raises:
        TypeError, ValueError, RecursionError: the result is not JSON.  Dates and UUIDs are not: a replay could not restore them.
    """
    try:
        return _sorted_result(value)
    except TypeError:
        # Perhaps only the sorting failed: keys of several types, which are fine as JSON.
        return _unsorted_result(value)
