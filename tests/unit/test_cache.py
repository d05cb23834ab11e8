"""What a cache store decides before anything is sent."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from persistence.cache import AsyncCachePersistenceLayer, CachePersistenceLayer
from persistence.exceptions import IdempotencyPersistenceConfigError
from persistence.redis import RedisCachePersistenceLayer

NAMES = [name for name in inspect.signature(CachePersistenceLayer).parameters if name.endswith("_attr")]


class Client:
    """The least that a client may have."""

    def get(self, name: str) -> None:
        raise AssertionError("sent")

    def set(self, name: str, value: str, ex: int | None = None, nx: bool = False) -> None:
        raise AssertionError("sent")

    def delete(self, name: str) -> None:
        raise AssertionError("sent")


class AwaitedClient:
    async def get(self, name: str) -> None:
        raise AssertionError("sent")

    async def set(self, name: str, value: str, ex: int | None = None, nx: bool = False) -> None:
        raise AssertionError("sent")

    async def delete(self, name: str) -> None:
        raise AssertionError("sent")


STORES = [(CachePersistenceLayer, Client), (AsyncCachePersistenceLayer, AwaitedClient)]
each_store = pytest.mark.parametrize(("store_class", "client_class"), STORES, ids=["sync", "async"])


@each_store
def test_a_client_that_is_given_is_used_and_nothing_is_sent(store_class: Any, client_class: Any) -> None:
    client = client_class()

    assert store_class(client=client).client is client


@each_store
def test_a_store_supports_leases(store_class: Any, client_class: Any) -> None:
    assert store_class(client=client_class()).supports_leases


@each_store
@pytest.mark.parametrize("name", NAMES)
def test_two_attributes_of_one_name_are_refused(store_class: Any, client_class: Any, name: str) -> None:
    other = "data" if name != "data_attr" else "status"

    with pytest.raises(ValueError, match=f"Each attribute needs a name of its own: .*'{other}'.*'{other}'"):
        store_class(client=client_class(), **{name: other})


@each_store
@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_without_a_name_is_refused(store_class: Any, client_class: Any, name: str) -> None:
    with pytest.raises(ValueError, match="Each attribute needs a name of its own"):
        store_class(client=client_class(), **{name: ""})


@each_store
@pytest.mark.parametrize("replicas", [-1, 0.5, "1", None], ids=repr)
def test_what_is_no_number_of_replicas_is_refused(store_class: Any, client_class: Any, replicas: Any) -> None:
    with pytest.raises(ValueError, match="^min_replicas_ack must be a number of replicas, not "):
        store_class(client=client_class(), min_replicas_ack=replicas)


@each_store
def test_a_client_of_the_other_kind_is_refused_and_the_fitting_store_named(store_class: Any, client_class: Any) -> None:
    ((other_class, other_client),) = [each for each in STORES if each[0] is not store_class]
    sentence = f"^{store_class.__name__} cannot use this client; {other_class.__name__} can$"

    with pytest.raises(IdempotencyPersistenceConfigError, match=sentence):
        store_class(client=other_client())


@each_store
def test_a_client_of_the_other_kind_does_not_replace_the_one_in_use(store_class: Any, client_class: Any) -> None:
    ((_, other_client),) = [each for each in STORES if each[0] is not store_class]
    client = client_class()
    store = store_class(client=client)

    with pytest.raises(IdempotencyPersistenceConfigError):
        store.client = other_client()

    assert store.client is client


@each_store
def test_a_store_needs_an_address_or_a_client(store_class: Any, client_class: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^A cache store needs a url, a host, or a client$"):
        store_class()


@each_store
def test_a_store_has_no_transactions(store_class: Any, client_class: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match=f"^{store_class.__name__} has no transactions"):
        store_class(client=client_class()).begin("key")


def test_the_sync_and_the_awaited_store_and_the_older_name_take_the_same() -> None:
    signatures = {
        str(inspect.signature(each)) for each in (CachePersistenceLayer, AsyncCachePersistenceLayer, RedisCachePersistenceLayer)
    }

    assert len(signatures) == 1


def test_a_client_of_the_users_own_that_cannot_be_closed_is_left_as_it_is() -> None:
    store = AsyncCachePersistenceLayer(client=AwaitedClient())

    assert asyncio.run(store.aclose()) is None
