"""A thousand hostile inputs of every kind: no crash, no hang, no code run, no file elsewhere, bounded memory."""

from __future__ import annotations

import collections
import struct
import warnings
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from models.description import budget
from tests.fuzz.binaries import BINARIES, CACHES
from tests.fuzz.guard import Broken, Kind, bounded_memory, try_input, watched
from tests.fuzz.pickles import PICKLES, evil_programs, zipped_program
from tests.fuzz.texts import TEXTS

INPUTS = 1000
ONE_WAY = ("malicious pickle", "label cache", "image cache")  # never taken; never refused: a cache is made again
KINDS = (*TEXTS, *BINARIES, *PICKLES, *CACHES)


@pytest.fixture(autouse=True)
def _small_and_quiet(monkeypatch: pytest.MonkeyPatch):
    """Models are refused at a thousandth of the usual size, so that those that are not are quick to build."""
    monkeypatch.setattr(budget, "MAX_PARAMETERS", 2_000_000)
    monkeypatch.setattr(budget, "MAX_VALUES", 1 << 22)
    monkeypatch.setattr(budget, "MAX_PRODUCTS", 200_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inputs(kind: Kind) -> st.SearchStrategy[bytes]:
    """Mostly what comes of something valid, and now and then any bytes at all."""
    made = st.integers(0, 2**64 - 1).map(lambda seed: kind.make(Random(seed)))
    small = st.randoms(use_true_random=False).map(kind.make)  # the choices themselves are Hypothesis's
    return st.one_of(made, made, made, small, st.binary(max_size=200))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_thousand_inputs(kind: Kind, tmp_path: Path) -> None:
    counts: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=INPUTS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(kind))
    def run(content: bytes) -> None:
        counts["tried"] += 1
        counts["taken" if try_input(kind, content, tmp_path) == "" else "refused"] += 1

    try_input(kind, kind.make(Random(0)), tmp_path)  # whatever is imported late is imported now
    with bounded_memory():
        run()
    assert counts["tried"] >= INPUTS and counts["taken"] + counts["refused"] == counts["tried"]
    assert len(counts) == 3 or kind.name in ONE_WAY, f"only one thing ever happens: {counts}"


@pytest.mark.timeout(300)
def test_no_place_that_reads_files_runs_what_is_in_them(tmp_path: Path) -> None:
    """Every attack, in every protocol and wrapping, given to everything that reads a file."""
    tried = 0
    for kind in KINDS:
        for name, program in evil_programs():
            header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
            array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + program
            for content in (program, zipped_program(program), array):
                try:
                    try_input(kind, content, tmp_path)
                except Broken as error:
                    pytest.fail(f"{kind.name}, {name}: {error}")
                tried += 1
    assert tried >= INPUTS


# ---- the guard itself
def test_the_guard_sees_what_it_is_there_for(tmp_path: Path) -> None:
    def runs(_: Path) -> None:
        eval("__import__('os').getcwd()")

    def writes(_: Path) -> None:
        (tmp_path.parent / "elsewhere").write_bytes(b"")

    def unpickles(path: Path) -> None:
        torch.load(path, weights_only=False)

    def says_nothing(_: Path) -> None:
        raise ValueError("two\nlines")

    torch.save(torch.nn.ReLU(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for use, seen in ((runs, "exec"), (writes, "elsewhere"), (unpickles, "pickle.find_class"), (says_nothing, "two")):
        with pytest.raises(Broken, match=seen):
            try_input(Kind("x", "a.pt", lambda rng: b"", use), content, tmp_path)
    with watched(tmp_path):
        (tmp_path / "here").write_bytes(b"")


def test_the_guard_sees_memory() -> None:
    with pytest.raises(Broken, match="MiB of memory"), bounded_memory(8 << 30):
        torch.ones(400_000_000)  # 1.6 GB, touched
