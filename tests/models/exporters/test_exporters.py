"""The parts of the exporters that no whole export shows: graphs of suppression, differences, choices of formats."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from models.backends.metadata import Metadata
from models.exporters import FORMATS, ExportSettings, check_formats, compare
from models.exporters.compare import TOLERANCES, Difference, Tolerance, changes, compare_with_pytorch, difference, views
from models.exporters.job import ExportError, ExportJob
from tests.lively import lively_model
from utils.boxes.nms import non_max_suppression


def test_every_format_is_taken_or_refused_in_one_line(caplog):
    for name in FORMATS:
        message = name
        try:
            check_formats([name], ExportSettings(), routes=True)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message and name in message
    check_formats(["pt2"], ExportSettings(simplify=True, nms=True))
    assert "--simplify does not concern pt2" in caplog.text and "--nms does not concern pt2" in caplog.text


def predictions(*rows: list[float]) -> torch.Tensor:
    """One image's candidates: centre, sides, objectness, two classes."""
    return torch.tensor([rows])


def test_no_candidates_differ_by_the_shape():
    found = difference(predictions([10, 10, 5, 5, 1, 1, 0]), torch.zeros(1, 2, 7), "")
    assert not found.fits(TOLERANCES["fp32"]) and found.worst == "its shape, (1, 2, 7) instead of (1, 1, 7)"
    for box, score, fits in ((0.05, 1e-3, True), (0.06, 0, False), (0, 2e-3, False), (float("nan"), 0, False)):
        assert Difference("", 1, 1, box, score).fits(TOLERANCES["fp32"]) == fits


def test_a_large_box_may_differ_in_proportion():
    small, large = [300, 300, 40, 30, 0.9, 0.8, 0.1], [300, 300, 640, 200, 0.9, 0.8, 0.1]
    for row, moved, fits in ((small, 0.04, True), (small, 0.06, False), (large, 0.4, True), (large, 0.6, False)):
        other = [row[0] + moved, *row[1:]]
        assert difference(predictions(row), predictions(other), "").fits(TOLERANCES["fp32"]) == fits
    assert difference(predictions(large), predictions([300.4, *large[1:]]), "").box == pytest.approx(0.04, rel=1e-3)


def test_the_worst_box_is_named():
    rows = [[20, 30, 10, 10, 0.5, 0.5, 0], [60, 60, 20, 40, 0.9, 0.1, 0.8]]
    other = [rows[0], [62, 60, 20, 40, 0.9, 0.1, 0.7]]
    found = difference(predictions(*rows), predictions(*other), "")
    box, confidence = "box 52.00 40.00 72.00 80.00 instead of 50.00 40.00 70.00 80.00", "0.63 instead of 0.72"
    assert found.worst == f"image 1, {box}, confidence {confidence}" and found.box == pytest.approx(2)
    broken = torch.tensor([rows]).index_fill(2, torch.tensor([4]), float("nan"))
    assert not difference(predictions(*rows), broken, "", TOLERANCES["int8"]).fits(TOLERANCES["int8"])


def test_a_share_of_the_candidates_may_differ_more():
    ours = torch.rand(1, 100, 7) * 50 + 50
    theirs = ours.clone()
    theirs[0, :5, 0] += 30
    assert difference(ours, theirs, "", Tolerance(1.0, 0.02, 0.95, 64.0)).box == 0
    assert difference(ours, theirs, "", Tolerance(1.0, 0.02, 0.96, 64.0)).box > 1


def test_what_becomes_of_detections():
    none, one, two = torch.zeros(0, 6), [10, 10, 50, 50, 0.9, 0], [100, 100, 300, 300, 0.5, 1]
    both = torch.tensor([one, two])
    assert changes([none], [none]) == "none of 0 detections would change"
    assert changes([both], [both + torch.tensor([0.9, 0, 0, 0, -0.1, 0])]) == "none of 2 detections would change"
    assert changes([both], [none]).startswith("of 2 detections 2 would vanish, 0 appear and 0 move")
    assert changes([none], [both]).startswith("of 0 detections 0 would vanish, 2 appear")
    shifted = torch.tensor([[13, 10, 53, 50, 0.9, 0], [101.5, 100, 301.5, 300, 0.5, 1]])  # a side's 7.5 and 0.75 %
    assert changes([both], [shifted]) == "of 2 detections 0 would vanish, 0 appear and 1 move by more than 1% of a side"
    assert "1 would vanish, 1 appear" in changes([both], [torch.tensor([one, [*two[:5], 0]])])  # another class


