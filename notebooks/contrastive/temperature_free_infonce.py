# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lossbook:
#     idea: Reading the cosine as a probability and taking its log-odds gives InfoNCE without a temperature to tune.
#     tags: [self-supervision, temperature, gradient, nothing to tune]
#     profiles:
#       smoke:
#         seeds: 2
#         epochs: 2
#         learning_rates: [0.001]
#         temperatures: [0.1, 1.0]
#         cases: 5
#       full:
#         dataset: fashion_mnist
#         full_data: true
#         encoder: cnn
#         batch_size: 256
#         epochs: 50
#         learning_rates: [0.0003, 0.001, 0.003]
#         temperatures: [0.02, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1.0]
# ---

# %% [markdown]
# # InfoNCE without a temperature
#
# Contrastive learning trains a network to recognise two views of the same picture among many pictures. Its usual loss, InfoNCE, compares
# embeddings by their cosine, and divides the cosine by a *temperature* that somebody has to tune. Kim and Kim ask why the temperature is
# needed at all. A cosine lies between $-1$ and $1$; a softmax wants numbers from the whole real line. Rather than stretch the cosine by a
# constant, they read $(1+c)/2$ as a probability and take its log-odds. These reach from $-\infty$ to $\infty$ by themselves, and the
# temperature is gone.
#
# **To take away.** The new loss is InfoNCE whose temperature depends on the pair, $\tau(c)=(1-c^2)/2$: soft for unrelated pairs, ever sharper
# for pairs that agree. It can reach zero, which InfoNCE cannot, and it has nothing to tune. Whether that costs accuracy, and what its gradient does in
# training, is measured below.

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from typing import Literal

from lossbook import lab
from lossbook.lab import augmentations
from lossbook.methods.contrastive.infonce import diagonal_cross_entropy, info_nce
from lossbook.methods.contrastive.temperature_free_infonce import (
    log_odds,
    temperature_free_info_nce,
)
from lossbook.methods.similarities import cosine_similarity

lab.use_theme()
ledger = lab.Ledger()

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
seeds: int = 5  # independent runs behind every interval
dataset: Literal["digits", "fashion_mnist"] = "digits"  # the pictures
full_data: bool = False  # the whole set, fetched once, or the part that ships
encoder: Literal["mlp", "cnn"] = "mlp"  # the network whose features are judged
temperatures: list[float] = [0.05, 0.1, 0.25, 0.5, 1.0]  # InfoNCE is tuned over these
learning_rates: list[float] = [0.0003, 0.001]  # every method is tuned over these
epochs: int = 15  # passes over the training pictures
batch_size: int = 128  # pictures a step, two views of each
cases: int = 200  # random cases behind every check
device: str = "auto"  # "auto" takes a GPU where there is one

# %% [markdown]
# ## Derivation
#
# ### Setting
#
# A batch has $N$ pictures with two views each. The network turns the views of picture $i$ into embeddings, which are divided by their lengths.
# Call $c_{ij}\in[-1,1]$ the cosine of the first view of $i$ and the second view of $j$. The *positives* $c_{ii}$ are to win against the
# *negatives* $c_{ij}$, $j\ne i$. InfoNCE is the cross-entropy of that choice,
#
# $$
# \ell^{\tau}_i=-\log\frac{e^{c_{ii}/\tau}}{\sum_j e^{c_{ij}/\tau}} .
# $$ (tf-infonce)
#
# Why divide by $\tau$? With $\tau=1$ the logits span only $[-1,1]$. Even a perfect batch, with positives at $1$ and negatives at $-1$, then gives
# the positive a probability of $1/(1+(N-1)e^{-2})$: about $0.03$ for $N=256$. A small $\tau$ widens the range; how small is left to trial.
#
# ### The log-odds of a cosine
#
# If $p\in(0,1)$ is a probability, $\log\frac{p}{1-p}$ are its log-odds, which take every real value. With $p=(1+c)/2$,
#
# $$
# s_{ij}=\log\frac{(1+c_{ij})/2}{(1-c_{ij})/2}=\log\frac{1+c_{ij}}{1-c_{ij}}=2\operatorname{artanh}c_{ij},
# \qquad
# \ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}} .
# $$ (tf-loss)
#
# Only the logit changes. Negatives, projector and optimiser stay as they are.

# %% tags=["hide-input"]
cosine = torch.linspace(-0.999, 0.999, 801, dtype=torch.float64)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
left.plot(cosine, log_odds(cosine), color="C0", linewidth=2.5, label="log-odds")
right.plot(
    cosine, (1 - cosine**2) / 2, color="C0", linewidth=2.5, label="log-odds, $(1-c^2)/2$"
)
for index, temperature in enumerate([0.1, 0.5, 1.0], start=1):
    style = dict(color=f"C{index}", linestyle=["--", "-.", ":"][index - 1])
    left.plot(
        cosine, cosine / temperature, label=f"$c/\\tau$, $\\tau={temperature:g}$", **style
    )
    right.axhline(temperature, label=f"$\\tau={temperature:g}$", **style)
