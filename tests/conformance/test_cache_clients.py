"""Every client that the cache store takes, how a store comes to one, and what becomes of passwords.  On real servers."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import redis.backoff
import redis.retry
import valkey
import valkey.asyncio
import valkey.backoff
import valkey.retry
from engines import EngineUnavailableError
from engines.caches import START_SECONDS, Node, _within, find_valkey, free_port, node
from engines.tls import tls_end
from verbs import AwaitedVerbs, Verbs

from idempotency import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence import _cache_clients, cache
from persistence._cache_clients import CacheConnection
from persistence._cache_errors import (
    explanation,
    is_demoted,
    is_not_now,
    is_passing,
    is_unanswered,
    is_unknown_script,
    is_wrong_type,
)
from persistence.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceConnectionError,
    IdempotencyPersistenceConsistencyError,
    IdempotencyPersistenceLayerError,
    IdempotencyUnreachableError,
)
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from doubles import FakeClock

    from persistence.datarecord import DataRecord

# It has no wheels for the lowest versions of its dependencies, nor for every Python.
try:
    import glide
    import glide_sync
except ImportError:
    glide = glide_sync = None
else:
    glide_sync.Logger.set_logger_config(glide_sync.LogLevel.OFF)

PASSWORD = "correct-horse/battery?staple#1"
QUOTED = "correct-horse%2Fbattery%3Fstaple%231"
needs_glide = pytest.mark.skipif(glide is None, reason="valkey-glide is not installed")


def on(server: str, *values: Any, id: str) -> Any:  # noqa: A002 - as pytest.param
    """Parameters of a test that runs on the server of this fixture."""
    marks = [getattr(pytest.mark, {"valkey_server": "valkey"}.get(server, server))]
    return pytest.param(server, *values, id=id, marks=[*marks, needs_glide] if "glide" in id else marks)


# Servers


@pytest.fixture(scope="module")
def own_node(valkey_server: str) -> Iterator[Node]:
    """A server whose configuration a test may change; `valkey_server` says whether there can be one."""
    with node() as made:
        yield made


@pytest.fixture
def guarded(own_node: Node) -> Iterator[Node]:
    """A server with a password, and a user with another."""
    with closing(redis.Redis(port=own_node.port)) as admin:
        admin.config_set("requirepass", PASSWORD)
        admin.acl_setuser("worker", enabled=True, passwords=["+of-worker"], keys=["*"], commands=["+@all"])
        yield own_node
        admin.acl_deluser("worker")
        admin.config_set("requirepass", "")


@pytest.fixture(scope="module")
def tls_url(valkey_server: str) -> Iterator[str]:
    with tls_end(valkey_server) as url:
        yield url


@pytest.fixture(scope="module")
def tls_url_of_another(valkey_server: str) -> Iterator[str]:
    """Of an end whose certificate is for another name."""
    with tls_end(valkey_server, ("cache.example.org",)) as url:
        yield url


@pytest.fixture(params=["redis", "valkey"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package by which stores make their clients: redis-py as if valkey-py were not there, and the other way round."""
    hide(monkeypatch, {"redis", "valkey"} - {request.param})
    return request.param


def hide(monkeypatch: pytest.MonkeyPatch, packages: set[str]) -> None:
    """Let it look as if the packages were not installed."""
    import_module = _cache_clients.import_module

    def import_others(name: str) -> Any:
        if name in packages:
            raise ModuleNotFoundError(name=name)
        return import_module(name)

    monkeypatch.setattr(_cache_clients, "import_module", import_others)


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def authority_of(url: str) -> str:
    return url.partition("ssl_ca_certs=")[2]


# What each client must do


def tell(verbs: Verbs, clock: FakeClock, key: str) -> None:
    """Claim, refuse a duplicate, complete, replay, take over an orphan, fence its first owner off, and release."""
    granted = verbs.claim(verbs.offer(key, "a"))
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer(key, "b"))
    assert refused.value.old_data_record.owner_token == "a"

    verbs.complete(verbs.completed(granted, '{"text":"日本 🧾"}'))
    verbs.complete(verbs.completed(granted, '{"text":"日本 🧾"}'))
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer(key, "b"))
    assert refused.value.old_data_record.response_data == '{"text":"日本 🧾"}'
    assert verbs.fetch(key) == refused.value.old_data_record

    orphan = verbs.claim(verbs.offer(f"{key}/2", "a"))
    clock.advance(ms=1_001)
    winner = verbs.claim(verbs.offer(f"{key}/2", "c", lease_ms=5_000))
    assert (winner.generation, winner.took_over) == (2, True)
    for late in (partial(verbs.complete, verbs.completed(orphan, "1")), partial(verbs.release, orphan)):
        with pytest.raises(IdempotencyLeaseLostError):
            late()
    verbs.renew(verbs.renewed(winner, lease_ms=9_000))
    verbs.release(winner)
    verbs.release(winner)
    assert verbs.fetch(f"{key}/2") is None


def sync_store(clock: FakeClock, **options: Any) -> CachePersistenceLayer:
    store = CachePersistenceLayer(**options)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


class Runner(AwaitedVerbs):
    """Verbs of an awaited store that is made on the event loop, as some clients demand."""

    def __init__(self, clock: FakeClock, new_store: Callable[[], Any]) -> None:
        runner = asyncio.Runner()
        store = runner.run(new_store())
        store.clock_ms = clock
        super().__init__(store, clock, store)
        self._runner = runner

    def end(self, *closing: Any) -> None:
        for each in closing:
            self._runner.run(each())
        self._runner.close()


