"""What the table of reliability, the matrix of versions and the soak test make of their runs."""

import itertools
import subprocess
import sys
from dataclasses import replace

import compatibility
import install_detectron2
import pytest
import reliability
import soak


def test_rows_come_from_docstrings_and_results(tmp_path):
    """A test's docstring is its property; its cases, inputs, times and failures are summed."""
    report = tmp_path / "junit.xml"
    name = 'classname="tests.tools.test_reliability" name="test_slope_of_a_line'
    report.write_text(
        f"""<testsuites><testsuite>
        <testcase {name}[a]" time="1.5"><properties><property name="inputs" value="40"/>
        </properties></testcase>
        <testcase {name}[b]" time="2"><failure message="x"/></testcase>
        </testsuite></testsuites>"""
    )
    (row,) = reliability.rows_by_file(report)["tests/tools/test_reliability.py"]
    assert row.property == "Memory that grows by 1 MiB a second has a slope of 3600 MiB an hour."
    assert (row.cases, row.inputs, row.seconds, row.result) == (2, 40, 3.5, "**1 failed**")


def test_tests_of_the_table_exist():
    """The topics of the table name tests that are there, and that say what they promise."""
    for name in itertools.chain(*reliability.TOPICS.values()):
        file, _, function = name.partition("::")
        promises = reliability.first_lines(reliability.ROOT / file)
        assert promises and (not function or function in promises), name


def test_slope_of_a_line():
    """Memory that grows by 1 MiB a second has a slope of 3600 MiB an hour."""
    assert soak.slope([0, 1, 2, 4], [7, 8, 9, 11]) == pytest.approx(3600)
    assert soak.slope([0, 1, 2], [5, 5, 5]) == 0


def test_workers_of_evaluations_are_not_taken_for_growth():
    """Memory of workers is compared between samples in which the same ones are there."""
    entry = dict.fromkeys(soak.FIELDS, 1.0)
    samples = [
        entry | {"seconds": t, "workers": 4 if t % 3 else 2, "workers_mib": 900 if t % 3 else 400}
        for t in range(30)
    ]
    (line,) = [line for line in soak.report(samples, 1 / 3) if line.startswith("workers_mib")]
    assert line.split() == "workers_mib 400.0 to 400.0 MiB slope +0.00 MiB an hour".split()


def test_soak_sees_what_grows_and_what_is_left_behind():
    """The watcher samples a program's memory and files, ends it, and finds no child left."""
    program = "import time; held = []\nwhile True: held.append(bytearray(10**6)); time.sleep(0.01)"
    samples, status, left = soak.watch([sys.executable, "-c", program], 0.04, 0.2)
    assert len(samples) > 4 and status == -15 and left == "nothing"
    assert samples[-1]["main_mib"] > samples[0]["main_mib"] + 20
    assert samples[0]["files"] >= 3
    assert "slope +" in "\n".join(soak.report(samples, 0))


def test_soak_of_a_training_that_fails_at_once(tmp_path, monkeypatch, capsys):
    """Its exit status is said, though there is neither a sample nor a log."""
    (tmp_path / "train_net.py").write_text("import sys\nsys.exit(3)")
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--sample-seconds", "1"])
    assert soak.main() == 1
    assert "0 entries logged; the training ended with status 3" in capsys.readouterr().out


def test_cells_are_listed():
    """The matrix names the cells that can run on this machine, and refuses unknown ones."""
    command = [sys.executable, "tools/compatibility.py"]
    listed = subprocess.run(
        [*command, "--list"], capture_output=True, text=True, cwd=reliability.ROOT, check=True
    )
    assert "oldest-torch" in listed.stdout and "torch==2.4.1" in listed.stdout
    refused = subprocess.run(
        [*command, "newest"], capture_output=True, text=True, cwd=reliability.ROOT
    )
    assert refused.returncode == 2 and "no cell newest: expected some of" in refused.stderr


ROW = compatibility.Outcome(
    "python-3.12", *("3.12.1", "2.11.0", "2.5.5", "0.6", "all"), *(9, 1, 0, 4.4, "abc")
)


