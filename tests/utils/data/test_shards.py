"""Tar files as data sets: written by us or by webdataset, read by us or by webdataset, broken or hostile."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data import shards
from utils.data.datasets import DetectionDataset
from utils.data.label_index import load_index
from utils.data.samplers import SampleKey
from utils.data.shards import ShardReader, check_shard, expand_braces, find_shards
from utils.prepare import write_shards

SIZES = ((64, 48), (48, 64), (100, 60), (40, 40), (120, 80), (33, 77), (64, 48))


def png(level: int = 90, size: tuple[int, int] = (30, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(file: Path, members: dict[str, bytes], **words: object) -> Path:
    """A tar file with these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **words) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven noisy images of several sizes and kinds; one without labels, one with a polygon."""
    rng = np.random.default_rng(0)
    for sub in ("images", "labels"):
        (tmp_path / "set" / sub).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        name = f"{number:02}" if number != 5 else "with.two.dots"
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"set/images/{name}.{'JPG' if number % 2 else 'png'}"), image)
        row = "2 .1 .1 .6 .1 .6 .6 .1 .6\n" if number == 4 else f"{number % 3} .5 .5 .2 .{1 + number}\n"
        if number != 3:
            (tmp_path / f"set/labels/{name}.txt").write_text(row * (1 + number % 2) + row.replace(".5", ".4"))
    return tmp_path / "set/images"


def content(source: object) -> list[tuple]:
    """What a data set holds, whatever its order: stems without dots, labels, polygons, pixels."""
    index = load_index(source, cache=False)
    return sorted(
        (
            Path(index.path(i)).stem.replace(".", "_"),
            index.labels(i).tolist(),
            [points.tolist() for points in index.segments(i)],
            index.image(i).tobytes(),
        )
        for i in range(len(index))
    )


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("", [""]),
        ("a.tar", ["a.tar"]),
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{a,{1..2},c}", ["xa", "x1", "xc", "x2"]),
        ("{,b}c", ["c", "bc"]),
        ("{a}{}{..}{1..}", ["{a}{}{..}{1..}"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_braces_that_stand_for_too_much() -> None:
    for pattern in ("{0..99999999999}", "{0..999}" * 4, "{a,b}" * 40):
        with pytest.raises(ValueError, match="more than 100,000 names"):
            expand_braces(pattern)


@settings(max_examples=60, deadline=None)
@given(st.text("ab{},.0123-", max_size=14))
def test_braces_end_with_any_text(text: str) -> None:
    names = expand_braces(text)
    assert names and len(set(names)) == len(names)


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    tar(tmp_path / "a-0.tar", {"x.png": png()})
    with pytest.raises(ValueError, match=r"a-1\.tar: no such shard \(and 1 more\)"):
        load_index(tmp_path / "a-{0..2}.tar")
    odd = tar(tmp_path / "b{1,2}.tar", {"x.png": png()})
    assert find_shards([odd, odd]) == [str(odd)], "a file of that very name comes first"


def test_shards_hold_what_the_folder_held(folder: Path, tmp_path: Path) -> None:
    pattern, out = write_shards.write_shards(folder, tmp_path / "out", per_shard=3), tmp_path / "out"
    assert pattern == f"{out}/shard-{{000000..000002}}.tar"
    assert content(pattern) == content(folder) and len(content(folder)) == 7
    assert content([out / "shard-000000.tar", out / "shard-00000{1,2}.tar"]) == content(folder)
    both = load_index([folder, pattern], cache=False)
    assert both.counts.missing == 2 and both.counts.total == 14 and len(set(map(both.path, range(14)))) == 14
    assert content([folder, pattern]) == sorted(content(folder) * 2)
    turned = both.take(np.arange(14)[::-1])
    assert [turned.image(i).tobytes() for i in range(14)] == [both.image(i).tobytes() for i in reversed(range(14))]
    assert [both.file(i) == both.path(i) for i in range(14)] == [True] * 7 + [False] * 7
    assert all(both.path(i).startswith(f"{both.file(i)}/") and Path(both.file(i)).exists() for i in range(7, 14))


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
def test_items_are_those_of_the_folder(folder: Path, tmp_path: Path, cache: str | None) -> None:
    hyp = {"mosaic": 0.8, "mixup": 0.5, "copy_paste": 0.5}
    pattern = write_shards.write_shards(folder, tmp_path / "out", per_shard=3, seed=None)
    sets = [DetectionDataset(source, 64, 2, True, hyp, cache=cache) for source in (folder, pattern)]
    for position in range(7):
        for epoch in range(3):
            one, other = (dataset[SampleKey(position, epoch)] for dataset in sets)
            assert torch.equal(one.image, other.image) and torch.equal(one.targets, other.targets)


def test_the_cache_file_lies_beside_and_notices_changes(folder: Path, tmp_path: Path) -> None:
    out, pattern = tmp_path / "out", write_shards.write_shards(folder, tmp_path / "out", per_shard=4)
    for count, source in enumerate((pattern, out / "shard-000001.tar", out / "shard-00000{1,0}.tar"), start=1):
        first = load_index(source)
        assert len(list(out.glob("*.cache.npz"))) == count, "every set has a cache of its own"
    with patch("utils.data.label_index.check_shard", side_effect=AssertionError("checked again")):
        again = load_index(source)
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    tar(out / "shard-000001.tar", {"new.png": png(), "new.txt": b"0 .5 .5 .5 .5"})
    assert any(path.endswith("/new.png") for path in map(load_index(pattern).path, range(5)))


def test_webdataset_reads_what_we_write(folder: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = write_shards.write_shards(folder, tmp_path / "out", per_shard=3)
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    files = {file.stem.replace(".", "_"): file for file in folder.iterdir()}
    assert len(samples) == len(files) == 7
    for sample in samples:
        file = files[sample["__key__"]]
        label = folder.parent / f"labels/{file.stem}.txt"
        assert sample[file.suffix[1:].lower()] == file.read_bytes()
        assert sample.get("txt") == (label.read_bytes() if label.exists() else None)


def test_we_read_what_webdataset_writes(folder: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=3, verbose=0) as writer:
        for file in sorted(folder.iterdir()):
            label = folder.parent / f"labels/{file.stem}.txt"
            sample = {"__key__": f"deep/{file.stem.replace('.', '_')}", file.suffix[1:].lower(): file.read_bytes()}
            writer.write(sample | ({"txt": label.read_text()} if label.exists() else {}) | {"json": {"any": 1}})
    assert content(tmp_path / "w-{000..002}.tar") == content(folder)


def test_the_order_is_shuffled_and_repeats_and_names_are_there_once(folder: Path, tmp_path: Path) -> None:
    for number, seed in enumerate((0, 0, 1, None)):
        write_shards.write_shards(folder, tmp_path / str(number), per_shard=99, seed=seed)
    contents = [(tmp_path / f"{number}/shard-000000.tar").read_bytes() for number in range(4)]
    assert contents[0] == contents[1] and len(set(contents)) == 3
    for name in ("a.png", "b/a.png", "c/a.png", "d/a-2.png", "e/a.b.png", "f/a_b.png", "g/a-2.png"):
        (tmp_path / "same" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "same" / name).write_bytes(b"")
    write_shards.write_shards(tmp_path / "same", tmp_path / "out", seed=None)
    names = []
    for out in ("3", "out"):
        with tarfile.open(tmp_path / out / "shard-000000.tar") as archive:
            names.append(archive.getnames())
    assert names[0] == sorted(names[0], key=lambda name: (name[:-3], name.endswith("txt")))
    assert names[1] == [f"{key}.png" for key in ("a", "a-2", "a-3", "a-2-2", "a_b", "a_b-2", "a-2-3")], "without dots"


def test_the_command_and_its_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.yaml").write_text("train: set/images\nval: set/images\nnames: [a, b, c]\n")
    words = ["--data", str(tmp_path / "set.yaml"), "--out", str(tmp_path / "out")]
    assert write_shards.main([*words, "--per-shard", "3", "--split", "val"]) == 0
    assert "7 images in 3 shards" in capsys.readouterr().err
    for wrong, said in (
        (words, "there are shards already"),
        ([*words, "--split", "test"], "has no 'test'"),
        (words[:2], "--out are needed"),
        (["--data", "nowhere.yaml", "--out", "x"], "nowhere.yaml does not exist"),
    ):
        assert write_shards.main(wrong) == 1
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
    with pytest.raises(ValueError, match="^per_shard=0: a shard holds at least one image$"):
        write_shards.write_shards(folder, tmp_path / "none", per_shard=0)
    assert not (tmp_path / "none").exists()


def test_an_interrupted_writer_leaves_no_half_shard(folder: Path, tmp_path: Path) -> None:
    full = patch.object(tarfile.TarFile, "addfile", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(OSError, match="No space left"):
        write_shards.write_shards(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


GOOD = {"a.png": png(), "a.txt": b"0 .5 .5 .1 .1", "b.png": png(50), "b.txt": b"1 .5 .5 .1 .1", "c.png": png(70)}


def reasons(file: Path) -> tuple[list[str], list[str]]:
    """Names of the usable images of a shard, and what is said of the rest, each one line."""
    records, spans = check_shard(str(file))
    assert len(records) == len(spans)
    said = [str(record.problem) for record in records if record.problem]
    assert all("\n" not in message and str(file) in message for message in said)
    return [record.path.removeprefix(f"{file}/") for record in records if record.size], said


def test_nothing_in_it(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {})
    for name, content, said in (("a", None, "no images"), ("b", b"", "unusable"), ("c", b"no" * 900, "unusable")):
        if content is not None:
            (tmp_path / f"{name}.tar").write_bytes(content)
        names, messages = reasons(tmp_path / f"{name}.tar")
        assert names == [] and said in messages[0]
    with pytest.raises(ValueError, match="none of the 1 images.*a.tar: unusable shard"):
        load_index(tmp_path / "a.tar")


def test_members_that_are_no_images_are_passed_over_and_said(tmp_path: Path) -> None:
    others = {"__meta__": b"x", "a.json": b"{}", "a.seg.png": b"x", ".hidden.png": b"x", "README": b"", "d.txt": b"0 1"}
    assert reasons(tar(tmp_path / "c.tar", GOOD | others)) == (["a.png", "b.png", "c.png"], [])
    others = {"d.heic": b"x", "e.HEIC": b"x", "f.gif": b"x", "a.json": b"{}", "a.cls": b"0"}
    index = load_index(tar(tmp_path / "a.tar", GOOD | others), cache=False)
    (problem,) = index.problems
    assert len(index) == 3 and problem.file == f"{tmp_path}/a.tar"
    assert problem.reason == "files passed over: 2 .heic, 1 .gif, the first d.heic"
    with pytest.raises(ValueError, match="no images in it .*; files passed over"):
        load_index(tar(tmp_path / "b.tar", others), cache=False)


def test_every_bad_pair_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_IMAGE", 1 << 20)
    monkeypatch.setattr(shards, "MAX_LABELS", 1 << 20)
    bad = {
        "cut.png": (png()[:-20], "/cut.png: unusable image"),
        "empty.png": (b"", "/empty.png: unusable image: empty file"),
        "text.jpg": (b"hello", "/text.jpg: unusable image"),
        "row.png": (png(), ""),
        "row.txt": (b"0 .5 .5 .1 .1\n0 1", "/row.txt:2: 2 columns"),
        "two.png": (png(), ""),
        "two.jpg": (png(), "two.jpg is in it too"),
        "latin.png": (png(), ""),
        "latin.txt": ("0 .5 .5 .1 .1 é".encode("latin-1"), "/latin.txt: not UTF-8"),
        "large.png": (bytes(2 << 20), "/large.png: 2 MiB in one file, 1 are allowed"),
        "long.png": (png(), ""),
        "long.txt": (bytes(2 << 20), "/long.txt: 2 MiB in one file, 1 are allowed"),
    }
    names, said = reasons(tar(tmp_path / "a.tar", GOOD | {name: content for name, (content, _) in bad.items()}))
    assert names == ["a.png", "b.png", "c.png"] and len(said) == 8
    for words in (words for _, words in bad.values() if words):
        assert sum(words in message for message in said) == 1, words


def test_links_devices_and_sparse_files_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        kinds = {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "d": tarfile.CHRTYPE, "f": tarfile.FIFOTYPE}
        for name, kind in (kinds | {"p": tarfile.GNUTYPE_SPARSE, "../../up": tarfile.SYMTYPE}).items():
            info = tarfile.TarInfo(f"{name}.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        for name in ("l.png", "l.txt"):
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(png()), tarfile.REGTYPE) if name == "l.png" else (0, tarfile.SYMTYPE)
            info.linkname = "" if name == "l.png" else "/etc/passwd"
            archive.addfile(info, io.BytesIO(png()))
    names, said = reasons(tmp_path / "a.tar")
    assert names == [] and len(said) == 7 and all("a link or device, not a file" in message for message in said)
    elsewhere = {"../../x.png": png(10), "/etc/y.png": png(20), "a" * 300 + ".png": png(30)}
    index = load_index(tar(tmp_path / "b.tar", elsewhere), cache=False)
    assert [int(index.image(i).max()) for i in range(3)] == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "secret.png"], "nothing is unpacked"


@pytest.mark.parametrize("cut", [*range(0, 6000, 311), 2048, 4096, 5120, 5632])
def test_a_shard_that_breaks_off_keeps_images_whose_labels_are_there(tmp_path: Path, cut: int) -> None:
    whole = tar(tmp_path / "whole.tar", GOOD).read_bytes()
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512  # with one block of the end mark
    (tmp_path / "cut.tar").write_bytes(whole[:cut])
    names, said = reasons(tmp_path / "cut.tar")
    if cut >= end:
        assert (names, said) == (["a.png", "b.png", "c.png"], [])
    else:  # the third has no labels, or they are lost
        assert names == ["a.png", "b.png"][: len(names)] and len(said) == 1 and "unusable shard" in said[0]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "attack",
    [
        header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("x", 1 << 40, tarfile.XHDTYPE),
        header("x.png", 1 << 40),
        header("x.png", -(1 << 20)),
        header("x", -512, tarfile.GNUTYPE_LONGNAME),
        header("x", 512, tarfile.XHDTYPE) + b"9" * 512,
        (header("x", 512, tarfile.XHDTYPE) + b"10 a=bcde\n".ljust(512, b"\0")) * 3000,
        b"\xff" * 512,
        b"x" * 100 + b"\0" * 412,
    ],
    ids=["long name", "pax", "image", "negative", "negative name", "digits", "nested", "noise", "bad checksum"],
)
def test_hostile_headers(tmp_path: Path, attack: bytes) -> None:
    first = tar(tmp_path / "good.tar", dict(list(GOOD.items())[:2])).read_bytes().rstrip(b"\0")
    first += b"\0" * (-len(first) % 512)
    (tmp_path / "a.tar").write_bytes(first + attack + b"\0" * 1024)
    names, said = reasons(tmp_path / "a.tar")
    assert names == ["a.png"] and len(said) == 1 and "unusable shard" in said[0] and "1 images" in said[0]
    (tmp_path / "b.tar").write_bytes(attack)
    assert reasons(tmp_path / "b.tar")[0] == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6143), st.integers(0, 255)), max_size=12), st.integers(0, 6144))
def test_any_damage_is_told_not_raised(tmp_path_factory: pytest.TempPathFactory, changes: list, length: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(tar(folder / "a.tar", GOOD).read_bytes()[:6144])
    for place, value in changes:
        whole[place] = value
    (folder / "a.tar").write_bytes(whole[:length])
    names, _ = reasons(folder / "a.tar")
    assert set(folder.iterdir()) == {folder / "a.tar"}
    assert len(names) <= 3


def test_a_shard_shortened_or_lost_after_the_check(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = tar(tmp_path / "a.tar", GOOD)
    dataset, index = DetectionDataset(shard, 32), load_index(tar(tmp_path / "b.tar", GOOD), cache=False)
    os.truncate(shard, 700)
    assert (dataset[2].image == 114).all() and "c.png: cannot be read (shorter than when it was checked)" in caplog.text
    (tmp_path / "b.tar").unlink()
    with pytest.raises(ValueError, match=r"c\.png: cannot be read \(No such file"):
        index.image(2)


def test_many_shards_and_threads_share_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 3)
    for number in range(8):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)
    reader, before = ShardReader(), len(os.listdir("/proc/self/fd"))

    def is_right(number: int) -> bool:
        return reader.read(str(tmp_path / str(number)), 10, 5) == bytes([number]) * 5

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, np.random.default_rng(0).integers(0, 8, 800).tolist()))
    assert len(os.listdir("/proc/self/fd")) <= before + 3
