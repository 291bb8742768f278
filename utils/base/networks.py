"""What is asked of any PyTorch network: unwrapped, its attributes, batch norms fused, its input resized."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_parallel(model: nn.Module) -> bool:
    """True for a model wrapped by DataParallel or DistributedDataParallel."""
    return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def de_parallel(model: nn.Module) -> nn.Module:
    """The model inside such a wrapper, or the model itself."""
    return model.module if is_parallel(model) else model


def copy_attr(target: Any, source: Any, include: Collection[str] = (), exclude: Collection[str] = ()) -> None:
    """Copy the public instance attributes of `source`: those in `include` (all if empty), none in `exclude`."""
    for name, value in vars(source).items():
        if not name.startswith("_") and name not in exclude and (name in include or not include):
            setattr(target, name, value)


def initialize_weights(model: nn.Module) -> None:
    """YOLOv5's settings: batch norm with eps 1e-3 and momentum 0.03, activations in place; weights stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
        elif isinstance(module, (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU)):
            module.inplace = True


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes bn(conv(x)) as in evaluation, in the convolution's type and on its device.

    With factor f = gamma / sqrt(var + eps): weight f * W, bias f * (b - mean) + beta.
    """
    fused = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        bias=True, padding_mode=conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    exact = torch.promote_types(conv.weight.dtype, torch.float32)
    factor = bn.weight.to(exact) / torch.sqrt(bn.running_var.to(exact) + bn.eps)
    shift = -bn.running_mean.to(exact) if conv.bias is None else conv.bias.to(exact) - bn.running_mean.to(exact)
    with torch.no_grad():
        fused.weight.copy_(conv.weight.to(exact) * factor[:, None, None, None])
        fused.bias.copy_(factor * shift + bn.bias.to(exact))
    return fused.train(conv.training).requires_grad_(False)


def scale_img(img: Tensor, ratio: float = 1.0, same_shape: bool = False, gs: int = 32) -> Tensor:
    """Resize pictures (B, C, H, W) by `ratio` and pad them, grey, right and below.

    Sides grow to the next multiple of `gs`, or with `same_shape` back to H and W. Ratio 1 returns the input.
    """
    if ratio == 1.0:
        return img
    height, width = img.shape[-2:]
    smaller = F.interpolate(img, size=(int(height * ratio), int(width * ratio)), mode="bilinear", align_corners=False)
    if not same_shape:
        height, width = (math.ceil(side * ratio / gs) * gs for side in (height, width))
    grey = 0.447  # mean of ImageNet
    return F.pad(smaller, [0, width - smaller.shape[3], 0, height - smaller.shape[2]], value=grey)
