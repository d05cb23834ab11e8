"""moto's DynamoDB, the one that the demo embeds: one request at a time, in a process of its own."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from engines import EngineUnavailableError, Server
from engines.repository import make_sample_importable

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running() -> Iterator[Server]:
    """Start a DynamoDB without tables, and stop it afterwards, also if this process is killed.

    Raises:
        EngineUnavailableError: moto is not installed.
    """
    try:
        moto = version("moto")
    except PackageNotFoundError as error:
        raise EngineUnavailableError(str(error)) from error
    make_sample_importable()
    with import_module("sample.local_dynamodb").running() as endpoint:
        yield Server(endpoint, moto)
