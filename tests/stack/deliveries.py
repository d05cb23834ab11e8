"""Events that are delivered again and again, with mishaps, until each delivery has succeeded; and what must be true of it.

Time is real here: a runtime has no other clock.  So a seed decides what happens to which delivery, and not what comes first.
"""

from __future__ import annotations

import heapq
import json
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Condition, Timer
from typing import TYPE_CHECKING, Any, Final

from engines.repository import ROOT

from stack.local_lambda import Invocation
from stack.mishaps import Mishap

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from stack.local_lambda import Answer, Function
    from stack.mishaps import Mishaps, Plan, Record

#: The library's own default.
LEASE_MARGIN_MS: Final = 1_000
#: By how much a lease may end later than its invocation's deadline and the margin say, on a machine that is very busy.
LATENESS_MS: Final = 2_000
#: A delivery that has failed so often will never succeed.
TRIES: Final = 60
#: Among how many names a delivery comes early or late.
NEIGHBOURS: Final = 4
#: To how many deliveries something is to happen, as long as there are mishaps left.
MISHAPS_RATE: Final = 0.4
#: What happens to one delivery in ten, in these proportions.
DECK: Final = [Mishap.KILLED_BEFORE] * 3 + [Mishap.KILLED_AFTER] * 4 + [Mishap.TIMED_OUT] + [Mishap.FROZEN] * 2


