"""The DynamoDB client: whose it is, when it is made, and how it may be replaced."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from unittest.mock import MagicMock, patch

import boto3
import pytest
from behaviour.kit import Work
from botocore.config import Config
from botocore.validate import ParamValidationDecorator

from idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
    make_idempotent,
)
from persistence import dynamodb
from persistence.lean import LeanClient


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture
def lambda_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the lean client needs, from the environment alone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/nonexistent")


def config_of(client: Any) -> Any:
    return client.meta.config


def test_a_client_made_here_suits_lambda() -> None:
    """The SDK's own 60 s and four attempts would outlive the invocation."""
    config = config_of(DynamoDBPersistenceLayer("table").client)

    assert (config.connect_timeout, config.read_timeout) == (1, 2)
    assert config.retries["total_max_attempts"] == 1
    assert config.max_pool_connections >= 40
    assert "lambda-idempotency" in config.user_agent


def test_a_client_made_here_spares_what_costs_and_the_users_boto_config_may_have_it_back() -> None:
    """Our requests are of one shape; the user agent is a fixed text that still says who is calling."""
    sparing = DynamoDBPersistenceLayer("table").client
    validating = DynamoDBPersistenceLayer("table", boto_config=Config(parameter_validation=True)).client

    assert not isinstance(sparing._serializer, ParamValidationDecorator)
    assert isinstance(validating._serializer, ParamValidationDecorator)
    assert config_of(sparing).user_agent.startswith("Botocore/")


def test_without_boto3_in_the_process_the_client_comes_from_botocore_one_session_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "boto3")
    dynamodb._botocore_session.cache_clear()

    clients = [DynamoDBPersistenceLayer("table").client for _ in range(2)]

    assert "boto3" not in sys.modules
    assert [client.meta.region_name for client in clients] == ["eu-west-1"] * 2
    assert dynamodb._botocore_session.cache_info().misses == 1


def test_where_botocores_clients_were_never_imported_a_client_cannot_be_one_and_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "botocore.client")
    mine = MagicMock()

    assert make_idempotent(lambda event: event, persistence_store=DynamoDBPersistenceLayer("table", boto3_client=mine))(7) == 7
    assert mine.meta.events.register_first.call_count == 0


@pytest.mark.parametrize("options", [{"boto_config": Config(read_timeout=7)}, {"boto3_session": boto3.Session()}])
def test_settings_of_boto3_are_refused_beside_the_lean_client(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="^boto_config and boto3_session are for a client of boto3's, and client='lean' is none$"
    ):
        DynamoDBPersistenceLayer("table", client="lean", **options)


def test_a_client_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="^client must be 'boto3' or 'lean', not 'aiobotocore'; a client of your own is boto3_client$"
    ):
        DynamoDBPersistenceLayer("table", client="aiobotocore")  # type: ignore[arg-type]


def test_the_lean_client_is_made_with_the_stores_timeouts_and_not_where_a_client_is_given(lambda_keys: None) -> None:
    given = MagicMock()

    made = DynamoDBPersistenceLayer("table", client="lean").client

    assert isinstance(made, LeanClient)
    assert (made._pool._connect_timeout, made._pool._read_timeout) == (1, 2)
    assert DynamoDBPersistenceLayer("table", client="lean", boto3_client=given).client is given


