"""`python -m lossbook.press` is the command `lossbook`."""

from lossbook.press.cli import main

main()
