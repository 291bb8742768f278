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
    assert one.train == (tmp_path / "set/a", tmp_path / "set/b.txt")
    assert (one.val, one.test) == ((tmp_path / "set/c",), ())
    two = DataConfig.load(data_yaml(tmp_path, "train: a\nval: /abs\nnames: {1: y, 0: x}\n"))
    assert two.names == ("x", "y") and two.nc == 2 and two.val == (Path("/abs"),) and two.root == tmp_path
    long = DataConfig.load(data_yaml(tmp_path, f"path: {'x' * 5000}\ntrain: a\nval: b\nnames: [x]\n"))
    assert long.root.name == "x" * 5000, "what is too long for any file is only missing"


@pytest.mark.parametrize(
    "written, names",
    [
        ("nc: 3", ("class0", "class1", "class2")),
        ("names: [0, '1.10', 'no']", ("0", "1.10", "no")),
        (f"names: {{{', '.join(f'{chr(39)}{n}{chr(39)}: c{n}' for n in range(12))}, 12: c12}}",
         tuple(f"c{n}" for n in range(13))),
    ],
)  # fmt: skip
def test_names_in_all_forms(tmp_path: Path, written: str, names: tuple[str, ...]) -> None:
    assert DataConfig.load(data_yaml(tmp_path, f"train: a\nval: a\n{written}\n")).names == names


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


SPLITS = "train: a\nval: a\n"
DATA_MISTAKES = [
    ("val: a\nnames: [x]", "no 'train'"),
    ("train: 3\nval: a\nnames: [x]", "train must be"),
    ("path: 3\ntrain: a\nval: a\nnames: [x]", "path must be"),
    ("train: ~nobody-of-that-name/a\nval: a\nnames: [x]", "train: there is no home folder for"),
    (f"{SPLITS}names: [x]\npath: ~nobody-of-that-name/a", "path: there is no home folder for"),
    (f"{SPLITS}names: [x]\nnc: 2", "nc is 2 but there are 1 names"),
    (SPLITS, "neither 'names' nor 'nc'"),
    (f"{SPLITS}names: {{0: x, 2: y}}", "without gaps"),
    (f"{SPLITS}names: {{'0': a, '٢': b}}", "without gaps"),
    (f"{SPLITS}names: {{0: a, 1: b, '1': c}}", "names has class 1 twice, with and without quotes; remove one"),
    (f"{SPLITS}names: x", "names must be"),
    (f"{SPLITS}nc: no", "nc must be"),
    (f"{SPLITS}nc: 1000000000000", "nc must be a whole number of classes, 1 to 100000"),
    (f"{SPLITS}nmaes: [x]", "unknown key 'nmaes', did you mean 'names'"),
    (f"{SPLITS}names: [x]\nimgsz: big", "imgsz must be"),
    (f"{SPLITS}names: {['x'] * 999}\nimgsz: {['x'] * 999}", "imgsz must be .{,120}$"),
    (f"{SPLITS}names: {{}}", "names: must be"),
    (f"{SPLITS}names: {{0: null}}", "names: class 0 must be text, not null; write its name in quotes"),
    (f"{SPLITS}names:\n  - x\n  -\n", "class 1 must be text, not null"),
    (f"{SPLITS}names: [yes, no]", "class 0 must be text, not True"),
    (f"{SPLITS}names: [x, 2024-01-01]", "class 1 must be text"),
    (f"{SPLITS}names: [1.10]", "class 0 must be text, not 1.1;"),
    (f"{SPLITS}names: {{0: {{name: x}}}}", "class 0 must be text"),
    (f'{SPLITS}names: ["x\\ny"]', "class 0 must be one line of text"),
]


@pytest.mark.parametrize("text, says", DATA_MISTAKES)
def test_data_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = data_yaml(tmp_path, text)
    with pytest.raises(ValueError, match=says) as error:
        DataConfig.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_what_is_only_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig.load(data_yaml(tmp_path, f"{SPLITS}names: [bolt, nut, bolt]\nroboflow: {{licence: CC}}\n"))
    assert data.names == ("bolt", "nut", "bolt") and "classes 0 and 2 have one name, 'bolt'" in caplog.text
    assert "roboflow mean" in caplog.text


