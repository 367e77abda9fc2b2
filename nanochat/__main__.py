"""`python -m nanochat` is the same as `nanochat`."""

from nanochat.cli import main

main()
