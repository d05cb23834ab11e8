"""POST /payments: one charge per order, however often the request arrives.

`handler` is what Lambda calls.  `pay` is the idempotent part: it runs once per customer and order, and every repetition gets the
stored answer of that run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyValidationError,
    current_attempt,
    idempotent,
)
from sample.metrics import count
from sample.provider import CardDeclinedError, charge

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

    from idempotency import DataRecord

Event = dict[str, Any]
Response = dict[str, Any]


def mark_replay(response: Response, idempotent_data: DataRecord) -> Response:  # noqa: ARG001 - the shape of a response hook
    """Tell the client that this answer is a stored one, with the header that Stripe uses."""
    response["headers"]["idempotent-replayed"] = "true"
    return response


#: "eventual" or "strong" where the table has replicas in other Regions, see docs/multi-region.md.
replication: Any = os.environ.get("TABLE_REPLICATION") or None
store = DynamoDBPersistenceLayer(os.environ["IDEMPOTENCY_TABLE"], replication=replication)
config = IdempotencyConfig(
    # The customer belongs to the key, or one customer could be shown another's answer.  This API's callers are our own services,
    # known by IAM and trusted to name their customers.  Where customers call by themselves, take the customer from
    # requestContext.authorizer, which they cannot choose.
    event_key_jmespath="powertools_json(body).[customer_id, order_id]",
    require_all_key_fields=True,
    raise_on_no_idempotency_key=True,
    payload_validation_jmespath="powertools_json(body).[amount, currency]",
    response_hook=mark_replay,
    expires_after_seconds=24 * 60 * 60,  # longer than any client of ours retries
    observers=[count],
)


class InvalidPaymentError(Exception):
    """The request asks for nothing that can be paid; its text is for the client."""


@dataclass(frozen=True)
class Payment:
    """What a client asks for.

    Attributes:
        amount: In cents.
    """

    customer_id: str
    order_id: str
    amount: int
    currency: str

    @classmethod
    def of(cls, event: Event) -> Self:
        """The payment in the request's body.

        Raises:
            InvalidPaymentError: the body is no payment.
        """
        try:
            body = json.loads(event["body"])
            payment = cls(body["customer_id"], body["order_id"], body["amount"], body["currency"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidPaymentError("The body must be JSON with customer_id, order_id, amount and currency") from error
        if not all(isinstance(name, str) and name for name in (payment.customer_id, payment.order_id, payment.currency)):
            raise InvalidPaymentError("customer_id, order_id and currency must be texts")
        if type(payment.amount) is not int or payment.amount <= 0:
            raise InvalidPaymentError("amount must be a positive number of cents")
        return payment


def handler(event: Event, context: LambdaContext) -> Response:
    """The Lambda function.  What cannot be answered here is raised: API Gateway answers 500, and the client may retry."""
    try:
        Payment.of(event)  # before the key is claimed: a request that can never succeed leaves no record
        return pay(event, context)
    except InvalidPaymentError as error:
        return problem(HTTPStatus.BAD_REQUEST, str(error))
    except CardDeclinedError:
        return problem(HTTPStatus.PAYMENT_REQUIRED, "The card was declined; the order may be paid with another try")
    except IdempotencyAlreadyInProgressError:
        busy = problem(HTTPStatus.CONFLICT, "This order is being paid right now; ask again for the result")
        return {**busy, "headers": {**busy["headers"], "retry-after": "1"}}
    except IdempotencyValidationError:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "This order was already paid with another amount or currency")


# With a prefix of our own, keys stay what they are when the function is renamed, moved or deployed anew.
@idempotent(persistence_store=store, config=config, key_prefix="payments")
def pay(event: Event, context: LambdaContext) -> Response:  # noqa: ARG001 - the shape of a handler
    """Charge the order.  An error frees the key, so that a retry runs again; an answer is stored."""
    payment = Payment.of(event)
    # After a crash this may run a second time.  The provider is then given the same key, and does not charge again.
    charge_id = charge(payment.order_id, payment.amount, idempotency_key=current_attempt().downstream_key)
    receipt = {"order_id": payment.order_id, "charge_id": charge_id, "amount": payment.amount, "currency": payment.currency}
    return json_response(HTTPStatus.CREATED, receipt)


def json_response(status: HTTPStatus, body: dict[str, Any], content_type: str = "application/json") -> Response:
    """An answer in the form that HTTP APIs expect of a function."""
    return {"statusCode": status.value, "headers": {"content-type": content_type}, "body": json.dumps(body)}


def problem(status: HTTPStatus, detail: str) -> Response:
    """An error as RFC 9457 shows it."""
    return json_response(status, {"title": status.phrase, "status": status.value, "detail": detail}, "application/problem+json")
