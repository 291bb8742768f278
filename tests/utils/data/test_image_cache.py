"""Cached images: one copy for all processes of a machine, filled by all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.processes import statements as together
from utils.data import image_cache
from utils.data.datasets import DetectionDataset, create_dataloader


def draw(root: Path, count: int) -> Path:
    """Grey images of growing width, each a little lighter than the last; the label's class is its number."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (32 + number, 24), (10 * number,) * 3).save(root / f"images/{number:02}.png")
        (root / f"labels/{number:02}.txt").write_text(f"{number} .5 .5 .5 .5")
    return root / "images"


def test_free_memory_ends_at_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "Path", lambda path: tmp_path / path.removeprefix("/"))
    assert image_cache._free_memory() is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4096 kB\n")
    assert image_cache._free_memory() == 4096 * 1024
    limits = tmp_path / "sys/fs/cgroup"
    limits.mkdir(parents=True)
    (limits / "memory.current").write_text("700000\n")
    (limits / "memory.stat").write_text("anon 5\ninactive_file 50000\n")
    for most, free in (("1000000\n", 350_000), ("max\n", 4096 * 1024)):
        (limits / "memory.max").write_text(most)
        assert image_cache._free_memory() == free


TOGETHER = """
from pathlib import Path
from utils.data import label_arrays
from utils.data.datasets import DetectionDataset, create_dataloader
from utils.distributed.processes import Team
team, images, said, seen = Team.of_this_machine(), arguments["images"], {}, []
read_image = label_arrays.read_image
def counted(path):
    seen.append(Path(path).stem)
    return read_image(path)
label_arrays.read_image = counted

def cached(kind, size):
    seen.clear()
    dataset = DetectionDataset(images, size, cache=kind, team=team)
    filled = sorted(seen)
    items = [dataset.load_image(i) for i in range(len(dataset))]
    return dataset, [filled, [int(image.max()) for image, _ in items], [shape for _, shape in items], len(seen)]

dataset, said["ram"] = cached("ram", 32)
team.gather(None)
dataset._cache.arrays["pixels"][team.number] = 200 + team.number
team.gather(None)
said["written"] = dataset._cache.arrays["pixels"][:2].tolist()
_, said["disk"] = cached("disk", 32)
_, said["disk again"] = cached("disk", 32)

def refuse(path):
    raise OSError(5, "Input/output error", path) if team.number == 1 else ValueError("not cached")
label_arrays.read_image = refuse
said["one fails"] = [DetectionDataset(images, 48, cache=kind, team=team)._cache is None for kind in ("ram", "disk")]
label_arrays.read_image = read_image

from utils.data import image_cache
image_cache._free_memory = lambda: 10 if team.is_first else 1 << 40
said["no room"] = DetectionDataset(images, 32, cache="ram", team=team)._cache is None

image_cache._free_memory = lambda: None
loader, _ = create_dataloader(images, 32, 2, 32, cache="ram", rank=rank(), workers=1, shuffle=True, augment=True, nc=9)
paths = []
for epoch in range(2):
    loader.sampler.set_epoch(epoch)
    paths.append(sorted(Path(path).stem for batch in loader for path in batch.paths))
said["paths"] = paths
try:
    create_dataloader(images, 32, 2, 32, rank=rank(), nc=3)
except ValueError as error:
    said["class"] = str(error)
print(json.dumps(said))
"""


def test_two_processes_fill_half_each_and_hold_one_copy(tmp_path: Path) -> None:
    images = draw(tmp_path, 6)
    alone = DetectionDataset(images, 32)
    levels = [10 * number for number in range(6)]
    first, second = together(TOGETHER, {"images": str(images)})
    for kind in ("ram", "disk"):
        assert first[kind][0] == ["00", "02", "04"] and second[kind][0] == ["01", "03", "05"], "each decodes its share"
        for said in (first, second):
            assert said[kind][1] == levels and said[kind][3] == 3, "the other's half need not be decoded"
            assert said[kind][2] == [list(alone.load_image(i)[1]) for i in range(6)]
    assert first["written"] == second["written"] == [200, 201], "each sees what the other wrote"
    assert first["disk again"][0] == second["disk again"][0] == []
    assert first["one fails"] == second["one fails"] == [True, True]
    assert first["no room"] and second["no room"]
    for epoch in range(2):
        assert sorted(first["paths"][epoch] + second["paths"][epoch]) == [f"{number:02}" for number in range(6)]
    assert first["class"] == second["class"] and "class 3, but the data set has 3 classes" in first["class"]


def test_a_loader_alone_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    loader, _ = create_dataloader(draw(tmp_path, 3), 32, 2, 32, cache="ram", rank=0, workers=0)
    assert len(list(loader)) == 2
