"""What the functions return: the documents of docs/json.md as frozen dataclasses.

Every class keeps the JSON object that it was made from in `raw`, with fields that this version does not know.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from . import _binary, _flags, _html
from .errors import Failed

if TYPE_CHECKING:
    import pandas

Json = Mapping[str, Any]
# The version of the documents that this package reads.
_VERSION = 1


class Text(str):
    """Text of several lines, which a notebook shows as lines."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Strategy:
    """Parallel degrees and options; `str()` is its label, as the command prints it."""

    data: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    zero_stage: int
    shard: int
    micro_batch: int
    virtual_stages: int
    sequence_parallel: bool
    recompute: str
    schedule: str
    label: str
    raw: Json = field(repr=False)

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    def __str__(self) -> str:
        return self.label

    @classmethod
    def of(cls, raw: Json, stages: list[Any]) -> Strategy:
        return cls(
            data=int(raw["data"]),
            tensor=int(raw["tensor"]),
            pipeline=int(raw["pipeline"]),
            context=int(raw.get("context", 1)),
            expert=int(raw.get("expert", 1)),
            zero_stage=int(raw["zero_stage"]),
            shard=int(raw["shard"]),
            micro_batch=int(raw["micro_batch"]),
            virtual_stages=int(raw["virtual_stages"]),
            sequence_parallel=bool(raw["sequence_parallel"]),
            recompute=str(raw["recompute"]),
            schedule=str(raw["schedule"]),
            label=_label(raw, stages),
            raw=raw,
        )


def _label(raw: Json, stages: list[Any]) -> str:
    """The command's label, without gradient compression, algorithms and placement: these are in `raw`."""
    parts = [f"dp{raw['data']}", f"tp{raw['tensor']}", f"pp{raw['pipeline']}", f"mb{raw['micro_batch']}"]
    parts += [f"{name}{raw[key]}" for name, key in (("cp", "context"), ("ep", "expert")) if raw.get(key, 1) > 1]
    if raw["zero_stage"] > 0:
        parts.append(f"zero{raw['zero_stage']}" + (f"/{raw['shard']}" if raw["shard"] != raw["data"] else ""))
    if raw["sequence_parallel"]:
        parts.append("sp")
    if raw["pipeline"] > 1:
        parts.append(str(raw["schedule"]))
        if raw["virtual_stages"] > 1:
            parts.append(f"v{raw['virtual_stages']}")
    policy = raw["recompute"]
    if policy != "none":
        layers = [one for stage in stages for one in stage["recompute"]]
        # Embedding and head never recompute.
        some, blocks = len(layers) - layers.count("none"), len(layers) - 2
        parts.append(f"recompute={policy}" + (f"({some}/{blocks})" if some < blocks else ""))
    return " ".join(parts)


@dataclass(frozen=True)
class Memory:
    """Memory of the fullest device, in bytes; the parts sum to `peak_bytes`."""

    peak_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_state_bytes: int
    activations_bytes: int
    communication_buffers_bytes: int
    temporary_bytes: int
    reserve_bytes: int
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, estimate: Json) -> Memory:
        raw = estimate["memory"]
        return cls(
            peak_bytes=int(estimate["peak_memory_bytes"]),
            weights_bytes=int(raw["weights_bytes"]),
            gradients_bytes=int(raw["gradients_bytes"]),
            optimizer_state_bytes=int(raw["optimizer_state_bytes"]),
            activations_bytes=int(raw["activations_bytes"]),
            communication_buffers_bytes=int(raw["communication_buffers_bytes"]),
            temporary_bytes=int(raw["temporary_bytes"]),
            reserve_bytes=int(raw["reserve_bytes"]),
            raw=raw,
        )


