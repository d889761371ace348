"""The tests run against the installed wheel: `.ci/wheel` makes its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import autodist
import pytest

JOB = {"model": "llama3-8b", "cluster": "1x8xh100-80gb-sxm", "global_batch": 64, "seq_len": 8192}


@pytest.fixture(scope="session")
def plan() -> autodist.Plan:
    return autodist.plan(**JOB, top=3)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A command of another behaviour in place of the binary."""

    def make(script: str) -> Path:
        path = tmp_path / "autodist"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("AUTODIST_BINARY", str(path))
        return path

    return make
