"""The palette, fonts and drawing."""

import numpy as np
import pytest
from PIL import Image

from utils import annotator as module
from utils.annotator import Annotator, colors, drawable_names, find_font, readable_on


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(module, "_font_folders", lambda: [])
    monkeypatch.delenv("YOLOV5_FONT", raising=False)
    caches = (module._system_cjk_fonts, module._font_covering, module._warn_undrawable)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def blank(height=100, width=200):
    return np.zeros((height, width, 3), np.uint8)


def test_no_label_draws_only_the_outline():
    im = Annotator(blank(), line_width=2).result()
    assert not im.any()
    drawing = Annotator(blank(), line_width=2)
    drawing.box_label((50, 30, 80, 60), color=(10, 20, 30))
    ys, xs = np.nonzero(drawing.result().any(2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (49, 29, 80, 60)  # two pixels centred on each edge
    assert not drawing.result()[31:59, 51:79].any()
    assert set(map(tuple, drawing.result()[ys, xs])) == {(10, 20, 30)}


def test_array_is_drawn_in_place_but_read_only_ones_are_copied():
    im = blank()
    Annotator(im).box_label((10, 10, 50, 50), "a")
    assert im.any()
    frozen = np.asarray(Image.new("RGB", (60, 40)))
    drawing = Annotator(frozen)
    drawing.box_label((10, 10, 30, 30), "a")
    assert drawing.result().any() and not frozen.any()
    assert Annotator(Image.new("L", (60, 40))).result().shape == (40, 60, 3)


@pytest.mark.parametrize("shape, dtype", [((10, 10), "uint8"), ((10, 10, 4), "uint8"), ((10, 10, 3), "float32")])
def test_what_is_no_picture_is_refused(shape, dtype):
    with pytest.raises(ValueError, match="cannot draw on"):
        Annotator(np.zeros(shape, dtype))


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (190, 90, 400, 300), (0, 0, 199, 99), (500, 500, 600, 600)])
def test_boxes_may_leave_the_picture(box):
    drawing = Annotator(blank())
    drawing.box_label(box, "a long label that does not fit", colors(0))
    assert drawing.result().shape == (100, 200, 3)


def test_label_stands_above_the_box_and_inside_it_at_the_upper_edge():
    above, inside = Annotator(blank(), 1, 12), Annotator(blank(), 1, 12)
    above.box_label((50, 60, 90, 90), "x", (0, 0, 200))
    inside.box_label((50, 2, 90, 90), "x", (0, 0, 200))
    assert above.result()[50, 51].any() and not above.result()[65, 55].any()
    assert inside.result()[8, 52].any()


def test_colours_repeat_after_twenty_and_turn_round_for_opencv():
    assert colors(0) == (0xFF, 0x38, 0x38)
    assert colors(21) == colors(1) == colors(1.0) and colors(0, bgr=True) == (0x38, 0x38, 0xFF)
    assert len(set(colors.palette)) == 20


def test_text_colour_contrasts():
    assert readable_on((255, 255, 255)) == (20, 20, 20) and readable_on((0, 0, 0)) == (255, 255, 255)


def test_ascii_names_need_no_font_file():
    assert find_font("") == "" and find_font("car 0.5") == ""
    assert drawable_names(["car", "bus"]) == ["car", "bus"] and drawable_names({1: "b", 0: "a"}) == ["a", "b"]


def test_names_without_glyphs_become_numbers_with_one_warning(no_system_fonts, caplog):
    with caplog.at_level("WARNING", "yolov5"):
        for _ in range(3):
            assert drawable_names(["car", "行人", "bus"]) == ["car", "1", "bus"]
    assert len(caplog.records) == 1 and "YOLOV5_FONT" in caplog.text and "行人" in caplog.text


def test_the_environment_names_a_font(no_system_fonts, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("YOLOV5_FONT", str(tmp_path / "none.ttf"))
    assert find_font("car") == "" and "none.ttf" in caplog.text  # an unreadable one is said and passed over
    font = find_font("é")  # matplotlib's own
    monkeypatch.setenv("YOLOV5_FONT", font)
    assert find_font("car") == font


def test_system_fonts_are_found_by_their_names(monkeypatch, tmp_path, no_system_fonts):
    for name in ("wqy-zenhei.ttc", "NotoSansCJK-Regular.ttc", "Other.ttf", "notosanscjk.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(module, "_font_folders", lambda: [tmp_path])
    found = [name.rpartition("/")[2] for name in module._system_cjk_fonts()]
    assert found == ["NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc"]


def test_text_that_no_font_has_is_drawn_as_boxes_not_as_an_error(no_system_fonts):
    drawing = Annotator(blank(), example="行人")
    drawing.text((5, 5), "行人")
    assert drawing.result().any()
