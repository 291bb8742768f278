"""A data set checked by one process or by all of a machine: the same result, held once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.statements import together
from utils import label_index
from utils.label_arrays import ARRAYS, Counts, LabelIndex, Pieces
from utils.label_index import load_index
from utils.shared_memory import SharedArrays

POLYGON = "1 .1 .1 .6 .1 .6 .6 .1 .6"


def draw(root: Path, count: int) -> Path:
    """Pictures of several sizes with 0 to 3 labels, some polygons; some rows are no labels."""
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
    parts = [index.arrays[name].tobytes() for name in ARRAYS]
    return hashlib.sha256(b"|".join([*parts, repr((index.counts, index.problems)).encode()])).hexdigest()


# ---- one process -----------------------------------------------------------------------------------------------------


def test_nothing_joins_to_nothing() -> None:
    for index in (LabelIndex.pack([]), LabelIndex.join([]), LabelIndex.join([LabelIndex.pack([])] * 3)):
        assert len(index) == len(index.all_labels) == 0 and index.counts == Counts()
    assert list(Pieces(0, str)) == []


def test_pieces_are_made_when_asked_for() -> None:
    asked: list[int] = []

    def piece(number: int) -> int:
        asked.append(number)
        return number * number

    pieces = Pieces(1_000_000, piece)
    assert len(pieces) == 1_000_000 and asked == []
    assert (pieces[3], pieces[-1], pieces[2:5]) == (9, 999_999**2, [4, 9, 16])
    with pytest.raises(IndexError):
        pieces[1_000_000]
    assert list(Pieces(4, piece)) == [0, 1, 4, 9]
    rows = Pieces(3, lambda number: np.full((number, 2), number))
    assert np.concatenate(rows).tolist() == [[1, 1], [2, 2], [2, 2]]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(tmp_path, 23)
    expected = load_index(images, cache=False)
    monkeypatch.setattr(label_index, "CHUNK", chunk)
    assert digest(load_index(images, cache=False)) == digest(expected)
    assert expected.counts == Counts(found=19, missing=4, empty=expected.counts.empty, corrupt=3, total=23)
    assert expected.problems and isinstance(expected.arrays, SharedArrays)


def test_joining_parts_is_checking_them_at_once(tmp_path: Path) -> None:
    index = load_index(draw(tmp_path, 12), cache=False)
    parts = [index.take(np.arange(start, min(start + 4, len(index)))) for start in range(0, len(index), 4)]
    joined = LabelIndex.join(parts)
    assert all(np.array_equal(joined.arrays[name], index.arrays[name]) for name in ARRAYS)


# ---- two processes ---------------------------------------------------------------------------------------------------

TOGETHER = """
from tests.utils.test_label_index import digest
from pathlib import Path
from utils import label_index
from utils.label_index import load_index
from utils.team import Team
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

    assert first["shares"] == [f"{number:03}" for number in range(0, 23, 2)]
    assert second["shares"] == [f"{number:03}" for number in range(1, 23, 2)]
    assert first["digest"] == second["digest"] == digest(expected)
    assert first["written"] == second["written"] == [50, 51], "each sees what the other wrote"
    assert first["cached"] == [digest(expected)] * 2 + [12] and second["cached"] == [digest(expected)] * 2 + [11]
    assert os.path.exists(tmp_path / "set/labels.cache.npz")

    for case, kind, words in (
        ("none", "ValueError", "no images in"),
        ("unusable", "ValueError", "none of the 3 images"),
        ("classes", "ValueError", "class 2, but the data set has 2 classes"),
        ("one fails", "MemoryError", "too many"),
    ):
        assert first[case] == second[case] and first[case][0] == kind and words in first[case][1], case
    assert first["after"] == second["after"] == [0, 1], "nobody waits for anybody"
