"""The fused kernels against the plain definition: on a GPU, and on the CPU under Triton's interpreter.

The interpreter must be asked for before Triton is imported, so one test runs this file again in a process of its own.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from models.bra.attention import BiLevelRoutingAttention
from models.bra.functions import Routes, routed_attention

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
    "7x7, odd width": (1, 3, 49, 49, 1, 17, 2),
    "11x12": (1, 2, 132, 132, 1, 48, 2),
    "wide head": (1, 2, 7, 7, 1, 128, 1),
}
LARGE = (4, 49, 36, 36, 8, 64, 4)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=INTERPRETED)
def count_loops_with_one_number(monkeypatch):
    """Let the interpreter of Triton 3.6 (of torch 2.11) run beside NumPy 2.4, which makes no int of an array of one."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def on_gpu(test):
    """Marks a test as one for `pytest -m gpu`."""
    return pytest.mark.gpu(needs_gpu(test))


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
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 4e-3)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_interpreted_kernels(shape, dtype, tolerance):
    check(shape, dtype, "cpu", tolerance)


def check_repeats(shape, dtype, device):
    """Forward and backward give the same bits each time."""
    runs = []
    for _ in range(3):
        q, k, v, routes, probe = make(*shape, dtype, device)
        out = routed_attention(q, k, v, routes, 0.2, "triton")
        runs.append([out, *torch.autograd.grad(out, (q, k, v), probe)])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@interpreted
def test_interpreted_backward_is_bit_identical():
    check_repeats((1, 5, 4, 4, 1, 16, 3), torch.float32, "cpu")


@interpreted
def test_interpreted_regions_read_twice_or_never():
    q, k, v, _, probe = make(2, 3, 5, 6, 1, 16, 1, torch.float32, "cpu")
    routes = Routes(torch.tensor([[[2, 2], [2, 0], [0, 0]], [[1, 1], [1, 1], [1, 1]]]))
    results = []
    for backend in ("triton", "reference"):
        out = routed_attention(q, k, v, routes, 0.2, backend)
        results.append([out.detach(), *torch.autograd.grad(out, (q, k, v), probe)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@interpreted
@pytest.mark.parametrize("order", [(0, 1, 2, 4, 3), (0, 1, 4, 3, 2), (4, 3, 2, 1, 0), (0, 1, 3, 2, 4)], ids=str)
def test_interpreted_kernels_take_any_layout(order):
    q, k, v, routes, probe = make(1, 2, 5, 6, 2, 16, 2, torch.float32, "cpu")
    back = [order.index(i) for i in range(5)]
    turned = [x.detach().permute(order).contiguous().permute(back) for x in (q, k, v, probe)]
    leaves = [x.requires_grad_() for x in turned[:3]]
    out = routed_attention(*leaves, routes, 0.2, "triton")
    expected = routed_attention(q, k, v, routes, 0.2, "reference")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out, leaves, turned[3])
    for a, b in zip(found, torch.autograd.grad(expected, (q, k, v), probe), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@interpreted
@pytest.mark.parametrize("autocast", [False, True])
def test_interpreted_kernels_inside_the_layer(autocast):
    torch.manual_seed(0)
    layer, x = BiLevelRoutingAttention(16, n_win=2, num_heads=1, topk=4), torch.randn(1, 16, 4, 5, requires_grad=True)
    results = []
    for layer.backend in ("triton", "reference"):
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            out = layer(x)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() <= (2e-2 if autocast else 1e-5) * expected.norm() + 1e-4


@interpreted
def test_interpreted_inverted_lists():
    from models.bra.triton_kernels import invert

    readers, bounds = invert(torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0]]))
    assert bounds.tolist() == [0, 3, 4, 8, 8]
    groups = [readers[a:b].tolist() for a, b in pairwise(bounds.tolist())]
    assert groups == [[0, 2, 3], [1], [0, 1, 2, 3], []]


@interpreted
def test_interpreted_limits():
    q, k, v, routes, _ = make(1, 2, 1, 1, 1, 130, 1, torch.float32, "cpu")
    with pytest.raises(ValueError, match="at most 128"):
        routed_attention(q, k, v, routes, 0.2, "triton")


# ---- on a GPU
@on_gpu
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("shape", [*SHAPES.values(), LARGE, (2, 9, 100, 25, 3, 80, 9), (1, 16, 256, 64, 2, 112, 5)])
def test_kernels_on_the_gpu(shape, dtype, tolerance):
    check(shape, dtype, "cuda", tolerance)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES["7x7, odd width"], LARGE], ids=["small", "large"])
def test_kernels_on_the_gpu_are_bit_identical(shape, dtype):
    check_repeats(shape, dtype, "cuda")


@on_gpu
def test_kernels_run_beside_each_other_and_in_a_graph():
    """On a stream of its own, captured, and replayed with other numbers in the same memory."""
    q, k, v, routes, probe = make(*LARGE, torch.float16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(routed_attention(q, k, v, routes, 0.2, "triton"), (q, k, v), probe)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = routed_attention(q, k, v, routes, 0.2, "triton")
        grads = torch.autograd.grad(out, (q, k, v), probe)
    with torch.no_grad():
        for x in (q, k, v, probe):
            x.copy_(x.flip(0))
        routes.index.copy_(routes.index.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    fresh = routed_attention(q, k, v, routes, 0.2, "triton")
    expected = [fresh, *torch.autograd.grad(fresh, (q, k, v), probe)]
    assert all(torch.equal(a, b) for a, b in zip((out, *grads), expected, strict=True))


def test_kernels_start_on_the_gpu_that_has_the_tensors(monkeypatch):
    """Kernels that note where they were started, as there is no second GPU."""
    from models.bra import triton_kernels

    current, started = [None], []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *given, **blocks: started.append(current[-1])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"):
        monkeypatch.setattr(triton_kernels, name, Kernel())
    q, k, v, routes, probe = make(*SHAPES["3x3"], torch.float32, "cpu")
    q, k, v = (x.detach().flatten(0, 1).requires_grad_() for x in (q, k, v))
    triton_kernels.FusedAttention.apply(q, k, v, routes.index.flatten(0, 1), 1.0).backward(probe.flatten(0, 1))
    assert len(started) == 3 and all(tensor.data_ptr() == q.data_ptr() for tensor in started)


@on_gpu
def test_little_memory_is_needed():
    """At most a tenth of q, k, v and the output, beside the output and beside the three gradients."""
    q, k, v, routes, probe = make(*LARGE, torch.float16, "cuda")
    q, k, v = (x.detach().contiguous().requires_grad_() for x in (q, k, v))
    size = q.numel() * q.element_size()

    def measured(run):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before

    for _ in range(2):  # the first compiles
        out, forward = measured(lambda: routed_attention(q, k, v, routes, 0.2, "triton"))
        _, backward = measured(lambda out=out: torch.autograd.grad(out, (q, k, v), probe))
    assert max(forward - size, backward - 3 * size) <= 0.1 * 4 * size
