"""The benchmarks of the loader run on small numbers and notice what they are there to notice."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader_memory, loader_speed
from utils.data.datasets import DetectionDataset

needs_smaps = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux gives memory this way")


def test_no_records_make_an_empty_index(tmp_path: Path) -> None:
    file = loader_memory.write_image(tmp_path, 32)
    assert len(loader_memory.packed(file, 0, 32)) == 0
    index = loader_memory.packed(file, 10, 32, chunk=4)
    assert len(index) == 10 and len(index.all_labels) == 10 * loader_memory.LABELS
    assert len({index.labels(i).tobytes() for i in range(10)}) == 10
    assert DetectionDataset(index, 32)[3].image.shape == (3, 32, 32)


@needs_smaps
def test_memory_counts_what_a_process_takes() -> None:
    before = loader_memory.memory(os.getpid())
    block = np.ones(64 << 20, np.uint8)
    after = loader_memory.memory(os.getpid())
    assert 63 < after.data - before.data < 66 and block.any()
    assert after.uss > before.uss and after.pss > after.data


@needs_smaps
def test_a_loader_that_keeps_everything_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = ["--images", "200", "--workers", "1", "--epochs", "2", "--batch", "50"]
    assert loader_memory.main(words) == 0
    rows = re.findall(r"^ +(\d) .*([+-]\d+\.\d\d)%$", capsys.readouterr().out, re.MULTILINE)
    assert [epoch for epoch, _ in rows] == ["1", "2"] and float(rows[0][1]) == 0
    kept, item = [], DetectionDataset.__getitem__

    def hoard(dataset: DetectionDataset, key: object) -> object:
        kept.append(np.ones(1 << 18, np.uint8))  # 50 MiB in an epoch
        return item(dataset, key)

    monkeypatch.setattr(DetectionDataset, "__getitem__", hoard)
    assert loader_memory.main(words) == 1 and "GROWING" in capsys.readouterr().out


@needs_smaps
def test_images_are_cached_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cache", "--images", "60", "--workers", "1", "--imgsz", "448", "--batch", "4"]
    assert loader_memory.main(words) == 0
    pixels, copies = map(float, re.findall(r"pixels: ([\d.]+) MiB; .* ([\d.]+) copies", capsys.readouterr().out)[0])
    assert pixels == pytest.approx(60 * 448 * 448 * 3 / 2**20, abs=0.1) and 0.8 < copies < 1.3


def test_speed_is_told_of_every_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader_speed.main(["--images", "6", "--imgsz", "64", "--count", "2", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    sources, work = ("files", "shards", "ram", "packed", "12 MP"), ("read", "train", "plan")
    rows = [line.replace("12 MP", "12_MP").split() for line in lines[-16:]]
    told = [(name, each) for each in work for name in sources] + [("ram", "paint")]
    assert [(row[0].replace("_", " "), row[1]) for row in rows] == told
    assert all(float(row[2]) > 0 for row in rows)
    with pytest.raises(SystemExit):
        loader_speed.main(["--rounds", "0"])
