"""`python -m coordinator` is `headwater`."""

from coordinator.cli import main

main()
