"""Learning rate, gradient norm, clipping and update."""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from .mesh import Mesh
from .model import Held
from .spec import Job, LearningRate, Strategy


def learning_rate(rate: LearningRate, step: int) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter, 1608.03983); steps count from 0."""
    if step < rate.warmup_steps:
        return rate.peak * (step + 1) / rate.warmup_steps
    span = max(1, rate.total_steps - rate.warmup_steps)
    progress = min(1.0, (step - rate.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate.peak * (rate.final_fraction + (1.0 - rate.final_fraction) * cosine)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Updates:
    """What happens to parameters once a step's gradients are there."""

    def __init__(self, job: Job, strategy: Strategy, held: list[Held], mesh: Mesh) -> None:
        self._job, self._held, self._mesh = job, held, mesh
        self._sharded = strategy.zero_stage > 0
        self._partial = [h for h in held if h.replicated] if strategy.sequence_parallel else []
        counted = [h for h in held if not h.copy and (mesh.tensor == 0 or not h.replicated)]
        self._counted = [h.parameter for h in counted]
        self._tied = [h.parameter for h in held if h.tied] if mesh.tied is not None else []
        chosen = job.optimizer
        parameters = [h.parameter for h in held]
        self.optimizer: torch.optim.Optimizer
        if chosen.kind == "adamw":
            betas, decay = (chosen.beta1, chosen.beta2), chosen.weight_decay
            self.optimizer = torch.optim.AdamW(
                parameters, betas=betas, eps=chosen.epsilon, weight_decay=decay, fused=True
            )
        else:
            # The fused kernel has no rule for DTensors, which parameters of FSDP2 are.
            how = {"foreach": True} if self._sharded else {"fused": True}
            self.optimizer = torch.optim.SGD(
                parameters, lr=0.0, momentum=chosen.momentum, weight_decay=chosen.weight_decay, **how
            )

    @torch.no_grad()
    def clip(self) -> float:
        """Completes the gradients; their norm over the whole model, to which they are clipped afterwards."""
        if self._partial:
            self._sum_partial()
        for parameter in self._tied:
            dist.all_reduce(_gradient(parameter), group=self._mesh.tied)
        norms = torch._foreach_norm([_gradient(parameter) for parameter in self._counted])
        total = torch.stack(norms).square().sum()
        dist.all_reduce(total, group=self._mesh.model)
        norm = float(total.sqrt())
        if self._job.gradient_clip > 0.0:
            scale = min(1.0, self._job.gradient_clip / (norm + 1e-6))
            torch._foreach_mul_([_gradient(h.parameter) for h in self._held], scale)
        return norm

    def update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._job.learning_rate, step)
        self.optimizer.step()
        # DistributedDataParallel's gradients stay where they are, in its buckets; FSDP2 makes its own anew.
        self.optimizer.zero_grad(set_to_none=self._sharded)

    def _sum_partial(self) -> None:
        """Sequence parallelism leaves each tensor rank the gradient of its rows alone on what all of them hold."""
        gradients = [_gradient(h.parameter) for h in self._partial]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole, group=self._mesh.group("tensor"))
        for gradient, summed in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view(gradient.shape))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return local(parameter.grad)
