"""docs/own-data.md: every line of its table is run on a small set of that layout, and its recipe ends in labels."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from utils.base.config import DataConfig
from utils.base.paths import ROOT
from utils.data.label_index import load_index
from utils.prepare.converters import convert_coco, convert_dota, convert_voc
from utils.prepare.dataset_tools import autosplit

PAGES = (ROOT / "docs/own-data.md", ROOT / "docs/own-data.zh-CN.md")
CALLS = {call.__name__: call for call in (convert_coco, convert_dota, convert_voc, autosplit)}
LINES = re.compile(r"(?:convert_\w+|autosplit)\(\"[^)]*\)")
ROW = "0 .5 .5 .25 .5\n"
XML = (
    "<annotation><size><width>40</width><height>20</height></size><object><name>bolt</name><bndbox>"
    "<xmin>16</xmin><ymin>6</ymin><xmax>26</xmax><ymax>16</ymax></bndbox></object></annotation>"
)
COCO = {
    "images": [{"id": 1, "file_name": "0.jpg", "width": 40, "height": 20}],
    "categories": [{"id": 1, "name": "bolt"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [15, 5, 10, 10]}],
}
DOTA = "15 5 25 5 25 15 15 15 bolt 0\n"


def lines(page: Path) -> list[str]:
    return LINES.findall(page.read_text(encoding="utf-8"))


def run(line: str, names: Path) -> object:
    """Run a call of one of our functions, written with literals and `names`."""
    call = ast.parse(line, mode="eval").body
    given = [names if isinstance(part, ast.Name) else ast.literal_eval(part) for part in call.args]
    return CALLS[call.func.id](*given)


def write(path: str, content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def lay_out(line: str) -> None:
    """One image (two for what is split) in the layout of a line, with its annotation."""
    call = ast.parse(line, mode="eval").body
    source, *others = [part.value for part in call.args if isinstance(part, ast.Constant)]
    kind = call.func.id
    images = {"autosplit": source, "convert_dota": others and others[0]}.get(kind)
    if images is None:
        images = re.sub(r"labels", "images", others[0])
    for number in range(2):
        Path(images).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(f"{images}/{number}.jpg")
        if kind in ("convert_voc", "convert_dota"):
            write(f"{source}/{number}{'.xml' if kind == 'convert_voc' else '.txt'}", XML if "voc" in kind else DOTA)
    if kind == "convert_coco":
        Path(f"{images}/1.jpg").unlink()
        write(source, json.dumps(COCO))


def test_both_pages_have_the_same_lines() -> None:
    assert lines(PAGES[0]) == lines(PAGES[1]) and len(lines(PAGES[0])) > 15


@pytest.mark.parametrize("line", dict.fromkeys(lines(PAGES[0])))
def test_every_line_does_what_the_page_says(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.yaml"
    names.write_text("train: a\nval: b\nnames: [bolt, nut]\n")
    names.with_name("bolts.yaml").write_text(names.read_text())
    lay_out(line)
    result = run(line, names)
    if line.startswith("autosplit"):
        assert result == {"train": 1, "val": 1, "test": 0}
        return
    assert result == (1 if "coco" in line else 2) and not caplog.records
    folder = next(path.parent for path in tmp_path.rglob("*.jpg"))
    index = load_index(folder, cache=False)
    assert index.counts.missing == 0 and index.all_labels[0].tolist() == pytest.approx([0, 0.5, 0.5, 0.25, 0.5])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_recipe_ends_in_a_data_set(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.search(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "bolts.yaml").write_text(text, encoding="utf-8")
    for number in range(10):
        write(f"bolts/xml/{number}.xml", XML)
        (tmp_path / "bolts/images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(f"bolts/images/{number}.jpg")
    assert yaml.safe_load(text)["names"] == ["bolt", "nut"]
    recipe = [line for line in lines(page) if line.count("bolts/")]
    assert run(recipe[0], tmp_path) == 10 and sum(run(recipe[1], tmp_path).values()) == 10
    data = DataConfig.load(tmp_path / "bolts.yaml")
    assert sum(len(load_index(source, cache=False).all_labels) for source in (*data.train, *data.val)) == 10
