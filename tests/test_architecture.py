"""The shape of the code: who may import whom, and that every promise is written down."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import idempotency
import persistence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

MODULES = sorted(
    module.name
    for package in (idempotency, persistence)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


def test_the_contracts_about_imports_are_kept() -> None:
    """In an interpreter of its own, because import-linter changes the logging and the path of the one that it runs in."""
    program = (
        "import sys\n"
        "from importlinter.cli import lint_imports\n"
        f"sys.exit(lint_imports(config_filename={str(PYPROJECT)!r}, no_cache=True, verbose=False))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "COLUMNS": "120"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("name", ["idempotency", "persistence", *MODULES])
def test_a_module_says_what_it_decides(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__doc__
    assert module.__doc__.splitlines()[0].endswith((".", "?"))


def public_callables(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public classes and functions that are defined in the module, and the public methods of those classes."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            yield name, found
            for method_name, method in vars(found).items():
                function = getattr(method, "__func__", getattr(method, "fget", getattr(method, "func", method)))
                if inspect.isfunction(function) and not method_name.startswith("_") and function.__name__ != "<lambda>":
                    yield f"{name}.{method_name}", method


@pytest.mark.parametrize("module_name", MODULES)
def test_what_is_public_says_what_it_promises(module_name: str) -> None:
    """A method may leave that to the one that it overrides."""
    module = importlib.import_module(module_name)

    silent = [name for name, found in public_callables(module) if not documented(module, name, found)]

    assert silent == []


def documented(module: ModuleType, name: str, found: Any) -> bool:
    if inspect.isclass(found):
        return bool(found.__doc__) and not found.__doc__.startswith(f"{found.__name__}(")  # a dataclass writes that itself
    if "." not in name:
        return bool(inspect.getdoc(found))
    owner_name, method_name = name.split(".")
    owner = getattr(module, owner_name)
    return any(inspect.getdoc(vars(base)[method_name]) for base in owner.__mro__ if method_name in vars(base))


@pytest.mark.parametrize("name", idempotency.__all__)
def test_what_users_import_says_what_it_is(name: str) -> None:
    found = getattr(idempotency, name)

    if name != "Event":  # a union, each member of which is documented
        assert found.__doc__


#: Calls that read the world.  Stores, drivers and observers are the edge; what decides is given values.
IMPURE = {"time", "time_ns", "monotonic", "now", "utcnow", "today", "uuid1", "uuid4", "urandom", "token_hex", "sleep"}
CORE = [
    "idempotency.execution",
    "idempotency.key",
    "idempotency._interpreter",
    "idempotency._json",
    "idempotency._objects",
    "persistence.rules",
    "persistence._dynamodb_items",
    "persistence._user_requests",
    "persistence.transaction",
]


@pytest.mark.parametrize("module_name", CORE)
def test_the_core_reads_no_clock_and_draws_no_numbers(module_name: str) -> None:
    source = Path(inspect.getfile(importlib.import_module(module_name))).read_text()
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    }

    assert called & IMPURE == set()


@pytest.mark.parametrize("package", [idempotency, persistence])
def test_both_packages_are_typed(package: ModuleType) -> None:
    assert (Path(package.__path__[0]) / "py.typed").is_file()


def test_what_is_not_measured_is_one_test_and_no_others_whose_names_begin_alike() -> None:
    """`--deselect` would leave them out of `make test-covered`, and `make test-stress` would not know of them."""
    unmeasured = re.findall(r"(tests/\S+\.py)::(test_\w+)", (PYPROJECT.parent / "Makefile").read_text(encoding="utf-8"))

    assert unmeasured
    for file, name in unmeasured:
        names = re.findall(r"^(?:async )?def (test_\w+)", (PYPROJECT.parent / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert [each for each in names if each.startswith(name)] == [name]
