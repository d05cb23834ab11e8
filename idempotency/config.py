"""How one function is made idempotent: its configuration, and the Lambda context of the running invocation."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import ref

from persistence._checks import (
    check_callable,
    check_flag,
    check_mapping,
    check_object,
    check_seconds,
    check_text,
    check_whole_number,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idempotency.events import Observer
    from idempotency.hook import IdempotentHookFunction


@runtime_checkable
class Deadline(Protocol):
    """What is needed of a Lambda context."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation is stopped."""
        ...


class _Registration:
    """The Lambda context that was registered in a thread or task, and with which configurations."""

    __slots__ = ("configs", "context")

    def __init__(self, context: Deadline, configs: frozenset[ref[IdempotencyConfig]]) -> None:
        self.context = context
        self.configs = configs


#: One variable for all configurations: a variable is never freed, and some users make a configuration in each invocation.
_registration: ContextVar[_Registration | None] = ContextVar("idempotency_lambda_context", default=None)

#: Which invocation was seen last in this process, by `_invocation_id`.
_last_invocation: object = None


def _invocation_id(context: Deadline) -> object:
    return getattr(context, "aws_request_id", None) or id(context)


def enter_invocation(context: Deadline) -> None:
    """Note that the invocation of *context* runs in this thread or task: what was registered for another one has ended."""
    global _last_invocation  # noqa: PLW0603 - a process runs one invocation after another
    _last_invocation = getattr(context, "aws_request_id", None) or id(context)  # as `_invocation_id`, without the call
    registration = _registration.get()
    if registration is not None and _invocation_id(registration.context) != _last_invocation:
        _registration.set(None)


