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
#     idea: The number of groups sets the scale of the gradient, so the widths of a layer can choose it.
#     tags: [normalisation, gradient, initialisation, nothing to tune]
#     profiles:
#       smoke:
#         seeds: 2
#         epochs: 1
#         learning_rates: [0.1]
#         networks: 3
#         draws: 1000
#         cases: 5
#       full:
#         dataset: fashion_mnist
#         full_data: true
#         contracting: [1024, 512, 256, 128]
#         constant: [512, 512, 512, 512, 512, 512]
#         hourglass: [512, 256, 128, 256, 512]
#         architectures: [contracting, constant, hourglass, bottleneck]
#         group_numbers: [1, 2, 4, 8, 16, 32]
#         learning_rates: [0.01, 0.03, 0.1, 0.3]
#         batch_size: 128
#         epochs: 30
#       resnet:
#         dataset: fashion_mnist
#         full_data: true
#         architectures: [contracting, constant, hourglass, bottleneck]
#         trained: bottleneck
#         group_numbers: [1, 2, 4, 8, 16, 32]
#         learning_rates: [0.01, 0.03, 0.1, 0.3]
#         batch_size: 128
#         epochs: 15
# ---

# %% [markdown]
# # How many groups? Group normalisation that keeps the gradient's scale
#
# Group normalisation (GN) splits the features of a layer into $G$ groups and gives each group mean 0 and variance 1. With $G=1$ it is layer
# normalisation; with one feature (one channel) a group it is instance normalisation. In between, $G$ is usually 32, or such that 16 channels make a
# group, because somebody tried. Kim, Choi, Jang and Kim (2023, [arXiv:2302.03193](https://arxiv.org/abs/2302.03193)) observe that $G$ changes the size
# of the gradient that passes back through the layer. If every layer makes it a little larger, or a little smaller, a deep network makes it much larger
# or smaller. So, they propose, choose $G$ for each layer, from its own widths, such that the gradient keeps its scale: *isometric* propagation.
#
# **To take away.** Normalising takes two directions out of the gradient in each group of $m$ features, and divides by a variance estimated from $m$ numbers;
# together this multiplies the squared gradient by $\frac{m-2}{m-3}$. Small groups amplify. A layer that contracts from many features
# to few shrinks the gradient per feature, and small groups can make up for it, by a factor of 2 at most. In a layer of equal or growing width nothing needs
# making up, and one group is best. Whether keeping the scale at the start also trains better is another question, judged below.
#
# **What is whose.** The idea is the paper's. The closed form that the paper prints was not available to us; the formulas on this page are our own
# derivation of the same object, under assumptions that are named, and we call the choice built on them *isometric group selection*. Do not read them as the
# authors' formula.

# %% tags=["hide-input"]
import math
from functools import partial
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from torch import nn

from lossbook import lab
from lossbook.methods.layers.ideal_group_number import (
    conv_group_norm_gain,
    group_norm_backward,
    group_norm_gain,
    ideal_number_of_groups,
    isometric_group_number,
    measured_gain,
    set_group_numbers,
)

lab.use_theme()
ledger = lab.Ledger()

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
seeds: int = 5  # independent training runs behind every interval
dataset: Literal["digits", "fashion_mnist"] = "digits"  # the pictures
full_data: bool = False  # the whole set, fetched once, or the part that ships
contracting: list[int] = [256, 128, 64, 32]  # hidden widths of a network that narrows
constant: list[int] = [128, 128, 128, 128, 128, 128]  # of a network of equal layers
hourglass: list[int] = [128, 64, 32, 64, 128]  # of a network that narrows and widens
channels: list[int] = [64, 128]  # stages of the bottleneck residual network
architectures: list[str] = ["contracting", "constant", "hourglass"]  # measured
trained: Literal["contracting", "constant", "hourglass", "bottleneck"] = (
    "contracting"  # the one that is trained
)
group_numbers: list[int] = [1, 8, 32]  # constant numbers of groups, the sweep
learning_rates: list[float] = [0.03, 0.1, 0.3]  # every method is tuned over these
epochs: int = 5  # passes over the training pictures
batch_size: int = 64  # pictures a step
networks: int = 30  # initialisations behind every measured gain
draws: int = 10000  # random draws behind every Monte-Carlo check
cases: int = 100  # random cases behind every exact check
device: str = "auto"  # "auto" takes a GPU where there is one

# %% [markdown]
# ## Derivation
#
# ### Setting
#
# Take one example. Let $y_1,\dots,y_m$ be the numbers in one group: $m=n/G$ features of the $n$ in the layer (for pictures, $n/G$ channels times all
# pixels). GN computes
#
# $$
# \mu=\frac1m\sum_i y_i,\qquad \sigma^2=\frac1m\sum_i(y_i-\mu)^2,\qquad a=\sqrt{\sigma^2+\epsilon},\qquad
# \hat y_i=\frac{y_i-\mu}{a},\qquad z_i=\gamma_i\hat y_i+\beta_i,
# $$ (gn-forward)
#
# with the variance divided by $m$, not $m-1$, and a tiny $\epsilon\ge0$ against division by zero.
#
# ### The gradient of group normalisation
#
# Moving one $y_j$ moves all $\hat y_i$ of its group, through $\mu$ and through $a$. Step by step:
#
# - $\partial\mu/\partial y_j=\frac1m$.
# - $\partial\sigma^2/\partial y_j=\frac2m\sum_i(y_i-\mu)(\delta_{ij}-\frac1m)=\frac2m(y_j-\mu)$, because $\sum_i(y_i-\mu)=0$. Here $\delta_{ij}$ is 1 if $i=j$, else 0.
# - $\partial a/\partial y_j=\frac1{2a}\cdot\frac2m(y_j-\mu)=\frac{\hat y_j}m$.
#
# The quotient rule puts these together:
#
# $$
# \frac{\partial\hat y_i}{\partial y_j}=\frac{\delta_{ij}-\frac1m}{a}-\frac{y_i-\mu}{a^2}\cdot\frac{\hat y_j}m
# =\frac1a\Bigl(\delta_{ij}-\frac1m-\frac{\hat y_i\hat y_j}m\Bigr).
# $$ (gn-jacobian)
#
# With $\delta_i=\gamma_i\,\partial L/\partial z_i$, the gradient that arrives at $\hat y_i$, the chain rule $\sum_i\delta_i\,\partial\hat y_i/\partial y_j$ gives
#
# $$
# \frac{\partial L}{\partial y_j}=\frac1a\Bigl(\delta_j-\frac1m\sum_i\delta_i-\hat y_j\,\frac1m\sum_i\hat y_i\delta_i\Bigr).
# $$ (gn-backward)

# %%
generator = torch.Generator().manual_seed(0)
normal = partial(torch.randn, generator=generator, dtype=torch.float64)


def uniform_integer(low, high):
    return int(torch.randint(low, high + 1, (), generator=generator))


def backward(normalise, y, upstream):
    """Automatic differentiation: the oracle of this page."""
    y = y.detach().requires_grad_()
    return torch.autograd.grad(normalise(y), y, upstream)[0]


gaps = []
for _ in range(cases):
    groups, size, pixels = (
        uniform_integer(1, 6),
        uniform_integer(1, 12),
        uniform_integer(1, 5),
    )
    y, upstream, weight = (
        normal(3, groups * size, pixels),
        normal(3, groups * size, pixels),
        normal(groups * size),
    )
    ours = group_norm_backward(upstream, y, groups, weight=weight, eps=1e-3)
    gaps.append(
        lab.max_error(
            ours,
            backward(
                partial(F.group_norm, num_groups=groups, weight=weight, eps=1e-3),
                y,
                upstream,
            ),
        )
    )
