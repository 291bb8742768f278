"""What people get wrong, typed at the command line: one line that names the file and the remedy, and no work lost."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detect
import export
import hubconf
import serve
import train
import val
from tests.conftest import draw_squares
from tests.conftest import tiny_cfg as tiny_cfg_fixture
from utils.base.log import LOGGER
from utils.base.options import parse
from utils.checkpoints.checkpoint import load_checkpoint
from utils.images.reading import read_image
from utils.training.train_options import TrainOptions

HEAD = "train: images/train\nval: images/val\n"
NAMED = HEAD + "names: [red, blue]\n"


class Said(logging.Handler):
    """Warnings and errors of a run, in order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert record.exc_info is None, "a traceback was logged"
        self.lines.append(record.getMessage())

    def about(self, part: str) -> str:
        """The one line about something."""
        (line,) = [line for line in self.lines if part in line]
        return line


@pytest.fixture
def said():
    handler = Said()
    LOGGER.addHandler(handler)
    yield handler
    LOGGER.removeHandler(handler)
    assert not any("\n" in line.strip("\n") for line in handler.lines)


@pytest.fixture
def place(tmp_path: Path, squares: Path, tiny_cfg: Path) -> Path:
    """A folder with squares/squares.yaml and tiny.yaml."""
    assert squares.parent.parent == tiny_cfg.parent == tmp_path
    return tmp_path


