"""One epoch of training: batches through the network, the loss, the optimiser and the weight average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from utils.base.callbacks import Callbacks
from utils.base.devices import seed_everything
from utils.base.log import LOGGER
from utils.base.progress import BAR, Pace, epoch_line, is_terminal, memory_in_use, memory_name, progress
from utils.data.loader_faults import batches_of
from utils.distributed.processes import is_joined, is_main, mean_over_ranks, rank, world_size
from utils.training.guard import OutOfMemory, StepGuard, TrainingFault, halves, out_of_memory
from utils.training.optim import Schedule
from utils.training.precision import Precision

_MULTI_SCALE, _NETWORK = 7, 8  # mark random streams of a run: picture sizes, what the network itself draws


@dataclass(slots=True)
class EpochSettings:
    """What of the command line the inner loop needs."""

    epochs: int
    imgsz: int
    stride: int
    multi_scale: bool = False
    quad: bool = False
    clip_norm: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Position:
    """How far a run has come: `batch` batches of epoch `epoch` are done, with these mean (box, obj, cls) losses."""

    epoch: int = 0
    batch: int = 0
    losses: tuple[float, ...] = (0.0, 0.0, 0.0)

    def next_epoch(self) -> None:
        """This epoch is over, with everything that belongs to it."""
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, (0.0, 0.0, 0.0)


def seed_batch(seed: int, epoch: int, batch: int) -> None:
    """Seed what dropout, stochastic depth and random pooling draw from: another stream each batch and each process.

    So the chance in a batch depends on nothing that came before it, be it a validation, a listener or an interruption,
    and a checkpoint holds the state of every generator when it holds these numbers. All are at least 0.
    """
    mixed = np.random.SeedSequence([seed, epoch, batch, max(rank(), 0), _NETWORK])
    seed_everything(int(mixed.generate_state(1, np.uint64)[0]), deterministic=None)


class Trainer:
    """Holds what changes while training and does one epoch at a time.

    `net` is the network that is called (it may be wrapped for several processes), `model` the bare one whose weights
    are averaged into `ema`. `split` is the number of pieces a batch is computed in, doubled whenever memory runs out.
    """

    def __init__(
        self,
        net: nn.Module,
        model: nn.Module,
        loss: Any,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        ema: Any,
        precision: Precision,
        settings: EpochSettings,
        callbacks: Callbacks,
    ) -> None:
        self.net, self.model, self.loss = net, model, loss
        self.optimizer, self.schedule, self.ema = optimizer, schedule, ema
        self.precision, self.settings, self.callbacks = precision, settings, callbacks
        self.device = precision.device
        self.guard, self.split = StepGuard(model), 1
        self._waiting: list[tuple[int, Any]] = []  # batches, with their numbers, whose gradients wait for a step
        self._finite = True
        self._loss_state: dict[str, Any] = {}  # after the last step; a loss may be a plain function
        self.pace: Pace | None = None  # of the run, in epochs
        self._began = time.monotonic()  # of the epoch

    def epoch(self, loader: Any, position: Position, after_step: Callable[[], None] = lambda: None) -> list[float]:
        """Train on every batch of `position.epoch` from `position.batch` on; returns the mean (box, obj, cls) losses.

        `loader` yields the batches that are left, its length is that of the whole epoch. Gradients gather over
        `Schedule.apply` batches; after each step `position` has moved on and `after_step` is called, which may raise:
        the state between two steps is the whole state.

        Raises TrainingFault when the loss stays infinite, or when a single picture does not fit into memory.
        """
        self.net.train()
        self._began = time.monotonic()
        epoch, total = position.epoch, len(loader)
        mean = torch.tensor(position.losses, device=self.device)
        self.pace = self.pace or Pace(self.settings.epochs, epoch + position.batch / max(total, 1))
        quiet = not is_main() or not is_terminal()  # where there is no terminal an epoch has one line, at its end
        if not quiet:
            columns = ("Epoch", memory_name(self.device), "box", "obj", "cls", "labels", "img_size")
            LOGGER.info("\n" + "%10s" * 7 % columns)
        bar = progress(batches_of(loader), total=total, quiet=quiet, bar_format=BAR, initial=position.batch)
        self._drop()
        for index, batch in enumerate(bar, start=position.batch):
            accumulate = self.schedule.apply(self.optimizer, epoch * total + index)
            items, images = self._learn(epoch, index, batch)
            mean = (mean * index + items) / (index + 1) if self._finite else mean
            bar.set_postfix_str(f"run {self.pace.left(epoch + (index + 1) / total)} left", refresh=False)
            bar.set_description(self._line(epoch, mean, len(batch.targets), images.shape[-1]))
            seen = (epoch * total + index, self.model, images, batch.targets, batch.paths, True, False)
            self.callbacks.run("on_train_batch_end", *seen)
            if len(self._waiting) >= accumulate or index + 1 == total:
                self.step(epoch)
                position.batch, position.losses = index + 1, tuple(mean.tolist())
                after_step()
        return mean.tolist()

    def _learn(self, epoch: int, index: int, batch: Any) -> tuple[Tensor, Tensor]:
        """Add a batch's gradients to those that wait; (its losses (3,) over all processes, its prepared pictures).

        When memory runs out, the batches since the last step are done again in twice as many pieces.
        """
        self._waiting.append((index, batch))
        try:
            items, images = self._forward_backward(epoch, index, batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            items = None
        while items is None:  # out of the except block, whose error would keep the memory alive
            items, images = self._again_in_pieces(epoch)
        self.guard.note(items, index, batch.paths)
        items = mean_over_ranks(items)
        self._finite = self._finite and bool(items.isfinite().all())
        return items, images

    def _again_in_pieces(self, epoch: int) -> tuple[Tensor | None, Tensor | None]:
        """Do the waiting batches again, each cut finer; (None, None) if that was still too much."""
        self.split *= 2
        if is_joined():  # the others are in the middle of theirs, and wait for this one's gradients
            raise OutOfMemory(f"out of memory in epoch {epoch}; --resume goes on in smaller pieces", self.split)
        if self.split >= 2 * max(len(batch.images) for _, batch in self._waiting):
            raise TrainingFault(
                f"out of memory in epoch {epoch} with a single picture: begin a new run with a smaller --imgsz or --cfg"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.undo()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        LOGGER.warning(f"out of memory: every batch is now computed in {self.split} pieces, with the same steps")
        try:
            for index, batch in self._waiting:
                items, images = self._forward_backward(epoch, index, batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None, None
        return items, images

    def _forward_backward(self, epoch: int, index: int, batch: Any) -> tuple[Tensor, Tensor]:
        """One batch, in as many pieces as fit: (its losses (3,) in this process, its prepared pictures)."""
        seed_batch(self.settings.seed, epoch, index)
        sizes = np.random.default_rng([self.settings.seed, epoch, index, _MULTI_SCALE])
        images, targets = self._prepare(batch.images, sizes), batch.targets.to(self.device)
        pieces = [(images, targets)] if self.split == 1 else halves(images, targets, self.split)
        items = torch.zeros(3, device=self.device)
        for piece, mine in pieces:
            items += self.backward(piece, mine) * (len(piece) / len(images))
        return items, images

    def _prepare(self, images: Tensor, sizes: np.random.Generator) -> Tensor:
        """uint8 pictures to 0..1 on the device, resized at random between half and one and a half when asked."""
        images = images.to(self.device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        if self.settings.multi_scale:
            stride, imgsz = self.settings.stride, self.settings.imgsz
            side = int(sizes.integers(imgsz // 2, imgsz * 3 // 2 + stride)) // stride * stride
            ratio = side / max(images.shape[2:])
            if ratio != 1:
                shape = [max(math.ceil(edge * ratio / stride), 1) * stride for edge in images.shape[2:]]
                images = interpolate(images, size=shape, mode="bilinear", align_corners=False)
        return images

    def backward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Add the gradients of one batch to those that wait; returns its (box, obj, cls) losses (3,).

        `images` (B, 3, H, W) in 0..1 and `targets` (N, 6) are on the device.
        """
        with self.precision.autocast():
            predictions = self.net(images)
        loss, items = self.loss([level.float() for level in predictions], targets)
        # each process averages its gradients with the others', the loss is a sum over pictures; a quad batch is four
        loss = loss * world_size() * (4 if self.settings.quad else 1)
        self.precision.scaler.scale(loss.sum()).backward()
        return items.detach()

    def step(self, epoch: int = 0) -> None:
        """Move the weights by the gradients that wait, and the weight average after them; or refuse to.

        What is not finite moves nothing. Where float16 scales the loss, an overflow of the gradients alone is no fault:
        the scaler skips that step and scales less.
        """
        scaler, parameters = self.precision.scaler, list(self.model.parameters())
        scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        overflow = not bool(norm.isfinite())
        if not self._finite or (overflow and (not scaler.is_enabled() or scaler.get_scale() < 1)):
            last = self._waiting[-1][0] if self._waiting else 0
            scaler.update()
            self._drop()
            self.guard.refuse(epoch, last)
            return
        if self.settings.clip_norm > 0:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, norm, foreach=True)
        scaler.step(self.optimizer)
        scaler.update()
        self._drop()
        self.guard.accept()
        if self.ema and is_main():  # the others are given it when they need it
            self.ema.update(self.model)

    def take_back(self) -> None:
        """Forget what batches since the last step have moved, so that the state is whole again."""
        self.guard.undo()
        if self._loss_state:
            self.loss.load_state_dict(self._loss_state)
        self._drop()

    def _drop(self) -> None:
        """Forget the gradients that wait."""
        self._loss_state = self.loss.state_dict() if hasattr(self.loss, "state_dict") else {}
        self.optimizer.zero_grad(set_to_none=True)
        self._waiting.clear()
        self._finite = True

    @property
    def step_sizes(self) -> list[float]:
        """The learning rate of each group of parameters."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def line(self, epoch: int, losses: Sequence[float], scores: Sequence[float]) -> str:
        """What a log that is no terminal gets of an epoch; (P, R, mAP50, mAP50-95) if it was validated."""
        rest = [f"{memory_name(self.device)} {memory_in_use(self.device)}", f"{time.monotonic() - self._began:.1f} s"]
        if self.pace and epoch + 1 < self.settings.epochs:
            rest.append(f"{self.pace.left(epoch + 1)} left")
        return epoch_line(f"{epoch}/{self.settings.epochs - 1}", losses, scores, rest)

    def _line(self, epoch: int, mean: Tensor, labels: int, size: int) -> str:
        return ("%10s" * 2 + "%10.4g" * 5) % (
            f"{epoch}/{self.settings.epochs - 1}",
            memory_in_use(self.device),
            *mean.tolist(),
            labels,
            size,
        )
