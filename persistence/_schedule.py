"""When to send a request again, and for how long.  Decides by values; the store supplies clock and sleep.

Delays are drawn with full jitter (uniform from 0 to a ceiling that doubles), so that many callers in trouble spread out:
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
"""

from __future__ import annotations

from typing import Final

#: The first ceiling of a delay, about ten round trips to a healthy table.
BASE_MS: Final = 50
#: The last ceiling: a throttled partition recovers within seconds, and each caller should notice soon.
CAP_MS: Final = 2_000
#: Left of a deadline when the last request is sent, for its answer and for the error to reach the caller.
RESERVE_MS: Final = 100
#: Below this much time a further request would only be cut off.
LEAST_MS: Final = 10
#: The most that a server's wish for a pause adds to a delay, as in AWS's SDKs: a wish may be wrong.
WISH_CAP_MS: Final = 5_000

#: How long a claim is retried at most: the caller waits, and a later retry of the whole call is safe.
CLAIM_RETRY_MS: Final = 10_000
#: How long a completion is retried where no deadline is known: twice as long, because the effect has happened.
COMPLETE_RETRY_MS: Final = 20_000
#: How long a release is retried at most: it only spares the next attempt the rest of the lease.
RELEASE_RETRY_MS: Final = 3_000
FETCH_RETRY_MS: Final = 5_000


class Schedule:
    """The pauses before the further tries of one request, made when its first try failed.

    Time is up *at_most_ms* after that (None: no such limit), and just before *deadline_ms* (None: no deadline); at once if
    neither is given.  No pause reaches beyond it.

    The limits are turned into a duration at once, of which each pause takes its length at least: a wall clock that stands still,
    or that is set back, prolongs nothing.
    """

    __slots__ = ("_ceiling_ms", "_last_ms", "_left_ms", "_paused_ms")

    def __init__(self, now_ms: int, *, at_most_ms: int | None, deadline_ms: int | None) -> None:
        limits = [] if at_most_ms is None else [at_most_ms]
        if deadline_ms is not None:
            limits.append(deadline_ms - RESERVE_MS - now_ms)
        self._left_ms = min(limits, default=0)
        self._last_ms = now_ms
        self._paused_ms = 0.0
        self._ceiling_ms = BASE_MS

    def pause_ms(self, now_ms: int, wish_ms: int = 0) -> float | None:
        """How long to wait before the next try, the server's wish for a pause obeyed; None if time is up."""
        self._left_ms -= max(now_ms - self._last_ms, int(self._paused_ms))
        self._last_ms = now_ms
        if self._left_ms < LEAST_MS:
            return None
        import random  # here: most requests are answered at once

        pause_ms = random.uniform(0, self._ceiling_ms)  # noqa: S311 - jitter, not a secret
        self._ceiling_ms = min(CAP_MS, 2 * self._ceiling_ms)
        pause_ms = max(pause_ms, min(wish_ms, pause_ms + WISH_CAP_MS))
        self._paused_ms = min(pause_ms, self._left_ms)
        return self._paused_ms
