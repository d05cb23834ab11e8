"""What counts as no idempotency key, and what then happens: an unprotected run with one warning, or a refusal."""

from __future__ import annotations

import asyncio
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from behaviour.kit import CountingStore, Form, Work, key_of

from idempotency import (
    Attempt,
    Executed,
    IdempotencyConfig,
    IdempotencyKeyError,
    IdempotencyPersistenceLayerError,
    current_attempt,
    idempotent,
    idempotent_function,
    make_idempotent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WARNING = "No idempotency key value found. Skipping persistence layer and validation operations. jmespath: {expression}"
MISSING: list[tuple[str, Any]] = [
    ("id", {}),
    ("id", {"id": None}),
    ("id", {"id": ""}),
    ("id", {"id": []}),
    ("id", {"id": ()}),
    ("id", {"id": {}}),
    ("[id, user]", {"other": 1}),
    ("{a: id, b: user}", {"other": 1}),
    ("", {}),
    ("", None),
    ("", ""),
    ("", []),
]


@pytest.mark.parametrize(("expression", "event"), MISSING, ids=repr)
def test_without_a_key_the_function_runs_unprotected_after_one_warning(
    form: Form, store: CountingStore, expression: str, event: Any
) -> None:
    """Powertools warns twice."""
    work = Work(result=object())
    call = form.decorate(work, store, IdempotencyConfig(expression))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(event)

    assert result is work.result
    (warning,) = caught
    assert (warning.category, str(warning.message)) == (UserWarning, WARNING.format(expression=expression))
    assert store.asked == []


@pytest.mark.parametrize(("expression", "event"), MISSING, ids=repr)
def test_where_a_key_is_required_the_function_does_not_run_without_it(
    form: Form, store: CountingStore, expression: str, event: Any
) -> None:
    work = Work()
    call = form.decorate(work, store, IdempotencyConfig(expression, raise_on_no_idempotency_key=True))

    with pytest.raises(IdempotencyKeyError, match="^No data found to create a hashed idempotency_key$"):
        call(event)

    assert (work.runs, store.asked) == ([], [])


@pytest.mark.parametrize("value", [0, 0.0, False, [0], {"a": 0}, [None, 1], " "], ids=repr)
def test_what_is_small_is_still_a_key(form: Form, store: CountingStore, value: Any) -> None:
    form.decorate(Work(), store, IdempotencyConfig("id", raise_on_no_idempotency_key=True))({"id": value})

    assert list(store._records) == [key_of(value)]


def line_of_the_warning(caught: pytest.WarningsRecorder) -> tuple[str, str]:
    """The file and the text of the line that the only warning points at."""
    (warning,) = caught
    return warning.filename, Path(warning.filename).read_text().splitlines()[warning.lineno - 1].strip()


def test_the_warning_points_at_the_callers_line(store: CountingStore) -> None:
    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None: ...

    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    def charge(order: Any) -> None: ...

    made = make_idempotent(Work(), persistence_store=store)

    with pytest.warns(UserWarning) as caught:
        handler({}, None)  # the handler's caller
    assert line_of_the_warning(caught) == (__file__, "handler({}, None)  # the handler's caller")
    with pytest.warns(UserWarning) as caught:
        charge(order={})  # the function's caller
    assert line_of_the_warning(caught) == (__file__, "charge(order={})  # the function's caller")
    with pytest.warns(UserWarning) as caught:
        made({})  # the made function's caller
    assert line_of_the_warning(caught) == (__file__, "made({})  # the made function's caller")
    with pytest.warns(UserWarning) as caught:
        charge.with_outcome(order={})  # the outcome's caller
    assert line_of_the_warning(caught) == (__file__, "charge.with_outcome(order={})  # the outcome's caller")


def test_the_warning_of_a_partly_missing_key_points_at_the_callers_line(store: CountingStore) -> None:
    config = IdempotencyConfig("[user, order]", raise_on_no_idempotency_key=True)
    made = make_idempotent(Work(), persistence_store=store, config=config)

    with pytest.warns(UserWarning) as caught:
        made({"user": 1})  # the caller
    assert line_of_the_warning(caught) == (__file__, 'made({"user": 1})  # the caller')


def test_the_warning_of_an_async_call_points_at_the_awaiting_line(store: CountingStore) -> None:
    @idempotent_function(data_keyword_argument="order", persistence_store=store)
    async def charge(order: Any) -> None: ...

    async def story() -> None:
        await charge(order={})  # the awaiting line

    with pytest.warns(UserWarning) as caught:
        asyncio.run(story())

    assert line_of_the_warning(caught) == (__file__, "await charge(order={})  # the awaiting line")


def test_the_outcome_of_an_unprotected_run_has_no_record(form: Form, store: CountingStore) -> None:
    with pytest.warns(UserWarning):
        outcome = form.decorate(Work(result="ran"), store).outcome({})

    assert outcome == Executed("ran", None)


def test_an_unprotected_run_has_an_attempt_that_nothing_else_shares(form: Form, store: CountingStore) -> None:
    """So that a function need not ask, and its downstream calls are not taken for repetitions of each other."""
    seen: list[Attempt] = []
    call = form.decorate(lambda event: seen.append(current_attempt()), store)

    with pytest.warns(UserWarning):
        call({})
    with pytest.warns(UserWarning):
        call({})

    assert [(each.owner_token, each.generation, each.lease_end_ms) for each in seen] == [("", 0, None)] * 2
    assert seen[0].downstream_key != seen[1].downstream_key


@pytest.mark.parametrize(
    ("expression", "event"),
    [
        ("[user, order]", {"user": "ann"}),
        ("[user, order]", {"user": "ann", "order": None}),
        ("{u: user, o: order}", {"order": 7}),
        ("data.[user, order]", {"data": {"user": "ann"}}),
        ("data | [user, order]", {"data": {"user": "ann"}}),
        ("[user, [order, item]]", {"user": "ann", "order": 7}),
        ("[user, order] || id", {"user": "ann", "id": 7}),
        ("to_string([user, order])", {"user": "ann"}),
        ("[user, order][:2]", {"user": "ann"}),
        ("[[user, order]][0]", {"user": "ann"}),
        ("merge({u: user}, {o: order})", {"user": "ann"}),
        ("user && [user, order]", {"user": "ann"}),
        ("join('-', [to_string(user), to_string(order)])", {"user": "ann"}),
    ],
)
def test_a_key_that_is_partly_missing_is_refused_where_all_of_it_is_required(
    form: Form, store: CountingStore, expression: str, event: dict[str, Any]
) -> None:
    """Otherwise `[user, order]` without an order would be one key for all of a user's orders."""
    work = Work()
    call = form.decorate(work, store, IdempotencyConfig(expression, require_all_key_fields=True))

    with pytest.raises(IdempotencyKeyError, match="^The idempotency key is incomplete"):
        call(event)

    assert (work.runs, store.asked) == ([], [])


def test_a_key_that_is_partly_missing_is_a_key_by_default(form: Form, store: CountingStore) -> None:
    form.decorate(Work(), store, IdempotencyConfig("[user, order]"))({"user": "ann"})

    assert list(store._records) == [key_of(["ann", None])]


def test_where_a_key_is_required_the_first_one_that_is_partly_missing_is_warned_of(form: Form, store: CountingStore) -> None:
    """Once per function, because the expression is at fault, or the sender."""
    config = IdempotencyConfig("[user, order.id]", raise_on_no_idempotency_key=True)
    calls = [form.decorate(Work(), store, config, f"p{number}") for number in range(2)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call({"user": "ann", "order": {"id": 7}})
            call({"user": "4111"})
            call({"user": "bob"})

    assert [warning.category for warning in caught] == [UserWarning] * 2
    for warning in caught:
        name, rest = str(warning.message).split(" lacks ")
        assert re.fullmatch(r"A payload of behaviour\.kit\.Form\.function\.<locals>\.\w+", name)
        assert rest == (
            "'order.id', a part of its idempotency key. Payloads that differ only there share one key, and one result."
            " IdempotencyConfig(require_all_key_fields=True) refuses them"
        )
    assert key_of(["bob", None]).replace("p#", "p1#") in store._records


def test_a_warning_of_a_partly_missing_key_that_is_an_error_fails_one_call_before_anything_happens(
    form: Form, store: CountingStore
) -> None:
    work = Work()
    call = form.decorate(work, store, IdempotencyConfig("[user, order]", raise_on_no_idempotency_key=True))

    with pytest.raises(UserWarning, match="lacks 'order'"):
        call({"user": "ann"})
    assert (work.runs, store.asked) == ([], [])
    call({"user": "ann"})

    assert work.runs == [{"user": "ann"}]


def test_a_complete_key_passes_where_all_of_it_is_required(form: Form, store: CountingStore) -> None:
    config = IdempotencyConfig("[user, order]", require_all_key_fields=True)
    form.decorate(Work(), store, config)({"user": "", "order": 0})

    assert list(store._records) == [key_of(["", 0])]


@pytest.mark.parametrize("expression", ["[user, order]", "{u: user, o: order}", "user"])
def test_a_key_that_is_wholly_missing_is_refused_where_all_of_it_is_required(
    form: Form, store: CountingStore, expression: str
) -> None:
    work = Work()

    with pytest.raises(IdempotencyKeyError):
        form.decorate(work, store, IdempotencyConfig(expression, require_all_key_fields=True))({"x": 1})

    assert (work.runs, store.asked) == ([], [])


@pytest.mark.parametrize(
    ("expression", "event"),
    [("powertools_json(body).id", {"body": "{"}), ("powertools_json(body).id", {}), ("length(id)", {"id": 1})],
)
def test_an_expression_that_fails_on_the_event_fails_the_call_before_anything_happens(
    form: Form, store: CountingStore, expression: str, event: dict[str, Any]
) -> None:
    work = Work()

    with pytest.raises(IdempotencyPersistenceLayerError, match="in the JMESPath expression"):
        form.decorate(work, store, IdempotencyConfig(expression))(event)

    assert (work.runs, store.asked) == ([], [])


class Card:
    """Has no JSON form."""

    def __repr__(self) -> str:
        return "4111"


@pytest.mark.parametrize("expression", ["card.id", "[card.id, user]", "card", "", "[card]", "card[0]"])
@pytest.mark.parametrize("make", [Card, MagicMock, lambda: MagicMock(spec=dict)], ids=["object", "mock", "mock of a dict"])
def test_an_object_without_data_fails_the_call_before_anything_happens(
    form: Form, store: CountingStore, expression: str, make: Callable[[], Any]
) -> None:
    """It was taken for a missing key, for null, or a mock for a number that is none."""
    work = Work()
    call = form.decorate(work, store, IdempotencyConfig(expression))

    with pytest.raises(IdempotencyPersistenceLayerError, match="Object of type (Card|MagicMock) is not JSON serializable"):
        call({"user": "ann", "card": make()})

    assert (work.runs, store.asked) == ([], [])


def test_no_error_about_a_key_repeats_the_payload(form: Form, store: CountingStore) -> None:
    call = form.decorate(Work(), store, IdempotencyConfig("powertools_json(body).id"))

    with pytest.raises(IdempotencyPersistenceLayerError) as failed:
        call({"body": '{"card": 4111111111111111'})

    seen: list[BaseException | None] = [failed.value]
    while seen[-1] is not None:
        seen.append(seen[-1].__cause__ or (None if seen[-1].__suppress_context__ else seen[-1].__context__))
    assert "4111" not in " ".join(f"{error} {error!r}" for error in seen)


def test_a_payload_that_cannot_be_copied_is_fine_where_the_expression_selects_an_id(form: Form, store: CountingStore) -> None:
    """Powertools copies the whole payload first, and fails with a bare TypeError."""
    from threading import Lock

    form.decorate(Work(), store, IdempotencyConfig("id"))({"id": 7, "lock": Lock()})

    assert list(store._records) == [key_of(7)]


def dataclass_payload() -> Any:
    from dataclasses import make_dataclass

    return make_dataclass("Order", [("id", int), ("note", str)])(7, "n")


def pydantic_payload() -> Any:
    from pydantic import create_model

    return create_model("Order", id=(int, ...), note=(str, ...))(id=7, note="n")


def event_payload() -> Any:
    from aws_lambda_powertools.utilities.data_classes.common import DictWrapper

    return DictWrapper({"id": 7, "note": "n"})


def mapping_payload() -> Any:
    from collections import UserDict

    return UserDict(id=7, note="n")


class Answering(dict[str, Any]):
    """Answers every attribute, with None if it has none."""

    __getattr__ = dict.get


def answering_payload() -> Any:
    return Answering(id=7, note="n")


@pytest.mark.parametrize("make", [dataclass_payload, pydantic_payload, event_payload, mapping_payload, answering_payload])
@pytest.mark.parametrize(("expression", "selected"), [("x", {"id": 7, "note": "n"}), ("[x.note, x.id]", ["n", 7])])
def test_models_and_event_objects_below_the_top_level_are_read_as_their_data(
    form: Form, store: CountingStore, make: Callable[[], Any], expression: str, selected: Any
) -> None:
    form.decorate(Work(), store, IdempotencyConfig(expression))({"x": make()})

    assert list(store._records) == [key_of(selected)]


@pytest.mark.parametrize("make", [dataclass_payload, pydantic_payload, event_payload, mapping_payload, answering_payload])
@pytest.mark.parametrize(("expression", "selected"), [("", {"id": 7, "note": "n"}), ("[note, id]", ["n", 7])])
def test_models_and_event_objects_are_read_as_their_data(
    form: Form, store: CountingStore, make: Callable[[], Any], expression: str, selected: Any
) -> None:
    payload = make()
    work = Work()
    form.decorate(work, store, IdempotencyConfig(expression))(payload)

    assert list(store._records) == [key_of(selected)]
    assert work.runs[0] is payload


def test_the_hash_function_of_the_configuration_makes_the_key(form: Form, store: CountingStore) -> None:
    import hashlib

    form.decorate(Work(), store, IdempotencyConfig("id", hash_function="sha256"))({"id": 7})

    assert list(store._records) == [f"p#{hashlib.sha256(b'7').hexdigest()}"]
