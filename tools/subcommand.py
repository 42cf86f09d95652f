"""What the scripts that are named after the subcommands of `lt-detectron2` share."""

import sys
from pathlib import Path


def run(name: str) -> None:
    """End with the exit status of a subcommand of this checkout, given the words of the script."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from lt_detectron2.commands.command_line import main

    sys.exit(main([name, *sys.argv[1:]]))
