r"""Logit-DP: private gradients of contrastive losses.

William Kong, Andrés Muñoz Medina and Mónica Ribero, Differentially Private Optimization for Non-Decomposable Objective
Functions (2023), ICLR 2025, arXiv:2310.03104.

One pair of a batch enters every term of a contrastive loss, so clipping the gradient of each term leaves a
sensitivity that grows with the batch. Logit-DP clips the gradient of each *similarity* and recombines them with the
derivatives of the loss by the similarities. The constants here are derived, not quoted: the published one is too small.
"""

import functools
import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from lossbook.methods._validate import alike, floating, full_precision, number, one_of, paired, positive, shaped, whole
from lossbook.methods.similarities import cosine_similarity, unit

__all__ = [
    "logit_dp_gradient",
    "logit_dp_influence",
    "logit_dp_loss",
    "logit_dp_sensitivity",
    "logit_dp_weights",
    "pair_gradient_norms",
]

Form = Literal["derived", "published", "code"]
Route = Literal["auto", "linear", "jacobian"]


def logit_dp_sensitivity(
    n: int | None = None, *, clip: float = 1.0, temperature: float = 1.0, form: Form = "derived"
) -> float:
    r"""How far adding or removing one pair can move the sum of clipped gradients: the $C$ to which noise is scaled.

    $$C_n=\frac{2B}{\tau}\,(n-1)E\left[\frac1{1+(n-1)E}+\frac1{E+n-1}\right],\qquad E=e^{2/\tau}$$

    It is attained, so no smaller number will do. It increases with $n$ towards $2B(1+E)/\tau$.

    Args:
        n: pairs in the larger of both batches, at least 1; None for the supremum over all batches, as Poisson sampling
            without an upper limit needs.
        clip: $B>0$, the largest norm of the gradient of a cosine.
        temperature: $\tau>0$.
        form: "derived" is the above. The other two are not this constant, and here to be looked at: "published" is
            $2B\bigl[1+\frac{(n-2)E}{E+n-1}\bigr]/\tau$, the paper's Lemma 4.5 for $\tau=1$, as quoted by its reviewers,
            **too small** from two pairs on; "code" is $nB\bigl[\frac1n+\min(\frac{2E}{n+E-1},2)\bigr]$, that of the
            authors' code, which bounds the mean, times $n$. It lacks the factor $1/\tau$: **too small** at low
            temperatures, larger than needed from $\tau=1.1$ on, and for few pairs sooner.

    Returns:
        The sensitivity; infinite where a supremum is.

    Raises:
        ValueError: for numbers out of range or an unknown form.

    Source:
        Theorem 4.2 with constants of our own derivation; "published": Lemma 4.5; "code": google-research/logit_dp.

    Examples:
        >>> round(logit_dp_sensitivity(64), 3), round(logit_dp_sensitivity(), 3)
        (15.223, 16.778)
    """
    clip = positive("clip", clip)
    temperature = positive("temperature", temperature)
    one_of("form", form, "derived", "published", "code")
    if n is not None:
        n = whole("n", n)
    # Divided by E, so that small temperatures do not overflow.
    inverse = math.exp(-2 / temperature)
    others = math.inf if n is None else float(n - 1)

    def column(others: float, rows: float) -> float:
        """The number of rows times E / (E + others)."""
        if math.isinf(others):
            return 1 / inverse if inverse else math.inf
        return rows / (1 + others * inverse)

    if form == "derived":
        own = 1 / (1 + inverse / others) if others else 0.0
        return 2 * clip / temperature * (own + column(others, others))
    if form == "published":
        return 2 * clip / temperature * (1 + column(others, max(0.0, others - 1)))
    return clip * (1 + min(2 * column(others, others + 1), 2 * (others + 1)))


def logit_dp_influence(
    cosines: Float[Tensor, "n n"],
    *,
    clip: float | Float[Tensor, ""] = 1.0,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, " n"]:
    r"""The most that removing each pair can move the sum of clipped gradients, at these cosines.

    $$\Delta_k\le\frac{2B}{\tau}\Bigl[1-p_{kk}+\sum_{i\ne k}p_{ik}\Bigr],\qquad
      p_{ij}=\frac{e^{c_{ij}/\tau}}{\sum_le^{c_{il}/\tau}}$$

    It depends on the data, so noise must not be scaled to it; `logit_dp_sensitivity` is its maximum.

    Args:
        cosines: $c_{ij}$, positives on the diagonal.
        clip: $B>0$.
        temperature: $\tau>0$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        our derivation.

    Examples:
        >>> logit_dp_influence(torch.eye(3)).round(decimals=3)
        tensor([1.6960, 1.6960, 1.6960])
        >>> bool((logit_dp_influence(torch.eye(3)) <= logit_dp_sensitivity(3)).all())
        True
    """
    clip = positive("clip", clip)
    temperature = positive("temperature", temperature)
    shares = torch.softmax(shaped("cosines", cosines, "n n") / temperature, 1)
    own = shares.diagonal()
    return 2 * clip / temperature * (1 - 2 * own + shares.sum(0))


