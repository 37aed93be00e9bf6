"""Adversarial examples within a ball around the inputs, and the accuracy that is left under attack.

All attacks take leading dimensions as they come: `(n, ...)` of a module, `(runs, n, ...)` of all runs of a `Fitted`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from lossbook.lab.fitting import Fitted

__all__ = [
    "Attacked",
    "auto_pgd",
    "ensemble",
    "fgsm",
    "logit_margin",
    "logit_ratio",
    "pgd",
    "random_start",
    "robust_accuracy",
    "square",
]

Norm = Literal["linf", "l2"]
Bounds = tuple[float, float]
# Logits and targets to a number for each example, which the attack raises (lowers, where it has a target).
Loss = Literal["cross_entropy", "margin", "ratio", "kl"] | Callable[[Tensor, Tensor], Tensor]
# What is attacked: anything that maps inputs to logits, example by example.
Attackable = nn.Module | Fitted | Callable[[Tensor], Tensor]
LOSSES = ("cross_entropy", "margin", "ratio", "kl")


def logit_margin(logits: Float[Tensor, "*n k"], targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    r"""By how much the strongest other class exceeds the target: $\max_{k\ne y}z_k-z_y$, positive for an error.

    Source:
        Carlini and Wagner (2017), arXiv:1608.04644.

    Examples:
        >>> logits, targets = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> attacks.logit_margin(logits, targets)  # the second is an error
        tensor([-1.,  2.])
    """
    own = F.one_hot(targets, logits.shape[-1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(-1) - logits.gather(-1, targets[..., None])[..., 0]


def logit_ratio(logits: Float[Tensor, "*n k"], targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    r"""Difference-of-logits ratio, the margin in units that neither a shift nor a scale of the logits changes.

    $$\frac{\max_{k\ne y}z_k-z_y}{z_{\pi_1}-z_{\pi_3}}$$

    with $\pi$ the classes in falling order of their logits; at least three of them.

    Raises:
        ValueError: for fewer than three classes.

    Source:
        Croce and Hein (2020), arXiv:2003.01690, equation 6.

    Examples:
        >>> logits, targets = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> attacks.logit_ratio(logits, targets).round(decimals=3)
        tensor([-0.5000,  1.0000])
    """
    if logits.shape[-1] < 3:
        raise ValueError(f"logits: expected at least three classes, got {logits.shape[-1]}")
    top = logits.topk(3, -1).values
    return logit_margin(logits, targets) / (top[..., 0] - top[..., 2] + 1e-12)


def random_start(
    inputs: Float[Tensor, "*n"], generator: torch.Generator, *, epsilon: float, norm: Norm = "linf", restarts: int = 1
) -> Float[Tensor, "restarts *n"]:
    """Perturbations `(restarts, n, ...)` drawn evenly from the ball, for inputs `(n, ...)`.

    Examples:
        >>> inputs, generator = torch.zeros(5, 1, 8, 8), torch.Generator().manual_seed(0)
        >>> start = attacks.random_start(inputs, generator, epsilon=0.1, restarts=2)
        >>> start.shape, bool(start.abs().max() <= 0.1)
        (torch.Size([2, 5, 1, 8, 8]), True)
    """
    options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": inputs.dtype}
    shape = (restarts, *inputs.shape)
    if norm == "linf":
        drawn = epsilon * (2 * torch.rand(shape, **options) - 1)
    else:
        away = torch.randn(shape, **options).flatten(2)
        radius = epsilon * torch.rand(*shape[:2], 1, **options) ** (1 / away.shape[2])
        drawn = (radius * F.normalize(away, dim=2)).view(shape)
    return drawn.to(inputs.device)


def fgsm(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."],
    *,
    epsilon: float | Tensor,
    norm: Norm = "linf",
    loss: Loss = "cross_entropy",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Tensor, "..."]:
    """Fast gradient sign method: one step of the length of the radius. Arguments as of `pgd`.

    Source:
        Goodfellow, Shlens and Szegedy (2015), arXiv:1412.6572.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> attacks.fgsm(model, inputs, torch.tensor([0]), epsilon=0.1)
        tensor([[0.5000, 0.6000]])
    """
    options: dict[str, Any] = {"norm": norm, "loss": loss, "targeted": targeted, "bounds": bounds}
    return pgd(model, inputs, targets, epsilon=epsilon, steps=1, step_size=epsilon, **options)


def pgd(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."] | None = None,
    *,
    epsilon: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    loss: Loss = "cross_entropy",
    targeted: bool = False,
    start: Float[Tensor, "..."] | None = None,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Tensor, "..."]:
    r"""Projected gradient ascent on a loss, within a ball around the inputs and within the bounds.

    $$x^*\leftarrow\Pi\bigl[x^*+\alpha\,\mathrm{sign}\,\nabla_{x^*}\ell\bigr]$$

    in the L-infinity norm; in L2 the gradient is divided by its length. Each example is attacked by itself. Under
    `vmap`, as in the loss of `lab.fit`, pass `start`; no gradient flows to the parameters.

    Args:
        model: a module (put into evaluation mode meanwhile), all runs of a `Fitted`, or a function such as
            `fitting.Model`.
        inputs: `(n, ...)`; of a `Fitted` these are the same for all runs, or `(runs, n, ...)` along with such targets.
        targets: classes `(n,)`; not needed by the loss "kl".
        epsilon: radius of the ball.
        steps: how many.
        step_size: $\alpha$; by default $2.5\,\epsilon$ over the number of steps.
        norm: of the ball.
        loss: "cross_entropy", "margin" (`logit_margin`), "ratio" (`logit_ratio`), "kl" (the divergence
            $\mathrm{KL}(p(\cdot|x)\|p(\cdot|x^*))$ from the clean prediction, as in TRADES), or a function of logits
            and targets that returns a number for each example. It is raised.
        targeted: targets are classes to be reached: the loss is lowered.
        start: perturbation to begin with, of the shape of the inputs; none by default.
        restarts: how many random starts, drawn from `generator`, where one is given. Of several results the one
            with the largest margin is kept, so that an example is fooled if any start fools it.
        generator: of the random starts.
        bounds: lowest and highest value of an input; the inputs must lie within.

    Returns:
        Adversarial inputs, `(n, ...)` or `(runs, n, ...)`.

    Raises:
        ValueError: for values outside these ranges, a start along with a generator, or the loss "kl" without either,
            since its gradient vanishes at the inputs.

    Source:
        Madry et al. (2018), arXiv:1706.06083; the loss "kl": Zhang et al. (2019), arXiv:1901.08573.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> found = attacks.pgd(model, inputs, torch.tensor([0]), epsilon=0.1)
        >>> found.argmax(1), bool((found - inputs).abs().max() < 0.1001)
        (tensor([1]), True)
    """
    _check(epsilon=epsilon, steps=steps, norm=norm, loss=loss, targets=targets, bounds=bounds, restarts=restarts)
    _check_start(loss, start, restarts, generator)
    rate = 2.5 * epsilon / steps if step_size is None else step_size
    with _attack(model, inputs, targets) as aim:
        begin = _starts(aim, inputs, start, generator, epsilon, norm, restarts)
        results = []
        for perturbation in begin:
            found = (aim.inputs + perturbation).clamp(*bounds)
            for _ in range(steps):
                gradient = aim.look(found, loss, targeted).gradient
                moved = found + rate * _unit(gradient, norm, aim.lead)
                found = _projected(moved, aim.inputs, epsilon, norm, bounds, aim.lead)
            results.append(found)
        return aim.given_back(_best(aim, results, targeted))


def auto_pgd(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."],
    *,
    epsilon: float,
    steps: int = 100,
    norm: Norm = "linf",
    loss: Loss = "cross_entropy",
    targeted: bool = False,
    start: Float[Tensor, "..."] | None = None,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Tensor, "..."]:
    """Projected gradient ascent with momentum that halves an example's step where it gets no further.

    The first step is twice the radius. At checkpoints, which follow each other ever faster, the step is halved, and
    the search goes back to the best point so far, if fewer than three quarters of the steps since the last checkpoint
    raised the loss, or if neither step nor best loss changed. Arguments as of `pgd`.

    Returns:
        For each example a point that is misclassified, if any was met, else the one with the highest loss.

    Source:
        Croce and Hein (2020), arXiv:2003.01690, algorithm 1.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> attacks.auto_pgd(model, inputs, torch.tensor([0]), epsilon=0.1, steps=10).argmax(1)
        tensor([1])
    """
    _check(epsilon=epsilon, steps=steps, norm=norm, loss=loss, targets=targets, bounds=bounds, restarts=restarts)
    _check_start(loss, start, restarts, generator)
    with _attack(model, inputs, targets) as aim:
        begin = _starts(aim, inputs, start, generator, epsilon, norm, restarts)
        results = [
            _halving(aim, (aim.inputs + each).clamp(*bounds), epsilon, steps, norm, loss, targeted, bounds)
            for each in begin
        ]
        return aim.given_back(_best(aim, results, targeted))


def square(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."],
    *,
    epsilon: float,
    queries: int = 500,
    share: float = 0.3,
    norm: Norm = "linf",
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Tensor, "..."]:
    """Random search by squares: an attack that sees logits alone, and so is not deceived by masked gradients.

    Each query sets a random square of every image, at full radius with a random sign a channel, and is kept where
    the margin rises. Squares shrink as the search goes on. In the L2 norm, which the source treats differently, the
    square is added at the image's mean amplitude and the whole is projected.

    Args:
        model: as of `pgd`.
        inputs: images `(n, channels, height, width)`, or with fewer dimensions, of which the last is the width.
        targets: true classes.
        epsilon: radius of the ball.
        queries: how often the model is asked.
        share: of an image's area that the first squares cover.
        norm: of the ball.
        generator: of the squares; all runs of a `Fitted` get the same.
        bounds: lowest and highest value of an input.

    Returns:
        The inputs with the largest margin met.

    Source:
        Andriushchenko et al. (2020), arXiv:1912.00049.

    Examples:
        >>> model, images = torch.nn.Flatten(), torch.tensor([[[[0.6, 0.5]]]])  # brighter wins
        >>> options = {"epsilon": 0.1, "generator": torch.Generator().manual_seed(0)}
        >>> model(attacks.square(model, images, torch.tensor([0]), **options)).argmax(1)
        tensor([1])
    """
    _check(epsilon=epsilon, steps=queries, norm=norm, loss="margin", targets=targets, bounds=bounds, restarts=1)
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
    with _attack(model, inputs, targets) as aim:
        clean = aim.inputs
        shape = clean.shape[aim.lead :]
        channels, height, width = (1,) * (3 - len(shape)) + tuple(shape)
        examples = clean.shape[aim.lead - 1]
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        amplitude = epsilon if norm == "linf" else epsilon / (channels * height * width) ** 0.5

        def proposal(*corner_sides: int) -> Tensor:
            """A square of ±1 in each of the images, 0 elsewhere; sides of the square."""
            sign = 2.0 * torch.randint(0, 2, (examples, channels, 1, 1), **options) - 1
            for dim, (size, side) in enumerate(zip((height, width), corner_sides, strict=True), start=2):
                corner = torch.randint(0, size - side + 1, (examples, 1, 1, 1), **options)
                place = torch.arange(size, device=generator.device).view([-1 if d == dim else 1 for d in range(4)])
                sign = sign * ((place >= corner) & (place < corner + side))
            return sign.view(examples, *shape).to(clean)

        stripes = 2.0 * torch.randint(0, 2, (examples, channels, 1, width), **options) - 1
        stripes = stripes.expand(-1, -1, height, -1).reshape(examples, *shape).to(clean)
        best = _projected(clean + amplitude * stripes, clean, epsilon, norm, bounds, aim.lead)
        margin = logit_margin(aim.call(best), aim.targets)
        for query in range(queries - 1):
            side = (_area(query / queries, share) * height * width) ** 0.5
            sides = [max(1, min(round(side), size)) for size in (height, width)]
            change = proposal(*sides)
            moved = (
                torch.where(change == 0, best, clean + amplitude * change)
                if norm == "linf"
                else (best + 2 * amplitude * change)
            )
            moved = _projected(moved, clean, epsilon, norm, bounds, aim.lead)
            reached = logit_margin(aim.call(moved), aim.targets)
            better = reached > margin
            best = torch.where(_wide(better, best), moved, best)
            margin = torch.where(better, reached, margin)
        return aim.given_back(best)


@dataclass(frozen=True)
class Attacked:
    """What an ensemble of attacks found.

    Attributes:
        inputs: adversarial inputs, the clean ones where no attack succeeded.
        success: for each example, whether it is misclassified, clean or under any attack; a tie counts as an error.
        by: the same for the clean inputs ("clean") and for each attack alone, by name.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5, 0.1]])  # largest wins
        >>> options = {"generator": torch.Generator().manual_seed(0), "steps": 5, "queries": 5}
        >>> found = attacks.ensemble(model, inputs, torch.tensor([0]), epsilon=0.01, **options)
        >>> found.success, found.robust_accuracy().item()
        (tensor([False]), 1.0)
    """

    inputs: Float[Tensor, "..."] = field(repr=False)
    success: Bool[Tensor, "..."] = field(repr=False)
    by: dict[str, Bool[Tensor, "..."]] = field(repr=False)

    def robust_accuracy(self) -> Float[Tensor, "*runs"]:
        """Share of examples that no attack got wrong."""
        return 1 - self.success.double().mean(-1)


def ensemble(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Int[Tensor, "..."],
    *,
    epsilon: float,
    generator: torch.Generator,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    classes: int | None = None,
    queries: int = 1000,
    bounds: Bounds = (0.0, 1.0),
) -> Attacked:
    """Several attacks that fail for different reasons; an example counts as robust if it withstands all.

    `auto_pgd` on cross-entropy, on the ratio of logits and on the margin, then towards each other class in turn, and
    `square`. This follows AutoAttack, without its minimum-norm attack.

    Args:
        model: as of `pgd`.
        inputs: as of `pgd`.
        targets: true classes.
        epsilon: radius of the ball.
        generator: of random starts and squares.
        norm: of the ball.
        steps: of each gradient attack.
        restarts: random starts of each.
        classes: how many other classes are aimed at, the likeliest first; None for all.
        queries: of the black-box attack; 0 to leave it out.
        bounds: lowest and highest value of an input.

    Raises:
        ValueError: if an input lies outside the bounds.

    Source:
        After Croce and Hein (2020), arXiv:2003.01690.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5, 0.1]])  # largest wins
        >>> options = {"generator": torch.Generator().manual_seed(0), "steps": 10, "queries": 50}
        >>> found = attacks.ensemble(model, inputs, torch.tensor([0]), epsilon=0.1, **options)
        >>> list(found.by), found.robust_accuracy().item()
        (['clean', 'cross_entropy', 'ratio', 'margin', 'targeted', 'square'], 0.0)
    """
    _check_inside(inputs, bounds)
    with _attack(model, inputs, targets) as aim:
        clean = aim.call(aim.inputs)
        fooled = logit_margin(clean, aim.targets) >= 0
        by, found = {"clean": fooled}, aim.inputs
        others = clean.shape[-1] - 1
        asked = others if classes is None else min(classes, others)
        own = F.one_hot(aim.targets, others + 1).bool()
        ranked = clean.masked_fill(own, -torch.inf).topk(asked, -1).indices
        options: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "bounds": bounds, "generator": generator}
        ascent = {**options, "steps": steps, "restarts": restarts}

        def seen(name: str, adversarial: Tensor) -> None:
            nonlocal found, fooled
            wrong = logit_margin(aim.call(adversarial), aim.targets) >= 0
            found = torch.where(_wide(wrong & ~fooled, found), adversarial, found)
            by[name] = by[name] | wrong if name in by else wrong
            fooled = fooled | wrong

        for loss in ("cross_entropy", "ratio", "margin") if others > 1 else ("cross_entropy", "margin"):
            seen(loss, auto_pgd(aim.call, aim.inputs, aim.targets, loss=loss, **ascent))
        for rank in range(asked):
            goal = ranked[..., rank]

            def towards(logits: Tensor, targets: Tensor, goal: Tensor = goal) -> Tensor:
                return _towards(logits, targets, goal)

            seen("targeted", auto_pgd(aim.call, aim.inputs, aim.targets, loss=towards, **ascent))
        if queries:
            seen("square", square(aim.call, aim.inputs, aim.targets, queries=queries, **options))
        return Attacked(
            aim.given_back(found), aim.given_back(fooled), {name: aim.given_back(each) for name, each in by.items()}
        )


def robust_accuracy(
    model: Attackable,
    inputs: Float[Tensor, "n ..."],
    targets: Int[Tensor, " n"],
    attack: Callable[..., Tensor | Attacked] = ensemble,
    *,
    batch_size: int = 512,
    bounds: Bounds = (0.0, 1.0),
    **options: Any,
) -> Float[Tensor, "*runs"]:
    """Share of examples that are classified rightly, both clean and under attack; for a `Fitted` one of each run.

    A tie with another class counts as an error, so a network that always says the same earns nothing.

    Args:
        model: as of `pgd`.
        inputs: clean.
        targets: true classes.
        attack: `fgsm`, `pgd`, `auto_pgd`, `square`, `ensemble` or a function called as they are.
        batch_size: examples attacked at a time.
        bounds: lowest and highest value of an input.
        options: of the attack, `epsilon` above all.

    Raises:
        ValueError: if an input lies outside the bounds, or the attack is aimed at classes (`targeted`).

    Examples:
        >>> inputs, targets = torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> model = torch.nn.Identity()  # larger wins
        >>> attacks.robust_accuracy(model, inputs, targets, attacks.pgd, epsilon=0.1).item()
        0.5
    """
    _check_inside(inputs, bounds)
    if options.get("targeted"):
        raise ValueError("targeted: expected False, since accuracy counts any error, got True")
    kept = []
    for chunk, classes in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        found = attack(model, chunk, classes, bounds=bounds, **options)
        adversarial = found.inputs if isinstance(found, Attacked) else found
        with _attack(model, chunk, classes) as aim:
            right = [logit_margin(aim.call(each), aim.targets) < 0 for each in (aim.inputs, adversarial.to(aim.inputs))]
            kept.append(aim.given_back(right[0] & right[1]))
    return torch.cat(kept, -1).double().mean(-1)


# What the attacks share ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What one pass through the model tells: gradient of the loss by the inputs, the loss, and the logits."""

    gradient: Tensor
    value: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Aim:
    """The attacked function with its inputs, whose first `lead` dimensions count examples."""

    call: Callable[[Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    lead: int
    home: torch.device
    clean: list[Tensor] = field(default_factory=list)

    def look(self, at: Tensor, loss: Loss, targeted: bool) -> _Look:
        """Gradient, by the inputs, of the loss that is to be raised."""
        measure = self._measure(loss)

        def total(inputs: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self.call(inputs)
            values = -measure(logits) if targeted else measure(logits)
            return values.sum(), (values, logits)

        gradient, (_, (value, logits)) = torch.func.grad_and_value(total, has_aux=True)(at)
        return _Look(gradient, value, logits)

    def given_back(self, value: Tensor) -> Tensor:
        """On the device that the inputs came from."""
        return value.to(self.home)

    def _measure(self, loss: Loss) -> Callable[[Tensor], Tensor]:
        if loss == "kl":
            if not self.clean:
                self.clean.append(self.call(self.inputs).log_softmax(-1))
            reference = self.clean[0]
            return lambda logits: (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)
        if loss == "cross_entropy":
            return lambda logits: -logits.log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]
        function = {"margin": logit_margin, "ratio": logit_ratio}[loss] if isinstance(loss, str) else loss
        return lambda logits: function(logits, self.targets)


@contextmanager
def _attack(model: Attackable, inputs: Tensor, targets: Tensor | None) -> Iterator[_Aim]:
    """The model in evaluation mode, and no graph over its parameters."""
    home, modes = inputs.device, {}
    call = model.each if isinstance(model, Fitted) else model
    if isinstance(model, Fitted):
        inputs = inputs.to(next(iter(model.parameters.values())).device)
        if targets is None or targets.ndim == 1:
            inputs = inputs.expand(len(model.runs), *inputs.shape)
            targets = None if targets is None else targets.expand(len(model.runs), *targets.shape)
    if isinstance(model, nn.Module):
        modes = {module: module.training for module in model.modules()}
        model.eval()
    try:
        with torch.no_grad():
            inputs = inputs.detach()
            if targets is None:
                targets = call(inputs).argmax(-1)
            assert targets is not None
            yield _Aim(call, inputs, targets.to(inputs.device), targets.ndim, home)
    finally:
        for module, training in modes.items():
            module.training = training


def _starts(aim: _Aim, inputs, start, generator, epsilon, norm, restarts) -> list[Tensor]:
    if generator is not None:
        # Drawn for the examples, not for the runs: what a run meets does not depend on the others.
        examples = aim.inputs[(0,) * (aim.lead - 1)]
        return list(random_start(examples, generator, epsilon=float(epsilon), norm=norm, restarts=restarts))
    if start is None:
        return [torch.zeros_like(aim.inputs)]
    if start.shape not in (inputs.shape, aim.inputs.shape):
        raise ValueError(f"start: expected the inputs' shape {tuple(inputs.shape)}, got {tuple(start.shape)}")
    return [start.to(aim.inputs.device)]


def _best(aim: _Aim, results: list[Tensor], targeted: bool) -> Tensor:
    """Of several results for each example the one with the largest margin."""
    best = results[0]
    if len(results) == 1:
        return best
    sign = -1 if targeted else 1
    margin = sign * logit_margin(aim.call(best), aim.targets)
    for other in results[1:]:
        reached = sign * logit_margin(aim.call(other), aim.targets)
        best = torch.where(_wide(reached > margin, best), other, best)
        margin = torch.maximum(margin, reached)
    return best


def _halving(aim: _Aim, begin, epsilon, steps, norm, loss, targeted, bounds) -> Tensor:
    sign = -1 if targeted else 1

    def wins(logits: Tensor) -> Tensor:
        margin = sign * logit_margin(logits, aim.targets)
        # A tie is an error, and no target reached.
        return margin > 0 if targeted else margin >= 0

    look = aim.look(begin, loss, targeted)
    here, before, gradient, value = begin, begin, look.gradient, look.value
    best, best_gradient, best_value = here, gradient, value
    winner, won = here, wins(look.logits)
    step = torch.full_like(value, 2.0) * epsilon
    rises = torch.zeros_like(value)
    value_then, halved_then = best_value, torch.ones_like(won)
    checkpoints, since = _checkpoints(steps), 0
    for index in range(steps):
        momentum = 0.25 if index else 0.0
        moved = here + _wide(step, here) * _unit(gradient, norm, aim.lead)
        moved = _projected(moved, aim.inputs, epsilon, norm, bounds, aim.lead)
        moved = here + (1 - momentum) * (moved - here) + momentum * (here - before)
        before, here = here, _projected(moved, aim.inputs, epsilon, norm, bounds, aim.lead)
        look = aim.look(here, loss, targeted)
        rises, value, gradient = rises + (look.value > value), look.value, look.gradient
        now = wins(look.logits)
        winner, won = torch.where(_wide(now, here), here, winner), won | now
        better = value > best_value
        best = torch.where(_wide(better, here), here, best)
        best_gradient = torch.where(_wide(better, here), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if index + 1 in checkpoints:
            stuck = ~halved_then & (best_value <= value_then)
            halve = (rises < 0.75 * (index + 1 - since)) | stuck
            step = torch.where(halve, step / 2, step)
            here, gradient = (
                torch.where(_wide(halve, here), kept, last) for kept, last in ((best, here), (best_gradient, gradient))
            )
            before = torch.where(_wide(halve, here), here, before)
            value = torch.where(halve, best_value, value)
            value_then, halved_then, rises, since = best_value, halve, torch.zeros_like(rises), index + 1
    return torch.where(_wide(won, here), winner, best)


def _checkpoints(steps: int) -> set[int]:
    """Steps at which the step size is looked at: intervals of 22 % of all, then shorter by 3 %, at least 6 %."""
    shares, interval = [0.22], 0.22
    while shares[-1] < 1:
        interval = max(interval - 0.03, 0.06)
        shares.append(shares[-1] + interval)
    return {-int(-share * steps // 1) for share in shares if share <= 1}


def _area(done: float, share: float) -> float:
    """Of an image, covered by a square once this share of the queries is done: halved at fixed times."""
    times = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return share / 2 ** sum(done > time for time in times)


def _towards(logits: Tensor, targets: Tensor, goal: Tensor) -> Tensor:
    """How far the goal's logit exceeds the target's."""
    return (logits.gather(-1, goal[..., None]) - logits.gather(-1, targets[..., None]))[..., 0]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """With dimensions of size 1 for those of an example."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def _unit(gradient: Tensor, norm: Norm, lead: int) -> Tensor:
    """The steepest direction of length 1."""
    if norm == "linf":
        return gradient.sign()
    length = gradient.flatten(lead).norm(dim=-1)
    return gradient / _wide(length.clamp(min=torch.finfo(gradient.dtype).tiny), gradient)


def _projected(values: Tensor, centre: Tensor, epsilon, norm: Norm, bounds: Bounds, lead: int) -> Tensor:
    """Into the ball, then into the bounds; the second does not leave the ball, whose centre is within the bounds."""
    away = values - centre
    if norm == "linf":
        away = away.clamp(-epsilon, epsilon)
    else:
        away = away * _wide(epsilon / away.flatten(lead).norm(dim=-1).clamp(min=epsilon), away)
    return (centre + away).clamp(*bounds)


def _check(*, epsilon, steps, norm, loss, targets, bounds, restarts) -> None:
    if not isinstance(epsilon, Tensor) and not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}")
    for name, value in (("steps", steps), ("restarts", restarts)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm: expected 'linf' or 'l2', got {norm!r}")
    if not callable(loss) and loss not in LOSSES:
        raise ValueError(f"loss: expected {', '.join(map(repr, LOSSES))} or a function, got {loss!r}")
    if targets is None and loss != "kl":
        raise ValueError(f"targets: expected classes for the loss {loss!r}, got None")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: expected the lower before the higher, got {bounds}")


def _check_start(loss, start, restarts, generator) -> None:
    if start is not None and generator is not None:
        raise ValueError("start: expected either a start or a generator of random ones, got both")
    if generator is None and restarts > 1:
        raise ValueError(f"generator: expected one, to draw {restarts} starts from, got None")
    if loss == "kl" and start is None and generator is None:
        raise ValueError("start: expected one, or a generator: the gradient of 'kl' vanishes at the inputs, got None")


def _check_inside(inputs: Shaped[Tensor, "..."], bounds: Bounds) -> None:
    low, high = inputs.min().item(), inputs.max().item()
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(f"inputs: expected values within bounds={bounds}, got {low:g} to {high:g}")
