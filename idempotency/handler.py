"""The bound of one decorated function: its key, store, driver and serializer.  Nothing is shared with other functions."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import ContextDecorator
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from idempotency._callables import ASYNC_GENERATOR, COROUTINE, GENERATOR, has_async_code, has_flag
from idempotency._callables import called as _called
from idempotency._environment import Variable
from idempotency._json import ResultEncoder, result_json
from idempotency.attempt import Attempt
from idempotency.config import IdempotencyConfig
from idempotency.drivers import Call, adrive, drive
from idempotency.execution import (
    Executed,
    Failed,
    Outcome,
    Plan,
    Refused,
    Replayed,
)
from idempotency.key import KeyExtractor
from persistence.base import (
    CLAIM_FAILED,
    AsyncBasePersistenceLayer,
    BasePersistenceLayer,
    CallSettings,
)
from persistence.exceptions import (
    IdempotencyKeyError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
)
from persistence.scope import CallScope, innermost_scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from idempotency.config import Deadline
    from idempotency.issue_time import IssueTime
    from idempotency.local_cache import LocalCache
    from idempotency.serialization.base import BaseIdempotencySerializer
    from persistence.datarecord import DataRecord

    Store = BasePersistenceLayer | AsyncBasePersistenceLayer

LAMBDA_FUNCTION: Final = Variable("AWS_LAMBDA_FUNCTION_NAME")

#: What the caller of a function should know if its payload gives no key.
NO_KEY: Final = "The function was not run; a retry with the same payload does not help."
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


class BoundConfig:
    """A function's configuration and store, checked and prepared once."""

    def __init__(self, config: IdempotencyConfig, store: object, *, is_async: bool) -> None:
        if not isinstance(config, IdempotencyConfig):
            raise TypeError(f"config must be an IdempotencyConfig, not {_kind(config)}")
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
        self.issue_time = _issue_time(config) if config.issued_at_jmespath else None
        #: Of the store that was given, because a wrapped one has the same hooks.
        self.takes_over_late = cast("Store", store).supports_fresh_until
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


