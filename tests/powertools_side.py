"""Powertools' own idempotency and this library's, on one table or cache and one clock, behind the same few names."""

from __future__ import annotations

import datetime as dt
import warnings
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import aws_lambda_powertools.utilities.idempotency as powertools
from aws_lambda_powertools.utilities.idempotency import base as powertools_handler
from aws_lambda_powertools.utilities.idempotency import exceptions as powertools_exceptions
from aws_lambda_powertools.utilities.idempotency.persistence import base as powertools_layer
from aws_lambda_powertools.utilities.idempotency.persistence import datarecord as powertools_record
from aws_lambda_powertools.utilities.idempotency.persistence import dynamodb as powertools_dynamodb
from aws_lambda_powertools.utilities.idempotency.persistence import redis as powertools_cache

import idempotency as ours
from persistence import exceptions as our_exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from doubles import FakeClock

    Handler = Callable[[dict[str, Any], Any], Any]

KEY_PREFIX = "payments"


class Killed(BaseException):
    """The end of an attempt that neither library gets to see, as of a sandbox that is stopped."""


@dataclass
class Library:
    """One of the two, on a table or a cache.

    `decorate` makes a handler idempotent under a key prefix that both share; *settings* are those of `IdempotencyConfig`.
    """

    name: str
    decorator: Callable[..., Callable[[Handler], Handler]]
    config: Callable[..., Any]
    new_store: Callable[[], Any]
    exceptions: ModuleType

    def decorate(self, function: Handler, **settings: Any) -> Handler:
        config = self.config(event_key_jmespath="id", **settings)
        # A store of its own, because Powertools' keeps the configuration of the first function that uses it.
        return self.decorator(persistence_store=self.new_store(), config=config, key_prefix=KEY_PREFIX)(function)


@dataclass
class Effects:
    """The handler of every story: what it does each time it runs, in order; it then returns its next result."""

    results: list[Any]
    runs: int = 0
    meanwhile: Callable[[], object] = field(default=lambda: None)

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        result = self.results[self.runs]
        self.runs += 1
        self.meanwhile()
        if isinstance(result, BaseException):
            raise result
        return result

    def handler(self, library: Library, **settings: Any) -> Callable[..., Any]:
        """The handler, made idempotent by *library*."""

        def handler(event: dict[str, Any], context: Any) -> Any:
            return self(event, context)

        return library.decorate(handler, **settings)


def powertools_on(table_name: str, client: Any, **layout: Any) -> Library:
    def new_store() -> powertools.DynamoDBPersistenceLayer:
        return powertools.DynamoDBPersistenceLayer(table_name, boto3_client=client, **layout)

    return Library("powertools", powertools.idempotent, powertools.IdempotencyConfig, new_store, powertools_exceptions)


def ours_on(table_name: str, client: Any, clock: FakeClock, **layout: Any) -> Library:
    def new_store() -> ours.DynamoDBPersistenceLayer:
        store = ours.DynamoDBPersistenceLayer(table_name, boto3_client=client, **layout)
        store.clock_ms = clock
        store.sleep_ms = clock.sleep_ms
        return store

    return Library("ours", ours.idempotent, ours.IdempotencyConfig, new_store, our_exceptions)


def powertools_on_cache(client: Any, **names: str) -> Library:
    def new_store() -> powertools_cache.RedisCachePersistenceLayer:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of both of its names
            return powertools_cache.RedisCachePersistenceLayer(client=client, **names)

    return Library("powertools", powertools.idempotent, powertools.IdempotencyConfig, new_store, powertools_exceptions)


def ours_on_cache(client: Any, clock: FakeClock, **names: str) -> Library:
    def new_store() -> ours.CachePersistenceLayer:
        store = ours.CachePersistenceLayer(client=client, **names)
        store.clock_ms = clock
        store.sleep_ms = clock.sleep_ms
        return store

    return Library("ours", ours.idempotent, ours.IdempotencyConfig, new_store, our_exceptions)


def set_powertools_clock(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """Have Powertools live by the test's clock.

    It keeps time in floating point and may truncate a millisecond, so tests move it by eighths of a second, which are exact.
    """

    class Datetime(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(clock.now_ms / 1000, tz)

    frozen = ModuleType("datetime")
    frozen.__dict__.update({**vars(dt), "datetime": Datetime})
    for module in (powertools_handler, powertools_layer, powertools_record, powertools_dynamodb, powertools_cache):
        monkeypatch.setattr(module, "dt", frozen)