class LeastClient:
    """A user's client with nothing but what the protocol asks for."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def get(self, name: str, /) -> Any:
        return self._client.get(name)

    def set(self, name: str, value: str, ex: float | None = None, px: float | None = None, nx: bool = False) -> Any:
        return self._client.set(name, value, ex=ex, px=px, nx=nx)

    def delete(self, name: str, /) -> Any:
        return self._client.delete(name)

    def close(self) -> None:
        self._client.close()


class WrappedClient(LeastClient):
    """A user's client with scripts, and without what redis-py has around them."""

    def evalsha(self, *args: Any) -> Any:
        return self._client.evalsha(*args)

    def eval(self, *args: Any) -> Any:
        return self._client.eval(*args)


class LeastAwaitedClient:
    """The same, awaited."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url)

    async def get(self, name: str, /) -> Any:
        return await self._client.get(name)

    async def set(self, name: str, value: str, ex: float | None = None, px: float | None = None, nx: bool = False) -> Any:
        return await self._client.set(name, value, ex=ex, px=px, nx=nx)

    async def delete(self, name: str, /) -> Any:
        return await self._client.delete(name)

    async def aclose(self) -> None:
        await self._client.connection_pool.disconnect()


def glide_client(url: str, request_timeout: int = 2_000) -> Any:
    address = glide_sync.NodeAddress("127.0.0.1", port_of(url))
    return glide_sync.GlideClient.create(glide_sync.GlideClientConfiguration([address], request_timeout=request_timeout))


def glide_cluster_client(url: str) -> Any:
    address = glide_sync.NodeAddress("127.0.0.1", port_of(url))
    return glide_sync.GlideClusterClient.create(glide_sync.GlideClusterClientConfiguration([address], request_timeout=2_000))


async def awaited_glide_client(url: str) -> Any:
    address = glide.NodeAddress("127.0.0.1", port_of(url))
    return await glide.GlideClient.create(glide.GlideClientConfiguration([address], request_timeout=2_000))


async def awaited_glide_cluster_client(url: str) -> Any:
    address = glide.NodeAddress("127.0.0.1", port_of(url))
    return await glide.GlideClusterClient.create(glide.GlideClusterClientConfiguration([address], request_timeout=2_000))


def at_once(new_client: Callable[..., Any], **options: Any) -> Callable[[str], Any]:
    """A factory that is awaited, of one that is not."""

    async def make(url: str) -> Any:
        return new_client(url, **options)

    return make


TEXTS = {"decode_responses": True}

CLIENTS = [
    on("valkey_server", redis.Redis.from_url, id="redis-py"),
    on("valkey_server", partial(redis.Redis.from_url, **TEXTS), id="redis-py-texts"),
    on("valkey_server", valkey.Valkey.from_url, id="valkey-py"),
    on("valkey_server", partial(valkey.Valkey.from_url, **TEXTS), id="valkey-py-texts"),
    on("valkey_server", LeastClient, id="least"),
    on("valkey_server", WrappedClient, id="wrapped"),
    on("valkey_server", glide_client, id="glide"),
    on("valkey_cluster", redis.RedisCluster.from_url, id="redis-py-cluster"),
    on("valkey_cluster", partial(redis.RedisCluster.from_url, **TEXTS), id="redis-py-cluster-texts"),
    on("valkey_cluster", valkey.ValkeyCluster.from_url, id="valkey-py-cluster"),
    on("valkey_cluster", glide_cluster_client, id="glide-cluster"),
]
#: Those that run scripts, and try once.
EVAL_CLIENTS = [
    pytest.param(partial(redis.Redis.from_url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0)), id="redis-py"),
    pytest.param(partial(valkey.Valkey.from_url, retry=valkey.retry.Retry(valkey.backoff.NoBackoff(), 0)), id="valkey-py"),
    pytest.param(partial(glide_client, request_timeout=500), id="glide", marks=needs_glide),
]
AWAITED_CLIENTS = [
    on("valkey_server", at_once(redis.asyncio.Redis.from_url), id="redis-py"),
    on("valkey_server", at_once(redis.asyncio.Redis.from_url, **TEXTS), id="redis-py-texts"),
    on("valkey_server", at_once(valkey.asyncio.Valkey.from_url), id="valkey-py"),
    on("valkey_server", at_once(valkey.asyncio.Valkey.from_url, **TEXTS), id="valkey-py-texts"),
    on("valkey_server", at_once(LeastAwaitedClient), id="least"),
    on("valkey_server", awaited_glide_client, id="glide"),
    on("valkey_cluster", at_once(redis.asyncio.RedisCluster.from_url), id="redis-py-cluster"),
    on("valkey_cluster", at_once(valkey.asyncio.ValkeyCluster.from_url, **TEXTS), id="valkey-py-cluster-texts"),
    on("valkey_cluster", awaited_glide_cluster_client, id="glide-cluster"),
]


MODES = [on("valkey_server", "standalone", id="standalone"), on("valkey_cluster", "cluster", id="cluster")]


@pytest.mark.parametrize(("server", "new_client"), CLIENTS)
def test_a_client_that_is_given_serves_the_whole_story(
    request: pytest.FixtureRequest, clock: FakeClock, server: str, new_client: Callable[[str], Any]
) -> None:
    with closing(new_client(request.getfixturevalue(server))) as client:
        store = sync_store(clock, client=client)

        tell(Verbs(store, clock), clock, request.node.name)

        assert store.client is client


@pytest.mark.parametrize(("server", "new_client"), AWAITED_CLIENTS)
def test_an_awaited_client_that_is_given_serves_the_whole_story(
    request: pytest.FixtureRequest, clock: FakeClock, server: str, new_client: Callable[[str], Any]
) -> None:
    url = request.getfixturevalue(server)
    clients = []

    async def new_store() -> AsyncCachePersistenceLayer:
        clients.append(await new_client(url))
        return AsyncCachePersistenceLayer(client=clients[0])

    verbs = Runner(clock, new_store)
    tell(verbs, clock, request.node.name)
    verbs.end(verbs._awaited.aclose)


@pytest.mark.parametrize(("server", "mode"), MODES)
@pytest.mark.parametrize("by_url", [True, False], ids=["url", "host"])
def test_a_client_made_by_the_store_serves_the_whole_story(
    request: pytest.FixtureRequest, clock: FakeClock, package: str, server: str, mode: Any, by_url: bool
) -> None:
    url = request.getfixturevalue(server)
    address = {"url": url} if by_url else {"host": "127.0.0.1", "port": port_of(url), "ssl": False, "db_index": 0}
    store = sync_store(clock, mode=mode, **address)

    with closing(store.client):
        tell(Verbs(store, clock), clock, request.node.name)

        assert type(store.client).__module__.startswith(package)
        assert ("Cluster" in type(store.client).__name__) is (mode == "cluster")


@pytest.mark.parametrize(("server", "mode"), MODES)
def test_an_awaited_client_made_by_the_store_serves_the_whole_story(
    request: pytest.FixtureRequest, clock: FakeClock, package: str, server: str, mode: Any
) -> None:
    url = request.getfixturevalue(server)

    async def new_store() -> AsyncCachePersistenceLayer:
        return AsyncCachePersistenceLayer(url=url, mode=mode)

    verbs = Runner(clock, new_store)
    tell(verbs, clock, request.node.name)
    store: Any = verbs._awaited
    assert type(store.client).__module__.startswith(package)
    verbs.end(store.aclose)


# Configuration


def test_redis_py_is_preferred(valkey_server: str) -> None:
    with closing(CachePersistenceLayer(url=valkey_server).client) as client:
        assert isinstance(client, redis.Redis)


def test_the_database_that_was_chosen_is_used(package: str, valkey_server: str, clock: FakeClock) -> None:
    address = {"host": "127.0.0.1", "port": port_of(valkey_server), "ssl": False}
    store = sync_store(clock, **address, db_index=3)
    other = sync_store(clock, url=f"{valkey_server}/4")
    with closing(store.client), closing(other.client), closing(redis.Redis.from_url(f"{valkey_server}/3")) as third:
        verbs = Verbs(store, clock)
        verbs.claim(verbs.offer(f"of-{package}", "a"))

        assert third.exists(f"of-{package}")
        assert Verbs(other, clock).fetch(f"of-{package}") is None


def test_a_cluster_has_only_one_database(package: str, valkey_cluster: str) -> None:
    store = CachePersistenceLayer(host="127.0.0.1", port=port_of(valkey_cluster), ssl=False, db_index=3, mode="cluster")

    with closing(store.client):
        assert store.fetch("nobody") is None


def test_a_url_alone_says_whether_tls_is_used(package: str, valkey_server: str) -> None:
    store = CachePersistenceLayer(url=valkey_server, host="no-such-host.invalid", ssl=True)

    with closing(store.client):
        assert store.fetch("nobody") is None


@pytest.mark.parametrize("schemes", [("redis", "valkey"), ("redis", "redis")])
def test_valkeys_schemes_are_known_to_either_package(package: str, valkey_server: str, schemes: tuple[str, str]) -> None:
    with closing(CachePersistenceLayer(url=valkey_server.replace(*schemes)).client) as client:
        assert client.ping()


def test_a_socket_of_the_machine_will_do(package: str, valkey_server: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with node(find_valkey, "--unixsocket", str(path)):
        store = CachePersistenceLayer(url=f"unix://{path}")

        with closing(store.client):
            assert store.fetch("nobody") is None


@pytest.mark.parametrize(
    "credentials",
    [{"password": PASSWORD}, {"username": "default", "password": PASSWORD}, {"username": "worker", "password": "of-worker"}],
    ids=["password", "default-user", "user"],
)
def test_credentials_are_used(package: str, guarded: Node, credentials: dict[str, str]) -> None:
    store = CachePersistenceLayer(host="127.0.0.1", port=guarded.port, ssl=False, **credentials)

    with closing(store.client) as client:
        assert store.fetch("nobody") is None
        assert client.acl_whoami() in (credentials.get("username", "default"), credentials.get("username", "default").encode())


def test_a_password_in_a_url_is_percent_encoded(package: str, guarded: Node) -> None:
    with closing(CachePersistenceLayer(url=f"redis://:{QUOTED}@127.0.0.1:{guarded.port}").client) as client:
        assert client.ping()


@pytest.mark.parametrize(
    "credentials",
    [{}, {"password": "wrong-one"}, {"username": "nobody", "password": PASSWORD}],
    ids=["none", "wrong-password", "wrong-user"],
)
def test_refused_credentials_show_at_the_first_use_and_at_once(
    package: str, guarded: Node, credentials: dict[str, str], clock: FakeClock
) -> None:
    store = sync_store(clock, host="127.0.0.1", port=guarded.port, ssl=False, **credentials)
    offer = Verbs(store, clock).offer("k", "a", deadline_ms=clock.now_ms + 60_000)

    for use in (store.prime, lambda: store.claim(offer)):
        with pytest.raises(IdempotencyUnreachableError, match=f"127.0.0.1:{guarded.port}") as refused:
            use()
        assert isinstance(refused.value, IdempotencyPersistenceConnectionError)
        assert isinstance(refused.value, IdempotencyPersistenceConfigError)
        assert not {PASSWORD, "wrong-one"} & set(everything_said(refused.value).split())
    assert clock.slept_ms == []
    assert isinstance(refused.value, IdempotencyPersistenceLayerError)
    assert str(refused.value).startswith("Failed to save in progress record to idempotency store - (Could not connect to")
    assert "Idempotency key: k. The function was not run; a retry does not help until this is corrected." in str(refused.value)
    assert not refused.value.is_retryable


@pytest.mark.parametrize("mode", ["standalone", "cluster"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_server_that_does_not_answer_shows_at_the_first_use_after_the_retries(
    package: str, mode: Any, host: str, clock: FakeClock
) -> None:
    port = free_port()
    by_host = sync_store(clock, host=host, port=port, ssl=False, mode=mode)
    by_url = sync_store(clock, url=f"redis://:secret@{host}:{port}", mode=mode)

    for store, named in ((by_host, f"{host}:{port}"), (by_url, "the given url")):
        with pytest.raises(IdempotencyUnreachableError, match=named):
            store.prime()
        assert clock.slept_ms == []
        with pytest.raises(IdempotencyUnreachableError, match=named) as failed:
            store.claim(Verbs(store, clock).offer("k", "a", deadline_ms=clock.now_ms + 1_000))
        assert isinstance(failed.value, IdempotencyPersistenceLayerError)
        assert "secret" not in everything_said(failed.value)
        assert len(clock.slept_ms) > 1
        clock.slept_ms.clear()


def test_a_server_that_comes_later_is_reached_by_the_call_that_waits_for_it(package: str, clock: FakeClock) -> None:
    with node(find_valkey) as made:
        made.kill()
        store = sync_store(clock, url=made.endpoint)
        store.sleep_ms = lambda _ms: made.start()
        verbs = Verbs(store, clock)

        with closing(store.client):
            assert verbs.claim(verbs.offer("later", "a")).generation == 1


def test_a_cluster_that_comes_later_is_reached_by_the_call_that_waits_for_it(
    package: str, valkey_cluster: str, clock: FakeClock
) -> None:
    store: Any = sync_store(clock, host="127.0.0.1", port=free_port(), ssl=False, mode="cluster")
    store.sleep_ms = lambda _ms: setattr(store._connection, "port", port_of(valkey_cluster))
    verbs = Verbs(store, clock)

    assert verbs.claim(verbs.offer(f"later-{package}", "a")).generation == 1
    store.client.close()


def test_a_server_that_has_answered_before_is_not_called_unreachable(package: str, clock: FakeClock) -> None:
    with node(find_valkey) as made:
        store = sync_store(clock, url=made.endpoint)
        store.prime()
        made.kill()

        with closing(store.client), pytest.raises(IdempotencyPersistenceLayerError) as failed:
            store.claim(Verbs(store, clock).offer("k", "a", deadline_ms=clock.now_ms))
    assert not isinstance(failed.value, IdempotencyUnreachableError)


def test_a_server_that_is_no_cluster_is_not_taken_for_one(package: str, valkey_server: str) -> None:
    store = CachePersistenceLayer(url=valkey_server, mode="cluster")

    with pytest.raises(IdempotencyUnreachableError, match="Cluster mode is not enabled"):
        store.prime()
    with pytest.raises(IdempotencyUnreachableError, match="Cluster mode is not enabled"):
        _ = store.client


@pytest.mark.parametrize("mode", ["standalone", "cluster"])
@pytest.mark.parametrize("kind", [CachePersistenceLayer, AsyncCachePersistenceLayer])
def test_a_store_is_made_without_the_network(package: str, kind: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("sent something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    for options in ({"host": "cache.invalid"}, {"url": "rediss://user:secret@cache.invalid:6380"}):
        assert repr(kind(mode=mode, **options))


@pytest.mark.parametrize("mode", ["standalone", "cluster"])
def test_a_store_may_connect_early(request: pytest.FixtureRequest, package: str, mode: Any) -> None:
    url = request.getfixturevalue("valkey_cluster" if mode == "cluster" else "valkey_server")

    async def prime() -> None:
        awaited_store = AsyncCachePersistenceLayer(url=url, mode=mode)
        await awaited_store.prime()
        await awaited_store.aclose()

    store = CachePersistenceLayer(url=url, mode=mode)
    store.prime()
    store.prime()
    store.client.close()
    asyncio.run(prime())


def test_a_given_client_is_asked_whether_the_server_is_there() -> None:
    client = redis.Redis(port=free_port(), retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0))
    store = CachePersistenceLayer(client=client)

    with closing(client), pytest.raises(IdempotencyUnreachableError, match="by the given client"):
        store.prime()


def test_a_given_client_that_cannot_ask_is_taken_as_it_is(valkey_server: str) -> None:
    with closing(LeastClient(valkey_server)) as client:
        CachePersistenceLayer(client=client).prime()


def test_of_first_calls_at_the_same_time_one_makes_the_clusters_client(
    package: str, valkey_cluster: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    new_client = CacheConnection.new_client

    def counting(connection: CacheConnection, *, is_async: bool) -> Any:
        made.append(new_client(connection, is_async=is_async))
        return made[-1]

    monkeypatch.setattr(CacheConnection, "new_client", counting)
    store = sync_store(clock, url=valkey_cluster, mode="cluster")
    verbs = Verbs(store, clock)

    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda number: verbs.claim(verbs.offer(f"{package}-{number}", "a")), range(8)))

    assert [each.generation for each in granted] == [1] * 8
    assert made == [store.client]
    store.client.close()


def test_a_first_call_is_not_held_up_by_another_that_is_stuck(
    package: str, valkey_cluster: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a node that is silent, or for ever in a forked child."""
    monkeypatch.setattr(cache, "CONNECT_TIMEOUT", 0.01)
    stuck, may_go_on = Event(), Event()
    new_client = CacheConnection.new_client

    def slow(connection: CacheConnection, *, is_async: bool) -> Any:
        if not stuck.is_set():
            stuck.set()
            assert may_go_on.wait(20)
        return new_client(connection, is_async=is_async)

    monkeypatch.setattr(CacheConnection, "new_client", slow)
    store = sync_store(clock, url=valkey_cluster, mode="cluster")
    thread = Thread(target=store.prime)
    thread.start()
    assert stuck.wait(20)

    assert store.fetch("nobody") is None
    used = store.client
    may_go_on.set()
    thread.join()
    assert store.client is used
    used.close()


