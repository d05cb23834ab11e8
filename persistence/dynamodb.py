"""The DynamoDB store: one conditional write per operation, retried until just before the deadline, its answer translated."""

from __future__ import annotations

import os
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol
from zlib import crc32

from persistence._dynamodb_items import Item, ItemFormat
from persistence._retries import RESERVE_MS, Retries, error_code, is_refusal
from persistence.base import BasePersistenceLayer, call_deadline_ms
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyLeaseLostError,
    IdempotencyResultNotKeptError,
)
from persistence.rules import is_claimable, is_completed, is_held_by, is_in_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from boto3.session import Session
    from botocore.config import Config

    from persistence.datarecord import DataRecord

#: Seconds.  DynamoDB answers within milliseconds; the SDK's 60 s would outlive the invocation.
CONNECT_TIMEOUT: Final = 1
READ_TIMEOUT: Final = 2
#: Connections cost nothing until they are used; fewer than there are threads cost a TLS handshake per call.
MAX_POOL_CONNECTIONS: Final = 50

#: Names this library to AWS Support and in the user's own CloudTrail.
USER_AGENT: Final = "lambda-idempotency"

#: How long a claim is retried at most: the caller waits, and a later retry of the whole call is safe.
CLAIM_RETRY_MS: Final = 10_000
#: How long a completion is retried where no deadline is known: twice as long, because the effect has happened.
COMPLETE_RETRY_MS: Final = 20_000
#: How long a release is retried at most: it only spares the next attempt the rest of the lease.
RELEASE_RETRY_MS: Final = 3_000
FETCH_RETRY_MS: Final = 5_000

#: Clients are made one at a time: boto3's default session is not safe to create clients from in several threads.
#: https://boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html#multithreading-or-multiprocessing-with-clients
_client_lock = Lock()


class DynamoDBClient(Protocol):
    """What is used of a boto3 client for DynamoDB."""

    put_item: Callable[..., Any]
    get_item: Callable[..., Any]
    update_item: Callable[..., Any]
    delete_item: Callable[..., Any]