def test_rows_of_cells_replace_older_ones():
    """A cell that runs again has its row replaced; rows stand in the order of the cells."""
    header = compatibility.Outcome.HEADER
    notes = f"before\n\n{header}\n\nafter\n"
    notes = compatibility.with_row(notes, ROW)
    notes = compatibility.with_row(notes, replace(ROW, cell="oldest-torch"))
    notes = compatibility.with_row(notes, replace(ROW, failed=2, commit="def"))
    first, second = notes.split(f"{header}\n")[1].splitlines()[:2]
    assert first.startswith("| oldest-torch |") and first.endswith("| 9 | 1 | 0 | 4 | abc |")
    assert second.startswith("| python-3.12 |") and second.endswith("| 9 | 1 | **2** | 4 | def |")
    assert notes.startswith("before\n\n") and notes.endswith("|\n\nafter\n")
    with pytest.raises(ValueError, match="no table of cells"):
        compatibility.with_row("notes", ROW)


def test_results_of_a_cell_are_counted(tmp_path):
    """Failures and errors of the set-up are both failures."""
    report = tmp_path / "junit.xml"
    report.write_text(
        '<testsuites><testsuite tests="9" skipped="2" failures="1" errors="3"/></testsuites>'
    )
    assert compatibility.counts(report) == (3, 2, 4)


def test_lowest_versions_are_those_of_setup():
    """Each requirement of setup.py is asked for at its lowest release."""
    lowest = compatibility.lowest_versions()
    assert "torch==2.4.*" in lowest and "pytest==8.1.*" in lowest
    assert len(lowest) == (reliability.ROOT / "setup.py").read_text("utf-8").count(">=") - 1


def test_notes_end_the_page(tmp_path, monkeypatch):
    """The page ends with the notes, and writing them changes both, and nothing before them."""
    page, notes = tmp_path / "page.md", tmp_path / "notes.md"
    page.write_text(reliability.PAGE.read_text("utf-8"), "utf-8")
    notes.write_text(reliability.NOTES.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(reliability, "PAGE", page)
    monkeypatch.setattr(reliability, "NOTES", notes)
    table = page.read_text("utf-8").removesuffix(notes.read_text("utf-8"))
    reliability.write_notes("## Others\n")
    assert page.read_text("utf-8") == table + "## Others\n"
    assert notes.read_text("utf-8") == "## Others\n"
    notes.write_text("## Mended by hand\n")
    with pytest.raises(ValueError, match="run `make reliability`"):
        reliability.write_notes("")


def test_a_tree_of_detectron2_is_laid_out(tmp_path, monkeypatch):
    """Projects and configs of a source tree lie where an installation has them."""
    monkeypatch.setattr(compatibility, "FOLDER", tmp_path / "build")
    tree = tmp_path / "tree"
    with pytest.raises(SystemExit, match="is no source tree of Detectron2"):
        compatibility.assemble(tree)
    for source in install_detectron2.LAYOUT:
        (tree / source).mkdir(parents=True)
        (tree / source / "__init__.py").touch()
    (tree / "configs").mkdir()
    (tree / "configs" / "base.yaml").touch()
    folder = compatibility.assemble(tree)
    environments = {compatibility.FOLDER / name for name in compatibility.CELLS}
    assert environments.isdisjoint([folder, *folder.parents])
    assert (folder / "detectron2" / "model_zoo" / "configs" / "base.yaml").is_file()
    assert (folder / "detectron2" / "projects" / "point_rend" / "__init__.py").is_file()


def test_commit_is_marked_if_files_differ(tmp_path):
    """A row says if what ran was not what is committed; writing the table itself is no change."""
    assert compatibility.commit(tmp_path) == ""
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/reliability.md"):
        (tmp_path / name).write_text("before")
    author = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    name = compatibility.commit(tmp_path)
    (tmp_path / "docs" / "reliability.md").write_text("after")
    assert name and compatibility.commit(tmp_path) == name
    (tmp_path / "code.py").write_text("after")
    assert compatibility.commit(tmp_path) == f"{name}+"
