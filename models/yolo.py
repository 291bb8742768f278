"""The detector: a model description becomes a network that ends in a `Detect` head."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.common import Conv
from models.description import build
from models.description.budget import CostGuard
from models.description.build import build_layers, register_block, resolve_cfg
from utils.base.log import LOGGER
from utils.base.networks import Cost, ModelSummary, cost_of, initialize_weights, model_info, scale_img

__all__ = ["Detect", "DetectionModel", "Model", "parse_model", "resolve_cfg"]

PROBE = 256  # side in pixels of the input that finds the strides, a multiple of all strides in use
TTA_VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # test-time augmentation: scale, mirrored left to right
See = Callable[[Any, Any, Any], None]  # called with a layer, its input and its output


@register_block(takes="nc anchors ch")
class Detect(nn.Module):
    """Predict boxes at every cell of several feature maps.

    Args:
        nc: number of classes.
        anchors: for every level its anchors' widths and heights in pixels, [w, h, w, h, ...].
        ch: channels of the levels' feature maps.
        inplace: kept for YOLOv5's signature; nothing is ever written in place.

    `stride` (pixels per cell of each level) is set by the model that owns the head, which also brings `anchors` from
    pixels to cells.
    """

    anchors: Tensor
    stride: Any = None  # a tensor, once it is known

    def __init__(
        self, nc: int = 80, anchors: Sequence[Sequence[float]] = (), ch: Sequence[int] = (), inplace: bool = True
    ) -> None:
        super().__init__()
        self.nc = nc
        self.no = nc + 5  # outputs per anchor: box, objectness, classes
        self.nl = len(anchors)
        self.na = len(anchors[0]) // 2
        self.register_buffer("anchors", torch.tensor(anchors).float().view(self.nl, -1, 2))
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in ch)
        self.inplace = inplace

    def forward(self, x: Sequence[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Levels (B, C, rows, cols) -> raw maps (B, na, rows, cols, nc + 5).

        In evaluation also, before them, all decoded predictions (B, na*rows*cols + ..., nc + 5): centre x, y, width,
        height in pixels of the input, objectness and classes in 0..1.
        """
        raw = []
        for level, conv in zip(x, self.m, strict=True):
            grid = conv(level)
            grid = grid.view(grid.shape[0], self.na, self.no, *grid.shape[2:])
            raw.append(grid.permute(0, 1, 3, 4, 2).contiguous())
        if self.training:
            return raw
        return torch.cat([self.decode(level, i).flatten(1, 3) for i, level in enumerate(raw)], 1), raw

    def decode(self, raw: Tensor, level: int) -> Tensor:
        """Raw map -> boxes and scores, at least in single precision: half has no pixel fractions beyond 1024."""
        rows, cols = raw.shape[2:4]
        device, dtype = raw.device, torch.promote_types(raw.dtype, torch.float32)
        stride, anchors = self.stride[level].to(device, dtype), self.anchors[level].to(device, dtype)
        sides = (torch.arange(side, device=device, dtype=dtype) for side in (rows, cols))
        y, x = torch.meshgrid(*sides, indexing="ij")
        centre, size, scores = raw.to(dtype).sigmoid().split((2, 2, self.nc + 1), -1)
        centre = (2 * centre - 0.5 + torch.stack((x, y), -1)) * stride
        size = 2 * size
        size = size * size * (anchors * stride).view(1, self.na, 1, 1, 2)
        return torch.cat((centre, size, scores), -1)

    def set_stride(self, stride: Tensor) -> None:
        """Set pixels per cell of each level and bring the anchors from pixels to cells.

        Anchors that run from large to small while the strides run from small to large are turned around first.
        """
        area = self.anchors.prod(-1).mean(-1)
        if (area[-1] - area[0]) * (stride[-1] - stride[0]) < 0:
            LOGGER.warning("anchors are in the reverse order of the levels' strides; turning them around")
            self.anchors.copy_(self.anchors.flip(0))
        self.stride = stride
        self.anchors /= stride.view(-1, 1, 1)

    def initialize_biases(self) -> None:
        """Start from what is rare (arXiv:1708.02002, section 3.3): 8 objects per 640 pixel image, classes alike."""
        with torch.no_grad():
            conv: Any
            for conv, stride in zip(self.m, self.stride, strict=True):
                bias = conv.bias.view(self.na, -1)
                bias[:, 4] += math.log(8 / (640 / stride.item()) ** 2)
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.999999))

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Detect:
        """Let the strides move and change type together with parameters and buffers."""
        super()._apply(fn, *args, **kwargs)
        if self.stride is not None:
            self.stride = fn(self.stride)
        return self