def test_a_client_that_is_given_while_the_first_call_connects_stays(
    package: str, valkey_cluster: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_client = CacheConnection.new_client
    given = LeastClient(valkey_cluster)
    made: list[Any] = []

    def replacing(connection: CacheConnection, *, is_async: bool) -> Any:
        store.client = given
        made.append(new_client(connection, is_async=is_async))
        return made[-1]

    monkeypatch.setattr(CacheConnection, "new_client", replacing)
    store = sync_store(clock, url=valkey_cluster, mode="cluster")

    assert store.fetch("nobody") is None
    assert store.client is given
    for each in (given, *made):
        each.close()


def test_an_awaited_store_says_at_its_first_call_that_nobody_answers(package: str, clock: FakeClock) -> None:
    url = f"redis://127.0.0.1:{free_port()}"

    async def claim() -> None:
        store = AsyncCachePersistenceLayer(url=url)
        store.clock_ms = clock
        store.sleep_ms = awaited(clock.sleep_ms)
        verbs = Verbs(store, clock)  # type: ignore[arg-type]  # for its offers
        with pytest.raises(IdempotencyPersistenceLayerError, match="connecting to 127.0.0.1"):
            await store.claim(verbs.offer("k", "a", deadline_ms=clock.now_ms + 500))
        await store.aclose()

    asyncio.run(claim())

    assert len(clock.slept_ms) > 1


def awaited(call: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapped(*args: Any) -> Any:
        return call(*args)

    return wrapped


def test_a_server_that_is_loading_is_accepted(valkey_server: str) -> None:
    """It is there, and may be ready by the first call."""
    with node(find_valkey, "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no") as made:
        with closing(redis.Redis(port=made.port)) as client:
            client.mset({f"k{number}": "x" * 500 for number in range(1_000)})
            client.execute_command("SAVE")
        made.kill()
        made.options = (*made.options, "--key-load-delay", "10000")

        def start() -> None:
            with suppress(EngineUnavailableError):  # it is ended before it has loaded
                made.start()

        starting = Thread(target=start)
        starting.start()
        while not (said := made.says("PING")):
            assert starting.is_alive()
        assert said.startswith("-LOADING")

        store = CachePersistenceLayer(url=made.endpoint)
        store.prime()

        with closing(store.client) as client, pytest.raises(redis.BusyLoadingError):
            client.ping()
        made.kill()
        starting.join()


def test_a_replica_is_accepted(package: str, own_node: Node) -> None:
    """It may be the master by the first write."""
    own_node.says("REPLICAOF", "127.0.0.1", "1")

    store = CachePersistenceLayer(url=own_node.endpoint)
    store.prime()

    own_node.says("REPLICAOF", "NO", "ONE")
    with closing(store.client):
        assert store.fetch("nobody") is None


@pytest.mark.parametrize(
    "new_client",
    [*EVAL_CLIENTS, pytest.param(WrappedClient, id="wrapped")],
)
def test_a_write_refused_by_a_replica_is_sent_again_until_there_is_a_master(
    own_node: Node, clock: FakeClock, new_client: Callable[[str], Any], request: pytest.FixtureRequest
) -> None:
    with closing(new_client(own_node.endpoint)) as client:
        store = sync_store(clock, client=client)
        verbs = Verbs(store, clock)
        granted = verbs.claim(verbs.offer(request.node.name, "a"))
        own_node.says("REPLICAOF", "127.0.0.1", "1")
        store.sleep_ms = lambda ms: (clock.sleep_ms(ms), own_node.says("REPLICAOF", "NO", "ONE"))

        verbs.complete(verbs.completed(granted, "1"))

        assert verbs.fetch(granted.key).response_data == "1"
    assert len(clock.slept_ms) == 1


@pytest.fixture(scope="module")
def replicated(valkey_server: str) -> Iterator[Node]:
    """A master with one replica."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with node(find_valkey, *at_once) as master, node(find_valkey) as replica:
        replica.says("REPLICAOF", "127.0.0.1", str(master.port))
        with closing(redis.Redis(port=master.port)) as client:
            while not all(client.set("written", number) and client.wait(1, 1_000) for number in range(3)):
                pass  # not yet
        yield master


def test_a_write_waits_for_replicas(
    package: str, replicated: Node, clock: FakeClock, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_clients, "REPLICATION_MS", 1_500)  # for a machine that is busy

    async def new_store() -> AsyncCachePersistenceLayer:
        return AsyncCachePersistenceLayer(url=replicated.endpoint, min_replicas_ack=1)

    replicated.says("SCRIPT", "FLUSH")
    store = sync_store(clock, url=replicated.endpoint, min_replicas_ack=1)
    with closing(store.client):
        tell(Verbs(store, clock), clock, request.node.name)
    verbs = Runner(clock, new_store)
    tell(verbs, clock, f"{request.node.name}-awaited")
    verbs.end(verbs._awaited.aclose)  # type: ignore[attr-defined]

    assert clock.slept_ms == []


def test_a_write_that_too_few_replicas_have_is_an_error_in_the_end(
    package: str, replicated: Node, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_clients, "REPLICATION_MS", 10)
    store = sync_store(clock, url=replicated.endpoint, min_replicas_ack=2)
    with closing(store.client) as client:
        verbs = Verbs(store, clock)
        client.delete("list")
        client.rpush("list", "x")

        with pytest.raises(IdempotencyPersistenceLayerError, match="1 of 2 replicas have confirmed the write"):
            verbs.claim(verbs.offer(f"too-few-{package}", "a", deadline_ms=clock.now_ms + 300))
        with pytest.raises(IdempotencyPersistenceLayerError, match="no idempotency record"):
            verbs.claim(verbs.offer("list", "a"))

        assert client.exists(f"too-few-{package}")
    assert clock.slept_ms


def test_the_client_may_be_replaced(valkey_server: str, valkey_cluster: str, clock: FakeClock) -> None:
    with (
        closing(redis.Redis.from_url(valkey_server)) as first,
        closing(LeastClient(valkey_server)) as second,
        closing(redis.RedisCluster.from_url(valkey_cluster)) as third,
    ):
        store = sync_store(clock, client=first)
        verbs = Verbs(store, clock)
        verbs.claim(verbs.offer("replaced", "a"))

        store.client = second
        assert verbs.fetch("replaced") is not None
        store.client = third
        assert verbs.fetch("replaced") is None

        assert store.client is third
        first.delete("replaced")


def test_an_awaited_store_that_is_given_a_client_makes_none_any_more(valkey_server: str) -> None:
    async def replace() -> None:
        store = AsyncCachePersistenceLayer(url="redis://no-such-host.invalid")
        store.client = redis.asyncio.Redis.from_url(valkey_server)
        assert await store.fetch("nobody") is None
        await store.aclose()

    asyncio.run(replace())


# TLS


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls_is_the_default(package: str, monkeypatch: pytest.MonkeyPatch, tls_url: str, host: str, clock: FakeClock) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority_of(tls_url))
    store = sync_store(clock, host=host, port=port_of(tls_url))

    with closing(store.client):
        tell(Verbs(store, clock), clock, f"tls-{package}-{host}")


def test_an_awaited_store_uses_tls_by_default(
    package: str, monkeypatch: pytest.MonkeyPatch, tls_url: str, clock: FakeClock
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority_of(tls_url))

    async def new_store() -> AsyncCachePersistenceLayer:
        return AsyncCachePersistenceLayer(host="localhost", port=port_of(tls_url))

    verbs = Runner(clock, new_store)
    tell(verbs, clock, f"tls-awaited-{package}")
    verbs.end(verbs._awaited.aclose)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_url_may_say_tls_and_whom_to_trust(package: str, tls_url: str, scheme: str) -> None:
    url = tls_url.replace("rediss", scheme)

    async def fetch() -> DataRecord | None:
        store = AsyncCachePersistenceLayer(url=url)
        found = await store.fetch("nobody")
        await store.aclose()
        return found

    store = CachePersistenceLayer(url=url)
    with closing(store.client):
        assert store.fetch("nobody") is None
        assert asyncio.run(fetch()) is None


def distrusted(tls_url: str, tls_url_of_another: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Ways to reach an end that must not be believed, and whose authority is trusted then."""
    another = {"host": "127.0.0.1", "port": port_of(tls_url_of_another)}
    return {
        "unknown-authority": ({"host": "127.0.0.1", "port": port_of(tls_url)}, ""),
        "unknown-authority-url": ({"url": tls_url.partition("?")[0]}, ""),
        "authority-of-another": ({"url": tls_url.replace(authority_of(tls_url), authority_of(tls_url_of_another))}, ""),
        "another-host": (another, authority_of(tls_url_of_another)),
        "another-host-url": ({"url": tls_url_of_another}, ""),
    }


DISTRUSTED = ["unknown-authority", "unknown-authority-url", "authority-of-another", "another-host", "another-host-url"]


@pytest.mark.parametrize("case", DISTRUSTED)
def test_a_server_that_cannot_prove_its_name_is_refused(
    package: str, monkeypatch: pytest.MonkeyPatch, tls_url: str, tls_url_of_another: str, case: str, clock: FakeClock
) -> None:
    address, trusted = distrusted(tls_url, tls_url_of_another)[case]
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)

    async def fetch() -> None:
        store = AsyncCachePersistenceLayer(**address)
        store.clock_ms, store.sleep_ms = clock, awaited(clock.sleep_ms)
        with pytest.raises(IdempotencyPersistenceLayerError) as refused:
            await store.claim(Verbs(store, clock).offer("k", "a", deadline_ms=clock.now_ms))  # type: ignore[arg-type]
        await store.aclose()
        assert "CERTIFICATE_VERIFY_FAILED" in everything_said(refused.value)  # not always in its own text

    with pytest.raises(IdempotencyUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        CachePersistenceLayer(**address).prime()
    asyncio.run(fetch())


def test_tls_to_a_server_without_ends_in_time_and_says_what_to_change(
    package: str, monkeypatch: pytest.MonkeyPatch, valkey_server: str
) -> None:
    """The server waits for the rest of a command, and says nothing."""
    monkeypatch.setattr(_cache_clients, "READ_TIMEOUT", 0.2)

    with pytest.raises(IdempotencyUnreachableError, match="ssl=False"):
        CachePersistenceLayer(host="127.0.0.1", port=port_of(valkey_server)).prime()


@pytest.mark.parametrize("by_url", [True, False], ids=["url", "host"])
def test_no_tls_to_a_server_that_has_it_is_an_error_at_once(package: str, tls_url: str, by_url: bool) -> None:
    port = port_of(tls_url)
    address = {"url": f"redis://127.0.0.1:{port}"} if by_url else {"host": "127.0.0.1", "port": port, "ssl": False}

    with pytest.raises(IdempotencyUnreachableError, match="Could not connect to the cache"):
        CachePersistenceLayer(**address).prime()


@pytest.mark.parametrize("option", ["no_such_option=1", "ssl_cert_reqs=bogus"])
def test_an_option_that_the_client_does_not_take_shows_when_the_store_is_made(package: str, tls_url: str, option: str) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="options"):
        CachePersistenceLayer(url=f"{tls_url}&{option}")


def test_a_url_may_renounce_the_certificate(package: str, tls_url: str) -> None:
    store = CachePersistenceLayer(url=f"{tls_url.partition('?')[0]}?ssl_cert_reqs=none")

    with closing(store.client):
        assert store.fetch("nobody") is None


# Event loops and threads


def test_each_event_loop_has_a_client_of_its_own(package: str, valkey_server: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # what other tests left open is not this one's
    store = AsyncCachePersistenceLayer(url=valkey_server)
    clients = []

    async def fetch() -> None:
        assert await store.fetch("nobody") is None
        clients.append(store.client)
        assert await store.fetch("nobody") is None
        assert store.client is clients[-1]
        await store.aclose()
        assert await store.fetch("nobody") is None  # connects again
        await store.aclose()

    asyncio.run(fetch())
    asyncio.run(fetch())
    gc.collect()  # what was left open warns here

    first, second = clients
    assert first is not second


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_connections_of_a_loop_that_has_ended_are_not_kept(package: str, valkey_server: str) -> None:
    """As of an `asyncio.run` in every invocation, without `aclose`, which is why Python warns here."""
    store = AsyncCachePersistenceLayer(url=valkey_server)
    with closing(redis.Redis.from_url(valkey_server)) as direct:
        before = len(direct.client_list())

        for _ in range(10):
            asyncio.run(store.fetch("nobody"))
        gc.collect()

        assert _within(START_SECONDS, lambda: len(direct.client_list()) <= before + 1)
        del store  # lets the last one go, too
        gc.collect()


def test_event_loops_in_threads_share_one_store(package: str, valkey_server: str, clock: FakeClock) -> None:
    store = AsyncCachePersistenceLayer(url=valkey_server)
    store.clock_ms = clock
    offers = Verbs(store, clock)  # type: ignore[arg-type]  # for its offers

    async def claim_all(thread: int) -> list[int]:
        granted = [store.claim(offers.offer(f"{package}-{thread}-{number}", "a")) for number in range(10)]
        generations = [each.generation for each in await asyncio.gather(*granted)]
        await store.aclose()
        return generations

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda thread: asyncio.run(claim_all(thread)), range(4)))

    assert answers == [[1] * 10] * 4
    gc.collect()


