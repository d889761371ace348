"""autodist plans distributed training: the fastest parallel strategy for a model on a cluster, and its predicted speed.

    >>> import autodist
    >>> plan = autodist.plan(model="llama3-8b", cluster="1x8xh100-80gb-sxm", global_batch=64, seq_len=8192)
    >>> plan.fits
    True

The functions run the command `autodist` of the same wheel. Their keywords are its flags: an underscore for a hyphen, True
for a flag without a value, a list for a comma list, a tuple for several words, None for a flag that is not given.
"""

from __future__ import annotations

import json
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Mapping, Sequence

from . import _binary, _flags
from .comparison import Best, ComparedCluster, Comparison, Difference
from .documents import Candidate, Change, Exported, Given, Memory, Plan, Strategy, Text, Training, Variant
from .errors import BadInput, Failed, NothingFits, Refuted

__all__ = [
    "BadInput",
    "Best",
    "Candidate",
    "Change",
    "ComparedCluster",
    "Comparison",
    "Difference",
    "Exported",
    "Failed",
    "Given",
    "Memory",
    "NothingFits",
    "Plan",
    "Refuted",
    "Strategy",
    "Text",
    "Training",
    "Variant",
    "compare",
    "estimate",
    "load",
    "plan",
    "version",
]

# Tracebacks and help name these as users do: `autodist.BadInput`.
for _public in (BadInput, Failed, NothingFits, Refuted):
    _public.__module__ = __name__

_Named = str | PathLike[str] | Mapping[str, Any] | None


def plan(
    *,
    model: _Named = None,
    cluster: _Named = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    **flags: Any,
) -> Plan:
    """Searches the fastest plan that fits in memory, as `autodist plan` does.

    Without `cluster` the plan is priced by a profile (`profile=`, or profile.json in this folder).

    Raises:
        BadInput: a setting is wrong.
        NothingFits: there is no plan.
    """
    given = {"model": model, "cluster": cluster, "global_batch": global_batch, "seq_len": seq_len, **flags}
    raw, notes = _document("plan", given)
    return Plan.of(raw, notes)


def estimate(
    *,
    model: _Named = None,
    cluster: _Named = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    **flags: Any,
) -> Plan:
    """Predicts one given strategy (`tp=8, pp=4, …`, or a trainer's file: `from_=("megatron", "pretrain.sh")`).

    A strategy that needs more memory than there is, has `fits` false.

    Raises:
        BadInput: a setting is wrong.
        NothingFits: the strategy does not fit, and a profile cannot price it.
    """
    given = {"model": model, "cluster": cluster, "global_batch": global_batch, "seq_len": seq_len, **flags}
    raw, notes = _document("estimate", given, accept=frozenset({3}))
    return Plan.of(raw, notes)


def compare(
    clusters: Sequence[str | PathLike[str] | Mapping[str, Any]],
    *,
    model: _Named = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    **flags: Any,
) -> Comparison:
    """Compares clusters for one job: which is faster, which is cheaper, with error bars on the difference.

    Raises:
        BadInput: a setting is wrong.
        NothingFits: no cluster has a plan.
    """
    if isinstance(clusters, (str, Mapping, PathLike)):
        clusters = [clusters]
    given = {"model": model, "global_batch": global_batch, "seq_len": seq_len, **flags}
    raw, notes = _document("compare", given, positional=clusters)
    return Comparison.of(raw, notes)


def load(path: str | PathLike[str]) -> Plan:
    """Reads a plan document that `Plan.save` or the command wrote.

    Raises:
        OSError: the file cannot be read.
        Failed: it is not a plan document.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Failed(f"{path}: not JSON: {error}", "make it with `autodist.plan` or `autodist plan -o`") from error
    return Plan.of(raw)


def version() -> str:
    """The version of the command."""
    return _binary.run(["--version"]).text.strip().removeprefix("autodist ")


def _document(
    command: str,
    flags: Mapping[str, Any],
    *,
    positional: Sequence[Any] = (),
    accept: frozenset[int] = frozenset(),
) -> tuple[Any, tuple[str, ...]]:
    """The document that a command prints with `--json`, and what it said beside it."""
    with tempfile.TemporaryDirectory(prefix="autodist-") as folder:
        words = _flags.arguments({**flags, "json": True}, Path(folder))
        names = [_flags.plain("clusters", one, Path(folder)) for one in positional]
        output = _binary.run([command, *words, *(["--", *names] if names else [])], accept=accept)
    try:
        return json.loads(output.text), output.notes
    except json.JSONDecodeError as error:
        found = output.text[:200]
        raise Failed(f"the command printed no JSON document: {error}: {found!r}", "see that AUTODIST_BINARY names autodist") from error
