"""The store in Valkey or Redis: one script per operation, decided by the server, sent again until just before the deadline.

The procedures are written once and driven twice: called by `CachePersistenceLayer`, awaited by `AsyncCachePersistenceLayer`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from persistence._cache_clients import (
    CacheClientProtocol,
    CacheConnection,
    EvalPort,
    GlidePort,
    Mode,
    is_awaited,
    port_of,
)
from persistence._cache_errors import (
    LockedError,
    explanation,
    is_demoted,
    is_lasting,
    is_passing,
    is_wrong_type,
    without_arguments,
)
from persistence._cache_scripts import FENCED, GONE, GRANTED, TextFormat, foreign, granted, kept_ms, reply
from persistence._schedule import CLAIM_RETRY_MS, COMPLETE_RETRY_MS, FETCH_RETRY_MS, RELEASE_RETRY_MS, Schedule
from persistence._steps import arun, run
from persistence.base import AsyncBasePersistenceLayer, BasePersistenceLayer, _Layer, call_deadline_ms
from persistence.base import fenced as _fenced
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceConfigError,
    IdempotencyResultNotKeptError,
)
from persistence.rules import is_claimable, is_held_by, is_in_progress, may_complete, may_release, may_release_orphan

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from persistence._cache_scripts import Reply, Script
    from persistence._steps import Steps

    #: A client, and what sends scripts through it; None if it has only `get`, `set` and `delete`.
    Used = tuple[Any, EvalPort | GlidePort | None]

__all__ = ["AsyncCachePersistenceLayer", "CacheClientProtocol", "CacheConnection", "CachePersistenceLayer"]

T = TypeVar("T")

#: Seconds for which a client without scripts locks a key that it takes over, under Powertools' name for the lock.
LOCK_SECONDS: Final = 10
#: In bytes: what a server accepts in one argument (`proto-max-bulk-len`), less room for the rest of the record.
MAX_RESULT_BYTES: Final = 511 * 1024 * 1024


class _CacheLayer(_Layer):
    """What the sync and the async store share: how they are made, and the procedures."""

    supports_leases = True

    sleep_ms: Callable[..., Any]
    _is_async: bool

    def __init__(
        self,
        url: str = "",
        host: str = "",
        port: int = 6379,
        username: str = "",
        password: str = "",
        db_index: int = 0,
        mode: Mode = "standalone",
        ssl: bool = True,
        client: Any = None,
        in_progress_expiry_attr: str = "in_progress_expiration",
        expiry_attr: str = "expiration",
        status_attr: str = "status",
        data_attr: str = "data",
        validation_key_attr: str = "validation",
        owner_token_attr: str = "owner_token",  # noqa: S107 - an attribute's name
        generation_attr: str = "generation",
        holder_attr: str = "holder",
        result_not_kept_attr: str = "result_not_kept",
        *,
        min_replicas_ack: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(min_replicas_ack, int) or min_replicas_ack < 0:
            raise ValueError(f"min_replicas_ack must be a number of replicas, not {min_replicas_ack!r}")
        self._texts = TextFormat(
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
        self._min_replicas_ack = min_replicas_ack
        self._connection: CacheConnection | None = None
        if client is None:
            self._connection = CacheConnection(url, host, port, username, password, db_index, mode, ssl)
            self._used = self._connected(self._connection)
        else:
            self.client = client

    @abstractmethod
    def _connected(self, connection: CacheConnection) -> Used:
        """The client that the store begins with."""

    @property
    def client(self) -> Any:
        """The client in use.  It may be replaced at any time."""
        return self._used[0]

    @client.setter
    def client(self, client: Any) -> None:
        if is_awaited(client) != self._is_async:
            fitting = "CachePersistenceLayer" if self._is_async else "AsyncCachePersistenceLayer"
            raise IdempotencyPersistenceConfigError(f"{type(self).__name__} cannot use this client; {fitting} can")
        self._used = client, port_of(client, self._min_replicas_ack)
        self._connection = None

    def _using(self) -> Used:
        return self._used

    # The procedures: as the hooks of the base class, in one request if the client can send scripts

    def _claiming(self, offer: DataRecord) -> Steps[DataRecord]:
        client, port = self._using()
        if port is None:
            return (yield from self._sent(partial(self._claim_plainly, client, offer), offer, CLAIM_RETRY_MS))
        request = self._texts.claim(offer, self.clock_ms())
        said = yield from self._scripted(port, request, offer, CLAIM_RETRY_MS)
        if said.kind == GRANTED:
            return granted(offer, said)
        raise IdempotencyItemAlreadyExistsError(old_data_record=self._found(offer.key, said))

    def _reading(self, key: str) -> Steps[DataRecord]:
        client, port = self._using()
        wanted = DataRecord(key, deadline_ms=call_deadline_ms.get())
        if port is None:
            found = yield from self._sent(partial(self._read_plainly, client, key), wanted, FETCH_RETRY_MS)
        else:
            said = yield from self._scripted(port, self._texts.read(), wanted, FETCH_RETRY_MS, is_acknowledged=False)
            found = self._found(key, said)
        if found is None:
            raise IdempotencyItemNotFoundError
        return found

    def _updating(self, record: DataRecord) -> Steps[None]:
        client, port = self._using()
        if is_in_progress(record):
            # One try: a renewal that fails is made again at the next beat, well before the lease ends.
            once = record.replace(deadline_ms=None)
            if port is None:
                yield from self._sent(partial(self._renew_plainly, client, record), once, None)
            else:
                yield from self._written(port, self._texts.renew(record, self.clock_ms()), once, None)
            return
        _check_storable(record)
        # The effect has happened: as long as the holder may live, nothing is better than storing its result.
        at_most_ms = COMPLETE_RETRY_MS if record.deadline_ms is None else None
        if port is None:
            yield from self._sent(partial(self._complete_plainly, client, record), record, at_most_ms)
            return
        try:
            yield from self._written(port, self._texts.complete(record, self.clock_ms()), record, at_most_ms)
        except Exception as error:
            if self._min_replicas_ack or not is_passing(error) or not (yield from self._is_stored(port, record)):
                raise

    def _is_stored(self, port: EvalPort | GlidePort, record: DataRecord) -> Steps[bool]:
        """After the last lost answer to a completion: whether it was applied, asked once; False if that is not answered, too.

        Raises:
            IdempotencyLeaseLostError: another attempt owns the record.
        """
        once = record.replace(deadline_ms=None)
        try:
            said = yield from self._scripted(port, self._texts.read(), once, None, is_acknowledged=False)
        except Exception:  # noqa: BLE001 - the completion's own error says more
            return False
        existing = self._found(record.key, said)
        if existing is not None and not is_held_by(existing, record.owner_token):
            raise _fenced(record, existing)
        return existing is not None and not is_in_progress(existing)

    def _deleting(self, record: DataRecord, now_ms: int | None = None) -> Steps[bool]:
        """With *now_ms*, as `_delete_orphan`."""
        client, port = self._using()
        if port is None:
            return (yield from self._sent(partial(self._release_plainly, client, record, now_ms), record, RELEASE_RETRY_MS))
        # Not acknowledged: a release that is lost only keeps the key to the end of its lease.
        request = self._texts.release(record, now_ms)
        said = yield from self._written(port, request, record, RELEASE_RETRY_MS, is_acknowledged=False)
        return said.kind != GONE

    def _written(
        self,
        port: EvalPort | GlidePort,
        request: tuple[Script, list[str]],
        record: DataRecord,
        at_most_ms: int | None,
        *,
        is_acknowledged: bool = True,
    ) -> Steps[Reply]:
        said = yield from self._scripted(port, request, record, at_most_ms, is_acknowledged=is_acknowledged)
        if said.kind == FENCED:
            raise _fenced(record, self._found(record.key, said))
        return said

    def _found(self, key: str, said: Reply) -> DataRecord | None:
        text = said.rest[0]
        return self._texts.record(key, text) if text else None

    def _scripted(
        self,
        port: EvalPort | GlidePort,
        request: tuple[Script, list[str]],
        record: DataRecord,
        at_most_ms: int | None,
        *,
        is_acknowledged: bool = True,
    ) -> Steps[Reply]:
        script, arguments = request
        running = partial(port.run, script, record.key, arguments, is_acknowledged=is_acknowledged)
        answer = yield from self._sent(running, record, at_most_ms)
        return reply(record.key, answer)

    def _sent(self, request: Callable[[], Steps[T]], record: DataRecord, at_most_ms: int | None) -> Steps[T]:
        """The answer to the request, which is repeated while its trouble may pass and there is time before the record's deadline.

        A repetition needs no other care: whatever a request has written, it recognises by the owner token.
        """
        schedule: Schedule | None = None
        while True:
            try:
                return (yield from request())
            except Exception as error:  # noqa: BLE001 - raised again, unless its trouble may pass
                if is_wrong_type(error):
                    raise foreign(record.key) from None
                told = without_arguments(error)
                if not is_passing(error):
                    raise told from error.__cause__
                now_ms = self.clock_ms()
                if schedule is None:
                    schedule = Schedule(now_ms, at_most_ms=at_most_ms, deadline_ms=record.deadline_ms)
                pause_ms = schedule.pause_ms(now_ms)
                if pause_ms is None:
                    raise told from error.__cause__
                was_demoted = is_demoted(error)
            _, port = self._using()
            if was_demoted and port is not None:
                yield from port.reconnect()
            yield partial(self.sleep_ms, pause_ms)

    # Without scripts: what is read may have changed when it is written over.

    def _read_plainly(self, client: CacheClientProtocol, key: str) -> Steps[DataRecord | None]:
        text = yield partial(client.get, key)
        return None if text is None else self._texts.record(key, text)

    def _set_plainly(self, client: CacheClientProtocol, record: DataRecord, **options: Any) -> Steps[Any]:
        kept = kept_ms(record, self.clock_ms())
        if kept is not None:
            options["ex"] = -(-kept // 1000)
        return (yield partial(client.set, name=record.key, value=self._texts.text(record), **options))

    def _claim_plainly(self, client: CacheClientProtocol, offer: DataRecord) -> Steps[DataRecord]:
        if (yield from self._set_plainly(client, offer, nx=True)):
            return offer
        existing = yield from self._read_plainly(client, offer.key)
        if not self._is_claimable(existing, offer):
            raise IdempotencyItemAlreadyExistsError(old_data_record=existing)
        lock = f"{offer.key}:lock"
        if not (yield partial(client.set, name=lock, value=offer.owner_token, ex=LOCK_SECONDS, nx=True)):
            holder = yield partial(client.get, lock)
            if holder not in (offer.owner_token, offer.owner_token.encode()):
                raise LockedError("Another attempt is taking the key over")
        # The lock is left to expire, for those that look at the record before the lock only, as Powertools does.
        existing = yield from self._read_plainly(client, offer.key)
        if existing is None or not self._is_claimable(existing, offer):
            raise IdempotencyItemAlreadyExistsError(old_data_record=existing)
        taken = offer.replace(generation=existing.generation + 1, took_over=is_in_progress(existing))
        yield from self._set_plainly(client, taken)
        return taken

    def _is_claimable(self, existing: DataRecord | None, offer: DataRecord) -> bool:
        return existing is not None and is_claimable(existing, self.clock_ms(), takes_over_orphans=offer.takes_over_orphans)

    def _complete_plainly(self, client: CacheClientProtocol, record: DataRecord) -> Steps[None]:
        existing = yield from self._read_plainly(client, record.key)
        if not may_complete(existing, record.owner_token):
            raise _fenced(record, existing)
        kept = "" if existing is None else existing.payload_hash
        yield from self._set_plainly(client, record.replace(payload_hash=record.payload_hash or kept))

    def _renew_plainly(self, client: CacheClientProtocol, record: DataRecord) -> Steps[None]:
        existing = yield from self._read_plainly(client, record.key)
        if existing is None or not may_release(existing, record.owner_token):
            raise _fenced(record, existing)
        if (existing.in_progress_expiry_timestamp or 0) > (record.in_progress_expiry_timestamp or 0):
            return  # renewed since by a later request
        renewed = existing.replace(
            in_progress_expiry_timestamp=record.in_progress_expiry_timestamp, expiry_timestamp=record.expiry_timestamp
        )
        yield from self._set_plainly(client, renewed)

    def _release_plainly(self, client: CacheClientProtocol, record: DataRecord, now_ms: int | None) -> Steps[bool]:
        existing = yield from self._read_plainly(client, record.key)
        if existing is None:
            return False
        if not may_release_orphan(existing, record.owner_token, now_ms):
            raise _fenced(record, existing)
        yield partial(client.delete, record.key)
        return True

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:
        explained, is_retryable = super()._diagnose(error, idempotency_key)
        return explanation(error) or explained, is_retryable and not is_lasting(error)


class CachePersistenceLayer(_CacheLayer, BasePersistenceLayer):
    """Keeps records in Valkey or Redis, one JSON text under each idempotency key.

    Each operation is one script, which the server runs at once, so a claim costs one round trip and has one winner.  A client of
    your own that has no scripts (`eval` and `evalsha`, or GLIDE's `invoke_script`) still works, with `SET NX` and a lock of ten
    seconds for takeovers; between its reads and writes another attempt may write, so there late writes are fenced only mostly.

    A client made here connects when the store is constructed, which on Lambda is the init phase; it has timeouts of 1 s (connect)
    and 2 s (read), and leaves all retries to this store, which knows the deadline.  One that is given keeps its own settings:
    give it a short `socket_timeout`, and no retries.  For Sentinel, and for options that are not here, give a client.

    What a cache does not promise: replication is asynchronous, so a claim or a result can be lost in a failover, and the function
    run again; *min_replicas_ack* makes that rare, not impossible.  A server that evicts keys (any `maxmemory-policy` but
    `noeviction`) or loses its memory forgets records, too.

    Args:
        url: `rediss://user:password@host:port/db`, also with the schemes `redis`, `valkey`, `valkeys` and `unix`.  The scheme
            alone says whether TLS is used.  *host* and what follows it are then ignored.
        host: The server's name or address.
        port: Its port.
        username: Of an ACL user; the default user if left out.
        password: Its password.
        db_index: The database's number; a cluster has only one.
        mode: `"standalone"` or `"cluster"`.
        ssl: Whether to use TLS, with the server's certificate and name checked.
        client: The client to use, of redis-py, valkey-py or Valkey GLIDE, or with at least `get`, `set` and `delete`.  All
            options above are then ignored.
        in_progress_expiry_attr: The lease's end, epoch milliseconds.
        expiry_attr: The record's end, epoch seconds.
        status_attr: INPROGRESS or COMPLETED.
        data_attr: The result, JSON text.
        validation_key_attr: Digest of the validated payload.
        owner_token_attr: The attempt that owns the record.
        generation_attr: How many attempts have held the key.
        holder_attr: The request id of the attempt that holds or completed the record.
        result_not_kept_attr: Present on the record of a call that ran and whose result could not be stored.
        min_replicas_ack: How many replicas must have a claim before its function runs, and a result before the call returns.

    Raises:
        ValueError: an attribute's name is empty or used twice, or *min_replicas_ack* makes no sense.
        IdempotencyPersistenceConfigError: an unknown mode, a URL that is none, a missing package, or a client that does not fit.
        IdempotencyUnreachableError: the server cannot be reached, or refuses the credentials.
    """

    _is_async = False

    def _connected(self, connection: CacheConnection) -> Used:
        client = connection.client(is_async=False)
        port = port_of(client, self._min_replicas_ack)
        connection.ping(client)
        return client, port

    def _put_record(self, data_record: DataRecord) -> DataRecord:
        return run(self._claiming(data_record))

    def _get_record(self, idempotency_key: str) -> DataRecord:
        return run(self._reading(idempotency_key))

    def _update_record(self, data_record: DataRecord) -> None:
        run(self._updating(data_record))

    def _delete_record(self, data_record: DataRecord) -> bool:
        return run(self._deleting(data_record))

    def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        return run(self._deleting(data_record, now_ms))


class AsyncCachePersistenceLayer(_CacheLayer, AsyncBasePersistenceLayer):
    """As `CachePersistenceLayer`, with asyncio clients.  For async functions only.

    It connects at its first call, and anew on each event loop, because connections belong to theirs; a *client* that is given
    serves one event loop.  Before a loop ends, `aclose` closes what was opened on it; else Python's garbage collector does, some
    time after the next loop has begun.
    """

    _is_async = True

    def _connected(self, connection: CacheConnection) -> Used:
        self._of_loops: dict[AbstractEventLoop, Used] = {}
        # Only so that a wrong URL or a missing package shows now: nothing is awaited here, and no loop may be running.
        client = connection.client(is_async=True)
        return client, port_of(client, self._min_replicas_ack)

    def _using(self) -> Used:
        if self._connection is None:
            return self._used
        import asyncio  # here, so that sync users do not pay for its import

        loop = asyncio.get_running_loop()
        used = self._of_loops.get(loop)
        if used is None:
            # Those of loops that have ended, with their connections: a client refers to its loop, so nothing else lets them go.
            for ended in [each for each in list(self._of_loops) if each.is_closed()]:
                self._of_loops.pop(ended, None)
            client = self._connection.client(is_async=True)
            used = self._of_loops[loop] = self._used = client, port_of(client, self._min_replicas_ack)
        return used

    async def aclose(self) -> None:
        """Close the connections to the server, those of the running event loop.  The next call connects again."""
        client, _ = self._using()
        # The first is redis-py's and valkey-py's, the second GLIDE's.  A client of the user's own may have neither.
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if inspect.iscoroutinefunction(close):
            await close()

    async def _put_record(self, data_record: DataRecord) -> DataRecord:
        return await arun(self._claiming(data_record))

    async def _get_record(self, idempotency_key: str) -> DataRecord:
        return await arun(self._reading(idempotency_key))

    async def _update_record(self, data_record: DataRecord) -> None:
        await arun(self._updating(data_record))

    async def _delete_record(self, data_record: DataRecord) -> bool:
        return await arun(self._deleting(data_record))

    async def _delete_orphan(self, data_record: DataRecord, now_ms: int | None) -> bool:
        return await arun(self._deleting(data_record, now_ms))


def _check_storable(record: DataRecord) -> None:
    """Raise if no server would keep the result.

    Raises:
        IdempotencyResultNotKeptError: it is too large, or no text that can be encoded.
    """
    try:
        size = len(record.response_data.encode())
    except UnicodeEncodeError:
        raise IdempotencyResultNotKeptError(
            f"The result of idempotency key {record.key} has characters that UTF-8 cannot encode"
        ) from None  # its text shows the result
    if size > MAX_RESULT_BYTES:
        raise IdempotencyResultNotKeptError(
            f"The result of idempotency key {record.key} has {size} bytes, more than the {MAX_RESULT_BYTES} that a key holds"
        )
