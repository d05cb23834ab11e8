"""An SQS queue of orders: one charge per order, however often the queue delivers its message.

SQS delivers at least once, and a producer may send an order twice.  So the key is the order's and not the message's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, current_attempt, idempotent_function
from sample.metrics import count
from sample.provider import charge

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
    from aws_lambda_powertools.utilities.typing import LambdaContext

#: One table for several functions.  The role of this one may touch this partition and no other, see template.yaml.
store = DynamoDBPersistenceLayer(os.environ["SHARED_TABLE"], static_pk_value="orders", sort_key_attr="sort")
config = IdempotencyConfig(
    event_key_jmespath="order_id",
    raise_on_no_idempotency_key=True,
    # Longer than a message can live: 14 days, and 14 more when it is sent back from the dead-letter queue.
    expires_after_seconds=30 * 24 * 60 * 60,
    observers=[count],
)
processor = BatchProcessor(EventType.SQS)


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    """The Lambda function; its event source mapping needs `ReportBatchItemFailures`.

    A message that fails, or whose order is being charged by another invocation, is reported and delivered again.
    """
    config.register_lambda_context(context)  # the lease of each order ends with this invocation
    return process_partial_response(event=event, record_handler=process, processor=processor, context=context)


def process(record: SQSRecord) -> None:
    """Charge the order in one message."""
    charge_order(order=record.json_body)


@idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, key_prefix="orders")
def charge_order(order: dict[str, Any]) -> dict[str, str]:
    """Charge one order."""
    charge_id = charge(order["order_id"], order["amount"], idempotency_key=current_attempt().downstream_key)
    return {"order_id": order["order_id"], "charge_id": charge_id}
