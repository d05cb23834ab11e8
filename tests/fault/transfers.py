"""Payments under random faults: each moves money, counts, and perhaps sells something, and must do so once.

Each payment is one idempotency key and a world of its own, as in `chaos.py`, but all of them share their accounts.  What is
checked is what a bank would check: its books.  A payment leaves an item that tells how often it was made, and by which attempts.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from doubles import LambdaContext
from engines.tables import create_table
from fault.chaos import INVOCATION_MS, LEASE_SECONDS, MARGIN_MS, TIMEOUT_MS, SharedClock, here
from fault.proxy import LATE, TRANSACT, Harm, Strike
from faults import PREFIX, Suspended, key_of, keyed

from idempotency import (
    BaseError,
    DynamoDBPersistenceLayer,
    IdempotencyLeaseLostError,
    apply_once,
    current_attempt,
    idempotent,
    idempotent_function,
    transaction,
)
from persistence._user_requests import low_level
from persistence.transaction import KINDS as ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fault.proxy import Answer, FaultProxy, Request
    from powertools_side import Library

    from persistence.background import Heartbeat

    Items = Mapping[str, dict[str, Any]]

ACCOUNTS: Final = 12
BALANCE: Final = 1_000_000
STOCK: Final = 1_000_000
#: More than any account ever has.
TOO_DEAR: Final = ACCOUNTS * BALANCE + 1
#: How many payments share an item that `apply_once` counts on; it holds a thousand.
PER_TALLY: Final = 200
#: No result expires during a story.
KEPT_SECONDS: Final = 100 * 24 * 3600
DELIVERIES_PER_PAYMENT: Final = 6
#: Among the deliveries of how many payments those of one are mixed.
SPREAD: Final = 5
#: How many deliveries deep the runs make further ones.
DEEPEST: Final = 2
#: After how many deliveries all accounts are read at once.
AUDIT_EVERY: Final = 10

#: What the proxy does, each with its probability; almost one request in four is struck.
RATES: Final = {
    Harm.LOSE_ANSWER: 0.03,
    Harm.LOSE_REQUEST: 0.02,
    Harm.CUT: 0.02,
    Harm.ERROR_AFTER: 0.02,
    Harm.ERROR_BEFORE: 0.01,
    Harm.THROTTLE: 0.02,
    Harm.DELAY: 0.03,
    Harm.HOLD: 0.002,
    Harm.HANG: 0.002,
    Harm.DUPLICATE: 0.03,
    Harm.CONFLICT: 0.03,
    Harm.IN_PROGRESS_AFTER: 0.03,
    Harm.IN_PROGRESS_BEFORE: 0.03,
}
#: What strikes every commit of a delivery, which notices after its client's timeout only; of a duplicate, only the first commit.
OUTAGES: Final = {
    None: 40,
    Harm.LOSE_ANSWER: 1,
    Harm.LOSE_REQUEST: 1,
    Harm.DELAY: 5,
    Harm.DUPLICATE: 5,
    Harm.CONFLICT: 1,
    Harm.THROTTLE: 1,
    Harm.IN_PROGRESS_AFTER: 1,
    Harm.IN_PROGRESS_BEFORE: 1,
}
#: After how many further requests a commit lands at the latest that is delayed by an outage: most land after it was given up.
LATEST: Final = 250
KINDS: Final = {"transfer": 5, "order": 4, "late order": 1, "too dear": 1}
FORMS: Final = {"function": 3, "handler": 3, "async function": 1, "async handler": 1}
MEANWHILE: Final = {"nothing": 5, "outlive": 4, "meet": 2, "renew": 2}
ENDS: Final = {"return": 8, "raise": 1, "crash": 1, "return what cannot be stored": 1}
#: The request of which a delivery dies, before it is sent or after it was answered; a call makes two to four, and repetitions.
DEATHS: Final = {None: 12, **{(number, is_sent): 1 for number in (1, 2, 3, 4) for is_sent in (False, True)}}
#: By how much a worker's clock differs from the others'.  Nothing here depends on it, so some are wrong by more than a lease.
SKEWS_MS: Final = {0: 4, -500: 2, 500: 2, -120_000: 1, 120_000: 1}
LATER_MS: Final = {0: 6, 500: 1, 20_000: 1, 61_001: 2}
#: What a run of another library meets: it does not raise after its writes, nor return what cannot be stored, nor is it refused.
FAIR: Final = {"kinds": {"transfer": 5, "order": 4}, "ends": {"return": 8, "crash": 1}, "forms": {"handler": 1}}
#: Nor does the network harm it that applies a write twice, or so late that another came first: no library could help that.
UNFAIR: Final = frozenset({Harm.DELAY, Harm.HOLD, Harm.DUPLICATE})

#: Few deliveries die or are refused, and most commits meet the worst that a network does: the shortest way to a broken store.
HARSH: Final = {
    "kinds": {"transfer": 1},
    "ends": {"return": 1},
    "deaths": {None: 1},
    "outages": {None: 2, Harm.DUPLICATE: 1, Harm.DELAY: 2, Harm.LOSE_ANSWER: 1},
}

NOTHING_WRITTEN: Final = "nothing of the transaction was written"


class AsToldError(Exception):
    """A run failed, as it was told to."""


@dataclass(frozen=True)
class Payment:
    """One key.  A transfer between two accounts; an order is paid so, too, and takes something out of the stock."""

    number: int
    kind: str
    source: int
    target: int
    amount: int

    @property
    def id(self) -> str:
        return f"payment {self.number}"

    @property
    def is_order(self) -> bool:
        return "order" in self.kind

    @property
    def stock(self) -> str:
        return "stock late" if self.kind == "late order" else "stock"

    @property
    def tally(self) -> str:
        return f"tally {self.number // PER_TALLY}"

    def writes(self, table: str, by: str) -> list[tuple[str, dict[str, Any]]]:
        """What the payment writes, by the name of the action and with boto3's arguments; *by* names the attempt.

        A transfer has no condition that would notice a second one.
        """

        def update(item: str, expression: str, condition: str | None = None, **values: Any) -> tuple[str, dict[str, Any]]:
            values = {":one": 1, **{f":{name}": value for name, value in values.items()}}
            request = {"TableName": table, "Key": {"id": item}, "UpdateExpression": expression}
            given = {} if condition is None else {"ConditionExpression": condition}
            return "update", {**request, **given, "ExpressionAttributeValues": values}

        def put(item: str, **condition: str) -> tuple[str, dict[str, Any]]:
            return "put", {"TableName": table, "Item": {"id": item, "made_by": by}, **condition}

        order = [
            put(f"order {self.number}", ConditionExpression="attribute_not_exists(id)"),
            update(self.stock, "SET quantity = quantity - :one ADD sold :one", "quantity >= :one"),
        ]
        transfer = [
            update(
                f"account {self.source}",
                "SET balance = balance - :amount ADD paid :one",
                "balance >= :amount",
                amount=self.amount,
            ),
            update(f"account {self.target}", "SET balance = balance + :amount ADD received :one", amount=self.amount),
            update(self.id, "ADD times :one, made_by :by", by={by}),
        ]
        return [*order, *transfer, put(f"outbox {self.number}")] if self.is_order else transfer


def payments(seed: int, count: int, kinds: Mapping[str, int] = KINDS) -> list[Payment]:
    chance = random.Random(f"payments {seed}")
    made = []
    for number in range(count):
        source, target = chance.sample(range(ACCOUNTS), 2)
        kind = _drawn(chance, kinds)
        made.append(Payment(number, kind, source, target, TOO_DEAR if kind == "too dear" else chance.randint(1, 100)))
    return made


class Bank:
    """The table of accounts, stocks and what payments leave; read and filled past every fault."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.table = create_table(client)
        accounts = [{"id": f"account {number}", "balance": BALANCE} for number in range(ACCOUNTS)]
        self._put(*accounts, {"id": "stock", "quantity": STOCK}, {"id": "stock late", "quantity": 0})

    def restock(self) -> None:
        """From now on the late orders can be made."""
        self._put({"id": "stock late", "quantity": STOCK})

    def _put(self, *items: dict[str, Any]) -> None:
        puts = [{"PutRequest": {"Item": TypeSerializer().serialize(item)["M"]}} for item in items]
        self.client.batch_write_item(RequestItems={self.table: puts})

    def money(self) -> int:
        """What all accounts have, at one instant."""
        found = self.read(*[(self.table, f"account {number}") for number in range(ACCOUNTS)])
        return sum(item["balance"] for item in found)

    def read(self, *places: tuple[str, str]) -> list[dict[str, Any]]:
        """Items by table and id, at one instant; {} for one that is not there."""
        gets = [{"Get": {"TableName": table, "Key": {"id": {"S": item}}}} for table, item in places]
        return [_plain(found.get("Item", {})) for found in self.client.transact_get_items(TransactItems=gets)["Responses"]]

    def items(self) -> dict[str, dict[str, Any]]:
        pages = self.client.get_paginator("scan").paginate(TableName=self.table, ConsistentRead=True)
        return {item["id"]["S"]: _plain(item) for page in pages for item in page["Items"]}


