"""The store in Valkey or Redis: one script per operation, decided by the server, sent again until just before the deadline.

The procedures are written once and driven twice: called by `CachePersistenceLayer`, awaited by `AsyncCachePersistenceLayer`.
"""

from __future__ import annotations

import inspect
from _thread import RLock
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from persistence._cache_clients import (
    CONNECT_TIMEOUT,
    NO_REPLICAS_OF_CLUSTERS,
    OPTIONS_REFUSED,
    CacheClientProtocol,
    CacheConnection,
    EvalPort,
    GlidePort,
    Mode,
    UnconnectedPort,
    is_awaited,
    port_of,
)
from persistence._cache_errors import (
    FirstCallError,
    LockedError,
    explanation,
    is_answer,
    is_demoted,
    is_lasting,
    is_not_now,
    is_passing,
    is_unanswered,
    is_wrong_type,
    without_arguments,
)
from persistence._cache_scripts import FENCED, GONE, GRANTED, TextFormat, foreign, granted, kept_ms, reply
from persistence._driven import AsyncDrivenLayer, DrivenLayer, Procedures
from persistence._procedures import Pause, Request, arun, note_outcome, run
from persistence._schedule import CLAIM_RETRY_MS, COMPLETE_RETRY_MS, FETCH_RETRY_MS, RELEASE_RETRY_MS, Schedule
from persistence._values import FixedText
from persistence.base import Refusal
from persistence.base import fenced as _fenced
from persistence.datarecord import DataRecord
from persistence.exceptions import (
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyUnreachableError,
)
from persistence.rules import is_claimable, is_held_by, is_in_progress, is_too_old, may_complete, may_release, may_release_orphan
from persistence.scope import call_deadline_ms

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from persistence._cache_scripts import Reply, Script
    from persistence._procedures import Procedure
    from persistence.base import Failed

    Port = EvalPort | GlidePort | UnconnectedPort
    #: A client, and what sends scripts through it; None if it has only `get`, `set` and `delete`.
    Used = tuple[Any, Port | None]

__all__ = ["AsyncCachePersistenceLayer", "CacheClientProtocol", "CacheConnection", "CachePersistenceLayer"]

T = TypeVar("T")

#: Seconds for which a client without scripts locks a key that it takes over, under Powertools' name for the lock.
LOCK_SECONDS: Final = 10
#: In bytes: what a server accepts in one argument (`proto-max-bulk-len`), less room for the rest of the record.
MAX_RESULT_BYTES: Final = 511 * 1024 * 1024


