"""docs/extending.md, done: its files in a copy of the tree are trained, resumed, validated, exported, detected with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models import custom
from models.description.build import BLOCKS, register_block
from models.experimental import attempt_load
from models.yolo import Model
from utils.base.paths import ROOT

GUIDES = ("docs/extending.md", "docs/extending.zh-CN.md")
WORK = """
import logging, sys
import export, detect, val
from models.experimental import attempt_load
from utils.base.log import LOGGER
weights, data, images = sys.argv[1:]
model = attempt_load(weights)
kinds = {type(layer).__name__ for layer in model.modules()}
assert {"CBAM", "C3CBAM"} <= kinds and not any("BatchNorm" in kind for kind in kinds), kinds
LOGGER.addHandler(logging.StreamHandler(sys.stdout)); LOGGER.setLevel(logging.INFO)
val.run(weights=weights, data=data, imgsz=64, batch_size=6, workers=0, device="cpu", project="runs/val")
(exported,) = export.run(weights=weights, imgsz=[64, 64], include=["torchscript"], device="cpu")
detect.run(weights=str(exported), source=images, imgsz=[64, 64], device="cpu", project="runs/detect", trust=True)
print("GFLOPS", model.info(img_size=64).gflops)
"""


def files_of(guide: str) -> dict[str, str]:
    """The Python files that a guide has its readers write."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / guide).read_text(encoding="utf-8"), re.DOTALL)
    return dict(blocks)


def code(text: str) -> str:
    """Without docstrings and comments, which are in the guide's language."""
    return re.sub(r'""".*?"""|#.*', "", text)


def test_both_guides_have_the_same_code() -> None:
    english, chinese = map(files_of, GUIDES)
    assert {name: code(text) for name, text in english.items()} == {name: code(text) for name, text in chinese.items()}
    assert set(english) == {"models/custom/attention.py", "models/custom/inner_iou.py", "train_mine.py"}


@pytest.mark.timeout(600)
def test_a_layer_a_box_loss_a_class_loss_and_an_optimiser(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("models", "utils", "data"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "val.py", "detect.py", "export.py"):
        shutil.copy(ROOT / script, tree)
    for name, text in files_of(GUIDES[0]).items():
        (tree / name).write_text(text, encoding="utf-8")
    rows = "  - [-1, 1, CBAM, [{kernel: 3}]]\n  - [-1, 3, C3CBAM, [128]]\n"
    (tree / "mine.yaml").write_text(tiny_cfg.read_text().replace("head:\n", rows + "head:\n"))
    hyp = re.sub(r"(?m)^box_iou:.*$", "box_iou: Inner-IoU", (ROOT / "data/hyps/hyp.default.yaml").read_text())
    (tree / "hyp.yaml").write_text(hyp)

    def python(*args: str, fails: bool = False) -> str:
        env = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, *args], cwd=tree, env=env, capture_output=True, text=True, check=False)
        assert bool(done.returncode) is fails, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    data = ["--data", str(squares), "--imgsz", "64", "--batch-size", "6", "--workers", "0", "--device", "cpu"]
    mine = ["--cfg", "mine.yaml", "--hyp", "hyp.yaml", "--optimizer", "AdamW", "--project", "runs"]
    python("train_mine.py", *data, *mine, "--epochs", "3", "--save-period", "1", "--noval")
    weights = tree / "runs/exp/weights"
    whole = torch.load(weights / "epoch2.pt", weights_only=True)["model"]  # tensors and builtins, no code
    assert whole["yaml"]["backbone"][-1][2] == "C3CBAM"
    python("train_mine.py", "--resume", str(weights / "epoch1.pt"))
    again = torch.load(weights / "epoch2.pt", weights_only=True)["model"]["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in whole["state_dict"].items())
    last = weights / "last.pt"
    assert "GFLOPS" in python("-c", WORK, str(last), str(squares), str(squares.parent / "images/val"))
    with pytest.raises(ValueError, match="unknown layer 'CBAM'.*models/custom/"):
        attempt_load(last)  # this process does not know it
    (tree / "models/custom/inner_iou.py").unlink()
    assert "unknown box_iou 'Inner-IoU'" in python("train.py", *data, *mine, "--epochs", "1", fails=True)


# ---- what is said at each step
@pytest.fixture(autouse=True)
def _table_as_it_was() -> Iterator[None]:
    before = dict(BLOCKS)
    yield
    BLOCKS.clear()
    BLOCKS.update(before)


class Twice(nn.Module):
    """Gives every channel twice."""

    def __init__(self, c1: int, keep: bool = True) -> None:
        super().__init__()
        self.c1 = c1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x), 1)


