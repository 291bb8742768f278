"""The fused kernels against the plain definition: on a GPU, and on the CPU under Triton's interpreter.

The interpreter must be asked for before Triton is imported, so one test runs this file again in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.routed_attention import Routes, routed_attention

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_under_the_interpreter starts")
SHAPES = {  # batch, regions, queries, keys, heads, width, routed
    "3x3": (2, 4, 9, 9, 2, 16, 2),
    "6x6": (1, 3, 36, 36, 1, 16, 2),
    "one token": (1, 2, 1, 1, 1, 16, 1),
    "all regions": (1, 3, 4, 4, 2, 8, 3),
    "downsampled keys": (1, 3, 16, 4, 2, 20, 2),
    "longer than a block": (1, 2, 70, 66, 1, 32, 2),
    "wide head": (1, 2, 7, 7, 1, 128, 1),
}


def make(batch, regions, queries, keys, heads, width, routed, dtype, device):
    """Strided q, k, v as a projection gives them, routes, and a gradient to send back."""
    generator = torch.Generator().manual_seed(3)

    def noise(tokens):
        packed = torch.randn(batch, regions, tokens, 3, heads, width, generator=generator).to(device, dtype)
        return packed[..., 1, :, :].requires_grad_()

    index = torch.rand(batch, regions, regions, generator=generator).argsort(-1)[..., :routed].to(device)
    q, k, v = noise(queries), noise(keys), noise(keys)
    return q, k, v, Routes(index), torch.randn(q.shape, generator=generator).to(device, dtype)


def check(shape, dtype, device, tolerance):
    """Output and all gradients, relative to the largest value of each."""
    q, k, v, routes, probe = make(*shape, dtype, device)
    out = routed_attention(q, k, v, routes, 0.2, "triton")
    found = [out, *torch.autograd.grad(out, (q, k, v), probe)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = routed_attention(*exact, routes, 0.2, "reference")
    expected = [expected, *torch.autograd.grad(expected, exact, probe.double())]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max() + 1e-6


@pytest.mark.skipif(INTERPRETED, reason="is the process itself")
def test_under_the_interpreter():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([*command, __file__], cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " skipped" not in run.stdout.splitlines()[-1]


@interpreted
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_interpreted_kernels(shape, dtype, tolerance):
    check(shape, dtype, "cpu", tolerance)


@interpreted
def test_interpreted_backward_is_bit_identical():
    runs = []
    for _ in range(2):
        q, k, v, routes, probe = make(1, 5, 4, 4, 1, 16, 3, torch.float32, "cpu")
        runs.append(torch.autograd.grad(routed_attention(q, k, v, routes, 0.2, "triton"), (q, k, v), probe))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@interpreted
def test_interpreted_inverted_lists():
    from models.routed_attention_triton import invert

    readers, bounds = invert(torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0]]))
    assert bounds.tolist() == [0, 3, 4, 8, 8]
    groups = [readers[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert groups == [[0, 2, 3], [1], [0, 1, 2, 3], []]


@interpreted
def test_interpreted_limits():
    with pytest.raises(ValueError, match="at most 128"):
        q, k, v, routes, _ = make(1, 2, 1, 1, 1, 130, 1, torch.float32, "cpu")
        routed_attention(q, k, v, routes, 0.2, "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (4, 49, 36, 36, 8, 64, 4)])
def test_kernels_on_the_gpu(shape, dtype, tolerance):
    check(shape, dtype, "cuda", tolerance)
