"""The settings of a function, and the Lambda context that they carry."""

from __future__ import annotations

import hashlib
import inspect
import math
from contextvars import Context, copy_context
from copy import copy
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from threading import Thread
from types import MappingProxyType
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig as TheirConfig
from doubles import LambdaContext

from idempotency.config import Deadline, IdempotencyConfig


def parameters_of(function: Any) -> list[tuple[str, Any]]:
    return [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]


def test_the_first_settings_are_powertools_in_its_order_with_its_defaults() -> None:
    theirs = parameters_of(TheirConfig)

    assert parameters_of(IdempotencyConfig)[: len(theirs)] == theirs


def test_our_own_settings_are_by_keyword_only() -> None:
    own = list(inspect.signature(IdempotencyConfig).parameters.values())[len(parameters_of(TheirConfig)) :]

    assert {parameter.kind for parameter in own} == {inspect.Parameter.KEYWORD_ONLY}
    assert {parameter.name: parameter.default for parameter in own} == {
        "lease_seconds": 60,
        "lease_margin_seconds": 1,
        "wait_for_in_progress_seconds": 0,
        "orphan_takeover": True,
        "require_all_key_fields": False,
        "observers": (),
        "issued_at_jmespath": "",
    }


def test_every_setting_can_be_read_under_its_name() -> None:
    given: dict[str, Any] = {
        "event_key_jmespath": "id",
        "payload_validation_jmespath": "amount",
        "jmespath_options": {"custom_functions": object()},
        "raise_on_no_idempotency_key": True,
        "expires_after_seconds": 5,
        "use_local_cache": True,
        "local_cache_max_items": 7,
        "hash_function": "sha256",
        "lambda_context": LambdaContext(),
        "response_hook": lambda response, record: response,
        "lease_seconds": 0.5,
        "lease_margin_seconds": 0,
        "wait_for_in_progress_seconds": 2,
        "orphan_takeover": False,
        "require_all_key_fields": True,
        "observers": (print,),
        "issued_at_jmespath": "time",
    }

    config = IdempotencyConfig(**given)

    assert set(given) == set(inspect.signature(IdempotencyConfig).parameters)
    assert {name: getattr(config, name) for name in given} == given


def test_observers_given_as_a_list_are_kept_as_they_were() -> None:
    observers = [print]
    config = IdempotencyConfig(observers=observers)

    observers.append(repr)

    assert config.observers == (print,)


@pytest.mark.parametrize(("expires", "margin"), [(1, 1), (0, 0), (60, 90)])
def test_a_time_of_issue_needs_results_that_outlive_the_difference_of_clocks(expires: int, margin: int) -> None:
    with pytest.raises(
        ValueError, match=r"^expires_after_seconds must exceed lease_margin_seconds, .*: every request would be too"
    ):
        IdempotencyConfig(issued_at_jmespath="time", expires_after_seconds=expires, lease_margin_seconds=margin)
    IdempotencyConfig(expires_after_seconds=expires, lease_margin_seconds=margin)
    IdempotencyConfig(issued_at_jmespath="time", expires_after_seconds=margin + 1, lease_margin_seconds=margin)


