"""What PyTorch paints a batch at a time, held against what OpenCV paints one by one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.base.config import Hyp
from utils.data.augmentations import Sample, random_warp
from utils.data.batch_painting import Sketches, paint_batch
from utils.data.datasets import DetectionDataset, create_dataloader
from utils.data.painting import Sketch, paint
from utils.data.samplers import Batch, SampleKey, collate

CPU = torch.device("cpu")
BOUND = 1.0  # grey levels, the mean difference of an image
SIZES = ((64, 48), (48, 64), (100, 60), (40, 40), (200, 20), (33, 77), (320, 240), (96, 96))
SHARES = ("mosaic", "mosaic9", "mixup", "copy_paste", "flipud", "fliplr", "hsv_h", "hsv_s", "hsv_v", "translate")
HYPS = st.fixed_dictionaries(
    {
        **{name: st.sampled_from((0.0, 0.3, 1.0)) for name in SHARES},
        "degrees": st.sampled_from((0.0, 45.0, 180.0)),
        "shear": st.sampled_from((0.0, 10.0)),
        "scale": st.sampled_from((0.0, 0.5, 0.9)),
        "perspective": st.sampled_from((0.0, 0.0005, 0.01)),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of several shapes with as much detail as a photograph; a box or a polygon each, the first none."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("painted")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for number, (width, height) in enumerate(SIZES):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"images/{number}.png"), cv2.GaussianBlur(noise, (5, 5), 1.5))
        row = "0 0.2 0.2 0.7 0.3 0.8 0.6 0.5 0.9" if number % 2 else "1 0.5 0.4 0.5 0.6"
        (root / f"labels/{number}.txt").write_text(row if number else "")
    return root / "images"


def batches(folder: Path, hyp: dict, rect: bool = False) -> tuple[Batch, Batch]:
    """The same keys, painted by OpenCV and planned only."""
    both = []
    for paints in (True, False):
        dataset = DetectionDataset(folder, 96, 4, True, hyp, rect=rect, seed=3)
        dataset.paints = paints
        both.append(collate([dataset[SampleKey(position, 1, position == 3)] for position in range(4)]))
    return both[0], both[1]


def test_images_without_labels_and_a_single_pixel() -> None:
    image = np.array([[[10, 200, 30]]], np.uint8)
    images = paint_batch(Sketches.pack([Sketch.of(image)]), CPU)
    assert images.tolist() == [[[[30]], [[200]], [[10]]]], "RGB"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(HYPS, st.booleans())
def test_boxes_are_equal_and_pixels_within_a_grey_level(folder: Path, hyp: dict, rect: bool) -> None:
    painted, planned = batches(folder, hyp, rect)
    assert torch.equal(planned.targets, painted.targets) and planned[2:] == painted[2:]
    images = paint_batch(planned.images, CPU)
    assert images.dtype == torch.uint8 and images.shape == painted.images.shape
    difference = (images.int() - painted.images.int()).abs().float().mean((1, 2, 3))
    assert difference.max() <= BOUND, difference


def test_every_colour_turns_as_in_opencv() -> None:
    """Each of 4,096 colours under 12 factors; a hue between two steps of 255 / 30 levels may go to the other one."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    rng = np.random.default_rng(0)
    plain = [replace(Sketch.of(image), colours=1 + rng.uniform(-1, 1, 3) * (0.1, 0.9, 0.9)) for _ in range(11)]
    plain.append(replace(Sketch.of(image), colours=np.ones(3)))
    expected = np.stack([paint(sketch)[..., ::-1].transpose(2, 0, 1) for sketch in plain]).astype(int)
    found = paint_batch(Sketches.pack(plain), CPU).numpy()
    difference = abs(found - expected)
    assert difference.max() <= 2 * 255 / 30 and difference.mean() < 0.2


def test_without_interpolation_nothing_differs() -> None:
    """Whole turns and flips are exact, and so is grey beside the canvas, on batches of more than one chunk."""
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sketches = [replace(Sketch.of(image), flips=(number % 2 == 0, number % 3 == 0)) for number in range(35)]
    still = replace(Hyp(), degrees=0.0, translate=0.0, scale=0.0, shear=0.0)
    wider = random_warp((30, 20), (30, 20), still, np.random.default_rng(0))
    wider = wider._replace(matrix=np.array(((1.0, 0, 25), (0, 1, -15), (0, 0, 1))))
    sketches.append(Sketch(((image, wider),)))
    images = paint_batch(Sketches.pack(sketches), CPU).numpy()
    for found, sketch in zip(images, sketches, strict=True):
        np.testing.assert_array_equal(found, paint(sketch)[..., ::-1].transpose(2, 0, 1))
    assert (images[-1][:, 5:, :25] == 114).all()


def test_an_image_is_painted_alike_in_any_batch_and_by_any_number_of_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    hyp, runs = {"mosaic": 0.8, "mixup": 0.5, "degrees": 10.0}, []
    for size, workers in ((4, 0), (4, 2), (2, 1)):
        loader, dataset = create_dataloader(folder, 64, size, 32, augment=True, hyp=hyp, workers=workers, shuffle=True)
        dataset.paints = False
        loader.sampler.set_epoch(2)
        runs.append(torch.cat([paint_batch(batch.images, CPU) for batch in loader]))
    assert len(runs[0]) == 8
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_a_mixed_image_weighs_two_views() -> None:
    images = [np.full((8, 8, 3), level, np.uint8) for level in (100, 200)]
    layers = Sketch.of(images[0]).layers + Sketch.of(images[1]).layers
    for share in (0.25, 0.5):
        found = paint_batch(Sketches.pack([Sketch(layers, share), Sketch.of(images[0])]), CPU)
        assert found[0].unique().tolist() == [round(share * 100 + (1 - share) * 200)] and (found[1] == 100).all()


def test_effects_are_left_to_opencv() -> None:
    sample = Sample(np.zeros((4, 4, 3), np.uint8), np.zeros((0, 5), np.float32))
    with pytest.raises(AssertionError, match="effects"):
        Sketches.pack([replace(Sketch.of(sample.source), effects=(("grey", 0),))])