left.set(title="Logit of a pair", xlabel="cosine $c$", ylabel="logit", ylim=(-11, 11))
right.set(
    title="Temperature at that cosine",
    xlabel="cosine $c$",
    ylabel="temperature: 1 / slope of the logit",
)
left.legend()
right.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
lab.show(
    figure,
    caption="Left: log-odds are nearly straight in the middle, with slope 2, and steepen without bound towards both ends. "
    "Right: the same as a temperature, one over the slope.",
    alt="Left panel: the log-odds curve rises steeply at cosines near -1 and 1, InfoNCE logits are straight lines. "
    "Right panel: the local temperature is a parabola, one half at cosine 0 and zero at -1 and 1; fixed temperatures are horizontal lines.",
)

# %% [markdown]
# ### Odds instead of exponentials
#
# The exponential of a log-odds is the odds itself. Write
# $q_{ij}=e^{s_{ij}}=\frac{1+c_{ij}}{1-c_{ij}}$, $R_i=\sum_{j\ne i}q_{ij}$ and $S_i=q_{ii}+R_i$. Then
#
# $$
# p_{ij}=\frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}=\frac{q_{ij}}{S_i},
# \qquad
# \ell_i=-\log\frac{q_{ii}}{q_{ii}+R_i}=\log\Bigl(1+\frac{R_i}{q_{ii}}\Bigr).
# $$ (tf-ratio)

# %%
generator = torch.Generator().manual_seed(0)


def random_cosines(n=16, edge=0.99):
    """A batch of cosines, uniform on (-edge, edge), in double precision."""
    return edge * (2 * torch.rand(n, n, generator=generator, dtype=torch.float64) - 1)


def odds(c):
    return (1 + c) / (1 - c)


def losses(logits):
    """Cross-entropy that picks the diagonal: PyTorch's own, the oracle of this page."""
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


gaps = []
for _ in range(cases):
    c = random_cosines()
    q, s = odds(c), torch.special.logit((1 + c) / 2)
    rest = q.sum(1) - q.diagonal()
    gaps += [lab.max_error(q / q.sum(1, keepdim=True), torch.softmax(s, 1))]
    gaps += [lab.max_error(torch.log1p(rest / q.diagonal()), losses(s))]
ledger.check(
    "ratio-form",
    "Softmax of the log-odds is the share of the odds, and the loss is log(1 + R/q): PyTorch's logit, softmax and cross-entropy agree.",
    error=max(gaps),
    tolerance=1e-12,
    cases=cases,
)

# %% [markdown]
# ### The gradient: a temperature of its own for every pair
#
# For any logits, $\partial\ell_i/\partial s_{ij}=p_{ij}-\delta_{ij}$, with $\delta_{ij}=1$ if $i=j$ and $0$ otherwise. The slope of the logit is
#
# $$
# \frac{ds}{dc}=\frac1{1+c}+\frac1{1-c}=\frac2{1-c^2},
# $$
#
# so, by the chain rule,
#
# $$
# \frac{\partial\ell_i}{\partial c_{ij}}=\frac{2}{1-c_{ij}^2}\,(p_{ij}-\delta_{ij}) .
# $$ (tf-gradient)
#
# The gradient of InfoNCE is $\frac1\tau(p_{ij}-\delta_{ij})$. The new loss thus acts as InfoNCE does at the *local temperature*
#
# $$
# \tau(c)=\frac{1-c^2}{2},
# $$ (tf-local)
#
# which is $\tfrac12$ for orthogonal embeddings and falls to $0$ for equal or opposite ones (right panel above).

# %%
gaps = []
for _ in range(cases):
    c = random_cosines().requires_grad_()
    (automatic,) = torch.autograd.grad(losses(torch.special.logit((1 + c) / 2)).sum(), c)
    p = (odds(c) / odds(c).sum(1, keepdim=True)).detach()
    gaps.append(
        lab.max_error((p - torch.eye(len(c))) / ((1 - c.detach() ** 2) / 2), automatic)
    )
ledger.check(
    "gradient",
    "The gradient by each cosine is that of InfoNCE at the local temperature (1 - c²)/2: automatic differentiation agrees.",
    error=max(gaps),
    tolerance=1e-10,
    cases=cases,
)

