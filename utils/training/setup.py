"""What is decided before training reads its first image: options, YAML files, device, folder, a run to resume, data."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.base.callbacks import Callbacks
from utils.base.config import DataConfig, Hyp
from utils.base.devices import gpu_indices, select_device
from utils.base.log import LOGGER, colorstr
from utils.base.options import options
from utils.base.paths import USUAL_SIZE, check_file, check_yaml, claimed, latest_checkpoint, shown
from utils.base.yaml import read_yaml, write_yaml
from utils.boxes.iou import check_loss_name
from utils.checkpoints.checkpoint import load_checkpoint
from utils.data.datasets import create_dataloader
from utils.data.tiles import Tiling, choose_tiling
from utils.distributed.processes import (
    agreed,
    broadcast,
    is_main,
    join,
    loader_workers,
    local_rank,
    my_share,
    own_batches,
    rank,
    world_size,
)
from utils.distributed.run_lock import RunLock
from utils.loggers import subscribe_loggers
from utils.loggers.run import RunInfo
from utils.prepare.converters import prepare
from utils.prepare.named_weights import weights_of_run
from utils.training.feed import augments_on
from utils.training.train_options import TrainOptions, check_options, continued

STATE = frozenset(  # what a checkpoint must have for its run to go on
    "batches best_fitness ema history hyp loss maps model optimizer options position recipe scaler skipped split "
    "stopper streak updates".split()
)
FULL_STATE = "resume.pt"  # what last.pt was before it was stripped, for training on with more epochs
PIECES = "pieces.txt"  # left by a process that ran out of memory: how finely batches are to be cut from then on
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
VAL_BATCH = 32  # most images in a batch of validation, as val.py takes: its number decides their shapes


@dataclass(slots=True)
class Setup:
    """Everything that is decided before the first image is read.

    `hold` has the lock of the folder; closed with an error it takes a folder away again that is still empty.
    """

    opt: TrainOptions
    hyp: Hyp
    data: DataConfig
    device: torch.device
    folder: Path
    resumed: dict[str, Any] | None = None
    covered: str = ""  # how far into the network given weights reach: its "head", its "backbone", or not even that
    hold: ExitStack = field(default_factory=ExitStack)

    @property
    def tiling(self) -> Tiling | None:
        """How images are looked at in validation."""
        return choose_tiling(self.opt.tile, self.opt.tile_overlap, self.opt.tile_merge, self.val_batch)

    @property
    def val_batch(self) -> int:
        """How many images, or tiles of one, are looked at together in validation."""
        return min(2 * max(self.opt.batch_size, 1), VAL_BATCH)

    @property
    def names(self) -> list[str]:
        """Class names of this run."""
        return ["item"] if self.opt.single_cls and self.data.nc != 1 else list(self.data.names)


def set_up(opt: TrainOptions, given: Collection[str] = ()) -> Setup:
    """Read the YAML files, check the options, and claim the run's folder: a new one of its own, or the lock of one
    that is there. Nothing else is written, and no folder made, before all of it is known to be right.

    `given` are the names of the options that were really asked for; a run that is resumed keeps all others. Raise
    ValueError for what cannot work, and Busy when another process trains in the folder.
    """
    check_options(opt)
    meet()
    asked = opt
    while True:
        opt, last, resumed = asked, find_run(asked), None
        with ExitStack() as hold:
            if last:
                _claim(opt, last, hold)
                if found := load_run(last, opt, given):
                    opt, resumed = found
            device = own_device(opt.device, opt.batch_size)
            hyp = Hyp.load(resumed["hyp"] if resumed else check_yaml(opt.hyp))
            check_loss_name(hyp.box_iou, f"{opt.hyp}: ")
            opt = replace(opt, data=str(check_yaml(opt.data).resolve()))
            data = DataConfig.load(opt.data)
            opt = replace(opt, imgsz=opt.imgsz or data.imgsz or USUAL_SIZE)
            folder = last.parent.parent if last else _claim(opt, None, hold)
            if opt.resume != "auto" or last or not find_run(opt):  # else another began it, and ended, meanwhile
                _provide(opt, data, resumed)
                return Setup(opt, hyp, data, device, folder, resumed, hold=hold.pop_all())


def _provide(opt: TrainOptions, data: DataConfig, resumed: dict[str, Any] | None) -> None:
    """Find or fetch the weights, if any, and then the data: no data set is fetched for a run that cannot begin."""
    if opt.weights and not resumed:
        weights_of_run(opt.weights)
    prepare(data)


def _claim(opt: TrainOptions, last: Path | None, hold: ExitStack) -> Path:
    """Claim and lock a new folder, or that of `last`, in the main process; `hold` gives both back. Return it in all."""
    path, same, locked = Path(opt.project) / opt.name, opt.exist_ok or opt.resume == "auto", ""
    with agreed():
        if last:
            path, same = last.parent.parent, True
            if is_main() and last.parent.name != "weights":
                _read_run(last, False)  # which says what else it may be
                raise ValueError(
                    f"--resume {last}: name the last.pt in a run's folder weights, or train with --weights {last}"
                )
        if is_main():
            folder = hold.enter_context(claimed(path, same))
            hold.callback(RunLock(folder, patient=int(os.environ.get(RESTARTS, 0)) > 0).release)
            locked = str(folder)
    return Path(broadcast(locked))


def meet() -> None:
    """Meet the other processes when torchrun started several, before any of them knows what it will compute on."""
    if local_rank() >= 0:
        join("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def own_device(asked: str, batch_size: int = 0) -> torch.device:
    """Return the device asked for; of several processes, this one's."""
    device = select_device(asked, batch_size)
    if local_rank() < 0 or device.type != "cuda":
        return device
    chosen = gpu_indices(asked) if asked else []
    index = chosen[local_rank()] if len(chosen) >= world_size() else local_rank()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def open_folder(setup: Setup, labels: np.ndarray, callbacks: Callbacks) -> None:
    """Write down what a run was begun with, and let the loggers in; `labels` (N, 5) are those of its training set."""
    (setup.folder / "weights").mkdir(parents=True, exist_ok=True)
    launch = {"launch": launch_id()} if launch_id() else {}
    write_yaml(setup.folder / "hyp.yaml", asdict(setup.hyp))
    write_yaml(setup.folder / "opt.yaml", asdict(setup.opt) | {"save_dir": str(setup.folder)} | launch)
    history = setup.resumed["history"] if setup.resumed else ()
    run = RunInfo(setup.folder, setup.names, labels, asdict(setup.opt), asdict(setup.hyp), history)
    subscribe_loggers(callbacks, run)


