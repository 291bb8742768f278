"""Who has which batches, and weights that are the same everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.processes import together
from utils.distributed.processes import rank
from utils.distributed.shares import BatchShare, agreed, copy_from_main, my_share, own_batches


def test_no_pictures_no_batches() -> None:
    assert list(BatchShare(0, 4)) == [] and len(BatchShare(0, 4, 1, 2)) == 0


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 7))
def test_together_the_shares_are_the_batches(count: int, size: int, world: int) -> None:
    expected = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    shares = [BatchShare(count, size, first, world) for first in range(world)]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for first, share in enumerate(shares):
        assert list(share) == expected[first::world]


def test_a_loader_of_ones_own_batches() -> None:
    loader = DataLoader(torch.arange(10), batch_size=4, collate_fn=torch.stack)
    assert own_batches(loader, 0, 1) is loader
    found = [[batch.tolist() for batch in own_batches(loader, first, 2)] for first in range(2)]
    assert found == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    assert len(own_batches(loader, 5, 9)) == 0 and list(own_batches(loader, 5, 9)) == []


def test_alone_everything_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # a launcher's leftovers, nobody was met
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nn.BatchNorm2d(2)
    copy_from_main(model)
    assert my_share() == (0, 1) and model.weight.tolist() == [1, 1]


def copied() -> dict[str, Tensor]:
    """Also: tasks that succeed, and one that fails in the second process."""
    assert agreed(lambda: rank() + 5) == rank() + 5

    def fail() -> None:
        if rank() == 1:
            raise FileNotFoundError(2, "No such file or directory", "there")

    with pytest.raises(FileNotFoundError) as caught:
        agreed(fail)
    assert caught.value.filename == "there"
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    for number, value in enumerate(model.state_dict().values()):
        value.fill_(10 * number + rank())
    copy_from_main(model)
    return {"share": torch.tensor(my_share())} | model.state_dict()


def test_alone_a_failure_is_ones_own() -> None:
    assert agreed(lambda: 3) == 3
    with pytest.raises(RuntimeError):
        agreed(lambda: (_ for _ in ()).throw(RuntimeError("not a user's mistake")))


def test_the_main_process_gives_its_weights_and_counters(tmp_path_factory: pytest.TempPathFactory) -> None:
    first, second = together(copied, tmp_path_factory.mktemp("copied"))
    assert first.pop("share").tolist() == [0, 2] and second.pop("share").tolist() == [1, 2]
    for number, name in enumerate(first):
        assert (first[name] == 10 * number).all() and torch.equal(first[name], second[name])
