"""Results of every kind with every serializer: whatever is stored is replayed equal, and nothing is lost without a word."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from aws_lambda_powertools.shared.json_encoder import Encoder
from behaviour.result_table import PAGE, SERIALIZERS, outcome, written
from behaviour.result_types import CASES

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = [pytest.param(annotation, make, id=name) for name, annotation, make in CASES]
#: Texts of values that the results hold, and of which no error may have any.
VALUES = ("hidden", "Ulm", "2026", "1.10", "pug")


@pytest.mark.parametrize("name", SERIALIZERS)
@pytest.mark.parametrize(("annotation", "make"), KINDS)
def test_a_function_runs_once_whatever_it_returns(annotation: Any, make: Callable[[], Any], name: str) -> None:
    found = outcome(annotation, make, SERIALIZERS[name])

    assert found is None or found.runs == 1


@pytest.mark.parametrize("name", ["Pydantic", "Dataclass", "CustomDict"])
@pytest.mark.parametrize(("annotation", "make"), KINDS)
def test_every_replay_of_a_serializer_is_equal_or_the_result_is_not_kept(
    annotation: Any, make: Callable[[], Any], name: str
) -> None:
    found = outcome(annotation, make, SERIALIZERS[name])

    if found is not None:
        assert found.is_equal or len(found.errors) == 3
        assert found.warned == []


@pytest.mark.parametrize("name", ["none", "NoOp"])
@pytest.mark.parametrize(("annotation", "make"), KINDS)
def test_without_a_serializer_a_replay_is_what_json_makes_of_the_result_as_in_powertools(
    annotation: Any, make: Callable[[], Any], name: str
) -> None:
    found = outcome(annotation, make, SERIALIZERS[name])

    assert found is not None
    if found.errors:
        assert len(found.errors) == 3
        assert found.warned == []
        return
    theirs = json.dumps(found.first, cls=Encoder, sort_keys=True)
    assert found.record == theirs
    assert json.dumps(found.replays) == json.dumps([json.loads(theirs)] * 2)
    assert len(found.warned) == (not found.is_equal)


@pytest.mark.parametrize("name", SERIALIZERS)
@pytest.mark.parametrize(("annotation", "make"), KINDS)
def test_an_error_names_no_value_of_the_result(annotation: Any, make: Callable[[], Any], name: str) -> None:
    found = outcome(annotation, make, SERIALIZERS[name])

    for error in found.errors if found is not None else ():
        assert not [value for value in VALUES if value in error]


@pytest.mark.skipif(tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11), reason="it reads fields by name since 2.11")
def test_the_documentation_has_the_table_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert written(page) == page, "run PYTHONPATH=.:tests python -m behaviour.result_table"