ledger.check(
    "gradient",
    "The gradient of group normalisation in closed form, with scales and epsilon: automatic differentiation agrees.",
    error=max(gaps),
    tolerance=1e-10,
    cases=cases,
)

# %% [markdown]
# ### What the layer takes away
#
# In matrix form, {eq}`gn-jacobian` is $\frac1aP$ with
#
# $$
# P=I-\frac1m\mathbf 1\mathbf 1^\top-\frac1m\hat y\hat y^\top .
# $$ (gn-projection)
#
# Since $\sum_i\hat y_i=0$, we have $P\mathbf 1=0$: adding a constant to the group changes nothing, so the gradients of a group sum to zero, for every
# $\epsilon$. And since $\|\hat y\|^2=m\sigma^2/(\sigma^2+\epsilon)$, we have $P\hat y=\frac{\epsilon}{\sigma^2+\epsilon}\hat y$. Put $\epsilon=0$ from here on. Then
# $P\hat y=0$ as well: stretching the group changes nothing. So $P$ is the orthogonal projection that removes the two directions $\mathbf 1$ and $\hat y$; its
# eigenvalues are 0, twice, and 1, $m-2$ times:
#
# $$
# P^2=P,\qquad \sum_iP_{ii}=\operatorname{rank}P=m-2 .
# $$ (gn-rank)
#
# A group of two features has nothing left. Whatever they are, they become $+1$ and $-1$, and no gradient passes. (Nor does it through a group of one, which
# becomes 0.)

# %%
sums, along, eigen, dead = [], [], [], []
for _ in range(cases):
    groups, size = uniform_integer(1, 4), uniform_integer(3, 12)
    y, upstream = normal(1, groups * size), normal(1, groups * size)
    for eps in (0.0, 1e-3):
        gradient = backward(
            partial(F.group_norm, num_groups=groups, eps=eps), y, upstream
        ).view(groups, size)
        sums.append(float(gradient.sum(1).abs().max() / gradient.abs().max()))
    gradient = backward(
        partial(F.group_norm, num_groups=groups, eps=0.0), y, upstream
    ).view(groups, size)
    along.append(
        float(
            (gradient * F.group_norm(y, groups, eps=0.0).view(groups, size))
            .sum(1)
            .abs()
            .max()
            / gradient.abs().max()
        )
    )

    group = y[:, :size]
    jacobian = torch.autograd.functional.jacobian(
        lambda y: F.group_norm(y, 1, eps=0.0), group
    )[0, :, 0] * group.std(correction=0)
    expected = torch.cat([torch.zeros(2), torch.ones(size - 2)]).double()
    eigen.append(lab.max_error(torch.linalg.eigvalsh(jacobian), expected))
    pairs = normal(2, 6)
    pair = backward(partial(F.group_norm, num_groups=3, eps=0.0), pairs, normal(2, 6))
    # In units of the 1/σ that a larger group passes: so does rounding grow where two features are nearly equal.
    pair = pair * pairs.view(2, 3, 2).std(2, correction=0).repeat_interleave(2, 1)
    single = backward(
        partial(F.group_norm, num_groups=6, eps=1e-5), normal(2, 6), normal(2, 6)
    )  # needs epsilon: 0/0 without
    dead.append(float(torch.cat([pair, single]).abs().max()))
ledger.check(
    "removed",
    "In each group the gradients sum to zero (for every epsilon) and have nothing along the normalised features (for epsilon 0).",
    error=max(sums + along),
    tolerance=1e-9,
    cases=3 * cases,
)
ledger.check(
    "rank",
    "The Jacobian times σ, by automatic differentiation, has the eigenvalues 0 (twice) and 1 (m - 2 times).",
    error=max(eigen),
    tolerance=1e-9,
    cases=cases,
)
ledger.check(
    "dead",
    "No gradient passes a group of two features (for epsilon 0) or of one.",
    error=max(dead),
    tolerance=1e-9,
    cases=2 * cases,
)

# %% [markdown]
# **Pairs in practice.** With the customary $\epsilon=10^{-5}$ a pair does pass something. There, $\hat y_1=-\hat y_2=\pm\sigma/a$, and {eq}`gn-jacobian` becomes
# $\frac{\epsilon}{2a^3}\bigl(\begin{smallmatrix}1&-1\\-1&1\end{smallmatrix}\bigr)$: almost nothing, unless $\sigma\lesssim\sqrt\epsilon$, and then up to $\frac1{2\sqrt\epsilon}$, which is huge. For Gaussian features of
# variance $\tau^2$, $\sigma=\frac12|y_1-y_2|$ has the density $\frac2{\sqrt\pi\,\tau}$ near 0, and since $\int_0^\infty\frac{\epsilon^2\,d\sigma}{(\sigma^2+\epsilon)^3}=\frac{3\pi}{16\sqrt\epsilon}$, an independent unit gradient arrives with mean square
#
# $$
# \mathbb E\Bigl(\frac{\partial L}{\partial y_1}\Bigr)^2=2\,\mathbb E\frac{\epsilon^2}{4a^6}\approx\frac{3\sqrt\pi}{16\,\tau\sqrt\epsilon} .
# $$ (gn-pair)
#
# Zero for $\epsilon=0$, yet without bound as $\epsilon\to0$: rare pairs that nearly tie carry it all. A mean that no typical example shows is no scale to keep, and
# groups of two are left out from here on.

# %%
generator.manual_seed(
    1
)  # a simulation's draws shall not depend on how many cases were tried before
y, upstream = normal(10 * draws, 2), normal(10 * draws, 2)
squares = (
    backward(partial(F.group_norm, num_groups=1, eps=1e-3), y, upstream).square().mean(1)
)
error = squares.std() / math.sqrt(len(squares))
ledger.check(
    "pair",
    "A group of two passes a mean squared gradient of 3√π/(16τ√ε), here at ε = 0.001, by simulation (error in Monte-Carlo standard errors).",
    error=abs(squares.mean() - 3 * math.sqrt(math.pi / 1e-3) / 16) / error,
    tolerance=4.0,
    cases=len(squares),
)

# %% [markdown]
# The two ends of the scale have names of their own: one group is layer normalisation (LN), one channel a group is, on pictures, instance normalisation (IN).

# %%
gaps = []
for _ in range(cases):
    y, upstream = normal(2, 6, 4, 5), normal(2, 6, 4, 5)
    for groups, other in [
        (1, lambda y: F.layer_norm(y, y.shape[1:])),
        (6, F.instance_norm),
    ]:
        gaps.append(lab.max_error(F.group_norm(y, groups), other(y)))
        gaps.append(
            lab.max_error(
                group_norm_backward(upstream, y, groups), backward(other, y, upstream)
            )
        )
ledger.check(
    "ends",
    "One group is PyTorch's layer_norm, one channel a group its instance_norm, forward and backward.",
    error=max(gaps),
    tolerance=1e-10,
    cases=2 * cases,
)