class _CacheLayer(Procedures):
    """What the sync and the async store share: how they are made, and the procedures."""

    supports_leases = True
    supports_fresh_until = True

    # As in Powertools, for subclasses; and those that are this library's own.
    in_progress_expiry_attr = FixedText("_texts", "lease")
    expiry_attr = FixedText("_texts", "expiry")
    status_attr = FixedText("_texts", "status")
    data_attr = FixedText("_texts", "data")
    validation_key_attr = FixedText("_texts", "validation")
    owner_token_attr = FixedText("_texts", "owner")
    generation_attr = FixedText("_texts", "generation")
    holder_attr = FixedText("_texts", "holder")
    result_not_kept_attr = FixedText("_texts", "not_kept")

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
        if isinstance(min_replicas_ack, bool) or not isinstance(min_replicas_ack, int) or min_replicas_ack < 0:
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
        #: Whether the server has answered before: until then, no answer may mean a wrong address or wrong credentials.
        self._was_reached = False
        if client is None:
            connection = CacheConnection(url, host, port, username, password, db_index, mode, ssl)
            connection.check()
            if min_replicas_ack and mode == "cluster":
                raise IdempotencyPersistenceConfigError(NO_REPLICAS_OF_CLUSTERS)
            self._connection = connection
            self._used = self._unconnected(connection)
        else:
            self.client = client

    @abstractmethod
    def _unconnected(self, connection: CacheConnection) -> Used:
        """What the store begins with.  Nothing is sent."""

    @property
    def client(self) -> Any:
        """The client in use, which may be replaced at any time.  A cluster's sync one connects when it is first asked for."""
        client, port = self._used
        if not isinstance(port, UnconnectedPort):
            return client
        try:
            port.connect()
        except Exception as error:
            self._raise_first_trouble(error)
            raise
        return self._used[0]

    @client.setter
    def client(self, client: Any) -> None:
        if is_awaited(client) != self._is_async:
            fitting = "CachePersistenceLayer" if self._is_async else "AsyncCachePersistenceLayer"
            raise IdempotencyPersistenceConfigError(f"{type(self).__name__} cannot use this client; {fitting} can")
        self._used = client, port_of(client, self._min_replicas_ack)
        self._connection = None

    @property
    def renews_atomically(self) -> bool:  # type: ignore[override]  # it depends on the client
        """Whether the client sends scripts; without them, a renewal reads the record and then writes it."""
        return self._used[1] is not None

    def _using(self) -> Used:
        return self._used

    def _priming(self) -> Procedure[None]:
        """Connect, and leave the connection to the first call."""
        client, port = self._using()
        connecting = port.connect if isinstance(port, UnconnectedPort) else getattr(client, "ping", None)
        if connecting is None:  # a client of the user's own, which has only what is needed
            return
        try:
            yield Request(connecting)
        except Exception as error:  # noqa: BLE001 - raised again there, unless the server has answered
            self._raise_first_trouble(error)
        self._was_reached = True

    def _raise_first_trouble(self, error: Exception) -> None:
        """Raise what a failed first connection means.  Return if the server is there, and may have time for the first call."""
        if is_unanswered(error) and not is_not_now(error):
            raise self._unreachable(error) from error
        if not is_answer(error) and not is_not_now(error):
            raise IdempotencyPersistenceConfigError(OPTIONS_REFUSED, error) from error

    def _unreachable(self, error: Exception) -> IdempotencyUnreachableError:
        if self._connection is not None:
            return self._connection.unreachable(error)
        return IdempotencyUnreachableError("Could not connect to the cache by the given client", error)

    # The procedures: as the hooks of the base class, in one request if the client can send scripts

    def _claiming(self, offer: DataRecord) -> Procedure[DataRecord | Refusal]:
        client, port = self._using()
        if port is None:
            return (yield from self._sent(partial(self._claim_plainly, client, offer), offer, CLAIM_RETRY_MS))
        request = self._texts.claim(offer, self.clock_ms())
        said = yield from self._scripted(port, request, offer, CLAIM_RETRY_MS)
        return granted(offer, said) if said.kind == GRANTED else Refusal(self._found(offer.key, said))

    def _reading(self, idempotency_key: str) -> Procedure[DataRecord]:
        client, port = self._using()
        wanted = DataRecord(idempotency_key, deadline_ms=call_deadline_ms())
        if port is None:
            found = yield from self._sent(partial(self._read_plainly, client, wanted), wanted, FETCH_RETRY_MS)
        else:
            said = yield from self._scripted(port, self._texts.read(), wanted, FETCH_RETRY_MS, is_acknowledged=False)
            found = self._found(idempotency_key, said)
        if found is None:
            raise IdempotencyItemNotFoundError
        return found

    def _updating(self, data_record: DataRecord) -> Procedure[None]:
        if is_in_progress(data_record):
            yield from self._renewing(data_record)
            return
        _check_storable(data_record)
        client, port = self._using()
        # The effect has happened: as long as the holder may live, nothing is better than storing its result.
        at_most_ms = COMPLETE_RETRY_MS if data_record.deadline_ms is None else None
        if port is None:
            yield from self._sent(partial(self._complete_plainly, client, data_record), data_record, at_most_ms)
            return
        try:
            yield from self._written(port, self._texts.complete(data_record, self.clock_ms()), data_record, at_most_ms)
        except Exception as error:
            if self._min_replicas_ack or not is_passing(error) or not (yield from self._is_stored(port, data_record)):
                raise

    def _renewing(self, record: DataRecord) -> Procedure[None]:
        """One try: a renewal that fails is made again at the next beat, well before the lease ends."""
        client, port = self._using()
        once = record.replace(deadline_ms=None)
        if port is None:
            yield from self._sent(partial(self._renew_plainly, client, once), once, None)
        else:
            yield from self._written(port, self._texts.renew(once, self.clock_ms()), once, None)

    def _is_stored(self, port: Port, record: DataRecord) -> Procedure[bool]:
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

    def _deleting(self, data_record: DataRecord, now_ms: int | None = None) -> Procedure[bool]:
        """With *now_ms*, as `_delete_orphan`."""
        client, port = self._using()
        if port is None:
            return (
                yield from self._sent(partial(self._release_plainly, client, data_record, now_ms), data_record, RELEASE_RETRY_MS)
            )
        # Not acknowledged: a release that is lost only keeps the key to the end of its lease.
        request = self._texts.release(data_record, now_ms)
        said = yield from self._written(port, request, data_record, RELEASE_RETRY_MS, is_acknowledged=False)
        return said.kind != GONE

    def _written(
        self,
        port: Port,
        request: tuple[Script, list[str]],
        record: DataRecord,
        at_most_ms: int | None,
        *,
        is_acknowledged: bool = True,
    ) -> Procedure[Reply]:
        said = yield from self._scripted(port, request, record, at_most_ms, is_acknowledged=is_acknowledged)
        if said.kind == FENCED:
            raise _fenced(record, self._found(record.key, said))
        return said

    def _found(self, key: str, said: Reply) -> DataRecord | None:
        text = said.rest[0]
        return self._texts.record(key, text) if text else None

    def _scripted(
        self,
        port: Port,
        request: tuple[Script, list[str]],
        record: DataRecord,
        at_most_ms: int | None,
        *,
        is_acknowledged: bool = True,
    ) -> Procedure[Reply]:
        script, arguments = request
        running = partial(
            port.run, script, record.key, arguments, is_acknowledged=is_acknowledged, deadline_ms=record.deadline_ms
        )
        answer = yield from self._sent(running, record, at_most_ms)
        self._was_reached = True
        return reply(record.key, answer)

    def _sent(self, request: Callable[[], Procedure[T]], record: DataRecord, at_most_ms: int | None) -> Procedure[T]:
        """The answer to the request, which is repeated while its trouble may pass and there is time before the record's deadline.

        A repetition needs no other care: whatever a request has written, it recognises by the owner token.
        """
        schedule: Schedule | None = None
        # Before the first request, during which the clock may be set back.
        begun_ms = 0 if record.deadline_ms is None else self.clock_ms()
        while True:
            try:
                return (yield from request())
            except Exception as error:  # noqa: BLE001 - raised again, unless its trouble may pass
                if is_wrong_type(error):
                    raise foreign(record.key) from None
                told = without_arguments(error)
                note_outcome(told, is_unknown=schedule is not None or is_passing(error))
                if not is_passing(error):
                    raise told from error.__cause__
                now_ms = self.clock_ms()
                if schedule is None:
                    schedule = Schedule(max(now_ms, begun_ms), at_most_ms=at_most_ms, deadline_ms=record.deadline_ms)
                pause_ms = schedule.pause_ms(now_ms)
                if pause_ms is None:
                    raise told from error.__cause__
                was_demoted = is_demoted(error)
            _, port = self._using()
            if was_demoted and port is not None:
                yield from port.reconnect()
            yield Pause(pause_ms)

    # Without scripts: what is read may have changed when it is written over.

    def _read_plainly(self, client: CacheClientProtocol, record: DataRecord) -> Procedure[DataRecord | None]:
        text = yield Request(client.get, (record.key,), record.deadline_ms)
        return None if text is None else self._texts.record(record.key, text)

    def _set_plainly(self, client: CacheClientProtocol, record: DataRecord, **options: Any) -> Procedure[Any]:
        kept = kept_ms(record, self.clock_ms())
        if kept is not None:
            options["ex"] = -(-kept // 1000)
        setting = partial(client.set, name=record.key, value=self._texts.text(record), **options)
        return (yield Request(setting, (), record.deadline_ms))

    def _claim_plainly(self, client: CacheClientProtocol, offer: DataRecord) -> Procedure[DataRecord | Refusal]:
        is_late = is_too_old(offer.fresh_until_ms, self.clock_ms())
        if not is_late and (yield from self._set_plainly(client, offer, nx=True)):
            return offer
        existing = yield from self._read_plainly(client, offer)
        if not self._is_claimable(existing, offer):
            return Refusal(existing)
        lock = f"{offer.key}:lock"
        locking = partial(client.set, name=lock, value=offer.owner_token, ex=LOCK_SECONDS, nx=True)
        if not (yield Request(locking, (), offer.deadline_ms)):
            holder = yield Request(client.get, (lock,), offer.deadline_ms)
            if holder not in (offer.owner_token, offer.owner_token.encode()):
                raise LockedError("Another attempt is taking the key over")
        # The lock is left to expire, for those that look at the record before the lock only, as Powertools does.
        existing = yield from self._read_plainly(client, offer)
        if existing is None or not self._is_claimable(existing, offer):
            return Refusal(existing)
        taken = offer.replace(generation=existing.generation + 1, took_over=is_in_progress(existing))
        yield from self._set_plainly(client, taken)
        return taken

    def _is_claimable(self, existing: DataRecord | None, offer: DataRecord) -> bool:
        return existing is not None and is_claimable(
            existing, self.clock_ms(), takes_over_orphans=offer.takes_over_orphans, fresh_until_ms=offer.fresh_until_ms
        )

    def _complete_plainly(self, client: CacheClientProtocol, record: DataRecord) -> Procedure[None]:
        existing = yield from self._read_plainly(client, record)
        if not may_complete(existing, record.owner_token):
            raise _fenced(record, existing)
        kept = "" if existing is None else existing.payload_hash
        yield from self._set_plainly(client, record.replace(payload_hash=record.payload_hash or kept))

    def _renew_plainly(self, client: CacheClientProtocol, record: DataRecord) -> Procedure[None]:
        existing = yield from self._read_plainly(client, record)
        if existing is None or not may_release(existing, record.owner_token):
            raise _fenced(record, existing)
        if (existing.in_progress_expiry_timestamp or 0) > (record.in_progress_expiry_timestamp or 0):
            return  # renewed since by a later request
        renewed = existing.replace(
            in_progress_expiry_timestamp=record.in_progress_expiry_timestamp, expiry_timestamp=record.expiry_timestamp
        )
        yield from self._set_plainly(client, renewed)

    def _release_plainly(self, client: CacheClientProtocol, record: DataRecord, now_ms: int | None) -> Procedure[bool]:
        existing = yield from self._read_plainly(client, record)
        if existing is None:
            return False
        if not may_release_orphan(existing, record.owner_token, now_ms):
            raise _fenced(record, existing)
        yield Request(client.delete, (record.key,), record.deadline_ms)
        return True

    def _failure(self, failed: Failed, idempotency_key: str, error: Exception) -> IdempotencyPersistenceLayerError:
        if self._connection is None or self._was_reached or not is_unanswered(error) or is_not_now(error):
            return super()._failure(failed, idempotency_key, error)
        failure = super()._failure(failed, idempotency_key, self._unreachable(error))
        unreachable = FirstCallError(*failure.args)
        unreachable.__dict__.update(failure.__dict__)
        return unreachable

    def _diagnose(self, error: Exception, idempotency_key: str) -> tuple[str, bool]:
        explained, is_retryable = super()._diagnose(error, idempotency_key)
        return explanation(error) or explained, is_retryable and not is_lasting(error)


class CachePersistenceLayer(_CacheLayer, DrivenLayer):
    """Keeps records in Valkey or Redis, one JSON text under each idempotency key.

    Each operation is one script, which the server runs at once, so a claim costs one round trip and has one winner.  A client of
    your own that has no scripts (`eval` and `evalsha`, or GLIDE's `invoke_script`) still works, with `SET NX` and a lock of ten
    seconds for takeovers; between its reads and writes another attempt may write, so there late writes are fenced only mostly.

    Construction sends nothing; a client made here connects at the first call, or by `prime`.  It has timeouts of 1 s (connect)
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
        TypeError, ValueError: an option cannot be what it must be, or an attribute's name is empty or used twice.
        IdempotencyPersistenceConfigError: an unknown mode, a broken URL, a missing package, or a client that does not fit.
    """

    _is_async = False

    def _unconnected(self, connection: CacheConnection) -> Used:
        if not connection.connects_when_made(is_async=False):
            client = connection.new_client(is_async=False)
            return client, port_of(client, self._min_replicas_ack)
        # Reentrant: a signal's handler may make a call of its own meanwhile.
        making = RLock()
        port = UnconnectedPort(lambda: self._connect(connection, port, making))
        return None, port

    def _connect(self, connection: CacheConnection, unconnected: UnconnectedPort, making: RLock) -> EvalPort:
        """Make the client, which connects: once, although several threads may need it at the same time.

        None of them depends on another: one that has waited as long as a connection takes makes a client of its own.  So neither
        a server that is silent nor a fork in the middle delays them further.
        """
        is_alone = making.acquire(timeout=CONNECT_TIMEOUT)
        try:
            used = self._used[1]
            if isinstance(used, EvalPort):
                return used
            client = connection.new_client(is_async=False)
            port = EvalPort(client, self._min_replicas_ack)
            if self._used[1] is unconnected:
                self._used = client, port
            return port
        finally:
            if is_alone:
                making.release()

    def prime(self) -> None:
        """Connect now, so that the first call need not: in Lambda's init phase, for example.

        Making a store sends nothing, and the first call connects by itself.

        Raises:
            IdempotencyUnreachableError: nobody answers, or the server refuses the credentials.
            IdempotencyPersistenceConfigError: the client does not take the options.
        """
        run(self._priming(), self.sleep_ms)


class AsyncCachePersistenceLayer(_CacheLayer, AsyncDrivenLayer):
    """As `CachePersistenceLayer`, with asyncio clients.  For async functions only.

    It connects at its first call, and anew on each event loop, because connections belong to theirs; a *client* that is given
    serves one event loop.  Before a loop ends, `aclose` closes what was opened on it; else Python's garbage collector does, some
    time after the next loop has begun.
    """

    _is_async = True

    def _unconnected(self, connection: CacheConnection) -> Used:
        self._of_loops: dict[AbstractEventLoop, Used] = {}
        client = connection.new_client(is_async=True)
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
            client = self._connection.new_client(is_async=True)
            used = self._of_loops[loop] = self._used = client, port_of(client, self._min_replicas_ack)
        return used

    async def prime(self) -> None:
        """As `CachePersistenceLayer.prime`, on the running event loop."""
        await arun(self._priming(), self._perform, self.sleep_ms)

    async def aclose(self) -> None:
        """Close the connections to the server, those of the running event loop.  The next call connects again."""
        client, _ = self._using()
        # The first is redis-py's and valkey-py's, the second GLIDE's.  A client of the user's own may have neither.
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if inspect.iscoroutinefunction(close):
            await close()


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
