"""
Which method for which training set, and what was measured that speaks for it.

The rules know the counts only. They follow from the results on SynthLT, in docs/, which are read
and not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..data.repeat_factors import auto_threshold, class_repeat_factors
from ..statistics import MAX_COMMON_IMAGES, MAX_RARE_IMAGES, ClassStatistics
from .class_summary import group_sizes, imbalance_factor
from .runs import REPOSITORY

BALANCED_BELOW = 4.0
"""Imbalance factor under which classes count as balanced: a choice, not measured."""

RESULTS_PAGE = "docs/results_synthlt.md"
SECOND_STAGES_PAGE = "docs/results_second_stages.md"
PLAIN = "softmax"
LVIS_THRESHOLD = 0.001
SHORT = {"EPOCHS": 12.0, "MIN_ITERATIONS": 1000}
"""Of a second stage, as configs/own_data/second_stage has it."""


@dataclass(frozen=True)
class Evidence:
    """Rows of a page of results, by the text in their first column."""

    page: str
    rows: tuple[str, ...]

    def lines(self) -> list[str]:
        """The rows with the head of their table, and where they stand."""
        path = REPOSITORY / self.page
        if not path.is_file():
            return [f"measured in {self.page} of the repository: {', '.join(self.rows)}"]
        header, found = read_rows(path)
        lines = [f"measured on generated images ({self.page}):"]
        for row in self.rows:
            cells = [f"{n} {c}" for n, c in zip(header, found[row]) if n.startswith("AP")]
            lines.append(f"  {row}: {', '.join(cells)}")
        return lines


@dataclass(frozen=True)
class Advice:
    """
    What to train, and why.

    Args:
        method: a config of configs/own_data, without its ending.
        reasons: one sentence each.
        evidence: what was measured.
        settings: config keys and values that the method needs, beside those of the base.
        later: what to try next.
        warnings: what no method can mend.
    """

    method: str
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()
    settings: dict = field(default_factory=dict)
    later: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_rows(page: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Header and rows of the first table of a page, rows by their first cell."""
    header: list[str] = []
    rows: dict[str, list[str]] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not header:
                header = cells
            else:
                rows[cells[0]] = cells
        elif header:
            break
    return header, rows


def recommend(statistics: ClassStatistics, *, trained: bool = False) -> Advice:
    """
    The method to start with.

    Args:
        statistics: counts of the training set.
        trained: a plain detector for these classes is there already.
    """
    factor, sizes = imbalance_factor(statistics), group_sizes(statistics, present_only=True)
    present = statistics.image_count[statistics.image_count > 0]
    warnings = _warnings(statistics)
    if not factor >= BALANCED_BELOW:
        few = int(present.min()) <= MAX_COMMON_IMAGES if len(present) else True
        return Advice(
            PLAIN,
            (
                f"no long-tail method is warranted: the largest class has {factor:.3g} times the "
                "images of the smallest, which is about balanced",
                *(
                    (
                        "all classes have few images: more of them, and weights of COCO to start "
                        "from, help more than any loss",
                    )
                    if few
                    else ()
                ),
            ),
            warnings=warnings,
        )
    if int(present.min()) > MAX_COMMON_IMAGES:
        return Advice(
            PLAIN,
            (
                f"no long-tail method is warranted at first: every class has more than "
                f"{MAX_COMMON_IMAGES} images, though the largest has {factor:.3g} times those of "
                "the smallest",
                "look at the AP of each class; if small classes lag behind, correct the scores "
                "after training, which costs a minute and can be taken back",
            ),
            evidence=(Evidence(SECOND_STAGES_PAGE, ("softmax", "NorCal, gamma searched")),),
            later=("tools/calibrate.py --method NorCal on the trained detector",),
            warnings=warnings,
        )
    if trained:
        return Advice(
            "second_stage/crt",
            (
                f"{_tail(sizes)}, and a trained detector is there: a new classifier on it, with "
                "images drawn by class, costs a fraction of a training",
            ),
            evidence=(
                Evidence(
                    SECOND_STAGES_PAGE,
                    (
                        "softmax",
                        "softmax, continued (the control)",
                        "cRT",
                        "BAGS, train classifier",
                    ),
                ),
            ),
            settings={
                "DATALOADER": {"SAMPLER_TRAIN": "ClassAwareSampler"},
                "LONG_TAIL": {"TRAINABLE": ["classifier"], "REINIT": ["classifier"], "DATA": SHORT},
            },
            later=("second_stage/bags on the same detector, and second_stage/control to compare",),
            warnings=warnings,
        )
    if not sizes["rare"]:
        return Advice(
            "softmax_rfs",
            (
                f"{_tail(sizes)}: no class is rare, so showing the common ones more often is the "
                "least risk and costs nothing",
                _threshold_reason(statistics),
            ),
            evidence=(Evidence(RESULTS_PAGE, ("softmax", "softmax + RFS")),),
            settings=_repeating(),
            later=("softmax_cosine_rfs, if common classes still lag behind",),
            warnings=warnings,
        )
    return Advice(
        "softmax_cosine_rfs",
        (
            f"{_tail(sizes)}: a linear classifier gives frequent classes longer weight vectors, "
            "which rare ones lose against; a normalised (cosine) one cannot",
            "images of rare classes are repeated, which helped it more than a linear classifier",
            _threshold_reason(statistics),
        ),
        evidence=(
            Evidence(
                RESULTS_PAGE,
                (
                    *("softmax", "softmax + RFS", "softmax, normalised classifier"),
                    "softmax, normalised classifier + RFS",
                    *("EQL v2 + RFS", "softmax + GAP (ROG)", "Seesaw + RFS"),
                ),
            ),
        ),
        settings=_repeating(CLASSIFIER={"NAME": "CosineLinear"}),
        later=(
            "rog_softmax, if the classifier has to stay linear: it ranks the scores of rare "
            "classes among those of frequent ones",
            "SeesawLoss with the same classifier, for photographs: it is the published combination",
            f"softmax first, then second_stage/crt on it ({SECOND_STAGES_PAGE})",
        ),
        warnings=warnings,
    )


def _tail(sizes: dict[str, int]) -> str:
    return (
        f"{sizes['rare']} of {sum(sizes.values())} classes are rare (up to {MAX_RARE_IMAGES} "
        f"images) and {sizes['common']} common (up to {MAX_COMMON_IMAGES})"
    )


def _threshold_reason(statistics: ClassStatistics) -> str:
    threshold = auto_threshold(statistics)
    reason = (
        f"the repeat threshold is {threshold:.3g}, {threshold * statistics.num_images:.3g} images"
    )
    if float(class_repeat_factors(statistics, LVIS_THRESHOLD).max()) > 1:
        return reason
    lvis = f"{LVIS_THRESHOLD * statistics.num_images:.3g} images"
    return f"{reason}; LVIS's {LVIS_THRESHOLD} would mean {lvis} here and do nothing"


def _repeating(**settings: dict) -> dict:
    return {
        "DATALOADER": {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler"},
        "LONG_TAIL": {"REPEAT_THRESHOLD": "auto", **settings},
    }


def _warnings(statistics: ClassStatistics) -> tuple[str, ...]:
    warnings = []
    absent = int((statistics.image_count == 0).sum())
    if absent:
        warnings.append(f"{absent} classes have no image: no method can learn them")
    single = int((statistics.image_count == 1).sum())
    if single:
        warnings.append(
            f"{single} classes have one image: they cannot be both trained and tested; a few more "
            "images of them bring more than any method"
        )
    return tuple(warnings)