def logit_dp_weights(
    similarities: Float[Tensor, "n n"],
    norms: Float[Tensor, "n n"] | None = None,
    *,
    clip: float | Float[Tensor, ""] = 1.0,
    temperature: float | Float[Tensor, ""] = 1.0,
    members: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, "n n"]:
    r"""What each similarity's gradient is multiplied by in the clipped sum.

    $$\omega_{ij}=\frac{p_{ij}-\delta_{ij}}\tau\,\min\Bigl(1,\frac B{\lVert\nabla_wZ_{ij}\rVert}\Bigr),\qquad
      p_{ij}=\frac{e^{Z_{ij}/\tau}}{\sum_le^{Z_{il}/\tau}}$$

    The softmax is of the similarities themselves; only their gradients are clipped.

    Args:
        similarities: $Z_{ij}$ of query $i$ and key $j$, positives on the diagonal.
        norms: $\lVert\nabla_wZ_{ij}\rVert$, from `pair_gradient_norms`; None to clip nothing. They count as four
            spacings of their dtype longer, so that no gradient exceeds the clip by rounding.
        clip: $B>0$.
        temperature: $\tau>0$.
        members: which pairs are in the batch; the others, which only fill its shape, have weight 0. None for all.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        arXiv:2310.03104, Algorithm 1.

    Examples:
        >>> norms = torch.tensor([[0.5, 2.0], [2.0, 0.5]])  # off the diagonal: clipped to half
        >>> logit_dp_weights(torch.eye(2), norms, clip=1.0).round(decimals=3)
        tensor([[-0.2690,  0.1340],
                [ 0.1340, -0.2690]])
    """
    clip = positive("clip", clip)
    temperature = positive("temperature", temperature)
    logits = shaped("similarities", similarities, "n n") / temperature
    n = len(logits)
    on_diagonal = torch.eye(n, dtype=logits.dtype, device=logits.device)
    if members is None:
        weights = torch.softmax(logits, 1) - on_diagonal
    else:
        _check_members(members, n)
        logits = logits.masked_fill(~members, torch.finfo(logits.dtype).min)
        inside = members[:, None] & members
        weights = torch.where(inside, torch.softmax(logits, 1) - on_diagonal, 0)
    weights = weights / temperature
    if norms is None:
        return weights
    alike("norms", norms, "similarities", logits, "shape")
    # Longer by some spacings of the dtype that they came in: rounding must not let a gradient exceed the clip.
    longest = floating("norms", norms) * (1 + 4 * torch.finfo(norms.dtype).eps)
    clip = torch.as_tensor(clip, dtype=longest.dtype, device=logits.device)
    return weights * (clip / torch.maximum(longest, clip))


