"""What an evaluation computes beside the standard metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """
    The config node `LONG_TAIL.EVAL` is made from these names and defaults.

    Args:
        ap_fixed: AP-fixed and AP-pool (https://arxiv.org/abs/2102.01066) instead of the standard
            metrics: no cap per image, during inference neither, and one per category.
        max_dets_per_category: that cap, over the whole set.
        instance_bins: edges of AP_1, AP_2, ... by training objects, half-open [low, high); empty
            for none. In the place of the default come the `instance_bin_edges` of a set's metadata.
            Needs the statistics of the training set.
        boundary: boundary AP as a task of its own, beside "segm" (https://arxiv.org/abs/2103.16562).
        boundary_dilation: width of the boundary as a share of the image's diagonal.
        errors: tell kinds of errors apart and say what AP each of them costs, for boxes.
        bootstrap: samples of the images for intervals of the metrics; 0 for none.
        keep_unverified: keep detections whose category was not verified in their image. They do not
            count, but a file of all detections serves other annotations, caps and servers too.
        results_file: write a JSON file of results for evaluation servers; always done for a set
            without annotations.
        expand_predictions: Open Images only: copy detections to the classes above theirs, as some
            toolboxes do and the challenge does not.
        groups_count: Open Images only: whether a box around a group is an object to be found (the
            challenge) or something to ignore.
        workers: threads that encode masks beside inference; 0 encodes between images.
    """

    ap_fixed: bool = False
    max_dets_per_category: int = 10_000
    instance_bins: tuple[int, ...] = (10, 100, 1000)
    boundary: bool = False
    boundary_dilation: float = 0.02
    errors: bool = False
    bootstrap: int = 0
    keep_unverified: bool = False
    results_file: bool = False
    expand_predictions: bool = False
    groups_count: bool = True
    workers: int = 1

    def __post_init__(self):
        for name, least in (("bootstrap", 0), ("workers", 0), ("max_dets_per_category", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} expects a number >= {least}, got {getattr(self, name)}")
        edges = tuple(self.instance_bins)
        if any(low >= high for low, high in zip(edges, edges[1:])):
            raise ValueError(f"instance_bins expects rising edges, got {edges}: sort them")
        if not 0 < self.boundary_dilation < 1:
            raise ValueError(
                "boundary_dilation expects a share of the diagonal between 0 and 1, got "
                f"{self.boundary_dilation}"
            )