@dataclass(eq=False)
class Job:
    """One delivery that has to succeed, of an event or of a message in it.

    Attributes:
        orders: What it charges, by the names that the provider knows.
    """

    name: str
    number: int
    orders: frozenset[str]
    tries: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `done` with what its sender was told, `refused` because another attempt is at it, or `failed`."""

    kind: str
    told: Any = None


class Sample(ABC):
    """A function of the sample, as its senders see it.

    Attributes:
        function_name: In the template.
        handler: The same.
        batch: How many jobs one event may carry.
    """

    function_name: str
    handler: str
    batch = 1

    @abstractmethod
    def orders(self, name: str) -> frozenset[str]:
        """What a job charges."""

    @abstractmethod
    def event(self, jobs: list[Job]) -> dict[str, Any]:
        """The event that carries the jobs."""

    @abstractmethod
    def outcomes(self, jobs: list[Job], answer: Answer) -> list[Outcome]:
        """What became of each of them."""


def recorded(name: str) -> dict[str, Any]:
    """An event as AWS sends it."""
    event: dict[str, Any] = json.loads((ROOT / "sample" / "events" / f"{name}.json").read_text(encoding="utf-8"))
    return event


class Payments(Sample):
    function_name, handler = "PaymentsFunction", "sample.payments.handler"

    def orders(self, name: str) -> frozenset[str]:
        return frozenset({name})

    def event(self, jobs: list[Job]) -> dict[str, Any]:
        [job] = jobs
        body = json.loads(recorded("http_api_payment")["body"]) | {"order_id": job.name}
        return recorded("http_api_payment") | {"body": json.dumps(body)}

    def outcomes(self, jobs: list[Job], answer: Answer) -> list[Outcome]:
        if answer.is_error:
            return [_of_error(answer)]
        kinds = {201: "done", 409: "refused"}
        return [Outcome(kinds.get(answer.payload["statusCode"], "failed"), answer.payload["body"])]


class Bills(Sample):
    function_name, handler = "BillsFunction", "sample.fanout.handler"

    def orders(self, name: str) -> frozenset[str]:
        return frozenset(f"{name}/{guest}" for guest in json.loads(recorded("http_api_bill")["body"])["shares"])

    def event(self, jobs: list[Job]) -> dict[str, Any]:
        [job] = jobs
        body = json.loads(recorded("http_api_bill")["body"]) | {"bill_id": job.name}
        return recorded("http_api_bill") | {"body": json.dumps(body)}

    def outcomes(self, jobs: list[Job], answer: Answer) -> list[Outcome]:
        if answer.is_error:
            return [_of_error(answer)]
        return [Outcome("done" if answer.payload["statusCode"] == 201 else "failed", answer.payload["body"])]


class Orders(Sample):
    """Its senders learn nothing but which messages are to be delivered again."""

    function_name, handler, batch = "OrdersFunction", "sample.orders.handler", 4

    def orders(self, name: str) -> frozenset[str]:
        return frozenset({name})

    def event(self, jobs: list[Job]) -> dict[str, Any]:
        pattern = recorded("sqs_orders")["Records"][0]
        body = json.loads(pattern["body"])
        return {
            "Records": [
                pattern | {"messageId": f"{job.name} {job.number}", "body": json.dumps(body | {"order_id": job.name})}
                for job in jobs
            ]
        }

    def outcomes(self, jobs: list[Job], answer: Answer) -> list[Outcome]:
        if answer.is_error:
            # So many messages failed that Powertools calls it the batch's failure: all of them.
            refused = answer.error_type == "BatchProcessingError" and "AlreadyInProgress" in answer.payload["errorMessage"]
            return [Outcome("refused") if refused else _of_error(answer)] * len(jobs)
        failures = {failure["itemIdentifier"] for failure in answer.payload["batchItemFailures"]}
        return [Outcome("refused" if f"{job.name} {job.number}" in failures else "done") for job in jobs]


def _of_error(answer: Answer) -> Outcome:
    refused = answer.error_type == "IdempotencyAlreadyInProgressError"
    return Outcome("refused" if refused else "failed", f"{answer.error_type}: {answer.payload['errorMessage']}")


@dataclass(eq=False)
class Attempt:
    """One invocation for some jobs."""

    jobs: list[Job]
    invocation: Invocation
    plan: Plan | None
    started_ms: int
    is_disturbed: bool = False


@dataclass(eq=False)
class Story:
    """Delivers, and notes what must not have happened.

    Attributes:
        violations: What was promised and not kept.
        attempts: All invocations.
    """

    sample: Sample
    function: Function
    mishaps: Mishaps
    tables: Tables
    chance: random.Random
    violations: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    _told: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _deck: list[Mishap] = field(default_factory=list)
    _again: list[Mishap] = field(default_factory=list)
    _at_request: int | None = None
    _due: list[tuple[float, int, Job]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _running: int = 0
    _changed: Condition = field(default_factory=Condition)

    def play(self, names: Sequence[str], times: int, deck: Sequence[Mishap] = (), at_request: int | None = None) -> None:
        """Deliver the jobs, each so many times, until all have succeeded or something was violated; then look at the tables.

        The mishaps of the deck happen to deliveries of chance, at a request of chance or at the one that is given.
        """
        self._deck = list(deck)
        self.chance.shuffle(self._deck)
        self._at_request = at_request
        for place, name in enumerate(names):
            for number in range(times):
                # In an order of chance, but so that what is delivered twice is often delivered at once.
                self._deliver_at(place + self.chance.uniform(0, NEIGHBOURS), Job(name, number, self.sample.orders(name)))
        workers = self.function.settings.concurrency
        with ThreadPoolExecutor(workers) as threads:
            for work in [threads.submit(self._work) for _ in range(workers)]:
                work.result()
        if not self.violations:
            self._look_at_the_tables()

    def report(self) -> str:
        """What happened, in a few lines."""
        met = ", ".join(f"{number} {mishap.value}" for mishap, number in self.mishaps.met.items())
        return f"{len(self.attempts)} invocations of {self.function.settings.name}: {dict(self.outcomes)}; {met}\n" + "\n".join(
            self.violations
        )

    def _deliver_at(self, due: float, job: Job) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), job))

    def _work(self) -> None:
        for jobs in self._taken():
            try:
                self._deliver(jobs)
            except BaseException as error:
                self.violations.append(f"the story broke off: {error!r}")
                raise
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _taken(self) -> Iterator[list[Job]]:
        """The jobs that are due, a batch at a time, until all are done."""
        while True:
            with self._changed:
                while not self.violations and (not self._due or self._due[0][0] > time.monotonic()):
                    if not self._due and not self._running:
                        break
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self.violations or not self._due:
                    self._changed.notify_all()
                    return
                jobs = [heapq.heappop(self._due)[2]]
                while self._due and self._due[0][0] <= time.monotonic() and len(jobs) < self.chance.randint(1, self.sample.batch):
                    jobs.append(heapq.heappop(self._due)[2])
                self._running += 1
            yield jobs

    def _deliver(self, jobs: list[Job]) -> None:
        invocation = Invocation(self.sample.event(jobs))
        with self._changed:
            attempt = Attempt(jobs, invocation, self._planned(invocation, len(jobs)), now_ms())
            self.attempts.append(attempt)
        answer = self.function.run(invocation)
        attempt.is_disturbed = _is_stopped(answer) or (attempt.plan is not None and attempt.plan.is_met.is_set())
        if attempt.plan is not None and not attempt.plan.is_met.is_set():
            with self._changed:
                self._again.append(attempt.plan.mishap)  # the invocation made fewer requests
        for job, outcome in zip(jobs, self.sample.outcomes(jobs, answer), strict=True):
            self._note(attempt, job, outcome)

    def _planned(self, invocation: Invocation, jobs: int) -> Plan | None:
        if not (self._again or self._deck) or self.chance.random() > MISHAPS_RATE:
            return None
        if self._again:
            mishap, request = self._again.pop(), 1  # which every invocation makes
        else:
            # An order takes three requests: the claim, the charge and the completion; a duplicate, one.
            mishap, request = self._deck.pop(), self.chance.randint(1, 3 * jobs)
        then = partial(self._thaw_later, invocation) if mishap is Mishap.FROZEN else None
        return self.mishaps.plan(invocation, mishap, self._at_request or request, then)

    def _thaw_later(self, invocation: Invocation) -> None:
        """Let a frozen attempt go on after its lease has ended, a little before or after somebody takes over."""
        lease_seconds = self.function.settings.timeout_seconds + LEASE_MARGIN_MS / 1000
        environment = invocation.environment
        assert environment is not None
        Timer(lease_seconds + self.chance.uniform(0, 2), environment.thaw).start()

    def _note(self, attempt: Attempt, job: Job, outcome: Outcome) -> None:
        job.tries += 1
        stuck = self._stuck(attempt) if outcome.kind == "refused" else None
        with self._changed:
            self.outcomes[outcome.kind] += 1
            self.violations += [f"{key} was completed by two invocations" for _, key in self.mishaps.completed_twice]
            if stuck:
                self.violations.append(f"{job.name} was refused although {stuck}")
            if outcome.kind == "failed" and not attempt.is_disturbed:
                self.violations.append(f"{job.name} failed by itself: {outcome.told}")
            if outcome.kind == "done":
                self._told[job.name].add(json.dumps(outcome.told))
                if len(self._told[job.name]) > 1:
                    self.violations.append(f"{job.name} was answered differently: {self._told[job.name]}")
            elif job.tries == TRIES:
                self.violations.append(f"{job.name} has failed {TRIES} times, at last by {outcome}")
            else:
                delay = self.chance.uniform(0, 2.5) if outcome.kind == "failed" else self.chance.uniform(0.2, 1)
                self._deliver_at(time.monotonic() + delay, job)

    def _stuck(self, attempt: Attempt) -> str | None:
        latest_ms = now_ms() + int(self.function.settings.timeout_seconds * 1000) + LEASE_MARGIN_MS + LATENESS_MS
        return self.tables.stuck(self.mishaps.claimed_by(attempt.invocation), attempt.started_ms, latest_ms)

    def _look_at_the_tables(self) -> None:
        disturbed: Counter[str] = Counter()
        for attempt in self.attempts:
            disturbed.update({order for job in attempt.jobs for order in job.orders} if attempt.is_disturbed else ())
        expected = {order for attempt in self.attempts for job in attempt.jobs for order in job.orders}
        charges = self.tables.charges(expected)
        for order in sorted(expected):
            requests = charges[order]
            if len(requests) != 1:
                self.violations.append(f"{order} was charged {len(requests)} times")
            elif requests[0] > 1 + disturbed[order]:
                self.violations.append(f"{order} ran {requests[0]} times, with {disturbed[order]} disturbed attempts")
        self.violations += [f"{key} is still in progress" for key in self.tables.unfinished()]


def _is_stopped(answer: Answer) -> bool:
    return answer.error_type in {"Runtime.ExitError", "Sandbox.Timedout"}


@dataclass(frozen=True)
class Tables:
    """The tables of the functions, as template.yaml has them, and what is in them."""

    client: Any
    payments: str
    shared: str
    bookkeeping: str

    @property
    def variables(self) -> dict[str, str]:
        """What template.yaml gives to the functions."""
        return {"IDEMPOTENCY_TABLE": self.payments, "SHARED_TABLE": self.shared, "CHARGES_TABLE": self.bookkeeping}

    def charges(self, orders: Iterable[str]) -> dict[str, list[int]]:
        """For each order: for each of its charges, how many requests there were."""
        found: dict[str, list[int]] = {order: [] for order in orders}
        for item in self._items(self.bookkeeping):
            if item["order_id"]["S"] in found:
                found[item["order_id"]["S"]].append(int(item["requests"]["N"]))
        return found

    def records(self) -> dict[str, dict[str, Any]]:
        """All records of both tables, by their keys."""
        items = [*self._items(self.payments), *self._items(self.shared)]
        return {item["id"]["S"] + "/" + item.get("sort", {"S": ""})["S"]: item for item in items}

    def unfinished(self) -> list[str]:
        """The keys in progress."""
        return [key for key, item in self.records().items() if item["status"]["S"] == "INPROGRESS"]

    def stuck(self, records: Iterable[Record], since_ms: int, latest_ms: int) -> str | None:
        """Why none of these records, which were claimed in vain since then, may be in progress; None if they may.

        Its lease has ended before, or ends later than any lease may.
        """
        for table, key in records:
            item = self.client.get_item(TableName=table, Key=json.loads(key), ConsistentRead=True).get("Item")
            if item is None or item["status"]["S"] != "INPROGRESS":
                continue
            lease_end_ms = int(item["in_progress_expiration"]["N"])
            if not since_ms <= lease_end_ms <= latest_ms:
                return f"its lease ends at {lease_end_ms}, not between {since_ms} and {latest_ms}"
        return None

    def _items(self, table: str) -> list[dict[str, Any]]:
        pages = self.client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return [item for page in pages for item in page["Items"]]


def now_ms() -> int:
    """Now, by the clock that the functions have."""
    return time.time_ns() // 1_000_000  # noqa: TID251 - they run in processes of their own
