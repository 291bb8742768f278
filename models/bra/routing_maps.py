"""Where layers look when a model runs: routing attention seen from outside, its results untouched."""

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

    Names follow those of drawn feature maps: `stage20`, `stage4.m.0.attn` inside of a block, and in an ensemble
    `weights2.stage20`.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, BiLevelRoutingAttention):
            name = path or "attention"
            if match := re.fullmatch(r"(?:(\d+)\.)?model\.(\d.*)", path):
                member, stage = match.groups()
                name = f"stage{stage}" if member is None else f"weights{int(member) + 1}.stage{stage}"
            found[name] = module
    return found


@contextmanager
def record_routes(model: nn.Module) -> Iterator[list[RoutingMap]]:
    """Collect the routes of every routing attention layer while the block runs `model` on images (B, C, H, W).

    The list fills in the order in which layers run. Of each layer the first pass counts, and in it the first image:
    with test-time augmentation that is the image as it is. Arrays are on the CPU in float32 whatever the model is in.
    """
    maps: list[RoutingMap] = []
    image = [0, 0]  # height, width
    cells: dict[str, tuple[int, int, float, float]] = {}  # rows, cols, height and width of a region in pixels

    def see_image(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        image[:] = given[0].shape[-2:]

    def see_map(name: str, layer: BiLevelRoutingAttention, given: tuple[Tensor, ...]) -> None:
        height, width = given[0].shape[-2:]
        grid = layer.region_grid(height, width)
        cells[name] = (grid.rows, grid.cols, grid.height * image[0] / height, grid.width * image[1] / width)

    def see_routes(name: str, router: nn.Module, given: Any, chosen: tuple[Tensor, Tensor]) -> None:
        weight, index = chosen
        if len(index) and name not in (one.name for one in maps):
            arrays = index[0].detach().cpu().numpy(), weight[0].detach().float().cpu().numpy()
            maps.append(RoutingMap(name, *cells[name], *arrays))

    handles = [model.register_forward_pre_hook(see_image)]
    for name, layer in routing_layers(model).items():
        handles.append(layer.register_forward_pre_hook(partial(see_map, name)))
        handles.append(layer.router.register_forward_hook(partial(see_routes, name)))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
