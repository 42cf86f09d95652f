"""The report of a run: what it says, that it stands alone, and what it does where things lack."""

import csv
import json
import logging
import re
import shutil
import subprocess

import pytest
from detectron2.data import DatasetCatalog

from lt_detectron2.analysis import provenance, run_report
from lt_detectron2.analysis.run_report import document as doc
from lt_detectron2.analysis.run_report import leave_report, write_report
from lt_detectron2.analysis.run_report.curves import curve, read_metrics
from lt_detectron2.commands.command_line import main
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.evaluation import LongTailOpenImagesEvaluator
from lt_detectron2.evaluation.report import csv_text
from lt_detectron2.statistics import ClassStatistics
from tests.engine.small_set import register, unregister
from tests.evaluation import test_challenge as open_images
from tests.golden import load_golden
from tests.modeling.detectors import small_config, small_detector

DATASET = "run_report_val"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with everything: a random detector, evaluated, and invented curves."""
    register(DATASET, tmp_path_factory.mktemp("images"))
    folder = tmp_path_factory.mktemp("output") / "my <run>"
    folder.mkdir()
    overrides = ["DATASETS.TEST", f"('{DATASET}',)", "MODEL.MASK_ON", "False", "SEED", "3"]
    overrides += ["LONG_TAIL.EVAL.BOOTSTRAP", "5"]
    cfg = small_config(folder, "LongTailROIHeads", "SeesawLoss", *overrides)
    LongTailTrainer.test(cfg, small_detector(cfg))
    (folder / "config.yaml").write_text(cfg.dump())
    losses = [{"iteration": i, "total_loss": 3.0 - i / 50, "lr": 0.1} for i in range(0, 100, 20)]
    entries = [{**e, "loss_cls": 1.0, "loss_box_reg": 0.5, "time": 0.25} for e in losses]
    entries += [{"iteration": i, "bbox/AP": i / 4, "bbox/APr": float("nan")} for i in (40, 99)]
    lines = [json.dumps(entry) for entry in entries]
    (folder / "metrics.json").write_text("\n".join([*lines, '{"iteration": 120, "total_']))
    provenance.record_start(folder, continues=False)
    yield folder
    unregister(DATASET)


@pytest.fixture(scope="module")
def report(run):
    markdown, page = write_report(run)
    return markdown.read_text(), page.read_text()


def section(markdown, title):
    return re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", markdown, re.DOTALL)[1]


def test_every_section_is_made(report):
    markdown, page = report
    for title in run_report.SECTIONS:
        assert section(markdown, title).strip()
        assert f"<h2>{title}</h2>" in page
    for text in (markdown, page):
        assert "Could not be made" not in text and "Not shown" not in text


def test_page_stands_alone(report):
    _, page = report
    assert not re.search(r"<script|<link|<iframe|url\(|@import|http", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) >= 6 and all(s.startswith("data:image/") for s in sources)
    assert "<title>my &lt;run&gt;</title>" in page and "my <run>" not in page


def test_pictures_of_the_markdown_exist(report, run):
    markdown, _ = report
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(links) >= 6 and all((run / link).is_file() for link in links)


def test_numbers_are_those_of_the_evaluation(report, run):
    markdown, _ = report
    results = json.loads((run / "inference" / "results.json").read_text())["results"]["bbox"]
    table = section(markdown, "Results")
    row = next(line for line in table.splitlines() if line.startswith("| all "))
    assert row.split("|")[5].strip() == f"{results['AP']:.1f}"
    assert "All 7 classes" in table and table.count("| class ") >= 7
    assert "Bootstrap intervals" in table
    assert "81 iterations, 0.25 s each" in markdown


def test_groups_are_those_that_are_averaged(report, run):
    """Two of the three frequent classes have no annotation: APf is the AP of the third."""
    content = json.loads((run / "inference" / "results.json").read_text())
    groups = content["groups"][0]
    assert groups["categories"]["f"] != groups["categories_with_annotations"]["f"]
    assert f">{groups['categories_with_annotations']['f']} classes<" in report[1]
    assert f">{groups['categories']['f']} classes<" not in report[1]


def test_classes_without_a_group_are_not_called_rare(report, run, tmp_path):
    assert "the rare and common classes of which" in section(report[0], "Worst confusions")
    copy = tmp_path / "inference"
    shutil.copytree(run / "inference", copy)
    table = (copy / "per_category.csv").read_text()
    (copy / "per_category.csv").write_text(re.sub(",[rcf],", ",n/a,", table))
    text = section(write_report(tmp_path)[0].read_text(), "Worst confusions")
    assert "These are the classes of which" in text


def test_counts_that_nobody_knows_are_not_zero(report, run, tmp_path):
    """An evaluation with AP-fixed, of an LVIS file's own letters, without counts of a training."""
    assert "Each dot is a class" in report[0]
    copy = tmp_path / "inference"
    shutil.copytree(run / "inference", copy)
    with (copy / "per_category.csv").open(newline="") as file:
        rows = [{**row, "train_images": "n/a"} for row in csv.DictReader(file)]
    columns = {name.replace("bbox_", "bbox_fixed_"): [r[name] for r in rows] for name in rows[0]}
    (copy / "per_category.csv").write_text(csv_text(columns))
    markdown = write_report(tmp_path)[0].read_text()
    assert "Could not be made" not in markdown and "Each dot is a class" not in markdown
    lines = section(markdown, "Worst confusions").splitlines()
    table = [line.split("|") for line in lines if line.startswith("|")]
    assert table[0][3].strip() == "training images"
    assert {cells[3].strip() for cells in table[2:]} == {"n/a"}


