"""Tidy results, kept in the notebook that computed them."""

import json

import pandas as pd

from lossbook.formats import RESULTS_TYPE

__all__ = ["record"]


def record(frame: pd.DataFrame, name: str = "results") -> None:
    """Keep a frame in the notebook's output, for sweeps and records to gather.

    Args:
        frame: one row for each run and setting, one column for each quantity; the index is left out. Numbers that are
            not finite become null.
        name: of the table, if a notebook records several.

    Raises:
        ValueError: if two columns have the same name.

    Examples:
        >>> import pandas as pd
        >>> lab.record(pd.DataFrame({"seed": [0, 1], "accuracy": [81.0, 82.5]}))
        results: 2 rows of seed, accuracy, kept with this run
    """
    from IPython.display import display

    if not frame.columns.is_unique:
        raise ValueError(f"frame: expected columns of different names, got {list(frame.columns)}")
    # pandas knows how to write its types as JSON; full precision, so that equal runs are equal here.
    table = json.loads(frame.to_json(orient="split", index=False, double_precision=15))
    rows = f"{len(frame):,} row{'' if len(frame) == 1 else 's'}"
    text = f"{name}: {rows} of {', '.join(map(str, frame.columns))}, kept with this run"
    display({RESULTS_TYPE: {"name": name, **table}, "text/plain": text}, raw=True)
