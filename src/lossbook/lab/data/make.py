"""Makes the data files that ship with lossbook from the whole sets: `python -m lossbook.lab.data.make`."""

import numpy as np

from lossbook.lab.data import SHIPPED, _fashion_mnist_file, _stratified

SIZES = {"train": 5_000, "test": 2_000}


def fashion_mnist() -> None:
    """A stratified, seeded draw of both parts, uint8."""
    arrays = {}
    for part, size in SIZES.items():
        images, targets = (_fashion_mnist_file(f"{part}_{what}") for what in ("images", "targets"))
        share = size / len(targets)
        chosen = _stratified(targets, {"kept": share, "left": 1 - share})["kept"]
        arrays |= {f"{part}_images": images[chosen], f"{part}_targets": targets[chosen]}
    np.savez_compressed(SHIPPED / "fashion_mnist.npz", **arrays)


if __name__ == "__main__":
    fashion_mnist()
