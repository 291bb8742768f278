"""The parts of the exporters that no whole export shows: graphs of suppression, differences, choices of formats."""

import pytest
import torch

from models.exporters import FORMATS, ExportSettings, NmsSettings, check_formats
from models.exporters.compare import TOLERANCES, Difference, Tolerance, views
from utils.nms import non_max_suppression


def test_no_format():
    with pytest.raises(ValueError, match="names no format"):
        check_formats([], ExportSettings())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_taken_or_refused_in_one_line(name):
    try:
        check_formats([name], ExportSettings(), routes=True)
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error)


def test_flags_that_do_not_concern_a_format_are_warned_of(caplog):
    check_formats(["pt2"], ExportSettings(simplify=True, nms=NmsSettings()))
    assert "--simplify does not concern pt2" in caplog.text and "--nms does not concern pt2" in caplog.text


@pytest.mark.parametrize(
    "box, score, fits",
    [(0, 0, True), (0.05, 1e-3, True), (0.06, 0, False), (0, 2e-3, False), (float("nan"), 0, False)],
)
def test_tolerance(box, score, fits):
    assert Difference("", 1, 1, box, score).fits(TOLERANCES["fp32"]) == fits
    assert TOLERANCES["fp32"] == Tolerance(0.05, 1e-3)


def test_views():
    import numpy as np

    pictures = [np.full((80, 100, 3), 50, np.uint8), np.full((100, 60, 3), 50, np.uint8)]
    assert [tuple(view.shape) for view in views(pictures, (64, 96), True, 32)] == [(4, 3, 64, 96)]
    shapes = [tuple(view.shape) for view in views(pictures, (128, 128), False, 32)]
    assert shapes == [(2, 3, 128, 128), (1, 3, 64, 128), (1, 3, 128, 96)]


def suppression_session(settings: NmsSettings, classes: int):
    """ONNX Runtime on nothing but suppression, for any number of pictures and candidates."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
    from models.exporters.nms_graph import with_nms

    sides = ["batch", "candidates", 5 + classes]
    given = onnx.helper.make_tensor_value_info("network", onnx.TensorProto.FLOAT, sides)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, sides)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["network"], ["output"])], "g", [given], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = with_nms(model, settings)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("classes, agnostic", [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("pictures, candidates", [(1, 1), (1, 50), (3, 200)])
def test_suppression_in_onnx_is_ours(classes, agnostic, pictures, candidates):
    settings = NmsSettings(0.5, 0.2, 1000, 60, agnostic)
    session = suppression_session(settings, classes)
    generator = torch.Generator().manual_seed(candidates)
    predictions = torch.rand(pictures, candidates, 5 + classes, generator=generator)
    predictions[..., :2] *= 60
    predictions[..., 2:4] = 5 + 30 * predictions[..., 2:4]
    (found,) = session.run(None, {"network": predictions.numpy()})
    wanted = non_max_suppression(predictions, 0.2, 0.5, agnostic=agnostic, max_det=60)
    assert found.shape == (pictures, min(60, candidates * (1 if agnostic else classes)), 6)
    for rows, expected in zip(torch.from_numpy(found), wanted, strict=True):
        kept = rows[rows[:, 4] > 0]
        assert torch.allclose(kept, expected, atol=1e-4) and (rows[len(kept) :, 4] == 0).all()


def test_nothing_above_the_threshold():
    session = suppression_session(NmsSettings(conf_thres=0.9), 2)
    (found,) = session.run(None, {"network": torch.zeros(2, 10, 7).numpy()})
    assert (found[..., 4] == 0).all()
