"""How the cache store is configured, which clients it takes, and what it makes of their errors."""

from __future__ import annotations

import inspect
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from redis._parsers import _RESP2Parser as RedisParser
from valkey._parsers import _RESP2Parser as ValkeyParser

import persistence.redis
from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence import _cache_clients
from persistence._cache_clients import (
    CacheConnection,
    CacheError,
    EvalPort,
    GlidePort,
    LockedError,
    UnacknowledgedError,
    explanation,
    is_awaited,
    is_demoted,
    is_not_now,
    is_passing,
    is_unanswered,
    is_unknown_script,
    is_wrong_type,
    port_of,
    without_arguments,
)
from persistence._steps import run
from persistence.exceptions import (
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# It is not installed with the lowest versions of the dependencies.
try:
    from glide_shared import exceptions as glide_errors
except ImportError:
    glide_errors = None

LAYERS = [CachePersistenceLayer, AsyncCachePersistenceLayer]


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let it look as if the packages were not installed."""
    import_module = _cache_clients.import_module

    def import_others(name: str) -> Any:
        if name in packages:
            raise ModuleNotFoundError(name=name)
        return import_module(name)

    monkeypatch.setattr(_cache_clients, "import_module", import_others)


# Configuration


@pytest.mark.parametrize("layer", LAYERS)
def test_the_constructor_is_that_of_powertools_with_more_at_its_end(layer: type) -> None:
    powertools = pytest.importorskip("aws_lambda_powertools.utilities.idempotency.persistence.redis")
    theirs = list(inspect.signature(powertools.RedisCachePersistenceLayer.__init__).parameters.values())

    ours = list(inspect.signature(layer.__init__).parameters.values())

    assert [(each.name, each.default, each.kind) for each in ours[: len(theirs)]] == [
        (each.name, each.default, each.kind) for each in theirs
    ]
    assert all(each.default is not inspect.Parameter.empty for each in ours[1:])


def test_the_store_has_its_old_name_too() -> None:
    assert persistence.redis.RedisCachePersistenceLayer is CachePersistenceLayer
    assert persistence.redis.RedisConnection is CacheConnection


@pytest.mark.parametrize("layer", LAYERS)
def test_an_unknown_mode_is_refused(layer: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^Mode sentinel not supported$"):
        layer(host="cache", mode="sentinel")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_store_needs_an_address(layer: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="needs a url, a host, or a client"):
        layer(port=6379, password="secret")


#: Each with its password as it is, though one of its characters ends the part of the URL that it is in.
BROKEN_URLS = [
    "redis://user:my/secret@cache:6379",
    "redis://user:my?secret@cache:6379",
    "redis://user:my#secret@cache:6379",
    "redis://user:my[secret@cache:6379",
    "redis://user:12/my-secret@cache:6379",
    "redis://user:12?my-secret@cache:6379",
    "redis://user:12#my-secret@cache:6379",
    "rediss://user:mysecret@cache:port",
    "redis://user:mysecret@cache:99999",
    "http://user:mysecret@cache:6379",
    "user:mysecret@cache:6379",
    "redis://user:mysecret@cache:6379/0?socket_timeout=mysecret",
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", ["standalone", "cluster"])
@pytest.mark.parametrize("url", BROKEN_URLS)
def test_the_error_of_a_broken_url_says_nothing_of_the_password(layer: Any, mode: str, url: str) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="percent-encoded") as refused:
        layer(url=url, mode=mode)

    error = refused.value
    assert not isinstance(error, IdempotencyPersistenceConnectionError)
    assert (error.__cause__, error.__context__) == (None, None)
    shown = "\n".join([*traceback.format_exception_only(error), repr(error), repr(vars(error))])
    assert "my" not in shown
    assert "secret" not in shown


@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_package_the_error_names_both(monkeypatch: pytest.MonkeyPatch, layer: Any) -> None:
    hide(monkeypatch, "redis", "valkey")

    with pytest.raises(IdempotencyPersistenceConfigError, match=r"lambda-idempotency\[redis\] or lambda-idempotency\[valkey\]"):
        layer(host="cache")


def test_where_only_valkey_py_is_installed_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "redis")

    assert isinstance(AsyncCachePersistenceLayer(host="cache").client, valkey.asyncio.Valkey)


def test_a_package_that_is_installed_and_broken_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_broken(name: str) -> Any:
        raise ModuleNotFoundError(name=f"what {name} needs")

    monkeypatch.setattr(_cache_clients, "import_module", import_broken)

    with pytest.raises(ModuleNotFoundError) as failed:
        AsyncCachePersistenceLayer(host="cache")

    assert failed.value.name == "what redis needs"


@pytest.mark.parametrize(
    "names", [{"status_attr": ""}, {"status_attr": "data"}, {"expiry_attr": "x", "generation_attr": "x"}], ids=str
)
@pytest.mark.parametrize("layer", LAYERS)
def test_each_attribute_needs_a_name_of_its_own(layer: Any, names: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="name of its own"):
        layer(host="cache", **names)


@pytest.mark.parametrize("replicas", [-1, 1.5, None])
def test_the_number_of_replicas_is_one(replicas: Any) -> None:
    with pytest.raises(ValueError, match="number of replicas"):
        AsyncCachePersistenceLayer(host="cache", min_replicas_ack=replicas)


def test_a_client_made_here_waits_shortly_and_tries_once() -> None:
    for options in ({"host": "cache"}, {"url": "rediss://cache"}):
        settings = AsyncCachePersistenceLayer(**options).client.connection_pool.connection_kwargs

        assert (settings["socket_connect_timeout"], settings["socket_timeout"]) == (1, 2)
        assert settings["retry"]._retries == 0


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize("options", [{"host": "cache"}, {"url": "rediss://cache"}, {"url": "valkeys://cache"}], ids=str)
def test_tls_checks_the_servers_name_whatever_the_packages_default(
    monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, Any]
) -> None:
    hide(monkeypatch, *{"redis", "valkey"} - {package})

    settings = AsyncCachePersistenceLayer(**options).client.connection_pool.connection_kwargs

    assert settings["ssl_check_hostname"] is True


def test_what_connects_is_shown_without_its_password() -> None:
    connection = CacheConnection("", "cache", 6379, "user", "secret")
    from_url = CacheConnection("redis://user:secret@cache")

    for each in (connection, from_url):
        assert "secret" not in repr(each)
        assert "secret" not in str(each)
        assert "secret" not in str(each.unreachable(ConnectionRefusedError("refused")))


# Clients


class Least:
    """As little as a client may have."""

    def get(self, name: str, /) -> None: ...
    def set(self, name: str, value: str) -> None: ...
    def delete(self, name: str, /) -> None: ...


class LeastAwaited:
    """The same, awaited."""

    async def get(self, name: str, /) -> None: ...
    async def set(self, name: str, value: str) -> None: ...
    async def delete(self, name: str, /) -> None: ...


class WithoutDelete:
    """Less than that."""

    def get(self, name: str, /) -> None: ...


CALLED = [redis.Redis, valkey.Valkey, redis.RedisCluster, valkey.ValkeyCluster, Least]
AWAITED = [
    redis.asyncio.Redis, valkey.asyncio.Valkey, redis.asyncio.RedisCluster, valkey.asyncio.ValkeyCluster, LeastAwaited,
]  # fmt: skip


@pytest.mark.parametrize(("clients", "expected"), [(CALLED, False), (AWAITED, True)])
def test_it_is_seen_whether_a_client_is_awaited(clients: list[type], expected: bool) -> None:
    assert [is_awaited(each) for each in clients] == [expected] * len(clients)


@pytest.mark.parametrize(
    ("layer", "client", "fitting"),
    [
        (CachePersistenceLayer, redis.asyncio.Redis(), "AsyncCachePersistenceLayer can"),
        (CachePersistenceLayer, LeastAwaited(), "AsyncCachePersistenceLayer can"),
        (AsyncCachePersistenceLayer, valkey.Valkey(), "; CachePersistenceLayer can"),
        (AsyncCachePersistenceLayer, Least(), "; CachePersistenceLayer can"),
    ],
)
def test_a_client_of_the_other_kind_is_refused(layer: Any, client: Any, fitting: str) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match=fitting):
        layer(client=client)


def test_a_client_that_lacks_a_method_is_refused_also_later() -> None:
    store = CachePersistenceLayer(client=Least())

    for refusing in (lambda: CachePersistenceLayer(client=WithoutDelete()), lambda: setattr(store, "client", WithoutDelete())):
        with pytest.raises(IdempotencyPersistenceConfigError, match="client has no set and no delete: WithoutDelete"):
            refusing()
    assert isinstance(store.client, Least)


class GlideLike(Least):
    """A client with GLIDE's way to run a script."""

    def invoke_script(self, script: object) -> None: ...


class ClusterLike(Least):
    """A client with the methods by which one for clusters is known."""

    def eval(self) -> None: ...
    def evalsha(self) -> None: ...
    def get_node_from_key(self) -> None: ...


def test_scripts_are_used_where_the_client_has_them() -> None:
    assert isinstance(port_of(redis.Redis(), 0), EvalPort)
    assert isinstance(port_of(redis.Redis(), 2), EvalPort)
    assert isinstance(port_of(ClusterLike(), 0), EvalPort)
    assert isinstance(port_of(GlideLike(), 0), GlidePort)
    assert port_of(Least(), 0) is None


@pytest.mark.parametrize("client", [Least(), GlideLike(), ClusterLike()], ids=lambda client: type(client).__name__)
def test_acknowledgements_are_refused_where_they_cannot_be_counted(client: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="min_replicas_ack"):
        CachePersistenceLayer(client=client, min_replicas_ack=1)


# What clients make of a server's errors.  The texts are those of Valkey 9.1, and of GLIDE 2.6, seen on a real server.

PREDICATES = (is_not_now, is_unanswered, is_passing, is_demoted, is_wrong_type, is_unknown_script)
BUSY = (is_not_now, is_passing)
LOST = (is_unanswered, is_passing)

#: (a server's error, what it is, a part of its explanation)
ANSWERS: list[tuple[str, tuple[Callable[[BaseException], bool], ...], str]] = [
    ("WRONGTYPE Operation against a key holding the wrong kind of value", (is_wrong_type,), ""),
    ("NOSCRIPT No matching script.", (is_unknown_script,), ""),
    ("READONLY You can't write against a read only replica.", (*BUSY, is_demoted), "is a replica"),
    ("OOM command not allowed when used memory > 'maxmemory'.", BUSY, "out of memory"),
    ("NOREPLICAS Not enough good replicas to write.", BUSY, ""),
    ("BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", BUSY, ""),
    ("TRYAGAIN Multiple keys request during rehashing of slot", BUSY, ""),
    ("MISCONF Valkey is configured to save RDB snapshots", BUSY, ""),
    ("NOPERM User default has no permissions to run the 'eval' command", (), "needs the commands EVALSHA"),
    ("ERR ACL failure in script: User default has no permissions to run the 'get' command", (), "needs the commands EVALSHA"),
    ("ERR unknown command 'EVALSHA', with args beginning with: 'x' ", (), ""),
    ("ERR value is not an integer or out of range", (), ""),
    ("EXECABORT Transaction discarded because of previous errors.", (), ""),
]
PARSERS = [pytest.param(RedisParser, id="redis-py"), pytest.param(ValkeyParser, id="valkey-py")]


def seen(error: BaseException) -> tuple[Callable[[BaseException], bool], ...]:
    return tuple(each for each in PREDICATES if each(error))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(("text", "expected", "explained"), ANSWERS)
def test_a_servers_error_is_understood(
    parser: Any, text: str, expected: tuple[Callable[[BaseException], bool], ...], explained: str
) -> None:
    error = parser(65_536).parse_error(text)

    assert seen(error) == expected
    assert explained in explanation(error)
    assert bool(explained) is bool(explanation(error))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "LOADING Valkey is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "MOVED 866 127.0.0.1:6379",
        "ASK 866 127.0.0.1:6379",
        "CLUSTERDOWN Hash slot not served",
    ],
)
def test_what_only_some_versions_have_a_class_for_passes_all_the_same(parser: Any, text: str) -> None:
    error = parser(65_536).parse_error(text)

    assert is_not_now(error)
    assert is_passing(error)
    assert not is_demoted(error)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "ERR wrong number of arguments for 'auth' command",
    ],
)
def test_who_is_not_let_in_does_not_try_again(parser: Any, text: str) -> None:
    error = parser(65_536).parse_error(text)

    assert not is_passing(error)
    assert not is_not_now(error)


