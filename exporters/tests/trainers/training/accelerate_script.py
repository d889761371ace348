"""A training script for Accelerate, as users write it, that watches the model."""

import torch
import watch
from accelerate import Accelerator

forwards = watch.forwards()
accelerator = Accelerator()
model = watch.model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer = accelerator.prepare(model, optimizer)
losses = []
for _ in range(watch.STEPS):
    tokens = watch.batch(accelerator.process_index, 2)
    loss = model(input_ids=tokens, labels=tokens).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
seen = {
    "losses": losses,
    "devices": accelerator.num_processes,
    "bf16": accelerator.mixed_precision == "bf16",
    "full_recompute": forwards.recomputed(watch.STEPS, watch.BLOCKS),
    **watch.split(model, accelerator),
}
watch.report(accelerator.process_index, seen)
