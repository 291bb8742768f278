"""Cached images: one copy for all processes of a machine, filled by all of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.processes import statements as together
from utils.data import image_cache
from utils.data.datasets import DetectionDataset, create_dataloader
from utils.data.label_arrays import LabelIndex
from utils.distributed import shared_memory


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
packed, said["packed"] = cached("packed", 32)
_, said["packed again"] = cached("packed", 32)
team.gather(None)
packed._cache.arrays["pixels"][team.number] = 200 + team.number
team.gather(None)
said["packed written"] = packed._cache.arrays["pixels"][:2].tolist()

def refuse(path):
    raise OSError(5, "Input/output error", path) if team.number == 1 else ValueError("not cached")
label_arrays.read_image = refuse
kinds = ("ram", "disk", "packed")
said["one fails"] = [DetectionDataset(images, 48, cache=kind, team=team)._cache is None for kind in kinds]
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
    for kind in ("ram", "disk", "packed"):
        assert first[kind][0] == ["00", "02", "04"] and second[kind][0] == ["01", "03", "05"], "each decodes its share"
        for said in (first, second):
            assert said[kind][1] == levels and said[kind][3] == 3, "the other's half need not be decoded"
            assert said[kind][2] == [list(alone.load_image(i)[1]) for i in range(6)]
    assert first["written"] == second["written"] == [200, 201], "each sees what the other wrote"
    assert first["packed written"] == second["packed written"] == [200, 201]
    for kind in ("disk again", "packed again"):
        assert first[kind][0] == second[kind][0] == []
    assert first["one fails"] == second["one fails"] == [True, True, True]
    assert first["no room"] and second["no room"]
    for epoch in range(2):
        assert sorted(first["paths"][epoch] + second["paths"][epoch]) == [f"{number:02}" for number in range(6)]
    assert first["class"] == second["class"] and "class 3, but the data set has 3 classes" in first["class"]


def test_a_loader_alone_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    loader, _ = create_dataloader(draw(tmp_path, 3), 32, 2, 32, cache="ram", rank=0, workers=0)
    assert len(list(loader)) == 2


def decoded(images: Path, monkeypatch: pytest.MonkeyPatch, size: int = 32) -> tuple[list[int], list[str]]:
    """Levels of the images in a packed cache, and the names of those that had to be decoded for it."""
    seen: list[int] = []
    whole = LabelIndex.image
    with monkeypatch.context() as patch:
        patch.setattr(LabelIndex, "image", lambda self, position: seen.append(position) or whole(self, position))
        dataset = DetectionDataset(images, size, cache="packed")
        filled = len(seen)
        levels = [int(dataset.load_image(position)[0].max()) for position in range(len(dataset))]
    assert len(seen) == filled, "all of them were in the file"
    return levels, sorted(Path(dataset.img_files[position]).stem for position in seen)


def test_a_packed_file_serves_later_runs_and_notices_what_changed(tmp_path: Path, monkeypatch) -> None:
    images = draw(tmp_path, 4)
    names = ["00", "01", "02", "03"]
    assert decoded(images, monkeypatch) == ([0, 10, 20, 30], names)
    assert decoded(images, monkeypatch) == ([0, 10, 20, 30], [])
    Image.new("RGB", (34, 24), (99,) * 3).save(images / "02.png")
    os.utime(images / "02.png", ns=(1, 1))
    assert decoded(images, monkeypatch) == ([0, 10, 99, 30], ["02"]), "an edited image of the same size"
    held = DetectionDataset(images, 32, cache="packed")._cache
    (images / "01.png").unlink()
    assert decoded(images, monkeypatch) == ([0, 99, 30], ["00", "02", "03"]), "another list, another file"
    assert int(held.get(1).max()) == 10, "which whoever has the old one open does not see"
    assert decoded(images, monkeypatch, 16) == ([0, 99, 30], ["00", "02", "03"]), "another size"
    packed = tmp_path / "images.32-linear.packed"
    assert not packed.exists() and (tmp_path / "images.32-area.packed").is_file()
    for content in (b"", b"short", os.urandom(100_000)):
        (tmp_path / "images.32-area.packed").write_bytes(content)
        assert decoded(images, monkeypatch) == ([0, 99, 30], ["00", "02", "03"]), "a damaged file is made anew"


KILLED = """
import os, signal, sys
from utils.data import image_cache
from utils.data.datasets import DetectionDataset
image_cache.CHUNK, image_cache.CHECKING_THREADS = 2, 1
place, done = image_cache.PackedCache._place, []
def half(self, position):
    done.append(position)
    if len(done) == 4:
        place(self, position)[:5] = 77
        os.kill(os.getpid(), signal.SIGKILL)
    return place(self, position)
