"""detect.py from the command line to the files it leaves."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
from models.yolo import Model
from tests.known_detector import CONFIDENCE, write_weights
from utils.base.options import options, parse
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import describe_model, load_checkpoint, save_checkpoint
from utils.drawing.writers import VideoWriter, write_image


@pytest.fixture(autouse=True)
def plain_log(monkeypatch):
    """Runs inside this process leave the logger as pytest knows it."""
    monkeypatch.setattr(detect, "set_up_logging", lambda: None)
    monkeypatch.setattr("utils.distributed.script.set_up_logging", lambda main: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "known.pt")


@pytest.fixture
def source(tmp_path):
    """Two images (one with a name that is not ASCII) and a video of three frames, each 32 x 32."""
    folder = tmp_path / "source"
    write_image(folder / "a.png", np.full((32, 32, 3), 90, np.uint8))
    write_image(folder / "图 b.JPG", np.full((32, 32, 3), 90, np.uint8))
    with VideoWriter(folder / "clip", 7) as video:
        for _ in range(3):
            video.write(np.full((32, 32, 3), 90, np.uint8))
    return folder


@pytest.fixture
def run(weights, tmp_path):
    """detect.run with the known detector on 32 pixels, into a fresh folder."""

    def start(**given):
        settings = {"weights": str(weights), "imgsz": 32, "project": str(tmp_path / "runs"), "device": "cpu"}
        return detect.run(**settings | given)

    return start


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "given, words",
    [
        ({"imgsz": [1, 2, 3]}, "--imgsz"),
        ({"classes": ["cat"]}, "did you mean|--classes cat"),
        ({"classes": [3]}, "--classes 3"),
        ({"source": "nowhere"}, "nowhere"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"weights": "a.h5"}, r"\.pt"),
        ({"device": "warp"}, "warp"),
        ({"colour": 1}, "colour"),
        ({"query": "7", "visualize": True}, "--query 7"),
        ({"query": [(1, 2), "a,b"], "visualize": True}, "--query a,b"),
        ({"query": "1,2"}, "--visualize"),
        ({"visualize": "routes"}, "--visualize routes: the weights have no BiLevelRoutingAttention"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, given, words):
    with pytest.raises(ValueError, match=words) as caught:
        run(**({"source": str(tmp_path)} | given))
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


# ---- runs
def test_images_and_videos_are_annotated(run, tmp_path, source):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="could be read"):
        run(source=str(tmp_path / "bad.jpg"))
    folder = run(source=str(source))
    assert tree(folder) == ["a.png", "clip.mp4", "图 b.JPG"]
    assert (cv2.imread(str(folder / "a.png")) != 90).any()
    capture = cv2.VideoCapture(str(folder / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and round(capture.get(cv2.CAP_PROP_FPS)) == 7
    assert run(source=str(source / "a.png")).name == "exp2"


def test_labels_and_crops(run, source):
    folder = run(source=str(source), nosave=True, save_txt=True, save_conf=True, save_crop=True, vid_stride=2)
    labels = [name for name in tree(folder) if name.startswith("labels/")]
    assert labels == ["labels/a.txt", "labels/clip_1.txt", "labels/clip_3.txt", "labels/图 b.txt"]
    rows = np.loadtxt(folder / "labels/a.txt")
    assert rows.shape == (16, 6) and set(rows[:, 0]) == {1} and np.allclose(rows[:, 5], CONFIDENCE, atol=1e-3)
    corners = rows[:, 1:3] * 32 - rows[:, 3:5] * 16
    assert np.allclose(corners, corners.round(), atol=1e-3)  # whole pixels
    assert len(list((folder / "crops/person").glob("a*.jpg"))) == 16
    assert not list(folder.glob("*.*"))


def test_a_second_run_into_the_same_folder_replaces_labels(run, source):
    settings = {"source": str(source / "a.png"), "nosave": True, "save_txt": True, "exist_ok": True}
    first = (run(**settings) / "labels/a.txt").read_text()
    folder = run(**settings)
    assert (folder / "labels/a.txt").read_text() == first
    run(**settings, conf_thres=0.999)
    assert tree(folder) == []  # nothing found now: the old labels would be wrong


def test_lists_classes_max_det_and_hidden_labels(run, source, caplog):
    settings = {"source": str(source / "a.png"), "save_txt": True}
    assert tree(run(**settings, classes=["car"])) == ["a.png"]
    folder = run(**settings, classes="person", max_det=3, hide_labels=True)
    assert len((folder / "labels/a.txt").read_text().splitlines()) == 3
    assert (cv2.imread(str(folder / "a.png")) == 90).all(2).mean() > 0.2
    listing = source / "list.txt"
    listing.write_text("clip.mp4\na.png\n")
    with caplog.at_level("INFO", "yolov5"):
        folder = run(source=str(listing), visualize=True, query="1,1")
    names = tree(folder)
    assert "no BiLevelRoutingAttention layer" in caplog.text and not any("rout" in name for name in names)
    assert {"clip.mp4", "a.png", "a/stage0_Conv_features.png", "clip/stage0_Conv_features.npy"} <= set(names)
    assert cv2.VideoCapture(str(folder / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


# ---- where the regions look
@pytest.fixture
def routing_weights(tiny_cfg, tmp_path):
    """A detector with one layer of routing attention: 7 x 7 regions of 16 pixels."""
    torch.manual_seed(0)
    model = Model(tiny_cfg, verbose=False).eval()
    save_checkpoint(tmp_path / "routing.pt", {"epoch": -1, "model": describe_model(model), "ema": None})
    return str(tmp_path / "routing.pt")


def routes_in(page):
    """The data inside of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def test_routes_of_the_first_frame_of_each_source(run, routing_weights, source, caplog):
    given = {"weights": routing_weights, "imgsz": 64, "source": str(source), "query": ["20,3", "900,5"]}
    settings = {"save_txt": True, "conf_thres": 0.001, "max_det": 5}
    with caplog.at_level("INFO", "yolov5"):
        folder = run(**given, **settings, visualize=True)
    files = ("routes.html", "stage6_routes.png")
    expected = [f"{stem}/{name}" for stem in ("a", "clip", "图 b") for name in files]
    assert [name for name in tree(folder) if "routes" in name] == expected
    data = routes_in(folder / "图 b/routes.html")
    assert data["name"] == "图 b.JPG" and data["points"] == [[40, 6]]  # 32 pixels are enlarged to 64
    (layer,) = data["layers"]
    assert layer["x"] == layer["y"] == [0, 16, 32, 48, 64, 64, 64, 64] and len(layer["index"]) == 49
    assert sum("--query 900,5" in record.getMessage() for record in caplog.records) == 3
    assert "Routes of 1 layer in" in caplog.text
    plain = run(**given | {"query": None}, **settings)
    for name in (name for name in tree(plain) if name.startswith("labels/")):
        assert (plain / name).read_bytes() == (folder / name).read_bytes()


