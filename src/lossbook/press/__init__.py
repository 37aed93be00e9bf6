"""From notebooks to a book: parameters, runs, pages, the site and the command line.

`project` finds the papers, `parameters` checks what a run is given, `runs` executes a notebook, `entries` reads
what it found, `pages` assembles the source of the book, `site` renders it. `commands` is the command line.
"""
