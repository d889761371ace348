"""A training script for DeepSpeed, as users write it, that watches the engine."""

import argparse
import json
from pathlib import Path

import deepspeed
import torch
import watch

words = argparse.ArgumentParser()
words.add_argument("--deepspeed_config", type=Path, required=True)
config = json.loads(words.parse_args().deepspeed_config.read_text())
if config["optimizer"]["type"] == "AdamW":
    # Its own one would be compiled first.
    config["optimizer"]["params"]["torch_adam"] = True
deepspeed.init_distributed(dist_backend="gloo")
forwards = watch.forwards()
engine, optimizer, _, _ = deepspeed.initialize(model=watch.model(), config=config)
rank, tensor = torch.distributed.get_rank(), engine.autotp_size() or 1
micro, rounds = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
losses = []
for _ in range(watch.STEPS):
    for index in range(rounds):
        tokens = watch.batch(rank // tensor * rounds + index, micro)
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
    losses.append(loss.item())
ranks = torch.distributed.get_world_size()
data = ranks // tensor
inner = getattr(optimizer, "optimizer", optimizer)
split = [tuple(p.shape) for name, p in engine.module.named_parameters() if "q_proj" in name]
stage = engine.zero_optimization_stage()
if stage < 3:
    assert split[0][0] == 32 // tensor, f"q_proj is {split[0]} on each of {tensor} ranks"
watch.report(
    rank,
    {
        "losses": losses,
        "devices": ranks,
        "data": data,
        "tensor": tensor,
        "zero_stage": stage,
        "micro_batch": micro,
        "global_batch": micro * rounds * data,
        "bf16": engine.bfloat16_enabled(),
        "full_recompute": forwards.recomputed(watch.STEPS * rounds, watch.BLOCKS),
        "gradient_clip": engine.gradient_clipping(),
        "optimizer": watch.optimizer(inner),
    },
)
