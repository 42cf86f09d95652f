"""`doctor`: what works, what does not, and what to do about it."""

import shutil
from collections import namedtuple

from lt_detectron2 import environment
from lt_detectron2.commands import doctor
from lt_detectron2.commands.command_line import main

Usage = namedtuple("Usage", "total used free")


def test_all_is_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["doctor", "--output", str(tmp_path / "not" / "yet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("!")]
    text = "\n".join(lines)
    for part in ("torchvision", "detectron2", "this package", "GB free", "data sets    under"):
        assert part in text


def test_broken_parts_have_a_remedy(monkeypatch, capsys):
    def broken():
        raise environment.Broken("does not load: install it")

    monkeypatch.setitem(environment.CHECKS, "detectron2", broken)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "! detectron2   does not load: install it" in printed and "not looked at" in printed


def test_little_room_and_no_folder_of_data(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**9))
    monkeypatch.setenv("DETECTRON2_DATASETS", "/no/such/folder")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "1 GB free" in printed and "which is little" in printed
    assert "? data sets    no folder '/no/such/folder'" in printed


def test_an_incomplete_data_set_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "coco" / "val2017" / "1.jpg").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "coco is damaged" in printed and "datasets/check.py" in printed


def test_optional_packages(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_module": ("It", "films", "pip install it")})
    assert list(doctor._extras())[1] == "? It           not there, so no films: pip install it"
