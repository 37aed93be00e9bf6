"""What a trained network is worth. Scores are shares in [0, 1], unless said otherwise."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = [
    "accuracies",
    "accuracy",
    "k_nearest_neighbours",
    "linear_probe",
]


def accuracy(logits: Float[Tensor, "*runs n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, "*runs"]:
    """Share of rows whose largest logit is the target's.

    Examples:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
        >>> round(lab.accuracy(logits, torch.tensor([0, 1, 1])).item(), 3)
        0.667
    """
    return (logits.argmax(-1) == targets.to(logits.device)).double().mean(-1)


def linear_probe(
    features: Float[Tensor, "n d"],
    targets: Int[Tensor, " n"],
    *tests: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    penalty: float = 1.0,
) -> list[float]:
    """Accuracies, on each test set, of a logistic regression on frozen, standardised features.

    Args:
        features: what the regression is fitted to.
        targets: the class of each row.
        tests: pairs of features and targets.
        penalty: inverse strength of the squared-norm penalty, scikit-learn's `C`.

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

    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=100))
    with warnings.catch_warnings():
        # A hundred steps of L-BFGS are the probe's definition; the last digits do not change the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_array(features), _array(targets))
    return [float(model.score(_array(x), _array(y))) for x, y in tests]


def k_nearest_neighbours(
    features: Float[Tensor, "n d"],
    targets: Int[Tensor, " n"],
    *tests: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    neighbours: int = 5,
) -> list[float]:
    """Accuracies, on each test set, of the majority among the nearest rows by cosine.

    Examples:
        >>> features, targets = torch.eye(2).repeat_interleave(5, 0), torch.arange(10) // 5
        >>> test = torch.eye(2), torch.tensor([0, 1])
        >>> lab.k_nearest_neighbours(features, targets, test)
        [1.0]
    """
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(neighbours, metric="cosine").fit(_array(features), _array(targets))
    return [float(model.score(_array(x), _array(y))) for x, y in tests]


def accuracies(
    features: Mapping[str, Float[Tensor, "runs n d"]],
    targets: Mapping[str, Int[Tensor, " n"]],
    *,
    judge: Callable[..., list[float]] = linear_probe,
    **options: Any,
) -> pd.DataFrame:
    """How well every run's features tell classes apart, in per cent: a row a run, a column "<split> accuracy" a split.

    Args:
        features: by split: "train", which the judge learns from, and the splits that it is asked about.
        targets: by split; others than those of `features` are not looked at.
        judge: `linear_probe` or `k_nearest_neighbours`.
        options: of the judge.

    Raises:
        ValueError: if there are no features of "train", or no targets for a split.

    Examples:
        >>> train, test = torch.eye(2).repeat(3, 5, 1), torch.eye(2).repeat(3, 1, 1)  # three runs
        >>> targets = {"train": torch.arange(10) % 2, "test": torch.arange(2)}
        >>> lab.accuracies({"train": train, "test": test}, targets)["test accuracy"].tolist()
        [100.0, 100.0, 100.0]
    """
    for name in ("train", *features):
        if name not in features or name not in targets:
            raise ValueError(f"{name}: expected features and targets of this split, got {[*features]} and {[*targets]}")
    asked = [name for name in features if name != "train"]
    scores = [
        judge(features["train"][run], targets["train"], *((features[n][run], targets[n]) for n in asked), **options)
        for run in range(len(features["train"]))
    ]
    return pd.DataFrame(100 * np.array(scores), columns=[f"{name} accuracy" for name in asked])


def _array(value: Shaped[Tensor, "..."]) -> np.ndarray:
    return value.detach().cpu().numpy()
