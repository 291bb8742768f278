"""A linear layer over the last dimension that is fast on every CPU."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class PointwiseLinear(nn.Linear):
    """`nn.Linear`, with the same parameters and numbers, for the channels of each position: (..., N, C) -> (..., N, D).

    In float32 on a CPU the product runs as a 1 x 1 convolution over channels-last memory. PyTorch hands that to oneDNN
    instead of the BLAS behind `nn.Linear`, which leaves half of an AMD processor's AVX-512 unused. bfloat16 products go
    to oneDNN anyhow, and compilers choose for themselves.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, C) -> (..., N, D)."""
        plain = x.device.type == "cpu" and x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
        eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if not (eager and plain and x.ndim > 2 and x.numel() > 0 and torch.backends.mkldnn.is_available()):
            return super().forward(x)
        # Leading dimensions as the batch: below 16 images and with one thread PyTorch would take BLAS again
        maps = x.reshape(-1, x.shape[-2], 1, x.shape[-1]).permute(0, 3, 1, 2)  # (batch, C, N, 1)
        out = F.conv2d(maps, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
