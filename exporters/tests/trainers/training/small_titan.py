"""A module for torchtitan, as users write it: a small Llama with as many blocks as the plan, and data that repeats."""

import json
import os
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.models.llama3 import config_registry, model_registry
from torchtitan.trainer import Trainer

PLAN = json.loads(Path(os.environ["AUTODIST_PLAN"]).read_text())


def assets() -> Path:
    """A tokenizer of single bytes, and a text."""
    folder = Path(os.environ["AUTODIST_PLAN"]).parent / "assets"
    names = ["<|begin_of_text|>", "<|end_of_text|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:2])
    (folder / "text").mkdir(parents=True, exist_ok=True)
    written = {
        "text/data.json": "\n".join(json.dumps({"text": "what was planned is trained. " * 20}) for _ in range(64)),
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({"bos_token": names[0], "eos_token": names[1]}),
    }
    for name, text in written.items():
        # Every rank writes the same; another may read meanwhile.
        mine = folder / f"{name}.{os.getpid()}"
        mine.write_text(text)
        mine.rename(folder / name)
    return folder


def small() -> Trainer.Config:
    folder = assets()
    config = config_registry.llama3_debugmodel()
    config.model_spec = model_registry("debugmodel", attn_backend="flex")
    config.model_spec.model.layers = config.model_spec.model.layers[: sum(PLAN["stages"])]
    config.lr_scheduler = LRSchedulersContainer.Config()
    config.validator.enable = False
    config.hf_assets_path = str(folder)
    config.dataloader.dataset_path = str(folder / "text")
    return config
