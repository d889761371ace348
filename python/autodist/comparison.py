"""What `autodist.compare` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _html
from .documents import Json, Training, check_version, frame
from .errors import Failed

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Best:
    """The best plan on a cluster, in short."""

    strategy: str
    step_time_s: float
    step_time_spread_s: float
    tokens_per_s: float
    tokens_per_s_per_device: float
    mfu: float | None
    peak_memory_bytes: int
    training: Training | None
    error_bar_of: str
    """The runs whose error the interval of the step time is."""
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json | None) -> Best | None:
        if raw is None:
            return None
        return cls(
            strategy=str(raw["strategy"]),
            step_time_s=float(raw["step_time_s"]),
            step_time_spread_s=float(raw["step_time_spread_s"]),
            tokens_per_s=float(raw["tokens_per_s"]),
            tokens_per_s_per_device=float(raw["tokens_per_s_per_device"]),
            mfu=raw.get("mfu"),
            peak_memory_bytes=int(raw["peak_memory_bytes"]),
            training=Training.of(raw.get("training")),
            error_bar_of=str(raw.get("error_bar_of", "")),
            raw=raw,
        )


@dataclass(frozen=True)
class ComparedCluster:
    """A cluster, or one of its sizes, with its best plan or the reason why there is none."""

    cluster: str
    device: str
    devices: int
    nodes: int
    best: Best | None
    refused: str | None
    raw: Json = field(repr=False)

    @classmethod
    def of(cls, raw: Json) -> ComparedCluster:
        return cls(
            cluster=str(raw["cluster"]),
            device=str(raw["device"]),
            devices=int(raw["devices"]),
            nodes=int(raw["nodes"]),
            best=Best.of(raw.get("best")),
            refused=raw.get("refused"),
            raw=raw,
        )


@dataclass(frozen=True)
class Difference:
    """How much better one cluster is than another: `times`, in the interval of both predictions' errors."""

    cluster: str
    than: str
    times: float
    times_low: float
    times_high: float
    raw: Json = field(repr=False)

    @property
    def is_clear(self) -> bool:
        """Whether the interval says which one is better."""
        return self.times_low > 1.0

    @classmethod
    def of(cls, raw: Json) -> Difference:
        return cls(
            cluster=str(raw["cluster"]),
            than=str(raw["than"]),
            times=float(raw["times"]),
            times_low=float(raw["times_low"]),
            times_high=float(raw["times_high"]),
            raw=raw,
        )


@dataclass(frozen=True)
class Comparison:
    """Clusters compared for one job."""

    model: str
    job: Json = field(repr=False)
    clusters: tuple[ComparedCluster, ...]
    faster: tuple[Difference, ...]
    """The fastest cluster against each other one."""
    cheaper: tuple[Difference, ...]
    """The cheapest cluster against each other one, if prices and tokens are given."""
    raw: Json = field(repr=False)
    notes: tuple[str, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json, notes: tuple[str, ...] = ()) -> Comparison:
        check_version(raw, "comparison")
        try:
            return cls(
                model=str(raw["model"]),
                job=raw["job"],
                clusters=tuple(map(ComparedCluster.of, raw["clusters"])),
                faster=tuple(map(Difference.of, raw["faster"])),
                cheaper=tuple(map(Difference.of, raw["cheaper"])),
                raw=raw,
                notes=notes,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Failed(f"not a comparison: {type(error).__name__}: {error}") from error

    @property
    def fastest(self) -> ComparedCluster:
        """The cluster with the shortest step."""
        return min(self._ranked(), key=lambda one: one[1].step_time_s)[0]

    @property
    def cheapest(self) -> ComparedCluster | None:
        """The cluster on which the training costs least; None if a cluster has no cost."""
        costs = [(one, best.training.cost_usd if best.training else None) for one, best in self._ranked()]
        known = [(one, cost) for one, cost in costs if cost is not None]
        return min(known, key=lambda one: one[1])[0] if len(known) == len(costs) else None

    def _ranked(self) -> list[tuple[ComparedCluster, Best]]:
        return [(one, one.best) for one in self.clusters if one.best is not None]

    def to_frame(self) -> pandas.DataFrame:
        """One row for each cluster; those without a plan have only the reason.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame([_row(one) for one in self.clusters])

    def _repr_html_(self) -> str:
        return _html.comparison(self)


def _row(one: ComparedCluster) -> dict[str, Any]:
    row: dict[str, Any] = {"cluster": one.cluster, "device": one.device, "devices": one.devices, "nodes": one.nodes}
    if one.best is not None:
        row |= {key: value for key, value in one.best.raw.items() if key != "training"}
        if one.best.training is not None:
            row |= dict(one.best.training.raw)
    row["refused"] = one.refused
    return row
