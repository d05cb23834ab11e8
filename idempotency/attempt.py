"""The running attempt, for the function that it runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistence.scope import has_ended_here, innermost_scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence.transaction import Transaction

#: uuid5(NAMESPACE_DNS, "lambda-idempotency.downstream").  Fixed for ever: it decides what other services take for a repetition.
_DOWNSTREAM = "4f5de7d2-9247-5306-b89b-c9c15e1ecd66"


class Attempt:
    """One try at an idempotent call.  Get it with `current_attempt()`.

    A call that runs unprotected, without a key or switched off, has one too, so that a function need not ask: a random key of its
    own, no token, generation 0.

    Attributes:
        key: The idempotency key.
        owner_token: Names this attempt; every write of its record is fenced by it.
        generation: A count of attempts: 1 for the first one at the key, one more with each takeover.  It begins again at 1 when
            the record was released, deleted or expired, so it does not tell which of two attempts is the later one.
        lease_end_ms: Until when the key is ours, in epoch milliseconds; grows when the lease is renewed.  In the record, a
            renewed lease ends `lease_margin_seconds` later, because other machines' clocks may be ahead of this one's.
    """

    __slots__ = ("_begin", "_begun", "generation", "key", "lease_end_ms", "owner_token")

    def __init__(
        self,
        key: str,
        owner_token: str,
        generation: int,
        lease_end_ms: int | None,
        begin: Callable[[str], Transaction],
    ) -> None:
        self.key = key
        self.owner_token = owner_token
        self.generation = generation
        self.lease_end_ms = lease_end_ms
        self._begin = begin
        #: The transaction under "it", or None there if the attempt ended without one.
        self._begun: dict[str, Transaction | None] = {}

    @classmethod
    def unprotected(cls, begin: Callable[[str], Transaction]) -> Attempt:
        """The attempt of a call that has no record."""
        return cls(f"unprotected#{os.urandom(16).hex()}", "", 0, None, begin)

    @property
    def downstream_key(self) -> str:
        """A UUID to pass to other services as their idempotency key: the same in every attempt at this key, in every process."""
        from uuid import UUID, uuid5

        return str(uuid5(UUID(_DOWNSTREAM), self.key))

    def transaction(self) -> Transaction:
        """As the function of this name."""
        if "it" not in self._begun:
            # Atomic, as the end is: of several threads, some of which may have been left behind, the first one counts.
            self._begun.setdefault("it", self._begin(self.key))
        begun = self._begun["it"]
        if begun is None or begun.is_closed:
            raise RuntimeError("transaction() was called after its idempotent call had ended")
        return begun

    def close(self) -> Transaction | None:
        """For the library: the function has returned.  Returns the transaction if it has anything to write."""
        begun = self._begun.setdefault("it", None)
        return begun if begun is not None and begun.close() else None

    def __repr__(self) -> str:
        return f"Attempt(key={self.key!r}, generation={self.generation}, lease_end_ms={self.lease_end_ms})"


def current_attempt() -> Attempt:
    """The attempt that runs here; of nested idempotent calls, the innermost.

    Raises:
        RuntimeError: no idempotent call is running in this thread or task.
    """
    attempt = _running()
    if attempt is None:
        where = "after its idempotent call had ended" if has_ended_here() else "outside a running idempotent call"
        raise RuntimeError(f"current_attempt() was called {where}")
    return attempt


def transaction() -> Transaction:
    """The transaction of the attempt that runs here: what it collects is committed with the attempt's record, or not at all.

    The same object at every call inside one attempt; of nested idempotent calls, the innermost's.  A call that runs unprotected
    has no record: its writes are committed by themselves, all or none, and nothing recognises a repetition.

    Raises:
        RuntimeError: no idempotent call is running in this thread or task, or it has returned.
        IdempotencyPersistenceConfigError: its store has no transactions: only DynamoDB has, and not a global table with strong
            consistency.
    """
    attempt = _running()
    if attempt is None:
        where = "after its idempotent call had ended" if has_ended_here() else "outside a running idempotent call"
        raise RuntimeError(f"transaction() was called {where}")
    return attempt.transaction()


def _running() -> Attempt | None:
    scope = innermost_scope()
    attempt: Attempt | None = None if scope is None else scope.running_attempt()
    return attempt
