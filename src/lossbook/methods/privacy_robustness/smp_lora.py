"""Luo and co-authors, Privacy-Preserving Low-Rank Adaptation for Latent Diffusion Models (2024), arXiv:2402.11989."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lossbook.methods._validate import floating, full_precision, number, positive, shaped, together, whole

__all__ = ["MembershipAttacker", "attacker_loss", "mp_lora_loss", "smp_lora_loss"]


class MembershipAttacker(nn.Module):
    """The proxy attacker: a network that tells members from non-members by their error maps.

    Attributes:
        layers: the linear layers; ReLU and dropout follow all but the last.
        dropout: share of hidden values set to zero where masks are given.

    Examples:
        >>> attacker, maps = MembershipAttacker(64, hidden=(16,)), torch.rand(10, 1, 8, 8)
        >>> kept = attacker.draw(torch.Generator().manual_seed(0), len(maps))
        >>> attacker(maps).shape, attacker(maps, kept).shape
        (torch.Size([10, 2]), torch.Size([10, 2]))
    """

    def __init__(self, inputs: int, *, hidden: Sequence[int] = (512, 256), dropout: float = 0.5):
        """Make one.

        Args:
            inputs: elements of an error map.
            hidden: widths of the hidden layers.
            dropout: share of hidden values that masks set to zero, in $[0,1)$.

        Raises:
            ValueError: for widths below 1 or a share outside $[0,1)$.
        """
        super().__init__()
        inputs = whole("inputs", inputs)
        for width in hidden:
            whole("hidden", width)
        dropout = number("dropout", dropout, 0.0, 1.0)
        if dropout == 1:
            raise ValueError("dropout: expected a number below 1, got 1")
        widths = [inputs, *hidden, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = dropout
        self._hidden = tuple(hidden)

    def draw(self, generator: torch.Generator, *lead: int) -> list[Bool[Tensor, "..."]]:
        """Masks of dropout, one `(*lead, width)` a hidden layer: what is kept.

        Args:
            generator: of the masks, which are on its device.
            lead: the number of maps, or steps and maps.
        """
        return [
            torch.rand(*lead, width, generator=generator, device=generator.device) >= self.dropout
            for width in self._hidden
        ]

    def forward(
        self, maps: Float[Tensor, "n *shape"], kept: Sequence[Bool[Tensor, "n _"]] | None = None
    ) -> Float[Tensor, "n 2"]:
        """Logits of non-member (0) and member (1).

        Args:
            maps: error maps, flattened inside; computed in float32 at least, as is a network in half precision.
            kept: masks of dropout as `draw` makes them; None for no dropout.
        """
        hidden = floating("maps", maps).flatten(1)
        with full_precision(hidden):
            for index, layer in enumerate(self.layers):
                hidden = F.linear(*together(maps=hidden, weight=layer.weight, bias=layer.bias))
                if index < len(self.layers) - 1:
                    hidden = F.relu(hidden)
                    if kept is not None:
                        hidden = hidden * kept[index] / (1 - self.dropout)
        return hidden


def attacker_loss(
    member_logits: Float[Tensor, "n 2"], other_logits: Float[Tensor, "m 2"] | None = None
) -> Float[Tensor, ""]:
    r"""The attacker's cross-entropy, which is the negative of its gain $G$.

    $$-G=-\tfrac12\,\mathbb E_{\text{members}}\log p-\tfrac12\,\mathbb E_{\text{others}}\log(1-p)$$

    with $p$ the probability of membership. Without non-members it is $C=-\mathbb E_{\text{members}}\log p$, which is
    what the official code uses in the step of the adapted model.

    Args:
        member_logits: logits of non-member and member, for members; float16 and bfloat16 are computed in float32.
        other_logits: the same for non-members; None for the one-sided form.

    Returns:
        The loss, at least 0; $\log2$ for an attacker that guesses.

    Raises:
        ValueError: for other shapes or dtypes.

    Source:
        arXiv:2402.11989; the one-sided form from the official code.

    Examples:
        >>> members, others = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(attacker_loss(members, others).item(), 3)
        0.127
        >>> round(attacker_loss(torch.zeros(5, 2)).item(), 3)  # a guess
        0.693
    """
    members = F.softplus(-_margin("member_logits", member_logits)).mean()
    if other_logits is None:
        return members
    return (members + F.softplus(_margin("other_logits", other_logits)).mean()) / 2


def mp_lora_loss(
    denoising_loss: Float[Tensor, ""], attacker_loss: Float[Tensor, ""], *, weight: float | Tensor = 1.0
) -> Float[Tensor, ""]:
    r"""Minimax loss: denoise well and make the attacker wrong, $\Psi=L-\alpha C$.

    Not bounded below: $C$ can be made as large as one likes.

    Args:
        denoising_loss: $L$, at least 0.
        attacker_loss: $C$, at least 0, from `attacker_loss` with gradients into the adapted model.
        weight: $\alpha\ge0$.

    Raises:
        ValueError: for tensors with dimensions, or a negative weight.

    Source:
        arXiv:2402.11989, MP-LoRA.

    Examples:
        >>> denoising, confusion = torch.tensor(0.2), torch.tensor(0.5)
        >>> round(mp_lora_loss(denoising, confusion, weight=0.1).item(), 3)
        0.15
    """
    loss, confusion = shaped("denoising_loss", denoising_loss, ""), shaped("attacker_loss", attacker_loss, "")
    weight = number("weight", weight, 0.0)
    return loss - weight * confusion


def smp_lora_loss(
    denoising_loss: Float[Tensor, ""],
    attacker_loss: Float[Tensor, ""],
    *,
    weight: float | Tensor = 1.0,
    offset: float | Tensor = 1.0,
    epsilon: float = 1e-5,
) -> Float[Tensor, ""]:
    r"""Stable minimax loss: the same aims as a ratio, $\Phi=\dfrac{L}{\beta+\alpha C+\delta}$.

    It lies between 0 and $L/(\beta+\delta)$. Its gradient is $\frac1D(\nabla L-\alpha\Phi\nabla C)$ with $D$ the
    denominator: that of `mp_lora_loss` with weight $\alpha\Phi$, which fades as $L$ does, and a step shorter by $D$.

    Args:
        denoising_loss: $L$, at least 0.
        attacker_loss: $C$, at least 0, from `attacker_loss` with gradients into the adapted model.
        weight: $\alpha\ge0$.
        offset: $\beta\ge0$.
        epsilon: $\delta>0$.

    Raises:
        ValueError: for tensors with dimensions, a negative weight or offset, or an epsilon that is not positive.

    Source:
        arXiv:2402.11989, SMP-LoRA; the names of the weights from the official code.

    Examples:
        >>> denoising, confusion = torch.tensor(0.2), torch.tensor(1.0)
        >>> round(smp_lora_loss(denoising, confusion, weight=1.0, offset=1.0).item(), 3)
        0.1
    """
    loss, confusion = shaped("denoising_loss", denoising_loss, ""), shaped("attacker_loss", attacker_loss, "")
    weight = number("weight", weight, 0.0)
    offset = number("offset", offset, 0.0)
    epsilon = positive("epsilon", epsilon)
    return loss / (offset + weight * confusion + epsilon)


def _margin(name: str, logits: Tensor) -> Tensor:
    """Log-odds of membership."""
    logits = shaped(name, logits, "n 2")
    return logits[:, 1] - logits[:, 0]
