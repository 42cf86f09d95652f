"""What the table of reliability and the soak test make of their measurements."""

import itertools
import subprocess
import sys

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


def test_soak_sees_what_grows_and_what_is_left_behind():
    """The watcher samples a program's memory and files, ends it, and finds no child left."""
    program = "import time; held = []\nwhile True: held.append(bytearray(10**6)); time.sleep(0.01)"
    samples, status, left = soak.watch([sys.executable, "-c", program], 0.04, 0.2)
    assert len(samples) > 4 and status == -15 and left == "nothing"
    assert samples[-1]["main_mib"] > samples[0]["main_mib"] + 20
    assert samples[0]["files"] >= 3
    assert "slope +" in "\n".join(soak.report(samples, 0))


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