image_cache.PackedCache._place = half
DetectionDataset(sys.argv[1], 32, cache="packed")
"""


def test_a_run_killed_while_it_packs_leaves_whole_images_only(tmp_path: Path, monkeypatch) -> None:
    images = draw(tmp_path, 6)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(images)], cwd=Path(__file__).parents[3], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert decoded(images, monkeypatch) == ([0, 10, 20, 30, 40, 50], ["02", "03", "04", "05"])


def test_no_room_on_the_disk_no_packed_file(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(tmp_path, 2)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    for what, replacement, said in (
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=10), "0.0 GiB of disk free"),
        ("os.posix_fallocate", full, "No space left"),
        ("os.fsync", full, "No space left"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, replacement)
            assert DetectionDataset(images, 32, cache="packed")._cache is None
        assert said in caplog.text
        caplog.clear()
    assert decoded(images, monkeypatch) == ([0, 10], ["00", "01"])


def edit(image: Path) -> None:
    """Another image of the same size."""
    Image.new("RGB", Image.open(image).size, (99,) * 3).save(image)
    os.utime(image, ns=(1, 1))


def test_a_new_key_never_stands_beside_old_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, events = draw(tmp_path, 1), []
    cache = DetectionDataset(images, 32, cache="packed")._cache
    old, packed = cache.arrays["keys"][0].tolist(), os.fstat(cache.arrays.file).st_ino
    edit(images / "00.png")

    def look(file: int) -> None:
        if os.fstat(file).st_ino == packed:
            keys, filled, pixels = (cache.arrays[name][0] for name in ("keys", "filled", "pixels"))
            events.append((keys.tolist() == old, bool(filled), int(pixels)))

    monkeypatch.setattr(os, "fsync", look)
    assert not cache.is_current(0) and cache.get(0) is None and cache.arrays["keys"][0].tolist() == old
    assert decoded(images, monkeypatch) == ([99], ["00"])
    assert events == [(True, False, 99)], "the new pixels reach the disk before they have key and mark"
    assert cache.arrays["keys"][0].tolist() != old and int(cache.get(0).max()) == 99
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[:] = 5


def test_a_file_that_cannot_be_opened_is_left_and_one_that_may_be_read_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, packed, os_open = draw(tmp_path, 3), tmp_path / "images.32-area.packed", os.open
    assert decoded(images, monkeypatch)[0] == [0, 10, 20]
    edit(images / "01.png")
    content, file = packed.read_bytes(), packed.stat().st_ino

    def refuse(number: int, flags: int) -> None:
        def opened(path: str, how: int, *rest: int, **words: int) -> int:
            if str(path).endswith(".packed") and how & 3 in (os.O_RDWR, flags):
                raise OSError(number, os.strerror(number), str(path))
            return os_open(path, how, *rest, **words)

        monkeypatch.setattr(os, "open", opened)

    for number in (errno.EMFILE, errno.EACCES):
        refuse(number, os.O_RDONLY)
        assert DetectionDataset(images, 32, cache="packed")._cache is None
        assert f"images are not cached: [Errno {number}]" in caplog.text
    for number in (errno.EROFS, errno.EACCES):
        refuse(number, os.O_RDWR)
        dataset = DetectionDataset(images, 32, cache="packed")
        assert [dataset._cache.get(position) is None for position in range(3)] == [False, True, False]
        assert [int(dataset.load_image(position)[0].max()) for position in range(3)] == [0, 99, 20]
    assert packed.read_bytes() == content and packed.stat().st_ino == file


def test_a_run_that_comes_while_the_file_is_made_has_the_same_file(tmp_path: Path, monkeypatch) -> None:
    images, packed = draw(tmp_path, 2), tmp_path / "images.32-area.packed"
    new_file, runs = shared_memory._new_file, []

    def made(*arguments: object) -> int:
        file = new_file(*arguments)
        assert not packed.exists(), "without its list it has no name"
        if not runs:
            runs.append(None)
            runs[0] = DetectionDataset(images, 32, cache="packed")._cache
        return file

    monkeypatch.setattr(shared_memory, "_new_file", made)
    runs.append(DetectionDataset(images, 32, cache="packed")._cache)
    assert {os.fstat(cache.arrays.file).st_ino for cache in runs} == {packed.stat().st_ino}
    assert list(tmp_path.glob(".*.tmp")) == []


def test_nothing_is_packed_of_no_images(tmp_path: Path) -> None:
    cache = DetectionDataset(draw(tmp_path, 1), 32, cache="packed")._cache
    assert cache.get(0) is not None
    cache.settle([])
    assert np.count_nonzero(cache.arrays["filled"]) == 1
