"""The loaders of a training run: its pictures, and this process's share of those for validation."""

from __future__ import annotations

from typing import Any

from utils.base.log import colorstr
from utils.data.datasets import create_dataloader
from utils.distributed.processes import loader_workers, my_share, own_batches, rank, world_size
from utils.training.setup import Setup

VAL_BATCH = 32  # most pictures in a batch of validation, as val.py takes: its number decides their shapes


def build_loaders(setup: Setup, imgsz: int, stride: int, batch_size: int) -> tuple[Any, Any, Any]:
    """(training loader, its data set, loader of this process's share of the validation split).

    Raises ValueError when the training split has not a single label; a validation split without any is a warning.
    """
    opt, data = setup.opt, setup.data
    shared = {"single_cls": opt.single_cls, "seed": opt.seed, "nc": len(setup.names), "hyp": setup.hyp}
    rect = opt.rect and not opt.image_weights
    workers = loader_workers(opt.workers, setup.device)
    loader, dataset = create_dataloader(
        data.train,
        imgsz,
        batch_size // world_size(),
        stride,
        augment=True,
        cache=None if opt.cache == "val" else opt.cache,
        rect=rect,
        rank=rank(),
        workers=workers,
        image_weights=opt.image_weights,
        quad=opt.quad,
        prefix=colorstr("train: "),
        shuffle=not rect,
        **shared,
    )
    dataset.index.check_labelled()
    val, _ = create_dataloader(
        data.val,
        imgsz,
        min(2 * batch_size, VAL_BATCH),
        stride,
        cache=None if opt.noval else opt.cache and "ram",
        rect=True,
        pad=0.5,
        rank=rank(),
        workers=workers,
        prefix=colorstr("val: "),
        **shared,
    )
    return loader, dataset, own_batches(val, *my_share())
