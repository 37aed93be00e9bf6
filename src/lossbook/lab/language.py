"""Language models small enough for a page: tokens, windows of text, a decoder-only transformer, perplexity."""

import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook.lab.fitting import Fitted, Model

__all__ = ["Tokenizer", "Transformer", "next_token_loss", "perplexity", "windows"]

Unit = Literal["byte", "character", "word"]
UNKNOWN = "\ufffd"
# A word, or a single mark; spaces only separate. A line's end is a mark.
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]|\n")


@dataclass(frozen=True)
class Tokenizer:
    """Text to numbers and back: make one with `Tokenizer.of`.

    Attributes:
        unit: what a token is: "byte" (of UTF-8), "character" or "word" (or a punctuation mark, or a line's end).
        vocabulary: the pieces; the number of a token is its place here. For characters and words the first is the
            replacement character, which stands for all that is not in the vocabulary.

    Examples:
        >>> tokenizer = language.Tokenizer.of("to be or not to be", unit="word")
        >>> tokens = tokenizer.encode("to see or not")  # it does not know "see"
        >>> tokens, tokenizer.decode(tokens[2:])
        (tensor([2, 0, 4, 3]), 'or not')
    """

    unit: Unit
    vocabulary: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, text: str, *, unit: Unit = "character", size: int | None = None) -> "Tokenizer":
        """The tokenizer of a training text.

        Args:
            text: its most frequent pieces become the vocabulary, equals in alphabetical order.
            unit: "byte", whose vocabulary is always the 256 bytes, "character" or "word".
            size: of the vocabulary with the unknown piece; None for all pieces of the text.

        Raises:
            ValueError: for another unit, or a size below 2 or given with bytes.
        """
        if unit not in ("byte", "character", "word"):
            raise ValueError(f'unit: expected "byte", "character" or "word", got {unit!r}')
        if size is not None and (size < 2 or unit == "byte"):
            raise ValueError(f"size: expected at least 2, and none with bytes, got {size}")
        if unit == "byte":
            return cls(unit, tuple(map(chr, range(256))))
        counts = Counter(text if unit == "character" else _WORD.findall(text))
        ranked = sorted(counts.keys() - {UNKNOWN}, key=lambda piece: (-counts[piece], piece))
        return cls(unit, (UNKNOWN, *ranked[: None if size is None else size - 1]))

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    def encode(self, text: str) -> Int[Tensor, " n"]:
        """Numbers of the tokens of a text; 0 for an unknown character or word."""
        if self.unit == "byte":
            return torch.tensor(list(text.encode()), dtype=torch.long)
        number = {piece: index for index, piece in enumerate(self.vocabulary)}
        pieces = text if self.unit == "character" else _WORD.findall(text)
        return torch.tensor([number.get(piece, 0) for piece in pieces], dtype=torch.long)

    def decode(self, tokens: Int[Tensor, " n"]) -> str:
        """The text of tokens: exact for bytes and known characters; words are joined by single spaces."""
        if self.unit == "byte":
            return bytes(tokens.tolist()).decode(errors="replace")
        return (" " if self.unit == "word" else "").join(self.vocabulary[token] for token in tokens.tolist())


def windows(tokens: Int[Tensor, " n"], context: int, *, stride: int | None = None) -> Int[Tensor, "windows length"]:
    """Pieces of `context + 1` tokens: of each the first `context` are seen, the last `context` predicted.

    Args:
        tokens: of a text.
        context: how many tokens the model sees.
        stride: from one window to the next. By default `context`: windows share one token, so every token but the very
            first is predicted exactly once. What does not fill a window is left out.

    Raises:
        ValueError: if a number is below 1 or the text is shorter than a window.

    Examples:
        >>> language.windows(torch.arange(7), context=3)
        tensor([[0, 1, 2, 3],
                [3, 4, 5, 6]])
    """
    stride = context if stride is None else stride
    if context < 1 or stride < 1:
        raise ValueError(f"context, stride: expected at least 1, got {context} and {stride}")
    if len(tokens) <= context:
        raise ValueError(f"tokens: expected more than context = {context}, got {len(tokens)}")
    return tokens.unfold(0, context + 1, stride).contiguous()


