"""What the demo prints, and whether all of it was as stated."""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOLD: Final = "1"
GREEN: Final = "32"
RED: Final = "31"
FAINT: Final = "2"


class Report:
    """Writes plain lines to *out*, in colour on a terminal, and counts the expectations that were not met."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._in_colour = out.isatty() and "NO_COLOR" not in os.environ  # https://no-color.org
        self._steps = 0
        self.met = 0
        self.unmet = 0

    @property
    def exit_code(self) -> int:
        """0 if every expectation was met and there were any, else 1."""
        return 0 if self.met and not self.unmet else 1

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A part of the story.  An error in it is an expectation that was not met, and the story goes on."""
        self._steps += 1
        self._line(f"\n{self._coloured(f'{self._steps}. {title}', BOLD)}")
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever it is, the exit code and the other steps must tell
            self.unmet += 1
            self._line(self._coloured("  WRONG  the step broke off:", RED))
            self._line(traceback.format_exc())

    def say(self, text: str) -> None:
        """A line of the story."""
        self._line(f"  {text}")

    def expect(self, what: str, found: object, expected: object) -> None:
        """Show what was found, and what was expected where that is something else."""
        if found == expected:
            self.met += 1
            self._line(f"  {self._coloured('ok', GREEN)}     {what}: {found}")
        else:
            self.unmet += 1
            self._line(f"  {self._coloured('WRONG', RED)}  {what}: expected {expected}, found {found}")

    def sum_up(self) -> None:
        """The last line."""
        if self.exit_code:
            self._line(f"\n{self._coloured(f'{self.unmet} of {self.met + self.unmet} statements were WRONG', RED)}")
        else:
            self._line(f"\n{self._coloured(f'All {self.met} statements were ok', GREEN)}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows in columns that are as wide as they need to be."""
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for number, row in enumerate([header, *rows]):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self._line(f"         {self._coloured(text, FAINT) if number == 0 else text}")

    def _line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._in_colour else text
