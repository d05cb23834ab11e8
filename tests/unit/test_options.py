"""Options of the stores and of what belongs to them: refused when they are given; and shown under their names."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, MagicMock

import boto3
import botocore.session
import pytest
import redis
import redis.exceptions
from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer as TheirTable
from aws_lambda_powertools.utilities.idempotency.persistence.cache import CachePersistenceLayer as TheirCache
from botocore.config import Config
from doubles import Shelf

from idempotency import (
    AsyncCachePersistenceLayer,
    CachePersistenceLayer,
    CustomDictSerializer,
    DataRecord,
    DynamoDBPersistenceLayer,
    IdempotencyPersistenceConfigError,
    InMemoryPersistenceLayer,
    S3ResultOffload,
    copy_records,
    sweep_expired,
)
from persistence import _cache_clients
from persistence._cache_clients import CacheConnection, UnconnectedPort
from persistence._procedures import run

SESSION = boto3.session.Session(region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
TABLE_CLIENT = SESSION.client("dynamodb")
S3_CLIENT = SESSION.client("s3")
RESOURCE = SESSION.resource("dynamodb")


async def awaited(*_: object) -> None:
    """What is not run by who calls it."""


class Double:
    """A client of a test, with the methods that it needs."""

    def put_item(self) -> None: ...


class AwaitedClient:
    """A client like those of aiobotocore."""

    async def put_item(self) -> None: ...
    async def put_object(self) -> None: ...


# DynamoDB

NO_CLIENTS = [
    (RESOURCE, "a boto3 resource: pass the resource's meta.client"),
    (RESOURCE.Table("t"), "a boto3 resource: pass the resource's meta.client"),
    (S3_CLIENT, "a S3, which has no put_item and no get_item and no update_item and no delete_item"),
    (SESSION, "a session: pass it as boto3_session"),
    (botocore.session.get_session(), "a session: pass it as boto3_session"),
    ("dynamodb", "a str, which has no put_item"),
    (boto3.session.Session, "the class Session: create an object of it"),
    (Double, "the class Double: create an object of it"),
]


@pytest.mark.parametrize(("client", "said"), NO_CLIENTS, ids=[said for _, said in NO_CLIENTS])
def test_what_is_not_a_client_for_dynamodb_is_refused_when_it_is_given(client: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        DynamoDBPersistenceLayer("t", boto3_client=client)
    assert str(refused.value).startswith(f"boto3_client must be a boto3 client for DynamoDB, not {said}")

    with pytest.raises(TypeError, match="^the client of eu-central-1 must be a boto3 client for DynamoDB, not "):
        DynamoDBPersistenceLayer("t", replication="eventual", home_region="eu-central-1", region_clients={"eu-central-1": client})


@pytest.mark.parametrize(("client", "said"), NO_CLIENTS, ids=[said for _, said in NO_CLIENTS])
def test_what_is_not_a_client_is_refused_by_the_claim_if_it_is_assigned_later(client: Any, said: str) -> None:
    store = DynamoDBPersistenceLayer("t", boto3_client=MagicMock())
    store.client = client

    with pytest.raises(Exception, match="client must be a boto3 client for DynamoDB, not "):
        store.claim(DataRecord("k", "INPROGRESS", 2**31, 2**42, owner_token="a", generation=1))


@pytest.mark.parametrize("client", [AwaitedClient(), AsyncMock()])
def test_a_client_whose_methods_are_awaited_is_refused(client: Any) -> None:
    with pytest.raises(TypeError, match="that answers at once, and the methods of an? (AwaitedClient|AsyncMock) are awaited$"):
        DynamoDBPersistenceLayer("t", boto3_client=client)


@pytest.mark.parametrize("client", [TABLE_CLIENT, MagicMock(), MagicMock(spec=TABLE_CLIENT), Double(), object()])
def test_clients_mocks_and_doubles_are_accepted(client: Any) -> None:
    assert DynamoDBPersistenceLayer("t", boto3_client=client).client is client


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("static_pk_value", 7, "a text, not an int"),
        ("read_first", "yes", "True or False, not a str"),
        ("boto3_session", boto3.session.Session, "a boto3 session, not the class Session: create an object of it"),
        ("boto3_session", "profile", "a boto3 session, not a str, which has no client"),
        ("boto_config", {"retries": {}}, "a botocore.config.Config, not a dict, which has no merge"),
        ("boto_config", Config, "a botocore.config.Config, not the class Config: create an object of it"),
        ("item_size_threshold", "4096", "a whole number, not a str"),
        ("item_size_threshold", 4096.5, "a whole number, not a float"),
        ("max_result_bytes", None, "a whole number, not None"),
        ("max_result_bytes", True, "a whole number, not a bool"),
        ("result_offload", S3ResultOffload, "an object such as S3ResultOffload(...), not the class S3ResultOffload"),
        ("result_offload", S3_CLIENT, "an object such as S3ResultOffload(...), not a S3, which has no put and no get"),
        ("result_offload", "bucket", "an object such as S3ResultOffload(...), not a str, which has no put and no get"),
    ],
)
def test_an_option_of_a_table_has_its_type(option: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        DynamoDBPersistenceLayer("t", **{option: value})

    assert str(refused.value).startswith(f"{option} must be {said}")


def test_a_table_takes_what_it_took_before() -> None:
    DynamoDBPersistenceLayer("t", static_pk_value="pk", read_first=True, result_offload=Shelf(), boto3_session=SESSION)
    DynamoDBPersistenceLayer("t", boto_config=Config(), boto3_session=MagicMock())


# S3


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("boto3_client", TABLE_CLIENT, "a boto3 client for S3, not a DynamoDB, which has no put_object and no get_object"),
        ("boto3_client", SESSION.resource("s3"), "a boto3 client for S3, not a boto3 resource: pass"),
        ("boto3_client", AwaitedClient(), "a boto3 client for S3 that answers at once"),
        ("prefix", 7, "a text, not an int"),
        ("boto3_session", "profile", "a boto3 session, not a str"),
        ("boto_config", {}, "a botocore.config.Config, not a dict"),
        ("put_options", "aws:kms", "a dictionary whose keys are texts, not a str"),
        ("get_options", [("a", "b")], "a dictionary whose keys are texts, not a list"),
    ],
)
def test_an_option_of_an_offload_has_its_type(option: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        S3ResultOffload("bucket", **{option: value})

    assert str(refused.value).startswith(f"{option} must be {said}")


def test_a_client_for_s3_and_a_mock_are_accepted() -> None:
    for client in (S3_CLIENT, MagicMock()):
        assert S3ResultOffload("bucket", boto3_client=client).client is client


# Valkey and Redis


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("port", "redis", "port must be a whole number, not a str"),
        ("port", 6379.0, "port must be a whole number, not a float"),
        ("port", True, "port must be a whole number, not a bool"),
        ("port", None, "port must be a whole number, not None"),
        ("db_index", "first", "db_index must be a whole number, not a str"),
        ("db_index", None, "db_index must be a whole number, not None"),
        ("host", 7, "host must be a text, not an int"),
        ("url", 7, "url must be a text, not an int"),
        ("username", b"user", "username must be a text, not a bytes"),
        ("password", 5_550_123, "password must be a text, not an int"),
        ("ssl", "false", "ssl must be True or False, not a str"),
    ],
)
def test_an_option_of_a_cache_has_its_type_and_its_value_is_not_shown(option: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        CachePersistenceLayer(**{"host": "cache", option: value})

    assert str(refused.value) == said


@pytest.mark.parametrize(("option", "value"), [("port", 0), ("port", 65_536), ("port", -1), ("db_index", -1)])
def test_a_number_of_a_cache_has_its_bounds(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be from "):
        AsyncCachePersistenceLayer(host="cache", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("replicas", [True, "1"])
def test_a_number_of_replicas_is_not_a_flag_nor_a_text(replicas: Any) -> None:
    with pytest.raises(ValueError, match="^min_replicas_ack must be a number of replicas, not "):
        CachePersistenceLayer(host="cache", min_replicas_ack=replicas)


def test_numbers_from_the_environment_are_accepted() -> None:
    settings = CachePersistenceLayer(host="cache", port="6380", db_index="3").client.connection_pool.connection_kwargs  # type: ignore[arg-type]

    assert (settings["port"], settings["db"]) == (6380, 3)


def test_what_a_url_replaces_is_not_looked_at() -> None:
    CachePersistenceLayer(url="redis://cache", host=None, port=None, ssl=None, db_index=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("client", [redis.Redis, redis.RedisCluster])
def test_a_class_is_not_a_cache_client(client: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match=f"not the class {client.__name__}: create one of it$"):
        CachePersistenceLayer(client=client)


@pytest.mark.parametrize("mode", ["standalone", "cluster"])
@pytest.mark.parametrize("query", ["?no_such_option=1", "?ssl_cert_reqs=bogus"])
@pytest.mark.parametrize("layer", [CachePersistenceLayer, AsyncCachePersistenceLayer])
def test_options_that_a_client_does_not_take_show_when_the_store_is_made(layer: Any, query: str, mode: str) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="^The cache's client does not take these options"):
        layer(url=f"rediss://cache{query}", mode=mode)


@pytest.mark.parametrize("layer", [CachePersistenceLayer, AsyncCachePersistenceLayer])
def test_replicas_of_a_cluster_are_refused_without_the_cluster(layer: Any) -> None:
    with pytest.raises(IdempotencyPersistenceConfigError, match="not for a cluster"):
        layer(host="cache", mode="cluster", min_replicas_ack=1)


def test_a_server_that_has_no_time_for_a_clusters_client_is_not_called_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_: Any, **__: Any) -> None:
        raise redis.exceptions.BusyLoadingError("loading")

    monkeypatch.setattr(CacheConnection, "new_client", loading)
    store = CachePersistenceLayer(host="cache", mode="cluster")

    with pytest.raises(redis.exceptions.BusyLoadingError):
        _ = store.client
    store.prime()


def test_a_client_that_fails_otherwise_when_it_connects_is_a_configuration_error() -> None:
    client = MagicMock()
    client.ping.side_effect = FileNotFoundError("no such certificate")

    with pytest.raises(IdempotencyPersistenceConfigError, match="does not take these options - "):
        CachePersistenceLayer(client=client).prime()


def test_a_signals_call_within_the_first_one_uses_a_client_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not wait for the call that it interrupts."""
    made: list[Any] = []
    store = CachePersistenceLayer(host="cache", mode="cluster")

    def connect(*_: Any, **__: Any) -> Any:
        client = MagicMock(spec=redis.RedisCluster)
        if not made:
            made.append(client)
            made.append(store.client)
        return client

    monkeypatch.setattr(CacheConnection, "new_client", connect)

    assert store.client is made[1]


