"""Every flag of YOLOv5 6.1 is understood by train.py, val.py and detect.py, with its default or, on purpose, ours.

Those of serve.py, which v6.1 has not, have their defaults too.
"""

from __future__ import annotations

from typing import Any

import pytest

import detect
import export
import serve
import train
import val
from detect import DetectOptions
from serve import ServeOptions
from utils.base.options import parse
from utils.base.paths import ROOT
from utils.prepare import write_shards
from utils.training.train_options import TrainOptions
from val import ValOptions

RUNS = ROOT / "runs"
SWITCH = ("", False, True)  # no value; off; on
Flags = dict[str, tuple[str, Any, Any]]  # flag -> words after it, default, value that the words mean


def switches(flags: str) -> Flags:
    return dict.fromkeys(flags.split(), SWITCH)


TRAIN: Flags = {
    "--weights": ("a.pt", "", "a.pt"),  # v6.1: yolov5s.pt, a download
    "--data": ("a.yaml", "shapes.yaml", "a.yaml"),  # v6.1: coco128.yaml, a download
    "--hyp": ("a.yaml", "hyp.default.yaml", "a.yaml"),  # v6.1: hyp.scratch-low.yaml, too slow for small sets
    "--imgsz": ("320", 0, 320),  # v6.1: 640; ours: the data set's own, else 640
    "--optimizer": ("Adam", "auto", "Adam"),  # v6.1: SGD; auto chooses by the length of the run
    "--cfg": ("a.yaml", "", "a.yaml"), "--epochs": ("7", 300, 7), "--batch-size": ("-1", 16, -1),
    "--resume": ("a.pt", False, "a.pt"), "--evolve": ("5", None, 5), "--bucket": ("b", "", "b"),
    "--augment-device": ("cpu", "auto", "cpu"),
    "--cache": ("disk", None, "disk"), "--device": ("0,1", "", "0,1"), "--workers": ("0", 8, 0),
    "--project": ("p", str(RUNS / "train"), "p"), "--name": ("n", "exp", "n"), "--label-smoothing": (".1", 0.0, 0.1),
    "--patience": ("0", 100, 0), "--freeze": ("0 2", ["0"], ["0", "2"]), "--save-period": ("3", -1, 3),
    "--local_rank": ("1", -1, 1), "--entity": ("me", None, "me"), "--upload_dataset": ("val", False, "val"),
    "--bbox_interval": ("2", -1, 2), "--artifact_alias": ("v1", "latest", "v1"),
    **switches("--rect --nosave --noval --noautoanchor --image-weights --multi-scale --single-cls --sync-bn"),
    **switches("--exist-ok --quad --cos-lr"),
}  # fmt: skip
WEIGHTS = ("a.pt b.pt", [], ["a.pt", "b.pt"])  # v6.1: yolov5s.pt; ours: the newest run's best.pt
VAL: Flags = {
    "--data": ("a.yaml", "", "a.yaml"),  # v6.1: coco128.yaml; ours: what the weights were trained with
    "--imgsz": ("320", 0, 320),  # v6.1: 640; ours: what the weights were trained with
    "--weights": WEIGHTS, "--batch-size": ("1", 32, 1), "--conf-thres": (".2", 0.001, 0.2),
    "--iou-thres": (".5", 0.6, 0.5), "--task": ("study", "val", "study"), "--device": ("cpu", "", "cpu"),
    "--workers": ("0", 8, 0), "--project": ("p", str(RUNS / "val"), "p"), "--name": ("n", "exp", "n"),
    **switches("--single-cls --augment --verbose --save-txt --save-hybrid --save-conf --save-json --exist-ok --half"),
    **switches("--dnn"),
}  # fmt: skip
DETECT: Flags = {
    "--data": ("a.yaml", "", "a.yaml"),  # v6.1: coco128.yaml; ours: the names are in the weights
    "--imgsz": ("320 640", [], [320, 640]),  # v6.1: 640; ours: what the weights were trained with
    "--classes": ("0 2", None, ["0", "2"]),  # numbers as in v6.1, or names, so they are words at first
    "--weights": WEIGHTS, "--source": ("0", str(ROOT / "data/images"), "0"), "--conf-thres": (".5", 0.25, 0.5),
    "--iou-thres": (".5", 0.45, 0.5), "--max-det": ("10", 1000, 10), "--device": ("cpu", "", "cpu"),
    "--project": ("p", str(RUNS / "detect"), "p"), "--name": ("n", "exp", "n"), "--line-thickness": ("1", 3, 1),
    **switches("--view-img --save-txt --save-conf --save-crop --nosave --agnostic-nms --augment --visualize --update"),
    **switches("--exist-ok --hide-labels --hide-conf --half --dnn"),
}  # fmt: skip
SERVE: Flags = {  # v6.1's example server has --port only
    "--weights": WEIGHTS, "--data": ("a.yaml", "", "a.yaml"), "--imgsz": ("320", 0, 320),
    "--conf-thres": (".5", 0.25, 0.5), "--iou-thres": (".5", 0.45, 0.5), "--max-det": ("10", 1000, 10),
    "--device": ("cpu", "", "cpu"), "--host": ("0.0.0.0", "127.0.0.1", "0.0.0.0"), "--port": ("80", 5000, 80),
    "--batch-size": ("1", 16, 1), "--timeout": ("1", 30.0, 1.0), "--half": SWITCH,
}  # fmt: skip
SCRIPTS = {
    "train": (TrainOptions, TRAIN),
    "val": (ValOptions, VAL),
    "detect": (DetectOptions, DETECT),
    "serve": (ServeOptions, SERVE),
}
FLAGS = [(script, flag) for script, (_, flags) in SCRIPTS.items() for flag in flags]


