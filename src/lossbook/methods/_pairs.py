r"""Which keys are the positives and which the negatives of each query: what losses over pairs share.

A loss over pairs says what some queries pay, given how similar they are to all keys and which keys are what (`Block`).
Who is whose positive, by position or by label, extra negatives, blocks of rows and means over terms are the same for
all of them, and stand here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from lossbook.methods._validate import Reduction, indices, one_of, paired, picked, shaped, together
from lossbook.methods.similarities import by_rows, inner_products, unit


class Block(NamedTuple):
    """Some of the queries, with all keys.

    Attributes:
        similarities: with every key, `(b, m)`.
        negative: which keys are negatives, `(b, m)`.
        pull: similarities with what may be a positive: `(b, 1)` if every query has one positive, else `(b, m)`.
        positive: which of these are positives.
        places: which key each column of `pull` is: `(b, 1)`, or `(1, m)` for all in order.
    """

    similarities: Float[Tensor, "b m"]
    negative: Bool[Tensor, "b m"]
    pull: Float[Tensor, "b p"]
    positive: Bool[Tensor, "b p"]
    places: Integer[Tensor, "_ p"]

    def push(self) -> Float[Tensor, "b 1"]:
        """Logarithm of the sum of exponentials over the negatives; minus infinity where there are none."""
        return torch.logsumexp(self.similarities.masked_fill(~self.negative, -math.inf), 1, keepdim=True)


class Pairs(NamedTuple):
    """Queries and keys, and what they are to each other.

    A key is a negative of a query unless both are of one class. A query's positives are the other keys of its class,
    or one key, if `positives` tells which.

    Attributes:
        queries: unit rows.
        keys: unit rows, extra negatives last.
        classes: of the queries.
        key_classes: of the first `c` keys. The others, extra negatives, are of no query's class.
        positives: which key is the positive of each query; None if classes say so.
        themselves: query `i` is key `i`, and no pair of its own.
        diagonal: query `i` has the positive `i`, and all other keys are its negatives.
    """

    queries: Float[Tensor, "n d"]
    keys: Float[Tensor, "m d"]
    classes: Integer[Tensor, " n"]
    key_classes: Integer[Tensor, " c"]
    positives: Integer[Tensor, " n"] | None = None
    themselves: bool = False
    diagonal: bool = False

    def over(
        self,
        losses: Callable[[Block], Float[Tensor, "b *k"]],
        rows: int | None,
        similarity: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "n *k"]:
        """What a function of a block gives for each query, this many queries at a time: see `by_rows`.

        Args:
            losses: of a `Block`.
            rows: how many queries at a time; None for all at once.
            similarity: of cosines, entry by entry, such as their quotient by a temperature.
        """
        extra = len(self.keys) - len(self.key_classes)
        places = torch.arange(len(self.keys), device=self.keys.device)[None]

        def block(some: Tensor, index: Tensor) -> Tensor:
            similarities = similarity(inner_products(some, self.keys))
            same = F.pad(self.classes[index][:, None] == self.key_classes, (0, extra))
            if self.positives is None:
                positive = same & (index[:, None] != places) if self.themselves else same
                return losses(Block(similarities, ~same, similarities, positive, places))
            own = self.positives[index]
            pull = picked(similarities, own)[:, None]
            return losses(Block(similarities, ~same, pull, torch.ones_like(pull, dtype=torch.bool), own[:, None]))

        return by_rows(block, self.queries, rows)

    def turned(self) -> "Pairs":
        """Keys that look for their negatives among the queries; extra negatives do not."""
        return Pairs(self.keys[: len(self.key_classes)], self.queries, self.key_classes, self.classes)


def total(values: Float[Tensor, "b p"], among: Bool[Tensor, "b p"]) -> Float[Tensor, "b 2"]:
    """Sum of the terms of each query, and how many they are, for `over_terms`."""
    return torch.stack([torch.where(among, values, 0).sum(1), among.sum(1).to(values.dtype)], 1)


def over_terms(totals: Float[Tensor, "n 2"], reduction: Reduction) -> Float[Tensor, "*n"]:
    """Mean over all terms, their sum, or the sum for each query; 0, with gradient 0, where there is no term.

    Args:
        totals: of each query, as of `total`.
        reduction: "mean", "sum" or "none".
    """
    one_of("reduction", reduction, "mean", "sum", "none")
    sums, numbers = totals.unbind(1)
    if reduction == "none":
        return sums
    return sums.sum() / numbers.sum().clamp(min=1) if reduction == "mean" else sums.sum()


def matched(
    queries: Tensor,
    keys: Tensor | None,
    names: tuple[str, str],
    *,
    labels: Tensor | None,
    key_labels: Tensor | None,
    positives: Tensor | None,
    negatives: Tensor | None,
    groups: Tensor | None,
) -> Pairs:
    """Queries that look among keys.

    Args:
        queries: raw embeddings `(n, d)`.
        keys: raw embeddings `(m, d)`; None if queries look among themselves, by labels.
        names: what the caller calls both, for errors.
        labels: the class of each query; its positives are the keys of this class.
        key_labels: the class of each key; those of the queries if None.
        positives: which key is the positive of each query; if None, query `i` has key `i`, and $m=n$.
        negatives: raw embeddings `(k, d)`, negatives of all queries.
        groups: without labels, a number for each key; a key with the number of a query's positive is no negative of it.

    Raises:
        ValueError: for shapes or dtypes other than these, or arguments that exclude each other.
    """
    if keys is None:
        _unasked(f"without {names[1]}", key_labels=key_labels, positives=positives, groups=groups)
        return pooled(queries, None, names, labels=labels, negatives=negatives, one_way=False)
    if labels is None:
        _unasked("without labels", key_labels=key_labels)
    else:
        _unasked("beside labels", positives=positives, groups=groups)
    if positives is None and key_labels is None:
        queries, keys = paired(queries, keys, names)
    queries, keys, *extra = _units({names[0]: queries, names[1]: keys}, negatives)
    m, every = len(keys), torch.cat([keys, *extra])
    if labels is not None:
        classes = _numbers("labels", labels, queries)
        key_classes = classes if key_labels is None else _numbers("key_labels", key_labels, keys)
        return Pairs(queries, every, classes, key_classes)
    diagonal = positives is None and groups is None and not extra
    places = torch.arange(m, device=keys.device)
    positives = places if positives is None else _numbers("positives", positives, queries)
    key_classes = places if groups is None else _numbers("groups", groups, keys)
    classes = key_classes[positives.clamp(0, m - 1)]
    return Pairs(queries, every, classes, key_classes, positives, diagonal=diagonal)


def pooled(
    first: Tensor,
    second: Tensor | None,
    names: tuple[str, str],
    *,
    labels: Tensor | None,
    negatives: Tensor | None,
    one_way: bool,
) -> Pairs:
    """Anchors that look among all the others: the rows of both views, or of one set of embeddings.

    Args:
        first: raw embeddings `(n, d)`.
        second: their other views, or None.
        names: what the caller calls both, for errors.
        labels: the class of each row of `first`; the positives of an anchor are all others of its class. Without
            labels its positive is the other view.
        negatives: raw embeddings `(k, d)`, negatives of all anchors.
        one_way: first views alone are anchors.

    Raises:
        ValueError: for shapes or dtypes other than these, or with neither labels nor second views.
    """
    if second is None:
        if labels is None:
            raise ValueError(f"{names[1]}: expected a torch.Tensor, or None beside labels, got None")
        views, *extra = _units({names[0]: first}, negatives)
        classes = _numbers("labels", labels, views)
        return Pairs(views, torch.cat([views, *extra]), classes, classes, themselves=True)
    paired(first, second, names)
    first, second, *extra = _units({names[0]: first, names[1]: second}, negatives)
    n, views = len(first), torch.cat([first, second])
    rows = torch.arange(n, device=views.device)
    classes = (rows if labels is None else _numbers("labels", labels, first)).repeat(2)
    partners = torch.cat([rows + n, rows]) if labels is None else None
    anchors = slice(n) if one_way else slice(2 * n)
    # A copy, since the loop that torch.compile makes of blocks of rows takes no two views of one tensor.
    return Pairs(
        views[anchors],
        torch.cat([views, *extra]),
        classes[anchors].clone(),
        classes,
        None if partners is None else partners[anchors],
        themselves=True,
    )


def _units(embeddings: dict[str, Tensor], negatives: Tensor | None) -> list[Tensor]:
    """Unit rows of all these and of extra negatives, of one dtype and width; ValueError in their names."""
    if getattr(negatives, "ndim", 0) == 2 and not len(negatives):  # pyright: ignore[reportArgumentType] a tensor then
        negatives = None  # an empty queue
    sources = embeddings if negatives is None else {**embeddings, "negatives": negatives}
    values = [shaped(name, value, "n d") for name, value in sources.items()]
    for name, value in zip(sources, values, strict=True):
        if value.shape[1] != values[0].shape[1]:
            wanted = f"{values[0].shape[1]} columns, as in {next(iter(sources))}"
            raise ValueError(f"{name}: expected {wanted}, got shape {tuple(value.shape)}")
    return [unit(value) for value in together(**sources)]


def _numbers(name: str, value: Tensor, rows: Tensor) -> Tensor:
    """One whole number for each of these rows, on their device."""
    value = indices(name, value, len(rows))
    if value.device != rows.device:
        raise ValueError(f"{name}: expected the device of the embeddings, {rows.device}, got {value.device}")
    return value


def _unasked(why: str, **arguments: Tensor | None) -> None:
    """ValueError if one of these is given."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: expected None {why}, got {type(value).__name__}")
