"""A data set checked by one process or by all of a machine: the same result, held once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from tests.processes import statements as together
from utils.data import label_index
from utils.data.image_files import Problem
from utils.data.label_arrays import COLUMNS, Counts, LabelIndex, Pieces, gathered
from utils.data.label_index import load_index
from utils.distributed.shared_memory import SharedArrays

POLYGON = "1 .1 .1 .6 .1 .6 .6 .1 .6"


def draw(root: Path, count: int) -> Path:
    """Images of several sizes with 0 to 3 labels, some polygons; some rows are no labels."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (20 + number, 30)).save(root / f"images/{number:03}.png")
        rows = [f"{number % 3} .5 .5 .{1 + row} .2" for row in range(number % 4)]
        rows += [POLYGON] * (number % 3 == 0) + ["0 1"] * (number % 5 == 4)
        if number % 7:
            (root / f"labels/{number:03}.txt").write_text("\n".join(rows))
    return root / "images"


def digest(index: LabelIndex) -> str:
    """Of everything an index holds."""
    parts = [index.arrays[name].tobytes() for name in COLUMNS]
    return hashlib.sha256(b"|".join([*parts, repr((index.counts, index.problems)).encode()])).hexdigest()


def test_nothing_joins_to_nothing() -> None:
    for index in (LabelIndex.pack([]), LabelIndex.join([]), LabelIndex.join([LabelIndex.pack([])] * 3)):
        assert len(index) == len(index.all_labels) == 0 and index.counts == Counts()
    assert list(Pieces(0, str)) == []


def test_problems_that_are_counted_become_one_for_each_reason() -> None:
    assert gathered([]) == []
    single = Problem("x", None, "odd", "mend")
    some = [Problem(name, None, reason, "", False, count) for name, reason, count in (
        ("a", "deep", 1), ("b", "pages", 2), ("c", "deep", 5), ("d", "deep", 1),
    )]  # fmt: skip
    assert [(one.file, one.reason, one.count) for one in gathered([single, *some, single])] == [
        ("x", "odd", 0), ("a", "deep", 7), ("b", "pages", 2), ("x", "odd", 0),
    ]  # fmt: skip


def test_pieces_are_made_when_asked_for() -> None:
    asked: list[int] = []
    pieces = Pieces(1_000_000, lambda number: asked.append(number) or np.full((number % 3, 2), number))
    assert len(pieces) == 1_000_000 and asked == []
    assert pieces[4].tolist() == [[4, 4]] and [len(rows) for rows in pieces[2:5]] == [2, 0, 1] and len(pieces[-1]) == 0
    assert asked == [4, 2, 3, 4, 999_999]
    with pytest.raises(IndexError):
        pieces[1_000_000]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(tmp_path, 23)
    expected = load_index(images, cache=False)
    monkeypatch.setattr(label_index, "CHUNK", chunk)
    assert digest(load_index(images, cache=False)) == digest(expected)
    assert expected.counts == Counts(found=19, missing=4, empty=expected.counts.empty, corrupt=3, total=23)
    assert expected.problems and isinstance(expected.arrays, SharedArrays)


