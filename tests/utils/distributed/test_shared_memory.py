"""Arrays held once by several processes: forked, spawned, and started side by side."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.processes import statements as together
from tests.processes import write_into
from utils.distributed import shared_memory
from utils.distributed.shared_memory import SharedArrays, layout_of, reserve, share


def test_values_kinds_and_shapes_are_kept() -> None:
    assert dict(share({})) == {}
    arrays = {"a": np.arange(7).reshape(7, 1), "b": np.array([True, False]), "c": np.ones((2, 3), np.float32)}
    arrays["none"] = np.zeros((0, 5), np.float32)
    shared = share(arrays)
    assert isinstance(shared, SharedArrays) and list(shared) == list(arrays) and len(shared) == 4
    for name, array in arrays.items():
        np.testing.assert_array_equal(shared[name], array, strict=True)
        assert shared[name].flags.writeable and shared[name].ctypes.data % 64 == 0
    assert not any(array.any() for array in reserve(layout_of(arrays)).values()), "new memory is zero"
    for copied in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):
        assert type(copied) is dict, "a copy is one of the values"
        copied["a"][0] = 9
    assert shared["a"][0] == 0


@pytest.mark.parametrize(
    "method, memory_files", [("fork", True), ("spawn", True), ("forkserver", True), ("spawn", False)]
)
def test_started_processes_write_into_the_same_memory(
    method: str, memory_files: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not memory_files:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = share({"a": np.arange(5)})
    assert not list(tmp_path.iterdir()), "a killed process has nothing to leave behind"
    child = multiprocessing.get_context(method).Process(target=write_into, args=(shared, "a", 3, 42))
    child.start()
    child.join()
    assert child.exitcode == 0 and shared["a"].tolist() == [0, 1, 2, 42, 4]


def test_files_are_closed_with_their_arrays_and_too_short_ones_refused(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        kept = share({"a": np.arange(5)})["a"]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 and kept.tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "short").write_bytes(b"12")
    with pytest.raises(OSError, match="shorter"):
        SharedArrays(os.open(tmp_path / "short", os.O_RDWR), (("a", "|u1", (3,)),))


def test_where_no_descriptor_can_be_handed_over_a_file_that_stays_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = shared_memory.file_arrays(tmp_path / "kept", (("a", "|u1", (100_000,)),), new=True)
    monkeypatch.delattr(multiprocessing.reduction, "DupFd")  # as on Windows
    monkeypatch.setattr(shared_memory, "get_spawning_popen", object)
    sent = pickle.dumps(arrays)
    assert len(sent) < 1000
    pickle.loads(sent)["a"][3] = 42
    assert arrays["a"][3] == 42


def test_without_any_memory_to_share_everybody_has_a_copy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for way in ("_memory_file", "_temporary_file"):
        monkeypatch.setattr(shared_memory, way, refuse)
    arrays = {"a": np.arange(5)}
    assert share(arrays) is arrays and "no shared memory" in caplog.text
    with pytest.raises(OSError, match="No space"):
        reserve(layout_of(arrays))


TEAM = """
import os
import numpy as np
from utils.distributed import shared_memory as memory
from utils.distributed.processes import Team
team = Team.of_this_machine()
said = {"team": [team.number, team.size, list(team.mine(range(7)))]}

def swapped(arrays):
    arrays["a"][team.number] = 10 + team.number
    team.gather(None)
    return arrays["a"].tolist(), type(arrays).__name__

own = {"a": np.arange(3)}
for owner in (0, 1):
    said[f"owner {owner}"] = swapped(memory.share(own if team.number == owner else None, team, owner))

make, os_open = memory._memory_file, os.open
def unreachable(path, *rest, **words):
    if str(path).startswith("/proc"):
        raise PermissionError(13, "Permission denied", path)
    return os_open(path, *rest, **words)
os.open = unreachable
said["by file"] = swapped(memory.share(own if team.is_first else None, team))
os.open = os_open

def refuse(*_):
    raise OSError(28, "No space left on device")
memory._memory_file = memory._temporary_file = refuse
said["copied"] = swapped(memory.share(own if team.is_first else None, team))

print(json.dumps(said))
"""


def test_processes_started_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first, second = together(TEAM, {})
    assert first["team"] == [0, 2, [0, 2, 4, 6]] and second["team"] == [1, 2, [1, 3, 5]]
    for way in ("owner 0", "owner 1", "by file"):
        assert first[way] == second[way] == [[10, 11, 2], "SharedArrays"]
    assert not list(tmp_path.iterdir()), "the file lost its name as soon as both had it"
    assert first["copied"][0] == [10, 1, 2] and second["copied"][0] == [0, 11, 2]
