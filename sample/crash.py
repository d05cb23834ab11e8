"""An invocation that dies half-way: `python -m sample.crash before|after|committed REQUEST_ID`, with the event on standard input.

The process kills itself as Lambda stops a sandbox, without a chance to clean up: before the charge, after the charge and before
its result is stored, or, of a transfer, when its transaction is committed and the answer has not been read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from copy import copy
from typing import Any, Final, NoReturn
from unittest.mock import patch

from sample import payments, transfers
from sample.invocation import Invocation
from sample.provider import charge

#: The dead invocation's time limit.  Long enough to show that its key is held, short enough to wait for its end.
TIMEOUT_MS: Final = 1_500


def main(moment: str, request_id: str) -> None:
    """Handle the event, and die at that moment."""
    event = json.load(sys.stdin)
    if moment == "committed":
        client: Any = transfers.store.client
        client.meta.events.register("after-call.dynamodb.TransactWriteItems", _dies)
        transfers.handler(event, Invocation(request_id))
        return
    short_lease = copy(payments.config)
    short_lease.lease_margin_seconds = 0
    _ = payments.store.client  # slow to make, and this invocation has little time
    dies = {"before": _dies_before_the_charge, "after": _dies_after_the_charge}[moment]
    with patch.object(payments, "charge", dies), payments.pay.override(config=short_lease):
        payments.handler(event, Invocation(request_id, TIMEOUT_MS))


def _dies_before_the_charge(order_id: str, amount: int, *, idempotency_key: str) -> NoReturn:  # noqa: ARG001 - a charge
    _dies()


def _dies_after_the_charge(order_id: str, amount: int, *, idempotency_key: str) -> NoReturn:
    charge(order_id, amount, idempotency_key=idempotency_key)
    _dies()


def _dies(**_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    main(*sys.argv[1:])
