"""Alone, every helper is the identity; in a run of several, the environment decides."""

from __future__ import annotations

import pytest
import torch

from utils.distributed.processes import (
    Vote,
    gather,
    gather_to_main,
    is_joined,
    is_main,
    leave,
    loader_workers,
    local_rank,
    main_first,
    mean_over_ranks,
    rank,
    tell,
    wait_for_all,
    world_size,
)


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), local_rank(), world_size(), is_main()) == (-1, -1, 1, True)
    with main_first():
        assert mean_over_ranks(torch.tensor([2.0])).item() == 2
    assert not is_joined()
    assert gather("mine") == gather("mine", machine=True) == gather_to_main("mine") == ["mine"]
    assert tell("mine") == "mine"
    vote = Vote()
    assert [vote(False), vote(True), vote(False), vote.finish()] == [False, True, False, False]
    wait_for_all()
    leave()


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank() == 3 and world_size() == 8 and not is_main()


@pytest.mark.parametrize(
    "cores, wanted, given", [(1, 8, 0), (2, 8, 0), (4, 8, 2), (16, 8, 8), (16, 0, 0), (None, 8, 0)]
)
def test_loaders_leave_the_network_its_cores(
    cores: int, wanted: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert loader_workers(wanted, torch.device("cpu")) == given
    assert loader_workers(wanted, torch.device("cuda")) == wanted
