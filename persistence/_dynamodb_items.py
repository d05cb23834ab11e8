"""Records as DynamoDB items, and the requests of each operation, as values.  Pure: nothing is sent from here.

Each condition is the translation of one predicate of `rules`.  A condition compares what is stored with this machine's clock,
because DynamoDB has none to offer.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from persistence.datarecord import INPROGRESS, DataRecord, OffloadedResult
from persistence.rules import is_too_old

Item: TypeAlias = dict[str, dict[str, Any]]
Request: TypeAlias = dict[str, Any]

#: An item's size limit, attribute names and values together.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_ITEM_BYTES: Final = 400 * 1024

#: rules.is_orphaned, for a record with a lease.
ORPHANED: Final = "(#status = :inprogress AND attribute_exists(#in_progress_expiry) AND #in_progress_expiry < :now_in_millis)"
#: rules.is_expired, for a record that no lease keeps alive.
EXPIRED: Final = "(#expiry < :now AND (#status <> :inprogress OR attribute_not_exists(#in_progress_expiry)))"
#: rules.is_orphaned, for a record that is known to be in progress.
PAST_LEASE: Final = (
    "((attribute_exists(#in_progress_expiry) AND #in_progress_expiry < :now_in_millis) "
    "OR (attribute_not_exists(#in_progress_expiry) AND #expiry < :now))"
)
#: rules.is_claimable where orphans must not be taken over.
EXPIRED_RESULT: Final = "(#expiry < :now AND #status <> :inprogress)"
#: rules.is_claimable of a request that is too old and has seen no orphan.
NEVER: Final = "attribute_exists(#id) AND attribute_not_exists(#id)"
#: A put cannot count, so a takeover names the generation that it supersedes: of two that saw the same record, one wins.
NO_GENERATION: Final = "attribute_not_exists(#generation)"
PREVIOUS_GENERATION: Final = "#generation = :previous_generation"

#: rules.is_held_by; without a token, the record is one that another library's attempt handed over to us.
HELD: Final = "#owner_token = :owner_token"
UNOWNED: Final = "attribute_not_exists(#owner_token)"

ALL_OLD: Final = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}


class ForeignItemError(ValueError):
    """An item is no idempotency record."""

    #: Whether our own claim may be what is stored.
    outcome_is_unknown = False


class ItemFormat:
    """The names of a table's attributes; placeholders carry them, so reserved words and dots are fine.

    Raises:
        ValueError: a name is empty or used twice.
    """

    def __init__(
        self,
        *,
        key_attr: str,
        sort_key_attr: str | None,
        static_pk_value: str,
        expiry_attr: str,
        in_progress_expiry_attr: str,
        status_attr: str,
        data_attr: str,
        validation_key_attr: str,
        owner_token_attr: str,
        generation_attr: str,
        holder_attr: str,
        result_not_kept_attr: str,
        region_attr: str,
    ) -> None:
        self.key_attr = key_attr
        self.sort_key_attr = sort_key_attr
        self.expiry_attr = expiry_attr
        self.in_progress_expiry_attr = in_progress_expiry_attr
        self.status_attr = status_attr
        self.data_attr = data_attr
        self.validation_key_attr = validation_key_attr
        self.owner_token_attr = owner_token_attr
        self.generation_attr = generation_attr
        self.holder_attr = holder_attr
        self.result_not_kept_attr = result_not_kept_attr
        self.region_attr = region_attr
        if sort_key_attr == key_attr:
            raise ValueError(f"key_attr [{key_attr}] and sort_key_attr [{sort_key_attr}] cannot be the same!")
        users: dict[str, str] = {}
        for field, name in self._named():
            if not isinstance(name, str) or not name:
                raise ValueError(f"{field} must be an attribute's name, not {name!r}")
            if name in users:
                raise ValueError(f"{users[name]} and {field} cannot both be [{name}]")
            users[name] = field
        self.static_pk_value = static_pk_value
        #: The field of a record that is in an attribute, and the attribute's type.  An absent one, or a null, is the default.
        self._known: dict[str, tuple[str, str]] = {
            key_attr: ("idempotency_key", "S"),
            status_attr: ("stored_status", "S"),
            expiry_attr: ("expiry_timestamp", "N"),
            in_progress_expiry_attr: ("in_progress_expiry_timestamp", "N"),
            data_attr: ("response_data", "S"),
            validation_key_attr: ("payload_hash", "S"),
            owner_token_attr: ("owner_token", "S"),
            generation_attr: ("generation", "N"),
            holder_attr: ("holder", "S"),
            region_attr: ("region", "S"),
        }
        self._needed = [key_attr, status_attr]
        if sort_key_attr is not None:
            self._known[sort_key_attr] = ("sort_key", "S")
            self._needed.append(sort_key_attr)
        #: The texts of completions, and the names in them, by what is in the record; see `_completion`.
        self._completions: dict[tuple[str, bool, bool], tuple[str, str, dict[str, str]]] = {}

    def _named(self) -> list[tuple[str, Any]]:
        """Each option that is an attribute's name, and the name."""
        named = [(option, name) for option, name in vars(self).items() if option.endswith("_attr")]
        return [(option, name) for option, name in named if option != "sort_key_attr" or name is not None]

    @property
    def attributes(self) -> frozenset[str]:
        """The names of all attributes that a record may have."""
        return frozenset(name for _, name in self._named())

    @property
    def primary_key(self) -> str:
        """The primary key that the table must have, by the options that name it."""
        sort_key = "no sort key" if self.sort_key_attr is None else f"sort_key_attr={self.sort_key_attr!r}, a string"
        return f"key_attr={self.key_attr!r}, a string, and {sort_key}"

    @property
    def hot_partition(self) -> str:
        """What it means that one partition key value gets more requests than a partition serves.

        https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html
        """
        if self.sort_key_attr is None:
            return "one key is hot; a partition serves 1,000 write and 3,000 read units a second."
        return (
            f"a hot partition. All records of {self.key_attr}={self.static_pk_value!r} share one partition key value, and with "
            "it 1,000 write and 3,000 read units a second; a table without a sort key, or several values of static_pk_value, "
            "would spread them."
        )

    def key(self, idempotency_key: str) -> Item:
        """The primary key of the record's item."""
        if self.sort_key_attr:
            return {self.key_attr: {"S": self.static_pk_value}, self.sort_key_attr: {"S": idempotency_key}}
        return {self.key_attr: {"S": idempotency_key}}

    def record(self, item: Item) -> DataRecord:
        """The record in an item, by whichever library it was written.  Attributes that are not ours are ignored.

        Raises:
            ValueError: the item is no idempotency record under these attribute names.
        """
        known = self._known
        fields: dict[str, Any] = {}
        name = ""
        try:
            for name, value in item.items():
                if name not in known:
                    continue
                field, kind = known[name]
                try:
                    fields[field] = value[kind] if kind == "S" else int(value[kind])
                except (KeyError, ValueError):
                    fields.update(self._unusual(name, value))
            for name in self._needed:
                _ = item[name]["S"]
        except (ArithmeticError, KeyError, TypeError, ValueError):  # their texts may show a value
            raise ForeignItemError(f"The item is no idempotency record: it has no {name!r} of type {known[name][1]}") from None
        if self.result_not_kept_attr in item:
            fields["result_kept"] = False
        return DataRecord.of(fields)

    def _unusual(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """The fields that a value stands for that is none of the usual type."""
        if "NULL" in value:
            return {}
        field, kind = self._known[name]
        if name == self.data_attr and "B" in value:
            return {"packed_result": bytes(value["B"])}
        if name == self.data_attr and "M" in value:
            place = value["M"]
            found = OffloadedResult(place["location"]["S"], place["sha256"]["S"], int(place["size"]["N"]))
            return {"packed_result": found}
        from decimal import Decimal  # here: another writer may have stored a fraction

        return {field: int(Decimal(value[kind]))}

    def claim(self, offer: DataRecord, now_ms: int) -> Request:
        """Write the offer if there is no record, or a claimable one of the generation that it supersedes.

        An offer that has seen no record supersedes none.  If the request is too old, there must be an orphan of that generation.
        """
        request: Request = {
            "Item": self._claimed(offer),
            "ConditionExpression": "attribute_not_exists(#id)",
            "ExpressionAttributeNames": {"#id": self.key_attr},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if offer.fresh_until_ms is not None and is_too_old(offer.fresh_until_ms, now_ms):
            request.update(self._of_orphan(offer, now_ms))
        elif offer.supersedes is not None:
            superseded, names, request["ExpressionAttributeValues"] = self._superseded(offer, offer.supersedes, now_ms)
            request["ConditionExpression"] = f"attribute_not_exists(#id) OR ({superseded})"
            request["ExpressionAttributeNames"].update(names)
        return request

    def _of_orphan(self, offer: DataRecord, now_ms: int) -> Request:
        """The condition of a claim for a request that is too old: the orphan that was seen is still there."""
        if offer.supersedes is None or not offer.takes_over_orphans:
            return {"ConditionExpression": NEVER}
        superseded, names, values = self._superseded(offer, offer.supersedes, now_ms)
        return {
            "ConditionExpression": f"{superseded} AND #status = :inprogress",
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }

    def item(self, record: DataRecord) -> Item:
        """The whole item of a record."""
        item = self._claimed(record)
        if not record.result_kept or record.response_data or record.packed_result is not None:
            name, value = self._outcome(record)
            item[name] = value
        return item

    def _claimed(self, record: DataRecord) -> Item:
        """The item of a record without its result."""
        item = self.key(record.key)
        item[self.status_attr] = {"S": record.stored_status}
        if (expiry := record.expiry_timestamp) is not None:
            item[self.expiry_attr] = {"N": str(expiry)}
        if (lease_end_ms := record.in_progress_expiry_timestamp) is not None:
            item[self.in_progress_expiry_attr] = {"N": str(lease_end_ms)}
        if token := record.owner_token:
            item[self.owner_token_attr] = {"S": token}
        if generation := record.generation:
            item[self.generation_attr] = {"N": "1" if generation == 1 else str(generation)}
        if record.holder:
            item[self.holder_attr] = {"S": record.holder}
        if record.payload_hash:
            item[self.validation_key_attr] = {"S": record.payload_hash}
        if record.region:
            item[self.region_attr] = {"S": record.region}
        return item

    def _outcome(self, record: DataRecord) -> tuple[str, dict[str, Any]]:
        """The attribute that a completion adds: the result, or that there is none.

        A result is a string as Powertools reads it, a binary if compressed, a map if kept elsewhere.  Powertools fails on the
        latter two; were they in attributes of their own, it would replay None instead.
        """
        if not record.result_kept:
            return self.result_not_kept_attr, {"BOOL": True}
        packed = record.packed_result
        if packed is None:
            return self.data_attr, {"S": record.response_data}
        if isinstance(packed, OffloadedResult):
            place = {"location": {"S": packed.location}, "sha256": {"S": packed.sha256}, "size": {"N": str(packed.size)}}
            return self.data_attr, {"M": place}
        return self.data_attr, {"B": packed}

    def size(self, record: DataRecord) -> int:
        """The bytes that DynamoDB counts for the record's item, names included."""
        return item_bytes(self.item(record))

    def _superseded(self, offer: DataRecord, generation: int, now_ms: int) -> tuple[str, dict[str, str], Item]:
        """rules.is_claimable, of that generation.  DynamoDB refuses names and values that go unused."""
        names = {"#generation": self.generation_attr, "#expiry": self.expiry_attr, "#status": self.status_attr}
        values: Item = {":now": {"N": str(now_ms // 1000)}, ":inprogress": {"S": INPROGRESS}}
        claimable = EXPIRED_RESULT
        if offer.takes_over_orphans:
            claimable = f"({ORPHANED} OR {EXPIRED})"
            names["#in_progress_expiry"] = self.in_progress_expiry_attr
            values[":now_in_millis"] = {"N": str(now_ms)}
        if generation == 0:
            return f"{NO_GENERATION} AND {claimable}", names, values
        values[":previous_generation"] = {"N": str(generation)}
        return f"{PREVIOUS_GENERATION} AND {claimable}", names, values

    def get(self, idempotency_key: str, *, is_consistent: bool = True) -> Request:
        """Read the record; consistently if it must show every write that was answered before, else at half the price."""
        return {"Key": self.key(idempotency_key), "ConsistentRead": is_consistent}

    def complete(self, record: DataRecord) -> Request:
        """Write the result if the record is the owner's, in progress or completed already."""
        name, outcome = self._outcome(record)
        has_hash, has_token = bool(record.payload_hash), bool(record.owner_token)
        shape = (name, has_hash, has_token)
        if shape not in self._completions:
            self._completions[shape] = self._completion(record, *shape)
        update, condition, names = self._completions[shape]
        values: Item = {
            ":response_data" if record.result_kept else ":result_not_kept": outcome,
            ":expiry": {"N": str(record.expiry_timestamp)},
            ":status": {"S": record.stored_status},
        }
        if has_hash:
            values[":validation_key"] = {"S": record.payload_hash}
        if has_token:
            values[":owner_token"] = {"S": record.owner_token}
        return {
            "Key": self.key(record.key),
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names.copy(),
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _completion(self, record: DataRecord, name: str, has_hash: bool, has_token: bool) -> tuple[str, str, dict[str, str]]:
        """The update, the condition and the names of a completion that writes its outcome to the attribute *name*."""
        part = "response_data" if record.result_kept else "result_not_kept"
        names = {
            f"#{part}": name,
            "#expiry": self.expiry_attr,
            "#status": self.status_attr,
            "#owner_token": self.owner_token_attr,
        }
        update = f"SET #{part} = :{part}, #expiry = :expiry, #status = :status"
        if has_hash:
            update += ", #validation_key = :validation_key"
            names["#validation_key"] = self.validation_key_attr
        return update, HELD if has_token else UNOWNED, names

    def commit(self, record: DataRecord) -> Request:
        """Write the result if the record is there, the owner's and unfinished: the part of the record in a transaction.

        More than `complete` demands: to a completed record the transaction's other writes would be applied a second time, and to
        an absent one after its caller was told that they failed.
        """
        request = self.complete(record)
        request["ConditionExpression"] += " AND #status = :inprogress"
        request["ExpressionAttributeValues"][":inprogress"] = {"S": INPROGRESS}
        return request

    def restore(self, record: DataRecord) -> Request:
        """Write a completed record whole, if there is none.  Together with `complete`, this is rules.may_complete."""
        return {
            "Item": self.item(record),
            "ConditionExpression": "attribute_not_exists(#id)",
            "ExpressionAttributeNames": {"#id": self.key_attr},
            **ALL_OLD,
        }

    def renew(self, record: DataRecord) -> Request:
        """Move the lease's end and the expiry if the record is the owner's and unfinished, and its lease does not end later.

        A renewal that was delayed on its way, and has been overtaken by the next one, must not set the lease back.
        """
        condition, names, values = self._unfinished(record)
        condition += " AND #in_progress_expiry <= :in_progress_expiry"
        return {
            "Key": self.key(record.key),
            "UpdateExpression": "SET #in_progress_expiry = :in_progress_expiry, #expiry = :expiry",
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {
                **names,
                "#in_progress_expiry": self.in_progress_expiry_attr,
                "#expiry": self.expiry_attr,
            },
            "ExpressionAttributeValues": {
                **values,
                ":in_progress_expiry": {"N": str(record.in_progress_expiry_timestamp)},
                ":expiry": {"N": str(record.expiry_timestamp)},
            },
            **ALL_OLD,
        }

    def release(self, record: DataRecord, now_ms: int | None = None) -> Request:
        """Delete the record if rules.may_release: the owner's and unfinished; with *now_ms*, rules.may_release_orphan."""
        condition, names, values = self._unfinished(record)
        if now_ms is not None:
            condition += f" AND {PAST_LEASE}"
            names |= {"#in_progress_expiry": self.in_progress_expiry_attr, "#expiry": self.expiry_attr}
            values |= {":now_in_millis": {"N": str(now_ms)}, ":now": {"N": str(now_ms // 1000)}}
        return {
            "Key": self.key(record.key),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            **ALL_OLD,
        }

    def _unfinished(self, record: DataRecord) -> tuple[str, dict[str, str], Item]:
        """rules.may_release."""
        names = {"#owner_token": self.owner_token_attr, "#status": self.status_attr}
        values: Item = {":inprogress": {"S": INPROGRESS}}
        return f"{self._held(record, values)} AND #status = :inprogress", names, values

    @staticmethod
    def _held(record: DataRecord, values: Item) -> str:
        """rules.is_held_by."""
        if not record.owner_token:
            return UNOWNED
        values[":owner_token"] = {"S": record.owner_token}
        return HELD


def item_bytes(item: Item) -> int:
    """The bytes that DynamoDB counts for an item, names included.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    return sum(_text_bytes(name) + value_bytes(value) for name, value in item.items())


def value_bytes(value: dict[str, Any]) -> int:
    """The bytes that DynamoDB counts for an attribute's value."""
    [(kind, content)] = value.items()
    match kind:
        case "S":
            return _text_bytes(content)
        case "N":
            return _number_bytes(content)
        case "B":
            return len(content)
        case "M":
            return 3 + len(content) + item_bytes(content)
        case "L":
            return 3 + sum(1 + value_bytes(element) for element in content)
        case "SS" | "NS" | "BS":
            return sum(value_bytes({kind[0]: element}) for element in content)
        case _:
            return 1  # BOOL and NULL


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _number_bytes(digits: str) -> int:
    """A byte, one for each pair of significant digits, counted from the decimal point, and one for a minus.

    AWS documents it as approximate; DynamoDB Local counts exactly so.
    """
    from decimal import Decimal  # here: only an item that may be too large is measured

    sign, figures, exponent = Decimal(digits).as_tuple()
    assert isinstance(exponent, int)  # finite
    significant = "".join(map(str, figures)).rstrip("0")
    if not significant.strip("0"):
        return 1
    is_odd = (exponent + len(figures) - len(significant)) % 2
    return 1 + (len(significant) + is_odd + 1) // 2 + sign
