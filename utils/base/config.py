"""What the YAML files mean: `DataConfig` a data set, `Hyp` the hyper-parameters of a training run; classes by name."""

from __future__ import annotations

import difflib
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.base.files import MIB, decoded, folded, is_one_line, printable, read_bytes
from utils.base.log import LOGGER
from utils.base.options import SHARE, Range, flag, nearest, options
from utils.base.paths import ROOT, datasets_root
from utils.base.yaml import read_yaml, shortened

MAX_CLASSES = 100_000
SIDES = Range(1, 32_736)  # pixels, the largest multiple of 32 that OpenCV maps
SIDE = Range(SIDES.least, SIDES.most, also=(0,))  # 0: as is usual

# a list, a mapping from 0, 1, 2 ... to name, a data YAML, or a text file with one name a line (classes.txt, obj.names)
Names = Sequence[str] | Mapping[int, str] | Mapping[str, str] | str | Path


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
    rounded = [max(make_divisible(side, stride), floor) for side in sides]
    fitting = rounded[0] if isinstance(imgsz, int) else rounded
    if rounded != sides:
        LOGGER.warning(f"--imgsz {imgsz} is not a multiple of the largest stride {stride}; using {fitting}")
    return fitting


# ---------------------------------------------------------------------------------------------------------- data set
@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set description: where the images of each split lie and what the classes are called."""

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
        extra = [key for key in content if key not in cls.KEYS]
        for key in extra:
            if near := nearest(key, cls.KEYS):
                raise ValueError(f"{file}: unknown key {shortened(key)}{near}; known: {', '.join(cls.KEYS)}")
        if extra:
            unknown = ", ".join(shortened(key).strip("'") for key in extra)
            LOGGER.warning(f"{file}: {unknown} mean nothing here; known: {', '.join(cls.KEYS)}")
        imgsz, download = content.get("imgsz"), content.get("download")
        if imgsz is not None and (type(imgsz) is not int or imgsz not in SIDES):
            raise ValueError(f"{file}: imgsz must be whole pixels {SIDES}, not {shortened(imgsz)}")
        root = _data_root(file, content.get("path"))
        return cls(
            file,
            root,
            **{split: _split_paths(file, root, split, content.get(split)) for split in ("train", "val", "test")},
            names=_names_of(file, content.get("names"), content.get("nc")),
            download=None if download is None else str(download).strip(),
            imgsz=imgsz,
        )


def _names_of(file: Path, names: Any, count: Any) -> tuple[str, ...]:
    """Return `names` in class order, checked against `nc` where that is given."""
    if count is not None and not (type(count) is int and 1 <= count <= MAX_CLASSES):
        raise ValueError(f"{file}: nc must be a whole number of classes, 1 to {MAX_CLASSES}, not {shortened(count)}")
    if names is None:
        if count is None:
            raise ValueError(f"{file}: has neither 'names' nor 'nc'; add 'names: [first, second]'")
        return tuple(f"class{i}" for i in range(count))
    if not isinstance(names, (list, dict)):
        raise ValueError(f"{file}: names must be a list or a mapping from number to name, not {shortened(names)}")
    found = class_names(names, f"{file}: names")
    if count not in (None, len(found)):
        raise ValueError(f"{file}: nc is {count} but there are {len(found)} names; make them agree or leave nc out")
    first: dict[str, int] = {}
    if again := [(number, name) for number, name in enumerate(found) if first.setdefault(name, number) != number]:
        number, name = again[0]
        both = f"{first[name]} and {number}"
        LOGGER.warning(f"{file}: classes {both} have one name, {shortened(name)}; is that meant?")
    return found


def _data_root(file: Path, path: Any) -> Path:
    """Return the first existing reading of `path`; when none exists yet, the place a download would go to."""
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
    """Return the folders and lists of a split: as they are written, or, with `../`, below the root itself, as
    Roboflow's files mean it.
    """
    entries = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{file}: {split} must be a folder, a .txt list or a list of them, not {shortened(value)}")
    if not entries and split != "test":
        raise ValueError(
            f"{file}: has no {split!r}; add '{split}: images/{split}' (a folder, a .txt list or a list of them)"
        )
    paths = []
    for entry in (_expanded(file, split, entry) for entry in entries):
        readings = [root / entry, root.joinpath(*[part for part in entry.parts if part != ".."])]
        paths.append(next(filter(os.path.exists, readings), readings[0]))
    return tuple(paths)


def _expanded(file: Path, key: str, path: str) -> Path:
    """Return the path with ~ written out, and with slashes where it was written on Windows."""
    if "\\" in path and not os.path.exists(path):
        path = path.replace("\\", "/")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{file}: {key}: there is no home folder for {shortened(path)}; write it out") from error


# ----------------------------------------------------------------------------------------------------------- classes
def class_names(names: Names, source: str = "names") -> tuple[str, ...]:
    """Return the names in class order. Raises ValueError where they are none, or their numbers have gaps."""
    if isinstance(names, (str, Path)):
        file = Path(names)
        if file.suffix.lower() in (".yaml", ".yml"):
            return DataConfig.load(file).names
        try:
            names = list(filter(None, map(str.strip, decoded(read_bytes(file, MIB)).splitlines())))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"names: {printable(file)} is no list, data YAML or text file ({reason})") from None
    if isinstance(names, Mapping):
        names = _in_order(names, source)
    listed: list[Any] = list(names)
    if not listed:
        raise ValueError(f"{source}: must be the classes' names in order, as in [bolt, nut], or a mapping to them")
    for number, name in enumerate(listed):  # what YAML makes of `no`, `2024-01-01` or nothing at all is no name
        if type(name) not in (str, int):
            found = "null" if name is None else shortened(name)
            raise ValueError(f"{source}: class {number} must be text, not {found}; write its name in quotes")
        if not is_one_line(str(name)):  # it would break tables, logs and folder names
            raise ValueError(f"{source}: class {number} must be one line of text, not {shortened(name)}; rename it")
    return tuple(map(str, listed))


def _in_order(names: Mapping[Any, str], source: str) -> list[str]:
    """Return the names of a mapping by number; numbers in quotes count as numbers."""
    numbered: dict[Any, str] = {}
    for key, name in names.items():
        is_text = isinstance(key, str) and key.strip().isascii() and key.strip().isdecimal()
        number = int(key) if is_text and len(key) < 10 else key
        if number in numbered:
            raise ValueError(f"{source} has class {number} twice, with and without quotes; remove one")
        numbered[number] = name
    if set(numbered) != set(range(len(numbered))):
        found = shortened(list(numbered)[:5])
        raise ValueError(f"{source}: must be numbered 0 to {len(numbered) - 1} without gaps, not {found}")
    return [numbered[number] for number in range(len(numbered))]


class ClassNames:
    """Finds classes by name: as it stands, else without regard to case, spaces, hyphens and underscores."""

    def __init__(self, names: Names) -> None:
        self.names = class_names(names)
        self._exact = {name: number for number, name in reversed(list(enumerate(self.names)))}
        self._folded: dict[str, int | None] = {}
        for name, number in self._exact.items():  # two classes that differ in nothing else are told apart exactly only
            self._folded[folded(name)] = None if folded(name) in self._folded else number
        self._reasons: dict[str, str] = {}

    def find(self, name: str) -> int | None:
        """Return the class that `name` means, None where it is not listed."""
        number = self._exact.get(name)
        return self._folded.get(folded(name)) if number is None else number

    def unlisted(self, name: str) -> str:
        """Return why boxes of this name are dropped, with what comes near and the remedy."""
        if name not in self._reasons:
            known = {folded(known): known for known in reversed(self.names)}
            near = difflib.get_close_matches(folded(name)[:80], known, n=1)
            hint = f"did you mean {known[near[0]]!r}?" if near else "add it to keep them"
            self._reasons[name] = f"called {name[:80]!r}, which is not among the names; {hint}"
        return self._reasons[name]


# -------------------------------------------------------------------------------------------------- hyper-parameters
@dataclass(frozen=True, slots=True)
class Hyp:
    """Hyper-parameters of a training run, as in YOLOv5's hyp YAML files, and ours below them.

    Defaults are those of `hyp.scratch-low.yaml`; a key of ours that a file does not name keeps YOLOv5's behaviour. The
    bounds are what a training can work with; the limits of a search lie inside.
    """

    lr0: float = flag(0.01, bounds=Range(0, 10, above=True))
    lrf: float = flag(0.01, bounds=Range(0, 10))
    momentum: float = flag(0.937, "Nesterov's, or Adam's first beta", bounds=Range(0, 0.9999, above=True))
    weight_decay: float = flag(0.0005, bounds=SHARE)
    warmup_epochs: float = flag(3.0, bounds=Range(0, 1000))
    warmup_momentum: float = flag(0.8, bounds=Range(0, 0.9999))
    warmup_bias_lr: float = flag(0.1, bounds=Range(0, 10))
    box: float = flag(0.05, bounds=Range(0, 1000))
    cls: float = flag(0.5, bounds=Range(0, 1000))
    cls_pw: float = flag(1.0, bounds=Range(0, 1000))
    obj: float = flag(1.0, bounds=Range(0, 1000))
    obj_pw: float = flag(1.0, bounds=Range(0, 1000))
    iou_t: float = flag(0.2, bounds=SHARE)
    anchor_t: float = flag(4.0, bounds=Range(1, 1000, above=True))
    anchors: float | None = flag(None, bounds=Range(0, 100))
    fl_gamma: float = flag(0.0, bounds=Range(0, 10))
    hsv_h: float = flag(0.015, bounds=SHARE)
    hsv_s: float = flag(0.7, bounds=SHARE)
    hsv_v: float = flag(0.4, bounds=SHARE)
    degrees: float = flag(0.0, bounds=Range(0, 180))
    translate: float = flag(0.1, bounds=SHARE)
    scale: float = flag(0.5, bounds=Range(0, 0.99))
    shear: float = flag(0.0, bounds=Range(0, 80))
    perspective: float = flag(0.0, bounds=Range(0, 0.01))
    flipud: float = flag(0.0, bounds=SHARE)
    fliplr: float = flag(0.5, bounds=SHARE)
    mosaic: float = flag(1.0, bounds=SHARE)
    mixup: float = flag(0.0, bounds=SHARE)
    copy_paste: float = flag(0.0, bounds=SHARE)
    label_smoothing: float = flag(0.0, bounds=Range(0, 0.99))  # the last of YOLOv5's; ours follow
    box_iou: str = flag("CIoU", "which overlap the box loss is made of")
    albumentations: float = flag(0.0, "share of images for each of four effects: two blurs, grey, CLAHE", bounds=SHARE)
    mosaic9: float = flag(0.0, "share of mosaics made of nine images instead of four", bounds=SHARE)
    pooled: int = flag(0, "1: every matched box counts alike, 0: every level's mean does", bounds=SHARE)
    close_mosaic: int = flag(0, "last epochs that see whole images only", bounds=Range(0, 1_000_000))
    ema_tau: float = flag(2000.0, "updates over which the average becomes slow", bounds=Range(0, 1e9, above=True))
    warmup_floor: int = flag(1000, "fewest warm-up steps (at most a third of a run)", bounds=Range(0, 1_000_000_000))
    clip_norm: float = flag(0.0, "longest gradient of one step, 0 for no limit", bounds=Range(0, 1e9))
    nominal_batch: int = flag(64, "gradients are gathered up to this many images a step", bounds=Range(1, 1_000_000))

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Hyp:
        """From a YAML file or a mapping. Raises ValueError for an unknown key, a wrong type or an impossible value."""
        name = "hyp" if isinstance(source, Mapping) else str(source)
        content = source if isinstance(source, Mapping) else read_yaml(source)
        for key, value in content.items():
            if value is None and key != "anchors":
                raise ValueError(f"{name}: {shortened(key)} must have a value, not None; give it one, or remove it")
        return options(cls, content, name)

    def scaled(self, levels: int, nc: int, imgsz: int, label_smoothing: float = 0.0) -> Hyp:
        """Return the loss gains for so many detection levels, classes and pixels (YOLOv5's reference: 3, 80, 640)."""
        return replace(
            self,
            box=self.box * 3 / levels,
            cls=self.cls * nc / 80 * 3 / levels,
            obj=self.obj * (imgsz / 640) ** 2 * 3 / levels,
            label_smoothing=label_smoothing or self.label_smoothing,
        )
