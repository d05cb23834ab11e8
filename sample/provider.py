"""A stand-in for a payment provider.  Its books are a table of its own, so it can be asked how often a charge really happened.

Like real providers it takes an idempotency key: a request that repeats a key is counted, and charges nothing.  And like the
sandboxes of real providers it has orders to test with, see `charge`.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any, Final

import boto3
from botocore.config import Config

#: Made when the function's sandbox starts: boto3's default session is not safe to create clients from in several threads.
#: The SDK's own timeouts of 60 s outlive the functions.
client: Any = boto3.client("dynamodb", config=Config(connect_timeout=1, read_timeout=2))
table_name = os.environ["CHARGES_TABLE"]

#: Longer than any function of the stack may run.
SLOW_SECONDS: Final = 30


class CardDeclinedError(Exception):
    """The provider refuses to charge this card now."""


def charge(order_id: str, amount: int, *, idempotency_key: str) -> str:
    """Charge *amount* cents for the order, once per key.  Returns the id of the charge.

    Orders for tests: the card of `declined-...` is declined.  `slow-...` is charged, but the first request with its key is not
    answered in time.

    Raises:
        CardDeclinedError: nothing was charged.
    """
    if order_id.startswith("declined-"):
        raise CardDeclinedError(order_id)
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
    entry = answer["Attributes"]
    if order_id.startswith("slow-") and entry["requests"]["N"] == "1":
        time.sleep(SLOW_SECONDS)  # the charge is made, and its answer late: the invocation times out
    charge_id: str = entry["charge_id"]["S"]
    return charge_id
