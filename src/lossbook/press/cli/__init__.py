"""The command line: a file a command or two, their common options, and what is printed."""
