"""Home Regions: a key is always served by one Region's replica, so no two Regions can claim it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from doubles import START_MS, FakeClock, LambdaContext
from engines.tables import shared_client
from faults import KEY, ORDER, FaultyClient, Form, keyed, lost, raise_boom, raise_suspended, read_timeout, refused
from replication.replicas import HERE, THERE, GlobalTable

from idempotency import DynamoDBPersistenceLayer, IdempotencyLeaseLostError, IdempotencyPersistenceLayerError
from idempotency.events import LeaseLost, ReplicationConflict
from persistence.datarecord import DataRecord
from persistence.exceptions import IdempotencyItemAlreadyExistsError
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable

#: Chosen so that both Regions are the home of one of them.
KEYS = {HERE: "job#2", THERE: "job#3"}
BOTH = (HERE, THERE)


def homed(table: GlobalTable, region: str, home_region: Any, **options: Any) -> DynamoDBPersistenceLayer:
    """The store of the function in *region*, with a client for each Region."""
    return table.store(region, home_region=home_region, region_clients=table.replicas, **options)


def call(form: Form, store: DynamoDBPersistenceLayer, clock: FakeClock, work: Callable[[], Any], **options: Any) -> Any:
    return form.handler(lambda _event: work(), store, keyed(**options))(ORDER, LambdaContext(clock=clock))


# Prevented


HOMES: list[Any] = [HERE, THERE, [HERE, THERE], (THERE, HERE), lambda _key: THERE]


@pytest.mark.parametrize("home", HOMES, ids=["first", "second", "shared", "shared, in another order", "function"])
def test_of_two_regions_one_runs_and_the_other_replays_without_any_replication(
    table: GlobalTable, form: Form, clock: FakeClock, home: Any
) -> None:
    runs: list[str] = []
    stores = {region: homed(table, region, home) for region in BOTH}

    results = [
        call(form, store, clock, lambda region=region: runs.append(region) or "receipt") for region, store in stores.items()
    ]

    assert runs == [HERE]
    assert results == ["receipt", "receipt"]


def test_a_call_that_runs_in_one_region_refuses_the_same_in_the_other(table: GlobalTable, form: Form, clock: FakeClock) -> None:
    def work() -> str:
        with pytest.raises(Exception, match="Execution already in progress"):
            call(form, homed(table, THERE, BOTH), clock, raise_boom)
        return "receipt"

    assert call(form, homed(table, HERE, BOTH), clock, work) == "receipt"


def test_a_key_that_fails_in_one_region_is_free_in_the_other_at_once(table: GlobalTable, form: Form, clock: FakeClock) -> None:
    with pytest.raises(OSError, match="boom"):
        call(form, homed(table, HERE, BOTH), clock, raise_boom)

    assert call(form, homed(table, THERE, BOTH), clock, lambda: "receipt") == "receipt"


def test_an_orphan_is_taken_over_from_the_other_region_and_that_is_no_replication_conflict(
    table: GlobalTable, form: Form, clock: FakeClock
) -> None:
    events: list[Any] = []

    def late() -> str:
        clock.advance(ms=31_001)
        assert call(form, homed(table, THERE, BOTH), clock, lambda: "second") == "second"
        return "first"

    assert call(form, homed(table, HERE, BOTH), clock, late, observers=[events.append]) == "second"
    assert [event for event in events if isinstance(event, LeaseLost)]
    assert [event for event in events if isinstance(event, ReplicationConflict)] == []


def test_the_record_carries_its_home_region_wherever_the_function_runs(table: GlobalTable, form: Form, clock: FakeClock) -> None:
    call(form, homed(table, HERE, THERE), clock, lambda: "receipt")
    item = table.peek(THERE, KEY)

    assert item is not None
    assert item["region"] == THERE
    assert table.peek(HERE, KEY) is None


# Every operation goes to the home Region


def offer(key: str, token: str = "a", lease_end_ms: int = START_MS + 60_000) -> DataRecord:
    return DataRecord(key, "INPROGRESS", START_MS // 1000 + 3600, lease_end_ms, owner_token=token, generation=1, holder="h")


def completed(granted: DataRecord) -> DataRecord:
    return granted.replace(status="COMPLETED", response_data='"done"')


def claims(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.claim(offer(key))


def is_refused(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.claim(offer(key))
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        store.claim(offer(key, "b"))


def takes_over(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.claim(offer(key, lease_end_ms=START_MS - 1))
    assert store.claim(offer(key, "b")).took_over


def fetches(store: DynamoDBPersistenceLayer, key: str) -> None:
    assert store.fetch(key) is None


def completes(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.complete(completed(store.claim(offer(key))))


def restores(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.complete(completed(offer(key)))


def releases(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.release(store.claim(offer(key)))


def renews(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.renew(store.claim(offer(key)))


def reads_first(store: DynamoDBPersistenceLayer, key: str) -> None:
    store.read_first = True
    store.claim(offer(key))


OPERATIONS: list[tuple[Callable[[DynamoDBPersistenceLayer, str], None], list[str]]] = [
    (claims, ["put_item"]),
    (is_refused, ["put_item", "put_item"]),
    (takes_over, ["put_item", "put_item", "put_item"]),
    (fetches, ["get_item"]),
    (completes, ["put_item", "update_item"]),
    (restores, ["update_item", "put_item"]),
    (releases, ["put_item", "delete_item"]),
    (renews, ["put_item", "update_item"]),
    (reads_first, ["get_item", "put_item"]),
]


@pytest.mark.parametrize("own", BOTH)
@pytest.mark.parametrize("home", BOTH)
@pytest.mark.parametrize(("operate", "requests"), OPERATIONS, ids=[operate.__name__ for operate, _ in OPERATIONS])
def test_every_operation_goes_to_the_keys_home_region_and_nothing_elsewhere(
    table: GlobalTable,
    operate: Callable[[DynamoDBPersistenceLayer, str], None],
    requests: list[str],
    home: str,
    own: str,
) -> None:
    operate(homed(table, own, BOTH), KEYS[home])

    elsewhere = THERE if home == HERE else HERE
    assert table.replicas[home].operations == requests
    assert table.replicas[elsewhere].operations == []


@pytest.mark.parametrize("home", BOTH)
def test_the_read_that_settles_a_lost_completion_goes_to_the_home_region(table: GlobalTable, home: str) -> None:
    clients = {region: FaultyClient(replica) for region, replica in table.replicas.items()}
    store = table.store(HERE, home_region=BOTH, region_clients=clients)
    granted = store.claim(offer(KEYS[home]))
    clients[home].always("update_item", lost(read_timeout()))

    store.complete(completed(granted))

    elsewhere = THERE if home == HERE else HERE
    assert clients[home].count("get_item") == 1
    assert clients[elsewhere].requests == []


def test_a_late_copy_of_the_claim_is_completed_in_the_home_region(table: GlobalTable) -> None:
    """The claim seems gone at the completion, and is there when the record is to be restored."""
    store = homed(table, HERE, THERE)
    claim = offer("job#1")
    table.replicas[THERE].before["put_item"] = lambda: table.replicas[THERE].direct.put_item(
        TableName=table.name, Item=store._items.item(claim)
    )

    store.complete(completed(claim))

    assert table.replicas[THERE].operations == ["update_item", "put_item", "update_item"]
    assert table.replicas[HERE].operations == []


def test_a_fenced_completion_shows_the_record_of_the_home_region(table: GlobalTable) -> None:
    store = homed(table, HERE, THERE)
    store.claim(offer("job#1", "theirs"))
    with pytest.raises(IdempotencyLeaseLostError) as fenced:
        store.complete(completed(offer("job#1", "ours")))

    assert fenced.value.record is not None
    assert (fenced.value.record.owner_token, fenced.value.record.region) == ("theirs", THERE)


# The function that says where


def test_a_function_is_asked_with_the_key_and_its_answer_decides(table: GlobalTable, form: Form, clock: FakeClock) -> None:
    asked: set[str] = set()

    def home_of(key: str) -> str:
        asked.add(key)
        return THERE

    call(form, homed(table, HERE, home_of), clock, lambda: "receipt")

    assert asked == {KEY}
    assert table.replicas[HERE].requests == []


def no_region(answer: object) -> Callable[[str], Any]:
    return lambda _key: answer


def raising(_key: str) -> str:
    raise LookupError("no Region for this tenant")


@pytest.mark.parametrize(
    ("home_of", "text"),
    [
        (raising, "no Region for this tenant"),
        (no_region(None), "home_region must return the name of a Region, not None"),
        (no_region(""), "home_region must return the name of a Region, not ''"),
        (no_region(["eu-west-1"]), "home_region must return the name of a Region, not"),
    ],
    ids=["raises", "None", "empty", "list"],
)
@pytest.mark.parametrize("read_first", [False, True])
def test_a_function_that_gives_no_region_is_an_error_before_anything_runs_or_is_sent(
    table: GlobalTable, form: Form, clock: FakeClock, home_of: Any, text: str, read_first: bool
) -> None:
    """Above all, the key is not served where the call happens to run."""
    runs: list[int] = []
    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        call(form, homed(table, HERE, home_of, read_first=read_first), clock, lambda: runs.append(1))

    assert str(failed.value).startswith("Failed to save in progress record to idempotency store")
    assert text in str(failed.value)
    assert f"Idempotency key: {KEY}. The function was not run; " in str(failed.value)
    assert runs == []
    assert [replica.requests for replica in table.replicas.values()] == [[], []]


# Clients


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, dynamodb_local: str) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", HERE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb_local)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.mark.usefixtures("sdk")
def test_clients_that_are_not_given_are_made_for_their_region_once_with_the_stores_settings(table: GlobalTable) -> None:
    store = DynamoDBPersistenceLayer(
        table.name,
        replication="eventual",
        home_region=BOTH,
        boto_config=Config(read_timeout=7, user_agent_extra="payments", region_name="ap-southeast-2"),
    )
    assert store._region_clients == {}

    for key in KEYS.values():
        store.fetch(key)
    made = dict(store._region_clients)
    for key in KEYS.values():
        store.fetch(key)

    assert {region: client.meta.region_name for region, client in made.items()} == {HERE: HERE, THERE: THERE}
    assert all(store._region_clients[region] is client for region, client in made.items())
    for client in made.values():
        config = client.meta.config
        assert (config.connect_timeout, config.read_timeout) == (1, 7)
        assert config.retries["total_max_attempts"] == 1
        assert "payments lambda-idempotency" in config.user_agent


@pytest.mark.usefixtures("sdk")
def test_lean_clients_are_made_for_their_region_once_too(table: GlobalTable) -> None:
    store = DynamoDBPersistenceLayer(table.name, replication="eventual", home_region=BOTH, client="lean")
    for _ in range(2):
        for key in KEYS.values():
            store.fetch(key)

    clients = dict(store._region_clients)
    assert {region: client.meta.region_name for region, client in clients.items()} == {HERE: HERE, THERE: THERE}
    assert all(isinstance(client, LeanClient) and len(client._pool._idle) == 1 for client in clients.values())
    for client in clients.values():
        client.close()


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("is_given", [True, False], ids=["given", "made by the store"])
def test_a_home_regions_client_leaves_the_retrying_to_the_store(
    table: GlobalTable, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch, is_given: bool
) -> None:
    """The SDK knows no deadline."""
    prepared: list[object] = []
    monkeypatch.setattr("persistence.dynamodb._prepare", prepared.append)
    client = shared_client(dynamodb_local, THERE)
    store = table.store(HERE, home_region=THERE, region_clients={THERE: client} if is_given else None)

    store.fetch("job#1")

    assert store._region_clients[THERE] in prepared
    assert (store._region_clients[THERE] is client) is is_given


@pytest.mark.usefixtures("sdk")
def test_a_client_for_an_unforeseen_region_is_made_when_a_key_needs_it(table: GlobalTable, dynamodb_local: str) -> None:
    session = boto3.Session(region_name="ap-southeast-2")
    store = table.store(HERE, home_region=lambda _key: "ca-central-1", boto3_session=session)
    with pytest.raises(IdempotencyPersistenceLayerError, match="ResourceNotFoundException"):
        store.fetch("job#1")  # that Region has no replica

    assert store._region_clients["ca-central-1"].meta.region_name == "ca-central-1"
    assert table.replicas[HERE].requests == []


@pytest.mark.usefixtures("sdk")
def test_of_two_threads_that_need_a_regions_client_at_once_one_makes_it(
    table: GlobalTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one comes while the first holds the lock: seen from inside, the client is there already."""
    store = table.store(HERE, home_region=THERE)
    theirs = table.replicas[THERE]

    class Lock:
        def __enter__(self) -> None:
            store._region_clients[THERE] = theirs

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("persistence.dynamodb._client_lock", Lock())
    store.fetch("job#1")

    assert store._region_clients[THERE] is theirs
    assert theirs.operations == ["get_item"]


