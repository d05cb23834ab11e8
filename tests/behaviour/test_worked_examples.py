"""The examples and the figures of docs/transactions.md, and README's example: they are run as they are, on DynamoDB Local."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError
from engines.repository import ROOT
from engines.tables import create_table, shared_client
from stores import dynamodb

from idempotency import IdempotencyTransactionCanceledError, apply_once, idempotent_function, transaction
from persistence._schedule import COMPLETE_RETRY_MS, RESERVE_MS
from persistence.changes import APPLY_RETRY_MS, MAX_CHANGES, MAX_ID_BYTES, MOST_CHANGES
from persistence.dynamodb import COMMIT_RESERVE_MS
from persistence.transaction import MAX_ACTIONS, MAX_BYTES

if TYPE_CHECKING:
    from doubles import FakeClock

DOCUMENT = (ROOT / "docs/transactions.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = ["idempotency", "accounts", "orders", "stock", "outbox", "counters"]
#: DynamoDB Local keeps a database for each Region, and in this one the tables have the names of the examples.
REGION = "eu-central-2"


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: it reads the service's model once."""
    return boto3.Session(region_name=REGION)


class Examples(SimpleNamespace):
    """What the examples define, and a look at their tables."""

    client: Any

    def put(self, table: str, **item: Any) -> None:
        boto3.resource("dynamodb").Table(table).put_item(Item=item)

    def items(self, table: str) -> dict[str, dict[str, Any]]:
        """All items of the table, by their id."""
        return {item["id"]: item for item in boto3.resource("dynamodb").Table(table).scan(ConsistentRead=True)["Items"]}

    def balances(self) -> dict[str, int]:
        return {name: int(account["balance"]) for name, account in self.items("accounts").items()}

    def lose_the_next_answer_to_a_commit(self) -> None:
        """After it was applied."""
        events = self.store.client.meta.events

        def lose(**_: Any) -> None:
            events.unregister("after-call.dynamodb.TransactWriteItems", lose)
            raise ConnectionClosedError(endpoint_url="https://dynamodb")

        events.register("after-call.dynamodb.TransactWriteItems", lose)