def doubles(items: Items) -> int:
    """How often a payment was made that had been made before."""
    return sum(max(0, item["times"] - 1) for name, item in items.items() if name.startswith("payment "))


def errors_in_the_books(items: Items, made: Iterable[Payment]) -> Iterator[str]:
    """What is not as it must be where exactly these payments were made, once each."""
    made = list(made)

    def expect(what: str, found: object, expected: object) -> Iterator[str]:
        if found != expected:
            yield f"{what}: {found}, and not {expected}"

    def named(prefix: str) -> set[str]:
        return {name for name in items if name.startswith(f"{prefix} ")}

    accounts = [items[f"account {number}"] for number in range(ACCOUNTS)]
    yield from expect("money", sum(account["balance"] for account in accounts), ACCOUNTS * BALANCE)
    for number, account in enumerate(accounts):
        paid, received = ([each for each in made if getattr(each, side) == number] for side in ("source", "target"))
        balance = BALANCE - sum(each.amount for each in paid) + sum(each.amount for each in received)
        yield from expect(f"balance of account {number}", account["balance"], balance)
        yield from expect(f"paid by account {number}", account.get("paid", 0), len(paid))
        yield from expect(f"received by account {number}", account.get("received", 0), len(received))
    orders = [each for each in made if each.is_order]
    for stock in ("stock", "stock late"):
        sold = items[stock].get("sold", 0)
        yield from expect(f"sold of {stock}", sold, sum(each.stock == stock for each in orders))
        yield from expect(f"missing in {stock}", -items[stock]["quantity"] % STOCK, sold)
    yield from expect("payments", named("payment"), {each.id for each in made})
    yield from expect("orders", named("order"), {f"order {each.number}" for each in orders})
    yield from expect("outbox", named("outbox"), {f"outbox {each.number}" for each in orders})
    for each in made:
        payment = items.get(each.id, {})
        yield from expect(f"{each.id} was made", payment.get("times"), 1)
        for row in (f"order {each.number}", f"outbox {each.number}") if each.is_order else ():
            yield from expect(f"{row} by", {items.get(row, {}).get("made_by")}, payment.get("made_by"))