def test_only_the_routes(run, routing_weights, source, caplog):
    given = {"weights": routing_weights, "imgsz": 64, "source": str(source), "nosave": True}
    with caplog.at_level("INFO", "yolov5"):
        folder = run(**given, visualize="routes")
    files = ("routes.html", "stage6_routes.png")
    assert tree(folder) == [f"{stem}/{name}" for stem in ("a", "clip", "图 b") for name in files]
    last = caplog.records[-1].getMessage()
    assert last.startswith("Where the regions look: open ") and str(folder / "a/routes.html") in last and "of 3" in last
    both = run(**given | {"source": str(source / "a.png")}, visualize=True)
    assert {"a/routes.html", "a/stage6_routes.png", "a/stage0_Conv_features.png"} < set(tree(both))
    assert (both / "a/routes.html").read_bytes() == (folder / "a/routes.html").read_bytes()


def test_the_routes_are_a_word_after_the_flag(source, tmp_path, monkeypatch, caplog):
    assert parse(detect.DetectOptions, ["--visualize", "routes", "--query", "3,4"]).visualize == "routes"
    assert parse(detect.DetectOptions, ["--visualize", "--update"]).visualize is True
    for run_name in ("exp", "exp2"):
        (tmp_path / "runs/train" / run_name / "weights").mkdir(parents=True)
        write_weights(tmp_path / "runs/train" / run_name / "weights/best.pt")
    monkeypatch.setattr("utils.base.paths.ROOT", tmp_path / "nothing")
    with pytest.raises(ValueError, match="train first"):
        detect.complete(options(detect.DetectOptions, {}))
    monkeypatch.setattr("utils.base.paths.ROOT", tmp_path)
    with caplog.at_level("INFO", "yolov5"):
        opt = detect.complete(options(detect.DetectOptions, {}))
    assert opt.weights == [str(tmp_path / "runs/train/exp2/weights/best.pt")] and "exp2" in caplog.text


def test_routes_of_augmented_ensembles_are_those_of_the_plain_image(run, routing_weights, source):
    given = {"imgsz": 64, "source": str(source / "a.png"), "visualize": True, "conf_thres": 0.9}
    alone = run(**given, weights=routing_weights)
    both = run(**given, weights=[routing_weights] * 2, augment=True)
    (expected,), found = (routes_in(folder / "a/routes.html")["layers"] for folder in (alone, both))
    assert [layer["name"] for layer in found] == ["weights1.stage6", "weights2.stage6"]
    assert all(layer | {"name": "stage6"} == expected for layer in found)
    assert {"a/weights1.stage6_routes.png", "a/weights2.stage6_routes.png"} <= set(tree(both))
    assert routes_in(both / "a/routes.html")["points"] == [[32, 32]]  # nothing is found: the middle


