"""The wiring of one decorated function: its key, store, driver and serializer.  Nothing is shared with other functions."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from idempotency._callables import has_async_code
from idempotency._environment import Variable
from idempotency._json import result_json
from idempotency.attempt import Attempt, restore, running_attempt
from idempotency.config import IdempotencyConfig, ambient_lambda_context
from idempotency.drivers import Call, adrive, drive
from idempotency.execution import (
    Executed,
    Failed,
    Outcome,
    Plan,
    Refused,
    Replayed,
)
from idempotency.key import KeyExtractor, SelectionError
from persistence.base import (
    CLAIM_FAILED,
    AsyncBasePersistenceLayer,
    BasePersistenceLayer,
    CallSettings,
    call_deadline_ms,
    call_settings,
)
from persistence.exceptions import (
    IdempotencyKeyError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token

    from idempotency.config import Deadline
    from idempotency.local_cache import LocalCache
    from idempotency.serialization.base import BaseIdempotencySerializer
    from persistence.datarecord import DataRecord

    Store = BasePersistenceLayer | AsyncBasePersistenceLayer
    _Tokens = tuple[Token[CallSettings], Token[int | None] | None, Token[Deadline | None] | None]

LAMBDA_FUNCTION: Final = Variable("AWS_LAMBDA_FUNCTION_NAME")

#: What a store must have, and nobody awaits in a sync one.
_HOOKS: Final = ("_put_record", "_get_record", "_update_record", "_delete_record")

#: Left of a deadline when waiting for another attempt ends, for the error to reach the caller.
WAIT_RESERVE_MS: Final = 100


class Invocation:
    """What a call knows of the Lambda invocation that it runs in.

    Attributes:
        context: The Lambda context; None if there is none.
        is_own: Whether the context was given to this very call, and cannot be a finished invocation's.
        durable_arn: Of a durable execution, its ARN, "" if it does not tell; else None.
        is_replay: Whether a durable execution is being continued.
    """

    __slots__ = ("context", "durable_arn", "is_own", "is_replay")

    def __init__(
        self, context: Deadline | None, *, is_own: bool = True, durable_arn: str | None = None, is_replay: bool = False
    ) -> None:
        self.context = context
        self.is_own = is_own
        self.durable_arn = durable_arn
        self.is_replay = is_replay

    def remaining_ms(self) -> int | None:
        """Milliseconds until the invocation is stopped, None if unknown.  0 is an answer, and no absence."""
        assert self.context is not None  # whoever has none does not ask
        answer: object = self.context.get_remaining_time_in_millis()
        if not isinstance(answer, (int, float)):
            return None  # of a mock that was not told what to answer
        remaining_ms = int(answer)
        # A context without time left that was registered earlier belongs to an invocation that is over.
        return None if remaining_ms <= 0 and not self.is_own else remaining_ms

    @property
    def holder(self) -> str:
        """The request id, "" if unknown."""
        request_id = getattr(self.context, "aws_request_id", "")
        return request_id if isinstance(request_id, str) else ""


#: That of most calls outside Lambda.
NO_INVOCATION: Final = Invocation(None, is_own=False)


class _Wiring:
    """A function's configuration and store, checked and prepared once."""

    def __init__(self, config: IdempotencyConfig, store: object, *, is_async: bool) -> None:
        if not isinstance(config, IdempotencyConfig):
            raise TypeError(f"config must be an IdempotencyConfig, not {_kind(config)}")
        _refuse_async(config)
        self.config = config
        self.store = _checked_store(store, is_async=is_async)
        if not config.orphan_takeover and not self.store.supports_leases:
            raise IdempotencyPersistenceConfigError(
                f"orphan_takeover=False needs a store that supports leases; {type(store).__name__} does not"
            )
        self.extractor = KeyExtractor(
            event_key_jmespath=config.event_key_jmespath,
            payload_validation_jmespath=config.payload_validation_jmespath,
            jmespath_options=config.jmespath_options,
            hash_function=config.hash_function,
            require_all_key_fields=config.require_all_key_fields,
            finds_gaps=config.raise_on_no_idempotency_key,
        )
        self.cache = _new_cache(config) if config.use_local_cache else None
        self._settings = CallSettings()

    def settings(self, function_name: str) -> CallSettings:
        """The settings under this name, which changes so rarely that the last ones are kept."""
        settings = self._settings
        if settings.function_name != function_name:
            config = self.config
            settings = self._settings = CallSettings(
                function_name,
                config.event_key_jmespath,
                bool(config.payload_validation_jmespath),
                config.raise_on_no_idempotency_key,
                config.expires_after_seconds,
                config.use_local_cache,
                self.extractor.hash_function,
            )
        return settings