def errors_in_the_tallies(items: Items, seen: Iterable[Payment]) -> Iterator[str]:
    """What is not as it must be where exactly these payments were counted by `apply_once`."""
    expected = Counter(each.tally for each in seen)
    found = {name: (item["applied"], len(item["applied_changes"])) for name, item in items.items() if name.startswith("tally ")}
    if found != {name: (count, count) for name, count in expected.items()}:
        yield f"counted by apply_once, and remembered: {found}, and not {dict(expected)}"


#: The methods of a client that are requests of a worker.
REQUESTS: Final = frozenset({"put_item", "get_item", "update_item", "delete_item", "transact_write_items"})
#: Whether this thread renews leases, which is nobody's request in particular.
beating: ContextVar[bool] = ContextVar("beating", default=False)


class Mortal:
    """A worker's client.  The worker dies at the *dies*-th request, before it is sent or after it was answered."""

    def __init__(self, client: Any, dies: tuple[int, bool] | None) -> None:
        self._client, self._dies, self._requests = client, dies, 0
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in REQUESTS or self._dies is None:
            return method
        number, is_sent = self._dies

        def request(**arguments: Any) -> Any:
            if beating.get():
                return method(**arguments)
            self._requests += 1
            if self._requests < number:
                return method(**arguments)
            try:
                if not self.is_dead and is_sent:
                    method(**arguments)
            finally:
                self.is_dead = True
                raise Suspended

        return request


