"""JMESPath's interpreter for key expressions: it sees into objects, and can notice what a key lacks.

On dicts, lists and scalars it selects what jmespath selects.  Imported with jmespath, for expressions that need it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from jmespath.visitor import TreeInterpreter

from idempotency._json import key_text
from idempotency._objects import container_of, elements_of, field_of, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jmespath import Options

    Node: TypeAlias = dict[str, Any]

#: Functions that know dicts and lists, and not what only stands for them.
_OF_CONTAINERS: Final = frozenset({"keys", "length", "merge", "type", "values"})
#: Functions that make a value of nothing.
_OF_NOTHING: Final = frozenset({"to_array", "to_string"})


class Interpreter(TreeInterpreter):  # type: ignore[misc]  # jmespath has no types
    """Evaluates an expression.  Objects are converted as at the top level of a payload, where the expression walks through them.

    Raises:
        NotSerializableError: a step leads into an object that has no JSON form.
    """

    def visit_field(self, node: Node, value: Any) -> Any:
        """The field of a dict, or of an object that stands for one."""
        return value.get(node["value"]) if type(value) is dict else field_of(value, node["value"])

    def visit_index(self, node: Node, value: Any) -> Any:
        """The element of a list or tuple."""
        return super().visit_index(node, _list(value))

    def visit_slice(self, node: Node, value: Any) -> Any:
        """Some elements of a list or tuple."""
        return super().visit_slice(node, _list(value))

    def visit_projection(self, node: Node, value: Any) -> Any:
        """The right side for each element of the left side."""
        elements = _list(self.visit(node["children"][0], value))
        return None if elements is None else self._projected(node, elements)

    def visit_value_projection(self, node: Node, value: Any) -> Any:
        """The right side for each value of an object."""
        values = values_of(self.visit(node["children"][0], value))
        return None if values is None else self._projected(node, values)

    def visit_filter_projection(self, node: Node, value: Any) -> Any:
        """The right side for each element that meets the condition."""
        elements = _list(self.visit(node["children"][0], value))
        return None if elements is None else self._projected(node, self._matching(node["children"][2], elements))

    def visit_flatten(self, node: Node, value: Any) -> Any:
        """One list of all elements, and of the elements of those that are lists."""
        elements = _list(self.visit(node["children"][0], value))
        if elements is None:
            return None
        return [part for each in elements for part in (each if isinstance(each, list) else (each,))]

    def visit_function_expression(self, node: Node, value: Any) -> Any:
        """The function's result."""
        name = node["value"]
        arguments = self._arguments(node, value)
        if name in _OF_CONTAINERS:
            arguments = [container_of(each) for each in arguments]
        elif name == "to_string":
            for each in arguments:
                key_text(each)  # jmespath would write a memory address into the key
        return self._functions.call_function(name, arguments)

    def _arguments(self, node: Node, value: Any) -> list[Any]:
        return [self.visit(child, value) for child in node["children"]]

    def _projected(self, node: Node, elements: Iterable[Any]) -> list[Any]:
        found = [self.visit(node["children"][1], each) for each in elements]
        return [each for each in found if each is not None]

    def _matching(self, condition: Node, elements: list[Any]) -> list[Any]:
        return [each for each in elements if not self._is_false(self.visit(condition, each))]


