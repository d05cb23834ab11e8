"""What is shipped: the modules of the two packages, their markers of types, and nothing that lies beside them."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

hatchling = pytest.importorskip("hatchling.builders.wheel", reason="the wheel is built in one environment only")

ROOT = Path(__file__).parents[1]
PACKAGES = ("idempotency", "persistence")
#: What editors, merges and tools leave behind, and what does not belong into a package.
STRAY = (
    "cache.py.orig",
    "cache.py.rej",
    "cache.py~",
    ".cache.py.swp",
    "cache.py.bak",
    "notes.txt",
    "cache.pyc",
    "__pycache__/cache.cpython-311.pyc",
    "data.json",
    "cache.patch",
)
METADATA = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the wheel is made of, with stray files in every folder."""
    root = tmp_path / "repository"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    for folder in (root, *(root / package for package in PACKAGES), root / "idempotency" / "serialization"):
        for name in STRAY:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("stray")
    return root


def sources() -> set[str]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)) for path in found} | {f"{package}/py.typed" for package in PACKAGES}


def test_the_wheel_has_the_modules_their_types_and_its_metadata_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    (built,) = hatchling.WheelBuilder(str(repository)).build(directory=str(tmp_path / "dist"), versions=["standard"])

    with ZipFile(built) as wheel:
        names = set(wheel.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources()
    assert {name.partition(".dist-info/")[2] for name in about} == METADATA


def test_the_source_distribution_has_no_stray_file(repository: Path, tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist")
    (built,) = sdist.SdistBuilder(str(repository)).build(directory=str(tmp_path / "dist"), versions=["standard"])

    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in names if name.startswith(PACKAGES)} == sources()


def test_no_folder_of_a_package_has_a_file_that_is_not_shipped() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }

    assert found == sources()