class Override(ContextDecorator):
    """Another store or configuration of one function, while this context manager is entered.

    Overrides may be left in any order: the one that was entered last, of those that have not been left, counts.
    """

    def __init__(self, handler: IdempotencyHandler, store: Store | None, config: IdempotencyConfig | None) -> None:
        self._handler = handler
        self._store = store
        self._config = config

    def __call__(self, function: Any) -> Any:
        """As a decorator of a test, sync or async."""
        called = _called(function)
        if has_flag(called, GENERATOR | ASYNC_GENERATOR):
            raise TypeError("override() does not decorate generator functions: use it in a `with` statement inside")
        if not has_flag(called, COROUTINE):
            return super().__call__(function)

        @wraps(function)
        async def overridden(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return overridden

    def __enter__(self) -> None:
        self._handler.enter_override(self, self._store, self._config)

    def __exit__(self, *_: object) -> None:
        self._handler.leave_override(self)


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
        self._serializer = None if _changes_nothing(output_serializer) else output_serializer
        self._results = ResultEncoder()
        self._serialize = self._results.text if self._serializer is None else self._serialized
        self._is_hook_checked = False
        self._key_prefix = key_prefix
        self._has_warned_of_gap = False
        #: The default prefix, and the Lambda function's name that is in it.
        self._named: tuple[object, str] = (None, f"test-func.{function_name}")
        bound = BoundConfig(config if config is not None else IdempotencyConfig(), persistence_store, is_async=is_async)
        #: Who bound them, and what: first the decorator, then the overrides in the order in which they were entered.
        self._overrides: list[tuple[object, BoundConfig]] = [(self, bound)]

    def execute(self, payload: Any, invoke: Callable[[], Any], invocation: Invocation | None = None) -> Executed | Replayed:
        """Call *invoke* once for the payload's key, or replay its result."""
        bound = self._overrides[-1][1]
        invocation = invocation if invocation is not None else _ambient_invocation(bound.config)
        call = self._call(bound, payload, invoke, invocation)
        if call is None:
            return self.unprotected(invoke)
        try:
            try:
                _enter(bound, call.scope, invocation)
                store: Any = bound.store
                cached = None if bound.cache is None else _cached(bound, bound.cache, call.plan.key)
                return self._settled(bound, call.plan.key, drive(call, store, cached), cached)
            finally:
                _leave(bound, call.scope, invocation)
        finally:
            if not call.scope.is_left:  # a signal's handler raised inside the other one
                _leave(bound, call.scope, invocation)

    async def aexecute(
        self, payload: Any, invoke: Callable[[], Any], invocation: Invocation | None = None
    ) -> Executed | Replayed:
        """As `execute`, for an async function: *invoke* returns what is to be awaited."""
        bound = self._overrides[-1][1]
        invocation = invocation if invocation is not None else _ambient_invocation(bound.config)
        call = self._call(bound, payload, invoke, invocation)
        if call is None:
            return await self.aunprotected(invoke)
        try:
            try:
                _enter(bound, call.scope, invocation)
                store: Any = bound.store
                cached = None if bound.cache is None else _cached(bound, bound.cache, call.plan.key)
                return self._settled(bound, call.plan.key, await adrive(call, store, cached), cached)
            finally:
                _leave(bound, call.scope, invocation)
        finally:
            if not call.scope.is_left:
                _leave(bound, call.scope, invocation)

    def unprotected(self, invoke: Callable[[], Any]) -> Executed:
        """Call *invoke*, come what may: the call has no key, or idempotency is switched off."""
        store = cast("BasePersistenceLayer", self._overrides[-1][1].store)
        attempt, scope = Attempt.unprotected(store.begin), CallScope()
        try:
            try:
                scope.attempt = attempt
                scope.enter()
                value = invoke()
            finally:
                scope.leave()
                transaction = attempt.close()
        finally:
            scope.leave()  # again, as in `execute`
        if transaction is not None:
            store.commit(None, transaction)
        return Executed(value, None)

    async def aunprotected(self, invoke: Callable[[], Any]) -> Executed:
        """As `unprotected`, for an async function."""
        store = cast("AsyncBasePersistenceLayer", self._overrides[-1][1].store)
        attempt, scope = Attempt.unprotected(store.begin), CallScope()
        try:
            try:
                scope.attempt = attempt
                scope.enter()
                value = await invoke()
            finally:
                scope.leave()
                transaction = attempt.close()
        finally:
            scope.leave()
        if transaction is not None:
            await store.commit(None, transaction)
        return Executed(value, None)

    def override(self, *, persistence_store: Store | None = None, config: IdempotencyConfig | None = None) -> Override:
        """Use another store or configuration inside the `with` block, in all threads.  For tests."""
        return Override(self, persistence_store, config)

    def _default_prefix(self) -> str:
        """The Lambda function's name, which changes so rarely that the last prefix is kept, and this function's."""
        raw = LAMBDA_FUNCTION.raw()
        last, prefix = self._named
        if raw != last:
            prefix = f"{LAMBDA_FUNCTION.value()}.{self._function_name}" if raw is not None else f"test-func.{self._function_name}"
            self._named = raw, prefix
        return prefix

    def enter_override(self, override: Override, store: Store | None, config: IdempotencyConfig | None) -> None:
        """For `Override`: bind another store or configuration."""
        before = self._overrides[-1][1]
        bound = BoundConfig(
            before.config if config is None else config, before.store if store is None else store, is_async=self._is_async
        )
        self._overrides.append((override, bound))

    def leave_override(self, override: Override) -> None:
        """For `Override`: forget what it has bound last, whatever was entered and left meanwhile."""
        entered = [each for each in list(self._overrides) if each[0] is override]
        self._overrides.remove(entered[-1])  # each step is atomic: threads may leave theirs at the same time

    def _call(self, bound: BoundConfig, payload: Any, invoke: Callable[[], Any], invocation: Invocation) -> Call | None:
        """The call, planned; None if it has no key and runs unprotected."""
        prefix = self._key_prefix or self._default_prefix()
        digest, payload_hash, gap = _digests(bound, payload)
        config, store = bound.config, bound.store
        if digest is None:
            if config.raise_on_no_idempotency_key:
                raise IdempotencyKeyError("No data found to create a hashed idempotency_key").about(None, NO_KEY)
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
        lease_margin_ms = int(config.lease_margin_seconds * 1000)
        if deadline_ms is not None and invocation.durable_arn is None:
            lease_end_ms = deadline_ms + lease_margin_ms
        elif store.supports_leases:
            lease_ms = int(config.lease_seconds * 1000)
        wait_until_ms = wait_ms = None
        if config.wait_for_in_progress_seconds:
            now_ms = store.clock_ms()
            wait_until_ms = _wait_until_ms(config, now_ms, deadline_ms)
            wait_ms = wait_until_ms - now_ms
        plan = Plan(  # by position, because by name it takes twice as long
            f"{prefix}#{digest}",
            payload_hash,
            _durable_token(invocation, prefix) if invocation.durable_arn else os.urandom(16).hex(),
            lease_ms,
            lease_end_ms,
            lease_margin_ms,
            deadline_ms,
            int(config.expires_after_seconds * 1000),
            wait_until_ms,
            wait_ms,
            config.orphan_takeover,
            invocation.is_replay and not invocation.durable_arn,
            "" if invocation.context is None else invocation.holder,
            config.event_key_jmespath,
            bool(config.observers),
        )
        if invocation.durable_arn is not None:
            plan = plan.replace(outlives_call=True, is_suspension=_is_suspension)
        if bound.issue_time is not None and not invocation.is_replay:  # a replay goes on with a request that was let in before
            fresh_until_ms = _issued_ms(bound.issue_time, payload) + _life_ms(config)
            plan = plan.replace(fresh_until_ms=fresh_until_ms, takes_over_late=bound.takes_over_late)
        own_context = invocation.context if invocation.is_own else None
        scope = CallScope(bound.settings(prefix), plan.deadline_ms, own_context)
        return Call(plan, invoke, self._serialize, config.observers, scope)

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

    def _settled(self, bound: BoundConfig, key: str, outcome: Outcome, cached: Refused | None) -> Executed | Replayed:
        """What the caller gets, an error included."""
        if isinstance(outcome, (Executed, Replayed)):
            record = outcome.record
            if bound.cache is not None and record is not None and (cached is None or cached.existing is not record):
                bound.cache.put(key, record)
            if isinstance(outcome, Executed):
                if self._results.change:
                    self._warn_of_change()  # here: the record is complete, and a warning may be an error
                return outcome
            return outcome.with_value(self._replayed_value(bound, outcome.record))
        if isinstance(outcome, Failed):
            _raise_unchanged(outcome.error)
        raise outcome.error from outcome.cause

    def _replayed_value(self, bound: BoundConfig, record: DataRecord) -> Any:
        value = record.response_json_as_dict()
        if self._serializer is not None and value is not None:
            try:
                value = self._serializer.from_dict(value)
            except IdempotencyResultNotKeptError as error:
                raise _unreadable(record.key, error) from error.__cause__
        hook = bound.config.response_hook
        if hook is None:
            return value
        answer = hook(value, record)
        if answer is None and value is not None and not self._is_hook_checked:
            self._warn_of_hook()
        return answer

    def _warn_of_change(self) -> None:
        change, self._results.change = self._results.change, None
        warnings.warn(
            f"JSON changes the result of {self._function_name}, which contains a {change}: replays return what JSON makes of it. "
            "Use an output_serializer, or return only dicts with text keys, lists, text, numbers, booleans and None",
            stacklevel=5,
        )

    def _warn_of_hook(self) -> None:
        self._is_hook_checked = True
        warnings.warn(
            f"The response_hook of {self._function_name} returned None, so this replay returns None. A hook must return the"
            " response, changed or not",
            stacklevel=6,
        )


def _changes_nothing(serializer: BaseIdempotencySerializer | None) -> bool:
    no_op = sys.modules.get("idempotency.serialization.no_op")
    return no_op is not None and type(serializer) is no_op.NoOpSerializer


def _unreadable(key: str, error: IdempotencyResultNotKeptError) -> IdempotencyResultNotKeptError:
    return IdempotencyResultNotKeptError(
        f"The function ran for idempotency key {key}, but its stored result cannot be read; it will not be run again before the"
        " record expires. Make the type accept what was stored, or find out what the function did and delete the record",
        error,
    ).about(key, "A retry does not help until then.")


def _new_cache(config: IdempotencyConfig) -> LocalCache:
    from idempotency.local_cache import LocalCache  # here: few functions use it

    return LocalCache(config.local_cache_max_items)


def _issue_time(config: IdempotencyConfig) -> IssueTime:
    from idempotency.issue_time import IssueTime  # here: few functions use it

    return IssueTime(config.issued_at_jmespath, config.jmespath_options)


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


def _kind(value: object) -> str:
    """What was passed, for an error."""
    if isinstance(value, type):
        return f"a class: pass an object, such as {value.__name__}(...)"
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _digests(bound: BoundConfig, payload: Any) -> tuple[str | None, str, str | None]:
    try:
        return bound.extractor.digests(payload)
    except IdempotencyKeyError as error:
        error.about(None, NO_KEY)
        raise
    except Exception as error:
        failure = IdempotencyPersistenceLayerError(CLAIM_FAILED[0], error)
        raise failure.about(None, f"The idempotency key could not be computed. {NO_KEY}", function_ran=False) from error


def _issued_ms(issue_time: IssueTime, payload: Any) -> int:
    try:
        return issue_time.ms(payload)
    except IdempotencyKeyError as error:
        error.about(None, NO_KEY)
        raise
    except Exception as error:
        failure = IdempotencyPersistenceLayerError(CLAIM_FAILED[0], error)
        raise failure.about(None, f"The time of issue could not be read. {NO_KEY}", function_ran=False) from error


def _life_ms(config: IdempotencyConfig) -> int:
    """How long after its time of issue a request surely has its result, if it has run: by clocks that differ by the margin."""
    return int(config.expires_after_seconds * 1000) - int(config.lease_margin_seconds * 1000)


def _durable_token(invocation: Invocation, prefix: str) -> str:
    """A durable execution's name for its attempt: the same in all its replays, in whatever process."""
    from hashlib import sha256

    return sha256(f"{invocation.durable_arn}\n{prefix}".encode()).hexdigest()[:32]


def _is_suspension(error: BaseException) -> bool:
    """Whether a durable execution goes on after the error: its process ends, or Lambda repeats the invocation.

    The SDK lets every `BaseException` escape, a group of any kind included, so Lambda repeats the invocation.  For an
    `ExceptionGroup`, whatever is in it, the SDK ends the execution.
    """
    sdk = sys.modules.get("aws_durable_execution_sdk_python.exceptions")
    is_repeated: bool = sdk is not None and isinstance(error, sdk.InvocationError) and error.is_retryable()
    return is_repeated or not isinstance(error, Exception)


def _wait_until_ms(config: IdempotencyConfig, now_ms: int, deadline_ms: int | None) -> int:
    until_ms = now_ms + int(config.wait_for_in_progress_seconds * 1000)
    return until_ms if deadline_ms is None else min(until_ms, deadline_ms - WAIT_RESERVE_MS)


def _ambient_invocation(config: IdempotencyConfig) -> Invocation:
    scope = innermost_scope()
    context = None if scope is None else scope.lambda_context
    if context is None:
        context = config.registered_lambda_context()
    return NO_INVOCATION if context is None else Invocation(context, is_own=False)


def _enter(bound: BoundConfig, scope: CallScope, invocation: Invocation) -> None:
    """Make the call known to its store and to its function, and its invocation to the calls that the function makes."""
    scope.enter()
    if invocation.is_own and invocation.context is not None:
        bound.config.begin_invocation(invocation.context)


def _leave(bound: BoundConfig, scope: CallScope, invocation: Invocation) -> None:
    """Undo `_enter`."""
    if invocation.is_own and invocation.context is not None:
        bound.config.end_invocation(invocation.context)
    scope.leave()


def _cached(bound: BoundConfig, cache: LocalCache, key: str) -> Refused | None:
    record = cache.get(key)
    return None if record is None else Refused(record, bound.store.clock_ms(), from_cache=True)


def _raise_unchanged(error: BaseException) -> NoReturn:
    """Raise a function's own error with the context that it had, whatever is being handled around the call."""
    context = error.__context__
    try:
        raise error
    finally:
        _set_context(error, context)  # past the error's class, which may forbid assignments
        del error  # the frame refers to the error, and its traceback to the frame


_set_context: Final = cast("Any", BaseException.__dict__["__context__"]).__set__