def test_a_port_without_connection_has_none_to_drop() -> None:
    assert run(UnconnectedPort(MagicMock()).reconnect(), MagicMock()) is None


def test_a_store_that_is_made_imports_no_asyncio_client(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    import_module = _cache_clients.import_module

    def importing(name: str) -> Any:
        names.append(name)
        return import_module(name)

    monkeypatch.setattr(_cache_clients, "import_module", importing)
    CachePersistenceLayer(host="cache")

    assert not [name for name in names if "asyncio" in name]


# The others


@pytest.mark.parametrize("max_records", [None, "100", 1.5, True])
def test_a_bound_of_the_memory_store_is_a_whole_number(max_records: Any) -> None:
    with pytest.raises(TypeError, match="^max_records must be a whole number, not "):
        InMemoryPersistenceLayer(max_records=max_records)


@pytest.mark.parametrize("clock_ms", [1_800_000_000_000, awaited])
def test_a_clock_is_called(clock_ms: Any) -> None:
    with pytest.raises(TypeError, match="^clock_ms must be a "):
        InMemoryPersistenceLayer(clock_ms=clock_ms)


@pytest.mark.parametrize("option", ["to_dict", "from_dict"])
@pytest.mark.parametrize("value", [None, "dict", awaited])
def test_a_serializer_is_made_of_functions(option: str, value: Any) -> None:
    functions = {"to_dict": vars, "from_dict": dict, option: value}

    with pytest.raises(TypeError, match=f"^{option} must be a "):
        CustomDictSerializer(**functions)


STORE = DynamoDBPersistenceLayer("t", boto3_client=TABLE_CLIENT)
OTHER = DynamoDBPersistenceLayer("u", boto3_client=TABLE_CLIENT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"store": DynamoDBPersistenceLayer}, "store must be a DynamoDBPersistenceLayer, not the class DynamoDBPersistenceLayer"),
        ({"store": TABLE_CLIENT}, "store must be a DynamoDBPersistenceLayer, not DynamoDB"),
        ({"progress": "print"}, "progress must be a function"),
        ({"progress": awaited}, "progress must be a plain function"),
        ({"resume_from": "checkpoint"}, "resume_from must be a dictionary whose keys are texts, not a str"),
    ],
)
def test_an_argument_of_a_sweep_has_its_type(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        sweep_expired(**{"store": STORE, **options})


def test_the_arguments_of_a_copy_have_their_types() -> None:
    unfit: Any = {"target": InMemoryPersistenceLayer}
    for name, said in (
        (unfit, "target must be"),
        ({"target": OTHER, "target_in_use": "no"}, "target_in_use must be True or False"),
    ):
        with pytest.raises(TypeError, match=f"^{said}"):
            copy_records(STORE, **name)
    for name in ("segments", "page_size"):
        with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, not True$"):
            copy_records(STORE, OTHER, **{name: True})


# What a store shows


def test_a_table_shows_what_powertools_layer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "fn")
    given: dict[str, Any] = {"sort_key_attr": "sk", "key_attr": "pk", "expiry_attr": "x"}
    for options in ({}, given, {**given, "static_pk_value": "all"}):
        theirs = TheirTable("t", boto3_client=TABLE_CLIENT, **options)
        ours = DynamoDBPersistenceLayer("t", boto3_client=TABLE_CLIENT, **options)
        shown = {name: value for name, value in vars(theirs).items() if name.endswith("_attr")}
        assert len(shown) == 7

        for name in (*shown, "static_pk_value", "table_name", "client"):
            assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.filterwarnings("ignore:RedisCachePersistenceLayer will be removed:DeprecationWarning")
