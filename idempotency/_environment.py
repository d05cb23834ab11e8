"""Variables of the environment that every call looks at, because they may change from call to call."""

from __future__ import annotations

import os
from typing import Any, Final

_ENVIRON: Final = os.environ
#: Behind os.environ, which takes as long to say that a name is missing as a call of this library takes for all its state machine.
_DATA: Final[Any] = getattr(_ENVIRON, "_data", _ENVIRON)


class Variable:
    """A variable by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key: Any = _ENVIRON.encodekey(name) if _DATA is not _ENVIRON else name

    def raw(self) -> object:
        """The value in the form that the environment keeps, for comparison with an earlier one; None if it is not set."""
        environment = os.environ  # which a test may have replaced
        return _DATA.get(self._key) if environment is _ENVIRON else environment.get(self.name)

    def value(self) -> str | None:
        """The value, None if it is not set."""
        return os.environ.get(self.name)
