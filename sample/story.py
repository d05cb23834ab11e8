"""The demo's steps: what is called, what must come of it, and what is then in the tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from pathlib import Path
from textwrap import shorten
from threading import Barrier, Event, Lock, get_ident
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import boto3

from idempotency import DynamoDBPersistenceLayer, copy_records
from sample import fanout, orders, payments, provider, receipts, statements, transfers
from sample.crash import TIMEOUT_MS
from sample.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample.report import Report

    Document = dict[str, Any]

SAMPLE: Final = Path(__file__).parent
EVENTS: Final = SAMPLE / "events"
DUPLICATES: Final = 5
REPLAY_HEADER: Final = "idempotent-replayed"
#: How long threads wait for each other before the story goes on without them, and shows what went wrong.
PATIENCE_SECONDS: Final = 10

database: Any = boto3.client("dynamodb")
objects: Any = boto3.client("s3")
IDEMPOTENCY_TABLE: Final = payments.store.table_name
RESULTS_BUCKET: Final = os.environ["RESULTS_BUCKET"]
SHARED_TABLE: Final = orders.store.table_name
#: Where records move to.
NEW_TABLE: Final = "new"


def create_tables_and_bucket() -> None:
    """What the functions need."""
    objects.create_bucket(
        Bucket=RESULTS_BUCKET, CreateBucketConfiguration={"LocationConstraint": os.environ["AWS_DEFAULT_REGION"]}
    )
    for table in (SHARED_TABLE, NEW_TABLE):
        database.create_table(
            TableName=table,
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("id", "sort")],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}, {"AttributeName": "sort", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
    for table in (IDEMPOTENCY_TABLE, provider.table_name, transfers.accounts_table):
        database.create_table(
            TableName=table,
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )


def tell(report: Report) -> None:
    """All steps, each even if one before it went wrong."""
    story = Story(report)
    with report.step("First call: POST /payments for order o-1001"):
        story.first_call()
    with report.step("Duplicate: the same request again"):
        story.duplicate()
    with report.step("Five concurrent duplicates: one runs, the others are refused"):
        story.concurrent_duplicates()
    with report.step("Five concurrent duplicates, where wait_for_in_progress_seconds is set: the others wait"):
        story.waiting_duplicates()
    with report.step("Tampered payload: order o-1001 again, for another amount"):
        story.tampered_payload()
    with report.step("Crash before the charge, and its takeover"):
        story.crash_before_the_charge()
    with report.step("Crash after the charge, before its result is stored"):
        story.crash_after_the_charge()
    with report.step("SQS: a batch with an order sent twice, a failure, and a redelivery of the whole batch"):
        story.queue()
    with report.step("Async: three guests share a bill, charged at the same time by asyncio.gather"):
        story.shared_bill()
    with report.step("A result of 4 MB: too large for an item, even compressed"):
        story.large_result()
    with report.step("Moving: a table's records to one with a sort key, and a duplicate there"):
        story.moving()
    with report.step("Transfer: its worker is killed when the transaction is committed, and it is delivered again"):
        story.transfer()
    with report.step("A transfer that lacks funds: canceled as a whole, and its key is free"):
        story.refused_transfer()
    with report.step("Five concurrent messages for one receipt, whose records are kept in Valkey"):
        story.receipt()
    with report.step("The lean client: a duplicate and a new order without boto3, and its duplicate with it"):
        story.lean_client()
    with report.step("How often the charge really happened"):
        story.balance()


class Story:
    """The steps, and what they have in common: a count of the calls, and the records as they were last shown."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._calls = 0
        self._invocations = 0
        self._shown: dict[str, Document] = {}

    def first_call(self) -> None:
        """A call runs the handler and stores its answer."""
        answer = self._post(payment("o-1001"))
        self._expect_answer(answer, 201)
        self._report.expect(REPLAY_HEADER, replay_header(answer), "absent")
        self._expect_charges("o-1001", charges=1, requests=1)
        self._expect_records(changed=1, total=1)

    def duplicate(self) -> None:
        """A repetition gets the stored answer, and leaves no trace."""
        answer = self._post(payment("o-1001"))
        self._expect_answer(answer, 201)
        self._report.expect(REPLAY_HEADER, replay_header(answer), "true")
        self._expect_charges("o-1001", charges=1, requests=1)
        self._report.expect("charge in the answer, which is the first call's", charge_in(answer), *charge_ids("o-1001"))
        self._expect_records(changed=0, total=1)

    def concurrent_duplicates(self) -> None:
        """Of duplicates at the same time one runs; the others hear at once that it does."""
        held = HeldCharge(until_met_by=DUPLICATES - 1)

        def handler(event: Document, context: Invocation) -> Document:
            answer = payments.handler(event, context)
            held.meet()
            return answer

        with patch.object(payments, "charge", held):
            answers = self._at_once(handler, payment("o-1002"))
        self._report.expect("answers", statuses_of(answers), [201, 409, 409, 409, 409])
        self._expect_charges("o-1002", charges=1, requests=1)
        self._expect_records(changed=1, total=2)

    def waiting_duplicates(self) -> None:
        """As before, but the others wait and get the answer of the one that runs."""
        held = HeldCharge(until_met_by=DUPLICATES - 1)
        store = DynamoDBPersistenceLayer(IDEMPOTENCY_TABLE, boto3_client=payments.store.client)
        config = copy(payments.config)
        config.wait_for_in_progress_seconds = PATIENCE_SECONDS

        def sleep_ms(ms: float) -> None:
            held.meet()
            time.sleep(ms / 1000)  # as the store would have done

        store.sleep_ms = sleep_ms
        with patch.object(payments, "charge", held), payments.pay.override(persistence_store=store, config=config):
            answers = self._at_once(payments.handler, payment("o-1003"))
        self._report.expect("answers", statuses_of(answers), [201, 201, 201, 201, 201])
        self._report.expect("replays among them", [replay_header(answer) for answer in answers].count("true"), DUPLICATES - 1)
        self._report.expect("charges named in them", len({charge_in(answer) for answer in answers}), 1)
        self._expect_charges("o-1003", charges=1, requests=1)
        self._expect_records(changed=1, total=3)

    def tampered_payload(self) -> None:
        """A known key with another payload is refused, and its record is untouched."""
        self._expect_answer(self._post(payment("o-1001", amount=1)), 422)
        self._expect_charges("o-1001", charges=1, requests=1)
        self._expect_records(changed=0, total=3)

    def crash_before_the_charge(self) -> None:
        """A killed invocation's key is held until its lease ends; then the next call runs."""
        self._crash("before", "o-1004")
        self._expect_charges("o-1004", charges=0, requests=0)
        (orphan,) = self._expect_records(changed=1, total=4)
        self._report.say("A retry while the dead invocation's lease runs:")
        self._expect_answer(self._post(payment("o-1004")), 409)
        wait_for_end_of_lease(orphan)
        self._report.say("A retry after its end takes the key over, as the next generation:")
        self._expect_answer(self._post(payment("o-1004")), 201)
        self._expect_charges("o-1004", charges=1, requests=1)
        (completed,) = self._expect_records(changed=1, total=4)
        self._report.expect("generation", int(completed["generation"]["N"]), 2)

    def crash_after_the_charge(self) -> None:
        """An effect elsewhere and its record are two writes, so a takeover runs again; the key passed on makes that harmless."""
        self._crash("after", "o-1005")
        self._expect_charges("o-1005", charges=1, requests=1)
        (orphan,) = self._expect_records(changed=1, total=5)
        self._report.say("Nobody can tell this record from the one before: a takeover must run the handler, and asks the")
        self._report.say("provider a second time.  current_attempt().downstream_key is the same in both attempts, and")
        self._report.say("the provider, given it as its own idempotency key, does not charge again:")
        wait_for_end_of_lease(orphan)
        answer = self._post(payment("o-1005"))
        self._expect_answer(answer, 201)
        self._expect_charges("o-1005", charges=1, requests=2)
        self._report.expect("charge in the answer, which the dead invocation made", charge_in(answer), *charge_ids("o-1005"))
        (completed,) = self._expect_records(changed=1, total=5)
        self._report.expect("generation", int(completed["generation"]["N"]), 2)

    def queue(self) -> None:
        """A message that fails is reported, and no message that comes again charges again."""
        event = document("sqs_orders")
        failing = event["Records"][1]
        with patch.object(orders, "charge", Declining("o-2002")):
            failures = self._deliver(event)
        self._report.expect("messages reported as failed", failures, [failing["messageId"]])
        self._expect_charges("o-2001", charges=1, requests=1)
        self._expect_charges("o-2002", charges=0, requests=0)
        self._expect_records(changed=1, total=6)
        for record in event["Records"]:
            record["attributes"]["ApproximateReceiveCount"] = "2"
        self._report.say("The whole batch again, as when its answer was lost:")
        self._report.expect("messages reported as failed", self._deliver(event), [])
        self._expect_charges("o-2001", charges=1, requests=1)
        self._expect_charges("o-2002", charges=1, requests=1)
        self._expect_records(changed=1, total=7)

    def shared_bill(self) -> None:
        """A retry runs those of the concurrent async calls that failed, and replays the others."""
        event = document("http_api_bill")
        with patch.object(fanout, "charge", Declining("b-7/carol")):
            answer = self._split(event)
        self._expect_answer(answer, 402)
        self._report.expect("declined", json.loads(answer["body"])["declined"], ["carol"])
        self._expect_records(changed=2, total=9)
        self._report.say("The same request again:")
        self._expect_answer(self._split(event), 201)
        for guest in ("alice", "bob", "carol"):
            self._expect_charges(f"b-7/{guest}", charges=1, requests=1)
        self._expect_records(changed=1, total=10)

    def large_result(self) -> None:
        """A large result is kept in S3 and replayed as it was; its record says where it is."""
        event = {"merchant": "m-1", "month": "2026-10", "sales": 25_000}
        first, again = (statements.handler(deepcopy(event), self._invocation()) for _ in range(2))
        self._report.expect("megabytes of the result", len(json.dumps(first)) // 1_000_000, 4)
        self._report.expect("the replay is the same", again == first, expected=True)
        kept = objects.list_objects_v2(Bucket=RESULTS_BUCKET)["Contents"]
        self._report.expect("objects in the bucket", len(kept), 1)
        (record,) = self._expect_records(changed=1, total=11)
        self._report.expect("size in the record, as in the bucket", record["data"]["M"]["size"]["N"], str(kept[0]["Size"]))

    def moving(self) -> None:
        """Records move to a table of another layout; whoever uses that one gets their results."""
        target = DynamoDBPersistenceLayer(
            NEW_TABLE,
            sort_key_attr="sort",
            static_pk_value="idempotency#payments",
            boto3_client=payments.store.client,
        )
        copied = copy_records(payments.store, target, target_in_use=False)
        self._report.expect("records copied", copied.written, 6)
        self._report.expect("all of them", copied.done, expected=True)
        with payments.pay.override(persistence_store=target):
            answer = self._post(payment("o-1001"))
        self._report.expect(REPLAY_HEADER, replay_header(answer), "true")
        self._expect_charges("o-1001", charges=1, requests=1)
        self._expect_records(changed=0, total=11)

    def transfer(self) -> None:
        """The effect and its record are one write, so a redelivery finds both, at once and without a takeover."""
        for owner, cents in (("alice", 10_000), ("bob", 0)):
            database.put_item(TableName=transfers.accounts_table, Item={"id": {"S": owner}, "balance": {"N": str(cents)}})
        self._kill("committed", transfer(7_500))
        self._report.expect("balances", balances(), {"alice": 2_500, "bob": 7_500})
        (completed,) = self._expect_records(changed=1, total=12)
        self._report.expect("status", completed["status"]["S"], "COMPLETED")
        self._report.say("The same event again:")
        answer = transfers.handler(transfer(7_500), self._invocation())
        self._report.expect("cents moved, as the answer says", answer["moved"], 7_500)
        self._report.expect("balances", balances(), {"alice": 2_500, "bob": 7_500})
        self._expect_records(changed=0, total=12)

    def refused_transfer(self) -> None:
        """A condition that does not hold cancels all writes, the record's included."""
        answer = transfers.handler(transfer(2_501, "t-2"), self._invocation())
        self._report.expect("the answer's reason", answer["refused"], "lacks funds")
        self._report.expect("balances", balances(), {"alice": 2_500, "bob": 7_500})
        self._expect_records(changed=0, total=12)

    def receipt(self) -> None:
        """Of messages at the same time one sends the mail; the others wait for its number.  No table is touched."""
        order = {"order_id": "o-1001", "customer_id": "c-7"}
        with ThreadPoolExecutor(DUPLICATES) as threads:
            numbers = list(threads.map(receipts.send_receipt, [order] * DUPLICATES))
        self._report.expect("answers", numbers, ["mail-1"] * DUPLICATES)
        self._report.expect("mails sent", receipts.outbox, ["To c-7: order o-1001 is paid"])
        self._report.say("The same message again:")
        outcome = receipts.send_receipt.with_outcome(order)
        self._report.expect("answer, and whether it was sent now", (outcome.value, outcome.ran_now), ("mail-1", False))
        self._report.expect("keys in Valkey", receipts.store.client.dbsize(), 1)
        self._expect_records(changed=0, total=12)

    def lean_client(self) -> None:
        """Records are the same, whichever client has written them."""
        lean = DynamoDBPersistenceLayer(IDEMPOTENCY_TABLE, client="lean")
        with payments.pay.override(persistence_store=lean):
            self._report.expect(REPLAY_HEADER, replay_header(self._post(payment("o-1001"))), "true")
            self._expect_answer(self._post(payment("o-1010")), 201)
        self._expect_records(changed=1, total=13)
        self._report.say("The new order again, with boto3:")
        self._report.expect(REPLAY_HEADER, replay_header(self._post(payment("o-1010"))), "true")
        self._expect_charges("o-1010", charges=1, requests=1)
        connections: Any = lean.client
        connections.close()

    def balance(self) -> None:
        """One charge for each thing to be paid."""
        entries = provider_entries()
        self._report.expect("things to be paid", len({entry["order_id"]["S"] for entry in entries}), 11)
        self._report.expect("requests to the provider, one more than charges because of the crash", requests_in(entries), 12)
        self._report.expect("charges", len(entries), 11)
        self._report.say(f"{self._calls} calls, messages and shares led to {len(entries)} charges.")

    def _post(self, event: Document) -> Document:
        self._calls += 1
        return payments.handler(deepcopy(event), self._invocation())

    def _split(self, event: Document) -> Document:
        self._calls += len(json.loads(event["body"])["shares"])
        return fanout.handler(deepcopy(event), self._invocation())

    def _deliver(self, event: Document) -> list[Any]:
        self._calls += len(event["Records"])
        answer = orders.handler(deepcopy(event), self._invocation())
        return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]

    def _crash(self, moment: str, order_id: str) -> None:
        """A process that kills itself in its handler."""
        self._calls += 1
        self._kill(moment, payment(order_id))

    def _kill(self, moment: str, event: Document) -> None:
        command = [sys.executable, "-m", "sample.crash", moment, self._next_request_id()]
        document = json.dumps(event)
        dead = subprocess.run(command, cwd=SAMPLE.parent, input=document, text=True, check=False)  # noqa: S603 - our own
        self._report.expect("exit code of the process, which killed itself", dead.returncode, -signal.SIGKILL)

    def _at_once(self, handler: Callable[[Document, Invocation], Document], event: Document) -> list[Document]:
        """The answers to duplicates that start at the same moment."""
        self._calls += DUPLICATES
        start = Barrier(DUPLICATES)

        def call(invocation: Invocation) -> Document:
            start.wait(PATIENCE_SECONDS)
            return handler(deepcopy(event), invocation)

        with ThreadPoolExecutor(DUPLICATES) as threads:
            return list(threads.map(call, [self._invocation() for _ in range(DUPLICATES)]))

    def _invocation(self) -> Invocation:
        return Invocation(self._next_request_id())

    def _next_request_id(self) -> str:
        self._invocations += 1
        return f"request-{self._invocations}"

    def _expect_answer(self, answer: Document, status: int) -> None:
        """What the client is told: the status, and an error's explanation or else the body."""
        body = json.loads(answer["body"])
        self._report.expect("answer", answer["statusCode"], status)
        self._report.say(f"       {shorten(body.get('detail', answer['body']), 90)}")

    def _expect_charges(self, order_id: str, *, charges: int, requests: int) -> None:
        """What the provider's books must say of the order."""
        entries = [entry for entry in provider_entries() if entry["order_id"]["S"] == order_id]
        self._report.expect(f"charges for {order_id}", in_words(len(entries), requests_in(entries)), in_words(charges, requests))

    def _expect_records(self, *, changed: int, total: int) -> list[Document]:
        """Show the records that are new or different since they were last shown, and return them."""
        tables = (IDEMPOTENCY_TABLE, SHARED_TABLE)
        items = [item for table in tables for item in database.scan(TableName=table, ConsistentRead=True)["Items"]]
        new = [item for item in items if self._shown.get(key_of(item)) != item]
        self._shown = {key_of(item): item for item in items}
        if new:
            now_ms = payments.store.clock_ms()
            header = ("key", "status", "generation", "holder", "lease ends in", "expires in")
            self._report.table(header, [row(item, now_ms) for item in new])
        self._report.expect("records new or changed", f"{len(new)} of {len(items)}", f"{changed} of {total}")
        return new