def train_words(place: Path, *more: str) -> list[str]:
    given = {"data": place / "squares/squares.yaml", "cfg": place / "tiny.yaml", "project": place / "runs"}
    fixed = ["--imgsz", "64", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--noval"]
    return [*(word for key, value in given.items() for word in (f"--{key}", str(value))), *fixed, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of one short run, in a folder with its data."""
    place = tmp_path_factory.mktemp("trained")
    for split in ("train", "val"):
        draw_squares(place / "squares", split, 4)
    (place / "squares/squares.yaml").write_text(NAMED)
    tiny_cfg_fixture.__wrapped__(place)
    train.train(parse(TrainOptions, train_words(place)))
    return place / "runs/exp/weights/best.pt"


# ---- images that are left out (labels: tests/test_broken_data.py)
def test_a_broken_image_is_named(trained: Path, tmp_path: Path, said: Said) -> None:
    draw_squares(tmp_path / "squares", "val", 2)
    (tmp_path / "squares/squares.yaml").write_text(NAMED.replace("images/train", "images/val"))
    file, whole = tmp_path / "squares/images/val/cut.png", (tmp_path / "squares/images/val/1.png").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert score(trained, tmp_path) == 0
    assert "unusable image: the file is cut off; re-save or remove it" in said.about(str(file))
    assert detect.main(detect_words(trained, tmp_path, file.parent)) == 0
    assert "re-save or remove it" in said.lines[-1] and "cut.png" in said.lines[-1]
    assert len(list((tmp_path / "found/exp").glob("*.png"))) == 2


def test_unusual_images_are_used(place: Path, trained: Path, said: Said) -> None:
    """20,000 pixels wide, or high, 16 bit, grey, RGBA, palette, EXIF rotation; a folder with spaces and not ASCII."""
    home = place / "données 图 b"
    shutil.move(place / "squares", home / "squares")
    shutil.copy(place / "tiny.yaml", home)
    images = home / "squares/images/train"
    kinds = [((16, 20_000, 3), np.uint8), ((20_000, 16, 3), np.uint8), ((64, 64, 3), np.uint16), ((64, 64), np.uint16)]
    for number, (shape, kind) in enumerate([*kinds, ((64, 64), np.uint8), ((64, 64, 4), np.uint8)]):
        cv2.imwrite(str(place / "one.png"), np.full(shape, 117 if kind is np.uint8 else 117 * 257, kind))
        shutil.move(place / "one.png", images / f"{number}.png")
    lying = Image.new("RGB", (64, 32), (117, 117, 117))
    exif = lying.getexif()
    exif[0x0112] = 6
    (images / "6.png").unlink()
    lying.save(images / "6.jpg", exif=exif)
    lying.convert("P", palette=Image.Palette.ADAPTIVE).save(images / "7.png")
    assert read_image(images / "6.jpg").shape == (64, 32, 3)
    assert train.main(train_words(home)) == 0
    assert detect.main(detect_words(trained, home, images, "--save-txt", "--save-crop")) == 0
    assert len(list((home / "found/exp").glob("*.*"))) == 12
    noted = said.about("squares/images")
    assert "2 images, the first" in noted and "/2.png: more than 8 bits a channel; scaled to 8" in noted


def test_detect_takes_a_single_pixel(trained: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    assert detect.main(detect_words(trained, tmp_path, tmp_path / "dot.png", "--augment")) == 0


# ---- data sets and YAML files that cannot work: nothing is written
def rewritten(path: str, text: str) -> Callable[[Path], Any]:
    return lambda place: (place / path).write_text(text)


def data(text: str) -> Callable[[Path], Any]:
    return rewritten("squares/squares.yaml", text)


def replaced(old: str, new: str) -> Callable[[Path], Any]:
    def edit(place: Path) -> None:
        file = place / "tiny.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    return edit


def emptied(split: str, what: str = "images") -> Callable[[Path], Any]:
    return lambda place: [file.unlink() for file in (place / "squares" / what / split).iterdir()]


def for_all_labels(text: str) -> Callable[[Path], Any]:
    return lambda place: [file.write_text(text) for file in (place / "squares/labels/train").iterdir()]


DATA = {
    "missing images": (data(NAMED.replace("images/train", "nowhere")), ["squares/nowhere", "correct path, train"]),
    "missing folder": (lambda place: shutil.rmtree(place / "squares/images/val"), ["images/val", "correct path"]),
    "empty folder": (emptied("train"), ["no images in", "images/train", "put some there or correct the data YAML"]),
    "all labels broken": (for_all_labels("0 1\n"), ["none of the 12 images", "0.txt:1: 2 columns"]),
    "class above nc": (for_all_labels("1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n"), ["txt:2: class 2", "2 classes, 0 to 1"]),
    "unknown key": (data(NAMED + "nmaes: 3\n"), ["squares.yaml: unknown key 'nmaes', did you mean 'names'?"]),
}
MODEL = {
    "unknown layer": (replaced("C3, [128]", "C33, [128]"), ["tiny.yaml: layer 2", "'C33', did you mean 'C3'?"]),
    "head without arguments": (replaced("Detect, [nc, anchors]", "Detect, []"), ["8 ", "argument of Detect must be"]),
    "no Detect": (replaced("  - [[4, 7], 1, Detect, [nc, anchors]]\n", ""), ["tiny.yaml: training needs", "Detect"]),
    "four channels": (replaced("nc: 2", "nc: 2\nch: 4"), ["tiny.yaml: training needs 3 input channels"]),
}
OPTIONS = {
    "--weights none.pt": ["none.pt do not exist"],
    "--cfg none.yaml": ["none.yaml does not exist"],
    "--hyp none.yaml": ["none.yaml does not exist"],
    "--data none.yaml": ["none.yaml does not exist"],
    "--resume none.pt": ["none.pt does not exist: no ", "; name the last.pt in a run's folder weights"],
    "--resume": ["no */weights/last.pt"],
    "--freeze 99": ["--freeze 99"],
    "--amp fp16": ["--amp fp16 needs a GPU; on a CPU choose auto, bf16 or off"],
    "--device 9": ["device '9': this machine has no such GPU"],
}
HYP = {
    "lr00: 3\n": ["hyp.yaml: unknown key 'lr00', did you mean 'lr0'?"],
    "box_iou: WIoU\n": ["hyp.yaml: unknown box_iou 'WIoU'; there are: IoU", "a file of models/custom/"],
}


def cases() -> list[Any]:
    found = [pytest.param(edit, [], says, id=f"data, {name}") for name, (edit, says) in DATA.items()]
    found += [pytest.param(edit, [], says, id=f"model, {name}") for name, (edit, says) in MODEL.items()]
    found += [pytest.param(None, words.split(), says, id=words) for words, says in OPTIONS.items()]
    return found + [
        pytest.param(rewritten("hyp.yaml", text), ["--hyp", "hyp.yaml"], says, id=f"hyp, {text.strip()}")
        for text, says in HYP.items()
    ]


@pytest.mark.parametrize("edit, words, says", cases())
def test_training_refuses_in_one_line_and_writes_nothing(
    place: Path, said: Said, monkeypatch: pytest.MonkeyPatch, edit: Any, words: list[str], says: list[str]
) -> None:
    monkeypatch.chdir(place)
    if edit:
        edit(place)
    assert train.main(train_words(place, *words)) == 1
    assert all(part in said.lines[-1] for part in says), said.lines[-1]
    assert not (place / "runs").exists()


def test_training_goes_on_with_unknown_keys_and_odd_sizes(place: Path, said: Said) -> None:
    replaced("nc: 2", "nc: 2\ncolour: red")(place)
    shutil.rmtree(place / "squares/labels/val")
    assert train.main(train_words(place, "--imgsz", "70")) == 0
    assert "known: nc, depth_multiple" in said.about("unknown key 'colour' is ignored")
    assert "using 96" in said.about("--imgsz 70 is not a multiple")
    assert "labels/val/0.txt and its like; all is background" in said.about("val: \033[0mno labels found")


@pytest.mark.parametrize("left", ["empty files", "other names"])
def test_training_without_a_single_label_stops(place: Path, said: Said, left: str) -> None:
    labels = place / "squares/labels"
    if left == "empty files":
        for file in (labels / "train").iterdir():
            file.write_text("")
    else:
        labels.rename(place / "squares/Labels")
    assert train.main(train_words(place)) == 1
    assert f"looked for {labels}/train/0.txt, {place}/squares/images/train/0.txt" in said.lines[-1]
    hint = f"{place}/squares/Labels/train/0.txt is there: rename Labels to labels"
    assert (hint in said.lines[-1]) == (left == "other names")
    assert not (place / "runs").exists()


# ---- images that are lost on the way
def lose(monkeypatch: pytest.MonkeyPatch, images: list[Path]) -> None:
    """From here on these cannot be read any more."""

    def read(path: str) -> np.ndarray:
        if Path(path) in images:
            raise ValueError(f"{path}: cannot be read (gone); check that the file exists")
        return read_image(path)

    monkeypatch.setattr("utils.data.label_arrays.read_image", read)


@pytest.mark.parametrize("split, part", [("train", 0.1), ("val", 1)])
def test_images_that_are_lost_are_counted_and_too_many_end_a_training(
    place: Path, said: Said, monkeypatch: pytest.MonkeyPatch, split: str, part: float
) -> None:
    images = sorted((place / f"squares/images/{split}").iterdir())
    gone = images[: max(int(part * len(images)), 1)]
    lose(monkeypatch, gone)
    done = train.main([word for word in train_words(place, "--epochs", "2") if word != "--noval"])
    named = [line for line in said.lines if "a grey image stands in" in line]
    assert len(named) == len(gone), "each is named once, whatever the number of epochs"
    counted = said.about(f"{len(gone)} of {len(images)} images could not be read, the first {gone[0]}")
    assert done == (part > 0.25) == ("too many to go on (more than 25%)" in counted)


def test_a_score_of_images_that_are_lost_is_none(trained: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    place = trained.parents[3]
    lose(monkeypatch, list((place / "squares/images/val").iterdir()))
    assert score(trained, place) == 1
    assert "4 of 4 images could not be read, the first" in said.lines[-1] and "too many to go on" in said.lines[-1]


# ---- checkpoints
class Harmful:
    """Leaves a file behind where unpickling runs what it says."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def write_foreign(kind: str, good: Path, file: Path) -> None:
    """A file that is no detector, made from one."""
    content = torch.load(good, weights_only=True)
    state = content["model"]["state_dict"]
    changed = {
        "code": {"model": Harmful(file.with_suffix(".trace"))},
        "state": state,
        "incomplete": {"model": {**content["model"], "state_dict": dict([*state.items()][1:])}},
        "no tensors": {"model": {**content["model"], "state_dict": 3}},
        "no names": {"model": {**content["model"], "names": 3}},
    }
    if kind == "text":
        file.write_bytes(b"hello world\n" * 99)
    else:
        torch.save(changed[kind], file)


FOREIGN = {
    "text": "no checkpoint, or a damaged one (not in PyTorch's file format)",
    "code": ".mkdir, which is not on the list of allowed classes and could run code",
    "state": "holds no model description; expected a checkpoint of this project",
    "incomplete": "its weights do not fit its description",
    "no tensors": "its state_dict is of type int",
    "no names": "its names is of type int",
}


def score(weights: Path, place: Path, *more: str) -> int:
    """val.py on the squares in a folder."""
    words = ["--weights", str(weights), "--data", str(place / "squares/squares.yaml"), "--imgsz", "64"]
    return val.main([*words, "--workers", "0", "--device", "cpu", "--project", str(place / "val"), *more])


def detect_words(weights: Path, place: Path, source: Path | str, *more: str) -> list[str]:
    words = ["--weights", str(weights), "--source", str(source), "--imgsz", "64", "--device", "cpu"]
    return [*words, "--project", str(place / "found"), *more]


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_weights_are_refused_by_name_everywhere(
    place: Path, trained: Path, said: Said, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    file = place / "foreign.pt"
    write_foreign(kind, trained, file)
    assert score(file, place) == 1
    assert detect.main(detect_words(file, place, place / "squares/images/val")) == 1
    assert train.main(train_words(place, "--weights", str(file))) == 1
    assert len(said.lines) == 3 and all(str(file) in line and FOREIGN[kind] in line for line in said.lines)
    assert not (place / "foreign.trace").exists() and not (place / "runs").exists() and not (place / "val").exists()
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        hubconf.custom(file, device="cpu")


def test_missing_weights_are_named_everywhere(place: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert score(place / "none.pt", place) == 1
    assert detect.main(detect_words(place / "none.pt", place, place / "squares/images/val")) == 1
    assert all("none.pt do not exist" in line and "train some, or copy them there" in line for line in said.lines)
    assert train.main(["--weights", str(place / "none.pt"), "--data", str(place / "squares/squares.yaml")]) == 1
    assert export.main(["--weights", str(place / "none.pt")]) == 1
    assert serve.main(["--weights", str(place / "none.pt"), "--port", "0"]) == 1
    assert len(said.lines) == 5 and len(set(said.lines)) == 1
    with pytest.raises(ValueError, match=r"none\.pt do not exist") as caught:
        hubconf.custom(place / "none.pt", device="cpu")
    assert str(caught.value) in said.lines[0]
    with pytest.raises(ValueError, match=r"yolov5n\.pt is not here.*pretrained=False builds the model"):
        hubconf.yolov5n(device="cpu")


# ---- val.py and detect.py
VAL = {
    "--task test": "squares.yaml: has no 'test' split; add it, or choose another --task",
    "--data none.yaml": "none.yaml does not exist",
}


def test_val_refuses_in_one_line(trained: Path, place: Path, said: Said) -> None:
    for words, says in VAL.items():
        assert score(trained, trained.parents[3], *words.split()) == 1
        assert says in said.lines[-1]
    data(HEAD + "names: [a, b, c]\n")(place)
    assert score(trained, place) == 1
    assert "the weights know 2 classes" in said.lines[-1] and "squares.yaml has 3" in said.lines[-1]


@pytest.mark.parametrize(
    "source, says",
    [
        ("none.jpg", "none.jpg does not exist (looked in"),
        ("hollow", "nothing found in hollow: looked for images"),
        ("hollow/*.jpg", "nothing found in hollow/*.jpg: looked for images"),
        ("", "--source is empty; name an image"),
        ("letter.doc", "letter.doc is no file that can be looked at; known are images"),
        ("hollow.txt", "hollow.txt names nothing that can be looked at"),
        ("broken.jpg", "nothing in broken.jpg could be read; see the warnings above"),
        ("broken.mp4", "nothing in broken.mp4 could be read; see the warnings above"),
    ],
)
def test_detect_on_nothing(
    trained: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    for name in ("letter.doc", "hollow.txt"):
        (tmp_path / name).touch()
    for name in ("broken.jpg", "broken.mp4"):
        (tmp_path / name).write_bytes(b"x" * 999)
    assert detect.main(detect_words(trained, tmp_path, source)) == 1
    assert says in said.lines[-1]


def test_detect_goes_on_after_broken_files_in_a_list(trained: Path, tmp_path: Path, said: Said) -> None:
    shutil.copy(trained.parents[3] / "squares/images/val/0.png", tmp_path / "good.png")
    (tmp_path / "broken.mp4").write_bytes(b"x" * 999)
    (tmp_path / "list.txt").write_text("none.jpg\nbroken.mp4\ngood.png\n")
    assert detect.main(detect_words(trained, tmp_path, tmp_path / "list.txt")) == 0
    assert "list.txt:1: none.jpg does not exist" in said.lines[0]
    assert "broken.mp4: no frame of this video can be read; convert it" in said.about("broken.mp4")
    assert [path.name for path in (tmp_path / "found/exp").iterdir()] == ["good.png"]


@pytest.mark.parametrize("words, says", [("--classes rad", "did you mean 'red'"), ("--classes 9", "red")])
def test_detect_refuses_in_one_line(trained: Path, tmp_path: Path, said: Said, words: str, says: str) -> None:
    assert detect.main(detect_words(trained, tmp_path, trained.parents[3] / "squares/images/val", *words.split())) == 1
    assert words.split()[0] in said.lines[-1] and says in said.lines[-1] and not (tmp_path / "found").exists()


# ---- a full disk, and places that cannot be written to
def test_a_place_that_cannot_be_written_to_is_named(trained: Path, tmp_path: Path, said: Said) -> None:
    (tmp_path / "file").touch()
    place, project = trained.parents[3], ("--project", str(tmp_path / "file"))
    assert score(trained, place, *project) == 1
    assert detect.main(detect_words(trained, tmp_path, place / "squares/images/val", *project)) == 1
    assert len(said.lines) == 2 and all(str(tmp_path / "file") in line for line in said.lines)


def test_an_image_that_does_not_fit_on_the_disk_is_named(
    trained: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert detect.main(detect_words(trained, tmp_path, trained.parents[3] / "squares/images/val")) == 1
    assert said.lines[-1].startswith(f"{tmp_path}/found/exp/0.png: No space left on device; make room on the disk")


@pytest.mark.parametrize("call", ["fsync", "save"])
def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(
    place: Path, said: Said, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Once last.pt is that of the first epoch, nothing can be written any more."""
    module, last = (os if call == "fsync" else torch), place / "runs/exp/weights/last.pt"
    real = getattr(module, call)

    def fails(*given: Any) -> Any:
        if not last.exists() or load_checkpoint(last)["epoch"] < 0:
            return real(*given)
        if call == "save":
            given[1].write(b"half of it")
            raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0\nmore")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, fails)
        assert train.main(train_words(place, "--epochs", "2")) == 1
    # the second epoch is better, so best.pt comes first; last.pt is not touched before that is written
    best = last.with_name("best.pt")
    assert f"{best}: could not be written (" in said.lines[-1] and "make room" in said.lines[-1]
    assert "the earlier best.pt is unchanged" in said.lines[-1]
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]
    assert load_checkpoint(last)["epoch"] == 0
    assert train.main(["--resume", str(last)]) == 0 and load_checkpoint(last)["epoch"] == -1
