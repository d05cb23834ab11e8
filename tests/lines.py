"""Something that happens at a chosen line of a module, as a signal's handler may: a call of its own, or an exception."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType


class AtLine:
    """Within the `with` block, call *happens* when this thread comes to a line of *module* for the *number*th time, from 0.

    Attributes:
        happened: Whether the line was reached.
    """

    def __init__(self, module: ModuleType, number: int, happens: Callable[[], object]) -> None:
        self._file = module.__file__
        self._left = number
        self._happens = happens
        self.happened = False

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._entered)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._reached if frame.f_code.co_filename == self._file and not self.happened else None

    def _reached(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not self.happened:
            self._left -= 1
            if self._left < 0:
                self.happened = True
                self._happens()
        return self._reached


def at_each_line(module: ModuleType, begin: Callable[[int], tuple[Callable[[], object], Callable[[], object]]]) -> int:
    """For each line that a call comes to, begin a new story: the call, and what happens at that line.  Then make the call.

    Returns how many lines there were.
    """
    number = 0
    while True:
        call, happens = begin(number)
        with AtLine(module, number, happens) as line:
            call()
        if not line.happened:
            return number
        number += 1
