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
from utils.evaluation.metrics import DetectionMetrics
from utils.loggers import subscribe_loggers
from utils.loggers.run import COLUMNS, RunInfo
from utils.loggers.tensorboard import MOST_CLASSES, POINTS, pr_counts

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
Info = Callable[..., RunInfo]


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0}).Reload()


def text_of(events: Any, tag: str) -> str:
    return events.Tensors(tag)[0].tensor_proto.string_val[0].decode()


@pytest.mark.usefixtures("sketches")
def test_a_run_of_no_epoch(info: Info) -> None:
    run = info(loggers=["tensorboard"])
    logged(run, [], ended=False)
    events = read(run.folder)
    assert not events.Tags()["scalars"] and set(events.Tags()["tensors"]) == {
        "options/text_summary",
        "hyp/text_summary",
    }


@pytest.mark.usefixtures("sketches")
def test_scalars_options_and_pictures(info: Info) -> None:
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
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.PluginTagToContent("hparams"))
    assert set(events.Tags()["images"]) == {"labels", "results"}
    stored = events.Images("results")[0]
    assert (stored.width, stored.height, stored.step) == (20, 10, 2)
    with Image.open(io.BytesIO(stored.encoded_image_string)) as picture:
        assert picture.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.usefixtures("sketches")
def test_graph_and_curves(info: Info, tiny_cfg: Path) -> None:
    run, callbacks = info(loggers=["tensorboard"]), Callbacks()
    subscribe_loggers(callbacks, run)
    model = Model(str(tiny_cfg), ch=3, nc=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    callbacks.run("on_train_batch_end", 0, model, torch.rand(2, 3, 64, 64), torch.zeros(0, 6), ("a", "b"), True, False)
    metrics = DetectionMetrics(["red", "blue"])
    box = torch.tensor([[10.0, 10, 30, 30]])
    for number in range(4):
        found = torch.cat([box + 50 * (number == 3), torch.tensor([[0.75, 0.0]])], 1)
        metrics.update(found, torch.cat([torch.zeros(1, 1), box], 1))
    callbacks.run("on_val_metrics", metrics.compute(), 4)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 4, ())
    events = read(run.folder)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    nodes = events.Graph().node
    assert len(nodes) > 100 and {"_convolution", "silu_"} & {node.op.removeprefix("aten::") for node in nodes}
    assert {tag for tag in events.Tags()["tensors"] if tag.startswith("PR/")} == {"PR/all classes", "PR/red"}
    from tensorboard.util.tensor_util import make_ndarray

    point = events.Tensors("PR/red")[0]
    right, wrong, _, missed, precision, recall = make_ndarray(point.tensor_proto)
    assert point.step == 4 and len(recall) == POINTS
    assert (right[0], wrong[0], missed[0], precision[0], recall[0]) == (3, 1, 1, 0.75, 0.75)
    assert (right[-1], missed[-1], precision[-1], recall[-1]) == (0, 4, 1, 0)


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


@pytest.mark.parametrize("seed", range(3))
def test_curves_agree_with_counting(seed: int) -> None:
    """Random images of one object each, apart from all others; detections are it or are far away."""
    rng, metrics, detections, labels = np.random.default_rng(seed), DetectionMetrics(["c0", "c1", "c2"]), [], []
    assert pr_counts(metrics.compute(), metrics.names) == []
    for image in range(12):
        kind = int(rng.integers(3)) if image >= 3 else image
        right, confidence = bool(rng.random() < 0.6), float(rng.uniform(0.3, 0.9))
        box = [10.0, 10, 40, 40] if right else [100.0, 100, 140, 140]
        metrics.update(torch.tensor([[*box, confidence, kind]]), torch.tensor([[float(kind), 10, 10, 40, 40]]))
        detections.append((kind, right))
        labels.append(kind)
    (pooled, *sums), *curves = pr_counts(metrics.compute(), metrics.names)
    assert pooled == "all classes" and [name for name, *_ in curves] == metrics.names
    for kind, (_, right, wrong, missed) in enumerate(curves):
        hits = sum(found for which, found in detections if which == kind)
        # below every confidence all detections count, above every confidence none does
        assert (right[0], right[-1], missed[0]) == pytest.approx((hits, 0, labels.count(kind) - hits))
        assert not hits or wrong[0] == pytest.approx(labels.count(kind) - hits)
        assert len(right) == POINTS and (np.diff(right) <= 1e-12).all() and (wrong >= 0).all()
        np.testing.assert_allclose(right + missed, labels.count(kind))
    np.testing.assert_allclose(sums, np.sum([counts for _, *counts in curves], 0))


def test_many_classes_are_pooled_only() -> None:
    metrics = DetectionMetrics([f"c{kind}" for kind in range(MOST_CLASSES + 1)])
    for kind in range(MOST_CLASSES + 1):
        box = [10.0, 10, 40, 40]
        metrics.update(torch.tensor([[*box, 0.5, kind]]), torch.tensor([[float(kind), *box]]))
    assert [name for name, *_ in pr_counts(metrics.compute(), metrics.names)] == ["all classes"]
