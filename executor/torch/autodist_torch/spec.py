"""The nouns of autodist's files that training needs, read as strictly as the Rust side reads them."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class BadInput(ValueError):
    """A document that is not what its schema says."""


def read(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from a JSON object: an unknown or a missing field is an error that names it."""
    if not isinstance(value, dict):
        raise BadInput(f"{where or kind.__name__}: an object is due")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise BadInput(f"{where}{unknown[0]}: unknown field")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], f"{where}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadInput(f"{where}{name}: missing field")
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type[Any], hint), value, f"{where}.")
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return [_convert(item, each, f"{where}[{index}]") for index, each in enumerate(value)]
    if typing.get_origin(hint) is types.UnionType and value is not None:
        inner = [option for option in typing.get_args(hint) if option is not type(None)]
        return _convert(inner[0], value, where)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise BadInput(f"{where}: {value} is none of {', '.join(typing.get_args(hint))}")
    return value


Kind = Literal["embedding", "block", "head"]
Split = Literal["rows", "columns", "replicated"]
Init = Literal["normal", "scaled_normal", "zeros", "ones"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a layer as the whole model has it; vectors have one column."""

    name: str
    rows: int
    columns: int
    split: Split
    init: Init


def share(total: int, index: int, parts: int) -> range:
    """What part `index` of `parts` holds: the first parts are the larger ones."""
    small, larger = divmod(total, parts)
    start = index * small + min(index, larger)
    return range(start, start + small + (index < larger))


@dataclass(frozen=True)
class Positions:
    kind: Literal["learned", "rotary"]
    theta: float | None = None


@dataclass(frozen=True)
class Experts:
    count: int
    active: int
    shared_ffn: int = 0


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_seq_len: int
    positions: Positions
    norm: Literal["layer_norm", "rms_norm"]
    norm_epsilon: float
    activation: Literal["gelu", "swi_glu"]
    bias: bool
    tied_embeddings: bool
    window: int | None = None
    latent: Any = None
    experts: Experts | None = None
    # Blocks that differ, and parts of them, which this engine does not train.
    blocks: Any = None
    additions: Any = None

    def kind(self, layer: int) -> Kind:
        if layer == 0:
            return "embedding"
        return "head" if layer == self.layers + 1 else "block"

    def parameters(self, kind: Kind) -> list[Parameter]:
        """In the order of the Rust side's `ModelSpec::parameters`: the index of each names its random numbers."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: list[Parameter] = []

        def matrix(name: str, rows: int, columns: int, split: Split, init: Init = "normal") -> None:
            found.append(Parameter(name, rows, columns, split, init))

        def vector(name: str, rows: int, split: Split, init: Init = "zeros") -> None:
            found.append(Parameter(name, rows, 1, split, init))

        def norm(name: str) -> None:
            vector(f"{name}.weight", self.hidden, "replicated", "ones")
            if self.norm == "layer_norm":
                vector(f"{name}.bias", self.hidden, "replicated")

        if kind == "embedding":
            matrix("embedding.weight", self.vocab, self.hidden, "rows")
            if self.positions.kind == "learned":
                matrix("position.weight", self.max_seq_len, self.hidden, "replicated")
        elif kind == "block":
            gated = self.activation == "swi_glu"
            for name, rows in (("query", query), ("key", kv), ("value", kv)):
                matrix(f"attention.{name}.weight", rows, self.hidden, "rows")
            if self.bias:
                for name, rows in (("query", query), ("key", kv), ("value", kv)):
                    vector(f"attention.{name}.bias", rows, "rows")
            matrix("attention.output.weight", self.hidden, query, "columns", "scaled_normal")
            if gated:
                matrix("mlp.gate.weight", self.ffn, self.hidden, "rows")
            matrix("mlp.up.weight", self.ffn, self.hidden, "rows")
            if self.bias:
                if gated:
                    vector("mlp.gate.bias", self.ffn, "rows")
                vector("mlp.up.bias", self.ffn, "rows")
            matrix("mlp.down.weight", self.hidden, self.ffn, "columns", "scaled_normal")
            if self.bias:
                vector("attention.output.bias", self.hidden, "replicated")
                vector("mlp.down.bias", self.hidden, "replicated")
            norm("attention_norm")
            norm("mlp_norm")
        else:
            if not self.tied_embeddings:
                matrix("output.weight", self.vocab, self.hidden, "rows")
            norm("final_norm")
        return found


@dataclass(frozen=True)
class Optimizer:
    kind: Literal["adamw", "sgd"]
    weight_decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True)
class LearningRate:
    peak: float
    warmup_steps: int
    total_steps: int
    final_fraction: float


@dataclass(frozen=True)
class Job:
    schema_version: int
    global_batch: int
    seq_len: int
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8"]
    optimizer: Optimizer
    learning_rate: LearningRate
    gradient_clip: float
    seed: int
    # What searching needs, and training does not.
    objective: Any = None
    convergence: Any = None
    training_tokens: Any = None
    allow: Any = None
    given: Any = None
    states: Any = None
    trainable: Any = None
    memory_reserve: float = 0.0

    def tokens(self) -> int:
        return self.global_batch * self.seq_len


@dataclass(frozen=True)
class Reduction:
    algorithm: Any = "ring"
    codec: Any = "none"


@dataclass(frozen=True)
class Communication:
    placement: list[int] = dataclasses.field(default_factory=list)
    tensor: Any = "ring"
    gather: Any = "ring"
    parameters: Any = "none"
    activations: Any = "none"
    reduce: Reduction = Reduction()
    buckets: list[Any] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Strategy:
    data: int
    tensor: int
    pipeline: int
    micro_batch: int
    context: int = 1
    expert: int = 1
    zero_stage: int = 0
    shard: int = 1
    virtual_stages: int = 1
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    bucket_bytes: int = 25 << 20
    communication: Communication = Communication()

    def world(self) -> int:
        return self.data * self.tensor * self.pipeline

    def replicas(self) -> int:
        return self.data // self.shard

    def micro_batches(self, job: Job) -> int:
        return job.global_batch // (self.data * self.micro_batch)


@dataclass(frozen=True)
class Stage:
    first_layer: int
    end_layer: int
    recompute: list[Recompute]


@dataclass(frozen=True)
class Task:
    """One training run, as the Rust side's `executor::Task`."""

    model: Model
    job: Job
    strategy: Strategy
    stages: list[Stage]
    # `synthetic`, or `{"text": path}`.
    data: Any
    steps: int
    warmup_steps: int
    # Whether to time every segment, for a profile.
    detail: bool = False
    # Whether to count what tensors hold, which takes a step under the profiler.
    count_memory: bool = True
    emulated_flops_per_s: float | None = None
    coding: Any = None

    @staticmethod
    def of_plan(plan: dict[str, Any], steps: int) -> "Task":
        """The choice of a plan document."""
        chosen = {key: plan[key] for key in ("model", "job", "strategy", "stages")}
        warmup = min(2, steps - 1)
        return read(Task, chosen | {"data": "synthetic", "steps": steps, "warmup_steps": warmup})
