"""The serializer that changes nothing."""

from __future__ import annotations

from typing import Any

from idempotency.serialization.base import BaseIdempotencySerializer


class NoOpSerializer(BaseIdempotencySerializer):
    """As no serializer at all: a replay returns what JSON makes of the result; the first result that changes is warned of."""

    def to_dict(self, data: Any) -> Any:
        return data

    def from_dict(self, data: Any) -> Any:
        return data
