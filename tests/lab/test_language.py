"""Tokens, windows and the transformer, against PyTorch's encoder layer and scaled dot-product attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import annotations_unchecked
from torch import nn

from lossbook import lab
from lossbook.lab import language

TEXT = "It isn't so, she said;\nit is not so. Naïve!\n"


# Tokens and windows -----------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_bytes_come_back_exactly(text):
    tokenizer = language.Tokenizer.of(TEXT, unit="byte")
    assert len(tokenizer) == 256 and tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet=sorted(set(TEXT)), max_size=40))
def test_known_characters_come_back_exactly(text):
    tokenizer = language.Tokenizer.of(TEXT)
    assert len(tokenizer) == len(set(TEXT)) + 1 and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("sXs")) == "s\ufffds"


def test_words_by_frequency_and_the_unknown_one():
    tokenizer = language.Tokenizer.of("b a b. a b c", unit="word", size=4)
    assert tokenizer.vocabulary == ("\ufffd", "b", "a", ".")
    assert tokenizer.encode("a b c .").tolist() == [2, 1, 0, 3] and tokenizer.decode(torch.tensor([2, 3])) == "a ."
    whole = language.Tokenizer.of(TEXT, unit="word")
    assert whole.decode(whole.encode(TEXT)) == "It isn't so , she said ; \n it is not so . Naïve ! \n"


def test_windows_predict_every_token_once():
    tokens = torch.arange(23)
    cut = language.windows(tokens, 5)
    assert cut.shape == (4, 6) and cut[:, 1:].flatten().tolist() == list(range(1, 21))
    assert language.windows(tokens, 5, stride=1).shape == (18, 6)


def test_wrong_tokens_and_windows_are_refused():
    with annotations_unchecked():
        with pytest.raises(ValueError, match='unit: expected "byte", "character" or "word", got \'line\''):
            language.Tokenizer.of(TEXT, unit="line")
        with pytest.raises(ValueError, match="size: expected at least 2, and none with bytes, got 1"):
            language.Tokenizer.of(TEXT, size=1)
        with pytest.raises(ValueError, match="tokens: expected more than context = 5, got 5"):
            language.windows(torch.arange(5), 5)
        with pytest.raises(ValueError, match="context, stride: expected at least 1, got 5 and 0"):
            language.windows(torch.arange(9), 5, stride=0)


# The transformer --------------------------------------------------------------------------------------

SIZES = dict(width=12, layers=2, heads=3, context=7, hidden=20)


def transformer(seed=0, **settings):
    torch.manual_seed(seed)
    model = language.Transformer(11, **(SIZES | settings)).double()
    for parameter in model.parameters():  # of a size that matters, biases and temperatures too
        nn.init.normal_(parameter, std=0.5)
    return model


def some_tokens(*shape, seed=0):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def by_pytorch(model, tokens, activation):
    """The same network with PyTorch's encoder layers in place of the blocks."""
    x = model.tokens(tokens) + model.positions[: tokens.shape[1]]
    mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            12, 3, 20, dropout=0, activation=activation, batch_first=True, norm_first=True, dtype=torch.float64
        )
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attention.inputs.weight,
                "self_attn.in_proj_bias": block.attention.inputs.bias,
                "self_attn.out_proj.weight": block.attention.outputs.weight,
                "self_attn.out_proj.bias": block.attention.outputs.bias,
                "linear1.weight": block.ffn[0].weight,
                "linear1.bias": block.ffn[0].bias,
                "linear2.weight": block.ffn[2].weight,
                "linear2.bias": block.ffn[2].bias,
                "norm1.weight": block.first_norm.weight,
                "norm1.bias": block.first_norm.bias,
                "norm2.weight": block.second_norm.weight,
                "norm2.bias": block.second_norm.bias,
            }
        )
        x = layer(x, src_mask=mask)
    return model.logits(model.last_norm(x))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_blocks_are_those_of_pytorch(activation):
    model, tokens = transformer(activation=activation), some_tokens(4, 7)
    torch.testing.assert_close(model(tokens), by_pytorch(model, tokens, activation), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [False, True], ids=["plain", "temperature"])
def test_attention_is_scaled_dot_product_attention(temperature):
    attend, x = transformer(temperature=temperature).blocks[0].attention, torch.randn(2, 7, 12, dtype=torch.float64)
    query, key, value = (part.view(2, 7, 3, 4).transpose(1, 2) for part in attend.inputs(x).chunk(3, -1))
    if temperature:
        query = query / attend.log_temperature.exp()[:, None, None]
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(2, 7, 12)
    ours, attention = attend(x)
    torch.testing.assert_close(ours, attend.outputs(theirs))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert (attention.triu(1) == 0).all()


def test_attention_of_half_precision_is_computed_in_single():
    model = transformer(temperature=True).float()
    attention, x = model.blocks[0].attention, torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))
    for half in (False, True):
        part, values = (attention.bfloat16(), x.bfloat16()) if half else (attention, x)
        with torch.autocast("cpu", enabled=not half):
            out, found = part(values)
            q, k, v = part.inputs(values).view(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4).double()
        temperature = attention.log_temperature.double().exp()[:, None, None]
        later = torch.ones(7, 7, dtype=torch.bool).triu(1)
        exact = (q @ k.mT / 2 / temperature).masked_fill(later, -math.inf).softmax(-1)
        assert found.dtype == torch.float32 and out.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
        expected = attention.outputs.double()((exact @ v).transpose(1, 2).reshape(2, 7, 12))
        torch.testing.assert_close(out.double(), expected, rtol=3e-2, atol=3e-2)
        attention.float()


