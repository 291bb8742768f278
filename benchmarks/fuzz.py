"""Hostile inputs for as long as one likes: what tests/fuzz does a thousand times, from other seeds or led by coverage.

    python -m benchmarks.fuzz                              what kinds there are
    python -m benchmarks.fuzz checkpoint --seconds 60      one of them, by chance
    python -m benchmarks.fuzz all --seconds 10             all, ten seconds each
    python -m benchmarks.fuzz zip --engine atheris         led by the branches that are taken (pip install atheris)

An input that breaks a promise is kept in the folder of --keep, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from utils.base.log import LOGGER
from utils.base.options import Parser

if TYPE_CHECKING:  # the kinds bring all that is fuzzed, which Atheris wants to see imported
    from tests.fuzz.guard import Kind

SEEDS = 50  # inputs that Atheris begins with


def kinds() -> dict[str, Kind]:
    """Every kind by its name."""
    from tests.fuzz.binaries import BINARIES, CACHES
    from tests.fuzz.graphs import GRAPHS
    from tests.fuzz.pickles import PICKLES
    from tests.fuzz.texts import TEXTS

    return {kind.name: kind for kind in (*TEXTS, *BINARIES, *CACHES, *GRAPHS, *PICKLES)}


def small_models() -> None:
    """Refuse models at a thousandth of the usual size, so that those that are not refused are quick to build."""
    from models.description import budget

    budget.MAX_PARAMETERS, budget.MAX_VALUES, budget.MAX_PRODUCTS = 2_000_000, 1 << 22, 200_000_000


def by_chance(kind: Kind, seconds: float, seed: int, keep: Path) -> int:
    """Try inputs one after the other; prints how many there were and what broke, returns how many ways there were."""
    from tests.fuzz.guard import peak_memory, scratch, try_input

    tried = taken = 0
    broken: dict[str, tuple[int, Path]] = {}
    before, end = peak_memory(), time.monotonic() + seconds
    with scratch() as folder:
        while time.monotonic() < end:
            rng = Random(f"{kind.name} {seed} {tried}")
            content = kind.make(rng) if rng.randrange(10) else rng.randbytes(rng.randrange(300))
            tried += 1
            try:
                taken += try_input(kind, content, Path(folder)) == ""
            except Exception as error:
                count, file = broken.get(name := _called(error), (0, None))
                broken[name] = count + 1, file or _kept(keep, kind, content)
    more = (peak_memory() - before) >> 20
    print(f"{kind.name}: {tried} inputs, {taken} taken, {more} MiB more, {len(broken)} broken promises")
    for name, (count, file) in broken.items():
        print(f"    {count} x {name}; {file}")
    return len(broken)


def _called(error: Exception) -> str:
    """What is the same for all errors of one cause."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {re.sub('[0-9]+', '#', str(error))[:60]!r} at {where.filename}:{where.lineno}"


def _kept(keep: Path, kind: Kind, content: bytes) -> Path:
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{hashlib.sha256(content).hexdigest()[:12]}-{kind.file}"
    file.write_bytes(content)
    return file


def by_coverage(name: str, seconds: float, seed: int, keep: Path) -> None:
    """Let Atheris look for branches; it ends the process itself."""
    try:
        import atheris
    except ImportError as error:
        raise SystemExit("--engine atheris: it is not installed here; pip install atheris") from error
    with atheris.instrument_imports(include=["utils", "models"]):
        kind = kinds()[name]
    from tests.fuzz.guard import scratch, try_input

    small_models()
    folder = scratch()
    corpus = keep / "corpus" / re.sub(r"\W+", "-", name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(SEEDS):
        (corpus / f"seed{number}").write_bytes(b"\0" + kind.make(Random(number)))

    def try_one(data: bytes) -> None:
        """An even first byte: the rest as it is; an odd one: what is made by chance from it."""
        content = data[1:] if not data or data[0] % 2 == 0 else kind.make(Random(data[1:]))
        try_input(kind, content, Path(folder.name))

    limits = [
        f"-max_total_time={int(seconds)}",
        "-timeout=20",
        "-rss_limit_mb=6000",
        "-max_len=20000",
        f"-seed={seed + 1}",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={keep}/", str(corpus)], try_one)
    atheris.Fuzz()


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 when a promise was broken."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", help="its name, or all")
    parser.add_argument("--seconds", type=float, default=60, help="for each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same one gives the same inputs")
    parser.add_argument("--engine", choices=("chance", "atheris"), default="chance")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where inputs that broke something stay")
    given = parser.parse_args(argv)
    LOGGER.setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if given.engine == "atheris" and given.kind not in (None, "all"):
        by_coverage(given.kind, given.seconds, given.seed, given.keep)
    known = kinds()
    if given.kind is None or given.kind not in (*known, "all"):
        print(f"kinds: all, {', '.join(known)}")
        return int(given.kind is not None)
    small_models()
    chosen = known.values() if given.kind == "all" else [known[given.kind]]
    print(f"seed {given.seed}")
    return int(sum(by_chance(kind, given.seconds, given.seed, given.keep) for kind in chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
