"""The DynamoDB store: one conditional write per operation, retried until just before the deadline, its answer translated."""

from __future__ import annotations

import os
import sys
from functools import cache, cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from persistence._checks import check_client, check_flag, check_mapping, check_sdk, check_text
from persistence._driven import DrivenLayer
from persistence._dynamodb_items import ItemFormat
from persistence._large_results import ITEM_SIZE_THRESHOLD, MAX_RESULT_BYTES, UPLOAD_RESERVE_MS, LargeResults
from persistence._procedures import TooLateError, Work
from persistence._regions import router
from persistence._retries import (
    BLAMELESS,
    BUSY_ACTION,
    Retries,
    asking,
    cancellation_reasons,
    error_code,
    is_item_too_large,
    is_refusal,
    refusing_item,
    sending,
)
from persistence._schedule import CLAIM_RETRY_MS, COMPLETE_RETRY_MS, FETCH_RETRY_MS, RELEASE_RETRY_MS, RESERVE_MS
from persistence._values import FixedText
from persistence.background import ForkLock, in_forked_child
from persistence.base import Refusal
from persistence.base import fenced as _fenced
from persistence.exceptions import (
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceConfigError,
    IdempotencyResultNotKeptError,
    IdempotencyTransactionCanceledError,
)
from persistence.rules import is_claimable, is_completed, is_held_by, is_in_progress, may_release
from persistence.scope import call_deadline_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from boto3.session import Session
    from botocore.config import Config

    from persistence._packing import Compression
    from persistence._procedures import Procedure
    from persistence._regions import HomeRegion, Replication
    from persistence.datarecord import DataRecord
    from persistence.offload import ResultOffload
    from persistence.transaction import CancellationReason, Transaction

#: Seconds.  DynamoDB answers within milliseconds; the SDK's 60 s would outlive the invocation.
CONNECT_TIMEOUT: Final = 1
READ_TIMEOUT: Final = 2
#: Connections cost nothing until they are used; fewer than there are threads cost a TLS handshake per call.
MAX_POOL_CONNECTIONS: Final = 50

#: DynamoDB's name in botocore.
SERVICE: Final = "dynamodb"
#: Names this library to AWS Support and in the user's own CloudTrail.
USER_AGENT: Final = "lambda-idempotency"

#: Left of a deadline, besides `RESERVE_MS`, when a commit is given up: for the release that settles what became of it.
COMMIT_RESERVE_MS: Final = 400
#: Why a transaction may be canceled now and not the next time: the other reasons are mistakes in the request, or permissions.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html#API_TransactWriteItems_Errors
PASSING_REASONS: Final = BUSY_ACTION | {"ConditionalCheckFailed", "DuplicateItem"}
#: How long a large result is uploaded or downloaded where no deadline is known.
UPLOAD_RETRY_MS: Final = 20_000
DOWNLOAD_RETRY_MS: Final = 5_000

#: Clients are made one at a time: boto3's default session is not safe to create clients from in several threads.
#: https://boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html#multithreading-or-multiprocessing-with-clients
_client_lock = ForkLock()


#: Which client a store makes.
ClientKind: TypeAlias = Literal["boto3", "lean"]
CLIENT_KINDS: Final = frozenset({"boto3", "lean"})

A_CLIENT: Final = "a boto3 client for DynamoDB"
NEEDED_METHODS: Final = ("put_item", "get_item", "update_item", "delete_item")


class DynamoDBClient(Protocol):
    """What is used of a boto3 client for DynamoDB."""

    @property
    def put_item(self) -> Callable[..., Any]:
        """As boto3's."""
        ...

    @property
    def get_item(self) -> Callable[..., Any]:
        """As boto3's."""
        ...

    @property
    def update_item(self) -> Callable[..., Any]:
        """As boto3's."""
        ...

    @property
    def delete_item(self) -> Callable[..., Any]:
        """As boto3's."""
        ...