def test_data_root_falls_back_to_the_data_sets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path / "sets"))
    (tmp_path / "yaml").mkdir()
    file = data_yaml(tmp_path / "yaml", "path: ../datasets/mine\ntrain: a\nval: a\nnames: [x]\n")
    assert DataConfig.load(file).root == tmp_path / "sets/mine"


def test_hyp_empty_is_v61() -> None:
    assert Hyp.load({}) == Hyp.load(ROOT / "data/hyps/hyp.scratch-low.yaml")
    assert Hyp.load({"lr0": "1e-2", "close_mosaic": 3}).lr0 == 0.01, "numbers may be text"


HYP_MISTAKES = [
    ({"lr": 1}, "hyp: unknown key 'lr', did you mean 'lrf'.; there are: lr0, "),
    ({"lr0": "x"}, "a number"), ({"lr0": [1]}, "a number"), ({"lr0": 10**400}, "a number"),
    ({"lr0": float("nan")}, "lr0 nan: must be above 0 and at most 10"), ({"lr0": None}, "lr0. must have a value"),
    ({"mosaic": 2}, "hyp: mosaic 2: must be from 0 to 1"), ({"hsv_h": True}, "hyp: hsv_h True: must be a number"),
    ({"box_iou": [3]}, "must be text"), ({"anchor_t": 1}, "above 1"), ({"close_mosaic": "x"}, "a whole number"),
    ({"close_mosaic": 2.5}, "close_mosaic 2.5: must be a whole number"), ({"warmup_floor": 10**400}, "a whole number"),
    ({"pooled": float("inf")}, "inf: must be a whole number"),
]  # fmt: skip


@pytest.mark.parametrize("content, says", HYP_MISTAKES)
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


def test_every_shipped_data_file_loads() -> None:
    files = sorted((ROOT / "data").glob("*.yaml"))
    assert files and all(DataConfig.load(file).nc >= 1 for file in files)


def test_image_size_fits_the_stride(caplog: pytest.LogCaptureFixture) -> None:
    assert check_img_size(640) == 640 and check_img_size([64, 65], 32) == [64, 96]
    assert check_img_size(10, 32, floor=64) == 64 and make_divisible(65, 32) == 96
    with pytest.raises(ValueError, match="at least 1"):
        check_img_size(0)


HYP_BOUNDS = {item.name: item.metadata["bounds"] for item in fields(Hyp) if item.type != "str"}


def test_every_hyper_parameter_has_a_range_and_keeps_to_it() -> None:
    for key, bounds in HYP_BOUNDS.items():
        assert -math.inf < bounds.least < bounds.most < math.inf
        says = rf"hyp: {key} \S+: must be (a whole|(from|above) {bounds.least:.10g}) "
        for value in (bounds.least - 1, bounds.most + 1, 1e308, -1e308, "1000000000000"):
            with pytest.raises(ValueError, match=says):
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


def test_classes_by_name() -> None:
    for name in ("Traffic Light", "traffic_light ", " TRAFFIC-LIGHT", "ｔraffic \tlight"):
        assert ClassNames(["car", "traffic light"]).find(name) == 1, "case, width and separators do not matter"
    names = ClassNames(["a-b", "a b", "Straße", "x", "x"])  # two that differ in nothing else are told apart
    assert (names.find("a-b"), names.find("a b"), names.find("A_B"), names.find("STRASSE")) == (0, 1, None, 2)
    assert names.find("x") == 3 and names.find("X") == 3 and folded(" A__b ") == "a b"
    names = ClassNames(["Bolt", "nut"])
    assert names.find("bolts") is None and names.find("") is None
    assert names.unlisted("bolts") == "called 'bolts', which is not among the names; did you mean 'Bolt'?"
    assert names.unlisted("cat") == "called 'cat', which is not among the names; add it to keep them"
    assert len(names.unlisted("x" * 10_000)) < 200
