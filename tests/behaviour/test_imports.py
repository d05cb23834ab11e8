"""What importing and constructing costs, in a fresh interpreter: a cold start pays for what it uses and for nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["boto3", "botocore", "aws_lambda_powertools", "jmespath", "asyncio", "pydantic"]


def loaded_after(program: str, heavy: list[str] = HEAVY, **environment: str) -> list[str]:
    """Which heavy modules a fresh interpreter has loaded after the program; a module that coverage loads does not count."""
    full = (
        "import sys\nbefore = set(sys.modules)\n"
        f"{program}\nprint(*[name for name in {heavy!r} if name in sys.modules and name not in before])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", full],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


#: What a cold start can do without; each costs as much as several modules of this library.
DISPENSABLE = ["dataclasses", "datetime", "decimal", "email", "http", "inspect", "logging", "random", "threading", "urllib"]

MEMORY = "from idempotency import InMemoryPersistenceLayer, make_idempotent\nstore = InMemoryPersistenceLayer()\n"


@pytest.mark.parametrize(
    "program",
    [
        "import idempotency",
        "import persistence",
        "from idempotency import idempotent, idempotent_function, make_idempotent, IdempotencyConfig, current_attempt",
        "from idempotency import DynamoDBPersistenceLayer; DynamoDBPersistenceLayer('table')",
        "import idempotency.exceptions, idempotency.serialization",
        "from idempotency import DataclassSerializer, CustomDictSerializer, Executed, Replayed, Event, Observer",
        f"{MEMORY}work = make_idempotent(lambda e: e, persistence_store=store)\nwork(1)\nassert work(1) == 1",
    ],
    ids=["idempotency", "persistence", "decorators", "a DynamoDB store", "submodules", "names", "a call"],
)
def test_nothing_heavy_is_imported(program: str) -> None:
    assert loaded_after(program) == []


def test_no_text_is_compiled_by_importing_what_a_function_needs() -> None:
    """The first text that is compiled costs a process as much as all of the state machine; named tuples have such."""
    program = (
        "compiled = []\n"
        "def hook(event, args):\n"
        "    if event == 'compile' and args[1] == '<string>' and not args[0].startswith(b'lambda _cls, '):\n"  # Python's own
        "        compiled.append(args[0])\n"
        "sys.addaudithook(hook)\n"
        "from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent, idempotent_function, make_idempotent\n"
        "import persistence.lean\n"
        "assert compiled == [], compiled"
    )

    assert loaded_after(program, []) == []


def test_a_client_of_a_stores_own_reads_the_model_of_its_service_and_looks_for_no_other() -> None:
    """Botocore has hundreds, and would look into the folder of each."""
    program = (
        "listed = []\n"
        "sys.addaudithook(lambda event, args: event == 'os.listdir' and listed.append(str(args[0])))\n"
        "from idempotency import DynamoDBPersistenceLayer\n"
        "client = DynamoDBPersistenceLayer('table').client\n"
        "client.close()\n"
        "from pathlib import Path\n"
        "import botocore\n"
        "data = Path(botocore.__file__).parent / 'data'\n"
        "print({Path(path).relative_to(data).parts[0] for path in listed if data in Path(path).parents})"
    )

    assert loaded_after(program, [], AWS_DEFAULT_REGION="eu-west-1") == ["{'dynamodb'}"]


@pytest.mark.parametrize(
    ("expression", "imports"), [("id", []), ("order.id", []), ("[id, amount]", ["jmespath"]), ('"id"', ["jmespath"])]
)
def test_an_expression_imports_jmespath_and_no_more_and_a_plain_path_not_even_that(expression: str, imports: list[str]) -> None:
    program = (
        f"{MEMORY}from idempotency import IdempotencyConfig\n"
        f"make_idempotent(lambda e: e, persistence_store=store, config=IdempotencyConfig({expression!r}))"
        "({'id': 1, 'amount': 2, 'order': {'id': 3}})"
    )

    assert loaded_after(program) == imports


def test_a_call_with_a_client_of_the_users_own_imports_no_boto3() -> None:
    program = (
        "from unittest.mock import MagicMock\nbefore = set(sys.modules)\n"
        "from idempotency import DynamoDBPersistenceLayer, make_idempotent\n"
        "store = DynamoDBPersistenceLayer('table', boto3_client=MagicMock())\n"
        "assert make_idempotent(lambda e: e, persistence_store=store)(1) == 1"
    )

    assert loaded_after(program) == []


def test_inside_lambda_the_client_is_made_in_the_constructor() -> None:
    """Lambda's init phase is the place for slow set-up."""
    program = (
        "from idempotency import DynamoDBPersistenceLayer\n"
        "store = DynamoDBPersistenceLayer('table')\nassert 'client' in vars(store)"
    )

    loaded = loaded_after(program, AWS_REGION="eu-west-1", AWS_DEFAULT_REGION="eu-west-1", AWS_LAMBDA_FUNCTION_NAME="payments")

    assert "botocore" in loaded
    assert {"boto3", "aws_lambda_powertools", "asyncio", "pydantic"}.isdisjoint(loaded)


def test_a_handler_on_the_lean_client_starts_without_what_it_can_do_without() -> None:
    program = (
        "from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent\n"
        "store = DynamoDBPersistenceLayer('table', client='lean')\nassert 'client' in vars(store)\n"
        "handler = idempotent(lambda e, c: e, persistence_store=store, config=IdempotencyConfig('order.id'))"
    )
    environment = {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_LAMBDA_FUNCTION_NAME": "payments",
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/nonexistent",
    }

    assert loaded_after(program, HEAVY + DISPENSABLE, **environment) == []


def test_a_region_that_only_other_sdks_read_does_not_break_the_constructor() -> None:
    """The SDK takes its Region from AWS_DEFAULT_REGION; Lambda sets both, a test harness perhaps only AWS_REGION."""
    loaded_after(
        "from idempotency import DynamoDBPersistenceLayer\nDynamoDBPersistenceLayer('table')",
        AWS_REGION="eu-west-1",
        AWS_LAMBDA_FUNCTION_NAME="payments",
        AWS_CONFIG_FILE="/nonexistent",
    )


@pytest.mark.parametrize("environment", [{"AWS_REGION": "eu-west-1"}, {"AWS_LAMBDA_FUNCTION_NAME": "payments"}, {}])
def test_elsewhere_constructing_a_store_makes_no_client(environment: dict[str, str]) -> None:
    program = (
        "from idempotency import DynamoDBPersistenceLayer\n"
        "store = DynamoDBPersistenceLayer('table')\nassert 'client' not in vars(store)"
    )

    assert loaded_after(program, **environment) == []


def test_a_given_client_is_not_replaced_inside_lambda() -> None:
    program = (
        "from idempotency import DynamoDBPersistenceLayer\n"
        "mine = object()\nassert DynamoDBPersistenceLayer('table', boto3_client=mine).client is mine"
    )

    assert loaded_after(program, AWS_REGION="eu-west-1", AWS_LAMBDA_FUNCTION_NAME="payments") == []


def test_an_async_function_is_what_imports_asyncio() -> None:
    program = f"{MEMORY}\nasync def work(e): return e\nmake_idempotent(work, persistence_store=store)"

    assert set(loaded_after(program)) <= {"asyncio"}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    import idempotency
    import persistence
    from idempotency import serialization

    for module in (idempotency, persistence, serialization):
        with pytest.raises(AttributeError, match=f"^module '{module.__name__}' has no attribute 'nothing'$"):
            module.nothing  # noqa: B018 - the access is the test