class DynamoDBPersistenceLayer(BasePersistenceLayer):
    """Keeps records in a DynamoDB table; needs GetItem, PutItem, UpdateItem and DeleteItem on it, nothing else.

    Construction reads no configuration and sends nothing.  `client` is made at once inside Lambda, at its first use elsewhere,
    and may be replaced at any time, as may `table_name`.  A client made here has timeouts of 1 s (connect) and 2 s (read), and
    this store does the retries; one that is given is used exactly as it is, its own retries included.

    The table's TTL, if enabled, belongs on *expiry_attr*.

    Args:
        table_name: The table's name or ARN.
        key_attr: Partition key, a string.
        static_pk_value: The partition key's value on a table with a sort key; `idempotency#{function name}` if left out.
        sort_key_attr: Sort key, a string, which then holds the idempotency key.
        expiry_attr: The record's end, epoch seconds.
        in_progress_expiry_attr: The lease's end, epoch milliseconds.
        status_attr: INPROGRESS or COMPLETED.
        data_attr: The result, JSON text.
        validation_key_attr: Digest of the validated payload.
        boto_config: Merged over this store's own settings of the client.
        boto3_session: Makes the client; the process's default session if left out.
        boto3_client: The client to use; *boto_config* and *boto3_session* are then ignored.
        owner_token_attr: The attempt that owns the record.
        generation_attr: How many attempts have held the key.
        holder_attr: The request id of the attempt that holds or completed the record.
        result_not_kept_attr: Present on the record of a call that ran and whose result could not be stored.

    Raises:
        ValueError: an attribute's name is empty or used twice.
    """

    supports_leases = True

    def __init__(
        self,
        table_name: str,
        key_attr: str = "id",
        static_pk_value: str | None = None,
        sort_key_attr: str | None = None,
        expiry_attr: str = "expiration",
        in_progress_expiry_attr: str = "in_progress_expiration",
        status_attr: str = "status",
        data_attr: str = "data",
        validation_key_attr: str = "validation",
        boto_config: Config | None = None,
        boto3_session: Session | None = None,
        boto3_client: DynamoDBClient | None = None,
        owner_token_attr: str = "owner_token",  # noqa: S107 - an attribute's name
        generation_attr: str = "generation",
        holder_attr: str = "holder",
        result_not_kept_attr: str = "result_not_kept",
    ) -> None:
        super().__init__()
        if not isinstance(table_name, str) or not table_name:
            raise ValueError(f"table_name must be a table's name, not {table_name!r}")
        if static_pk_value is None:
            static_pk_value = f"idempotency#{os.environ.get('AWS_LAMBDA_FUNCTION_NAME', '')}"
        self.table_name = table_name
        self._items = ItemFormat(
            key_attr=key_attr,
            sort_key_attr=sort_key_attr,
            static_pk_value=static_pk_value,
            expiry_attr=expiry_attr,
            in_progress_expiry_attr=in_progress_expiry_attr,
            status_attr=status_attr,
            data_attr=data_attr,
            validation_key_attr=validation_key_attr,
            owner_token_attr=owner_token_attr,
            generation_attr=generation_attr,
            holder_attr=holder_attr,
            result_not_kept_attr=result_not_kept_attr,
        )
        self._boto_config = boto_config
        self._boto3_session = boto3_session
        if boto3_client is not None:
            self.client = boto3_client
        elif "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "AWS_DEFAULT_REGION" in os.environ:
            _ = self.client  # Lambda's init phase has a whole vCPU whatever the memory size, and is the place for slow set-up

    @cached_property
    def client(self) -> DynamoDBClient:
        """The DynamoDB client in use."""
        with _client_lock:
            if "client" in self.__dict__:  # another thread was first
                made: DynamoDBClient = self.__dict__["client"]
                return made
            import boto3  # here: who gives a client, or never calls, does not pay for the import
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=MAX_POOL_CONNECTIONS,
                # The SDK knows no deadline and waits seconds when throttled; `Retries` does the retrying.
                retries={"mode": "standard", "total_max_attempts": 1},
                user_agent_extra=USER_AGENT,
            )
            if self._boto_config is not None:
                config = config.merge(self._boto_config)
                if config.user_agent_extra != USER_AGENT:
                    config = config.merge(Config(user_agent_extra=f"{config.user_agent_extra} {USER_AGENT}"))
            client = (self._boto3_session or boto3).client("dynamodb", config=config)
            client.meta.events.register("before-parse.dynamodb", _refuse_cut_answer)
            made = self.__dict__["client"] = client
            return made

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        offer, now_ms = data_record, self.clock_ms()
        existing = self._try_claim(offer, now_ms)
        if existing is None:
            return offer
        is_free = is_claimable(existing, now_ms, takes_over_orphans=offer.takes_over_orphans)
        if is_free and existing.generation != offer.supersedes:
            takeover = offer.replace(
                generation=existing.generation + 1, supersedes=existing.generation, took_over=is_in_progress(existing)
            )
            existing = self._try_claim(takeover, now_ms)
            if existing is None:
                return takeover
            offer = takeover
        if is_held_by(existing, offer.owner_token):  # the answer to an earlier try was lost
            existing = existing.replace(took_over=offer.took_over)
        raise IdempotencyItemAlreadyExistsError(old_data_record=existing)

    def _try_claim(self, offer: DataRecord, now_ms: int) -> DataRecord | None:
        """Put the offer.  Returns None if it was written, else the record that holds the key.

        Raises:
            IdempotencyItemAlreadyExistsError: refused, and the answer did not show by which record.
        """
        request = self._items.claim(offer, now_ms)
        retries = self._retries(offer, CLAIM_RETRY_MS)
        try:
            retries.call(self.client.put_item, TableName=self.table_name, **request)
        except Exception as error:
            item = _item_of_refusal(error)
            if item is None:
                raise
            if not item:
                raise IdempotencyItemAlreadyExistsError from error
            return self._items.record(item)
        return None

    def _get_record(self, idempotency_key: str) -> DataRecord:
        request = self._items.get(idempotency_key)
        retries = Retries(self.clock_ms, self.sleep_ms, at_most_ms=FETCH_RETRY_MS, deadline_ms=call_deadline_ms.get())
        answer = retries.call(self.client.get_item, TableName=self.table_name, **request)
        item = answer.get("Item")
        if not item:
            raise IdempotencyItemNotFoundError
        return self._items.record(item)

    def _update_record(self, data_record: DataRecord) -> None:
        if is_in_progress(data_record):
            self._renew_record(data_record)
            return
        record = data_record
        # The effect has happened: as long as the holder may live, nothing is better than storing its result.
        retries = self._retries(record, COMPLETE_RETRY_MS if record.deadline_ms is None else None)
        try:
            retries.call(self.client.update_item, TableName=self.table_name, **self._items.complete(record))
        except Exception as error:  # noqa: BLE001 - raised again there, unless the record is completed in spite of it
            if _item_of_refusal(error) == {}:
                self._restore_record(record, retries)
                return
            self._settle(error, record, retries)

    def _restore_record(self, record: DataRecord, retries: Retries) -> None:
        """Write a completed record whose claim has vanished, by the table's TTL or by hand, whole again."""
        try:
            retries.call(self.client.put_item, TableName=self.table_name, **self._items.restore(record))
        except Exception as error:  # noqa: BLE001 - the same
            self._settle(error, record, retries)

    def _settle(self, error: Exception, record: DataRecord, retries: Retries) -> None:
        """Return if the record is completed in spite of the error; raise what the error means if not."""
        existing = self._refusing_record(error)
        if existing is None and retries.outcome_unknown:
            existing = self._read_once(record)
        if existing is not None and is_held_by(existing, record.owner_token) and is_completed(existing):
            return
        if _is_too_large(error):
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} exceeds what a DynamoDB item holds"
            ) from error
        if is_refusal(error) or (existing is not None and not is_held_by(existing, record.owner_token)):
            raise _fenced(record, existing) from error
        raise error

    def _read_once(self, record: DataRecord) -> DataRecord | None:
        """The record as a consistent read shows it, in the time kept in reserve; None if the read fails, too."""
        retries = Retries(self.clock_ms, self.sleep_ms, at_most_ms=RESERVE_MS)
        try:
            item = retries.call(self.client.get_item, TableName=self.table_name, **self._items.get(record.key)).get("Item")
            return self._items.record(item) if item else None
        except Exception:  # noqa: BLE001 - the completion's own error is the one to report
            return None

    def _refusing_record(self, error: Exception) -> DataRecord | None:
        item = _item_of_refusal(error)
        return self._items.record(item) if item else None

    def _renew_record(self, record: DataRecord) -> None:
        # One request: a renewal that fails is made again at the next beat, well before the lease ends.
        try:
            self.client.update_item(TableName=self.table_name, **self._items.renew(record))
        except Exception as error:
            if not is_refusal(error):
                raise
            raise _fenced(record, self._refusing_record(error)) from error

    def _delete_record(self, data_record: DataRecord) -> None:
        request = self._items.release(data_record)
        retries = self._retries(data_record, RELEASE_RETRY_MS)
        try:
            retries.call(self.client.delete_item, TableName=self.table_name, **request)
        except Exception as error:
            if _item_of_refusal(error) == {}:
                return  # gone already: deleted by an earlier try whose answer was lost, or by the table's TTL
            if not is_refusal(error):
                raise
            raise _fenced(data_record, self._refusing_record(error)) from error

    def _retries(self, record: DataRecord, at_most_ms: int | None) -> Retries:
        return Retries(self.clock_ms, self.sleep_ms, at_most_ms=at_most_ms, deadline_ms=record.deadline_ms)


def _fenced(record: DataRecord, existing: DataRecord | None) -> IdempotencyLeaseLostError:
    return IdempotencyLeaseLostError(f"Another attempt owns the record of idempotency key {record.key}", record=existing)


def _refuse_cut_answer(response_dict: dict[str, Any], **_: Any) -> None:
    """Check an answer's checksum, as the SDK does only when it retries: it would take a cut read for a missing item."""
    expected = response_dict["headers"].get("x-amz-crc32")
    if expected is not None and crc32(response_dict["body"]) != int(expected):
        from botocore.exceptions import ChecksumError

        raise ChecksumError(checksum_type="crc32", expected_checksum=expected, actual_checksum="another")


def _item_of_refusal(error: Exception) -> Item | None:
    """The old item that a failed condition returned, {} if it returned none; None if the error is another."""
    if not is_refusal(error):
        return None
    response: dict[str, Any] = getattr(error, "response", {})
    item: Item = response.get("Item") or {}
    return item


def _is_too_large(error: Exception) -> bool:
    """Whether the service refused the write for the item's size.  It has no code of its own for that."""
    return error_code(error) == "ValidationException" and "item size" in str(error).lower()
