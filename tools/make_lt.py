"""`lt-detectron2 make-lt`, from a checkout that nobody installed."""

from subcommand import run

if __name__ == "__main__":
    run("make-lt")
