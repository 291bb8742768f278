"""How many training images one core makes in a second, from files, shards and caches, and from large photographs.

    python -m benchmarks.loader_speed                 drawn JPEG images of 480 to 640 px a side, at --imgsz 640
    python -m benchmarks.loader_speed --data coco.yaml

Everything runs in one process with one thread, as a loader process does; rounds run all sources in turn. Seconds are
those of the processor, so that other work on the machine does not count; files are in the page cache, so a disk would
not either. `read` is reading, decoding and scaling one image alone; `train` is a training image in its batch: mosaic of
four, perspective, colour, flip; `plan` is what is left of it to the loader where a GPU paints (--augment-device cuda),
four images read and all; `paint` is that, and painting by PyTorch on the processor. `times` compares with `train` from
the same files, as many times as images a second. Large photographs are the same images with 4000 pixels a side, of
which there are a tenth as many.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import torch

from benchmarks.pairing import interleave, median_ratio
from benchmarks.report import Table, machine
from utils.base.config import DataConfig, Hyp
from utils.base.options import Parser
from utils.base.paths import check_yaml
from utils.data.batch_painting import paint_batch
from utils.data.datasets import DetectionDataset
from utils.data.label_arrays import LabelIndex
from utils.data.label_index import load_index
from utils.data.samplers import Batch, SampleKey, collate
from utils.prepare.synthetic import draw_dataset
from utils.prepare.write_shards import write_shards

SIDES = (480, 640)  # of drawn images, in pixels; COCO's are mostly 640 x 480
LARGE = 4000  # pixels of a photograph's longer side: 12 megapixels
BATCH = 16


def items(
    dataset: DetectionDataset, count: int, paints: bool = True, use: Callable[[Batch], object] = lambda batch: None
) -> Callable[[], None]:
    """Makes `count` training images in batches, and uses them; others in every call."""
    dataset, epoch = copy.copy(dataset), iter(range(1 << 30))
    dataset.paints = paints

    def run() -> None:
        number = next(epoch)
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            use(collate([dataset[SampleKey(position % len(dataset), number)] for position in numbers]))

    return run


def paint(batch: Batch) -> None:
    """Paints a batch by PyTorch, on the processor."""
    paint_batch(batch.images, torch.device("cpu"))


def images(dataset: DetectionDataset, count: int) -> Callable[[], None]:
    """Reads and scales `count` images."""

    def run() -> None:
        for position in range(count):
            dataset.load_image(position % len(dataset))

    return run


def shuffled_part(index: LabelIndex, count: int) -> LabelIndex:
    """At most `count` images, from all over the set."""
    generator = torch.Generator().manual_seed(0)
    return index.take(torch.randperm(len(index), generator=generator)[:count].numpy())


def enlarged(index: LabelIndex, count: int, folder: Path) -> LabelIndex:
    """The first `count` images as photographs of 12 megapixels, without labels."""
    folder.mkdir()
    for position in range(min(count, len(index))):
        image = index.image(position)
        gain = LARGE / max(image.shape)
        large = cv2.resize(image, None, fx=gain, fy=gain, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{position}.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return load_index(folder, cache=False)


def measure(options: argparse.Namespace) -> None:
    """Print images a second and core of each source."""
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            where = DataConfig.load(check_yaml(options.data)).train
        else:
            draw_dataset(Path(folder) / "set", options.images, 1, SIDES)
            where = Path(folder) / "set/images/train"
        hyp = Hyp.load(check_yaml("hyp.default.yaml"))
        index = shuffled_part(load_index(where, cache=False), options.images)
        listing = Path(folder) / "images.txt"
        listing.write_text("\n".join(os.path.abspath(index.path(i)) for i in range(len(index))))
        size = sum(os.path.getsize(index.path(i)) for i in range(len(index))) / len(index)
        print(
            f"{len(index)} images of {size / 1024:.0f} KiB on average, --imgsz {options.imgsz}, mosaic {hyp.mosaic:g}"
        )
        shards = load_index(write_shards(listing, Path(folder) / "shards", per_shard=100), cache=False)
        large, few = enlarged(index, options.images // 10 or 1, Path(folder) / "large"), options.count // 10 or 1
        sources = {"files": index, "shards": shards, "ram": index, "packed": shards, "12 MP": large}
        sets = {
            name: DetectionDataset(
                source, options.imgsz, augment=True, hyp=hyp, cache=name if name in ("ram", "packed") else None
            )
            for name, source in sources.items()
        }
        counts = {name: few if name == "12 MP" else options.count for name in sets}
        rivals = {f"{name} read": images(dataset, counts[name]) for name, dataset in sets.items()}
        rivals |= {f"{name} train": items(dataset, counts[name]) for name, dataset in sets.items()}
        rivals |= {f"{name} plan": items(dataset, counts[name], paints=False) for name, dataset in sets.items()}
        rivals["ram paint"] = items(sets["ram"], counts["ram"], paints=False, use=paint)
        seconds = interleave(rivals, options.rounds, clock=time.process_time)
        table = Table({"source": 12, "images/s/core": 0, "ms each": 8, "times": 6})
        for name, times in seconds.items():
            source = name.rpartition(" ")[0]
            each = statistics.median(times) / counts[source]
            gain = median_ratio(seconds["12 MP train" if source == "12 MP" else "files train"], times)
            table.add(
                **{"source": name, "images/s/core": round(1 / each, 1), "ms each": round(1000 * each, 2)},
                times=round(gain, 2),
            )


def main(arguments: Iterable[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.loader_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="", help="data set YAML; drawn images where it is not given")
    parser.add_argument("--images", type=int, default=200, help="how many of them are used")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--count", type=int, default=50, help="images in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if min(options.images, options.imgsz, options.count, options.rounds) < 1:
        parser.error("all numbers are at least 1")
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        facts = machine(torch.device("cpu"), torch.uint8, 1)
        versions = f"torch {facts['torch']}; OpenCV {cv2.__version__}; commit {facts['commit']}"
        print(f"{facts['processor']}, one used; {versions}")
        measure(options)
    except ValueError as error:
        parser.error(str(error))
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
