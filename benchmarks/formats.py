"""Every format of a detector side by side: size, accuracy and speed of all that this machine can write and run.

    python -m benchmarks.formats --weights best.pt --data coco128.yaml --imgsz 640
    python -m benchmarks.formats --weights best.pt --include onnx openvino --rounds 50

The weights are exported by export.py into the run's folder and scored by val.py. Then all formats take turns at one
batch of noise, so that a slow minute of the machine is slow for all; `faster` is how many times less time an image
takes than in PyTorch, the median over the rounds. formats.md, formats.csv and formats.png hold the result.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.pairing import interleave, median_ratio
from benchmarks.report import Table, machine, save
from utils.base.devices import time_sync
from utils.base.log import LOGGER, one_line, set_up_logging
from utils.base.options import flag, nearest, parse
from utils.base.paths import ROOT, increment_path, shown, trained_size, trained_with
from utils.drawing.figures import GREY, INK, new_figure, save_figure, series_colour, title

PYTORCH = "PyTorch"  # the baseline: the weights as they are
MEGABYTE = 1e6
COLUMNS = {"format": 14, "MB": 7, "mAP50-95": 8, "ms": 7, "faster": 6, "note": 4}
# What export.py, val.py and libraries raise. Anything else is a mistake of ours and ends the run.
REFUSALS = (ValueError, ImportError)  # not here, not with these weights
FAILURES = (OSError, RuntimeError)  # should have worked: a file that differs from PyTorch, a runtime that breaks down


@dataclass(slots=True)
class FormatOptions:
    """The command line."""

    weights: str = flag("", "trained weights (.pt)")
    data: str = flag("", "data set YAML to score on; empty for the one the weights were trained with")
    imgsz: int = flag(
        0,
        "side of the images in pixels, a multiple of 32",
        aliases=("--img", "--img-size"),
        shown="what the weights were trained with",
    )
    batch_size: int = flag(1, "images at a time")
    include: list[str] = flag([], "formats, by export.py's names", shown="all that export.py knows")
    device: str = flag("cpu", "'cpu' or '0'")
    rounds: int = flag(30, "timed rounds; every format runs once in each")
    seconds: float = flag(300.0, "after this long no further round begins")
    project: str = flag(str(ROOT / "runs/benchmarks"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")


@dataclass(frozen=True, slots=True)
class Tools:
    """What does the work: the names of the formats; export.run, val.run, and what opens a file to run it."""

    formats: Sequence[str]
    export: Callable[..., Iterable[str | Path]]
    score: Callable[..., tuple[Sequence[float], object, object]]
    open: Callable[[Path, str], Callable[[torch.Tensor], object]]


@dataclass(slots=True)
class Outcome:
    """What is known of one format; what could not be had is None, and the note says why."""

    format: str
    files: list[Path] = field(default_factory=list)
    map: float | None = None  # mAP50-95
    seconds: list[float] = field(default_factory=list)  # a batch, in every round
    note: str = ""

    @property
    def megabytes(self) -> float | None:
        """Size of all files, those in folders too."""
        inner = [part for path in self.files for part in ([path] if path.is_file() else path.rglob("*"))]
        return sum(part.stat().st_size for part in inner if part.is_file()) / MEGABYTE if inner else None


def our_tools() -> Tools:
    """export.py, val.py and the backends of this repository."""
    import export  # isort: skip
    import val
    from models.backends import DetectMultiBackend
    from models.exporters import FORMATS  # isort: skip

    def open_file(file: Path, device: str) -> Callable[[torch.Tensor], object]:
        """One that was written here."""
        return DetectMultiBackend(file, device=device, trust=True)

    return Tools(tuple(FORMATS), export.run, val.run, open_file)


def complete(opt: FormatOptions, formats: Sequence[str]) -> FormatOptions:
    """Fill in what was not given: all formats, and the data and image size that the weights were trained with.

    Raises ValueError for options that cannot work.
    """
    if Path(opt.weights).suffix != ".pt" or not Path(opt.weights).is_file():
        raise ValueError(f"--weights {opt.weights or '(none)'}: give a .pt file that exists")
    if opt.batch_size < 1 or opt.rounds < 1 or not opt.seconds > 0:
        raise ValueError("--batch-size and --rounds are at least 1, --seconds more than 0")
    for name in opt.include:
        if name not in formats:
            raise ValueError(
                f"--include {name}: no such format{nearest(name, formats)}; there are {', '.join(formats)}"
            )
    data = opt.data or str(trained_with([opt.weights]).get("data", "shapes.yaml"))
    imgsz = opt.imgsz or trained_size([opt.weights])
    if imgsz < 32 or imgsz % 32:
        raise ValueError(f"--imgsz {imgsz}: give a multiple of 32")
    return replace(opt, include=opt.include or list(formats), data=data, imgsz=imgsz)


def mean_precision(name: str, file: Path, opt: FormatOptions, tools: Tools) -> float:
    """mAP50-95 of a file, by val.py, on squares for every format: most can do no other shape."""
    settings = {"data": opt.data, "imgsz": opt.imgsz, "batch_size": opt.batch_size, "device": opt.device}
    places = {"project": str(file.parent), "name": f"val_{name}", "exist_ok": True}
    summary, *_ = tools.score(weights=str(file), task="benchmark", trust=True, **settings, **places)
    return float(summary[3])


def write_and_score(name: str, weights: Path, opt: FormatOptions, tools: Tools) -> Outcome:
    """Export to one format, beside the weights, and score the file; a refusal becomes the note."""
    outcome = Outcome(name)
    settings = {"data": opt.data, "imgsz": [opt.imgsz] * 2, "batch_size": opt.batch_size, "device": opt.device}
    try:
        outcome.files = [Path(file) for file in tools.export(weights=str(weights), include=[name], **settings)]
        if not outcome.files:
            raise ValueError("the export wrote nothing")
        outcome.map = mean_precision(name, outcome.files[0], opt, tools)
    except (*REFUSALS, *FAILURES) as error:
        outcome.note = reason(error, written=bool(outcome.files))
        LOGGER.warning(f"{name}: {outcome.note}")
    return outcome


def reason(error: Exception, written: bool) -> str:
    """Why a format has no figures, in one line."""
    word = "failed" if isinstance(error, FAILURES) else "not run" if written else "skipped"
    return f"{word}: {one_line(error)}"


def time_in_turns(outcomes: Sequence[Outcome], opt: FormatOptions, tools: Tools) -> None:
    """Fill in the seconds of all formats that could be scored."""
    torch.manual_seed(0)
    batch = torch.rand(opt.batch_size, 3, opt.imgsz, opt.imgsz)
    if opt.device != "cpu":
        batch = batch.to(f"cuda:{opt.device}" if opt.device.isdecimal() else opt.device)
    rivals: dict[str, Callable[[], object]] = {}
    for outcome in outcomes:
        if outcome.map is None:
            continue
        try:
            rivals[outcome.format] = _waited_for(tools.open(outcome.files[0], opt.device), batch)
            rivals[outcome.format]()
        except (*REFUSALS, *FAILURES) as error:
            outcome.note = reason(error, written=True)
            rivals.pop(outcome.format, None)
    with torch.inference_mode():
        seconds = interleave(rivals, opt.rounds, warm_up=2, budget=opt.seconds) if rivals else {}
    for outcome in outcomes:
        outcome.seconds = seconds.get(outcome.format, [])


def _waited_for(model: Callable[[torch.Tensor], object], batch: torch.Tensor) -> Callable[[], object]:
    """The model on the batch, with the wait for a GPU to finish."""

    def run() -> object:
        with torch.inference_mode():
            result = model(batch)
        time_sync(batch.device)
        return result

    return run


def tabulate(outcomes: Sequence[Outcome], batch_size: int) -> Table:
    """One row for each format, printed."""
    table = Table(COLUMNS)
    baseline = next((outcome.seconds for outcome in outcomes if outcome.format == PYTORCH), [])
    for outcome in outcomes:
        timed = bool(outcome.seconds)
        cells = {
            "MB": outcome.megabytes,
            "mAP50-95": outcome.map if outcome.map is None else round(outcome.map, 4),
            "ms": 1000 * statistics.median(outcome.seconds) / batch_size if timed else None,
            "faster": median_ratio(baseline, outcome.seconds) if timed and baseline else None,
        }
        table.add(format=outcome.format, note=outcome.note, **cells)
    return table


def plot(table: Table, file: Path) -> Path | None:
    """Bars of time, accuracy and size of the formats that ran, the fastest on top; None where none ran."""
    rows = sorted((row for row in table.rows if row["ms"] is not None), key=lambda row: -row["ms"])
    if not rows:
        return None
    figure, axes = new_figure(1, 3, (12, 1.4 + 0.38 * len(rows)))
    panels: Mapping[str, str] = {"ms": "ms per image", "mAP50-95": "mAP50-95", "MB": "size, MB"}
    for i, (axis, (column, words)) in enumerate(zip(axes, panels.items(), strict=True)):
        values = [row[column] for row in rows]
        bars = axis.barh(range(len(rows)), values, color=series_colour(i), height=0.62)
        axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=9, color=INK)
        axis.set_yticks(range(len(rows)), [row["format"] for row in rows] if i == 0 else [""] * len(rows))
        axis.set_xlim(0, max(values) * 1.18 or 1)
        axis.grid(False, axis="y")
        axis.tick_params(axis="y", length=0, labelcolor=INK if i == 0 else GREY)
        title(axis, words)
    return save_figure(figure, file)


def compare(opt: FormatOptions, tools: Tools) -> tuple[list[Outcome], Path]:
    """Export, score, time, and write table and plot; returns the outcomes and the folder."""
    opt = complete(opt, tools.formats)
    folder = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
    weights = Path(shutil.copy2(opt.weights, folder))  # exports are written beside it, not into the user's folder
    outcomes = [Outcome(PYTORCH, [weights], mean_precision(PYTORCH, weights, opt, tools))]
    outcomes += [write_and_score(name, weights, opt, tools) for name in opt.include]
    time_in_turns(outcomes, opt, tools)
    table = tabulate(outcomes, opt.batch_size)
    facts = machine(torch.device("cpu" if opt.device == "cpu" else "cuda"), torch.float32, torch.get_num_threads())
    rounds = max(len(outcome.seconds) for outcome in outcomes)
    about = f"{weights.name}, {opt.imgsz} px, {opt.batch_size} at a time, {rounds} rounds in turns; mAP on {opt.data}"
    for suffix in (".md", ".csv"):
        save(folder / f"formats{suffix}", table, facts, [about])
    plot(table, folder / "formats.png")
    return outcomes, folder


def main(argv: list[str] | None = None, tools: Tools | None = None) -> int:
    """The command line: status 1 for a mistake in one line, and where a format fails that should have worked."""
    set_up_logging()
    try:
        outcomes, folder = compare(parse(FormatOptions, argv, __doc__), tools or our_tools())
    except (ValueError, OSError) as error:
        LOGGER.error(one_line(error))
        return 1
    LOGGER.info(f"Results saved to {shown(folder)}")
    return int(any(outcome.note.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
