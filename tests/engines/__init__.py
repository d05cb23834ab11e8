"""The engines that tests run on: servers that evaluate DynamoDB's conditions, on this machine and without an account."""

from __future__ import annotations

from dataclasses import dataclass


class EngineUnavailableError(Exception):
    """The engine cannot run on this machine; the message is the reason."""


@dataclass(frozen=True)
class Server:
    """A running engine: where it answers, and which version it says it is."""

    endpoint: str
    version: str
