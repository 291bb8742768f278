"""Who is optimised how, and how fast at each iteration: parameter groups, optimisers, warm-up and schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.base.config import Hyp

OPTIMIZERS = ("auto", "SGD", "Adam", "AdamW")
_LONG_RUN = 10_000  # optimiser steps; up to here AdamW was seen to learn (docs/results.md), above it is v6.1's SGD


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(normalisation weights, other weights, biases), each parameter exactly once; only the second group is decayed.

    Whatever is neither a normalisation's nor a bias counts as a weight, whatever its name, so that attention's
    `in_proj_weight` or a learned scale is trained too.
    """
    norms, weights, biases = [], [], []
    normalisations = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                biases.append(parameter)
            elif isinstance(module, normalisations):
                norms.append(parameter)
            else:
                weights.append(parameter)
    return norms, weights, biases


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser's choice and its first step size, momentum and weight decay."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float


def choose_recipe(name: str, hyp: Hyp, steps: int, total_batch: int) -> Recipe:
    """What `--optimizer` means in a run of this many optimiser steps.

    `auto` takes AdamW with a step size of 0.003 for runs under 10,000 steps, and SGD with 0.01 above;
    a named optimiser takes lr0, momentum and weight decay as the hyp file has them. The decay of a named optimiser is
    scaled with the share of the nominal batch that one step really sees, as in YOLOv5.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"--optimizer {name}: choose one of {', '.join(OPTIMIZERS)}")
    accumulate = max(round(hyp.nominal_batch / total_batch), 1)
    decay = hyp.weight_decay * total_batch * accumulate / hyp.nominal_batch
    if name != "auto":
        return Recipe(name, hyp.lr0, hyp.momentum, decay)
    if steps < _LONG_RUN:
        return Recipe("AdamW", 0.003, 0.9, decay)
    return Recipe("SGD", 0.01, 0.9, decay)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser over three groups in YOLOv5's order: normalisation weights, weights, biases."""
    norms, weights, biases = parameter_groups(model)
    groups = [
        {"params": norms, "weight_decay": 0.0},
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    every = norms + weights + biases
    fused = {"fused": True} if every and all(p.is_cuda for p in every) else {}
    if recipe.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, **fused)
    kind = torch.optim.Adam if recipe.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=0.0, **fused)


class Schedule:
    """Step size, momentum and gradient accumulation as functions of the iteration alone, so resuming needs no state.

    Warm-up ramps biases down from `warmup_bias_lr` and everything else up from 0. It lasts `warmup_epochs`, at least
    `warmup_floor` iterations, and never more than a third of the run. After it the step size falls per epoch from
    `lr` to `lr * lrf`, linearly or along a cosine.
    """

    def __init__(
        self, hyp: Hyp, recipe: Recipe, epochs: int, batches: int, total_batch: int, cosine: bool = False
    ) -> None:
        self.hyp, self.recipe = hyp, recipe
        self.epochs, self.batches, self.cosine = epochs, batches, cosine
        self.accumulate = max(round(hyp.nominal_batch / total_batch), 1)
        wanted = max(round(hyp.warmup_epochs * batches), hyp.warmup_floor) if hyp.warmup_epochs > 0 else 0
        self.warmup = min(wanted, epochs * batches // 3)

    def factor(self, epoch: int) -> float:
        """Share of the first step size that is left in this epoch."""
        done = min(epoch / self.epochs, 1.0)
        shape = (1 + math.cos(math.pi * done)) / 2 if self.cosine else 1 - done
        return shape * (1 - self.hyp.lrf) + self.hyp.lrf

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> int:
        """Set every group for this iteration (counted from 0 over the run); returns batches per optimiser step."""
        lr = self.recipe.lr * self.factor(iteration // self.batches)
        momentum, accumulate, start = self.recipe.momentum, self.accumulate, {}
        if iteration < self.warmup:
            ramp = [0, self.warmup]
            accumulate = max(1, int(np.interp(iteration, ramp, [1, self.accumulate]).round()))
            momentum = float(np.interp(iteration, ramp, [min(self.hyp.warmup_momentum, momentum), momentum]))
            bias_start = self.hyp.warmup_bias_lr if self.recipe.optimizer == "SGD" else 0.0
            start = {2: float(np.interp(iteration, ramp, [bias_start, lr]))}
            lr_others = float(np.interp(iteration, ramp, [0.0, lr]))
        else:
            lr_others = lr
        for index, group in enumerate(optimizer.param_groups):
            group["lr"] = start.get(index, lr_others)
            if "momentum" in group:
                group["momentum"] = momentum
            elif "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
        return accumulate
