"""Finding images, reading them and their labels, the bad-input list, and the cache of it all."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.base.log import LOGGER
from utils.data.label_arrays import LabelIndex
from utils.data.label_index import cache_path, load_index
from utils.data.labels import LabelError, check_pair, parse_label_text
from utils.images.reading import read_image

POLYGON = "0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5"


def draw(path: Path, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100).save(path, **options)
    return path


def pair(folder: Path, text: str | None, name: str = "a") -> tuple[Path, Path]:
    image, label = draw(folder / f"images/{name}.png"), folder / f"labels/{name}.txt"
    label.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        label.write_text(text)
    return image, label


BAD_IMAGES = {
    "zero bytes": (b"", "empty file"),
    "text": (b"not an image", "its content is no image, whatever its name"),
    "one pixel": ((1, 1), "1 x 1 pixels are too few"),
    "nine pixels": ((9, 64), "9 x 64 pixels are too few"),
    "missing": (None, "no such image"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_unusable_images_are_named(tmp_path: Path, case: str) -> None:
    content, reason = BAD_IMAGES[case]
    path = tmp_path / "a.png"
    if isinstance(content, tuple):
        draw(path, content)
    elif content is not None:
        path.write_bytes(content)
    record = check_pair(str(path), str(tmp_path / "a.txt"))
    assert record.size is None and str(path) in str(record.problem) and reason in str(record.problem)
    assert "\n" not in str(record.problem)
    if not isinstance(content, tuple):
        with pytest.raises(ValueError, match=f"a.png: {reason if content is not None else 'cannot be read'}"):
            read_image(path)


GOOD_ROWS = {
    "empty": ("", []),
    "white space only": ("  \n\n \n", []),
    "one row, no line end": ("1 0.5 0.5 0.2 0.2", [[1, 0.5, 0.5, 0.2, 0.2]]),
    "blank lines between": ("0 1 1 .2 .2\n  \n\n1 .1 .1 .2 .2\r\n", [[0, 1, 1, 0.2, 0.2], [1, 0.1, 0.1, 0.2, 0.2]]),
    "the limits": ("0 1 1 1 1\n0 0 0 0 0", [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]),
    "whole class as a fraction": ("1.0\t.5 .5 2e-1 .2", [[1, 0.5, 0.5, 0.2, 0.2]]),
    "byte order mark": ("\ufeff0 .5 .5 .2 .2", [[0, 0.5, 0.5, 0.2, 0.2]]),
    "polygon": (POLYGON, [[0, 0.25, 0.3, 0.3, 0.4]]),
    "polygon, then box": (f"{POLYGON}\n1 .5 .5 .2 .2", [[0, 0.25, 0.3, 0.3, 0.4], [1, 0.5, 0.5, 0.2, 0.2]]),
    "triangle among polygons": (f"{POLYGON}\n1 0 0 .5 0 .5 .5", [[0, 0.25, 0.3, 0.3, 0.4], [1, 0.25, 0.25, 0.5, 0.5]]),
}


@pytest.mark.parametrize("case", GOOD_ROWS)
def test_good_label_files(tmp_path: Path, case: str) -> None:
    text, expected = GOOD_ROWS[case]
    image, label = pair(tmp_path, text)
    record = check_pair(str(image), str(label))
    assert record.problem is None and len(record.segments) == len(expected)
    np.testing.assert_allclose(record.labels, np.array(expected).reshape(-1, 5), atol=1e-7)


COUNTED_ROWS = {  # text, labels, and how the note begins
    "single precision": ("0 .5 .5 1.0000002 1.0", [[0, 0.5, 0.5, 1, 1]], "coordinates outside of 0 to 1"),
    "four digits": ("0 1.0001 -0.0001 .2 .2", [[0, 1, 0, 0.2, 0.2]], "coordinates outside of 0 to 1"),
    "a polygon": ("0 -.00002 0 1.00002 0 1.00002 .5 0 .5", [[0, 0.5, 0.25, 1, 0.5]], "coordinates outside of 0 to 1"),
    "no side": (
        "0 .5 .5 .2 .2\n0 .5 .5 0 .2",
        [[0, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0, 0.2]],
        "labels without width",
    ),
}


@pytest.mark.parametrize("case", COUNTED_ROWS)
def test_rounding_is_clipped_and_counted_and_so_are_flat_boxes(tmp_path: Path, case: str) -> None:
    text, expected, said = COUNTED_ROWS[case]
    image, label = pair(tmp_path, text)
    record = check_pair(str(image), str(label))
    assert record.problem is None and record.labels[:, 1:].min() >= 0 and record.labels[:, 1:].max() <= 1
    np.testing.assert_allclose(record.labels, expected, atol=1e-6)
    (note,) = record.notes
    assert note.count == 1 and str(note).startswith(f"1 image, the first {label}: {said}")


BAD_ROWS = {
    "four columns": ("0 .5 .5 .2 .2\n1 .5 .5 .2", 2, "4 columns"),
    "six columns": ("0 .5 .5 .2 .2 .9", 1, "6 columns"),
    "odd polygon": (POLYGON + " 0.3", 1, "10 columns"),
    "triangle alone": ("0 .1 .1 .4 .1 .4 .5", 1, "7 columns"),
    "not a number": ("person .5 .5 .2 .2", 1, "not numbers"),
    "commas": ("0,0.5,0.5,0.2,0.2", 1, "separate the values by spaces"),
    "nan": ("\n0 nan .5 .2 .2", 2, "not finite"),
    "infinite": ("0 inf .5 .2 .2", 1, "not finite"),
    "negative place": ("0 -.1 .5 .2 .2", 1, "negative value"),
    "negative width": ("0 .5 .5 -.2 .2", 1, "negative value"),
    "negative class": ("-1 .5 .5 .2 .2", 1, "whole number"),
    "half a class": ("0.5 .5 .5 .2 .2", 1, "whole number"),
    "above one": ("0 .5 .5 .2 .2\n\n0 1.01 .5 .2 .2", 3, "above 1"),
    "pixels": ("0 120 80 40 30", 1, "divide pixels"),
    "beyond rounding": ("0 .5 .5 1.00011 1", 1, "value above 1: 0 0.5 0.5 1.00011 1"),
    "below rounding": ("0 -.00011 1 1 1", 1, "negative value: 0 -0.00011"),
    "polygon outside": ("0 .1 .1 1.4 .1 1.4 .5 .1 .5", 1, "above 1"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_with_file_line_and_remedy(tmp_path: Path, case: str) -> None:
    text, line, reason = BAD_ROWS[case]
    image, label = pair(tmp_path, text)
    record = check_pair(str(image), str(label))
    assert record.size is None and str(record.problem).startswith(f"{label}:{line}: ") and reason in str(record.problem)
    assert "\n" not in str(record.problem)
    with pytest.raises(LabelError):
        parse_label_text(text)
    assert label.read_text() == text


def test_duplicates_are_removed_and_told(tmp_path: Path) -> None:
    image, label = pair(tmp_path, "2 .9 .9 .1 .1\n0 .5 .5 .2 .2\n2 .90 .9 1e-1 .1\n")
    record = check_pair(str(image), str(label))
    np.testing.assert_allclose(record.labels, [[0, 0.5, 0.5, 0.2, 0.2], [2, 0.9, 0.9, 0.1, 0.1]])
    assert record.problem.line == 3 and "1 duplicate labels ignored" in str(record.problem)
    image, label = pair(tmp_path, f"{POLYGON}\n1 .5 .5 .2 .2\n{POLYGON}")
    record = check_pair(str(image), str(label))
    assert [len(points) for points in record.segments] == [4, 0], "polygons follow their labels"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 90), *[st.floats(0, 1, width=32, allow_subnormal=False)] * 4), max_size=8, unique=True
    )
)
def test_what_is_written_is_read(rows: list[tuple]) -> None:
    labels, segments, lines, _ = parse_label_text("\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows))
    np.testing.assert_array_equal(labels, np.array(rows, dtype=np.float32).reshape(-1, 5))
    assert lines == list(range(1, len(rows) + 1)) and all(len(points) == 0 for points in segments)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images with boxes, polygons, both, nothing, no file and a bad one, in a folder with a dot and a space."""
    root = tmp_path / "my data v1.0"
    texts = {"a": "0 .5 .5 .2 .2\n1 .1 .1 .1 .1", "b": POLYGON, "c": f"2 .5 .5 .1 .1\n{POLYGON}"}
    texts |= {"d": "", "e": None, "f": "0 1"}
    for name, text in texts.items():
        pair(root, text, f"v1.0/{name}")
    return root


