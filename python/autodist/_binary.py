"""Finds and runs the command `autodist`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from .errors import BadInput, Failed, NothingFits, Refuted

_NAME = "autodist"
# `compare 1/2, 3 s used: …`: how far the command is, which is no part of its result.
_PROGRESS = re.compile(r"\w+ \d+/\d+, .* used")
# Seconds that an interrupted command has to end by itself.
_GRACE = 5.0


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    text: str
    notes: tuple[str, ...]


def find() -> Path:
    """The binary: `AUTODIST_BINARY`, else that of the wheel, else that of `PATH`.

    Raises:
        Failed: there is none.
    """
    named = os.environ.get("AUTODIST_BINARY")
    if named:
        if os.access(named, os.X_OK) and not os.path.isdir(named):
            return Path(named)
        raise Failed(f"AUTODIST_BINARY is `{named}`: not an executable file", "give the path of the binary `autodist`")
    package = Path(__file__).resolve().parent.parent
    folders = [
        Path(sysconfig.get_path("scripts")),
        # pip install --target
        package / "bin",
        # pip install --user
        Path(sysconfig.get_path("scripts", f"{os.name}_user")),
        # A virtual environment that was not activated
        Path(sys.executable).parent,
    ]
    for folder in folders:
        path = folder / _NAME
        if path.is_file() and os.access(path, os.X_OK):
            return path
    on_path = shutil.which(_NAME)
    if on_path is not None:
        return Path(on_path)
    raise Failed(
        "the command `autodist` is not installed",
        "install the wheel for this platform (docs/python.md), or build the command with `cargo install --path .` "
        "in its repository; AUTODIST_BINARY may name it",
    )


def run(arguments: Sequence[str], *, accept: frozenset[int] = frozenset()) -> Output:
    """Runs the command and returns what it printed; `accept` lists exit codes whose output is a result all the same.

    Ctrl-C passes through, after the command has ended.
    """
    # A notebook under torchrun or srun plans by itself: this is not one of several processes of a training.
    environment = {**os.environ, "AUTODIST_LAUNCHER": "none", "NO_COLOR": "1"}
    environment.setdefault("AUTODIST_PYTHON", sys.executable)
    # Messages are not broken into lines where no terminal shows them.
    environment.pop("COLUMNS", None)
    binary = find()
    try:
        child = subprocess.Popen(
            [str(binary), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise Failed(f"cannot start {binary}: {error}", "install the wheel again (docs/python.md)") from error
    try:
        text, said = child.communicate()
    except BaseException:
        _end(child)
        raise
    code = child.returncode
    notes = tuple(line for line in said.splitlines() if line.strip() and not _PROGRESS.match(line))
    if code == 130:
        raise KeyboardInterrupt
    if code != 0 and not (code in accept and text.strip()):
        raise _failure(code, said)
    for note in notes:
        if note.startswith("warning: "):
            warnings.warn(note.removeprefix("warning: "), stacklevel=3)
    return Output(text, notes)


def _end(child: subprocess.Popen[str]) -> None:
    """Interrupts the command as a terminal does, and ends it if that is not enough."""
    try:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.wait(_GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
    finally:
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _failure(code: int, said: str) -> Failed:
    """The error that the command printed; a message may have several lines."""
    lines = said.rstrip().splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    message: list[str] = []
    hint: list[str] = []
    for line in lines[starts[-1] :] if starts else lines:
        if line.startswith(("Usage: ", "For more information")):
            break
        for word in ("hint: ", "  tip: "):
            if line.startswith(word):
                hint.append(line.removeprefix(word))
                break
        else:
            (hint if hint and line.strip() else message).append(line)
    text = "\n".join(message).strip().removeprefix("error: ") or f"the command ended with exit code {code}"
    if code < 0:
        text = f"the command was ended by {_signal(-code)}\n{text}"
    kinds: dict[int, type[Failed]] = {2: BadInput, 3: NothingFits, 5: Refuted}
    return kinds.get(code, Failed)(text, "\n".join(hint) or None, code)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
