"""Trained models from files, alone or as an ensemble, and YOLOv5's rarer blocks under the path they had there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.description.build import BLOCKS
from models.extra_blocks import CrossConv, MixConv2d, Sum
from models.yolo import Model
from utils.base.files import printable
from utils.base.paths import usable_size
from utils.checkpoints.checkpoint import load_checkpoint
from utils.prepare.named_weights import named_weights

__all__ = ["CrossConv", "Ensemble", "MixConv2d", "Sum", "attempt_load", "load_model"]

ACTIVATIONS = ("GELU", "Hardswish", "Identity", "Mish", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Tanh")  # without settings


class Ensemble(nn.ModuleList):
    """Several detectors of the same classes as one, whose predictions lie side by side for NMS to merge.

    `names`, `nc` and `yaml` are those of the last member, `imgsz` is that of the first (0: unknown), `stride` those of
    the member with the largest one.
    """

    def __init__(self, members: Iterable[Model] = ()) -> None:
        models = list(members)
        super().__init__(models)
        if models:
            self.names, self.nc, self.yaml = models[-1].names, models[-1].nc, models[-1].yaml
            self.imgsz = models[0].imgsz
            self.stride = max((model.stride for model in models), key=lambda stride: float(stride.max()))

    def forward(
        self, x: Tensor, augment: bool = False, profile: bool = False, visualize: Any = False
    ) -> tuple[Tensor, None]:
        """(B, 3, H, W) -> ((B, sum of the members' M, 5 + classes), None), in evaluation."""
        return torch.cat([member(x, augment, profile, visualize)[0] for member in self], 1), None


def attempt_load(
    weights: str | Path | Sequence[str | Path], map_location: torch.device | str | None = None, inplace: bool = True,
    fuse: bool = True, device: torch.device | str | None = None,
) -> Model | Ensemble:  # fmt: skip
    """The trained model of a checkpoint, ours or YOLOv5 6.1's, in float32 and evaluation mode.

    Several files make an ensemble. Each may be a known name (`utils.prepare.named_weights`). `map_location`
    and `device` mean the same. Raises ValueError for files that cannot be used, or not together.
    """
    files = [weights] if isinstance(weights, (str, Path)) else list(weights)
    if not files:
        raise ValueError("no weights given; name at least one .pt file")
    members = [_load_one(named_weights(file), inplace, fuse).to(device or map_location or "cpu") for file in files]
    if len(members) == 1:
        return members[0]
    for given, member in zip(files, members, strict=True):
        if member.names != members[-1].names:
            raise ValueError(f"{given} and {files[-1]} know different classes; an ensemble needs the same")
    return Ensemble(members).eval()


def _load_one(file: Path, inplace: bool, fuse: bool) -> Model:
    content = load_checkpoint(file, [f"models.common.{name}" for name in BLOCKS])
    try:
        model = load_model(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for module in model.modules():  # activations may overwrite their input, or not
        if isinstance(getattr(module, "inplace", None), bool):
            vars(module)["inplace"] = inplace
    return (model.fuse() if fuse else model).eval()


def load_model(content: Mapping[str, Any]) -> Model:
    """Build the model in what `load_checkpoint` returned: the average if there is one, else the model itself.

    It is built afresh from its description and given the stored numbers, in float32. Raises ValueError when there is no
    model or when description and numbers do not belong together.
    """
    stored = _checked(content.get("ema") or content.get("model"))
    model = Model(stored["yaml"], verbose=False)
    _match_classes(model, stored.get("classes", {}))
    _load_state(model, stored["state_dict"])
    names = stored.get("names") or model.names
    model.names = [printable(str(name)) for name in (names.values() if isinstance(names, Mapping) else names)]
    if len(model.names) != model.nc:
        raise ValueError(f"has {len(model.names)} names for {model.nc} classes")
    model.hyp = dict(stored.get("hyp") or {})
    options = content.get("options")  # had the image size before checkpoints did
    early = options.get("imgsz") if isinstance(options, Mapping) else 0
    model.imgsz = usable_size(content.get("imgsz")) or usable_size(early)
    return model


def _checked(stored: Any) -> Mapping[str, Any]:
    """The stored model itself; ValueError for what none can be built from."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("yaml"), Mapping) or "state_dict" not in stored:
        raise ValueError("holds no model description; expected a checkpoint of this project or of YOLOv5 6.1")
    kinds = {"state_dict": Mapping, "names": list | tuple | Mapping | None, "hyp": Mapping | None}
    for key, kind in kinds.items():
        if not isinstance(stored.get(key), kind):
            raise ValueError(f"its {key} is of type {type(stored[key]).__name__}; the file is damaged or no detector")
    if not all(isinstance(key, str) for key in stored["state_dict"]):
        raise ValueError("its state_dict has keys that are no text; the file is damaged or no detector")
    return stored


def _load_state(model: Model, state: Mapping[str, Tensor]) -> None:
    """Give the model these numbers, fusing it first if that is how they were saved."""
    odd = model.state_dict().keys() ^ state.keys()
    if odd:
        model.fuse()
        odd = min(odd, model.state_dict().keys() ^ state.keys(), key=len)
    if odd:
        example = printable(min(odd))[:200]
        raise ValueError(f"its weights do not fit its description: {len(odd)} entries differ, such as {example}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = printable(str(error).splitlines()[1].strip())
        raise ValueError(f"its weights do not fit its description: {reason}") from error


def _match_classes(model: Model, classes: Mapping[str, str]) -> None:
    """Give the model the activations that a pickled one had (they are in no description); refuse other differences."""
    for name, module in list(model.named_modules()):
        there, here = classes.get(name, "").rpartition(".")[2], type(module).__name__
        is_activation, is_row = name.endswith(".act"), name.count(".") == 1
        if there in ("", here) or not (is_activation or is_row):
            continue
        if is_row or there not in ACTIVATIONS:
            raise ValueError(f"its {name} is a {there}, for which this project would use {here}")
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, getattr(nn, there)())
