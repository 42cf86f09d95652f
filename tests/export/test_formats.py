"""Exported files find what the detector does, on images of other sizes than it was traced with."""

import importlib
import json

import pytest
import torch

from lt_detectron2.errors import ExportError
from lt_detectron2.export.comparison import compare
from lt_detectron2.export.formats import CLASSES_FILE, export_onnx, export_torchscript
from lt_detectron2.export.traceable import TraceableDetector
from tests.export.detectors import images, retinanet, traceable

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
BOXES_ONLY = ["MODEL.MASK_ON", "False"]
CASES = {
    "groups and masks": ([], {"loss": "GroupSoftmaxLoss"}),
    "cascade": (BOXES_ONLY, {"loss": "EqualizationLossV2", "heads": "LongTailCascadeROIHeads"}),
    "class boxes": (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"], {"loss": "GumbelLoss"}),
    "calibrated": (
        ["LONG_TAIL.CALIBRATION.NAME", "TauNorm"],
        {"loss": "SoftmaxCrossEntropyLoss"},
    ),
}


@pytest.fixture
def detector(request, tmp_path):
    overrides, choices = CASES[request.param]
    return traceable(tmp_path, *overrides, **choices)


@pytest.mark.parametrize("detector", CASES, indirect=True)
def test_torchscript(detector, tmp_path):
    before = detector(images()[0])
    path = tmp_path / "model.ts"
    exported = export_torchscript(detector, images()[0], path, NAMES)
    differences = compare(detector, exported, images(), tolerance=1e-5)
    assert len({image.size for image in differences}) == 3
    assert all(image.detections == image.exported > 0 for image in differences)
    assert not detector.training and not detector.model.training
    assert all(map(torch.equal, detector(images()[0]), before))  # left as it was
    files = {CLASSES_FILE: ""}
    torch.jit.load(str(path), _extra_files=files)
    assert json.loads(files[CLASSES_FILE]) == NAMES


@pytest.mark.parametrize("detector", ["groups and masks", "cascade"], indirect=True)
def test_onnx(detector, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    exported = export_onnx(detector, images()[0], path, NAMES)
    differences = compare(detector, exported, images(), tolerance=1e-4)
    assert all(image.detections == image.exported > 0 for image in differences)
    model = onnx.load(str(path))
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {"classes": NAMES}
    assert tuple(output.name for output in model.graph.output) == detector.output_names


@pytest.mark.parametrize("candidates", [1000, 5])
@pytest.mark.parametrize("threshold", [0.05, 0.73])
def test_retinanet(threshold, candidates, tmp_path):
    """With more candidates than are taken, with fewer and with none, wherever it was traced."""
    overrides = ["MODEL.RETINANET.SCORE_THRESH_TEST", str(threshold)]
    overrides += ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", str(candidates)]
    detector = TraceableDetector(retinanet(tmp_path, *overrides))
    exported = export_torchscript(detector, images()[0], tmp_path / "model.ts", NAMES)
    noise = torch.rand(3, 100, 60, generator=torch.Generator().manual_seed(0))
    seen = [*images(), 255 * noise, 110 + 12 * noise[:, :64]]
    differences = compare(detector, exported, seen, tolerance=1e-6)
    found = [image.detections for image in differences]
    assert found == [image.exported for image in differences]
    assert max(found) > 0 and (0 in found) == (threshold > 0.5)


def test_retinanet_as_onnx(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    detector = TraceableDetector(retinanet(tmp_path))
    exported = export_onnx(detector, images()[0], tmp_path / "model.onnx", NAMES)
    differences = compare(detector, exported, images(), tolerance=1e-4)
    assert all(image.detections == image.exported == 30 for image in differences)


def test_onnx_that_is_not_installed(tmp_path, monkeypatch):
    real = importlib.import_module

    def without_onnx(name, *package):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *package)

    monkeypatch.setattr(importlib, "import_module", without_onnx)
    with pytest.raises(ExportError, match="pip install onnx onnxruntime"):
        export_onnx(traceable(tmp_path), images()[0], tmp_path / "model.onnx", NAMES)
