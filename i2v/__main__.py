"""`python -m i2v` is the `i2v` command."""

from i2v.cli.commands import main

main()
