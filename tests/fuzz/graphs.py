"""Files of torch.export: damaged, with other words in their graphs, other parts, and pickles where none belong."""

from __future__ import annotations

import copy
import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from models.backends import DetectMultiBackend
from tests.fuzz.guard import Kind
from tests.fuzz.mutate import WORDS, damaged
from tests.fuzz.pickles import evil_programs, zipped_program

GRAPH = "models/model.json"
TARGETS = (
    *("torch.os.system", "torch.hub.load", "torch.ops.aten.from_file.default", "torch.ops.aten.add.Tensor", "math.exp"),
    *("_operator.attrgetter", "_operator.mul", "torch.ops.load_library", "torch.ops.aten.add.__init__", "torch.x"),
    *("torch.ops.higher_order.cond", "torch.ops.higher_order.wrap_with_autocast", "torch.ops.aten.topk.default"),
)


class _Small(nn.Module):
    """A few operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = self.conv(images).flatten(2).split([10, 26], -1)
        return torch.cat((first.sigmoid(), second * images.shape[0]), -1)


@functools.cache
def _seed() -> tuple[bytes, dict[str, bytes]]:
    """The file, and its parts by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.pt2"
        torch.export.save(torch.export.export(_Small(), (torch.rand(1, 3, 8, 8),)), file)
        with zipfile.ZipFile(file) as archive:
            parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        return file.read_bytes(), parts


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container below a value with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _other_graph(rng: Random, content: bytes) -> bytes:
    """One to three texts, names of kinds, or whole branches are others; numbers stay, which may ask for any memory."""
    graph = json.loads(content)
    for _ in range(rng.randrange(1, 4)):
        holder, key = rng.choice([(h, k) for h, k in _places(graph) if not isinstance(h[k], (int, float))])
        old, change = holder[key], rng.randrange(4)
        if change == 0 or isinstance(old, str):
            holder[key] = rng.choice((*TARGETS, *WORDS, "images", "x = __import__('os').system('true')"))
        elif change == 1:
            holder[key] = copy.deepcopy(rng.choice([h[k] for h, k in _places(graph)]))
        elif isinstance(holder, dict):
            holder[rng.choice(("as_graph", "as_operator", "as_string", "as_tensor", "expr_str"))] = holder.pop(key)
        else:
            del holder[key]
    return json.dumps(graph).encode()


def _make_program(rng: Random) -> bytes:
    whole, parts = _seed()
    if rng.randrange(4) == 0:
        return damaged(rng, whole)
    parts = dict(parts)
    name = rng.choice((GRAPH, GRAPH, GRAPH, *parts))
    if name.endswith(".json") and rng.randrange(4):
        parts[name] = _other_graph(rng, parts[name])
    elif rng.randrange(2):
        parts[name] = damaged(rng, parts[name])
    else:
        program = rng.choice(tuple(evil_programs()))[1]
        parts[rng.choice((name, "data/constants/opaque_obj_0", "data/weights/model.pt"))] = zipped_program(program)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part, body in parts.items():
            archive.writestr(f"a/{part}", body)
    return content.getvalue()


def _use_program(path: Path) -> None:
    with torch.inference_mode():
        DetectMultiBackend(path)(torch.rand(1, 3, 8, 8))


GRAPHS = (Kind("program", "input.pt2", _make_program, _use_program),)
