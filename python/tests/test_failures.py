"""Errors, interrupts, and a command that is missing or strange."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import autodist
import pytest
from conftest import JOB

Fake = Callable[[str], Path]


def test_bad_input_has_the_words_and_the_hint_of_the_command() -> None:
    with pytest.raises(autodist.BadInput) as wrong:
        autodist.plan(**{**JOB, "model": "lama3-8b"})
    assert "lama3-8b" in wrong.value.message and wrong.value.exit_code == 2
    assert wrong.value.hint is not None and wrong.value.hint in str(wrong.value)
    assert isinstance(wrong.value, ValueError)


def test_an_unknown_keyword_is_the_commands_own_error() -> None:
    with pytest.raises(autodist.BadInput) as wrong:
        autodist.plan(**JOB, micro_bach=1)
    assert "--micro-bach" in wrong.value.message
    assert wrong.value.hint is not None and "--micro-batch" in wrong.value.hint
    assert "Usage" not in str(wrong.value)


@pytest.mark.parametrize("value", ["-1", -1, "--json", "", "x\ny", float("nan"), 1.5])
def test_no_value_is_taken_for_a_flag(value: object) -> None:
    with pytest.raises(autodist.BadInput):
        autodist.plan(**{**JOB, "global_batch": value})


def test_nothing_fits() -> None:
    with pytest.raises(autodist.NothingFits) as none:
        autodist.plan(model="llama3-70b", cluster="1x2xh100-80gb-sxm", global_batch=8, seq_len=8192)
    assert none.value.exit_code == 3 and "memory" in none.value.message


@pytest.mark.parametrize("script, kind, message", [
    ("echo 'error: rank 1 is lost' >&2; exit 4", autodist.Failed, "rank 1 is lost"),
    ("echo 'error: the prediction is refuted' >&2; exit 5", autodist.Refuted, "the prediction is refuted"),
    ("exit 9", autodist.Failed, "the command ended with exit code 9"),
    ("kill -SEGV $$", autodist.Failed, "the command was ended by SIGSEGV"),
    ("echo not json", autodist.Failed, "the command printed no JSON document"),
    ("echo '{\"schema_version\": 7}'", autodist.Failed, "`schema_version` is 7"),
])
def test_failures_are_named(fake: Fake, script: str, kind: type[autodist.Failed], message: str) -> None:
    fake(script)
    with pytest.raises(autodist.Failed) as failed:
        autodist.plan(**JOB)
    assert type(failed.value) is kind and message in str(failed.value)


def test_a_missing_command_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODIST_BINARY", str(tmp_path / "nothing"))
    with pytest.raises(autodist.Failed, match="AUTODIST_BINARY"):
        autodist.plan(**JOB)
    monkeypatch.delenv("AUTODIST_BINARY")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(autodist.Failed, match="install the wheel"):
        autodist.plan(**JOB)


def test_launchers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook under torchrun plans by itself."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert autodist.plan(**JOB).fits


def test_an_interrupted_command_is_an_interrupt(fake: Fake) -> None:
    fake("exit 130")
    with pytest.raises(KeyboardInterrupt):
        autodist.plan(**JOB)


@pytest.mark.parametrize("deaf", [False, True])
def test_an_interrupt_leaves_no_child(fake: Fake, tmp_path: Path, deaf: bool) -> None:
    note = tmp_path / "pid"
    path = fake(f"{'trap true INT; ' if deaf else ''}echo $$ > {note}; while :; do sleep 0.1; done")
    code = "import autodist\ntry: autodist.plan(model='x')\nexcept KeyboardInterrupt: raise SystemExit(7)"
    python = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "AUTODIST_BINARY": str(path)},
        # Where the tests run in the background, interrupts are ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text().strip()):
        assert python.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child = int(note.read_text())
    python.send_signal(signal.SIGINT)
    assert python.wait(30) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