# %% [markdown]
# ### What happens at the ends
#
# **Positives.** Put $1-p_{ii}=R_i/S_i$ and $q_{ii}=\frac{1+c_{ii}}{1-c_{ii}}$ into {eq}`tf-gradient` and multiply out:
#
# $$
# \begin{aligned}
# \frac{\partial\ell_i}{\partial c_{ii}}
# &=-\frac{2}{(1-c_{ii})(1+c_{ii})}\cdot\frac{R_i}{\frac{1+c_{ii}}{1-c_{ii}}+R_i}\\
# &=-\frac{2R_i}{(1+c_{ii})\bigl[(1+c_{ii})+(1-c_{ii})R_i\bigr]} .
# \end{aligned}
# $$ (tf-positive)
#
# The factor $1-c_{ii}$ has cancelled. As $c_{ii}\to1$ the gradient tends to $-R_i/2$: finite, although the logit goes to infinity, but not zero
# as long as a negative has odds above zero. As $c_{ii}\to-1$ it grows like $-1/(1+c_{ii})$: a positive that points the wrong way is pulled hard.
#
# What turns the embeddings is the gradient by the *angle* $\theta$ between them, $c_{ii}=\cos\theta$. With $t=\tan\frac\theta2$ we have
# $\frac{1-c}{1+c}=t^2$, so $q_{ii}=1/t^2$, and the chain rule with $\frac{dc}{d\theta}=-\sin\theta$ gives
#
# $$
# \frac{\partial\ell_i}{\partial\theta}=\frac{(1+t^2)\,R_i\,t}{1+R_i\,t^2} .
# $$ (tf-angle)
#
# At small angles this is $\tfrac12R_i\theta/(1+\tfrac14R_i\theta^2)$: it does vanish at the optimum, in proportion to the angle, but first rises to
# about $\tfrac12\sqrt{R_i}$ at $\theta\approx2/\sqrt{R_i}$. With 127 negatives of cosine zero, $R_i=127$, the turning force is strongest at $c=0.98$.
#
# **Negatives.** In the same way,
#
# $$
# \frac{\partial\ell_i}{\partial c_{ij}}=\frac{2}{(1-c_{ij})^2\,S_i}\;\longrightarrow\;\frac{1}{1-c_{ij}}\quad\text{as }c_{ij}\to1,
# $$ (tf-negative)
#
# because $q_{ij}$ then dominates $S_i$. Two different pictures with almost equal embeddings, such as duplicates in the data, are pushed apart
# without bound. The library keeps this finite; clip gradients where duplicates occur.


# %%
def gradient(c):
    """Of the sum of the losses by every cosine, automatic."""
    c = c.clone().requires_grad_()
    return torch.autograd.grad(losses(torch.special.logit((1 + c) / 2)).sum(), c)[0]


exact, turning, limits = [], [], []
for _ in range(cases):
    c = random_cosines()
    on = torch.eye(len(c), dtype=torch.bool)
    total = odds(c).sum(1, keepdim=True)
    rest = total - odds(c).diagonal()[:, None]
    by_positive = -2 * rest / ((1 + c) * (1 + c + (1 - c) * rest))
    by_negative = 2 / ((1 - c) ** 2 * total)
    exact.append(lab.max_error(gradient(c), torch.where(on, by_positive, by_negative)))

    angle = c.diagonal().arccos().requires_grad_()
    turned = torch.where(on, angle.cos()[:, None], c)
    (automatic,) = torch.autograd.grad(
        losses(torch.special.logit((1 + turned) / 2)).sum(), angle
    )
    t, rest = (angle.detach() / 2).tan(), rest.squeeze()
    turning.append(lab.max_error(automatic, (1 + t**2) * rest * t / (1 + rest * t**2)))

    near = 1e-7  # the distance from the end at which the limits are looked at
    for entry, value, limit in [
        ((0, 0), 1 - near, -rest[0] / 2),
        ((0, 0), near - 1, -1 / near),
        ((0, 1), 1 - near, 1 / near),
    ]:
        end = c.clone()
        end[entry] = value
        limits.append(lab.max_error(gradient(end)[entry], limit))
ledger.check(
    "ends-exact",
    "The gradients by a positive and by a negative have the closed forms of this section.",
    error=max(exact),
    tolerance=1e-10,
    cases=cases,
)
ledger.check(
    "turning-force",
    "So has the gradient by the angle between the views.",
    error=max(turning),
    tolerance=1e-10,
    cases=cases,
)
ledger.check(
    "ends-limits",
    "At a distance of 1e-7 from the end: -R/2 for an agreeing positive, -1/(1+c) for an opposite one, 1/(1-c) for a duplicate negative.",
    error=max(limits),
    tolerance=1e-3,
    cases=3 * cases,
)

