"""One epoch of training: batches through the network, the loss, the optimiser and the weight average."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from utils.callbacks import Callbacks
from utils.dist import is_main, mean_over_ranks, rank, world_size
from utils.evaluator import BAR
from utils.log import LOGGER
from utils.optim import Schedule
from utils.torch_utils import seed_everything

HEADER = ("%10s" * 7) % ("Epoch", "gpu_mem", "box", "obj", "cls", "labels", "img_size")
_MULTI_SCALE, _NETWORK = 7, 8  # mark random streams of a run: picture sizes, what the network itself draws


@dataclass(slots=True)
class Precision:
    """Which floating-point type the network computes in, and the loss scaling that float16 needs."""

    device: torch.device
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """`auto` is float16 on CUDA and float32 on CPU; `fp16`, `bf16` and `off` say it. Raises ValueError."""
        kinds = {
            "auto": torch.float16 if device.type == "cuda" else None,
            "fp16": torch.float16,
            "bf16": torch.bfloat16,
            "off": None,
        }
        if name not in kinds:
            raise ValueError(f"--amp {name}: choose one of {', '.join(kinds)}")
        if name == "fp16" and device.type == "cpu":
            raise ValueError("--amp fp16 needs a GPU; on a CPU choose bf16 or off")
        if name == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            LOGGER.warning("--amp bf16: this CPU has no bfloat16 instructions, so it may be slower than --amp off")
        return cls(device, kinds[name])

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that the forward pass runs in."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


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


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed what dropout, stochastic depth and random pooling draw from: another stream each epoch and each process.

    So an epoch's chance depends on nothing that came before it, be it a validation or an interruption, and a
    checkpoint need not hold the state of any generator. `seed` and `epoch` are at least 0.
    """
    mixed = np.random.SeedSequence([seed, epoch, max(rank(), 0), _NETWORK])
    seed_everything(int(mixed.generate_state(1, np.uint64)[0]), deterministic=None)


class Trainer:
    """Holds what changes while training and does one epoch at a time.

    `net` is the network that is called (it may be wrapped for several processes), `model` the bare one whose weights
    are averaged into `ema`.
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

    def epoch(self, epoch: int, loader: Any) -> list[float]:
        """Train on every batch once; returns the mean (box, obj, cls) losses.

        Gradients gather over `Schedule.apply` batches; an epoch always ends with a step and begins by seeding the
        global generators, so that a checkpoint written between epochs is the whole state.
        """
        seed_epoch(self.settings.seed, epoch)
        self.net.train()
        sizes = np.random.default_rng([self.settings.seed, epoch, _MULTI_SCALE])
        mean, waiting = torch.zeros(3, device=self.device), 0
        if is_main():
            LOGGER.info("\n" + HEADER)
        bar = tqdm(loader, bar_format=BAR, disable=not is_main())
        self.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(bar):
            iteration = epoch * len(loader) + index
            accumulate = self.schedule.apply(self.optimizer, iteration)
            images = self._prepare(batch.images, sizes)
            items = self.backward(images, batch.targets.to(self.device))
            waiting += 1
            if waiting >= accumulate or index + 1 == len(loader):
                self.step()
                waiting = 0
            mean = (mean * index + items) / (index + 1)
            bar.set_description(self._line(epoch, mean, len(batch.targets), images.shape[-1]))
            self.callbacks.run(
                "on_train_batch_end", iteration, self.model, images, batch.targets, batch.paths, True, False
            )
        return mean_over_ranks(mean).tolist()

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

    def step(self) -> None:
        """Move the weights by the gradients that wait, and the weight average after them."""
        scaler = self.precision.scaler
        if self.settings.clip_norm > 0:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)

    def _line(self, epoch: int, mean: Tensor, labels: int, size: int) -> str:
        memory = f"{torch.cuda.memory_reserved(self.device) / 1e9:.3g}G" if self.device.type == "cuda" else "0G"
        return ("%10s" * 2 + "%10.4g" * 5) % (
            f"{epoch}/{self.settings.epochs - 1}",
            memory,
            *mean.tolist(),
            labels,
            size,
        )
