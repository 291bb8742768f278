"""The names v6.1's users know: they are there, and those made here behave as theirs did."""

import importlib
import os
import re

import numpy as np
import pytest
import torch

from utils import datasets, general, plots
from utils.v61 import INSTEAD

DOORS = {
    "augmentations": "mixup Albumentations", "datasets": "LoadImages LoadStreams exif_size",
    "downloads": "attempt_download safe_download gsutil_getsize", "general": "check_requirements check_suffix",
    "loss": "BCEBlurWithLogitsLoss", "metrics": "plot_pr_curve", "plots": "check_font",
    "torch_utils": "torch_distributed_zero_first prune",
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_what_is_not_handed_on_says_what_to_use(door):
    module = importlib.import_module(f"utils.{door}")
    for name in DOORS[door].split():
        with pytest.raises(ImportError, match=f"^YOLOv5 6.1's {name} is not here: use [^\n]{{8,}}$"):
            getattr(module, name)  # as `from utils.door import name` does
    assert not hasattr(module, "nothing")


def test_what_is_to_be_used_is_there():
    for path in re.findall(r"\b(utils(?:\.\w+)+)\.(\w+)", " ".join(INSTEAD.values())):
        assert hasattr(importlib.import_module(path[0]), path[1]), path


def test_every_promised_name_exists():
    assert all(hasattr(general, name) for name in general.__all__)
    assert len(set(general.__all__)) == len(general.__all__)


def test_what_programs_of_v61_import_most():
    """`{mp4, jpg}` in lower case without dots; label paths beside images/; the crop that is returned, not written."""
    assert {"jpg", "png"} <= {*datasets.IMG_FORMATS} and {"mp4", "avi"} <= {*datasets.VID_FORMATS}
    assert datasets.img2label_paths(["a/images/b/c.jpg"]) == [os.path.join("a", "labels", "b", "c.txt")]
    cut = plots.save_one_box(torch.tensor([2, 2, 6, 8]), np.zeros((20, 20, 3), np.uint8), gain=1, pad=0, save=False)
    assert cut.shape == (6, 4, 3)
    assert callable(plots.plot_evolve) and callable(datasets.autosplit)
    assert general.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1]])).item() == 0.5
    assert general.fitness(np.array([[0, 0, 1.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_v61_s_box_functions_work_in_place(kind):
    boxes = kind([[-5.0, -5.0, 90.0, 90.0, 0.5, 1.0]])
    general.clip_coords(boxes, (40, 50))
    np.testing.assert_array_equal(boxes, [[0, 0, 50, 40, 0.5, 1]])
    scaled = general.scale_coords((64, 64), boxes, (20, 20))
    assert scaled is boxes
    np.testing.assert_allclose(boxes, [[0, 0, 15.625, 12.5, 0.5, 1]])
    corners = kind([[-5.0, -5.0, 90.0, 90.0]])
    np.testing.assert_allclose(general.xyxy2xywhn(corners, 50, 40, clip=True), [[0.5, 0.5, 1, 1]])
    np.testing.assert_array_equal(corners, [[0, 0, 50, 40]])


def test_without_clipping_the_argument_stays():
    corners = np.array([[0.0, 0.0, 10.0, 20.0]])
    general.xyxy2xywhn(corners, 50, 40)
    np.testing.assert_array_equal(corners, [[0, 0, 10, 20]])


def test_class_and_image_weights():
    labels = [
        np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0]]),
        np.zeros((0, 5)),
        np.array([[2.0, 0, 0, 0, 0]]),
    ]
    weights = general.labels_to_class_weights(labels, nc=3)
    np.testing.assert_allclose(weights, [0.25, 0.5, 0.25])
    np.testing.assert_allclose(general.labels_to_image_weights(labels, 3, np.array([1, 5, 10])), [12, 0, 10])
    np.testing.assert_allclose(general.labels_to_image_weights(labels, 3), [3, 0, 1])
    assert general.labels_to_image_weights([], 3).shape == (0,)
    np.testing.assert_allclose(general.labels_to_class_weights([], 4), [0.25] * 4)


def test_coco_s_numbers():
    numbers = general.coco80_to_coco91_class()
    assert len(numbers) == 80 and numbers[0] == 1 and numbers[-1] == 90
    assert numbers[11] == 13 and numbers[79] == 90 and numbers[24] == 27  # stop sign, toothbrush, backpack


def test_sizes_and_schedules():
    assert general.make_divisible(65, 32) == 96 and general.make_divisible(33, torch.tensor([8.0, 32.0])) == 64
    wave = general.one_cycle(1, 0.01, 10)
    assert [wave(x) for x in (0, 5, 10)] == pytest.approx([1, 0.505, 0.01])


def test_files(tmp_path):
    assert general.get_latest_run(tmp_path) == "" and general.file_size(tmp_path) == 0
    for age, name in enumerate(("exp2", "exp")):
        file = tmp_path / name / "weights" / "last.pt"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(1 << 19))
        os.utime(file, (1000 - age, 1000 - age))
    assert general.get_latest_run(tmp_path).endswith(os.path.join("exp2", "weights", "last.pt"))
    assert general.file_size(tmp_path) == 1.0


def test_a_data_set_as_a_mapping(tmp_path):
    file = tmp_path / "few.yaml"
    file.write_text("path: .\ntrain: images\nval: images\nnames: {0: cat, 1: dog}\n")
    data = general.check_dataset(file)
    assert data["names"] == ["cat", "dog"] and data["nc"] == 2 and data["test"] == []
    assert [os.path.normpath(path) for path in data["val"]] == [str(tmp_path / "images")]


def test_download_fetches_and_unpacks(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("inside.txt", "text")
    general.download((tmp_path / "few.zip").as_uri(), tmp_path / "here")
    assert (tmp_path / "here" / "inside.txt").read_text() == "text"


def test_scripts_of_text():
    assert general.is_ascii("abc") and not general.is_ascii("é")
    assert general.is_chinese("人 walking") and not general.is_chinese("person é")
