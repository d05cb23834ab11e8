"""What happens to an invocation at one of its requests to DynamoDB: it is killed, runs out of time, or is frozen.

The requests are told apart by the trace id, which the SDK passes on from Lambda, so any number of environments may use one proxy.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from threading import Event, Lock
from typing import TYPE_CHECKING

from fault.proxy import FaultProxy, Harm, Strike

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault.proxy import Answer, Request

    from stack.local_lambda import Invocation


#: A record: its table, and its key as JSON.
Record = tuple[str, str]


class Mishap(Enum):
    """What happens at a request."""

    KILLED_BEFORE = "killed before"  # it is sent, and not applied
    KILLED_AFTER = "killed after"  # it is applied, and its answer not read
    TIMED_OUT = "timed out"  # it is applied, and not answered before the deadline
    FROZEN = "frozen"  # it is applied, and its answer not read until the thaw


@dataclass(frozen=True)
class Plan:
    """A mishap at a request of an invocation, counted from 1; `is_met` is set, and `then` called, when it happens."""

    mishap: Mishap
    request: int
    is_met: Event
    then: Callable[[], object] | None


class Mishaps:
    """A proxy before DynamoDB that does to invocations what was planned, and knows which of them completed a record.

    Attributes:
        url: What the functions take for DynamoDB.
        met: How many invocations met each mishap.
        completed_twice: The records of which the completions of two invocations were applied.
    """

    def __init__(self, endpoint: str) -> None:
        self.met: Counter[Mishap] = Counter()
        self.completed_twice: set[Record] = set()
        self._completed_by: dict[Record, str] = {}
        self._claimed_by: defaultdict[str, set[Record]] = defaultdict(set)
        self._plans: dict[str, tuple[Invocation, Plan]] = {}
        self._requests: Counter[str] = Counter()
        self._lock = Lock()
        self._proxy = FaultProxy(endpoint)
        self._proxy.judge = self._judge
        self._proxy.watch = self._watch
        self.url = self._proxy.url

    def plan(self, invocation: Invocation, mishap: Mishap, request: int, then: Callable[[], object] | None = None) -> Plan:
        """Let something happen at a request of an invocation.  One that makes fewer requests goes unharmed."""
        plan = Plan(mishap, request, Event(), then)
        with self._lock:
            self._plans[invocation.trace_id] = invocation, plan
        return plan

    def claimed_by(self, invocation: Invocation) -> set[Record]:
        """The records that an invocation has tried to claim."""
        with self._lock:
            return set(self._claimed_by[invocation.trace_id])

    def close(self) -> None:
        """End all connections."""
        self._proxy.stop()

    def _judge(self, request: Request) -> Strike | None:
        trace_id = _trace_id(request)
        with self._lock:
            self._requests[trace_id] += 1
            invocation, plan = self._plans.get(trace_id, (None, None))
            if invocation is None or plan is None or plan.request != self._requests[trace_id]:
                return None
            self.met[plan.mishap] += 1
        environment = invocation.environment
        assert environment is not None
        if plan.mishap is Mishap.FROZEN:
            environment.freeze()
        plan.is_met.set()
        if plan.then is not None:
            plan.then()
        match plan.mishap:
            case Mishap.KILLED_BEFORE:
                return Strike(Harm.LOSE_REQUEST, then=environment.kill)
            case Mishap.KILLED_AFTER:
                return Strike(Harm.LOSE_ANSWER, then=environment.kill)
            case Mishap.TIMED_OUT:
                return Strike(Harm.HANG)
            case Mishap.FROZEN:
                return None

    def _watch(self, request: Request, _harm: Harm | None, answer: Answer | None) -> None:
        if request.operation not in {"PutItem", "UpdateItem"}:
            return
        parameters = request.parameters
        item = parameters.get("Item", {})
        key = parameters.get("Key") or {name: item[name] for name in ("id", "sort") if name in item}
        record = parameters["TableName"], json.dumps(key)
        values = [*parameters.get("ExpressionAttributeValues", {}).values(), *item.values()]
        with self._lock:
            if item:
                self._claimed_by[_trace_id(request)].add(record)
            if {"S": "COMPLETED"} in values and answer is not None and answer.status == HTTPStatus.OK:
                first = self._completed_by.setdefault(record, _trace_id(request))
                if first != _trace_id(request):
                    self.completed_twice.add(record)


def _trace_id(request: Request) -> str:
    return request.headers.get("X-Amzn-Trace-Id", "")
