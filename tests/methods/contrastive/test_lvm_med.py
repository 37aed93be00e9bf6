"""Graph matching against SciPy's solvers and enumeration, its gradient against what Algorithm 1 says."""

import itertools
import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from scipy.optimize import linear_sum_assignment, quadratic_assignment
from support import annotations_unchecked, extreme, one_graph, pair, rejects, unhooked
from torch.utils._pytree import tree_leaves

from lossbook.methods.contrastive import (
    Edges,
    edge_affinity,
    graph_convolution,
    graph_matching,
    graph_matching_loss,
    local_affinity,
    matching_objective,
    nearest_rows,
)


def affinities(n=6, d=4, k=2, *, seed=0, dtype=torch.float64):
    """Cosines of vertices, and of edges between nearest neighbours, of random embeddings; leaves that ask for gradients."""
    x, y = (value.detach() for value in pair(n, d, seed=seed, dtype=dtype))
    vertices = F.cosine_similarity(x[:, None], y, dim=-1).requires_grad_()
    edges = edge_affinity(x, y, nearest_rows(x, neighbours=k), nearest_rows(y, neighbours=k))
    return vertices, edges._replace(affinity=edges.affinity.requires_grad_())


def dense(edges: Edges):
    """The quadratic term as an array over (i, a, j, b), by loops."""
    n, k = edges.first.shape
    array = torch.zeros(n, n, n, n, dtype=edges.affinity.dtype)
    for i, p, a, q in itertools.product(range(n), range(k), range(n), range(k)):
        array[i, a, edges.first[i, p], edges.second[a, q]] = edges.affinity[i, p, a, q]
    return array


def value(vertices, array, matching):
    """The objective as the paper writes it, over an assignment matrix."""
    v = F.one_hot(torch.as_tensor(matching), len(vertices)).to(vertices.dtype)
    return (vertices * v).sum() + torch.einsum("iajb,ia,jb->", array, v, v)


def enumerate_all(vertices, array):
    permutations = list(itertools.permutations(range(len(vertices))))
    values = torch.stack([value(vertices, array, each) for each in permutations])
    return torch.tensor(permutations[values.argmax()]), values.max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_without_edges_it_is_scipys_linear_assignment(n, seed):
    c = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert graph_matching(c).tolist() == linear_sum_assignment(-c)[1].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_objective_is_the_papers_sum(seed):
    vertices, edges = (affinities(seed=seed)[0].detach(), affinities(seed=seed)[1])
    matching = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    ours = matching_objective(vertices, edges, matching)
    torch.testing.assert_close(ours, value(vertices, dense(edges), matching), rtol=1e-12, atol=1e-12)


def test_objective_with_equal_affinities_is_scipys_quadratic_assignment():
    _, edges = affinities(7)
    edges = edges._replace(affinity=torch.ones_like(edges.affinity))
    first, second = (torch.zeros(7, 7, dtype=torch.float64).scatter_(1, each, 1.0) for each in edges[1:])
    result = quadratic_assignment(first.numpy(), second.numpy(), options={"maximize": True})
    ours = matching_objective(torch.zeros(7, 7, dtype=torch.float64), edges, torch.tensor(result.col_ind))
    assert ours.item() == pytest.approx(result.fun, abs=1e-12)


def test_no_swap_improves_and_many_solutions_are_the_best():
    best = 0
    for seed in range(12):
        vertices, edges = affinities(5, seed=seed)
        array, vertices = dense(edges).detach(), vertices.detach()
        found = graph_matching(vertices, edges)
        assert sorted(found.tolist()) == list(range(5))
        reached = value(vertices, array, found)
        assert reached >= value(vertices, array, graph_matching(vertices)) - 1e-12
        for r, s in itertools.combinations(range(5), 2):
            other = found.clone()
            other[[r, s]] = found[[s, r]]
            assert value(vertices, array, other) <= reached + 1e-9
        best += bool(reached >= enumerate_all(vertices, array)[1] - 1e-9)
    assert best >= 4  # of 12, each with a chance of about 0.78