def test_what_the_lean_client_cannot_do_is_refused_before_the_function_runs(
    lambda_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    work = Work()
    safe = make_idempotent(work, persistence_store=DynamoDBPersistenceLayer("table", client="lean"))

    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        safe(7)

    assert isinstance(caught.value.__cause__, IdempotencyPersistenceConfigError)
    assert 'choose client="boto3"' in str(caught.value)
    assert work.runs == []


def test_the_users_boto_config_is_merged_over_the_stores_own() -> None:
    mine = Config(read_timeout=7, user_agent_extra="mine", region_name="us-east-2")
    config = config_of(DynamoDBPersistenceLayer("table", boto_config=mine).client)

    assert (config.read_timeout, config.connect_timeout, config.region_name) == (7, 1, "us-east-2")
    assert config.retries["total_max_attempts"] == 1
    assert "mine" in config.user_agent


def test_the_users_boto_config_does_not_hide_the_librarys_name() -> None:
    """AWS Support, and the user's own CloudTrail, should see who is calling."""
    config = config_of(DynamoDBPersistenceLayer("table", boto_config=Config(user_agent_extra="mine")).client)

    assert "lambda-idempotency" in config.user_agent


def test_the_users_boto_config_is_left_as_it_was() -> None:
    mine = Config(read_timeout=7)
    _ = DynamoDBPersistenceLayer("table", boto_config=mine).client

    assert mine._user_provided_options == {"read_timeout": 7}


def test_a_client_made_here_comes_from_the_default_session() -> None:
    boto3.setup_default_session(region_name="ap-south-1")
    session = boto3.DEFAULT_SESSION

    assert config_of(DynamoDBPersistenceLayer("table").client).region_name == "ap-south-1"
    assert boto3.DEFAULT_SESSION is session


def test_a_given_session_makes_the_client() -> None:
    session = boto3.Session(region_name="ca-central-1")

    assert config_of(DynamoDBPersistenceLayer("table", boto3_session=session).client).region_name == "ca-central-1"
    assert boto3.DEFAULT_SESSION is None


def test_a_given_client_is_used_as_it_is() -> None:
    client = boto3.client("dynamodb", config=Config(read_timeout=9))
    before = dict(vars(config_of(client)))
    ignored: Any = {"boto_config": Config(read_timeout=1), "boto3_session": boto3.Session()}
    store = DynamoDBPersistenceLayer("table", boto3_client=client, **ignored)

    assert store.client is client
    assert vars(config_of(client)) == before


def test_a_given_client_that_is_false_is_still_given() -> None:
    """Presence is `is not None`: a mock of a client may well be empty."""
    client: Any = MagicMock(__bool__=lambda self: False, __len__=lambda self: 0)

    assert DynamoDBPersistenceLayer("table", boto3_client=client).client is client


def test_a_mock_client_will_do_for_a_first_call() -> None:
    """The way that Powertools documents for unit tests."""
    client, work = MagicMock(), Work(result=1)
    safe = make_idempotent(work, persistence_store=DynamoDBPersistenceLayer("table", boto3_client=client))

    assert safe(7) == 1
    assert [call[0] for call in client.method_calls] == ["put_item", "update_item"]
    assert {call.kwargs["TableName"] for call in client.method_calls} == {"table"}


def test_the_client_may_be_replaced_before_its_first_use() -> None:
    store, client = DynamoDBPersistenceLayer("table"), MagicMock()
    store.client = client
    make_idempotent(Work(), persistence_store=store)(7)

    assert client.put_item.call_count == 1
    assert boto3.DEFAULT_SESSION is None


def test_the_client_and_the_table_may_be_replaced_after_their_first_use() -> None:
    first, second = MagicMock(), MagicMock()
    store = DynamoDBPersistenceLayer("table", boto3_client=first)
    safe = make_idempotent(Work(), persistence_store=store)
    safe(7)
    store.client, store.table_name = second, "another"
    safe(8)

    assert (first.put_item.call_count, second.put_item.call_count) == (1, 1)
    assert second.put_item.call_args.kwargs["TableName"] == "another"


@pytest.mark.parametrize("is_used_before", [False, True])
def test_the_client_may_be_patched_and_comes_back(is_used_before: bool) -> None:
    store = DynamoDBPersistenceLayer("table")
    before = store.client if is_used_before else None
    safe = make_idempotent(Work(), persistence_store=store)

    with patch.object(store, "client", MagicMock()) as client:
        safe(7)

    assert client.put_item.call_count == 1
    assert not isinstance(store.client, MagicMock)
    if is_used_before:
        assert store.client is before


def test_one_method_of_the_client_may_be_patched() -> None:
    store = DynamoDBPersistenceLayer("table")

    with patch.object(store.client, "put_item") as put_item, patch.object(store.client, "update_item"):
        make_idempotent(Work(), persistence_store=store)(7)

    assert put_item.call_count == 1


def test_threads_that_use_the_client_first_get_one_client() -> None:
    store, all_ready = DynamoDBPersistenceLayer("table"), Barrier(8, timeout=30)

    def client(_: int) -> Any:
        all_ready.wait()
        return store.client

    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(client, range(8)))

    assert all(each is clients[0] for each in clients)


def test_a_thread_that_waited_while_another_made_the_client_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    store, made_meanwhile = DynamoDBPersistenceLayer("table"), MagicMock()

    class Held:
        def __enter__(self) -> None:
            store.client = made_meanwhile

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("persistence.dynamodb._client_lock", Held())

    assert store.client is made_meanwhile


def test_stores_whose_clients_are_made_at_once_do_not_disturb_each_other() -> None:
    """boto3's default session is not safe to make clients from in several threads."""
    stores, all_ready = [DynamoDBPersistenceLayer("table") for _ in range(8)], Barrier(8, timeout=30)

    def client(store: DynamoDBPersistenceLayer) -> Any:
        all_ready.wait()
        return store.client

    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(client, stores))

    assert len({id(each) for each in clients}) == 8
    assert {config_of(each).region_name for each in clients} == {"eu-west-1"}


def test_without_a_region_the_first_use_fails_before_the_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    work = Work()
    safe = make_idempotent(work, persistence_store=DynamoDBPersistenceLayer("table"))

    with pytest.raises(Exception, match="region"):
        safe(7)

    assert work.runs == []


def test_inside_lambda_the_client_is_made_with_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "payments")

    assert "client" in vars(DynamoDBPersistenceLayer("table"))


def test_a_thread_that_comes_second_gets_the_first_ones_client() -> None:
    """From Python 3.12 on, `cached_property` has no lock of its own: the second thread finds the client made."""
    store = DynamoDBPersistenceLayer("table")
    first = store.client

    assert type(store).__dict__["client"].func(store) is first
