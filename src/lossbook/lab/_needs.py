"""What the bench needs beside the library: looked for before any of it is imported."""

from lossbook._extras import require

require(
    "IPython",
    "matplotlib",
    "pandas",
    "pooch",
    "scipy",
    "seaborn",
    "sklearn",
    "tqdm",
    extra="lab",
    by="the bench, lossbook.lab,",
)
