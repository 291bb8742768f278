"""Data set YAML and hyper-parameter YAML: what they mean and how they complain."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest

from utils.base.config import ClassNames, DataConfig, Hyp, check_img_size, class_names, make_divisible
from utils.base.files import folded
from utils.base.paths import ROOT
from utils.search.space import LIMITS


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
    four = DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnames: [0, '1.10', 'no']\n"))
    assert four.names == ("0", "1.10", "no")


def test_numbers_of_names_may_be_in_quotes(tmp_path: Path) -> None:
    many = "".join(f"  '{number}': c{number}\n" for number in range(12))
    config = DataConfig.load(data_yaml(tmp_path, f"train: a\nval: a\nnames:\n{many}  12: c12\n"))
    assert config.names == tuple(f"c{number}" for number in range(13))
    with pytest.raises(ValueError, match="names has class 1 twice, with and without quotes; remove one"):
        DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnames: {0: a, 1: b, '1': c}\n"))
    with pytest.raises(ValueError, match="without gaps"):
        DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnames: {'0': a, '٢': b}\n"))


def test_splits_where_other_programs_mean_them(tmp_path: Path) -> None:
    """Roboflow writes ../train/images beside train/; Windows writes backslashes."""
    for folder in ("set/train/images", "set/valid/images", "set/odd\\name", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    text = "train: ../train/images\nval: {val}\ntest: ../test/images\nnames: [x]\n"

    def val(path: str) -> Path:
        config = DataConfig.load(data_yaml(tmp_path / "set", text.format(val=path)))
        assert config.train == (tmp_path / "set/train/images",) and config.test == (tmp_path / "set/../test/images",)
        return config.val[0]

    assert val("valid\\images") == val("..\\valid\\images") == tmp_path / "set/valid/images"
    assert val("../outside") == tmp_path / "set/../outside", "what is there as it is written comes first"


def test_names_that_are_too_long_for_any_file_are_only_missing(tmp_path: Path) -> None:
    config = DataConfig.load(data_yaml(tmp_path, f"path: {'x' * 5000}\ntrain: a\nval: b\nnames: [x]\n"))
    assert config.root.name == "x" * 5000


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
        ("train: a\nval: a\nnames: {}", "names: must be"),
        ("train: a\nval: a\nnames: {0: null}", "names: class 0 must be text, not null; write its name in quotes"),
        ("train: a\nval: a\nnames:\n  - x\n  -\n", "class 1 must be text, not null"),
        ("train: a\nval: a\nnames: [yes, no]", "class 0 must be text, not True"),
        ("train: a\nval: a\nnames: [x, 2024-01-01]", "class 1 must be text"),
        ("train: a\nval: a\nnames: [1.10]", "class 0 must be text, not 1.1;"),
        ("train: a\nval: a\nnames: [[x, y]]", "class 0 must be text"),
        ("train: a\nval: a\nnames: {0: {name: x}}", "class 0 must be text"),
        ("train: a\nval: a\nnc: 1000000000000", "nc must be a whole number of classes, 1 to 100000"),
        ('train: a\nval: a\nnames: ["x\\ny"]', "class 0 must be one line of text"),
        ("train: a\nval: a\nnames: [x]\npath: ~nobody-of-that-name/a", "path: there is no home folder for"),
        ("train: ~nobody-of-that-name/a\nval: a\nnames: [x]", "train: there is no home folder for"),
        (f"train: a\nval: a\nnames: {['x'] * 999}\nimgsz: {['x'] * 999}", "imgsz must be .{,120}$"),
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
        ({"lr": 1}, "hyp: unknown key 'lr', did you mean 'lrf'.; there are: lr0, "),
        ({"lr0": "x"}, "a number"),
        ({"mosaic": 2}, "hyp: mosaic 2: must be from 0 to 1"),
        ({"box_iou": [3]}, "must be text"),
        ({"lr0": float("nan")}, "lr0 nan: must be above 0 and at most 10"),
        ({"anchor_t": 1}, "above 1"),
        ({"hsv_h": True}, "hyp: hsv_h True: must be a number"),
        ({"lr0": None}, "lr0. must have a value"),
        ({"lr0": [1]}, "a number"),
        ({"lr0": 10**400}, "a number"),
        ({"close_mosaic": 2.5}, "close_mosaic 2.5: must be a whole number"),
        ({"close_mosaic": "x"}, "a whole number"),
        ({"pooled": float("inf")}, "inf: must be a whole number"),
        ({"warmup_floor": 10**400}, "a whole number"),
    ],
)
def test_hyp_mistakes(content: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        Hyp.load(content)
    assert "\n" not in str(error.value)


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


HYP_BOUNDS = {item.name: item.metadata["bounds"] for item in fields(Hyp) if item.type != "str"}


@pytest.mark.parametrize("key", HYP_BOUNDS)
def test_every_hyper_parameter_has_a_range_and_keeps_to_it(key: str) -> None:
    bounds = HYP_BOUNDS[key]
    assert -math.inf < bounds.least < bounds.most < math.inf
    for value in (bounds.least - 1, bounds.most + 1, 1e308, -1e308, "1000000000000"):
        with pytest.raises(ValueError, match=rf"hyp: {key} \S+: must be (a whole|(from|above) {bounds.least:.10g}) "):
            Hyp.load({key: value})
    for value in (math.inf, -math.inf, math.nan, ".nan"):
        with pytest.raises(ValueError, match=f"{key} .*: must be"):
            Hyp.load({key: value})
    ends = (bounds.most, bounds.least + 1e-9 * bounds.above) if isinstance(getattr(Hyp(), key), float) else ()
    assert all(getattr(Hyp.load({key: value}), key) == value for value in ends)


def test_every_known_hyper_parameter_file_and_every_search_keeps_to_the_ranges() -> None:
    files = sorted((ROOT / "data/hyps").glob("*.yaml"))
    assert len(files) >= 6 and all(Hyp.load(file) for file in files)
    for key, (_, least, most) in LIMITS.items():
        assert least in HYP_BOUNDS[key] and most in HYP_BOUNDS[key]
    evolved = {"lr0": 0.00258, "lrf": 0.17, "warmup_epochs": 1.33, "warmup_momentum": 0.86, "anchor_t": 3.44}
    evolved |= {"scale": 0.75544, "cls_pw": 0.631, "obj_pw": 0.911, "anchors": 3.2, "shear": 0.602}  # of v6.1's files
    assert Hyp.load(evolved).scale == 0.75544


def test_two_classes_of_one_name_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig.load(data_yaml(tmp_path, "train: a\nval: a\nnames: [bolt, nut, bolt]"))
    assert data.names == ("bolt", "nut", "bolt")
    assert "classes 0 and 2 have one name, 'bolt'" in caplog.text


def test_a_yaml_in_another_coding(tmp_path: Path) -> None:
    text = "train: a\nval: a\nnames: [螺栓]\n"
    (file := tmp_path / "x.yaml").write_bytes(text.encode("utf-16"))
    assert DataConfig.load(file).names == ("螺栓",)
    file.write_bytes(text.encode("gbk"))
    with pytest.raises(ValueError, match="x.yaml: is not a text file in UTF-8; save it as UTF-8"):
        DataConfig.load(file)


@pytest.mark.parametrize("names", [[], (), {}, [None], [["a"]], [1.5], {1: "a"}, {0: "a", 2: "b"}, {"a": "b"}], ids=str)
def test_what_is_no_list_of_names(names: object) -> None:
    with pytest.raises(ValueError, match="^names: "):
        class_names(names)


def test_every_form_of_names(tmp_path: Path) -> None:
    yaml = tmp_path / "bolts.yaml"
    yaml.write_text("path: nowhere\ntrain: images/train\nval: images/val\nnames: {0: bolt, 1: nut}\n")
    text = tmp_path / "classes.txt"
    text.write_bytes("\ufeffbolt\r\n\r\n nut \r\n".encode())
    forms = (["bolt", "nut"], {0: "bolt", 1: "nut"}, {"1": "nut", "0": "bolt"}, yaml, str(yaml), text, str(text))
    assert {class_names(form) for form in forms} == {("bolt", "nut")}
    assert class_names([5, "x"]) == ("5", "x")
    with pytest.raises(ValueError, match="names: bolt is no list, data YAML or text file"):
        class_names("bolt")


@pytest.mark.parametrize("name", ["Traffic Light", "traffic_light ", " TRAFFIC-LIGHT", "ｔraffic \tlight"])
def test_case_width_and_separators_do_not_matter(name: str) -> None:
    assert ClassNames(["car", "traffic light"]).find(name) == 1


def test_names_that_differ_in_nothing_else_are_told_apart() -> None:
    names = ClassNames(["a-b", "a b", "Straße", "x", "x"])
    assert (names.find("a-b"), names.find("a b"), names.find("A_B"), names.find("STRASSE")) == (0, 1, None, 2)
    assert names.find("x") == 3 and names.find("X") == 3 and folded(" A__b ") == "a b"


def test_what_is_not_listed_says_what_comes_near() -> None:
    names = ClassNames(["Bolt", "nut"])
    assert names.find("bolts") is None and names.find("") is None
    assert names.unlisted("bolts") == "called 'bolts', which is not among the names; did you mean 'Bolt'?"
    assert names.unlisted("cat") == "called 'cat', which is not among the names; add it to keep them"
    assert len(names.unlisted("x" * 10_000)) < 200
