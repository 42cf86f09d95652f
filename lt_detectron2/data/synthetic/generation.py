"""Writing a SynthLT dataset, exactly once, however many processes ask for it."""

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...progress import track
from .annotations import category_records, lvis_dataset
from .profiles import Profile, get_profile
from .scenes import plan_images
from .vocabulary import build_categories
from .worker import render_images, render_images_in_parallel

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
"""To be raised with every change of pixels or annotations: older folders are then replaced."""

SPLITS = ("train", "val")
STAMP = "synthlt.json"
MIN_IMAGES_PER_WORKER = 100


def datasets_root() -> Path:
    """Where Detectron2 keeps its datasets: $DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def dataset_folder(profile_name: str, root: str | Path) -> Path:
    """The folder of a profile under the root of all datasets."""
    return Path(root) / "synthlt" / profile_name


def annotation_file(profile_name: str, split: str, root: str | Path) -> Path:
    """The LVIS JSON file of a split, "train" or "val"."""
    return dataset_folder(profile_name, root) / "annotations" / f"{split}.json"


def generate(
    profile: Profile | str,
    root: str | Path,
    seed: int | None = 0,
    workers: int | None = None,
) -> Path:
    """
    Makes sure that a SynthLT dataset exists on disk.

    What is there and was made from the same parameters is left alone; a dataset of another seed,
    profile or generator version is replaced. The folder appears complete or not at all: it is
    written next to its place and then renamed. Concurrent calls wait for the first one.

    Args:
        profile: what to generate, or the name of a built-in profile.
        root: the root of all datasets; the result is <root>/synthlt/<profile name>.
        seed: of the images, at least 0. None accepts any that is there and stands for 0 otherwise.
        workers: processes to render with; None takes one per available core.

    Returns:
        The folder, which holds train/*.jpg, val/*.jpg, annotations/train.json and
        annotations/val.json.

    Raises:
        ValueError: on an unknown profile, a negative seed or less than one worker.
        OSError: if the folder cannot be written, or holds something else.
    """
    if isinstance(profile, str):
        profile = get_profile(profile)
    if seed is not None and seed < 0:
        raise ValueError(f"SynthLT expects a seed of at least 0, got {seed}")
    if workers is not None and workers < 1:
        raise ValueError(f"SynthLT expects at least one worker, got {workers}")

    folder = dataset_folder(profile.name, root)
    if _is_current(folder, profile, seed):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder.with_name(f".{profile.name}.lock")):
            if not _is_current(folder, profile, seed):
                _replace(folder, profile, seed or 0, workers)
    except OSError as error:
        raise OSError(
            f"cannot write SynthLT {profile.name!r} to {folder}: {error}. Point "
            f"DETECTRON2_DATASETS (or --root) to a folder that is writable and has room"
        ) from error
    return folder


def _stamp(profile: Profile, seed: int) -> dict:
    parameters = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "profile": dataclasses.asdict(profile),
    }
    # Through JSON and back: a tuple is to equal the list that is read from disk.
    return json.loads(json.dumps(parameters))


def _read_stamp(folder: Path) -> dict | None:
    try:
        return json.loads((folder / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_current(folder: Path, profile: Profile, seed: int | None) -> bool:
    found = _read_stamp(folder)
    if found is None:
        return False
    expected = _stamp(profile, found.get("seed", 0) if seed is None else seed)
    is_same = all(found.get(key) == value for key, value in expected.items())
    return is_same and all((folder / "annotations" / f"{s}.json").exists() for s in SPLITS)


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    """Holds a lock that the system releases when its process ends, however it ends."""
    with open(lock_file, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for the process that holds %s", lock_file)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(folder: Path, profile: Profile, seed: int, workers: int | None) -> None:
    """Generates into a neighbouring folder and puts it in place. Needs the lock."""
    for leftover in folder.parent.glob(f".{profile.name}.partial-*"):
        logger.warning("Removing %s of an interrupted run", leftover)
        shutil.rmtree(leftover)
    if folder.exists() and _read_stamp(folder) is None:
        raise FileExistsError(f"it holds no {STAMP}, so it is not ours to replace; move it away")

    partial = folder.with_name(f".{profile.name}.partial-{os.getpid()}")
    try:
        _write(partial, profile, seed, workers)
        if folder.exists():
            logger.info("Replacing %s, made from other parameters", folder)
            outdated = partial.with_name(partial.name + "-outdated")
            folder.rename(outdated)
            partial.rename(folder)
            shutil.rmtree(outdated)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, profile: Profile, seed: int, workers: int | None) -> None:
    logger.info(
        "Generating SynthLT %r (%d + %d images) in %s",
        profile.name,
        profile.num_train,
        profile.num_val,
        folder.parent,
    )
    for name in (*SPLITS, "annotations"):
        (folder / name).mkdir(parents=True)
    records = _render(folder, profile, seed, workers)
    by_split = {"train": records[: profile.num_train], "val": records[profile.num_train :]}
    categories = category_records(build_categories(profile), by_split["train"])
    digests = {}
    for split, part in by_split.items():
        description = f"SynthLT {profile.name} {split}, seed {seed}"
        dataset = lvis_dataset(description, categories, part)
        content = json.dumps(dataset, separators=(",", ":")).encode()
        (folder / "annotations" / f"{split}.json").write_bytes(content)
        digests[split] = {
            "annotations": hashlib.sha256(content).hexdigest(),
            "pixels": _digest(record["pixels"] for record in part),
        }
    stamp = {**_stamp(profile, seed), "sha256": digests}
    (folder / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")


def _render(folder: Path, profile: Profile, seed: int, workers: int | None) -> list[dict]:
    plans = plan_images(profile, seed)
    if workers is None:
        workers = max(1, min(_available_cores(), len(plans) // MIN_IMAGES_PER_WORKER))
    if workers == 1:
        records = render_images(profile, seed, plans, folder)
    else:
        records = render_images_in_parallel(profile, seed, plans, folder, workers)
    title = f"SynthLT {profile.name}"
    return list(track(records, title, total=len(plans)))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _digest(hex_digests: Sequence[str] | Iterator[str]) -> str:
    """One SHA-256 for a sequence of them."""
    return hashlib.sha256("".join(hex_digests).encode()).hexdigest()