def content(index: LabelIndex) -> list[tuple]:
    return [
        (Path(index.path(i)).name, index.labels(i).tolist(), [points.tolist() for points in index.segments(i)])
        for i in range(len(index))
    ]


def test_index_counts_polygons_order_and_classes(mixed: Path) -> None:
    index = load_index(mixed / "images")
    assert (index.counts.found, index.counts.missing, index.counts.empty, index.counts.corrupt) == (5, 1, 1, 1)
    assert [len(labels) for _, labels, _ in content(index)] == [2, 1, 2, 0, 0]
    assert [[len(points) for points in segments] for *_, segments in content(index)] == [[], [4], [0, 4], [], []]
    assert [problem.line for problem in index.problems] == [1] and index.sizes.tolist() == [[64, 48]] * 5
    order = np.array([4, 2, 0, 2])
    assert content(index.take(order)) == [content(index)[i] for i in order]
    index.check_classes(3)
    for nc, said in ((2, r"c\.txt:1: class 2, but the data set has 2 classes"), (1, r"a\.txt:2: class 1")):
        with pytest.raises(ValueError, match=said):
            index.check_classes(nc)


def test_cache_has_a_whole_name_no_pickle_and_the_same_content(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_index(mixed / "images")
    cache = mixed / "labels/v1.0.cache.npz"
    assert cache.exists() and stat.S_IMODE(cache.stat().st_mode) == 0o644
    assert not any(array.dtype.hasobject for array in np.load(cache, allow_pickle=False).values())
    monkeypatch.setattr("utils.data.label_index.check_pair", lambda *_: pytest.fail("checked again"))
    second = load_index(mixed / "images")
    assert content(first) == content(second) and first.problems == second.problems and first.counts == second.counts


def test_changed_files_are_checked_again(mixed: Path) -> None:
    a, e, seen = mixed / "labels/v1.0/a.txt", mixed / "labels/v1.0/e.txt", [content(load_index(mixed / "images"))]
    for label, text in (
        (a, "0 .5 .5 .2 .2\n1 .1 .1 .1 .2"),  # as many bytes as before
        (a, "1 .5 .5 .2 .2\n1 .1 .1 .1 .1 "),
        (e, "0 .5 .5 .2 .2"),
        (a, None),
    ):
        label.unlink() if text is None else label.write_text(text)
        seen.append(content(load_index(mixed / "images")))
        assert seen[-1] != seen[-2]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle", "empty"])
def test_bad_caches_are_rebuilt(mixed: Path, damage: str) -> None:
    expected = content(load_index(mixed / "images"))
    cache, file = mixed / "labels/v1.0.cache.npz", io.BytesIO()
    if damage == "foreign":
        np.savez(file, header=np.frombuffer(b'{"version": 1}', np.uint8))
    elif damage == "pickle":
        np.save(file, np.array([{"version": 0.6}], dtype=object), allow_pickle=True)
    cache.write_bytes(cache.read_bytes()[:200] if damage == "truncated" else file.getvalue())
    for _ in range(2):
        assert content(load_index(mixed / "images")) == expected


def test_a_folder_that_cannot_be_written_costs_only_a_warning(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    with patch("utils.data.label_index.replacing", side_effect=PermissionError(13, "Permission denied")):
        assert len(load_index(mixed / "images")) == 5
    assert "cannot be written (Permission denied)" in caplog.text and not list(mixed.rglob("*.npz"))


def test_problems_are_told_in_ten_lines_at_most(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(14):
        pair(tmp_path, "0 1", f"{number:02}")
    with pytest.raises(ValueError, match="none of the 14 images.*00.txt:1"):
        load_index(tmp_path / "images")
    assert caplog.text.count("(image left out)") == 10 and "and 4 more" in caplog.text


def test_sources_do_not_share_a_cache(tmp_path: Path) -> None:
    listing = tmp_path / "train.v2.txt"
    listing.touch()
    label = str(tmp_path / "labels/a.txt")
    names = {cache_path([listing], label), cache_path([tmp_path], label), cache_path([tmp_path, listing], label)}
    assert len(names) == 3 and tmp_path / "train.v2.txt.cache.npz" in names


def test_names_that_are_not_utf8_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "propagate", False)  # a test report cannot carry such a name
    raw = os.fsencode(draw(tmp_path / "images/a.png").parent) + b"/\xff\xfe.png"
    try:
        (tmp_path / "images/a.png").rename(os.fsdecode(raw))
    except OSError:
        pytest.skip("this file system takes no such name")
    assert os.fsencode(load_index(tmp_path / "images").path(0)) == raw
