"""One small data set for the tests of the subcommands."""

import pytest

from lt_detectron2.data.synthetic.example import write_example


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "data"
    write_example(folder)
    return folder
