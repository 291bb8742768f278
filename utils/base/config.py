"""What the YAML files mean: `DataConfig` a data set, `Hyp` the hyper-parameters of a training run.

The names of `utils.base.options`, which reads command lines, are here too.
"""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.base.files import is_one_line
from utils.base.log import LOGGER
from utils.base.options import SHARE, Range, flag, inner_type, nearest, options, parse
from utils.base.paths import ROOT, datasets_root
from utils.base.yaml import read_yaml, shortened, write_yaml

__all__ = [
    "DataConfig", "Hyp", "check_img_size", "flag", "make_divisible", "options", "parse", "read_yaml", "write_yaml",
]  # fmt: skip

MAX_CLASSES = 100_000
SIDES = Range(1, 32_736)  # pixels, the largest multiple of 32 that OpenCV maps
SIDE = Range(SIDES.least, SIDES.most, also=(0,))  # 0: as is usual


# ----------------------------------------------------------------------------------------------------------- numbers
def make_divisible(value: float, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `value`."""
    return math.ceil(value / int(divisor)) * int(divisor)


def check_img_size(imgsz: int | Sequence[int], s: int = 32, floor: int = 0) -> int | list[int]:
    """Each side rounded up to a multiple of the stride `s` and to at least `floor`; a change is warned of.

    Raises ValueError for a side below 1.
    """
    stride = int(max(s)) if isinstance(s, Iterable) else int(s)
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if not sides or any(side < 1 for side in sides):
        raise ValueError(f"--imgsz {imgsz}: the image size must be at least 1 pixel")
    fitting = [max(make_divisible(side, stride), floor) for side in sides]
    if fitting != sides:
        LOGGER.warning(
            f"--imgsz {imgsz} is not a multiple of the largest stride {stride}; "
            f"using {fitting[0] if isinstance(imgsz, int) else fitting}"
        )
    return fitting[0] if isinstance(imgsz, int) else fitting


# ---------------------------------------------------------------------------------------------------------- data set
@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set description: where the pictures of each split lie and what the classes are called."""

    file: Path | None
    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    names: tuple[str, ...]
    download: str | None = None
    imgsz: int | None = None  # side in pixels that the set is best trained at

    KEYS: typing.ClassVar[tuple[str, ...]] = ("path", "train", "val", "test", "nc", "names", "download", "imgsz")

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    @classmethod
    def load(cls, file: str | Path) -> DataConfig:
        """Read a data set YAML in any of YOLOv5's forms; the data itself is not touched.

        `names` is a list or a mapping from index to name; `train`, `val`, `test` are a folder, a .txt list, or a list
        of either, relative to `path`; `path` is relative to the YAML's own folder or to the data sets' root.
        Raises ValueError naming file, key and remedy.
        """
        file = Path(file)
        content = read_yaml(file)
        for key in content:
            if key not in cls.KEYS and (near := nearest(key, cls.KEYS)):
                raise ValueError(f"{file}: unknown key {shortened(key)}{near}; known: {', '.join(cls.KEYS)}")
        if extra := [shortened(key).strip("'") for key in content if key not in cls.KEYS]:
            LOGGER.warning(f"{file}: {', '.join(extra)} mean nothing here; known: {', '.join(cls.KEYS)}")
        names = _class_names(file, content)
        root = _data_root(file, content.get("path"))
        splits = {split: _split_paths(file, root, split, content.get(split)) for split in ("train", "val", "test")}
        for split in ("train", "val"):
            if not splits[split]:
                raise ValueError(
                    f"{file}: has no {split!r}; add '{split}: images/{split}' (a folder, a .txt list or a list of them)"
                )
        download, imgsz = content.get("download"), content.get("imgsz")
        if imgsz is not None and (type(imgsz) is not int or imgsz not in SIDES):
            raise ValueError(f"{file}: imgsz must be whole pixels {SIDES}, not {shortened(imgsz)}")
        download = None if download is None else str(download).strip()
        return cls(file, root, **splits, names=names, download=download, imgsz=imgsz)


def _class_names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """`names` as a tuple in class order, checked against `nc` where that is given."""
    names, count = content.get("names"), _class_count(file, content.get("nc"))
    if names is None:
        if count is None:
            raise ValueError(f"{file}: has neither 'names' nor 'nc'; add 'names: [first, second]'")
        return tuple(f"class{i}" for i in range(count))
    if isinstance(names, dict):
        names = _numbered(file, names)
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            found = list(names)[:5]
            raise ValueError(
                f"{file}: names must be numbered 0 to {len(names) - 1} without gaps, not {shortened(found)}"
            )
        names = [name for _, name in sorted(names.items())]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: names must be a list or a mapping from number to name, not {shortened(names)}")
    if count is not None and len(names) != count:
        raise ValueError(f"{file}: nc is {count} but there are {len(names)} names; make them agree or leave nc out")
    found = tuple(_class_name(file, number, name) for number, name in enumerate(names))
    _say_repeated(file, found)
    return found


def _say_repeated(file: Path, names: tuple[str, ...]) -> None:
    """Warn of two classes with one name."""
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    if again := [number for number, name in enumerate(names) if first[name] != number]:
        name = shortened(names[again[0]])
        LOGGER.warning(f"{file}: classes {first[names[again[0]]]} and {again[0]} have one name, {name}; is that meant?")


def _numbered(file: Path, names: dict[Any, Any]) -> dict[Any, Any]:
    """The mapping with whole numbers as keys, those in quotes too."""
    numbered: dict[Any, Any] = {}
    for key, name in names.items():
        is_text = isinstance(key, str) and key.strip().isascii() and key.strip().isdecimal()
        number = int(key) if is_text and len(key) < 10 else key
        if number in numbered:
            raise ValueError(f"{file}: names has class {number} twice, with and without quotes; remove one")
        numbered[number] = name
    return numbered


def _class_name(file: Path, number: int, name: Any) -> str:
    """Text or a whole number as text; what YAML makes of `no`, `2024-01-01` or nothing at all is no name."""
    if type(name) not in (str, int):
        found = "null" if name is None else shortened(name)
        raise ValueError(f"{file}: names: class {number} must be text, not {found}; write its name in quotes")
    if not is_one_line(str(name)):  # it would break tables, logs and folder names
        raise ValueError(f"{file}: names: class {number} must be one line of text, not {shortened(name)}; rename it")
    return str(name)


def _class_count(file: Path, count: Any) -> int | None:
    if count is None or (type(count) is int and 1 <= count <= MAX_CLASSES):
        return count
    raise ValueError(f"{file}: nc must be a whole number of classes, 1 to {MAX_CLASSES}, not {shortened(count)}")


def _data_root(file: Path, path: Any) -> Path:
    """The first existing reading of `path`; when none exists yet, the place a download would go to."""
    here = file.resolve().parent
    if path is None:
        return here
    if not isinstance(path, str):
        raise ValueError(f"{file}: path must be a folder name, not {shortened(path)}")
    given = _expanded(file, "path", path)
    if given.is_absolute():
        return given
    tail = Path(*[part for part in given.parts if part not in ("..", "datasets")])
    readings = [here / given, datasets_root() / tail, ROOT / given, datasets_root() / given]
    return next((reading.resolve() for reading in readings if os.path.exists(reading)), datasets_root() / tail)


def _split_paths(file: Path, root: Path, split: str, value: Any) -> tuple[Path, ...]:
    if value is None or value == "":
        return ()
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{file}: {split} must be a folder, a .txt list or a list of them, not {shortened(value)}")
    return tuple(_split_path(root, _expanded(file, split, entry)) for entry in entries)


def _split_path(root: Path, entry: Path) -> Path:
    """Where a split is: as it is written, or, with `../`, below the root itself, as Roboflow's files mean it."""
    path = root / entry
    if entry.parts[:1] != ("..",) or os.path.exists(path):
        return path
    inside = root.joinpath(*[part for part in entry.parts if part != ".."])
    return inside if os.path.exists(inside) else path


def _expanded(file: Path, key: str, path: str) -> Path:
    """The path with ~ written out, and with slashes where it was written on Windows."""
    if "\\" in path and not os.path.exists(path):
        path = path.replace("\\", "/")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{file}: {key}: there is no home folder for {shortened(path)}; write it out") from error


# -------------------------------------------------------------------------------------------------- hyper-parameters
HYP_BOUNDS: dict[str, Range] = {  # what a training can work with; the limits of a search lie inside
    "lr0": Range(0, 10, above=True),
    "lrf": Range(0, 10),
    "momentum": Range(0, 0.9999, above=True),  # Nesterov's, or Adam's first beta
    "weight_decay": Range(0, 1),
    "warmup_epochs": Range(0, 1000),
    "warmup_momentum": Range(0, 0.9999),
    "warmup_bias_lr": Range(0, 10),
    "box": Range(0, 1000),
    "cls": Range(0, 1000),
    "cls_pw": Range(0, 1000),
    "obj": Range(0, 1000),
    "obj_pw": Range(0, 1000),
    "iou_t": SHARE,
    "anchor_t": Range(1, 1000, above=True),
    "anchors": Range(0, 100),
    "fl_gamma": Range(0, 10),
    "hsv_h": SHARE,
    "hsv_s": SHARE,
    "hsv_v": SHARE,
    "degrees": Range(0, 180),
    "translate": SHARE,
    "scale": Range(0, 0.99),
    "shear": Range(0, 80),
    "perspective": Range(0, 0.01),
    **dict.fromkeys(("flipud", "fliplr", "mosaic", "mixup", "copy_paste", "mosaic9", "albumentations"), SHARE),
    "label_smoothing": Range(0, 0.99),
    "pooled": SHARE,
    "close_mosaic": Range(0, 1_000_000),
    "ema_tau": Range(0, 1e9, above=True),
    "warmup_floor": Range(0, 1_000_000_000),
    "clip_norm": Range(0, 1e9),
    "nominal_batch": Range(1, 1_000_000),
}


@dataclass(frozen=True, slots=True)
class Hyp:
    """Hyper-parameters of a training run, as in YOLOv5's hyp YAML files, and ours below them.

    Defaults are those of `hyp.scratch-low.yaml`; a key of ours that a file does not name keeps YOLOv5's behaviour.
    """

    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2
    anchor_t: float = 4.0
    anchors: float | None = None
    fl_gamma: float = 0.0
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    label_smoothing: float = 0.0  # the last of YOLOv5's; ours follow
    box_iou: str = "CIoU"  # which overlap the box loss is made of
    albumentations: float = 0.0  # share of pictures for each of the extra pixel effects (an optional package)
    mosaic9: float = 0.0  # share of mosaics made of nine pictures instead of four
    pooled: int = 0  # 1: every matched box counts alike, 0: every level's mean does
    close_mosaic: int = 0  # last epochs that see whole pictures only
    ema_tau: float = 2000.0  # updates over which the weight average becomes slow
    warmup_floor: int = 1000  # fewest warm-up iterations (never more than a third of the run)
    clip_norm: float = 0.0  # longest gradient of one step, 0 for no limit
    nominal_batch: int = 64  # gradients are gathered up to this many pictures a step

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Hyp:
        """From a YAML file or a mapping. Raises ValueError for an unknown key, a wrong type or an impossible value."""
        name = "hyp" if isinstance(source, Mapping) else str(source)
        content = dict(source) if isinstance(source, Mapping) else read_yaml(source)
        hints = typing.get_type_hints(cls)
        for key, value in content.items():
            if key not in hints:
                raise ValueError(
                    f"{name}: unknown hyper-parameter {shortened(key)}{nearest(key, hints)}; known: {', '.join(hints)}"
                )
            content[key] = _hyp_value(name, key, value, inner_type(hints[key])[0])
        return cls(**content)

    def scaled(self, levels: int, nc: int, imgsz: int, label_smoothing: float = 0.0) -> Hyp:
        """Loss gains for this many detection levels, classes and pixels (YOLOv5's reference is 3, 80 and 640)."""
        return replace(
            self,
            box=self.box * 3 / levels,
            cls=self.cls * nc / 80 * 3 / levels,
            obj=self.obj * (imgsz / 640) ** 2 * 3 / levels,
            label_smoothing=label_smoothing or self.label_smoothing,
        )


def _hyp_value(name: str, key: str, value: Any, kind: type) -> Any:
    """`value` as `kind`, inside its bounds; YAML 1.1 reads 1e-2 as text, so text that is a number counts as one."""
    bounds = HYP_BOUNDS.get(key)
    if kind is str:
        if isinstance(value, str):
            return value
    elif value is None and key == "anchors":
        return None
    elif not isinstance(value, bool):
        try:
            number = kind(value)
            fits = math.isfinite(number) and number == float(value)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if fits and number not in bounds:
            raise ValueError(f"{name}: {key} must be {bounds}, not {shortened(value)}")
        if fits:
            return number
    wanted = {str: "text", int: "a whole number", float: "a number"}[kind]
    raise ValueError(f"{name}: {key} must be {wanted}, not {shortened(value)}")
