"""The package reads what the published schemas describe."""

import dataclasses
import json
from pathlib import Path

import pytest
from autodist_torch import spec

SCHEMAS = Path(__file__).parents[3] / "schemas"


def definitions() -> dict[str, dict[str, object]]:
    schema = json.loads((SCHEMAS / "plan.schema.json").read_text())
    return schema["$defs"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (spec.Model, "ModelSpec"),
        (spec.Job, "Job"),
        (spec.LearningRate, "LearningRate"),
        (spec.Strategy, "ParallelStrategy"),
        (spec.Communication, "Communication"),
        (spec.Reduction, "Reduction"),
        (spec.Stage, "Stage"),
    ],
)
def test_fields_are_those_of_the_schema(kind: type, name: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    described = definitions()[name]
    assert set(fields) == set(described["properties"])  # type: ignore[call-overload]
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert set(described.get("required", [])) <= required  # type: ignore[call-overload]


def test_unknown_and_missing_fields_are_named() -> None:
    stage = {"first_layer": 0, "end_layer": 2, "recompute": ["none", "full"]}
    assert spec.read(spec.Stage, stage) == spec.Stage(0, 2, ["none", "full"])
    with pytest.raises(spec.BadInput, match="colour: unknown field"):
        spec.read(spec.Stage, stage | {"colour": "red"})
    with pytest.raises(spec.BadInput, match="end_layer: missing field"):
        spec.read(spec.Stage, {"first_layer": 0, "recompute": []})
    with pytest.raises(spec.BadInput, match=r"recompute\[1\]: some is none of none, selective, full"):
        spec.read(spec.Stage, stage | {"recompute": ["none", "some"]})


def test_shares_are_the_larger_ones_first() -> None:
    assert [list(spec.share(7, index, 3)) for index in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
