"""Write down where the regions look while a model runs: routing attention seen from outside, its results untouched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.bra.attention import BiLevelRoutingAttention
from utils.routes.geometry import RoutingMap


def routing_layers(model: nn.Module) -> dict[str, BiLevelRoutingAttention]:
    """The routing attention layers of a model by name.

    Names follow those of feature map pictures: `stage20`, `stage4.m.0.attn` inside of a block, and in an ensemble
    `weights2.stage20`.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, BiLevelRoutingAttention)}
    return {_name_of(path): layer for path, layer in found.items()}


@contextmanager
def record_routes(model: nn.Module) -> Iterator[list[RoutingMap]]:
    """Collect the routes of every routing attention layer while the block runs `model` on pictures (B, C, H, W).

    The list fills in the order in which layers run. Of each layer the first pass counts, and in it the first picture:
    with test-time augmentation that is the picture as it is. Arrays are on the CPU in float32 whatever the model is in.
    """
    recorder = _Recorder()
    handles = [model.register_forward_pre_hook(recorder.see_picture)]
    for name, layer in routing_layers(model).items():
        handles.append(layer.register_forward_pre_hook(partial(recorder.see_map, name)))
        handles.append(layer.router.register_forward_hook(partial(recorder.see_routes, name)))
    try:
        yield recorder.maps
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """Hooks, and what they saw."""

    def __init__(self) -> None:
        self.maps: list[RoutingMap] = []
        self.picture = (0, 0)  # height, width
        self.grids: dict[str, tuple[int, int, float, float]] = {}  # rows, cols, height and width of a region in pixels
        self.done: set[str] = set()

    def see_picture(self, model: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Before the model: how large its input is."""
        height, width = given[0].shape[-2:]
        self.picture = (height, width)

    def see_map(self, name: str, layer: BiLevelRoutingAttention, given: tuple[Tensor, ...]) -> None:
        """Before a layer: how its map is cut, and what that is in the picture."""
        height, width = given[0].shape[-2:]
        grid = layer.region_grid(height, width)
        tall, wide = grid.height * self.picture[0] / height, grid.width * self.picture[1] / width
        self.grids[name] = (grid.rows, grid.cols, tall, wide)

    def see_routes(self, name: str, router: nn.Module, given: Any, chosen: tuple[Tensor, Tensor]) -> None:
        """After a layer's router: what it chose."""
        weight, index = chosen
        if name in self.done or not len(index):
            return
        self.done.add(name)
        arrays = index[0].detach().cpu().numpy(), weight[0].detach().float().cpu().numpy()
        self.maps.append(RoutingMap(name, *self.grids[name], *arrays))


def _name_of(path: str) -> str:
    """The name for a module's path in a detector, an ensemble of them, or anything else."""
    match = re.fullmatch(r"(?:(\d+)\.)?model\.(\d.*)", path)
    if match is None:
        return path or "attention"
    member, stage = match.groups()
    return f"stage{stage}" if member is None else f"weights{int(member) + 1}.stage{stage}"
