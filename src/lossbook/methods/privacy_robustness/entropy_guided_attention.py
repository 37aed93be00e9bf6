"""Jha and Reagen, Entropy-Guided Attention for Private LLMs (PPAI at AAAI 2025), arXiv:2501.03489."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossbook.methods._validate import alike, floating, full_precision, number, one_of, shaped, together, whole

__all__ = [
    "SpectralNormalisation",
    "WeightNormalisation",
    "attention_entropy",
    "causal_attention",
    "entropy_penalty",
    "merged_linear",
    "nonlinear_operations",
]


def causal_attention(
    query: Float[Tensor, "*batch heads t d"],
    key: Float[Tensor, "*batch heads t d"],
    *,
    temperature: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "*batch heads t t"]:
    r"""Attention of each head at a temperature of its own.

    $$a_{ij}=\frac{e^{z_{ij}/t_h}}{\sum_{k\le i}e^{z_{ik}/t_h}}\ (j\le i),\qquad z_{ij}=\frac{q_i^\top k_j}{\sqrt d}$$

    Args:
        query: one row a position; float16 and bfloat16 are computed in float32, without autocast.
        key: as `query`.
        temperature: $t_h>0$ of each head; None for 1.

    Returns:
        Rows that sum to one, zero to the right of the diagonal.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2501.03489; one temperature a head is our reading, the paper's own shape was not available.

    Examples:
        >>> query = torch.zeros(1, 3, 4)  # one head, three positions
        >>> causal_attention(query, query).round(decimals=3)
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.5000, 0.5000, 0.0000],
                 [0.3330, 0.3330, 0.3330]]])
    """
    query, key = together(query=query, key=key)
    if query.ndim < 3 or 0 in query.shape:
        raise ValueError(f"query: expected shape (..., heads, t, d), no dimension of it 0, got {tuple(query.shape)}")
    alike("key", key, "query", query, "shape")
    with full_precision(query):
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if temperature is not None:
        logits, temperature = together(logits=logits, temperature=temperature)
        if tuple(temperature.shape) != (query.shape[-3],):
            raise ValueError(
                f"temperature: expected shape (heads,) = ({query.shape[-3]},), got {tuple(temperature.shape)}"
            )
        logits = logits / temperature[:, None, None]
    later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(later, -math.inf).softmax(-1)


def attention_entropy(attention: Float[Tensor, "*rows t"], *, epsilon: float = 0.0) -> Float[Tensor, "*rows"]:
    r"""Entropy of each row of an attention matrix, in nats.

    $$H=-\sum_j a_j\log(a_j+\epsilon),\qquad 0\log0=0$$

    Args:
        attention: rows of numbers in $[0,1]$ that sum to one; float16 and bfloat16 are computed in float32.
        epsilon: added inside the logarithm, at least 0. The official code has $10^{-9}$. It is not needed here: entries
            of zero are left out, with gradient 0. The value moves by at most $t\,\epsilon$.

    Returns:
        Numbers between 0 and $\log t$.

    Raises:
        ValueError: for a dtype, shape or epsilon other than these.

    Source:
        arXiv:2501.03489.

    Examples:
        >>> attention = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> attention_entropy(attention).round(decimals=3)
        tensor([0.3250, 0.6930])
    """
    attention = floating("attention", attention)
    epsilon = number("epsilon", epsilon, 0.0)
    if attention.ndim < 1 or 0 in attention.shape:
        raise ValueError(f"attention: expected shape (..., t), no dimension of it 0, got {tuple(attention.shape)}")
    # The logarithm of a zero has an infinite gradient, and infinity times zero is not a number.
    safe = torch.where(attention > 0, attention + epsilon, torch.ones_like(attention))
    return -(attention * safe.log()).sum(-1)


def entropy_penalty(
    entropies: Float[Tensor, "layers batch heads t"],
    thresholds: Float[Tensor, "*layers heads"],
    *,
    weight: float | Float[Tensor, ""] = 1e-5,
    margin: float = 0.2,
    ceiling: Literal["context", "row"] = "context",
    context: int | None = None,
    band: Literal["jump", "hinge"] = "jump",
    rows: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, ""]:
    r"""Penalty on attention entropies that leave a band around a threshold, which each head may learn.

    $$L=\frac{\lambda}{N_lN_h}\sum_{l,h}\sum_{b,i}\Delta^2\,\mathbb 1[|\Delta|>m_i],\qquad
    \Delta=H^{(l,h)}_{b,i}-\theta_{lh}E_i,\quad m_i=\gamma E_i$$

    with $E_i=\log T$. It is 0 inside the band and jumps by $\lambda m_i^2/(N_lN_h)$ at its edge; the gradient does not
    see the jump. Row $i$ cannot reach an entropy above $\log i$, so the first rows are below the band whatever the
    model does.

    Args:
        entropies: of each row of each attention matrix, as of `attention_entropy`; float16 and bfloat16 are computed in
            float32.
        thresholds: $\theta$, of each layer and head, or of each head and shared by all layers, as the official example
            has it.
        weight: $\lambda\ge0$.
        margin: $\gamma\ge0$, half the width of the band in parts of $E_i$.
        ceiling: "context": $E_i=\log T$ for all rows, as the official code has it; "row": $E_i=\log i$, the most that
            row $i=1,2,\dots$ can reach, which sees $i$ positions.
        context: $T$ of the ceiling "context", at least $t$; None for $t$ itself. The official code has the model's
            longest context, which matters where sequences are shorter.
        band: "jump", or "hinge" for $\max(0,|\Delta|-m_i)^2$ in place of $\Delta^2\,\mathbb1[|\Delta|>m_i]$, which is
            continuous.
        rows: "sum" over batch and rows, as the official code has it, or "mean", which does not grow with their number:
            the same penalty for $\lambda$ times their number.

    Returns:
        A number, at least 0; NaN where an entropy is.

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these.

    Source:
        arXiv:2501.03489, and the official code; "row", "hinge" and "mean" are ours.

    Examples:
        >>> entropies = torch.tensor([[[[0.6, 0.6]], [[0.1, 0.1]]]])  # (layers, batch, heads, t)
        >>> thresholds = torch.tensor([1.0])
        >>> round(entropy_penalty(entropies, thresholds, weight=1.0, margin=0.5).item(), 3)
        0.704
    """
    entropies = shaped("entropies", entropies, "layers batch heads t")
    layers, _, heads, length = entropies.shape
    thresholds = floating("thresholds", thresholds)
    if tuple(thresholds.shape) not in ((layers, heads), (heads,)):
        raise ValueError(
            f"thresholds: expected shape (layers, heads) = ({layers}, {heads}) or (heads,), "
            f"got {tuple(thresholds.shape)}"
        )
    weight = number("weight", weight, 0.0)
    margin = number("margin", margin, 0.0)
    one_of("ceiling", ceiling, "context", "row")
    if context is not None:
        context = whole("context", context, least=length)
        if ceiling == "row":
            raise ValueError(f'context: expected None with ceiling="row", got {context}')
    one_of("band", band, "jump", "hinge")
    one_of("rows", rows, "sum", "mean")
    if ceiling == "row":
        limit = torch.arange(1, length + 1, device=entropies.device, dtype=entropies.dtype).log()
    else:
        limit = torch.full((length,), math.log(context or length), device=entropies.device, dtype=entropies.dtype)
    deviation = entropies - thresholds.expand(layers, heads)[:, None, :, None] * limit
    width = margin * limit
    if band == "hinge":
        penalties = (deviation.abs() - width).clamp(min=0).square()
    else:
        # What is not a number is not inside.
        penalties = torch.where(deviation.abs() <= width, 0, deviation).square()
    over_rows = penalties.sum((1, 3)) if rows == "sum" else penalties.mean((1, 3))
    return weight * over_rows.mean()


def merged_linear(
    first: Float[Tensor, "hidden inputs"],
    second: Float[Tensor, "outputs hidden"],
    *,
    first_bias: Float[Tensor, " hidden"] | None = None,
    second_bias: Float[Tensor, " outputs"] | None = None,
) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    r"""One linear map for two in a row: a feed-forward network without activation.

    $$W_2(W_1x+b_1)+b_2=(W_2W_1)\,x+(W_2b_1+b_2)$$

    Args:
        first: $W_1$; float16 and bfloat16 are computed in float32, without autocast.
        second: $W_2$.
        first_bias: $b_1$; None for 0.
        second_bias: $b_2$; None for 0.

    Returns:
        Weight and bias.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2501.03489, the fused feed-forward network.

    Examples:
        >>> first, second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
        >>> biases = {"first_bias": first.bias, "second_bias": second.bias}
        >>> weight, bias = merged_linear(first.weight, second.weight, **biases)
        >>> torch.allclose(weight.sum(1) + bias, second(first(torch.ones(4))), atol=1e-5)
        True
    """
    first, second = together(first=shaped("first", first, "hidden inputs"), second=second)
    if second.ndim != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(f"second: expected shape (outputs, {first.shape[0]}), got {tuple(second.shape)}")
    bias = second.new_zeros(second.shape[0]) if second_bias is None else floating("second_bias", second_bias)
    if tuple(bias.shape) != (second.shape[0],):
        raise ValueError(f"second_bias: expected shape ({second.shape[0]},), got {tuple(bias.shape)}")
    if first_bias is not None:
        first_bias = floating("first_bias", first_bias)
        if tuple(first_bias.shape) != (first.shape[0],):
            raise ValueError(f"first_bias: expected shape ({first.shape[0]},), got {tuple(first_bias.shape)}")
        second, first_bias = together(second=second, first_bias=first_bias)
        with full_precision(second):
            bias = bias + second @ first_bias
    first, second = together(first=first, second=second)
    with full_precision(second):
        return second @ first, bias


class WeightNormalisation(nn.Module):
    r"""Weight normalisation $W=g\,v/\lVert v\rVert$ by rows, as a parametrisation of torch.nn.utils.parametrize.

    As torch.nn.utils.parametrizations.weight_norm, but it also works under torch.func.vmap.

    Source:
        arXiv:2501.03489; Salimans and Kingma (2016), arXiv:1602.07868.

    Examples:
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> layer = torch.nn.Linear(4, 3)
        >>> _ = register_parametrization(layer, "weight", WeightNormalisation())
        >>> [tuple(each.shape) for each in layer.parameters()]  # bias, length, direction
        [(3,), (3, 1), (3, 4)]
    """

    def forward(
        self, length: Float[Tensor, "outputs 1"], direction: Float[Tensor, "outputs inputs"]
    ) -> Float[Tensor, "outputs inputs"]:
        """The weight."""
        length_, direction_ = together(length=length, direction=direction)
        # A row of zeros has no direction, and stays.
        smallest = torch.finfo(direction_.dtype).tiny
        weight = length_ * direction_ / direction_.norm(dim=1, keepdim=True).clamp(min=smallest)
        return weight.to(torch.promote_types(length.dtype, direction.dtype))

    def right_inverse(
        self, weight: Float[Tensor, "outputs inputs"]
    ) -> tuple[Float[Tensor, "outputs 1"], Float[Tensor, "outputs inputs"]]:
        """Length and direction that give this weight."""
        return weight.norm(dim=1, keepdim=True), weight


class SpectralNormalisation(nn.Module):
    r"""Spectral normalisation $W/\sigma_{\max}(W)$, as a parametrisation of torch.nn.utils.parametrize.

    The largest singular value is followed by one power iteration a call in training, from a start of 15 iterations. As
    torch.nn.utils.parametrizations.spectral_norm, but it also works under torch.func.vmap.

    Attributes:
        left: the current estimate of the left singular vector.

    Source:
        arXiv:2501.03489; Miyato et al. (2018), arXiv:1802.05957.

    Examples:
        >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
        >>> normalise = SpectralNormalisation(weight)
        >>> normalise(weight).round(decimals=3)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.3330]])
    """

    left: Tensor

    def __init__(self, weight: Float[Tensor, "outputs inputs"], *, start: int = 15):
        """Begin at a matrix.

        Args:
            weight: the matrix that will be normalised.
            start: power iterations at the beginning, at least 1.

        Raises:
            ValueError: for another shape or number.
        """
        super().__init__()
        weight = shaped("weight", weight.detach(), "outputs inputs")
        start = whole("start", start)
        left = weight.new_ones(len(weight)) + torch.arange(len(weight), device=weight.device) / len(weight)
        with full_precision(weight):
            for _ in range(start):
                left = _towards_left(weight, left)
        self.register_buffer("left", left)

    def forward(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The weight, divided by its largest singular value; half precision is computed in float32."""
        matrix, left = together(weight=weight, left=self.left)
        with full_precision(matrix):
            with torch.no_grad():
                # Rounded to half precision it is no unit vector any more.
                left = _towards_left(matrix, left) if self.training else nn.functional.normalize(left, dim=0)
                right = nn.functional.normalize(matrix.T @ left, dim=0)
                if self.training:
                    # One bad weight would stay in the estimate for ever.
                    self.left.copy_(torch.where(left.isfinite().all(), left, self.left))
            sigma = left @ matrix @ right
        return (matrix / sigma.clamp(min=torch.finfo(matrix.dtype).tiny)).to(weight.dtype)


