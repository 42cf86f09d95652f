"""The training loader: samplers from config keys, and resuming."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from lt_detectron2.data import build
from lt_detectron2.data.build import (
    build_sampler,
    build_train_loader,
    sampler_classes,
    skip_seen_images,
)
from lt_detectron2.data.episodes import IS_SAMPLED, SAMPLED_CLASS
from lt_detectron2.data.samplers import RepeatFactorSampler, ResumedSampler
from lt_detectron2.engine.setup import load_config
from lt_detectron2.engine.trainer import resolve_repeat_threshold
from lt_detectron2.errors import ConfigError
from lt_detectron2.statistics import ClassStatistics

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
    expected = list(zip(range(40), build_sampler(cfg, records)))
    loader = build_train_loader(cfg)
    assert images(loader, 20) == [image for _, image in expected]


@pytest.mark.parametrize(
    "name", [*sorted(sampler_classes()), "TrainingSampler", "RepeatFactorTrainingSampler"]
)
def test_loader_goes_on_where_it_stopped(records, name, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 11)
    whole = images(build_train_loader(config(name)), 30)
    resumed = build_train_loader(config(name))
    assert skip_seen_images(resumed, 2 * 12)
    assert images(resumed, 18) == whole[24:]


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
    sampler = build_sampler(cfg, records)
    assert sampler.rounding == "ceil" and sampler.seed == 3
    # Class 2 in one image of eight, threshold one half.
    assert sampler.factors[4] == 4
    cfg = config("ClassPowerSampler", f"{node}.ClassPowerSampler.FINAL_POWER", "0.0")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 12
    assert build_sampler(cfg, records).num_epochs == 3  # 12 iterations of 2 images, 8 in the set
    cfg.SEED = -1
    assert build_sampler(cfg, records).seed is not None


def test_auto_threshold_reaches_the_sampler(records):
    cfg = config("RepeatFactorSampler", "LONG_TAIL.REPEAT_THRESHOLD", "auto")
    statistics = ClassStatistics([9, 3, 1, 1], [7, 3, 1, 1], 8)
    cfg = resolve_repeat_threshold(cfg, statistics)
    sampler = build_sampler(cfg, records)
    assert isinstance(sampler, RepeatFactorSampler)
    assert sampler.factors.max() == pytest.approx(2**0.5)  # the median frequency is 2 / 8


def test_detectron2s_samplers_are_its_own(records):
    cfg = config("RepeatFactorTrainingSampler")
    torch.manual_seed(0)
    assert isinstance(build_sampler(cfg, records), ResumedSampler)


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


def test_a_loader_that_cannot_skip():
    assert not skip_seen_images([], 10)