def test_the_log_is_that_of_v61(run, source, caplog):
    with caplog.at_level("INFO", "yolov5"):
        folder = run(source=str(source), save_txt=True)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert re.search(r"image 1/3 \S+a\.png: 32x32 16 persons, Done\. \(\d\.\d{3}s\)", text)
    assert re.search(r"video 3/3 \(2/3\) \S+clip\.mp4: 32x32 16 persons, Done\.", text)
    speeds = r"Speed: [\d.]+ms pre-process, [\d.]+ms inference, [\d.]+ms NMS per image at shape \(1, 3, 32, 32\)"
    assert re.search(speeds, text) and folder.name in text and "5 label files" in text


def test_a_window(run, source, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("utils.predict.viewer.sys.platform", "linux")
    path = write_weights(tmp_path / "mine.pt")
    given = {"source": str(source / "a.png"), "weights": str(path), "update": True}
    assert tree(run(**given, view_img=True, half=True)) == ["a.png"]
    state = load_checkpoint(path)["model"]["state_dict"]  # --update strips it
    assert next(value for value in state.values() if value.is_floating_point()).dtype == torch.half

    class Window:
        def show(self, title, image):
            return False

        def close(self):
            pass

    monkeypatch.setattr(detect, "Viewer", Window)
    assert tree(run(source=str(source), view_img=True)) == ["a.png"]


# ---- the command
def test_command_line(weights, source, tmp_path):
    write_image(source / "\x1b]0;own\x07.png", np.full((32, 32, 3), 90, np.uint8))
    words = ["--weights", str(weights), "--source", "source", "--img", "32", "--project", "out", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "detect.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert tree(tmp_path / "out/exp") == ["_]0;own_.png", "a.png", "clip.mp4", "图 b.JPG"]
    assert "\x1b" not in done.stdout + done.stderr and r"\x1b]0;own\x07.png: 32x32 16 persons" in done.stderr
    assert f"Results saved to {Path('out/exp')}" in done.stderr


def test_errors_and_interrupting_are_one_line(weights, caplog, monkeypatch):
    assert detect.main(["--weights", str(weights), "--source", "nowhere.jpg"]) == 1
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "nowhere.jpg" in record.getMessage() and "\n" not in record.getMessage() and record.exc_info is None

    def interrupt(opt):
        raise KeyboardInterrupt

    monkeypatch.setattr(detect, "detect", interrupt)
    assert detect.main(["--weights", str(weights)]) == 130 and "saved" in caplog.text


# ---- tiles
@pytest.mark.parametrize("merge", ["nms", "wbf"])
def test_tiles_of_images_and_videos(run, tmp_path, merge):
    """The known detector finds 16 of 10 x 13 pixels in each view of 32 x 32; whole, 2.5 times as large."""
    source = tmp_path / "large"
    write_image(source / "a.png", np.full((80, 80, 3), 90, np.uint8))
    with VideoWriter(source / "clip", 7) as video:
        video.write(np.full((80, 80, 3), 90, np.uint8))
    settings = {"source": str(source), "nosave": True, "save_txt": True, "tile_merge": merge, "iou_thres": 0.9}
    folder = run(**settings, tile=32, tile_overlap=0.25)
    for name in ("a", "clip_1"):
        rows = np.loadtxt(folder / "labels" / f"{name}.txt")
        small = rows[rows[:, 3] * 80 < 12]
        assert len(rows) - len(small) == 16 and set(rows[:, 0]) == {1}
        assert 64 <= len(small) == len({tuple(row) for row in small.round(3).tolist()})
    assert len(np.loadtxt(run(**settings, tile=32, tile_overlap=0.25, max_det=20) / "labels/a.txt")) == 20


@pytest.mark.parametrize(
    "given, words",
    [
        ({"tile_overlap": 0.3}, "--tile-overlap 0.3 .*give --tile SIZE"),
        ({"tile_merge": "wbf"}, "--tile-merge wbf .*give --tile SIZE"),
        ({"tile": 16}, "--tile 16: must be from 32"),
        ({"tile": 64, "tile_overlap": 0.95}, "--tile-overlap 0.95: must be from 0 to 0.9"),
        ({"tile": 64, "tile_merge": "mean"}, "--tile-merge"),
    ],
)
def test_mistakes_with_tiles_are_one_line(run, tmp_path, given, words):
    with pytest.raises(ValueError, match=words) as caught:
        run(source=str(tmp_path), **given)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()
