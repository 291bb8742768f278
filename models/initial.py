"""The network that a training run begins with, or goes on with."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

from models.biformer import pyramid_state
from models.bra.attention import BiLevelRoutingAttention
from models.experimental import attempt_load, load_model
from models.yolo import Detect, Model
from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.networks import moved, started_at_zero
from utils.base.paths import shown
from utils.checkpoints.checkpoint import load_checkpoint
from utils.prepare.named_weights import OPTIONS, weights_of_run
from utils.training.setup import Setup
from utils.training.train_options import DEFAULT_CFG
from utils.training.transfer import Transfer, match_names, report, transfer


def build_model(setup: Setup) -> Model:
    """Build the network from a YAML or a checkpoint's own, with whatever weights fit; or as it was left when resuming.

    Raise ValueError for weights or a description that training cannot begin with, and for layers that are not there.
    """
    opt = setup.opt
    model = load_model({"model": setup.resumed["model"]}) if setup.resumed else _begun(setup)
    frozen = frozen_layers(opt.freeze, model)
    for index, layer in enumerate(model.model):
        layer.requires_grad_(index not in frozen)
    model.names = setup.names
    # convolutions run faster on channels-last maps, 1.1x a whole step on a CPU (benchmarks/train_step.py)
    return moved(model, setup.device)


def frozen_layers(freeze: Sequence[str], model: Model) -> Collection[int]:
    """Return the layers that `--freeze` means: all up to the end of a named part, the first N, or several by number.

    Raise ValueError for a layer that is not there.
    """
    head = len(model.model) - 1
    ends = {"backbone": len(model.yaml["backbone"]), "neck": head}
    numbers = [ends.get(word, int(word) if re.fullmatch("[0-9]{1,6}", word) else -1) for word in freeze]
    if len(numbers) == 1 and 0 <= numbers[0] <= head + 1:
        return range(numbers[0])
    if len(numbers) > 1 and ends.keys().isdisjoint(freeze) and all(0 <= number <= head for number in numbers):
        return numbers
    known = f"give backbone, neck, how many of the {head + 1} layers, or the numbers (0 to {head}) of several"
    raise ValueError(f"--freeze {printable(' '.join(freeze))[:80]}: {known}")


def _begun(setup: Setup) -> Model:
    """Return a new network with what the weights asked for, if any, have for it; log what came from where."""
    opt = setup.opt
    donor = _donor(opt.weights) if opt.weights else None
    cfg = opt.cfg or (donor.yaml if isinstance(donor, Model) else DEFAULT_CFG)
    model = Model(cfg, ch=3, nc=len(setup.names), anchors=setup.hyp.anchors)
    if not isinstance(model.model[-1], Detect) or model.yaml["ch"] != 3:
        raise ValueError(f"{opt.cfg or opt.weights}: training needs 3 input channels and Detect as the last layer")
    if isinstance(donor, Model):
        setup.covered = _take_over(donor, model, setup)
    elif donor:
        _take_pyramid(donor, model)
        setup.covered = "backbone"
    return model


def _take_over(donor: Model, model: Model, setup: Setup) -> str:
    """Give the model what a trained detector has for it, log what came from where; return how far it reaches."""
    # anchors written in a description stay where they differ from the donor's: somebody chose them
    chosen = isinstance(model.yaml["anchors"], list) and model.yaml["anchors"] != donor.yaml["anchors"]
    found = transfer(donor, model, setup.names, keep_anchors=bool(setup.hyp.anchors) or chosen)
    model.load_state_dict(found.state, strict=False)
    taken = f"Transferred {len(found.state)}/{len(model.state_dict())} items from {setup.opt.weights}"
    LOGGER.info("\n  ".join([taken, *report(found, model)]))
    return _covered(found, model, len(match_names(donor.names, setup.names)), _hand_on(found, model))


def _hand_on(found: Transfer, model: Model) -> Collection[int]:
    """Let attention that replaces its input, where no weights for its projections came, begin by handing the input on;
    return the rows that do, and log them."""
    fresh = {}
    for index, row in enumerate(model.model):
        if isinstance(row, BiLevelRoutingAttention) and not row.residual:
            projections = {f"model.{index}.{key}" for key in row.state_dict() if key.startswith(("qkv.", "wo."))}
            if not projections <= found.state.keys():
                fresh[index] = row.start_as_identity()
    handing, hiding = ([index for index, done in fresh.items() if done is wanted] for wanted in (True, False))
    if handing:
        LOGGER.info(f"  layers {handing}: attention begins by handing on its input, nearly unchanged")
    if hiding:
        remedy = "give it side_dwconv: 3, or residual: true"
        LOGGER.warning(f"layers {hiding}: attention hides what the weights know until it is trained; {remedy}")
    return handing


def _donor(weights: str) -> Model | Path:
    """Return the detector of the weights asked for; of a classifier of BiFormer's, which is none, the file."""
    file = weights_of_run(weights)
    if file.suffix not in (".pt", ".safetensors", ".pth"):
        known = "expected .pt, .safetensors or BiFormer's .pth, as training begins with no other"
        raise ValueError(f"--weights {weights}: {known}")
    if file.suffix == ".pth":
        return file
    return cast("Model", attempt_load(file, fuse=False))  # one file is no ensemble


def _take_pyramid(file: Path, model: Model) -> None:
    """Give the model the pyramid of one of BiFormer's classifiers, as their authors publish them (.pth)."""
    content = load_checkpoint(file, OPTIONS)
    published = content.get("model")
    try:
        state = pyramid_state(published if isinstance(published, Mapping) else content, model)
    except ValueError as error:
        raise ValueError(f"--weights {printable(file)}: {error}") from error
    model.load_state_dict(state, strict=False)
    LOGGER.info(f"Transferred {len(state)}/{len(model.state_dict())} items from {shown(file)}: its pyramid")


def _covered(found: Transfer, model: Model, known: int, handing: Collection[int]) -> str:
    """Return how far into the network weights reach: its "head", its "backbone", or not that far ("").

    The head, where the network detects with them as it stands: at least half of its classes are `known`, and each row
    is filled, adds nothing yet, or is among those `handing` on their input.
    """
    rows, backbone = list(model.model[:-1]), len(model.yaml["backbone"])
    filled = [found.pairs.get(index, (0, 0, 0))[1] for index in range(len(rows))]
    whole = [len(row.state_dict()) for row in rows]
    has_head = 2 * known >= model.nc and any(key.startswith(f"model.{len(rows)}.m.") for key in found.state)
    works = (filled[i] == whole[i] or started_at_zero(row) or i in handing for i, row in enumerate(rows))
    if has_head and all(works):
        return "head"
    return "backbone" if 2 * sum(filled[:backbone]) > sum(whole[:backbone]) else ""
