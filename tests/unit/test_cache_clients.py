"""How the cache store is configured, and which clients it takes."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio

import persistence.redis
from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence import _cache_clients
from persistence._cache_clients import CacheConnection, EvalPort, GlidePort, is_awaited, port_of
from persistence._procedures import run
from persistence.exceptions import (
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyUnreachableError,
)

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


def test_an_unreachable_server_is_told_with_what_may_help() -> None:
    error = CacheConnection(host="cache", port=6380).unreachable(TimeoutError("too late"))
    plain = CacheConnection(host="cache", ssl=False).unreachable(TimeoutError("too late"))

    assert isinstance(error, IdempotencyUnreachableError)
    assert str(error) == (
        "Could not connect to the cache at cache:6380. If it has no TLS, say ssl=False. - (too late). "
        "No function was run; retry later."
    )
    assert error.is_retryable
    assert "leave ssl=False out" in str(plain)
    assert "rediss" in str(CacheConnection("redis://cache").unreachable(TimeoutError("too late")))


def test_without_a_certificate_there_is_no_name_to_check() -> None:
    settings = AsyncCachePersistenceLayer(url="rediss://cache?ssl_cert_reqs=none").client.connection_pool.connection_kwargs

    assert "ssl_check_hostname" not in settings


def no_pause(_ms: float) -> None:
    raise AssertionError


@pytest.mark.parametrize("pool_class", [redis.BlockingConnectionPool, redis.ConnectionPool, valkey.BlockingConnectionPool])
def test_every_pool_of_connections_can_be_told_to_drop_them(pool_class: Any) -> None:
    """They do not take the same arguments."""
    client_class = redis.Redis if pool_class.__module__.startswith("redis") else valkey.Valkey
    port = port_of(client_class(connection_pool=pool_class()), 0)

    assert run(port.reconnect(), no_pause) is None
