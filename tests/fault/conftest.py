"""What the stories of faults start from: a DynamoDB table behind a faulty client, and a heart that beats when told."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

import pytest
from faults import ASYNC, SYNC, Bench, FaultyClient, Form
from stores import dynamodb

from idempotency.heartbeat import Heartbeat

if TYPE_CHECKING:
    from doubles import FakeClock


@pytest.fixture
def bench(dynamodb_local: str, clock: FakeClock) -> Bench:
    made = dynamodb(clock, dynamodb_local)
    client = FaultyClient(made.store.client)
    made.store.client = client
    return Bench(made.store, client, clock, made.peek)


@pytest.fixture(params=[SYNC, ASYNC], ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture(autouse=True)
def heart(monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    """The heartbeat of every call here: `beat()` renews what is due, and no thread does it unasked."""
    still = Heartbeat()
    still._thread = Thread()  # never started
    monkeypatch.setattr("idempotency.drivers.heartbeat", still)
    return still


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Lambda."""
    for name in ("AWS_LAMBDA_FUNCTION_NAME", "POWERTOOLS_IDEMPOTENCY_DISABLED", "POWERTOOLS_DEV"):
        monkeypatch.delenv(name, raising=False)
