"""The extrapolation on worked numbers, the CPU's answer, and, with a GPU, a batch that does fit."""

import pytest
import torch
from torch import nn

from utils.training.autobatch import DEFAULT_BATCH, autobatch, largest_batch, try_batch
from utils.training.guard import OutOfMemory


def test_a_cpu_gets_the_default_and_the_model_is_left_alone():
    model = nn.Conv2d(3, 4, 1).eval()
    assert autobatch(model, 64) == DEFAULT_BATCH == 16
    assert not model.training


@pytest.mark.parametrize(
    "sizes, used, budget, expected",
    [
        ([1, 2, 4], [30, 40, 60], 221, 20),  # 20 + 10 an image
        ([1, 2, 4], [30, 40, 60], 229, 20),  # rounded down
        ([1, 2, 4], [30, 40, 60], 10, 1),  # nothing fits: still a batch
        ([1, 2], [30, 30], 100, 2),  # no growth: what was measured
        ([1, 2, 4], [60, 50, 40], 100, 4),
    ],
)
def test_extrapolation(sizes, used, budget, expected):
    assert largest_batch(sizes, used, budget) == expected


def test_a_batch_is_tried_in_the_precision_of_training_and_any_lack_of_memory_is_one():
    seen = []

    class Full(nn.Conv2d):
        def forward(self, x):
            if len(x) > 4:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            seen.append((super().forward(x).dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return [super().forward(x)]

    for dtype in (torch.bfloat16, None):
        model = Full(3, 4, 1)
        try_batch(model, 4, 32, dtype)
        assert seen.pop() == (dtype or torch.float32, True) and model.weight.grad is not None
        with pytest.raises(OutOfMemory):
            try_batch(model, 5, 32, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_chosen_batch_trains():
    class Net(nn.Sequential):
        def forward(self, x):
            return [super().forward(x)]

    model = Net(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1)).cuda()
    chosen = autobatch(model, 256, fraction=0.05)
    assert chosen > 1
    model(torch.zeros(chosen, 3, 256, 256, device="cuda"))[0].mean().backward()
