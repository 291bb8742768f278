"""Trained models from files, alone or as an ensemble, and YOLOv5's rarer blocks under the path they had there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.extra_blocks import CrossConv, MixConv2d, Sum
from models.yolo import Model
from utils.base.files import printable
from utils.base.paths import find_weights, usable_size
from utils.checkpoints.checkpoint import load_checkpoint

__all__ = ["CrossConv", "Ensemble", "MixConv2d", "Sum", "attempt_load", "load_model"]

ACTIVATIONS = ("GELU", "Hardswish", "Identity", "Mish", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Tanh")  # without settings


class Ensemble(nn.ModuleList):
    """Several detectors of the same classes as one, whose predictions lie side by side for NMS to merge.

    `names` are the classes; `stride` are the strides of the member with the largest one.
    """

    def forward(
        self, x: Tensor, augment: bool = False, profile: bool = False, visualize: Any = False
    ) -> tuple[Tensor, None]:
        """(B, 3, H, W) -> ((B, sum of the members' M, 5 + classes), None), in evaluation."""
        return torch.cat([member(x, augment, profile, visualize)[0] for member in self], 1), None

    @property
    def names(self) -> list[str]:
        """The classes."""
        return self[-1].names

    @property
    def nc(self) -> int:
        """How many classes there are."""
        return self[-1].nc

    @property
    def imgsz(self) -> int:
        """Side in pixels of the images that the first member was trained on, 0 where it is not known."""
        return self[0].imgsz

    @property
    def yaml(self) -> dict[str, Any]:
        """Description of the last member."""
        return self[-1].yaml

    @property
    def stride(self) -> Tensor:
        """Pixels per cell of the member that sees the coarsest."""
        return max((member.stride for member in self), key=lambda stride: float(stride.max()))


def attempt_load(
    weights: str | Path | Sequence[str | Path],
    map_location: torch.device | str | None = None,
    inplace: bool = True,
    fuse: bool = True,
    device: torch.device | str | None = None,
) -> Model | Ensemble:
    """The trained model of a checkpoint, ours or YOLOv5 6.1's, in float32 and evaluation mode.

    Several files make an ensemble. Each is looked for as everywhere (`utils.base.paths.find_weights`). `map_location`
    and `device` mean the same. Raises ValueError for files that cannot be used, or not together.
    """
    files = [weights] if isinstance(weights, (str, Path)) else list(weights)
    if not files:
        raise ValueError("no weights given; name at least one .pt file")
    members = []
    for file in map(find_weights, files):
        content = load_checkpoint(file)
        try:
            model = load_model(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        set_inplace(model, inplace)
        model = model.fuse() if fuse else model
        members.append(model.to(device or map_location or "cpu").eval())
    if len(members) == 1:
        return members[0]
    for file, member in zip(files, members, strict=True):
        if member.names != members[-1].names:
            raise ValueError(f"{file} and {files[-1]} know different classes; an ensemble needs the same")
    return Ensemble(members).eval()


def set_inplace(model: Model, inplace: bool) -> None:
    """Let activations overwrite their input, or not."""
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = inplace


def load_model(content: Mapping[str, Any]) -> Model:
    """Build the model in what `load_checkpoint` returned: the average if there is one, else the model itself.

    It is built afresh from its description and given the stored numbers, in float32. Raises ValueError when there is no
    model or when description and numbers do not belong together.
    """
    stored = content.get("ema") or content.get("model")
    _check_stored(stored)
    model = Model(stored["yaml"], verbose=False)
    _match_classes(model, stored.get("classes", {}))
    _load_state(model, stored["state_dict"])
    names = stored.get("names") or model.names
    model.names = [printable(str(name)) for name in (names.values() if isinstance(names, Mapping) else names)]
    if len(model.names) != model.nc:
        raise ValueError(f"has {len(model.names)} names for {model.nc} classes")
    model.hyp = dict(stored.get("hyp") or {})
    model.imgsz = usable_size(content.get("imgsz")) or _size_asked_for(content.get("options"))
    return model


def _size_asked_for(options: Any) -> int:
    """The image size among a run's options, which checkpoints had before they said it themselves; 0 for none."""
    return usable_size(options.get("imgsz")) if isinstance(options, Mapping) else 0


def _check_stored(stored: Any) -> None:
    """Raise ValueError for what a model cannot be built from."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("yaml"), Mapping) or "state_dict" not in stored:
        raise ValueError("holds no model description; expected a checkpoint of this project or of YOLOv5 6.1")
    kinds = {"state_dict": Mapping, "names": (list, tuple, Mapping, type(None)), "hyp": (Mapping, type(None))}
    for key, kind in kinds.items():
        if not isinstance(stored.get(key), kind):
            found = type(stored[key]).__name__
            raise ValueError(f"its {key} is of type {found}; the file is damaged or no detector")
    if not all(isinstance(key, str) for key in stored["state_dict"]):
        raise ValueError("its state_dict has keys that are no text; the file is damaged or no detector")


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
