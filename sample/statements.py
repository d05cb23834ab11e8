"""Monthly statements: a result of megabytes, made once and given to every retry.

A DynamoDB item holds 400 KB.  This store compresses what is larger, and keeps in S3 what is then still too large.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, S3ResultOffload, idempotent

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

store = DynamoDBPersistenceLayer(
    os.environ["IDEMPOTENCY_TABLE"],
    # A lifecycle rule on this prefix deletes objects; see docs/large-results.md.
    result_offload=S3ResultOffload(os.environ["RESULTS_BUCKET"], "results/"),
)
config = IdempotencyConfig(event_key_jmespath="[merchant, month]", require_all_key_fields=True)


@idempotent(persistence_store=store, config=config)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001 - the shape of a handler
    """The Lambda function: every sale of a month, with a reference that looks like noise, as references do."""
    sales = [
        {"number": number, "reference": hashlib.sha512(f"{event['merchant']} {number}".encode()).hexdigest()}
        for number in range(event["sales"])
    ]
    return {"merchant": event["merchant"], "month": event["month"], "sales": sales}
