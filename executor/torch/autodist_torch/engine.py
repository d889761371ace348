"""What this engine can run. The Rust side asks the same (`program::engine`) before it starts anything; here the package
speaks for itself, under any launcher."""

from typing import Any

from .spec import Task

# Codecs of gradients that have a communication hook.
HOOKS = ("none", "fp16", "bf16", "powersgd")


class Refused(ValueError):
    """A plan that this engine cannot run: the field, why, and the way out."""


def codec_name(codec: Any) -> str:
    return codec if isinstance(codec, str) else next(iter(codec))


def check(task: Task, world: int) -> None:
    strategy, job = task.strategy, task.job
    communication = strategy.communication

    def refuse(condition: bool, field: str, why: str, instead: str) -> None:
        if condition:
            raise Refused(f"{field}: {why}; {instead}")

    refuse(
        strategy.world() != world,
        "strategy",
        f"dp={strategy.data} x tp={strategy.tensor} x pp={strategy.pipeline} is {strategy.world()} ranks, but {world} were started",
        f"start {strategy.world()} ranks",
    )
    refuse(task.model.experts is not None, "model.experts", "not supported", "use a dense model")
    for field in ("latent", "blocks", "additions"):
        refuse(bool(getattr(task.model, field)), f"model.{field}", "not supported", "use a model without")
    window = task.model.window
    refuse(
        window is not None and window < job.seq_len,
        f"model.window = {window}",
        "this engine has no sliding-window attention",
        f"use a seq_len of {window} or less",
    )
    refuse(strategy.context > 1 or strategy.expert > 1, "strategy.context, strategy.expert", "not supported", "use 1")
    refuse(
        strategy.zero_stage == 1,
        "strategy.zero_stage = 1",
        "PyTorch's ZeroRedundancyOptimizer hands out whole parameters, not equal shards",
        "use zero_stage 2, which FSDP2 runs",
    )
    refuse(
        job.precision != "fp32",
        f"job.precision = {job.precision}",
        "this engine is verified against the native one only in fp32",
        "use fp32, or the native engine",
    )
    refuse(
        task.emulated_flops_per_s is not None,
        "emulated",
        "PyTorch's kernels and links cannot be slowed down",
        "use the native engine",
    )
    refuse(
        communication.placement != [],
        "strategy.communication.placement",
        "rank r always runs on device r",
        "remove it",
    )
    algorithms = (communication.tensor, communication.gather, communication.reduce.algorithm)
    refuse(
        any(algorithm != "ring" for algorithm in algorithms) or communication.buckets != [],
        "strategy.communication",
        "Gloo and NCCL choose the algorithm of a collective themselves, and one hook serves all buckets",
        "remove algorithms and buckets",
    )
    refuse(
        communication.parameters != "none" or communication.activations != "none",
        "strategy.communication.parameters, .activations",
        "FSDP2 and pipelining send the training precision",
        "remove them, or use the native engine",
    )
    codec = codec_name(communication.reduce.codec)
    refuse(
        codec not in HOOKS,
        f"strategy.communication.reduce.codec = {codec}",
        "PyTorch has no communication hook for it",
        f"use one of {', '.join(HOOKS)}, or the native engine",
    )
    refuse(
        codec == "powersgd" and communication.reduce.codec["powersgd"].get("start_step", 10) < 2,
        "strategy.communication.reduce.codec = powersgd",
        "PyTorch's hook keeps no error before its third step",
        "use start_step 2 or more",
    )
    refuse(
        strategy.pipeline > 1 and strategy.micro_batches(job) < strategy.pipeline,
        f"strategy.micro_batch = {strategy.micro_batch}",
        "torch.distributed.pipelining needs at least one micro-batch for each stage",
        "use a smaller micro_batch",
    )
    refuse(
        codec != "none" and strategy.zero_stage > 0,
        f"strategy.communication.reduce.codec = {codec}",
        "only DistributedDataParallel has communication hooks, FSDP2 has none",
        "use zero_stage 0",
    )
