"""Variables that each call looks at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from idempotency._environment import Variable

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "IDEMPOTENCY_TEST_VARIABLE"


def test_a_variable_is_seen_when_it_is_set_changed_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = Variable(NAME)
    monkeypatch.delenv(NAME, raising=False)

    assert (variable.raw(), variable.value()) == (None, None)

    monkeypatch.setenv(NAME, "one")
    first = variable.raw()
    assert (first is None, variable.value()) == (False, "one")
    assert variable.raw() == first

    monkeypatch.setenv(NAME, "two")
    assert variable.raw() != first
    assert variable.value() == "two"

    monkeypatch.delenv(NAME)
    assert (variable.raw(), variable.value()) == (None, None)


@pytest.mark.parametrize("replacement", [dict, lambda environment: environment.copy()], ids=["dict", "copy"])
def test_an_environment_that_was_replaced_is_the_one_that_counts(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[[os._Environ[str]], dict[str, str]]
) -> None:
    variable = Variable(NAME)
    monkeypatch.delenv(NAME, raising=False)

    monkeypatch.setattr(os, "environ", {**replacement(os.environ), NAME: "replaced"})

    assert (variable.raw(), variable.value()) == ("replaced", "replaced")