class HeldCharge:
    """The provider's `charge`, held back until so many other threads have met the attempt that makes it."""

    def __init__(self, until_met_by: int) -> None:
        self._until_met_by = until_met_by
        self._met_by: set[int] = set()
        self._lock = Lock()
        self._all_have_met = Event()

    def meet(self) -> None:
        """Called by the other threads."""
        with self._lock:
            self._met_by.add(get_ident())
            if len(self._met_by) >= self._until_met_by:
                self._all_have_met.set()

    def __call__(self, order_id: str, amount: int, *, idempotency_key: str) -> str:
        """As `provider.charge`."""
        self._all_have_met.wait(PATIENCE_SECONDS)
        return provider.charge(order_id, amount, idempotency_key=idempotency_key)


class Declining:
    """The provider's `charge` on a day when one card is declined."""

    def __init__(self, declined_order_id: str) -> None:
        self._declined_order_id = declined_order_id

    def __call__(self, order_id: str, amount: int, *, idempotency_key: str) -> str:
        """As `provider.charge`."""
        if order_id == self._declined_order_id:
            raise provider.CardDeclinedError(order_id)
        return provider.charge(order_id, amount, idempotency_key=idempotency_key)


def document(name: str) -> Document:
    """An event as AWS sends it."""
    event: Document = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    return event


