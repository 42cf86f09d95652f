"""`lt-detectron2 replay`, from a checkout that nobody installed."""

from subcommand import run

if __name__ == "__main__":
    run("replay")
