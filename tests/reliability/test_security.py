"""Files from elsewhere run no program, and write nothing outside the folder of a run."""

import argparse
import ast
import codecs
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
from lt_detectron2.environment import warn_of_old_torch
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


ARRAYS = [
    *(np.arange(6.0).reshape(2, 3), np.arange(6, dtype=">i2").reshape(2, 3).T, np.ones((), bool)),
    *(np.array(["a", "\u00fc"]), np.array([b"a", b"bc"]), np.zeros((0, 4), np.float16)),
]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_a_model_zoo(tmp_path, protocol):
    """Arrays of a .pkl file come back as they were: any order, numbers of any kind, and texts."""
    path = tmp_path / "zoo.pkl"
    numbers = [np.float32(1.5), np.int64(3)]
    path.write_bytes(pickle.dumps({"a": ARRAYS, "n": numbers, "b": b"x"}, protocol))
    loaded = load_checkpoint_file(str(path))
    for array, expected in zip(loaded["a"], ARRAYS, strict=True):
        assert isinstance(array, np.ndarray)
        assert array.dtype == expected.dtype.newbyteorder("=")  # which torch needs
        assert array.shape == expected.shape and (array == expected).all()
    assert loaded["n"] == numbers and loaded["n"][0].dtype == np.float32
    assert loaded["b"] == b"x"


class Reduced:
    """Is pickled as these calls."""

    def __init__(self, *calls):
        self.calls = calls

    def __reduce__(self):
        return self.calls


RECONSTRUCT = np.zeros(1).__reduce__()[0]
EMPTY = (np.ndarray, (0,), b"b")


@pytest.mark.parametrize(
    "content, message",
    [
        (np.array([1, "a"], dtype=object), "array of 'O8'"),
        (np.zeros(2, dtype=[("a", "i4")]), "array of 'V4'"),
        (Reduced(np.ndarray, ((1,), np.dtype("O"), b"A" * 8)), "array of 'O8'"),
        (Reduced(np.ndarray, ((1,),)), "not callable"),
        (Reduced(RECONSTRUCT, EMPTY, (1, (-2, -2), np.dtype("u1"), False, b"1234")), "shape"),
        (Reduced(RECONSTRUCT, EMPTY, (1, (5,), np.dtype("u1"), False, b"1234")), "shape"),
        (Reduced(RECONSTRUCT, EMPTY, (1, (1,), np.dtype("u1"), False, [7])), "made of a list"),
        (Reduced(codecs.encode, ("a", "rot13")), "bytes as 'rot13'"),
    ],
)
def test_no_memory_from_a_file(tmp_path, content, message):
    """A .pkl file cannot say where in memory an array lies, or that it is of Python objects."""
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"a": content}, 2))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint_file(str(path))


@pytest.mark.parametrize("version, holes", [("2.4.1+cu121", 2), ("2.10.0", 0), ("2.9.1", 2)])
def test_old_torch_is_named(version, holes, caplog):
    """Of a torch whose safe loading is known not to be safe, a warning says so."""
    warn_of_old_torch.__wrapped__(version)
    assert caplog.text.count("CVE") == holes


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


SCANNED = ["*.py", "lt_detectron2/**/*.py", "tools/**/*.py", "datasets/**/*.py"]
SCANNED += ["benchmarks/**/*.py", "docs/**/*.py"]

REVIEWED = {
    "lt_detectron2/data/record_store.py _Unpickler: pickle.Unpickler": "base of one that is safe",
    "lt_detectron2/data/synthetic/worker.py serve: pickle.load": "a pipe from its own parent",
    "lt_detectron2/engine/safe_loading.py _ArrayUnpickler: pickle.Unpickler": "base of a safe one",
    "lt_detectron2/engine/safe_loading.py _unpickle: pickle.Unpickler": "LONG_TAIL.ALLOW_PICKLE",
    "lt_detectron2/engine/safe_loading.py load_checkpoint_file: torch.load weights_only=not "
    "allow_pickle": "LONG_TAIL.ALLOW_PICKLE",
    "lt_detectron2/engine/supervise.py _error_of: pickle.load": "a file of its own process",
    "lt_detectron2/export/formats.py load_torchscript: torch.jit.load": "what export has written",
    "lt_detectron2/modeling/traced_postprocess.py _first_survivors: torch.jit.script_if_tracing": (
        "a function of ours, see the explained exception of `make audit`"
    ),
}
"""Where a file might run a program, and why it cannot, or which switch of the user allows it."""

PICKLES = {"pickle", "_pickle", "cPickle", "pickle5", "dill", "cloudpickle", "joblib", "marshal"}
PICKLES |= {"shelve", "jsonpickle"}
HARMLESS = {"dump", "dumps", "UnpicklingError", "PicklingError", "PickleError", "HIGHEST_PROTOCOL"}
PROGRAMS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
PROGRAMS |= {"pandas.read_pickle", "torch.hub.load", "runpy.run_path", "runpy.run_module"}
PROGRAMS |= {"detectron2.config.LazyConfig.load", "code.interact"}
PROGRAMS |= {"torch.jit.load", "torch.export.load", "torch.package.PackageImporter"}
PROGRAMS |= {"torch.jit.script", "torch.jit.script_if_tracing", "torch.jit.CompilationUnit"}
YAML = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
YAML_SAFE = {"yaml.SafeLoader", "yaml.CSafeLoader"}


