"""Every published row: its config loads, says what it is, and has the schedule it names."""

import csv
import functools
import re

import pytest
from detectron2.data import DatasetCatalog

from lt_detectron2.analysis import papers
from lt_detectron2.analysis.grids import load_grids
from lt_detectron2.engine.setup import load_config
from lt_detectron2.errors import ConfigError
from lt_detectron2.modeling.composition import check_composition
from lt_detectron2.modeling.swin import BUILDER, check_swin

from .papers_data import FILES, GRID_ROWS, NAMES, ROWS, base_of, config_name, config_of

NAME = re.compile(
    r"[a-z][a-z0-9_.]*_(faster_rcnn|mask_rcnn|cascade_rcnn|cascade_mask_rcnn|retinanet)"
    r"_(R_50|R_101|X_101_32x8d|Swin_T)_FPN_[123]x"
)
IMAGES = {
    "lvis_v1_train": 99_388,
    "lvis_v0.5_train": 56_740,
    "coco_lt_bags_train": 9_100,
    "coco_lt_simcal_train": 99_411,
}
ITERATIONS = "iterations"
SCHEDULES = {
    r"OpenImages/.*": (180_000, ITERATIONS),
    r"COCO/.*": (90_000, ITERATIONS),
    r".*/(crt|lws|eqlv2_table6_lws)_.*": (75_000, ITERATIONS),
    r".*/simcal_.*": (12_000, ITERATIONS),
    r".*/(droploss|eql_readme)_.*": (90_000, ITERATIONS),
    r".*/loce_.*": (6, (3, 5)),
    r".*/bags_supp_table1_tune_.*": (10, (7,)),
    r".*/ecm_readme_.*_2x": (24, (20, 22)),
    r"LVISv0.5.*/eql_.*": (25, (16, 22)),
    r".*_1x": (12, (8, 11)),
    r".*_2x": (24, (16, 22)),
    r".*_3x": (36, (28, 34)),
}
"""
How long a config trains: iterations, or epochs and those after which the learning rate falls.

The first pattern that its folder and name match counts.
"""

