"""What an operator reads of an error in a function's log: AWS's runtime client writes it, and shows no more than `str(error)`."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from engines.plugin import entered
from engines.repository import ROOT
from stack.local_lambda import Function, Settings, function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: A handler whose call fails as the event says.
HANDLER = """
from dataclasses import dataclass

from idempotency import IdempotencyConfig, InMemoryPersistenceLayer, idempotent


class Store(InMemoryPersistenceLayer):
    fails = ""

    def _put_record(self, data_record):
        if self.fails == "claim":
            raise ConnectionError("reset")
        return super()._put_record(data_record)

    def _delete_record(self, data_record):
        if self.fails == "release":
            raise ConnectionError("reset")
        return super()._delete_record(data_record)


store = Store()


@idempotent(persistence_store=store, config=IdempotencyConfig("id"), key_prefix="orders")
def place(event, context):
    if event["id"] == "held":
        return place(event, context)
    if event["id"] == "boom":
        raise ValueError("the function's own")
    return object()


def handler(event, context):
    store.fails = event.get("fails", "")
    return place(event, context)
"""


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Function]:
    task = tmp_path / "task"
    task.mkdir()
    (task / "orders.py").write_text(HANDLER, encoding="utf-8")
    for package in ("idempotency", "persistence"):
        shutil.copytree(ROOT / package, task / package, ignore=shutil.ignore_patterns("__pycache__"))
    with ExitStack() as stack:
        settings = Settings("orders", "orders.handler", task, {}, timeout_seconds=30)
        yield entered(stack, function(settings, tmp_path / "log"), "Lambda's runtime")


@pytest.fixture
def logged(deployed: Function) -> Callable[..., list[str]]:
    """The lines of one invocation's log."""

    def logged(event: dict[str, str]) -> list[str]:
        before = len(deployed.log())
        assert deployed.invoke(event).is_error
        return deployed.log()[before:].splitlines()

    return logged


@pytest.mark.parametrize(
    ("event", "begins", "says"),
    [
        (
            {"id": "held"},
            "IdempotencyAlreadyInProgressError: Execution already in progress with idempotency key: id=orders#",
            ["Held by request ", "The function was not run; retry the call to get the result of the attempt in progress."],
        ),
        (
            {"id": "1", "fails": "claim"},
            "IdempotencyPersistenceLayerError: Failed to save in progress record to idempotency store - (reset). ",
            ["Idempotency key: orders#", "The function was not run; retry the call."],
        ),
        (
            {"id": "1"},
            "IdempotencyResultNotKeptError: The function ran for idempotency key orders#",
            ["it will not be run again", "A retry does not help: it gets this error until the record expires."],
        ),
    ],
    ids=lambda value: value.get("fails") or value["id"] if isinstance(value, dict) else "",
)
def test_the_log_line_says_the_key_whether_the_function_ran_and_whether_a_retry_helps(
    logged: Callable[..., list[str]], event: dict[str, str], begins: str, says: list[str]
) -> None:
    [line] = [line for line in logged(event) if line.startswith("[ERROR]")]

    assert line.startswith(f"[ERROR] {begins}")
    assert [part for part in says if part not in line] == []


def test_a_failed_release_is_a_line_of_its_own_beside_the_functions_error(logged: Callable[..., list[str]]) -> None:
    lines = logged({"id": "boom", "fails": "release"})

    [warning] = [line for line in lines if line.startswith("[WARNING]")]
    failed = "Failed to delete record from idempotency store - (reset)"
    assert f"The claim was not released: {failed}. Idempotency key: orders#" in warning
    assert "The key stays claimed until the lease ends; a retry before that is refused." in warning
    assert [line for line in lines if line.startswith("[ERROR]")] == ["[ERROR] ValueError: the function's own"]