@pytest.mark.parametrize("with_statistics", [True, False])
def test_open_images(with_statistics, tmp_path):
    golden = load_golden("openimages_eval")
    open_images.register_golden(golden, tmp_path)
    counts, statistics = golden["toy_instance_counts"], None
    if with_statistics:
        statistics = ClassStatistics(counts, counts.clip(max=5), 5)
    try:
        folder = str(tmp_path / "inference")
        evaluator = LongTailOpenImagesEvaluator(
            open_images.NAME, output_dir=folder, statistics=statistics
        )
        numbers = open_images.run(evaluator, golden)["bbox"]
        markdown = write_report(tmp_path)[0].read_text()
    finally:
        unregister(open_images.NAME)
    assert "Could not be made" not in markdown
    lead = markdown.split("## ")[0]
    assert f"| {numbers['AP50']:.1f} " in lead and all(name in lead for name in numbers)
    text = section(markdown, "Results")
    assert " 0 annotations" not in text and "All 8 classes" in text and "| mid" not in text
    row = next(line for line in text.splitlines() if line.startswith("| all "))
    assert row.split("|")[5].strip() == f"{numbers['AP50']:.1f}"


def test_config_lists_what_differs(report):
    markdown, _ = report
    text = section(markdown, "Config").split("<details>")[0]
    assert "| `LONG_TAIL.LOSS.NAME` " in text and "`SeesawLoss`" in text
    assert "| `SEED` " in text and "SOLVER.MOMENTUM" not in text


def test_command_and_machine(report):
    text = section(report[0], "Reproduce")
    assert "python " in text and "| torch " in text and "| seed " in text


def test_only_what_was_chosen_counts():
    values = {"LONG_TAIL.LOSS.NAME": "SeesawLoss", "DATALOADER.SAMPLER_TRAIN": "A"}
    is_used = run_report.sections._is_used
    assert is_used("LONG_TAIL.LOSS.SeesawLoss.P", values)
    assert not is_used("LONG_TAIL.LOSS.GumbelLoss.P", values)
    assert not is_used("LONG_TAIL.SAMPLER.B.POWER", values)
    assert is_used("LONG_TAIL.EVAL.BOOTSTRAP", values) and is_used("MODEL.RPN.X.Y.Z", values)


def test_data_set_that_is_not_here(run, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "inference").symlink_to(run / "inference")
    monkeypatch.setattr(DatasetCatalog, "list", lambda: [])
    markdown = write_report(copy)[0].read_text()
    assert f"Not shown: no data set is registered as '{DATASET}'" in section(markdown, "Examples")
    assert "| all " in section(markdown, "Results")
    assert "Nothing was trained" in markdown and "no config.yaml" in markdown
    assert "not known" in section(markdown, "Data") and "was not kept" in markdown


