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


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = np.array([Attack()], dtype=object)
    np.save("a.npy", evil, allow_pickle=True)
    np.savez("a.npz", evil=evil)
    for read, name in ((read_array, "a.npy"), (read_arrays, "a.npz")):
        with pytest.raises(ValueError, match=f"{name}: no array"):
            read(name, LIMIT)
    assert not Path("canary").exists()


def test_sizes_are_not_believed(tmp_path: Path) -> None:
    """A header of 128 bytes that promises a tebibyte."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    (tmp_path / "a.npy").write_bytes(content.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    tracemalloc.start()
    for read, name in ((read_array, "a.npy"), (read_arrays, "a.npz")):
        with pytest.raises(ValueError, match="128 bytes for an array of"):
            read(tmp_path / name, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
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
    for length in range(len(whole)):
        (tmp_path / "b.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="b.npz"):
            read_arrays(tmp_path / "b.npz", LIMIT)
    for bit in range(8 * start, 8 * (start + 131)):
        (tmp_path / "b.npz").write_bytes(
            bytes(byte ^ (1 << bit % 8) * (place == bit // 8) for place, byte in enumerate(whole))
        )
        with pytest.raises(ValueError, match="b.npz"):
            read_arrays(tmp_path / "b.npz", LIMIT)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    for read in (read_array, read_arrays):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none", LIMIT)
