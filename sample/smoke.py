"""`python -m sample.smoke --stack NAME`: whether a deployed stack keeps its promises, with your credentials and Region.

It makes payments with the stand-in provider under order ids of its own, and asks the provider's books how often each was charged.
Exits with 1 if anything is not as stated.  It leaves what it made: records, which expire, and entries in the books.

Your credentials need `cloudformation:DescribeStacks` and `ListStackResources`, `execute-api:Invoke`, `sqs:SendMessage` and
`GetQueueAttributes`, `dynamodb:DescribeTimeToLive`, `dynamodb:Scan` of the books, and `cloudwatch:DescribeAlarms`; with
`--dead-letters` also `sqs:ReceiveMessage` and `DeleteMessage`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPConnection, HTTPSConnection
from threading import Barrier
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from sample.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Document = dict[str, Any]

T = TypeVar("T")

DUPLICATES: Final = 5
REPLAY_HEADER: Final = "idempotent-replayed"
#: Longer than an HTTP API waits for a function: 30 s.
ANSWER_SECONDS: Final = 35
#: How long to wait until the stack has done what is in its queue, or until a lease has ended.
PATIENCE_SECONDS: Final = 60
POLL_SECONDS: Final = 0.25
#: A message is received five times, once in each visibility timeout of 150 s, and then moved.
DEAD_LETTER_SECONDS: Final = 900


@dataclass(frozen=True)
class Answer:
    """What a caller of the API gets."""

    status: int
    headers: dict[str, str]
    body: Document

    @property
    def is_replay(self) -> bool:
        """Whether it is a stored answer."""
        return self.headers.get(REPLAY_HEADER) == "true"


class Stack:
    """A deployed stack, as its users and operators see it.

    Args:
        name: Of the CloudFormation stack.
        connect: Host and port where its API answers, if that is not where its URL says: an emulator's.
    """

    def __init__(self, name: str, connect: str | None = None) -> None:
        self._session = boto3.Session()
        self._connect = connect
        self._name = name
        self._cloudformation: Any = self._session.client("cloudformation")
        self._dynamodb: Any = self._session.client("dynamodb")
        self._sqs: Any = self._session.client("sqs")
        (description,) = self._cloudformation.describe_stacks(StackName=name)["Stacks"]
        self.outputs: dict[str, str] = {output["OutputKey"]: output["OutputValue"] for output in description["Outputs"]}
        self.parameters: dict[str, str] = {each["ParameterKey"]: each["ParameterValue"] for each in description["Parameters"]}

    @cached_property
    def alarms(self) -> list[str]:
        """The names of its alarms, as CloudFormation has them."""
        pages = self._cloudformation.get_paginator("list_stack_resources").paginate(StackName=self._name)
        resources = [resource for page in pages for resource in page["StackResourceSummaries"]]
        return [resource["PhysicalResourceId"] for resource in resources if resource["ResourceType"] == "AWS::CloudWatch::Alarm"]

    def alarms_in_cloudwatch(self) -> list[str]:
        """Those that CloudWatch has, too."""
        answer = self._session.client("cloudwatch").describe_alarms(AlarmNames=self.alarms, MaxRecords=100)
        return [alarm["AlarmName"] for alarm in answer["MetricAlarms"]]

    def ttl_of(self, table: str) -> str:
        """The attribute by which the table lets items expire, or the reason why it does not."""
        ttl = self._dynamodb.describe_time_to_live(TableName=self.outputs[table])["TimeToLiveDescription"]
        is_on = ttl["TimeToLiveStatus"] in {"ENABLED", "ENABLING"}
        return str(ttl["AttributeName"] if is_on else ttl["TimeToLiveStatus"])

    def post(self, output: str, body: Document | str, *, signed: bool = True) -> Answer:
        """Send *body* to the URL in that output, as one of our own services would: signed by IAM credentials."""
        url = self.outputs[output]
        content = body if isinstance(body, str) else json.dumps(body)
        request = AWSRequest("POST", url, {"content-type": "application/json"}, content)
        if signed:
            SigV4Auth(self._session.get_credentials(), "execute-api", self._session.region_name).add_auth(request)
        parts = urlsplit(url)
        connection = (
            HTTPConnection(self._connect, timeout=ANSWER_SECONDS)
            if self._connect
            else HTTPSConnection(parts.netloc, timeout=ANSWER_SECONDS)
        )
        try:
            connection.request("POST", parts.path, content, {**dict(request.headers), "host": parts.netloc})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, parsed(response.read()))
        finally:
            connection.close()

    def send_orders(self, orders: Sequence[Document]) -> None:
        """Put the orders into the queue, at once."""
        entries = [{"Id": str(number), "MessageBody": json.dumps(order)} for number, order in enumerate(orders)]
        failed = self._sqs.send_message_batch(QueueUrl=self.outputs["OrdersQueueUrl"], Entries=entries).get("Failed")
        if failed:
            raise RuntimeError(f"SQS did not take all messages: {failed}")

    def messages(self) -> int:
        """How many are in the queue, those that are being processed included.  SQS counts approximately."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        counts = self._sqs.get_queue_attributes(QueueUrl=self.outputs["OrdersQueueUrl"], AttributeNames=names)["Attributes"]
        return sum(int(counts.get(name, 0)) for name in names)

    def dead_letter(self, order_id: str) -> bool:
        """Whether the order is in the dead-letter queue, from which it is then deleted."""
        url = self.outputs["OrdersDeadLetterQueueUrl"]
        received = self._sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=5)
        for message in received.get("Messages", []):
            if json.loads(message["Body"])["order_id"] == order_id:
                self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                return True
        return False

    def charges(self, order_id: str) -> list[Document]:
        """The provider's entries for the order: one per charge, with the number of requests that asked for it."""
        pages = self._dynamodb.get_paginator("scan").paginate(
            TableName=self.outputs["ChargesTableName"],
            ConsistentRead=True,
            FilterExpression="order_id = :order_id",
            ExpressionAttributeValues={":order_id": {"S": order_id}},
        )
        return [entry for page in pages for entry in page["Items"]]


