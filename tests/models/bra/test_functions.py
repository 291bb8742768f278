"""The functional core against loops written out by hand, against dense attention, and backend against backend."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bra import functions as core
from models.bra.functions import Routes, route, routed_attention


def make(batch=2, regions=5, queries=3, keys=4, heads=2, width=6, routed=2, dtype=torch.float64, seed=0):
    """Random q, k, v that ask for gradients, and routes without repetition."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tokens):
        shape = (batch, regions, tokens, heads, width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    index = torch.rand(batch, regions, regions, generator=generator).argsort(-1)[..., :routed]
    return noise(queries), noise(keys), noise(keys), Routes(index)


CPU_BACKENDS = ("reference", "auto")  # on a CPU "export" is the first, "sdpa" the second
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
KINDS = ("plain", "weight", "mask", "both")
TOKENS = [1, 9, 36, 49, 64, 11 * 12]


def extended(routes, kind, keys, dtype=torch.float64):
    """Routes with weights, with keys that are left out (never the first), or with both."""
    generator = torch.Generator().manual_seed(5)
    if kind in ("weight", "both"):
        weight = torch.rand(routes.index.shape, generator=generator, dtype=torch.float64).to(dtype)
        routes = routes._replace(weight=weight)
    if kind in ("mask", "both"):
        mask = torch.rand(*routes.index.shape[:2], keys, generator=generator) > 0.5
        mask[..., 0] = True
        routes = routes._replace(key_mask=mask)
    return routes


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_without_images(backend):
    q, k, v, routes = make(batch=0)
    out = routed_attention(q, k, v, routes, backend=backend)
    out.sum().backward()
    assert out.shape == (0, 5, 3, 2, 6) and k.grad.shape == k.shape


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_all_regions_routed_is_dense_attention(backend):
    q, k, v, _ = make(regions=4, queries=3, keys=3)
    routes = Routes(torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4))
    dense = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*dense).transpose(1, 2).unflatten(1, (4, 3))
    torch.testing.assert_close(routed_attention(q, k, v, routes, backend=backend), expected)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2), regions=st.integers(1, 6), queries=st.sampled_from(TOKENS), keys=st.sampled_from(TOKENS),
    heads=st.sampled_from([1, 2, 3]), width=st.sampled_from([1, 16, 17, 20, 32, 48, 64, 100, 128]),
    value_width=st.sampled_from([None, 5, 32]), dtype=st.sampled_from(list(TOLERANCE)), kind=st.sampled_from(KINDS),
    data=st.data(),
)  # fmt: skip
def test_backends_agree_with_gradients(batch, regions, queries, keys, heads, width, value_width, dtype, kind, data):
    """Relative to the length of each result, or, where most of it cancels out, to a tenth of what is summed up: keys'
    and values' gradients are sums over the queries of a region."""
    routed = data.draw(st.integers(1, regions))
    q, k, v, routes = make(batch, regions, queries, keys, heads, width, routed, dtype)
    if value_width is not None:
        v = make(batch, regions, queries, keys, heads, value_width, routed, dtype, seed=1)[2]
    if data.draw(st.booleans()):  # by hand, a region may be read twice
        routes = routes._replace(index=routes.index[..., :1].repeat(1, 1, routed))
    routes = extended(routes, kind, keys, dtype)
    results = []
    for backend in CPU_BACKENDS:
        out = routed_attention(q, k, v, routes, width**-0.5, backend)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        results.append([out.detach(), *torch.autograd.grad(out, (q, k, v), probe)])
    for found in results[1:]:
        for a, b, summed in zip(found, results[0], (1, 1, queries, queries), strict=True):
            assert a.dtype == dtype and a.shape == b.shape
            least = 0.1 * (b.numel() * summed) ** 0.5
            assert (a.double() - b.double()).norm() <= TOLERANCE[dtype] * max(b.double().norm(), least)


ORDERS = st.one_of(st.permutations((2, 3, 4)).map(lambda last: (0, 1, *last)), st.permutations(range(5)).map(tuple))


