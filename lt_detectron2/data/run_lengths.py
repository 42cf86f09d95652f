"""
COCO's compressed run lengths, for many masks in one go.

A mask is read down its columns as runs of zeros and ones in turn, zeros first. From the fourth run
on, what is stored is the difference to the run before the last. Each number is written in groups of
five bits, lowest first, with a sixth bit that says whether more follow and 48 added to make it a
letter. (pycocotools does the same one mask at a time, and needs a Python object for each.)

Shapes: N masks, V runs of all masks, B bytes.
"""

import numpy as np

_OFFSET, _MORE, _SIGN, _BITS = 48, 0x20, 0x10, 5
_MAX_LETTERS = 7  # of a number, for the 32 bits that pycocotools keeps


def encode(runs: np.ndarray, num_runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        runs: (V,) int64, run lengths, mask after mask.
        num_runs: (N,) int64, at least 1.

    Returns:
        codes (B,) uint8 and the bytes of each mask (N,) int64.
    """
    values = runs.copy()
    values[2:] -= np.where(_index_in(num_runs)[2:] > 2, runs[:-2], 0)
    size = np.ones(len(values), dtype=np.int64)
    limit = _SIGN
    while (large := (values < -limit) | (values >= limit)).any():
        size += large
        limit <<= _BITS
    place = _index_in(size)
    letters = (np.repeat(values, size) >> (_BITS * place)) & (_MORE - 1)
    letters |= np.where(place < np.repeat(size - 1, size), _MORE, 0)
    lengths = np.add.reduceat(size, _starts(num_runs)) if len(num_runs) else num_runs
    return (letters + _OFFSET).astype(np.uint8), lengths


def decode(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The inverse of `encode`.

    Args:
        codes: (B,) uint8, the codes of N masks one after the other.
        lengths: (N,) int64, bytes of each.

    Returns:
        runs (V,) int64 and the number of runs of each mask (N,) int64; no check is made.
    """
    letters = codes.astype(np.int64) - _OFFSET
    is_last = (letters & _MORE) == 0
    last = np.flatnonzero(is_last)
    size = np.diff(last, prepend=-1)
    num_runs = np.diff(np.concatenate([[0], np.cumsum(is_last)])[np.cumsum(lengths)], prepend=0)
    if not len(last):
        return np.zeros(0, np.int64), num_runs
    letters = letters[: last[-1] + 1]
    values = np.add.reduceat(
        (letters & (_MORE - 1)) << (_BITS * _index_in(size)).clip(max=60), last - size + 1
    )
    values -= np.where(letters[last] & _SIGN, 1 << (_BITS * size).clip(max=62), 0)

    # Runs 1, 3, 5, ... are a running sum, and so are 2, 4, 6, ...; run 0 stands alone.
    index = _index_in(num_runs)
    odd = (index & 1).astype(bool)
    runs = np.where(odd, _sums(np.where(odd, values, 0), num_runs), 0)
    even = ~odd & (index > 0)
    runs += np.where(even, _sums(np.where(even, values, 0), num_runs), 0)
    first = index == 0
    runs[first] = values[first]
    return runs, num_runs


def are_valid(codes: np.ndarray, lengths: np.ndarray, num_pixels: np.ndarray) -> np.ndarray:
    """
    Which codes can be handed to pycocotools, which reads past the end of others.

    Args:
        codes, lengths: as of `decode`, from anywhere.
        num_pixels: (N,) int64, pixels of the image of each mask.

    Returns:
        (N,) bool: made of letters of the code, complete, and of as many pixels as the image.
    """
    letters = codes.astype(np.int64) - _OFFSET
    alien = _totals((letters < 0) | (letters >= 2 * _MORE), lengths) > 0
    valid = (lengths > 0) & ~alien
    ends = np.cumsum(lengths)
    valid[valid] = (letters[ends[valid] - 1] & _MORE) == 0
    codes, lengths = codes[np.repeat(valid, lengths)], lengths[valid]
    if not len(lengths):
        return valid
    last = np.flatnonzero(((codes - _OFFSET) & _MORE) == 0)
    is_long = np.diff(last, prepend=-1) > _MAX_LETTERS
    runs, num_runs = decode(codes, lengths)
    fits = _totals(runs, num_runs) == num_pixels[valid]
    fits &= _totals((runs < 0) | is_long, num_runs) == 0
    valid[valid] = fits
    return valid


def from_windows(
    bits: np.ndarray, windows: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Run lengths of masks that are zero outside a window of their image.

    Args:
        bits: uint8, the windows of all masks, column after column, a zero after each column.
        windows: (N, 4) int64, left, top, right, bottom.
        sizes: (N, 2), height and width of the images.

    Returns:
        as `decode`.
    """
    return from_edges(np.flatnonzero(np.diff(bits, prepend=np.uint8(0))), windows, sizes)


def from_edges(
    edges: np.ndarray, windows: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    As `from_windows`.

    Args:
        edges: (E,) int64, ascending positions of the bits that differ from the one before.
    """
    left, top, right, bottom = windows.T
    height, num_pixels = sizes[:, 0].astype(np.int64), sizes.astype(np.int64).prod(axis=1)
    column_size = bottom - top + 1  # with the zero
    starts = _starts((right - left) * column_size)
    mask = np.searchsorted(starts, edges, side="right") - 1
    column, row = np.divmod(edges - starts[mask], column_size[mask])
    position = (left[mask] + column) * height[mask] + top[mask] + row
    # Where a run ends at the lower edge of the image and the next one starts at the upper one, they
    # are one run; a run up to the last pixel has no end.
    joined = (position[1:] == position[:-1]) & (mask[1:] == mask[:-1])
    kept = position < num_pixels[mask]
    kept[1:] &= ~joined
    kept[:-1] &= ~joined
    mask, position = mask[kept], position[kept]

    num_runs = np.bincount(mask, minlength=len(windows)) + 1
    ends = np.empty(num_runs.sum(), dtype=np.int64)
    last = np.cumsum(num_runs) - 1
    inner = np.ones(len(ends), dtype=bool)
    inner[last] = False
    ends[inner], ends[last] = position, num_pixels
    runs = np.diff(ends, prepend=0)
    first = _starts(num_runs)
    runs[first] = ends[first]
    return runs, num_runs


def to_window(runs: np.ndarray, height: int, left: int, right: int) -> np.ndarray:
    """(right - left, height) uint8, some columns of one mask from its runs (V,)."""
    ends = np.cumsum(runs).clip(left * height, right * height)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, np.diff(ends, prepend=left * height)).reshape(-1, height)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes


def _index_in(sizes: np.ndarray) -> np.ndarray:
    """Position of each element within its part, for parts of the given sizes."""
    return np.arange(sizes.sum()) - np.repeat(_starts(sizes), sizes)


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Running sums within parts."""
    total = np.concatenate([[0], np.cumsum(values)])
    return total[1:] - np.repeat(total[_starts(sizes)], sizes)


def _totals(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) sums over parts, 0 for an empty one."""
    total = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(sizes)
    return total[ends] - total[ends - sizes]
