"""Files are complete or not there, whoever else writes them."""

import pytest

from lt_detectron2.files import replacing


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
