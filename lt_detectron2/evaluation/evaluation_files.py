"""What an evaluation leaves in its folder, whether it can, and how long its parts take."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator

from ..errors import UserError
from ..files import replacing

logger = logging.getLogger(__name__)


DETECTIONS_FILE = "detections.npz"
RESULTS_FILE = "results.json"
PER_CATEGORY_FILE = "per_category.csv"
CURVES_FILE = "precision_recall.npz"
OUTCOMES_FILE = "outcomes_{task}.npz"


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Logs how long something took."""
    start = time.perf_counter()
    yield
    logger.info("%s in %.1f s", what, time.perf_counter() - start)


def make_writable(folder: str) -> None:
    """
    Makes a folder for results, if need be.

    Raises:
        UserError: files cannot be written there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with replacing(os.path.join(folder, ".writable")) as file:
            file.write("")
        os.remove(os.path.join(folder, ".writable"))
    except OSError as error:
        raise UserError(
            f"expected to write results to {folder}, which is not possible ({error}): choose "
            "another OUTPUT_DIR, or --output"
        ) from error
