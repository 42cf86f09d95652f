"""Weights of Detectron2's model zoo: an address, other classes, no network."""

import logging
import pickle
import urllib.error

import pytest
import torch
from detectron2.utils.file_io import PathManager

from lt_detectron2.engine.checkpoint import MATCHING, LongTailCheckpointer, check_weights
from lt_detectron2.errors import CheckpointError
from tests.modeling.detectors import NUM_CLASSES, small_config, small_detector

ADDRESS = "detectron2://COCO-Detection/some_model/1/model_final.pkl"


def detector(folder, num_classes=NUM_CLASSES):
    classes = ("MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes), "LONG_TAIL.STATISTICS", "")
    return small_detector(
        small_config(folder, "LongTailROIHeads", "SoftmaxCrossEntropyLoss", *classes)
    )


@pytest.fixture
def network(monkeypatch):
    """What stands behind addresses: a dict of local paths, and nothing else."""
    files = {}
    get = PathManager.get_local_path

    def get_local_path(path, *args, **kwargs):
        if "://" not in str(path):
            return get(path, *args, **kwargs)
        if path not in files:
            raise urllib.error.URLError("no route to host")
        return files[path]

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    return files


def test_classifiers_of_other_classes_start_afresh(network, tmp_path, caplog):
    source = detector(tmp_path, NUM_CLASSES + 3)
    path = tmp_path / "model_final.pkl"
    state = {name: value.numpy() for name, value in source.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "a zoo"}))
    network[ADDRESS] = str(path)
    model = detector(tmp_path)
    with caplog.at_level(logging.WARNING):
        LongTailCheckpointer(model, str(tmp_path)).load(ADDRESS)
    assert "These start afresh" in caplog.text and "cls_score.weight" in caplog.text
    loaded, expected = model.state_dict(), source.state_dict()
    same = [n for n in loaded if loaded[n].shape == expected[n].shape and n.startswith("backbone")]
    assert same and all((loaded[name] == expected[name]).all() for name in same)


def test_no_network(network, tmp_path):
    with pytest.raises(CheckpointError, match="no route to host.*set MODEL.WEIGHTS to its path"):
        LongTailCheckpointer(detector(tmp_path), str(tmp_path)).load(ADDRESS)


@pytest.mark.parametrize("has_address", [True, False])
def test_names_without_their_first_parts(network, tmp_path, has_address):
    """As the backbones of classification trainings, which the configs of Swin start from."""
    prefix = "backbone.bottom_up."
    state = detector(tmp_path).state_dict()
    expected = {name: value + 1 for name, value in state.items() if name.startswith(prefix)}
    path = str(tmp_path / "classifier.pth")
    torch.save({"model": {n.removeprefix(prefix): v for n, v in expected.items()}}, path)
    address = "https://zoo.example/classifier.pth"
    network[address] = path
    weights = (address if has_address else path) + MATCHING
    check_weights(weights)
    model = detector(tmp_path)
    LongTailCheckpointer(model, str(tmp_path)).load(weights)
    loaded = model.state_dict()
    assert expected and all(torch.equal(loaded[name], expected[name]) for name in expected)