# %% [markdown]
# ### The gain of a unit
#
# Now put the layer into a *unit*: a linear map, GN, and ReLU,
#
# $$
# x\in\mathbb R^{n_{in}}\;\longrightarrow\;y=Wx\in\mathbb R^{n_{out}}\;\longrightarrow\;\hat y=\mathrm{GN}_G(y)\;\longrightarrow\;x'=\max(\hat y,0).
# $$
#
# A gradient $u=\partial L/\partial x'$ arrives. The *gain* compares mean squares per element,
#
# $$
# q(G)=\frac{\mathbb E\bigl[(\partial L/\partial x_j)^2\bigr]}{\mathbb E\bigl[u_i^2\bigr]},
# $$ (gn-gain-definition)
#
# and isometric means $q=1$. (The ratio of squared *norms* is $\frac{n_{in}}{n_{out}}q$, another quantity. By that measure every unit of the kind below would gain
# about $\frac{m-2}{m-3}$, whatever its widths, and one group would always be best.) We assume, at the start of training:
#
# - **A1** The entries of $W$ are independent Gaussians of mean 0 and variance $v$, independent of $x$.
# - **A2** The entries of $u$ are independent of mean 0 and variance 1, and independent of $x$ and $W$.
# - **A3** $\|x\|^2=n_{in}s$, where $s$ is the mean square of the inputs: $s=\frac12$ after GN and ReLU, $s=1$ for standardised data.
# - **A4** $\gamma=1$, $\beta=0$, $\epsilon=0$, and $m=n_{out}/G>3$.
#
# **Step 1: ReLU and projection.** Let $D$ be the diagonal matrix with 1 where $\hat y_i>0$ and 0 elsewhere. In one group, $g=\partial L/\partial y=\frac1\sigma PDu$. Averaged
# over $u$ (A2), $\mathbb E_u\|PDu\|^2=\operatorname{tr}(PD^2P)=\operatorname{tr}(DP)=\sum_iP_{ii}\,[\hat y_i>0]$. Replacing $y$ by $-y$ changes neither the law of $y$ nor $\sigma$ nor $P$, but it swaps
# which features are positive. So each $P_{ii}$ counts half the time, and by {eq}`gn-rank`
#
# $$
# \mathbb E\|g\|^2=\frac{m-2}2\;\mathbb E\frac1{\sigma^2}.
# $$ (gn-step-relu)
#
# **Step 2: the variance.** Given $x$, the $y_i$ are independent Gaussians of variance $\tau^2=v\|x\|^2$, so $m\sigma^2/\tau^2$ has the chi-squared
# distribution with $k=m-1$ degrees of freedom. Its mean reciprocal is
# $\int_0^\infty t^{-1}\frac{t^{k/2-1}e^{-t/2}}{2^{k/2}\Gamma(k/2)}dt=\frac{2^{k/2-1}\Gamma(k/2-1)}{2^{k/2}\Gamma(k/2)}=\frac1{k-2}$, thus
#
# $$
# \mathbb E\frac1{\sigma^2}=\frac1{\tau^2}\cdot\frac{m}{m-3},\qquad\text{and for all }G\text{ groups together}\quad
# \mathbb E\|g\|^2=\frac{n_{out}}{2\,v\|x\|^2}\cdot\frac{m-2}{m-3}.
# $$ (gn-step-variance)
#
# Small groups underestimate their variance now and then, and dividing by too little costs more than dividing by too much saves. At $m=3$ the mean is
# infinite. At $m=4$ and $5$ it is finite, but its variance is not, so a simulation never settles properly: we judge simulations from $m=6$.
#
# **Step 3: back through $W$.** $\partial L/\partial x=W^\top g$, but $g$ depends on $W$. Split $W$ into its part along $x$ and the rest, $W=\frac{y\,x^\top}{\|x\|^2}+W_\perp$. For a Gaussian the two
# are independent, so $W_\perp$ is independent of $y$, and of $g$. The first part contributes $x\,(y^\top g)/\|x\|^2=0$: in each group $y=\mu\mathbf 1+\sigma\hat y$, and $P$
# removed both. What is left, $W_\perp^\top g$, is at right angles to $x$ and has $n_{in}-1$ free directions of variance $v\|g\|^2$ each:
#
# $$
# \frac{\partial L}{\partial x}\perp x,\qquad \mathbb E\Bigl\|\frac{\partial L}{\partial x}\Bigr\|^2=(n_{in}-1)\,v\;\mathbb E\|g\|^2 .
# $$ (gn-step-weights)
#
# Divide by $n_{in}$ elements. The scale $v$ of the weights cancels:
#
# $$
# \boxed{\;q(G)=\frac{n_{in}-1}{n_{in}}\cdot\frac{n_{out}}{n_{in}}\cdot\frac1{2s}\cdot\frac{m-2}{m-3}\;}\qquad m=\frac{n_{out}}G .
# $$ (gn-gain)
#
# No width was assumed large. If $\|x\|^2$ varies from example to example, $1/(n_{in}s)$ stands for its mean reciprocal $\mathbb E[1/\|x\|^2]$, which is larger: by 14 % for a Gaussian $x$
# with $n_{in}=16$, by less than 1 % from 64 features on after a ReLU.
#
# The check simulates {eq}`gn-gain` and allows **four Monte-Carlo standard errors**. With independent draws and a nearly normal mean one comparison exceeds that about once in 16,000
# times. The error reported is the largest deviation in units of the standard error.


# %%
def unit_gradients(x, sizes, groups):
    """Squared gradient per element at the input of each unit of a stack, for a Gaussian gradient at its end; one row a draw."""
    inputs = [x.requires_grad_()]
    for size in sizes:
        weights = normal(len(x), size, x.shape[1])
        x = F.group_norm((weights @ x[:, :, None])[:, :, 0], groups, eps=0.0).relu()
        inputs.append(x)
    return torch.stack(
        [g.square().mean(1) for g in torch.autograd.grad(x, inputs[:-1], normal(*x.shape))],
        1,
    )


