"""Stored runs that nobody needs any more."""

from typing import Annotated

import typer

from lossbook.press.cli.console import notes, show, table
from lossbook.press.cli.options import app
from lossbook.press.project import Project


@app.command()
def prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove stored runs that no page shows, no record names and no command would take up again."""
    from lossbook.press import files
    from lossbook.press.findings import records
    from lossbook.press.runs import prune as pruning

    project: Project = context.obj.project
    slugs = {path.parent.parent.name for path in (project.root / "records").glob(f"*/*/{records.RUN}")}
    with files.locked(project.output):
        recorded = [record.run.get("key") or {} for slug in sorted(slugs) for record in records.of(project, slug)]
        found = pruning.unused(project, recorded)
        sizes = [path.stat().st_size for path in found]
        if found:
            rows = table("stored run", "bytes")
            for path, size in zip(found, sizes, strict=True):
                rows.add_row(project.short(path), f"{size:,}")
            show(rows)
        if not dry_run:
            pruning.remove(found)
    what = f"{len(found)} stored run{'' if len(found) == 1 else 's'}, {sum(sizes):,} bytes"
    typer.echo(f"would remove {what}" if dry_run else f"removed {what}")
    if found and dry_run:
        notes.print("nothing was removed: without --dry-run, it is")