@settings(max_examples=25, deadline=None)
@given(orders=st.tuples(ORDERS, ORDERS, ORDERS, ORDERS), backend=st.sampled_from(CPU_BACKENDS))
def test_how_numbers_lie_in_memory_is_of_no_account(orders, backend):
    """q, k, v and the gradient that comes back, each with its dimensions in any order in memory."""
    q, k, v, routes = make(batch=2, regions=3, queries=9, keys=6, width=16, dtype=torch.float32)
    plain = [q, k, v, torch.randn(q.shape)]
    turned = [
        x.permute(o).contiguous().permute([o.index(i) for i in range(5)]) for x, o in zip(plain, orders, strict=True)
    ]
    *given, probe = turned
    expected = run_backwards(*plain[:3], routes, plain[3], "reference")
    for a, b in zip(run_backwards(*given, routes, probe, backend), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def run_backwards(q, k, v, routes, probe, backend):
    """The output and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = routed_attention(*leaves, routes, 0.25, backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, probe)]


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
def test_gradcheck_for_every_chunk_size(monkeypatch, chunk_bytes):
    monkeypatch.setattr(core, "CHUNK_BYTES", chunk_bytes)
    q, k, v, routes = make(batch=1, regions=3, queries=2, keys=2, heads=2, width=3)
    assert torch.autograd.gradcheck(lambda *x: routed_attention(*x, routes, 0.5), (q, k, v))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_every_backend(kind, backend):
    """Routing weights included, where there are any."""
    q, k, v, routes = make(batch=1, regions=3, queries=2, keys=3, heads=1, width=2)
    routes = extended(routes, kind, keys=3)
    weights = () if routes.weight is None else (routes.weight.requires_grad_(),)

    def run(q, k, v, weight=None):
        return routed_attention(q, k, v, routes._replace(weight=weight), 0.5, backend)

    assert torch.autograd.gradcheck(run, (q, k, v, *weights))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_two_backward_runs_are_bit_identical(backend):
    q, k, v, routes = make(batch=2, regions=16, queries=9, keys=9, width=16, routed=4, dtype=torch.float32)
    runs = [torch.autograd.grad(routed_attention(q, k, v, routes, 0.2, backend).sin().sum(), (q, k, v)) for _ in "12"]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_route_ranks_by_affinity():
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    key = torch.tensor([[[3.0, 1.0], [2.0, 5.0], [-1.0, 0.0]]])  # affinities: 3 2 -1 / 1 5 0 / 4 7 -1
    routes = route(query, key, topk=2, scale=1.0)
    assert routes.index.tolist() == [[[0, 1], [1, 0], [1, 0]]]
    assert routes.weight[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_route_clamps_topk_and_puts_forbidden_regions_last():
    query, key = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    routes = route(query, key, topk=10, scale=1.0, allowed=torch.tensor([[True, False, True]]))
    assert routes.index.shape == (2, 3, 3)
    assert (routes.index[..., -1] == 1).all()
    assert (routes.weight[..., -1] == 0).all()


def test_route_compares_half_precision_in_single():
    query = torch.ones(1, 2, 1, dtype=torch.bfloat16)
    key = torch.tensor([[[256.0], [257.0 - 1 / 128]]]).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert route(query, key, 1, 1 / 3).weight.dtype == torch.float32


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q, k, v, r: (q[0], k, v, r), "dimensions"),
        (lambda q, k, v, r: (q, k[..., :3], v, r), "do not fit"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index[:, :2])), "routes for"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index[..., :0])), "at least one"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index, torch.ones(2, 5, 1))), "weight"),
        (lambda q, k, v, r: (q, k, v, r._replace(key_mask=k[..., 0, 0] > 9)), "key_mask"),
        (lambda q, k, v, r: (q, k, v, r._replace(key_mask=q[..., 0, 0] > 0)), "key_mask"),
        (lambda q, k, v, r: (q, k, v, r._replace(key_mask=k[..., 0, 0])), "key_mask.*torch.bool"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index[0])), "routes for"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index.double())), "float64.*int64"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index + 3)), "to 7: give numbers of regions from 0 to 4"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index - 1)), "from -1 to"),
    ],
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_shapes_that_do_not_fit(change, message, backend):
    with pytest.raises(ValueError, match=message):
        routed_attention(*change(*make()), backend=backend)


def test_one_key_is_enough_for_all_who_look_there():
    """Keys of one region may all be left out, where everybody is routed to another one, too."""
    q, k, v, routes = make(routed=1)
    routes = Routes(torch.cat([routes.index, torch.zeros_like(routes.index)], -1), None, torch.zeros(2, 5, 4).bool())
    routes.key_mask[:, 0, 1] = True
    torch.testing.assert_close(routed_attention(q, k, v, routes), v[:, :1, 1:2].expand_as(q))
    with pytest.raises(ValueError, match="key_mask leaves a region without any key"):
        routed_attention(q, k, v, routes._replace(index=routes.index[..., :1] * 0 + 1))


@pytest.mark.parametrize("change", [
    lambda q, k, a: (q[0], k, a), lambda q, k, a: (q, k[:, :2], a), lambda q, k, a: (q, k, a[0]),
    lambda q, k, a: (q, k, a[:, :2]), lambda q, k, a: (q, k, a.float()), lambda q, k, a: (q, k, a.repeat(3, 1)),
])  # fmt: skip
def test_means_that_do_not_fit(change):
    means = change(torch.ones(2, 3, 8), torch.ones(2, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="give"):
        route(*means[:2], 1, 1.0, means[2])


def test_images_can_be_mapped_over():
    """No number is looked at where there is none to see."""
    q, k, v, routes = (x.detach() if torch.is_tensor(x) else x for x in make())

    def one(q, k, v, index):
        return routed_attention(q[None], k[None], v[None], Routes(index[None]), 0.3, "reference")[0]

    torch.testing.assert_close(
        torch.vmap(one)(q, k, v, routes.index), routed_attention(q, k, v, routes, 0.3, "reference")
    )


def test_unknown_backend_and_topk():
    with pytest.raises(ValueError, match="one of auto, reference, sdpa, triton, export"):
        routed_attention(*make(), backend="magic")
    with pytest.raises(ValueError, match="topk=0"):
        route(torch.ones(1, 2, 2), torch.ones(1, 2, 2), 0, 1.0)
    with pytest.raises(ValueError, match="topk=1.0.*write 1"):
        route(torch.ones(1, 2, 2), torch.ones(1, 2, 2), 1.0, 1.0)


@pytest.mark.parametrize(
    "kind, value_width, message",
    [("weight", 6, "no routing weights"), ("mask", 6, "no mask"), ("plain", 4, "one head width"), ("plain", 6, "CUDA")],
)
def test_what_the_kernels_do_not_take(monkeypatch, kind, value_width, message):
    """Says so and names a backend that does."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v, routes = make()
    with pytest.raises(ValueError, match=f"'triton' .*{message}.*use 'sdpa' or 'auto'"):
        routed_attention(q, k, v[..., :value_width], extended(routes, kind, keys=4), backend="triton")
