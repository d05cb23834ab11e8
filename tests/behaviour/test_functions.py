"""`@idempotent_function` and `make_idempotent`: any callable, and where its payload is found."""

from __future__ import annotations

import asyncio
from functools import cache, lru_cache, partial, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from behaviour.kit import CountingStore, Work, key_of
from doubles import LambdaContext

from idempotency import IdempotencyConfig, idempotent_function, make_idempotent

if TYPE_CHECKING:
    from collections.abc import Callable

MISSING = (
    "Unable to extract 'order' from keyword arguments. "
    "Ensure this exists in your function's signature as well as the caller used it as a keyword argument"
)


def test_the_payload_may_be_passed_by_keyword_and_by_position(store: CountingStore) -> None:
    runs: list[tuple[Any, ...]] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix="p")
    def charge(customer: str, order: int, *, note: str = "") -> str:
        runs.append((customer, order, note))
        return f"{customer} paid {order}"

    assert charge("ann", order=7, note="first") == "ann paid 7"
    assert charge("ann", 7) == "ann paid 7"
    assert charge(order=7, customer="bob") == "ann paid 7"
    assert runs == [("ann", 7, "first")]
    assert list(store._records) == [key_of(7)]


def test_an_async_functions_payload_may_be_passed_by_keyword_and_by_position(store: CountingStore) -> None:
    work = Work(result="paid")

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def charge(customer: str, order: int) -> Any:
        return work((customer, order))

    async def story() -> list[Any]:
        return [await charge("ann", order=7), await charge("ann", 7), await charge(order=7, customer="ann")]

    assert asyncio.run(story()) == ["paid"] * 3
    assert work.runs == [("ann", 7)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_without_the_payload_is_an_error_even_if_it_has_a_default(store: CountingStore, is_async: bool) -> None:
    """A default is not what the caller asked for; two callers who leave it out would share one key."""
    if is_async:

        @idempotent_function(data_keyword_argument="order", persistence_store=store)
        async def acharge(customer: str, order: int = 7) -> None: ...

        call: Callable[[], Any] = lambda: asyncio.run(acharge("ann"))  # noqa: E731 - either, in one name
    else:

        @idempotent_function(data_keyword_argument="order", persistence_store=store)
        def charge(customer: str, order: int = 7) -> None: ...

        call = partial(charge, "ann")

    with pytest.raises(RuntimeError) as failed:
        call()

    assert str(failed.value) == MISSING
    assert store.asked == []


def test_a_payload_that_only_a_keyword_can_pass_is_not_taken_from_a_position(store: CountingStore) -> None:
    work = Work()

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix="p")
    def charge(*parts: Any, order: int = 0, **rest: Any) -> None:
        work(parts)

    charge("a", "b", order=7)

    assert list(store._records) == [key_of(7)]
    with pytest.raises(RuntimeError, match="^Unable to extract 'order'"):
        charge("a", "b")


def test_a_payload_among_arbitrary_keywords_is_found(store: CountingStore) -> None:
    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix="p")
    def charge(**fields: Any) -> None: ...

    charge(order=7, other=8)

    assert list(store._records) == [key_of(7)]


def test_a_positional_only_payload_is_found(store: CountingStore) -> None:
    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix="p")
    def charge(order: int, /) -> None: ...

    charge(7)

    assert list(store._records) == [key_of(7)]


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another decorator's version, which says of its parameters that they are the function's, and may be right."""

    @wraps(function)
    def passing_on(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return passing_on


def with_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another decorator's version, which injects the first argument."""

    @wraps(function)
    def injecting(*args: Any, **kwargs: Any) -> Any:
        return function("connection", *args, **kwargs)

    return injecting


