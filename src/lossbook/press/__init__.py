"""From notebooks to a book. Each room uses those below it, and none above.

    cli          the command `lossbook`: a file a command or two, their options, what is printed
    extensions   Sphinx: docstrings, formulas, glossary, sidebar, what an edit reaches, theme
    site         rendering the site, checking its pages, serving it, links that lead elsewhere
    pages        the source of the book: pages of papers, gallery, scoreboard, reference, ...
    findings     what runs found: ledgers, tables, figures of sweeps, records, comparisons
    runs         parameters, grids, keys, kernels and limits, one run, many runs side by side
    project, progress, files, errors    which papers there are; progress; whole files and locks; what goes wrong

`lossbook.formats` is what the notebooks' bench, `lossbook.lab`, and these rooms say to each other.
"""
