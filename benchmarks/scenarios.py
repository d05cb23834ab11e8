"""What is compared.  Each scenario makes the calls of its contenders; `measure` and `instructions` make them in turns.

A call of the base, by which the others are divided, does the least that the work can be done with.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aws_lambda_powertools.utilities.idempotency as powertools
import boto3
from aws_lambda_powertools.utilities import batch
from botocore.exceptions import ClientError

import idempotency as ours
from benchmarks.workload import CONTEXT, RESULT_JSON, Effect, dataclass_order, event, idle_store, pydantic_order, sqs_event

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from benchmarks.places import Place

RAW: Final = "raw boto3"
FLOOR: Final = "unavoidable work"
POWERTOOLS: Final = "Powertools"
OURS: Final = "this library"
GIVEN: Final = "this library, client given"
OWN: Final = "this library, own boto3 client"
LEAN: Final = "this library, lean client"

LIBRARIES: Final[dict[str, Any]] = {POWERTOOLS: powertools, OURS: ours}


class Call(NamedTuple):
    """A contender: one call of it, and the function behind it."""

    make: Callable[[], object]
    effect: Effect


class Scenario(NamedTuple):
    """A comparison.

    Attributes:
        base: The contender by which the others are divided.
        prepare: Makes the contenders, ready to be called; what they leave open is closed with the stack.
        counted: How many calls are counted under valgrind; 0 if only the wall clock tells anything.
        sends: Whether a call sends requests.
    """

    name: str
    base: str
    prepare: Callable[[Place, ExitStack], dict[str, Call]]
    counted: int
    sends: bool = False


# --- One function on a table ------------------------------------------------------------------------------------------------

EVENT: Final = event(1_000)


def new_key(place: Place, stack: ExitStack) -> dict[str, Call]:
    """A key that nobody has: claim, function, completion.

    Floor: put_item and update_item of boto3 with the arguments that this library sends, of which only the key is made anew, and
    the function between them.
    """
    numbers = count()

    def with_new_key(handler: Callable[[Any, Any], Any]) -> Any:
        return handler(EVENT | {"id": f"order-{next(numbers)}"}, CONTEXT)

    calls = {}
    for name, store in _stores(stack, place.granting).items():
        effect = Effect()
        calls[name] = Call(partial(with_new_key, _idempotent(name, effect, store)), effect)
    client, effect = _client(stack), Effect()
    put, update = _requests_of_ours(client, place.granting)
    function = effect.handler()

    def raw() -> None:
        key = {"id": {"S": f"raw#order-{next(numbers)}"}}
        client.put_item(**{**put, "Item": {**put["Item"], **key}})
        function(EVENT, CONTEXT)
        client.update_item(**{**update, "Key": key})

    return {RAW: Call(raw, effect), **calls}


def duplicate(place: Place, stack: ExitStack) -> dict[str, Call]:
    """A key that has a result: the refused claim brings the record, and the result is replayed.

    Floor: put_item of boto3, refused, with the arguments that this library sends.
    """
    calls = {}
    for name, store in _stores(stack, place.refusing).items():
        effect = Effect()
        repeat = partial(_idempotent(name, effect, store), EVENT | {"id": name}, CONTEXT)
        repeat()  # a table that has no record yet gets one
        calls[name] = Call(repeat, effect)
    client = _client(stack)
    put, *_ = _requests_of_ours(client, place.refusing)

    def raw() -> Any:
        try:
            client.put_item(**put)
        except ClientError as refused:
            return refused.response["Item"]
        raise AssertionError("the put was not refused")

    return {RAW: Call(raw, Effect()), **calls}


def _stores(stack: ExitStack, table: str) -> dict[str, Any]:
    """Each contender's store.  Those that are given a client have one each: this library adds a handler to its own."""
    stores = {
        POWERTOOLS: powertools.DynamoDBPersistenceLayer(table, boto3_client=_client(stack)),
        GIVEN: ours.DynamoDBPersistenceLayer(table, boto3_client=_client(stack)),
    }
    return stores | _stores_with_own_clients(stack, table)


def _stores_with_own_clients(stack: ExitStack, table: str) -> dict[str, Any]:
    layer: Any = ours.DynamoDBPersistenceLayer
    stores = {OWN: layer(table), LEAN: layer(table, client="lean")}
    for store in stores.values():
        stack.callback(store.client.close)
    return stores


