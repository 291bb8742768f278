"""The command line of train.py, and which numbers and combinations cannot work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from utils.base.config import SIDE
from utils.base.log import LOGGER
from utils.base.options import Range, check_bounds, flag
from utils.base.paths import ROOT
from utils.boxes.merging import MERGES
from utils.data.tiles import OVERLAPS, TILE_SIDES, choose_tiling
from utils.distributed.processes import world_size

DEFAULT_CFG = "yolov5n_BiFormer.yaml"
UNUSED = {"bucket": "", "upload_dataset": False, "artifact_alias": "latest"}
LOGGER_NAMES = ("auto", "none", "tensorboard", "wandb", "mlflow", "clearml", "comet")
# what may be another when a run goes on; anything else would make it another run
CHANGEABLE = frozenset(
    "epochs patience device augment_device workers cache data max_det save_minutes save_period loggers project name "
    "exist_ok resume local_rank entity bbox_interval bucket upload_dataset artifact_alias".split()
)


@dataclass(slots=True)
class TrainOptions:
    """The command line of train.py; every name is also an argument of `run`."""

    weights: str = flag("", "initial weights: a file, or a name such as yolov5s.pt; empty for training from scratch")
    cfg: str = flag("", f"model YAML; empty for the weights' own, or {DEFAULT_CFG} without weights")
    data: str = flag("shapes.yaml", "data set YAML (the embedded data set when left out)")
    hyp: str = flag("hyp.default.yaml", "hyper-parameter YAML")
    epochs: int = flag(300, "how often every image is seen", bounds=Range(1, 1_000_000))
    batch_size: int = flag(
        16, "images per batch over all processes, -1 for the largest that fits", bounds=Range(1, 1_000_000, also=(-1,))
    )
    imgsz: int = flag(
        0, "side of the images in pixels", ("--img", "--img-size"), "the data YAML's imgsz, else 640", SIDE
    )
    tile: int = flag(0, "train on windows of so many pixels, validate in tiles", shown="", bounds=TILE_SIDES)
    tile_overlap: float | None = flag(None, "part of its side that a tile shares with the next", (), "0.2", OVERLAPS)
    tile_merge: str | None = flag(None, "how doubles become one detection", shown="nms", choices=MERGES)
    rect: bool = flag(False, "rectangular batches: no mosaic, no shuffling")
    resume: Any = flag(
        False, "go on with the newest run, or with this last.pt; 'auto': with project/name if begun, else begin it",
        type=str, nargs="?", const=True,
    )  # fmt: skip
    nosave: bool = flag(False, "save no epoch's checkpoint but the last one's")
    noval: bool = flag(False, "validate only after the last epoch")
    noautoanchor: bool = flag(False, "keep the model's anchors whatever the labels are")
    cache: str | None = flag(
        None, "keep decoded images in 'ram', on 'disk', 'packed' in one file there, or only those of 'val'",
        nargs="?", const="ram", choices=("ram", "disk", "packed", "val"),
    )  # fmt: skip
    augment_device: str = flag(
        "auto", "where training images are augmented; auto is the GPU, if the network is there, else loader processes",
        choices=("auto", "cpu", "cuda"),
    )  # fmt: skip
    image_weights: bool = flag(False, "show images of weak classes more often")
    device: str = flag("", "'cpu', '0', '0,1'; empty for the first GPU, else the CPU")
    multi_scale: bool = flag(False, "vary the image size by half, batch by batch")
    single_cls: bool = flag(False, "train all classes as one")
    max_det: int = flag(300, "most detections in an image, in validation", bounds=Range(1))
    optimizer: str = flag("auto", "auto: by the run's length and weights", choices=("auto", "SGD", "Adam", "AdamW"))
    sync_bn: bool = flag(False, "batch norm over all processes of a run, as if they were one")
    workers: int = flag(
        8, "loader processes, at most one per core (training on a CPU: the cores above two)", bounds=Range(0, 10_000)
    )
    project: str = flag(str(ROOT / "runs/train"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")
    quad: bool = flag(False, "merge batches of four images into one of twice the size")
    cos_lr: bool = flag(False, "cosine instead of linear schedule")
    label_smoothing: float = flag(0.0, "how far class targets move from 0 and 1", bounds=Range(0, 0.99))
    patience: int = flag(100, "epochs without improvement before stopping early, 0 for never", bounds=Range(0))
    freeze: list[str] = flag(
        ["0"], "freeze the backbone, backbone and neck, the first N layers, or exactly these when several are given",
        shown="none", metavar="{backbone,neck,N}",
    )  # fmt: skip
    save_period: int = flag(-1, "also save epochN.pt every so many epochs", shown="never", bounds=Range(-1))
    save_minutes: float = flag(
        10.0, "also save last.pt every so many minutes inside an epoch, 0 for never", bounds=Range(0, 1e6)
    )
    loggers: list[str] = flag(
        ["auto"], "where results go besides files: auto is TensorBoard where it is installed", choices=LOGGER_NAMES
    )
    seed: int = flag(0, "the same seed gives the same run", bounds=Range(0, 2**62))
    deterministic: bool = flag(False, "nothing runs on the GPU that does not repeat bit for bit")
    amp: str = flag(
        "auto", "auto is fp16 on a GPU, bf16 on a CPU with instructions for it and full precision on others",
        choices=("auto", "off", "fp16", "bf16"),
    )  # fmt: skip
    local_rank: int = flag(-1, "set by old launchers; the environment decides", shown="")
    evolve: int | None = flag(
        None, "search hyper-parameters over so many trainings (300)", nargs="?", const=300, bounds=Range(1, 1_000_000)
    )
    evolve_sampler: str = flag("genetic", "who proposes the next ones", choices=("genetic", "tpe", "cmaes", "random"))
    evolve_pruner: str = flag(
        "none", "who gives up hopeless trainings early", choices=("none", "median", "halving", "hyperband")
    )
    evolve_storage: str = flag(
        "", "where workers of one search meet: a journal file's path or a database URL",
        shown="search.journal in the search's folder",
    )  # fmt: skip
    bucket: str = flag("", "read for compatibility, without effect")
    entity: str | None = flag(None, "W&B's user or team (--loggers wandb)")
    upload_dataset: Any = flag(False, "read for compatibility, without effect", type=str, nargs="?", const=True)
    bbox_interval: int = flag(
        -1, "send drawn detections to W&B every so many epochs", shown="only at the end", bounds=Range(-1)
    )
    artifact_alias: str = flag("latest", "read for compatibility, without effect", shown="")


def check_options(opt: TrainOptions) -> None:
    """Raise ValueError for numbers and combinations that cannot work."""
    check_bounds(opt)
    if opt.batch_size % world_size() and opt.batch_size > 0:
        raise ValueError(f"--batch-size {opt.batch_size} must be a multiple of the {world_size()} processes")
    if world_size() > 1 and (opt.image_weights or opt.evolve is not None):
        raise ValueError("--image-weights and --evolve work in a single process only")
    choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge)
    if opt.tile and opt.rect:
        raise ValueError("--rect is for images of different shapes, and --tile makes squares of them: leave one out")
    if idle := [name for name in UNUSED if getattr(opt, name) != UNUSED[name]]:
        LOGGER.warning(f"--{', --'.join(idle)}: read for compatibility, without effect (no W&B or cloud storage here)")


def continued(stored: TrainOptions, asked: TrainOptions, given: Collection[str]) -> TrainOptions:
    """Return the options of a run that goes on: those it began with, and of the `given` ones those that may change.

    Raise ValueError for one that may not and is another than it was.
    """
    changes: dict[str, Any] = {}
    for name in (item.name for item in fields(TrainOptions)):
        old, new = getattr(stored, name), getattr(asked, name)
        if name not in given or old == new or (name == "batch_size" and new < 0):
            continue
        if name not in CHANGEABLE:
            raise ValueError(
                f"--resume: the run was begun with --{name.replace('_', '-')} {old}, which cannot become {new}; leave "
                "it out, or begin a new run with --weights"
            )
        changes[name] = new
    return replace(stored, **changes)