def test_scales_of_the_feed_forward_step():
    model, tokens = transformer(scaled_ffn=True, layers=1), some_tokens(2, 5)
    block = model.blocks[0]
    x = model.tokens(tokens) + model.positions[:5]
    x = x + block.attention(block.first_norm(x))[0]
    x = block.beta * x + block.ffn(block.second_norm(x)) / block.alpha
    torch.testing.assert_close(model(tokens), model.logits(model.last_norm(x)))


@pytest.mark.parametrize(
    "settings",
    [dict(norm="layer"), dict(norm="rms"), dict(norm="none"), dict(norm="none", activation="none", scaled_ffn=True)],
    ids=["layer", "rms", "none", "softmax only"],
)
def test_no_place_sees_what_comes_later(settings):
    model, tokens = transformer(**settings), some_tokens(1, 7)
    changed = tokens.clone()
    changed[0, 4:] = (changed[0, 4:] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])
    # A shorter input is a part of a longer one.
    torch.testing.assert_close(model(tokens[:, :4]), before[:, :4])


def test_what_is_exchanged_is_what_is_there():
    def kinds(**settings):
        return {type(module).__name__ for module in transformer(**settings).modules()}

    assert {"LayerNorm", "GELU"} <= kinds()
    assert "RMSNorm" in kinds(norm="rms") and "LayerNorm" not in kinds(norm="rms")
    assert not {"LayerNorm", "RMSNorm", "GELU", "ReLU"} & kinds(norm="none", activation="none")
    names = {name.rsplit(".", 1)[-1] for name, _ in transformer(temperature=True, scaled_ffn=True).named_parameters()}
    assert names == {"weight", "bias", "positions", "log_temperature", "alpha", "beta"}


def test_observed_attention_by_layer():
    model, tokens = transformer(), some_tokens(4, 6)
    logits, maps = model(tokens, observe=lambda attention: attention)
    assert maps.shape == (2, 4, 3, 6, 6) and torch.equal(logits, model(tokens))
    _, means = model(tokens, observe=lambda attention: attention.mean((0, 2, 3)))
    torch.testing.assert_close(means, maps.mean((1, 3, 4)))


def test_initial_values_are_scaled_as_those_of_gpt2():
    torch.manual_seed(0)
    model = language.Transformer(500, width=192, layers=3, heads=4, context=64)
    assert model.tokens.weight.std().item() == pytest.approx(0.04, rel=0.05)
    assert model.blocks[0].ffn[0].weight.std().item() == pytest.approx(0.04, rel=0.05)
    assert model.blocks[0].ffn[2].weight.std().item() == pytest.approx(0.04 / math.sqrt(6), rel=0.05)
    assert model.blocks[1].attention.inputs.bias.abs().max() == 0 and model.last_norm.weight.min() == 1
    loss = language.next_token_loss(model(torch.randint(500, (8, 64))), torch.randint(500, (8, 65)))
    assert loss.item() == pytest.approx(math.log(500), abs=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(width=10), "width: expected a multiple of heads = 3, got 10"),
        (dict(norm="batch"), r"norm: expected one of \['layer', 'rms', 'none'\], got 'batch'"),
        (dict(activation="tanh"), r"activation: expected one of \['gelu', 'relu', 'none'\], got 'tanh'"),
        (dict(layers=0), "layers: expected at least 1, got 0"),
    ],
    ids=["width", "norm", "activation", "layers"],
)
def test_wrong_settings_are_refused(settings, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        transformer(**settings)


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match="tokens: expected at most context = 7 in a row, got 8"):
        transformer()(some_tokens(1, 8))


# Training and judging ------------------------------------------------------------------------------------


def train(seeds, text="abcab" * 60, epochs=6):
    tokenizer = language.Tokenizer.of(text)
    return tokenizer, lab.fit(
        lambda run: language.Transformer(len(tokenizer), width=16, layers=1, heads=2, context=8, temperature=True),
        lambda model, batch, run: language.next_token_loss(model(batch["windows"][:, :-1]), batch["windows"]),
        {"windows": language.windows(tokenizer.encode(text), 8)},
        lab.grid(seed=seeds, learning_rate=[0.02]),
        epochs=epochs,
        batch_size=9,
        device="cpu",
        progress=None,
    )


def test_a_stack_learns_as_alone_and_perplexity_is_that_of_each_run():
    tokenizer, stacked = train([0, 1])
    alone = train([1])[1]
    for name, value in alone.parameters.items():
        torch.testing.assert_close(stacked.parameters[name][1], value[0], rtol=1e-3, atol=1e-4)
    windows = language.windows(tokenizer.encode("abcab" * 30), 8)
    found = language.perplexity(stacked, windows, batch_size=5)  # the last batch is smaller
    for run in range(2):
        logits = stacked.module(run)(windows[:, :-1])
        assert found[run].item() == pytest.approx(language.next_token_loss(logits, windows).exp().item(), rel=1e-4)
    # Of "abcab" without end, only the first letter of a window leaves a doubt about the second.
    assert 1 < found.max() < 1.6
    assert (language.perplexity(train([0, 1], epochs=1)[1], windows) > found).all()


def test_means_of_anything_over_runs():
    tokenizer, fitted = train([0, 1], epochs=1)
    windows = language.windows(tokenizer.encode("abcab" * 30), 8)
    weights = torch.arange(len(windows), dtype=torch.float32)

    def means(model, tokens, weight):
        return {"logits": model(tokens[:, :-1]).mean((0, 1)), "weight": weight.mean()}

    found = fitted.means(means, windows, weights, batch_size=7)
    expected = torch.stack([fitted.module(run)(windows[:, :-1]).mean((0, 1)) for run in range(2)])
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["weight"], weights.mean().expand(2))
