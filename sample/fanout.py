"""POST /bills: a bill split between guests, who are charged at the same time, each once.

Lambda calls a sync handler, and the handler runs async functions.  Each share has a record of its own: when one guest's card is
declined, a retry of the request charges that guest and nobody else.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, current_attempt, idempotent_function
from sample.metrics import count
from sample.provider import CardDeclinedError, charge

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

#: The table is shared with `orders`; each function has a partition of its own.
store = DynamoDBPersistenceLayer(os.environ["SHARED_TABLE"], static_pk_value="bills", sort_key_attr="sort")
config = IdempotencyConfig(
    event_key_jmespath="[bill_id, guest]",
    require_all_key_fields=True,
    raise_on_no_idempotency_key=True,
    payload_validation_jmespath="amount",
    expires_after_seconds=24 * 60 * 60,
    observers=[count],
)


@dataclass(frozen=True)
class Share:
    """What one guest pays, in cents."""

    bill_id: str
    guest: str
    amount: int


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """The Lambda function: 201 when all shares are paid, 402 with the guests whose cards were declined."""
    config.register_lambda_context(context)  # the lease of each share ends with this invocation
    bill = json.loads(event["body"])
    shares = [Share(bill["bill_id"], guest, amount) for guest, amount in bill["shares"].items()]
    paid, declined = asyncio.run(charge_all(shares))
    status = HTTPStatus.PAYMENT_REQUIRED if declined else HTTPStatus.CREATED
    body = json.dumps({"paid": paid, "declined": declined})
    return {"statusCode": status.value, "headers": {"content-type": "application/json"}, "body": body}


async def charge_all(shares: list[Share]) -> tuple[dict[str, str], list[str]]:
    """Charge every share, and return the charges by guest and the declined guests.

    Raises:
        Exception: of a share that failed for another reason, after all the others were tried.
    """
    results = await asyncio.gather(*[charge_share(share=share) for share in shares], return_exceptions=True)
    paid: dict[str, str] = {}
    declined: list[str] = []
    for share, result in zip(shares, results, strict=True):
        if isinstance(result, str):
            paid[share.guest] = result
        elif isinstance(result, CardDeclinedError):
            declined.append(share.guest)
        else:
            raise result
    return paid, declined


@idempotent_function(data_keyword_argument="share", persistence_store=store, config=config, key_prefix="bills")
async def charge_share(share: Share) -> str:
    """Charge one guest.  Returns the id of the charge."""
    order_id = f"{share.bill_id}/{share.guest}"
    return await asyncio.to_thread(charge, order_id, share.amount, idempotency_key=current_attempt().downstream_key)
