"""The block of block.rs in PyTorch, eager: GPT-2 and Llama style, explicit softmax and fused attention.

Prints medians of forward + backward in milliseconds, as block.rs does: CPU and wall time of one thread, or with
`--device cuda` the GPU's time, of the sizes and precisions of cuda/examples/gpu_block.rs, and its matrix product.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

ARGUMENTS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ARGUMENTS.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
GPU = ARGUMENTS.parse_args().device == "cuda"
HIDDEN, HEADS, KV_HEADS, FFN, SEQ_LEN, MICRO_BATCH = (
    (768, 12, 4, 3072, 1024, 8) if GPU else (512, 8, 4, 2048, 256, 4)
)
WARM_UP, REPEATS, SIDE = 5, 31, 4096


class Block(nn.Module):
    def __init__(self, llama, fused):
        super().__init__()
        self.llama, self.fused = llama, fused
        self.head_dim = HIDDEN // HEADS
        self.kv_heads = KV_HEADS if llama else HEADS
        norm = nn.RMSNorm if llama else nn.LayerNorm
        linear = lambda i, o: nn.Linear(i, o, bias=not llama)
        self.attention_norm, self.mlp_norm = norm(HIDDEN, eps=1e-5), norm(HIDDEN, eps=1e-5)
        self.qkv = linear(HIDDEN, (HEADS + 2 * self.kv_heads) * self.head_dim)
        self.output = linear(HIDDEN, HIDDEN)
        self.up, self.down = linear(HIDDEN, FFN * (2 if llama else 1)), linear(FFN, HIDDEN)
        angles = torch.arange(SEQ_LEN)[:, None] * 10000.0 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        for name, f in (("cos", torch.cos), ("sin", torch.sin)):
            self.register_buffer(name, torch.cat([f(angles)] * 2, 1))
        self.register_buffer("mask", torch.full((SEQ_LEN, SEQ_LEN), float("-inf")).triu(1))

    def rotate(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat((-second, first), -1) * self.sin

    def attention(self, h):
        widths = [n * self.head_dim for n in (HEADS, self.kv_heads, self.kv_heads)]
        split = lambda t: t.view(MICRO_BATCH, SEQ_LEN, -1, self.head_dim).transpose(1, 2)
        q, k, v = (split(t) for t in self.qkv(h).split(widths, -1))
        if self.llama:
            q, k = self.rotate(q), self.rotate(k)
            k, v = (t.repeat_interleave(HEADS // self.kv_heads, 1) for t in (k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = (q @ k.transpose(-1, -2) * self.head_dim**-0.5 + self.mask).softmax(-1) @ v
        return self.output(y.transpose(1, 2).reshape(MICRO_BATCH, SEQ_LEN, HIDDEN))

    def mlp(self, h):
        if self.llama:
            gate, up = self.up(h).chunk(2, -1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(self.up(h), approximate="tanh"))

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def gpu_time(work):
    events = []
    for _ in range(WARM_UP + REPEATS):
        events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        events[-1][0].record()
        work()
        events[-1][1].record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events[WARM_UP:])


def on_gpu():
    print(torch.cuda.get_device_name())
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
        time_ms = gpu_time(lambda: a @ b.T)
        print(f"{name:5} product of {SIDE}^3: {time_ms:8.3f} ms, {2e-9 * SIDE**3 / time_ms:6.1f} TFLOP/s")
        for llama in (False, True):
            block = Block(llama, fused=True).to("cuda", dtype)
            x = torch.randn(MICRO_BATCH, SEQ_LEN, HIDDEN, device="cuda", dtype=dtype, requires_grad=True)
            dy = torch.randn(MICRO_BATCH, SEQ_LEN, HIDDEN, device="cuda", dtype=dtype) * 1e-3
            time_ms = gpu_time(lambda: block(x).backward(dy))
            print(f"{name:5} {'llama-style' if llama else 'gpt2-style'}: {time_ms:8.3f} ms")


def on_cpu():
    torch.set_num_threads(1)
    for llama in (False, True):
        for fused in (False, True):
            block = Block(llama, fused)
            x = torch.randn(MICRO_BATCH, SEQ_LEN, HIDDEN, requires_grad=True)
            dy = torch.randn(MICRO_BATCH, SEQ_LEN, HIDDEN) * 1e-3
            cpu, wall = [], []
            for _ in range(WARM_UP + REPEATS):
                cpu_start, wall_start = time.process_time(), time.perf_counter()
                block(x).backward(dy)
                cpu.append((time.process_time() - cpu_start) * 1e3)
                wall.append((time.perf_counter() - wall_start) * 1e3)
            name = ("llama-style" if llama else "gpt2-style", "fused attention" if fused else "explicit softmax")
            times = [statistics.median(t[WARM_UP:]) for t in (cpu, wall)]
            print("{:12} {:24} CPU {:7.2f} ms  wall {:7.2f} ms".format(*name, *times))


on_gpu() if GPU else on_cpu()
