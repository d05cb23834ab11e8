"""Clients and tables for tests on an engine."""

from __future__ import annotations

import os
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from persistence._sigv4 import Credentials
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from boto3.session import Session

_numbers = count(1)


def client_for(endpoint: str, config: Config | None = None) -> Any:
    """A DynamoDB client of its own for the caller, who may register handlers on it, or close it.

    It tries a call once: a retry would hide from a test what the store sees.  *config* is merged over that.
    """
    plain = Config(retries={"mode": "standard", "total_max_attempts": 1}, max_pool_connections=50)
    return _session().client("dynamodb", endpoint_url=endpoint, config=plain.merge(config) if config else plain)


@cache
def shared_client(endpoint: str, region: str | None = None) -> Any:
    """As `client_for`, one for all callers: making a client takes as long as ten requests.  Nobody may change or close it."""
    return client_for(endpoint, Config(region_name=region) if region else None)


def lean_client_for(endpoint: str, region: str | None = None, *, read_timeout: float = 60) -> LeanClient:
    """A lean client of its own for the caller, who closes it.  As patient as boto3's, which a busy machine may ask for."""
    keys = _session().get_credentials().get_frozen_credentials()  # each access key has a database of its own
    return LeanClient(
        region or _session().region_name,
        endpoint_url=endpoint,
        connect_timeout=60,
        read_timeout=read_timeout,
        credentials=lambda: Credentials(*keys[:3]),
    )


@cache
def shared_lean_client(endpoint: str, region: str | None = None) -> LeanClient:
    """As `lean_client_for`, one for all callers.  Nobody may change or close it."""
    return lean_client_for(endpoint, region)


def create_table(client: Any, name: str | None = None, *, key_attr: str = "id", sort_key_attr: str | None = None) -> str:
    """Create an on-demand table with string keys, and return its name, which is new unless *name* is given."""
    name = name or f"table-{os.getpid()}-{next(_numbers)}"
    keys = {key_attr: "HASH"} | ({sort_key_attr: "RANGE"} if sort_key_attr else {})
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": attr, "AttributeType": "S"} for attr in keys],
        KeySchema=[{"AttributeName": attr, "KeyType": kind} for attr, kind in keys.items()],
    )
    return name


def _session() -> Session:
    """One for all in one environment: it caches the service description, which takes longer to read than a client to make."""
    return _session_with(os.environ.get("AWS_ACCESS_KEY_ID"))


@cache
def _session_with(_access_key: str | None) -> Session:
    from boto3.session import Session

    return Session()
