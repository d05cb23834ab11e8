"""`python -m benchmarks.leases`: how many leases one process keeps alive, at which round trip to the store.

Each lease is renewed through the library's own heartbeat and workers.  A renewal waits for the round trip and costs no CPU, so
the figures are limits of the threads: a real client's CPU per request comes on top.  A lease counts as lost if it was ever
renewed later than its end.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from persistence import background

LEASE_MS: Final = 3_000
#: So that each lease is renewed several times.
LEASES_LONG: Final = 3
ROUND_TRIPS_MS: Final = (1, 10, 50)
COUNTS: Final = (100, 400, 1_000, 2_000, 4_000)


class Store:
    """A store that answers each renewal after its round trip."""

    def __init__(self, round_trip_ms: int) -> None:
        self.round_trip_ms = round_trip_ms

    def renew(self) -> None:
        """Wait for the answer."""
        time.sleep(self.round_trip_ms / 1000)


class Watched:
    """One lease, and whether it ended before it was renewed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.end_ms = _clock_ms() + LEASE_MS
        self.was_lost = False
        self.lease = background.Lease("benchmark", background.by_workers(store, self.renew), _clock_ms, LEASE_MS)

    def renew(self) -> bool:
        """As a driver does: the new end counts from before the request is sent."""
        sent_ms = _clock_ms()
        self.store.renew()
        self.was_lost = self.was_lost or _clock_ms() > self.end_ms
        self.end_ms = sent_ms + LEASE_MS
        return True


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def lost_of(count: int, round_trip_ms: int) -> int:
    """How many of so many leases were lost."""
    store = Store(round_trip_ms)
    watched = []
    for number in range(count):
        watched.append(Watched(store))
        background.heartbeat.keep(watched[-1].lease)
        if number % 50 == 0:
            time.sleep(LEASE_MS / 3000 * 50 / count)  # calls do not begin all at once
    time.sleep(LEASE_MS * LEASES_LONG / 1000)
    for each in watched:
        each.lease.end()
    now_ms = _clock_ms()
    return sum(each.was_lost or now_ms > each.end_ms for each in watched)


def main() -> None:
    """Print a table: leases lost, of so many, at each round trip."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leases", description=__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--round-trips", nargs="+", type=int, default=ROUND_TRIPS_MS, metavar="MS")
    options = parser.parse_args()
    sys.stdout.write(f"Leases of {LEASE_MS / 1000:.0f} s lost, by {background.RENEWAL_WORKERS} workers\n\n")
    sys.stdout.write("| round trip | " + " | ".join(f"{count} leases" for count in options.counts) + " |\n")
    sys.stdout.write("|---" * (len(options.counts) + 1) + "|\n")
    for round_trip_ms in options.round_trips:
        lost = [str(lost_of(count, round_trip_ms)) for count in options.counts]
        sys.stdout.write(f"| {round_trip_ms} ms | " + " | ".join(lost) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
