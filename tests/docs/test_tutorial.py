"""The commands of the tutorial run as they stand, with shorter trainings."""

import os
import re
import stat
import subprocess
import sys

import pytest

from .pages import REPOSITORY, blocks

TUTORIAL = REPOSITORY / "docs" / "tutorial_own_data.md"
SHORTER = {"SOLVER.MAX_ITER 300": "SOLVER.MAX_ITER 4 TEST.EVAL_PERIOD 0"}


@pytest.fixture
def workspace(tmp_path):
    """A folder like the repository, with the two programs that the tutorial calls."""
    for name in ("train_net.py", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, options in (("python", ""), ("lt-detectron2", "-m lt_detectron2")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def test_commands(workspace):
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    script = "\n".join(["set -e", *blocks])
    for long, short in SHORTER.items():
        assert long in script
        script = script.replace(long, short)
    environment = {
        **os.environ,
        "PATH": f"{workspace / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "DETECTRON2_DATASETS": str(workspace / "datasets"),
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,  # a minute where nothing else runs
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    for file in (
        "classes.png",
        "my_data/train_zipf.json",
        "output/own_data/tiny_softmax/inference/per_category.csv",
        "output/my/model_final.pth",
        "output/split_example/model_final.pth",
        "comparison/comparison.md",
        "comparison/differences.png",
        "output/my/report.html",
        "found/detections.json",
        "exported/model.ts",
    ):
        assert (workspace / file).is_file(), file
    assert len(list((workspace / "output").glob("split_train_*/val.json"))) == 1
    check_shown(done.stdout, (workspace / "comparison" / "comparison.md").read_text("utf-8"))


def check_shown(printed, comparison):
    """What the page shows is what the programs print, but for the numbers of a training."""
    counts, differences = blocks(str(TUTORIAL.relative_to(REPOSITORY)), "")
    assert counts in printed
    for first_word in ("class ", "Nº2 "):
        shown, found = (row_of(text, first_word) for text in (differences, comparison))
        assert shown[:4] == found[:4] and len(shown) == len(found)
    verdict = "the difference of AP lies in "
    shown, found = (text.split(verdict)[1].splitlines()[0] for text in (differences, comparison))
    assert re.sub(r"-?[\d.]+", "", shown) == re.sub(r"-?[\d.]+", "", found)


def row_of(text, first_word):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first_word}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_configs_is_complete():
    text = TUTORIAL.read_text(encoding="utf-8")
    configs = (REPOSITORY / "configs" / "own_data").rglob("*.yaml")
    for path in configs:
        if not path.name.startswith(("Base", "mask_")) and path.parent.name != "tiny":
            assert path.stem in text, path
