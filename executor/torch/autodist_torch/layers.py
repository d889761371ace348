"""The layers of a decoder-only transformer, each tensor rank with its part: the arithmetic of the Rust side's `compute`."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .parallel import TensorGroup, VocabularyCrossEntropy
from .spec import Model, Recompute, share


class Linear(nn.Module):
    """One rank's part of a projection; its bias is added by whom it belongs to."""

    def __init__(self, inputs: int, outputs: int, bias: bool, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device))
        self.bias = nn.Parameter(torch.empty(outputs, device=device)) if bias else None


class Norm(nn.Module):
    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        self.epsilon = model.norm_epsilon
        self.weight = nn.Parameter(torch.empty(model.hidden, device=device))
        centred = model.norm == "layer_norm"
        self.bias = nn.Parameter(torch.empty(model.hidden, device=device)) if centred else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Table(nn.Module):
    """Rows of an embedding."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, device=device))


class Embedding(nn.Module):
    """Token embedding with this rank's share of the vocabulary, and learned positions where the model has them."""

    def __init__(self, model: Model, tensor: TensorGroup, device: torch.device) -> None:
        super().__init__()
        self._tensor = tensor
        self._share = share(model.vocab, tensor.rank, tensor.size)
        self.embedding = Table(len(self._share), model.hidden, device)
        learned = model.positions.kind == "learned"
        self.position = Table(model.max_seq_len, model.hidden, device) if learned else None

    def forward(self, tokens: Tensor) -> Tensor:
        """`[micro-batch, sequence]` to `[sequence, micro-batch, hidden]`, or this rank's rows of it."""
        tensor, clock = self._tensor, self._tensor.clock
        with clock.segment(0, "embedding"):
            tokens = tokens.t()
            # Nothing comes after the table's gradient: the mark is on the table itself.
            table = clock.mark(self.embedding.weight, 0, "embedding")
            if tensor.size == 1:
                flow = F.embedding(tokens, table)
            else:
                local = tokens - self._share.start
                held = (local >= 0) & (local < len(self._share))
                flow = F.embedding(local * held, table) * held.unsqueeze(-1)
        flow = tensor.leave(flow)
        with clock.segment(0, "embedding"):
            if self.position is not None:
                flow = flow + self.position.weight[tensor.rows(tokens.shape[0])].unsqueeze(1)
        return clock.mark(flow, 0, None)


class Attention(nn.Module):
    """Causal self-attention with this rank's share of the heads; key and value heads may each serve several query heads."""

    def __init__(self, model: Model, tensor: TensorGroup, recompute: Recompute, device: torch.device) -> None:
        super().__init__()
        self._heads, self._kv_heads = model.heads // tensor.size, model.kv_heads // tensor.size
        self._head_dim = model.head_dim
        self._selective = recompute == "selective"
        query, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        self.query = Linear(model.hidden, query, model.bias, device)
        self.key = Linear(model.hidden, kv, model.bias, device)
        self.value = Linear(model.hidden, kv, model.bias, device)
        self.output = Linear(query, model.hidden, model.bias, device)

    def forward(self, h: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """This rank's summand of the output projection, its bias left out."""
        sequence, micro_batch, _ = h.shape

        def heads(projection: Linear, count: int) -> Tensor:
            projected = F.linear(h, projection.weight, projection.bias)
            return projected.view(sequence, micro_batch, count, self._head_dim).permute(1, 2, 0, 3)

        query, key = heads(self.query, self._heads), heads(self.key, self._kv_heads)
        value = heads(self.value, self._kv_heads)
        if rotation is not None:
            query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        if self._selective and torch.is_grad_enabled():
            attended = checkpoint(self._core, query, key, value, use_reentrant=False)
        else:
            attended = self._core(query, key, value)
        attended = attended.permute(2, 0, 1, 3).reshape(sequence, micro_batch, -1)
        return F.linear(attended, self.output.weight)

    def _core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        group = self._heads // self._kv_heads
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al., RoFormer, 2104.09864): the first half of a head turns with the second."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, first * sines + second * cosines), dim=-1)


