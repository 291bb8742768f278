"""The palette, boxes and their tags."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.drawing import annotator as module
from utils.drawing.annotator import Annotator, colors


def blank(height=100, width=200):
    return np.zeros((height, width, 3), np.uint8)


def test_arrays_are_drawn_in_place_where_that_can_be():
    im = blank()
    Annotator(im).box_label((10, 10, 50, 50), "a")
    assert im.any()
    frozen = np.asarray(Image.new("RGB", (60, 40)))
    drawing = Annotator(frozen)
    drawing.box_label((10, 10, 30, 30), "a")
    assert drawing.result().any() and not frozen.any()
    assert Annotator(Image.new("L", (60, 40))).result().shape == (40, 60, 3)
    for wrong in (np.zeros((10, 10), np.uint8), np.zeros((10, 10, 4), np.uint8), np.zeros((10, 10, 3), np.float32)):
        with pytest.raises(ValueError, match="cannot draw on"):
            Annotator(wrong)


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (190, 90, 400, 300), (0, 0, 199, 99), (500, 500, 600, 600)])
def test_boxes_may_leave_the_image(box):
    drawing = Annotator(blank())
    drawing.box_label(box, "a long label that does not fit", colors(0))
    assert drawing.result().shape == (100, 200, 3)


def test_labels_and_their_colours():
    above, inside = Annotator(blank(), 1, 12), Annotator(blank(), 1, 12)
    above.box_label((50, 60, 90, 90), "x", (0, 0, 200))
    inside.box_label((50, 2, 90, 90), "x", (0, 0, 200))
    assert above.result()[50, 51].any() and not above.result()[65, 55].any()
    assert inside.result()[8, 52].any()
    assert colors(0) == (0xFF, 0x38, 0x38)
    assert colors(21) == colors(1) == colors(1.0) and colors(0, bgr=True) == (0x38, 0x38, 0xFF)
    assert len(set(colors.palette)) == 20
    im = Annotator(blank(), line_width=2).result()
    assert not im.any()
    drawing = Annotator(blank(), line_width=2)
    drawing.box_label((50, 30, 80, 60), color=(10, 20, 30))
    ys, xs = np.nonzero(drawing.result().any(2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (49, 29, 80, 60)  # two pixels centred on each edge
    assert not drawing.result()[31:59, 51:79].any()
    assert set(map(tuple, drawing.result()[ys, xs])) == {(10, 20, 30)}


@pytest.mark.parametrize("colour, text", [((255, 255, 0), (20, 20, 20)), ((0, 0, 200), (255, 255, 255))])
def test_text_colour_contrasts(colour, text):
    drawing = Annotator(blank(), font_size=20)
    drawing.box_label((20, 40, 190, 95), "WWW", colour)
    assert text in set(map(tuple, drawing.result().reshape(-1, 3)))


# ---- tags: a label with its text
def tag_pixels(box, image=(400, 400), label="person 0.87", **look):
    """Pixels that are drawn outside of the box's outline and interior, and the height of their area."""
    drawing = Annotator(blank(*image), **look)
    drawing.box_label(box, label, (0, 0, 200))
    seen = drawing.result().any(2)
    x1, y1, x2, y2 = (round(value) for value in box)
    half = drawing.lw // 2 + 1
    seen[max(y1 - half, 0) : y2 + half, max(x1 - half, 0) : x2 + half] = False
    return int(seen.sum()), int(seen.any(1).sum())


@pytest.mark.parametrize("image", [(64, 64), (400, 400), (1080, 1920)])
def test_tags_are_smaller_than_what_they_name_whatever_the_size(image):
    heights = []
    for side in range(4, min(image), min(image) // 20):
        x, y = (image[1] - side) / 2, (image[0] - side) / 2 + side / 3
        pixels, height = tag_pixels((x, y, x + side, y + side), image)
        assert pixels <= 0.6 * side * side, side
        heights.append(height)
    assert heights[0] == 0 and heights[-1] > 0
    assert all(after >= before - 1 for before, after in pairwise(heights)), "it grows with the box"


def test_large_boxes_have_tags_in_full_size_and_only_what_is_in_the_image_counts():
    mask = module._text_mask("person 0.87", "", 12)
    pixels, height = tag_pixels((50, 100, 350, 350), font_size=12, line_width=1)
    margin = 2
    assert height == mask.shape[0] + 2 - 1 and pixels == height * (mask.shape[1] + 2 * margin)
    assert tag_pixels((50, 100, 350, 350), font_size=5, line_width=1)[0] > 0, "somebody wants it small"
    assert tag_pixels((-80, 100, 20, 120))[0] == 0 and tag_pixels((20, 100, 120, 160))[0] > 0
    assert tag_pixels((500, 500, 600, 600))[0] == 0


@pytest.mark.parametrize("side, width", [(3, 1), (16, 2), (40, 5), (400, 21)])
def test_lines_are_thin_around_small_boxes(side, width):
    drawing = Annotator(blank(600, 600), line_width=21)
    drawing.box_label((100, 100, 100 + side, 100 + side))
    assert drawing.result()[100 + side // 2 + 1, : 100 + side // 2].any(1).sum() == width


def test_the_page_follows_the_same_rule():
    if shutil.which("node") is None:
        pytest.skip("the page's script is run by node")
    page = (Path(module.__file__).parents[1] / "serving/page.html").read_text(encoding="utf-8")
    rule = page[page.index("const TAG = {") : page.index("function drawTag(")]
    cases = [(area, letters) for area in (0, 100, 400, 900, 1600, 2500, 4000, 1e6) for letters in (1, 6, 11, 30)]
    script = (
        f"{rule}\nconst pen = {{ measureText: (text) => ({{ width: 7 * text.length }}) }};"
        f"console.log(JSON.stringify({json.dumps(cases)}.map(([area, letters]) => "
        "TAG.text * tagShrink(pen, 'x'.repeat(letters), area))));"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    sizes = [12.5 * min(1, (0.5 * area / ((7 * letters + 10) * 19)) ** 0.5) for area, letters in cases]
    assert json.loads(done.stdout) == pytest.approx([size if size >= 8 else 0 for size in sizes])
    assert {round(size) for size in sizes} & {8, 9, 10, 11}, "some are between nothing and the full size"
