"""The same in AWS's own emulator of the runtime's API, once: what it does, our own does, too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest
from engines.plugin import entered
from engines.tables import create_table, shared_client
from stack import artifact as stack_artifact
from stack.deliveries import Job, Payments, Tables
from stack.emulated_rie import EmulatedEnvironment, environment
from stack.local_lambda import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: In which the function starts, too; the emulator knows whole seconds.
TIMEOUT_SECONDS = 3


@pytest.fixture
def tables(dynamodb_local: str) -> Tables:
    client = shared_client(dynamodb_local)
    return Tables(client, create_table(client), create_table(client, sort_key_attr="sort"), create_table(client))


@pytest.fixture
def start(artifact: Path, tables: Tables, dynamodb_local: str, tmp_path: Path) -> Iterator[Callable[..., EmulatedEnvironment]]:
    """Starts an environment of the payments' function.  What it has written is shown if the test fails."""
    variables = {
        **tables.variables,
        "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_local,
        "POWERTOOLS_SERVICE_NAME": "payments",
        "POWERTOOLS_METRICS_NAMESPACE": "IdempotentPayments",
    }
    name, numbers = Payments.function_name, count()
    with ExitStack() as stack:

        def start(task_root: Path = artifact / name) -> EmulatedEnvironment:
            settings = Settings(name, Payments.handler, task_root, variables, timeout_seconds=TIMEOUT_SECONDS)
            made = entered(stack, environment(settings, tmp_path / f"log-{next(numbers)}"), "AWS's emulator")
            stack.callback(lambda: print(made.log()))  # noqa: T201 - pytest shows it if the test fails
            settled(made, {"body": "no payment"})
            return made

        yield start


def payment(name: str) -> dict[str, Any]:
    return Payments().event([Job(name, 0, frozenset({name}))])


def settled(environment: EmulatedEnvironment, event: dict[str, Any]) -> dict[str, Any]:
    """Deliver until no other attempt is at it, and the function has had the time to start.  Neither can say when that is."""
    answer = environment.invoke(event)
    while isinstance(answer, str) or answer["statusCode"] == HTTPStatus.CONFLICT:
        answer = environment.invoke(event)
    return cast("dict[str, Any]", answer)


def test_a_duplicate_gets_the_first_calls_answer_in_the_same_environment_and_in_another(
    start: Callable[..., EmulatedEnvironment], tables: Tables
) -> None:
    one, other = start(), start()

    first, *duplicates = [each.invoke(payment("o-1")) for each in (one, one, other)]

    assert first["statusCode"] == HTTPStatus.CREATED
    assert "idempotent-replayed" not in first["headers"]
    for duplicate in duplicates:
        assert duplicate == first | {"headers": {**first["headers"], "idempotent-replayed": "true"}}
    assert tables.charges(["o-1"]) == {"o-1": [1]}


def test_a_payment_that_runs_out_of_time_is_refused_and_then_taken_over(
    start: Callable[..., EmulatedEnvironment], tables: Tables
) -> None:
    one, other = start(), start()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(one.invoke, payment("slow-1"))
        while not (tables.charges(["slow-1"])["slow-1"] or running.done()):
            pass  # the provider is about to charge
        refused = other.invoke(payment("slow-1"))
        timed_out = running.result()
    taken_over = settled(one, payment("slow-1"))

    assert timed_out == "Task timed out after 3.00 seconds"
    assert refused["statusCode"] == HTTPStatus.CONFLICT
    assert taken_over["statusCode"] == HTTPStatus.CREATED
    assert tables.charges(["slow-1"]) == {"slow-1": [2]}
    assert tables.unfinished() == []


def test_a_payment_whose_process_ends_after_the_charge_is_refused_and_then_taken_over(
    start: Callable[..., EmulatedEnvironment], artifact: Path, tables: Tables, tmp_path: Path
) -> None:
    changes = {"time.sleep(SLOW_SECONDS)": "os._exit(1)"}
    crashing = stack_artifact.changed(artifact / "PaymentsFunction", tmp_path / "crashing", "sample/provider.py", changes)
    one, other = start(crashing), start()

    crashed, refused = one.invoke(payment("slow-1")), other.invoke(payment("slow-1"))
    taken_over = settled(one, payment("slow-1"))

    assert crashed["errorType"] == "Runtime.ExitError"
    assert refused["statusCode"] == HTTPStatus.CONFLICT
    assert taken_over["statusCode"] == HTTPStatus.CREATED
    assert tables.charges(["slow-1"]) == {"slow-1": [2]}
    assert tables.unfinished() == []
