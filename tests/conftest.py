"""Fixtures of all tests."""

import shutil
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from gpu import HAS_CUDA, HAS_DEFAULT_DEVICE, HAS_TRITON
from stacks import fail_skipped_test, running_stack
from tiny_experiment import make_experiment

# Tests that this machine cannot run are not collected, because a skipped test of the reference stack is an error.
collect_ignore_glob = [
    *([] if HAS_CUDA else ["*_on_cuda.py"]),
    *([] if HAS_TRITON else ["*test_rnnt_kernels.py"]),
    *([] if shutil.which("systemd-analyze") else ["*test_systemd_unit.py"]),
]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a skipped test as failed on the reference stack."""
    report = yield
    fail_skipped_test(report, running_stack())
    return report


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20220923)


@pytest.fixture(scope="session", autouse=True)
def _hidden_gpu() -> Iterator[None]:
    """Hide the GPU from tests, and from processes that they start, unless they request `device` or `cuda`.

    Most tests of trainings compare exact results, or use more ranks than there are GPUs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def cuda() -> Iterator[None]:
    """Show the GPU; tests in files of other names than `*_on_cuda.py` have to check that there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.delenv("CUDA_VISIBLE_DEVICES")
        yield


@pytest.fixture(scope="module", params=["cpu", "cuda"] if HAS_CUDA and HAS_DEFAULT_DEVICE else ["cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return a device, on which the test creates its tensors by default: the CPU, and CUDA if there is a GPU."""
    if request.param == "cpu":
        yield request.param
    else:
        request.getfixturevalue("cuda")
        with torch.device(request.param), torch.backends.cudnn.flags(allow_tf32=False):
            yield request.param


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