def rotation(model: Model, sequence: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines `[sequence, head_dim / 2]`."""
    if model.positions.theta is None:
        return None
    half = torch.arange(model.head_dim // 2, dtype=torch.float64)
    turns = torch.tensor(model.positions.theta, dtype=torch.float64).pow(-2.0 * half / model.head_dim)
    angles = torch.arange(sequence, dtype=torch.float64)[:, None] * turns
    return angles.cos().to(device, torch.float32), angles.sin().to(device, torch.float32)


class Mlp(nn.Module):
    def __init__(self, model: Model, tensor: TensorGroup, device: torch.device) -> None:
        super().__init__()
        ffn = model.ffn // tensor.size
        gated = model.activation == "swi_glu"
        self.gate = Linear(model.hidden, ffn, model.bias, device) if gated else None
        self.up = Linear(model.hidden, ffn, model.bias, device)
        self.down = Linear(ffn, model.hidden, model.bias, device)

    def forward(self, h: Tensor) -> Tensor:
        """This rank's summand of the down projection, its bias left out."""
        up = F.linear(h, self.up.weight, self.up.bias)
        if self.gate is None:
            inner = F.gelu(up, approximate="tanh")
        else:
            inner = F.silu(F.linear(h, self.gate.weight, self.gate.bias)) * up
        return F.linear(inner, self.down.weight)


class Block(nn.Module):
    def __init__(
        self, model: Model, layer: int, sequence: int, tensor: TensorGroup, recompute: Recompute, device: torch.device
    ) -> None:
        super().__init__()
        self._layer, self._tensor, self._full = layer, tensor, recompute == "full"
        self._rotation = rotation(model, sequence, device)
        self.attention_norm = Norm(model, device)
        self.attention = Attention(model, tensor, recompute, device)
        self.mlp_norm = Norm(model, device)
        self.mlp = Mlp(model, tensor, device)

    def forward(self, x: Tensor) -> Tensor:
        x = self._tensor.clock.mark(x, self._layer, "attention_norm")
        if self._full and torch.is_grad_enabled():
            x = checkpoint(self._run, x, use_reentrant=False)
        else:
            x = self._run(x)
        return self._tensor.clock.mark(x, self._layer, None)

    def _run(self, x: Tensor) -> Tensor:
        x = self._half(x, self.attention_norm, "attention")
        x = self._tensor.clock.mark(x, self._layer, "mlp_norm")
        return self._half(x, self.mlp_norm, "mlp")

    def _half(self, x: Tensor, norm: Norm, name: str) -> Tensor:
        """`x + projection(norm(x))`."""
        tensor, clock = self._tensor, self._tensor.clock
        with clock.segment(self._layer, f"{name}_norm"):
            rows = norm(x)
        h = tensor.enter(clock.mark(rows, self._layer, name))
        saving = tensor.kept_as_rows(rows, h) if tensor.sequence_parallel else contextlib.nullcontext()
        with saving, clock.segment(self._layer, name):
            if name == "attention":
                part, bias = self.attention(h, self._rotation), self.attention.output.bias
            else:
                part, bias = self.mlp(h), self.mlp.down.bias
        whole = tensor.leave(part)
        with clock.segment(self._layer, name):
            return x + whole if bias is None else x + (whole + bias)


class Head(nn.Module):
    """Final norm and output projection, over this rank's share of the vocabulary. A tied table is the embedding's."""

    def __init__(self, model: Model, tensor: TensorGroup, tied: Table | None, device: torch.device) -> None:
        super().__init__()
        self._layer, self._tensor = model.layers + 1, tensor
        self._share = share(model.vocab, tensor.rank, tensor.size)
        self.final_norm = Norm(model, device)
        self.output = Table(len(self._share), model.hidden, device) if tied is None else tied

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[sequence, micro-batch, local vocabulary]`."""
        tensor, clock = self._tensor, self._tensor.clock
        x = clock.mark(x, self._layer, "final_norm")
        with clock.segment(self._layer, "final_norm"):
            rows = self.final_norm(x)
        h = tensor.enter(clock.mark(rows, self._layer, "loss"))
        saving = tensor.kept_as_rows(rows, h) if tensor.sequence_parallel else contextlib.nullcontext()
        with saving, clock.segment(self._layer, "logits"):
            return F.linear(h, self.output.weight)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy summed over the tokens, nats; `targets` is `[micro-batch, sequence]`."""
        targets, clock = targets.t(), self._tensor.clock
        if self._tensor.size > 1:
            return VocabularyCrossEntropy.apply(logits, targets, self._share.start, self._layer, self._tensor)
        with clock.segment(self._layer, "normalizer"):
            pass
        with clock.segment(self._layer, "loss"):
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
