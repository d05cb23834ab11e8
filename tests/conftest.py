"""Fixtures that every suite shares."""

from __future__ import annotations

import gc
from threading import current_thread
from typing import TYPE_CHECKING

import hypothesis  # noqa: F401 - what it asks the collector when it is imported must not have been frozen
import pytest
from doubles import FakeClock
from stores import STORES, Made

from persistence import background

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores import Peek

    from persistence.base import BasePersistenceLayer

pytest_plugins = ["engines.plugin"]

# Modules and collected tests stay to the end: looking through them again and again took a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """From now on, collect what tests leave behind, and seldom enough for suites that make much of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


@pytest.fixture(autouse=True)
def _default_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """None that another test has left, with another endpoint or other keys."""
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Inline:
    """Workers that make each call at once, in the thread that asks for it."""

    def submit(self, call: Callable[[], object]) -> None:
        call()


@pytest.fixture(autouse=True)
def heart(monkeypatch: pytest.MonkeyPatch) -> background.Heartbeat:
    """The heartbeat of every call here: `beat()` renews what is due, by the fake clock alone.

    A thread that did it unasked would race that clock.
    """
    by_hand = background.Heartbeat(monotonic=lambda: 0.0)
    by_hand._thread = current_thread()  # alive, and never started
    monkeypatch.setattr(background, "heartbeat", by_hand)
    monkeypatch.setattr(background, "renewal_workers", lambda _store: Inline())
    return by_hand


@pytest.fixture(params=STORES)
def made(request: pytest.FixtureRequest, clock: FakeClock) -> Made:
    """A fresh store of each kind."""
    factory, endpoint_fixture = request.param
    endpoint = request.getfixturevalue(endpoint_fixture) if endpoint_fixture else ""
    return factory(clock, endpoint)


@pytest.fixture
def store(made: Made) -> BasePersistenceLayer:
    return made.store


@pytest.fixture
def peek(made: Made) -> Peek:
    return made.peek
