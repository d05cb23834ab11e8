"""`transaction()`: the function's own writes land together with its result, or not at all."""

from __future__ import annotations

import asyncio
import warnings
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.warnings import PowertoolsUserWarning
from behaviour.kit import PREFIX, Decorated, Form, key_of
from behaviour.test_custom_stores import DictStore
from boto3.dynamodb.conditions import Attr
from boto3.dynamodb.types import TypeDeserializer
from doubles import LambdaContext, Shelf, incompressible
from engines.tables import create_table
from faults import FaultyClient, access_denied, refused
from stores import Made, dynamodb, dynamodb_odd_names, large_results, memory

from idempotency import (
    CancellationReason,
    CustomDictSerializer,
    Executed,
    IdempotencyAlreadyInProgressError,
    IdempotencyConfig,
    IdempotencyPersistenceConfigError,
    IdempotencyPersistenceLayerError,
    IdempotencyTransactionCanceledError,
    Replayed,
    Transaction,
    current_attempt,
    idempotent_function,
    make_idempotent,
    transaction,
)
from idempotency.events import Claimed, Completed, LeaseLost, Released, Uncommitted
from idempotency.events import Replayed as ReplayedEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

ORDER = {"id": 7, "amount": 2}
KEY = key_of(7)

OUTSIDE = r"^transaction\(\) was called outside a running idempotent call$"
ENDED = r"^transaction\(\) was called after its idempotent call had ended$"
CLOSED = "^The idempotent call of this transaction has ended; its writes were sent, or dropped, by then$"
PLAIN = Form("make_idempotent", is_async=False)
SETTLED = "The claim was released: nothing of the transaction was written."


