"""What is found, in all the forms that people take it in."""

import cv2
import numpy as np
import pytest
import torch

from models.api.detections import Detections

NAMES = ["car", "person", "行人"]
NONE = torch.zeros(0, 6)
BUS = torch.tensor([[10.0, 20, 50, 80, 0.9, 0], [5, 5, 25, 45, 0.4, 2]])
STREET = torch.tensor([[0.0, 0, 30, 30, 0.75, 1]])


def some_image(height=100, width=200):
    return np.full((height, width, 3), 90, np.uint8)


@pytest.fixture
def results():
    """Three images: two detections, none, one."""
    images = [some_image(), some_image(50, 60), some_image(64, 64)]
    times = (0.0, 0.03, 0.09, 0.12)
    return Detections(images, [BUS, NONE, STREET], ["a.jpg", "b.jpg", "c.jpg"], times, NAMES, (3, 3, 64, 64))


@pytest.fixture
def nothing():
    return Detections([], [], [])


# ---- nothing at all
def test_no_images(nothing, tmp_path):
    assert len(nothing) == 0 and list(nothing) == nothing.tolist() == nothing.render() == nothing.crop(save=False) == []
    assert nothing.pandas().xyxy == [] and nothing.t == (0, 0, 0) and str(nothing).startswith("Speed")
    assert not list(nothing.save(save_dir=tmp_path / "none").iterdir())
    with pytest.raises(IndexError):
        nothing[0]


# ---- v6.1's attributes
def test_attributes_and_tables(results):
    assert (len(results), results.n, results.names, results.s) == (3, 3, NAMES, (3, 3, 64, 64))
    assert results.times == (0.0, 0.03, 0.09, 0.12) and results.t == pytest.approx((10, 20, 10))
    assert results.xyxy is results.pred
    assert results.xywh[0][:, :4].tolist() == [[30, 50, 40, 60], [15, 25, 20, 40]]
    assert results.xywhn[0][0].tolist() == pytest.approx([0.15, 0.5, 0.2, 0.6, 0.9, 0])
    assert results.xyxyn[0][0].tolist() == pytest.approx([0.05, 0.2, 0.25, 0.8, 0.9, 0])
    assert [len(rows) for rows in results.xyxyn] == [2, 0, 1]
    tables = results.pandas()
    assert list(tables.xywhn[1].columns) == ["xcenter", "ycenter", "width", "height", "confidence", "class", "name"]
    frame = tables.xyxy[0]
    assert list(frame.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert frame["name"].tolist() == ["car", "行人"] and frame["class"].dtype.kind == "i"
    assert frame[["xmin", "confidence"]].to_numpy()[0].tolist() == pytest.approx([10, 0.9])
    assert '"name":"car"' in frame.to_json(orient="records")


# ---- one image, some images
def test_indexing_as_of_a_list(results):
    assert [part.files for part in results] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    assert results[-1].xyxy[0] is STREET and results[-1].imgs[0] is results.imgs[2]
    assert results[1:].files == ["b.jpg", "c.jpg"] and results[::-1].files == ["c.jpg", "b.jpg", "a.jpg"]
    assert results[3:].n == 0
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            results[wrong]
    """A part of three images is not three times as slow as the whole."""
    for part in (results[0], results[:2], results.tolist()[1]):
        assert part.t == results.t and part.s == results.s and part.names == NAMES
    first, second, third = results.tolist()
    assert first.xyxy[0] is BUS and (second.n, len(second.xyxy[0])) == (1, 0) and third.files == ["c.jpg"]
    assert str(third).startswith("image 1/1: 64x64 1 person")


# ---- what is printed, drawn, saved and shown
def test_printing(results, caplog):
    with caplog.at_level("INFO", "yolov5"):
        results.print()
    assert "image 2/3: 50x60 (no detections)" in caplog.text and "image 1/3: 100x200 1 car, 1 行人" in caplog.text


def test_images_and_clean_crops(results, tmp_path, monkeypatch):
    crops = results.crop(save_dir=tmp_path / "a")
    results.save(save_dir=tmp_path / "a")
    files = sorted(path.relative_to(tmp_path / "a").as_posix() for path in tmp_path.rglob("*.jpg"))
    assert files == ["a.jpg", "b.jpg", "c.jpg", "crops/car/a.jpg", "crops/person/c.jpg", "crops/行人/a.jpg"]
    assert len(crops) == 3 and all((crop["im"] == 90).all() for crop in crops)
    assert set(crops[0]) == {"box", "conf", "cls", "label", "im"} and crops[0]["label"] == "行人 0.40"
    assert (cv2.imread(str(tmp_path / "a/a.jpg")) != 90).any() and (results.imgs[0] != 90).any()
    monkeypatch.chdir(tmp_path)
    assert [results.save().name, results.save().name] == ["exp", "exp2"]


def test_showing_and_drawing_twice(results, monkeypatch):
    opened = []
    monkeypatch.setattr("models.api.detections.display_problem", lambda probe: None)
    monkeypatch.setattr("PIL.Image.Image.show", lambda image: opened.append(image.size))
    results.show()
    assert opened == [(200, 100), (60, 50), (64, 64)]
    monkeypatch.setattr("models.api.detections.display_problem", lambda probe: "no display")
    with pytest.raises(ValueError, match="no display.*save"):
        results.show()
    once = [image.copy() for image in results.render()]
    assert all(np.array_equal(image, before) for image, before in zip(results.render(), once, strict=True))


# ---- display
def test_display_does_nothing_by_itself(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.display() is None and not list(tmp_path.iterdir())
    assert all((image == 90).all() for image in results.imgs)


def test_display_saves_images_and_clean_crops_into_one_folder(results, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "yolov5"):
        crops = results.display(pprint=True, save=True, crop=True)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    crops_of = [f"runs/detect/exp/crops/{name}" for name in ("car/a.jpg", "person/c.jpg", "行人/a.jpg")]
    assert files == sorted([f"runs/detect/exp/{name}.jpg" for name in "abc"] + crops_of)
    assert len(crops) == 3 and all((crop["im"] == 90).all() for crop in crops)
    assert "image 2/3: 50x60 (no detections)" in caplog.text
    assert (cv2.imread("runs/detect/exp/a.jpg") != 90).any() and (results.imgs[0] != 90).any()
    results.display(save=True)
    assert sorted(path.name for path in (tmp_path / "runs/detect").iterdir()) == ["exp", "exp2"]


# ---- supervision
def test_for_supervision(results):
    package = pytest.importorskip("supervision")
    found = results.to_supervision()
    assert [len(one) for one in found] == [2, 0, 1] and found[1].xyxy.shape == (0, 4)
    assert np.array_equal(found[0].xyxy, BUS[:, :4].numpy()) and found[0].class_id.tolist() == [0, 2]
    assert found[0].class_id.dtype.kind == "i" and np.allclose(found[0].confidence, [0.9, 0.4])
    both = package.Detections.merge(found)
    assert len(both) == 3 and both.data["class_name"].tolist() == ["car", "行人", "person"]
    theirs = package.Detections.from_yolov5(results[0])
    assert np.array_equal(theirs.xyxy, found[0].xyxy) and np.array_equal(theirs.class_id, found[0].class_id)
    assert (package.BoxAnnotator().annotate(some_image(), found[0]) != 90).any()
    found[0].xyxy[:] = -1
    assert results.xyxy[0][0, 0] == 10  # a copy