@dataclass(frozen=True)
class Training:
    """Time and cost of the whole training, if its tokens were given; the cost needs `price`."""

    tokens: int
    steps: int
    time_s: float
    time_spread_s: float
    device_hours: float
    cost_usd: float | None
    cost_spread_usd: float | None
    raw: Json = field(repr=False)

    @property
    def days(self) -> float:
        return self.time_s / 86400

    @classmethod
    def of(cls, raw: Json | None) -> Training | None:
        if raw is None:
            return None
        return cls(
            tokens=int(raw["tokens"]),
            steps=int(raw["steps"]),
            time_s=float(raw["time_s"]),
            time_spread_s=float(raw["time_spread_s"]),
            device_hours=float(raw["device_hours"]),
            cost_usd=raw.get("cost_usd"),
            cost_spread_usd=raw.get("cost_spread_usd"),
            raw=raw,
        )


@dataclass(frozen=True)
class Candidate:
    """A strategy with its prediction: the plan's own, a runner-up, or a change to a given one."""

    strategy: Strategy
    step_time_s: float
    step_time_spread_s: float
    tokens_per_s: float
    mfu: float | None
    memory: Memory
    cost: Mapping[str, float] = field(repr=False)
    """Seconds of the step by what they go to: `compute_s`, `bubble_s` and so on."""
    provenance: str
    """The least trusted source of a number in it: measured, interpolated, modelled, extrapolated or assumed."""
    reason: str
    """How it compares with the plan; empty for the plan's own."""
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json) -> Candidate:
        estimate = raw["estimate"]
        return cls(
            strategy=Strategy.of(raw["strategy"], raw["stages"]),
            step_time_s=float(estimate["step_time_s"]),
            step_time_spread_s=float(estimate["step_time_spread_s"]),
            tokens_per_s=float(estimate["tokens_per_s"]),
            mfu=estimate.get("mfu"),
            memory=Memory.of(estimate),
            cost=estimate["cost"],
            provenance=str(estimate["provenance"]),
            reason=str(raw.get("reason", "")),
            raw=raw,
        )


@dataclass(frozen=True)
class Change:
    """A setting that differs between two strategies."""

    setting: str
    from_: str
    to: str
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json) -> Change:
        return cls(str(raw["setting"]), str(raw["from"]), str(raw["to"]), raw)

    def __str__(self) -> str:
        return f"{self.setting} {self.from_} -> {self.to}"


@dataclass(frozen=True)
class Variant:
    """A strategy that differs from a given one in few settings."""

    changes: tuple[Change, ...]
    plan: Candidate

    @classmethod
    def of(cls, raw: Json) -> Variant:
        return cls(tuple(map(Change.of, raw["changes"])), Candidate.of(raw))


@dataclass(frozen=True)
class Given:
    """The strategy of a trainer's file (`from_`), beside the plan."""

    source: str
    plan: Candidate
    fits: bool
    missing_bytes: int
    assumptions: tuple[str, ...]
    changes: tuple[Change, ...]
    """How the plan differs from it."""
    variants: tuple[Variant, ...]
    """The smallest changes that make it fit, or make it faster."""
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json | None) -> Given | None:
        if raw is None:
            return None
        return cls(
            source=str(raw["source"]),
            plan=Candidate.of(raw),
            fits=bool(raw["fits"]),
            missing_bytes=int(raw["missing_bytes"]),
            assumptions=tuple(raw.get("assumptions", ())),
            changes=tuple(map(Change.of, raw["changes"])),
            variants=tuple(map(Variant.of, raw["variants"])),
            raw=raw,
        )


