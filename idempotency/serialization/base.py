"""What a serializer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class BaseIdempotencySerializer(ABC):
    """Turns results into JSON data and back.  A result of None is neither given to it nor asked of it."""

    @abstractmethod
    def to_dict(self, data: Any) -> Any:
        """The result as JSON data.  If this raises, the result is not kept: the function has run already.

        A replay's `from_dict` gets what JSON makes of the data: lists for tuples, text for keys that are not text.  Data of None
        is replayed as None.
        """

    @abstractmethod
    def from_dict(self, data: Any) -> Any:
        """The result that a replay returns.  What this raises reaches the caller of the replay.

        An `IdempotencyResultNotKeptError` reaches the caller with the idempotency key in it.
        """


class BaseIdempotencyModelSerializer(BaseIdempotencySerializer):
    """A serializer for one type, which is read from the function's return annotation when the class itself is given."""

    @classmethod
    @abstractmethod
    def instantiate(cls, model_type: Any) -> BaseIdempotencySerializer:
        """A serializer for the annotated type; None if the function has no annotation.

        Raises:
            IdempotencyNoSerializationModelError: there is no type.
            IdempotencyModelTypeError: the type does not fit.
        """
