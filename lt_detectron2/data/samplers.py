"""
Samplers for long-tailed training sets: which image comes next.

Every sampler is an infinite stream of positions in the data set, the same in all processes, of
which each takes every W-th. The stream depends on the seed alone and begins anew each time that it
is asked for, so that a training that resumes can skip what it has had.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from ..losses.base import check_non_negative
from .image_classes import ImageClasses
from .repeat_factors import class_repeat_factors, image_repeat_factors, repetitions

DRAWS = ("mmdet", "eqlv2", "decoupling")
MAX_EPISODE_COUNT = 100


class LongTailSampler(Sampler, ABC):
    """
    Base class of the samplers below. Arguments before the ``*`` are wired by code, those after it
    become the node ``LONG_TAIL.SAMPLER.<Class>``.

    Args:
        images: the training set.
        seed: the same in every process; None draws one that all share.
    """

    def __init__(self, images: ImageClasses, seed: int | None = None):
        if not len(images.image):
            raise ValueError(
                f"{type(self).__name__} samples by class, and none of the {images.num_images} "
                "images has an object: check the annotations of DATASETS.TRAIN"
            )
        self.images = images
        self.seed = comm.shared_random_seed() if seed is None else int(seed)
        self.rank = comm.get_rank()
        self.world_size = comm.get_world_size()

    @abstractmethod
    def stream(self) -> Iterator[int]:
        """The infinite stream of all processes together, from its beginning."""

    def __iter__(self) -> Iterator[int]:
        return islice(self.stream(), self.rank, None, self.world_size)

    def generator(self, epoch: int = 0) -> torch.Generator:
        """A new generator, seeded with seed + epoch."""
        return torch.Generator().manual_seed(self.seed + epoch)


class RepeatFactorSampler(LongTailSampler):
    """
    Random permutations of a set in which images with rare classes are repeated.

    With the default arguments the stream of Detectron2's RepeatFactorTrainingSampler, which is
    seeded otherwise; but for crowds, which Detectron2 counts and this does not (LVIS has none). The
    threshold is ``DATALOADER.REPEAT_THRESHOLD`` or what
    ``LONG_TAIL.REPEAT_THRESHOLD`` makes of it.

    Args:
        threshold: t, frequency below which a class is repeated.
        exponent, frequency: see :func:`class_repeat_factors`; "images_and_instances" is
            instance-aware RFS.
        rounding: see :func:`repetitions`.
    """

    def __init__(
        self,
        images: ImageClasses,
        seed: int | None = None,
        threshold: float = 0.001,
        *,
        exponent: float = 0.5,
        frequency: str = "images",
        rounding: str = "stochastic",
    ):
        super().__init__(images, seed)
        class_factors = class_repeat_factors(
            images.statistics(), threshold, exponent=exponent, frequency=frequency
        )
        self.factors = image_repeat_factors(images, class_factors)
        self.rounding = rounding
        repetitions(self.factors[:0], rounding)  # an unknown rounding is refused now

    def stream(self) -> Iterator[int]:
        generator = self.generator()
        while True:
            times = repetitions(self.factors, self.rounding, generator)
            epoch = torch.arange(len(times)).repeat_interleave(times)
            yield from epoch[torch.randperm(len(epoch), generator=generator)].tolist()


class ClassAwareSampler(LongTailSampler):
    """
    A class, then an image that holds it: every class is drawn equally often.

    Classes come in random permutations, and so do the images of each class. Other objects of an
    image come along, so batches stay imbalanced, if less. Classes without images are left out.

    Args:
        images_per_class: images that are taken in a row for each class drawn.
        draw: whose code's order. "eqlv2" is one stream whose permutations are drawn when they are
            needed; in the original a class without images makes it hang. "mmdet" begins anew in
            each epoch of as many images as the data set has. "decoupling" is that of the Decoupling
            paper's code, of Python's generator.
    """

    def __init__(
        self,
        images: ImageClasses,
        seed: int | None = None,
        *,
        images_per_class: int = 1,
        draw: str = "eqlv2",
    ):
        super().__init__(images, seed)
        if images_per_class < 1:
            raise ValueError(f"images_per_class must be at least 1, got {images_per_class}")
        if draw not in DRAWS:
            raise ValueError(f"draw is {draw!r}, expected one of: {', '.join(DRAWS)}")
        self.images_per_class = int(images_per_class)
        self.draw = draw
        self._lists = [group.tolist() for group in images.images_by_class if len(group)]

    def stream(self) -> Iterator[int]:
        if self.draw == "mmdet":
            for epoch in count():
                yield from islice(self.epoch(epoch), self.images.num_images)
        elif self.draw == "eqlv2":
            yield from self._interleave(_permuted, self.generator())
        else:
            yield from self._interleave(_shuffled, random.Random(self.seed))

    def epoch(self, number: int) -> Iterator[int]:
        """Images of an epoch of "mmdet", without its end."""
        return self._interleave(_permuted_at_once, self.generator(number))

    def _interleave(self, shuffle: Any, generator: Any) -> Iterator[int]:
        classes = shuffle(range(len(self._lists)), generator)
        images = [shuffle(group, generator) for group in self._lists]
        while True:
            drawn = next(classes)
            for _ in range(self.images_per_class):
                yield next(images[drawn])


def _permuted(items: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """One random permutation after the other, each drawn when it begins."""
    while True:
        for index in torch.randperm(len(items), generator=generator).tolist():
            yield items[index]


def _permuted_at_once(items: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """As ``_permuted``, with the first permutation drawn by this call."""
    first = torch.randperm(len(items), generator=generator).tolist()

    def items_in_order() -> Iterator[int]:
        yield from (items[index] for index in first)
        yield from _permuted(items, generator)

    return items_in_order()


def _shuffled(items: Sequence[int], generator: random.Random) -> Iterator[int]:
    """As ``_permuted``, shuffling what was shuffled before."""
    items = list(items)
    while True:
        generator.shuffle(items)
        yield from items


class InverseFrequencySampler(LongTailSampler):
    """
    Images drawn with probabilities proportional to the sum of 1 / n_c over their classes.

    With replacement; n_c are the images of class c. CenterNet2's class-aware sampler. An image
    without objects is never drawn.
    """

    def __init__(self, images: ImageClasses, seed: int | None = None):
        super().__init__(images, seed)
        self.weights = images.total(1 / images.image_count.clamp(min=1).double()).float()

    def stream(self) -> Iterator[int]:
        generator = self.generator()
        size = len(self.weights)
        while True:
            yield from torch.multinomial(self.weights, size, True, generator=generator).tolist()


class ClassPowerSampler(LongTailSampler):
    """
    A class with probability proportional to n_c^power, then any image that holds it.

    With replacement; n_c are the images of class c. Power 1 draws classes as often as they occur
    ("instance-balanced"), 1/2 is square-root sampling, 0 draws all classes equally often. With a
    final power it is the mixture of both, and goes linearly from the first to the final one, epoch
    by epoch of as many images as the data set has: 1 and 0 are the "progressively balanced"
    sampling of the Decoupling paper (https://arxiv.org/abs/1910.09217). Classes without images are
    left out.

    Args:
        total: images that the whole training draws, which the progress refers to.
        power: of the image counts, >= 0.
        final_power: None keeps to ``power``.
    """

    def __init__(
        self,
        images: ImageClasses,
        seed: int | None = None,
        total: int | None = None,
        *,
        power: float = 0.5,
        final_power: float | None = None,
    ):
        super().__init__(images, seed)
        self.power = check_non_negative("power", power)
        self.final_power = final_power
        if final_power is not None:
            check_non_negative("final_power", final_power)
            if total is None:
                raise ValueError(
                    "final_power needs to know how many images the training draws: give `total`"
                )
        self.num_epochs = max(1, round((total or 0) / images.num_images))
        self._by_class = images.image[images.classes.argsort(stable=True)]  # (P,)
        self._first = images.image_count.cumsum(0) - images.image_count  # (K,)

    def class_probabilities(self, epoch: int) -> Tensor:
        """(K,) float64 with which an epoch draws classes."""
        start = self._probabilities(self.power)
        if self.final_power is None:
            return start
        progress = min(epoch / self.num_epochs, 1.0)
        return (1 - progress) * start + progress * self._probabilities(self.final_power)

    def _probabilities(self, power: float) -> Tensor:
        counts = self.images.image_count.double()
        weights = torch.where(counts > 0, counts**power, 0.0)
        return weights / weights.sum()

    def stream(self) -> Iterator[int]:
        generator = self.generator()
        size = self.images.num_images
        for epoch in count():
            probabilities = self.class_probabilities(epoch)
            drawn = torch.multinomial(probabilities, size, True, generator=generator)
            draws = torch.rand(size, generator=generator, dtype=torch.float64)
            within = (draws * self.images.image_count[drawn]).long()
            yield from self._by_class[self._first[drawn] + within].tolist()


class EpisodicSampler(LongTailSampler):
    """
    Episodes of SimCal (https://arxiv.org/abs/2007.11978): some classes, and images for each.

    Classes are drawn with replacement, with probabilities proportional to min(N_c, 100)^power of
    their objects N_c, and for each of them images that hold it, with replacement. An episode is
    meant to be one batch.

    Args:
        classes_per_episode: 16 in the official code.
        images_per_class: batch size over ``classes_per_episode``.
        power: 0 draws all classes alike, as published.
    """

    def __init__(
        self,
        images: ImageClasses,
        seed: int | None = None,
        *,
        classes_per_episode: int = 16,
        images_per_class: int = 1,
        power: float = 0.0,
    ):
        super().__init__(images, seed)
        for name, value in (
            ("classes_per_episode", classes_per_episode),
            ("images_per_class", images_per_class),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.classes_per_episode = int(classes_per_episode)
        self.images_per_class = int(images_per_class)
        self.power = check_non_negative("power", power)

    def episodes(self) -> Iterator[tuple[list[int], list[int]]]:
        """Images of each episode, and the class that each was drawn for; infinite."""
        class_draws, image_draws = (
            np.random.RandomState(self.seed % 2**32),
            random.Random(self.seed),
        )
        present = self.images.image_count.nonzero().flatten()
        lists = [self.images.images_by_class[c].tolist() for c in present.tolist()]
        weights = self.images.instance_count[present].clamp(max=MAX_EPISODE_COUNT) ** self.power
        probabilities = (weights / weights.sum()).double().numpy()
        probabilities /= probabilities.sum()
        while True:
            drawn = class_draws.choice(len(lists), self.classes_per_episode, p=probabilities)
            images, classes = [], []
            for index in drawn.tolist():
                images += image_draws.choices(lists[index], k=self.images_per_class)
                classes += [int(present[index])] * self.images_per_class
            yield images, classes

    def stream(self) -> Iterator[int]:
        for images, _ in self.episodes():
            yield from images
