"""A stand-in for a payment provider.  Its books are a table of its own, so it can be asked how often a charge really happened.

Like real providers it takes an idempotency key: a request that repeats a key is counted, and charges nothing.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import boto3

#: Made when the function's sandbox starts: boto3's default session is not safe to create clients from in several threads.
client: Any = boto3.client("dynamodb")
table_name = os.environ["CHARGES_TABLE"]


class CardDeclinedError(Exception):
    """The provider refuses to charge this card now."""


def charge(order_id: str, amount: int, *, idempotency_key: str) -> str:
    """Charge *amount* cents for the order, once per key.  Returns the id of the charge."""
    answer = client.update_item(
        TableName=table_name,
        Key={"id": {"S": idempotency_key}},
        UpdateExpression=(
            "SET charge_id = if_not_exists(charge_id, :charge_id), order_id = if_not_exists(order_id, :order_id), "
            "amount = if_not_exists(amount, :amount) ADD requests :one"
        ),
        ExpressionAttributeValues={
            ":charge_id": {"S": f"ch_{uuid.uuid4().hex[:8]}"},
            ":order_id": {"S": order_id},
            ":amount": {"N": str(amount)},
            ":one": {"N": "1"},
        },
        ReturnValues="ALL_NEW",
    )
    charge_id: str = answer["Attributes"]["charge_id"]["S"]
    return charge_id
