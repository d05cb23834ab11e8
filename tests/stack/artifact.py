"""What `sam build` makes of the functions, once for all tests; and copies of it that are broken on purpose."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engines.repository import ROOT

from stack import sam

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def building(scratch: Path) -> Iterator[Path]:
    """Build the functions in a scratch folder; a folder for each of them is in the folder that is yielded.

    Raises:
        EngineUnavailableError: sam is not on this machine.
        SamError: the build failed.
    """
    into = scratch / "built"
    sam.build(ROOT / "template.yaml", into)
    yield into


def changed(artifact: Path, into: Path, module: str, changes: dict[str, str]) -> Path:
    """A copy of an artifact with a text in one of its modules, such as `sample/payments.py`, replaced by another one."""
    package = module.partition("/")[0]
    into.mkdir()
    for each in artifact.iterdir():
        if each.name == package:
            shutil.copytree(each, into / each.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (into / each.name).symlink_to(each)
    text = (into / module).read_text(encoding="utf-8")
    for old, new in changes.items():
        if old not in text:
            raise LookupError(f"{module} has no {old}")
        text = text.replace(old, new)
    (into / module).write_text(text, encoding="utf-8")
    return into


def without(artifact: Path, into: Path, package: str) -> Path:
    """A copy of an artifact that lacks a package."""
    into.mkdir()
    for each in artifact.iterdir():
        if each.name != package:
            (into / each.name).symlink_to(each)
    return into
