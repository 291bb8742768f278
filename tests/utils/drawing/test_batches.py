"""Plots: what files appear, and that what they show is what was given."""

import logging

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from utils.drawing import batches as plots
from utils.drawing.annotator import colors
from utils.drawing.batches import (
    feature_visualization,
    output_to_target,
    plot_images,
    plot_labels,
    plot_results,
    read_results,
)

HEADER = [
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall",
    "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "val/box_loss", "val/obj_loss", "val/cls_loss",
    "x/lr0", "x/lr1", "x/lr2",
]  # fmt: skip


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def write_table(path, rows):
    lines = [",".join(f"{name:>20}" for name in HEADER)]
    lines += [",".join(f"{value:20.5g}" for value in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- mosaics
def test_detections_become_targets():
    assert output_to_target([]).shape == (0, 7)
    assert output_to_target([torch.zeros(0, 6)] * 3).shape == (0, 7)
    found = output_to_target([torch.zeros(0, 6), torch.tensor([[0.0, 10.0, 20.0, 40.0, 0.5, 3.0]])])
    assert np.allclose(found, [[1, 3, 10, 25, 20, 30, 0.5]])


def test_mosaics_of_nothing_and_of_one_pixel(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        plot_images(np.zeros((0, 3, 8, 8)), np.zeros((0, 6)), fname=tmp_path / "a.jpg")
    images = torch.ones(2, 3, 1, 1)
    path = plot_images(images, np.array([[0, 99, 0.5, 0.5, 1, 1]]), ["x/图.jpg", "b.jpg"], tmp_path / "é.jpg", ["one"])
    assert read(path).shape == (2, 2, 3)


@pytest.mark.parametrize("count, side", [(1, 1), (3, 2), (16, 4), (20, 4)])
def test_mosaic_is_filled_column_by_column_and_kept_small(tmp_path, count, side):
    shades = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1) * 10
    images = torch.zeros(count, 3, 64, 96, dtype=torch.uint8) + shades
    mosaic = read(plot_images(images, torch.zeros(0, 6), fname=tmp_path / "m.png", max_size=300))
    assert max(mosaic.shape) <= 300 + side
    rows, columns = mosaic.shape[0] // side, mosaic.shape[1] // side
    for i in range(min(count, 16)):
        x, y = i // side * columns, i % side * rows
        assert mosaic[y + rows // 2, x + columns // 2, 0] == 10 * i


def test_labels_are_fractions_predictions_are_pixels_and_mean_the_same(tmp_path):
    images = np.full((1, 3, 100, 200), 0.5, np.float32)
    labels = np.array([[0, 1, 0.5, 0.5, 0.2, 0.4]])
    pixels = np.array([[0, 1, 100, 50, 40, 40, 0.9], [0, 2, 20, 20, 10, 10, 0.2]])  # the second is too unsure
    for name, boxes in (("a.png", labels), ("b.png", pixels)):
        image = read(plot_images(images, boxes, fname=tmp_path / name)).astype(int)
        assert np.abs(image[50, 80] - colors(1, bgr=True)).max() < 3
        assert np.abs(image[70, 100] - colors(1, bgr=True)).max() < 3
        assert np.abs(image[20, 20] - 128).max() < 3


# ---- training curves
def test_results_of_no_one_and_many_epochs(tmp_path):
    assert read(plot_results(write_table(tmp_path / "results.csv", [range(14)]))).size
    assert read(plot_results(write_table(tmp_path / "results.csv", []))).size
    write_table(tmp_path / "results.csv", [[np.nan] * 14, [1.0] * 14])
    write_table(tmp_path / "results2.csv", [[i] * 14 for i in range(40)])
    assert plot_results("", dir=tmp_path) == tmp_path / "results.png"
    table = write_table(tmp_path / "results.csv", [[i, *(10 * i + c for c in range(13))] for i in range(5)])
    found = read_results(table)
    assert found["epoch"].tolist() == [0, 1, 2, 3, 4] and found["metrics/mAP_0.5"].tolist() == [5, 15, 25, 35, 45]


@pytest.mark.parametrize("rows, panels", [(None, 10), ("", 12), ("0,0.1,0.2\n1,0.4,0.3\n", 12)])
def test_layers_that_began_at_zero_have_a_panel(tmp_path, monkeypatch, rows, panels):
    figures = []
    monkeypatch.setattr("utils.drawing.batches.save_figure", lambda figure, path: figures.append(figure) or path)
    if rows is not None:
        (tmp_path / "residual.csv").write_text("epoch,20.wo,24.wo\n" + rows)
    plot_results(write_table(tmp_path / "results.csv", [[epoch, *[0.5] * 13] for epoch in range(2)]))
    axes = figures[0].axes
    assert len(axes) == panels and all(axis.get_visible() for axis in axes)
    if rows:
        lines = {line.get_label(): line.get_ydata().tolist() for line in axes[5].lines}
        assert lines == {"20.wo": [0.1, 0.4], "24.wo": [0.2, 0.3]}
        assert [text.get_text() for text in axes[11].get_legend().get_texts()] == ["20.wo", "24.wo"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", f"epoch, x\n0, {'9' * 400}\n", None])
def test_foreign_results_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "results.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="results.csv") as caught:
        plot_results(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no results"):
        plot_results("", dir=tmp_path / "empty")


# ---- labels
def test_label_plots_leave_global_state(tmp_path):
    rng = np.random.default_rng(0)
    for labels in (np.zeros((0, 5)), np.column_stack([rng.integers(0, 3, 50), rng.uniform(0, 1, (50, 4))])):
        paths = plot_labels(labels, ["a", "b", "c"], tmp_path / "new")
        assert [path.name for path in paths] == ["labels.jpg", "labels_correlogram.jpg"]
        assert all(read(path).size for path in paths)

    def state():
        return dict(matplotlib.rcParams), np.get_printoptions(), logging.root.handlers[:]

    before = state()
    plot_labels(np.array([[0, 0.5, 0.5, 0.1, 0.1]]), ["a"], tmp_path)
    assert state() == before


# ---- feature maps
def test_feature_maps(tmp_path):
    maps = np.stack([np.linspace(0, 2.0**i, 16).reshape(4, 4) for i in range(9)] + [np.zeros((4, 4))])
    sheet = read(feature_visualization(torch.from_numpy(maps)[None], "x.Conv", 1, save_dir=tmp_path))
    assert sheet.shape == (2 * 164 + 4, 8 * 164 + 4, 3)
    first, second, flat = sheet[4:164, 4:164], sheet[4:164, 168:328], sheet[168:328, 168:328]
    assert np.array_equal(first, second) and len(np.unique(first.reshape(-1, 3), axis=0)) == 16
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1 and (sheet[200, 400] == 255).all()
    maps = torch.randn(2, 5, 6, 7)
    path = feature_visualization(maps, "models.common.C3", 4, save_dir=tmp_path / "new")
    assert path.name == "stage4_C3_features.png" and np.array_equal(np.load(path.with_suffix(".npy")), maps[0].numpy())
    assert read(path).std() > 0
    assert feature_visualization(maps, "models.yolo.Detect", 9, save_dir=tmp_path / "no") is None
    assert feature_visualization(maps[..., :1], "x.Conv", 1, save_dir=tmp_path / "no") is None
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("epochs, ticks", [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_epochs_are_whole_numbers(tmp_path, monkeypatch, epochs, ticks):
    figures = []
    monkeypatch.setattr("utils.drawing.batches.save_figure", lambda figure, path: figures.append(figure) or path)
    plot_results(write_table(tmp_path / "results.csv", [[epoch, *[0.5] * 13] for epoch in range(epochs)]))
    for axis in figures[0].axes:
        least, most = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if least <= tick <= most] == ticks


@pytest.mark.parametrize("names, turned", [(["a", "b"], 0), (["a bolt of some size"] * 4, 90), (["n" * 300] * 3, 90)])
def test_long_names_do_not_write_over_each_other(tmp_path, monkeypatch, names, turned):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figures.append(figure))
    plots.plot_labels(np.full((3, 5), 0.5), names, tmp_path)
    assert [tick.get_rotation() for tick in figures[1].axes[0].get_xticklabels()] == [turned] * len(names)
