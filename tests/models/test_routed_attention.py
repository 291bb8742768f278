"""The functional core against loops written out by hand, against dense attention, and backend against backend."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import routed_attention as core
from models.routed_attention import Routes, route, routed_attention, select_regions


def make(batch=2, regions=5, queries=3, keys=4, heads=2, width=6, routed=2, dtype=torch.float64, seed=0):
    """Random q, k, v that ask for gradients, and routes without repetition."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tokens):
        shape = (batch, regions, tokens, heads, width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    index = torch.rand(batch, regions, regions, generator=generator).argsort(-1)[..., :routed]
    return noise(queries), noise(keys), noise(keys), Routes(index)


def by_hand(q, k, v, routes, scale):
    """One query at a time, in Python numbers where it matters."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b, r, t, h in torch.cartesian_prod(*map(torch.arange, q.shape[:4])).tolist():
        logits, values = [], []
        for number, region in enumerate(routes.index[b, r].tolist()):
            weight = 1.0 if routes.weight is None else routes.weight[b, r, number].item()
            for s in range(k.shape[2]):
                if routes.key_mask is None or routes.key_mask[b, region, s]:
                    logits.append(scale * weight * torch.dot(q[b, r, t, h], k[b, region, s, h]).item())
                    values.append(weight * v[b, region, s, h])
        top = max(logits)
        shares = [math.exp(x - top) for x in logits]
        out[b, r, t, h] = sum(share / sum(shares) * value for share, value in zip(shares, values, strict=True))
    return out


@pytest.mark.parametrize("backend", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("extra", ["plain", "weight", "mask"])
def test_matches_a_loop_over_queries(backend, extra):
    q, k, v, routes = (x.detach() if torch.is_tensor(x) else x for x in make())
    if extra == "weight":
        routes = routes._replace(weight=torch.rand(routes.index.shape, dtype=q.dtype))
    if extra == "mask":
        mask = torch.rand(2, 5, 4) > 0.5
        mask[..., 0] = True
        routes = routes._replace(key_mask=mask)
    torch.testing.assert_close(routed_attention(q, k, v, routes, 0.3, backend), by_hand(q, k, v, routes, 0.3))


def test_without_pictures():
    q, k, v, routes = make(batch=0)
    assert routed_attention(q, k, v, routes).shape == (0, 5, 3, 2, 6)


def test_all_regions_routed_is_dense_attention():
    q, k, v, _ = make(regions=4, queries=3, keys=3)
    routes = Routes(torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4))
    dense = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*dense).transpose(1, 2).unflatten(1, (4, 3))
    torch.testing.assert_close(routed_attention(q, k, v, routes), expected)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2), regions=st.integers(1, 6), queries=st.integers(1, 9), keys=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]), width=st.sampled_from([1, 4, 16]), data=st.data(),
)  # fmt: skip
def test_backends_agree_with_gradients(batch, regions, queries, keys, heads, width, data):
    routed = data.draw(st.integers(1, regions))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    q, k, v, routes = make(batch, regions, queries, keys, heads, width, routed, dtype)
    if data.draw(st.booleans()):
        weight = torch.rand(routes.index.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        routes = routes._replace(weight=weight)
    probe = torch.randn(q.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    results = []
    for backend in ("reference", "sdpa"):
        out = routed_attention(q, k, v, routes, 0.7, backend)
        results.append([out.detach(), *torch.autograd.grad((out * probe).sum(), (q, k, v))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_double(dtype):
    q, k, v, routes = make(queries=9, keys=9, width=16, dtype=dtype)
    exact = routed_attention(q.double(), k.double(), v.double(), routes, 0.25)
    for backend in ("reference", "sdpa"):
        out = routed_attention(q, k, v, routes, 0.25, backend)
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() < 0.03


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
def test_gradcheck_for_every_chunk_size(monkeypatch, chunk_bytes):
    monkeypatch.setattr(core, "CHUNK_BYTES", chunk_bytes)
    q, k, v, routes = make(batch=1, regions=3, queries=2, keys=2, heads=2, width=3)
    assert torch.autograd.gradcheck(lambda *x: routed_attention(*x, routes, 0.5), (q, k, v))


def test_two_backward_runs_are_bit_identical():
    q, k, v, routes = make(batch=2, regions=16, queries=9, keys=9, width=16, routed=4, dtype=torch.float32)
    runs = [torch.autograd.grad(routed_attention(q, k, v, routes).sin().sum(), (q, k, v)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_region_routed_to_nobody_gets_no_gradient():
    q, k, v, _ = make(batch=1, regions=3)
    routed_attention(q, k, v, Routes(torch.zeros(1, 3, 1, dtype=torch.long))).sum().backward()
    assert v.grad[0, 0].abs().min() > 0
    assert v.grad[0, 1:].abs().max() == 0


def test_strided_views_of_one_projection():
    packed = torch.randn(2, 5, 4, 3, 2, 6, dtype=torch.float64)
    q, k, v = packed.unbind(3)
    routes = make()[3]
    torch.testing.assert_close(
        routed_attention(q, k, v, routes), routed_attention(q.clone(), k.clone(), v.clone(), routes, None, "reference")
    )


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


def test_select_regions_repeats_rows():
    x = torch.arange(2 * 3 * 2).view(2, 3, 2)
    assert select_regions(x, torch.tensor([[[2, 2]], [[0, 1]]])).tolist() == [[[[4, 5], [4, 5]]], [[[6, 7], [8, 9]]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, r: (q[0], k, v, r), "dimensions"),
        (lambda q, k, v, r: (q, k[..., :3], v, r), "do not fit"),
        (lambda q, k, v, r: (q, k, v, Routes(r.index[:, :2])), "routes for"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        routed_attention(*change(*make()))


def test_unknown_backend_and_topk():
    with pytest.raises(ValueError, match="there are auto, reference, sdpa, triton"):
        routed_attention(*make(), backend="magic")
    with pytest.raises(ValueError, match="topk=0"):
        route(torch.ones(1, 2, 2), torch.ones(1, 2, 2), 0, 1.0)
