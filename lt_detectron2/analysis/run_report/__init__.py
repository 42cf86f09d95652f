"""
The report of a run: report.md and report.html in its output folder.

    lt-detectron2 report output/softmax

Made from what the run has left there, and from the images of its validation set for the examples.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from . import sections
from .document import Block, Document, Remark, Section, write_document
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

SECTIONS: dict[str, Callable[[RunFolder], list[Block]]] = {
    "Results": sections.results,
    "Worst confusions": sections.confusions,
    "Examples": sections.examples,
    "Training": sections.training,
    "Data": sections.data,
    "Config": sections.config,
    "Reproduce": sections.reproduction,
}


def write_report(folder: str | Path) -> tuple[Path, Path]:
    """
    Write report.md and report.html anew; returns their paths.

    A section that cannot be made (the validation set is not on this machine, say) says why.

    Raises:
        UserError: the folder is not that of a run, or cannot be written.
    """
    run = RunFolder(Path(folder).resolve())
    try:
        (run.path / sections.FIGURES).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    document = Document(
        title=run.path.name,
        subtitle=sections.subtitle(run),
        lead=_blocks("numbers", sections.lead, run),
        sections=[Section(title, _blocks(title, make, run)) for title, make in SECTIONS.items()],
    )
    return write_document(document, run.path)


def leave_report(folder: str | Path) -> None:
    """:func:`write_report` at the end of a training, which it must not make fail."""
    start = time.perf_counter()
    try:
        _, page = write_report(folder)
    except Exception as error:
        logger.warning(
            "The report could not be written (%s); all else is there. `lt-detectron2 report %s` "
            "tries again.",
            error,
            folder,
            exc_info=not isinstance(error, UserError),
        )
        return
    logger.info("Report in %.1f s: %s", time.perf_counter() - start, page)


def _blocks(title: str, make: Callable[[RunFolder], list[Block]], run: RunFolder) -> list[Block]:
    try:
        return make(run)
    except UserError as error:
        return [Remark(f"Not shown: {error}.")]
    except Exception as error:  # one part must not cost the others
        logger.warning("%s of the report could not be made", title, exc_info=True)
        return [Remark(f"Could not be made ({type(error).__name__}: {error}).")]
