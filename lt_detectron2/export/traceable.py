"""A detector as a function of one tensor, which is what TorchScript and ONNX can hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

OUTPUTS = ("boxes", "scores", "classes", "masks")
"""What TraceableDetector returns; masks only where the detector has a mask head."""


class TraceableDetector(nn.Module):
    """
    From an image to tensors, without Detectron2's structures on the outside.

    Takes a (3, H, W) float32 image: values 0..255, channels in the order of INPUT.FORMAT, resized
    as at test time. Returns boxes (D, 4) in its pixels, scores (D,), classes (D,) int64 and, with a
    mask head, masks (D, M, M), probabilities inside the box. The best detection comes first.

    Args:
        model: a GeneralizedRCNN or a one-stage detector of Detectron2.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, GeneralizedRCNN):
            # Masks are pasted into the image afterwards: outside of what is exported.
            (found,) = self.model.inference([{"image": image}], do_postprocess=False)
        else:
            found = self.model([{"image": image}])[0]["instances"]
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        return (*outputs, found.pred_masks[:, 0]) if found.has("pred_masks") else outputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of what :meth:`forward` returns."""
        has_masks = getattr(getattr(self.model, "roi_heads", None), "mask_on", False)
        return OUTPUTS if has_masks else OUTPUTS[:3]


@contextmanager
def tracing() -> Iterator[None]:
    """While a detector is traced: lengths stay tensors, and torch does not warn of shape checks."""
    with patch_builtin_len(["lt_detectron2.modeling.box_predictor"]), warnings.catch_warnings():
        # Hundreds of them, also where all is well. Whether it is, the comparison tells.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of traces themselves, from torch 2.15 on
        yield