def test_a_sync_store_serves_async_functions_through_threads(package: str, valkey_server: str, clock: FakeClock) -> None:
    store = sync_store(clock, url=valkey_server)

    with closing(store.client):
        verbs = AwaitedVerbs(store, clock, ThreadedPersistenceLayer(store))
        answers = verbs.claim_at_once([verbs.offer(f"threads-{package}", str(number)) for number in range(8)])
        verbs.close()

    assert sum(not isinstance(answer, Exception) for answer in answers) == 1


@dataclass
class Silent:
    """A server between, which forwards nothing while it is silent."""

    port: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    speaks: asyncio.Event = field(default_factory=asyncio.Event)


async def silent_end(url: str, silent: Silent) -> asyncio.Server:
    writers = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool) -> None:
        with suppress(ConnectionError):
            while said := await reader.read(65_536):
                if is_request:
                    silent.asked.set()
                    await silent.speaks.wait()
                writer.write(said)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port_of(url))
        writers.extend([writer, server_writer])
        await asyncio.gather(carry(reader, server_writer, is_request=True), carry(server_reader, writer, is_request=False))

    end = await asyncio.start_server(serve, "127.0.0.1", 0)
    silent.port = end.sockets[0].getsockname()[1]
    return end


def test_a_claim_that_is_cancelled_leaves_the_store_usable(package: str, valkey_server: str, clock: FakeClock) -> None:
    """Its answer must not be taken for that of the next request on its connection."""

    async def cancel() -> None:
        silent = Silent()
        end = await silent_end(valkey_server, silent)
        store = AsyncCachePersistenceLayer(url=f"redis://127.0.0.1:{silent.port}")
        store.clock_ms = clock
        offers = Verbs(store, clock)  # type: ignore[arg-type]  # for its offers
        silent.speaks.set()
        await store.fetch("nobody")
        silent.asked.clear()
        silent.speaks.clear()

        claiming = asyncio.create_task(store.claim(offers.offer(f"cancelled-{package}", "a")))
        await silent.asked.wait()
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        silent.speaks.set()

        assert await store.fetch("nobody") is None
        granted = await store.claim(offers.offer(f"not-cancelled-{package}", "b"))
        await store.complete(offers.completed(granted, "1"))
        assert (await store.fetch(f"not-cancelled-{package}")).response_data == "1"
        await store.aclose()
        end.close()
        await end.wait_closed()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            await task

    asyncio.run(cancel())