@dataclass(frozen=True)
class Plan(Candidate):
    """The plan document of `autodist plan` and `autodist estimate`."""

    fits: bool
    """Whether it fits into the memory of the devices, less the reserve; only a given strategy may not fit."""
    alternatives: tuple[Candidate, ...]
    """The runners-up."""
    assumptions: tuple[str, ...]
    """What nobody gave, and what was assumed instead."""
    training: Training | None
    given: Given | None
    model: Json = field(repr=False)
    cluster: Json = field(repr=False)
    job: Json = field(repr=False)
    notes: tuple[str, ...] = field(repr=False, compare=False)
    """What the command said beside the document (standard error)."""

    @classmethod
    def of(cls, raw: Json, notes: tuple[str, ...] = ()) -> Plan:
        """Reads a plan document.

        Raises:
            Failed: it is not one, or of another version.
        """
        check_version(raw, "plan")
        try:
            own = Candidate.of(raw)
            return cls(
                **{name: getattr(own, name) for name in Candidate.__dataclass_fields__},
                fits=bool(raw.get("fits", True)),
                alternatives=tuple(map(Candidate.of, raw["alternatives"])),
                assumptions=tuple(raw.get("assumptions", ())),
                training=Training.of(raw.get("training")),
                given=Given.of(raw.get("given")),
                model=raw["model"],
                cluster=raw["cluster"],
                job=raw["job"],
                notes=notes,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Failed(
                f"not a plan document: {type(error).__name__}: {error}", "make it with `autodist.plan` or `autodist plan -o`"
            ) from error

    @property
    def devices(self) -> int:
        return sum(int(group["count"]) * int(group["devices"]) for group in self.cluster["nodes"])

    def save(self, path: str | Path) -> Path:
        """Writes the plan document, which the command reads, too; `autodist.load` reads it back."""
        path = Path(path)
        path.write_text(json.dumps(self.raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def explain(self, **flags: Any) -> Text:
        """Why this plan won, what limits it, and what other hardware would change, in words."""
        return Text(self._run("explain", flags).text)

    def export(self, to: str, folder: str | Path = "export", **flags: Any) -> Exported:
        """Writes the trainer's own configuration and a launch script into the folder."""
        output = self._run("export", {"to": to, "output": folder, "json": True, **flags})
        return Exported.of(json.loads(output.text))

    def report(self, folder: str | Path = "report", **flags: Any) -> Path:
        """Writes the HTML report with figures and tables into the folder, and returns the path of the page."""
        output = self._run("report", {"output": folder, "json": True, **flags})
        return Path(json.loads(output.text)["report"])

    def _run(self, command: str, flags: Mapping[str, Any]) -> _binary.Output:
        with tempfile.TemporaryDirectory(prefix="autodist-") as name:
            folder = Path(name)
            # Options before the document, which nothing can then be taken for.
            words = _flags.arguments(flags, folder)
            return _binary.run([command, *words, "--", str(self.save(folder / "plan.json"))])

    def to_frame(self) -> pandas.DataFrame:
        """The choice and the runners-up as a table, the choice first.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame([_row(one) for one in (self, *self.alternatives)])

    def _repr_html_(self) -> str:
        return _html.plan(self)


def _row(one: Candidate) -> dict[str, Any]:
    strategy = one.strategy
    return {
        "strategy": strategy.label,
        "step_time_s": one.step_time_s,
        "step_time_spread_s": one.step_time_spread_s,
        "tokens_per_s": one.tokens_per_s,
        "mfu": one.mfu,
        "peak_memory_bytes": one.memory.peak_bytes,
        **{key: value for key, value in strategy.raw.items() if not isinstance(value, (dict, list))},
        **one.cost,
        "provenance": one.provenance,
        "reason": one.reason,
    }


@dataclass(frozen=True)
class Exported:
    """The files that `Plan.export` wrote."""

    target: str | None
    files: tuple[Path, ...]
    instead: tuple[Json, ...]
    """What the trainer does instead of what was planned: `field`, `value`, `instead`."""
    not_given: tuple[str, ...]
    """Hyperparameters that nobody gave."""
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json) -> Exported:
        return cls(
            target=raw.get("target"),
            files=tuple(map(Path, raw["files"])),
            instead=tuple(raw.get("instead", ())),
            not_given=tuple(str(one["field"]) for one in raw.get("not_given", ())),
            raw=raw,
        )


def check_version(raw: Any, what: str) -> None:
    """Refuses documents of another version, as the command does."""
    version = raw.get("schema_version") if isinstance(raw, Mapping) else None
    if version != _VERSION:
        raise Failed(
            f"not a {what} document: `schema_version` is {version!r}, expected {_VERSION}",
            "use a command and a package of the same release: install the wheel again (docs/python.md)",
        )


def frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """A pandas table."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables need pandas: pip install 'autodist[pandas]'") from error
    return pandas.DataFrame(rows)
