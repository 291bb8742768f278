"""Large images in tiles and as a whole, with a detector that sees bright squares of four pixels and more."""

from functools import partial

import cv2
import numpy as np
import torch

import utils.predict.tiled as tiled
from utils.data.tiles import Tiling
from utils.predict.pipeline import Clock, Suppression, find_objects, prepare_image
from utils.predict.tiled import TileSearch

LEAST = 4  # pixels of the network's input


class Squares:
    """Maps (B, 3, h, w) to (B, M, 6) rows of what is bright; remembers the batches."""

    def __init__(self):
        self.shapes = []

    def __call__(self, images):
        self.shapes.append(tuple(images.shape))
        found = [self.see(image) for image in images]
        rows = torch.zeros(len(found), max(map(len, found)), 6)
        for out, boxes in zip(rows, found, strict=True):
            out[: len(boxes)] = boxes
        return rows

    def see(self, image):
        stats = cv2.connectedComponentsWithStats((image[0].numpy() > 0.6).astype(np.uint8))[2][1:]
        x, y, w, h = torch.from_numpy(stats[(stats[:, 2:4] >= LEAST).all(1), :4]).float().T
        return torch.stack((x + w / 2, y + h / 2, w, h, torch.full_like(x, 0.9), torch.ones_like(x)), 1)


def search(image, tiling, max_det=5000, shape=(640, 640), auto=True):
    """What is found in the whole image, in tiles too, and the network's shapes."""
    network, prepare = Squares(), partial(prepare_image, shape=shape, auto=auto)
    settings, clock = Suppression(max_det=max_det), Clock()
    pixels, geometry = prepare(image)
    whole = geometry.to_image(find_objects(network, [pixels], settings, clock)[0][0])
    found = TileSearch(tiling, network, prepare)(image, whole, settings, clock)
    assert clock.images == 1
    return whole, found, network.shapes


def test_small_images_are_looked_at_once():
    whole, found, shapes = search(np.zeros((600, 640, 3), np.uint8), Tiling(640))
    assert len(whole) == len(found) == 0 and len(shapes) == 1


def test_two_thousand_small_objects_in_twelve_megapixels():
    rng = np.random.default_rng(0)
    cells = rng.permutation(200 * 150)[:2000]  # of 20 x 20 pixels
    corners = np.stack((cells % 200, cells // 200), 1) * 20 + rng.integers(0, 7, (2000, 2))
    image = np.zeros((3000, 4000, 3), np.uint8)
    for x, y in corners:
        image[y : y + 8, x : x + 8] = 255
    whole, found, shapes = search(image, Tiling(640, batch=8))
    assert len(whole) == 0 and len(found) == 2000
    expected = np.hstack((corners, corners + 8)).tolist()
    assert sorted(found[:, :4].round().int().tolist()) == sorted(expected)
    assert max(np.prod(shape) for shape in shapes) == 8 * 3 * 640 * 640  # whatever the size of the image


def test_as_many_are_compared_as_can_be(monkeypatch):
    image, seen = np.zeros((100, 200, 3), np.uint8), []
    for left in range(10, 170, 20):
        image[10:20, left : left + 10] = 255
    monkeypatch.setattr(tiled, "MAX_MERGED", 3)
    monkeypatch.setattr(tiled, "merge_views", lambda rows, *given: seen.append(len(rows)) or rows)
    assert len(search(image, Tiling(96, merge="greedy"), max_det=1)[1]) == 1
    assert len(search(image, Tiling(96, merge="wbf"), max_det=4)[1]) == 4
    assert len(search(image, Tiling(96), max_det=4)[1]) == 4
    assert seen[:2] == [3, 8] and seen[2] > 8


def test_tiles_fit_a_fixed_shape_and_large_objects_come_from_the_whole():
    image = np.zeros((500, 900, 3), np.uint8)
    image[100:400, 200:800] = 255
    image[40:60, 40:60] = 255
    _, found, shapes = search(image, Tiling(200), shape=(64, 96), auto=False)
    assert {shape[1:] for shape in shapes} == {(3, 64, 96)}
    expected = torch.tensor([[40, 40, 60, 60], [200, 100, 800, 400]])
    assert len(found) == 2 and (found[found[:, 0].argsort(), :4] - expected).abs().max() < 1.5 * 900 / 96
    assert len(search(image, Tiling(200, 0.5, "greedy"), max_det=1)[1]) == 1
