"""What the stories of global tables start from: two Regions, and besides what the stories of faults start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fault.conftest import client_kind, environment, form
from replication.replicas import GlobalTable

if TYPE_CHECKING:
    from doubles import FakeClock

__all__ = ["client_kind", "environment", "form", "table"]


@pytest.fixture
def table(dynamodb_local: str, clock: FakeClock, client_kind: str) -> GlobalTable:
    return GlobalTable(dynamodb_local, clock, client_kind)
