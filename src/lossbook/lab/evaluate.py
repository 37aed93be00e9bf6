"""What a trained network is worth. Scores are shares in [0, 1]."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from lossbook.lab._validate import class_numbers, has_shape, largest, real, some, spoilt, whole

__all__ = [
    "accuracies",
    "accuracy",
    "correct",
    "k_nearest_neighbours",
    "linear_probe",
]


def correct(logits: Float[Tensor, "*n k"], targets: Integer[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Which rows are classified rightly: those whose target has a larger logit than every other class.

    A tie is an error, so a network that always says the same earns nothing; so is a logit that is not a number. Every
    accuracy of the bench counts by this rule.

    Args:
        logits: `(..., classes)`.
        targets: the class of each row.

    Raises:
        ValueError: for fewer than two classes, or targets of another shape, dtype or range.

    Examples:
        >>> logits = torch.tensor([[2.0, 1.0], [3.0, 3.0]])
        >>> lab.correct(logits, torch.tensor([0, 1]))  # the second is a tie
        tensor([ True, False])
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"logits: expected at least two classes, got {logits.shape[-1]}")
    has_shape("targets", targets, logits.shape[:-1], "one class for each row of the logits")
    return largest(logits, class_numbers("targets", targets, logits.shape[-1]).to(logits.device))


def accuracy(logits: Float[Tensor, "*runs n k"], targets: Integer[Tensor, " n"]) -> Float[Tensor, "*runs"]:
    """Share of rows whose target has the largest logit, larger than every other; a tie is an error.

    Under `vmap`, where nothing can be raised, the share is NaN if a logit is.

    Args:
        logits: `(..., n, classes)`, for instance of several runs.
        targets: the class of each row.

    Raises:
        ValueError: for logits that are not numbers, no rows, fewer than two classes, or targets of another shape,
            dtype or range.

    Examples:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
        >>> round(lab.accuracy(logits, torch.tensor([0, 1, 1])).item(), 3)
        0.667
    """
    real("logits", logits)
    some("logits", logits.shape[-2] if logits.ndim > 1 else 0, "rows")
    has_shape("targets", targets, logits.shape[-2:-1], "one class for each row of the logits")
    right = correct(logits, targets.expand(logits.shape[:-1]))
    return spoilt(right.double().mean(-1), logits.isnan().any(-1).any(-1))


def linear_probe(
    features: Float[Tensor, "n d"],
    targets: Integer[Tensor, " n"],
    *tests: tuple[Float[Tensor, "m d"], Integer[Tensor, " m"]],
    penalty: float = 1.0,
) -> list[float]:
    """Accuracies, on each test set, of a logistic regression on frozen, standardised features.

    Args:
        features: what the regression is fitted to.
        targets: the class of each row.
        tests: pairs of features and targets.
        penalty: inverse strength of the squared-norm penalty, scikit-learn's `C`.

    Raises:
        ValueError: for features that are not finite, or sets whose rows, classes or widths do not fit each other.

    Examples:
        >>> features, targets = torch.linspace(-1, 1, 20)[:, None], torch.arange(20) // 10
        >>> test = torch.tensor([[-0.5], [0.5]]), torch.tensor([0, 1])
        >>> lab.linear_probe(features, targets, test)
        [1.0]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked = _arrays(features, targets, tests)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=100))
    with warnings.catch_warnings():
        # A hundred steps of L-BFGS are the probe's definition; the last digits do not change the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*known)
    return [float(model.score(*each)) for each in asked]


def k_nearest_neighbours(
    features: Float[Tensor, "n d"],
    targets: Integer[Tensor, " n"],
    *tests: tuple[Float[Tensor, "m d"], Integer[Tensor, " m"]],
    neighbours: int = 5,
) -> list[float]:
    """Accuracies, on each test set, of the majority among the nearest rows by cosine.

    Args:
        features: among which neighbours are looked for.
        targets: the class of each row.
        tests: pairs of features and targets.
        neighbours: how many vote.

    Raises:
        ValueError: for features that are not finite, sets whose rows, classes or widths do not fit each other, or more
            neighbours than rows.

    Examples:
        >>> features, targets = torch.eye(2).repeat_interleave(5, 0), torch.arange(10) // 5
        >>> test = torch.eye(2), torch.tensor([0, 1])
        >>> lab.k_nearest_neighbours(features, targets, test)
        [1.0]
    """
    from sklearn import config_context
    from sklearn.neighbors import KNeighborsClassifier

    known, asked = _arrays(features, targets, tests)
    neighbours = whole("neighbours", neighbours)
    if neighbours > len(features):
        raise ValueError(f"neighbours: expected at most {len(features)} (the rows), got {neighbours}")
    model = KNeighborsClassifier(neighbours, metric="cosine").fit(*known)
    # Distances are held to some rows at a time: these are MiB.
    with config_context(working_memory=64):
        return [float(model.score(*each)) for each in asked]


def accuracies(
    features: Mapping[str, Float[Tensor, "runs n d"]],
    targets: Mapping[str, Integer[Tensor, " n"]],
    *,
    judge: Callable[..., list[float]] = linear_probe,
    **options: Any,
) -> pd.DataFrame:
    """How well every run's features tell classes apart: a row a run, a column "<split> accuracy" a split.

    Args:
        features: by split: "train", which the judge learns from, and the splits that it is asked about.
        targets: by split; others than those of `features` are not looked at.
        judge: `linear_probe` or `k_nearest_neighbours`.
        options: of the judge.

    Raises:
        ValueError: if there are no features of "train", no targets for a split, or splits differ in their runs; and
            what the judge raises.

    Examples:
        >>> train, test = torch.eye(2).repeat(3, 5, 1), torch.eye(2).repeat(3, 1, 1)  # three runs
        >>> targets = {"train": torch.arange(10) % 2, "test": torch.arange(2)}
        >>> lab.accuracies({"train": train, "test": test}, targets)["test accuracy"].tolist()
        [1.0, 1.0, 1.0]
    """
    for name in ("train", *features):
        if name not in features or name not in targets:
            raise ValueError(f"{name}: expected features and targets of this split, got {[*features]} and {[*targets]}")
    asked = [name for name in features if name != "train"]
    runs = {name: len(each) for name, each in features.items()}
    if len({*runs.values()}) > 1:
        raise ValueError(f"features: expected as many runs in every split, got {runs}")
    scores = [
        judge(features["train"][run], targets["train"], *((features[n][run], targets[n]) for n in asked), **options)
        for run in range(len(features["train"]))
    ]
    return pd.DataFrame(np.array(scores), columns=[f"{name} accuracy" for name in asked])


def _arrays(
    features: Tensor, targets: Tensor, tests: tuple[tuple[Tensor, Tensor], ...]
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """All sets as scikit-learn takes them, checked against each other."""

    def arrays(names: tuple[str, str], x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        real(names[0], x, finite=True)
        some(names[0], len(x), "rows")
        has_shape(names[0], x, (len(x), features.shape[-1]), "rows as wide as all features")
        has_shape(names[1], y, (len(x),), "one class for each row")
        # NumPy has no bfloat16.
        x = x.float() if x.dtype == torch.bfloat16 else x
        return x.detach().cpu().numpy(), class_numbers(names[1], y).cpu().numpy()

    return arrays(("features", "targets"), features, targets), [arrays(("tests", "tests"), *each) for each in tests]