def payment(order_id: str, amount: int = 4200) -> Document:
    """API Gateway's event for a payment."""
    event = document("http_api_payment")
    event["body"] = json.dumps({**json.loads(event["body"]), "order_id": order_id, "amount": amount})
    event["headers"]["content-length"] = str(len(event["body"]))
    return event


def transfer(amount: int, transfer_id: str = "t-1") -> Document:
    """An event of a transfer from alice to bob, in cents."""
    return {"transfer_id": transfer_id, "source": "alice", "target": "bob", "amount": amount}


def balances() -> dict[str, int]:
    """What each account has, in cents."""
    accounts = database.scan(TableName=transfers.accounts_table, ConsistentRead=True)["Items"]
    return {account["id"]["S"]: int(account["balance"]["N"]) for account in sorted(accounts, key=lambda item: item["id"]["S"])}


def statuses_of(answers: list[Document]) -> list[int]:
    """Their HTTP statuses, in ascending order."""
    return sorted(answer["statusCode"] for answer in answers)


def replay_header(answer: Document) -> str:
    """What tells the client whether the answer is a stored one."""
    header: str = answer["headers"].get(REPLAY_HEADER, "absent")
    return header


def charge_in(answer: Document) -> str:
    """The charge that the client is told."""
    charge_id: str = json.loads(answer["body"])["charge_id"]
    return charge_id