RECIPE = {
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}
CLIPPED = {"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model"}
BAGS_TABLES = (
    r"(LVISv0\.5.*|COCO-LT)/.*("
    r"faster_rcnn|cascade_rcnn|simcal_mask|(softmax|bags)_mask|bags_split).*_1x"
)
DIFFERENCES = {
    BAGS_TABLES: {
        **CLIPPED,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 35.0,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.WARMUP_FACTOR": 0.3333,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    },
    r"LVISv0.5.*/((softmax|bags)_faster_rcnn_R_50|bags_supp_table1|ncm_).*": {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0
    },
    r".*/bags_supp_table1_tune_.*": {"SOLVER.BASE_LR": 0.0001},
    r"LVISv0.5.*/(reweight_classifier|bags_supp_reweight)_.*": {"SOLVER.IMS_PER_BATCH": 32},
    r"LVISv0.5.*/eql_mask_.*": {
        "SOLVER.BASE_LR": 0.04,
        "SOLVER.IMS_PER_BATCH": 32,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    },
    r"COCO-LT/(softmax|simcal)_simcal_split_.*": {
        "SOLVER.BASE_LR": 0.01,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
        "TEST.DETECTIONS_PER_IMAGE": 100,
    },
    r".*/simcal_.*": {"SOLVER.MOMENTUM": 0.0, "SOLVER.WEIGHT_DECAY": 0.0},
    r".*/rog_.*": {
        **CLIPPED,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 5.0,
        "SOLVER.WARMUP_FACTOR": 0.0001,
    },
    r".*/ecm_.*": {
        **CLIPPED,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 5.0,
        "SOLVER.WARMUP_ITERS": 10_000,
        "SOLVER.WARMUP_FACTOR": 0.0001,
    },
    r".*/gol_.*": {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3},
    r"COCO/.*": {
        "SOLVER.WARMUP_ITERS": 1000,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
        "TEST.DETECTIONS_PER_IMAGE": 100,
    },
    r"COCO/.*retinanet.*": {"SOLVER.BASE_LR": 0.01},
}
"""
Optimizer, clipping and test settings of most published rows, and where others differ.

All patterns count that the folder and name of a config match, the later ones most.
"""


def home_rows():
    """The first row of the page for each file: the one its header is about."""
    found = {}
    for row in ROWS:
        if row.config and row.config != papers.GRID:
            found.setdefault(row.config, row)
    return found


HOME = home_rows()


def first_stages():
    """Where the first stages of second stages are expected."""
    return {config_of(name).MODEL.WEIGHTS for name in NAMES}


# ---- tables


def test_rows_are_well_formed():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.label, row.name
        assert row.config or row.note, f"{row.name} cannot be run, and does not say why"
        for metric, number in row.reported.items():
            assert re.fullmatch(r"A[PR][a-z]*\d*", metric), metric
            assert re.fullmatch(r"\d+\.\d{1,2}", number), f"{row.name}: {metric} {number}"
            assert 0 <= float(number) < 100


def test_each_table_is_in_the_index_and_each_file_in_the_folder():
    files = {path.stem for path in papers.TABLES.glob("*.csv")} - {"measured"}
    assert files == {table.key for paper in papers.load_papers() for table in paper.tables}


def test_each_config_belongs_to_a_row_and_each_row_finds_its_config():
    stages = first_stages()
    first_stage_only = {
        name
        for name in set(FILES) - set(HOME)
        if f"{config_of(name).OUTPUT_DIR}/model_final.pth" in stages
    }
    assert set(FILES) == set(HOME) | first_stage_only
    of_grids = {f"{table}/{row}" for table, grid in load_grids().items() for row in grid["rows"]}
    assert of_grids == {row.name for row in GRID_ROWS}


def test_measurements_name_a_row_metric_and_provenance():
    metrics = {row.name: set(row.table.metrics) for row in ROWS}
    with open(papers.TABLES / "measured.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = ["table", "row", "metric", "value", "seed", "commit", "machine", "command"]
        assert reader.fieldnames == columns
        for line in reader:
            assert line["metric"] in metrics[f"{line['table']}/{line['row']}"]
            assert all(line.values()), line


def test_measured_numbers_appear_beside_the_reported_ones(monkeypatch):
    monkeypatch.setattr(papers, "measurements", lambda: {"eqlv2_table1/eqlv2": "AP 99.9"})
    [changed] = set(papers.page().splitlines()) - set(
        papers.PAGE.read_text(encoding="utf-8").splitlines()
    )
    assert changed.startswith("| EQL v2 | 23.7 | 14.9 | 22.8 | 28.6 | 24.2 | AP 99.9 | [eqlv2_")


def test_page_is_what_its_generator_writes():
    assert papers.PAGE.read_text(encoding="utf-8") == papers.page()


# ---- configs


@pytest.mark.parametrize("name", NAMES)
def test_config_can_be_built(name):
    cfg = config_of(name)
    if cfg.MODEL.BACKBONE.NAME == BUILDER:
        try:
            check_swin(cfg)
        except ConfigError:
            pytest.skip("this Detectron2 does not have Swin")
    check_composition(cfg)
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert dataset in DatasetCatalog.list()
    assert len(cfg.DATASETS.TRAIN) == len(cfg.DATASETS.TEST) == 1
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE


def test_swin_is_refused_where_detectron2_lacks_it(monkeypatch):
    cfg = config_of(next(name for name in FILES if "Swin" in name))
    monkeypatch.setattr("lt_detectron2.modeling.swin.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="which this Detectron2 does not have .* take a config"):
        check_composition(cfg)
    found = {"timm": None}
    monkeypatch.setattr("lt_detectron2.modeling.swin.util.find_spec", lambda n: found.get(n, n))
    with pytest.raises(ConfigError, match="timm: install it"):
        check_composition(cfg)


@pytest.mark.parametrize("name", FILES)
def test_header_is_the_row_of_the_table(name):
    text = (papers.CONFIGS / name).read_text(encoding="utf-8")
    if name in HOME:
        assert text.startswith(HOME[name].comment() + "\n")
    assert text.startswith("# ") and text.count("Reported: ") == (name in HOME)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "_BASE_"))]
    assert len(lines) <= 13, f"{name}: {len(lines)} lines on its base"


