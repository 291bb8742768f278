"""Images of every kind in, boxes in several forms out."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from models import common
from models.api.autoshape import AutoShape, load_image, to_rgb
from models.api.detections import Detections, describe_counts
from models.backends import DetectMultiBackend
from tests.known_detector import NAMES, by_rows, expected_boxes, known_model, write_weights
from tests.pages import serving
from utils.drawing.writers import write_image


@pytest.fixture(scope="module")
def model():
    return AutoShape(known_model())


def coloured(height=32, width=32):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 200  # red
    return image


def test_no_image_is_refused(model):
    with pytest.raises(ValueError, match="no image"):
        model([])
    with pytest.raises(ValueError, match="int"):
        model([3])


def test_native_pixels(model):
    result = model(coloured(), size=32)
    assert isinstance(result, Detections) and len(result) == result.n == 1 and result.s == (1, 3, 32, 32)
    assert torch.allclose(by_rows(result.xyxy[0][:, :4]), expected_boxes(), atol=1e-2)
    result = model(coloured(64, 128), size=32)  # letterboxed to 32 x 32: half of it is padding
    boxes = result.xyxy[0][:, :4]
    assert float(boxes.max()) <= 128 and float(boxes[:, [1, 3]].max()) <= 64
    assert result.s == (1, 3, 32, 32)
    assert torch.allclose(result.xyxyn[0][:, :4] * torch.tensor([128, 64, 128, 64]), boxes)
    assert torch.allclose(result.xywh[0][:, 2:4], boxes[:, 2:] - boxes[:, :2])
    assert torch.equal(result.xywhn[0][:, 4:], result.xyxy[0][:, 4:])


def test_common_shape_is_whole_strides_and_batches_give_raw_predictions(model):
    result = model([coloured(20, 40), coloured(30, 40), coloured(10, 10)], size=64)
    assert torch.equal(model(torch.zeros(3, 32, 32), size=32).xyxy[0], model((np.zeros((32, 32, 3)),), size=32).xyxy[0])
    assert result.s == (3, 3, 64, 64) and [im.shape[0] for im in result.imgs] == [20, 30, 10]
    assert model([coloured(20, 40)], size=64).s == (1, 3, 32, 64)
    assert model([coloured(3, 400)], size=64).s == (1, 3, 32, 64)
    batch = torch.rand(2, 3, 32, 64)
    assert torch.equal(model(batch)[0], model.model(batch)[0])
    assert torch.equal(model(batch.double())[0], model.model(batch)[0])
    with pytest.raises(ValueError, match="batch / 255"):
        model((batch * 255).byte())


@pytest.mark.parametrize("size", [0, -32, "640", 32.0, (32, 32)])
def test_what_is_no_size(model, size):
    with pytest.raises(ValueError, match="longer side in pixels"):
        model(coloured(), size=size)


@pytest.mark.parametrize(
    "kind", ["array", "grey", "chw", "rgba", "float", "pil", "palette", "path", "str", "tensor", "half"]
)
def test_every_kind_of_image_has_the_same_pixels(kind, tmp_path):
    rgb = coloured(20, 30)
    path = write_image(tmp_path / "red 红.png", rgb[..., ::-1])
    tensor = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    items = {
        "array": rgb,
        "grey": rgb[..., 0],
        "chw": rgb.transpose(2, 0, 1),
        "rgba": np.dstack([rgb, np.full((20, 30), 9, np.uint8)]),
        "float": rgb.astype(np.float32) / 255,
        "pil": Image.fromarray(rgb),
        "palette": Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE),
        "path": path,
        "str": str(path),
        "tensor": tensor,
        "half": tensor.bfloat16() / 255,
    }
    image, name = load_image(items[kind])
    expected = np.full_like(rgb, 200) if kind == "grey" else rgb
    assert image.dtype == np.uint8 and np.abs(image.astype(int) - expected).max() <= 1
    assert image.flags.writeable and image is not items[kind]
    assert name == (str(path) if kind in ("path", "str") else "")


@pytest.mark.parametrize(
    "shape, size", [((3, 40, 3), (3, 40)), ((4, 40, 4), (4, 40)), ((3, 40, 50), (40, 50)), ((2, 50, 1), (2, 50))]
)
def test_flat_and_narrow_images_are_not_taken_for_channels_first(shape, size):
    assert to_rgb(np.zeros(shape, np.uint8)).shape == (*size, 3)


PILLOW_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F")


@pytest.mark.parametrize("mode", [*PILLOW_MODES, "LAB", "I;16", "I;16B"])
def test_every_mode_of_pillow(mode):
    white = Image.new("RGB", (30, 20), "white")
    steps = {"La": ("LA", "La"), "PA": ("LA", "PA"), "RGBa": ("RGBA", "RGBa")}
    if mode == "LAB":
        image = Image.new(mode, (30, 20), (255, 128, 128))
    elif mode.startswith("I;16"):
        image = Image.new(mode, (30, 20), 65535)
    else:
        image = white
        for step in steps.get(mode, (mode,)):
            image = image.convert(step)
    assert image.mode == mode
    array, _ = load_image(image)
    assert array.shape == (20, 30, 3) and array.dtype == np.uint8 and array.min() >= 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation, tmp_path):
    """The corner that is red in the stored image lies where EXIF says; files and PIL images agree."""
    stored = np.full((24, 40, 3), 255, np.uint8)
    stored[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    turned = {  # row 0 and column 0 of the stored image are these sides of what people see
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }  # fmt: skip
    for item in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert np.array_equal(load_image(item)[0], turned[orientation])


@pytest.fixture(scope="module")
def site():
    """A server on this machine, with an image and with what is none, such as the beginning of an enormous one."""
    red, buffer = cv2.imencode(".png", coloured(20, 30)[..., ::-1])[1].tobytes(), bytearray()
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")):
        buffer += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    bomb = b"\x89PNG\r\n\x1a\n" + bytes(buffer)
    with serving({"/red.png": red, "/bomb.png": bomb, "/text.png": b"hello", "/empty.png": b""}) as address:
        yield address


def test_addresses(model, site, monkeypatch):
    result = model([f"{site}/red.png?size=1", coloured(20, 30)], size=32)
    assert np.array_equal(*result.imgs) and result.files == ["red.jpg", "image1.jpg"]
    monkeypatch.setattr("utils.predict.sources.WEB_LARGEST", 20)
    with pytest.raises(ValueError, match="larger than"):
        model(f"{site}/red.png")


def test_depths_and_flat_images():
    assert to_rgb(np.array([[0, 65535]], np.uint16))[0, 1].tolist() == [255] * 3
    assert to_rgb(np.array([[0, 1]], bool))[0, 1].tolist() == [255] * 3
    assert to_rgb(np.array([[-5, 300]], np.int64))[0].tolist() == [[0] * 3, [255] * 3]
    assert load_image(Image.fromarray(np.array([[0, 65535]], np.uint16)))[0][0, 1].tolist() == [255] * 3
    assert load_image(torch.zeros(3, 40, 3))[0].shape == (40, 3, 3)
    assert load_image(torch.zeros(1, 2, 4))[0].shape == (2, 4, 3) and load_image(torch.zeros(5, 6))[0].shape[1] == 6
    shared = torch.zeros(3, 4, 5, dtype=torch.uint8, requires_grad=False)
    load_image(shared)[0][:] = 9
    assert not shared.any()
    with pytest.raises(ValueError, match="is no image"):
        load_image(torch.zeros(1, 3, 4, 5))


@pytest.mark.parametrize("shape", [(5,), (2, 5, 7), (1, 2, 3, 4), (0, 4, 3)])
def test_arrays_that_are_no_images(shape):
    with pytest.raises(ValueError, match="is no image"):
        to_rgb(np.zeros(shape, np.uint8))


def test_settings_are_those_of_the_instance(model):
    strict = AutoShape(model.model)
    strict.conf = 0.99
    assert len(strict(coloured(), size=32).xyxy[0]) == 0 and len(model(coloured(), size=32).xyxy[0]) == 16
    strict.conf, strict.classes = 0.25, [0, 2]
    assert len(strict(coloured(), size=32).xyxy[0]) == 0
    strict.classes, strict.max_det = None, 5
    assert len(strict(coloured(), size=32).xyxy[0]) == 5


class Exported(DetectMultiBackend):
    """In place of weights of another format: no parameters, and images of one size only."""

    shape = (64, 64)

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.pt, self.fp16, self.stride, self.names, self.device = False, False, 32, NAMES, torch.device("cpu")
        self.inner = [known_model()]  # in a list, so that its parameters are not ours

    def forward(self, im, augment=False, visualize=None, val=False):
        assert im.shape[2:] == (64, 64) and im.dtype == torch.float32 and im.device.type == "cpu"
        return self.inner[0](im)[0]


def test_other_formats_get_squares_and_a_backend_is_wrapped(tmp_path):
    wrapped = AutoShape(Exported())
    result = wrapped([coloured(20, 40), coloured(30, 40)], size=64)
    assert result.s == (2, 3, 64, 64) and not wrapped.pt and result.names == NAMES
    assert float(result.xyxy[0][:, :4].max()) <= 40 and len(result.xyxy[0])
    assert wrapped(torch.rand(1, 3, 64, 64).double()).shape == (1, 252, 8)
    wrapped = AutoShape(DetectMultiBackend(write_weights(tmp_path / "known.pt")))
    assert wrapped.names == NAMES and wrapped.pt and wrapped.nc == 3 and common.AutoShape is AutoShape
    result = wrapped(coloured(), size=32, profile=True)
    assert len(result.xyxy[0]) == 16 and common.Detections is Detections
    assert not wrapped.train().training and wrapped(coloured(), size=32, augment=True).n == 1


def test_words():
    assert describe_counts([], NAMES) == "(no detections)"
    assert describe_counts([1.0, 0.0, 1.0], NAMES) == "1 car, 2 persons"
    assert describe_counts([0, 0, 1, 1, 2], ["cross", "bench", "bus"]) == "2 crosses, 2 benches, 1 bus"


def test_drawing_changes_the_results_images_not_the_callers(model, tmp_path):
    mine, pil = coloured(), Image.fromarray(coloured())
    result = model([mine, pil], size=32)
    rendered = result.render()
    assert np.array_equal(mine, coloured()) and np.array_equal(np.asarray(pil), coloured())
    assert all((image != coloured()).any() for image in rendered) and rendered[0] is result.imgs[0]