class _Attention(nn.Module):
    """Causal self-attention of several heads, computed in the open.

    Attributes:
        inputs: queries, keys and values in one linear map.
        outputs: the linear map of the joined heads.
        log_temperature: of each head; None if temperatures are not learned.
    """

    def __init__(self, width: int, heads: int, temperature: bool):
        super().__init__()
        self.heads = heads
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.log_temperature = nn.Parameter(torch.zeros(heads)) if temperature else None

    def forward(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b h t t"]]:
        b, t, d = x.shape
        query, key, value = self.inputs(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        # In float32 at least: half precision, as of autocast, moves entropies in the third digit.
        query, key = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (query, key))
        query = query / math.sqrt(d // self.heads)
        if self.log_temperature is not None:
            query = query * torch.exp(-self.log_temperature.to(query.dtype))[:, None, None]
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            logits = query @ key.transpose(-1, -2)
        attention = logits.masked_fill(later, -math.inf).softmax(-1)
        return self.outputs((attention.to(value.dtype) @ value).transpose(1, 2).reshape(b, t, d)), attention


_NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": lambda width: nn.Identity()}
_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}


class _Block(nn.Module):
    """Attention, then a feed-forward network, each after a normalisation and added to its input.

    Attributes:
        alpha, beta: the learned scales of the feed-forward step; None if not scaled.
    """

    def __init__(self, width, heads, *, norm, activation, hidden, temperature, scaled_ffn):
        super().__init__()
        self.first_norm, self.second_norm = _NORMS[norm](width), _NORMS[norm](width)
        self.attention = _Attention(width, heads, temperature)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), _ACTIVATIONS[activation](), nn.Linear(hidden, width))
        self.alpha = nn.Parameter(torch.ones(())) if scaled_ffn else None
        self.beta = nn.Parameter(torch.ones(())) if scaled_ffn else None

    def forward(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b h t t"]]:
        attended, attention = self.attention(self.first_norm(x))
        x = x + attended
        new = self.ffn(self.second_norm(x))
        if self.alpha is not None and self.beta is not None:
            x, new = self.beta * x, new / self.alpha
        return x + new, attention


class Transformer(nn.Module):
    r"""A decoder-only transformer with learned positions, whose attention can be looked at.

    A block is $x\leftarrow x+\mathrm{Attention}(\mathrm{norm}(x))$, then $x\leftarrow x+\mathrm{FFN}(\mathrm{norm}(x))$
    or, with `scaled_ffn`, $x\leftarrow\beta x+\frac1\alpha\mathrm{FFN}(\mathrm{norm}(x))$, where $\alpha,\beta$ are
    learned from 1 on. A head's attention is the softmax over $j\le i$ of $q_i^\top k_j/(t_h\sqrt{d_h})$, $t_h=1$
    or, with `temperature`, $e^{\tau_h}$ with $\tau_h$ learned from 0 on. A last normalisation and a linear map without
    bias give the logits.

    Matrices begin as GPT-2's: normal, those that end a residual branch smaller by $\sqrt{2\,\mathrm{layers}}$. The
    standard deviation, 0.02 at GPT-2's width of 768, is $0.02\sqrt{768/\mathrm{width}}$, which keeps the gain of a
    layer.

    Args:
        vocabulary: number of tokens.
        width: of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: of attention in each block.
        context: longest input.
        norm: "layer", "rms" or "none" (then there is none at the end either).
        activation: of the feed-forward network: "gelu", "relu" or "none", which leaves the product of two matrices.
        hidden: width inside the feed-forward network; by default four times `width`.
        temperature: learn one for each head.
        scaled_ffn: learn the two scales of each feed-forward step.

    Raises:
        ValueError: for a width that heads do not divide, another norm or activation, or a number below 1.

    Examples:
        >>> model = language.Transformer(100, width=16, layers=2, heads=4, context=8)
        >>> tokens = torch.zeros(3, 8, dtype=torch.long)
        >>> logits, attention = model(tokens, observe=lambda attention: attention)
        >>> logits.shape, attention.shape
        (torch.Size([3, 8, 100]), torch.Size([2, 3, 4, 8, 8]))
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        context: int = 64,
        norm: Literal["layer", "rms", "none"] = "layer",
        activation: Literal["gelu", "relu", "none"] = "gelu",
        hidden: int | None = None,
        temperature: bool = False,
        scaled_ffn: bool = False,
    ):
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        for name, value in dict(
            vocabulary=vocabulary, width=width, layers=layers, heads=heads, context=context, hidden=hidden
        ).items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads = {heads}, got {width}")
        for name, value, known in (("norm", norm, _NORMS), ("activation", activation, _ACTIVATIONS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}")
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(
            _Block(
                width,
                heads,
                norm=norm,
                activation=activation,
                hidden=hidden,
                temperature=temperature,
                scaled_ffn=scaled_ffn,
            )
            for _ in range(layers)
        )
        self.last_norm = _NORMS[norm](width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        self._initialise(0.02 * math.sqrt(768 / width), layers)

    def _initialise(self, std: float, layers: int) -> None:
        nn.init.normal_(self.positions, std=std)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                ends = name.endswith(("outputs.weight", "ffn.2.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * layers) if ends else std)

    def forward(
        self, tokens: Int[Tensor, "b t"], *, observe: Callable[[Float[Tensor, "b h t t"]], Tensor] | None = None
    ) -> Float[Tensor, "b t vocabulary"] | tuple[Float[Tensor, "b t vocabulary"], Float[Tensor, "layers *observed"]]:
        """Logits of the next token at each place; with `observe`, also what it makes of each layer's attention.

        Args:
            tokens: at most `context` of them a row.
            observe: sees the attention `(b, heads, t, t)`, rows of which sum to one over the places up to their own.
        """
        if tokens.shape[1] > self.context:
            raise ValueError(f"tokens: expected at most context = {self.context} in a row, got {tokens.shape[1]}")
        x, observed = self.tokens(tokens) + self.positions[: tokens.shape[1]], []
        for block in self.blocks:
            x, attention = block(x)
            if observe is not None:
                observed.append(observe(attention))
        logits = self.logits(self.last_norm(x))
        return logits if observe is None else (logits, torch.stack(observed))


def next_token_loss(logits: Float[Tensor, "b t v"], batch: Int[Tensor, "b length"]) -> Float[Tensor, ""]:
    r"""Mean cross-entropy of the next token, in nats.

    Args:
        logits: for the first $t$ tokens of each window.
        batch: windows of $t+1$ tokens, as of `windows`.

    Examples:
        >>> batch = torch.tensor([[0, 1, 2]])
        >>> round(language.next_token_loss(torch.zeros(1, 2, 4), batch).item(), 3)
        1.386
    """
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def perplexity(fitted: Fitted, batch: Int[Tensor, "n length"], *, batch_size: int = 64) -> Float[Tensor, " runs"]:
    r"""Perplexity of each run, $\exp$ of its mean cross-entropy per token: the number of equally likely next tokens.

    Args:
        fitted: runs whose network makes logits of tokens, such as `Transformer`.
        batch: windows, as of `windows`.
        batch_size: windows at a time.

    Examples:
        >>> text, runs = torch.arange(400).view(-1, 8) % 4, lab.grid(seed=[0], learning_rate=[0.1])
        >>> loss = lambda model, batch, run: language.next_token_loss(
        ...     model(batch["text"][:, :-1]), batch["text"])
        >>> fitted = lab.fit(lambda run: torch.nn.Embedding(4, 4), loss, {"text": text}, runs,
        ...                  epochs=60, batch_size=25)
        >>> language.perplexity(fitted, text) < 1.1
        tensor([True])
    """

    def loss(model: Model, part: Tensor) -> Tensor:
        return next_token_loss(model(part[:, :-1]), part)

    return fitted.means(loss, batch, batch_size=batch_size).exp()