# %% [markdown]
# The tolerance of the last check is the size of the next term of the expansion: the limits are approached in proportion to the distance, times
# $R_i$, which reaches some thousands here.
#
# ### One slice through both losses
#
# Let all positives have the cosine $c$ and all negatives $-c$: embeddings that separate perfectly as $c\to1$. Then
# $R/q=(N-1)\bigl(\frac{1-c}{1+c}\bigr)^2$, and
#
# $$
# \ell=\log\Bigl(1+(N-1)\bigl(\tfrac{1-c}{1+c}\bigr)^2\Bigr),\qquad
# \frac{d\ell}{dc}=-\frac{4(N-1)\,(1-c)/(1+c)^3}{1+(N-1)\bigl(\frac{1-c}{1+c}\bigr)^2},
# $$ (tf-slice)
#
# zero at $c=1$ and nowhere else. InfoNCE on the same slice is $\log\bigl(1+(N-1)e^{-2c/\tau}\bigr)$ with derivative
#
# $$
# \frac{d\ell^\tau}{dc}=-\frac2\tau\cdot\frac{(N-1)e^{-2c/\tau}}{1+(N-1)e^{-2c/\tau}} .
# $$ (tf-slice-infonce)
#
# It is never zero, but it fades: for small $\tau$ long before the optimum, for large $\tau$ not even there.


# %%
def slice_gradient(c, n):
    return -4 * (n - 1) * (1 - c) / (1 + c) ** 3 / (1 + (n - 1) * ((1 - c) / (1 + c)) ** 2)


def slice_gradient_infonce(c, n, temperature):
    weight = (n - 1) * torch.exp(-2 * c / temperature)
    return -2 / temperature * weight / (1 + weight)


gaps = []
for _ in range(cases):
    n = int(torch.randint(2, 300, (), generator=generator))
    c = (
        1.98 * torch.rand((), generator=generator, dtype=torch.float64) - 0.99
    ).requires_grad_()
    temperature = float(torch.empty(()).uniform_(0.05, 1, generator=generator))
    batch = c * (2 * torch.eye(n, dtype=torch.float64) - 1)
    for logits, formula in [
        (torch.special.logit((1 + batch) / 2), slice_gradient(c, n)),
        (batch / temperature, slice_gradient_infonce(c, n, temperature)),
    ]:
        (automatic,) = torch.autograd.grad(losses(logits).mean(), c, retain_graph=True)
        gaps.append(lab.max_error(automatic, formula.detach()))
ledger.check(
    "slice",
    "The derivatives along the slice, of both losses, agree with automatic differentiation of the whole batch.",
    error=max(gaps),
    tolerance=1e-9,
    cases=2 * cases,
)

# %% tags=["hide-input"]
c = torch.linspace(-0.6, 1, 801, dtype=torch.float64)
figure, axes = plt.subplots(figsize=(7, 3.6))
axes.semilogy(
    c, -slice_gradient(c, 256), color="C0", linewidth=2.5, label="log-odds, no temperature"
)
for index, temperature in enumerate([0.1, 0.5, 1.0], start=1):
    axes.semilogy(
        c,
        -slice_gradient_infonce(c, 256, temperature),
        color=f"C{index}",
        linestyle=["--", "-.", ":"][index - 1],
        label=f"InfoNCE, $\\tau={temperature:g}$",
    )
axes.set(
    title="Pull on the positives when negatives mirror them, $N=256$",
    xlabel="cosine $c$ of positives (negatives at $-c$)",
    ylabel="$|d\\ell/dc|$",
    ylim=(1e-6, 100),
)
axes.legend(loc="lower left")
lab.show(
    figure,
    caption="Gradient against similarity. Without a temperature the pull stays above 1 until shortly before the optimum and drops to zero at it. "
    "InfoNCE with τ = 0.1 has lost its pull by c = 0.7, with τ = 1 it still pulls at c = 1.",
    alt="Four curves of gradient size on a logarithmic axis. The log-odds loss stays near 7 and falls to zero only at cosine 1. "
    "InfoNCE at temperature 0.1 falls exponentially from cosine 0.2 on; at temperature 1 it stays near 2 throughout.",
)
at = torch.tensor([0.7, 1.0], dtype=torch.float64)
lab.show_table(
    pd.DataFrame(
        {
            "cosine of positives": at,
            "log-odds": slice_gradient(at, 256).abs(),
            "InfoNCE, τ = 0.1": slice_gradient_infonce(at, 256, 0.1).abs(),
            "InfoNCE, τ = 1": slice_gradient_infonce(at, 256, 1.0).abs(),
        }
    ),
    caption="Size of the derivative on the slice at two cosines, N = 256",
    formats={
        "cosine of positives": "{:g}",
        "log-odds": "{:.3g}",
        "InfoNCE, τ = 0.1": "{:.2g}",
        "InfoNCE, τ = 1": "{:.4g}",
    },
)

# %% [markdown]
# ### A floor under InfoNCE
#
# No batch makes InfoNCE zero. The best that cosines allow is $c_{ii}=1$ and $c_{ij}=-1$, so
#
# $$
# \ell^\tau_i\ \ge\ \log\bigl(1+(N-1)e^{-2/\tau}\bigr)\ >\ 0 ,
# $$ (tf-floor)
#
# while the loss without temperature has infimum $0$: on the slice it is at most $(N-1)\bigl(\frac{1-c}{1+c}\bigr)^2\to0$. (Neither bound can be
# reached for $N>2$: at most two embeddings can be opposite to one another. The loss without temperature still reaches $0$ by
# $c_{ii}\to1$ alone, since then $q_{ii}\to\infty$; InfoNCE does not.)

