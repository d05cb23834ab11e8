"""Clients of Valkey and Redis: how one is made, and how a script is sent through it.

Neither package is imported until a client is to be made.
"""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import urlsplit

from persistence._cache_errors import UnacknowledgedError, is_passing, is_unknown_script
from persistence._cache_scripts import has_written
from persistence._checks import check_flag, check_text, whole_number
from persistence._procedures import Request
from persistence.exceptions import IdempotencyPersistenceConfigError, IdempotencyUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from persistence._cache_scripts import Script
    from persistence._procedures import Procedure

Mode = Literal["standalone", "cluster"]

#: Seconds.  A cache answers within a millisecond; a client without limits would outlive the invocation.
CONNECT_TIMEOUT: Final = 1
READ_TIMEOUT: Final = 2
#: How often a cluster's client, while it is made, asks another node in the place of one that does not answer.
OTHER_NODES: Final = 3
#: More databases than any server has.
MAX_DB_INDEX: Final = 2**31 - 1
#: How long a server waits for its replicas, in milliseconds; less than the read timeout.
REPLICATION_MS: Final = 500

#: A port, in the text of urllib's complaint about it, is the end of a password with a "/", "?" or "#" in it.
_URL_HINT: Final = (
    "url is none of Valkey or Redis: expected rediss://user:password@host:port/db, "
    "with special characters in the password percent-encoded"
)


OPTIONS_REFUSED: Final = "The cache's client does not take these options"
#: Of a cluster's client, which sends WAIT to any connection.
NO_REPLICAS_OF_CLUSTERS: Final = "min_replicas_ack is not for a cluster: its client sends WAIT to any connection"


class CacheClientProtocol(Protocol):
    """The least that is used of a client: with no more than this, the store has no scripts to rely on.

    A client with `eval` and `evalsha`, as in redis-py and valkey-py, or with `invoke_script`, as in Valkey GLIDE, is better.
    """

    def get(self, name: str, /) -> Any:
        """The value, as bytes or text; None if there is none."""

    def set(
        self,
        name: str,
        value: str,
        ex: float | timedelta | None = ...,
        px: float | timedelta | None = ...,
        nx: bool = ...,
    ) -> Any:
        """Something true if the value was set; *ex* in seconds."""

    def delete(self, name: str, /) -> Any:
        """Remove the key."""


class CacheConnection:
    """How to reach a server, and clients for it.  Neither its repr nor its errors show the password.

    Making one imports the client's package and checks the options, and sends nothing.

    Raises:
        TypeError, ValueError: an option cannot be what it must be.
        IdempotencyPersistenceConfigError: an unknown mode, a broken URL, no address at all, options that the client does not
            take, or no package to make a client with.
    """

    def __init__(
        self,
        url: str = "",
        host: str = "",
        port: int = 6379,
        username: str = "",
        password: str = "",
        db_index: int = 0,
        mode: Mode = "standalone",
        ssl: bool = True,
    ) -> None:
        if mode not in ("standalone", "cluster"):
            raise IdempotencyPersistenceConfigError(f"Mode {mode} not supported")
        check_text("url", url)
        check_text("host", host)
        if not url and not host:
            raise IdempotencyPersistenceConfigError("A cache store needs a url, a host, or a client")
        if not url:  # which leaves the others unused
            check_text("username", username)
            check_text("password", password)
            check_flag("ssl", ssl)
            port = whole_number("port", port, 1, 65_535)
            db_index = whole_number("db_index", db_index, 0, MAX_DB_INDEX)
        self.url = url
        self.host = host
        self.port = port
        self.username = username
        self.password = password
        self.db_index = db_index
        self.mode = mode
        self.ssl = ssl

    def new_client(self, *, is_async: bool) -> Any:
        """A client by redis-py, or by valkey-py if only that is installed.  Only a cluster's sync client connects now.

        Raises:
            IdempotencyPersistenceConfigError: neither package is installed, or the URL is broken.
            Exception: what the client raises if the cluster cannot be reached.
        """
        package = _package()
        client = self._made(package, is_cluster=self.mode == "cluster", is_async=is_async)
        if self.connects_when_made(is_async=is_async):
            _end_tries(package, client)
        return client

    def connects_when_made(self, *, is_async: bool) -> bool:
        """Whether a client of this kind cannot be made without the server."""
        return self.mode == "cluster" and not is_async

    def check(self) -> None:
        """Find out, without the server, whether a client can be made of the options.

        Raises:
            IdempotencyPersistenceConfigError: it cannot.
        """
        # Never a cluster's, which would connect.  It takes the same options.
        pool = self._made(_package(), is_cluster=False, is_async=False).connection_pool
        try:
            pool.connection_class(**pool.connection_kwargs)
        except Exception as error:
            raise IdempotencyPersistenceConfigError(OPTIONS_REFUSED) from error

    def _made(self, package: Any, *, is_cluster: bool, is_async: bool) -> Any:
        name = package.__name__.capitalize() + ("Cluster" if is_cluster else "")
        client_class = getattr(import_module(f"{package.__name__}.asyncio") if is_async else package, name)
        options = _patience(package, is_cluster=is_cluster, is_async=is_async)
        if self.url:
            return self._from_url(client_class, options)
        if self.ssl:
            options |= {"ssl": True, "ssl_check_hostname": True}
        if not is_cluster:
            options["db"] = self.db_index
        credentials = {"username": self.username or None, "password": self.password or None}
        return client_class(host=self.host, port=self.port, **credentials, **options)

    def _from_url(self, client_class: Any, options: dict[str, Any]) -> Any:
        scheme, colon, rest = self.url.partition(":")
        # redis-py does not know Valkey's schemes.
        scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
        if scheme == "rediss" and "ssl_cert_reqs=none" not in rest:  # without a certificate there is no name to check
            options["ssl_check_hostname"] = True
        if scheme == "unix":
            del options["socket_connect_timeout"]
        try:
            parts = urlsplit(self.url)
            _ = parts.port
            # An "@" behind the host is the end of a password with a "/", "?" or "#" in it.
            if scheme == "unix" or "@" not in parts.path + parts.query + parts.fragment:
                return client_class.from_url(f"{scheme}{colon}{rest}", **options)
        except ValueError:
            pass  # its text may hold a part of the password
        raise IdempotencyPersistenceConfigError(_URL_HINT)

    def unreachable(self, error: Exception) -> IdempotencyUnreachableError:
        """The error of a server that cannot be reached, with what may be the matter."""
        place = f"{self.host}:{self.port}" if not self.url else "the given url"
        if self.url:
            hint = " The scheme says whether it has TLS: rediss and valkeys do, redis and valkey do not."
        else:
            hint = " If it has no TLS, say ssl=False." if self.ssl else " If it has TLS, leave ssl=False out."
        may_pass = is_passing(error)
        advice = "No function was run; " + ("retry later." if may_pass else "a retry does not help until this is corrected.")
        unreachable = IdempotencyUnreachableError(f"Could not connect to the cache at {place}.{hint}", error)
        return unreachable.about(None, advice, is_retryable=may_pass)


