"""The bench that every experiment uses: data, fitting, evaluation, statistics, ledger, plots."""

import os
import sys

# A second thread that spins beside a busy process costs more than it brings; both can be asked for.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

from lossbook.lab.attacks import (
    Attacked,
    auto_pgd,
    ensemble,
    fgsm,
    logit_margin,
    logit_ratio,
    pgd,
    random_start,
    robust_accuracy,
    square,
)
from lossbook.lab.data import DataError, Dataset, load
from lossbook.lab.data.text import Pairs, Text, load_pairs, load_text, path_similarity
from lossbook.lab.diffusion import (
    Denoiser,
    UNet,
    add_noise,
    denoising_loss,
    diffusion_sample,
    error_map,
    noise_schedule,
)
from lossbook.lab.evaluate import (
    accuracies,
    accuracy,
    effective_rank,
    frechet_distance,
    k_nearest_neighbours,
    linear_probe,
    retrieval,
)
from lossbook.lab.fitting import Fitted, Model, NonFiniteError, choose_device, fit, grid, moving_average
from lossbook.lab.inversion import (
    Decoders,
    ascend_posterior,
    attribute_posterior,
    attribute_success,
    averaged,
    explained_share,
    fit_decoders,
    success_rate,
    with_candidates,
)
from lossbook.lab.language import Tokenizer, Transformer, next_token_loss, perplexity, windows
from lossbook.lab.ledger import CheckFailed, Claim, Ledger, Table, max_error
from lossbook.lab.lora import LoRA, add_lora, merge_lora
from lossbook.lab.membership import Leakage, attack_auc, judge_attack, learned_attack, threshold_attack
from lossbook.lab.nets import EncoderProjector, cnn, mlp
from lossbook.lab.plots import show, show_source, show_table, use_theme
from lossbook.lab.results import record
from lossbook.lab.statistics import Interval, best_setting, equivalence, mean_interval, paired
from lossbook.lab.views import SignalViews, Views, permuted, shifted

__all__ = [
    "Attacked",
    "CheckFailed",
    "Claim",
    "DataError",
    "Dataset",
    "Decoders",
    "Denoiser",
    "EncoderProjector",
    "Fitted",
    "Interval",
    "Leakage",
    "Ledger",
    "LoRA",
    "Model",
    "NonFiniteError",
    "Pairs",
    "SignalViews",
    "Table",
    "Text",
    "Tokenizer",
    "Transformer",
    "UNet",
    "Views",
    "accuracies",
    "accuracy",
    "add_lora",
    "add_noise",
    "ascend_posterior",
    "attack_auc",
    "attribute_posterior",
    "attribute_success",
    "auto_pgd",
    "averaged",
    "best_setting",
    "choose_device",
    "cnn",
    "denoising_loss",
    "diffusion_sample",
    "effective_rank",
    "ensemble",
    "equivalence",
    "error_map",
    "explained_share",
    "fgsm",
    "fit",
    "fit_decoders",
    "frechet_distance",
    "grid",
    "judge_attack",
    "k_nearest_neighbours",
    "learned_attack",
    "linear_probe",
    "load",
    "load_pairs",
    "load_text",
    "logit_margin",
    "logit_ratio",
    "max_error",
    "mean_interval",
    "merge_lora",
    "mlp",
    "moving_average",
    "next_token_loss",
    "noise_schedule",
    "paired",
    "path_similarity",
    "permuted",
    "perplexity",
    "pgd",
    "random_start",
    "record",
    "retrieval",
    "robust_accuracy",
    "shifted",
    "show",
    "show_source",
    "show_table",
    "square",
    "success_rate",
    "threshold_attack",
    "use_theme",
    "windows",
    "with_candidates",
]
