"""What is refused when a function is decorated, so that no invocation has to find out."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import CountingStore, Form, Work
from jmespath.exceptions import ParseError

from idempotency import (
    AsyncBasePersistenceLayer,
    BasePersistenceLayer,
    DataRecord,
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    IdempotencyPersistenceConfigError,
    InMemoryPersistenceLayer,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class AsyncStore(AsyncBasePersistenceLayer):
    async def _put_record(self, data_record: DataRecord) -> DataRecord | None: ...

    async def _get_record(self, idempotency_key: str) -> DataRecord: ...

    async def _update_record(self, data_record: DataRecord) -> None: ...

    async def _delete_record(self, data_record: DataRecord) -> None: ...


class FourHooks(BasePersistenceLayer):
    def _put_record(self, data_record: DataRecord) -> None: ...

    def _get_record(self, idempotency_key: str) -> DataRecord: ...

    def _update_record(self, data_record: DataRecord) -> None: ...

    def _delete_record(self, data_record: DataRecord) -> None: ...


@pytest.mark.parametrize("option", ["event_key_jmespath", "payload_validation_jmespath"])
def test_an_expression_that_is_no_jmespath_is_refused_and_named(form: Form, store: CountingStore, option: str) -> None:
    """Powertools finds out at the first call."""
    with pytest.raises(ParseError) as refused:
        form.decorate(Work(), store, IdempotencyConfig(**{option: "[id"}))  # type: ignore[arg-type]

    assert refused.value.__notes__ == ["in the JMESPath expression '[id'"]


@pytest.mark.parametrize("name", ["md6", "", "shake_128", "new", "algorithms_available", "blake2b_", "__name__", "pbkdf2_hmac"])
def test_a_hash_function_that_is_none_is_refused(form: Form, store: CountingStore, name: str) -> None:
    """`shake_128` is in hashlib, but its digests have no length of their own."""
    with pytest.raises(ValueError, match=f"^hash_function '{name}' is no hash of hashlib"):
        form.decorate(Work(), store, IdempotencyConfig(hash_function=name))


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256", "sha3_512", "blake2b"])
def test_any_hash_of_hashlib_will_do(form: Form, store: CountingStore, name: str) -> None:
    import hashlib

    form.decorate(Work(), store, IdempotencyConfig(hash_function=name))(7)

    assert list(store._records) == [f"p#{getattr(hashlib, name)(b'7').hexdigest()}"]


def powertools_store() -> Any:
    from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer as PowertoolsLayer

    return PowertoolsLayer("table", boto3_client=object())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: None, "NoneType"),
        (lambda: "table", "str"),
        (lambda: InMemoryPersistenceLayer, r"a class: pass an object, such as InMemoryPersistenceLayer\(...\)"),
        (lambda: AsyncStore, r"a class: pass an object, such as AsyncStore\(...\)"),
        (powertools_store, r"aws_lambda_powertools\.\S+\.DynamoDBPersistenceLayer"),
    ],
    ids=["None", "a name", "a class", "an async class", "Powertools'"],
)
def test_what_is_no_store_of_this_library_is_refused(form: Form, make: Callable[[], Any], kind: str) -> None:
    with pytest.raises(TypeError, match=f"^persistence_store must be one of this library's stores .*, not {kind}$"):
        form.decorate(Work(), make())


HOOKS = ["_put_record", "_get_record", "_update_record", "_delete_record"]


@pytest.mark.parametrize("name", HOOKS)
def test_a_sync_store_with_an_async_hook_is_refused(form: Form, name: str) -> None:
    """Nobody would await the hook: every claim would be granted, and nothing written."""

    async def hook(self: Any, argument: Any) -> Any: ...

    store = type("HalfAsync", (FourHooks,), {name: hook})()

    with pytest.raises(TypeError, match=f"^HalfAsync.{name} is async: derive the store from AsyncBasePersistenceLayer$"):
        form.decorate(Work(), store)


class AsyncHook:
    async def __call__(self, *arguments: Any) -> Any: ...


async def async_hook(*arguments: Any) -> Any: ...


@pytest.mark.parametrize("hook", [async_hook, AsyncHook(), AsyncHook().__call__, partial(async_hook, 1)])
@pytest.mark.parametrize(
    ("option", "sentence"),
    [("response_hook", "response_hook must be a sync function"), ("observers", "observers must be sync functions")],
)
def test_an_async_function_is_refused_where_nobody_awaits_it(
    form: Form, store: CountingStore, hook: Any, option: str, sentence: str
) -> None:
    config = IdempotencyConfig(**{option: hook if option == "response_hook" else [print, hook]})  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=f"^{sentence}: pass a `def`, not an `async def`$"):
        form.decorate(Work(), store, config)


@pytest.mark.parametrize("decorator", ["idempotent", "idempotent_function", "make_idempotent"])
def test_an_async_store_is_refused_for_a_sync_function(decorator: Any) -> None:
    store: Any = AsyncStore()

    with pytest.raises(TypeError, match="^AsyncStore is an async store: it serves `async def` functions only$"):
        Form(decorator, is_async=False).decorate(Work(), store)


def test_what_is_no_configuration_is_refused(form: Form, store: CountingStore) -> None:
    config: Any = {"event_key_jmespath": "id"}

    with pytest.raises(TypeError, match="^config must be an IdempotencyConfig, not dict$"):
        form.decorate(Work(), store, config)
    config = IdempotencyConfig
    with pytest.raises(
        TypeError, match=r"^config must be an IdempotencyConfig, not a class: pass an object, such as IdempotencyConfig\(...\)$"
    ):
        form.decorate(Work(), store, config)


def test_forbidding_takeovers_needs_a_store_that_knows_leases(form: Form) -> None:
    """A store of four hooks decides by itself what it takes over."""
    with pytest.raises(IdempotencyPersistenceConfigError, match="FourHooks does not$"):
        form.decorate(Work(), FourHooks(), IdempotencyConfig(orphan_takeover=False))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_seconds", 0),
        ("lease_seconds", -1),
        ("lease_seconds", math.nan),
        ("lease_margin_seconds", -0.001),
        ("lease_margin_seconds", math.nan),
        ("wait_for_in_progress_seconds", -1),
        ("wait_for_in_progress_seconds", math.nan),
        ("expires_after_seconds", math.nan),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{option} must"):
        IdempotencyConfig(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option", ["lease_seconds", "lease_margin_seconds", "wait_for_in_progress_seconds", "expires_after_seconds"]
)
def test_an_endless_time_is_refused(option: str) -> None:
    """Milliseconds of infinity cannot be stored; the call would fail with an OverflowError."""
    with pytest.raises(ValueError, match=f"^{option} must"):
        IdempotencyConfig(**{option: math.inf})  # type: ignore[arg-type]


NAMES = [
    "key_attr",
    "expiry_attr",
    "in_progress_expiry_attr",
    "status_attr",
    "data_attr",
    "validation_key_attr",
    "owner_token_attr",
    "generation_attr",
    "holder_attr",
    "result_not_kept_attr",
]


@pytest.mark.parametrize("option", [*NAMES, "sort_key_attr"])
@pytest.mark.parametrize("value", ["", 7])
def test_a_dynamodb_attribute_needs_a_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be an attribute's name, not {value!r}$"):
        DynamoDBPersistenceLayer("table", **{option: value})


@pytest.mark.parametrize("option", NAMES[1:])
def test_two_dynamodb_attributes_cannot_share_a_name(option: str) -> None:
    taken: dict[str, Any] = {option: "id"}

    with pytest.raises(ValueError, match=rf"^key_attr and {option} cannot both be \[id\]$"):
        DynamoDBPersistenceLayer("table", **taken)


def test_the_two_keys_of_a_dynamodb_table_cannot_share_a_name() -> None:
    with pytest.raises(ValueError) as refused:
        DynamoDBPersistenceLayer("table", key_attr="id", sort_key_attr="id")

    assert str(refused.value) == "key_attr [id] and sort_key_attr [id] cannot be the same!"


@pytest.mark.parametrize("name", ["", None, 7])
def test_a_dynamodb_store_needs_a_tables_name(name: Any) -> None:
    with pytest.raises(ValueError, match="^table_name must be a table's name, not"):
        DynamoDBPersistenceLayer(name)


def test_a_store_without_all_four_hooks_cannot_be_made() -> None:
    class Half(BasePersistenceLayer):
        def _put_record(self, data_record: DataRecord) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