# What the clients make of a server's errors


GET, SET = "return redis.call('GET', KEYS[1])", "return redis.call('SET', KEYS[1], 'x')"
PREDICATES = (is_not_now, is_unanswered, is_passing, is_demoted, is_wrong_type, is_unknown_script)


def evaluated(client: Any, script: str, key: str) -> Any:
    if hasattr(client, "invoke_script"):
        return client.invoke_script(glide_sync.Script(script), keys=[key], args=[])
    return client.eval(script, 1, key)


@dataclass(frozen=True)
class Trouble:
    """How a server is brought into a trouble, and out of it; what a request meets there, and what that is."""

    script: str
    is_: tuple[Callable[[BaseException], bool], ...]
    into: tuple[tuple[str, ...], ...]
    out_of: tuple[tuple[str, ...], ...] = ()
    explained: str = ""


TROUBLES = {
    "wrong type": Trouble(GET, (is_wrong_type,), (("LPUSH", "key", "x"),), (("DEL", "key"),)),
    "out of memory": Trouble(
        SET,
        (is_not_now, is_passing),
        (("CONFIG", "SET", "maxmemory", "1"),),
        (("CONFIG", "SET", "maxmemory", "0"),),
        "out of memory",
    ),
    "too few replicas": Trouble(
        SET,
        (is_not_now, is_passing),
        (("CONFIG", "SET", "min-replicas-to-write", "1"),),
        (("CONFIG", "SET", "min-replicas-to-write", "0"),),
    ),
    "replica": Trouble(
        SET,
        (is_not_now, is_passing, is_demoted),
        (("REPLICAOF", "127.0.0.1", "1"),),
        (("REPLICAOF", "NO", "ONE"),),
        "is a replica",
    ),
    "not allowed": Trouble(
        GET, (), (("ACL", "SETUSER", "default", "-eval", "-evalsha"),), (("ACL", "SETUSER", "default", "+@all"),)
    ),
    "key not allowed": Trouble(
        GET,
        (),
        (("ACL", "SETUSER", "default", "resetkeys", "~other*"),),
        (("ACL", "SETUSER", "default", "allkeys"),),
    ),
}