def _package() -> Any:
    for name in ("redis", "valkey"):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise IdempotencyPersistenceConfigError(
        "A cache store needs the package redis or valkey: install lambda-idempotency[redis] or lambda-idempotency[valkey]"
    )


def _patience(package: Any, *, is_cluster: bool, is_async: bool) -> dict[str, Any]:
    """Options by which a client waits shortly and tries once: the store retries, and knows the deadline."""
    options: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": READ_TIMEOUT}
    tries = OTHER_NODES if is_cluster and not is_async else 0
    if is_cluster and not _has_retry_of_clusters(package):
        return options | {"cluster_error_retry_attempts": tries or 1}
    return options | {"retry": _retry(package, tries, is_async=is_async)}


def _end_tries(package: Any, client: Any) -> None:
    """Have a cluster's client, which has found its nodes, try each request once from now on."""
    if _has_retry_of_clusters(package):
        client.set_retry(_retry(package, 0, is_async=False))
    else:
        client.cluster_error_retry_attempts = 0


def _has_retry_of_clusters(package: Any) -> bool:
    """Whether a cluster's client takes its number of tries from a `Retry`; in the others it is a number."""
    return package.__name__ == "redis" and int(package.__version__.partition(".")[0]) >= 6  # noqa: PLR2004 - a version


def _retry(package: Any, tries: int, *, is_async: bool) -> Any:
    """A further *tries* tries, without pauses."""
    retry = import_module(f"{package.__name__}.asyncio.retry" if is_async else f"{package.__name__}.retry")
    return retry.Retry(import_module(f"{package.__name__}.backoff").NoBackoff(), tries)


# What sends a script


def is_awaited(client: Any) -> bool:
    """Whether the client's calls are awaited."""
    return any(inspect.iscoroutinefunction(getattr(client, name, None)) for name in ("execute_command", "get"))


