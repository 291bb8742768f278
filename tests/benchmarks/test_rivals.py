"""Those who take part compute what they claim to, start from the same weights, and are told apart bit by bit."""

from __future__ import annotations

import pytest
import torch

from benchmarks import rivals
from benchmarks.rivals import NAMES, DenseAttention, Setting, core, core_size, extra_memory, layer
from models.bra.attention import BiLevelRoutingAttention

HERE = Setting()
OURS_ON_CPU = [name for name in NAMES if name not in ("reference", "dense", "triton")]


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


def test_extra_memory_is_what_results_do_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    one = 2 * 49 * 4 * 16 * 2  # bytes of q: images, regions, tokens, channels, float16
    peaks = {False: 1.2 * one, True: 4.4 * one}
    monkeypatch.setattr(rivals, "peak", lambda prepare, name, shape, setting, backward: peaks[backward])
    half = Setting(dtype=torch.float16)
    assert extra_memory("auto", (2, 16, 14, 14), half) == pytest.approx((5, 10))
    monkeypatch.setattr(rivals, "peak", lambda *_: 0)
    assert extra_memory("auto", (2, 16, 14, 14), half) == (0, 0)
