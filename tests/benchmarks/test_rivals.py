"""Those who take part compute what they claim to, start from the same weights, and are told apart bit by bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.rivals import NAMES, DenseAttention, Rival, Setting, build, core, core_size, extra_memory, layer, ready
from models.bra.attention import BiLevelRoutingAttention

HERE = Setting()
OURS_ON_CPU = [name for name in NAMES if name not in ("reference", "dense", "triton")]


def rival_of(call: Any, **inputs: Tensor) -> Rival:
    return Rival(call, inputs, {}, HERE)


def test_no_rivals_are_ready_at_once() -> None:
    assert ready([], (1, 8, 7, 7), HERE) == ({}, [])


def test_every_backend_can_be_named() -> None:
    assert NAMES[:3] == ("reference", "dense", "plain") and {"auto", "sdpa", "triton"} <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_dense_attention_is_routing_attention_with_a_single_region() -> None:
    dense = DenseAttention(16, 2)
    routed = BiLevelRoutingAttention(16, n_win=1, num_heads=2, qk_scale="head", backend="reference")
    renamed = {name.replace("qkv.", "qkv.qkv."): value for name, value in dense.state_dict().items()}
    routed.load_state_dict(renamed)
    x = torch.randn(2, 16, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(x), routed(x))


def test_results_are_output_and_gradients() -> None:
    x, y = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([3.0, 5.0], requires_grad=True)
    rival = rival_of(torch.mul, x=x, y=y)
    found = rival.results()
    assert list(found) == ["output", "gradient of x", "gradient of y"]
    assert torch.equal(found["output"], torch.tensor([3.0, -10.0]))
    assert torch.equal(found["gradient of x"], rival.seed * y)
    assert torch.equal(found["gradient of y"], rival.seed * x)
    again = rival.results()
    assert torch.equal(again["gradient of x"], found["gradient of x"])  # nothing adds up over the runs
    rival.clear()
    assert x.grad is None and y.grad is None


def test_forward_leaves_no_gradients() -> None:
    modes = []
    x = torch.ones(2, requires_grad=True)
    rival_of(lambda x: modes.append(torch.is_grad_enabled()) or x, x=x).forward()
    assert modes == [False] and x.grad is None


def test_two_runs_that_differ_are_told_by_name() -> None:
    x, y = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    steps = iter((1.0, 2.0))
    assert rival_of(torch.add, x=x, y=y).differing() == []
    assert rival_of(lambda x, y: x * next(steps) + y, x=x, y=y).differing() == ["output", "gradient of x"]


@pytest.mark.parametrize("name", OURS_ON_CPU)
def test_layers_of_ours_compute_the_same_from_the_same_weights(name: str) -> None:
    plain, other = (layer(which, (1, 16, 14, 14), HERE).results() for which in ("plain", name))
    assert plain.keys() == other.keys()
    for result, value in plain.items():
        torch.testing.assert_close(other[result], value, atol=1e-4, rtol=1e-4, msg=result)


@pytest.mark.parametrize("name", OURS_ON_CPU)
def test_the_attention_alone_is_the_same_too(name: str) -> None:
    plain, other = (core(which, (2, 16, 14, 10), HERE).results() for which in ("plain", name))
    assert list(plain) == ["output", *(f"gradient of {part}" for part in "qkv")]
    assert plain["output"].shape == core_size(name, (2, 16, 14, 10)) == (2, 49, 2 * 2, 8, 2)
    for result, value in plain.items():
        torch.testing.assert_close(other[result], value, atol=1e-4, rtol=1e-4, msg=result)


def test_dense_attention_alone() -> None:
    rival = core("dense", (1, 16, 3, 4), HERE)
    q, k, v = rival.inputs
    assert q.shape == core_size("dense", (1, 16, 3, 4)) == (1, 8, 12, 2)
    by_hand = (q @ k.transpose(-2, -1) / math.sqrt(2)).softmax(-1) @ v
    torch.testing.assert_close(rival.results()["output"], by_hand.detach())


def test_the_attention_alone_has_one_precision() -> None:
    """A gradient that had to be converted would be counted as memory that the attention needs."""
    rival = core("plain", (1, 16, 7, 7), Setting(dtype=torch.bfloat16))
    assert {rival.seed.dtype, *(value.dtype for value in rival.results().values())} == {torch.bfloat16}


def test_names_that_stand_for_nothing() -> None:
    with pytest.raises(ValueError, match="--reference FILE"):
        build("reference", 16, None)
    with pytest.raises(ValueError, match="give one of auto"):
        build("flash", 16, None)
    with pytest.raises(ValueError, match="module as a whole"):
        core("reference", (1, 16, 7, 7), HERE)


def test_who_cannot_run_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    able, left_out = ready(["plain", "triton", "auto"], (1, 8, 7, 7), HERE)
    assert list(able) == ["plain", "auto"]
    assert len(left_out) == 1 and left_out[0].startswith("triton is left out on 1x8x7x7: ")
    assert able["auto"].inputs[0].grad is None


def test_who_runs_out_of_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(name: str, shape: rivals.Shape, setting: Setting) -> Rival:
        raise torch.OutOfMemoryError("tried to allocate 9 TiB\nand more")

    monkeypatch.setattr(rivals, "layer", hungry)
    assert ready(["dense"], (1, 8, 7, 7), HERE) == ({}, ["dense is left out on 1x8x7x7: tried to allocate 9 TiB"])


class Allocator:
    """A GPU's memory on paper: the first run takes a workspace for good, every run its own, and gradients stay."""

    def __init__(self) -> None:
        self.workspace = self.gradients = self.most = 0

    def allocated(self, device: torch.device) -> int:
        return 1000 + self.workspace + self.gradients  # weights and input

    def reset(self, device: torch.device) -> None:
        self.most = self.allocated(device)

    def run(self) -> None:
        self.workspace = 500
        self.most = max(self.most, self.allocated(torch.device("cpu")) + 70)
        self.gradients = 40

    both = forward = run

    def clear(self) -> None:
        self.gradients = 0


def test_peak_on_a_gpu_counts_neither_workspace_nor_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_allocated", gpu.allocated)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", gpu.reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: gpu.most)
    found = rivals.peak(lambda *_: gpu, "auto", (1, 8, 7, 7), Setting(torch.device("cuda")), True)
    assert found == 70


def test_extra_memory_is_what_results_do_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    one = 2 * 49 * 4 * 16 * 2  # bytes of q: pictures, regions, tokens, channels, float16
    peaks = {False: 1.2 * one, True: 4.4 * one}
    monkeypatch.setattr(rivals, "peak", lambda prepare, name, shape, setting, backward: peaks[backward])
    half = Setting(dtype=torch.float16)
    assert extra_memory("auto", (2, 16, 14, 14), half) == pytest.approx((5, 10))
    monkeypatch.setattr(rivals, "peak", lambda *_: 0)
    assert extra_memory("auto", (2, 16, 14, 14), half) == (0, 0)


def test_a_gpu_warms_up() -> None:
    assert (HERE.warm_up, Setting(torch.device("cuda")).warm_up) == (0, 2)