def _client(stack: ExitStack) -> Any:
    """A client as users make one.  The environment tells the endpoint."""
    client = boto3.client("dynamodb")
    stack.callback(client.close)
    return client


def _idempotent(contender: str, effect: Effect, store: Any) -> Callable[[Any, Any], Any]:
    library = LIBRARIES[POWERTOOLS if contender == POWERTOOLS else OURS]
    config = library.IdempotencyConfig(event_key_jmespath="id")
    handler: Callable[[Any, Any], Any] = library.idempotent(effect.handler(), persistence_store=store, config=config)
    return handler


class _Recorder:
    """A client that keeps the arguments of what is sent through another."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.requests: list[dict[str, Any]] = []

    def __getattr__(self, operation: str) -> Any:
        def send(**request: Any) -> Any:
            self.requests.append(request)
            return getattr(self._client, operation)(**request)

        return send


def _requests_of_ours(client: Any, table: str) -> list[dict[str, Any]]:
    """What this library sends for one call, in its order."""
    recorder: Any = _Recorder(client)
    store = ours.DynamoDBPersistenceLayer(table, boto3_client=recorder)
    _idempotent(GIVEN, Effect(), store)(EVENT | {"id": "recorded"}, CONTEXT)
    requests: list[dict[str, Any]] = recorder.requests
    return requests


# --- The library alone, on a store that does nothing ------------------------------------------------------------------------

_canonical = json.JSONEncoder(sort_keys=True).encode


def pure(size: int, key: str, validated: str, place: Place, stack: ExitStack) -> dict[str, Call]:  # noqa: ARG001 - nothing is sent
    """A new key where each claim is granted and nothing is kept.  *key* and *validated* are the expressions.

    Floor: canonical JSON of what the key selects, and its MD5; the same of what is validated; the function; JSON of its result.
    """
    effect, payload = Effect(), event(size)
    function, parts = effect.handler(), _selected(payload, key, validated)

    def floor() -> str:
        for part in parts:
            hashlib.md5(_canonical(part).encode()).hexdigest()  # noqa: S324 - a name, as both libraries make it
        return _canonical(function(payload, CONTEXT))

    return {FLOOR: Call(floor, effect), **_pure_calls(payload, key, validated, use_local_cache=False)}


def cached(size: int, key: str, validated: str, place: Place, stack: ExitStack) -> dict[str, Call]:  # noqa: ARG001 - nothing is sent
    """A duplicate whose record is in the local cache.

    Floor: canonical JSON of what the key selects, and its MD5; the same of what is validated; the result from its JSON.
    """
    payload = event(size)
    parts = _selected(payload, key, validated)

    def floor() -> Any:
        for part in parts:
            hashlib.md5(_canonical(part).encode()).hexdigest()  # noqa: S324 - a name, as both libraries make it
        return json.loads(RESULT_JSON)

    calls = _pure_calls(payload, key, validated, use_local_cache=True)
    for call in calls.values():
        call.make()
    return {FLOOR: Call(floor, Effect()), **calls}


def _selected(payload: dict[str, Any], *expressions: str) -> list[Any]:
    """What is read by expressions that are a name, or `@` for the whole; nothing by one that is empty."""
    return [payload if name == "@" else payload[name] for name in expressions if name]


def _pure_calls(payload: dict[str, Any], key: str, validated: str, *, use_local_cache: bool) -> dict[str, Call]:
    calls = {}
    for name, library in LIBRARIES.items():
        effect = Effect()
        config = library.IdempotencyConfig(
            event_key_jmespath="" if key == "@" else key,  # the whole event is the default of both
            payload_validation_jmespath=validated,
            use_local_cache=use_local_cache,
        )
        handler = library.idempotent(effect.handler(), persistence_store=idle_store(library), config=config)
        calls[name] = Call(partial(handler, payload, CONTEXT), effect)
    return calls


def parsed(parse: Callable[[int], Any], place: Place, stack: ExitStack) -> dict[str, Call]:  # noqa: ARG001 - nothing is sent
    """A payload of 200 KB that was parsed before, whose key is its `id`; on a store that does nothing.  Base: Powertools."""
    calls = {}
    order = parse(200_000)
    for name, library in LIBRARIES.items():
        effect = Effect()
        pay = _idempotent_function(name, effect.function(), idle_store(library))
        calls[name] = Call(partial(pay, order=order), effect)
    return calls


def _idempotent_function(contender: str, function: Callable[..., Any], store: Any) -> Callable[..., Any]:
    library = LIBRARIES[POWERTOOLS if contender == POWERTOOLS else OURS]
    config = library.IdempotencyConfig(event_key_jmespath="id")
    config.register_lambda_context(CONTEXT)
    decorated: Callable[..., Any] = library.idempotent_function(
        function, data_keyword_argument="order", persistence_store=store, config=config
    )
    return decorated


# --- A batch of records -----------------------------------------------------------------------------------------------------

RECORDS: Final = 100
POOLS: Final = (8, 16, 32, 48)


def records(place: Place, stack: ExitStack) -> dict[str, Call]:
    """100 SQS records, each with a new key, by Powertools' batch utility; the wall time of the whole.  Base: one after the other.

    Pools and clients are kept from one batch to the next, as a Lambda function keeps them.
    """
    message = sqs_event(RECORDS)
    stores = {POWERTOOLS: powertools.DynamoDBPersistenceLayer(place.granting, boto3_client=_client(stack))}
    stores |= _stores_with_own_clients(stack, place.granting)
    calls = {}
    for name, store in stores.items():
        effect = Effect()
        pay = _idempotent_function(name, effect.function(), store)
        processor = batch.BatchProcessor(batch.EventType.SQS)
        calls[f"{name}, sequential"] = Call(partial(_process, message, pay, processor), effect)
        if name == POWERTOOLS:
            continue
        for threads in POOLS:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            calls[f"{name}, {threads} threads"] = Call(partial(_process, message, pay, _Threaded(pool)), effect)
        async_pay = _idempotent_function(name, effect.coroutine(), store)
        calls[f"{name}, tasks"] = Call(partial(_process_async, message, async_pay), effect)
    return calls


class _Threaded(batch.BatchProcessor):
    """The recipe for threads: records are processed in a pool, and reported as ever."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__(batch.EventType.SQS)
        self._pool = pool

    def process(self) -> list[Any]:
        return list(self._pool.map(self._process_record, self.records))


