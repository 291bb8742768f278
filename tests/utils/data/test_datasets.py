"""Items, batches, loaders, samplers and image caches."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.datasets import DetectionDataset, create_dataloader
from utils.data.image_cache import DiskCache, MemoryCache, PackedCache
from utils.data.samplers import Batch, EpochSampler, SampleKey, collate_quad, rect_shapes
from utils.images.letterbox import fit_longest
from utils.images.reading import read_image

ALL_ON = {"mosaic": 0.8, "mosaic9": 0.3, "mixup": 0.5, "copy_paste": 0.5, "degrees": 5.0, "flipud": 0.2}
SIZES = ((64, 48), (48, 64), (100, 60), (40, 40), (200, 20), (33, 77), (64, 48), (120, 80), (50, 90), (64, 64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten noisy images of several shapes; each has a white box, some as polygons, image 3 none at all."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        x1, y1, x2, y2 = width // 4, height // 4, width * 3 // 4, height * 3 // 4
        image[y1:y2, x1:x2] = 255
        kind, x1, y1, x2, y2 = number % 3, x1 / width, y1 / height, x2 / width, y2 / height
        row = f"{kind} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}"
        row = f"{kind} {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}" if number % 4 == 1 else row
        for kind_of, name, write in (("images", f"{number}.png", None), ("labels", f"{number}.txt", row)):
            path = tmp_path / "set" / kind_of / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image) if write is None else path.write_text("" if number == 3 else write)
    return tmp_path / "set/images/train"


def same(first: Batch, second: Batch) -> bool:
    equal = torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)
    return equal and first.paths == second.paths and first.shapes == second.shapes


def bright_box(image: torch.Tensor) -> tuple[float, ...]:
    """x1, y1, x2, y2 around the white pixels of a (3, H, W) image."""
    ys, xs = np.nonzero(image.numpy().min(0) > 180)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def label_box(targets: torch.Tensor, image: torch.Tensor) -> np.ndarray:
    x, y, w, h = targets[0, 2:].numpy()
    height, width = image.shape[1:]
    return np.array([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])


def test_images_without_labels_make_empty_targets(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for augment in (False, True):
        loader, _ = create_dataloader(tmp_path, 64, 8, 32, augment=augment, hyp=ALL_ON, workers=0)
        (batch,) = loader
        assert batch.images.shape == (1, 3, 64, 64) and batch.targets.shape == (0, 6)


@pytest.mark.parametrize("rect", [False, True])
def test_labels_lie_on_their_objects_after_letterbox(folder: Path, rect: bool) -> None:
    dataset = DetectionDataset(folder, 96, 4, rect=rect)
    for image, targets, path, *_ in (dataset[position] for position in range(10)):
        if Path(path).stem != "3":
            np.testing.assert_allclose(label_box(targets, image), bright_box(image), atol=2.5)


def test_an_item_is_rgb_and_leads_back_to_its_image(folder: Path, tmp_path: Path) -> None:
    dataset = DetectionDataset(str(folder), 96, 4)
    image, _, _, ((height, width), ((ratio_h, ratio_w), (pad_x, pad_y))), _ = dataset[2][:5]
    assert (width, height) == SIZES[2] and image.shape == (3, 96, 96)
    assert ratio_w == pytest.approx(0.96) and ratio_h == pytest.approx(0.95)  # 100 x 60 -> 96 x 57, truncated
    assert pad_x == 0 and pad_y == pytest.approx((96 - 57) / 2)
    assert len(dataset) == dataset.n == len(dataset.labels) == len(dataset.img_files) == 10  # v6.1's names
    assert dataset.shapes.tolist() == [list(map(float, size)) for size in SIZES]
    assert dataset.indices.tolist() == list(range(10)) and not dataset.rect and dataset.batch_shapes is None
    Image.new("RGB", (64, 64), (250, 10, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 .9 .5 .4 .5")
    image, targets, *_ = DetectionDataset(tmp_path / "a.png", 64)[0]
    assert image.dtype == torch.uint8 and image[:, 5, 5].tolist() == [250, 10, 20]
    np.testing.assert_allclose(targets[0, 2:], [0.85, 0.5, 0.3, 0.5], atol=1e-4, err_msg="cut at the edge")


def test_an_item_depends_on_its_key_only(folder: Path) -> None:
    dataset = DetectionDataset(folder, 64, 4, True, ALL_ON, seed=5)
    first = [dataset[SampleKey(i, 2)] for i in range(10)]
    for item, again in zip(first[::-1], (dataset[SampleKey(i, 2)] for i in reversed(range(10))), strict=True):
        assert torch.equal(item.image, again.image) and torch.equal(item.targets, again.targets)
    changed = [dataset[key] for key in (SampleKey(0, 3), SampleKey(0, 2, repeat=1), SampleKey(0, 2, plain=True))]
    changed.append(DetectionDataset(folder, 64, 4, True, ALL_ON, seed=6)[SampleKey(0, 2)])
    assert all(not torch.equal(first[0].image, item.image) for item in changed)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_to_train_on_are_drawn_by_the_key_and_labels_lie_on_their_objects(folder: Path, workers: int) -> None:
    plain = dict.fromkeys(("mosaic", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "fliplr"), 0.0)
    given = {"hyp": plain, "augment": True, "tile": 32, "workers": workers, "cache": "ram"}
    loader, dataset = create_dataloader(folder, 64, 5, 32, **given)
    assert len(loader) == 2, "an epoch costs as much as without tiles"
    seen = []
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert type(batch) is Batch
            for i, image in enumerate(batch.images):
                targets = batch.targets[batch.targets[:, 0] == i]
                if len(targets):
                    np.testing.assert_allclose(label_box(targets, image), bright_box(image), atol=3)
                seen.append(tuple(targets[:, 2:].flatten().tolist()))
    assert len(set(seen)) > 20 and (again := dataset[SampleKey(9, 7)]).targets[:, 2:].flatten().tolist() == [*seen[-1]]
    mosaic = DetectionDataset(folder, 64, 4, True, ALL_ON | {"mosaic": 1.0}, tile=32)
    assert again.original is None and mosaic[SampleKey(0, 1)].image.shape == (3, 64, 64)
    assert torch.equal(mosaic[SampleKey(4, 1)].image, mosaic[SampleKey(4, 1)].image)


def test_images_to_score_in_tiles_come_as_they_are_on_disk_too(folder: Path) -> None:
    loader, _ = create_dataloader(folder, 64, 1, 32, rect=True, tile=32, workers=1)
    without = DetectionDataset(folder, 64, 1, rect=True)
    for position, batch in enumerate(loader):
        assert np.array_equal(batch.originals[0].numpy(), read_image(batch.paths[0]))
        assert torch.equal(batch.images[0], without[position].image) and batch.shapes[0] == without[position].shapes


def test_plain_items_show_one_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = DetectionDataset(folder, 64, 4, True, {**ALL_ON, "mosaic": 1.0})
    assert dataset[SampleKey(0)].shapes is None
    monkeypatch.setattr("utils.data.datasets.mosaic4", lambda *_: pytest.fail("mosaic"))
    monkeypatch.setattr("utils.data.datasets.mosaic9", lambda *_: pytest.fail("mosaic"))
    assert dataset[SampleKey(0, plain=True)].shapes is not None


def test_one_class_and_too_many_classes(folder: Path) -> None:
    labels = np.concatenate(DetectionDataset(folder, single_cls=True, nc=1).labels)
    assert len(labels) == 9 and (labels[:, 0] == 0).all()
    with pytest.raises(ValueError, match=r"2\.txt:1: class 2"):
        DetectionDataset(folder, nc=2)


@pytest.mark.parametrize(
    "sizes, pad, expected",
    [
        ([(300, 400)], 0.5, [[672, 512]]),
        ([(300, 400)], 0.0, [[640, 480]]),
        ([(400, 300)], 0.0, [[480, 640]]),
        ([(400, 300), (300, 400)], 0.0, [[640, 640]]),
        ([(400, 300), (400, 200), (300, 400)], 0.0, [[480, 640], [640, 480]]),
    ],
)
def test_rectangular_shapes(sizes: list, pad: float, expected: list) -> None:
    assert rect_shapes(np.array(sizes), 2, 640, 32, pad).tolist() == expected


def test_rectangular_batches_share_their_shape_and_stay_together(folder: Path) -> None:
    loader, dataset = create_dataloader(folder, 96, 3, 32, rect=True, pad=0.5, workers=0)
    assert (np.diff(dataset.shapes[:, 1] / dataset.shapes[:, 0]) >= 0).all()
    batches = list(loader)
    assert [len(batch.images) for batch in batches] == [3, 3, 3, 1]
    assert [list(batch.images.shape[2:]) for batch in batches] == dataset.batch_shapes.tolist()
    loader, _ = create_dataloader(folder, 96, 3, 32, rect=True, augment=True, shuffle=True, workers=0)
    orders = [tuple(path for batch in batches for path in batch.paths)]
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        orders.append(tuple(path for batch in loader for path in batch.paths))
    assert len(set(orders)) > 2 and all(sorted(order) == sorted(dataset.img_files) for order in orders)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_work_evenly(world: int, grouped: bool, shuffle: bool) -> None:
    samplers = [
        EpochSampler(np.arange(11), shuffle=shuffle, rank=rank, world_size=world, batch_size=2, grouped=grouped)
        for rank in range(world)
    ]
    shares = [[key.position for key in sampler] for sampler in samplers]
    assert set().union(*shares) == set(range(11))
    assert [len(sampler) for sampler in samplers] == list(map(len, shares))
    assert len({-(-len(share) // 2) for share in shares}) == 1, "the same number of batches everywhere"
    if grouped:
        batches = [share[start : start + 2] for share in shares for start in range(0, len(share), 2)]
        assert all(len({index // 2 for index in batch}) == 1 for batch in batches), "batches stay together"


def test_weights_choose_images_and_partners() -> None:
    partners = np.arange(400)
    sampler = EpochSampler(partners, shuffle=True, seed=3)
    sampler.set_weights(np.where(np.arange(400) < 200, 3.0, 1.0))
    drawn = [key.position for key in sampler]
    assert 0.65 < np.mean(np.array(drawn) < 200) < 0.85
    assert sorted(drawn) == sorted(partners.tolist())
    repeats = Counter(key.position for key in sampler)
    assert max(key.repeat for key in sampler) == max(repeats.values()) - 1, "a repeated image is augmented anew"
    sampler.set_weights(np.zeros(400))
    assert sorted(key.position for key in sampler) == list(range(400)) == partners.tolist()
    for wrong in (np.ones(3), np.full(400, -1.0), np.full(400, np.nan)):
        with pytest.raises(ValueError, match="image weights must be 400 numbers"):
            sampler.set_weights(wrong)


def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    runs = []
    for workers in (0, 1, 2):
        loader, _ = create_dataloader(
            folder, 64, 4, 32, augment=True, hyp=ALL_ON, workers=workers, shuffle=True, image_weights=True, seed=7
        )
        assert loader.num_workers == workers
        batches = []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch, plain=epoch == 2)
            loader.sampler.set_weights(None if epoch == 0 else np.arange(10.0))
            batches.extend(loader)
        runs.append(batches)
    assert len(runs[0]) == 9
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))


def test_batches_number_their_images(folder: Path) -> None:
    loader, _ = create_dataloader(folder, 64, 4, 32, workers=0)
    assert len(loader) == 3
    for batch in loader:
        names = [Path(batch.paths[int(number)]).stem for number in batch.targets[:, 0]]
        assert "3" not in names and [int(name) % 3 for name in names] == batch.targets[:, 1].int().tolist()
    (batch,) = create_dataloader(folder, 64, 99, 32, workers=0)[0]
    assert len(batch.images) == 10
    (batch,) = create_dataloader(folder, 64, 10, 32, quad=True, workers=0)[0]  # two fours, and what is left over
    assert batch.images.shape == (4, 3, 128, 128) and len(batch.paths) == len(batch.shapes) == 4
    assert (batch.targets[:, 2:] <= 1).all() and (batch.targets[:, 0] < 4).all()


def test_quads_are_enlarged_or_laid_side_by_side(folder: Path) -> None:
    dataset = DetectionDataset(folder, 64, 4)
    four = [dataset[i] for i in range(4)]
    outcomes = {}
    for epoch in range(20):
        moved = [item._replace(key=SampleKey(item.key.position, epoch)) for item in four]
        batch = collate_quad(moved, seed=0)
        outcomes[len(batch.targets)] = batch
    assert set(outcomes) == {1, 3}, "one image's label, or those of the three that have one"
    large, tiled = outcomes[1], outcomes[3]
    assert torch.equal(large.targets[:, 2:], four[0].targets[:, 2:])
    for number, (top, left) in enumerate([(0, 0), (64, 0), (0, 64), (64, 64)]):
        assert torch.equal(tiled.images[0, :, top : top + 64, left : left + 64], four[number].image)
    row = four[1].targets[0]
    expected = [0, row[1], row[2] / 2, row[3] / 2 + 0.5, row[4] / 2, row[5] / 2]
    np.testing.assert_allclose(tiled.targets[1], expected, atol=1e-6)


@pytest.mark.parametrize("kind, made", [("ram", MemoryCache), ("disk", DiskCache), ("packed", PackedCache)])
@pytest.mark.parametrize("augment", [False, True])
def test_caches_change_nothing_but_the_speed(
    folder: Path, kind: str, made: type, augment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DetectionDataset(folder, 64, 4, augment, ALL_ON)
    cached = DetectionDataset(folder, 64, 4, augment, ALL_ON, cache=kind)
    assert type(cached._cache) is made
    expected = [plain[i] for i in range(10)]
    monkeypatch.setattr("utils.data.label_arrays.read_image", lambda *_: pytest.fail("read again"))
    for item, wanted in zip((cached[i] for i in range(10)), expected, strict=True):
        assert torch.equal(item.image, wanted.image) and item.shapes == wanted.shapes


def test_disk_cache_tells_images_sizes_and_versions_apart(tmp_path: Path) -> None:
    for name, level in (("s0/0.jpg", 10), ("s1/0.jpg", 100), ("s1/0.png", 200)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 80), (level,) * 3).save(tmp_path / name)
    for imgsz in (64, 32):
        dataset = DetectionDataset(tmp_path, imgsz, cache="disk")
        levels = [int(dataset.load_image(i)[0].mean()) for i in range(3)]
        assert levels == [10, 100, 200] and dataset.load_image(0)[1] == (80, 100)
        assert max(dataset.load_image(0)[0].shape) == imgsz
    changed = tmp_path / "s0/0.jpg"
    Image.new("RGB", (100, 80), (50,) * 3).save(changed)
    os.utime(changed, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert int(DetectionDataset(tmp_path, 64, cache="disk").load_image(0)[0].mean()) == 50
    for file in tmp_path.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:40])
    assert int(dataset.load_image(1)[0].mean()) == 100, "a damaged cache file is passed over"


def test_no_room_no_cache(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with patch("utils.data.image_cache._free_memory", return_value=1000):
        assert DetectionDataset(folder, 64, cache="ram")._cache is None and "not cached" in caplog.text
    with patch.object(Path, "mkdir", side_effect=PermissionError(13, "Permission denied")):
        assert DetectionDataset(folder, 64, cache="disk")._cache is None and "Permission denied" in caplog.text
    with pytest.raises(ValueError, match="unknown cache 'tape'"):
        DetectionDataset(folder, 64, cache="tape")


def test_a_cached_image_is_never_written_to(folder: Path) -> None:
    dataset = DetectionDataset(folder, 64, 4, True, ALL_ON, cache="ram")
    before = dataset._cache.arrays["pixels"].copy()
    for position in range(10):
        dataset[SampleKey(position, 1)]
    np.testing.assert_array_equal(before, dataset._cache.arrays["pixels"])
    expected = fit_longest(read_image(dataset.img_files[4]), 64)
    np.testing.assert_array_equal(dataset.load_image(4)[0], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_stand_ins_are_counted_in_all_workers_and_too_many_are_an_error(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader, dataset = create_dataloader(folder, 64, 4, 32, workers=workers)
    whole = {number: (folder / f"{number}.png").read_bytes() for number in range(10)}

    def lose(*numbers: int) -> None:
        for number, content in whole.items():
            (folder / f"{number}.png").write_bytes(b"" if number in numbers else content)
        list(loader)

    lose()
    dataset.check_stand_ins()
    assert "could not be read" not in caplog.text
    for _ in range(2):
        lose(3, 7)
        dataset.check_stand_ins()
    said = f"2 of 10 images could not be read, the first {folder}/3.png: grey images without labels stand in"
    assert caplog.text.count(said) == 1, "what was said is not said again"
    lose(3, 7, 8)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"3 of 10 images could not be read.*too many to go on \(more than 25%\)"):
            dataset.check_stand_ins()
    lose(7)  # the others are back
    dataset.check_stand_ins()
    assert f"1 of 10 images could not be read, the first {folder}/7.png" in caplog.text
    if workers == 0:  # loader processes speak for themselves
        assert caplog.text.count("empty file; re-save or remove it (a grey image stands in)") == 3
