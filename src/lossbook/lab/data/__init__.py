"""Real data by name. Small subsets ship with the package; whole sets are fetched when asked for.

Origin and licence of what ships are in LICENCES.md beside this file; `make.py` made it.
"""

import gzip
import hashlib
import io
import os
import warnings
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["DataError", "Dataset", "load"]

Split = Literal["train", "validation", "test"]
SHIPPED = Path(__file__).parent


class DataError(RuntimeError):
    """A data set that cannot be had: which file, what is wrong with it, what to do."""


@dataclass(frozen=True)
class Dataset:
    """One split of a labelled set.

    Attributes:
        inputs: pictures `(n, channels, height, width)` with values in [0, 1].
        targets: class numbers `(n,)`.
        classes: name of each class number.
    """

    name: str
    split: str
    inputs: Float[Tensor, "n *shape"] = field(repr=False)
    targets: Int[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    licence: str
    source: str

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)


def load(name: str, *, split: Split = "train", full: bool = False) -> Dataset:
    """One split of a data set.

    Args:
        name: "digits" (1,797 pictures of 8x8 pixels: 1,078, 359 and 360) or "fashion_mnist" (28x28: 4,000,
            1,000 and 2,000 of it ship; the whole has 50,000, 10,000 and 10,000).
        split: "train", "validation" or "test". All are balanced over classes, and always the same.
        full: the whole set where only a part of it ships. It is fetched once, with a progress bar, into
            `$LOSSBOOK_DATA` (default: the user's cache folder), and checked against its checksum.

    Raises:
        ValueError: for a name or split that does not exist.
        DataError: if a file is missing, damaged or cannot be fetched.
    """
    if name not in _SETS:
        near = get_close_matches(name, _SETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name: no data set {name!r}, expected one of {sorted(_SETS)}{hint}")
    if split not in ("train", "validation", "test"):
        raise ValueError(f'split: expected "train", "validation" or "test", got {split!r}')
    return _SETS[name](split, full)


def _digits(split: str, full: bool) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = _stratified(digits.target, {"train": 0.6, "validation": 0.2, "test": 0.2})[split]
    return Dataset(
        name="digits",
        split=split,
        inputs=torch.tensor(digits.images[chosen, None] / 16, dtype=torch.float32),
        targets=torch.tensor(digits.target[chosen]),
        classes=tuple("0123456789"),
        licence="CC BY 4.0 (UCI); shipped by scikit-learn",
        source="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits",
    )


def _fashion_mnist(split: str, full: bool) -> Dataset:
    part = "test" if split == "test" else "train"
    if full:
        images, targets = (_fashion_mnist_file(f"{part}_{what}") for what in ("images", "targets"))
    else:
        arrays = _shipped("fashion_mnist.npz")
        images, targets = arrays[f"{part}_images"], arrays[f"{part}_targets"]
    if split != "test":
        small = 10_000 if full else 1_000
        rest = {"train": 1 - small / len(targets), "validation": small / len(targets)}
        chosen = _stratified(targets, rest)[split]
        images, targets = images[chosen], targets[chosen]
    return Dataset(
        name="fashion_mnist",
        split=split,
        inputs=torch.tensor(images[:, None] / np.float32(255)),
        targets=torch.tensor(targets.astype(np.int64)),
        classes=FASHION_CLASSES,
        licence="MIT",
        source="Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747",
    )


_SETS = {"digits": _digits, "fashion_mnist": _fashion_mnist}


def _stratified(targets: np.ndarray, fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """Indices of disjoint splits that together are everything, with equal shares of each class."""
    from sklearn.model_selection import train_test_split

    rest, splits = np.arange(len(targets)), {}
    for name, fraction in list(fractions.items())[:-1]:
        size = round(fraction * len(targets))
        chosen, rest = train_test_split(rest, train_size=size, stratify=targets[rest], random_state=0)
        splits[name] = np.sort(chosen)
    return splits | {list(fractions)[-1]: np.sort(rest)}


# What ships ---------------------------------------------------------------------------------------

SHA256 = {"fashion_mnist.npz": "539a3171157fc20245985cd8d8de8a81ac6017a0859e0a56a4f704fb2e955ff8"}


def _shipped(file: str) -> dict[str, np.ndarray]:
    path = SHIPPED / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); reinstall lossbook") from error
    if hashlib.sha256(content).hexdigest() != SHA256[file]:
        raise DataError(f"{path}: damaged (its checksum is wrong); reinstall lossbook")
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


# What is fetched ----------------------------------------------------------------------------------

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Debian's package dataset-fashion-mnist has the same content, compressed anew.
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"),)
# File, MD5 of the file as its authors publish it, SHA-256 of its content.
FASHION_FILES = {
    "train_images": (
        "train-images-idx3-ubyte.gz",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train_targets": (
        "train-labels-idx1-ubyte.gz",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "test_images": (
        "t10k-images-idx3-ubyte.gz",
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "test_targets": (
        "t10k-labels-idx1-ubyte.gz",
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def cache_folder() -> Path:
    """Where fetched data is kept: `$LOSSBOOK_DATA`, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("LOSSBOOK_DATA") or pooch.os_cache("lossbook"))


def _fashion_mnist_file(key: str) -> np.ndarray:
    file, md5, sha256 = FASHION_FILES[key]
    path = next((folder / file for folder in FASHION_FOLDERS if (folder / file).exists()), None) or _fetch(
        FASHION_ADDRESS + file, md5, cache_folder() / "fashion_mnist"
    )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and try again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: damaged (its checksum is wrong); remove it and try again")
    # IDX: two zero bytes, type, number of dimensions, then the dimensions as big-endian integers.
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _fetch(address: str, md5: str, folder: Path) -> Path:
    import pooch

    name = address.rsplit("/", 1)[-1]
    try:
        with warnings.catch_warnings(action="ignore"):
            return Path(pooch.retrieve(address, f"md5:{md5}", fname=name, path=folder, progressbar=True))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / name}: could not be fetched from {address} ({error}). Without a network, put "
            f"the file there by hand, or leave full=False for the part that ships with lossbook"
        ) from error
