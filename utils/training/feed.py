"""Batches on their way to the network: on its device, and painted there where loaders have only planned them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from utils.base.config import Hyp
from utils.base.log import LOGGER
from utils.data.batch_painting import paint_batch
from utils.data.samplers import Batch
from utils.training.guard import short_of_memory
from utils.training.train_options import TrainOptions


def augments_on(device: torch.device, opt: TrainOptions, hyp: Hyp) -> bool:
    """Return whether training images are painted on the network's device, rather than by loader processes.

    What only OpenCV does is left to them, which is said. Raises ValueError for a GPU where the network has none.
    """
    if opt.augment_device == "cuda" and device.type != "cuda":
        raise ValueError(f"--augment-device cuda: the network is on the {device.type}; use auto, or --device 0")
    if opt.augment_device == "cpu" or device.type != "cuda":
        return False
    for reason, given in (("the hyper-parameter albumentations", hyp.albumentations), ("--quad", opt.quad)):
        if given:
            LOGGER.warning(f"images are augmented on the CPU, not on {device}: {reason} works only there")
            return False
    return True


def feed(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches with images and targets on a device; on a GPU each is made there while the last one is used.

    Images are (B, 3, H, W) uint8 RGB. A batch that the loader fails to make is missed before the last one is handed
    out, so both are trained after a restart. Raises OutOfMemory.
    """
    if device.type != "cuda":
        yield from (_on_device(batch, device) for batch in batches)
        return
    stream, ready = torch.cuda.Stream(device), None
    for batch in batches:
        with short_of_memory(), torch.cuda.stream(stream):
            coming = _on_device(batch, device), stream.record_event()
        if ready:
            yield _handed_over(*ready)
        ready = coming
    if ready:
        yield _handed_over(*ready)


def _on_device(batch: Batch, device: torch.device) -> Batch:
    images = batch.images
    if not isinstance(images, Tensor):
        images = paint_batch(images, device)
    elif device.type == "cpu":
        return batch
    return batch._replace(
        images=images.to(device, non_blocking=True), targets=batch.targets.to(device, non_blocking=True)
    )


def _handed_over(batch: Batch, made: torch.cuda.Event) -> Batch:
    """Let the stream of this thread wait for a batch that another one makes, and keep its memory until it is used."""
    stream = torch.cuda.current_stream(batch.targets.device)
    stream.wait_event(made)
    for part in (batch.images, batch.targets):
        assert isinstance(part, Tensor)
        part.record_stream(stream)
    return batch
