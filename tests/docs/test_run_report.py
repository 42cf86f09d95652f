"""The page on reports: its pictures and sections are there, its example config is valid."""

import re

from detectron2.engine import default_argument_parser

from lt_detectron2.engine.setup import check_config, load_config

from .pages import REPOSITORY, commands

PAGE = (REPOSITORY / "docs" / "run_report.md").read_text(encoding="utf-8")


def test_pictures_are_there():
    pictures = re.findall(r"!\[.+\]\((.+?)\)", PAGE)
    assert len(pictures) == 2
    assert all((REPOSITORY / "docs" / picture).is_file() for picture in pictures)


def test_training(tmp_path, monkeypatch):
    (command,) = [c for c in commands("docs/run_report.md") if c[0] == "python"]
    assert command[1] == "train_net.py"
    arguments = default_argument_parser().parse_args(command[2:])
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = load_config(arguments.config_file, [*arguments.opts, "OUTPUT_DIR", str(tmp_path)])
    check_config(cfg, arguments)
    assert cfg.LONG_TAIL.BEST_CHECKPOINT == "bbox/APr"
    assert cfg.LONG_TAIL.WRITERS[-1] == "csv"


def test_table_names_every_section():
    from lt_detectron2.analysis.run_report import SECTIONS

    assert re.findall(r"^\| ([A-Z][a-z ]+?) \|", PAGE, re.MULTILINE) == list(SECTIONS)
