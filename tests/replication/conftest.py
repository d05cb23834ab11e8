"""What the stories of global tables start from: two Regions, no Lambda, and a heart that does not beat unasked."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

import pytest
from faults import ASYNC, SYNC, Form
from replication.replicas import GlobalTable

from idempotency.heartbeat import Heartbeat

if TYPE_CHECKING:
    from doubles import FakeClock


@pytest.fixture
def table(dynamodb_local: str, clock: FakeClock) -> GlobalTable:
    return GlobalTable(dynamodb_local, clock)


@pytest.fixture(params=[SYNC, ASYNC], ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture(autouse=True)
def heart(monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    """The heartbeat of every call here, which no thread drives."""
    still = Heartbeat()
    still._thread = Thread()  # never started
    monkeypatch.setattr("idempotency.drivers.heartbeat", still)
    return still


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Lambda."""
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME", raising=False)
