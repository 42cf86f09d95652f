"""Packaging of lt_detectron2. `make test` sets up a complete, pinned environment instead."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "lt_detectron2/__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)
README = ROOT / "README.md"

setup(
    name="lt_detectron2",
    version=VERSION,
    description="Long-tail object detection and instance segmentation on Detectron2",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["lt_detectron2", "lt_detectron2.*"]),
    package_data={"lt_detectron2": ["py.typed"]},
    entry_points={
        "console_scripts": ["lt-detectron2 = lt_detectron2.commands.command_line:main"],
    },
    python_requires=">=3.10",
    # Detectron2 itself is missing here on purpose: it is not on PyPI under its name, and the
    # losses work without it. tools/install_detectron2.py provides it.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.24",
        "Pillow>=9.4",
        "matplotlib>=3.7",
        "pycocotools>=2.0.7",
        "tqdm>=4.60",
    ],
    extras_require={
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17"],  # lt-detectron2 export --format onnx
        "fast": ["numba>=0.59"],  # compiles the slowest loops of an evaluation
        # The tests also compare with the official `lvis` package. It asks for the OpenCV build
        # that needs a desktop, so install it apart: pip install --no-deps lvis==0.5.3
        "test": [
            "hotcoco>=1.3",
            "hypothesis>=6.80",
            "opencv-python-headless>=4.8",
            "pytest>=8.1",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
        ],
    },
)
