"""What an operator should know about a failed DynamoDB request beyond the service's own words.  Values only.

Imported lazily: only a failure needs it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from persistence._retries import error_code, is_busy, is_unknown, is_unsent, throttling_reasons

if TYPE_CHECKING:
    from persistence._dynamodb_items import ItemFormat

#: What this library asks of the table, and the permissions for it.  Credentials come from other services with other operations.
OPERATIONS: Final = {
    "GetItem": "dynamodb:GetItem",
    "PutItem": "dynamodb:PutItem",
    "UpdateItem": "dynamodb:UpdateItem",
    "DeleteItem": "dynamodb:DeleteItem",
    "TransactWriteItems": "dynamodb:UpdateItem, and for each action its own permission",
}
#: Temporary credentials have ended: the next call gets new ones.
EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
#: How DynamoDB words that a request does not fit the table's primary key.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
WRONG_KEY: Final = ("does not match the schema", "missing the key", "type mismatch for key", "key attribute")


def is_lasting(error: Exception) -> bool:
    """Whether a later call will meet the same error, because the table, the permissions or the configuration do not fit."""
    if isinstance(error, ValueError):
        return True  # the item is not an idempotency record, or a setting of the client is invalid
    if is_busy(error) or is_unknown(error) or is_unsent(error):
        return False
    if isinstance(getattr(error, "response", None), dict):
        return error_code(error) not in EXPIRED
    sdk = sys.modules.get("botocore.exceptions")
    if sdk is None or not isinstance(error, sdk.BotoCoreError):
        return False
    # A source of credentials that did not answer may answer the next call.
    return not isinstance(error, (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError))


def explanation(error: Exception, items: ItemFormat, table_name: str, region: str) -> str:
    """Where the request was sent, and what is probably wrong."""
    place = f"Table {table_name} in {region}." if region and not table_name.startswith("arn:") else f"Table {table_name}."
    return f"{place} {_cause(error, items)}".rstrip()


def _cause(error: Exception, items: ItemFormat) -> str:
    code, text = error_code(error), str(error).lower()
    operation = getattr(error, "operation_name", "")
    if operation not in OPERATIONS:
        return ""
    if code == "ResourceNotFoundException":
        return "There is no such table: check table_name, the account and the Region."
    if code in ("AccessDeniedException", "AccessDenied"):
        return f"{operation} was denied: the role needs {OPERATIONS[operation]} on the table, and may need its KMS key."
    if code == "ValidationException" and any(words in text for words in WRONG_KEY):
        return f"The table's primary key must be {items.primary_key}."
    return _throttling(error, items)


def _throttling(error: Exception, items: ItemFormat) -> str:
    reasons = throttling_reasons(error)
    if not reasons:
        return ""
    named = " and ".join(f"{reason} of {resource}" for reason, resource in reasons)
    # A hot partition of a secondary index is one of the user's own attributes, of which nothing is known here.
    if not any(reason.startswith("Table") and "KeyRange" in reason for reason, _ in reasons):
        return f"Throttled for {named}."
    return f"Throttled for {named}: {items.hot_partition}"