@dataclass(frozen=True)
class Delivery:
    """One delivery of a payment, and what happens to it."""

    payment: Payment
    name: str
    form: str
    meanwhile: str
    end: str
    outage: Harm | None
    dies: tuple[int, bool] | None
    skew_ms: int
    later_ms: int
    depth: int = 0

    @property
    def is_renewed(self) -> bool:
        return self.form.endswith("function")

    def __str__(self) -> str:
        outage = "" if self.outage is None else f", every commit {self.outage.name}"
        dies = "" if self.dies is None else f", dies {'after' if self.dies[1] else 'before'} request {self.dies[0]}"
        deeds = f"{self.meanwhile}, {self.end}{outage}{dies}"
        return f"{self.name} ({self.payment.kind}, {self.form}: {deeds}, {self.skew_ms} ms off)"


@dataclass(eq=False)
class World:
    """One payment's clock, and what was seen of it."""

    payment: Payment
    clock: SharedClock = field(default_factory=SharedClock)
    at_work: int = 0
    lines: list[str] = field(default_factory=list)
    last: str = ""

    def note(self, what: str) -> None:
        self.lines.append(f"{self.clock() - SharedClock().now_ms:>9} ms  {what}")


class Story:
    """*attempts* deliveries, six for each payment, and what their runs deliver besides.  `play`, then `settle`, then `report`.

    A subclass says how a library is used.  A seed decides the harms and the deeds; threads decide who comes first.
    """

    weights: Mapping[str, Mapping[Any, int]] = {}
    rates: Mapping[Harm, float] = RATES

    def __init__(
        self,
        bank: Bank,
        records: str,
        client: Any,
        proxy: FaultProxy,
        *,
        seed: int,
        attempts: int,
        weights: Mapping[str, Mapping[Any, int]] | None = None,
        threads: int = 8,
    ) -> None:
        self.seed, self.bank, self.records = seed, bank, records
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.weights = weights or self.weights
        self._client, self._proxy = client, proxy
        self._attempts, self._threads = attempts, threads
        count = -(-attempts // DELIVERIES_PER_PAYMENT)
        self.payments = payments(seed, count, self.weights.get("kinds", KINDS))
        self.worlds = [World(payment) for payment in self.payments]
        self._by_key = {key_of(payment.id): world for payment, world in zip(self.payments, self.worlds, strict=True)}
        self._lock = Lock()
        proxy.watch, proxy.judge = self._watch, self._judge
        proxy.harm_by_chance(random.Random(seed), self.rates)

    def play(self) -> None:
        """Make every delivery, those of a payment near each other, and stop at the first violation."""
        with ThreadPoolExecutor(self._threads) as pool:
            for future in [pool.submit(self.deliver, delivery) for delivery in self._deliveries()]:
                future.result()

    def settle(self) -> None:
        """After the last fault, each payment is delivered until it succeeds, or is known to be refused for good."""
        self.calm()
        self.bank.restock()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._settle, self.worlds))

    def calm(self) -> None:
        """Strike no more, and let all land that is still on its way."""
        self._proxy.heal()
        self._proxy.release()

    def deliver(self, delivery: Delivery) -> None:
        if self.violations:
            return
        world = self.worlds[delivery.payment.number]
        with world.clock.lock:
            if not world.at_work:  # or every delivery would find its lease over
                world.clock.advance(ms=delivery.later_ms)
            world.at_work += 1
        try:
            self._make(delivery)
        finally:
            with world.clock.lock:
                world.at_work -= 1
        if sum(self.outcomes.values()) % AUDIT_EVERY == 0:
            self.audit()

    def audit(self) -> None:
        """What must hold at any instant."""

    def report(self) -> str:
        """What was played, and the story of each payment that was violated."""
        harms = {harm.name: times for harm, times in self._proxy.struck.items()}
        named = [world for world in self.worlds if any(f"{world.payment.id}:" in violation for violation in self.violations)]
        return "\n".join(
            [
                f"seed {self.seed}",
                f"{self.outcomes.total()} deliveries of {len(self.payments)} payments, {dict(self.outcomes)}",
                f"{self._proxy.calls.total()} requests {dict(self._proxy.calls)}, harmed: {harms}",
                *self.violations,
                *[line for world in named for line in (f"{world.payment.id}:", *world.lines)],
            ]
        )

    def found(self, violation: str) -> None:
        with self._lock:
            self.violations.append(f"after {self.outcomes.total()} deliveries, {violation}")

    def prepared(self, delivery: Delivery, client: Mortal) -> Callable[[], Any]:
        """The delivery, ready to be made."""
        raise NotImplementedError

    def left(self, delivery: Delivery, client: Mortal, result: Any, error: BaseException | None) -> None:
        """A delivery ended with a result or an error."""

    def token_of(self, request: Request) -> str:
        """Which attempt a request is of, as far as it tells."""
        return ""

    def meanwhile(self, delivery: Delivery, beyond_ms: int, beat: Callable[[], object] | None) -> None:
        """Time passes during a run, and another delivery comes: within the lease, or after it."""
        world = self.worlds[delivery.payment.number]
        match delivery.meanwhile:
            case "nothing":
                return
            case "outlive":
                world.clock.advance_beyond(beyond_ms)
            case "renew" if beat is not None:
                for _ in range(3):
                    world.clock.advance(seconds=25)
                    beat()
                world.clock.advance(seconds=15)
            case "renew":
                world.clock.advance(seconds=10)
        self.deliver(self._delivery(delivery.payment, f"{delivery.name}.0", delivery.depth + 1))

    def _make(self, delivery: Delivery) -> None:
        world = self.worlds[delivery.payment.number]
        here.set(world.clock)
        world.note(f"{delivery} comes")
        client = Mortal(self._client, delivery.dies)
        result, error = None, None
        try:
            result = self.prepared(delivery, client)()
        except (Exception, Suspended) as raised:
            error = raised
        told = repr(result) if error is None else f"{type(error).__name__}: {error}"
        world.note(f"{delivery.name} gets {told}")
        with self._lock:
            self.outcomes["result" if error is None else type(error).__name__] += 1
        world.last = "result" if error is None else told
        self.left(delivery, client, result, error)

    def _settle(self, world: World) -> None:
        for number in range(2):
            world.clock.advance(ms=1000 * LEASE_SECONDS + MARGIN_MS + 2 * max(SKEWS_MS) + 1)
            calm = {"meanwhile": "nothing", "end": "return", "outage": None, "dies": None, "skew_ms": 0}
            self._make(self._delivery(world.payment, f"{world.payment.number}.end.{number}", **calm))

    def _delivery(self, payment: Payment, name: str, depth: int = 0, **fixed: Any) -> Delivery:
        """What the seed makes of the name."""
        chance = random.Random(f"{self.seed} {name}")
        weights = self.weights
        deeds = {
            "form": _drawn(chance, weights.get("forms", FORMS)),
            "meanwhile": _drawn(chance, MEANWHILE) if depth < DEEPEST else "nothing",
            "end": _drawn(chance, weights.get("ends", ENDS)),
            "outage": _drawn(chance, weights.get("outages", OUTAGES)),
            "dies": _drawn(chance, weights.get("deaths", DEATHS)),
            "skew_ms": _drawn(chance, SKEWS_MS),
            "later_ms": _drawn(chance, LATER_MS) if depth == 0 else 0,
        }
        return Delivery(payment=payment, name=name, depth=depth, **{**deeds, **fixed})

    def _deliveries(self) -> list[Delivery]:
        chance = random.Random(self.seed)
        made = [
            self._delivery(payment, f"{payment.number}.{number}")
            for payment in self.payments
            for number in range(DELIVERIES_PER_PAYMENT)
        ]
        places = {delivery.name: delivery.payment.number + SPREAD * chance.random() for delivery in made}
        return sorted(made, key=lambda delivery: places[delivery.name])[: self._attempts]

    def _judge(self, request: Request) -> Strike | None:
        return None

    def _watch(self, request: Request, harm: Harm | None, answer: Answer | None) -> None:
        """Note a request in its payment's story.  One whose client gives up takes as long as that waits."""
        world = self._by_key.get(_record_key(request))
        if world is None:
            return
        became = "kept from the table" if answer is None else f"answered {answer.status}"
        struck = "" if harm is None else f", {harm.name}"
        world.note(f"  {request.operation} {request.number} of {self.token_of(request)[:6]}: {became}{struck}")
        if harm is Harm.HANG or (harm is Harm.HOLD and answer is None):
            world.clock.advance(ms=TIMEOUT_MS)


