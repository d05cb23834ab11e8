"""Which Region's replica of a global table serves a key.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal, TypeAlias

Replication: TypeAlias = Literal["eventual", "strong"]
#: One Region for all keys, Regions that share the keys, or a function from a key to its Region.
HomeRegion: TypeAlias = str | Sequence[str] | Callable[[str], str]


def router(replication: Replication | None, home_region: HomeRegion | None) -> Callable[[str], str] | None:
    """What tells the home Region of a key; None if every key is served where the function runs.

    A function of the user's may raise whatever it likes, and `TypeError` is raised for it if it names no Region: its keys must
    not silently be served where the call happens to run.

    Raises:
        ValueError: the options contradict each other.
    """
    if replication not in (None, "eventual", "strong"):
        raise ValueError(f"replication must be 'eventual', 'strong' or None, not {replication!r}")
    if home_region is None:
        return None
    if replication != "eventual":
        raise ValueError("home_region is for replication='eventual'; with any other, each replica sees every claim")
    if callable(home_region):
        return lambda key: _named(home_region(key))
    regions = (home_region,) if isinstance(home_region, str) else tuple(home_region)
    if not regions or not all(isinstance(region, str) and region for region in regions):
        raise ValueError(f"home_region must name Regions, not {home_region!r}")
    if len(regions) == 1:
        return lambda _key: regions[0]
    return lambda key: _highest(regions, key)


def _named(region: object) -> str:
    if not isinstance(region, str) or not region:
        raise TypeError(f"home_region must return the name of a Region, not {region!r}")
    return region


def _highest(regions: tuple[str, ...], key: str) -> str:
    """The Region that draws the highest hash for the key, in whatever order they are given.

    A Region that is added takes keys from the others, and one that is removed gives its own away; all other keys stay.
    https://en.wikipedia.org/wiki/Rendezvous_hashing
    """
    return max(regions, key=lambda region: (sha256(f"{region}\n{key}".encode()).digest(), region))