@pytest.mark.parametrize("package", [redis, valkey])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConnectionError", LOST),
        ("TimeoutError", LOST),
        ("InvalidResponse", LOST),
        ("ClusterError", LOST),
        ("{}ClusterException", LOST),
        ("SlotNotCoveredError", LOST),
        ("AuthenticationError", (is_unanswered,)),
        ("AuthorizationError", (is_unanswered,)),
        ("DataError", ()),
    ],
)
def test_it_is_seen_that_no_answer_came(package: Any, name: str, expected: tuple[Any, ...]) -> None:
    error = getattr(package.exceptions, name.format(package.__name__.capitalize()))("Error 111 connecting to cache:6379.")

    assert seen(error) == expected
    assert explanation(error) == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), LOST),
        (BrokenPipeError("broken"), LOST),
        (TimeoutError("too late"), LOST),
        (LockedError("Another attempt is taking the key over"), (is_passing,)),
        (UnacknowledgedError("0 of 1 replicas have confirmed the write"), (is_passing,)),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), (is_wrong_type,)),
        (TypeError("READONLY is no option"), (is_demoted,)),
        (ValueError("LOADING"), ()),
        (Exception(), ()),
    ],
    ids=repr,
)
def test_other_errors_are_what_they_are(error: Exception, expected: tuple[Any, ...]) -> None:
    assert seen(error) == expected


