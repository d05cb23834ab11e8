"""Which Region is a key's home."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations
from math import sqrt
from typing import Any

import pytest

from persistence._regions import router

REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-2")


def keys(count: int, seed: int = 20_261_121) -> list[str]:
    """Keys as the library makes them: a name and a digest."""
    chance = random.Random(seed)
    return [f"payments.charge#{chance.randbytes(16).hex()}" for _ in range(count)]


def homes(regions: Any, of: list[str]) -> dict[str, str]:
    home_of = router("eventual", regions)
    assert home_of is not None
    return {key: home_of(key) for key in of}


def strays(count: int, total: int, share: float) -> float:
    """By how many standard deviations of the binomial distribution a count is off."""
    return abs(count - total * share) / sqrt(total * share * (1 - share))


@pytest.mark.parametrize(
    ("key", "of_two", "of_three"),
    [
        ("", "eu-west-1", "ap-southeast-2"),
        ("payments.charge#0", "eu-west-1", "ap-southeast-2"),
        ("payments.charge#1", "eu-west-1", "ap-southeast-2"),
        ("payments.charge#2", "eu-west-1", "eu-west-1"),
        ("payments.charge#3", "eu-west-1", "eu-west-1"),
        ("payments.charge#4", "eu-west-1", "eu-west-1"),
        ("payments.charge#5", "us-east-1", "us-east-1"),
        ("fn#d41d8cd98f00b204e9800998ecf8427e", "us-east-1", "ap-southeast-2"),
        ("Zahlung#ü", "eu-west-1", "eu-west-1"),
    ],
)
def test_a_keys_home_never_changes_from_one_version_of_the_library_to_the_next(key: str, of_two: str, of_three: str) -> None:
    """Where two versions run at once, a changed answer is two homes for one key: the function would run twice."""
    assert homes(REGIONS[:2], [key]) == {key: of_two}
    assert homes(REGIONS, [key]) == {key: of_three}


@pytest.mark.parametrize("order", list(permutations(REGIONS)))
def test_the_order_in_which_regions_are_given_does_not_matter(order: tuple[str, ...]) -> None:
    some = keys(200)

    assert homes(order, some) == homes(list(REGIONS), some) == homes(set(REGIONS), some)


def test_a_region_that_is_given_twice_counts_once() -> None:
    some = keys(200)

    assert homes([*REGIONS, REGIONS[0]], some) == homes(REGIONS, some)


@pytest.mark.parametrize("regions", [REGIONS[:2], REGIONS], ids=len)
@pytest.mark.parametrize("seed", range(5))
def test_regions_get_equal_shares_of_the_keys(regions: tuple[str, ...], seed: int) -> None:
    """Within five standard deviations, which a fair hash exceeds once in two million draws; the seeds are fixed anyway."""
    total = 3_000

    counts = Counter(homes(regions, keys(total, seed)).values())

    assert {region for region in regions if strays(counts[region], total, 1 / len(regions)) > 5} == set(), (seed, counts)


def test_a_region_that_is_added_takes_its_share_and_every_other_key_stays() -> None:
    total = 3_000
    some = keys(total)
    before, after = homes(REGIONS, some), homes([*REGIONS, "ca-central-1"], some)

    moved = [key for key in some if before[key] != after[key]]

    assert {after[key] for key in moved} == {"ca-central-1"}
    assert strays(len(moved), total, 1 / 4) < 5


def test_a_region_that_is_removed_gives_only_its_own_keys_away_and_evenly() -> None:
    some = keys(3_000)
    before, after = homes(REGIONS, some), homes(REGIONS[1:], some)

    moved = [key for key in some if before[key] != after[key]]

    assert {before[key] for key in moved} == {REGIONS[0]}
    assert set(moved) == {key for key in some if before[key] == REGIONS[0]}
    assert strays(Counter(after[key] for key in moved)[REGIONS[1]], len(moved), 1 / 2) < 5


@pytest.mark.parametrize("regions", ["eu-west-1", ["eu-west-1"], ("eu-west-1",), {"eu-west-1"}], ids=repr)
def test_one_region_is_the_home_of_every_key(regions: Any) -> None:
    assert set(homes(regions, keys(20)).values()) == {"eu-west-1"}


def test_a_function_is_asked_for_each_key() -> None:
    assert homes(lambda key: f"home-of-{key}", ["a", "b"]) == {"a": "home-of-a", "b": "home-of-b"}


@pytest.mark.parametrize("answer", [None, "", 7, ["eu-west-1"]], ids=repr)
def test_a_function_that_names_no_region_is_an_error(answer: Any) -> None:
    """None would otherwise mean the Region in which the call happens to run."""
    with pytest.raises(TypeError, match="home_region must return the name of a Region, not"):
        homes(lambda _key: answer, ["a"])


@pytest.mark.parametrize("replication", [None, "eventual", "strong"])
def test_without_home_regions_there_is_nothing_to_choose(replication: Any) -> None:
    assert router(replication, None) is None


@pytest.mark.parametrize("replication", ["", "MREC", "Eventual", 0, True])
def test_an_unknown_kind_of_replication_is_refused(replication: Any) -> None:
    with pytest.raises(ValueError, match="replication must be 'eventual', 'strong' or None"):
        router(replication, None)


@pytest.mark.parametrize("replication", [None, "strong"])
@pytest.mark.parametrize("home", ["eu-west-1", ["eu-west-1"], str])
def test_home_regions_are_for_eventual_replication_alone(replication: Any, home: Any) -> None:
    with pytest.raises(ValueError, match="home_region is for replication='eventual'"):
        router(replication, home)


@pytest.mark.parametrize("home", ["", [], (), [""], ["eu-west-1", ""], ["eu-west-1", None], [7]], ids=repr)
def test_regions_without_a_name_are_refused(home: Any) -> None:
    with pytest.raises(ValueError, match="home_region must name Regions, not"):
        router("eventual", home)
