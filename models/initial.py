"""The network that a training run begins with, or goes on with."""

from __future__ import annotations

from typing import cast

import torch

from models.experimental import attempt_load, load_model
from models.yolo import Detect, Model
from utils.base.log import LOGGER
from utils.base.paths import find_weights
from utils.training.setup import Setup
from utils.training.train_options import DEFAULT_CFG
from utils.training.transfer import report, transfer


def build_model(setup: Setup) -> Model:
    """Build the network from a YAML or a checkpoint's own, with whatever weights fit; or as it was left when resuming.

    Raise ValueError for weights or a description that training cannot begin with, and for layers that are not there.
    """
    opt, nc = setup.opt, len(setup.names)
    if setup.resumed:
        model = load_model({"model": setup.resumed["model"]})
    else:
        donor = None
        if opt.weights:
            if (file := find_weights(opt.weights)).suffix not in (".pt", ".safetensors"):
                raise ValueError(f"--weights {opt.weights}: training begins with .pt or .safetensors, no other file")
            donor = cast("Model", attempt_load(file, fuse=False))  # one file is no ensemble
        model = Model(opt.cfg or (donor.yaml if donor else DEFAULT_CFG), ch=3, nc=nc, anchors=setup.hyp.anchors)
        if not isinstance(model.model[-1], Detect) or model.yaml["ch"] != 3:
            raise ValueError(f"{opt.cfg or opt.weights}: training needs 3 input channels and Detect as the last layer")
        if donor:
            take_over(donor, model, setup.names, opt.weights, fresh_anchors=bool(setup.hyp.anchors))
    freeze(model, opt.freeze)
    model.names = setup.names
    # convolutions run faster on channels-last maps, 1.1x a whole step on a CPU (benchmarks/train_step.py)
    return model.to(setup.device).to(memory_format=torch.channels_last)


def take_over(donor: Model, model: Model, names: list[str], source: str, fresh_anchors: bool = False) -> None:
    """Load what the donor has for this model, which will know the classes `names`, and log what came from where.

    Anchors written in a description stay where they differ from the donor's: somebody chose them.
    """
    chosen = isinstance(model.yaml["anchors"], list) and model.yaml["anchors"] != donor.yaml["anchors"]
    found = transfer(donor, model, names, keep_anchors=fresh_anchors or chosen)
    model.load_state_dict(found.state, strict=False)
    LOGGER.info(f"Transferred {len(found.state)}/{len(model.state_dict())} items from {source}")
    for line in report(found, model):
        LOGGER.info(f"  {line}")


def freeze(model: Model, layers: list[int]) -> None:
    """Keep the first N layers as they are, or exactly those that are named when there are several."""
    frozen = range(layers[0]) if len(layers) == 1 else layers
    if any(not 0 <= index < len(model.model) for index in frozen):
        raise ValueError(f"--freeze {' '.join(map(str, layers))}: the model has layers 0 to {len(model.model) - 1}")
    for index, layer in enumerate(model.model):
        layer.requires_grad_(index not in frozen)
