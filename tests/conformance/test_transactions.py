"""`begin` and `commit`, sync and async: what a store that has transactions promises, and what every other one says."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from engines.tables import create_table
from stores import dynamodb, dynamodb_lean, dynamodb_odd_names, memory
from verbs import AwaitedVerbs, Verbs, at_once

from persistence.exceptions import (
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyTransactionCanceledError,
)
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from stores import Made

    from persistence.datarecord import DataRecord
    from persistence.transaction import Transaction

#: A client token is known to DynamoDB for ten minutes, on whatever table, so each test needs keys and owners of its own.
_numbers = count(1)


class Committer:
    """A store's verbs, and a table of the caller's own in which each commit adds 1."""

    def __init__(self, made: Made, clock: FakeClock, verbs: type[Verbs]) -> None:
        self.made, self.store = made, made.store
        self.verbs = verbs(made.store, clock)
        self.client = made.client
        self.table = create_table(self.client)
        self.key = f"orders.handler#{next(_numbers)}"

    def commit(self, record: DataRecord | None, transaction: Transaction) -> None:
        if isinstance(self.verbs, AwaitedVerbs):
            asyncio.run(ThreadedPersistenceLayer(self.store).commit(record, transaction))
        else:
            self.store.commit(record, transaction)

    def adding(self, key: str = "", **condition: Any) -> Transaction:
        """A transaction that adds 1."""
        transaction = self.store.begin(key or self.key)
        transaction.update(
            TableName=self.table,
            Key={"id": "count"},
            UpdateExpression="ADD n :one",
            ExpressionAttributeValues={":one": 1},
            **condition,
        )
        return transaction

    def offer(self, **fields: Any) -> DataRecord:
        return self.verbs.offer(self.key, f"owner-{next(_numbers)}", **fields)

    @property
    def added(self) -> int:
        item = self.client.get_item(TableName=self.table, Key={"id": {"S": "count"}}, ConsistentRead=True).get("Item")
        return int(item["n"]["N"]) if item else 0

    def fencing(self, record: DataRecord) -> IdempotencyLeaseLostError:
        """The error of a commit that must be fenced off."""
        with pytest.raises(IdempotencyLeaseLostError) as fenced:
            self.commit(record, self.adding())
        return fenced.value


@pytest.fixture(params=[dynamodb, dynamodb_lean, dynamodb_odd_names], ids=["plain", "lean", "odd-names"])
def made(request: pytest.FixtureRequest, clock: FakeClock, dynamodb_local: str) -> Made:
    made: Made = request.param(clock, dynamodb_local)
    return made


@pytest.fixture(params=[Verbs, AwaitedVerbs], ids=["sync", "async"])
def committer(request: pytest.FixtureRequest, made: Made, clock: FakeClock) -> Iterator[Committer]:
    made_committer = Committer(made, clock, request.param)
    yield made_committer
    made_committer.verbs.close()


def test_a_commit_completes_the_record_and_applies_the_writes(committer: Committer) -> None:
    granted = committer.verbs.claim(committer.offer(payload_hash="h", holder="request-1"))
    before = committer.made.peek(committer.key) or {}
    done = committer.verbs.completed(granted, '"paid"', expires_s=90)
    committer.commit(done, committer.adding())

    changed = {"status": "COMPLETED", "data": '"paid"', "expiration": done.expiry_timestamp}
    assert committer.made.peek(committer.key) == {**before, **changed}
    assert committer.added == 1


def test_the_same_commit_again_changes_nothing(committer: Committer) -> None:
    done = committer.verbs.completed(committer.verbs.claim(committer.offer()), '"paid"')
    transaction = committer.adding()
    committer.commit(done, transaction)
    before = committer.made.peek(committer.key)
    committer.commit(done, transaction)

    assert committer.added == 1
    assert committer.made.peek(committer.key) == before


def test_a_release_after_a_commit_is_refused_with_the_completed_record(committer: Committer) -> None:
    granted = committer.verbs.claim(committer.offer())
    committer.commit(committer.verbs.completed(granted, '"paid"'), committer.adding())
    with pytest.raises(IdempotencyLeaseLostError) as fenced:
        committer.verbs.release(granted)

    assert fenced.value.record is not None
    assert (fenced.value.record.stored_status, fenced.value.record.owner_token) == ("COMPLETED", granted.owner_token)


@pytest.mark.parametrize("vanishes", ["released", "never claimed"])
def test_a_commit_without_a_record_writes_nothing(committer: Committer, vanishes: str) -> None:
    offer = committer.offer()
    if vanishes == "released":
        committer.verbs.release(committer.verbs.claim(offer))

    assert committer.fencing(committer.verbs.completed(offer, '"paid"')).record is None
    assert (committer.added, committer.made.peek(committer.key)) == (0, None)


def test_a_commit_by_an_attempt_that_was_superseded_writes_nothing(committer: Committer, clock: FakeClock) -> None:
    late = committer.verbs.claim(committer.offer())
    clock.advance(ms=1_001)
    winner = committer.verbs.claim(committer.offer())
    before = committer.made.peek(committer.key)

    found = committer.fencing(committer.verbs.completed(late, '"late"')).record
    assert found is not None
    assert (found.owner_token, found.stored_status, found.generation) == (winner.owner_token, "INPROGRESS", 2)
    assert (committer.added, committer.made.peek(committer.key)) == (0, before)


def test_a_commit_of_a_completed_record_writes_nothing_though_it_is_the_owners(committer: Committer) -> None:
    """A plain completion may be repeated; here the caller's writes would be applied to it without end."""
    granted = committer.verbs.claim(committer.offer())
    done = committer.verbs.completed(granted, '"paid"')
    committer.verbs.complete(done)

    found = committer.fencing(done).record
    assert found is not None
    assert (found.owner_token, found.stored_status) == (granted.owner_token, "COMPLETED")
    assert committer.added == 0


