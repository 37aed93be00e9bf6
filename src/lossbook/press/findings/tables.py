"""What runs recorded, as tidy tables: results (`lab.record`) and ledgers, one row a thing and run."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbformat import NotebookNode

from lossbook.formats import RESULTS_TYPE
from lossbook.press.files import write_whole
from lossbook.press.findings import ledgers

if TYPE_CHECKING:
    import pandas as pd

# What stands before a table's own columns.
HEAD = ("run", "part", "slug", "profile", "table")


def results(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The rows of all tables that a notebook recorded, each with its `table`."""
    rows = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if table := output.get("data", {}).get(RESULTS_TYPE):
                # A column may be called like one of ours.
                columns = [f"result.{name}" if name in HEAD else str(name) for name in table["columns"]]
                rows += [{"table": table["name"], **dict(zip(columns, row, strict=True))} for row in table["data"]]
    return rows


def gather(
    runs: Iterable[tuple[str, NotebookNode]], parameters: Sequence[str]
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Results and ledger entries of many runs, given by their names, with their parameters as `param.<name>`."""
    recorded, found = [], []
    for name, notebook in runs:
        run = notebook.metadata["lossbook"]["run"]
        values = {f"param.{key}": run["parameters"][key] for key in parameters}
        head = {"run": name, "profile": run["profile"], **values}
        recorded += [{**head, **row} for row in results(notebook)]
        found += [{**head, **entry} for entry in ledgers.of(notebook)]
    head = ["run", "profile", *(f"param.{key}" for key in parameters)]
    return frame(recorded, [*head, "table"]), frame(found, [*head, "kind", "id", "verdict"])


def frame(rows: Sequence[dict[str, Any]], columns: Iterable[str] = ()) -> "pd.DataFrame":
    """Rows as a frame whose columns have one type each: what is of several kinds becomes text."""
    import pandas as pd

    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    made = {name: _column([row.get(name) for row in rows]) for name in names}
    return pd.DataFrame(made, columns=list(names))


def _column(values: list[Any]) -> "pd.Series":
    import pandas as pd

    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    kinds = {type(value) for value in values} - {type(None)}
    # Integers stay integers though some are missing.
    kind = {frozenset([bool]): "boolean", frozenset([int]): "Int64"}.get(frozenset(kinds))
    if kind is None and kinds and kinds <= {int, float}:
        kind = "float64"
    if kind is None:
        kind, values = "str", [value if value is None or isinstance(value, str) else str(value) for value in values]
    try:
        return pd.Series(values, dtype=kind)
    except OverflowError:
        return pd.Series([None if value is None else str(value) for value in values], dtype="str")


def write(folder: Path, name: str, table: "pd.DataFrame") -> list[Path]:
    """Write a table as Parquet and as CSV; each file is written whole or not at all."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_whole(folder / f"{name}.parquet", buffer.getvalue())
    write_whole(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    return [folder / f"{name}.parquet", folder / f"{name}.csv"]


def verdicts(ledger: "pd.DataFrame") -> dict[str, str]:
    """How many entries have which verdict, in words, for each run."""
    return {
        str(run): ", ".join(
            f"{number} {verdict}" for verdict, number in group["verdict"].value_counts(sort=False).items()
        )
        for run, group in ledger.groupby("run", sort=False)
    }


def means(results: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """The mean of every numeric result for each run, by its name and, where rows are of several kinds, their kind.

    What is the same everywhere comes last.
    """
    found: dict[str, dict[str, float]] = {}
    several = results["table"].nunique() > 1
    for table, rows in results.groupby("table", sort=False):
        kind = kind_of(rows)
        for column in numeric(rows):
            name = f"{table}.{column}" if several else column
            for group, part in rows.groupby(kind, sort=False) if kind else [("", rows)]:
                each = part.groupby("run", sort=False)[column].mean()
                found[f"{name}\n{group}" if kind else name] = {str(run): float(mean) for run, mean in each.items()}
    return dict(sorted(found.items(), key=lambda item: len(set(item[1].values())) == 1))


def own(rows: "pd.DataFrame") -> list[str]:
    """The columns that the notebook recorded, as far as there is something in them."""
    return [
        name
        for name in map(str, rows)
        if name not in HEAD and not name.startswith("param.") and rows[name].notna().any()
    ]


def numeric(rows: "pd.DataFrame") -> list[str]:
    """The columns with numbers that mean something on average."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return [
        name
        for name in own(rows)
        if name != "seed" and is_numeric_dtype(rows[name].dtype) and not is_bool_dtype(rows[name].dtype)
    ]


def kind_of(rows: "pd.DataFrame") -> str | None:
    """The first column of words that tells rows of few kinds apart, such as the method."""
    from pandas.api.types import is_string_dtype

    return next((name for name in own(rows) if is_string_dtype(rows[name]) and 2 <= rows[name].nunique() <= 6), None)
