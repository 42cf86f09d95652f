"""Stratified parts of a training set."""

import pytest
import torch

from lt_detectron2.data.held_out import stratified_images
from tests.data.object_tables import images_of_table

# Class 0 in all of 100 images, class 1 in every fifth, class 2 in two, class 3 in one, 4 in none.
MATRIX = torch.zeros(110, 5, dtype=torch.int64)
MATRIX[:100, 0] = 2
MATRIX[0:100:5, 1] = 1
MATRIX[[3, 50], 2] = 3
MATRIX[77, 3] = 1
IMAGES = images_of_table(MATRIX)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_every_class_has_its_share(share):
    chosen = stratified_images(IMAGES, share, 1000)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    count = (MATRIX[chosen] > 0).sum(dim=0)
    least = (share * IMAGES.image_count).ceil()
    assert (count >= least).all()
    assert count[4] == 0
    if share == 0.2:
        assert count.tolist() == [20, 4, 1, 1, 0] or count[0] == 20


def test_images_without_objects_are_not_chosen():
    assert stratified_images(IMAGES, 1.0, 1000).max() < 100


def test_cap_and_seed():
    assert len(stratified_images(IMAGES, 1.0, 30)) == 30
    first = stratified_images(IMAGES, 0.2, 1000, seed=1)
    assert torch.equal(first, stratified_images(IMAGES, 0.2, 1000, seed=1))
    assert not torch.equal(first, stratified_images(IMAGES, 0.2, 1000, seed=2))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        stratified_images(IMAGES, share, 10)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        stratified_images(IMAGES, 0.5, 0)
