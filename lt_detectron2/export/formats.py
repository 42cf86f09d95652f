"""TorchScript and ONNX files of a detector, and how to run them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import ExportError
from .traceable import TraceableDetector, tracing

Runner = Callable[[Tensor], tuple[Tensor, ...]]
"""From an image to what TraceableDetector returns."""

OPSET = 17
"""Of ONNX; RoIAlign as Detectron2 has it exists from 16 on."""

CLASSES_FILE = "classes.json"
"""The extra file of a TorchScript archive that holds the class names."""


def export_torchscript(
    detector: TraceableDetector, example: Tensor, path: Path, class_names: Sequence[str]
) -> Runner:
    """
    Trace a detector into a file for ``torch.jit.load``.

    Programs that load it must import torchvision first, which has its NMS and RoIAlign.

    Args:
        detector: to be traced, with the device that it shall run on.
        example: image to trace with; any size will run afterwards.
        path: file to write.
        class_names: K names, kept in the file as ``classes.json``.

    Returns:
        the file's content, loaded back.
    """
    with tracing():
        traced = torch.jit.trace(detector, (example,), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={CLASSES_FILE: json.dumps(list(class_names))})
    return load_torchscript(path)


def load_torchscript(path: Path) -> Runner:
    """The detector of a TorchScript file, on the device that it was exported from."""
    loaded = torch.jit.load(str(path)).eval()

    def run(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return loaded(image)

    return run


def export_onnx(
    detector: TraceableDetector, example: Tensor, path: Path, class_names: Sequence[str]
) -> Runner:
    """
    Write a detector as ONNX, by torch's exporter from traces; the names lie in its metadata.

    Arguments and result are those of :func:`export_torchscript`.

    Raises:
        ExportError: onnx or onnxruntime is not installed, or the detector is not on the CPU.
    """
    onnx = _import("onnx")
    _import("onnxruntime")
    if example.device.type != "cpu":
        raise ExportError(
            f"ONNX files are made on the CPU, and the detector is on {example.device.type}: set "
            "MODEL.DEVICE cpu; the file then runs on any device"
        )
    names = detector.output_names
    sizes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}}
    with tracing():
        torch.onnx.export(
            detector,
            (example,),
            str(path),
            input_names=["image"],
            output_names=list(names),
            dynamic_axes=sizes,
            opset_version=OPSET,
            dynamo=False,  # torch.export refuses shapes that depend on how much was found
        )
    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", json.dumps(list(class_names))
    onnx.save(model, str(path))
    return load_onnx(path)


def load_onnx(path: Path) -> Runner:
    """The detector of an ONNX file, run by onnxruntime on the CPU."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of every unused initialiser
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    return run


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {name}, which is not installed: pip install onnx onnxruntime"
        ) from error
