"""What the stories of faults start from: a DynamoDB table behind a faulty client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from faults import ASYNC, SYNC, Bench, FaultyClient, Form, speak_as
from stores import CLIENTS, dynamodb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import FakeClock


@pytest.fixture(params=CLIENTS)
def client_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which client the store has, and whose errors the faults speak in."""
    speak_as(request.param)
    yield request.param
    speak_as("boto3")


@pytest.fixture
def bench(dynamodb_local: str, clock: FakeClock, client_kind: str) -> Bench:
    made = dynamodb(clock, dynamodb_local, client_kind)
    client = FaultyClient(made.store.client)
    made.store.client = client
    return Bench(made.store, client, clock, made.peek, made.client)


@pytest.fixture(params=[SYNC, ASYNC], ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Lambda."""
    for name in ("AWS_LAMBDA_FUNCTION_NAME", "POWERTOOLS_IDEMPOTENCY_DISABLED", "POWERTOOLS_DEV"):
        monkeypatch.delenv(name, raising=False)