def test_names_and_outputs():
    names = [config_name(name) for name in NAMES]
    for name in names:
        assert NAME.fullmatch(name), name
    outputs = [config_of(name).OUTPUT_DIR for name in NAMES]
    assert len(set(outputs)) == len(outputs)
    assert all(config_of(name).OUTPUT_DIR.endswith(config_name(name)) for name in FILES)


def test_second_stages_start_from_another_row():
    outputs = {f"{config_of(name).OUTPUT_DIR}/model_final.pth": name for name in NAMES}
    for name in NAMES:
        cfg, seen = config_of(name), {name}
        while cfg.MODEL.WEIGHTS.startswith("output/"):
            stage = outputs[cfg.MODEL.WEIGHTS]
            assert stage not in seen, f"{name} starts from itself"
            seen.add(stage)
            cfg = config_of(stage)
        assert "://" in cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("name", NAMES)
def test_schedule(name):
    solver = config_of(name).SOLVER
    path = f"{base_of(name).split('/')[0]}/{config_name(name)}"
    length, drops = next(s for p, s in SCHEDULES.items() if re.fullmatch(p, path))
    if drops == ITERATIONS:
        assert solver.MAX_ITER == length
        return
    epoch = IMAGES[config_of(name).DATASETS.TRAIN[0]] / solver.IMS_PER_BATCH
    assert abs(solver.MAX_ITER - length * epoch) < 1
    assert len(solver.STEPS) == len(drops)
    assert all(abs(step - drop * epoch) < 1 for step, drop in zip(solver.STEPS, drops))


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name):
    path = f"{base_of(name).split('/')[0]}/{config_name(name)}"
    expected = dict(RECIPE)
    for pattern, difference in DIFFERENCES.items():
        if re.fullmatch(pattern, path):
            expected |= difference
    found = {key: functools.reduce(getattr, key.split("."), config_of(name)) for key in expected}
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_sampler_is_the_one_of_the_name(name):
    node = config_of(name).DATALOADER
    is_rfs = "RepeatFactor" in node.SAMPLER_TRAIN
    assert is_rfs == (node.REPEAT_THRESHOLD > 0)
    if name in FILES:
        assert is_rfs == ("_rfs" in config_name(name))


# ---- the program


def test_write_makes_a_config_that_equals_the_row(tmp_path, capsys):
    for row in GRID_ROWS[::7]:
        papers.main(["write", row.name, "--folder", str(tmp_path)])
        path = capsys.readouterr().out.strip()
        assert path.endswith(f"{config_name(row.name)}.yaml")
        assert load_config(path) == config_of(row.name)
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert text.startswith(row.comment() + "\n_BASE_: ")


def test_write_names_the_file_of_other_rows(capsys):
    papers.main(["write", "eqlv2_table1/eqlv2"])
    assert capsys.readouterr().out.strip() == str(
        papers.CONFIGS / "LVISv1-InstanceSegmentation" / "eqlv2_mask_rcnn_R_50_FPN_1x.yaml"
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("eqlv2_table1/none", "no row 'eqlv2_table1/none' in the papers' tables"),
        ("eqlv2_table5/lst", "cannot be run: training in phases"),
    ],
)
def test_write_says_what_it_cannot_do(name, message):
    with pytest.raises(ConfigError, match=message):
        papers.main(["write", name])


def test_list_shows_numbers_and_reasons(capsys):
    papers.main(["list", "eqlv2_table5"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all(line.startswith("eqlv2_table5/") for line in lines)
    assert "AP 23.0" in lines[0] and "cannot be run" in lines[0]


def test_each_row_of_a_grid_changes_something():
    for row in GRID_ROWS:
        changed = config_of(row.name).clone()
        changed.defrost()
        base = config_of(base_of(row.name))
        assert changed.OUTPUT_DIR == f"output/papers/{row.name}"
        changed.OUTPUT_DIR = base.OUTPUT_DIR
        assert changed != base, row.name
