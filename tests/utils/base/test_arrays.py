"""Arrays in files: what NumPy writes is read, what it would believe is not."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from utils.base.arrays import read_array, read_arrays

LIMIT = 1 << 20


class Attack:
    """Unpickling it would make a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("kind", ["u1", "?", "<i8", ">f4", "f2"])
@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (2, 3), (5,)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(tmp_path: Path, kind: str, shape: tuple, order: str) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype=kind, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", one=array, two=array)
    assert read_arrays(tmp_path / "a.npz", LIMIT).keys() == {"one", "two"}
    for found in (read_array(tmp_path / "a.npy", LIMIT), *read_arrays(tmp_path / "a.npz", LIMIT).values()):
        assert found.dtype == array.dtype and found.shape == shape and (found == array).all() and found.flags.writeable


def test_nothing_is_unpickled_and_sizes_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that acts, and a header of 128 bytes that promises a tebibyte."""
    monkeypatch.chdir(tmp_path)
    evil = np.array([Attack()], dtype=object)
    np.save("evil.npy", evil, allow_pickle=True)
    np.savez("evil.npz", evil=evil)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    Path("large.npy").write_bytes(content.getvalue())
    with zipfile.ZipFile("large.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    tracemalloc.start()
    for read, end in ((read_array, "npy"), (read_arrays, "npz")):
        with pytest.raises(ValueError, match=f"evil.{end}: no array"):
            read(f"evil.{end}", LIMIT)
        with pytest.raises(ValueError, match="128 bytes for an array of"):
            read(f"large.{end}", LIMIT)
        with pytest.raises(FileNotFoundError):
            read("none", LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20 and not Path("canary").exists()
    tracemalloc.stop()


def test_bombs_and_doubles_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 24, np.uint8))
    with pytest.raises(ValueError, match="compressed"):
        read_arrays(tmp_path / "a.npz", LIMIT)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", b"2")
    with pytest.raises(ValueError, match="overlap"):
        read_arrays(tmp_path / "b.npz", LIMIT)
    np.save(tmp_path / "c.npy", np.zeros(LIMIT, np.uint8))
    with pytest.raises(ValueError, match="more than"):
        read_array(tmp_path / "c.npy", LIMIT)


def test_every_cut_and_every_flipped_bit_of_an_archive_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3, dtype=np.uint8))
    whole = (tmp_path / "a.npz").read_bytes()
    start = whole.index(b"\x93NUMPY")
    spoiled = [whole[:length] for length in range(len(whole))]
    bits = ((place, 1 << bit) for place in range(start, start + 131) for bit in range(8))
    spoiled += [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for place, bit in bits]
    for content in spoiled:
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(ValueError, match="b.npz"):
            read_arrays(tmp_path / "b.npz", LIMIT)
