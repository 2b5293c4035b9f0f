"""`python -P -m agent`: the same command line, for detached children."""

from agent.cli import main

main()
