"""``python -m lltopo``: the command line where no script of that name is installed."""

from lltopo.cli import main

main()