# %%
violations, vanishing = [], []
for _ in range(cases):
    c = random_cosines(edge=1.0)
    for temperature in (0.05, 0.1, 0.5, 1.0):
        floor = math.log1p((len(c) - 1) * math.exp(-2 / temperature))
        violations.append(float((floor - losses(c / temperature)).max()))
    c.fill_diagonal_(1 - 1e-14)
    vanishing.append(float(losses(torch.special.logit((1 + c) / 2))[0]))
ledger.check(
    "floor",
    "InfoNCE stays above its floor for random cosines and four temperatures.",
    error=max(0.0, *violations),
    tolerance=1e-12,
    cases=4 * cases,
)
ledger.check(
    "no-floor",
    "Without a temperature the loss vanishes as the positives reach 1, whatever the negatives are.",
    error=max(vanishing),
    tolerance=1e-7,
    cases=cases,
)

# %% [markdown]
# ## The method
#
# The library's own source:

# %% tags=["hide-input"]
lab.show_source(log_odds, temperature_free_info_nce)

# %% [markdown]
# Rounding reaches $c=\pm1$, where log-odds are infinite. A clamp is the usual answer, but it cuts the gradient off exactly where two embeddings
# coincide; the library adds $\epsilon$ inside both logarithms instead, which keeps value and gradient finite and the gradient alive. The oracle for
# the whole function, from raw embeddings to their gradient, is PyTorch's cross-entropy of PyTorch's logit.

# %%
gaps = []
for _ in range(cases):
    x, y = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64).requires_grad_()
    ours = temperature_free_info_nce(x, y)
    oracle = losses(torch.special.logit((1 + F.normalize(x) @ F.normalize(y).T) / 2)).mean()
    gaps.append(lab.max_error(ours, oracle))
    for one, other in zip(
        torch.autograd.grad(ours, (x, y)), torch.autograd.grad(oracle, (x, y)), strict=True
    ):
        gaps.append(lab.max_error(one, other))
ledger.check(
    "library",
    "The library's loss and its gradient by raw embeddings agree with PyTorch's cross-entropy of PyTorch's logit.",
    error=max(gaps),
    tolerance=1e-10,
    cases=cases,
)

# %% [markdown]
# ## The experiment
#
# An encoder is trained without labels on two random views of each picture: moved by up to one pixel along each axis, with Gaussian noise of standard
# deviation 0.1, and with a tenth of the pixels set to zero. A projector turns its features into the embeddings that the loss sees. Afterwards the
# encoder is frozen, and a logistic regression on its features (a *linear probe*) says how much of the classes they show.
#
# Every method has the same networks, views, seeds, steps and the same grid of learning rates. InfoNCE also has its grid of temperatures: it gets as many
# times the budget as there are temperatures, which is what the new loss promises to save. Settings are chosen by the mean accuracy on validation
# pictures; all figures show test pictures, which played no part in the choice. One more loss shows what the factor 2 in {eq}`tf-loss` does: some
# implementations use $\operatorname{artanh}c$ alone, which is another loss, with $p_{ij}\propto\sqrt{q_{ij}}$.

# %%
splits = {
    name: lab.load(dataset, split=name, full=full_data)
    for name in ("train", "validation", "test")
}
train = splits["train"].inputs
views = augmentations.Views((batch_size, *train.shape[1:]), shift=1, noise=0.1, drop=0.1)
sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
print(
    f"{splits['train'].name}: {sizes} pictures, {tuple(train.shape[1:])}, {splits['train'].licence}"
)

# %% tags=["hide-input"]
batch = views.once(train[:batch_size], torch.Generator().manual_seed(0))
rows = {
    "picture": train[:batch_size],
    "first view": batch["first"],
    "second view": batch["second"],
}
figure, axes = plt.subplots(3, 8, figsize=(7, 2.9))
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for panel, picture in zip(row, pictures, strict=False):
        panel.imshow(picture[0], cmap="gray_r", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[], xlabel=" ", ylabel=name if panel is row[0] else " ")
figure.suptitle("What the network sees")
lab.show(
    figure,
    caption="Eight training pictures and two views of each. The loss asks to find the one from the other among all views of the batch.",
    alt="A grid of small grey pictures: eight originals in the first row, two noisy and shifted versions of each below.",
)

# %% [markdown]
# ### What is claimed
#
# The criteria are fixed here, before anything is trained.

