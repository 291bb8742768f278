"""Batch norm over two processes against one batch norm over the batch that both have together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.experimental import load_model
from models.yolo import Model
from tests.processes import together
from utils.checkpoints.checkpoint import describe_model
from utils.distributed.processes import rank
from utils.distributed.sync_bn import SharedBatchNorm2d, convert_sync_batchnorm

CPU = torch.device("cpu")
CHANNELS, STEPS = 3, 2
CASES = {
    "even": {"cut": (4, 4)},
    "uneven": {"cut": (1, 6)},
    "average": {"cut": (3, 2), "momentum": None},
    "bare": {"cut": (2, 2), "affine": False, "track_running_stats": False},
    "far": {"cut": (2, 5), "shift": 1000.0},
    "last": {"cut": (2, 3), "channels_last": True},
    "double": {"cut": (2, 3), "dtype": torch.float64},
    "bf16": {"cut": (2, 2), "dtype": torch.bfloat16},
}


def build(affine: bool = True, momentum: float | None = 0.03, track_running_stats: bool = True, **case: Any) -> Any:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS, 1e-3, momentum, affine, track_running_stats)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.train().to(torch.float64 if case.get("dtype") is torch.float64 else torch.float32)


def batch(step: int, cut: tuple[int, int], shift: float = 0.0, dtype: Any = torch.float32, **case: Any) -> Tensor:
    values = torch.randn(sum(cut), CHANNELS, 5, 4, generator=torch.Generator().manual_seed(step)) * 3 + 1 + shift
    values = values.to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if case.get("channels_last") else values


def train(norm: nn.Module, case: dict[str, Any], part: slice) -> dict[str, Tensor]:
    """Outputs and gradients of `part` of the batches of a few steps, of a loss that is a sum over images."""
    found = {}
    for step in range(STEPS):
        x = batch(step, **case)[part].detach().requires_grad_()
        y = norm(x)
        target = batch(step + 10, **case | {"shift": 0.0})[part]
        ((y - target).double() ** 2 * torch.linspace(0, 1, 4)).sum().backward()
        assert y.dtype == x.dtype and y.stride() == x.stride() and x.grad.stride() == x.stride()
        found[f"y{step}"], found[f"x{step}"] = y.detach(), x.grad
    return found | {name: value.grad for name, value in norm.named_parameters()} | norm.state_dict(prefix="state ")


def in_two() -> dict[str, dict[str, Tensor]]:
    answers = {}
    for name, case in CASES.items():
        norm = convert_sync_batchnorm(build(**case), CPU)
        assert type(norm) is SharedBatchNorm2d
        first = case["cut"][0]
        part = slice(0, first) if rank() == 0 else slice(first, None)
        answers[name] = train(copy.deepcopy(norm), case, part)
    return answers


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return together(in_two, tmp_path_factory.mktemp("halves"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_normalise_as_one(name: str, halves: list[dict[str, dict[str, Tensor]]]) -> None:
    case, (first, second) = CASES[name], (half[name] for half in halves)
    whole = train(build(**case), case, slice(None))
    assert whole.keys() == first.keys() == second.keys()
    # a far mean and bfloat16 are coarse by themselves
    absolute, relative = {"far": (1e-3, 1e-3), "bf16": (0.02, 0.02), "double": (1e-14, 1e-12)}.get(name, (1e-6, 1e-6))
    for key, expected in whole.items():
        if key[0] in "xy":
            found = torch.cat((first[key], second[key]))
        elif key.startswith("state"):
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
            found = first[key]
        else:
            found = first[key] + second[key]
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, atol=absolute * scale, rtol=relative)


def test_alone_and_in_evaluation_it_is_plain_batch_norm() -> None:
    case = CASES["even"]
    plain, ours = train(build(), case, slice(None)), train(convert_sync_batchnorm(build(), CPU), case, slice(None))
    assert all(torch.equal(plain[key], ours[key]) for key in plain)
    x, norm = batch(0, (2, 2)), build().eval()
    assert torch.equal(convert_sync_batchnorm(copy.deepcopy(norm), CPU)(x), norm(x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_converting_keeps_tensors_keys_and_the_place_in_the_network(device: str) -> None:
    """Torch's own layer is only built here, not called: that takes GPUs."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Sequential(build()), nn.LayerNorm(3))
    model[1][0].f, model[1][0].type = -1, "BatchNorm2d"
    before = model.state_dict(keep_vars=True)
    converted = convert_sync_batchnorm(model, torch.device(device))
    after = converted.state_dict(keep_vars=True)
    assert converted is model and list(before) == list(after) and all(before[key] is after[key] for key in before)
    norm = converted[1][0]
    assert isinstance(norm, SharedBatchNorm2d if device == "cpu" else nn.SyncBatchNorm)
    assert (norm.f, norm.type, norm.eps, norm.momentum, norm.training) == (-1, "BatchNorm2d", 1e-3, 0.03, True)
    assert isinstance(converted[2], nn.LayerNorm) and isinstance(copy.deepcopy(converted)[1][0], type(norm))


def test_a_converted_model_is_fused_described_and_built_again(tiny_cfg: Path) -> None:
    model = Model(str(tiny_cfg), verbose=False)
    model.names, model.hyp = ["red", "blue"], {}
    described = describe_model(convert_sync_batchnorm(copy.deepcopy(model), CPU))
    again = load_model({"model": described})
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    x = torch.rand(1, 3, 64, 64)
    fused = convert_sync_batchnorm(copy.deepcopy(model), CPU).eval().fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x)[0], model.eval()(x)[0], atol=1e-3, rtol=1e-4)
