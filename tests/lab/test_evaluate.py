"""Probes, neighbours and accuracies: alone, of every run, and against what they cannot know."""

import pytest
import torch

from lossbook import lab


@pytest.mark.parametrize("judge", [lab.linear_probe, lab.k_nearest_neighbours], ids=["probe", "neighbours"])
def test_accuracies_are_those_of_each_run_alone(judge):
    draw = torch.Generator().manual_seed(0)
    features = {name: torch.randn(3, n, 4, generator=draw) for name, n in {"train": 30, "test": 20, "more": 10}.items()}
    targets = {name: torch.randint(0, 3, (each.shape[1],), generator=draw) for name, each in features.items()}
    frame = lab.accuracies(features, {**targets, "another": targets["test"]}, judge=judge)
    assert list(frame) == ["test accuracy", "more accuracy"]
    for run in range(3):
        tests = [(features[name][run], targets[name]) for name in ("test", "more")]
        assert frame.loc[run].tolist() == [100 * a for a in judge(features["train"][run], targets["train"], *tests)]


def test_accuracies_hand_options_to_the_judge():
    features = {"train": torch.tensor([[[1.0, 0], [1, 0.1], [0, 1]]]), "test": torch.tensor([[[0.1, 1.0]]])}
    targets = {"train": torch.tensor([0, 0, 1]), "test": torch.tensor([1])}
    score = [
        lab.accuracies(features, targets, judge=lab.k_nearest_neighbours, neighbours=k).loc[0, "test accuracy"]
        for k in (1, 3)
    ]
    assert score == [100, 0]


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
