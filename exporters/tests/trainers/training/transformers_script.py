"""A training script for Transformers' Trainer, as users write it, that watches the model."""

import sys
import tempfile

import torch
import watch
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed


class Same(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A few sequences, again and again."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = watch.batch(index % 4, 1)[0]
        return {"input_ids": tokens, "labels": tokens}


(given,) = HfArgumentParser(TrainingArguments).parse_json_file(sys.argv[1], allow_extra_keys=False)
given.output_dir = tempfile.mkdtemp()
given.report_to, given.disable_tqdm, given.logging_steps = [], True, 1
given.save_strategy = "no"
set_seed(given.seed)
forwards = watch.forwards()
trainer = Trainer(model=watch.model(), args=given, train_dataset=Same())
trainer.train()
accelerator = trainer.accelerator
rounds, micro = given.gradient_accumulation_steps, given.per_device_train_batch_size
watch.report(
    given.process_index,
    {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "devices": accelerator.num_processes,
        "micro_batch": micro,
        "global_batch": micro * rounds * accelerator.num_processes,
        "full_recompute": forwards.recomputed(trainer.state.global_step * rounds, watch.BLOCKS),
        "gradient_clip": given.max_grad_norm,
        "optimizer": watch.optimizer(getattr(trainer.optimizer, "optimizer", trainer.optimizer)),
        **watch.split(trainer.model_wrapped, accelerator),
    },
)
