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
    with pytest.raises(ValueError, match="others: expected 9 features"):
        frechet_distance(few, few[:, :3])
