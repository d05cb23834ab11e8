"""`@idempotent` on Lambda handlers: what may be decorated, and how events become keys."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Work, key_of
from doubles import LambdaContext

from idempotency import (
    IdempotencyConfig,
    IdempotencyResultNotKeptError,
    idempotent,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def test_a_handler_can_be_called_by_position_and_by_keyword(store: CountingStore) -> None:
    calls: list[tuple[Any, ...]] = []

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any, **kwargs: Any) -> None:
        calls.append((event, context, kwargs))

    context = LambdaContext()
    handler({"id": 1}, context)
    handler({"id": 2}, context=context, tenant="a")
    handler(event={"id": 3}, context=context)
    handler(context=context, event={"id": 1})

    assert calls == [({"id": 1}, context, {}), ({"id": 2}, context, {"tenant": "a"}), ({"id": 3}, context, {})]


def test_an_async_handler_can_be_called_by_position_and_by_keyword(store: CountingStore) -> None:
    calls: list[tuple[Any, ...]] = []

    @idempotent(persistence_store=store)
    async def handler(event: Any, context: Any, **kwargs: Any) -> None:
        calls.append((event, context, kwargs))

    async def story() -> None:
        await handler({"id": 1}, None)
        await handler(event={"id": 2}, context=None, tenant="a")
        await handler(context=None, event={"id": 1})

    asyncio.run(story())

    assert calls == [({"id": 1}, None, {}), ({"id": 2}, None, {"tenant": "a"})]


BODY = json.dumps({"order": {"id": 7}, "sent_at": "now"})
BASE64 = base64.b64encode(BODY.encode()).decode()
GZIP = base64.b64encode(gzip.compress(BODY.encode(), mtime=0)).decode()


@pytest.mark.parametrize(
    ("expression", "event", "selected"),
    [
        ("powertools_json(body).order.id", {"body": BODY}, 7),
        ("powertools_json(powertools_base64(body)).order.id", {"body": BASE64}, 7),
        ("powertools_json(powertools_base64_gzip(body)).order.id", {"body": GZIP}, 7),
        ("[headers.key, powertools_json(body).order.id]", {"headers": {"key": "k"}, "body": BODY}, ["k", 7]),
        ("Records[*].messageId", {"Records": [{"messageId": "a"}, {"messageId": "b"}]}, ["a", "b"]),
        ("", {"body": BODY}, {"body": BODY}),
    ],
)
def test_the_key_is_what_the_expression_selects_of_the_event(
    store: CountingStore, expression: str, event: dict[str, Any], selected: Any
) -> None:
    work = Work()

    @idempotent(persistence_store=store, config=IdempotencyConfig(expression), key_prefix="p")
    def handler(event: Any, context: Any) -> None:
        work(event)

    handler(event, None)
    handler(event, None)

    assert list(store._records) == [key_of(selected)]
    assert len(work.runs) == 1


def test_jmespath_options_replace_the_built_in_functions(store: CountingStore) -> None:
    from jmespath.functions import Functions, signature

    class Shouting(Functions):  # type: ignore[misc]  # jmespath has no types
        @signature({"types": ["string"]})  # type: ignore[untyped-decorator]
        def _func_shout(self, text: str) -> str:
            return text.upper()

    config = IdempotencyConfig("shout(id)", jmespath_options={"custom_functions": Shouting()})

    @idempotent(persistence_store=store, config=config, key_prefix="p")
    def handler(event: Any, context: Any) -> None: ...

    handler({"id": "a"}, None)

    assert list(store._records) == [key_of("A")]


def test_a_handler_without_a_lambda_context_gets_a_lease_of_its_own(store: CountingStore, stored: Callable[[Any], Any]) -> None:
    leases: list[int] = []

    @idempotent(persistence_store=store, key_prefix="p")
    def handler(event: Any, context: Any) -> None:
        leases.append(stored(event).in_progress_expiry_timestamp - store.clock_ms())

    handler({"id": 1}, None)

    assert leases == [60_000 + 1_000]


def test_a_context_that_knows_no_deadline_is_an_error_before_anything_happens(store: CountingStore) -> None:
    work = Work()

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None:
        work(event)

    with pytest.raises(AttributeError, match="get_remaining_time_in_millis"):
        handler({"id": 1}, object())

    assert (work.runs, store.asked) == ([], [])


def test_a_lambda_expression_can_be_a_handler(store: CountingStore) -> None:
    handler = idempotent(lambda event, context: [event["id"]], persistence_store=store)

    first = handler({"id": 1}, None)

    assert first == [1]
    assert handler({"id": 1}, None) == [1]
    assert handler({"id": 1}, None) is not first


class HandlerObject:
    def __call__(self, event: Any, context: Any) -> None: ...

    def method(self, event: Any, context: Any) -> None: ...


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (HandlerObject(), "HandlerObject"),
        (HandlerObject, "type"),
        (partial(print), "partial"),
        (print, "builtin"),
        (HandlerObject().method, "method"),
    ],
    ids=["object", "class", "partial", "builtin", "bound method"],
)
def test_what_is_no_function_cannot_be_a_handler(store: CountingStore, handler: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^@idempotent takes keyword arguments and decorates a handler function, not {kind}"):
        idempotent(handler, persistence_store=store)


def generator(event: Any, context: Any) -> Iterator[int]:
    yield 1


async def async_generator(event: Any, context: Any) -> AsyncIterator[int]:
    yield 1


class Generating:
    def __call__(self, event: Any) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_a_generator_function_is_refused_when_it_is_decorated(store: CountingStore, function: Any) -> None:
    """Powertools' claim stayed in progress for each of these, because the result could not be stored."""
    message = "generator is a generator function: what it yields cannot be stored"
    with pytest.raises(TypeError, match=message):
        idempotent(function, persistence_store=store)
    with pytest.raises(TypeError, match=message):
        idempotent_function(function, data_keyword_argument="event", persistence_store=store)
    with pytest.raises(TypeError, match=message):
        make_idempotent(partial(function, context=None), persistence_store=store)


