"""A worker process that is killed at one step of a call: `python worker.py ENDPOINT TABLE STEP NOW_MS`.

The effect is an item, named by the attempt's downstream key, as a service with idempotency keys of its own would keep it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from engines.tables import client_for
from faults import ORDER, PREFIX, FaultyClient, after, before, keyed

from idempotency import DynamoDBPersistenceLayer, current_attempt, idempotent_function
from idempotency.events import Claimed

STEPS = ["after the claim", "in the function", "before the completion", "after the completion"]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def worker(client: Any, store: DynamoDBPersistenceLayer, step: str = "") -> Any:
    """The idempotent function of the process; killed at *step*, if that is named."""

    def observe(event: object) -> None:
        if step == "after the claim" and isinstance(event, Claimed):
            kill()

    @idempotent_function(
        data_keyword_argument="event",
        persistence_store=store,
        config=keyed(lease_seconds=60, observers=[observe]),
        key_prefix=PREFIX,
    )
    def work(event: Any) -> str:
        effect = {"id": {"S": f"effect {current_attempt().downstream_key}"}, "of": {"S": event["id"]}}
        client.put_item(TableName=store.table_name, Item=effect)
        if step == "in the function":
            kill()
        return "done"

    return work


def main(endpoint: str, table: str, step: str, now_ms: str) -> None:
    client = client_for(endpoint)
    faulty = FaultyClient(client)
    if step == "before the completion":
        faulty.at("update_item", 1, before(kill))
    if step == "after the completion":
        faulty.at("update_item", 1, after(kill))
    store = DynamoDBPersistenceLayer(table, boto3_client=faulty)
    store.clock_ms = lambda: int(now_ms)
    worker(client, store, step)(event=ORDER)


if __name__ == "__main__":
    main(*sys.argv[1:])