def _process(message: dict[str, Any], pay: Callable[..., Any], processor: batch.BatchProcessor) -> Any:
    context: Any = CONTEXT
    return batch.process_partial_response(message, lambda record: pay(order=record.json_body), processor, context)


def _process_async(message: dict[str, Any], pay: Callable[..., Any]) -> Any:
    async def handle(record: Any) -> Any:
        return await pay(order=record.json_body)

    context: Any = CONTEXT
    return batch.async_process_partial_response(message, handle, batch.AsyncBatchProcessor(batch.EventType.SQS), context)


# --- All of them ------------------------------------------------------------------------------------------------------------

#: Bytes of JSON, and how many calls are counted.
SIZES: Final = {"1 KB": (1_000, 400), "10 KB": (10_000, 100), "200 KB": (200_000, 8)}
#: Names of what is read: expressions of the key and of the validation.
READS: Final = {
    "key `order`": ("order", ""),
    "key `id`": ("id", ""),
    "key whole event": ("@", ""),
    "key `id`, `order` validated": ("id", "order"),
    "key `order`, whole event validated": ("order", "@"),
}

SCENARIOS: Final = [
    Scenario("new key", RAW, new_key, 25, sends=True),
    Scenario("duplicate", RAW, duplicate, 25, sends=True),
    *(
        Scenario(f"pure {size}, {reads}", FLOOR, partial(pure, number, *expressions), counted)
        for size, (number, counted) in SIZES.items()
        for reads, expressions in READS.items()
    ),
    *(
        Scenario(f"cached {size}, {reads}", FLOOR, partial(cached, SIZES[size][0], *expressions), SIZES[size][1])
        for size in ("1 KB", "200 KB")
        for reads, expressions in READS.items()
    ),
    Scenario("parsed 200 KB, dataclasses", POWERTOOLS, partial(parsed, dataclass_order), 8),
    Scenario("parsed 200 KB, pydantic", POWERTOOLS, partial(parsed, pydantic_order), 8),
    Scenario("parsed 200 KB, pydantic, long lines", POWERTOOLS, partial(parsed, partial(pydantic_order, is_long=True)), 8),
    Scenario("100 records", f"{POWERTOOLS}, sequential", records, 0, sends=True),
]
