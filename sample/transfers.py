"""Money between two accounts: moved once, however often the request is delivered and wherever its worker dies.

Both balances are changed in one transaction with the idempotency record.  So there is no moment between the effect and its
record, and no other service that would need a key of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    IdempotencyTransactionCanceledError,
    idempotent,
    transaction,
)

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

store = DynamoDBPersistenceLayer(os.environ["IDEMPOTENCY_TABLE"])
config = IdempotencyConfig(event_key_jmespath="transfer_id", raise_on_no_idempotency_key=True)
accounts_table = os.environ["ACCOUNTS_TABLE"]


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """The Lambda function.  A refused transfer moved nothing and leaves no record, so it may be sent again."""
    try:
        return move(event, context)
    except IdempotencyTransactionCanceledError as canceled:
        failed = [reason.code == "ConditionalCheckFailed" for reason in canceled.reasons]
        if not any(failed):
            raise
        return {"transfer_id": event["transfer_id"], "refused": "lacks funds" if failed[0] else "unknown target"}


@idempotent(persistence_store=store, config=config)
def move(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - the shape of a handler
    """Move the amount, in cents."""
    amount: int = event["amount"]
    if amount <= 0:
        raise ValueError("amount must be a positive number of cents")
    writes = transaction()
    writes.update(
        TableName=accounts_table,
        Key={"id": event["source"]},
        UpdateExpression="SET balance = balance - :amount",
        ConditionExpression="balance >= :amount",
        ExpressionAttributeValues={":amount": amount},
    )
    writes.update(
        TableName=accounts_table,
        Key={"id": event["target"]},
        UpdateExpression="SET balance = balance + :amount",
        ConditionExpression="attribute_exists(id)",
        ExpressionAttributeValues={":amount": amount},
    )
    return {"transfer_id": event["transfer_id"], "moved": amount}
