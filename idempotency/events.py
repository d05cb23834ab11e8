"""What happens to a key, as values for observers.  An operator counts these; nothing here decides anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, dataclass_transform

from persistence._values import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Why a call was turned away.
Reason: TypeAlias = Literal[
    "in progress",
    "orphaned",
    "payload mismatch",
    "result not kept",
    "result not loaded",
    "inconsistent state",
    "request too old",
]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Frozen(Value):
    """An immutable value of the annotated fields, which `vars` shows."""

    def __init_subclass__(cls) -> None:
        cls.__match_args__ = (*cls.__match_args__, *cls.__annotations__)  # type: ignore[misc]  # it is no dataclass at run time

    def __init__(self, **fields: Any) -> None:
        for name in self.__match_args__:
            if name in fields:
                self.__dict__[name] = fields.pop(name)
            elif hasattr(type(self), name):
                self.__dict__[name] = getattr(type(self), name)  # its default
            else:
                raise TypeError(f"{type(self).__name__} lacks {name}")
        if fields:
            raise TypeError(f"{type(self).__name__} has no {', '.join(fields)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an event is immutable; its {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an event is immutable; its {name} cannot be deleted")


class _Event(_Frozen):
    """Every event names the idempotency key (its hash, never the payload), and when it happened by the store's clock."""

    key: str
    at_ms: int


class Claimed(_Event):
    """This call holds the key and is about to run the function."""

    generation: int


class TakenOver(_Event):
    """Besides `Claimed`: the key had been held by an attempt whose lease ended without a result."""

    generation: int


class RecoveredOwnWrite(_Event):
    """Besides `Claimed`: the claim's answer was lost, and the record that refused its repetition was our own."""

    generation: int


class Replayed(_Event):
    """A stored result was returned and the function not run."""

    source: Literal["cache", "store"]
    holder: str


class Refused(_Event):
    """The call was turned away: by an attempt in progress or orphaned, another payload, or a result not kept or not readable.

    Or the request is too old, and its result is gone.
    """

    reason: Reason
    holder: str


class Waited(_Event):
    """The call waited for another attempt, which has ended, or has not when the time was up."""

    waited_ms: int


class Completed(_Event):
    """The function ran and its result is stored."""

    generation: int


class Released(_Event):
    """The function failed and the key is free again; with an *error*, the key stays claimed until the lease ends."""

    generation: int
    error: str | None = None


class Uncommitted(_Event):
    """The function ran, and its transaction was canceled or not answered; what became of it, the next event tells.

    *reasons* are the service's, such as `ConditionalCheckFailed` or `TransactionConflict`; empty if it gave none.
    """

    generation: int
    reasons: tuple[str, ...]


class LeaseLost(_Event):
    """The function ran (or failed), and another attempt owns the record.

    Effects may have happened twice, but for those of a transaction.
    """

    generation: int
    winner_holder: str


class ReplicationConflict(_Event):
    """Besides `LeaseLost`: the record that replaced ours was written in another Region of a global table."""

    region: str
    winner_region: str


class Throttled(_Event):
    """The store refused a request for now, *requests* times; whether it was answered in the end, the next event tells.

    *reasons* are the service's, such as `TableWriteKeyRangeThroughputExceeded` (a hot partition); empty if it gave none.
    """

    operation: str
    requests: int
    reasons: tuple[str, ...]


class ResultNotKept(_Event):
    """The function ran and its result could not be stored; retries are refused and do not run it again."""

    generation: int
    reason: str


Event: TypeAlias = (
    Claimed
    | TakenOver
    | RecoveredOwnWrite
    | Replayed
    | Refused
    | Waited
    | Completed
    | Released
    | Uncommitted
    | LeaseLost
    | ReplicationConflict
    | ResultNotKept
    | Throttled
)


class Observer(Protocol):
    """Called with each event, in the thread of the call and before it goes on: be quick.  What it raises is logged, no more."""

    def __call__(self, event: Event, /) -> object:
        """Take note of the event.  What is returned is ignored."""


def notify(observers: Sequence[Observer], event: Event) -> None:
    """Tell every observer; one that raises neither breaks the call nor keeps the event from the others."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            import logging  # here: observers seldom fail, and a cold start is the quicker without

            logging.getLogger(__name__).warning(
                "An observer failed at %s of key %s", type(event).__name__, event.key, exc_info=True
            )
