"""Random views of pictures, drawn apart from being applied, so that stacked runs can share one call."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Views", "shifted"]


def shifted(images: Float[Tensor, "n c h w"], offsets: Int[Tensor, "n 2"], reach: int) -> Float[Tensor, "n c h w"]:
    """Pictures moved by whole pixels, black where nothing was.

    Args:
        offsets: rows and columns to move down and right, between `-reach` and `reach`.
        reach: the largest move.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach, reach, reach, reach))
    rows = torch.arange(height, device=images.device) + reach - offsets[:, :1]
    columns = torch.arange(width, device=images.device) + reach - offsets[:, 1:]
    picture = torch.arange(len(images), device=images.device)
    # Indices around a slice put the channels last.
    moved = padded[picture[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1)


@dataclass(frozen=True)
class Views:
    """Two views of every picture: moved, with Gaussian noise, and with some pixels set to zero.

    Attributes:
        shape: of the batch of pictures, `(batch, channels, height, width)`.
        shift: largest move in pixels, along each axis.
        noise: standard deviation of the noise.
        drop: share of pixels set to zero.
    """

    shape: tuple[int, int, int, int]
    shift: int = 1
    noise: float = 0.1
    drop: float = 0.1

    def draw(self, generator: torch.Generator, steps: int) -> dict[str, Tensor]:
        """All that is random in this many steps; the `noise` of `lab.fit`."""
        lead, options = (steps, 2), {"generator": generator, "device": generator.device}
        return {
            "offsets": torch.randint(-self.shift, self.shift + 1, (*lead, self.shape[0], 2), **options),
            "grain": self.noise * torch.randn(*lead, *self.shape, **options),
            "kept": torch.rand(*lead, *self.shape, **options) >= self.drop,
        }

    def apply(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `first` and `second` view of `inputs`, given what `draw` drew; the `transform` of `lab.fit`.

        What else is in the batch stays in it.
        """
        rest = {name: value for name, value in batch.items() if name not in ("inputs", "offsets", "grain", "kept")}
        first, second = (
            (shifted(batch["inputs"], batch["offsets"][view], self.shift) + batch["grain"][view]) * batch["kept"][view]
            for view in range(2)
        )
        return {"first": first, "second": second, **rest}
