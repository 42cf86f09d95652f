"""
The commands of pages run, in this process, in two folders that have what they name.

One has SynthLT smoke, with fewer images to evaluate on, and the runs of `docs/getting_started.md`,
which other pages have under other names; the other has somebody's own data, and a run on them.
Changed are names of configs and data sets (smoke in place of demo) and numbers of iterations,
nothing else.

NOT_RUN says which commands of these pages do not run, and why. Those of the tutorial run in
`test_tutorial.py`; all others are only parsed, and their configs loaded, in `test_commands.py`: of
README.md, those of the tutorial with other paths; of the pages of results and of papers.md, which
take minutes to days; of performance.md, which are measurements; of datasets/README.md, which need
the files of LVIS, COCO or Open Images; of methods.md and second_stages.md, whose programs have
tests of their own. The commands in sentences of faq.md are those of other pages.
"""

import importlib.util
import json
import logging
import shlex

import numpy as np
import pytest

from lt_detectron2.data.synthetic import generate
from lt_detectron2.data.synthetic.example import write_example
from tests.analysis.test_programs import PROGRAMS

from .pages import REPOSITORY, commands, start

SMOKE = {
    "docs/getting_started.md": ["output/synthlt/eqlv2_rfs_smoke/report.html"],
    "docs/figures.md": [f"{name}.{ending}" for name in PROGRAMS for ending in ("png", "csv")],
    "docs/run_report.md": ["output/synthlt/eqlv2_smoke/metrics.csv", "demo/film.mp4"],
    "docs/export.md": ["exported/model.ts", "exported/model_plain.pth"],
}
"""Pages, and files that their commands leave."""
OWN_DATA = {
    "docs/choosing.md": ["recommended.yaml"],
    "docs/evaluation.md": ["evaluated/results.json", "comparison/comparison.md"],
}
PAGES = [*SMOKE, *OWN_DATA]
NOT_RUN = {
    "make environment": "downloads 5 GB",
    "source .venv": "is the shell's",
    "pip install": "downloads",
    "tools/install_detectron2.py": "downloads",
    "make demo": "takes minutes; tests/analysis/test_demo.py has it shorter",
    "--num-gpus 2": "starts processes; tests/engine/test_training.py does, too",
    "OUTPUT_DIR output/softmax SEED": "is the first training of getting_started.md",
    "OUTPUT_DIR output/eqlv2 SEED": "the second one of getting_started.md stands in for it",
    "lvis_v1_train": "needs the files of LVIS",
    "--backend lvis": "needs a set like LVIS; tests/evaluation/test_command_line.py has one",
    "python -m benchmarks.": "takes minutes; tests/benchmarks has them shorter",
}
if importlib.util.find_spec("onnxruntime") is None:
    NOT_RUN["--format onnx"] = "needs onnxruntime"

TRAINING = ["python", "train_net.py"]
NAMES_OF_RUNS = ("softmax", "eqlv2_rfs")
"""The first trainings of getting_started.md."""
MY_CONFIG = """
_BASE_: configs/own_data/tiny/softmax.yaml
OUTPUT_DIR: output/my
TEST:
  EVAL_PERIOD: 0
LONG_TAIL:
  DATA:
    TRAIN: my_data/train.json
    TRAIN_IMAGES: my_data/images
    VAL: my_data/val.json
    VAL_IMAGES: my_data/images
"""


def shortened(command):
    """The command with fewer iterations, on smaller data."""
    words = [word.replace("_demo.yaml", "_smoke.yaml") for word in command]
    words = ["synthlt_smoke_val" if word == "synthlt_demo_train" else word for word in words]
    for position, key in enumerate(words):
        if key.startswith(("TEST.", "LONG_TAIL.")) and key.endswith("_PERIOD"):
            words[position + 1] = "4"
    if "train_net.py" in words and "--eval-only" not in words:
        words += ["SOLVER.MAX_ITER", "6" if "--resume" in words else "4"]
    return words


