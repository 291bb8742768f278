"""Alone, every helper is the identity; in a run of several, the environment decides, and all agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.processes import together
from utils.distributed.processes import (
    Team,
    Vote,
    agreed,
    broadcast,
    copy_from_main,
    gather,
    gather_to_main,
    is_joined,
    is_main,
    leave,
    loader_workers,
    local_rank,
    main_first,
    mean_over_ranks,
    my_share,
    own_batches,
    rank,
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
    assert broadcast("mine") == "mine" and Team.of_this_machine() == Team(0, 1)
    vote = Vote()
    assert [vote(False), vote(True), vote(False), vote.finish()] == [False, True, False, False]
    with pytest.raises(RuntimeError, match="as it is"), agreed():
        raise RuntimeError("as it is")
    leave()


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    copy_from_main(model := nn.BatchNorm2d(2))  # of a launcher that has left its variables behind: nobody has joined
    assert rank() == 3 and world_size() == 8 and not is_main()
    assert my_share() == (0, 1) and model.weight.tolist() == [1, 1]


def test_loaders_leave_the_network_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, wanted, number in ((1, 8, 0), (2, 8, 0), (4, 8, 2), (16, 8, 8), (16, 0, 0), (None, 8, 0)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert loader_workers(wanted, torch.device("cpu")) == number
        assert loader_workers(wanted, torch.device("cuda")) == wanted


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 7))
def test_together_the_shares_are_the_batches(count: int, size: int, world: int) -> None:
    loader = DataLoader(range(count), batch_size=size, collate_fn=list)  # type: ignore[arg-type] # as a data set
    shares = [own_batches(loader, first, world) for first in range(world)]
    assert world > 1 or shares[0] is loader
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [list(share) for share in shares] == [list(loader)[first::world] for first in range(world)]


def exchanged() -> dict[str, Tensor]:
    """Agreement, in success and failure, and the main process's weights."""
    with agreed():
        mine = rank()
    assert broadcast(mine) == 0 and gather(mine) == [0, 1]
    there = Path(__file__).parent if rank() == 0 else Path("there")
    with pytest.raises(FileNotFoundError) as caught, agreed():
        there.stat()
    assert caught.value.filename == "there"
    with pytest.raises(ValueError, match="invalid literal"), agreed():
        int("one" if rank() == 1 else "1")
    with pytest.raises(KeyError if rank() == 0 else RuntimeError, match="of 0"), agreed():
        raise KeyError(f"of {rank()}")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    for number, value in enumerate(model.state_dict().values()):
        value.fill_(10 * number + rank())
    copy_from_main(model)
    return {"share": torch.tensor(my_share())} | model.state_dict()


def test_the_main_process_gives_its_weights_and_counters(tmp_path_factory: pytest.TempPathFactory) -> None:
    first, second = together(exchanged, tmp_path_factory.mktemp("exchanged"))
    assert first.pop("share").tolist() == [0, 2] and second.pop("share").tolist() == [1, 2]
    for number, name in enumerate(first):
        assert (first[name] == 10 * number).all() and torch.equal(first[name], second[name])
