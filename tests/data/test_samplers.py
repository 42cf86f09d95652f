"""Samplers: recorded index streams, expectations, processes, resuming, classes without images."""

import math
from itertools import islice

import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.testing import assert_close

from lt_detectron2.data import samplers
from lt_detectron2.data.image_classes import ImageClasses
from lt_detectron2.data.repeat_factors import (
    class_repeat_factors,
    image_repeat_factors,
    repetitions,
)
from lt_detectron2.data.samplers import (
    ClassAwareSampler,
    ClassPowerSampler,
    EpisodicSampler,
    InverseFrequencySampler,
    RepeatFactorSampler,
)
from lt_detectron2.errors import DatasetError
from tests.data.object_tables import images_of_table
from tests.golden import load_golden
from tests.parity import compare

THRESHOLDS = (0.001, 0.05, 0.2)

# Class 2 occurs nowhere, image 4 holds nothing.
MATRIX = torch.tensor(
    [[3, 0, 0, 1], [1, 1, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 4, 0, 0]]
)
IMAGES = images_of_table(MATRIX)

SAMPLERS = {
    "RepeatFactorSampler": lambda images, seed: RepeatFactorSampler(images, seed, 0.5),
    "ClassAwareSampler": ClassAwareSampler,
    "ClassAwareSampler, mmdet": lambda i, s: ClassAwareSampler(i, s, draw="mmdet"),
    "ClassAwareSampler, decoupling": lambda i, s: ClassAwareSampler(i, s, draw="decoupling"),
    "InverseFrequencySampler": InverseFrequencySampler,
    "ClassPowerSampler": ClassPowerSampler,
    "ClassPowerSampler, progressive": lambda i, s: ClassPowerSampler(
        i, s, 60, power=1.0, final_power=0.0
    ),
    "EpisodicSampler": lambda i, s: EpisodicSampler(i, s, classes_per_episode=3),
}


def take(sampler, number):
    return list(islice(sampler.stream(), number))


def recorded():
    golden = load_golden("samplers")
    return golden, images_of_table(torch.as_tensor(golden["image_cat_matrix"]))


# ---- recorded factors and streams


def factors_of(images, threshold, **kwargs):
    class_factors = class_repeat_factors(images.statistics(), threshold, **kwargs)
    return image_repeat_factors(images, class_factors)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_golden_repeat_factors(threshold):
    golden, images = recorded()
    factors = factors_of(images, threshold)

    def check(array, actual):
        compare("RepeatFactorSampler", f"samplers/{array}", actual, golden[array])

    check(f"d2_rf_t{threshold}", factors)
    check(f"mmdet2_cbd_rf_t{threshold}", factors)
    sampler = RepeatFactorSampler(images, 42, threshold)
    times = repetitions(sampler.factors, generator=sampler.generator())
    check(f"d2_epoch0_noshuffle_seed42_t{threshold}", indices(times))
    check(f"d2_stream600_seed42_t{threshold}", take(sampler, 600))
    for rounding in ("ceil", "round", "floor"):
        check(
            f"mmdet2_cbd_indices_t{threshold}_{rounding}", indices(repetitions(factors, rounding))
        )
    if threshold == 0.001:
        return
    times = repetitions(factors, "official_bags")
    check(f"bags_rfs_extra_t{threshold}", times - 1)
    # The recorded epoch is padded to whole batches of 2 of one aspect ratio by repeating.
    padding = torch.as_tensor(golden[f"bags_rfs_multiplicity_t{threshold}"]) - times
    assert (padding >= 0).all() and padding.sum() <= 2


def indices(times):
    return torch.arange(len(times)).repeat_interleave(times)


def test_golden_repeat_factors_without_square_root():
    golden, images = recorded()
    for threshold in (0.05, 0.2):
        array = f"d2head_rf_nosqrt_t{threshold}"
        factors = factors_of(images, threshold, exponent=1.0)
        compare("RepeatFactorSampler", f"samplers/{array}", factors, golden[array])


def test_golden_repeat_factors_with_an_image_without_objects():
    golden, images = recorded()
    matrix = torch.as_tensor(golden["image_cat_matrix"])
    padded = images_of_table(torch.cat([matrix[:5], matrix[:1] * 0, matrix[5:]]))
    array = "d2_rf_with_empty_t0.2"
    factors = factors_of(padded, 0.2)
    compare("RepeatFactorSampler", f"samplers/{array}", factors, golden[array])
    # Detic's weights are factors rescaled to the size of each data set.
    array = "detic_multi_rfs_weights_t0.2"
    factors = factors_of(images, 0.2)
    weights = factors * len(factors) / factors.sum()
    compare("RepeatFactorSampler", f"samplers/{array}", weights, golden[array])


