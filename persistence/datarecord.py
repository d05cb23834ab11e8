"""The record of one idempotency key: plain values, no behaviour that decides anything (that is `rules`)."""

from __future__ import annotations

import json
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from persistence._values import Value
from persistence.exceptions import IdempotencyInvalidStatusError

if TYPE_CHECKING:
    import datetime as dt


class Status(StrEnum):
    """The stored words INPROGRESS and COMPLETED, and EXPIRED, which is only ever computed."""

    INPROGRESS = "INPROGRESS"
    COMPLETED = "COMPLETED"
    EXPIRED = "EXPIRED"


STATUS_CONSTANTS: Final = MappingProxyType({status.value: status.value for status in Status})

#: The words themselves: asking an enum for its value costs more than comparing two strings, at every comparison.
INPROGRESS: Final[str] = Status.INPROGRESS.value
COMPLETED: Final[str] = Status.COMPLETED.value

#: The heart of json.loads, which takes as long around it as in it, for a small text.
_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # it has been there since Python 2.7

#: Sets attributes of a record that is being made; afterwards, it is immutable.
_set: Final = object.__setattr__


class OffloadedResult(Value):
    """Where a result is kept that is too large for its record.

    Attributes:
        location: What the offload that stored it calls the place, such as `s3://bucket/key`.
        sha256: Digest of the stored bytes, in hex.
        size: How many bytes are stored.
    """

    __slots__ = __match_args__ = ("location", "sha256", "size")

    def __init__(self, location: str, sha256: str, size: int) -> None:
        self.location = location
        self.sha256 = sha256
        self.size = size


