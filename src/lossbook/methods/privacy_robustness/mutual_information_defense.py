r"""MID: a penalty on the information that a released prediction carries about the input.

Tianhao Wang, Yuheng Zhang and Ruoxi Jia, Improving Robustness to Model Inversion Attacks via Mutual Information
Regularization, AAAI 2021, arXiv:2009.05241.

The objective is $\mathbb E[\mathcal L(y,f(x))]+\lambda I(X;\hat Y)$. Networks bound the information by a stochastic
bottleneck; for linear-Gaussian models and trees it is computed exactly here, where the paper approximates.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossbook.methods._validate import (
    Reduction,
    alike,
    cross_entropy,
    floating,
    full_precision,
    indices,
    matching,
    number,
    one_of,
    positive,
    reduce,
    shaped,
    together,
    whole,
)

__all__ = [
    "MIDTree",
    "StochasticBottleneck",
    "bottleneck_information",
    "bottleneck_sample",
    "inversion_bound",
    "linear_gaussian_information",
    "linear_gaussian_mid",
    "linear_gaussian_shrinkage",
    "mid_kl",
    "mid_loss",
    "mid_tree",
]

Form = Literal["paper", "code"]

# Below this, softplus is an exponential to the last digit of double precision.
_TAIL = -40.0


def mid_kl(
    mean: Float[Tensor, "n k"],
    rho: Float[Tensor, "n k"],
    *,
    shift: float = 5.0,
    form: Form = "paper",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""The bottleneck's bound on information: divergence of each code from the standard Gaussian, in nats.

    $$\mathrm{KL}_b=\sum_{j=1}^k\tfrac12\bigl(\mu_{bj}^2+s_{bj}^2-1-2\log s_{bj}\bigr),\qquad
      s=\mathrm{softplus}(\rho-5)$$

    The sum is over $k$, so that a weight on it depends on the width. Its mean over inputs bounds $I(X;Z)$, and with it
    $I(X;\hat Y)$ for a prediction from one draw of $Z$, from above; $m$ draws carry up to $m$ times as much.

    Args:
        mean: $\mu$.
        rho: $\rho$, from which the standard deviation comes.
        shift: what is subtracted from $\rho$.
        form: "paper" is the above, with $\log s$ computed without underflow; "code" takes $\log(s+10^{-7})$, which
            forgives deviations below $10^{-7}$. Of the three training scripts of the published code one
            (`knowledge_align/train_vib.py`) has that offset; the others take the plain logarithm.
        reduction: over inputs.

    Raises:
        ValueError: for shapes, dtypes or options other than these.

    Source:
        arXiv:2009.05241, network part; Alemi et al. (2017), arXiv:1612.00410. "code": Jiachen-T-Wang/mi-defense.

    Examples:
        >>> mean, rho = torch.tensor([[1.0], [2.0]]), torch.full((2, 1), 5.5413)  # deviations of 1
        >>> mid_kl(mean, rho, reduction="none").round(decimals=3)
        tensor([0.5000, 2.0000])
    """
    mean, rho = _codes(mean, rho)
    shift = number("shift", shift)
    one_of("form", form, "paper", "code")
    shifted = rho - shift
    std = F.softplus(shifted)
    logs = _log_softplus(shifted) if form == "paper" else torch.log(std + 1e-7)
    return reduce((0.5 * (mean.square() + std.square() - 1) - logs).sum(1), reduction)