def test_a_cache_shows_what_powertools_layer_shows() -> None:
    options = {
        "in_progress_expiry_attr": "a",
        "expiry_attr": "b",
        "status_attr": "c",
        "data_attr": "d",
        "validation_key_attr": "e",
    }
    for given in ({}, options):
        theirs = TheirCache(client=MagicMock(), **given)
        shown = {name: value for name, value in vars(theirs).items() if name.endswith("_attr")}
        assert shown.keys() == options.keys()

        for layer in (CachePersistenceLayer(client=MagicMock(), **given), AsyncCachePersistenceLayer(host="cache", **given)):
            assert {name: getattr(layer, name) for name in shown} == shown


OWN = ["owner_token_attr", "generation_attr", "holder_attr", "result_not_kept_attr"]


@pytest.mark.parametrize("name", OWN)
def test_a_store_shows_its_own_attributes_too(name: str) -> None:
    stores: list[Any] = [
        DynamoDBPersistenceLayer("t", boto3_client=TABLE_CLIENT, **{name: "other"}),
        CachePersistenceLayer(client=MagicMock(), **{name: "other"}),
    ]

    assert [getattr(store, name) for store in stores] == ["other", "other"]
    assert DynamoDBPersistenceLayer("t", boto3_client=TABLE_CLIENT, region_attr="r").region_attr == "r"


@pytest.mark.parametrize("name", ["key_attr", "sort_key_attr", "static_pk_value", "expiry_attr", "region_attr"])
def test_an_attributes_name_cannot_be_changed_without_effect(name: str) -> None:
    store = DynamoDBPersistenceLayer("t", boto3_client=TABLE_CLIENT)

    with pytest.raises(AttributeError, match=f"^{name} is fixed when the store is made: give it to the constructor of Dyn"):
        setattr(store, name, "other")


def test_a_subclass_reads_the_names_as_in_powertools() -> None:
    class Layer(DynamoDBPersistenceLayer):
        def _get_record(self, idempotency_key: str) -> DataRecord:
            raise LookupError(f"{self.table_name}.{self.key_attr}={idempotency_key}")

    with pytest.raises(LookupError, match="^t.id=k$"):
        Layer("t", boto3_client=MagicMock())._get_record("k")
    assert DynamoDBPersistenceLayer.key_attr is vars(DynamoDBPersistenceLayer)["key_attr"]
