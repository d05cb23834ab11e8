"""POWERTOOLS_IDEMPOTENCY_DISABLED switches idempotency off from call to call, for development."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from aws_lambda_powertools.warnings import PowertoolsUserWarning
from behaviour.kit import CountingStore, Form, Work

from idempotency import Attempt, Executed, current_attempt, idempotent

ORDER = {"id": 7}
MESSAGE = "Disabling idempotency is intended for development environments only and should not be used in production."


def spellings(*words: str) -> list[str]:
    return [spelling for word in words for spelling in (word, word.upper(), word.title())]


@pytest.mark.parametrize("value", spellings("1", "y", "yes", "t", "true", "on"))
def test_each_yes_switches_idempotency_off(store: CountingStore, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    work = Work(result=object())
    call = Form("make_idempotent", is_async=False).decorate(work, store)
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", value)

    with pytest.warns(PowertoolsUserWarning, match=f"^{MESSAGE}$"):
        call(ORDER)

    assert (len(work.runs), store.asked) == (1, [])


@pytest.mark.parametrize("value", spellings("0", "n", "no", "f", "false", "off"))
def test_each_no_leaves_idempotency_on(store: CountingStore, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", value)
    Form("make_idempotent", is_async=False).decorate(Work(), store)(ORDER)

    assert store.asked == ["put", "update"]


@pytest.mark.parametrize("value", ["", "maybe", "2", " true", "yess"])
def test_anything_else_is_an_error_and_nothing_runs(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", value)
    work = Work()

    with pytest.raises(ValueError, match=f"^invalid truth value {value!r}$"):
        form.decorate(work, store)(ORDER)

    assert (work.runs, store.asked) == ([], [])


def test_the_switch_is_read_at_each_call(form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(result=1)
    call = form.decorate(work, store)
    call(ORDER)
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")
    with pytest.warns(PowertoolsUserWarning):
        call(ORDER)
    monkeypatch.delenv("POWERTOOLS_IDEMPOTENCY_DISABLED")
    call(ORDER)

    assert len(work.runs) == 2


def test_there_is_one_warning_per_call_in_development_mode_too(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")
    monkeypatch.setenv("POWERTOOLS_DEV", "true")
    call = form.decorate(Work(), store)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(ORDER)

    assert [warning.category for warning in caught] == [PowertoolsUserWarning]
    assert issubclass(PowertoolsUserWarning, UserWarning)


def test_a_call_that_is_switched_off_tells_an_unprotected_run(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")
    call = form.decorate(Work(result=1), store)

    with pytest.warns(PowertoolsUserWarning):
        outcome = call.outcome(ORDER)

    assert outcome == Executed(1, None)


def test_a_call_that_is_switched_off_has_an_attempt_of_its_own(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")
    seen: list[Attempt] = []
    call = form.decorate(lambda event: seen.append(current_attempt()), store)

    with pytest.warns(PowertoolsUserWarning):
        call(ORDER)
    with pytest.warns(PowertoolsUserWarning):
        call(ORDER)

    assert [(each.owner_token, each.generation) for each in seen] == [("", 0)] * 2
    assert seen[0].downstream_key != seen[1].downstream_key


def test_the_warning_points_at_the_callers_line(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")

    @idempotent(persistence_store=store)
    def handler(event: Any, context: Any) -> None: ...

    with pytest.warns(PowertoolsUserWarning) as caught:
        handler(ORDER, None)

    assert caught[0].filename == __file__


def test_errors_of_a_call_that_is_switched_off_are_the_functions_own(
    form: Form, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_IDEMPOTENCY_DISABLED", "true")
    error = LookupError("no")

    with pytest.warns(PowertoolsUserWarning), pytest.raises(LookupError) as raised:
        form.decorate(Work(error=error), store)(ORDER)

    assert raised.value is error
