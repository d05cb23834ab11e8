"""Completed records in this process's memory."""

from __future__ import annotations

import random
from collections import OrderedDict
from threading import Barrier, Thread
from typing import TYPE_CHECKING

import pytest
from lines import AtLine, at_each_line

from idempotency import local_cache
from idempotency.local_cache import LocalCache
from persistence.datarecord import DataRecord

if TYPE_CHECKING:
    from collections.abc import Callable


def record(name: str) -> DataRecord:
    return DataRecord(name, "COMPLETED", response_data=f'"{name}"')


def filled(max_items: int, *names: str) -> LocalCache:
    cache = LocalCache(max_items)
    for name in names:
        cache.put(name, record(name))
    return cache


def held(cache: LocalCache) -> list[str]:
    return list(cache._records)


def test_a_record_is_found_by_its_key() -> None:
    cache = filled(2, "a")

    assert cache.get("a") == record("a")
    assert cache.get("b") is None


def test_a_later_record_of_a_key_replaces_the_earlier_one() -> None:
    cache = filled(2, "a", "b")

    cache.put("a", record("newer"))

    assert cache.get("a") == record("newer")
    assert cache.get("b") == record("b")


@pytest.mark.parametrize(("names", "left"), [("ab", "ab"), ("abc", "bc"), ("abcd", "cd")])
def test_no_more_than_the_most_are_remembered(names: str, left: str) -> None:
    assert held(filled(2, *names)) == list(left)


def test_the_least_recently_used_is_forgotten_be_it_read_or_written() -> None:
    cache = filled(3, "a", "b", "c")
    cache.get("a")
    cache.put("b", record("b"))

    cache.put("d", record("d"))

    assert held(cache) == ["a", "b", "d"]


def test_a_miss_makes_nothing_recently_used() -> None:
    cache = filled(2, "a", "b")
    cache.get("x")

    cache.put("c", record("c"))

    assert held(cache) == ["b", "c"]


@pytest.mark.parametrize("max_items", [0, -1])
def test_a_cache_for_nothing_remembers_nothing(max_items: int) -> None:
    cache = filled(max_items, "a")

    assert cache.get("a") is None


@pytest.mark.parametrize("seed", range(5))
def test_it_behaves_as_a_plain_model_of_itself(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 6)
    cache, model = LocalCache(size), OrderedDict[str, DataRecord]()
    for _ in range(2_000):
        key = rng.choice("abcdefgh")
        if rng.random() < 0.5:
            assert cache.get(key) == model.get(key), seed
            if key in model:
                model.move_to_end(key)
        else:
            value = record(str(rng.random()))
            cache.put(key, value)
            model.pop(key, None)
            model[key] = value
            while len(model) > size:
                model.popitem(last=False)
        assert held(cache) == list(model), seed


def test_threads_that_share_a_cache_neither_fail_nor_outgrow_it() -> None:
    cache = LocalCache(4)
    barrier = Barrier(6)
    failures: list[Exception] = []

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        barrier.wait(timeout=10)
        try:
            for _ in range(3_000):
                key = rng.choice("abcdefgh")
                found = cache.get(key)
                assert found is None or found.key == key
                cache.put(key, record(key))
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=hammer, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(held(cache)) == 4


USES = {
    "get a": lambda cache: cache.get("a"),
    "get b": lambda cache: cache.get("b"),
    "put a": lambda cache: cache.put("a", record("newer")),
    "put c": lambda cache: cache.put("c", record("c")),
    "put d and e": lambda cache: [cache.put("d", record("d")), cache.put("e", record("e"))],
}


def check(cache: LocalCache) -> None:
    assert len(held(cache)) <= 2
    assert all(cache.get(key) in (record(key), record("newer")) for key in held(cache))


@pytest.mark.parametrize("inner", USES)
@pytest.mark.parametrize("outer", USES)
def test_a_use_within_another_neither_waits_nor_outgrows_the_cache(outer: str, inner: str) -> None:
    """At each line, as by a signal's handler."""
    caches: list[LocalCache] = []

    def begin(_number: int) -> tuple[Callable[[], object], Callable[[], object]]:
        cache = filled(2, "a", "b")
        caches.append(cache)
        return lambda: USES[outer](cache), lambda: USES[inner](cache)

    assert at_each_line(local_cache, begin) > 2
    for cache in caches:
        check(cache)


@pytest.mark.parametrize("use", USES)
def test_a_use_that_is_torn_away_leaves_a_cache_that_goes_on(use: str) -> None:
    class Torn(BaseException):
        """What a signal's handler raises."""

    def tear() -> None:
        raise Torn

    for number in range(100):
        cache = filled(2, "a", "b")
        try:
            with AtLine(local_cache, number, tear) as line:
                USES[use](cache)
        except Torn:
            cache.put("z", record("z"))
        if not line.happened:
            break
        check(cache)


def test_a_key_that_is_forgotten_before_it_is_marked_as_used_is_no_error() -> None:
    cache = filled(2, "a", "b")
    cache._mark_used("x")

    assert held(cache) == ["a", "b"]
