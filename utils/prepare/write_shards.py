"""Pack a folder data set into shards: tar files as webdataset and `utils.data.shards` read them.

    python -m utils.prepare.write_shards --data coco.yaml --split train --out /data/shards --per-shard 2000

Images and label files go in byte for byte, in shuffled order, so that any run of shards is a fair sample of the set.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.config import DataConfig
from utils.base.files import replacing
from utils.base.log import LOGGER
from utils.base.options import Range, flag, options
from utils.base.paths import check_yaml, shown
from utils.base.progress import progress
from utils.data.image_files import find_images, img2label_paths
from utils.distributed.script import run_script

DIGITS = 6  # of a shard's number


@dataclass(slots=True)
class ShardOptions:
    """What is to be packed, and where to."""

    data: str = flag("", help="the data set's YAML", shown="")
    split: str = flag("train", help="which of its parts", choices=["train", "val", "test"])
    out: str = flag("", help="folder for the shards, made if need be", shown="")
    per_shard: int = flag(1000, help="images in a shard", bounds=Range(1))
    seed: int = flag(0, help="of the order; -1 keeps that of the paths", bounds=Range(-1))


def write_shards(
    sources: str | Path | Iterable[str | Path], folder: str | Path, per_shard: int = 1000, seed: int | None = 0
) -> str:
    """Pack the images of folders and lists, and their label files, into `folder`; return the shards' common path.

    That path, as in `folder/shard-{000000..000041}.tar`, is what a data YAML names. `seed` shuffles the images; None
    keeps the order of their paths. Raises ValueError when there are none, shards are there already or would hold none,
    OSError where reading or writing fails.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard={per_shard}: a shard holds at least one image")
    images = find_images(sources)
    if seed is not None:
        images = [images[number] for number in np.random.default_rng(seed).permutation(len(images))]
    count, folder = -(-len(images) // per_shard), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if old := next(folder.glob("shard-*.tar"), None):
        raise ValueError(f"{shown(old)}: there are shards already; remove them or choose another folder")
    taken: Counter[str] = Counter()
    for number in progress(range(count), "writing shards", unit=" shards"):
        chosen = images[number * per_shard : (number + 1) * per_shard]
        with (
            replacing(folder / f"shard-{number:0{DIGITS}}.tar") as beside,
            tarfile.open(beside, "w", format=tarfile.GNU_FORMAT) as archive,
        ):
            for image, label in zip(chosen, img2label_paths(chosen), strict=True):
                key = stem = image.stem.replace(".", "_")  # no dots, which end a key; numbered where it was taken
                while key in taken:
                    taken[stem] += 1
                    key = f"{stem}-{taken[stem]}"
                taken[key] = 1
                for source in (image, *filter(Path.is_file, [Path(label)])):
                    content = source.read_bytes()
                    member = tarfile.TarInfo(key + source.suffix.lower())  # no owner, no time: the same bytes
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    numbers = f"{{{0:0{DIGITS}}..{count - 1:0{DIGITS}}}}" if count > 1 else f"{0:0{DIGITS}}"
    LOGGER.info(f"{len(images)} images in {count} shards; in the data YAML: {folder / f'shard-{numbers}.tar'}")
    return str(folder / f"shard-{numbers}.tar")


def run(given: dict[str, Any]) -> None:
    """Pack what the command line asks for. Raises ValueError for a mistake of the user's."""
    opt = options(ShardOptions, given)
    if not opt.data or not opt.out:
        raise ValueError("--data and --out are needed: the data set's YAML, and a folder for the shards")
    sources = getattr(DataConfig.load(check_yaml(opt.data)), opt.split)
    if not sources:
        raise ValueError(f"{opt.data}: has no {opt.split!r}")
    write_shards(sources, opt.out, opt.per_shard, None if opt.seed < 0 else opt.seed)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_script(ShardOptions, run, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
