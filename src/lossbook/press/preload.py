"""What the process from which kernels fork has imported: importing this module is all that it does."""

import gc
import os
from importlib import import_module

# Before the numerical libraries load: a pool of threads does not survive a fork.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

for name in (
    "torch",
    "torch.func",
    "pandas",
    "scipy.stats",
    "seaborn",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "lossbook.lab",
):
    import_module(name)

# Collecting garbage would write into every page that children share with their parent.
gc.collect()
gc.freeze()
