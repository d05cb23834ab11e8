"""Fixtures that every suite shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doubles import FakeClock
from stores import STORES, Made

if TYPE_CHECKING:
    from stores import Peek

    from persistence.base import BasePersistenceLayer

pytest_plugins = ["engines.plugin"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


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
