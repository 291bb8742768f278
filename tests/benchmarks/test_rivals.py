"""Those who take part compute what they claim to, start from the same weights, and are told apart bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.rivals import NAMES, DenseAttention, Rival, Setting, core, core_size, extra_memory, layer
from models.bra.attention import BiLevelRoutingAttention

HERE = Setting()
OURS_ON_CPU = [name for name in NAMES if name not in ("reference", "dense", "triton")]


def rival_of(call: Any, **inputs: Tensor) -> Rival:
    return Rival(call, inputs, {}, HERE)


def test_dense_attention_is_routing_attention_with_a_single_region() -> None:
    dense = DenseAttention(16, 2)
    routed = BiLevelRoutingAttention(16, n_win=1, num_heads=2, qk_scale="head", backend="reference")
    renamed = {name.replace("qkv.", "qkv.qkv."): value for name, value in dense.state_dict().items()}
    routed.load_state_dict(renamed)
    x = torch.randn(2, 16, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(x), routed(x))


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
    one = 2 * 49 * 4 * 16 * 2  # bytes of q: images, regions, tokens, channels, float16
    peaks = {False: 1.2 * one, True: 4.4 * one}
    monkeypatch.setattr(rivals, "peak", lambda prepare, name, shape, setting, backward: peaks[backward])
    half = Setting(dtype=torch.float16)
    assert extra_memory("auto", (2, 16, 14, 14), half) == pytest.approx((5, 10))
    monkeypatch.setattr(rivals, "peak", lambda *_: 0)
    assert extra_memory("auto", (2, 16, 14, 14), half) == (0, 0)