# %%
c1 = ledger.claim(
    "c1",
    "Untuned, the loss without temperature is no worse than InfoNCE at its best temperature.",
    metric="test accuracy of the probe, log-odds less tuned InfoNCE",
    direction="greater",
    margin=-1.0,
    unit="points",
)
c2 = ledger.claim(
    "c2",
    "InfoNCE is sensitive to its temperature.",
    metric="test accuracy of the probe, best less worst temperature of the grid (chosen on validation)",
    direction="greater",
    margin=1.0,
    unit="points",
)
sharp = min(
    temperatures, key=lambda t: abs(math.log(t / 0.1))
)  # the grid's temperature nearest to 0.1, the usual default
c3 = ledger.claim(
    "c3",
    f"The gradient stays alive before the optimum, where that of InfoNCE at τ = {sharp:g} has faded.",
    metric=f"log10 of the ratio of mean |∂ℓ/∂c| on positives, log-odds over InfoNCE at τ = {sharp:g}, in each bin of cosine from 0.5 to 0.95",
    direction="greater",
    margin=0.0,
    unit="decades",
)
c4 = ledger.claim(
    "c4",
    "The gradient vanishes at the optimum.",
    metric="log10 of the ratio of mean |∂ℓ/∂θ| on positives, bin of cosine above 0.99 over the largest bin",
    direction="less",
    margin=-0.3,  # a factor of two
    unit="decades",
)
ledger.criteria()

# %% [markdown]
# ### Training
#
# All seeds and settings of a loss are trained in one stack. During training the loop also logs, for bins of the positives' cosine, the mean size of
# the gradient by the cosine, {eq}`tf-gradient`, and by the angle.

# %%
edges = torch.tensor([-1.0, 0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01])
pixels, channels = train[0].numel(), train.shape[1]


def build(run):
    if encoder == "mlp":
        return lab.EncoderProjector(lab.mlp([pixels, 128, 64]), lab.mlp([64, 32]))
    return lab.EncoderProjector(
        lab.cnn([32, 64, 128], inputs=channels), lab.mlp([128, 128, 64])
    )


def binned_gradient(positives, losses, slope):
    """Sums over the bins of the positives' cosine: how many, |dℓ/dc|, |dℓ/dθ|; a loss is -log p, so p = exp(-loss)."""
    by_cosine = -slope * torch.expm1(-losses)
    by_angle = by_cosine * (1 - positives**2).clamp(min=0).sqrt()
    inside = (positives[:, None] >= edges[:-1].to(losses)) & (
        positives[:, None] < edges[1:].to(losses)
    )
    return torch.stack([torch.ones_like(positives), by_cosine, by_angle]) @ inside.to(
        losses
    )


def training(method):
    """The loss of one run, and what is logged beside it."""

    def loss(model, batch, run):
        (_, first), (_, second) = model(batch["first"]), model(batch["second"])
        positives = F.cosine_similarity(first.detach(), second.detach())
        slope = 2 / (1 - positives**2).clamp(min=1e-6)
        if method == "log-odds":
            losses = temperature_free_info_nce(first, second, reduction="none")
        elif method == "artanh":
            slope = slope / 2
            losses = diagonal_cross_entropy(
                log_odds(cosine_similarity(first, second)) / 2, reduction="none"
            )
        else:
            slope = 1 / run["temperature"]
            losses = info_nce(
                first, second, temperature=run["temperature"], reduction="none"
            )
        return losses.mean(), {
            "gradient": binned_gradient(positives, losses.detach(), slope)
        }

    return loss


results, gradients = [], []
for method in ("log-odds", "artanh", "InfoNCE"):
    grid = {"seed": range(seeds), "learning_rate": learning_rates}
    if method == "InfoNCE":
        grid["temperature"] = temperatures
    fitted = lab.fit(
        build,
        training(method),
        {"inputs": train},
        lab.grid(**grid),
        epochs=epochs,
        batch_size=batch_size,
        noise=views.draw,
        transform=views.apply,
        device=device,
        progress=method,
    )
    features = {name: fitted.predict(split.inputs)[0] for name, split in splits.items()}
    accuracies = 100 * lab.accuracies(features, {n: split.targets for n, split in splits.items()})
    results.append(fitted.runs.assign(method=method).join(accuracies))
    gradients.append(fitted.logged["gradient"].sum(1))  # over steps: (runs, 3, bins)

results = pd.concat(results, ignore_index=True)
gradients = torch.cat(gradients)
(raw,) = lab.linear_probe(
    train.flatten(1),
    splits["train"].targets,
    (splits["test"].inputs.flatten(1), splits["test"].targets),
)
print(
    f"{len(results)} runs; a probe on raw pixels reaches {100 * raw:.1f} % on the test pictures"
)
lab.record(results)

# %% [markdown]
# ## Results
#
# Each loss at the learning rate that was best on the validation pictures; for InfoNCE, at each temperature apart.

# %% tags=["hide-input"]
results["condition"] = results["method"].where(
    results["temperature"].isna(),
    "InfoNCE, τ = " + results["temperature"].map("{:g}".format),
)
chosen = lab.best_setting(
    results, "validation accuracy", over=["learning_rate"], per="condition"
)
swept = chosen[chosen["method"] == "InfoNCE"]
lines = {
    name: lab.mean_interval(chosen.loc[chosen["method"] == name, "test accuracy"])
    for name in ("log-odds", "artanh")
}