def name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("script, flag", FLAGS, ids=lambda value: value)
def test_flag(script: str, flag: str) -> None:
    kind, flags = SCRIPTS[script]
    words, default, meaning = flags[flag]
    name = name_of(flag)
    assert getattr(parse(kind, []), name) == default
    for spelling in {flag, "--" + name, "--" + name.replace("_", "-")}:  # v6.1 itself wrote some with underscores
        opt = parse(kind, [spelling, *words.split()])
        assert getattr(opt, name) == meaning and type(getattr(opt, name)) is type(meaning)
        untouched = {other: getattr(opt, name_of(other)) for other in flags if other != flag}
        assert untouched == {other: flags[other][1] for other in flags if other != flag}


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_at_once(script: str) -> None:
    kind, flags = SCRIPTS[script]
    opt = parse(kind, [word for flag, (words, _, _) in flags.items() for word in (flag, *words.split())])
    assert {flag: getattr(opt, name_of(flag)) for flag in flags} == {flag: value[2] for flag, value in flags.items()}


SPELLINGS = {
    ("train", "batch_size", 8): ("--batch 8", "--batch=8"),
    ("train", "imgsz", 320): ("--img 320", "--img-size 320", "--img_size 320"),
    ("val", "batch_size", 8): ("--batch 8",),
    ("val", "imgsz", 320): ("--img 320", "--img-size 320"),
    ("val", "iou_thres", 0.7): ("--iou 0.7",),
    ("detect", "conf_thres", 0.1): ("--conf 0.1",),
    ("serve", "conf_thres", 0.1): ("--conf 0.1",),
    ("serve", "imgsz", 320): ("--img 320",),
}


def test_short_and_other_spellings() -> None:
    for (script, name, meaning), spellings in SPELLINGS.items():
        for words in spellings:
            assert getattr(parse(SCRIPTS[script][0], words.split()), name) == meaning, words
    assert parse(DetectOptions, ["--img-size", "320", "640"]).imgsz == [320, 640]


@pytest.mark.parametrize(
    "flag, meaning", [("--resume", True), ("--evolve", 300), ("--cache", "ram"), ("--upload_dataset", True)]
)
def test_flags_whose_value_may_be_left_out(flag: str, meaning: Any) -> None:
    name = name_of(flag)
    assert getattr(parse(TrainOptions, [flag]), name) == meaning
    assert getattr(parse(TrainOptions, [flag, "--epochs", "1"]), name) == meaning


REFUSED = [
    (train, "--cache tape|--optimizer Lion|--epochs many|--freeze|--epoch-s 3|stray|--imgsz -1|--batch-size 0"),
    (val, "--task train2|--batch-size 0|--imgsz 40000"),
    (detect, "--imgsz 0|--conf-thres 1.5|--max-det 0|--max-frames 0|--visualize roots|--track-low 2"),
    (export, "--include pt2 onxx|--opset 0"), (write_shards, "--per-shard 0"),
    (serve, "--conf-thres 2|--port 99999|--batch-size 0|--timeout nan|--window -1"),
]  # fmt: skip


@pytest.mark.parametrize("script, words", [(script, one) for script, words in REFUSED for one in words.split("|")])
def test_what_no_flag_allows_ends_in_one_line(script: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(words.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "usage:" not in error and words.split()[0] in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("script", [train, val, detect, export, serve])
def test_every_script_helps_in_one_line_and_checks_what_python_gives(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--weihgts", "a.pt"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "did you mean '--weights'?" in error
    for value in ("abc", -5, 1.5, True, 10**9):
        with pytest.raises(ValueError, match="^--(imgsz|batch-size) .{,90}$"):
            script.run(imgsz=value)
    if script is not detect:
        with pytest.raises(ValueError, match="^--batch-size .{,90}$"):
            script.run(batch_size="many")
