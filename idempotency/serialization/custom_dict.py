"""A serializer of two functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency.serialization.base import BaseIdempotencySerializer
from persistence._checks import check_callable

if TYPE_CHECKING:
    from collections.abc import Callable


class CustomDictSerializer(BaseIdempotencySerializer):
    """Calls *to_dict* to store a result, and *from_dict* to replay it.

    Whether a replay is equal to the first result is up to these two: *from_dict* gets what JSON makes of *to_dict*'s data.
    """

    def __init__(self, to_dict: Callable[[Any], Any], from_dict: Callable[[Any], Any]) -> None:
        check_callable("to_dict", to_dict)
        check_callable("from_dict", from_dict)
        self._to_dict = to_dict
        self._from_dict = from_dict

    def to_dict(self, data: Any) -> Any:
        return self._to_dict(data)

    def from_dict(self, data: Any) -> Any:
        return self._from_dict(data)
