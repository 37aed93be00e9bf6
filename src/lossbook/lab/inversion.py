"""Attackers that work back from what a model releases to what it was given.

A decoder learnt from auxiliary data, gradient ascent on a class posterior, and Bayesian inference of one attribute.
All can ask a stochastic model many times and average its noise out (`averaged`, several draws, several queries).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from lossbook.lab._validate import class_numbers, has_shape, number, real, refuted, share, whole
from lossbook.lab.fitting import choose_device, fit
from lossbook.lab.statistics import Interval

__all__ = [
    "Decoders",
    "ascend_posterior",
    "attribute_posterior",
    "attribute_success",
    "averaged",
    "explained_share",
    "fit_decoders",
    "success_rate",
    "with_candidates",
]


def averaged(release: Callable[[], Float[Tensor, "*shape"]], queries: int) -> Float[Tensor, "*shape"]:
    """The mean of so many releases: an adaptive attacker's way to take independent noise out.

    Args:
        release: asks the model once, with fresh noise.
        queries: how many times.

    Raises:
        ValueError: if `queries` is not positive.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> mean = inversion.averaged(lambda: 1 + torch.randn(3, generator=generator), queries=1000)
        >>> bool((mean - 1).abs().max() < 0.3)
        True
    """
    queries = whole("queries", queries)
    total = release()
    for _ in range(queries - 1):
        total = total + release()
    return total / queries


class _Decoder(nn.Module):
    """A linear map from the standardised release, and a network with two hidden layers that corrects it."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, hidden: int):
        super().__init__()
        inputs, outputs = weight.shape
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(inputs, outputs)
        first, second, last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
        self.correction = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        with torch.no_grad():
            self.linear.weight.copy_(weight.T)
            self.linear.bias.copy_(bias)
            last.weight.zero_()
            last.bias.zero_()

    def forward(self, released: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        released = (released - self.mean) / self.scale
        return self.linear(released) + self.correction(released)


@dataclass(frozen=True)
class Decoders:
    """One decoder for each attacked model.

    Attributes:
        held_out_error: of each, the mean squared error on auxiliary data that it was not fitted to.
        trained: whether the trained decoder was better there than least squares, from which it started, and the mean.

    Examples:
        >>> originals = torch.linspace(-1, 1, 50)[:, None]
        >>> decoders = inversion.fit_decoders(3 * originals[None, None] + 1, originals, epochs=1)
        >>> decoders.held_out_error[0] < 1e-6
        True
    """

    held_out_error: list[float]
    trained: list[bool]
    _networks: list[nn.Module] = field(repr=False)
    _shape: torch.Size = field(repr=False)

    @torch.no_grad()
    def __call__(self, released: Float[Tensor, "models n d"]) -> Float[Tensor, "models n *shape"]:
        """Reconstructions from what each model released.

        Raises:
            ValueError: if there is not one set of releases for each decoder.
        """
        if len(released) != len(self._networks):
            raise ValueError(f"released: expected one for each of {len(self._networks)} models, got {len(released)}")
        decoded = [network(each) for network, each in zip(self._networks, released, strict=True)]
        return torch.stack(decoded).unflatten(2, self._shape or (1,)).reshape(*released.shape[:2], *self._shape)


def fit_decoders(
    released: Float[Tensor, "models draws n d"],
    originals: Float[Tensor, "n *shape"],
    *,
    hidden: int = 64,
    epochs: int = 60,
    batch_size: int = 64,
    learning_rate: float = 0.003,
    held_out: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    progress: str | None = "decoders",
) -> Decoders:
    r"""Decoders from a model's releases to its inputs, learnt from auxiliary data of the attacker.

    $$\hat x(r)=A\tilde r+b+\mathrm{MLP}(\tilde r),\qquad\min\ \lVert x-\hat x(r)\rVert^2$$

    with $\tilde r$ the standardised release. $A,b$ start from least squares and the network from zero, so training can
    only add to the linear attack; of these two and the mean, that with the smallest error on held-out auxiliary data
    is kept. All decoders are trained together. Give them what is informative: log-posteriors rather than posteriors.

    Args:
        released: what each model answers to the auxiliary inputs; of a stochastic model several draws (training goes
            round them), or `averaged` ones for an attacker who asks often.
        originals: the auxiliary inputs, of the same distribution as those attacked, and disjoint from them.
        hidden: width of both hidden layers.
        epochs, batch_size, learning_rate: of Adam; the rate falls to zero along a line.
        held_out: share of the auxiliary data that is kept for the choice.
        seed: of initial weights and order.
        device: see `fit`.
        progress: what the progress line calls it; None for no line.

    Raises:
        ValueError: for releases and originals of unequal number, too few of them, or some that are not finite.

    Source:
        Yang, Zhang, Chang and Liang (2019), CCS, arXiv:1902.08552 (training on auxiliary releases); the start from
        least squares is ours.

    Examples:
        >>> originals = torch.linspace(-1, 1, 50)[:, None]
        >>> decoders = inversion.fit_decoders(3 * originals[None, None] + 1, originals, epochs=1)
        >>> decoders(torch.tensor([[[4.0]]])).round(decimals=2)
        tensor([[[1.]]])
    """
    models, draws, n, _ = released.shape
    real("released", released, finite=True)
    real("originals", originals, finite=True)
    if len(originals) != n:
        raise ValueError(f"originals: expected {n}, one for each release, got {len(originals)}")
    kept = n - round(held_out * n)
    if not 2 <= kept < n:
        raise ValueError(f"held_out: expected a share that leaves some of {n} on both sides, got {held_out}")
    device = str(choose_device(device))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fitted_rows, tested_rows = order[:kept], order[kept:]
    targets = originals.flatten(1).cpu()
    released = released.cpu()
    starts = [
        _least_squares(each[:, fitted_rows].flatten(0, 1), targets[fitted_rows].repeat(draws, 1)) for each in released
    ]

    def build(run):
        return _Decoder(*starts[int(run["model"])], hidden)

    def loss(model, batch, run, state):
        draw = state["released"].index_select(0, (run["step"] % draws)[None])[0]
        return (model(draw[batch["row"]]) - batch["target"]).square().mean(), {}, state

    fitted = fit(
        build,
        loss,
        {"row": torch.arange(kept), "target": targets[fitted_rows]},
        [{"seed": seed, "learning_rate": learning_rate, "model": model} for model in range(models)],
        epochs=epochs,
        batch_size=min(batch_size, kept),
        schedule=lambda fraction: 1 - fraction,
        state=lambda run, network: {"released": released[int(run["model"]), :, fitted_rows]},
        device=device,
        progress=progress,
    )

    @torch.no_grad()
    def error(network, model):
        decoded = torch.stack([network(each[tested_rows]) for each in released[model]])
        return float((decoded - targets[tested_rows]).square().mean())

    networks, errors, trained = [], [], []
    for model in range(models):
        mean, scale, weight, centre = starts[model]
        constant = _Decoder(mean, scale, torch.zeros_like(weight), centre, hidden).eval()
        rivals = [constant, build({"model": model}).eval(), fitted.module(model).cpu()]
        scores = [error(network, model) for network in rivals]
        best = min(range(3), key=scores.__getitem__)
        networks.append(rivals[best])
        errors.append(scores[best])
        trained.append(best == 2)
    return Decoders(errors, trained, networks, originals.shape[1:])


def _least_squares(released: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and scale of the releases, and weight and bias of the best linear map from the standardised ones."""
    values = released.double()
    mean, scale = values.mean(0), values.std(0, correction=0)
    # What never varies says nothing: it stays zero instead of becoming rounding error of size one.
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.inf)
    centre = targets.double().mean(0)
    # The driver that stands linearly dependent columns: posteriors sum to one.
    weight = torch.linalg.lstsq((values - mean) / scale, targets.double() - centre, rcond=1e-6, driver="gelsd").solution
    dtype = released.dtype
    return mean.to(dtype), scale.to(dtype), weight.to(dtype), centre.to(dtype)


def ascend_posterior(
    log_posterior: Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*attacks k"]],
    start: Float[Tensor, "*shape"],
    targets: Integer[Tensor, "*attacks"],
    *,
    steps: int = 200,
    learning_rate: float = 0.05,
    queries: int = 1,
    penalty: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Float[Tensor, "*shape"]:
    r"""Inputs of which a model is as sure as possible that they belong to a class.

    $$\max_{x\in[a,b]}\ \log\Bigl(\frac1Q\sum_{q=1}^Qp_q(t\mid x)\Bigr)-\lambda\,\lVert x\rVert^2$$

    by Adam, with a projection onto the bounds after each step. Every row is an attack of its own: restarts are rows.

    Args:
        log_posterior: of the attacked model, differentiable; a stochastic one draws anew at each call.
        start: where the search begins, `(*attacks, ...)`.
        targets: the class sought by each.
        steps, learning_rate: of the search.
        queries: $Q$, calls at each step; more than one for a stochastic model.
        penalty: $\lambda\ge0$, on the sum of squares of a row.
        bounds: $a,b$, the range of inputs.

    Raises:
        ValueError: if targets do not fit the start, a number is out of range, or the posterior or its gradient is not a
            number.

    Source:
        Fredrikson, Jha and Ristenpart (2015), CCS; the mean over noise as in Athalye et al. (2018), arXiv:1707.07397.

    Examples:
        >>> log_posterior = lambda inputs: inputs.log_softmax(-1)  # largest wins
        >>> start, targets = torch.full((1, 3), 0.5), torch.tensor([1])
        >>> inversion.ascend_posterior(log_posterior, start, targets).round(decimals=2)
        tensor([[0., 1., 0.]])
    """
    real("start", start)
    has_shape("targets", targets, start.shape[: targets.ndim], "one class for each row of the start")
    targets = class_numbers("targets", targets).to(start.device)
    steps, queries, penalty = whole("steps", steps), whole("queries", queries), float(number("penalty", penalty))
    number("learning_rate", learning_rate, positive=True)
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: expected the lower before the higher, got {bounds}")
    inputs = start.detach().clone().requires_grad_()
    search = torch.optim.Adam([inputs], lr=learning_rate)
    for _ in range(steps):
        asked = torch.stack([log_posterior(inputs).gather(-1, targets[..., None])[..., 0] for _ in range(queries)])
        gain = asked.logsumexp(0).sum() - penalty * inputs.square().sum()
        (gradient,) = torch.autograd.grad(-gain, inputs)
        inputs.grad = gradient
        search.step()
        with torch.no_grad():
            inputs.clamp_(*bounds)
    return real("log_posterior", inputs.detach())


def with_candidates(inputs: Float[Tensor, "n d"], column: int, values: Float[Tensor, " m"]) -> Float[Tensor, "m n d"]:
    """What the rows would be if the sensitive column had each of the values: the attacker's hypotheses.

    Args:
        inputs: known rows.
        column: the sensitive one.
        values: that it could have.

    Raises:
        ValueError: for a column that is not there, or rows that are not floating-point (they would cut the values).

    Examples:
        >>> rows = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
        >>> inversion.with_candidates(rows, 1, torch.tensor([0.0, 1.0])).shape
        torch.Size([2, 2, 2])
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs: expected a floating-point tensor, got {inputs.dtype}")
    if not 0 <= column < inputs.shape[1]:
        raise ValueError(f"column: expected 0 to {inputs.shape[1] - 1}, got {column}")
    rows = inputs.repeat(len(values), 1, 1)
    rows[:, :, column] = values.to(inputs)[:, None]
    return rows


def attribute_posterior(
    log_likelihoods: Float[Tensor, "queries n m"], prior: Float[Tensor, "*n m"] | None = None
) -> Float[Tensor, "n m"]:
    r"""How probable each value of the sensitive attribute is, given all that the model released.

    $$p(v\mid r_1,\dots,r_Q)\propto\pi(v)\prod_{q=1}^Qp(r_q\mid x_{ns},v)$$

    Maximum likelihood where the prior is uniform. A row whose releases are impossible under every value falls back to
    the prior.

    Args:
        log_likelihoods: $\log p(r_q\mid x_{ns},v)$, of each release (query), row and value; $-\infty$ where a value
            cannot have led to the release. No queries at all leave the prior.
        prior: $\pi$, what is known without the model, of shape `(m,)` or one for each row; None for uniform.

    Raises:
        ValueError: if a likelihood is NaN or infinite, or the prior has another number of values, one that is negative
            or not finite, or none that is positive.

    Examples:
        >>> likelihoods = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]]])  # two releases, two values
        >>> inversion.attribute_posterior(likelihoods.log()).round(decimals=3)
        tensor([[0.9310, 0.0690]], dtype=torch.float64)
    """
    real("log_likelihoods", log_likelihoods)
    if refuted(log_likelihoods < torch.inf):
        raise ValueError("log_likelihoods: expected numbers below infinity, got infinity")
    total = log_likelihoods.double().sum(0)
    if prior is None:
        prior = total.new_ones(total.shape[1])
    if prior.shape not in (total.shape[1:], total.shape):
        raise ValueError(f"prior: expected {total.shape[1]} values, or so many a row, got shape {tuple(prior.shape)}")
    if refuted((prior >= 0) & (prior < torch.inf) & (prior > 0).any(-1, keepdim=True)):
        raise ValueError("prior: expected finite values of at least 0, some above it, got others")
    logs = prior.to(total).log().expand_as(total)
    joint = logs + total
    possible = joint.isfinite().any(1, keepdim=True)
    return torch.softmax(torch.where(possible, joint, logs), 1)


def attribute_success(
    posterior: Float[Tensor, "n m"], truth: Integer[Tensor, " n"], *, tolerance: float = 1e-9
) -> Float[Tensor, " n"]:
    """How probable it is that the most probable value is the true one: 0, 1, or a share where several are tied.

    Args:
        posterior: from `attribute_posterior`.
        truth: position of the true value among the candidates.
        tolerance: values this close to the largest count as tied, and one of them is guessed at random.

    Raises:
        ValueError: for a posterior that is not a number, or a truth of another shape, dtype or range.

    Examples:
        >>> posterior = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
        >>> inversion.attribute_success(posterior, torch.tensor([0, 1]))
        tensor([1.0000, 0.5000])
    """
    real("posterior", posterior)
    has_shape("truth", truth, posterior.shape[:1], "one value for each row")
    truth = class_numbers("truth", truth, posterior.shape[1]).to(posterior.device)
    best = posterior >= posterior.amax(1, keepdim=True) - tolerance
    return best.gather(1, truth[:, None])[:, 0].to(posterior) / best.sum(1)


def success_rate(hits: Shaped[Tensor, " n"], *, confidence: float = 0.95) -> Interval:
    r"""Share of attacks that succeed, with Wilson's interval.

    $$\frac{\hat p+\frac{z^2}{2n}\pm z\sqrt{\frac{\hat p(1-\hat p)}n+\frac{z^2}{4n^2}}}{1+z^2/n}$$

    Args:
        hits: of each attack, whether it succeeded, or its chance to, in [0, 1] (the interval is then on the safe side).
        confidence: of the interval.

    Raises:
        ValueError: if there is no attack, a value outside [0, 1], or a confidence outside (0, 1).

    Examples:
        >>> rate = inversion.success_rate(torch.tensor([1, 1, 1, 0]))
        >>> [round(each, 3) for each in rate]
        [0.75, 0.301, 0.954, 4]
    """
    from scipy.stats import norm

    share("confidence", confidence)
    has_shape("hits", hits, (hits.numel(),), "one for each attack")
    values = hits.detach().double()
    n = len(values)
    if not n or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"hits: expected some values in [0, 1], got {n} of them, {values.tolist()[:5]} ...")
    rate, z = float(values.mean()), float(norm.ppf((1 + confidence) / 2))
    middle = rate + z**2 / (2 * n)
    half = z * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    scale = 1 + z**2 / n
    return Interval(rate, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


def explained_share(
    reconstructed: Float[Tensor, "n *shape"],
    originals: Float[Tensor, "n *shape"],
    reference: Float[Tensor, "n *shape"],
    *,
    confidence: float = 0.95,
) -> Interval:
    r"""How much of a reference's squared error the reconstructions take away.

    $$1-\frac{\sum_i\lVert x_i-\hat x_i\rVert^2}{\sum_i\lVert x_i-\bar x_i\rVert^2}$$

    1 for perfect reconstructions, 0 for those no better than the reference, negative for worse. The interval is that
    of a ratio of means over inputs (delta method).

    Args:
        reconstructed: $\hat x_i$.
        originals: $x_i$.
        reference: $\bar x_i$, what an attacker without the release would say, such as the mean of the class.
        confidence: of the interval.

    Raises:
        ValueError: if shapes differ, there are fewer than two inputs, a value is not finite, the reference is perfect,
            or the confidence is outside (0, 1).

    Examples:
        >>> originals = torch.tensor([[0.0], [2.0], [4.0]])
        >>> share = inversion.explained_share(originals + 0.1, originals, torch.full((3, 1), 2.0))
        >>> round(share.effect, 3)
        0.996
    """
    from scipy.stats import norm

    if not reconstructed.shape == originals.shape == reference.shape or len(originals) < 2:
        shapes = [tuple(each.shape) for each in (reconstructed, originals, reference)]
        raise ValueError(f"reconstructed: expected three times the same shape with at least two rows, got {shapes}")
    share("confidence", confidence)
    for name, each in (("reconstructed", reconstructed), ("originals", originals), ("reference", reference)):
        real(name, each, finite=True)
    gaps = ((each - originals).detach().double() for each in (reconstructed, reference))
    ours, theirs = (gap.flatten(1).square().sum(1) for gap in gaps)
    if not theirs.sum() > 0:
        raise ValueError("reference: expected one that is not perfect, got no error")
    ratio = float(ours.sum() / theirs.sum())
    error = float((ours - ratio * theirs).std() / theirs.mean()) / len(ours) ** 0.5
    half = float(norm.ppf((1 + confidence) / 2)) * error
    return Interval(1 - ratio, 1 - ratio - half, 1 - ratio + half, len(ours))
