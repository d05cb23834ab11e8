"""From a payload to the time at which its request was issued.  Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from idempotency.key import Selection, payload_data
from persistence.exceptions import IdempotencyKeyError

#: A number below it is seconds (it would be the year 5138), any other milliseconds (they begin in 1973).
FIRST_MILLISECONDS: Final = 100_000_000_000
#: What is later is neither seconds nor milliseconds, but perhaps microseconds, by which no request would ever be too old.
LAST_MS: Final = 1000 * FIRST_MILLISECONDS - 1

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: A number as text.
NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]*)?")


class IssueTime:
    """Where a function's requests say when they were issued.

    Raises:
        jmespath.exceptions.ParseError: the expression is not valid JMESPath.
    """

    def __init__(self, expression: str, jmespath_options: dict[str, Any] | None) -> None:
        self._selection = Selection(expression, jmespath_options)

    def ms(self, payload: Any) -> int:
        """When the request was issued, in epoch milliseconds.

        Raises:
            IdempotencyKeyError: the payload does not say, or not in a form that can be read.
            SelectionError: the expression failed.
        """
        found = self._selection.of(payload_data(payload, self._selection.roots))
        try:
            issued_ms = _epoch_ms(found)
        except (ArithmeticError, TypeError, ValueError):
            issued_ms = -1
        if 0 <= issued_ms <= LAST_MS:
            return issued_ms
        problem = "no time of issue" if found is None else f"no readable time of issue (found {type(found).__name__})"
        raise IdempotencyKeyError(
            f"The payload has {problem} at {self._selection.expression!r}: it must be epoch seconds, epoch milliseconds or ISO "
            "8601. The function was not run"
        ) from None  # its text shows the value


def _epoch_ms(time: Any) -> int:
    """The time in epoch milliseconds.

    Raises:
        ArithmeticError, TypeError, ValueError: it is not in one of the known forms.
    """
    if isinstance(time, bool):
        raise TypeError
    if isinstance(time, datetime):
        return _datetime_ms(time)
    if isinstance(time, str):
        text = time.strip()
        return _number_ms(Decimal(text)) if NUMBER.fullmatch(text) else _datetime_ms(datetime.fromisoformat(text.upper()))
    if isinstance(time, (int, float, Decimal)):
        return _number_ms(time)
    raise TypeError


def _datetime_ms(time: datetime) -> int:
    """Without a zone, it is UTC: a time of the machine's own zone would be another one on each machine."""
    return ((time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(milliseconds=1)


def _number_ms(number: float | Decimal) -> int:
    return int(number * 1000 if number < FIRST_MILLISECONDS else number)
