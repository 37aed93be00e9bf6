"""The bench on any device: networks, attacks, diffusion and what else works on tensors."""

from functools import partial

import torch
from devices import on_any_device, only_on_cpu
from torch import nn

from lossbook.lab import (
    attacks,
    augmentations,
    diffusion,
    evaluate,
    inversion,
    language,
    lora,
    membership,
    nets,
    representations,
)

PICTURES, SIGNALS = torch.rand(4, 1, 8, 8), torch.randn(4, 2, 30)
CLASSES, TIMES = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 5, 10, 19])
NETWORK = nets.mlp([64, 16, 3])
SCHEDULE = diffusion.noise_schedule(20)
NOISED = (PICTURES, torch.randn(4, 1, 8, 8), TIMES, SCHEDULE)
DENOISER = diffusion.Denoiser((1, 8, 8), steps=20, classes=3, width=16)
TOKENS = torch.randint(11, (3, 8))
TRANSFORMER = language.Transformer(11, width=12, layers=1, heads=3, context=7, temperature=True, scaled_ffn=True)
MEMBERS = torch.arange(20) < 10
DRAW = torch.Generator().manual_seed(0)


def drawn(views):
    return {name: value[0] for name, value in views.draw(DRAW, 1).items()}


def classes_of(inputs):
    return NETWORK(inputs).log_softmax(-1)


test_networks_on_any_device = on_any_device(
    partial(nets.cnn([4, 8]), PICTURES),
    partial(nets.EncoderProjector(NETWORK, nets.mlp([3, 2], norm=nn.LayerNorm)), PICTURES),
    partial(DENOISER, PICTURES, TIMES, CLASSES),
    partial(diffusion.UNet((1, 8, 8), steps=20, channels=(8, 12)), PICTURES, TIMES),
    partial(TRANSFORMER, TOKENS[:, :-1], observe=lambda attention: attention.mean((0, 2))),
    partial(lora.add_lora(nets.cnn([4, 8]), rank=2), PICTURES),
    partial(lora.merge_lora, lora.add_lora(NETWORK, rank=2)),
    partial(lora.LoRA(nn.Linear(3, 2), rank=1), torch.randn(4, 3)),
    only_on_cpu("what is saved is on the CPU", lora.lora_state, lora.add_lora(NETWORK, rank=2)),
    only_on_cpu("scales are numbers", lora.load_lora, NETWORK, lora.lora_state(lora.add_lora(NETWORK, rank=2))),
    only_on_cpu("scales are numbers", lora.unmerge_lora, NETWORK, lora.lora_state(lora.add_lora(NETWORK, rank=2))),
)

test_attacks_on_any_device = on_any_device(
    partial(attacks.logit_margin, torch.randn(4, 3), CLASSES),
    partial(attacks.logit_ratio, torch.randn(4, 3), CLASSES),
    partial(attacks.random_start, PICTURES, generator=DRAW, epsilon=0.1, norm="l2", restarts=2),
    partial(attacks.fgsm, NETWORK, PICTURES, CLASSES, epsilon=0.1),
    partial(attacks.pgd, NETWORK, PICTURES, epsilon=0.1, loss="kl", steps=2, start=0.01 * PICTURES),
    partial(attacks.pgd, NETWORK, PICTURES, CLASSES, epsilon=0.1, norm="l2", loss="ratio", steps=2),
    partial(attacks.pgd, NETWORK, PICTURES, CLASSES, epsilon=0.1, steps=2, restarts=2, generator=DRAW),
    partial(attacks.auto_pgd, NETWORK, PICTURES, CLASSES, epsilon=0.1, steps=6, loss="margin"),
    partial(attacks.square, NETWORK, PICTURES, CLASSES, epsilon=0.1, queries=3, generator=DRAW),
    partial(attacks.targeted_logit_ratio, torch.randn(4, 5), CLASSES, CLASSES + 1),
    partial(
        attacks.ensemble,
        NETWORK,
        PICTURES,
        CLASSES,
        epsilon=0.1,
        steps=2,
        queries=2,
        generator=DRAW,
    ),
)

test_diffusion_on_any_device = on_any_device(
    only_on_cpu("a constant, which its users move", diffusion.noise_schedule, 20),
    partial(diffusion.add_noise, *NOISED),
    partial(diffusion.error_map, DENOISER, *NOISED, CLASSES),
    partial(diffusion.denoising_loss, DENOISER, *NOISED, CLASSES),
    only_on_cpu(
        "factors of its steps are Python numbers",
        diffusion.diffusion_sample,
        DENOISER,
        (4, 1, 8, 8),
        SCHEDULE,
        generator=DRAW,
        labels=CLASSES,
    ),
)

test_views_on_any_device = on_any_device(
    partial(augmentations.shifted, PICTURES, torch.randint(-1, 2, (4, 2)), 1),
    partial(augmentations.permuted, SIGNALS, torch.rand(4, 3)),
    *(
        partial(views.apply, {"inputs": inputs, "index": CLASSES, **drawn(views)})
        for views, inputs in (
            (augmentations.Views((4, 1, 8, 8)), PICTURES),
            (augmentations.SignalViews((4, 2, 30), segments=3, number=3), SIGNALS),
        )
    ),
)

test_language_on_any_device = on_any_device(
    partial(language.windows, torch.arange(30), 7),
    partial(language.next_token_loss, torch.randn(3, 7, 11), TOKENS),
)

test_attackers_of_privacy_on_any_device = on_any_device(
    partial(membership.attack_auc, torch.randn(2, 5), torch.randn(2, 7)),
    only_on_cpu(
        "both kinds must be there", membership.threshold_attack, torch.randn(2, 20), MEMBERS, torch.randn(2, 3)
    ),
    only_on_cpu("limits are SciPy's", membership.judge_attack, torch.randn(20), torch.randn(20)),
    partial(inversion.ascend_posterior, NETWORK, PICTURES, CLASSES, steps=2, queries=2, penalty=0.1),
    partial(inversion.with_candidates, torch.randn(5, 3), 1, torch.tensor([7.0, 8.0])),
    partial(inversion.attribute_posterior, torch.randn(2, 5, 3)),
    partial(inversion.attribute_success, torch.rand(4, 3), CLASSES),
    only_on_cpu("limits are SciPy's", inversion.success_rate, torch.rand(5)),
    only_on_cpu("limits are SciPy's", inversion.explained_share, *torch.randn(3, 5, 2)),
)

test_scores_on_any_device = on_any_device(
    partial(evaluate.accuracy, torch.randn(2, 4, 3), CLASSES),
    only_on_cpu(
        "the probe is scikit-learn's", evaluate.linear_probe, torch.randn(4, 3), CLASSES, (torch.randn(4, 3), CLASSES)
    ),
    partial(evaluate.correct, torch.randn(4, 3), CLASSES),
    partial(representations.retrieval, torch.randn(2, 12, 12)),
    partial(representations.effective_rank, torch.randn(2, 5, 3)),
    partial(representations.effective_rank, torch.randn(2, 5, 3), of="singular values"),
    partial(representations.frechet_distance, torch.randn(2, 5, 3), torch.randn(2, 6, 3)),
)
