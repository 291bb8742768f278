"""The picture of a search."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.search import plot as plots_evolve
from utils.search.plot import plot_evolve

RESULTS = [f"result{i}" for i in range(7)]


def write(file: Path, names: list[str], rows: np.ndarray) -> Path:
    np.savetxt(file, rows, fmt="%20.5g", delimiter=",", header=",".join(f"{name:>20}" for name in names), comments="")
    return file


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "a,b,c,d,e,f,g,h\n", "a,b,c,d,e,f,g,h\n1,2,3,4,5,6,7,x\n"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "evolve.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"evolve\.csv: "):
        plot_evolve(file)
    with pytest.raises(ValueError, match=r"none\.csv: "):
        plot_evolve(tmp_path / "none.csv")


@pytest.mark.parametrize("trials, keys", [(1, 2), (12, 8)])
def test_a_panel_for_each_hyper_parameter(
    tmp_path: Path, trials: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((trials, 7 + keys)).round(3)
    rows[:, 7] = 0.2  # one that was kept
    figures, names = [], [f"key{i}" for i in range(keys)]
    saved = plots_evolve.save_figure
    monkeypatch.setattr(
        plots_evolve, "save_figure", lambda figure, *a, **k: figures.append(figure) or saved(figure, *a, **k)
    )
    picture = plot_evolve(write(tmp_path / "evolve.csv", [*RESULTS, *names], rows))
    assert picture == tmp_path / "evolve.png" and cv2.imread(str(picture)).std() > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evolve.csv", "evolve.png"]
    axes = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [axis.get_title("left").split()[0] for axis in axes] == [*names, "fitness"]
    fitness = 0.1 * rows[:, 2] + 0.9 * rows[:, 3]
    for column, axis in enumerate(axes[:-1], start=7):
        dots = np.asarray(axis.collections[0].get_offsets())
        np.testing.assert_allclose(dots, np.column_stack([rows[:, column], fitness]), atol=1e-4)
        assert axis.get_title("left").endswith(f" {rows[fitness.argmax(), column]:.3g}")
    assert [axis.get_title("right") for axis in axes[:2]] == ["kept" if trials > 1 else "", ""]