class _Dangers(ast.NodeVisitor):
    """Finds what lets a file run a program, under whatever name it was imported."""

    def __init__(self, tree):
        self.found, self.scope, self.names, self.safe = [], [], {}, set(YAML_SAFE)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for name in node.names:
                    top = name.name if origin or name.asname else name.name.split(".")[0]
                    self.names[name.asname or top] = origin + top
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and {*map(self.name, node.bases)} & YAML_SAFE:
                self.safe.add(node.name)
        self.visit(tree)

    def name(self, node):
        """`np.load` as numpy.load; empty where it is no name."""
        if isinstance(node, ast.Attribute):
            before = self.name(node.value)
            return before and f"{before}.{node.attr}"
        return self.names.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def add(self, what):
        self.found.append(f"{'.'.join(self.scope) or 'module'}: {what}")

    def visit_scope(self, node):
        self.scope.append(node.name)
        self.generic_visit(node)
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_scope

    def visit_ImportFrom(self, node):
        for name in node.names:
            self.mention(f"{node.module}.{name.name}")

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self.mention(self.name(node))

    def visit_Attribute(self, node):
        self.mention(self.name(node))
        self.generic_visit(node)

    def mention(self, name):
        """Also without a call: `read = pickle.load` is as bad."""
        module, _, own = name.rpartition(".")
        if (module.split(".")[0] in PICKLES and own not in HARMLESS) or name in PROGRAMS:
            self.add(name)
        if module == "yaml" and own in YAML - {"load", "load_all"}:
            self.add(name)

    def visit_Call(self, node):
        name, keywords = self.name(node.func), {k.arg: k.value for k in node.keywords}
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        literal = {key: ast.unparse(value) for key, value in keywords.items()}
        if name in ("torch.load", "torch.serialization.load"):
            if literal.get("weights_only") != "True":
                self.add(f"{name} weights_only={literal.get('weights_only')}")
        if name.split(".")[0] == "numpy" and (literal.get("allow_pickle", "False") != "False"):
            self.add(f"{name} allow_pickle={literal['allow_pickle']}")
        if name == "numpy.load" and len(node.args) > 2:
            self.add("numpy.load with allow_pickle by position")
        if name in ("yaml.load", "yaml.load_all"):
            loader = keywords.get("Loader", node.args[1] if len(node.args) > 1 else None)
            if loader is None or self.name(loader) not in self.safe:
                self.add(f"{name} with {loader and ast.unparse(loader)}")
        # Detectron2 allows it to merge_from_file unless it is told not to.
        unsafe = literal.get("allow_unsafe", str(last == "merge_from_file"))
        if unsafe != "False":
            self.add(f"{last} allow_unsafe={unsafe}")
        if None in keywords and name in ("torch.load", "numpy.load"):
            self.add(f"{name} with keywords that are not spelled out")
        self.generic_visit(node)


def test_no_code_from_text():
    """No eval, exec, pickle or unsafe loader in any program here, but for reviewed places."""
    paths = sorted({path for pattern in SCANNED for path in REPOSITORY.glob(pattern)})
    assert {"train_net.py", "setup.py"} <= {path.name for path in paths} and len(paths) > 200
    found = [
        f"{path.relative_to(REPOSITORY).as_posix()} {danger}"
        for path in paths
        for danger in _Dangers(ast.parse(path.read_text("utf-8"))).found
    ]
    assert len(found) == len({*found})  # a second use in the same function is reviewed again
    unreviewed, gone = {*found} - REVIEWED.keys(), REVIEWED.keys() - {*found}
    assert not unreviewed and not gone


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "torch.load(f, **options)",
        "pickle.Unpickler(f).load()",
        "from pickle import load as read",
        "import _pickle as p; p.loads(b)",
        "read = pickle.loads",
        "marshal.load(f)",
        "shelve.open(f)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import numpy as np; np.load(f, None, True)",
        "import numpy; numpy.load(f, allow_pickle=switch)",
        "class Safe(yaml.SafeLoader): pass\nyaml.load(f, Loader=yaml.Loader)",
        "class Odd(yaml.FullLoader): pass\nyaml.load(f, Odd)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "cfg.merge_from_file(f)",
        "torch.export.load(f)",
        "from torch.jit import script",
        "eval(text)",
        "exec(compile(text, '', 'exec'))",
    ],
)
def test_scan_sees(text):
    assert _Dangers(ast.parse(text)).found


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f, weights_only=True)",
        "import numpy as np; np.load(f); np.load(f, allow_pickle=False)",
        "class Safe(yaml.SafeLoader): pass\nyaml.load(f, Loader=Safe); yaml.safe_load(f)",
        "pickle.dumps(x)",
        "model.eval(); re.compile(text); cfg.merge_from_file(f, allow_unsafe=False)",
    ],
)
def test_scan_lets_pass(text):
    assert not _Dangers(ast.parse(text)).found


def test_detections_hold_no_program(tmp_path):
    """A file of predictions that is a pickle is refused."""
    path = tmp_path / "detections.npz"
    path.write_bytes(pickle.dumps({"scores": Program(tmp_path / "made")}))
    with pytest.raises(UserError, match="expected saved detections in"):
        Detections.load(str(path))
    assert not (tmp_path / "made").exists()
