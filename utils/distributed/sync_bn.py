"""Batch norm whose statistics are those of the whole batch, however many processes share it.

On a GPU that is torch's SyncBatchNorm; it refuses tensors of a CPU, for which `SharedBatchNorm2d` does the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from utils.distributed.processes import is_joined

_OTHERS = (0, 2, 3)  # dimensions that are averaged over: images, rows, columns


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with the mean and variance of all processes' x, and its gradient.

    Of a loss that is summed over the processes, the input's gradient is weight / sqrt(var + eps) times
    g - mean(g) - z mean(g z), g being the output's gradient, z the normalised input, and the means over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor, eps: float
    ) -> Tensor:
        """x (B, C, H, W) and mean, variance and number (3, C) of each channel's values to the shape and type of x."""
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps = eps
        mean, var, _ = statistics.to(torch.promote_types(x.dtype, torch.float32))
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, and of weight and bias as far as this process's images go."""
        x, weight, statistics = ctx.saved_tensors
        kind = torch.promote_types(x.dtype, torch.float32)
        mean, var, count = statistics[:, None, :, None, None]
        g = gradient.to(kind)
        scale = (var + ctx.eps).rsqrt()
        z = (x.to(kind) - mean.to(kind)) * scale.to(kind)
        own = torch.stack((g.sum(_OTHERS), (g * z).sum(_OTHERS)))  # the gradients of bias and weight
        sums = own.to(torch.float64, copy=True)
        dist.all_reduce(sums)
        mean_g, mean_gz = (sums[:, None, :, None, None] / count).to(kind)
        if weight is not None:
            scale = scale * weight[None, :, None, None]
        inwards = (g - mean_g - z * mean_gz) * scale.to(kind)
        of_weight, of_bias = (
            sums if wanted else None for sums, wanted in zip(own.flip(0), ctx.needs_input_grad[1:3], strict=True)
        )
        return inwards.to(x.dtype), of_weight, of_bias, None, None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that, while training in several processes, normalises by the statistics of all of them.

    Every process must then call it equally often, forward and backward. Parts of the batch may differ in size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not (self.training and is_joined() and dist.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        with torch.no_grad():
            values = input.to(torch.promote_types(input.dtype, torch.float32))
            var, mean = (part.double() for part in torch.var_mean(values, _OTHERS, correction=0))
            count = torch.full_like(mean, values.numel() // values.shape[1])
            # sums of squares would lose float32's last digits to the square of the mean, but not float64's
            sums = torch.stack((mean * count, (var + mean.square()) * count, count))
            dist.all_reduce(sums)
            mean, count = sums[0] / sums[2], sums[2]
            var = (sums[1] / count - mean.square()).clamp(min=0)
            if self.track_running_stats:  # the variance as one of a sample
                assert self.num_batches_tracked is not None
                assert self.running_mean is not None and self.running_var is not None
                self.num_batches_tracked.add_(1)
                share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(self.running_var.dtype), share)
        return _Normalise.apply(input, self.weight, self.bias, torch.stack((mean, var, count)), self.eps)


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every batch norm synchronised between processes; parameters and statistics stay the same tensors.

    Convert after everything that a single process does with the model, and before DistributedDataParallel.
    """
    if device.type != "cuda":
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SharedBatchNorm2d  # what others know it by, hooks and attributes, stays with it
        return model
    before = dict(model.named_modules())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, module in converted.named_modules():
        if module is not before[name]:  # a layer's place in the network (i, f, type, np) is left behind by torch
            vars(module).update({key: value for key, value in vars(before[name]).items() if key not in vars(module)})
    return converted