class DataRecord:
    """An immutable idempotency record, as stored or as offered to a store.

    Attributes:
        idempotency_key: The key; in a record read from a table with a sort key, the partition key's value.
        sort_key: The key in a record read from a table with a sort key, else None.  `key` is the key in both cases.
        stored_status: `INPROGRESS` or `COMPLETED`, as written.
        expiry_timestamp: The record's end, in epoch seconds.
        in_progress_expiry_timestamp: The lease's end, in epoch milliseconds; None where another library left it out.
        response_data: The result as JSON text, "" while there is none.
        payload_hash: Digest of the validated part of the payload, "" without payload validation.
        owner_token: Names the attempt that owns the record; "" in records of another library.
        generation: 1 for the first attempt at a key, one more with each that supersedes another; 0 in another library's records.
        holder: Request id of the attempt that holds or completed the record, "" where unknown.
        result_kept: False if the function ran and its result could not be stored.
        packed_result: A large result as it is stored: compressed, or the place where it is kept.  `response_data` is then ""; the
            store's `load` returns the record with it.
        region: The AWS Region whose replica of the table the record was written to, "" where that is not recorded.
        deadline_ms: Never stored.  When the holder must be done, in epoch milliseconds: a store does not retry beyond it.
        takes_over_orphans: Never stored.  False if a claim must be refused by an INPROGRESS record however old it is.
        supersedes: Never stored.  In an offer, the generation of the record that it was seen to supersede; None if none was seen.
        took_over: Never stored.  True in a granted record if the claim superseded an orphan.
        fresh_until_ms: Never stored.  In an offer, the last millisecond at which the key may be claimed without an orphan; later,
            the request is too old.  None if a request cannot be too old.
    """

    # A record has the fields of its own that it was given; it shares the others, which are these, with all records.
    idempotency_key: str
    stored_status: str = ""
    expiry_timestamp: int | None = None
    in_progress_expiry_timestamp: int | None = None
    response_data: str = ""
    payload_hash: str = ""
    sort_key: str | None = None
    owner_token: str = ""
    generation: int = 0
    holder: str = ""
    result_kept: bool = True
    packed_result: bytes | OffloadedResult | None = None
    region: str = ""
    deadline_ms: int | None = None
    takes_over_orphans: bool = True
    supersedes: int | None = None
    took_over: bool = False
    fresh_until_ms: int | None = None

    def __init__(
        self,
        idempotency_key: str,
        status: str = "",
        expiry_timestamp: int | None = None,
        in_progress_expiry_timestamp: int | None = None,
        response_data: str = "",
        payload_hash: str = "",
        sort_key: str | None = None,
        *,
        owner_token: str = "",
        generation: int = 0,
        holder: str = "",
        result_kept: bool = True,
        packed_result: bytes | OffloadedResult | None = None,
        region: str = "",
        deadline_ms: int | None = None,
        takes_over_orphans: bool = True,
        supersedes: int | None = None,
        took_over: bool = False,
        fresh_until_ms: int | None = None,
    ) -> None:
        fields = {
            "idempotency_key": idempotency_key,
            "stored_status": status,
            "expiry_timestamp": expiry_timestamp,
            "in_progress_expiry_timestamp": in_progress_expiry_timestamp,
            "response_data": response_data,
            "payload_hash": payload_hash,
            "sort_key": sort_key,
            "owner_token": owner_token,
            "generation": generation,
            "holder": holder,
            "result_kept": result_kept,
            "packed_result": packed_result,
            "region": region,
            "deadline_ms": deadline_ms,
            "takes_over_orphans": takes_over_orphans,
            "supersedes": supersedes,
            "took_over": took_over,
            "fresh_until_ms": fresh_until_ms,
        }
        _set(self, "__dict__", fields)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """A record of these attributes, which must include the key; the others have the constructor's defaults.

        For the library itself: unchecked, and in half the constructor's time.
        """
        record = object.__new__(cls)
        _set(record, "__dict__", fields)
        return record

    @property
    def key(self) -> str:
        """The idempotency key, whatever the table's layout."""
        return self.idempotency_key if self.sort_key is None else self.sort_key

    @property
    def is_expired(self) -> bool:
        """Whether the record's end has passed by this machine's clock.  The library itself asks `rules`, with its own clock."""
        import time  # here: only users ask, and what the library itself decides never looks at a clock

        return bool(self.expiry_timestamp and int(time.time()) > self.expiry_timestamp)

    @property
    def status(self) -> str:
        """The status now, EXPIRED included, by this machine's clock.

        Raises:
            IdempotencyInvalidStatusError: the stored status is none that this library knows.
        """
        if self.is_expired:
            return Status.EXPIRED.value
        if self.stored_status in STATUS_CONSTANTS:
            return self.stored_status
        raise IdempotencyInvalidStatusError(self.stored_status)

    def response_json_as_dict(self) -> Any:
        """The stored result as Python data, None if there is none.  Any JSON value, despite the name that users know.

        Raises:
            ValueError: the result is packed; only the store can load it.
        """
        if self.packed_result is not None:
            raise ValueError(f"The result of idempotency key {self.key} is packed; the store's `load` unpacks it")
        text = self.response_data
        if not text:
            return None
        try:
            value, end = _scan(text, 0)
        except StopIteration:  # it begins with no value
            end = -1
        return value if end == len(text) else json.loads(text)  # what is odd, or wrong, is for json itself

    def get_expiration_datetime(self) -> dt.datetime | None:
        """The record's end as a naive datetime in the machine's local time zone (UTC on Lambda)."""
        import datetime as dt  # here: no call of an idempotent function comes this way

        return dt.datetime.fromtimestamp(int(self.expiry_timestamp)) if self.expiry_timestamp else None  # noqa: DTZ006

    def replace(self, **changes: Any) -> Self:
        """A copy with *changes*, named as in the constructor."""
        if "status" in changes:
            changes["stored_status"] = changes.pop("status")
        if not _FIELDS.issuperset(changes):
            raise TypeError(f"a DataRecord has no {', '.join(sorted(changes.keys() - _FIELDS))}")
        return self.of({**self.__dict__, **changes})

    def stored(self) -> Self:
        """The record as a store keeps it: without what is never stored."""
        return self.of({name: value for name, value in self.__dict__.items() if name in _STORED_FIELDS})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a DataRecord is immutable; use replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a DataRecord is immutable; {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        """Whether a store would keep the same of both."""
        if not isinstance(other, DataRecord):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _STORED_FIELDS)

    def __hash__(self) -> int:
        return hash((self.key, self.stored_status, self.owner_token, self.generation))

    def __repr__(self) -> str:
        # Never the response data nor a hash of the payload: records appear in error texts and logs.
        return (
            f"DataRecord(idempotency_key={self.idempotency_key!r}, sort_key={self.sort_key!r}, status={self.stored_status!r}, "
            f"expiry_timestamp={self.expiry_timestamp}, in_progress_expiry_timestamp={self.in_progress_expiry_timestamp}, "
            f"generation={self.generation}, holder={self.holder!r})"
        )


_FIELDS: Final = frozenset(DataRecord.__annotations__)
_STORED_FIELDS: Final = _FIELDS - {"deadline_ms", "takes_over_orphans", "supersedes", "took_over", "fresh_until_ms"}
