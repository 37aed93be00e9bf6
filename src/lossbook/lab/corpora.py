"""Running text, and pairs of texts that belong together, with embeddings of a frozen sentence encoder."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.lab.data import Split, check_split, shipped

__all__ = ["Pairs", "Text", "load_pairs", "load_text", "path_similarity"]


@dataclass(frozen=True)
class Pairs:
    """One split of a set of pairs: query `i` belongs to passage `i`.

    Attributes:
        name: of the set.
        split: which part of it.
        queries: embeddings `(n, d)` of length one, of a frozen encoder.
        passages: as `queries`.
        query_texts: what was encoded.
        passage_texts: as `query_texts`.
        paths: of each pair its place in a tree, the numbers of the nodes from the root down, then zeros: see
            `path_similarity`.
        licence: of the texts.
        source: where they come from.

    Examples:
        >>> pairs = corpora.load_pairs(split="validation")
        >>> pairs.queries.shape, pairs.passage_texts[0]
        (torch.Size([500, 384]), 'adverse witness, hostile witness (witness)')
    """

    name: str
    split: str
    queries: Float[Tensor, "n d"] = field(repr=False)
    passages: Float[Tensor, "n d"] = field(repr=False)
    query_texts: tuple[str, ...] = field(repr=False)
    passage_texts: tuple[str, ...] = field(repr=False)
    paths: Int[Tensor, "n depth"] = field(repr=False)
    licence: str
    source: str

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.queries)


def load_pairs(name: str = "wordnet", *, split: Split = "train") -> Pairs:
    """One split of a set of pairs.

    Args:
        name: "wordnet": 5,000 nouns of WordNet (3,500, 500 and 1,000). The query is the definition, the passage the
            words for it with the first word of the kind it belongs to, such as "lion, king of beasts (big cat)".
            Whole families were drawn, all kinds of one thing together, so most pairs have close relatives, all in
            the same split. No two definitions are equal; of homonyms the passages may be.
        split: "train", "validation" or "test".

    Raises:
        ValueError: for a name or split that does not exist.
        DataError: if the file is missing or damaged.

    Examples:
        >>> pairs = corpora.load_pairs("wordnet", split="validation")
        >>> cosines = pairs.queries @ pairs.passages.T
        >>> bool(cosines.diagonal().mean() > cosines.mean())
        True
    """
    if name != "wordnet":
        raise ValueError(f"name: no set of pairs {name!r}, expected 'wordnet'")
    check_split(split)
    arrays = shipped("wordnet.npz")
    rows = {"train": slice(0, 3500), "validation": slice(3500, 4000), "test": slice(4000, 5000)}[split]
    texts = {
        what: tuple(arrays[f"{what}_texts"].tobytes().decode().split("\n")[rows]) for what in ("queries", "passages")
    }
    return Pairs(
        name=name,
        split=split,
        queries=_embeddings(arrays["queries"][rows]),
        passages=_embeddings(arrays["passages"][rows]),
        query_texts=texts["queries"],
        passage_texts=texts["passages"],
        paths=torch.tensor(arrays["paths"][rows].astype(np.int64)),
        licence="WordNet 3.0 licence; encoder Apache-2.0",
        source="Fellbaum (1998), WordNet; embeddings by all-MiniLM-L6-v2",
    )


@dataclass(frozen=True)
class Text:
    """One split of running text.

    Attributes:
        name: of the text.
        split: which part of it.
        text: one paragraph a line, ASCII.
        licence: of the text.
        source: where it comes from.

    Examples:
        >>> text = corpora.load_text("melville", split="test")
        >>> text.source, len(text) == len(text.text)
        ('Herman Melville, Moby Dick (1851)', True)
    """

    name: str
    split: str
    text: str = field(repr=False)
    licence: str
    source: str

    def __len__(self) -> int:
        """Number of characters."""
        return len(self.text)


def load_text(name: str = "austen", *, split: Split = "train") -> Text:
    """One split of running English text.

    Args:
        name: "austen": Sense and Sensibility, Emma and Persuasion (2.0 million characters), or "melville": Moby Dick
            (1.2 million), text of another kind.
        split: "train", "validation" or "test": the first 90 %, the next 5 % and the last 5 % of each book, cut between
            paragraphs. Test text is thus by the same hand, about the same people, later in the story.

    Raises:
        ValueError: for a name or split that does not exist.
        DataError: if the file is missing or damaged.

    Examples:
        >>> text = corpora.load_text("austen", split="test")
        >>> [len(line.split()) for line in text.text.splitlines()[:3]]
        [146, 111, 135]
    """
    if name not in _TEXTS:
        raise ValueError(f"name: no text {name!r}, expected one of {sorted(_TEXTS)}")
    check_split(split)
    return Text(
        name=name,
        split=split,
        text=shipped("texts.npz")[f"{name}_{split}"].tobytes().decode("ascii"),
        licence="public domain",
        source=_TEXTS[name],
    )


_TEXTS = {
    "austen": "Jane Austen, Sense and Sensibility (1811), Emma (1816), Persuasion (1818)",
    "melville": "Herman Melville, Moby Dick (1851)",
}


def path_similarity(paths: Int[Tensor, "n depth"], others: Int[Tensor, "m depth"]) -> Float[Tensor, "n m"]:
    r"""How close two nodes of a tree are, $1/(1+d)$ with $d$ the number of edges between them.

    Args:
        paths, others: numbers of the nodes from the root down, then zeros; all from the same root.

    Examples:
        >>> paths = torch.tensor([[1, 2, 0], [1, 2, 5], [1, 3, 0]])  # a node, a child, a sibling
        >>> corpora.path_similarity(paths[:1], paths).round(decimals=3)
        tensor([[1.0000, 0.5000, 0.3330]])
    """
    shared = paths.new_zeros(len(paths), len(others))
    still = torch.ones_like(shared, dtype=torch.bool)
    for mine, theirs in zip(paths.T, others.T, strict=True):
        still &= (mine[:, None] == theirs) & (mine[:, None] != 0)
        shared += still
    edges = (paths != 0).sum(1)[:, None] + (others != 0).sum(1) - 2 * shared
    return 1 / (1 + edges.to(torch.get_default_dtype()))


def _embeddings(stored: np.ndarray) -> Tensor:
    """Rows of length one from whole numbers: only their direction was kept."""
    return torch.nn.functional.normalize(torch.tensor(stored.astype(np.float32)), dim=1)
