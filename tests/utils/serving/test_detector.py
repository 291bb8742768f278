from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.images.letterbox import letterbox
from utils.serving.detector import Detector, Settings
from utils.serving.uploads import Decoder, Refusal


def known(boxes: list[list[float]], shape: tuple[int, int] | None = None) -> SimpleNamespace:
    """A model that gives the same rows (centre x, centre y, w, h, objectness, two classes) for every image."""

    class Model(SimpleNamespace):
        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            assert batch.dtype == torch.float32 and batch.min() >= 0 and batch.max() <= 1
            return torch.tensor(boxes).reshape(1, -1, 7).repeat(len(batch), 1, 1)

        def input_size(self, size: int) -> tuple[int, int]:
            return (-(-size // 32) * 32,) * 2

    return Model(names=["one", "two"], stride=32, device=torch.device("cpu"), fp16=False, shape=shape)


def file_of(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def detector(boxes: list[list[float]], shape: tuple[int, int] | None = None) -> Detector:
    return Detector(known(boxes, shape), Decoder(np.asarray, 10**6))


def test_nothing_found() -> None:
    look = detector([])
    prepared = look.prepare(file_of(20, 30), Settings(size=64))
    assert look.work(("boxes", prepared.pixels.shape), [prepared]) == [[]]
    with pytest.raises(Refusal):
        look.prepare(b"text", Settings())


@pytest.mark.parametrize("height, width", [(64, 64), (33, 100), (100, 7), (1, 500), (427, 640)])
def test_free_sizes_are_padded_to_the_stride_only(height: int, width: int) -> None:
    prepared = detector([]).prepare(file_of(height, width), Settings(size=100))
    pixels = np.asarray(Image.open(io.BytesIO(file_of(height, width))))
    expected = letterbox(pixels, (128, 128), auto=True, stride=32)[0].transpose(2, 0, 1)
    assert (prepared.pixels == expected).all() and prepared.geometry.image == (height, width)
    assert max(prepared.pixels.shape) == 128 and not any(side % 32 for side in prepared.pixels.shape[1:])
    assert detector([], (96, 64)).prepare(file_of(height, width), Settings(size=96)).pixels.shape == (3, 96, 64)


def test_rows_in_pixels_of_the_image() -> None:
    """An image of 100 x 50 in a 64 x 64 input is scaled by 0.64 and, with stride 32, not padded at all."""
    look = detector([[32, 16, 12.8, 6.4, 0.9, 0.1, 1.0], [50, 16, 8, 8, 0.5, 0.4, 0.2]])
    prepared = look.prepare(file_of(50, 100), Settings(conf=0.3, size=64))
    (rows,) = look.work(("boxes", None), [prepared])
    assert [list(row) for row in rows] == [["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]]
    expected = {"xmin": 40, "ymin": 20, "xmax": 60, "ymax": 30, "confidence": 0.9, "class": 1, "name": "two"}
    assert rows[0] == pytest.approx(expected, abs=1e-4)
    look.names = ["one"]  # fewer than the weights have
    assert look.work(("boxes", None), [prepared])[0][0]["name"] == "class1"


def test_each_image_has_its_own_settings() -> None:
    look = detector([[32, 32, 10, 10, 0.9, 1.0, 0.0], [32, 33, 10, 10, 0.8, 1.0, 0.0], [9, 9, 8, 8, 0.7, 0.0, 1.0]])
    file = file_of(64, 64)
    chosen = [Settings(0.25, 0.45, None, 64), Settings(0.25, 1.0, None, 64), Settings(0.25, 0.45, (1,), 64)]
    found = look.work(("boxes", None), [look.prepare(file, one) for one in chosen])
    assert [[row["class"] for row in rows] for rows in found] == [[0, 1], [0, 0, 1], [1]]