class DynamoDBPersistenceLayer(DrivenLayer):
    """Keeps records in a DynamoDB table; needs GetItem, PutItem, UpdateItem and DeleteItem on it, nothing else.

    Construction reads no configuration and sends nothing.  `client` is made at once inside Lambda, at its first use elsewhere or
    with home Regions, and may be replaced at any time, as may `table_name`.  A client made here has timeouts of 1 s (connect)
    and 2 s (read); one that is given keeps its own, and all its settings.  Either way this store does the retries of its own
    requests, because the SDK's know no deadline.

    The table's TTL, if enabled, belongs on *expiry_attr*.

    Args:
        table_name: The table's name or ARN.
        key_attr: Partition key, a string.
        static_pk_value: The partition key's value on a table with a sort key; `idempotency#{function name}` if left out.
        sort_key_attr: Sort key, a string, which then holds the idempotency key.  The first claim then begins with a read, as with
            *read_first*: it shows whether the table has this sort key.
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
        compression: `"gzip"`, or `"zstd"` (Python 3.14, or the extra `zstd`), for results that make an item larger than the
            threshold; None to leave them as they are.  Compressed results are a binary, which Powertools cannot read.
        item_size_threshold: In bytes, names included.  An item over it has its result compressed and then offloaded.  A low one,
            such as 4 KB, keeps items small: a duplicate that is refused by a large item is billed by that item's size.
        result_offload: Where a result is kept that makes the item too large even if compressed; see `S3ResultOffload`.
        max_result_bytes: No larger result is kept, nor is more than that ever decompressed.
        read_first: Whether a claim begins with an eventually consistent read, and writes only if that finds no completed record.
            Cheaper where most calls are duplicates; where they are not, a read for nothing.
        replication: Of a global table: `"eventual"` (MREC), where each record then tells the Region that wrote it, or `"strong"`
            (MRSC).  None for a table in one Region.
        home_region: With eventual replication, the Region that serves a key: one for all keys, several that share the keys by a
            stable hash, or a function from key to Region.  Without it, two Regions can claim one key within the replication's
            delay, which is detected when the loser completes, if the winner's write has arrived by then.
        region_clients: The client for each home Region.  One that is left out is *boto3_client* if that is of this Region, else
            made with *boto_config* and *boto3_session*.
        region_attr: The Region that wrote the record, with eventual replication.
        client: Which client this store makes where it is given none: `"boto3"`, or `"lean"`, this library's own, which starts in
            a fifth of the time and takes a tenth of the CPU per request.  What it does not do: docs/lean-client.md.

    Raises:
        TypeError: an option is of another type than it must be: a resource of boto3's in the place of a client, for example.
        ValueError: an attribute's name is empty or used twice, or an option makes no sense.
        IdempotencyPersistenceConfigError: the compression is not installed, or the lean client cannot do what the environment
            asks of clients.
    """

    supports_leases = True
    renews_atomically = True
    supports_fresh_until = True

    # As in Powertools, for subclasses; and those that are this library's own.
    key_attr = FixedText("_items")
    sort_key_attr = FixedText("_items")
    static_pk_value = FixedText("_items")
    expiry_attr = FixedText("_items")
    in_progress_expiry_attr = FixedText("_items")
    status_attr = FixedText("_items")
    data_attr = FixedText("_items")
    validation_key_attr = FixedText("_items")
    owner_token_attr = FixedText("_items")
    generation_attr = FixedText("_items")
    holder_attr = FixedText("_items")
    result_not_kept_attr = FixedText("_items")
    region_attr = FixedText("_items")

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
        *,
        compression: Compression | None = "gzip",
        item_size_threshold: int = ITEM_SIZE_THRESHOLD,
        result_offload: ResultOffload | None = None,
        max_result_bytes: int = MAX_RESULT_BYTES,
        read_first: bool = False,
        replication: Replication | None = None,
        home_region: HomeRegion | None = None,
        region_clients: Mapping[str, DynamoDBClient] | None = None,
        region_attr: str = "region",
        client: ClientKind = "boto3",
    ) -> None:
        super().__init__()
        if not isinstance(table_name, str) or not table_name:
            raise ValueError(f"table_name must be a table's name, not {table_name!r}")
        check_text("static_pk_value", static_pk_value)
        check_flag("read_first", read_first)
        check_sdk(boto3_session, boto_config)
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
            region_attr=region_attr,
        )
        self._results = LargeResults(
            self._items,
            compression=compression,
            item_size_threshold=item_size_threshold,
            max_result_bytes=max_result_bytes,
            offload=result_offload,
        )
        self.read_first = read_first
        # A table without a sort key takes our puts, too, and all its records are one item then: the first attempt at any key
        # would be granted, run its function, and fail to complete the record.  It refuses a read by both attributes.
        self._has_sort_key = sort_key_attr is not None
        #: The name of the table that a read has shown to have our primary key.
        self._checked_table: str | None = None
        self._home_of = router(replication, home_region)
        self._replication = replication
        if self._home_of is not None and table_name.startswith("arn:"):
            raise ValueError(f"home_region needs the table's name; {table_name} is an ARN, which names one Region")
        if region_clients is not None and self._home_of is None:
            raise ValueError("region_clients is for home_region; without it, every key is served by boto3_client")
        check_mapping("region_clients", region_clients)
        self._tells_region = self._replication == "eventual"
        self._region_clients = dict(region_clients or {})
        for region, given in self._region_clients.items():
            check_client(f"the client of {region}", given, A_CLIENT, NEEDED_METHODS)
            _prepare(given)
        if client not in CLIENT_KINDS:
            raise ValueError(f"client must be 'boto3' or 'lean', not {client!r}; a client of your own is boto3_client")
        if client == "lean" and boto3_client is None and (boto_config is not None or boto3_session is not None):
            raise ValueError("boto_config and boto3_session are for a client of boto3's, and client='lean' is none")
        self._client_kind = client
        self._prepared: DynamoDBClient | None = None
        self._made: list[DynamoDBClient] = []
        self._boto_config = boto_config
        self._boto3_session = boto3_session
        if boto3_client is not None:
            check_client("boto3_client", boto3_client, A_CLIENT, NEEDED_METHODS)
            self.client = boto3_client
        elif "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "AWS_DEFAULT_REGION" in os.environ and self._home_of is None:
            _ = self.client  # Lambda's init phase has a whole vCPU whatever the memory size, and is the place for slow set-up

    @cached_property
    def client(self) -> DynamoDBClient:
        """The DynamoDB client in use."""
        with _client_lock:
            if "client" not in self.__dict__:  # else another thread was first
                self.__dict__["client"] = self._new_client(None)
            made: DynamoDBClient = self.__dict__["client"]
            return made

    def after_fork(self) -> None:
        """In a forked child: drop the clients that this store has made, whose connections are the parent's."""
        made, self._made = self._made, []
        self._prepared = None
        if any(client is self.__dict__.get("client") for client in made):
            del self.__dict__["client"]
        for region, client in list(self._region_clients.items()):
            if any(client is each for each in made):
                del self._region_clients[region]

    def _new_client(self, region: str | None) -> DynamoDBClient:
        client = self._made_client(region)
        if not self._made:
            in_forked_child(self)
        self._made.append(client)
        return client

    def _made_client(self, region: str | None) -> DynamoDBClient:
        if self._client_kind == "lean":
            from persistence.lean import LeanClient  # here: who uses another does not pay for the import

            return LeanClient(
                region, connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, max_pool_connections=MAX_POOL_CONNECTIONS
            )
        from botocore import __version__  # here: who gives a client, or never calls, does not pay for the import
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=MAX_POOL_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 1},
            # A quarter of what a request costs: ours are of one shape and need no validation, and a fixed text is not made anew.
            parameter_validation=False,
            user_agent=f"Botocore/{__version__} lang/python#{sys.version_info.major}.{sys.version_info.minor}",
            user_agent_extra=USER_AGENT,
        )
        if self._boto_config is not None:
            config = config.merge(self._boto_config)
            if config.user_agent_extra != USER_AGENT:
                config = config.merge(Config(user_agent_extra=f"{config.user_agent_extra} {USER_AGENT}"))
        place = {} if region is None else {"region_name": region}
        client: DynamoDBClient = self._client_maker()(SERVICE, config=config, **place)
        return client

    def _client_maker(self) -> Callable[..., Any]:
        """What makes clients: the given session, the process's default one, or one of botocore's, which boto3's are made of."""
        session: Any = self._boto3_session
        if session is None:
            session = sys.modules.get("boto3")  # a second client of its default session costs a fifth of the first
        maker: Callable[..., Any] = _botocore_session().create_client if session is None else session.client
        return maker

    def _own_client(self) -> DynamoDBClient:
        """The client, prepared: it may have been replaced since the last request."""
        client = self.client
        if client is not self._prepared:
            check_client("client", client, A_CLIENT, NEEDED_METHODS)
            _prepare(client)
            self._prepared = client
        return client

    def _client_of(self, key: str) -> DynamoDBClient:
        """The client of the key's home Region; without home Regions, the only one."""
        if self._home_of is None:
            return self._own_client()
        region = self._home_of(key)
        client = self._region_clients.get(region)
        if client is not None:
            return client
        if "client" in self.__dict__ and _region_of(self.client) == region:
            return self._own_client()
        with _client_lock:
            if region not in self._region_clients:
                self._region_clients[region] = self._new_client(region)
                _prepare(self._region_clients[region])
            return self._region_clients[region]

    def _send(self, key: str, operation: str, request: dict[str, Any]) -> Any:
        """One request about the key.  In the thread that sends it, because to make a client takes long."""
        request["TableName"] = self.table_name
        client = self._client_of(key)
        send = asking if getattr(client, "tries_once", None) is True else sending
        return send(getattr(client, operation), request)

    def _claiming(self, offer: DataRecord) -> Procedure[DataRecord | Refusal]:
        now_ms = self.clock_ms()
        if self._tells_region:
            offer = offer.replace(region=(yield Work(self._region_for, (offer.key,))))
        if offer.supersedes is None and (self.read_first or (self._has_sort_key and self._checked_table != self.table_name)):
            existing = yield from self._reading_first(offer, now_ms)
            if existing is not None:
                return Refusal(existing)
        takes_over = False
        while True:
            retries = Retries(self.clock_ms, CLAIM_RETRY_MS, offer.deadline_ms, now_ms)
            answer = yield from retries.outcome(self._send, offer.key, "put_item", self._items.claim(offer, now_ms))
            if not isinstance(answer, Exception):
                return offer
            item = answer.response.get("Item")  # type: ignore[attr-defined]  # of a refusal
            if not item:
                return Refusal(None)
            existing = self._found(offer.key, item)
            is_free = is_claimable(
                existing, now_ms, takes_over_orphans=offer.takes_over_orphans, fresh_until_ms=offer.fresh_until_ms
            )
            if takes_over or not is_free or existing.generation == offer.supersedes:
                break
            takes_over = True
            offer = offer.replace(
                generation=existing.generation + 1, supersedes=existing.generation, took_over=is_in_progress(existing)
            )
        if is_held_by(existing, offer.owner_token):  # the answer to an earlier try was lost
            existing = existing.replace(took_over=offer.took_over)
        return Refusal(existing)

    def _region_for(self, key: str) -> str:
        """The Region that writes the key's record."""
        return _region_of(self.client) if self._home_of is None else self._home_of(key)

    def _reading_first(self, offer: DataRecord, now_ms: int) -> Procedure[DataRecord | None]:
        """What a read, however old, shows, if it is a result that is still to be replayed: nothing replaces it until then.

        Anything else, most failures included, is for the conditional write to decide.

        Raises:
            IdempotencyPersistenceConfigError: the table has no such primary key.
        """
        request = self._items.get(offer.key, is_consistent=False)
        try:
            once = Retries(self.clock_ms, None)
            item = (yield from once.answer(self._send, offer.key, "get_item", request)).get("Item")
            self._checked_table = self.table_name
            existing = self._items.record(item) if item else None
        except Exception as error:
            # The service has no code of its own for a key that does not fit.
            if self._has_sort_key and error_code(error) == "ValidationException":
                raise self._misconfigured(f"refuses a read by the primary key {self._items.primary_key}", error) from error
            import logging  # here: a cold start is the quicker without

            name = type(error).__name__
            logging.getLogger(__name__).debug("Reading key %s first failed with %s; it is claimed without", offer.key, name)
            return None
        is_of_use = existing is not None and is_completed(existing) and not is_claimable(existing, now_ms)
        return existing if is_of_use else None

    def _found(self, key: str, item: dict[str, Any]) -> DataRecord:
        """The record in an item that a request about the key has brought along.

        Raises:
            IdempotencyPersistenceConfigError: it is no record, or the record of another key.
        """
        try:
            record = self._items.record(item)
        except ValueError as error:
            raise self._misconfigured(f"has an item under idempotency key {key} that this store cannot read", error) from error
        sort_key = record.sort_key
        if sort_key is None:
            if record.idempotency_key == key:
                return record
        elif sort_key == key and record.idempotency_key == self._items.static_pk_value:
            return record
        raise self._misconfigured(
            f"answers a request about idempotency key {key} with the record of another key, so it does not have the primary key "
            f"{self._items.primary_key}"
        )

    def _misconfigured(self, what: str, error: Exception | None = None) -> IdempotencyPersistenceConfigError:
        message = f"The table {self.table_name} {what}; correct the store's attribute names, or give it another table"
        return IdempotencyPersistenceConfigError(message, *([] if error is None else [error]))

    def _reading(self, idempotency_key: str) -> Procedure[DataRecord]:
        retries = Retries(self.clock_ms, FETCH_RETRY_MS, call_deadline_ms())
        request = self._items.get(idempotency_key)
        item = (yield from retries.answer(self._send, idempotency_key, "get_item", request)).get("Item")
        if not item:
            raise IdempotencyItemNotFoundError
        return self._found(idempotency_key, item)

    def _updating(self, data_record: DataRecord) -> Procedure[None]:
        if is_in_progress(data_record):
            yield from self._renewing(data_record)
            return
        record = data_record
        if not self._results.fits(record):
            record = yield from self._results.packing(record, self._uploading(record))
        # The effect has happened: as long as the holder may live, nothing is better than storing its result.
        at_most_ms = COMPLETE_RETRY_MS if record.deadline_ms is None else None
        retries = Retries(self.clock_ms, at_most_ms, record.deadline_ms, has_run=True)
        try:
            answer = yield from retries.outcome(self._send, record.key, "update_item", self._items.complete(record))
        except Exception as error:
            if not (yield from self._settling(error, record, retries)):
                raise
            return
        if isinstance(answer, Exception):
            if refusing_item(answer) == {}:
                yield from self._restoring(record, retries)
            else:
                yield from self._settling(answer, record, retries)

    def _restoring(self, record: DataRecord, retries: Retries) -> Procedure[None]:
        """Write a completed record whose claim has vanished, by the table's TTL or by hand, whole again."""
        try:
            answer = yield from retries.outcome(self._send, record.key, "put_item", self._items.restore(record))
            existing = self._refusing_record(record.key, answer) if isinstance(answer, Exception) else None
            if existing is not None and is_in_progress(existing):
                # Perhaps a late copy of our own claim has arrived meanwhile; any other fences the completion off.
                answer = yield from retries.outcome(self._send, record.key, "update_item", self._items.complete(record))
        except Exception as error:
            if not (yield from self._settling(error, record, retries)):
                raise
            return
        if isinstance(answer, Exception):
            yield from self._settling(answer, record, retries)

    def _settling(self, error: Exception, record: DataRecord, retries: Retries) -> Procedure[bool]:
        """Whether the record is completed in spite of the error; raises what the error means if that is not itself."""
        existing = self._refusing_record(record.key, error)
        if existing is None and retries.outcome_unknown and not isinstance(error, TooLateError):
            existing = yield from self._reading_once(record)
        if existing is not None and is_held_by(existing, record.owner_token) and is_completed(existing):
            return True
        if is_item_too_large(error):
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} exceeds what a DynamoDB item holds"
            ) from error
        if is_refusal(error) or (existing is not None and not is_held_by(existing, record.owner_token)):
            raise _fenced(record, existing) from error
        return False

    def _reading_once(self, record: DataRecord) -> Procedure[DataRecord | None]:
        """The record as a consistent read shows it, in the time kept in reserve; None if the read fails, too."""
        retries = Retries(self.clock_ms, RESERVE_MS)
        try:
            request = self._items.get(record.key)
            item = (yield from retries.answer(self._send, record.key, "get_item", request)).get("Item")
            return self._found(record.key, item) if item else None
        except Exception:  # noqa: BLE001 - the completion's own error is the one to report
            return None

    def _refusing_record(self, key: str, error: Exception) -> DataRecord | None:
        item = refusing_item(error)
        return self._found(key, item) if item else None

    def _renewing(self, record: DataRecord) -> Procedure[None]:
        # One request: a renewal that fails is made again at the next beat, well before the lease ends.
        once = Retries(self.clock_ms, None)
        answer = yield from once.outcome(self._send, record.key, "update_item", self._items.renew(record))
        if not isinstance(answer, Exception):
            return
        existing = self._refusing_record(record.key, answer)
        if existing is not None and may_release(existing, record.owner_token):
            return  # its lease lasts longer already, by a later renewal
        raise _fenced(record, existing) from answer

    def _deleting(self, data_record: DataRecord, now_ms: int | None = None) -> Procedure[bool]:
        retries = Retries(self.clock_ms, RELEASE_RETRY_MS, data_record.deadline_ms)
        request = self._items.release(data_record, now_ms)
        answer = yield from retries.outcome(self._send, data_record.key, "delete_item", request)
        if not isinstance(answer, Exception):
            return True
        if refusing_item(answer) == {}:
            return False  # deleted by an earlier try whose answer was lost, or by the table's TTL
        raise _fenced(data_record, self._refusing_record(data_record.key, answer)) from answer

    def _begin_transaction(self, idempotency_key: str) -> Transaction:
        if self._replication == "strong":
            raise IdempotencyPersistenceConfigError(
                f"{self.table_name} is a global table with strong consistency, which has no transactions"
            )
        client = self._client_of(idempotency_key)
        if not hasattr(client, "transact_write_items"):
            raise IdempotencyPersistenceConfigError(
                f"boto3_client has no transactions: a {type(client).__name__} without transact_write_items"
            )
        from persistence.transaction import Transaction  # here: few functions write by one

        return Transaction(
            idempotency_key=idempotency_key,
            own_table=self.table_name,
            own_key=self._items.key(idempotency_key),
            region=_region_of(client),
        )

    def _committing(self, data_record: DataRecord | None, transaction: Transaction) -> Procedure[None]:
        record = data_record
        if record is not None:
            record = yield from self._packing_for(record, transaction)
        request = yield Work(self._commit_request, (record, transaction))
        deadline_ms = call_deadline_ms() if record is None else record.deadline_ms
        retries = Retries(
            self.clock_ms,
            COMPLETE_RETRY_MS if deadline_ms is None else None,
            None if deadline_ms is None else deadline_ms - COMMIT_RESERVE_MS,
            has_run=True,
        )
        try:
            yield from retries.answer(self._send_all, transaction.idempotency_key, request)
        except Exception as error:
            if error_code(error) == "ValidationException":
                raise _canceled(transaction, retries, [str(error)]) from error
            found = cancellation_reasons(error)
            if len(found) != len(request["TransactItems"]):
                raise
            own = [] if record is None else found[:1]
            if record is not None and own[0].get("Code") == "ConditionalCheckFailed":
                item = own[0].get("Item")
                raise _fenced(record, self._found(record.key, item) if item else None) from error
            reasons = transaction.reasons(found[len(own) :])
            blamed = [f"{reason.action} on {reason.table_name}: {reason.code}" for reason in reasons if reason.code]
            blamed += [f"its record: {reason['Code']}" for reason in own if reason.get("Code") != BLAMELESS]
            raise _canceled(transaction, retries, blamed, reasons) from error

    def _send_all(self, key: str, request: dict[str, Any]) -> Any:
        client: Any = self._client_of(key)
        return sending(client.transact_write_items, request)

    def _packing_for(self, record: DataRecord, transaction: Transaction) -> Procedure[DataRecord]:
        """The record in a form that fits its item, and the transaction."""
        try:
            if not self._results.fits(record):
                record = yield from self._results.packing(record, self._uploading(record))
            transaction.check_size(self._items.size(record))
        except (IdempotencyResultNotKeptError, ValueError) as error:
            raise IdempotencyTransactionCanceledError(
                f"The result of idempotency key {transaction.idempotency_key} cannot be stored, so its transaction was not sent",
                error,
            ) from error
        return record

    def _commit_request(self, record: DataRecord | None, transaction: Transaction) -> dict[str, Any]:
        """One request, which is repeated as it is: with another expiry, say, it would be another to DynamoDB.

        Its client token makes a repetition succeed without an effect for ten minutes; the record's condition does so for ever.
        The token is a digest of the whole, the owner token included.  That one alone would be a repetition's where none is:
        DynamoDB compares tokens over all tables, and a durable execution has one owner token for all its calls of a function.
        """
        writes = [*transaction.actions]
        if record is not None:
            writes.insert(0, {"Update": {"TableName": self.table_name, **self._items.commit(record)}})
        # A call without a record has a key of its own.
        whole = repr((transaction.idempotency_key, writes))
        return {"TransactItems": writes, "ClientRequestToken": sha256(whole.encode()).hexdigest()[:36]}

    def _loading(self, data_record: DataRecord) -> Procedure[str]:
        downloading = Retries(self.clock_ms, DOWNLOAD_RETRY_MS, call_deadline_ms())
        return (yield from self._results.loading(data_record, downloading))

    def _uploading(self, record: DataRecord) -> Retries:
        """How long a large result is uploaded: there must be time left to complete the record."""
        if record.deadline_ms is None:
            return Retries(self.clock_ms, UPLOAD_RETRY_MS, has_run=True)
        return Retries(self.clock_ms, None, record.deadline_ms - UPLOAD_RESERVE_MS, has_run=True)

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:
        from persistence._dynamodb_errors import explanation, is_lasting  # imported lazily: only a failure needs it

        _, is_retryable = super()._diagnose(error, idempotency_key)
        region = self._region_used(idempotency_key)
        return explanation(error, self._items, self.table_name, region), is_retryable and not is_lasting(error)

    def _region_used(self, idempotency_key: str) -> str:
        """The Region that serves the key, "" if it is not known; makes no client, which may be what failed."""
        if self._home_of is None:
            return _region_of(self.__dict__.get("client"))
        try:
            return self._home_of(idempotency_key)
        except Exception:  # noqa: BLE001 - of the user's function, and probably the failure that is being explained
            return ""