class IdempotencyHandler:
    """Makes calls of one function idempotent.

    Raises:
        TypeError, ValueError, jmespath.exceptions.ParseError, IdempotencyPersistenceConfigError: the configuration is wrong.
    """

    def __init__(
        self,
        *,
        function_name: str,
        is_async: bool,
        persistence_store: Store,
        config: IdempotencyConfig | None = None,
        output_serializer: BaseIdempotencySerializer | None = None,
        key_prefix: str | None = None,
    ) -> None:
        self._function_name = function_name
        self._is_async = is_async
        self._serializer = output_serializer
        self._key_prefix = key_prefix
        self._has_warned_of_gap = False
        #: The default prefix, and the Lambda function's name that is in it.
        self._named: tuple[object, str] = (None, f"test-func.{function_name}")
        self._wiring = _Wiring(config if config is not None else IdempotencyConfig(), persistence_store, is_async=is_async)

    def execute(self, payload: Any, invoke: Callable[[], Any], invocation: Invocation | None = None) -> Executed | Replayed:
        """Call *invoke* once for the payload's key, or replay its result."""
        wiring = self._wiring
        invocation = invocation if invocation is not None else _ambient_invocation(wiring.config)
        prefix = self._key_prefix or self._default_prefix()
        call = self._call(wiring, prefix, payload, invoke, invocation)
        if call is None:
            return self.unprotected(invoke)
        tokens = _enter(wiring, prefix, invocation, call.plan)
        try:
            store: Any = wiring.store
            cached = None if wiring.cache is None else _cached(wiring, wiring.cache, call.plan.key)
            return self._settled(wiring, call.plan.key, drive(call, store, cached), cached)
        finally:
            _leave(tokens)

    async def aexecute(
        self, payload: Any, invoke: Callable[[], Any], invocation: Invocation | None = None
    ) -> Executed | Replayed:
        """As `execute`, for an async function: *invoke* returns what is to be awaited."""
        wiring = self._wiring
        invocation = invocation if invocation is not None else _ambient_invocation(wiring.config)
        prefix = self._key_prefix or self._default_prefix()
        call = self._call(wiring, prefix, payload, invoke, invocation)
        if call is None:
            return await self.aunprotected(invoke)
        tokens = _enter(wiring, prefix, invocation, call.plan)
        try:
            store: Any = wiring.store
            cached = None if wiring.cache is None else _cached(wiring, wiring.cache, call.plan.key)
            return self._settled(wiring, call.plan.key, await adrive(call, store, cached), cached)
        finally:
            _leave(tokens)

    def unprotected(self, invoke: Callable[[], Any]) -> Executed:
        """Call *invoke*, come what may: the call has no key, or idempotency is switched off."""
        store = cast("BasePersistenceLayer", self._wiring.store)
        attempt = Attempt.unprotected(store.begin)
        token = running_attempt.set(attempt)
        try:
            value = invoke()
        finally:
            restore(running_attempt, token)
            transaction = attempt.close()
        if transaction is not None:
            store.commit(None, transaction)
        return Executed(value, None)

    async def aunprotected(self, invoke: Callable[[], Any]) -> Executed:
        """As `unprotected`, for an async function."""
        store = cast("AsyncBasePersistenceLayer", self._wiring.store)
        attempt = Attempt.unprotected(store.begin)
        token = running_attempt.set(attempt)
        try:
            value = await invoke()
        finally:
            restore(running_attempt, token)
            transaction = attempt.close()
        if transaction is not None:
            await store.commit(None, transaction)
        return Executed(value, None)

    @contextmanager
    def override(self, *, persistence_store: Store | None = None, config: IdempotencyConfig | None = None) -> Iterator[None]:
        """Use another store or configuration inside the `with` block, in all threads.  For tests."""
        before = self._wiring
        store = before.store if persistence_store is None else persistence_store
        self._wiring = _Wiring(before.config if config is None else config, store, is_async=self._is_async)
        try:
            yield
        finally:
            self._wiring = before

    def _default_prefix(self) -> str:
        """The Lambda function's name, which changes so rarely that the last prefix is kept, and this function's."""
        raw = LAMBDA_FUNCTION.raw()
        last, prefix = self._named
        if raw != last:
            prefix = f"{LAMBDA_FUNCTION.value()}.{self._function_name}" if raw is not None else f"test-func.{self._function_name}"
            self._named = raw, prefix
        return prefix

    def _call(self, wiring: _Wiring, prefix: str, payload: Any, invoke: Callable[[], Any], invocation: Invocation) -> Call | None:
        """The call, planned; None if it has no key and runs unprotected."""
        digest, payload_hash, gap = _digests(wiring, payload)
        config, store = wiring.config, wiring.store
        if digest is None:
            if config.raise_on_no_idempotency_key:
                raise IdempotencyKeyError("No data found to create a hashed idempotency_key")
            warnings.warn(
                "No idempotency key value found. Skipping persistence layer and validation operations. "
                f"jmespath: {config.event_key_jmespath}",
                stacklevel=4,
            )
            return None
        if gap is not None and not self._has_warned_of_gap:
            self._warn_of_gap(gap)
        deadline_ms = None
        if invocation.context is not None:
            now_ms = store.clock_ms()  # first: whatever comes between the two makes the deadline early, and never late
            remaining_ms = invocation.remaining_ms()
            deadline_ms = None if remaining_ms is None else now_ms + remaining_ms
        lease_ms = lease_end_ms = None
        if deadline_ms is not None and invocation.durable_arn is None:
            lease_end_ms = deadline_ms + int(config.lease_margin_seconds * 1000)
        elif store.supports_leases:
            lease_ms = int(config.lease_seconds * 1000)
        plan = Plan(  # by position, because by name it takes twice as long
            f"{prefix}#{digest}",
            payload_hash,
            _durable_token(invocation, prefix) if invocation.durable_arn else os.urandom(16).hex(),
            lease_ms,
            lease_end_ms,
            deadline_ms,
            int(config.expires_after_seconds * 1000),
            _wait_until_ms(config, store.clock_ms(), deadline_ms) if config.wait_for_in_progress_seconds else None,
            config.orphan_takeover,
            invocation.is_replay and not invocation.durable_arn,
            "" if invocation.context is None else invocation.holder,
            config.event_key_jmespath,
            bool(config.observers),
        )
        if invocation.durable_arn is not None:
            plan = plan.replace(outlives_call=True, is_suspension=_is_suspension)
        return Call(plan, invoke, result_json if self._serializer is None else self._serialized, config.observers)

    def _warn_of_gap(self, gap: str) -> None:
        self._has_warned_of_gap = True  # first: a warning may be an error
        warnings.warn(
            f"A payload of {self._function_name} lacks {gap!r}, a part of its idempotency key. Payloads that differ only there"
            " share one key, and one result. IdempotencyConfig(require_all_key_fields=True) refuses them",
            stacklevel=5,
        )

    def _serialized(self, value: Any) -> str:
        assert self._serializer is not None
        return result_json(None if value is None else self._serializer.to_dict(value))

    def _settled(self, wiring: _Wiring, key: str, outcome: Outcome, cached: Refused | None) -> Executed | Replayed:
        """What the caller gets, an error included."""
        if isinstance(outcome, (Executed, Replayed)):
            record = outcome.record
            if wiring.cache is not None and record is not None and (cached is None or cached.existing is not record):
                wiring.cache.put(key, record)
            if isinstance(outcome, Executed):
                return outcome
            return outcome.with_value(self._replayed_value(wiring, outcome.record))
        if isinstance(outcome, Failed):
            _raise_unchanged(outcome.error)
        raise outcome.error from outcome.cause

    def _replayed_value(self, wiring: _Wiring, record: DataRecord) -> Any:
        value = record.response_json_as_dict()
        if self._serializer is not None and value is not None:
            value = self._serializer.from_dict(value)
        hook = wiring.config.response_hook
        return value if hook is None else hook(value, record)


