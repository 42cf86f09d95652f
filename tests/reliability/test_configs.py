"""Damaged configs: loaded and checked, or explained in one sentence; none can run a program."""

import argparse

import pytest
import yaml
from hypothesis import strategies as st

from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.errors import ConfigError

from .mutations import changed, damaged, each_number, explore, works_or_is_explained

CONFIG = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": "",
        "PIXEL_MEAN": [100.0, 110.0, 120.0],
        "MASK_ON": False,
        "ROI_HEADS": {"NAME": "LongTailROIHeads", "NUM_CLASSES": 16},
        "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "POOLER_RESOLUTION": 7},
    },
    "DATASETS": {"TRAIN": ["synthlt_smoke_train"], "TEST": ["synthlt_smoke_val"]},
    "DATALOADER": {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD": 0.001},
    "SOLVER": {"BASE_LR": 0.02, "MAX_ITER": 10, "STEPS": [6, 8], "IMS_PER_BATCH": 2},
    "LONG_TAIL": {
        "LOSS": {"NAME": "SeesawLoss", "SeesawLoss": {"P": 0.8, "Q": 2.0}},
        "RANKING": {"NAME": "GAPLoss", "GAPLoss": {"GAMMA": 0.5}},
        "CLASSIFIER": {"NAME": "CosineLinear"},
        "EVAL": {"BOOTSTRAP": 0},
    },
    "VERSION": 2,
}


KEY = (
    r"config key[ ,]|[A-Z]+\.[A-Z_.]+|line \d+|position \d+|cannot be read|expected keys and values"
)
"""A key, a place in the file, or what is wrong with the whole file."""


def as_yaml(content):
    """Bytes of YAML; odd values may have no plain form, and are left to the text mutations."""
    return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "replace")


CONTENTS = st.one_of(changed(CONFIG).map(as_yaml), damaged(as_yaml(CONFIG)))


@each_number(50, 600)
def test_damaged_config(tmp_path, number):
    """A damaged config file loads and passes the checks, or one error says what is wrong."""
    path = tmp_path / "config.yaml"

    def load():
        cfg = load_config(str(path), ["OUTPUT_DIR", str(tmp_path / "output")])
        check_config(cfg, argparse.Namespace(eval_only=False, config_file=str(path), opts=[]))

    def check(content):
        path.write_bytes(content)
        works_or_is_explained(load, str(path), KEY)

    explore(check, number, CONTENTS)


@each_number(20, 200)
def test_damaged_overrides(tmp_path, number):
    """Overrides with odd keys and values are taken, or one error says what is wrong."""
    keys = st.sampled_from(
        ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL", "SOLVER.STEPS", "LONG_TAIL.LOSS.NAME", "A.B", ""]
        + ["SEED.A.B", "MODEL.WEIGHTS.X", "SOLVER.", ".", "LONG_TAIL.WRITERS.0"]
        + ["LONG_TAIL.LOSS.SeesawLoss.P", "DATASETS.TRAIN", "LONG_TAIL.EVAL.BOOTSTRAP", "_BASE_"]
    )
    values = st.one_of(
        st.sampled_from(["1", "-1", "1e400", "None", "()", "('a',", "[1, [2]]", "{'a': 1}", "x"]),
        st.text(max_size=6),
    )

    def check(pairs):
        overrides = [item for pair in pairs for item in pair]

        def load():
            cfg = load_config("", [*overrides, "OUTPUT_DIR", str(tmp_path / "output")])
            check_config(cfg, argparse.Namespace(eval_only=False, config_file="", opts=overrides))

        works_or_is_explained(load, "command line", KEY)

    explore(check, number, st.lists(st.tuples(keys, values), min_size=1, max_size=3))


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "_BASE_"])
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]"]
)
def test_config_runs_no_program(tmp_path, key, tag):
    """A config, or the base of one, that asks YAML to build a Python object is refused."""
    target = tmp_path / "made_by_the_config"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"OUTPUT_DIR: {tag.format(target)}\n")
    config = tmp_path / "config.yaml"
    config.write_text("_BASE_: evil.yaml\n" if key == "_BASE_" else evil.read_text())
    with pytest.raises(ConfigError, match="tags that build Python objects are not allowed"):
        load_config(str(config))
    assert not target.exists()


def test_config_that_is_its_own_base(tmp_path):
    """A circle of _BASE_ files ends with one sentence."""
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: config.yaml\n")
    with pytest.raises(ConfigError, match="no file that is its own base"):
        load_config(str(path))
