"""Curves, confusion matrices, the size study."""

import cv2
import numpy as np
import pytest

from utils.evaluation import plots
from utils.evaluation.metrics import Curves
from utils.evaluation.plots import plot_confusion_matrix, plot_curves, plot_val_study


def curves(classes):
    """Curves as the metrics hand them out, for these class numbers."""
    k, x = len(classes), np.linspace(0, 1, 1000)
    lines = np.linspace(1, 0.5, k)[:, None] * (1 - x)
    return Curves(np.array(classes, int), np.ones(k), lines, lines, lines, lines[:, :10], lines, x, 0)


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("classes", [[], [2], list(range(21))])
def test_curves(tmp_path, classes):
    names = [f"name {i}" for i in range(80)]
    paths = plot_curves(curves(classes), names, tmp_path / "new")
    assert [path.name for path in paths] == ["PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"]
    assert all(read(path).std() > 0 for path in paths)


def test_curves_are_named_by_their_class_not_their_row(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plot_curves(curves([0, 2, 5]), ["_a", "b", "c"], tmp_path)
    named = [[text.get_text().split()[0] for text in figure.axes[0].get_legend().get_texts()] for figure in figures]
    assert named == [["_a", "c", "class", "all"]] * 4


def test_confusion_matrices_have_blank_cells(tmp_path):
    with pytest.raises(ValueError, match="has 3 rows"):
        plot_confusion_matrix(np.zeros((2, 2)), ["a", "b"], tmp_path / "a.png")
    empty = read(plot_confusion_matrix(np.zeros((4, 4)), list("abc"), tmp_path / "empty.png"))
    filled = read(plot_confusion_matrix(np.ones((4, 4)), list("abc"), tmp_path / "ones.png"))
    assert empty.shape == filled.shape and empty.mean() > filled.mean() + 5  # blank cells against blue ones


@pytest.mark.parametrize(
    "normalize, told", [(True, {(0, 0): "0.75", (0, 1): "0.25", (2, 1): "1.00"}), (False, {(0, 0): "3", (2, 1): "2"})]
)
def test_cells_of_a_confusion_matrix_tell_their_numbers(tmp_path, monkeypatch, normalize, told):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, dpi: figures.append(figure))
    plot_confusion_matrix(np.array([[3, 0, 0], [1, 0, 2], [0, 0, 0]]), ["a", "b"], tmp_path / "a.png", normalize)
    shown = {text.get_position(): text.get_text() for text in figures[0].axes[0].texts}
    assert shown == told | ({} if normalize else {(0, 1): "1"})


@pytest.mark.parametrize("nc, normalize", [(1, True), (3, False), (31, True)])
def test_confusion_matrices(tmp_path, nc, normalize):
    names = [str(i) for i in range(nc)]
    assert read(plot_confusion_matrix(np.eye(nc + 1) * 9, names, tmp_path / "new/a.png", normalize)).std() > 0


def test_study(tmp_path):
    with pytest.raises(ValueError, match="no study"):
        plot_val_study(dir=tmp_path)
    rows = np.column_stack([np.full((3, 7), 0.5), np.ones((3, 3))])
    for name in ("study_a_n.txt", "study_a_s.txt"):
        np.savetxt(tmp_path / name, rows, fmt="%10.4g")
    assert read(plot_val_study(dir=tmp_path, x=[128, 256, 384])).size
    assert plot_val_study(tmp_path / "study_a_n.txt") == tmp_path / "study.png"
    with pytest.raises(ValueError, match="3 rows for 2"):
        plot_val_study(dir=tmp_path, x=[128, 256])


@pytest.mark.parametrize("text", ["1 2 3\n", "words\n", "1 2\n3\n"])
def test_foreign_study_tables(tmp_path, text):
    (tmp_path / "study_x.txt").write_text(text)
    with pytest.raises(ValueError, match="study_x.txt"):
        plot_val_study(dir=tmp_path)