@pytest.fixture
def examples(dynamodb_local: str, session: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The document's blocks, run in their order in one namespace, and its tables, which are empty."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb_local)
    client = boto3.client("dynamodb")
    for table in TABLES:
        create_table(client, table)
    names: dict[str, Any] = {"__name__": "worked_examples"}
    for block in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/transactions.md", "exec"), names)
    yield Examples(**names)
    for table in TABLES:
        client.delete_table(TableName=table)


# A transfer

TRANSFER = {"id": "t-1", "source": "alice", "target": "bob", "amount": 30}


@pytest.fixture
def accounts(examples: Examples) -> Examples:
    examples.put("accounts", id="alice", balance=100)
    examples.put("accounts", id="bob", balance=0)
    return examples


def test_a_transfer_moves_the_money_once_however_often_it_is_delivered(accounts: Examples) -> None:
    answers = [accounts.answer(TRANSFER) for _ in range(3)]

    assert answers == [{"statusCode": 201, "body": {"id": "t-1", "moved": 30}}] * 3
    assert accounts.balances() == {"alice": 70, "bob": 30}


def test_a_transfer_whose_answer_is_lost_has_moved_the_money_once(accounts: Examples) -> None:
    accounts.lose_the_next_answer_to_a_commit()

    assert [accounts.move(transfer=TRANSFER) for _ in range(2)] == [{"id": "t-1", "moved": 30}] * 2
    assert accounts.balances() == {"alice": 70, "bob": 30}


def test_a_transfer_that_lacks_funds_moves_nothing_leaves_no_record_and_succeeds_once_there_are_funds(accounts: Examples) -> None:
    large = {**TRANSFER, "amount": 101}

    assert accounts.answer(large) == {"statusCode": 409, "body": "lacks funds"}
    assert accounts.balances() == {"alice": 100, "bob": 0}
    assert accounts.items("idempotency") == {}

    accounts.put("accounts", id="alice", balance=101)
    assert accounts.answer(large)["statusCode"] == 201
    assert accounts.balances() == {"alice": 0, "bob": 101}


def test_a_transfer_to_an_account_that_does_not_exist_takes_nothing_from_its_source(accounts: Examples) -> None:
    assert accounts.answer({**TRANSFER, "target": "carol"}) == {"statusCode": 409, "body": "unknown target"}
    assert accounts.balances() == {"alice": 100, "bob": 0}


def test_a_transfer_that_is_canceled_for_another_reason_is_no_refusal_of_its_own(accounts: Examples) -> None:
    """Here an account of another type: DynamoDB refuses the request, and no condition failed."""
    accounts.put("accounts", id="bob", balance="rich")

    with pytest.raises(IdempotencyTransactionCanceledError):
        accounts.answer(TRANSFER)
    assert accounts.items("accounts")["alice"]["balance"] == 100


@pytest.mark.parametrize("amount", [0, -5, "30", True])
def test_a_transfer_of_no_amount_sends_nothing(accounts: Examples, amount: Any) -> None:
    with pytest.raises(ValueError, match="positive number of cents"):
        accounts.answer({**TRANSFER, "amount": amount})
    assert accounts.items("idempotency") == {}


def test_a_transfer_to_its_own_source_sends_nothing(accounts: Examples) -> None:
    with pytest.raises(ValueError, match="one action for each item"):
        accounts.answer({**TRANSFER, "target": "alice"})
    assert accounts.balances() == {"alice": 100, "bob": 0}


# An order with stock

ORDER = {"id": "o-1", "sku": "lamp", "quantity": 2}


@pytest.fixture
def shop(examples: Examples) -> Examples:
    examples.put("stock", id="lamp", quantity=3)
    return examples


def test_an_order_exists_once_and_its_stock_is_taken_once(shop: Examples) -> None:
    assert [shop.place_order(order=ORDER) for _ in range(3)] == [{"order": "o-1"}] * 3

    assert shop.items("orders") == {"o-1": ORDER}
    assert shop.items("stock")["lamp"]["quantity"] == 1


def test_an_order_without_stock_does_not_exist_and_tells_what_is_left(shop: Examples) -> None:
    with pytest.raises(IdempotencyTransactionCanceledError) as canceled:
        shop.place_order(order={**ORDER, "quantity": 4})

    assert [reason.code for reason in canceled.value.reasons] == [None, "ConditionalCheckFailed"]
    assert shop.left_after_refusal(canceled.value) == 3
    assert shop.items("orders") == shop.items("idempotency") == {}


def test_an_order_of_what_is_not_sold_has_nothing_left(shop: Examples) -> None:
    with pytest.raises(IdempotencyTransactionCanceledError) as canceled:
        shop.place_order(order={**ORDER, "sku": "chair"})

    assert shop.left_after_refusal(canceled.value) == 0


def test_a_duplicate_that_comes_after_the_record_has_gone_is_not_ordered_again(shop: Examples) -> None:
    single = {**ORDER, "quantity": 1}
    shop.place_order(order=single)
    (record,) = shop.items("idempotency")
    boto3.resource("dynamodb").Table("idempotency").delete_item(Key={"id": record})

    with pytest.raises(IdempotencyTransactionCanceledError) as canceled:
        shop.place_order(order=single)
    assert [reason.code for reason in canceled.value.reasons] == ["ConditionalCheckFailed", None]
    assert shop.items("stock")["lamp"]["quantity"] == 2


# An outbox


def test_an_order_is_confirmed_together_with_the_row_that_tells_of_it(examples: Examples) -> None:
    examples.put("orders", id="o-1")

    for _ in range(2):
        examples.confirm_order(order={"id": "o-1"})

    (row,) = examples.items("outbox").values()
    assert (row["topic"], row["order"]) == ("confirmed", "o-1")
    assert examples.items("orders")["o-1"]["confirmed"] is True


def test_an_order_that_cannot_be_confirmed_leaves_no_row(examples: Examples) -> None:
    with pytest.raises(IdempotencyTransactionCanceledError):
        examples.confirm_order(order={"id": "o-1"})

    assert examples.items("outbox") == examples.items("orders") == {}


def test_a_publisher_that_dies_after_sending_sends_again_under_the_same_id(examples: Examples) -> None:
    examples.put("orders", id="o-1")
    examples.confirm_order(order={"id": "o-1"})
    (row_id,) = examples.items("outbox")
    sent: list[Any] = []

    def send_and_die(*message: str, deduplication_id: str) -> None:
        sent.append((*message, deduplication_id))
        raise SystemExit

    with pytest.raises(SystemExit):
        examples.publish(send_and_die)
    examples.publish(lambda *message, deduplication_id: sent.append((*message, deduplication_id)))
    examples.publish(lambda *_: pytest.fail("it was deleted"))

    assert sent == [("confirmed", "o-1", row_id)] * 2


# A counter, and tests


def test_a_view_is_counted_once_however_often_it_is_delivered(examples: Examples) -> None:
    """Even where its record is lost each time."""
    for visitor in ("v-1", "v-2", "v-1", "v-3", "v-1"):
        examples.count_view(view={"id": visitor, "page": "home", "day": "2026-11-21"})
        for record in examples.items("idempotency"):
            boto3.resource("dynamodb").Table("idempotency").delete_item(Key={"id": record})

    assert examples.items("counters")["home#2026-11-21"]["seen"] == 3


def test_a_test_gives_the_function_a_store_of_its_own(accounts: Examples, dynamodb_local: str) -> None:
    with accounts.move.override(persistence_store=accounts.store_for_tests(dynamodb_local)):
        accounts.move(transfer=TRANSFER)

    assert accounts.balances() == {"alice": 70, "bob": 30}
    assert "client" not in vars(accounts.store)


def test_the_example_of_the_readme_places_an_order_once(clock: FakeClock, dynamodb_local: str) -> None:
    [example] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "transaction()" in block]
    client = shared_client(dynamodb_local)
    create_table(client, "orders")
    create_table(client, "stock", key_attr="sku")
    client.put_item(TableName="stock", Item={"sku": {"S": "a book"}, "quantity": {"N": "5"}})
    names: dict[str, Any] = {"store": dynamodb(clock, dynamodb_local).store}
    exec(example, names)
    order = {"id": "o-1", "sku": "a book", "quantity": 2}

    assert [names["place_order"](order=order) for _ in range(2)] == [{"order_id": "o-1"}] * 2
    assert client.get_item(TableName="stock", Key={"sku": {"S": "a book"}})["Item"]["quantity"]["N"] == "3"


