"""Unit vectors and gradients by similarities, against PyTorch."""

from functools import partial

import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import pair

from lossbook.methods.contrastive import diagonal_cross_entropy
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


test_on_any_device = on_any_device(
    partial(by_rows, lambda some, index: some * index[:, None], pair()[0], 3),
    partial(cosine_similarity, *pair()),
    partial(inner_products, *pair()),
    partial(pair_gradients, lambda similarities: similarities.logsumexp(1).sum(), torch.eye(4)),
    partial(unit, pair()[0]),
)
