"""Hundreds of attempts by eight threads under random faults; a checker that first shows that it finds broken stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doubles import FakeClock
from fault.chaos import Chaos
from stores import dynamodb

from idempotency import DynamoDBPersistenceLayer
from persistence.exceptions import IdempotencyItemAlreadyExistsError
from persistence.rules import is_in_progress

if TYPE_CHECKING:
    from idempotency import DataRecord

SEED = 20261121


class IgnoresTheToken(DynamoDBPersistenceLayer):
    """Broken: whoever completes last wins."""

    def _update_record(self, data_record: DataRecord) -> None:
        request = self._items.complete(data_record)
        del request["ConditionExpression"], request["ReturnValuesOnConditionCheckFailure"]
        del request["ExpressionAttributeNames"]["#owner_token"], request["ExpressionAttributeValues"][":owner_token"]
        self.client.update_item(TableName=self.table_name, **request)


class TakesAnyOldItemForItsOwn(DynamoDBPersistenceLayer):
    """Broken: a refusal by a record in progress is taken for a claim of ours whose answer was lost."""

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        try:
            return super()._put_record(data_record)
        except IdempotencyItemAlreadyExistsError as refused:
            existing = refused.old_data_record
            if existing is None or not is_in_progress(existing):
                raise
            return existing.replace(owner_token=data_record.owner_token)


def chaos(endpoint: str, kind: type[DynamoDBPersistenceLayer], seed: int) -> list[str]:
    """The violations in the history of a store of this kind."""
    print(f"seed {seed}")  # noqa: T201 - pytest shows it if the test fails
    made = dynamodb(FakeClock(), endpoint)
    story = Chaos(kind(made.store.table_name, boto3_client=made.store.client), seed)
    story.play()
    if not story.history.violations:
        story.settle(made.peek)
    return story.history.violations


@pytest.mark.parametrize("kind", [IgnoresTheToken, TakesAnyOldItemForItsOwn])
def test_the_checker_finds_a_broken_store(dynamodb_local: str, kind: type[DynamoDBPersistenceLayer]) -> None:
    assert chaos(dynamodb_local, kind, SEED)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_in_chaos_every_caller_of_a_key_gets_one_result_and_no_key_is_stuck(dynamodb_local: str, seed: int) -> None:
    assert chaos(dynamodb_local, DynamoDBPersistenceLayer, seed) == []
