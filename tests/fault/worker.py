"""Worker processes, each killed at one step of a call: `python worker.py ENDPOINT CLIENT '{STEP: [TABLE, NOW_MS], ...}'`.

A worker's effect is an item, named by the attempt's downstream key, as a service with idempotency keys of its own would keep it.
The item also remembers which attempts asked for it.

With `[TABLE, NOW_MS, BANK]` it makes a payment in a transaction instead, see `transfers.py`.  With the one step `AT_RANDOM` and
`[TABLE, NOW_MS, BANK, SEED, DELIVERIES]`, many workers make many payments and are killed at any moment.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from doubles import FakeClock
from engines.tables import client_for, lean_client_for
from fault.transfers import KEPT_SECONDS, Payment, payments
from faults import ORDER, PREFIX, FaultyClient, after, before, connection_closed, keyed, lost, lost_then, raise_boom

from idempotency import (
    BaseError,
    DynamoDBPersistenceLayer,
    apply_once,
    current_attempt,
    idempotent_function,
    transaction,
)
from idempotency.events import Claimed, Completed
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_SECONDS = 60
#: How much later than that a lease ends in its record.
MARGIN_MS = 1_000


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


#: As above, of a payment; the change is `apply_once`'s.  The first commit is repeated where its answer is lost, and the release
#: settles what became of it where all are.
PAY_AT_REQUESTS: dict[str, tuple[str, int, Callable[..., Any]]] = {
    "before the claim": ("put_item", 1, before),
    "after the claim, its answer unread": ("put_item", 1, after),
    "before the takeover": ("put_item", 2, before),
    "after the takeover, its answer unread": ("put_item", 2, after),
    "before the change": ("update_item", 1, before),
    "after the change, its answer unread": ("update_item", 1, after),
    "before the commit": ("transact_write_items", 1, before),
    "after the commit, its answer unread": ("transact_write_items", 1, after),
    "before the repeated commit": ("transact_write_items", 2, before),
    "after the repeated commit, its answer unread": ("transact_write_items", 2, after),
    "before the release": ("delete_item", 1, before),
    "after the release, its answer unread": ("delete_item", 1, after),
    "before the settling release": ("delete_item", 1, before),
    "after the settling release, its answer unread": ("delete_item", 1, lambda happens: lost_then(happens, connection_closed())),
}
PAY_AT_EVENTS = {"after the claim": Claimed, "after the commit": Completed}
IN_THE_PAYMENT = ["before the first write", "between the writes", "after the last write"]
PAY_STEPS = [*PAY_AT_REQUESTS, *PAY_AT_EVENTS, *IN_THE_PAYMENT]
PAYMENT: Final = Payment(number=0, kind="order", source=1, target=2, amount=50)

AT_RANDOM = "at random"
#: How many workers make the same payment at once, and how many do in all.
WORKERS = 3
PER_PAYMENT = 6
#: Within which time from their start the first workers are killed.
FIRST_WITHIN_SECONDS = 0.2


def payer(client: Any, store: DynamoDBPersistenceLayer, bank: str, payment: Payment = PAYMENT, step: str = "") -> Any:
    """The payment, ready to be made; killed at *step*, if that is named.  It fails where the step is in its release."""

    def observe(event: object) -> None:
        if step in PAY_AT_EVENTS and isinstance(event, PAY_AT_EVENTS[step]):
            kill()

    @idempotent_function(
        data_keyword_argument="event",
        persistence_store=store,
        config=keyed(lease_seconds=LEASE_SECONDS, expires_after_seconds=KEPT_SECONDS, observers=[observe]),
        key_prefix=PREFIX,
    )
    def pay(event: Any) -> dict[str, str]:
        token = current_attempt().owner_token
        writes = payment.writes(bank, token)
        for number, (method, request) in enumerate(writes):
            if (step, number) in {("before the first write", 0), ("between the writes", 2)}:
                kill()
            getattr(transaction(), method)(**request)
        if step == "after the last write":
            kill()
        counted = {"UpdateExpression": "ADD applied :one", "ExpressionAttributeValues": {":one": 1}}
        apply_once(client, TableName=bank, Key={"id": payment.tally}, **counted)
        if step in {"before the release", "after the release, its answer unread"}:
            raise_boom()
        return {"payment": payment.id, "by": token}

    return lambda: pay(event={"id": payment.id})


def pay_at(client: Any, table: str, step: str, now_ms: int, bank: str) -> None:
    faulty = FaultyClient(client)
    if "repeated" in step:
        faulty.at("transact_write_items", 1, lost(connection_closed()))
    if "settling" in step:
        faulty.always("transact_write_items", lost(connection_closed()))
    if step in PAY_AT_REQUESTS:
        operation, call, when = PAY_AT_REQUESTS[step]
        faulty.at(operation, call, when(kill))
    payer(faulty, store_at(faulty, table, now_ms), bank, step=step)()


def store_at(client: Any, table: str, now_ms: int) -> DynamoDBPersistenceLayer:
    """A store at that time, which passes when the store waits."""
    clock = FakeClock(now_ms)
    store = DynamoDBPersistenceLayer(table, boto3_client=client)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


@dataclass
class _Worker:
    """A process that makes one payment once, and tells what it gets."""

    payment: Payment
    client: Any
    table: str
    now_ms: int
    bank: str
    process: int = field(init=False)
    said: int = field(init=False)

    def __post_init__(self) -> None:
        self.said, says = os.pipe()
        self.process = os.fork()
        if not self.process:
            try:
                with suppress(BaseError):
                    got = payer(self.client, store_at(self.client, self.table, self.now_ms), self.bank, self.payment)()
                    os.write(says, json.dumps(got).encode())
            finally:
                os._exit(0)
        os.close(says)

    def end(self, seconds: float | None) -> tuple[bool, dict[str, str] | None]:
        """Kill it in so many seconds, unless it ends before.  Returns whether it was killed, and the result that it told."""
        ready, _, _ = select.select([self.said], [], [], seconds)
        if not ready:
            os.kill(self.process, signal.SIGKILL)
        _, status = os.waitpid(self.process, 0)
        told = os.read(self.said, 4096)
        os.close(self.said)
        return os.WIFSIGNALED(status), json.loads(told) if told else None


def kill_at_random(client: Any, table: str, now_ms: int, bank: str, seed: int, deliveries: int) -> dict[str, Any]:
    """Have payments made by workers that are killed at any moment of a call, or after it.

    Each delivery takes over what the one before it has left, and what another is at work on, because it comes after its lease.
    The seed decides the moments, and the machine what has been done by then.

    Returns:
        How many deliveries were killed, and the results that the others told.
    """
    chance = random.Random(seed)
    todo = payments(seed, -(-deliveries // PER_PAYMENT), {"transfer": 1, "order": 1})
    client.get_item(TableName=table, Key={"id": {"S": "none"}})  # or each worker's first request would take much longer
    if not isinstance(client, LeanClient):
        client.close()  # its connection, which they must not share: the lean client sees to that itself
    killed, results, within = 0, [], FIRST_WITHIN_SECONDS
    for payment in [payment for payment in todo for _ in range(PER_PAYMENT // WORKERS)]:
        started, workers = perf_counter(), []
        for _ in range(WORKERS):
            now_ms += 1000 * LEASE_SECONDS + MARGIN_MS + 1
            workers.append(_Worker(payment, client, table, now_ms, bank))
        for worker, moment in zip(workers, sorted(chance.random() for _ in workers), strict=True):
            was_killed, result = worker.end(max(0, started + within * moment - perf_counter()))
            within *= 1.05 if was_killed else 0.9  # two of three are killed, however fast the machine is
            killed += was_killed
            results += [] if result is None else [result]
    return {"killed": killed, "results": results}


def work_at(client: Any, table: str, step: str, now_ms: int) -> None:
    faulty = FaultyClient(client)
    if step in AT_REQUESTS:
        operation, call, when = AT_REQUESTS[step]
        faulty.at(operation, call, when(kill))
    store = DynamoDBPersistenceLayer(table, boto3_client=faulty)
    store.clock_ms = lambda: now_ms
    worker(client, store, step)(event=ORDER)


def main(endpoint: str, kind: str, scenes: dict[str, list[Any]]) -> dict[str, Any]:
    """Have one process for each step work and die, all at the same time.  Returns their wait statuses.

    *kind* says which client they have: boto3's or the lean one.
    """
    new_client = lean_client_for if kind == "lean" else client_for
    client = new_client(endpoint)  # boto3's reads the service's model, which the processes then share
    if AT_RANDOM in scenes:
        return kill_at_random(client, *scenes[AT_RANDOM])
    processes = {}
    for step, (table, now_ms, *bank) in scenes.items():
        processes[step] = os.fork()
        if not processes[step]:
            try:
                pay_at(client, table, step, now_ms, *bank) if bank else work_at(client, table, step, now_ms)
            finally:
                os._exit(0)  # it should not have come so far
    return {step: os.waitpid(process, 0)[1] for step, process in processes.items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))  # noqa: T201 - what the test reads
