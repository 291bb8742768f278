"""Tests of models.initial."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.biformer import BiFormer
from models.initial import build_model, frozen_layers
from models.yolo import Model
from utils.base.config import Hyp
from utils.base.paths import check_file
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

NAMES = ["car", "bus"]


@pytest.fixture(scope="module")
def plain() -> Model:
    model = Model("yolov5n.yaml", nc=2, verbose=False)
    model.names = NAMES
    return model


@pytest.mark.parametrize(
    "words, frozen",
    [
        (["0"], []), (["3"], [0, 1, 2]), (["25"], range(25)), (["0", "3"], [0, 3]),
        (["backbone"], range(10)), (["neck"], range(24)),
    ],
)  # fmt: skip
def test_what_freeze_means(plain: Model, words: list[str], frozen: list[int]) -> None:
    assert list(frozen_layers(words, plain)) == list(frozen)


@pytest.mark.parametrize("words", ["26", "-1", "head", "neck 3", "backbone neck", "1 25", "1_0", "9" * 30])
def test_layers_that_are_not_there_are_named_with_the_remedy(plain: Model, words: str) -> None:
    with pytest.raises(ValueError, match=rf"--freeze {words[:9]}.*: give backbone, neck.*25 layers.*0 to 24"):
        frozen_layers(words.split(), plain)


@pytest.mark.parametrize(
    "cfg, names, covered",
    [
        ("yolov5n.yaml", NAMES, "head"), ("yolov5n.yaml", ["bus", "kite"], "head"),
        ("yolov5n.yaml", ["bus", "kite", "bird"], "backbone"), ("yolov5n-BiFormer-residual.yaml", NAMES, "head"),
        ("yolov5n_BiFormer.yaml", NAMES, "head"), ("no_context.yaml", NAMES, "backbone"), ("yolov5s.yaml", NAMES, ""),
    ],
)  # fmt: skip
def test_how_far_weights_reach(
    tmp_path: Any, plain: Model, cfg: str, names: list[str], covered: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "donor.pt"
    save_checkpoint(file, {"epoch": -1, "model": describe_model(plain), "ema": None})
    if cfg == "no_context.yaml":
        text = check_file("yolov5_BiFormer.yaml").read_text().replace("Attention, []", "Attention, [{side_dwconv: 0}]")
        cfg = str(tmp_path / cfg)
        Path(cfg).write_text(text.replace("depth_multiple: 1.0", "depth_multiple: 0.33").replace("1.0", "0.25"))
    setup: Any = SimpleNamespace(names=names, hyp=Hyp(), resumed=None, device=torch.device("cpu"), covered="")
    for weights, reach in (("", ""), (str(file), covered)):
        setup.opt = SimpleNamespace(weights=weights, cfg=cfg, freeze=["backbone"])
        with caplog.at_level("INFO", "yolov5"):
            model = build_model(setup)
        assert setup.covered == reach
    assert ("layers [20, 24]: attention begins by handing on" in caplog.text) == (cfg == "yolov5n_BiFormer.yaml")
    assert ("layers [20, 24]: attention hides" in caplog.text) == ("no_context" in cfg)
    trained = [any(p.requires_grad for p in row.parameters()) for row in model.model[:11]]
    assert trained == [False] * 10 + [True]


PYRAMID = "[[-1, 1, BiFormerStem, [16]], [-1, 1, BiFormerStage, [16, 1]], [-1, 1, BiFormerMerging, [32]]]"
HEAD = "[[[-1], 1, Detect, [nc, anchors]]]"
SMALL = f"depth_multiple: 1\nwidth_multiple: 1\nanchors: [[9,9]]\nbackbone: {PYRAMID}\nhead: {HEAD}\n"


def test_a_detector_begins_with_the_pyramid_of_a_published_classifier(tmp_path: Any) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    published = BiFormer((1, 1), (16, 32), (3, 3), (1, 1), num_classes=3)
    setup: Any = SimpleNamespace(names=NAMES, hyp=Hyp(), resumed=None, device=torch.device("cpu"), covered="")
    file = tmp_path / "biformer_tiny_best.pth"
    torch.save({"model": published.state_dict(), "args": Namespace(lr=0.1), "epoch": 9}, file)
    setup.opt = SimpleNamespace(weights=str(file), cfg=str(tmp_path / "small.yaml"), freeze=["0"])
    model = build_model(setup)
    donors = published.downsample_layers[0], published.stages[0], published.downsample_layers[1]
    for row, donor in zip(model.model[:3], donors, strict=True):
        assert row.state_dict().keys() == donor.state_dict().keys()
        assert all(torch.equal(value, donor.state_dict()[key]) for key, value in row.state_dict().items())
    assert setup.covered == "backbone"
    faults = {"yolov5n.yaml": "it has no such rows", "yolov5-biformer-tiny.yaml": r"downsample_layers\.0\.0\.w"}
    for cfg, fault in faults.items():
        setup.opt.cfg = cfg
        with pytest.raises(
            ValueError, match=rf"biformer_tiny_best\.pth: not BiFormer's pyramid of this model \({fault}"
        ):
            build_model(setup)
