"""Files from elsewhere run no program, and write nothing outside the folder of a run."""

import argparse
import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from lt_detectron2.data import statistics as data_statistics
from lt_detectron2.data.datasets import annotation_json, register_dataset
from lt_detectron2.data.statistics import dataset_statistics, read_statistics
from lt_detectron2.engine.checkpoint import LongTailCheckpointer
from lt_detectron2.engine.safe_loading import load_checkpoint_file
from lt_detectron2.engine.setup import check_config, load_config
from lt_detectron2.errors import CheckpointError, ConfigError, DatasetError, UserError
from lt_detectron2.evaluation import Detections
from lt_detectron2.evaluation.__main__ import main as evaluate_files

from .mutations import damaged, each_number, explore, works_or_is_explained
from .test_annotation_files import FILES
from .test_prediction_files import results

REPOSITORY = Path(__file__).resolve().parents[2]


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pyth", ".pkl"])
def test_checkpoint_runs_no_program(tmp_path, suffix):
    """A checkpoint with a program in it is refused, whatever its format, until it is allowed."""
    path, folder = tmp_path / f"model{suffix}", tmp_path / "made_by_the_checkpoint"
    content = {"model": {"weight": np.ones((1, 1)), "more": Program(folder)}, "__author__": "x"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    model = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="LONG_TAIL.ALLOW_PICKLE True, which lets the file"):
        LongTailCheckpointer(model).load(str(path))
    if suffix != ".pkl":
        with pytest.raises(DatasetError, match="cannot be read for its|holds no class statistics"):
            read_statistics(str(path))
    assert not folder.exists()
    load_checkpoint_file(str(path), allow_pickle=True)
    assert folder.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_needs_no_pickle(tmp_path, protocol):
    """Arrays in the .pkl files of Detectron2's and Detectron's model zoos load as weights."""
    weights = {"weight": np.full((1, 1), 3.0, np.float32), "bias": np.full(1, 4.0, np.float32)}
    model = nn.Linear(1, 1)
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2"}, protocol))
    LongTailCheckpointer(model).load(str(path))
    assert model.weight.item() == 3 and model.bias.item() == 4
    path.write_bytes(pickle.dumps({"blobs": {**weights, "weight_momentum": 1.0}}, protocol))
    loaded = LongTailCheckpointer(model)._load_file(str(path))
    assert loaded["matching_heuristics"] and set(loaded["model"]) == {"weight", "bias"}


@each_number(20, 200)
def test_damaged_checkpoint(tmp_path, number):
    """A damaged checkpoint is loaded, or one error names its file."""
    path = tmp_path / "model.pth"
    torch.save({"model": nn.Linear(1, 1).state_dict()}, path)

    def check(content):
        path.write_bytes(content)
        works_or_is_explained(
            lambda: load_checkpoint_file(str(path)), str(path), "cannot be read|damaged"
        )

    explore(check, number, damaged(path.read_bytes()))


def test_proposal_files_need_permission(tmp_path):
    """Proposal files, which are pickles in the folder of a data set, are refused by default."""
    cfg = load_config("", ["MODEL.LOAD_PROPOSALS", "True", "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ConfigError, match="MODEL.LOAD_PROPOSALS reads pickles"):
        check_config(cfg, argparse.Namespace(eval_only=False))


def test_names_in_files_lead_nowhere(tmp_path):
    """Names of files and classes like ../../x in a JSON change nothing about what is written."""
    folder, output = tmp_path / "data" / "set", tmp_path / "runs" / "one" / "output"
    folder.mkdir(parents=True)
    dataset = json.loads(json.dumps(FILES["lvis"]))
    for image in dataset["images"]:
        image["file_name"] = f"../../../escaped_{image['id']}.jpg"
    for category in dataset["categories"]:
        category["name"] = "../../escaped_class"
    (folder / "val.json").write_text(json.dumps(dataset))
    (folder / "results.json").write_text(json.dumps(results()))
    files = [str(folder / "val.json"), str(folder / "results.json")]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    evaluate_files([*files, "--tasks", "bbox", "segm", "--output", str(output)])
    name = "set/../of a user"
    register_dataset(name, folder / "val.json", folder)
    try:
        annotation_json._summaries.clear()
        dataset_statistics((name,))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        data_statistics._known.clear()
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert len(made) > 3
    assert all(path.parent in (folder, output) for path in made), made


def test_run_writes_where_its_metadata_say_not(tmp_path):
    """A name of a data set with .. in it does not lead the evaluation out of OUTPUT_DIR."""
    from lt_detectron2.engine.trainer import evaluation_folder

    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('a', '../../b')"])
    folder = Path(evaluation_folder(cfg, "../../b")).resolve()
    assert folder.parent == tmp_path / "inference"


CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "torch.load", "np.load"}
PICKLES = {"lt_detectron2/data/synthetic/worker.py", "lt_detectron2/engine/supervise.py"}
"""Files that unpickle what a process of theirs has written, to a pipe or a file of its own."""


def _name(function):
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return getattr(function, "id", "")


def test_no_code_from_text():
    """No eval, no exec, no unsafe loader in the package; torch and NumPy are told what is safe."""
    found = []
    for path in sorted(REPOSITORY.glob("lt_detectron2/**/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            name, where = _name(call.func), str(path.relative_to(REPOSITORY))
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            if name == "yaml.load" and "yaml.SafeLoader" in ast.unparse(tree):
                continue  # with a loader of its own that adds tuples to the safe one
            safe = {"torch.load": "weights_only", "np.load": None}.get(name, "")
            if name in CALLS or (name in LOADERS and safe == "" and where not in PICKLES):
                found.append(f"{where}:{call.lineno} {name}")
            if safe and safe not in keywords:
                found.append(f"{where}:{call.lineno} {name} without {safe}")
            if name == "np.load" and getattr(keywords.get("allow_pickle"), "value", False):
                found.append(f"{where}:{call.lineno} {name} with pickle")
    assert not found


def test_detections_hold_no_program(tmp_path):
    """A file of predictions that is a pickle is refused."""
    path = tmp_path / "detections.npz"
    path.write_bytes(pickle.dumps({"scores": Program(tmp_path / "made")}))
    with pytest.raises(UserError, match="expected saved detections in"):
        Detections.load(str(path))
    assert not (tmp_path / "made").exists()
