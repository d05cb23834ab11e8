"""The interpreter of key expressions: on JSON it selects what jmespath selects, and it can write expressions down."""

from __future__ import annotations

import random
from typing import Any

import jmespath
import pytest
from jmespath.visitor import TreeInterpreter
from unit.test_key import random_expression

from idempotency._interpreter import GapFinder, Interpreter, can_have_gap, text_of


def random_json(rng: random.Random, depth: int = 4) -> Any:
    fields = ["id", "user", "lines", "sku", "price", "key", "a"]
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([None, True, False, 0, 1, 2.5, "", "a", [], {}])
    if rng.random() < 0.4:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(fields): random_json(rng, depth - 1) for _ in range(rng.randrange(5))}


def selected(interpreter: TreeInterpreter, parsed: Any, data: Any) -> str:
    try:
        return repr(interpreter.visit(parsed, data))
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("seed", range(20))
def test_on_json_the_interpreters_select_what_jmespath_selects(seed: int) -> None:
    rng = random.Random(seed)
    options = jmespath.Options()

    for _ in range(100):
        compiled = jmespath.compile(random_expression(rng))
        data = random_json(rng)
        theirs, *ours = [selected(kind(options), compiled.parsed, data) for kind in (TreeInterpreter, Interpreter, GapFinder)]
        assert ours == [theirs] * 2, (seed, compiled.expression, data)


@pytest.mark.parametrize(
    "expression",
    [
        "a",
        '"a b".c',
        "a.b.c",
        "a[0]",
        "a[-1].b",
        "a[1:].b",
        "a[:2:-1]",
        "a[*]",
        "a[*].b.c",
        "a[*][0]",
        "[*].a",
        "[0]",
        "a[]",
        "a[].b",
        "*.a",
        "a.*.b",
        "a[?b == `1`].c",
        "a[?b < c && !d]",
        "a || b",
        "a && b",
        "a | b",
        "@.a",
        "[a, b.c]",
        '{x: a, "y z": b}',
        "join('-', [a, to_string(b)])".replace("'-'", '`"-"`'),
        "map(&a.b, c)",
        "a >= b",
    ],
)
def test_an_expression_is_written_as_people_write_it(expression: str) -> None:
    parsed = jmespath.compile(expression).parsed

    assert text_of(parsed) == expression


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("a", False),
        ("a.b[0] || c", False),
        ("a[?b].c[1:2]", False),
        ("not_null(a, b)", False),
        ("[a]", True),
        ("a.{b: c}", True),
        ("a || [b]", True),
        ("length(a[].[b])", True),
        ("to_string(a)", True),
        ("to_array(a)", True),
        ("map(&a, b)", True),
    ],
)
def test_only_some_expressions_can_lack_a_part(expression: str, answer: bool) -> None:
    assert can_have_gap(jmespath.compile(expression).parsed) is answer
