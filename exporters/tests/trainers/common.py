"""What every check needs: plans that were exported, and what their sizes are.

A check is started with a folder that holds a folder for each plan: the exported files, and `expected.json`. It asks the
trainer's own library what it understood, prints a line per plan and exits with 1 if any differs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Sizes = dict[str, Any]


def run(check: Callable[[Path, Sizes], Sizes]) -> None:
    """Checks every plan in a process of its own, as parsers keep global state; what takes long to import is imported before."""
    failed = 0
    for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.json")):
        expected = json.loads((folder / "expected.json").read_text())
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(one(check, folder, expected))
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    sys.exit(1 if failed else 0)


def one(check: Callable[[Path, Sizes], Sizes], folder: Path, expected: Sizes) -> int:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            understood = check(folder, expected)
    except BaseException:
        print(f"REJECTED {folder.name}\n{said.getvalue()[-2000:]}\n{traceback.format_exc()}", flush=True)
        return 1
    wrong = {key: (value, expected[key]) for key, value in understood.items() if value != expected[key]}
    if wrong or not understood:
        print(f"WRONG {folder.name}: (understood, expected) {wrong}", flush=True)
        return 1
    print(f"ok {folder.name}: {understood}", flush=True)
    return 0


def arguments(script: Path, command: str, **environment: str) -> list[str]:
    """What a launch script would start `command` with: the script is run with a stand-in that writes it down."""
    stand_in = script.parent / "bin"
    stand_in.mkdir(exist_ok=True)
    program = stand_in / command
    program.write_text('#!/bin/bash\nprintf \'%s\\n\' "$@"\n')
    program.chmod(0o755)
    variables = {"NODE_RANK": "0", "MASTER_ADDR": "node0", "TRAIN_SCRIPT": "train.py", **environment}
    path = f"{stand_in}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script)], env={**os.environ, **variables, "PATH": path}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def after(words: list[str], name: str) -> list[str]:
    """The words that follow one that ends in `name`."""
    index = next(index for index, word in enumerate(words) if word.endswith(name))
    return words[index + 1 :]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]