def with_tenant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another decorator's version, which consumes the first argument."""

    @wraps(function)
    def consuming(tenant: str, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return consuming


@pytest.mark.parametrize("is_async", [False, True])
def test_below_a_decorator_the_payload_is_only_found_by_keyword(store: CountingStore, is_async: bool) -> None:
    """By the signature that `functools.wraps` copies, the currency would be the key of every order."""
    places: list[tuple[Any, Any]] = []

    def place(connection: str, order: dict[str, int], currency: str) -> int:
        places.append((order, currency))
        return order["id"]

    async def aplace(connection: str, order: dict[str, int], currency: str) -> int:
        return place(connection, order, currency)

    decorated = idempotent_function(
        with_connection(place), data_keyword_argument="order", persistence_store=store, key_prefix="p"
    )
    asynchronous = idempotent_function(
        _awaiting(with_connection(aplace)), data_keyword_argument="order", persistence_store=store, key_prefix="p"
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(asynchronous(*args, **kwargs)) if is_async else decorated(*args, **kwargs)

    with pytest.raises(RuntimeError) as refused:
        call({"id": 1}, "EUR")
    assert str(refused.value) == MISSING
    assert store.asked == []
    assert [call(order={"id": number}, currency="EUR") for number in (1, 2, 1)] == [1, 2, 1]
    assert places == [({"id": 1}, "EUR"), ({"id": 2}, "EUR")]


def _awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def awaiting(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return awaiting


def test_a_decorator_that_consumes_an_argument_does_not_make_another_one_the_key(store: CountingStore) -> None:
    def place(order: int, currency: str) -> int:
        return order

    decorated = idempotent_function(with_tenant(place), data_keyword_argument="order", persistence_store=store)

    with pytest.raises(RuntimeError, match="^Unable to extract 'order'"):
        decorated("tenant", 1, "EUR")
    assert [decorated("tenant", order=number, currency="EUR") for number in (1, 2)] == [1, 2]


def test_a_decorators_own_parameter_is_the_payload_where_it_has_that_name(store: CountingStore) -> None:
    def place(connection: str, order: int) -> int:
        return order

    @wraps(place)
    def placing(order: int, *args: Any) -> Any:
        return place("connection", order, *args)

    decorated = idempotent_function(placing, data_keyword_argument="order", persistence_store=store, key_prefix="p")

    assert [decorated(1), decorated(2), decorated(order=1)] == [1, 2, 1]
    assert list(store._records) == [key_of(1), key_of(2)]


class Received:
    """Functions that pass on which order they got."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    def place(self, customer: str, order: Any = None, *, note: str = "") -> None:
        self.orders.append(order)

    def place_below(self, customer: str, order: Any, /, *, note: str = "") -> None:
        self.orders.append(order)


@pytest.mark.parametrize(
    ("decorate", "arguments"),
    [
        (lambda place: partial(place, "ann"), (7,)),
        (lambda place: partial(place, note="n"), ("ann", 7)),
        (lambda place: partial(partial(place, "ann"), note="n"), (7,)),
        (lru_cache, ("ann", 7)),
        (lambda place: partial(cache(place), "ann"), (7,)),
        (lambda place: idempotent_function(place, data_keyword_argument="customer", persistence_store=OTHER), ("ann", 7)),
        (lambda place: make_idempotent(lru_cache(place), persistence_store=OTHER), ("ann", 7)),
        (lambda place: place, ("ann", 7)),
    ],
)
@pytest.mark.parametrize("name", ["place", "place_below"])
def test_what_passes_its_arguments_on_finds_the_payload_where_the_function_gets_it(
    store: CountingStore, decorate: Any, arguments: tuple[Any, ...], name: str
) -> None:
    OTHER._records.clear()
    received = Received()
    function = decorate(getattr(received, name))

    idempotent_function(function, data_keyword_argument="order", persistence_store=store, key_prefix="p")(*arguments)

    assert received.orders == [7]
    assert list(store._records) == [key_of(7)]


OTHER = CountingStore(clock_ms=lambda: 1_800_000_000_000)


def test_a_keyword_that_only_has_the_name_of_a_positional_parameter_is_not_the_payload(store: CountingStore) -> None:
    """Python puts it into `**rest`."""
    seen: list[Any] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix="p")
    def charge(order: int, /, **rest: Any) -> None:
        seen.append((order, rest))

    charge(7, order=8)

    assert seen == [(7, {"order": 8})]
    assert list(store._records) == [key_of(7)]
    with pytest.raises(RuntimeError, match="^Unable to extract 'order'"):
        charge(order=8)  # type: ignore[call-arg]


def test_a_payload_that_a_partial_has_bound_is_not_what_the_caller_passed(store: CountingStore) -> None:
    charge = idempotent_function(
        partial(lambda customer, order: order, order=7), data_keyword_argument="order", persistence_store=store, key_prefix="p"
    )

    with pytest.raises(RuntimeError, match="^Unable to extract 'order'"):
        charge("ann")
    assert charge("ann", order=8) == 8
    assert list(store._records) == [key_of(8)]


@pytest.mark.parametrize("name", ["args", "kwargs"])
def test_a_wrapped_functions_parameter_may_have_the_name_of_the_wrappers_rest(store: CountingStore, name: str) -> None:
    function = passed_on(lambda args, kwargs: args)
    decorated = idempotent_function(function, data_keyword_argument=name, persistence_store=store, key_prefix="p")

    decorated(args=1, kwargs=2)

    assert list(store._records) == [key_of(1 if name == "args" else 2)]


def test_the_decorator_can_be_called_with_the_function(store: CountingStore) -> None:
    work = Work(result="paid")

    def charge(order: int) -> Any:
        return work(order)

    safe = idempotent_function(charge, data_keyword_argument="order", persistence_store=store)

    assert [safe(order=7), safe(7)] == ["paid", "paid"]
    assert work.runs == [7]


def test_further_keywords_of_the_decorator_are_tolerated(store: CountingStore) -> None:
    """As in Powertools, whose users pass options of other utilities along."""
    work = Work()
    safe = idempotent_function(data_keyword_argument="payload", persistence_store=store, another="option")(work)
    also = idempotent_function(work, data_keyword_argument="payload", persistence_store=store, another="option")

    safe(payload=1)
    also(payload=1)

    assert len(work.runs) == 1


class Shop:
    """A class whose methods are idempotent, whatever object they are called on."""

    store = CountingStore(clock_ms=lambda: 1_800_000_000_000)

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: list[Any] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def charge(self, order: int) -> str:
        self.runs.append(order)
        return self.name

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def acharge(self, order: int) -> str:
        self.runs.append(order)
        return self.name

    @staticmethod
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def quote(order: int) -> tuple[int]:
        return (order,)

    @classmethod
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def named(cls, order: int) -> tuple[str, int]:
        return cls.__name__, order


@pytest.fixture
def shop() -> Shop:
    Shop.store._records.clear()
    return Shop("corner")


def test_a_method_finds_its_payload_after_self(shop: Shop) -> None:
    assert [shop.charge(7), shop.charge(order=7), Shop.charge(shop, 7)] == ["corner"] * 3
    assert shop.runs == [7]


def test_a_methods_key_does_not_depend_on_the_object(shop: Shop) -> None:
    other = Shop("market")
    shop.charge(7)

    assert other.charge(7) == "corner"
    assert other.runs == []


def test_an_async_method_finds_its_payload_after_self(shop: Shop) -> None:
    async def story() -> list[str]:
        return [await shop.acharge(7), await shop.acharge(order=7)]

    assert asyncio.run(story()) == ["corner"] * 2
    assert shop.runs == [7]


def test_static_and_class_methods_are_decorated_below_their_own_decorator(shop: Shop) -> None:
    assert shop.quote(7) == (7,)
    assert Shop.quote(order=7) == [7]
    assert Shop.named(7) == ("Shop", 7)
    assert shop.named(order=7) == ["Shop", 7]


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_the_wrong_order_of_method_decorators_is_named(store: CountingStore, kind: Any) -> None:
    def charge(order: int) -> None: ...

    with pytest.raises(TypeError, match=f"^Put @{kind.__name__} above the idempotent decorator, not below it$"):
        idempotent_function(kind(charge), data_keyword_argument="order", persistence_store=store)


class Charge:
    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, order: int, times: int = 1) -> str:
        self.runs.append(order)
        return "paid" * times

    async def later(self, order: int) -> str:
        return self(order)


class AsyncCharge(Charge):
    async def __call__(self, order: int, times: int = 1) -> str:  # type: ignore[override]
        return super().__call__(order, times)


def test_a_callable_object_can_be_made_idempotent(store: CountingStore) -> None:
    charge = Charge()
    safe = idempotent_function(charge, data_keyword_argument="order", persistence_store=store)
    also = make_idempotent(charge, persistence_store=store)

    assert [safe(7), safe(order=7), also(7)] == ["paid"] * 3
    assert charge.runs == [7]
    assert [key.partition("#")[0] for key in store._records] == [f"test-func.{__name__}.Charge"]


def test_an_async_callable_object_is_awaited(store: CountingStore) -> None:
    charge = AsyncCharge()
    safe = make_idempotent(charge, persistence_store=store)
    also: Any = idempotent_function(charge, data_keyword_argument="order", persistence_store=store)

    async def story() -> list[Any]:
        return [await safe(7), await safe(7), await also(order=7)]

    assert asyncio.run(story()) == ["paid"] * 3
    assert charge.runs == [7]


def test_a_bound_method_can_be_made_idempotent_and_stays_unchanged(store: CountingStore) -> None:
    shop, charge = Charge(), Charge()
    safe = make_idempotent(charge.__call__, persistence_store=store)
    by_name = idempotent_function(charge.__call__, data_keyword_argument="order", persistence_store=store)

    assert [safe(7), safe(7), by_name(7)] == ["paid"] * 3
    assert charge.runs == [7]
    charge(7)
    assert charge.runs == [7, 7]
    assert shop.runs == []


def test_a_bound_async_method_can_be_made_idempotent(store: CountingStore) -> None:
    charge = Charge()
    safe = make_idempotent(charge.later, persistence_store=store)

    async def story() -> list[str]:
        return [await safe(7), await safe(7)]

    assert asyncio.run(story()) == ["paid"] * 2
    assert charge.runs == [7]


def test_a_partial_can_be_made_idempotent(store: CountingStore) -> None:
    charge = Charge()
    safe = make_idempotent(partial(charge, times=2), persistence_store=store)

    assert [safe(7), safe(7)] == ["paidpaid"] * 2
    assert charge.runs == [7]


def test_a_partial_of_an_async_function_is_awaited(store: CountingStore) -> None:
    work = Work(result="paid")

    async def charge(customer: str, order: int) -> Any:
        return work((customer, order))

    safe = make_idempotent(partial(charge, "ann"), persistence_store=store, key_prefix="p")

    async def story() -> list[Any]:
        return [await safe(7), await safe(7)]

    assert asyncio.run(story()) == ["paid"] * 2
    assert work.runs == [("ann", 7)]
    assert list(store._records) == [key_of(7)]


def test_a_builtin_can_be_made_idempotent(store: CountingStore) -> None:
    safe = make_idempotent(sorted, persistence_store=store)

    assert safe([2, 1], reverse=True) == [2, 1]
    assert safe([2, 1], reverse=False) == [2, 1]


def test_a_builtin_without_a_signature_can_be_made_idempotent(store: CountingStore) -> None:
    safe = idempotent_function(dict, data_keyword_argument="order", persistence_store=store)

    assert safe(order=7) == {"order": 7}


def test_lambda_expressions_are_told_apart_by_their_prefixes(store: CountingStore) -> None:
    double = make_idempotent(lambda order: 2 * order, persistence_store=store, key_prefix="double")
    triple = make_idempotent(lambda order: 3 * order, persistence_store=store, key_prefix="triple")

    assert [double(1), triple(1), double(1), triple(1)] == [2, 3, 2, 3]


def test_a_classmethod_object_is_refused_by_make_idempotent(store: CountingStore) -> None:
    with pytest.raises(TypeError, match="^Put @classmethod above"):
        make_idempotent(Shop.__dict__["named"], persistence_store=store)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_payload_is_the_positional_argument_of_the_index(store: CountingStore, index: int) -> None:
    safe = make_idempotent(lambda *arguments: None, persistence_store=store, data_index_argument=index, key_prefix="p")

    safe("a", "b", "c")

    assert list(store._records) == [key_of("abc"[index])]


def test_the_payload_is_the_keyword_argument_where_it_is_passed_by_keyword(store: CountingStore) -> None:
    safe = make_idempotent(
        lambda *arguments, **fields: None, persistence_store=store, data_keyword_argument="order", key_prefix="p"
    )

    safe("customer", order=7)
    safe(8)

    assert list(store._records) == [key_of(7), key_of(8)]


def test_a_payload_that_was_not_passed_is_an_error(store: CountingStore) -> None:
    safe = make_idempotent(
        lambda *args, **kwargs: None, persistence_store=store, data_index_argument=1, data_keyword_argument="order"
    )

    with pytest.raises(RuntimeError, match="neither positional argument 1 nor keyword argument 'order'"):
        safe(7)

    assert store.asked == []


def test_a_negative_index_is_refused(store: CountingStore) -> None:
    with pytest.raises(ValueError, match="^data_index_argument counts from 0, and -1 is less$"):
        make_idempotent(Work(), persistence_store=store, data_index_argument=-1)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_lambda_context_among_the_arguments_gives_the_deadline(
    store: CountingStore, stored: Callable[[Any], Any], by_keyword: bool
) -> None:
    lease_ms: list[int] = []

    def handler(event: Any, extra: Any, context: Any) -> None:
        lease_ms.append(stored(event).in_progress_expiry_timestamp - store.clock_ms())

    safe = make_idempotent(handler, persistence_store=store, key_prefix="p")
    if by_keyword:
        safe({"id": 1}, extra=0, context=LambdaContext(2_000))
    else:
        safe({"id": 1}, 0, LambdaContext(2_000))

    assert lease_ms == [3_000]


def test_a_payload_is_never_taken_for_the_lambda_context(store: CountingStore) -> None:
    """A payload that happens to be, or to hold, a context is data."""

    class Payload(dict[str, int]):
        def get_remaining_time_in_millis(self) -> int:
            raise AssertionError("asked the payload for a deadline")

    make_idempotent(Work(), persistence_store=store, key_prefix="p")(Payload(id=1))

    assert list(store._records) == [key_of({"id": 1})]


def test_what_is_no_callable_is_refused(store: CountingStore) -> None:
    not_callable: Any = 7
    with pytest.raises(TypeError, match="^Only callables can be made idempotent, and int is none$"):
        make_idempotent(not_callable, persistence_store=store)
    with pytest.raises(TypeError, match="^Only callables can be made idempotent, and int is none$"):
        idempotent_function(not_callable, data_keyword_argument="order", persistence_store=store)


def test_a_class_can_be_made_idempotent_with_a_serializer_of_its_objects(store: CountingStore) -> None:
    from idempotency import CustomDictSerializer

    serializer = CustomDictSerializer(to_dict=lambda shop: shop.name, from_dict=Shop)
    make = make_idempotent(Shop, persistence_store=store, output_serializer=serializer, config=IdempotencyConfig())

    assert [make("corner").name, make("corner").name] == ["corner", "corner"]


def test_a_keyword_for_a_positional_parameter_is_not_the_payload_of_a_made_function(store: CountingStore) -> None:
    safe = make_idempotent(lambda order, /, **rest: order, persistence_store=store, data_keyword_argument="order", key_prefix="p")

    assert safe(7, order=8) == 7
    assert list(store._records) == [key_of(7)]


def test_a_function_without_the_named_parameter_is_refused_when_it_is_decorated(store: CountingStore) -> None:
    """Powertools finds out at the first call."""

    def charge(customer: str, *, order: int) -> None: ...

    for decorate in (idempotent_function, make_idempotent):
        with pytest.raises(TypeError) as refused:
            decorate(charge, data_keyword_argument="payload", persistence_store=store)
        assert str(refused.value) == (
            f"{__name__}.{charge.__qualname__} has no parameter 'payload': pass data_keyword_argument='customer' or 'order'"
        )


@pytest.mark.parametrize("remember", [cache, lru_cache(maxsize=4)])
def test_a_cache_of_coroutines_is_refused(store: CountingStore, remember: Any) -> None:
    async def charge(order: int) -> None: ...

    with pytest.raises(TypeError) as refused:
        idempotent_function(remember(charge), data_keyword_argument="order", persistence_store=store)
    assert str(refused.value) == (
        f"{__name__}.{charge.__qualname__} is cached, and a coroutine cannot be awaited twice: decorate the async function itself"
    )


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_mock_among_the_arguments_is_not_taken_for_the_lambda_context(
    store: CountingStore, stored: Callable[[Any], Any], by_keyword: bool
) -> None:
    """It answers every name; the milliseconds that it would give are 1."""
    lease_ms: list[int] = []

    def handler(event: Any, client: Any, context: Any) -> None:
        lease_ms.append(stored(event).in_progress_expiry_timestamp - store.clock_ms())

    safe = make_idempotent(handler, persistence_store=store, key_prefix="p")
    if by_keyword:
        safe({"id": 1}, client=MagicMock(), context=LambdaContext(2_000))
    else:
        safe({"id": 1}, MagicMock(), LambdaContext(2_000))

    assert lease_ms == [3_000]


def mocked_context(**options: Any) -> Any:
    context = MagicMock(**options)
    context.get_remaining_time_in_millis.return_value = 2_000
    return context


@pytest.mark.parametrize(
    "context",
    [mocked_context(spec=LambdaContext), SimpleNamespace(get_remaining_time_in_millis=lambda: 2_000)],
    ids=["mock of a context", "namespace"],
)
def test_what_stands_for_a_lambda_context_gives_the_deadline(
    store: CountingStore, stored: Callable[[Any], Any], context: Any
) -> None:
    lease_ms: list[int] = []
    safe = make_idempotent(
        lambda event, context: lease_ms.append(stored(event).in_progress_expiry_timestamp - store.clock_ms()),
        persistence_store=store,
        key_prefix="p",
    )

    safe({"id": 1}, context)

    assert lease_ms == [3_000]