def mean_and_error(values):
    """Mean over draws and its standard error."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))


generator.manual_seed(2)
rows = []
for n_in, n_out, groups in [
    (16, 16, 1),
    (16, 16, 2),
    (16, 8, 1),
    (8, 24, 3),
    (32, 24, 3),
    (2, 12, 1),
]:
    x = normal(draws, n_in)
    x = x * math.sqrt(n_in / 2) / x.norm(dim=1, keepdim=True)  # A3 with s = 1/2
    mean, error = mean_and_error(unit_gradients(x, [n_out], groups)[:, 0])
    rows.append(
        (
            n_in,
            n_out,
            groups,
            n_out // groups,
            group_norm_gain(n_in, n_out, groups),
            float(mean),
            float(error),
        )
    )
simulated = pd.DataFrame(
    rows,
    columns=[
        "inputs",
        "outputs",
        "groups",
        "group size",
        "formula",
        "simulated",
        "standard error",
    ],
)
simulated["deviation"] = (simulated["simulated"] - simulated["formula"]) / simulated[
    "standard error"
]
lab.show_table(
    simulated,
    caption=f"The gain of a unit, {draws:,} draws of input, weights and gradient; deviation in standard errors",
    formats={
        "formula": "{:.4f}",
        "simulated": "{:.4f}",
        "standard error": "{:.4f}",
        "deviation": "{:+.1f}",
    },
)
ledger.check(
    "gain",
    "The gain of a unit in closed form agrees with simulation in six shapes (error in Monte-Carlo standard errors).",
    error=simulated["deviation"].abs().max(),
    tolerance=4.0,
    cases=6 * draws,
)

gaps = []
for _ in range(cases):
    x, weights, upstream = normal(4, 12), normal(18, 12), normal(4, 18)
    gradient = backward(
        lambda x, weights=weights: F.group_norm(x @ weights.T, 3, eps=0.0).relu(),
        x,
        upstream,
    )
    gaps.append(
        float(((gradient * x).sum(1).abs() / (gradient.norm(dim=1) * x.norm(dim=1))).max())
    )
ledger.check(
    "orthogonal",
    "The gradient at a unit's input is at right angles to the input (cosine zero), for any weights.",
    error=max(gaps),
    tolerance=1e-9,
    cases=4 * cases,
)

# %% [markdown]
# ### Many units
#
# Do gains multiply through a stack of $L$ units of equal width $n$? Not exactly. The gradient that leaves a unit is at right angles to its input, so it does not arrive at
# the unit below with independent entries, as A2 wants: given $x=\max(\hat y,0)$ there, it is spread evenly over the $n-1$ directions
# at right angles to $x$. Step 1 becomes, with that covariance $I-xx^\top/\|x\|^2$ in place of $I$ and $Dx=x$,
#
# $$
# T=\operatorname{tr}\Bigl(PD\bigl(I-\tfrac{xx^\top}{\|x\|^2}\bigr)DP\Bigr)
# =\sum_i[\hat y_i>0]\Bigl(1-\frac{1+\hat y_i^2}m\Bigr)-\frac{\sum_g\|P_gx_g\|^2}{\|x\|^2},
# $$ (gn-depth-trace)
#
# where $g$ runs over groups. The $\frac{n-1}n$ of one unit cancels against the $n-1$ directions of the next, $T$ belongs with the
# $1/\|x\|^2$ of Step 2 of the unit above (both are functions of the same $\hat y$), and so, without approximation,
#
# $$
# q_L=q\,\lambda^{L-1},\qquad \lambda=\frac m{m-3}\;\mathbb E\frac{T}{\|x\|^2}\;\approx\;\frac{m-2}{m-3}.
# $$ (gn-depth)
#
# The approximation has an error of order $1/n$: for large $n$, $T\approx n\frac{m-2}{2m}$ and $\|x\|^2\approx\frac n2$. The rule of thumb for depth is therefore
# $\bigl(\frac{m-2}{m-3}\bigr)^L$, not the $L$-th power of {eq}`gn-gain`, which has a factor $\frac{n-1}n$ too many for every unit.


# %%
def depth_factors(n, groups):
    """Draws of T/|x|^2 times m/(m-3), and of the first unit's gain at inputs x = ReLU(GN(.))."""
    size = n // groups
    normed = F.group_norm(normal(draws, n), groups, eps=0.0)
    x = normed.relu()
    squares, parts = x.square().sum(1), x.view(draws, groups, size)
    trace = ((normed > 0) * (1 - (1 + normed.square()) / size)).sum(1)
    removed = (parts.sum(2).square() + parts.square().sum(2).square()).sum(
        1
    ) / size  # what P takes from |x|^2
    trace = trace - (squares - removed) / squares
    return size / (size - 3) * trace / squares, (n - 1) / n * (size - 2) / (
        size - 3
    ) * n / 2 / squares


generator.manual_seed(3)
rows, depth = [], 6
stack_draws = max(
    1000, draws // 10
)  # fewer do not see enough of the tail for a standard error to mean much
for n, groups in [(64, 1), (64, 8)]:
    stack = unit_gradients(
        F.group_norm(normal(stack_draws, n), groups, eps=0.0).relu(), [n] * depth, groups
    ).flip(1)
    growth, first = (mean_and_error(values) for values in depth_factors(n, groups))
    for units, (mean, error, typical) in enumerate(
        zip(*mean_and_error(stack), stack.log().mean(0).exp(), strict=True), start=1
    ):
        theory = first[0] * growth[0] ** (units - 1)
        # The prediction is a mean over draws as well: its relative errors add up over the units.
        relative = math.hypot(first[1] / first[0], (units - 1) * growth[1] / growth[0])
        rows.append(
            {
                "groups": groups,
                "group size": n // groups,
                "units": units,
                "mean": float(mean),
                "error": float(error),
                "typical": float(typical),
                "exact": float(theory),
                "deviation": float((mean - theory) / math.hypot(error, theory * relative)),
                "power": group_norm_gain(n, n, groups) ** units,
            }
        )
stacks = pd.DataFrame(rows)
ledger.check(
    "depth",
    "Gain through 1 to 6 units of width 64 in 1 and 8 groups: the law q λ^(L-1) agrees with simulation (error in Monte-Carlo standard errors).",
    error=stacks["deviation"].abs().max(),
    tolerance=4.0,
    cases=2 * stack_draws,
)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), sharey=True)
for index, (size, rows) in enumerate(stacks.groupby("group size", sort=False)):
    style = dict(color=f"C{index}", marker="oD"[index])
    name = f"$m={size}$" + (" (one group)" if index == 0 else "")
    left.errorbar(
        rows["units"],
        rows["mean"],
        yerr=2 * rows["error"],
        linestyle="none",
        capsize=3,
        label=name,
        **style,
    )
    left.plot(rows["units"], rows["exact"], color=f"C{index}")
    left.plot(rows["units"], rows["power"], color=f"C{index}", linestyle=":")
    right.plot(rows["units"], rows["typical"], linestyle="--", label=name, **style)
