"""Matching and its folds: values by hand, and what the official package leaves undefined."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from lt_detectron2.evaluation import (
    Detections,
    GroundTruth,
    Protocol,
    groups_from_frequency,
    match,
    precision_recall,
    summarize,
)

from .small_set import AP_OF_CATEGORY_1, BOX, annotation, category, detection, image, small_set


def evaluate(dataset, results, iou_type="bbox", **protocol):
    ground_truth = GroundTruth.from_lvis(dataset, with_masks=iou_type == "segm")
    matches = match(
        ground_truth,
        Detections.from_results(results),
        iou_type=iou_type,
        protocol=Protocol(**protocol),
    )
    curves = precision_recall(matches)
    return matches, curves, summarize(curves, groups_from_frequency(ground_truth))


def one_image(annotations, **changes):
    return {
        "images": [image(1, **changes)],
        "annotations": annotations,
        "categories": [category(1), category(2)],
    }


def test_values_by_hand():
    matches, curves, numbers = evaluate(*small_set())
    assert curves.category_ap()[:2] == pytest.approx([AP_OF_CATEGORY_1, 0.0], abs=1e-12)
    assert numbers["AP"] == pytest.approx(AP_OF_CATEGORY_1 / 2, abs=1e-12)
    assert numbers["APr"] == pytest.approx(AP_OF_CATEGORY_1, abs=1e-12)
    assert numbers["APc"] == 0
    assert numbers["AR"] == 0.5
    assert matches.dropped["of unverified categories"] == 1


def test_nothing_to_measure_is_nan():
    _, curves, numbers = evaluate(*small_set())
    assert np.isnan(curves.category_ap()[2])
    assert np.isnan([numbers[name] for name in ("APf", "APs", "APl", "ARs", "ARl")]).all()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_score_zero_where_objects_are(iou_type):
    dataset, _ = small_set()
    _, _, numbers = evaluate(dataset, [], iou_type)
    assert numbers["AP"] == numbers["AR"] == numbers["APr"] == 0
    assert np.isnan(numbers["APf"])


def test_no_annotations_at_all():
    dataset = one_image([], neg_category_ids=[1])
    _, _, numbers = evaluate(dataset, [detection(1, 1, 0.5)])
    assert np.isnan(list(numbers.values())).all()


def test_annotation_with_id_zero_can_be_matched():
    _, _, numbers = evaluate(one_image([annotation(0, 1, 1)]), [detection(1, 1, 0.5)])
    assert numbers["AP"] == pytest.approx(1)


def test_detections_without_area_use_up_the_cap():
    flat = detection(1, 1, 0.9, [10.0, 10.0, 0.0, 40.0])
    dataset = one_image([annotation(1, 1, 1)])
    matches, _, numbers = evaluate(dataset, [flat, detection(1, 1, 0.5)], max_dets_per_image=1)
    assert numbers["AP"] == 0
    assert (matches.dropped["over the cap"], matches.dropped["without area"]) == (1, 1)
    # Not an error either.
    _, _, numbers = evaluate(dataset, [flat, detection(1, 1, 0.5)], max_dets_per_image=2)
    assert numbers["AP"] == pytest.approx(1)


def test_cap_keeps_the_first_of_equal_scores_over_categories():
    dataset = one_image([annotation(1, 1, 1), annotation(2, 1, 2)])
    results = [detection(1, 2, 0.5), detection(1, 1, 0.5)]
    _, curves, _ = evaluate(dataset, results, max_dets_per_image=1)
    assert curves.category_ap() == pytest.approx([0, 1])


def test_unmatched_detections_of_a_category_that_is_not_exhaustive_are_no_errors():
    elsewhere = detection(1, 1, 0.9, [70.0, 50.0, 40.0, 40.0])
    results = [elsewhere, detection(1, 1, 0.5)]
    _, _, numbers = evaluate(one_image([annotation(1, 1, 1)]), results)
    assert numbers["AP"] == pytest.approx(1 / 2)
    dataset = one_image([annotation(1, 1, 1)], not_exhaustive_category_ids=[1])
    _, _, numbers = evaluate(dataset, results)
    assert numbers["AP"] == pytest.approx(1)


def test_of_equal_overlap_the_later_annotation_is_taken():
    # The second detection overlaps only the first annotation, which therefore must be left.
    left, right = [10.0, 10.0, 30.0, 40.0], [20.0, 10.0, 30.0, 40.0]
    between, second = [15.0, 10.0, 30.0, 40.0], [8.0, 10.0, 30.0, 40.0]
    results = [detection(1, 1, 0.9, between), detection(1, 1, 0.8, second)]
    dataset = one_image([annotation(1, 1, 1, left), annotation(2, 1, 1, right)])
    _, curves, _ = evaluate(dataset, results)
    assert curves.recall[0, 0, 0] == 1
    dataset["annotations"].reverse()
    _, curves, _ = evaluate(dataset, results)
    assert curves.recall[0, 0, 0] == 0.5


def test_an_annotation_that_counts_is_preferred_to_a_closer_ignored_one():
    close = [12.0, 10.0, 40.0, 40.0]
    dataset = one_image([annotation(1, 1, 1, close), annotation(2, 1, 1, BOX, ignore=1)])
    matches, _, numbers = evaluate(dataset, [detection(1, 1, 0.9)])
    assert numbers["AP50"] == pytest.approx(1)
    # At 0.95 only the ignored one is near enough: neither right nor wrong.
    assert matches.matched[0, -1, 0] and not matches.right[0, -1, 0]


def test_order_of_images_does_not_matter():
    dataset, results = small_set()
    first, _, _ = evaluate(dataset, results)
    shuffled, _, _ = evaluate(
        {**dataset, "images": dataset["images"][::-1]}, [results[row] for row in (3, 2, 0, 1)]
    )
    np.testing.assert_array_equal(first.scores, shuffled.scores)
    np.testing.assert_array_equal(first.right, shuffled.right)


def test_unknown_image():
    dataset, results = small_set()
    with pytest.raises(ValueError, match="3 annotated images, got 1 for unknown image ids .*77"):
        evaluate(dataset, [*results, detection(77, 1, 0.5)])


def test_unknown_category_is_left_out_and_counted():
    dataset, results = small_set()
    matches, _, numbers = evaluate(dataset, [*results, detection(1, 99, 0.99)])
    assert matches.dropped["of unknown categories"] == 1
    assert numbers["APr"] == pytest.approx(AP_OF_CATEGORY_1, abs=1e-12)


def test_annotations_without_categories():
    dataset, results = small_set()
    dataset = {**dataset, "categories": [], "annotations": []}
    matches, _, numbers = evaluate(dataset, results)
    assert matches.dropped["of unknown categories"] == len(results) and not len(matches.rows)
    assert np.isnan(numbers["AP"])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite(value):
    dataset, results = small_set()
    results[2]["bbox"] = [0, 0, float(value), 1]
    with pytest.raises(ValueError, match=f"finite boxes, detection 2 .image .. has .*{value}"):
        evaluate(dataset, results)
    results[1]["score"] = float(value)
    with pytest.raises(ValueError, match=f"finite scores, detection 1 .image 1. has {value}"):
        evaluate(dataset, results)


def test_negative_sides(caplog):
    dataset, results = small_set()
    evaluate(dataset, results)
    assert not caplog.records
    results[1]["bbox"] = [5, 5, 4, -4]
    evaluate(dataset, results)
    assert (
        "1 boxes have a negative width or height (the first is that of detection 1)" in caplog.text
    )


def test_segm_needs_masks_of_the_right_size():
    dataset, results = small_set()
    with pytest.raises(ValueError, match="expect detections with masks"):
        evaluate(dataset, results, "segm")
    for result in results:
        result["segmentation"] = coco_mask.encode(np.zeros((50, 50), np.uint8, order="F"))
    with pytest.raises(ValueError, match=r"has \[50, 50\] instead of \[100, 120\]"):
        evaluate(dataset, results, "segm")
    boxes_only = GroundTruth.from_lvis(dataset)
    with pytest.raises(ValueError, match="with_masks=True"):
        match(boxes_only, Detections.from_results(results), iou_type="segm")


def test_bad_arguments():
    dataset, results = small_set()
    with pytest.raises(ValueError, match="one of .*'bbox', 'segm'.*got 'boxes'"):
        evaluate(dataset, results, "boxes")
    with pytest.raises(ValueError, match="positive number of detections, got 0: pass None"):
        Protocol(max_dets_per_image=0)
    _, curves, _ = evaluate(dataset, results)
    with pytest.raises(ValueError, match="'all', 'small', 'medium', 'large'.*got 'tiny'"):
        curves.average_precision(area="tiny")
    with pytest.raises(ValueError, match="IoU thresholds .* got 0.3"):
        curves.average_precision(iou=0.3)
