"""What is called, and with what: events, results, and stores that do nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.cold_start import Context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: What each function returns, and as it is stored.
RESULT: Final = {
    "statusCode": 200,
    "headers": {"content-type": "application/json"},
    "body": {"payment": "pay-42", "amount": 1250},
}
RESULT_JSON: Final = json.dumps(RESULT, sort_keys=True)


class Effect:
    """Counts the runs of the function that is made idempotent."""

    def __init__(self) -> None:
        self.runs = 0

    def handler(self) -> Callable[[Any, Any], Any]:
        """A Lambda handler."""

        def handler(event: Any, context: Any) -> Any:  # noqa: ARG001 - what Lambda passes
            self.runs += 1
            return RESULT

        return handler

    def function(self) -> Callable[..., Any]:
        """A function of one order."""

        def pay(order: Any) -> Any:  # noqa: ARG001 - its payload
            self.runs += 1
            return RESULT

        return pay

    def coroutine(self) -> Callable[..., Any]:
        """The same, async."""

        async def pay(order: Any) -> Any:  # noqa: ARG001 - its payload
            self.runs += 1
            return RESULT

        return pay


CONTEXT: Final = Context()


#: Of one line, as JSON.
LINE_BYTES: Final = 368
SHORT_LINE_BYTES: Final = 81


def line(number: int) -> dict[str, Any]:
    """A line of an order with a long text."""
    text = f"Item {number:06}, {'in the colour and the size that the customer asked for, ' * 5}"
    return short_line(number) | {"description": text}


def short_line(number: int) -> dict[str, Any]:
    """A line of an order with nothing but facts."""
    return {"sku": f"SKU-{number:06}", "quantity": number % 7 + 1, "price": 1.25 * number, "warehouse": "FRA-2"}


def event(size: int) -> dict[str, Any]:
    """An event of an HTTP API with a parsed body, some *size* bytes as JSON: 500, and an order with as many lines as fit."""
    headers = dict.fromkeys(("accept", "accept-encoding", "accept-language", "content-type", "user-agent"), "gzip, br;q=0.5")
    http = {"method": "POST", "path": "/orders", "sourceIp": "192.0.2.1", "headers": headers}
    return {
        "id": "order-2026-000042",
        "version": "2.0",
        "requestContext": {"accountId": "123456789012", "stage": "prod", "requestId": "JKJaXmPLvHcESHA=", "http": http},
        "order": {
            "number": "2026-000042",
            "customer": "C-1815",
            "currency": "EUR",
            "lines": [line(number) for number in range(size // LINE_BYTES - 1)],
        },
    }


@dataclass
class Line:
    """A line of an order, parsed."""

    sku: str
    quantity: int
    price: float
    warehouse: str


@dataclass
class Order:
    """An order, parsed."""

    id: str
    lines: list[Line]


def dataclass_order(size: int) -> Order:
    """An order of some *size* bytes as JSON, as a dataclass of dataclasses."""
    return Order("order-2026-000042", [Line(**short_line(number)) for number in range(size // SHORT_LINE_BYTES)])


def pydantic_order(size: int, *, is_long: bool = False) -> Any:
    """The same as models of pydantic; *is_long* if its lines have long texts, and are fewer."""
    from pydantic import create_model

    line_bytes, make = (LINE_BYTES, line) if is_long else (SHORT_LINE_BYTES, short_line)
    line_model: Any = create_model("LineModel", sku=str, quantity=int, price=float, warehouse=str, description=(str, ""))
    order_model: Any = create_model("OrderModel", id=str, lines=list[line_model])
    return order_model(id="order-2026-000042", lines=[make(number) for number in range(size // line_bytes)])


def sqs_event(count: int) -> dict[str, Any]:
    """A batch of messages, each an order with one line."""
    return {"Records": [_message(f"order-{number}") for number in range(count)]}


def _message(name: str) -> dict[str, Any]:
    return {
        "messageId": name,
        "receiptHandle": "a handle",
        "body": json.dumps({"id": name, "lines": [line(0)]}),
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1767225600000", "SenderId": "sender"},
        "messageAttributes": {},
        "md5OfBody": "0" * 32,
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:orders",
        "awsRegion": "eu-central-1",
    }


def idle_store(library: ModuleType) -> Any:
    """A store of the library's own base class whose hooks do nothing: each claim is granted."""
    base: Any = library.BasePersistenceLayer

    class IdleStore(base):  # type: ignore[misc]
        def _put_record(self, data_record: Any) -> None: ...

        def _get_record(self, idempotency_key: str) -> Any:
            raise NotImplementedError

        def _update_record(self, data_record: Any) -> None: ...

        def _delete_record(self, data_record: Any) -> None: ...

    return IdleStore()