def test_renaming_the_second_graph_renames_the_matching():
    vertices, edges = affinities(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    renamed = Edges(edges.affinity[:, :, order], edges.first, place[edges.second[order]])
    matching = graph_matching(vertices[:, order], renamed)
    torch.testing.assert_close(order[matching], graph_matching(vertices, edges))


@pytest.mark.parametrize("strength", [0.05, 0.5, 80.0])
@pytest.mark.parametrize("with_edges", [False, True], ids=["linear", "quadratic"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_value_and_gradient_are_those_of_algorithm_1(strength, with_edges, reduction):
    n = 6
    generator = torch.Generator().manual_seed(3)
    vertices, edges = affinities(n)
    gumbel = [
        -torch.empty(s, dtype=torch.float64).exponential_(generator=generator).log() for s in ((n, n), (n, 2, n, 2))
    ]
    used = edges if with_edges else None
    losses = graph_matching_loss(
        vertices, used, strength=strength, noise=0.3, gumbel=tuple(gumbel), reduction=reduction
    )
    noisy = vertices.detach() + 0.3 * gumbel[0]
    noisy_edges = edges._replace(affinity=edges.affinity.detach() + 0.3 * gumbel[1]) if with_edges else None
    identity = torch.eye(n, dtype=torch.float64)
    v, w = (
        F.one_hot(graph_matching(c, noisy_edges), n).double() for c in (noisy, noisy - strength * (1 - 2 * identity))
    )
    hamming = (v * (1 - identity) + identity * (1 - v)).sum(1)
    factor = 1 / n if reduction == "mean" else 1.0
    expected = hamming if reduction == "none" else factor * hamming.sum()
    torch.testing.assert_close(losses, expected)
    gradients = torch.autograd.grad(losses.sum(), [vertices, edges.affinity] if with_edges else [vertices])
    torch.testing.assert_close(gradients[0], factor * (v - w) / strength)
    if with_edges:
        products = torch.einsum("ia,jb->iajb", v, v) - torch.einsum("ia,jb->iajb", w, w)
        for i, p, a, q in itertools.product(range(n), range(2), range(n), range(2)):
            expected = factor * products[i, a, edges.first[i, p], edges.second[a, q]] / strength
            assert gradients[1][i, p, a, q].item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_large_strength_gives_the_structured_perceptron():
    vertices, _ = affinities(8)
    loss = graph_matching_loss(vertices, strength=10.0, noise=0.0)
    (gradient,) = torch.autograd.grad(loss, vertices)
    v = F.one_hot(torch.tensor(linear_sum_assignment(-vertices.detach())[1]), 8).double()
    torch.testing.assert_close(10 * gradient, v - torch.eye(8, dtype=torch.float64))


def test_the_gradient_vanishes_where_the_identity_wins():
    vertices = (torch.eye(5, dtype=torch.float64) + 0.1).requires_grad_()
    loss = graph_matching_loss(vertices, noise=0.0)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, vertices)[0].any()


def test_noise_comes_from_the_generator_and_matters():
    vertices, edges = affinities(8)
    draws = [
        graph_matching_loss(vertices, edges, generator=torch.Generator().manual_seed(s), reduction="none").detach()
        for s in (0, 0, 1, 2, 3)
    ]
    assert torch.equal(draws[0], draws[1])
    assert any(not torch.equal(draws[0], other) for other in draws[2:])


def test_nearest_rows_are_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    x = pair(20, 3)[0].detach()
    expected = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(return_distance=False)
    assert nearest_rows(x, neighbours=4).tolist() == expected.tolist()
    assert nearest_rows(1e-150 * x, neighbours=4).tolist() == expected.tolist()


def test_the_graph_of_many_rows_holds_no_array_of_all_differences():
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max([largest, *(each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor))])
            return result

    with Sizes():
        nearest_rows(torch.randn(200, 64))
    assert largest == 200 * 200


def test_near_rows_are_told_apart_far_from_the_origin():
    # Differences have digits where products of the rows have none.
    x = torch.tensor([[0.0], [1.0], [3.0], [3.5]]) + 1e4
    assert nearest_rows(x, neighbours=1).tolist() == [[1], [0], [3], [2]]


def test_a_row_that_is_not_a_number_is_nobodys_neighbour():
    x = torch.tensor([[0.0], [1.0], [math.nan], [3.0]])
    found = nearest_rows(x, neighbours=2)
    assert found[[0, 1, 3]].tolist() == [[1, 3], [0, 3], [1, 0]] and 2 not in found[2]


@pytest.mark.parametrize("which", range(4))
def test_local_affinity_of_what_is_not_a_number_is_none(which):
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 5, size, generator=draw) for size in (4, 4, 2, 2)]
    assert local_affinity(*parts).isfinite().all()
    parts[which][1, 2, 0] = math.nan
    assert local_affinity(*parts).isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_solvers_refuse_what_is_not_finite(bad):
    vertices, edges = affinities()
    spoilt = vertices.detach().clone()
    spoilt[1, 2] = bad
    rejects(graph_matching, spoilt, names="vertices")
    rejects(graph_matching, spoilt, edges, names="vertices")
    rejects(graph_matching_loss, spoilt, noise=0.0, names="vertices")
    affinity = edges.affinity.detach().clone()
    affinity[0, 1, 2, 0] = bad
    rejects(graph_matching, vertices, edges._replace(affinity=affinity), names="edges")
    rejects(graph_matching_loss, vertices, edges._replace(affinity=affinity), noise=0.0, names="edges")


