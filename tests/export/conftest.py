"""A random model with complementary masks of two languages, and its packages in every precision."""

import shutil

import pytest
from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways.commands.export import Config, run
from icefall_pathways.export.precision import PRECISIONS
from icefall_pathways.files import write_json

COMMAND = "icefall-pathways train --exp-dir exp --languages 'en nl'"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a folder with the experiment `exp` and a package per precision."""
    folder = tmp_path_factory.mktemp("experiment")
    make_experiment(folder)
    write_complementary_masks(folder / "exp")
    write_json(folder / "exp" / "config.json", {"command": COMMAND})
    for precision in PRECISIONS:
        run(Config(exp_dir=folder / "exp", output_dir=folder / precision, format="package", precisions=(precision,)))
    return folder


@pytest.fixture
def package(packages, tmp_path):
    """Return a copy of the package with int8."""
    return shutil.copytree(packages / "int8", tmp_path / "package")