class EvalPort:
    """A client with `evalsha` and `eval`: redis-py's and valkey-py's, with Sentinel's and cluster ones."""

    def __init__(self, client: Any, min_replicas_ack: int) -> None:
        self._client = client
        self._min_replicas_ack = min_replicas_ack
        is_cluster = hasattr(client, "get_node_from_key")
        self._is_awaited_cluster = is_cluster and is_awaited(client)
        if min_replicas_ack and is_cluster:
            raise IdempotencyPersistenceConfigError(NO_REPLICAS_OF_CLUSTERS)

    def run(
        self, script: Script, key: str, arguments: Sequence[str], *, is_acknowledged: bool, deadline_ms: int | None = None
    ) -> Procedure[Any]:
        """The script's answer: one request if the server knows it."""
        if self._is_awaited_cluster:
            # In redis-py 8, first calls at the same time cut each other's connections; this makes them wait for the first.
            yield Request(self._client.initialize)
        if is_acknowledged and self._min_replicas_ack:
            return (yield from self._acknowledged(script, key, arguments, deadline_ms))
        try:
            return (yield Request(self._client.evalsha, (script.sha1, 1, key, *arguments), deadline_ms))
        except Exception as error:
            if not is_unknown_script(error):
                raise
        return (yield Request(self._client.eval, (script.text, 1, key, *arguments), deadline_ms))

    def _acknowledged(self, script: Script, key: str, arguments: Sequence[str], deadline_ms: int | None) -> Procedure[Any]:
        answer, replicas = yield Request(self._with_wait, ("evalsha", script.sha1, key, arguments), deadline_ms)
        if isinstance(answer, Exception) and is_unknown_script(answer):
            answer, replicas = yield Request(self._with_wait, ("eval", script.text, key, arguments), deadline_ms)
        for each in (answer, replicas):
            if isinstance(each, Exception):
                raise each
        if replicas < self._min_replicas_ack and has_written(answer):
            raise UnacknowledgedError(f"{replicas} of {self._min_replicas_ack} replicas have confirmed the write")
        return answer

    def _with_wait(self, command: str, script: str, key: str, arguments: Sequence[str]) -> Any:
        """One request of two commands: WAIT counts the copies of what its own connection has written.

        https://valkey.io/commands/wait/
        """
        pipeline = self._client.pipeline(transaction=False)
        getattr(pipeline, command)(script, 1, key, *arguments)
        pipeline.execute_command("WAIT", self._min_replicas_ack, REPLICATION_MS)
        return pipeline.execute(raise_on_error=False)

    def reconnect(self) -> Procedure[None]:
        """Drop the connections that are not in use: the address may lead to another server by now."""
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            # A blocking pool of valkey-py, or of redis-py 5, can only drop all of them; calls under way are then repeated.
            knows_use = "inuse_connections" in inspect.signature(pool.disconnect).parameters
            yield Request(partial(pool.disconnect, **({"inuse_connections": False} if knows_use else {})))


class UnconnectedPort:
    """In the place of the port of a client that connects while it is made: it is made at the first request, and as a part of it.

    So if nobody answers, the request is repeated and given up as any other.
    """

    def __init__(self, connect: Callable[[], EvalPort]) -> None:
        self.connect = connect

    def run(
        self, script: Script, key: str, arguments: Sequence[str], *, is_acknowledged: bool, deadline_ms: int | None = None
    ) -> Procedure[Any]:
        """The script's answer, by the new client."""
        port = yield Request(self.connect, (), deadline_ms)
        return (yield from port.run(script, key, arguments, is_acknowledged=is_acknowledged, deadline_ms=deadline_ms))

    def reconnect(self) -> Procedure[None]:
        """Nothing: there is no connection yet."""
        yield from ()


class GlidePort:
    """A client of Valkey GLIDE, which remembers what servers know, and reconnects, by itself."""

    def __init__(self, client: Any, min_replicas_ack: int) -> None:
        if min_replicas_ack:
            raise IdempotencyPersistenceConfigError("min_replicas_ack needs a client of redis-py or valkey-py")
        self._client = client
        self._scripts: dict[str, Any] = {}

    def run(
        self,
        script: Script,
        key: str,
        arguments: Sequence[str],
        *,
        is_acknowledged: bool,  # noqa: ARG002
        deadline_ms: int | None = None,
    ) -> Procedure[Any]:
        """The script's answer."""
        if script.sha1 not in self._scripts:
            # Of the package that the client is of, `glide` or `glide_sync`.
            package = import_module(type(self._client).__module__.partition(".")[0])
            self._scripts[script.sha1] = package.Script(script.text)
        invoking = partial(self._client.invoke_script, self._scripts[script.sha1], keys=[key], args=[*arguments])
        return (yield Request(invoking, (), deadline_ms))

    def reconnect(self) -> Procedure[None]:
        """Nothing: the client follows a failover."""
        yield from ()


def port_of(client: Any, min_replicas_ack: int) -> EvalPort | GlidePort | None:
    """What sends scripts through the client; None if it has only `get`, `set` and `delete`.

    Raises:
        IdempotencyPersistenceConfigError: the client cannot do what is asked, or lacks even those.
    """
    if isinstance(client, type) and inspect.isfunction(inspect.getattr_static(client, "get", None)):
        raise IdempotencyPersistenceConfigError(f"client must be an object, not the class {client.__name__}: create one of it")
    if hasattr(client, "invoke_script"):
        return GlidePort(client, min_replicas_ack)
    if hasattr(client, "evalsha") and hasattr(client, "eval"):
        return EvalPort(client, min_replicas_ack)
    missing = [name for name in ("get", "set", "delete") if not hasattr(client, name)]
    if missing:
        raise IdempotencyPersistenceConfigError(f"client has no {' and no '.join(missing)}: {type(client).__name__}")
    if min_replicas_ack:
        raise IdempotencyPersistenceConfigError("min_replicas_ack needs a client of redis-py or valkey-py")
    return None
