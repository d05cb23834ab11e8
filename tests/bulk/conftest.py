"""Stores on tables of their own, all on the test's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bulk.kit import BulkClient
from stores import dynamodb

if TYPE_CHECKING:
    from bulk.kit import NewStore
    from doubles import FakeClock

    from idempotency import DynamoDBPersistenceLayer


@pytest.fixture
def new_store(dynamodb_local: str, clock: FakeClock) -> NewStore:
    def make(**layout: Any) -> DynamoDBPersistenceLayer:
        store: Any = dynamodb(clock, dynamodb_local, **layout).store
        store.client = BulkClient(store.client)
        return store

    return make
