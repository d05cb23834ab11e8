"""The replicator proves itself: what a global table with eventual replication does, it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults import SERVICE_ERRORS
from replication.replicas import HERE, THERE, GlobalTable, Replica

if TYPE_CHECKING:
    from doubles import FakeClock


def put(replica: Replica, table: GlobalTable, word: str, **more: Any) -> None:
    replica.put_item(TableName=table.name, Item={"id": {"S": "k"}, "word": {"S": word}}, **more)


def words(table: GlobalTable) -> list[str | None]:
    """What each Region holds."""
    items = [table.peek(region, "k") for region in (HERE, THERE)]
    return [None if item is None else item["word"] for item in items]


def test_regions_are_databases_of_their_own_until_they_are_replicated(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "written")
    assert words(table) == ["written", None]

    table.replicate()

    assert words(table) == ["written", "written"]


def test_the_later_write_wins_in_both_regions(table: GlobalTable, clock: FakeClock) -> None:
    put(table.replicas[THERE], table, "earlier")
    clock.advance(ms=1)
    put(table.replicas[HERE], table, "later")

    table.replicate()

    assert words(table) == ["later", "later"]


def test_of_two_writes_in_one_millisecond_the_second_wins(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "first")
    put(table.replicas[THERE], table, "second")

    table.replicate()

    assert words(table) == ["second", "second"]


def test_a_deletion_is_replicated_and_wins_over_an_earlier_write(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "mine")
    put(table.replicas[THERE], table, "yours")
    table.replicas[HERE].delete_item(TableName=table.name, Key={"id": {"S": "k"}})

    table.replicate()

    assert words(table) == [None, None]


def test_a_deletion_loses_to_a_later_write(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "mine")
    table.replicas[HERE].delete_item(TableName=table.name, Key={"id": {"S": "k"}})
    put(table.replicas[THERE], table, "yours")

    table.replicate()

    assert words(table) == ["yours", "yours"]


def test_a_write_that_has_arrived_is_not_sent_back(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "first")
    table.replicate()
    put(table.replicas[THERE], table, "second")
    table.replicate()
    table.replicate()

    assert words(table) == ["second", "second"]


def test_one_direction_can_be_slower_than_the_other(table: GlobalTable) -> None:
    put(table.replicas[HERE], table, "first")
    put(table.replicas[THERE], table, "second")

    table.replicate(to=THERE)
    assert words(table) == ["first", "second"]

    table.replicate(to=HERE)
    assert words(table) == ["second", "second"]


def test_replication_can_be_told_to_happen_with_a_write_to_come(table: GlobalTable) -> None:
    table.replicate_after(2)
    put(table.replicas[HERE], table, "first")
    assert words(table) == ["first", None]

    put(table.replicas[THERE], table, "second")

    assert words(table) == ["second", "second"]


def test_conditions_are_evaluated_on_the_regions_own_replica_and_a_refused_write_is_not_replicated(table: GlobalTable) -> None:
    is_new = {"ConditionExpression": "attribute_not_exists(id)"}
    put(table.replicas[HERE], table, "first", **is_new)
    put(table.replicas[THERE], table, "second", **is_new)
    with pytest.raises(SERVICE_ERRORS, match="ConditionalCheckFailed"):
        put(table.replicas[HERE], table, "third", **is_new)

    table.replicate()

    assert words(table) == ["second", "second"]