left.plot([], [], color="0.3", label="$q\\,\\lambda^{L-1}$")
left.plot([], [], color="0.3", linestyle=":", label="$q^L$")
left.set(
    title="Mean over draws",
    xlabel="units passed, $L$",
    ylabel="gain of the squared gradient",
    yscale="log",
)
right.set(title="Typical draw (geometric mean)", xlabel="units passed, $L$", ylabel=" ")
for panel in (left, right):
    panel.axhline(1, color="0.5", linewidth=1)
    panel.set_yticks(ticks := [0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
left.legend()
lab.show(
    figure,
    caption="Gain through a stack of units of width 64. Left: simulated means (marks, two standard errors), the exact law (lines) and the power of "
    "a single gain (dotted), which falls short. Right: the geometric mean of the same draws.",
    alt="Two panels on a logarithmic axis against the number of units. On the left the mean gain grows exponentially with depth, faster for smaller groups, and the marks lie on "
    f"the lines of the exact law; groups of 8 reach {stacks['mean'].iloc[-1]:.1f} after {depth} units. On the right the geometric mean of the same draws is lower; with one group it falls with depth.",
)
rows = []
for n, groups in [(64, 1), (64, 8), (256, 1), (256, 32)]:
    size = n // groups
    rows.append(
        (
            n,
            groups,
            size,
            float(depth_factors(n, groups)[0].mean()),
            (size - 2) / (size - 3),
            group_norm_gain(n, n, groups),
        )
    )
lab.show_table(
    pd.DataFrame(
        rows,
        columns=[
            "width",
            "groups",
            "group size m",
            "exact growth λ",
            "(m-2)/(m-3)",
            "q of one unit",
        ],
    ),
    caption="Growth of the mean squared gradient for each further unit",
    formats={name: "{:.4f}" for name in ["exact growth λ", "(m-2)/(m-3)", "q of one unit"]},
)

# %% [markdown]
# The right panel is a warning. A mean of a ratio is dominated by rare large values; with one group the *typical* gradient shrinks while the mean grows.
# Formula {eq}`gn-gain` speaks of the mean.
#
# ### The number of groups that keeps the scale
#
# Set $q=1$ in {eq}`gn-gain` and solve. With $\rho=2s\,\frac{n_{in}}{n_{out}}\cdot\frac{n_{in}}{n_{in}-1}$ the equation reads $\frac{m-2}{m-3}=\rho$, hence $m=\frac{3\rho-2}{\rho-1}$, and with $G=n_{out}/m$
#
# $$
# G^*=n_{out}\,\frac{\rho-1}{3\rho-2}\quad\text{for }\rho>1;\qquad\text{for }\rho\le1\text{ no root: }q>1\text{ for every }G .
# $$ (gn-root)
#
# Three limits, for wide layers after a ReLU ($s=\frac12$): halving the width, $\rho\to2$, gives $G^*\to n_{out}/4$; contracting without bound gives
# $G^*\to n_{out}/3$; equal widths, $\rho=\frac{n}{n-1}$, give $G^*=\frac n{n+2}$, just below one group. A whole number that divides $n_{out}$ is needed, so the rule is
#
# $$
# G=\operatorname*{arg\,min}_{G\,\mid\,n_{out},\;n_{out}/G\,\ge\,4}\bigl|\log q(G)\bigr| .
# $$ (gn-rule)
#
# Since the root lies above $m=3$, and $\frac{m-2}{m-3}\le2$ for whole $m\ge4$, groups can double the gain and no more. The rule meets that limit, $m=4$, in every
# layer that halves the width or contracts more, and answers one group wherever the width stays or grows.


# %%
def continuous_gain(n_in, n_out, groups, s):
    size = n_out / groups
    return (n_in - 1) / n_in * n_out / n_in / (2 * s) * (size - 2) / (size - 3)


roots, rules = [], []
for _ in range(cases):
    n_in, n_out, s = (
        uniform_integer(2, 2000),
        uniform_integer(4, 400),
        0.25 + float(torch.rand((), generator=generator)),
    )
    root = ideal_number_of_groups(n_in, n_out, second_moment=s)
    if root:
        roots.append(abs(continuous_gain(n_in, n_out, root, s) - 1))
    else:  # no root: the gain is above 1 in the limit of ever fewer groups, where it is least
        roots.append(max(0.0, 1 - (n_in - 1) * n_out / n_in**2 / (2 * s)))
    distances = {
        g: abs(math.log(continuous_gain(n_in, n_out, g, s)))
        for g in range(1, n_out // 4 + 1)
        if n_out % g == 0
    }
    rules.append(
        distances[isometric_group_number(n_in, n_out, second_moment=s)]
        - min(distances.values())
    )
ledger.check(
    "root",
    "The gain at the real number of groups G* is 1, and where there is none it exceeds 1.",
    error=max(roots),
    tolerance=1e-9,
    cases=cases,
)
ledger.check(
    "rule",
    "No admissible divisor has a gain nearer to 1 than the rule's choice: all are tried.",
    error=max(rules),
    tolerance=1e-12,
    cases=cases,
)

wide = 10**6
limits = [
    ideal_number_of_groups(2 * wide, wide) / wide - 1 / 4,
    ideal_number_of_groups(10**6 * wide, wide) / wide - 1 / 3,
    ideal_number_of_groups(wide, wide) - wide / (wide + 2),
]
ledger.check(
    "root-limits",
    "A million features: a quarter of the width as many groups when halving it, a third when contracting without bound, n/(n+2) at equal widths.",
    error=max(map(abs, limits)),
    tolerance=1e-5,
    cases=3,
)
shapes = [(256, 256), (128, 256), (256, 192), (256, 128), (256, 64), (512, 256), (512, 128)]
lab.show_table(
    pd.DataFrame(
        [
            (
                a,
                b,
                ideal_number_of_groups(a, b),
                g := isometric_group_number(a, b),
                b // g,
                group_norm_gain(a, b, g),
            )
            for a, b in shapes
        ],
        columns=["inputs", "outputs", "root G*", "rule G", "group size", "gain q"],
    ),
    caption="Isometric group selection for layers after a ReLU (root 0: there is none)",
    formats={"root G*": "{:.2f}", "gain q": "{:.3f}"},
)

# %% [markdown]
# ### Convolutions
#
# On pictures a group has $m$ channels of $P$ pixels. With $mP$ numbers the variance hardly fluctuates, and the factor $\frac{m-2}{m-3}$ is 1. Something else then depends on $G$.
# Assume weights as in A1 with $v=C_{in}k^2\operatorname{Var}w$ for a $k\times k$ kernel, inputs independent from pixel to pixel with mean square $s$ of which a
# share $r$ is the square of their mean ($s=\frac12$, $r=\frac1\pi$ for the ReLU of a Gaussian), and many pixels. The mean of output channel $c$ over the picture, $\mu_c$, is
# Gaussian with variance $vrs$ over the draw of the weights; within the channel the variance is $vs(1-r)$. A group loses the mean of its $m$ channel means, and keeps
#
# $$
# \mathbb E\sigma^2=\underbrace{vs(1-r)}_{\text{within channels}}+\underbrace{vrs\,\tfrac{m-1}m}_{\text{between channels}}=vs\Bigl(1-\frac rm\Bigr).
# $$ (gn-conv-variance)
#
# The more groups, the more of the means is removed, the smaller $\sigma$, the larger the gradient. ReLU takes half; each input pixel receives $k^2C_{out}/\varrho$ terms,
# where $\varrho$ is the number of input pixels for each output pixel (4 for stride 2):
#
# $$
# q_{conv}(G)\approx\frac{C_{out}}{C_{in}}\cdot\frac1{2s\varrho}\cdot\frac1{1-r/m} .
# $$ (gn-conv)
#
# For one channel a group this is exact as $P\to\infty$, with the factor $\frac1{1-1/\pi}=\frac\pi{\pi-1}\approx1.467$. For $m>1$ we replaced $\mathbb E[1/\sigma^2]$ by
# $1/\mathbb E\sigma^2$, which is smaller: the table shows by how much.

# %%
generator.manual_seed(4)
pictures, pixels, width = max(60, draws // 100), 1024, 16
rows = []
for groups in (1, 4, 8, 16):
    x = normal(pictures, width, pixels).relu().requires_grad_()
    output = F.group_norm(normal(pictures, width, width) @ x, groups, eps=0.0).relu()
    (gradient,) = torch.autograd.grad(output, x, normal(*x.shape))
    mean, error = (float(value) for value in mean_and_error(gradient.square().mean((1, 2))))
    formula = conv_group_norm_gain(width, width, groups)
    rows.append((groups, width // groups, formula, mean, error, 100 * (mean / formula - 1)))
convolutions = pd.DataFrame(
    rows,
    columns=[
        "groups",
        "group size",
        "formula",
        "simulated",
        "standard error",
        "above the formula, %",
    ],
)
lab.show_table(
    convolutions,
    caption=f"1x1 convolution, 16 to 16 channels, {pixels} independent pixels, {pictures} draws",
    formats={
        "formula": "{:.4f}",
        "simulated": "{:.4f}",
        "standard error": "{:.4f}",
        "above the formula, %": "{:+.1f}",
    },
)
last = convolutions.iloc[-1]
ledger.check(
    "instance",
    "One channel a group, 1,024 pixels: the gain is π/(π-1), by simulation (error in Monte-Carlo standard errors).",
    error=abs(last["simulated"] - math.pi / (math.pi - 1)) / last["standard error"],
    tolerance=4.0,
    cases=pictures,
)

# %% [markdown]
# ## The method
#
# The library's own source: the gain {eq}`gn-gain`, the rule {eq}`gn-rule`, and the gain by measurement. The gain model is an argument of the rule, so another
# formula, the paper's own for instance, can take its place.

# %% tags=["hide-input"]
lab.show_source(group_norm_gain, isometric_group_number, measured_gain)

# %% [markdown]
# `set_group_numbers(model, inputs)` applies the rule to every GroupNorm of a model. It runs the model once to see which layer feeds which GroupNorm, and
# measures $s$ (and, for convolutions, $r$ and $\varrho$) there rather than assuming it.
#
# ## The experiment
#
# Pictures are centred by the mean training picture and divided by the standard deviation over all its pixels, so $s\approx1$ at the first layer. The networks are
# built of units (linear or convolution, GN, ReLU) with PyTorch's usual initialisation: uniform weights, small biases, $\epsilon=10^{-5}$. None of A1 to A4 holds to the letter.
#
# The rule competes with constant choices: the same number of groups in all layers, or 16 features a group. Groups of fewer than four
# features have a gain of zero or infinity on average, so where a layer is too narrow, a constant choice takes the largest divisor that leaves four (for pictures,
# where no such need exists, the same numbers are used).

# %%
splits = {
    name: lab.load(dataset, split=name, full=full_data)
    for name in ("train", "validation", "test")
}
centre = splits["train"].inputs.mean(0)
scale = (splits["train"].inputs - centre).std()
inputs = {name: (split.inputs - centre) / scale for name, split in splits.items()}
targets = {name: split.targets for name, split in splits.items()}
classes, picture = len(splits["train"].classes), inputs["train"][0]
sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
print(
    f"{splits['train'].name}: {sizes} pictures, {tuple(picture.shape)}, {splits['train'].licence}"
)


class Unit(nn.Sequential):
    """Linear map or convolution, normalisation, ReLU."""

    def __init__(self, before, after, norm, *, kernel=0, stride=1):
        layer = (
            nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)
            if kernel
            else nn.Linear(before, after)
        )
        super().__init__(layer, norm(after), nn.ReLU())


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def multilayer(widths):
    def build(batch_norm=False):
        norm = nn.BatchNorm1d if batch_norm else partial(nn.GroupNorm, 1)
        units = [
            Unit(before, after, norm)
            for before, after in zip([picture.numel(), *widths], widths, strict=False)
        ]
        return nn.Sequential(nn.Flatten(), *units, nn.Linear(widths[-1], classes))

    return build


def bottleneck(batch_norm=False):
    """Stages of: convolution (all but the first halve the picture), then 1x1 reduce, 3x3, 1x1 expand, added to its input."""
    norm, layers, before = (
        nn.BatchNorm2d if batch_norm else partial(nn.GroupNorm, 1),
        [],
        len(picture),
    )
    for stage, width in enumerate(channels):
        layers.append(Unit(before, width, norm, kernel=3, stride=1 + (stage > 0)))
        narrow = width // 4
        layers.append(
            Residual(
                Unit(width, narrow, norm, kernel=1),
                Unit(narrow, narrow, norm, kernel=3),
                Unit(narrow, width, norm, kernel=1),
            )
        )
        before = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)
    )


# The network, and which of its units the first figure looks at.
catalogue = {
    "contracting": (multilayer(contracting), 1),
    "constant": (multilayer(constant), 1),
    "hourglass": (multilayer(hourglass), -1),
    "bottleneck": (bottleneck, 1),
}


def at_most(groups, width):
    """The largest divisor of the width that is at most `groups` and leaves four features a group."""
    return max(d for d in range(1, max(1, min(groups, width // 4)) + 1) if width % d == 0)


constants = {
    f"{g} group{'s' if g > 1 else ' (LN)'}": partial(
        lambda g, before, after, **facts: at_most(g, after), g
    )
    for g in sorted(group_numbers)
}
constants["16 a group"] = lambda before, after, **facts: at_most(max(1, after // 16), after)
rules = constants | {"isometric": isometric_group_number}


def new_network(architecture, seed, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return catalogue[architecture][0](**options)


sample, sample_targets = inputs["train"][:64], targets["train"][:64]
# One choice a method and architecture, the same for all seeds: a stack of runs needs one structure.
chosen_groups = {
    (architecture, method): set_group_numbers(
        new_network(architecture, 0), sample, rule=rule
    )
    for architecture in dict.fromkeys([*architectures, trained])
    for method, rule in rules.items()
}
lab.show_table(
    pd.DataFrame(
        [
            (a, m, ", ".join(map(str, numbers.values())))
            for (a, m), numbers in chosen_groups.items()
        ],
        columns=["network", "method", "groups, layer by layer"],
    ),
    caption="Groups chosen for every network",
)

# %% [markdown]
# ### What is claimed
#
# The criteria are fixed here, before anything is measured on the data. "Gain" is {eq}`gn-gain-definition`, measured in freshly initialised networks at the activations that the pictures
# cause. For C1 Gaussian gradients are injected; C2 uses the gradient of the training loss itself, which is neither independent nor Gaussian. With {eq}`gn-gain` for the gain the rule would win C2 by
# construction; only measured gains can contradict it.

# %%
c1 = ledger.claim(
    "c1",
    "The number of groups changes the scale of the gradient: more groups, more gain.",
    metric="measured gain at the most groups that leave six values each, less the gain of one group, in % of the latter's formula, in one unit of each network",
    direction="greater",
    margin=5.0,
    unit="%",
)
c1_formula = ledger.claim(
    "c1-formula",
    "The gain follows the closed form.",
    metric="measured gain over formula, less 1, for every number of groups that leaves at least six values each, in one unit of each network",
    direction="within",
    margin=10.0,
    unit="%",
)
c2 = ledger.claim(
    "c2",
    "Selecting groups layer by layer keeps the gradient's scale at least as well as any constant choice.",
    metric="mean |log q| over a network's units, of the loss's gradient at initialisation, isometric less each constant choice, in each network",
    direction="less",
    margin=0.05,
    unit="nats",
)
c3 = ledger.claim(
    "c3",
    "Trained with the rule, a network is no less accurate than with the usual constant choices.",
    metric=f"test accuracy of the {trained} network, isometric less each default, each at its best learning rate",
    direction="greater",
    margin=-1.0,
    unit="points",
)
c4 = ledger.claim(
    "c4",
    "Layer by layer without a sweep is no less accurate than the best single number of groups found by one.",
    metric=f"test accuracy of the {trained} network, isometric less the swept number of groups that is best on validation pictures",
    direction="greater",
    margin=-1.0,
    unit="points",
)
ledger.criteria()

# %% [markdown]
# ### Measuring gains


# %%
def units_seen(model, inputs, targets):
    """Every unit with its input and the gradient of the loss at its output."""
    seen = []
    hooks = [
        unit.register_forward_hook(
            lambda unit, args, output: seen.append((unit, args[0].detach(), output))
        )
        for unit in model.modules()
        if isinstance(unit, Unit)
    ]
    loss = F.cross_entropy(model(inputs), targets)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
    return [
        (unit, x, gradient) for (unit, x, _), gradient in zip(seen, gradients, strict=True)
    ]


def gain_of(unit, x, upstream):
    """Gain of a unit for the gradient that did arrive there."""
    return float(backward(unit, x, upstream).square().mean() / upstream.square().mean())


def apply_groups(model, numbers):
    for name, number in numbers.items():
        model.get_submodule(name).num_groups = number


def spread(model):
    """Mean |log q| over the units."""
    return float(
        np.mean(
            [
                abs(math.log(gain_of(*seen)))
                for seen in units_seen(model, sample, sample_targets)
            ]
        )
    )


def gain_models(model):
    """The gain in closed form that the rule is offered for each unit, with what was measured there; sets one group everywhere."""
    models = []

    def note(before, after, *, second_moment, gain, min_group_size):
        models.append(partial(gain, before, after, second_moment=second_moment))
        return 1

    set_group_numbers(model, sample, rule=note)
    return models


by_groups, by_method = [], []
injected = torch.Generator().manual_seed(0)
for architecture in architectures:
    _, position = catalogue[architecture]
    for seed in range(networks):
        model = new_network(architecture, seed)
        formula = gain_models(model)[position]
        unit, x, upstream = units_seen(model, sample, sample_targets)[position]
        width, values = upstream.shape[1], upstream[0].numel()
        for groups in (g for g in range(1, width + 1) if width % g == 0):
            unit[1].num_groups = groups
            by_groups.append(
                {
                    "network": architecture,
                    "seed": seed,
                    "widths": f"{x.shape[1]} to {width}",
                    "groups": groups,
                    "size": values // groups,
                    "gain": float(measured_gain(unit, x, generator=injected)),
                    "formula": formula(num_groups=groups),
                }
            )
        for method in rules:
            apply_groups(model, chosen_groups[architecture, method])
            by_method.append(
                {
                    "network": architecture,
                    "seed": seed,
                    "method": method,
                    "spread": spread(model),
                }
            )
by_groups, by_method = pd.DataFrame(by_groups), pd.DataFrame(by_method)

# %% [markdown]
# ### Training
#
# Plain SGD, no momentum; the same seeds, order of pictures and grid of learning rates for every method. All seeds and learning rates of a method are trained in one
# stack. BatchNorm stands in for what most people would have used; it is in no claim.


# %%
def loss(model, batch, run):
    return F.cross_entropy(model(batch["inputs"]), batch["targets"])


fits, results = {}, []
for method in [*rules, "BatchNorm"]:

    def build(run, method=method):
        if method == "BatchNorm":
            return catalogue[trained][0](batch_norm=True)
        model = catalogue[trained][0]()
        apply_groups(model, chosen_groups[trained, method])
        return model

    fitted = lab.fit(
        build,
        loss,
        {"inputs": inputs["train"], "targets": targets["train"]},
        lab.grid(seed=range(seeds), learning_rate=learning_rates),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=torch.optim.SGD,
        device=device,
        progress=method,
    )
    scores = {
        f"{name} accuracy": 100
        * lab.accuracy(fitted.predict(inputs[name]), targets[name]).numpy()
        for name in ("validation", "test")
    }
    results.append(fitted.runs.assign(method=method, run=range(len(fitted.runs)), **scores))
    fits[method] = fitted
results = pd.concat(results, ignore_index=True)
lab.record(results)
lab.record(by_groups, "gain by groups")
lab.record(by_method, "distance from isometry")
chosen = lab.best_setting(results, "validation accuracy", over=["learning_rate"])

# %% [markdown]
# ## Results
#
# ### Gain against the number of groups

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, len(architectures), figsize=(7, 3.6), sharey=True)
for index, (panel, (architecture, rows)) in enumerate(
    zip(np.atleast_1d(panels), by_groups.groupby("network", sort=False), strict=True)
):
    alive = rows[(rows["size"] >= 4) & (rows["gain"] > 0)]
    means = (
        alive.groupby("groups")
        .agg(size=("size", "first"), formula=("formula", "mean"))
        .reset_index()
    )
    finite = np.isfinite(means["formula"])
    panel.plot(
        means.loc[finite, "groups"],
        means.loc[finite, "formula"],
        color="0.3",
        label="formula",
    )
    for groups, values in alive.groupby("groups")["gain"]:
        interval, valid = (
            lab.mean_interval(values),
            alive.loc[alive["groups"] == groups, "size"].iloc[0] >= 6,
        )
        error = (
            [[interval.effect - interval.low], [interval.high - interval.effect]]
            if valid and interval.n > 1
            else None
        )
        panel.errorbar(
            groups,
            interval.effect,
            yerr=error,
            color="C0",
            marker="o",
            linestyle="none",
            capsize=3,
            markerfacecolor="C0" if valid else "white",
            label="measured"
            if groups == 1
            else "measured, no valid interval"
            if not valid
            else None,
        )
    panel.axhline(1, color="0.5", linewidth=1, linestyle=":")
    panel.set(
        title=f"{architecture}\n{rows['widths'].iloc[0]}",
        xlabel="groups $G$",
        ylabel="gain $q$" if index == 0 else " ",
        xscale="log",
        yscale="log",
    )
    panel.set_xticks(ticks := sorted(means["groups"])[::2], [str(tick) for tick in ticks])
    panel.minorticks_off()
np.atleast_1d(panels)[0].set_yticks(
    ticks := [0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks]
)
np.atleast_1d(panels)[0].legend(loc="upper left", fontsize=8)
lab.show(
    figure,
    caption=f"Gain of one unit of each network against its number of groups, Gaussian gradients at activations of {dataset}; mean and 95 % interval over {networks} "
    "initialisations. Groups of four (hollow) have no valid interval, and their mean tends to come out low; groups of one and two are left out (see above).",
    alt="One panel a network, both axes logarithmic. In each the measured gain follows the line of the formula, which starts near the ratio of output to input width, is flat for few groups, "
    "and rises towards small groups.",
)
pairs = by_groups[by_groups["size"] == 2]
if len(pairs):
    print(
        f"groups of two: measured gain {pairs['gain'].mean():.0f} on average, {pairs['gain'].median():.0f} in the median network, because of epsilon; 0 without it"
    )

# %% [markdown]
# ### How far from isometric

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.6))
markers = ["o", "s", "D", "^"][: len(architectures)]
sns.pointplot(
    by_method,
    x="method",
    y="spread",
    hue="network",
    order=list(rules),
    hue_order=architectures,
    markers=markers,
    linestyles="none",
    dodge=0.4,
    errorbar=("ci", 95),
    seed=0,
    capsize=0.06,
    err_kws={"linewidth": 1.5},
    ax=axes,
)
axes.set(
    title="Distance from isometry at initialisation",
    xlabel="choice of groups",
    ylabel="mean |log q| over units (nats)",
    ylim=(0, None),
)
axes.legend(title="network", loc="upper left", bbox_to_anchor=(1, 1))
mean_spread = by_method.groupby(["network", "method"])["spread"].mean()
lab.show(
    figure,
    caption=f"Mean |log q| over the units of a network, of the loss's own gradient; mean and 95 % bootstrap interval over {networks} initialisations. Zero is isometric. "
    "In the constant network the rule chooses one group in most layers and all but coincides with LN.",
    alt="Points with error bars for each choice of groups and network. "
    + " ".join(
        f"In the {a} network the rule is at {mean_spread[a, 'isometric']:.2f}, constant choices between "
        f"{min(mean_spread[a, m] for m in constants):.2f} and {max(mean_spread[a, m] for m in constants):.2f}."
        for a in architectures
    ),
)

# %% [markdown]
# ### Accuracy

# %% tags=["hide-input"]
order = [*rules, "BatchNorm"]
figure, axes = plt.subplots(figsize=(7, 3.6))
for index, method in enumerate(order):
    values = chosen.loc[chosen["method"] == method, "test accuracy"]
    interval = lab.mean_interval(values)
    style = (
        dict(color="C1", marker="D")
        if method == "isometric"
        else dict(color="C7", marker="s")
        if method == "BatchNorm"
        else dict(color="C0", marker="o")
    )
    error = (
        [[interval.effect - interval.low], [interval.high - interval.effect]]
        if interval.n > 1
        else None
    )
    axes.plot(
        values,
        [index + 0.22] * len(values),
        linestyle="none",
        marker="|",
        color=style["color"],
        alpha=0.8,
    )
    axes.errorbar(interval.effect, index, xerr=error, capsize=3, **style)
axes.set_yticks(range(len(order)), order)
axes.invert_yaxis()
axes.set_xlim(right=min(100, axes.get_xlim()[1]))
axes.set(
    title=f"Test accuracy, {trained} network",
    xlabel="accuracy on test pictures (%)",
    ylabel="choice of groups",
)
means = chosen.groupby("method", sort=False)["test accuracy"].mean()
lab.show(
    figure,
    caption=f"Test accuracy at each method's best learning rate, mean and 95 % interval over {seeds} seeds (strokes: single seeds).",
    alt="A row for each method with its mean accuracy and interval: "
    + ", ".join(f"{method} {value:.1f}" for method, value in means.items())
    + " percent.",
)

# %% [markdown]
# The last column measures the gains again after training, where $\gamma$ has been learnt and gradients are correlated.

# %% tags=["hide-input"]
rows = []
for method, runs in chosen.groupby("method", sort=False):
    gains_after = (
        np.mean([spread(fits[method].module(run).cpu()) for run in runs["run"]])
        if method in rules
        else np.nan
    )
    rows.append(
        (
            method,
            runs["learning_rate"].iloc[0],
            runs["validation accuracy"].mean(),
            runs["test accuracy"].mean(),
            runs["test accuracy"].std(),
            mean_spread.get((trained, method), np.nan),
            gains_after,
        )
    )
lab.show_table(
    pd.DataFrame(
        rows,
        columns=[
            "method",
            "learning rate",
            "validation, mean %",
            "test, mean %",
            "test, s.d.",
            "|log q| at start",
            "|log q| trained",
        ],
    ),
    caption=f"The {trained} network, {seeds} seeds",
    formats={
        "learning rate": "{:g}",
        "validation, mean %": "{:.2f}",
        "test, mean %": "{:.2f}",
        "test, s.d.": "{:.2f}",
        "|log q| at start": "{:.3f}",
        "|log q| trained": "{:.3f}",
    },
)

# %% [markdown]
# ## Claims, judged

# %%
judged, rising = by_groups[by_groups["size"] >= 6], {}
for architecture, rows in judged.groupby("network", sort=False):
    gains = rows.pivot(index="seed", columns="groups", values="gain")
    rising[architecture] = (
        100
        * (gains[gains.columns.max()] - gains[1])
        / rows.loc[rows["groups"] == 1, "formula"].mean()
    ).to_numpy()
c1.judge(rising)

# %%
c1_formula.judge(
    {
        f"{architecture}, {groups} groups": (
            100 * (rows["gain"] / rows["formula"] - 1)
        ).to_numpy()
        for (architecture, groups), rows in judged.groupby(
            ["network", "groups"], sort=False
        )
    }
)

# %%
c2.judge(
    {
        f"{method}, {architecture}": lab.paired(
            by_method[by_method["network"] == architecture], "spread", "isometric", method
        )
        for architecture in architectures
        for method in constants
    }
)

# %%
defaults = [
    method
    for method in ("1 group (LN)", "8 groups", "32 groups", "16 a group")
    if method in constants
]
print("defaults:", ", ".join(defaults))
c3.judge(
    {
        method: lab.paired(chosen, "test accuracy", "isometric", method)
        for method in defaults
    }
)

# %%
swept = chosen[
    chosen["method"].isin([method for method in constants if method != "16 a group"])
]
best = swept.groupby("method", sort=False)["validation accuracy"].mean().idxmax()
print(f"best of the sweep on validation pictures: {best}")
c4.judge(lab.paired(chosen, "test accuracy", "isometric", best))

# %% [markdown]
# ### Reading the verdicts
#
# An interval that lies below zero but reaches across the margin is inconclusive *about the margin*: worse, by an amount that five seeds do not settle.
#
# **C1.** The gain does rise, and the marks in the first figure follow the line. Two effects move them off it. The biases of PyTorch's linear layers, which the derivation leaves out, act
# like one more input of size 1 and lower the gain by about $1/(n_{in}s)$: 3 % behind 64 features. And one network's gain scatters by some 10 % around the mean, since all
# pictures share its weights, so 30 networks do not settle closeness to within
# 10 % where the layer is narrow. A run with `-p networks=200` did: every comparison then lay within about 5 %.
#
# **C2.** The rule has the smallest distance from isometry, but not by much, because it cannot do much: in a layer that widens no number of groups brings the gain down to 1, in one that contracts to a
# quarter none brings it up. In the contracting network 32 groups, limited to four features a group, differ from the rule in the first layer only.
#
# **C3 and C4.** Closer to isometry is not more accurate here. In the default run the rule is the most isometric choice at the start and the least accurate of all, LN the reverse. With four times as many passes
# LN still led and the rule was still last, by about half a point. We see three likely reasons.
#
# - *Small groups forget.* The projection that shapes the gradient also limits what goes forward: $n$ normalised features have $n-2G$ degrees of freedom. At $m=4$, where the rule
#   goes in every layer that contracts by 2, half of the features' freedom is gone.
# - *Isometry is a property of the start.* The last column of the table: after training no method is isometric any more.
# - *Four layers are few.* A factor of 2 in the squared gradient of each is easily made up by the learning rate, and GN's outputs do not depend on the scale of its weights anyway.

# %% [markdown]
# ## Beside the paper
#
# Reported for the authors' choice of groups, from secondary pages, since we had only the abstract; the figures of their baselines were not available:
#
# | Task and network | Reported | Here |
# |---|---|---|
# | MNIST, multilayer perceptron | 1.67 % error | digits and Fashion-MNIST instead |
# | Caltech-101, ResNet-101 | 22.247 % top-1 error | not run |
# | Oxford-IIIT Pet, ResNet-101 | 77.076 % accuracy | not run |
# | COCO detection, Faster R-CNN | AP 40.7, AP50 61.2, AP75 44.6 | not run |
# | Panoptic segmentation, FPN | PQ 42.147 (things 49.816, stuff 30.572) | not run |
#
# None of this compares with our numbers. The default run has 1,078 training pictures of 8x8 pixels, four hidden layers, five passes and no momentum; theirs are deep residual
# networks on large pictures, where a hundred gains multiply, {eq}`gn-conv` rather than {eq}`gn-gain` describes a layer, and small batches rule BatchNorm out.
#
# What this page cannot conclude: that the paper's choice does not help. Our rule is not its formula. Ours answers one group wherever the width stays or grows, whereas the paper says that its value suits
# all layers; so its formula, or what it counts as the gain, likely differs there. (Had we compared squared norms, or another unit, other numbers would be ideal.) What does hold: the
# gradient of GN, the projection, the gain under A1 to A4, the law for depth, and that groups can double the squared gradient of a linear layer but no more.

# %% [markdown]
# ## Try it
#
# - Train longer, `-p epochs=20`: does the order of the methods stay?
# - Another network, `-p trained=hourglass`, or `-p trained=constant`, in which the rule and LN hardly differ and the difference between two equals can be seen.
# - Convolutions, `-p trained=bottleneck -p 'architectures=[contracting, bottleneck]'`, where a group has many pixels and small groups forget less.
# - Another gain model: `isometric_group_number(256, 128, gain=...)` takes any function of the widths and the number of groups, the paper's own if you have it.
#
# Everything this page found:

# %%
ledger.summary()
