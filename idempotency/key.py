"""From a payload to the idempotency key: JMESPath selection, canonical JSON, digest.  Pure, and computed once per call.

The key is computed before the function runs, so a function that changes its payload keeps its key, and nothing is copied.
Keys are those of Powertools: `{prefix}#{hexdigest}`.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from idempotency._json import canonical_json
from persistence.exceptions import IdempotencyKeyError
from persistence.missing import is_missing_idempotency_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from idempotency._interpreter import GapFinder

    Node: TypeAlias = dict[str, Any]

#: Nodes that apply each of their children to what they were given themselves.
_BROAD: Final = frozenset(
    {"and_expression", "comparator", "key_val_pair", "multi_select_dict", "multi_select_list", "not_expression", "or_expression"}
)
#: Nodes that apply only their first child to what they were given, and the others to its result.
_DEEP: Final = frozenset(
    {"filter_projection", "flatten", "index_expression", "pipe", "projection", "subexpression", "value_projection"}
)


class SelectionError(Exception):
    """The expression failed on this payload.  Its text names the expression and never a value of the payload."""


class Selection:
    """A JMESPath expression, compiled once.

    Raises:
        jmespath.exceptions.ParseError: the expression is no JMESPath.
    """

    def __init__(self, expression: str, jmespath_options: dict[str, Any] | None) -> None:
        self.expression = expression
        self._can_have_gap = False
        names = expression.split(".")
        if not jmespath_options and all(name.isascii() and name.isidentifier() for name in names):
            # A path like `a.b.c`, which most keys are: jmespath's import would be a third of all that a cold start imports.
            self._path: tuple[str, ...] | None = tuple(names)
            self.roots: frozenset[str] | None = frozenset(names[:1])
            return
        import jmespath

        from idempotency._interpreter import Interpreter, can_have_gap

        try:
            self._parsed = jmespath.compile(expression).parsed
        except Exception as error:
            error.add_note(f"in the JMESPath expression {expression!r}")
            raise
        options = jmespath_options or {}
        if not options and "powertools_" in expression:
            from aws_lambda_powertools.utilities.jmespath_utils import (
                PowertoolsFunctions,
            )

            options = {"custom_functions": PowertoolsFunctions()}
        self._options = jmespath.Options(**options)
        #: One for all calls: it keeps nothing of them.
        self._interpreter = Interpreter(self._options)
        self._can_have_gap = can_have_gap(self._parsed)
        self._idle_finders: list[GapFinder] = []
        self._path = _path(self._parsed)
        self.roots = _roots(self._parsed)

    def of(self, data: Any) -> Any:
        """What the expression selects of *data*.

        Raises:
            SelectionError: it failed, because it leads into an object that has no JSON form, or because a function was given a
                value of the wrong type.
        """
        try:
            return self._interpreter.visit(self._parsed, data) if self._path is None else _walk(self._path, data)
        except Exception as error:  # noqa: BLE001 - of any custom function, too
            raise self._failure(error) from None

    def with_gap(self, data: Any) -> tuple[Any, str | None]:
        """What the expression selects of *data*, and the first part of the expression that *data* lacks; None if that is whole.

        Raises:
            SelectionError: as by `of`.
        """
        if not self._can_have_gap:
            return self.of(data), None
        finder = self._finder()
        try:
            return finder.visit(self._parsed, data), finder.gap
        except Exception as error:  # noqa: BLE001 - of any custom function, too
            raise self._failure(error) from None
        finally:
            finder.clear()
            self._idle_finders.append(finder)

    def _finder(self) -> GapFinder:
        """One that no other call uses.  They are kept because to make one costs as much as to use it."""
        try:
            return self._idle_finders.pop()
        except IndexError:
            from idempotency._interpreter import GapFinder

            return GapFinder(self._options)

    def _failure(self, error: Exception) -> SelectionError:
        from idempotency._objects import NotSerializableError

        if isinstance(error, NotSerializableError):
            return SelectionError(f"{error}, and the JMESPath expression {self.expression!r} needs its data")
        # jmespath and JSON errors quote the value that they were given; only the kind of the error is repeated.
        return SelectionError(f"{type(error).__name__} in the JMESPath expression {self.expression!r}{_detail(error)}")


def _detail(error: Exception) -> str:
    function = getattr(error, "function_name", None)
    expected = getattr(error, "expected_types", None)
    if function is None or expected is None:
        return f" ({error})" if type(error).__name__ in ("UnknownFunctionError", "ArityError", "VariadictArityError") else ""
    return f" ({function}() expects {' or '.join(expected)}, not {getattr(error, 'actual_type', 'this')})"


class KeyExtractor:
    """Computes the digests of one function's payloads, as its configuration says.

    Raises:
        ValueError: `hash_function` names no hash of hashlib.
        jmespath.exceptions.ParseError: an expression is no JMESPath.
    """

    def __init__(
        self,
        *,
        event_key_jmespath: str = "",
        payload_validation_jmespath: str = "",
        jmespath_options: dict[str, Any] | None = None,
        hash_function: str = "md5",
        require_all_key_fields: bool = False,
        finds_gaps: bool = False,
    ) -> None:
        self.hash_function = _hash_named(hash_function)
        self._key = Selection(event_key_jmespath, jmespath_options) if event_key_jmespath else None
        self._validated = Selection(payload_validation_jmespath, jmespath_options) if payload_validation_jmespath else None
        self._require_all = require_all_key_fields
        self._finds_gaps = finds_gaps or require_all_key_fields
        self._roots = None if self._key is None else self._key.roots
        if self._roots is not None and self._validated is not None:
            self._roots = None if self._validated.roots is None else self._roots | self._validated.roots

    def digests(self, payload: Any) -> tuple[str | None, str, str | None]:
        """The digests of the payload's key and of its validated part, and the part of the key's expression that it lacks.

        Returns:
            None for a payload without a key; "" without payload validation; and None if the key is complete, or if gaps are
            not looked for.

        Raises:
            IdempotencyKeyError: part of the key is missing, and all of it is required.
            SelectionError: an expression failed.
            TypeError, ValueError: the selected data cannot be hashed.
        """
        data = payload if type(payload) is dict else payload_data(payload, self._roots)
        gap = None
        if self._key is None:
            selected = data
        elif self._finds_gaps:
            selected, gap = self._key.with_gap(data)
        else:
            selected = self._key.of(data)
        is_missing = is_missing_idempotency_key(selected)
        if self._require_all and self._key is not None and (is_missing or gap is not None):
            lacking = repr(self._key.expression) if gap is None else f"{gap!r} of {self._key.expression!r}"
            raise IdempotencyKeyError(
                f"The idempotency key is incomplete: the payload lacks {lacking}, and all of it is required"
            )
        if is_missing:
            if selected is not None:
                canonical_json(selected)  # an error for what is not JSON: a mock can say that it is empty
            return None, "", gap
        digest = self._digest(selected)
        if self._validated is None:
            return digest, "", gap
        validated = self._validated.of(data)
        return digest, digest if validated is selected else self._digest(validated), gap

    def _digest(self, data: Any) -> str:
        digest: str = self.hash_function(canonical_json(data).encode()).hexdigest()
        return digest


def payload_data(payload: Any, roots: frozenset[str] | None = None) -> Any:
    """A dataclass, model, event object or mapping as the data that expressions see; anything else as it is.

    Only the *roots*, the top-level fields that matter, are converted; all of them if None.
    """
    from idempotency._objects import data_of  # here: most payloads are dicts

    return data_of(payload, roots)


def _hash_named(name: str) -> Callable[..., Any]:
    """The hash of hashlib; where the host allows it for other purposes than security only, for these."""
    try:
        function: Callable[..., Any] = getattr(hashlib, name)
        try:
            function(b"").hexdigest()
        except ValueError:  # as of MD5, on hosts that are restricted to the algorithms of FIPS 140
            function = partial(function, usedforsecurity=False)
            function(b"").hexdigest()
    except (AttributeError, TypeError, ValueError):
        if str(name) in hashlib.algorithms_guaranteed and not str(name).startswith("shake_"):  # whose digests have no length
            raise ValueError(f"This host refuses the hash_function {name!r}; pass another one, such as 'sha256'") from None
        raise ValueError(f"hash_function {name!r} is no hash of hashlib; 'md5' and 'sha256' are") from None
    return function


def _path(node: Node) -> tuple[str, ...] | None:
    """The names in an expression like `a.b.c`; None for any other."""
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] != "subexpression":
        return None
    paths = [_path(child) for child in node["children"]]
    return None if None in paths else tuple(name for path in paths if path is not None for name in path)


def _walk(path: tuple[str, ...], data: Any) -> Any:
    """What jmespath finds under the path, without its interpreter, and what `Interpreter` finds in objects."""
    for name in path:
        data = data.get(name) if type(data) is dict else _field_of(data, name)
    return data


def _field_of(value: Any, name: str) -> Any:
    if value is None:
        return None
    from idempotency._objects import field_of  # here: most payloads are dicts of dicts

    return field_of(value, name)


def _roots(node: Node) -> frozenset[str] | None:
    """The fields of the top-level object that an expression can see; None if it can see all of them."""
    kind, children = node["type"], node["children"]
    if kind == "field":
        return frozenset({node["value"]})
    if kind == "literal":
        return frozenset()
    if kind in _DEEP:
        return _roots(children[0])
    if kind in _BROAD or kind == "function_expression":
        found = [_roots(child) for child in children]
        return None if None in found else frozenset().union(*[names for names in found if names is not None])
    return None