@dataclass
class Shop:
    """A store, and a table of the caller's own with 5 pieces in stock.  *client* tells what was sent by the store."""

    made: Made
    client: FaultyClient
    table: str

    @property
    def sent(self) -> list[str]:
        return [operation for operation, _ in self.client.requests]

    @property
    def items(self) -> dict[str, Any]:
        """The caller's items by their id."""
        found = self.client.client.scan(TableName=self.table, ConsistentRead=True)["Items"]
        plain = [TypeDeserializer().deserialize({"M": item}) for item in found]
        return {item["id"]: item for item in plain}

    @property
    def stock(self) -> int:
        return int(self.items["stock"]["n"])

    def put(self, **attributes: Any) -> None:
        self.client.client.put_item(TableName=self.table, Item=attributes)

    def order(self, event: Any) -> dict[str, Any]:
        """The function: one order, and so many pieces less."""
        collected = transaction()
        collected.put(
            TableName=self.table,
            Item={"id": f"order {event['id']}", "total": Decimal("1.5")},
            ConditionExpression=Attr("id").not_exists(),
        )
        collected.update(
            TableName=self.table,
            Key={"id": "stock"},
            UpdateExpression="SET n = n - :amount",
            ConditionExpression="n >= :amount",
            ExpressionAttributeValues={":amount": event["amount"]},
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return {"order": event["id"]}

    def decorate(self, form: Form, work: Callable[[Any], Any] | None = None, **options: Any) -> Decorated:
        return form.decorate(work or self.order, self.made.store, IdempotencyConfig("id", **options))

    def is_untouched(self) -> bool:
        return self.items.keys() == {"stock"} and self.stock == 5


def open_shop(made: Made) -> Shop:
    client = FaultyClient(made.store.client)  # type: ignore[attr-defined]
    made.store.client = client  # type: ignore[attr-defined]
    shop = Shop(made, client, create_table(client.client))
    shop.put(id={"S": "stock"}, n={"N": "5"})
    return shop


@pytest.fixture(params=[dynamodb, dynamodb_odd_names], ids=["plain", "odd-names"])
def each_shop(request: pytest.FixtureRequest, clock: FakeClock, dynamodb_local: str) -> Shop:
    """On each layout of the record's table."""
    return open_shop(request.param(clock, dynamodb_local))


@pytest.fixture(params=[Form("idempotent", is_async=False), Form("make_idempotent", is_async=True)], ids=str)
def either(request: pytest.FixtureRequest) -> Form:
    """For what does not depend on the decorator."""
    found: Form = request.param
    return found


@pytest.fixture
def shop(clock: FakeClock, dynamodb_local: str) -> Shop:
    return open_shop(dynamodb(clock, dynamodb_local))


# Together, or not at all


def test_the_writes_and_the_result_are_stored_by_one_request(form: Form, each_shop: Shop) -> None:
    call = each_shop.decorate(form)

    assert call(ORDER) == {"order": 7}
    assert each_shop.sent == ["put_item", "transact_write_items"]
    assert each_shop.items["order 7"]["total"] == Decimal("1.5")
    assert each_shop.stock == 3
    record = each_shop.made.peek(KEY)
    assert record is not None
    assert (record["status"], record["data"], record["generation"]) == ("COMPLETED", '{"order": 7}', 1)


def test_a_record_completed_by_a_transaction_has_what_one_completed_plainly_has(each_shop: Shop) -> None:
    config = {"payload_validation_jmespath": "amount", "expires_after_seconds": 60}
    each_shop.decorate(PLAIN, **config)({"id": 1, "amount": 2})
    each_shop.decorate(PLAIN, lambda _event: {"order": 1}, **config)({"id": 2, "amount": 2})

    names = {"id", "sk", "owner_token"}
    records = [each_shop.made.peek(key_of(selected)) or {} for selected in (1, 2)]
    by_transaction, plainly = ({name: record[name] for name in record.keys() - names} for record in records)
    assert by_transaction == plainly
    assert "validation" in plainly


def test_nothing_is_sent_before_the_function_returns(form: Form, shop: Shop) -> None:
    seen: list[Any] = []

    def work(event: Any) -> None:
        shop.order(event)
        seen.append((shop.sent[:], shop.is_untouched()))

    shop.decorate(form, work)(ORDER)

    assert seen == [(["put_item"], True)]
    assert shop.stock == 3


def test_a_function_that_raises_writes_nothing_and_frees_the_key(form: Form, each_shop: Shop) -> None:
    error = ConnectionError("bank")

    def work(event: Any) -> None:
        each_shop.order(event)
        raise error

    with pytest.raises(ConnectionError, match="^bank$") as caught:
        each_shop.decorate(form, work)(ORDER)
    assert caught.value is error
    assert each_shop.sent == ["put_item", "delete_item"]
    assert each_shop.is_untouched()

    assert each_shop.decorate(form)(ORDER) == {"order": 7}
    assert each_shop.stock == 3


def test_a_duplicate_gets_the_result_and_writes_nothing(form: Form, each_shop: Shop) -> None:
    call = each_shop.decorate(form)
    call(ORDER)

    assert call(ORDER) == {"order": 7}
    assert each_shop.sent == ["put_item", "transact_write_items", "put_item"]
    assert each_shop.stock == 3


def test_an_attempt_that_collects_nothing_is_completed_as_any_other(form: Form, shop: Shop) -> None:
    shop.decorate(form, lambda _event: repr(transaction()))(ORDER)

    assert shop.sent == ["put_item", "update_item"]


def test_every_kind_of_action_is_applied(either: Form, shop: Shop) -> None:
    shop.put(id={"S": "cart"}, n={"N": "1"})
    shop.put(id={"S": "customer"}, is_active={"BOOL": True})

    def work(event: Any) -> None:
        shop.order(event)
        transaction().delete(TableName=shop.table, Key={"id": "cart"}, ConditionExpression=Attr("n").eq(1))
        transaction().check(TableName=shop.table, Key={"id": "customer"}, ConditionExpression=Attr("is_active").eq(True))

    shop.decorate(either, work)(ORDER)

    assert shop.items.keys() == {"stock", "customer", "order 7"}


def test_a_check_alone_is_made(either: Form, shop: Shop) -> None:
    def work(_event: Any) -> None:
        transaction().check(
            TableName=shop.table, Key={"id": "stock"}, ConditionExpression="n > :n", ExpressionAttributeValues={":n": 9}
        )

    with pytest.raises(IdempotencyTransactionCanceledError, match="check on .*: ConditionalCheckFailed"):
        shop.decorate(either, work)(ORDER)
    assert shop.made.peek(KEY) is None


def test_a_hundredth_action_is_refused_and_ninety_nine_are_applied(shop: Shop) -> None:
    def work(event: Any) -> str:
        for number in range(99):
            transaction().put(TableName=shop.table, Item={"id": f"row {number}"})
        with pytest.raises(ValueError, match="99 actions"):
            transaction().put(TableName=shop.table, Item={"id": "one too many"})
        return "done"

    assert make_idempotent(work, persistence_store=shop.made.store)(ORDER) == "done"
    assert len(shop.items) == 100


# Whose transaction


def test_it_is_the_same_object_throughout_an_attempt_and_another_in_the_next(form: Form, shop: Shop) -> None:
    seen: list[Transaction] = []
    call = shop.decorate(form, lambda _event: seen.extend([transaction(), transaction(), current_attempt().transaction()]))
    call({"id": 1})
    call({"id": 2})

    assert seen[0] is seen[1] is seen[2] is not seen[3]
    assert [each.idempotency_key for each in seen[::3]] == [key_of(1), key_of(2)]


def test_of_nested_calls_each_has_its_own(either: Form, shop: Shop) -> None:
    """The inner one's writes are committed with the inner record, whatever becomes of the outer call."""
    inner = make_idempotent(shop.order, persistence_store=shop.made.store, config=IdempotencyConfig("id"), key_prefix="inner")

    def outer(event: Any) -> None:
        mine = transaction()
        mine.put(TableName=shop.table, Item={"id": "outer"})
        inner(event)
        assert transaction() is mine
        raise ConnectionError

    with pytest.raises(ConnectionError):
        shop.decorate(either, outer)(ORDER)

    assert shop.items.keys() == {"stock", "order 7"}
    assert shop.made.peek(KEY) is None


def test_concurrent_tasks_have_one_each(shop: Shop) -> None:
    all_collected = asyncio.Barrier(5)

    @idempotent_function(data_keyword_argument="event", persistence_store=shop.made.store)
    async def place(event: Any) -> Any:
        result = shop.order(event)
        await all_collected.wait()
        return result

    async def story() -> list[Any]:
        async with asyncio.timeout(30):
            return await asyncio.gather(*[place(event={"id": number, "amount": 1}) for number in range(5)])

    assert asyncio.run(story()) == [{"order": number} for number in range(5)]
    assert shop.stock == 0
    assert len(shop.items) == 6


def test_a_task_that_the_function_starts_collects_into_the_functions_own(shop: Shop) -> None:
    async def work(event: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(shop.order, event))
        return "placed"

    call: Any = make_idempotent(work, persistence_store=shop.made.store)

    assert asyncio.run(call(ORDER)) == "placed"
    assert shop.stock == 3


def test_threads_with_a_copy_of_the_context_collect_into_the_functions_own(shop: Shop) -> None:
    def work(event: Any) -> int:
        def put(number: int) -> None:
            transaction().put(TableName=shop.table, Item={"id": f"row {number}"})

        threads = [Thread(target=copy_context().run, args=(put, number)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(transaction().actions)

    assert make_idempotent(work, persistence_store=shop.made.store)(ORDER) == 20
    assert len(shop.items) == 21


# A condition of the caller's own


def test_a_condition_that_fails_is_told_with_its_old_item_and_nothing_is_written(form: Form, each_shop: Shop) -> None:
    call = each_shop.decorate(form)
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        call({"id": 7, "amount": 6})

    table = each_shop.table
    message = "The conditional request failed"
    put, update = caught.value.reasons
    assert put == CancellationReason("put", table, None)
    assert (update.action, update.table_name, update.code) == ("update", table, "ConditionalCheckFailed")
    assert update.message == message
    assert update.item == {"id": "stock", "n": Decimal(5)}
    assert each_shop.is_untouched()
    assert each_shop.made.peek(KEY) is None
    assert SETTLED in str(caught.value)
    assert caught.value.nothing_written


def test_the_old_item_is_shown_only_where_it_was_asked_for(either: Form, shop: Shop) -> None:
    shop.put(id={"S": "order 7"}, total={"N": "9"})
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        shop.decorate(either)({"id": 7, "amount": 6})

    assert [(reason.code, reason.item is None) for reason in caught.value.reasons] == [
        ("ConditionalCheckFailed", True),
        ("ConditionalCheckFailed", False),
    ]


def test_when_the_cause_is_gone_the_next_call_succeeds(either: Form, each_shop: Shop) -> None:
    call = each_shop.decorate(either)
    with pytest.raises(IdempotencyTransactionCanceledError):
        call({"id": 7, "amount": 6})
    each_shop.put(id={"S": "stock"}, n={"N": "10"})

    assert call({"id": 7, "amount": 6}) == {"order": 7}
    assert each_shop.stock == 4


def test_the_error_names_actions_and_tables_and_no_value(either: Form, shop: Shop) -> None:
    shop.put(id={"S": "SECRET id"}, secret={"S": "SECRET old"})

    def work(_event: Any) -> str:
        transaction().put(
            TableName=shop.table,
            Item={"id": "SECRET id", "secret": "SECRET new"},
            ConditionExpression=Attr("secret").eq("SECRET wanted"),
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return "SECRET result"

    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        shop.decorate(either, work)(ORDER)
    error: BaseException | None = caught.value
    texts = [repr(caught.value.reasons)]
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__

    assert caught.value.reasons[0].item == {"id": "SECRET id", "secret": "SECRET old"}
    assert "SECRET" not in "".join(texts)
    assert caught.value.message == (
        f"The transaction of idempotency key {KEY} was canceled, nothing of it was written: "
        f"put on {shop.table}: ConditionalCheckFailed"
    )


# A transaction that DynamoDB refuses


def twice_one_item(shop: Shop) -> None:
    for _ in range(2):
        transaction().put(TableName=shop.table, Item={"id": "same"})


def bad_expression(shop: Shop) -> None:
    transaction().update(TableName=shop.table, Key={"id": "stock"}, UpdateExpression="SET n == 1")


def wrong_key(shop: Shop) -> None:
    transaction().delete(TableName=shop.table, Key={"no key": "stock"})


def item_grown_too_large(shop: Shop) -> None:
    shop.put(id={"S": "large"}, first={"S": "x" * 300_000})
    transaction().update(
        TableName=shop.table,
        Key={"id": "large"},
        UpdateExpression="SET another = :value",
        ExpressionAttributeValues={":value": "x" * 200_000},
    )


def wrong_type(shop: Shop) -> None:
    transaction().update(
        TableName=shop.table, Key={"id": "stock"}, UpdateExpression="SET n = id + :one", ExpressionAttributeValues={":one": 1}
    )


@pytest.mark.parametrize(
    ("collect", "says"),
    [
        (twice_one_item, "cannot include multiple operations on one item"),
        (bad_expression, "UpdateExpression"),
        (wrong_key, "key"),
        (item_grown_too_large, "update on .*: ValidationError"),
        (wrong_type, "incorrect data type"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_transaction_that_is_invalid_writes_nothing_and_frees_the_key(
    either: Form, shop: Shop, collect: Callable[[Shop], None], says: str
) -> None:
    def work(_event: Any) -> None:
        transaction().put(TableName=shop.table, Item={"id": "valid"})  # tells no key: that two puts are one item, DynamoDB finds
        collect(shop)

    with pytest.raises(IdempotencyTransactionCanceledError, match=f"was canceled, nothing of it was written: .*{says}") as caught:
        shop.decorate(either, work)(ORDER)

    assert SETTLED in str(caught.value)
    assert caught.value.nothing_written
    assert shop.client.count("transact_write_items") == 1
    assert shop.items.keys() - {"large"} == {"stock"}
    assert shop.stock == 5
    assert shop.made.peek(KEY) is None


def test_a_table_that_does_not_exist_is_an_error_and_frees_the_key(either: Form, shop: Shop) -> None:
    def work(event: Any) -> None:
        shop.order(event)
        transaction().put(TableName="no-such-table", Item={"id": "x"})

    with pytest.raises(IdempotencyPersistenceLayerError, match="ResourceNotFoundException"):
        shop.decorate(either, work)(ORDER)

    assert shop.is_untouched()
    assert shop.made.peek(KEY) is None


def test_more_than_four_megabytes_with_the_result_is_an_error_and_nothing_is_sent(either: Form, shop: Shop) -> None:
    def work(event: Any) -> str:
        for number in range(10):
            transaction().put(TableName=shop.table, Item={"id": f"row {number}", "text": "x" * 400_000})
        return incompressible(300_000)

    with pytest.raises(IdempotencyTransactionCanceledError, match="cannot be stored, so its transaction was not sent") as caught:
        shop.decorate(either, work)(ORDER)

    assert "a transaction holds 4194304 bytes" in str(caught.value)
    assert SETTLED in str(caught.value)
    assert caught.value.nothing_written
    assert shop.sent == ["put_item", "delete_item"]
    assert shop.is_untouched()


@pytest.mark.parametrize("is_caught", [False, True])
def test_an_action_that_is_refused_at_once_is_the_functions_own_error(either: Form, shop: Shop, is_caught: bool) -> None:
    """It may catch it, and go on without that action."""

    def work(event: Any) -> str:
        shop.order(event)
        try:
            transaction().put(TableName=shop.table, Item={"id": "x", "price": 1.5})
        except TypeError:
            if not is_caught:
                raise
        return "placed"

    call = shop.decorate(either, work)
    if is_caught:
        assert call(ORDER) == "placed"
        assert shop.items.keys() == {"stock", "order 7"}
    else:
        with pytest.raises(TypeError, match="does not know"):
            call(ORDER)
        assert shop.is_untouched()
        assert shop.made.peek(KEY) is None


def test_the_calls_own_record_is_no_item_of_its_transaction(either: Form, each_shop: Shop) -> None:
    primary: dict[str, Any] = {}

    def work(event: Any) -> None:
        each_shop.order(event)
        transaction().delete(TableName=each_shop.made.store.table_name, Key=primary)  # type: ignore[attr-defined]

    items = each_shop.made.store._items  # type: ignore[attr-defined]
    primary.update({name: value["S"] for name, value in items.key(KEY).items()})
    with pytest.raises(ValueError, match="own idempotency record"):
        each_shop.decorate(either, work)(ORDER)

    assert each_shop.is_untouched()


# Stores that have no transactions


class WithoutTransactions:
    """A client of a user's own that does what a store needed so far."""

    def __init__(self, client: Any) -> None:
        self.put_item, self.get_item = client.put_item, client.get_item
        self.update_item, self.delete_item = client.update_item, client.delete_item


def test_the_memory_store_has_none(form: Form, clock: FakeClock) -> None:
    made = memory(clock, "")
    with pytest.raises(IdempotencyPersistenceConfigError, match="InMemoryPersistenceLayer has no transactions"):
        form.decorate(lambda _event: transaction(), made.store, IdempotencyConfig("id"))(ORDER)

    assert made.peek(KEY) is None


def test_a_memory_store_that_overrides_another_has_none(either: Form, shop: Shop, clock: FakeClock) -> None:
    made = memory(clock, "")
    call = shop.decorate(either)
    with call.function.override(persistence_store=made.store), pytest.raises(IdempotencyPersistenceConfigError):
        call(ORDER)
    assert made.peek(KEY) is None

    assert call(ORDER) == {"order": 7}
    assert shop.stock == 3


def test_a_store_of_four_hooks_has_none(either: Form, clock: FakeClock) -> None:
    store = DictStore(clock)
    with pytest.raises(IdempotencyPersistenceConfigError, match="has no transactions"):
        either.decorate(lambda _event: transaction(), store)(ORDER)

    assert either.decorate(lambda _event: "free", store)(ORDER) == "free"


def test_a_client_without_them_has_none(either: Form, shop: Shop) -> None:
    shop.made.store.client = WithoutTransactions(shop.client)  # type: ignore[attr-defined]
    with pytest.raises(IdempotencyPersistenceConfigError, match="a WithoutTransactions without transact_write_items"):
        shop.decorate(either)(ORDER)

    assert shop.made.peek(KEY) is None
    assert shop.decorate(either, lambda _event: "plainly")(ORDER) == "plainly"


# Outside the call


def test_outside_a_call_there_is_none(either: Form, shop: Shop) -> None:
    shop.decorate(either)(ORDER)

    with pytest.raises(RuntimeError, match=OUTSIDE):
        transaction()


def test_a_thread_without_the_context_is_outside(shop: Shop) -> None:
    caught: list[str] = []

    def ask() -> None:
        try:
            transaction()
        except RuntimeError as error:
            caught.append(str(error))

    def work(_event: Any) -> None:
        thread = Thread(target=ask)
        thread.start()
        thread.join()

    make_idempotent(work, persistence_store=shop.made.store)(ORDER)

    assert caught == ["transaction() was called outside a running idempotent call"]


@pytest.mark.parametrize("fails", [False, True], ids=["returned", "raised"])
def test_a_transaction_that_was_kept_collects_no_more(either: Form, shop: Shop, fails: bool) -> None:
    kept: list[Transaction] = []

    def work(event: Any) -> None:
        shop.order(event)
        kept.append(transaction())
        if fails:
            raise ConnectionError

    try:
        shop.decorate(either, work)(ORDER)
    except ConnectionError:
        assert fails
    with pytest.raises(RuntimeError, match=CLOSED):
        kept[0].put(TableName=shop.table, Item={"id": "late"})

    assert "late" not in shop.items


@pytest.mark.parametrize("began", [True, False], ids=["used before", "not used before"])
def test_a_context_that_was_kept_has_none_any_more(either: Form, shop: Shop, began: bool) -> None:
    kept: list[Any] = []

    def work(_event: Any) -> None:
        if began:
            transaction()
        kept.append(copy_context())

    shop.decorate(either, work)(ORDER)
    with pytest.raises(RuntimeError, match=ENDED):
        kept[0].run(transaction)

    assert shop.is_untouched()


def test_a_thread_that_the_function_left_behind_is_too_late(shop: Shop) -> None:
    returned, caught = Event(), []
    threads: list[Thread] = []

    def late() -> None:
        returned.wait(10)
        try:
            transaction().put(TableName=shop.table, Item={"id": "late"})
        except RuntimeError as error:
            caught.append(str(error))

    def work(event: Any) -> str:
        shop.order(event)
        threads.append(Thread(target=copy_context().run, args=(late,)))
        threads[0].start()
        return "placed"

    assert make_idempotent(work, persistence_store=shop.made.store)(ORDER) == "placed"
    returned.set()
    threads[0].join()

    assert len(caught) == 1
    assert shop.items.keys() == {"stock", "order 7"}


# Results


@pytest.mark.parametrize("size", [20_000, 300_000], ids=["compressed", "offloaded"])
def test_a_large_result_is_committed_with_its_writes(either: Form, each_shop: Shop, size: int) -> None:
    shelf = Shelf()
    large_results(each_shop.made, offload=shelf, item_size_threshold=100_000 if size > 100_000 else 19_000)

    def work(event: Any) -> str:
        each_shop.order(event)
        return incompressible(size)

    call = each_shop.decorate(either, work)

    assert call(ORDER) == call(ORDER) == incompressible(size)
    assert each_shop.client.count("transact_write_items") == 1
    assert each_shop.stock == 3
    record = each_shop.made.peek(KEY)
    assert record is not None
    assert len(shelf.objects) == (size > 100_000)
    assert isinstance(record["data"], dict) is bool(shelf.objects)
    assert not isinstance(record["data"], str)


def failing_shelf() -> Shelf:
    def fail() -> None:
        raise access_denied()

    return Shelf(before_put=fail)


@pytest.mark.parametrize(
    ("result", "shelf", "cause"),
    [
        (object(), None, "TypeError"),
        ({(1, 2): "tuple key"}, None, "TypeError"),
        (incompressible(800_000), None, "Give the store a result_offload"),
        (incompressible(800_000), failing_shelf(), "its offload failed"),
    ],
    ids=["object", "tuple key", "more than an item", "offload fails"],
)
def test_a_result_that_cannot_be_stored_cancels_the_transaction(
    either: Form, shop: Shop, result: Any, shelf: Shelf | None, cause: str
) -> None:
    """Without a transaction, the effect has happened and the key stays completed; here nothing has happened."""
    large_results(shop.made, offload=shelf)
    events: list[Any] = []

    def work(event: Any) -> Any:
        shop.order(event)
        return result

    with pytest.raises(IdempotencyTransactionCanceledError, match="cannot be stored, so its transaction was not sent") as caught:
        shop.decorate(either, work, observers=[events.append])(ORDER)

    assert cause in str(caught.value)
    assert caught.value.reasons == ()
    assert SETTLED in str(caught.value)
    assert caught.value.nothing_written
    assert shop.sent == ["put_item", "delete_item"]
    assert shop.is_untouched()
    assert [type(event) for event in events] == [Claimed, Uncommitted, Released]
    assert shop.decorate(either)(ORDER) == {"order": 7}


def test_a_result_that_cannot_be_stored_is_kept_from_a_call_that_lost_its_lease(shop: Shop, clock: FakeClock) -> None:
    """The release is refused by the winner, whose result every caller gets."""
    calls: list[Any] = []

    def work(event: Any) -> Any:
        calls.append(event)
        if len(calls) == 2:
            return "winner's"
        shop.order(event)
        clock.advance(ms=61_001)
        assert shop.decorate(PLAIN, work)(ORDER) == "winner's"
        return object()

    assert shop.decorate(PLAIN, work)(ORDER) == "winner's"
    assert shop.is_untouched()


def test_an_output_serializer_shapes_what_is_committed_and_replayed(either: Form, shop: Shop) -> None:
    serializer = CustomDictSerializer(
        to_dict=lambda result: {"n": result["order"] + 1}, from_dict=lambda kept: ("again", kept["n"])
    )
    options: dict[str, Any] = {"persistence_store": shop.made.store, "config": IdempotencyConfig("id"), "key_prefix": PREFIX}

    def place(event: Any) -> Any:
        return shop.order(event)

    call = idempotent_function(place, data_keyword_argument="event", output_serializer=serializer, **options)

    assert [call(event=ORDER), call(event=ORDER)] == [{"order": 7}, ("again", 8)]
    assert (shop.made.peek(KEY) or {})["data"] == '{"n": 8}'


def test_a_response_hook_sees_the_record_that_the_transaction_completed(either: Form, shop: Shop) -> None:
    call = shop.decorate(either, response_hook=lambda result, record: (result, record.stored_status))

    assert [call(ORDER), call(ORDER)] == [{"order": 7}, ({"order": 7}, "COMPLETED")]


def test_the_local_cache_replays_it_without_the_store(either: Form, shop: Shop) -> None:
    call = shop.decorate(either, use_local_cache=True)
    call(ORDER)
    shop.client.always("put_item", refused(access_denied()))

    assert call(ORDER) == {"order": 7}


def test_a_canceled_transaction_is_not_cached(either: Form, shop: Shop) -> None:
    call = shop.decorate(either, use_local_cache=True)
    with pytest.raises(IdempotencyTransactionCanceledError):
        call({"id": 7, "amount": 6})

    assert call(ORDER) == {"order": 7}
    assert shop.stock == 3


def test_its_outcome_tells_whether_the_function_ran_now(form: Form, shop: Shop) -> None:
    call = shop.decorate(form)
    ran, replayed = call.outcome(ORDER), call.outcome(ORDER)

    assert isinstance(ran, Executed)
    assert ran.record is not None
    assert isinstance(replayed, Replayed)
    assert ran.value == replayed.value == {"order": 7}
    assert (ran.record.stored_status, ran.record.response_data) == ("COMPLETED", '{"order": 7}')


# Observers


def test_observers_hear_of_a_commit_as_of_a_completion(either: Form, shop: Shop, clock: FakeClock) -> None:
    events: list[Any] = []
    call = shop.decorate(either, observers=[events.append])
    call(ORDER)
    call(ORDER)

    assert events[:2] == [
        Claimed(key=KEY, at_ms=clock.now_ms, generation=1),
        Completed(key=KEY, at_ms=clock.now_ms, generation=1),
    ]
    assert isinstance(events[2], ReplayedEvent)


def test_observers_hear_why_a_transaction_was_canceled_and_that_the_key_is_free(
    either: Form, shop: Shop, clock: FakeClock
) -> None:
    events: list[Any] = []
    with pytest.raises(IdempotencyTransactionCanceledError):
        shop.decorate(either, observers=[events.append])({"id": 7, "amount": 6})

    assert events[1:] == [
        Uncommitted(key=KEY, at_ms=clock.now_ms, generation=1, reasons=("ConditionalCheckFailed",)),
        Released(key=KEY, at_ms=clock.now_ms, generation=1),
    ]


def test_observers_hear_that_a_transaction_was_fenced_off(either: Form, shop: Shop, clock: FakeClock) -> None:
    events: list[Any] = []
    winner = make_idempotent(
        lambda _event: "winner's", persistence_store=shop.made.store, config=IdempotencyConfig("id"), key_prefix=PREFIX
    )

    def work(event: Any) -> None:
        shop.order(event)
        clock.advance(ms=61_001)
        winner(ORDER)

    assert shop.decorate(either, work, observers=[events.append])(ORDER) == "winner's"
    assert [type(event) for event in events] == [Claimed, LeaseLost]
    assert shop.is_untouched()


# Calls that run unprotected


@pytest.fixture(params=["no key", "switched off"])
def unprotected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Decorated, Any], Any]:
    """Makes a call that has no record, for either reason."""
    if request.param == "switched off":
        monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")

    def make(call: Decorated, event: Any) -> Any:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                return call({**event, "id": None} if request.param == "no key" else event, LambdaContext())
            finally:
                # An old botocore has a warning of its own about newer Pythons.
                found = {warning.category for warning in heard if not issubclass(warning.category, DeprecationWarning)}
                assert found == {PowertoolsUserWarning if request.param == "switched off" else UserWarning}

    return make


def order_by_name(shop: Shop) -> Callable[[Any], Any]:
    """The function of these stories: its order's name does not depend on the key."""
    return lambda event: shop.order({**event, "id": "x"})


def test_the_writes_of_an_unprotected_call_are_committed_by_themselves(
    form: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    assert unprotected(shop.decorate(form, order_by_name(shop)), ORDER) == {"order": "x"}
    assert shop.sent == ["transact_write_items"]
    assert shop.items.keys() == {"stock", "order x"}
    assert shop.stock == 3


def test_a_repetition_of_an_unprotected_call_is_not_recognised(
    either: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    """Not even by DynamoDB's client token."""

    def work(_event: Any) -> None:
        transaction().update(
            TableName=shop.table,
            Key={"id": "stock"},
            UpdateExpression="ADD n :one",
            ExpressionAttributeValues={":one": 1},
        )

    for _ in range(3):
        unprotected(shop.decorate(either, work), ORDER)

    assert shop.stock == 8


def test_a_condition_that_fails_in_an_unprotected_call_is_told_and_nothing_is_written(
    either: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    with pytest.raises(IdempotencyTransactionCanceledError) as caught:
        unprotected(shop.decorate(either, order_by_name(shop)), {"id": 7, "amount": 6})

    assert [reason.code for reason in caught.value.reasons] == [None, "ConditionalCheckFailed"]
    assert shop.sent == ["transact_write_items"]
    assert shop.is_untouched()


def test_an_unprotected_call_that_raises_writes_nothing(
    form: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    kept: list[Transaction] = []

    def work(event: Any) -> None:
        shop.order({**event, "id": "x"})
        kept.append(transaction())
        raise ConnectionError

    with pytest.raises(ConnectionError):
        unprotected(shop.decorate(form, work), ORDER)
    assert shop.sent == []
    with pytest.raises(RuntimeError, match=CLOSED):
        kept[0].put(TableName=shop.table, Item={"id": "late"})


def test_an_unprotected_call_that_collects_nothing_sends_nothing(
    either: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    unprotected(shop.decorate(either, lambda _event: repr(transaction())), ORDER)

    assert shop.sent == []


def test_an_unprotected_call_on_a_store_without_transactions_is_told_so(
    either: Form, clock: FakeClock, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    """As in production, where the call would be protected."""
    call = either.decorate(lambda _event: transaction(), memory(clock, "").store, IdempotencyConfig("id"))

    with pytest.raises(IdempotencyPersistenceConfigError, match="has no transactions"):
        unprotected(call, ORDER)


def test_a_result_that_no_record_could_hold_is_no_trouble_for_an_unprotected_call(
    either: Form, shop: Shop, unprotected: Callable[[Decorated, Any], Any]
) -> None:
    result = object()

    def work(event: Any) -> Any:
        shop.order({**event, "id": "x"})
        return result

    assert unprotected(shop.decorate(either, work), ORDER) is result
    assert shop.stock == 3


# Two callers


def test_a_second_caller_is_refused_while_the_first_collects(either: Form, shop: Shop) -> None:
    def work(event: Any) -> Any:
        result = shop.order(event)
        with pytest.raises(IdempotencyAlreadyInProgressError):
            shop.decorate(Form("make_idempotent", is_async=False))(ORDER)
        return result

    assert shop.decorate(either, work)(ORDER) == {"order": 7}
    assert shop.stock == 3
