"""Retrieval, effective rank and the Fréchet distance, against scikit-learn, NumPy and by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from lossbook.lab.representations import effective_rank, frechet_distance, retrieval

DRAW = torch.Generator().manual_seed(0)
SCORES = torch.randn(3, 40, 25, generator=DRAW, dtype=torch.float64)


def test_one_relevant_passage_against_scikit_learn():
    scores = SCORES[:, :25]
    found = retrieval(scores, cutoffs=(1, 5, 25))
    for run in range(3):
        for k in (1, 5):
            expected = top_k_accuracy_score(np.arange(25), scores[run].numpy(), k=k)
            assert found[f"recall@{k}"][run].item() == pytest.approx(expected)
        expected = label_ranking_average_precision_score(np.eye(25), scores[run].numpy())
        assert found["mrr@25"][run].item() == pytest.approx(expected)


def test_several_relevant_passages_against_scikit_learn():
    relevant = torch.rand(40, 25, generator=DRAW) < 0.2
    relevant[:, 0] |= ~relevant.any(1)
    found = retrieval(SCORES, relevant, cutoffs=(10,))
    for run in range(3):
        expected = ndcg_score(relevant.numpy(), SCORES[run].numpy(), k=10)
        assert found["ndcg@10"][run].item() == pytest.approx(expected)
        ranks = [(SCORES[run, i] >= SCORES[run, i][relevant[i]].max()).sum().item() for i in range(40)]
        assert found["mrr@10"][run].item() == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r in ranks]))
        assert found["recall@10"][run].item() == pytest.approx(np.mean([r <= 10 for r in ranks]))


def test_equal_scores_earn_nothing():
    found = retrieval(torch.zeros(12, 12), cutoffs=(1, 10))
    assert all(value.item() == 0 for value in found.values())


def test_bad_relevance_is_refused():
    relevant = torch.eye(40, 25, dtype=torch.bool)
    with pytest.raises(ValueError, match="relevant: expected a passage for every query, got none for 15"):
        retrieval(SCORES, relevant)
    with pytest.raises(ValueError, match="cutoffs: expected at most 5"):
        retrieval(torch.zeros(5, 5))


def test_effective_rank():
    features = torch.randn(2, 30, 6, generator=DRAW)
    for run in range(2):
        energy = np.linalg.svd(features[run].double().numpy(), compute_uv=False) ** 2
        share = energy / energy.sum()
        assert effective_rank(features)[run].item() == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    assert effective_rank(torch.eye(5)).item() == pytest.approx(5)
    assert effective_rank(torch.ones(9, 4)).item() == pytest.approx(1)
    assert effective_rank(torch.zeros(9, 4)).item() == 1


def test_frechet_distance_against_scipy():
    one = torch.randn(2, 50, 5, generator=DRAW, dtype=torch.float64) @ torch.randn(5, 5, generator=DRAW).double()
    other = torch.randn(2, 40, 5, generator=DRAW, dtype=torch.float64) + 0.5
    found = frechet_distance(one, other)
    for run in range(2):
        a, b = one[run].numpy(), other[run].numpy()
        first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(first @ second).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
        assert found[run].item() == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(other[run], one[run]).item() == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_few_rows_and_of_a_shift():
    few = torch.randn(4, 9, generator=DRAW)  # singular covariances
    assert frechet_distance(few, few).item() == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 2).item() == pytest.approx(36, rel=1e-5)
    with pytest.raises(ValueError, match="features: expected at least two rows"):
        frechet_distance(few[:1], few)
    with pytest.raises(ValueError, match=r"others: expected shape \(4, 9\), runs and features of the first set"):
        frechet_distance(few, few[:, :3])


def test_effective_rank_of_singular_values_is_roy_and_vetterlis():
    features = torch.randn(2, 30, 6, generator=DRAW)
    for run in range(2):
        values = np.linalg.svd(features[run].double().numpy(), compute_uv=False)
        share = values / values.sum()
        found = effective_rank(features, of="singular values")[run].item()
        assert found == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    # Singular values 3 and 1: shares of 3/4 and 1/4, of energy 9/10 and 1/10.
    two = torch.diag(torch.tensor([3.0, 1.0]))
    for of, share in (("singular values", 0.75), ("energy", 0.9)):
        expected = math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share))
        for scale in (1.0, 1e200, 1e-200):
            assert effective_rank(scale * two.double(), of=of).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="of: expected 'energy' or 'singular values', got 'variance'"):
        effective_rank(two, of="variance")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad):
    features = torch.ones(4, 4)
    features[1, 2] = bad
    for call, name in (
        (lambda: effective_rank(features), "features"),
        (lambda: frechet_distance(features, torch.ones(4, 4)), "features"),
        (lambda: frechet_distance(torch.ones(4, 4), features), "others"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers, got NaN or infinity in 1 of 16 places"):
            call()


def test_retrieval_of_what_is_no_number_is_refused_or_nan():
    scores = SCORES[:, :25].clone()
    scores[1, 3, 3] = math.nan
    with pytest.raises(ValueError, match="scores: expected numbers, got NaN in 1 of 1875 places"):
        retrieval(scores)
    found, expected = torch.func.vmap(retrieval)(scores), retrieval(SCORES[:, :25])
    for name, value in found.items():
        assert value.isnan().tolist() == [False, True, False]
        assert torch.equal(value[::2], expected[name][::2])
    # An infinity is a number: a passage of score -inf is last.
    scores[1, 3, 3] = -math.inf
    assert retrieval(scores, cutoffs=(25,))["mrr@25"][1] <= expected["mrr@10"][1] + 1 / 25


@pytest.mark.parametrize(
    ("relevant", "cutoffs", "message"),
    [
        (torch.eye(5, dtype=torch.long), (1,), r"relevant: expected flags \(torch.bool\), got torch.int64"),
        (2 * torch.eye(5), (1,), "relevant: expected flags"),
        (torch.eye(5).bool()[:1], (1,), r"relevant: expected shape \(5, 5\), queries and passages"),
        (None, (0, 1), "cutoffs: expected a whole number of at least 1, got 0"),
        (None, (), "cutoffs: expected ranks, got none"),
    ],
)
def test_other_bad_relevance_is_refused(relevant, cutoffs, message):
    with pytest.raises(ValueError, match=message):
        retrieval(torch.rand(5, 5), relevant, cutoffs=cutoffs)
    with pytest.raises(ValueError, match="scores: expected queries, got none"):
        retrieval(torch.zeros(0, 5), torch.zeros(0, 5).bool(), cutoffs=(1,))