def test_nearest_rows_in_blocks_are_those_at_once(monkeypatch):
    x = pair(23, 3)[0].detach()
    expected = nearest_rows(x, neighbours=4)
    for most in (1, 23 * 5, 23 * 22):  # one row at a time, five, all but one
        monkeypatch.setattr(sys.modules[nearest_rows.__module__], "_DISTANCES", most)
        assert torch.equal(nearest_rows(x, neighbours=4), expected)
        mapped = torch.func.vmap(lambda x: nearest_rows(x, neighbours=4))(torch.stack([x, x.flip(0)]))
        assert torch.equal(mapped[0], expected) and torch.equal(mapped[1], 22 - expected.flip(0))


def test_equal_rows_are_nearest_however_far_from_zero():
    """A distance from squares and inner products would be rounding error there."""
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    far = 1000 + torch.cat([x, x])
    assert nearest_rows(far, neighbours=1)[:, 0].tolist() == [*range(30, 60), *range(30)]


def test_graph_convolution_is_the_normalised_matrix_with_loops():
    x = pair(7, 3)[0]
    index = nearest_rows(x, neighbours=2)
    matrix = torch.zeros(7, 7, dtype=torch.float64).scatter_(1, index, 1.0) + torch.eye(7)
    scale = matrix.sum(1) ** -0.5
    torch.testing.assert_close(graph_convolution(x, index), (scale[:, None] * matrix * scale) @ x)


def test_edge_affinities_are_cosines_of_differences():
    x, y = pair(6, 4)
    edges = edge_affinity(x, y, nearest_rows(x, neighbours=2), nearest_rows(y, neighbours=2))
    for i, p, a, q in itertools.product(range(6), range(2), range(6), range(2)):
        expected = F.cosine_similarity(x[i] - x[edges.first[i, p]], y[a] - y[edges.second[a, q]], dim=0)
        torch.testing.assert_close(edges.affinity[i, p, a, q], expected)
    assert torch.autograd.gradcheck(lambda x, y: edge_affinity(x, y, *edges[1:]).affinity, (x, y))


def test_local_affinity_by_loops():
    generator = torch.Generator().manual_seed(0)
    q, r = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    here, there = torch.rand(2, 3, 4, 2, generator=generator, dtype=torch.float64)

    def one_way(a, b, at, bt):
        total = 0
        for distances in (torch.cdist(at, bt), torch.cdist(a, b)):
            total = total + F.cosine_similarity(a, b[distances.argmin(1)], dim=1).mean()
        return total

    ours = local_affinity(q, r, here, there)
    for i, a in itertools.product(range(3), range(3)):
        expected = one_way(q[i], r[a], here[i], there[a]) + one_way(r[a], q[i], there[a], here[i])
        torch.testing.assert_close(ours[i, a], expected)


def test_local_affinity_of_a_picture_with_itself_is_four():
    q = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here = torch.rand(4, 2, dtype=torch.float64).expand(3, 4, 2)
    ours = local_affinity(q, q, here, here)
    torch.testing.assert_close(ours.diagonal(), torch.full((3,), 4.0, dtype=torch.float64))
    assert ours.abs().max() <= 4 + 1e-12


def whole(x, y, k=2, **options):
    cells = x.reshape(len(x), 1, -1), y.reshape(len(y), 1, -1)
    place = torch.zeros(len(x), 1, 2, dtype=x.dtype)
    local = local_affinity(*cells, place, place)
    index = [nearest_rows(each, neighbours=k) for each in (x, y)]
    u, w = (graph_convolution(each, i) for each, i in zip((x, y), index, strict=True))
    return graph_matching_loss(local, edge_affinity(u, w, *index), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", ["random", "equal", "opposite", "all the same", "duplicates", "zero row", "huge", "tiny"]
)
def test_extreme_embeddings_stay_finite(case, dtype):
    x, y = extreme(case, dtype)
    loss = whole(x, y, noise=0.1, generator=torch.Generator().manual_seed(0))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite() and 0 <= loss <= 2 * len(x)
    gradients = torch.autograd.grad(loss, (x, y))
    assert all(g.dtype == dtype for g in gradients)
    if case != "tiny" or dtype == torch.float64:  # the gradient of a cosine grows as the scale shrinks
        assert all(g.isfinite().all() for g in gradients)


def test_one_picture_is_always_matched():
    c = torch.zeros(1, 1, requires_grad=True)
    loss = graph_matching_loss(c, generator=torch.Generator().manual_seed(0))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, c)[0].item() == 0


