"""Adversarial examples within a ball around the inputs, and the accuracy that is left under attack.

All attacks take leading dimensions as they come: `(n, ...)` of a module, `(runs, n, ...)` of all runs of a `Fitted`.
Of no examples they make none; a share of none is refused. The model may use whatever autograd can differentiate:
functions of its own, checkpoints (not reentrant ones), gradients. torch.func is used under torch.func alone.

A model that answers with NaN has not withstood anything: that is a ValueError, and under `vmap`, where nothing can be
raised, its adversarial inputs are NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from lossbook.lab._validate import (
    class_numbers,
    has_shape,
    largest,
    number,
    real,
    refuted,
    some,
    spoilt,
    transformed,
    whole,
)
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
    "targeted_logit_ratio",
]

Norm = Literal["linf", "l2"]
Bounds = tuple[float, float]
# Logits and targets to a number for each example, which the attack raises (lowers, where it has a target).
Loss = Literal["cross_entropy", "margin", "ratio", "kl"] | Callable[[Tensor, Tensor], Tensor]
# What is attacked: anything that maps inputs to logits, example by example.
Attackable = nn.Module | Fitted | Callable[[Tensor], Tensor]
LOSSES = ("cross_entropy", "margin", "ratio", "kl")


def logit_margin(logits: Float[Tensor, "*n k"], targets: Integer[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    r"""By how much the strongest other class exceeds the target: $\max_{k\ne y}z_k-z_y$, positive for an error.

    Args:
        logits: of at least two classes.
        targets: the class of each row.

    Raises:
        ValueError: for fewer than two classes, or targets of another shape, dtype or range.

    Source:
        Carlini and Wagner (2017), arXiv:1608.04644.

    Examples:
        >>> logits, targets = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> attacks.logit_margin(logits, targets)  # the second is an error
        tensor([-1.,  2.])
    """
    return _margin(logits, _fitting(logits, targets, least=2))


def logit_ratio(logits: Float[Tensor, "*n k"], targets: Integer[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    r"""Difference-of-logits ratio, the margin in units that neither a shift nor a scale of the logits changes.

    $$\frac{\max_{k\ne y}z_k-z_y}{z_{\pi_1}-z_{\pi_3}}$$

    with $\pi$ the classes in falling order of their logits; at least three of them.

    Args:
        logits: of at least three classes.
        targets: the class of each row.

    Raises:
        ValueError: for fewer than three classes, or targets of another shape, dtype or range.

    Source:
        Croce and Hein (2020), arXiv:2003.01690, equation 6.

    Examples:
        >>> logits, targets = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> attacks.logit_ratio(logits, targets).round(decimals=3)
        tensor([-0.5000,  1.0000])
    """
    return _ratio(logits, _fitting(logits, targets, least=3))


def targeted_logit_ratio(
    logits: Float[Tensor, "*n k"], targets: Integer[Tensor, "*n"], goals: Integer[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    r"""By how much another class exceeds the target, in units that neither a shift nor a scale of the logits changes.

    $$-\frac{z_y-z_t}{z_{\pi_1}-\frac12(z_{\pi_3}+z_{\pi_4})}$$

    with $t$ the goal and $\pi$ the classes in falling order of their logits; at least four of them. An attack raises it
    to get from the target to the goal.

    Args:
        logits: of at least four classes.
        targets: the class of each row.
        goals: the class that each row is to be taken for.

    Raises:
        ValueError: for fewer than four classes, or targets or goals of another shape, dtype or range.

    Source:
        Croce and Hein (2020), arXiv:2003.01690, equation 7.

    Examples:
        >>> logits, target, goal = torch.tensor([[2.0, 1.0, 0.0, 0.0]]), *torch.tensor([[0], [1]])
        >>> attacks.targeted_logit_ratio(logits, target, goal)
        tensor([-0.5000])
    """
    targets, goals = (
        _fitting(logits, each, least=4, name=name) for name, each in (("targets", targets), ("goals", goals))
    )
    return _towards(logits, targets, goals)


def random_start(
    inputs: Float[Tensor, "*n"],
    *,
    epsilon: float | Tensor,
    generator: torch.Generator,
    norm: Norm = "linf",
    restarts: int = 1,
) -> Float[Tensor, "restarts *n"]:
    """Perturbations `(restarts, n, ...)` drawn evenly from the ball, for inputs `(n, ...)`.

    Args:
        inputs: `(n, ...)`; their values do not matter.
        epsilon: radius of the ball, a number or one for each input.
        generator: of the draws.
        norm: "linf" or "l2".
        restarts: how many for each input.

    Raises:
        ValueError: for inputs that are not floating-point, a negative radius, another norm, or no restarts.

    Examples:
        >>> inputs, generator = torch.zeros(5, 1, 8, 8), torch.Generator().manual_seed(0)
        >>> start = attacks.random_start(inputs, epsilon=0.1, generator=generator, restarts=2)
        >>> start.shape, bool(start.abs().max() <= 0.1)
        (torch.Size([2, 5, 1, 8, 8]), True)
    """
    real("inputs", inputs)
    epsilon, restarts = number("epsilon", epsilon), whole("restarts", restarts)
    _check_norm(norm)
    options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": inputs.dtype}
    size = (restarts, *inputs.shape)
    if norm == "linf":
        drawn = 2 * torch.rand(size, **options) - 1
    else:
        away = _flat(torch.randn(size, **options), 2)
        radius = torch.rand(*size[:2], 1, **options) ** (1 / away.shape[2])
        drawn = (radius * F.normalize(away, dim=2)).view(size)
    return epsilon * drawn.to(inputs.device)


def fgsm(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Integer[Tensor, "..."],
    *,
    epsilon: float | Tensor,
    norm: Norm = "linf",
    loss: Loss = "cross_entropy",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Tensor, "..."]:
    """Fast gradient sign method: one step of the length of the radius. Arguments and errors as of `pgd`.

    Args:
        model, inputs, targets, epsilon, norm, loss, targeted, bounds: as of `pgd`.

    Raises:
        ValueError: as `pgd`.

    Source:
        Goodfellow, Shlens and Szegedy (2015), arXiv:1412.6572.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> attacks.fgsm(model, inputs, torch.tensor([0]), epsilon=0.1)
        tensor([[0.5000, 0.6000]])
    """
    options: dict[str, Any] = {"norm": norm, "loss": loss, "targeted": targeted, "bounds": bounds}
    # Its one step, of two and a half radii, is cut back to one.
    return pgd(model, inputs, targets, epsilon=epsilon, steps=1, **options)


def pgd(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Integer[Tensor, "..."] | None = None,
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
    `vmap`, as in the loss of `lab.fit`, pass `start`; no gradient flows to the parameters. There inputs outside the
    bounds, which can't be refused, are moved by no more than the radius either, and not away from the bounds.

    Args:
        model: a module (put into evaluation mode meanwhile), all runs of a `Fitted`, or a function such as
            `fitting.Model`.
        inputs: `(n, ...)`; of a `Fitted` these are the same for all runs, or `(runs, n, ...)` along with such targets.
        targets: classes `(n,)`; not needed by the loss "kl".
        epsilon: radius of the ball, a number or a floating-point tensor without dimensions; 0 returns the inputs.
        steps: how many.
        step_size: $\alpha$; by default $2.5\,\epsilon$ over the number of steps.
        norm: of the ball.
        loss: "cross_entropy", "margin" (`logit_margin`), "ratio" (`logit_ratio`), "kl" (the divergence
            $\mathrm{KL}(p(\cdot|x)\|p(\cdot|x^*))$ from the clean prediction, as in TRADES), or a function of logits
            and targets that returns a number for each example. It is raised.
        targeted: targets are classes to be reached: the loss is lowered.
        start: perturbation to begin with, of the shape of the inputs, cut back to the ball; none by default.
        restarts: how many random starts, drawn from `generator`, where one is given. Of several results the one
            with the largest margin is kept, so that an example is fooled if any start fools it.
        generator: of the random starts.
        bounds: lowest and highest value of an input; the inputs must lie within.

    Returns:
        Adversarial inputs, `(n, ...)` or `(runs, n, ...)`.

    Raises:
        ValueError: for values outside these ranges, inputs that are not floating-point or not within the bounds, as
            many targets as there are not inputs, a model that answers with NaN or without gradient, a start along with
            a generator, or the loss "kl" without either, since its gradient vanishes at the inputs.

    Source:
        Madry et al. (2018), arXiv:1706.06083; the loss "kl": Zhang et al. (2019), arXiv:1901.08573.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> found = attacks.pgd(model, inputs, torch.tensor([0]), epsilon=0.1)
        >>> found.argmax(1), bool((found - inputs).abs().max() < 0.1001)
        (tensor([1]), True)
    """
    epsilon = _check(inputs, targets, epsilon, bounds, norm=norm, loss=loss, steps=steps, restarts=restarts)
    _check_start(loss, start, restarts, generator)
    step_size = None if step_size is None else number("step_size", step_size, positive=True)
    rate = 2.5 * epsilon / steps if step_size is None else step_size
    with _attack(model, inputs, targets) as aim:
        ball = aim.ball(epsilon, norm, bounds)
        results = []
        for found in _starts(aim, ball, inputs, start, generator, restarts):
            for _ in range(steps):
                gradient = aim.look(found, loss, targeted).gradient
                found = ball.projected(found + rate * ball.unit(gradient))
            results.append(found)
        return aim.returned(_best(aim, results, targeted))


