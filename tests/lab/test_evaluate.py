"""Probes, neighbours and accuracies: alone, of every run, and against what they cannot know."""

import math

import pytest
import torch

from lossbook import lab
from lossbook.lab import evaluate


@pytest.mark.parametrize("judge", [lab.linear_probe, lab.k_nearest_neighbours], ids=["probe", "neighbours"])
def test_accuracies_are_those_of_each_run_alone(judge):
    draw = torch.Generator().manual_seed(0)
    features = {name: torch.randn(3, n, 4, generator=draw) for name, n in {"train": 30, "test": 20, "more": 10}.items()}
    targets = {name: torch.randint(0, 3, (each.shape[1],), generator=draw) for name, each in features.items()}
    frame = lab.accuracies(features, {**targets, "another": targets["test"]}, judge=judge)
    assert list(frame) == ["test accuracy", "more accuracy"]
    for run in range(3):
        tests = [(features[name][run], targets[name]) for name in ("test", "more")]
        assert frame.loc[run].tolist() == judge(features["train"][run], targets["train"], *tests)


def test_accuracies_hand_options_to_the_judge():
    features = {"train": torch.tensor([[[1.0, 0], [1, 0.1], [0, 1]]]), "test": torch.tensor([[[0.1, 1.0]]])}
    targets = {"train": torch.tensor([0, 0, 1]), "test": torch.tensor([1])}
    score = [
        lab.accuracies(features, targets, judge=lab.k_nearest_neighbours, neighbours=k).loc[0, "test accuracy"]
        for k in (1, 3)
    ]
    assert score == [1, 0]


@pytest.mark.parametrize(("features", "targets"), [(["test"], ["train", "test"]), (["train", "test"], ["train"])])
def test_accuracies_need_both_of_every_split(features, targets):
    with pytest.raises(ValueError, match=r"(train|test): expected features and targets of this split, got"):
        lab.accuracies(dict.fromkeys(features, torch.ones(1, 2, 2)), dict.fromkeys(targets, torch.tensor([0, 1])))


def blobs(n, seed):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    return 4 * torch.eye(3)[targets] + torch.randn(n, 3, generator=draw), targets


@pytest.mark.parametrize("probe", [lab.linear_probe, lab.k_nearest_neighbours])
def test_probes_separate_what_can_be_separated_and_nothing_else(probe):
    train, test = blobs(300, 0), blobs(300, 1)
    shuffled = test[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    good, chance = probe(*train, test, (test[0], shuffled))
    assert good > 0.9 and 0.2 < chance < 0.47


def test_probe_does_not_depend_on_scale():
    train, test = blobs(300, 0), blobs(300, 1)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    scaled = lab.linear_probe(train[0] * scale, train[1], (test[0] * scale, test[1]))
    assert scaled == pytest.approx(lab.linear_probe(*train, test), abs=1.5 / 300)  # one row may lie on a border


def test_accuracy_keeps_leading_dimensions():
    logits = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]])
    assert lab.accuracy(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.5]


def test_only_what_is_above_all_others_is_right():
    inf = math.inf
    logits = torch.tensor(
        [[2.0, 1.0], [1.0, 1.0], [inf, 0], [inf, inf], [0, -inf], [-inf, -inf], [math.nan, 1], [1, math.nan]]
    )
    assert (
        evaluate.correct(logits, torch.zeros(8, dtype=torch.long)).tolist() == [True, False] * 2 + [True] + [False] * 3
    )
    assert lab.accuracy(torch.zeros(6, 3), torch.tensor([0, 0, 0, 1, 2, 2])) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_targets_are_whole_numbers_of_any_dtype(dtype):
    logits, targets = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    assert torch.equal(lab.accuracy(logits, targets.to(dtype)), (logits.argmax(-1) == targets).double().mean(-1))
    train, test = blobs(30, 0), blobs(30, 1)
    for judge in (lab.linear_probe, lab.k_nearest_neighbours):
        assert judge(train[0], train[1].to(dtype), (test[0], test[1].to(dtype))) == judge(*train, test)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "logits: expected numbers, got NaN in 1 of 2 places"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "logits: expected rows, got none"),
        (torch.zeros(3, 1), torch.zeros(3).long(), "logits: expected at least two classes, got 1"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), "logits: expected a floating-point tensor, got torch.int64"),
        (torch.zeros(3, 2), torch.zeros(3, 1).long(), r"targets: expected shape \(3,\), .* got \(3, 1\)"),
        (torch.zeros(3, 2), torch.zeros(1).long(), r"targets: expected shape \(3,\), .* got \(1,\)"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "targets: expected numbers from 0 to 1, got 0 to 2"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -100]), "targets: expected numbers from 0 to 1, got -100 to 1"),
        (torch.zeros(3, 2), torch.zeros(3), "targets: expected whole numbers, got torch.float32"),
        (torch.zeros(3, 2), torch.zeros(3).bool(), "targets: expected whole numbers, got torch.bool"),
    ],
)
def test_accuracy_of_what_does_not_fit_is_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        lab.accuracy(logits, targets)


def test_accuracy_under_vmap_is_nan_where_a_logit_is():
    logits = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[2.0, math.nan], [1.0, 2.0]]])
    found = torch.func.vmap(lab.accuracy, in_dims=(0, None))(logits, torch.tensor([0, 0]))
    assert found[0] == 0.5 and found[1].isnan()


@pytest.mark.parametrize("judge", [lab.linear_probe, lab.k_nearest_neighbours], ids=["probe", "neighbours"])
def test_judges_name_what_does_not_fit(judge):
    train, test = blobs(30, 0), blobs(9, 1)
    bad = test[0].clone()
    bad[2, 1] = math.inf
    for sets, message in (
        ((bad, test[1], test), "features: expected finite numbers, got NaN or infinity in 1 of 27 places"),
        ((*train, (bad, test[1])), "tests: expected finite numbers"),
        ((*train, (test[0][:, :2], test[1])), r"tests: expected shape \(9, 3\), rows as wide as all features"),
        ((*train, (test[0], test[1][:4])), r"tests: expected shape \(9,\), one class for each row, got \(4,\)"),
        (
            (train[0], train[1][:, None], test),
            r"targets: expected shape \(30,\), one class for each row, got \(30, 1\)",
        ),
        ((*train, (test[0][:0], test[1][:0])), "tests: expected rows, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            judge(*sets)
    with pytest.raises(ValueError, match="neighbours: expected at most 30"):
        lab.k_nearest_neighbours(*train, test, neighbours=31)
    half = judge(train[0].bfloat16(), train[1], (test[0].bfloat16(), test[1]))
    assert half == judge(train[0].bfloat16().float(), train[1], (test[0].bfloat16().float(), test[1]))


def test_accuracies_need_the_same_runs_in_every_split():
    features = {"train": torch.rand(3, 6, 2), "test": torch.rand(2, 6, 2)}
    with pytest.raises(ValueError, match="features: expected as many runs in every split, got"):
        lab.accuracies(features, dict.fromkeys(features, torch.arange(6) % 2))
