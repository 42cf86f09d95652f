"""Files are complete or not there, whoever else writes them."""

import os
import stat

import pytest
from torch import nn

from lt_detectron2.files import replacing


@pytest.fixture
def disk(monkeypatch):
    """What is asked of the disk, in order: (what, size of the file, or "folder")."""
    calls, fsync, replace = [], os.fsync, os.replace

    def note_fsync(handle):
        status = os.fstat(handle)
        calls.append(("fsync", "folder" if stat.S_ISDIR(status.st_mode) else status.st_size))
        fsync(handle)

    def note_replace(part, path):
        calls.append(("replace", os.stat(part).st_size))
        replace(part, path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return calls


def through(size):
    """A file that is on the disk before it takes its name, which then is there too."""
    return [("fsync", size), ("replace", size), ("fsync", "folder")]


@pytest.mark.parametrize("durable", [True, False])
def test_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, disk, durable):
    with replacing(tmp_path / "file", "wb", durable=durable) as file:
        file.write(b"12345")
    assert disk == (through(5) if durable else [("replace", 5)])


def test_checkpoint_is_durable(tmp_path, disk):
    """Before the name of the newest one changes, that one is on the disk in full."""
    pytest.importorskip("detectron2")  # the rest of this file needs torch only
    from lt_detectron2.engine.checkpoint import HISTORY_FILE, LAST_FILE, LongTailCheckpointer

    LongTailCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("one")
    files = ("one.pth", HISTORY_FILE, LAST_FILE)
    sizes = [(tmp_path / name).stat().st_size for name in files]
    assert disk == [call for size in sizes for call in through(size)]


def test_takes_its_name_when_complete(tmp_path):
    path = tmp_path / "file.txt"
    with replacing(path) as file:
        file.write("é")
        assert not path.exists()
    assert path.read_bytes() == "é".encode() and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path, "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_several_writers(tmp_path):
    """Processes of two containers may have one number; each writes a file of its own."""
    path = tmp_path / "file"
    with replacing(path, "wb", durable=True) as first:
        first.write(b"first")
        with replacing(path, "wb") as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
