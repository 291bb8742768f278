"""One epoch of training: forward, loss, backward, step and weight average of every batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from utils.base.callbacks import Callbacks
from utils.base.devices import seed_everything
from utils.base.log import LOGGER
from utils.base.progress import BAR, Pace, is_terminal, memory_in_use, memory_name, progress
from utils.data.loader_faults import batches_of
from utils.distributed.processes import is_main, mean_over_ranks, rank, world_size
from utils.training.feed import feed
from utils.training.guard import StepGuard, in_pieces, repeatable, short_of_memory
from utils.training.optim import ModelEMA, Schedule
from utils.training.precision import Precision

_MULTI_SCALE, _NETWORK = 7, 8  # mark random streams of a run: image sizes, what the network itself draws


@dataclass(slots=True)
class EpochSettings:
    """What of the command line the inner loop needs."""

    epochs: int
    imgsz: int
    stride: int
    multi_scale: bool = False
    quad: bool = False
    clip_norm: float = math.inf  # longest gradient of a step
    seed: int = 0


@dataclass(slots=True)
class Position:
    """How far a run has come: `batch` batches of epoch `epoch` are done, with these mean (box, obj, cls) losses."""

    epoch: int = 0
    batch: int = 0
    losses: tuple[float, ...] = (0.0, 0.0, 0.0)


def train_unfrozen(net: nn.Module) -> None:
    """Put a network into training mode, but for batch norms whose weights are frozen: their statistics stay as well.

    Activations whose gradient is made of their input do not overwrite it: PyTorch would copy it first.
    """
    net.train()
    for module in net.modules():
        if isinstance(module, (nn.SiLU, nn.Hardswish)):
            module.inplace = False
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


@dataclass(slots=True)
class Trainer:
    """Holds what changes while training and does one epoch at a time.

    `net` is the network that is called (it may be wrapped for several processes), `model` the bare one whose weights
    are averaged into `ema`. `split` is the number of pieces that a batch is computed in.
    """

    net: nn.Module
    model: nn.Module
    loss: Any  # maps predictions and targets (N, 6) to the loss and its parts (3,); its state is that of a module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: ModelEMA
    precision: Precision
    settings: EpochSettings
    callbacks: Callbacks
    split: int = 1
    guard: StepGuard = field(init=False)
    classes: list[str] = field(init=False)  # of optimiser and loss, which a script of the user's may replace
    pace: Pace | None = None  # of the run, in epochs

    def __post_init__(self) -> None:
        self.guard = StepGuard(self.model, self.loss)
        self.classes = [type(part).__name__ for part in (self.optimizer, self.loss)]

    def epoch(self, loader: Any, position: Position, after_step: Callable[[], None] = lambda: None) -> list[float]:
        """Train on every batch of `position.epoch` from `position.batch` on; return the mean (box, obj, cls) losses.

        `loader` yields the batches that are left, its length is that of the whole epoch. Gradients gather over
        `Schedule.apply` batches; after each step `position` has moved on and `after_step` is called, which may raise:
        the state between two steps is the whole state. What is not finite moves nothing.

        Raise TrainingFault when the loss stays infinite, OutOfMemory when a batch in `split` pieces does not fit.
        """
        epoch, total, optimizer, scaler = position.epoch, len(loader), self.optimizer, self.precision.scaler
        # each process averages its gradients with the others', the loss is a sum over images; a quad batch is four
        weight = world_size() * 4**self.settings.quad
        mean = torch.tensor(position.losses, device=self.precision.device)
        finite = torch.ones((), dtype=torch.bool, device=mean.device)
        waiting: list[tuple[int, Sequence[str], Tensor]] = []  # batches of the step to come, and their losses
        train_unfrozen(self.net)
        optimizer.zero_grad(set_to_none=True)
        bar = self._bar(loader, position, total)
        for index, batch in enumerate(bar, start=position.batch):
            accumulate = self.schedule.apply(optimizer, epoch * total + index)
            with short_of_memory(), repeatable():
                images, targets = self._prepare(batch, epoch, index)
                losses = torch.zeros(3, device=images.device)
                for piece, labels in in_pieces(images, targets, self.split):
                    with self.precision.autocast():
                        predictions = self.net(piece)
                    loss, parts = self.loss(predictions, labels)
                    scaler.scale(loss.sum() * weight).backward()
                    losses += parts * (len(piece) / len(images))
                    del predictions, loss  # or they would take memory while the next ones are computed
            waiting.append((index, batch.paths, losses))
            joint = mean_over_ranks(losses)
            finite = finite & joint.isfinite().all()
            mean = torch.where(finite, (mean * index + joint) / (index + 1), mean)
            seen = (epoch * total + index, self.model, images, batch.targets, batch.paths, True, False)
            self.callbacks.run("on_train_batch_end", *seen)
            if len(waiting) < accumulate and index + 1 < total:
                continue
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm, foreach=True)
            # The one time in a step that the device is waited for: all that decides about it comes in one copy
            news = torch.cat((mean, torch.stack((finite, norm)), *(each for *_, each in waiting))).cpu()
            self._describe(bar, epoch + (index + 1) / total, news[:3].tolist(), len(targets), images.shape[-1])
            for (number, paths, _), own in zip(waiting, news[5:].split(3), strict=True):
                self.guard.suspect(own, number, paths)
            if news[3] and (news[4].isfinite() or self.precision.lowers_scale()):
                scaler.step(optimizer)
                self.guard.accept()
                if is_main():  # the others are given it when they need it
                    self.ema.update(self.model)
            else:
                self.guard.refuse(epoch, index)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            position.batch, position.losses = index + 1, tuple(news[:3].tolist())
            finite.fill_(True)
            waiting.clear()
            after_step()
        return list(position.losses)

    def _prepare(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in 0..1 and targets (N, 6) on the device; seed what the network will draw.

        With multi-scale the images are resized at random between half and one and a half. Dropout, stochastic depth and
        random pooling draw from another stream each batch and each process. So the chance in a batch depends on nothing
        that came before it, be it a validation, a listener or an interruption, and a checkpoint holds the state of
        every generator when it holds these numbers.
        """
        settings, device = self.settings, self.precision.device
        mixed = np.random.SeedSequence([settings.seed, epoch, index, max(rank(), 0), _NETWORK])
        seed_everything(int(mixed.generate_state(1, np.uint64)[0]), deterministic=None)
        images = batch.images.to(device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        if settings.multi_scale:
            stride, imgsz = settings.stride, settings.imgsz
            rng = np.random.default_rng([settings.seed, epoch, index, _MULTI_SCALE])
            side = int(rng.integers(imgsz // 2, imgsz * 3 // 2 + stride)) // stride * stride
            ratio = side / max(images.shape[2:])
            if ratio != 1:
                shape = [max(math.ceil(edge * ratio / stride), 1) * stride for edge in images.shape[2:]]
                images = interpolate(images, size=shape, mode="bilinear", align_corners=False)
        return images, batch.targets.to(device, non_blocking=True)

    def _bar(self, loader: Any, position: Position, total: int) -> Any:
        """Return the batches with a bar; where there is no terminal an epoch has one line, at its end."""
        self.pace = self.pace or Pace(self.settings.epochs, position.epoch + position.batch / max(total, 1))
        quiet = not (is_main() and is_terminal())
        if not quiet:
            columns = ("Epoch", memory_name(self.precision.device), "box", "obj", "cls", "labels", "img_size")
            LOGGER.info("\n" + "%10s" * 7 % columns)
        batches = feed(batches_of(loader), self.precision.device)
        return progress(batches, total=total, quiet=quiet, bar_format=BAR, initial=position.batch)

    def _describe(self, bar: Any, done: float, mean: Sequence[float], labels: int, size: int) -> None:
        """Write losses and remaining time beside the bar, if there is one; `done` in epochs."""
        if not bar.disable and self.pace:
            bar.set_postfix_str(f"run {self.pace.left(done)} left", refresh=False)
            epoch = f"{math.ceil(done) - 1}/{self.settings.epochs - 1}"
            values = (epoch, memory_in_use(self.precision.device), *mean, labels, size)
            bar.set_description(("%10s" * 2 + "%10.4g" * 5) % values)
