"""Stores that are broken on purpose, each in one way, so that the checker of histories can show that it would find it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempotency import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyItemAlreadyExistsError
from persistence.rules import is_in_progress

if TYPE_CHECKING:
    from idempotency import DataRecord

HELD = "#owner_token = :owner_token"


class _Careless:
    """A client that leaves the owner token out of one operation's condition; the rest of the condition stays."""

    def __init__(self, client: Any, operation: str) -> None:
        self._client, self._operation = client, operation

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name != self._operation:
            return method

        def careless(**request: Any) -> Any:
            assert HELD in request["ConditionExpression"]
            values = {name: value for name, value in request["ExpressionAttributeValues"].items() if name != ":owner_token"}
            condition = request["ConditionExpression"].replace(HELD, "attribute_exists(#owner_token)")
            return method(**{**request, "ConditionExpression": condition, "ExpressionAttributeValues": values})

        return careless


class IgnoresTheTokenOnUpdate(DynamoDBPersistenceLayer):
    """Whoever completes last wins."""

    def __init__(self, table_name: str, boto3_client: Any) -> None:
        super().__init__(table_name, boto3_client=_Careless(boto3_client, "update_item"))


class IgnoresTheTokenOnDelete(DynamoDBPersistenceLayer):
    """A late failure deletes the claim of its successor."""

    def __init__(self, table_name: str, boto3_client: Any) -> None:
        super().__init__(table_name, boto3_client=_Careless(boto3_client, "delete_item"))


class TakesTheRequestIdForTheToken(DynamoDBPersistenceLayer):
    """All attempts of a request that is delivered again under its id are one."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        own = data_record.owner_token
        try:
            return super()._put_record(_with_request_id(data_record)).replace(owner_token=own)
        except IdempotencyItemAlreadyExistsError as refused:
            existing = refused.old_data_record
            if existing is None or not data_record.holder or existing.owner_token != data_record.holder:
                raise
            raise IdempotencyItemAlreadyExistsError(old_data_record=existing.replace(owner_token=own)) from refused

    def _update_record(self, data_record: DataRecord) -> None:
        super()._update_record(_with_request_id(data_record))

    def _delete_record(self, data_record: DataRecord) -> None:
        super()._delete_record(_with_request_id(data_record))


class TakesAnyOldItemForItsOwn(DynamoDBPersistenceLayer):
    """A refusal by a record in progress is taken for a claim of ours whose answer was lost."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        try:
            return super()._put_record(data_record)
        except IdempotencyItemAlreadyExistsError as refused:
            existing = refused.old_data_record
            if existing is None or not is_in_progress(existing):
                raise
            return existing.replace(owner_token=data_record.owner_token)


BROKEN = [IgnoresTheTokenOnUpdate, IgnoresTheTokenOnDelete, TakesTheRequestIdForTheToken, TakesAnyOldItemForItsOwn]


def _with_request_id(record: DataRecord) -> DataRecord:
    """The record as owned by its request; by its attempt, where no request is known."""
    return record.replace(owner_token=record.holder or record.owner_token)
