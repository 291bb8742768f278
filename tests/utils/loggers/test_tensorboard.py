"""What TensorBoard shows of a run, read back with its own reader."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from models.yolo import Model
from tests.utils.loggers.conftest import logged, row_of
from utils.base.callbacks import Callbacks
from utils.checkpoints.checkpoint import load_checkpoint
from utils.loggers import subscribe_loggers
from utils.loggers.run import COLUMNS, RunInfo

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
Info = Callable[..., RunInfo]


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0}).Reload()


def text_of(events: Any, tag: str) -> str:
    return events.Tensors(tag)[0].tensor_proto.string_val[0].decode()


@pytest.mark.usefixtures("sketches")
def test_scalars_options_and_images(info: Info) -> None:
    run = info(loggers=["tensorboard"], odd="a|b")
    logged(run, range(3))
    events = read(run.folder)
    for place, name in enumerate(COLUMNS):
        points = [(point.step, point.value) for point in events.Scalars(name)]
        np.testing.assert_allclose(points, [(epoch, epoch + place / 100) for epoch in range(3)], rtol=1e-6)
    assert events.Scalars("best/mAP_0.5")[0].value == pytest.approx(0.3)
    assert "| epochs | 5 |" in text_of(events, "options/text_summary")
    assert "a&#124;b" in text_of(events, "options/text_summary")
    assert "| lr0 | 0.01 |" in text_of(events, "hyp/text_summary")
    assert set(events.Tags()["images"]) == {"labels", "results"}
    stored = events.Images("results")[0]
    assert (stored.width, stored.height, stored.step) == (20, 10, 2)
    with Image.open(io.BytesIO(stored.encoded_image_string)) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.usefixtures("sketches")
def test_the_graph(info: Info, tiny_cfg: Path) -> None:
    run, callbacks = info(loggers=["tensorboard"]), Callbacks()
    subscribe_loggers(callbacks, run)
    model = Model(str(tiny_cfg), ch=3, nc=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    callbacks.run("on_train_batch_end", 0, model, torch.rand(2, 3, 64, 64), torch.zeros(0, 6), ("a", "b"), True, False)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 4, ())
    events = read(run.folder)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    nodes = events.Graph().node
    assert len(nodes) > 100 and {"_convolution", "silu_"} & {node.op.removeprefix("aten::") for node in nodes}


@pytest.mark.usefixtures("sketches")
def test_a_resumed_run_has_each_epoch_once(info: Info) -> None:
    logged(info(loggers=["tensorboard"]), range(4), ended=False)
    run = info([row_of(0), row_of(1)], loggers=["tensorboard"], resume="last.pt")
    logged(run, range(2, 5))
    points = read(run.folder).Scalars("train/obj_loss")
    np.testing.assert_allclose([(p.step, p.value) for p in points], [(e, e + 0.01) for e in range(5)], rtol=1e-6)


@pytest.mark.usefixtures("sketches")
def test_training_is_the_same_with_and_without(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    for name in ("none", "tensorboard"):
        train.run(
            data=str(squares), cfg=str(tiny_cfg), project=str(tmp_path), name=name, loggers=[name],
            imgsz=64, epochs=2, batch_size=4, workers=0, device="cpu",
        )  # fmt: skip
    with_it, without = (load_checkpoint(tmp_path / name / "weights/last.pt") for name in ("tensorboard", "none"))
    for name, value in without["model"]["state_dict"].items():
        assert torch.equal(value, with_it["model"]["state_dict"][name]), name
    assert (tmp_path / "none/results.csv").read_bytes() == (tmp_path / "tensorboard/results.csv").read_bytes()
    events = read(tmp_path / "tensorboard")
    assert events.Tags()["graph"] and len(events.Scalars("val/box_loss")) == 2
    assert {"train_batch0", "val_batch0_pred", "confusion_matrix"} <= set(events.Tags()["images"])
    assert not list((tmp_path / "none").glob("events*"))
