"""Losses and gradients of the models in common/mod.rs, computed by PyTorch in double precision.

Prints the numbers in layers.rs: the mean loss, then per layer the gradient's Euclidean norm.
"""

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
LAYERS, HIDDEN, FFN, VOCAB, POSITIONS = 2, 18, 22, 13, 8
MICRO_BATCH, SEQ_LEN = 3, 6


class Noise:
    """SplitMix64, as in common/mod.rs."""

    def __init__(self, seed):
        self.state = seed

    def bits(self):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def number(self):
        return (self.bits() >> 11) / (1 << 52) - 1.0


def step(llama, heads, kv_heads, head_dim, bias, tied):
    noise = Noise(7)
    layers = []

    def parameter(name, *shape):
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        values = torch.tensor([centre + 0.5 * noise.number() for _ in range(torch.Size(shape).numel())])
        layers[-1][name] = values.view(shape).requires_grad_()

    def norm_parameters(name):
        parameter(name + "_norm.weight", HIDDEN)
        if not llama:
            parameter(name + "_norm.bias", HIDDEN)

    query, kv = heads * head_dim, kv_heads * head_dim
    layers.append({})
    parameter("embedding", VOCAB, HIDDEN)
    if not llama:
        parameter("position", POSITIONS, HIDDEN)
    for _ in range(LAYERS):
        layers.append({})
        parameter("qkv.weight", query + 2 * kv, HIDDEN)
        if bias:
            parameter("qkv.bias", query + 2 * kv)
        parameter("output.weight", HIDDEN, query)
        inner = 2 * FFN if llama else FFN
        parameter("up.weight", inner, HIDDEN)
        if bias:
            parameter("up.bias", inner)
        parameter("down.weight", HIDDEN, FFN)
        if bias:
            parameter("output.bias", HIDDEN)
            parameter("down.bias", HIDDEN)
        norm_parameters("attention")
        norm_parameters("mlp")
    layers.append({})
    if not tied:
        parameter("output", VOCAB, HIDDEN)
    norm_parameters("final")

    ids = lambda: torch.tensor([noise.bits() % VOCAB for _ in range(SEQ_LEN * MICRO_BATCH)])
    tokens, targets = ids().view(SEQ_LEN, MICRO_BATCH), ids()

    def norm(p, name, x):
        if llama:
            return F.rms_norm(x, (HIDDEN,), p[name + "_norm.weight"], 1e-5)
        return F.layer_norm(x, (HIDDEN,), p[name + "_norm.weight"], p[name + "_norm.bias"], 1e-5)

    def rotate(x):  # Hugging Face's apply_rotary_pos_emb; x is [batch, heads, sequence, head_dim]
        angles = torch.arange(SEQ_LEN)[:, None] * 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    x = F.embedding(tokens, layers[0]["embedding"])
    if not llama:
        x = x + layers[0]["position"][:SEQ_LEN, None]
    for p in layers[1:-1]:
        qkv = F.linear(norm(p, "attention", x), p["qkv.weight"], p.get("qkv.bias"))
        split = lambda t: t.view(SEQ_LEN, MICRO_BATCH, -1, head_dim).permute(1, 2, 0, 3)
        q, k, v = (split(t) for t in qkv.split([query, kv, kv], -1))
        if llama:
            q, k = rotate(q), rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = y.permute(2, 0, 1, 3).reshape(SEQ_LEN, MICRO_BATCH, query)
        x = x + F.linear(y, p["output.weight"], p.get("output.bias"))
        y = F.linear(norm(p, "mlp", x), p["up.weight"], p.get("up.bias"))
        if llama:
            gate, up = y.chunk(2, -1)
            y = F.silu(gate) * up
        else:
            y = F.gelu(y, approximate="tanh")
        x = x + F.linear(y, p["down.weight"], p.get("down.bias"))
    table = layers[0]["embedding"] if tied else layers[-1]["output"]
    loss = F.cross_entropy(F.linear(norm(layers[-1], "final", x), table).flatten(0, 1), targets)
    loss.backward()
    norms = [sum((t.grad**2).sum() for t in p.values()).sqrt().item() for p in layers]
    print(", ".join(map(repr, [loss.item(), *norms])))


step(llama=False, heads=4, kv_heads=4, head_dim=5, bias=True, tied=True)
step(llama=True, heads=12, kv_heads=4, head_dim=6, bias=False, tied=False)
step(llama=True, heads=12, kv_heads=4, head_dim=6, bias=True, tied=True)
