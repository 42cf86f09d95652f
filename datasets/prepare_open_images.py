"""
Lists the sizes of the images of Open Images, which its annotations do not tell.

    python datasets/prepare_open_images.py train val

Boxes are given as shares of width and height. Without this list every image is opened once more
for its size; with it, training and sampling start at once. Only headers are read: some thousand
images a second on a local disk. The list appears complete or not at all.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import DatasetCatalog

from lt_detectron2.data.datasets.open_images import SPLITS, challenge_files
from lt_detectron2.data.datasets.open_images_files import read_image_size
from lt_detectron2.errors import UserError
from lt_detectron2.progress import counter

IMAGES_AT_A_TIME = 10_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("splits", nargs="+", choices=SPLITS)
    parser.add_argument("--threads", type=int, default=8, help="that read (default: 8)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads expects at least 1, got {options.threads}")
    try:
        for split in options.splits:
            path = write_sizes(split, options.threads)
            print(f"{split}: wrote {path}")
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write the list ({error})\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: interrupted, no unfinished file was left\n")


def write_sizes(split: str, threads: int) -> Path:
    """Reads the sizes of all images of a split and writes the list; returns its path."""
    records = DatasetCatalog.get(f"openimages_challenge2019_{split}")
    target = Path(challenge_files(split).sizes)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with (
            open(part, "w", encoding="ascii") as file,
            ThreadPoolExecutor(threads) as pool,
            counter(split, unit="images", total=len(records)) as progress,
        ):
            file.write("ImageID,Width,Height\n")
            # In portions: a pool takes all of its work at once.
            for start in range(0, len(records), IMAGES_AT_A_TIME):
                indices = range(start, min(start + IMAGES_AT_A_TIME, len(records)))
                paths = map(records.image_path, indices)
                for index, (width, height) in zip(indices, pool.map(read_image_size, paths)):
                    file.write(f"{records.image_ids[index].decode()},{width},{height}\n")
                    progress.update()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    main()