# Figures


def test_the_bounds_in_the_documents_are_the_librarys() -> None:
    for statement in (
        f"until {(COMMIT_RESERVE_MS + RESERVE_MS) / 1000} s before the deadline; for {COMPLETE_RETRY_MS // 1000} s where",
        f"{MAX_ACTIONS + 1} actions, of which one is the record's; {MAX_BYTES >> 20} MB in all",
        f"`max_changes` (by default {MAX_CHANGES:,}, at most {MOST_CHANGES:,})",
        f"give one of at most {MAX_ID_BYTES} bytes",
        f"until just before the call's deadline; for {APPLY_RETRY_MS // 1000} s where none is known",
    ):
        assert statement in DOCUMENT


class Metered:
    """A client that asks what each request has used, and adds it up."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.units = 0.0
        self.last: dict[str, Any] = {}

    def __getattr__(self, operation: str) -> Any:
        def send(**request: Any) -> Any:
            self.last = request
            answer = getattr(self._client, operation)(**request, ReturnConsumedCapacity="TOTAL")
            consumed = answer["ConsumedCapacity"]
            self.units += sum(each["CapacityUnits"] for each in (consumed if isinstance(consumed, list) else [consumed]))
            return answer

        return send

    def spent(self) -> float:
        """Since it was last asked."""
        units, self.units = self.units, 0.0
        return units


#: With its key, and the names of both.
SIZES = {"small": 100, "4 KB": 4 * 1024 - len("id") - len("item") - len("content")}


@pytest.mark.parametrize("actions", [1, 2, 3])
def test_the_cost_of_a_commit_in_the_documents_is_what_the_engine_counts(
    clock: FakeClock, dynamodb_local: str, actions: int
) -> None:
    """Twice that of the completion and the same writes by themselves, and a claim besides, in either case."""
    made = dynamodb(clock, dynamodb_local)
    metered = Metered(made.store.client)
    made.store.client = metered
    # A table for each: of several actions on one table, DynamoDB Local counts one.
    tables = [create_table(shared_client(dynamodb_local)) for _ in range(actions)]

    @idempotent_function(data_keyword_argument="job", persistence_store=made.store)
    def plainly(job: dict[str, Any]) -> str:
        assert metered.spent() == 1  # the claim
        for table in tables:
            metered.put_item(TableName=table, Item={"id": {"S": "item"}, "content": {"S": "x" * job["size"]}})
        return "done"

    @idempotent_function(data_keyword_argument="job", persistence_store=made.store)
    def together(job: dict[str, Any]) -> str:
        assert metered.spent() == 1
        for table in tables:
            transaction().put(TableName=table, Item={"id": "item", "content": "x" * job["size"]})
        return "done"

    plain, transactional, repeated = [], [], []
    for size in SIZES.values():
        plainly({"size": size})
        plain.append(metered.spent())
        together({"size": size})
        transactional.append(metered.spent())
        metered.transact_write_items(**metered.last)
        repeated.append(metered.spent())

    assert transactional == [2 * units for units in plain]
    assert repeated == [2 * (1 + actions)] * 2  # in read units
    puts = f"{actions} plain {'put' if actions == 1 else 'puts'}"
    its_actions = f"{actions} {'action' if actions == 1 else 'actions'}"
    assert f"| completion and {puts} | {plain[0]:.0f} | {plain[1]:.0f} |\n" in DOCUMENT
    assert f"| transaction with {its_actions} | {transactional[0]:.0f} | {transactional[1]:.0f} |\n" in DOCUMENT


def test_the_cost_of_apply_once_in_the_documents_is_what_the_engine_counts(dynamodb_local: str) -> None:
    metered = Metered(shared_client(dynamodb_local))
    table = create_table(shared_client(dynamodb_local))

    def cost(change: int) -> float:
        """Of the change that is so much the item's so-many-th."""
        seen = [f"{number:036}" for number in range(1, change)]
        item = {"id": {"S": "counter"}, **({"applied_changes": {"SS": seen}} if seen else {})}
        shared_client(dynamodb_local).put_item(TableName=table, Item=item)
        assert apply_once(
            metered,
            TableName=table,
            Key={"id": "counter"},
            UpdateExpression="ADD n :one",
            ExpressionAttributeValues={":one": 1},
            change_id=f"{change:036}",
        )
        return metered.spent()

    for words, change in (("1st change of an item", 1), ("100th", 100), ("1,000th", 1_000)):
        assert f"| the {words} | {cost(change):.0f} |\n" in DOCUMENT
