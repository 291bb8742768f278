"""Checkpoints: damaged, with other instructions in their pickles, with other sizes; and pickles that would run code."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import pickletools
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from models.experimental import attempt_load
from models.yolo import Model
from tests.fuzz.guard import Kind
from tests.fuzz.mutate import NUMBERS, WORDS, damaged
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 10]],
    "backbone": [[-1, 1, "Conv", [8, 3, 8]]],
    "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
}


class Call:
    """Pickles as a call of any function: what it is unpickled to, it has run."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple:
        return self.made


class Build:
    """Pickles as an object of a class, with this state."""

    def __init__(self, kind: type, state: Any) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple:
        return object.__new__, (self.kind,), self.state


def attacks() -> dict[str, Any]:
    """Objects that run `true`, or worse, when they are unpickled."""
    system = Call(os.system, "true")
    chain = Call(getattr, Call(builtins.__import__, "os"), "system")
    return {
        "os.system": system,
        "eval": Call(eval, "__import__('os').system('true')"),
        "exec": Call(exec, "import os; os.system('true')"),
        "getattr": chain,
        "import": Call(builtins.__import__, "antigravity"),
        "popen": Call(subprocess.Popen, ["true"]),
        "deep": {"model": [{"a": ({"b": [system]},)}]},
        "open": Call(open, "/tmp/canary-of-a-fuzz-test", "w"),
        "loads": Call(pickle.loads, pickle.dumps(system)),
        "state": Build(nn.Conv2d, {"_parameters": {"weight": system}}),
        "array": np.array([system], dtype=object),
        "lambda": Call(map, chain, ["true"]),
    }


def evil_programs() -> Iterator[tuple[str, bytes]]:
    """Every attack in every protocol of pickle, and written by hand."""
    for name, attack in attacks().items():
        for protocol in range(6):
            yield f"{name} {protocol}", pickle.dumps(attack, protocol)
    yield "by hand", b"cos\nsystem\n(S'true'\ntR."
    yield "instance", b"(S'true'\nios\nsystem\n."
    yield "in a mapping", b"\x80\x02}X\x05\x00\x00\x00modelcos\nsystem\nX\x04\x00\x00\x00true\x85Rs."
    yield "as a builtin", b"\x80\x02c__builtin__\neval\nX\x05\x00\x00\x001 + 1\x85R."
    yield "through torch", b"\x80\x02ctorch.serialization\nos.system\nX\x04\x00\x00\x00true\x85R."
    yield "as a build", b"\x80\x02cmodels.common\nConv\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb."