class GapFinder(Interpreter):
    """Evaluates an expression, and remembers which parts of the result the payload lacks.

    A part is missing if a member of a multi-select is null, an element of `map()`, or what `to_string()` or `to_array()` was
    given.  What is not in the result does not count: a condition, an alternative that was not taken, an element that a projection
    drops.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._gaps: list[Node] = []

    @property
    def gap(self) -> str | None:
        """The text of the first part that is missing; None if the result is complete."""
        return text_of(self._gaps[0]) if self._gaps else None

    def clear(self) -> None:
        """Forget the evaluation, before the next one."""
        self._gaps.clear()

    def visit_multi_select_list(self, node: Node, value: Any) -> Any:
        """The members, each of which must be there."""
        found = super().visit_multi_select_list(node, value)
        self._gaps += [child for child, each in zip(node["children"], found or (), strict=False) if each is None]
        return found

    def visit_multi_select_dict(self, node: Node, value: Any) -> Any:
        """The members, each of which must be there."""
        found = super().visit_multi_select_dict(node, value)
        if found is not None:
            self._gaps += [pair["children"][0] for pair in node["children"] if found[pair["value"]] is None]
        return found

    def visit_or_expression(self, node: Node, value: Any) -> Any:
        """The first side if there is something, without the gaps of the other side."""
        before = len(self._gaps)
        found = self.visit(node["children"][0], value)
        if not self._is_false(found):
            return found
        del self._gaps[before:]
        return self.visit(node["children"][1], value)

    def visit_and_expression(self, node: Node, value: Any) -> Any:
        """The second side if there is something on the first, without the gaps of the first."""
        before = len(self._gaps)
        found = self.visit(node["children"][0], value)
        if self._is_false(found):
            return found
        del self._gaps[before:]
        return self.visit(node["children"][1], value)

    def visit_not_expression(self, node: Node, value: Any) -> Any:
        """Whether there is nothing, which lacks nothing."""
        before = len(self._gaps)
        found = super().visit_not_expression(node, value)
        del self._gaps[before:]
        return found

    def visit_comparator(self, node: Node, value: Any) -> Any:
        """The answer of a comparison, which lacks nothing."""
        before = len(self._gaps)
        found = super().visit_comparator(node, value)
        del self._gaps[before:]
        return found

    def visit_function_expression(self, node: Node, value: Any) -> Any:
        """The function's result, and what its arguments lack."""
        found = super().visit_function_expression(node, value)
        if node["value"] == "map" and None in found:
            self._gaps.append(node["children"][0])
        return found

    def _arguments(self, node: Node, value: Any) -> list[Any]:
        if node["value"] == "not_null":
            return self._alternatives(node["children"], value)
        arguments = super()._arguments(node, value)
        if node["value"] in _OF_NOTHING:
            self._gaps += [child for child, each in zip(node["children"], arguments, strict=True) if each is None]
        return arguments

    def _alternatives(self, nodes: list[Node], value: Any) -> list[Any]:
        """All of them, and the gaps of the first that is not null."""
        found: list[Any] = []
        for node in nodes:
            before = len(self._gaps)
            is_taken = any(each is not None for each in found)
            found.append(self.visit(node, value))
            if is_taken or found[-1] is None:
                del self._gaps[before:]
        return found

    def _projected(self, node: Node, elements: Iterable[Any]) -> list[Any]:
        found = []
        for each in elements:
            before = len(self._gaps)
            current = self.visit(node["children"][1], each)
            if current is None:
                del self._gaps[before:]
            else:
                found.append(current)
        return found

    def _matching(self, condition: Node, elements: list[Any]) -> list[Any]:
        before = len(self._gaps)
        found = super()._matching(condition, elements)
        del self._gaps[before:]
        return found


def can_have_gap(node: Node) -> bool:
    """Whether the result of the expression can lack a part, and not only be missing altogether."""
    kind = node["type"]
    if kind in ("multi_select_list", "multi_select_dict"):
        return True
    if kind == "function_expression" and node["value"] in _OF_NOTHING | {"map"}:
        return True
    return any(can_have_gap(child) for child in node["children"] if isinstance(child, dict))


def _list(value: Any) -> list[Any] | None:
    return value if type(value) is list else elements_of(value)


def text_of(node: Node) -> str:
    """The expression as text, as people write it."""
    kind = node["type"]
    if kind == "slice":
        start, stop, step = ["" if each is None else str(each) for each in node["children"]]
        return f"[{start}:{stop}{step and ':'}{step}]"
    children = [text_of(child) for child in node["children"]]
    if kind in _SEPARATORS:
        return _SEPARATORS[kind].join(children)
    if kind in _MARKS:
        return _text_of_projection(node, *children)
    return _FORMATS[kind].format(*children, value=_text_of_value(node), all=", ".join(children))


def _text_of_projection(node: Node, left: str, right: str, condition: str = "") -> str:
    mark = _MARKS[node["type"]].format(condition)
    if not left:
        mark = mark.removeprefix(".")
    base = node["children"][0]
    if base["type"] == "flatten" or (base["type"] == "index_expression" and base["children"][-1]["type"] == "slice"):
        mark = mark.replace("[*]", "")  # the left side shows what it projects
    return f"{left}{mark}{'.' if right and not right.startswith('[') else ''}{right}"


def _text_of_value(node: Node) -> str:
    value = node.get("value")
    if node["type"] == "comparator":
        return _COMPARATORS[str(value)]
    is_name = node["type"] != "literal" and str(value).isascii() and str(value).isidentifier()
    return str(value) if is_name or isinstance(value, int) else json.dumps(value)


_SEPARATORS: Final = {
    "and_expression": " && ",
    "index_expression": "",
    "or_expression": " || ",
    "pipe": " | ",
    "subexpression": ".",
}
_MARKS: Final = {"filter_projection": "[?{}]", "projection": "[*]", "value_projection": ".*"}
_COMPARATORS: Final = {"eq": "==", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ne": "!="}
_FORMATS: Final = {
    "comparator": "{0} {value} {1}",
    "current": "@",
    "expref": "&{0}",
    "field": "{value}",
    "flatten": "{0}[]",
    "function_expression": "{value}({all})",
    "identity": "",
    "index": "[{value}]",
    "key_val_pair": "{value}: {0}",
    "literal": "`{value}`",
    "multi_select_dict": "{{{all}}}",
    "multi_select_list": "[{all}]",
    "not_expression": "!{0}",
}