class Model(nn.Module):
    """A network built from a description.

    Args:
        cfg: the description as a mapping, or the name of a YAML file (see `resolve_cfg`).
        ch: input channels.
        nc: number of classes, in place of the description's.
        anchors: anchors per level (their sizes left to autoanchor) or the anchors themselves in pixels, in place of
            the description's.
        verbose: log the table of layers and the summary.

    `yaml` is the description as used, `save` the layers whose output a later one needs, `stride` the pixels per cell
    of each level, `layer_maps` channels and pixels per cell of each layer's output (None where it is no map), `names`
    the classes, `hyp` what training attaches, `imgsz` the side in pixels of the images it was trained on (0: unknown).
    Raises ValueError for a description that cannot be built.
    """

    imgsz = 0
    class_weights: Tensor  # training attaches them

    def __init__(
        self, cfg: str | Path | Mapping[str, Any] = "yolov5s.yaml", ch: int = 3, nc: int | None = None,
        anchors: float | Sequence[Sequence[float]] | None = None, verbose: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.yaml, file = resolve_cfg(cfg)
        if file is not None:
            self.yaml_file = file.name
        self.yaml["ch"] = ch = self.yaml.get("ch", ch)
        anchors = round(anchors) if isinstance(anchors, (int, float)) else anchors
        for key, value in (("nc", nc), ("anchors", anchors)):
            if value not in (None, self.yaml.get(key)):
                LOGGER.info(f"Overriding model.yaml {key}={self.yaml.get(key)} with {key}={value}")
                self.yaml[key] = value
        self.inplace: bool = self.yaml.get("inplace", True)
        self.hyp: dict[str, Any] = {}
        try:
            self._assemble(ch, verbose)
        except ValueError as error:
            raise ValueError(f"{cfg if file else 'model description'}: {error}") from error
        self.yaml = {key: value for key, value in self.yaml.items() if key in build.KNOWN}
        self.nc: int = self.yaml["nc"]
        self.names = [str(i) for i in range(self.nc)]
        if verbose and LOGGER.isEnabledFor(logging.INFO):
            self.info()

    def _assemble(self, ch: int, verbose: bool) -> None:
        """Build the layers and give the head its strides, anchors in cells and first biases."""
        layers, self.save, widths = build_layers(self.yaml, ch, verbose)
        self.model = nn.Sequential(*layers)
        self.stride = torch.tensor([32.0])
        self.layer_maps: list[tuple[int, float] | None] = [None] * len(layers)
        initialize_weights(self)
        head = layers[-1]
        if isinstance(head, Detect):
            head.inplace = self.inplace
            self._probe(head, torch.zeros(1, ch, PROBE, PROBE), widths)
            head.initialize_biases()
            self.stride = head.stride

    def _probe(self, head: Detect, blank: Tensor, widths: Sequence[int | None]) -> None:
        """Find what strides layers have from a blank image; only the head trains meanwhile, so no state changes.

        Raises ValueError for a layer that cannot take what it is given or gives other channels than it declares.
        """
        self.eval()
        head.training, done, wrong = True, -1, ""

        def _look(layer: Any, given: Any, output: Any) -> None:
            nonlocal done, wrong
            done = layer.i
            if isinstance(output, Tensor) and output.ndim == 4:
                self.layer_maps[done] = (output.shape[1], PROBE / output.shape[2])
                if not wrong and widths[done] not in (None, output.shape[1]):
                    wrong = (
                        f"layer {done} ({layer.type}) gives {output.shape[1]} channels and declares {widths[done]}; "
                        "correct `takes` or `channels` of its register_block (docs/extending.md)"
                    )

        try:
            with torch.no_grad(), CostGuard():
                levels = self._forward_once(blank, _look)
        except Exception as error:  # a block may be anybody's, and raise anything
            wrong = wrong or f"layer {done + 1} cannot take what it is given ({build.in_short(error)})"
            raise ValueError(wrong) from error
        if wrong:
            raise ValueError(wrong)
        self.train()
        head.set_stride(torch.tensor([PROBE / level.shape[2] for level in levels]))

    def forward(
        self, x: Tensor, augment: bool = False, profile: bool = False, visualize: str | Path | bool = False
    ) -> Any:
        """Images (B, ch, H, W) in 0..1 -> what the head returns; H and W multiples of the largest stride.

        `augment` merges three views in evaluation and returns (predictions, None); `profile` logs what each layer
        costs; `visualize` names a folder for drawings of every layer's output.
        """
        if profile:
            self.profile(x)
        if visualize:
            from utils.drawing.batches import feature_visualization  # brings matplotlib, which only this needs

            def draw(layer: Any, given: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    feature_visualization(output, layer.type, layer.i, save_dir=Path(str(visualize)))

            self._forward_once(x, draw)
        return self._forward_augment(x) if augment else self._forward_once(x)

    def _forward_once(self, x: Any, see: See | None = None) -> Any:
        """One pass; `see` looks at every layer on the way."""
        outputs: list[Any] = []
        layer: Any
        for layer in self.model:
            if isinstance(layer.f, int):
                given = x if layer.f == -1 else outputs[layer.f]
            else:
                given = [x if source == -1 else outputs[source] for source in layer.f]
            x = layer(given)
            outputs.append(x if layer.i in self.save else None)
            if see is not None:
                see(layer, given, x)
        return x

    def _forward_augment(self, x: Tensor) -> tuple[Tensor, None]:
        """Predictions of three views of the images, brought back to their pixels."""
        views = []
        for scale, mirrored in TTA_VIEWS:
            view = scale_img(x.flip(3) if mirrored else x, scale, gs=int(self.stride.max()))
            found, raw = self._forward_once(view)
            centre_x, rest, scores = found.split((1, 3, found.shape[-1] - 4), -1)
            centre_x, rest = centre_x / scale, rest / scale
            centre_x = x.shape[3] - centre_x if mirrored else centre_x
            levels = torch.cat((centre_x, rest, scores), -1).split([level[0, ..., 0].numel() for level in raw], 1)
            views.append(list(levels))
        del views[0][int(self.stride.argmax())]  # the largest view is not asked for the largest objects
        del views[-1][int(self.stride.argmin())]  # nor the smallest view for the smallest
        return torch.cat([level for levels in views for level in levels], 1), None

    def profile(self, x: Tensor, n: int = 10) -> list[Cost]:
        """Run every layer forward `n` times on this input; log and return what each costs."""
        LOGGER.info(f"{'time (ms)':>10} {'GFLOPs':>10} {'parameters':>12}  layer")
        costs: list[Cost] = []

        def measure(layer: Any, given: Any, output: Any) -> None:
            cost = cost_of(layer, given, n)
            costs.append(cost)
            row = f"{cost.forward_ms:>10.2f} {cost.gflops:>10.3f} {cost.parameters:>12,}"
            LOGGER.info(f"{row}  {layer.i} {layer.type}")

        with torch.no_grad():
            self._forward_once(x, measure)
        LOGGER.info(f"{sum(cost.forward_ms for cost in costs):>10.2f} {sum(c.gflops for c in costs):>10.3f}  in all")
        return costs

    def fuse(self) -> Model:
        """Fold every batch norm that follows a convolution into it; for inference only."""
        LOGGER.info("Fusing layers...")
        for block in self.modules():
            if isinstance(block, Conv):
                block.fuse()
        return self

    def info(self, verbose: bool = False, img_size: int | Sequence[int] = 640) -> ModelSummary:
        """Log and return the size of the model and its operations on one image of `img_size`."""
        summary = model_info(self, verbose, img_size)
        LOGGER.info(f"Model Summary: {summary}")
        return summary

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Model:
        super()._apply(fn, *args, **kwargs)
        head = self.model[-1]
        self.stride = head.stride if isinstance(head, Detect) else fn(self.stride)
        return self


DetectionModel = Model  # the name later releases use


def parse_model(d: Mapping[str, Any], ch: list[int], verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Build the layers of a description for `ch[-1]` input channels, by the table of `models.description.build`.

    Returns them and the sorted indices of those whose output a later layer needs. Raises ValueError naming the layer
    and the remedy when the description cannot be built.
    """
    layers, needed, _ = build_layers(d, ch[-1], verbose)
    return nn.Sequential(*layers), needed
