"""Small networks that several experiments share."""

import itertools
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["EncoderProjector", "cnn", "mlp"]


def mlp(
    widths: Sequence[int],
    *,
    norm: Callable[[int], nn.Module] | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Flatten, then linear layers of these widths, with norm and activation after all but the last.

    Args:
        widths: inputs, hidden layers, outputs: at least two numbers.
        norm: makes the normalisation of a layer from its width.
        activation: makes the activation.

    Raises:
        ValueError: for fewer than two widths.

    Examples:
        >>> network = lab.mlp([64, 32, 10])
        >>> network(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if len(widths) < 2:
        raise ValueError(f"widths: expected at least two numbers, got {list(widths)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers += [norm(after)] if norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


def cnn(channels: Sequence[int], *, inputs: int = 1) -> nn.Sequential:
    """3x3 convolutions, each with ReLU and halved resolution, then the mean over pixels: `(n, channels[-1])`.

    Args:
        channels: of each convolution.
        inputs: channels of the pictures.

    Examples:
        >>> network = lab.cnn([8, 16], inputs=3)
        >>> network(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([5, 16])
    """
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *channels], channels, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class EncoderProjector(nn.Module):
    """An encoder whose features are kept, and a projector that only the contrastive loss sees.

    Args:
        encoder: from inputs to features.
        projector: from features to embeddings.

    Examples:
        >>> network = lab.EncoderProjector(lab.mlp([64, 32]), lab.mlp([32, 8]))
        >>> features, projections = network(torch.zeros(5, 1, 8, 8))
        >>> features.shape, projections.shape
        (torch.Size([5, 32]), torch.Size([5, 8]))
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module):
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, inputs: Float[Tensor, "n *shape"]) -> tuple[Float[Tensor, "n h"], Float[Tensor, "n d"]]:
        """Features and projections."""
        features = self.encoder(inputs)
        return features, self.projector(features)