class Smoke:
    """The steps.  Every order id begins with *run*, so that runs do not meet."""

    def __init__(self, stack: Stack, report: Report, run: str) -> None:
        self._stack = stack
        self._report = report
        self._run = run

    def deployed(self) -> None:
        """TTL is on, which strong tables do not have, and the alarms are there."""
        payments_expire_by = "DISABLED" if self._stack.parameters["Replication"] == "strong" else "expiration"
        self._report.expect("records of payments expire by", self._stack.ttl_of("PaymentsTableName"), payments_expire_by)
        self._report.expect("records of orders and bills expire by", self._stack.ttl_of("SharedTableName"), "expiration")
        self._report.expect("alarms in CloudWatch", sorted(self._stack.alarms_in_cloudwatch()), sorted(self._stack.alarms))

    def first_call(self) -> None:
        """A call runs the handler."""
        answer = self._pay("first")
        self._expect_answer(answer, 201, replay=False)
        self._expect_charges("first", charges=1, requests=1)

    def duplicate(self) -> None:
        """A repetition gets the stored answer."""
        answer = self._pay("first")
        self._expect_answer(answer, 201, replay=True)
        self._report.expect("charge in the answer", answer.body.get("charge_id"), self._charge_id("first"))
        self._expect_charges("first", charges=1, requests=1)

    def refused(self) -> None:
        """What must not be charged."""
        self._report.say("Another amount for the same order:")
        self._expect_answer(self._pay("first", amount=1), 422, replay=False)
        self._report.say("No payment at all:")
        self._expect_answer(self._stack.post("PaymentsUrl", '{"order_id": 17}'), 400, replay=False)
        self._report.say("A card that is declined, twice: nothing is stored, so the second is no replay:")
        for _ in range(2):
            self._expect_answer(self._stack.post("PaymentsUrl", self._payment(f"declined-{self._run}")), 402, replay=False)
        self._expect_charges("first", charges=1, requests=1)

    def unsigned(self) -> None:
        """The internet has no access."""
        answer = self._stack.post("PaymentsUrl", self._payment(f"{self._run}-unsigned"), signed=False)
        self._expect_answer(answer, 403, replay=False)
        self._expect_charges("unsigned", charges=0, requests=0)

    def concurrent_duplicates(self) -> None:
        """Of duplicates at the same time one runs; each other is refused, or comes late enough for a replay."""
        start = Barrier(DUPLICATES)

        def call(_: int) -> Answer:
            start.wait(PATIENCE_SECONDS)
            return self._pay("concurrent")

        with ThreadPoolExecutor(DUPLICATES) as threads:
            answers = list(threads.map(call, range(DUPLICATES)))
        self._report.say(f"answers: {sorted(answer.status for answer in answers)}")
        paid = [answer for answer in answers if answer.status == HTTPStatus.CREATED]
        self._report.expect("answers that are no replay", sum(not answer.is_replay for answer in paid), 1)
        refused = [answer for answer in answers if is_busy(answer)]
        self._report.expect("answers that are neither 201 nor 409", DUPLICATES - len(paid) - len(refused), 0)
        self._expect_charges("concurrent", charges=1, requests=1)

    def timeout(self) -> None:
        """An attempt that is killed at its timeout holds its key until its lease ends.  Then the next one takes over."""
        order_id = f"slow-{self._run}"
        with ThreadPoolExecutor(1) as thread:
            dying = thread.submit(self._stack.post, "PaymentsUrl", self._payment(order_id))
            until(lambda: self._stack.charges(order_id) or dying.done())
            self._report.say("The provider has charged, and is silent.  A retry while the attempt waits for it:")
            self._expect_answer(self._stack.post("PaymentsUrl", self._payment(order_id)), 409, replay=False)
            self._report.expect("the attempt was answered with 5xx", dying.result().status // 100, 5)
        self._report.say("Retries until the lease has ended:")
        answer = until(lambda: self._stack.post("PaymentsUrl", self._payment(order_id)), is_enough=lambda it: not is_busy(it))
        self._expect_answer(answer, 201, replay=False)
        self._report.expect("charges", in_words(self._stack.charges(order_id)), "1, from 2 requests")

    def queue(self) -> None:
        """Messages that name an order twice charge it once, now and when they come again."""
        once, twice = self._order("once"), self._order("twice")
        self._stack.send_orders([twice, once, twice])
        until(lambda: all(self._stack.charges(f"{self._run}-{name}") for name in ("once", "twice")))
        self._expect_empty_queue()
        for name in ("once", "twice"):
            self._expect_charges(name, charges=1, requests=1)
        self._report.say("The same messages again:")
        self._stack.send_orders([twice, once, twice])
        self._expect_empty_queue()
        for name in ("once", "twice"):
            self._expect_charges(name, charges=1, requests=1)

    def dead_letters(self, patience_seconds: float) -> None:
        """An order that always fails does not keep the others, and ends in the dead-letter queue."""
        poison = {**self._order("poison"), "order_id": f"declined-{self._run}-order"}
        self._stack.send_orders([poison, self._order("beside")])
        until(lambda: self._stack.charges(f"{self._run}-beside"))
        self._expect_charges("beside", charges=1, requests=1)
        moved = until(lambda: self._stack.dead_letter(poison["order_id"]), patience_seconds=patience_seconds)
        self._report.expect("the failing order is a dead letter", moved, expected=True)
        self._report.expect("charges for it", len(self._stack.charges(poison["order_id"])), 0)
        self._expect_charges("beside", charges=1, requests=1)

    def bill(self) -> None:
        """Shares are charged at the same time, each once."""
        bill = {"bill_id": f"{self._run}-bill", "shares": {"alice": 1_200, "bob": 800, "carol": 500}}
        for _ in range(2):
            self._report.expect("answer", self._stack.post("BillsUrl", bill).status, 201)
            for guest in bill["shares"]:
                self._expect_charges(f"bill/{guest}", charges=1, requests=1)

    def _payment(self, order_id: str, amount: int = 4_200) -> Document:
        return {"customer_id": "c-7", "order_id": order_id, "amount": amount, "currency": "EUR"}

    def _order(self, name: str) -> Document:
        return {"order_id": f"{self._run}-{name}", "amount": 1_500}

    def _pay(self, name: str, amount: int = 4_200) -> Answer:
        return self._stack.post("PaymentsUrl", self._payment(f"{self._run}-{name}", amount))

    def _charge_id(self, name: str) -> str:
        (charge,) = self._stack.charges(f"{self._run}-{name}")
        return str(charge["charge_id"]["S"])

    def _expect_answer(self, answer: Answer, status: int, *, replay: bool) -> None:
        self._report.expect("answer, and whether it is a replay", (answer.status, answer.is_replay), (status, replay))

    def _expect_charges(self, name: str, *, charges: int, requests: int) -> None:
        found = in_words(self._stack.charges(f"{self._run}-{name}"))
        self._report.expect(f"charges for {name}", found, f"{charges}, from {requests} requests")

    def _expect_empty_queue(self) -> None:
        """Wait until every message was processed and deleted: those that failed would still be there."""
        self._report.expect("messages left", until(self._stack.messages, is_enough=lambda left: left == 0), 0)


def main(arguments: Sequence[str]) -> int:
    """Tell the story of the stack.  Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sample.smoke", description="Check a deployed stack.")
    parser.add_argument("--stack", required=True, help="the CloudFormation stack's name")
    parser.add_argument("--connect", metavar="HOST:PORT", help="where the API answers, of an emulator")
    parser.add_argument("--dead-letters", action="store_true", help="wait until a failing order is a dead letter: 12 minutes")
    options = parser.parse_args(arguments)
    report = Report(sys.stdout)
    stack = Stack(options.stack, options.connect)
    smoke = Smoke(stack, report, f"smoke-{uuid.uuid4().hex[:8]}")
    with report.step("What was deployed"):
        smoke.deployed()
    with report.step("First call: POST /payments"):
        smoke.first_call()
    with report.step("Duplicate: the same request again"):
        smoke.duplicate()
    with report.step("Refused: another amount, no payment, a declined card"):
        smoke.refused()
    with report.step("A caller without a signature"):
        smoke.unsigned()
    with report.step("Concurrent duplicates"):
        smoke.concurrent_duplicates()
    with report.step("Timeout, and the takeover by a retry"):
        smoke.timeout()
    with report.step("SQS: an order sent twice, and everything sent again"):
        smoke.queue()
    with report.step("POST /bills: three shares at the same time, and again"):
        smoke.bill()
    if options.dead_letters:
        with report.step("SQS: an order that always fails"):
            smoke.dead_letters(DEAD_LETTER_SECONDS)
    report.sum_up()
    return report.exit_code


def parsed(content: bytes) -> Document:
    """The answer's JSON, or its text where the gateway itself has answered."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    return body if isinstance(body, dict) else {"message": body}


def is_busy(answer: Answer) -> bool:
    """Whether the order was being paid."""
    return answer.status == HTTPStatus.CONFLICT


def in_words(charges: list[Document]) -> str:
    """How often the provider charged, and how often it was asked to."""
    return f"{len(charges)}, from {sum(int(charge['requests']['N']) for charge in charges)} requests"


def until(look: Callable[[], T], is_enough: Callable[[T], bool] = bool, patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Look again and again until that is enough or patience ends.  Returns what was seen last."""
    deadline = time.monotonic() + patience_seconds
    while not is_enough(seen := look()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # a deployed stack tells nobody when it is done
    return seen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