def auto_pgd(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Integer[Tensor, "..."],
    *,
    epsilon: float | Tensor,
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
    raised the loss, or if neither step nor best loss changed. Arguments and errors as of `pgd`.

    Args:
        model, inputs, targets, epsilon, norm, loss, targeted, start, restarts, generator, bounds: as of `pgd`.
        steps: gradients per restart, at least 1.

    Returns:
        For each example a point that is misclassified, if any was met, else the one with the highest loss.

    Raises:
        ValueError: as `pgd`.

    Source:
        Croce and Hein (2020), arXiv:2003.01690, algorithm 1.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5]])  # larger wins
        >>> attacks.auto_pgd(model, inputs, torch.tensor([0]), epsilon=0.1, steps=10).argmax(1)
        tensor([1])
    """
    epsilon = _check(inputs, targets, epsilon, bounds, norm=norm, loss=loss, steps=steps, restarts=restarts)
    _check_start(loss, start, restarts, generator)
    with _attack(model, inputs, targets) as aim:
        ball = aim.ball(epsilon, norm, bounds)
        begin = _starts(aim, ball, inputs, start, generator, restarts)
        results = [_halving(aim, ball, each, steps, loss, targeted) for each in begin]
        return aim.returned(_best(aim, results, targeted))


def square(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Integer[Tensor, "..."],
    *,
    epsilon: float | Tensor,
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

    Raises:
        ValueError: as `pgd`; a gradient is not needed.

    Source:
        Andriushchenko et al. (2020), arXiv:1912.00049.

    Examples:
        >>> model, images = torch.nn.Flatten(), torch.tensor([[[[0.6, 0.5]]]])  # brighter wins
        >>> options = {"epsilon": 0.1, "generator": torch.Generator().manual_seed(0)}
        >>> model(attacks.square(model, images, torch.tensor([0]), **options)).argmax(1)
        tensor([1])
    """
    epsilon = _check(inputs, targets, epsilon, bounds, norm=norm, loss="margin", queries=queries)
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
    with _attack(model, inputs, targets) as aim:
        clean, ball = aim.inputs, aim.ball(epsilon, norm, bounds)
        size = clean.shape[aim.lead :]
        channels, height, width = (1,) * (3 - len(size)) + tuple(size)
        examples = clean.shape[aim.lead - 1]
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        amplitude = epsilon if norm == "linf" else epsilon / (channels * height * width) ** 0.5

        def proposal(*corner_sides: int) -> Tensor:
            """A square of ±1 in each of the images, 0 elsewhere; sides of the square."""
            sign = 2.0 * torch.randint(0, 2, (examples, channels, 1, 1), **options) - 1
            for dim, (length, side) in enumerate(zip((height, width), corner_sides, strict=True), start=2):
                corner = torch.randint(0, length - side + 1, (examples, 1, 1, 1), **options)
                place = torch.arange(length, device=generator.device).view([-1 if d == dim else 1 for d in range(4)])
                sign = sign * ((place >= corner) & (place < corner + side))
            return sign.view(examples, *size).to(clean)

        stripes = 2.0 * torch.randint(0, 2, (examples, channels, 1, width), **options) - 1
        stripes = stripes.expand(-1, -1, height, -1).reshape(examples, *size).to(clean)
        best = ball.projected(clean + amplitude * stripes)
        margin = _margin(aim.logits(best), aim.targets)
        for query in range(queries - 1):
            side = (_area(query / queries, share) * height * width) ** 0.5
            sides = [max(1, min(round(side), length)) for length in (height, width)]
            change = proposal(*sides)
            moved = (
                torch.where(change == 0, best, clean + amplitude * change)
                if norm == "linf"
                else (best + 2 * amplitude * change)
            )
            moved = ball.projected(moved)
            reached = _margin(aim.logits(moved), aim.targets)
            better = reached > margin
            best = torch.where(_wide(better, best), moved, best)
            margin = torch.where(better, reached, margin)
        return aim.returned(best)


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
        """Share of examples that no attack got wrong; ValueError if there are none."""
        some("inputs", self.success.shape[-1], "examples")
        return 1 - self.success.double().mean(-1)


