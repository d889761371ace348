"""What this engine has no way for is refused before anything is built, with the field and the way out."""

from dataclasses import replace
from typing import Any

import pytest
from autodist_torch import spec
from autodist_torch.engine import Refused, check

MODEL = spec.Model(
    name="small",
    layers=2,
    hidden=16,
    heads=2,
    kv_heads=2,
    head_dim=8,
    ffn=32,
    vocab=32,
    max_seq_len=8,
    positions=spec.Positions("rotary", 1e4),
    norm="rms_norm",
    norm_epsilon=1e-5,
    activation="swi_glu",
    bias=False,
    tied_embeddings=False,
)
JOB = spec.Job(
    schema_version=1,
    global_batch=8,
    seq_len=8,
    precision="fp32",
    optimizer=spec.Optimizer("adamw", 0.1, 0.9, 0.95, 1e-8),
    learning_rate=spec.LearningRate(3e-3, 10, 200, 0.1),
    gradient_clip=1.0,
    seed=0,
)
STRATEGY = spec.Strategy(data=2, tensor=1, pipeline=1, micro_batch=2)
STAGES = [spec.Stage(0, 4, ["none"] * 4)]


def task(**changes: Any) -> spec.Task:
    return spec.Task(MODEL, JOB, replace(STRATEGY, **changes), STAGES, "synthetic", 3, 0)


def test_what_it_can_run_passes() -> None:
    check(task(), 2)


@pytest.mark.parametrize(
    ("changes", "field", "way_out"),
    [
        ({"zero_stage": 1, "shard": 2}, "strategy.zero_stage = 1", "zero_stage 2"),
        ({"data": 4}, "strategy: dp=4", "start 4"),
        ({"communication": spec.Communication(placement=[1, 0])}, "placement", "remove it"),
        ({"communication": spec.Communication(gather="halving_doubling")}, "communication", "remove algorithms"),
        ({"communication": spec.Communication(activations="bf16")}, "activations", "native engine"),
        ({"communication": spec.Communication(reduce=spec.Reduction(codec="one_bit"))}, "one_bit", "fp16, bf16"),
        ({"data": 1, "pipeline": 2, "micro_batch": 8}, "strategy.micro_batch = 8", "smaller micro_batch"),
    ],
)
def test_what_it_cannot_run_is_refused(changes: dict[str, Any], field: str, way_out: str) -> None:
    with pytest.raises(Refused) as refusal:
        check(task(**changes), 2)
    assert field in str(refusal.value)
    assert way_out in str(refusal.value)
