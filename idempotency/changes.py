"""`apply_once`: one update of one DynamoDB item that may be repeated blindly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency.attempt import current_attempt
from persistence.base import BasePersistenceLayer, wall_clock_ms
from persistence.changes import MAX_CHANGES, apply_change
from persistence.scope import call_deadline_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from boto3.dynamodb.conditions import ConditionBase


def apply_once(
    client: Any,
    *,
    TableName: str,
    Key: Mapping[str, Any],
    UpdateExpression: str,
    ConditionExpression: str | ConditionBase | None = None,
    ExpressionAttributeNames: Mapping[str, str] | None = None,
    ExpressionAttributeValues: Mapping[str, Any] | None = None,
    change_id: str | None = None,
    changes_attr: str = "applied_changes",
    max_changes: int = MAX_CHANGES,
) -> bool:
    """Apply an update, such as a counter's, at most once per *change_id*, however often it is repeated, by whomever.

    The id is added to a set of texts on the item in the same write.  The set is never shortened, so this is for items with a
    bounded life, such as an order or a day's counter.  Errors of the moment are repeated, with full jitter, until just before
    the deadline of the idempotent call that runs here; for 10 s where there is none.

    Args:
        client: A boto3 client for DynamoDB, not a resource's.
        TableName: As for `update_item`, as are the next five; values are plain Python, or the low-level client's if the key is.
        Key: The item, which is made if there is none.
        UpdateExpression: The change.
        ConditionExpression: What must hold besides; a text or an object of `boto3.dynamodb.conditions`.
        ExpressionAttributeNames: Placeholders of names.
        ExpressionAttributeValues: Placeholders of values.
        change_id: Names the change, with at most 128 bytes; `current_attempt().downstream_key` if left out.  Two changes of one
            call on one item need ids of their own.
        changes_attr: The set's attribute.
        max_changes: How many changes the item may see, at most 10,000.  The next one is an error.

    Returns:
        True if the change was applied now, False if it was before.  After a lost answer, which the SDK and this function repeat
        by themselves, it may be False although no caller saw True.  So nothing else may hang on True.

    Raises:
        botocore.exceptions.ClientError: `ConditionalCheckFailedException`: your own condition does not hold.
        IdempotencyPersistenceLayerError: the item has seen *max_changes* changes, or would be too large with one more; its
            *changes_attr* is no set of texts; or the request failed.  What was applied is applied once, and the call may be
            repeated.
        RuntimeError: no *change_id* was given, and no idempotent call is running.
        TypeError, ValueError: an argument is wrong.
    """
    if change_id is None:
        change_id = current_attempt().downstream_key
    request = {
        "TableName": TableName,
        "Key": Key,
        "UpdateExpression": UpdateExpression,
        "ConditionExpression": ConditionExpression,
        "ExpressionAttributeNames": ExpressionAttributeNames,
        "ExpressionAttributeValues": ExpressionAttributeValues,
    }
    return apply_change(
        client,
        request,
        change_id=change_id,
        changes_attr=changes_attr,
        max_changes=max_changes,
        clock_ms=wall_clock_ms,
        sleep_ms=BasePersistenceLayer.sleep_ms,
        deadline_ms=call_deadline_ms(),
    )
