"""`lt-detectron2 example-data`, from a checkout that nobody installed."""

from subcommand import run

if __name__ == "__main__":
    run("example-data")
