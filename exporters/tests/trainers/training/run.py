"""Starts exported scripts on CPUs, and compares what was trained with the plan.

    run.py TRAINER FOLDER

FOLDER has a folder for each plan: the exported files and `expected.json`. Every script is run as it was written; a few
commands of it are found in `bin` instead (see there), because this machine has no GPU. The training script writes
`report.json`: what the trainer's own objects were during training.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 300
# In nats; the data of every rank repeats, so that a few steps are enough.
LEARNED = 0.15


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(trainer: str, folder: Path) -> tuple[int, str]:
    variables = {
        "PATH": f"{HERE / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "TRAIN_SCRIPT": str(HERE / f"{trainer}_script.py"),
        "AUTODIST_REPORT": str(folder / "report.json"),
        "AUTODIST_PORT": str(free_port()),
        "AUTODIST_PLAN": str(folder / "expected.json"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "MODULE": "small_titan",
        "CONFIG": "small",
    }
    with tempfile.TemporaryFile("w+") as said:
        # In a group of its own, so that its ranks end with it.
        run = subprocess.Popen(
            ["bash", str(folder / f"{trainer}.sh")],
            env={**os.environ, **variables},
            cwd=folder,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = run.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            try:
                os.killpg(run.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        said.seek(0)
        return code, said.read()


def differences(report: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    losses = report.pop("losses")
    wrong = {key: (value, expected[key]) for key, value in report.items() if value != expected[key]}
    if losses[-1] > losses[0] - LEARNED:
        wrong["losses"] = losses
    return wrong


def check(trainer: str, folder: Path) -> bool:
    began = time.monotonic()
    code, said = start(trainer, folder)
    took = time.monotonic() - began
    file = folder / "report.json"
    if code != 0 or not file.exists():
        print(f"STOPPED {folder.name} after {took:.0f} s with code {code}:\n{said[-6000:]}", flush=True)
        return False
    report = json.loads(file.read_text())
    seen = dict(report)
    wrong = differences(report, json.loads((folder / "expected.json").read_text()))
    if wrong or not report:
        print(f"WRONG {folder.name}: (trained, planned) {wrong}", flush=True)
        return False
    print(f"ok {folder.name} ({took:.0f} s): {seen}", flush=True)
    return True


def main() -> None:
    trainer, root = sys.argv[1:]
    folders = sorted(path.parent for path in Path(root).glob("*/expected.json"))
    results = [check(trainer, folder) for folder in folders]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