class Workspace:
    """A folder in which commands run, each once."""

    def __init__(self, folder):
        self.folder = folder
        self._done = []
        self.link({"configs": REPOSITORY / "configs"})

    def link(self, targets):
        for name, target in targets.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).symlink_to(target)

    def run(self, command):
        words = shortened(command)
        if words in self._done:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("DETECTRON2_DATASETS", str(self.folder / "datasets"))
            assert not start(words, patch), shlex.join(words)
        self._done.append(words)

    def run_page(self, page):
        for command in commands(page):
            if not any(part in shlex.join(command) for part in NOT_RUN):
                self.run(command)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("smoke"))
    folder = workspace.folder
    keep_images(generate("smoke", folder / "datasets") / "annotations" / "val.json", 20)
    softmax, eqlv2 = (folder / "output/synthlt" / f"{name}_smoke" for name in NAMES_OF_RUNS)
    first, second, *_ = sorted((folder / "datasets/synthlt/smoke/val").iterdir())
    workspace.link(
        {
            "output/softmax": softmax,
            "output/eqlv2": eqlv2,
            "output/synthlt/eqlv2_demo": eqlv2,
            "output/config.yaml": softmax / "config.yaml",
            "output/model_final.pth": softmax / "model_final.pth",
            "photo.jpg": first,
            "photos/photo.jpg": first,
            "folder/photo.jpg": second,
            "more/photo.png": second,
        }
    )
    write_film(folder / "film.mp4", first)
    trainings = [c for c in commands("docs/getting_started.md") if c[:2] == TRAINING]
    for command in trainings[: len(NAMES_OF_RUNS)]:
        workspace.run(command)
    return workspace


def keep_images(path, count):
    """The first ones of an annotation file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"] = content["images"][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps(content), encoding="utf-8")


def write_film(path, picture):
    cv2 = pytest.importorskip("cv2")
    pixels = cv2.imread(str(picture))
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, pixels.shape[1::-1])
    for shift in range(3):
        film.write(np.roll(pixels, shift, axis=1))
    film.release()


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("own_data"))
    folder = workspace.folder
    _, val = write_example(folder / "my_data")
    (folder / "my.yaml").write_text(MY_CONFIG)
    workspace.run([*TRAINING, "--config-file", "my.yaml"])
    annotations = json.loads(val.read_text(encoding="utf-8"))["annotations"]
    keys = ("image_id", "category_id", "bbox")
    perfect = [{key: entry[key] for key in keys} | {"score": 0.5} for entry in annotations]
    (folder / "results.json").write_text(json.dumps(perfect))
    evaluation = ["python", "-m", "lt_detectron2.evaluation", "my_data/val.json", "results.json"]
    workspace.run([*evaluation, "--output", "output/softmax/inference"])
    return workspace


@pytest.fixture(autouse=True)
def handlers_are_removed():
    """Programs write logs into folders of this test, and to a standard output that is closed."""
    yield
    for name in ("detectron2", "fvcore", "lt_detectron2"):
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, request):
    workspace = request.getfixturevalue("smoke" if page in SMOKE else "own_data")
    workspace.run_page(page)
    for file in (SMOKE | OWN_DATA)[page]:
        assert (workspace.folder / file).is_file(), file


def test_what_does_not_run_is_there():
    lines = [shlex.join(command) for page in PAGES for command in commands(page)]
    for part in NOT_RUN:
        assert any(part in line for line in lines), f"no page has {part!r} any more"


def test_only_names_and_iterations_are_changed():
    command = "python train_net.py --config-file a_demo.yaml SEED 0 TEST.EVAL_PERIOD 200".split()
    changed = "python train_net.py --config-file a_smoke.yaml SEED 0 TEST.EVAL_PERIOD 4".split()
    assert shortened(command) == [*changed, "SOLVER.MAX_ITER", "4"]
    command = "python -m lt_detectron2.analysis.hiou --gamma 0 0.2".split()
    assert shortened(command) == command
