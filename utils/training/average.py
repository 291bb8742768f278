"""The weight average of a training run, and its early end."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection

import torch
from torch import nn

from utils.base.log import LOGGER
from utils.base.networks import copy_attr, de_parallel


class ModelEMA:
    """Exponential moving average of everything in a model's state that is a fraction.

    The decay starts near 0 and approaches `decay` over about `tau` updates, so that the average leaves the random
    start behind soon. `ema` is the averaged model: in evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.ema = copy.deepcopy(de_parallel(model)).eval().requires_grad_(False)
        self.updates = updates
        self._limit, self._tau = decay, tau

    def decay(self, updates: int) -> float:
        """Weight of the past after so many updates."""
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


class EarlyStopping:
    """Says stop when `patience` epochs have passed since fitness last rose strictly; patience 0 never does."""

    def __init__(self, patience: int = 30) -> None:
        self.patience = patience or math.inf
        self.best_fitness, self.best_epoch = -math.inf, 0
        self.possible_stop = False

    def __call__(self, epoch: int, fitness: float) -> bool:
        """True when this should be the last epoch; `possible_stop` tells that the next one may be."""
        if fitness > self.best_fitness:
            self.best_epoch, self.best_fitness = epoch, float(fitness)
        self.possible_stop = epoch - self.best_epoch >= self.patience - 1
        if stop := self.exhausted(epoch):
            LOGGER.info(f"Stopping early: no improvement in {self.patience} epochs since epoch {self.best_epoch}")
        return stop

    def exhausted(self, epoch: int) -> bool:
        """Was patience at its end when this epoch was over?"""
        return epoch - self.best_epoch >= self.patience
