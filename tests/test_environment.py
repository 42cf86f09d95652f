"""A torchvision whose operators do not run must be named at set-up, with the remedy."""

import sys

import pytest
import torchvision

from lt_detectron2 import environment
from lt_detectron2.environment import Broken, check_python, run_nms


def test_nms_runs_here():
    run_nms("cpu")


def test_operators_that_do_not_load(monkeypatch):
    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nand more lines")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    with pytest.raises(Broken, match=r"on cpu \(operator torchvision::nms does not exist\): inst"):
        run_nms("cpu")


def test_operators_that_answer_wrongly(monkeypatch):
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, scores, threshold: scores.argsort())
    with pytest.raises(Broken, match=r"kept boxes \[2, 0, 1\], expected \[1, 2\].*pair"):
        run_nms("cpu")


def test_report_lists_every_part_and_fails_if_one_is_broken(monkeypatch, capsys):
    assert environment.report_environment() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(environment.CHECKS)

    def broken():
        raise Broken("no such thing: install it")

    monkeypatch.setitem(environment.CHECKS, "detectron2", broken)
    assert environment.report_environment() == 1
    assert "! detectron2   no such thing: install it" in capsys.readouterr().out


def test_report_stops_where_the_rest_would_only_repeat_the_error(monkeypatch, capsys):
    monkeypatch.setitem(environment.CHECKS, "torchvision", run_nms_broken)
    assert environment.report_environment() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "! torchvision  no operators: reinstall"


def run_nms_broken():
    raise Broken("no operators: reinstall")


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(Broken, match="older than 3.10"):
        check_python()