def test_training_without_evaluation(run, tmp_path):
    for name in ("metrics.json", "config.yaml", "class_statistics.json"):
        (tmp_path / name).write_text((run / name).read_text())
    markdown = write_report(tmp_path)[0].read_text()
    assert "has not been evaluated" in section(markdown, "Results")
    assert "training.png" in section(markdown, "Training")
    assert "Could not be made" not in markdown


def test_command(run, capsys, tmp_path):
    for name in ("metrics.json", "class_statistics.json"):
        (tmp_path / name).write_text((run / name).read_text())
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split("\n")[1].endswith("report.html")
    assert main(["report", str(tmp_path / "report")]) == 1
    assert "is not the output folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("broken"), OSError("disk full")])
def test_failure_stops_nothing(run, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_report, "RunFolder", fail)
    with caplog.at_level(logging.WARNING, logger="lt_detectron2"):
        leave_report(run)
    assert "The report could not be written" in caplog.text and str(error) in caplog.text


def test_failing_section_costs_no_other(run, monkeypatch, caplog):
    def fail(_):
        raise KeyError("unforeseen")

    sections = {"Results": run_report.SECTIONS["Results"], "Worst confusions": fail}
    monkeypatch.setattr(run_report, "SECTIONS", sections)
    with caplog.at_level(logging.WARNING, logger="lt_detectron2"):
        markdown = write_report(run)[0].read_text()
    assert "Could not be made (KeyError" in section(markdown, "Worst confusions")
    assert "| all " in section(markdown, "Results")
    assert "Worst confusions of the report could not be made" in caplog.text


def test_starts_are_kept(tmp_path):
    provenance.record_start(tmp_path, continues=False)
    provenance.record_start(tmp_path, continues=True)
    assert len(provenance.read_starts(tmp_path)) == 2
    provenance.record_start(tmp_path, continues=False)
    (start,) = provenance.read_starts(tmp_path)
    assert start["command"].startswith("python ") and start["packages"]["torch"]
    (tmp_path / "run.json").write_text("{")
    assert provenance.read_starts(tmp_path) == []


def test_commit_is_that_of_this_project(tmp_path, monkeypatch):
    """Installed into an environment that lies in the checkout of another project."""

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "theirs")
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert re.fullmatch(r"[0-9a-f]{7,}", provenance.provenance()["commit"])
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path / "site-packages")
    assert provenance.provenance()["commit"] == "unknown"


def test_command_line_under_torchrun(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_net.py", "OUTPUT_DIR", "my run"])
    assert provenance.command_line() == "python train_net.py OUTPUT_DIR 'my run'"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    expected = "torchrun --nproc_per_node 8 train_net.py OUTPUT_DIR 'my run'"
    assert provenance.command_line() == expected


def test_metrics_of_a_resumed_training(tmp_path):
    lines = ['{"iteration": 0, "a": 1.0}', '{"iteration": 1, "a": 2.0}']
    lines += ['{"iteration": 1, "a": 3.0}', '{"iteration": 2, "a": NaN}']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert curve(read_metrics(tmp_path), "a") == ([0, 1], [1.0, 3.0])


def test_blocks():
    table = doc.Table(["class", "AP"], [["a|b <i> [r]", "1.0"]])
    page = doc.to_html(doc.Document("t", "s `x`", [doc.Section("one", [table])]))
    assert '<td class="text">a|b &lt;i&gt; <span class="rare">rare</span></td><td>1.0</td>' in page
    assert "s <code>x</code>" in page
    markdown = doc.to_markdown(doc.Document("t", "s", [doc.Section("one", [table])]), None)
    assert "| a\\|b <i> *rare* | 1.0 |" in markdown and "| -" in markdown and "-: |" in markdown
    folded = doc.Folded("more", [doc.Code("x < 1", "sh")])
    page = doc.to_html(doc.Document("t", "s", [doc.Section("one", [folded])]))
    assert "<details><summary>more</summary>" in page and "x &lt; 1" in page
