"""What is said where a disk is full, of the environment or of temporary files."""

import collections
import shutil
import tempfile
from pathlib import Path

import pytest
import setup_environment
from setup_environment import DOWNLOADED, GIB, INSTALLED, SetupError, install_torch, want_of_space

Usage = collections.namedtuple("Usage", "free")
Status = collections.namedtuple("Status", "st_dev st_mode")


@pytest.fixture
def disks(monkeypatch, tmp_path):
    """Sets bytes free where the environment and where temporary files are, and disks of both."""
    environment, temporary = tmp_path / "environment", tmp_path / "temporary"
    environment.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    stat = Path.stat

    def set_disks(free, same=True):
        def status(path, **options):
            real = stat(path, **options)
            return Status(1 if same or path != temporary else 2, real.st_mode)

        monkeypatch.setattr(Path, "stat", status)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free[path.name]))
        return environment / "not" / "there"

    return set_disks


def test_downloads_on_the_same_disk_count(disks):
    all_of_it = INSTALLED + DOWNLOADED
    assert want_of_space(disks({"environment": all_of_it})) == ""
    assert "takes 9 GiB" in want_of_space(disks({"environment": all_of_it - 1}))


def test_downloads_on_another_disk(disks):
    enough = {"environment": INSTALLED, "temporary": DOWNLOADED}
    assert want_of_space(disks(enough, same=False)) == ""
    hint = want_of_space(disks(enough | {"temporary": GIB}, same=False))
    assert "temporary may be full" in hint and "takes 3 GiB, and 1.0 are free" in hint
    hint = want_of_space(disks(enough | {"environment": 0}, same=False))
    assert "environment may be full" in hint and "takes 6 GiB" in hint


@pytest.mark.parametrize("free", [0, 100 * GIB])
def test_a_failure_of_pip_is_explained(disks, monkeypatch, free):
    def fail(*arguments):
        raise SetupError("exit status 1")

    monkeypatch.setattr(setup_environment, "torch_version", lambda python: None)
    monkeypatch.setattr(setup_environment, "pip_install", fail)
    folder = disks({"environment": free})
    with pytest.raises(SetupError) as caught:
        install_torch(folder / "bin" / "python", [])
    assert ("TORCH_ARGS" in str(caught.value)) == (free == 0)
