"""Parameter groups, optimisers, warm-up and schedule, and the average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.base.config import Hyp
from utils.base.networks import copy_attr, de_parallel

_LONG_RUN = 10_000  # optimiser steps; up to here AdamW was seen to learn (docs/results.md), above it is v6.1's SGD

_FINE_TUNING = {"head": 0.0005, "backbone": 0.002}  # first step size, by how far trained weights reach
_SHORT_RUN = 100  # optimiser steps; fewer cannot better a good start, so the average stays near it (docs/results.md)


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return (normalisation weights, other weights, biases), each parameter exactly once; only weights are decayed.

    Whatever is neither a normalisation's nor a bias counts as a weight, whatever its name, so that attention's
    `in_proj_weight` or a learned scale is trained too.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    normalisations = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            group = 2 if name.endswith("bias") else 0 if isinstance(module, normalisations) else 1
            groups[group].append(parameter)
    return groups


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser's choice, its first step size, momentum and weight decay, and what suits trained weights.

    `covered` says how far into the network these reach ("head", "backbone" or ""); `steps` are those of a run whose
    start is worth keeping, for the average of its weights and the mosaics, 0 of any other.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    covered: str = ""
    steps: int = 0

    def __str__(self) -> str:
        note = f", for trained weights of the {self.covered}" * bool(self.covered)
        return f"lr={self.lr:g}, momentum={self.momentum:g}, weight_decay={self.weight_decay:g}{note}"


def choose_recipe(name: str, hyp: Hyp, steps: int, total_batch: int, covered: str = "") -> Recipe:
    """Return what `--optimizer` means in a run of this many optimiser steps, with weights that reach so far.

    `auto` takes AdamW with a step size of 0.003 for runs under 10,000 steps, and SGD with 0.01 above; for weights that
    are trained already, AdamW with smaller steps (docs/fine-tuning.md has the measurements). A named optimiser takes
    lr0, momentum and weight decay as the hyp file has them. The decay of a named optimiser is scaled with the share of
    the nominal batch that one step really sees, as in YOLOv5.
    """
    accumulate = max(round(hyp.nominal_batch / total_batch), 1)
    decay = hyp.weight_decay * total_batch * accumulate / hyp.nominal_batch
    if name != "auto":
        return Recipe(name, hyp.lr0, hyp.momentum, decay, covered)
    if covered:
        return Recipe("AdamW", _FINE_TUNING[covered], 0.9, decay, covered, max(steps, 1) * (covered == "head"))
    return Recipe("AdamW", 0.003, 0.9, decay) if steps < _LONG_RUN else Recipe("SGD", 0.01, 0.9, decay)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser over three groups in YOLOv5's order: normalisation weights, weights, biases."""
    split = parameter_groups(model)
    decays = (0.0, recipe.weight_decay, 0.0)
    groups = [{"params": group, "weight_decay": decay} for group, decay in zip(split, decays, strict=True)]
    fused = {"fused": True} if all(p.is_cuda for group in split for p in group) else {}
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
        """Return the share of the first step size that is left in this epoch."""
        done = min(epoch / self.epochs, 1.0)
        shape = (1 + math.cos(math.pi * done)) / 2 if self.cosine else 1 - done
        return shape * (1 - self.hyp.lrf) + self.hyp.lrf

    def is_plain(self, epoch: int) -> bool:
        """Return whether an epoch sees whole images only: each of the last `close_mosaic`, if there are any.

        With a start that is worth keeping that is every epoch: in mosaics it gets worse (docs/results.md).
        """
        last = self.hyp.close_mosaic
        return last > 0 and (self.recipe.steps > 0 or epoch >= self.epochs - last)

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> int:
        """Set every group for this iteration (counted from 0 over the run); return batches per optimiser step."""
        lr = lr_biases = self.recipe.lr * self.factor(iteration // self.batches)
        momentum, accumulate = self.recipe.momentum, self.accumulate
        if iteration < self.warmup:
            ramp = [0, self.warmup]
            accumulate = max(1, int(np.interp(iteration, ramp, [1, self.accumulate]).round()))
            momentum = float(np.interp(iteration, ramp, [min(self.hyp.warmup_momentum, momentum), momentum]))
            bias_start = self.hyp.warmup_bias_lr if self.recipe.optimizer == "SGD" else 0.0
            lr, lr_biases = (float(np.interp(iteration, ramp, [start, lr])) for start in (0.0, bias_start))
        for group, group_lr in zip(optimizer.param_groups, (lr, lr, lr_biases), strict=True):
            group["lr"] = group_lr
            if "momentum" in group:
                group["momentum"] = momentum
            elif "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
        return accumulate


class ModelEMA:
    """Exponential moving average of everything in a model's state that is a fraction.

    The decay starts near 0 and approaches `decay` over about `tau` updates, so that the average leaves a random start
    behind soon. A start that is worth keeping is given up slowly: with `steps`, those of the whole run, the average
    goes over as many steps as are left, at least a tenth of all; a run of fewer than 100 is averaged as the beginning
    of one of 100. `ema` is the averaged model: in evaluation mode, without gradients.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0, steps: int = 0
    ) -> None:
        self.ema = copy.deepcopy(de_parallel(model)).eval().requires_grad_(False)
        self.updates = updates
        self._limit, self._tau, self._steps = decay, tau, steps

    def decay(self, updates: int) -> float:
        """Return the weight of the past after so many updates."""
        if self._steps:
            whole = max(self._steps, _SHORT_RUN)
            return 1 - 1 / (1 + max(whole - updates, whole / 10))
        return self._limit * (1 - math.exp(-updates / self._tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present state into the average; whole numbers (batches seen) are copied."""
        self.updates += 1
        news = de_parallel(model).state_dict()
        olds = self.ema.state_dict()
        averaged = [key for key, value in olds.items() if value.is_floating_point()]
        for key in olds.keys() - set(averaged):
            olds[key].copy_(news[key])
        new = [news[key].to(olds[key]) for key in averaged]
        torch._foreach_lerp_([olds[key] for key in averaged], new, 1 - self.decay(self.updates))

    def update_attr(
        self, model: nn.Module, include: Collection[str] = (), exclude: Collection[str] = ("process_group", "reducer")
    ) -> None:
        """Copy attributes such as names and hyp from the model to the average."""
        copy_attr(self.ema, de_parallel(model), include, exclude)
