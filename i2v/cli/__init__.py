"""The `i2v` command, and what its commands are made of."""


def main() -> None:
    """Run the command line of `sys.argv`. Imported only now: the checks of a start use this package without it."""
    from i2v.cli import commands

    commands.main()
