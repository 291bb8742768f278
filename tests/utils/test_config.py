"""Options, data set YAML and hyper-parameter YAML: what they mean and how they complain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.config import DataConfig, Hyp, check_img_size, flag, make_divisible, options, parse, read_yaml, write_yaml
from utils.paths import ROOT


@dataclass(slots=True)
class Some:
    weights: list[str] = flag([], "files")
    batch_size: int = flag(16, "pictures")
    imgsz: int = flag(640, "side", aliases=("--img", "--img-size"))
    save_txt: bool = flag(False, "write")
    cache: str | None = flag(None, "keep", nargs="?", const="ram")


def test_empty_command_line_gives_the_defaults() -> None:
    assert parse(Some, []) == Some()


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--batch", "4"], "batch_size", 4),
        (["--img", "320"], "imgsz", 320),
        (["--img-size=96"], "imgsz", 96),
        (["--batch_size", "8"], "batch_size", 8),
        (["--weights", "a.pt", "b.pt"], "weights", ["a.pt", "b.pt"]),
        (["--save-txt"], "save_txt", True),
        (["--cache"], "cache", "ram"),
        (["--cache", "disk"], "cache", "disk"),
    ],
)
def test_flags_as_people_type_them(words: list[str], name: str, value: object) -> None:
    assert getattr(parse(Some, words), name) == value


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Some, ["--bathc-size", "4"])
    assert stop.value.code == 2 and "--batch-size" in capsys.readouterr().err


def test_unknown_option_names_the_nearest() -> None:
    assert options(Some, {"imgsz": 64}).imgsz == 64
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        options(Some, {"batchsize": 1})


def test_defaults_are_not_shared() -> None:
    first = Some()
    first.weights.append("x")
    assert Some().weights == []


@pytest.mark.parametrize(
    "text, says", [("", "nothing"), ("- 1\n", "list"), ("a: [1\nb: 2", "line 2"), ("\tx: 1", "line 1")]
)
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str, says: str) -> None:
    (file := tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        read_yaml(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    content = {"z": 1, "a": [0.5, "文字"], "p": Path("x")}
    write_yaml(tmp_path / "x.yaml", content)
    assert read_yaml(tmp_path / "x.yaml") == {"z": 1, "a": [0.5, "文字"], "p": "x"}
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def data_yaml(folder: Path, text: str) -> Path:
    (file := folder / "data.yaml").write_text(text, encoding="utf-8")
    return file


def test_data_in_all_forms(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    one = DataConfig.load(data_yaml(tmp_path, "path: set\ntrain: [a, b.txt]\nval: c\nnc: 2\nnames: [x, y]\n"))
    assert (
        one.train == (tmp_path / "set/a", tmp_path / "set/b.txt")
        and one.val == (tmp_path / "set/c",)
        and one.test == ()
    )
    two = DataConfig.load(data_yaml(tmp_path, "train: a\nval: /abs\nnames: {1: y, 0: x}\n"))
    assert two.names == ("x", "y") and two.nc == 2 and two.val == (Path("/abs"),) and two.root == tmp_path
    three = DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnc: 3\n"))
    assert three.names == ("class0", "class1", "class2")


@pytest.mark.parametrize(
    "text, says",
    [
        ("val: a\nnames: [x]", "no 'train'"),
        ("train: a\nval: a\nnames: [x]\nnc: 2", "nc is 2 but there are 1 names"),
        ("train: a\nval: a", "neither 'names' nor 'nc'"),
        ("train: a\nval: a\nnames: {0: x, 2: y}", "without gaps"),
        ("train: 3\nval: a\nnames: [x]", "train must be"),
        ("train: a\nval: a\nnames: x", "names must be"),
        ("train: a\nval: a\nnc: no", "nc must be"),
        ("train: a\nval: a\nnmaes: [x]", "unknown key 'nmaes', did you mean 'names'"),
        ("train: a\nval: a\nnames: [x]\nimgsz: big", "imgsz must be"),
        ("path: 3\ntrain: a\nval: a\nnames: [x]", "path must be"),
    ],
)
def test_data_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = data_yaml(tmp_path, text)
    with pytest.raises(ValueError, match=says) as error:
        DataConfig.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_keys_of_other_tools_are_only_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnames: [x]\nroboflow: {licence: CC}\n"))
    assert "roboflow mean" in caplog.text


def test_data_root_falls_back_to_the_data_sets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    (tmp_path / "yaml").mkdir()
    file = data_yaml(tmp_path / "yaml", "path: ../datasets/mine\ntrain: a\nval: a\nnames: [x]\n")
    assert DataConfig.load(file).root == tmp_path / "sets/mine"


def test_hyp_empty_is_v61() -> None:
    assert Hyp.load({}) == Hyp.load(ROOT / "data/hyps/hyp.scratch-low.yaml")


def test_hyp_reads_numbers_written_as_text() -> None:
    assert Hyp.load({"lr0": "1e-2", "close_mosaic": 3}).close_mosaic == 3


@pytest.mark.parametrize(
    "content, says",
    [
        ({"lr": 1}, "unknown hyper-parameter"),
        ({"lr0": "x"}, "a number"),
        ({"mosaic": 2}, "probability"),
        ({"box_iou": 3}, "text"),
        ({"lr0": float("nan")}, "a number"),
        ({"anchor_t": 1}, "above 1"),
        ({"hsv_h": True}, "a number"),
    ],
)
def test_hyp_mistakes(content: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Hyp.load(content)


def test_hyp_gains_scale_as_v61() -> None:
    scaled = Hyp.load({}).scaled(levels=4, nc=20, imgsz=320, label_smoothing=0.1)
    assert scaled.box == pytest.approx(0.05 * 3 / 4)
    assert scaled.cls == pytest.approx(0.5 * 20 / 80 * 3 / 4)
    assert scaled.obj == pytest.approx(1.0 * 0.25 * 3 / 4)
    assert scaled.label_smoothing == 0.1


@pytest.mark.parametrize("file", sorted((ROOT / "data/hyps").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_hyp_file_loads(file: Path) -> None:
    Hyp.load(file)


@pytest.mark.parametrize("file", sorted((ROOT / "data").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_data_file_loads(file: Path) -> None:
    assert DataConfig.load(file).nc >= 1


def test_image_size_fits_the_stride(caplog: pytest.LogCaptureFixture) -> None:
    assert check_img_size(640) == 640 and check_img_size([64, 65], 32) == [64, 96]
    assert check_img_size(10, 32, floor=64) == 64 and make_divisible(65, 32) == 96
    with pytest.raises(ValueError, match="at least 1"):
        check_img_size(0)