def ensemble(
    model: Attackable,
    inputs: Float[Tensor, "..."],
    targets: Integer[Tensor, "..."],
    *,
    epsilon: float | Tensor,
    generator: torch.Generator,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    classes: int | None = None,
    queries: int = 1000,
    bounds: Bounds = (0.0, 1.0),
) -> Attacked:
    """Several attacks that fail for different reasons; an example counts as robust if it withstands all.

    `auto_pgd` on cross-entropy, on the ratio of logits and on the margin, then towards each other class in turn by
    `targeted_logit_ratio`, with fewer than four classes by the difference of the two logits, and `square`. This follows
    AutoAttack, without its minimum-norm attack.

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
        ValueError: as `pgd`.

    Source:
        After Croce and Hein (2020), arXiv:2003.01690.

    Examples:
        >>> model, inputs = torch.nn.Identity(), torch.tensor([[0.6, 0.5, 0.1]])  # largest wins
        >>> options = {"generator": torch.Generator().manual_seed(0), "steps": 10, "queries": 50}
        >>> found = attacks.ensemble(model, inputs, torch.tensor([0]), epsilon=0.1, **options)
        >>> list(found.by), found.robust_accuracy().item()
        (['clean', 'cross_entropy', 'ratio', 'margin', 'targeted', 'square'], 0.0)
    """
    epsilon = _check(inputs, targets, epsilon, bounds, norm=norm, loss="margin", steps=steps, restarts=restarts)
    queries = whole("queries", queries, least=0)
    with _attack(model, inputs, targets) as aim:
        clean = aim.logits(aim.inputs)
        fooled = ~largest(clean, aim.targets)
        by, found = {"clean": fooled}, aim.inputs
        others = clean.shape[-1] - 1
        asked = others if classes is None else min(whole("classes", classes, least=0), others)
        ranked = clean.scatter(-1, aim.targets[..., None], -torch.inf).topk(asked, -1).indices
        options: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "bounds": bounds, "generator": generator}
        ascent = {**options, "steps": steps, "restarts": restarts}

        def seen(name: str, adversarial: Tensor) -> None:
            nonlocal found, fooled
            wrong = ~largest(aim.logits(adversarial), aim.targets)
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
            aim.returned(found), aim.returned(fooled), {name: aim.returned(each) for name, each in by.items()}
        )


