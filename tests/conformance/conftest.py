"""Every store twice: called, and awaited, through `ThreadedPersistenceLayer` where the backend has no async store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from verbs import AwaitedVerbs, Verbs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import FakeClock
    from stores import Made


@pytest.fixture(params=["sync", "async"])
def verbs(request: pytest.FixtureRequest, made: Made, clock: FakeClock) -> Iterator[Verbs]:
    """The verbs of each store, sync and async."""
    if request.param == "sync":
        made_verbs = Verbs(made.store, clock)
    else:
        made_verbs = AwaitedVerbs(made.store, clock, None if made.new_awaited is None else made.new_awaited())
    yield made_verbs
    made_verbs.close()
