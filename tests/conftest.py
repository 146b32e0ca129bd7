"""Fixtures of all tests."""

import socket
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from stacks import fail_skipped_test, running_stack
from tiny_experiment import make_experiment


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a skipped test as failed on the reference stack."""
    report = yield
    fail_skipped_test(report, running_stack())
    return report


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20220923)


@pytest.fixture
def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with exp/checkpoint-5.pt and cuts of English and Dutch; tests must not change it."""
    folder = tmp_path_factory.mktemp("experiment")
    make_experiment(folder)
    return folder


@pytest.fixture
def exp_dir(experiment: Path, tmp_path: Path) -> Path:
    """Return a copy of the experiment folder, for results."""
    target = tmp_path / "exp"
    target.mkdir()
    (target / "checkpoint-5.pt").write_bytes((experiment / "exp" / "checkpoint-5.pt").read_bytes())
    return target