BY_GLIDE = "An error was signalled by the server: - "
GLIDE_ERRORS = [
    ("RequestError", "WRONGTYPE: Operation against a key holding the wrong kind of value", (is_wrong_type,), ""),
    ("RequestError", "OOM: command not allowed when used memory > 'maxmemory'.", BUSY, "out of memory"),
    ("RequestError", "NOREPLICAS: Not enough good replicas to write.", BUSY, ""),
    ("RequestError", "BUSY: Valkey is busy running a script.", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}ReadOnly: You can't write against a read only replica.", (*BUSY, is_demoted), "is a replica"),
    ("RequestError", f"{BY_GLIDE}MasterDown: Link with MASTER is down", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}BusyLoadingError: Valkey is loading the dataset in memory", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}ResponseError: unknown command 'NOSUCH', with args beginning with: 'x'", (), ""),
    ("RequestError", f"{BY_GLIDE}PermissionDenied: No permissions to access a key", (), "needs the commands EVALSHA"),
    ("CircuitBreakerError", "the circuit breaker is open", BUSY, ""),
    ("TimeoutError", "timed out", LOST, ""),
    ("ConnectionError", "connection closed", LOST, ""),
    ("ClosingError", "Received error for address `127.0.0.1:6379`: WRONGPASS: invalid username-password pair", LOST, ""),
    ("ConfigurationError", "not in a cluster", (), ""),
]


