"""
The training loader: infinite batches that depend on a seed and on their number, on nothing else.

Neither the number of the loader's workers nor an interruption changes an image, and without
grouping by aspect ratio W processes together take what one process would.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DatasetError
from ..random_state import seeded_by

Record = dict[str, Any]
Sample = tuple[int, int]
"""Number of a sample among those of all processes, and the record that it is."""

MAX_REPLACEMENTS = 100


class TrainingLoader:
    """
    Batches for one process of a training; each time it is iterated, it goes on where it was.

    Args:
        records: a list, which is copied, or a data set; with "width" and "height" if grouped.
        mapper: makes an input of a record, or None for one that cannot be used, which another
            record then stands in for.
        make_sampler: given ``seed=``, an infinite stream of record numbers for this process.
            A number may say more than the record, which it then is modulo their number.
        batch_size: images of this process in a batch.
        seed: >= 0, the same in all processes.
        by_aspect_ratio: let a batch consist of landscape or of portrait images, as Detectron2 does.
        num_workers: processes that map; 0 maps in this one.

    Attributes:
        num_batches: given so far, here or before the training was interrupted.
    """

    def __init__(
        self,
        records: Sequence[Record] | Dataset,
        mapper: Callable[[Record], Any | None],
        make_sampler: Callable[..., Sampler],
        *,
        batch_size: int,
        seed: int,
        by_aspect_ratio: bool = False,
        num_workers: int = 0,
    ):
        if not isinstance(records, Dataset):
            records = DatasetFromList(list(records), copy=False)
        self.samples = MappedSamples(records, mapper, seed)
        self.make_sampler = make_sampler
        self.sampler = make_sampler(seed=seed)
        self.by_aspect_ratio = by_aspect_ratio
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_batches = 0
        self._landscapes: dict[int, bool] = {}

    def __iter__(self) -> Iterator[list[Any]]:
        to_come = islice(self._batches(), self.num_batches, None)
        mapped = iter(
            DataLoader(
                self.samples,
                batch_size=None,  # one by one, in their order: little waits in shared memory
                sampler=chain.from_iterable(to_come),
                num_workers=self.num_workers,
                worker_init_fn=_leave_signals_to_the_trainer,
                generator=torch.Generator(),  # the global one is the model's
            )
        )
        while batch := list(islice(mapped, self.batch_size)):
            self.num_batches += 1
            yield batch

    def _batches(self) -> Iterator[list[Sample]]:
        """The infinite batches of this process from the beginning of the training."""
        numbers = count(comm.get_rank(), comm.get_world_size())
        buckets: tuple[list[Sample], list[Sample]] = ([], [])
        for number, index in zip(numbers, self.sampler):
            bucket = buckets[self.by_aspect_ratio and self._is_landscape(index)]
            bucket.append((number, index))
            if len(bucket) == self.batch_size:
                yield bucket.copy()
                bucket.clear()

    def _is_landscape(self, index: int) -> bool:
        # Each record once, when it is drawn: to look at all takes long in a large set.
        index %= len(self.samples)
        if index not in self._landscapes:
            record = self.samples.records[index]
            self._landscapes[index] = record["width"] > record["height"]
        return self._landscapes[index]

    def state_dict(self) -> dict[str, int]:
        images = self.num_batches * self.batch_size * comm.get_world_size()
        return {"seed": self.samples.seed, "images": images}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a training was, also one with another batch size or number of processes."""
        self.num_batches = state["images"] // (self.batch_size * comm.get_world_size())
        self.samples.seed = state["seed"]
        self.sampler = self.make_sampler(seed=state["seed"])


class MappedSamples(Dataset):
    """Records by sample, each mapped under random numbers that belong to its number and a seed."""

    def __init__(self, records: Dataset, mapper: Callable[[Record], Any | None], seed: int):
        self.records = records
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample) -> Any:
        number, index = sample
        with seeded_by(self.seed, number):
            for _ in range(MAX_REPLACEMENTS):
                mapped = self.mapper(self.records[index])
                if mapped is not None:
                    return mapped
                index = np.random.randint(len(self.records))
        raise DatasetError(
            f"the mapper could use none of {MAX_REPLACEMENTS} images: check DATASETS.TRAIN"
        )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """
    Work on when the job is asked to end: the trainer still finishes its step, and then ends us.

    Schedulers and terminals signal all processes of a job at once. Python itself signals its
    children when it exits, and then waits for them: see :func:`_end_workers`.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_workers() -> None:
    """End the workers that an error has left behind; they would not listen to SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise because one was ended
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


# Runs before Python waits for its children, in the main process and in spawned ones.
Finalize(None, _end_workers, exitpriority=0)
