"""One update of one DynamoDB item that may be repeated blindly: the item remembers which changes it has seen.

The lesser sibling of a transaction, at the price of a plain write: the change's id is added to a set on the item in the same
UpdateItem that applies the change, on condition that the set does not contain it.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from persistence._dynamodb_errors import is_lasting
from persistence._procedures import run
from persistence._retries import Retries, is_item_too_large, refusing_item, sending
from persistence._sdk import prepare
from persistence._user_requests import low_level
from persistence.exceptions import IdempotencyPersistenceLayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Ids of 36 bytes make a set of 36 KB then, and each change is billed by the item's size.
MAX_CHANGES: Final = 1_000
#: And of 360 KB then, of the 400 KB that an item holds.
MOST_CHANGES: Final = 10_000
#: A thousand ids of this length still leave room in an item.
MAX_ID_BYTES: Final = 128
#: How long a change is repeated where no deadline is known.
APPLY_RETRY_MS: Final = 10_000

LIFE: Final = "apply_once is for items with a bounded life; use transaction() for others"

_ATTR: Final = "#idempotency_changes"
_CHANGE: Final = ":idempotency_change"
_CHANGES: Final = ":idempotency_changes"
_MAX: Final = ":idempotency_max_changes"
_SET: Final = ":idempotency_string_set"
#: Of another type, the attribute could contain anything, or nothing; a refusal shows it, and then it is told.
_HAS_ROOM: Final = f"attribute_type({_ATTR}, {_SET}) AND size({_ATTR}) < {_MAX}"
_NEW: Final = f"NOT contains({_ATTR}, {_CHANGE}) AND (attribute_not_exists({_ATTR}) OR ({_HAS_ROOM}))"
#: The keyword, and no attribute or placeholder of that name.  An expression has at most one.
_ADD: Final = re.compile(r"(?<![\w#:.])ADD(?![\w.])", re.IGNORECASE)


def apply_change(
    client: Any,
    request: Mapping[str, Any],
    *,
    change_id: str,
    changes_attr: str,
    max_changes: int,
    clock_ms: Callable[[], int],
    sleep_ms: Callable[[float], None],
    deadline_ms: int | None,
) -> bool:
    """Apply the update in *request* unless the item has seen this change; see `idempotency.apply_once`."""
    _check(change_id, changes_attr, max_changes)
    made = _with_change(low_level(request), change_id, changes_attr, max_changes)
    prepare(client)
    retries = Retries(clock_ms, APPLY_RETRY_MS if deadline_ms is None else None, deadline_ms)
    table = made["TableName"]
    try:
        run(retries.answer(sending, client.update_item, made), sleep_ms)
    except Exception as error:
        if is_item_too_large(error):
            raise IdempotencyPersistenceLayerError(
                f"The change was not applied: with it, an item of {table} would be larger than DynamoDB holds. {LIFE}", error
            ) from error
        item = refusing_item(error)
        if item is None:
            failure = IdempotencyPersistenceLayerError(f"Failed to apply a change to an item of {table}", error)
            again = "Repeat it with the same change_id: it is applied at most once."
            raise failure.about(None, again, is_retryable=not is_lasting(error)) from error
        found = item.get(changes_attr, {"SS": []})
        if "SS" not in found:
            raise IdempotencyPersistenceLayerError(
                f"The change was not applied: {changes_attr} of an item of {table} is no set of texts. "
                "Give apply_once an attribute of its own by changes_attr"
            ) from error
        changes = found["SS"]
        if change_id in changes:
            return False
        if len(changes) >= max_changes:
            raise IdempotencyPersistenceLayerError(
                f"The change was not applied: an item of {table} has seen {len(changes)} changes, and max_changes is "
                f"{max_changes}. {LIFE}"
            ) from error
        raise  # the caller's own condition
    return True


def _check(change_id: object, changes_attr: object, max_changes: int) -> None:
    if not isinstance(change_id, str):
        raise TypeError(f"change_id must be a text, not {type(change_id).__name__}")
    try:
        id_bytes = len(change_id.encode())
    except UnicodeEncodeError:  # its text repeats a part of the id
        raise ValueError("change_id is no valid Unicode") from None
    if not 0 < id_bytes <= MAX_ID_BYTES:
        raise ValueError(f"change_id must have 1 to {MAX_ID_BYTES} bytes, not {id_bytes}")
    if not isinstance(changes_attr, str):
        raise TypeError(f"changes_attr must be a text, not {type(changes_attr).__name__}")
    if not changes_attr:
        raise ValueError("changes_attr is empty; it names an attribute")
    if not 0 < max_changes <= MOST_CHANGES:
        raise ValueError(f"max_changes must be from 1 to {MOST_CHANGES}, not {max_changes}")


def _with_change(request: dict[str, Any], change_id: str, changes_attr: str, max_changes: int) -> dict[str, Any]:
    names, values = request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})
    taken = sorted(names.keys() & {_ATTR} | values.keys() & {_CHANGE, _CHANGES, _MAX, _SET})
    if taken:
        raise ValueError(f"{', '.join(taken)} are placeholders of apply_once; use others")
    if not request.get("UpdateExpression", "").strip():  # DynamoDB would refuse it, but not together with ours
        raise ValueError("UpdateExpression is empty")
    condition = request.get("ConditionExpression")
    added = f"ADD {_ATTR} {_CHANGES}"
    update, found = _ADD.subn(f"{added},", request["UpdateExpression"], count=1)
    return {
        **request,
        "UpdateExpression": update if found else f"{update} {added}",
        "ConditionExpression": f"{_bracketed(condition)} AND {_NEW}" if condition else _NEW,
        "ExpressionAttributeNames": {**names, _ATTR: changes_attr},
        "ExpressionAttributeValues": {
            **values,
            _CHANGE: {"S": change_id},
            _CHANGES: {"SS": [change_id]},
            _MAX: {"N": str(max_changes)},
            _SET: {"S": "SS"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def _bracketed(condition: str) -> str:
    """The condition as one operand.  A second pair of brackets, besides its own, DynamoDB would refuse as redundant."""
    condition = condition.strip()
    for bracketed in (condition, f"({condition})"):
        depths = list(accumulate((character == "(") - (character == ")") for character in bracketed))
        if bracketed and depths[-1] == 0 and all(depth > 0 for depth in depths[:-1]):
            return bracketed
    # Beside ours, and not within them, a part of it could let a change pass twice.
    raise ValueError("ConditionExpression has brackets that do not match")
