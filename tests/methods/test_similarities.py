"""Unit vectors and gradients by similarities, against PyTorch."""

from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import diagonal_cross_entropy, info_nce
from lossbook.methods.similarities import by_rows, cosine_similarity, inner_products, pair_gradients, unit


@given(n=st.integers(1, 6), d=st.integers(1, 6), exponent=st.floats(-30, 30), seed=st.integers(0, 99))
def test_directions_do_not_depend_on_scale(n, d, exponent, seed):
    (x, _) = pair(n, d, seed=seed)
    scaled = unit((10.0**exponent) * x)
    torch.testing.assert_close(scaled, F.normalize(x), rtol=1e-12, atol=1e-12)


def test_pair_gradients_are_those_of_cross_entropy():
    similarities = pair(6, 6)[0].detach()
    ours = pair_gradients(lambda s: diagonal_cross_entropy(s / 0.2, reduction="sum"), similarities)
    theirs = (torch.softmax(similarities / 0.2, 1) - torch.eye(6)) / 0.2
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_is_left_and_integers_are_refused():
    (x, y) = (each.to(torch.float16) for each in pair(scale=300.0))
    torch.testing.assert_close(cosine_similarity(x, y), cosine_similarity(x.float(), y.float()))
    assert unit(x).dtype == inner_products(x, x.bfloat16()).dtype == torch.float32
    assert inner_products(x, y.double()).dtype == cosine_similarity(x, y.double()).dtype == torch.float64
    for function in (cosine_similarity, inner_products):
        rejects(function, x, torch.ones(8, 5, dtype=torch.int64), names="keys")
        rejects(function, x, y.to("meta"), names="keys")
    rejects(unit, torch.ones(8, 5, dtype=torch.int64), names="embeddings")


def nodes(n: int, rows: int) -> int:
    """Nodes of the graph that torch.compile makes of a loss of `n` queries, all graphs inside included."""
    found = []

    def count(graph, inputs):
        found.append(sum(len(part.graph.nodes) for part in graph.modules() if hasattr(part, "graph")))
        return graph

    torch._dynamo.reset()
    with without_hooks():
        loss = import_module("lossbook.methods.contrastive").info_nce
        torch.compile(loss, fullgraph=True, backend=count)(*pair(n), rows=rows)
    (number,) = found
    return number


def test_a_compiled_graph_does_not_grow_with_the_blocks():
    assert nodes(16, 4) == nodes(64, 4) < 2 * nodes(16, 16)


def test_compiled_blocks_of_changing_sizes_give_values_and_gradients_of_all_rows_at_once():
    torch._dynamo.reset()
    with without_hooks():
        compiled = one_graph(import_module("lossbook.methods.contrastive").info_nce, backward=True)
        for n in (16, 50, 13):
            x, y = pair(n)
            temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
            options = {"temperature": temperature, "groups": torch.arange(n) // 2}
            agree(compiled(x, y, rows=4, **options), info_nce(x, y, **options), (x, y, temperature))


test_on_any_device = on_any_device(
    partial(by_rows, lambda some, index: some * index[:, None], pair()[0], 3),
    partial(cosine_similarity, *pair()),
    partial(inner_products, *pair()),
    partial(pair_gradients, lambda similarities: similarities.logsumexp(1).sum(), torch.eye(4)),
    partial(unit, pair()[0]),
)