class OurStory(Story):
    """This library: the writes are committed with the record, by a store of *kind*."""

    def __init__(
        self,
        *arguments: Any,
        heartbeat: Heartbeat,
        kind: type[DynamoDBPersistenceLayer] = DynamoDBPersistenceLayer,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._kind, self._heartbeat, self._beating = kind, heartbeat, Lock()
        self._config = keyed(lease_seconds=LEASE_SECONDS, expires_after_seconds=KEPT_SECONDS)
        self._tokens: dict[str, str] = {}
        self._outages: dict[str, Harm] = {}
        #: By token: the delivery that was told that nothing of the attempt was written.
        self.told_nothing: dict[str, str] = {}
        self._granted: set[str] = set()
        #: Attempts whose claim was written once more, by a copy that came when the record had been deleted.  A copy of their
        #: commit that comes after that is applied, whatever its caller was told.
        self.revived: set[str] = set()
        self.wrongly_told: set[str] = set()
        #: Payments whose last delivery was told that nothing was written, and of which nothing is.
        self.left_without = 0

    def prepared(self, delivery: Delivery, client: Mortal) -> Callable[[], Any]:
        clock = self.worlds[delivery.payment.number].clock
        store = self._kind(self.records, boto3_client=client)
        store.clock_ms, store.sleep_ms = lambda: clock() + delivery.skew_ms, clock.sleep_ms
        options: dict[str, Any] = {"persistence_store": store, "key_prefix": PREFIX, "config": self._config}
        event = {"id": delivery.payment.id}

        def run(event: Any, context: Any = None) -> Any:
            return self._run(delivery, client)

        async def arun(event: Any, context: Any = None) -> Any:
            return await asyncio.to_thread(self._run, delivery, client)

        body = arun if delivery.form.startswith("async") else run
        if delivery.is_renewed:
            call = partial(idempotent_function(body, data_keyword_argument="event", **options), event=event)
        else:
            context = LambdaContext(INVOCATION_MS, f"request {delivery.name}", clock)
            call = partial(idempotent(body, **options), event, context)
        return (lambda: asyncio.run(call())) if delivery.form.startswith("async") else call

    def left(self, delivery: Delivery, client: Mortal, result: Any, error: BaseException | None) -> None:
        payment, token = delivery.payment, self._tokens.get(delivery.name, "")
        if error is not None and not isinstance(error, (AsToldError, BaseError, Suspended)):
            raise error
        if error is not None and token and not client.is_dead and _says_nothing_is_written(error):
            self.told_nothing[token] = delivery.name
        effect = self.look(payment)
        if error is None and effect.get("made_by") != {result["by"]}:
            self.found(f"{payment.id}: {delivery.name} gets {result}, and found is {effect}")

    def look(self, payment: Payment) -> dict[str, Any]:
        """The payment's effect.  At any instant there is one if, and only if, its record is completed, and by whom."""
        record, effect = self.bank.read((self.records, key_of(payment.id)), (self.bank.table, payment.id))
        made_by = {record.get("owner_token", "nobody")} if record.get("status") == "COMPLETED" else None
        if (effect.get("times"), effect.get("made_by")) != (made_by and 1, made_by):
            self.found(f"{payment.id}: its record is {record}, and its effect {effect}")
        for token in effect.get("made_by", set()) & self.told_nothing.keys():
            if token in self.revived:
                self.wrongly_told.add(token)
                continue
            self.found(f"{payment.id}: {self.told_nothing[token]} was told that nothing will be written, and found is {effect}")
        return effect

    def audit(self) -> None:
        money = self.bank.money()
        if money != ACCOUNTS * BALANCE:
            self.found(f"all accounts have {money}")

    def report(self) -> str:
        told = f"{len(self.told_nothing)} attempts were told that nothing will be written, {len(self.wrongly_told)} wrongly"
        return f"{told}, and {self.left_without} payments were left so\n{super().report()}"

    def settle(self) -> None:
        self.calm()
        for world in self.worlds:
            effect = self.look(world.payment)
            self.left_without += not effect and NOTHING_WRITTEN in world.last
        super().settle()
        for world in self.worlds:
            self.look(world.payment)
            is_made = world.last == "result"
            if is_made is (world.payment.kind == "too dear"):
                self.found(f"{world.payment.id}: in the end, its caller gets {world.last}")
        items = self.bank.items()
        for error in errors_in_the_books(items, [each for each in self.payments if each.kind != "too dear"]):
            self.found(error)
        for error in errors_in_the_tallies(items, self.payments):
            self.found(error)

    def token_of(self, request: Request) -> str:
        parameters = request.parameters
        if request.operation == TRANSACT:
            parameters = parameters["TransactItems"][0]["Update"]
        token = parameters.get("Item", {}).get("owner_token") or parameters.get("ExpressionAttributeValues", {}).get(
            ":owner_token"
        )
        return token["S"] if token else ""

    def _run(self, delivery: Delivery, client: Mortal) -> Any:
        attempt = current_attempt()
        token = self._tokens[delivery.name] = attempt.owner_token
        if delivery.outage is not None:
            self._outages[token] = delivery.outage
        writes = delivery.payment.writes(self.bank.table, token)
        for method, request in writes[:2]:
            getattr(transaction(), method)(**request)
        self.meanwhile(delivery, attempt.lease_end_ms or 0, self._beat if delivery.is_renewed else None)
        apply_once(
            client,
            TableName=self.bank.table,
            Key={"id": delivery.payment.tally},
            UpdateExpression="ADD applied :one",
            ExpressionAttributeValues={":one": 1},
        )
        for method, request in writes[2:]:
            getattr(transaction(), method)(**request)
        match delivery.end:
            case "raise":
                raise AsToldError
            case "crash":
                raise Suspended
            case "return what cannot be stored":
                return object()
        return {"payment": delivery.payment.number, "by": token}

    def _beat(self) -> None:
        with self._beating:  # as in one thread
            token = beating.set(True)
            try:
                self._heartbeat.beat()
            finally:
                beating.reset(token)

    def _judge(self, request: Request) -> Strike | None:
        if request.operation != TRANSACT:
            return None
        token = self.token_of(request)
        harm = self._outages.get(token)
        if harm is Harm.DELAY:
            self._outages[token] = Harm.LOSE_REQUEST  # one copy of it is on its way; the others would only overtake it
        if harm is Harm.DUPLICATE:
            del self._outages[token]
        return None if harm is None else Strike(harm, held_for=1 + 37 * request.number % LATEST, action=request.number)

    def _watch(self, request: Request, harm: Harm | None, answer: Answer | None) -> None:
        super()._watch(request, harm, answer)
        token = self.token_of(request)
        if request.operation == TRANSACT and token in self._outages:
            self._by_key[_record_key(request)].clock.advance(ms=TIMEOUT_MS)
        if answer is None or answer.status != 200:
            return
        match request.operation:
            case "PutItem" if token in self._granted:
                self.revived.add(token)
            case "PutItem":
                self._granted.add(token)
            case "TransactWriteItems" if harm in LATE:
                self.look(self._by_key[_record_key(request)].payment)


class PeerStory(Story):
    """Powertools: the function writes by itself, then the record is completed.

    *is_atomic*: whether it writes by one TransactWriteItems, or by one request after the other.
    """

    weights = FAIR
    rates = {harm: rate for harm, rate in RATES.items() if harm not in UNFAIR}  # noqa: RUF012 - nobody changes it

    def __init__(self, *arguments: Any, library: Callable[[str, Any], Library], is_atomic: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._library, self._is_atomic = library, is_atomic

    def prepared(self, delivery: Delivery, client: Mortal) -> Callable[[], Any]:
        clock = self.worlds[delivery.payment.number].clock

        def run(event: Any, context: Any) -> Any:
            return self._run(delivery, client)

        handler = self._library(self.records, client).decorate(run, expires_after_seconds=KEPT_SECONDS)
        context = LambdaContext(INVOCATION_MS, f"request {delivery.name}", clock)
        return lambda: handler({"id": delivery.payment.id}, context)

    def _run(self, delivery: Delivery, client: Mortal) -> Any:
        self.meanwhile(delivery, here.get()() + INVOCATION_MS, None)
        writes = delivery.payment.writes(self.bank.table, delivery.name)
        if self._is_atomic:
            client.transact_write_items(TransactItems=[{ACTIONS[method]: low_level(request)} for method, request in writes])
        else:
            for method, request in writes:
                getattr(client, f"{method}_item")(**low_level(request))
        if delivery.end == "crash":
            raise Suspended
        return {"payment": delivery.payment.number, "by": delivery.name}


# Stores that are broken on purpose


class _Altered:
    """A client that sends another commit, or another release, than the store asks for."""

    def __init__(self, client: Any, **altered: Callable[..., Any]) -> None:
        self._client, self._altered = client, altered

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        altered = self._altered.get(name)
        return method if altered is None else lambda **request: altered(method, request, self._client)


class _Broken(DynamoDBPersistenceLayer):
    altered: ClassVar[Mapping[str, Callable[..., Any]]]

    def __init__(self, table_name: str, boto3_client: Any) -> None:
        super().__init__(table_name, boto3_client=_Altered(boto3_client, **self.altered))


UNFINISHED: Final = " AND #status = :inprogress"


def _without_unfinished(request: dict[str, Any]) -> dict[str, Any]:
    assert UNFINISHED in request["ConditionExpression"]
    condition = request["ConditionExpression"].replace(UNFINISHED, "")
    values = {name: value for name, value in request["ExpressionAttributeValues"].items() if name != ":inprogress"}
    return {**request, "ConditionExpression": condition, "ExpressionAttributeValues": values}


def _commit_with(method: Callable[..., Any], request: dict[str, Any], own: dict[str, Any]) -> Any:
    return method(**{**request, "TransactItems": [{"Update": own}, *request["TransactItems"][1:]]})


def _commit_by_token_alone(method: Callable[..., Any], request: dict[str, Any], _client: Any) -> Any:
    return _commit_with(method, request, _without_unfinished(request["TransactItems"][0]["Update"]))


def _commit_absent_too(method: Callable[..., Any], request: dict[str, Any], _client: Any) -> Any:
    own = request["TransactItems"][0]["Update"]
    names = {**own["ExpressionAttributeNames"], "#id": "id"}
    condition = f"attribute_not_exists(#id) OR ({own['ConditionExpression']})"
    update = f"{own['UpdateExpression']}, #owner_token = :owner_token"
    altered = {"ConditionExpression": condition, "ExpressionAttributeNames": names, "UpdateExpression": update}
    return _commit_with(method, request, {**own, **altered})


def _commit_separately(method: Callable[..., Any], request: dict[str, Any], client: Any) -> Any:
    own, *writes = request["TransactItems"]
    method(TransactItems=writes, ClientRequestToken=request["ClientRequestToken"])
    return client.update_item(**own["Update"])


def _release_completed(method: Callable[..., Any], request: dict[str, Any], _client: Any) -> Any:
    request = {**request, "ExpressionAttributeNames": {"#owner_token": "owner_token"}}
    return method(**_without_unfinished(request))


class CommitsByTheTokenAlone(_Broken):
    """A commit that comes again when DynamoDB has forgotten it is applied again."""

    altered: ClassVar = {"transact_write_items": _commit_by_token_alone}


class CommitsWithoutARecord(_Broken):
    """A commit that is late is applied after its caller was told that it never would be."""

    altered: ClassVar = {"transact_write_items": _commit_absent_too}


class CommitsSeparately(_Broken):
    """First the writes, then the record."""

    altered: ClassVar = {"transact_write_items": _commit_separately}


class ReleasesWhatIsCompleted(_Broken):
    """A commit whose answers are lost is taken for one that failed."""

    altered: ClassVar = {"delete_item": _release_completed}


BROKEN: Final = [CommitsByTheTokenAlone, CommitsWithoutARecord, CommitsSeparately, ReleasesWhatIsCompleted]


def _says_nothing_is_written(error: BaseException) -> bool:
    """Whether an attempt's caller may rely on it that its transaction was not, and will not be, written."""
    if isinstance(error, (AsToldError, Suspended)):
        return True
    if isinstance(error, IdempotencyLeaseLostError):
        return "Nothing of its transaction was written" in str(error)
    return NOTHING_WRITTEN in str(error)


def _record_key(request: Request) -> str:
    """The id of the record that a request is about; that of another item, if it is about none."""
    parameters = request.parameters
    if request.operation == TRANSACT:
        [parameters] = parameters["TransactItems"][0].values()
    item = parameters.get("Item") or parameters["Key"]
    key: str = item["id"]["S"]
    return key


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = TypeDeserializer().deserialize({"M": item})
    return {name: int(value) if hasattr(value, "as_tuple") else value for name, value in plain.items()}


def _drawn(chance: random.Random, weights: Mapping[Any, int]) -> Any:
    return chance.choices(list(weights), list(weights.values()))[0]