def provider_entries() -> list[Document]:
    """The provider's books: one entry per charge."""
    entries: list[Document] = database.scan(TableName=provider.table_name, ConsistentRead=True)["Items"]
    return entries


def charge_ids(order_id: str) -> set[str]:
    """The charges of an order."""
    return {entry["charge_id"]["S"] for entry in provider_entries() if entry["order_id"]["S"] == order_id}


def requests_in(entries: list[Document]) -> int:
    """How many requests made the charges."""
    return sum(int(entry["requests"]["N"]) for entry in entries)


def in_words(charges: int, requests: int) -> str:
    """How often the provider charged, and how often it was asked to."""
    return f"{charges}, from {requests} {'request' if requests == 1 else 'requests'} to the provider"


def wait_for_end_of_lease(record: Document) -> None:
    """Sleep until the record is an orphan.

    Real time must pass, at most that of the dead invocation: a test would move the store's clock, but the demo shows the handler
    as it is deployed.
    """
    left_ms = int(record["in_progress_expiration"]["N"]) + 1 - payments.store.clock_ms()
    time.sleep(min(max(left_ms, 0), TIMEOUT_MS) / 1000)  # real time: the handler runs as it is deployed


def key_of(record: Document) -> str:
    """The idempotency key, which a shared table has in its sort key."""
    key: str = record["sort" if "sort" in record else "id"]["S"]
    return key


def row(record: Document, now_ms: int) -> tuple[str, ...]:
    """A record as a line of the table: times as seconds from now, the key without the function's module and most of its hash."""
    function, digest = key_of(record).split("#")
    status = record["status"]["S"]
    lease_ms = int(record["in_progress_expiration"]["N"]) - now_ms
    return (
        f"{function.rpartition('.')[2]}#{digest[:6]}",
        status,
        record["generation"]["N"],
        record["holder"]["S"],
        f"{lease_ms / 1000:.1f} s" if status == "INPROGRESS" else "-",
        f"{int(record['expiration']['N']) - now_ms // 1000} s",
    )