def build_loaders(setup: Setup, imgsz: int, stride: int, batch_size: int) -> tuple[Any, Any, Any]:
    """Return the training loader, its data set, and a loader of this process's share of the validation split.

    Raise ValueError when the training split has not a single label; a validation split without any is a warning.
    """
    opt, data = setup.opt, setup.data
    shared: dict[str, Any] = {"single_cls": opt.single_cls, "seed": opt.seed, "nc": len(setup.names), "hyp": setup.hyp}
    shared |= {"rank": rank(), "workers": loader_workers(opt.workers, setup.device), "tile": opt.tile}
    rect = opt.rect and not opt.image_weights
    loader, dataset = create_dataloader(
        data.train, imgsz, batch_size // world_size(), stride, augment=True,
        cache=None if opt.cache == "val" else opt.cache, rect=rect, image_weights=opt.image_weights, quad=opt.quad,
        prefix=colorstr("train: "), shuffle=not rect, **shared,
    )  # fmt: skip
    dataset.index.check_labelled()
    dataset.paints = not augments_on(setup.device, opt, setup.hyp)
    val, _ = create_dataloader(
        data.val, imgsz, 1 if opt.tile else setup.val_batch, stride,
        cache=None if opt.noval else opt.cache and "ram", rect=True, pad=0.5, prefix=colorstr("val: "), **shared,
    )  # fmt: skip
    return loader, dataset, own_batches(val, *my_share())


