"""`python -m lt_detectron2` is `lt-detectron2`."""

import sys

from .commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
