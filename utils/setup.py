"""What is decided before training reads its first picture: options, YAML files, device, folder, a run to resume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint import load_checkpoint
from utils.config import DataConfig, Hyp, flag, options
from utils.converters import prepare
from utils.dist import join, local_rank, world_size
from utils.iou import check_loss_name
from utils.log import LOGGER
from utils.paths import ROOT, check_file, check_yaml, increment_path, latest_checkpoint, shown
from utils.runs import USUAL_SIZE
from utils.torch_utils import gpu_indices, select_device

DEFAULT_CFG = "yolov5n_BiFormer.yaml"
UNUSED = {"bucket": "", "upload_dataset": False, "artifact_alias": "latest"}
LOGGER_NAMES = ("auto", "none", "tensorboard", "wandb", "mlflow", "clearml", "comet")


@dataclass(slots=True)
class TrainOptions:
    """The command line of train.py; every name is also an argument of `run`."""

    weights: str = flag("", "initial weights (.pt); empty for training from scratch")
    cfg: str = flag("", f"model YAML; empty for the weights' own, or {DEFAULT_CFG} without weights")
    data: str = flag("shapes.yaml", "data set YAML (the embedded data set when left out)")
    hyp: str = flag("hyp.default.yaml", "hyper-parameter YAML")
    epochs: int = flag(300, "how often every picture is seen")
    batch_size: int = flag(16, "pictures per batch over all processes, -1 for the largest that fits")
    imgsz: int = flag(
        0, "side of the pictures in pixels", aliases=("--img", "--img-size"), shown="the data YAML's imgsz, else 640"
    )
    rect: bool = flag(False, "rectangular batches: no mosaic, no shuffling")
    resume: Any = flag(False, "go on with the newest run, or with this last.pt", type=str, nargs="?", const=True)
    nosave: bool = flag(False, "save only the last epoch's checkpoint")
    noval: bool = flag(False, "validate only after the last epoch")
    noautoanchor: bool = flag(False, "keep the model's anchors whatever the labels are")
    cache: str | None = flag(
        None,
        "keep decoded pictures in 'ram' or on 'disk', or only those of 'val'",
        nargs="?",
        const="ram",
        choices=("ram", "disk", "val"),
    )
    image_weights: bool = flag(False, "show pictures of weak classes more often")
    device: str = flag("", "'cpu', '0', '0,1'; empty for the first GPU, else the CPU")
    multi_scale: bool = flag(False, "vary the picture size by half, batch by batch")
    single_cls: bool = flag(False, "train all classes as one")
    optimizer: str = flag("auto", "auto chooses by the length of the run", choices=("auto", "SGD", "Adam", "AdamW"))
    sync_bn: bool = flag(False, "batch statistics over all processes (several GPUs)")
    workers: int = flag(8, "loader processes, at most one per core (training on a CPU: the cores above two)")
    project: str = flag(str(ROOT / "runs/train"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")
    quad: bool = flag(False, "merge batches of four pictures into one of twice the size")
    cos_lr: bool = flag(False, "cosine instead of linear schedule")
    label_smoothing: float = flag(0.0, "how far class targets move from 0 and 1")
    patience: int = flag(100, "epochs without improvement before stopping early, 0 for never")
    freeze: list[int] = flag(
        [0], "freeze the first N layers (10: the backbone), or exactly these when several are given", shown="none"
    )
    save_period: int = flag(-1, "also save epochN.pt every so many epochs", shown="never")
    save_minutes: float = flag(10.0, "also save last.pt every so many minutes inside an epoch, 0 for never")
    log: list[str] = flag(
        ["auto"],
        "who is told besides results.csv and the pictures: auto is TensorBoard where it is installed",
        choices=LOGGER_NAMES,
    )
    seed: int = flag(0, "the same seed gives the same run")
    deterministic: bool = flag(False, "choose deterministic algorithms on the GPU as well")
    amp: str = flag(
        "auto",
        "auto is fp16 on a GPU and full precision on a CPU; bf16 suits CPUs and GPUs that have it",
        choices=("auto", "off", "fp16", "bf16"),
    )
    local_rank: int = flag(-1, "set by old launchers; the environment decides", shown="")
    evolve: int | None = flag(None, "search hyper-parameters over so many trainings (300)", nargs="?", const=300)
    evolve_sampler: str = flag("genetic", "who proposes the next ones", choices=("genetic", "tpe", "cmaes", "random"))
    evolve_pruner: str = flag(
        "none", "who gives up hopeless trainings early", choices=("none", "median", "halving", "hyperband")
    )
    evolve_storage: str = flag(
        "",
        "where workers of one search meet: a journal file's path or a database URL",
        shown="search.journal in the search's folder",
    )
    bucket: str = flag("", "read for compatibility, without effect")
    entity: str | None = flag(None, "W&B's user or team (--log wandb)")
    upload_dataset: Any = flag(False, "read for compatibility, without effect", type=str, nargs="?", const=True)
    bbox_interval: int = flag(-1, "send drawn detections to W&B every so many epochs", shown="only at the end")
    artifact_alias: str = flag("latest", "read for compatibility, without effect", shown="")


@dataclass(slots=True)
class Setup:
    """Everything that is decided before the first picture is read."""

    opt: TrainOptions
    hyp: Hyp
    data: DataConfig
    device: torch.device
    folder: Path
    resumed: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """Class names of this run."""
        single = self.opt.single_cls and self.data.nc != 1
        return ["item"] if single else list(self.data.names)


def set_up(opt: TrainOptions) -> Setup:
    """Read the YAML files and check the options; nothing is written before all of it is known to be right."""
    resumed = None
    if opt.resume:
        opt, resumed = load_run(opt)
    check_options(opt)
    hyp = Hyp.load(resumed["hyp"] if resumed else check_yaml(opt.hyp))
    check_loss_name(hyp.box_iou)
    if not resumed:
        opt = replace(opt, data=str(check_yaml(opt.data).resolve()))
    data = DataConfig.load(opt.data)
    opt = replace(opt, imgsz=opt.imgsz or data.imgsz or USUAL_SIZE)
    device = join_processes(select_device(opt.device, opt.batch_size), opt.device)
    prepare(data)
    folder = Path(resumed["folder"]) if resumed else increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok)
    return Setup(opt, hyp, data, device, folder, resumed)


def check_options(opt: TrainOptions) -> None:
    """Raise ValueError for numbers and combinations that cannot work."""
    check_numbers(opt)
    if opt.batch_size % world_size() and opt.batch_size > 0:
        raise ValueError(f"--batch-size {opt.batch_size} must be a multiple of the {world_size()} processes")
    if world_size() > 1 and (opt.image_weights or opt.batch_size < 0):
        raise ValueError("--image-weights and --batch-size -1 work in a single process only")
    warn_of_idle_flags(opt)


def check_numbers(opt: TrainOptions) -> None:
    """Raise ValueError for an option whose number is out of its range."""
    if opt.epochs < 1 or opt.batch_size == 0 or opt.batch_size < -1 or opt.workers < 0:
        raise ValueError(
            "--epochs and --batch-size must be at least 1 (--batch-size -1 finds the largest), --workers at least 0"
        )
    if opt.seed < 0 or opt.patience < 0 or min(opt.freeze) < 0:
        raise ValueError("--seed, --patience and --freeze must be at least 0")
    if not 0 <= opt.label_smoothing < 1:
        raise ValueError(f"--label-smoothing {opt.label_smoothing}: choose at least 0 and below 1")


def warn_of_idle_flags(opt: TrainOptions) -> None:
    """Say which of the given flags are read for compatibility only."""
    if idle := [name for name in UNUSED if getattr(opt, name) != UNUSED[name]]:
        LOGGER.warning(f"--{', --'.join(idle)}: read for compatibility, without effect (no W&B or cloud storage here)")


def join_processes(device: torch.device, asked: str) -> torch.device:
    """Meet the other processes when torchrun started several; returns this one's of the devices asked for."""
    if local_rank() < 0:
        return device
    join("nccl" if device.type == "cuda" else "gloo")
    if device.type != "cuda":
        return device
    chosen = gpu_indices(asked) if asked else []
    index = chosen[local_rank()] if len(chosen) >= world_size() else local_rank()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def load_run(opt: TrainOptions) -> tuple[TrainOptions, dict[str, Any]]:
    """Options and state of an interrupted run; the flags of the first start hold again."""
    last = latest_checkpoint(opt.project, "last.pt") if opt.resume is True else check_file(opt.resume, (".pt",))
    if last is None:
        raise ValueError(
            f"--resume: there is no */weights/last.pt below {opt.project}; name one, or train without --resume"
        )
    content = load_checkpoint(last)
    if "model" not in content:
        raise ValueError(f"--resume {last}: holds no training run; name the last.pt of one")
    if content.get("optimizer") is None or content.get("options") is None:
        raise ValueError(f"--resume {last}: that run is finished; to train further use --weights {last}")
    LOGGER.info(f"resuming {shown(last)} after epoch {content['epoch']}")
    return replace(options(TrainOptions, content["options"]), resume=str(last)), content | {
        "folder": str(last.parent.parent)
    }
