"""Images of an episode know the class they were drawn for."""

import pickle
from itertools import islice

import torch
from detectron2.structures import Instances

from lt_detectron2.data.episodes import (
    IS_SAMPLED,
    SAMPLED_CLASS,
    LabelledEpisodes,
    LabelledRecords,
    MarkSampledObjects,
)
from lt_detectron2.data.image_classes import ImageClasses
from lt_detectron2.data.samplers import EpisodicSampler

RECORDS = [
    {"image_id": i, "annotations": [{"category_id": c} for c in classes]}
    for i, classes in enumerate([[0, 2], [2, 2], [1], [0, 1, 2], []])
]


def episodes(**kwargs):
    images = ImageClasses.from_records(RECORDS, 3)
    return EpisodicSampler(images, 3, classes_per_episode=4, images_per_class=2, **kwargs)


def numbers(count):
    return list(islice(LabelledEpisodes(episodes()), count))


def test_numbers_are_those_of_the_episodes():
    records = LabelledRecords(RECORDS)
    drawn = [records[number] for number in numbers(40)]
    flat = [pair for e in islice(episodes().episodes(), 5) for pair in zip(*e)]
    assert [(record["image_id"], record[SAMPLED_CLASS]) for record in drawn] == flat
    for record in drawn:
        assert record[SAMPLED_CLASS] in {a["category_id"] for a in record["annotations"]}
    assert len({record[SAMPLED_CLASS] for record in drawn}) == 3 and len(records) == 5


def test_the_records_stay_as_they_are():
    records = LabelledRecords(RECORDS)
    records[5]
    assert SAMPLED_CLASS not in RECORDS[0] and records[0][SAMPLED_CLASS] == 0
    assert pickle.loads(pickle.dumps(records))[6]["image_id"] == 1  # for workers


def test_objects_are_marked():
    def mapper(record):
        classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        return {**record, "instances": Instances((4, 4), gt_classes=classes)}

    mapped = MarkSampledObjects(mapper)({**RECORDS[3], SAMPLED_CLASS: 1})
    assert mapped["instances"].get(IS_SAMPLED).tolist() == [False, True, False]
    assert MarkSampledObjects(lambda record: None)({SAMPLED_CLASS: 1}) is None