class IdempotencyConfig:
    """The settings of an idempotent function.  The first ten are Powertools', with its names, units and defaults.

    Args:
        event_key_jmespath: Selects what identifies a request; the whole payload if empty.
        payload_validation_jmespath: Selects what must not change between retries of a key; nothing is compared if empty.
        jmespath_options: Arguments of `jmespath.Options`; they replace the built-in functions `powertools_json`,
            `powertools_base64` and `powertools_base64_gzip`.
        raise_on_no_idempotency_key: Whether a payload without a key is an `IdempotencyKeyError`, before the function runs.  If
            not, the function runs without any protection, after a warning.
        expires_after_seconds: How long a result is replayed, from its completion, to the second; 0 keeps only calls apart that
            come at the same time.
        use_local_cache: Whether results are also replayed from this process's memory, without asking the store.
        local_cache_max_items: The most results remembered so, per function; at least 1.
        hash_function: A hash of `hashlib`, by name.
        lambda_context: As if given to `register_lambda_context`.
        response_hook: Called with each replayed response; see `IdempotentHookFunction`.
        lease_seconds: How long an attempt holds its key where no Lambda deadline is known.  A heartbeat renews it while the
            function runs, so it is the time after which the key of a crashed process is free, not a limit of the run.  Also the
            lease of a durable execution, which must exceed its longest wait: nothing renews it while the execution is suspended.
            With a native async store, the event loop of the call renews it: a function that blocks the loop for longer loses
            its key to another attempt.  Keep blocking work off the loop, for example by `asyncio.to_thread`.
        lease_margin_seconds: How much longer a lease lasts in its record than its attempt counts on: than the Lambda deadline,
            or than *lease_seconds*.  It must exceed the difference between two machines' clocks plus the time by which an
            attempt is stopped late: Lambda was seen to stop a function 0.7 s late, which leaves 0.3 s of the default.
        wait_for_in_progress_seconds: How long a call waits for the result of another attempt at its key, never past its own
            deadline, before it raises `IdempotencyAlreadyInProgressError`.
        orphan_takeover: Whether a call runs the function again when an earlier attempt's lease ended without a result.  If not,
            such a call raises `IdempotencyOrphanedError`, and so does every further one until `store.release_orphan` has freed
            the key.
        require_all_key_fields: Whether a key that is missing altogether or in part is an `IdempotencyKeyError`.  A part is
            missing if a member of a multi-select like `[user, order]` is null, wherever in the expression it stands, if
            `to_string()` or `to_array()` is given null, or if `map()` finds null.  A condition, an alternative that `||` or
            `not_null()` does not take, and an element that a projection drops do not count.  If not, a key that is missing in
            part is a key, as in Powertools: requests that differ only in the missing part collide.  See docs/keys.md.
        observers: Called with each lifecycle event; see `idempotency.events`.
        issued_at_jmespath: Selects when the request was issued, such as `attributes.SentTimestamp` of an SQS record or `time`
            of an EventBridge event: epoch seconds, epoch milliseconds, or ISO 8601.  A request that is older than
            *expires_after_seconds*, less *lease_margin_seconds* for the difference of clocks, is not run unless a record proves
            that it never completed; without a record, it is an `IdempotencyRequestTooOldError`.  See docs/old-requests.md.

    Raises:
        TypeError: an option is of another type than it must be.
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        event_key_jmespath: str = "",
        payload_validation_jmespath: str = "",
        jmespath_options: dict[str, Any] | None = None,
        raise_on_no_idempotency_key: bool = False,
        expires_after_seconds: int = 60 * 60,
        use_local_cache: bool = False,
        local_cache_max_items: int = 256,
        hash_function: str = "md5",
        lambda_context: Deadline | None = None,
        response_hook: IdempotentHookFunction | None = None,
        *,
        lease_seconds: float = 60,
        lease_margin_seconds: float = 1,
        wait_for_in_progress_seconds: float = 0,
        orphan_takeover: bool = True,
        require_all_key_fields: bool = False,
        observers: Sequence[Observer] = (),
        issued_at_jmespath: str = "",
    ) -> None:
        check_text("event_key_jmespath", event_key_jmespath)
        check_text("payload_validation_jmespath", payload_validation_jmespath)
        check_mapping("jmespath_options", jmespath_options)
        check_flag("raise_on_no_idempotency_key", raise_on_no_idempotency_key)
        check_seconds("expires_after_seconds", expires_after_seconds)
        check_flag("use_local_cache", use_local_cache)
        check_whole_number("local_cache_max_items", local_cache_max_items, 1)
        check_text("hash_function", hash_function, is_optional=False)
        if lambda_context is not None:
            check_object("lambda_context", lambda_context, "a Lambda context", ("get_remaining_time_in_millis",))
        if response_hook is not None:
            check_callable("response_hook", response_hook)
        check_seconds("lease_seconds", lease_seconds, is_positive=True)
        check_seconds("lease_margin_seconds", lease_margin_seconds)
        check_seconds("wait_for_in_progress_seconds", wait_for_in_progress_seconds)
        check_flag("orphan_takeover", orphan_takeover)
        check_flag("require_all_key_fields", require_all_key_fields)
        check_text("issued_at_jmespath", issued_at_jmespath)
        if issued_at_jmespath and expires_after_seconds <= lease_margin_seconds:
            raise ValueError(
                f"expires_after_seconds must exceed lease_margin_seconds, {lease_margin_seconds}, with issued_at_jmespath, and "
                f"{expires_after_seconds} does not: every request would be too old"
            )
        self.event_key_jmespath = event_key_jmespath or ""
        self.payload_validation_jmespath = payload_validation_jmespath or ""
        self.jmespath_options = jmespath_options
        self.raise_on_no_idempotency_key = raise_on_no_idempotency_key
        self.expires_after_seconds = expires_after_seconds
        self.use_local_cache = use_local_cache
        self.local_cache_max_items = local_cache_max_items
        self.hash_function = hash_function
        self._lambda_context: Deadline | None = None
        #: That of the handler that runs now, for threads that it starts without its context.
        self._running_context: Deadline | None = None
        if lambda_context is not None:
            self.lambda_context = lambda_context
        self.response_hook = response_hook
        self.lease_seconds = lease_seconds
        self.lease_margin_seconds = lease_margin_seconds
        self.wait_for_in_progress_seconds = wait_for_in_progress_seconds
        self.orphan_takeover = orphan_takeover
        self.require_all_key_fields = require_all_key_fields
        self.observers = _checked(observers)
        self.issued_at_jmespath = issued_at_jmespath

    @property
    def lambda_context(self) -> Deadline | None:
        """The Lambda context of the running invocation, as far as it was registered, or given to a handler that runs now."""
        return self._running_context or self._lambda_context

    @lambda_context.setter
    def lambda_context(self, context: Deadline | None) -> None:
        self._lambda_context = context
        if context is not None:
            enter_invocation(context)

    def register_lambda_context(self, lambda_context: Deadline) -> None:
        """Make the running invocation's deadline known to the functions of this configuration.

        It counts until its deadline, or until a context with another request id is registered or given to an idempotent handler.
        It is kept for the calling thread or task, so concurrent invocations do not mix theirs.  A thread that was started
        without the caller's context (`contextvars.copy_context`) falls back on the context registered last.
        """
        self.lambda_context = lambda_context
        registration = _registration.get()
        configs = frozenset() if registration is None else registration.configs
        _registration.set(_Registration(lambda_context, configs | {ref(self)}))

    def registered_lambda_context(self) -> Deadline | None:
        """The context registered in this thread or task, else the one registered last; None if its invocation has ended."""
        registration = _registration.get()
        if registration is not None and ref(self) in registration.configs:
            return registration.context
        last = self.lambda_context
        return None if last is None or _invocation_id(last) != _last_invocation else last

    def begin_invocation(self, context: Deadline) -> None:
        """For the library: a handler of this configuration begins.  `end_invocation` must follow."""
        enter_invocation(context)
        self._running_context = context

    def end_invocation(self, context: Deadline) -> None:
        """For the library: that handler has ended.  A second time, this changes nothing."""
        if self._running_context is context:
            self._running_context = None


def _checked(observers: Sequence[Observer]) -> tuple[Observer, ...]:
    if isinstance(observers, str) or not hasattr(observers, "__iter__"):
        raise TypeError(f"observers must be a list of functions or other callables, not {kind_of(observers)}")
    checked = tuple(observers)
    for each in checked:
        if isinstance(each, type):
            raise TypeError(f"observers must be callable objects, not the class {each.__name__}: create an object of it")
        check_callable("an observer", each)
    return checked
