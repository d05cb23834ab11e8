"""What each kind of result comes to with each serializer, and the table of it in the documentation.

`PYTHONPATH=.:tests python -m behaviour.result_table` writes the table anew.
"""

from __future__ import annotations

import base64
import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from behaviour.result_types import CASES

from idempotency import (
    CustomDictSerializer,
    DataclassSerializer,
    IdempotencyModelTypeError,
    IdempotencyNoSerializationModelError,
    IdempotencyResultNotKeptError,
    InMemoryPersistenceLayer,
    NoOpSerializer,
    PydanticSerializer,
    make_idempotent,
)
from idempotency.serialization.round_trip import is_equal

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE: Final = Path(__file__).parents[2] / "docs" / "results.md"
BEGIN: Final = "<!-- table: PYTHONPATH=.:tests python -m behaviour.result_table -->\n"
END: Final = "<!-- end of the table -->\n"

#: The serializers, by the names that the table has for them.  The last is somebody's own, for whatever Python can pickle.
SERIALIZERS: Final[dict[str, Any]] = {
    "none": None,
    "NoOp": NoOpSerializer(),
    "Pydantic": PydanticSerializer,
    "Dataclass": DataclassSerializer,
    "CustomDict": CustomDictSerializer(
        to_dict=lambda value: {"pickle": base64.b64encode(pickle.dumps(value)).decode()},
        from_dict=lambda data: pickle.loads(base64.b64decode(data["pickle"])),
    ),
}


@dataclass
class Outcome:
    """What three calls with one payload came to.

    Attributes:
        runs: How often the function ran.
        first: Its result.
        replays: What the calls after the first one returned, if the result was kept.
        errors: The texts of the errors, one for each call, if it was not.
        record: The stored text.
        warned: The warnings.
    """

    runs: int
    first: Any
    replays: list[Any]
    errors: list[str]
    record: str
    warned: list[str]

    @property
    def is_equal(self) -> bool:
        return bool(self.replays) and all(is_equal(self.first, replay) for replay in self.replays)


def outcome(annotation: Any, make: Callable[[], Any], serializer: Any) -> Outcome | None:
    """None if the serializer was refused when the function was decorated."""
    made: list[Any] = []

    def function(payload: Any) -> Any:
        made.append(make())
        return made[-1]

    function.__annotations__ = {"return": annotation}
    store = InMemoryPersistenceLayer()
    try:
        call = make_idempotent(function, persistence_store=store, output_serializer=serializer)
    except (IdempotencyModelTypeError, IdempotencyNoSerializationModelError):
        return None
    returned: list[Any] = []
    errors: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            try:
                returned.append(call(1))
            except IdempotencyResultNotKeptError as error:
                errors.append(f"{error}\n{error.__cause__}")
    (record,) = store._records.values()
    return Outcome(len(made), made[0], returned[1:], errors, record.response_data, [str(each.message) for each in warned])


def table() -> str:
    """The table, in Markdown.  Serializers of which a result comes to the same share a line."""
    lines = ["| result | serializer | replay | record |", "|---|---|---|---|"]
    for name, annotation, make in CASES:
        outcomes: dict[tuple[str, str], list[str]] = {}
        for serializer_name, serializer in SERIALIZERS.items():
            outcomes.setdefault(_comes_to(serializer_name, outcome(annotation, make, serializer)), []).append(serializer_name)
        for number, ((replay, record), names) in enumerate(outcomes.items()):
            lines.append(f"| {'' if number else _cell(name)} | {', '.join(names)} | {replay} | {record} |")
    return "\n".join(lines) + "\n"


def _comes_to(serializer: str, found: Outcome | None) -> tuple[str, str]:
    if found is None:
        return "refused when decorated", ""
    if found.errors:
        reason = found.errors[0].splitlines()[0].partition(" - (")[2].removesuffix(")")
        return f"not kept: {reason}", ""
    record = "what `to_dict` returns" if serializer == "CustomDict" and found.first is not None else _code(found.record)
    return "equal" if found.is_equal else f"changed: {_code(json.dumps(found.replays[0]))}; warned", record


def _code(text: str) -> str:
    return _cell(f"`{text if len(text) <= 64 else text[:63] + '…'}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def written(page: str) -> str:
    """The page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