def test_vmap_and_grad():
    batches = torch.randn(3, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def one(pair):
        return whole(pair[0], pair[1], noise=0.0, strength=0.5)

    for function in (one, torch.func.grad(one)):
        single = torch.stack([function(each) for each in batches])
        torch.testing.assert_close(torch.vmap(function)(batches), single, rtol=1e-12, atol=1e-12)


def test_vmap_over_the_strength_alone():
    vertices, edges = (affinities()[0].detach(), affinities()[1])
    edges = edges._replace(affinity=edges.affinity.detach())
    strengths = torch.tensor([0.05, 80.0], dtype=torch.float64)

    def gradient(strength):
        return torch.func.grad(lambda c: graph_matching_loss(c, edges, strength=strength, noise=0.0))(vertices)

    torch.testing.assert_close(torch.vmap(gradient)(strengths), torch.stack([gradient(s) for s in strengths]))


def test_compile_without_graph_breaks():
    module = unhooked("lossbook.methods.contrastive.lvm_med")
    vertices, edges = affinities()

    def loss(vertices, affinity):
        return module.graph_matching_loss(vertices, module.Edges(affinity, *edges[1:]), noise=0.0)

    compiled = one_graph(loss)(vertices, edges.affinity)
    ours = graph_matching_loss(vertices, edges, noise=0.0)
    torch.testing.assert_close(compiled, ours)
    for one, other in zip(
        *(torch.autograd.grad(each, (vertices, edges.affinity)) for each in (compiled, ours)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_second_import_leaves_the_operators_of_the_first():
    # PyTorch would free them, and a later call would read what is no longer there.
    again, ours = unhooked(graph_matching.__module__), sys.modules[graph_matching.__module__]
    assert again is not ours and again._assignment is ours._assignment and again._two_swap is ours._two_swap


def test_bad_input_is_refused():
    vertices, edges = affinities()
    assert "(6, 5)" in rejects(graph_matching, vertices[:, :5], names="vertices")
    rejects(graph_matching, torch.ones(2, 2, dtype=torch.int64), names="vertices")
    rejects(graph_matching_loss, vertices, strength=0.0, names="strength")
    rejects(graph_matching_loss, vertices, noise=-1.0, names="noise")
    rejects(graph_matching_loss, vertices, reduction="max", names="reduction")
    rejects(graph_matching_loss, vertices, gumbel=(torch.zeros(3, 3), None), names=r"gumbel\[0\]")
    rejects(graph_matching_loss, vertices, edges, gumbel=(torch.zeros(6, 6), None), names=r"gumbel\[1\]")
    rejects(graph_matching, vertices, edges._replace(first=edges.first.double()), names=r"edges\.first")
    rejects(graph_matching, vertices, edges._replace(second=edges.second[:, :1]), names=r"edges\.second")
    rejects(graph_matching, vertices, edges._replace(affinity=edges.affinity[:, :1]), names=r"edges\.affinity")
    x = torch.ones(4, 3)
    assert "from 1 to 3" in rejects(nearest_rows, x, neighbours=4, names="neighbours")
    rejects(graph_convolution, x, torch.ones(3, 2, dtype=torch.int64), names="neighbours")
    rejects(
        edge_affinity,
        x,
        x,
        torch.ones(4, 2, dtype=torch.int64),
        torch.ones(4, 1, dtype=torch.int64),
        names="second_n.*",
    )
    rejects(local_affinity, x, x, x, x, names="first")
    cells = torch.ones(4, 2, 3)
    rejects(local_affinity, cells, cells[:3], cells, cells, names="second")
    rejects(local_affinity, cells, cells, cells, cells[:, :1], names="second_positions")
    with annotations_unchecked(), pytest.raises(ValueError, match="keys"):
        edge_affinity(x, x[:3], torch.ones(4, 2, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int64))


def test_gumbel_noise_has_the_standard_moments():
    from lossbook.methods.contrastive.lvm_med import _gumbel

    draws = _gumbel(torch.empty(100_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert draws.mean().item() == pytest.approx(0.5772156649, abs=0.02)
    assert draws.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


NEIGHBOURS = nearest_rows(pair()[0], neighbours=2)
EDGES = edge_affinity(*pair(), NEIGHBOURS, NEIGHBOURS)
test_on_any_device = on_any_device(
    partial(edge_affinity, *pair(), NEIGHBOURS, NEIGHBOURS),
    partial(graph_convolution, pair()[0], NEIGHBOURS),
    partial(graph_matching, torch.eye(8)),
    partial(graph_matching, torch.eye(8), EDGES),
    partial(graph_matching_loss, torch.eye(8), EDGES, strength=torch.tensor(80.0)),
    partial(graph_matching_loss, torch.eye(8), noise=0.0, reduction="none"),
    partial(local_affinity, *torch.randn(4, 3, 5, 2)),
    partial(matching_objective, torch.eye(8), EDGES, torch.arange(8)),
    partial(nearest_rows, pair()[0]),
)
