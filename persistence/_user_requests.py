"""The users' own DynamoDB requests: written with boto3's argument names and plain Python values, sent by the low-level client.

What boto3's resources do to a request, without a resource.  No error from here repeats a value: those are the users' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from boto3.dynamodb.conditions import ConditionBase

    from persistence._dynamodb_items import Item, Request

    Condition: TypeAlias = str | ConditionBase

#: What names the type of a value in the low-level client's form, such as {"S": "text"}.
TYPES: Final = frozenset({"S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"})

EXPRESSIONS: Final = ("UpdateExpression", "ConditionExpression")


def low_level(request: Mapping[str, Any]) -> Request:
    """The request as the low-level client takes it; arguments that are None are left out.

    Values are in the low-level client's form already if all attributes of the key, or of the item, are: an item whose every
    attribute were a map would have no key.

    Raises:
        TypeError: an argument, or a value in it, is of a type that DynamoDB does not know.
        ValueError: an argument is empty, or the condition object needs placeholders that are in use.
    """
    table = _checked_text("TableName", request["TableName"])
    identity = "Item" if "Item" in request else "Key"
    attributes = _checked_mapping(identity, request[identity])
    if not attributes:
        raise ValueError(f"{identity} is empty; it needs the key of an item of {table}")
    is_typed = all(map(_is_typed, attributes.values()))
    names = dict(_checked_mapping("ExpressionAttributeNames", request.get("ExpressionAttributeNames") or {}))
    for name in names.values():
        _checked_text("A name in ExpressionAttributeNames", name)
    values = _checked_mapping("ExpressionAttributeValues", request.get("ExpressionAttributeValues") or {})
    values = _canonical(f"ExpressionAttributeValues of {table}", values, is_typed=is_typed)
    made = {name: argument for name, argument in request.items() if argument is not None}
    made[identity] = _canonical(f"{identity} of {table}", attributes, is_typed=is_typed)
    condition = made.get("ConditionExpression")
    if condition is not None and not isinstance(condition, str):
        made["ConditionExpression"] = _expression(condition, names, values, table)
    for expression in EXPRESSIONS:
        if expression in made:
            _checked_text(expression, made[expression])
    made |= {"ExpressionAttributeNames": names, "ExpressionAttributeValues": values}
    return {name: argument for name, argument in made.items() if argument}  # DynamoDB refuses an empty map


def plain(item: Item) -> dict[str, Any]:
    """The attributes of an item as Python values; numbers are Decimals, as from boto3's resources."""
    from boto3.dynamodb.types import TypeDeserializer

    deserialize = TypeDeserializer().deserialize
    return {name: deserialize(value) for name, value in item.items()}


def comparable(key: Item) -> frozenset[tuple[str, str, Any]]:
    """The attributes of a key so that two are equal if they name one item: 1 and 1.0 are one number."""
    return frozenset((name, kind, _value(kind, content)) for name, typed in key.items() for kind, content in typed.items())


def _value(kind: str, content: Any) -> Any:
    if kind == "N":
        return Decimal(content)
    return content if isinstance(content, (str, bytes)) else repr(content)  # no key has the latter


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} is empty")
    return value


def _checked_mapping(name: str, mapping: object) -> Mapping[str, Any]:
    if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
        raise TypeError(f"{name} must be a mapping with texts for keys")
    return mapping


def _is_typed(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and TYPES.issuperset(value)


def _canonical(where: str, values: Mapping[str, Any], *, is_typed: bool) -> Item:
    """The values in the low-level client's form, made from Python values, be they given as such or in that form."""
    from boto3.dynamodb.types import TypeSerializer

    serialize = TypeSerializer().serialize
    made: Item = {}
    for name, value in values.items():
        with suppress(TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):  # their texts repeat the value
            made[name] = _sound(value if is_typed else serialize(value))
        if name not in made:
            raise TypeError(
                f"{where}: {name} is, or holds, a value that DynamoDB does not know (a {type(value).__name__}); "
                "numbers are int or Decimal with at most 38 digits, and sets are not empty"
            )
    return made


def _sound(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a value in the low-level client's form, which nobody else can change.

    Raises:
        TypeError, ValueError, ArithmeticError, AttributeError: DynamoDB knows no such value; the text may repeat it.
    """
    from boto3.dynamodb.types import DYNAMODB_CONTEXT

    [(kind, content)] = value.items()
    match kind:
        case "M":
            return {kind: {_only(name, str): _sound(element) for name, element in content.items()}}
        case "L":
            return {kind: [_sound(element) for element in _only(content, list, tuple)]}
        case "SS" | "NS" | "BS" if content:
            return {kind: [_sound({kind[0]: element})[kind[0]] for element in _only(content, list, tuple)]}
        case "N":
            number = DYNAMODB_CONTEXT.create_decimal(_only(content, str))
            if number.is_finite():
                return {kind: str(number)}
        case "S":
            return {kind: _only(content, str)}
        case "B":
            return {kind: bytes(_only(content, bytes, bytearray))}
        case "BOOL":
            return {kind: _only(content, bool)}
        case "NULL" if content is True:
            return {kind: True}
    raise ValueError(kind)


def _only(content: Any, *types: type) -> Any:
    if not isinstance(content, types):
        raise TypeError(type(content).__name__)
    return content


def _expression(condition: Any, names: dict[str, str], values: Item, table: str) -> str:
    """The text of a condition object of boto3's, whose placeholders are added to *names* and *values*."""
    from boto3.dynamodb.conditions import ConditionBase, ConditionExpressionBuilder

    if not isinstance(condition, ConditionBase):
        raise TypeError(f"ConditionExpression must be a text or a condition of boto3's, not {type(condition).__name__}")
    text, condition_names, condition_values = ConditionExpressionBuilder().build_expression(condition)
    taken = sorted((names.keys() & condition_names) | (values.keys() & condition_values))
    if taken:
        raise ValueError(f"{', '.join(taken)} are placeholders of the condition object; use others in the expressions")
    names.update(condition_names)
    values.update(_canonical(f"ConditionExpression of {table}", condition_values, is_typed=False))
    expression: str = text
    return expression
