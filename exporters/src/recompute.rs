//! A Python module that recomputes blocks, for trainers whose files have no setting that does.

use crate::File;

const NAME: &str = "autodist_recompute.py";

/// The module, for a trainer whose `function` (`package.name`, or `package.class.name`) every training script
/// calls with its model.
pub fn file(function: &str, blocks: u32) -> File {
    let (holder, name) = function.rsplit_once('.').unwrap_or(("", function));
    let package = function.split('.').next().unwrap_or_default();
    let text = format!(
        r#""""Starts the training script that is the first argument, and recomputes the blocks of its model in the backward
pass, as planned: no setting of the other files does."""

import functools
import os
import runpy
import sys

import {package}
import torch
from torch.utils.checkpoint import checkpoint

BLOCKS = {blocks}
given = {holder}.{name}
models = []


def recompute(model):
    own = getattr(model, "gradient_checkpointing_enable", None)
    if own is not None:
        own()
        return
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == BLOCKS]
    if len(lists) != 1:
        sys.exit(
            f"{{type(model).__name__}} has {{len(lists)}} lists of {{BLOCKS}} blocks, not one: recompute the blocks in the "
            "training script by torch.utils.checkpoint, and start it without {NAME}"
        )
    for block in lists[0]:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


@functools.wraps(given)
def with_recomputation(*args, **kwargs):
    for one in (*args, *kwargs.values()):
        if isinstance(one, torch.nn.Module) and one not in models:
            models.append(one)
            recompute(one)
    return given(*args, **kwargs)


{holder}.{name} = with_recomputation
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
if not models:
    sys.exit("nothing was recomputed: the training script gave no model to {function}")
"#
    );
    File::text(NAME, text)
}

/// What starts `script` with the module.
pub fn program(script: &str) -> String {
    format!("\"$(dirname \"$0\")/{NAME}\" {script}")
}