figure, axes = plt.subplots(figsize=(7, 3.8))
points = [
    lab.mean_interval(swept.loc[swept["temperature"] == t, "test accuracy"])
    for t in sorted(temperatures)
]
axes.errorbar(
    sorted(temperatures),
    [p.effect for p in points],
    yerr=[[p.effect - p.low for p in points], [p.high - p.effect for p in points]],
    color="C1",
    marker="o",
    capsize=3,
    label="InfoNCE",
)
for color, style, label, name in [
    ("C0", "-", "log-odds, no temperature", "log-odds"),
    ("C2", "--", "artanh (without the factor 2)", "artanh"),
]:
    axes.axhline(lines[name].effect, color=color, linestyle=style, label=label)
axes.axhspan(
    max(lines["log-odds"].low, 0),
    min(lines["log-odds"].high, 100),
    color="C0",
    alpha=0.15,
    linewidth=0,
)
axes.axhline(100 * raw, color="0.4", linestyle=":", label="raw pixels, no training")
axes.set(
    title="Accuracy against temperature",
    xlabel="temperature τ (logarithmic)",
    ylabel="test accuracy of the probe (%)",
    xscale="log",
)
axes.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
axes.minorticks_off()
figure.legend(loc="outside lower center", ncols=2)
lab.show(
    figure,
    caption=f"Linear-probe accuracy on test pictures, mean and 95 % interval over {seeds} seeds. "
    "The band is the interval of the loss without temperature.",
    alt="Accuracy of InfoNCE at each temperature with error bars, and horizontal lines for the loss without temperature, "
    f"for artanh and for raw pixels. Log-odds reach {lines['log-odds'].effect:.1f} percent; InfoNCE between "
    f"{min(p.effect for p in points):.1f} and {max(p.effect for p in points):.1f} percent.",
)

# %% tags=["hide-input"]
table = (
    chosen.groupby("condition", sort=False)
    .agg(
        learning_rate=("learning_rate", "first"),
        validation=("validation accuracy", "mean"),
        test=("test accuracy", "mean"),
        spread=("test accuracy", "std"),
    )
    .reset_index()
)
lab.show_table(
    table.rename(
        columns={
            "condition": "loss",
            "learning_rate": "learning rate",
            "validation": "validation, mean %",
            "test": "test, mean %",
            "spread": "test, s.d.",
        }
    ),
    caption=f"Accuracy of the probe at each loss's best learning rate, {seeds} seeds",
    formats={
        "learning rate": "{:g}",
        "validation, mean %": "{:.2f}",
        "test, mean %": "{:.2f}",
        "test, s.d.": "{:.2f}",
    },
)

# %% [markdown]
# The gradient during training. Each point is the mean over all positives whose cosine fell into the bin, at any step of the run.

# %% tags=["hide-input"]
rows = []
for _, run in chosen.iterrows():
    match = (
        (results["condition"] == run["condition"])
        & (results["seed"] == run["seed"])
        & (results["learning_rate"] == run["learning_rate"])
    )
    count, by_cosine, by_angle = gradients[results.index[match][0]].double()
    for index in range(len(edges) - 1):
        if count[index] >= 50:  # a mean of fewer says little
            rows.append(
                {
                    "condition": run["condition"],
                    "method": run["method"],
                    "temperature": run["temperature"],
                    "seed": run["seed"],
                    "bin": index,
                    "low": round(float(edges[index]), 2),
                    "cosine": float(edges[index] + edges[index + 1].clamp(max=1)) / 2,
                    "by cosine": float(by_cosine[index] / count[index]),
                    "by angle": float(by_angle[index] / count[index]),
                }
            )
in_training = pd.DataFrame(rows)

figure, panels = plt.subplots(1, 2, figsize=(7, 3.7), sharex=True)
shown = ["log-odds"] + [f"InfoNCE, τ = {t:g}" for t in temperatures]
for panel, column, name in zip(
    panels,
    ["by cosine", "by angle"],
    ["$|\\partial\\ell/\\partial c|$", "$|\\partial\\ell/\\partial\\theta|$"],
    strict=True,
):
    sns.lineplot(
        in_training[in_training["condition"].isin(shown)],
        x="cosine",
        y=column,
        hue="condition",
        hue_order=shown,
        style="condition",
        style_order=shown,
        markers=True,
        errorbar=None,
        ax=panel,
        legend=panel is panels[1],
    )
    panel.set(
        title=f"Mean {name} on positives",
        xlabel="cosine of the positive",
        ylabel=f"mean {name}",
        yscale="log",
    )