def said_of(images: Path, caplog: pytest.LogCaptureFixture, cache: bool = False) -> tuple[LabelIndex, str]:
    caplog.clear()
    return load_index(images, cache=cache), caplog.text


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_what_is_so_with_many_images_is_counted_once(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = draw(tmp_path, 4)
    for number in range(5):
        Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(images / f"deep{number}.png")
        (tmp_path / f"labels/deep{number}.txt").write_text("0 .5 .5 1.0000002 1")
    monkeypatch.setattr(label_index, "CHUNK", chunk)
    for _ in range(2):  # checked, then from the cache
        index, text = said_of(images, caplog, cache=True)
        deep, rounded = [problem for problem in index.problems if problem.count]
        assert (deep.count, rounded.count) == (5, 5) and deep.file == f"{images}/deep0.png"
        assert text.count("5 images, the first") == 2 and "more than 8 bits a channel; scaled to 8" in text
    assert index.all_labels[:, 1:].max() == 1


def test_images_that_share_a_label_file_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(tmp_path, 4)
    for name in ("001.jpg", "001.webp", "002.jpg", "000.jpg"):  # the last has no labels
        Image.new("RGB", (20, 20)).save(images / name)
    index, text = said_of(images, caplog)
    (problem,) = [one for one in index.problems if "several images" in one.reason]
    assert problem.reason.startswith(f"label files that belong to several images: 2, as {tmp_path}/labels/00")
    assert text.count("belong to several images") == 1 and not problem.dropped
    (tmp_path / "list.txt").write_text(f"{images}/001.png\n{images}/001.png\n")
    assert "several" not in said_of(tmp_path / "list.txt", caplog)[1], "an image that is listed twice is one"


def test_labels_beside_some_images_are_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(tmp_path, 4)
    (tmp_path / "labels/003.txt").rename(images / "003.txt")
    index, text = said_of(images, caplog)
    assert index.counts.found == 3 and len(index.all_labels) == 7
    assert f"label files beside their images are used too: 1, the first {images}/003.txt" in text
    for name in ("001", "002"):
        (tmp_path / f"labels/{name}.txt").rename(images / f"{name}.txt")
    (images / "000.txt").touch()
    assert "beside" not in said_of(images, caplog)[1], "as long as all lie there"


def test_what_is_passed_over_is_said_each_time_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(tmp_path, 4)
    assert "passed over" not in said_of(images, caplog, cache=True)[1]
    (images / "a.heic").touch()
    (tmp_path / "labels/001.txt").rename(tmp_path / "labels/001.TXT")
    for cache in (True, True):  # the second time from the cache, which knows nothing of it
        index, text = said_of(images, caplog, cache=cache)
        assert text.count("files passed over: 1 .heic, the first") == 1 and "passed over" in index.problems[0].reason
        assert f"2 images have no label file; {tmp_path}/labels/001.TXT is there: rename it to 001.txt" in text


def test_no_label_at_all_says_where_was_looked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(tmp_path, 3)
    load_index(images, cache=False).check_labelled()
    (tmp_path / "labels").rename(tmp_path / "Labels")
    index, text = said_of(images, caplog)
    hint = f"; {tmp_path}/Labels/001.txt is there: rename Labels to labels"
    assert f"all is background{hint}" in text
    looked = f"looked for {tmp_path}/labels/000.txt, {images}/000.txt and the like{hint}"
    with pytest.raises(ValueError, match=f"no labels for any of the 3 images to train on .*: {looked}"):
        index.check_labelled()


def test_another_decoder_checks_again(tmp_path: Path) -> None:
    images = draw(tmp_path, 4)
    with patch.object(label_index, "check_pair", side_effect=label_index.check_pair) as checked:
        for decoder, count in (("one", 4), ("one", 4), ("another", 8)):
            with patch.object(label_index, "DECODER", decoder):
                load_index(images)
            assert checked.call_count == count


TOGETHER = """
from tests.utils.data.test_label_index import digest
from pathlib import Path
from utils.data import label_index
from utils.data.label_index import load_index
from utils.distributed.processes import Team
team, images, said = Team.of_this_machine(), arguments["images"], {}
checked, check_pair = [], label_index.check_pair
def counted(path, label):
    checked.append(Path(path).stem)
    return check_pair(path, label)
label_index.check_pair = counted

index = load_index(images, cache=False, team=team)
said["shares"] = sorted(checked)
said["digest"] = digest(index)
team.gather(None)
index.all_labels[team.number, 0] = 50 + team.number
team.gather(None)
said["written"] = index.all_labels[:2, 0].tolist()

checked.clear()
said["cached"] = [digest(load_index(images, team=team)), digest(load_index(images, team=team)), len(checked)]

def caught(work):
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
said["none"] = caught(lambda: load_index(arguments["empty"], team=team))
said["unusable"] = caught(lambda: load_index(arguments["unusable"], team=team))
said["classes"] = caught(lambda: load_index(images, team=team, prepare=lambda index: index.check_classes(2)))
def fails(*_):
    raise MemoryError("too many")
if team.number == 1:
    label_index.check_pair = fails
said["one fails"] = caught(lambda: load_index(images, cache=False, team=team))
said["after"] = team.gather(team.number)
print(json.dumps(said))
"""


def test_two_processes_check_half_each_and_hold_one_copy(tmp_path: Path) -> None:
    images, empty, unusable = draw(tmp_path / "set", 23), tmp_path / "empty", tmp_path / "unusable"
    empty.mkdir()
    unusable.mkdir()
    for number in range(3):
        (unusable / f"{number}.png").write_bytes(b"")
    expected = load_index(images, cache=False)
    first, second = together(TOGETHER, {"images": str(images), "empty": str(empty), "unusable": str(unusable)})

    assert first["shares"] == [f"{number:03}" for number in range(11)]
    assert second["shares"] == [f"{number:03}" for number in range(11, 23)]
    assert first["digest"] == second["digest"] == digest(expected)
    assert first["written"] == second["written"] == [50, 51], "each sees what the other wrote"
    assert first["cached"] == [digest(expected)] * 2 + [11] and second["cached"] == [digest(expected)] * 2 + [12]
    assert os.path.exists(tmp_path / "set/labels.cache.npz")

    for case, kind, words in (
        ("none", "ValueError", "no images in"),
        ("unusable", "ValueError", "none of the 3 images"),
        ("classes", "ValueError", "class 2, but the data set has 2 classes"),
        ("one fails", "MemoryError", "too many"),
    ):
        assert first[case] == second[case] and first[case][0] == kind and words in first[case][1], case
    assert first["after"] == second["after"] == [0, 1], "nobody waits for anybody"
