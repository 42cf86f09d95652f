"""The training loader: samplers from config keys, and resuming."""

from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode, Instances

from lt_detectron2.data import build
from lt_detectron2.data.build import (
    build_train_loader,
    sampler_classes,
    sampler_factory,
)
from lt_detectron2.data.episodes import IS_SAMPLED, SAMPLED_CLASS
from lt_detectron2.data.samplers import RepeatFactorSampler
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import ConfigError

DATASET = "sampler_test_train"
CLASSES = [[0, 0], [0, 1], [0], [0, 1], [2], [0, 1], [0, 3], [0]]


@pytest.fixture(scope="module")
def records():
    """Eight images of four classes; nobody reads their pixels."""
    made = [
        {
            "file_name": f"{image}.png",
            "image_id": image,
            "height": 10,
            "width": 10,
            "annotations": [
                {"category_id": c, "bbox": [0, 0, 5, 5], "bbox_mode": 0} for c in classes
            ],
        }
        for image, classes in enumerate(CLASSES)
    ]
    DatasetCatalog.register(DATASET, lambda: made)
    MetadataCatalog.get(DATASET).thing_classes = list("abcd")
    yield made
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.fixture(autouse=True)
def classes_only(monkeypatch):
    """Batches of records with the classes of their objects."""

    def mapper(record):
        classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        return {**record, "instances": Instances((10, 10), gt_classes=classes)}

    monkeypatch.setattr(build, "build_mapper", lambda cfg, is_train: mapper)


def config(sampler, *overrides):
    return load_config(
        "",
        ["DATASETS.TRAIN", f"('{DATASET}',)", "DATALOADER.SAMPLER_TRAIN", sampler]
        + ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SEED", "3"]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", "4", "DATALOADER.REPEAT_THRESHOLD", "0.5"]
        + ["DATALOADER.ASPECT_RATIO_GROUPING", "False", *overrides],
    )


def images(loader, steps):
    batches = iter(loader)
    return [record["image_id"] for _ in range(steps) for record in next(batches)]


@pytest.mark.parametrize("name", sorted(sampler_classes()))
def test_sampler_by_name(records, name):
    cfg = config(name)
    expected = list(islice(sampler_factory(cfg, records)(seed=3), 40))
    loader = build_train_loader(cfg)
    assert images(loader, 20) == [number % len(records) for number in expected]


