"""The bench that every experiment uses: data, fitting, evaluation, statistics, ledger, plots."""

import os
import sys

# A second thread that spins beside a busy process costs more than it brings; both can be asked for.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

from lossbook.lab.data import DataError, Dataset, load
from lossbook.lab.data.text import Pairs, load_pairs, path_similarity
from lossbook.lab.evaluate import accuracies, accuracy, effective_rank, k_nearest_neighbours, linear_probe, retrieval
from lossbook.lab.fitting import Fitted, Model, NonFiniteError, choose_device, fit, grid, moving_average
from lossbook.lab.ledger import CheckFailed, Claim, Ledger, Table, max_error
from lossbook.lab.nets import EncoderProjector, cnn, mlp
from lossbook.lab.plots import show, show_source, show_table, use_theme
from lossbook.lab.results import record
from lossbook.lab.statistics import Interval, best_setting, equivalence, mean_interval, paired
from lossbook.lab.views import SignalViews, Views, permuted, shifted

__all__ = [
    "CheckFailed",
    "Claim",
    "DataError",
    "Dataset",
    "EncoderProjector",
    "Fitted",
    "Interval",
    "Ledger",
    "Model",
    "NonFiniteError",
    "Pairs",
    "SignalViews",
    "Table",
    "Views",
    "accuracies",
    "accuracy",
    "best_setting",
    "choose_device",
    "cnn",
    "effective_rank",
    "equivalence",
    "fit",
    "grid",
    "k_nearest_neighbours",
    "linear_probe",
    "load",
    "load_pairs",
    "max_error",
    "mean_interval",
    "mlp",
    "moving_average",
    "paired",
    "path_similarity",
    "permuted",
    "record",
    "retrieval",
    "shifted",
    "show",
    "show_source",
    "show_table",
    "use_theme",
]
