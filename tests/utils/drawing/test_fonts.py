"""Which font draws what. Fonts are made up here: a test needs none of the system's."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.drawing import fonts as module
from utils.drawing.annotator import Annotator, find_font
from utils.drawing.batches import plot_images
from utils.drawing.figures import new_figure, text_font
from utils.drawing.fonts import drawable_names, font_runs, plain

CACHES = (module._system_fonts, module._characters_in, module.font_runs)


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    monkeypatch.setattr(module, "_warned", set())
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.delenv("YOLOV5_FONT", raising=False)
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


def made_font(file, characters):
    """A font whose glyphs are bars of different widths, for these characters and no others."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    names = [".notdef", *(f"u{ord(character):04X}" for character in characters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): f"u{ord(character):04X}" for character in characters})
    glyphs = {}
    for number, name in enumerate(names):
        pen = TTGlyphPen(None)
        right = 900 - 90 * number
        for place, corner in enumerate([(50, 0), (50, 700), (right, 700), (right, 0)]):
            (pen.lineTo if place else pen.moveTo)(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(file)
    return file


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def test_text_and_names_that_need_no_font_file(no_system_fonts):
    assert font_runs("") == [("", "")] and font_runs(" ") == [("", " ")] and drawable_names([]) == []
    assert font_runs("car #3 0.5") == [("", "car #3 0.5")]
    assert drawable_names(["car", "bus"]) == ["car", "bus"] and drawable_names({1: "b", 0: "a"}) == ["a", "b"]
    long = "a bolt of the kind that nobody has in the house "
    names = [long + "A", long + "B", "b" * 40, "c" * 41]
    assert drawable_names(names) == [f"{long[:28]}... #0", f"{long[:28]}... #1", "b" * 40, "c" * 28 + "... #3"]
    assert plain("a\u0308") == "ä", "macOS takes letters apart in file names"
    assert plain("x\u3000y\u00a0z") == "x y z" and plain("❤\ufe0f\u200d\u200f") == "❤"
    assert plain("a\nb\udcff") == "a\\nb\\udcff"


def test_names_without_glyphs_become_numbers_with_one_warning(no_system_fonts, caplog):
    with caplog.at_level("WARNING", "yolov5"):
        for _ in range(3):
            assert drawable_names(["car", "行人", "Straße", "bus 行"]) == ["car", "#1", "Straße", "#3"]
            assert [characters for _, characters in font_runs("行人 ß.jpg")] == ["?? ß.jpg"]
    assert len(caplog.records) == 1
    assert all(words in caplog.text for words in ("YOLOV5_FONT", "行人", "fonts-noto-cjk", "#1"))


@pytest.mark.parametrize(
    "system, text, package",
    [
        ("linux", "คน", "fonts-noto-core"),
        ("linux", "ひと", "google-noto-sans-cjk-fonts"),
        ("win32", "คน", "Noto Sans from"),
        ("darwin", "한국", "Noto Sans CJK from"),
    ],
)
def test_a_font_to_install_is_named(no_system_fonts, monkeypatch, caplog, system, text, package):
    monkeypatch.setattr(module.sys, "platform", system)
    assert drawable_names([text]) == ["#0"] and package in caplog.text


def test_the_environment_names_a_font(no_system_fonts, monkeypatch, tmp_path, caplog):
    (tmp_path / "none.ttf").write_text("no font")
    monkeypatch.setenv("YOLOV5_FONT", str(tmp_path / "none.ttf"))
    assert font_runs("car") == [("", "car")] and font_runs("bus") == [("", "bus")]
    assert caplog.text.count("none.ttf") == 1, "an unreadable one is said and passed over"
    font = str(made_font(tmp_path / "Mine.ttf", "car行"))
    monkeypatch.setenv("YOLOV5_FONT", font)
    assert font_runs("car 行") == [(font, "car 行")] and font_runs("bus") == [("", "bus")]
    assert font_runs("行 ö", font)[0] == (font, "行 ")


def test_system_fonts_are_found_the_better_looking_first(no_system_fonts, monkeypatch, tmp_path):
    best = ["NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "wqy-zenhei.ttc", "Any.TTF", "Any-Bold.ttf"]
    files = [str(tmp_path / name) for name in [*best[::-1], "LastResort.otf"]]
    for file in files:
        Path(file).touch()
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: files)
    assert [Path(name).name for name in module._system_fonts()] == best
    assert drawable_names(["行"]) == ["#0"], "files that are no fonts are passed over"


def test_a_text_has_one_font_where_that_can_be_and_else_one_for_each_piece(no_system_fonts, monkeypatch, tmp_path):
    cjk, thai = made_font(tmp_path / "wqy-microhei.ttf", "行人0.9"), made_font(tmp_path / "Thai.ttf", "คน")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: list(map(str, tmp_path.glob("*.ttf"))))
    assert drawable_names(["行人", "คน", "人 คน ß", "語"]) == ["行人", "คน", "人 คน ß", "#3"]
    assert font_runs("行人 0.9") == [(str(cjk), "行人 0.9")]
    assert font_runs("คน 0.87") == [(str(thai), "คน "), ("", "0.87")]
    pieces = font_runs("人 คน ß")
    assert [characters for _, characters in pieces] == ["人 ", "คน ", "ß"] and find_font("人 คน ß") is None
    for cached in CACHES:
        cached.cache_clear()
    made_font(tmp_path / "Unneeded.ttf", "x")
    font_runs("人 คน ß")
    read_fonts = module._characters_in.cache_info().currsize
    drawable_names(["語"])
    assert module._characters_in.cache_info().currsize == read_fonts + 1, "no font is read that nothing is wanted of"


NAMES = ["ö", "ß", "Д", "λ", "行", "人"]


@pytest.fixture
def cjk(no_system_fonts, monkeypatch, tmp_path):
    font = made_font(tmp_path / "simhei.ttf", "行人")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: list(map(str, tmp_path.glob("*.ttf"))))
    return font


def test_each_letter_has_its_own_look_in_captions_and_images(cjk, tmp_path):
    image = np.full((1, 3, 320, 320), 90, np.uint8)
    captions = [read(plot_images(image, np.zeros((0, 6)), [f"d/{name}.jpg"], tmp_path / "m.png")) for name in NAMES]
    annotated = []
    for name in NAMES:
        drawing = Annotator(np.zeros((80, 80, 3), np.uint8))
        drawing.box_label((10, 30, 70, 70), name)
        annotated.append(drawing.result())
    for drawn in (captions, annotated):
        assert len({one.tobytes() for one in drawn}) == len(NAMES)


def test_figures_have_every_letter(cjk):
    names = [*NAMES, "行ö", "Straße 人", "$x", "a$b$c"]
    figure, (axis,) = new_figure(1, 1, (4, 3))
    for place, name in enumerate(names):
        axis.text(0, place / 10, name, fontproperties=text_font([name], 9), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing is a warning of matplotlib's
        figure.canvas.draw()
        axis.text(0, 0, "語", fontproperties=text_font(["語"], 9))
        with pytest.raises(UserWarning, match="Glyph"):
            figure.canvas.draw()
