"""A made-up project of trivial notebooks, which import what all notebooks import and draw a figure."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]

NOTEBOOK = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Trivial NUMBER

# %% tags=["parameters"]
seed: int = 0  # of the numbers drawn

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch

# %%
generator = torch.Generator().manual_seed(seed + NUMBER)
frame = pd.DataFrame(torch.randn(100, 2, generator=generator), columns=["x", "y"])

# %%
sns.set_theme()
figure, axes = plt.subplots()
sns.scatterplot(frame, x="x", y="y", ax=axes)
plt.show()
"""


def project(root: Path, notebooks: int) -> Path:
    """Write the project into a folder; returns it."""
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "intro.md").write_text("# Made up\n")
    folder = root / "notebooks" / "trivial"
    folder.mkdir(parents=True)
    for number in range(notebooks):
        (folder / f"trivial_{number}.py").write_text(NOTEBOOK.replace("NUMBER", str(number)))
    return root
