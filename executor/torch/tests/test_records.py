"""What a rank keeps and tells does not grow with the number of steps."""

import io
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from autodist_torch.trainer import LONGEST_TIMELINE, OPERATIONS, TELL_AT, TIMELINES, Timelines, _limit, _typical

from .test_engine import JOB, MODEL, STAGES, STRATEGY


def test_ranks_keep_the_timelines_of_the_same_few_steps() -> None:
    for limit in (1, 3, TIMELINES):
        ranks = [Timelines(limit), Timelines(limit)]
        for step in range(20_000):
            for rank, timelines in enumerate(ranks):
                timelines.take(float(step), [{"rank": rank, "step": step}])
        kept = [[seconds for seconds, _ in timelines.kept] for timelines in ranks]
        assert kept[0] == kept[1]
        assert kept[0][0] == 0.0
        assert 1 <= len(kept[0]) <= limit
        assert all(events[0]["step"] == seconds for seconds, events in ranks[1].kept)


def test_long_timelines_are_few_and_the_longest_are_not_kept() -> None:
    assert _limit(10) == TIMELINES
    assert _limit(LONGEST_TIMELINE) * LONGEST_TIMELINE <= OPERATIONS
    assert _limit(LONGEST_TIMELINE + 1) == 0


def test_the_typical_step_is_the_one_nearest_the_median() -> None:
    assert _typical([5.0, 1.0, 2.9, 3.0, 9.0]) == 3


def served(**job: Any) -> list[dict[str, Any]]:
    """What a rank that is alone says of a training of 200 steps."""
    strategy = asdict(STRATEGY) | {"data": 1}
    task = {"model": asdict(MODEL), "job": asdict(JOB) | job, "strategy": strategy, "stages": [asdict(s) for s in STAGES]}
    task |= {"data": "synthetic", "steps": 200, "warmup_steps": 2, "detail": False, "count_memory": False}
    listener = socket.create_server(("127.0.0.1", 0))
    store = {"host": "127.0.0.1", "port": listener.getsockname()[1], "listener": listener.fileno()}
    orders = {"preferred": False, "cuda": False, "store": store, "timeout_s": 60.0}
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(
        [sys.executable, "-m", "autodist_torch"],
        input=json.dumps(orders | {"assignments": [{"train": task}]}),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        pass_fds=[listener.fileno()],
    )
    listener.close()
    words = [json.loads(line) for line in io.StringIO(run.stdout)]
    # Signs of life stand between them.
    return [word for word in words if word != "alive"]


def test_steps_are_told_as_they_are_done() -> None:
    *words, last = served()
    steps = [len(word["progress"]["value"]["steps"]) for word in words]
    assert sum(steps) == 200
    assert steps[0] == 1
    assert max(steps) <= TELL_AT
    done = last["done"]["value"]
    assert done["steps"] == []
    assert len(done["timeline"]) == 4 * 2 + 1


def test_a_training_that_diverges_has_told_of_its_finite_steps() -> None:
    rate = {"peak": 1e30, "warmup_steps": 0, "total_steps": 10, "final_fraction": 1.0}
    *words, last = served(learning_rate=rate, gradient_clip=0.0)
    steps = [step for word in words for step in word["progress"]["value"]["steps"]]
    assert 1 <= len(steps) < 200
    assert f"of step {len(steps)} is " in last["failed"]["message"]
    assert "training diverged; lower the learning rate" in last["failed"]["message"]
