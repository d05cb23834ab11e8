"""Stores on tables of their own, all on the test's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bulk.kit import BulkClient
from fault.conftest import client_kind
from stores import dynamodb

if TYPE_CHECKING:
    from bulk.kit import NewStore
    from doubles import FakeClock

    from idempotency import DynamoDBPersistenceLayer

__all__ = ["client_kind", "new_store"]


@pytest.fixture
def new_store(dynamodb_local: str, clock: FakeClock, client_kind: str) -> NewStore:
    def make(**layout: Any) -> DynamoDBPersistenceLayer:
        made = dynamodb(clock, dynamodb_local, client_kind, **layout)
        store: Any = made.store
        store.client = BulkClient(store.client, made.client)
        return store

    return make