@pytest.mark.parametrize("new_client", EVAL_CLIENTS)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_servers_error_is_understood_from_every_client(own_node: Node, new_client: Callable[[str], Any], trouble: str) -> None:
    expected = TROUBLES[trouble]
    with closing(new_client(own_node.endpoint)) as client:
        for words in expected.into:
            own_node.says(*words)
        with pytest.raises(Exception) as met:
            evaluated(client, expected.script, "key")
        for words in expected.out_of:
            own_node.says(*words)

    assert tuple(each for each in PREDICATES if each(met.value)) == expected.is_
    assert expected.explained in explanation(met.value)


@pytest.mark.parametrize("new_client", EVAL_CLIENTS)
def test_a_server_that_has_ended_gives_no_answer(valkey_server: str, new_client: Callable[[str], Any]) -> None:
    with node() as made, closing(new_client(made.endpoint)) as client:
        evaluated(client, GET, "key")
        made.kill()

        with pytest.raises(Exception) as met:
            evaluated(client, GET, "key")

    assert is_unanswered(met.value)
    assert is_passing(met.value)
    assert not is_not_now(met.value)


def test_a_value_of_another_type_is_no_record_to_any_client(valkey_server: str) -> None:
    with closing(redis.Redis.from_url(valkey_server)) as client, closing(LeastClient(valkey_server)) as least:
        client.delete("list")
        client.lpush("list", "x")
        for each in (client, least):
            with pytest.raises(IdempotencyPersistenceLayerError) as failed:
                CachePersistenceLayer(client=each).fetch("list")

            assert isinstance(failed.value.__cause__, IdempotencyPersistenceConsistencyError)


