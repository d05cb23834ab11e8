"""From a payload to the idempotency key: JMESPath selection, canonical JSON, digest.  Pure, and computed once per call.

The key is computed before the function runs, so a function that changes its payload keeps its key, and nothing is copied.
Keys are those of Powertools: `{prefix}#{hexdigest}`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from idempotency._json import canonical_json
from persistence.exceptions import IdempotencyKeyError
from persistence.missing import is_missing_idempotency_key

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._compiled: Any = None
        names = expression.split(".")
        if not jmespath_options and all(name.isascii() and name.isidentifier() for name in names):
            # A path like `a.b.c`, which most keys are: jmespath's import would be a third of all that a cold start imports.
            self._path: tuple[str, ...] | None = tuple(names)
            self.roots: frozenset[str] | None = frozenset(names[:1])
            return
        import jmespath

        try:
            self._compiled = jmespath.compile(expression)
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
        self._path = _path(self._compiled.parsed)
        self.roots = _roots(self._compiled.parsed)

    def of(self, data: Any) -> Any:
        """What the expression selects of *data*.

        Raises:
            SelectionError: it failed, for example because a function was given a value of the wrong type.
        """
        if self._path is not None:
            return _walk(self._path, data)
        try:
            return self._compiled.search(data, options=self._options)
        except Exception as error:  # noqa: BLE001 - of any custom function, too
            # jmespath and JSON errors quote the value that they were given; only the kind of the error is repeated.
            raise SelectionError(
                f"{type(error).__name__} in the JMESPath expression {self.expression!r}{_detail(error)}"
            ) from None

    def has_gap(self, selected: Any) -> bool:
        """Whether a multi-select, `[a, b]` or `{x: a}`, found one of its members missing in *selected*."""
        return self._compiled is not None and _has_gap(self._compiled.parsed, selected)


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
    ) -> None:
        self.hash_function = _hash_named(hash_function)
        self._key = Selection(event_key_jmespath, jmespath_options) if event_key_jmespath else None
        self._validated = Selection(payload_validation_jmespath, jmespath_options) if payload_validation_jmespath else None
        self._require_all = require_all_key_fields
        self._roots = None if self._key is None else self._key.roots
        if self._roots is not None and self._validated is not None:
            self._roots = None if self._validated.roots is None else self._roots | self._validated.roots

    def digests(self, payload: Any) -> tuple[str | None, str]:
        """The digests of the payload's key and of its validated part.

        Returns:
            None for a payload without a key, and "" without payload validation.

        Raises:
            IdempotencyKeyError: part of the key is missing, and all of it is required.
            SelectionError: an expression failed.
            TypeError, ValueError: the selected data cannot be hashed.
        """
        data = payload if type(payload) is dict else payload_data(payload, self._roots)
        selected = data if self._key is None else self._key.of(data)
        is_missing = is_missing_idempotency_key(selected)
        if self._require_all and self._key is not None and (is_missing or self._key.has_gap(selected)):
            raise IdempotencyKeyError(
                f"The idempotency key is incomplete: the payload lacks a part of {self._key.expression!r}, and all are required"
            )
        if is_missing:
            return None, ""
        digest = self._digest(selected)
        if self._validated is None:
            return digest, ""
        validated = self._validated.of(data)
        return digest, digest if validated is selected else self._digest(validated)

    def _digest(self, data: Any) -> str:
        digest: str = self.hash_function(canonical_json(data).encode()).hexdigest()
        return digest


def payload_data(payload: Any, roots: frozenset[str] | None = None) -> Any:
    """A dataclass, model or event object as the data that expressions see; anything else as it is.

    Only the *roots*, the top-level fields that matter, are converted; all of them if None.
    """
    if _is_dataclass(payload):
        return {name: _as_data(getattr(payload, name)) for name in _field_names(payload) if roots is None or name in roots}
    if callable(getattr(payload, "model_dump", None)):
        return payload.model_dump(mode="json") if roots is None else _dump_fields(payload, roots)
    if callable(getattr(payload, "dict", None)):
        return payload.dict()
    return getattr(payload, "raw_event", payload)


def _is_dataclass(value: Any) -> bool:
    """Whether the value is an instance of a dataclass; as `dataclasses` itself finds out, without its import."""
    return hasattr(type(value), "__dataclass_fields__")


def _field_names(value: Any) -> list[str]:
    from dataclasses import fields  # here: whoever made a dataclass has imported it already

    return [field.name for field in fields(value)]


def _as_data(value: Any) -> Any:
    """`dataclasses.asdict` for any value, without its deep copies."""
    if _is_dataclass(value):
        return {name: _as_data(getattr(value, name)) for name in _field_names(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_as_data(item) for item in value])
    if isinstance(value, (list, tuple)):
        return type(value)(_as_data(item) for item in value)
    if isinstance(value, dict):
        return {_as_data(key): _as_data(item) for key, item in value.items()}
    return value


def _dump_fields(model: Any, roots: frozenset[str]) -> Any:
    """A pydantic model's fields named in *roots*; the whole model where its own serialization decides what a field is."""
    decorators = getattr(type(model), "__pydantic_decorators__", None)
    if decorators is None or type(model).model_dump.__module__ != "pydantic.main":  # its own idea of a dump
        return model.model_dump(mode="json")
    if decorators.model_serializers or getattr(type(model), "__pydantic_root_model__", False):
        return model.model_dump(mode="json")
    if type(model).model_config.get("serialize_by_alias"):
        return model.model_dump(mode="json")
    return model.model_dump(mode="json", include=set(roots))


def _hash_named(name: str) -> Callable[[bytes], Any]:
    try:
        function: Callable[[bytes], Any] = getattr(hashlib, name)
        function(b"").hexdigest()
    except (AttributeError, TypeError, ValueError):
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
    """What jmespath finds under the path, without its interpreter: nothing where a step leads into what is no object."""
    try:
        for name in path:
            data = data.get(name)
    except AttributeError:
        return None
    return data


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


def _has_gap(node: Node, selected: Any) -> bool:
    kind, children = node["type"], node["children"]
    if kind in ("subexpression", "pipe"):
        return _has_gap(children[-1], selected)
    if kind in ("projection", "filter_projection", "value_projection") and isinstance(selected, list):
        return any(_has_gap(children[1], item) for item in selected)
    if kind == "multi_select_list" and isinstance(selected, list):
        return any(value is None or _has_gap(child, value) for child, value in zip(children, selected, strict=True))
    if kind == "multi_select_dict" and isinstance(selected, dict):
        return any(selected[pair["value"]] is None or _has_gap(pair["children"][0], selected[pair["value"]]) for pair in children)
    return False
