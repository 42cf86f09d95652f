"""Training sets as tables of objects, by image and class."""

from torch import Tensor

from lt_detectron2.data.image_classes import ImageClasses


def images_of_table(objects: Tensor) -> ImageClasses:
    """The images (N) and classes (K) of a table (N, K) of numbers of objects."""
    cells = objects.nonzero().repeat_interleave(objects[objects > 0], dim=0)
    return ImageClasses.from_pairs(*objects.shape, *cells.unbind(1))