def bottleneck_sample(
    mean: Float[Tensor, "n k"],
    rho: Float[Tensor, "n k"],
    noise: Float[Tensor, "n k"] | None = None,
    *,
    shift: float = 5.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n k"]:
    r"""One draw of the code, $z=\mu+\mathrm{softplus}(\rho-5)\,\varepsilon$, differentiable by both.

    Args:
        mean, rho, shift: see `mid_kl`.
        noise: $\varepsilon$, standard Gaussian; zeros give $z=\mu$, which protects nothing. None to draw it here.
        generator: of the noise drawn here.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2009.05241, network part, and the official code, which has the shift.

    Examples:
        >>> mean, rho = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
        >>> bottleneck_sample(mean, rho, torch.tensor([[1.0, -1.0]])).round(decimals=3)
        tensor([[1.0070, 1.9930]])
    """
    mean, rho = _codes(mean, rho)
    shift = number("shift", shift)
    if noise is None:
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    mean, rho, noise = together(mean=mean, rho=rho, noise=noise)
    alike("noise", noise, "mean", mean, "shape")
    return mean + F.softplus(rho - shift) * noise


class StochasticBottleneck(nn.Module):
    r"""A linear layer that gives a Gaussian, and draws from it: $[\mu,\rho]=Wh+b$, $z=\mu+s\odot\varepsilon$.

    The noise stays in evaluation mode: a predictor without it is not protected.

    Attributes:
        linear: $W,b$, from the features to `2 * width` numbers.
        width: $k$.
        shift: what is subtracted from $\rho$, so that $s\approx0.0067$ where $\rho=0$.

    Examples:
        >>> bottleneck = StochasticBottleneck(features=16, width=4)
        >>> code, mean, rho = bottleneck(torch.ones(8, 16))
        >>> code.shape
        torch.Size([8, 4])
    """

    def __init__(self, features: int, width: int | None = None, *, shift: float = 5.0):
        r"""Make the layer.

        Args:
            features: width of its input.
            width: $k$; None for half the features.
            shift: see `mid_kl`.

        Raises:
            ValueError: for widths that are not positive.
        """
        super().__init__()
        features = whole("features", features)
        self.width = max(1, features // 2) if width is None else whole("width", width)
        self.shift = number("shift", shift)
        self.linear = nn.Linear(features, 2 * self.width)

    def forward(
        self,
        features: Float[Tensor, "n h"],
        noise: Float[Tensor, "n k"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        r"""The code $z$ its $\mu$ and $\rho$, in at least float32; `noise`, `generator`: see `bottleneck_sample`."""
        features, weight, bias = together(features=features, weight=self.linear.weight, bias=self.linear.bias)
        with full_precision(features):
            mean, rho = F.linear(features, weight, bias).chunk(2, dim=1)
        return bottleneck_sample(mean, rho, noise, shift=self.shift, generator=generator), mean, rho


def mid_loss(
    logits: Float[Tensor, "n c"],
    targets: Int[Tensor, " n"],
    mean: Float[Tensor, "n k"],
    rho: Float[Tensor, "n k"],
    *,
    beta: float | Float[Tensor, ""] = 0.003,
    shift: float = 5.0,
    form: Form = "paper",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy and the price of information.

    $$\ell_b=-\log p_{b,y_b}+\beta\,\mathrm{KL}_b$$

    Args:
        logits: from one draw of the code, $Vz$.
        targets: classes, $0$ to $c-1$; with another number the loss is not a number.
        mean, rho, shift, form: see `mid_kl`.
        beta: $\beta\ge0$; 0.003 is that of the faces in the published code, for 1,024 units.
        reduction: over inputs.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        arXiv:2009.05241, network part.

    Examples:
        >>> logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> mean, rho = torch.tensor([[1.0]]), torch.tensor([[5.0]])
        >>> round(mid_loss(logits, targets, mean, rho, beta=0.1).item(), 3)
        0.188
    """
    logits = shaped("logits", logits, "n c")
    targets = indices("targets", targets, len(logits))
    beta = number("beta", beta, least=0.0)
    if len(mean) != len(logits):
        raise ValueError(f"mean: expected {len(logits)} rows, as of logits, got {len(mean)}")
    logits, mean, rho = together(logits=logits, mean=mean, rho=rho)
    fit = cross_entropy(logits, targets)
    return reduce(fit + beta * mid_kl(mean, rho, shift=shift, form=form, reduction="none"), reduction)


def bottleneck_information(
    mean: Float[Tensor, "m k"],
    rho: Float[Tensor, "m k"],
    noise: Float[Tensor, "r m k"],
    *,
    shift: float = 5.0,
) -> Float[Tensor, ""]:
    r"""The information that one draw of the code carries about which of $m$ equally frequent inputs it came from.

    $$I(X;Z)=\frac1m\sum_i\mathbb E_{z\sim q_i}\Bigl[\log q_i(z)-\log\frac1m\sum_jq_j(z)\Bigr],\qquad
      q_i=\mathcal N(\mu_i,\mathrm{diag}\,s_i^2)$$

    with the expectation as a mean over the noise given; at most $\log m$. It says by how much `mid_kl` overestimates.

    Args:
        mean, rho, shift: see `mid_kl`.
        noise: standard Gaussian, $r$ draws for each input.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        our addition.

    Examples:
        >>> mean, rho = torch.tensor([[-10.0], [10.0]]), torch.full((2, 1), 5.0)  # far apart
        >>> round(bottleneck_information(mean, rho, torch.zeros(1, 2, 1)).item(), 3)  # log 2
        0.693
    """
    mean, rho = _codes(mean, rho)
    mean, rho, noise = together(mean=mean, rho=rho, noise=shaped("noise", noise, "r m k"))
    if noise.shape[1:] != mean.shape:
        raise ValueError(f"noise: expected shape (r, {mean.shape[0]}, {mean.shape[1]}), got {tuple(noise.shape)}")
    std, logs = F.softplus(rho - shift), _log_softplus(rho - shift).sum(1)
    codes = mean + std * noise
    inverse = torch.exp(-_log_softplus(rho - shift))
    # Draws one after the other: all distances at once would be (r, m, m, k).
    distances = torch.stack([((code[:, None] - mean) * inverse).square().sum(2) for code in codes])
    densities = -0.5 * distances - logs
    own = -0.5 * noise.square().sum(2) - logs
    return (own - densities.logsumexp(2)).mean() + math.log(len(mean))


def linear_gaussian_information(
    weight: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], *, noise: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    r"""Information, in nats, of the noisy release $\hat y=\theta^\top x+\sigma\varepsilon$ of a linear predictor.

    $$I(X;\hat Y)=\tfrac12\log\bigl(1+\theta^\top\Sigma\theta/\sigma^2\bigr)$$

    Args:
        weight: $\theta$.
        covariance: $\Sigma$ of the Gaussian input.
        noise: $\sigma>0$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        The information of a Gaussian channel; Cover and Thomas, Elements of Information Theory, chapter 9.

    Examples:
        >>> weight, covariance = torch.tensor([1.0, 0.0]), torch.eye(2)
        >>> round(linear_gaussian_information(weight, covariance, noise=1.0).item(), 3)
        0.347
    """
    weight = shaped("weight", weight, "d")
    weight, covariance = together(
        weight=weight, covariance=shaped("covariance", covariance, f"{len(weight)} {len(weight)}")
    )
    noise = positive("noise", noise)
    with full_precision(weight):
        signal = (weight @ covariance @ weight).clamp(min=0)
    return 0.5 * torch.log1p(signal / noise**2)


def linear_gaussian_shrinkage(
    signal: Float[Tensor, "..."], *, noise: float | Float[Tensor, ""], penalty: float | Float[Tensor, ""]
) -> Float[Tensor, "..."]:
    r"""How far MID shrinks a least-squares predictor: the $c$ of the smallest

    $$J(c)=v(c-1)^2+\tfrac\lambda2\log\bigl(1+c^2v/\sigma^2\bigr) .$$

    Stationary points solve $2v(c-1)(\sigma^2+c^2v)+\lambda vc=0$. There can be three, two of them minima, and the best
    then jumps as $\lambda$ grows; both are computed and compared.

    Args:
        signal: $v=\theta_{LS}^\top\Sigma\theta_{LS}\ge0$, the variance that least squares explains.
        noise: $\sigma>0$ of the release.
        penalty: $\lambda\ge0$.

    Returns:
        $c\in[0,1]$ for each $v$, without gradient.

    Raises:
        ValueError: for dtypes or numbers other than these.

    Source:
        arXiv:2009.05241, linear part, in the exact Gaussian case; the choice among stationary points is ours.

    Examples:
        >>> signal = torch.tensor([0.5, 1.0, 4.0])
        >>> linear_gaussian_shrinkage(signal, noise=1.0, penalty=1.0).round(decimals=3)
        tensor([0.7150, 0.7590, 0.8930])
    """
    signal = floating("signal", signal).detach()
    noise = positive("noise", noise)
    penalty = number("penalty", penalty, least=0.0)
    noise = torch.as_tensor(noise, dtype=torch.float64, device=signal.device).expand(signal.shape)
    penalty = torch.as_tensor(penalty, dtype=torch.float64, device=signal.device).expand(signal.shape)
    v = signal.double().clamp(min=torch.finfo(torch.float32).tiny)
    # In units of v: J = (c - 1)² + b log(1 + c²/a), stationary where c = g(c) = (a + c²) / (a + c² + b). As g
    # increases, going on from 1 leads down to the largest of the solutions, and from 0 up to the smallest; between
    # them is a maximum.
    a, b = (noise**2 / v)[..., None], (penalty / (2 * v))[..., None]
    c = torch.stack([torch.zeros_like(v), torch.ones_like(v)], -1)
    for _ in range(100):
        c = (a + c.square()) / (a + c.square() + b)
    for _ in range(4):  # Newton, for the last digits
        value = (c - 1) * (a + c.square()) + b * c
        slope = a + b + (3 * c - 2) * c
        step = value / torch.where(slope <= 0, torch.inf, slope)
        c = (c - step.clamp(-0.01, 0.01)).clamp(0, 1)
    cost = (c - 1).square() + b * torch.log1p(c.square() / a)
    best = c.take_along_dim(cost.argmin(-1, keepdim=True), -1)
    return best[..., 0].to(signal.dtype)


def linear_gaussian_mid(
    covariance: Float[Tensor, "d d"],
    cross: Float[Tensor, " d"],
    *,
    noise: float | Float[Tensor, ""],
    penalty: float | Float[Tensor, ""],
) -> Float[Tensor, " d"]:
    r"""The linear predictor that minimises $\mathbb E(y-\hat y)^2+\lambda I(X;\hat Y)$.

    $$\hat y=\theta^\top x+\sigma\varepsilon,\qquad\theta=c\,\theta_{LS},\qquad\theta_{LS}=\Sigma^{-1}\mathbb E[xy]$$

    with the $c$ of `linear_gaussian_shrinkage`: the direction of least squares, shorter.

    Args:
        covariance: $\Sigma$ of the centred inputs, invertible.
        cross: $\mathbb E[xy]$, with a centred $y$.
        noise: $\sigma>0$, added to what is released.
        penalty: $\lambda\ge0$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        arXiv:2009.05241, linear part, in the exact Gaussian case (the paper fits a mixture to the outputs).

    Examples:
        >>> covariance, cross = torch.eye(2), torch.tensor([2.0, 0.0])
        >>> linear_gaussian_mid(covariance, cross, noise=1.0, penalty=1.0).round(decimals=3)
        tensor([1.7870, 0.0000])
    """
    cross = shaped("cross", cross, "d")
    cross, covariance = together(cross=cross, covariance=shaped("covariance", covariance, f"{len(cross)} {len(cross)}"))
    with full_precision(cross):
        weight = torch.linalg.solve(covariance, cross)
        signal = weight @ cross
    return linear_gaussian_shrinkage(signal, noise=noise, penalty=penalty) * weight


@dataclass(frozen=True)
class MIDTree:
    """A binary tree whose leaves release class frequencies.

    `dataclasses.asdict(tree)` is saved by `torch.save`, and `MIDTree(**saved)` is the tree again.

    Attributes:
        feature: column asked at each node, -1 at leaves.
        threshold: rows with at most this go left.
        left: number of the left child; the right one is the next.
        frequencies: of the classes among the training rows of each node, `(nodes, classes)`.
        leaf_entropy: of the training rows' leaves, in nats: at least the entropy of the release.

    Examples:
        >>> inputs, targets = torch.arange(12.0)[:, None], torch.tensor([0] * 6 + [1] * 6)
        >>> tree = mid_tree(inputs, targets)
        >>> tree(torch.tensor([[2.0], [9.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """

    feature: Int[Tensor, " nodes"] = field(repr=False)
    threshold: Float[Tensor, " nodes"] = field(repr=False)
    left: Int[Tensor, " nodes"] = field(repr=False)
    frequencies: Float[Tensor, "nodes c"] = field(repr=False)
    leaf_entropy: float
    _depth: int

    def leaves(self, inputs: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The node at which each row ends."""
        inputs = shaped("inputs", inputs, "n d")
        node = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        for _ in range(self._depth):
            column = self.feature[node]
            value = inputs.gather(1, column.clamp(min=0)[:, None])[:, 0]
            child = self.left[node] + (value > self.threshold[node]).long()
            node = torch.where(column < 0, node, child)
        return node

    def __call__(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """What is released: the class frequencies of each row's leaf."""
        released = self.frequencies[self.leaves(inputs)]
        # Not a number is in no leaf.
        return torch.where(inputs.isnan().any(1, keepdim=True), torch.nan, released)


class _Node(NamedTuple):
    """A node while the tree grows; without a column it is a leaf."""

    frequencies: Tensor
    feature: int = -1
    threshold: float = 0.0
    left: int = 0


def mid_tree(
    inputs: Float[Tensor, "n d"],
    targets: Int[Tensor, " n"],
    *,
    penalty: float = 0.0,
    depth: int = 4,
    least: int = 5,
    classes: int | None = None,
) -> MIDTree:
    r"""A tree whose splits pay for the information that they release.

    A split of a node that holds a share $w$ of the rows is worth

    $$w\bigl[\mathrm{IG}-\lambda\,H_b(\text{split})\bigr],$$

    the fall of the cross-entropy less $\lambda$ times the rise of the entropy of the leaf. The best positive one is
    made: a node is split only if its gain *ratio*, $\mathrm{IG}/H_b$, exceeds $\lambda$. Without penalty it is the
    usual tree by information gain.

    Args:
        inputs: rows.
        targets: classes.
        penalty: $\lambda\ge0$; from 1 on nothing is split.
        depth: the most questions asked of a row.
        least: the fewest training rows in a leaf.
        classes: how many there are; None for as many as are in the targets.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        After arXiv:2009.05241, tree part; leaf entropy by exact counting, for a deterministic tree, is ours.

    Examples:
        >>> inputs, targets = torch.arange(12.0)[:, None], torch.tensor([0] * 6 + [1] * 6)
        >>> tree, stump = mid_tree(inputs, targets), mid_tree(inputs, targets, penalty=1.0)
        >>> round(tree.leaf_entropy, 3), stump.leaf_entropy
        (0.693, 0.0)
    """
    inputs = shaped("inputs", inputs, "n d").detach()
    targets = indices("targets", targets, len(inputs))
    penalty = number("penalty", penalty, least=0.0)
    depth = whole("depth", depth)
    least = whole("least", least)
    n = len(inputs)
    classes = int(targets.max()) + 1 if classes is None else whole("classes", classes)
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(
            f"targets: expected classes from 0 to {classes - 1}, got {int(targets.min())} to {int(targets.max())}"
        )
    if inputs.isnan().any():
        raise ValueError("inputs: expected numbers, got NaN")
    labels = F.one_hot(targets, classes).double()
    order = inputs.argsort(dim=0, stable=True)
    nodes = [_Node(labels.mean(0))]
    open_nodes = [(0, torch.ones(n, dtype=torch.bool, device=inputs.device), 0)]
    entropy = 0.0
    while open_nodes:
        node, members, level = open_nodes.pop(0)
        found = _best_split(inputs, labels, order, members, penalty, least) if level < depth else None
        if found is None:
            share = float(members.sum()) / n
            entropy -= share * math.log(share)
            continue
        column, threshold = found
        nodes[node] = _Node(nodes[node].frequencies, column, threshold, len(nodes))
        right = inputs[:, column] > threshold
        for side in (members & ~right, members & right):
            open_nodes.append((len(nodes), side, level + 1))
            nodes.append(_Node(labels[side].mean(0)))
    device = inputs.device
    return MIDTree(
        feature=torch.tensor([node.feature for node in nodes], device=device),
        threshold=torch.tensor([node.threshold for node in nodes], dtype=inputs.dtype, device=device),
        left=torch.tensor([node.left for node in nodes], device=device),
        frequencies=torch.stack([node.frequencies for node in nodes]).to(inputs.dtype),
        leaf_entropy=max(0.0, entropy),
        _depth=depth,
    )


def inversion_bound(
    information: Float[Tensor, "..."],
    values: int,
    *,
    form: Literal["fano", "pinsker"] = "pinsker",
) -> Float[Tensor, "..."]:
    r"""The most often that any attacker can guess an attribute, uniform on $M$ values, from what was released.

    $$\text{Fano: }\frac{I+\log2}{\log M},\qquad\text{Pinsker: }\frac1M+\sqrt{I/2},$$

    both cut at 1. The second is the smaller for little information: at $I=0$ the first still allows
    $\log2/\log M$, which is a half for $M=4$.

    Args:
        information: $I(X_s;\hat Y)\ge0$ in nats, of all that was released together.
        values: $M\ge2$.
        form: which bound.

    Raises:
        ValueError: for dtypes or numbers other than these.

    Source:
        Fano's and Pinsker's inequalities.

    Examples:
        >>> inversion_bound(torch.tensor([0.0, 0.02, 2.0]), values=4).round(decimals=3)
        tensor([0.2500, 0.3500, 1.0000])
    """
    information = floating("information", information)
    values = whole("values", values, least=2)
    one_of("form", form, "fano", "pinsker")
    if form == "fano":
        bound = (information + math.log(2)) / math.log(values)
    else:
        bound = 1 / values + (information.clamp(min=0) / 2).sqrt()
    return bound.clamp(max=1)


def _codes(mean: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    mean, rho = matching("n k", mean=mean, rho=rho)
    return mean, rho


def _log_softplus(x: Tensor) -> Tensor:
    """The logarithm of softplus, which is x itself where softplus underflows; both branches have finite gradients."""
    tail = x < _TAIL
    return torch.where(tail, x, F.softplus(torch.where(tail, torch.zeros_like(x), x)).log())


def _entropy(counts: Tensor) -> Tensor:
    """Entropy, in nats, of what was counted along the last dimension, which holds something."""
    return torch.special.entr(counts / counts.sum(-1, keepdim=True)).sum(-1)


def _best_split(
    inputs: Tensor, labels: Tensor, order: Tensor, members: Tensor, penalty: float, least: int
) -> tuple[int, float] | None:
    """Column and threshold of the split that is worth most, or None if none is worth anything."""
    total = int(members.sum())
    if total < 2 * least:
        return None
    rows = torch.stack([column[members[column]] for column in order.T], 1)  # of the node, sorted along each column
    values = inputs.gather(0, rows)
    left = labels[rows].cumsum(0)[:-1]
    whole_node = labels[members].sum(0)
    right = whole_node - left
    sizes = torch.arange(1, total, dtype=labels.dtype, device=inputs.device)[:, None]
    share = sizes / total
    gain = _entropy(whole_node) - share * _entropy(left) - (1 - share) * _entropy(right)
    paid = torch.special.entr(share) + torch.special.entr(1 - share)
    allowed = (values[1:] > values[:-1]) & (sizes >= least) & (total - sizes >= least)
    worth = torch.where(allowed, gain - penalty * paid, -torch.inf)
    best = int(worth.argmax())
    if float(worth.flatten()[best]) <= 1e-12:
        return None
    row, column = divmod(best, inputs.shape[1])
    return column, float((values[row, column] + values[row + 1, column]) / 2)
