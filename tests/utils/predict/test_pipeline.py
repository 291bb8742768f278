"""From an image to boxes and back to the image."""

import numpy as np
import pytest
import torch

from utils.images.letterbox import letterbox
from utils.predict.pipeline import Clock, Geometry, Suppression, find_objects, prepare_image, suppress, to_network


def rows(*boxes):
    """Predictions (1, n, 7) of boxes (centre x, centre y, side) of two classes, each less sure than the one before."""
    return torch.tensor([[[x, y, side, side, 0.9 - 0.1 * i, i % 2, 1 - i % 2] for i, (x, y, side) in enumerate(boxes)]])


def test_nothing_found_and_there_and_back():
    clock = Clock()
    found, output = find_objects(lambda images: torch.zeros(2, 0, 7), torch.zeros(2, 3, 8, 8), Suppression(), clock)
    assert [one.shape for one in found] == [(0, 6)] * 2 and output.shape == (2, 0, 7) and clock.images == 2
    assert Geometry((4, 4), (8, 8)).to_image(found[0]).shape == (0, 6)
    geometry = Geometry((100, 200), (64, 64))  # half of the input is padding
    assert geometry.to_input([(0, 0), (200, 100)]) == [(0, 16), (64, 48)]
    boxes = torch.tensor([[0.0, 16, 32, 32, 0.5, 3], [-5, 0, 80, 64, 0.4, 1]])
    assert geometry.to_image(boxes).tolist() == [[0, 0, 100, 50, 0.5, 3], [0, 0, 200, 100, pytest.approx(0.4), 1]]
    loaded = Geometry((100, 200), (64, 64), ((0.16, 0.16), (0, 8)))
    assert loaded.to_image(np.array([[0.0, 8, 16, 16]])).tolist() == [[0, 0, 100, 50]]


@pytest.mark.parametrize("bgr", [True, False])
@pytest.mark.parametrize("shape, auto", [((30, 50), True), ((30, 50), False), ((97, 31), True), ((97, 31), False)])
def test_images_are_letterboxed_as_in_training(shape, auto, bgr):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    pixels, geometry = prepare_image(image, (64, 96), 32, auto, bgr)
    expected = letterbox(image, (64, 96), auto=auto, stride=32)[0]
    assert np.array_equal(pixels.transpose(1, 2, 0), expected[..., ::-1] if bgr else expected)
    assert geometry == Geometry(shape, expected.shape[:2]) and pixels.flags.c_contiguous
    batch = to_network([pixels, pixels])
    assert batch.dtype == torch.float32 and torch.equal(batch, torch.from_numpy(np.stack([pixels] * 2)).float() / 255)


def test_the_whole_way_with_settings_for_each_image():
    images = [np.zeros((3, 64, 64), np.uint8)] * 2
    both = rows((32, 32, 10), (32, 33, 10), (9, 9, 8)).repeat(2, 1, 1)
    settings = [Suppression(agnostic=True), Suppression(classes=[1], max_det=1)]
    (first, second), output = find_objects(lambda batch: (both, "more"), images, settings, Clock())
    assert output[1] == "more" and first[:, 5].tolist() == [1, 1] and second.tolist() == [first[0].tolist()]
    for one, alone in zip(settings, (first, second), strict=True):
        assert torch.equal(suppress(both[:1], one)[0], alone)
