"""Stores whose operations are procedures: their hooks, which do nothing but drive these, called or awaited."""

from __future__ import annotations

from abc import abstractmethod
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from persistence._procedures import arun, may_be_written, run
from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer, Refusal, _Layer
from persistence.exceptions import IdempotencyItemAlreadyExistsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._procedures import Procedure, Request
    from persistence.datarecord import DataRecord
    from persistence.transaction import Transaction


class Procedures(_Layer):
    """The procedures behind the hooks, under the hooks' contracts.  A refused claim is returned, not raised.

    Between two requests, another thread may carry on.
    """

    def is_claim_unsent(self, error: Exception) -> bool:
        """As in the base class; a procedure notes on its error what is known."""
        return super().is_claim_unsent(error) or not may_be_written(error.__cause__)

    @abstractmethod
    def _claiming(self, offer: DataRecord) -> Procedure[DataRecord | Refusal]:
        """As `BasePersistenceLayer._offer_record`."""

    @abstractmethod
    def _reading(self, idempotency_key: str) -> Procedure[DataRecord]:
        """As `BasePersistenceLayer._get_record`."""

    @abstractmethod
    def _updating(self, data_record: DataRecord) -> Procedure[None]:
        """As `BasePersistenceLayer._update_record`."""

    @abstractmethod
    def _deleting(self, data_record: DataRecord, now_ms: int | None = None) -> Procedure[bool]:
        """As `BasePersistenceLayer._delete_record`; with *now_ms*, as `_delete_orphan`."""

    def _committing(self, data_record: DataRecord | None, transaction: Transaction) -> Procedure[None]:
        """As `BasePersistenceLayer._commit_record`."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions")

    def _loading(self, data_record: DataRecord) -> Procedure[str]:
        """As `BasePersistenceLayer._load_result`."""
        raise NotImplementedError(f"{type(self).__name__} packs no results")


class DrivenLayer(Procedures, BasePersistenceLayer):
    """A sync store that is made of procedures.  A subclass may still replace each hook by one of its own."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        return _granted(run(self._claiming(data_record), self.sleep_ms))

    def _offer_record(self, offer: DataRecord) -> DataRecord | Refusal | None:
        hook: Any = self._put_record
        if type(hook) is not MethodType or hook.__func__ is not _PUT:  # `is_driven`, without its price
            return super()._offer_record(offer)
        return run(self._claiming(offer), self.sleep_ms)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        return run(self._reading(idempotency_key), self.sleep_ms)

    def _update_record(self, data_record: DataRecord) -> None:
        run(self._updating(data_record), self.sleep_ms)

    def _delete_record(self, data_record: DataRecord) -> bool:
        return run(self._deleting(data_record), self.sleep_ms)

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        return run(self._deleting(data_record, now_ms), self.sleep_ms)

    def _commit_record(self, data_record: DataRecord | None, transaction: Transaction) -> None:
        run(self._committing(data_record, transaction), self.sleep_ms)

    def _load_result(self, data_record: DataRecord) -> str:
        return run(self._loading(data_record), self.sleep_ms)


#: The procedure that each hook drives.
_BEHIND: Final = {
    "_put_record": "_claiming",
    "_offer_record": "_claiming",
    "_get_record": "_reading",
    "_update_record": "_updating",
    "_delete_record": "_deleting",
    "_delete_orphan": "_deleting",
    "_commit_record": "_committing",
    "_load_result": "_loading",
}
#: The hooks themselves, even if somebody patches the class.
_HOOKS: Final = {name: vars(DrivenLayer)[name] for name in _BEHIND}
_PUT: Final = _HOOKS["_put_record"]


def is_driven(store: BasePersistenceLayer, name: str) -> bool:
    """Whether the store's hook is `DrivenLayer`'s, and not what a subclass or a patch has put in its place."""
    hook = getattr(store, name)
    return type(hook) is MethodType and hook.__func__ is _HOOKS[name]


def procedure_behind(store: BasePersistenceLayer, name: str) -> Callable[..., Procedure[Any]] | None:
    """What makes the procedure that a hook of the store drives; None if the hook is another."""
    if not is_driven(store, name) or (name == "_offer_record" and not is_driven(store, "_put_record")):
        return None
    procedure: Callable[..., Procedure[Any]] = getattr(store, _BEHIND[name])
    return procedure


class AsyncDrivenLayer(Procedures, AsyncBasePersistenceLayer):
    """As `DrivenLayer`, with a client whose calls are awaited."""

    async def _perform(self, request: Request) -> Any:
        return await request.call(*request.arguments)

    async def _put_record(self, data_record: DataRecord) -> DataRecord:
        return _granted(await arun(self._claiming(data_record), self._perform, self.sleep_ms))

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return await arun(self._reading(idempotency_key), self._perform, self.sleep_ms)

    async def _update_record(self, data_record: DataRecord) -> None:
        await arun(self._updating(data_record), self._perform, self.sleep_ms)

    async def _delete_record(self, data_record: DataRecord) -> bool:
        return await arun(self._deleting(data_record), self._perform, self.sleep_ms)

    async def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        return await arun(self._deleting(data_record, now_ms), self._perform, self.sleep_ms)


def _granted(answer: DataRecord | Refusal) -> DataRecord:
    if isinstance(answer, Refusal):
        raise IdempotencyItemAlreadyExistsError(old_data_record=answer.existing)
    return answer