def test_a_callable_object_that_generates_is_refused_when_it_is_decorated(store: CountingStore) -> None:
    with pytest.raises(TypeError, match="is a generator function"):
        make_idempotent(Generating(), persistence_store=store)


def unfinished_work() -> dict[str, Callable[[], Any]]:
    """Results that cannot be stored, of functions that have run."""

    async def work() -> int:
        return 1

    def generate() -> Iterator[int]:
        yield 1

    async def agenerate() -> AsyncIterator[int]:
        yield 1

    return {"coroutine": work, "generator": generate, "asynchronous generator": agenerate, "future": Future}


@pytest.mark.parametrize("kind", unfinished_work())
def test_a_result_that_cannot_be_stored_is_not_kept_whatever_it_is_and_no_retry_runs_again(
    store: CountingStore, kind: str
) -> None:
    """The function has run: its effect may have happened before it made the coroutine that it returned."""
    ran: list[str] = []

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> Any:
        ran.append("ran")
        return unfinished_work()[kind]()

    for _ in range(3):
        with pytest.raises(IdempotencyResultNotKeptError):
            handler({"id": 1}, None)

    assert ran == ["ran"]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_functions_own_error_is_unchanged_even_if_its_class_forbids_assignments(store: CountingStore, is_async: bool) -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    error = FrozenError(7)

    def fail(event: Any) -> None:
        raise error

    async def afail(event: Any) -> None:
        raise error

    decorated = make_idempotent(afail if is_async else fail, persistence_store=store)
    with pytest.raises(FrozenError) as raised:
        asyncio.run(decorated({"id": 1})) if is_async else decorated({"id": 1})

    assert raised.value is error
    assert store._records == {}


def test_a_decorated_function_looks_like_the_function(store: CountingStore) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None:
        """Charge a card."""

    assert (handler.__name__, handler.__doc__, handler.__module__) == ("handler", "Charge a card.", __name__)  # type: ignore[attr-defined]
    assert handler.__qualname__.endswith("<locals>.handler")  # type: ignore[attr-defined]
    assert handler.__wrapped__({"id": 1}, None) is None  # type: ignore[attr-defined]
    assert store.asked == []


def test_the_event_reaches_the_function_unchanged_and_uncopied(store: CountingStore) -> None:
    seen: list[Any] = []

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None:
        seen.extend([event, context])

    event, context = {"id": 1}, LambdaContext()
    handler(event, context)

    assert seen[0] is event
    assert seen[1] is context
