"""`python -m lossbook.press` is the command `lossbook`."""

from lossbook.press.cli.main import main

main()
