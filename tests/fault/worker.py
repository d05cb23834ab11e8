"""Worker processes, each killed at one step of a call: `python worker.py ENDPOINT '{STEP: [TABLE, NOW_MS], ...}'`.

A worker's effect is an item, named by the attempt's downstream key, as a service with idempotency keys of its own would keep it.
The item also remembers which attempts asked for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from engines.tables import client_for
from faults import ORDER, PREFIX, FaultyClient, after, before, keyed, raise_boom

from idempotency import DynamoDBPersistenceLayer, current_attempt, idempotent_function
from idempotency.events import Claimed, Completed

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_SECONDS = 60


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: The steps at a request: its operation, which call of it, and whether the worker dies before it is sent, or after it was applied
#: and before its answer is read.
AT_REQUESTS: dict[str, tuple[str, int, Callable[..., Any]]] = {
    "before the claim": ("put_item", 1, before),
    "after the claim, its answer unread": ("put_item", 1, after),
    "before the takeover": ("put_item", 2, before),
    "after the takeover, its answer unread": ("put_item", 2, after),
    "before the completion": ("update_item", 1, before),
    "after the completion, its answer unread": ("update_item", 1, after),
    "before the release": ("delete_item", 1, before),
    "after the release, its answer unread": ("delete_item", 1, after),
}
#: The steps at an event of the library.
AT_EVENTS = {"after the claim": Claimed, "after the completion": Completed}
#: In the function: before or after its effect.
IN_THE_FUNCTION = ["before the effect", "after the effect"]
STEPS = [*AT_REQUESTS, *AT_EVENTS, *IN_THE_FUNCTION]


def make_effect(client: Any, table: str, order: str) -> None:
    """Ask for the effect.  Each attempt may do so once."""
    attempt = current_attempt()
    client.update_item(
        TableName=table,
        Key={"id": {"S": f"effect {attempt.downstream_key}"}},
        UpdateExpression="SET #of = :order ADD #by :attempt",
        ConditionExpression="NOT contains(#by, :token)",
        ExpressionAttributeNames={"#of": "of", "#by": "by"},
        ExpressionAttributeValues={
            ":order": {"S": order},
            ":attempt": {"SS": [attempt.owner_token]},
            ":token": {"S": attempt.owner_token},
        },
    )


def worker(client: Any, store: DynamoDBPersistenceLayer, step: str = "") -> Any:
    """The idempotent function of the process; killed at *step*, if that is named.  It fails where the step is in its release."""

    def observe(event: object) -> None:
        if step in AT_EVENTS and isinstance(event, AT_EVENTS[step]):
            kill()

    @idempotent_function(
        data_keyword_argument="event",
        persistence_store=store,
        config=keyed(lease_seconds=LEASE_SECONDS, observers=[observe]),
        key_prefix=PREFIX,
    )
    def work(event: Any) -> str:
        if step == "before the effect":
            kill()
        make_effect(client, store.table_name, event["id"])
        if step == "after the effect":
            kill()
        if "release" in step:
            raise_boom()
        return f"done by {current_attempt().owner_token}"

    return work


def work_at(endpoint: str, table: str, step: str, now_ms: int) -> None:
    client = client_for(endpoint)
    faulty = FaultyClient(client)
    if step in AT_REQUESTS:
        operation, call, when = AT_REQUESTS[step]
        faulty.at(operation, call, when(kill))
    store = DynamoDBPersistenceLayer(table, boto3_client=faulty)
    store.clock_ms = lambda: now_ms
    worker(client, store, step)(event=ORDER)


def main(endpoint: str, scenes: dict[str, list[Any]]) -> dict[str, int]:
    """Have one process for each step work and die, all at the same time.  Returns their wait statuses."""
    client_for(endpoint).close()  # reads the service's model, which the processes then share
    processes = {}
    for step, (table, now_ms) in scenes.items():
        processes[step] = os.fork()
        if not processes[step]:
            try:
                work_at(endpoint, table, step, now_ms)
            finally:
                os._exit(0)  # it should not have come so far
    return {step: os.waitpid(process, 0)[1] for step, process in processes.items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))  # noqa: T201 - what the test reads
