"""What the deployment's tests share: one emulator, and one build."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from engines.plugin import entered
from stack import artifact as _artifact
from stack import emulator as _emulator

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from stack.emulator import Emulator


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """AWS's services with IAM enforced; one emulator for all tests, so use stacks and tables of your own."""
    with ExitStack() as stack:
        yield entered(stack, _emulator.running(), "The emulator of AWS's services")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each built function, by its name in the template."""
    with ExitStack() as stack:
        return entered(stack, _artifact.building(tmp_path_factory.getbasetemp()), "sam")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the emulator and the functions have logged beside a test that failed with them."""
    report = yield
    used = getattr(item, "funcargs", {}).get("emulator")
    if report.failed and used is not None:
        report.sections.append(("The emulator's log", used.last_words()))
    return report