def test_a_given_client_serves_its_own_region_and_the_mapping_the_others(table: GlobalTable) -> None:
    store = table.store(HERE, home_region=BOTH, region_clients={THERE: table.replicas[THERE]})

    for key in KEYS.values():
        store.fetch(key)

    assert [table.replicas[region].operations for region in BOTH] == [["get_item"], ["get_item"]]
    assert store._region_clients == {THERE: table.replicas[THERE]}


def test_the_mapping_comes_before_the_given_client(table: GlobalTable) -> None:
    mapped = FaultyClient(table.replicas[HERE])
    store = table.store(HERE, home_region=HERE, region_clients={HERE: mapped})

    store.fetch("job#1")

    assert mapped.count("get_item") == 1


def test_the_mapping_stays_the_users(table: GlobalTable, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping: dict[str, Any] = {}
    store = table.store(HERE, home_region=THERE, region_clients=mapping)
    monkeypatch.setattr(store, "_new_client", lambda region: table.replicas[region])
    store.fetch("job#1")

    assert mapping == {}


def test_with_home_regions_no_client_is_made_in_lambdas_init_because_none_may_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "fn")
    monkeypatch.setenv("AWS_DEFAULT_REGION", HERE)

    store = DynamoDBPersistenceLayer("t", replication="eventual", home_region=THERE)

    assert "client" not in vars(store)
    assert store._region_clients == {}