def _new_cache(config: IdempotencyConfig) -> LocalCache:
    from idempotency.local_cache import LocalCache  # here: it needs threading

    return LocalCache(config.local_cache_max_items)


def _checked_store(store: object, *, is_async: bool) -> Store:
    if isinstance(store, AsyncBasePersistenceLayer):
        if not is_async:
            raise TypeError(f"{type(store).__name__} is an async store: it serves `async def` functions only")
        return store
    if not isinstance(store, BasePersistenceLayer):
        raise TypeError(f"persistence_store must be one of this library's stores (see BasePersistenceLayer), not {_kind(store)}")
    for name in _HOOKS:
        if has_async_code(getattr(type(store), name)):
            raise TypeError(f"{type(store).__name__}.{name} is async: derive the store from AsyncBasePersistenceLayer")
    if not is_async:
        return store
    from persistence.threaded import ThreadedPersistenceLayer  # here: sync functions do not need asyncio

    return ThreadedPersistenceLayer(store)


def _refuse_async(config: IdempotencyConfig) -> None:
    """What is called and not awaited cannot be async."""
    if config.response_hook is not None and has_async_code(config.response_hook):
        raise TypeError("response_hook must be a sync function: pass a `def`, not an `async def`")
    if any(has_async_code(observer) for observer in config.observers):
        raise TypeError("observers must be sync functions: pass a `def`, not an `async def`")