@pytest.mark.skipif(glide_errors is None, reason="valkey-glide is not installed")
@pytest.mark.parametrize(("name", "text", "expected", "explained"), GLIDE_ERRORS)
def test_an_error_of_glide_is_understood(name: str, text: str, expected: tuple[Any, ...], explained: str) -> None:
    error = getattr(glide_errors, name)(text)

    assert seen(error) == expected
    assert explained in explanation(error)
    assert bool(explained) is bool(explanation(error))


def test_a_server_of_a_cluster_is_told_from_others() -> None:
    error = ValkeyParser(65_536).parse_error("MOVED 866 127.0.0.1:6379")

    assert 'mode="cluster"' in explanation(error)


REPEATING = [
    (
        redis.ResponseError("unknown command 'EVALSHA', with args beginning with: 'sha' '1' 'my-result' "),
        "ResponseError: unknown command 'EVALSHA'",
    ),
    (
        redis.exceptions.RedisClusterException("No targets were found to execute ('EVALSHA', 'my-result') command on"),
        "RedisClusterException",
    ),
    (
        valkey.ResponseError("unknown command `x`, with args beginning with: `a`,\n `my-result`"),
        "ResponseError: unknown command `x`",
    ),
]


@pytest.mark.parametrize(("error", "text"), REPEATING)
def test_an_error_that_repeats_what_was_sent_is_replaced(error: Exception, text: str) -> None:
    told = without_arguments(error)

    assert isinstance(told, CacheError)
    assert str(told) == text
    assert "my-result" not in repr(told)


def test_any_other_error_is_told_as_it_is() -> None:
    error = redis.ResponseError("value is not an integer or out of range")

    assert without_arguments(error) is error


def test_an_unreachable_server_is_told_with_what_may_help() -> None:
    error = CacheConnection(host="cache", port=6380).unreachable(TimeoutError("too late"))
    plain = CacheConnection(host="cache", ssl=False).unreachable(TimeoutError("too late"))

    assert isinstance(error, IdempotencyUnreachableError)
    assert str(error) == "Could not connect to the cache at cache:6380. If it has no TLS, say ssl=False. - (too late)"
    assert "leave ssl=False out" in str(plain)
    assert "rediss" in str(CacheConnection("redis://cache").unreachable(TimeoutError("too late")))


def test_without_a_certificate_there_is_no_name_to_check() -> None:
    settings = AsyncCachePersistenceLayer(url="rediss://cache?ssl_cert_reqs=none").client.connection_pool.connection_kwargs

    assert "ssl_check_hostname" not in settings


@pytest.mark.parametrize("pool_class", [redis.BlockingConnectionPool, redis.ConnectionPool, valkey.BlockingConnectionPool])
def test_every_pool_of_connections_can_be_told_to_drop_them(pool_class: Any) -> None:
    """They do not take the same arguments."""
    client_class = redis.Redis if pool_class.__module__.startswith("redis") else valkey.Valkey
    port = port_of(client_class(connection_pool=pool_class()), 0)

    assert run(port.reconnect()) is None