def test_golden_class_aware_streams():
    golden, images = recorded()

    def check(array, actual):
        compare("ClassAwareSampler", f"samplers/{array}", actual, golden[array])

    check("eqlv2_cas_indices_500", take(ClassAwareSampler(images, 0), 500))
    for number in (1, 2):
        sampler = ClassAwareSampler(images, 7, images_per_class=number, draw="mmdet")
        stream = take(sampler, 400)
        for epoch in (0, 1):
            array = f"mmdet3_classaware_epoch{epoch}_seed7_nsc{number}"
            check(array, stream[200 * epoch : 200 * (epoch + 1)])
    labels = torch.as_tensor(golden["decoupling_cas_labels"])
    classification = images_of_table(torch.nn.functional.one_hot(labels))
    sampler = ClassAwareSampler(classification, 11, images_per_class=4, draw="decoupling")
    check("decoupling_cas_indices_pyseed11_nsc4", take(sampler, 200))


def test_golden_inverse_frequency_stream():
    golden, images = recorded()
    sampler = InverseFrequencySampler(images, 42)
    for array, actual in (
        ("centernet2_classaware_weights", sampler.weights),
        ("centernet2_classaware_stream300_seed42", take(sampler, 300)),
    ):
        compare("InverseFrequencySampler", f"samplers/{array}", actual, golden[array])


def test_golden_episodes():
    golden, images = recorded()
    sampler = EpisodicSampler(images, 3, classes_per_episode=4, images_per_class=2)
    episodes = list(islice(sampler.episodes(), 50))
    drawn = [image for episode, _ in episodes for image in episode]
    classes = [c + 1 for _, episode in episodes for c in episode]
    array = "simcal_episodic_indices_bs8_nc4_ep50_npseed3_pyseed3"
    compare("EpisodicSampler", f"samplers/{array}", drawn, golden[array])
    array = "simcal_episodic_classes"
    compare("EpisodicSampler", f"samplers/{array}", classes, golden[array])
    assert take(sampler, 400) == drawn


# ---- every sampler


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    def test_depends_on_the_seed_alone(self, name):
        make = SAMPLERS[name]
        torch.manual_seed(1)
        first = take(make(IMAGES, 5), 100)
        torch.manual_seed(2)
        assert take(make(IMAGES, 5), 100) == first
        assert take(make(IMAGES, 6), 100) != first
        assert set(first) <= set(range(len(MATRIX)))

    def test_processes_share_the_stream(self, name):
        make = SAMPLERS[name]
        parts = []
        for rank in range(3):
            sampler = make(IMAGES, 5)
            sampler.rank, sampler.world_size = rank, 3
            parts.append(list(islice(sampler, 20)))
        together = [index for step in zip(*parts) for index in step]
        assert together == take(make(IMAGES, 5), 60)

    def test_stream_begins_anew_each_time(self, name):
        sampler = SAMPLERS[name](IMAGES, 5)
        assert list(islice(sampler, 40)) == list(islice(sampler, 40))

    def test_class_without_images_does_no_harm(self, name):
        stream = take(SAMPLERS[name](IMAGES, 0), 300)
        assert len(stream) == 300

    def test_refuses_a_set_without_objects(self, name):
        with pytest.raises(ValueError, match="none of the 6 images has an object"):
            SAMPLERS[name](images_of_table(MATRIX * 0), 0)


def test_default_seed_is_shared(monkeypatch):
    monkeypatch.setattr(samplers.comm, "shared_random_seed", lambda: 12)
    assert ClassAwareSampler(IMAGES).seed == 12


# ---- single samplers


def test_repeat_factors_by_hand():
    # Of 6 images classes 0, 1 and 3 have 5, 2 and 1; of 14 objects 8, 5 and 1.
    factors = class_repeat_factors(IMAGES.statistics(), 0.5)
    assert_close(factors, torch.tensor([1, 1.5**0.5, 1, 3**0.5], dtype=torch.float64))
    by_image = image_repeat_factors(IMAGES, factors)
    root, last = 1.5**0.5, 3**0.5
    expected = torch.tensor([last, root, 1, 1, 1, root], dtype=torch.float64)
    assert_close(by_image, expected)
    aware = class_repeat_factors(IMAGES.statistics(), 0.5, frequency="images_and_instances")
    share = math.sqrt(2 / 6 * 5 / 14)
    assert_close(aware[1], torch.tensor(math.sqrt(0.5 / share), dtype=torch.float64))
    assert aware[2] == 1
    assert (class_repeat_factors(IMAGES.statistics(), 0.5, exponent=0.0) == 1).all()


def test_stochastic_rounding_is_right_on_average():
    sampler = RepeatFactorSampler(IMAGES, 0, 0.5)
    times = torch.stack([repetitions(sampler.factors) for _ in range(4000)]).double()
    assert_close(times.mean(dim=0), sampler.factors.double(), atol=0.03, rtol=0)


