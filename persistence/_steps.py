"""A procedure written once, for clients that answer and for clients that are awaited.

It is a generator of calls: whoever drives it makes each call that it yields, and sends the answer back in or throws the error in.
So the procedure itself neither waits nor awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")

#: A call of a client, or a pause.
Call = Callable[[], Any]
Steps = Generator[Call, Any, T]


def run(steps: Steps[T]) -> T:
    """Drive the procedure to its end, with calls that answer."""
    try:
        call = next(steps)
        while True:
            try:
                answer = call()
            except Exception as error:  # noqa: BLE001 - the procedure decides
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def arun(steps: Steps[T]) -> T:
    """As `run`, with calls that are awaited.  A cancellation ends the procedure where it is."""
    try:
        call = next(steps)
        while True:
            try:
                answer = await call()
            except Exception as error:  # noqa: BLE001 - the procedure decides
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
