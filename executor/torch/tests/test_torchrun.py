"""The package trains a plan document under torchrun, whoever starts it."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from autodist_torch import spec

from .test_engine import JOB, MODEL, STAGES, STRATEGY


def torchrun(folder: Path, ranks: int, strategy: Any, job: spec.Job = JOB) -> "subprocess.CompletedProcess[str]":
    plan = {"model": asdict(MODEL), "job": asdict(job), "strategy": asdict(strategy), "stages": [asdict(s) for s in STAGES]}
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "autodist_torch", "plan.json", "--steps", "4"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_two_splits_of_one_plan_have_the_same_losses(tmp_path: Path) -> None:
    splits = [STRATEGY, replace(STRATEGY, data=1, tensor=2, micro_batch=4)]
    finished = [torchrun(tmp_path, 2, split) for split in splits]
    losses = [json.loads(run.stdout)["losses"] for run in finished]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_a_refusal_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    run = torchrun(tmp_path, 2, replace(STRATEGY, zero_stage=1, shard=2))
    assert run.returncode != 0
    assert "error: plan.json: strategy.zero_stage = 1" in run.stderr


SGD = replace(JOB.optimizer, kind="sgd", weight_decay=0.01)


@pytest.mark.parametrize(
    "optimizer", [JOB.optimizer, replace(SGD, momentum=0.9), replace(SGD, momentum=0.0)], ids=["adamw", "momentum", "sgd"]
)
def test_every_optimizer_trains_alike_with_state_whole_or_sharded(tmp_path: Path, optimizer: spec.Optimizer) -> None:
    job = replace(JOB, optimizer=optimizer, learning_rate=spec.LearningRate(3e-2, 1, 200, 0.1))
    sharded = replace(STRATEGY, shard=2)
    splits = [STRATEGY, replace(sharded, zero_stage=2), replace(sharded, zero_stage=3)]
    finished = [torchrun(tmp_path, 2, split, job) for split in splits]
    assert all(run.returncode == 0 for run in finished), [run.stderr[-2000:] for run in finished]
    losses = [json.loads(run.stdout)["losses"] for run in finished]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
