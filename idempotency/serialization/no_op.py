"""The serializer that changes nothing."""

from __future__ import annotations

from typing import Any

from idempotency.serialization.base import BaseIdempotencySerializer


class NoOpSerializer(BaseIdempotencySerializer):
    """Results are JSON data already, or are encoded as Powertools does: a replay returns the JSON round trip."""

    def to_dict(self, data: Any) -> Any:
        return data

    def from_dict(self, data: Any) -> Any:
        return data