def test_a_home_region_that_does_not_answer_is_an_error_and_never_served_elsewhere(
    table: GlobalTable, form: Form, clock: FakeClock
) -> None:
    """Serving the key from another Region would be the very anomaly."""
    down = FaultyClient(table.replicas[THERE])
    down.always("put_item", refused(read_timeout()))
    store = table.store(HERE, home_region=THERE, region_clients={THERE: down})
    with pytest.raises(IdempotencyPersistenceLayerError):
        call(form, store, clock, raise_suspended)

    assert table.replicas[HERE].requests == []


# Options that contradict each other


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"replication": "MREC"}, "replication must be 'eventual', 'strong' or None, not 'MREC'"),
        ({"replication": ""}, "replication must be 'eventual', 'strong' or None, not ''"),
        ({"home_region": HERE}, "home_region is for replication='eventual'"),
        ({"replication": "strong", "home_region": HERE}, "home_region is for replication='eventual'"),
        ({"replication": "eventual", "home_region": ""}, "home_region must name Regions, not ''"),
        ({"replication": "eventual", "home_region": []}, "home_region must name Regions, not []"),
        ({"replication": "eventual", "home_region": [HERE, ""]}, "home_region must name Regions, not"),
        ({"replication": "eventual", "home_region": [HERE, None]}, "home_region must name Regions, not"),
        (
            {"table_name": "arn:aws:dynamodb:us-east-1:1:table/t", "replication": "eventual", "home_region": HERE},
            "home_region needs the table's name; arn:aws:dynamodb:us-east-1:1:table/t is an ARN, which names one Region",
        ),
        ({"region_clients": {}}, "region_clients is for home_region"),
        ({"replication": "eventual", "region_clients": {}}, "region_clients is for home_region"),
        ({"region_attr": ""}, "region_attr must be an attribute's name, not ''"),
        ({"region_attr": "status"}, "status_attr and region_attr cannot both be [status]"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_at_construction(options: Any, text: str) -> None:
    with pytest.raises(ValueError) as refused_options:
        DynamoDBPersistenceLayer(**{"table_name": "t", **options})

    assert text in str(refused_options.value)