def logit_dp_loss(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    norms: Float[Tensor, "n n"] | None = None,
    *,
    clip: float | Float[Tensor, ""] = 1.0,
    temperature: float | Float[Tensor, ""] = 1.0,
    members: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""The sum of InfoNCE losses, with a gradient that is the sum of clipped gradients of similarities.

    $$\mathcal L=\sum_i-\log p_{ii},\qquad \text{backward: }\bar g=\sum_{i,j}\omega_{ij}\,\nabla_wc_{ij}$$

    with the weights of `logit_dp_weights`, held constant. One backward pass therefore gives $\bar g$, and the $n^2$
    gradients are never there at once. A private step adds noise to it; the value itself is not private.

    The bound is that of the exact gradients. What runs backward in half precision, or under autocast, is off by up to
    some percent of them: `logit_dp_gradient`, which computes in float32, keeps the bound there too.

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: as `queries`; the positive of query $i$ is key $i$.
        norms, clip, temperature, members: see `logit_dp_weights`.

    Returns:
        The sum (not the mean: a divisor that depends on the batch is another thing to protect).

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        arXiv:2310.03104, Algorithm 1; the single backward pass is ours.

    Examples:
        >>> queries, keys = torch.eye(3, requires_grad=True), torch.eye(3)
        >>> loss = logit_dp_loss(queries, keys, norms=torch.full((3, 3), 2.0), clip=1.0)
        >>> round(loss.item(), 3)
        1.654
        >>> loss.backward()  # the clipped gradient, to which a private step adds noise
    """
    cosines = cosine_similarity(*paired(queries, keys))
    return logit_dp_from_cosines(cosines, norms, clip=clip, temperature=temperature, members=members)


def logit_dp_from_cosines(
    cosines: Float[Tensor, "n n"],
    norms: Float[Tensor, "n n"] | None = None,
    *,
    clip: float | Float[Tensor, ""] = 1.0,
    temperature: float | Float[Tensor, ""] = 1.0,
    members: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """`logit_dp_loss` of the matrix of cosines."""
    cosines = shaped("cosines", cosines, "n n")
    temperature = positive("temperature", temperature)
    cosines = shaped("cosines", cosines, "n n")
    fixed = cosines.detach()
    weights = logit_dp_weights(fixed, norms, clip=clip, temperature=temperature, members=members).detach()
    logits = fixed / temperature
    if members is not None:
        logits = logits.masked_fill(~members, torch.finfo(logits.dtype).min)
    losses = torch.logsumexp(logits, 1) - logits.diagonal()
    value = losses.sum() if members is None else torch.where(members, losses, 0).sum()
    carrier = (weights * cosines).sum()
    return value.detach() + carrier - carrier.detach()


def pair_gradient_norms(
    encoder: nn.Module,
    parameters: Mapping[str, Tensor],
    first: Float[Tensor, "n *shape"],
    second: Float[Tensor, "n *shape"],
    *,
    route: Route = "auto",
    rows: int | None = None,
) -> Float[Tensor, "n n"]:
    r"""Norms of the gradients of all $n^2$ cosines by the parameters of the encoder.

    With $J_i$ the Jacobian of the unit embedding $u_i$ of `first[i]`, $J'_j$ that of $v_j$ of `second[j]`,
    $\nabla_wc_{ij}=J_i^\top v_j+J_j'^\top u_i$. The route "jacobian" forms these, for some rows at a time. The route
    "linear" does not: the gradient of a linear layer with input $a$ is an outer product, so with $b_{ij}$, $b'_{ij}$
    the gradients of $c_{ij}$ by the layer's two outputs, a layer with bias adds

    $$\lVert b_{ij}\rVert^2(\lVert a_i\rVert^2+1)+\lVert b'_{ij}\rVert^2(\lVert a'_j\rVert^2+1)
      +2\,(b_{ij}^\top b'_{ij})(a_i^\top a'_j+1).$$

    Args:
        encoder: maps `(n, *shape)` to embeddings `(n, d)`, each row by itself: no batch normalisation. It is computed
            in the widest dtype of its parameters and inputs, at least float32, without autocast.
        parameters: those of the encoder that are trained, by name, by which the gradients are taken: frozen ones may be
            left out. The norms are constants, no gradient passes.
        first, second: the two views.
        route: "linear" for an nn.Sequential of linear layers on vectors and modules without parameters, "jacobian" for
            any encoder, "auto" for the first where it applies.
        rows: how many rows of pairs the route "jacobian" forms at a time, to bound its memory; None for all.

    Raises:
        ValueError: for shapes, names, an encoder or a route other than these.

    Source:
        Clipping in arXiv:2310.03104, Algorithm 1; the route "linear" is ours, after Goodfellow (2015),
        arXiv:1510.01799.

    Examples:
        >>> encoder, first, second = torch.nn.Linear(4, 2), torch.ones(3, 4), torch.eye(3, 4)
        >>> parameters = dict(encoder.named_parameters())
        >>> pair_gradient_norms(encoder, parameters, first, second).shape
        torch.Size([3, 3])
    """
    alike("second", second, "first", first, "shape")
    if not first.numel():
        raise ValueError(f"first: expected at least one element, got shape {tuple(first.shape)}")
    if rows is not None:
        rows = whole("rows", rows)
    one_of("route", route, "auto", "linear", "jacobian")
    if route == "linear" and not _is_linear(encoder):
        raise ValueError(
            "encoder: expected an nn.Sequential of linear layers and modules without parameters for the route "
            f'"linear", got {type(encoder).__name__}'
        )
    trained, rest, _, (first, second) = _state(encoder, parameters, first.detach(), second.detach())
    with full_precision(first):
        if route == "jacobian" or not _is_linear(encoder):
            norms = _norms_by_jacobian(encoder, trained, rest, first, second, rows)
        else:
            norms = _norms_by_layer(encoder, trained, rest, first, second)
    # What is left out of the parameters may ask for gradients itself.
    return norms.detach()


def logit_dp_gradient(
    encoder: nn.Module,
    parameters: Mapping[str, Tensor],
    first: Float[Tensor, "n *shape"],
    second: Float[Tensor, "n *shape"],
    *,
    clip: float = 1.0,
    temperature: float = 1.0,
    noise_multiplier: float = 0.0,
    sensitivity: float | None = None,
    generator: torch.Generator | None = None,
    rows: int | None = None,
) -> dict[str, Tensor]:
    r"""One private gradient: clip the gradients of similarities, recombine, add noise.

    $$\tilde g=\sum_{i,j}\omega_{ij}\nabla_wc_{ij}+\mathcal N(0,\sigma^2C^2I)$$

    Divide it by a fixed number (the expected batch size), not by the size of a random batch. $\sigma$ comes from an
    accountant that knows how batches are drawn.

    All is computed in float32 at least, without autocast, and comes out in it. For parameters in half precision round
    it after the noise was added: rounding before would move neighbouring sums further apart than $C$.

    Args:
        encoder, parameters, first, second, rows: see `pair_gradient_norms`.
        clip: $B>0$.
        temperature: $\tau>0$.
        noise_multiplier: $\sigma\ge0$.
        sensitivity: $C>0$; None for the supremum over batch sizes. Batches of at most $n$ pairs need
            `logit_dp_sensitivity(n, ...)`; where neighbours differ by a replaced pair, twice as much.
        generator: of the noise.

    Returns:
        Gradients by name, of the sum of the losses. Names of one tied parameter share one gradient.

    Raises:
        ValueError: for shapes, names or numbers other than these.

    Source:
        arXiv:2310.03104, Algorithm 1.

    Examples:
        >>> encoder, first, second = torch.nn.Linear(4, 2), torch.ones(3, 4), torch.eye(3, 4)
        >>> parameters = dict(encoder.named_parameters())
        >>> gradients = logit_dp_gradient(encoder, parameters, first, second, noise_multiplier=1.0)
        >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
        {'weight': (2, 4), 'bias': (2,)}
    """
    noise_multiplier = number("noise_multiplier", noise_multiplier, least=0.0)
    if sensitivity is None:
        sensitivity = logit_dp_sensitivity(clip=clip, temperature=temperature)
    if noise_multiplier:
        sensitivity = positive("sensitivity", sensitivity)
    norms = pair_gradient_norms(encoder, parameters, first, second, rows=rows)

    trained, rest, own_name, (first, second) = _state(encoder, parameters, first, second)

    def loss(trained: dict[str, Tensor]) -> Tensor:
        one, other = (functional_call(encoder, rest | trained, (inputs,)) for inputs in (first, second))
        return logit_dp_loss(one, other, norms, clip=clip, temperature=temperature)

    with full_precision(first):
        gradients = {name: value.detach() for name, value in grad(loss)(trained).items()}
    if noise_multiplier:
        scale = noise_multiplier * sensitivity
        # One generator draws on from parameter to parameter: the noise of no two of them is related.
        gradients = {
            name: value + scale * torch.empty_like(value).normal_(generator=generator)
            for name, value in gradients.items()
        }
    return {name: gradients[own_name[name]] for name in parameters}


def _state(
    encoder: nn.Module, parameters: Mapping[str, Tensor], *inputs: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str], list[Tensor]]:
    """What is trained, as constants; what else of the encoder must be handed in; names; and the inputs.

    All in the widest of their dtypes, at least float32. A tied parameter has several names, of which one is used: the
    third result leads to it.
    """
    names: dict[int, str] = {}
    own_name = {}
    for name, value in encoder.named_parameters(remove_duplicate=False):
        own_name[name] = names.setdefault(id(value), name)
    trained: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if name not in own_name:
            raise ValueError(f"parameters: expected names of the encoder's parameters, got {name!r}")
        trained.setdefault(own_name[name], value.detach())
    if not trained:
        raise ValueError("parameters: expected at least one, got none")
    rest = {
        name: value.detach()
        for name, value in (*encoder.named_parameters(), *encoder.named_buffers())
        if name not in trained and value.is_floating_point()
    }
    dtypes = [value.dtype for value in (*trained.values(), *rest.values(), *inputs) if value.is_floating_point()]
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    trained = {name: value.to(dtype) for name, value in trained.items()}
    rest = {name: value.to(dtype) for name, value in rest.items() if value.dtype != dtype}
    return trained, rest, own_name, [value.to(dtype) if value.is_floating_point() else value for value in inputs]


def _norms_by_jacobian(
    encoder: nn.Module,
    parameters: dict[str, Tensor],
    rest: dict[str, Tensor],
    first: Tensor,
    second: Tensor,
    rows: int | None,
) -> Tensor:
    def embed(parameters: dict[str, Tensor], one: Tensor) -> tuple[Tensor, Tensor]:
        embedding = unit(functional_call(encoder, rest | parameters, (one[None],))[0])
        return embedding, embedding

    def jacobians(inputs: Tensor) -> tuple[Tensor, Tensor]:
        parts, embeddings = vmap(jacrev(embed, has_aux=True), in_dims=(None, 0))(parameters, inputs)
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts.values()], 2), embeddings

    (left, u), (right, v) = jacobians(first), jacobians(second)
    blocks = zip(left.split(rows or len(left)), u.split(rows or len(u)), strict=True)
    norms = torch.cat(
        [
            torch.linalg.vector_norm(
                torch.einsum("idp,jd->ijp", some, v) + torch.einsum("jdp,id->ijp", right, queries), dim=-1
            )
            for some, queries in blocks
        ]
    )
    # What rounding took from them must not make them look shorter than they are.
    return norms * (1 + 64 * torch.finfo(norms.dtype).eps)


def _norms_by_layer(
    encoder: nn.Module, parameters: dict[str, Tensor], rest: dict[str, Tensor], first: Tensor, second: Tensor
) -> Tensor:
    values = dict(encoder.named_parameters()) | rest | parameters
    layers = [(name, layer) for name, layer in encoder.named_children() if isinstance(layer, nn.Linear)]
    example = first.new_zeros(())
    shifts = {name: example.expand(layer.out_features) for name, layer in layers}

    def embed(shifts: dict[str, Tensor], value: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        """The unit embedding, when the output of each linear layer is shifted, and what entered the layers."""
        entered: dict[str, Tensor] = {}
        value = value[None]
        for name, layer in encoder.named_children():
            if name in shifts:
                if value.ndim != 2:
                    shape = tuple(value.shape[1:])
                    raise ValueError(
                        f"encoder: expected vectors to enter layer {name}, got shape {shape}; flatten first"
                    )
                entered[name] = value[0]
                value = nn.functional.linear(value, values[f"{name}.weight"], values.get(f"{name}.bias")) + shifts[name]
            else:
                own = {key.removeprefix(f"{name}."): part for key, part in rest.items() if key.startswith(f"{name}.")}
                value = functional_call(layer, own, (value,))
        embedding = unit(value[0])
        return embedding, (embedding, entered)

    def look(inputs: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        slopes, (embeddings, entered) = vmap(jacrev(embed, has_aux=True), in_dims=(None, 0))(shifts, inputs)
        return slopes, embeddings, entered

    (left, u, a), (right, v, b) = look(first), look(second)
    squares = first.new_zeros(())
    for name, _ in layers:
        by_first = torch.einsum("ido,jd->ijo", left[name], v)
        by_second = torch.einsum("jdo,id->ijo", right[name], u)
        # What is not trained adds nothing.
        weight, bias = (float(f"{name}.{part}" in parameters) for part in ("weight", "bias"))
        apart = by_first.square().sum(-1) * (weight * a[name].square().sum(-1)[:, None] + bias) + (
            by_second.square().sum(-1) * (weight * b[name].square().sum(-1) + bias)
        )
        crossed = 2 * (by_first * by_second).sum(-1) * (weight * (a[name] @ b[name].mT) + bias)
        # The crossed term may cancel the others, and what rounding leaves of them must not look shorter than it is.
        squares = squares + (1 + 64 * torch.finfo(apart.dtype).eps) * apart + crossed
    return squares.clamp(min=0).sqrt()


def _is_linear(encoder: nn.Module) -> bool:
    """Whether all parameters belong to linear layers that follow one another, none of them used twice."""
    if not isinstance(encoder, nn.Sequential) or len(set(map(id, encoder))) < len(encoder):
        return False
    if len(list(encoder.parameters())) < len(list(encoder.named_parameters(remove_duplicate=False))):
        return False
    return any(isinstance(part, nn.Linear) for part in encoder) and all(
        type(part) is nn.Linear or not any(True for _ in part.parameters()) for part in encoder
    )


def _check_members(members: object, n: int) -> None:
    if not isinstance(members, Tensor) or members.dtype != torch.bool or members.shape != (n,):
        got = (
            f"{members.dtype} of shape {tuple(members.shape)}"
            if isinstance(members, Tensor)
            else type(members).__name__
        )
        raise ValueError(f"members: expected booleans of shape ({n},), got {got}")
