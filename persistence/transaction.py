"""The caller's own writes, collected while its function runs and committed together with its record, or not at all."""

from __future__ import annotations

from _thread import RLock  # reentrant, for a signal's handler that makes a call
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from persistence._dynamodb_items import MAX_ITEM_BYTES, item_bytes
from persistence._user_requests import comparable, low_level, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistence._dynamodb_items import Item, Request
    from persistence._user_requests import Condition

#: Of the 100 actions of a TransactWriteItems, one is the record's.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html
MAX_ACTIONS: Final = 99
#: All items of a transaction together; of updates and deletions, their arguments are counted here.
MAX_BYTES: Final = 4 * 1024 * 1024

#: Each kind of action by the name of its method and by the service's.
KINDS: Final = {"put": "Put", "update": "Update", "delete": "Delete", "check": "ConditionCheck"}
NEEDED: Final = {"update": "UpdateExpression", "check": "ConditionExpression"}
_METHODS: Final = {kind: method for method, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class CancellationReason:
    """Why a transaction was canceled, as far as one action is to blame.

    Attributes:
        action: `put`, `update`, `delete` or `check`.
        table_name: Its table, as it was given.
        code: The service's word, such as `ConditionalCheckFailed` or `TransactionConflict`; None if this action was not to blame.
        message: The service's explanation, "" if there is none.
        item: The item that the condition was not true of, in plain Python values, where
            `ReturnValuesOnConditionCheckFailure="ALL_OLD"` asked for it; else None.
    """

    action: str
    table_name: str
    code: str | None
    message: str = ""
    item: dict[str, Any] | None = field(default=None, repr=False)


class Transaction:
    """The writes of one idempotent call.  Get it with `transaction()`, inside the function.

    Arguments have boto3's names.  Values are plain Python, as for boto3's resources: int and Decimal, not float.  An action
    whose key, or whose every attribute in a put, is in the low-level client's form (`{"S": "text"}`) is taken as such, its
    expression values included.  Conditions may be texts or objects of `boto3.dynamodb.conditions`.

    Nothing is sent before the function returns.  Then all writes are applied, together with the record's completion, or none;
    if the function raises, none is.  A read does not see what has only been collected.  Safe to use from several threads.

    Raises:
        RuntimeError: at any action, the function has returned.
        TypeError, ValueError: at the action that is wrong, or is one too many: more than 99 actions or 4 MB, a second one on
            the same item, one on the call's own record, a table in another Region.  That two puts name the same item can be seen
            here only where another action tells the table's key; otherwise DynamoDB refuses the whole transaction.
    """

    def __init__(self, *, idempotency_key: str, own_table: str, own_key: Item, region: str) -> None:
        """For stores: a transaction beside the record of *own_key* in *own_table* (name or ARN), sent to *region*."""
        self.idempotency_key = idempotency_key
        self._own_table = _name_of(own_table)
        self._own_key = comparable(own_key)
        self._region = region
        self._actions: list[Request] = []
        self._bytes = 0
        self._key_names: dict[str, frozenset[str]] = {self._own_table: frozenset(own_key)}
        self._seen: dict[str, list[Item]] = {}
        self._is_closed = False
        self._lock = RLock()

    def put(
        self,
        *,
        TableName: str,
        Item: Mapping[str, Any],
        ConditionExpression: Condition | None = None,
        ExpressionAttributeNames: Mapping[str, str] | None = None,
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
        ReturnValuesOnConditionCheckFailure: Literal["ALL_OLD", "NONE"] | None = None,
    ) -> None:
        """Write an item, as `put_item` does."""
        self._add("put", locals())

    def update(
        self,
        *,
        TableName: str,
        Key: Mapping[str, Any],
        UpdateExpression: str,
        ConditionExpression: Condition | None = None,
        ExpressionAttributeNames: Mapping[str, str] | None = None,
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
        ReturnValuesOnConditionCheckFailure: Literal["ALL_OLD", "NONE"] | None = None,
    ) -> None:
        """Change attributes of an item, as `update_item` does."""
        self._add("update", locals())

    def delete(
        self,
        *,
        TableName: str,
        Key: Mapping[str, Any],
        ConditionExpression: Condition | None = None,
        ExpressionAttributeNames: Mapping[str, str] | None = None,
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
        ReturnValuesOnConditionCheckFailure: Literal["ALL_OLD", "NONE"] | None = None,
    ) -> None:
        """Delete an item, as `delete_item` does."""
        self._add("delete", locals())

    def check(
        self,
        *,
        TableName: str,
        Key: Mapping[str, Any],
        ConditionExpression: Condition,
        ExpressionAttributeNames: Mapping[str, str] | None = None,
        ExpressionAttributeValues: Mapping[str, Any] | None = None,
        ReturnValuesOnConditionCheckFailure: Literal["ALL_OLD", "NONE"] | None = None,
    ) -> None:
        """Demand that a condition holds of an item which the transaction does not write."""
        self._add("check", locals())

    @property
    def actions(self) -> tuple[Request, ...]:
        """What was collected, as entries of a TransactWriteItems."""
        return tuple(self._actions)

    @property
    def is_closed(self) -> bool:
        """Whether the function has returned."""
        return self._is_closed

    def close(self) -> bool:
        """For the library: collect no more.  Returns whether there is anything to write."""
        with self._lock:
            self._is_closed = True
        return bool(self._actions)

    def check_size(self, record_bytes: int) -> None:
        """For stores: raise ValueError if the record has too many bytes to be committed together with the actions."""
        _check_total(self._bytes + record_bytes)

    def reasons(self, found: list[dict[str, Any]]) -> tuple[CancellationReason, ...]:
        """For stores: the service's reasons of this transaction's actions, in their order."""
        return tuple(_reason(action, reason) for action, reason in zip(self._actions, found, strict=True))

    def __repr__(self) -> str:
        return f"Transaction(idempotency_key={self.idempotency_key!r}, actions={len(self._actions)})"

    def _add(self, method: str, arguments: dict[str, Any]) -> None:
        try:
            request = low_level({name: argument for name, argument in arguments.items() if name != "self"})
            self._check_arguments(method, request)
            with self._lock:
                self._admit(request, self._table_of(request["TableName"]))
                self._actions.append({KINDS[method]: request})
        except UnicodeEncodeError:  # its text repeats a part of the value
            raise ValueError(f"transaction().{method}(): a text is no valid Unicode") from None
        except TypeError as error:
            raise TypeError(f"transaction().{method}(): {error}") from None
        except ValueError as error:
            raise ValueError(f"transaction().{method}(): {error}") from None

    @staticmethod
    def _check_arguments(method: str, request: Request) -> None:
        needed = NEEDED.get(method)
        if needed is not None and needed not in request:
            raise TypeError(f"{needed} is missing")
        if request.get("ReturnValuesOnConditionCheckFailure", "NONE") not in ("ALL_OLD", "NONE"):
            raise ValueError("ReturnValuesOnConditionCheckFailure must be 'ALL_OLD' or 'NONE'")

    def _table_of(self, name: str) -> str:
        """The table's name; the service knows only that of a table in the transaction's own Region."""
        region = _region_of(name)
        if region and self._region and region != self._region:
            raise ValueError(
                f"{name} is in another Region than {self._region}, where the record is; a transaction has one Region"
            )
        return _name_of(name)

    def _admit(self, request: Request, table: str) -> None:
        """Raise if the action cannot be one of this transaction's; else remember what it writes."""
        if self._is_closed:
            raise RuntimeError("The idempotent call of this transaction has ended; its writes were sent, or dropped, by then")
        if len(self._actions) == MAX_ACTIONS:
            raise ValueError(f"a transaction holds {MAX_ACTIONS} actions, besides the record's own")
        identity: Item = request.get("Key") or request["Item"]
        size = item_bytes(identity)
        if size > MAX_ITEM_BYTES:
            raise ValueError(f"the item of {table} has {size} bytes; DynamoDB holds {MAX_ITEM_BYTES}")
        size += item_bytes(request.get("ExpressionAttributeValues", {}))
        _check_total(self._bytes + size)
        names = frozenset(request["Key"]) if "Key" in request else None
        names = self._key_names.get(table, names)
        seen = [*self._seen.get(table, []), identity]
        if names is not None:
            keys = [comparable({name: each[name] for name in names if name in each}) for each in seen]
            if table == self._own_table and self._own_key in keys:
                raise ValueError("the item is this call's own idempotency record")
            if len(set(keys)) < len(keys):
                raise ValueError(f"a transaction has one action for each item, and {table} has another for this one")
            self._key_names[table] = names
        self._seen[table] = seen
        self._bytes += size


def _check_total(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"a transaction holds {MAX_BYTES} bytes, the record's included, and this one has {size}")


def _reason(action: Request, reason: dict[str, Any]) -> CancellationReason:
    [(kind, request)] = action.items()
    code: str | None = reason.get("Code")
    item = reason.get("Item")
    return CancellationReason(
        _METHODS[kind],
        request["TableName"],
        None if code == "None" else code,
        reason.get("Message") or "",
        plain(item) if item else None,
    )


def _region_of(table: str) -> str:
    """The Region in a table's ARN, "" of a table's name."""
    return table.split(":")[3] if table.startswith("arn:") and table.count(":") >= 5 else ""  # noqa: PLR2004 - an ARN's parts


def _name_of(table: str) -> str:
    """A table's name, which an ARN ends with."""
    return table.rpartition(":table/")[2]