@pytest.mark.parametrize("seconds", [0, -1, -0.001, math.nan, math.inf, -math.inf])
def test_a_lease_must_last(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^lease_seconds must be a positive number, not "):
        IdempotencyConfig(lease_seconds=seconds)


@pytest.mark.parametrize("seconds", [-0.001, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lease_margin_seconds", "wait_for_in_progress_seconds"])
def test_a_margin_and_a_wait_may_be_nothing_but_not_less(name: str, seconds: float) -> None:
    assert getattr(IdempotencyConfig(**{name: 0}), name) == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name} must be 0 or more, not {seconds}$"):
        IdempotencyConfig(**{name: seconds})  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_a_result_is_replayed_for_a_time_that_can_be_added_to_the_present(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"^expires_after_seconds must be 0 or more, not {seconds}$"):
        IdempotencyConfig(expires_after_seconds=seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, 0.5, 10**9, Decimal(60), Fraction(1, 2)])
def test_a_result_may_expire_at_once_or_late(seconds: Any) -> None:
    assert IdempotencyConfig(expires_after_seconds=seconds).expires_after_seconds == seconds


#: Every option that is a time.
TIMES = ["expires_after_seconds", "lease_seconds", "lease_margin_seconds", "wait_for_in_progress_seconds"]


@pytest.mark.parametrize("option", TIMES)
@pytest.mark.parametrize(
    ("value", "kind"),
    [("60", "a str"), (b"60", "a bytes"), (None, "None"), (True, "a bool"), ([60], "a list"), (60j, "a complex")],
)
def test_a_time_is_a_number_of_seconds(option: str, value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^{option} must be a number of seconds, not {kind}$"):
        IdempotencyConfig(**{option: value})


@pytest.mark.parametrize("option", TIMES)
def test_a_timedelta_is_refused_with_what_to_pass(option: str) -> None:
    with pytest.raises(TypeError, match=rf"^{option} must be a number of seconds, not a timedelta: pass its total_seconds\(\)$"):
        IdempotencyConfig(**{option: timedelta(minutes=1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", TIMES)
def test_a_time_that_no_calendar_has_is_refused(option: str) -> None:
    IdempotencyConfig(**{option: 10**11})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{option} must be at most 100000000000 seconds"):
        IdempotencyConfig(**{option: 1e12})  # type: ignore[arg-type]


async def awaited(*_: object) -> None:
    """What is not run by who calls it."""


class AwaitedWhenCalled:
    """The same as an object."""

    async def __call__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("event_key_jmespath", 7, "a text, not an int"),
        ("event_key_jmespath", str, "a text, not the class str"),
        ("event_key_jmespath", ["id"], "a text, not a list"),
        ("payload_validation_jmespath", b"id", "a text, not a bytes"),
        ("jmespath_options", "custom", "a dictionary whose keys are texts, not a str"),
        ("jmespath_options", {1: 2}, "a dictionary whose keys are texts, not a dict"),
        ("raise_on_no_idempotency_key", "false", "True or False, not a str"),
        ("use_local_cache", "no", "True or False, not a str"),
        ("orphan_takeover", 0.5, "True or False, not a float"),
        ("require_all_key_fields", [], "True or False, not a list"),
        ("local_cache_max_items", None, "a whole number, not None"),
        ("local_cache_max_items", 2.0, "a whole number, not a float"),
        ("local_cache_max_items", True, "a whole number, not a bool"),
        ("local_cache_max_items", "256", "a whole number, not a str"),
        ("hash_function", None, "a text, not None"),
        ("hash_function", hashlib.sha256, "a text, not a builtin_function_or_method"),
        ("lambda_context", object(), "a Lambda context, not an object, which has no get_remaining_time_in_millis"),
        ("lambda_context", LambdaContext, "a Lambda context, not the class LambdaContext: create an object of it"),
        ("response_hook", "hook", "a function or another callable, not a str"),
        ("response_hook", awaited, "a plain function: it is not awaited, and an async one would not run"),
        ("observers", print, "a list of functions or other callables, not a builtin_function_or_method"),
        ("observers", None, "a list of functions or other callables, not None"),
        ("observers", "print", "a list of functions or other callables, not a str"),
    ],
)
def test_an_option_of_another_type_is_refused_with_what_to_pass(option: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        IdempotencyConfig(**{option: value})

    assert str(refused.value) == f"{option} must be {said}"


@pytest.mark.parametrize("items", [0, -1])
def test_a_local_cache_for_nothing_is_refused(items: int) -> None:
    with pytest.raises(ValueError, match=f"^local_cache_max_items must be at least 1, not {items}$"):
        IdempotencyConfig(local_cache_max_items=items)


@pytest.mark.parametrize(
    ("observer", "said"),
    [
        (3, "an observer must be a function or another callable, not an int"),
        (awaited, "an observer must be a plain function"),
        (AwaitedWhenCalled(), "an observer must be a plain function"),
        (AsyncMock(), "an observer must be a plain function"),
        (LambdaContext, "observers must be callable objects, not the class LambdaContext: create an object of it"),
    ],
)
def test_an_observer_that_could_not_hear_is_refused(observer: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        IdempotencyConfig(observers=[observer])


def test_mocks_and_the_values_that_powertools_takes_are_accepted() -> None:
    options: Any = {
        "event_key_jmespath": None,
        "payload_validation_jmespath": None,
        "jmespath_options": MappingProxyType({}),
        "lambda_context": MagicMock(),
        "response_hook": MagicMock(),
        "observers": iter([MagicMock()]),
        "use_local_cache": 1,
        "raise_on_no_idempotency_key": None,
    }

    config = IdempotencyConfig(**options)

    assert (config.event_key_jmespath, config.payload_validation_jmespath) == ("", "")
    assert len(config.observers) == 1


def test_the_smallest_lease_lasts() -> None:
    assert IdempotencyConfig(lease_seconds=0.001).lease_seconds == 0.001


def test_a_registered_context_is_found_by_the_calls_of_its_thread_and_remembered_for_others() -> None:
    config = IdempotencyConfig()
    context = LambdaContext()

    def invocation() -> object:
        config.register_lambda_context(context)
        config.lambda_context = None
        return config.registered_lambda_context()

    assert copy_context().run(invocation) is context
    assert config.registered_lambda_context() is None
    config.register_lambda_context(context)
    assert config.lambda_context is context
    assert Context().run(config.registered_lambda_context) is context


def test_a_configuration_with_a_registered_context_can_be_copied() -> None:
    config = IdempotencyConfig("id")
    config.register_lambda_context(LambdaContext())

    assert copy(config).event_key_jmespath == "id"


def test_concurrent_invocations_do_not_mix_their_contexts() -> None:
    config = IdempotencyConfig()
    found: dict[str, object] = {}

    def invocation(context: LambdaContext) -> None:
        config.register_lambda_context(context)
        found[context.aws_request_id] = config.registered_lambda_context()

    contexts = [LambdaContext(aws_request_id=str(number)) for number in range(4)]
    threads = [Thread(target=copy_context().run, args=(invocation, context)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {context.aws_request_id: context for context in contexts}
    assert config.lambda_context in contexts


@pytest.mark.parametrize(("candidate", "fits"), [(LambdaContext(), True), (object(), False), (None, False)])
def test_a_lambda_context_is_told_by_what_it_can_do(candidate: object, fits: bool) -> None:
    assert isinstance(candidate, Deadline) is fits
