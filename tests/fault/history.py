"""What happened to one key, and what of it must never happen.

The checker knows runs, callers and a clock.  It knows nothing of records, tokens or retries: what it demands is what a caller may
expect, and it would demand the same of any other library.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: For how long, at least, an attempt must try to store its result before its caller may be told that it could not.
PATIENCE_MS = 15_000
#: An attempt that is still at work so shortly before its invocation is stopped has as good as crashed.
LAST_MS = 1_000


@dataclass(eq=False)
class Run:
    """One run of the function, for the caller whose call it is part of.

    Attributes:
        lease_end_ms: Until when nobody else may run, as the run was told; a renewal moves it.
        stopped_ms: When its invocation is stopped, None if nothing stops it.
        end: "returned", "raised" or "crashed"; "" while it is at work.
        ended_ms: When it ended, None while it is at work.
        left_ms: When its caller got a result or an error, None before.
    """

    caller: str
    lease_end_ms: Callable[[], int]
    stopped_ms: int | None = None
    end: str = ""
    ended_ms: int | None = None
    left_ms: int | None = None

    def may_be_followed(self) -> bool:
        """Whether, now that its lease has ended, another run is no fault: it crashed, was too slow, or told its caller so."""
        if self.end in ("raised", "crashed") or self.left_ms is None or self.ended_ms is None:
            return True
        if self.left_ms > self.lease_end_ms() or self.left_ms - self.ended_ms >= PATIENCE_MS:
            return True
        return self.stopped_ms is not None and self.left_ms >= self.stopped_ms - LAST_MS


@dataclass
class History:
    """The history of *key*, by its *clock*.

    Attributes:
        violations: What must never happen, and did.
        lines: All that was seen, in order.
        outcomes: How often callers got what.
        late_runs: Runs that began when their own lease had ended already, because their thread was held up after its claim.  No
            store can prevent that, so nothing is demanded of them but that nobody gets their result.
    """

    key: str
    clock: Callable[[], int]
    violations: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    late_runs: int = 0
    _results: set[str] = field(default_factory=set)
    _seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _start_ms: int = 0
    _lock: RLock = field(default_factory=RLock)

    def __post_init__(self) -> None:
        self._start_ms = self.clock()

    def note(self, what: str) -> None:
        """Remember what may help to understand the rest."""
        with self._lock:
            self.lines.append(f"{self.clock() - self._start_ms:>9} ms  {what}")

    def begin(self, caller: str, lease_end_ms: Callable[[], int], stopped_ms: int | None = None) -> Run:
        """A run begins now."""
        run = Run(caller, lease_end_ms, stopped_ms)
        with self._lock:
            now_ms = self.clock()
            self.note(f"{caller} runs, with a lease until {lease_end_ms() - self._start_ms} ms")
            if now_ms > lease_end_ms():
                self.late_runs += 1
            else:
                self._check_beginning(run, now_ms)
            self.runs.append(run)
        return run

    def end(self, run: Run, end: str, result: str | None = None) -> None:
        """The run ended by itself, or the process did."""
        with self._lock:
            run.end, run.ended_ms = end, self.clock()
            if result is not None:
                self._results.add(result)
            self.note(f"{run.caller} has {end}")

    def leave(self, caller: str, result: str | None, error: BaseException | None = None) -> None:
        """A caller got a result, or an error."""
        with self._lock:
            self.note(f"{caller} gets {result if error is None else f'{type(error).__name__}: {error}'}")
            for run in self.runs:
                if run.caller == caller:
                    run.left_ms = self.clock()
            if error is not None:
                self.outcomes[type(error).__name__] += 1
                return
            self.outcomes["result"] += 1
            self._see(caller, str(result))

    def settle(self, results: list[str], stored: str | None) -> None:
        """At the end, without faults and after every lease: the calls' results, and what is stored."""
        with self._lock:
            self.note(f"at the end {results}, and {stored} is stored")
            for result in results:
                self._see("the end", result)
            if {stored} != set(results):
                self._violated(f"{stored} is stored, and callers get {results}")

    def stuck(self, error: BaseException) -> None:
        """At the end, without faults and after every lease, a call got no result."""
        with self._lock:
            self._violated(f"the key is stuck: {error!r}")

    def report(self) -> str:
        """The violations, and the story that led to them."""
        return "\n".join([f"{self.key}:", *[f"  ! {each}" for each in self.violations], *[f"  {line}" for line in self.lines]])

    def _check_beginning(self, run: Run, now_ms: int) -> None:
        if self._seen:
            self._violated(f"{run.caller} runs although callers have got {sorted(self._seen)}")
        for other in self.runs:
            if other.end == "raised":
                continue
            if now_ms <= other.lease_end_ms():
                self._violated(f"{run.caller} runs during the lease of {other.caller}")
            elif not other.may_be_followed():
                self._violated(f"{run.caller} runs although {other.caller} ended within its lease, and its caller was let go")

    def _see(self, caller: str, result: str) -> None:
        self._seen[result].append(caller)
        if result not in self._results:
            self._violated(f"{caller} gets {result}, which no run returned")
        if len(self._seen) > 1:
            self._violated(f"callers get different results: {dict(self._seen)}")

    def _violated(self, what: str) -> None:
        self.violations.append(what)
        self.note(f"VIOLATED: {what}")
