"""
Trained detectors for programs without this package: TorchScript, ONNX, or plain Detectron2.

Every exported file is run on several images and compared with the detector that it was made from.
"""