@pytest.mark.parametrize(
    "name", [*sorted(sampler_classes()), "TrainingSampler", "RepeatFactorTrainingSampler"]
)
def test_loader_goes_on_where_it_stopped(records, name, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 11)
    stopped = build_train_loader(config(name, "SEED", "-1"))
    first = images(stopped, 12)
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 12)
    resumed = build_train_loader(config(name, "SEED", "-1"))
    resumed.load_state_dict(stopped.state_dict())
    assert first + images(resumed, 18) == images(build_train_loader(config(name, "SEED", "11")), 30)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_boxes_outside_leave_an_image(filter_empty):
    """What has no box left goes, if asked to; what never had annotations is not looked at."""
    box = {"category_id": 0, "bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS}
    outside = {**box, "bbox": [20, 0, 25, 5]}
    image = {"width": 10, "height": 10}
    records = [
        {**image},
        *({**image, "annotations": boxes} for boxes in ([outside], [box, outside], [box], [])),
    ]
    kept = build._with_visible_objects(records, filter_empty)
    emptied = [] if filter_empty else [{**image, "annotations": []}]
    assert kept == [records[0], *emptied, records[3], records[3], records[4]]


def test_images_of_episodes_know_their_class(records):
    node = "LONG_TAIL.SAMPLER.EpisodicSampler"
    episode = (f"{node}.CLASSES_PER_EPISODE", "1", f"{node}.IMAGES_PER_CLASS", "2")
    batches = iter(build_train_loader(config("EpisodicSampler", *episode)))
    drawn = set()
    for _ in range(20):
        classes = {record[SAMPLED_CLASS] for record in next(batches)}
        assert len(classes) == 1  # an episode is a batch
        drawn |= classes
    assert drawn == {0, 1, 2, 3}
    for record in next(batches):
        instances = record["instances"]
        sampled = instances.gt_classes == record[SAMPLED_CLASS]
        assert sampled.any() and torch.equal(instances.get(IS_SAMPLED), sampled)


def test_hyper_parameters_reach_the_sampler(records):
    node = "LONG_TAIL.SAMPLER"
    cfg = config(
        "RepeatFactorSampler",
        *(f"{node}.RepeatFactorSampler.ROUNDING", "ceil"),
        *(f"{node}.RepeatFactorSampler.EXPONENT", "1.0"),
    )
    sampler = sampler_factory(cfg, records)(seed=3)
    assert sampler.rounding == "ceil" and sampler.seed == 3
    # Class 2 in one image of eight, threshold one half.
    assert sampler.factors[4] == 4
    cfg = config("ClassPowerSampler", f"{node}.ClassPowerSampler.FINAL_POWER", "0.0")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 12
    sampler = sampler_factory(cfg, records)(seed=3)
    assert sampler.num_epochs == 3  # 12 iterations of 2 images, 8 in the set


def test_retinanet_has_classes_of_its_own(records):
    retinanet = ["MODEL.META_ARCHITECTURE", "LongTailRetinaNet", "MODEL.RETINANET.NUM_CLASSES", "4"]
    cfg = config("ClassAwareSampler", *retinanet, "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    assert sampler_factory(cfg, records)(seed=3).images.image_count.tolist() == [7, 3, 1, 1]


def test_auto_threshold_reaches_the_sampler(records):
    cfg = config("RepeatFactorSampler", "LONG_TAIL.REPEAT_THRESHOLD", "auto")
    sampler = sampler_factory(cfg, records)(seed=3)
    assert isinstance(sampler, RepeatFactorSampler)
    assert sampler.factors.max() == pytest.approx(2**0.5)  # the median frequency is 2 / 8


@pytest.mark.parametrize("name", ["RepeatFactorSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("large", [True, False])
def test_auto_threshold_is_of_what_is_sampled(records, name, large, caplog):
    """Images without objects change no factor: frequency and threshold are shares of the same."""
    cfg = config(name, "LONG_TAIL.REPEAT_THRESHOLD", "auto")
    records = records * (20 if large else 1)  # one class in more than 100 images, or none
    with_empty = [*records, *({"annotations": []} for _ in range(3 * len(records)))]
    with caplog.at_level("INFO"):
        made = [sampler_factory(cfg, r)(seed=3) for r in (records, with_empty)]
    if name == "RepeatFactorSampler":
        actual, expected = made[1].factors, made[0].factors
    else:
        actual, expected = (sampler._int_part + sampler._frac_part for sampler in reversed(made))
    torch.testing.assert_close(actual[: len(records)], expected)
    assert expected.max() > 1 and actual[len(records) :].max() == 1
    assert f"fewer than {100 if large else 2} of {len(with_empty)} images" in caplog.text


def test_repeat_threshold_in_the_wrong_key(records):
    with pytest.raises(ConfigError, match="is '0.01', expected 'auto' or '': a number goes to D"):
        sampler_factory(config("TrainingSampler", "LONG_TAIL.REPEAT_THRESHOLD", "'0.01'"), records)


def test_detectron2s_samplers_are_its_own(records):
    sampler = sampler_factory(config("RepeatFactorTrainingSampler"), records)(seed=3)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    expected = RepeatFactorTrainingSampler(factors, seed=3)
    assert list(islice(sampler, 50)) == list(islice(expected, 50))


def test_batch_size_must_suit_the_processes(records, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    with pytest.raises(ConfigError, match="IMS_PER_BATCH is 2, expected a multiple of the 4 pro"):
        build_train_loader(config("TrainingSampler"))


def test_unknown_sampler(records):
    with pytest.raises(ConfigError, match="'ClassSampler', expected one of: ClassAwareSampler, "):
        build_train_loader(config("ClassSampler"))


def test_other_errors_of_detectron2_are_kept(records, monkeypatch):
    def fail(cfg, **kwargs):
        raise ValueError("something else")

    monkeypatch.setattr(build, "build_detection_train_loader", fail)
    with pytest.raises(ValueError, match="something else"):
        build_train_loader(config("ClassSampler"))


def test_hyper_parameter_out_of_range(records):
    cfg = config("ClassAwareSampler", "LONG_TAIL.SAMPLER.ClassAwareSampler.DRAW", "mm")
    with pytest.raises(ConfigError, match="LONG_TAIL.SAMPLER.ClassAwareSampler: draw is 'mm'"):
        build_train_loader(cfg)
