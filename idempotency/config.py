"""How one function is made idempotent: its configuration, and the Lambda context of the running invocation."""

from __future__ import annotations

from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


#: The context of the idempotent handler that runs in this thread or task; the calls that it makes find their deadline here.
ambient_lambda_context: ContextVar[Deadline | None] = ContextVar("ambient_lambda_context", default=None)


class IdempotencyConfig:
    """The settings of an idempotent function.  The first ten are Powertools', with its names, units and defaults.

    Args:
        event_key_jmespath: Selects what identifies a request; the whole payload if empty.
        payload_validation_jmespath: Selects what must not change between retries of a key; nothing is compared if empty.
        jmespath_options: Arguments of `jmespath.Options`; they replace the built-in functions `powertools_json`,
            `powertools_base64` and `powertools_base64_gzip`.
        raise_on_no_idempotency_key: Whether a payload without a key is an `IdempotencyKeyError`, before the function runs.  If
            not, the function runs without any protection, after a warning.
        expires_after_seconds: How long a result is replayed, from its completion.
        use_local_cache: Whether results are also replayed from this process's memory, without asking the store.
        local_cache_max_items: The most results remembered so, per function.
        hash_function: A hash of `hashlib`, by name.
        lambda_context: As if given to `register_lambda_context`.
        response_hook: Called with each replayed response; see `IdempotentHookFunction`.
        lease_seconds: How long an attempt holds its key where no Lambda deadline is known.  A heartbeat renews it while the
            function runs, so it is the time after which the key of a crashed process is free, not a limit of the run.  Also the
            lease of a durable execution, which must exceed its longest wait: nothing renews it while the execution is suspended.
        lease_margin_seconds: How much later than the Lambda deadline the lease ends.  Lambda was seen to stop a function 0.7 s
            late, and the margin also covers the difference between two machines' clocks.
        wait_for_in_progress_seconds: How long a call waits for the result of another attempt at its key, never past its own
            deadline, before it raises `IdempotencyAlreadyInProgressError`.
        orphan_takeover: Whether a call runs the function again when an earlier attempt's lease ended without a result.  If not,
            such a call raises `IdempotencyOrphanedError`, and so does every further one.
        require_all_key_fields: Whether a key that is missing altogether or in part is an `IdempotencyKeyError`.  A part is
            missing if a member of a multi-select like `[user, order]` is null, wherever in the expression it stands, if
            `to_string()` or `to_array()` is given null, or if `map()` finds null.  A condition, an alternative that `||` or
            `not_null()` does not take, and an element that a projection drops do not count.  If not, a key that is missing in
            part is a key, as in Powertools: requests that differ only in the missing part collide.  See docs/keys.md.
        observers: Called with each lifecycle event; see `idempotency.events`.

    Raises:
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
    ) -> None:
        if not 0 < lease_seconds < inf:
            raise ValueError(f"lease_seconds must be a positive number, not {lease_seconds}")
        if not 0 <= lease_margin_seconds < inf:
            raise ValueError(f"lease_margin_seconds must be 0 or more, not {lease_margin_seconds}")
        if not 0 <= wait_for_in_progress_seconds < inf:
            raise ValueError(f"wait_for_in_progress_seconds must be 0 or more, not {wait_for_in_progress_seconds}")
        if not -inf < expires_after_seconds < inf:
            raise ValueError(f"expires_after_seconds must be a number, not {expires_after_seconds}")
        self.event_key_jmespath = event_key_jmespath
        self.payload_validation_jmespath = payload_validation_jmespath
        self.jmespath_options = jmespath_options
        self.raise_on_no_idempotency_key = raise_on_no_idempotency_key
        self.expires_after_seconds = expires_after_seconds
        self.use_local_cache = use_local_cache
        self.local_cache_max_items = local_cache_max_items
        self.hash_function = hash_function
        self.lambda_context = lambda_context
        self.response_hook = response_hook
        self.lease_seconds = lease_seconds
        self.lease_margin_seconds = lease_margin_seconds
        self.wait_for_in_progress_seconds = wait_for_in_progress_seconds
        self.orphan_takeover = orphan_takeover
        self.require_all_key_fields = require_all_key_fields
        self.observers = tuple(observers)

    def register_lambda_context(self, lambda_context: Deadline) -> None:
        """Make the running invocation's deadline known to the functions of this configuration.

        It is kept for the calling thread or task, so concurrent invocations do not mix theirs.  A thread that was started
        without the caller's context (`contextvars.copy_context`) falls back on the context registered last.
        """
        registered: ContextVar[Deadline | None] = ContextVar("registered_lambda_context", default=None)
        # Atomic, and only with the first registration: a context variable can be neither copied nor pickled.
        self.__dict__.setdefault("_registered", registered).set(lambda_context)
        self.lambda_context = lambda_context

    def registered_lambda_context(self) -> Deadline | None:
        """The context registered in this thread or task, else the one registered last, else None."""
        registered: ContextVar[Deadline | None] | None = self.__dict__.get("_registered")
        own = None if registered is None else registered.get()
        return self.lambda_context if own is None else own