# Secrecy


def everything_said(error: BaseException) -> str:
    """All that a reader of the error may see: its text, its parts, its notes, and those of what led to it."""
    said = ["".join(traceback.format_exception(error))]
    pending, seen = [error], set()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        said += [str(each), repr(each), repr(each.args), repr(getattr(each, "__notes__", [])), repr(vars(each))]
        pending += [one for one in (each.__cause__, each.__context__) if one is not None]
    return "\n".join(said)


def test_the_store_shows_neither_password_nor_results(guarded: Node, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = sync_store(clock, host="127.0.0.1", port=guarded.port, ssl=False, password=PASSWORD)
    awaited_store = AsyncCachePersistenceLayer(url=f"redis://:{QUOTED}@127.0.0.1:{guarded.port}")
    secrets = [PASSWORD, QUOTED, "the-payload", "the-result"]
    with closing(store.client):
        verbs = Verbs(store, clock)
        granted = verbs.claim(verbs.offer("secret", "a", payload_hash="the-payload"))
        verbs.complete(verbs.completed(granted, '"the-result"'))

        shown = [repr(store), str(store), repr(awaited_store), repr(store._connection), str(awaited_store._connection)]
        with pytest.raises(IdempotencyLeaseLostError) as lost:
            verbs.release(granted.replace(owner_token="b"))
        shown += [str(lost.value), repr(lost.value), caplog.text]

    assert [secret for secret in secrets for text in shown if secret in text] == []


def test_an_error_of_a_store_shows_neither_password_nor_results(own_node: Node, clock: FakeClock) -> None:
    """A server that does not know a command repeats its arguments."""
    store = sync_store(clock, url=own_node.endpoint)
    with closing(store.client) as client:
        verbs = Verbs(store, clock)
        granted = verbs.claim(verbs.offer("unknown", "a"))
        record = verbs.completed(granted, '"the-result"')
        with pytest.raises(IdempotencyPersistenceLayerError) as failed:
            sync_store(clock, client=Misspelt(client)).complete(record)

    assert "unknown command" in str(failed.value)
    assert "the-result" not in "".join(traceback.format_exception(failed.value))


class Misspelt:
    """A client of a server that knows no scripts."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, name: str) -> Any:
        return self._client.get(name)

    def set(self, *args: Any, **options: Any) -> Any:
        return self._client.set(*args, **options)

    def delete(self, name: str) -> Any:
        return self._client.delete(name)

    def evalsha(self, *args: Any) -> Any:
        return self._client.execute_command("EVALSHAX", *reversed(args))  # the server repeats only the first of them

    eval = evalsha