def test_a_commit_after_the_leases_end_is_applied_if_nobody_came(committer: Committer, clock: FakeClock) -> None:
    granted = committer.verbs.claim(committer.offer())
    clock.advance(seconds=3600)
    committer.commit(committer.verbs.completed(granted, '"paid"'), committer.adding())

    assert committer.added == 1


def test_a_condition_that_fails_leaves_record_and_writes_as_they_were(committer: Committer) -> None:
    granted = committer.verbs.claim(committer.offer())
    before = committer.made.peek(committer.key)
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        committer.commit(
            committer.verbs.completed(granted, '"paid"'), committer.adding(ConditionExpression="attribute_exists(n)")
        )

    assert [reason.code for reason in caught.value.reasons] == ["ConditionalCheckFailed"]
    assert (committer.added, committer.made.peek(committer.key)) == (0, before)


def test_a_fence_that_fails_comes_before_a_condition_that_fails(committer: Committer) -> None:
    """Who has lost the key need not know what became of its conditions: the winner may have made them fail."""
    offer = committer.offer()
    with pytest.raises(IdempotencyLeaseLostError):
        committer.commit(committer.verbs.completed(offer, '"paid"'), committer.adding(ConditionExpression="attribute_exists(n)"))
    assert committer.added == 0


def test_a_record_without_an_owner_is_committed_by_the_attempt_that_adopted_it(committer: Committer) -> None:
    """Another library's, of a durable execution that this one continues."""
    committer.verbs.claim(committer.verbs.offer(committer.key, "", generation=0))
    adopted = committer.verbs.offer(committer.key, "", generation=0)
    committer.commit(committer.verbs.completed(adopted, '"paid"'), committer.adding())

    assert committer.added == 1
    assert (committer.made.peek(committer.key) or {})["status"] == "COMPLETED"


def test_a_commit_without_a_record_to_complete_applies_the_writes_alone(committer: Committer) -> None:
    key = f"unprotected#{next(_numbers)}"
    committer.commit(None, committer.adding(key))

    assert committer.added == 1
    assert committer.made.peek(key) is None


def test_of_a_commit_and_a_release_at_the_same_moment_one_is_done(committer: Committer) -> None:
    """The release settles what became of a commit."""
    for _ in range(10):
        granted = committer.verbs.claim(committer.offer())
        done, transaction, before = committer.verbs.completed(granted, '"paid"'), committer.adding(), committer.added
        answers = at_once(
            [partial(committer.commit, done, transaction), partial(committer.verbs.release, granted)],
        )
        refused = [answer for answer in answers if isinstance(answer, IdempotencyLeaseLostError)]

        assert len(refused) == 1, answers
        assert committer.added - before == (refused == [answers[1]])
        assert (committer.made.peek(committer.key) is not None) == (refused == [answers[1]])
        committer.client.delete_item(
            TableName=committer.store.table_name,  # type: ignore[attr-defined]
            Key=committer.store._items.key(committer.key),  # type: ignore[attr-defined]
        )


def test_a_transaction_knows_its_key_and_is_empty_at_first(committer: Committer) -> None:
    transaction = committer.store.begin(committer.key)

    assert (transaction.idempotency_key, transaction.actions) == (committer.key, ())


@pytest.mark.parametrize("layer", [lambda store: store, ThreadedPersistenceLayer], ids=["sync", "async"])
def test_a_store_without_transactions_says_so(clock: FakeClock, layer: Callable[[Any], Any]) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^InMemoryPersistenceLayer has no transactions; DynamoDB"):
        layer(memory(clock, "").store).begin("key")
