"""The bench that every experiment uses: data, fitting, evaluation, statistics, ledger, plots."""

from lossbook.lab import _needs  # noqa: F401 - first, since it says what is missing
from lossbook.lab.data import load
from lossbook.lab.evaluate import accuracies, accuracy, correct, k_nearest_neighbours, linear_probe
from lossbook.lab.fitting import choose_device, fit, grid
from lossbook.lab.ledger import Ledger, max_error
from lossbook.lab.nets import EncoderProjector, cnn, mlp
from lossbook.lab.plots import show, show_source, show_table, use_theme
from lossbook.lab.results import record
from lossbook.lab.statistics import best_setting, equivalence, mean_interval, paired

__all__ = [
    "EncoderProjector",
    "Ledger",
    "accuracies",
    "accuracy",
    "best_setting",
    "choose_device",
    "cnn",
    "correct",
    "equivalence",
    "fit",
    "grid",
    "k_nearest_neighbours",
    "linear_probe",
    "load",
    "max_error",
    "mean_interval",
    "mlp",
    "paired",
    "record",
    "show",
    "show_source",
    "show_table",
    "use_theme",
]