def test_class_aware_draws_classes_equally_often():
    drawn = take(ClassAwareSampler(IMAGES, 0), 3000)
    # Image 0 alone holds class 3; class 1 lies in images 1 and 5, class 0 in all but image 4.
    share = torch.bincount(torch.tensor(drawn), minlength=6) / 3000
    expected = torch.tensor([1 / 3 + 1 / 15, 1 / 6 + 1 / 15, 1 / 15, 1 / 15, 0, 1 / 6 + 1 / 15])
    assert_close(share, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("power, expected", [(0.0, [1, 1, 0, 1]), (1.0, [5, 2, 0, 1])])
def test_power_sampler_probabilities(power, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    sampler = ClassPowerSampler(IMAGES, 0, power=power)
    assert_close(sampler.class_probabilities(0), expected / expected.sum())
    drawn = torch.bincount(torch.tensor(take(sampler, 6000)), minlength=6) / 6000
    per_image = expected / expected.sum() / IMAGES.image_count.clamp(min=1)
    assert_close(drawn, IMAGES.total(per_image).float(), atol=0.02, rtol=0)


def test_progressive_sampler_ends_balanced():
    sampler = ClassPowerSampler(IMAGES, 0, 6 * 4, power=1.0, final_power=0.0)
    assert sampler.num_epochs == 4
    start = torch.tensor([5, 2, 0, 1], dtype=torch.float64) / 8
    end = torch.tensor([1, 1, 0, 1], dtype=torch.float64) / 3
    for epoch, progress in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        expected = (1 - progress) * start + progress * end
        assert_close(sampler.class_probabilities(epoch), expected)


def test_episodes_favour_by_power():
    sampler = EpisodicSampler(IMAGES, 0, classes_per_episode=8, images_per_class=2, power=1.0)
    seen = torch.zeros(4)
    for images, classes in islice(sampler.episodes(), 500):
        assert len(images) == len(classes) == 16
        assert all(MATRIX[image, c] > 0 for image, c in zip(images, classes))
        assert classes[::2] == classes[1::2]
        seen += torch.bincount(torch.tensor(classes), minlength=4)
    assert_close(seen / seen.sum(), torch.tensor([8, 5, 0, 1]) / 14, atol=0.02, rtol=0)


@pytest.mark.parametrize("with_crowds", [False, True])
def test_detectron2s_factors_but_for_crowds(with_crowds):
    """Detectron2 counts a class as frequent whose crowds are, though nobody trains on them."""
    records = [{"annotations": [{"category_id": 0}]} for _ in range(99)]
    records.append({"annotations": [{"category_id": 0}, {"category_id": 1}]})
    if with_crowds:
        for record in records[:40]:
            record["annotations"].append({"category_id": 1, "iscrowd": 1})
    ours = RepeatFactorSampler(ImageClasses.from_records(records, 2), 0, 0.5).factors.float()
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    assert ours.max() == pytest.approx(50**0.5)
    assert torch.equal(ours, theirs) != with_crowds


def test_table_from_records():
    records = [
        {
            "annotations": [{"category_id": c} for c, n in enumerate(row) for _ in range(n)]
            + [{"category_id": 2, "iscrowd": 1}]
        }
        for row in MATRIX.tolist()
    ]
    table = ImageClasses.from_records(records, 4)
    for name in ("image", "classes", "instances"):
        assert torch.equal(getattr(table, name), getattr(IMAGES, name)), name
    assert table.image_count.tolist() == [5, 2, 0, 1]
    assert table.instance_count.tolist() == [8, 5, 0, 1]
    assert [group.tolist() for group in table.images_by_class] == [
        [0, 1, 2, 3, 5],
        [1, 5],
        [],
        [0],
    ]


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_class_beyond_the_classes_is_refused(wrong):
    records = [{"annotations": [{"category_id": 0}, {"category_id": wrong}]}, {}]
    with pytest.raises(DatasetError, match=rf"expected classes 0..3, found .* class {wrong}: set"):
        ImageClasses.from_records(records, 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ClassAwareSampler(IMAGES, 0, draw="mm"), "draw is 'mm', expected one of: mmdet"),
        (lambda: ClassAwareSampler(IMAGES, 0, images_per_class=0), "must be at least 1, got 0"),
        (lambda: RepeatFactorSampler(IMAGES, 0, 0.1, rounding="up"), "rounding is 'up', expected"),
        (lambda: RepeatFactorSampler(IMAGES, 0, 0.1, frequency="x"), "frequency is 'x', expected"),
        (lambda: RepeatFactorSampler(IMAGES, 0, -1.0), "threshold must be .*, got -1"),
        (lambda: ClassPowerSampler(IMAGES, 0, power=-1.0), "power must be .*, got -1"),
        (lambda: ClassPowerSampler(IMAGES, 0, final_power=0.0), "give `total`"),
        (lambda: EpisodicSampler(IMAGES, 0, classes_per_episode=0), "must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
