"""Samples of images as weights, against evaluating the images that the weights repeat."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from lt_detectron2.errors import UserError
from lt_detectron2.evaluation import (
    Detections,
    GroundTruth,
    Outcomes,
    Protocol,
    bootstrap,
    groups_from_frequency,
    intervals,
    match,
    precision_recall,
)
from lt_detectron2.evaluation.bootstrap import Interval, WeightedAP
from lt_detectron2.evaluation.compare import compare, compare_categories, describe_groups, main
from lt_detectron2.evaluation.groups import CategoryGroups

from .official import random_set
from .small_set import AP_OF_CATEGORY_1, annotation, category, detection, image, small_set


def case(seed, noise=0.0):
    """A random set whose scores differ, and its results."""
    rng = np.random.default_rng(seed)
    dataset, results = random_set(rng, "bbox")
    for rank, result in enumerate(results):
        result["score"] = rng.random() + 1e-6 * rank
    return dataset, results


def outcomes_of(dataset, results, cap=None):
    index = GroundTruth.from_lvis(dataset)
    matches = match(
        index, Detections.from_results(results), protocol=Protocol(max_dets_per_image=cap)
    )
    return Outcomes.from_matches(index, matches, groups_from_frequency(index)), matches


def repeated(dataset, results, weights):
    """The set with image i as often as its weight says, under ids of their own."""
    again = {**dataset, "images": [], "annotations": []}
    results_again = []
    ids = sorted(old["id"] for old in dataset["images"])
    for old in dataset["images"]:
        for copy_number in range(weights[ids.index(old["id"])]):
            new_id = 100 * old["id"] + copy_number
            again["images"].append({**old, "id": new_id})
            for source, target in (
                (dataset["annotations"], again["annotations"]),
                (results, results_again),
            ):
                for entry in source:
                    if entry["image_id"] == old["id"]:
                        target.append({**copy.deepcopy(entry), "image_id": new_id})
    for number, entry in enumerate(again["annotations"]):
        entry["id"] = number
    return again, results_again


@pytest.mark.parametrize("seed", range(8))
def test_weights_are_repetitions(seed):
    dataset, results = case(seed)
    fold = WeightedAP(outcomes_of(dataset, results)[0])
    rng = np.random.default_rng(seed)
    for weights in (
        np.ones(len(dataset["images"]), int),
        rng.integers(0, 4, len(dataset["images"])),
    ):
        _, matches = outcomes_of(*repeated(dataset, results, weights))
        expected = precision_recall(matches).precision[..., 0].mean(axis=1)
        np.testing.assert_allclose(fold(weights), expected, rtol=0, atol=1e-10)


def test_recalls_that_floating_point_misses():
    # 0.29 * 100 is less than 29, 0.57 * 100 as well.
    boxes = [[float(20 * (n % 20)), float(20 * (n // 20)), 10.0, 10.0] for n in range(100)]
    dataset = {
        "images": [image(1, height=200, width=400)],
        "annotations": [annotation(n + 1, 1, 1, box) for n, box in enumerate(boxes)],
        "categories": [category(1)],
    }
    results = []
    for n, box in enumerate(boxes):
        results.append(detection(1, 1, 1 - n / 200, box))
        results += [detection(1, 1, 1 - n / 200 - 1e-3, [n / 9, 190.0, 5.0, 5.0])] * (n % 3)
    outcomes, matches = outcomes_of(dataset, results)
    expected = precision_recall(matches).precision[..., 0].mean(axis=1)
    np.testing.assert_allclose(WeightedAP(outcomes)(np.ones(1)), expected, rtol=0, atol=1e-12)


def test_outcomes_are_bits():
    outcomes, _ = outcomes_of(*small_set())
    # By falling score: right at every threshold, wrong at every one, right again.
    every = 2**10 - 1
    assert outcomes.right.tolist() == [every, 0, every]
    assert outcomes.wrong.tolist() == [0, every, 0]
    assert outcomes.image.tolist() == [0, 0, 1]
    assert [counts.tolist() for counts in outcomes.annotation_counts()] == [[2, 1, 0]] * 2
    again = Outcomes.from_columns(outcomes.columns())
    for name, column in outcomes.columns().items():
        np.testing.assert_array_equal(again.columns()[name], column)


def test_counts_of_annotations():
    dataset, results = case(1)
    outcomes, _ = outcomes_of(dataset, results)
    index = GroundTruth.from_lvis(dataset)
    images, annotations = outcomes.annotation_counts()
    np.testing.assert_array_equal(images, index.image_count)
    np.testing.assert_array_equal(annotations, index.instance_count)
    assert (images < annotations).any()


def test_intervals_surround_the_metric():
    dataset, results = case(4)
    outcomes, _ = outcomes_of(dataset, results)
    found = intervals(outcomes, 200)
    assert list(found) == ["AP", "AP50", "AP75", "APr", "APc", "APf"]
    ap = found["AP"]
    assert ap.low < ap.value < ap.high
    samples = bootstrap([outcomes], 200)[0]["AP"]
    assert ap.bias == pytest.approx(samples.mean() - ap.value)
    assert ap.high == pytest.approx(np.quantile(samples, 0.975) - ap.bias)
    assert ap.standard_error == pytest.approx(samples.std())


def test_samples_do_not_depend_on_their_number_or_threads():
    outcomes, _ = outcomes_of(*case(4))
    few = bootstrap([outcomes], 10, seed=3, num_threads=1)[0]["AP"]
    many = bootstrap([outcomes], 20, seed=3, num_threads=3)[0]["AP"]
    np.testing.assert_array_equal(few, many[:10])
    assert not np.array_equal(few, bootstrap([outcomes], 10, seed=4)[0]["AP"])


def test_nothing_to_measure():
    dataset, results = small_set()
    outcomes, _ = outcomes_of(dataset, results)
    assert np.isnan(intervals(outcomes, 5)["APf"].value)
    assert np.isnan(Interval.of(0.5, np.array([np.nan])).low)
    empty, _ = outcomes_of(dataset, [])
    assert intervals(empty, 5)["AP"].high == 0


def test_a_run_does_not_differ_from_itself_and_errors_make_it_worse():
    dataset, results = case(4)
    first, _ = outcomes_of(dataset, results)
    same = compare(first, first, 20)["AP"]
    assert (same.difference.value, same.difference.standard_error) == (0, 0)
    wrong = [{**r, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 2.0} for r in results]
    second, _ = outcomes_of(dataset, results + wrong)
    change = compare(first, second, 50)["AP"]
    assert change.second < change.first
    assert change.difference.value == pytest.approx(change.second - change.first)
    assert change.share_better < 0.5


def test_command_line(tmp_path, capsys):
    dataset, results = small_set()
    worse = [{**r, "score": 1 - r["score"]} for r in results]
    for name, detections in (("first", results), ("second", worse)):
        folder = tmp_path / name / "inference"
        folder.mkdir(parents=True)
        np.savez(folder / "outcomes_bbox.npz", **outcomes_of(dataset, detections)[0].columns())
    output = tmp_path / "comparison.json"
    runs = [str(tmp_path / name) for name in ("first", "second")]
    main([*runs, "--samples", "20", "--output", str(output)])
    text = capsys.readouterr().out
    assert f"| AP     | {50 * AP_OF_CATEGORY_1:.2f} |" in text
    assert "groups from the evaluation file's 'frequency'" in text
    content = json.loads(output.read_text())
    assert content["AP"]["first"] == pytest.approx(50 * AP_OF_CATEGORY_1)
    assert content["APf"]["difference"]["value"] is None

    with pytest.raises(SystemExit, match="error: .*outcomes_segm.npz, found no such file"):
        main([*runs, "--task", "segm"])
    other, _ = outcomes_of(dataset, results, cap=2)
    np.savez(tmp_path / "other.npz", **other.columns())
    with pytest.raises(SystemExit, match="error: expected two runs with the same caps"):
        main([runs[0], str(tmp_path / "other.npz")])
    np.savez(tmp_path / "other.npz", scores=np.zeros(2))
    with pytest.raises(SystemExit, match="error: .*holds something else"):
        main([runs[0], str(tmp_path / "other.npz")])
    for arguments, message in (
        (("--samples", "0"), "at least one sample of the images, got 0"),
        (("--seed", "-1"), "a seed of at least 0, got -1"),
    ):
        with pytest.raises(SystemExit, match=f"error: expected {message}"):
            main([*runs, *arguments])


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_outcomes_that_are_cut_short(share, tmp_path):
    path = tmp_path / "outcomes_bbox.npz"
    np.savez(path, **outcomes_of(*small_set())[0].columns())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"outcomes_bbox.npz, it is damaged .*: pass a file"):
        Outcomes.load(str(path))


def test_both_runs_are_averaged_over_the_same_groups():
    outcomes, _ = outcomes_of(*case(1))
    count = outcomes.num_categories
    groups = CategoryGroups(("r", "c", "f"), np.arange(count) % 3, "a training")
    outcomes = replace(outcomes, partitions=(groups,))
    turned = CategoryGroups(groups.names, (groups.index + 1) % 3, "another training")
    bins = CategoryGroups(("_1", "_2"), np.arange(count) % 2, "a training")
    unknown = CategoryGroups(groups.names, np.full(count, -1), "nowhere: no group is known")
    more, other, none = (
        replace(outcomes, partitions=p) for p in ((groups, bins), (turned,), (unknown,))
    )
    for first, second, whose, source in (
        (outcomes, outcomes, None, groups.source),
        (outcomes, other, "first", groups.source),
        (other, outcomes, "first", "another training"),
        (more, outcomes, "first", groups.source),
        (outcomes, more, "second", groups.source),
        (none, outcomes, "second", groups.source),
    ):
        found, categories = compare_categories(first, second, 5)
        # The same detections: whatever the groups, no metric may differ.
        for name, comparison in found.items():
            np.testing.assert_equal(comparison.first, comparison.second, err_msg=name)
        assert ("AP_1" in found) == (first is more or second is more)
        assert not np.isnan(found["APr"].first) and len(categories) == count
        lines = describe_groups(first, second)
        assert lines[0] == f"groups from {source}"
        assert (f"those of the {whose} are used" in lines[-1]) == (whose is not None)