def _prepare(client: object) -> None:
    """See `_sdk`, which is imported only where the client may be boto3's."""
    if "botocore.client" in sys.modules:
        from persistence._sdk import prepare

        prepare(client)


@cache
def _botocore_session() -> Any:
    """Where nobody has imported boto3: it would add a tenth to a cold start, and nothing to a client."""
    from copy import copy

    from botocore.session import get_session

    session = get_session()
    loader = session.get_component("data_loader")
    load = loader.load_service_model
    # Before botocore loads the model of a service, it looks for all services, in 400 folders, twice: a tenth of a cold start.
    # DynamoDB needs no search.  The services that give credentials are searched for as always.
    # https://docs.aws.amazon.com/botocore/latest/reference/loaders.html
    without_search = copy(loader)
    without_search.list_available_services = lambda _type_name: [SERVICE]

    def load_service_model(service_name: str, *args: Any, **kwargs: Any) -> Any:
        chosen = without_search.load_service_model if service_name == SERVICE else load
        return chosen(service_name, *args, **kwargs)

    loader.load_service_model = load_service_model
    return session


def _region_of(client: object) -> str:
    """The Region of a client, "" if it does not tell."""
    region = getattr(getattr(client, "meta", None), "region_name", None)
    return region if isinstance(region, str) else ""


def _canceled(
    transaction: Transaction, retries: Retries, blamed: list[str], reasons: tuple[CancellationReason, ...] = ()
) -> IdempotencyTransactionCanceledError:
    # After a lost answer, this may be the repetition of a request that was applied; the release will tell.
    consequence = "" if retries.outcome_unknown else ", nothing of it was written"
    canceled = IdempotencyTransactionCanceledError(
        f"The transaction of idempotency key {transaction.idempotency_key} was canceled{consequence}: " + "; ".join(blamed),
        reasons=reasons,
        nothing_written=not retries.outcome_unknown,
    )
    codes = {reason.code for reason in reasons if reason.code}
    canceled.is_retryable = bool(codes) and codes <= PASSING_REASONS
    return canceled
