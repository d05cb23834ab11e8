"""A store's operation, written once as a procedure: a generator that asks for requests and pauses, and itself never waits.

Whoever drives it performs what it asks for, and sends the answer back in or throws the error in.  `run` does so in the caller's
thread, `arun` for a caller whose event loop must go on meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")

    #: It is sent what it has asked for, None for a pause, and returns what the operation answers.
    Procedure: TypeAlias = Generator["Request | Pause", Any, T]


class Request:
    """Asks for `call(*arguments)`, one call of a client.  To be awaited if the client's calls are.

    A request that waits for a thread is not sent after *deadline_ms*, epoch milliseconds; None if it has no deadline.
    """

    __slots__ = ("arguments", "call", "deadline_ms")

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...] = (), deadline_ms: int | None = None) -> None:
        self.call = call
        self.arguments = arguments
        self.deadline_ms = deadline_ms


class Work(Request):
    """A request that keeps its thread busy and is never awaited, whatever the client: a large result is compressed, say."""

    __slots__ = ()


@final
class Pause:
    """Asks to wait for so many milliseconds."""

    __slots__ = ("ms",)

    def __init__(self, ms: float) -> None:
        self.ms = ms


class TooLateError(Exception):
    """A request was not sent, because its deadline passed while it waited for a thread."""


def note_outcome(error: Exception, *, is_unknown: bool) -> None:
    """Note on the error whether the write that it ends may have been applied, by this try or an earlier one."""
    with suppress(AttributeError, TypeError):  # of a class that forbids it, and then it counts as unknown
        error.outcome_is_unknown = is_unknown  # type: ignore[attr-defined]


def may_be_written(error: BaseException | None) -> bool:
    """Whether a write that ended by the error may have been applied.  If in doubt, True."""
    return getattr(error, "outcome_is_unknown", True) is not False


def run(procedure: Procedure[T], sleep_ms: Callable[[float], object]) -> T:
    """Carry the procedure out in this thread.  A request is sent at once, whatever its deadline."""
    try:
        asked = next(procedure)
        while True:
            try:
                answer = sleep_ms(asked.ms) if type(asked) is Pause else asked.call(*asked.arguments)
            except BaseException as error:  # noqa: BLE001 - the procedure decides
                asked = procedure.throw(error)
            else:
                asked = procedure.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def arun(
    procedure: Procedure[T],
    perform: Callable[[Request], Awaitable[Any]],
    sleep_ms: Callable[[float], Awaitable[Any]],
) -> T:
    """As `run`, awaiting what the procedure asks for.  A cancellation ends the procedure where it is."""
    try:
        asked = next(procedure)
        while True:
            try:
                answer = await (sleep_ms(asked.ms) if type(asked) is Pause else perform(asked))
            except BaseException as error:  # noqa: BLE001 - the procedure decides
                asked = procedure.throw(error)
            else:
                asked = procedure.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
