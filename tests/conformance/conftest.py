"""Every store twice: called, and awaited through `ThreadedPersistenceLayer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from verbs import AwaitedVerbs, Verbs

if TYPE_CHECKING:
    from doubles import FakeClock
    from stores import Made


@pytest.fixture(params=[Verbs, AwaitedVerbs], ids=["sync", "async"])
def verbs(request: pytest.FixtureRequest, made: Made, clock: FakeClock) -> Verbs:
    """The verbs of each store, sync and async."""
    made_verbs: Verbs = request.param(made.store, clock)
    return made_verbs