def _kind(value: object) -> str:
    """What was passed, for an error."""
    if isinstance(value, type):
        return f"a class: pass an object, such as {value.__name__}(...)"
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _digests(wiring: _Wiring, payload: Any) -> tuple[str | None, str, str | None]:
    try:
        return wiring.extractor.digests(payload)
    except IdempotencyKeyError:
        raise
    except SelectionError as error:
        raise IdempotencyPersistenceLayerError(CLAIM_FAILED[0], error) from error
    except Exception as error:
        failure = IdempotencyPersistenceLayerError(CLAIM_FAILED[0], error)
        failure.add_note("The idempotency key could not be computed from the payload. The function was not run.")
        raise failure from error


def _durable_token(invocation: Invocation, prefix: str) -> str:
    """A durable execution's name for its attempt: the same in all its replays, in whatever process."""
    from hashlib import sha256

    return sha256(f"{invocation.durable_arn}\n{prefix}".encode()).hexdigest()[:32]


def _is_suspension(error: BaseException) -> bool:
    """Whether a durable execution goes on after the error: its process ends, or Lambda repeats the invocation."""
    sdk = sys.modules.get("aws_durable_execution_sdk_python.exceptions")
    is_repeated: bool = sdk is not None and isinstance(error, sdk.InvocationError) and error.is_retryable()
    return is_repeated or not isinstance(error, Exception)


def _wait_until_ms(config: IdempotencyConfig, now_ms: int, deadline_ms: int | None) -> int:
    until_ms = now_ms + int(config.wait_for_in_progress_seconds * 1000)
    return until_ms if deadline_ms is None else min(until_ms, deadline_ms - WAIT_RESERVE_MS)


def _ambient_invocation(config: IdempotencyConfig) -> Invocation:
    context = ambient_lambda_context.get()
    if context is None:
        context = config.registered_lambda_context()
    return NO_INVOCATION if context is None else Invocation(context, is_own=False)


def _enter(wiring: _Wiring, prefix: str, invocation: Invocation, plan: Plan) -> _Tokens:
    """Make the call's configuration and deadline known to its store, and its invocation to the calls that it makes."""
    context = None
    if invocation.is_own and invocation.context is not None:
        context = ambient_lambda_context.set(invocation.context)
        wiring.config.lambda_context = invocation.context  # for threads that the function starts without its context
    # Without a deadline, a call that runs inside another one has that one's.
    deadline = None if plan.deadline_ms is None else call_deadline_ms.set(plan.deadline_ms)
    return call_settings.set(wiring.settings(prefix)), deadline, context


def _leave(tokens: _Tokens) -> None:
    settings, deadline, context = tokens
    try:
        call_settings.reset(settings)
        if deadline is not None:
            call_deadline_ms.reset(deadline)
        if context is not None:
            ambient_lambda_context.reset(context)
    except ValueError:
        return  # closed from another context, as by the garbage collector: the coroutine's own is gone


def _cached(wiring: _Wiring, cache: LocalCache, key: str) -> Refused | None:
    record = cache.get(key)
    return None if record is None else Refused(record, wiring.store.clock_ms(), from_cache=True)


def _raise_unchanged(error: BaseException) -> NoReturn:
    """Raise a function's own error with the context that it had, whatever is being handled around the call."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error  # the frame refers to the error, and its traceback to the frame
