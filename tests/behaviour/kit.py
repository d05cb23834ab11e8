"""The public decorators in all their forms, so that a promise that they share is told once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from idempotency import (
    Executed,
    IdempotencyConfig,
    InMemoryPersistenceLayer,
    Replayed,
    idempotent,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import LambdaContext

    from persistence.base import BasePersistenceLayer
    from persistence.datarecord import DataRecord

#: The key prefix of every function made here, so that a test knows its keys.
PREFIX = "p"


def key_of(selected: Any) -> str:
    """The idempotency key of what was selected, computed without the library."""
    return f"{PREFIX}#{hashlib.md5(json.dumps(selected, sort_keys=True).encode()).hexdigest()}"


class CountingStore(InMemoryPersistenceLayer):
    """The reference store, which also tells what was asked of it."""

    def __init__(self, *, clock_ms: Callable[[], int]) -> None:
        super().__init__(clock_ms=clock_ms)
        self.asked: list[str] = []

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        self.asked.append("put")
        return super()._put_record(data_record)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        self.asked.append("get")
        return super()._get_record(idempotency_key)

    def _update_record(self, data_record: DataRecord) -> None:
        self.asked.append("update")
        super()._update_record(data_record)

    def _delete_record(self, data_record: DataRecord) -> None:
        self.asked.append("delete")
        super()._delete_record(data_record)


@dataclass
class Work:
    """A function of one payload that counts its runs and does what it is told."""

    result: Any = None
    error: BaseException | None = None
    runs: list[Any] = field(default_factory=list)

    def __call__(self, payload: Any) -> Any:
        self.runs.append(payload)
        if self.error is not None:
            raise self.error
        return self.result


@dataclass(frozen=True)
class Decorated:
    """A decorated function, called with a payload and, where there is one, a Lambda context; async ones are awaited here."""

    function: Any
    form: Form

    def __call__(self, payload: Any, context: LambdaContext | None = None) -> Any:
        return self._called(self.function, payload, context)

    def outcome(self, payload: Any, context: LambdaContext | None = None) -> Executed | Replayed:
        outcome: Executed | Replayed = self._called(self.function.with_outcome, payload, context)
        return outcome

    def _called(self, function: Any, payload: Any, context: LambdaContext | None) -> Any:
        result = function(payload) if self.form.decorator == "idempotent_function" else function(payload, context)
        return asyncio.run(result) if self.form.is_async else result


@dataclass(frozen=True)
class Form:
    """One of the three decorators, on sync or async functions."""

    decorator: Literal["idempotent", "idempotent_function", "make_idempotent"]
    is_async: bool

    def __str__(self) -> str:
        return f"{'async-' * self.is_async}{self.decorator}"

    def decorate(
        self,
        work: Callable[[Any], Any],
        store: BasePersistenceLayer,
        config: IdempotencyConfig | None = None,
        key_prefix: str | None = PREFIX,
    ) -> Decorated:
        """*work* in this form, behind its decorator."""
        function = self.function(work)
        options: dict[str, Any] = {"persistence_store": store, "config": config, "key_prefix": key_prefix}
        if self.decorator == "idempotent":
            return Decorated(idempotent(**options)(function), self)
        if self.decorator == "idempotent_function":
            return Decorated(idempotent_function(data_keyword_argument="event", **options)(function), self)
        return Decorated(make_idempotent(function, **options), self)

    def function(self, work: Callable[[Any], Any]) -> Callable[..., Any]:
        if self.is_async:

            async def awork(event: Any, context: Any = None) -> Any:
                await asyncio.sleep(0)
                return work(event)

            return awork

        def swork(event: Any, context: Any = None) -> Any:
            return work(event)

        return swork


FORMS = [
    Form(decorator, is_async)
    for is_async in (False, True)
    for decorator in ("idempotent", "idempotent_function", "make_idempotent")
]
