"""Values in the manner of dataclasses, which cost every process that imports them 3 million instructions a class.

Named tuples cost one million, and ten more where their annotations are strings: the first of these wakes the compiler.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Value:
    """Equal to another of its type with equal fields, which `__match_args__` names in the constructor's order.

    A field in `unshown` is left out of the representation: it may hold a payload or a result.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    unshown: ClassVar[frozenset[str]] = frozenset()

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in self.__match_args__ if name not in self.unshown]
        return f"{type(self).__name__}({', '.join(shown)})"


class FixedText:
    """An attribute of a store that shows an option, such as the name of a record's attribute.

    It cannot be set: requests are built from the options, and would not follow.
    """

    def __init__(self, holder: str, name: str = "") -> None:
        self._holder = holder
        self._name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._option = name
        self._name = self._name or name

    def __get__(self, store: object, owner: type | None = None) -> Any:
        return self if store is None else getattr(getattr(store, self._holder), self._name)

    def __set__(self, store: object, value: object) -> None:
        raise AttributeError(
            f"{self._option} is fixed when the store is made: give it to the constructor of {type(store).__name__}"
        )
