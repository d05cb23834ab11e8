"""pytest plugin: the engines as fixtures, what ran on them in the summary, and no way to a real account.

`IDEMPOTENCY_TEST_STRICT=1`: a test whose engine is unavailable fails; otherwise it is skipped.
`IDEMPOTENCY_TEST_INSTALLED=1`: the session fails unless both packages are imported from an installed distribution.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import pytest

from engines import EngineUnavailableError
from engines import caches as _caches
from engines import dynamodb_local as _dynamodb_local
from engines import moto_server as _moto_server
from engines import tls as _tls
from engines.repository import make_sample_importable, packages_that_are_not_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from engines import Server

T = TypeVar("T")

#: All of it is made up.  The files do not exist: what the machine's own say must not matter.
AWS_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@dataclass
class Engine:
    """An engine, and what became of it in this session."""

    name: str
    running: Callable[[], AbstractContextManager[Server]]
    version: str = ""
    unavailable: str = ""
    tests: int = 0

    def __str__(self) -> str:
        if self.unavailable:
            return f"{self.name}: {'FAILED' if is_strict() else 'SKIPPED'}: {self.unavailable}"
        return f"{self.name} {self.version}: {self.tests} tests" if self.version else f"{self.name}: no test needed it"


#: By the name of the marker that says that a test runs on it.
Engines = dict[str, Engine]
ENGINES: Final = pytest.StashKey[Engines]()
#: By the name of the fixture.
MARKERS: Final = {
    "dynamodb_local": "dynamodb_local",
    "moto_server": "moto",
    "valkey_server": "valkey",
    "valkey_cluster": "valkey_cluster",
    "valkey_tls": "valkey_tls",
    "redis_server": "redis",
}


def is_strict() -> bool:
    """Whether a test may not be skipped for want of its engine."""
    return os.environ.get("IDEMPOTENCY_TEST_STRICT") == "1"


def isolate_from_aws() -> None:
    """Replace everything that AWS SDKs and Powertools read from the environment."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "POWERTOOLS_")):
            del os.environ[name]
    os.environ.update(AWS_ENVIRONMENT)


# When it is imported, not when pytest calls a hook: before any test module makes a client.
isolate_from_aws()
make_sample_importable()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "random faults, see docs/faults.md")
    group.addoption("--chaos-attempts", type=int, default=2_250, metavar="N", help="attempts under random faults (%(default)s)")
    group.addoption("--chaos-seed", type=int, default=20261121, metavar="S", help="the first seed (%(default)s)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENGINES] = {
        "dynamodb_local": Engine("DynamoDB Local", _dynamodb_local.running),
        "moto": Engine("moto", _moto_server.running),
        "valkey": Engine("Valkey", _caches.valkey),
        "valkey_cluster": Engine("Valkey cluster", _caches.cluster),
        "valkey_tls": Engine("Valkey behind TLS", _tls.valkey_tls),
        "redis": Engine("Redis", _caches.redis),
    }
    if os.environ.get("IDEMPOTENCY_TEST_INSTALLED") == "1" and (elsewhere := packages_that_are_not_installed()):
        raise pytest.UsageError(f"The tests are for the installed wheel, but {' and '.join(elsewhere)}.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for an engine by its fixture alone."""
    for item in items:
        for fixture, marker in MARKERS.items():
            if fixture in getattr(item, "fixturenames", ()) and not item.get_closest_marker(marker):
                item.add_marker(marker)


@pytest.fixture(scope="session")
def dynamodb_local(pytestconfig: pytest.Config) -> Iterator[str]:
    """The endpoint of AWS's DynamoDB Local; one server for all tests, so use tables of your own."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["dynamodb_local"])


@pytest.fixture(scope="session")
def moto_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The endpoint of moto's DynamoDB, which serves one request at a time; one server for all tests."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["moto"])


@pytest.fixture(scope="session")
def valkey_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a Valkey server; one for all tests, each of which begins with an empty one."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["valkey"])


@pytest.fixture(scope="session")
def valkey_cluster(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a node of a Valkey cluster; one cluster for all tests, each of which begins with an empty one."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["valkey_cluster"])


@pytest.fixture(scope="session")
def valkey_tls(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a Valkey server behind TLS, with whom to trust; one for all tests, each of which begins with an empty one."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["valkey_tls"])


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a Redis server; one for all tests, each of which begins with an empty one."""
    yield from _endpoint(pytestconfig.stash[ENGINES]["redis"])


def _endpoint(engine: Engine) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(engine.running())
        except EngineUnavailableError as error:
            engine.unavailable = str(error)
            refuse(engine.name, error)
        engine.version = server.version
        yield server.endpoint


def entered(stack: ExitStack, engine: AbstractContextManager[T], name: str) -> T:
    """An engine of a test's own, until the stack is closed."""
    try:
        return stack.enter_context(engine)
    except EngineUnavailableError as error:
        refuse(name, error)


def refuse(name: str, error: EngineUnavailableError) -> NoReturn:
    """End a test that lacks its engine: it is skipped, or fails where none may be."""
    end = pytest.fail if is_strict() else pytest.skip
    end(f"{name} is unavailable: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the test on its engines: its fixtures are there, and now it runs."""
    for marker, engine in item.config.stash[ENGINES].items():
        engine.tests += item.get_closest_marker(marker) is not None
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("engines")
    for engine in config.stash[ENGINES].values():
        terminalreporter.line(str(engine))
