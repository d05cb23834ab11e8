"""What the stories of the decorators start from: the in-memory store on a fake clock, and no invocation registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import FORMS, CountingStore, Form, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    made = CountingStore(clock_ms=clock)
    made.sleep_ms = clock.sleep_ms
    return made


@pytest.fixture(params=FORMS, ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture
def stored(store: CountingStore) -> Callable[[Any], Any]:
    """The record under the key of what was selected; None if there is none."""
    return lambda selected: store._records.get(key_of(selected))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Lambda."""
    for name in ("AWS_LAMBDA_FUNCTION_NAME", "POWERTOOLS_IDEMPOTENCY_DISABLED", "POWERTOOLS_DEV"):
        monkeypatch.delenv(name, raising=False)
