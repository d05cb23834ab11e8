"""The two packages as users see them: lazy, and honest about what they lack."""

from __future__ import annotations

from typing import Any

import pytest

import idempotency
import persistence


@pytest.mark.parametrize("package", [idempotency, persistence])
def test_every_name_that_a_package_offers_can_be_had(package: Any) -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.parametrize("package", [idempotency, persistence])
def test_a_name_that_a_package_lacks_is_an_attribute_error(package: Any) -> None:
    with pytest.raises(AttributeError, match=f"^module '{package.__name__}' has no attribute 'Nonsense'$"):
        package.Nonsense  # noqa: B018


def test_the_names_that_are_loaded_when_used_are_listed_all_the_same() -> None:
    assert set(idempotency.__all__) <= set(dir(idempotency))
    assert "__version__" in dir(idempotency)
    assert dir(idempotency) == sorted(dir(idempotency))