def zipped_program(program: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A pickle in PyTorch's archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/version", "3\n")
        for key, numbers in (storages or {}).items():
            archive.writestr(f"x/data/{key}", numbers)
    return content.getvalue()


def unzipped(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        names = [name for name in archive.namelist() if name.startswith(f"{folder}/data/")]
        return archive.read(f"{folder}/data.pkl"), {name.rpartition("/")[2]: archive.read(name) for name in names}


@functools.cache
def _seeds(legacy: bool) -> tuple[bytes, ...]:
    """A checkpoint of ours, a pickled model as YOLOv5 6.1 writes them, and a bag of everything that is allowed."""
    described = describe_model(Model(TINY, verbose=False))
    pickled = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).half()
    pickled.yaml, pickled.nc, pickled.names, pickled.stride = TINY, 2, ["a", "b"], torch.tensor([8.0])
    bag = {1: torch.ones(2, 3), "b": (1, 2.5, None, True, b"x", {"c"}), "n": np.arange(3.0), "d": torch.float16}
    contents = ({"model": described, "epoch": 3}, {"model": pickled, "best_fitness": np.array([0.5])}, bag)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            file = Path(folder) / "a.pt"
            if number == 0 and not legacy:
                save_checkpoint(file, content)
            else:
                torch.save(content, file, _use_new_zipfile_serialization=not legacy)
            found.append(file.read_bytes())
    return tuple(found)


def _instructions(program: bytes) -> list[bytes]:
    """The program, cut into instructions."""
    places = [place for _, _, place in pickletools.genops(program)]
    return [program[start:end] for start, end in zip(places, [*places[1:], len(program)], strict=True)]


_NAMES = (
    *("_codecs encode", "builtins set", "builtins complex", "torch device", "torch.storage UntypedStorage"),
    *("torch FloatStorage", "torch QInt32Storage", "torch._utils _rebuild_parameter_with_state"),
    *("os system", "builtins eval", "__builtin__ bytearray", "torch FloatTensor", "torch Tensor", "torch Size"),
    *("torch._utils _rebuild_tensor_v2", "torch._tensor _rebuild_from_type_v2", "collections OrderedDict"),
    *("torch._utils _rebuild_sparse_tensor", "models.common Conv", "numpy dtype"),
)
_STEPS = (
    *(b"R", b"b", b"\x81", b"Q", b"0", b"2", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b".", b"o"),
    *(
        b"i",
        b"h\0",
        b"h\1",
        b"h\5",
        b"q\0",
        b"q\1",
        b"}",
        b"]",
        b")",
        b"N",
        b"\x88",
        b"\x8f",
        b"P1\n",
        b"\x93",
        b"\x95",
    ),
)


def _evil_instruction(rng: Random) -> bytes:
    """Something that has no place there, or a number that is too large."""
    number = rng.choice(NUMBERS)
    short, long = struct.pack("<I", number & 0xFFFFFFFF), struct.pack("<Q", number & (2**64 - 1))
    numbers = (b"J" + short, b"\x8a\x08" + long, b"\x8a\xff" + b"\x7f" * 255, b"X" + short + b"text")
    names = (b"c%s\n" % name.replace(" ", "\n").encode() for name in _NAMES)
    word = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return rng.choice((*names, *_STEPS, *numbers, b"X\x04\x00\x00\x00text", word))


def _other_program(rng: Random, program: bytes) -> bytes:
    """One to four instructions replaced, dropped, repeated or moved; sometimes a tuple that doubles many times over."""
    parts = _instructions(program)
    for _ in range(rng.randrange(1, 5)):
        place, change = rng.randrange(len(parts)), rng.randrange(6)
        if change <= 1 or len(parts) == 1:
            parts[place] = _evil_instruction(rng)
        elif change == 2:
            parts.insert(place, _evil_instruction(rng))
        elif change == 3:
            del parts[place]
        elif change == 4:
            other = rng.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        else:
            parts[place:place] = parts[place : place + rng.choice((1, 3, 12))] * rng.choice((1, 2, 50))
    if rng.randrange(12) == 0:  # tuples of tuples, each twice in the next
        levels = b"".join(b"q%ch%c\x86" % (n, n) for n in range(200, 200 + rng.choice((5, 20, 50))))
        bomb = b")" + levels
        parts.insert(rng.randrange(len(parts)) + 1, bomb + rng.choice((b"", b"Ns", b"0", b"]s")))
    return b"".join(parts)


def _odd_archive(rng: Random, content: bytes) -> bytes:
    """An archive that two readers may take for two: with another one before it, with room in it, or other headers."""
    evil = zipped_program(rng.choice(tuple(evil_programs()))[1])
    change = rng.randrange(4)
    if change == 0:
        return evil + content
    if change == 1:
        return evil[: evil.rfind(b"PK\5\6")] + content
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08")
    place = rng.choice([content.rfind(mark) for mark in marks if mark in content])
    if change == 2:
        return content[:place] + rng.choice((evil, b"room", bytes(20))) + content[place:]
    place += rng.randrange(4, 48)
    return content[:place] + struct.pack("<H", rng.choice(NUMBERS) & 0xFFFF) + content[place + 2 :]


def _make_checkpoint(rng: Random) -> bytes:
    """Some are damaged as a whole, some are odd archives, half are sound archives of other programs and numbers."""
    content = rng.choice(_seeds(False))
    change = rng.randrange(6)
    if change in (0, 5):
        return _odd_archive(rng, content) if change else damaged(rng, content)
    program, storages = unzipped(content)
    if change == 1 and storages:
        key = rng.choice(sorted(storages))
        storages[key] = damaged(rng, storages[key])
        return zipped_program(program, storages)
    if change == 2:
        return zipped_program(damaged(rng, program), storages)
    return zipped_program(_other_program(rng, program), storages)


def _make_legacy(rng: Random) -> bytes:
    """Five pickles and the numbers behind each other."""
    content = rng.choice(_seeds(True))
    if rng.randrange(3) == 0:
        return damaged(rng, content)
    stream, programs = io.BytesIO(content), []
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        programs.append(content[start : stream.tell()])
    chosen = rng.choice((0, 1, 2, 3, 3, 3, 4))
    programs[chosen] = _other_program(rng, programs[chosen])
    return b"".join(programs) + content[stream.tell() :]


def _make_evil(rng: Random) -> bytes:
    """A pickle that runs something, alone or in an archive, changed a little or not."""
    program = rng.choice(tuple(evil_programs()))[1]
    program = rng.choice((lambda _, whole: whole, _other_program, damaged))(rng, program)
    return rng.choice((program, zipped_program(program), pickle.dumps(0x1950A86A20F9469CFC6C, 2) + program))


PICKLES = (
    Kind("checkpoint", "input.pt", _make_checkpoint, attempt_load),
    Kind("old checkpoint", "input.pt", _make_legacy, attempt_load),
    Kind("malicious pickle", "input.pt", _make_evil, attempt_load),
)
