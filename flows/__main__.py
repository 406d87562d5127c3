"""python -m flows: the command line `recast`."""

from flows.cli import main

main()