# ------------------------------------------------------------------------------------------------- a run that goes on
def launch_id() -> str | None:
    """Return what the restarts of one torchrun have in common, None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    # the default is the same for all; the agent's process is not
    return f"{platform.node()}-{os.getppid()}" if run == "none" else run


def find_run(opt: TrainOptions) -> Path | None:
    """Return the last.pt to go on from, as the main process finds it; None where a run is to begin.

    Raise ValueError, there, when the one asked for is not to be found.
    """
    last: Path | None = None
    if not is_main():
        pass
    elif opt.resume == "auto":
        last = Path(opt.project) / opt.name / "weights/last.pt"
    elif opt.resume:
        last = latest_checkpoint(opt.project, "last.pt") if opt.resume is True else check_file(opt.resume, (".pt",))
        if last is None:
            raise ValueError(
                f"--resume: there is no */weights/last.pt below {opt.project}; name one, or train without --resume"
            )
    elif int(os.environ.get(RESTARTS, 0)) > 0:
        last = _begun_by(launch_id(), opt)
    answer = broadcast(str(last) if last and last.is_file() else None)
    return Path(answer) if answer else None


def _begun_by(launch: str | None, opt: TrainOptions) -> Path | None:
    """Return the last.pt of the run that an earlier try of this launch began."""
    found = Path(opt.project).glob(f"{opt.name}*/weights/last.pt")
    for last in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        file = last.parent.parent / "opt.yaml"
        if file.is_file() and read_yaml(file).get("launch") == launch:
            return last
    return None


def load_run(last: Path, opt: TrainOptions, given: Collection[str]) -> tuple[TrainOptions, dict[str, Any]] | None:
    """Return options and state of a run that goes on, read by the main process, in every process.

    A finished run goes on from its `resume.pt`, when more epochs or more patience are asked for. Where nothing is left
    to go on from, "auto" begins anew (None), anything else raises ValueError.
    """
    content = broadcast(_read_run(last, opt.resume == "auto") if is_main() else None)
    if content is None:
        return None
    stored = options(TrainOptions, content["options"])
    merged = continued(stored, opt, given)
    more = merged.epochs > stored.epochs or merged.patience > stored.patience
    if content["finished"] and not more and opt.resume not in ("auto", False):
        raise ValueError(
            f"--resume {last}: that run is finished; to train it further give more --epochs than {stored.epochs}"
            " (or more --patience, if it stopped early)"
        )
    known, names = list(content["model"]["names"]), list(DataConfig.load(check_yaml(merged.data)).names)
    if not merged.single_cls and known != names:
        raise ValueError(f"--resume: {merged.data} has the classes {names}, the run was begun with {known}")
    check_options(merged)
    position = content["position"]
    LOGGER.info(f"resuming {shown(last)} in epoch {position['epoch']}, after {position['batch']} of its batches")
    return replace(merged, resume=str(last)), content


def _read_run(last: Path, may_begin: bool) -> dict[str, Any] | None:
    content = load_checkpoint(last)
    if "model" not in content:
        raise ValueError(f"--resume {last}: holds no training run; name the last.pt of one")
    full, finished = last.with_name(FULL_STATE), content.get("optimizer") is None
    if finished and full.is_file():
        content = load_checkpoint(full)
    if content.get("optimizer") is None:
        if may_begin:
            LOGGER.info(f"{shown(last)} holds the result of a run and not its state: the run begins anew")
            return None
        raise ValueError(f"--resume {last}: that run is finished; to train further use --weights {last}")
    if missing := STATE - content.keys():
        raise ValueError(
            f"--resume {last}: lacks {', '.join(sorted(missing))}, so it is damaged or of another version; to train "
            f"further use --weights {last}"
        )
    pieces = last.with_name(PIECES)
    if pieces.is_file() and (text := pieces.read_text(encoding="utf-8").strip()).isdigit():
        content["split"] = max(content["split"], int(text))
    return content | {"finished": finished}