def model_with(*rows: list) -> Model:
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    sizes = {"nc": 1, "depth_multiple": 0.5, "width_multiple": 1.0, "anchors": [[8, 8]]}
    return Model({**sizes, "backbone": [[-1, 1, "Conv", [8, 3, 8]], *rows], "head": head}, verbose=False)


def test_channels_may_be_declared() -> None:
    register_block(Twice, takes="c1", channels=lambda ch, args: 2 * ch[0])
    model = model_with([-1, 4, "Twice", []], [-1, 1, "Conv", [8]])  # twice, at half of the depth
    assert [block.c1 for block in model.model[1]] == [8, 16] and model.model[2].conv.in_channels == 32


def test_several_inputs_are_a_list() -> None:
    class Add(nn.Module):
        def __init__(self, ch: list[int], c2: int) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(c1, c2, 1) for c1 in ch)

        def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
            return sum(conv(one) for conv, one in zip(self.convs, x, strict=True))

    register_block(Add, takes="ch c2")
    model = model_with([-1, 1, "Conv", [16]], [[0, 1], 1, "Add", [24]])
    assert [conv.in_channels for conv in model.model[2].convs] == [8, 16] and model.model[3].m[0].in_channels == 24


@pytest.mark.parametrize(
    "takes, row, message",
    [
        (None, [-1, 1, "Twice", []], "layer 1 .*unknown layer 'Twice'.*a layer of your own is registered in a file of"),
        ("c1", [-1, 1, "Twise", []], "unknown layer 'Twise', did you mean 'Twice'"),
        ("c1", [-1, 1, "Twice", []], r"layer 1 \(.*Twice\) gives 16 channels and declares 8.*register_block"),
        ("c1", [-1, 1, "Twice", [1, 2]], "layer 1 .*too many positional.*Twice takes c1, keep, of which c1 are put"),
        ("c1 c2", [-1, 1, "Twice", []], "first argument of Twice must be its number of output channels"),
        ("", [-1, 1, "Twice", []], "missing a required argument: 'c1'; Twice takes c1, keep"),
    ],
)
def test_mistakes_in_a_row(takes: str | None, row: list, message: str) -> None:
    if takes is not None:
        register_block(Twice, takes=takes)
    with pytest.raises(ValueError, match=message) as caught:
        model_with(row)
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_declaration() -> None:
    with pytest.raises(ValueError, match="Twice takes 'c3'; there are: c1, ch, c2, n"):
        register_block(takes="c1 c3")(Twice)
    with pytest.raises(ValueError, match="no class derived from torch.nn.Module"):
        register_block(len)
    with pytest.raises(ValueError, match=r"C3 is the name of models\.common\.C3; choose another"):
        register_block(type("C3", (nn.Module,), {}))
    register_block(Twice)
    assert register_block(Twice, takes="c1") is Twice and BLOCKS["Twice"].takes == "c1"  # again, as in a notebook


def test_attributes_that_the_model_needs() -> None:
    class Odd(nn.Identity):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.ReLU()

    register_block(Odd, takes="")
    with pytest.raises(ValueError, match="layer 1 .*keeps its own 'f' in a layer"):
        model_with([-1, 1, "Odd", []])


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("\n\nraise SystemExit('bye')\n", "line 3: SystemExit: bye"),
        ("from models.description.build import register_block\nclass C3:\n    pass\nregister_block(C3)\n", "line 4: "),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    (tmp_path / "zz.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        __import__("zz")
    except (Exception, SystemExit) as error:
        line = custom.line_of(error, "zz")
    assert line.startswith(f"models/custom/zz.py, {said}") and line.endswith("out of the folder") and "\n" not in line
    monkeypatch.setattr(custom, "BROKEN", [line])
    with pytest.raises(ValueError, match="^models/custom/zz.py"):
        Model("yolov5n.yaml", verbose=False)
