"""Damaged configs: loaded and checked, or explained in one sentence; none can run a program."""

import argparse
import contextlib
import copy
import re

import pytest
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_model
from hypothesis import strategies as st
from torch import nn

from lt_detectron2.data.statistics import write_statistics
from lt_detectron2.engine.blame import build_or_blame
from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.engine.trainer import LongTailTrainer
from lt_detectron2.errors import ConfigError, UserError
from lt_detectron2.statistics import ClassStatistics

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


@BACKBONE_REGISTRY.register()
class OneLayer(Backbone):
    """One feature map; a model with it is built in some milliseconds."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.layer = nn.Conv2d(input_shape.channels, 4, 3)

    def forward(self, image):
        return {"res4": self.layer(image)}

    def output_shape(self):
        return {"res4": ShapeSpec(channels=self.layer.out_channels, stride=16)}


TO_BUILD = copy.deepcopy(CONFIG)
TO_BUILD["MODEL"] |= {
    "BACKBONE": {"NAME": "OneLayer"},
    "ANCHOR_GENERATOR": {"SIZES": [[32, 64]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
    "RPN": {"IN_FEATURES": ["res4"], "NMS_THRESH": 0.7, "BATCH_SIZE_PER_IMAGE": 8},
}
TO_BUILD["MODEL"]["ROI_HEADS"] |= {"IN_FEATURES": ["res4"], "IOU_THRESHOLDS": [0.5]}
TO_BUILD["MODEL"]["ROI_BOX_HEAD"] |= {"FC_DIM": 8, "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0]}
TO_BUILD["SOLVER"] |= {
    **{"MOMENTUM": 0.9, "WEIGHT_DECAY": 0.0001, "GAMMA": 0.1, "BIAS_LR_FACTOR": 1.0},
    **{"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "WARMUP_ITERS": 2, "WARMUP_FACTOR": 0.1},
    "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0},
}


def build(cfg):
    model = LongTailTrainer.build_model(cfg)
    LongTailTrainer.build_lr_scheduler(cfg, LongTailTrainer.build_optimizer(cfg, model))


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "counts.json"
    write_statistics(ClassStatistics([*range(1, 17)], [*range(1, 17)], 100), path)
    return ["LONG_TAIL.STATISTICS", str(path), "OUTPUT_DIR", str(tmp_path / "output")]


def flat(content, prefix=""):
    """Values of a nested config by their full keys."""
    result = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result


def differing_keys(content):
    """Keys with another value than in TO_BUILD; None where one was removed, which none can name."""
    before, after = flat(TO_BUILD), flat(content)
    if before.keys() - after.keys():
        return None
    return [key for key in after if repr(after[key]) != repr(before.get(key))]


@contextlib.contextmanager
def blaming(keys):
    """Inside, an error of a key names one of these, maybe beside others."""
    try:
        yield
    except UserError as error:
        named = re.findall(r"(?:with|or) ([A-Z]+\.[\w.]+) ", str(error))
        assert keys is None or not named or set(named) & set(keys), f"{error}\n{keys}"
        raise


@each_number(60, 600)
def test_damaged_config_of_a_model(tmp_path, counts, number):
    """Model, optimizer and schedule of a config that passes are built, or a key is named."""
    path = tmp_path / "config.yaml"
    built = []

    def check(content):
        path.write_bytes(as_yaml(content))
        try:
            cfg = load_config(str(path), counts)
            check_config(cfg, argparse.Namespace(eval_only=False, config_file="", opts=[]))
        except UserError:
            return  # test_damaged_config looks at what it says

        def try_it():
            with blaming(differing_keys(content)):
                build(cfg)
            return "done"

        built.append(works_or_is_explained(try_it, "", KEY))

    check(TO_BUILD)
    assert built == ["done"]
    explore(check, number, changed(TO_BUILD))
    assert len(built) > number // 8


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("SOLVER.STEPS (8,6)", r"schedule .* with SOLVER.STEPS \(8, 6\)"),
        ("SOLVER.MAX_ITER 0 SOLVER.STEPS ()", "schedule .* with SOLVER.MAX_ITER 0"),
        ("SOLVER.LR_SCHEDULER_NAME Cosine", "Unknown LR scheduler: Cosine.: correct it"),
        ("SOLVER.BASE_LR -1.0", "optimizer .* with SOLVER.BASE_LR -1.0"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.0", "CLIP_GRADIENTS.CLIP_VALUE 0.0 .*must be > 0"),
        ("MODEL.BACKBONE.NAME resnet", "model .* with MODEL.BACKBONE.NAME 'resnet' .*No object"),
        ("MODEL.ROI_BOX_HEAD.NAME None", "with MODEL.ROI_BOX_HEAD.NAME None .*No object"),
        ("MODEL.ROI_BOX_HEAD.NAME ''", "with MODEL.ROI_BOX_HEAD.NAME '' .*No object"),
        ("MODEL.RPN.IN_FEATURES ('p2',)", r"with MODEL.RPN.IN_FEATURES \['p2'\] .KeyError 'p2'"),
        ("MODEL.PIXEL_MEAN [1.0,2.0]", r"with MODEL.PIXEL_MEAN \[1.0, 2.0\]"),
        (
            "LONG_TAIL.LOSS.SeesawLoss.P None",
            r"with LONG_TAIL.LOSS.SeesawLoss.P None .TypeError.: correct it",
        ),
        (
            "MODEL.PIXEL_MEAN None SOLVER.BASE_LR 0.1 MODEL.ROI_HEADS.IN_FEATURES ('a',)",
            r"with MODEL.PIXEL_MEAN None",
        ),
    ],
)
def test_key_is_named(tmp_path, counts, overrides, message):
    """The error of a value that passes the checks names its key, also beside another bad one."""
    path = tmp_path / "config.yaml"
    path.write_bytes(as_yaml(TO_BUILD))
    with pytest.raises(ConfigError, match=message) as caught:
        build(load_config(str(path), [*overrides.split(), *counts]))
    several = len(overrides.split()) > 2 and "SOLVER" not in overrides
    assert several or not re.search(", or [A-Z]", str(caught.value))


@pytest.fixture
def broken_library(monkeypatch):
    """Makes building a model fail inside Detectron2 as if it were of the machine."""

    def break_it(statement):
        module = {"__name__": "detectron2.modeling.of_a_test"}
        exec(f"def fail(name):\n    {statement}", module)
        monkeypatch.setattr(META_ARCH_REGISTRY, "get", module["fail"])

    return break_it


def test_no_key_is_blamed_for_what_none_mends(tmp_path, counts, broken_library):
    """An error that comes with every config is raised as it is, not with the name of some key."""
    path = tmp_path / "config.yaml"
    path.write_bytes(as_yaml(TO_BUILD))
    cfg = load_config(str(path), [*counts, "MODEL.PIXEL_STD", "[1.0,1.0,2.0]"])
    broken_library("raise RuntimeError('CUDA error: all devices are busy')")
    with pytest.raises(RuntimeError, match="all devices are busy"):
        build(cfg)


def test_the_device_is_not_blamed(tmp_path, counts, broken_library):
    """That a GPU is busy is not said to be an error of the config."""
    path = tmp_path / "config.yaml"
    path.write_bytes(as_yaml(TO_BUILD))
    cfg = load_config(str(path), counts)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    broken_library("raise RuntimeError('CUDA error: out of memory')")
    tried = []
    with pytest.raises(RuntimeError, match="out of memory"):
        build_or_blame("the model", lambda trial: tried.append(trial) or build_model(trial), cfg)
    assert tried and all(trial.MODEL.DEVICE == "cuda" for trial in tried)
    assert all(trial.LONG_TAIL.STATISTICS == cfg.LONG_TAIL.STATISTICS for trial in tried)


def test_own_code_is_not_blamed_on_the_config(tmp_path, counts):
    """An error inside a user's own component is raised as it is, with its traceback."""

    class Faulty(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            raise KeyError("a bug")

    META_ARCH_REGISTRY.register(Faulty)
    try:
        with pytest.raises(KeyError, match="a bug"):
            build(load_config("", ["MODEL.META_ARCHITECTURE", "Faulty", *counts]))
    finally:
        del META_ARCH_REGISTRY._obj_map["Faulty"]


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
