"""Files that runs leave behind."""

import cv2
import numpy as np
import pytest
import torch

from utils.writers import (
    OutputNames,
    Videos,
    VideoWriter,
    coco_rows,
    crop_box,
    label_lines,
    picture_suffix,
    save_one_box,
    write_image,
    write_labels,
)

NONE = torch.zeros(0, 6)


def test_no_detections_make_no_lines_and_no_rows(tmp_path):
    assert label_lines(NONE, (10, 10)) == [] and coco_rows(NONE, "a.jpg") == []
    assert write_labels(tmp_path / "new/a.txt", []).read_text() == ""


def test_label_lines_are_fractions_with_six_digits():
    rows = torch.tensor([[10.0, 20.0, 30.0, 60.0, 0.87654321, 2.0], [0.0, 0.0, 3.0, 1.0, 0.5, 0.0]])
    assert label_lines(rows, (100, 200)) == ["2 0.1 0.4 0.1 0.4", "0 0.0075 0.005 0.015 0.01"]
    assert label_lines(rows[:1], (100, 200), with_confidence=True) == ["2 0.1 0.4 0.1 0.4 0.876543"]
    tracked = torch.cat([rows, torch.tensor([[1234567.0], [3.0]])], 1)
    assert label_lines(tracked, (100, 200)) == ["2 0.1 0.4 0.1 0.4 1234567", "0 0.0075 0.005 0.015 0.01 3"]
    assert label_lines(tracked[:1], (100, 200), with_confidence=True) == ["2 0.1 0.4 0.1 0.4 0.876543 1234567"]


def test_label_files_are_replaced_not_appended(tmp_path):
    for _ in range(2):
        path = write_labels(tmp_path / "a.txt", ["0 1 1 1 1"])
    assert path.read_text() == "0 1 1 1 1\n"


def test_coco_rows():
    rows = torch.tensor([[1.23456, 2.0, 11.0, 22.0, 0.123456789, 1.0]])
    assert coco_rows(rows, "x/000042.jpg", categories=[1, 90]) == [
        {"image_id": 42, "category_id": 90, "bbox": [1.235, 2.0, 9.765, 20.0], "score": 0.12346}
    ]
    assert coco_rows(rows, "frame_7.jpg")[0]["image_id"] == "frame_7"


@pytest.mark.parametrize("name", ["图像 1.png", "a b/ü.bmp"])
def test_pictures_at_any_path(tmp_path, name):
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    path = write_image(tmp_path / name, picture)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), picture)


def test_picture_formats_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="no encoder"):
        write_image(tmp_path / "a.xyz", np.zeros((2, 2, 3), np.uint8))
    names = {"a.JPG": ".JPG", "b.dng": ".jpg", "c": ".jpg", "http://h/d.png?x=1.jpg": ".png"}
    assert {name: picture_suffix(name) for name in names} == names
    assert write_image(tmp_path / "b.JPG", np.zeros((2, 2, 3), np.uint8)).is_file()


def test_crops_are_enlarged_and_clipped():
    image = np.arange(100 * 100 * 3, dtype=np.uint32).reshape(100, 100, 3).astype(np.uint8)
    assert crop_box([20, 30, 40, 40], image, gain=1.0, pad=0).shape == (10, 20, 3)
    assert crop_box([20, 30, 40, 40], image, gain=1.5, pad=4).shape == (19, 34, 3)
    assert crop_box([20, 30, 40, 40], image, gain=1.0, pad=0, square=True).shape == (20, 20, 3)
    assert crop_box([-50, -50, 10, 10], image, gain=1.0, pad=0).shape == (10, 10, 3)
    assert crop_box([200, 200, 210, 210], image, gain=1.0, pad=0).size == 0


def test_crops_keep_their_colours_and_are_never_overwritten(tmp_path):
    bgr = np.full((40, 40, 3), (200, 100, 0), np.uint8)
    for _ in range(3):
        cut = save_one_box(torch.tensor([10.0, 10, 20, 20]), bgr, tmp_path / "000000.png", BGR=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.jpg", "000000_2.jpg", "000000_3.jpg"]
    assert np.abs(cv2.imread(str(tmp_path / "000000.jpg"))[5, 5].astype(int) - (200, 100, 0)).max() <= 3
    assert tuple(cut[0, 0]) == (200, 100, 0)
    assert tuple(save_one_box([10, 10, 20, 20], bgr, save=False)[0, 0]) == (0, 100, 200)


def test_stems_are_unique_and_stable():
    names = OutputNames()
    assert [names(0, "bus"), names(1, "bus"), names(2, "bus-2"), names(1, "bus"), names(0, "bus")] == [
        "bus", "bus-2", "bus-2-2", "bus-2", "bus",
    ]  # fmt: skip


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (got := capture.read())[0]:
        frames.append(got[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_videos_hold_every_frame_at_the_first_ones_size(tmp_path):
    with VideoWriter(tmp_path / "new" / "a.avi", 12.0) as writer:
        for i in range(5):
            writer.write(np.full((48 + 16 * (i == 3), 64, 3), 40 * i, np.uint8))
    writer.close()
    frames, fps = read_video(tmp_path / "new" / "a.mp4")
    assert len(frames) == writer.frames == 5 and round(fps) == 12
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert abs(int(frames[4].mean()) - 160) < 10


@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf"), -1.0])
def test_videos_without_a_rate_get_one(fps):
    assert VideoWriter("a.mp4", fps).fps == 30


def test_no_frame_leaves_no_video(tmp_path):
    with VideoWriter(tmp_path / "a.mp4"):
        pass
    videos = Videos()
    videos.close()
    assert not list(tmp_path.iterdir())


def test_videos_of_a_run_are_apart(tmp_path):
    videos = Videos()
    for i in range(4):
        videos.write(tmp_path / f"{i % 2}.mp4", np.zeros((32, 32, 3), np.uint8), 10)
    videos.close()
    assert [len(read_video(tmp_path / f"{i}.mp4")[0]) for i in range(2)] == [2, 2]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        VideoWriter(tmp_path / "file" / "a.mp4").write(np.zeros((32, 32, 3), np.uint8))