class Runtime:
    """Another way to compute a network: rounded otherwise, as in double precision, or with other weights."""

    shape, stride, metadata = (64, 64), 32, Metadata()

    def __init__(self, model, moved: float) -> None:
        self.model = deepcopy(model).double()
        generator = torch.Generator().manual_seed(1)
        for parameter in self.model.parameters():
            parameter.data *= 1 + moved * torch.randn(parameter.shape, generator=generator)

    def __call__(self, batch):
        return self.model(batch.double())[0].float()


@pytest.mark.parametrize("moved, limit, fits", [(0.0, 0.0, True), (1e-2, 0.05, False)])
def test_rounding_that_is_the_networks_own_is_no_fault_of_the_file(tmp_path, monkeypatch, moved, limit, fits):
    """A limit of nothing at all stands for a network that makes more of rounding errors than any limit allows."""
    model = lively_model("yolov5n_BiFormer.yaml").fuse().requires_grad_(False)
    job = ExportJob(model, tmp_path / "best.pt", ExportSettings(imgsz=(64, 64)))
    file = tmp_path / "best.onnx"
    file.touch()
    monkeypatch.setattr(compare, "DetectMultiBackend", lambda *given, **more: Runtime(model, moved))
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(limit, limit))
    if fits:
        rows = compare_with_pytorch(job, file)
        assert all(0 < row.box <= 4 * row.rounding[0] for row in rows)
        return
    with pytest.raises(ExportError, match=r"most in image \d, box .* confidence .*; of \d+ detections \d+ would"):
        compare_with_pytorch(job, file)


def test_views():
    images = [np.full((80, 100, 3), 50, np.uint8), np.full((100, 60, 3), 50, np.uint8)]
    assert [tuple(view.shape) for view in views(images, (64, 96), True, 32)] == [(4, 3, 64, 96)]
    shapes = [tuple(view.shape) for view in views(images, (128, 128), False, 32)]
    assert shapes == [(2, 3, 128, 128), (1, 3, 64, 128), (1, 3, 128, 96)]


def suppression_session(settings: ExportSettings, classes: int):
    """ONNX Runtime on nothing but suppression, for any number of images and candidates."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
    from models.exporters.onnx_file import with_nms

    sides = ["batch", "candidates", 5 + classes]
    given = onnx.helper.make_tensor_value_info("network", onnx.TensorProto.FLOAT, sides)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, sides)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["network"], ["output"])], "g", [given], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = with_nms(model, settings)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("classes, agnostic", [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("images, candidates", [(1, 1), (1, 50), (3, 200)])
def test_suppression_in_onnx_is_ours(classes, agnostic, images, candidates):
    settings = ExportSettings(iou_thres=0.5, conf_thres=0.2, topk_per_class=1000, topk_all=60, agnostic_nms=agnostic)
    session = suppression_session(settings, classes)
    generator = torch.Generator().manual_seed(candidates)
    predictions = torch.rand(images, candidates, 5 + classes, generator=generator)
    predictions[..., :2] *= 60
    predictions[..., 2:4] = 5 + 30 * predictions[..., 2:4]
    (found,) = session.run(None, {"network": predictions.numpy()})
    wanted = non_max_suppression(predictions, 0.2, 0.5, agnostic=agnostic, max_det=60)
    assert found.shape == (images, min(60, candidates * (1 if agnostic else classes)), 6)
    for rows, expected in zip(torch.from_numpy(found), wanted, strict=True):
        kept = rows[rows[:, 4] > 0]
        assert torch.allclose(kept, expected, atol=1e-4) and (rows[len(kept) :, 4] == 0).all()
    (found,) = session.run(None, {"network": np.zeros((2, 10, 5 + classes), np.float32)})
    assert (found[..., 4] == 0).all()