def robust_accuracy(
    model: Attackable,
    inputs: Float[Tensor, "n ..."],
    targets: Integer[Tensor, " n"],
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
        ValueError: as `pgd`, for no examples, or if the attack is aimed at classes (`targeted`).

    Examples:
        >>> inputs, targets = torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> model = torch.nn.Identity()  # larger wins
        >>> attacks.robust_accuracy(model, inputs, targets, attacks.pgd, epsilon=0.1).item()
        0.5
    """
    batch_size = whole("batch_size", batch_size)
    has_shape("targets", targets, inputs.shape[:1], "one class for each example")
    some("inputs", len(inputs), "examples")
    if options.get("targeted"):
        raise ValueError("targeted: expected False, since accuracy counts any error, got True")
    kept = []
    for chunk, classes in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        found = attack(model, chunk, classes, bounds=bounds, **options)
        adversarial = found.inputs if isinstance(found, Attacked) else found
        with _attack(model, chunk, classes) as aim:
            has_shape("attack", adversarial, aim.inputs.shape, "that of the inputs")
            right = [largest(aim.logits(each), aim.targets) for each in (aim.inputs, adversarial.to(aim.inputs))]
            kept.append(aim.returned(right[0] & right[1]))
    return torch.cat(kept, -1).double().mean(-1)


# What the attacks share ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What one pass through the model tells: gradient of the loss by the inputs, the loss, and the logits."""

    gradient: Tensor
    value: Tensor
    logits: Tensor


@dataclass
class _Aim:
    """The attacked function with its inputs, whose first `lead` dimensions count examples.

    Attributes:
        clean: logarithm of the clean prediction, once it was needed.
        bad: of which examples logits, loss or gradient were not a number so far.
    """

    call: Callable[[Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    lead: int
    home: torch.device
    clean: Tensor | None = None
    bad: Tensor | None = None

    def ball(self, epsilon: float | Tensor, norm: Norm, bounds: Bounds) -> "_Ball":
        """Where this attack may go."""
        low, high = self.inputs.clamp(max=bounds[0]), self.inputs.clamp(min=bounds[1])
        radius = torch.as_tensor(epsilon, dtype=self.inputs.dtype, device=self.inputs.device)
        return _Ball(self.inputs, self.lead, radius, norm, low, high)

    def logits(self, at: Tensor) -> Tensor:
        """What the model says; it is remembered where that is not a number."""
        logits = self._asked(at)
        self._watch(logits.isnan().any(-1))
        return logits

    def look(self, at: Tensor, loss: Loss, targeted: bool) -> _Look:
        """Gradient, by the inputs, of the loss that is to be raised."""
        measure = self._measure(loss)

        def total(inputs: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self._asked(inputs)
            values = -measure(logits) if targeted else measure(logits)
            has_shape("loss", values, self.targets.shape, "one number for each example")
            return values.sum(), (values, logits)

        if transformed():
            gradient, (_, (value, logits)) = torch.func.grad_and_value(total, has_aux=True)(at)
        else:
            # Examples do not depend on each other: the gradient of the sum is all gradients.
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                summed, (value, logits) = total(at)
            gradient = torch.autograd.grad(summed, at, allow_unused=True)[0] if summed.requires_grad else None
            if gradient is None:
                raise ValueError(
                    "model: expected logits with a gradient by the inputs, got none (`square` does not need one)"
                )
            value, logits = value.detach(), logits.detach()
        self._watch(logits.isnan().any(-1) | value.isnan() | _flat(gradient, self.lead).isnan().any(-1))
        return _Look(gradient, value, logits)

    def returned(self, value: Tensor) -> Tensor:
        """On the device that the inputs came from, unless something was not a number."""
        if self.bad is not None:
            if refuted(~self.bad):
                raise ValueError(
                    "model: expected logits, and a loss and its gradient, that are numbers, "
                    f"got NaN for {int(self.bad.sum())} of {self.bad.numel()} examples"
                )
            if value.is_floating_point():
                value = spoilt(value, _wide(self.bad, value))
        return value.to(self.home)

    def _asked(self, at: Tensor) -> Tensor:
        logits = self.call(at)
        if not isinstance(logits, Tensor) or logits.shape[:-1] != self.targets.shape or logits.shape[-1] < 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            wanted = ", ".join(map(str, (*self.targets.shape, "classes")))
            raise ValueError(f"model: expected logits of shape ({wanted}), two classes or more, got {got}")
        if self.bad is None:
            class_numbers("targets", self.targets, logits.shape[-1])
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def _watch(self, bad: Tensor) -> None:
        self.bad = bad if self.bad is None else self.bad | bad

    def _measure(self, loss: Loss) -> Callable[[Tensor], Tensor]:
        if loss == "kl":
            if self.clean is None:
                self.clean = self.logits(self.inputs).log_softmax(-1)
            reference = self.clean
            return lambda logits: (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)
        if loss == "cross_entropy":
            return lambda logits: -logits.log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]
        function = {"margin": _margin, "ratio": _ratio}[loss] if isinstance(loss, str) else loss
        return lambda logits: function(logits, self.targets)


@dataclass(frozen=True)
class _Ball:
    """Where an attack may go: no further than a radius from the centre, whose first `lead` dimensions count examples.

    Attributes:
        low, high: the bounds. A centre that is outside, which can't be refused under `vmap`, may stay where it is.
    """

    centre: Tensor
    lead: int
    epsilon: Tensor
    norm: Norm
    low: Tensor
    high: Tensor

    def projected(self, values: Tensor) -> Tensor:
        """Into the ball, then into the bounds; the second leads towards the centre, so it does not leave the ball."""
        away = values - self.centre
        if self.norm == "linf":
            away = away.clamp(-self.epsilon, self.epsilon)
        else:
            length = torch.linalg.vector_norm(_flat(away, self.lead), dim=-1)
            away = away * _wide(torch.where(length <= self.epsilon, 1, self.epsilon / length), away)
        return (self.centre + away).clamp(self.low, self.high).to(self.centre)

    def unit(self, gradient: Tensor) -> Tensor:
        """The steepest direction of length 1, whatever the gradient's scale: its largest entry is divided out first."""
        if self.norm == "linf":
            return gradient.sign()
        gradient = gradient.clamp(*(sign * torch.finfo(gradient.dtype).max for sign in (-1, 1)))
        top = _flat(gradient, self.lead).abs().amax(-1)
        scaled = gradient / _wide(torch.where(top > 0, top, 1), gradient)
        length = torch.linalg.vector_norm(_flat(scaled, self.lead), dim=-1)
        return scaled / _wide(torch.where(length > 0, length, 1), gradient)


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
        with torch.inference_mode(False), torch.no_grad():
            # What was made in inference mode can't be differentiated, its copy can.
            inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
            if targets is None:
                targets = call(inputs).argmax(-1)
            assert targets is not None
            targets = targets.clone() if targets.is_inference() else targets
            has_shape("targets", targets, inputs.shape[: targets.ndim], "one class for each example")
            yield _Aim(call, inputs, class_numbers("targets", targets).to(inputs.device), targets.ndim, home)
    finally:
        for module, training in modes.items():
            module.training = training


def _starts(
    aim: _Aim,
    ball: _Ball,
    inputs: Tensor,
    start: Tensor | None,
    generator: torch.Generator | None,
    restarts: int,
) -> list[Tensor]:
    """The points where the search begins."""
    if generator is not None:
        # Drawn for the examples, not for the runs: what a run meets does not depend on the others.
        examples = aim.inputs[(0,) * (aim.lead - 1)]
        options: dict[str, Any] = {"epsilon": ball.epsilon, "norm": ball.norm, "restarts": restarts}
        begin = [*random_start(examples, generator=generator, **options)]
    elif start is None:
        return [aim.inputs]
    else:
        if start.shape not in (inputs.shape, aim.inputs.shape):
            raise ValueError(f"start: expected the inputs' shape {tuple(inputs.shape)}, got {tuple(start.shape)}")
        begin = [real("start", start).detach().to(aim.inputs)]
    return [ball.projected(aim.inputs + each) for each in begin]


def _best(aim: _Aim, results: list[Tensor], targeted: bool) -> Tensor:
    """Of several results for each example the one with the largest margin."""
    best = results[0]
    if len(results) == 1:
        return best
    sign = -1 if targeted else 1
    margin = sign * _margin(aim.logits(best), aim.targets)
    for other in results[1:]:
        reached = sign * _margin(aim.logits(other), aim.targets)
        best = torch.where(_wide(reached > margin, best), other, best)
        margin = torch.maximum(margin, reached)
    return best


def _halving(aim: _Aim, ball: _Ball, begin: Tensor, steps: int, loss: Loss, targeted: bool) -> Tensor:
    def wins(logits: Tensor) -> Tensor:
        # A tie is an error, and no target reached.
        right = largest(logits, aim.targets)
        return right if targeted else ~right

    look = aim.look(begin, loss, targeted)
    here, before, gradient, value = begin, begin, look.gradient, look.value
    best, best_gradient, best_value = here, gradient, value
    winner, won = here, wins(look.logits)
    step = 2.0 * ball.epsilon * torch.ones_like(value, dtype=begin.dtype)
    rises = torch.zeros_like(value)
    value_then, halved_then = best_value, torch.ones_like(won)
    checkpoints, since = _checkpoints(steps), 0
    for index in range(steps):
        momentum = 0.25 if index else 0.0
        moved = ball.projected(here + _wide(step, here) * ball.unit(gradient))
        moved = here + (1 - momentum) * (moved - here) + momentum * (here - before)
        before, here = here, ball.projected(moved)
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


def _fitting(logits: Tensor, targets: Tensor, *, least: int, name: str = "targets") -> Tensor:
    """The targets in int64, checked against the logits, which have at least so many classes."""
    if logits.shape[-1] < least:
        words = {2: "two", 3: "three", 4: "four"}
        raise ValueError(f"logits: expected at least {words[least]} classes, got {logits.shape[-1]}")
    has_shape(name, targets, logits.shape[:-1], "one class for each row of the logits")
    return class_numbers(name, targets, logits.shape[-1]).to(logits.device)


def _logit(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(-1, classes[..., None])[..., 0]


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    """`logit_margin` of what was checked before."""
    return logits.scatter(-1, targets[..., None], -torch.inf).amax(-1) - _logit(logits, targets)


def _ratio(logits: Tensor, targets: Tensor) -> Tensor:
    """`logit_ratio` of what was checked before."""
    top = logits.topk(3, -1).values
    return _margin(logits, targets) / (top[..., 0] - top[..., 2] + 1e-12)


def _towards(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """`targeted_logit_ratio` of what was checked before; with fewer than four classes the difference of logits."""
    gap = _logit(logits, goals) - _logit(logits, targets)
    if logits.shape[-1] < 4:
        return gap
    top = logits.topk(4, -1).values
    return gap / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """With dimensions of size 1 for those of an example."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def _flat(values: Tensor, lead: int) -> Tensor:
    """Each example in a row, one of a single number too."""
    return values[..., None].flatten(lead)


def _check(
    inputs: Tensor,
    targets: Tensor | None,
    epsilon: float | Tensor,
    bounds: Bounds,
    *,
    norm: Norm,
    loss: Loss,
    **counts: int,
) -> float | Tensor:
    """The radius, once all is as it must be."""
    epsilon = number("epsilon", epsilon)
    for name, value in counts.items():
        whole(name, value)
    _check_norm(norm)
    if not callable(loss) and loss not in LOSSES:
        raise ValueError(f"loss: expected {', '.join(map(repr, LOSSES))} or a function, got {loss!r}")
    if targets is None and loss != "kl":
        raise ValueError(f"targets: expected classes for the loss {loss!r}, got None")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: expected the lower before the higher, got {bounds}")
    real("inputs", inputs)
    if refuted((inputs >= bounds[0]) & (inputs <= bounds[1])):
        low, high = inputs.min().item(), inputs.max().item()
        raise ValueError(f"inputs: expected values within bounds={bounds}, got {low:g} to {high:g}")
    return epsilon


def _check_norm(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm: expected 'linf' or 'l2', got {norm!r}")


def _check_start(loss, start, restarts, generator) -> None:
    if start is not None and generator is not None:
        raise ValueError("start: expected either a start or a generator of random ones, got both")
    if generator is None and restarts > 1:
        raise ValueError(f"generator: expected one, to draw {restarts} starts from, got None")
    if loss == "kl" and start is None and generator is None:
        raise ValueError("start: expected one, or a generator: the gradient of 'kl' vanishes at the inputs, got None")
