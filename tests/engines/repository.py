"""What tests take from the repository, and what they must not: the sample, never the packages' folders."""

from __future__ import annotations

import sys
import sysconfig
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("idempotency", "persistence")


def make_sample_importable() -> None:
    """Let `import sample` find the sample application, which no wheel contains.

    By location: the repository's root on `sys.path` would offer the packages' folders, too.
    """
    folder = ROOT / "sample"
    spec = spec_from_file_location("sample", folder / "__init__.py", submodule_search_locations=[str(folder)])
    if "sample" in sys.modules or spec is None or spec.loader is None:
        return
    module = sys.modules["sample"] = module_from_spec(spec)
    spec.loader.exec_module(module)


def packages_that_are_not_installed() -> list[str]:
    """The packages that would be, or were, imported from somewhere else than an installed distribution."""
    return [f"{package} is at {place}" for package in PACKAGES if not _is_installed(place := _place(package))]


def _place(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin) if spec and spec.origin else None


def _is_installed(place: Path | None) -> bool:
    return place is not None and any(place.is_relative_to(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))
