"""Makes the data files that ship with lossbook from the whole sets: `python -m lossbook.lab.data.make`."""

import numpy as np

from lossbook.lab.data import SHIPPED, _fashion_mnist_file, _stratified


def fashion_mnist() -> None:
    """The first choice of a stratified, seeded draw: 5,000 training and 2,000 test pictures, uint8."""
    arrays = {}
    for part, size in (("train", 5_000), ("test", 2_000)):
        images, targets = (_fashion_mnist_file(f"{part}_{what}") for what in ("images", "targets"))
        share = size / len(targets)
        chosen = _stratified(targets, {"kept": share, "left": 1 - share})["kept"]
        arrays |= {f"{part}_images": images[chosen], f"{part}_targets": targets[chosen]}
    np.savez_compressed(SHIPPED / "fashion_mnist.npz", **arrays)


if __name__ == "__main__":
    fashion_mnist()
