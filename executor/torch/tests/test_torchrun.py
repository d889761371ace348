"""The package trains a plan document under torchrun, whoever starts it."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from .test_engine import JOB, MODEL, STAGES, STRATEGY


def torchrun(folder: Path, ranks: int, strategy: Any) -> "subprocess.CompletedProcess[str]":
    plan = {"model": asdict(MODEL), "job": asdict(JOB), "strategy": asdict(strategy), "stages": [asdict(s) for s in STAGES]}
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
