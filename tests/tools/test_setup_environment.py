"""The space that an environment needs is asked for before anything is downloaded."""

import collections
import shutil
import tempfile

import pytest
import setup_environment
from setup_environment import DOWNLOADED, GIB, INSTALLED, SetupError, install_torch, require_space

Usage = collections.namedtuple("Usage", "free")


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(setup_environment, "torch_version", lambda python: None)


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(size))


def test_a_disk_without_room_is_reported_before_a_download(monkeypatch, tmp_path):
    free(monkeypatch, GIB)
    monkeypatch.setattr(setup_environment, "pip_install", lambda *arguments: pytest.fail("pip ran"))
    with pytest.raises(SetupError, match=r"needs [69] GiB .* 1\.0 are free.*TORCH_ARGS"):
        install_torch(tmp_path / "not" / "there" / "bin" / "python", [])


def test_downloads_on_the_same_disk_count(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free(monkeypatch, INSTALLED + DOWNLOADED - 1)
    with pytest.raises(SetupError, match="needs 9 GiB"):
        require_space(tmp_path / "environment")
    free(monkeypatch, INSTALLED + DOWNLOADED)
    require_space(tmp_path / "environment")


def test_another_build_of_torch_may_be_small(monkeypatch, tmp_path):
    free(monkeypatch, 0)
    ran = []
    monkeypatch.setattr(setup_environment, "pip_install", lambda *arguments: ran.append(arguments))
    install_torch(tmp_path / "bin" / "python", ["--index-url", "cpu"])
    assert ran[0][-2:] == ("--index-url", "cpu")