sns.move_legend(panels[1], "lower left", title=None, fontsize=7)
lab.show(
    figure,
    caption="Size of the gradient on positives against their cosine, collected over training, mean over seeds. Left by the cosine, right by the angle, which is what turns the embeddings.",
    alt="Two panels of curves on logarithmic axes. Without a temperature the gradient by the cosine stays the largest at high cosines, "
    "that of InfoNCE at small temperatures falls off; the gradient by the angle falls for all losses as the cosine nears 1.",
)

# %% [markdown]
# ## Claims, judged

# %%
best = lab.best_setting(chosen, "validation accuracy", over=["temperature"])
c1.judge(lab.paired(best, "test accuracy", "log-odds", "InfoNCE"))
# %%
means = swept.groupby("condition")["validation accuracy"].mean()
c2.judge(
    lab.paired(
        swept, "test accuracy", means.idxmax(), means.idxmin(), condition="condition"
    )
)
# %%
wide = in_training.assign(size=np.log10(in_training["by cosine"])).pivot_table(
    index=["bin", "seed"], columns="condition", values="size"
)
ratios = (wide["log-odds"] - wide[f"InfoNCE, τ = {sharp:g}"]).dropna()
before = [b for b in range(len(edges) - 1) if edges[b] >= 0.5 and edges[b + 1] <= 0.951]
judged = {
    f"cosine {edges[b]:.2f} to {edges[b + 1]:.2f}": ratios.get(b, pd.Series(dtype=float))
    for b in before
}
judged = {
    name: values.to_numpy() for name, values in judged.items() if len(values) == seeds
}
print(
    f"{len(judged)} of {len(before)} bins have at least 50 positives in every run of both losses"
)
c3.judge(judged)
# %%
free = in_training[in_training["condition"] == "log-odds"].pivot(
    index="seed", columns="bin", values="by angle"
)
optimum = len(edges) - 2
free = free.reindex(columns=range(optimum + 1)).dropna(
    subset=[optimum]
)  # seeds with enough positives in the last bin
print(f"{len(free)} of {seeds} seeds have at least 50 positives with a cosine above 0.99")
c4.judge(np.log10(free[optimum] / free.max(axis=1)).to_numpy())
# %% [markdown]
# ## Beside the paper
#
# The paper reports five applications (image classification, graph representation, anomaly detection, debiasing of language models, sequential
# recommendation) in which the loss without temperature matches or beats tuned InfoNCE. Its tables were not available to us, so no number of theirs stands
# beside ours. By default this page uses 8x8 digits, a small network and 15 passes; the profile `full` uses Fashion-MNIST, a convolutional network and
# 50. A linear probe on raw pixels is hard to beat on the digits (dotted line above), so differences between losses are small there, and neither a tie
# nor a win says much about large images or large batches. Our margin for "no worse" is one point of accuracy, fixed in advance.
# In the default run every loss is best at the smallest learning rate of the grid, so the grid does not bracket the best one.
#
# Claims C3 and C4 look at the gradient where it is met in training, and there the slice is no guide. On the slice the negatives sit at $-c$; in training
# they sit near $0$, and InfoNCE with a small temperature has not faded at medium cosines: for equal $p_{ii}$ it pulls harder than the log-odds wherever
# $\tau<(1-c^2)/2$, for $\tau=0.1$ up to $c=\sqrt{0.8}\approx0.89$. Only beyond is the order that of the slice. And the turning force of the log-odds still rises
# until $\theta\approx2/\sqrt{R_i}$, a cosine of about $0.98$ for 127 negatives; noisy views of small pictures hardly get there, so its fall, proved
# above, is not seen here.
#
# The digits flatter a loss, and one set is no evidence for another. The recorded run on Fashion-MNIST, below, reads differently: there the loss without
# temperature falls behind tuned InfoNCE by more than the margin, so C1 is contradicted, while C3 holds. A likely reason is {eq}`tf-negative`. Many
# shirts look like many other shirts, so some negatives have cosines near 1, and the unbounded push goes into telling apart pictures of one kind,
# which a probe for classes does not need. A fixed temperature bounds that push by $1/\tau$. The same negatives make $R_i$ large, and the
# turning force is still at its strongest in the last bin of C4.
#
# What the derivation establishes holds for any data: the local temperature, the ends of the gradient, and the floor. Two remarks on it. The gradient by the
# cosine does *not* vanish at the optimum while negatives keep odds above zero; the gradient by the angle does, and it does so for InfoNCE
# too, since $\sin\theta\to0$. And "no hyperparameter" is exact only up to the scale of the logit: $\operatorname{artanh}c$, without the 2, is equally
# free of a temperature, and is another loss.

# %% [markdown]
# ## Try it
#
# - A harder set: `-p dataset=fashion_mnist`. The probe on raw pixels is then far from the ceiling.
# - More passes, `-p epochs=60`: does the best temperature move? The loss without temperature has none to move.
# - Smaller batches, `-p batch_size=32`: fewer negatives lower $R_i$ and with it the pull at the optimum, $R_i/2$.
#
# Everything this page found:

# %%
ledger.summary()
