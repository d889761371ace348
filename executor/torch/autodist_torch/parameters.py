"""Initial parameters, the same numbers as the Rust side's `executor::parameters`."""

import functools
import math

import torch
from torch import Tensor, nn

from .random import Stream
from .spec import Model, Parameter, share


@functools.lru_cache(maxsize=4096)
def _normals(seed: int, layer: int, index: int, elements: int, deviation: float) -> Tensor:
    # Many plans of one model begin with the same numbers.
    stream = Stream(seed, 0x1217, layer, index)
    return (deviation * stream.normals(torch.arange(elements))).to(torch.float32)


def initial(model: Model, seed: int, layer: int, index: int, parameter: Parameter) -> Tensor:
    """The whole parameter (Radford et al. 2019, section 2.3)."""
    shape = (parameter.rows, parameter.columns)
    if parameter.init in ("zeros", "ones"):
        return torch.full(shape, float(parameter.init == "ones"))
    scaled = 0.02 / math.sqrt(2.0 * model.layers)
    deviation = scaled if parameter.init == "scaled_normal" else 0.02
    return _normals(seed, layer, index, parameter.rows * parameter.columns, deviation).view(shape)


@torch.no_grad()
def fill(module: nn.Module, model: Model, seed: int, layer: int, rank: int, degree: int) -> None:
    """Gives `module`, which is tensor rank `rank`'s part of a layer, what it begins with."""
    own = dict(module.named_parameters())
    for index, parameter in enumerate(model.parameters(model.kind(layer))):
        if parameter.name not in own:
            continue
        whole = initial(model, seed, layer, index, parameter)
        if parameter.split == "rows":
            part = share(parameter.rows, rank, degree)
            whole = whole[part.start : part.stop]
        elif parameter.split == "columns":
            part = share(parameter.columns, rank, degree)
            whole = whole[:, part.start : part.stop]
        own[parameter.name].copy_(whole.reshape(own[parameter.name].shape))
