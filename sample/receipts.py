"""A receipt by mail for each paid order, however often its message arrives.  The records are kept in Valkey.

A record that is lost in a failover would cost a second mail, which is why a cache will do here.  `payments` keeps its records
in a table.
"""

from __future__ import annotations

import os

from idempotency import CachePersistenceLayer, IdempotencyConfig, idempotent_function

#: On Lambda, `rediss://...` with TLS.  It connects at the first message; `store.prime()` would connect here, in the init phase.
store = CachePersistenceLayer(url=os.environ["CACHE_URL"])
config = IdempotencyConfig(event_key_jmespath="order_id", wait_for_in_progress_seconds=5)

#: A stand-in for a mail service: what it has sent, in order.
outbox: list[str] = []


@idempotent_function(data_keyword_argument="order", persistence_store=store, config=config, key_prefix="receipts")
def send_receipt(order: dict[str, str]) -> str:
    """Send the mail, and return its number.  A duplicate waits for it, and returns the same number."""
    outbox.append(f"To {order['customer_id']}: order {order['order_id']} is paid")
    return f"mail-{len(outbox)}"