def _towards_left(weight: Tensor, left: Tensor) -> Tensor:
    """One power iteration of $W W^T$."""
    return nn.functional.normalize(weight @ nn.functional.normalize(weight.T @ left, dim=0), dim=0)


def nonlinear_operations(
    *,
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    length: int,
    norm: bool = True,
    activation: bool = True,
    last_norm: bool = False,
) -> dict[str, int]:
    r"""Numbers that pass through nonlinear operations for one sequence: what private inference pays for.

    Softmax $N_lN_ht^2$, normalisation $2N_l\,t\,d$, activation $N_l\,t\,d_{\mathrm{hidden}}$: the sizes that the
    paper's tables list. A causal softmax uses about half of its square.

    Args:
        layers: $N_l$.
        heads: $N_h$ in each layer.
        width: $d$ of the residual stream.
        hidden: $d_{\mathrm{hidden}}$ of the feed-forward network.
        length: $t$ of the sequence.
        norm: whether there are normalisations.
        activation: whether the feed-forward network has an activation.
        last_norm: whether to count, where there are normalisations, that before the output; the paper does not.

    Returns:
        Numbers by operation: "softmax", "norm", "activation".

    Raises:
        ValueError: for a number below 1.

    Source:
        arXiv:2501.03489, tables of results.

    Examples:
        >>> sizes = {"layers": 12, "heads": 12, "width": 768, "hidden": 3072, "length": 128}
        >>> nonlinear_operations(**sizes, norm=False)
        {'softmax': 2359296, 'norm': 0, 'activation': 4718592}
    """
    layers, heads, width, hidden, length = (
        whole(name, value)
        for name, value in dict(layers=layers, heads=heads, width=width, hidden=hidden, length=length).items()
    )
    return {
        "softmax": layers * heads * length**2,
        "norm": (2 * layers + last_norm) * length * width if norm else 0,
        "activation": layers * length * hidden if activation else 0,
    }
