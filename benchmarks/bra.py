"""How fast bi-level routing attention is, next to a reference module, other backends and dense attention.

Three commands in one; rivals run in turn in one process, and memory on a CPU is what a fresh process grows by:

    python -m benchmarks.bra --reference bra_reference.py
        on SHAPES (or --shapes), our layer paired with the module of that file; without a file: backends and dense
        attention among themselves. --rivals chooses: the first named is the baseline, and "reference" and "dense" are
        compared with too. Those that cannot run on this machine are named and left out.
    python -m benchmarks.bra --models [n s m l x] --reference bra_reference.py
        the same on the maps that the BRA layers of yolov5{n,s,m,l,x}_BiFormer.yaml are given
    python -m benchmarks.bra --growth [--plot growth.png]
        how cost grows with height x width for n_win=7, n_win="auto", region_size=8 and dense attention, with fitted
        exponents

Each runs on a GPU with `--device cuda --dtype float16`, and then also tells the extra memory of the attention alone and
whether two runs agree bit by bit. `--save FILE` keeps the table with machine and commit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import bra_growth
from benchmarks.bra_compare import Case, Wanted, compare, model_cases
from benchmarks.report import FORMATS, machine, save
from benchmarks.rivals import NAMES, Setting, Shape, build
from models.bra.functions import BACKENDS
from utils.base.options import Parser

__all__ = ["SHAPES", "build", "main"]

SHAPES: tuple[Shape, ...] = (
    (8, 128, 40, 40),
    (8, 256, 20, 20),
    (4, 512, 40, 40),
    (4, 1024, 20, 20),
    (4, 128, 80, 80),
    (2, 128, 160, 160),
)
HEADS = 8  # what the layers have by default
SIZES = ("n", "s", "m", "l", "x")
# Which flags mean something only beside another one; their defaults are filled in there.
BELONGS = {
    "models": ("imgsz", "batch"),
    "growth": ("sides", "channels", "dense_limit", "backend", "plot"),
}
NOT_IN_GROWTH = ("reference", "rivals", "memory", "extra", "repeatable")


def parse_shape(text: str) -> Shape:
    """Text such as 8x128x40x40 as (8, 128, 40, 40)."""
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give batch x channels x height x width, as in 8x128x40x40")
    if int(parts[1]) % HEADS:
        raise argparse.ArgumentTypeError(f"{text!r}: {parts[1]} channels; give a multiple of the {HEADS} heads")
    return tuple(map(int, parts))


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    """All flags; what belongs to one command has None as default, so that it is noticed elsewhere."""
    parser = Parser(
        prog="python -m benchmarks.bra", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = {"choices": SIZES, "metavar": "SIZE"}
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES, help="B x C x H x W, as in 8x128x40x40")
    where.add_argument("--models", nargs="*", **choice, help="maps of these models, n s m l x; none named: all")
    where.add_argument("--growth", action="store_true", help="growth with height x width instead of a comparison")
    who = parser.add_argument_group("rivals")
    who.add_argument("--reference", type=Path, help="Python file with the BiLevelRoutingAttention to compare with")
    who.add_argument("--rivals", nargs="+", choices=NAMES, metavar="NAME", help=f"{', '.join(NAMES)}; baseline first")
    how = parser.add_argument_group("measuring")
    how.add_argument("--rounds", type=_at_least_one, default=Setting.rounds, help="timed rounds per map, at most")
    how.add_argument("--budget", type=float, default=Setting.budget, help="seconds for them; three are always run")
    how.add_argument("--threads", type=_at_least_one, default=torch.get_num_threads())
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    how.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of autocast")
    yes_no = {"action": argparse.BooleanOptionalAction}
    how.add_argument("--memory", **yes_no, help="peak memory of forward and backward; default: yes")
    how.add_argument("--extra", **yes_no, help="memory of the attention alone; default: on a GPU")
    how.add_argument("--repeatable", **yes_no, help="do two runs agree bit by bit; default: on a GPU")
    how.add_argument("--save", type=Path, metavar="FILE", help=f"write the table, as {', '.join(FORMATS)}")
    models = parser.add_argument_group("with --models")
    models.add_argument("--imgsz", type=_at_least_one, nargs="+", help="sides of the images in pixels; 640 1280")
    models.add_argument("--batch", type=_at_least_one, help="images at a time; 1")
    growth = parser.add_argument_group("with --growth")
    sides = " ".join(map(str, bra_growth.SIDES))
    growth.add_argument("--sides", type=_at_least_one, nargs="+", help=f"sides of the maps in tokens; {sides}")
    growth.add_argument("--channels", type=_at_least_one, help=f"a multiple of {bra_growth.HEAD_WIDTH}; 64")
    growth.add_argument("--dense-limit", type=_at_least_one, help="longest side with dense attention; 160")
    growth.add_argument("--backend", choices=BACKENDS, help="of our layers; auto")
    growth.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves")
    return parser


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together, before anything is measured."""
    mode = "growth" if options.growth else "models" if options.models is not None else None
    for command, flags in BELONGS.items():
        for flag in flags:
            if mode != command and getattr(options, flag) is not None:
                raise ValueError(f"--{flag.replace('_', '-')} belongs to --{command}; give both or neither")
    for flag in NOT_IN_GROWTH if mode == "growth" else ():
        if getattr(options, flag) is not None:
            raise ValueError(f"--growth compares layers of its own; leave --{flag} out")
    if options.reference is not None and not options.reference.is_file():
        raise ValueError(f"no file {options.reference}; name the Python file that defines the reference module")
    if "reference" in (options.rivals or ()) and options.reference is None:
        raise ValueError("the rival 'reference' is the module of a file; name it with --reference FILE")
    if any(side % 32 for side in options.imgsz or ()):
        raise ValueError(f"--imgsz {options.imgsz}: give multiples of 32")
    _check_files(options)


