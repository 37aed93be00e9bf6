"""Random views of pictures and signals, drawn apart from being applied, so that stacked runs can share one call."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["SignalViews", "Views", "permuted", "shifted"]


def shifted(images: Float[Tensor, "n c h w"], offsets: Int[Tensor, "n 2"], reach: int) -> Float[Tensor, "n c h w"]:
    """Pictures moved by whole pixels, black where nothing was.

    Args:
        images: `(n, channels, height, width)`.
        offsets: rows and columns to move down and right, between `-reach` and `reach`.
        reach: the largest move.

    Examples:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> augmentations.shifted(image, torch.tensor([[1, 0]]), reach=1)
        tensor([[[[0., 0.],
                  [1., 2.]]]])
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach, reach, reach, reach))
    rows = torch.arange(height, device=images.device) + reach - offsets[:, :1]
    columns = torch.arange(width, device=images.device) + reach - offsets[:, 1:]
    picture = torch.arange(len(images), device=images.device)
    # Indices around a slice put the channels last.
    moved = padded[picture[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1)


def permuted(signals: Float[Tensor, "n c l"], ranks: Float[Tensor, "n s"]) -> Float[Tensor, "n c l"]:
    """Signals cut into as many segments as there are ranks, of equal length up to one sample, and put in their order.

    Args:
        signals: `(n, channels, length)`.
        ranks: distinct numbers; the segment with the smallest comes first.

    Examples:
        >>> signal = torch.arange(6.0).reshape(1, 1, 6)
        >>> augmentations.permuted(signal, torch.tensor([[0.9, 0.1, 0.5]]))
        tensor([[[2., 3., 4., 5., 0., 1.]]])
    """
    length, segments = signals.shape[-1], ranks.shape[-1]
    place = torch.arange(length, device=signals.device)
    rank = ranks.argsort(-1).argsort(-1)[:, place * segments // length]
    order = (rank * length + place).argsort(-1)
    return signals.gather(-1, order[:, None].expand_as(signals))


def _seen(views: list[Tensor], batch: Mapping[str, Tensor], drawn: tuple[str, ...], number: int | None) -> dict:
    """What the loss sees: the views in place of what they were made from."""
    rest = {name: value for name, value in batch.items() if name not in ("inputs", *drawn)}
    named = {"views": torch.stack(views)} if number else {"first": views[0], "second": views[1]}
    return {**named, **rest}


@dataclass(frozen=True)
class _Drawn(ABC):
    """What views of pictures and of signals have in common."""

    @abstractmethod
    def draw(self, generator: torch.Generator, steps: int) -> dict[str, Tensor]:
        """All that is random in this many steps; the `noise` of `lab.fit`."""

    @abstractmethod
    def apply(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of `inputs`, given what `draw` drew; the `transform` of `lab.fit`. What else is in the batch stays."""

    def once(self, inputs: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Views of these inputs, however many, drawn once: outside training, where every run sees the same."""
        views = replace(self, shape=tuple(inputs.shape))
        drawn = {name: value[0] for name, value in views.draw(generator, 1).items()}
        return views.apply({"inputs": inputs, **drawn})


@dataclass(frozen=True)
class Views(_Drawn):
    """Views of every picture: moved, with Gaussian noise, and with some pixels set to zero.

    Attributes:
        shape: of the batch of pictures, `(batch, channels, height, width)`.
        shift: largest move in pixels, along each axis.
        noise: standard deviation of the noise.
        drop: share of pixels set to zero.
        number: None for two views, `first` and `second`; else how many, stacked in `views`.

    Examples:
        >>> views = augmentations.Views(shape=(4, 1, 8, 8), shift=2)
        >>> seen = views.once(torch.ones(6, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> seen["first"].shape, bool((seen["first"] != seen["second"]).any())
        (torch.Size([6, 1, 8, 8]), True)
    """

    shape: tuple[int, int, int, int]
    shift: int = 1
    noise: float = 0.1
    drop: float = 0.1
    number: int | None = None

    def draw(self, generator: torch.Generator, steps: int) -> dict[str, Tensor]:
        """All that is random in this many steps; the `noise` of `lab.fit`."""
        lead, options = (steps, self.number or 2), {"generator": generator, "device": generator.device}
        return {
            "offsets": torch.randint(-self.shift, self.shift + 1, (*lead, self.shape[0], 2), **options),
            "grain": self.noise * torch.randn(*lead, *self.shape, **options),
            "kept": torch.rand(*lead, *self.shape, **options) >= self.drop,
        }

    def apply(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of `inputs`, given what `draw` drew; the `transform` of `lab.fit`. What else is in the batch stays."""
        offsets, grain, kept = (batch[name] for name in ("offsets", "grain", "kept"))
        views = [
            (shifted(batch["inputs"], offsets[view], self.shift) + grain[view]) * kept[view]
            for view in range(self.number or 2)
        ]
        return _seen(views, batch, ("offsets", "grain", "kept"), self.number)


@dataclass(frozen=True)
class SignalViews(_Drawn):
    """Views of every signal: segments in another order, each channel stretched in height, with Gaussian noise.

    Attributes:
        shape: of the batch of signals, `(batch, channels, length)`.
        segments: how many are put in random order; 1 leaves the order as it is.
        scale: standard deviation of the factor on a channel, whose mean is 1.
        noise: standard deviation of the noise, in every sample anew.
        number: None for two views, `first` and `second`; else how many, stacked in `views`.

    Examples:
        >>> views = augmentations.SignalViews(shape=(4, 1, 100), segments=5, number=3)
        >>> seen = views.once(torch.ones(4, 1, 100), torch.Generator().manual_seed(0))
        >>> seen["views"].shape
        torch.Size([3, 4, 1, 100])
    """

    shape: tuple[int, int, int]
    segments: int = 1
    scale: float = 0.1
    noise: float = 0.1
    number: int | None = None

    def draw(self, generator: torch.Generator, steps: int) -> dict[str, Tensor]:
        """All that is random in this many steps; the `noise` of `lab.fit`."""
        lead, options = (steps, self.number or 2), {"generator": generator, "device": generator.device}
        batch, channels, _ = self.shape
        return {
            "ranks": torch.rand(*lead, batch, self.segments, **options),
            "height": 1 + self.scale * torch.randn(*lead, batch, channels, 1, **options),
            "grain": self.noise * torch.randn(*lead, *self.shape, **options),
        }

    def apply(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of `inputs`, given what `draw` drew; the `transform` of `lab.fit`. What else is in the batch stays."""
        ranks, height, grain = (batch[name] for name in ("ranks", "height", "grain"))
        views = [
            permuted(batch["inputs"], ranks[view]) * height[view] + grain[view] for view in range(self.number or 2)
        ]
        return _seen(views, batch, ("ranks", "height", "grain"), self.number)
