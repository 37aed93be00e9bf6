"""InfoNCE and NT-Xent, against PyTorch and pytorch-metric-learning."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from pytorch_metric_learning.losses import NTXentLoss
from support import agree, in_blocks, mapped_is_one_by_one, one_graph, pair, rejects, unhooked

from lossbook.methods.contrastive import diagonal_cross_entropy, info_nce, nt_xent, two_view_terms
from lossbook.methods.similarities import cosine_similarity


def oracle(x, y, temperature, reduction="mean"):
    logits = F.normalize(x) @ F.normalize(y).T / temperature
    return F.cross_entropy(logits, torch.arange(len(x)), reduction=reduction)


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_cross_entropy_over_cosines(temperature, reduction):
    x, y = pair()
    agree(info_nce(x, y, temperature=temperature, reduction=reduction), oracle(x, y, temperature, reduction), (x, y))


def test_symmetric_is_the_mean_of_both_directions():
    x, y = pair()
    agree(info_nce(x, y, symmetric=True), (oracle(x, y, 0.1) + oracle(y, x, 0.1)) / 2, (x, y))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_agrees_with_pytorch_metric_learning(temperature):
    # Their form: keys as references, with the query's own label as the only positive.
    x, y = pair()
    labels = torch.arange(len(x))
    theirs = NTXentLoss(temperature)(x, labels, ref_emb=y, ref_labels=labels.clone())
    agree(info_nce(x, y, temperature=temperature), theirs, (x, y), tolerance=1e-8)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric):
    x, y = pair(4, 3)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, y, t: info_nce(x, y, temperature=t, symmetric=symmetric), (x, y, temperature)
    )


def test_bounds_are_reached_by_two_opposite_pairs():
    x = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    for temperature in (0.1, 1.0):
        best = math.log1p(math.exp(-2 / temperature))
        worst = math.log1p(math.exp(2 / temperature))
        assert info_nce(x, x, temperature=temperature).item() == pytest.approx(best, abs=1e-14)  # of logits of 10
        assert info_nce(x, -x, temperature=temperature).item() == pytest.approx(worst)


def test_limits_of_the_temperature():
    x, y = pair(16, 4)
    assert info_nce(x, y, temperature=1e9).item() == pytest.approx(math.log(16), abs=1e-6)
    cosines = cosine_similarity(x, y).detach()
    gap = (cosines.max(1).values - cosines.diagonal()).mean().item()
    assert 1e-6 * info_nce(x, y, temperature=1e-6).item() == pytest.approx(gap, abs=1e-5)


def test_one_pair_has_nothing_to_tell_apart():
    x, y = pair(1, 3)
    assert info_nce(x, y).item() == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scale_in_single_precision(scale):
    x, y = pair(dtype=torch.float32, scale=scale)
    loss = info_nce(x, y)
    torch.testing.assert_close(loss.double(), oracle(*pair(), 0.1), rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, y)))


def test_zero_embedding_is_orthogonal_to_all():
    x, y = pair()
    x = x.detach().clone()
    x[0] = 0
    x.requires_grad_()
    assert (cosine_similarity(x, y)[0] == 0).all()
    assert torch.autograd.grad(info_nce(x, y), x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x, y = pair(dtype=dtype)
    loss = info_nce(x, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(x.float(), y.float()), rtol=0, atol=0)
    assert torch.autograd.grad(loss, x)[0].dtype == dtype


def test_autocast_does_not_reach_inside():
    x, y = pair(64, 32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(x, y)
    torch.testing.assert_close(loss, info_nce(x, y), rtol=0, atol=0)


def test_vmap_over_batches_and_temperatures():
    batches = torch.randn(3, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    temperatures = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    mapped = torch.vmap(lambda pair, t: info_nce(pair[0], pair[1], temperature=t))(batches, temperatures)
    single = [info_nce(*pair, temperature=float(t)) for pair, t in zip(batches, temperatures, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = pair()
    loss = unhooked("lossbook.methods.contrastive.infonce").info_nce
    compiled = one_graph(loss, backward=True)
    agree(compiled(x, y, temperature=0.2), oracle(x, y, 0.2), (x, y))


@pytest.mark.parametrize(
    ("queries", "keys", "names"),
    [
        (torch.ones(3), torch.ones(3), "queries"),
        (torch.ones(3, 2, 2), torch.ones(3, 2, 2), "queries"),
        (torch.ones(0, 2), torch.ones(0, 2), "queries"),
        (torch.ones(3, 0), torch.ones(3, 0), "queries"),
        (torch.ones(3, 2), torch.ones(4, 2), "keys"),
        (torch.ones(3, 2), torch.ones(3, 1), "keys"),
        (torch.ones(3, 2), torch.ones(3, 2, device="meta"), "keys"),
        (torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2), "queries"),
        (torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), "keys"),
        ([[1.0]], torch.ones(1, 1), "queries"),
        (torch.ones(1, 1), None, "keys"),
    ],
)
def test_bad_embeddings_are_refused(queries, keys, names):
    rejects(info_nce, queries, keys, names=names)


@pytest.mark.parametrize(
    "temperature",
    [0, 0.0, -1.0, math.nan, math.inf, "0.1", None, True, torch.ones(2), torch.tensor(1)],
)
def test_bad_temperatures_are_refused(temperature):
    rejects(info_nce, torch.ones(2, 2), torch.ones(2, 2), temperature=temperature, names="temperature")


def test_bad_reduction_is_refused():
    rejects(info_nce, torch.ones(2, 2), torch.ones(2, 2), reduction="average", names="reduction")
    rejects(diagonal_cross_entropy, torch.ones(2, 2), reduction=None, names="reduction")


# In blocks of rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_info_nce_in_blocks_is_the_same(rows, symmetric, grouped):
    x, y = pair(8, 5)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    settings = {"symmetric": symmetric, "temperature": temperature, "reduction": "none"}
    settings["groups"] = torch.tensor([0, 1, 1, 2, 3, 1, 4, 0]) if grouped else None
    agree(info_nce(x, y, rows=rows, **settings), info_nce(x, y, **settings), (x, y, temperature), tolerance=1e-12)


def test_nt_xent_in_blocks_is_the_same():
    x, y = pair(9, 5)
    agree(nt_xent(x, y, rows=4), nt_xent(x, y), (x, y), tolerance=1e-12)


def test_blocks_use_little_memory():
    # The largest tensor that autograd keeps, with the whole matrix and with blocks.
    kept = {}
    for rows in (None, 16):
        sizes = []
        x, y = pair(256, 4)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            info_nce(x, y, rows=rows)
        kept[rows] = max(sizes)
    assert kept[None] >= 256**2 and kept[16] <= 16 * 256


@pytest.mark.parametrize("rows", [0, -1, 2.0, True])
def test_wrong_rows_are_refused(rows):
    rejects(info_nce, *pair(), rows=rows, names="rows")


def test_a_group_is_left_out_of_the_negatives():
    x, y = pair(6, 4)
    groups = torch.tensor([0, 0, 1, 2, 3, 3])
    losses = info_nce(x, y, groups=groups, reduction="none")
    for i in range(6):
        kept = [j for j in range(6) if j == i or groups[j] != groups[i]]
        cosines = F.cosine_similarity(x[i : i + 1], y[kept]) / 0.1
        torch.testing.assert_close(losses[i], F.cross_entropy(cosines, torch.tensor(kept.index(i))))
    together = info_nce(x, y, groups=torch.zeros(6, dtype=torch.long))
    assert together.item() == 0 and torch.autograd.grad(together, x)[0].isfinite().all()
    rejects(info_nce, x, y, groups=torch.zeros(5, dtype=torch.long), names="groups")
    rejects(info_nce, x, y, groups=torch.zeros(6), names="groups")


# Labels, more keys than queries ----------------------------------------------------------------------

LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


def by_terms(x, y, positive, negative, temperature=0.1):
    """One term for each positive pair, its denominator in full."""
    logits = F.normalize(x) @ F.normalize(y).T / temperature
    return [
        -F.log_softmax(torch.cat([logits[i, p : p + 1], logits[i, negative[i]]]), 0)[0] for i, p in positive.nonzero()
    ]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp(max=0), torch.arange(8) // 2], ids=["mixed", "two", "pairs"])
@pytest.mark.parametrize("views", ["one set", "pooled", "queries and keys"])
def test_labels_agree_with_pytorch_metric_learning(labels, views, temperature):
    x, y = pair()
    theirs = NTXentLoss(temperature)
    if views == "one set":
        for ours in (nt_xent, info_nce):
            agree(ours(x, labels=labels, temperature=temperature), theirs(x, labels), (x,), tolerance=1e-8)
    elif views == "pooled":
        pooled = theirs(torch.cat([x, y]), labels.repeat(2))
        agree(nt_xent(x, y, labels=labels, temperature=temperature), pooled, (x, y), tolerance=1e-8)
    else:
        apart = theirs(x, labels, ref_emb=y, ref_labels=labels.clone())
        agree(info_nce(x, y, labels=labels, temperature=temperature), apart, (x, y), tolerance=1e-8)


def test_labels_are_their_definition():
    x, _ = pair()
    same, itself = LABELS[:, None] == LABELS, torch.eye(8, dtype=torch.bool)
    terms = torch.stack(by_terms(x, x, same & ~itself, ~same))
    agree(nt_xent(x, labels=LABELS), terms.mean(), (x,))
    torch.testing.assert_close(nt_xent(x, labels=LABELS, reduction="sum"), terms.sum())
    each = nt_xent(x, labels=LABELS, reduction="none")
    assert each.shape == (8,) and each[6] == 0  # the only one of its class
    torch.testing.assert_close(each.sum(), terms.sum())


def test_labels_of_their_own_are_no_labels():
    x, y = pair()
    agree(nt_xent(x, y, labels=torch.arange(8)), nt_xent(x, y), (x, y), tolerance=1e-12)
    for symmetric in (False, True):
        agree(info_nce(x, y, labels=torch.arange(8), symmetric=symmetric), info_nce(x, y, symmetric=symmetric), (x, y))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_queries_and_keys_with_labels_of_each(symmetric, dtype):
    (x, _), (y, more) = pair(5), pair(9, seed=1)
    labels, key_labels = torch.tensor([0, 1, 1, 2, 4]), torch.tensor([1, 0, 3, 0, 1, 2, 5, 5, 1])
    same = labels[:, None] == key_labels
    expected = torch.stack(by_terms(x, torch.cat([y, more]), same, F.pad(~same, (0, 9), value=True)))
    if symmetric:
        back = torch.stack(by_terms(y, x, same.T, ~same.T))
        order = (
            same.nonzero()[:, 0] + 5 * same.nonzero()[:, 1]
        )  # terms by query and key, those of `back` by key and query
        expected = (expected + back[order.argsort().argsort()]) / 2
    settings = {"labels": labels.to(dtype), "key_labels": key_labels.to(dtype), "symmetric": symmetric}
    agree(info_nce(x, y, negatives=more, **settings), expected.mean(), (x, y, more))
    each = info_nce(x, y, negatives=more, reduction="none", **settings)
    torch.testing.assert_close(each, torch.zeros(5).double().index_add(0, same.nonzero()[:, 0], expected))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows", [None, 2])
def test_positions_of_positives(symmetric, rows):
    (x, _), (y, more) = pair(4), pair(9, seed=1)
    places = torch.tensor([7, 0, 3, 4])
    logits = F.normalize(x) @ F.normalize(torch.cat([y, more])).T / 0.1
    expected = F.cross_entropy(logits, places, reduction="none")
    if symmetric:
        expected = (expected + F.cross_entropy(logits.T[places], torch.arange(4), reduction="none")) / 2
    ours = info_nce(x, y, positives=places, negatives=more, symmetric=symmetric, rows=rows, reduction="none")
    agree(ours, expected, (x, y, more))


def test_all_keys_beside_positions_are_one_call_for_many_ranks():
    # As every rank calls it that has a share of the queries and the keys of all.
    x, y = pair()
    shares = [info_nce(x[i : i + 4], y, positives=i + torch.arange(4)) for i in (0, 4)]
    agree(sum(shares) / 2, info_nce(x, y), (x, y), tolerance=1e-12)


def test_extra_negatives_are_keys_of_nobody():
    (x, y), (more, _) = pair(), pair(5, seed=1)
    labels = torch.arange(8)
    theirs = NTXentLoss(0.1)(x, labels, ref_emb=torch.cat([y, more]), ref_labels=torch.arange(13))
    agree(info_nce(x, y, negatives=more), theirs, (x, y, more), tolerance=1e-8)
    everyone = torch.cat([torch.cat([labels, labels]), 8 + torch.arange(5)])
    views = torch.cat([x, y])
    same = (everyone[:16, None] == everyone) & ~torch.eye(16, 21, dtype=torch.bool)
    terms = by_terms(views, torch.cat([views, more]), same, everyone[:16, None] != everyone)
    agree(nt_xent(x, y, negatives=more), torch.stack(terms).mean(), (x, y, more))
    agree(nt_xent(x, y, negatives=more, labels=labels), nt_xent(x, y, negatives=more), (x, y, more))


@pytest.mark.parametrize("labels", [torch.arange(8), torch.zeros(8, dtype=torch.long)], ids=["no pair", "no negative"])
@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_without_a_pair_or_a_negative_there_is_nothing_to_learn(loss, labels, rows):
    x, _ = pair()
    value = loss(x, labels=labels, rows=rows)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(0, abs=1e-15) and not gradient.abs().max()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck_with_labels(symmetric):
    (x, y), (more, _) = pair(4, 3), pair(2, 3, seed=1)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2])

    def loss(x, y, more, t):
        return info_nce(x, y, labels=labels, negatives=more, temperature=t, symmetric=symmetric, rows=3)

    assert torch.autograd.gradcheck(loss, (x, y, more, temperature))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, more, t, **k: info_nce(x, y, temperature=t, symmetric=True, **k),
        lambda x, y, more, t, **k: info_nce(x, y, negatives=more, groups=torch.arange(60) // 2, temperature=t, **k),
        lambda x, y, more, t, **k: info_nce(x, y, labels=torch.arange(60) // 7, symmetric=True, temperature=t, **k),
        lambda x, y, more, t, **k: info_nce(x, labels=torch.arange(60) // 7, negatives=y, temperature=t, **k),
        lambda x, y, more, t, **k: nt_xent(x, y, temperature=t, **k),
        lambda x, y, more, t, **k: nt_xent(x, y, labels=torch.arange(60) // 7, negatives=more, temperature=t, **k),
    ],
)
def test_blocks_are_the_whole_in_little_memory(loss):
    (x, y), (more, _) = pair(60, 4), pair(20, 4, seed=1)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    in_blocks(
        lambda rows: loss(x, y, more, temperature, rows=rows, reduction="none"), (x, y, temperature), most=60 * 20
    )


def test_labels_and_keys_that_do_not_fit_are_refused():
    x, y = pair()
    more = torch.ones(3, 4)
    rejects(info_nce, x, names="keys")
    rejects(nt_xent, x, names="second")
    rejects(info_nce, x, y[:5], names="keys")
    rejects(info_nce, x, y, negatives=more, names="negatives")
    rejects(info_nce, x, y, positives=LABELS[:5].abs(), names="positives")
    rejects(info_nce, x, y, labels=LABELS, positives=LABELS, names="positives")
    rejects(info_nce, x, y, labels=LABELS, groups=LABELS, names="groups")
    rejects(info_nce, x, labels=LABELS, key_labels=LABELS, names="key_labels")
    rejects(info_nce, x, y, key_labels=LABELS, names="key_labels")
    rejects(info_nce, x, y, labels=LABELS, key_labels=LABELS[:5], names="key_labels")
    rejects(nt_xent, x, y, labels=LABELS[:5], names="labels")
    rejects(nt_xent, x, labels=LABELS.double(), names="labels")
    rejects(nt_xent, x, labels=LABELS.to("meta"), names="labels")


def test_a_place_that_is_none_gives_no_number():
    x, y = pair()
    assert info_nce(x, y, positives=torch.full((8,), 8)).isnan()


def test_labels_compile_without_graph_breaks():
    x, y = pair()
    loss = unhooked("lossbook.methods.contrastive.infonce").nt_xent
    compiled = one_graph(loss, backward=True)
    agree(compiled(x, y, labels=LABELS, temperature=0.2), nt_xent(x, y, labels=LABELS, temperature=0.2), (x, y))


# NT-Xent -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_nt_xent_agrees_with_pytorch_metric_learning(temperature):
    x, y = pair()
    labels = torch.arange(8).repeat(2)
    theirs = NTXentLoss(temperature)(torch.cat([x, y]), labels)
    agree(nt_xent(x, y, temperature=temperature), theirs, (x, y), tolerance=1e-8)


def test_two_view_terms_are_the_pull_and_the_push():
    x, y = pair(5, 4)
    pull, push = two_view_terms(x, y, temperature=0.2)
    views = F.normalize(torch.cat([x, y]))
    for a in range(10):
        others = [b for b in range(10) if b % 5 != a % 5]
        torch.testing.assert_close(pull[a], views[a] @ views[(a + 5) % 10] / 0.2)
        torch.testing.assert_close(push[a], (views[others] @ views[a] / 0.2).exp().sum().log())
    # Chen et al.'s loss from the two terms.
    torch.testing.assert_close(nt_xent(x, y, temperature=0.2, reduction="none"), F.softplus(push - pull))


def test_nt_xent_gradcheck_and_one_pair():
    x, y = pair(3, 3)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y, t: nt_xent(x, y, temperature=t), (x, y, temperature))
    x, y = pair(1, 3)
    loss = nt_xent(x, y)
    assert loss.item() == 0 and torch.autograd.grad(loss, x)[0].isfinite().all()


GROUPS = torch.tensor([0, 1, 1, 2, 3, 0])


@pytest.mark.parametrize(
    "function", [nt_xent, lambda x, y: info_nce(x, y, groups=GROUPS), lambda x, y: nt_xent(x, y, labels=GROUPS)]
)
def test_mapped_is_one_by_one(function):
    mapped_is_one_by_one(function)


test_on_any_device = on_any_device(
    partial(diagonal_cross_entropy, torch.eye(4), symmetric=True),
    partial(info_nce, *pair(), temperature=torch.tensor(0.1), symmetric=True, groups=torch.arange(8) // 2),
    partial(info_nce, *pair(), symmetric=True, rows=3, groups=torch.arange(8) // 2),
    partial(info_nce, *pair(), labels=LABELS, key_labels=LABELS, negatives=pair()[0], symmetric=True),
    partial(info_nce, pair(5)[0], pair()[1], positives=torch.arange(5), symmetric=True, groups=torch.arange(8) // 2),
    partial(nt_xent, *pair(), rows=3),
    partial(nt_xent, pair()[0], labels=LABELS, negatives=pair()[0]),
    partial(two_view_terms, *pair(), temperature=torch.tensor(0.1)),
)
