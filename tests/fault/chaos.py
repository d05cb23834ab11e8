"""Many attempts at many keys, in threads and on event loops, while a proxy harms what they send.

Each key is a world of its own: its time passes when an attempt at it sleeps, is delayed, or is told to outlive its lease.  So one
key's attempts race with each other, and not with another key's clock.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock, RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from doubles import FakeClock, LambdaContext
from fault.history import History
from fault.proxy import SLOW, Harm
from faults import PREFIX, Suspended, key_of, keyed

from idempotency import BaseError, current_attempt, idempotent, idempotent_function
from persistence.scope import call_deadline_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fault import proxy as dynamodb
    from fault import resp_proxy as cache
    from stores import Peek

    from idempotency import Attempt
    from persistence.background import Heartbeat
    from persistence.base import BasePersistenceLayer

    Proxy = dynamodb.FaultProxy | cache.RespProxy
    Request = dynamodb.Request | cache.Request
    Answer = dynamodb.Answer | cache.Answer

LEASE_SECONDS: Final = 60
#: How much later than that a lease ends in its record.
MARGIN_MS: Final = 1_000
INVOCATION_MS: Final = 30_000
#: No result expires during a story: at most a minute or two pass with each attempt.
KEPT_SECONDS: Final = 10 * 24 * 3600
ATTEMPTS_PER_KEY: Final = 10

#: What the proxy does, each with its probability; about one request in five is struck.
RATES: Final = {
    Harm.LOSE_ANSWER: 0.04,
    Harm.LOSE_REQUEST: 0.03,
    Harm.CUT: 0.02,
    Harm.ERROR_AFTER: 0.03,
    Harm.ERROR_BEFORE: 0.02,
    Harm.THROTTLE: 0.03,
    Harm.DELAY: 0.04,
    Harm.HOLD: 0.003,
    Harm.HANG: 0.003,
}
#: How long a client waits for an answer, by the fake clock: the read timeout of a client that the library makes.
TIMEOUT_MS: Final = 2_000

#: Among the calls of how many keys those of one are mixed: few enough that they meet, enough that some come alone.
SPREAD: Final = 6

#: What happens during a run, how it ends, and how much later than the one before a call comes; each with its weight.
MEANWHILE: Final = {"nothing": 3, "outlive": 4, "meet": 2, "renew": 2}
ENDS: Final = {"return": 4, "raise": 3, "crash": 2}
#: How many calls deep the runs deliver further ones: enough for three generations.
DEEPEST: Final = 2
LATER_MS: Final = {0: 6, 500: 1, 5_000: 1, 20_000: 1, 61_001: 2}
FORMS: Final = {"function": 3, "handler": 3, "waiting handler": 1, "async function": 2, "async handler": 2}


@dataclass
class SharedClock(FakeClock):
    """A fake clock that threads may move at once."""

    lock: RLock = field(default_factory=RLock)

    def advance(self, *, ms: int = 0, seconds: int = 0) -> None:
        with self.lock:
            super().advance(ms=ms, seconds=seconds)

    def sleep_ms(self, ms: float) -> None:
        self.advance(ms=round(ms))

    def advance_beyond(self, now_ms: int) -> None:
        with self.lock:
            self.now_ms = max(self.now_ms, now_ms + 1)


#: The clock of the key that this thread or task is busy with.
here: ContextVar[SharedClock] = ContextVar("here")


def sdk_sleep(seconds: float) -> None:
    """In place of the pauses that the SDK makes between its own retries."""
    here.get(SharedClock()).sleep_ms(1000 * seconds)


#: The module `time`, as far as the SDK's endpoint uses it.
SDK_TIME: Final = SimpleNamespace(sleep=sdk_sleep)


@dataclass(frozen=True)
class Call:
    """One delivery: what it is called, in which form it comes, and what its run does, if it runs."""

    job: Job
    name: str
    form: str
    meanwhile: str
    end: str
    request_id: str
    later_ms: int
    depth: int = 0

    @property
    def is_async(self) -> bool:
        return self.form.startswith("async")

    @property
    def is_renewed(self) -> bool:
        """Whether it knows no deadline, so that the heartbeat renews its lease."""
        return self.form.endswith("function")

    def __str__(self) -> str:
        return f"{self.name} ({self.form}, {self.request_id}: {self.meanwhile}, {self.end})"


@dataclass(eq=False)
class Job:
    """One key, with the clock and the history of its world."""

    number: int
    key: str
    clock: SharedClock
    history: History
    forms: dict[str, Callable[..., Any]]
    at_work: Counter[str] = field(default_factory=Counter)


class Chaos:
    """*attempts* deliveries, ten for each key, and what their runs deliver besides.  `play`, then `settle`, then `report`.

    Args:
        new_store: Makes a store whose clock and sleep are then set; one for each key.
        proxy: What the stores' client speaks through.
        peek: Reads the raw record of a key, past the proxy.
        heartbeat: The one that the library uses here, which beats when told.
        seed: Decides the harms and the deeds.  Threads decide who comes first, so a seed does not decide all.
        attempts: How many deliveries are made.
        threads: How many are made at once.
        rates: What the proxy does, each with its probability.
    """

    def __init__(
        self,
        new_store: Callable[[], BasePersistenceLayer],
        proxy: Proxy,
        peek: Peek,
        heartbeat: Heartbeat,
        *,
        seed: int,
        attempts: int,
        threads: int = 8,
        rates: Mapping[Harm, float] = RATES,
    ) -> None:
        self.seed, self._attempts, self._threads = seed, attempts, threads
        self._proxy, self._peek, self._heartbeat = proxy, peek, heartbeat
        self._beating = Lock()
        self._timed_out: list[Request] = []
        self.jobs = [self._job(number, new_store()) for number in range(-(-attempts // ATTEMPTS_PER_KEY))]
        self._by_key = {key_of(job.key): job for job in self.jobs}
        proxy.watch = self._watch
        proxy.harm_by_chance(random.Random(seed), rates)

    def play(self) -> None:
        """Deliver every call, those of a key near each other, and stop at the first violation."""
        with ThreadPoolExecutor(self._threads) as pool:
            for future in [pool.submit(self.deliver, *calls) for calls in self._deliveries()]:
                future.result()

    def settle(self) -> None:
        """After the last fault, the last held request and the last lease, each key gives one result: none is stuck."""
        self._proxy.heal()
        self._proxy.release()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._settle, self.jobs))

    @property
    def violations(self) -> list[str]:
        return [f"{job.key}: {violation}" for job in self.jobs for violation in job.history.violations]

    def report(self) -> str:
        """What was played, and the history of each key that was violated."""
        outcomes = sum((job.history.outcomes for job in self.jobs), Counter())
        runs = sum(len(job.history.runs) for job in self.jobs)
        late = sum(job.history.late_runs for job in self.jobs)
        harms = {harm.name: times for harm, times in self._proxy.struck.items()}
        return "\n".join(
            [
                f"seed {self.seed}",
                f"{outcomes.total()} calls of {len(self.jobs)} keys, {runs} runs ({late} late), {dict(outcomes)}",
                f"{self._proxy.calls.total()} requests, {self._proxy.repetitions} of them repeated by the SDK, harmed: {harms}",
                *[job.history.report() for job in self.jobs if job.history.violations],
            ]
        )

    def deliver(self, *calls: Call) -> None:
        """One call, or several on one event loop."""
        if self.violations:
            return
        job = calls[0].job
        with job.clock.lock:
            if not job.at_work.total():  # or every call would find its lease over
                job.clock.advance(ms=calls[0].later_ms)
            job.at_work[calls[0].name] += 1
        try:
            if len(calls) > 1 or calls[0].is_async:
                asyncio.run(self._gather(calls))
            else:
                self._make(calls[0])
        finally:
            del job.at_work[calls[0].name]

    def _job(self, number: int, store: BasePersistenceLayer) -> Job:
        clock = SharedClock()
        store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
        config = keyed(lease_seconds=LEASE_SECONDS, expires_after_seconds=KEPT_SECONDS)
        waiting = keyed(wait_for_in_progress_seconds=5, expires_after_seconds=KEPT_SECONDS)
        options: dict[str, Any] = {"persistence_store": store, "key_prefix": PREFIX}

        def run(event: Any, context: Any = None) -> str:
            return self._run(event["call"])

        async def arun(event: Any, context: Any = None) -> str:
            return await asyncio.to_thread(self._run, event["call"])

        forms: dict[str, Callable[..., Any]] = {
            "function": idempotent_function(run, data_keyword_argument="event", config=config, **options),
            "handler": idempotent(run, config=config, **options),
            "waiting handler": idempotent(run, config=waiting, **options),
            "async function": idempotent_function(arun, data_keyword_argument="event", config=config, **options),
            "async handler": idempotent(arun, config=config, **options),
        }
        key = f"key-{number}"
        return Job(number, key, clock, History(key, clock), forms)

    def _call(self, job: Job, name: str, depth: int = 0, **fixed: Any) -> Call:
        """What the seed makes of the name."""
        chance = random.Random(f"{self.seed} {name}")

        def drawn(weights: dict[Any, int]) -> Any:
            return chance.choices(list(weights), list(weights.values()))[0]

        # A queue redelivers under a new request id; an asynchronous invocation is repeated under the same one.
        request_id = f"request of {job.key}" if job.number % 2 else f"request {name}"
        deeds = {
            "form": drawn(FORMS),
            "meanwhile": drawn(MEANWHILE) if depth < DEEPEST else "nothing",
            "end": drawn(ENDS),
            "later_ms": drawn(LATER_MS) if depth == 0 else 0,
        }
        return Call(job=job, name=name, request_id=request_id, depth=depth, **{**deeds, **fixed})

    def _deliveries(self) -> Iterator[list[Call]]:
        """All calls, each key's near each other; some of a key's come together, on one event loop."""
        chance = random.Random(self.seed)
        calls = [self._call(job, f"{job.number}.{number}") for job in self.jobs for number in range(ATTEMPTS_PER_KEY)]
        places = {call.name: call.job.number + SPREAD * chance.random() for call in calls}
        calls = sorted(calls, key=lambda call: places[call.name])[: self._attempts]
        while calls:
            together = [calls.pop(0)]
            if together[0].is_async:
                together += [call for call in calls if call.is_async and call.job is together[0].job][: chance.randint(0, 3)]
                calls = [call for call in calls if call not in together]
            yield together

    async def _gather(self, calls: tuple[Call, ...]) -> None:
        await asyncio.gather(*[self._amake(call) if call.is_async else asyncio.to_thread(self._make, call) for call in calls])

    def _make(self, call: Call) -> None:
        here.set(call.job.clock)
        function, arguments = self._prepared(call)
        try:
            result = function(**arguments)
        except (OSError, Suspended, BaseError) as error:
            call.job.history.leave(call.name, None, error)
        else:
            call.job.history.leave(call.name, result)

    async def _amake(self, call: Call) -> None:
        here.set(call.job.clock)
        function, arguments = self._prepared(call)
        try:
            result = await function(**arguments)
        except (OSError, Suspended, BaseError) as error:
            call.job.history.leave(call.name, None, error)
        else:
            call.job.history.leave(call.name, result)

    def _prepared(self, call: Call) -> tuple[Callable[..., Any], dict[str, Any]]:
        call.job.history.note(f"{call} comes")
        arguments: dict[str, Any] = {"event": {"id": call.job.key, "call": call}}
        if not call.is_renewed:
            arguments["context"] = LambdaContext(INVOCATION_MS, call.request_id, call.job.clock)
        return call.job.forms[call.form], arguments

    def _run(self, call: Call) -> str:
        """The function itself: what happens meanwhile, and how it ends."""
        attempt, history = current_attempt(), call.job.history
        # None of a function whose lease is renewed; one that knows a handler's deadline is stopped with it.
        stopped_ms = call_deadline_ms()
        run = history.begin(call.name, lambda: attempt.lease_end_ms or 0, stopped_ms)
        self._meanwhile(call, attempt)
        match call.end:
            case "raise":
                history.end(run, "raised")
                raise OSError("as told")
            case "crash":
                history.end(run, "crashed")
                raise Suspended
        result = f"by {call.name}, generation {attempt.generation}"
        history.end(run, "returned", result)
        return result

    def _meanwhile(self, call: Call, attempt: Attempt) -> None:
        """Time passes, and another call comes: within the lease, or after it."""
        clock = call.job.clock
        match call.meanwhile:
            case "nothing":
                return
            case "outlive":
                clock.advance_beyond((attempt.lease_end_ms or 0) + MARGIN_MS)
            case "renew" if call.is_renewed:
                for _ in range(3):
                    clock.advance(seconds=25)
                    with self._beating:  # as in one thread
                        self._heartbeat.beat()
                clock.advance(seconds=15)
            case "renew":
                clock.advance(seconds=10)
        self.deliver(self._call(call.job, f"{call.name}.0", call.depth + 1))

    def _settle(self, job: Job) -> None:
        job.clock.advance(ms=1000 * LEASE_SECONDS + MARGIN_MS + 1)
        here.set(job.clock)
        results = []
        for number in range(2):
            call = self._call(job, f"{job.number}.end.{number}", form="function", meanwhile="nothing", end="return")
            function, arguments = self._prepared(call)
            try:
                results.append(function(**arguments))
            except BaseError as error:
                job.history.stuck(error)
                return
        stored = (self._peek(key_of(job.key)) or {}).get("data")
        job.history.settle(results, None if stored is None else json.loads(stored))

    def _watch(self, request: Request, harm: Harm | None, answer: Answer | None) -> None:
        """Note a request in the history of its key.  One whose client gives up takes as long as that waits."""
        key, token = self._about(request)
        if key not in self._by_key:  # a client's greeting
            return
        job = self._by_key[key]
        became = "kept from the table" if answer is None else f"answered {answer.status}"
        again = ", sent again by the SDK" if request.is_repetition else ""
        struck = "" if harm is None else f", {harm.name}"
        job.history.note(f"  {request.operation} {request.number} of token {token[:6]}{again}: {became}{struck}")
        if harm in SLOW and request not in self._timed_out:
            self._timed_out.append(request)
            job.clock.advance(ms=TIMEOUT_MS)

    @staticmethod
    def _about(request: Any) -> tuple[str, str]:
        """The key that a request is about, and the owner token that it names."""
        parameters = request.parameters
        item = parameters.get("Item") or parameters["Key"]
        token = item.get("owner_token") or parameters.get("ExpressionAttributeValues", {}).get(":owner_token") or {"S": ""}
        return item["id"]["S"], token["S"]
