"""Files that runs leave behind."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.drawing.writers import (
    Output,
    OutputNames,
    VideoWriter,
    coco_rows,
    save_one_box,
    unique_names,
    write_image,
    write_labels,
)

NONE = torch.zeros(0, 6)


def test_coco_rows(tmp_path):
    assert coco_rows(NONE, "a.jpg") == []
    assert write_labels(tmp_path / "new/a.txt", NONE, (10, 10)).read_text() == ""
    rows = torch.tensor([[1.23456, 2.0, 11.0, 22.0, 0.123456789, 1.0]])
    assert coco_rows(rows, "x/000042.jpg", categories=[1, 90]) == [
        {"image_id": 42, "category_id": 90, "bbox": [1.235, 2.0, 9.765, 20.0], "score": 0.12346}
    ]
    assert coco_rows(rows, "frame_7.jpg")[0]["image_id"] == "frame_7"


ROWS = torch.tensor([[10.0, 20.0, 30.0, 60.0, 0.87654321, 2.0], [0.0, 0.0, 3.0, 1.0, 0.5, 0.0]])
TRACKED = torch.cat([ROWS, torch.tensor([[1234567.0], [3.0]])], 1)


@pytest.mark.parametrize(
    "rows, with_confidence, text",
    [
        (ROWS, False, "2 0.1 0.4 0.1 0.4\n0 0.0075 0.005 0.015 0.01\n"),
        (ROWS[:1], True, "2 0.1 0.4 0.1 0.4 0.876543\n"),
        (TRACKED, False, "2 0.1 0.4 0.1 0.4 1234567\n0 0.0075 0.005 0.015 0.01 3\n"),
        (TRACKED[:1], True, "2 0.1 0.4 0.1 0.4 0.876543 1234567\n"),
    ],
)
def test_labels_are_fractions_with_six_digits_and_replace_earlier_ones(tmp_path, rows, with_confidence, text):
    for _ in range(2):
        assert write_labels(tmp_path / "a.txt", rows, (100, 200), with_confidence).read_text() == text


@pytest.mark.parametrize("name", ["图像 1.png", "a b/ü.bmp"])
def test_images_at_any_path(tmp_path, name):
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    path = write_image(tmp_path / name, image)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), image)


def test_image_formats_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="no encoder"):
        write_image(tmp_path / "a.xyz", np.zeros((2, 2, 3), np.uint8))
    assert write_image(tmp_path / "b.JPG", np.zeros((2, 2, 3), np.uint8)).is_file()


def test_crops(tmp_path):
    def size(box, gain=1.0, pad=0, square=False):
        return save_one_box(box, np.zeros((100, 100, 3), np.uint8), "", gain, pad, square, save=False).shape[:2]

    assert size([20, 30, 40, 40]) == (10, 20) and size([20, 30, 40, 40], gain=1.5, pad=4) == (19, 34)
    assert size([20, 30, 40, 40], square=True) == (20, 20) and size([-50, -50, 10, 10]) == (10, 10)
    assert size([200, 200, 210, 210]) == (0, 0)
    bgr = np.full((40, 40, 3), (200, 100, 0), np.uint8)
    for _ in range(3):
        cut = save_one_box(torch.tensor([10.0, 10, 20, 20]), bgr, tmp_path / "000000.png", BGR=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.jpg", "000000_2.jpg", "000000_3.jpg"]
    assert np.abs(cv2.imread(str(tmp_path / "000000.jpg"))[5, 5].astype(int) - (200, 100, 0)).max() <= 3
    assert tuple(cut[0, 0]) == (200, 100, 0)
    assert tuple(save_one_box([10, 10, 20, 20], bgr, save=False)[0, 0]) == (0, 100, 200)


def outputs(*names):
    """'bus.jpg' is an image of that name in a folder of its own, 'bus.mp4' a video, whose results have frames."""
    paths = [Path(f"{i}/{name}") for i, name in enumerate(names)]
    return [Output(str(path), path.stem, path.suffix, path.suffix == ".mp4") for path in paths]


def test_no_outputs(tmp_path, caplog):
    assert OutputNames(tmp_path, []).stems == unique_names([]) == [] and not OutputNames(tmp_path, []).report_changes()
    assert not caplog.records


@pytest.mark.parametrize(
    "names, stems",
    [
        (["bus.jpg", "bus.jpg", "bus-2.jpg", "bus.jpg"], ["bus", "bus-2", "bus-2-2", "bus-3"]),
        (["a.jpg", "a.png", "A.jpg", "b.jpg"], ["a", "a-2", "A-3", "b"]),
        (["e\u0301.jpg", "\u00e9.jpg"], ["e\u0301", "\u00e9-2"]),  # one letter, written in two ways
        (["clip_1.jpg", "clip.mp4", "clip.jpg"], ["clip_1", "clip-2", "clip"]),
        (["clip.mp4", "clip_1.jpg", "clip_10.png"], ["clip", "clip_1-2", "clip_10-2"]),
        (["clip_0.jpg", "clip_01.jpg", "clip_x.jpg", "clip.jpg"], ["clip_0", "clip_01", "clip_x", "clip"]),
        (["clip_01.jpg", "clip.jpg", "clip.mp4"], ["clip_01", "clip", "clip"]),
        (["clip.mp4", "Clip.mp4", "clip_1.mp4"], ["clip", "Clip-2", "clip_1"]),
    ],
)  # fmt: skip
def test_no_two_sources_write_one_file(tmp_path, names, stems, caplog):
    made = OutputNames(tmp_path, outputs(*names))
    assert made.stems == stems
    files = set()
    for source, output in enumerate(made.outputs):
        numbers = (1, 2, 3, 10) if output.moving else (0,)
        mine = {made.drawn(source), made.features(source), *(made.label(source, number) for number in numbers)}
        mine = {str(file.relative_to(tmp_path)).casefold() for file in mine}
        assert not files & mine
        files |= mine
    changed = sum(output.stem != stem for output, stem in zip(made.outputs, stems, strict=True))
    assert made.report_changes() == bool(changed) == bool(caplog.records)
    assert not changed or f"{changed} of {len(names)} sources" in caplog.text


def test_only_drawn_files_are_in_the_way_without_labels_and_many_take_no_time(tmp_path):
    names = ["a.jpg", "a.png", "A.PNG", "a_1.jpg", "a.mp4"]
    assert OutputNames(tmp_path, outputs(*names), labelled=False).stems == ["a", "a", "A-2", "a_1", "a"]
    assert OutputNames(tmp_path, outputs(*["1.jpg"] * 20_000)).stems[-1] == "1-20000"


def test_changes_are_said_once_with_names_that_can_be_shown(tmp_path, caplog):
    made = OutputNames(tmp_path, [Output(f"{i}/\x1b.jpg", "x") for i in range(9)])
    made.report_changes()
    (record,) = caplog.records
    text = r"8 of 9 sources are named like others, and their results by names of their own: 1/\x1b.jpg -> x-2, "
    assert record.getMessage().startswith(text) and record.getMessage().endswith("-> x-4, ...")


def test_folders_stay_inside_and_apart(tmp_path):
    made = OutputNames(tmp_path, outputs("...jpg", "..jpg", "labels.jpg", "Crops.png", "a.jpg", "a.mp4", "con.jpg"))
    folders = [made.features(source).relative_to(tmp_path).as_posix() for source in range(7)]
    assert folders == ["__", "_", "labels-2", "Crops-2", "a", "a-2", "_con"]
    classes = ["car", "..", ".", "a/b", "a:b", "car", "CAR", "\x1b]0;own\x07", "con", ""]
    classes += ["x" * 300, "x" * 301, "e.", "\0"]
    names = OutputNames(tmp_path, outputs("bus.jpg"), classes)
    places = [names.crop(0, 0, kind) for kind in range(len(classes))]
    folders = [place.parent.name for place in places]
    assert folders[:10] == ["car", "__", "_", "a_b", "a_b-2", "car", "CAR-2", "_]0;own_", "_con", "_-2"]
    assert len({folder.casefold() for folder in folders}) == len(classes) - 1
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert place.resolve().parents[1] == (tmp_path / "crops").resolve()


def crops(names, source, number, kind, count):
    """Make so many crops; their names."""
    made = []
    for _ in range(count):
        path = names.crop(source, number, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        made.append(path.name)
    return made


def test_crops_are_never_taken_for_those_of_another(tmp_path):
    names = OutputNames(tmp_path, outputs("bus.jpg", "bus_2.jpg", "clip_1.mp4", "clip.mp4", "x.jpg", "x.mp4"), ["car"])
    assert crops(names, 0, 0, 0, 3) == ["bus.jpg", "bus_3.jpg", "bus_4.jpg"]
    assert crops(names, 1, 0, 0, 2) == ["bus_2.jpg", "bus_2_2.jpg"]
    assert crops(names, 3, 1, 0, 2) == ["clip_1.jpg", "clip_1-2.jpg"]  # clip_1_2 is the second frame of clip_1
    assert crops(names, 2, 2, 0, 2) == ["clip_1_2.jpg", "clip_1_2_2.jpg"]
    assert crops(names, 4, 0, 0, 2) == ["x.jpg", "x-2.jpg"] and crops(names, 5, 2, 0, 1) == ["x_2.jpg"]
    assert crops(names, 0, 0, 0, 1) == ["bus_5.jpg"]


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (got := capture.read())[0]:
        frames.append(got[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf"), -1.0])
def test_videos_without_a_rate_get_one(fps):
    assert VideoWriter("a.mp4", fps).fps == 30


def test_videos_hold_every_frame_at_the_first_ones_size(tmp_path):
    with VideoWriter(tmp_path / "a.mp4"):
        pass
    assert not list(tmp_path.iterdir())
    with VideoWriter(tmp_path / "new" / "a.avi", 12.0) as writer:
        for i in range(5):
            writer.write(np.full((48 + 16 * (i == 3), 64, 3), 40 * i, np.uint8))
    writer.close()
    frames, fps = read_video(tmp_path / "new" / "a.mp4")
    assert len(frames) == 5 and round(fps) == 12
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert abs(int(frames[4].mean()) - 160) < 10
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        VideoWriter(tmp_path / "file" / "a.mp4").write(np.zeros((32, 32, 3), np.uint8))
