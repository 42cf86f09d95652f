"""Batches are those of a seed and a number: whatever maps them, and however often it is ended."""

import os
import random
import signal
from functools import partial
from itertools import count, islice

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import get_worker_info

from lt_detectron2.data.loader import MAX_REPLACEMENTS, TrainingLoader
from lt_detectron2.errors import DatasetError

RECORDS = [
    {"image": image, "width": 10 + image % 3, "height": 11 - image % 2} for image in range(11)
]


def mapper(record):
    """The record, with a draw of each generator."""
    draws = (random.random(), np.random.rand(), torch.rand(()).item())
    return {**record, "draws": draws}


def loader(mapper=mapper, records=RECORDS, **options):
    options = {"batch_size": 2, "seed": 5, **options}
    return TrainingLoader(records, mapper, partial(TrainingSampler, len(records)), **options)


def batches(loader, number):
    return list(islice(loader, number))


def test_every_sample_has_random_numbers_of_its_own():
    """No two samples are augmented alike, also not two of the same image."""
    drawn = [sample["draws"] for batch in batches(loader(), 20) for sample in batch]
    assert len({number for draws in drawn for number in draws}) == 3 * 40


@pytest.mark.parametrize("by_aspect_ratio", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, by_aspect_ratio):
    """The batches are the same with any number of workers, also after an interruption."""
    expected = batches(loader(by_aspect_ratio=by_aspect_ratio), 12)
    options = {"by_aspect_ratio": by_aspect_ratio, "num_workers": workers}
    stopped = loader(**options)
    assert batches(stopped, 5) == expected[:5]  # workers have mapped more by then
    resumed = loader(**options)
    resumed.load_state_dict(stopped.state_dict())
    assert batches(resumed, 7) == expected[5:]


def test_goes_on_after_any_batch():
    """A loader resumes exactly, wherever the images that wait for their like are."""
    expected = batches(loader(by_aspect_ratio=True), 14)
    for number in range(8):
        resumed = loader(by_aspect_ratio=True)
        resumed.load_state_dict({"seed": 5, "images": 2 * number})
        assert batches(resumed, 6) == expected[number : number + 6]


def test_the_seed_goes_on_too():
    """A run with a random seed resumes with that seed, for the order and for the images."""
    stopped = loader(seed=8)
    first = batches(stopped, 3)
    resumed = loader(seed=9)
    resumed.load_state_dict(stopped.state_dict())
    assert first + batches(resumed, 3) == batches(loader(seed=8), 6)


def test_generators_of_the_training_are_left_alone():
    """Loading draws nothing from the random numbers of the model."""
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    batches(loader(), 5)
    batches(loader(num_workers=1), 2)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_processes_share_what_one_would_take(monkeypatch):
    """Two processes together see the images of one, augmented in the same way."""
    expected = batches(loader(batch_size=4), 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        halves.append(batches(loader(), 6))
    together = [[a, c, b, d] for (a, b), (c, d) in zip(*halves)]
    assert together == expected


def test_resumes_with_another_batch_size():
    """What has been seen is counted in images."""
    stopped = loader(batch_size=4)
    batches(stopped, 3)
    resumed = loader(batch_size=2)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.num_batches == 6


def test_groups_are_those_of_detectron2():
    """With grouping by aspect ratio a batch is what Detectron2 makes of the same stream."""
    order = islice(TrainingSampler(len(RECORDS), seed=5), 60)
    stock = AspectRatioGroupedDataset([RECORDS[index] for index in order], 2)
    expected = [[record["image"] for record in batch] for batch in islice(iter(stock), 14)]
    ours = batches(loader(by_aspect_ratio=True), 14)
    assert [[record["image"] for record in batch] for batch in ours] == expected


def test_another_image_stands_in_for_one_that_cannot_be_used():
    """The stand-in is drawn from the sample's numbers, so that it is the same after resuming."""

    def only_even(record):
        return None if record["image"] % 2 else mapper(record)

    expected = batches(loader(only_even), 12)
    assert all(record["image"] % 2 == 0 for batch in expected for record in batch)
    resumed = loader(only_even)
    resumed.num_batches = 5
    assert batches(resumed, 7) == expected[5:]
    with pytest.raises(DatasetError, match=f"none of {MAX_REPLACEMENTS} images"):
        batches(loader(lambda record: None), 1)


def test_workers_leave_signals_to_the_trainer():
    """Workers survive the SIGTERM and SIGINT that a whole job gets; the trainer ends them."""

    def name_process(record):
        return os.getpid() if get_worker_info() else None

    elements = iter(loader(name_process, num_workers=1, batch_size=1))
    (worker,) = next(elements)
    assert worker != os.getpid()
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    assert [next(elements) for _ in range(8)] == [[worker]] * 8


def test_numbers_may_say_more_than_the_record():
    """Numbers above those of the records, as episodes have, are grouped by the record's shape."""

    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return len(RECORDS)

        def __getitem__(self, number):
            return {**RECORDS[number % len(RECORDS)], "label": number // len(RECORDS)}

    labelled = TrainingLoader(
        Labelled(), mapper, lambda seed: count(0, 12), batch_size=2, seed=0, by_aspect_ratio=True
    )
    drawn = batches(labelled, 9)
    assert max(record["label"] for batch in drawn for record in batch) > 10
    for batch in drawn:
        assert len({record["width"] > record["height"] for record in batch}) == 1
