"""What bulk work reads and writes, as values: nothing is sent from here.

Every write to a table in use names what was seen, and is refused if that is no longer so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from persistence._dynamodb_items import ALL_OLD, EXPIRED, ORPHANED, Item, ItemFormat, Request
from persistence.datarecord import INPROGRESS
from persistence.rules import is_claimable, is_completed, is_in_progress

if TYPE_CHECKING:
    from persistence.datarecord import DataRecord

#: Where a segment is: not begun, behind the item with this primary key, or through.
Position: TypeAlias = dict[str, Any] | str | None


def record_in(items: ItemFormat, item: Item) -> DataRecord | None:
    """The record in an item, None if it is none: another application's, or of a status that no library writes."""
    try:
        record = items.record(item)
    except ValueError:
        return None
    return record if is_in_progress(record) or is_completed(record) else None


def reading(items: ItemFormat, segment: int, segments: int, position: Position, page_size: int | None) -> Request:
    """The place to read: a segment's page of a table, or a page of the partition where the table is shared.

    A role may be allowed a partition only, and Scan disregards partitions.
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/specifying-conditions.html
    """
    request: Request = {"ReturnConsumedCapacity": "TOTAL"}
    if items.sort_key_attr is None:
        request |= {"Segment": segment, "TotalSegments": segments}
    else:
        request |= {
            "KeyConditionExpression": "#id = :id",
            "ExpressionAttributeNames": {"#id": items.key_attr},
            "ExpressionAttributeValues": {":id": {"S": items.static_pk_value}},
        }
    if position is not None:
        request["ExclusiveStartKey"] = position
    if page_size is not None:
        request["Limit"] = page_size
    return request


def expired(items: ItemFormat, now_ms: int) -> Request:
    """Of expired records all that decides on their deletion, and no result: reading costs the same, but memory does not."""
    names = {f"#{part}": name for part, name in _deciding(items).items()} | {"#id": items.key_attr}
    if items.sort_key_attr is not None:
        names["#sort"] = items.sort_key_attr
    return {
        "FilterExpression": "#expiry < :now",  # rules.is_expired
        "ProjectionExpression": ", ".join(names),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": {":now": {"N": str(now_ms // 1000)}},
    }


def _deciding(items: ItemFormat) -> dict[str, str]:
    """The attributes of which a new claim, a renewal or a completion changes at least one."""
    return {
        "status": items.status_attr,
        "expiry": items.expiry_attr,
        "in_progress_expiry": items.in_progress_expiry_attr,
        "owner_token": items.owner_token_attr,
        "generation": items.generation_attr,
    }


def merged(request: Request, more: Request) -> Request:
    """Both requests in one; their names and values, too."""
    both = {**request, **more}
    for part in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
        if part in both:
            both[part] = {**request.get(part, {}), **more.get(part, {})}
    return both


def deletion(items: ItemFormat, key: str, seen: Item) -> Request:
    """Delete the record if it is still as it was seen."""
    conditions, names, values = _pinned(_deciding(items), seen)
    return {
        "Key": items.key(key),
        "ConditionExpression": " AND ".join(conditions),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
        "ReturnConsumedCapacity": "TOTAL",
        **ALL_OLD,
    }


def _pinned(attributes: dict[str, str], seen: Item) -> tuple[list[str], dict[str, str], Item]:
    """Conditions, names and values that say: these attributes are as they are in the item."""
    names = {f"#{part}": name for part, name in attributes.items()}
    values = {f":{part}": seen[name] for part, name in attributes.items() if name in seen}
    conditions = [f"#{part} = :{part}" if name in seen else f"attribute_not_exists(#{part})" for part, name in attributes.items()]
    return conditions, names, values


def converted(record: DataRecord, item: Item, source: ItemFormat, target: ItemFormat) -> Item:
    """The record's item under the target's names, with what else was in its item, unless a name is taken."""
    taken = source.attributes | target.attributes
    return {name: value for name, value in item.items() if name not in taken} | target.item(record)


def put_unless_taken(target: ItemFormat, record: DataRecord, item: Item, now_ms: int) -> Request:
    """Write a copied record if the target has none of its key, or one that it may replace.

    A record that is claimable itself replaces none.  Any other replaces the unfinished copy of its own attempt, and what a new
    attempt might supersede (rules.is_claimable): else that attempt would run a function whose result is at hand.
    """
    names, values = {"#id": target.key_attr}, {}
    ways = ["attribute_not_exists(#id)"]
    if not is_claimable(record, now_ms):
        names |= {
            "#status": target.status_attr,
            "#expiry": target.expiry_attr,
            "#in_progress_expiry": target.in_progress_expiry_attr,
        }
        values = {
            ":inprogress": {"S": INPROGRESS},
            ":now": {"N": str(now_ms // 1000)},
            ":now_in_millis": {"N": str(now_ms)},
        }
        ways += [ORPHANED, EXPIRED]
        same_attempt, more_names, more_values = _unfinished_copy(target, record, item)
        if same_attempt:
            ways.append(f"({' AND '.join(same_attempt)})")
            names |= more_names
            values |= more_values
    request = {
        "Item": item,
        "ConditionExpression": " OR ".join(ways),
        "ExpressionAttributeNames": names,
        "ReturnConsumedCapacity": "TOTAL",
        **ALL_OLD,
    }
    if values:  # DynamoDB refuses an empty map
        request["ExpressionAttributeValues"] = values
    return request


def _unfinished_copy(target: ItemFormat, record: DataRecord, item: Item) -> tuple[list[str], dict[str, str], Item]:
    """Conditions, names and values that say: the target's record is an earlier state of this attempt.

    An owner token is never used by another attempt, except by the later replays of a durable execution, which the generation
    tells apart; its lease may have been renewed since.  Another library's attempts have no token: the lease's end tells them
    apart, and where there is none, that a later attempt's record would expire later.
    """
    attempt = {"owner_token": target.owner_token_attr, "generation": target.generation_attr}
    if is_in_progress(record):
        if not record.owner_token or record.in_progress_expiry_timestamp is None:
            return [], {}, {}  # never renewed: there is nothing new to be told
        conditions, names, values = _pinned(attempt, item)
        values[":in_progress_expiry"] = item[target.in_progress_expiry_attr]
        # Forward only: in the target the attempt itself may have renewed it.
        return [*conditions, "#status = :inprogress", "#in_progress_expiry < :in_progress_expiry"], names, values
    if record.owner_token:
        conditions, names, values = _pinned(attempt, item)
        return [*conditions, "#status = :inprogress"], names, values
    conditions, names, values = _pinned({**attempt, "in_progress_expiry": target.in_progress_expiry_attr}, item)
    if record.expiry_timestamp is not None:
        conditions.append("#expiry <= :expiry")
        values[":expiry"] = item[target.expiry_attr]
    return [*conditions, "#status = :inprogress"], names, values