def _check_files(options: argparse.Namespace) -> None:
    endings = (("save", FORMATS), ("plot", bra_growth.IMAGES))
    for flag, allowed in endings:
        file = getattr(options, flag)
        if file is not None and file.suffix not in allowed:
            raise ValueError(f"--{flag} {file}: the name has to end in {', '.join(allowed)}")


def setting_of(options: argparse.Namespace) -> Setting:
    """Device, precision and pace; ValueError for a device that is not here."""
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(f"--device {options.device}: give cpu, cuda or cuda:NUMBER") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {options.device}: give cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {options.device}: PyTorch sees {torch.cuda.device_count()} GPUs here; give cpu")
    if not options.budget > 0:
        raise ValueError(f"--budget {options.budget}: give seconds, more than none")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    dtype = getattr(torch, options.dtype)
    return Setting(device, dtype, options.threads, options.reference, options.rounds, options.budget)


def plan_of(options: argparse.Namespace) -> bra_growth.Plan:
    """What --growth runs; ValueError for maps or channels that no exponent comes of."""
    given = {flag: getattr(options, flag) for flag in ("sides", "channels", "dense_limit", "backend")}
    plan = bra_growth.Plan(**{flag: value for flag, value in given.items() if value is not None})
    if len(set(plan.sides)) < 2:
        raise ValueError(f"--sides {plan.sides}: an exponent needs at least two different sizes")
    if plan.channels % bra_growth.HEAD_WIDTH:
        raise ValueError(f"--channels {plan.channels}: give a multiple of {bra_growth.HEAD_WIDTH}")
    return plan


def run(options: argparse.Namespace) -> None:
    """Check, measure, print, and save where asked."""
    check(options)
    setting = setting_of(options)
    plan = plan_of(options) if options.growth else None
    torch.set_num_threads(setting.threads)
    if setting.device.type == "cuda":
        torch.cuda.set_device(setting.device)  # Triton starts its kernels on the current one
    facts = machine(setting.device, setting.dtype, setting.threads)
    print("; ".join(f"{key}: {value}" for key, value in facts.items()))
    if plan is not None:
        table, notes, curves = bra_growth.grow(plan, setting)
        if options.plot is not None:
            bra_growth.draw(curves, options.plot)
    else:
        table, notes = compare(rivals_of(options), cases_of(options), setting, wanted_of(options, setting))
    if options.save is not None:
        save(options.save, table, {"command": options.command, **facts}, notes)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The maps to compare on."""
    if options.models is None:
        return [Case(shape) for shape in options.shapes]
    return model_cases(options.models or SIZES, options.imgsz or (640, 1280), options.batch or 1)


def rivals_of(options: argparse.Namespace) -> list[str]:
    """Who is compared, the baseline first, nobody twice."""
    usual = ["reference", "auto"] if options.reference else ["dense", "plain", "auto"]
    return list(dict.fromkeys(options.rivals or usual))


def wanted_of(options: argparse.Namespace, setting: Setting) -> Wanted:
    """What is measured besides time: what was asked for, else what belongs to the device."""
    on_gpu = setting.device.type == "cuda"
    asked = (options.memory, options.extra, options.repeatable)
    usual = (True, on_gpu, on_gpu)
    return Wanted(*(default if choice is None else choice for choice, default in zip(asked, usual, strict=True)))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    options.command = " ".join([parser.prog, *words])
    threads = torch.get_num_threads()
    try:
        run(options)
    except ValueError as error:
        parser.error(str(error))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
