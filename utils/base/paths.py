"""Where things lie: the repository, its YAML files, the data sets, the run folders."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]
USUAL_SIZE = 640  # pixels of an image's side, when nothing says otherwise
LARGEST_SIZE = 8192  # pixels that a file may ask for by itself
_SEARCHED = ("data", "models")


def datasets_root() -> Path:
    """Return the folder that relative data set paths fall back to.

    `YOLOV5_DATASETS_DIR` if set, else `datasets` beside the repository when it exists, else `datasets` inside it.
    """
    if chosen := os.environ.get("YOLOV5_DATASETS_DIR"):
        return Path(chosen).expanduser()
    beside = ROOT.parent / "datasets"
    return beside if beside.is_dir() else ROOT / "datasets"


def check_file(file: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Return the file as given, seen from the current folder or the repository, or of that name below data/ or models/.

    Raises ValueError when it has another suffix, is not found (naming what comes close) or is found twice.
    """
    path = Path(file).expanduser()
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{file}: expected a file ending in {' or '.join(suffixes)}")
    if there := list(filter(Path.is_file, (path, ROOT / path))):
        return there[0]
    if path.is_dir():
        raise ValueError(f"{file} is a folder; expected a file")
    below = [file for folder in _SEARCHED for file in sorted((ROOT / folder).rglob("*")) if file.is_file()]
    matches = [file for file in below if file.parts[-len(path.parts) :] == path.parts]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{file} is ambiguous: {', '.join(map(str, matches))}; give its full path")
    raise ValueError(f"{file} does not exist: {_looked_for(path, [file.name for file in below])}")


def _looked_for(missing: Path, names: Sequence[str]) -> str:
    """Return where a missing file was looked for, and what to name instead: a run's .pt, or what comes near."""
    near = difflib.get_close_matches(missing.name, set(names), n=3, cutoff=0.75)
    remedy = f"did you mean {' or '.join(near)}?" if near else "correct the path"
    if missing.suffix == ".pt":
        newest = latest_checkpoint(ROOT / "runs/train", "last.pt")
        remedy = f"name the last.pt in a run's folder weights{f', such as {shown(newest)}' if newest else ''}"
    places = " or ".join(dict.fromkeys(str(place.absolute()) for place in (missing, ROOT / missing)))
    return f"no {places}, and none below {ROOT}/data or {ROOT}/models; {remedy}"


def existing_weights(weights: str | Path) -> Path | None:
    """Return the weights as given, seen from the current folder, else from the repository; None if in neither.

    Raises ValueError for what could be read for ever.
    """
    given = Path(weights).expanduser()
    for place in (given, ROOT / given):
        if place.is_file() or place.is_dir():
            return place
        if place.exists():
            raise ValueError(f"{printable(place)}: is a pipe or device, not a file; save what it sends, and give that")
    return None


def find_weights(weights: str | Path) -> Path:
    """Return `existing_weights`. Raises ValueError when there are none, naming both places and what comes close there
    or among the runs.
    """
    if existing := existing_weights(weights):
        return existing
    given = Path(weights).expanduser()
    places = list(dict.fromkeys([given, ROOT / given]))
    looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
    there = [file for place in places for file in sorted(place.parent.glob(f"*{glob.escape(given.suffix)}"))]
    near = difflib.get_close_matches(given.name, {file.name for file in there}, n=1, cutoff=0.6)
    found = [file for file in there if file.name in near][:1]
    found += sorted((ROOT / "runs/train").glob(f"*/weights/{glob.escape(given.name)}"))[:2]
    hint = f"; did you mean {' or '.join(map(shown, found))}?" if found else ""
    missing = printable(f"weights {weights} do not exist: no {looked}")
    raise ValueError(f"{missing}{hint}; train some, or copy them there")


def check_yaml(file: str | Path) -> Path:
    """`check_file` for YAML files."""
    return check_file(file, (".yaml", ".yml"))


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> Path:
    """Return `runs/exp` if it is free, else `runs/exp2`, `runs/exp3` ...: one above the highest number there is.

    A file keeps its suffix (`a.txt` -> `a2.txt`). With `exist_ok` the path is taken as it is. With `mkdir` the folder
    is made, and, unless `exist_ok`, by this call and no other: of several that ask at once each gets one of its own.
    """
    path = Path(path)
    while True:
        chosen = path
        if mkdir:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not exist_ok and os.path.lexists(path):
            stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
            numbered = re.compile(re.escape(stem + sep) + r"(\d+)")
            there = path.parent.glob(f"{glob.escape(stem)}*")
            taken = [int(match[1]) for other in there if (match := numbered.match(other.name))]
            chosen = path.with_name(f"{stem}{sep}{max([1, *taken]) + 1}{suffix}")
        if not mkdir:
            return chosen
        try:
            chosen.mkdir(exist_ok=exist_ok)
            return chosen
        except (FileExistsError, FileNotFoundError):  # another was faster, or a parent that was empty has gone again
            if exist_ok and not path.is_dir():
                raise


@contextmanager
def claimed(path: str | Path, exist_ok: bool = False) -> Iterator[Path]:
    """Make a folder of one's own by `increment_path`, taken away again when the block fails before anything is in it.

    So are the folders above it that were made for it. With `exist_ok` it may be there already, and then stays.
    """
    path = Path(path)
    missing = [folder for folder in path.parents if not folder.exists()]
    is_new = not exist_ok or not path.exists()
    folder = increment_path(path, exist_ok, mkdir=True)
    try:
        yield folder
    except BaseException:
        for made in [folder, *missing] if is_new else ():
            with suppress(OSError):  # what is not empty stays
                made.rmdir()
        raise


def latest_checkpoint(folder: str | Path, name: str = "best.pt") -> Path | None:
    """Return the newest `<folder>/*/weights/<name>`, None if there is none."""
    found = [path for path in Path(folder).glob(f"*/weights/{name}") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def choose_weights(given: Sequence[str]) -> list[str]:
    """Return the weights that were given, or, without any, the newest training run's best.pt; ValueError for none."""
    if given:
        return list(given)
    newest = latest_checkpoint(ROOT / "runs/train")
    if newest is None:
        raise ValueError(f"no --weights, and none below {ROOT / 'runs/train'}: train first, or name a .pt file")
    LOGGER.info(f"--weights {shown(newest)} (the newest)")
    return [str(newest)]


def trained_with(weights: Sequence[str | Path]) -> dict[str, Any]:
    """Return the options of the run that the first weights file lies in (its opt.yaml), empty when there is none."""
    file = Path(weights[0]).parent.parent / "opt.yaml" if weights else None
    return read_yaml(file) if file and file.is_file() else {}


def trained_size(weights: Sequence[str | Path]) -> int:
    """Return the side in pixels of the images that the weights were trained on, as their run's folder tells, else 640.

    For weights that do not know it themselves, as those of earlier versions.
    """
    return usable_size(trained_with(weights).get("imgsz")) or USUAL_SIZE


def usable_size(size: Any) -> int:
    """Return the side in pixels that a file states, 0 for none or for what cannot be one."""
    return size if type(size) is int and 0 < size <= LARGEST_SIZE else 0


def shown(path: str | Path) -> str:
    """Return a path as people want to read it: relative to the current folder when it lies below it, on one line."""
    full = Path(path).resolve()
    return printable(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)
